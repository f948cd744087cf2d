"""The edge networks: single-stage, anchor-free, strides 8/16/32, one shared head.

Per cell they give a score logit and a local pose (see ``geometry.py``) as nine numbers: centre offset
``(du, dv)`` in strides, log apparent size, rotation in 6D (Zhou et al., CVPR 2019); ``decode.py`` turns
these into camera poses. Every operator is one that int8 kernels on Arm and x86 run fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from img2pose_edge.training.networks.depthwise import DepthwiseStride2

STRIDES = (8, 16, 32)
POSE_CHANNELS = 9
SCORE_GAIN, SUPPORT_GAIN = 0.2, 0.3
"""What the runtime adds to a score's logit with each doubling of the face's size (small faces are most of what is
learnt, and a picture has many times as many places for them: at equal scores, more of them are none), and what it
takes from a score below one half with each halving of the cells that agree (``decode.py``)."""
PIXEL_MEAN, PIXEL_STD = 127.5, 64.0


@dataclass(frozen=True)
class EdgeConfig:
    """Widths of stem, stages (strides 4, 8, 16, 32) and head; residual blocks of each stage, of separable
    convolutions first, then of dense ones."""

    stem: int
    stages: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    head: int
    dense: tuple[int, int, int, int] = (0, 0, 0, 0)


CONFIGS = {
    "edge-n": EdgeConfig(16, (32, 64, 128, 192), (1, 2, 3, 3), 64, (0, 1, 0, 0)),
    "edge-s": EdgeConfig(16, (48, 96, 192, 256), (1, 3, 4, 3), 96, (1, 2, 1, 0)),
}


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    strided = groups == inputs == outputs and stride == 2
    return nn.Sequential(
        DepthwiseStride2(inputs, kernel)
        if strided
        else nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def separable(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Depthwise then pointwise convolution (MobileNet, Howard et al. 2017)."""
    return nn.Sequential(conv(inputs, inputs, kernel, stride, groups=inputs), conv(inputs, outputs, 1))


class Residual(nn.Module):
    """Convolution, separable or dense, around which its input is added.

    At strides 4 to 16 a dense one takes about the time of a separable one to train, with nine times its weights.
    """

    def __init__(self, channels: int, kernel: int, dense: bool = False) -> None:
        super().__init__()
        self.body = (
            nn.Sequential(conv(channels, channels, kernel)) if dense else separable(channels, channels, kernel=kernel)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class HeadConv(nn.Module):
    """Separable convolution whose weights all levels share but whose batch norms they do not.

    Levels see features of different statistics. A shared batch norm normalizes each level by its own
    batch while training, but all by one running average afterwards: the scores of the level that the
    average fits least then collapse.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.depthwise_norms = nn.ModuleList(nn.BatchNorm2d(inputs) for _ in STRIDES)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in STRIDES)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        levels = [norm(self.depthwise(x)).relu() for norm, x in zip(self.depthwise_norms, levels, strict=True)]
        return [norm(self.pointwise(x)).relu() for norm, x in zip(self.pointwise_norms, levels, strict=True)]


class EdgeNet(nn.Module):
    """Backbone, top-down feature pyramid and shared head.

    Forward takes (B, H, W, 3) uint8 BGR with H and W multiples of 32 and returns, per stride, a
    (B, 1, H/s, W/s) score logit and a (B, 9, H/s, W/s) local pose.
    """

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        self.config = config
        c4, c8, c16, c32 = config.stages
        self.stem = conv(3, config.stem, 3, 2)
        widths, inputs = [c4, c8, c16, c32], config.stem
        stages = []
        for level, (width, blocks) in enumerate(zip(widths, config.blocks, strict=True)):
            # The last stage looks farther: large faces must fit its receptive field.
            kernel = 5 if level == 3 else 3
            layers: list[nn.Module] = [separable(inputs, width, 2)]
            layers += [Residual(width, kernel) for _ in range(blocks)]
            layers += [Residual(width, 3, dense=True) for _ in range(config.dense[level])]
            stages.append(nn.Sequential(*layers))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(conv(c, config.head, 1) for c in (c8, c16, c32))
        self.shared = HeadConv(config.head, config.head)
        self.score_tower = HeadConv(config.head, config.head // 2)
        self.score = nn.Conv2d(config.head // 2, 1, 1)
        self.pose_tower = HeadConv(config.head, config.head)
        self.pose = nn.Conv2d(config.head, POSE_CHANNELS, 1)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for output, bias in (
            (self.score, [-4.6]),  # a face is expected in 1 % of the cells (RetinaNet, section 3.3)
            (self.pose, [0, 0, 0, 1, 0, 0, 0, 1, 0]),  # in place, frontal
        ):
            nn.init.normal_(output.weight, std=0.01)
            output.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.maps((image.permute(0, 3, 1, 2).float() - PIXEL_MEAN) / PIXEL_STD)

    def maps(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The same of (B, 3, H, W) normalized pixels."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        p32 = self.laterals[2](features[3])
        p16 = self.laterals[1](features[2]) + nn.functional.interpolate(p32, scale_factor=2.0, mode="nearest")
        p8 = self.laterals[0](features[1]) + nn.functional.interpolate(p16, scale_factor=2.0, mode="nearest")
        shared = self.shared([p8, p16, p32])
        scores = [self.score(x) for x in self.score_tower(shared)]
        return scores, [self.pose(x) for x in self.pose_tower(shared)]
