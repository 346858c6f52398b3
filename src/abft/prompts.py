"""Few-shot prompts: written with recorded label spans, encoded with label positions, collated into a `Batch`.

A label's position comes from the character span recorded while the prompt was written and the fast tokenizer's
offsets; prefixes are never tokenised again.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abft.data import SPLIT_SEED, TaskData, lcg_indices
from abft.errors import AbftError
from abft.tasks import Example, Protocol, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """The text of a few-shot prompt, and where its demonstrations' label words stand in it."""

    text: str
    label_spans: tuple[tuple[int, int], ...]  # characters [start, end) of each demonstration's label word
    label_classes: tuple[int, ...]  # class of each demonstration
    target: int  # class of the query


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as tokens; its last token is the query position, the one that predicts the label."""

    input_ids: tuple[int, ...]
    label_positions: tuple[int, ...]  # token index of each demonstration's label
    label_classes: tuple[int, ...]
    target: int
    answer: int = -1  # token id of the query's right label word; -1 = not recorded


@dataclass(frozen=True)
class Batch:
    """What the objective sees: right-padded token ids, and for each prompt where to look from and at what."""

    input_ids: Tensor  # (B, S) int64
    query_positions: Tensor  # (B,) the last real token; its row is read
    label_positions: Tensor  # (B, K) candidate positions; 0 where a prompt has fewer than K
    correct: Tensor  # (B, K) bool: candidate is right (I+)
    wrong: Tensor  # (B, K) bool: candidate is wrong (I-); neither where there is no candidate
    answers: Tensor | None = None  # (B,) token id of the right label word, -1 where it is not recorded

    @property
    def lengths(self) -> Tensor:
        """n, tokens in each prompt without padding, (B,)."""
        return self.query_positions + 1

    @property
    def candidates(self) -> Tensor:
        """Which candidate positions exist, (B, K) bool."""
        return self.correct | self.wrong


def write_prompt(task: Task, demonstrations: Sequence[Example], query: Example, protocol: Protocol) -> Prompt:
    """One prompt. `consistent`: the query ends without a trailing space. `staicc`: byte for byte StaICC's prompt."""
    template = task.template
    text, spans = template.instruction, []
    for example in demonstrations:
        text += template.before_text + example.text + template.before_label
        word = task.label_words[example.label]
        spans.append((len(text), len(text) + len(word)))
        text += word + template.after_label
    text += template.before_text + query.text
    text += template.before_label if protocol == "staicc" else template.before_label.rstrip(" ")
    return Prompt(text, tuple(spans), tuple(example.label for example in demonstrations), query.label)


def training_prompts(data: TaskData, nd: int, k: int, seed: int, protocol: Protocol = "consistent") -> list[Prompt]:
    """nd prompts, each of k demonstrations and a query drawn without repetition from the training pool."""
    data.check(k)
    generator = random.Random(seed)
    draws = (generator.sample(data.train, k + 1) for _ in range(nd))
    return [write_prompt(data.task, draw[:k], draw[k], protocol) for draw in draws]


def evaluation_prompts(data: TaskData, count: int, k: int, protocol: Protocol = "consistent") -> list[Prompt]:
    """The first `count` test prompts; they never depend on a seed.

    Prompt i holds test query i modulo their number, with the demonstrations StaICC draws for it; for a StaICC task,
    1,024 prompts are StaICC's own (each of 512 queries with 2 demonstration sets).
    """
    data.check(k)
    sets = lcg_indices(len(data.demonstrations), [k] * count, SPLIT_SEED)
    return [
        write_prompt(data.task, [data.demonstrations[d] for d in chosen], data.test[i % len(data.test)], protocol)
        for i, chosen in enumerate(sets)
    ]


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    protocol: Protocol = "consistent",
    max_length: int | None = None,
) -> list[EncodedPrompt]:
    """Tokenise prompts and find the token of every label word.

    Args:
        max_length: the model's context in tokens; None = unlimited.

    Raises:
        AbftError: a prompt is longer than `max_length`, or a label word is not one token (`consistent` protocol).
    """
    if not prompts:
        return []
    if not tokenizer.is_fast:
        raise AbftError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
    encoding = tokenizer([prompt.text for prompt in prompts], return_offsets_mapping=True, verbose=False)
    encoded = []
    for number, prompt in enumerate(prompts):
        ids, offsets = encoding["input_ids"][number], encoding["offset_mapping"][number]
        if protocol == "consistent":  # StaICC scores the very last token, special or not
            while offsets and offsets[-1][0] == offsets[-1][1]:
                ids, offsets = ids[:-1], offsets[:-1]
        if max_length is not None and len(ids) > max_length:
            raise AbftError(
                f"prompt {number} has {len(ids)} tokens, the model reads at most {max_length}. "
                "Use a smaller k or shorter texts."
            )
        positions = tuple(_label_position(prompt, span, offsets, protocol) for span in prompt.label_spans)
        encoded.append(EncodedPrompt(tuple(ids), positions, prompt.label_classes, prompt.target))
    return encoded


