"""Network outputs to local poses: of the cells, or the proposals, that hold a face."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from img2pose_edge import geometry, published

Array = Any

SIZE_UNIT = 2.0
"""Apparent size, in strides per face unit, that log size 0 means."""


MOST_LOG_SIZE = 4.0
"""Of a log size, either way: more is noise of an untrained network's."""
NEUTRAL_SIZE = 20.0
"""Apparent size, pixels of the network's image per face unit, at which a score stays as it is: a face about 30 pixels
across."""
UNSURE = 0.5
"""Scores below it are weighed: see :func:`weigh_unsure`."""
AGREEING_IOU, AGREEING_SHARE = 0.6, 0.5
"""Cells agree with a face if their boxes overlap its own by that much, and have at least that share of its score."""
ENOUGH_CELLS = 8
"""Agreeing cells, the face's own among them, from which on a face loses nothing for their number."""
PROFILE_GAIN = 0.2
"""What the logit of an unsure face gains with each radian of yaw: profiles are harder to be sure of."""
LARGE_SIZE, LARGE_LOSS = 40.0, 0.4
"""Apparent size, pixels of the network's image per face unit (a face about 60 pixels across), from which on the logit
of an unsure face loses that much with each doubling: large faces are seldom unsure."""


def cells_to_local(maps: Array, cells: Array, strides: Array) -> tuple[Array, Array, Array]:
    """Raw outputs of cells to local poses (numpy or torch).

    Args:
        maps: (N, 9) centre offset (du, dv) in strides, log apparent size, rotation in 6D.
        cells: (N, 2) column and row of each cell in its map.
        strides: (N,) pixels per cell.

    Returns:
        centre (N, 2) in pixels, apparent size (N,) in pixels per face unit, local rotation (N, 3, 3).
    """
    xp = geometry.namespace(maps)
    center = (cells + 0.5 + maps[:, :2]) * strides[:, None]
    size = strides * (SIZE_UNIT * xp.exp(maps[:, 2].clip(-MOST_LOG_SIZE, MOST_LOG_SIZE)))
    return center, size, geometry.sixd_to_matrix(maps[:, 3:])


