"""Move a model through weight space: theta0 + sum of factor * (theta_run - theta0).

Factor 0 is the untouched model, 1 a trained one; other factors are points between and beyond.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abft.errors import AbftError
from abft.model.attention import causal_lm
from abft.model.checkpoints import is_full_rank, load_adapter, read_full_rank, scale_adapter
from abft.model.qk_weights import OTHER, QKModule, lora_layers, qk_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Change:
    """The change of a weight matrix, (out, in) float32: `left`, or an adapter's left @ right."""

    left: Tensor
    right: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """Return the change itself."""
        return self.left if self.right is None else self.left @ self.right

    def singular_values(self, rows: Tensor) -> Tensor:
        """Return the singular values of some rows; for an adapter, no more than its rank."""
        if self.right is None:
            return torch.linalg.svdvals(self.left[rows])

        # They are those of the small product of both R: Q of a QR decomposition changes none.
        left, right = (torch.linalg.qr(half).R for half in (self.left[rows], self.right.T))
        return torch.linalg.svdvals(left @ right.T)


class WeightSpace:
    """A base model that moves between the weights of several runs, as in the paper's section 5.3.

    Changes `model`. LoRA adapters are not merged into the base's weights (which may be quantised),
    so factor 0 is exactly the base.

    Args:
        model: the base model of all runs.
        runs: folders of finished runs, by a short name.

    Raises:
        AbftError: a run of another base model, or an adapter with DoRA or trained biases.
    """

    def __init__(self, model: "PreTrainedModel", runs: Mapping[str, Path]) -> None:
        self.model = model
        self.modules = qk_modules(model)
        # Adapters change the names of parameters, so these are listed before any is added.
        self._parameters = dict(model.named_parameters())
        self._theta0: dict[str, Tensor] = {}
        self._changes: dict[str, dict[str, Tensor]] = {}

        # Full-rank weights come first: they are read into a model without adapters.
        self._adapters = [name for name, folder in runs.items() if not is_full_rank(folder)]
        for name, folder in runs.items():
            if name not in self._adapters:
                self._changes[name] = self._change(folder)
        for name in self._adapters:
            self.model = load_adapter(self.model, runs[name], name)
        if self._adapters:
            self.model.base_model.set_adapter(self._adapters)

        self.model.requires_grad_(False)
        self.move({})

    def _change(self, folder: Path) -> dict[str, Tensor]:
        """Return theta_run - theta0 by parameter, and keep theta0 of these parameters."""
        change = {}
        for name, theta in read_full_rank(self.model, folder).items():
            # Runs that train the same parameter share one copy of theta0.
            theta0 = self._theta0.setdefault(name, self._parameters[name].detach().clone())
            change[name] = theta.to(theta0.device) - theta0
        return change

    @torch.no_grad()
    def move(self, factors: Mapping[str, float]) -> "PreTrainedModel":
        """Changes `model`: set it to theta0 + sum of factor * change by run, and return it.

        Runs that are not named have the factor 0.

        Raises:
            AbftError: an unknown run.
        """
        unknown = set(factors) - set(self._changes) - set(self._adapters)
        if unknown:
            raise AbftError(
                f"no run named {min(unknown)!r} among "
                f"{', '.join([*self._changes, *self._adapters])}"
            )

        # Every point is computed from theta0, so that rounding errors do not add up.
        for name, theta0 in self._theta0.items():
            theta = theta0.clone()
            for run, change in self._changes.items():
                if name in change and factors.get(run, 0.0) != 0:
                    theta += factors[run] * change[name]
            self._parameters[name].copy_(theta)

        for run in self._adapters:
            scale_adapter(self.model, factors.get(run, 0.0), run)  # type: ignore[arg-type]
        return self.model

    @torch.no_grad()
    def changes(self, run: str) -> Iterator[tuple[QKModule, Change]]:
        """Yield every projection that computes queries or keys, and its change by a run.

        The rows of V outputs are zero. Projections that the run did not train are left out.
        """
        layers = lora_layers(self.model, run) if run in self._adapters else {}
        for qk in self.modules:
            if run in self._adapters:
                if qk.name not in layers:
                    continue
                layer = layers[qk.name]
                rank = layer.r[run]
                divisor = math.sqrt(rank) if layer.use_rslora.get(run) else rank
                scale = layer.lora_alpha[run] / divisor
                lora_A, lora_B = layer.lora_A[run].weight, layer.lora_B[run].weight
                left, right = scale * lora_B.float(), lora_A.float()
            else:
                name = f"{qk.name}.weight"
                if name not in self._changes[run]:
                    continue
                left, right = self._changes[run][name].float(), None
                # Conv1D, which alone has `nf`, stores (in, out).
                if hasattr(self._base_layer(qk), "nf"):
                    left = left.T

            is_qk = (qk.roles != OTHER).to(left.device, left.dtype)
            yield qk, Change(left * is_qk[:, None], right)

    def _base_layer(self, qk: QKModule) -> nn.Module:
        """Return the projection itself, also where an adapter is wrapped around it."""
        module = causal_lm(self.model).get_submodule(qk.name)
        return module.get_base_layer() if hasattr(module, "get_base_layer") else module

    def weight(self, qk: QKModule) -> Tensor | None:
        """Return the base's weight of a projection, (out, in) float32; None if it is quantised."""
        base = self._base_layer(qk)
        stored = self._theta0.get(f"{qk.name}.weight", base.weight.detach())
        if not stored.dtype.is_floating_point:
            return None
        weight = stored.T if hasattr(base, "nf") else stored
        return weight.float()
