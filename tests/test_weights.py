import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.models.auto import CONFIG_MAPPING

from abft.errors import AbftError
from abft.model.checkpoints import (
    apply_weights,
    base_samples,
    check_base_weights,
    load_full_rank,
    read_full_rank,
    save_adapter,
    save_full_rank,
)
from abft.model.qk_weights import (
    OTHER,
    K,
    Q,
    add_lora,
    lora_layers,
    mask_lora,
    qk_modules,
    train_full_rank,
    trainable_parameters,
)
from tiny import FAMILIES, tiny_model

IDS = torch.randint(3, 600, (2, 12), generator=torch.Generator().manual_seed(0))
FUSED = {
    "gpt2": "c_attn",
    "phi3": "qkv_proj",
    "gpt_neox": "query_key_value",
    "bloom": "query_key_value",
}


def step(model, lr=0.05):
    """One Adam step on the sum of squared logits of all parameters that train."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0
    )
    for _ in range(2):
        model(IDS).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def value_rows(model, name):
    """The V part of a fused weight, by the model's own definition of the layout."""
    module = model.get_submodule(name)
    weight, heads = module.weight.detach(), model.config.num_attention_heads
    family, hidden = model.config.model_type, model.config.hidden_size
    dim = hidden // heads
    if family == "gpt2":
        return weight.T[2 * hidden :].clone()
    if family == "phi3":
        return weight[(heads + model.config.num_key_value_heads) * dim :].clone()
    return weight.view(heads, 3, dim, hidden)[:, 2].clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_queries_and_keys_change(family):
    model = tiny_model(family)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    names = {qk.name + ".weight" for qk in qk_modules(model)}
    train_full_rank(model)
    step(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in names), name


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FUSED)
def test_value_rows_of_fused_weights_stay_bit_equal(family, lora):
    model = tiny_model(family)
    names = [qk.name for qk in qk_modules(model)]
    assert {n.rpartition(".")[2] for n in names} == {FUSED[family]}
    values = {n: value_rows(model, n) for n in names}
    whole = {n: model.get_submodule(n).weight.detach().clone() for n in names}
    if lora:
        adapted = add_lora(model, LoraConfig(r=4))
        step(adapted)
        model = adapted.merge_and_unload()
    else:
        train_full_rank(model)
        step(model)
    for name in names:
        assert torch.equal(value_rows(model, name), values[name])
        assert not torch.equal(model.get_submodule(name).weight, whole[name])


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"bias": "lora_only"}, {"lora_bias": True}, {"use_rslora": True}],
    ids=str,
)
def test_what_lora_trains_besides_a_and_b_leaves_values_alone(family, settings, tmp_path):
    """DoRA's magnitudes and trained biases have entries of V, which moved it."""
    if family == "phi3" and ("bias" in settings or "lora_bias" in settings):
        pytest.skip("Phi-3 has no biases")
    model = tiny_model(family)
    samples = base_samples(model, qk_modules(model))
    names = [qk.name for qk in qk_modules(model)]
    values = {n: value_rows(model, n) for n in names}
    weights = {n: model.get_submodule(n).weight.detach().clone() for n in names}
    outputs = {qk.name: qk.outputs for qk in qk_modules(model)}
    biases = {n: getattr(model.get_submodule(n), "bias", None) for n in names}
    biases = {n: None if bias is None else bias.detach().clone() for n, bias in biases.items()}

    adapted = add_lora(model, LoraConfig(r=4, **settings))
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable_parameters(adapted) < count
    step(adapted)
    save_adapter(adapted, tmp_path, samples)
    logits = adapted(IDS).logits

    merged = apply_weights(tiny_model(family), tmp_path)
    torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-3, atol=1e-3)
    for name in names:
        torch.testing.assert_close(value_rows(merged, name), values[name], rtol=0, atol=1e-6)
        assert not torch.allclose(merged.get_submodule(name).weight, weights[name], atol=1e-3)
        if biases[name] is not None:
            moved = merged.get_submodule(name).bias != biases[name]
            assert not moved[~outputs[name]].any()
            assert moved[outputs[name]].any() == ("bias" in settings or "lora_bias" in settings)

    if "use_dora" in settings or "bias" in settings:
        with pytest.raises(AbftError, match=r"a factor of 0.5 has no meaning"):
            apply_weights(tiny_model(family), tmp_path, 0.5)


