"""Save trained weights, and recognise, load, merge and extrapolate them."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from abft.errors import AbftError, DamagedWeights
from abft.model.attention import causal_lm
from abft.model.qk_weights import QKModule, lora_layers, qk_modules
from abft.model.weight_files import ADAPTER_FILE, BASE_FILE, FULL_RANK_FILE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SAMPLES = 16  # entries of each base weight that are remembered
# Mean relative difference; half precision of the same base passes, another model does not.
BASE_TOLERANCE = 0.005
_FORMAT = "abft-qk-1"
_MADE_FOR = "the adapter in {folder} was trained on another model"


def base_samples(model: "PreTrainedModel", modules: Collection[QKModule]) -> dict[str, list[float]]:
    """Return a few evenly spaced entries of every weight of `modules`, none of quantised weights.

    A base model is recognised by them.
    """
    samples = {}
    for qk in modules:
        module = model.get_submodule(qk.name)
        if hasattr(module, "get_base_layer"):  # LoRA wraps it
            module = module.get_base_layer()
        weight = module.weight.detach()

        # Quantised weights are packed: their entries are not those of the base.
        if weight.dtype.is_floating_point:
            entries = weight.flatten()[:: max(1, weight.numel() // SAMPLES)][:SAMPLES]
            samples[qk.name] = [round(entry, 6) for entry in entries.float().tolist()]
    return samples


def check_base_weights(
    model: "PreTrainedModel", samples: Mapping[str, Sequence[float]], made_for: str
) -> None:
    """Raise AbftError unless `model` has the weights of which `base_samples` took `samples`.

    The same weights in half precision pass. `made_for` begins the message.
    """
    modules = [qk for qk in qk_modules(model) if qk.name in samples]
    for name in samples.keys() - {qk.name for qk in modules}:
        raise AbftError(f"{made_for}: {name} is missing there")
    check_samples(base_samples(model, modules), samples, made_for)


def check_samples(
    samples: Mapping[str, Sequence[float]],
    expected_samples: Mapping[str, Sequence[float]],
    made_for: str,
) -> None:
    """Raise AbftError unless two `base_samples` are of the same base, in any precision.

    What one of them lacks, because it was quantised there, is not compared.
    """
    for name in samples.keys() & expected_samples.keys():
        entries, expected = samples[name], expected_samples[name]
        if len(entries) != len(expected):
            raise AbftError(f"{made_for}: {name} is of another shape there")

        # The constant covers the samples' rounding to 6 digits.
        difference = sum(abs(a - b) for a, b in zip(entries, expected, strict=True))
        if difference > BASE_TOLERANCE * sum(map(abs, expected)) + 1e-5:
            raise AbftError(f"{made_for}: {name} has other values there")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names: one flipped bit changes it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_full_rank(
    model: "PreTrainedModel", folder: str | Path, samples: dict[str, list[float]]
) -> None:
    """Write the trained tensors to `folder/qk_weights.safetensors`.

    `samples`: the `base_samples` before training.
    """
    tensors = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    metadata = {
        "format": _FORMAT,
        "base_model": str(model.config.name_or_path),
        "base_samples": json.dumps(samples),
        "digest": tensors_digest(tensors),
    }
    save_file(tensors, Path(folder) / FULL_RANK_FILE, metadata=metadata)


def save_adapter(
    model: "PeftModel",
    folder: str | Path,
    samples: dict[str, list[float]],
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a stock PEFT adapter, and a second file by which it and its base are recognised.

    `samples`: the `base_samples` before training. `state_dict`: the model's tensors, gathered,
    where processes hold parts of them.
    """
    folder = Path(folder)
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state_dict)
    digest = tensors_digest(load_file(folder / ADAPTER_FILE))
    record = {"base_samples": samples, "digest": digest}
    (folder / BASE_FILE).write_text(json.dumps(record), encoding="utf-8")


def read_full_rank(
    model: "PreTrainedModel",
    folder: str | Path,
    samples: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Tensor]:
    """Read the tensors that a run saved, theta of W_Q and W_K by parameter name.

    Args:
        model: the base model, which they have to fit.
        samples: its `base_samples` before training; default: those of its present weights.

    Raises:
        AbftError: the file is missing or damaged, or was trained on another model.
    """
    path = Path(folder) / FULL_RANK_FILE
    parameters = dict(model.named_parameters())

    # Missing and damaged files raise different exceptions; all mean that none can be used.
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _unreadable(path, error) from None
    if metadata.get("format") != _FORMAT:
        raise AbftError(f"{path}: expected format {_FORMAT}, got {metadata.get('format')!r}")
    _check_digest(path, saved, metadata.get("digest"))

    # Another family shows in names and shapes, another base of the same shape in its entries.
    made_for = f"{path} was trained on {metadata['base_model']!r}, which is not the model given"
    for name, tensor in saved.items():
        if name not in parameters:
            raise AbftError(f"{made_for}: {name} is missing there")
        if parameters[name].shape != tensor.shape:
            raise AbftError(f"{made_for}: {name} is of another shape there")
    _check_base(model, samples, json.loads(metadata["base_samples"]), made_for)
    return saved


def _check_base(
    model: "PreTrainedModel | PeftModel",
    samples: Mapping[str, Sequence[float]] | None,
    expected: Mapping[str, Sequence[float]],
    made_for: str,
) -> None:
    """Raise AbftError for another base; `samples`: before training, None = of present weights."""
    if samples is None:
        check_base_weights(causal_lm(model), expected, made_for)  # type: ignore[arg-type]
    else:
        check_samples(samples, expected, made_for)


