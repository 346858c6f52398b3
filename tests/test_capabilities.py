"""What is measured about a model: both answers of every question, and the numbers between them."""

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn

from abft.errors import AbftError
from abft.model import attention
from abft.model.capabilities import (
    attends_to_everything,
    capabilities,
    check_lengths,
    rotation_limit,
    supported_implementation,
)
from abft.model.lm_head import output_logits
from tiny import FAMILIES, tiny_model


def shift_rows(monkeypatch, error):
    """Make our rows wrong by `error` at the query's own position and nowhere else."""
    exact = attention.softmax_rows

    def shifted(query, key, query_positions_BQ, *arguments):
        rows = exact(query, key, query_positions_BQ, *arguments)
        own = torch.zeros_like(rows)
        own.scatter_(-1, query_positions_BQ[:, None, :, None].expand(*rows.shape[:3], 1), error)
        return rows + own

    monkeypatch.setattr(attention, "softmax_rows", shifted)


@pytest.mark.parametrize(
    ("dtype", "error", "refused"),
    [
        (torch.float32, 9e-4, False),
        (torch.float32, -9e-4, False),
        (torch.float32, 1.2e-3, True),
        (torch.float32, -1.2e-3, True),
        (torch.bfloat16, 4e-2, False),
        (torch.bfloat16, 7e-2, True),
        (torch.float32, float("nan"), True),
    ],
)
def test_rows_may_differ_by_rounding_only(dtype, error, refused, monkeypatch):
    """Peaked rows of a trained float32 model differed by 1.1e-4 between two right ways to compute
    them.
    """
    model = tiny_model("llama").to(dtype)
    shift_rows(monkeypatch, error)
    if refused:
        with pytest.raises(AbftError, match=r"differ from eager attention by|not finite"):
            supported_implementation(model)
    else:
        assert supported_implementation(model) == "abft_rows"


def test_a_4_bit_model_computes_in_half_precision(monkeypatch):
    """Whatever the precision of its embedding is."""
    model = tiny_model("llama")
    model.is_quantized = True
    shift_rows(monkeypatch, 4e-2)
    assert supported_implementation(model) == "abft_rows"


def deep_model(family, seed):
    """Many layers of peaked heads, in which rounding to bfloat16 adds up."""
    changes = {"num_hidden_layers": 30, "hidden_size": 128, "intermediate_size": 256}
    if family == "gpt2":
        changes = {"n_layer": 30, "n_embd": 128}
    model = tiny_model(family, seed, **changes)
    attends = ("q_proj", "k_proj", "c_attn", "query_key_value")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and not any(part in name for part in ("embed", "wte", "wpe")):
                parameter.mul_(1.25 if any(part in name for part in attends) else 0.5)
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_rounding_does_not_add_up_over_layers(family):
    for seed in range(4):
        assert supported_implementation(deep_model(family, seed)) == "abft_rows"


def test_wrong_rows_and_outputs_of_deep_models_in_half_precision_are_refused(monkeypatch):
    model = deep_model("llama", 0)
    shift_rows(monkeypatch, 0.1)
    with pytest.raises(AbftError, match="differ from eager attention by"):
        supported_implementation(model)
    monkeypatch.undo()

    # Rows that are right, of an attention whose output is not.
    whole = attention.ALL_ATTENTION_FUNCTIONS["abft_rows"]

    def doubled(*arguments, **keywords):
        output, rows = whole(*arguments, **keywords)
        return 2 * output, rows

    monkeypatch.setitem(attention.ALL_ATTENTION_FUNCTIONS, "abft_rows", doubled)
    with pytest.raises(AbftError, match="differ from eager attention by"):
        supported_implementation(deep_model("llama", 0))


def test_a_row_that_sees_the_token_after_it_is_refused(monkeypatch):
    """Only a query that is not the last can show that."""
    exact = attention.softmax_rows

    def sees_all(query, key, positions, mask, *rest):
        everything = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
        return exact(query, key, positions, everything, *rest)

    monkeypatch.setattr(attention, "softmax_rows", sees_all)
    with pytest.raises(AbftError, match="differ from eager attention"):
        supported_implementation(tiny_model("llama"))


