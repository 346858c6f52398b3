"""Seconds to start: the command line's help, the import, and the embedded default model.

    python benchmarks/startup.py --output results/speed/startup.json

Each in a new process, in turns; the first run of each, which may find a cold disk or convert the
model, is left out.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import write

LOADING = "load_model, without imports"  # times itself
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "abft --help": [str(Path(sys.executable).with_name("abft")), "--help"],
    "import abft": [sys.executable, "-c", "import abft"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch, transformers": [
        sys.executable,
        "-c",
        "import torch; from transformers import PreTrainedModel, Trainer",
    ],
    "load_model": [sys.executable, "-c", "import abft; abft.load_model('SmolLM2-135M-Instruct')"],
    LOADING: [
        sys.executable,
        "-c",
        "import time; from transformers import AutoTokenizer, LlamaForCausalLM; import abft; "
        "start = time.perf_counter(); "
        "abft.load_model('SmolLM2-135M-Instruct'); print(time.perf_counter() - start)",
    ],
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    seconds = {name: [] for name in COMMANDS}
    for number in range(options.rounds + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            taken = float(done.stdout) if name == LOADING else time.perf_counter() - started
            if number:
                seconds[name].append(taken)
    for name, taken in seconds.items():
        print(f"{name}: {statistics.median(taken):.2f} s ({min(taken):.2f}-{max(taken):.2f})")
    write(options.output, {"seconds": seconds})


if __name__ == "__main__":
    main()
