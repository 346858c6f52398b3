"""Wrong input through the command line: one clear line, and nothing half-written."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from abft.cli.options import Request
from abft.runs.run_folder import read_config
from command_line import arguments, invoke, refused


def test_occupied_output_folders(options, finished, tmp_path):
    assert "holds another run; use --overwrite" in refused(
        "train", *arguments(options), "--output", finished
    )
    assert "lr, seed differ" in refused(
        "train", "--resume", "--lr", 5, "--seed", 3, "--output", finished
    )
    assert (
        json.loads(invoke("train", "--resume", "--output", finished, "--json").stdout)["training"][
            "steps"
        ]
        == 4
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    for flag in ([], ["--overwrite"]):
        assert "no abft run" in refused(
            "train", *arguments(options), "--output", tmp_path / "mine", *flag
        )
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"
    assert "no such folder" in refused("train", "--resume", "--output", tmp_path / "nothing")
    assert "is a file" in refused(
        "train", *arguments(options), "--output", tmp_path / "mine/thesis.txt"
    )
    assert "thesis.txt is a file" in refused(
        "train", *arguments(options), "--output", tmp_path / "mine/thesis.txt/x"
    )
    first = invoke(
        "train", *arguments(options, test_prompts=0, steps=1), "--output", tmp_path / "o"
    )
    assert first.exit_code == 0
    (tmp_path / "o/notes.txt").write_text("mine")
    (tmp_path / "o/.partial").mkdir()
    second = invoke(
        "train",
        *arguments(options, test_prompts=0, steps=2),
        "--output",
        tmp_path / "o",
        "--overwrite",
    )
    assert second.exit_code == 0, second.output
    assert json.loads((tmp_path / "o/metrics.json").read_text())["training"]["steps"] == 2
    assert (tmp_path / "o/notes.txt").read_text() == "mine"
    assert not (tmp_path / "o/.partial").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.csv"}, "no such file: nowhere.csv"),
        ({"text_column": "body"}, "no column 'body'; its columns are review, stars"),
        ({"model": "./nowhere"}, "no model at ./nowhere"),
        ({"k": 50}, "training pool has 45 examples, k = 50 demonstrations and a query need 51"),
        ({"k": 44}, "the model reads at most 512"),
        ({"nb": 64}, "do not fill one pseudo-batch"),
        ({"batch_size": 3}, "does not divide"),
        ({"queries": 3}, "has to divide"),
        ({"queries": 2, "train_on": "others"}, "one query each"),
        ({"layers": "0-9"}, "cannot be trained; this model's attention layers are 0-1"),
        ({"layers": "x"}, "expected numbers and ranges"),
        ({"layers": "²"}, "expected numbers and ranges"),
        ({"k": 1, "objective": "vote", "cross_entropy": 0}, "compares labels, k = 1 shows one"),
        ({"label_words": "stars"}, "expected LABEL=word"),
        ({"label_words": "neutral=meh"}, "unknown labels"),
        (
            {"label_words": "negative=positive x", "objective": "e2e"},
            "two labels begin with the same token",
        ),
        (
            {"A0": 0.3, "objective": "vote"},
            "A0 goes with objective 'abft' and has no effect on 'vote'",
        ),
        ({"objective": "ABFT"}, "objective = 'ABFT': expected one of vote, contrastive, abft, e2e"),
        ({"Cp": 0.1, "objective": "e2e"}, "Cp goes with objective 'abft'"),
        ({"cross_entropy": -1}, "cross_entropy = -1.0"),
        (
            {"cross_entropy": 1, "objective": "e2e"},
            "goes with objectives that are a loss on attention",
        ),
        ({"task": "SST2"}, "both task 'SST2' and data"),
        ({"dtype": "float13"}, "expected one of float32"),
        ({"dtype": "bfloat16"}, "full-rank training needs float32"),
        ({"A0": -1}, "A0 = -1.0"),
        ({"Ci": "nan"}, "Ci = nan"),
        ({"seed": -1}, "seed = -1"),
        ({"activation_checkpointing": -1}, "activation_checkpointing = -1"),
        ({"lora_r": 4, "lora_alpha": 0}, "lora_alpha = 0"),
        ({"device": "tpu"}, "expected one of auto, cpu"),
        ({"data": None}, "given without data"),
        ({"steps": 0}, "steps = 0"),
        ({"template": "{text}"}, "template"),
        ({"threshold": 0.99}, "no attention head passed the threshold"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(options, tmp_path, changes, message):
    output = tmp_path / "run"
    assert message in refused("train", *arguments(options, **changes), "--output", output)
    assert not output.exists() or not list(output.iterdir())


def test_a_last_step_that_ruins_the_weights(options, tmp_path):
    output = tmp_path / "run"
    message = "the label probabilities are not finite: the weights are corrupted"
    assert message in refused("train", *arguments(options, lr=1e20, steps=1), "--output", output)
    assert message in refused("train", "--resume", "--output", output)
    assert (
        invoke("train", *arguments(options, steps=1), "--output", output, "--overwrite").exit_code
        == 0
    )
    unseen = tmp_path / "unseen"
    assert (
        invoke(
            "train", *arguments(options, lr=1e20, steps=1, test_prompts=0), "--output", unseen
        ).exit_code
        == 0
    )
    assert "the label probabilities are not finite" in refused(
        "predict", "--run", unseen, "--text", "great"
    )
    assert "the model's attention is not finite" in refused(
        "eval", "--run", unseen, "--test-prompts", 4
    )


def test_a_model_file_cut_short(options, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = refused(
        "train", *arguments(options, model=tmp_path / "cut"), "--output", tmp_path / "run"
    )
    assert "could not be loaded" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_where_there_is_none(options, tmp_path):
    assert "has no CUDA" in refused(
        "train", *arguments(options, device="cuda"), "--output", tmp_path / "run"
    )


def test_a_run_folder_cannot_ask_for_remote_code(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    text = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(
        text.replace("trust_remote_code: false", "trust_remote_code: true")
    )
    assert read_config(tmp_path / "run").trust_remote_code is False
    assert read_config(tmp_path / "run", trust_remote_code=True).trust_remote_code is True
    asked = [
        Request(given, {}, None, False).config(tmp_path / "run").trust_remote_code
        for given in ({}, {"trust_remote_code": True})
    ]
    assert asked == [False, True]


def test_names_with_brackets_are_printed_as_they_are(options, reviews, tmp_path):
    data = tmp_path / "data[bold].csv"
    shutil.copy(reviews, data)
    result = invoke("train", *arguments(options, data=data, steps=1), "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "data[bold]" in result.stdout


def test_bad_config_files(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("stepz: 3\n")
    assert "unknown key 'stepz'; did you mean 'steps'?" in refused(
        "train", "--config", path, "--output", tmp_path / "o"
    )
    path.write_text("- a\n")
    assert "expected keys and values" in refused(
        "train", "--config", path, "--output", tmp_path / "o"
    )
    assert "no such file" in refused(
        "train", "--config", tmp_path / "none.yaml", "--output", tmp_path / "o"
    )
    path.write_text("steps: many\n")
    assert "steps = 'many': expected a whole number" in refused(
        "train", "--config", path, "--output", tmp_path / "o"
    )


def test_unfinished_and_damaged_runs(options, finished, tmp_path):
    assert "no run folder" in refused("predict", "--run", tmp_path, "--text", "x")
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    assert "not finished; go on with" in refused("eval", "--run", tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "task.json").write_text('{"task"')
    assert "missing or damaged" in refused("predict", "--run", tmp_path, "--text", "x")


def test_disk_that_fills_while_training(options, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("abft.model.checkpoints.save_file", full)
    message = refused("train", *arguments(options), "--output", tmp_path / "run")
    assert "No space left on device" in message
    assert f"abft train --resume --output {tmp_path / 'run'}" in message
    monkeypatch.undo()
    assert invoke("train", "--resume", "--output", tmp_path / "run").exit_code == 0


def test_main_prints_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "abft",
            "train",
            "--task",
            "sst-2",
            "--output",
            tmp_path / "o",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown task 'sst-2': did you mean SST2?")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("output", ["/proc/nope", "/dev/null/run"])
def test_a_run_folder_that_cannot_be_made(options, output):
    command = ["train", *arguments(options, steps=1, test_prompts=0), "--output", output]
    message = refused(*command)
    assert output.split("/")[1] in message


def test_null_in_a_file_means_the_default_also_next_to_a_run(finished, tmp_path):
    """A file that named no data kept the run's own, although it described another task."""
    run = read_config(finished)
    assert run.data is not None
    file = {"task": None, "data": None, "k": 3, "threshold": None}
    config = Request({}, file, None, False).config(finished)
    assert (config.task_name, config.data, config.label_words) == ("SST2", None, {})
    assert (config.k, config.model) == (3, run.model)
    assert Request({}, {"k": 3}, None, False).config(finished).data == run.data
