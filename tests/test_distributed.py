"""Two real processes train like one: the same losses, head counts and path of A."""

import json
import os
import subprocess
import sys

import pytest

from command_line import arguments


def launch(options, output, *flags):
    """The command line in two processes on the CPU (gloo). `accelerate launch` starts more than one on GPUs only."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "abft",
        "train",
    ]
    command += [str(each) for each in (*arguments(options), *flags, "--output", output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(options, finished, tmp_path):
    launch({**options, "batch-size": 4}, tmp_path / "two")
    one, two = log(finished), log(tmp_path / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "heads", "A", "right_mass", "wrong_mass"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
    scores = [json.loads((run / "metrics.json").read_text()) for run in (finished, tmp_path / "two")]
    assert scores[1]["training"]["processes"] == 2
    assert scores[1]["abft"]["accuracy"] == pytest.approx(scores[0]["abft"]["accuracy"], abs=0.051)
