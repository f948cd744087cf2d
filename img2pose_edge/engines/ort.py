"""ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime

from img2pose_edge.manifest import Model


class OnnxRuntimeEngine:
    def __init__(self, model: Model, threads: int | None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about devices, not about us
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(model.path), options, providers=onnxruntime.get_available_providers()
        )
        self._input = self._session.get_inputs()[0].name
        self._names = model.output_names

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self._session.run(self._names, {self._input: image})
        return outputs


load = OnnxRuntimeEngine
