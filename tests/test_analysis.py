"""Analyses of finished runs: against the training log, the run's metrics, eager rows and models
changed by hand.
"""

import dataclasses
import json
import shutil
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from abft.analysis.analyze import DOCUMENTED, analyze
from abft.analysis.basin import line
from abft.analysis.causality import causality, head_gates
from abft.analysis.choices import Choices
from abft.analysis.deletion import without
from abft.analysis.evaluation import evaluation
from abft.analysis.examples import chosen_prompts, examples, top_heads
from abft.analysis.study import accuracy_of, check_e2e_run, open_study
from abft.bench.scenarios import SCENARIOS, Setting
from abft.data.encoding import label_tokens
from abft.data.prompts import training_prompts, write_prompt
from abft.errors import AbftError
from abft.model.attention import decoder, read_rows, row_attention
from abft.model.capabilities import capabilities
from abft.runs.config import RunConfig
from abft.runs.session import progress_bar
from command_line import arguments, invoke, refused


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A copy of the finished run, so that no array lands in the other tests' run."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "copy")


@pytest.fixture(scope="module")
def analyses(run, e2e):
    return analyze(run, Choices(e2e=e2e, points=20, resolution=5))


@pytest.fixture(scope="module")
def study(run, e2e):
    return open_study(run, Choices(e2e=e2e, test_prompts=20))


def test_everything_is_found_and_documented(analyses, run):
    assert not analyses.missing
    for name, (_, documented) in DOCUMENTED.items():
        assert set(analyses.arrays[name]) == set(documented)
        with np.load(run / "analysis" / f"{name}.npz", allow_pickle=False) as file:
            assert set(file.files) == {*documented, "made_from"}
        assert all(
            f"`{array}`" in (run / "analysis" / "README.md").read_text() for array in documented
        )


def test_evaluation_equals_the_runs_own(analyses, run, e2e):
    own = json.loads((run / "metrics.json").read_text())
    own["e2e"] = json.loads((e2e / "metrics.json").read_text())["after"]
    found = analyses.arrays["evaluation"]
    assert found["models_M"].tolist() == ["before", "after", "e2e"]
    for m, name in enumerate(("before", "after", "e2e")):
        predicted = found["probabilities_MNC"][m].argmax(1)
        assert (predicted == found["targets_N"]).mean() == own[name]["accuracy"]
        assert found["induction_rate_MLH"][m].sum() == pytest.approx(own[name]["heads"])
        assert found["correct_mass_MLH"][m].mean() == pytest.approx(
            own[name]["mean_correct_mass"], abs=1e-6
        )


def test_head_map_equals_the_training_log(options, tmp_path):
    folder = tmp_path / "run"
    settings = {**options, "nd": 8, "nb": 8, "steps": 1, "save-steps": 1}
    assert invoke("train", *arguments(settings), "--no-filter", "--output", folder).exit_code == 0
    logged = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    opened = open_study(folder, Choices(test_prompts=8))
    session = opened.session
    written = training_prompts(session.data, 8, session.config.k, session.config.seed)
    session.prompts = session.encode(written)
    found = evaluation(opened)
    assert found["induction_rate_MLH"][0].sum() == pytest.approx(logged["heads"], abs=1e-4)
    assert found["correct_mass_MLH"][0].sum() == pytest.approx(logged["correct_mass"], abs=1e-4)
    assert found["incorrect_mass_MLH"][0].sum() == pytest.approx(logged["incorrect_mass"], abs=1e-4)


def test_unseen_labels_are_never_right(analyses, study, model_folder):
    """Prompts of which no demonstration has the query's label, by a stock model."""
    found = analyses.arrays["unseen"]
    assert found["incorrect_mass_MLH"].max() > 0
    assert found["probabilities_MNC"].shape == (3, 20, 2)

    session = study.session
    data, config = session.data, session.config
    setting = Setting(data, config.k, 20, config.prompt_style, None, session.tokenizer)
    (prompt_set,) = SCENARIOS["unseen_label"].write(setting)
    prompts = session.encode(prompt_set.prompts)
    assert all(prompt.target not in prompt.label_classes for prompt in prompts)
    words = label_tokens(session.tokenizer, data.task)
    expected = label_shares(moved_by_hand(study, model_folder, {}), prompts, words)
    np.testing.assert_allclose(found["probabilities_MNC"][0], expected, atol=1e-5)


