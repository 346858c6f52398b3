"""The model card of a run (README.md with the hub's metadata block)."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from abft.data.tasks import Protocol, Task
from abft.model.loading import HUB_NAMES

PAPER = "[Mechanistic Fine-tuning for In-context Learning](https://arxiv.org/abs/2505.14233)"


Kind = Literal["full_rank", "adapter", "merged"]


FOLDER = "path/to/this/folder"  # what stands in the usage snippet


_ABFT = (
    "# {short}, fine-tuned where it looks (ABFT, {task})",
    "",
    "Attention Behavior Fine-Tuning ({paper}) trained {weights} of `{name}` so that its "
    "induction heads look at",
    "the demonstrations with the right label in few-shot prompts of {task}. No other weight "
    "changed.",
)


_VOTE = (
    "# {short}, fine-tuned where it looks (ABFT with the vote objective, {task})",
    "",
    "A variant of Attention Behavior Fine-Tuning ({paper}) trained {weights} of `{name}` so "
    "that the attention of all heads",
    "favours the demonstrations with the right label in few-shot prompts of {task}. No other "
    "weight changed.",
)


_E2E = (
    "# {short}, fine-tuned end to end ({task})",
    "",
    "Cross-entropy of the label word in few-shot prompts of {task} trained {weights} of "
    "`{name}`: what",
    "{paper} compares its method with. No other weight changed.",
)


_ABOUT = {"abft": _ABFT, "vote": _VOTE, "e2e": _E2E}


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


def trained_weights(lora_targets: str) -> str:
    """Words for what was trained."""
    return "W_Q and W_K" if lora_targets == "qk" else "all linear layers, through LoRA,"


def model_card(
    base_model: str,
    task: Task | None,
    settings: Mapping[str, Any],
    kind: Kind,
    results: Mapping[str, Mapping[str, float]] | None = None,
    *,
    protocol: Protocol = "consistent",
    objective: str = "abft",
    cross_entropy: float = 0.0,
    weights: str = "W_Q and W_K",
    trained_on: str | None = None,
) -> str:
    """Markdown, without any text of the data.

    Args:
        task: how prompts are written, and what was measured; None: prompts of the caller's own.
        kind: what lies beside the card: changed tensors, a PEFT adapter, or a whole model.
        results: method -> metric -> value, measured on test prompts of `task`.
        weights: what was trained.
        trained_on: the training prompts' task, where it is not `task`.
    """
    model = HUB_NAMES.get(base_model, base_model)
    on_hub = bool(model) and not model.endswith(".gguf") and not Path(model).exists()
    name = (model if on_hub else Path(model).name) or "a model without a name"
    task_name = task.name if task else "own data"
    about = {
        "name": name,
        "short": Path(name).name,
        "task": trained_on or task_name,
        "weights": weights,
        "paper": PAPER,
    }
    text = [line.format(**about) for line in _ABOUT[objective]]
    if cross_entropy:
        text.append(
            f"The cross-entropy of the label word stood beside it with weight {cross_entropy:g}."
        )
    metadata: dict[str, Any] = {"base_model": model} if on_hub else {}  # the hub refuses a path
    metadata |= {
        "library_name": _LIBRARY[kind],
        "pipeline_tag": "text-generation",  # what loads it; it has no classification head
        "tags": [
            *(["abft", "induction-heads"] if objective != "e2e" else []),
            *(["lora"] if kind == "adapter" else []),
            *("in-context-learning", "text-classification", "arxiv:2505.14233"),
        ],
    }
    if results and objective in results:
        metadata["model-index"] = [
            {
                "name": text[0].removeprefix("# "),
                "results": [_result(task_name, results[objective])],
            }
        ]
    if results:
        columns = list(next(iter(results.values())))
        text += ["", f"Measured on test prompts of {task_name}:", ""]
        text += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        text += [
            f"| {method} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |"
            for method, row in results.items()
        ]
    load = _LOAD[kind].format(folder=FOLDER, model=model if kind == "adapter" else base_model)
    text += [
        "",
        "## Use",
        "",
        "```python",
        load,
        *([_predict(task, protocol)] if task else []),
        "```",
        "",
    ]
    text += [
        "Write prompts as in training: the same template, the same label words, texts of yours "
        "as demonstrations.",
        "",
    ]
    text += [
        "## Limitations",
        "",
        *(
            f"- {line}"
            for line in _limitations(
                base_model, name, kind, bool(results), objective == "e2e" or cross_entropy > 0
            )
        ),
    ]
    text += [
        "",
        "## Settings",
        "",
        ", ".join(f"{setting} {value}" for setting, value in settings.items()) + ".",
        "",
    ]
    versions = ", ".join(
        f"{package} {version(package)}" for package in ("abft", "transformers", "torch", "peft")
    )
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip()
    return "\n".join(["---", header, "---", "", *text, f"Made with {versions}.", ""])


def _result(task: str, values: Mapping[str, float]) -> dict[str, Any]:
    """An entry of the hub's model-index."""
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


def _predict(task: Task, protocol: Protocol) -> str:
    """Python that prints the likeliest label word of a prompt in the task's template."""
    template = task.template
    end = template.after_query(protocol)
    shown = [
        f"{template.before_text}a text that is "
        f"{word}{template.before_label}{word}{template.after_label}"
        for word in task.label_words
    ]
    lines = [template.instruction, *shown, f"{template.before_text}the text to label{end}"]
    words = [template.before_label[len(end) :] + word for word in task.label_words]
    return _PREDICT.format(prompt="\n".join(f"    {line!r}" for line in lines if line), words=words)


def _limitations(
    base_model: str, name: str, kind: Kind, measured: bool, reads_output: bool
) -> list[str]:
    copies = (
        "It learned to look at labels that the demonstrations show, not what the classes are: show "
        "every label."
    )
    means = (
        "It learned what its label words mean: where they are swapped, expect answers by the old "
        "meaning."
    )
    lines = [
        "It tells classes of texts apart in few-shot prompts. Text that it generates was "
        "neither trained nor measured.",
        means if reads_output else copies,
        "The figures are of one training run. Other tasks, templates and label words were not "
        "measured."
        if measured
        else "Nothing was measured for this card.",
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
