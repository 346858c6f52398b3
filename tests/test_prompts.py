import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from abft.data.batches import Batch, PseudoBatchSampler, collate
from abft.data.builtin import TASKS, load_task
from abft.data.encoding import (
    attention_target,
    encode,
    first_tokens,
    label_tokens,
    with_answers,
)
from abft.data.prompts import Prompt, evaluation_prompts, training_prompts, write_prompt
from abft.data.splits import TaskData
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from tiny import staicc_loader, tokenizer

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
        from StaICC.util import experimentor

    loader = staicc_loader(name)
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


@pytest.mark.parametrize(
    ("sampling", "queries", "demonstrations"),
    [("natural", 0.1, 0.1), ("balanced-queries", 0.5, 0.1), ("balanced", 0.5, 0.5)],
)
def test_sampling_decides_how_often_a_rare_class_is_drawn(sampling, queries, demonstrations):
    """Expected shares of a class that is every tenth example of the pool."""
    task = Task("reviews", Template("review: {text} is: {label}\n"), ("a", "b"), ("bad", "good"))
    pool = tuple(Example(f"text {i}", int(i % 10 == 0)) for i in range(400))
    data = TaskData(task, pool, pool[:4], pool[:4])
    prompts = training_prompts(data, 2000, 4, 0, queries=4, sampling=sampling)

    assert np.mean([prompt.target for prompt in prompts]) == pytest.approx(queries, abs=0.04)
    shown = np.mean([prompt.label_classes for prompt in prompts])
    assert shown == pytest.approx(demonstrations, abs=0.04)
    asked, texts = queries_and_demonstrations(prompts, task.template, " is:")
    for start in range(0, 2000, 4):
        assert len({*texts[start], *asked[start : start + 4]}) == 8


@pytest.mark.parametrize("sampling", ["balanced-queries", "balanced"])
def test_a_class_that_is_used_up_makes_room_for_the_others(sampling, review_data):
    few = TaskData(
        review_data.task,
        (*(e for e in review_data.train if e.label == 0),)[:6]
        + (*(e for e in review_data.train if e.label == 1),)[:1],
        review_data.demonstrations[:4],
        review_data.test[:3],
    )
    for prompt in training_prompts(few, 20, 4, 0, queries=3, sampling=sampling):
        assert sum(prompt.label_classes) + prompt.target <= 1


def queries_and_demonstrations(prompts, template, before_label=" sentiment:"):
    """The texts of prompts whose template is `template`: of queries, and of demonstrations."""
    lines = [prompt.text.split(template.after_label) for prompt in prompts]
    return (
        [line[-1].removeprefix(template.before_text).removesuffix(before_label) for line in lines],
        [
            [part.removeprefix(template.before_text).split(before_label)[0] for part in line[:-1]]
            for line in lines
        ],
    )


def test_shared_demonstrations_precede_queries_that_are_none_of_them(review_data):
    """Pools of exactly as many texts as a draw needs, so that a repetition would show."""
    few = TaskData(
        review_data.task,
        review_data.train[:7],
        review_data.demonstrations[:4],
        review_data.test[:3],
    )
    prompts = training_prompts(few, 14, 4, 0, queries=3)
    assert len(prompts) == 12  # 14 // 3 draws
    queries, demonstrations = queries_and_demonstrations(prompts, few.task.template)
    labels = {example.text: example.label for example in few.train}
    for start in range(0, 12, 3):
        shared = demonstrations[start]
        assert demonstrations[start : start + 3] == [shared] * 3
        assert sorted([*shared, *queries[start : start + 3]]) == sorted(labels)
    for prompt, query, shown in zip(prompts, queries, demonstrations, strict=True):
        assert prompt.target == labels[query]
        assert prompt.label_classes == tuple(labels[text] for text in shown)
    assert len({tuple(shown) for shown in demonstrations}) == 4
    with pytest.raises(AbftError, match="k = 4 demonstrations and 4 queries need 8"):
        training_prompts(few, 8, 4, 0, queries=4)

    # The same of test prompts: query i modulo their number, after a draw of all demonstrations.
    queries, demonstrations = queries_and_demonstrations(
        evaluation_prompts(few, 7, 4), few.task.template
    )
    assert queries == [few.test[i % 3].text for i in range(7)]
    pool = sorted(example.text for example in few.demonstrations)
    assert all(sorted(shown) == pool for shown in demonstrations)
    assert len({tuple(shown) for shown in demonstrations}) > 3
    with pytest.raises(AbftError, match="k = 5 needs at least 5"):
        evaluation_prompts(few, 7, 5)


