"""A run's configuration; its fields are also command-line options and keys of config.yaml."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from abft.data.builtin import task_named
from abft.data.mixture_settings import (
    MIXED_WORDS,
    absolute_tasks,
    check_files,
    check_tasks,
    is_file,
    mixed_words,
    shot_range,
    task_list,
)
from abft.errors import AbftError
from abft.method.objectives import OBJECTIVES, check_objective
from abft.method.settings import (
    DATA,
    PAPER,
    TRAINING,
    MethodSettings,
    PromptSettings,
    layer_numbers,
)
from abft.model.loading import absolute_model
from abft.settings import as_declared, changed, check_settings, from_mapping, names, setting

Device = Literal["auto", "cpu", "cuda", "balanced"]

MODEL, OUTPUT = "Model", "Output"
DEFAULT_TASK = "SST2"
RUNS = Path("runs")  # where run folders are made, and looked for, by default
VERSION = 2  # of config.yaml
# Default number of training queries that share one set of demonstrations, if it divides the counts.
QUERIES = 4
MIXTURE_QUERIES = 8  # most of them are also demonstrations of the prompt and cost nothing
SMALL_MODEL = 500_000_000  # parameters; with fewer, the paper's learning rate is too small

RECIPES: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "paper-lora": {**PAPER, "lora_r": 16, "lr": 1e-4, "load_in_4bit": True},
    "reader": {
        "train_on": "mixture",
        "objective": "contrastive",
        "cross_entropy": 0.0,
        "kl": 3.0,
        "queries": 16,
        "batch_size": 16,
        "nb": 32,
        "nd": 8192,
        "steps": 256,
        "lr": 3e-4,
    },
}
"""Named sets of settings, to use as `RunConfig(**RECIPES["paper"])`.

