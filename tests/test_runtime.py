"""``detect_poses`` on a real photograph, in every form it may come, and with everything that may be wrong."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from conftest import ASTRONAUT_BOX
from img2pose_edge.pose_references import distant_face_box, load_reference, project_face_box

from img2pose_edge import Face, PoseDetector, detect_poses, geometry
from img2pose_edge.coco import to_coco
from img2pose_edge.commands.run import table
from img2pose_edge.decode import candidates, least_agreeing
from img2pose_edge.detector import MAX_CANDIDATES, make_faces
from img2pose_edge.draw import draw_faces
from img2pose_edge.engines import READERS, load_engine, ort
from img2pose_edge.manifest import bundled_models, find_model
from img2pose_edge.nms import non_maximum_suppression, pairwise_iou
from img2pose_edge.preprocess import letterbox, load_image


def assert_astronaut(faces: list[Face], scale: float = 1.0) -> None:
    assert len(faces) == 1
    face = faces[0]
    assert pairwise_iou(face.box[None], ASTRONAUT_BOX[None] * scale)[0, 0] > 0.7
    assert abs(face.yaw) < 10
    assert abs(face.roll) < 10
    assert abs(face.pitch) < 15


def test_finds_the_astronaut(astronaut: np.ndarray) -> None:
    faces = detect_poses(astronaut)
    assert_astronaut(faces)
    face = faces[0]
    # All parts of the result tell of one pose.
    rotation, translation = geometry.decompose_pose(face.pose)
    np.testing.assert_allclose(rotation, face.rotation, atol=1e-9)
    np.testing.assert_allclose(face.translation, translation)
    np.testing.assert_allclose(face.translation_mm, translation * geometry.FACE_UNIT_MM)
    np.testing.assert_allclose(geometry.matrix_to_angles(face.local_rotation), face.angles)
    camera = geometry.default_intrinsics(512, 512)
    np.testing.assert_allclose(geometry.camera_to_local(rotation, translation, camera)[2], face.local_rotation)
    points = load_reference().points68
    np.testing.assert_allclose(geometry.project(points, rotation, translation, camera), face.landmarks68)
    eyes = face.landmarks68[[36, 45]].mean(0)
    assert np.linalg.norm(eyes - [224, 104]) < 12  # between her eyes
    assert json.loads(json.dumps(face.to_dict()))["landmarks68"][0] == pytest.approx(face.landmarks68[0], abs=0.01)
    assert "yaw" in repr(face)


def test_every_form_of_an_image_gives_the_same_faces(astronaut: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "astronaut.png"
    cv2.imwrite(str(path), astronaut)
    rgb = cv2.cvtColor(astronaut, cv2.COLOR_BGR2RGB)
    wide = np.zeros((512, 1024, 3), np.uint8)
    wide[:, ::2] = astronaut
    forms = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "PIL": PIL.Image.fromarray(rgb),
        "BGRA": cv2.cvtColor(astronaut, cv2.COLOR_BGR2BGRA),
        "non-contiguous": wide[:, ::2],
        "reversed channels": rgb[..., ::-1],
        "Fortran order": np.asfortranarray(astronaut),
    }
    expected = detect_poses(astronaut)[0]
    for name, form in forms.items():
        found = detect_poses(form)
        assert len(found) == 1, name
        np.testing.assert_allclose(found[0].pose, expected.pose, atol=1e-4, err_msg=name)
    for grey in (cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY), cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)[..., None]):
        assert_astronaut(detect_poses(grey))


ARTEFACTS = [(model, engine) for model in bundled_models() for engine in READERS[find_model(model).path.suffix]]


@pytest.mark.parametrize(("model", "engine"), ARTEFACTS)
def test_every_engine_gives_the_same_faces(engine: str, model: str, astronaut: np.ndarray) -> None:
    for image in (astronaut[:480], astronaut[:480, ::-1]):  # nothing that the 640x480 model would shrink
        faces = detect_poses(image, model=model, engine=engine, threads=1)
        network = model.split("-int8")[0]
        same_weights = f"{network}-int8" if "int8" in model else network
        reference = detect_poses(image, model=same_weights, engine="onnxruntime")
        assert len(faces) == len(reference) == 1
        # The 640x480 model sees more padding.
        near = 1e-3 if find_model(model).fixed is None else 0.05
        assert faces[0].score == pytest.approx(reference[0].score, abs=near)
        np.testing.assert_allclose(faces[0].box, reference[0].box, atol=10 * near)
        np.testing.assert_allclose(faces[0].angles, reference[0].angles, atol=10 * near)


@pytest.mark.parametrize(("model", "engine"), ARTEFACTS)
def test_every_engine_takes_what_comes(engine: str, model: str, astronaut: np.ndarray) -> None:
    assert_astronaut(detect_poses(cv2.resize(astronaut, (1536, 1536)), model=model, engine=engine), scale=3)
    assert_astronaut(detect_poses(astronaut[:333, :471], model=model, engine=engine))
    assert detect_poses(np.full((480, 640, 3), 90, np.uint8), model=model, engine=engine) == []
    assert detect_poses(np.zeros((8, 3000, 3), np.uint8), model=model, engine=engine) == []


def test_the_default_model_follows_machine_and_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    import img2pose_edge.manifest as module

    assert PoseDetector(engine="tflite").model.path.suffix == ".tflite"
    assert PoseDetector(engine="openvino").model.path.suffix == ".xml"
    monkeypatch.setattr(module, "has_vnni", lambda: True)
    assert PoseDetector().model.manifest["precision"] == "int8"
    assert PoseDetector(engine="onnxruntime:tensorrt").model.manifest["precision"] == "fp32"
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: list(ort.PROVIDERS.values()))
    assert PoseDetector().model.manifest["precision"] == "fp32", "there is a GPU"
    monkeypatch.undo()
    monkeypatch.setattr(module, "has_vnni", lambda: False)
    assert PoseDetector().model.manifest["precision"] == "fp32"
    with pytest.raises(ValueError, match="takes images of 640x480 only: input_size cannot be 320"):
        PoseDetector(engine="tflite", input_size=320)


def test_int8_is_right_on_x86_without_vnni(monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray) -> None:
    """ONNX Runtime computes with unsigned weights then, which must load and change nothing."""
    expected = detect_poses(astronaut, model="edge-n-int8", threads=1)[0]
    monkeypatch.setattr(ort, "is_x86", lambda: True)
    monkeypatch.setattr(ort, "has_vnni", lambda: False)
    face = PoseDetector("edge-n-int8", engine="onnxruntime", threads=1)(astronaut)[0]
    np.testing.assert_allclose(face.pose, expected.pose, atol=1e-4)


class FakeSession:
    """Notes what it is asked for, as devices that we lack would be."""

    asked: list = []  # noqa: RUF012

    def __init__(self, path: str, options: object, providers: list, disabled_optimizers: list[str]) -> None:
        assert disabled_optimizers == [], "int8 is three times as slow without"
        self.asked[:] = providers

    def get_providers(self) -> list[str]:
        return [p[0] if isinstance(p, tuple) else p for p in self.asked]

    def get_inputs(self) -> list:
        return [SimpleNamespace(name="image")]

    def get_outputs(self) -> list:
        return [SimpleNamespace(name=name) for name in find_model("edge-n").output_names]


def test_execution_providers_are_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort.onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: there)
    model = find_model("edge-n")
    load_engine("onnxruntime", model, None)
    assert FakeSession.asked == [("CUDAExecutionProvider", {}), "CPUExecutionProvider"]
    load_engine("onnxruntime:cpu", model, None)
    assert FakeSession.asked == [("CPUExecutionProvider", {})]
    load_engine("onnxruntime:tensorrt", model, None, {"trt_fp16_enable": False})
    (name, options), *rest = FakeSession.asked
    assert (name, rest) == ("TensorrtExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert options["trt_fp16_enable"] is False
    assert options["trt_engine_cache_enable"] is True
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert Path(options["trt_engine_cache_path"]).is_relative_to(tmp_path)
    with pytest.raises(ValueError, match=r"onnxruntime:coreml is not available: .*has cpu, cuda, tensorrt"):
        load_engine("onnxruntime:coreml", model, None)
    with pytest.raises(ValueError, match="unknown provider"):
        load_engine("onnxruntime:abacus", model, None)
    with pytest.raises(ValueError, match="an engine is a name, one of auto"):
        PoseDetector(engine=None)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no model ''"):
        PoseDetector("")
    with pytest.raises(ValueError, match="unknown engine 'openvino:cuda'"):
        load_engine("openvino:cuda", model, None)
    monkeypatch.setattr(FakeSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="onnxruntime:cuda did not start"):
        load_engine("onnxruntime:cuda", model, None)


def test_engine_options_reach_the_engine(astronaut: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"(?s)openvino refuses edge-n\.onnx, its options or an input of .*NO_SUCH_OPTION"
    ):
        PoseDetector("edge-n", engine="openvino", engine_options={"NO_SUCH_OPTION": "1"})(astronaut)
    assert_astronaut(PoseDetector(engine="openvino", engine_options={"NUM_STREAMS": 1})(astronaut))
    with pytest.raises(ValueError, match="CPU provider takes no options, got arena"):
        PoseDetector("edge-n", engine="onnxruntime:cpu", engine_options={"arena": "1"})(astronaut)


def test_openvino_finds_the_same_in_images_of_any_size_and_order(astronaut: np.ndarray) -> None:
    """It is compiled for the first image's size, and otherwise for all others."""
    images = [astronaut, astronaut[:, 64:-64], cv2.resize(astronaut, (320, 320)), astronaut]
    together = PoseDetector("edge-n-int8-ov", engine="openvino")
    for image in images:
        (face,), (alone,) = together(image), PoseDetector("edge-n-int8-ov", engine="openvino")(image)
        np.testing.assert_allclose(face.pose, alone.pose, atol=1e-6)


