"""A run's configuration: the command line's flags, config.yaml's keys and `RunConfig`'s fields are
the same names.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import yaml

from abft.data.builtin import task_named
from abft.data.tasks import Protocol
from abft.errors import AbftError

DEFAULT_TASK = "SST2"


RUNS = Path("runs")  # where run folders are made and looked for if none is named


SMALL_MODEL = 500_000_000  # parameters; below it the paper's learning rate moves too little


STEPS = {
    "vote": 16,
    "abft": 32,
    "e2e": 24,
}  # by objective; docs/defaults.md, and the paper's for abft


QUERIES = 4  # behind one set of demonstrations, if nothing speaks against it


PAPER: dict[str, Any] = {
    "objective": "abft",
    "cross_entropy": 0.0,
    "train_on": "task",
    "k": 4,
    "nd": 512,
    "queries": 1,
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


PAPERS_OWN = (
    "A0",
    "B0",
    "Cp",
    "Ci",
    "Cd",
    "pid",
    "head_filter",
)  # settings that only the paper's objective has


RECIPES: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "paper-lora": {**PAPER, "lora_r": 16, "lr": 1e-4, "load_in_4bit": True},
}


"""Named settings, `RunConfig(**RECIPES["paper"])`: the paper's (arXiv 2505.14233) up to and above
10B parameters.
"""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run.

    Settings that were left open are filled in by those they follow from:
    `dataclasses.replace(config, objective="abft")` keeps the steps and the cross-entropy of the
    other objective, `RunConfig(objective="abft")` does not.
    """

    model: str = "SmolLM2-135M-Instruct"
    """hub id, folder, .gguf file or the embedded default"""
    revision: str | None = None
    """branch, tag or commit on the hub"""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """precision in which weights are loaded; full-rank training needs float32"""
    load_in_4bit: bool = False
    """nf4 base weights (bitsandbytes); needs lora_r"""
    trust_remote_code: bool = False
    """run Python code that the model's repository brings"""
    device: Literal["auto", "cpu", "cuda", "balanced"] = "auto"
    """auto: this process's GPU if there is one; balanced: spread over all GPUs"""

    task: str | None = None
    """built-in task; the default is SST2 where no data is given"""
    data: str | None = None
    """own data: .csv, .tsv, .jsonl, .json, .parquet or a hub data set id"""
    text_column: str = "text"
    """column of the texts in `data`"""
    label_column: str = "label"
    """column of the labels in `data`"""
    test_data: str | None = None
    """own test queries; default: held out of `data`"""
    template: str = "text: {text} label: {label}\n"
    """how a demonstration of `data` is written"""
    label_words: dict[str, str] = dataclasses.field(default_factory=dict)
    """label -> the word that stands for it in prompts"""
    protocol: Protocol = "consistent"
    """how prompts end and labels are scored"""

    k: int = 4
    """demonstrations in a prompt"""
    nd: int = 512
    """training prompts"""
    queries: int = None  # type: ignore[assignment]  # a number once the object is made
    """training queries behind one set of demonstrations, which is then read once; divides nd, nb
    and batch_size. Default 4, or 1 where 4 does not divide them"""
    nb: int = 32
    """prompts in a pseudo-batch, i.e. in one optimizer step"""
    batch_size: int = 8
    """prompts in one forward pass of training; divides nb"""
    steps: int = None  # type: ignore[assignment]
    """optimizer steps; default by objective: vote 16, abft 32, e2e 24"""
    lr: float | None = None
    """learning rate; default by model size (see `default_learning_rate`)"""
    lora_r: int | None = None
    """rank of LoRA on W_Q and W_K; default: full rank"""
    lora_alpha: int | None = None
    """scale of LoRA; default lora_r"""
    lora_targets: Literal["qk", "all-linear"] = "qk"
    """what LoRA adapts; all linear layers only with the e2e objective"""
    layers: str | None = None
    """layers whose W_Q and W_K train, from 0, e.g. "10-19,25"; default all"""
    bf16: bool = False
    """compute in bfloat16 (autocast)"""
    activation_checkpointing: int = 0
    """recompute every n-th layer's activations in the backward pass: less memory, more time; 0 =
    off, 1 = every layer
    """

    objective: Literal["abft", "vote", "e2e"] = "vote"
    """vote: cross-entropy of all heads' attention on label tokens; abft: the paper's, each
    induction head's attention on them (Eq. 1); e2e: cross-entropy of the label word, the paper's
    comparison"""
    cross_entropy: float = None  # type: ignore[assignment]
    """weight of the label word's cross-entropy beside abft or vote; 0: none. Default 1 beside vote,
    else 0
    """
    train_on: Literal["task", "others"] = "task"
    """others: prompts of the other built-in tasks, the task itself is never seen (MetaICL)"""
    A0: float = 0.5
    """initial weight of the punishment of wrong labels"""
    B0: float = 1.0
    """weight of the reward of right labels"""
    Cp: float = 0.03
    """PID: proportional gain"""
    Ci: float = 0.005
    """PID: integral gain"""
    Cd: float = 0.005
    """PID: differential gain"""
    pid: bool = True
    """control A by PID"""
    head_filter: bool = True
    """train induction heads only"""
    threshold: float | None = None
    """fixed filter threshold; default k / (k + ln n)"""

    seed: int = 0
    """training prompts and their order; never the test prompts"""
    test_prompts: int = 512
    """test prompts before and after training; 0 = no evaluation"""
    eval_batch_size: int = 16
    """prompts in one forward pass of evaluation"""
    save_steps: int = 8
    """a checkpoint every so many steps"""

    def __post_init__(self) -> None:
        refuse_unknown_choices(self)
        self._fill_in()
        for f in fields(self):
            value = getattr(self, f.name)
            if not _is_a(value, f.type):
                raise AbftError(f"{f.name} = {value!r}: expected {_NAMES.get(f.type, f.type)}")
        refuse_below(
            1,
            self,
            "k",
            "nd",
            "nb",
            "queries",
            "batch_size",
            "steps",
            "eval_batch_size",
            "save_steps",
        )
        if self.test_prompts < 0:
            raise AbftError(
                f"test_prompts = {self.test_prompts}: expected 0 (no evaluation) or more"
            )
        if self.nb % self.batch_size and self.nb > self.batch_size:
            raise AbftError(
                f"batch_size = {self.batch_size} does not divide the pseudo-batch nb = {self.nb}"
            )
        if self.nd < self.nb:
            raise AbftError(
                f"nd = {self.nd} training prompts do not fill one pseudo-batch of nb = {self.nb}"
            )
        for name in ("nd", "nb", "batch_size"):
            if getattr(self, name) % self.queries:
                raise AbftError(
                    f"queries = {self.queries} has to divide {name} = {getattr(self, name)}"
                )
        if self.queries > 1 and self.train_on == "others":
            raise AbftError(
                "queries goes with train_on = 'task'; prompts of other tasks have one query each"
            )
        if self.task is not None and self.data is not None:
            raise AbftError(f"got both task {self.task!r} and data {self.data!r}; give one of them")
        if self.data is None:
            own = ("text_column", "label_column", "test_data", "template")
            lonely = [
                f.name for f in fields(self) if f.name in own and getattr(self, f.name) != f.default
            ]
            if lonely:
                raise AbftError(
                    f"{', '.join(lonely)} given without data; these describe own data (--data FILE)"
                )
        if self.activation_checkpointing < 0:
            raise AbftError(
                f"activation_checkpointing = {self.activation_checkpointing}: expected 0 (off) "
                f"or every n-th layer"
            )
        refuse_below(1, self, "lora_r", "lora_alpha")
        if self.lora_targets != "qk" and (self.objective != "e2e" or self.lora_r is None):
            raise AbftError(
                f"lora_targets = {self.lora_targets!r} goes with lora_r and objective e2e; ABFT "
                f"trains W_Q and W_K only"
            )
        if self.lora_targets != "qk" and self.layers is not None:
            raise AbftError("layers goes with lora_targets = 'qk'; all-linear adapts every layer")
        if self.train_on == "others" and self.data is not None:
            raise AbftError(
                "train_on = 'others' needs a built-in task; own data has no other tasks beside it"
            )
        if not 0 <= self.seed < 2**32:
            raise AbftError(f"seed = {self.seed}: expected a number from 0 to 2**32 - 1")
        refuse_bad_quantities(self.A0, self.B0, self.Cp, self.Ci, self.Cd, self.lr, self.threshold)
        refuse_bad_cross_entropy(self.cross_entropy, self.objective)
        if self.task is not None:
            task_named(self.task)  # refuses unknown tasks before anything heavy is imported
        self.layer_list()

    def _fill_in(self) -> None:
        """Settings that were left open and follow from others."""
        counts = (self.nd, self.nb, self.batch_size)
        shared = self.train_on == "task" and all(
            isinstance(count, int) and count % QUERIES == 0 for count in counts
        )
        defaults = {
            "queries": QUERIES if shared else 1,
            "steps": STEPS[self.objective],
            "cross_entropy": default_cross_entropy(self.objective),
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def task_name(self) -> str | None:
        """The built-in task that is meant; None with own data."""
        return None if self.data is not None else self.task or DEFAULT_TASK

    def layer_list(self) -> list[int] | None:
        """`layers` as numbers: "10-12,20" -> [10, 11, 12, 20]."""
        if self.layers is None:
            return None
        numbers: set[int] = set()
        for part in str(self.layers).split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise AbftError(
                    f'layers = {self.layers!r}: expected numbers and ranges such as "10-19,25"'
                )
            numbers.update(range(int(first), int(last or first) + 1))
        return sorted(numbers)

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> "RunConfig":
        """Refuses unknown keys, naming the nearest known one."""
        refuse_unknown_keys(values, [f.name for f in fields(cls)], origin)
        return cls(**values)


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    int | None: "a whole number",
    float | None: "a number",
    str | None: "text",
    dict[str, str]: "label: word pairs of text (in YAML, yes and no need quotes)",
}


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value from YAML or a caller is of a field's type; whole numbers pass as floats,
    truth values as no number.
    """
    if get_origin(kind) is Literal:
        return True
    if isinstance(kind, UnionType):
        return any(
            value is None if part is NoneType else _is_a(value, part) for part in get_args(kind)
        )
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            isinstance(part, str) for pair in value.items() for part in pair
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def refuse_unknown_choices(settings: Any) -> None:
    """Raise AbftError for a value of a dataclass that its `Literal` does not list."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        if get_origin(f.type) is Literal and value not in get_args(f.type):
            raise AbftError(f"{f.name} = {value!r}: expected one of {', '.join(get_args(f.type))}")


