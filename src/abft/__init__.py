"""abft: Attention Behavior Fine-Tuning (arXiv 2505.14233) for in-context classification.

Packages, each of which imports only from those before it: data, model, method, training and
scoring, runs, readouts, classifier, bench, ranker, analysis, report, cli.

Shapes in names: L layer, P prompt, B sequence of a batch, H head, Q query position, S token,
K demonstration, C class, N example, D feature, V vocabulary entry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ABFTClassifier": "classifier",
    "ABFTConfig": "training.arguments",
    "ABFTObjective": "method.objectives",
    "ABFTTrainer": "training.trainer",
    "AbftError": "errors",
    "AttentionRanker": "ranker",
    "Batch": "data.batches",
    "Example": "data.tasks",
    "LabelScorer": "scoring.scorer",
    "PIDController": "method.pid",
    "Predictor": "runs.predictor",
    "RunConfig": "runs.config",
    "Task": "data.tasks",
    "TaskData": "data.splits",
    "Template": "data.tasks",
    "apply_weights": "model.checkpoints",
    "capabilities": "model.capabilities",
    "attention_rows": "scoring.inspect",
    "attention_target": "data.encoding",
    "encode": "data.encoding",
    "evaluate": "scoring.evaluate",
    "evaluation_prompts": "data.prompts",
    "four_bit": "model.loading",
    "induction_heads": "scoring.inspect",
    "label_probabilities": "scoring.scorer",
    "label_tokens": "data.encoding",
    "load_data": "data.datasets",
    "load_demonstrations": "data.datasets",
    "load_model": "model.loading",
    "load_task": "data.builtin",
    "merge": "runs.merge",
    "resolve": "runs.config",
    "supported_implementation": "model.capabilities",
    "train": "runs.train",
    "training_prompts": "data.prompts",
    "write_prompt": "data.prompts",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    __version__: str
    from abft.classifier import ABFTClassifier
    from abft.data.batches import Batch
    from abft.data.builtin import load_task
    from abft.data.datasets import load_data, load_demonstrations
    from abft.data.encoding import attention_target, encode, label_tokens
    from abft.data.prompts import evaluation_prompts, training_prompts, write_prompt
    from abft.data.splits import TaskData
    from abft.data.tasks import Example, Task, Template
    from abft.errors import AbftError
    from abft.method.objectives import ABFTObjective
    from abft.method.pid import PIDController
    from abft.model.capabilities import capabilities, supported_implementation
    from abft.model.checkpoints import apply_weights
    from abft.model.loading import four_bit, load_model
    from abft.ranker import AttentionRanker
    from abft.runs.config import RunConfig, resolve
    from abft.runs.merge import merge
    from abft.runs.predictor import Predictor
    from abft.runs.train import train
    from abft.scoring.evaluate import evaluate
    from abft.scoring.inspect import attention_rows, induction_heads
    from abft.scoring.scorer import LabelScorer, label_probabilities
    from abft.training.arguments import ABFTConfig
    from abft.training.trainer import ABFTTrainer


def __getattr__(name: str) -> Any:
    """Import on first use: `import abft` stays instant."""
    if name == "__version__":
        from importlib.metadata import version

        return version("abft")
    if name not in _HOMES:
        raise AttributeError(f"module 'abft' has no attribute {name!r}")
    return getattr(import_module(f"abft.{_HOMES[name]}"), name)
