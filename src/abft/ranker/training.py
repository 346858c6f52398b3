"""Choose a ranker's heads on training prompts, and train W_Q and W_K so that these rank better."""

import tempfile
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from abft.data.encoding import EncodedPrompt
from abft.method.objectives.contrastive import ContrastiveObjective
from abft.ranker.documents import ROW_BYTES
from abft.runs.config import default_learning_rate
from abft.training.arguments import ABFTConfig
from abft.training.callbacks import StepBar
from abft.training.generators import generators_kept
from abft.training.trainer import ABFTTrainer

GROUPS = 4  # groups of prompts in an optimizer step
MOST_WARMUP = 4  # steps


def find_heads(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    heads: int | str,
    temperature: float,
    together: int,
) -> ContrastiveObjective:
    """Choose the heads that prefer relevant documents in these prompts; return the loss on them."""
    objective = ContrastiveObjective(str(heads), temperature)
    objective.prepare(model, prompts, _packed(model, prompts, together))
    return objective


def _packed(model: PreTrainedModel, prompts: Sequence[EncodedPrompt], together: int) -> int:
    """Return how many prompts to read in one pass, so that all heads' rows fit in `ROW_BYTES`."""
    config = model.config.get_text_config()
    heads = config.num_hidden_layers * config.num_attention_heads
    looking = max(prompt.looking for prompt in prompts)
    longest = max(len(prompt.input_ids) for prompt in prompts)

    def row_bytes(packed: int) -> int:
        # A row of each looking token, over the documents and all queries.
        return 4 * heads * packed * looking * (longest + (packed - 1) * looking)

    # Only a divisor keeps prompts with the same documents in one pass.
    divisors = (n for n in range(together, 0, -1) if together % n == 0)
    return next((n for n in divisors if row_bytes(n) <= ROW_BYTES), 1)


def train_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    objective: ContrastiveObjective,
    *,
    steps: int,
    together: int,
    learning_rate: float | None,
    seed: int,
    progress: bool,
) -> None:
    """Train `model` in place, with steps of `GROUPS` times `together` prompts.

    Args:
        learning_rate: None = that of the contrastive objective.
    """
    if learning_rate is None:
        learning_rate = default_learning_rate(model.num_parameters(), False, "contrastive")
    with tempfile.TemporaryDirectory() as folder, generators_kept(model):
        arguments = ABFTConfig(
            output_dir=folder,
            learning_rate=learning_rate,
            max_steps=steps,
            warmup_steps=min(MOST_WARMUP, steps // 4),
            per_device_train_batch_size=together,
            gradient_accumulation_steps=GROUPS,
            queries=together,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=next(model.parameters()).device.type == "cpu",
        )
        trainer = ABFTTrainer(
            model,
            arguments,
            prompts,
            tokenizer,
            objective=objective,
            callbacks=[StepBar()] if progress else [],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
