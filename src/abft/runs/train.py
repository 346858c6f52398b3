"""The main job: evaluate a model, train it, evaluate it again, and leave a run folder."""

import contextlib
import dataclasses
import errno
import json
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from abft import __version__
from abft.data.encoding import EncodedPrompt, LabelTokens
from abft.data.other_tasks import other_prompts
from abft.data.splits import TaskData
from abft.data.tasks import Example, Task
from abft.errors import AbftError, RunInterrupted
from abft.files import MIB, write_json, write_text
from abft.model.attention import Implementation
from abft.model.checkpoints import apply_weights
from abft.model.loading import context_length
from abft.model.qk_weights import trainable_parameters
from abft.runs.config import RunConfig, default_learning_rate, refuse_without_effect
from abft.runs.run_folder import (
    CONFIG,
    LOG,
    METRICS,
    TASK,
    VANILLA,
    create_run,
    disk_error,
    read_config,
    refuse_occupied,
    refuse_other_settings,
    refuse_small_disk,
    remove_checkpoints,
    remove_run,
    task_record,
)
from abft.scoring import metrics
from abft.scoring.evaluate import HeadReport, evaluate, refuse_ruined
from abft.training.arguments import ABFTConfig
from abft.training.callbacks import RunLog, StepBar, stop_on_interrupt
from abft.training.model_card import Kind, model_card, trained_weights
from abft.training.trainer import ABFTTrainer, last_checkpoint

if TYPE_CHECKING:
    from peft import LoraConfig
from abft.runs.session import encoded_tests, load_run_data, load_run_model


