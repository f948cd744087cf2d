"""Faces as COCO annotations, to look at and correct in annotation tools or to train other models on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from img2pose_edge.face import Face, check_type
from img2pose_edge.files import write_file

PARTS = {
    "jaw": 17, "right_brow": 5, "left_brow": 5, "nose_bridge": 4, "nostrils": 5,
    "right_eye": 6, "left_eye": 6, "outer_lips": 12, "inner_lips": 8,
}  # fmt: skip
"""The iBUG points, part by part in their order; right and left are the person's."""
CLOSED = ("right_eye", "left_eye", "outer_lips", "inner_lips")
VISIBLE, HIDDEN = 2, 1
"""COCO's flags of a keypoint."""

Pictured = tuple[str, tuple[int, int], Iterable[Face]]
"""Name of an image, its width and height in pixels, its faces."""


def to_coco(images: Iterable[Pictured]) -> dict[str, Any]:
    """Images and their faces as a COCO data set, ready for JSON.

    Args:
        images: name (as ``file_name``), (width, height) and faces of each; faces wholly beyond the border are left out.
            With a calibration, those of the image as it is, not of ``undistort_face``: that has other keypoints.

    Returns:
        ``images``, ``annotations`` and ``categories``, ids from 1. An annotation has ``bbox`` (x, y, width, height,
        pixels, cut off at the image's border), ``area``, ``iscrowd`` 0, ``keypoints`` (the 68 projected points as x,
        y, flag: 2 inside the image, hidden by the head or not, and 1 beyond it), ``score``, and in ``attributes``
        ``pitch``, ``yaw``, ``roll`` (degrees), ``rotation_vector`` (radians) and ``translation_mm``.
    """
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, (width, height), faces in images:
        faces = list(faces)
        check_type(faces)
        pictures.append({"id": len(pictures) + 1, "file_name": str(name), "width": int(width), "height": int(height)})
        for annotation in (_annotation(face, width, height) for face in faces):
            known = {"id": len(annotations) + 1, "image_id": len(pictures), "category_id": 1, "iscrowd": 0}
            if annotation["area"] > 0:
                annotations.append({**known, **annotation})
    return {"images": pictures, "annotations": annotations, "categories": [_category()]}


def write_coco(path: str | PathLike[str], images: Iterable[Pictured]) -> None:
    """Write :func:`to_coco` as a JSON file, which holds either the old or the whole new content."""
    write_file(Path(path), json.dumps(to_coco(images)).encode())


def _annotation(face: Face, width: int, height: int) -> dict[str, Any]:
    corners = face.box.reshape(2, 2).clip(0, [width, height]).round(2)
    across, down = (corners[1] - corners[0]).round(2).tolist()
    points = face.landmarks68.round(2)
    inside = np.all((points >= 0) & (points < [width, height]), axis=1).tolist()
    keypoints: list[float] = []
    for (x, y), seen in zip(points.tolist(), inside, strict=True):
        keypoints += [x, y, VISIBLE if seen else HIDDEN]
    return {
        "bbox": [*corners[0].tolist(), across, down],
        "area": round(across * down, 2),
        "keypoints": keypoints,
        "num_keypoints": len(points),
        "score": round(float(face.score), 4),
        "attributes": {
            "pitch": round(face.pitch, 3),
            "yaw": round(face.yaw, 3),
            "roll": round(face.roll, 3),
            "rotation_vector": face.pose[:3].round(6).tolist(),
            "translation_mm": face.translation_mm.round(2).tolist(),
        },
    }


def _category() -> dict[str, Any]:
    names: list[str] = []
    bones: list[list[int]] = []
    for part, count in PARTS.items():
        first = len(names) + 1  # COCO counts keypoints from 1
        names += [f"{part}_{i + 1}" for i in range(count)]
        bones += [[i, i + 1] for i in range(first, first + count - 1)]
        if part in CLOSED:
            bones.append([first + count - 1, first])
    return {"id": 1, "name": "face", "supercategory": "person", "keypoints": names, "skeleton": bones}
