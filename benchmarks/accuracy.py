"""Accuracy on WIDER FACE, AFLW2000-3D and Pointing'04: data readers and protocols.

Every protocol takes ``detect(image, score_threshold) -> list[Found]``, so that any detector, ours or a
peer, is measured by the same code.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from img2pose_edge.benchmarks.attributes import LIST, read_attributes
from img2pose_edge.benchmarks.metrics import (
    Detections,
    GroundTruth,
    angle_errors,
    normalize_scores,
    wider_average_precision,
)

from img2pose_edge import geometry
from img2pose_edge.detector import PoseDetector
from img2pose_edge.preprocess import PAD_VALUE, is_image, load_image
from img2pose_edge.progress import track

AP_THRESHOLD = 0.02
"""Least score that counts towards average precision."""
SUBSETS = ("easy", "medium", "hard")
ANGLES = ("pitch_mae", "yaw_mae", "roll_mae", "mae")
FACE_SIZES = (8, 16, 32, 64)
"""Bounds, in pixels of an image whose longest side is 640, of the face sizes that AP is broken down by."""
YAWS = ((0, 30), (30, 60), (60, 90))
PANS = ((0, 30), (0, 60), (45, 60), (75, 90))
"""Ranges, in degrees, of the absolute yaws and pans that angle errors are broken down by."""
OWN_PANS = (0, 60)
"""Pans, absolute, that tell how a person sat and turned."""


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


def raise_or_add(text: str, problems: list[str] | None, error: Exception) -> None:
    """Add what is wrong to the ``problems``; where none are kept it is a ``ValueError``."""
    if problems is None:
        raise ValueError(text) from error
    problems.append(text)


def read_labels(path: Path, columns: tuple[str, ...], problems: list[str] | None) -> list[dict[str, Any]]:
    """Rows of a table with ``image`` and ``columns`` of finite numbers.

    Args:
        problems: rows that are not so are named in it and left out; without it the first one is an error.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line.
    """
    rows = []
    with require(path).open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it, too
        reader = csv.DictReader(file)
        for row in rows_of(reader, path):
            try:
                numbers = {name: float(row[name]) for name in columns}
                if not np.isfinite(list(numbers.values())).all():
                    raise ValueError(f"its numbers are not finite: {numbers}")
                if not row["image"]:
                    raise ValueError("it names no image")
                rows.append({"image": row["image"], **numbers})
            except (ValueError, KeyError, TypeError) as error:
                raise_or_add(f"{path}, line {reader.line_num}: {error!r}", problems, error)
    return rows


def rows_of(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table; ``ValueError``, naming file and line, where it is no text, or no table, from there on."""
    try:
        yield from reader
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}, after line {reader.line_num}: {error}") from error


