"""The main job: evaluate a model, train it, evaluate it again, and leave a run folder."""

import contextlib
import errno
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PrinterCallback

from abft import __version__
from abft.data.draws import classes_in_turn
from abft.data.encoding import EncodedPrompt
from abft.data.mixture import training_groups
from abft.data.mixture_settings import mixed_words, shot_range, task_list
from abft.data.other_tasks import mixture_tasks, other_prompts
from abft.data.splits import TaskData
from abft.data.tasks import Example, Task
from abft.errors import AbftError, CannotResume, RunInterrupted
from abft.files import write_json, write_text
from abft.method.objectives import OBJECTIVES, AnchoredObjective
from abft.method.settings import MethodSettings, PromptSettings
from abft.model.attention import decoder
from abft.model.checkpoints import apply_weights
from abft.model.loading import context_length
from abft.model.qk_weights import trainable_parameters
from abft.runs.config import ResolvedConfig, RunConfig, absolute_paths, check_effect, resolve
from abft.runs.run_folder import (
    BEFORE,
    CARD,
    LOG,
    METRICS,
    TASK,
    VERSION,
    alone_in,
    check_free,
    check_same_settings,
    create_run,
    drop_run,
    finish_run,
    make_folder,
    read_before,
    read_config,
    read_digest,
    read_metrics,
    task_record,
)
from abft.runs.session import Session, load_run_model, open_session
from abft.runs.task_data import load_run_data, summary
from abft.settings import settings_of
from abft.training.arguments import ABFTConfig
from abft.training.callbacks import RunLog, StepBar, stop_on_interrupt
from abft.training.model_card import Kind, card_settings, model_card
from abft.training.trainer import ABFTTrainer, last_checkpoint

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        metrics: what metrics.json holds; empty in all processes but the first.
        model: the model as it is after training (with LoRA, a PEFT model); None if the run was
            finished before.
    """

    metrics: dict[str, Any]
    model: PreTrainedModel | None


def train(
    config: RunConfig, output: str | Path, *, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Evaluate, train, evaluate again; return what is written to metrics.json.

    Args:
        config: everything that decides the result.
        output: the run folder; created if missing.
        overwrite: replace an earlier run in `output`, which is kept in `output/.replaced` until
            the new one is finished.
        resume: continue from the last checkpoint in `output`; the result is the same as without the
            interruption (on the CPU, bit by bit).

    Raises:
        AbftError: bad input (before long work starts), a full disk, a non-finite loss, no induction
            heads.
        RunInterrupted: Ctrl-C; a checkpoint was saved.
    """
    return train_run(config, output, overwrite=overwrite, resume=resume).metrics


def train_run(
    config: RunConfig,
    output: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    data: TaskData | None = None,
) -> TrainedRun:
    """Do what `train` does, and return the trained model too, so that it need not be loaded again.

    `data`: what `load_run_data` returned, if it was called before.
    """
    output = Path(output)
    # Absolute, because the run folder may be read from another working directory.
    config = resolve(replace(config, **absolute_paths(RunConfig, asdict(config))))

    # The first process measures while others wait.
    PartialState(cpu=config.device == "cpu", timeout=timedelta(days=1))

    # Everything that can be refused without a model comes first.
    if resume:
        check_same_settings(output, config)
        config = replace(config, lr=read_config(output).lr)
        if (output / METRICS).is_file():
            finish_run(output)
            return TrainedRun(read_metrics(output), None)
    else:
        check_effect(config)
        check_free(output, overwrite)

    data = load_run_data(config, config.task_queries) if data is None else data
    if resume and read_digest(output) not in (None, data.digest):
        raise CannotResume(
            f"cannot resume {output}: {config.data or config.task_name} holds other texts than "
            "when it was started. Start over with --overwrite."
        )
    session = open_session(config, data=data)
    make_folder(output)  # transformers would fail with a traceback
    process = PartialState()
    with alone_in(output) if process.is_main_process else contextlib.nullcontext():
        # Another process may have finished it in the meantime.
        if resume and (output / METRICS).is_file():
            return TrainedRun(read_metrics(output), None)
        trainer = make_trainer(session, output)
        session.config = config = replace(config, lr=trainer.args.learning_rate)
        if config.queries > 1 and not trainer.packed and process.is_main_process:
            print(
                "this model family cannot pack prompts: queries are read one by one; use "
                "--queries 1",
                file=sys.stderr,
            )

        if process.is_main_process and not resume:
            create_run(output, config, overwrite)
            for name, value in summary(session.data, session.tokenizer):
                print(f"{name:18}{value}", file=sys.stderr)
        # Also when resuming: the run may have been killed before this was written.
        if process.is_main_process:
            shown = prediction_demonstrations(session.data, config.k)
            record = task_record(session.data.task, shown, config.prompt_style, data.digest)
            write_json(output / TASK, record)
        process.wait_for_everyone()

        with _faults(output):
            metrics, model = _train_and_measure(session, trainer, output)

        process.wait_for_everyone()
        if process.is_main_process:
            finish_run(output)
        return TrainedRun(metrics, model)


