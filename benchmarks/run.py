"""Run every benchmark and write the tables of PERFORMANCE.md: what `make bench` calls.

    python benchmarks/run.py                                   # two hours on 2 cores, and hours of
                                                               # training runs
    python benchmarks/run.py --only step limits
    python benchmarks/run.py --size tiny --output /tmp/bench   # shows that all of them run; the
                                                               # figures mean nothing

Each benchmark is a script of its own (`--help` says what it measures). Training runs that are in
the output folder are not repeated. Leave the machine alone meanwhile.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TIME_TO_ACCURACY = "time_to_accuracy"
MEMORY = ["--ways", "abft", "half", "plain", "--rounds", "1", "--steps", "1"]
SIZES = {
    "full": {
        "startup": ["startup.py"],
        "limits": ["limits.py"],
        "step": ["step.py", "--rounds", "2"],
        "variants": [
            "step.py",
            "--ways",
            "packed",
            "default",
            "compiled",
            "--shapes",
            "95x8",
            "--rounds",
            "2",
        ],
        "memory": ["step.py", "--shapes", "512x1", "1024x1", "2048x1", "4096x1", "8192x1", *MEMORY],
        "saved_activations": ["saved_activations.py"],
        "eval": ["eval.py", "--rounds", "3", "--batch-sizes", "16"],
        "predict": ["predict.py", "--queries", "32"],
        TIME_TO_ACCURACY: [
            "time_to_accuracy.py",
            "--tasks",
            "SST2",
            "TREC",
            "FP",
            "--seeds",
            "0",
            "1",
            "2",
        ],
    },
    "tiny": {
        "startup": ["startup.py", "--rounds", "1"],
        "limits": ["limits.py", "--shapes", "16x2", "--rounds", "1"],
        "step": ["step.py", "--shapes", "16x4", "--rounds", "1", "--steps", "1"],
        "variants": [
            "step.py",
            "--ways",
            "packed",
            "default",
            "--shapes",
            "16x4",
            "--rounds",
            "1",
            "--steps",
            "1",
        ],
        "memory": ["step.py", "--shapes", "16x1", "32x1", *MEMORY],
        "saved_activations": ["saved_activations.py", "--tokens", "16"],
        "eval": ["eval.py", "--rounds", "1", "--batch-sizes", "2", "--prompts", "4"],
        "predict": ["predict.py", "--demonstrations", "2", "--queries", "4", "--rounds", "1"],
        TIME_TO_ACCURACY: ["time_to_accuracy.py", "--steps", "1", "--nb", "8", "--prompts", "8"],
    },
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument(
        "--only", nargs="+", choices=list(SIZES["full"]), help="these benchmarks; default all"
    )
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "speed")
    options = parser.parse_args()
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # huge pages, as the command line asks for
    failed = []
    for name in options.only or SIZES[options.size]:
        script, *arguments = SIZES[options.size][name]
        target = options.output / (name if name == TIME_TO_ACCURACY else f"{name}.json")
        print(f"== {name}", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / script), *arguments, "--output", str(target)]
        )
        if done.returncode:
            failed.append(name)
    page = HERE.parent / "PERFORMANCE.md"
    tables = [
        sys.executable,
        str(HERE / "tables.py"),
        "--results",
        str(options.output),
        "--page",
        str(page),
    ]
    if options.size != "full":
        tables += ["--print"]
    failed += ["tables"] if subprocess.run(tables).returncode else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
