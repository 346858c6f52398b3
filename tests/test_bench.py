"""The benchmark as a user runs it, on a tiny model and a small table of reviews."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from abft.bench.calibration import calibration_prompts
from abft.bench.grid_file import read_grid
from abft.bench.jobs import jobs
from abft.bench.methods import METHODS
from abft.bench.report import tables
from abft.bench.results import Results, difference, mean_over_tasks
from abft.bench.scenarios import SCENARIOS
from abft.bench.store import Scores, Store
from abft.bench.subject import Subject, setting_of
from abft.data.builtin import load_task
from abft.data.encoding import encode, label_tokens
from abft.data.lengths import cut_texts
from abft.data.prompts import evaluation_prompts
from abft.data.splits import text_key
from abft.errors import CannotResume, RunInterrupted
from abft.model.checkpoints import apply_weights
from abft.runs.session import load_run_model
from abft.runs.train import train_run
from abft.scoring.evaluate import evaluate
from abft.scoring.metrics import accuracy
from command_line import invoke, refused

TRAINED = ["abft", "e2e"]
TESTED = ["standard", "zero_shot", "demonstration_consistency", "posterior_bias"]


@pytest.fixture(scope="session")
def grid_values(model_folder, reviews):
    task = {
        "name": "reviews",
        "data": str(reviews),
        "text_column": "review",
        "label_column": "stars",
        "template": "review: {text} sentiment: {label}\n",
    }
    return {
        "models": [{"name": "tiny", "model": str(model_folder)}],
        "tasks": [task],
        "methods": ["vanilla", "contextual_calibration", *TRAINED],
        "scenarios": TESTED,
        "seeds": [0, 1],
        "settings": {
            "nd": 16,
            "nb": 8,
            "steps": 2,
            "lr": 0.01,
            "threshold": 0.03,
            "test_prompts": 16,
            "device": "cpu",
        },
        "calibration_prompts": 8,
    }


def write_grid(folder, values, **changes):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def benchmark(grid_values, tmp_path_factory):
    """A finished benchmark: (grid file, folder, what was printed)."""
    folder = tmp_path_factory.mktemp("bench")
    path = write_grid(folder, grid_values)
    result = invoke("bench", "--config", path, "--output", folder / "out")
    assert result.exit_code == 0, result.output
    return path, folder / "out", result.stdout


def numbers(folder):
    """Everything measured; seconds and memory differ from run to run."""
    found = {}
    for path in sorted((folder / "cells").glob("*.json")):
        record = json.loads(path.read_text())
        del record["seconds"], record["training"]
        found[path.name] = record
    return found


def test_every_cell_has_a_file_and_every_method_a_row(benchmark, grid_values):
    path, folder, printed = benchmark
    grid = read_grid(path)
    assert len(grid.cells()) == len(grid_values["methods"]) * len(TESTED) * 2
    assert {p.stem for p in (folder / "cells").glob("*.json")} == {
        cell.name for cell in grid.cells()
    }
    table = json.loads((folder / "tables" / "grid" / "tables.json").read_text())[0]
    assert table["columns"] == ["method", "reviews"]
    assert [row[0] for row in table["rows"]][4:] == [
        "vanilla",
        "contextual calibration",
        "ABFT",
        "E2E, W_Q and W_K",
    ]
    assert "### Accuracy in %, tiny" in printed
    rows = (folder / "tables" / "grid" / "results.csv").read_text().splitlines()
    assert rows[0] == "model,task,method,scenario,variant,seed,metric,value"
    assert any(
        row.startswith("tiny,reviews,abft,standard,,1,trainable_parameters,") for row in rows
    )


def test_metrics_follow_from_the_predictions(benchmark):
    path, folder, _ = benchmark
    store = Store(folder)
    for cell in read_grid(path).cells():
        record = store.read(cell)
        for said in record["predictions"].values():
            # Prompt i has query i modulo their number.
            again = np.arange(len(said["targets"])) % said["queries"]
            assert np.array_equal(np.array(said["targets"])[again], said["targets"])
            if cell.scenario == "demonstration_consistency":
                assert said["queries"] * 8 == len(said["targets"])
        if cell.scenario == "standard":
            said = record["predictions"]["standard"]
            assert record["metrics"]["accuracy"] == np.mean(
                np.array(said["predicted"]) == said["targets"]
            )
            assert record["heads"] > 0
            assert (record["training"] is not None) == (cell.method in TRAINED)


def test_seeds_change_the_training_and_never_the_test_prompts(benchmark):
    path, folder, _ = benchmark
    store, grid = Store(folder), read_grid(path)
    cells = {(c.method, c.scenario, c.seed): c for c in grid.cells()}
    for scenario in ("standard", "zero_shot"):
        targets = {
            json.dumps(store.read(c)["predictions"][scenario]["targets"])
            for c in cells.values()
            if c.scenario == scenario
        }
        assert len(targets) == 1
    assert cells["abft", "standard", 0].weights != cells["abft", "standard", 1].weights
    assert (
        store.read(cells["vanilla", "standard", 0])["metrics"]
        == store.read(cells["vanilla", "standard", 1])["metrics"]
    )
    texts = [
        (store.weights(cells["abft", "standard", seed]) / "log.jsonl").read_text()
        for seed in (0, 1)
    ]
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in texts]
    assert losses[0] != losses[1]


def test_one_vanilla_pass_serves_all_methods_that_need_it(benchmark, monkeypatch, tmp_path):
    path, _, _ = benchmark
    cells = [
        c
        for c in read_grid(path).cells()
        if c.weights is None and c.scenario in ("standard", "posterior_bias")
    ]
    assert {c.method for c in cells} == {"vanilla", "contextual_calibration"}
    passes = []
    scored = Subject._scored
    monkeypatch.setattr(
        Subject, "_scored", lambda self, *a: passes.append(a[-1]) or scored(self, *a)
    )
    store = Store(tmp_path)
    store.prepare(path)
    subject = Subject(store, cells[0])
    for cell in cells:
        subject.measure(cell)
    assert sorted(passes) == ["contextual calibration"] * 2 + ["standard"]  # a prior a seed


def test_a_finished_grid_runs_nothing(benchmark, monkeypatch):
    path, folder, printed = benchmark
    monkeypatch.setattr(Subject, "measure", lambda *a: pytest.fail("measured again"))
    result = invoke("bench", "--config", path, "--output", folder)
    assert result.exit_code == 0
    assert result.stdout == printed


def test_a_longer_grid_reuses_what_is_there(benchmark, grid_values, monkeypatch, tmp_path):
    _, folder, _ = benchmark
    measured = []
    measure = Subject.measure
    monkeypatch.setattr(
        Subject, "measure", lambda self, cell: measured.append(cell.name) or measure(self, cell)
    )
    monkeypatch.setattr(
        "abft.bench.subject.train_run", lambda *a, **k: pytest.fail("trained again")
    )
    path = write_grid(tmp_path, grid_values, scenarios=[*TESTED, "contextual_bias"])
    assert invoke("bench", "--config", path, "--output", folder).exit_code == 0
    assert len(measured) == 8
    assert all("contextual_bias" in name for name in measured)


@pytest.mark.parametrize("damage", ["cut short", "another version", "another digest"])
def test_a_damaged_result_is_computed_again_with_a_warning(benchmark, caplog, damage):
    path, folder, _ = benchmark
    cell = read_grid(path).cells()[0]
    store = Store(folder)
    file = folder / "cells" / f"{cell.name}.json"
    text = file.read_text()
    record = json.loads(text)
    try:
        if damage == "cut short":
            file.write_text(text[: len(text) // 2])
        else:
            record["version" if damage == "another version" else "digest"] = 0
            file.write_text(json.dumps(record))
        assert store.read(cell) is None
        assert store.read(cell) is None
        assert caplog.text.count("computed again") == 1
        caplog.clear()
        assert invoke("bench", "--config", path, "--output", folder).exit_code == 0
        assert caplog.text.count("computed again") == 1
        again = json.loads(file.read_text())
        assert {**again, "seconds": 0} == {**json.loads(text), "seconds": 0}
    finally:
        file.write_text(text)


def test_damaged_scores_are_computed_again(tmp_path, caplog):
    store = Store(tmp_path)
    (tmp_path / "scores").mkdir()
    kept = Scores(np.array([[0.25, 0.75]]), 3.5, 0.1, None)
    store.write_scores("a", kept)
    read = store.scores("a")
    assert read.probabilities.tolist() == [[0.25, 0.75]]
    assert (read.heads, read.correct_mass, read.incorrect_mass) == (3.5, 0.1, None)
    file = tmp_path / "scores" / "a.npz"
    file.write_bytes(file.read_bytes()[:40])
    assert store.scores("a") is None
    assert "damaged" in caplog.text
    assert store.scores("missing") is None
    assert [p.name for p in (tmp_path / "scores").iterdir()] == ["a.npz"]


def test_a_failed_cell_is_recorded_and_does_not_stop_the_grid(grid_values, tmp_path):
    broken = {
        "name": "broken",
        "method": "abft",
        "threshold": 0.99,
    }  # no head passes: training refuses
    path = write_grid(
        tmp_path, grid_values, methods=[broken, "vanilla"], scenarios=["standard"], seeds=[0]
    )
    result = invoke("bench", "--config", path, "--output", tmp_path / "out")
    assert "1 of 2 cells failed" in str(result.exception)
    failed = json.loads(
        (
            tmp_path / "out" / "cells" / "tiny__reviews__broken__standard__seed0.failed.json"
        ).read_text()
    )
    assert "no attention head passed the threshold" in failed["error"]
    assert "Traceback" in failed["trace"]
    assert "| vanilla |" in result.stdout
    assert not (tmp_path / "out" / "cells" / "tiny__reviews__broken__standard__seed0.json").exists()


def test_dry_run_lists_cells_and_writes_nothing(grid_values, tmp_path, benchmark):
    path = write_grid(tmp_path, grid_values)
    result = invoke("bench", "--config", path, "--output", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "32 cells, 0 done, 32 left" in result.stdout
    assert not (tmp_path / "out").exists()
    listed = json.loads(
        invoke("bench", "--config", path, "--output", benchmark[1], "--dry-run", "--json").stdout
    )
    assert all(entry["done"] and entry["scored_prompts"] == 0 for entry in listed)


def test_dry_run_counts_shared_work_once(grid_values, tmp_path):
    path = write_grid(tmp_path, grid_values, seeds=[0])
    listed = json.loads(
        invoke(
            "bench", "--config", path, "--output", tmp_path / "out", "--dry-run", "--json"
        ).stdout
    )
    plans = {entry["cell"].removeprefix("tiny__reviews__"): entry for entry in listed}
    scored = {name: entry["scored_prompts"] for name, entry in plans.items()}
    trained = {name: entry["training_prompts"] for name, entry in plans.items()}
    count, calibration = grid_values["settings"]["test_prompts"], 8
    assert scored["vanilla__standard__seed0"] == count
    assert scored["vanilla__posterior_bias__seed0"] == 0  # the standard prompts again
    assert scored["contextual_calibration__standard__seed0"] == calibration
    assert (scored["abft__standard__seed0"], trained["vanilla__standard__seed0"]) == (count, 0)
    settings = grid_values["settings"]
    assert trained["abft__standard__seed0"] == settings["steps"] * settings["nb"]
    assert (scored["abft__posterior_bias__seed0"], trained["abft__posterior_bias__seed0"]) == (0, 0)


@pytest.mark.parametrize("method", ["abft", "e2e_lora"])
def test_a_trained_model_is_loaded_once_and_is_what_was_saved(
    grid_values, tmp_path, monkeypatch, method
):
    import abft.runs.session

    loads = []
    load = abft.runs.session.load_model
    monkeypatch.setattr(
        "abft.runs.session.load_model", lambda *a, **k: loads.append(a) or load(*a, **k)
    )
    path = write_grid(
        tmp_path, grid_values, methods=[method], scenarios=["standard", "zero_shot"], seeds=[0]
    )
    for output in ("out", "again"):
        assert invoke("bench", "--config", path, "--output", tmp_path / output).exit_code == 0
        assert len(loads) == 1  # for the training and both measurements; later for these alone
        loads.clear()
        shutil.copytree(tmp_path / "out/weights", tmp_path / "again/weights", dirs_exist_ok=True)
        for part in ("cells", "scores"):
            (tmp_path / "again" / part).mkdir(exist_ok=True)
    kept, reloaded = (
        [np.load(p)["probabilities"] for p in sorted((tmp_path / o / "scores").iterdir())]
        for o in ("out", "again")
    )
    for ours, theirs in zip(kept, reloaded, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_killed_and_restarted_gives_the_same_numbers(grid_values, tmp_path, benchmark):
    path = write_grid(tmp_path, grid_values)
    command = [
        sys.executable,
        "-m",
        "abft",
        "bench",
        "--config",
        str(path),
        "--output",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    cells = tmp_path / "out" / "cells"
    limit = time.time() + 240
    while time.time() < limit and len(list(cells.glob("*.json"))) < 10:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(cells.glob("*.json")))
    assert 10 <= done < 32

    # The kill may come while a file is written; what it leaves is removed by the next run.
    (cells / ".left.json.host-1.partial").write_text("{")
    result = invoke("bench", "--config", path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert not list(cells.glob(".*"))
    reference = {
        name: record
        for name, record in numbers(benchmark[1]).items()
        if "contextual_bias" not in name
    }
    assert numbers(tmp_path / "out") == reference


def test_interrupted_grid_keeps_finished_cells_and_writes_their_tables(
    grid_values, tmp_path, monkeypatch
):
    path = write_grid(
        tmp_path, grid_values, methods=["vanilla", "abft"], scenarios=["standard"], seeds=[0]
    )
    measure = Subject.measure

    def interrupted(self, cell):
        if cell.method == "abft":
            raise KeyboardInterrupt
        return measure(self, cell)

    monkeypatch.setattr(Subject, "measure", interrupted)
    message = refused("bench", "--config", path, "--output", tmp_path / "out")
    assert "finished cells are kept" in message
    assert "| vanilla |" in (tmp_path / "out" / "tables" / "grid" / "tables.md").read_text()
    monkeypatch.undo()
    assert invoke("bench", "--config", path, "--output", tmp_path / "out").exit_code == 0


def test_weights_are_removed_if_asked(grid_values, tmp_path):
    path = write_grid(
        tmp_path,
        grid_values,
        methods=["abft"],
        scenarios=["standard"],
        seeds=[0],
        keep_weights=False,
    )
    assert invoke("bench", "--config", path, "--output", tmp_path / "out").exit_code == 0
    assert not [path for path in (tmp_path / "out" / "weights").iterdir() if path.is_dir()]
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1


def test_weights_that_several_jobs_use_are_trained_once_and_then_removed(
    grid_values, tmp_path, monkeypatch
):
    trained = []
    monkeypatch.setattr(
        "abft.bench.subject.train_run", lambda *a, **k: trained.append(1) or train_run(*a, **k)
    )
    path = write_grid(
        tmp_path,
        grid_values,
        methods=["abft"],
        scenarios=["extrapolation"],
        seeds=[0],
        keep_weights=False,
    )

    # One factor fails: the weights stay, and nothing is trained again.
    measure = Subject.measure

    def fails(self, cell):
        if cell.variant["factor"] == 2.0:
            raise RuntimeError("no memory")
        return measure(self, cell)

    monkeypatch.setattr(Subject, "measure", fails)
    assert invoke("bench", "--config", path, "--output", tmp_path / "out").exit_code != 0
    assert [path for path in (tmp_path / "out" / "weights").iterdir() if path.is_dir()]
    monkeypatch.setattr(Subject, "measure", measure)
    assert invoke("bench", "--config", path, "--output", tmp_path / "out").exit_code == 0
    assert len(trained) == 1
    assert len(list((tmp_path / "out" / "cells").glob("*.json"))) == 5
    assert not [path for path in (tmp_path / "out" / "weights").iterdir() if path.is_dir()]


def test_two_benchmarks_do_not_share_a_folder_at_the_same_time(benchmark):
    from filelock import FileLock

    path, folder, _ = benchmark
    with FileLock(folder / ".lock"):
        assert "another `abft bench` is running" in refused(
            "bench", "--config", path, "--output", folder
        )


def test_results_of_calibration_differ_from_vanilla_and_keep_its_heads(benchmark):
    path, folder, _ = benchmark
    results = Results(read_grid(path), Store(folder))
    (a, _), (b, _) = (
        results.records("tiny", "reviews", m, "standard")
        for m in ("vanilla", "contextual_calibration")
    )
    assert a["heads"] == b["heads"]
    assert a["predictions"] != b["predictions"] or a["metrics"] != b["metrics"]
    names = [table.name.removesuffix("-tiny") for table in tables(results)]
    expected = (
        "accuracy differences all_differences heads macro_f1 ece cost consistency posterior_bias"
    )
    assert names == expected.split()


def test_changed_data_or_model_files_are_measured_again(
    grid_values, tmp_path, reviews, model_folder
):
    from abft.bench import cell as module

    table, model = tmp_path / "reviews.csv", tmp_path / "model"
    shutil.copy(reviews, table)
    shutil.copytree(model_folder, model)
    task = {**grid_values["tasks"][0], "data": str(table)}
    path = write_grid(
        tmp_path, grid_values, models=[{"name": "tiny", "model": str(model)}], tasks=[task]
    )

    def digests():
        module._content.cache_clear()
        cells = read_grid(path).cells()
        return {cell.digest for cell in cells}, {cell.weights for cell in cells if cell.weights}

    first = digests()
    assert digests() == first
    table.write_text(table.read_text() + '"great and good, once more",positive\n')
    second = digests()
    os.utime(model / "model.safetensors", ns=(1, 1))
    third = digests()
    for before, after in ((first, second), (second, third)):
        assert not before[0] & after[0]
        assert not before[1] & after[1]


def test_own_data_have_the_grids_name_for_them(grid_values, tmp_path, bpe, review_data):
    """Not their file's, which can be that of a built-in task."""
    task = {**grid_values["tasks"][0], "name": "mine"}
    path = write_grid(tmp_path, grid_values, tasks=[task], methods=["vanilla"])
    data = setting_of(read_grid(path).cells()[0], bpe).data
    assert data.task.name == "mine"
    assert data.test == review_data.test


