import math

import torch

from abft.method.heads import induction_mask, threshold


def test_threshold_is_k_over_k_plus_ln_n():
    T = threshold(torch.tensor([95, 1000]), torch.tensor([4, 8]))
    assert T.tolist() == torch.tensor([4 / (4 + math.log(95)), 8 / (8 + math.log(1000))]).tolist()


def test_mask_compares_the_sum_over_all_labels_per_prompt():
    alpha = torch.tensor(
        [[[[0.2, 0.2], [0.3, 0.3]], [[0.2, 0.2], [0.3, 0.3]]]]
    )  # L=1, B=2, H=2, K=2
    mask = induction_mask(alpha, torch.tensor([0.5, 0.3]))
    assert mask.tolist() == [[[False, True], [True, True]]]


def test_mask_is_strict_and_carries_no_gradient():
    alpha = torch.full((1, 1, 1, 2), 0.25, requires_grad=True)
    mask = induction_mask(alpha, torch.tensor([0.5]))
    assert mask.tolist() == [[[False]]]
    assert not mask.requires_grad
