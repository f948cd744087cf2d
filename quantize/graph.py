"""One quantized graph of an edge network, from which every int8 format is written.

Batch norms are folded, the network is exported, and its convolutions and additions are annotated: int8 weights with a
step for every output channel, int8 activations with one step a tensor (Jacob et al., CVPR 2018), of the kinds that
every engine computes exactly with (:mod:`steps`). Score and pose maps, sums of such products, are float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from img2pose_edge.quantize.equalize import equalize
from img2pose_edge.quantize.fold import LEAST, OUTPUT_LAYERS, FoldedNet, fold_batch_norms
from img2pose_edge.quantize.nodes import CONV, get_attribute, layer_name
from torch import nn
from torch.fx import GraphModule, Node

from img2pose_edge.progress import track
from img2pose_edge.training.checkpoint import join_origins, load_checkpoint
from img2pose_edge.training.networks import build_network, load_network
from img2pose_edge.training.networks.edge import PIXEL_STD, EdgeNet

try:
    from img2pose_edge.quantize.adjust import adjust
    from img2pose_edge.quantize.rounding import round_hidden, round_outputs
    from img2pose_edge.quantize.steps import HIGHEST, LOWEST, ActivationStep, ChannelStep
    from torchao.quantization.pt2e import FakeQuantize, allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        FixedQParamsQuantizationSpec,
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )
except ImportError as error:
    raise ImportError('int8 needs torchao and onnxscript: pip install "img2pose-edge[quantize]"') from error

CALIBRATED = 96
"""Pictures that choose steps and rounding, at most."""
TRACED = (2, 320, 320, 3)
"""Shape of the picture that the graph is traced with; batch, height and width stay free."""
ADD, ENLARGE = torch.ops.aten.add.Tensor, torch.ops.aten.upsample_nearest2d.vec
DEQUANTIZE_WEIGHT = torch.ops.quantized_decomposed.dequantize_per_channel.default
RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


class EdgeQuantizer(Quantizer):
    """Annotates an exported edge network.

    Args:
        float_layers: convolutions to leave as they are, by name.
    """

    def __init__(self, float_layers: Collection[str] = ()) -> None:
        super().__init__()

        def watched(observer: Any, **scheme: Any) -> QuantizationSpec:
            return QuantizationSpec(torch.int8, FakeQuantize.with_args(observer=observer), **scheme)

        per_channel = {"qscheme": torch.per_channel_symmetric, "ch_axis": 0}
        self.activation = watched(ActivationStep, qscheme=torch.per_tensor_affine)
        self.weight = watched(ChannelStep, **per_channel)
        self.even_weight = watched(ChannelStep.with_args(half=True), **per_channel)
        # Pixels are their own quantized values (fold.WholeInput).
        self.pixels = FixedQParamsQuantizationSpec(
            torch.int8, 1 / PIXEL_STD, 0, LOWEST, HIGHEST, torch.per_tensor_affine
        )
        self.float_layers = set(float_layers)

    def annotate(self, model: GraphModule) -> GraphModule:
        convolutions = [n for n in model.graph.nodes if n.target is CONV]
        for node in convolutions:
            if layer_name(node) not in self.float_layers:
                source, weight = node.args[:2]
                given = self.pixels if node is convolutions[0] else self.activation
                if layer_name(node) in OUTPUT_LAYERS:
                    self._note(node, {source: given, weight: self.weight}, None)
                    continue
                (relu,) = node.users
                assert relu.target in RELUS
                is_term = any(reader.target is ADD for reader in relu.users)
                self._note(node, {source: given, weight: self.even_weight if is_term else self.weight}, None)
                self._note(relu, {}, self.activation)
        for node in model.graph.nodes:
            # All on one step: integers are added then, and nothing is rounded.
            if node.target in (ADD, ENLARGE):
                shared = SharedQuantizationSpec((node.args[0], node))
                rest = {n: shared for n in node.args[1:] if isinstance(n, Node)}
                self._note(node, {node.args[0]: self.activation, **rest}, shared)
        return model

    @staticmethod
    def _note(node: Node, inputs: dict[Any, Any], output: Any) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, output, _annotated=True)

    def validate(self, model: GraphModule) -> None:
        """Nothing of the graph is refused."""


def prepare(network: FoldedNet, float_layers: Collection[str] = ()) -> GraphModule:
    """The network as a graph that rounds weights and activations as int8 will, in a way that gradients pass.

    Args:
        network: trained, without batch norms.
        float_layers: convolutions to leave as they are, by name (:func:`layer_name`).

    Returns:
        a graph that takes (B, H, W, 3) uint8 BGR, H and W multiples of 32 and at least 64, and returns maps as
        the network does.
    """
    free = torch.export.Dim.AUTO
    exported = torch.export.export(
        network.eval(),
        (torch.zeros(TRACED, dtype=torch.uint8),),
        dynamic_shapes={"image": {0: free, 1: free, 2: free}},
    )
    traced = exported.module()
    for node in [n for n in traced.graph.nodes if n.target is torch.ops.aten._assert_tensor_metadata.default]:
        traced.graph.erase_node(node)  # it insists on the device that the graph was traced on
    traced.recompile()
    graph = prepare_pt2e(traced, EdgeQuantizer(float_layers))
    return allow_exported_model_train_eval(graph)


@torch.no_grad()
def calibrate(graph: GraphModule, pictures: Sequence[np.ndarray]) -> GraphModule:
    """Show a prepared graph pictures, (H, W, 3) uint8 BGR, to choose the steps of its activations by; hold them."""
    for picture in track(pictures, "calibrating"):
        graph(torch.from_numpy(picture[None]))
    for module in graph.modules():
        if isinstance(module, FakeQuantize) and isinstance(module.activation_post_process, ActivationStep):
            module.disable_observer()  # the steps of weights go on to follow the weights
    return graph


def equalized(network: EdgeNet, pictures: Sequence[np.ndarray]) -> FoldedNet:
    """A copy of a trained network without batch norms, its channels equalized by pictures as for :func:`calibrated`.

    Raises:
        ValueError: likewise.
    """
    if not pictures:
        raise ValueError("calibration needs pictures, got none")
    if min(side for picture in pictures for side in picture.shape[:2]) < LEAST:
        raise ValueError(f"pictures to quantize by must be at least {LEAST} pixels high and wide")
    return equalize(FoldedNet(network).eval(), pictures)


def check_layers(network: EdgeNet, float_layers: Collection[str]) -> None:
    """Raise ``ValueError`` if a trained network has no convolutions of these names (:func:`layer_name`)."""
    convolutions = {name for name, m in fold_batch_norms(network).named_modules() if isinstance(m, nn.Conv2d)}
    unknown = set(float_layers) - convolutions
    if unknown:
        raise ValueError(f"no layer {', '.join(sorted(unknown))} to keep in float")


def calibrated(network: EdgeNet, pictures: Sequence[np.ndarray], float_layers: Collection[str] = ()) -> GraphModule:
    """The graph of a trained network with channels equalized, steps chosen and weights rounded (:func:`prepare`,
    :func:`calibrate`, :mod:`rounding`).

    Raises:
        ValueError: if there are no pictures, one is less than 64 pixels high or wide, or a float layer is unknown.
    """
    check_layers(network, float_layers)  # before minutes go into the rest
    folded = round_outputs(equalized(network, pictures), pictures, but=float_layers)
    return round_hidden(calibrate(prepare(folded, float_layers), pictures), pictures)


def convert(graph: GraphModule, fold: bool = True) -> GraphModule:
    """A prepared graph that has seen pictures, as the quantized one.

    Args:
        fold: hold weights as int8, not as float with their rounding behind.
    """
    even = {node.name for node in graph.graph.nodes if node.target is CONV and whole_weights(graph, node)}
    graph = convert_pt2e(graph, fold_quantize=fold)
    for node in graph.graph.nodes:
        if node.target is CONV and node.args[1].target is DEQUANTIZE_WEIGHT:
            whole_bias(graph, node, odd=node.name in even)
    return graph


@torch.no_grad()
def whole_weights(graph: GraphModule, convolution: Node) -> bool:
    """Weights of a prepared convolution in whole steps, which no converter rounds its own way; whether all are even.

    Those with a bit to spare (terms of additions) come in even numbers of steps half as wide. With an odd bias
    (:func:`whole_bias`) all sums are odd then, and none lies in the middle of two output steps. OpenVINO needs that: it
    adds before it rounds, which is the same but for such values.
    """
    rounded = convolution.args[1]
    assert isinstance(rounded, Node)
    if rounded.op == "get_attr":
        return False  # it stays float
    rounding = graph.get_submodule(str(rounded.target))
    assert isinstance(rounding, FakeQuantize)
    observer = rounding.activation_post_process
    weight = get_attribute(graph, rounded.args[0])
    step = observer.step[:, None, None, None]
    weight.copy_((weight / step).round().clamp(observer.quant_min, observer.quant_max) * step)
    if observer.quant_max == HIGHEST:
        return False
    observer.step = observer.step / 2
    for module in (rounding, observer):
        module.quant_min, module.quant_max = -HIGHEST, HIGHEST
    return True


@torch.no_grad()
def whole_bias(graph: GraphModule, convolution: Node, odd: bool) -> None:
    """Bias of a quantized convolution in whole steps of its sums, as integer kernels hold it."""
    source, weight, bias, *_ = convolution.args
    step = source.args[1] * get_attribute(graph, weight.args[1])  # type: ignore[union-attr]
    values = get_attribute(graph, bias)
    steps = values / step
    values.copy_((2 * ((steps - 1) / 2).round() + 1 if odd else steps.round()) * step)


def quantize_checkpoint(
    checkpoint: Path, pictures: Iterable[np.ndarray], float_layers: Sequence[str] = (), steps: int = 0
) -> dict[str, Any]:
    """Quantize a trained edge network after its training.

    Args:
        checkpoint: of a training run, or a published one.
        pictures: (H, W, 3) uint8 BGR, H and W multiples of 32 and at least 64: what the network will see, to choose
            steps by. Of many, ``CALIBRATED``, spread evenly, choose them.
        float_layers: as in :func:`prepare`.
        steps: of adjusting weights to their rounding, by all pictures (:mod:`adjust`).

    Returns:
        a checkpoint (weights, steps and where it comes from) that :func:`load_quantized` takes.

    Raises:
        FileNotFoundError, ValueError: if it is missing, not of an edge network, quantized already, a float layer is
            unknown, or there are no pictures, or fewer steps than none.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    state, network = load_network(checkpoint)
    network = edge_network(network, state, checkpoint)
    check_layers(network, float_layers)
    shown = list(pictures)
    chosen = np.unique(np.linspace(0, len(shown) - 1, min(CALIBRATED, len(shown))).round().astype(int))
    graph = calibrated(network, [shown[i] for i in chosen], float_layers)
    if steps:
        adjust(graph, FoldedNet(network).eval(), shown, steps)
    origins = ("network", "config", "step", "options", "averaged")
    kept = {name: state[name] for name in origins if name in state}
    kept |= join_origins([state])
    return {**kept, "weights": graph.state_dict(), "int8": True, "float_layers": list(float_layers)}


