"""A face's pose as the 4x4 matrices of OpenCV, OpenGL and three.js, to hang things on it.

All matrices act on column vectors, ``clip = projection @ model_view @ point``. three.js and OpenGL share one frame;
both store columns one after the other: :func:`column_major` gives the 16 numbers of ``Matrix4.fromArray`` and
``glLoadMatrixd``.
"""

from __future__ import annotations

import numpy as np

from img2pose_edge.face import Face, check_type
from img2pose_edge.geometry import FACE_UNIT_MM, check_intrinsics

FRAMES = {"opencv": np.diag([1.0, 1, 1, 1]), "opengl": np.diag([1.0, -1, -1, 1])}
"""From OpenCV's frame (x right, y down, z forward) to each: OpenGL's has y up and z towards the viewer."""
UNITS = {"mm": FACE_UNIT_MM, "face": 1.0}
"""Per face unit."""


def model_view(face: Face, frame: str = "opencv", unit: str = "mm") -> np.ndarray:
    """Matrix that takes points of the face to the camera's frame.

    Args:
        face: its rotation and translation.
        frame: of face *and* camera. ``opencv``: x right, y down, z forward, that is the face frame of ``geometry.py``.
            ``opengl``, for three.js too: x right, y up, z towards the viewer, on a frontal face out of the face; the
            reference face's points are then ``vertices * [1, -1, -1]``.
        unit: of points and translation: ``mm``, or ``face`` for face units.

    Returns:
        (4, 4) float64. A frontal face in the middle of the picture has the identity as its upper left 3x3.

    Raises:
        ValueError: if frame or unit is none of these.
    """
    check_type([face])
    if frame not in FRAMES:
        raise ValueError(f"frame must be {' or '.join(FRAMES)} (three.js: opengl), got {frame!r}")
    if unit not in UNITS:
        raise ValueError(f"unit must be {' or '.join(UNITS)}, got {unit!r}")
    matrix = np.eye(4)
    matrix[:3, :3] = face.rotation
    matrix[:3, 3] = face.translation * UNITS[unit]
    return FRAMES[frame] @ matrix @ FRAMES[frame]


def projection(intrinsics: np.ndarray, width: float, height: float, near: float, far: float) -> np.ndarray:
    """OpenGL's and three.js's projection matrix of a camera, principal point and skew included.

    Args:
        intrinsics: (3, 3), as ``Face.intrinsics``.
        width: of the image in pixels; the picture fills the viewport.
        height: likewise.
        near: least depth that is drawn, in the unit of :func:`model_view`.
        far: greatest depth that is drawn.

    Returns:
        (4, 4) float64 from the ``opengl`` camera frame to clip space, x, y and z from -1 to 1 inside it (in three.js:
        ``camera.projectionMatrix``, and its inverse in ``camera.projectionMatrixInverse``).

    Raises:
        ValueError: if a side is not positive, or not ``0 < near < far < inf``, or the intrinsics are no camera.
    """
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise ValueError(f"width and height of an image must be positive, got {width!r} and {height!r}")
    if not 0 < near < far < np.inf:
        raise ValueError(f"near and far must be depths, 0 < near < far, got {near!r} and {far!r}")
    (fx, skew, cx), (_, fy, cy), _ = check_intrinsics(intrinsics)
    return np.array(
        [
            [2 * fx / width, -2 * skew / width, 1 - 2 * cx / width, 0],
            [0, 2 * fy / height, 2 * cy / height - 1, 0],
            [0, 0, (near + far) / (near - far), 2 * near * far / (near - far)],
            [0, 0, -1, 0],
        ]
    )


def column_major(matrix: np.ndarray) -> list[float]:
    """The 16 numbers of a (4, 4) matrix as ``Matrix4.fromArray`` and ``glLoadMatrixd`` read them."""
    numbers: list[float] = np.asarray(matrix, float).T.ravel().tolist()
    return numbers
