"""Few-shot prompts: written with recorded label spans, encoded with label positions, collated into a `Batch`.

A label's position comes from the character span recorded while the prompt was written and the fast tokenizer's
offsets; prefixes are never tokenised again.

Prompts that begin alike (the same demonstrations before several queries) can be packed into one sequence: a tree of
tokens, in which every token sees its ancestors only, so that what they share is computed once.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abft.attention import branch_mask
from abft.data import SPLIT_SEED, TaskData, lcg_indices
from abft.errors import AbftError
from abft.logits import at_positions
from abft.tasks import Example, Protocol, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LabelTokens = Sequence[int | tuple[int, ...]]  # of every class: its token, or several


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


def attention_target(
    input_ids: Sequence[int], candidates: Sequence[int], correct: Sequence[bool], answer: int = -1
) -> EncodedPrompt:
    """A prompt of any kind to train or measure attention on: its last token should look at the right ones of some candidates.

    Label tokens of demonstrations are one use; passages of which one holds the answer are another (examples/retrieval.py).

    Args:
        input_ids: token ids of the prompt, up to the position that looks.
        candidates: positions to choose from, k of them.
        correct: for each candidate whether it is right.
        answer: token id that should come next, for the end-to-end objective; -1 = none.

    Raises:
        ValueError: no candidates, a position outside the prompt or given twice, or not one `correct` for each.
    """
    if not candidates or len(candidates) != len(correct) or len(set(candidates)) < len(candidates):
        raise ValueError(f"expected distinct candidates and whether each is right, got {list(candidates)} and {list(correct)}")
    if not all(0 <= at < len(input_ids) for at in candidates):
        raise ValueError(f"candidates {list(candidates)}: expected positions from 0 to {len(input_ids) - 1}")
    return EncodedPrompt(tuple(input_ids), tuple(candidates), tuple(map(int, correct)), target=1, answer=answer)


@dataclass(frozen=True)
class Batch:
    """What the objective sees: right-padded token ids, and for each prompt where to look from and at what.

    P prompts in B sequences: P = B, or prompts are packed and P is a multiple of B; those of a sequence stand together.
    """

    input_ids: Tensor  # (B, S) int64
    query_positions: Tensor  # (P,) the last token of each prompt; its row is read
    label_positions: Tensor  # (P, K) candidate positions; 0 where a prompt has fewer than K
    correct: Tensor  # (P, K) bool: candidate is right (I+)
    wrong: Tensor  # (P, K) bool: candidate is wrong (I-); neither where there is no candidate
    answers: Tensor | None = None  # (P,) token id of the right label word, -1 where it is not recorded
    position_ids: Tensor | None = None  # (B, S) a token's place in its prompts; None = not packed
    branch_ends: Tensor | None = None  # (B, S) where the tokens end that follow this one in some prompt; None = not packed

    @property
    def lengths(self) -> Tensor:
        """n, tokens in each prompt without padding, (P,)."""
        if self.position_ids is None:
            return self.query_positions + 1
        return at_positions(self.position_ids, self.query_positions) + 1

    @property
    def candidates(self) -> Tensor:
        """Which candidate positions exist, (P, K) bool."""
        return self.correct | self.wrong

    def model_inputs(self) -> dict[str, Tensor]:
        """What every call of the model needs beside the ids, else packed prompts see each other.

        Nothing for plain prompts (causal attention on right-padded ids needs no mask); positions and a (B, 1, S, S) bool mask,
        True = attend, for packed ones.
        """
        if self.branch_ends is None or self.position_ids is None:
            return {}
        return {"position_ids": self.position_ids, "attention_mask": branch_mask(self.branch_ends)}


def write_prompt(task: Task, demonstrations: Sequence[Example], query: Example, protocol: Protocol = "consistent") -> Prompt:
    """One prompt, and where its labels stand.

    `consistent`: the query ends without a trailing space. `staicc`: byte for byte StaICC's prompt.
    """
    template = task.template
    text, spans = template.instruction, []
    for example in demonstrations:
        text += template.before_text + example.text + template.before_label
        word = task.label_words[example.label]
        spans.append((len(text), len(text) + len(word)))
        text += word + template.after_label
    text += template.before_text + query.text
    text += template.after_query(protocol)
    return Prompt(text, tuple(spans), tuple(example.label for example in demonstrations), query.label)


def training_prompts(
    data: TaskData, nd: int, k: int, seed: int, protocol: Protocol = "consistent", queries: int = 1
) -> list[Prompt]:
    """nd prompts, each of k demonstrations and a query drawn without repetition from the training pool.

    With `queries` > 1, every `queries` prompts that follow each other have the same demonstrations; a rest of nd that `queries`
    does not divide is left out.
    """
    data.check(k, queries)
    generator = random.Random(seed)
    draws = (generator.sample(data.train, k + queries) for _ in range(nd // queries))
    return [write_prompt(data.task, draw[:k], query, protocol) for draw in draws for query in draw[k:]]


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
        AbftError: a prompt is longer than `max_length`, or a label word has no token of its own.
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
    """Where heads should look: a label's first token (`consistent`), or its last, which StaICC scores."""
    tokens = _overlapping(span, offsets)
    if not tokens:
        word = prompt.text[span[0] : span[1]]
        raise AbftError(f"label word {word!r} has no token of its own in a prompt; choose another word")
    return tokens[0 if protocol == "consistent" else -1]


