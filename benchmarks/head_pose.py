"""Head poses for detectors that give none: by PnP on five points, or by a network of its own on each face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from img2pose_edge.benchmarks.accuracy import Detect, Found
from img2pose_edge.benchmarks.peer_network import open_network
from img2pose_edge.pose_references import load_reference

from img2pose_edge import geometry

IMAGENET_MEAN, IMAGENET_STD = (np.array(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
CROP = 1.2
"""Side of the square that the network sees, in larger sides of the face's box."""


def pose_by_points(found: Found, image: np.ndarray, points: np.ndarray) -> Found:
    """The face with pose and angles by PnP on its landmarks.

    Args:
        found: with (N, 2) landmarks in pixels.
        image: (H, W, 3), whose default camera counts.
        points: (N, 3) of the reference face that the landmarks mark.
    """
    camera = geometry.default_intrinsics(image.shape[1], image.shape[0])
    assert found.landmarks is not None
    try:
        pose = geometry.solve_pnp(points.astype(float), found.landmarks, camera)
    except ValueError:
        return found
    if not np.isfinite(pose).all() or pose[5] <= 0:
        return found
    local = geometry.camera_to_local(*geometry.decompose_pose(pose), camera)[2]
    return replace(found, pose=pose, angles=geometry.matrix_to_angles(local))


def with_points(detect: Detect) -> Detect:
    """A detector of five points with poses by PnP on them."""
    points = load_reference().detector_points5

    def posed(image: np.ndarray, threshold: float | None) -> list[Found]:
        return [pose_by_points(f, image, points) for f in detect(image, threshold)]

    return posed


class HeadPoseNetwork:
    """Lightweight-Head-Pose-Estimation (b66): angles of the faces that a detector finds."""

    def __init__(self, path: Path, threads: int | None = None, engine: str = "onnxruntime") -> None:
        """Errors as :func:`open_network`; ``ValueError`` too if it is another network."""
        self._network = open_network(path, threads, engine, alone=False)  # a detector runs before it
        if self._network.outputs != ["ypr"]:
            raise ValueError(f"{path} is no head pose network (b66): its outputs are {self._network.outputs}")

    def angles(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(N, 3) pitch, yaw, roll in degrees of the faces in (N, 4) boxes of an (H, W, 3) uint8 BGR image."""
        found = []
        for x1, y1, x2, y2 in boxes:  # one by one: a batch is no faster and takes half a gigabyte for fifty
            side = CROP * max(x2 - x1, y2 - y1)
            scale = 224 / side
            corner = np.array([x1 + x2, y1 + y2]) / 2 - side / 2
            # Pixel i covers [i, i + 1): OpenCV puts coordinates at pixel centres.
            matrix = np.array([[scale, 0, 0], [0, scale, 0.0]])
            matrix[:, 2] = scale * (0.5 - corner) - 0.5
            pixels = cv2.warpAffine(image, matrix, (224, 224), flags=cv2.INTER_LINEAR)
            planes = cv2.dnn.blobFromImage(pixels, 1 / 255, swapRB=True)
            crop = (planes - IMAGENET_MEAN[:, None, None]) / IMAGENET_STD[:, None, None]
            found.append(self._network.run(crop)["ypr"][0, [1, 0, 2]].astype(float))
        return np.array(found).reshape(-1, 3)

    def posed(self, detect: Detect) -> Detect:
        """A detector whose faces have this network's angles."""

        def run(image: np.ndarray, threshold: float | None) -> list[Found]:
            found = detect(image, threshold)
            if not found:
                return found
            angles = self.angles(image, np.array([f.box for f in found]))
            return [replace(f, angles=a) for f, a in zip(found, angles, strict=True)]

        return run
