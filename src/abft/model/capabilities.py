"""Measure what a model supports: attention rows, packing, a known LM head.

Every question is answered by running the model on a few tokens, once; the answers are kept with the
model.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abft.data.batches import Batch, at_positions
from abft.data.encoding import EncodedPrompt
from abft.data.packing import pack
from abft.errors import AbftError
from abft.model.attention import (
    IMPLEMENTATION,
    Implementation,
    causal_lm,
    decoder,
    lock_of,
    read_rows,
    row_attention,
)
from abft.model.lm_head import output_logits
from abft.model.qk_weights import qk_modules, softmax_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEPT = "_abft_capabilities"  # attribute of the model

# Rows and hidden states that are computed in two ways may differ by rounding; peaked rows of
# trained models do by 1.1e-4.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2


class Capabilities:
    """Measures what one model supports; `capabilities(model)` makes and keeps it.

    Attributes:
        dtype: precision of the weights when the model was measured.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self.dtype = next(decoder(model).parameters()).dtype

    @functools.cached_property
    def implementation(self) -> Implementation:
        """Return how attention rows are read.

        "abft_rows" where our rows agree with eager attention's; "eager" (slower, n x n matrices,
        the same rows) where the family ignores transformers' attention interface.

        Raises:
            AbftError: the family gives no softmax rows at all, or rows that differ.
        """
        with lock_of(self._model), torch.no_grad(), eval_mode(self._model):
            return _probe_implementation(self._model, self._tolerance)

    @functools.cached_property
    def packs(self) -> bool:
        """Return whether packed prompts give the rows and hidden states of plain ones.

        Families with sliding windows, recurrent layers, positions of their own (ALiBi) or without
        transformers' attention interface do not.
        """
        if not attends_to_everything(self._model):
            return False
        try:
            with lock_of(self._model), torch.no_grad(), eval_mode(self._model):
                return _packs_like_plain(self._model, self._tolerance)
        except Exception:
            # Legacy families refuse keywords, masks or positions, each with its own exception.
            return False

    @functools.cached_property
    def keeps_prefix(self) -> bool:
        """Return whether keys and values of a common beginning can serve many prompts."""
        return self.packs and rotation_limit(self._model) is None

    @functools.cached_property
    def _output_difference(self) -> float:
        with lock_of(self._model), torch.no_grad(), eval_mode(self._model):
            return _output_difference(self._model)

    def check_lm_head(self) -> None:
        """Raise AbftError if a family computes logits in a way `output_logits` does not know."""
        if self._output_difference > 0.02:
            raise AbftError(
                f"model family {self._model.config.model_type!r} computes its logits in a way this "
                "package does not know; please report the family"
            )

    @property
    def _tolerance(self) -> float:
        # 4-bit weights are multiplied in half precision.
        quantized = getattr(self._model, "is_quantized", False)
        exact = self.dtype == torch.float32 and not quantized
        return _TOLERANCE if exact else _HALF_TOLERANCE


def capabilities(model: nn.Module) -> Capabilities:
    """Return what a model supports, measured at most once for each precision of its weights.

    Args:
        model: a causal LM, or a PEFT model around one.

    Raises:
        AbftError: the family has no decoder apart from its LM head.
    """
    whole = causal_lm(model)

    # A copied model may carry the answers of the model it was copied from.
    kept = vars(whole).get(_KEPT)
    if kept is None or kept._model is not whole or kept.dtype != _dtype(whole):
        kept = vars(whole)[_KEPT] = Capabilities(whole)  # type: ignore[arg-type]
    return kept


def supported_implementation(model: nn.Module) -> Implementation:
    """Return how a model's attention rows are read; see `Capabilities.implementation`."""
    return capabilities(model).implementation


def attends_to_everything(model: nn.Module) -> bool:
    """Return whether every layer attends to all keys: no sliding window, no recurrent state."""
    config = causal_lm(model).config.get_text_config()

    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


def rotation_limit(model: nn.Module) -> int | None:
    """Return the length above which all of a prompt's keys are rotated differently; None = none.

    "longrope" has one rotation for shorter sequences and one for longer. "dynamic" has another one
    for every longer length, and which one it uses depends on what ran before.
    """
    limits = [
        config.max_position_embeddings
        if rope["rope_type"] == "dynamic"
        else rope["original_max_position_embeddings"]
        for config, rope in _length_dependent_rotations(model)
    ]
    return min(limits, default=None)


