"""A quantized graph as ONNX, in the form that integer kernels are fast with."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import torch
from img2pose_edge.quantize.fold import INPUT_ZERO
from onnx import numpy_helper
from torch.fx import GraphModule

from img2pose_edge.training.networks.edge import PIXEL_STD

OPSET = 18


def quantized_onnx(graph: GraphModule, names: list[str], for_openvino: bool = False) -> onnx.ModelProto:
    """A quantized graph with outputs of these names: int8 weights, uint8 activations, pixels as they come.

    Args:
        for_openvino: int8 activations and the pixels' normalization as they are (OpenVINO's first convolution is an
            integer one only behind a quantization of floats, and its unsigned zero points cost more), and
            :func:`copy_terms`.
    """
    model = to_onnx(graph, names)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    quantized = {o for node in model.graph.node if node.op_type == "DequantizeLinear" for o in node.output}
    if for_openvino:
        copy_terms(model.graph)
    else:
        model = unsigned_activations(model)
        if first.input[0] in quantized:  # the first convolution was not left in float
            model = take_pixels(model)
    own_constants(model.graph)
    for node in model.graph.node:
        del node.metadata_props[:]  # where in the source each came from: a third of the file
    return model


def copy_terms(graph: onnx.GraphProto) -> None:
    """Let dense residual blocks, ``x + relu(conv(x))``, add to a copy of ``x``, resized by 1.

    OpenVINO's convolutions add what they give to the other term, in place, which takes no time. Where they read that
    very term they cannot, and a pass over both tensors follows: it takes three times as long as the copy.
    """
    writer = {output: node for node in graph.node for output in node.output}
    scales = numpy_helper.from_array(np.ones(4, np.float32), "one_to_one")
    for node in [n for n in graph.node if n.op_type == "Add"]:
        for place, (term, other) in enumerate((node.input, reversed(node.input))):
            behind = other
            for kind in ("DequantizeLinear", "QuantizeLinear", "Relu", "Conv"):
                behind = writer[behind].input[0] if behind in writer and writer[behind].op_type == kind else ""
            if behind == term:
                copied = f"{term}_copied"
                kinds = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                copy = onnx.helper.make_node("Resize", [term, "", scales.name], [copied], copied, **kinds)
                graph.node.insert(list(graph.node).index(node), copy)
                node.input[place] = copied
    if any(scales.name in node.input for node in graph.node):
        graph.initializer.append(scales)


def own_constants(graph: onnx.GraphProto) -> None:
    """Give every convolution a quantized weight, step and zero points of its own.

    ONNX Runtime makes weights unsigned on x86 without VNNI (engines/ort.py), each with a new zero point; where two
    share one, as the strides share the output layers' weights, it fails to load the graph.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]:
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        for number, reader in enumerate(readers[1:]):
            own = onnx.NodeProto.FromString(node.SerializeToString())
            own.name, own.output[0] = f"{node.name}_{number}", f"{node.output[0]}_{number}"
            graph.node.insert(list(graph.node).index(reader), own)
            reader.input[list(reader.input).index(node.output[0])] = own.output[0]
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        for place in range(3):
            name = node.input[place]
            if name in taken:
                copied = onnx.TensorProto.FromString(constants[name].SerializeToString())
                copied.name = f"{name}_of_{node.output[0]}"
                graph.initializer.append(copied)
                node.input[place] = copied.name
            taken.add(name)


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
    model = program.model_proto
    # The exporter claims a newer format than the operators need, which older runtimes, as on many a Jetson, refuse.
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    return model


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
