"""Mutation testing: how many single changes of the source do the tests notice?

    make mutants

mutmut (configured in pyproject.toml) makes the changes and runs the tests that cover each; this
script starts it, reads what it left in mutants/, and writes results/mutants.json. Changes that
alter nothing are listed in benchmarks/equivalent_mutants.yaml with the reason. The exit status is 1
if fewer than 95% of the others are noticed. Changes that no test noticed are tested again, which
takes minutes, while the others stay as they are until their function changes.
"""

import argparse
import json
import os
import re
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
    earlier = [name for name, code in outcomes().items() if code in (SURVIVED, NOT_COVERED)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)

    # The tests may have changed since these survived; mutmut looks at the source alone.
    if earlier:
        left = [name for name in earlier if name in outcomes()]
        subprocess.run([*command, *left], cwd=ROOT, env=environment, check=True)


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


def equivalent_to(survivor, listed):
    """First entry of the list that names this change, or None; entries may leave parts open."""
    for entry in listed:
        parts = ("file", "before", "after")
        if all(re.search(entry.get(part, ""), survivor[part]) for part in parts):
            return entry
    return None


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
    equivalent = [s for s in survivors if equivalent_to(s, listed)]
    others = [s for s in survivors if not equivalent_to(s, listed)]
    reasons = Counter(equivalent_to(s, listed)["reason"] for s in equivalent)

    counted = len(codes) - unfinished - len(equivalent)
    share = 1 - len(others) / counted
    record = {
        "mutmut": version("mutmut"),
        "changes": len(codes),
        "not_run": unfinished,
        "equivalent": len(equivalent),
        "equivalent_by_reason": dict(reasons.most_common()),
        "noticed": counted - len(others),
        "share": round(share, 4),
        "survivors_by_file": dict(Counter(s["file"] for s in others)),
        "survivors": others,
    }
    write_text(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    for survivor in others:
        print(f"{survivor['file']}\n  - {survivor['before']}\n  + {survivor['after']}")
    print(
        f"{len(codes)} changes, {unfinished} not run, {len(equivalent)} change nothing; "
        f"of the other {counted}, {share:.1%} are noticed (at least {LEAST:.0%} expected)"
    )
    sys.exit(share < LEAST or unfinished > 0)


if __name__ == "__main__":
    main()
