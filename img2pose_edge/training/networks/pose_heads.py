"""The two heads of the full model: face or not, and the pose of a proposal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import boxes as box_ops

from img2pose_edge import geometry
from img2pose_edge.pose_references import load_reference

if TYPE_CHECKING:
    from img2pose_edge.training.networks.full import Convention, Target

SAMPLES, POSITIVE_SHARE, FACE_IOU = 512, 0.25, 0.5
"""Proposals of a picture that the heads learn from, and the share of faces among them at most."""
POOL, HIDDEN, POSE_HIDDEN = 7, 1024, 256
CLASSES = 2
"""Background and face; the pose head has six numbers for each, of which only the face's are used."""


def contained(boxes: Tensor, regions: Tensor, share: float = 0.5) -> Tensor:
    """(N,) bool: boxes (N, 4) of whose area at least ``share`` lies in one of the regions (M, 4)."""
    if len(regions) == 0 or len(boxes) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(2).amax(1)
    return inside >= share * box_ops.box_area(boxes)


class PosePredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dof_pred = nn.Sequential(
            nn.Linear(HIDDEN, POSE_HIDDEN),
            nn.BatchNorm1d(POSE_HIDDEN),
            nn.ReLU(),
            nn.Linear(POSE_HIDDEN, CLASSES * 6),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(P, HIDDEN) to (P, 6) normalized poses."""
        return self.dof_pred(x)[:, 6:]


class FacePredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_score = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(P, HIDDEN) to (P, 2) logits of background and face."""
        return self.cls_score(x)


class PoseHeads(nn.Module):
    """RoIAlign, then a trunk of two fully connected layers for each of the heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = MultiScaleRoIAlign(["0", "1", "2", "3"], POOL, sampling_ratio=2)
        self.box_head = TwoMLPHead(channels * POOL**2, HIDDEN)
        self.box_predictor = PosePredictor()
        self.class_head = TwoMLPHead(channels * POOL**2, HIDDEN)
        self.class_predictor = FacePredictor()
        self.matcher = Matcher(FACE_IOU, FACE_IOU, allow_low_quality_matches=False)
        self.sampler = BalancedPositiveNegativeSampler(SAMPLES, POSITIVE_SHARE)

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Face probability (P,) and normalized pose (P, 6) of all images' proposals, one after another."""
        pooled = self.pool(features, proposals, sizes)
        return self._score(pooled).softmax(1)[:, 1], self._pose(pooled)

    def _score(self, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, torch.bfloat16, enabled=self.training):
            return self.class_predictor(self.class_head(pooled)).float()

    def _pose(self, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, torch.bfloat16, enabled=self.training):
            hidden = self.box_head(pooled)
        return self.box_predictor(hidden.float())

    def _sample(self, proposals: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Proposals (P, 4) to learn from, which of them are faces (P,), and the face of each (P,)."""
        proposals = torch.cat([proposals, target.boxes])
        if len(target.boxes):
            face = self.matcher(box_ops.box_iou(target.boxes, proposals))
        else:
            face = torch.full((len(proposals),), -1, device=proposals.device)
        label = (face >= 0).float()
        label[(label == 0) & contained(proposals, target.ignore)] = -1
        positive, negative = self.sampler([label])
        chosen = (positive[0] | negative[0]).nonzero()[:, 0]
        return proposals[chosen], label[chosen] > 0, face[chosen].clamp(min=0)

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[Target],
        convention: Convention,
        mean: Tensor,
        std: Tensor,
    ) -> dict[str, Tensor]:
        """``score``, ``pose`` and ``points`` of a batch.

        Every image's poses are converted by its own size. Faces of unknown rotation teach score and
        translation only.
        """
        boxes, is_face, wanted, trust = [], [], [], []
        for proposal, target, (height, width) in zip(proposals, targets, sizes, strict=True):
            box, label, face = self._sample(proposal.detach(), target)
            boxes.append(box)
            is_face.append(label)
            wanted.append(convention.box_poses(target, face[label], box[label], (width, height)))
            trust.append(target.trust[face[label]])
        faces, pose, weight = torch.cat(is_face), torch.cat(wanted), torch.cat(trust)
        pooled = self.pool(features, boxes, sizes)
        if len(faces) == 0:  # every proposal lies on what is ignored
            nothing = 0 * pooled.sum()
            return {"score": nothing, "pose": nothing, "points": nothing}
        score = functional.cross_entropy(self._score(pooled), faces.long())

        # Batch norm needs two rows: pictures with fewer faces lend others, which then count nothing.
        rows = faces.nonzero()[:, 0]
        lent = torch.cat([rows, rows.new_zeros(max(2 - len(rows), 0))])
        normalized = self._pose(pooled[lent])[: len(rows)]
        if len(rows) == 0:
            nothing = normalized.sum() + 0 * pooled.sum()
            return {"score": score, "pose": nothing, "points": nothing}
        # As many faces as there are, six numbers each: the mean over faces of the summed squares; beyond a deviation
        # linear, or a few people lying down, ten deviations away, are most of it.
        weights = torch.cat([weight[:, None].expand(-1, 3), torch.ones_like(pose[:, 3:])], 1)
        error = 2 * functional.huber_loss(normalized, (pose - mean) / std, reduction="none")
        camera = geometry.box_intrinsics(torch.cat(boxes)[rows])
        extent = camera[:, 0, 0, None, None]
        reference = load_reference()
        points = []
        for which in (reference.points5, reference.points68):
            known = geometry.like(which, pose)
            drawn = [
                geometry.project(known, *geometry.decompose_pose(p), camera) for p in (normalized * std + mean, pose)
            ]
            # A face far off or behind the camera tells how wrong it is up to a box's size, no more.
            distance = ((drawn[0] - drawn[1]) / extent).clamp(-1, 1).abs()
            points.append((distance.nan_to_num(1.0).mean((1, 2)) * weight).sum() / (weight.sum() + 1e-6))
        return {"score": score, "pose": (error * weights).sum() / len(rows), "points": sum(points, score.new_zeros(()))}
