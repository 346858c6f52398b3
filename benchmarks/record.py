"""Raw results of a benchmark: one JSON file with the command, the machine and the versions beside
the figures.
"""

import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from abft.files import write_text

ROOT = Path(__file__).parent.parent
PACKAGES = ("abft", "torch", "transformers", "peft")


def machine():
    """What the figures depend on, in words that say nothing about whose machine it is."""
    import torch

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in info.read_text().splitlines()
                if "model name" in line
            ),
            cpu,
        )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
    }


def write(path, results):
    """Write `results` (a dict) to `path`, atomically, unless it is None."""
    if path is None:
        return
    record = {
        "command": shlex.join(["python", *sys.argv]).replace(f"{ROOT.resolve()}/", ""),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        **results,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")