def test_signals_are_survived_after_openvino_is_gone() -> None:
    """Its core, released on another thread, takes away the stack that Python's signal handlers run on."""
    code = """
import faulthandler, os, signal, threading
import numpy as np
from img2pose_edge import PoseDetector

faulthandler.enable()  # has a stack for signals, which OpenVINO replaces by a larger one
signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
kept = [PoseDetector("edge-n", engine="openvino")]
kept[0](np.zeros((64, 64, 3), np.uint8))
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "alive\n", (done.returncode, done.stderr)


def test_sizes_and_shapes(astronaut: np.ndarray) -> None:
    large = cv2.resize(astronaut, (1536, 1536))
    assert_astronaut(detect_poses(large), scale=3)
    assert_astronaut(detect_poses(astronaut, input_size=256))
    assert_astronaut(detect_poses(astronaut[:333, :471]))
    assert detect_poses(np.full((480, 640, 3), 90, np.uint8)) == []
    assert detect_poses(np.zeros((8, 3000, 3), np.uint8)) == []


def test_mirrored_image_gives_the_mirrored_pose(astronaut: np.ndarray) -> None:
    straight, mirrored = detect_poses(astronaut)[0], detect_poses(astronaut[:, ::-1])[0]
    assert mirrored.yaw == pytest.approx(-straight.yaw, abs=6)
    assert mirrored.roll == pytest.approx(-straight.roll, abs=6)
    assert mirrored.pitch == pytest.approx(straight.pitch, abs=6)
    assert mirrored.translation[0] == pytest.approx(-straight.translation[0], abs=0.3)


@pytest.mark.parametrize("degrees", [-30, -15, 15, 30])
def test_turning_the_image_turns_the_pose(astronaut: np.ndarray, degrees: float) -> None:
    matrix = cv2.getRotationMatrix2D((224, 115), -degrees, 1.0)  # OpenCV counts counter-clockwise
    turned = cv2.warpAffine(astronaut, matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    straight, face = detect_poses(astronaut)[0], detect_poses(turned)[0]
    assert face.roll - straight.roll == pytest.approx(degrees, abs=7)


def test_calibrated_camera_gives_metric_translation(astronaut: np.ndarray) -> None:
    camera = geometry.default_intrinsics(512, 512)
    twice = camera.copy()
    twice[[0, 1], [0, 1]] *= 2
    near = PoseDetector(intrinsics=camera)(astronaut)[0]
    far = detect_poses(astronaut, intrinsics=twice)[0]
    assert far.translation[2] == pytest.approx(2 * near.translation[2])
    np.testing.assert_allclose(far.local_rotation, near.local_rotation, atol=1e-9)
    np.testing.assert_allclose(near.pose, detect_poses(astronaut)[0].pose)


def test_thresholds(astronaut: np.ndarray) -> None:
    assert detect_poses(astronaut, score_threshold=1.0) == []
    many = detect_poses(astronaut, score_threshold=0.0)
    assert len(many) > 10
    assert [f.score for f in many] == sorted((f.score for f in many), reverse=True)
    assert len(detect_poses(astronaut, nms_iou=1.0)) > 1


def test_letterbox_keeps_ratio_and_pads_to_the_multiple() -> None:
    pixels, scale = letterbox(np.zeros((300, 1000, 3), np.uint8), 640, 32)
    assert pixels.shape == (192, 640, 3)
    np.testing.assert_allclose(scale, 0.64)
    small = np.zeros((96, 64, 3), np.uint8)
    assert letterbox(small, 640, 32)[0] is small, "a fitting image is not copied"


def test_decoding_places_a_cell_exactly() -> None:
    scores = [np.full((1, 1, 4, 4), -9.0, np.float32)]
    poses = [np.zeros((1, 9, 4, 4), np.float32)]
    scores[0][0, 0, 2, 1] = 3
    poses[0][0, :, 2, 1] = [0.25, -0.5, np.log(5), 1, 0, 0, 0, 1, 0]
    score, center, size, local = candidates(scores, poses, [16], 0.5)
    assert score == pytest.approx([1 / (1 + np.exp(-3))])
    np.testing.assert_allclose(center, [[(1.5 + 0.25) * 16, (2.5 - 0.5) * 16]])
    np.testing.assert_allclose(size, 16 * 2 * 5, rtol=1e-6)
    np.testing.assert_allclose(local[0], np.eye(3), atol=1e-6)
    face = make_faces(score, center, size, local, np.array([0.5, 0.5]), geometry.default_intrinsics(128, 128), 0.4)[0]
    seen = geometry.camera_to_local(face.rotation, face.translation, face.intrinsics)
    np.testing.assert_allclose(seen[0], center[0] * 2)
    np.testing.assert_allclose(seen[1], size[0] * 2)


def test_channels_of_maps_may_lie_last_in_memory() -> None:
    rng = np.random.default_rng(3)
    scores = [rng.normal(-1, 1, (1, 1, side, side + 1)).astype(np.float32) for side in (8, 4)]
    poses = [rng.normal(0, 1, (1, 9, side, side + 1)).astype(np.float32) for side in (8, 4)]
    last = [np.ascontiguousarray(pose.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for pose in poses]
    found, same = (candidates(scores, maps, [8, 16], 0.5, 0.2) for maps in (poses, last))
    assert len(found[0]) > 10
    for a, b in zip(found, same, strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_gain_with_the_size_of_the_face() -> None:
    scores = [np.full((1, 1, 2, 2), -9.0, np.float32), np.full((1, 1, 2, 2), -9.0, np.float32)]
    poses = [np.zeros((1, 9, 2, 2), np.float32), np.zeros((1, 9, 2, 2), np.float32)]
    scores[0][0, 0, 0, :], scores[1][0, 0, 1, :] = [0.5, 0.75], [-0.25, -1.25]
    poses[0][0, 2, 0, :], poses[1][0, 2, 1, :] = np.log([20 / 16, 10 / 16]), np.log([160 / 64, 320 / 64])
    plain, gained = (candidates(scores, poses, [8, 32], 0.5, gain) for gain in (0.0, 0.3))
    np.testing.assert_allclose(plain[2], [10, 20], rtol=1e-6)
    np.testing.assert_allclose(gained[2], [160, 20, 10], rtol=1e-6)  # in another order, and not -1.25 + 4 * 0.3
    logits = np.log(gained[0] / (1 - gained[0]))
    np.testing.assert_allclose(logits, [-0.25 + 3 * 0.3, 0.5, 0.75 - 0.3], atol=1e-6)


def test_unsure_faces_are_weighed_by_the_cells_that_agree() -> None:
    """Four faces of 1, 2, 8 and 3 cells; the third cell of the last has less than half of its score."""
    camera, counts = geometry.default_intrinsics(640, 480), (1, 2, 8, 3)
    center = np.concatenate([np.tile([100.0 + 130 * i, 200], (n, 1)) for i, n in enumerate(counts)])
    center[:, 0] += np.concatenate([np.arange(n) for n in counts]) * 0.5
    scores = np.repeat([0.45, 0.4, 0.35, 0.3], counts)
    scores[-1] = 0.14
    given = scores, center, np.full(14, 40.0), np.tile(np.eye(3), (14, 1, 1)), np.ones(2), camera, 0.5
    assert [f.score for f in make_faces(*given)] == [0.45, 0.4, 0.35, 0.3]
    found = make_faces(*given, support_gain=0.3)
    expected = {100: (0.45, 0.9), 230: (0.4, 0.6), 360: (0.35, 0.0), 490: (0.3, 0.6)}
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    for face in found:
        score, lost = expected[round(face.box[[0, 2]].mean() / 10) * 10]
        assert np.log(face.score / (1 - face.score)) == pytest.approx(np.log(score / (1 - score)) - lost)
    reached = make_faces(*given, support_gain=0.3, threshold=0.26)
    np.testing.assert_allclose([f.box for f in reached], [f.box for f in found[:2]])
    assert make_faces(*given, support_gain=0.3, threshold=0.6, merge_iou=0.6) == []
    sure = (scores + 0.5, *given[1:])
    assert [f.score for f in make_faces(*sure, support_gain=0.3)] == [f.score for f in make_faces(*sure)]


def test_unsure_profiles_gain_and_unsure_large_faces_lose() -> None:
    """Three faces of one cell: from the front, a profile, and one of 160 pixels per face unit at half the resolution
    that the network sees; and the same, sure."""
    camera = geometry.default_intrinsics(640, 480)
    center, size = np.array([[100.0, 200], [250, 200], [450, 200]]), np.array([60.0, 60, 320])
    local = geometry.angles_to_matrix(np.array([[0.0, 0, 0], [0, -80, 0], [0, 0, 0]]))

    def logits(*scores: float) -> np.ndarray:
        given = np.array(scores), center * 2, size, local, np.array([2.0, 2.0]), camera, 0.5
        found = {round(f.box[[0, 2]].mean()): f.score for f in make_faces(*given, support_gain=0.3)}
        values = np.array([found[x] for x in sorted(found)])
        return np.log(values / (1 - values))

    front = np.log(0.4 / 0.6) - 0.3 * 3 - 0.4 * np.log2(1.5)
    large = np.log(0.2 / 0.8) - 0.3 * 3 - 0.4 * 3
    np.testing.assert_allclose(logits(0.4, 0.4, 0.2), [front, front + 0.2 * np.radians(80), large], atol=1e-9)
    np.testing.assert_allclose(logits(0.7, 0.6, 0.5), np.log([0.7 / 0.3, 0.6 / 0.4, 1.0]), atol=1e-9)
    np.testing.assert_allclose(logits(0.4, 0.6, 0.2), [front, np.log(0.6 / 0.4), large], atol=1e-9)


def test_a_profile_is_found_at_any_threshold_that_its_weighed_score_reaches() -> None:
    """Its own score, .28, is below; two of the nine cells that agree have hardly half of it."""
    scores = [np.full((1, 1, 4, 4), -9.0, np.float32)]
    poses = [np.zeros((1, 9, 4, 4), np.float32)]
    own = np.array([0.28, 0.27, 0.26, 0.25, 0.24, 0.23, 0.22, 0.142, 0.141])
    scores[0].reshape(-1)[:9] = np.log(own / (1 - own))
    offset = poses[0].reshape(9, -1)
    cells = np.arange(16)
    offset[0], offset[1], offset[2] = 2 - cells % 4, 2 - cells // 4, np.log(2)  # all see the face in the middle
    offset[3:] = geometry.matrix_to_sixd(geometry.angles_to_matrix(np.array([0.0, 85, 0])))[:, None]
    camera, found = geometry.default_intrinsics(640, 480), []
    for threshold in (0.05, 0.3):
        cells_found = candidates(scores, poses, [8], least_agreeing(threshold, 0.3))
        found.append(make_faces(*cells_found, np.ones(2), camera, 0.5, support_gain=0.3, threshold=threshold))
    (low,), (high,) = found
    assert low.score == high.score > 0.3


def test_no_unsure_face_becomes_sure() -> None:
    """A profile of eight cells just below one half, which gains .3."""
    camera, local = geometry.default_intrinsics(640, 480), geometry.angles_to_matrix(np.array([[0.0, 90, 0]] * 8))
    given = np.linspace(0.49, 0.48, 8), np.tile([300.0, 200], (8, 1)), np.full(8, 30.0), local, np.ones(2), camera, 0.5
    (face,) = make_faces(*given, support_gain=0.3)
    assert 0.4999 < face.score < 0.5


@pytest.mark.parametrize("name", ["edge-n", "edge-s"])
def test_a_lower_threshold_adds_faces_and_changes_no_score(name: str, astronaut: np.ndarray) -> None:
    """The cells that agree on an unsure face may themselves be below the threshold."""
    detector = PoseDetector(name, threads=1)
    many = detector.detect(astronaut, score_threshold=0.02)
    assert len(many) > 5
    for threshold in (0.05, 0.1, 0.3, 0.5):
        some = detector.detect(astronaut, score_threshold=threshold)
        assert [f.score for f in some] == [f.score for f in many if f.score >= threshold]
        for face, low in zip(some, many, strict=False):  # poses are means of the cells that reach the threshold
            assert np.abs(face.box - low.box).max() < 0.1 * (low.box[2] - low.box[0])
            assert np.abs(face.angles - low.angles).max() < 10


def test_the_manifest_says_what_scores_gain_and_whether_poses_are_averaged(
    tmp_path: Path, astronaut: np.ndarray
) -> None:
    model = find_model("edge-n")
    thresholds = {"score": 0.5, "nms_iou": 0.5}
    manifest = model.manifest | {"thresholds": thresholds, "score_gain": 0.0}
    del manifest["support_gain"]
    shutil.copy(model.path, tmp_path / "m.onnx")
    results = []
    averaging = thresholds | {"merge_iou": 0.6}
    for change in ({}, {"score_gain": 0.3}, {"thresholds": averaging}):
        (tmp_path / "m.json").write_text(json.dumps(manifest | change))
        results.append(PoseDetector(tmp_path / "m.onnx", threads=1)(astronaut)[0])
    plain, gained, merged = results
    octaves = np.log2(geometry.camera_to_local(plain.rotation, plain.translation, plain.intrinsics)[1] / 20)

    def logit(score: float) -> float:
        return float(np.log(score / (1 - score)))

    assert logit(gained.score) - logit(plain.score) == pytest.approx(0.3 * octaves, abs=1e-3)
    assert merged.score == plain.score
    assert 0 < np.abs(merged.box - plain.box).max() < 8
    assert 0 < np.degrees(geometry.geodesic_distance(merged.rotation, plain.rotation)) < 5


def test_a_face_beside_the_camera_has_no_box() -> None:
    """Its ellipsoid crosses the camera's plane: what is seen of it has no end."""
    rotation, camera = np.eye(3), geometry.default_intrinsics(640, 480)
    assert np.isnan(project_face_box(rotation, np.array([2.0, 0, 0.5]), camera)).all()
    assert np.isfinite(project_face_box(rotation, np.array([2.0, 0, 4]), camera)).all()
    whole = project_face_box(np.eye(3, dtype=int), np.array([0, 0, 8.0]), camera)
    np.testing.assert_allclose(whole, project_face_box(rotation, np.array([0, 0, 8.0]), camera))
    np.testing.assert_allclose(geometry.compose_pose(np.eye(3, dtype=int), np.array([0, 0, 8.0])), [0, 0, 0, 0, 0, 8])
    center, size = np.array([[320.0, 240], [2000, 240], [100, 100]]), np.array([3000.0, 2400, 40])
    local = np.stack([rotation] * 3)
    found = make_faces(np.array([0.9, 0.8, 0.7]), center, size, local, np.ones(2), camera, 0.5)
    assert [face.score for face in found] == [0.7]


