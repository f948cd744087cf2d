"""What turns gradients into steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LEAST_CHANNELS = 16
"""Of a layer's input and output whose weights Muon takes: not depthwise ones, the first layer, or outputs."""


def parameter_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and batch-norm parameters do not."""
    taken = list(parameters)
    decayed, rest = [p for p in taken if p.ndim > 1], [p for p in taken if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build_optimizer(name: str, network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """``muon`` (:class:`MuonAdamW`), ``adamw``, or ``sgd`` with momentum 0.9, for a network in ``channels_last``."""
    if name == "muon":
        return MuonAdamW(network, learning_rate, weight_decay)
    groups = parameter_groups(network.parameters(), weight_decay)
    return (
        torch.optim.SGD(groups, learning_rate, momentum=0.9)
        if name == "sgd"
        else torch.optim.AdamW(groups, learning_rate)
    )


def as_matrix(weight: Tensor) -> Tensor:
    """(O, h * w * I) of a layer's weights, (O, I) or (O, I, h, w): their own memory if that is ``channels_last``."""
    return (weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1)).reshape(len(weight), -1)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices among the weights, AdamW for the rest.

    A step of Muon's makes all directions of a matrix equally long; here as long as AdamW's steps are (Liu et al., "Muon
    is scalable for LLM training", 2025, section 2.2), so that one learning rate serves both.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float) -> None:
        """
        Args:
            network: in ``channels_last``.
        """
        self.weights = [p for p in network.parameters() if p.ndim > 1 and min(p.shape[:2]) >= LEAST_CHANNELS]
        self.matrices = [nn.Parameter(as_matrix(p.detach())) for p in self.weights]
        copied = [p for p, m in zip(self.weights, self.matrices, strict=True) if p.data_ptr() != m.data_ptr()]
        if copied:
            raise ValueError("Muon takes networks in channels_last memory format only")
        self.muon = torch.optim.Muon(self.matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
        taken = {id(p) for p in self.weights}
        rest = parameter_groups((p for p in network.parameters() if id(p) not in taken), weight_decay)
        self.adamw = torch.optim.AdamW(rest, learning_rate)
        super().__init__(network.parameters(), {})
        self._share_groups()

    def _share_groups(self) -> None:
        """A schedule that sets the rate of a group of this optimizer sets it in the one that takes the step."""
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad)
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights:
            weight.grad = None
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self._share_groups()