def test_settings_of_untrained_methods_are_their_own(grid_values, tmp_path):
    methods = [
        "vanilla",
        {"name": "half", "method": "vanilla", "dtype": "bfloat16"},
        {"name": "high", "method": "vanilla", "threshold": 0.5},
    ]
    path = write_grid(tmp_path, grid_values, methods=methods, scenarios=["standard"], seeds=[0])
    grid = read_grid(path)
    assert len(jobs(grid.cells())) == 3
    assert len({cell.subject for cell in grid.cells()}) == 2
    assert invoke("bench", "--config", path, "--output", tmp_path / "out").exit_code == 0
    records = [Store(tmp_path / "out").read(cell) for cell in grid.cells()]
    assert records[0]["heads"] > records[2]["heads"]
    assert records[0]["correct_mass"] == records[2]["correct_mass"]
    assert records[0]["correct_mass"] != records[1]["correct_mass"]


def test_settings_of_the_papers_objective_reach_no_other(grid_values, tmp_path):
    values = {**grid_values["settings"], "A0": 0.3}
    path = write_grid(
        tmp_path,
        grid_values,
        methods=["abft", "vote", "e2e"],
        scenarios=["standard"],
        settings=values,
        seeds=[0],
    )
    assert {cell.method: cell.config.A0 for cell in read_grid(path).cells()} == {
        "abft": 0.3,
        "vote": 0.5,
        "e2e": 0.5,
    }
    own = [
        {"name": "m", "method": "vote", "objective": "abft"},
        {"name": "n", "method": "abft", "objective": "vote"},
    ]
    path = write_grid(tmp_path, grid_values, methods=own, scenarios=["standard"], settings=values)
    assert {cell.method: cell.config.A0 for cell in read_grid(path).cells()} == {"m": 0.3, "n": 0.5}
    path = write_grid(
        tmp_path, grid_values, methods=[{"name": "e2e", "A0": 0.3}], scenarios=["training_size"]
    )
    assert "grid, method e2e, task reviews: A0 goes with objective 'abft'" in refused(
        "bench", "--config", path, "--output", tmp_path / "out", "--dry-run"
    )


