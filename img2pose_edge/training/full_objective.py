"""The training objective of the full model, and what normalizes its poses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from img2pose_edge import geometry
from img2pose_edge.training.data import Record, pose_from_boxes
from img2pose_edge.training.networks.full import FullNet, Target
from img2pose_edge.training.networks.pose_heads import SAMPLES
from img2pose_edge.training.objective import Objective
from img2pose_edge.training.targets import Batch

WEIGHTS = {"objectness": 1.0, "proposal": 1.0, "score": 1.0, "pose": 1.0, "points": 20.0}
"""``points`` are in parts of a proposal's extent; img2pose sums pixels, whatever a face's size."""


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


def pose_statistics(records: list[Record], network: FullNet) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (6,) of the poses of the records' faces, each in the camera of its own box.

    Raises:
        ValueError: if fewer than two faces have a rotation.
    """
    poses = []
    for record in records:
        faces = record.faces.select(~record.faces.ignore & (record.faces.trust > 0))
        if len(faces) == 0:
            continue
        camera = geometry.default_intrinsics(record.width, record.height)
        boxes, local, trust = (torch.from_numpy(v) for v in (faces.boxes, faces.local, faces.trust))
        center, size = pose_from_boxes(boxes, local, torch.from_numpy(camera))
        target = Target(boxes, center, size, local, trust, boxes[:0])
        every = torch.arange(len(faces))
        poses.append(network.convention.box_poses(target, every, target.boxes, (record.width, record.height)).numpy())
    known = np.concatenate(poses) if poses else np.empty((0, 6))
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

    def prepare(self, records: list[Record]) -> None:
        self.network.pose_mean, self.network.pose_std = pose_statistics(records, self.network)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and its unweighted parts."""
        parts = self.network.losses(list(batch.images), batch_targets(batch))
        return torch.stack([WEIGHTS[k] * v for k, v in parts.items()]).sum(), parts
