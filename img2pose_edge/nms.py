"""Non-maximum suppression on projected boxes."""

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
