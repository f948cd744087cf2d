"""Convolutions of an exported graph: which they are, what they are called and hold."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

CONV = torch.ops.aten.conv2d.default


def layer_name(convolution: Node) -> str:
    """Of a convolution in the exported graph: its module's, as ``stages.2.1.body.0.0``."""
    weight = convolution.args[1]
    assert isinstance(weight, Node)
    while weight.op != "get_attr":  # of a prepared graph it is rounded first
        (weight,) = weight.all_input_nodes
    return str(weight.target).removeprefix("network.").removesuffix(".weight")


def get_attribute(graph: GraphModule, node: Any) -> torch.Tensor:
    """Parameter or buffer that a node of the graph stands for."""
    module, _, name = node.target.rpartition(".")
    found = getattr(graph.get_submodule(module), name)
    assert isinstance(found, torch.Tensor)
    return found
