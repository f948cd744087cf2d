"""Accuracy on WIDER FACE, AFLW2000-3D and Pointing'04: data readers and protocols.

Every protocol takes ``detect(image, score_threshold) -> list[Found]``, so that any detector, ours or a
peer, is measured by the same code.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from img2pose_edge.benchmarks.metrics import (
    Detections,
    GroundTruth,
    angle_errors,
    normalize_scores,
    wider_average_precision,
)

from img2pose_edge.detector import PoseDetector
from img2pose_edge.preprocess import PAD_VALUE, load_image
from img2pose_edge.progress import track

AP_THRESHOLD = 0.02
"""Least score that counts towards average precision."""
SUBSETS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Found:
    """A detection: score, (4,) box, and (3,) pitch, yaw, roll of the local rotation in degrees if known."""

    score: float
    box: np.ndarray
    angles: np.ndarray | None = None


Detect = Callable[[np.ndarray, float | None], list[Found]]


def detect_by(detector: PoseDetector) -> Detect:
    """Our detector as the protocols want it; threshold ``None`` is the model's own."""

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        return [Found(f.score, f.box, f.angles) for f in detector.detect(image, score_threshold=threshold)]

    return detect


def require(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"evaluation data lacks {path}")
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with require(path).open(newline="") as file:
        return list(csv.DictReader(file))


def evaluate_wider(detect: Detect, root: Path) -> dict[str, float]:
    """AP on easy, medium and hard faces by the official protocol (``metrics.wider_average_precision``).

    ``root`` holds ``ground_truth.jsonl`` (boxes as x, y, w, h; indices of the faces that count) and images.
    """
    records = [json.loads(line) for line in require(root / "ground_truth.jsonl").read_text().splitlines()]
    found = []
    for record in track(records, "WIDER FACE"):
        image = load_image(root / record["image"])
        faces = detect(image, AP_THRESHOLD)
        boxes = np.array([f.box for f in faces]).reshape(-1, 4)
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height])  # annotated boxes end at the picture
        found.append(Detections(boxes, np.array([f.score for f in faces])))
    found = normalize_scores(found)
    result = {}
    for subset in SUBSETS:
        truth = []
        for record in records:
            boxes = np.array(record["boxes_xywh"], float).reshape(-1, 4)
            counts = np.zeros(len(boxes), bool)
            counts[record[subset]] = True
            truth.append(GroundTruth(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), counts))
        result[f"ap_{subset}"] = wider_average_precision(found, truth)
    return result


def middle_face(faces: list[Found], image: np.ndarray) -> Found | None:
    """The best-scored face whose box contains the middle of the image: the labelled one in AFLW2000-3D."""
    middle = np.array([image.shape[1], image.shape[0]]) / 2
    over = [f for f in faces if (f.box[:2] <= middle).all() and (middle <= f.box[2:]).all()]
    return max(over, key=lambda f: f.score, default=None)


def evaluate_aflw2000(detect: Detect, root: Path) -> dict[str, float]:
    """Mean absolute errors of pitch, yaw and roll (local rotation), and how many faces were missed.

    The labelled face is :func:`middle_face`; without one the face is missed and left out of the means.
    Images in ``crops/`` are tight crops: they are padded by half their size.
    """
    errors, missed = [], 0
    rows = read_csv(root / "labels.csv")
    for row in track(rows, "AFLW2000-3D"):
        image = load_image(root / row["image"])
        if row["image"].startswith("crops"):
            y, x = image.shape[0] // 2, image.shape[1] // 2
            image = cv2.copyMakeBorder(image, y, y, x, x, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
        face = middle_face(detect(image, None), image)
        if face is None or face.angles is None:
            missed += 1
            continue
        label = np.array([float(row[k]) for k in ("pitch_deg", "yaw_deg", "roll_deg")])
        errors.append(angle_errors(face.angles, label))
    return {"faces": len(rows), "missed": missed, **_angle_means(np.array(errors))}


def evaluate_pointing04(detect: Detect, root: Path) -> dict[str, float]:
    """Mean absolute error of yaw against the pan label, in ranges of ``|pan|``, and the faces missed.

    Each photograph shows one person: their face is the best-scored one.
    """
    rows = read_csv(root / "labels.csv")
    pan, error = [], []
    for row in track(rows, "Pointing'04"):
        faces = detect(load_image(root / row["image"]), None)
        best = max(faces, key=lambda f: f.score, default=None)
        pan.append(abs(float(row["pan_deg"])))
        yaw = np.nan if best is None or best.angles is None else best.angles[1]
        error.append(abs(yaw - float(row["pan_deg"])))
    pans, errors = np.array(pan), np.array(error)

    def mean(low: float, high: float) -> float:
        return float(np.nanmean(errors[(pans >= low) & (pans <= high)]))

    return {
        "faces": len(rows),
        "missed": int(np.isnan(errors).sum()),
        "yaw_mae_pan_0_30": mean(0, 30),
        "yaw_mae_pan_45_60": mean(45, 60),
        "yaw_mae_pan_75_90": mean(75, 90),
    }


def _angle_means(errors: np.ndarray) -> dict[str, float]:
    if len(errors) == 0:
        return dict.fromkeys(("pitch_mae", "yaw_mae", "roll_mae", "mae"), float("nan"))
    pitch, yaw, roll = errors.mean(0).tolist()
    return {"pitch_mae": pitch, "yaw_mae": yaw, "roll_mae": roll, "mae": float(errors.mean())}


def evaluate(detect: Detect, data: Path) -> dict[str, dict[str, float]]:
    """All three protocols on the folder ``data`` (``wider/``, ``aflw2000/``, ``pointing04/``)."""
    return {
        "wider": evaluate_wider(detect, data / "wider"),
        "aflw2000_subset": evaluate_aflw2000(detect, data / "aflw2000"),
        "pointing04": evaluate_pointing04(detect, data / "pointing04"),
    }