def test_shared_settings_make_no_method_into_another(grid_values, tmp_path):
    names = ["abft", "vote", "vote_and_cross_entropy", "e2e"]
    values = {**grid_values["settings"], "cross_entropy": 1.0, "kl": 2.0}
    path = write_grid(tmp_path, grid_values, methods=names, scenarios=["standard"], settings=values)
    cells = {cell.method: cell for cell in read_grid(path).cells()}
    assert {name: cells[name].config.cross_entropy for name in names} == {
        "abft": 0,
        "vote": 0,
        "vote_and_cross_entropy": 1,
        "e2e": 0,
    }
    assert {cells[name].config.kl for name in names} == {0}

    # Factors of Eq. 1 for a loss that has none.
    mine = {"name": "mine", "method": "abft", "objective": "vote"}
    path = write_grid(tmp_path, grid_values, methods=["abft", mine], scenarios=["factors"])
    assert {cell.method for cell in read_grid(path).cells()} == {"abft"}


def test_classifiers_refuse_what_they_would_ignore(grid_values, tmp_path):
    def message(**changes):
        path = write_grid(tmp_path, grid_values, scenarios=["labelled_texts"], **changes)
        return refused("bench", "--config", path, "--output", tmp_path / "out", "--dry-run")

    mine = {"name": "mine", "method": "trained", "steps": 64, "k": 16}
    assert "trained is fitted on texts and does not have k, steps" in message(methods=[mine])
    values = {**grid_values["settings"], "dtype": "bfloat16"}
    assert "does not have dtype" in message(methods=["untrained"], settings=values)
    path = write_grid(
        tmp_path, grid_values, scenarios=["labelled_texts"], methods=["tfidf"], settings=values
    )
    assert len(read_grid(path).cells()) == 10


