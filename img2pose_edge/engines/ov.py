"""OpenVINO, reading its own IR or ONNX."""

from __future__ import annotations

from functools import cache
from pathlib import Path
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
    """A network compiled for the size of its first image, which makes it a fifth faster, and once more for all others
    when the first of these comes."""

    def __init__(self, model: Model, threads: int | None, provider: str, options: dict[str, Any]) -> None:
        # Left alone, OpenVINO computes in bfloat16 where the CPU can, which moves faces and poses.
        self._config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **options}
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._path = str(model.path)
        self._names = model.output_names
        check_outputs(self._names, [n for o in core().read_model(self._path).outputs for n in o.names])
        self._requests: dict[tuple[int, ...] | None, Any] = {}

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape in self._requests:
            return self._requests[shape]
        key = None if self._requests else shape
        if key not in self._requests:
            network = core().read_model(self._path)
            try:
                if key:
                    network.reshape(list(key))
                compiled = core().compile_model(network, "CPU", self._config)
            except RuntimeError as error:
                name = Path(self._path).name
                raise ValueError(f"openvino refuses {name}, its options or this image: {error}") from error
            self._requests[key] = compiled.create_infer_request()
        return self._requests[key]

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        request = self._request(image.shape)
        request.infer([image], share_inputs=True)
        return [request.get_tensor(name).data for name in self._names]


load = OpenVinoEngine
