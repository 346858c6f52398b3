"""Control the factor A so that the number of induction heads stays stable (Eq. 3 of the paper)."""

from dataclasses import asdict, dataclass, field


@dataclass
class PIDController:
    """Moves A by a proportional, an integral and a derivative term of the number of heads.

    A_t = A_{t-1} + Cp (m_t - m_{t-1}) + Ci (m_t - m_1) + Cd (m_t - 2 m_{t-1} + m_{t-2}), for t > 2.

    m_t is the number of induction heads, averaged over the prompts of step t. The sum of Eq. 3,
    sum_{i=2..t} (m_i - m_{i-1}), telescopes to m_t - m_1. A is kept at or above 0 (the paper leaves
    this open).
    """

    A: float = 0.5
    Cp: float = 0.03
    Ci: float = 0.005
    Cd: float = 0.005
    history: list[float] = field(default_factory=list)  # m_1, then at most the last two values

    def update(self, m: float) -> float:
        """Take m_t after step t and return A for step t + 1."""
        # The derivative term needs two values before this one.
        if len(self.history) >= 2:
            first, before, last = self.history[0], self.history[-2], self.history[-1]
            proportional = self.Cp * (m - last)
            integral = self.Ci * (m - first)
            derivative = self.Cd * (m - 2 * last + before)
            self.A = max(0.0, self.A + (proportional + integral + derivative))

        # Keep m_1, the last value and this one.
        self.history = [*self.history[:1], *self.history[1:][-1:], m]
        return self.A

    def state(self) -> dict:
        """Return everything a resumed run needs, JSON-ready."""
        return asdict(self)
