"""The main job through the command line: what a user does, with wrong input too."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import abft
from abft.analysis.choices import Choices
from abft.analysis.study import open_study
from abft.cli.app import app
from abft.cli.tables import print_result
from abft.data.prompts import write_prompt
from abft.data.splits import lcg_indices
from abft.data.tasks import Example
from abft.method.objectives import DEFAULT_OBJECTIVE
from abft.method.settings import layer_numbers
from abft.runs.config import RunConfig, config_values, default_learning_rate, resolve
from abft.runs.run_folder import _set_aside, read_config
from abft.runs.session import Session, open_session, progress_bar
from abft.runs.train import TrainedRun
from abft.scoring.metrics import scores
from command_line import arguments, invoke, refused
from tiny import tiny_model


def same_weights(run, other):
    """Bit-equal trained tensors."""
    ours, theirs = (load_file(folder / "qk_weights.safetensors") for folder in (run, other))
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_run_folder(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "task.json",
        "metrics.json",
        "log.jsonl",
        "qk_weights.safetensors",
        "README.md",
    } <= names
    assert not [n for n in names if n.startswith((".", "checkpoint")) or n == "vanilla.json"]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (metrics["task"], metrics["prompt_style"], metrics["seed"], metrics["test_prompts"]) == (
        "reviews",
        "consistent",
        0,
        20,
    )
    assert (metrics["format"], metrics["objective"]) == (2, "abft")
    for when in ("before", "after"):
        assert {"accuracy", "macro_f1", "ece", "heads"} <= set(metrics[when])
    training = metrics["training"]
    assert training["steps"] == 4
    assert training["prompts"] == 32
    assert training["trainable_parameters"] == 2 * (32 * 32 + 16 * 32)
    assert training["seconds"] > 0
    assert training["peak_memory_bytes"] > 2**20
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert set(log[0]) == {
        "step",
        "loss",
        "heads",
        "correct_mass",
        "incorrect_mass",
        "A",
        "seconds",
        "grad_norm",
    }
    assert "| after |" in (finished / "README.md").read_text()


def test_config_is_re_runnable_and_the_command_line_overrides(finished, tmp_path):
    again = invoke("train", "--config", finished / "config.yaml", "--output", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert same_weights(tmp_path / "again", finished)
    less = invoke(
        "train",
        "--config",
        finished / "config.yaml",
        "--steps",
        1,
        "--json",
        "--output",
        tmp_path / "less",
    )
    assert json.loads(less.stdout)["training"]["steps"] == 1
    assert yaml.safe_load((tmp_path / "less/config.yaml").read_text())["lr"] == 0.01


def test_templates_in_single_quotes_of_yaml(options, tmp_path):
    """YAML leaves \\n in single quotes as it is; a line feed is meant, as on the command line."""
    given = {**options, "steps": 1, "test-prompts": 0}
    template = given.pop("template")
    file, run = tmp_path / "c.yaml", tmp_path / "run"
    file.write_text(f"template: '{template}'\n")
    assert "\\n" in file.read_text()
    done = invoke("train", "--config", file, *arguments(given), "--output", run)
    assert done.exit_code == 0, done.output
    assert read_config(run).template == "review: {text} sentiment: {label}\n"


def test_runs_of_machines_with_gpus_are_merged_without_one(finished, tmp_path):
    run, merged = tmp_path / "run", tmp_path / "merged"
    shutil.copytree(finished, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "device": "balanced"}))
    assert invoke("merge", run, merged).exit_code == 0
    assert (merged / "model.safetensors").is_file()


def test_eval_reproduces_the_metrics(finished):
    result = invoke("eval", "--run", finished, "--json")
    metrics = json.loads((finished / "metrics.json").read_text())
    shown = json.loads(result.stdout)
    for name in ("accuracy", "macro_f1", "ece", "heads"):
        assert shown[name] == pytest.approx(metrics["after"][name], abs=1e-6)
    by_config = json.loads(invoke("eval", "--config", finished / "config.yaml", "--json").stdout)
    assert by_config["accuracy"] == metrics["before"]["accuracy"]
    vanilla = json.loads(
        invoke("eval", "--run", finished, "--task", "MR", "--test-prompts", 8, "--json").stdout
    )
    assert vanilla["task"] == "MR"


@pytest.mark.parametrize("calibrate", ["content_free", "batch"])
def test_eval_calibrates_by_one_prior(finished, calibrate):
    """Of all test prompts, or of texts without content behind the same demonstrations."""
    session = open_session(replace(read_config(finished), device="cpu"), finished)
    queries = session.data.test
    if calibrate == "content_free":
        queries = [Example(text, 0) for text in ("N/A", "[MASK]", "")]
    sets = lcg_indices(len(session.data.demonstrations), [session.config.k] * 20)
    written = [
        write_prompt(
            session.data.task,
            [session.data.demonstrations[index] for index in indices],
            queries[i % len(queries)],
        )
        for i, indices in enumerate(sets)
    ]
    with progress_bar("test", 40, disable=True) as bar:
        ours, _ = session.evaluate(session.prompts, bar)
        theirs, _ = session.evaluate(session.encode(written), bar)
    ratios = ours / theirs.mean(0)
    expected = scores(
        ratios / ratios.sum(1, keepdims=True), np.array([p.target for p in session.prompts])
    )
    said = json.loads(invoke("eval", finished, "--calibrate", calibrate, "--json").stdout)
    assert said["calibrate"] == calibrate
    for name in ("accuracy", "macro_f1", "ece"):
        assert said[name] == pytest.approx(expected[name], abs=1e-6)
    assert said["ece"] != json.loads(invoke("eval", finished, "--json").stdout)["ece"]


def test_heads_lists_heads(finished):
    shown = json.loads(invoke("heads", "--run", finished, "--top", 3, "--json").stdout)
    assert len(shown["heads"]) == 3
    rates = [head["induction_rate"] for head in shown["heads"]]
    assert rates == sorted(rates, reverse=True)
    assert {head["layer"] for head in shown["heads"]} <= {0, 1}
    assert "heads pass the threshold" in invoke("heads", "--run", finished).stdout


def table_rows(text):
    """The header and the rows of a printed table, as lists of cells."""
    lines = [line.replace("┃", "│") for line in text.splitlines()]
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in lines
        if line.startswith("│")
    ]


def test_the_table_after_a_run_shows_before_and_after(capsys):
    """Numbers that all differ: a swapped column or row, or other digits, would show."""
    scores = {"accuracy": 0.5126, "macro_f1": 0.4131, "ece": 0.0672, "heads": 11.25}
    metrics = {
        "objective": "abft",
        "task": "TREC",
        "model": "tiny",
        "test_prompts": 20,
        "k": 4,
        "seed": 3,
        "before": scores,
        "after": {name: value + 0.2 for name, value in scores.items()},
        "training": {
            "steps": 32,
            "prompts": 1024,
            "seconds": 12.6,
            "trainable_parameters": 1_234_567,
            "peak_memory_bytes": 3 * 2**29,
        },
    }
    print_result(metrics, "runs/TREC")
    printed = capsys.readouterr().out
    assert table_rows(printed) == [
        ["TREC", "vanilla", "ABFT"],
        ["accuracy", "0.513", "0.713"],
        ["macro-F1", "0.413", "0.613"],
        ["ECE", "0.067", "0.267"],
        ["heads over threshold", "11.250", "11.450"],
    ]
    assert "tiny, 20 test prompts, k = 4, seed 3" in printed
    assert "training: 32 steps, 1024 prompts, 13 seconds, 1,234,567 trainable" in printed
    assert "peak memory 1.5 GiB" in printed


def test_tables_show_the_numbers_of_the_json(finished):
    shown = json.loads(invoke("eval", "--run", finished, "--json").stdout)
    rows = table_rows(invoke("eval", "--run", finished).stdout)
    assert rows[0] == ["metric", "value"]
    printed = {row[0]: row[1] for row in rows[1:]}
    for name in ("accuracy", "macro_f1", "ece", "heads", "mean_correct_mass"):
        assert printed[name] == f"{shown[name]:.4f}"
    assert shown["mean_correct_mass"] != shown["mean_incorrect_mass"]
    assert len({shown[name] for name in ("accuracy", "macro_f1", "ece")}) == 3

    shown = json.loads(invoke("heads", "--run", finished, "--top", 5, "--json").stdout)
    printed = invoke("heads", "--run", finished, "--top", 5).stdout
    rows = table_rows(printed)
    assert rows[0] == ["layer", "head", "passes in", "on correct labels", "on incorrect"]
    assert rows[1:] == [
        [
            str(head["layer"]),
            str(head["head"]),
            f"{100 * head['induction_rate']:.0f}%",
            f"{head['correct_mass']:.3f}",
            f"{head['incorrect_mass']:.3f}",
        ]
        for head in shown["heads"]
    ]
    assert any(head["correct_mass"] != head["incorrect_mass"] for head in shown["heads"])
    order = [(head["induction_rate"], head["correct_mass"]) for head in shown["heads"]]
    assert order == sorted(order, reverse=True)

    # The last line, from all heads of the model.
    everything = json.loads(invoke("heads", "--run", finished, "--top", 99, "--json").stdout)
    heads = everything["heads"]
    share = sum(head["correct_mass"] + head["incorrect_mass"] for head in heads) / 8
    assert sum(head["induction_rate"] for head in heads) == pytest.approx(
        everything["heads_over_threshold"]
    )
    last = " ".join(printed.split("\n")[-2].split())
    assert last.startswith(f"{shown['heads_over_threshold']:.1f} of 8 heads pass")
    assert f"puts {share:.1%} of its attention on label tokens" in last

    given = ("predict", "--run", finished, "--text", "great  and joy", "--text", "bad")
    shown = [json.loads(line) for line in invoke(*given, "--json").stdout.splitlines()]
    lines = [line.split("\t") for line in invoke(*given).stdout.splitlines()]
    assert [line[2] for line in lines] == ["great and joy", "bad"]
    for line, result in zip(lines, shown, strict=True):
        label = max(result["probabilities"], key=result["probabilities"].get)
        assert line[:2] == [label, f"{result['probabilities'][label]:.3f}"]


def test_heads_of_hybrid_models_have_their_layers_number_in_the_model(options, bpe, tmp_path):
    """Of three layers only the second has attention, and so the only rows."""
    tiny_model("lfm2").save_pretrained(tmp_path / "hybrid")
    bpe.save_pretrained(tmp_path / "hybrid")
    names = ("data", "text-column", "label-column", "template", "device")
    given = {**{name: options[name] for name in names}, "model": tmp_path / "hybrid"}
    shown = json.loads(invoke("heads", *arguments(given, test_prompts=4), "--json").stdout)
    assert {(head["layer"], head["head"]) for head in shown["heads"]} == {(1, h) for h in range(4)}


def test_predict(finished, tmp_path, reviews):
    lines = invoke(
        "predict", "--run", finished, "--text", "great and joy", "--text", "bad", "--json"
    ).stdout.splitlines()
    results = [json.loads(line) for line in lines]
    assert [r["text"] for r in results] == ["great and joy", "bad"]
    assert sum(results[0]["probabilities"].values()) == pytest.approx(1)
    output = tmp_path / "labels.jsonl"
    done = invoke(
        "predict",
        "--run",
        finished,
        "--data",
        reviews,
        "--text-column",
        "review",
        "--output",
        output,
    )
    assert done.exit_code == 0, done.output
    assert len(output.read_text().splitlines()) == 120
    assert "expected a file ending in" in refused(
        "predict", "--run", finished, "--text", "x", "--output", tmp_path / "a.txt"
    )
    assert "does not exist" in refused(
        "predict", "--run", finished, "--text", "x", "--output", tmp_path / "no/labels.jsonl"
    )
    piped = CliRunner().invoke(app, ["predict", "--run", str(finished)], input="good\n\nbad\n")
    assert len(piped.stdout.splitlines()) == 2


def test_train_and_predict_without_folders(options, reviews, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no finished run in runs/" in refused("predict", "--text", "x")
    done = invoke("train", *arguments(options, steps=1))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / reviews.stem / "metrics.json").is_file()
    new = pd.read_csv(reviews).head(5).assign(number=[f"00{i}" for i in range(5)])
    new.to_csv("new.csv", index=False)
    for name in ("scored.csv", "scored.tsv", "scored.parquet"):
        done = invoke("predict", "--data", "new.csv", "--output", name)
        assert done.exit_code == 0, done.output
    as_text = {"number": str}  # cells stay as they are written
    tables = [
        pd.read_csv("scored.csv", dtype=as_text),
        pd.read_csv("scored.tsv", sep="\t", dtype=as_text),
    ]
    written = [*tables, pd.read_parquet("scored.parquet")]
    for scored in written:
        assert list(scored.columns[:-2]) == [*new.columns, "predicted_label"]
        assert scored[list(new.columns)].to_numpy().tolist() == new.to_numpy().tolist()
        probabilities = scored[["probability_negative", "probability_positive"]]
        assert probabilities.sum(1).to_numpy() == pytest.approx(1)
        assert ("probability_" + scored["predicted_label"] == probabilities.idxmax(1)).all()
    assert list(tmp_path.glob(".abft-*")) == []
    assert invoke("predict", "--text", "great", "--output", "one.csv").exit_code == 0
    assert pd.read_csv("one.csv")["text"].tolist() == ["great"]
    assert "has a column 'predicted_label' already" in refused(
        "predict", "--data", "scored.csv", "--output", "again.csv"
    )


def test_the_paper_recipe_is_the_papers(tmp_path, monkeypatch):
    """Every figure of arXiv 2505.14233, sections 3 and 4."""
    path = tmp_path / "k.yaml"
    path.write_text("recipe: paper\nnd: 256\n")
    seen = []
    monkeypatch.setattr(
        "abft.runs.train.train_run",
        lambda config, *rest, **options: seen.append(config) or TrainedRun({}, None),
    )

    def settings(*given):
        assert invoke("train", *given).exit_code == 0
        return seen[-1]

    paper = settings("--recipe", "paper")
    assert (paper.nd, paper.k, paper.nb, paper.steps, paper.lr) == (512, 4, 32, 32, 2e-5)
    assert (paper.A0, paper.B0, paper.Cp, paper.Ci, paper.Cd) == (0.5, 1.0, 0.03, 0.005, 0.005)
    assert (paper.objective, paper.cross_entropy, paper.queries, paper.train_on) == (
        "abft",
        0,
        1,
        "task",
    )
    assert (paper.pid, paper.head_filter, paper.threshold, paper.layers, paper.lora_r) == (
        True,
        True,
        None,
        None,
        None,
    )
    reader = settings("--recipe", "reader", "--task", "TREC")
    assert (reader.train_on, reader.objective, reader.cross_entropy, reader.kl) == (
        "mixture",
        "contrastive",
        0,
        3,
    )
    assert (reader.nd, reader.nb, reader.steps, reader.words) == (
        8192,
        32,
        256,
        "own,arbitrary,permuted",
    )
    large = settings("--recipe", "paper-lora")
    assert (large.lora_r, large.lora_targets, large.lr, large.load_in_4bit) == (
        16,
        "qk",
        1e-4,
        True,
    )
    assert settings("--recipe", "paper", "--lr", "1e-4") == replace(paper, lr=1e-4)
    assert settings("--config", str(path)) == replace(paper, nd=256)
    assert settings("--config", str(path), "--recipe", "paper-lora") == replace(large, nd=256)
    assert "expected one of paper, paper-lora, reader" in refused("train", "--recipe", "papers")


def test_a_runs_config_file_beside_other_settings(tmp_path, monkeypatch):
    """It sets everything, so that what else is asked for must not be lost in it, nor it in that."""
    seen = []
    monkeypatch.setattr("abft.cli.training.load_run_data", lambda *given: None)
    monkeypatch.setattr(
        "abft.runs.train.train_run",
        lambda config, *rest, **options: seen.append(config) or TrainedRun({}, None),
    )

    def settings(*given):
        assert invoke("train", *given).exit_code == 0
        return seen[-1]

    whole = tmp_path / "config.yaml"
    for config in (RunConfig(), RunConfig(objective="abft", lr=1e-4, k=8)):
        whole.write_text(yaml.safe_dump(config_values(resolve(config))))
        assert resolve(settings("--config", whole)) == resolve(config)
        for given in (
            ("--config", whole, "--recipe", "paper"),
            ("--recipe", "paper", "--config", whole),
        ):
            assert "and the file of --config set different" in refused("train", *given)
    whole.write_text(yaml.safe_dump(config_values(resolve(RunConfig(lr=3e-4)))))
    assert "give --cross-entropy, --steps, --lr too" in refused(
        "train", "--config", whole, "--objective", "abft"
    )
    own = ("--steps", 8, "--lr", 1e-4, "--cross-entropy", 0.5)
    assert settings("--config", whole, "--objective", "abft", *own) == RunConfig(
        objective="abft", steps=8, lr=1e-4, cross_entropy=0.5, queries=4
    )
    part = tmp_path / "part.yaml"
    part.write_text("lora_r: null\nload_in_4bit: false\n")
    assert (settings("--recipe", "paper-lora", "--config", part).lora_r, seen[-1].load_in_4bit) == (
        None,
        False,
    )
    part.write_text("data: x.csv\nlabel_words: {a=b: c}\n")
    assert settings("--config", part).label_words == {"a=b": "c"}
    assert settings("--config", part, "--label-words", "a=b=c").label_words == {"a": "b=c"}
    part.write_text("data: x.csv\nlabel_words: {0: negative, 1: positive}\n")
    assert settings("--config", part).label_words == {"0": "negative", "1": "positive"}
    for word in ("null", "yes"):
        part.write_text(f"data: x.csv\nlabel_words: {{a: {word}}}\n")
        assert "label: word pairs of text" in refused("train", "--config", part)
    part.write_text("objective: abft\nsteps: 8\n")
    assert settings("--config", part, "--recipe", "paper").steps == 8
    old = {
        name: value
        for name, value in asdict(resolve(RunConfig())).items()
        if name not in ("queries", "cross_entropy", "prompt_style")
    }
    whole.write_text(yaml.safe_dump({**old, "protocol": "staicc"}))
    assert settings("--config", whole).prompt_style == "staicc"
    assert (settings("--config", whole).queries, seen[-1].cross_entropy) == (1, 0)


def test_merge_is_a_stock_checkpoint(finished, model_folder, tmp_path):
    assert invoke("merge", finished, tmp_path / "merged").exit_code == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    trained, _ = abft.load_model(str(model_folder))
    trained = abft.apply_weights(trained, finished)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, trained(ids).logits)
    assert merged.config._attn_implementation == "sdpa"
    assert "abft" not in (tmp_path / "merged/config.json").read_text()
    assert invoke("merge", finished, tmp_path / "nothing", "--factor", 0).exit_code == 0
    base, nothing = (
        AutoModelForCausalLM.from_pretrained(model_folder),
        AutoModelForCausalLM.from_pretrained(tmp_path / "nothing"),
    )
    with torch.no_grad():
        torch.testing.assert_close(nothing(ids).logits, base(ids).logits)
    assert "not an empty folder" in refused("merge", finished, tmp_path / "merged")
    card = (tmp_path / "merged/README.md").read_text()
    assert "library_name: transformers" in card
    assert "| after |" in card
    assert invoke("merge", finished, tmp_path / "named", "--model", model_folder).exit_code == 0
    assert (tmp_path / "named/README.md").read_text() == card
    assert not (
        tmp_path / "nothing/README.md"
    ).exists()  # the run's figures are not those of other factors


def test_a_merge_by_a_factor_is_between_the_base_and_the_run(
    finished, options, model_folder, tmp_path
):
    """theta0 + 0.4 (theta - theta0), tensor by tensor from the files of full-rank and LoRA runs."""
    lora = tmp_path / "lora"
    flags = ("--lora-alpha", 6, "--output", lora)
    assert invoke("train", *arguments(options, lora_r=4), *flags).exit_code == 0
    base = load_file(model_folder / "model.safetensors")
    changes = {}
    trained = load_file(finished / "qk_weights.safetensors")
    changes[finished] = {name: theta - base[name] for name, theta in trained.items()}

    adapter = load_file(lora / "adapter_model.safetensors")
    settings = json.loads((lora / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    changes[lora] = {
        name.removeprefix("base_model.model.").replace("lora_A.", ""): scale
        * (adapter[name.replace("lora_A", "lora_B")].double() @ A.double()).float()
        for name, A in adapter.items()
        if "lora_A" in name
    }
    for run, change in changes.items():
        assert len(change) == 4  # W_Q and W_K of two layers
        for factor in (0.4, -1.5):
            output = tmp_path / f"{run.name}{factor}"
            assert invoke("merge", run, output, "--factor", factor).exit_code == 0
            merged = load_file(output / "model.safetensors")
            assert merged.keys() == base.keys()
            for name, theta0 in base.items():
                if name in change:
                    assert change[name].abs().max() > 1e-3
                    expected = theta0 + factor * change[name]
                    torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)
                else:
                    assert torch.equal(merged[name], theta0)


def test_others_may_read_the_weights(finished, options, tmp_path):
    expected = (finished / "config.yaml").stat().st_mode
    assert (
        invoke("train", *arguments(options, lora_r=4), "--output", tmp_path / "lora").exit_code == 0
    )
    assert invoke("merge", finished, tmp_path / "merged").exit_code == 0
    for path in (
        finished / "qk_weights.safetensors",
        tmp_path / "lora/adapter_model.safetensors",
        tmp_path / "merged/model.safetensors",
    ):
        assert path.stat().st_mode == expected


def test_lora_run_merges(options, tmp_path):
    assert (
        invoke("train", *arguments(options, lora_r=4), "--output", tmp_path / "lora").exit_code == 0
    )
    assert (tmp_path / "lora/adapter_config.json").is_file()
    assert invoke("merge", tmp_path / "lora", tmp_path / "merged").exit_code == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert invoke("predict", "--run", tmp_path / "lora", "--text", "good").exit_code == 0
    assert "lora_alpha = 8 goes with lora_r" in refused(
        "train", *arguments(options, lora_alpha=8), "--output", tmp_path / "x"
    )


def test_half_precision_with_lora_is_measured_and_merged_as_trained(options, tmp_path):
    settings = arguments(options, lora_r=4, dtype="bfloat16", lr=0.01)
    run, merged = tmp_path / "run", tmp_path / "merged"
    assert invoke("train", *settings, "--output", run).exit_code == 0
    after = json.loads((run / "metrics.json").read_text())["after"]
    measured = invoke("eval", run, "--json")
    assert json.loads(measured.stdout)["ece"] == after["ece"]
    assert invoke("merge", run, merged).exit_code == 0
    assert AutoModelForCausalLM.from_pretrained(merged, dtype="auto").dtype == torch.float32


def start(options, output, *more):
    """The command line as a process of its own."""
    command = [
        sys.executable,
        "-m",
        "abft",
        "train",
        *arguments(options),
        "--output",
        str(output),
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(process, output, step):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        log = output / "log.jsonl"
        if log.is_file() and len(log.read_text().splitlines()) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


LONG = {"steps": 60, "nd": 64, "save-steps": 4, "lr": 0.001}


@pytest.fixture(scope="module")
def uninterrupted(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start({**options, **LONG}, folder)
    assert process.wait(timeout=300) == 0, process.communicate()
    return folder


def test_killed_and_resumed_is_bit_equal(options, uninterrupted, tmp_path):
    process = start({**options, **LONG}, tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run/metrics.json").exists()
    resumed = start({**options, **LONG}, tmp_path / "run", "--resume")
    assert resumed.wait(timeout=300) == 0, resumed.communicate()
    assert same_weights(tmp_path / "run", uninterrupted)
    whole, parts = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (uninterrupted, tmp_path / "run")
    )
    assert whole["after"] == parts["after"]
    assert whole["before"] == parts["before"]
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 61))


def test_overwriting_keeps_the_old_run_until_the_new_one_is_finished(
    options, tmp_path, monkeypatch
):
    """It was deleted before the new run's first step had succeeded."""
    output = tmp_path / "run"
    train = ("train", *arguments(options, test_prompts=0, steps=1), "--output", output)
    assert invoke(*train).exit_code == 0
    old = {path.name: path.read_bytes() for path in output.iterdir()}

    # A failure before the first checkpoint brings the old run back.
    message = refused(*train, "--overwrite", "--objective", "e2e", "--lr", "1e30", "--steps", "4")
    assert "the loss of step" in message
    assert {path.name: path.read_bytes() for path in output.iterdir()} == old

    # So does overwriting again after a process that was killed, twice.
    def killed(*arguments):
        raise MemoryError

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("abft.runs.train._run_trainer", killed)
            assert isinstance(invoke(*train, "--overwrite").exception, MemoryError)
        assert not (output / "metrics.json").exists()
        kept = output / ".replaced"
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == old
    assert invoke("predict", "--run", kept, "--text", "a film to remember").exit_code == 0

    assert invoke(*train, "--overwrite", "--seed", "1").exit_code == 0
    assert read_config(output).seed == 1
    assert not kept.exists()

    # What was measured of a run comes back with it, and goes with it.
    measured = [output / "report.html", output / "analysis" / "line.npz"]
    (output / "analysis").mkdir()
    for path in measured:
        path.write_text("of the old run")
    assert "the loss of step" in refused(
        *train, "--overwrite", "--objective", "e2e", "--lr", "1e30", "--steps", "4"
    )
    assert all(path.is_file() for path in measured)
    assert invoke(*train, "--overwrite", "--seed", "2").exit_code == 0
    assert not any(path.exists() for path in measured)
    assert not (output / "analysis").exists()