def test_a_changed_classifier_is_measured_again(grid_values, tmp_path, monkeypatch):
    path = write_grid(tmp_path, grid_values, scenarios=["labelled_texts"], methods=["untrained"])
    before = {cell.digest for cell in read_grid(path).cells()}
    monkeypatch.setitem(METHODS, "untrained", replace(METHODS["untrained"], revision=99))
    assert not before & {cell.digest for cell in read_grid(path).cells()}


def test_long_texts_are_cut_in_training_and_in_measuring(grid_values, tmp_path, bpe):
    data = setting_of(read_grid(write_grid(tmp_path, grid_values)).cells()[0], bpe).data
    most = max(len(bpe(example.text)["input_ids"]) for example in data.test) - 1
    values = {**grid_values["settings"], "max_text_tokens": most}
    path = write_grid(
        tmp_path,
        grid_values,
        methods=["vanilla", "tfidf"],
        scenarios=["standard", "labelled_texts"],
        settings=values,
    )
    by_method = {cell.method: setting_of(cell, bpe).data for cell in read_grid(path).cells()}
    longest = {
        method: max(len(bpe(e.text)["input_ids"]) for e in data.test)
        for method, data in by_method.items()
    }
    assert longest["vanilla"] == most
    assert longest["tfidf"] == most + 1

    # More demonstrations than fit: known before anything is trained.
    values = {**grid_values["settings"], "k": 45, "nd": 8, "queries": 1}
    path = write_grid(
        tmp_path,
        grid_values,
        methods=["abft"],
        scenarios=["demonstration_consistency"],
        settings=values,
        seeds=[0],
    )
    result = invoke("bench", "--config", path, "--output", tmp_path / "long", "--dry-run")
    assert "would fail" in result.stdout


