"""Files from strangers run no code: see docs/security.md."""

import pickle
import shutil

import pytest
import yaml

from abft.errors import AbftError
from abft.runs.run_folder import read_config
from command_line import arguments, invoke, refused


class _Code:
    """A pickle of it creates a file when it is read."""

    def __reduce__(self):
        return open, ("ran", "w")


def test_yaml_makes_no_python_objects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "!!python/object/apply:builtins.open [ran, w]"
    (tmp_path / "config.yaml").write_text(f"model: {code}\n")

    # An unsafe loader would run it.
    yaml.unsafe_load((tmp_path / "config.yaml").read_text())
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()

    with pytest.raises(AbftError, match="could not be read"):
        read_config(tmp_path)
    result = invoke("train", "--config", tmp_path / "config.yaml")
    assert isinstance(result.exception, AbftError)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_checkpoints_run_no_code(options, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    command = ("train", *arguments(options, steps=2, save_steps=1, test_prompts=0))

    # As if it had been killed after step 1.
    with monkeypatch.context() as patch:
        patch.setattr("abft.runs.train.finish_run", lambda output: None)
        assert invoke(*command, "--output", run).exit_code == 0
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-1" / name).write_bytes(pickle.dumps(_Code()))

    message = refused("train", "--output", run, "--resume")
    assert f"{run / 'checkpoint-1'} could not be read" in message
    assert not (tmp_path / "ran").exists()
