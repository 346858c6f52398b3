"""A mixture of tasks: other label words, classes, templates and shots in every group of prompts."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import abft.runs.train
from abft.data.builtin import BUILTIN, load_task
from abft.data.datasets import load_data
from abft.data.encoding import encode, first_tokens, label_tokens
from abft.data.label_words import single_token_words, written_as
from abft.data.lengths import fit_texts
from abft.data.mixture import TEXT_TOKENS, evaluation_groups, training_groups
from abft.data.mixture_settings import mixed_words, shot_range, task_list
from abft.data.other_tasks import mixture_tasks
from abft.data.packing import pack
from abft.data.splits import TaskData, text_key
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from abft.model.attention import row_attention
from abft.runs.config import RunConfig, check_effect, resolve
from abft.runs.run_folder import read_config
from abft.runs.session import open_session
from abft.runs.train import make_trainer
from abft.scoring.groups import read_groups
from abft.scoring.scorer import label_probabilities
from command_line import invoke
from tiny import tiny_model

SOURCES = ("SST2", "TREC", "TEE")


@pytest.fixture(scope="module")
def groups(bpe):
    sources = [load_task(name) for name in SOURCES]
    return training_groups(sources, bpe, count=24, queries=6, seed=0)


def test_pools_of_arbitrary_words_are_disjoint_and_one_token(bpe):
    train, test = single_token_words(bpe, "train"), single_token_words(bpe, "test")
    assert not set(train) & set(test)
    for word in (*train[:20], *test[:20]):
        assert len(bpe(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def test_permuted_words_are_all_of_another_class(bpe):
    for name, record in BUILTIN.items():
        task = load_task(name).task
        permuted = written_as(task, "permuted", bpe, "train", random.Random(0))
        assert sorted(permuted.label_words) == sorted(record.words.split())
        assert all(a != b for a, b in zip(permuted.label_words, task.label_words, strict=True))


def test_groups_differ_in_everything_and_repeat_with_their_seed(bpe, groups):
    sources = [load_task(name) for name in SOURCES]
    assert training_groups(sources, bpe, count=24, queries=6, seed=0) == groups
    # A longer mixture begins with a shorter one.
    assert training_groups(sources, bpe, count=3, queries=6, seed=0) == groups[:3]
    assert training_groups(sources, bpe, count=3, queries=6, seed=1) != groups[:3]

    assert {group.task.name for group in groups} == set(SOURCES)
    assert {group.words for group in groups} == {"own", "arbitrary", "permuted"}
    assert len({group.task.template for group in groups}) > 3
    assert len({len(group.task.labels) for group in groups}) > 2
    assert len({max(len(p.label_positions) for p in group.prompts) for group in groups}) > 5


def test_every_query_can_be_answered_from_its_demonstrations(bpe, groups):
    for group in groups:
        tokens = first_tokens(group.label_tokens)
        assert len(group.prompts) == 6
        for prompt in group.prompts:
            assert prompt.target in prompt.label_classes
            assert prompt.answer == tokens[prompt.target]
            read = [prompt.input_ids[position] for position in prompt.label_positions]
            assert read == [tokens[label] for label in prompt.label_classes]


def test_demonstrations_as_queries_cost_no_token(groups):
    # Prompts inside the longest one add no token to the pack; those after it add their own text.
    for group in groups:
        longest = max(group.prompts, key=lambda prompt: len(prompt.input_ids))
        k = len(longest.label_positions)
        inside = [prompt for prompt in group.prompts if len(prompt.label_positions) < k]
        after = [prompt for prompt in group.prompts if len(prompt.label_positions) == k]
        assert len(pack([*inside, longest]).input_ids) == len(longest.input_ids)
        assert after
    assert any(
        len({len(prompt.label_positions) for prompt in group.prompts}) == 6 for group in groups
    )


def test_small_pools_ask_but_never_show_twice(bpe, review_data):
    (group,) = training_groups([review_data], bpe, 1, 64, 0, shots=(16, 16), words=("own",))
    for prompt in group.prompts:
        assert len(prompt.label_positions) <= 16
    texts = [bpe.decode(prompt.input_ids) for prompt in group.prompts]
    last = [text.rsplit("\n", 1)[-1] for text in texts]
    shown = Counter(line for text in texts[-1:] for line in text.split("\n")[:-1])
    assert max(shown.values()) == 1
    assert not any(line.removesuffix(" ") in example for line in last[-1:] for example in shown)


def test_the_measured_family_is_left_out_unless_it_is_named():
    names = [data.task.name for data in mixture_tasks(load_task("SST2"))]
    assert names == ["TREC", "AGNews", "SUBJ", "TEE", "TEH", "HS18"]
    (target,) = mixture_tasks(load_task("SST2"), ["sst2"])
    assert target.train == load_task("SST2").train
    (other,) = mixture_tasks(load_task("SST2"), ["SST5"])  # the same reviews with other labels
    tested = {text_key(example.text) for example in load_task("SST2").test}
    assert not tested & {text_key(example.text) for example in other.train}


def test_own_files_join_a_mixture(reviews):
    (own, trec) = mixture_tasks(load_task("SST2"), [str(reviews), "TREC"], "review", "stars")
    assert own.task.labels == ("negative", "positive")
    assert trec.task.name == "TREC"


def test_test_groups_of_other_words_ask_the_same(bpe):
    data = load_task("TREC")
    own, other, codes = (
        evaluation_groups(data, bpe, 8, 2, 5, words=words)
        for words in ("own", "arbitrary", "codes")
    )
    unseen = single_token_words(bpe, "test")
    for a, b, c in zip(own, other, codes, strict=True):
        assert [p.target for p in a.prompts] == [p.target for p in b.prompts]
        assert [p.label_classes for p in a.prompts] == [p.label_classes for p in c.prompts]
        assert set(b.task.label_words) <= set(unseen)
        # Balanced: eight demonstrations of six classes.
        assert sorted(Counter(a.prompts[0].label_classes).values()) == [1, 1, 1, 1, 2, 2]
    assert other[0].task.label_words != other[1].task.label_words

    # Every group asks other test texts, after demonstrations of their own part.
    fitted, _ = fit_texts(data, bpe, TEXT_TOKENS)
    asked = [query for group in own for query in group.queries]
    assert len(set(asked)) == len(asked) == 10
    assert set(asked) <= set(fitted.test)
    assert {e for group in own for e in group.demonstrations} <= set(fitted.demonstrations)


@pytest.mark.parametrize("words", ["own", "codes"])
def test_reading_a_group_equals_reading_its_prompts(bpe, words):
    model = tiny_model("llama")
    groups = evaluation_groups(load_task("TREC"), bpe, 7, 2, 4, words=words)
    for group, reading in zip(groups, read_groups(model, groups), strict=True):
        expected = label_probabilities(model, group.prompts, group.label_tokens)
        np.testing.assert_allclose(reading.label_words, expected, atol=1e-5)

        # Attention by class, from whole eager matrices of each prompt alone.
        for p, prompt in enumerate(group.prompts):
            with torch.no_grad(), row_attention(model, "eager"):
                output = model(torch.tensor([prompt.input_ids]), output_attentions=True)
            rows_LHS = torch.stack([matrix[0, :, -1] for matrix in output.attentions]).numpy()
            for label in range(len(group.task.labels)):
                places = zip(prompt.label_positions, prompt.label_classes, strict=True)
                positions = [position for position, shown in places if shown == label]
                summed = rows_LHS[:, :, positions].sum(-1)
                np.testing.assert_allclose(reading.attention[p, :, :, label], summed, atol=1e-5)

        votes = reading.votes()
        np.testing.assert_allclose(votes.sum(1), 1)
        none = reading.votes(np.zeros(reading.attention.shape[1:3], dtype=bool))
        np.testing.assert_allclose(none, 1 / len(group.task.labels))


def test_settings_of_a_mixture_are_checked():
    assert mixed_words("permuted, own") == ("own", "permuted")
    assert shot_range("4") == (4, 4)
    assert shot_range("2-16") == (2, 16)
    assert task_list("SST2, TREC") == ["SST2", "TREC"]
    for values, message in (
        ({"tasks": "TREC"}, "train_on = 'mixture'"),
        ({"words": "own"}, "train_on = 'mixture'"),
        ({"train_on": "mixture", "words": "codes"}, "own, arbitrary, permuted"),
        ({"train_on": "mixture", "shots": "1-4"}, "at least 2"),
        ({"train_on": "mixture", "shots": "many"}, "2-32"),
        ({"train_on": "mixture", "tasks": "TREK"}, "did you mean TREC"),
        ({"train_on": "mixture", "tasks": ","}, "names no task"),
        ({"train_on": "mixture", "tasks": "none.csv", "test_data": "x.csv"}, "test_data goes"),
    ):
        with pytest.raises(AbftError, match=message):
            RunConfig(**values)
    # What training needs, and measuring a finished run does not.
    alone = {"objective": "contrastive", "cross_entropy": 0.0}
    for values, message in (
        ({"train_on": "mixture", "tasks": "none.csv"}, "no such file"),
        ({"train_on": "mixture", "prompt_style": "staicc"}, "prompt_style"),
        ({"train_on": "mixture", "sampling": "balanced"}, "draws classes itself"),
        ({"train_on": "others", "data": "x.csv"}, "own data has no others"),
        ({"k": 1, **alone}, "k = 1"),
    ):
        with pytest.raises(AbftError, match=message):
            check_effect(RunConfig(**values))
    check_effect(
        RunConfig(train_on="mixture", k=1, **alone)
    )  # a prompt of a mixture has its own number
    assert resolve(RunConfig(train_on="mixture")).queries == 8
    assert resolve(RunConfig(train_on="mixture", nb=4, batch_size=4)).queries == 1


def test_labels_that_begin_alike_are_written_as_other_words(bpe, review_data):
    data = review_data.with_words({"negative": "Q7", "positive": "Q8"})
    tokens = label_tokens(bpe, data.task)
    assert first_tokens(tokens)[0] == first_tokens(tokens)[1]
    groups = training_groups([data], bpe, 4, 4, 0, words=("own",))
    for group in groups:
        assert len(set(first_tokens(group.label_tokens))) == 2
        assert group.words == "arbitrary"

    # A loss on attention alone does not read the first token.
    (group,) = training_groups([data], bpe, 1, 4, 0, words=("own",), distinct_first_tokens=False)
    assert group.words == "own"
    assert set(group.task.label_words) == {"Q7", "Q8"}


def test_words_that_are_one_token_after_a_space_only_are_drawn_again(bpe, review_data):
    """Cross-entropy of the first token would train without a signal of the class."""
    data = review_data.with_words({"negative": "Q7", "positive": "Q8"})
    template = Template("text: {text}\nlabel:{label}\n")
    data = replace(data, task=replace(data.task, template=template))
    groups = training_groups([data], bpe, 60, 2, 0, words=("own", "arbitrary"), shots=(2, 2))
    assert all(len(set(first_tokens(group.label_tokens))) == 2 for group in groups)


def test_end_to_end_training_needs_labels_that_begin_differently(bpe, tmp_path, model_folder):
    file = tmp_path / "codes.csv"
    rows = [
        f"{word} film {i},{code}" for i in range(12) for word, code in (("a", "Q7"), ("b", "Q8"))
    ]
    file.write_text("text,label\n" + "\n".join(rows))
    config = RunConfig(
        model=str(model_folder),
        data=str(file),
        train_on="mixture",
        tasks=str(file),
        words="own",
        objective="e2e",
        steps=1,
        nb=8,
        lr=1e-3,
        k=2,
        test_prompts=4,
        device="cpu",
    )
    config = resolve(config)
    prompts = abft.runs.train._mixture(open_session(config), config)
    answers = {prompt.answer for prompt in prompts}
    assert len(answers) > 1


def test_few_test_texts_give_few_groups(bpe, review_data):
    data = replace(review_data, test=review_data.test[:5])
    groups = evaluation_groups(data, bpe, 2, sets=4, queries=4)
    assert [len(group.queries) for group in groups] == [4, 1]


@pytest.mark.parametrize(("classes", "each", "usable"), [(20, 2, 20), (10, 5, 10), (3, 1, 0)])
def test_small_classes_have_a_text_to_ask(bpe, classes, each, usable):
    """However many demonstrations are drawn, and with a class of one text that is left out."""
    names = tuple(f"class{c}" for c in range(classes + 1))
    examples = [Example(f"text {c} {i}", c) for c in range(classes) for i in range(each)]
    examples.append(Example("the only one", classes))
    data = TaskData(Task("mine", Template("{text} => {label}\n"), names, names), examples, (), ())
    if not usable:
        with pytest.raises(AbftError, match="mine cannot be part of a mixture"):
            training_groups([data], bpe, 1, 4, 0)
        return
    groups = training_groups([data], bpe, 40, 16, 0, shots=(32, 32))
    for group in groups:
        assert len(group.prompts) == 16
        assert not any("the only one" in bpe.decode(p.input_ids) for p in group.prompts)
        assert all(p.target in p.label_classes for p in group.prompts)


def test_the_built_in_mixture_can_be_drawn_with_many_demonstrations(bpe):
    sources = mixture_tasks(load_task("SST2"))
    assert len(training_groups(sources, bpe, 60, 16, 0, shots=(32, 32), max_tokens=4096)) == 60


def test_fewer_demonstrations_where_the_context_is_short(bpe):
    sources = [load_task("AGNews")]
    free = training_groups(sources, bpe, 12, 8, 0)
    fitted = training_groups(sources, bpe, 12, 8, 0, max_length=600)
    assert max(len(p.input_ids) for group in free for p in group.prompts) > 600
    assert max(len(p.input_ids) for group in fitted for p in group.prompts) <= 600
    for before, after in zip(free, fitted, strict=True):
        if max(len(p.input_ids) for p in before.prompts) <= 600:
            assert before == after


def test_cut_texts_of_the_measured_task_are_not_trained_on(
    model_folder, bpe, monkeypatch, tmp_path
):
    """Texts are compared whole: a session keeps them, and cuts those that it measures."""
    target = load_task("SST2")
    keys = {text_key(e.text) for e in (*target.train, *target.demonstrations, *target.test)}
    config = RunConfig(
        model=str(model_folder),
        device="cpu",
        task="SST2",
        train_on="mixture",
        tasks="SST5",
        max_text_tokens=16,
        test_prompts=2,
        nd=16,
        nb=8,
    )
    session = open_session(config)
    assert session.data.train != session.whole.train
    trained_on = []
    real = abft.runs.train.training_groups
    monkeypatch.setattr(
        abft.runs.train,
        "training_groups",
        lambda s, *a, **k: trained_on.extend(s) or real(s, *a, **k),
    )
    make_trainer(session, tmp_path)
    (other,) = trained_on
    assert not any(text_key(example.text) in keys for example in other.train)
    (leaking,) = mixture_tasks(session.data, ["SST5"])
    assert any(text_key(example.text) in keys for example in leaking.train)


def test_files_are_told_apart_by_their_path(tmp_path):
    """A file called like the measured one, or like a built-in task, is a task of its own."""
    for folder, word in (("mine", "good"), ("hers", "blue")):
        (tmp_path / folder).mkdir()
        rows = [f"{word} {i},{'ab'[i % 2]}" for i in range(12)]
        for name in ("train.csv", "SST2.csv"):
            (tmp_path / folder / name).write_text("\n".join(["text,label", *rows]))
    mine, hers = tmp_path / "mine" / "train.csv", tmp_path / "hers" / "train.csv"
    target = load_data(str(mine))
    (own, other) = mixture_tasks(target, [str(mine), str(hers)], target_file=str(mine))
    assert own is target
    assert all(example.text.startswith("blue") for example in other.train)

    (file,) = mixture_tasks(load_task("SST2"), [str(tmp_path / "hers" / "SST2.csv")])
    assert file.train[0].text.startswith("blue")
    named = load_data(str(tmp_path / "mine" / "SST2.csv"))
    names = [each.task.name for each in mixture_tasks(named, target_file="SST2.csv")]
    assert names == list(BUILTIN)


def test_a_run_does_not_need_the_files_that_it_was_trained_on(tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *rows]))
    result = invoke(
        "train",
        *("--model", model_folder, "--task", "TREC", "--train-on", "mixture"),
        *("--tasks", "SST2,mine.csv", "--shots", "2-4", "--objective", "contrastive"),
        *("--nd", 16, "--nb", 8, "--steps", 1, "--test-prompts", 4, "--output", "run"),
    )
    assert result.exit_code == 0, result.output
    assert read_config("run").tasks == f"SST2,{tmp_path / 'mine.csv'}"
    (tmp_path / "mine.csv").rename(tmp_path / "other.csv")
    measured = invoke("eval", "run", "--data", "other.csv", "--test-prompts", 2)
    assert measured.exit_code == 0, measured.output


def test_prompts_too_long_for_the_model_are_refused(bpe):
    with pytest.raises(AbftError, match="reads at most"):
        training_groups([load_task("SST2")], bpe, 2, 4, 0, shots=(32, 32), max_length=64)
    assert encode(bpe, []) == []


def test_a_mixture_trains_and_says_what_it_trained_on(model_folder, tmp_path):
    result = invoke(
        "train",
        *("--model", model_folder, "--task", "TREC", "--train-on", "mixture"),
        *("--tasks", "SST2,TEE", "--shots", "2-4", "--words", "own,permuted"),
        *("--nd", 16, "--nb", 8, "--steps", 2, "--test-prompts", 4, "--output", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.output
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "SST2,TEE" in card


def test_numbers_of_demonstrations_and_templates_are_drawn_as_said(bpe):
    """Every doubling is equally likely, and half of the groups keep their own template."""
    data = load_task("SST2")
    drawn = training_groups([data], bpe, 200, 2, 0, words=("own",), max_tokens=10**6)
    counts = np.array([max(len(p.label_positions) for p in group.prompts) for group in drawn])
    assert counts.min() >= 2
    assert counts.max() <= 32
    assert np.mean(counts < 8) == pytest.approx(0.48, abs=0.1)  # evenly drawn: 0.19
    own = [group.task.template == data.task.template for group in drawn]
    assert np.mean(own) == pytest.approx(0.5, abs=0.1)


def test_long_texts_get_fewer_demonstrations(bpe):
    groups = training_groups([load_task("AGNews")], bpe, 12, 2, 0, shots=(2, 32), max_tokens=300)
    longest = [max(len(prompt.input_ids) for prompt in group.prompts) for group in groups]
    assert max(longest) < 1.5 * 300
