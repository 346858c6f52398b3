"""A run's weights and its base model -> a plain checkpoint that `AutoModelForCausalLM` loads
without abft.
"""

import dataclasses
import math
import shutil
from pathlib import Path

from abft.errors import AbftError
from abft.files import refuse_full_disk, share, write_text
from abft.model.checkpoints import apply_weights
from abft.runs.config import RunConfig
from abft.runs.run_folder import METRICS, read_config, read_record, read_task
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
    """Write theta0 + factor * (theta - theta0) as safetensors, with the tokenizer, and a model card
    if factor is 1.

    Args:
        run: the folder of a finished run (or any folder with such weights, if `model` is given).
        output: a new or empty folder.
        factor: 1 = the trained model, 0 = the base model, above 1 = extrapolation (the paper finds
            it often better).
        model: the base model; default: the one the run was trained on. It is loaded unquantised.
        trust_remote_code: run Python code of the base model's repository; what the run folder says
            does not count.

    Raises:
        AbftError: no weights there, weights of another model, an occupied output folder.
    """
    run, output = Path(run), Path(output)
    if not math.isfinite(factor):
        raise AbftError(f"factor = {factor}: expected a finite number")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise AbftError(f"output {output} exists and is not an empty folder")
    config = RunConfig(model=model) if model is not None else read_config(run)
    card = _card(run, config.model) if factor == 1 and (run / METRICS).is_file() else None
    config = dataclasses.replace(config, load_in_4bit=False, trust_remote_code=trust_remote_code)
    base, tokenizer = load_run_model(config)
    merged = apply_weights(base, run, factor)
    refuse_full_disk(output, sum(p.numel() * p.element_size() for p in merged.parameters()))
    staging = output.with_name(f".{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if card is not None:  # of other factors nothing was measured
            write_text(staging / "README.md", card)
        share(staging)
        if output.exists():
            output.rmdir()
        staging.replace(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return output


def _card(run: Path, model: str) -> str:
    """The model card of what a finished run becomes. What was measured on 4-bit weights does not
    hold for the merged ones.
    """
    config = dataclasses.replace(read_config(run), model=model)
    return run_card(
        config, read_task(run)[0], {} if config.load_in_4bit else read_record(run), "merged"
    )
