"""The full model: conversions, losses, official checkpoints, learning, two processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from img2pose_edge.export.model import ExportOptions, export_model
from img2pose_edge.pose_references import load_reference
from scipy.spatial.transform import Rotation
from torch import Tensor

from img2pose_edge import PoseDetector, geometry, published
from img2pose_edge.cli import main
from img2pose_edge.decode import proposal_candidates
from img2pose_edge.training import loop
from img2pose_edge.training.checkpoint import load_checkpoint, save_checkpoint
from img2pose_edge.training.data import PixelCache, read_records
from img2pose_edge.training.full_objective import FullObjective, batch_targets, boxes_around, pose_statistics
from img2pose_edge.training.loop import TrainOptions, collate, train
from img2pose_edge.training.networks import build_network
from img2pose_edge.training.networks.full import ExactConvention, FullNet, PublishedConvention, SearchOptions, Target
from img2pose_edge.training.networks.pose_heads import contained
from img2pose_edge.training.official import convert_checkpoint
from img2pose_edge.training.targets import Batch


def markley(m: np.ndarray) -> Rotation:
    """What SciPy 1.5.4, the original's, makes of a matrix that is no rotation (newer ones use an SVD)."""
    decision = [m[0, 0], m[1, 1], m[2, 2], m.trace()]
    i = int(np.argmax(decision))
    q = np.zeros(4)  # x, y, z, w
    if i < 3:
        j, k = (i + 1) % 3, (i + 2) % 3
        q[i], q[j], q[k] = 1 - m.trace() + 2 * m[i, i], m[j, i] + m[i, j], m[k, i] + m[i, k]
        q[3] = m[k, j] - m[j, k]
    else:
        q[:] = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + m.trace()
    return Rotation.from_quat(q / np.linalg.norm(q))