def test_answers_are_measured_once_and_again_for_a_copy_or_another_precision():
    model = tiny_model("llama")
    first = capabilities(model)
    assert first.implementation == "abft_rows"
    assert first.dtype == torch.float32
    assert capabilities(model) is first
    twin = copy.deepcopy(model)
    assert capabilities(twin) is not first
    assert capabilities(twin) is capabilities(twin)
    assert capabilities(model.to(torch.bfloat16)) is not first
    assert capabilities(model).dtype == torch.bfloat16
    assert not model.training
    model.train()
    assert capabilities(copy.deepcopy(model)).packs
    assert model.training


@pytest.mark.parametrize(
    ("family", "packs"),
    [
        ("llama", True),
        ("gpt2", True),
        ("phi3", True),
        ("deepseek_v3", True),
        ("mistral", False),  # a sliding window
        ("gemma2", False),  # in every other layer
        ("lfm2", False),  # recurrent layers
        ("bloom", False),  # positions of its own (ALiBi)
        ("falcon", False),  # no attention interface
    ],
)
def test_which_families_pack(family, packs):
    changes = {"sliding_window": None} if family == "phi3" else {}
    assert capabilities(tiny_model(family, **changes)).packs == packs
    assert capabilities(tiny_model(family, **changes)).keeps_prefix == packs


@pytest.mark.parametrize("where", ["rows", "hidden"])
def test_packing_that_changes_rows_or_hidden_states_is_not_used(where, monkeypatch):
    """The decoder lies about packed prompts only, by more than rounding."""
    model = tiny_model("llama")
    inner = attention.decoder(model)
    honest = inner.forward

    def forward(*arguments, **keywords):
        output = honest(*arguments, **keywords)
        mask = keywords.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            if where == "hidden":
                output.last_hidden_state = output.last_hidden_state + 0.1
            else:
                last = output.attentions[-1].clone()
                last[..., -1, 9] += 0.002
                output.attentions = (*output.attentions[:-1], last)
        return output

    assert capabilities(copy.deepcopy(model)).packs
    monkeypatch.setattr(inner, "forward", forward)
    assert not capabilities(model).packs


def test_families_whose_rows_cannot_be_numbered_are_refused(monkeypatch):
    """Several attentions a layer: heads would be named by the wrong layer."""
    model = tiny_model("llama")
    monkeypatch.setattr("abft.model.capabilities.softmax_layers", lambda model: [0])
    with pytest.raises(AbftError, match="1 layers, and 2 attentions: heads cannot be told apart"):
        capabilities(model).implementation  # noqa: B018


def test_a_wrapped_model_is_the_model_it_wraps():
    model = tiny_model("llama")
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))

    assert attention.causal_lm(model) is model
    assert attention.causal_lm(wrapped) is wrapped.base_model.model
    assert attention.decoder(wrapped) is wrapped.base_model.model.model


def test_a_decoder_is_where_the_family_says_or_its_base_model():
    model = tiny_model("gpt2")
    inner, config = model.transformer, SimpleNamespace(model_type="mine")

    def with_decoder(get_decoder, base_model=inner):
        whole = SimpleNamespace(base_model=base_model, config=config)
        whole.get_decoder = get_decoder and (lambda: get_decoder(whole))
        return whole

    says = with_decoder(lambda whole: model.lm_head)
    assert attention.decoder(says) is model.lm_head
    assert attention.decoder(with_decoder(lambda whole: None)) is inner
    assert attention.decoder(with_decoder(lambda whole: whole)) is inner

    silent = SimpleNamespace(base_model=inner, config=config)
    assert attention.decoder(silent) is inner
    silent.base_model = silent
    with pytest.raises(AbftError, match="'mine' has no decoder"):
        attention.decoder(silent)


def test_layers_that_attend_to_everything():
    assert attends_to_everything(tiny_model("llama"))
    assert attends_to_everything(tiny_model("mistral", sliding_window=None))
    assert not attends_to_everything(tiny_model("mistral"))
    mixed = tiny_model("gemma2")
    assert not attends_to_everything(mixed)
    # A window in the configuration counts even where no layer's type names one.
    mixed.config.layer_types = ["full_attention"] * 2
    assert not attends_to_everything(mixed)
    mixed.config.sliding_window = None
    assert attends_to_everything(mixed)


def rotated(**rope):
    return tiny_model("llama", rope_parameters={"rope_theta": 1e4, **rope})


LONGROPE = dict(
    rope_type="longrope",
    short_factor=[1.0] * 4,
    long_factor=[2.0] * 4,
    factor=4.0,
    original_max_position_embeddings=128,
)


