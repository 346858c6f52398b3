"""A mixture of tasks: other label words, classes, templates and shots in every group of prompts."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from abft.data.builtin import BUILTIN, load_task
from abft.data.encoding import encode, first_tokens, label_tokens
from abft.data.label_words import single_token_words, written_as
from abft.data.mixture import evaluation_groups, training_groups
from abft.data.mixture_settings import mixed_words, shot_range, task_list
from abft.data.other_tasks import mixture_tasks
from abft.data.packing import pack
from abft.data.splits import text_key
from abft.errors import AbftError
from abft.model.attention import row_attention
from abft.runs.config import RunConfig, resolve
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
        ({"train_on": "mixture", "tasks": "none.csv"}, "no such file"),
        ({"train_on": "mixture", "tasks": ","}, "names no task"),
        ({"train_on": "mixture", "prompt_style": "staicc"}, "prompt_style"),
    ):
        with pytest.raises(AbftError, match=message):
            RunConfig(**values)
    assert resolve(RunConfig(train_on="mixture")).queries == 8
    assert resolve(RunConfig(train_on="mixture", nb=4, batch_size=4)).queries == 1


def test_labels_that_begin_alike_are_written_as_other_words(bpe, review_data):
    data = review_data.with_words({"negative": "Q7", "positive": "Q8"})
    tokens = label_tokens(bpe, data.task)
    assert first_tokens(tokens)[0] == first_tokens(tokens)[1]
    groups = training_groups([data], bpe, 4, 4, 0, words=("own",))
    for group in groups:
        assert len(set(first_tokens(group.label_tokens))) == 2


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
