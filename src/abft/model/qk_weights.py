"""Select the weights that train: W_Q and W_K, nothing else, at full rank or through LoRA.

Where a family fuses Q, K and V into one weight, gradients of the other rows are zeroed, so that
they stay bit-equal.
"""

import copy
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abft.errors import AbftError
from abft.model.attention import causal_lm, decoder
from abft.model.loading import HUB_NAMES

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

Q, K, OTHER = 0, 1, 2  # what an output feature of a projection belongs to


@dataclass(frozen=True)
class QKModule:
    """Describes a linear module that computes queries or keys."""

    name: str  # path inside the model
    layer: int
    roles: Tensor  # (out,) int8: Q, K or OTHER for every output feature

    @property
    def outputs(self) -> Tensor | None:
        """Return the output features that belong to Q or K, (out,) bool; None = all of them."""
        trained = self.roles != OTHER
        return None if bool(trained.all()) else trained


def _blocks(heads: int, kv_heads: int, dim: int) -> list[int]:
    """Return the roles of [Q; K; V], as in GPT-2 and Phi-3."""
    return [Q] * (heads * dim) + [K] * (kv_heads * dim) + [OTHER] * (kv_heads * dim)


def _interleaved(heads: int, dims: list[tuple[int, int]]) -> list[int]:
    """Return the roles of the same blocks, (size, role), for every head.

    As in GPT-NeoX (q, k, v), MLA (k, v) and gated queries (q, gate).
    """
    return [role for size, role in dims for _ in range(size)] * heads


def _roles(leaf: str, module: nn.Module, model: "PreTrainedModel") -> Tensor:
    """Return what the outputs of a module named `leaf` belong to, (out,) int8.

    Raises:
        AbftError: a fused layout that is not known.
    """
    # Configurations leave out what follows from other entries.
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    family = config.model_type

    def head_dim() -> int:
        # Some families have several, and raise if they are asked for one.
        return getattr(config, "head_dim", None) or config.hidden_size // heads

    # Conv1D (GPT-2) has nf.
    out = module.nf if hasattr(module, "nf") else module.out_features
    assert isinstance(out, int)

    # These families compute a gate for the attention's output in the same projection.
    gates = family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
    roles: list[int] = []
    if leaf == "q_proj" and gates and out == 2 * heads * head_dim():
        roles = _interleaved(heads, [(head_dim(), Q), (head_dim(), OTHER)])
    elif leaf in ("q_proj", "q_b_proj", "k_proj"):
        roles = [K if leaf == "k_proj" else Q] * out
    elif leaf == "kv_b_proj":
        roles = _interleaved(heads, [(config.qk_nope_head_dim, K), (config.v_head_dim, OTHER)])
    elif leaf == "kv_a_proj_with_mqa":
        roles = [OTHER] * config.kv_lora_rank + [K] * config.qk_rope_head_dim
    elif (family, leaf) in (("gpt2", "c_attn"), ("phi3", "qkv_proj")):
        roles = _blocks(heads, kv_heads, head_dim())
    elif (family, leaf) in (("gpt_neox", "query_key_value"), ("bloom", "query_key_value")):
        roles = _interleaved(heads, [(head_dim(), Q), (head_dim(), K), (head_dim(), OTHER)])

    # Another family may use one of these names for another layout.
    if len(roles) != out:
        raise AbftError(
            f"model family {family!r}: the layout of its fused {leaf!r} is not known, so W_Q "
            f"and W_K cannot be told from W_V"
        )
    return torch.tensor(roles, dtype=torch.int8)


_LEAVES = (
    "q_proj",
    "k_proj",
    "q_b_proj",
    "kv_b_proj",
    "kv_a_proj_with_mqa",
    "c_attn",
    "qkv_proj",
    "query_key_value",
)


def qk_modules(model: "PreTrainedModel", layers: Collection[int] | None = None) -> list[QKModule]:
    """Return the modules of the decoder that compute queries or keys: all, or those of `layers`.

    Layers are counted from 0.

    Raises:
        AbftError: no such module, an unknown fused layout, or layers that do not exist.
    """
    # Vision towers and the like have projections of the same names.
    prefix = next(name for name, module in model.named_modules() if module is decoder(model))
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []

    # Linear attention has queries and keys, but no softmax rows.
    without_attention = {
        layer for layer, kind in enumerate(kinds) if "attention" not in kind or "linear" in kind
    }

    modules = []
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        inside = name.startswith(prefix + ".") if prefix else True
        number = re.search(r"\.(\d+)\.", f".{name}.")  # of the layer
        if leaf not in _LEAVES or not inside or not number or not hasattr(module, "weight"):
            continue

        # Where values are computed by W_K too (in some of Gemma 4's layers), only W_Q is trained.
        attention = model.get_submodule(name.rpartition(".")[0])
        if leaf == "k_proj" and getattr(attention, "v_proj", attention) is None:
            continue

        layer = int(number[1])
        if layer not in without_attention:
            modules.append(QKModule(name, layer, _roles(leaf, module, model)))

    if not modules:
        raise AbftError(
            f"model family {model.config.model_type!r}: no query and key projections found "
            f"(looked for {', '.join(_LEAVES)})"
        )
    if layers is None:
        return modules

    attention_layers = {module.layer for module in modules}
    unknown = sorted(set(layers) - attention_layers)
    if unknown or not layers:
        raise AbftError(
            f"layers {unknown or 'none'} cannot be trained; this model's attention layers are "
            f"{_spans(attention_layers)}"
        )
    return [module for module in modules if module.layer in layers]


