"""Official img2pose checkpoints to ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from img2pose_edge.training.checkpoint import read_torch_file, save_checkpoint
from img2pose_edge.training.networks import DEPTHS, build_network

OFFICIAL_DATA = "as the official img2pose checkpoint it was converted from (WIDER FACE)"
OFFICIAL_LICENCE = "CC BY-NC 4.0, as the official img2pose checkpoint it was converted from"


def read_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A float tensor of this shape from a ``.npy`` file.

    Raises:
        FileNotFoundError, ValueError: if it is missing, no plain array, of another shape or not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a plain .npy array: {error}") from error
    if not isinstance(array, np.ndarray):  # an archive of some
        raise ValueError(f"{path} is not a plain .npy array")
    if array.shape != shape or not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise ValueError(f"{path} must hold finite numbers of shape {shape}, got {array.dtype} {array.shape}")
    return torch.tensor(array, dtype=torch.float32)


def convert_checkpoint(
    source: Path, out: Path, pose_mean: Path, pose_std: Path, points68: Path, depth: int = 18
) -> Path:
    """Write an official checkpoint (``fpn_model`` layout, with or without ``module.``) as one of ours.

    Args:
        source: ``img2pose_v1.pth`` or one trained by the original code; read without running code in it.
        out: checkpoint to write; it predicts what the original code predicts.
        pose_mean, pose_std: the ``.npy`` files that came with it, (6,).
        points68: ``reference_3d_68_points_trans.npy`` of the original, (68, 3).
        depth: of its ResNet: 18, 50 or 101.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged, or the checkpoint is of another architecture (every key is named).
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {DEPTHS}, got {depth}")
    state = read_torch_file(source)
    if not isinstance(state, dict) or not isinstance(state.get("fpn_model"), dict):
        raise ValueError(f"{source} is not an official img2pose checkpoint: it lacks 'fpn_model'")
    weights = {name.removeprefix("module."): value for name, value in state["fpn_model"].items()}
    weights |= {
        "pose_mean": read_array(pose_mean, (6,)),
        "pose_std": read_array(pose_std, (6,)),
        "points": read_array(points68, (68, 3)),
    }
    name = f"img2pose-{depth}"
    network = build_network(name)
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes that differ, all of them in the message
        raise ValueError(f"{source} does not fit {name}: {error}") from error
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit {name} ({len(network.state_dict())} tensors): "
            f"missing {', '.join(missing) or 'none'}; unexpected {', '.join(unexpected) or 'none'}"
        )
    known = {"data": OFFICIAL_DATA, "licence": OFFICIAL_LICENCE}  # so that what is trained on from it says so, too
    save_checkpoint({"network": name, "weights": network.state_dict(), **known}, out)
    return out