@pytest.mark.parametrize("merge_iou", [0.0, 0.6])
def test_what_is_no_number_costs_no_other_face(merge_iou: float) -> None:
    camera, local = geometry.default_intrinsics(640, 480), np.stack([np.eye(3)] * 3)
    scores, center = np.array([0.9, 0.8, 0.7]), np.array([[100.0, 100], [101, 100], [300, 100]])
    for wrong, size in (([0], [np.nan, 40, 40]), ([1], [40, np.inf, 40]), ([0, 1, 2], [np.nan] * 3)):
        found = make_faces(scores, center, np.array(size), local, np.ones(2), camera, 0.5, merge_iou=merge_iou)
        assert [face.score for face in found] == ([] if len(wrong) == 3 else [0.8, 0.7] if wrong == [0] else [0.9, 0.7])


@pytest.mark.parametrize("given", [False, True])
def test_more_cells_than_nms_is_given(given: bool) -> None:
    count = MAX_CANDIDATES + 1
    center, size = np.stack([np.arange(count) * 100.0, np.full(count, 50.0)], 1), np.full(count, 20.0)
    boxes = np.concatenate([center - 30, center + 30], 1) if given else None
    local, camera = np.broadcast_to(np.eye(3), (count, 3, 3)), geometry.default_intrinsics(640, 480)
    scores = np.linspace(0.9, 0.5, count)
    assert len(make_faces(scores, center, size, local, np.ones(2), camera, 0.5, boxes)) == MAX_CANDIDATES