def test_the_length_at_which_a_rotation_changes():
    assert rotation_limit(tiny_model("llama")) is None
    assert rotation_limit(rotated(rope_type="linear", factor=2.0)) is None
    assert rotation_limit(rotated(rope_type="dynamic", factor=2.0)) == 512
    assert rotation_limit(rotated(**LONGROPE)) == 128
    assert capabilities(rotated(rope_type="linear", factor=2.0)).keeps_prefix

    # Its prompts pack, but keys of a prefix are other keys in a longer prompt.
    assert capabilities(rotated(**LONGROPE)).packs
    assert not capabilities(rotated(**LONGROPE)).keeps_prefix


def test_rotations_that_differ_by_type_of_layer():
    """Gemma 3 has parameters for each type; the shortest limit counts."""
    model = tiny_model("gemma3_text")
    assert rotation_limit(model) is None
    plain = {"rope_type": "default", "rope_theta": 1e4}
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model.config.rope_parameters = {"sliding_attention": plain, "full_attention": dynamic}
    assert rotation_limit(model) == 512
    model.config.rope_parameters = {
        "sliding_attention": {**LONGROPE, "rope_theta": 1e4},
        "full_attention": dynamic,
    }
    assert rotation_limit(model) == 128


def test_prompts_longer_than_a_dynamic_rotation_are_refused():
    dynamic = rotated(rope_type="dynamic", factor=2.0)
    check_lengths(dynamic, 512)
    with pytest.raises(AbftError, match=r"513 tokens; beyond 512.*smaller k"):
        check_lengths(dynamic, 513)
    check_lengths(rotated(**LONGROPE), 513)
    check_lengths(tiny_model("llama"), 10_000)


def test_large_logits_of_labels_do_not_tie_in_half_precision():
    """Near 20, bfloat16 rounds to multiples of 0.125."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 32, generator=generator).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[1] = model.lm_head.weight[0] + 0.003 * torch.randn(
            32, generator=generator
        )
        model.lm_head.weight *= 20 / (hidden.float() @ model.lm_head.weight[0]).abs().mean()
        model.bfloat16()
        exact = hidden.double() @ model.lm_head.weight[:2].double().T
        logits = output_logits(model, hidden, [0, 1])
    assert torch.allclose(logits.double(), exact, rtol=1e-5, atol=1e-4)
    rounded = exact.to(torch.bfloat16)
    assert (rounded[:, 0] == rounded[:, 1]).sum() > 8
    assert (logits[:, 0] == logits[:, 1]).sum() == (exact[:, 0] == exact[:, 1]).sum()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 3.0}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("phi", {}),  # its LM head has a bias
        ("gptj", {}),
    ],
)
def test_logits_equal_the_models(family, changes):
    model = tiny_model(family, **{**FAMILIES["llama"], **FAMILIES.get(family, {}), **changes})
    head = model.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        expected = model(ids).logits
        hidden = attention.decoder(model)(ids)[0]
        for position in (1, 2):
            logits = output_logits(model, hidden[:, position])
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected[:, position], atol=1e-5, rtol=1e-4)
        some = output_logits(model, hidden[:, 2], (9, 600, 9))
        torch.testing.assert_close(some, expected[:, 2][:, [9, 600, 9]], atol=1e-5, rtol=1e-4)
        assert output_logits(model.bfloat16(), hidden[:, 2]).dtype == torch.float32


@pytest.mark.parametrize(("factor", "refused"), [(1.01, False), (1.03, True), (0.97, True)])
def test_an_unknown_lm_head_is_refused(factor, refused):
    """Logits may differ by 2% of the largest: half precision does."""
    model = tiny_model("llama")
    honest = model.forward

    def forward(*arguments, **keywords):
        output = honest(*arguments, **keywords)
        return SimpleNamespace(logits=output.logits * factor)

    model.forward = forward
    with torch.no_grad():
        largest = output_logits(model, attention.decoder(model)(torch.tensor([[3, 4]]))[0][:, -1])
    assert largest.abs().max() > 1
    if refused:
        with pytest.raises(AbftError, match="'llama' computes its logits in a way"):
            capabilities(model).check_lm_head()
    else:
        capabilities(model).check_lm_head()


def test_the_probe_reads_short_vocabularies():
    """Its tokens wrap around."""
    model = tiny_model("llama", vocab_size=5)
    assert supported_implementation(model) == "abft_rows"
    assert capabilities(model).packs