def read_images(
    root: Path, records: list[dict[str, Any]], label: str, problems: list[str] | None
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Records (their ``image`` is a path below ``root``) and their images.

    Args:
        problems: images that cannot be read are named in it and left out; without it the first one is an error. Images
            that lie beside them without a record are named, too.
    """
    if not records:
        if problems is None:
            raise ValueError(f"{root} lists no image")
        problems.append(f"{label}: {root} lists no image")
    for record in track(records, label):
        try:
            image = load_image(root / record["image"])
        except (OSError, ValueError) as error:
            if problems is None:
                raise
            problems.append(f"{label}: {error}")
            continue
        yield record, image
    if problems is not None:
        listed = {root / record["image"] for record in records}
        beside = {p for folder in {path.parent for path in listed} if folder.is_dir() for p in folder.iterdir()}
        extra = sorted(p for p in beside - listed if is_image(p))
        if extra:
            more = f", and {len(extra) - 1} images more have none" if len(extra) > 1 else ""
            problems.append(f"{label}: {extra[0]} has no label{more}")


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


def wider_records(root: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """The images of WIDER FACE's validation set and their annotated faces.

    Args:
        root: a folder that holds images and ``ground_truth.jsonl``, one record a line; or, as distributed,
            ``WIDER_val/images/EVENT/NAME.jpg`` and, from the evaluation tools, ``wider_easy_val.mat``,
            ``wider_medium_val.mat`` and ``wider_hard_val.mat`` in ``ground_truth/`` or
            ``eval_tools/ground_truth/``.
        problems: lines that are no records are named in it and left out; without it the first one is an error.

    Returns:
        For each image ``image``, its path below ``root``; ``boxes_xywh``, F boxes x, y, w, h in pixels; and as
        ``easy``, ``medium``, ``hard`` the indices, from 0, of the faces that count.

    Raises:
        FileNotFoundError: naming the list that is missing.
        ValueError, ImportError: as :func:`read_mat`, and naming the line that is no record.
    """
    listing = root / "ground_truth.jsonl"
    if listing.exists():
        found = []
        for number, line in enumerate(listing.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                boxes = np.array(record["boxes_xywh"], float).reshape(-1, 4)
                listed = [index for subset in SUBSETS for index in record[subset]]
                if not np.isfinite(boxes).all() or any(index not in range(len(boxes)) for index in listed):
                    raise ValueError("its boxes are not finite, or not those that it counts")
                record["image"] + ""
                found.append(record)
            except (ValueError, KeyError, TypeError) as error:
                raise_or_add(f"{listing}, line {number} is no record: {error!r}", problems, error)
        return found
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
                    records[image] = {"image": image, "boxes_xywh": boxes.astype(float).reshape(-1, 4).tolist()}
                records[image][subset] = (counted.astype(int).ravel() - 1).tolist()
    return list(records.values())


def evaluate_wider(detect: Detect, root: Path, problems: list[str] | None = None) -> dict[str, float]:
    """AP on easy, medium and hard faces by the official protocol (``metrics.wider_average_precision``).

    ``images`` and ``faces`` (of hard) that it is about. Then AP on those of the hard faces that have a certain size
    (``ap_8_16_px``: square root of the box's area, in pixels of the image shrunk to a longest side of 640) or, where
    WIDER's own list of attributes is there, a certain attribute (:mod:`attributes`).

    ``root`` as in :func:`wider_records`, ``problems`` as in :func:`read_images`.
    """
    records, found, truth, sizes = [], [], [], []
    for record, image in read_images(root, wider_records(root, problems), "WIDER FACE", problems):
        faces = detect(image, AP_THRESHOLD)
        boxes = np.array([f.box for f in faces]).reshape(-1, 4)
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height])  # annotated boxes end at the picture
        found.append(Detections(boxes, np.array([f.score for f in faces])))
        annotated = np.array(record["boxes_xywh"], float).reshape(-1, 4)
        truth.append(np.concatenate([annotated[:, :2], annotated[:, :2] + annotated[:, 2:]], axis=1))
        sizes.append(np.sqrt(annotated[:, 2:].prod(1)) * min(1, 640 / max(height, width)))
        records.append(record)
    found = normalize_scores(found)
    listed = {}
    for subset in SUBSETS:
        listed[subset] = [np.isin(np.arange(len(b)), r[subset]) for b, r in zip(truth, records, strict=True)]

    def precision(counts: list[np.ndarray]) -> float:
        if not any(c.any() for c in counts):
            return float("nan")
        return wider_average_precision(found, [GroundTruth(b, c) for b, c in zip(truth, counts, strict=True)])

    result: dict[str, float] = {"images": len(records), "faces": sum(int(c.sum()) for c in listed["hard"])}
    result |= {f"ap_{subset}": precision(counts) for subset, counts in listed.items()}
    parts = {}
    for low, high in zip((0, *FACE_SIZES), (*FACE_SIZES, np.inf), strict=True):
        name = f"{low}_{high}_px" if high < np.inf else f"{low}_px_up"
        parts[name] = [(low <= s) & (s < high) for s in sizes]
    try:
        parts |= read_attributes(root, records, truth)
    except (OSError, ValueError) as error:
        if problems is None:
            raise
        problems.append(f"WIDER FACE, AP by attribute: {error}")
    if problems is not None and not (root / LIST).is_file():
        problems.append(f"WIDER FACE, AP by attribute: no file {root / LIST}")
    for name, members in parts.items():
        result[f"ap_{name}"] = precision([h & m for h, m in zip(listed["hard"], members, strict=True)])
    return result


def middle_face(faces: list[Found], image: np.ndarray) -> Found | None:
    """The best-scored face whose box contains the middle of the image: the labelled one in AFLW2000-3D."""
    middle = np.array([image.shape[1], image.shape[0]]) / 2
    over = [f for f in faces if (f.box[:2] <= middle).all() and (middle <= f.box[2:]).all()]
    return max(over, key=lambda f: f.score, default=None)


def evaluate_aflw2000(detect: Detect, root: Path, problems: list[str] | None = None) -> dict[str, float]:
    """Mean absolute errors of pitch, yaw and roll (local rotation), and how many faces were missed; the mean of the
    three by ranges of the label's absolute yaw, too, with the faces there are and were missed in each.

    The labelled face is :func:`middle_face`; without one the face is missed and left out of the means.
    Images in ``crops/`` are tight crops: they are padded by half their size.
    """
    columns = ("pitch_deg", "yaw_deg", "roll_deg")
    errors, labels, lost = [], [], []
    rows = read_labels(root / "labels.csv", columns, problems)
    for row, image in read_images(root, rows, "AFLW2000-3D", problems):
        if row["image"].startswith("crops"):
            y, x = image.shape[0] // 2, image.shape[1] // 2
            image = cv2.copyMakeBorder(image, y, y, x, x, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
        face = middle_face(detect(image, None), image)
        label = np.array([row[k] for k in columns])
        if face is None or face.angles is None:
            lost.append(label)
            continue
        errors.append(angle_errors(face.angles, label))
        labels.append(label)
    yaw, lost_yaw = (np.abs(np.array(v).reshape(-1, 3)[:, 1]) for v in (labels, lost))
    by_yaw: dict[str, float] = {}
    for low, high in YAWS:
        top = high if high < YAWS[-1][1] else np.inf
        within = [e for e, y in zip(errors, yaw, strict=True) if low <= y < top]
        missed = int(((low <= lost_yaw) & (lost_yaw < top)).sum())
        by_yaw[f"mae_yaw_{low}_{high}"] = mean_absolute(within, *ANGLES)["mae"]
        by_yaw |= {f"faces_yaw_{low}_{high}": len(within) + missed, f"missed_yaw_{low}_{high}": missed}
    return {"faces": len(errors) + len(lost), "missed": len(lost), **mean_absolute(errors, *ANGLES), **by_yaw}


def evaluate_pointing04(detect: Detect, root: Path, problems: list[str] | None = None) -> dict[str, float]:
    """Mean absolute error of the pan, in ranges of ``|pan|``, and the faces missed in each.

    Labels are where people looked about the vertical (``geometry.angles_to_pan``), which is not the yaw of heads that
    nod. Each photograph shows one person: their face is the best-scored one.

    Labels are where people were told to look. How they sat puts all of a person's off to one side, and one turns the
    head further for the same mark than another, for whoever measures it. So there are two more errors of the range
    :data:`OWN_PANS`: ``own_zero_…`` without its mean for each person, with sign, and ``own_line_…`` off each person's
    line of least squares (:func:`off_own_line`), which takes a measure's own constant factor out, too: to shrink all
    pans neither gains nor loses.
    """
    pan, error, person = [], [], []
    rows = read_labels(root / "labels.csv", ("pan_deg", "person"), problems)
    for row, image in read_images(root, rows, "Pointing'04", problems):
        faces = detect(image, None)
        best = max(faces, key=lambda f: f.score, default=None)
        pan.append(row["pan_deg"])
        person.append(row["person"])
        seen = np.nan if best is None or best.angles is None else geometry.angles_to_pan(best.angles)
        error.append((seen - row["pan_deg"] + 180) % 360 - 180)
    turned, signed, persons = np.array(pan), np.array(error), np.array(person)
    pans, errors = np.abs(turned), np.abs(signed)

    by_pan: dict[str, float] = {}
    for low, high in PANS:
        within = errors[(pans >= low) & (pans <= high)]
        found = within[~np.isnan(within)]
        by_pan[f"mae_pan_{low}_{high}"] = float(found.mean()) if len(found) else float("nan")
        by_pan[f"missed_pan_{low}_{high}"] = len(within) - len(found)
    low, high = OWN_PANS
    use = (pans >= low) & (pans <= high) & ~np.isnan(signed)
    own = [(turned[use & (persons == p)], signed[use & (persons == p)]) for p in np.unique(persons[use])]
    off_zero = [np.abs(off - off.mean()) for _, off in own]
    off_line = [off_own_line(label, off) for label, off in own]
    for name, parts in (("own_zero", off_zero), ("own_line", off_line)):
        rest = np.concatenate([*parts, np.empty(0)])
        by_pan[f"{name}_mae_pan_{low}_{high}"] = float(rest.mean()) if len(rest) else float("nan")
    return {"faces": len(errors), "missed": int(np.isnan(errors).sum()), **by_pan}


def off_own_line(pan: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Degrees that measured pans, (N,) labels and (N,) errors, are off their line of least squares, over its slope.

    Returns:
        (N,), NaN if the line does not rise; empty for fewer than three labels that differ, which tell no line.
    """
    if len(np.unique(pan)) < 3:
        return np.empty(0)
    line = np.polynomial.Polynomial.fit(pan, pan + error, 1)
    slope = line.deriv()(0)
    return np.abs(pan + error - line(pan)) / (slope if slope > 1e-6 else np.nan)


def mean_absolute(errors: list[np.ndarray], *names: str) -> dict[str, float]:
    """Mean absolute value of each column of N x 3 errors, then of all of them; NaN for N = 0."""
    if not errors:
        return dict.fromkeys(names, float("nan"))
    absolute = np.abs(errors)
    return dict(zip(names, [*absolute.mean(0).tolist(), float(absolute.mean())], strict=True))


Protocol = Callable[[Detect, Path, list[str] | None], dict[str, float]]
EVALUATIONS: dict[str, tuple[str, Protocol]] = {
    "wider": ("wider", evaluate_wider),
    "aflw2000_subset": ("aflw2000", evaluate_aflw2000),
    "pointing04": ("pointing04", evaluate_pointing04),
}
"""Folder and protocol of each set."""
