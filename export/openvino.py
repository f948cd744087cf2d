"""ONNX as OpenVINO's own IR."""

from __future__ import annotations

from pathlib import Path


def write_openvino(source: Path, out: Path, half: bool) -> None:
    """Write ``out`` (.xml) and the weights beside it (.bin).

    Args:
        source: the model in ONNX.
        half: store float weights as float16.

    Raises:
        ImportError: if OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError('OpenVINO is not installed: pip install "img2pose-edge[openvino]"') from error
    openvino.save_model(openvino.convert_model(str(source)), str(out), compress_to_fp16=half)
