"""Two real processes train like one: the same losses, head counts and path of A."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import arguments, invoke


def launch(program, options, output, *flags, **environment):
    """A program that takes the command line's arguments, in two processes on the CPU (gloo).

    `accelerate launch` starts more than one on accelerators only.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        *program,
        "train",
    ]
    command += [str(each) for each in (*arguments(options), *flags, "--output", output)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def refuse_difference(one, two):
    """Losses, heads and, where there is one, the path of A."""
    one, two = log(one), log(two)
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"step", "seconds"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_two_processes_equal_one(options, finished, tmp_path):
    done = launch(["-m", "abft"], {**options, "batch-size": 4}, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    refuse_difference(finished, tmp_path / "two")
    scores = [
        json.loads((run / "metrics.json").read_text()) for run in (finished, tmp_path / "two")
    ]
    assert scores[1]["training"]["processes"] == 2
    assert scores[1]["after"]["accuracy"] == pytest.approx(
        scores[0]["after"]["accuracy"], abs=0.051
    )


FSDP = [str(Path(__file__).parent / "fsdp_on_cpu.py")]


@pytest.fixture(scope="module")
def lora(options):
    return {**options, "lora-r": 4, "lr": 0.01, "save-steps": 2}


@pytest.fixture(scope="module")
def one_process(lora, tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    result = invoke("train", *arguments(lora), "--output", run)
    assert result.exit_code == 0, result.output
    return run


def test_fsdp2_equals_one_process(lora, one_process, tmp_path):
    done = launch(FSDP, {**lora, "batch-size": 4}, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    refuse_difference(one_process, tmp_path / "two")
    one, two = (
        load_file(run / "adapter_model.safetensors") for run in (one_process, tmp_path / "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)
    scores = [
        json.loads((run / "metrics.json").read_text()) for run in (one_process, tmp_path / "two")
    ]
    assert scores[1]["training"]["processes"] == 2
    assert scores[1]["after"]["accuracy"] == pytest.approx(
        scores[0]["after"]["accuracy"], abs=0.051
    )


VOTE = {"objective": "vote", "cross-entropy": 2}


@pytest.mark.parametrize(
    ("program", "changes"),
    [
        (["-m", "abft"], {**VOTE, "kl": 2}),
        (FSDP, {**VOTE, "lora-r": 4}),
        (["-m", "abft"], {"objective": "e2e"}),
    ],
)
def test_losses_of_the_output_are_the_same_in_two_processes(program, changes, options, tmp_path):
    both = {**options, **changes, "queries": 2, "batch-size": 4, "test-prompts": 0}
    result = invoke("train", *arguments(both), "--output", tmp_path / "one")
    assert result.exit_code == 0, result.output
    done = launch(program, both, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    refuse_difference(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        (
            {"lora-r": None, "lr": 0.001},
            {},
            "full-rank training with FSDP or DeepSpeed is not supported",
        ),
        (
            {},
            {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
            "FSDP: expected version 2 and full state dicts",
        ),
        ({"kl": 1}, {}, "kl keeps the untouched weights"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(lora, tmp_path, changes, environment, message):
    done = launch(FSDP, {**lora, "batch-size": 4, **changes}, tmp_path / "run", **environment)
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr or message in done.stderr
    assert not (tmp_path / "run/metrics.json").exists()
