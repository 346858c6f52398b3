"""What a configuration names, opened: model, tokenizer, data, label tokens and test prompts."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abft.data.builtin import load_task
from abft.data.datasets import load_data
from abft.data.encoding import EncodedPrompt, LabelTokens, encode, label_tokens
from abft.data.prompts import evaluation_prompts
from abft.data.splits import TaskData
from abft.model.loading import context_length, four_bit, load_model
from abft.runs.config import DEFAULT_TASK, RunConfig


def load_run_data(config: RunConfig) -> TaskData:
    """The task and examples that a configuration names."""
    if config.data is None:
        data = load_task(config.task or DEFAULT_TASK, config.protocol)
    else:
        data = load_data(
            config.data, config.text_column, config.label_column, config.test_data, config.template
        )
    return data.with_words(config.label_words)


def load_run_model(config: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model that a configuration names."""
    return load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        quantization_config=four_bit() if config.load_in_4bit else None,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )


def encoded_tests(
    config: RunConfig, data: TaskData, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[LabelTokens, list[EncodedPrompt]]:
    """The label words' tokens and the encoded test prompts of a configuration."""
    words = label_tokens(tokenizer, data.task, config.protocol)
    prompts = evaluation_prompts(data, config.test_prompts, config.k, config.protocol)
    return words, encode(tokenizer, prompts, config.protocol, context_length(model))
