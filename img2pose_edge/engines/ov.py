"""OpenVINO, reading its own IR or ONNX."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino.preprocess import PrePostProcessor

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
        self._requests: dict[tuple[int, ...] | None, Request] = {}
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._calls, self._used = 0, dict[tuple[int, ...] | None, int]()

    def infer(self, values: np.ndarray) -> list[np.ndarray]:
        """Run the network of one input; returns its outputs in the order of ``model.outputs``, which hold until the
        next call.

        Raises:
            ValueError: if OpenVINO refuses the network, its options or the input's shape.
        """
        request = self._request(values.shape)
        if not values.flags.writeable:  # memory that OpenVINO does not share
            values = values.copy()
        return request.infer(values)

    def _request(self, shape: tuple[int, ...]) -> Request:
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
                self._requests[key] = Request(network, self._config)
            except RuntimeError as error:
                refused = f"openvino refuses {self._path.name}, its options or an input of {shape}"
                raise ValueError(f"{refused}: {error}") from error
        return self._requests[key]


class Request:
    """A compiled network. Its outputs are written to the same memory at each call, if their size is known; maps lie
    there as convolutions write them, channels last, which saves OpenVINO a pass over them."""

    def __init__(self, network: openvino.Model, config: dict[str, Any]) -> None:
        shapes = [o.partial_shape for o in network.outputs]
        self._maps = [s.rank.is_static and len(s) == 4 and s[1] != 1 for s in shapes]
        if any(self._maps):
            ends = PrePostProcessor(network)
            for number, is_map in enumerate(self._maps):
                if is_map:
                    ends.output(number).model().set_layout(openvino.Layout("NCHW"))
                    ends.output(number).tensor().set_layout(openvino.Layout("NHWC"))
            network = ends.build()
        self._request = core().compile_model(network, "CPU", config).create_infer_request()
        self._outputs: list[np.ndarray] | None = None
        if not network.is_dynamic():
            written = [np.empty(o.shape, o.element_type.to_dtype()) for o in network.outputs]
            for i, array in enumerate(written):
                self._request.set_output_tensor(i, openvino.Tensor(array, shared_memory=True))
            self._outputs = self._channels_first(written)

    def infer(self, values: np.ndarray) -> list[np.ndarray]:
        """One input, writeable, to the outputs."""
        # Less overhead than infer([values]).
        self._request.set_input_tensor(openvino.Tensor(values, shared_memory=True))
        self._request.infer(share_outputs=True)  # outputs are not copied
        if self._outputs is not None:
            return self._outputs
        return self._channels_first([tensor.data for tensor in self._request.output_tensors])

    def _channels_first(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [a.transpose(0, 3, 1, 2) if is_map else a for a, is_map in zip(arrays, self._maps, strict=True)]


class OpenVinoEngine:
    def __init__(self, model: Model, threads: int | None, provider: str, options: dict[str, Any]) -> None:
        self._network = Compiled(model.path, threads, options)
        names = [output.names for output in self._network.model.outputs]
        check_outputs(model.output_names, [name for of in names for name in of])
        self._order = [next(i for i, of in enumerate(names) if name in of) for name in model.output_names]

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        outputs = self._network.infer(image)
        return [outputs[i] for i in self._order]


load = OpenVinoEngine
