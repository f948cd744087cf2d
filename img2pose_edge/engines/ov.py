"""OpenVINO, reading its own IR or ONNX."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import openvino

from img2pose_edge.manifest import Model, check_outputs


@cache
def core() -> openvino.Core:
    """One core that is never released.

    It replaces the alternate signal stack of the thread that loads it, and unmaps it when the last core goes, from
    whichever thread that is: the next signal (a child process that ends) then kills the process.
    """
    return openvino.Core()


class OpenVinoEngine:
    def __init__(self, model: Model, threads: int | None, provider: str, options: dict[str, Any]) -> None:
        # Left alone, OpenVINO computes in bfloat16 where the CPU can, which moves faces and poses.
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **options}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        compiled = core().compile_model(str(model.path), "CPU", config)
        self._request = compiled.create_infer_request()
        self._names = model.output_names
        check_outputs(self._names, [name for output in compiled.outputs for name in output.names])

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        self._request.infer([image], share_inputs=True)
        return [self._request.get_tensor(name).data for name in self._names]


load = OpenVinoEngine
