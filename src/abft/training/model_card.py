"""Write the model card of a run (README.md with the hub's metadata block)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from abft.data.tasks import PromptStyle, Task
from abft.method.objectives import OBJECTIVES
from abft.method.settings import MethodSettings
from abft.model.loading import HUB_NAMES
from abft.settings import settings_of

PAPER_LINK = "[Mechanistic Fine-tuning for In-context Learning](https://arxiv.org/abs/2505.14233)"
FOLDER = "path/to/this/folder"  # the place of the model in the usage snippet
Kind = Literal["full_rank", "adapter", "merged"]

# How a model of each kind is loaded.
_LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{folder}"  # or its name on the hub
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({model!r}), folder)
tokenizer = AutoTokenizer.from_pretrained(folder)"""

_LOAD_FULL_RANK = """\
import abft

folder = "{folder}"  # from the hub: huggingface_hub.snapshot_download(name)
model, tokenizer = abft.load_model({model!r})
model = abft.apply_weights(model, folder)"""

_LOAD_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{folder}"  # or its name on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)"""

_LOAD = {"full_rank": _LOAD_FULL_RANK, "adapter": _LOAD_ADAPTER, "merged": _LOAD_MERGED}
_LIBRARY = {"full_rank": "abft", "adapter": "peft", "merged": "transformers"}

# How it then predicts: the likeliest label word after a prompt.
_PREDICT = """
prompt = (
{prompt}
)
words = {words!r}
n = len(tokenizer(prompt).input_ids)


def log_probability(word):
    ids = tokenizer(prompt + word, return_tensors="pt").input_ids.to(model.device)
    scores = model(ids).logits[0, n - 1 : -1].float().log_softmax(-1)
    return scores.gather(-1, ids[0, n:, None]).sum().item()


print(max(words, key=log_probability))"""


# Settings of prompts that are drawn from a task.
_OF_DRAWN_PROMPTS = ("k", "nd", "sampling", "prompt_style")


@dataclass(frozen=True)
class Described:
    """What a card says about an objective; `RowObjective` explains the fields."""

    card_title: str
    card_text: str
    limitation: str
    method_tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, objective: object) -> "Described":
        """Return what an objective says about itself, or all that is known about another one."""
        if hasattr(objective, "card_text"):
            names = (field.name for field in fields(cls))
            return cls(**{name: getattr(objective, name) for name in names})
        name = type(objective).__name__
        return cls(
            "{model}, trained with an objective of its own ({task})",
            f"{{weights}} of `{{model}}` were trained with the objective `{name}`, which is not "
            "part of abft, in prompts of {task}. No other weight changed.",
            f"What `{name}` teaches, and what it harms, is not known to abft.",
        )


def card_settings(
    settings: Any, own_objective: bool = False, own_prompts: bool = False
) -> dict[str, Any]:
    """Return the settings that a card shows: tagged `card`, with a value and an effect.

    `own_objective`, `own_prompts`: the objective, or the prompts, were not made from the settings.
    """
    objective, of_mixture = settings.objective, getattr(settings, "train_on", None) == "mixture"
    values = {
        name: getattr(settings, name)
        for name, setting in settings_of(settings).items()
        if setting.card
        and (not setting.objectives or (objective in setting.objectives and not own_objective))
        and (of_mixture or not setting.of_mixture)
        and not (own_prompts and name in _OF_DRAWN_PROMPTS)
    }
    return {
        name: value for name, value in values.items() if value is not None and value is not False
    }