def refuse_below(least: int, settings: Any, *names: str) -> None:
    """Raise AbftError for the first of an object's values `names` that is smaller; None is none."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise AbftError(f"{name} = {value}: expected at least {least}")


def refuse_bad_quantities(
    A0: float, B0: float, Cp: float, Ci: float, Cd: float, lr: float | None, threshold: float | None
) -> None:
    """Raise AbftError for numbers with which training could only fail."""
    for name, value in {
        "A0": A0,
        "B0": B0,
        "Cp": Cp,
        "Ci": Ci,
        "Cd": Cd,
        "learning rate": lr,
    }.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise AbftError(f"{name} = {value}: expected a finite number of at least 0")
    if A0 == 0 and B0 == 0:
        raise AbftError("A0 and B0 are both 0: the loss would be 0")
    if threshold is not None and not 0 <= threshold < 1:
        raise AbftError(f"threshold = {threshold}: expected a share of attention in [0, 1)")


def refuse_bad_cross_entropy(weight: float, objective: str) -> None:
    """Raise AbftError for a weight that is no weight, or has nothing to stand beside."""
    if not (math.isfinite(weight) and weight >= 0):
        raise AbftError(f"cross_entropy = {weight}: expected a finite number of at least 0")
    if weight and objective == "e2e":
        raise AbftError(
            "cross_entropy goes with objectives abft and vote; e2e is nothing but "
            "cross-entropy: set it to 0"
        )


def default_cross_entropy(objective: str) -> float:
    """Its weight beside an objective: chosen on training data (docs/defaults.md) for vote, none in
    the paper.
    """
    return 1.0 if objective == "vote" else 0.0


def refuse_without_effect(config: RunConfig) -> None:
    """Raise AbftError for settings of the paper's objective beside another one, and for a vote on
    one label.
    """
    if config.objective == "vote" and not config.cross_entropy and config.k == 1:
        raise AbftError(
            "objective 'vote' compares labels, k = 1 shows one: its loss would be 0; give a "
            "larger k"
        )
    changed = [
        f.name
        for f in fields(config)
        if f.name in PAPERS_OWN and getattr(config, f.name) != f.default
    ]
    if changed and config.objective != "abft":
        raise AbftError(
            f"{changed[0]} goes with objective 'abft' and has no effect on "
            f"{config.objective!r}; add --objective abft, or "
            "--recipe paper"
        )


def refuse_unknown_keys(values: dict[str, Any], known: Sequence[str], origin: str) -> None:
    """Raise AbftError for the first key of `values` that is not `known`."""
    from difflib import get_close_matches

    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise AbftError(
                f"{origin}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping from a YAML file. Raises AbftError where there is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AbftError(f"no such file: {path}") from None
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise AbftError(f"{path} could not be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise AbftError(f"{path}: expected keys and values, for example `lr: 0.0003`")
    return values


def with_settings_of_its_time(values: dict[str, Any]) -> dict[str, Any]:
    """A run's config.yaml, which holds all settings that there were, with what later ones stood at;
    other files as they are.
    """
    return {"queries": 1, "cross_entropy": 0.0, **values} if is_whole(values) else values


def is_whole(values: dict[str, Any]) -> bool:
    """Whether these are all settings of a run, as its config.yaml holds them."""
    return {"model", "objective", "steps", "seed", "k", "nb"} <= values.keys()


def default_learning_rate(parameters: int, lora: bool, objective: str = "abft") -> float:
    """The paper's 1e-4 with LoRA and 2e-5 at full rank; below 500M parameters, where 2e-5 moves too
    little, 1e-4 at full rank.

    Small models take 3e-4 with the objectives vote and e2e. All small-model rates are this
    project's, chosen on training data (docs/defaults.md).
    """
    if lora:
        return 1e-4
    if parameters >= SMALL_MODEL:
        return 2e-5
    return 1e-4 if objective == "abft" else 3e-4