def label_tokens(
    tokenizer: "PreTrainedTokenizerBase", task: Task, protocol: Protocol = "consistent"
) -> list[int | tuple[int, ...]]:
    """The token id that stands for each class at the query position; a tuple where a label is several tokens.

    `consistent`: the tokens of the label word as it stands inside a demonstration; where one label begins with another, all
    end with the token that follows a label there. `staicc`: the last sub-token of the bare label word, as StaICC scores it.

    Raises:
        AbftError: two labels are the same tokens, or the tokenizer writes the label differently after a query than inside a
            demonstration.
    """
    if not tokenizer.is_fast:
        raise AbftError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
    if protocol == "staicc":
        tokens = [tokenizer(word)["input_ids"][-1] for word in task.label_words]
        _refuse_shared_tokens(task, tokens)
        return tokens
    pieces: list[tuple[int, ...]] = []
    ends: list[tuple[int, ...]] = []
    detached = []
    for label, word in enumerate(task.label_words):
        prompt = write_prompt(task, [Example("text", label)], Example("text", label), protocol)
        encoding = tokenizer(prompt.text, return_offsets_mapping=True)
        at = _overlapping(prompt.label_spans[0], encoding["offset_mapping"])
        ids = encoding["input_ids"]
        ending = prompt.text[: prompt.label_spans[0][0]].rstrip(" ")
        (query,) = encode(tokenizer, [Prompt(ending, (), (), label)])
        start = len(query.input_ids)  # a space of its own before the label belongs to it
        if at and list(query.input_ids) != ids[:start]:
            detached.append(word)
        pieces.append(tuple(ids[start : at[-1] + 1]) if at else ())
        ends.append(tuple(ids[start : at[-1] + 2]) if at else ())
    _refuse_shared_tokens(task, pieces)
    if detached:
        raise AbftError(
            f"this tokenizer splits {task.template.before_label.strip() + ' ' + detached[0]!r} so that the label does not "
            "directly follow the query; write the template without the space before {label}"
        )
    begun = any(a != b and b[: len(a)] == a for a in pieces for b in pieces)
    return [piece[0] if len(piece) == 1 else piece for piece in (ends if begun else pieces)]


def first_tokens(label_tokens: LabelTokens) -> list[int]:
    """The token with which each label begins."""
    return [label if isinstance(label, int) else label[0] for label in label_tokens]


def with_answers(prompts: Sequence[EncodedPrompt], label_tokens: LabelTokens) -> list[EncodedPrompt]:
    """The same prompts with the first token of the right label recorded, for objectives that look at the LM's output."""
    answers = first_tokens(label_tokens)
    return [replace(prompt, answer=answers[prompt.target]) for prompt in prompts]


def _refuse_shared_tokens(task: Task, tokens: Sequence[int] | Sequence[tuple[int, ...]]) -> None:
    for i, token in enumerate(tokens):
        if token in tokens[:i]:
            first, second = task.label_words[tokens.index(token)], task.label_words[i]  # type: ignore[arg-type]
            raise AbftError(
                f"label words {first!r} and {second!r} have the same tokens for this tokenizer and cannot be told apart; "
                "map one to another word with --label-words 'LABEL=word'"
            )