@contextlib.contextmanager
def _faults(output: Path) -> Iterator[None]:
    """Turn what ends a training into an error of one line, and leave nothing half-written."""
    try:
        yield
    except RunInterrupted:
        raise
    except AbftError:
        # Without a checkpoint there is nothing to resume.
        if last_checkpoint(output) is None and PartialState().is_main_process:
            drop_run(output)
        raise
    except torch.OutOfMemoryError as error:
        raise AbftError(
            f"out of memory ({str(error).splitlines()[0][:160]}). If this was while measuring, go "
            f"on with: abft train --resume --eval-batch-size 4 --output {output}; training takes "
            "less with --activation-checkpointing 1 or a smaller --batch-size (--overwrite)"
        ) from None
    except Exception as error:  # safetensors and torch raise their own types on a full disk
        if _is_full(output, error):
            raise _disk_error(output, error) from error
        raise


def _train_and_measure(
    session: Session, trainer: ABFTTrainer, output: Path
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Measure, train, measure; write the weights, the card and, last, metrics.json."""
    process, config = PartialState(), session.config
    measured = bool(session.prompts) and process.is_main_process
    phases = _Phases(session, trainer)
    before = _measure_before(session, output, phases) if measured else None
    process.wait_for_everyone()

    trainer.add_callback(StepBar(phases.title("train")))
    seconds, peak = _run_trainer(trainer, output)
    trainer.save_model(str(output))
    session.model = trainer.model
    if not process.is_main_process:
        return {}, session.model

    metrics = _record(session, trainer, seconds, peak)
    if measured:
        if trainer.is_fsdp_enabled:  # this process holds only a part of the model
            session.model = apply_weights(load_run_model(config)[0], output)
        after, _ = session.measure(phases.title("measure"))
        metrics |= {"before": before, "after": after}
    write_text(output / CARD, run_card(config, session.data.task, metrics))
    write_json(output / METRICS, metrics)
    return metrics, session.model


def make_trainer(session: Session, output: Path) -> ABFTTrainer:
    """Make a session's trainer. Changes the session's model: only W_Q and W_K stay trainable."""
    config = resolve(session.config, session.model.num_parameters())
    assert config.lr is not None  # resolved with the model's size
    arguments = _training_arguments(config, config.lr, output)

    examples: TaskData | list[EncodedPrompt] = session.data
    if config.train_on == "others":
        limit = context_length(session.model)
        examples = other_prompts(
            session.whole,
            session.tokenizer,
            config.nd,
            config.k,
            config.seed,
            config.prompt_style,
            limit,
            config.sampling,
        )
    elif config.train_on == "mixture":
        examples = _mixture(session, config)
    trainer = ABFTTrainer(
        session.model,
        arguments,
        examples,
        session.tokenizer,
        peft_config=_lora(config),
        callbacks=[RunLog(output / LOG)],
    )
    trainer.remove_callback(PrinterCallback)
    session.model = trainer.model
    return trainer


def _mixture(session: Session, config: ResolvedConfig) -> list[EncodedPrompt]:
    """Draw the training prompts of a mixture of tasks."""
    sources = mixture_tasks(
        session.data,
        task_list(config.tasks),
        config.text_column,
        config.label_column,
        config.template,
        strict=config.strict,
        target_file=config.data,
        whole=session.whole,
    )
    groups = training_groups(
        sources,
        session.tokenizer,
        config.nd // config.queries,
        config.queries,
        config.seed,
        words=mixed_words(config.words),
        shots=shot_range(config.shots),
        max_length=context_length(session.model),
        # Cross-entropy, on which end-to-end training relies alone, sees only a label's first token.
        distinct_first_tokens=config.cross_entropy > 0
        or not OBJECTIVES[config.objective].reads_attention,
    )
    return [prompt for group in groups for prompt in group.prompts]


def _training_arguments(config: ResolvedConfig, rate: float, output: Path) -> ABFTConfig:
    """Translate a configuration to `ABFTConfig`; settings that both share are copied by name."""
    shared = [*settings_of(MethodSettings), *settings_of(PromptSettings)]
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
        **{name: getattr(config, name) for name in shared},
    )
    per_pass = arguments.world_size * arguments.per_device_train_batch_size
    if config.nb % per_pass:
        raise AbftError(
            f"nb = {config.nb} prompts cannot be shared out: {arguments.world_size} processes take "
            f"{per_pass} at a time"
        )
    arguments.gradient_accumulation_steps = config.nb // per_pass
    return arguments


def _lora(config: RunConfig) -> "LoraConfig | None":
    if config.lora_r is None:
        return None
    from peft import LoraConfig

    alpha = config.lora_r if config.lora_alpha is None else config.lora_alpha
    return LoraConfig(r=config.lora_r, lora_alpha=alpha, revision=config.revision)


def prediction_demonstrations(data: TaskData, k: int) -> list[Example]:
    """Choose k demonstrations for new texts: the classes in turn, examples in the pool's order."""
    return classes_in_turn(data.demonstrations)[:k]


class _Phases:
    """Names the phases of a run, and says after the first how long the others will take.

    A training step costs about `TRAINING_COST` forward passes of its tokens, because the backward
    pass computes gradients of no other weights than W_Q and W_K.
    """

    TRAINING_COST = 2.3

    def __init__(self, session: Session, trainer: ABFTTrainer) -> None:
        self.session, self.trainer = session, trainer
        self.count = 3 if session.prompts else 1
        self.number = 0

    def title(self, name: str) -> str:
        """Return the title of the next phase, such as "2/3 train"."""
        self.number += 1
        return f"{self.number}/{self.count} {name}" if self.count > 1 else name

    def estimate(self, seconds: float) -> None:
        """Say how long the rest will take, given how many seconds the first phase took."""
        measured = sum(len(prompt.input_ids) for prompt in self.session.prompts)
        a_step = self.TRAINING_COST * self.trainer.tokens_per_step
        objective = self.trainer.objective
        if isinstance(objective, AnchoredObjective):
            # The untouched model reads the anchor text too, and perhaps the trained one once more.
            again = objective.reads_again(decoder(self.trainer.model))
            cost = self.TRAINING_COST + 1 if again else 1
            a_step += cost * self.trainer.anchored_tokens_per_step
        trained = a_step * self.trainer.args.max_steps / self.trainer.args.world_size
        training = seconds * trained / measured
        print(
            f"about {_duration(training + seconds)} to go: {_duration(training)} of training, then "
            f"{_duration(seconds)} of measuring",
            file=sys.stderr,
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _measure_before(session: Session, output: Path, phases: _Phases) -> dict[str, float]:
    """Measure the untouched model, once: a resumed run reads the result."""
    title = phases.title("measure")
    stored = read_before(output)
    if stored is not None:
        return stored
    started = time.perf_counter()
    before, _ = session.measure(title)
    print(
        f"{before['heads']:.1f} heads pass the threshold before training "
        f"(mean over {len(session.prompts)} prompts)",
        file=sys.stderr,
    )
    phases.estimate(time.perf_counter() - started)
    write_json(output / BEFORE, before)
    return before


def _run_trainer(trainer: ABFTTrainer, output: Path) -> tuple[float, int]:
    """Train, from the last checkpoint if there is one.

    Returns:
        Seconds over all parts of an interrupted run, and this part's peak memory in bytes.
    """
    checkpoint = last_checkpoint(output)
    reset_peak_memory()
    with stop_on_interrupt() as stop:
        trainer.add_callback(stop)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, StepBar):
                    callback.close()
    step, last = trainer.state.global_step, trainer.args.max_steps
    if stop.asked and step < last:
        raise RunInterrupted(
            f"stopped after step {step} of {last}; a checkpoint is saved. "
            f"Go on with: abft train --resume --output {output}"
        )
    seconds = sum(entry.get("seconds", 0.0) for entry in trainer.state.log_history)
    return seconds, peak_memory_bytes(trainer.model.device)


def reset_peak_memory() -> None:
    """Reset the peak memory, where the platform allows it: of GPUs, and of processes on Linux."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory since `reset_peak_memory`.

    It is that of the GPU with the highest peak or, for a model on the CPU, of this process.
    """
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if sys.platform == "darwin" else peak * 1024


def _record(session: Session, trainer: ABFTTrainer, seconds: float, peak: int) -> dict[str, Any]:
    """Return metrics.json without the scores."""
    config, steps = session.config, trainer.state.global_step
    return {
        "format": VERSION,
        "abft_version": __version__,
        "objective": config.objective,
        "model": config.model,
        "task": session.data.task.name,
        "prompt_style": config.prompt_style,
        "seed": config.seed,
        "k": config.k,
        "test_prompts": len(session.prompts),
        "test_queries": session.distinct_queries,
        "training": {
            "steps": steps,
            "prompts": steps * config.nb,
            "packed": trainer.packed,
            "processes": trainer.args.world_size,
            "seconds": round(seconds, 2),
            "trainable_parameters": trainable_parameters(trainer.model),
            "peak_memory_bytes": peak,
        },
    }


def run_card(
    config: RunConfig, task: Task, metrics: Mapping[str, Any], kind: Kind | None = None
) -> str:
    """Write the model card of a run, from its configuration and what metrics.json holds.

    `kind` defaults to what the run saved.
    """
    shown = ("accuracy", "macro_f1", "ece")
    results: dict[str, dict[str, float]] = {
        when: {name: metrics[when][name] for name in shown}
        for when in ("before", "after")
        if when in metrics
    }
    return model_card(
        config.model,
        task,
        config,
        kind or ("full_rank" if config.lora_r is None else "adapter"),
        shown=card_settings(config),
        results=results,
        prompt_style=config.prompt_style,
        trained_on=_trained_on(config, task),
    )


def _trained_on(config: RunConfig, task: Task) -> str | None:
    """Return what the card names as trained on; None = the task that was measured."""
    if config.train_on == "task":
        return None
    if config.train_on == "others":
        return f"any built-in task but {task.name}"
    return config.tasks or f"built-in tasks that are not like {task.name}"


def _is_full(output: Path, error: Exception) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or shutil.disk_usage(output).free < 16 * 2**20


def _disk_error(output: Path, error: Exception) -> AbftError:
    """Return the error for a failed write, with what the user can do."""
    free = shutil.disk_usage(output).free // 2**20
    return AbftError(
        f"writing to {output} failed ({error}); {free} MiB free. "
        f"Make room, then go on with: abft train --resume --output {output}"
    )
