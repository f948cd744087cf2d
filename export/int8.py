"""Checkpoint to int8 ONNX with its manifest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from img2pose_edge.export.describe import check_manifest, describe, edge_facts, output_names
from img2pose_edge.quantize.fold import INPUT_ZERO
from img2pose_edge.quantize.graph import quantize_checkpoint
from onnx import numpy_helper
from torch.fx import GraphModule

from img2pose_edge.training.networks.edge import PIXEL_STD

OPSET = 18
ENGINES = ["onnxruntime"]
"""OpenVINO 2026.4.1 gives the same faces, but now and then writes beyond its buffers with such a graph (glibc's
``MALLOC_CHECK_=3`` reports it), and the process dies much later."""


def export_int8(
    checkpoint: Path,
    out: Path,
    pictures: Iterable[np.ndarray],
    score_threshold: float = 0.5,
    nms_iou: float = 0.5,
    data: str = "",
    licence: str = "",
) -> Path:
    """Quantize an edge network and write ``out`` (.onnx) and the manifest beside it (.json).

    Args:
        checkpoint: of a training run, or a published one; one that was fine-tuned for int8 has its ranges already.
        out: path ending in ``.onnx``.
        pictures: (H, W, 3) uint8 BGR, H and W multiples of 32: what the network will see, to learn the ranges of its
            activations from.
        score_threshold, nms_iou: written to the manifest as the runtime's defaults.
        data, licence: what the manifest says of the training data and of the weights' licence; default what the
            checkpoint knows of them.

    Returns:
        path of the manifest.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint is missing or not of an edge network, there are no pictures, or
            ``out`` is no .onnx path.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"the output must end in .onnx, got {out}")
    check_manifest(out)
    state, network, graph = quantize_checkpoint(checkpoint, pictures)
    facts = edge_facts()
    model = take_pixels(unsigned_activations(to_onnx(graph, output_names(facts))))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        onnx.save(model, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    thresholds = {"score": score_threshold, "nms_iou": nms_iou}
    return describe(
        state,
        network,
        out,
        facts,
        precision="int8",
        opset=OPSET,
        engines=ENGINES,
        thresholds=thresholds,
        data=data,
        licence=licence,
    )


def to_onnx(graph: GraphModule, names: list[str]) -> onnx.ModelProto:
    """A quantized graph as ONNX: int8 weights, and QuantizeLinear and DequantizeLinear around every operator."""
    free = torch.export.Dim.AUTO
    picture = torch.zeros(1, 480, 640, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (picture,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_shapes={"image": {1: free, 2: free}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def take_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without the normalization before its first quantization: pixels are quantized values already.

    Raises:
        ValueError: if the input's step and zero point are not those of pixels (``quantize.fold.WholeInput``).
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    turned = next(node for node in graph.node if node.op_type == "Transpose" and node.input[0] == graph.input[0].name)
    step, zero = constants[first.input[1]], constants[first.input[2]]
    if step != np.float32(1 / PIXEL_STD) or zero != INPUT_ZERO or zero.dtype != np.uint8:
        raise ValueError(f"pixels cannot stand for an input of step {step} around {zero} ({zero.dtype})")
    for node in graph.node:
        node.input[:] = [turned.output[0] if name == first.output[0] else name for name in node.input]
    drop_unused(graph)
    onnx.checker.check_model(model)
    return model


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that no output needs."""
    needed = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):  # consumers come after producers
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for tensor in [t for t in graph.initializer if t.name not in needed]:
        graph.initializer.remove(tensor)


def unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with uint8 instead of int8 activations: every zero point moves by 128, no value changes.

    ONNX Runtime fuses a ReLU into the quantized convolution before it only where activations are unsigned, and its
    x86 kernels multiply unsigned by signed: with int8 activations half of the network stays float.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    moved: dict[str, str] = {}
    for node in graph.node:
        weights = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or weights:
            continue
        name = node.input[2]
        if name not in moved:
            zero = numpy_helper.to_array(constants[name])
            if zero.dtype != np.int8:
                raise ValueError(f"activations must be int8, {name} is {zero.dtype}")
            moved[name] = f"{name}_unsigned"
            unsigned = (zero.astype(np.int16) + 128).astype(np.uint8)
            graph.initializer.append(numpy_helper.from_array(unsigned, moved[name]))
        node.input[2] = moved[name]
        for attribute in [a for a in node.attribute if a.name == "output_dtype"]:
            node.attribute.remove(attribute)
    drop_unused(graph)
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model
