"""Train the model of a classifier, and keep the weights that are best on held-out texts."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from abft.data.splits import TaskData
from abft.runs.config import RunConfig, resolve

PSEUDO_BATCH, QUERIES = 32, 4
VALIDATIONS = 8  # during training
PATIENCE = 3  # validations without an improvement, after which training ends
# Without a number of steps: the maximum, and the steps between validations.
MOST_STEPS, AUTO_EVERY = 64, 4


@dataclass(frozen=True)
class Training:
    """How a classifier's model is trained.

    Attributes:
        steps: maximum number of optimizer steps, of 32 prompts each; None = until validations stop
            improving.
        minutes: time after which training ends; None = no limit.
    """

    config: RunConfig
    steps: int | None
    minutes: float | None
    seed: int
    use_cpu: bool
    progress: bool

    def run(
        self, model: Any, tokenizer: Any, data: TaskData, validate: Callable[[], Any]
    ) -> tuple[int, dict[int, Any]]:
        """Train, and leave the model with the weights that validated best.

        Returns the best step (0 = the untouched weights), and the validations by step.
        """
        from transformers import PrinterCallback

        from abft.training.arguments import ABFTConfig
        from abft.training.callbacks import Deadline, KeepBest, StepBar
        from abft.training.generators import generators_kept
        from abft.training.trainer import ABFTTrainer

        config = resolve(self.config, model.num_parameters())
        assert config.lr is not None

        steps = MOST_STEPS if self.steps is None else self.steps
        every = AUTO_EVERY if self.steps is None else max(1, steps // VALIDATIONS)
        best = KeepBest(validate, every, PATIENCE)
        callbacks: list[Any] = [StepBar()] if self.progress else []
        if self.minutes is not None:
            # Before `best`, which then validates the last step.
            callbacks.append(Deadline(self.minutes))
        callbacks.append(best)

        # The best weights are kept in memory; nothing is saved in the folder.
        with tempfile.TemporaryDirectory() as folder, generators_kept(model):
            arguments = ABFTConfig(
                output_dir=folder,
                objective=config.objective,
                cross_entropy=config.cross_entropy,
                learning_rate=config.lr,
                max_steps=steps,
                k=config.k,
                nd=steps * PSEUDO_BATCH,
                queries=QUERIES,
                seed=self.seed,
                data_seed=self.seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=self.use_cpu,
            )
            trainer = ABFTTrainer(model, arguments, data, tokenizer, callbacks=callbacks)
            # It would print every step that is logged.
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return best.best_step, best.scores