def model_card(
    base_model: str,
    task: Task | None,
    method: MethodSettings,
    kind: Kind,
    *,
    shown: Mapping[str, object],
    results: Mapping[str, Mapping[str, float]] | None = None,
    prompt_style: PromptStyle = "consistent",
    trained_on: str | None = None,
    own_objective: object | None = None,
) -> str:
    """Write a card in Markdown, without any text of the data.

    Args:
        base_model: what `load_model` takes.
        task: how prompts are written, and what was measured; None: prompts of the caller's own.
        method: what was trained.
        kind: what the card describes: changed tensors, a PEFT adapter, or a whole model.
        shown: settings to list.
        results: "before", "after" -> metric -> value, measured on test prompts of `task`.
        prompt_style: how prompts end and labels are scored.
        trained_on: the training prompts' task, where it is not `task`.
        own_objective: the objective, if it is not the one that `method` names.
    """
    own = own_objective is not None
    objective = Described.of(own_objective if own else OBJECTIVES[method.objective])
    # The model's name on the hub, or that of its folder or file.
    model = HUB_NAMES.get(base_model, base_model)
    on_hub = bool(model) and not model.endswith(".gguf") and not Path(model).exists()
    name = (model if on_hub else Path(model).name) or "a model without a name"
    task_name = task.name if task else "own data"
    trained_task = trained_on or task_name
    title = objective.card_title.format(model=Path(name).name, task=trained_task)

    # The hub's metadata block; the hub refuses a path as the base model.
    metadata: dict[str, Any] = {"base_model": model} if on_hub else {}
    metadata |= {
        "library_name": _LIBRARY[kind],
        "pipeline_tag": "text-generation",  # what loads it; it has no classification head
        "tags": [
            *objective.method_tags,
            *(["lora"] if kind == "adapter" else []),
            *("in-context-learning", "text-classification", "arxiv:2505.14233"),
        ],
    }
    if results and "after" in results:
        metadata["model-index"] = [
            {"name": title, "results": [_result(task_name, results["after"])]}
        ]

    # What was trained, in a sentence or two.
    weights = "W_Q and W_K" if method.lora_targets == "qk" else "all linear layers, through LoRA,"
    about = objective.card_text.format(
        model=name, task=trained_task, weights=weights, paper=PAPER_LINK
    )
    if method.cross_entropy and not own:
        about += (
            " The loss also has a cross-entropy term on the label word, with weight "
            f"{method.cross_entropy:g}."
        )
    if method.kl:
        about += (
            " It also has the KL divergence from the model before training on the prompts' own "
            f"text, with weight {method.kl:g}."
        )

    # PEFT loads the base from the hub, abft also by the name of the embedded model.
    load = _LOAD[kind].format(folder=FOLDER, model=model if kind == "adapter" else base_model)
    use = [load, *([_predict(task, prompt_style)] if task else [])]
    # A loss on the LM's output teaches what the label words mean, whatever else is trained.
    reads_output = bool(method.cross_entropy) and not own
    limitation = OBJECTIVES["e2e"].limitation if reads_output else objective.limitation
    limitations = _limitations(base_model, name, limitation, kind, bool(results))

    packages = ("abft", "transformers", "torch", "peft")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip()

    text = [
        *("---", header, "---", ""),
        *(f"# {title}", "", about),
        *(_results_table(results, task_name) if results else []),
        *("", "## Use", "", "```python", *use, "```", ""),
        "Write prompts as in training: the same template, the same label words, your own texts as "
        "demonstrations.",
        *("", "## Limitations", "", *(f"- {line}" for line in limitations)),
        *("", "## Settings", "", ", ".join(f"{s} {value}" for s, value in shown.items()) + "."),
        *("", f"Made with {versions}.", ""),
    ]
    return "\n".join(text)


def _results_table(results: Mapping[str, Mapping[str, float]], task: str) -> list[str]:
    """Return the lines of a table of results, a row before and a row after training."""
    columns = list(next(iter(results.values())))
    lines = [
        *("", f"Measured on test prompts of {task}:", ""),
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for when, metrics in results.items():
        cells = " | ".join(f"{metrics[column]:.3f}" for column in columns)
        lines.append(f"| {when} | {cells} |")
    return lines


def _result(task: str, values: Mapping[str, float]) -> dict[str, Any]:
    """Return an entry of the hub's model-index."""
    # The hub's identifier of a metric, and its name for readers.
    names = {"accuracy": ("accuracy", "accuracy"), "macro_f1": ("f1", "macro F1")}
    metrics = [
        {"type": names[key][0], "name": names[key][1], "value": round(values[key], 4)}
        for key in names
        if key in values
    ]
    return {
        "task": {"type": "text-classification", "name": "few-shot text classification"},
        "dataset": {"type": task, "name": task},
        "metrics": metrics,
    }


def _predict(task: Task, prompt_style: PromptStyle) -> str:
    """Return Python that prints the likeliest label word of a prompt in the task's template."""
    template = task.template
    end = template.after_query(prompt_style)
    demonstrations = [
        f"{template.before_text}a text that is "
        f"{word}{template.before_label}{word}{template.after_label}"
        for word in task.label_words
    ]
    query = f"{template.before_text}the text to label{end}"
    lines = [template.instruction, *demonstrations, query]

    # A label word begins with what the query leaves out before it, such as a space.
    words = [template.before_label[len(end) :] + word for word in task.label_words]
    return _PREDICT.format(prompt="\n".join(f"    {line!r}" for line in lines if line), words=words)


def _limitations(
    base_model: str, name: str, limitation: str, kind: Kind, measured: bool
) -> list[str]:
    """Return what a reader of the card should not expect, a sentence or two each."""
    figures = "Nothing was measured for this card."
    if measured:
        figures = (
            "The figures are of one training run. Other tasks, templates and label words were not "
            "measured."
        )
    lines = [
        "It tells classes of texts apart in few-shot prompts. Text that it generates was neither "
        "trained nor measured.",
        limitation,
        figures,
        "Limits, biases and licence of the base model hold here too.",
    ]

    if kind == "adapter":
        lines.append(f"It belongs to exactly `{name}`; PEFT does not check.")
    if kind == "adapter" and base_model in HUB_NAMES:
        lines.append(
            "It was trained on a 4-bit copy of this model. On the hub's own weights results can "
            "differ."
        )
    return lines