@pytest.mark.parametrize("merge_iou", [0.0, 0.6])
def test_pixels_of_the_network_may_be_oblong(merge_iou: float) -> None:
    camera, scale = geometry.default_intrinsics(640, 480), np.array([0.5, 0.52])
    local = geometry.angles_to_matrix(np.array([[10.0, -20, 5]] * 2))
    center, size = np.array([[200.0, 150], [200, 150]]), np.array([40.0, 40])
    (face,) = make_faces(np.array([0.9, 0.6]), center, size, local, scale, camera, 0.5, merge_iou=merge_iou)
    seen = geometry.camera_to_local(face.rotation, face.translation, camera)
    np.testing.assert_allclose(seen[0], center[0] / scale)
    assert seen[1] == pytest.approx(40 / np.sqrt(0.26))
    np.testing.assert_allclose(seen[2], local[0], atol=1e-9)


def test_boxes_for_nms_are_those_of_faces_far_away() -> None:
    """What perspective changes is nearly the same for all cells of a face."""
    generator, camera = np.random.default_rng(0), geometry.default_intrinsics(640, 480)
    local = geometry.angles_to_matrix(generator.uniform(-80, 80, (200, 3)))
    center, size = generator.uniform(0, 1, (200, 2)) * [640, 480], 2 ** generator.uniform(2, 7, 200)
    quick = distant_face_box(center, size, local)
    exact = project_face_box(*geometry.local_to_camera(center, size, local, camera), camera)
    assert (np.abs(quick - exact).max(1) < 0.1 * size).all()
    other = center + generator.normal(0, 0.1, (200, 2)) * size[:, None], size * 1.1, local
    exactly = project_face_box(*geometry.local_to_camera(*other, camera), camera)
    overlaps = [pairwise_iou(a, b).diagonal() for a, b in ((quick, distant_face_box(*other)), (exact, exactly))]
    assert np.abs(overlaps[0] - overlaps[1]).max() < 0.05
    far = np.array([[1e6, 0, 320], [0, 1e6, 240], [0, 0, 1]])
    exact = project_face_box(*geometry.local_to_camera(center, size, local, far), far)
    np.testing.assert_allclose(quick, exact, atol=0.01)