def check_lengths(model: nn.Module, longest: int) -> None:
    """Raise AbftError if probabilities of prompts would depend on what the model ran before.

    `longest`: tokens of the longest prompt.
    """
    for config, rope in _length_dependent_rotations(model):
        limit = config.max_position_embeddings
        if rope["rope_type"] == "dynamic" and longest > limit:
            raise AbftError(
                f"a prompt has {longest} tokens; beyond {limit}, this model's rotary scaling "
                '("dynamic") depends on the sequences that ran before. Use a smaller k or shorter '
                "texts."
            )


def _length_dependent_rotations(model: nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """Return configuration and parameters of every rotation that depends on a prompt's length."""
    config = causal_lm(model).config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}

    # Some families give parameters for each type of layer.
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    return [
        (config, rope)
        for rope in (parameters, *by_layer)
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]


def _dtype(model: nn.Module) -> torch.dtype:
    return next(decoder(model).parameters()).dtype


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Changes `model` to eval mode while open; afterwards, each part is in its own mode again."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _probe_implementation(model: "PreTrainedModel", tolerance: float) -> Implementation:
    """Compare our rows with eager attention's on nine tokens, and return what can be used.

    Raises:
        AbftError: as `Capabilities.implementation`.
    """
    config = model.config.get_text_config()
    family = config.model_type
    if getattr(config, "index_topk", None):
        raise AbftError(
            f"model family {family!r} selects keys with a sparse indexer: its attention rows are "
            "no plain softmax. Use a model with dense softmax attention."
        )

    inner = decoder(model)
    device = next(inner.parameters()).device

    # The last position but one is read, so that there is a token that its row must not see.
    ids = torch.arange(3, 3 + 9, device=device).remainder(config.vocab_size)[None]
    positions = torch.tensor([ids.shape[1] - 2], device=device)

    with row_attention(model, "eager"):
        eager, _ = read_rows(inner, ids, positions, "eager")
    if not eager or any(rows.shape[-1] != ids.shape[1] for rows in eager):
        raise AbftError(
            f"model family {family!r} does not return attention weights from every layer, not even "
            "with eager attention. ABFT needs a decoder-only model with softmax attention."
        )
    # Heads are named by layer. Where W_Q and W_K are not known, nothing can be trained.
    layers = _known_layers(model)
    if layers is not None and len(layers) != len(eager):
        raise AbftError(
            f"model family {family!r} has W_Q and W_K in {len(layers)} layers, and {len(eager)} "
            "attentions: heads cannot be told apart by layer. Use another model."
        )

    # Where the family ignores the interface, it returns full matrices or nothing.
    with row_attention(model):
        ours = _interface_rows(inner, ids, positions)
    expected = [(1, rows.shape[1], 1, ids.shape[1]) for rows in eager]
    if [tuple(rows.shape) for rows in ours] != expected:
        return "eager"

    pairs = zip(ours, eager, strict=True)
    difference = max((a.squeeze(2) - b).abs().max().cpu() for a, b in pairs).item()
    if math.isnan(difference):
        raise AbftError(
            "the model's attention is not finite: its weights are corrupted, or half precision is "
            "too narrow for it"
        )
    if difference > tolerance == _HALF_TOLERANCE and layers is not None:
        # Over many layers, rounding adds up.
        difference = _difference_by_layer(model, ids, positions)
    if difference > tolerance:
        raise AbftError(
            f"model family {family!r}: our attention rows differ from eager attention by "
            f"{difference:.1e}, expected at most {tolerance:.0e}. Refusing to train on incorrect "
            "rows; please report the family."
        )
    return IMPLEMENTATION


