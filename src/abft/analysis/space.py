"""theta0 + sum of factor * (theta_run - theta0): the untouched model, trained ones, and what lies
between and beyond.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abft.errors import AbftError
from abft.model.attention import causal_lm
from abft.model.checkpoints import is_full_rank, load_adapter, read_full_rank
from abft.model.qk_weights import OTHER, QKModule, lora_layers, qk_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WeightSpace:
    """A base model that moves between the weights of several runs; the paper's section 5.3 walks on
    such a plane.

    Changes `model`. LoRA adapters stay beside the base's weights (which may be quantised), so 0 is
    exactly the base.

    Args:
        model: the base model of all runs.
        runs: folders of finished runs, by a short name.

    Raises:
        AbftError: a run of another base model.
    """

    def __init__(self, model: "PreTrainedModel", runs: Mapping[str, Path]) -> None:
        self.model = model
        self.modules = qk_modules(model)
        self._parameters = dict(
            model.named_parameters()
        )  # by their names before adapters are put beside them
        self._theta0: dict[str, Tensor] = {}
        self._changes: dict[str, dict[str, Tensor]] = {}
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
        change = {}
        for name, theta in read_full_rank(self.model, folder).items():
            theta0 = self._theta0.setdefault(name, self._parameters[name].detach().clone())
            change[name] = theta.to(theta0.device) - theta0
        return change

    @torch.no_grad()
    def move(self, factors: Mapping[str, float]) -> "PreTrainedModel":
        """Changes the model: go to theta0 + sum of factor * change; runs that are not named count
        0.
        """
        unknown = set(factors) - set(self._changes) - set(self._adapters)
        if unknown:
            raise AbftError(
                f"no run named {min(unknown)!r} among "
                f"{', '.join([*self._changes, *self._adapters])}"
            )
        for name, theta0 in self._theta0.items():
            theta = theta0.clone()
            for run, change in self._changes.items():
                if name in change and factors.get(run, 0.0) != 0:
                    theta += factors[run] * change[name]
            self._parameters[name].copy_(theta)
        for run in self._adapters:
            for module in lora_layers(self.model, run).values():
                module.set_scale(run, factors.get(run, 0.0))
        return self.model

    @torch.no_grad()
    def changes(self, run: str) -> Iterator[tuple[QKModule, Tensor]]:
        """What a run did to every projection that computes queries or keys: (out, in) float32; V
        outputs are zero.
        """
        layers = lora_layers(self.model, run) if run in self._adapters else {}
        for qk in self.modules:
            if run in self._adapters:
                if qk.name not in layers:
                    continue
                layer = layers[qk.name]
                scale = layer.lora_alpha[run] / layer.r[run]
                change = scale * (
                    layer.lora_B[run].weight.float() @ layer.lora_A[run].weight.float()
                )
            else:
                name = f"{qk.name}.weight"
                if name not in self._changes[run]:
                    continue
                change = self._changes[run][name].float()
                if hasattr(self._base_layer(qk), "nf"):  # Conv1D stores (in, out)
                    change = change.T
            yield qk, change * (qk.roles != OTHER).to(change.device, change.dtype)[:, None]

    def _base_layer(self, qk: QKModule) -> nn.Module:
        """The projection itself, also where an adapter is wrapped around it."""
        module = causal_lm(self.model).get_submodule(qk.name)
        return module.get_base_layer() if hasattr(module, "get_base_layer") else module

    def weight(self, qk: QKModule) -> Tensor | None:
        """The base's own weight of a projection, (out, in) float32; None where it is quantised."""
        base = self._base_layer(qk)
        stored = self._theta0.get(f"{qk.name}.weight", base.weight.detach())
        if not stored.dtype.is_floating_point:
            return None
        return (stored.T if hasattr(base, "nf") else stored).float()