def test_the_instruction_is_written_once():
    template = Template("text: {text} label: {label}\n", "Classify. ")
    task = Task("own", template, ("a", "b"), ("good", "bad"))
    prompt = write_prompt(task, [Example("x", 1), Example("y", 0)], Example("z", 1))
    expected = "Classify. text: x label: bad\ntext: y label: good\ntext: z label:"
    assert prompt.text == expected
    assert [prompt.text[start:end] for start, end in prompt.label_spans] == ["bad", "good"]
    assert (prompt.label_classes, prompt.target) == ((1, 0), 1)


def own_task(*words):
    labels = tuple(f"l{i}" for i in range(len(words)))
    return Task("own", Template("text: {text} label: {label}\n"), labels, words)


def test_bad_label_words(bpe):
    with pytest.raises(AbftError, match="'Ω' and 'Ψ' have the same tokens"):
        label_tokens(tokenizer("wordpiece"), own_task("Ω", "Ψ"))  # both unknown to it
    with pytest.raises(AbftError, match="'Ω' and 'Ψ' have the same tokens"):
        label_tokens(tokenizer("wordpiece"), own_task("Ω", "good", "Ψ", "bad"))
    template = Template("text: {text} label: {label} \n")
    assert len(label_tokens(bpe, Task("own", template, ("a", "b"), ("good", "bad")))) == 2


def test_too_long_prompts(bpe):
    with pytest.raises(AbftError, match=r"prompt 1 has .* the model reads at most 20"):
        encode(bpe, [Prompt("short", (), (), 0), Prompt("word " * 40, (), (), 0)], max_length=20)


def test_a_prompt_as_long_as_the_context_fits(any_tokenizer, review_data):
    """A special token at the end is dropped, and so does not count."""
    prompts = training_prompts(review_data, 5, 2, 0)
    encoded = encode(any_tokenizer, prompts)
    longest = max(len(prompt.input_ids) for prompt in encoded)
    assert encode(any_tokenizer, prompts, max_length=longest) == encoded
    with pytest.raises(AbftError, match=f"has {longest} tokens, .* at most {longest - 1}"):
        encode(any_tokenizer, prompts, max_length=longest - 1)


def test_special_tokens_at_the_end_are_dropped_however_many():
    ending = tokenizer("wordpiece")
    ids = {name: ending.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]", "[PAD]")}
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP] [PAD]", special_tokens=list(ids.items())
    )
    text = "text: fine label:"
    ((plain,), (staicc,)) = (
        encode(ending, [Prompt(text, (), (), 0)], prompt_style)
        for prompt_style in ("consistent", "staicc")
    )
    inner = tuple(ending(text, add_special_tokens=False)["input_ids"])
    assert plain.input_ids == (ids["[CLS]"], *inner)
    assert staicc.input_ids == (*plain.input_ids, ids["[SEP]"], ids["[PAD]"])


@pytest.mark.parametrize("prompt_style", ["consistent", "staicc"])
def test_label_positions_are_the_first_token_or_staiccs_last(bpe, prompt_style):
    """Against the characters that each token adds to the decoded beginning of the prompt."""
    task = own_task("zyxwv", "positive", "qqjjqq")
    examples = [Example(f"zyxwv number {i}", label) for i, label in enumerate((2, 0, 1, 0))]
    prompt = write_prompt(task, examples, Example("qqjjqq", 1), prompt_style)
    (encoded,) = encode(bpe, [prompt], prompt_style)

    ids = encoded.input_ids
    ends = [len(bpe.decode(ids[: i + 1])) for i in range(len(ids))]
    several = 0
    for (start, end), position in zip(prompt.label_spans, encoded.label_positions, strict=True):
        first = next(i for i, ended in enumerate(ends) if ended > start)
        last = next(i for i, ended in enumerate(ends) if ended > end - 1)
        assert ends[last] == end
        assert position == (first if prompt_style == "consistent" else last)
        several += last > first
    assert several == 3  # " positive" is one token
    if prompt_style == "staicc":
        scored = label_tokens(bpe, task, "staicc")
        for position, label in zip(encoded.label_positions, (2, 0, 1, 0), strict=True):
            word = bpe.decode(scored[label])
            assert task.label_words[label].endswith(word)
            assert bpe.decode(ids[position]).endswith(word)


def test_answers_are_the_first_tokens_of_the_correct_labels(bpe):
    task = own_task("zyxwv", "positive", "qqjjqq")
    prompts = [
        write_prompt(task, [Example("a", 0)], Example("b", label), "consistent")
        for label in (2, 0, 1)
    ]
    tokens = label_tokens(bpe, task)
    recorded = with_answers(encode(bpe, prompts), tokens)
    assert [prompt.answer for prompt in recorded] == [tokens[2][0], tokens[0][0], tokens[1]]