def candidates(
    scores: Sequence[np.ndarray],
    poses: Sequence[np.ndarray],
    strides: Sequence[int],
    threshold: float,
    score_gain: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Local poses of the cells whose score reaches ``threshold``, best first.

    Args:
        scores: per stride, (1, 1, H/s, W/s) logits.
        poses: per stride, (1, 9, H/s, W/s).
        strides: pixels per cell.
        threshold: probability.
        score_gain: what a logit gains with each doubling of the face's size beyond :data:`NEUTRAL_SIZE`, and loses
            below; 0 or more.

    Returns:
        scores (N,) as probabilities, and centre, size, local rotation as :func:`cells_to_local`.
    """
    # A float of Python's: next to a number of numpy's, float32 maps would be compared as float64.
    logit = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else math.copysign(math.inf, threshold - 0.5)
    per_log = score_gain / math.log(2)
    levels, count = [], 0
    for score, pose, stride in zip(scores, poses, strides, strict=True):
        gain = score_gain * math.log2(stride * SIZE_UNIT / NEUTRAL_SIZE)
        flat = score.reshape(-1)
        kept = (flat >= logit - gain - MOST_LOG_SIZE * per_log).nonzero()[0]
        if len(kept):
            levels.append((flat[kept], pose[0], score.shape[-1], kept, stride, gain))
            count += len(kept)
    # Behind a network's run every operation of numpy's that is not in the caches takes five times as long: few kinds,
    # once for all levels.
    rows = np.empty((13, count))  # logit, column, row, stride, pose
    end = 0
    for score, pose, width, kept, stride, gain in levels:
        part = rows[:, end : end + len(kept)]
        y, x = np.divmod(kept, width)
        part[0], part[1], part[2], part[3] = score, x, y, stride
        part[4:] = pose[:, y, x]  # in memory, channels may lie first or last
        part[0] += gain
        end += len(kept)
    if score_gain:
        rows[0] += np.minimum(np.maximum(rows[6], -MOST_LOG_SIZE), MOST_LOG_SIZE) * per_log
    reached = (rows[0] >= logit).nonzero()[0]
    if not len(reached):
        return np.empty(0), np.empty((0, 2)), np.empty(0), np.empty((0, 3, 3))
    found = rows[:, reached]
    found = found[:, (-found[0]).argsort(kind="stable")]
    return 1 / (1 + np.exp(-found[0])), *cells_to_local(found[4:].T, found[1:3].T, found[3])


def weigh_unsure(
    scores: np.ndarray,
    kept: np.ndarray,
    overlap: np.ndarray,
    size: np.ndarray,
    local: np.ndarray,
    support_gain: float,
) -> np.ndarray:
    """Scores of faces, those below :data:`UNSURE` weighed by what else tells faces from what is none: how many cells
    agree (what only one or two take for a face seldom is one), yaw, and size.

    Args:
        scores: (N,) of all cells, from :func:`least_agreeing` on.
        kept: (K,) indices of the faces' own cells.
        overlap: (K, N) intersection over union of the faces' boxes and the cells'.
        size: (K,) apparent sizes, pixels of the network's image per face unit.
        local: (K, 3, 3) local rotations.
        support_gain: what a logit loses with each halving of the agreeing cells below :data:`ENOUGH_CELLS`; 0 or more.

    Returns:
        (K,), none raised to :data:`UNSURE`.
    """
    own = scores[kept]
    agree = (overlap >= AGREEING_IOU) & (scores >= AGREEING_SHARE * own[:, None])
    agree[np.arange(len(kept)), kept] = True
    lost = LARGE_LOSS * np.log2(np.maximum(size / LARGE_SIZE, 1))
    lost -= support_gain * np.log2(np.minimum(agree.sum(1) / ENOUGH_CELLS, 1))
    lost -= PROFILE_GAIN * np.radians(np.abs(geometry.matrix_to_angles(local)[:, 1]))
    weighed = own / (own + (1 - own) * np.exp(lost))
    return np.where(own < UNSURE, np.minimum(weighed, np.nextafter(UNSURE, 0)), own)


def least_agreeing(threshold: float, support_gain: float) -> float:
    """Least score of cells that :func:`weigh_unsure` asks about faces that it gives at least ``threshold``, a profile
    among them that had less."""
    if not support_gain or threshold >= UNSURE:
        return threshold
    odds = threshold / (1 - threshold) * math.exp(-PROFILE_GAIN * math.pi / 2)
    return AGREEING_SHARE * odds / (1 + odds)


def proposal_candidates(
    scores: np.ndarray,
    poses: np.ndarray,
    boxes: np.ndarray,
    threshold: float,
    size: tuple[int, int],
    points68: np.ndarray | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray | None]:
    """Local poses of the full model's proposals whose score reaches ``threshold``, best first.

    Args:
        scores: (P,) face probabilities.
        poses: (P, 6) in the proposals' cameras (``geometry.box_intrinsics``).
        boxes: (P, 4) proposals, pixels of the network's image.
        threshold: probability.
        size: width and height of that image without padding; proposals beyond it are left out.
        points68: (68, 3) reference points of an official checkpoint, whose conventions are then followed
            (``published``).

    Returns:
        scores (N,), centre, size, local rotation as :func:`candidates`; and the faces' boxes (N, 4) by the
        official rule, or ``None`` where our own follow from the pose.
    """
    kept = np.flatnonzero((scores >= threshold) & (np.clip(boxes[:, 2:], 0, size) - boxes[:, :2] >= 1e-2).all(1))
    order = kept[np.argsort(-scores[kept], kind="stable")]
    probability, pose, box = (v[order].astype(np.float64) for v in (scores, poses, boxes))
    if points68 is None:
        camera = geometry.box_intrinsics(box)
        corner, drawn = box[:, :2], None
    else:
        camera = published.image_camera(*size)
        pose = published.box_to_image_pose(pose, box, camera)
        drawn = published.project_boxes(pose, points68, camera, *size)
        pose, corner = published.to_our_face(pose, points68), np.zeros(2)
    center, apparent, local = geometry.camera_to_local(*geometry.decompose_pose(pose), camera)
    front = pose[:, 5] > 0  # what is behind the camera is no face
    found = probability[front], (center + corner)[front], apparent[front], local[front]
    return found, None if drawn is None else drawn[front]