@pytest.mark.parametrize("initial", [False, "orthogonal", "pissa", "olora"])
def test_initial_weights_that_change_v_or_the_base_are_refused(initial):
    changed = "rewrites the base" if initial in ("pissa", "olora") else "changes W_V"
    with pytest.raises(AbftError, match=changed):
        add_lora(tiny_model("gpt2"), LoraConfig(r=4, init_lora_weights=initial))
    if changed == "rewrites the base":
        with pytest.raises(AbftError, match=changed):
            add_lora(tiny_model("llama"), LoraConfig(r=4, init_lora_weights=initial))
    else:
        # W_Q and W_K of their own may begin anywhere.
        add_lora(tiny_model("llama"), LoraConfig(r=4, init_lora_weights=initial))


def test_mla_trains_key_rows_only():
    model = tiny_model("deepseek_v3")
    c, attention = model.config, model.model.layers[0].self_attn
    before = (
        attention.kv_b_proj.weight.detach().clone().view(4, c.qk_nope_head_dim + c.v_head_dim, -1)
    )
    latent = attention.kv_a_proj_with_mqa.weight.detach().clone()
    train_full_rank(model)
    step(model)
    after = attention.kv_b_proj.weight.detach().view_as(before)
    assert torch.equal(after[:, c.qk_nope_head_dim :], before[:, c.qk_nope_head_dim :])
    assert not torch.equal(after[:, : c.qk_nope_head_dim], before[:, : c.qk_nope_head_dim])
    assert torch.equal(
        attention.kv_a_proj_with_mqa.weight[: c.kv_lora_rank], latent[: c.kv_lora_rank]
    )


def test_gated_queries_keep_their_gate():
    model = tiny_model("qwen3_next")
    assert [qk.layer for qk in qk_modules(model)] == [3, 3]  # the other layers have no attention
    weight = model.model.layers[3].self_attn.q_proj.weight
    before = weight.detach().clone().view(4, 2, 8, 32)
    train_full_rank(model)
    step(model)
    after = weight.detach().view_as(before)
    assert torch.equal(after[:, 1], before[:, 1])
    assert not torch.equal(after[:, 0], before[:, 0])


@pytest.mark.skipif("gemma4_text" not in CONFIG_MAPPING, reason="older transformers")
def test_keys_that_are_values_too_are_not_trained():
    """In Gemma 4, layers may compute values with W_K: only their W_Q is trained."""
    changes = {
        **FAMILIES["gemma3_text"],
        "layer_types": ["sliding_attention", "full_attention"],
        "num_global_key_value_heads": 2,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
    }
    changes.pop("query_pre_attn_scalar")
    model = tiny_model("gemma4_text", **changes, attention_k_eq_v=True)
    assert model.model.layers[1].self_attn.v_proj is None
    trained = sorted((module.layer, module.name.rpartition(".")[2]) for module in qk_modules(model))
    assert trained == [(0, "k_proj"), (0, "q_proj"), (1, "q_proj")]

    train_full_rank(model)
    before = copy.deepcopy(model.state_dict())
    step(model)
    moved = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    assert moved == {f"{module.name}.weight" for module in qk_modules(model)}


def test_linear_attention_is_no_attention():
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    model = tiny_model(
        "olmo_hybrid", **{**FAMILIES["llama"], "num_hidden_layers": 4, "layer_types": kinds}
    )
    assert {qk.layer for qk in qk_modules(model)} == {3}


def test_layers_and_counts():
    model = tiny_model("llama")
    train_full_rank(model, [1])
    assert trainable_parameters(model) == 32 * 32 + 16 * 32
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"1"}
    with pytest.raises(
        AbftError, match=r"layers \[7\] cannot be trained; this model's attention layers are 0-1"
    ):
        train_full_rank(model, [1, 7])
    fused = tiny_model("gpt2")
    train_full_rank(fused)
    assert trainable_parameters(fused) == 2 * 2 * 32 * 32
    lora = add_lora(tiny_model("llama"), LoraConfig(r=4), layers=[0])
    assert trainable_parameters(lora) == 4 * (32 + 32) + 4 * (32 + 16)