def test_faces_cannot_change_their_detector(astronaut: np.ndarray) -> None:
    camera = geometry.default_intrinsics(512, 512)
    (face,) = PoseDetector(intrinsics=camera)(astronaut)
    with pytest.raises(ValueError, match="read-only"):
        face.intrinsics *= 2  # type: ignore[misc]


def test_pil_images_are_checked_as_others(tmp_path: Path, astronaut: np.ndarray) -> None:
    with pytest.raises(ValueError, match="4x4 pixels: no face fits"):
        load_image(PIL.Image.new("RGB", (4, 4)))
    cv2.imwrite(str(tmp_path / "a.jpg"), astronaut)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"the PIL image cannot be read: .*truncated"):
        load_image(PIL.Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(ValueError, match="path of an image is empty"):
        load_image("")


def test_nms_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30.0]])
    assert non_maximum_suppression(boxes, np.array([0.5, 0.9, 0.3]), 0.4).tolist() == [1, 2]
    assert non_maximum_suppression(np.empty((0, 4)), np.empty(0), 0.4).tolist() == []


def test_poses_of_one_face_are_averaged_by_overlap_and_score() -> None:
    camera = geometry.default_intrinsics(640, 480)
    center = np.array([[200.0, 200], [202, 200], [260, 200], [500, 200]])
    yaws = np.array([10.0, 20, 40, -30])
    local = geometry.angles_to_matrix(np.stack([0 * yaws, yaws, 0 * yaws], 1))
    scores, size = np.array([0.8, 0.4, 0.3, 0.2]), np.array([40.0, 42, 40, 30])
    given = scores, center, size, local, np.ones(2), camera, 0.3
    alone, merged = make_faces(*given), make_faces(*given, merge_iou=0.6)
    assert [f.score for f in merged] == [f.score for f in alone] == [0.8, 0.3, 0.2]
    overlap = pairwise_iou(*np.split(distant_face_box(center, size, local)[:2], 2))[0, 0]
    share = 0.4 * overlap / (0.8 + 0.4 * overlap)
    assert merged[0].yaw == pytest.approx(10 + 10 * share, abs=0.05)
    seen = geometry.camera_to_local(merged[0].rotation, merged[0].translation, camera)
    np.testing.assert_allclose(seen[0], [200 + 2 * share, 200], atol=1e-9)
    assert seen[1] == pytest.approx(40 * 1.05**share)
    np.testing.assert_allclose(
        merged[0].box, project_face_box(merged[0].rotation, merged[0].translation, camera), atol=1e-9
    )
    for a, b in zip(alone[1:], merged[1:], strict=True):
        np.testing.assert_allclose(a.pose, b.pose, atol=1e-9)
        np.testing.assert_allclose(a.box, b.box, atol=1e-9)
    # Faces that are kept apart are not averaged with each other.
    apart = make_faces(*given[:6], 0.99, merge_iou=0.6)
    np.testing.assert_allclose([f.yaw for f in apart], yaws, atol=1e-9)


def test_one_detector_serves_many_threads(astronaut: np.ndarray) -> None:
    detector, results = PoseDetector(threads=1), []
    images = [astronaut, np.ascontiguousarray(astronaut[:, ::-1])] * 4
    jobs = [threading.Thread(target=lambda i=i: results.append((i, detector(images[i])[0].yaw))) for i in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    expected = [detector(image)[0].yaw for image in images[:2]]
    assert len(results) == 8
    assert all(yaw == pytest.approx(expected[i % 2], abs=1e-4) for i, yaw in results)


BAD_ARRAYS = {
    "float32": (np.zeros((64, 64, 3), np.float32), "uint8.*float32"),
    "NaN": (np.full((64, 64, 3), np.nan), "NaN"),
    "uint16": (np.zeros((64, 64, 3), np.uint16), "uint16"),
    "bool": (np.zeros((64, 64), bool), "bool"),
    "object": (np.array([[None]]), "object"),
    "empty": (np.zeros((0, 0, 3), np.uint8), "0x0"),
    "no width": (np.zeros((64, 0, 3), np.uint8), "0x64"),
    "1x1": (np.zeros((1, 1, 3), np.uint8), "1x1"),
    "2 channels": (np.zeros((64, 64, 2), np.uint8), r"\(64, 64, 2\)"),
    "5 channels": (np.zeros((64, 64, 5), np.uint8), r"\(64, 64, 5\)"),
    "batch": (np.zeros((1, 64, 64, 3), np.uint8), r"\(1, 64, 64, 3\)"),
    "1-D": (np.zeros(64, np.uint8), r"\(64,\)"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_named(name: str) -> None:
    image, message = BAD_ARRAYS[name]
    with pytest.raises(ValueError, match=message):
        detect_poses(image)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_truncated_files_are_named(astronaut: np.ndarray, tmp_path: Path, suffix: str, part: float) -> None:
    data = cv2.imencode(suffix, astronaut)[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match="cut"):
        detect_poses(path)
    assert_astronaut(detect_poses(data))


def test_what_follows_the_end_of_a_jpeg_does_not_matter(astronaut: np.ndarray) -> None:
    """Telephones append a film to a photograph; its bytes look like anything, markers included."""
    photograph = cv2.imencode(".jpg", astronaut)[1].tobytes()
    for film in (b"\xff\xd9 film \xff\xda\x00", np.random.default_rng(0).bytes(400_000) + b"\xff\xda"):
        assert_astronaut(detect_poses(photograph + film))
        with pytest.raises(ValueError, match="truncated"):
            detect_poses(photograph[: len(photograph) // 2])


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
def test_pil_images_of_more_than_8_bits_are_refused(kind: str, astronaut: np.ndarray) -> None:
    grey = cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]
    image = PIL.Image.fromarray(grey.astype(dtype) * 200)
    assert image.mode == kind
    with pytest.raises(ValueError, match=f"must be uint8.*{np.dtype(dtype).name}"):
        detect_poses(image)
    assert_astronaut(detect_poses(PIL.Image.fromarray(grey)))


def test_other_things_that_are_no_images(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("this is not a photograph")
    with pytest.raises(ValueError, match=r"text\.jpg"):
        detect_poses(text)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ValueError, match="empty"):
        detect_poses(empty)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        detect_poses(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="folder"):
        detect_poses(tmp_path)
    with pytest.raises(TypeError, match="int"):
        detect_poses(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"score_threshold": "0.5"}, "score_threshold"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"nms_iou": -0.1}, "nms_iou"),
        ({"input_size": 0}, "input_size"),
        ({"input_size": 3.5}, "input_size"),
        ({"threads": 0}, "threads"),
        ({"engine": "abacus"}, "abacus.*onnxruntime"),
        ({"engine": "onnxruntime:abacus"}, "onnxruntime:abacus is not available: unknown provider"),
        ({"intrinsics": "abc"}, "intrinsics"),
        ({"intrinsics": [[1, 2], [3]]}, "intrinsics"),
        ({"intrinsics": np.eye(2)}, "intrinsics"),
        ({"intrinsics": geometry.default_intrinsics(640, 480).T}, "intrinsics"),
        ({"intrinsics": 2 * geometry.default_intrinsics(640, 480)}, "intrinsics"),
        ({"intrinsics": np.diag([-1.0, 1, 1])}, "intrinsics"),
        ({"intrinsics": np.full((3, 3), np.nan)}, "intrinsics"),
    ],
)
def test_bad_options_are_named(options: dict, message: str, astronaut: np.ndarray) -> None:
    with pytest.raises(ValueError, match=message):
        detect_poses(astronaut, **options)


