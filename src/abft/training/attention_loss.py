"""Add a loss on attention to a training loop of others, such as TRL's SFTTrainer.

    with attention_loss(trainer, VoteObjective(), weight=0.5):
        trainer.train()

The rows of attention come from the forward pass that the loop makes anyway.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from abft.data.batches import Batch, at_positions, collate
from abft.data.encoding import attention_target
from abft.errors import AbftError
from abft.method.objectives import RowObjective
from abft.model.attention import IMPLEMENTATION, causal_lm, decoder, row_attention
from abft.model.capabilities import capabilities

# Columns of a row: the position that looks, what it looks at, and which of these are correct.
LOOKS_FROM, LOOKS_AT, LOOKS_RIGHT = "looks_from", "looks_at", "looks_right"
_PREFIX = "attention_loss_"


class AttentionCollator:
    """Collates rows as another collator does, and adds where their attention should go.

    Args:
        collator: of the training loop. It pads on the right.

    A row has, besides what that collator reads, `input_ids` and the columns `looks_from` (a
    position), `looks_at` (positions, or spans (start, end)) and `looks_right` (for each whether it
    is correct). `remove_unused_columns=False` keeps them.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        own = (LOOKS_FROM, LOOKS_AT, LOOKS_RIGHT)
        prompts = [
            attention_target(
                list(row["input_ids"])[: row[LOOKS_FROM] + 1],
                _candidates(row[LOOKS_AT]),
                row[LOOKS_RIGHT],
            )
            for row in rows
        ]
        batch = dict(
            self.collator([{k: v for k, v in row.items() if k not in own} for row in rows])
        )
        fields = collate(prompts)
        del fields["input_ids"], fields["answers"]
        return {**batch, **{_PREFIX + name: tensor for name, tensor in fields.items()}}


@contextmanager
def attention_loss(
    trainer: Trainer, objective: RowObjective, weight: float = 1.0
) -> Iterator[None]:
    """Changes `trainer` while open: its loss has `weight` times a loss on attention added.

    Its collator becomes an `AttentionCollator`. What is trained, and how, is up to the trainer.

    Args:
        trainer: transformers' `Trainer` or a subclass, of a causal LM or a PEFT model.
        objective: a loss on attention alone, such as `VoteObjective` or `ContrastiveObjective`.
        weight: of its mean over the prompts of an optimizer step.

    Raises:
        AbftError: a family without attention rows, or a trainer that drops the columns.
        ValueError: an objective that reads the model's output.
    """
    if objective.reads_output or not objective.reads_attention:
        raise ValueError(f"{type(objective).__name__} is no loss on attention alone")
    if trainer.args.remove_unused_columns:
        raise AbftError(
            "the trainer would drop the columns of the loss on attention: "
            "set remove_unused_columns=False"
        )
    whole = causal_lm(trainer.model)
    inner, supported = decoder(whole), capabilities(whole)  # type: ignore[arg-type]
    objective.implementation = supported.implementation
    compute_loss, collator = trainer.compute_loss, trainer.data_collator
    targets: list[Batch] = []  # of the forward pass that runs
    read: list[tuple[Tensor, ...]] = []  # its rows

    # The decoder gives its rows: trainers may replace what the whole model returns, as TRL does.
    def ask(module: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if targets:
            inputs = {**inputs, "output_attentions": True, "return_dict": True}
            if supported.implementation == IMPLEMENTATION:
                inputs["row_positions"] = targets[0].query_positions[:, None]
        return args, inputs

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if targets:
            read.append(tuple(each for each in output.attentions if each is not None))

    @functools.wraps(compute_loss)
    def with_attention(
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        fields = {
            name.removeprefix(_PREFIX): inputs.pop(name)
            for name in list(inputs)
            if name.startswith(_PREFIX)
        }
        targets.append(Batch(input_ids=inputs["input_ids"], **fields))
        try:
            result = compute_loss(
                model,
                inputs,
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )
        finally:
            batch = targets.pop()
        rows = tuple(_rows(each, batch) for each in read[0])
        read.clear()
        added, _ = objective.from_rows(rows, rows[0], batch)

        # Where the trainer does not divide by the number of batches in a step, this loss has to be.
        divides = not trainer.model_accepts_loss_kwargs or num_items_in_batch is None
        if not (divides and trainer.compute_loss_func is None):
            added = added / trainer.current_gradient_accumulation_steps
        if return_outputs:
            return result[0] + weight * added.to(result[0].device), result[1]
        return result + weight * added.to(result.device)

    hooks = [
        inner.register_forward_pre_hook(ask, with_kwargs=True),
        inner.register_forward_hook(keep),
    ]
    with row_attention(whole, supported.implementation):
        trainer.compute_loss = with_attention  # type: ignore[method-assign]
        trainer.data_collator = AttentionCollator(collator)
        try:
            yield
        finally:
            trainer.compute_loss = compute_loss  # type: ignore[method-assign]
            trainer.data_collator = collator
            for hook in hooks:
                hook.remove()


def _candidates(looks_at: Sequence[Any]) -> Sequence[int] | Sequence[tuple[int, int]]:
    """Return positions, or spans as pairs: data sets keep them as lists."""
    if isinstance(looks_at[0], int):
        return looks_at
    return [(start, end) for start, end in looks_at]


def _rows(attention: Tensor, batch: Batch) -> Tensor:
    """Return the rows of a layer, (P, H, S), from rows or, of eager attention, a matrix."""
    if attention.shape[2] == 1:
        return attention[:, :, 0]
    return at_positions(attention.transpose(1, 2), batch.query_positions).float()
