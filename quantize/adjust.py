"""Weights that learn to live with rounding: gradients bring what the quantized graph says of photographs near to what
the float network says of them.

Quantization-aware training (Jacob et al., CVPR 2018) with the network itself as teacher (Hinton et al. 2015): it needs
no labels, and as weights hardly move, nothing that training gave is lost. Cells count by how sure they are of a face.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from img2pose_edge.preprocess import PAD_VALUE
from img2pose_edge.progress import track
from img2pose_edge.training.targets import flatten_maps

BATCH, SIZE, LEARNING_RATE, WARMUP = 8, 320, 3e-5, 20
"""Crops are ``SIZE`` pixels high and wide; at a rate of 2e-4 more is lost than rounding took."""
LEAST_SCORE, BACKGROUND = 0.1, 0.02
"""Score from which a cell's pose counts, and what a cell without a face weighs in the scores' distance."""
POSE_WEIGHTS = 4.0, 4.0, 8.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0
"""Of centre, log size and rotation, each near to linear beyond .02; logits beyond .3."""


def adjust(graph: GraphModule, teacher: nn.Module, pictures: Sequence[np.ndarray], steps: int) -> GraphModule:
    """Fine-tune the weights of a quantized network towards what the float one says, in place.

    Args:
        graph: prepared, calibrated and rounded (``graph.calibrated``).
        teacher: the network that it was made of; takes the same pictures, gives maps of the same shapes.
        pictures: (H, W, 3) uint8 BGR; crops of them are learnt from, mirrored or not.
        steps: of ``BATCH`` crops.
    """
    random = np.random.default_rng(0)
    weights = [p for p in graph.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / WARMUP) * (1 + math.cos(math.pi * i / steps)) / 2
    )
    for _ in track(range(steps), "adjusting"):
        images = torch.from_numpy(np.stack([crop(pictures, random) for _ in range(BATCH)]))
        with torch.no_grad():
            wanted = teacher(images)
        optimizer.zero_grad()
        distance(graph(images), wanted).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    return graph


def crop(pictures: Sequence[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """A crop of a picture, (SIZE, SIZE, 3), any of them; grey where a picture ends sooner."""
    picture = pictures[int(random.integers(len(pictures)))]
    top, left = (int(random.integers(max(side - SIZE, 0) + 1)) for side in picture.shape[:2])
    seen = picture[top : top + SIZE, left : left + SIZE]
    if random.random() < 0.5:
        seen = seen[:, ::-1]
    below, beside = (SIZE - side for side in seen.shape[:2])
    return cv2.copyMakeBorder(
        np.ascontiguousarray(seen), 0, below, 0, beside, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3
    )


def distance(got: tuple[list[Tensor], list[Tensor]], wanted: tuple[list[Tensor], list[Tensor]]) -> Tensor:
    """How far the logits and raw local poses of two networks are apart, mostly in cells that see a face."""
    logit, pose = flatten_maps(got[0])[..., 0], flatten_maps(got[1])
    other_logit, other_pose = flatten_maps(wanted[0])[..., 0], flatten_maps(wanted[1])
    score = other_logit.sigmoid()
    seen = torch.maximum(score, logit.detach().sigmoid())
    apart = nn.functional.smooth_l1_loss(logit, other_logit, reduction="none", beta=0.3)
    scores = ((seen + BACKGROUND) * apart).sum() / (seen.sum() + 1)
    sure = score * (score > LEAST_SCORE)
    moved = nn.functional.smooth_l1_loss(pose, other_pose, reduction="none", beta=0.02) @ pose.new_tensor(POSE_WEIGHTS)
    return scores + (sure * moved).sum() / (sure.sum() + 1)