def test_a_stopped_training_goes_on_or_is_made_anew(grid_values, tmp_path, monkeypatch):
    """Anew where what is left cannot be gone on with; Ctrl-C keeps its checkpoint."""
    path = write_grid(tmp_path, grid_values, methods=["abft"], scenarios=["standard"], seeds=[0])
    (cell,) = read_grid(path).cells()
    store = Store(tmp_path / "out")
    folder = store.weights(cell)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    calls = []

    def training(error):
        def train_run(config, output, resume=False):
            calls.append((resume, (output / "config.yaml").is_file()))
            if resume:
                raise error
            return SimpleNamespace(model=None)

        monkeypatch.setattr("abft.bench.subject.train_run", train_run)
        Subject(store, cell)._trained()

    with pytest.raises(RunInterrupted):
        training(RunInterrupted("stopped"))
    assert calls == [(True, True)]
    training(CannotResume("another base"))
    assert calls[1:] == [(True, True), (False, False)]


def test_settings_of_training_do_not_change_the_untouched_model(grid_values, tmp_path):
    few, many = (
        {
            cell.method: cell.digest
            for cell in read_grid(
                write_grid(tmp_path, grid_values, settings={**grid_values["settings"], "steps": n})
            ).cells()
        }
        for n in (2, 3)
    )
    assert few["vanilla"] == many["vanilla"]
    assert few["contextual_calibration"] == many["contextual_calibration"]
    assert few["abft"] != many["abft"]


def test_training_on_other_tasks_is_not_measured_out_of_domain(tmp_path, grid_values):
    mine = {"name": "mine", "method": "e2e_lora", "train_on": "others"}
    path = write_grid(
        tmp_path,
        grid_values,
        tasks=["SST2"],
        methods=["abft", "metaicl", mine],
        scenarios=["standard", "out_of_domain"],
    )
    assert {
        cell.method for cell in read_grid(path).cells() if cell.scenario == "out_of_domain"
    } == {"abft"}

    # Nor on news, which are among the other tasks.
    path = write_grid(
        tmp_path,
        grid_values,
        tasks=["SST2"],
        methods=["vanilla", "abft", "metaicl"],
        scenarios=["perplexity"],
    )
    assert {cell.method for cell in read_grid(path).cells()} == {"vanilla", "abft"}


def test_weights_stay_inside_the_folder(grid_values, tmp_path, reviews):
    task = {**grid_values["tasks"][0], "name": str(reviews)}
    odd = {**grid_values["tasks"][0], "name": "../../" + "x" * 300}
    cells = read_grid(write_grid(tmp_path, grid_values, tasks=[task, odd])).cells()
    store = Store(tmp_path / "out")
    for cell in cells:
        assert len(cell.name) < 200
        if cell.weights is not None:
            assert store.weights(cell).parent == tmp_path / "out" / "weights"
    assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    "left",
    [
        "config",
        "metrics without weights",
        "weights without anything",
        "damaged metrics",
        "damaged weights",
    ],
)
def test_half_written_weights_are_made_again(grid_values, tmp_path, left):
    path = write_grid(tmp_path, grid_values, methods=["abft"], scenarios=["standard"], seeds=[0])
    out = tmp_path / "out"
    (cell,) = read_grid(path).cells()
    assert invoke("bench", "--config", path, "--output", out).exit_code == 0
    whole, folder = numbers(out), Store(out).weights(cell)
    if left == "config":
        for file in folder.iterdir():
            file.unlink()
        (folder / ".config.yaml.partial").write_text("model: ")
    elif left == "metrics without weights":
        (folder / "qk_weights.safetensors").unlink()
    elif left == "damaged metrics":
        (folder / "metrics.json").write_text("")
    elif left == "damaged weights":
        path_of_weights = folder / "qk_weights.safetensors"
        contents = bytearray(path_of_weights.read_bytes())
        contents[-1] ^= 1
        path_of_weights.write_bytes(contents)
    else:
        (folder / "config.yaml").unlink()
        (folder / "metrics.json").unlink()
    shutil.rmtree(out / "cells")
    shutil.rmtree(out / "scores")
    assert (
        invoke("bench", "--config", path, "--output", out).exit_code != 0
    )  # no benchmark's folder any more
    (out / "cells").mkdir()
    result = invoke("bench", "--config", path, "--output", out)
    assert result.exit_code == 0, result.output
    assert numbers(out) == whole


@pytest.mark.parametrize("name", ["accuracy", "ablations", "behaviour", "default", "extrapolation"])
def test_stored_results_are_those_of_the_papers_settings(name):
    """The defaults of a run may change; cells begin with the paper's settings, and what was
    measured stays valid.
    """
    results = Path(__file__).parent.parent / "results"
    for cell in read_grid(results / f"grids/{name}.yaml").cells():
        stored = json.loads((results / f"bench/cells/{cell.name}.json").read_text())
        assert stored["digest"] == cell.digest
        if cell.kind == "abft":
            assert (
                cell.config.objective,
                cell.config.queries,
                cell.config.steps,
                cell.config.cross_entropy,
            ) == (
                "abft",
                1,
                32,
                0,
            )


