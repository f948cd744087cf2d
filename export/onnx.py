"""A network as float ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from img2pose_edge.training.networks.edge import EdgeNet

OPSET = 17


def write_onnx(network: nn.Module, out: Path, names: list[str]) -> None:
    """Write a network with outputs of these names, for images of any size.

    The graph takes uint8 BGR (1, H, W, 3), H and W multiples of 32, and normalizes inside. An edge network gives,
    per stride, a score logit and a raw local pose; a full one the scores, poses and boxes of its proposals
    (region proposals, their NMS and RoIAlign are in the graph).
    """
    axes = {"image": {1: "height", 2: "width"}}
    if isinstance(network, EdgeNet):
        axes |= {n: {2: f"{n}_rows", 3: f"{n}_columns"} for n in names}
    else:
        axes |= {n: {0: "proposals"} for n in names}
    with warnings.catch_warnings():  # of traced constants: tests compare the graph at other sizes
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 480, 640, 3, dtype=torch.uint8),),
            str(out),
            input_names=["image"],
            output_names=names,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def halve(path: Path) -> None:
    """Store and compute in float16, for accelerators; inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
