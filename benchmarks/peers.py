"""Peer detectors to check the protocols against, to label with and to compare with; their models are the user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from img2pose_edge.benchmarks.accuracy import Detect, Found

from img2pose_edge.nms import non_maximum_suppression
from img2pose_edge.preprocess import letterbox

YUNET_NMS, SCRFD_NMS = 0.3, 0.4
"""As OpenCV's FaceDetectorYN and InsightFace use them."""
YUNET_SCORE, SCRFD_SCORE = 0.6, 0.5
STRIDES = (8, 16, 32)
SCRFD_ANCHORS = 2
"""Anchors in a cell, both at its top-left corner."""


def load_peer(path: Path, longest: int = 640, threads: int | None = None) -> Detect:
    """A YuNet or SCRFD (with five points), told by its outputs, in ONNX Runtime.

    Args:
        path: its ``.onnx``.
        longest: images are shrunk to this longest side, pixels.
        threads: of ONNX Runtime, default its own choice.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is neither.
    """
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"no detector {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options)
    except Exception as error:  # ONNX Runtime's own kinds, by what is wrong with the file
        raise ValueError(f"{path} is not a model that ONNX Runtime can load: {error}") from error
    names = [o.name for o in session.get_outputs()]
    if "cls_8" in names:
        decode, mean, std, rgb, default, overlap = _yunet, 0.0, 1.0, False, YUNET_SCORE, YUNET_NMS
    elif len(names) == 3 * len(STRIDES):
        decode, mean, std, rgb, default, overlap = _scrfd, 127.5, 128.0, True, SCRFD_SCORE, SCRFD_NMS
    else:
        raise ValueError(f"{path} is neither YuNet nor SCRFD with five points: its outputs are {', '.join(names)}")
    input_name = session.get_inputs()[0].name

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        pixels, scale = letterbox(image, longest, max(STRIDES))
        planes = pixels[..., ::-1] if rgb else pixels
        blob = ((planes.transpose(2, 0, 1)[None].astype(np.float32)) - mean) / std
        maps = dict(zip(names, session.run(None, {input_name: blob}), strict=True))
        least = default if threshold is None else threshold
        levels = [decode(maps, stride, pixels.shape[1] // stride, least) for stride in STRIDES]
        scores, boxes, points = (np.concatenate(parts) for parts in zip(*levels, strict=True))
        boxes, points = boxes / np.tile(scale, 2), points / scale
        keep = non_maximum_suppression(boxes, scores, overlap)
        return [Found(float(scores[i]), boxes[i], landmarks=points[i]) for i in keep]

    return detect


Level = tuple[np.ndarray, np.ndarray, np.ndarray]


def _cells(count: int, columns: int) -> np.ndarray:
    """(count, 2) column and row."""
    index = np.arange(count)
    return np.stack([index % columns, index // columns], axis=1)


def _yunet(maps: dict[str, np.ndarray], stride: int, columns: int, threshold: float) -> Level:
    """Scores (N,), boxes (N, 4), points (N, 5, 2) of a level of YuNet (libfacedetection.train).

    The score is the geometric mean of class and object probability; centre and points are offsets from the
    cell, the extent a logarithm, all in strides.
    """
    score = np.sqrt(np.clip(maps[f"cls_{stride}"], 0, 1) * np.clip(maps[f"obj_{stride}"], 0, 1)).ravel()
    kept = score >= threshold
    cells = _cells(len(score), columns)[kept]
    raw = maps[f"bbox_{stride}"].reshape(-1, 4)[kept]
    middle, extent = (cells + raw[:, :2]) * stride, np.exp(raw[:, 2:]) * stride
    points = (cells[:, None] + maps[f"kps_{stride}"].reshape(-1, 5, 2)[kept]) * stride
    return score[kept], np.concatenate([middle - extent / 2, middle + extent / 2], axis=1), points


def _scrfd(maps: dict[str, np.ndarray], stride: int, columns: int, threshold: float) -> Level:
    """The same of a level of SCRFD (InsightFace): outputs are scores of all strides, then distances from the
    anchor to the box's sides, then point offsets, in strides."""
    outputs, level = list(maps.values()), STRIDES.index(stride)
    score = outputs[level].ravel()
    kept = score >= threshold
    anchor = (np.repeat(_cells(len(score) // SCRFD_ANCHORS, columns), SCRFD_ANCHORS, axis=0) * stride)[kept]
    sides = outputs[level + len(STRIDES)].reshape(-1, 4)[kept] * stride
    points = anchor[:, None] + outputs[level + 2 * len(STRIDES)].reshape(-1, 5, 2)[kept] * stride
    return score[kept], np.concatenate([anchor - sides[:, :2], anchor + sides[:, 2:]], axis=1), points
