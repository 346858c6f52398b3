"""A new objective costs one class and one line; everything else finds it by itself."""

import json

import pytest
import yaml

from abft.method.objectives import OBJECTIVES, Caption, RowObjective
from command_line import arguments, invoke, refused


class Entropy(RowObjective):
    """Heads should look at few labels: the entropy of their attention on label tokens."""

    title = "Entropy"
    long_title = "entropy of attention on labels"
    summary = "heads look at few labels"
    default_steps = 3
    small_model_rate = 0.02
    card_title = "{model}, sharpened ({task})"
    card_text = (
        "{weights} of `{model}` learned to look at few labels in prompts of {task}; {paper}."
    )
    limitation = "It does not know which labels are correct."
    captions = {
        "loss": Caption("Loss", "loss", "Entropy of the attention on labels."),
        "sharpness": Caption("Sharpness", "largest share", "The label that is looked at most."),
    }

    def __init__(self, implementation):
        self.implementation = implementation

    @classmethod
    def from_settings(cls, settings, model, implementation):
        return cls(implementation)

    def from_rows(self, rows, hidden_BSD, batch):
        from abft.method.head_statistics import head_statistics, mass_metrics

        heads = head_statistics(rows, batch)
        share = heads.correct / (heads.correct + heads.incorrect)
        share = share.clamp(1e-6, 1 - 1e-6)
        loss = -(share * share.log() + (1 - share) * (1 - share).log()).mean()
        sharpness = (share - 0.5).abs().mean().detach() + 0.5
        return loss, {**mass_metrics(heads, heads.correct), "sharpness": sharpness}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "entropy", Entropy)


@pytest.mark.usefixtures("registered")
def test_a_new_objective_reaches_card_metrics_and_report(options, tmp_path):
    run = tmp_path / "run"
    given = {**options, "objective": "entropy", "steps": None, "lr": None, "threshold": None}
    result = invoke("train", *arguments(given), "--output", run)
    assert result.exit_code == 0, result.output
    assert "Entropy" in result.stdout

    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["objective"] == "entropy"
    assert metrics["training"]["steps"] == Entropy.default_steps
    assert set(metrics["after"]) == set(metrics["before"])
    assert yaml.safe_load((run / "config.yaml").read_text())["lr"] == Entropy.small_model_rate

    card = (run / "README.md").read_text()
    assert "tiny-llama, sharpened (reviews)" in card
    assert "W_Q and W_K of `tiny-llama` learned to look at few labels in prompts of reviews" in card
    assert Entropy.limitation in card

    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all("sharpness" in line for line in log)

    written = invoke("report", run, "--points", 2, "--resolution", 2, "--test-prompts", 4)
    assert written.exit_code == 0, written.output
    page = (run / "report.html").read_text()
    assert Entropy.long_title in page
    assert Entropy.captions["sharpness"].caption in page
    for of_the_paper in ("Eq. 1 falls", "PID control should keep", "of the induction heads"):
        assert of_the_paper not in page


@pytest.mark.usefixtures("registered")
def test_settings_of_another_objective_are_refused(options, tmp_path):
    given = arguments({**options, "objective": "entropy", "A0": 0.7})
    message = refused("train", *given, "--output", tmp_path / "run")
    assert "A0 goes with objective 'abft' and has no effect on 'entropy'" in message


@pytest.mark.parametrize(
    ("objective", "own", "foreign"),
    [
        ("vote", "share of correct labels in all heads&#39; attention", "Eq. 1 falls"),
        ("e2e", "probability of the correct label word", "Eq. 1 falls"),
        ("abft", "Eq. 1 falls", "share of correct labels"),
    ],
)
def test_captions_are_the_objectives(options, tmp_path, objective, own, foreign):
    run = tmp_path / "run"
    given = {**options, "objective": objective, "steps": 1, "cross-entropy": 0, "kl": 0.5}
    assert invoke("train", *arguments(given), "--output", run).exit_code == 0
    (run / "metrics.json").unlink()  # of an unfinished run settings and training are shown
    assert invoke("report", run).exit_code == 0
    page = (run / "report.html").read_text()
    assert own in page
    assert foreign not in page
    assert "this loss plus 0.5 x the divergence from the untouched model" in page
    assert "anchored (kl 0.5)" in page
    assert "Divergence from the untouched model" in page
    assert ("PID control should keep" in page) == (objective == "abft")
