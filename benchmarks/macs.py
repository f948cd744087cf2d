"""Multiply-accumulates of a network, counted alike in every format: by OpenVINO, which reads them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def count_macs(path: Path, height: int, width: int) -> int | None:
    """Multiply-accumulates of a network's convolutions and matrix products, for one image of this size.

    Args:
        path: ``.onnx``, ``.xml`` or ``.tflite`` of one input, an image of any layout.
        height, width: pixels; where the network has one size only, that counts.

    Returns:
        the count; ``None`` where shapes depend on the image (proposals of the full model).

    Raises:
        ImportError: without OpenVINO.
        ValueError: if it cannot read the file.
    """
    from img2pose_edge.engines.ov import core

    try:
        model = core().read_model(str(path))
    except Exception as error:
        raise ValueError(f"OpenVINO cannot read {path}: {error}") from error
    shape = model.inputs[0].get_partial_shape()
    if shape.is_dynamic:
        channels_last = not shape[1].is_static or shape[1].get_length() != 3
        model.reshape([1, height, width, 3] if channels_last else [1, 3, height, width])
    total = 0
    for node in model.get_ops():
        count = _of_node(node)
        if count is None:
            return None
        total += count
    return total


def _of_node(node: Any) -> int | None:
    kind = node.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "MatMul"):
        return 0
    output = node.output(0).get_partial_shape()
    shapes = [node.input(i).get_partial_shape() for i in (0, 1)]
    if any(s.is_dynamic for s in (output, *shapes)):
        return None
    cells = int(np.prod(output.to_shape()))
    if kind == "MatMul":
        columns = list(shapes[0].to_shape())
        return cells * int(columns[-2 if node.get_attributes()["transpose_a"] else -1])
    # Weights are (outputs, inputs, height, width), of a grouped one (groups, outputs, inputs, height, width).
    return cells * int(np.prod(list(shapes[1].to_shape())[-3:]))
