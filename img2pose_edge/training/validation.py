"""How good a network is on the held-out slice of the training images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from img2pose_edge import geometry, published
from img2pose_edge.benchmarks.metrics import (
    Detections,
    GroundTruth,
    angle_errors,
    normalize_scores,
    wider_average_precision,
)
from img2pose_edge.decode import candidates, least_agreeing
from img2pose_edge.detector import make_faces
from img2pose_edge.face import Face
from img2pose_edge.nms import pairwise_iou
from img2pose_edge.preprocess import letterbox
from img2pose_edge.training.data import Pixels, Record
from img2pose_edge.training.networks.edge import SCORE_GAIN, STRIDES, SUPPORT_GAIN, EdgeNet

INPUT_SIZE, SCORE_THRESHOLD, NMS_IOU = 640, 0.02, 0.5
LEAST_SIZE, LEAST_TRUST = 10.0, 0.4
PROPOSALS = 300
"""Of the full model in a picture: few pictures hold more faces, and the heads cost much."""


@torch.no_grad()
def detect_with(network: nn.Module, image: np.ndarray, device: torch.device) -> list[Face]:
    """Faces that a torch network finds in an (H, W, 3) uint8 BGR image, through the runtime's own code."""
    camera = geometry.default_intrinsics(image.shape[1], image.shape[0])
    if not isinstance(network, (EdgeNet, GraphModule)):
        local = find_local_poses(network, torch.tensor(image, device=device), SCORE_THRESHOLD)
        score, boxes, center, size, rotation = (v.double().cpu().numpy() for v in local)
        return make_faces(score, center, size, rotation, np.ones(2), camera, NMS_IOU, boxes)
    # Quantized graphs are made for at least two cells of the largest stride.
    pixels, scale = letterbox(image, INPUT_SIZE, max(STRIDES) * (1 + isinstance(network, GraphModule)))
    scores, poses = network(torch.tensor(pixels[None], device=device))
    cells = candidates(
        [s.float().cpu().numpy() for s in scores],
        [p.float().cpu().numpy() for p in poses],
        STRIDES,
        least_agreeing(SCORE_THRESHOLD, SUPPORT_GAIN),
        SCORE_GAIN,
    )
    return make_faces(*cells, scale, camera, NMS_IOU, support_gain=SUPPORT_GAIN, threshold=SCORE_THRESHOLD)


def find_local_poses(network: nn.Module, image: Tensor, threshold: float) -> tuple[Tensor, ...]:
    """What a full model finds in an (H, W, 3) uint8 BGR image, best first.

    Returns:
        scores (N,), boxes (N, 4) in pixels, and local poses: centre (N, 2), size (N,), rotation (N, 3, 3).
    """
    from img2pose_edge.training.networks.full import FullNet, SearchOptions

    assert isinstance(network, FullNet)
    height, width = image.shape[:2]
    side = min(INPUT_SIZE, max(height, width))  # as the runtime does: small images keep their size
    options = SearchOptions(side, side, post_nms_top_n=PROPOSALS, score_threshold=threshold, nms_iou=NMS_IOU)
    found = network.detect([image], options)[0]
    poses = found.poses
    if network.official:
        turned = published.to_our_face(poses.double().cpu().numpy(), network.points.cpu().numpy())
        poses = torch.from_numpy(turned).to(poses)
    camera = torch.from_numpy(geometry.default_intrinsics(width, height)).to(poses)
    return found.scores, found.boxes, *geometry.camera_to_local(*geometry.decompose_pose(poses), camera)


def validate(
    network: nn.Module, records: list[Record], held_out: list[int], pixels: Pixels, device: torch.device
) -> dict[str, float]:
    """Detection and pose figures on the records at the positions ``held_out``.

    Returns:
        ``ap``: average precision (IoU 0.5) on scenes, faces of at least 10 of the pixels that the network sees;
        ``recall``: share of the faces with a trusted rotation, in all collections, that are found;
        ``mae``: mean absolute error of pitch, yaw and roll on those, degrees.
    """
    found, truth, errors, wanted = [], [], [], 0
    scenes = any(records[i].collection == "wider" for i in held_out)
    for index in held_out:
        record = records[index]
        detected = detect_with(network, pixels[index], device)
        boxes = np.array([f.box for f in detected]).reshape(-1, 4)
        faces = record.faces
        sizes = faces.sizes * min(1, INPUT_SIZE / max(record.width, record.height))
        if record.collection == "wider" or not scenes:
            seen = np.clip(boxes, 0, [record.width, record.height] * 2)  # as annotators draw them, and `evaluate` does
            found.append(Detections(seen, np.array([f.score for f in detected])))
            truth.append(GroundTruth(faces.boxes, ~faces.ignore & (sizes >= LEAST_SIZE)))
        posed = np.flatnonzero(~faces.ignore & (faces.trust > LEAST_TRUST) & (sizes >= 2 * LEAST_SIZE))
        wanted += len(posed)
        if len(boxes) == 0 or len(posed) == 0:
            continue
        overlap = pairwise_iou(faces.boxes[posed], boxes)
        best = overlap.argmax(1)
        for row in np.flatnonzero(overlap.max(1) >= 0.5):
            target = geometry.matrix_to_angles(faces.local[posed[row]])
            errors.append(angle_errors(detected[best[row]].angles, target))
    counted = sum(int(t.counts.sum()) for t in truth)
    return {
        "ap": wider_average_precision(normalize_scores(found), truth) if counted else 0.0,
        "recall": len(errors) / max(wanted, 1),
        "mae": float(np.mean(errors)) if errors else 180.0,
    }
