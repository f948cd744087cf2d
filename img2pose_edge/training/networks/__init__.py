"""The networks by name."""

from __future__ import annotations

from torch import nn

from img2pose_edge.training.networks.edge import CONFIGS, EdgeNet

DEPTHS = (18, 50, 101)
FULL = [f"{family}-{depth}" for family in ("full", "img2pose") for depth in DEPTHS]
"""``full-…`` is img2pose's network with our pose convention; ``img2pose-…`` keeps the official checkpoints'."""


def build_network(name: str) -> nn.Module:
    """An untrained network: ``EdgeNet`` or ``FullNet``.

    Raises:
        ValueError: if there is no network of this name.
        ImportError: if it needs torchvision, which is not installed.
    """
    if name in CONFIGS:
        return EdgeNet(CONFIGS[name])
    if name not in FULL:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join([*CONFIGS, *FULL])}")
    from img2pose_edge.training.networks.full import FullNet

    family, depth = name.split("-")
    return FullNet(int(depth), official=family == "img2pose")
