"""Eq. 3 of the paper: a PID controller moves the factor A so that the number of induction heads
stays stable.
"""

from dataclasses import asdict, dataclass, field


@dataclass
class PIDController:
    """A_t = A_{t-1} + Cp (m_t - m_{t-1}) + Ci (m_t - m_1) + Cd (m_t - 2 m_{t-1} + m_{t-2}), for t >
    2.

    m_t is the number of induction heads, averaged over the prompts of step t. The sum of Eq. 3,
    sum_{i=2..t} (m_i - m_{i-1}), telescopes to m_t - m_1. A is kept at or above 0 (the paper does
    not say).
    """

    A: float = 0.5
    Cp: float = 0.03
    Ci: float = 0.005
    Cd: float = 0.005
    history: list[float] = field(default_factory=list)  # m_1, then at most the last two values

    def update(self, m: float) -> float:
        """Take m_t after step t and return A for step t + 1."""
        if len(self.history) >= 2:
            first, before, last = self.history[0], self.history[-2], self.history[-1]
            change = (
                self.Cp * (m - last) + self.Ci * (m - first) + self.Cd * (m - 2 * last + before)
            )
            self.A = max(0.0, self.A + change)
        self.history = [*self.history[:1], *self.history[1:][-1:], m]
        return self.A

    def state(self) -> dict:
        """Everything a resumed run needs, JSON-ready."""
        return asdict(self)
