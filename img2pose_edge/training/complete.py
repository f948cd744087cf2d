"""From landmarks to what training needs of a face: box and local angles, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from img2pose_edge import geometry
from img2pose_edge.pose_references import five_points, load_reference, project_face_box

LEVER = 0.4
"""Face units from a face's axis to its landmarks, about: points that are off by ``e`` turn it by ``e / LEVER``."""
FIVE_POINTS_ERROR = 5.0
"""Degrees by which five points are off even where a pose fits them: on 1,668 training faces PnP on a detector's
differs from the labels by 6.0 (median; 7.9 beyond 40 degrees of yaw, 11.9 beyond 60)."""
MOST_OF_PICTURE = 3.0
"""Times the picture's longer side that a face's box may have: more is another unit, or another size's."""
LEAST_SIZE = 10.0
"""Pixels; the landmarks of smaller faces say nothing of the rotation."""


def pose_from_points(pixels: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, float]:
    """Pose of a face by PnP, and its uncertainty.

    Args:
        pixels: (5, 2) or (68, 2).
        camera: (3, 3).

    Returns:
        (6,) pose in the camera; degrees by which landmarks that fit it so badly may turn it.

    Raises:
        ValueError: if no pose in front of the camera explains the points.
    """
    reference = load_reference()
    points = (reference.detector_points5 if len(pixels) == 5 else reference.points68).astype(float)
    pose = geometry.solve_pnp(points, pixels, camera)
    if not np.isfinite(pose).all() or pose[5] <= 0:
        raise ValueError("no pose in front of the camera explains its landmarks")
    rotation, translation = geometry.decompose_pose(pose)
    left = geometry.project(points, rotation, translation, camera) - pixels
    error = np.sqrt((left**2).sum(1).mean()) * translation[2] / camera[0, 0]
    spread = np.degrees(np.arctan(error / LEVER))
    return pose, float(np.hypot(spread, FIVE_POINTS_ERROR) if len(pixels) == 5 else spread)


def pose_of_known_rotation(pixels: np.ndarray, local: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """(6,) pose of a face whose (3, 3) local rotation is known, from its (68, 2) landmarks."""
    points = load_reference().points68.astype(float)
    center = pixels.mean(0)
    for _ in range(3):  # the camera rotation depends, weakly, on where the face's origin is seen
        rotation = geometry.ray_rotation(center, camera) @ local
        translation = geometry.solve_translation(points, pixels, rotation, camera)
        center = geometry.project(np.zeros((1, 3)), rotation, translation, camera)[0]
    return geometry.compose_pose(rotation, translation)


def _array(face: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if key not in face:
        return None
    try:
        array = np.asarray(face[key])
        array = array.astype(float) if array.dtype.kind in "iuf" else np.empty(0)  # texts of numbers are none
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{key} must be finite numbers of shape {shape}, got {face[key]}")
    return array


def check_face(face: dict[str, Any], width: int, height: int) -> None:
    """Raise ``ValueError`` if a face's numbers are not finite, misshapen, or it lies outside its image."""
    if not isinstance(face, dict):
        raise ValueError(f"it must be an object with box and what else is known, got {face!r}")
    box = _array(face, "box", (4,))
    for key, shape in (("landmarks", (5, 2)), ("landmarks68", (68, 2)), ("angles", (3,))):
        _array(face, key, shape)
    spread = _array(face, "spread", ())
    if spread is not None and spread < 0:
        raise ValueError(f"its spread is degrees of uncertainty, got {face['spread']}")
    if isinstance(face.get("label"), dict):
        for key in ("tilt", "pan"):
            _array(face["label"], key, ())
    if box is None:
        raise ValueError("it has no box")
    extent = box[2:] - box[:2]
    if (extent < 0).any() and not face.get("ignore"):
        raise ValueError(f"box must be x1, y1, x2, y2 with x2 > x1 and y2 > y1, got {box.round(1).tolist()}")
    if extent.max() > MOST_OF_PICTURE * max(width, height):
        raise ValueError(f"box {box.round(1).tolist()} is far larger than the {width}x{height} image")
    has_area = (extent > 0).all()  # data sets list faces of none; training drops them
    if has_area and ((box[2:] <= 0).any() or (box[:2] >= [width, height]).any()):
        raise ValueError(f"box {box.round(1).tolist()} lies outside the {width}x{height} image")
    if "angles" in face and "spread" not in face:
        raise ValueError("its angles have no spread (their uncertainty in degrees)")


def is_sound(face: dict[str, Any], width: int, height: int) -> bool:
    """Whether :func:`check_face` has nothing against a face."""
    try:
        check_face(face, width, height)
    except ValueError:
        return False
    return True


def complete_face(face: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """A face of a label file with its box, five landmarks and local angles, as far as they can be known.

    A pose comes from the landmarks by PnP, in the default camera of the image; where the format has the
    rotation (300W-LP) only the translation does. A face without a box gets the projection of its pose.

    Raises:
        ValueError: naming what is wrong with it.
    """
    done = dict(face)
    points68, points5 = _array(face, "landmarks68", (68, 2)), _array(face, "landmarks", (5, 2))
    angles = _array(face, "angles", (3,))
    points = points5 if points68 is None else points68
    if points is None and "box" not in face:
        raise ValueError("it has neither box nor landmarks")
    if points68 is not None:
        done["landmarks"] = five_points(points68).round(2).tolist()
    camera = geometry.default_intrinsics(width, height)
    pose = None
    if angles is not None and points68 is not None:
        pose = pose_of_known_rotation(points68, geometry.angles_to_matrix(angles), camera)
    elif angles is None and points is not None and np.ptp(points, axis=0).max() * 1.5 >= LEAST_SIZE:
        pose, spread = pose_from_points(points, camera)
        local = geometry.camera_to_local(*geometry.decompose_pose(pose), camera)[2]
        done |= {"angles": geometry.matrix_to_angles(local).round(3).tolist(), "spread": round(spread, 2)}
    if "box" not in done:
        if pose is None:
            raise ValueError(f"its landmarks span less than {LEAST_SIZE / 1.5:.0f} pixels: no pose, no box")
        done["box"] = project_face_box(*geometry.decompose_pose(pose), camera).round(2).tolist()
    check_face(done, width, height)
    return done