"paper" and "paper-lora" are the paper's, up to and above 10B parameters; "reader" trains a reader
(docs/reader.md). The paper's leave the prompt style open; its prompts are those of StaICC
(`prompt_style="staicc"`).
"""


@dataclass(init=False, repr=False, eq=False)  # a part of RunConfig
class ModelSettings:
    """Which model, and how it is loaded."""

    model: str = setting(
        "SmolLM2-135M-Instruct",
        "Hub id, folder, .gguf file or the embedded default.",
        panel=MODEL,
        measuring=True,
        path=True,
        axis=True,
    )
    revision: str | None = setting(
        None, "Branch, tag or commit on the hub.", panel=MODEL, measuring=True
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = setting(
        "float32",
        "Precision of the weights (full-rank training needs float32).",
        panel=MODEL,
        measuring=True,
    )
    load_in_4bit: bool = setting(
        False,
        "Load nf4 base weights (bitsandbytes); training them needs LoRA.",
        panel=MODEL,
        measuring=True,
        card=True,
    )
    trust_remote_code: bool = setting(
        False,
        "Run Python code of the model's repository.",
        panel=MODEL,
        measuring=True,
        affects_result=False,
    )
    device: Device = setting(
        "auto",
        "auto: this process's GPU if there is one; balanced: spread over all GPUs.",
        panel=MODEL,
        measuring=True,
        affects_result=False,
    )


@dataclass(init=False, repr=False, eq=False)  # a part of RunConfig
class DataSettings(PromptSettings):
    """Which task, and how its prompts are written."""

    task: str | None = setting(
        None,
        "Built-in task, e.g. SST2, TREC.",
        panel=DATA,
        follows=f"{DEFAULT_TASK} without --data",
        measuring=True,
        of_task=True,
        axis=True,
    )
    data: str | None = setting(
        None,
        "Your own data: .csv, .tsv, .jsonl, .json (also .gz), .parquet, .xlsx or a hub data set "
        "id; encoding and separator are detected.",
        panel=DATA,
        measuring=True,
        of_task=True,
        path=True,
        axis=True,
    )
    test_data: str | None = setting(
        None,
        "Your own test queries.",
        panel=DATA,
        follows="held out of --data",
        measuring=True,
        path=True,
        of_task=True,
        describes_own_data=True,
    )
    strict: bool = setting(
        False,
        "Refuse rows with an empty text or label instead of skipping them.",
        panel=DATA,
        measuring=True,
        of_task=True,
        describes_own_data=True,
    )
    max_text_tokens: int | None = setting(
        None,
        "Cut longer texts after this many tokens.",
        panel=DATA,
        follows="what fits into the model's context",
        at_least=1,
        measuring=True,
    )
    label_words: dict[str, str] = setting(
        {},
        "LABEL=word: write a label as this word in prompts; repeat for more labels.",
        panel=DATA,
        follows="the labels",
        measuring=True,
        of_task=True,
    )
    test_prompts: int = setting(
        512,
        "Test prompts to measure before and after training; 0: no evaluation.",
        panel=DATA,
        at_least=0,
        measuring=True,
        card=True,
    )


@dataclass(init=False, repr=False, eq=False)  # a part of RunConfig
class TrainingSettings(MethodSettings):
    """How training runs."""

    nb: int = setting(
        PAPER["nb"],
        "Prompts in a pseudo-batch (one optimizer step).",
        panel=TRAINING,
        at_least=1,
        card=True,
    )
    batch_size: int = setting(
        8, "Prompts in a forward pass of training; divides nb.", panel=TRAINING, at_least=1
    )
    steps: int | None = setting(
        None,
        "Optimizer steps.",
        panel=TRAINING,
        follows=", ".join(f"{n} {o.default_steps}" for n, o in OBJECTIVES.items()),
        at_least=1,
        follows_objective=True,
        card=True,
    )
    lr: float | None = setting(
        None,
        "Learning rate.",
        panel=TRAINING,
        follows="by objective and model size",
        at_least=0,
        follows_objective=True,
        card=True,
    )
    lora_r: int | None = setting(
        None,
        "Rank of LoRA on W_Q and W_K.",
        panel=TRAINING,
        follows="full rank",
        at_least=1,
        card=True,
    )
    lora_alpha: int | None = setting(
        None, "Scale of LoRA.", panel=TRAINING, follows="lora_r", at_least=1
    )
    bf16: bool = setting(False, "Compute in bfloat16 (autocast).", panel=TRAINING)
    activation_checkpointing: int = setting(
        0,
        "Recompute every n-th layer's activations: less memory, more time; 0: off.",
        panel=TRAINING,
        at_least=0,
    )
    train_on: Literal["task", "others", "mixture"] = setting(
        "task",
        "task: prompts of the task; others: of all other built-in tasks, never of the task itself "
        "(MetaICL); mixture: of several tasks, each time with other classes, label words, "
        "templates and numbers of demonstrations, so that a model learns to read demonstrations.",
        panel=TRAINING,
        defines_method=True,
        card=True,
    )
    tasks: str | None = setting(
        None,
        'Tasks of a mixture, built-in ones or data files: "SST2,TREC,reviews.csv".',
        panel=TRAINING,
        follows="the built-in tasks that are not like the task",
        of_mixture=True,
        listed=True,
        card=True,
    )
    words: str = setting(
        ",".join(MIXED_WORDS),
        "Kinds of label words in a mixture, drawn equally often: own: the task's; arbitrary: other "
        "words every time; permuted: the task's, each for another class.",
        panel=TRAINING,
        of_mixture=True,
        listed=True,
        card=True,
    )
    shots: str = setting(
        "2-32",
        "Fewest and most demonstrations in a prompt of a mixture.",
        listed=True,
        panel=TRAINING,
        of_mixture=True,
        card=True,
    )
    seed: int = setting(
        0,
        "Decides the training prompts and their order, never the test prompts.",
        panel=TRAINING,
        at_least=0,
        below=2**32,
        axis=True,
        card=True,
    )
    eval_batch_size: int = setting(
        16,
        "Prompts in a forward pass of evaluation.",
        panel=OUTPUT,
        at_least=1,
        measuring=True,
        affects_result=False,
    )
    save_steps: int = setting(
        8, "Steps between checkpoints.", panel=TRAINING, at_least=1, affects_result=False
    )


@dataclass
class RunConfig(TrainingSettings, DataSettings, ModelSettings):
    """Everything that decides the result of a run.

    Settings whose default follows from others may stay open (None); `resolve` returns a copy in
    which they are filled in. Do not change an object: `dataclasses.replace` makes a changed copy
    and checks it.

    Raises:
        AbftError: values out of bounds, or settings that contradict each other.
    """

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_counts()
        self._check_data()

        if self.lora_targets != "qk" and self.lora_r is None:
            raise AbftError(
                f"lora_targets = {self.lora_targets!r} goes with lora_r and objective e2e; ABFT "
                "trains W_Q and W_K only"
            )
        if self.lora_alpha is not None and self.lora_r is None:
            raise AbftError(f"lora_alpha = {self.lora_alpha} goes with lora_r (--lora-r 16)")
        if self.lora_targets != "qk" and self.layers is not None:
            raise AbftError("layers goes with lora_targets = 'qk'; all-linear adapts every layer")
        OBJECTIVES[self.objective].check(self)
        layer_numbers(self.layers)

    def _check_counts(self) -> None:
        if self.nb % self.batch_size and self.nb > self.batch_size:
            raise AbftError(
                f"batch_size = {self.batch_size} does not divide the pseudo-batch nb = {self.nb}"
            )
        if self.nd < self.nb:
            raise AbftError(
                f"nd = {self.nd} training prompts do not fill one pseudo-batch of nb = {self.nb}"
            )
        if self.queries is not None:
            for name in ("nd", "nb", "batch_size"):
                if getattr(self, name) % self.queries:
                    raise AbftError(
                        f"queries = {self.queries} has to divide {name} = {getattr(self, name)}"
                    )
            if self.queries > 1 and self.train_on == "others":
                raise AbftError(
                    "queries goes with train_on = 'task' or 'mixture'; prompts of other tasks have "
                    "one query each"
                )

    def _check_data(self) -> None:
        if self.task is not None:
            task_named(self.task)
            if self.data is not None:
                raise AbftError(f"got both task {self.task!r} and data {self.data!r}; give one")
        files = [name for name in task_list(self.tasks) or () if is_file(name)]
        if self.data is None and not files:
            without = changed(self, names(self, lambda known: known.describes_own_data))
            if without:
                raise AbftError(
                    f"{', '.join(without)} given without data; these describe your own data "
                    "(--data FILE)"
                )
        if self.data is None and self.test_data is not None:
            raise AbftError("test_data goes with data (--data FILE)")
        self._check_mixture()

    def _check_mixture(self) -> None:
        if self.train_on != "mixture":
            given = changed(self, names(self, lambda known: known.of_mixture))
            if given:
                raise AbftError(f"{', '.join(given)} given without train_on = 'mixture'")
            return
        mixed_words(self.words)
        shot_range(self.shots)
        check_tasks(task_list(self.tasks))

    @property
    def task_name(self) -> str | None:
        """The built-in task; None with own data."""
        return None if self.data is not None else self.task or DEFAULT_TASK

    @classmethod
    def from_dict(cls, values: Mapping[str, object], origin: str) -> "RunConfig":
        """Make a configuration from keys and values.

        Args:
            values: setting -> value.
            origin: names the file in error messages.

        Raises:
            AbftError: an unknown key; the message names the nearest known one.
        """
        return from_mapping(cls, values, origin)


class ResolvedConfig(RunConfig):
    """A configuration with all settings filled in; only `lr` is open until a model is loaded."""

    if TYPE_CHECKING:
        queries: int
        steps: int
        cross_entropy: float

    @property
    def task_queries(self) -> int:
        """Queries that share demonstrations when training on the task itself; otherwise 1."""
        return self.queries if self.train_on == "task" else 1


def resolve(config: RunConfig, parameters: int | None = None) -> ResolvedConfig:
    """Return a copy in which open settings that follow from others are filled in.

    Args:
        config: settings that are given (not None) stay as they are.
        parameters: number of model parameters, from which the learning rate follows; without it,
            the learning rate stays open.
    """
    objective = OBJECTIVES[config.objective]
    counts = (config.nd, config.nb, config.batch_size)
    queries = {"task": QUERIES, "others": 1, "mixture": MIXTURE_QUERIES}[config.train_on]
    follows: dict[str, object] = {
        "queries": queries if all(count % queries == 0 for count in counts) else 1,
        "steps": objective.default_steps,
        "cross_entropy": objective.default_cross_entropy,
    }
    if parameters is not None:
        lora = config.lora_r is not None
        follows["lr"] = default_learning_rate(parameters, lora, config.objective)
    values = {f: getattr(config, f) for f in config.__dataclass_fields__}
    opened = {name: value for name, value in follows.items() if values[name] is None}
    return ResolvedConfig(**{**values, **opened})


def default_learning_rate(parameters: int, lora: bool, objective: str) -> float:
    """Return the default learning rate for a model of this size, with LoRA or at full rank.

    It is the paper's: 1e-4 with LoRA, 2e-5 at full rank. Models below 500M parameters at full rank
    are an exception, because 2e-5 changes them too little: their rate is the objective's, chosen on
    training data (docs/defaults.md).
    """
    if lora:
        return RECIPES["paper-lora"]["lr"]
    if parameters >= SMALL_MODEL:
        return PAPER["lr"]
    return OBJECTIVES[objective].small_model_rate


def absolute_paths(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with absolute paths, so that they are valid in any working directory.

    Values are converted to their fields' types, see `as_declared`. `settings` declares which may be
    paths; hub ids stay as they are.
    """
    values = as_declared(settings, values)
    local = {
        name: str(Path(value).resolve())
        for name in names(settings, lambda known: known.path)
        if isinstance(value := values.get(name), str) and value and Path(value).exists()
    }
    if isinstance(model := values.get("model"), str) and model:
        local["model"] = absolute_model(model)
    if isinstance(tasks := values.get("tasks"), str):
        local["tasks"] = absolute_tasks(tasks)
    return {**values, **local}


