"""Attention trained on candidates that are no demonstrations."""

import numpy as np
import pytest
import torch

from abft import ABFTConfig, ABFTTrainer, Batch, attention_target
from abft.data.batches import collate
from abft.method.objectives import VoteObjective
from abft.model.attention import decoder, row_attention
from tiny import tiny_model


def marked(right, seed):
    """Three candidates in random tokens; the right one stands behind the token that the prompt ends
    with.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(100, 400, (24,), generator=generator).tolist()
    places = [5, 12, 19]
    for i, at in enumerate(places):
        ids[at - 1] = 20 + i
        ids[at] = 50
    ids[-1] = 20 + right
    return attention_target(ids, places, [i == right for i in range(3)])


def right_share(model, prompts):
    with row_attention(model), torch.no_grad():
        _, metrics = VoteObjective()(decoder(model), Batch(**collate(prompts)))
    return (metrics["correct_mass"] / (metrics["correct_mass"] + metrics["incorrect_mass"])).item()


@pytest.mark.parametrize("objective", ["abft", "vote"])
def test_heads_learn_to_look_at_the_right_candidate(bpe, tmp_path, objective):
    model = tiny_model("llama")
    unseen = [marked(i % 3, 1000 + i) for i in range(30)]
    before = right_share(model, unseen)
    settings = {
        "learning_rate": 0.01,
        "max_steps": 30,
        "objective": objective,
        "threshold": 0.02,
        "use_cpu": True,
    }
    arguments = ABFTConfig(
        str(tmp_path), save_strategy="no", report_to="none", disable_tqdm=True, **settings
    )
    ABFTTrainer(model, arguments, [marked(i % 3, i) for i in range(96)], bpe).train()
    assert before == pytest.approx(1 / 3, abs=0.1)
    assert right_share(model, unseen) > 0.6


def test_bad_targets():
    for candidates, correct in (
        ([], []),
        ([1], [True, False]),
        ([1, 1], [True, False]),
        ([3], [True]),
        ([-1], [True]),
    ):
        with pytest.raises(ValueError, match="candidates"):
            attention_target([7, 8, 9], candidates, correct)


def test_positions_and_spans_of_other_types():
    ids, correct = [7, 8, 9, 10, 11], [True, False]
    positions = attention_target(ids, [0, 2], correct)
    assert attention_target(ids, np.array([0, 2]), correct) == positions
    assert attention_target(ids, list(np.array([0, 2])), correct) == positions
    spans = attention_target(ids, [(0, 2), (2, 4)], correct)
    assert attention_target(ids, [[0, 2], [2, 4]], correct) == spans
    assert attention_target(ids, np.array([[0, 2], [2, 4]]), correct) == spans
