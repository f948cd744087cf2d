"""Another project's ONNX network in ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Network:
    """Attributes:
    run: (B, 3, H, W) float32 to outputs by name.
    outputs: their names, in the file's order.
    size: height and width if the input has no other, else ``None``.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    outputs: list[str]
    size: tuple[int, int] | None


def open_network(path: Path, threads: int | None, engine: str, alone: bool = True) -> Network:
    """Load a network of one input.

    Args:
        path: ``.onnx``.
        threads: of the engine, default its own choice.
        engine: one of :data:`ENGINES`.
        alone: that no other network takes turns with it, whose waiting threads would otherwise take its cores.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the engine is unknown or cannot load it.
        ImportError: if it is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no model {path}")
    loaders = dict(zip(ENGINES, (_onnxruntime, _openvino), strict=True))
    if engine not in loaders:
        raise ValueError(f"unknown engine {engine!r} for {path.name}: choose one of {', '.join(ENGINES)}")
    try:
        return loaders[engine](path, threads, alone)
    except ImportError:
        raise
    except Exception as error:  # every engine has kinds of its own
        name = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[engine]
        raise ValueError(f"{path} is not a model that {name} can load: {error}") from error


def _onnxruntime(path: Path, threads: int | None, alone: bool) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    if not alone:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = session.get_inputs()[0]

    def run(blob: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {given.name: blob}), strict=True))

    return Network(run, names, _fixed(given.shape[2:]))


def _openvino(path: Path, threads: int | None, alone: bool) -> Network:
    from img2pose_edge.engines.ov import Compiled

    compiled = Compiled(path, threads, {})
    # A tensor may have several names; that of the result's node is the file's name of the output.
    names = [output.node.friendly_name.removesuffix("/sink_port_0") for output in compiled.model.outputs]
    shape = list(compiled.model.inputs[0].get_partial_shape())

    def run(blob: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, compiled.infer(blob), strict=True))

    return Network(run, names, _fixed([side.get_length() if side.is_static else None for side in shape[2:]]))


def _fixed(sides: list[Any]) -> tuple[int, int] | None:
    height, width = sides
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
