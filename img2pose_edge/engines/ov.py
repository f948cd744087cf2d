"""OpenVINO (reads ONNX and its own IR)."""

from __future__ import annotations

import numpy as np
import openvino

from img2pose_edge.manifest import Model


class OpenVinoEngine:
    def __init__(self, model: Model, threads: int | None) -> None:
        config: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(str(model.path), "CPU", config)
        self._request = compiled.create_infer_request()
        self._names = model.score_outputs + model.pose_outputs

    def run(self, image: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        self._request.infer([image], share_inputs=True)
        outputs = [self._request.get_tensor(name).data for name in self._names]
        levels = len(outputs) // 2
        return outputs[:levels], outputs[levels:]


load = OpenVinoEngine
