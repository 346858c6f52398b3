"""The objective against a brute-force reading of the paper on eager attention matrices."""

import math
from dataclasses import replace

import pytest
import torch

from abft.data.batches import Batch, collate
from abft.data.encoding import encode, label_tokens, with_answers
from abft.data.prompts import training_prompts
from abft.errors import AbftError
from abft.method.objectives import ABFTObjective, CombinedObjective, E2EObjective, VoteObjective
from abft.method.pid import PIDController
from abft.model.attention import decoder, row_attention
from tiny import tiny_model


@pytest.fixture(scope="module")
def prompts(bpe, review_data):
    return encode(bpe, training_prompts(review_data, 6, 4, seed=3))


def brute_force(model, prompts, A, B, T=None, head_filter=True):
    """Loss and head count, prompt by prompt, head by head, with plain Python sums."""
    total, heads = 0.0, 0
    for prompt in prompts:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = model(torch.tensor([prompt.input_ids]), output_attentions=True).attentions
        n, k = len(prompt.input_ids), len(prompt.label_positions)
        for layer in attentions:
            for matrix in layer[0]:
                alpha = matrix[n - 1]
                right = sum(
                    alpha[i].item()
                    for i, c in zip(prompt.label_positions, prompt.label_classes, strict=True)
                    if c == prompt.target
                )
                everything = sum(alpha[i].item() for i in prompt.label_positions)
                passes = everything > (k / (k + math.log(n)) if T is None else T)
                heads += passes
                if passes or not head_filter:
                    total += A * (everything - right) + B * (1 - right)
    return total / len(prompts), heads / len(prompts)


@pytest.mark.parametrize("settings", [{}, {"T": 0.05}, {"T": 0.05, "head_filter": False}])
def test_equals_the_paper_by_brute_force(prompts, settings):
    model = tiny_model("llama")
    expected, expected_heads = brute_force(model, prompts, A=0.7, B=1.1, **settings)
    objective = ABFTObjective(
        PIDController(0.7),
        1.1,
        fixed_threshold=settings.get("T"),
        head_filter=settings.get("head_filter", True),
    )
    with row_attention(model):
        loss, metrics = objective(decoder(model), Batch(**collate(prompts)))
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert metrics["heads"].item() == pytest.approx(expected_heads)


def test_the_vote_counts_every_head(prompts):
    model = tiny_model("llama")
    prompts = [
        replace(prompts[0], label_classes=(prompts[0].target,) * 4),
        *prompts[1:],
    ]  # the first has no incorrect label
    rights, everything = [], []
    for prompt in prompts:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            rows = torch.stack(
                model(torch.tensor([prompt.input_ids]), output_attentions=True).attentions
            )[:, 0, :, -1]
        on_labels = [rows[..., at].sum().item() for at in prompt.label_positions]
        rights.append(
            sum(
                a
                for a, c in zip(on_labels, prompt.label_classes, strict=True)
                if c == prompt.target
            )
        )
        everything.append(sum(on_labels))
    both = [0 < sum(c == p.target for c in p.label_classes) < len(p.label_classes) for p in prompts]
    assert both == [False] + [True] * (len(prompts) - 1)
    terms = [
        -math.log(r / e) for r, e, mixed in zip(rights, everything, both, strict=True) if mixed
    ]
    with row_attention(model):
        loss, metrics = VoteObjective()(decoder(model), Batch(**collate(prompts)))
    assert loss.item() == pytest.approx(sum(terms) / len(prompts), rel=1e-4)
    assert metrics["correct_mass"].item() == pytest.approx(sum(rights) / len(prompts), rel=1e-4)
    assert metrics["incorrect_mass"].item() == pytest.approx(
        (sum(everything) - sum(rights)) / len(prompts), rel=1e-4
    )