def _overlapping(span: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    return [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]


def _label_position(prompt: Prompt, span: tuple[int, int], offsets: Sequence[tuple[int, int]], protocol: Protocol) -> int:
    tokens = _overlapping(span, offsets)
    if not tokens or (len(tokens) > 1 and protocol == "consistent"):
        word = prompt.text[span[0] : span[1]]
        raise AbftError(f"label word {word!r} is {len(tokens)} tokens in a prompt, expected one; choose another word")
    return tokens[-1]


def label_tokens(tokenizer: "PreTrainedTokenizerBase", task: Task, protocol: Protocol = "consistent") -> list[int]:
    """The token id that stands for each class at the query position.

    `consistent`: the token of the label word as it stands inside a demonstration. `staicc`: the last sub-token of the
    bare label word, as StaICC scores it.

    Raises:
        AbftError: a label word is several tokens, two words start with the same token, or the tokenizer writes the
            label differently after a query than inside a demonstration.
    """
    if not tokenizer.is_fast:
        raise AbftError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
    if protocol == "staicc":
        tokens = [tokenizer(word)["input_ids"][-1] for word in task.label_words]
        _refuse_shared_tokens(task, tokens)
        return tokens
    pieces, detached = [], []
    for label, word in enumerate(task.label_words):
        prompt = write_prompt(task, [Example("text", label)], Example("text", label), protocol)
        encoding = tokenizer(prompt.text, return_offsets_mapping=True)
        at = _overlapping(prompt.label_spans[0], encoding["offset_mapping"])
        ids = encoding["input_ids"]
        pieces.append([ids[i] for i in at])
        ending = prompt.text[: prompt.label_spans[0][0]].rstrip(" ")
        (query,) = encode(tokenizer, [Prompt(ending, (), (), label)])
        if at and list(query.input_ids) != ids[: at[0]]:
            detached.append(word)
    _refuse_shared_tokens(task, [piece[0] if piece else -1 for piece in pieces])
    several = {word: len(piece) for word, piece in zip(task.label_words, pieces, strict=True) if len(piece) != 1}
    if several:
        listed = ", ".join(f"{word!r} ({count} tokens)" for word, count in several.items())
        raise AbftError(
            f"label words must be one token each; several for this tokenizer: {listed}. "
            "Map them to other words, for example --label-words 'LABEL=word'."
        )
    if detached:
        raise AbftError(
            f"this tokenizer splits {task.template.before_label.strip() + ' ' + detached[0]!r} so that the label does not "
            "directly follow the query; write the template without the space before {label}"
        )
    return [piece[0] for piece in pieces]


def with_answers(prompts: Sequence[EncodedPrompt], label_tokens: Sequence[int]) -> list[EncodedPrompt]:
    """The same prompts with the token of the right label word recorded, for objectives that look at the LM's output."""
    return [replace(prompt, answer=label_tokens[prompt.target]) for prompt in prompts]


def _refuse_shared_tokens(task: Task, tokens: Sequence[int]) -> None:
    for i, token in enumerate(tokens):
        if token in tokens[:i]:
            first, second = task.label_words[tokens.index(token)], task.label_words[i]
            raise AbftError(
                f"label words {first!r} and {second!r} start with the same token for this tokenizer and cannot be told "
                "apart; map one to another word with --label-words 'LABEL=word'"
            )


def collate(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The fields of a `Batch`, as a dict because that is what `Trainer` moves between devices."""
    B, S = len(prompts), max(len(prompt.input_ids) for prompt in prompts)
    K = max(len(prompt.label_positions) for prompt in prompts)
    input_ids = torch.zeros(B, S, dtype=torch.long)  # causal: what stands after the query position is never seen
    positions = torch.zeros(B, K, dtype=torch.long)
    correct = torch.zeros(B, K, dtype=torch.bool)
    wrong = torch.zeros(B, K, dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        k = len(prompt.label_positions)
        input_ids[b, : len(prompt.input_ids)] = torch.tensor(prompt.input_ids)
        positions[b, :k] = torch.tensor(prompt.label_positions, dtype=torch.long)
        is_right = torch.tensor([label == prompt.target for label in prompt.label_classes], dtype=torch.bool)
        correct[b, :k], wrong[b, :k] = is_right, ~is_right
    query_positions = torch.tensor([len(prompt.input_ids) - 1 for prompt in prompts])
    answers = torch.tensor([prompt.answer for prompt in prompts])
    values = (input_ids, query_positions, positions, correct, wrong, answers)
    return {field.name: value for field, value in zip(fields(Batch), values, strict=True)}


class PseudoBatchSampler(torch.utils.data.Sampler[int]):
    """Shuffled prompts, cut into pseudo-batches of `size`, each sorted by length so that micro-batches pad little.

    The order depends on (seed, epoch) only, which is what makes a resumed run repeat it. What does not fill a
    pseudo-batch is left out of that epoch.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        if len(lengths) < size:
            raise AbftError(f"{len(lengths)} training prompts do not fill one pseudo-batch of {size}; use a smaller nb")
        self.lengths, self.size, self.seed, self.epoch = lengths, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.size * self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(self), self.size):
            yield from sorted(order[start : start + self.size], key=lambda i: self.lengths[i])
