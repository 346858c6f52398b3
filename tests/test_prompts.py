import contextlib
import io

import pytest
import torch
from tokenizers import normalizers

from abft.data.batches import Batch, PseudoBatchSampler, collate
from abft.data.builtin import TASKS, load_task
from abft.data.encoding import encode, first_tokens, label_tokens
from abft.data.prompts import Prompt, evaluation_prompts, training_prompts, write_prompt
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from tiny import tokenizer

KINDS = ("bpe", "sentencepiece", "wordpiece")


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request):
    return tokenizer(request.param)


@pytest.mark.parametrize("name", TASKS)
def test_every_label_position_decodes_to_its_label_word(any_tokenizer, name):
    data = load_task(name)
    prompts = training_prompts(data, 40, 4, seed=1) + evaluation_prompts(data, 40, 4)
    words = label_tokens(any_tokenizer, data.task)
    for prompt, encoded in zip(prompts, encode(any_tokenizer, prompts), strict=True):
        assert len(encoded.label_positions) == 4
        for (start, end), position, label in zip(
            prompt.label_spans, encoded.label_positions, encoded.label_classes, strict=True
        ):
            word = data.task.label_words[label]
            assert prompt.text[start:end] == word
            assert any_tokenizer.decode([encoded.input_ids[position]]).strip() == word
            assert (
                encoded.input_ids[position] == words[label]
            )  # what is scored is what stands in the demonstrations
        assert any_tokenizer.decode(encoded.input_ids[-1:]).strip() == ":"  # the query position


@pytest.mark.parametrize("name", TASKS)
def test_staicc_prompts_equal_staicc_byte_for_byte(name):
    import abft.data.builtin

    with contextlib.redirect_stdout(io.StringIO()):
        from StaICC.util import experimentor, hgf_dataset_loader

    loader = getattr(hgf_dataset_loader, abft.data.builtin.BUILTIN[name].loader)()
    sizes = [1024, abft.data.builtin.BUILTIN[name].demonstrations, 512]
    theirs = experimentor.single_experimentor(original_dataset=loader, k=4, dividing=sizes)
    data = load_task(name, "staicc")
    ours = evaluation_prompts(data, 1024, 4, "staicc")
    assert [p.text for p in ours] == theirs.prompt_set()
    assert list(data.task.label_words) == theirs.get_label_space()
    assert [p.target for p in ours[:512]] == [
        theirs.triplet_dataset.get_default_ground_truth_label_index(i) for i in range(512)
    ]


def test_staicc_protocol_scores_the_last_sub_token(bpe):
    data = load_task("SST2", "staicc")
    assert label_tokens(bpe, data.task, "staicc") == [
        bpe(word)["input_ids"][-1] for word in data.task.label_words
    ]
    (encoded,) = encode(bpe, evaluation_prompts(data, 1, 4, "staicc"), "staicc")
    assert encoded.input_ids == tuple(
        bpe(evaluation_prompts(data, 1, 4, "staicc")[0].text)["input_ids"]
    )


def test_consistent_query_ends_without_space():
    task = TASKS["SST2"]
    prompt = write_prompt(task, [Example("fine", 1)], Example("dull", 0), "consistent")
    assert prompt.text == "sentence: fine sentiment: positive\nsentence: dull sentiment:"
    staicc = write_prompt(task, [Example("fine", 1)], Example("dull", 0), "staicc")
    assert staicc.text == prompt.text + " "


def test_label_words_inside_texts_are_not_taken_for_labels(bpe):
    prompt = write_prompt(
        TASKS["SST2"],
        [Example("positive negative positive", 0)],
        Example("negative", 1),
        "consistent",
    )
    (encoded,) = encode(bpe, [prompt])
    assert len(encoded.label_positions) == 1
    before = bpe.decode(encoded.input_ids[: encoded.label_positions[0]])
    assert before == "sentence: positive negative positive sentiment:"


def test_training_prompts_depend_on_the_seed_only(review_data):
    assert training_prompts(review_data, 8, 4, 0) == training_prompts(review_data, 8, 4, 0)
    assert training_prompts(review_data, 8, 4, 0) != training_prompts(review_data, 8, 4, 1)
    pool = {e.text for e in review_data.train}
    for prompt in training_prompts(review_data, 8, 4, 0):
        texts = [
            line.removeprefix("review: ").rpartition(" sentiment:")[0]
            for line in prompt.text.split("\n")
        ]
        assert len(set(texts)) == 5
        assert set(texts) <= pool


