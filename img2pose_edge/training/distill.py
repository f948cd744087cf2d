"""Distillation: what a trained network says of a training picture, and how an edge network learns from it.

Labels say where annotators saw a face and what three estimators made of its rotation; a teacher says, for every
cell, how sure one can be and which pose the pixels show (Hinton et al. 2015; on detectors' score maps, Li et al.,
"Generalized Focal Loss", NeurIPS 2020, whose loss takes soft targets as they are).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from img2pose_edge import geometry
from img2pose_edge.decode import cells_to_local
from img2pose_edge.training.losses import box_iou, quality_focal_loss
from img2pose_edge.training.networks import load_network
from img2pose_edge.training.networks.edge import STRIDES, EdgeNet
from img2pose_edge.training.targets import Batch, Cells, candidate_cells, covered_cells, flatten_maps
from img2pose_edge.training.validation import find_local_poses

LEAST_SCORE = 0.1
"""Below it a teacher's pose is no hint."""
MISTAKEN = 0.5
"""A score from which on an edge network that sees a face where annotators saw none is not believed."""
SURE, AGREED, SMALL = 0.3, 0.5, 64.0
"""Of a teacher's box: least score, least overlap with the label's, and pixels that the face must be smaller than."""


@dataclass(frozen=True)
class Hints:
    """What a teacher says of B pictures of N cells.

    Attributes:
        score: (B, N) face probability.
        known: (B, N) bool, cells of which it says one.
        picture, cell: (P,) cells of which it gives a pose,
        center, size, local: and these local poses, (P, 2), (P,), (P, 3, 3).
        boxes: (B, N, 4) boxes in pixels, of a teacher that gives no poses.
    """

    score: Tensor
    known: Tensor
    picture: Tensor
    cell: Tensor
    center: Tensor
    size: Tensor
    local: Tensor
    boxes: Tensor | None = None


class Teacher(Protocol):
    """``weights``: of the parts of the loss that it gives (:func:`hint_losses`)."""

    weights: ClassVar[dict[str, float]]

    def __call__(self, batch: Batch, cells: Cells) -> Hints: ...


class EdgeTeacher:
    """An edge network, as wide or wider than the student: its maps have the same cells."""

    weights: ClassVar[dict[str, float]] = {"hint_score": 2.0, "hint_pose": 2.0}

    def __init__(self, network: EdgeNet) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, batch: Batch, cells: Cells) -> Hints:
        with torch.autocast(batch.images.device.type, torch.bfloat16):
            scores, poses = self.network(batch.images)
        score, raw = flatten_maps(scores)[..., 0].sigmoid(), flatten_maps(poses)
        picture, cell = (score >= LEAST_SCORE).nonzero(as_tuple=True)
        local = cells_to_local(raw[picture, cell], cells.position[cell], cells.stride[cell])
        return Hints(score, (score < MISTAKEN) | covered_cells(batch, cells), picture, cell, *local)


class FullTeacher:
    """A full model: the faces it finds speak for the cells around their middles; of others it says nothing."""

    weights: ClassVar[dict[str, float]] = {"hint_score": 2.0, "hint_pose": 2.0}

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, batch: Batch, cells: Cells) -> Hints:
        found = [find_local_poses(self.network, image, LEAST_SCORE) for image in batch.images]
        probability, boxes, center, size, local = (torch.cat(parts) for parts in zip(*found, strict=True))
        of = torch.arange(len(found), device=probability.device)
        picture = of.repeat_interleave(torch.tensor([len(f[0]) for f in found], device=of.device))
        index, allowed = candidate_cells(boxes, cells, STRIDES)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        near = ((cells.middle[index] - middle[:, None]).abs() < cells.stride[index][..., None]).all(-1)
        face, slot = (allowed & near).nonzero(as_tuple=True)
        cell = index[face, slot]
        score = torch.zeros(len(found), len(cells.stride), device=probability.device)
        flat = picture[face] * score.shape[1] + cell
        score.view(-1).scatter_reduce_(0, flat, probability[face], "amax")
        surest = probability[face] == score.view(-1)[flat]  # of two faces near one cell
        face, cell = face[surest], cell[surest]
        return Hints(score, score > 0, picture[face], cell, center[face], size[face], local[face])


