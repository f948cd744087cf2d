"""ONNX as OpenVINO's own IR."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

KERNELS = "cpu:brgconv_avx512_amx_1x1,cpu:brgconv_avx512_amx,cpu:jit_avx512_1x1,cpu:jit_avx512"
"""Of convolutions that are not depthwise, best first. By itself, OpenVINO takes others (BRGEMM) that our few channels
do not fill: they take a fifth longer for the first convolution, 2 to 4 % for an int8 network. Where a processor has
matrix units (AMX), those come first, as they do by themselves; where it has none of these, OpenVINO takes its own."""


def write_openvino(source: Path, out: Path, half: bool, int8: bool = False) -> None:
    """Write ``out`` (.xml) and the weights beside it (.bin).

    Args:
        source: the model in ONNX.
        half: store float weights as float16.
        int8: the network is quantized: its convolutions prefer :data:`KERNELS`.

    Raises:
        ImportError: if OpenVINO is not installed.
        OSError: if it cannot be written.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError('OpenVINO is not installed: pip install "img2pose-edge[openvino]"') from error
    model = openvino.convert_model(str(source))
    try:
        openvino.save_model(model, str(out), compress_to_fp16=half)
    except RuntimeError as error:  # of a full disk no more is told
        raise OSError(f"OpenVINO cannot write {out.name}: {str(error).strip()}") from error
    if int8:
        prefer_kernels(out)


def prefer_kernels(path: Path) -> None:
    """Note :data:`KERNELS` in an IR (.xml), at every convolution that is not depthwise.

    OpenVINO reads the attribute (its ``PrimitivesPriority``), but has no call from Python to set it.
    """
    tree = ElementTree.parse(path)
    for layer in tree.iterfind("layers/layer[@type='Convolution']"):
        info = layer.find("rt_info")
        if info is None:
            info = ElementTree.Element("rt_info")
            layer.insert(1, info)  # behind the layer's data
        ElementTree.SubElement(info, "attribute", name="primitives_priority", version="0", value=KERNELS)
    tree.write(path, encoding="utf-8", xml_declaration=True)
