"""Faces as ``supervision`` has detections, for its annotators and filters and for the trackers that take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from img2pose_edge.face import Face, check_type


def to_supervision(faces: Sequence[Face], ids: Sequence[int] | None = None) -> Any:
    """Faces of one image as ``supervision.Detections``.

    Args:
        faces: N of them, as ``detect_poses`` returns them; of tracked faces the ``face`` of each.
        ids: N track numbers, if there are; of tracked faces the ``id`` of each.

    Returns:
        ``supervision.Detections`` with ``xyxy`` (N, 4) float64 image pixels, ``confidence`` (N,), ``class_id`` (N,)
        zeros, ``tracker_id`` (N,) or None, and in ``data``, rows that filters and trackers keep together with their
        box: ``class_name`` ("face"), ``index`` into ``faces``, ``pose`` (N, 6), ``rotation`` (N, 3, 3), ``angles``
        (N, 3) degrees, ``translation_mm`` (N, 3) and ``landmarks68`` (N, 68, 2), as in :class:`Face`.

    Raises:
        ValueError: if there are not as many ids as faces.
        TypeError: naming what is not a face.
        ImportError: if supervision is not installed.
    """
    check_ids(faces, ids)
    check_type(faces)
    try:
        import supervision
    except ImportError as error:
        raise ImportError("detections for supervision need it: pip install 'img2pose-edge[supervision]'") from error
    count = len(faces)

    def stack(name: str, *shape: int) -> np.ndarray:
        return np.array([getattr(face, name) for face in faces], float).reshape(count, *shape)

    return supervision.Detections(
        xyxy=stack("box", 4),
        confidence=stack("score"),
        class_id=np.zeros(count, int),
        tracker_id=None if ids is None else np.array(ids, int).reshape(count),
        data={
            "class_name": np.full(count, "face"),
            "index": np.arange(count),
            "pose": stack("pose", 6),
            "rotation": stack("rotation", 3, 3),
            "angles": stack("angles", 3),
            "translation_mm": stack("translation_mm", 3),
            "landmarks68": stack("landmarks68", 68, 2),
        },
    )


def check_ids(faces: Sequence[Face], ids: Sequence[int | None] | None) -> None:
    """Raise ValueError if there are ids but not one a face."""
    if ids is not None and len(ids) != len(faces):
        raise ValueError(f"{len(faces)} faces need as many ids, got {len(ids)}")