class DetectorTeacher:
    """A face detector, SCRFD (Guo et al., ICLR 2022) in ONNX: it says how sure one can be of small faces, and where
    their boxes are; of poses, and of the cells of the last level, it says nothing.

    Its anchors lie at the corners of cells, where ours have their middles: it sees the picture moved by half a cell of
    the first level.
    """

    weights: ClassVar[dict[str, float]] = {"hint_score": 16.0}

    def __init__(self, path: Path, device: torch.device) -> None:
        import onnx
        import onnx2torch

        if not path.is_file():
            raise FileNotFoundError(f"no model {path}")
        other = f"{path} is not SCRFD with five points, the one detector that can teach"
        try:
            model = onnx.load(path)
            network = onnx2torch.convert(model).to(device).to(memory_format=torch.channels_last)
        except Exception as error:  # of protobuf, onnx2torch, torch: of kinds of their own
            raise ValueError(f"{other}: {error}") from error
        if len(model.graph.output) != 3 * len(STRIDES):
            raise ValueError(other)
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch, cells: Cells) -> Hints:
        half = STRIDES[0] // 2
        moved = torch.nn.functional.pad(batch.images[:, half:, half:], (0, 0, 0, half, 0, half), value=127)
        blob = (moved.flip(-1).permute(0, 3, 1, 2).float() - 127.5) / 128
        with torch.autocast(blob.device.type, torch.bfloat16), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # as onnx2torch writes a slice
            maps = [m.float() for m in self.network(blob)[: 2 * len(STRIDES)]]
        # A cell's two anchors are of two sizes: the surer one speaks.
        score, anchor = torch.cat([m.unflatten(1, (-1, 2))[..., 0] for m in maps[: len(STRIDES)]], 1).max(2)
        both = torch.cat([m.unflatten(1, (-1, 2)) for m in maps[len(STRIDES) :]], 1)
        sides = both.take_along_dim(anchor[..., None, None], 2)[:, :, 0] * cells.stride[:, None]
        corner = cells.position * cells.stride[:, None] + half
        boxes = torch.cat([corner - sides[..., :2], corner + sides[..., 2:]], 2)
        known = (cells.level < len(STRIDES) - 1).expand_as(score)
        none = torch.zeros(0, dtype=torch.long, device=score.device)
        empty = score.new_zeros(0, 2), score.new_zeros(0), score.new_zeros(0, 3, 3)
        return Hints(score, known, none, none, *empty, boxes)


def refine_boxes(batch: Batch, cells: Cells, hints: Hints) -> Batch:
    """Boxes of small faces moved half way to those of a teacher that is sure of the face: boxes of annotators scatter
    by a pixel, which is a tenth of a small face.

    Args:
        hints: of a teacher that gives boxes.
    """
    assert hints.boxes is not None
    index, near = candidate_cells(batch.boxes, cells, STRIDES)
    picture = batch.picture[:, None].expand_as(index)
    near = near & hints.known[picture, index]
    score, slot = torch.where(near, hints.score[picture, index], -1).max(1)
    seen = hints.boxes[batch.picture, index.take_along_dim(slot[:, None], 1)[:, 0]]
    small = (batch.boxes[:, 2:] - batch.boxes[:, :2]).prod(1).sqrt() < SMALL
    agreed = small & ~batch.ignore & (score > SURE) & (box_iou(seen, batch.boxes) > AGREED)
    return replace(batch, boxes=torch.where(agreed[:, None], (batch.boxes + seen) / 2, batch.boxes))


def load_teacher(checkpoint: Path, device: torch.device) -> Teacher:
    """A teacher from a checkpoint of ours, any edge network or a full one, or from SCRFD's ``.onnx``.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_network`; if a model in ONNX is not SCRFD.
        ImportError: if onnx2torch, which reads SCRFD, is not installed.
    """
    if checkpoint.suffix == ".onnx":
        return DetectorTeacher(checkpoint, device)
    _, network = load_network(checkpoint)
    network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return EdgeTeacher(network) if isinstance(network, EdgeNet) else FullTeacher(network)


def hint_losses(logits: Tensor, raw: Tensor, cells: Cells, hints: Hints) -> dict[str, Tensor]:
    """How far a student is from its teacher's hints.

    Args:
        logits: (B, N) score logits.
        raw: (B, N, 9) raw local poses.

    Returns:
        ``hint_score``: quality focal loss towards the teacher's probability, per face it is sure of;
        ``hint_pose``: geodesic distance (radians), offset of the centre (face units) and log ratio of sizes,
        weighted by the teacher's probability where it is known.
    """
    distance = quality_focal_loss(logits, hints.score) * hints.known
    score = distance.sum() / (hints.score * hints.known).sum().clamp(min=1)
    at = hints.picture, hints.cell
    center, size, local = cells_to_local(raw[at], cells.position[hints.cell], cells.stride[hints.cell])
    weight = hints.score[at] * hints.known[at]
    turned = geometry.geodesic_distance(local, hints.local)
    moved = (center - hints.center).abs().mean(1) / hints.size + (size / hints.size).log().abs()
    return {"hint_score": score, "hint_pose": (weight * (turned + moved)).sum() / weight.sum().clamp(min=1)}
