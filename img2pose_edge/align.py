"""Face crops as face recognition takes them: aligned to the ArcFace template, or upright around the box."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from img2pose_edge import geometry
from img2pose_edge.face import Face, check_type
from img2pose_edge.pose_references import load_reference, project_face_box
from img2pose_edge.preprocess import load_image

TEMPLATE_SIZE = 112
MOST = 32767
"""Pixels of a side that OpenCV warps."""
FINEST = 8192
"""Pixels of a side of the crop before it is averaged down: 200 MB."""
TEMPLATE = np.array(
    [[38.7946, 52.1963], [74.0318, 52.0014], [56.5252, 72.2366], [42.0493, 92.8655], [71.2299, 92.7041]]
)
"""Where InsightFace puts eyes, nose tip and mouth corners in ArcFace's 112 x 112 crops (Deng et al., CVPR 2019); half a
pixel more than there, where it is counted from the middle of the first pixel."""


def align_face(image: Any, face: Face, size: int = TEMPLATE_SIZE, margin: float = 0.0) -> np.ndarray:
    """The face as ArcFace and its kin take it: turned, scaled and moved so that its points meet the template's.

    The five points are those that detectors mark, projected from the pose; no landmark model runs.

    Args:
        image: see :func:`img2pose_edge.preprocess.load_image`; the one that the face was found in.
        face: its pose must refer to this image's pixels.
        size: of the square crop, pixels; ArcFace's is 112.
        margin: more of the picture on every side, as a share of the template's side (0.5: twice as wide).

    Returns:
        (size, size, 3) uint8 BGR, black beyond the image.

    Raises:
        ValueError: naming the size, margin or pose that is wrong, and what ``load_image`` raises.
    """
    return _warp(load_image(image), alignment(face, size, margin), size)


def alignment(face: Face, size: int = TEMPLATE_SIZE, margin: float = 0.0) -> np.ndarray:
    """(2, 3) similarity from image pixels to those of :func:`align_face`'s crop, least squares over the five points.

    Pixels are counted from the corner of the top-left one (``geometry.py``); ``cv2.warpAffine`` counts from its middle.
    """
    _check(face, size, margin)
    points = load_reference().detector_points5.astype(float)
    seen = geometry.project(points, face.rotation, face.translation, face.intrinsics)
    target = (TEMPLATE / TEMPLATE_SIZE + margin) * (size / (1 + 2 * margin))
    return similarity(seen, target)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3) turn, scale and shift, no mirroring, that best moves (N, 2) points onto (N, 2) others, least squares.

    As complex numbers it is ``target = a source + b``, a linear regression (Umeyama, PAMI 1991, in the plane).
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    centered = (z - z.mean()).conj()
    a = centered @ w / (centered @ (z - z.mean()))
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def upright_face(image: Any, face: Face, size: int = TEMPLATE_SIZE, margin: float = 0.0) -> np.ndarray:
    """The square around the face's box with the roll taken out: the top of the head points up.

    The roll is that of the face's up direction as the picture shows it, which stays meaningful on profiles, where
    ``Face.roll`` and pitch trade places.

    Args:
        image: as in :func:`align_face`.
        face: as in :func:`align_face`.
        size: as in :func:`align_face`.
        margin: more of the picture on every side, as a share of the upright box's longer side.

    Returns:
        (size, size, 3) uint8 BGR, black beyond the image.

    Raises:
        ValueError: as :func:`align_face`.
    """
    _check(face, size, margin)
    local = face.local_rotation
    roll = np.arctan2(-local[0, 1], local[1, 1])
    center, apparent, _ = geometry.camera_to_local(face.rotation, face.translation, face.intrinsics)
    upright = geometry.roll_matrix(np.degrees(-roll)) @ local
    box = project_face_box(*geometry.local_to_camera(center, apparent, upright, face.intrinsics), face.intrinsics)
    if not np.isfinite(box).all():  # turned upright it would reach around the camera
        box = face.box
    scale = size / (max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * margin))
    turn = scale * np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    middle = (face.box[:2] + face.box[2:]) / 2  # an outline's box turns about its middle
    return _warp(load_image(image), np.column_stack([turn, size / 2 - turn @ middle]), size)


def _check(face: Face, size: int, margin: float) -> None:
    check_type([face])
    if not np.isfinite(face.pose).all():
        raise ValueError(f"the face has no finite pose: {face.pose}")
    if not isinstance(size, (int, np.integer)) or not 0 < size <= MOST:
        raise ValueError(f"size of a crop must be an integer from 1 to {MOST}, got {size!r}")
    if not isinstance(margin, (int, float, np.number)) or not 0 <= margin < np.inf:
        raise ValueError(f"margin must be at least 0, got {margin!r}")


def _warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Crop by a similarity between corner-counted pixels. Large faces are averaged down, else they would alias."""
    scale = np.hypot(matrix[0, 0], matrix[1, 0])
    if max(image.shape[:2]) >= MOST:  # OpenCV 4 warps none that large: cut out what the crop shows of it
        corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) - matrix[:, 2]
        corners = corners @ np.linalg.inv(matrix[:, :2]).T
        low, high = np.floor(corners.min(0)) - 2, np.ceil(corners.max(0)) + 2
        height, width = image.shape[:2]
        left, top = np.clip(low, 0, [width - 1, height - 1]).astype(int)
        right, bottom = np.clip(high, [left + 1, top + 1], [width, height]).astype(int)
        image = image[top:bottom, left:right]
        matrix = np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ [left, top]])
    factor = max(1, min(int(1 / max(scale, 1e-9)), MOST // size))
    if scale < 1 and factor * size > min(2 * max(image.shape[:2]), FINEST):  # mostly beyond the image, or huge
        smaller = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        matrix = matrix * [*(np.array(image.shape[1::-1]) / smaller), 1]
        image, factor = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), 1
    fine = matrix * factor
    fine[:, 2] += fine[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the pixel's middle
    crop = cv2.warpAffine(image, fine, (size * factor, size * factor), flags=cv2.INTER_LINEAR)
    return crop if factor == 1 else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
