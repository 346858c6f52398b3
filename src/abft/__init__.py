"""abft: Attention Behavior Fine-Tuning (arXiv 2505.14233) for in-context classification.

Shapes in names: L layer, B batch, H head, Q query position, S token, K demonstration, C class, N example, D feature.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("abft")

_HOMES = {
    "ABFTClassifier": "classifier",
    "ABFTConfig": "trainer",
    "ABFTObjective": "objective",
    "ABFTTrainer": "trainer",
    "AbftError": "errors",
    "Batch": "prompts",
    "Example": "tasks",
    "LabelScorer": "predict",
    "PIDController": "pid",
    "Predictor": "predictor",
    "RunConfig": "config",
    "Task": "tasks",
    "TaskData": "data",
    "Template": "tasks",
    "apply_weights": "weights",
    "attention_rows": "rows",
    "attention_target": "prompts",
    "encode": "prompts",
    "evaluate": "predict",
    "four_bit": "models",
    "induction_heads": "rows",
    "label_probabilities": "predict",
    "label_tokens": "prompts",
    "load_data": "data",
    "load_model": "models",
    "load_task": "data",
    "merge": "merge",
    "supported_implementation": "attention",
    "evaluation_prompts": "prompts",
    "train": "run",
    "training_prompts": "prompts",
    "write_prompt": "prompts",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from abft.attention import supported_implementation
    from abft.classifier import ABFTClassifier
    from abft.config import RunConfig
    from abft.data import TaskData, load_data, load_task
    from abft.errors import AbftError
    from abft.merge import merge
    from abft.models import four_bit, load_model
    from abft.objective import ABFTObjective
    from abft.pid import PIDController
    from abft.predict import LabelScorer, evaluate, label_probabilities
    from abft.predictor import Predictor
    from abft.prompts import Batch, attention_target, encode, evaluation_prompts, label_tokens, training_prompts, write_prompt
    from abft.rows import attention_rows, induction_heads
    from abft.run import train
    from abft.tasks import Example, Task, Template
    from abft.trainer import ABFTConfig, ABFTTrainer
    from abft.weights import apply_weights


def __getattr__(name: str) -> Any:
    """Import on first use: `import abft` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'abft' has no attribute {name!r}")
    return getattr(import_module(f"abft.{_HOMES[name]}"), name)
