"""Inference engines, one short file each, imported only when used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from img2pose_edge.manifest import Model

ENGINES = {
    "onnxruntime": "img2pose_edge.engines.ort",
    "openvino": "img2pose_edge.engines.ov",
    "tflite": "img2pose_edge.engines.tflite",
}
PACKAGES = {"onnxruntime": ["onnxruntime"], "openvino": ["openvino"], "tflite": ["ai_edge_litert", "tflite_runtime"]}
INSTALL = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": 'pip install "img2pose-edge[openvino]"',
    "tflite": 'pip install "img2pose-edge[tflite]"',
}
READERS = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".tflite": ("tflite",)}
"""Engines that read a kind of file, the default one first."""


class Engine(Protocol):
    """A loaded network."""

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        """(1, H, W, 3) uint8 to the model's outputs, in the order of ``Model.output_names``."""


def installed(engine: str) -> bool:
    return any(find_spec(package) for package in PACKAGES[engine])


def choose_engine(name: str, model: Model) -> tuple[str, str]:
    """The engine that ``name`` means for a model, and the execution provider (empty if none is named).

    Raises:
        ValueError: if the engine is unknown, or does not run such a model.
    """
    if not isinstance(name, str):
        raise ValueError(f"an engine is a name, one of auto, {', '.join(ENGINES)}; got {name!r}")
    readers = READERS.get(model.path.suffix, ())
    chosen, _, provider = (readers[0] if name == "auto" and readers else name).partition(":")
    if chosen not in ("auto", *ENGINES) or (provider and chosen != "onnxruntime"):
        more = "onnxruntime:PROVIDER (cpu, cuda, tensorrt, xnnpack, coreml)"
        raise ValueError(f"unknown engine {name!r}: choose one of auto, {', '.join(ENGINES)}, {more}")
    if chosen not in readers:
        use = f"use {' or '.join(readers)}" if readers else "none does"
        raise ValueError(f"engine {name!r} does not run {model.path.name}: {use}")
    return chosen, provider


def load_engine(name: str, model: Model, threads: int | None, options: Mapping[str, Any] | None = None) -> Engine:
    """Load a model into an engine.

    Args:
        name: ``auto``, or one of :data:`ENGINES`; ``onnxruntime:PROVIDER`` for a certain one of ONNX Runtime's
            execution providers (``engines/ort.py``).
        model: what to load.
        threads: of the engine, default its own choice.
        options: settings of the engine, as they are.

    Raises:
        ValueError: if the engine is unknown, does not run such a model, or refuses it or its options.
        ImportError: if the engine is not installed, saying what to install.
    """
    chosen, provider = choose_engine(name, model)
    try:
        module = import_module(ENGINES[chosen])
    except ImportError as error:
        raise ImportError(f"engine {chosen!r} is not installed: {INSTALL[chosen]} ({error})") from error
    try:
        engine: Engine = module.load(model, threads, provider, dict(options or {}))
    except (ValueError, OSError):
        raise
    except Exception as error:  # every engine has kinds of its own
        raise ValueError(f"{chosen} refuses {model.path.name} or its options: {error}") from error
    return engine
