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


def pack(prompts: Sequence[EncodedPrompt]) -> Pack:
    """Write prompts into one sequence that holds every common beginning once.

    The mask of S tokens in one sequence grows with S^2: worth it where prompts share most of their
    tokens.
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
    return Pack(tuple(ids), tuple(depths), tuple(ends), tuple(places))


def branch_mask(branch_ends_BS: Tensor) -> Tensor:
    """Return the mask of causal attention within the branches of token trees written depth first.

    (B, 1, S, S) bool, True = attend. Token i attends to token j if j is an ancestor of i, or i
    itself: j <= i < branch_ends[j].
    """
    places_S = torch.arange(branch_ends_BS.shape[1], device=branch_ends_BS.device)
    causal_SS = places_S[None, :] <= places_S[:, None]
    in_branch_BSS = places_S[:, None] < branch_ends_BS[:, None, :]
    return (causal_SS & in_branch_BSS)[:, None]
