"""Which weights train - W_Q and W_K, nothing else - and how they are saved, loaded, merged and extrapolated.

Full rank: the tensors themselves, in one file `qk_weights.safetensors`. LoRA: a stock PEFT adapter. Where a family
fuses Q, K and V into one weight, gradients of the other rows are zeroed, so that they stay bit-equal.
"""

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from abft.errors import AbftError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

FULL_RANK_FILE = "qk_weights.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
_FORMAT = "abft-qk-1"
_BASE_NORM_TOLERANCE = 0.02  # relative; another precision of the same base passes, another model does not


@dataclass(frozen=True)
class QKModule:
    """A linear module that computes queries or keys."""

    name: str  # path inside the model
    layer: int
    outputs: Tensor | None  # (out,) bool: output features that belong to Q or K; None = all of them


def _blocks(heads: int, kv_heads: int, dim: int) -> Tensor:
    """[Q; K; V], as in GPT-2 and Phi-3."""
    return torch.tensor([True] * (heads + kv_heads) * dim + [False] * kv_heads * dim)


def _interleaved(heads: int, dims: list[tuple[int, bool]]) -> Tensor:
    """The same blocks for every head, as in GPT-NeoX (q, k, v), MLA (k, v) and gated queries (q, gate)."""
    return torch.tensor([kept for size, kept in dims for _ in range(size)] * heads)


