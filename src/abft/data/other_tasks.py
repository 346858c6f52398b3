"""Training prompts of every built-in task but one, as in MetaICL (Min et al. 2022, arXiv
2110.15943).
"""

from typing import TYPE_CHECKING

from abft.data.builtin import TASKS, load_task
from abft.data.encoding import EncodedPrompt, encode, label_tokens, with_answers
from abft.data.prompts import training_prompts
from abft.data.splits import TaskData, text_key
from abft.data.tasks import PromptStyle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def other_tasks(target: TaskData, prompt_style: PromptStyle = "consistent") -> list[TaskData]:
    """The built-in tasks but `target`, without its texts: some tasks share reviews."""
    texts = {text_key(e.text) for e in (*target.train, *target.demonstrations, *target.test)}
    return [
        load_task(name, prompt_style).without(texts) for name in TASKS if name != target.task.name
    ]


def other_prompts(
    target: TaskData,
    tokenizer: "PreTrainedTokenizerBase",
    nd: int,
    k: int,
    seed: int,
    prompt_style: PromptStyle = "consistent",
    max_length: int | None = None,
) -> list[EncodedPrompt]:
    """nd prompts, as many from every other task; the target's examples are never seen."""
    others = other_tasks(target, prompt_style)
    prompts: list[EncodedPrompt] = []
    for i, data in enumerate(others):
        share = nd // len(others) + (i < nd % len(others))
        encoded = encode(
            tokenizer,
            training_prompts(data, share, k, seed, prompt_style),
            prompt_style,
            max_length,
        )
        prompts += with_answers(encoded, label_tokens(tokenizer, data.task, prompt_style))
    return prompts
