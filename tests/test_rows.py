"""The interpretability functions against eager attention and the trainer's own filter."""

import math

import pytest
import torch

from abft import attention_rows, induction_heads
from abft.data.batches import Batch, collate
from abft.data.encoding import encode
from abft.data.prompts import training_prompts
from abft.errors import AbftError
from abft.method.objectives import ABFTObjective
from abft.method.pid import PIDController
from abft.model.attention import decoder, row_attention
from tiny import tiny_model


@pytest.fixture(scope="module")
def prompts(bpe, review_data):
    return encode(bpe, training_prompts(review_data, 6, 4, seed=3))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss", "opt"])
def test_rows_equal_eager_attention(prompts, family):
    model = tiny_model(family)
    ids = [prompt.input_ids for prompt in prompts]
    places = [len(each) - 1 - b for b, each in enumerate(ids)]
    rows = attention_rows(model, ids, places)
    assert rows.shape == (len(rows), 6, 4, max(map(len, ids)))
    model.set_attn_implementation("eager")
    for b, each in enumerate(ids):
        with torch.no_grad():
            matrices = model(torch.tensor([each]), output_attentions=True).attentions
        expected = torch.stack([matrix[0, :, places[b]] for matrix in matrices])
        torch.testing.assert_close(
            rows[:, b, :, : len(each)], expected.float(), atol=1e-5, rtol=1e-4
        )
        assert not rows[:, b, :, places[b] + 1 :].any()


def test_heads_are_those_that_training_counts(prompts):
    model = tiny_model("llama")
    rows = attention_rows(model, [prompt.input_ids for prompt in prompts])
    places, lengths = [p.label_positions for p in prompts], [len(p.input_ids) for p in prompts]
    for fixed in (None, 0.05):
        found = induction_heads(rows, places, lengths, fixed)
        with row_attention(model), torch.no_grad():
            _, metrics = ABFTObjective(PIDController(), fixed_threshold=fixed)(
                decoder(model), Batch(**collate(prompts))
            )
        assert found.mask_LBH.sum().item() / 6 == pytest.approx(metrics["heads"].item())
    assert found.mask_LBH.any()
    assert not found.mask_LBH.all()
    assert (found.mask_LBH == (found.label_mass_LBH > 0.05)).all()
    by_formula = induction_heads(rows, places, lengths).threshold_B
    assert by_formula.tolist() == pytest.approx([4 / (4 + math.log(n)) for n in lengths])
    by_hand = sum(rows[1, 2, 3, at].item() for at in places[2])
    assert found.label_mass_LBH[1, 2, 3].item() == pytest.approx(by_hand, rel=1e-5)


def test_the_model_is_left_as_it_was(prompts):
    model = tiny_model("llama").train()
    model.model.layers[1].eval()  # a frozen part, as its user set it
    modes = [module.training for module in model.modules()]
    attention_rows(model, torch.tensor([[5, 6, 7]]))
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"


def test_bad_input(prompts):
    model = tiny_model("llama")
    for bad, positions in (
        ([], None),
        ([[]], None),
        ([[5, 6]], [2]),
        ([[5, 6]], [-1]),
        ([[5, 6]], [0, 1]),
    ):
        with pytest.raises(ValueError, match="position|prompts"):
            attention_rows(model, bad, positions)
    rows = attention_rows(model, [[5, 6, 7]])
    for places, lengths in (([[0]], [3, 3]), ([[3]], [3]), ([[]], [3])):
        with pytest.raises(ValueError, match="position|prompts"):
            induction_heads(rows, places, lengths)
    with pytest.raises(AbftError, match="attention"):
        attention_rows(
            tiny_model("mamba", vocab_size=700, hidden_size=16, num_hidden_layers=2, state_size=4),
            [[5, 6, 7]],
        )


def test_rows_do_not_depend_on_longer_prompts():
    """A prompt of more than 20 tokens makes this model rotate all keys of its batch differently."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 6.0, 9.0]}
    model = tiny_model(
        "llama",
        rope_parameters={**rope, "original_max_position_embeddings": 20},
        max_position_embeddings=80,
    )
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 600, (n,), generator=generator).tolist() for n in (12, 40, 15, 60)]
    together = attention_rows(model, prompts, [5, 39, 14, 30])
    for b, (ids, at) in enumerate(zip(prompts, [5, 39, 14, 30], strict=True)):
        alone = attention_rows(model, [ids], [at])[:, 0]
        torch.testing.assert_close(together[:, b, :, : len(ids)], alone, atol=1e-6, rtol=1e-4)
        assert not together[:, b, :, len(ids) :].any()

    model = tiny_model(
        "llama",
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        max_position_embeddings=50,
    )
    with pytest.raises(AbftError, match="60 tokens; beyond 50"):
        attention_rows(model, prompts)


def test_the_first_and_the_last_token_can_be_labels():
    rows = torch.zeros(1, 1, 2, 5)
    rows[0, 0, 0, 0], rows[0, 0, 1, 4] = 0.9, 0.9
    heads = induction_heads(rows, [[0, 4]], [5])
    assert heads[1][0, 0].tolist() == pytest.approx([0.9, 0.9])
    for outside in (-1, 5):
        with pytest.raises(ValueError, match="from 0 to 4"):
            induction_heads(rows, [[0, outside]], [5])
