"""Long texts are cut to what fits into a prompt, the longest first, and only where they must."""

import pytest

from abft.data.encoding import encode, label_tokens
from abft.data.lengths import SHORTEST_CUT, cut_texts, fit_texts, longest_that_fits
from abft.data.prompts import write_prompt
from abft.data.splits import TaskData
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError

TASK = Task("notes", Template("note: {text} kind: {label}\n"), ("a", "b"), ("quite good", "bad"))


def texts_of(lengths):
    """Texts of so many words, each of one or more tokens."""
    return [Example(" ".join(["film"] * n), i % 2) for i, n in enumerate(lengths)]


def data_of(lengths):
    examples = texts_of(lengths)
    third = len(examples) // 3
    return TaskData(
        TASK,
        tuple(examples[:third]),
        tuple(examples[third : 2 * third]),
        tuple(examples[2 * third :]),
    )


def worst_prompt(data, k):
    """The prompt of the k + 1 longest texts, with the longest label."""
    examples = (*data.train, *data.demonstrations, *data.test)
    texts = sorted((e.text for e in examples), key=len, reverse=True)[: k + 1]
    return write_prompt(TASK, [Example(text, 0) for text in texts[:-1]], Example(texts[-1], 0))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("lengths", [[900, 5, 8, 6, 4, 3], [200, 190, 180, 170, 20, 20]])
def test_after_cutting_the_worst_prompt_fits_and_little_is_lost(bpe, k, lengths):
    data, tokens, limit = data_of(lengths), label_tokens(bpe, TASK), 300
    longest = longest_that_fits(data, bpe, k, limit, tokens)
    fitted, count = fit_texts(data, bpe, longest)
    (prompt,) = encode(bpe, [worst_prompt(fitted, k)], max_length=limit, scored=tokens)
    assert len(prompt.input_ids) > limit - 8 * (k + 2)
    long = [text for text in lengths if len(bpe(" ".join(["film"] * text))["input_ids"]) > longest]
    assert count == len(long)


def test_texts_that_fit_stay_as_they_are(bpe):
    data, tokens = data_of([9, 5, 8, 6, 4, 3]), label_tokens(bpe, TASK)
    assert longest_that_fits(data, bpe, 2, 300, tokens) is None
    assert longest_that_fits(data_of([900] * 6), bpe, 2, None, tokens) is None
    assert fit_texts(data, bpe, None) == (data, 0)
    assert fit_texts(data, bpe, 400) == (data, 0)


def test_too_many_demonstrations_are_refused(bpe):
    data, tokens = data_of([300] * 60), label_tokens(bpe, TASK)
    with pytest.raises(AbftError, match="Use a smaller k"):
        longest_that_fits(data, bpe, 30, 300, tokens)
    assert longest_that_fits(data, bpe, 2, 300, tokens) >= SHORTEST_CUT


def test_the_longest_label_is_the_one_with_most_tokens(bpe):
    words = ("positive", "Q7#%&Z")
    task = Task("notes", TASK.template, ("a", "b"), words)
    tokens = label_tokens(bpe, task)
    assert isinstance(tokens[0], int)
    assert len(tokens[1]) > 1
    assert len(words[0]) > len(words[1])
    data = TaskData(task, tuple(texts_of([200] * 12)), (), ())
    fitted, _ = fit_texts(data, bpe, longest_that_fits(data, bpe, 4, 256, tokens))
    worst = [Example(e.text, 1) for e in fitted.train[:5]]
    prompt = write_prompt(task, worst[:4], worst[4])
    encode(bpe, [prompt], max_length=256, scored=tokens)


def test_texts_that_are_shown_several_times_count_as_often(bpe):
    data, tokens = data_of([100, 5, 8, 6, 4, 3]), label_tokens(bpe, TASK)
    once = longest_that_fits(data, bpe, 4, 256, tokens)
    (label,) = {e.label for e in data.train if len(e.text) > 100}
    several = longest_that_fits(data, bpe, 4, 256, tokens, times={label: 3, 1 - label: 1})
    assert once is None
    assert several < 100


def test_texts_are_cut_at_tokens(bpe):
    texts = ["short", "one two three four five six seven eight nine ten", "größer ü ü ü ü ü ü ü ü"]
    cut = cut_texts(bpe, texts, 6)
    assert cut[0] == "short"
    for text, result in zip(texts[1:], cut[1:], strict=True):
        assert text.startswith(result)
        assert len(result) < len(text)
        assert len(bpe(result, add_special_tokens=False)["input_ids"]) <= 6
    assert cut_texts(bpe, texts, 1000) == texts


@pytest.mark.parametrize("longest", range(6, 12))
def test_characters_of_several_tokens_are_cut_as_a_whole(bpe, longest):
    text = "ab" + "😀" * 30
    assert len(bpe("😀", add_special_tokens=False)["input_ids"]) > 1
    (cut,) = cut_texts(bpe, [text], longest)
    assert text.startswith(cut)
    kept = len(bpe(cut, add_special_tokens=False)["input_ids"])
    assert longest - len(bpe("😀", add_special_tokens=False)["input_ids"]) < kept <= longest