def own_task(*words):
    labels = tuple(f"l{i}" for i in range(len(words)))
    return Task("own", Template("text: {text} label: {label}\n"), labels, words)


def test_bad_label_words(bpe):
    with pytest.raises(AbftError, match="'Ω' and 'Ψ' have the same tokens"):
        label_tokens(tokenizer("wordpiece"), own_task("Ω", "Ψ"))  # both unknown to it
    template = Template("text: {text} label: {label} \n")
    assert len(label_tokens(bpe, Task("own", template, ("a", "b"), ("good", "bad")))) == 2


def test_too_long_prompts(bpe):
    with pytest.raises(AbftError, match=r"prompt 1 has .* the model reads at most 20"):
        encode(bpe, [Prompt("short", (), (), 0), Prompt("word " * 40, (), (), 0)], max_length=20)


def test_collate(bpe, review_data):
    encoded = encode(
        bpe, training_prompts(review_data, 3, 2, 0) + training_prompts(review_data, 1, 4, 0)
    )
    batch = Batch(**collate(encoded))
    for b, prompt in enumerate(encoded):
        n = len(prompt.input_ids)
        assert batch.input_ids[b, :n].tolist() == list(prompt.input_ids)
        assert batch.query_positions[b] == n - 1
        right = [c == prompt.target for c in prompt.label_classes]
        missing = [False] * (4 - len(right))
        assert batch.correct[b].tolist() == right + missing
        assert batch.incorrect[b].tolist() == [not r for r in right] + missing
    assert torch.equal(batch.candidates, batch.correct | batch.incorrect)


def test_pseudo_batches_keep_their_prompts_and_are_sorted_by_length():
    lengths = [5, 9, 1, 7, 3, 8, 2, 6, 4, 10]
    sampler = PseudoBatchSampler(lengths, 4, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 8
    assert len(set(order)) == 8
    for start in (0, 4):
        chunk = [lengths[i] for i in order[start : start + 4]]
        assert chunk == sorted(chunk)
    sampler.set_epoch(1)
    assert list(sampler) != order
    sampler.set_epoch(0)
    assert list(sampler) == order
    with pytest.raises(AbftError, match="do not fill"):
        PseudoBatchSampler(lengths, 11, seed=0)


def test_labels_of_several_tokens(bpe):
    words = ("zyxwv", "positive", "zyxab")
    task = Task("own", Template("text: {text} label: {label}\n"), words, words)
    tokens = label_tokens(bpe, task)
    assert [bpe.decode(label) for label in tokens] == [f" {word}" for word in words]
    assert [isinstance(label, tuple) for label in tokens] == [True, False, True]
    (prompt,) = encode(
        bpe, [write_prompt(task, [Example("a", 0), Example("b", 1)], Example("c", 2), "consistent")]
    )
    shown = [bpe.decode(prompt.input_ids[at]) for at in prompt.label_positions]
    assert shown == [
        "z",
        " positive",
    ]  # heads look at the first token of the word, not at a space before it
    assert first_tokens(tokens) == [tokens[0][0], tokens[1], tokens[2][0]]


def test_a_label_that_begins_another_ends_with_what_follows_it(bpe):
    task = own_task("zyx", "zyxwv", "positive")
    tokens = label_tokens(bpe, task)
    newline = bpe("text: a label: positive\n")["input_ids"][-1]
    assert [label[-1] for label in tokens] == [newline] * 3
    assert tokens[1][: len(tokens[0]) - 1] == tokens[0][:-1]


@pytest.mark.parametrize("prompt_style", ["consistent", "staicc"])
def test_a_label_word_that_the_tokenizer_drops_is_refused(prompt_style):
    dropping = tokenizer("bpe")
    dropping.backend_tokenizer.normalizer = normalizers.Replace("ghost", "")
    task = Task("t", Template("text: {text} label: {label}\n"), ("a", "b"), ("positive", "ghost"))
    with pytest.raises(AbftError, match="label word 'ghost' has no token of its own"):
        label_tokens(dropping, task, prompt_style)