def load_quantized(checkpoint: Path, fold: bool = True) -> tuple[dict[str, Any], EdgeNet, GraphModule]:
    """The quantized graph of a checkpoint of ``quantize`` or ``train --int8``.

    Args:
        fold: as in :func:`convert`.

    Returns:
        the checkpoint, a network of its kind (with weights of its own), and the graph.

    Raises:
        FileNotFoundError, ValueError: if it is missing, or not quantized.
    """
    state = load_checkpoint(checkpoint)
    if not state.get("int8"):
        raise ValueError(f"{checkpoint} is not quantized: `img2pose-edge quantize` or `train --int8` comes first")
    network = edge_network(build_network(state["network"], state.get("config")), state, checkpoint)
    graph = prepare(FoldedNet(network), state.get("float_layers", ()))
    try:
        graph.load_state_dict(state["weights"])
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} was quantized in another way than this version does: quantize again") from error
    with torch.no_grad():
        graph(torch.zeros(1, *TRACED[1:], dtype=torch.uint8))  # the steps of weights follow from them
    return state, network, convert(graph, fold)


def edge_network(network: nn.Module, state: dict[str, Any], checkpoint: Path) -> EdgeNet:
    """The network itself, if it is one that can be quantized."""
    if not isinstance(network, EdgeNet):
        raise ValueError(f"only edge networks can be quantized, {checkpoint} holds a {state['network']}")
    return network