def test_options_are_judged_before_the_first_picture() -> None:
    for options in ({"threads": 0}, {"threads": 2.5}, {"engine": "onnxruntime:abacus"}):
        with pytest.raises(ValueError, match=r"threads must be an integer of at least 1|onnxruntime:abacus"):
            PoseDetector(**options)  # type: ignore[arg-type]


def test_a_detector_keeps_its_camera_and_can_be_sent_to_other_processes(astronaut: np.ndarray) -> None:
    camera = geometry.default_intrinsics(512, 512)
    detector = PoseDetector(intrinsics=camera, threads=1, score_threshold=0.4)
    before = detector(astronaut)[0]
    camera *= 2
    np.testing.assert_array_equal(detector(astronaut)[0].pose, before.pose)
    for other in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        np.testing.assert_array_equal(other(astronaut)[0].pose, before.pose)
        assert other.score_threshold == 0.4


def test_pil_images_are_turned_as_their_exif_says(astronaut: np.ndarray) -> None:
    picture = PIL.Image.fromarray(astronaut[..., ::-1]).rotate(90, expand=True)
    picture.getexif()[274] = 6  # taken on the side: to be turned clockwise
    np.testing.assert_array_equal(load_image(picture), astronaut)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_files_lie_as_pil_turns_them(kind: str, orientation: int, astronaut: np.ndarray) -> None:
    picture, file = PIL.Image.fromarray(astronaut[:60, :90, ::-1]), io.BytesIO()
    exif = PIL.Image.Exif()
    exif[271], exif[274] = "a maker", orientation
    picture.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    stored = PIL.Image.open(file)
    wanted = np.asarray(PIL.ImageOps.exif_transpose(stored))[..., ::-1]
    np.testing.assert_array_equal(load_image(file.getvalue()), wanted)
    np.testing.assert_array_equal(load_image(stored), wanted)
    np.testing.assert_array_equal(load_image(PIL.Image.open(file)), wanted)  # TIFFs are turned while they load


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage"])
def test_damaged_metadata_of_webp_turn_nothing(exif: bytes, astronaut: np.ndarray) -> None:
    file = io.BytesIO()
    PIL.Image.fromarray(astronaut[..., ::-1]).save(file, "WEBP", lossless=True, exif=exif)
    np.testing.assert_array_equal(load_image(file.getvalue()), astronaut)


def test_an_odd_tag_of_a_pil_image_is_not_written_again(astronaut: np.ndarray) -> None:
    entries = [(0x112, 3, 1, b"\x06\0\0\0"), (0x128, 7, 1, b"\x02\0\0\0")]  # an orientation; units of unknown type
    packed = b"".join(tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little") + value
                      for tag, kind, count, value in entries)  # fmt: skip
    file = io.BytesIO()
    turned = PIL.Image.fromarray(astronaut[..., ::-1]).rotate(90, expand=True)
    turned.save(file, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0" + packed + bytes(4))
    np.testing.assert_array_equal(load_image(PIL.Image.open(file)), astronaut)


@pytest.mark.parametrize("suffix", [".pfm", ".hdr"])
def test_floats_in_other_formats_are_refused(suffix: str, astronaut: np.ndarray) -> None:
    done, data = cv2.imencode(suffix, astronaut.astype(np.float32) / 255)
    assert done
    with pytest.raises(ValueError, match="must be uint8"):
        load_image(data.tobytes())


def test_floats_in_tiff_are_refused(astronaut: np.ndarray) -> None:
    stored = cv2.imencode(".tiff", astronaut.astype(np.float32))[1].tobytes()
    with pytest.raises(ValueError, match=r"must be uint8 .*, got float32"):
        load_image(stored)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1200, 900), (1067, 800)), ((1400, 1300), (862, 800)), ((4000, 3000), (1067, 800)), ((300, 900), (467, 1400))],
)
def test_official_checkpoints_see_the_size_of_the_original(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """The shorter side becomes 800 pixels, or the longer one 1,400 where that is less."""
    pixels, _ = letterbox(np.zeros((size[1], size[0], 3), np.uint8), 1400, 1, shortest=800)
    assert pixels.shape[1::-1] == wanted


def test_an_engine_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "img2pose_edge.engines.ov", raising=False)
    with pytest.raises(ImportError, match=r"img2pose-edge\[openvino\]"):
        PoseDetector(engine="openvino")(astronaut)


def copy_model(folder: Path) -> Path:
    model = find_model("edge-n")
    shutil.copy(model.path, folder / model.path.name)
    shutil.copy(model.path.with_suffix(".json"), folder)
    return folder / model.path.name


