"""Batch norms folded into the convolutions before them: what is left quantizes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from img2pose_edge.training.networks.edge import PIXEL_MEAN, PIXEL_STD, EdgeNet, HeadConv

INPUT_ZERO = 128
"""Grey level that is zero to the quantized network."""

LEAST = 64
"""Height and width that a quantized graph takes at least, in torch."""
OUTPUT_LAYERS = ("score", "pose")
"""Weights in int8, maps in float: 255 steps of those would round a rotation by a degree."""


def fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A plain convolution (that with the fast gradient knows no bias) equal to the two in evaluation mode."""
    size = conv.kernel_size[0]
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, size, conv.stride[0], size // 2, groups=conv.groups)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    folded = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    plain.weight, plain.bias = (nn.Parameter(values.detach()) for values in folded)
    return plain


class LevelConv(nn.Module):
    """A ``HeadConv`` whose batch norms are folded: every level has weights of its own then."""

    def __init__(self, head: HeadConv) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(fused(head.depthwise, n) for n in head.depthwise_norms)  # type: ignore[arg-type]
        self.pointwise = nn.ModuleList(fused(head.pointwise, n) for n in head.pointwise_norms)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        levels = [conv(x).relu() for conv, x in zip(self.depthwise, levels, strict=True)]
        return [conv(x).relu() for conv, x in zip(self.pointwise, levels, strict=True)]


class WholeInput(nn.Module):
    """Pixels as whole multiples of a step: uint8 pixels are their own quantized values then, exactly.

    Around 127.5 every pixel would lie in the middle of two steps, where each engine rounds as it likes.
    """

    def __init__(self, zero: float) -> None:
        super().__init__()
        self.zero = zero

    def forward(self, image: Tensor) -> Tensor:
        return (image.permute(0, 3, 1, 2).float() - self.zero) / PIXEL_STD


class FoldedNet(nn.Module):
    """An edge network without batch norms; gives the same maps.

    With a ``zero`` (grey level) other than the network's own mean, but for the picture's border.
    """

    def __init__(self, network: EdgeNet, zero: float = INPUT_ZERO) -> None:
        super().__init__()
        self.input = WholeInput(zero)
        self.network = fold_batch_norms(network)
        stem = self.network.stem[0]
        assert isinstance(stem, nn.Conv2d)
        assert stem.bias is not None
        with torch.no_grad():  # half a grey level, but for the outermost pixels, beyond which there is nothing
            stem.bias += stem.weight.sum((1, 2, 3)) * (zero - PIXEL_MEAN) / PIXEL_STD

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.network.maps(self.input(image))


def fold_batch_norms(network: EdgeNet) -> EdgeNet:
    """A copy of a trained network, in evaluation mode, that gives the same maps without batch norms."""
    folded = copy.deepcopy(network).eval()
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
            assert isinstance(module[0], nn.Conv2d)
            module[0], module[1] = fused(module[0], module[1]), nn.Identity()
    for name in ("shared", "score_tower", "pose_tower"):
        setattr(folded, name, LevelConv(getattr(folded, name)))
    return folded
