"""The model card of a run (README.md with the hub's metadata block)."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from abft.models import HUB_NAMES

PAPER = "arXiv 2505.14233"
_ABFT = (
    "# {model}, fine-tuned where it looks (ABFT, {task})",
    "",
    "Attention Behavior Fine-Tuning ({paper}) trained {weights} of `{model}` so that its induction heads look at",
    "the demonstrations with the right label in few-shot prompts of the task {task}. No other weight changed.",
)
_VOTE = (
    "# {model}, fine-tuned where it looks (ABFT with the vote objective, {task})",
    "",
    "A variant of Attention Behavior Fine-Tuning ({paper}) trained {weights} of `{model}` so that the attention of all heads",
    "favours the demonstrations with the right label in few-shot prompts of the task {task}. No other weight changed.",
)
_E2E = (
    "# {model}, fine-tuned end to end ({task})",
    "",
    "Cross-entropy of the label word in few-shot prompts of the task {task} trained {weights} of `{model}`: the comparison of",
    "{paper}, not its method. No other weight changed.",
)
_ABOUT = {"abft": _ABFT, "vote": _VOTE, "e2e": _E2E}


def trained_weights(lora_targets: str) -> str:
    """Words for what was trained."""
    return "W_Q and W_K" if lora_targets == "qk" else "all linear layers, through LoRA,"


def model_card(
    base_model: str,
    task: str,
    settings: Mapping[str, Any],
    lora: bool,
    results: Mapping[str, Mapping[str, float]] | None = None,
    *,
    objective: str = "abft",
    cross_entropy: float = 0.0,
    weights: str = "W_Q and W_K",
) -> str:
    """Markdown. `results`: method -> metric -> value, measured on test prompts; `weights`: what was trained."""
    metadata = {
        "base_model": HUB_NAMES.get(base_model, base_model),
        "library_name": "peft" if lora else "abft",
        "pipeline_tag": "text-classification",
        "tags": [*(["abft", "induction-heads"] if objective != "e2e" else []), "in-context-learning", "arxiv:2505.14233"],
    }
    named = {"model": base_model, "task": task, "weights": weights, "paper": PAPER}
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        *(line.format(**named) for line in _ABOUT[objective]),
        *([f"The cross-entropy of the label word stood beside it with weight {cross_entropy:g}."] if cross_entropy else []),
        "",
    ]
    if results:
        names = list(next(iter(results.values())))
        lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for method, values in results.items():
            lines.append(f"| {method} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |")
        lines.append("")
    lines += ["Use:", "", "```python"]
    if lora:
        lines += [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({HUB_NAMES.get(base_model, base_model)!r})",
            'model = PeftModel.from_pretrained(model, "path/to/this/folder")',
        ]
    else:
        lines += [
            "import abft",
            "",
            f"model, tokenizer = abft.load_model({base_model!r})",
            'model = abft.apply_weights(model, "path/to/this/folder")',
        ]
    lines += ["```", "", "Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + ".", ""]
    versions = ", ".join(f"{name} {version(name)}" for name in ("abft", "transformers", "torch", "peft"))
    lines += [f"Made with {versions}.", ""]
    return "\n".join(lines)
