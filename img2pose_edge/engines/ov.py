"""OpenVINO, reading ONNX."""

from __future__ import annotations

import numpy as np
import openvino

from img2pose_edge.manifest import Model


class OpenVinoEngine:
    def __init__(self, model: Model, threads: int | None) -> None:
        # Left alone, OpenVINO computes in bfloat16 where the CPU can, which moves faces and poses.
        config: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(str(model.path), "CPU", config)
        self._request = compiled.create_infer_request()
        self._names = model.output_names

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        self._request.infer([image], share_inputs=True)
        return [self._request.get_tensor(name).data for name in self._names]


load = OpenVinoEngine