def test_gradient_against_finite_differences(prompts):
    model = tiny_model("llama").double()
    weight = model.model.layers[0].self_attn.k_proj.weight
    batch = Batch(**collate(prompts))
    objective = ABFTObjective(PIDController(0.5), 1.0, head_filter=False)

    def loss():
        with row_attention(model):
            return objective(decoder(model), batch)[0]

    @torch.no_grad()
    def loss_at(delta):
        weight.add_(delta)
        value = loss()
        weight.sub_(delta)
        return value

    (gradient,) = torch.autograd.grad(loss(), weight)
    torch.manual_seed(0)
    direction = torch.randn_like(weight)
    step = 1e-3  # rows are float32
    numeric = (loss_at(step * direction) - loss_at(-step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-2)


def test_every_layer_keeps_a_gradient_although_no_head_passes(prompts):
    model = tiny_model("llama")
    with row_attention(model):
        loss, _ = ABFTObjective(PIDController(), fixed_threshold=0.999)(
            decoder(model), Batch(**collate(prompts))
        )
    loss.backward()
    for layer in model.model.layers:
        assert layer.self_attn.q_proj.weight.grad is not None
        assert layer.self_attn.q_proj.weight.grad.abs().max() == 0


def test_first_step_without_heads_is_refused_and_state_round_trips():
    objective = ABFTObjective(PIDController())
    with pytest.raises(AbftError, match="no attention head"):
        objective.after_step({"heads": 0.0})
    objective = ABFTObjective(PIDController())
    used = [objective.after_step({"heads": m})["A"] for m in (10.0, 12.0, 15.0)]
    assert used == [0.5, 0.5, 0.5]
    copy = ABFTObjective(PIDController())
    copy.restore(objective.state())
    assert copy.after_step({"heads": 9.0}) == objective.after_step({"heads": 9.0})
    assert copy.controller == objective.controller
    fixed = ABFTObjective(PIDController(), pid=False)
    assert [fixed.after_step({"heads": m})["A"] for m in (10.0, 12.0, 15.0, 30.0)] == [0.5] * 4


def plain_cross_entropy(model, prompts):
    """Mean loss of the answers, prompt by prompt, with transformers' own logits."""
    losses = []
    for prompt in prompts:
        logits = model(torch.tensor([prompt.input_ids])).logits[0, -1]
        losses.append(-torch.log_softmax(logits.float(), -1)[prompt.answer])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_end_to_end_equals_plain_cross_entropy(prompts, bpe, review_data, family):
    model = tiny_model(family)
    answered = with_answers(prompts, label_tokens(bpe, review_data.task))
    assert [p.answer for p in answered] == [
        bpe(" " + review_data.task.label_words[p.target])["input_ids"][0] for p in answered
    ]
    model.zero_grad()
    expected = plain_cross_entropy(model, answered)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    objective = E2EObjective(model)
    with row_attention(model):
        loss, metrics = objective(decoder(model), Batch(**collate(answered)))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert torch.allclose(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5), name
    with row_attention(model):
        _, same = ABFTObjective(PIDController())(decoder(model), Batch(**collate(answered)))
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {n: v.item() for n, v in same.items()}
    )
    assert objective.after_step({"heads": 0.0}) == {}  # no head is needed
    objective.restore(objective.state())


def test_end_to_end_needs_answers(prompts):
    model = tiny_model("llama")
    with row_attention(model), pytest.raises(AbftError, match="with_answers"):
        E2EObjective(model)(decoder(model), Batch(**collate(prompts)))


@pytest.mark.parametrize("attention", ["abft", "vote"])
def test_a_combined_objective_is_the_weighted_sum(prompts, bpe, review_data, attention):
    model = tiny_model("llama")
    batch = Batch(**collate(with_answers(prompts, label_tokens(bpe, review_data.task))))
    parts = {"abft": ABFTObjective(PIDController(), fixed_threshold=0.05), "vote": VoteObjective()}
    first, second = parts[attention], E2EObjective(model)

    def measured(objective):
        model.zero_grad()
        with row_attention(model):
            loss, metrics = objective(decoder(model), batch)
        loss.backward()
        return loss.item(), model.model.layers[0].self_attn.k_proj.weight.grad.clone(), metrics

    (loss_a, gradient_a, metrics_a), (loss_b, gradient_b, _) = measured(first), measured(second)
    loss, gradient, metrics = measured(CombinedObjective(first, second, 2.5))
    assert loss == pytest.approx(loss_a + 2.5 * loss_b, rel=1e-5)
    assert torch.allclose(gradient, gradient_a + 2.5 * gradient_b, rtol=1e-4, atol=1e-7)
    assert metrics.pop("cross_entropy").item() == pytest.approx(loss_b)
    assert {name: value.item() for name, value in metrics.items()} == {
        n: v.item() for n, v in metrics_a.items()
    }


def test_a_combined_objective_keeps_the_controller():
    def combined():
        return CombinedObjective(
            ABFTObjective(PIDController()), E2EObjective(tiny_model("llama")), 1.0
        )

    objective, plain = combined(), ABFTObjective(PIDController())
    for heads in (10.0, 12.0, 15.0, 11.0):
        assert objective.after_step({"heads": heads}) == plain.after_step({"heads": heads})
    copy = combined()
    copy.restore(objective.state())
    assert copy.after_step({"heads": 9.0}) == plain.after_step({"heads": 9.0})

    # Where no head passes the filter, cross-entropy has something to train.
    assert combined().after_step({"heads": 0.0})["A"] == 0.5
