"""Define `ABFTConfig`: TrainingArguments with the paper's values and the method's settings."""

import math
from dataclasses import dataclass

import torch
from transformers import SchedulerType, TrainingArguments

from abft.errors import AbftError
from abft.method.objectives import OBJECTIVES
from abft.method.settings import PAPER, MethodSettings, PromptSettings
from abft.settings import check_settings, with_default


@dataclass
class ABFTConfig(MethodSettings, PromptSettings, TrainingArguments):
    """Holds TrainingArguments and the quantities of arXiv 2505.14233; defaults are the paper's.

    A pseudo-batch (one optimizer step) is per_device_train_batch_size x
    gradient_accumulation_steps x processes prompts: 8 x 4 = 32 by default. Small models need a
    larger learning rate than the paper's 2e-5: at 135M parameters 1e-4 with `objective="abft"`,
    3e-4 with the others.

    `data_seed` decides the training prompts and their order; it defaults to `seed`, which also
    decides LoRA's initial weights. With `warmup_steps`, the default schedule, which is constant,
    becomes "constant_with_warmup".

    Raises:
        AbftError: values out of bounds, or settings that contradict each other.
    """

    learning_rate: float = PAPER["lr"]
    max_steps: int = PAPER["steps"]
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = PAPER["nb"] // 8
    lr_scheduler_type: str = "constant"
    max_grad_norm: float = 0.0  # the paper does not clip
    logging_steps: float = 1
    save_steps: float = 8
    save_total_limit: int | None = 2
    remove_unused_columns: bool | None = False

    # The paper's defaults, unlike those of `abft train`.
    queries: int = with_default(MethodSettings, "queries", PAPER["queries"])
    objective: str = with_default(MethodSettings, "objective", PAPER["objective"])
    cross_entropy: float = with_default(MethodSettings, "cross_entropy", PAPER["cross_entropy"])

    def __post_init__(self) -> None:
        # transformers refuses bf16 on a CPU unless it is asked for.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        # transformers' constant schedule would ignore the warm-up.
        if self.warmup_steps and self.lr_scheduler_type == SchedulerType.CONSTANT:
            self.lr_scheduler_type = SchedulerType.CONSTANT_WITH_WARMUP
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn that there is nothing to pin for

        check_settings(self)
        OBJECTIVES[self.objective].check(self)

        # What the settings' own bounds do not cover: values of TrainingArguments.
        if not 0 <= self.learning_rate < math.inf:
            raise AbftError(
                f"learning rate = {self.learning_rate}: expected a finite number of at least 0"
            )
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size"):
            if getattr(self, name) < 1:
                raise AbftError(f"{name} = {getattr(self, name)}: expected at least 1")

        # Prompts that share demonstrations have to be in one micro-batch.
        if self.per_device_train_batch_size % self.queries:
            raise AbftError(
                f"queries = {self.queries} has to divide per_device_train_batch_size = "
                f"{self.per_device_train_batch_size}"
            )
        if self.queries > 1 and self.auto_find_batch_size:
            raise AbftError(
                "auto_find_batch_size would part queries that share their demonstrations; use "
                "queries = 1"
            )

        if self.restore_callback_states_from_checkpoint:
            raise AbftError(
                "restore_callback_states_from_checkpoint makes callbacks anew, without the trainer "
                "that abft's needs; the objective's state is restored in any case"
            )

        if self.weight_decay:
            raise AbftError(
                f"weight_decay = {self.weight_decay}: it would move W_V in fused weights too; use 0"
            )

        if self.activation_checkpointing:
            kwargs = getattr(self, "activation_checkpointing_kwargs", None)
            options = dict(kwargs) if isinstance(kwargs, dict) else {}
            if options.get("use_reentrant"):
                raise AbftError(
                    "reentrant activation checkpointing loses the rows' gradient; use "
                    "use_reentrant=False"
                )
            self.activation_checkpointing_kwargs = {**options, "use_reentrant": False}

    @property
    def prompts_seed(self) -> int:
        """Return the seed of the training prompts and their order."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def nb(self) -> int:
        """Return the number of prompts in a pseudo-batch."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
