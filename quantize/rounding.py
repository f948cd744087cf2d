"""Weights of a layer rounded together, so that what is lost by one is made up for by the next.

Each weight goes up or down such that the errors of an output cancel on what the layer sees: second-order, column by
column (GPTQ: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", ICLR
2023, section 3). Output layers, whose maps stay float and go straight into scores and poses, go by what they see of
faces; hidden layers by what they see anywhere, in int8 and behind layers that are rounded already.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from img2pose_edge.quantize.fold import OUTPUT_LAYERS, FoldedNet
from img2pose_edge.quantize.nodes import CONV, get_attribute, layer_name
from img2pose_edge.quantize.steps import ChannelStep
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from img2pose_edge.progress import track

LEAST_LOGIT = -3.0
"""Score logit from which a cell counts for output layers: what is surely no face may be off."""
PICTURES, PLACES = 32, 1500
"""Of which hidden layers are looked at: pictures, spread evenly, and places in each, at random."""
DAMPING, TINY = 0.01, 1e-12
"""Share of the mean variance that is added to each channel's, and what is added where nothing varies."""


@torch.no_grad()
def round_outputs(folded: FoldedNet, pictures: Sequence[np.ndarray], but: Collection[str] = ()) -> FoldedNet:
    """Round the weights of the output layers to whole steps, in place.

    Args:
        folded: edge network without batch norms, channels equalized.
        pictures: (H, W, 3) uint8 BGR, H and W multiples of 32.
        but: output layers to leave as they are.
    """
    for name in OUTPUT_LAYERS:
        if name not in but:
            layer = folded.network.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            seen = see(folded, layer, pictures)
            if len(seen):
                replace(layer.weight, layer.bias, seen[None], ChannelStep())
    return folded


def see(folded: FoldedNet, layer: nn.Conv2d, pictures: Sequence[np.ndarray]) -> Tensor:
    """(N, C) what a layer is given in the cells that may hold a face."""
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    kept = []
    for picture in pictures:
        scores, _ = folded(torch.from_numpy(picture[None]))
        kept += [x.movedim(1, -1)[score[:, 0] >= LEAST_LOGIT] for x, score in zip(given, scores, strict=True)]
        given.clear()
    hook.remove()
    return torch.cat(kept).double()


@torch.no_grad()
def round_hidden(graph: GraphModule, pictures: Sequence[np.ndarray]) -> GraphModule:
    """Round the weights of all quantized convolutions but the output layers to whole steps, in place.

    Args:
        graph: prepared and calibrated (``graph.calibrate``).
        pictures: (H, W, 3) uint8 BGR, H and W multiples of 32.
    """
    shown = pictures[:: -(-len(pictures) // PICTURES)]
    runs = [Interpreter(graph) for _ in shown]
    for run, picture in zip(runs, shown, strict=True):
        run.args_iter = iter([torch.from_numpy(picture[None])])
    random = torch.Generator().manual_seed(0)
    for node in track(list(graph.graph.nodes), "rounding"):  # all pictures at once, operator by operator
        if node.target is CONV and node.args[1].op != "get_attr" and layer_name(node) not in OUTPUT_LAYERS:
            weight = round_convolution(graph, node, [run.env[node.args[0]] for run in runs], random)
            for run in runs:
                run.env[node.args[1]] = weight
        for run in runs:
            run.env[node] = run.run_node(node)
            for used in run.user_to_last_uses.get(node, []):
                del run.env[used]
    return graph


def round_convolution(graph: GraphModule, node: Node, given: Sequence[Tensor], random: torch.Generator) -> Tensor:
    """Round the weights of one that is given (1, C, H, W) each; returns them as the graph gives them to it."""
    _, rounded, bias, *rest = node.args
    assert isinstance(rounded, Node)
    stride, padding = (*rest, *(1, 0)[len(rest) :])[:2]  # an exported graph leaves out what is default
    weight, rounding = get_attribute(graph, rounded.args[0]), graph.get_submodule(str(rounded.target))
    patches = []
    for x in given:
        columns = nn.functional.unfold(x, weight.shape[2:], padding=padding, stride=stride)[0]  # type: ignore[arg-type]
        patches.append(columns[:, torch.randperm(columns.shape[1], generator=random)[:PLACES]])
    seen = torch.cat(patches, 1).double().unflatten(0, (-1, weight[0].numel())).mT
    replace(weight, get_attribute(graph, bias), seen, rounding.activation_post_process)
    return rounding(weight)


def replace(weight: Tensor, bias: Tensor, seen: Tensor, observer: ChannelStep) -> None:
    """Weights by those in whole steps, and biases such that the means of the outputs stay, in place.

    Args:
        weight: (O, ...).
        bias: (O,).
        seen: (G, N, K): by each of the G groups of outputs, the same number each.
        observer: of the weight's steps.
    """
    observer(weight)
    groups = zip(
        weight.flatten(1).double().chunk(len(seen)), observer.step.double()[:, None].chunk(len(seen)), seen, strict=True
    )
    after = torch.cat([round_together(before, step, own, observer.quant_max) for before, step, own in groups])
    lost = (weight.flatten(1).double() - after).unflatten(0, (len(seen), -1)) @ seen.mean(1)[..., None]
    bias += lost.flatten().float()
    weight.copy_(after.view_as(weight))


def round_together(weight: Tensor, step: Tensor, seen: Tensor, highest: int) -> Tensor:
    """(O, K) weights in whole steps, (O, 1), of at most ``highest``, whose sums with (N, K) ``seen`` vary as before."""
    seen = seen - seen.mean(0)
    gram = seen.T @ seen / len(seen)
    gram += (DAMPING * gram.diagonal().mean() + TINY) * torch.eye(len(gram), dtype=torch.float64)
    order = gram.diagonal().argsort(descending=True)
    inverse = torch.linalg.cholesky(torch.linalg.inv(gram[order][:, order]), upper=True)
    left = (weight / step)[:, order]
    largest = left.abs().argmax(1)  # rounded away from zero: the step, which follows from it, stays
    top = left.abs().amax(1).ceil().clamp(max=highest) * left.gather(1, largest[:, None])[:, 0].sign()
    whole = torch.zeros_like(left)
    for i in range(left.shape[1]):
        whole[:, i] = torch.where(largest == i, top, left[:, i].round().clamp(-highest, highest))
        error = (left[:, i] - whole[:, i]) / inverse[i, i]
        left[:, i:] -= error[:, None] * inverse[i, i:]
    after = torch.zeros_like(weight)
    after[:, order] = whole * step
    return after