def test_unknown_fused_layout_is_refused():
    with pytest.raises(AbftError, match="layout of its fused"):
        qk_modules(tiny_model("falcon"))


def test_half_precision_is_refused():
    with pytest.raises(AbftError, match="needs float32 weights, got bfloat16"):
        train_full_rank(tiny_model("llama").bfloat16())


def trained(tmp_path, family="llama"):
    model = tiny_model(family)
    train_full_rank(model)
    samples = base_samples(model, qk_modules(model))
    step(model)
    save_full_rank(model, tmp_path, samples)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_full_rank_round_trip_and_extrapolation(tmp_path, family):
    model = trained(tmp_path, family)
    fresh = apply_weights(tiny_model(family), tmp_path)
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    base = dict(tiny_model(family).named_parameters())
    at = {
        a: dict(apply_weights(tiny_model(family), tmp_path, a).named_parameters())
        for a in (0.0, 1.5)
    }
    for name, theta in model.named_parameters():
        torch.testing.assert_close(at[0.0][name], base[name])
        torch.testing.assert_close(at[1.5][name], base[name] + 1.5 * (theta - base[name]))


def test_weights_of_another_model_are_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(AbftError, match="not the model given.*another shape"):
        load_full_rank(tiny_model("llama", hidden_size=48), tmp_path)
    with pytest.raises(AbftError, match="not the model given.*other values"):
        load_full_rank(tiny_model("llama", seed=1), tmp_path)
    load_full_rank(tiny_model("llama").bfloat16(), tmp_path)  # the same base in half precision
    with pytest.raises(AbftError, match="not the model given.*missing"):
        load_full_rank(tiny_model("gpt2"), tmp_path)
    with pytest.raises(AbftError, match="holds neither"):
        apply_weights(tiny_model("llama"), tmp_path / "elsewhere")
    (tmp_path / "qk_weights.safetensors").write_bytes(b"cut short")
    with pytest.raises(AbftError, match="could not be read"):
        load_full_rank(tiny_model("llama"), tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_adapter_is_stock_peft(tmp_path, family):
    model = tiny_model(family)
    untouched = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapted = add_lora(model, LoraConfig(r=4, lora_alpha=8))
    step(adapted)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    stock = PeftModel.from_pretrained(tiny_model(family), tmp_path)
    torch.testing.assert_close(stock(IDS).logits, adapted(IDS).logits)
    merged = apply_weights(tiny_model(family), tmp_path)
    torch.testing.assert_close(merged(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)
    for name, parameter in adapted.unload().named_parameters():
        assert torch.equal(parameter, untouched[name])
    base = dict(tiny_model(family).named_parameters())
    one, far = (
        dict(merged.named_parameters()),
        dict(apply_weights(tiny_model(family), tmp_path, 1.5).named_parameters()),
    )
    for name, theta0 in base.items():
        torch.testing.assert_close(
            far[name], theta0 + 1.5 * (one[name] - theta0), rtol=1e-4, atol=1e-5
        )


def test_adapters_on_other_weights_are_refused():
    with pytest.raises(AbftError, match=r"only W_Q and W_K may train.*v_proj"):
        add_lora(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    stock = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4)
    )  # PEFT's default targets are q and v
    with pytest.raises(AbftError, match="only W_Q and W_K"):
        mask_lora(stock)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_adapter_of_another_model_is_refused(tmp_path):
    base = tiny_model("llama")
    samples = base_samples(base, qk_modules(base))
    adapted = add_lora(base, LoraConfig(r=4))
    adapted.save_pretrained(tmp_path / "bare", save_embedding_layers=False)
    with pytest.raises(
        AbftError, match="occurs in one of them only"
    ):  # half of the layers would stay untrained
        apply_weights(tiny_model("llama", num_hidden_layers=4), tmp_path / "bare")
    save_adapter(adapted, tmp_path, samples)
    apply_weights(tiny_model("llama"), tmp_path)
    with pytest.raises(AbftError, match="trained on another model.*other values"):
        apply_weights(tiny_model("llama", seed=1), tmp_path)
    with pytest.raises(AbftError, match="trained on another model"):
        apply_weights(tiny_model("llama", hidden_size=48), tmp_path)
    with pytest.raises(AbftError, match="trained on another model"):
        apply_weights(tiny_model("gpt2"), tmp_path)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("lora", [False, True])
def test_a_flipped_bit_in_saved_weights_is_noticed(tmp_path, lora):
    """Other numbers came out of it, silently."""
    model = tiny_model("llama")
    samples = base_samples(model, qk_modules(model))
    if lora:
        save_adapter(add_lora(model, LoraConfig(r=4)), tmp_path, samples)
    else:
        trained(tmp_path)
    path = tmp_path / ("adapter_model.safetensors" if lora else "qk_weights.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(AbftError, match=r"safetensors is damaged: its tensors are not those"):
        apply_weights(tiny_model("llama"), tmp_path)


def test_projections_outside_the_decoder_are_left_alone():
    """Vision towers have projections of the same names in numbered layers."""
    model = tiny_model("llama")
    names = [qk.name for qk in qk_modules(model)]
    tower = torch.nn.Module()
    tower.q_proj = torch.nn.Linear(32, 32)
    model.vision_tower = torch.nn.ModuleList([tower])
    assert [qk.name for qk in qk_modules(model)] == names


@pytest.mark.parametrize("layers", [None, [1]])
def test_lora_leaves_projections_outside_the_decoder_alone(layers):
    """PEFT would find them by the last part of their name."""
    model = tiny_model("llama")
    tower = torch.nn.Module()
    tower.q_proj = torch.nn.Linear(32, 32)
    model.vision_tower = torch.nn.ModuleList([tower])
    names = {qk.name for qk in qk_modules(model, layers or [0])}
    # Layers are named by the argument, or by the configuration.
    config = LoraConfig(r=2, layers_to_transform=None if layers else [0])
    adapted = add_lora(model, config, layers).get_base_model()
    trained = {name.split(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == names


def test_families_with_several_sizes_of_heads():
    """Their configuration raises where it is asked for one."""
    model = tiny_model("llama")

    class Several(type(model.config)):
        @property
        def head_dim(self):
            raise RuntimeError("several head_dim")

    config = model.config
    config.__dict__.pop("head_dim", None)
    config.__class__ = Several
    assert len(qk_modules(model)) == 4


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"])
def test_gates_of_any_head_size_are_left_alone(family):
    """A head of 16 entries gives 16 to its query, then 16 to its gate."""
    settings = {**FAMILIES["qwen3_next"], "head_dim": 16}
    (query, key) = qk_modules(tiny_model(family, **settings))
    assert query.roles.tolist() == ([Q] * 16 + [OTHER] * 16) * 4
    assert set(key.roles.tolist()) == {K}
    assert query.roles.dtype == torch.int8


def test_layers_that_are_missing_are_named():
    kinds = ["full_attention", "conv", "full_attention"]
    hybrid = tiny_model("lfm2", layer_types=kinds)
    with pytest.raises(AbftError, match=r"layers \[1\] .* attention layers are 0, 2$"):
        qk_modules(hybrid, [1])
    with pytest.raises(AbftError, match="layers none .* attention layers are 0-1$"):
        qk_modules(tiny_model("llama"), [])
    with pytest.raises(AbftError, match="attention layers are 0-3$"):
        qk_modules(tiny_model("llama", num_hidden_layers=4), [9])
    later = tiny_model("lfm2", layer_types=["conv", "full_attention", "full_attention"])
    with pytest.raises(AbftError, match="attention layers are 1-2$"):
        qk_modules(later, [0])


def test_quantised_weights_are_refused_as_such():
    model = tiny_model("llama")
    projection = model.model.layers[0].self_attn.q_proj
    packed = torch.zeros(32, 32, dtype=torch.int8)
    projection.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(AbftError, match="needs float32 weights, got quantised"):
        train_full_rank(model)


def test_adapters_name_their_base_and_task():
    model = tiny_model("llama")
    model.config.name_or_path = "some/model"
    config = add_lora(model, LoraConfig(r=2)).active_peft_config
    assert (config.base_model_name_or_path, config.task_type) == ("some/model", "CAUSAL_LM")
    model = tiny_model("llama")
    model.config.name_or_path = "SmolLM2-135M-Instruct"
    config = add_lora(model, LoraConfig(r=2, task_type="FEATURE_EXTRACTION")).active_peft_config
    assert config.base_model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config.task_type == "FEATURE_EXTRACTION"


def test_an_adapter_that_was_trained_before_goes_on():
    """Its Q and K outputs are not zero; only those of V have to be."""
    adapted = add_lora(tiny_model("gpt2"), LoraConfig(r=4))
    step(adapted)
    mask_lora(adapted)
    adapted.active_peft_config.kasa_config = object()
    with pytest.raises(AbftError, match="rewrites the base"):
        mask_lora(adapted)


def test_base_samples_are_those_of_the_base_below_an_adapter():
    plain = tiny_model("llama")
    samples = base_samples(plain, qk_modules(plain))
    adapted = add_lora(tiny_model("llama"), LoraConfig(r=4, init_lora_weights=False))
    base = adapted.get_base_model()
    assert base_samples(base, qk_modules(base)) == samples
    assert {len(entries) for entries in samples.values()} == {16}


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_a_base_is_recognised_by_its_entries_at_any_scale(scale):
    def scaled(seed):
        model = tiny_model("llama", seed)
        with torch.no_grad():
            for qk in qk_modules(model):
                model.get_submodule(qk.name).weight.mul_(scale)
        return model

    samples = base_samples(scaled(0), qk_modules(scaled(0)))
    check_base_weights(scaled(0), samples, "made for")
    if scale:
        with pytest.raises(AbftError, match=r"^made for: .* has other values there"):
            check_base_weights(scaled(1), samples, "made for")


def test_the_message_names_the_base_that_weights_were_trained_on(tmp_path):
    model = tiny_model("llama")
    model.config.name_or_path = "my/base"
    train_full_rank(model)
    save_full_rank(model, tmp_path, base_samples(model, qk_modules(model)))
    with pytest.raises(AbftError, match="trained on 'my/base', which is not the model given"):
        read_full_rank(tiny_model("llama", seed=1), tmp_path)
    # Where it was trained already, it is recognised by what it was before.
    before = base_samples(tiny_model("llama"), qk_modules(model))
    assert set(read_full_rank(tiny_model("llama", seed=1), tmp_path, samples=before))


def test_a_quantised_base_keeps_its_adapter(tmp_path):
    """Merging would round it away."""
    add_lora(tiny_model("llama"), LoraConfig(r=4)).save_pretrained(tmp_path)
    base = tiny_model("llama")
    base.is_quantized = True
    assert isinstance(apply_weights(base, tmp_path), PeftModel)
    assert not isinstance(apply_weights(tiny_model("llama"), tmp_path), PeftModel)


def test_an_adapter_on_half_precision_answers_as_it_was_trained(tmp_path):
    """Merging rounds: most changes are smaller than a step of bfloat16 at the weight."""
    trained = add_lora(tiny_model("llama").bfloat16(), LoraConfig(r=4))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 1e-3 * noise.to(parameter.dtype)
    trained.save_pretrained(tmp_path)
    ids = torch.arange(5, 20)[None]
    expected = trained(ids).logits
    kept = apply_weights(tiny_model("llama").bfloat16(), tmp_path)
    assert torch.equal(kept(ids).logits, expected)
    assert not torch.equal(kept.merge_and_unload()(ids).logits, expected)


def test_a_lora_config_may_be_used_again():
    config = LoraConfig(r=4)
    add_lora(tiny_model("llama"), config, layers={1})
    assert config.target_modules is None
    assert config.layers_to_transform is None
    everywhere = add_lora(tiny_model("gpt2"), config)
    assert len({name.split(".h.")[1][0] for name in lora_layers(everywhere)}) == 2