def test_models_by_path_and_what_may_be_wrong_with_them(tmp_path: Path, astronaut: np.ndarray) -> None:
    path = copy_model(tmp_path)
    manifest = path.with_suffix(".json")
    assert_astronaut(detect_poses(astronaut, model=path))
    with pytest.raises(FileNotFoundError, match=r"nothing.*edge-n"):
        PoseDetector("nothing")
    whole = manifest.read_text()
    manifest.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        PoseDetector(path)
    other = json.loads(whole)
    other["outputs"]["scores"][0] = "score_4"
    manifest.write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"names outputs score_4, which the model lacks: score_8"):
        PoseDetector(path)(astronaut)
    for change, message in (
        ({"thresholds": {"score": 7, "nms_iou": 0.5}}, "thresholds.score must be a number from 0 to 1, got 7"),
        ({"thresholds": {"score": float("nan"), "nms_iou": 0.5}}, "thresholds.score must be"),
        ({"thresholds": {"nms_iou": 0.5}}, "thresholds.score must be"),
        ({"thresholds": []}, "thresholds.score must be"),
        ({"input": {"size": 640, "multiple": 0}}, "input.multiple must be a whole number from 1"),
        ({"input": {"size": 640.5, "multiple": 32}}, r"input.size must be a whole number .* got 640\.5"),
        ({"input": {"size": 640, "multiple": 1}}, "input.multiple must be a multiple of the strides, got 1"),
        ({"strides": [8, 16]}, "there must be as many scores and poses as strides, 2"),
        ({"outputs": {"poses": [], "scores": []}}, "outputs must be scores, then poses"),
        ({"outputs": {"scores": 3, "poses": []}}, "outputs must be lists of names"),
        ({"strides": None}, "strides must be some positive whole numbers, got None"),
        ({"input": {"size": 640, "multiple": 32, "fixed": [480]}}, "input.fixed must be 2 positive whole numbers"),
        ({"score_gain": "big"}, "score_gain must be 0 to 100, got 'big'"),
        ({"score_gain": -0.2}, "score_gain must be 0 to 100, got -0.2"),
        (
            {"thresholds": {"score": 0.5, "nms_iou": 0.5, "merge_iou": -1}},
            "thresholds.merge_iou must be a number from 0",
        ),
        ({"support_gain": -1}, "support_gain must be 0 to 100, got -1"),
        ({"points68": [[1, 2]]}, "points68 must be 68 points"),
    ):
        manifest.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(ValueError, match=message):
            PoseDetector(path)
    manifest.write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="lacks file"):
        PoseDetector(path)
    manifest.write_text(whole)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="sha256"):
        PoseDetector(path)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="manifest"):
        PoseDetector(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"strides": [4, 8, 16]}, "instead of (1, 1, "),
        ({"poses": [2, 1, 0]}, "instead of (1, 9, "),
        ({"poses": [0, 0, 0]}, "outputs must have names of their own"),
        ({"strides": [True, 16, 32]}, "strides must be"),
        ({"fixed": [33, 33]}, "input.fixed must be multiples of input.multiple"),
    ],
)
def test_a_manifest_of_another_model_is_named(
    change: dict[str, Any], what: str, tmp_path: Path, astronaut: np.ndarray
) -> None:
    model = find_model("edge-n")
    manifest = copy.deepcopy(model.manifest)
    manifest["strides"] = change.get("strides", manifest["strides"])
    poses = manifest["outputs"]["poses"]
    manifest["outputs"]["poses"] = [poses[i] for i in change.get("poses", range(len(poses)))]
    manifest["input"] |= {"fixed": change["fixed"]} if "fixed" in change else {}
    shutil.copy(model.path, tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=re.escape(what)):
        PoseDetector(tmp_path / "m.onnx", threads=1)(astronaut)


