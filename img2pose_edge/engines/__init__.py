"""Inference engines, one short file each, imported only when used."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import numpy as np

from img2pose_edge.manifest import Model

ENGINES = {
    "onnxruntime": "img2pose_edge.engines.ort",
    "openvino": "img2pose_edge.engines.ov",
    "tflite": "img2pose_edge.engines.tflite",
}
INSTALL = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": 'pip install "img2pose-edge[openvino]"',
    "tflite": 'pip install "img2pose-edge[tflite]"',
}
READERS = {".onnx": ("onnxruntime", "openvino"), ".tflite": ("tflite",)}
"""Engines that read a kind of file, the default one first."""


class Engine(Protocol):
    """A loaded network."""

    def __init__(self, model: Model, threads: int | None) -> None: ...

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        """(1, H, W, 3) uint8 to the model's outputs, in the order of ``Model.output_names``."""


def load_engine(name: str, model: Model, threads: int | None) -> Engine:
    """Load a model into an engine.

    Raises:
        ValueError: if the engine is unknown or does not run such a model, or ``threads`` is not positive.
        ImportError: if the engine is not installed, saying what to install.
    """
    readers = [e for e in READERS.get(model.path.suffix, ()) if model.engines is None or e in model.engines]
    chosen = readers[0] if name == "auto" and readers else name
    if chosen not in ("auto", *ENGINES):
        raise ValueError(f"unknown engine {name!r}: choose one of auto, {', '.join(ENGINES)}")
    if chosen not in readers:
        raise ValueError(f"engine {name!r} does not run {model.path.name}: {', '.join(readers) or 'none'} does")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    try:
        module = import_module(ENGINES[chosen])
    except ImportError as error:
        raise ImportError(f"engine {chosen!r} is not installed: {INSTALL[chosen]}") from error
    engine: Engine = module.load(model, threads)
    return engine
