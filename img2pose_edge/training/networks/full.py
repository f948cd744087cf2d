"""img2pose (Albiero et al., CVPR 2021): Faster R-CNN with a feature pyramid that regresses 6DoF poses.

A region proposal network finds where faces may be; every proposal is classified (face or not) and gets a
pose in its own camera (``geometry.box_intrinsics``); the image's pose and the face's box follow from that.
Modules carry the names that the official checkpoints use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops import boxes as box_ops

from img2pose_edge import geometry, published
from img2pose_edge.pose_references import project_face_box
from img2pose_edge.training.networks.pose_heads import PoseHeads, contained

IMAGE_MEAN, IMAGE_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of ImageNet, RGB, as torchvision's backbones expect."""
ANCHOR_SIZES = ((16,), (32,), (64,), (128,), (256,))
ANCHOR_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class SearchOptions:
    """How a trained network searches an image; defaults are those of img2pose.

    Attributes:
        min_size, max_size: the image is resized so that its shorter side is ``min_size`` pixels, but the
            longer one at most ``max_size``.
        pre_nms_top_n, post_nms_top_n: proposals per level before, and per image after, their NMS.
        score_threshold: least face probability.
        nms_iou: of projected boxes.
        max_faces: per image.
    """

    min_size: int = 800
    max_size: int = 1400
    pre_nms_top_n: int = 6000
    post_nms_top_n: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_faces: int = 1000


@dataclass(frozen=True)
class Found:
    """Faces of one image, best first: (N,) scores, (N, 4) boxes in pixels, (N, 6) poses in its camera."""

    scores: Tensor
    boxes: Tensor
    poses: Tensor


@dataclass(frozen=True)
class Target:
    """Faces of one training picture, in its own pixels.

    Attributes:
        boxes: (F, 4), of those to find.
        center, size, local: (F, 2), (F,), (F, 3, 3) local poses.
        trust: (F,) weight of the rotation, 0 where it is unknown.
        ignore: (G, 4) boxes of what is neither face nor background.
    """

    boxes: Tensor
    center: Tensor
    size: Tensor
    local: Tensor
    trust: Tensor
    ignore: Tensor