def train(
    config: RunConfig, output: str | Path, *, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Evaluate, train, evaluate again; return what is written to metrics.json.

    Args:
        config: everything that decides the result.
        output: the run folder; created if missing.
        overwrite: replace a run that is there.
        resume: go on from the last checkpoint there; the result is the same, bit by bit on the CPU.

    Raises:
        AbftError: bad input (before long work starts), a full disk, a non-finite loss, no induction
            heads.
        RunInterrupted: Ctrl-C; a checkpoint was saved.
    """
    output = Path(output)
    if config.load_in_4bit and config.lora_r is None:
        raise AbftError("4-bit weights train through LoRA only: give lora_r as well (--lora-r 16)")
    if resume:
        refuse_other_settings(output, config)
        config = dataclasses.replace(config, lr=read_config(output).lr)
        if (output / METRICS).is_file():
            return json.loads((output / METRICS).read_text(encoding="utf-8"))
    else:
        refuse_without_effect(config)
        if not (overwrite and (output / CONFIG).is_file()):
            refuse_occupied(output)
    data = load_run_data(config)
    data.check(config.k, config.queries)
    model, tokenizer = load_run_model(config)
    words, prompts = encoded_tests(config, data, model, tokenizer)
    trainer = make_trainer(config, output, model, tokenizer, data)
    if config.queries > 1 and not trainer.packed and PartialState().is_main_process:
        print(
            "this model family cannot pack prompts: queries are read one by one; take --queries 1",
            file=sys.stderr,
        )
    refuse_small_disk(
        output, sum(p.numel() * 4 for p in trainer.model.parameters() if p.requires_grad)
    )

    config = dataclasses.replace(
        config, lr=trainer.args.learning_rate
    )  # resolved, so that config.yaml holds it
    process = PartialState()
    if process.is_main_process and not resume:
        create_run(output, config, overwrite)
        write_json(
            output / TASK,
            task_record(data.task, prediction_demonstrations(data, config.k), config.protocol),
        )
    process.wait_for_everyone()
    try:
        vanilla = (
            _vanilla(trainer, output, prompts, words, config)
            if prompts and process.is_main_process
            else None
        )
        process.wait_for_everyone()
        seconds, peak = _train(trainer, output)
        trainer.save_model(str(output))
        result: dict[str, Any] = {}
        if process.is_main_process:
            result = _record(config, data, trainer, len(prompts), seconds, peak)
            if prompts:
                # Under FSDP this process holds a part of the model only.
                trained = (
                    apply_weights(load_run_model(config)[0], output)
                    if trainer.is_fsdp_enabled
                    else trainer.model
                )
                after, _ = scored(
                    trained, prompts, words, trainer.implementation, config, config.objective
                )
                result |= {"vanilla": vanilla, config.objective: after}
            write_text(output / "README.md", run_card(config, data.task, result))
            write_json(output / METRICS, result)
    except RunInterrupted:
        raise
    except AbftError:  # nothing half-written: without a checkpoint there is nothing to go on with
        if last_checkpoint(output) is None and process.is_main_process:
            remove_run(output)
        raise
    except Exception as error:  # safetensors and torch raise their own types on a full disk
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or shutil.disk_usage(output).free < 16 * MIB:
            raise disk_error(output, error) from error
        raise
    process.wait_for_everyone()
    if process.is_main_process:
        (output / VANILLA).unlink(missing_ok=True)
        remove_checkpoints(output)
    return result


def make_trainer(
    config: RunConfig,
    output: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
) -> ABFTTrainer:
    """The trainer of a configuration. Changes `model`: only W_Q and W_K stay trainable."""
    rate = config.lr
    if rate is None:
        rate = default_learning_rate(
            model.num_parameters(), config.lora_r is not None, config.objective
        )
    arguments = ABFTConfig(
        output_dir=str(output),
        learning_rate=rate,
        max_steps=config.steps,
        per_device_train_batch_size=min(config.batch_size, config.nb),
        save_steps=config.save_steps,
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.bf16,
        activation_checkpointing=config.activation_checkpointing > 0,
        activation_checkpointing_kwargs={"every_n_layers": max(1, config.activation_checkpointing)},
        use_cpu=config.device == "cpu",
        report_to="none",
        disable_tqdm=True,
        k=config.k,
        nd=config.nd,
        queries=config.queries,
        protocol=config.protocol,
        objective=config.objective,
        cross_entropy=config.cross_entropy,
        lora_targets=config.lora_targets,
        A0=config.A0,
        B0=config.B0,
        Cp=config.Cp,
        Ci=config.Ci,
        Cd=config.Cd,
        pid=config.pid,
        head_filter=config.head_filter,
        threshold=config.threshold,
        layers=config.layer_list(),
    )
    per_pass = arguments.world_size * arguments.per_device_train_batch_size
    if config.nb % per_pass:
        raise AbftError(
            f"nb = {config.nb} prompts cannot be shared out: {arguments.world_size} processes "
            f"take {per_pass} at a time"
        )
    arguments.gradient_accumulation_steps = config.nb // per_pass
    callbacks = [RunLog(output / LOG), StepBar()]
    examples: TaskData | list[EncodedPrompt] = data
    if config.train_on == "others":
        limit = context_length(model)
        examples = other_prompts(
            data, tokenizer, config.nd, config.k, config.seed, config.protocol, limit
        )
    trainer = ABFTTrainer(
        model, arguments, examples, tokenizer, peft_config=_lora(config), callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _lora(config: RunConfig) -> "LoraConfig | None":
    if config.lora_r is None:
        return None
    from peft import LoraConfig

    alpha = config.lora_r if config.lora_alpha is None else config.lora_alpha
    return LoraConfig(r=config.lora_r, lora_alpha=alpha, revision=config.revision)


def summarize(
    probabilities_NC: np.ndarray, prompts: Sequence[EncodedPrompt], heads: HeadReport
) -> dict[str, float]:
    """accuracy, macro_f1, ece; heads over the threshold, and a head's mean attention on labels.

    Raises:
        AbftError: probabilities that are not finite.
    """
    refuse_ruined(probabilities_NC)
    targets = np.array([prompt.target for prompt in prompts])
    return {
        "accuracy": metrics.accuracy(probabilities_NC, targets),
        "macro_f1": metrics.macro_f1(probabilities_NC, targets),
        "ece": metrics.expected_calibration_error(probabilities_NC, targets),
        "heads": heads.heads,
        "mean_right_mass": float(heads.right_mass_LH.mean()),
        "mean_wrong_mass": float(heads.wrong_mass_LH.mean()),
    }


def scored(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    words: LabelTokens,
    implementation: Implementation,
    config: RunConfig,
    title: str,
) -> tuple[dict[str, float], HeadReport]:
    """Metrics and head statistics on encoded prompts, with a progress bar on stderr."""
    with tqdm(
        total=len(prompts), desc=f"evaluate {title}", unit="prompt", file=sys.stderr, mininterval=1
    ) as bar:
        probabilities, heads = evaluate(
            model,
            prompts,
            words,
            implementation,
            batch_size=config.eval_batch_size,
            fixed_threshold=config.threshold,
            progress=bar.update,
        )
    return summarize(probabilities, prompts, heads), heads


def prediction_demonstrations(data: TaskData, k: int) -> list[Example]:
    """k demonstrations for new texts: the classes in turn, each class's examples in the pool's
    order.
    """
    by_class = [
        [e for e in data.demonstrations if e.label == label]
        for label in range(len(data.task.labels))
    ]
    turns = [
        examples[i]
        for i in range(max(map(len, by_class)))
        for examples in by_class
        if i < len(examples)
    ]
    return turns[:k]


def _vanilla(
    trainer: ABFTTrainer,
    output: Path,
    prompts: Sequence[EncodedPrompt],
    words: LabelTokens,
    config: RunConfig,
) -> dict[str, float]:
    """The untouched model's metrics, measured once: a resumed run reads them."""
    path = output / VANILLA
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    vanilla, _ = scored(trainer.model, prompts, words, trainer.implementation, config, "vanilla")
    print(
        f"{vanilla['heads']:.1f} heads pass the threshold before training (mean over "
        f"{len(prompts)} prompts)",
        file=sys.stderr,
    )
    write_json(path, vanilla)
    return vanilla


def _train(trainer: ABFTTrainer, output: Path) -> tuple[float, int]:
    """Train, from the last checkpoint if there is one; seconds over all parts of the run, and this
    part's peak memory.
    """
    checkpoint = last_checkpoint(output)
    reset_peak_memory()
    with stop_on_interrupt() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked and trainer.state.global_step < trainer.args.max_steps:
        raise RunInterrupted(
            f"stopped after step {trainer.state.global_step} of {trainer.args.max_steps}; a "
            f"checkpoint is saved. "
            f"Go on with: abft train --resume --output {output}"
        )
    logged = (
        (output / LOG).read_text(encoding="utf-8").splitlines() if (output / LOG).is_file() else []
    )
    return sum(json.loads(line)["seconds"] for line in logged), peak_memory_bytes(
        trainer.model.device
    )


def reset_peak_memory() -> None:
    """Forget the peak so far, where the platform can: GPUs, and processes on Linux."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory since `reset_peak_memory`: of the GPU that holds most, or of this process for a
    model on the CPU.
    """
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if sys.platform == "darwin" else peak * 1024


def _record(
    config: RunConfig, data: TaskData, trainer: ABFTTrainer, tests: int, seconds: float, peak: int
) -> dict[str, Any]:
    """metrics.json without the scores."""
    return {
        "abft_version": __version__,
        "model": config.model,
        "task": data.task.name,
        "protocol": config.protocol,
        "seed": config.seed,
        "k": config.k,
        "test_prompts": tests,
        "training": {
            "steps": trainer.state.global_step,
            "prompts": trainer.state.global_step * config.nb,
            "packed": trainer.packed,
            "processes": trainer.args.world_size,
            "seconds": round(seconds, 2),
            "trainable_parameters": trainable_parameters(trainer.model),
            "peak_memory_bytes": peak,
        },
    }


def run_card(
    config: RunConfig, task: Task, result: Mapping[str, Any], kind: Kind | None = None
) -> str:
    """The model card of a run, from its configuration and what metrics.json holds; `kind` defaults
    to what the run saved.
    """
    own = ("A0", "B0", "pid", "head_filter") if config.objective == "abft" else ()
    lora = ("lora_r", "load_in_4bit") if config.lora_r is not None else ()
    names = (
        "steps",
        "lr",
        "nb",
        "nd",
        "queries",
        "k",
        *own,
        *lora,
        "protocol",
        "seed",
        "test_prompts",
    )
    settings = {name: getattr(config, name) for name in names}
    keys = ("accuracy", "macro_f1", "ece")
    scores: dict[str, dict[str, float]] = {
        method: {key: result[method][key] for key in keys}
        for method in ("vanilla", config.objective)
        if method in result
    }
    return model_card(
        config.model,
        task,
        settings,
        kind or ("full_rank" if config.lora_r is None else "adapter"),
        scores,
        protocol=config.protocol,
        objective=config.objective,
        cross_entropy=config.cross_entropy,
        weights=trained_weights(config.lora_targets),
        trained_on=None if config.train_on == "task" else f"any built-in task but {task.name}",
    )
