"""Runs and classifiers that version 0.1 wrote (tests/written_by_0_1) are still read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from abft import ABFTClassifier, Predictor
from abft.runs.config import resolve
from abft.runs.run_folder import read_config, read_log, read_metrics
from command_line import invoke

WRITTEN = Path(__file__).parent / "written_by_0_1"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())
RUNS = ("abft", "vote_lora", "e2e")


@pytest.fixture
def folder(tmp_path):
    """The files, with this machine's paths in them."""
    copy = shutil.copytree(WRITTEN, tmp_path / "old")
    for path in copy.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            path.write_text(path.read_text().replace("FOLDER", str(copy)))
    return copy


@pytest.mark.parametrize("name", RUNS)
def test_predictions_of_an_old_run(folder, name):
    probabilities = Predictor.from_run(folder / name).probabilities(EXPECTED["texts"])
    np.testing.assert_allclose(probabilities, EXPECTED["probabilities"][name], atol=1e-6)


def test_a_saved_classifier(folder):
    classifier = ABFTClassifier.load(folder / "classifier")
    probabilities = classifier.predict_proba(EXPECTED["texts"])
    np.testing.assert_allclose(probabilities, EXPECTED["probabilities"]["classifier"], atol=1e-6)


def test_an_old_classifier_is_saved_again(folder):
    classifier = ABFTClassifier.load(folder / "classifier")
    classifier.save(folder / "classifier")
    again = ABFTClassifier.load(folder / "classifier")
    probabilities = again.predict_proba(EXPECTED["texts"])
    np.testing.assert_allclose(probabilities, EXPECTED["probabilities"]["classifier"], atol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_settings_and_metrics_of_an_old_run(folder, name):
    old = yaml.safe_load((folder / name / "config.yaml").read_text())
    config = read_config(folder / name)
    assert config.prompt_style == old.pop("protocol")
    assert {key: getattr(config, key) for key in old} == old
    assert resolve(config) == config

    record = json.loads((folder / name / "metrics.json").read_text())
    metrics = read_metrics(folder / name)
    assert (metrics["format"], metrics["objective"]) == (2, old["objective"])
    assert metrics["before"]["accuracy"] == record["vanilla"]["accuracy"]
    assert metrics["after"]["mean_correct_mass"] == record[old["objective"]]["mean_right_mass"]
    assert metrics["training"] == record["training"]
    assert [step["step"] for step in read_log(folder / name)] == [1, 2]
    assert "correct_mass" in read_log(folder / name)[0]


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_evaluated_merged_reported_and_repeated(folder, name, tmp_path):
    run = folder / name
    record = json.loads((run / "metrics.json").read_text())
    after = record[read_config(run).objective]
    measured = json.loads(invoke("eval", "--run", run, "--json").stdout)
    assert measured["accuracy"] == after["accuracy"]
    assert measured["ece"] == pytest.approx(after["ece"], abs=1e-6)

    assert invoke("merge", run, tmp_path / "merged").exit_code == 0
    assert f"{after['accuracy']:.3f}" in (tmp_path / "merged/README.md").read_text()
    written = invoke("report", run, "--points", 2, "--resolution", 2)
    assert written.exit_code == 0, written.output
    assert "correct labels goes from" in (run / "report.html").read_text()

    again = invoke(
        "train", "--config", run / "config.yaml", "--output", tmp_path / "again", "--json"
    )
    assert json.loads(again.stdout)["after"]["accuracy"] == after["accuracy"]
    resumed = invoke("train", "--resume", "--output", run, "--json")
    assert json.loads(resumed.stdout)["after"]["accuracy"] == after["accuracy"]
