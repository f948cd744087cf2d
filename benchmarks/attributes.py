"""WIDER FACE's own attributes of faces: blur, expression, illumination, occlusion, pose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
"""Columns of the list after x, y, width and height."""
LIST = Path("wider_face_split") / "wider_face_val_bbx_gt.txt"


def read_list(path: Path) -> dict[str, np.ndarray]:
    """WIDER FACE's annotation list: (F, 10) numbers of each image, by its name without folders.

    Raises:
        ValueError: naming the line that is not as it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no list of faces: it is not UTF-8 text") from error
    faces, at = {}, 0
    while at < len(lines):
        name = lines[at].strip()
        try:
            count = max(int(lines[at + 1]), 1)  # images of no face have a row of zeros
            rows = np.array([line.split() for line in lines[at + 2 : at + 2 + count]], float)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}, line {at + 2}: {error}") from error
        if rows.shape != (count, 10):
            raise ValueError(f"{path}, line {at + 3}: expected {count} rows of 10 numbers for {name}")
        faces[Path(name).name] = rows
        at += 2 + count
    return faces


def read_attributes(root: Path, records: list[dict[str, Any]], boxes: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Faces by attribute, where WIDER's list lies in ``root``; empty where it does not.

    Args:
        root: folder of the data; the list is :data:`LIST` below it.
        records: the images, with their path as ``image``.
        boxes: (F, 4) corners of each image's faces.

    Returns:
        by attribute and its value, as ``occlusion_2``, (F,) bool for each image: the faces that have it.
    """
    path = root / LIST
    if not path.is_file():
        return {}
    listed = read_list(path)
    values = []
    for record, corners in zip(records, boxes, strict=True):
        known = {tuple(row[:4]): row[4:] for row in listed.get(Path(record["image"]).name, np.empty((0, 10)))}
        none = np.full(len(ATTRIBUTES), -1.0)
        faces = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        values.append(np.array([known.get(tuple(face), none) for face in faces]).reshape(-1, len(ATTRIBUTES)))
    found = {}
    for column, name in enumerate(ATTRIBUTES):
        for value in np.unique(np.concatenate([v[:, column] for v in values])):
            if value >= 0 and name != "invalid":
                found[f"{name}_{value:.0f}"] = [v[:, column] == value for v in values]
    return found
