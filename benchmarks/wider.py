"""Detection as img2pose reports it on WIDER FACE: an image pyramid, mirrored too, merged by box voting."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from img2pose_edge.benchmarks.accuracy import Detect, Found

from img2pose_edge.detector import PoseDetector
from img2pose_edge.nms import pairwise_iou

SIZES = (200, 300, 500, 800, 1100, 1400, 1700)
"""Shorter sides, in pixels, at which the image is seen."""
VOTING_IOU = 0.6


def vote_boxes(boxes: np.ndarray, scores: np.ndarray, iou: float = VOTING_IOU) -> tuple[np.ndarray, np.ndarray]:
    """Merge boxes of many passes over an image (Gidaris & Komodakis, ICCV 2015, as in img2pose's evaluation).

    The best box and those that overlap it by at least ``iou`` make a group, then the best of the rest and so on.
    In a group each box weighs its score over the best score times its overlap with the best box.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels; they hold their last pixel.
        scores: (N,), greater than 0.

    Returns:
        (M, 4) weighted mean of each group's boxes, and (M,) weighted sum of its scores (so it may exceed 1), best
        first.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    voted, sums = [], []
    while len(boxes):
        overlap = pairwise_iou(boxes[:1], boxes, extra=1.0)[0]
        overlap[0] = 1.0  # of an empty box, too, which would never leave the loop otherwise
        group = overlap >= iou
        weights = scores[group] / scores[0] * overlap[group]
        voted.append(weights @ boxes[group] / weights.sum())
        sums.append(weights @ scores[group])
        boxes, scores = boxes[~group], scores[~group]
    best = np.argsort(-np.array(sums), kind="stable")
    return np.array(voted).reshape(-1, 4)[best], np.array(sums)[best]


def without_shortest(detector: PoseDetector) -> PoseDetector:
    """A detector whose model sees images at the size that they have, which its own shorter side would change again."""
    manifest = detector.model.manifest
    as_given = copy.copy(detector)
    as_given.model = replace(detector.model, manifest={**manifest, "input": {**manifest["input"], "shortest": 0}})
    return as_given


def multi_scale(detector: PoseDetector, sizes: Sequence[int] = SIZES) -> Detect:
    """Our detector at many sizes, on the image and its mirror image, as the protocols want it.

    Voted boxes have no pose: angles and poses of its faces are None.

    Args:
        sizes: shorter sides, in pixels, to which the image is shrunk or enlarged.
    """
    detector = without_shortest(detector) if detector.model.shortest else detector

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        height, width = image.shape[:2]
        boxes, scores = [], []
        for size in sizes:
            factor = size / min(width, height)
            shape = round(width * factor), round(height * factor)
            resized = cv2.resize(image, shape, interpolation=cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA)
            scale = np.tile([shape[0] / width, shape[1] / height], 2)
            for pixels in (resized, cv2.flip(resized, 1)):
                for face in detector.detect(pixels, input_size=max(shape), score_threshold=threshold):
                    x1, y1, x2, y2 = face.box / scale
                    boxes.append([x1, y1, x2, y2] if pixels is resized else [width - x2, y1, width - x1, y2])
                    scores.append(face.score)
        voted = vote_boxes(np.array(boxes).reshape(-1, 4), np.array(scores))
        return [Found(float(score), box) for box, score in zip(*voted, strict=True)]

    return detect
