"""Several prompts in one sequence: a tree of tokens that computes shared beginnings once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abft.data.encoding import EncodedPrompt


@dataclass(frozen=True)
class Pack:
    """Prompts in one sequence: their tokens as a tree, written depth first."""

    input_ids: tuple[int, ...]
    position_ids: tuple[
        int, ...
    ]  # depth in the tree: the token's place in every prompt that holds it
    branch_ends: tuple[
        int, ...
    ]  # token j is an ancestor of token i, or i itself, if j <= i < branch_ends[j]
    places: tuple[tuple[int, ...], ...]  # for each prompt, where its tokens stand


def pack(prompts: Sequence[EncodedPrompt]) -> Pack:
    """Write prompts into one sequence in which every common beginning stands once.

    The mask of S tokens in one sequence grows with S^2: worth it where prompts share most of their
    tokens.
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


def branch_mask(branch_ends_BS: Tensor) -> Tensor:
    """Causal attention within the branches of a token tree written depth first: (B, 1, S, S) bool,
    True = attend.

    Token i attends to token j if j is an ancestor of i, or i itself: j <= i < branch_ends[j].
    """
    at = torch.arange(branch_ends_BS.shape[1], device=branch_ends_BS.device)
    return ((at[None, :] <= at[:, None]) & (at[:, None] < branch_ends_BS[:, None, :]))[:, None]
