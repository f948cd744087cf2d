"""The training objective of the edge networks: from maps and a batch to one number to make small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from img2pose_edge import geometry
from img2pose_edge.decode import cells_to_local
from img2pose_edge.pose_references import load_reference
from img2pose_edge.training.data import Record
from img2pose_edge.training.distill import Teacher, hint_losses, refine_boxes
from img2pose_edge.training.losses import box_iou, eiou_loss, quality_focal_loss, score_target
from img2pose_edge.training.networks.edge import STRIDES, EdgeNet
from img2pose_edge.training.targets import Batch, assign, covered_cells, flatten_maps, lay_out_cells, predict_boxes

LEAST_UPRIGHT = 0.5
"""Cosine of the angle between the face's and the picture's vertical, below which teachers are not asked about it."""
WEIGHTS = {"score": 2.0, "box": 2.0, "rotation": 3.0, "points": 1.5}


def edge_loss(
    scores: list[Tensor], poses: list[Tensor], batch: Batch, strides: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum and parts of the loss of an edge network on a batch.

    - ``score``: quality focal loss over all cells but ignored ones, target of the projected box's IoU;
    - ``box``: EIoU of the projected box; it moves centre and size, not the rotation, which boxes hardly show;
    - ``rotation``: geodesic distance of local rotations in radians, weighted by the label's trust;
    - ``points``: L1 of the five projected calibration points in face units (img2pose, section 3.2).
    """
    logits, raw = flatten_maps(scores)[..., 0], flatten_maps(poses)
    cells = lay_out_cells([(s.shape[2], s.shape[3]) for s in scores], strides, logits.device)
    faces = batch.select(~batch.ignore)
    picture, cell, face = assign(logits, raw, faces, cells, strides)

    center, size, local = cells_to_local(raw[picture, cell], cells.position[cell], cells.stride[cell])
    camera, boxes, trust = faces.intrinsics[face], faces.boxes[face], faces.trust[face]
    # A weak pose at the picture's edge may put the ellipsoid beside the camera, or make it so small that its box has no
    # extent: it has no box then, and no gradient.
    with torch.no_grad():
        predicted = predict_boxes(center, size, local, camera)
        valid = predicted.isfinite().all(1) & (predicted[:, 2:] > predicted[:, :2]).all(1)
    pixels = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    center = torch.where(valid[:, None], center, (boxes[:, :2] + boxes[:, 2:]) / 2)
    size = torch.where(valid, size, pixels / 1.5)
    safe = predict_boxes(center, size, local.detach(), camera)
    quality = torch.where(valid, box_iou(safe, boxes), 0).detach().clamp(0, 1)

    targets = torch.zeros_like(logits)
    targets[picture, cell] = score_target(quality)
    ignored = covered_cells(batch.select(batch.ignore), cells)
    ignored[picture, cell] = False
    positives = max(len(face), 1)
    score = (quality_focal_loss(logits, targets) * ~ignored).sum() / positives
    box = (eiou_loss(safe, boxes) * valid).sum() / positives

    # A face of few pixels shows little of its rotation.
    weight = trust * ((pixels - 6) / 26).clamp(0, 1)
    error = geometry.geodesic_distance(local, faces.local[face])
    rotation = (weight * error).sum() / (weight.sum() + 1)

    landmarks = faces.landmarks[face]
    marked = landmarks.isfinite().all(-1).all(-1) & (weight > 0)
    reference = torch.tensor(load_reference().detector_points5, device=logits.device)
    turned, translation = geometry.local_to_camera(center, size, local, camera)
    projected = geometry.project(reference, turned, translation, camera)
    unit = (pixels / 1.5)[:, None, None]
    distance = ((projected - torch.where(marked[:, None, None], landmarks, projected.detach())) / unit).abs()
    points = ((weight * marked)[:, None, None] * distance).mean((1, 2)).sum() / (weight.sum() + 1)

    parts = {"score": score, "box": box, "rotation": rotation, "points": points}
    return torch.stack([WEIGHTS[k] * v for k, v in parts.items()]).sum(), parts


class Objective(nn.Module):
    """A network and its loss as one module (what DDP wraps); ``parts`` names the parts of the loss."""

    parts: tuple[str, ...]

    def prepare(self, records: list[Record]) -> None:
        """Read from the training records what an untrained network must know of them."""


class EdgeObjective(Objective):
    """An edge network and its loss: towards the labels, and, if it has teachers, the hints of one of them by lot."""

    def __init__(self, network: nn.Module, teachers: Sequence[Teacher] = ()) -> None:
        super().__init__()
        self.network, self.teachers = network, teachers
        self.parts = tuple(dict.fromkeys([*WEIGHTS, *(name for t in teachers for name in t.weights)]))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and its unweighted parts; those of the teacher of this step, of several."""
        exact = not isinstance(self.network, EdgeNet)  # a graph that learns int8's rounding wants no other
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=not exact):
            scores, poses = self.network(batch.images)
        cells = lay_out_cells([(s.shape[2], s.shape[3]) for s in scores], STRIDES, batch.images.device)
        if not self.teachers:
            return edge_loss(scores, poses, batch, STRIDES)
        teacher = self.teachers[int(torch.randint(len(self.teachers), ()))]
        hints = teacher(batch, cells)
        # Few photographs that a teacher has seen show people lying down: of their faces it says nothing.
        lying = batch.select(batch.local[:, 1, 1] < LEAST_UPRIGHT)
        hints = replace(hints, known=hints.known & ~covered_cells(lying, cells))
        if hints.boxes is not None:
            batch = refine_boxes(batch, cells, hints)
        loss, parts = edge_loss(scores, poses, batch, STRIDES)
        distances = hint_losses(flatten_maps(scores)[..., 0], flatten_maps(poses), cells, hints)
        distances = {name: distances[name] for name in teacher.weights}
        loss = loss + torch.stack([teacher.weights[k] * v for k, v in distances.items()]).sum()
        return loss, parts | distances