def test_jobs_share_weights(grid_values, tmp_path):
    grid = read_grid(
        write_grid(tmp_path, grid_values, scenarios=["standard", "training_size", "factors"])
    )
    grouped = jobs(grid.cells())
    assert sum(map(len, grouped)) == len(grid.cells())
    assert len({job[0].job for job in grouped}) == len(grouped)
    assert all(len({cell.job for cell in job}) == 1 for job in grouped)
    by_name = {cell.name: cell for cell in grid.cells()}
    same = [
        by_name[f"tiny__reviews__abft__{s}__seed0"]
        for s in ("standard", "factors-A0=0.5-B0=1.0-pid=True")
    ]
    assert same[0].weights == same[1].weights
    assert same[0].digest != same[1].digest
    assert not any(
        cell.method == "vanilla" and cell.scenario != "standard" for cell in grid.cells()
    )
    assert not any(cell.method == "e2e" and cell.scenario == "factors" for cell in grid.cells())


def test_a_scenarios_entry_chooses_among_its_variants(grid_values, tmp_path):
    scenarios = [
        "standard",
        {"name": "training_size", "nd": [64, 512]},
        {"name": "factors", "A0": [0.5, 1], "pid": [False]},
    ]
    chosen = read_grid(write_grid(tmp_path, grid_values, scenarios=scenarios)).cells()
    every = read_grid(
        write_grid(tmp_path, grid_values, scenarios=["standard", "training_size", "factors"])
    ).cells()

    def wanted(variant):
        return variant.get("nd") in (None, 64, 512) and (
            "A0" not in variant or (variant["A0"] in (0.5, 1.0) and not variant["pid"])
        )

    expected = {cell.name: cell.digest for cell in every if wanted(cell.variant)}
    assert {cell.name: cell.digest for cell in chosen} == expected
    assert {"training_size", "factors"} <= {cell.scenario for cell in chosen}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["vanila"]}, "did you mean 'vanilla'"),
        ({"scenarios": ["standart"]}, "did you mean 'standard'"),
        ({"tasks": ["TRECK"]}, "did you mean TREC"),
        ({"settings": {"stepz": 2}}, "did you mean 'steps'"),
        ({"methods": [{"name": "abft", "stepz": 2}]}, "did you mean 'steps'"),
        ({"methods": [{"name": "mine", "method": "abtf"}]}, "did you mean 'abft'"),
        ({"method": ["abft"]}, "did you mean 'methods'"),
        ({"scenarios": [{"name": "standard", "k": [2]}]}, "unknown key 'k'; no variants"),
        ({"scenarios": [{"name": "training_size", "nb": [64]}]}, "its variants differ in nd"),
        ({"scenarios": [{"name": "training_size", "nd": [65]}]}, "nd = [65], expected a list of"),
        ({"scenarios": [{"name": "training_size", "nd": 64}]}, "nd = 64, expected a list of"),
        ({"scenarios": [{"name": "factors", "A0": [0.0], "B0": [0.0]}]}, "no variant has all of"),
        ({"scenarios": [{"nd": [64]}]}, "unknown scenario None"),
        ({"seeds": [0, 1.5]}, "seeds = [0, 1.5]: expected a list of whole numbers"),
        ({"seeds": ["a"]}, "seeds = ['a']: expected a list of whole numbers"),
        ({"seeds": [True]}, "seeds = [True]: expected a list of whole numbers"),
        ({"seeds": 3}, "expected a list of whole numbers"),
        ({"seeds": [0, 0]}, "names 0 twice"),
        ({"seeds": [-1]}, "seed = -1"),
        ({"methods": ["vanilla", "abft", "abft"]}, "names 'abft' twice"),
        ({"models": []}, "models is missing"),
        ({"tasks": None}, "tasks is missing"),
        ({"reference": "abft2"}, "none of the methods"),
        ({"resources": {"cpu": 2}}, "did you mean 'cpus'"),
        ({"resources": {"cpus": "many"}}, "expected a number"),
        ({"calibration_prompts": 0}, "at least 1"),
        ({"keep_weights": "no"}, "expected true or false"),
        ({"settings": {"steps": "many"}}, "expected a whole number"),
        ({"settings": {"steps": 0}}, "steps = 0"),
        ({"settings": {"seed": 0}}, "unknown key 'seed'"),
        ({"methods": ["vanilla"], "scenarios": ["training_size"]}, "no cell"),
        ({"tasks": [{"name": "SST2", "data": "x.csv"}]}, "built-in task"),
        ({"methods": [{"names": "abft"}]}, "expected a name"),
        ({"settings": {"k": 4.5}}, "expected a whole number"),
        ({"settings": {"pid": "false"}}, "expected true or false"),
        ({"settings": {"test_prompts": 0}}, "nothing would be measured"),
        ({"settings": {"label_words": {"negative": False}}}, "need quotes"),
        ({"settings": {"label_words": None}}, "label: word pairs"),
        ({"settings": {"objective": "e2e"}}, "set it in an entry of methods"),
        ({"models": [{"name": "x", "model": None}]}, "model = None"),
        ({"models": [{"name": "x", "model": ["a"]}]}, "expected text"),
        ({"tasks": [{"name": "mine", "data": None}]}, "expected a file"),
        ({"resources": {"cpus": float("nan")}}, "expected a finite number"),
    ],
)
def test_bad_grids_are_refused_in_one_line(grid_values, tmp_path, changes, message):
    path = write_grid(tmp_path, grid_values, **changes)
    assert message in refused("bench", "--config", path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "seeds: [2021-13-45]", "models: [" * 3000, "a: b: c"]
)
def test_what_is_no_grid_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert str(path) in refused("bench", "--config", path, "--output", tmp_path / "out")