def test_a_full_disk_leaves_the_run_that_was_to_be_replaced(options, tmp_path, monkeypatch):
    output = tmp_path / "run"
    train = ("train", *arguments(options, test_prompts=0, steps=1), "--output", output)
    assert invoke(*train).exit_code == 0
    old = {path.name: path.read_bytes() for path in output.iterdir()}

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("abft.runs.run_folder.write_text", full)
        assert "No space left" in refused(*train, "--overwrite")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == old

    # Killed between setting it aside and writing the new configuration, or while the unfinished
    # new one was deleted.
    _set_aside(output)
    assert [path.name for path in output.iterdir()] == [".replaced"]
    (output / "vanilla.json").write_text('{"accuracy": 2}')
    assert "about to be replaced; use --overwrite" in refused(*train)
    assert invoke(*train, "--overwrite", "--seed", "1").exit_code == 0
    assert read_config(output).seed == 1
    assert not (output / ".replaced").exists()
    assert not (output / "vanilla.json").exists()


def test_settings_without_an_effect_on_the_result_may_change(options, tmp_path, monkeypatch):
    output = tmp_path / "run"
    train = ("train", *arguments(options, steps=1), "--output", output)

    def stopped(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("abft.runs.train._record", stopped)
        assert "--resume --eval-batch-size 4" in refused(*train)
    assert "seed" in refused(*train, "--resume", "--seed", "1")
    assert invoke(*train, "--resume", "--eval-batch-size", "2").exit_code == 0


def test_data_that_changed_since_the_training(options, reviews, tmp_path, monkeypatch, capsys):
    """Other rows part the texts otherwise: test texts may have been trained on."""
    data, output = tmp_path / "mine.csv", tmp_path / "run"
    shutil.copy(reviews, data)
    train = ("train", *arguments(options, steps=1, data=data), "--output", output)

    def stopped(*arguments):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("abft.runs.train._record", stopped)
        invoke(*train)
    with data.open("a") as file:
        file.write("one more text,positive\n")
    assert "holds other texts than when it was started" in refused(*train, "--resume")
    assert invoke(*train, "--overwrite").exit_code == 0
    assert "may be among those" not in invoke("eval", output).stderr

    with data.open("a") as file:
        file.write("yet another text,negative\n")
    assert "may be among those" in invoke("eval", output).stderr
    columns = ("--text-column", "review", "--label-column", "stars")
    assert "may be among those" in invoke("eval", output, "--data", data, *columns).stderr
    assert "may be among those" not in invoke("eval", output, "--task", "SST2").stderr
    open_study(output, Choices())
    assert "may be among those" in capsys.readouterr().err


def test_texts_that_begin_alike_are_in_one_part(options, tmp_path):
    path = tmp_path / "mails.csv"
    rows = [f"dear customer we thank you for text {i},{'ab'[i % 2]}" for i in range(80)]
    rows += [f"{i} is another one,{'ab'[i % 2]}" for i in range(80)]
    path.write_text("text,label\n" + "\n".join(rows))
    config = RunConfig(model=str(options["model"]), data=str(path), max_text_tokens=8, k=2)
    session = open_session(replace(config, device="cpu"))
    parts = (session.data.train, session.data.demonstrations, session.data.test)
    texts = [example.text for part in parts for example in part]
    assert len(texts) == len(set(texts))
    assert len(session.data.test) == len(set(session.data.test)) > 10


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(options, uninterrupted, tmp_path):
    process = start({**options, **LONG}, tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 6)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"abft train --resume --output {tmp_path / 'run'}" in errors
    assert "Traceback" not in errors
    resumed = invoke("train", "--resume", "--output", tmp_path / "run")
    assert resumed.exit_code == 0, resumed.output
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "run", uninterrupted)
    )
    assert ours["after"]["accuracy"] == theirs["after"]["accuracy"]


