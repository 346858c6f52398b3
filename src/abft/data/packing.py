"""Pack several prompts into one sequence: a tree of tokens that computes shared beginnings once.

Prompts begin alike where the same demonstrations precede several queries. In the tree every token
sees its ancestors only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abft.data.encoding import EncodedPrompt


@dataclass(frozen=True)
class Pack:
    """Holds prompts in one sequence: their tokens as a tree, written depth first."""

    input_ids: tuple[int, ...]
    # Depth in the tree: the token's position in every prompt that holds it.
    position_ids: tuple[int, ...]
    # Token j is an ancestor of token i, or i itself, if j <= i < branch_ends[j].
    branch_ends: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]  # for each prompt, the indices of its tokens
    # From this index on, the tokens of a block are seen again, which other blocks do not see: by
    # what follows all blocks. The number of tokens if there are no blocks.
    seen_again: tuple[int, ...] = ()


def pack(prompts: Sequence[EncodedPrompt]) -> Pack:
    """Write prompts into one sequence that holds every common beginning once.

    The mask of S tokens in one sequence grows with S^2, so this is worth it if prompts share most
    of their tokens.
    """
    ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # places of the last prompt's tokens
    places: list[tuple[int, ...]] = [()] * len(prompts)

    # In sorted order, prompts that begin alike follow each other: each continues the last path.
    for number in sorted(range(len(prompts)), key=lambda i: prompts[i].input_ids):
        tokens = prompts[number].input_ids
        common = 0
        while common < min(len(path), len(tokens)) and ids[path[common]] == tokens[common]:
            common += 1

        # The branches that this prompt leaves end here.
        for place in path[common:]:
            ends[place] = len(ids)
        del path[common:]

        for token in tokens[common:]:
            path.append(len(ids))
            depths.append(len(path) - 1)
            ends.append(0)  # set when the branch is left
            ids.append(token)
        places[number] = tuple(path)

    for place in path:
        ends[place] = len(ids)
    packed = Pack(tuple(ids), tuple(depths), tuple(ends), tuple(places), (len(ids),) * len(ids))
    return _with_blocks(packed, prompts) if prompts[0].blocks else packed


def _with_blocks(packed: Pack, prompts: Sequence[EncodedPrompt]) -> Pack:
    """Hide the candidates of prompts from each other.

    The positions of every candidate begin right after the shared beginning, so that its place among
    the candidates does not matter. The positions of what follows continue after the longest
    candidate.

    Raises:
        ValueError: prompts whose candidates are not the same tokens.
    """
    first = prompts[0]
    spans = list(zip(first.label_positions, first.label_ends, strict=True))
    head, tail = spans[0][0], spans[-1][1]
    for prompt, places in zip(prompts, packed.places, strict=True):
        same = (prompt.label_positions, prompt.label_ends) == (
            first.label_positions,
            first.label_ends,
        )
        if not same or places[:tail] != tuple(range(tail)):
            raise ValueError("prompts of one pack need the same blocks")

    positions, ends, again = (
        list(packed.position_ids),
        list(packed.branch_ends),
        list(packed.seen_again),
    )
    # Tokens between two spans, such as a line feed, belong to the span before them.
    starts = [start for start, _ in spans]
    longest = 0
    for start, end in zip(starts, [*starts[1:], tail], strict=True):
        longest = max(longest, end - start)
        for place in range(start, end):
            positions[place] = head + place - start
            ends[place], again[place] = end, tail
    for place in range(tail, len(positions)):
        positions[place] += head + longest - tail
    return Pack(packed.input_ids, tuple(positions), tuple(ends), packed.places, tuple(again))


def branch_mask(branch_ends_BS: Tensor, seen_again_BS: Tensor | None = None) -> Tensor:
    """Return the mask of causal attention within the branches of token trees written depth first.

    (B, 1, S, S) bool, True = attend. Token i attends to token j if j is an ancestor of i, or i
    itself: j <= i < branch_ends[j]; or if j is in a block that i follows: i >= seen_again[j].
    """
    places_S = torch.arange(branch_ends_BS.shape[1], device=branch_ends_BS.device)
    causal_SS = places_S[None, :] <= places_S[:, None]
    visible_BSS = places_S[:, None] < branch_ends_BS[:, None, :]
    if seen_again_BS is not None:
        visible_BSS = visible_BSS | (places_S[:, None] >= seen_again_BS[:, None, :])
    return (causal_SS & visible_BSS)[:, None]