def _spans(numbers: Collection[int]) -> str:
    """Write numbers as "0-11" where none is missing between, else one by one."""
    ordered = sorted(numbers)
    whole = ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]}-{ordered[-1]}" if whole else ", ".join(map(str, ordered))


def _mask_fused(model: nn.Module, modules: Collection[QKModule]) -> None:
    """Changes `model`: trainable parts of fused weights get no gradient outside Q and K.

    Adam never moves what has no gradient.
    """
    for qk in modules:
        for parameter, mask in _trained_of_fused(model, qk):
            if mask is not None:
                _keep_only(parameter, mask)


def _keep_only(parameter: Tensor, mask: Tensor) -> None:
    """Changes `parameter`: its gradient is zeroed outside `mask` (broadcastable)."""
    parameter.register_hook(lambda gradient: gradient * mask.to(gradient.device, gradient.dtype))


def _trained_of_fused(
    model: nn.Module, qk: QKModule
) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
    """Yield a fused module's trainable parameters, each with a mask of what belongs to Q and K.

    The mask is broadcastable to the parameter; None = the parameter acts on V only through others
    that are masked. A module that belongs to Q and K as a whole yields nothing.

    Raises:
        AbftError: a parameter whose part in V is not known.
    """
    if qk.outputs is None:
        return
    module = model.get_submodule(qk.name)
    transposed = hasattr(module, "nf")  # Conv1D (GPT-2) stores (in, out), Linear (out, in)

    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = name.split(".")[0]
        if kind == "lora_A":
            yield parameter, None
        elif name == "weight":
            yield parameter, qk.outputs if transposed else qk.outputs[:, None]
        elif kind == "lora_B":
            yield parameter, qk.outputs[:, None] if parameter.dim() == 2 else qk.outputs
        # DoRA's magnitudes, and biases, have one entry for every output feature.
        elif kind == "lora_magnitude_vector" or name == "base_layer.bias":
            yield parameter, qk.outputs
        else:
            raise AbftError(
                f"{qk.name} computes values too, and its {name} cannot be kept from changing them; "
                "use plain LoRA or DoRA"
            )


def train_full_rank(model: "PreTrainedModel", layers: Collection[int] | None = None) -> None:
    """Changes `model`: only W_Q and W_K require gradients (weights, not biases).

    Weight decay would move V rows of fused weights too.

    Raises:
        AbftError: the weights are quantised or in half precision, where small updates would be
            lost.
    """
    modules = qk_modules(model, layers)
    model.requires_grad_(False)
    for qk in modules:
        module = model.get_submodule(qk.name)
        weight: Tensor = module.weight  # type: ignore[assignment]
        if weight.dtype != torch.float32:
            precision = str(weight.dtype).removeprefix("torch.")
            kind = precision if weight.dtype.is_floating_point else "quantised"
            raise AbftError(
                f"full-rank training needs float32 weights, got {kind}. Train with LoRA "
                "(--lora-r 16), or load the model in float32 (with --bf16 the computation still "
                "runs in bfloat16)."
            )

        weight.requires_grad_(True)
    _mask_fused(model, modules)


def softmax_layers(model: nn.Module) -> list[int]:
    """Return the number in the model of every layer with softmax attention, ascending."""
    return sorted({qk.layer for qk in qk_modules(model)})


