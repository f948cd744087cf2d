"""Overlap of boxes, and non-maximum suppression by it."""

from __future__ import annotations

import cv2
import numpy as np


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Greedy suppression: a box goes if a better one overlaps it by more than ``iou``.

    Args:
        boxes: (N, 4) x1, y1, x2, y2, pixels.
        scores: (N,).
        iou: intersection over union, 0 to 1.

    Returns:
        (K,) indices of the boxes that stay, best first.
    """
    if len(boxes) == 0:
        return np.empty(0, np.intp)
    corner_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxes(corner_size, scores, 0.0, iou)  # type: ignore[arg-type]  # takes arrays, much faster
    return np.asarray(kept, np.intp).ravel()


def pairwise_iou(a: np.ndarray, b: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes.

    ``extra`` is added to every width and height: 1 for WIDER FACE's protocol, whose boxes include
    their last pixel.
    """
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    size = np.maximum(high - low + extra, 0)
    overlap = size[..., 0] * size[..., 1]
    area_a, area_b = ((x[:, 2] - x[:, 0] + extra) * (x[:, 3] - x[:, 1] + extra) for x in (a, b))
    return overlap / np.maximum(area_a[:, None] + area_b - overlap, 1e-12)
