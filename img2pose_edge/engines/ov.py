"""OpenVINO, reading its own IR or ONNX."""

from __future__ import annotations

from collections import Counter
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


OFTEN, MOST, IDLE = 8, 6, 100
"""Inputs of one size from which it is compiled for (a quarter of a second); compiled networks that are kept; and calls
for which one has not been used when it makes room for another."""


class Compiled:
    """A network compiled for the size of its first input and for sizes that come often, which makes it up to twice as
    fast, and once more for all others when the first of these comes."""

    def __init__(self, path: Path, threads: int | None, options: dict[str, Any]) -> None:
        # Left alone, OpenVINO computes in bfloat16 where the CPU can, which moves faces and poses.
        self._config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **options}
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._path = path
        self.model = core().read_model(str(path))
        self._requests: dict[tuple[int, ...] | None, Any] = {}
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._calls, self._used = 0, dict[tuple[int, ...] | None, int]()

    def infer(self, values: np.ndarray) -> Any:
        """Run the network of one input; returns the request, which holds the outputs.

        Raises:
            ValueError: if OpenVINO refuses the network, its options or the input's shape.
        """
        request = self._request(values.shape)
        if not values.flags.writeable:  # memory that OpenVINO does not share
            values = values.copy()
        request.set_input_tensor(openvino.Tensor(values, shared_memory=True))  # less overhead than infer([values])
        request.infer(share_outputs=True)  # outputs are not copied
        return request

    def _request(self, shape: tuple[int, ...]) -> Any:
        self._calls += 1
        self._seen[shape] += 1
        key = shape if shape in self._requests or self._seen[shape] > OFTEN or not self._requests else None
        if key and key not in self._requests and len(self._requests) >= MOST:
            oldest = min(filter(None, self._requests), key=self._used.__getitem__)
            if self._calls - self._used[oldest] > IDLE:
                del self._requests[oldest], self._seen[oldest]
            else:  # sizes that come by turns would be compiled again and again
                key = None
        self._used[key] = self._calls
        if key not in self._requests:
            network = self.model.clone()
            try:
                if key:
                    network.reshape(list(key))
                compiled = core().compile_model(network, "CPU", self._config)
            except RuntimeError as error:
                refused = f"openvino refuses {self._path.name}, its options or an input of {shape}"
                raise ValueError(f"{refused}: {error}") from error
            self._requests[key] = compiled.create_infer_request()
        return self._requests[key]


class OpenVinoEngine:
    def __init__(self, model: Model, threads: int | None, provider: str, options: dict[str, Any]) -> None:
        self._network = Compiled(model.path, threads, options)
        self._names = model.output_names
        check_outputs(self._names, [name for output in self._network.model.outputs for name in output.names])

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        request = self._network.infer(image)
        return [request.get_tensor(name).data for name in self._names]


load = OpenVinoEngine
