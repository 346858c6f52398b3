"""Scenarios against StaICC 0.1.1's own objects, and against what their names promise."""

import contextlib
import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

import abft.data.builtin
from abft.bench.calibration import calibration_prompts
from abft.bench.rewrites import alternate_templates, renamed
from abft.bench.scenarios import PAPER_TASKS, SCENARIOS, Setting
from abft.data.builtin import TASKS, load_task
from abft.data.encoding import encode, label_tokens
from abft.data.other_tasks import other_tasks
from abft.data.prompts import training_prompts
from abft.data.splits import text_key
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from abft.scoring.calibration import calibrated, prior
from tiny import staicc_loader


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


with quiet():
    StaICC = pytest.importorskip("StaICC.util.experimentor")
    from StaICC.util import functional


def setting(name, tokenizer=None, prompt_style="staicc", count=1024, k=4):
    return Setting(
        load_task(name, prompt_style),
        k,
        count,
        prompt_style,
        lambda other: load_task(other, prompt_style),
        tokenizer,
    )


def predicted(prompts, classes):
    """Probabilities that depend on the prompt's text alone; powers of two, so that their sum is
    exactly 1.
    """
    rows = []
    for text in prompts:
        digest = hashlib.sha256(text.encode()).digest()
        row = np.full(classes, 1 / 64)
        row[digest[0] % classes] += 1 - classes / 64
        rows.append(row)
    return np.array(rows)