def _outputs(leaf: str, module: nn.Module, model: "PreTrainedModel") -> Tensor | None:
    """Which outputs of a module named `leaf` are Q or K. Raises AbftError for a fused layout that is not known."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    family = config.model_type
    out = module.nf if hasattr(module, "nf") else module.out_features  # Conv1D has nf
    masks: dict[tuple[str, str], Tensor] = {}
    if leaf == "q_proj" and family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text") and out == 2 * heads * dim:
        return _interleaved(heads, [(dim, True), (dim, False)])
    if leaf in ("q_proj", "k_proj", "q_b_proj"):
        return None
    if leaf in ("kv_b_proj", "kv_a_proj_with_mqa"):
        masks[family, "kv_b_proj"] = _interleaved(heads, [(config.qk_nope_head_dim, True), (config.v_head_dim, False)])
        rotary = config.qk_rope_head_dim
        masks[family, "kv_a_proj_with_mqa"] = torch.tensor([False] * config.kv_lora_rank + [True] * rotary)
    masks["gpt2", "c_attn"] = _blocks(heads, heads, dim)
    masks["phi3", "qkv_proj"] = _blocks(heads, kv_heads, dim)
    masks["gpt_neox", "query_key_value"] = _interleaved(heads, [(dim, True), (dim, True), (dim, False)])
    masks["bloom", "query_key_value"] = masks["gpt_neox", "query_key_value"]
    mask = masks.get((family, leaf))
    if mask is None or len(mask) != out:
        raise AbftError(
            f"model family {family!r}: the layout of its fused {leaf!r} is not known, so W_Q and W_K cannot be told from W_V"
        )
    return mask


_LEAVES = ("q_proj", "k_proj", "q_b_proj", "kv_b_proj", "kv_a_proj_with_mqa", "c_attn", "qkv_proj", "query_key_value")


def qk_modules(model: "PreTrainedModel", layers: Collection[int] | None = None) -> list[QKModule]:
    """Every module of the decoder that computes queries or keys, or those of some layers (counted from 0).

    Raises:
        AbftError: none found, an unknown fused layout, or layers that do not exist.
    """
    from abft.attention import decoder

    prefix = next(name for name, module in model.named_modules() if module is decoder(model))
    found = []
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        inside = name.startswith(prefix + ".") if prefix else True
        number = re.search(r"\.(\d+)\.", f".{name}.")
        if leaf in _LEAVES and inside and number and hasattr(module, "weight"):
            found.append(QKModule(name, int(number[1]), _outputs(leaf, module, model)))
    if not found:
        raise AbftError(
            f"model family {model.config.model_type!r}: no query and key projections found (looked for {', '.join(_LEAVES)})"
        )
    if layers is None:
        return found
    known = {module.layer for module in found}
    unknown = sorted(set(layers) - known)
    if unknown or not layers:
        raise AbftError(f"layers {unknown or 'none'} cannot be trained; this model's attention layers are {_spans(known)}")
    return [module for module in found if module.layer in layers]


def _spans(numbers: Collection[int]) -> str:
    ordered = sorted(numbers)
    whole = ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]}-{ordered[-1]}" if whole else ", ".join(map(str, ordered))


def _keep_only(parameter: Tensor, mask: Tensor) -> None:
    """Changes `parameter`: its gradient is zeroed outside `mask` (broadcastable), so Adam never moves the rest."""
    parameter.register_hook(lambda gradient: gradient * mask.to(gradient.device, gradient.dtype))


def train_full_rank(model: "PreTrainedModel", layers: Collection[int] | None = None) -> None:
    """Changes `model`: only W_Q and W_K require gradients (weights, not biases). Use no weight decay.

    Raises:
        AbftError: the weights are quantised or in half precision, where small updates would be lost.
    """
    modules = qk_modules(model, layers)
    model.requires_grad_(False)
    for qk in modules:
        module = model.get_submodule(qk.name)
        weight: Tensor = module.weight  # type: ignore[assignment]
        if weight.dtype != torch.float32:
            kind = "quantised" if not weight.dtype.is_floating_point else str(weight.dtype).removeprefix("torch.")
            raise AbftError(
                f"full-rank training needs float32 weights, got {kind}. Train with LoRA (--lora-r 16), or load the model in "
                "float32 (with --bf16 the computation still runs in bfloat16)."
            )
        weight.requires_grad_(True)
        if qk.outputs is not None:  # Conv1D (GPT-2) stores (in, out), Linear (out, in)
            _keep_only(weight, qk.outputs if hasattr(module, "nf") else qk.outputs[:, None])


def add_lora(model: "PreTrainedModel", config: "LoraConfig", layers: Collection[int] | None = None) -> "PeftModel":
    """Changes `model` into a PEFT model with LoRA on W_Q and W_K; fused V outputs keep a zero update.

    `config.target_modules` and `layers_to_transform` are filled in where they are not set.
    """
    from peft import get_peft_model

    modules = qk_modules(model, layers)
    if config.target_modules is None:
        config.target_modules = {qk.name.rpartition(".")[2] for qk in modules}
    if layers is not None:
        config.layers_to_transform = sorted({qk.layer for qk in modules})
    config.fan_in_fan_out = any(hasattr(model.get_submodule(qk.name), "nf") for qk in modules)
    config.task_type = config.task_type or "CAUSAL_LM"
    peft_model = get_peft_model(model, config)
    mask_lora(peft_model)
    return peft_model


def mask_lora(peft_model: "PeftModel") -> None:
    """Changes `peft_model`: LoRA on fused weights learns Q and K outputs only (B starts at 0, so dW_V stays 0)."""
    base = peft_model.get_base_model()
    for name, module in base.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in _LEAVES and hasattr(module, "lora_B"):
            outputs = _outputs(leaf, module.get_base_layer(), base)
            if outputs is not None:
                for lora_b in module.lora_B.values():
                    _keep_only(lora_b.weight, outputs[:, None])


def trainable_parameters(model: nn.Module) -> int:
    """Entries of weights that can change; V rows of fused weights are not counted."""
    peft = hasattr(model, "get_base_model")
    base = model.get_base_model() if peft else model
    counted = 0
    for name, module in base.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf not in _LEAVES:
            continue
        weights = [b.weight for b in module.lora_B.values()] if hasattr(module, "lora_B") else [module.weight]
        inner = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        outputs = _outputs(leaf, inner, base)
        share = 1.0 if outputs is None else outputs.float().mean().item()
        counted += sum(round(w.numel() * share) for w in weights if w.requires_grad)
        if hasattr(module, "lora_A"):
            counted += sum(a.weight.numel() for a in module.lora_A.values() if a.weight.requires_grad)
    return counted


def save_full_rank(model: "PreTrainedModel", folder: str | Path, base_norms: dict[str, float]) -> None:
    """Write the trained tensors to `folder/qk_weights.safetensors`.

    Args:
        base_norms: `weight_norms` of the model before training, by which another base model is recognised.
    """
    tensors = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    metadata = {
        "format": _FORMAT,
        "base_model": str(model.config.name_or_path),
        "base_norms": json.dumps(base_norms),
    }
    save_file(tensors, Path(folder) / FULL_RANK_FILE, metadata=metadata)


def weight_norms(model: nn.Module) -> dict[str, float]:
    """Frobenius norm of every parameter that requires a gradient."""
    return {n: p.detach().float().norm().item() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_full_rank(model: "PreTrainedModel", folder: str | Path, factor: float = 1.0, check_base: bool = True) -> None:
    """Changes `model`, the base model: theta0 + factor * (theta - theta0) for every saved tensor.

    Args:
        check_base: compare the model's own tensors with those that training began with; off when resuming.

    Raises:
        AbftError: not such a file, or one that was trained on another model.
    """
    path = Path(folder) / FULL_RANK_FILE
    parameters = dict(model.named_parameters())
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise AbftError(f"{path} could not be read: {error}. Was writing it cut short?") from None
    if metadata.get("format") != _FORMAT:
        raise AbftError(f"{path}: expected format {_FORMAT}, got {metadata.get('format')!r}")
    base_norms = json.loads(metadata["base_norms"])
    made_for = f"{path} was trained on {metadata['base_model']!r}, which is not the model given"
    for name, tensor in saved.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != tensor.shape:
            raise AbftError(f"{made_for}: {name} is {'missing' if parameter is None else 'of another shape'} there")
        norm = parameter.float().norm().item()
        if check_base and not math.isclose(norm, base_norms[name], rel_tol=_BASE_NORM_TOLERANCE):
            raise AbftError(f"{made_for}: {name} has norm {norm:.4g}, expected {base_norms[name]:.4g}")
    for name, tensor in saved.items():
        theta0 = parameters[name]
        new = tensor.to(theta0.device)
        theta0.copy_(new if factor == 1.0 else theta0.float() + factor * (new.float() - theta0.float()))


def apply_weights(model: "PreTrainedModel", folder: str | Path, factor: float = 1.0) -> "PreTrainedModel":
    """Changes `model`, the base model: a run's weights are merged in, extrapolated by `factor`; returns the plain model.

    Raises:
        AbftError: no weights in `folder`, or weights of another model.
    """
    folder = Path(folder)
    if (folder / FULL_RANK_FILE).is_file():
        load_full_rank(model, folder, factor)
        return model
    if not (folder / ADAPTER_FILE).is_file():
        raise AbftError(f"{folder} holds neither {FULL_RANK_FILE} nor {ADAPTER_FILE}; is it the folder of a finished run?")
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise AbftError(f"the adapter in {folder} was trained on another model: {reason}") from None
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            for name in module.scaling:
                module.set_scale(name, factor)
    return adapted.merge_and_unload()
