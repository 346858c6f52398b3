"""Golden trajectories: ways of training that must be equal give one loss and gradient norm a step.

Through the command line, as `abft train` writes them to log.jsonl.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from abft.method.objectives import OBJECTIVES
from abft.model.capabilities import Capabilities
from command_line import arguments, invoke

WAYS = {
    "vote": {"objective": "vote"},
    "abft": {"objective": "abft"},
    "contrastive": {"objective": "contrastive", "heads": 2},
    "e2e": {"objective": "e2e"},
    "vote, LoRA": {"objective": "vote", "lora_r": 4},
}


def settings(options, **changes):
    common = {"nd": 32, "nb": 32, "batch_size": 8, "queries": 4, "steps": 3, "lr": 0.003}
    return {**options, "test-prompts": 0, "save-steps": 1, **common, **changes}


def trajectory(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(step["loss"], step["grad_norm"]) for step in map(json.loads, lines)]


def trained(options, folder, **changes):
    values = {name.replace("_", "-"): v for name, v in settings(options, **changes).items()}
    result = invoke("train", *arguments(values), "--output", folder)
    assert result.exit_code == 0, result.output
    return trajectory(folder)


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture(scope="module")
def golden(options, way, tmp_path_factory):
    """The trajectory of 8 x 4 prompts a step, packed by 4."""
    return trained(options, tmp_path_factory.mktemp("golden") / "run", **way)


def equal(measured, expected):
    assert len(measured) == len(expected)
    for one, other in zip(measured, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_every_objective_has_a_trajectory_that_moves(golden):
    """Otherwise equality means nothing."""
    assert {way["objective"] for way in WAYS.values()} == set(OBJECTIVES)
    losses, norms = zip(*golden, strict=True)
    assert len(golden) == 3
    assert max(losses) - min(losses) > 0.005 * max(losses)
    assert max(norms) - min(norms) > 0.005 * max(norms)
    assert min(norms) > 0


@pytest.mark.parametrize("batch_size", [32, 4])
def test_micro_batches(options, way, golden, tmp_path, batch_size):
    equal(trained(options, tmp_path / "run", **way, batch_size=batch_size), golden)


def test_activation_checkpointing(options, way, golden, tmp_path):
    changes = {**way, "activation_checkpointing": 1}
    equal(trained(options, tmp_path / "run", **changes), golden)


def test_prompts_read_one_by_one(options, way, golden, tmp_path, monkeypatch):
    monkeypatch.setattr(Capabilities, "packs", False)
    equal(trained(options, tmp_path / "run", **way), golden)
    assert not json.loads((tmp_path / "run/metrics.json").read_text())["training"]["packed"]


def test_killed_after_the_second_step_and_resumed(options, way, golden, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("abft.runs.train.finish_run", lambda output: None)
        whole = trained(options, run, **way)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoint-3")
    assert (run / "checkpoint-2").is_dir()

    result = invoke("train", "--resume", "--output", run)
    assert result.exit_code == 0, result.output
    assert trajectory(run) == whole
    equal(whole, golden)


def test_two_processes(options, tmp_path):
    one = trained(options, tmp_path / "one", objective="vote")
    values = settings(options, objective="vote", batch_size=4)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    values = {name.replace("_", "-"): value for name, value in values.items()}
    command = [*launch, "--nproc_per_node", "2", "-m", "abft", "train", *arguments(values)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    equal(trajectory(tmp_path / "two"), one)
