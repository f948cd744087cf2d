"""Calibrated cameras: their files, and poses of faces seen through a lens that distorts."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from img2pose_edge import geometry
from img2pose_edge.face import Face, check_type
from img2pose_edge.pose_references import load_reference

logger = logging.getLogger(__name__)

NAMES = {
    "camera_matrix": ("camera_matrix", "Camera_Matrix", "cameraMatrix", "K"),
    "distortion": (
        "distortion_coefficients", "Distortion_Coefficients", "dist_coeffs", "distCoeffs", "distortion_coeffs", "D",
    ),
    "width": ("image_width", "image_Width", "imageWidth", "width"),
    "height": ("image_height", "image_Height", "imageHeight", "height"),
}  # fmt: skip
"""As OpenCV's calibration sample writes them, then as others do."""
COEFFICIENTS = (4, 5, 8, 12, 14)
"""Lengths of OpenCV's distortion vector."""

NEWTON_STEPS, NEAR = 8, 1e-4
"""Iterations, and pixels that they may leave."""
LEAST_POINTS = 34
"""Of a face's 68, to solve its pose."""
MAX_BYTES, MAX_BRACKETS = 2**20, 2000
"""Of a calibration's file. OpenCV's reader does not survive thousands of lists in one another."""
STANDARD = ("", "plumb_bob", "rational_polynomial", "radtan")
"""Names of OpenCV's standard distortion model in files that name one."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A camera: matrix, lens distortion, and the size of the images they hold for.

    Attributes:
        intrinsics: (3, 3) float64, pixels counted from the corner of the top-left one. OpenCV's functions count from
            its middle: add 0.5 to the principal point they give (:func:`read_calibration` does).
        width, height: pixels.
        distortion: (4, 5, 8, 12 or 14,) float64, OpenCV's ``k1, k2, p1, p2[, k3[, …]]``; zeros: none.
    """

    intrinsics: np.ndarray
    width: int
    height: int
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(5))

    def __post_init__(self) -> None:
        camera = geometry.check_intrinsics(self.intrinsics)
        lens = np.array(self.distortion, float).ravel()
        if len(lens) not in COEFFICIENTS or not np.isfinite(lens).all():
            counts = ", ".join(map(str, COEFFICIENTS))
            raise ValueError(f"a calibration has {counts} finite distortion coefficients, got {lens.tolist()}")
        if not all(isinstance(side, (int, np.integer)) and side > 0 for side in (self.width, self.height)):
            raise ValueError(f"a calibration's width and height are whole pixels, got {self.width!r}x{self.height!r}")
        if camera[0, 1] != 0:
            raise ValueError(f"OpenCV's lens models know no skew: calibrate without it, got {camera[0, 1]:g}")
        object.__setattr__(self, "intrinsics", camera)
        object.__setattr__(self, "distortion", lens)

    def for_size(self, width: int, height: int) -> Calibration:
        """The same camera for images of another size, whose whole picture was scaled.

        Raises:
            ValueError: if the sides' ratio differs by more than a pixel's rounding, of the smaller of the two sizes:
                such an image was cropped or stretched, and the calibration does not tell how.
        """
        if not (width > 0 and height > 0):
            raise ValueError(f"an image's width and height are positive, got {width!r}x{height!r}")
        if (width, height) == (self.width, self.height):
            return self
        scale = width / self.width
        if abs(height - self.height * scale) >= max(1, scale):
            raise ValueError(
                f"the calibration is for images of {self.width}x{self.height}, this one is {width}x{height}: "
                "only the same shape, larger or smaller, will do"
            )
        scaled = geometry.transform_intrinsics(self.intrinsics, scale, np.zeros(2))
        return Calibration(scaled, width, height, self.distortion)