def test_the_basin_holds_the_models(analyses, run, e2e):
    vanilla, abft = (
        json.loads((run / "metrics.json").read_text())[name]["accuracy"]
        for name in ("before", "after")
    )
    other = json.loads((e2e / "metrics.json").read_text())["after"]["accuracy"]
    line, plane = analyses.arrays["line"], analyses.arrays["plane"]
    along = dict(zip(line["a_A"].tolist(), line["accuracy_A"].tolist(), strict=True))
    assert (along[0.0], along[1.0]) == (vanilla, abft)
    at = {
        (e, a): plane["accuracy_EA"][i, j]
        for i, e in enumerate(plane["e_E"])
        for j, a in enumerate(plane["a_A"])
    }
    assert (at[0.0, 0.0], at[0.0, 1.0], at[1.0, 0.0]) == (vanilla, abft, other)


def moved_by_hand(study, model_folder, factors):
    """A stock model with theta0 + sum of factor * (theta - theta0), from the files of the runs."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    parameters = dict(model.named_parameters())
    theta0 = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for folder, factor in factors.items():
            for name, theta in load_file(folder / "qk_weights.safetensors").items():
                parameters[name] += factor * (theta - theta0[name])
    return model


def label_shares(model, prompts, words):
    """One prompt at a time, from all logits of a stock model."""
    with torch.no_grad():
        logits = [model(torch.tensor([p.input_ids])).logits[0, -1, words] for p in prompts]
    return torch.stack(logits).double().softmax(-1).numpy()


def test_points_between_and_beyond_runs_are_weights_made_by_hand(study, model_folder, run, e2e):
    words = label_tokens(study.session.tokenizer, study.session.data.task)
    prompts = study.prompts[:8]
    seen = []
    for factors in ({"run": 0.4}, {"e2e": -0.3}, {"run": 1.7, "e2e": 0.4}, {}):
        with progress_bar("test", len(prompts)) as bar:
            measured, _ = study.evaluate(factors, prompts, bar)
        folders = {"run": run, "e2e": e2e}
        by_folder = {folders[name]: factor for name, factor in factors.items()}
        model = moved_by_hand(study, model_folder, by_folder)
        np.testing.assert_allclose(measured, label_shares(model, prompts, words), atol=1e-5)
        seen.append(measured)
    assert min(np.abs(a - b).max() for a, b in combinations(seen, 2)) > 1e-4


def test_the_line_and_the_plane_are_accuracies_of_weights_made_by_hand(
    study, analyses, model_folder, run, e2e
):
    """Point by point; the plane would differ with its axes exchanged."""
    line, plane = analyses.arrays["line"], analyses.arrays["plane"]
    assert line["a_A"].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert plane["e_E"].tolist() == plane["a_A"].tolist() == [-0.5, 0, 0.5, 1, 1.5]
    assert line["prompts"] == plane["prompts"] == 20
    words = label_tokens(study.session.tokenizer, study.session.data.task)
    targets = np.array([prompt.target for prompt in study.prompts])

    def accuracy(a, e=0.0):
        model = moved_by_hand(study, model_folder, {run: a, e2e: e})
        return (label_shares(model, study.prompts, words).argmax(1) == targets).mean()

    assert line["accuracy_A"].tolist() == [accuracy(a) for a in line["a_A"]]
    expected = [[accuracy(a, e) for a in plane["a_A"]] for e in plane["e_E"]]
    assert plane["accuracy_EA"].tolist() == expected
    assert not np.array_equal(plane["accuracy_EA"], plane["accuracy_EA"].T)


def test_no_change_has_norm_zero(options, tmp_path):
    folder = tmp_path / "run"
    assert (
        invoke(
            "train", *arguments({**options, "lr": 1e-30, "steps": 1}), "--output", folder
        ).exit_code
        == 0
    )
    found = analyze(folder, Choices(points=2, test_prompts=4)).arrays
    assert not found["changes"]["norm_RLP"].any()
    assert not found["changes"]["effective_rank_RLP"].any()
    assert (found["changes"]["base_norm_LP"] > 0).all()
    assert len({*found["line"]["accuracy_A"].tolist()}) == 1


def test_norms_of_changes(analyses, study):
    change = {qk.name: each.matrix for qk, each in study.space.changes("run")}
    found = analyses.arrays["changes"]
    for layer in range(2):
        for role, leaf in enumerate(("q_proj", "k_proj")):
            matrix = change[f"model.layers.{layer}.self_attn.{leaf}"]
            assert found["norm_RLP"][0, layer, role] == pytest.approx(
                matrix.norm().item(), rel=1e-4
            )
            assert 1 <= found["effective_rank_RLP"][0, layer, role] <= min(matrix.shape)


def test_switching_off_no_head_changes_nothing(study, analyses):
    prompts = study.prompts
    with progress_bar("test", 60) as bar:
        plain, _ = study.evaluate({"run": 1.0}, prompts, bar)
        none, _ = study.evaluate(
            {"run": 1.0}, prompts, bar, head_gates(study.layers, 4, np.array([], int))
        )
    assert np.array_equal(plain, none)
    found = analyses.arrays["causality"]
    assert (found["heads_off_MS"][:, 0] == 0).all()
    for m in range(3):
        probabilities = analyses.arrays["evaluation"]["probabilities_MNC"][m]
        expected = (probabilities.argmax(1) == analyses.arrays["evaluation"]["targets_N"]).mean()
        assert found["induction_accuracy_MS"][m, 0] == expected
        assert (found["random_accuracy_MSD"][m, 0] == expected).all()


def test_a_head_that_is_off_equals_zero_columns_of_the_output_projection(study):
    prompts, head, layer = study.prompts, 1, 0
    with progress_bar("test", 40) as bar:
        gated, _ = study.evaluate(
            {}, prompts, bar, head_gates(study.layers, 4, np.array([layer * 4 + head]))
        )
        weight = study.space.model.model.layers[layer].self_attn.o_proj.weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight[:, head * 8 : (head + 1) * 8] = 0
        try:
            edited, _ = study.evaluate({}, prompts, bar)
        finally:
            with torch.no_grad():
                weight.copy_(before)
    assert np.allclose(gated, edited, atol=1e-6)


class Switchboard:
    """Stands in for a study: answers one more prompt correctly in every pass, so that an accuracy
    tells which heads were off.
    """

    layers = (1, 3, 5, 7)  # the model's numbers of its attention layers

    def __init__(self, models, prompts):
        self.models, self.passes = models, []
        self.prompts = [SimpleNamespace(target=0)] * prompts

    def evaluate(self, factors, prompts, bar, gates):
        assert list(gates) == list(self.layers)
        assert all(set(gates[layer].tolist()) <= {0, 1} for layer in gates)
        off = [(i, h) for i, layer in enumerate(gates) for h in range(4) if gates[layer][h] == 0]
        self.passes.append((factors, len(prompts), set(off)))
        correct = np.arange(len(prompts)) < len(self.passes)
        return np.eye(2)[np.where(correct, 0, 1)], None

    def off(self, accuracy, factors):
        """The heads that were off where this accuracy was measured."""
        at, prompts, heads = self.passes[round(accuracy * 90) - 1]
        assert (at, prompts) == (factors, 90)
        return heads


def test_heads_that_pass_most_often_are_switched_off_and_then_as_many_others():
    """Of 16 heads in two models, 6 and 12 pass in half of the prompts; half of all is the most."""
    rates = np.random.default_rng(0).permutation(np.linspace(0.3, 0.49, 32)).reshape(2, 4, 4)
    rates[0].reshape(-1)[[0, 3, 7, 8, 13]] = [0.6, 0.9, 0.7, 0.8, 0.95]
    rates[0, 3, 3] = 0.5  # half of the prompts is enough
    rates[1].reshape(-1)[2:14] += 0.5
    models = {"before": {"run": 0.0}, "after": {"run": 1.0}}
    study = Switchboard(models, prompts=99)
    # Of the second model's heads that never pass, those go first that look at labels most.
    rates[1, 3, 2:], rates[1].reshape(-1)[:2] = 0, 0
    on_labels = np.random.default_rng(1).uniform(size=(2, 2, 4, 4))
    masses = dict(zip(("correct_mass_MLH", "incorrect_mass_MLH"), on_labels, strict=True))
    found = causality(study, {"induction_rate_MLH": rates, **masses}, count=90)
    assert found["heads_off_MS"].tolist() == [[0, 4, 8, 6], [0, 4, 8, 8]]
    assert found["models_M"].tolist() == ["before", "after"]
    assert found["prompts"] == 90
    assert len(study.passes) == 1 + 3 * 4 + 1 + 2 * 4  # 0 heads once, and no size twice

    for m, factors in enumerate(models.values()):
        looks = on_labels.sum(0)[m]
        order = sorted(np.ndindex(4, 4), key=lambda head: (-rates[m][head], -looks[head]))
        for s, size in enumerate(found["heads_off_MS"][m]):
            best = study.off(found["induction_accuracy_MS"][m, s], factors)
            assert best == set(order[:size])
            draws = [study.off(value, factors) for value in found["random_accuracy_MSD"][m, s]]
            assert all(len(drawn) == size and not drawn & best for drawn in draws)
            # Of 16 heads without the best 8 there are only 8 others.
            assert len({frozenset(drawn) for drawn in draws}) == (1 if size in (0, 8) else 3)


def test_no_more_prompts_are_counted_than_there_are(study):
    assert line(study, 7)["prompts"] == 7
    assert line(study, 50)["prompts"] == len(study.prompts) == 20


def test_rows_of_examples_are_eager_rows(analyses, study):
    found = analyses.arrays["examples"]
    inner = decoder(study.space.move({"run": 1.0}))
    ends = np.cumsum(found["tokens_P"])
    for p, number in enumerate(found["prompts_P"]):
        prompt = study.prompts[number]
        assert str(found["texts_P"][p]) == study.session.written[number].text
        with torch.no_grad(), row_attention(study.space.model, "eager"):
            rows, _ = read_rows(
                inner,
                torch.tensor([prompt.input_ids]),
                torch.tensor([len(prompt.input_ids) - 1]),
                "eager",
            )
        mine = found["attention_MJT"][1, :, ends[p] - found["tokens_P"][p] : ends[p]]
        for j, (layer, head) in enumerate(found["heads_J2"]):
            assert np.abs(mine[j] - rows[layer][0, head].numpy()).max() < 1e-3
        for (start, end), label in zip(
            found["label_spans_PK2"][p], found["label_classes_PK"][p], strict=True
        ):
            assert str(found["texts_P"][p])[start:end] == study.session.data.task.label_words[label]


def test_chosen_prompts_are_of_every_kind():
    targets = np.array([0, 0, 0, 0, 0])
    predicted = np.array([[0, 1, 0, 1, 0], [0, 0, 1, 1, 0]])
    assert chosen_prompts(predicted, targets) == [0, 4, 1, 2, 3]
    rates = np.zeros((2, 2, 3))
    rates[1, 1, 2], rates[0, 0, 1] = 0.9, 0.5
    on_labels = np.zeros((2, 2, 3))
    assert top_heads(rates, on_labels)[:2] == [(1, 2), (0, 1)]
    rates[:, 1, 0] = 0.6  # in both models, but never as often as the best
    assert top_heads(rates, on_labels)[:3] == [(1, 2), (1, 0), (0, 1)]
    # Heads that never pass the filter follow by what they look at, not by their number.
    on_labels[1, 1, 1], on_labels[0, 0, 2] = 0.3, 0.2
    assert top_heads(rates, on_labels) == [(1, 2), (1, 0), (0, 1), (1, 1), (0, 2), (0, 0)]


def test_examples_are_of_the_chosen_prompts_and_heads(study):
    """Predictions made up so that the chosen prompts are not the first ones."""
    targets = np.array([prompt.target for prompt in study.prompts])
    before, after = targets.copy(), targets.copy()
    before[[4, 11]] = 1 - targets[[4, 11]]  # become correct
    after[17] = 1 - targets[17]  # becomes incorrect
    rates = np.zeros((3, 2, 4))
    rates[0, 1, 2], rates[2, 0, 3] = 0.5, 0.9
    made = {
        "probabilities_MNC": np.eye(2)[np.stack([before, after, 1 - targets])],
        "targets_N": targets,
        "induction_rate_MLH": rates,
        "correct_mass_MLH": np.zeros_like(rates),
        "incorrect_mass_MLH": np.zeros_like(rates),
    }
    found = examples(dataclasses.replace(study, layers=(5, 9)), made)
    chosen = [0, 1, 2, 4, 11, 17]
    assert found["prompts_P"].tolist() == chosen
    assert found["targets_P"].tolist() == targets[chosen].tolist()
    kinds = found["predicted_MP"] == found["targets_P"]
    assert kinds[0].tolist() == [True, True, True, False, False, True]
    assert kinds[1].tolist() == [True, True, True, True, True, False]
    assert not kinds[2].any()
    assert found["heads_J2"][:2].tolist() == [[5, 3], [9, 2]]
    assert found["tokens_P"].tolist() == [len(study.prompts[i].input_ids) for i in chosen]

    # Every token's characters, which follow each other in the prompt.
    ends = np.cumsum(found["tokens_P"])
    for p, number in enumerate(chosen):
        spans = found["spans_T2"][ends[p] - found["tokens_P"][p] : ends[p]]
        text = study.session.written[number].text
        covered = "".join(text[start:end] for start, end in spans)
        assert "".join(covered.split()) == "".join(text.split())


def test_accuracy_of_one_prompt_without_finite_probabilities_is_none():
    prompts = [SimpleNamespace(target=0)] * 4
    probabilities = np.eye(2)[[0, 0, 1, 0]]
    assert accuracy_of(probabilities, prompts) == 0.75
    probabilities[1] = np.nan
    assert np.isnan(accuracy_of(probabilities, prompts))


def test_one_prompt_without_finite_probabilities_stops_the_analysis(study, monkeypatch):
    def evaluate(self, factors, prompts, bar, gates=None):
        probabilities, report = real(self, factors, prompts, bar, gates)
        probabilities[3, 1] = np.nan
        return probabilities, report

    real = type(study).evaluate
    monkeypatch.setattr(type(study), "evaluate", evaluate)
    with pytest.raises(AbftError, match="probabilities before are no numbers"):
        evaluation(study)


def test_a_prompt_without_demonstrations_is_one_that_was_written_without_them(study):
    data = study.session.data
    shown, query = data.demonstrations[:4], data.test[0]
    whole = write_prompt(data.task, shown, query)
    for kept in ([0, 1, 2, 3], [1, 3], [2], [0], []):
        removed = [i for i in range(4) if i not in kept]
        expected = write_prompt(data.task, [shown[i] for i in kept], query)
        assert without(whole, data.task.template, removed) == expected


def test_the_demonstrations_that_heads_look_at_are_removed_first(study, analyses):
    """Against attention that is summed by hand, and prompts of the demonstrations that stay."""
    found = analyses.arrays["deletion"]
    assert found["removed_R"].tolist() == [0, 1, 2, 3]
    assert found["random_probability_MRD"].shape == (3, 4, 3)
    assert found["prompts"] == 20
    assert (found["attention_changed_MR"][:, 0] == 0).all()
    probabilities_NC = analyses.arrays["evaluation"]["probabilities_MNC"][1, :20]
    assert found["attention_probability_MR"][1, 0] == pytest.approx(probabilities_NC.max(1).mean())

    model = study.space.move({"run": 1.0})
    shorter = []
    for prompt, written in zip(study.prompts, study.session.written, strict=True):
        ids = torch.tensor([prompt.input_ids])
        with torch.no_grad(), row_attention(model):
            rows = read_rows(decoder(model), ids, torch.tensor([ids.shape[1] - 1]))[0]
        on_labels = torch.stack(rows)[..., list(prompt.label_positions)].flatten(0, -2)
        n = ids.shape[1]
        passes = on_labels.sum(1) > 4 / (4 + np.log(n))
        chosen = on_labels[passes] if passes.any() else on_labels
        most = int(chosen.sum(0).argmax())
        shorter.append(without(written, study.session.data.task.template, [most]))
    with progress_bar("test", 20) as bar:
        expected_NC, _ = study.evaluate({"run": 1.0}, study.session.encode(shorter), bar)
    predicted_N = probabilities_NC.argmax(1)
    assert found["attention_probability_MR"][1, 1] == pytest.approx(
        expected_NC[np.arange(20), predicted_N].mean(), abs=1e-4
    )
    assert found["attention_changed_MR"][1, 1] == (expected_NC.argmax(1) != predicted_N).mean()


def test_a_single_demonstration_is_not_removed(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"k": 1}))
    analyses = analyze(copy, Choices(test_prompts=4, points=2))
    assert "at least two" in analyses.missing["deletion"]

    # It does not make the model load again.
    monkeypatch.setattr("abft.analysis.analyze.open_study", None)
    assert "at least two" in analyze(copy, Choices(test_prompts=4, points=2)).missing["deletion"]


def test_only_what_is_missing_damaged_or_outdated_is_computed_again(run, e2e, analyses, caplog):
    folder = run / "analysis"
    (folder / "line.npz").write_bytes((folder / "line.npz").read_bytes()[:100])
    damaged = bytearray((folder / "causality.npz").read_bytes())
    damaged[len(damaged) // 3 : len(damaged) // 2] = b"x" * (len(damaged) // 2 - len(damaged) // 3)
    (folder / "causality.npz").write_bytes(damaged)
    (folder / "changes.npz").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    again = analyze(run, Choices(e2e=e2e, points=20, resolution=3))
    assert "line.npz is damaged" in caplog.text
    changed = {
        path.name
        for path in folder.glob("*.npz")
        if times.get(path.name) != path.stat().st_mtime_ns
    }
    assert changed == {"line.npz", "causality.npz", "changes.npz", "plane.npz"}
    assert np.array_equal(again.arrays["line"]["accuracy_A"], analyses.arrays["line"]["accuracy_A"])
    assert not list(folder.glob(".*"))


def test_each_analysis_is_computed_again_if_what_it_depends_on_changed(run, e2e, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    few = Choices(e2e=e2e, test_prompts=6, points=4, resolution=2)
    analyze(copy, few)

    def computed(**changes):
        """What choices that differ from `few` compute again; afterwards `few` is on disk again."""
        times = {p.stem: p.stat().st_mtime_ns for p in (copy / "analysis").glob("*.npz")}
        analyze(copy, dataclasses.replace(few, **changes))
        again = {
            path.stem
            for path in (copy / "analysis").glob("*.npz")
            if times[path.stem] != path.stat().st_mtime_ns
        }
        analyze(copy, few)
        return again

    assert computed() == set()
    assert computed(resolution=3) == {"plane"}
    assert computed(points=3) == {"line", "plane", "causality", "deletion"}
    # All of 5 prompts are evaluated, and still the first 4 of them at every point.
    assert computed(test_prompts=5) == set(DOCUMENTED) - {"line", "plane", "changes"}
    # The line knows no other run, and without one the plane stays as it was.
    assert computed(e2e=None) == set(DOCUMENTED) - {"line", "plane"}


def test_heads_of_families_without_the_interface_cannot_be_switched_off(study, monkeypatch):
    able = capabilities(study.session.model)
    monkeypatch.setitem(vars(able), "implementation", "eager")
    with pytest.raises(AbftError, match="cannot be switched off"):
        study.evaluate({}, study.prompts, progress_bar("test", 1), {0: torch.ones(4)})


def test_a_run_without_a_task_is_one_of_the_default_task(e2e, tmp_path):
    def run_of(name, **settings):
        folder = shutil.copytree(e2e, tmp_path / name)
        (folder / "config.yaml").write_text(
            yaml.safe_dump(dataclasses.asdict(RunConfig(**settings)))
        )
        return folder

    ours = run_of("ours")
    check_e2e_run(ours, run_of("same", task="SST2", objective="e2e"))
    with pytest.raises(AbftError, match="has task 'SST2'.* has 'TREC'"):
        check_e2e_run(ours, run_of("other-task", task="TREC", objective="e2e"))
    # With another test file the same texts are parted otherwise: its training may hold our test.
    for name, value in (("test_data", "t.csv"), ("template", "{text} {label}\n")):
        theirs = run_of(f"other-{name}", data="a.csv", objective="e2e", **{name: value})
        with pytest.raises(AbftError, match=f"has {name} "):
            check_e2e_run(run_of(f"ours-{name}", data="a.csv"), theirs)
    changed = run_of("changed", task="SST2", objective="e2e")
    record = json.loads((changed / "task.json").read_text())
    (changed / "task.json").write_text(json.dumps({**record, "data": "0"}))
    with pytest.raises(AbftError, match="was another file"):
        check_e2e_run(ours, changed)


def test_bad_input(options, run, e2e, tmp_path):
    assert "no such folder" in refused("analyze", tmp_path / "nothing")
    assert "expected at least 1" in refused("analyze", run, "--points", 0)
    assert "expected at least 2" in refused("analyze", run, "--resolution", 1)
    assert "is no end-to-end run" in refused("analyze", run, "--e2e", run)
    other = shutil.copytree(e2e, tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("tiny-llama", "another"))
    assert "base model and data have to be the same" in refused("analyze", run, "--e2e", other)
    (other / "config.yaml").write_text(config)
    assert "test_prompts" in refused("analyze", run, "--test-prompts", 0)
    missing = shutil.copytree(run, tmp_path / "moved", ignore=shutil.ignore_patterns("analysis"))
    (missing / "analysis").write_text("in the way")
    assert "cannot be written" in refused("analyze", missing)
    (other / "metrics.json").unlink()
    assert "is not finished" in refused("analyze", other)


def test_command_line(run, analyses):
    result = invoke("analyze", run, "--points", 20, "--test-prompts", 20)
    assert result.exit_code == 0, result.output
    assert "needs an end-to-end run" in " ".join(result.stdout.split())
    assert "causality.npz" in result.stdout
    found = json.loads(invoke("analyze", run, "--points", 20, "--json").stdout)
    assert set(found["found"]) == set(DOCUMENTED) - {"plane"}


def test_a_base_model_that_moved(run, model_folder, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(model_folder), str(tmp_path / "gone")))
    assert "gone" in refused("analyze", moved, "--points", 2, "--test-prompts", 4)
    result = invoke(
        "analyze",
        moved,
        "--points",
        2,
        "--test-prompts",
        4,
        "--model",
        model_folder,
        "--device",
        "cpu",
    )
    assert result.exit_code == 0, result.output


def test_rows_are_thinned_to_fit(study, analyses, monkeypatch):
    from abft.analysis import examples as module

    whole = analyses.arrays["examples"]["attention_MJT"]
    monkeypatch.setattr(module, "ROW_ENTRIES", whole.size)
    fitting = examples(study, analyses.arrays["evaluation"])
    assert np.array_equal(fitting["attention_MJT"], whole)
    monkeypatch.setattr(module, "ROW_ENTRIES", whole.size // 3)
    thinned = examples(study, analyses.arrays["evaluation"])
    assert thinned["attention_MJT"].size <= whole.size // 3
    assert len(thinned["heads_J2"]) == module.FEWEST_HEADS
    assert 1 <= len(thinned["prompts_P"]) < len(analyses.arrays["examples"]["prompts_P"])


def test_norms_of_layers_that_did_not_train(options, tmp_path):
    folder = tmp_path / "run"
    settings = {**options, "layers": "1", "steps": 1}
    assert invoke("train", *arguments(settings), "--output", folder).exit_code == 0
    found = analyze(folder, Choices(points=2, test_prompts=4)).arrays["changes"]
    assert (found["base_norm_LP"] > 0).all()
    assert not found["norm_RLP"][0, 0].any()
    assert (found["norm_RLP"][0, 1] > 0).all()
