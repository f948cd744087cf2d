"""Which cells learn which face: dynamic assignment on projected boxes (SimOTA, YOLOX 2021, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from img2pose_edge import geometry
from img2pose_edge.decode import cells_to_local
from img2pose_edge.pose_references import project_face_box
from img2pose_edge.training.losses import box_iou, score_target

REACH = 2
"""Candidate cells lie within this many cells of the one that holds the face's middle, on each level."""
FACE_CELLS = ((0.0, 12.0), (1.0, 14.0), (1.5, 1e9))
"""Range of face sizes, in cells, that a level (stride 8, 16, 32) may learn."""
MIN_CELLS, MAX_CELLS = 3, 10
"""Cells that learn a face: a face of few pixels has as much to say as it can, a large one not all."""
IOU_WEIGHT = 3.0


@dataclass(frozen=True)
class Batch:
    """Pictures and their faces, all faces of all pictures one after another.

    Attributes:
        images: (B, S, S, 3) uint8 BGR.
        picture: (F,) int64 index of each face's picture.
        boxes: (F, 4), local: (F, 3, 3), trust: (F,), landmarks: (F, 5, 2), intrinsics: (F, 3, 3), float32.
        ignore: (F,) bool.
    """

    images: Tensor
    picture: Tensor
    boxes: Tensor
    local: Tensor
    trust: Tensor
    landmarks: Tensor
    intrinsics: Tensor
    ignore: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))

    def pin_memory(self) -> Batch:
        """In memory that a GPU copies from by itself; loaders call it."""
        return Batch(*(getattr(self, name).pin_memory() for name in self.__dataclass_fields__))

    def select(self, faces: Tensor) -> Batch:
        """The same pictures with only these faces."""
        rest = {n: getattr(self, n)[faces] for n in self.__dataclass_fields__ if n != "images"}
        return Batch(images=self.images, **rest)


@dataclass(frozen=True)
class Cells:
    """All N cells of a picture, level after level: column and row (N, 2), stride (N,), level (N,)."""

    position: Tensor
    stride: Tensor
    level: Tensor
    starts: tuple[int, ...]
    widths: tuple[int, ...]
    heights: tuple[int, ...]

    @property
    def middle(self) -> Tensor:
        """(N, 2) pixels."""
        return (self.position + 0.5) * self.stride[:, None]


def lay_out_cells(shapes: list[tuple[int, int]], strides: tuple[int, ...], device: torch.device) -> Cells:
    """Cells of maps of these (height, width)."""
    position, stride, level, starts = [], [], [], [0]
    for index, ((height, width), step) in enumerate(zip(shapes, strides, strict=True)):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        position.append(torch.stack([columns, rows], -1).reshape(-1, 2))
        stride.append(torch.full((height * width,), float(step)))
        level.append(torch.full((height * width,), index))
        starts.append(starts[-1] + height * width)
    return Cells(
        torch.cat(position).float().to(device),
        torch.cat(stride).to(device),
        torch.cat(level).to(device),
        tuple(starts[:-1]),
        tuple(w for _, w in shapes),
        tuple(h for h, _ in shapes),
    )


def predict_boxes(center: Tensor, size: Tensor, local: Tensor, intrinsics: Tensor) -> Tensor:
    """(P, 4) projected boxes of local poses: those of the head ellipsoid."""
    return project_face_box(*geometry.local_to_camera(center, size, local, intrinsics), intrinsics)


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """Per-level (B, C, h, w) maps to (B, N, C) float32, cells in the order of :func:`lay_out_cells`."""
    return torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2).float()


