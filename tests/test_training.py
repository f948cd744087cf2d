"""Data, augmentation, targets, losses, the loop: that what they say is so, and that a run survives its death."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SHARED, training_interrupted_in
from img2pose_edge.export.model import MERGE_IOU, ExportOptions, export_model
from img2pose_edge.export.parity import torch_detector
from img2pose_edge.pose_references import load_reference, project_face_box
from torch import nn

from img2pose_edge import Face, PoseDetector, geometry
from img2pose_edge.cli import main
from img2pose_edge.manifest import find_model
from img2pose_edge.preprocess import letterbox
from img2pose_edge.training import augment, loop
from img2pose_edge.training.augment import (
    MOST_ENLARGED,
    STRENGTHS,
    Composer,
    Placement,
    Sample,
    clip_faces,
    cover_eyes,
    cover_faces,
    place_faces,
    uncovered_faces,
)
from img2pose_edge.training.checkpoint import load_checkpoint, run_of, save_checkpoint
from img2pose_edge.training.data import Faces, PixelCache, parse_faces, pose_from_boxes, read_records, reserve
from img2pose_edge.training.grow import grow
from img2pose_edge.training.interrupt import kept_signals
from img2pose_edge.training.loop import CsvLog, TrainOptions, collate, learning_rate, train
from img2pose_edge.training.losses import box_iou, eiou_loss, quality_focal_loss, score_target
from img2pose_edge.training.networks import build_network, load_network
from img2pose_edge.training.networks.depthwise import DepthwiseStride2
from img2pose_edge.training.networks.edge import CONFIGS, SCORE_GAIN, STRIDES, EdgeNet
from img2pose_edge.training.objective import edge_loss
from img2pose_edge.training.optimizer import MuonAdamW
from img2pose_edge.training.targets import assign, covered_cells, flatten_maps, lay_out_cells
from img2pose_edge.training.validation import validate

OUT = Path(__file__).parents[1] / "out"


def reference_landmarks(center: np.ndarray, size: np.ndarray, local: np.ndarray, camera: np.ndarray) -> np.ndarray:
    points = load_reference().points5.astype(float)
    return geometry.project(points, *geometry.local_to_camera(center, size, local, camera), camera)


def synthetic_faces(camera: np.ndarray) -> tuple[Faces, np.ndarray, np.ndarray]:
    """Three faces whose boxes and landmarks follow exactly from known local poses."""
    center = np.array([[200.0, 150], [420, 300], [500, 100]])
    size = np.array([60.0, 30, 15])
    local = geometry.angles_to_matrix(np.array([[5.0, -30, 10], [-20, 60, 0], [0, 0, -25]]))
    boxes = project_face_box(
        *geometry.local_to_camera(center, size, local, camera),
        camera,
    )
    landmarks = reference_landmarks(center, size, local, camera)
    return Faces(boxes, local, np.ones(3), landmarks, np.zeros(3, bool)), center, size


def test_pose_from_boxes_inverts_the_projection(camera: np.ndarray) -> None:
    faces, center, size = synthetic_faces(camera)
    found = pose_from_boxes(faces.boxes, faces.local, camera)
    np.testing.assert_allclose(found[0], center, atol=0.5)
    np.testing.assert_allclose(found[1], size, rtol=0.01)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 25.0, -70.0])
def test_placement_moves_pixels_boxes_landmarks_and_poses_together(
    camera: np.ndarray, degrees: float, flip: bool
) -> None:
    faces, center, size = synthetic_faces(camera)
    placement = Placement(np.array([200.0, 150]), np.array([90.0, 70]), 0.8, degrees, flip)
    moved, crop = place_faces(faces, camera, placement)
    matrix = placement.matrix
    centers = center @ matrix[:, :2].T + matrix[:, 2]
    # The pose, seen by the crop's camera, projects onto the moved landmarks and into the moved box.
    seen = reference_landmarks(centers, size * 0.8, moved.local, crop)
    np.testing.assert_allclose(seen, moved.landmarks, atol=0.02)
    found = pose_from_boxes(moved.boxes, moved.local, crop)
    np.testing.assert_allclose(found[0], centers, atol=0.7)
    np.testing.assert_allclose(found[1], size * 0.8, rtol=0.02)
    # And pixels go where the matrix says.
    picture = np.zeros((480, 640), np.uint8)
    picture[148:152, 198:202] = 255
    drawn = cv2.warpAffine(picture, matrix, (320, 320))
    np.testing.assert_allclose(np.argwhere(drawn > 128).mean(0)[::-1], [90, 70], atol=1)


def make_composer(data: Path, cache: Path, size: int = 320, strength: str = "full") -> Composer:
    records = read_records(data / "labels.jsonl")
    pixels = PixelCache(data, records, cache)
    return Composer(records, pixels, list(range(len(records))), size, seed=1, strength=STRENGTHS[strength])


def draw_sample(sample: Sample) -> np.ndarray:
    """A training picture with its boxes, and the reference's 68 points at its poses."""
    picture = sample.image.copy()
    for i in range(len(sample.faces)):
        one, camera = sample.faces.select(np.array([i])), sample.intrinsics[i]
        x1, y1, x2, y2 = one.boxes[0].round().astype(int)
        cv2.rectangle(picture, (x1, y1), (x2, y2), (128,) * 3 if one.ignore[0] else (0, 255, 0), 1)
        if one.trust[0] > 0 and not one.ignore[0]:
            center, size = pose_from_boxes(one.boxes, one.local, camera)
            pose = geometry.local_to_camera(center, size, one.local, camera)
            for x, y in geometry.project(load_reference().points68.astype(float), *pose, camera)[0]:
                cv2.circle(picture, (round(x), round(y)), 1, (0, 255, 255), -1)
    return picture


def test_contact_sheet_of_augmented_pictures(tiny_data: Path, tmp_path: Path) -> None:
    """With the real training data, where they lie beside the project and ``IMG2POSE_EDGE_CACHE`` names a folder for
    their pixels, writes ``out/contact_sheet.png`` to look at."""
    real = (SHARED / "data/train/labels.jsonl").exists() and bool(os.environ.get("IMG2POSE_EDGE_CACHE"))
    data = SHARED / "data/train" if real else tiny_data
    composer = make_composer(data, Path(os.environ["IMG2POSE_EDGE_CACHE"]) if real else tmp_path)
    samples = [composer[i] for i in range(12)]
    rows = [np.hstack([draw_sample(s) for s in samples[i : i + 4]]) for i in (0, 4, 8)]
    out = OUT if real else tmp_path
    out.mkdir(exist_ok=True)
    assert cv2.imwrite(str(out / "contact_sheet.png"), np.vstack(rows))
    assert sum((~s.faces.ignore).sum() for s in samples) >= 12