def test_targets_of_attention_are_its_correct_candidates():
    """At either end of the prompt, too."""
    prompt = attention_target([7, 8, 9], [2, 0, 1], [False, True, True], answer=5)
    batch = Batch(**collate([prompt]))
    assert batch.correct.tolist() == [[False, True, True]]
    assert batch.incorrect.tolist() == [[True, False, False]]
    assert (batch.label_positions.tolist(), batch.answers.tolist()) == ([[2, 0, 1]], [5])
    with pytest.raises(ValueError, match="from 0 to 2"):
        attention_target([7, 8, 9], [3], [True])


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


@pytest.mark.parametrize(
    "words",
    [("zyx", "zyxwv", "positive"), ("zyxwv", "positive", "zyx"), ("zyx", "positive", "zyxwv")],
)
def test_a_label_that_begins_another_ends_with_what_follows_it(bpe, words):
    task = own_task(*words)
    tokens = label_tokens(bpe, task)
    newline = bpe("text: a label: positive\n")["input_ids"][-1]
    assert [label[-1] for label in tokens] == [newline] * 3
    short, long = tokens[words.index("zyx")], tokens[words.index("zyxwv")]
    assert long[: len(short) - 1] == short[:-1]


def test_a_label_that_begins_another_needs_something_of_its_own_after_it(bpe):
    """The token after the space holds the beginning of the next text."""
    words = ("zyx", "zyxwv", "positive")
    task = Task("t", Template("{text} => {label} "), ("a", "b", "c"), words)
    with pytest.raises(AbftError, match="nothing of its own follows them; end it with a newline"):
        label_tokens(bpe, task)
    assert label_tokens(bpe, task.with_words({"b": "good"}))


@pytest.mark.parametrize("prompt_style", ["consistent", "staicc"])
def test_a_label_word_that_the_tokenizer_drops_is_refused(prompt_style):
    dropping = tokenizer("bpe")
    dropping.backend_tokenizer.normalizer = normalizers.Replace("ghost", "")
    task = Task("t", Template("text: {text} label: {label}\n"), ("a", "b"), ("positive", "ghost"))
    with pytest.raises(AbftError, match="label word 'ghost' has no token of its own"):
        label_tokens(dropping, task, prompt_style)
    prompt = write_prompt(task, [Example("x", 1)], Example("y", 0), prompt_style)
    with pytest.raises(AbftError, match="label word 'ghost' has no token of its own"):
        encode(dropping, [prompt], prompt_style)


def test_labels_with_the_same_last_token_are_refused_in_the_staicc_style(bpe):
    task = own_task("zyxwv", "good", "qqwv")
    ids = [bpe(word)["input_ids"] for word in task.label_words]
    assert ids[0][-1] == ids[2][-1] != ids[1][-1]
    assert len({*label_tokens(bpe, task)}) == 3
    with pytest.raises(AbftError, match="'zyxwv' and 'qqwv' have the same tokens"):
        label_tokens(bpe, task, "staicc")


def test_a_label_that_does_not_follow_the_query_is_refused():
    """A tokenizer with a token ": ", which is another one where the query ends with ":"."""
    pieces = [("<unk>", 0.0), (": ", -5.0), *((c, -10.0) for c in " :\nabcdefghijklmnopqrstuvwxyz")]
    raw = Tokenizer(models.Unigram(pieces, unk_id=0))
    joining = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    with pytest.raises(AbftError, match="'label: good'.*write the template without the space"):
        label_tokens(joining, own_task("good", "bad"))
    task = Task("own", Template("text:{text} label:{label}\n"), ("a", "b"), ("good", "bad"))
    tokens = map(joining.convert_ids_to_tokens, label_tokens(joining, task))
    assert list(map("".join, tokens)) == ["good", "bad"]


@pytest.mark.parametrize("prompt_style", ["consistent", "staicc"])
def test_slow_tokenizers_are_refused(prompt_style):
    slow = SimpleNamespace(is_fast=False)
    assert encode(slow, []) == []
    with pytest.raises(AbftError, match="SimpleNamespace gives no character offsets"):
        encode(slow, [Prompt("x", (), (), 0)], prompt_style)
    with pytest.raises(AbftError, match="SimpleNamespace gives no character offsets"):
        label_tokens(slow, own_task("good", "bad"), prompt_style)
