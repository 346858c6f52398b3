"""`ABFTConfig`: transformers' TrainingArguments with the paper's defaults and quantities."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import (
    TrainingArguments,
)

from abft.data.tasks import Protocol
from abft.errors import AbftError
from abft.runs.config import (
    refuse_bad_cross_entropy,
    refuse_bad_quantities,
    refuse_below,
    refuse_unknown_choices,
)


@dataclass
class ABFTConfig(TrainingArguments):
    """TrainingArguments with the paper's defaults and the quantities of arXiv 2505.14233.

    A pseudo-batch (one optimizer step) is per_device_train_batch_size x gradient_accumulation_steps
    x processes prompts: 8 x 4 = 32 by default. Small models need a larger learning rate than the
    paper's 2e-5: at 135M parameters 1e-4 with `objective="abft"`, 3e-4 with the others.
    """

    learning_rate: float = 2e-5
    max_steps: int = 32
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 4
    lr_scheduler_type: str = "constant"
    max_grad_norm: float = 0.0  # the paper does not clip
    logging_steps: float = 1
    save_steps: float = 8
    save_total_limit: int | None = 2
    remove_unused_columns: bool | None = False

    k: int = field(default=4, metadata={"help": "demonstrations in a training prompt"})
    nd: int = field(default=512, metadata={"help": "training prompts"})
    queries: int = field(
        default=1,
        metadata={"help": "queries behind one set of demonstrations, which is then read once"},
    )
    text_column: str = field(
        default="text", metadata={"help": "column of the texts, where train_dataset is a table"}
    )
    label_column: str = field(
        default="label", metadata={"help": "column of the labels, where train_dataset is a table"}
    )
    template: str = field(
        default="text: {text} label: {label}\n",
        metadata={"help": "how a demonstration is written, where train_dataset is a table"},
    )
    protocol: Protocol = field(
        default="consistent", metadata={"help": "how prompts end: consistent or staicc"}
    )
    objective: Literal["abft", "vote", "e2e"] = field(
        default="abft",
        metadata={
            "help": "abft; vote: of all heads for the right labels; e2e: cross-entropy of the "
            "label word"
        },
    )
    cross_entropy: float = field(
        default=0.0,
        metadata={"help": "weight of the label word's cross-entropy beside abft or vote; 0: none"},
    )
    lora_targets: Literal["qk", "all-linear"] = field(
        default="qk", metadata={"help": "what LoRA adapts; qk with abft"}
    )
    A0: float = field(
        default=0.5, metadata={"help": "initial weight of the punishment of wrong labels"}
    )
    B0: float = field(default=1.0, metadata={"help": "weight of the reward of right labels"})
    Cp: float = field(default=0.03, metadata={"help": "PID: proportional gain"})
    Ci: float = field(default=0.005, metadata={"help": "PID: integral gain"})
    Cd: float = field(default=0.005, metadata={"help": "PID: differential gain"})
    pid: bool = field(default=True, metadata={"help": "control A by PID; off: A stays A0"})
    head_filter: bool = field(
        default=True, metadata={"help": "train induction heads only; off: every head"}
    )
    threshold: float | None = field(
        default=None, metadata={"help": "fixed filter threshold; default k / (k + ln n)"}
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "layers whose W_Q, W_K train, from 0; default all"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn that there is nothing to pin for
        refuse_unknown_choices(self)
        refuse_bad_quantities(
            self.A0, self.B0, self.Cp, self.Ci, self.Cd, self.learning_rate, self.threshold
        )
        refuse_bad_cross_entropy(self.cross_entropy, self.objective)
        refuse_below(
            1,
            self,
            "k",
            "nd",
            "queries",
            "gradient_accumulation_steps",
            "per_device_train_batch_size",
        )
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
        if self.weight_decay:
            raise AbftError(
                f"weight_decay = {self.weight_decay}: it would move W_V in fused weights too; use 0"
            )
        if self.activation_checkpointing:
            given = getattr(self, "activation_checkpointing_kwargs", None)
            options: dict = dict(given) if isinstance(given, dict) else {}
            if options.get("use_reentrant"):
                raise AbftError(
                    "reentrant activation checkpointing loses the rows' gradient; use "
                    "use_reentrant=False"
                )
            self.activation_checkpointing_kwargs = {**options, "use_reentrant": False}

    @property
    def reads_output(self) -> bool:
        """Whether the loss looks at the LM's output beside its attention."""
        return self.objective == "e2e" or self.cross_entropy > 0

    @property
    def nb(self) -> int:
        """Prompts in a pseudo-batch."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
