"""The conventions of img2pose's official checkpoints, where they differ from ours (numpy or torch).

img2pose (Albiero et al., CVPR 2021, section 3.2) converts a pose between a crop's camera and the image's
by homogeneous coordinates. The translation comes out right. The rotation comes from ``K_to^-1 K_from R``,
which is no rotation any more, by the quaternion formula of Markley (2008), which SciPy used until 1.15
(the original pins 1.5.4; with SciPy 1.16 its code gives other poses, see scipy/scipy#22417). It turns the
face by about half of the angle to the optical axis, not all of it. Networks trained with that conversion
predict poses that only it undoes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from img2pose_edge import geometry
from img2pose_edge.pose_references import load_reference

Array = Any

WIDEN, FOREHEAD = 1.1, 0.3
"""Boxes: the projected points' extent times ``WIDEN``, and that share of it again towards the forehead."""


def image_camera(width: int, height: int) -> Any:
    """(3, 3) float64 camera of an image: the principal point is rounded down to a pixel."""
    camera = geometry.default_intrinsics(width, height)
    camera[:2, 2] = width // 2, height // 2
    return camera


def _middle(boxes: Array) -> Array:
    """(N, 2) middles of boxes, half extents rounded down as the original does."""
    return boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]) // 2


def _turn(rotvec: Array, offset: Array) -> Array:
    """Rotation vectors after ``R -> (I + offset e3^T) R``, made a rotation again; ``offset`` is (N, 2)."""
    rotation = geometry.rotvec_to_matrix(rotvec)
    xp = geometry.namespace(rotvec)
    sheared = xp.concatenate([rotation[:, :2] + offset[..., None] * rotation[:, 2:], rotation[:, 2:]], axis=1)
    return geometry.matrix_to_rotvec(sheared)  # by Markley's formula, too


def box_to_image_pose(pose: Array, boxes: Array, camera: Array) -> Array:
    """Poses in proposal boxes' cameras to poses in the image's camera.

    Args:
        pose: (N, 6) in a camera of focal length ``box width + box height`` in the middle of the box.
        boxes: (N, 4) pixels of the image.
        camera: (3, 3) of the image (:func:`image_camera`).

    Returns:
        (N, 6).
    """
    xp = geometry.namespace(pose)
    focal = camera[0, 0]
    extent = (boxes[:, 2:] - boxes[:, :2]).sum(1)
    offset = (_middle(boxes) - camera[:2, 2]) / focal
    depth = pose[:, 5] * focal / extent
    lateral = pose[:, 3:5] + offset * depth[:, None]
    return xp.concatenate([_turn(pose[:, :3], offset), lateral, depth[:, None]], axis=1)


def image_to_box_pose(pose: Array, boxes: Array, camera: Array) -> Array:
    """Inverse of :func:`box_to_image_pose` but for the rotation's projection, as the original trains."""
    xp = geometry.namespace(pose)
    focal = camera[0, 0]
    extent = (boxes[:, 2:] - boxes[:, :2]).sum(1)
    offset = (camera[:2, 2] - _middle(boxes)) / focal
    lateral = pose[:, 3:5] + offset * pose[:, 5:]
    depth = pose[:, 5] * extent / focal
    return xp.concatenate([_turn(pose[:, :3], offset), lateral, depth[:, None]], axis=1)


def project_boxes(pose: Array, points: Array, camera: Array, width: int, height: int) -> Array:
    """Boxes that the original draws around projected faces.

    Args:
        pose: (N, 6) in the image's camera.
        points: (P, 3) reference points.
        camera: (3, 3).
        width, height: of the image, pixels; boxes end there.

    Returns:
        (N, 4) whole pixels.
    """
    xp = geometry.namespace(pose)
    pixels = geometry.project(points, *geometry.decompose_pose(pose), camera)
    low, high = xp.amin(pixels, 1), xp.amax(pixels, 1)
    extent = high - low
    half = xp.trunc(extent * WIDEN) / 2
    middle = (low + high) / 2
    x1, y1, x2, y2 = (e[:, i] for e in (middle - half, middle + half) for i in range(2))
    wide, tall, roll = extent[:, 0] * FOREHEAD, extent[:, 1] * FOREHEAD, pose[:, 2]
    # The third component of the rotation vector stands for the roll: which way is the forehead?
    down = xp.abs(roll) > 2.5
    right, left = ~down & (roll > 1), ~down & (roll < -1)
    up = ~(down | right | left)
    x1, x2 = xp.where(left, x1 - wide, x1), xp.where(right, x2 + wide, x2)
    y1, y2 = xp.where(up, y1 - tall, y1), xp.where(down, y2 + tall, y2)
    low = xp.clip(xp.trunc(xp.stack([x1, y1], axis=1)), 0, None)
    x2, y2 = xp.clip(xp.trunc(x2), None, width), xp.clip(xp.trunc(y2), None, height)
    return xp.concatenate([low, xp.stack([x2, y2], axis=1)], axis=1)


def similarity_to_ours(points: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Rotation (3, 3), scale and shift (3,) that carry our 68 reference points onto ``points`` (68, 3), as close
    as a similarity allows (Umeyama, PAMI 1991)."""
    ours = load_reference().points68.astype(float)
    a, b = ours - ours.mean(0), points - points.mean(0)
    u, spread, v = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ v))])
    turn = (u * signs) @ v
    scale = float((spread * signs).sum() / (a * a).sum())
    return turn, scale, points.mean(0) - scale * turn @ ours.mean(0)


def to_our_face(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Poses of the official reference face to poses of ours, which has another frame, scale and origin.

    Args:
        pose: (N, 6) in a camera.
        points: (68, 3) the official reference.

    Returns:
        (N, 6) in the same camera.
    """
    turn, scale, shift = similarity_to_ours(points)
    rotation, translation = geometry.decompose_pose(pose)
    return geometry.compose_pose(rotation @ turn, (translation + rotation @ shift) / scale)


def to_official_face(pose: Array, points: np.ndarray) -> Array:
    """The inverse of :func:`to_our_face` (numpy or torch)."""
    turn, scale, shift = similarity_to_ours(points)
    rotation, translation = geometry.decompose_pose(pose)
    rotation = rotation @ geometry.like(turn.T, rotation)
    return geometry.compose_pose(rotation, scale * translation - rotation @ geometry.like(shift, rotation))
