"""The space of weights: points in it equal merged models, changes equal differences of weights."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig

from abft.analysis.changes import changes, effective_rank
from abft.analysis.space import WeightSpace
from abft.errors import AbftError
from abft.model.checkpoints import apply_weights, base_samples, save_adapter, save_full_rank
from abft.model.qk_weights import K, Q, add_lora, qk_modules, train_full_rank
from tiny import tiny_model

IDS = torch.arange(3, 15)[None]


def trained(family, kind, folder, seed):
    """A folder with weights that some training could have left."""
    model = tiny_model(family)
    samples = base_samples(model, qk_modules(model))
    folder.mkdir()
    torch.manual_seed(seed)
    if kind == "lora":
        model = add_lora(model, LoraConfig(r=2, lora_alpha=6))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        for qk in qk_modules(model.get_base_model()):
            if qk.outputs is not None:
                with torch.no_grad():
                    model.get_base_model().get_submodule(qk.name).lora_B["default"].weight[
                        ~qk.outputs
                    ] = 0
        save_adapter(model, folder, samples)
    else:
        train_full_rank(model)
        for qk in qk_modules(model):
            weight = model.get_submodule(qk.name).weight
            mask = torch.ones(len(qk.roles), dtype=torch.bool) if qk.outputs is None else qk.outputs
            change = 0.1 * torch.randn(weight.shape)
            with torch.no_grad():
                weight += change * (
                    mask if hasattr(model.get_submodule(qk.name), "nf") else mask[:, None]
                )
        save_full_rank(model, folder, samples)
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize(
    "kinds", [("full", "full"), ("lora", "lora"), ("full", "lora"), ("lora", "full")]
)
def test_points_equal_merged_models(family, kinds, tmp_path):
    folders = {
        name: trained(family, kind, tmp_path / name, seed)
        for seed, (name, kind) in enumerate(zip("ab", kinds, strict=True))
    }
    space = WeightSpace(tiny_model(family), folders)
    with torch.no_grad():
        base = tiny_model(family)(IDS).logits
        for name, folder in folders.items():
            for factor in (1.0, 1.5):
                expected = apply_weights(tiny_model(family), folder, factor)(IDS).logits
                assert (space.move({name: factor})(IDS).logits - expected).abs().max() < 1e-4
        both = space.move({"a": 0.5, "b": -0.5})(IDS).logits
        assert (both - base).abs().max() > 1e-3
        assert torch.equal(space.move({})(IDS).logits, base)
        if len({*kinds}) == 1:  # one after the other is the same as both at once
            half = apply_weights(tiny_model(family), folders["a"], 0.5)
            merged = {name: p.clone() for name, p in half.named_parameters()}
            other = dict(apply_weights(tiny_model(family), folders["b"], -0.5).named_parameters())
            start = dict(tiny_model(family).named_parameters())
            for name, parameter in half.named_parameters():
                parameter.copy_(merged[name] + other[name] - start[name])
            assert (both - half(IDS).logits).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "deepseek_v3"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_changes_equal_differences(family, kind, tmp_path):
    folder = trained(family, kind, tmp_path / "run", 0)
    space = WeightSpace(tiny_model(family), {"run": folder})
    before, after = tiny_model(family), apply_weights(tiny_model(family), folder)
    seen = 0
    for qk, change in space.changes("run"):
        old, new = (model.get_submodule(qk.name).weight for model in (before, after))
        fused = hasattr(before.get_submodule(qk.name), "nf")
        difference = (new - old).T if fused else new - old
        assert (change.matrix - difference).abs().max() < 1e-5
        assert change.matrix.abs().max() > 0
        assert torch.equal(space.weight(qk), (old.T if fused else old).float())
        seen += int((qk.roles == Q).any()) + int((qk.roles == K).any())
    assert seen >= 2 * len({qk.layer for qk in qk_modules(before)})


@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek_v3"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_norms_and_ranks_of_layers_by_hand(family, kind, tmp_path):
    """A layer's modules together (MLA has several of a role), of fused weights the role's part."""
    folder = trained(family, kind, tmp_path / "run", 0)
    before, after = tiny_model(family), apply_weights(tiny_model(family), folder)
    layers = sorted({qk.layer for qk in qk_modules(before)})
    study = SimpleNamespace(
        space=WeightSpace(tiny_model(family), {"run": folder}),
        layers=layers,
        models={"before": {}, "after": {"run": 1.0}},
    )
    found = changes(study)
    assert found["layers_L"].tolist() == layers

    several = 0
    for i, layer in enumerate(layers):
        for p, role in enumerate((Q, K)):
            squares, base_squares, sigmas, modules = 0.0, 0.0, [], 0
            for qk in qk_modules(before):
                if qk.layer == layer and (qk.roles == role).any():
                    old, new = (m.get_submodule(qk.name).weight.detach() for m in (before, after))
                    if family == "gpt2":
                        first = (0, 32)[p]
                        old, new = old.T[first : first + 32], new.T[first : first + 32]
                    else:
                        old, new = old[qk.roles == role], new[qk.roles == role]
                    base_squares += (old**2).sum().item()
                    squares += ((new - old) ** 2).sum().item()
                    sigmas += np.linalg.svd((new - old).numpy(), compute_uv=False).tolist()
                    modules += 1
            several += modules > 1
            shares = np.array(sigmas) / sum(sigmas)
            entropy = -sum(share * math.log(share) for share in shares if share > 0)
            assert found["norm_RLP"][0, i, p] == pytest.approx(squares**0.5, rel=1e-3)
            assert found["base_norm_LP"][i, p] == pytest.approx(base_squares**0.5, rel=1e-4)
            rank = found["effective_rank_RLP"][0, i, p]
            assert rank == pytest.approx(math.exp(entropy), rel=1e-2)
    assert (several > 0) == (family == "deepseek_v3")


@pytest.mark.parametrize("kinds", [("full", "lora"), ("lora", "full")])
def test_changes_of_runs_of_both_kinds(kinds, tmp_path):
    folders = {
        name: trained("gpt2", kind, tmp_path / name, seed)
        for seed, (name, kind) in enumerate(zip("ab", kinds, strict=True))
    }
    space = WeightSpace(tiny_model("gpt2"), folders)
    for name, folder in folders.items():
        before, after = tiny_model("gpt2"), apply_weights(tiny_model("gpt2"), folder)
        for qk, change in space.changes(name):
            difference = (
                after.get_submodule(qk.name).weight - before.get_submodule(qk.name).weight
            ).T
            assert (change.matrix - difference).abs().max() < 1e-5


def test_unknown_run(tmp_path):
    space = WeightSpace(tiny_model("llama"), {"run": trained("llama", "full", tmp_path / "run", 0)})
    with pytest.raises(AbftError, match="no run named 'other' among run"):
        space.move({"other": 1.0})


def test_effective_rank():
    assert effective_rank(torch.zeros(4)) == 0
    assert effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.full((5,), 0.1)) == pytest.approx(5)
