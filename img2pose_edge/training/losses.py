"""What the networks learn from: score, projected box, rotation and calibration points."""

from __future__ import annotations

import torch
from torch import Tensor


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """(P,) intersection over union of (P, 4) boxes, pair by pair."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    return inner / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner + 1e-6)


def eiou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """(P,) EIoU loss of (P, 4) boxes (Zhang et al. 2021, equation 8): overlap, middle, width, height."""
    hull = torch.maximum(predicted[:, 2:], target[:, 2:]) - torch.minimum(predicted[:, :2], target[:, :2])
    middle = ((predicted[:, :2] + predicted[:, 2:]) - (target[:, :2] + target[:, 2:])) / 2
    extent = (predicted[:, 2:] - predicted[:, :2]) - (target[:, 2:] - target[:, :2])
    distance = (middle**2).sum(1) / ((hull**2).sum(1) + 1e-6)
    return 1 - box_iou(predicted, target) + distance + (extent**2 / (hull**2 + 1e-6)).sum(1)


def score_target(iou: Tensor) -> Tensor:
    """What a cell's score learns: the geometric mean of 1, for being a face, and its box's IoU.

    The IoU itself would rank the box of a small face, which is never better than about 0.6, below a false
    find of good shape.
    """
    return iou.sqrt()


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Element-wise quality focal loss (Li et al., NeurIPS 2020, equation 3): cross-entropy towards the
    overlap ``quality`` in [0, 1], weighted by how far the score is from it."""
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return entropy * (logits.sigmoid() - quality).abs() ** beta
