"""The training objective of the full model, and what normalizes its poses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from img2pose_edge import geometry
from img2pose_edge.training.data import Record, pose_from_boxes
from img2pose_edge.training.losses import box_iou
from img2pose_edge.training.networks.full import Convention, FullNet, Target
from img2pose_edge.training.networks.pose_heads import FACE_IOU, SAMPLES
from img2pose_edge.training.objective import Objective
from img2pose_edge.training.targets import Batch

WEIGHTS = {"objectness": 1.0, "proposal": 1.0, "score": 1.0, "pose": 1.0, "points": 20.0}
"""``points`` are in parts of a proposal's extent; img2pose sums pixels, whatever a face's size."""


BOXES_PER_FACE = 4


def batch_targets(batch: Batch) -> list[Target]:
    """Each picture's faces as the full model learns them."""
    center, size = pose_from_boxes(batch.boxes, batch.local, batch.intrinsics)
    targets = []
    for number in range(len(batch.images)):
        here = batch.picture == number
        faces, others = here & ~batch.ignore, here & batch.ignore
        targets.append(
            Target(
                batch.boxes[faces],
                center[faces],
                size[faces],
                batch.local[faces],
                batch.trust[faces],
                batch.boxes[others],
            )
        )
    return targets


def boxes_around(faces: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes as the proposals that a face is learnt from: at random, overlapping it by at least ``FACE_IOU``.

    Args:
        faces: (F, 4).
        seed: of the choice.

    Returns:
        (P, 4) boxes, and the face of each (P,): up to ``BOXES_PER_FACE`` of every face, its own first.
    """
    random = torch.Generator().manual_seed(seed)
    face = torch.arange(len(faces)).repeat(BOXES_PER_FACE)
    extent = (faces[:, 2:] - faces[:, :2]).repeat(BOXES_PER_FACE, 2)
    shift = (torch.rand(len(face), 4, generator=random, dtype=faces.dtype) - 0.5) * 0.5 * extent
    shift[: len(faces)] = 0
    boxes = faces[face] + shift
    near = box_iou(boxes, faces[face]) >= FACE_IOU
    return boxes[near], face[near]


def pose_statistics(records: list[Record], convention: Convention) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (6,) of the poses of the records' faces in the cameras of boxes around them.

    img2pose takes each face's own box. There our translations hardly vary, as they follow from the box; in
    proposals they do, and a deviation that is too small makes translation drown the rest of the loss.

    Raises:
        ValueError: if fewer than two faces have a rotation.
    """
    poses = []
    for number, record in enumerate(records):
        faces = record.faces.select(~record.faces.ignore & (record.faces.trust > 0))
        if len(faces) == 0:
            continue
        camera = geometry.default_intrinsics(record.width, record.height)
        boxes, local, trust = (torch.from_numpy(v) for v in (faces.boxes, faces.local, faces.trust))
        center, size = pose_from_boxes(boxes, local, torch.from_numpy(camera))
        target = Target(boxes, center, size, local, trust, boxes[:0])
        around, face = boxes_around(boxes, seed=number)
        poses.append(convention.box_poses(target, face, around, (record.width, record.height)).numpy())
    known = np.concatenate(poses) if poses else np.empty((0, 6))
    known = known[np.isfinite(known).all(1)]  # without faces so near that they surround the camera
    if len(known) < 2:
        raise ValueError(f"pose mean and deviation need at least two faces with a rotation, found {len(known)}")
    deviation = np.maximum(known.std(0), 1e-3)  # of faces all alike
    return torch.tensor(known.mean(0)).float(), torch.tensor(deviation).float()


class FullObjective(Objective):
    """The full model and its loss as one module: what DDP wraps."""

    parts = tuple(WEIGHTS)

    def __init__(self, network: FullNet, proposals: int = SAMPLES) -> None:
        super().__init__()
        self.network = network
        network.roi_heads.sampler.batch_size_per_image = proposals
        for limits, most, factor in ((network.rpn._pre_nms_top_n, 6000, 16), (network.rpn._post_nms_top_n, 2000, 4)):
            limits["training"] = min(most, factor * proposals)  # img2pose's, unless the heads learn from few anyway

    def prepare(self, records: list[Record]) -> None:
        self.network.pose_mean, self.network.pose_std = pose_statistics(records, self.network.convention)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and its unweighted parts."""
        parts = self.network.losses(list(batch.images), batch_targets(batch))
        return torch.stack([WEIGHTS[k] * v for k, v in parts.items()]).sum(), parts