def test_two_processes_give_the_same_run(options, tmp_path):
    assert (
        invoke("train", *arguments(options, batch_size=2), "--output", tmp_path / "one").exit_code
        == 0
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "abft",
        "train",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, *arguments(options, batch_size=2), "--output", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert [m["training"]["processes"] for m in metrics] == [1, 2]
    assert [m["training"]["prompts"] for m in metrics] == [32, 32]
    one, two = (load_file(tmp_path / name / "qk_weights.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-4)
    logs = [
        [json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert [line["heads"] for line in logs[0]] == pytest.approx([line["heads"] for line in logs[1]])


def test_interrupted_in_the_last_evaluation(options, tmp_path, monkeypatch):
    def measure(session, title):
        if title == "3/3 measure":
            raise KeyboardInterrupt
        return real(session, title)

    real = Session.measure
    monkeypatch.setattr(Session, "measure", measure)
    assert "abft train --resume" in refused(
        "train", *arguments(options), "--output", tmp_path / "run"
    )
    monkeypatch.undo()
    result = json.loads(invoke("train", "--resume", "--output", tmp_path / "run", "--json").stdout)
    assert result["training"]["steps"] == 4
    whole = json.loads(
        invoke("train", *arguments(options), "--output", tmp_path / "whole", "--json").stdout
    )
    assert result["after"] == whole["after"]


def test_four_bit_run(options, four_bit_model_folder, tmp_path):
    options = {**options, "model": four_bit_model_folder}
    pytest.importorskip("bitsandbytes")
    flags = ["--load-in-4bit", "--output", tmp_path / "run"]
    assert "give lora_r" in refused("train", *arguments(options), *flags)
    assert invoke("train", *arguments(options, lora_r=4), *flags).exit_code == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    shown = json.loads(invoke("eval", "--run", tmp_path / "run", "--json").stdout)
    assert shown["ece"] == pytest.approx(metrics["after"]["ece"], abs=1e-6)
    assert invoke("predict", "--run", tmp_path / "run", "--text", "good").exit_code == 0
    assert invoke("merge", tmp_path / "run", tmp_path / "merged").exit_code == 0
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_learning_rate_rule():
    assert default_learning_rate(134_000_000, False, "abft") == 1e-4
    assert default_learning_rate(774_000_000, False, "vote") == 2e-5
    assert default_learning_rate(32_000_000_000, True, "e2e") == 1e-4
    assert layer_numbers("3-5,9") == [3, 4, 5, 9]


def test_end_to_end_run_is_named_as_what_it_is(options, tmp_path):
    flags = [
        "--objective",
        "e2e",
        "--lora-r",
        4,
        "--lora-targets",
        "all-linear",
        "--output",
        tmp_path / "run",
    ]
    result = invoke("train", *arguments(options), *flags)
    assert result.exit_code == 0, result.output
    assert "E2E" in result.stdout
    assert "ABFT" not in result.stdout
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["objective"] == "e2e"
    card = (tmp_path / "run/README.md").read_text()
    assert "fine-tuned end to end" in card
    assert "all linear layers" in card
    assert "induction-heads" not in card
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(log) == 4
    assert "A" not in log[0]
    again = invoke(
        "train", "--config", tmp_path / "run/config.yaml", "--output", tmp_path / "again", "--json"
    )
    assert json.loads(again.stdout)["after"] == metrics["after"]
    shown = json.loads(invoke("eval", "--run", tmp_path / "run", "--json").stdout)
    assert shown["ece"] == pytest.approx(metrics["after"]["ece"], abs=1e-6)


def test_settings_left_open_follow_from_others():
    config = RunConfig()
    default = resolve(config)
    assert (default.objective, default.cross_entropy, default.queries, default.steps) == (
        DEFAULT_OBJECTIVE,
        1,
        4,
        16,
    )
    assert (config.cross_entropy, config.queries, config.steps) == (None, None, None)
    by_objective = [resolve(RunConfig(objective=name)) for name in ("vote", "abft", "e2e")]
    assert [each.steps for each in by_objective] == [16, 32, 24]
    assert [each.cross_entropy for each in by_objective] == [1, 0, 0]
    assert [resolve(each, parameters=10**8).lr for each in by_objective] == [3e-4, 1e-4, 3e-4]
    for changes in (
        {"nb": 10, "batch_size": 5},
        {"nd": 510},
        {"train_on": "others"},
        {"batch_size": 2},
    ):
        assert resolve(RunConfig(**changes)).queries == 1
    assert resolve(RunConfig(nb=16, nd=64, batch_size=4)).queries == 4
    given = {"queries": 2, "steps": 3, "cross_entropy": 0.5, "lr": 0.1}
    kept = resolve(RunConfig.from_dict(given, "here"), parameters=10**8)
    assert {name: getattr(kept, name) for name in given} == given
    assert resolve(kept) == kept


def test_a_run_with_default_settings(options, tmp_path):
    """Nothing but model, data and sizes is given; label words may begin alike."""
    own = (
        "model",
        "data",
        "text-column",
        "label-column",
        "template",
        "test-prompts",
        "device",
        "nd",
        "nb",
        "lr",
    )
    words = ["--label-words", "negative=positively not", "--label-words", "positive=positively so"]
    flags = [*words, "--steps", 6, "--output", tmp_path / "run"]
    result = invoke("train", *arguments({name: options[name] for name in own}), *flags)
    assert result.exit_code == 0, result.output
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["objective"], config["cross_entropy"], config["queries"], config["steps"]) == (
        "vote",
        1.0,
        4,
        6,
    )
    card = (tmp_path / "run/README.md").read_text()
    assert "cross-entropy term on the label word, with weight 1" in card
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(0 < line["cross_entropy"] <= line["loss"] for line in log)
    again = invoke(
        "train", "--config", tmp_path / "run/config.yaml", "--output", tmp_path / "again", "--json"
    )
    assert (
        json.loads(again.stdout)["after"]
        == json.loads((tmp_path / "run/metrics.json").read_text())["after"]
    )


def test_a_run_with_the_vote_objective(options, tmp_path):
    flags = ["--cross-entropy", 0, "--output", tmp_path / "run"]
    result = invoke("train", *arguments({**options, "objective": "vote"}), *flags)
    assert result.exit_code == 0, result.output
    assert "ABFT, vote" in result.stdout
    card = (tmp_path / "run/README.md").read_text()
    assert "vote objective" in card
    assert "cross-entropy" not in card
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0]


def test_labels_of_several_tokens_and_ones_that_begin_another(options, tmp_path):
    words = {"negative": "zyxwv", "positive": "zyx"}
    given = [flag for label, word in words.items() for flag in ("--label-words", f"{label}={word}")]
    run = tmp_path / "run"
    result = invoke("train", *arguments(options), *given, "--output", run)
    assert result.exit_code == 0, result.output
    assert json.loads((run / "metrics.json").read_text())["after"]["accuracy"] > 0
    shown = json.loads(
        invoke("predict", "--run", run, "--text", "great and good", "--json").stdout.splitlines()[0]
    )
    assert sum(shown["probabilities"].values()) == pytest.approx(1)
    assert set(shown["probabilities"]) == set(words)


def test_every_setting_is_an_option():
    from typer.main import get_command

    from abft.cli.app import app

    options = {parameter.name for parameter in get_command(app).commands["train"].params}
    assert {f.name for f in fields(RunConfig)} <= options


def test_cross_entropy_trains_where_no_head_passes_the_filter(options, tmp_path):
    given = {**options, "threshold": 0.99, "cross-entropy": 1, "steps": 2}
    result = invoke("train", *arguments(given), "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["heads"] for line in log] == [0, 0]
    assert [line["loss"] for line in log] == [line["cross_entropy"] for line in log]
    assert log[1]["loss"] != log[0]["loss"]


@pytest.mark.parametrize("given", [(), ("-v",)])
def test_only_verbose_commands_show_what_the_libraries_say(options, tmp_path, given):
    """In a process of its own: what was imported before says nothing again."""
    command = [sys.executable, "-m", "abft", *given, "train", *arguments(options)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "info"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    own = ("rows", "2 classes", "tokens of", "texts ", "1/3", "2/3", "3/3", "about ")
    noise = [line for line in lines if not line.startswith(own) and "heads pass" not in line]
    assert bool(noise) == bool(given), noise
    assert "gemm_4bit" not in done.stderr


def test_a_finished_run_needs_its_data_no_more(options, reviews, tmp_path):
    """Resumed, it hands out its results; the data may be gone by then."""
    data, run = tmp_path / "gone.csv", tmp_path / "run"
    shutil.copy(reviews, data)
    assert invoke("train", *arguments({**options, "data": data}), "--output", run).exit_code == 0
    data.unlink()
    resumed = invoke("train", "--resume", "--output", run, "--json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout) == json.loads((run / "metrics.json").read_text())


def test_measuring_needs_no_texts_for_training_queries(options, tmp_path):
    """Four queries after four demonstrations need eight training texts; measuring asks for five."""
    path = tmp_path / "few.csv"
    rows = [
        f'"{word} and number {i}",{label}'
        for i in range(8)
        for word, label in (("great", "positive"), ("bad", "negative"))
    ]
    path.write_text("review,stars\n" + "\n".join(rows[:14]) + "\n")
    shared = {"queries": 4, "nb": 4, "nd": 4, "batch-size": 4, "steps": 1}
    few, run = {**options, "data": path, **shared}, tmp_path / "run"
    assert "4 queries" in refused("train", *arguments(few), "--output", run)
    assert invoke("train", *arguments({**options, **shared}), "--output", run).exit_code == 0
    columns = ("--text-column", "review", "--label-column", "stars")
    measured = invoke("eval", run, "--data", path, *columns, "--test-prompts", 2)
    assert measured.exit_code == 0, measured.output


def test_a_run_of_python_is_read_from_everywhere(options, model_folder, tmp_path, monkeypatch):
    """Relative paths mean something in one folder only."""
    shutil.copytree(model_folder, tmp_path / "here" / "model")
    shutil.copy(options["data"], tmp_path / "here" / "small.csv")
    monkeypatch.chdir(tmp_path / "here")
    settings = {**options, "model": "model", "data": "small.csv", "steps": 1}
    config = RunConfig(**{name.replace("-", "_"): value for name, value in settings.items()})
    abft.train(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert read_config(tmp_path / "run").model == str(tmp_path / "here" / "model")
    assert read_config(tmp_path / "run").data == str(tmp_path / "here" / "small.csv")
    abft.Predictor.from_run(tmp_path / "run", device="cpu").predict(["great"])

    # Runs of older versions may hold relative ones, which are right in their own folder.
    monkeypatch.chdir(tmp_path / "here")
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    values |= {"model": "model", "data": "small.csv"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    assert abft.train(config, tmp_path / "run", resume=True)["training"]["steps"] == 1


def test_two_processes_do_not_train_in_the_same_folder(options, tmp_path):
    """Nor with --resume, as a job that was started again by mistake."""
    from filelock import FileLock

    run = tmp_path / "run"
    run.mkdir()
    command = ("train", *arguments(options, steps=1, test_prompts=0), "--output", run)
    with FileLock(run / ".lock"):
        assert "another process is training in" in refused(*command)
    assert invoke(*command).exit_code == 0
    assert not (run / ".lock").exists()
    with FileLock(run / ".lock"):
        assert "another process is training in" in refused(*command, "--overwrite")


def test_interrupted_before_the_old_run_is_replaced(options, finished, tmp_path, monkeypatch):
    """It is not offered as the new one."""
    run = shutil.copytree(finished, tmp_path / "run")

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("abft.runs.train.open_session", stopped)
    said = refused("train", *arguments(options, steps=2), "--overwrite", "--output", run)
    assert said == f"stopped; {run} holds a finished run"