def _check_digest(path: Path, tensors: Mapping[str, Tensor], digest: str | None) -> None:
    """Raise DamagedWeights unless these are the tensors that were written, if that is known."""
    if digest is not None and tensors_digest(tensors) != digest:
        raise DamagedWeights(f"{path} is damaged: its tensors are not those that were written")


def _unreadable(path: Path, error: Exception) -> DamagedWeights:
    return DamagedWeights(f"{path} could not be read: {error}. Was writing it cut short?")


@torch.no_grad()
def load_full_rank(
    model: "PreTrainedModel",
    folder: str | Path,
    factor: float = 1.0,
    samples: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Changes `model`, the base model: theta0 + factor * (theta - theta0) for every saved tensor.

    See `read_full_rank` for the arguments and errors.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in read_full_rank(model, folder, samples).items():
        theta0 = parameters[name]
        theta = tensor.to(theta0.device)
        if factor != 1.0:  # 1 copies the saved tensor, without rounding
            theta = theta0.float() + factor * (theta.float() - theta0.float())
        theta0.copy_(theta)


def has_weights(folder: str | Path) -> bool:
    """Return whether a folder holds a run's weights."""
    return any((Path(folder) / name).is_file() for name in (FULL_RANK_FILE, ADAPTER_FILE))


def is_full_rank(folder: str | Path) -> bool:
    """Return whether a run's weights are full-rank tensors (otherwise they are a LoRA adapter).

    Raises:
        AbftError: the folder holds no weights.
    """
    if not has_weights(folder):
        raise AbftError(
            f"{folder} holds neither {FULL_RANK_FILE} nor {ADAPTER_FILE}; is it the folder of a "
            "finished run?"
        )
    return (Path(folder) / FULL_RANK_FILE).is_file()


def read_adapter(
    model: "PreTrainedModel | PeftModel",
    folder: str | Path,
    samples: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Tensor]:
    """Read the tensors of a run's LoRA adapter, by PEFT's names.

    Args:
        model: what the adapter is for; it may have others already.
        samples: the `base_samples` of its base before training; default: of its present weights.

    Raises:
        AbftError: an adapter of another model, or damaged files.
    """
    folder = Path(folder)

    # Adapters that others made have no samples: nothing can be compared.
    base: dict[str, Any] = {}
    base_file, path = folder / BASE_FILE, folder / ADAPTER_FILE
    try:
        if base_file.is_file():
            base = json.loads(base_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedWeights(f"{base_file} is damaged: {error}") from None
    try:
        saved = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    _check_digest(path, saved, base.get("digest"))

    # Version 0.1 wrote the samples alone.
    _check_base(model, samples, base.get("base_samples", base), _MADE_FOR.format(folder=folder))
    return saved


def load_adapter(
    model: "PreTrainedModel | PeftModel", folder: str | Path, name: str = "default"
) -> "PeftModel":
    """Changes `model`: adds a run's LoRA adapter to it, which may have other adapters already.

    Raises:
        AbftError: an adapter of another model, or damaged files.
    """
    from peft import PeftModel, get_peft_model_state_dict

    made_for = _MADE_FOR.format(folder=folder)
    saved = read_adapter(model, folder)

    # PEFT raises RuntimeError for tensors of another shape.
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), name)
    except (RuntimeError, ValueError) as error:
        raise AbftError(f"{made_for}: {str(error).strip().splitlines()[0][:160]}") from None

    # PEFT does not refuse an adapter with too few or too many tensors.
    loaded = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    differing = set(saved) ^ set(loaded)
    if differing:
        raise AbftError(f"{made_for}: {min(differing)} occurs in one of them only")
    return model


def apply_weights(
    model: "PreTrainedModel", folder: str | Path, factor: float = 1.0
) -> "PreTrainedModel":
    """Changes `model`, the base model: merge a run's weights into it, extrapolated by `factor`.

    Returns:
        The plain model; a base that is quantised or in half precision keeps its adapter (merging
        would round much of it away) and comes back as a PEFT model.

    Raises:
        AbftError: no weights in `folder`, or weights of another model.
    """
    if is_full_rank(folder):
        load_full_rank(model, folder, factor)
        return model

    peft_model = load_adapter(model, folder)
    scale_adapter(peft_model, factor)
    return plain_model(peft_model)


def scale_adapter(model: "PeftModel", factor: float, name: str = "default") -> None:
    """Changes `model`: an adapter's change of the weights becomes `factor` times as large.

    Raises:
        AbftError: a factor other than 1 for an adapter that changes more than LoRA's product.
    """
    config = model.peft_config[name]
    bias = getattr(config, "bias", "none")
    if factor != 1.0 and (getattr(config, "use_dora", False) or bias != "none"):
        raise AbftError(
            f"this adapter trained magnitudes (DoRA) or biases, so a factor of {factor:g} has no "
            "meaning; only plain LoRA and full-rank weights have points between and beyond"
        )

    # The change of a LoRA module is proportional to its scale.
    for module in lora_layers(model, name).values():
        module.set_scale(name, factor)


def plain_model(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """Changes `model`: merge its adapter, if it has one and its base is in float32."""
    base = causal_lm(model)
    rounds = getattr(base, "is_quantized", False) or base.dtype != torch.float32
    if not hasattr(model, "get_base_model") or rounds:
        return model  # type: ignore[return-value]
    return model.merge_and_unload()
