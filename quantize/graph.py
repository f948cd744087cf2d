"""One quantized graph of an edge network, from which every int8 format is written.

Batch norms are folded, the network is exported, and its convolutions and additions are annotated as TFLite wants
them: int8 weights with a scale for every output channel, int8 activations with one scale and zero point a tensor
(Jacob et al., CVPR 2018). Score and pose maps are float.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from img2pose_edge.quantize.fold import FoldedNet
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from torchao.quantization.pt2e import allow_exported_model_train_eval, disable_observer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec

from img2pose_edge.progress import track
from img2pose_edge.training.networks.edge import PIXEL_STD, EdgeNet

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
    graph = prepare_pt2e(exported.module(), quantizer(fine_tune))
    return allow_exported_model_train_eval(graph)


def freeze(graph: GraphModule) -> GraphModule:
    """The graph with the ranges it has: pictures no longer change them."""
    return graph.apply(disable_observer)


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


def quantized_checkpoint(
    state: dict[str, Any], network: EdgeNet, pictures: Iterable[np.ndarray], fold: bool = True
) -> GraphModule:
    """The quantized graph of a checkpoint.

    Args:
        state: checkpoint; one that was fine-tuned for int8 has its ranges.
        network: as ``build_network`` makes it for that checkpoint.
        pictures: for :func:`calibrate`, of a checkpoint that was not.
        fold: hold weights as int8, not as float with their rounding behind.
    """
    if state.get("int8"):
        graph = prepare(network, fine_tune=True)
        graph.load_state_dict(state["weights"])
        graph = freeze(graph)
    else:
        network.load_state_dict(state["weights"])
        graph = calibrate(prepare(network), pictures)
    return convert_pt2e(graph, fold_quantize=fold)
