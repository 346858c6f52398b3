"""Add a loss on attention to another library's training loop, such as TRL's SFTTrainer.

    with attention_loss(trainer, VoteObjective(), weight=0.5):
        trainer.train()

The rows of attention come from the forward pass that the loop makes anyway.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from abft.data.batches import Batch, at_positions, collate
from abft.data.encoding import EncodedPrompt, attention_target
from abft.errors import AbftError
from abft.method.objectives import RowObjective
from abft.model.attention import IMPLEMENTATION, causal_lm, decoder, row_attention
from abft.model.capabilities import capabilities

# Columns of a data set's row: the position that looks, what it looks at, and which are correct.
_COLUMNS = LOOKS_FROM, LOOKS_AT, LOOKS_RIGHT = "looks_from", "looks_at", "looks_right"
_PREFIX = "attention_loss_"


class AttentionCollator:
    """Collates rows as another collator does, and adds where their attention should go.

    Args:
        collator: the training loop's own, which has to pad on the right.

    Besides what that collator reads, a row has `input_ids` and the columns `looks_from` (a
    position), `looks_at` (positions, or spans (start, end)) and `looks_right` (for each whether it
    is correct). `remove_unused_columns=False` keeps them.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the other collator's batch, with added tensors for the loss on attention.

        Raises:
            ValueError: missing columns; positions outside of a row, for example because it was cut
                after they were counted; positions in some rows and spans in others; a collator that
                moves tokens, for example by padding on the left.
        """
        prompts = [_target(row) for row in rows]
        if len({bool(prompt.label_ends) for prompt in prompts}) > 1:
            raise ValueError(
                f"{LOOKS_AT} holds positions in some rows and spans in others; give spans in all: "
                "(i, i + 1) is position i"
            )
        others = [{k: v for k, v in row.items() if k not in _COLUMNS} for row in rows]
        batch = dict(self.collator(others))
        collated = batch["input_ids"].tolist()
        given = [list(map(int, row["input_ids"])) for row in rows]
        if len(collated) != len(given) or any(
            ids[: len(own)] != own for ids, own in zip(collated, given, strict=True)
        ):
            raise ValueError(
                "the collator moved tokens: pad on the right, without packing or cutting"
            )
        fields = collate(prompts)
        del fields["input_ids"], fields["answers"]
        return {**batch, **{_PREFIX + name: tensor for name, tensor in fields.items()}}


def _target(row: Mapping[str, Any]) -> EncodedPrompt:
    """Return where a row's attention should go."""
    missing = [name for name in _COLUMNS if name not in row]
    if missing:
        raise ValueError(f"rows have no column {missing[0]!r}: expected {', '.join(_COLUMNS)}")
    ids, start = list(map(int, row["input_ids"])), operator.index(row[LOOKS_FROM])
    if not 0 <= start < len(ids):
        raise ValueError(
            f"{LOOKS_FROM} = {start}: the row has {len(ids)} tokens; was it cut (max_length)?"
        )
    given = row[LOOKS_AT]
    given = given.tolist() if isinstance(given, Tensor) else given
    # A data set in torch's format may also give a list of tensors, zero-dimensional for positions.
    given = [each.tolist() if isinstance(each, Tensor) else each for each in given]
    at = [list(each) if isinstance(each, Iterable) else each for each in given]
    candidates: list[Any] = [
        (int(each[0]), int(each[1])) if isinstance(each, list) else int(each) for each in at
    ]
    return attention_target(ids[: start + 1], candidates, list(map(bool, row[LOOKS_RIGHT])))


@contextmanager
def attention_loss(
    trainer: Trainer, objective: RowObjective, weight: float = 1.0
) -> Iterator[None]:
    """Changes `trainer` while open: adds `weight` times a loss on attention to its loss.

    Its collator becomes an `AttentionCollator`. The trainer still decides which weights train.

    Args:
        trainer: transformers' `Trainer` or a subclass, of a causal LM or a PEFT model.
        objective: a loss on attention alone, without a controller, such as `VoteObjective`;
            `ContrastiveObjective` counts all heads unless its `prepare` was called.
        weight: factor of its mean over the prompts of an optimizer step.

    Raises:
        AbftError: a family without attention rows, a trainer that drops the columns or spreads
            batches with nn.DataParallel; while training, reentrant gradient checkpointing.
        ValueError: an objective that reads the model's output or changes between steps.
    """
    if objective.reads_output or not objective.reads_attention:
        raise ValueError(f"{type(objective).__name__} is no loss on attention alone")
    if type(objective).update is not RowObjective.update:
        raise ValueError(f"{type(objective).__name__} changes between steps; use ABFTTrainer")
    if trainer.args.n_gpu > 1:
        raise AbftError("nn.DataParallel splits batches; start one process for each GPU instead")
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

    # Rows are taken from the decoder: trainers may replace what the whole model returns (TRL does).
    def ask(module: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if targets:
            inputs = {**inputs, "output_attentions": True, "return_dict": True}
            if supported.implementation == IMPLEMENTATION:
                inputs["row_positions"] = targets[0].query_positions[:, None]
        return args, inputs

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        if targets:
            read.append(tuple(each for each in output.attentions if each is not None))
            output.attentions = None
        return output

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
            # Also if the loss failed after the decoder: its rows must not pass for a later batch's.
            batch, found = targets.pop(), read[:1]
            read.clear()
        rows = tuple(_rows(each, batch) for each in found[0])
        added, _ = objective.from_rows(rows, rows[0], batch)

        if torch.is_grad_enabled() and model.training and not added.requires_grad:
            raise AbftError(
                "the attention has no gradient: nothing before it is trained (W_Q and W_K are "
                "frozen), or gradient checkpointing is reentrant "
                '(gradient_checkpointing_kwargs={"use_reentrant": False} is needed)'
            )
        if model.training and not _divides(trainer, num_items_in_batch):
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


def _divides(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Return whether the trainer divides a batch's loss by the number of batches in a step."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is not None:
        return not scaled
    own = trainer.compute_loss_func is not None
    return (not trainer.model_accepts_loss_kwargs or num_items_in_batch is None) and not own


def _rows(attention: Tensor, batch: Batch) -> Tensor:
    """Return the rows of a layer, (P, H, S), from rows or, with eager attention, a matrix."""
    if attention.shape[2] == 1:
        return attention[:, :, 0]
    return at_positions(attention.transpose(1, 2), batch.query_positions).float()