def test_bad_commands_are_refused(grid_values, tmp_path):
    path = write_grid(tmp_path, grid_values)
    assert "no such file" in refused(
        "bench", "--config", tmp_path / "no.yaml", "--output", tmp_path / "out"
    )
    assert "expected serial or ray" in refused(
        "bench", "--config", path, "--output", tmp_path / "out", "--engine", "dask"
    )
    assert "goes with --engine ray" in refused(
        "bench", "--config", path, "--output", tmp_path / "out", "--ray-address", "a:1"
    )
    assert "is a file" in refused("bench", "--config", path, "--output", path)
    assert "no benchmark" in refused("bench", "--config", path, "--output", tmp_path)


def test_no_ray(grid_values, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    path = write_grid(tmp_path, grid_values)
    assert "pip install 'abft[ray]'" in refused(
        "bench", "--config", path, "--output", tmp_path / "out", "--engine", "ray"
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:9", "no Ray cluster answers"), ("nowhere", "expected host:port")],
)
def test_a_ray_address_that_does_not_answer(grid_values, tmp_path, address, message):
    path = write_grid(tmp_path, grid_values)
    options = ("--output", tmp_path / "out", "--engine", "ray", "--ray-address", address)
    started = time.time()
    assert message in refused("bench", "--config", path, *options)
    assert time.time() - started < 60


def test_a_killed_ray_worker_does_not_stop_the_grid(grid_values, tmp_path, benchmark):
    """Two workers on a real local Ray; one is killed in mid-cell."""
    pytest.importorskip("ray")
    path = write_grid(tmp_path, grid_values, scenarios=["standard", "zero_shot"])
    code = (
        "import sys, abft.bench.ray_engine as engine, ray\n"
        "init = ray.init\n"
        "ray.init = lambda **options: init(**{**options, 'num_cpus': 2})\n"
        "from abft.cli.app import main\nsys.argv[0] = 'abft'\nmain()\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "bench",
        "--config",
        str(path),
        "--output",
        str(tmp_path / "out"),
        "--engine",
        "ray",
    ]
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    victim, limit = None, time.time() + 240
    while victim is None and time.time() < limit:
        assert process.poll() is None, process.stderr.read()
        victim = next(iter(training_workers(process.pid, tmp_path / "out")), None)
        time.sleep(0.05)
    assert victim is not None, "no worker was seen at work"
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    reference = {
        name: r
        for name, r in numbers(benchmark[1]).items()
        if "standard" in name or "zero_shot" in name
    }
    assert numbers(tmp_path / "out") == reference


def training_workers(driver, folder):
    """Ray workers that are in a job whose training has begun and is not finished."""
    import psutil

    begun = [
        p for p in folder.glob("weights/*/config.yaml") if not (p.parent / "metrics.json").exists()
    ]
    if not begun:
        return []
    family = psutil.Process(driver).children(recursive=True)
    return [p.pid for p in family if any("_remote_job" in part for part in p.cmdline())]


def test_accuracy_of_the_table_is_the_mean_of_its_cells(benchmark):
    path, folder, _ = benchmark
    results = Results(read_grid(path), Store(folder))
    values = list(results.values("tiny", "reviews", "abft", "standard", "accuracy").values())
    row = next(row for row in tables(results)[0].rows if row[0] == "ABFT")
    assert row[1] == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
    said = results.records("tiny", "reviews", "abft", "standard")[0]["predictions"]["standard"]
    assert values[0] == accuracy(np.eye(2)[said["predicted"]], np.array(said["targets"]))
    assert (
        Path(folder / "tables" / "grid" / "accuracy-tiny.csv")
        .read_text()
        .startswith("method,reviews\n")
    )


def test_missing_cells_are_said_and_never_mixed_up(benchmark):
    path, folder, _ = benchmark
    grid = read_grid(path)
    results = Results(grid, Store(folder))
    both = results.values("tiny", "reviews", "abft", "standard", "accuracy")
    results.finished = [
        (cell, r) for cell, r in results.finished if (cell.method, cell.seed) != ("abft", 0)
    ]
    assert results.values("tiny", "reviews", "abft", "standard", "accuracy") == {1: both[1]}
    row = next(row for row in tables(results)[0].rows if row[0] == "ABFT")
    assert row[1] == f"{100 * both[1]:.1f} (n = 1)"
    assert mean_over_tasks([{0: 0.5, 1: 0.6}, {1: 0.9}]) == {1: 0.75}
    assert mean_over_tasks([{0: 0.5}, {1: 0.9}]) == {}
    results.finished = [(cell, r) for cell, r in results.finished if cell.method != "vanilla"]
    differences = next(table for table in tables(results) if table.name == "accuracy-tiny")
    assert not any(row[0] == "vanilla" for row in differences.rows)
    assert difference(results, "tiny", "reviews", "abft") is None


def test_differences_are_taken_on_the_same_prompts(benchmark):
    path, folder, _ = benchmark
    results = Results(read_grid(path), Store(folder))
    for scenario, prompts in (
        ("standard", "standard"),
        ("demonstration_consistency", "demonstrations"),
    ):
        value, samples = difference(results, "tiny", "reviews", "abft", scenario, prompts)
        means = [
            np.mean(list(results.values("tiny", "reviews", m, scenario, "accuracy").values()))
            for m in ("abft", "vanilla")
        ]
        assert value == pytest.approx(means[0] - means[1])
        assert samples.min() <= value <= samples.max()


def test_calibrated_results_are_divided_by_the_mean_of_neutral_predictions(
    benchmark, model_folder, bpe
):
    """Prompt by prompt from the stock model's logits, and the metrics by their formulas; the
    untouched model's attention on labels, too.
    """
    path, folder, _ = benchmark
    store, model = Store(folder), AutoModelForCausalLM.from_pretrained(model_folder)
    cells = {
        (c.method, c.scenario, c.seed): c
        for c in read_grid(path).cells()
        if c.scenario in ("standard", "posterior_bias")
    }
    kls = []
    for seed in (0, 1):
        standard = cells["contextual_calibration", "standard", seed]
        data = setting_of(standard, bpe).data
        words = label_tokens(bpe, data.task)

        def probabilities(prompts, words=words):
            with torch.no_grad():
                logits = [
                    model(torch.tensor([prompt.input_ids])).logits[0, -1, words]
                    for prompt in encode(bpe, prompts)
                ]
            return torch.stack(logits).double().softmax(-1).numpy()

        prompts = evaluation_prompts(data, 16, standard.config.k)
        neutral = calibration_prompts("contextual", data, 8, standard.config.k, seed)
        ratios = probabilities(prompts) / (sum(probabilities(neutral)) / 8)
        shares = ratios / ratios.sum(1, keepdims=True)

        record = store.read(standard)
        assert record["predictions"]["standard"]["predicted"] == shares.argmax(1).tolist()
        targets = np.array([prompt.target for prompt in prompts])
        assert record["metrics"]["accuracy"] == (shares.argmax(1) == targets).mean()
        mean, true = shares.mean(0), np.array([(targets == c).mean() for c in (0, 1)])
        kls.append((mean * np.log(mean / true)).sum())
        measured = store.read(cells["contextual_calibration", "posterior_bias", seed])["metrics"]
        assert measured["kl"] == pytest.approx(kls[-1], rel=1e-3, abs=1e-6)

    # A mean head's attention on labels, from eager attention.
    masses = np.zeros(2)
    model.set_attn_implementation("eager")
    for prompt in encode(bpe, prompts):
        with torch.no_grad():
            output = model(torch.tensor([prompt.input_ids]), output_attentions=True)
        row = torch.stack(output.attentions)[:, 0, :, -1].mean((0, 1))
        for at, label in zip(prompt.label_positions, prompt.label_classes, strict=True):
            masses[int(label != prompt.target)] += row[at].item() / len(prompts)
    record = store.read(cells["vanilla", "standard", 0])
    assert [record["correct_mass"], record["incorrect_mass"]] == pytest.approx(masses, rel=1e-4)
    assert abs(masses[0] - masses[1]) > 1e-3

    vanilla = store.read(cells["vanilla", "posterior_bias", 0])["metrics"]["kl"]
    assert all(abs(vanilla - kl) > 1e-3 * kl for kl in kls)  # calibration changed something


def test_extrapolation_multiplies_the_change_of_one_training(grid_values, tmp_path):
    path = write_grid(
        tmp_path,
        grid_values,
        methods=["vanilla", "e2e"],
        scenarios=["standard", "extrapolation"],
        seeds=[0],
    )
    cells = {(cell.method, cell.variant.get("factor")): cell for cell in read_grid(path).cells()}
    factors = [factor for method, factor in cells if method == "e2e" and factor]
    assert sorted(factors) == [0.5, 1.0, 1.25, 1.5, 2.0]
    assert not any(factor for method, factor in cells if method == "vanilla")

    out = tmp_path / "out"
    assert "Accuracy in % between and beyond" in invoke(
        "bench", "--config", path, "--output", out
    ).output.replace("\n", " ")
    store = Store(out)
    assert len(list((out / "weights").glob("*/metrics.json"))) == 1

    # As `abft merge --factor` applies the weights, scored anew.
    for factor in (0.5, 1.0, 2.0):
        cell = cells["e2e", factor]
        subject = Subject(store, cell)
        model, tokenizer = load_run_model(cell.config)
        model = apply_weights(model, store.weights(cell), factor)
        data = setting_of(cell, tokenizer).data
        tokens = label_tokens(tokenizer, data.task)
        prompts = encode(tokenizer, evaluation_prompts(data, 16, cell.config.k))
        expected, _ = evaluate(model, prompts, tokens)
        (prompt_set,) = SCENARIOS["extrapolation"].write(setting_of(cell, tokenizer))
        stored = subject.scores(prompt_set.data, prompt_set.prompts, prompt_set.k, "again")
        np.testing.assert_allclose(stored.probabilities, expected, atol=1e-6)
    whole = store.read(cells["e2e", 1.0])
    assert whole["predictions"] == store.read(cells["e2e", None])["predictions"]


def test_other_tasks_are_cut_like_the_trained_one(model_folder, bpe, tmp_path):
    """Texts that were trained on are recognised whole, and as far as they were read."""
    path = tmp_path / "grid.yaml"
    grid = {
        "models": [{"name": "tiny", "model": str(model_folder)}],
        "tasks": ["SST2"],
        "methods": ["vanilla"],
        "scenarios": ["out_of_domain"],
        "settings": {"max_text_tokens": 20, "test_prompts": 8},
    }
    path.write_text(yaml.safe_dump(grid))
    (cell,) = read_grid(path).cells()
    setting = setting_of(cell, bpe)
    whole = {text_key(example.text) for example in load_task("SST2").train}
    read = {text_key(example.text) for example in setting.data.train}
    assert len(read - whole) > 100
    other_sets = SCENARIOS["out_of_domain"].write(setting)
    assert len(other_sets) == 7
    for other in other_sets:
        texts = [example.text for example in (*other.data.test, *other.data.demonstrations)]
        assert max(len(bpe(text)["input_ids"]) for text in texts) <= 20
        assert not read & set(map(text_key, texts))

        # Nor is a whole text among them that was trained on, however it was cut.
        known = [e for e in load_task(other.name).test if text_key(e.text) in whole]
        cut = cut_texts(bpe, [example.text for example in known], 20)
        assert not {text_key(text) for text in cut} & set(map(text_key, texts))
