"""Label one's own photographs: faces by a detector, poses by PnP on its five points."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from img2pose_edge.benchmarks.peers import Peer
from img2pose_edge.detector import PoseDetector
from img2pose_edge.files import real, write_file
from img2pose_edge.preprocess import load_image
from img2pose_edge.progress import track
from img2pose_edge.training.complete import complete_face, is_sound
from img2pose_edge.training.data import parse_lines

logger = logging.getLogger(__name__)

Label = Callable[[np.ndarray], list[dict[str, Any]]]
SELF_SPREAD = 4.0
"""Degrees by which the bundled model's own angles may be wrong: about its error on AFLW2000-3D."""


@dataclass(frozen=True)
class Annotated:
    """Images labelled by this call, how many faces they hold, and why images were skipped."""

    images: int
    faces: int
    skipped: list[str]


def label_by_detector(detector: Path, threshold: float) -> Label:
    """Faces and five points of a YuNet or SCRFD model; angles by PnP on the points."""
    detect = Peer(detector)
    if not detect.has_points:
        raise ValueError(f"{detector} marks no points to take poses from: YuNet or SCRFD with five points does")

    def label(image: np.ndarray) -> list[dict[str, Any]]:
        height, width = image.shape[:2]
        faces = []
        for found in detect(image, threshold):
            face = {"box": found.box.round(2).tolist(), "score": round(found.score, 3)}
            face |= {"landmarks": np.asarray(found.landmarks, float).round(2).tolist(), "source": "detector"}
            try:
                faces.append(complete_face(face, width, height))
            except ValueError:  # points that no face in front of the camera has: the box still teaches
                del face["landmarks"]
                faces.append(face)
        return faces

    return label


def label_by_model(model: str | None, threshold: float) -> Label:
    """Faces and angles of one of our models (a bundled one's name, or a path)."""
    detector = PoseDetector(model)

    def label(image: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "box": face.box.round(2).tolist(),
                "score": round(face.score, 3),
                "angles": face.angles.round(3).tolist(),
                "spread": SELF_SPREAD,
                "source": detector.model.manifest["name"],
            }
            for face in detector.detect(image, score_threshold=threshold)
        ]

    return label


def annotate(images: list[Path], out: Path, label: Label, *, skip_bad: bool = False) -> Annotated:
    """Append a line to ``out`` for every image that it does not hold yet: the same call goes on after an interruption.

    Args:
        images: files; their names in ``out`` are relative to its folder where they lie below it.
        out: ``labels.jsonl`` to begin or to go on with; ``img2pose-edge train --data`` takes its folder.
        label: faces of an (H, W, 3) uint8 BGR image.
        skip_bad: leave out, and name, images that cannot be read, instead of stopping at the first.

    Raises:
        ValueError: if there are no images, ``out`` is damaged, or an image is bad.
    """
    if not images:
        raise ValueError("no images to annotate")
    if out.name != "labels.jsonl":
        raise ValueError(f"labels are written to a file named labels.jsonl, got {out}")
    root = real(out.parent)
    names = [str(real(p).relative_to(root)) if real(p).is_relative_to(root) else str(real(p)) for p in images]
    done = whole_lines(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    skipped: list[str] = []
    count = faces_found = 0
    with out.open("a") as file:
        for path, name in track(list(zip(images, names, strict=True)), "annotating"):
            if name in done:
                continue
            try:
                image = load_image(path)
            except (OSError, ValueError) as error:
                if not skip_bad:
                    raise ValueError(f"{error} (--skip-bad leaves such images out)") from error
                skipped.append(str(error))
                continue
            height, width = image.shape[:2]
            faces = [f for f in label(image) if is_sound(f, width, height)]
            file.write(json.dumps({"image": name, "width": width, "height": height, "faces": faces}) + "\n")
            file.flush()
            count, faces_found = count + 1, faces_found + len(faces)
    return Annotated(count, faces_found, skipped)


def whole_lines(out: Path) -> set[str]:
    """Names of the images that ``out`` holds; a last line cut off by an interruption is moved to a file beside it."""
    if not out.exists():
        return set()
    data = out.read_bytes()
    end = data.rfind(b"\n") + 1
    names = {*parse_lines(out, data[:end], _name)}
    if data[end:]:
        try:
            names.update(parse_lines(out, data[end:], _name))
        except ValueError:
            if is_json(data[end:]):  # somebody's own, of another kind
                parse_lines(out, data, _name)  # says where
            cut = out.with_name(out.name + ".cut")
            write_file(cut, data[end:])
            logger.warning("the last line of %s is not whole: it is in %s now, its image is labelled anew", out, cut)
            os.truncate(out, end)
        else:
            with out.open("ab") as file:
                file.write(b"\n")
    return names


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _name(label: dict[str, Any]) -> str:
    return str(label["image"])
