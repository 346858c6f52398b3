"""Collate encoded prompts into a `Batch` of tensors, and draw the order in which they train."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abft.data.encoding import EncodedPrompt
from abft.data.packing import branch_mask, pack
from abft.errors import AbftError


@dataclass(frozen=True)
class Batch:
    """Holds right-padded token ids and, for each prompt, the positions to look from and at.

    P prompts in B sequences: P = B, or prompts are packed and P is a multiple of B; those of a
    sequence follow each other.
    """

    input_ids: Tensor  # (B, S) int64
    query_positions: Tensor  # (P,) the last token of each prompt; its row is read
    label_positions: Tensor  # (P, K) candidate positions; 0 where a prompt has fewer than K
    correct: Tensor  # (P, K) bool: the candidate is correct (I+)
    incorrect: Tensor  # (P, K) bool: it is incorrect (I-); neither where there is no candidate
    answers: Tensor | None = None  # (P,) token id of the correct label word, -1 = not recorded
    position_ids: Tensor | None = None  # (B, S) position inside the prompt; None = not packed
    branch_ends: Tensor | None = None  # (B, S) end of the branch; see `Pack`; None = not packed
    seen_again: Tensor | None = None  # (B, S) from where on blocks are seen; None = no blocks
    label_ends: Tensor | None = None  # (P, K) ends of spans; None = candidates are single tokens
    looking: Tensor | None = (
        None  # (P, T) positions that look, -1 = none; None = `query_positions` alone
    )
    in_label: Tensor | None = None  # (B, S) bool, within a label of several tokens; None = none are

    @classmethod
    def of(
        cls, prompts: Sequence[EncodedPrompt], queries: int, device: torch.device | str
    ) -> "Batch":
        """Collate prompts, packed by `queries`, on a device."""
        fields = collate(prompts, queries)
        return cls(**{name: tensor.to(device) for name, tensor in fields.items()})

    @property
    def lengths(self) -> Tensor:
        """Return n, the number of tokens in each prompt without padding, (P,)."""
        if self.position_ids is None:
            return self.query_positions + 1

        return at_positions(self.position_ids, self.query_positions) + 1

    @property
    def candidates(self) -> Tensor:
        """Return which candidate positions exist, (P, K) bool."""
        return self.correct | self.incorrect

    def model_inputs(self) -> dict[str, Tensor]:
        """Return what every call of the model needs besides the ids.

        It is empty for plain prompts (causal attention on right-padded ids needs no mask). For
        packed ones it holds positions and a (B, 1, S, S) bool mask, True = attend; without it, they
        would see each other.
        """
        if self.branch_ends is None or self.position_ids is None:
            return {}

        # The mask is made here, on the model's device: the batch itself stays small.
        mask = branch_mask(self.branch_ends, self.seen_again)
        return {"position_ids": self.position_ids, "attention_mask": mask}


def collate(prompts: Sequence[EncodedPrompt], queries: int = 1) -> dict[str, Tensor]:
    """Return the fields of a `Batch`, as the dict that `Trainer` moves between devices.

    With `queries` > 1, every `queries` consecutive prompts are packed into one sequence; the number
    of prompts has to be a multiple of it. Candidates have to be spans in all prompts or in none,
    and so do blocks.
    """
    if len(prompts) % queries:
        raise ValueError(f"{len(prompts)} prompts cannot be packed by {queries}")

    # A prompt that is not packed is a pack of one.
    packs = [pack(prompts[start : start + queries]) for start in range(0, len(prompts), queries)]
    B, P = len(packs), len(prompts)
    S = max(len(sequence.input_ids) for sequence in packs)
    K = max(len(prompt.label_positions) for prompt in prompts)

    # Padding follows the last query position, where causal attention never looks.
    input_ids = torch.zeros(B, S, dtype=torch.long)
    position_ids = torch.zeros(B, S, dtype=torch.long)
    branch_ends = torch.full((B, S), S)
    query_positions = torch.zeros(P, dtype=torch.long)
    label_positions = torch.zeros(P, K, dtype=torch.long)
    correct = torch.zeros(P, K, dtype=torch.bool)
    incorrect = torch.zeros(P, K, dtype=torch.bool)
    seen_again = torch.full((B, S), S)
    label_ends = torch.zeros(P, K, dtype=torch.long)
    in_label = torch.zeros(B, S, dtype=torch.bool)
    looking = torch.full((P, max(prompt.looking for prompt in prompts)), -1)

    for b, sequence in enumerate(packs):
        n = len(sequence.input_ids)
        input_ids[b, :n] = torch.tensor(sequence.input_ids)
        position_ids[b, :n] = torch.tensor(sequence.position_ids)
        branch_ends[b, :n] = torch.tensor(sequence.branch_ends)
        seen_again[b, :n] = torch.tensor(sequence.seen_again)

        for p, places in enumerate(sequence.places, start=b * queries):
            prompt = prompts[p]
            query_positions[p] = places[-1]
            looking[p, : prompt.looking] = torch.tensor(places[-prompt.looking :])

            # Positions in the prompt become positions in the sequence.
            for k, position in enumerate(prompt.label_positions):
                label_positions[p, k] = places[position]
                if prompt.label_ends:
                    label_ends[p, k] = places[prompt.label_ends[k] - 1] + 1
                is_correct = prompt.label_classes[k] == prompt.target
                correct[p, k], incorrect[p, k] = is_correct, not is_correct
            for start, end in prompt.label_words:
                in_label[b, list(places[start:end])] = True

    batch = {
        "input_ids": input_ids,
        "query_positions": query_positions,
        "label_positions": label_positions,
        "correct": correct,
        "incorrect": incorrect,
        "answers": torch.tensor([prompt.answer for prompt in prompts]),
    }

    # Without these, the batch is not packed, candidates are single tokens, and one token looks.
    if queries > 1 or prompts[0].blocks:
        batch |= {"position_ids": position_ids, "branch_ends": branch_ends}
    if prompts[0].blocks:
        batch["seen_again"] = seen_again
    if prompts[0].label_ends:
        batch["label_ends"] = label_ends
    if looking.shape[1] > 1:
        batch["looking"] = looking
    if in_label.any():
        batch["in_label"] = in_label
    return batch


class PseudoBatchSampler(torch.utils.data.Sampler[int]):
    """Shuffles prompts and cuts them into pseudo-batches of `size`, each sorted by length.

    Micro-batches of prompts of similar length pad little. The order depends only on (seed, epoch),
    so that a resumed run repeats it. Prompts that do not fill a pseudo-batch are left out of that
    epoch. Every `queries` consecutive prompts stay together; `lengths` holds the number of tokens
    of each such group.

    Raises:
        AbftError: fewer prompts than one pseudo-batch, or one that `queries` does not divide.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int, queries: int = 1) -> None:
        prompts = len(lengths) * queries
        if prompts < size:
            raise AbftError(
                f"{prompts} training prompts do not fill one pseudo-batch of {size}; use a "
                f"smaller nb"
            )
        if size % queries:
            raise AbftError(f"pseudo-batches of {size} prompts cannot be packed by {queries}")

        self.lengths = list(lengths)
        self.size, self.seed, self.queries, self.epoch = size, seed, queries, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch on which the next order depends."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) * self.queries // self.size * self.size

    def __iter__(self) -> Iterator[int]:
        # The large factor keeps the epochs of neighbouring seeds apart.
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()

        # Within a pseudo-batch the order does not matter, so it can be sorted by length.
        groups = self.size // self.queries
        for start in range(0, len(self) // self.queries, groups):
            pseudo_batch = order[start : start + groups]
            for group in sorted(pseudo_batch, key=lambda i: self.lengths[i]):
                yield from range(group * self.queries, (group + 1) * self.queries)


def at_positions(values_BS: Tensor, positions_P: Tensor) -> Tensor:
    """Return the values at single positions of (B, S, ...), (P, ...).

    P is B or a multiple of it, with P / B positions of each sequence in order.
    """
    B, P = len(values_BS), len(positions_P)

    # Which sequence each position is in: 0, 0, 1, 1, ... where P = 2 B.
    sequence_P = torch.arange(P, device=values_BS.device) // (P // B)
    return values_BS[sequence_P, positions_P.to(values_BS.device)]