def add_lora(
    model: "PreTrainedModel", config: "LoraConfig", layers: Collection[int] | None = None
) -> "PeftModel":
    """Changes `model` into a PEFT model with LoRA on W_Q and W_K.

    V outputs of fused weights keep a zero update. `target_modules` and `layers_to_transform` are
    filled in if they are not set, in a copy of `config`.
    """
    modules = qk_modules(model, layers)
    config = copy.copy(config)

    # PEFT finds modules by the last part of their name, or by the whole name if others, such as
    # those of a vision tower, have the same last part.
    leaves = {qk.name.rpartition(".")[2] for qk in modules}
    own = {qk.name for qk in qk_modules(model)}
    alike = any(
        name.rpartition(".")[2] in leaves and name not in own for name, _ in model.named_modules()
    )
    by_name = config.target_modules is None and alike
    if by_name:
        # PEFT ignores `layers_to_transform` if modules are named in full.
        chosen = config.layers_to_transform
        chosen = [chosen] if isinstance(chosen, int) else chosen
        config.target_modules = {qk.name for qk in modules if not chosen or qk.layer in chosen}
        config.layers_to_transform = None
    elif config.target_modules is None:
        config.target_modules = leaves
    if layers is not None and not by_name:
        config.layers_to_transform = sorted({qk.layer for qk in modules})

    peft_model = _peft_model(model, config)
    mask_lora(peft_model)
    return peft_model


def add_lora_everywhere(model: "PreTrainedModel", config: "LoraConfig") -> "PeftModel":
    """Changes `model` into a PEFT model with LoRA on all linear layers but the LM head.

    It is a baseline, not ABFT.
    """
    config = copy.copy(config)
    config.target_modules = "all-linear"
    return _peft_model(model, config)


def _peft_model(model: "PreTrainedModel", config: "LoraConfig") -> "PeftModel":
    """Changes `model` into a PEFT model, whose adapter names the base by its name on the hub."""
    from peft import get_peft_model

    # PEFT has to be told of Conv1D, which stores weights transposed.
    config.fan_in_fan_out = any(hasattr(module, "nf") for module in model.modules())
    config.task_type = config.task_type or "CAUSAL_LM"
    peft_model = get_peft_model(model, config)

    # Others load the adapter onto the hub's model, not onto the embedded copy.
    name = str(model.config.name_or_path)
    peft_model.active_peft_config.base_model_name_or_path = HUB_NAMES.get(name, name)
    return peft_model


# Initial weights of LoRA that leave the base as it is; others rewrite it (PiSSA, OLoRA, CorDA,
# LoftQ, LoRA-GA), and the stock base model would not fit the trained adapter.
_BASE_UNCHANGED = (True, False, "gaussian", "eva", "orthogonal", "mica")


def mask_lora(peft_model: "PeftModel") -> None:
    """Changes `peft_model`: LoRA on fused weights learns Q and K outputs only.

    LoRA's B has to start at 0 for V outputs, so that dW_V stays 0.

    Raises:
        AbftError: something other than W_Q and W_K trains or was changed, or the base's weights
            were changed.
    """
    base = peft_model.get_base_model()
    modules = qk_modules(base)
    prefixes = tuple(f"{qk.name}." for qk in modules)

    config = peft_model.active_peft_config
    initial = getattr(config, "init_lora_weights", True)
    if initial not in _BASE_UNCHANGED or getattr(config, "kasa_config", None) is not None:
        raise AbftError(
            f"init_lora_weights = {initial!r} rewrites the base's weights, and the trained adapter "
            "would fit no stock model; use True or 'gaussian'"
        )

    trained = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
    others = [name for name in trained if not name.startswith(prefixes)]
    if others:
        raise AbftError(
            f"only W_Q and W_K may train, but the adapter has {others[0]}; leave target_modules "
            f"unset"
        )

    for qk in modules:
        module = base.get_submodule(qk.name)
        for lora_b in getattr(module, "lora_B", {}).values():
            if qk.outputs is not None and bool(lora_b.weight[~qk.outputs].any()):
                raise AbftError(
                    f"the adapter changes W_V, which is fused into {qk.name}, before training "
                    f"(init_lora_weights = {initial!r}); use init_lora_weights=True"
                )
    _mask_fused(base, modules)


def trainable_parameters(model: nn.Module) -> int:
    """Return how many entries of weights can change.

    Where only W_Q and W_K train, V rows of fused weights are not counted.
    """
    base = causal_lm(model)
    trained = {name: p for name, p in base.named_parameters() if p.requires_grad}
    count = sum(parameter.numel() for parameter in trained.values())

    # Other weights, such as those of LoRA on all linear layers, have no mask.
    modules = qk_modules(base)
    prefixes = tuple(f"{qk.name}." for qk in modules)
    if not all(name.startswith(prefixes) for name in trained):
        return count

    for qk in modules:
        for parameter, mask in _trained_of_fused(base, qk):
            if mask is not None:
                count -= parameter.numel() - int(mask.expand_as(parameter).sum())
    return count


def lora_layers(model: "PeftModel", name: str = "default") -> dict[str, "LoraLayer"]:
    """Return the modules that an adapter changes, by their path inside the base model."""
    from peft.tuners.lora import LoraLayer

    modules = model.get_base_model().named_modules()
    return {
        path: module
        for path, module in modules
        if isinstance(module, LoraLayer) and name in module.scaling
    }