def candidate_cells(boxes: Tensor, cells: Cells, strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(F, C) cell indices near each face's middle (boxes (F, 4)) on every level, and which of them may learn it."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    steps = torch.arange(-REACH, REACH + 1, device=middle.device)
    around = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
    index, allowed = [], []
    for level, stride in enumerate(strides):
        width, height = cells.widths[level], cells.heights[level]
        home = (middle / stride).floor().long()
        at = home[:, None] + around
        inside = (at >= 0).all(-1) & (at[..., 0] < width) & (at[..., 1] < height)
        point = (at + 0.5) * stride
        in_box = ((point > boxes[:, None, :2]) & (point < boxes[:, None, 2:])).all(-1)
        low, high = FACE_CELLS[level]
        fits = ((size / stride >= low) & (size / stride < high))[:, None]
        near = ((point - middle[:, None]).abs() < stride).all(-1)  # a small face covers no middle but its own
        allowed.append(inside & fits & (in_box | near))
        x, y = at[..., 0].clamp(0, width - 1), at[..., 1].clamp(0, height - 1)
        index.append(cells.starts[level] + y * width + x)
    return torch.cat(index, 1), torch.cat(allowed, 1)


@torch.no_grad()
def assign(
    logits: Tensor, poses: Tensor, batch: Batch, cells: Cells, strides: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Match faces with cells.

    Args:
        logits: (B, N) score logits.
        poses: (B, N, 9) raw local poses.
        batch: faces to match; none of them ignored.
        cells: the N cells.
        strides: of the levels.

    Returns:
        picture (P,), cell (P,) and face (P,) indices of the matches. A cell learns at most one face.
    """
    index, allowed = candidate_cells(batch.boxes, cells, strides)
    face, slot = allowed.nonzero(as_tuple=True)
    cell, picture = index[face, slot], batch.picture[face]
    raw = poses[picture, cell]
    center, size, local = cells_to_local(raw, cells.position[cell], cells.stride[cell])
    known = batch.trust[face] > 0  # a wrong rotation of the network's must not move faces between cells
    local = torch.where(known[:, None, None], batch.local[face], local)
    iou = box_iou(predict_boxes(center, size, local, batch.intrinsics[face]), batch.boxes[face]).nan_to_num(0)
    probability = logits[picture, cell].sigmoid()
    # Cost of learning: cross-entropy towards the score's target, and the distance of the boxes.
    target = score_target(iou)
    classification = torch.nn.functional.binary_cross_entropy(probability, target, reduction="none")
    pair_cost = classification * (probability - target).abs() ** 2 - IOU_WEIGHT * (iou + 1e-7).log()

    cost = torch.full(allowed.shape, torch.inf, device=logits.device)
    overlap = torch.zeros_like(cost)
    cost[face, slot], overlap[face, slot] = pair_cost, iou
    best = min(MAX_CELLS, cost.shape[1])
    count = overlap.topk(best, dim=1).values.sum(1).int().clamp(min=MIN_CELLS)
    ranked = cost.topk(best, dim=1, largest=False)
    chosen = (torch.arange(best, device=cost.device) < count[:, None]) & ranked.values.isfinite()
    face, rank = chosen.nonzero(as_tuple=True)
    cell, price = index[face, ranked.indices[face, rank]], ranked.values[face, rank]

    # Two faces may want one cell: the cheaper gets it, the first of equals.
    picture = batch.picture[face]
    key = picture * logits.shape[1] + cell
    order = price.argsort(stable=True)
    order = order[key[order].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool, device=cost.device)
    first[1:] = key[order][1:] != key[order][:-1]
    kept = order[first]
    return picture[kept], cell[kept], face[kept]


def covered_cells(batch: Batch, cells: Cells) -> Tensor:
    """(B, N) bool: cells whose middle lies in a face of the batch, or within a stride of its own on the first level, as
    do those that would learn it (:func:`candidate_cells`)."""
    boxes, picture = batch.boxes, batch.picture
    mask = torch.zeros(len(batch.images), len(cells.stride), dtype=torch.bool, device=boxes.device)
    if len(boxes):
        middle, home = cells.middle, (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((middle > boxes[:, None, :2]) & (middle < boxes[:, None, 2:])).all(-1)
        near = ((middle - home[:, None]).abs() < cells.stride[:, None]).all(-1) & (cells.level == 0)
        at, cell = (inside | near).nonzero(as_tuple=True)
        mask[picture[at], cell] = True
    return mask
