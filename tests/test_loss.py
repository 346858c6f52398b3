import math

import pytest
import torch

from abft.method.losses import head_loss, label_mass, vote_loss


def test_eq_1_by_hand():
    # alpha on four labels; the first and third are right.
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.05]).view(1, 1, 1, 4)
    correct = torch.tensor([[True, False, True, False]])
    right, wrong = label_mass(alpha, correct, ~correct)
    torch.testing.assert_close(right, torch.tensor([[[0.4]]]))
    torch.testing.assert_close(wrong, torch.tensor([[[0.25]]]))
    torch.testing.assert_close(
        head_loss(right, wrong, 0.5, 1.0), torch.tensor([[[0.5 * 0.25 + 1.0 * 0.6]]])
    )
    torch.testing.assert_close(head_loss(right, wrong, 0.0, 1.0), torch.tensor([[[0.6]]]))
    torch.testing.assert_close(head_loss(right, wrong, 2.0, 0.0), torch.tensor([[[0.5]]]))


def test_absent_candidates_count_on_neither_side():
    alpha = torch.tensor([0.1, 0.9]).view(1, 1, 1, 2)
    right, wrong = label_mass(alpha, torch.tensor([[True, False]]), torch.tensor([[False, False]]))
    assert wrong.item() == 0
    torch.testing.assert_close(right.item(), alpha[0, 0, 0, 0].item())


def test_gradient_against_finite_differences():
    torch.manual_seed(0)
    scores = torch.randn(1, 2, 3, 7, dtype=torch.double, requires_grad=True)
    correct = torch.tensor([[True, False, True], [False, False, True]])

    def loss(scores):
        alpha = torch.softmax(scores, -1)[..., [1, 3, 5]]
        return head_loss(*label_mass(alpha, correct, ~correct), A=0.7, B=1.3)

    assert torch.autograd.gradcheck(loss, (scores,))


def masses(prompts=3):
    """Right and wrong attention of two layers with three heads each."""
    torch.manual_seed(1)
    right, wrong = torch.rand(2, 2, prompts, 3, dtype=torch.double) / 2
    return right.requires_grad_(), wrong.requires_grad_()


def test_the_vote_by_hand():
    right, wrong = masses()
    totals = right.detach().sum((0, 2)), wrong.detach().sum((0, 2))
    expected = [
        -math.log(r / (r + w)) for r, w in zip(*map(torch.Tensor.tolist, totals), strict=True)
    ]
    loss = vote_loss(right, wrong, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx((expected[0] + expected[2]) / 3)
    everyone = torch.tensor([True, True, True])
    assert vote_loss(right, right, everyone).item() == pytest.approx(math.log(2))
    assert vote_loss(3 * right, 3 * wrong, everyone).item() == pytest.approx(
        vote_loss(right, wrong, everyone).item()
    )


def test_the_vote_is_eq_1_with_balanced_factors():
    right, wrong = masses(1)
    loss = vote_loss(right, wrong, torch.tensor([True]))
    gradients = torch.autograd.grad(loss, (right, wrong))
    R, W = right.sum().item(), wrong.sum().item()
    A = 1 / (R + W)
    same = torch.autograd.grad(head_loss(right, wrong, A, A * W / R).sum(), (right, wrong))
    for ours, theirs in zip(gradients, same, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_prompts_without_a_vote_teach_nothing():
    right, wrong = (
        torch.zeros(1, 2, 3),
        torch.rand(1, 2, 3),
    )  # the first prompt shows no correct label
    right[:, 1] = 0.2
    right.requires_grad_()
    wrong.requires_grad_()
    vote_loss(right, wrong, torch.tensor([False, True])).backward()
    for gradient in (right.grad, wrong.grad):
        assert gradient.isfinite().all()
        assert gradient[:, 0].abs().max() == 0
        assert gradient[:, 1].abs().min() > 0
