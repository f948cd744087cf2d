"""Peer detectors to check the protocols against and to compare with; their models are the user's to bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from img2pose_edge.benchmarks.accuracy import Detect, Found

from img2pose_edge.nms import non_maximum_suppression
from img2pose_edge.preprocess import letterbox

NMS_IOU = 0.3  # as OpenCV's FaceDetectorYN


def yunet(path: Path, longest: int = 640, threads: int | None = None) -> Detect:
    """YuNet (libfacedetection.train) in ONNX Runtime: boxes and scores.

    Outputs per stride: class and object probability, whose geometric mean is the score; box as centre
    offset and log size in strides.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options)
    input_name = session.get_inputs()[0].name

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        pixels, scale = letterbox(image, longest, 32)
        maps = dict(
            zip(
                [o.name for o in session.get_outputs()],
                session.run(None, {input_name: pixels.transpose(2, 0, 1)[None].astype(np.float32)}),
                strict=True,
            )
        )
        boxes, scores = [], []
        for stride in (8, 16, 32):
            score = np.sqrt(np.clip(maps[f"cls_{stride}"], 0, 1) * np.clip(maps[f"obj_{stride}"], 0, 1)).ravel()
            raw = maps[f"bbox_{stride}"].reshape(-1, 4)
            columns = pixels.shape[1] // stride
            index = np.arange(len(score))
            cells = np.stack([index % columns, index // columns], axis=1)
            middle, extent = (cells + raw[:, :2]) * stride, np.exp(raw[:, 2:]) * stride
            kept = score >= (0.6 if threshold is None else threshold)
            boxes.append(np.concatenate([middle - extent / 2, middle + extent / 2], axis=1)[kept])
            scores.append(score[kept])
        every_box, every_score = np.concatenate(boxes), np.concatenate(scores)
        keep = non_maximum_suppression(every_box, every_score, NMS_IOU)
        return [Found(float(every_score[i]), every_box[i] / np.tile(scale, 2)) for i in keep]

    return detect
