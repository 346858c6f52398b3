"""Tiny random models of every supported family, and tokenizers built on the spot; nothing is
downloaded.
"""

import re

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto import CONFIG_MAPPING

from abft.data.builtin import BUILTIN, TASKS

VOCABULARY = 700

_COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
)
_GQA = dict(**_COMMON, intermediate_size=64, num_key_value_heads=2)
_MOE = dict(num_local_experts=4, num_experts_per_tok=2)
FAMILIES: dict[str, dict] = {
    "llama": _GQA,
    "qwen2": _GQA,
    "qwen3": {**_GQA, "head_dim": 8},
    "mistral": {**_GQA, "sliding_window": 6},
    "phi3": {**_GQA, "pad_token_id": 0},
    "gpt2": dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "gpt_neox": {**_COMMON, "intermediate_size": 64},
    "opt": {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gemma2": {
        **_GQA,
        "head_dim": 8,
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {**_GQA, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "olmo2": _GQA,
    "gpt_oss": {**_GQA, **_MOE, "head_dim": 8, "sliding_window": 6},
    "deepseek_v3": {
        **_COMMON,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
}
FAMILIES["lfm2"] = {
    **_GQA,
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
}
FAMILIES["qwen3_next"] = {
    **_GQA,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
# Families that ignore transformers' attention interface.
LEGACY: dict[str, dict] = {
    "falcon": dict(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    ),
    "bloom": dict(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "gptj": dict(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=512
    ),
    "gpt_neo": dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
    ),
    "openai-gpt": dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "codegen": dict(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=512
    ),
}
# Of these, the ones that use it since transformers 5.24.
USE_IT_NOW = {"codegen", "gptj"} if Version(transformers.__version__) >= Version("5.24") else set()


def staicc_loader(name: str):
    """StaICC's own object that reads the data of a built-in task."""
    from StaICC.util import hgf_dataset_loader

    table = BUILTIN[name].table
    return getattr(hgf_dataset_loader, "glue_sst2" if table == "sst2" else table)()


def tiny_model(family: str, seed: int = 0, **changes):
    """A random causal LM in eval mode, float32, with spread-out attention (initial weights are
    scaled up).
    """
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](
        **{**FAMILIES.get(family, {}), **LEGACY.get(family, {}), **changes}
    )
    config.pad_token_id = 0
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                parameter.dim() >= 2
                and "embed" not in name
                and "wte" not in name
                and "wpe" not in name
            ):
                parameter.mul_(6)
            if "sinks" in name:
                parameter.normal_()
    return model


def focused_model():
    """A random Llama that looks at few tokens: its heads' attention on labels goes from 0 to 1."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(3)
    return model


def _corpus() -> list[str]:
    lines = []
    for task in TASKS.values():
        words = [*task.label_words, *BUILTIN[task.name].staicc_words.values()]
        for word in words:
            lines += [task.template.pattern.format(text="a film to remember", label=word)] * 40
    return lines


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """ "bpe": byte-level BPE (GPT-2, Llama 3, Qwen); "sentencepiece": Unigram with metaspace;
    "wordpiece".
    """
    if kind == "bpe":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.post_processor = processors.ByteLevel(trim_offsets=True)
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind == "sentencepiece":
        words = {"▁" + word: -1.0 for line in _corpus() for word in re.findall(r"\w+", line)}
        letters = {chr(c): -10.0 for c in range(32, 127)} | {"▁": -9.0, "\n": -9.0}
        pieces = {"<pad>": 0.0, "<s>": 0.0, "<unk>": -20.0, **words, **letters}
        raw = Tokenizer(models.Unigram(list(pieces.items()), unk_id=2))
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("\n", "isolated"),
                pre_tokenizers.Metaspace(),
                pre_tokenizers.Punctuation(),
            ]
        )
        raw.decoder = decoders.Metaspace()
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
        )
    else:
        raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        raw.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=VOCABULARY, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        )
    raw.train_from_iterator(_corpus(), trainer)
    if kind == "wordpiece":
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[
                ("[CLS]", raw.token_to_id("[CLS]")),
                ("[SEP]", raw.token_to_id("[SEP]")),
            ],
        )
        return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>")
