"""The networks by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from img2pose_edge.training.checkpoint import load_checkpoint
from img2pose_edge.training.networks.edge import CONFIGS, EdgeConfig, EdgeNet

DEPTHS = (18, 50, 101)
FULL = [f"{family}-{depth}" for family in ("full", "img2pose") for depth in DEPTHS]
"""``full-…`` is img2pose's network with our pose convention; ``img2pose-…`` keeps the official checkpoints'."""


def build_network(name: str, config: dict[str, Any] | None = None) -> nn.Module:
    """An untrained network: ``EdgeNet`` or ``FullNet``.

    Args:
        name: kind.
        config: shape of an edge network (``EdgeConfig``) that a checkpoint tells; default the present one of its kind.

    Raises:
        ValueError: if there is no network of this name.
        ImportError: if it needs torchvision, which is not installed.
    """
    if name in CONFIGS:
        return EdgeNet(EdgeConfig(**config) if config else CONFIGS[name])
    if name not in FULL:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join([*CONFIGS, *FULL])}")
    from img2pose_edge.training.networks.full import FullNet

    family, depth = name.split("-")
    return FullNet(int(depth), official=family == "img2pose")


def load_network(checkpoint: Path) -> tuple[dict[str, Any], nn.Module]:
    """A checkpoint of ours and the network it holds, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: if it is missing, not ours, of other weights, or quantized.
    """
    state = load_checkpoint(checkpoint)
    if state.get("int8"):
        raise ValueError(f"{checkpoint} is quantized: it can only be exported, with --precision int8")
    try:
        network = build_network(state["network"], state.get("config"))
        network.load_state_dict(state["weights"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{checkpoint} does not hold the weights of this version's {state['network']}: {error}"
        ) from error
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise ValueError(f"{checkpoint} holds weights that are not finite: its training failed")
    return state, network.eval()
