"""TFLite: LiteRT, or its forerunner tflite-runtime where that is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from img2pose_edge.manifest import Model, check_outputs

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter


class TfliteEngine:
    def __init__(self, model: Model, threads: int | None, provider: str, options: dict[str, Any]) -> None:
        self._interpreter = Interpreter(**{"model_path": str(model.path), "num_threads": threads, **options})
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        # The converter numbers outputs in the order in which the network returns them.
        outputs = sorted(self._interpreter.get_output_details(), key=lambda details: details["name"])
        self._outputs = [details["index"] for details in outputs]
        if len(self._outputs) != len(model.output_names):
            check_outputs(model.output_names, [details["name"] for details in outputs])

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


load = TfliteEngine
