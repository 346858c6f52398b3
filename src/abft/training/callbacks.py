"""Define callbacks of the trainer: Ctrl-C, step log, progress bar, best held-out weights."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from abft.files import write_text


class Stop(TrainerCallback):
    """Ends training with a checkpoint after the step in which Ctrl-C was pressed."""

    asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True


@contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """Make the first Ctrl-C end training with a checkpoint; a second one ends it at once."""
    stop = Stop()
    # Python lets only the main thread handle signals; in others, Ctrl-C is left to the caller.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        stop.asked = True
        # The next Ctrl-C has its usual effect.
        signal.signal(signal.SIGINT, before)
        print(
            "\nfinishing this step, then saving a checkpoint (Ctrl-C again: stop at once)",
            file=sys.stderr,
        )

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class RunLog(TrainerCallback):
    """Writes the trainer's own log of steps to a file, one JSON line per step.

    The log is part of every checkpoint, so a resumed run continues that of its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The whole history is written again: a resumed run drops the steps after its checkpoint.
        if state.is_world_process_zero:
            steps = (logged_step(entry) for entry in state.log_history if "loss" in entry)
            write_text(self.path, "".join(json.dumps(step) + "\n" for step in steps))


def logged_step(entry: dict[str, float]) -> dict[str, float]:
    """Return what the trainer logged for a step: loss, gradient norm, the objective's metrics."""
    values = {name: value for name, value in entry.items() if name not in _LEFT_OUT}
    return {"step": values.pop("step"), **values}


_LEFT_OUT = ("epoch", "learning_rate")  # follow from the step and the settings


class StepBar(TrainerCallback):
    """Draws a progress bar on stderr with the loss, heads over the threshold, and A."""

    def __init__(self, title: str = "train") -> None:
        self.title = title
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                file=sys.stderr,
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            # Only objectives with a PID controller have A, and some read few layers.
            shown = {"loss": "loss {:.2f}", "heads": "heads {:.1f}", "A": "A {:.2f}"}
            parts = [text.format(logs[name]) for name, text in shown.items() if name in logs]
            self.bar.set_postfix_str(", ".join(parts))
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar, also of a failed training, so that the error gets a line of its own."""
        if self.bar is not None:
            self.bar.close()


class Deadline(TrainerCallback):
    """Ends training after a number of minutes, at the end of a step."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._started >= 60 * self.minutes:
            control.should_training_stop = True


class KeepBest(TrainerCallback):
    """Scores the model every few steps, and leaves it with the best weights.

    The best weights are kept in memory. Training ends when scores stop improving.

    Args:
        score: measures the model as it is, in any ordered type; larger is better.
        every: steps between scores.
        patience: scores without an improvement, after which training ends.

    Attributes:
        scores: by step; 0 is the model before training.
        best_step: of the best score, the earliest of equal ones.
    """

    def __init__(self, score: Callable[[], Any], every: int, patience: int) -> None:
        self.score, self.every, self.patience = score, every, patience
        self.scores: dict[int, Any] = {}
        self.best_step = 0
        self._best: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self._scored(0, model)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        # The last step always counts, whatever `every` is.
        last = state.global_step == state.max_steps or control.should_training_stop
        if state.global_step % self.every == 0 or last:
            self._scored(state.global_step, model)

            scores_since = sum(step > self.best_step for step in self.scores)
            if scores_since >= self.patience:
                control.should_training_stop = True

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self._best:
                    parameter.copy_(self._best[name])

    def _scored(self, step: int, model: Any) -> None:
        """Score the model, and keep its trainable weights if none were better."""
        self.scores[step] = self.score()

        # Only a better score replaces the best: of equal ones the earliest stays.
        if step == 0 or self.scores[step] > self.scores[self.best_step]:
            self.best_step = step
            self._best = {
                name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
            }
