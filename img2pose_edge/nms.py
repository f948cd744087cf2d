"""Overlap of boxes, and non-maximum suppression by it."""

from __future__ import annotations

import cv2
import numpy as np


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Greedy suppression: a box goes if a better one overlaps it by more than ``iou``.

    Args:
        boxes: (N, 4) x1, y1, x2, y2, pixels.
        scores: (N,), positive: boxes of others go.
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
    left, top, right, bottom = a.T[:, :, None]
    x1, y1, x2, y2 = np.ascontiguousarray(b.T)
    if extra:
        right, bottom, x2, y2 = right + extra, bottom + extra, x2 + extra, y2 + extra
    # In place, and what can be done to a row is: of many boxes, memory for results in between takes longer than the
    # arithmetic.
    width = np.minimum(right, x2)
    width -= np.maximum(left, x1)
    overlap = np.minimum(bottom, y2)
    overlap -= np.maximum(top, y1)
    np.maximum(width, 0, out=width)
    np.maximum(overlap, 0, out=overlap)
    overlap *= width
    union = (right - left) * (bottom - top) + np.maximum((x2 - x1) * (y2 - y1), 1e-12)
    union -= overlap
    return overlap / union
