"""Pictures of results: boxes, axes, and the dense mesh rendered over each face."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from img2pose_edge import geometry
from img2pose_edge.face import Face, check_type
from img2pose_edge.pose_references import load_reference
from img2pose_edge.preprocess import load_image

BOX_COLOR = (80, 220, 60)
AXIS_COLORS = ((60, 60, 240), (70, 200, 70), (240, 130, 40))  # x red, y green, z blue (BGR)
MASK_COLOR = np.array([240.0, 215.0, 180.0])
LIGHT = np.array([-0.35, -0.5, -0.79])
SUBPIXEL_BITS = 4
FARTHEST = 30000
"""Pixels that OpenCV draws to."""


def draw_faces(
    image: Any,
    faces: Iterable[Face],
    *,
    mask: bool = True,
    boxes: bool = True,
    axes: bool = True,
    opacity: float = 0.7,
) -> np.ndarray:
    """A copy of an image with its faces drawn, far ones first.

    Args:
        image: see :func:`img2pose_edge.preprocess.load_image`.
        faces: what was found in it.
        mask: render the dense mesh over each face.
        boxes: draw box and score.
        axes: draw the face frame at the nose: x red to image-right of a frontal face, y green down,
            z blue out of the face (the frame's -z).
        opacity: of the mask, 0 to 1.

    Raises:
        ValueError: if the opacity is wrong, and what ``load_image`` raises.
        TypeError: naming what is not a face.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1, got {opacity!r}")
    faces = list(faces)
    check_type(faces)
    picture = load_image(image).copy()
    ordered = sorted(faces, key=lambda f: -f.translation[2])
    if mask:
        for face in ordered:
            draw_mask(picture, face, opacity)
    thickness = max(1, round(min(picture.shape[:2]) / 400))
    for face in ordered:
        if boxes:
            draw_box(picture, face, thickness)
        if axes:
            draw_axes(picture, face, thickness + 1)
    return picture


def draw_mask(picture: np.ndarray, face: Face, opacity: float = 0.7) -> None:
    """Render the dense mesh of one face into ``picture``, smoothly shaded, its far triangles first."""
    reference = load_reference()
    vertices = reference.vertices.astype(float)
    camera = vertices @ face.rotation.T + face.translation
    if (camera[:, 2] <= 0).any():
        return
    pixels = geometry.project(vertices, face.rotation, face.translation, face.intrinsics)
    low = np.floor(pixels.min(0)).astype(int) - 1
    high = np.ceil(pixels.max(0)).astype(int) + 2
    low, high = np.maximum(low, 0), np.minimum(high, [picture.shape[1], picture.shape[0]])
    if (high <= low).any():
        return
    triangles = reference.triangles
    corners = camera[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1), 1e-9)[:, None]
    if (normals * corners.mean(1)).sum(1).mean() > 0:  # either winding: the mesh faces the camera
        normals = -normals
    # Normals averaged over neighbours shade smoothly; a triangle is lit by the mean of its corners'.
    smooth = np.zeros_like(vertices)
    np.add.at(smooth, triangles.ravel(), np.repeat(normals, 3, axis=0))
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1), 1e-9)[:, None]
    light = np.clip((smooth[triangles].mean(1) @ LIGHT), 0, 1)
    shine = 0.6 * light**12
    colors = np.clip(MASK_COLOR * (0.2 + 0.8 * light[:, None]) + 90 * shine[:, None], 0, 255)

    visible = (normals * corners.mean(1)).sum(1) < 0
    order = np.argsort(-corners[:, :, 2].mean(1))
    region = picture[low[1] : high[1], low[0] : high[0]]
    layer, coverage = region.copy(), np.zeros(region.shape[:2], np.uint8)
    fixed = np.round((pixels - low) * 2**SUBPIXEL_BITS).astype(np.int32)[triangles]
    for i in order[visible[order]]:
        cv2.fillConvexPoly(layer, fixed[i], colors[i].tolist(), cv2.LINE_8, SUBPIXEL_BITS)
        cv2.fillConvexPoly(coverage, fixed[i], 255, cv2.LINE_8, SUBPIXEL_BITS)
    alpha = cv2.GaussianBlur(coverage, (3, 3), 0)[..., None] * (opacity / 255)
    region[:] = (layer * alpha + region * (1 - alpha)).astype(np.uint8)


def draw_box(picture: np.ndarray, face: Face, thickness: int = 1) -> None:
    """Draw a face's projected box with its score above."""
    x1, y1, x2, y2 = (round(float(v)) for v in np.clip(face.box, -FARTHEST, max(FARTHEST, *picture.shape)))
    cv2.rectangle(picture, (x1, y1), (x2, y2), BOX_COLOR, thickness, cv2.LINE_AA)
    scale = min(0.6, max(0.3, (x2 - x1) / 180))
    if x2 - x1 >= 24:
        cv2.putText(
            picture, f"{face.score:.2f}", (x1, y1 - 4), cv2.FONT_HERSHEY_SIMPLEX, scale, BOX_COLOR, 1, cv2.LINE_AA
        )


def draw_axes(picture: np.ndarray, face: Face, thickness: int = 2, length: float = 0.6) -> None:
    """Draw the face frame at the nose tip: x red, y green, z blue (out of the face)."""
    nose = load_reference().points5[2].astype(float)
    tips = nose + length * np.diag([1.0, 1.0, -1.0])
    points = geometry.project(np.vstack([nose, tips]), face.rotation, face.translation, face.intrinsics)
    if not np.isfinite(points).all():
        return
    farthest = max(FARTHEST, *picture.shape)
    origin, *ends = [tuple(int(v) for v in np.clip(p.round(), -FARTHEST, farthest)) for p in points]
    camera_depth = (tips @ face.rotation.T)[:, 2]
    for i in np.argsort(-camera_depth):
        cv2.line(picture, origin, ends[i], AXIS_COLORS[i], thickness, cv2.LINE_AA)
