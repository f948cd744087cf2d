"""ONNX Runtime, on any of its execution providers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from img2pose_edge.manifest import Model, check_outputs
from img2pose_edge.processor import has_vnni, is_x86

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
AUTOMATIC = ("cuda", "cpu")
"""Taken unasked, the first that is there. TensorRT builds for minutes at first; XNNPACK and CoreML take parts of a
graph only: those are for people who ask for them."""


def tensorrt_options() -> dict[str, Any]:
    """Half precision, and engines kept from one run to the next: building one takes minutes on a Jetson."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "img2pose-edge" / "tensorrt"
    return {
        "trt_fp16_enable": True,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
    }


def available() -> dict[str, str]:
    return {short: full for short, full in PROVIDERS.items() if full in onnxruntime.get_available_providers()}


def automatic_provider() -> str:
    there = available()
    return next(there[short] for short in AUTOMATIC if short in there)


def choose_provider(name: str) -> str:
    """The full name of an execution provider, or of the automatic one if ``name`` is empty.

    Raises:
        ValueError: if it is unknown, or the installed ONNX Runtime lacks it.
    """
    if not name:
        return automatic_provider()
    there = available()
    if name not in there:
        known = "" if name in PROVIDERS else f"unknown provider, one of {', '.join(PROVIDERS)} is meant; "
        raise ValueError(f"onnxruntime:{name} is not available: {known}the installed one has {', '.join(there)}")
    return there[name]


class OnnxRuntimeEngine:
    def __init__(self, model: Model, threads: int | None, provider: str, options: dict[str, Any]) -> None:
        chosen = choose_provider(provider)
        if options and chosen == PROVIDERS["cpu"]:  # ONNX Runtime would ignore them
            raise ValueError(f"onnxruntime's CPU provider takes no options, got {', '.join(options)}")
        if provider == "tensorrt":
            options = tensorrt_options() | options
            if options["trt_engine_cache_enable"] in (True, "True", "true", "1"):
                Path(options["trt_engine_cache_path"]).mkdir(parents=True, exist_ok=True)
        session = onnxruntime.SessionOptions()
        session.log_severity_level = 3  # its warnings are about devices, not about us
        if is_x86() and not has_vnni():
            # Products of uint8 and int8 are summed in 16 bits there, which overflow; this multiplies unsigned numbers.
            session.add_session_config_entry("session.x64quantprecision", "1")
        if threads is not None:
            session.intra_op_num_threads = threads
        # For operators that an accelerator lacks, the next best.
        rest = [PROVIDERS["cuda"]] if provider == "tensorrt" and "cuda" in available() else []
        rest += [PROVIDERS["cpu"]] if chosen != PROVIDERS["cpu"] else []
        wanted: list[Any] = [(chosen, options), *rest]
        # It makes integers of biases, which int8 needs to be fast, but also of weights that are kept in float, badly.
        without = ["WeightBiasQuantization"] if model.float_layers else []
        self._session = onnxruntime.InferenceSession(
            str(model.path), session, providers=wanted, disabled_optimizers=without
        )
        started = self._session.get_providers()
        if provider and chosen not in started:
            raise ValueError(f"onnxruntime:{provider} did not start (its libraries are missing?), only {started}")
        self._input = self._session.get_inputs()[0].name
        self._names = model.output_names
        check_outputs(self._names, [output.name for output in self._session.get_outputs()])

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self._session.run(self._names, {self._input: image})
        return outputs


load = OnnxRuntimeEngine
