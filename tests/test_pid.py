import pytest

from abft.method.pid import PIDController


def closed_form(ms, A0, Cp, Ci, Cd):
    """Eq. 3 as it is printed, with the sum written out."""
    A = A0
    values = []
    for t in range(1, len(ms) + 1):
        if t > 2:
            m = [0.0, *ms]
            total = sum(m[i] - m[i - 1] for i in range(2, t + 1))
            A += Cp * (m[t] - m[t - 1]) + Ci * total + Cd * (m[t] - 2 * m[t - 1] + m[t - 2])
        values.append(A)
    return values


def test_equals_eq_3():
    ms = [17, 20, 25.5, 22, 30, 18, 19, 19]
    controller = PIDController(2.0, 0.03, 0.005, 0.007)
    assert [controller.update(m) for m in ms] == pytest.approx(
        closed_form(ms, 2.0, 0.03, 0.005, 0.007), abs=1e-12
    )


def test_by_hand():
    controller = PIDController()
    assert controller.update(10) == 0.5
    assert controller.update(12) == 0.5
    assert controller.update(15) == pytest.approx(
        0.5 + 0.03 * 3 + 0.005 * 5 + 0.005 * (15 - 24 + 10)
    )


def test_never_negative():
    controller = PIDController()
    for m in (40, 40, 1):
        controller.update(m)
    assert controller.A == 0


def test_state_resumes_anywhere():
    ms = [3, 5, 4, 8, 9, 2, 7]
    whole = PIDController(1.0)
    values = [whole.update(m) for m in ms]
    for cut in range(len(ms)):
        first = PIDController(1.0)
        for m in ms[:cut]:
            first.update(m)
        second = PIDController(**first.state())
        assert [second.update(m) for m in ms[cut:]] == values[cut:]
