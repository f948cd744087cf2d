"""The reference face that poses refer to: see README.md beside this file for provenance, frame and unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from img2pose_edge import geometry


@dataclass(frozen=True)
class ReferenceFace:
    """Arrays in the face frame of ``img2pose_edge.geometry``, in face units.

    Attributes:
        points68: (68, 3) float32, iBUG 68-point order.
        points5: (5, 3) float32, image-left eye, image-right eye, nose tip, image-left and -right mouth corner.
        detector_points5: (5, 3) float32, the same as detectors (RetinaFace, SCRFD, YuNet) mark them.
        ellipsoid_center, ellipsoid_axes: (3,) float32, the ellipsoid whose projection bounds a face's box.
        vertices: (468, 3) float32, dense mesh.
        triangles: (898, 3) int32, indices into ``vertices``.
    """

    points68: np.ndarray
    points5: np.ndarray
    detector_points5: np.ndarray
    ellipsoid_center: np.ndarray
    ellipsoid_axes: np.ndarray
    vertices: np.ndarray
    triangles: np.ndarray


MIRROR_5 = np.array([1, 0, 2, 4, 3])
"""Which of five points is which in the mirror."""


def five_points(points68: np.ndarray) -> np.ndarray:
    """(..., 68, k) iBUG landmarks to (..., 5, k): middles of the eyes, nose tip, mouth corners."""
    eyes = [points68[..., first : first + 6, :].mean(-2) for first in (36, 42)]
    return np.stack([*eyes, *(points68[..., i, :] for i in (30, 48, 54))], axis=-2)


@cache
def load_reference() -> ReferenceFace:
    """The bundled reference face (read once; its arrays are read-only)."""
    with (
        resources.as_file(resources.files(__name__) / "reference_face.npz") as path,
        np.load(path) as arrays,
    ):
        loaded = {name: arrays[name] for name in arrays.files}
    for array in loaded.values():
        array.setflags(write=False)
    return ReferenceFace(**loaded)


@cache
def _ellipsoid() -> np.ndarray:
    reference = load_reference()
    return geometry.ellipsoid(reference.ellipsoid_center, reference.ellipsoid_axes)


def project_face_box(
    rotation: geometry.Array, translation: geometry.Array, intrinsics: geometry.Array
) -> geometry.Array:
    """(..., 4) boxes around faces, numpy or torch: the projection of the reference face's ellipsoid.

    Arguments as in ``geometry.project``.
    """
    return geometry.project_ellipsoid_box(geometry.like(_ellipsoid(), rotation), rotation, translation, intrinsics)


@cache
def _ellipsoid_columns() -> tuple[np.ndarray, np.ndarray]:
    """(3, 1) centre and (3, 1) squared semi-axes of the reference face's ellipsoid, float64."""
    reference = load_reference()
    center, axes = (v.astype(float)[:, None] for v in (reference.ellipsoid_center, reference.ellipsoid_axes))
    return center, axes * axes


def distant_face_box(center: np.ndarray, size: np.ndarray, local_rotation: np.ndarray) -> np.ndarray:
    """(N, 4) boxes around faces as if they were far away, pixels: :func:`project_face_box` without perspective, in a
    third of its time.

    Arguments as in ``geometry.local_to_camera``, (N, 2), (N,) and (N, 3, 3).
    """
    middle, squared = _ellipsoid_columns()
    across = local_rotation[:, :2]
    size = size[:, None]
    center = center + size * (across @ middle)[..., 0]
    half = size * np.sqrt((across * across) @ squared)[..., 0]
    return np.concatenate([center - half, center + half], axis=1)