def written_settings(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as people write them, on a command line or in a YAML file.

    Paths become absolute, and \\n and \\t in a template a line feed and a tab: shells, and YAML's
    single quotes, leave them as they are.
    """
    template = values.get("template")
    if isinstance(template, str):
        values = {**values, "template": template.replace("\\n", "\n").replace("\\t", "\t")}
    return absolute_paths(settings, values)


def check_effect(config: RunConfig) -> None:
    """Raise AbftError for settings that training would ignore or cannot run with."""
    k = config.k
    if config.train_on == "others" and config.data is not None:
        raise AbftError("train_on = 'others' needs a built-in task; own data has no others")
    if config.train_on == "mixture":
        if config.prompt_style != "consistent":
            raise AbftError("train_on = 'mixture' needs prompt_style = 'consistent'")
        if config.sampling != "natural":
            raise AbftError(
                "sampling goes with train_on = 'task' or 'others'; a mixture draws classes itself"
            )
        check_files(task_list(config.tasks))
        k, _ = shot_range(config.shots)
    check_objective(config, k)
    if config.load_in_4bit and config.lora_r is None:
        raise AbftError("4-bit weights train through LoRA only: give lora_r as well (--lora-r 16)")


def config_values(config: RunConfig) -> dict[str, Any]:
    """Return what config.yaml holds."""
    return {"version": VERSION, **asdict(config)}


def current_values(values: Mapping[str, object], origin: str) -> dict[str, object]:
    """Return the settings of a YAML file; those of an older config.yaml are brought up to date.

    A run's config.yaml holds all settings that existed when it was written. Settings added since
    get the value that was built in before.

    Raises:
        AbftError: a file of a newer version.
    """
    current = {name: value for name, value in values.items() if name != "version"}
    version = values.get("version")
    if version is not None and version != VERSION:
        raise AbftError(f"{origin} is of version {version!r}, this abft reads up to {VERSION}")
    if version is None and is_whole(values):
        if "protocol" in current:
            current["prompt_style"] = current.pop("protocol")
        current = {"queries": 1, "cross_entropy": 0.0, **current}
    return current


def is_whole(values: Mapping[str, object]) -> bool:
    """Return whether these are a run's complete settings, as its config.yaml holds them."""
    return {"model", "objective", "steps", "seed", "k", "nb"} <= values.keys()
