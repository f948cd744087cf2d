"""Peer detectors to check the protocols against, to label with and to compare with; their models are the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from img2pose_edge.benchmarks.accuracy import Found
from img2pose_edge.benchmarks.peer_network import open_network

from img2pose_edge.nms import non_maximum_suppression
from img2pose_edge.preprocess import letterbox

YUNET_NMS, SCRFD_NMS, RFB_NMS = 0.3, 0.4, 0.5
"""As OpenCV's FaceDetectorYN, InsightFace and the Ultra-Light detector's own code use them."""
EVALUATION_NMS = 0.45
"""As the authors of YuNet and SCRFD use it to measure average precision (``test_cfg`` of their configurations)."""
YUNET_SCORE, SCRFD_SCORE, RFB_SCORE = 0.6, 0.5, 0.7
RFB_OUTPUTS = ["scores", "boxes"]
STRIDES = (8, 16, 32)
MOST = 5000
"""Boxes that go into NMS at most, the best ones (``top_k`` of OpenCV's FaceDetectorYN)."""
SCRFD_ANCHORS = 2
"""Anchors in a cell, both at its top-left corner."""

Maps = dict[str, np.ndarray]
Detected = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Scores (N,), boxes (N, 4) and five points (N, 5, 2) or none, in the network's pixels."""


class Peer:
    """A detector whose steps can be timed apart; called with an image and a threshold it is a ``Detect``.

    Without a threshold it runs as its authors deploy it, with one as they measure its average precision.
    """

    def __init__(
        self,
        path: Path,
        longest: int = 640,
        threads: int | None = None,
        engine: str = "onnxruntime",
        alone: bool = True,
    ) -> None:
        """
        Args:
            path: ``.onnx`` of YuNet, SCRFD with five points, or RFB-320, told by its outputs.
            longest: images are shrunk to this longest side, pixels; networks of a fixed size take theirs.
            threads: of the engine, default its own choice.
            engine: ``onnxruntime`` or ``openvino``.
            alone: as of :func:`~img2pose_edge.benchmarks.peer_network.open_network`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is none of them, or the engine cannot load it.
        """
        self.network = open_network(path, threads, engine, alone)
        names = self.network.outputs
        self.has_points = names != RFB_OUTPUTS
        self._longest = longest
        self._decode: Callable[[Maps, tuple[int, int], float], Detected]
        if "cls_8" in names:
            self._decode, self._mean, self._std, self._rgb = _yunet, 0.0, 1.0, False
            self.score, self._overlap, self._evaluation_overlap = YUNET_SCORE, YUNET_NMS, EVALUATION_NMS
        elif len(names) == 3 * len(STRIDES):
            self._decode, self._mean, self._std, self._rgb = _scrfd, 127.5, 128.0, True
            self.score, self._overlap, self._evaluation_overlap = SCRFD_SCORE, SCRFD_NMS, EVALUATION_NMS
        elif names == RFB_OUTPUTS and self.network.size:
            self._decode, self._mean, self._std, self._rgb = _rfb, 127.0, 128.0, True
            self.score, self._overlap, self._evaluation_overlap = RFB_SCORE, RFB_NMS, RFB_NMS
        else:
            raise ValueError(
                f"{path} is neither YuNet nor SCRFD with five points nor RFB-320: its outputs are {', '.join(names)}"
            )

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(1, 3, H, W) float32 for the network, and (2,) its pixels per pixel of the (H, W, 3) uint8 BGR image."""
        if self.network.size and not self.has_points:  # RFB-320 was trained on images stretched to its size
            height, width = self.network.size
            pixels = cv2.resize(image, (width, height))
            scale = np.array([width / image.shape[1], height / image.shape[0]])
        else:
            pixels, scale = letterbox(image, self._longest, max(STRIDES), fixed=self.network.size)
        return cv2.dnn.blobFromImage(pixels, 1 / self._std, mean=[self._mean] * 3, swapRB=self._rgb), scale

    def __call__(self, image: np.ndarray, threshold: float | None) -> list[Found]:
        blob, scale = self.prepare(image)
        maps = self.network.run(blob)
        least = self.score if threshold is None else threshold
        scores, boxes, points = self._decode(maps, blob.shape[2:], least)
        overlap = self._overlap if threshold is None else self._evaluation_overlap
        best = np.argsort(-scores, kind="stable")[:MOST]
        boxes = boxes / np.tile(scale, 2)
        keep = best[non_maximum_suppression(boxes[best], scores[best], overlap)]
        marks = [None if points is None else points[i] / scale for i in keep]
        return [Found(float(scores[i]), boxes[i], landmarks=mark) for i, mark in zip(keep, marks, strict=True)]


def _cells(count: int, columns: int) -> np.ndarray:
    """(count, 2) column and row."""
    index = np.arange(count)
    return np.stack([index % columns, index // columns], axis=1)


def _yunet(maps: Maps, size: tuple[int, int], threshold: float) -> Detected:
    """YuNet (libfacedetection.train): the score is the geometric mean of class and object probability; centre and
    points are offsets from the cell, the extent a logarithm, all in strides."""
    levels = []
    for stride in STRIDES:
        score = np.sqrt(np.clip(maps[f"cls_{stride}"], 0, 1) * np.clip(maps[f"obj_{stride}"], 0, 1)).ravel()
        kept = score >= threshold
        cells = _cells(len(score), size[1] // stride)[kept]
        raw = maps[f"bbox_{stride}"].reshape(-1, 4)[kept]
        middle, extent = (cells + raw[:, :2]) * stride, np.exp(raw[:, 2:]) * stride
        points = (cells[:, None] + maps[f"kps_{stride}"].reshape(-1, 5, 2)[kept]) * stride
        levels.append((score[kept], np.concatenate([middle - extent / 2, middle + extent / 2], axis=1), points))
    scores, boxes, points = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    return scores, boxes, points


def _scrfd(maps: Maps, size: tuple[int, int], threshold: float) -> Detected:
    """SCRFD (InsightFace): outputs are scores of all strides, then distances from the anchor to the box's sides, then
    point offsets, in strides."""
    outputs, levels = list(maps.values()), []
    for level, stride in enumerate(STRIDES):
        score = outputs[level].ravel()
        kept = score >= threshold
        cells = _cells(len(score) // SCRFD_ANCHORS, size[1] // stride)
        anchor = (np.repeat(cells, SCRFD_ANCHORS, axis=0) * stride)[kept]
        sides = outputs[level + len(STRIDES)].reshape(-1, 4)[kept] * stride
        points = anchor[:, None] + outputs[level + 2 * len(STRIDES)].reshape(-1, 5, 2)[kept] * stride
        levels.append((score[kept], np.concatenate([anchor - sides[:, :2], anchor + sides[:, 2:]], axis=1), points))
    scores, boxes, points = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    return scores, boxes, points


def _rfb(maps: Maps, size: tuple[int, int], threshold: float) -> Detected:
    """RFB-320 (Ultra-Light-Fast-Generic-Face-Detector-1MB): probabilities of background and face, boxes as shares of
    the image, no points."""
    score = maps["scores"][0, :, 1]
    kept = score >= threshold
    return score[kept], maps["boxes"][0, kept] * np.tile(size[::-1], 2), None