class Spy:
    """A forward function for StaICC that keeps the prompts it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompt, label_space):
        self.asked += prompt
        return predicted(prompt, len(label_space)).tolist()


def theirs(kind, name, tests=512, **options):
    sizes = [1024, abft.data.builtin.BUILTIN[name].demonstrations, tests]
    with quiet():
        data = staicc_loader(name)
        return getattr(StaICC, kind)(original_dataset=data, k=4, dividing=sizes, **options)


def run_both(kind, name, scenario, **options):
    """StaICC's result and ours on the same predictions; the prompts have to be the same, byte for
    byte.
    """
    spy, experiment = Spy(), theirs(kind, name, **options)
    with quiet(), np.errstate(all="ignore"):
        result, success = experiment.auto_run(forward_inference=spy, batched_inference=True)
    assert success
    sets = SCENARIOS[scenario].write(setting(name))
    assert [p.text for s in sets for p in s.prompts] == spy.asked
    probabilities = [predicted([p.text for p in s.prompts], len(s.data.task.labels)) for s in sets]
    return result, SCENARIOS[scenario].measure(sets, probabilities), sets, probabilities


@pytest.mark.parametrize("name", ["SST2", "TREC", "FP", "TEE"])
def test_template_consistency_is_staiccs(name):
    result, ours, _, _ = run_both(
        "template_sensitivity_experimentor", name, "template_consistency", tests=100
    )
    assert ours["consistency"] == pytest.approx(result["sensitivity"]["consistency"], abs=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_alternate_templates_are_staiccs(name):
    with quiet():
        loader = staicc_loader(name)
    alternates = loader.get_alternate_template()
    tasks = alternate_templates(load_task(name, "staicc").task)
    assert {t.template.instruction for t in tasks} == set(alternates["instruction"])
    assert {t.template.before_text for t in tasks} == {
        prefix[0] for prefix in alternates["input_text_prefixes"]
    }
    assert {t.template.before_label.lstrip(" ") for t in tasks} == set(alternates["label_prefix"])
    assert {t.template.after_label for t in tasks} == set(alternates["label_affix"])
    assert len({(t.template.pattern, t.template.instruction) for t in tasks}) == 9


@pytest.mark.parametrize("name", ["SST2", "FP"])
def test_demonstration_consistency_is_staiccs(name):
    result, ours, _, _ = run_both(
        "demonstration_sensitivity_experimentor", name, "demonstration_consistency"
    )
    assert ours["consistency"] == pytest.approx(result["sensitivity"]["consistency"], abs=1e-12)


@pytest.mark.parametrize("name", ["SST2", "TREC"])
def test_label_noise_is_staiccs_but_for_its_axis(name):
    result, ours, _, _ = run_both("GLER_experimentor", name, "label_noise")
    accuracies = [result[str(i)]["accuracy"] for i in range(5)]
    assert [ours[f"noise={rate:g}"] for rate in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(
        accuracies
    )
    slope, _ = functional.linear_regression(
        [1, 0.75, 0.5, 0.25, 0], accuracies
    )  # x = share of correct labels
    assert ours["gler"] == pytest.approx(slope, abs=1e-12)
    # StaICC's own x runs 1, 0.75, 0.25, -0.5, -1.5 instead.
    assert result["sensitivity"]["accuracy"][0] == pytest.approx(
        functional.linear_regression([1, 0.75, 0.25, -0.5, -1.5], accuracies)[0]
    )
    assert abs(result["sensitivity"]["accuracy"][0] - ours["gler"]) > 1e-6


@pytest.mark.parametrize("kind", ["contextual", "domain"])
def test_prior_biases_are_staiccs(kind):
    result, ours, _, probabilities = run_both(
        "prior_bias_experimentor", "TREC", f"{kind}_bias", bias_type=kind
    )
    mean = probabilities[0].mean(0)
    assert mean == pytest.approx(np.array(result["distribution"]), abs=1e-12)
    expected = -sum(p * np.log(p) for p in mean)
    assert ours["entropy"] == pytest.approx(expected, abs=1e-12)
    assert ours["bias"] == pytest.approx(1 - expected / np.log(6))
    if sum(result["distribution"]) == 1:  # else StaICC takes a softmax of the probabilities first
        assert ours["entropy"] == pytest.approx(result["entropy"], abs=1e-12)
    else:
        assert result["entropy"] == pytest.approx(
            functional.entropy(functional.softmax(result["distribution"])), abs=1e-9
        )


def test_posterior_bias_is_staiccs():
    result, ours, _, _ = run_both("post_bias_experimentor", "FP", "posterior_bias")
    assert ours["kl"] == pytest.approx(result["DL div."], abs=1e-12)


def test_label_noise_with_few_demonstrations_is_fitted_to_what_was_written():
    sets = SCENARIOS["label_noise"].write(setting("SST2", count=40, k=2))
    assert [s.name for s in sets] == ["noise=0", "noise=0.5", "noise=1"]
    clean = sets[0].prompts
    for s, wrong in zip(sets, (0, 1, 2), strict=True):
        for a, b in zip(clean, s.prompts, strict=True):
            assert (
                sum(x != y for x, y in zip(a.label_classes, b.label_classes, strict=True)) == wrong
            )
    right = [np.eye(2)[s.targets] for s in sets]
    falling = [
        right[0],
        np.eye(2)[np.where(np.arange(40) < 20, sets[1].targets, 1 - sets[1].targets)],
        1 - right[2],
    ]
    assert SCENARIOS["label_noise"].measure(sets, falling)["gler"] == pytest.approx(
        1
    )  # 100%, 50%, 0%


def test_unseen_labels_by_default_are_drawn_from_the_other_labels():
    (unseen,) = SCENARIOS["unseen_label"].write(
        setting("TREC", prompt_style="consistent", count=300, k=16)
    )
    assert all(prompt.target not in prompt.label_classes for prompt in unseen.prompts)
    assert len({prompt.label_classes for prompt in unseen.prompts}) > 250


def test_unseen_labels_give_up_in_time():
    data = load_task("SST2", "staicc")
    few = [e for e in data.demonstrations if e.label == 0][:16]
    pool = tuple(few + [e for e in data.demonstrations if e.label == 1])
    lopsided = abft.data.splits.TaskData(
        data.task, data.train, pool, tuple(e for e in data.test if e.label == 1)
    )
    with pytest.raises(AbftError, match="consistent prompt style"):
        SCENARIOS["unseen_label"].write(Setting(lopsided, 16, 4, "staicc", load_task, None))


@pytest.mark.parametrize("name", ["SST2", "TREC"])
def test_unseen_labels_are_staiccs(name):
    experiment = theirs("single_experimentor", name)
    with quiet():
        experiment.set_out_of_domain_mode()
        expected = experiment.prompt_set()
    (unseen,) = SCENARIOS["unseen_label"].write(setting(name))
    assert [p.text for p in unseen.prompts] == expected
    assert all(prompt.target not in prompt.label_classes for prompt in unseen.prompts)
    (fewer,) = SCENARIOS["unseen_label"].write(setting(name, count=100))
    assert fewer.prompts == unseen.prompts[:100]


def test_unseen_label_needs_other_labels():
    data = load_task("SST2")
    only = tuple(e for e in data.demonstrations if e.label == 1)
    broken = abft.data.splits.TaskData(data.task, data.train, only, data.test)
    with pytest.raises(AbftError, match="another label"):
        SCENARIOS["unseen_label"].write(Setting(broken, 4, 16, "consistent", load_task, None))


def test_zero_shot_asks_each_query_once(bpe):
    (asked,) = SCENARIOS["zero_shot"].write(setting("TREC", bpe))
    assert len(asked.prompts) == 512
    assert all(prompt.label_spans == () for prompt in asked.prompts)
    assert asked.prompts[3].text.startswith("question: ")


def test_k_shot_changes_the_demonstrations_only():
    sets = SCENARIOS["k_shot"].write(setting("SST2", count=50))
    assert [s.k for s in sets] == [1, 2, 4, 8, 16]
    assert all(len(p.label_spans) == s.k for s in sets for p in s.prompts)
    assert len({tuple(p.target for p in s.prompts) for s in sets}) == 1


def test_renamed_labels_change_words_and_nothing_else():
    for task in TASKS.values():
        found = renamed(task)
        assert list(found) == ["synonyms", "swapped", "arbitrary"]
        for other in found.values():
            assert (other.labels, other.template) == (task.labels, task.template)
            assert not any(a == b for a, b in zip(other.label_words, task.label_words, strict=True))
        # Each class has the next one's word.
        assert found["swapped"].label_words[-1] == task.label_words[0]
        assert found["swapped"].label_words[:-1] == task.label_words[1:]
    sets = SCENARIOS["renamed_labels"].write(setting("SST2", count=20))
    (standard,) = SCENARIOS["standard"].write(setting("SST2", count=20))
    for renamed_set in sets:
        assert list(renamed_set.targets) == list(standard.targets)
        word = renamed_set.data.task.label_words[renamed_set.prompts[0].label_classes[0]]
        start, end = renamed_set.prompts[0].label_spans[0]
        assert renamed_set.prompts[0].text[start:end] == word


def test_alternates_of_own_templates_keep_their_line_ends(review_data):
    pattern = "Review: {text}\nSentiment: {label}\n\n"
    task = replace(review_data.task, template=Template(pattern))
    patterns = [each.template.pattern for each in alternate_templates(task)]
    assert patterns[0] == pattern
    assert len(set(patterns)) == 9
    assert all("{text}\n" in each for each in patterns)


def test_own_data_has_no_synonyms(review_data):
    assert list(renamed(review_data.task)) == ["swapped", "arbitrary"]
    assert len(alternate_templates(review_data.task)) == 9


def test_random_queries_keep_demonstrations_and_targets(bpe):
    (scrambled,) = SCENARIOS["random_query"].write(setting("SST2", bpe, "consistent", 30))
    (standard,) = SCENARIOS["standard"].write(setting("SST2", bpe, "consistent", 30))
    assert list(scrambled.targets) == list(standard.targets)
    for a, b in zip(scrambled.prompts, standard.prompts, strict=True):
        end = b.label_spans[-1][1]
        assert a.text[:end] == b.text[:end]
        assert a.text != b.text
    assert scrambled.data.test == standard.data.test
    again = SCENARIOS["random_query"].write(setting("SST2", bpe, "consistent", 30))
    assert again == [scrambled]


def test_out_of_domain_asks_all_other_tasks_and_never_a_training_text():
    for source in ("SST2", "SST5"):
        trained = {text_key(example.text) for example in load_task(source).train}
        sets = SCENARIOS["out_of_domain"].write(
            setting(source, prompt_style="consistent", count=512)
        )
        assert [s.name for s in sets] == [name for name in PAPER_TASKS if name != source]
        for s in sets:
            assert not trained & {text_key(e.text) for e in (*s.data.test, *s.data.demonstrations)}
            assert len(s.prompts) == 512


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("prompt_style", ["consistent", "staicc"])
def test_no_test_text_is_in_a_training_or_calibration_prompt(name, prompt_style):
    data = load_task(name, prompt_style)
    held_out = {text_key(example.text) for example in (*data.test, *data.demonstrations)} - {
        ""
    }  # one tweet is empty
    prompts = training_prompts(data, 200, 4, seed=3, prompt_style=prompt_style)
    for kind in ("contextual", "domain", "batch"):
        prompts += calibration_prompts(kind, data, 100, 4, 3, prompt_style)
    pool = {example.text for example in data.train}
    assert not {text_key(text) for text in pool} & held_out
    template = data.task.template
    for prompt in prompts:
        start = 0
        for span in prompt.label_spans:
            text = (
                prompt.text[start : span[0]]
                .removeprefix(template.before_text)
                .removesuffix(template.before_label)
            )
            assert text in pool
            start = span[1] + len(template.after_label)
        query = prompt.text[start:].removeprefix(template.before_text)
        assert (
            text_key(
                query.removesuffix(template.before_label).removesuffix(
                    template.before_label.rstrip(" ")
                )
            )
            not in held_out
        )
    if prompt_style == "consistent":
        assert not {text_key(e.text) for e in data.test} & {
            text_key(e.text) for e in data.demonstrations
        }


@pytest.mark.parametrize("name", ["SST2", "MR", "SST5", "SUBJ", "TREC"])
def test_metaicl_never_sees_the_target(name):
    target = load_task(name)
    own = {text_key(e.text) for e in (*target.train, *target.demonstrations, *target.test)}
    others = other_tasks(target)
    assert [d.task.name for d in others] == [task for task in TASKS if task != name]
    for data in others:
        assert not own & {text_key(example.text) for example in data.train}


def test_calibration_by_hand():
    """The prior is a mean over prompts; each row is divided by it, and by the row's own sum."""
    p = prior(np.array([[0.8, 0.15, 0.05], [0.4, 0.45, 0.15]]))
    assert p == pytest.approx([0.6, 0.3, 0.1])
    # Ratios 1, 1, 1 and 1/2, 1, 4.
    measured = calibrated(np.array([[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]), p)
    expected = [1 / 3, 1 / 3, 1 / 3], [1 / 11, 2 / 11, 8 / 11]
    assert measured == pytest.approx(np.array(expected))
    # Small priors count in full: ratios 0.5 / 0.999 and 0.5 / 0.001.
    assert calibrated([[0.5, 0.5]], [0.999, 0.001]) == pytest.approx(np.array([[0.001, 0.999]]))


def test_calibrated_priors_are_uniform():
    seen = np.random.default_rng(0).dirichlet([5, 1, 1], 512)
    p = prior(seen)
    assert calibrated(p[None], p)[0] == pytest.approx([1 / 3] * 3, abs=1e-12)
    after = calibrated(seen, p)
    assert after.sum(1) == pytest.approx(np.ones(512))
    assert (after.argmax(1) == 0).mean() < (seen.argmax(1) == 0).mean()
    assert calibrated(seen, [1 / 3] * 3) == pytest.approx(seen)
    assert np.isfinite(calibrated(np.array([[1.0, 0.0]]), [1.0, 0.0])).all()
    # Labels of many tokens are improbable: ratios 0.3 / 0.6 and 4e-41 / 8e-41.
    assert calibrated([[0.3, 4e-41]], [0.6, 8e-41])[0] == pytest.approx([0.5, 0.5])


def test_calibration_prompts_differ_in_their_queries_only():
    data = load_task("TREC")
    pool = {example.text for example in data.train}
    words = {word for text in pool for word in text.split()}
    queries = {}
    for kind in ("contextual", "domain", "batch"):
        prompts = calibration_prompts(kind, data, 30, 4, seed=0)
        assert all(len(prompt.label_spans) == 4 for prompt in prompts)
        queries[kind] = [
            p.text[p.label_spans[-1][1] :]
            .strip()
            .removeprefix("question:")
            .removesuffix("target:")
            .strip()
            for p in prompts
        ]
        assert calibration_prompts(kind, data, 30, 4, seed=0) == prompts
        assert calibration_prompts(kind, data, 30, 4, seed=1) != prompts
    assert set(queries["contextual"]) == {"N/A", "[MASK]", ""}
    assert all(set(query.split()) <= words for query in queries["domain"])
    assert not set(queries["domain"]) & pool
    assert set(queries["batch"]) <= {text.strip() for text in pool}


def queries_of(kind, data, count, k):
    """(texts of the demonstrations, text of the query) of every calibration prompt."""
    prompts = calibration_prompts(kind, data, count, k, seed=0)
    parts = [prompt.text.removesuffix(" label:").split("\n") for prompt in prompts]
    texts = [[part.removeprefix("text: ").split(" label:")[0] for part in each] for each in parts]
    return [(shown, query) for *shown, query in texts]


def test_calibration_prompts_from_a_pool_of_five_texts():
    """Four demonstrations and the text that is left; words as often as the pool has them."""
    texts = ["a a a b", "a a b a", "a b a a", "b a a a", "a a a b c c"]
    examples = tuple(Example(text, i % 2) for i, text in enumerate(texts))
    task = Task("own", Template("text: {text} label: {label}\n"), ("x", "y"), ("x", "y"))
    data = abft.data.splits.TaskData(task, examples, examples, examples[:1])

    drawn = queries_of("batch", data, 40, 4)
    assert all(sorted([*shown, query]) == sorted(texts) for shown, query in drawn)
    assert {query for _, query in drawn} == {*texts}
    contextual = queries_of("contextual", data, 7, 4)
    neutral = ["N/A", "[MASK]", ""]
    assert [query.strip() for _, query in contextual] == [*neutral, *neutral, neutral[0]]

    with pytest.raises(AbftError, match="k = 5 demonstrations and a query need 6"):
        calibration_prompts("batch", data, 1, 5, seed=0)

    # 22 words in 5 texts: 4 a query, of which a is 15, b 5 and c 2 of 22.
    words = [query.split() for _, query in queries_of("domain", data, 500, 4)]
    assert {len(query) for query in words} == {4}
    shares = [sum(query.count(word) for query in words) / 2000 for word in "abc"]
    assert shares == pytest.approx([15 / 22, 5 / 22, 2 / 22], abs=0.04)


def test_fewer_prompts_than_a_scenario_asks_for():
    """Scenarios with sizes of their own write no more than the setting's queries."""
    for name, sets, prompts in (
        ("template_consistency", 9, 7),
        ("demonstration_consistency", 1, 7 * 8),
        ("zero_shot", 1, 7),
    ):
        made = SCENARIOS[name].write(setting("SST2", count=7))
        assert [len(each.prompts) for each in made] == [prompts] * sets
        if sets == 9:
            assert [each.name for each in made] == [f"template {n}" for n in range(1, 10)]
        targets = made[0].targets.reshape(-1, 7)
        assert (targets == targets[0]).all()
    data = load_task("SST2", "staicc")
    two = abft.data.splits.TaskData(data.task, data.train, data.demonstrations, data.test[:2])
    few = Setting(two, 4, 16, "staicc", load_task, None)
    for name, prompts in (
        ("template_consistency", 2),
        ("demonstration_consistency", 2 * 8),
        ("zero_shot", 2),
    ):
        assert len(SCENARIOS[name].write(few)[0].prompts) == prompts


def test_noise_rates_are_rounded_down_and_named_by_what_was_written():
    sets = SCENARIOS["label_noise"].write(setting("TREC", count=5, k=6))
    assert [s.name for s in sets] == [f"noise={n / 6:g}" for n in (0, 1, 3, 4, 6)]
    for s, incorrect in zip(sets, (0, 1, 3, 4, 6), strict=True):
        for clean, noisy in zip(sets[0].prompts, s.prompts, strict=True):
            pairs = zip(clean.label_classes, noisy.label_classes, strict=True)
            steps = [(b - a) % 6 for a, b in pairs]
            assert sorted(steps) == [0] * (6 - incorrect) + [1] * incorrect


def test_slopes_of_accuracy_and_macro_f1_by_hand():
    """Predictions that fall to one class: the slopes of the two metrics differ."""
    sets = SCENARIOS["label_noise"].write(setting("SST2", count=60, k=2))
    assert [s.name for s in sets] == ["noise=0", "noise=0.5", "noise=1"]
    targets = sets[0].targets
    ones = np.ones(60, int)
    predictions = [targets, np.where(np.arange(60) < 30, targets, ones), ones]
    measured = SCENARIOS["label_noise"].measure(sets, [np.eye(2)[p] for p in predictions])
    for name, score in (
        ("gler", lambda p: (p == targets).mean()),
        ("gler_macro_f1", lambda p: f1_score(targets, p, average="macro")),
    ):
        # x = 1, 0.5, 0: the middle has no weight in the slope.
        assert measured[name] == pytest.approx(score(predictions[0]) - score(predictions[2]))
    assert measured["gler_macro_f1"] - measured["gler"] > 0.05


def test_template_measures_by_hand():
    sets = SCENARIOS["template_consistency"].write(setting("SST2", count=10))
    targets = sets[0].targets
    # Six templates answer correctly, three with the other class.
    predictions = [targets] * 6 + [1 - targets] * 3
    measured = SCENARIOS["template_consistency"].measure(sets, [np.eye(2)[p] for p in predictions])
    assert measured == {"consistency": pytest.approx(6 / 9), "accuracy": pytest.approx(6 / 9)}


def test_exactly_enough_demonstrations_of_other_labels():
    data = load_task("SST2")
    others = [e for e in data.demonstrations if e.label == 0][:4]
    pool = tuple(others + [e for e in data.demonstrations if e.label == 1][:8])
    test = tuple(e for e in data.test if e.label == 1)[:3]
    four = abft.data.splits.TaskData(data.task, data.train, pool, test)
    (unseen,) = SCENARIOS["unseen_label"].write(Setting(four, 4, 3, "consistent", load_task, None))
    assert [prompt.label_classes for prompt in unseen.prompts] == [(0, 0, 0, 0)] * 3


class Recorder:
    """A tokenizer that keeps how many tokens it was given to decode."""

    def __init__(self, tokenizer):
        self.tokenizer, self.lengths = tokenizer, []
        self.vocab_size = tokenizer.vocab_size
        self.all_special_ids = tokenizer.all_special_ids

    def __call__(self, text, **options):
        return self.tokenizer(text, **options)

    def decode(self, ids):
        self.lengths.append(len(ids))
        return self.tokenizer.decode(ids)


def test_random_queries_have_as_many_tokens_as_the_queries_they_replace(bpe):
    recorder = Recorder(bpe)
    asked = setting("SST2", recorder, "consistent", 20)
    empty = abft.data.splits.TaskData(
        asked.data.task,
        asked.data.train,
        asked.data.demonstrations,
        (*asked.data.test[:5], Example("", 0)),
    )
    SCENARIOS["random_query"].write(Setting(empty, 4, 8, "consistent", load_task, recorder))
    texts = [empty.test[i % 6].text for i in range(8)]
    lengths = [len(bpe(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert lengths[5] == 0
    assert recorder.lengths[-8:] == [*lengths[:5], 1, *lengths[6:]]


def test_perplexity_is_of_news_of_another_task():
    texts = SCENARIOS["perplexity"].texts
    for name, source in (("SST2", "AGNews"), ("FP", "AGNews"), ("AGNews", "FP")):
        expected = [example.text for example in load_task(source).test[:256]]
        assert texts(setting(name, prompt_style="consistent")) == expected


def test_word_tokens_of_every_template_are_found(bpe):
    """Alternate templates work in the consistent prompt style: the label token is the one inside
    demonstrations.
    """
    for task in alternate_templates(TASKS["SST2"]):
        data = abft.data.splits.TaskData(
            task,
            *[getattr(load_task("SST2"), part) for part in ("train", "demonstrations", "test")],
        )
        words = label_tokens(bpe, task)
        (only,) = SCENARIOS["standard"].write(Setting(data, 4, 3, "consistent", load_task, bpe))
        for prompt in encode(bpe, only.prompts):
            assert [prompt.input_ids[p] for p in prompt.label_positions] == [
                words[c] for c in prompt.label_classes
            ]
