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
from typing import Any

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
ANGLES = ("pitch_mae", "yaw_mae", "roll_mae", "mae")


@dataclass(frozen=True)
class Found:
    """A detection, and what else the detector knows of the face.

    Attributes:
        score: 0 to 1.
        box: (4,) x1, y1, x2, y2 in pixels.
        angles: (3,) pitch, yaw, roll in degrees of the local rotation.
        pose: (6,) in the image's default camera (``geometry.default_intrinsics``).
        landmarks: (5, 2) pixels: image-left eye, image-right eye, nose tip, image-left and -right mouth corner.
    """

    score: float
    box: np.ndarray
    angles: np.ndarray | None = None
    pose: np.ndarray | None = None
    landmarks: np.ndarray | None = None


Detect = Callable[[np.ndarray, float | None], list[Found]]


def detect_by(detector: PoseDetector) -> Detect:
    """Our detector as the protocols want it; threshold ``None`` is the model's own."""

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        return [Found(f.score, f.box, f.angles, f.pose) for f in detector.detect(image, score_threshold=threshold)]

    return detect


def require(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"evaluation data lacks {path}")
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with require(path).open(newline="") as file:
        return list(csv.DictReader(file))


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a MATLAB file or lacks one of the variables.
        ImportError: without scipy.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"reading {path} needs scipy: pip install scipy") from error
    try:
        variables = loadmat(require(path), variable_names=names)
    except FileNotFoundError:
        raise
    except Exception as error:  # scipy raises half a dozen kinds, none of which names the file
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    missing = [name for name in names if name not in variables]
    if missing:
        raise ValueError(f"{path} lacks the variable {', '.join(missing)}")
    return [variables[name] for name in names]


def wider_records(root: Path) -> list[dict[str, Any]]:
    """The images of WIDER FACE's validation set and their annotated faces.

    Args:
        root: a folder that holds images and ``ground_truth.jsonl``, one record a line; or, as distributed,
            ``WIDER_val/images/EVENT/NAME.jpg`` and, from the evaluation tools, ``wider_easy_val.mat``,
            ``wider_medium_val.mat`` and ``wider_hard_val.mat`` in ``ground_truth/`` or
            ``eval_tools/ground_truth/``.

    Returns:
        For each image ``image``, its path below ``root``; ``boxes_xywh``, F boxes x, y, w, h in pixels; and as
        ``easy``, ``medium``, ``hard`` the indices, from 0, of the faces that count.

    Raises:
        FileNotFoundError: naming the file that is missing, an image of the official lists among them.
        ValueError, ImportError: as :func:`read_mat`.
    """
    listing = root / "ground_truth.jsonl"
    if listing.exists():
        return [json.loads(line) for line in listing.read_text().splitlines()]
    folders = [root / "ground_truth", root / "eval_tools" / "ground_truth"]
    truth = next((folder for folder in folders if folder.is_dir()), None)
    if truth is None:
        raise FileNotFoundError(f"evaluation data lacks {listing}; or, in the official layout, {folders[0]}")
    records: dict[str, dict[str, Any]] = {}
    for subset in SUBSETS:
        lists = read_mat(truth / f"wider_{subset}_val.mat", "event_list", "file_list", "face_bbx_list", "gt_list")
        for event, *cells in zip(*(cells.ravel() for cells in lists), strict=True):
            for name, boxes, counted in zip(*(cell.ravel() for cell in cells), strict=True):
                image = f"WIDER_val/images/{event.item()}/{name.item()}.jpg"
                if image not in records:
                    require(root / image)
                    records[image] = {"image": image, "boxes_xywh": boxes.astype(float).reshape(-1, 4).tolist()}
                records[image][subset] = (counted.astype(int).ravel() - 1).tolist()
    return list(records.values())


def evaluate_wider(detect: Detect, root: Path) -> dict[str, float]:
    """AP on easy, medium and hard faces by the official protocol (``metrics.wider_average_precision``).

    ``root`` as in :func:`wider_records`.
    """
    records = wider_records(root)
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
    return {"faces": len(rows), "missed": missed, **mean_absolute(errors, *ANGLES)}


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


def mean_absolute(errors: list[np.ndarray], *names: str) -> dict[str, float]:
    """Mean absolute value of each column of N x 3 errors, then of all of them; NaN for N = 0."""
    if not errors:
        return dict.fromkeys(names, float("nan"))
    absolute = np.abs(errors)
    return dict(zip(names, [*absolute.mean(0).tolist(), float(absolute.mean())], strict=True))


def evaluate(detect: Detect, data: Path) -> dict[str, dict[str, float]]:
    """All three protocols on the folder ``data`` (``wider/``, ``aflw2000/``, ``pointing04/``)."""
    return {
        "wider": evaluate_wider(detect, data / "wider"),
        "aflw2000_subset": evaluate_aflw2000(detect, data / "aflw2000"),
        "pointing04": evaluate_pointing04(detect, data / "pointing04"),
    }
