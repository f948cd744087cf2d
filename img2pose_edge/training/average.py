"""One network of several that have trained on from the same one (Wortsman et al., "Model soups", ICML 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from img2pose_edge.training.checkpoint import join_origins, run_of
from img2pose_edge.training.networks import load_network


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """The first of some checkpoints, with the mean of the weights of all; without the state of its run, if it has one.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_network`; if they are of networks of several shapes, or one alone.
    """
    if len(paths) < 2:
        raise ValueError(f"an average takes at least two checkpoints, got {len(paths)}")
    states = [load_network(path)[0] for path in paths]
    shapes = [{name: value.shape for name, value in state["weights"].items()} for state in states]
    for path, shape in zip(paths, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"{path} holds a network of another shape than {paths[0]}")
    weights = {
        name: torch.stack([state["weights"][name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0]["weights"].items()
    }
    kept = "network", "config"
    first = {name: states[0][name] for name in kept if name in states[0]}
    runs = [run for state in states for run in state.get("averaged", [run_of(state)])]
    return {**first, **join_origins(states), "averaged": runs, "weights": weights}
