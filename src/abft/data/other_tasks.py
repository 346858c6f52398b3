"""Draw training prompts of every built-in task but one, as in MetaICL (Min et al. 2022).

The paper is arXiv 2110.15943.
"""

from typing import TYPE_CHECKING

from abft.data.builtin import TASKS, load_task
from abft.data.encoding import EncodedPrompt, encode, label_tokens, with_answers
from abft.data.prompts import Sampling, training_prompts
from abft.data.splits import TaskData, text_key
from abft.data.tasks import PromptStyle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def other_tasks(target: TaskData, prompt_style: PromptStyle = "consistent") -> list[TaskData]:
    """Return the built-in tasks but `target`, without its texts: some tasks share reviews."""
    examples = (*target.train, *target.demonstrations, *target.test)
    texts = {text_key(example.text) for example in examples}
    others = (name for name in TASKS if name != target.task.name)
    return [load_task(name, prompt_style).without(texts) for name in others]


def other_prompts(
    target: TaskData,
    tokenizer: "PreTrainedTokenizerBase",
    nd: int,
    k: int,
    seed: int,
    prompt_style: PromptStyle = "consistent",
    max_length: int | None = None,
    sampling: Sampling = "natural",
) -> list[EncodedPrompt]:
    """Return nd prompts, as many from every other task; the target's examples are never seen."""
    others = other_tasks(target, prompt_style)

    prompts: list[EncodedPrompt] = []
    for i, data in enumerate(others):
        # The first tasks take one prompt more where nd does not divide evenly.
        share = nd // len(others) + (i < nd % len(others))
        texts = training_prompts(data, share, k, seed, prompt_style, sampling=sampling)
        encoded = encode(tokenizer, texts, prompt_style, max_length)

        tokens = label_tokens(tokenizer, data.task, prompt_style)
        prompts += with_answers(encoded, tokens)
    return prompts
