"""The divergence from the untouched model, against plain forward passes."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from abft.data.batches import Batch, collate
from abft.data.encoding import encode
from abft.data.prompts import training_prompts
from abft.errors import AbftError
from abft.method.objectives import AnchoredObjective, ContrastiveObjective, VoteObjective
from abft.method.objectives.anchored import ANCHOR_TOKENS, anchor_text
from abft.model.attention import decoder, row_attention
from abft.model.capabilities import capabilities
from abft.model.qk_weights import add_lora, train_full_rank
from abft.training.arguments import ABFTConfig
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
    """Mean divergence over a prompt's beginning, with a gradient; not where a label follows."""
    ids = torch.tensor([prompt.input_ids[:ANCHOR_TOKENS]])
    with torch.no_grad():
        before = untouched(ids).logits[0].log_softmax(-1)
    after = trained(ids).logits[0].log_softmax(-1)
    answers = {position - 1 for position in prompt.label_positions} | {len(prompt.input_ids) - 1}
    kept = sorted(set(range(ids.shape[1])) - answers)
    return (before.exp() * (before - after)).sum(-1)[kept].mean()


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_equals_two_plain_passes(bpe, review_data, family, queries):
    prompts = group(bpe, review_data, queries)
    model = tiny_model(family)
    if queries > 1 and not capabilities(model).packs:
        pytest.skip("this family reads prompts one by one")
    untouched = deepcopy(model)
    train_full_rank(model)
    objective = AnchoredObjective(VoteObjective(), 2.0, model)
    disturb(model)
    trained = deepcopy(model)

    batch = Batch(**collate(prompts, queries))
    with row_attention(model):
        loss, metrics = objective(decoder(model), batch)
        alone, _ = VoteObjective()(decoder(model), batch)

    # A pack is read up to the end of the prompt that comes first in its tree.
    read = prompts if queries == 1 else [min(prompts, key=lambda prompt: prompt.input_ids)]
    expected = sum(plain_kl(untouched, trained, prompt).item() for prompt in read) / len(read)
    assert expected > 1e-4
    assert metrics["kl"].item() == pytest.approx(expected, rel=1e-3)
    assert loss.item() == pytest.approx(alone.item() + 2 * expected, rel=1e-4)
    # The trained weights are back.
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained.get_parameter(name)), name


