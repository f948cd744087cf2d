"""MediaPipe's own pipelines, from the wheel that holds their models (0.10.21 is the last one that does)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from img2pose_edge.benchmarks.accuracy import Detect, Found
from img2pose_edge.benchmarks.head_pose import poses_by_points
from img2pose_edge.pose_references import load_reference

MOST_FACES = 50
DETECTOR_SCORE = 0.5
"""MediaPipe's own default."""


def solutions() -> Any:
    """Raise ``ImportError`` if MediaPipe is not installed, or has no such pipelines any more."""
    import mediapipe

    if not hasattr(mediapipe, "solutions"):
        raise ImportError(f"mediapipe {mediapipe.__version__} bundles no models: install mediapipe==0.10.21")
    return mediapipe.solutions


def face_detection() -> Detect:
    """Its full-range face detector; it looks at a square of 192 pixels, whatever the image's size."""
    kind = solutions().face_detection.FaceDetection
    opened: dict[float, Any] = {}

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        least = DETECTOR_SCORE if threshold is None else threshold
        if least not in opened:
            opened[least] = kind(min_detection_confidence=least, model_selection=1)
        height, width = image.shape[:2]
        result = opened[least].process(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        found = []
        for face in result.detections or []:
            box = face.location_data.relative_bounding_box
            corners = np.array([box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height])
            found.append(Found(float(face.score[0]), corners * [width, height, width, height]))
        return sorted(found, key=lambda f: -f.score)

    return detect


def face_mesh() -> Detect:
    """Its detector and 468 landmarks on each face; poses by PnP on them. Its faces have no scores."""
    mesh = solutions().face_mesh.FaceMesh(static_image_mode=True, max_num_faces=MOST_FACES)
    points = load_reference().vertices

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        height, width = image.shape[:2]
        result = mesh.process(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        found = []
        for face in result.multi_face_landmarks or []:
            marks = np.array([[p.x, p.y] for p in face.landmark]) * [width, height]
            box = np.concatenate([marks.min(0), marks.max(0)])
            found.append(Found(1.0, box, landmarks=marks))
        return poses_by_points(found, image, points)

    return detect