def collate(prompts: Sequence[EncodedPrompt], queries: int = 1) -> dict[str, Tensor]:
    """The fields of a `Batch`, as a dict because that is what `Trainer` moves between devices.

    With `queries` > 1, every `queries` prompts that follow each other are packed into one sequence; their number has to be
    a multiple of it.
    """
    if len(prompts) % queries:
        raise ValueError(f"{len(prompts)} prompts cannot be packed by {queries}")
    packs = [pack(prompts[start : start + queries]) for start in range(0, len(prompts), queries)]
    B, S, P = len(packs), max(len(each.input_ids) for each in packs), len(prompts)
    K = max(len(prompt.label_positions) for prompt in prompts)
    input_ids = torch.zeros(B, S, dtype=torch.long)  # what stands after a query position is never seen from there
    position_ids = torch.zeros(B, S, dtype=torch.long)
    branch_ends = torch.full((B, S), S)
    positions = torch.zeros(P, K, dtype=torch.long)
    correct = torch.zeros(P, K, dtype=torch.bool)
    wrong = torch.zeros(P, K, dtype=torch.bool)
    query_positions = torch.zeros(P, dtype=torch.long)
    for b, each in enumerate(packs):
        n = len(each.input_ids)
        input_ids[b, :n] = torch.tensor(each.input_ids)
        position_ids[b, :n] = torch.tensor(each.position_ids)
        branch_ends[b, :n] = torch.tensor(each.branch_ends)
        for p, places in enumerate(each.places, start=b * queries):
            prompt = prompts[p]
            k = len(prompt.label_positions)
            query_positions[p] = places[-1]
            positions[p, :k] = torch.tensor([places[at] for at in prompt.label_positions], dtype=torch.long)
            is_right = torch.tensor([label == prompt.target for label in prompt.label_classes], dtype=torch.bool)
            correct[p, :k], wrong[p, :k] = is_right, ~is_right
    batch = {
        "input_ids": input_ids,
        "query_positions": query_positions,
        "label_positions": positions,
        "correct": correct,
        "wrong": wrong,
        "answers": torch.tensor([prompt.answer for prompt in prompts]),
    }
    return batch if queries == 1 else {**batch, "position_ids": position_ids, "branch_ends": branch_ends}


@dataclass(frozen=True)
class Pack:
    """Prompts in one sequence: their tokens as a tree, written depth first."""

    input_ids: tuple[int, ...]
    position_ids: tuple[int, ...]  # depth in the tree: the token's place in every prompt that holds it
    branch_ends: tuple[int, ...]  # token j is an ancestor of token i, or i itself, if j <= i < branch_ends[j]
    places: tuple[tuple[int, ...], ...]  # for each prompt, where its tokens stand


def pack(prompts: Sequence[EncodedPrompt]) -> Pack:
    """Write prompts into one sequence in which every common beginning stands once.

    The mask of S tokens in one sequence grows with S^2: worth it where prompts share most of their tokens.
    """
    ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # places of the last prompt's tokens
    places: list[tuple[int, ...]] = [()] * len(prompts)
    for number in sorted(range(len(prompts)), key=lambda i: prompts[i].input_ids):
        tokens = prompts[number].input_ids
        same = 0
        while same < min(len(path), len(tokens)) and ids[path[same]] == tokens[same]:
            same += 1
        for place in path[same:]:
            ends[place] = len(ids)
        del path[same:]
        for token in tokens[same:]:
            path.append(len(ids))
            depths.append(len(path) - 1)
            ends.append(0)
            ids.append(token)
        places[number] = tuple(path)
    for place in path:
        ends[place] = len(ids)
    return Pack(tuple(ids), tuple(depths), tuple(ends), tuple(places))


class PseudoBatchSampler(torch.utils.data.Sampler[int]):
    """Shuffled prompts, cut into pseudo-batches of `size`, each sorted by length so that micro-batches pad little.

    The order depends on (seed, epoch) only, which is what makes a resumed run repeat it. What does not fill a
    pseudo-batch is left out of that epoch. Every `queries` prompts that follow each other stay together; `lengths` holds the
    tokens of each such group.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int, queries: int = 1) -> None:
        prompts = len(lengths) * queries
        if prompts < size:
            raise AbftError(f"{prompts} training prompts do not fill one pseudo-batch of {size}; use a smaller nb")
        if size % queries:
            raise AbftError(f"pseudo-batches of {size} prompts cannot be packed by {queries}")
        self.lengths = list(lengths)
        self.size, self.seed, self.queries, self.epoch = size, seed, queries, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) * self.queries // self.size * self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        step = self.size // self.queries
        for start in range(0, len(self) // self.queries, step):
            for group in sorted(order[start : start + step], key=lambda i: self.lengths[i]):
                yield from range(group * self.queries, (group + 1) * self.queries)
