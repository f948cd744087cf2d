"""One quantized graph of an edge network, from which every int8 format is written.

Batch norms are folded, the network is exported, and its convolutions and additions are annotated as TFLite wants
them: int8 weights with a scale for every output channel, int8 activations with one scale and zero point a tensor
(Jacob et al., CVPR 2018). Score and pose maps are float.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from img2pose_edge.quantize.fold import FoldedNet
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from img2pose_edge.progress import track
from img2pose_edge.training.checkpoint import load_checkpoint
from img2pose_edge.training.networks import build_network
from img2pose_edge.training.networks.edge import PIXEL_STD, EdgeNet

try:
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec
except ImportError as error:
    raise ImportError('int8 and TFLite need torchao and litert-torch: pip install "img2pose-edge[quantize]"') from error

TRACED = (2, 320, 320, 3)
"""Shape of the picture that the graph is traced with; batch, height and width stay free."""


class EdgeQuantizer(PT2EQuantizer):
    """TFLite's annotation, but for the input, whose step and zero point are those of pixels, and the outputs.

    The last convolutions stay float: 255 steps would round a rotation by a degree, and they cost nothing.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        model = super().annotate(model)
        outputs = next(n for n in model.graph.nodes if n.op == "output").args[0]
        for last in tree_leaves(outputs):
            last.meta.pop("quantization_annotation", None)
        stem = next(n for n in model.graph.nodes if n.target is torch.ops.aten.conv2d.default)
        stem.meta["quantization_annotation"].input_qspec_map[stem.args[0]] = FixedQParamsQuantizationSpec(
            torch.int8, 1 / PIXEL_STD, 0, -128, 127, torch.per_tensor_affine
        )
        return model


def quantizer(fine_tune: bool = False) -> EdgeQuantizer:
    """The annotation of a network after training, or while it is fine-tuned."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=fine_tune)
    # Told to be for training, the annotator looks for batch norms, of which none are left.
    return EdgeQuantizer().set_global(replace(config, is_qat=False))


def prepare(network: EdgeNet, fine_tune: bool = False) -> GraphModule:
    """The network as a graph that watches the ranges of its activations.

    Args:
        network: trained.
        fine_tune: round weights and activations as int8 will, in a way that gradients pass (quantization-aware
            training); ranges follow the pictures while it trains.

    Returns:
        a graph that takes (B, H, W, 3) uint8 BGR, H and W multiples of 32 and at least 64, and returns maps as
        the network does.
    """
    free = torch.export.Dim.AUTO
    exported = torch.export.export(
        FoldedNet(network).eval(),
        (torch.zeros(TRACED, dtype=torch.uint8),),
        dynamic_shapes={"image": {0: free, 1: free, 2: free}},
    )
    traced = exported.module()
    for node in [n for n in traced.graph.nodes if n.target is torch.ops.aten._assert_tensor_metadata.default]:
        traced.graph.erase_node(node)  # it insists on the device that the graph was traced on
    traced.recompile()
    graph = prepare_pt2e(traced, quantizer(fine_tune))
    return allow_exported_model_train_eval(graph)


def hold_ranges(graph: nn.Module) -> None:
    """Let a graph that fine-tunes keep the ranges it has: pictures no longer move them."""
    for module in graph.modules():
        if hasattr(module, "averaging_constant"):
            module.averaging_constant = 0.0  # type: ignore[assignment]


@torch.no_grad()
def calibrate(graph: GraphModule, pictures: Iterable[np.ndarray]) -> GraphModule:
    """Show a prepared graph pictures, (H, W, 3) uint8 BGR each, to learn the ranges of its activations from.

    Raises:
        ValueError: if there are none.
    """
    shown = [graph(torch.from_numpy(picture[None])) is not None for picture in track(list(pictures), "calibrating")]
    if not shown:
        raise ValueError("calibration needs pictures, got none")
    return graph


def quantize_checkpoint(
    checkpoint: Path, pictures: Iterable[np.ndarray], fold: bool = True
) -> tuple[dict[str, Any], EdgeNet, GraphModule]:
    """The quantized graph of a checkpoint.

    Args:
        checkpoint: of an edge network; one that was fine-tuned for int8 has its ranges.
        pictures: for :func:`calibrate`, of a checkpoint that was not.
        fold: hold weights as int8, not as float with their rounding behind.

    Returns:
        the checkpoint, its network, and the graph.

    Raises:
        FileNotFoundError, ValueError: if it is missing or not of an edge network, or there are no pictures.
    """
    state = load_checkpoint(checkpoint)
    network = build_network(state["network"])
    if not isinstance(network, EdgeNet):
        raise ValueError(f"only edge networks can be quantized, {checkpoint} holds a {state['network']}")
    if state.get("int8"):
        graph = prepare(network, fine_tune=True)
        graph.load_state_dict(state["weights"])
    else:
        network.load_state_dict(state["weights"])
        graph = calibrate(prepare(network), pictures)
    return state, network, convert_pt2e(graph, fold_quantize=fold)