@pytest.mark.parametrize("chunk", [3, 500])
@pytest.mark.parametrize("loss", [VoteObjective(), ContrastiveObjective("1", 0.2)])
def test_the_gradient_is_that_of_the_divergence(bpe, review_data, loss, chunk, monkeypatch):
    """Whether the loss reads the last layer, so that its pass serves, or ends before it."""
    monkeypatch.setattr("abft.method.objectives.anchored.CHUNK_TOKENS", chunk)
    prompts = group(bpe, review_data)
    model = tiny_model("llama")
    untouched = deepcopy(model)
    train_full_rank(model)
    if isinstance(loss, ContrastiveObjective):
        loss.chosen_LH, loss.layers = torch.tensor([[True] * 4, [False] * 4]), (0,)
    objective = AnchoredObjective(loss, 2.0, model)
    disturb(model)

    def gradients(value):
        model.zero_grad()
        value.backward()
        return [layer.self_attn.k_proj.weight.grad.clone() for layer in model.model.layers]

    divergences = [plain_kl(untouched, model, prompt) for prompt in prompts]
    expected = gradients(2 * torch.stack(divergences).mean())

    with row_attention(model):
        batch = Batch(**collate(prompts))
        both, _ = objective(decoder(model), batch)
        alone, _ = loss(decoder(model), batch)
        with torch.no_grad():
            assert objective(decoder(model), batch)[0] == pytest.approx(both.item(), rel=1e-6)
    for found, each in zip(gradients(both - alone), expected, strict=True):
        assert each.abs().max() > 1e-5
        torch.testing.assert_close(found, each, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_begins_at_zero_and_pulls_back(bpe, review_data, lora):
    from peft import LoraConfig

    prompts = group(bpe, review_data, 4)
    model = tiny_model("llama")
    if lora:
        model = add_lora(model, LoraConfig(r=2, init_lora_weights=True))
    else:
        train_full_rank(model)
    objective = AnchoredObjective(VoteObjective(), 1.0, model)
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
    objective = AnchoredObjective(VoteObjective(), 1.0, model)
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
        return plain_kl(untouched, model.eval(), group(bpe, review_data)[0]).item()

    assert kl_after(20.0) < kl_after(0.0) / 2


@pytest.mark.parametrize("style", ["consistent", "staicc"])
def test_no_token_of_a_label_is_compared(bpe, review_data, style):
    words = tuple(f"of {word} sort" for word in review_data.task.label_words)
    data = replace(review_data, task=replace(review_data.task, label_words=words))
    prompts = encode(bpe, training_prompts(data, 4, 4, seed=3, prompt_style=style), style)
    ids_BS, text_BS = anchor_text(Batch(**collate(prompts)))
    for prompt, kept_S, ids_S in zip(prompts, text_BS, ids_BS, strict=True):
        said = [bpe.decode(ids_S[i + 1]) for i in kept_S.nonzero().flatten() if i + 1 < len(ids_S)]
        left_out = len(prompt.input_ids) - int(kept_S.sum())
        assert left_out == 1 + sum(end - start for start, end in prompt.label_words) > 9
        for word in " ".join(words).split():
            assert not any(word == token.strip() for token in said), word


def test_the_mean_is_over_sequences(bpe, review_data):
    """So that the size of micro-batches does not matter."""
    short, *_ = encode(bpe, training_prompts(review_data, 1, 2, seed=3))
    long, *_ = encode(bpe, training_prompts(review_data, 1, 12, seed=4))
    assert len(long.input_ids) > ANCHOR_TOKENS > len(short.input_ids)
    model = tiny_model("llama")
    train_full_rank(model)
    objective = AnchoredObjective(VoteObjective(), 1.0, model)
    disturb(model)
    with row_attention(model):
        each = [
            objective(decoder(model), Batch(**collate(some)))[1]["kl"].item()
            for some in ([short], [long], [short, long])
        ]
    assert each[2] == pytest.approx((each[0] + each[1]) / 2, rel=1e-4)
    assert each[0] != pytest.approx(each[1], rel=1e-2)


def settings(folder, **changes):
    return ABFTConfig(
        output_dir=str(folder),
        learning_rate=0.02,
        max_steps=4,
        nd=16,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        save_steps=2,
        report_to="none",
        use_cpu=True,
        **changes,
    )


def test_the_controller_goes_on_after_a_checkpoint(bpe, review_data, tmp_path):
    arguments = settings(tmp_path, objective="abft", threshold=0.05, kl=2.0)
    whole = ABFTTrainer(tiny_model("llama"), arguments, review_data, bpe)
    whole.train()
    resumed = ABFTTrainer(tiny_model("llama"), arguments, review_data, bpe)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.objective.state() == whole.objective.state() != {}

    def last(trainer, name):
        return [row[name] for row in trainer.state.log_history if name in row][-1]

    for name in ("A", "kl", "loss"):
        assert last(resumed, name) == last(whole, name), name
    assert last(whole, "kl") > 0


def test_an_objective_of_the_caller_is_anchored(bpe, review_data, tmp_path):
    arguments = settings(tmp_path, kl=2.0)
    trainer = ABFTTrainer(
        tiny_model("llama"), arguments, review_data, bpe, objective=VoteObjective()
    )
    assert isinstance(trainer.objective, AnchoredObjective)
    trainer.train()
    assert any(row.get("kl", 0) > 0 for row in trainer.state.log_history)
    card = trainer._card()
    assert "KL divergence from the model before training" in card
    assert "with weight 2" in card
    plain = ABFTTrainer(tiny_model("llama"), settings(tmp_path), review_data, bpe)
    assert "KL divergence" not in plain._card()


def test_an_anchor_alone_does_not_train(bpe, review_data):
    """A loss whose gradient was lost is returned as it is, for the trainer to refuse."""
    model = tiny_model("llama")
    train_full_rank(model)

    class Lost(VoteObjective):
        def from_rows(self, rows, hidden_BSD, batch):
            return super().from_rows(tuple(row.detach() for row in rows), hidden_BSD, batch)

    with row_attention(model):
        loss, _ = AnchoredObjective(Lost(), 1.0, model)(
            decoder(model), Batch(**collate(group(bpe, review_data)))
        )
    assert not loss.requires_grad


def test_a_negative_weight_is_refused():
    with pytest.raises(AbftError, match="kl"):
        ABFTConfig(kl=-1)
