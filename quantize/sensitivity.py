"""Which layers lose accuracy as int8: each one rounded alone, all others float; weights of hidden layers to the nearest
step, which shows what a layer is given to lose (together, :mod:`rounding`, they lose less)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from img2pose_edge.quantize.fold import OUTPUT_LAYERS
from img2pose_edge.quantize.graph import calibrate, edge_network, equalized, prepare
from img2pose_edge.quantize.nodes import CONV, layer_name
from img2pose_edge.quantize.rounding import round_outputs
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantize

from img2pose_edge import geometry
from img2pose_edge.progress import track
from img2pose_edge.training.networks import load_network

FACE_SCORE = 0.3
"""Cells that the float network gives at least this score are compared: the rest become no faces."""


@dataclass(frozen=True)
class Sensitivity:
    """What rounding one convolution's weights and output (an output layer's weights) changes in the cells of faces, on
    average.

    ``score``: probability; ``centre``: strides; ``size``: of the apparent size, relative; ``angle``: degrees.
    """

    layer: str
    score: float
    centre: float
    size: float
    angle: float


@torch.no_grad()
def sensitivities(checkpoint: Path, pictures: Iterable[np.ndarray]) -> list[Sensitivity]:
    """Every quantized convolution of a trained edge network, the most sensitive (by angle) first.

    Args:
        checkpoint: of a training run, or a published one, not quantized.
        pictures: (H, W, 3) uint8 BGR, H and W multiples of 32, with faces.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint is missing or not of an edge network, or the pictures show no
            face.
    """
    state, network = load_network(checkpoint)
    network = edge_network(network, state, checkpoint)
    shown = list(pictures)
    folded = equalized(network, shown)
    graph = calibrate(prepare(copy.deepcopy(folded)), shown)
    rounding = [m for m in graph.modules() if isinstance(m, FakeQuantize)]
    for module in rounding:
        module.disable_fake_quant()
    expected = [cells(graph, picture) for picture in shown]
    if not sum(len(scores[scores > FACE_SCORE]) for scores, _ in expected):
        raise ValueError("the pictures show no face: sensitivity is measured on faces")
    found = []
    for node in track([n for n in graph.graph.nodes if n.target is CONV], "sensitivity"):
        if layer_name(node) in OUTPUT_LAYERS:
            continue
        own = own_rounding(graph, node)
        for module in own:
            module.enable_fake_quant()
        found.append(compare(layer_name(node), expected, [cells(graph, picture) for picture in shown]))
        for module in own:
            module.disable_fake_quant()
    for layer in OUTPUT_LAYERS:
        others = set(OUTPUT_LAYERS) - {layer}
        rounded = round_outputs(copy.deepcopy(folded), shown, but=others)
        found.append(compare(layer, expected, [cells(rounded, picture) for picture in shown]))
    return sorted(found, key=lambda s: -s.angle)


def own_rounding(graph: GraphModule, convolution: Node) -> list[FakeQuantize]:
    """Modules that round a convolution's weights and its output behind the ReLU."""
    weight = convolution.args[1]
    assert isinstance(weight, Node)
    relu = next(iter(convolution.users))
    nodes = [weight, *(user for user in relu.users if user.op == "call_module")]
    modules = [graph.get_submodule(str(node.target)) for node in nodes]
    return [m for m in modules if isinstance(m, FakeQuantize)]


def cells(graph: nn.Module, picture: np.ndarray) -> tuple[Tensor, Tensor]:
    """Probabilities (N,) and raw local poses (N, 9) of all cells of a picture."""
    scores, poses = graph(torch.from_numpy(picture[None]))
    return torch.cat([s.flatten() for s in scores]).sigmoid(), torch.cat([p[0].flatten(1).T for p in poses])


def compare(layer: str, expected: list[tuple[Tensor, Tensor]], got: list[tuple[Tensor, Tensor]]) -> Sensitivity:
    faces = torch.cat([scores for scores, _ in expected]) > FACE_SCORE
    (score, pose), (other_score, other_pose) = (
        (torch.cat([s for s, _ in maps])[faces].double(), torch.cat([p for _, p in maps])[faces].double())
        for maps in (expected, got)
    )
    turned = geometry.geodesic_distance(
        geometry.sixd_to_matrix(pose[:, 3:]), geometry.sixd_to_matrix(other_pose[:, 3:])
    )
    moved = (other_pose - pose).abs().mean(0)
    return Sensitivity(
        layer,
        score=float((other_score - score).abs().mean()),
        centre=float(moved[:2].mean()),
        size=float(moved[2]),
        angle=float(turned.rad2deg().mean()),
    )
