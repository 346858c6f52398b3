"""What an installation costs: packages and megabytes beyond torch, and seconds to import, for abft
and SetFit.

    python benchmarks/install.py --output results/speed/install.json

Each gets a fresh environment with the torch of constraints.txt; everything else is what pip takes
today. Megabytes are file sizes in site-packages, before anything was imported. Seconds are whole
new processes, in turns; the first turn, which may find a cold disk, is left out. `import abft` puts
torch and transformers off until they are used; `ABFTTrainer` and SetFit load them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write

ROOT = Path(__file__).parent.parent
TORCH = next(
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("torch==")
)
REQUIREMENTS = {"abft": f"{ROOT}", "abft[classifier]": f"{ROOT}[classifier]", "setfit": "setfit"}
IMPORTS = {
    "abft": ["pass", "import abft"],
    "abft[classifier]": ["from abft import ABFTClassifier", "from abft import ABFTTrainer"],
    "setfit": ["import setfit"],
}


def installed(environment):
    """What is there: versions by package, and the bytes of site-packages."""
    python = environment / "bin" / "python"
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    (folder,) = (environment / "lib").glob("python*/site-packages")
    return {
        "versions": {package["name"]: package["version"] for package in json.loads(listed.stdout)},
        "bytes": sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()),
    }


def install(environment, requirement):
    """A fresh environment: empty, with torch, and with the package."""
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    found = {"empty": installed(environment)}
    subprocess.run([*pip, TORCH], check=True)
    found["torch"] = installed(environment)
    subprocess.run([*pip, TORCH, requirement], check=True)
    found["package"] = installed(environment)
    return found


def costs(found):
    empty, torch, package = (found[name] for name in ("empty", "torch", "package"))
    return {
        "packages": len(package["versions"]) - len(torch["versions"]),
        "megabytes": (package["bytes"] - torch["bytes"]) / 1e6,
        "packages_with_torch": len(package["versions"]) - len(empty["versions"]),
        "megabytes_with_torch": (package["bytes"] - empty["bytes"]) / 1e6,
        "versions": package["versions"],
    }


def table(results):
    head = [
        "",
        "packages",
        "MB",
        "packages with torch",
        "MB with torch",
        "import",
        "seconds, median",
    ]
    rows = [head, ["---"] * len(head)]
    for name, found in results.items():
        sizes = [str(found["packages"]), f"{found['megabytes']:.0f}"]
        sizes += [str(found["packages_with_torch"]), f"{found['megabytes_with_torch']:.0f}"]
        for code, taken in found["seconds"].items():
            seconds = f"{statistics.median(taken):.2f} ({min(taken):.2f}-{max(taken):.2f})"
            rows.append([name, *sizes, f"`{code}`", seconds])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, requirement in REQUIREMENTS.items():
            print(f"installing {name}", file=sys.stderr, flush=True)
            results[name] = costs(install(Path(folder) / name, requirement))
            results[name]["seconds"] = {code: [] for code in IMPORTS[name]}
        for number in range(options.rounds + 1):
            for name, found in results.items():
                for code, taken in found["seconds"].items():
                    command = [Path(folder) / name / "bin" / "python", "-I", "-c", code]
                    started = time.perf_counter()
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    if number:
                        taken.append(time.perf_counter() - started)
    print(table(results))
    write(options.output, {"results": results})


if __name__ == "__main__":
    main()