def test_augmented_astronauts_are_where_the_labels_say(tiny_data: Path, tmp_path: Path) -> None:
    """The bundled model, which never saw these labels, finds the augmented faces at their boxes and angles."""
    composer, detector, errors, found = make_composer(tiny_data, tmp_path), PoseDetector(), [], 0
    wanted = 0
    for i in range(24):
        sample = composer[i]
        faces = detector.detect(sample.image, score_threshold=0.1)
        clear = np.flatnonzero(~sample.faces.ignore & (sample.faces.sizes > 40) & (sample.faces.sizes < 200))
        wanted += len(clear)
        for j in clear:
            near = [f for f in faces if np.abs(f.box - sample.faces.boxes[j]).max() < 0.3 * sample.faces.sizes[j]]
            if near:
                found += 1
                errors.append(geometry.geodesic_distance(near[0].local_rotation, sample.faces.local[j]))
    assert wanted >= 20
    assert found >= 0.85 * wanted
    assert np.degrees(np.median(errors)) < 10


@pytest.mark.parametrize("scale", [0.35, 0.7, 1.0])
def test_scenes_fill_their_picture_as_sharp_as_the_runtime_sees_them(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    monkeypatch.setattr(augment, "SCENE", 1.0)
    rng = np.random.default_rng(0)
    records = read_records(tiny_data / "labels.jsonl")[:1]
    texture = cv2.GaussianBlur(rng.normal(128, 60, (records[0].height, records[0].width, 3)), (0, 0), 0.6 / scale)
    texture = texture.clip(0, 255).astype(np.uint8)
    plain = {
        "whole": 0.0,
        "centred": 0.0,
        "turned": 0.0,
        "lying": 0.0,
        "colored": 0.0,
        "covered": 0.0,
        "backed": 0.0,
        "filled": 1.0,
    }
    strength = replace(STRENGTHS["mild"], scales=(scale, scale), **plain)
    composer = Composer(records, [texture], [0], 96, seed=1, strength=strength)

    def detail(image: np.ndarray) -> float:
        return float(cv2.Laplacian(image, cv2.CV_32F).std())

    height, width = (round(scale * side) for side in texture.shape[:2])
    seen = letterbox(texture, max(height, width), 32)[0][:height, :width]
    for i in range(9):
        picture = composer[i].image
        assert detail(picture) == pytest.approx(detail(seen), rel=0.05)
        assert min(picture.std(axis=(1, 2)).min(), picture.std(axis=(0, 2)).min()) > 2, "it has a margin"


def test_what_is_pasted_has_no_rim(tiny_data: Path) -> None:
    record = read_records(tiny_data / "labels.jsonl")[0]
    composer = Composer([record], [np.full((record.height, record.width, 3), 200, np.uint8)], [0], 320, seed=1)
    canvas = np.full((320, 320, 3), 9, np.uint8)
    composer._paste(canvas, 0, Placement(np.zeros(2), np.full(2, 100.3), 1.3, 20.0))
    assert np.unique(canvas).tolist() == [9, 200]


def test_what_is_too_large_to_learn_depends_on_the_picture(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share in ("SCENE", "MOSAIC", "FACELESS"):
        monkeypatch.setattr(augment, share, 0.0)
    camera = geometry.default_intrinsics(640, 640)
    faces, _, _ = synthetic_faces(camera)
    large = dataclasses.replace(faces, boxes=np.array([[4.0, 4, 316, 316], [4, 4, 254, 254], [4, 4, 9, 9]]))
    assert clip_faces(large, 320, 320).ignore.tolist() == [True, False, True]
    assert clip_faces(large, 640, 640).ignore.tolist() == [False, False, True]
    greatest = [
        max(f.sizes[~f.ignore].max(initial=0) for f in (composer[i].faces for i in range(40)))
        for composer in (make_composer(tiny_data, tmp_path, size) for size in (320, 640))
    ]
    assert greatest[0] <= 300 < greatest[1] <= 600


def test_samples_depend_on_seed_and_number_alone(tiny_data: Path, tmp_path: Path) -> None:
    first, second = make_composer(tiny_data, tmp_path), make_composer(tiny_data, tmp_path)
    second[3]
    np.testing.assert_array_equal(first[7].image, second[7].image)
    assert (first[7].image != first[8].image).any()


def test_mild_scenes_are_as_photographs_are(
    tiny_data: Path, tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2pose_edge.training.augment.SCENE", 1.0)
    sizes = np.array([r.faces.sizes[0] for r in read_records(tiny_data / "labels.jsonl")])

    def measure(strength: str) -> tuple[float, np.ndarray]:
        """Greatest roll off the label's, degrees, and sizes, of the greatest photograph's."""
        composer = make_composer(tiny_data, tmp_path, strength=strength)
        composer.strength = dataclasses.replace(composer.strength, lying=0.0)
        faces = [composer[i].faces for i in range(60)]
        rolls = [geometry.matrix_to_angles(f.local[0])[2] for f in faces if len(f)]
        return max(abs(abs(roll) - 3) for roll in rolls), np.concatenate([f.sizes for f in faces]) / sizes.max()

    roll, mild = measure("mild")
    assert roll < 0.01
    assert mild.max() <= 1.001, "never larger than the photograph's"
    assert mild.min() > 0.5 * sizes.min() / sizes.max()
    kept = np.isclose(mild[:, None], sizes / sizes.max(), atol=1e-6).any(1)
    assert 0.3 < kept.mean() < 0.7, "about half to the pixel"
    roll, full = measure("full")
    assert roll > 5
    assert full.min() < 0.8
    assert full.max() > 1.3


def faces_at(*boxes: tuple[float, float, float, float]) -> Faces:
    n = len(boxes)
    return Faces(
        np.array(boxes, float).reshape(-1, 4),
        np.tile(np.eye(3), (n, 1, 1)),
        np.ones(n),
        np.full((n, 5, 2), np.nan),
        np.zeros(n, bool),
    )


@pytest.mark.parametrize("shape", [(200, 300), (20, 300)])
def test_covered_faces_keep_half_and_get_no_other_face(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "EYES_COVERED", 0.0)
    cameras = np.eye(3)[None]
    box, source = (60.0, 70.0, 120.0, 150.0), np.full((*shape, 3), 60, np.uint8)
    source[:, 150:] = 255  # a face, not to be pasted
    covers = []
    for seed in range(60):
        image = np.zeros((200, 200, 3), np.uint8)
        cover_faces(image, faces_at(box), cameras, source, faces_at((150, 0, 300, 200)), np.random.default_rng(seed))
        drawn = image.any(2)
        covers.append(float(drawn[70:150, 60:120].mean()))
        if shape[0] == 200:
            assert set(np.unique(image)) <= {0, 60} or len(np.unique(image[drawn], axis=0)) == 1
    covers = [c for c in covers if c]
    assert 15 <= len(covers) <= 45
    assert max(covers) <= 0.52
    assert min(covers) >= 0.13
    small = np.zeros((200, 200, 3), np.uint8)
    cover_faces(small, faces_at((60, 70, 70, 80)), cameras, source, faces_at(), np.random.default_rng(0))
    assert not small.any(), "small faces stay as they are"


@pytest.mark.parametrize("angles", [(0, 0, 0), (0, -80, 0), (0, 60, 100), (10, -40, 20), (-30, 0, 0)])
def test_covered_eyes_are_where_the_face_has_them(camera: np.ndarray, angles: tuple[float, float, float]) -> None:
    local = geometry.angles_to_matrix(np.array([angles], float))
    pose = geometry.local_to_camera(np.array([[300.0, 220]]), np.array([80.0]), local, camera)
    boxes, points = project_face_box(*pose, camera), load_reference().points68.astype(float)
    face = Faces(boxes, local, np.ones(1), np.full((1, 5, 2), np.nan), np.zeros(1, bool))
    x, y = geometry.project(points, *pose, camera)[0].round().astype(int).T
    hidden = []
    for seed in range(20):
        picture = np.zeros((480, 640, 3), np.uint8)
        cover_eyes(picture, face, camera, np.random.default_rng(seed))
        hidden.append(picture.any(2)[y, x])
    eyes, mouth = np.mean(hidden, 0)[36:48], np.mean(hidden, 0)[48:68]
    assert eyes.mean() > 0.7
    assert mouth.mean() < 0.2


def test_people_who_lie_are_learnt_too(tiny_data: Path, tmp_path: Path) -> None:
    """In every picture of a composer whose people all lie, and turned by any angle up to the most."""
    composer, rolls = make_composer(tiny_data, tmp_path), []
    composer.strength = dataclasses.replace(composer.strength, lying=1.0, backed=0.0)
    for i in range(60):
        faces = composer[i].faces
        rolls += geometry.matrix_to_angles(faces.local[faces.trust > 0])[:, 2].tolist()
    assert max(np.abs(rolls)) < augment.LYING + 5
    assert np.quantile(np.abs(rolls), 0.75) > 70
    assert min(rolls) < -70 < 70 < max(rolls)


def test_a_turned_box_without_a_rotation_holds_the_turned_ellipse(camera: np.ndarray) -> None:
    faces, _, _ = synthetic_faces(camera)
    unknown = dataclasses.replace(faces, trust=np.zeros(3))
    extent = unknown.boxes[:, 2:] - unknown.boxes[:, :2]
    for degrees, wanted in ((0.0, extent), (90.0, extent[:, ::-1])):
        moved, _ = place_faces(unknown, camera, Placement(np.zeros(2), np.zeros(2), 1.0, degrees))
        np.testing.assert_allclose(moved.boxes[:, 2:] - moved.boxes[:, :2], wanted, atol=1e-9)
    moved, _ = place_faces(unknown, camera, Placement(np.zeros(2), np.zeros(2), 1.0, 45.0))
    square = np.sqrt((extent**2).mean(1, keepdims=True)).repeat(2, 1)
    np.testing.assert_allclose(moved.boxes[:, 2:] - moved.boxes[:, :2], square, rtol=1e-9)


def test_labels_on_which_teachers_disagree_say_nothing_of_the_rotation() -> None:
    face = {"box": [1, 2, 30, 40], "angles": [5.0, 36.0, 2.0]}
    trust = parse_faces([face | {"spread": spread} for spread in (0, 6, 18, 18.1, 40)]).trust
    np.testing.assert_allclose(trust, [1, 0.5, 0.1, 0, 0])


def test_what_is_close_up_instead_of_a_portrait_is_no_face(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "SCENE", 0.0)
    strength = dataclasses.replace(STRENGTHS["full"], backed=0.0, covered=0.0)
    with_faces, without = [], []
    for share, counts in ((0.0, with_faces), (1.0, without)):
        monkeypatch.setattr(augment, "FACELESS", share)
        composer = make_composer(tiny_data, tmp_path)
        composer.strength = strength
        for i in range(12):
            sample = composer[i]
            counts.append(len(sample.faces))
            assert len(sample.intrinsics) == len(sample.faces)
            assert sample.image.std() > 1, "there is something to see"
    assert min(with_faces) > 0 == max(without)


def test_backdrop_faces_behind_the_picture_are_dropped_or_ignored() -> None:
    covered = np.zeros((100, 100), bool)
    covered[:, 50:] = True
    left = uncovered_faces(faces_at((10, 10, 30, 30), (40, 10, 60, 30), (70, 10, 90, 30), (45, 40, 52, 50)), covered)
    np.testing.assert_array_equal(left.boxes[:, 0], [10, 40, 45])
    np.testing.assert_array_equal(left.ignore, [False, True, False])


@pytest.mark.parametrize("pitch", [0.0, 5.0, -40.0, 60.0, 120.0])
def test_a_label_looks_half_way_to_its_pan(pitch: float) -> None:
    face = {"box": [1, 2, 30, 40], "angles": [pitch, 36.0, 2.0], "spread": 0}
    labels = (None, "face", {"tilt": 15}, {"pan": 45}, {"tilt": -60, "pan": -90})
    angles = geometry.matrix_to_angles(np.array([parse_faces([face | {"label": label}]).local[0] for label in labels]))
    np.testing.assert_allclose(angles[:, [0, 2]], [[pitch, 2.0]] * 5, atol=1e-9)
    pans = geometry.angles_to_pan(angles)
    unchanged = geometry.angles_to_pan(np.array([pitch, 36.0, 2.0]))
    half_way = [unchanged] * 2 if pitch > 90 else [(unchanged + 45) / 2, (unchanged - 90) / 2]
    np.testing.assert_allclose(pans, [*[unchanged] * 3, *half_way], atol=1e-9)
    without = parse_faces([{"box": [1, 2, 30, 40], "label": {"tilt": 0, "pan": 45}}])
    np.testing.assert_array_equal(without.local[0], np.eye(3))


def test_a_scene_stands_behind_most_pictures(tiny_data: Path, tmp_path: Path) -> None:
    """Its faces come after those of the picture, which stay as they are."""
    composer = make_composer(tiny_data, tmp_path)
    backed = dataclasses.replace(composer.strength, backed=1.0, covered=0.0)
    plain = dataclasses.replace(backed, backed=0.0)
    more = 0
    for i in range(24):
        composer.strength = plain
        alone = composer[i]
        composer.strength = backed
        both = composer[i]
        n = len(alone.faces)
        np.testing.assert_array_equal(both.faces.boxes[:n], alone.faces.boxes)
        assert len(both.intrinsics) == len(both.faces)
        more += len(both.faces) - n
    assert more >= 6


def test_labels_that_are_wrong_are_named(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    with pytest.raises(FileNotFoundError, match=r"labels\.jsonl"):
        read_records(labels)
    good = {"image": "images/wider/a.png", "width": 64, "height": 64, "faces": [{"box": [1, 2, 30, 40]}]}
    for face, message in (
        ({"box": [1, 2, 3]}, "finite numbers of shape"),
        ({"box": [1, 2, float("nan"), 9]}, "finite numbers of shape"),
        ({"box": [1, 2, 30, 40], "angles": [1, float("nan"), 2], "spread": 0}, "angles"),
        ({}, "box"),
    ):
        labels.write_text(json.dumps(good) + "\n" + json.dumps({**good, "faces": [face]}) + "\n")
        with pytest.raises(ValueError, match=f"line 2.*{message}"):
            read_records(labels)
    labels.write_text(json.dumps(good) + "\n")
    with pytest.raises(ValueError, match=r"a\.png is unreadable"):
        PixelCache(tmp_path, read_records(labels), tmp_path)
    picture = tmp_path / good["image"].replace(".png", ".jpg")  # type: ignore[attr-defined]
    picture.parent.mkdir(parents=True)
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    picture.write_bytes(picture.read_bytes()[:2000])
    labels.write_text(json.dumps(good | {"image": "images/wider/a.jpg"}) + "\n")
    with pytest.raises(ValueError, match=r"a\.jpg is unreadable: .*truncated"):
        PixelCache(tmp_path, read_records(labels), tmp_path)
    with pytest.raises(OSError, match=r"no room for \d+\.\d GB of decoded pixels"):
        reserve(tmp_path / "pixels.1", 2**60)
    assert not (tmp_path / "pixels.1").exists()
    assert not list(tmp_path.glob("*.u8")), "no half-built cache is left as a whole one"


# --- targets and losses --------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 2]])
    b = torch.tensor([[1.0, 0, 3, 2]])
    assert box_iou(a, b).item() == pytest.approx(1 / 3, abs=1e-5)
    assert eiou_loss(a, a).item() == pytest.approx(0, abs=1e-5)
    # 1 - IoU + centre distance 1 over squared hull diagonal 9 + 4; widths and heights agree.
    assert eiou_loss(a, b).item() == pytest.approx(2 / 3 + 1 / 13, abs=1e-5)
    logit = torch.tensor([0.0])
    assert quality_focal_loss(logit, torch.tensor([0.5])).item() == 0
    assert quality_focal_loss(logit, torch.tensor([1.0])).item() == pytest.approx(np.log(2) / 4)


def test_assignment_gives_every_face_cells_of_its_own(tiny_data: Path, tmp_path: Path) -> None:
    composer = make_composer(tiny_data, tmp_path)
    batch = collate([composer[i] for i in range(8)])
    torch.manual_seed(0)
    network = build_network("edge-n").eval()
    with torch.no_grad():
        scores, poses = network(batch.images)
    logits, raw = flatten_maps(scores)[..., 0], flatten_maps(poses)
    cells = lay_out_cells([(s.shape[2], s.shape[3]) for s in scores], STRIDES, logits.device)
    faces = batch.select(~batch.ignore)
    picture, cell, face = assign(logits, raw, faces, cells, STRIDES)
    assert set(face.tolist()) == set(range(len(faces.boxes))), "no face goes without"
    assert len({*zip(picture.tolist(), cell.tolist(), strict=True)}) == len(cell), "no cell learns two faces"
    assert (faces.picture[face] == picture).all()
    middle = (faces.boxes[face, :2] + faces.boxes[face, 2:]) / 2
    reach = (cells.middle[cell] - middle).abs().amax(1) / cells.stride[cell]
    assert reach.max() <= 3
    extra = collate([next(sample for sample in map(composer.__getitem__, range(8)) if len(sample.faces))])
    extra.ignore[:] = True
    mask = covered_cells(extra.select(extra.ignore), cells)
    inside = (cells.middle > extra.boxes[:1, :2]) & (cells.middle < extra.boxes[:1, 2:])
    assert mask[0][inside.all(1)].all()
    # A face of four pixels at a corner of cells holds the middle of none: the four around it say nothing of it.
    tiny = replace(extra.select(torch.tensor([0])), boxes=torch.tensor([[62.0, 62, 66, 66]]))
    assert cells.middle[covered_cells(tiny, cells)[0]].tolist() == [[60, 60], [68, 60], [60, 68], [68, 68]]


def test_a_few_steps_learn(tiny_data: Path, tmp_path: Path) -> None:
    composer = make_composer(tiny_data, tmp_path, size=128)
    batch = collate([composer[i] for i in range(6)])
    torch.manual_seed(0)
    network = build_network("edge-n").train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    history = []
    for _ in range(30):
        loss, parts = edge_loss(*network(batch.images), batch, STRIDES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({k: v.item() for k, v in parts.items()})
    for name in ("box", "rotation", "points"):
        assert history[-1][name] < 0.7 * history[0][name], name


def test_muon_turns_matrices_by_equally_long_steps_and_adamw_moves_the_rest() -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="channels_last"):
        MuonAdamW(build_network("edge-n"), 1e-3, 0.0)
    network = build_network("edge-n").train().to(memory_format=torch.channels_last)
    optimizer = MuonAdamW(network, 1e-3, 0.0)
    optimizer.param_groups[0]["lr"] = 2e-3  # as a schedule does
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    scores, poses = network(torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8))
    torch.stack([m.square().mean() for m in scores + poses]).sum().backward()
    optimizer.step()
    changes = {name: p.detach() - before[name] for name, p in network.named_parameters()}
    assert all(change.abs().max() > 0 for change in changes.values())
    dense = changes["stages.1.3.body.0.0.weight"]
    assert dense.shape == (64, 64, 3, 3)
    lengths = torch.linalg.svdvals(dense.flatten(1))
    assert lengths.max() < 2.5 * lengths.min()
    assert dense.square().mean().sqrt().item() == pytest.approx(0.2 * 2e-3, rel=0.2)
    pose = changes["pose.weight"]  # AdamW's first step is as long for every weight
    torch.testing.assert_close(pose.abs(), torch.full_like(pose, 1e-3), rtol=0.01, atol=0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("kernel", "height"), [(3, 12), (5, 14), (3, 13)])
def test_the_fast_gradient_of_a_strided_depthwise_convolution_is_the_gradient(kernel: int, height: int) -> None:
    torch.manual_seed(0)
    module = DepthwiseStride2(8, kernel).double()
    x = torch.randn(2, 8, height, 10, dtype=torch.double, requires_grad=True)
    fast = torch.autograd.grad(module(x).square().sum(), [x, module.weight])
    plain = torch.nn.functional.conv2d(x, module.weight, None, 2, kernel // 2, 1, 8)
    slow = torch.autograd.grad(plain.square().sum(), [x, module.weight])
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_score_targets_keep_small_faces_in_the_race() -> None:
    torch.testing.assert_close(score_target(torch.tensor([0.0, 0.25, 1.0])), torch.tensor([0.0, 0.5, 1.0]))


def test_a_batch_without_faces_has_a_finite_loss() -> None:
    sample = Sample(
        np.zeros((160, 160, 3), np.uint8),
        Faces(np.empty((0, 4)), np.empty((0, 3, 3)), np.empty(0), np.empty((0, 5, 2)), np.empty(0, bool)),
        np.empty((0, 3, 3)),
    )
    loss, _ = edge_loss(*build_network("edge-n")(torch.zeros(2, 160, 160, 3)), collate([sample, sample]), STRIDES)
    loss.backward()
    assert loss.isfinite()


def test_an_ellipsoid_beside_the_camera_has_no_gradient(tiny_data: Path, tmp_path: Path) -> None:
    batch = collate([make_composer(tiny_data, tmp_path, 160)[i] for i in range(4)])
    for size in (0.0, 3.9):  # the latter is a face so large and near that its ellipsoid reaches around the camera
        scores = [torch.zeros(4, 1, 160 // s, 160 // s, requires_grad=True) for s in STRIDES]
        start = torch.tensor([0, 0, size, 1, 0, 0, 0, 1, 0])[None, :, None, None]
        poses = [start.expand(4, 9, 160 // s, 160 // s).clone().requires_grad_() for s in STRIDES]
        loss, _ = edge_loss(scores, poses, batch, STRIDES)
        loss.backward()
        assert loss.isfinite()
        for leaf in (*scores, *poses):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()


def test_a_box_without_extent_has_no_gradient(tiny_data: Path, tmp_path: Path) -> None:
    """Of the smallest faces, far from the middle of the picture, in single precision."""
    torch.manual_seed(0)
    batch = collate([make_composer(tiny_data, tmp_path, 640)[i] for i in range(2)])
    for _ in range(5):
        scores = [torch.zeros(2, 1, 640 // s, 640 // s, requires_grad=True) for s in STRIDES]
        poses = [torch.randn(2, 9, 640 // s, 640 // s) for s in STRIDES]
        for pose in poses:
            pose[:, 2] = -9
            pose.requires_grad_()
        loss, _ = edge_loss(scores, poses, batch, STRIDES)
        loss.backward()
        for leaf in (*scores, *poses):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()


# --- networks, loop, export ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be from 1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"clip_norm": 0.0}, "clip_norm must be from"),
        ({"ema_decay": 1.5}, "ema_decay must be from 0 to 1, got 1.5"),
        ({"warmup_steps": -5}, "warmup_steps must be from 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be from"),
        ({"network": "edge-x"}, "network must be one of edge-n, edge-s, full-18"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**options)


def test_what_cannot_be_trained_is_named(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="validate_every must be at least 1, got 0"):
        train(tiny_data, tmp_path / "run", small_options(), workers=0, validate_every=0)
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used"):
        train(tiny_data, tmp_path / "run", small_options(), workers=0, device="nonsense")
    for options, more, words in (
        ({"teacher": ("none.pt",)}, {}, r"no checkpoint none\.pt"),
        ({}, {"initial": tmp_path / "none.pt"}, r"no checkpoint .*none\.pt"),
        ({"int8": True}, {}, "name it as initial"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            train(tiny_data, tmp_path / "early", dataclasses.replace(small_options(), **options), workers=0, **more)
    assert not (tmp_path / "early").exists(), "told before all pictures are decoded"
    with pytest.raises(ValueError, match="img2pose-18 is only fine-tuned: name a converted official checkpoint"):
        train(tiny_data, tmp_path / "x", dataclasses.replace(small_options(), network="img2pose-18"), workers=0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes"):
        train(tiny_data, tmp_path / "run", dataclasses.replace(small_options(), batch_size=4), workers=0)
    monkeypatch.delenv("WORLD_SIZE")
    last = train(tiny_data, tmp_path / "run", small_options(), workers=0)
    assert load_checkpoint(last.with_name("best.pt"))["options"]["steps"] == small_options().steps
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    lines = (other / "labels.jsonl").read_text().splitlines()
    (other / "labels.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    train(other, tmp_path / "run", small_options(), workers=0)
    assert "began with other pictures or labels" in caplog.text
    caplog.clear()
    changed = [*lines[:-1], lines[-1].replace('"spread": 1.0', '"spread": 9.0')]
    (other / "labels.jsonl").write_text("\n".join(changed) + "\n")
    train(other, tmp_path / "run", small_options(), initial=Path("gone.pt"), workers=0)
    assert "began with other pictures or labels" in caplog.text
    assert "has 6 steps already" in caplog.text
    shutil.copy(last.with_name("best.pt"), last)
    with pytest.raises(ValueError, match=r"last\.pt is no state of a run to go on with: it lacks raw_weights"):
        train(tiny_data, tmp_path / "run", small_options(), workers=0)


def test_runs_that_cannot_go_on_are_told_before_the_data_are_read(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "open_data", lambda *_: pytest.fail("told too late"))
    large = {"network": "edge-s", "weights": build_network("edge-s").state_dict()}
    save_checkpoint(large, tmp_path / "large.pt")
    with pytest.raises(ValueError, match="wider"):
        train(tiny_data, tmp_path / "new", small_options(), initial=tmp_path / "large.pt", workers=0)
    state = {**large, "raw_weights": {}, "optimizer": {}, "options": {**vars(small_options()), "seed": 3}}
    state |= {"step": 1, "best": 0.0, "stale": 0, "plateau": {}}
    save_checkpoint(state, tmp_path / "run/last.pt")
    with pytest.raises(ValueError, match=r"run holds a run of other options: seed=0 \(it has 3\)"):
        train(tiny_data, tmp_path / "run", small_options(), workers=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_networks_give_maps_of_every_stride(name: str) -> None:
    scores, poses = build_network(name).eval()(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    assert [tuple(s.shape) for s in scores] == [(1, 1, 64 // s, 96 // s) for s in STRIDES]
    assert [tuple(p.shape) for p in poses] == [(1, 9, 64 // s, 96 // s) for s in STRIDES]


def test_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"edge-x.*edge-n, edge-s"):
        build_network("edge-x")


def test_learning_rate_warms_up_and_decays() -> None:
    options = TrainOptions(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(s, options) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.02


def small_options(steps: int = 6) -> TrainOptions:
    return TrainOptions(steps=steps, batch_size=4, crop_size=96, warmup_steps=2)


def test_a_killed_run_goes_on_exactly_where_it_was(tiny_data: Path, tmp_path: Path) -> None:
    whole = train(tiny_data, tmp_path / "whole", small_options(16), workers=0, save_every=2)
    code = (
        "import sys; from pathlib import Path\n"
        "from img2pose_edge.training.loop import *\n"
        f"train(Path({str(tiny_data)!r}), Path({str(tmp_path / 'cut')!r}), TrainOptions(**{vars(small_options(16))!r}),"
        " workers=0, save_every=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    last = tmp_path / "cut/last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < load_checkpoint(last)["step"] < 16
    cut = train(tiny_data, tmp_path / "cut", small_options(16), workers=1, save_every=2)
    a, b = load_checkpoint(whole), load_checkpoint(cut)
    assert a["step"] == b["step"] == 16
    for kind in ("weights", "raw_weights"):
        for name, value in a[kind].items():
            torch.testing.assert_close(b[kind][name], value, rtol=1e-4, atol=1e-5, msg=name)
    with (tmp_path / "cut/metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    with pytest.raises(ValueError, match="other options: seed=3"):
        train(tiny_data, tmp_path / "cut", TrainOptions(**{**vars(small_options(16)), "seed": 3}), workers=0)


def test_a_slow_run_is_saved_before_its_five_hundredth_step(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_data, tmp_path / "whole", small_options(4), workers=0)
    clock = itertools.count(0, loop.SAVE_SECONDS / 2)
    with monkeypatch.context() as patch, training_interrupted_in(2):
        patch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        train(tiny_data, tmp_path / "cut", small_options(4), workers=0)
    assert load_checkpoint(tmp_path / "cut/last.pt")["step"] == 2
    cut = train(tiny_data, tmp_path / "cut", small_options(4), workers=0)
    a, b = load_checkpoint(whole), load_checkpoint(cut)
    for name, value in a["weights"].items():
        torch.testing.assert_close(b["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run in the background of a script, whose shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_saved_where_it_was_stopped(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    average, before = loop.update_average, signal.getsignal(number)

    def stopped(state: dict[str, torch.Tensor], network: nn.Module, step: int, decay: float) -> None:
        if step == 2:
            os.kill(os.getpid(), number)
        average(state, network, step, decay)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update_average", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_data, tmp_path / "cut", small_options(4), workers=1)
    assert load_checkpoint(tmp_path / "cut/last.pt")["step"] == 3
    assert signal.getsignal(number) == before
    cut = train(tiny_data, tmp_path / "cut", small_options(4), workers=0)
    whole = train(tiny_data, tmp_path / "whole", small_options(4), workers=0)
    a, b = load_checkpoint(whole), load_checkpoint(cut)
    for name, value in a["weights"].items():
        torch.testing.assert_close(b["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_leaves_the_loaders_workers(
    tiny_data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As Ctrl-C in a terminal, or ``timeout``, send it."""
    command = [sys.executable, "-m", "img2pose_edge", "train", "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    command += ["--steps=100000", "--batch-size=4", "--crop-size=96", "--workers=2", "--device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as run:
        rows, end = tmp_path / "run/metrics.csv", time.monotonic() + 120
        while not (rows.exists() and len(rows.read_text().splitlines()) > 1) and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(run.pid, number)
        errors = run.communicate(timeout=60)[1]
    assert run.returncode == 130, errors[-3000:]
    assert f"stopped at step {load_checkpoint(tmp_path / 'run/last.pt')['step']}," in errors
    assert "Traceback" not in errors


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_stop_at_the_same_step(tiny_data: Path, tmp_path: Path, number: signal.Signals) -> None:
    run, steps = tmp_path / "run", []
    for more in (100000, 0):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        command += ["img2pose_edge", "train", "--data", str(tiny_data), "--out", str(run), "--workers=1"]
        command += [f"--steps={sum(steps) + (more or 2)}", "--batch-size=4", "--crop-size=96", "--device=cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as launcher:
            rows, end = run / "metrics.csv", time.monotonic() + 120
            while more and not (rows.exists() and len(rows.read_text().splitlines()) > 1) and time.monotonic() < end:
                time.sleep(0.1)
            if more:
                launcher.send_signal(number)
            errors = launcher.communicate(timeout=100)[1]
        steps.append(load_checkpoint(run / "last.pt")["step"])
        if more:
            assert errors.count(f"stopped at step {steps[0]},") == 1, errors[-3000:]
        else:
            assert launcher.returncode == 0, errors[-3000:]
    assert steps[1] == steps[0] + 2


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with kept_signals() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert came == []
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_signal_interrupts_at_once() -> None:
    with kept_signals() as came:
        os.kill(os.getpid(), signal.SIGINT)
        assert came == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: kept_signals().__enter__()).result() == []


def test_two_processes_train_together(tiny_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command += ["img2pose_edge.cli", "train", "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    command += ["--steps=2", "--batch-size=4", "--crop-size=96", "--workers=0", "--device=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_checkpoint(tmp_path / "run/last.pt")["step"] == 2


def test_checkpoints_are_whole_or_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint({"network": "edge-n", "weights": {}}, path)
    assert load_checkpoint(path)["network"] == "edge-n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a\.pt cannot be read"):
        load_checkpoint(path)
    save_checkpoint({"something": 1}, path)
    with pytest.raises(ValueError, match="lacks"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"b\.pt"):
        load_checkpoint(tmp_path / "b.pt")
    path.write_bytes(b"a model in another format")
    with pytest.raises(ValueError, match="it is none, is damaged") as told:
        load_checkpoint(path)
    assert "weights_only" not in str(told.value)
    weights = build_network("edge-n").state_dict()
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_checkpoint({"network": "edge-n", "weights": weights}, path)
    with pytest.raises(ValueError, match=r"a\.pt holds weights that are not finite"):
        load_network(path)
    save_checkpoint({"network": "edge-n", "weights": None}, path)
    with pytest.raises(ValueError, match=r"a\.pt does not hold the weights of this version's edge-n"):
        load_network(path)
    with pytest.raises(ValueError, match=r"a\.pt does not hold"):
        export_model(path, tmp_path / "new" / "folder" / "a.onnx")
    assert not (tmp_path / "new").exists()


def test_a_run_whose_gradients_stay_infinite_ends(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MOST_LEFT_OUT", 2)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(ValueError, match="2 steps one after the other have no finite gradient"):
        train(tiny_data, tmp_path / "run", small_options(), workers=0)


def test_checkpoints_keep_links_permissions_and_pipes(tmp_path: Path) -> None:
    real, link, pipe = (tmp_path / name for name in ("real.pt", "link.pt", "pipe"))
    save_checkpoint({"network": "edge-n", "weights": {}}, real)
    real.chmod(0o600)
    link.symlink_to(real)
    save_checkpoint({"network": "edge-s", "weights": {}}, link)
    assert link.is_symlink()
    assert load_checkpoint(real)["network"] == "edge-s"
    assert real.stat().st_mode & 0o777 == 0o600
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(pipe.read_bytes)
        save_checkpoint({"network": "edge-n", "weights": {}}, pipe)
        assert b"edge-n" in reading.result()
    assert pipe.is_fifo()


def test_exported_graph_equals_the_checkpoint(tmp_path: Path, astronaut: np.ndarray) -> None:
    torch.manual_seed(0)
    network = build_network("edge-n").train()
    with torch.no_grad():  # statistics and outputs that are not the initial ones
        network(torch.randint(0, 255, (4, 96, 96, 3), dtype=torch.uint8))
        network.score.weight.normal_(std=0.3)
        network.pose.weight.normal_(std=0.05)
    network.eval()
    checkpoint = tmp_path / "a.pt"
    save_checkpoint({"network": "edge-n", "weights": network.state_dict(), "step": 1}, checkpoint)
    with pytest.raises(ValueError, match=r"\.onnx"):
        export_model(checkpoint, tmp_path / "a.tflite")
    with pytest.raises(ValueError, match=r"merge_iou.*1\.5"):
        ExportOptions(merge_iou=1.5)
    with pytest.raises(ValueError, match="size is of models in tflite; those in onnx take images of any size"):
        ExportOptions(size=(320, 320))
    with pytest.raises(ValueError, match=r"only full networks have proposals.*edge-n"):
        export_model(checkpoint, tmp_path / "a.onnx", ExportOptions(proposals=50))
    for merge_iou, written in ((None, MERGE_IOU), (0.0, 0.0), (0.7, 0.7)):
        export_model(checkpoint, tmp_path / "a.onnx", ExportOptions(merge_iou=merge_iou))
        assert find_model(tmp_path / "a.onnx").merge_iou == written
    detector = PoseDetector(tmp_path / "a.onnx", threads=1)
    model = detector.model
    assert (model.merge_iou, model.score_gain) == (0.7, SCORE_GAIN)
    for image in (astronaut, astronaut[:200, :333]):
        pixels, _ = letterbox(image, 640, 32)
        with torch.no_grad():
            expected = network(torch.tensor(pixels[None]))
        got = detector._network.run(pixels[None])
        for ours, theirs in zip(got, [*expected[0], *expected[1]], strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-3)


def test_the_bundled_model_is_the_committed_checkpoint(astronaut: np.ndarray) -> None:
    _, network = load_network(Path(__file__).parents[1] / "checkpoints/edge-n.pt")
    detector = PoseDetector("edge-n", engine="onnxruntime")
    image = detector.network_input(astronaut)[0]
    with torch.no_grad():
        scores, poses = network.eval()(torch.tensor(image))
    for ours, theirs in zip(detector.run_network(image), [*scores, *poses], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_network_begins_as_a_smaller_one(tiny_data: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    """It finds the same before it has learnt anything; its weights are others, or repeated ones would stay alike."""
    small = tmp_path / "small.pt"
    trained = load_checkpoint(Path(__file__).parents[1] / "checkpoints/edge-n.pt")
    save_checkpoint(trained, small)
    bundled = find_model("edge-n").path  # whose way to average the cells of a face does not depend on the best one

    def found(network: torch.nn.Module) -> Face:
        return torch_detector(network.eval(), bundled).detect(astronaut)[0]

    before = found(load_network(small)[1])
    options = dataclasses.replace(small_options(1), network="edge-s", learning_rate=1e-9)
    state = load_checkpoint(train(tiny_data, tmp_path / "grown", options, initial=small, workers=0))
    assert state["config"] == dataclasses.asdict(CONFIGS["edge-s"])
    large = build_network("edge-s")
    large.load_state_dict(state["raw_weights"])
    after = found(large)
    np.testing.assert_allclose(after.box, before.box, atol=4)
    np.testing.assert_allclose(after.angles, before.angles, atol=4)
    weights = state["raw_weights"]["laterals.0.0.weight"].flatten(1)
    assert len(torch.unique(weights, dim=0)) == len(weights)
    with pytest.raises(ValueError, match="a network cannot begin as a wider one: 96 channels do not fit into 64"):
        grow(large, EdgeNet(dataclasses.replace(CONFIGS["edge-s"], head=64)))

    deeper = EdgeNet(dataclasses.replace(CONFIGS["edge-s"], dense=(2, 2, 2, 0))).eval()
    grow(large, deeper)
    convolution = deeper.stages[1].get_submodule("4.body.0.0")
    assert torch.equal(convolution.weight, large.stages[1].get_submodule("4.body.0.0").weight)  # type: ignore[arg-type]
    again = found(deeper)
    np.testing.assert_allclose(again.box, after.box, atol=4)


def test_an_average_of_checkpoints_lies_between_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "other.pt"]
    for seed, (path, name) in enumerate(zip(paths, ("edge-n", "edge-n", "edge-s"), strict=True)):
        torch.manual_seed(seed)
        network = build_network(name)
        of_run = {"raw_weights": network.state_dict(), "optimizer": {}}
        known = {"data": f"set {seed}", "licence": "free"} | of_run
        save_checkpoint({"network": name, "weights": network.state_dict(), "step": seed, **known}, path)
    out = tmp_path / "c.pt"
    assert main(["average", str(paths[0]), str(paths[1]), "--out", str(out)]) == 0
    (first, _), (second, _), (state, _) = (load_network(path) for path in (*paths[:2], out))
    assert state.keys() == {"network", "weights", "averaged", "data", "licence"}
    assert [run["steps"] for run in state["averaged"]] == [0, 1]
    assert main(["average", str(out), str(paths[0]), "--out", str(tmp_path / "e.pt")]) == 0
    assert len(load_network(tmp_path / "e.pt")[0]["averaged"]) == 3
    assert (state["data"], state["licence"]) == ("set 0; set 1", "free")
    for name, value in state["weights"].items():
        torch.testing.assert_close(value.double(), (first["weights"][name] + second["weights"][name]).double() / 2)
        assert value.dtype == first["weights"][name].dtype
    for wrong, told in (([paths[0], paths[2]], "of another shape than"), ([paths[0]], "at least two checkpoints")):
        assert main(["average", *map(str, wrong), "--out", str(tmp_path / "d.pt")]) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "d.pt").exists()
    before = paths[1].read_bytes()
    assert main(["average", *map(str, paths[:2]), "--out", str(paths[1])]) == 1
    assert "b.pt is one of the checkpoints, whose weights would be lost" in capsys.readouterr().err
    assert paths[1].read_bytes() == before


def test_curves_of_runs_are_drawn(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        train(tiny_data, tmp_path / name, small_options(3), workers=0, log_every=1)
    out = tmp_path / "curves.png"
    assert main(["curves", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out)]) == 0
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 1000
    assert picture.std() > 10, "something is drawn"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "one", "two"]
    (tmp_path / "one/metrics.csv").write_text("a,b\n1,2\n")
    assert main(["curves", str(tmp_path / "one"), "--out", str(out)]) == 1
    assert "is not the log of a training run" in capsys.readouterr().err
    assert main(["curves", str(tmp_path / "none"), "--out", str(out)]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_pictures_without_a_face_are_shown(tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(tiny_data, folder)
    lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    for line in lines[:4]:  # two of each collection
        line["faces"] = []
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    composer = make_composer(folder, tmp_path / "cache", 64)
    drawn = {i for _, members in composer.scenes for i in members}
    assert {0, 1, 2, 3} <= drawn, "of portraits' collections too"
    assert not {0, 1, 2, 3} & {i for _, members in composer.portraits for i in members}
    for number in range(60):
        sample = composer[number]
        assert np.isfinite(sample.faces.boxes).all()


def test_scenes_alone_give_portraits_of_faces_only(tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(tiny_data, folder)
    lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    scenes = [line for line in lines if "/wider/" in line["image"]]
    scenes[0]["faces"] = []
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scenes))
    composer = make_composer(folder, tmp_path / "cache", 64)
    assert [members for _, members in composer.portraits] == [[1, 2, 3, 4, 5]]
    assert [members for _, members in composer.scenes] == [[1, 2, 3, 4, 5, 0]]
    for number in range(60):
        assert np.isfinite(composer[number].faces.boxes).all()


def test_portraits_of_small_faces_are_enlarged_little(tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(tiny_data, folder)
    labels = folder / "labels.jsonl"
    lines = [json.loads(line) for line in labels.read_text().splitlines()]
    largest = 0.0
    for line in lines:
        image = cv2.imread(str(folder / line["image"]))
        cv2.imwrite(str(folder / line["image"]), cv2.resize(image, None, fx=0.1, fy=0.1, interpolation=cv2.INTER_AREA))
        line["width"], line["height"] = round(image.shape[1] * 0.1), round(image.shape[0] * 0.1)
        for face in line["faces"]:
            for name in ("box", "landmarks"):
                if face.get(name) is not None:
                    face[name] = (np.array(face[name]) * 0.1).tolist()
            x1, y1, x2, y2 = face["box"]
            largest = max(largest, float(np.sqrt((x2 - x1) * (y2 - y1))))
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    composer = make_composer(folder, tmp_path / "cache")
    composer.strength = dataclasses.replace(composer.strength, backed=0.0)  # backdrops fill the picture
    sizes = np.concatenate([composer[i].faces.sizes for i in range(80)])
    assert 2 * largest < sizes.max() <= MOST_ENLARGED * largest * 1.02  # boxes turn with the face


def test_an_edited_picture_is_decoded_again(tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(tiny_data, folder)
    records = read_records(folder / "labels.jsonl")[:1]
    picture = (folder / records[0].image).with_suffix(".bmp")
    records = [replace(records[0], image=str(picture.relative_to(folder)))]
    seen = []
    for grey in (10, 200):
        cv2.imwrite(str(picture), np.full((records[0].height, records[0].width, 3), grey, np.uint8))
        os.utime(picture, (grey, grey))
        seen.append(int(PixelCache(folder, records, tmp_path / "cache")[0].mean()))
    assert seen == [10, 200]


def test_weights_tell_all_that_they_were_trained_on(tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = tmp_path / "first.pt"
    known = {"data": "another set", "licence": "for research"}
    save_checkpoint({"network": "edge-n", "weights": build_network("edge-n").state_dict(), **known}, first)
    run = tmp_path / "run"
    for steps in (1, 2):
        train(tiny_data, run, small_options(steps), initial=first if steps == 1 else None, workers=0)
        state = load_checkpoint(run / "last.pt")
        assert state["data"].startswith("another set; tiny")
        assert state["data"].count("images") == 1
        assert state["licence"] == "for research"
    out = tmp_path / "own.onnx"
    assert main(["export", "--checkpoint", str(run / "last.pt"), "--out", str(out)]) == 0
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert (manifest["data"], manifest["licence"]) == (state["data"], "for research")
    assert manifest["training"]["steps"] == state["step"]
    state["options"]["teacher"] = "somewhere/old.pt"  # as in runs of the time when there was one at most
    assert run_of(state)["options"]["teacher"] == ["old.pt"]


def test_a_manifest_names_teachers_not_where_they_lie(tmp_path: Path) -> None:
    state = {"network": "edge-n", "weights": build_network("edge-n").state_dict()}
    save_checkpoint({**state, "options": {"teacher": (str(tmp_path / "scrfd.onnx"),), "seed": 3}}, tmp_path / "own.pt")
    assert main(["export", "--checkpoint", str(tmp_path / "own.pt"), "--out", str(tmp_path / "own.onnx")]) == 0
    manifest = json.loads((tmp_path / "own.json").read_text())
    assert manifest["training"]["options"] == {"teacher": ["scrfd.onnx"], "seed": 3}


def test_sizes_are_those_that_the_network_sees(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2pose_edge.training.validation.detect_with", lambda *_: [])
    record = read_records(tiny_data / "labels.jsonl")[0]
    assert validate(nn.Identity(), [record], [0], [None], torch.device("cpu"))["recall"] == 0  # type: ignore[arg-type]
    counted: list[Any] = []
    precision = "img2pose_edge.training.validation.wider_average_precision"
    monkeypatch.setattr(precision, lambda _, truth: counted.append(truth) or 0)
    for width in (record.width, 100 * record.width):
        wide = replace(record, width=width)
        validate(nn.Identity(), [wide], [0], [None], torch.device("cpu"))  # type: ignore[arg-type]
    assert len(counted) == 1, "of the second picture no face is large enough"


def test_a_log_holds_steps_of_any_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    CsvLog(path, [], 0).write(step=1234567, loss=0.123456789)
    whole = path.read_text()
    path.write_text(whole + "55")  # of 550
    CsvLog(path, [], 2000000)
    assert path.read_text() == whole
    with pytest.raises(ValueError, match=r"metrics\.csv is not the log of such a run"):
        CsvLog(path, ["score"], 2000000)
    assert path.read_text() == whole
    CsvLog(path, [], 2000000)
    assert path.read_text().splitlines()[1] == "1234567,,0.123457,,,"
