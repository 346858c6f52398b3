"""The settings of the method, which `RunConfig` and `ABFTConfig` share, and the paper's values."""

from dataclasses import dataclass
from typing import Any, Literal

from abft.data.prompts import Sampling
from abft.data.tasks import PromptStyle
from abft.errors import AbftError
from abft.method.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from abft.settings import setting

DATA, METHOD, TRAINING = "Task and data", "Method (arXiv 2505.14233)", "Training"

# The paper's own settings, for models up to 10B parameters. Keys are fields of `RunConfig`.
PAPER: dict[str, Any] = {
    "objective": "abft",
    "cross_entropy": 0.0,
    "kl": 0.0,
    "train_on": "task",
    "k": 4,
    "nd": 512,
    "queries": 1,
    "sampling": "natural",
    "nb": 32,
    "steps": 32,
    "lr": 2e-5,
    "lora_r": None,
    "lora_targets": "qk",
    "layers": None,
    "A0": 0.5,
    "B0": 1.0,
    "Cp": 0.03,
    "Ci": 0.005,
    "Cd": 0.005,
    "pid": True,
    "head_filter": True,
    "threshold": None,
}


# Read-out, where a prediction comes from: the probabilities of the label words, or the attention on
# the demonstrations' labels, of the heads that training chose (all, if it chose none).
Readout = Literal["label_words", "attention"]

# What label probabilities are divided by: abft.scoring.calibration.
Calibration = Literal["none", "content_free", "batch"]


@dataclass(init=False, repr=False, eq=False)  # a part of RunConfig and ABFTConfig
class PromptSettings:
    """How texts become prompts."""

    text_column: str = setting(
        "text",
        "Column of the texts in your data.",
        panel=DATA,
        measuring=True,
        of_task=True,
        describes_own_data=True,
    )
    label_column: str = setting(
        "label",
        "Column of the labels in your data.",
        panel=DATA,
        measuring=True,
        of_task=True,
        describes_own_data=True,
    )
    template: str = setting(
        "text: {text} label: {label}\n",
        "How one demonstration of your data is written; \\n is a newline.",
        panel=DATA,
        measuring=True,
        of_task=True,
        describes_own_data=True,
    )
    prompt_style: PromptStyle = setting(
        "consistent",
        "consistent: the query ends without a space, labels are tokenized as in the "
        "demonstrations; staicc: prompts and scoring of StaICC, byte for byte.",
        panel=DATA,
        measuring=True,
        card=True,
    )
    k: int = setting(
        PAPER["k"], "Demonstrations in a prompt.", panel=DATA, at_least=1, measuring=True, card=True
    )


@dataclass
class MethodSettings:
    """What is trained, on which prompts, with which loss."""

    nd: int = setting(PAPER["nd"], "Training prompts.", panel=TRAINING, at_least=1, card=True)
    queries: int | None = setting(
        None,
        "Training queries that share one set of demonstrations, which is then computed once.",
        panel=TRAINING,
        follows="4, in a mixture 8, or 1 where that does not divide nd, nb and batch size",
        at_least=1,
        card=True,
    )
    sampling: Sampling = setting(
        "natural",
        "How often training prompts draw a class: natural: as often as it occurs in the data; "
        "balanced-queries: every class equally often as a query; balanced: also as demonstrations.",
        panel=TRAINING,
        card=True,
    )
    lora_targets: Literal["qk", "all-linear"] = setting(
        "qk",
        "What LoRA adapts: W_Q and W_K, or all linear layers (with --objective e2e only).",
        panel=TRAINING,
        defines_method=True,
    )
    layers: str | None = setting(
        None,
        'Layers whose W_Q and W_K are trained, counted from 0, e.g. "10-19,25".',
        panel=TRAINING,
        follows="all",
        listed=True,
    )
    objective: str = setting(
        DEFAULT_OBJECTIVE,
        "What is trained: "
        + "; ".join(f"{name}: {objective.summary}" for name, objective in OBJECTIVES.items())
        + ".",
        panel=METHOD,
        choices=lambda: tuple(OBJECTIVES),
        defines_method=True,
    )
    cross_entropy: float | None = setting(
        None,
        "Weight of the cross-entropy of the label word, added to a loss on attention; 0: none.",
        panel=METHOD,
        follows=", ".join(
            f"{name} {objective.default_cross_entropy:g}"
            for name, objective in OBJECTIVES.items()
            if objective.reads_attention
        ),
        at_least=0,
        follows_objective=True,
    )
    A0: float = setting(
        PAPER["A0"],
        "A at the start: weight of the punishment of incorrect labels (Eq. 1).",
        panel=METHOD,
        at_least=0,
        flag="--A0",
        objectives=("abft",),
        card=True,
    )
    B0: float = setting(
        PAPER["B0"],
        "B: weight of the reward of correct labels (Eq. 1).",
        panel=METHOD,
        at_least=0,
        flag="--B0",
        objectives=("abft",),
        card=True,
    )
    Cp: float = setting(
        PAPER["Cp"],
        "PID controller of A (Eq. 3): proportional gain.",
        panel=METHOD,
        at_least=0,
        flag="--Cp",
        objectives=("abft",),
    )
    Ci: float = setting(
        PAPER["Ci"],
        "PID controller of A: integral gain.",
        panel=METHOD,
        at_least=0,
        flag="--Ci",
        objectives=("abft",),
    )
    Cd: float = setting(
        PAPER["Cd"],
        "PID controller of A: derivative gain.",
        panel=METHOD,
        at_least=0,
        flag="--Cd",
        objectives=("abft",),
    )
    pid: bool = setting(
        PAPER["pid"],
        "Control A by PID; without it A stays A0.",
        panel=METHOD,
        objectives=("abft",),
        card=True,
    )
    head_filter: bool = setting(
        PAPER["head_filter"],
        "Train induction heads only; without it every head.",
        panel=METHOD,
        flag="--filter/--no-filter",
        objectives=("abft",),
        card=True,
    )
    heads: str = setting(
        "16",
        "Heads of the contrastive loss, chosen on training prompts: how many, or layer: all heads "
        "of one middle layer.",
        listed=True,
        panel=METHOD,
        objectives=("contrastive",),
        card=True,
    )
    temperature: float = setting(
        0.05,
        "Temperature of the contrastive loss.",
        panel=METHOD,
        at_least=0,
        objectives=("contrastive",),
        card=True,
    )
    kl: float = setting(
        PAPER["kl"],
        "Weight of the KL divergence from the untouched model on the prompts' own text; 0: none.",
        panel=METHOD,
        at_least=0,
    )
    threshold: float | None = setting(
        PAPER["threshold"],
        "Fixed threshold of the head filter, a share of attention.",
        panel=METHOD,
        follows="k / (k + ln n)",
        at_least=0,
        below=1,
        measuring=True,
    )


def layer_numbers(layers: str | None) -> list[int] | None:
    """Read layers as numbers: "10-12,20" -> [10, 11, 12, 20]; None -> None."""
    if layers is None:
        return None
    numbers: set[int] = set()
    for part in layers.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise AbftError(f'layers = {layers!r}: expected numbers and ranges such as "10-19,25"')
        numbers.update(range(int(first), int(last or first) + 1))
    return sorted(numbers)