class Convention(Protocol):
    """How poses of proposals, of faces and of images hang together. ``size``: (width, height) in pixels."""

    def box_poses(self, target: Target, face: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """(P, 6) poses, in the cameras of the proposals ``boxes`` (P, 4), of the faces ``face`` (P,)."""

    def image_faces(
        self, poses: Tensor, boxes: Tensor, size: tuple[int, int], intrinsics: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(P, 6) poses in an image's camera and (P, 4) projected boxes of proposals' poses."""


class ExactConvention:
    """Ours: a crop shows a face's local rotation, which is the same in every camera."""

    def box_poses(self, target: Target, face: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        center = target.center[face] - boxes[:, :2]
        camera = geometry.box_intrinsics(boxes)
        return geometry.compose_pose(*geometry.local_to_camera(center, target.size[face], target.local[face], camera))

    def image_faces(
        self, poses: Tensor, boxes: Tensor, size: tuple[int, int], intrinsics: Tensor
    ) -> tuple[Tensor, Tensor]:
        image = geometry.convert_pose(poses, geometry.box_intrinsics(boxes), intrinsics, offset=boxes[:, :2])
        return image, project_face_box(*geometry.decompose_pose(image), intrinsics)


class PublishedConvention:
    """That of the official checkpoints (``published``); boxes around their 68 reference points (68, 3)."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def box_poses(self, target: Target, face: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        camera = torch.as_tensor(published.image_camera(*size), dtype=boxes.dtype, device=boxes.device)
        rotation, translation = geometry.local_to_camera(
            target.center[face], target.size[face], target.local[face], camera
        )
        pose = published.to_official_face(geometry.compose_pose(rotation, translation), self.points.cpu().numpy())
        return published.image_to_box_pose(pose, boxes, camera)

    def image_faces(
        self, poses: Tensor, boxes: Tensor, size: tuple[int, int], intrinsics: Tensor
    ) -> tuple[Tensor, Tensor]:
        camera = torch.as_tensor(published.image_camera(*size), dtype=poses.dtype, device=poses.device)
        image = published.box_to_image_pose(poses, boxes, camera)
        points = self.points.to(poses)
        return image, published.project_boxes(image, points, camera, *size)


class FaceProposals(RegionProposalNetwork):
    """torchvision's region proposal network, whose anchors on ignored faces learn nothing."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            label[(label == 0) & contained(anchor, target["ignore"])] = -1
        return labels, matched


class ProposalHead(RPNHead):
    """torchvision's head over every anchor, in bfloat16 while training; its results are float32."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        with torch.autocast(x[0].device.type, torch.bfloat16, enabled=self.training):
            logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class FullNet(nn.Module):
    """The full model.

    Args:
        depth: of the ResNet, 18, 50 or 101.
        official: follow the official checkpoints: their conventions, boxes around their reference ``points``
            (a buffer, (68, 3)), backbone batch norms that do not learn.

    Buffers ``pose_mean`` and ``pose_std`` (6,) normalize poses in proposals' cameras.
    """

    pose_mean: Tensor
    pose_std: Tensor
    points: Tensor

    def __init__(self, depth: int, official: bool = False) -> None:
        super().__init__()
        self.backbone = resnet_fpn_backbone(
            backbone_name=f"resnet{depth}",
            weights=None,
            norm_layer=FrozenBatchNorm2d if official else nn.BatchNorm2d,
            trainable_layers=3 if official else 5,
        )
        channels = self.backbone.out_channels
        anchors = AnchorGenerator(ANCHOR_SIZES, (ANCHOR_RATIOS,) * len(ANCHOR_SIZES))
        self.rpn = FaceProposals(
            anchors,
            ProposalHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 6000, "testing": 6000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.4,
        )
        self.roi_heads = PoseHeads(channels)
        self.register_buffer("pose_mean", torch.zeros(6))
        self.register_buffer("pose_std", torch.ones(6))
        if official:
            self.register_buffer("points", torch.zeros(68, 3))
        self.official = official

    @property
    def convention(self) -> Convention:
        return PublishedConvention(self.points) if self.official else ExactConvention()

    def _features(self, images: list[Tensor], resize: SearchOptions | None) -> tuple[ImageList, dict[str, Tensor]]:
        """Images, normalized, padded to one size and resized as asked, and their feature maps."""
        smallest, largest = (resize.min_size, resize.max_size) if resize else (1, 1)
        transform = GeneralizedRCNNTransform(smallest, largest, IMAGE_MEAN, IMAGE_STD, _skip_resize=resize is None)
        transform.train(resize is None)
        prepared, _ = transform([image.flip(2).permute(2, 0, 1).float() / 255 for image in images])
        with torch.autocast(prepared.tensors.device.type, torch.bfloat16, enabled=self.training):
            features = self.backbone(prepared.tensors)
        return prepared, {name: feature.float() for name, feature in features.items()}

    def losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Losses of pictures with their faces; to be added up.

        Args:
            images: (H, W, 3) uint8 BGR each, of any sizes; they are not resized.
            targets: of each image.

        Returns:
            ``objectness`` and ``proposal`` of the proposal network; ``score``, ``pose`` and ``points`` of
            the heads (img2pose, equations 4 and 5).
        """
        prepared, features = self._features(images, None)
        boxes = [{"boxes": t.boxes, "ignore": t.ignore} for t in targets]
        proposals, proposal_losses = self.rpn(prepared, features, boxes)
        heads = self.roi_heads.losses(
            features, proposals, prepared.image_sizes, targets, self.convention, self.pose_mean, self.pose_std
        )
        return {
            "objectness": proposal_losses["loss_objectness"],
            "proposal": proposal_losses["loss_rpn_box_reg"],
            **heads,
        }

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is exported: the network alone, on one image as it is.

        Args:
            image: (1, H, W, 3) uint8 BGR.

        Returns:
            (P,) face probabilities, (P, 6) poses in the proposals' cameras, and the proposals (P, 4).
        """
        mean, std = (image.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        pixels = (image.flip(3).permute(0, 3, 1, 2).float() / 255 - mean) / std
        features = self.backbone(pixels)
        shape = (pixels.shape[2], pixels.shape[3])
        proposals, _ = self.rpn(ImageList(pixels, [shape]), features)
        scores, poses = self.roi_heads(features, proposals, [shape])
        return scores, poses * self.pose_std + self.pose_mean, proposals[0]

    def search(self, options: SearchOptions) -> None:
        """Propose as many regions as ``options`` says from now on, outside training."""
        self.rpn._pre_nms_top_n["testing"] = options.pre_nms_top_n
        self.rpn._post_nms_top_n["testing"] = options.post_nms_top_n

    @torch.no_grad()
    def detect(
        self, images: list[Tensor], options: SearchOptions | None = None, intrinsics: list[Tensor] | None = None
    ) -> list[Found]:
        """Faces of images.

        Args:
            images: (H, W, 3) uint8 BGR each, of any sizes.
            options: of the search.
            intrinsics: (3, 3) camera of each image; default ``geometry.default_intrinsics``.
        """
        options = options or SearchOptions()
        resized, features = self._features(images, options)
        self.search(options)
        proposals, _ = self.rpn(resized, features)
        scores, poses = self.roi_heads(features, proposals, resized.image_sizes)
        poses = poses * self.pose_std + self.pose_mean
        found, start = [], 0
        for i, (image, shape) in enumerate(zip(images, resized.image_sizes, strict=True)):
            stop = start + len(proposals[i])
            factor = torch.tensor([shape[1] / image.shape[1], shape[0] / image.shape[0]], device=image.device)
            camera = torch.as_tensor(
                geometry.default_intrinsics(image.shape[1], image.shape[0]) if intrinsics is None else intrinsics[i],
                dtype=torch.float32,
                device=image.device,
            )
            camera = torch.diag(torch.cat([factor, factor.new_ones(1)])) @ camera
            found.append(
                self._faces(scores[start:stop], poses[start:stop], proposals[i], shape, camera, factor, options)
            )
            start = stop
        return found

    def _faces(
        self,
        scores: Tensor,
        poses: Tensor,
        proposals: Tensor,
        shape: tuple[int, int],
        camera: Tensor,
        factor: Tensor,
        options: SearchOptions,
    ) -> Found:
        boxes = box_ops.clip_boxes_to_image(proposals, shape)
        kept = scores > options.score_threshold
        kept[kept.clone()] = (boxes[kept][:, 2:] - boxes[kept][:, :2] >= 1e-2).all(1)
        image, projected = self.convention.image_faces(poses[kept], boxes[kept], (shape[1], shape[0]), camera)
        # A pose behind the camera, or so near that the face surrounds it, projects to no box.
        valid = projected.isfinite().all(1) & (image[:, 5] > 0)
        scores, image, projected = scores[kept][valid], image[valid], projected[valid]
        best = box_ops.nms(projected, scores, options.nms_iou)[: options.max_faces]
        return Found(scores[best], projected[best] / factor.repeat(2), image[best])
