"""The divergence from the untouched model, against plain forward passes."""

from copy import deepcopy

import pytest
import torch

from abft.data.batches import Batch, collate
from abft.data.encoding import encode
from abft.data.prompts import training_prompts
from abft.errors import AbftError
from abft.method.objectives import AnchoredObjective, VoteObjective, make_objective
from abft.method.objectives.anchored import ANCHOR_TOKENS
from abft.model.attention import decoder, row_attention
from abft.model.qk_weights import add_lora, train_full_rank
from abft.training.arguments import ABFTConfig
from abft.training.attention_loss import attention_loss
from abft.training.trainer import ABFTTrainer
from tiny import tiny_model


def group(bpe, review_data, queries=1):
    return encode(bpe, training_prompts(review_data, 4, 4, seed=3, queries=queries))


def disturb(model, size=0.3):
    """Change the trained weights, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def plain_kl(untouched, trained, prompt):
    """Sum of the divergences of a prompt's beginning, and their number, place by place."""
    ids = torch.tensor([prompt.input_ids[:ANCHOR_TOKENS]])
    answers = {position - 1 for position in prompt.label_positions}
    answers.add(len(prompt.input_ids) - 1)
    with torch.no_grad():
        before, after = (m(ids).logits[0].log_softmax(-1) for m in (untouched, trained))
    kept = [i for i in range(ids.shape[1]) if i not in answers]
    divergences = [(before[i].exp() * (before[i] - after[i])).sum().item() for i in kept]
    return sum(divergences), len(kept)


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_equals_two_plain_passes(bpe, review_data, family, queries):
    prompts = group(bpe, review_data, queries)
    model = tiny_model(family)
    untouched = deepcopy(model)
    train_full_rank(model)
    objective = AnchoredObjective(VoteObjective(), 2.0)
    objective.prepare(model, prompts, queries)
    disturb(model)
    trained = deepcopy(model)

    batch = Batch(**collate(prompts, queries))
    with row_attention(model):
        loss, metrics = objective(decoder(model), batch)
        alone, _ = VoteObjective()(decoder(model), batch)

    # A pack is read up to the end of the prompt that comes first in its tree.
    read = prompts if queries == 1 else [min(prompts, key=lambda prompt: prompt.input_ids)]
    sums, counts = zip(*(plain_kl(untouched, trained, prompt) for prompt in read), strict=True)
    expected = sum(sums) / sum(counts)
    assert expected > 1e-4
    assert metrics["kl"].item() == pytest.approx(expected, rel=1e-3)
    assert loss.item() == pytest.approx(alone.item() + 2 * expected, rel=1e-4)
    # The trained weights are back.
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained.get_parameter(name)), name


@pytest.mark.parametrize("lora", [False, True])
def test_begins_at_zero_and_pulls_back(bpe, review_data, lora):
    from peft import LoraConfig

    prompts = group(bpe, review_data, 4)
    model = tiny_model("llama")
    if lora:
        model = add_lora(model, LoraConfig(r=2, init_lora_weights=True))
    else:
        train_full_rank(model)
    objective = AnchoredObjective(VoteObjective(), 1.0)
    objective.prepare(model, prompts, 4)
    batch = Batch(**collate(prompts, 4))

    def kl():
        model.zero_grad()
        with row_attention(model):
            both, metrics = objective(decoder(model), batch)
            alone, _ = objective.loss(decoder(model), batch)
        (both - alone).backward()
        return metrics["kl"].item()

    assert kl() == pytest.approx(0, abs=1e-6)
    disturb(model)
    far = kl()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    assert kl() < far


def test_mixed_precision_reads_both_kinds_of_weights(bpe, review_data):
    """Autocast keeps weights that it has cast; those of one pass must not serve the other."""
    prompts = group(bpe, review_data)
    model = tiny_model("llama")
    train_full_rank(model)
    objective = AnchoredObjective(VoteObjective(), 1.0)
    objective.prepare(model, prompts, 1)
    disturb(model)
    batch = Batch(**collate(prompts))

    def measured(**settings):
        model.zero_grad()
        with row_attention(model), torch.autocast("cpu", torch.bfloat16, **settings):
            loss, metrics = objective(decoder(model), batch)
        loss.backward()
        return metrics["kl"].item(), model.model.layers[
            0
        ].self_attn.q_proj.weight.grad.norm().item()

    exact = measured(enabled=False)
    assert exact[0] > 1e-3
    assert measured() == pytest.approx(exact, rel=0.1)


def test_training_with_it_stays_closer(bpe, review_data, tmp_path):
    def kl_after(weight):
        arguments = ABFTConfig(
            output_dir=str(tmp_path / str(weight)),
            learning_rate=0.02,
            max_steps=6,
            objective="vote",
            cross_entropy=1.0,
            kl=weight,
            queries=4,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        )
        model = tiny_model("llama")
        untouched = deepcopy(model)
        trainer = ABFTTrainer(model, arguments, review_data, bpe)
        trainer.train()
        logged = {name for row in trainer.state.log_history for name in row}
        assert ("kl" in logged) == (weight > 0)
        total, count = plain_kl(untouched, model.eval(), group(bpe, review_data)[0])
        return total / count

    assert kl_after(20.0) < kl_after(0.0) / 2


def test_is_no_loss_on_attention_alone(bpe, review_data, tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, report_to="none", use_cpu=True
    )
    trainer = Trainer(tiny_model("llama"), arguments)
    with (
        pytest.raises(ValueError, match="AnchoredObjective is no loss on attention alone"),
        attention_loss(trainer, AnchoredObjective(VoteObjective(), 1.0)),
    ):
        pass


def test_is_made_where_it_has_a_weight():
    model = tiny_model("llama")
    made = make_objective(ABFTConfig(objective="vote", kl=0.5), model, "abft_rows")
    assert isinstance(made, AnchoredObjective)
    assert made.weight == 0.5
    assert isinstance(
        make_objective(ABFTConfig(objective="vote"), model, "abft_rows"), VoteObjective
    )
    with pytest.raises(AbftError, match="kl"):
        ABFTConfig(kl=-1)
