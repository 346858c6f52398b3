import torch

from abft.loss import head_loss, label_mass


def test_eq_1_by_hand():
    # alpha on four labels; the first and third are right.
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.05]).view(1, 1, 1, 4)
    correct = torch.tensor([[True, False, True, False]])
    right, wrong = label_mass(alpha, correct, ~correct)
    torch.testing.assert_close(right, torch.tensor([[[0.4]]]))
    torch.testing.assert_close(wrong, torch.tensor([[[0.25]]]))
    torch.testing.assert_close(head_loss(right, wrong, 0.5, 1.0), torch.tensor([[[0.5 * 0.25 + 1.0 * 0.6]]]))
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
