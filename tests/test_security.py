"""Files from strangers run no code: see docs/security.md."""

import json
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


def test_no_file_switches_on_remote_code(model_folder, reviews, tmp_path, monkeypatch):
    """Neither a configuration nor a grid from elsewhere runs the code of a model's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")

    settings = {"model": str(model), "data": str(reviews), "text_column": "review"}
    settings |= {"label_column": "stars", "k": 2, "test_prompts": 4, "trust_remote_code": True}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    for command in ("eval", "train"):
        extra = ("--output", tmp_path / "out") if command == "train" else ()
        assert isinstance(
            invoke(command, "--config", tmp_path / "run.yaml", *extra).exception, AbftError
        )
    assert not (tmp_path / "ran").exists()

    grid = {"tasks": ["SST2"], "methods": ["vanilla"], "scenarios": ["standard"]}
    for place in (
        {"models": [str(model)], "settings": {"trust_remote_code": True}},
        {"models": [{"name": str(model), "trust_remote_code": True}]},
    ):
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**grid, **place}))
        said = refused("bench", "--config", tmp_path / "grid.yaml", "--output", tmp_path / "bench")
        assert "give --trust-remote-code" in said
    assert not (tmp_path / "ran").exists()

    # Who asks for it gets it.
    invoke("eval", "--config", tmp_path / "run.yaml", "--trust-remote-code")
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    again = shutil.copytree(model, tmp_path / "again")  # a module runs once in a process
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**grid, "models": [str(again)]}))
    command = ("bench", "--config", tmp_path / "grid.yaml", "--output", tmp_path / "bench")
    invoke(*command, "--dry-run")
    assert not (tmp_path / "ran").exists()
    invoke(*command, "--dry-run", "--trust-remote-code")
    assert (tmp_path / "ran").exists()