def _difference_by_layer(model: "PreTrainedModel", ids: Tensor, positions: Tensor) -> float:
    """Return how far our attentions are from eager ones with the same inputs, layer by layer.

    Rows are compared as they are, outputs relative to the largest.
    """
    inner = decoder(model)
    parents = {module.name.rpartition(".")[0] for module in qk_modules(model)}
    attentions = [model.get_submodule(name) for name in parents]
    # A module may run several times in a forward pass.
    inputs: dict[nn.Module, list[Tensor]] = {module: [] for module in attentions}
    outputs: dict[nn.Module, list[Tensor]] = {module: [] for module in attentions}
    differences = []

    def keep_input(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs[module].append(arguments[0] if arguments else keywords["hidden_states"])

    def keep_output(module: nn.Module, _: object, output: Any) -> None:
        outputs[module].append(output[0])

    def same_input(
        module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = inputs[module].pop(0)
        if arguments:
            return (hidden, *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": hidden}

    def compare_output(module: nn.Module, _: object, output: Any) -> None:
        expected = outputs[module].pop(0)
        scale = max(1.0, expected.abs().max().item())
        differences.append((output[0] - expected).abs().max().item() / scale)

    with row_attention(model, "eager"), ExitStack() as hooks:
        for module in attentions:
            hooks.callback(module.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(keep_output).remove)
        eager, _ = read_rows(inner, ids, positions, "eager")

    with row_attention(model), ExitStack() as hooks:
        for module in attentions:
            hooks.callback(module.register_forward_pre_hook(same_input, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(compare_output).remove)
        ours = _interface_rows(inner, ids, positions)

    pairs = zip(ours, eager, strict=True)
    differences += [(a.squeeze(2) - b).abs().max().item() for a, b in pairs]
    return max(differences)


def _known_layers(model: "PreTrainedModel") -> list[int] | None:
    try:
        return softmax_layers(model)
    except AbftError:
        return None


def _interface_rows(inner: nn.Module, ids: Tensor, positions: Tensor) -> list[Tensor]:
    """Return the attentions that a model gives under our function, unchecked.

    There are none where a legacy family refuses the extra keyword.
    """
    try:
        output = inner(
            input_ids=ids,
            output_attentions=True,
            use_cache=False,
            return_dict=True,
            row_positions=positions[:, None],
        )
    except TypeError:
        return []
    return [rows for rows in output.get("attentions") or () if rows is not None]


def _packs_like_plain(model: "PreTrainedModel", tolerance: float) -> bool:
    """Return whether two prompts read packed give what they give one by one."""
    inner = decoder(model)
    device = next(inner.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size

    # Five tokens that both prompts share, then three of their own.
    shared, endings = range(3, 8), (range(8, 11), range(11, 14))
    prompts = [
        EncodedPrompt(tuple(i % vocabulary for i in (*shared, *ending)), (), (), 0)
        for ending in endings
    ]

    def read(queries: int) -> tuple[tuple[Tensor, ...], Tensor, Batch]:
        batch = Batch.of(prompts, queries, device)
        inputs = batch.model_inputs()
        rows, hidden = read_rows(inner, batch.input_ids, batch.query_positions, **inputs)
        return rows, hidden, batch

    with row_attention(model):
        plain_rows, plain_BSD, _ = read(1)
        packed_rows, packed_1SD, packed = read(len(prompts))
    n = len(prompts[0].input_ids)
    if any(rows.shape[-1] != n for rows in plain_rows):
        return False

    # Hidden states are compared relative to the largest, rows as they are.
    hidden_PD = plain_BSD[:, -1]
    packed_PD = at_positions(packed_1SD, packed.query_positions)
    scale = max(1.0, hidden_PD.abs().max().item())
    differences = [(packed_PD - hidden_PD).abs().max().item() / scale]
    for plain_PHS, packed_PHS in zip(plain_rows, packed_rows, strict=True):
        for p, places in enumerate(pack(prompts).places):
            difference = packed_PHS[p][:, list(places)] - plain_PHS[p]
            differences.append(difference.abs().max().item())
    return max(differences) <= tolerance


def _output_difference(model: "PreTrainedModel") -> float:
    """Return how far our logits are from the model's on two tokens, relative to the largest."""
    inner = decoder(model)
    ids = torch.tensor([[3, 4]], device=next(inner.parameters()).device)

    # Only the last position is compared.
    expected = model(input_ids=ids, use_cache=False).logits[0, -1:].float()
    hidden_BD = inner(input_ids=ids, use_cache=False)[0][:, -1]
    ours = output_logits(model, hidden_BD).to(expected.device)
    return (ours - expected).abs().max().item() / max(1.0, expected.abs().max().item())
