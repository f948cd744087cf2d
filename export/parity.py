"""Do two exported models, or two engines, find the same faces with the same poses?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from img2pose_edge.benchmarks.metrics import pairwise_iou

from img2pose_edge import geometry
from img2pose_edge.detector import PoseDetector
from img2pose_edge.face import Face

SCORE, BOX, ANGLE = 0.01, 1.0, 0.5
"""What may differ: probability, pixels at a longest side of 640, degrees."""
MARGIN = 0.05
"""A face whose score is this near to the threshold may be found by one and missed by the other."""
SAME_IOU = 0.5
PIXELS = 640


@dataclass(frozen=True)
class Parity:
    """Differences over all photographs: faces found by both, by one alone, and the largest of each kind."""

    faces: int
    alone: int
    score: float
    box: float
    angle: float

    @property
    def holds(self) -> bool:
        """Whether the same faces are found and nothing differs by more than it may."""
        return self.alone == 0 and self.score <= SCORE and self.box <= BOX and self.angle <= ANGLE


def match(first: list[Face], second: list[Face]) -> list[tuple[int, int]]:
    """Pairs of faces that overlap each other most, by at least ``SAME_IOU``."""
    if not first or not second:
        return []
    overlap = pairwise_iou(np.array([f.box for f in first]), np.array([f.box for f in second]))
    back = overlap.argmax(0)
    return [(i, j) for i, j in enumerate(overlap.argmax(1)) if back[j] == i and overlap[i, j] >= SAME_IOU]


def compare(reference: PoseDetector, other: PoseDetector, images: Iterable[np.ndarray]) -> Parity:
    """Compare what two detectors find.

    Args:
        reference, other: detectors; faces near ``reference``'s score threshold (:data:`MARGIN`) may be missed.
        images: (H, W, 3) uint8 BGR.
    """
    pairs: list[tuple[Face, Face, float]] = []
    alone = 0
    for image in images:
        faces = reference.detect(image), other.detect(image)
        matched = match(*faces)
        pairs += [(faces[0][i], faces[1][j], PIXELS / max(image.shape)) for i, j in matched]
        for side, found in enumerate(faces):
            single = set(range(len(found))) - {pair[side] for pair in matched}
            alone += sum(found[k].score > reference.score_threshold + MARGIN for k in single)
    if not pairs:
        return Parity(0, alone, 0.0, 0.0, 0.0)
    turned = geometry.geodesic_distance(
        np.stack([a.local_rotation for a, _, _ in pairs]), np.stack([b.local_rotation for _, b, _ in pairs])
    )
    return Parity(
        len(pairs),
        alone,
        max(abs(a.score - b.score) for a, b, _ in pairs),
        max(float(np.abs(a.box - b.box).max() * scale) for a, b, scale in pairs),
        float(np.degrees(turned.max())),
    )