def test_a_manifest_nested_without_end_is_named(tmp_path: Path) -> None:
    shutil.copy(find_model("edge-n").path, tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not valid JSON"):
        PoseDetector(tmp_path / "m.onnx")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_in_the_middle_of_a_picture_goes_on() -> None:
    code = """
import os, sys, threading, time
from skimage.data import astronaut
from img2pose_edge import PoseDetector
image = astronaut()[..., ::-1].copy()
detector = PoseDetector(threads=1)
detector(image)
threading.Thread(target=lambda: [detector(image) for _ in iter(int, 1)], daemon=True).start()
while not detector._lock.locked():
    pass
child = os.fork()
if not child:
    os._exit(10 + len(detector(image)))
until = time.monotonic() + 30
while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
    time.sleep(0.05)
if not done[0]:
    os.kill(child, 9)
print(os.waitstatus_to_exitcode(done[1]) if done[0] else None, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "11\n", done.stderr


def test_plain_numbers_are_the_faces_own(astronaut: np.ndarray) -> None:
    turned = cv2.warpAffine(astronaut, cv2.getRotationMatrix2D((224, 110), 20, 1), (512, 512))
    (face,) = detect_poses(turned)
    told = face.to_dict()
    np.testing.assert_allclose(told["rotation"], face.rotation, atol=1e-6)
    assert np.abs(face.rotation - face.local_rotation).max() > 1e-3, "or the two could not be told apart"
    np.testing.assert_allclose([told["pitch"], told["yaw"], told["roll"]], face.angles, atol=0.01)
    np.testing.assert_allclose(told["translation"], face.pose[3:], atol=1e-4)
    np.testing.assert_allclose(told["translation_mm"], face.pose[3:] * geometry.FACE_UNIT_MM, atol=0.1)
    np.testing.assert_allclose(told["pose"], face.pose, atol=1e-5)
    np.testing.assert_allclose(told["box"], face.box, atol=0.01)
    np.testing.assert_allclose(told["landmarks68"], face.landmarks68, atol=0.01)
    *_, line = table([face]).splitlines()
    numbers = [float(text) for text in re.findall(r"-?[\d.]+", line)]
    wanted = [face.score, *face.box, face.pitch, face.yaw, face.roll, *face.translation_mm]
    np.testing.assert_allclose(numbers, wanted, atol=0.51)
    x, y, z = (f"{v:.0f}" for v in face.translation_mm)
    assert f"translation_mm=({x}, {y}, {z})" in repr(face)
    assert f"pitch={face.pitch:.1f}, yaw={face.yaw:.1f}, roll={face.roll:.1f}" in repr(face)


def test_what_is_drawn(astronaut: np.ndarray) -> None:
    (face,) = detect_poses(astronaut)
    before = astronaut.copy()
    grey = np.full_like(astronaut, 127)

    def drawn(**options: Any) -> np.ndarray:
        return draw_faces(grey, [face], **{"mask": False, "boxes": False, "axes": False, **options})

    assert (draw_faces(astronaut, [face]) != astronaut).any()
    np.testing.assert_array_equal(astronaut, before)  # a copy is drawn into
    assert (drawn() == grey).all()
    assert (drawn(mask=True, opacity=0.0) == grey).all()
    assert (drawn(boxes=True) != drawn()).any()
    nose = load_reference().points5[2].astype(float)
    axes = drawn(axes=True)
    for axis, channel in (([1, 0, 0], 2), ([0, 1, 0], 1), ([0, 0, -1], 0)):  # red, green, blue of BGR
        middle = nose + 0.3 * np.array(axis, float)
        ((x, y),) = geometry.project(middle[None], face.rotation, face.translation, face.intrinsics).round().astype(int)
        pixel = axes[y, x].astype(int)
        if channel != 0:  # the blue one points at us: the others begin where it is
            assert pixel.argmax() == channel
            assert pixel[channel] - np.delete(pixel, channel).max() > 60
    # From the side the third axis lies in the picture, and points to where the face looks.
    aside = geometry.angles_to_matrix(np.array([0.0, -60, 0]))
    (turned,) = make_faces(
        np.ones(1), np.array([[256.0, 256]]), np.array([100.0]), aside[None], np.ones(2), face.intrinsics, 0.5
    )
    axes = draw_faces(grey, [turned], mask=False, boxes=False)
    tip = geometry.project((nose - [0, 0, 0.4])[None], turned.rotation, turned.translation, turned.intrinsics)[0]
    x, y = tip.round().astype(int)
    assert x > 256, "towards image-right"
    assert axes[y, x].argmax() == 0
    assert int(axes[y, x, 0]) - int(axes[y, x, 2]) > 60


def test_near_faces_are_drawn_over_far_ones(astronaut: np.ndarray) -> None:
    camera, grey = geometry.default_intrinsics(512, 512), np.full_like(astronaut, 127)
    local = np.eye(3)[None].repeat(2, 0)
    scores, centers, sizes = np.array([0.9, 0.8]), np.full((2, 2), 256.0), np.array([150.0, 60])
    near, far = make_faces(scores, centers, sizes, local, np.ones(2), camera, 1.0)
    assert near.translation[2] < far.translation[2]
    alone = draw_faces(grey, [near], boxes=False, axes=False, opacity=1.0)
    for faces in ([near, far], [far, near]):
        both = draw_faces(grey, faces, boxes=False, axes=False, opacity=1.0)
        np.testing.assert_array_equal(both[230:282, 230:282], alone[230:282, 230:282])


def test_faces_may_come_from_a_generator(astronaut: np.ndarray) -> None:
    faces = detect_poses(astronaut)
    np.testing.assert_array_equal(draw_faces(astronaut, (face for face in faces)), draw_faces(astronaut, faces))
    assert len(to_coco([("a", (512, 512), (face for face in faces))])["annotations"]) == 1


def test_import_is_light() -> None:
    code = (  # the thread's own time: numpy's BLAS threads spin for a while after they have been started
        "import sys, time, numpy, cv2; t = time.thread_time(); import img2pose_edge;"
        "print(time.thread_time() - t, 'torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert all(run[1:] == ["False", "False"] for run in runs)
    assert min(float(run[0]) for run in runs) < 0.150


def test_the_model_is_loaded_once_and_late(monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray) -> None:
    import img2pose_edge.detector as module

    loads = []
    real = module.load_engine
    monkeypatch.setattr(module, "load_engine", lambda *a: loads.append(a) or real(*a))
    module._shared_detector.cache_clear()
    detector = PoseDetector()
    assert loads == []
    for _ in range(3):
        detector(astronaut)
        detect_poses(astronaut)
    assert len(loads) == 2


def test_a_model_by_a_relative_path_is_found_from_elsewhere_and_read_again_once_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    path = copy_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    detector = PoseDetector(path.name)
    first = detect_poses(astronaut, model=path.name)
    monkeypatch.chdir("/")
    assert_astronaut(detector(astronaut))
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["thresholds"]["score"] = 0.999
    path.with_suffix(".json").write_text(json.dumps(manifest))
    os.utime(path, ns=(0, 0))
    monkeypatch.chdir(tmp_path)
    assert first
    assert not detect_poses(astronaut, model=path.name)


def test_openvino_does_not_compile_for_sizes_that_come_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    ov = pytest.importorskip("img2pose_edge.engines.ov")
    compiled = []
    real = ov.core().compile_model

    class Core:
        read_model = ov.core().read_model

        def compile_model(self, network: Any, *rest: Any) -> Any:
            compiled.append(network)
            return real(network, *rest)

    network = ov.Compiled(find_model("edge-n-int8-ov").path, 1, {})
    monkeypatch.setattr(ov, "core", Core)
    shapes = [(1, 64 + 32 * i, 64, 3) for i in range(9)]
    for _ in range(20):
        for shape in shapes:
            network.infer(np.zeros(shape, np.uint8))
    assert len(compiled) == ov.MOST, "five sizes and any"
    for _ in range(ov.IDLE + ov.OFTEN):
        network.infer(np.zeros((1, 96, 96, 3), np.uint8))
    assert len(compiled) == ov.MOST + 1, "a new one that comes often, once another has not come for long"


def test_first_calls_at_once_load_one_model(monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray) -> None:
    made = []

    class Slow(PoseDetector):
        def __init__(self, *given: Any, **options: Any) -> None:
            made.append(self)
            time.sleep(0.05)
            super().__init__(*given, **options)

    monkeypatch.setattr("img2pose_edge.detector.PoseDetector", Slow)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: len(detect_poses(astronaut, threads=3)), range(4)))
    assert found == [1, 1, 1, 1]
    assert len(made) == 1


def test_a_box_far_to_the_right_is_drawn_there() -> None:
    picture = np.zeros((60, 33000, 3), np.uint8)
    camera = np.array([[100.0, 0, 32500], [0, 100, 30], [0, 0, 1]])
    rotation, translation = np.eye(3), np.array([0, 0, 4.0])
    box = project_face_box(rotation, translation, camera)
    face = Face(0.9, box, np.array([0, 0, 0, *translation]), rotation, rotation, np.zeros(3), camera)
    drawn = np.flatnonzero(draw_faces(picture, [face], mask=False).any((0, 2)))
    assert box[0] - 5 < drawn.min() < drawn.max() < box[2] + 25


def test_damaged_metadata_turn_nothing(astronaut: np.ndarray) -> None:
    encoded = cv2.imencode(".png", astronaut)[1].tobytes()
    chunk = b"eXIf" + b"garbage"
    damaged = encoded[:33] + (7).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + encoded[33:]
    np.testing.assert_array_equal(load_image(PIL.Image.open(io.BytesIO(damaged))), astronaut)
    written = io.BytesIO()
    PIL.Image.fromarray(astronaut).save(written, "PNG")
    broken = bytearray(written.getvalue())
    second = broken.index(b"IDAT", broken.index(b"IDAT") + 4)
    broken[second : second + 4] = bytes(4)
    with pytest.raises(ValueError, match="the PIL image cannot be read"):
        load_image(PIL.Image.open(io.BytesIO(broken)))


def test_long_texts_are_no_paths() -> None:
    with pytest.raises(FileNotFoundError, match=r"no image data:x+…$") as raised:
        load_image("data:" + "x" * 5000)
    assert len(str(raised.value)) < 400
    with pytest.raises(FileNotFoundError, match="neither a file nor a bundled model") as raised:
        PoseDetector("x" * 5000)
    assert len(str(raised.value)) < 600


def test_threads_are_whole_numbers_of_any_kind(astronaut: np.ndarray) -> None:
    assert type(PoseDetector(threads=np.int64(1)).threads) is int  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads must be an integer"):
        PoseDetector(threads=True)
