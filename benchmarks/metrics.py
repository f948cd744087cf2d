"""Detection and pose metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from img2pose_edge.nms import pairwise_iou


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image: (N, 4) boxes x1, y1, x2, y2 and (N,) scores, best first."""

    boxes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class GroundTruth:
    """(F, 4) annotated boxes of one image; (F,) bool which of them count, the rest being ignored."""

    boxes: np.ndarray
    counts: np.ndarray


def normalize_scores(found: Sequence[Detections]) -> list[Detections]:
    """Scores of all images together, stretched to [0, 1] (WIDER FACE's evaluation code does)."""
    scores = np.concatenate([d.scores for d in found]) if found else np.empty(0)
    if len(scores) == 0:
        return list(found)
    low, span = scores.min(), max(scores.max() - scores.min(), 1e-12)
    return [Detections(d.boxes, (d.scores - low) / span) for d in found]


def wider_average_precision(
    found: Sequence[Detections], truth: Sequence[GroundTruth], iou: float = 0.5, thresholds: int = 1000
) -> float:
    """Average precision by WIDER FACE's official protocol (Yang et al., CVPR 2016; its ``eval_tools``).

    In each image detections, best first, claim the annotated box they overlap most, if by at least
    ``iou``. A detection on an ignored box counts neither way; a second one on a claimed box counts as
    a proposal but not as a find. What is found in an image without any annotated box counts as proposals, where
    the official code leaves such images out. Precision and recall are read at ``thresholds`` scores between 0 and
    1; precision is made monotone and integrated over recall (PASCAL VOC 2010).

    Args:
        found: per image, scores normalized over the set (:func:`normalize_scores`).
        truth: per image, same order.
    """
    steps = 1 - (np.arange(thresholds) + 1) / thresholds
    proposals, hits = np.zeros(thresholds), np.zeros(thresholds)
    for detections, faces in zip(found, truth, strict=True):
        order = np.argsort(-detections.scores, kind="stable")
        scores, boxes = detections.scores[order], detections.boxes[order]
        proposal, hit = np.ones(len(boxes), bool), np.zeros(len(boxes), bool)
        if len(boxes) and len(faces.boxes):
            overlap = pairwise_iou(boxes, faces.boxes, extra=1.0)
            best = overlap.argmax(1)
            matched, counted = overlap.max(1) >= iou, faces.counts[best]
            proposal = ~matched | counted
            finds = np.flatnonzero(matched & counted)
            hit[finds[np.unique(best[finds], return_index=True)[1]]] = True  # the first on each face
        # Detections of at least each threshold are the first k of the sorted ones.
        k = np.searchsorted(-scores, -steps, side="right")
        proposals += np.concatenate([[0], np.cumsum(proposal)])[k]
        hits += np.concatenate([[0], np.cumsum(hit)])[k]
    total = sum(int(t.counts.sum()) for t in truth)
    if total == 0:
        raise ValueError("average precision of a set without a face that counts is undefined")
    precision = hits / np.maximum(proposals, 1)
    recall = np.concatenate([[0], hits / total, [1]])
    precision = np.concatenate([[0], precision, [0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    rises = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[rises + 1] - recall[rises]) * precision[rises + 1]).sum())


def angle_errors(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(..., 3) absolute differences of pitch, yaw, roll in degrees, the short way round."""
    return np.abs((predicted - target + 180) % 360 - 180)