def published_reference(pose: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """One proposal's pose in the image, as img2pose's paper and code have it, face by face in float64."""
    focal = width + height
    image = np.array([[focal, 0, width // 2], [0, focal, height // 2], [0, 0, 1.0]])
    crop = image.copy()
    crop[0, 2] = box[0] + (box[2] - box[0]) // 2
    crop[1, 2] = box[1] + (box[3] - box[1]) // 2
    to_image = np.linalg.inv(image) @ crop
    translation = pose[3:].copy()
    translation[2] *= focal / (box[2] - box[0] + box[3] - box[1])
    rotation = markley(to_image @ Rotation.from_rotvec(pose[:3]).as_matrix())
    return np.concatenate([rotation.as_rotvec(), to_image @ translation])


def published_box(pose: np.ndarray, points: np.ndarray, width: int, height: int) -> list[int]:
    """The original's rule for one face: 1.1 times the points' extent, 0.3 of it more at the forehead."""
    camera = np.array([[width + height, 0, width // 2], [0, width + height, height // 2], [0, 0, 1.0]])
    pixels = (Rotation.from_rotvec(pose[:3]).apply(points) + pose[3:]) @ camera.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    (x1, y1), (x2, y2) = pixels.min(0), pixels.max(0)
    w, h = x2 - x1, y2 - y1
    sides = [(x1 + x2 - int(w * 1.1)) / 2, (y1 + y2 - int(h * 1.1)) / 2]
    sides += [(x1 + x2 + int(w * 1.1)) / 2, (y1 + y2 + int(h * 1.1)) / 2]
    if abs(pose[2]) > 2.5:
        sides[3] += 0.3 * h
    elif pose[2] > 1:
        sides[2] += 0.3 * w
    elif pose[2] < -1:
        sides[0] -= 0.3 * w
    else:
        sides[1] -= 0.3 * h
    whole = [int(s) for s in sides]
    return [max(whole[0], 0), max(whole[1], 0), min(whole[2], width), min(whole[3], height)]


def random_proposals(count: int, width: int, height: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses in box cameras, and the boxes, all over an image."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(20, 120, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - size)
    rotation = rng.normal(0, [0.4, 0.6, 0.8], (count, 3))
    translation = np.column_stack([rng.normal(0, 0.1, (count, 2)), rng.uniform(2.5, 4, count)])
    return np.hstack([rotation, translation]), np.hstack([corner, corner + size])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_published_conversion_equals_the_original_face_by_face(kind: str) -> None:
    width, height = 641, 479
    poses, boxes = random_proposals(60, width, height, 1)
    points = load_reference().points68.astype(float)
    wrap = torch.tensor if kind == "torch" else np.asarray
    camera = published.image_camera(width, height)
    image = published.box_to_image_pose(wrap(poses), wrap(boxes), wrap(camera))
    expected = np.array([published_reference(p, b, width, height) for p, b in zip(poses, boxes, strict=True)])
    np.testing.assert_allclose(np.asarray(image), expected, atol=1e-3)
    # Whole pixels: from the same poses, or one at the edge of a pixel would fall on either side.
    drawn = published.project_boxes(wrap(expected), wrap(points), wrap(camera), width, height)
    assert np.asarray(drawn).tolist() == [published_box(p, points, width, height) for p in expected]
    back = published.image_to_box_pose(wrap(expected), wrap(boxes), wrap(camera))
    np.testing.assert_allclose(np.asarray(back)[:, 3:], poses[:, 3:], atol=1e-9)


def test_poses_of_another_reference_face_become_ours() -> None:
    ours = load_reference().points68.astype(float)
    turn = geometry.angles_to_matrix(np.array([4.0, -2, 1]))
    theirs = 1.7 * ours @ turn.T + [0.1, -0.2, 0.3]
    poses = np.array([[0.3, -0.5, 0.2, 0.4, -0.3, 9.0]])
    converted = published.to_our_face(poses, theirs)
    rotation, translation = geometry.decompose_pose(poses)
    camera = geometry.default_intrinsics(640, 480)
    drawn = geometry.project(theirs, rotation, translation, camera)
    np.testing.assert_allclose(geometry.project(ours, *geometry.decompose_pose(converted), camera), drawn, atol=1e-6)


class FixedHeads(torch.nn.Module):
    """Stands in for the network: proposals, scores and poses that are known."""

    def __init__(self, network: FullNet, proposals: list[np.ndarray], poses: list[np.ndarray]) -> None:
        super().__init__()
        self.proposals = [torch.tensor(p).float() for p in proposals]
        self.poses = (torch.tensor(np.concatenate(poses)).float() - network.pose_mean) / network.pose_std

    def forward(self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list) -> tuple[Tensor, Tensor]:
        return torch.linspace(0.9, 0.1, len(self.poses)), self.poses


@pytest.mark.parametrize("name", ["img2pose-18", "full-18"])
def test_mixed_sizes_in_a_batch_convert_image_by_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(320, 240), (128, 288), (200, 96)]
    network = build_network(name).eval()
    assert isinstance(network, FullNet)
    network.pose_mean = torch.tensor([0.1, 0, 0, 0, 0.1, 3])
    network.pose_std = torch.tensor([0.3, 0.4, 0.2, 0.1, 0.1, 0.5])
    points = load_reference().points68.astype(float)
    if network.official:
        network.points = torch.tensor(points).float()
    made = [random_proposals(7, w, h, i) for i, (w, h) in enumerate(sizes)]
    heads = FixedHeads(network, [b for _, b in made], [p for p, _ in made])
    monkeypatch.setattr(network, "roi_heads", heads)
    monkeypatch.setattr(network, "rpn", _Proposals(heads.proposals))
    images = [torch.zeros(h, w, 3, dtype=torch.uint8) for w, h in sizes]
    # The largest side of all fixes the size: no image is resized.
    options = [SearchOptions(min(s), max(s), score_threshold=0, nms_iou=1) for s in sizes]
    alone = []
    for i, (w, h) in enumerate(sizes):
        network.rpn.proposals = [heads.proposals[i]]
        heads.poses, kept = heads.poses[7 * i : 7 * i + 7], heads.poses
        alone.append(network.detect([images[i]], options[i])[0])
        heads.poses = kept
        for pose, box, proposal in zip(alone[i].poses, alone[i].boxes, heads.proposals[i], strict=True):
            j = next(k for k in range(7) if torch.equal(heads.proposals[i][k], proposal))
            if network.official:
                expected = published_reference(made[i][0][j], made[i][1][j], w, h)
                np.testing.assert_allclose(pose, expected, atol=2e-3)
                np.testing.assert_allclose(box, published_box(pose.double().numpy(), points, w, h), atol=1)
            else:
                crop = geometry.box_intrinsics(made[i][1][j])
                camera = geometry.default_intrinsics(w, h)
                expected = geometry.convert_pose(made[i][0][j], crop, camera, offset=made[i][1][j][:2])
                np.testing.assert_allclose(pose, expected, atol=2e-3)
    network.rpn.proposals = heads.proposals
    same = SearchOptions(10**6, 10**6, score_threshold=0, nms_iou=1)  # scales every image up, each by its own factor
    monkeypatch.setattr(
        network, "_features", lambda images, _: (_Sizes([(i.shape[0], i.shape[1]) for i in images]), {})
    )
    together = network.detect(images, same)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.poses, b.poses, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.boxes, b.boxes, atol=1.0, rtol=0)


class _Sizes:
    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.image_sizes = sizes


class _Proposals(torch.nn.Module):
    def __init__(self, proposals: list[Tensor]) -> None:
        super().__init__()
        self.proposals = proposals
        self._pre_nms_top_n: dict[str, int] = {}
        self._post_nms_top_n: dict[str, int] = {}

    def forward(self, images: object, features: object) -> tuple[list[Tensor], dict]:
        return self.proposals, {}


@pytest.mark.parametrize("official", [False, True])
def test_box_poses_and_image_poses_are_inverse(official: bool) -> None:
    width, height = 400, 300
    camera = torch.tensor(geometry.default_intrinsics(width, height))
    center, size = torch.tensor([[210.0, 140], [90, 80]]).double(), torch.tensor([50.0, 30]).double()
    local = geometry.angles_to_matrix(torch.tensor([[10.0, -20, 5], [0, 40, -10]]).double())
    boxes = torch.cat([center - 40, center + 45], 1)
    target = Target(boxes, center, size, local, torch.ones(2), boxes[:0])
    network = build_network("img2pose-18" if official else "full-18")
    assert isinstance(network, FullNet)
    if official:  # whose reference face has another frame, scale and origin
        turned = 1.05 * load_reference().points68 @ geometry.angles_to_matrix(np.array([2.0, 4, -3]))
        network.points = torch.tensor(turned + np.array([0.02, -0.03, 0.05]))
        assert isinstance(network.convention, PublishedConvention)
    poses = network.convention.box_poses(target, torch.arange(2), boxes, (width, height))
    image, _ = network.convention.image_faces(poses, boxes, (width, height), camera)
    if official:
        image = torch.from_numpy(published.to_our_face(image.numpy(), network.points.numpy()))
    rotation, translation = geometry.local_to_camera(center, size, local, camera)
    # There and back the official way is not exact, least where the origins differ.
    torch.testing.assert_close(image[:, 3:], translation, atol=2e-3 if official else 1e-6, rtol=1e-6)
    wrong = geometry.geodesic_distance(geometry.rotvec_to_matrix(image[:, :3]), rotation).max()
    assert wrong < (0.02 if official else 1e-5)


def official_checkpoint(path: Path, seed: int = 0) -> FullNet:
    """A checkpoint in the layout of the official code, of random weights, and the network it holds."""
    torch.manual_seed(seed)
    network = build_network("img2pose-18")
    assert isinstance(network, FullNet)
    with torch.no_grad():  # scores and poses that differ between proposals
        network.roi_heads.class_predictor.cls_score.weight.normal_(std=0.5)
        network.pose_mean = torch.tensor([0.1, 0, 0, 0, 0.1, 3])
        network.pose_std = torch.tensor([0.3, 0.4, 0.2, 0.1, 0.1, 0.5])
        network.points = torch.tensor(load_reference().points68)
    weights = {}
    for name, value in network.state_dict().items():
        if name in ("pose_mean", "pose_std", "points"):
            continue
        for kind in ("inner_blocks", "layer_blocks"):  # names that torchvision has changed since
            for level in range(4):
                name = name.replace(f"{kind}.{level}.0.", f"{kind}.{level}.")
        weights["module." + name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    torch.save({"fpn_model": weights, "optimizer": {}}, path / "img2pose.pth")
    np.save(path / "mean.npy", network.pose_mean.numpy())
    np.save(path / "std.npy", network.pose_std.numpy())
    np.save(path / "points.npy", network.points.numpy())
    return network.eval()


def test_official_checkpoints_load_and_predict_the_same(tmp_path: Path, astronaut: np.ndarray) -> None:
    network = official_checkpoint(tmp_path)
    files = [tmp_path / f"{n}.npy" for n in ("mean", "std", "points")]
    out = convert_checkpoint(tmp_path / "img2pose.pth", tmp_path / "ours.pt", *files)
    state = load_checkpoint(out)
    assert state["network"] == "img2pose-18"
    assert "WIDER FACE" in state["data"]  # said of all that is trained on from it, too
    assert "CC BY-NC" in state["licence"]
    converted = build_network(state["network"]).eval()
    converted.load_state_dict(state["weights"])
    assert isinstance(converted, FullNet)
    options = SearchOptions(min_size=160, max_size=200, score_threshold=0.01)
    image = [torch.tensor(astronaut)]
    theirs, ours = network.detect(image, options)[0], converted.detect(image, options)[0]
    assert len(theirs.scores) > 3
    for name in ("scores", "boxes", "poses"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-3, rtol=0)


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    official_checkpoint(tmp_path)
    files = [tmp_path / f"{n}.npy" for n in ("mean", "std", "points")]
    source, out = tmp_path / "img2pose.pth", tmp_path / "ours.pt"
    with pytest.raises(ValueError, match=r"does not fit img2pose-50.*missing .*layer1\.0\.conv3|size mismatch"):
        convert_checkpoint(source, out, *files, depth=50)
    state = torch.load(source)
    del state["fpn_model"]["module.rpn.head.cls_logits.bias"]
    state["fpn_model"]["module.extra.weight"] = torch.zeros(1)
    torch.save(state, source)
    with pytest.raises(ValueError, match=r"missing rpn\.head\.cls_logits\.bias; unexpected extra\.weight"):
        convert_checkpoint(source, out, *files)
    torch.save({"weights": {}}, source)
    with pytest.raises(ValueError, match="lacks 'fpn_model'"):
        convert_checkpoint(source, out, *files)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        convert_checkpoint(tmp_path / "none.pth", out, *files)
    official_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"points\.npy must hold finite numbers of shape \(6,\)"):
        convert_checkpoint(source, out, files[2], files[1], files[2])
    empty, archive = tmp_path / "empty.npy", tmp_path / "archive.npz"
    empty.touch()
    np.savez(archive, mean=np.zeros(6))
    for wrong in (empty, archive):
        with pytest.raises(ValueError, match=rf"{wrong.name} is not a plain \.npy array"):
            convert_checkpoint(source, out, wrong, *files[1:])
    assert not out.exists()
    before = source.read_bytes()
    options = ["--pose-mean", str(files[0]), "--pose-std", str(files[1]), "--points68", str(files[2])]
    assert main(["convert-checkpoint", str(source), *options, "--out", str(source)]) == 1
    assert source.read_bytes() == before


def samples(data: Path, folder: Path, count: int, size: int) -> list:
    from img2pose_edge.training.augment import Composer

    records = read_records(data / "labels.jsonl")
    composer = Composer(records, PixelCache(data, records, folder), list(range(len(records))), size, 5)
    return [s for s in (composer[i] for i in range(200)) if len(s.faces) == 1 and not s.faces.ignore.any()][:count]


def test_ignored_regions_teach_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [8, 8, 30, 30], [100, 100, 120, 120]])
    assert contained(boxes, torch.tensor([[0.0, 0, 12, 12]])).tolist() == [True, False, False]
    assert contained(boxes, boxes[:0]).tolist() == [False] * 3


def test_pose_statistics_are_those_of_proposals(tiny_data: Path) -> None:
    """Of faces that are all alike, each alone in its picture, translation still varies as it does in proposals."""
    records = read_records(tiny_data / "labels.jsonl") * 40
    _, deviation = pose_statistics(records, ExactConvention())
    face = records[0].faces.boxes
    boxes = boxes_around(torch.from_numpy(face.repeat(2000, 0)), seed=1)[0].numpy()
    shift = ((boxes[:, :2] + boxes[:, 2:]) / 2).std(0) / (face[0, 2:] - face[0, :2])
    assert 0.03 < shift.max() < 0.15
    # A box shifted by its whole extent moves the face by about tz / 2 = 1.5 face units.
    np.testing.assert_allclose(deviation[3:5], 1.5 * shift, rtol=0.25)
    assert deviation[:3].max() < 0.1


def test_faces_around_the_camera_do_not_count(tiny_data: Path) -> None:
    records = read_records(tiny_data / "labels.jsonl")
    faces = records[0].faces
    near = dataclasses.replace(
        records[0],
        faces=dataclasses.replace(faces, boxes=faces.boxes + 5 * records[0].width * np.array([-1, -1, 1, 1])),
    )
    wanted = pose_statistics(records, ExactConvention())
    found = pose_statistics([*records, near], ExactConvention())
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs)


def test_a_decoded_proposal_keeps_its_own_box() -> None:
    """A proposal that reaches into the padding was pooled there: its pose is in the camera of all of it."""
    pose, box = np.array([[0.1, 0.2, 0.0, 0.05, 0.1, 3.0]]), np.array([[100.0, 100, 200, 220]])
    whole, _ = proposal_candidates(np.array([0.9]), pose, box, 0.5, (640, 480))
    cut, _ = proposal_candidates(np.array([0.9]), pose, box, 0.5, (640, 210))
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)
    outside, _ = proposal_candidates(np.array([0.9]), pose, box, 0.5, (640, 90))
    assert len(outside[0]) == 0


def test_losses_are_finite_without_faces_and_with_one(tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network("full-18").train()
    assert isinstance(network, FullNet)
    network.pose_mean, network.pose_std = pose_statistics(read_records(tiny_data / "labels.jsonl"), network.convention)
    assert 2.0 < network.pose_mean[5] < 5.0  # face units, in a camera as long as the box's sides together
    assert network.pose_std.min() > 0
    objective = FullObjective(network)
    one = collate(samples(tiny_data, tmp_path, 1, 96))
    everything = torch.tensor([[-50.0, -50, 150, 150]])
    ignored = dataclasses.replace(one, boxes=everything, ignore=torch.ones(1, dtype=torch.bool))
    for batch in (one, one.select(torch.zeros(1, dtype=torch.bool)), ignored):
        loss, parts = objective(batch)
        loss.backward()
        assert loss.isfinite()
        assert set(parts) == set(objective.parts)
    assert len(batch_targets(one)[0].boxes) == 1


@pytest.fixture(scope="module")
def learnt(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FullNet, Batch]:
    """A full model that has learnt eight pictures, and the pictures."""
    torch.manual_seed(0)
    network = build_network("full-18").train()
    assert isinstance(network, FullNet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("img2pose_edge.training.augment.FACELESS", 0.0)  # a face in each
        patch.setattr("img2pose_edge.training.augment.LYING", 0.0)
        batch = collate(samples(tiny_data, tmp_path_factory.mktemp("pixels"), 8, 128))
    objective = FullObjective(network, proposals=32)
    objective.prepare(read_records(tiny_data / "labels.jsonl"))
    # The pictures turn faces that the records do not.
    network.pose_std = torch.maximum(network.pose_std, torch.tensor([0.3, 0.3, 0.3, 0, 0, 0]))
    network.rpn._pre_nms_top_n["training"], network.rpn._post_nms_top_n["training"] = 200, 50
    optimizer = torch.optim.AdamW(network.parameters(), 3e-4)
    for step in range(120):
        if step == 90:
            optimizer.param_groups[0]["lr"] = 3e-5
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10)
        optimizer.step()
    return network.eval(), batch


def test_it_learns_eight_pictures(learnt: tuple[FullNet, Batch]) -> None:
    network, batch = learnt
    found = network.detect(list(batch.images), SearchOptions(128, 128, score_threshold=0.5), list(batch.intrinsics))
    errors = []
    for faces, target, camera in zip(found, batch_targets(batch), batch.intrinsics, strict=True):
        assert len(faces.scores), "a face is missed"
        _, _, local = geometry.camera_to_local(*geometry.decompose_pose(faces.poses[:1]), camera)
        errors.append(geometry.matrix_to_angles(local)[0] - geometry.matrix_to_angles(target.local)[0])
        inner = torch.minimum(faces.boxes[0, 2:], target.boxes[0, 2:]) - torch.maximum(
            faces.boxes[0, :2], target.boxes[0, :2]
        )
        outer = torch.maximum(faces.boxes[0, 2:], target.boxes[0, 2:]) - torch.minimum(
            faces.boxes[0, :2], target.boxes[0, :2]
        )
        assert inner.clamp(min=0).prod() > 0.5 * outer.prod()
    assert torch.stack(errors).abs().mean() < 3.0


def test_the_loop_trains_it_and_goes_on_where_it_was(tiny_data: Path, tmp_path: Path) -> None:
    def run(name: str, steps: int) -> dict:
        options = TrainOptions(
            "full-18", steps, 2, 96, 1e-3, warmup_steps=1, optimizer="sgd", schedule="plateau", seed=2, patience=9
        )
        return load_checkpoint(train(tiny_data, tmp_path / name, options, workers=0, validate_every=100))

    whole = run("whole", 3)
    assert (tmp_path / "whole/metrics.csv").read_text().startswith("step,learning_rate,loss,objectness,proposal,")
    assert whole["weights"]["pose_std"].gt(0).all()
    run("cut", 2)
    cut = run("cut", 3)
    for name, value in whole["raw_weights"].items():
        torch.testing.assert_close(cut["raw_weights"][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_run_without_progress_stops(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "validate", lambda *_: {"ap": 0.5, "recall": 0.5, "mae": 10.0})
    options = TrainOptions("edge-n", 20, 2, 96, warmup_steps=1, schedule="plateau", patience=5)
    last = load_checkpoint(train(tiny_data, tmp_path, options, workers=0, validate_every=1))
    assert last["step"] == 6  # the first is the best, five more are not
    again = load_checkpoint(train(tiny_data, tmp_path, options, workers=0, validate_every=1))
    assert again["step"] == 6, "asked again it stays stopped"
    for part in ("muon", "adamw"):
        assert last["optimizer"][part]["param_groups"][0]["lr"] == pytest.approx(2e-4)
    with pytest.raises(ValueError, match="schedule must be one of cosine, plateau, got 'step'"):
        TrainOptions(schedule="step")
    for size in (64, 100):
        with pytest.raises(ValueError, match=f"crop_size must be a multiple of 32 and at least 96, got {size}"):
            TrainOptions(crop_size=size)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_detect_poses_runs_it(learnt: tuple[FullNet, Batch], exported: Path, engine: str) -> None:
    network, batch = learnt
    detector = PoseDetector(exported, engine=engine, score_threshold=0.3)
    options = SearchOptions(1, 1000, post_nms_top_n=100, score_threshold=0.3)
    wide = np.hstack([batch.images[0].numpy(), batch.images[1].numpy()[:, :100]])
    for image in (batch.images[2].numpy(), wide):  # one that fits, one that is padded
        theirs = network.detect([torch.tensor(image)], SearchOptions(**{**vars(options), "min_size": len(image)}))[0]
        ours = detector(image)
        assert len(ours) == len(theirs.scores) > 0
        near = 0.02 if image is wide else 1e-3  # padding is grey to us, the mean colour in training
        for i, face in enumerate(ours):
            assert face.score == pytest.approx(theirs.scores[i].item(), abs=near)
            np.testing.assert_allclose(face.box, theirs.boxes[i], atol=50 * near)
            np.testing.assert_allclose(face.pose[:3], theirs.poses[i, :3], atol=near)
            np.testing.assert_allclose(face.pose[3:], theirs.poses[i, 3:], rtol=near, atol=near)
    assert detector.detect(np.zeros((64, 64, 3), np.uint8), score_threshold=1.0) == []


@pytest.fixture(scope="module")
def exported(learnt: tuple[FullNet, Batch], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_checkpoint({"network": "full-18", "weights": learnt[0].state_dict(), "step": 120}, folder / "full.pt")
    export_model(folder / "full.pt", folder / "full.onnx", ExportOptions(proposals=100))
    return folder / "full.onnx"


def test_detect_poses_follows_an_official_checkpoint(tmp_path: Path, astronaut: np.ndarray) -> None:
    network = official_checkpoint(tmp_path)
    files = [tmp_path / f"{n}.npy" for n in ("mean", "std", "points")]
    convert_checkpoint(tmp_path / "img2pose.pth", tmp_path / "ours.pt", *files)
    with pytest.raises(ValueError, match="only poses of edge networks are averaged"):
        export_model(tmp_path / "ours.pt", tmp_path / "ours.onnx", ExportOptions(merge_iou=0.5))
    manifest_path = export_model(tmp_path / "ours.pt", tmp_path / "ours.onnx", ExportOptions(proposals=50))
    manifest = json.loads(manifest_path.read_text())
    assert (manifest["input"]["size"], manifest["input"]["shortest"]) == (1400, 800)
    assert "CC BY-NC" in manifest["licence"]
    assert manifest["thresholds"]["merge_iou"] == 0
    manifest["input"] |= {"size": 512, "shortest": 256}
    manifest_path.write_text(json.dumps(manifest))
    detector = PoseDetector(tmp_path / "ours.onnx", score_threshold=0.01)
    image = astronaut[:128, :160]  # enlarged to 256 x 320
    options = SearchOptions(256, 512, post_nms_top_n=50, score_threshold=0.01)
    theirs, ours = network.detect([torch.tensor(image.copy())], options)[0], detector(image)
    assert len(ours) == len(theirs.scores) > 3
    np.testing.assert_allclose([f.score for f in ours], theirs.scores, atol=0.02)
    np.testing.assert_allclose(np.array([f.box for f in ours]), theirs.boxes, atol=1.0)  # whole network pixels
    turned = published.to_our_face(theirs.poses.double().numpy(), network.points.numpy())
    np.testing.assert_allclose([f.pose[5] for f in ours], turned[:, 5], rtol=0.02)


TWO_PROCESSES = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from img2pose_edge.training.full_objective import FullObjective
from img2pose_edge.training.networks import build_network
torch.distributed.init_process_group("gloo")
batch = torch.load(sys.argv[1], weights_only=False)
torch.manual_seed(0)
objective = FullObjective(build_network("full-18").train())
torch.manual_seed(1)  # which proposals are sampled
loss, _ = DistributedDataParallel(objective)(batch)
loss.backward()
gradient = objective.network.rpn.head.bbox_pred.weight.grad
torch.save((loss.item(), gradient), f"{sys.argv[2]}{torch.distributed.get_rank()}.pt")
"""


def test_two_processes_have_the_loss_of_one(tiny_data: Path, tmp_path: Path) -> None:
    batch = collate(samples(tiny_data, tmp_path, 2, 96))
    torch.save(batch, tmp_path / "batch.pt")
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "batch.pt"), str(tmp_path / "rank")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    torch.manual_seed(0)
    objective = FullObjective(build_network("full-18").train())  # type: ignore[arg-type]
    torch.manual_seed(1)
    loss, _ = objective(batch)
    loss.backward()
    wanted = objective.network.rpn.head.bbox_pred.weight.grad
    for rank in range(2):
        other, gradient = torch.load(tmp_path / f"rank{rank}.pt")
        assert other == pytest.approx(loss.item(), rel=1e-3)
        torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=1e-4)