def read_calibration(path: str | PathLike[str]) -> Calibration:
    """A calibration that OpenCV's FileStorage (YAML, XML or JSON) or ROS's camera_calibration (YAML) wrote.

    It holds ``camera_matrix``, ``distortion_coefficients``, ``image_width`` and ``image_height``, as OpenCV's
    calibration sample names them, or other common names of these (:data:`NAMES`). Half a pixel is added to the
    principal point, as OpenCV and ROS count pixels from their middle.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, lacks one of them, or says that it is a fisheye lens's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no calibration {path}: it is a file that OpenCV or ROS wrote")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is no calibration: it is larger than {MAX_BYTES // 2**20} MiB")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if sum(map(text.count, "[{<")) > MAX_BRACKETS:
        raise ValueError(f"{path} is no calibration: it holds more than {MAX_BRACKETS} lists, maps or tags")
    text = re.sub(r"\A(?:[ \t]*\r?\n)+", "", text)
    if not text.lstrip().startswith(("%YAML", "<?xml", "{")):  # ROS writes YAML without its header
        text = f"%YAML:1.0\n{'' if text.startswith('---') else '---'}\n{text}"
    try:
        storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        found = {name: _find(storage, names, path) for name, names in NAMES.items()}
        models = [storage.getNode(name).string().lower() for name in ("distortion_model", "camera_model")]
        fisheye = storage.getNode("fisheye_model").real() == 1
    except (cv2.error, SystemError) as error:
        raise ValueError(f"{path} is not a calibration that OpenCV can read (YAML, XML or JSON)") from error
    for name, values in found.items():
        if values is None:
            raise ValueError(f"{path} has no {NAMES[name][0]} (nor {', '.join(NAMES[name][1:])})")
    if not any(models) and np.size(found["distortion"]) == 4:
        logger.warning("%s does not name its lens model: k1, k2, p1, p2 are assumed, no fisheye lens's k1 to k4", path)
    unknown = [name for name, known in zip(models, (STANDARD, ("", "pinhole")), strict=True) if name not in known]
    if fisheye or unknown:
        lens = f"a lens of the model {unknown[0]!r}" if unknown else "a fisheye lens"
        raise ValueError(f"{path} is of {lens}: only OpenCV's standard distortion model is supported")
    try:
        sides = [found[name] for name in ("width", "height")]
        if any(np.ndim(side) or side != int(side) for side in sides):
            raise ValueError(f"image width and height are whole numbers, got {sides[0]} and {sides[1]}")
        if np.size(found["camera_matrix"]) != 9:
            raise ValueError(f"a camera matrix has nine numbers, got {np.size(found['camera_matrix'])}")
        camera = found["camera_matrix"].reshape(3, 3)
        camera[:2, 2] += 0.5
        return Calibration(camera, int(sides[0]), int(sides[1]), found["distortion"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def _find(storage: Any, names: tuple[str, ...], path: Path) -> Any:
    """Numbers under the first of these names that is there: matrix (also row by row), ROS's rows, cols and data, or
    plain number.

    Raises:
        ValueError: if something else is there.
    """
    for name in names:
        node = storage.getNode(name)
        if node.empty():
            continue
        if node.isReal() or node.isInt():
            return node.real()
        numbers = node.getNode("data") if node.isMap() else node
        items = [] if numbers.isString() else [numbers.at(i) for i in range(numbers.size())]
        if items and all(item.isSeq() for item in items):
            items = [row.at(i) for row in items for i in range(row.size())]
        if numbers.isString() or not all(item.isReal() or item.isInt() for item in items):
            raise ValueError(f"{path}: {name} holds something that is no number")  # which OpenCV would read as 1.8e308
        return np.array([item.real() for item in items])
    return None


def undistort_face(face: Face, calibration: Calibration) -> Face:
    """The face's pose in a calibrated camera, from a face found in the image as the camera took it.

    The image is never resampled. The 68 points are projected where the network saw them, moved to where a camera
    without distortion would have imaged them, and the pose that explains those is solved for: so what the lens does
    across the face, in place, size and shape, is taken out together.

    Args:
        face: found with any intrinsics; its pose need not be the calibrated camera's.
        calibration: of the image's size (:meth:`Calibration.for_size`).

    Returns:
        A face whose intrinsics are the calibration's, with metric translation for a head of average size. Its box is
        the given one, in pixels of the image as it is; ``landmarks68`` are those of the camera without distortion.

    Raises:
        ValueError: if half the face is where the distortion cannot be inverted (:func:`undistort_points`).
    """
    check_type([face])
    camera = calibration.intrinsics
    # The local pose is what the image shows, whichever camera it was told in.
    local_pose = geometry.camera_to_local(face.rotation, face.translation, face.intrinsics)
    points = load_reference().points68.astype(float)
    seen = geometry.project(points, *geometry.local_to_camera(*local_pose, camera), camera)
    straight = undistort_points(seen, calibration)
    found = np.isfinite(straight).all(1)  # a face at the border may reach beyond what was calibrated
    if found.sum() < LEAST_POINTS:
        x, y = local_pose[0].round()
        raise ValueError(f"the calibration's distortion cannot be inverted around the face at pixel ({x:.0f}, {y:.0f})")
    pose = geometry.solve_pnp(points[found], straight[found], camera)
    rotation, translation = geometry.decompose_pose(pose)
    local = geometry.camera_to_local(rotation, translation, camera)[2]
    return replace(
        face,
        pose=pose,
        rotation=rotation,
        local_rotation=local,
        angles=geometry.matrix_to_angles(local),
        intrinsics=camera,
    )


def undistort_faces(faces: Sequence[Face], calibration: Calibration) -> list[Face | None]:
    """:func:`undistort_face` of each; None where the distortion cannot be inverted, and a warning, once for each
    lens."""
    found: list[Face | None] = []
    for face in faces:
        try:
            found.append(undistort_face(face, calibration))
        except ValueError:
            found.append(None)
            _warn_once(calibration.distortion.tobytes())
    return found


@lru_cache(8)
def _warn_once(distortion: bytes) -> None:
    logger.warning("faces where the calibration's distortion cannot be inverted, near the border, are left out")


def undistort_points(pixels: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Pixels of the image to those of the same camera without distortion.

    OpenCV's few iterations are finished by Newton's: at depth 1, the derivative by a point is that by translation.

    Args:
        pixels: (N, 2).
        calibration: of the image's size.

    Returns:
        (N, 2), NaN where the distortion cannot be inverted: beyond the calibrated field of view a model folds over.
    """
    pixels = np.asarray(pixels, float).reshape(-1, 2)
    if not len(pixels):
        return pixels
    camera, lens, still = calibration.intrinsics, calibration.distortion, np.zeros(3)
    rays = np.ones((len(pixels), 3))
    rays[:, :2] = cv2.undistortPoints(pixels[:, None], camera, lens)[:, 0]
    for _ in range(NEWTON_STEPS):
        seen, derivatives = cv2.projectPoints(rays, still, still, camera, lens)
        jacobian = derivatives[:, 3:5].reshape(-1, 2, 2)
        missing = pixels - seen[:, 0]
        sound = np.linalg.det(jacobian) > 0
        rays[sound, :2] += np.linalg.solve(jacobian[sound], missing[sound][..., None])[..., 0]
    found = sound & (np.abs(missing).max(1) < NEAR)
    return np.where(found[:, None], rays @ camera[:2].T, np.nan)
