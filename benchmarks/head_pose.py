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


def poses_by_points(found: list[Found], image: np.ndarray, points: np.ndarray) -> list[Found]:
    """Faces with pose and angles by PnP on their landmarks, as ``geometry.solve_pnp`` solves it, without what that
    checks: a user of the detector would not pay for it.

    Args:
        found: with (N, 2) landmarks in pixels.
        image: (H, W, 3), whose default camera counts.
        points: (N, 3) of the reference face that the landmarks mark.
    """
    if not found:
        return found
    camera = geometry.default_intrinsics(image.shape[1], image.shape[0])
    points, marks = points.astype(float), np.array([face.landmarks for face in found], float)
    poses = np.full((len(found), 6), np.nan)
    for pose, pixels in zip(poses, marks, strict=True):
        solved, turn, place = cv2.solvePnP(points, pixels, camera, np.empty(0), flags=cv2.SOLVEPNP_EPNP)
        if solved:
            turn, place = cv2.solvePnPRefineLM(points, pixels, camera, np.empty(0), turn, place)
            pose[:3], pose[3:] = turn[:, 0], place[:, 0]
    known = np.isfinite(poses).all(1) & (poses[:, 5] > 0) & (poses[:, 5] < 1e9)
    local = geometry.camera_to_local(*geometry.decompose_pose(poses[known]), camera)[2]
    posed = iter(zip(poses[known], geometry.matrix_to_angles(local), strict=True))
    given = [next(posed) if one else None for one in known.tolist()]
    return [replace(f, pose=g[0], angles=g[1]) if g else f for f, g in zip(found, given, strict=True)]


def with_points(detect: Detect) -> Detect:
    """A detector of five points with poses by PnP on them."""
    points = load_reference().detector_points5

    def posed(image: np.ndarray, threshold: float | None) -> list[Found]:
        return poses_by_points(detect(image, threshold), image, points)

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
