"""Merge a run's weights with its base model: a plain checkpoint for `AutoModelForCausalLM`."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from abft.errors import AbftError
from abft.files import atomic_folder, write_json, write_text
from abft.model.checkpoints import apply_weights, is_full_rank
from abft.model.weight_files import HEADS_FILE
from abft.runs.config import RunConfig
from abft.runs.run_folder import (
    CARD,
    CONFIG,
    METRICS,
    READ_AS,
    TASK,
    check_new_folder,
    read_config,
    read_metrics,
    read_task,
)
from abft.runs.session import load_run_model
from abft.runs.train import run_card


def merge(
    run: str | Path,
    output: str | Path,
    *,
    factor: float = 1.0,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write theta0 + factor * (theta - theta0) as safetensors, with tokenizer and task.

    `abft predict --run OUTPUT` then uses the run's task, template and demonstrations.

    Args:
        run: the folder of a finished run (or any folder with such weights, if `model` is given).
        output: a new or empty folder. It gets a model card if factor is 1.
        factor: 1 = the trained model, 0 = the base model, above 1 = extrapolation (the paper finds
            it often better).
        model: the base model; default: the one the run was trained on. For a LoRA adapter, the base
            is loaded, and the result written, in float32.
        trust_remote_code: run Python code of the base model's repository.

    Raises:
        AbftError: `run` has no weights, or those of another model; `output` is not empty.
    """
    run, output = Path(run), Path(output)
    if not math.isfinite(factor):
        raise AbftError(f"factor = {factor}: expected a finite number")
    check_new_folder(output)

    if model is not None:
        config = RunConfig(model=model, trust_remote_code=trust_remote_code)
    else:
        config = read_config(run, trust_remote_code=trust_remote_code)
    # Wherever the run was trained, adding weights needs no GPU.
    config = replace(config, device="cpu")
    measured = factor == 1 and (run / METRICS).is_file()  # other factors were not measured
    card = _card(run, config.model) if measured else None

    # In half precision much of an adapter's change would be rounded away.
    if not is_full_rank(run):
        config = replace(config, load_in_4bit=False, dtype="float32")
    base, tokenizer = load_run_model(config)
    merged = apply_weights(base, run, factor)
    try:
        with atomic_folder(output) as partial:
            merged.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            if card is not None:
                write_text(partial / CARD, card)
            # For `abft predict`, which finds no config.yaml there.
            if (run / TASK).is_file():
                record = json.loads((run / TASK).read_text(encoding="utf-8"))
                if (run / CONFIG).is_file():
                    own = read_config(run)
                    record |= {name: getattr(own, name) for name in READ_AS}
                write_json(partial / TASK, record)
            if (run / HEADS_FILE).is_file():
                shutil.copyfile(run / HEADS_FILE, partial / HEADS_FILE)
    except (OSError, SafetensorError) as error:
        raise AbftError(f"writing {output} failed: {error}") from None
    return output


def _card(run: Path, model: str) -> str:
    """Return the model card of the merged model.

    It leaves out metrics of 4-bit weights, which do not hold for the merged ones.
    """
    config = replace(read_config(run), model=model)
    metrics = {} if config.load_in_4bit else read_metrics(run)
    return run_card(config, read_task(run)[0], metrics, "merged")
