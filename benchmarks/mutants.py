"""Mutation testing: how many single changes of the source do the tests notice?

    make mutants

mutmut (configured in pyproject.toml) makes the changes and runs the tests that cover each; this
script starts it, reads what it left in mutants/, and writes results/mutants.json. Changes that
alter nothing are listed in benchmarks/equivalent_mutants.yaml with the reason. The exit status is 1
if fewer than 95% of the others are noticed, or if a listed change does not occur any more.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import yaml

from abft.files import write_text

ROOT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
LEAST = 0.95
SURVIVED, NOT_COVERED = 0, 33  # mutmut's exit codes; others are failed tests or timeouts


def run():
    """Make the changes and test each; mutmut goes on where it was stopped."""
    mutated = ROOT / "mutants/src"
    # Python never looks again for packages in a folder that did not exist at first.
    mutated.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(mutated), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count())]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def outcomes():
    """Exit code of every change, by mutmut's name for it."""
    codes = {}
    for path in sorted((ROOT / "mutants").rglob("*.py.meta")):
        codes |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return codes


def change(name):
    """File, line before and line after of a change."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    lines = get_diff_for_mutant(name).splitlines()
    before = [line[1:].strip() for line in lines if line.startswith("-") and line[:3] != "---"]
    after = [line[1:].strip() for line in lines if line.startswith("+") and line[:3] != "+++"]
    return {
        "file": lines[0].removeprefix("--- ").removeprefix("mutants/"),
        "before": " ".join(before),
        "after": " ".join(after),
    }


def is_equivalent(survivor, entry):
    """Whether an entry of the list names this change; entries may leave `after` open."""
    same = entry["file"] == survivor["file"] and entry["before"] == survivor["before"]
    return same and entry.get("after", survivor["after"]) == survivor["after"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "results/mutants.json")
    parser.add_argument("--no-run", action="store_true", help="only read what mutants/ holds")
    options = parser.parse_args()
    os.chdir(ROOT)
    if not options.no_run:
        run()

    codes = outcomes()
    unfinished = sum(code is None for code in codes.values())
    survivors = [change(name) for name, code in codes.items() if code in (SURVIVED, NOT_COVERED)]
    listed = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8"))
    equivalent = [s for s in survivors if any(is_equivalent(s, entry) for entry in listed)]
    others = [s for s in survivors if s not in equivalent]
    gone = [entry for entry in listed if not any(is_equivalent(s, entry) for s in survivors)]

    counted = len(codes) - unfinished - len(equivalent)
    share = 1 - len(others) / counted
    record = {
        "mutmut": version("mutmut"),
        "changes": len(codes),
        "not_run": unfinished,
        "equivalent": len(equivalent),
        "noticed": counted - len(others),
        "share": round(share, 4),
        "survivors_by_file": dict(Counter(s["file"] for s in others)),
        "survivors": others,
    }
    write_text(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    for survivor in others:
        print(f"{survivor['file']}\n  - {survivor['before']}\n  + {survivor['after']}")
    for entry in gone:
        print(f"listed as equivalent, but noticed or gone: {entry['file']}: {entry['before']}")
    print(
        f"{len(codes)} changes, {unfinished} not run, {len(equivalent)} change nothing; "
        f"of the other {counted}, {share:.1%} are noticed (at least {LEAST:.0%} expected)"
    )
    sys.exit(share < LEAST or bool(gone) or unfinished > 0)


if __name__ == "__main__":
    main()
