"""The fast path of videos: crops see what the whole frame shows, and nothing stays unseen for long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from img2pose_edge.benchmarks.scenes import scene

from img2pose_edge import Face, PoseDetector, PoseTracker, geometry
from img2pose_edge.cli import main
from img2pose_edge.fast import CELL, ENOUGH, SIZES, WORTHWHILE, FastDetector, choose_window
from img2pose_edge.preprocess import letterbox, letterbox_factor
from img2pose_edge.record import record
from img2pose_edge.video import Source

FRAME = 1 / 30


@pytest.fixture(scope="module")
def detector() -> PoseDetector:
    return PoseDetector(threads=1)


@pytest.fixture(scope="module")
def portrait(astronaut: np.ndarray) -> np.ndarray:
    """(480, 640, 3): a face of 80 pixels on grey."""
    picture = np.full((480, 640, 3), 127, np.uint8)
    picture[140:360, 110:330] = astronaut[10:230, 115:335]
    return picture


class Spy:
    """Notes the shapes that a detector's network sees."""

    def __init__(self, detector: PoseDetector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        engine = detector._network
        run = engine.run

        def noting(image: np.ndarray) -> list[np.ndarray]:
            self.shapes.append(image.shape[1:3])
            return run(image)

        monkeypatch.setattr(engine, "run", noting)


def apart(a: Face, b: Face) -> float:
    """Degrees."""
    return float(np.degrees(geometry.geodesic_distance(a.rotation, b.rotation)))


def test_windows_hold_the_faces_and_have_the_networks_sizes() -> None:
    rng = np.random.default_rng(0)
    kinds = {"same": 0, "shrunk": 0, "none": 0}
    for _ in range(400):
        height, width = rng.integers(200, 1300, 2).tolist()
        whole = letterbox_factor(height, width, 640)
        side = rng.uniform(12, 0.5 * min(height, width))
        x, y = rng.uniform(-side / 4, (width - side, height - side))
        boxes = np.array([[x, y, x + side, y + side * 1.2]])
        if rng.random() < 0.3:
            second = rng.uniform(0, (width - side, height - side))
            boxes = np.concatenate([boxes, np.tile(second, 2)[None] + [0, 0, side, side * 1.2]])
        area = height * width * whole**2
        window = choose_window(boxes, (height, width), whole, area)
        if window is None:
            kinds["none"] += 1
            continue
        kinds["same" if window.same else "shrunk"] += 1
        cut = window.cut(np.zeros((height, width, 3), np.uint8))
        pixels, scale = letterbox(cut, window.longest, 32)
        assert pixels.shape[:2] in SIZES
        assert pixels.shape[0] * pixels.shape[1] <= WORTHWHILE * area
        assert all(window.holds(np.clip(box, 0, [width, height] * 2), (height, width)) for box in boxes)
        if window.same:
            np.testing.assert_allclose(scale, whole, rtol=0.01)
            cells = np.array([window.x, window.y]) * whole / CELL
            np.testing.assert_allclose(cells, np.rint(cells), atol=0.5 * whole / CELL + 1e-9)
        else:
            assert scale.max() <= whole * 1.01
            assert scale.min() * side * np.sqrt(1.2) >= 0.99 * min(ENOUGH, whole * side * np.sqrt(1.2))
    assert min(kinds.values()) > 20, kinds


def test_a_crop_gives_the_whole_frames_pose(
    detector: PoseDetector, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = np.array([[900.0, 0, 250], [0, 880, 300], [0, 0, 1]])
    (true,) = detector.detect(portrait, intrinsics=camera)
    spy = Spy(detector, monkeypatch)
    fast = FastDetector(detector, 10)
    for k in range(10):
        (face,) = fast.detect(portrait, k * FRAME, intrinsics=camera)
        assert fast.whole == (k == 0)
        np.testing.assert_array_equal(face.intrinsics, camera)
        assert apart(face, true) < 1.5
        np.testing.assert_allclose(face.translation, true.translation, rtol=0.03, atol=0.03)
        np.testing.assert_allclose(face.box, true.box, atol=3)
        # Every part tells of the same pose, in the whole frame's camera.
        np.testing.assert_allclose(geometry.decompose_pose(face.pose)[0], face.rotation, atol=1e-9)
        local = geometry.camera_to_local(face.rotation, face.translation, camera)[2]
        np.testing.assert_allclose(local, face.local_rotation, atol=1e-9)
    assert spy.shapes[0] == (480, 640)
    assert set(spy.shapes[1:]) <= set(SIZES)


def test_the_detectors_own_camera_counts(portrait: np.ndarray) -> None:
    camera = np.array([[900.0, 0, 250], [0, 900, 300], [0, 0, 1]])
    fast = FastDetector(PoseDetector(threads=1, intrinsics=camera), 5)
    first, second = (fast.detect(portrait, k * FRAME)[0] for k in range(2))
    assert not fast.whole
    assert first.intrinsics is not None
    np.testing.assert_array_equal(second.intrinsics, camera)
    np.testing.assert_allclose(second.translation, first.translation, rtol=0.03, atol=0.03)


def test_large_faces_are_shrunk_and_do_not_jump(
    detector: PoseDetector, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = cv2.resize(astronaut[20:260, 80:400], (640, 480), interpolation=cv2.INTER_CUBIC)
    (true,) = detector.detect(close)
    spy = Spy(detector, monkeypatch)
    fast = FastDetector(detector, 4)
    faces = [fast.detect(close, k * FRAME)[0] for k in range(9)]
    assert spy.shapes.count((480, 640)) == 3
    assert len(spy.shapes) == 9 + 2, "beside the second and third whole frame, a crop for the pose"
    assert all(apart(face, true) < 8 for face in faces)
    assert max(apart(face, faces[1]) for face in faces[1:]) < 1


def test_a_lost_face_is_looked_for_at_once(detector: PoseDetector, portrait: np.ndarray) -> None:
    moved = np.roll(portrait, 280, axis=1)
    fast = FastDetector(detector, 100)
    assert len(fast.detect(portrait, 0.0)) == 1
    assert len(fast.detect(portrait, FRAME)) == 1
    assert not fast.whole
    (face,) = fast.detect(moved, 2 * FRAME)
    assert fast.whole
    assert np.abs(face.box - detector.detect(moved)[0].box).max() < 1e-9
    # One that is gone costs one whole frame more, then there is nothing to make a crop around.
    grey = np.full_like(portrait, 127)
    for k in range(3, 6):
        assert fast.detect(grey, k * FRAME) == []
        assert fast.whole
    assert len(fast.detect(portrait, 6 * FRAME)) == 1


def test_a_new_face_is_found_within_k_frames(detector: PoseDetector, portrait: np.ndarray) -> None:
    two = portrait.copy()
    two[:, 400:620] = portrait[:, 110:330]
    fast = FastDetector(detector, 6)
    counts = [len(fast.detect(portrait if k < 2 else two, k * FRAME)) for k in range(8)]
    assert counts == [1, 1, 1, 1, 1, 1, 2, 2]


def test_half_a_face_at_the_crops_border_is_left_out(detector: PoseDetector, portrait: np.ndarray) -> None:
    fast = FastDetector(detector, 100)
    fast.detect(portrait, 0.0)
    window = choose_window(detector.detect(portrait)[0].box[None], (480, 640), 1.0, 480 * 640)
    assert window
    two = portrait.copy()
    end = window.x + window.width
    box = detector.detect(portrait)[0].box
    start = round(end - (box[2] - box[0]) * 0.8) - (round(box[0]) - 110)  # a fifth of it is beyond the border
    two[:, start : start + 220] = np.where(
        np.arange(220)[:, None] > 40, portrait[:, 110:330], two[:, start : start + 220]
    )
    part = window.cut(two)
    assert len(detector.detect(part, input_size=window.longest)) == 2, "the network does see it"
    assert len(fast.detect(two, FRAME)) == 1
    assert not fast.whole


def test_many_faces_are_looked_at_whole(detector: PoseDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(detector, monkeypatch)
    fast = FastDetector(detector, 10)
    for k in range(3):
        assert len(fast.detect(scene(10), k * FRAME)) == 10
    assert spy.shapes == [(480, 640)] * 3


def test_another_size_of_frame_begins_anew(detector: PoseDetector, portrait: np.ndarray) -> None:
    fast = FastDetector(detector, 10)
    fast.detect(portrait, 1.0)
    fast.detect(portrait, 1.1)
    assert not fast.whole
    assert len(fast.detect(portrait[:400], 0.0)) == 1
    assert fast.whole
    fast.reset()
    fast.detect(portrait[:400], 0.0)
    assert fast.whole


@pytest.mark.parametrize("every", [1, -3, 2.5, True, "4", None])
def test_wrong_numbers_are_told(detector: PoseDetector, every: Any) -> None:
    with pytest.raises(ValueError, match=r"fast must be an integer of at least 2 frames \(or 0: off\), got"):
        FastDetector(detector, every)


def test_models_of_one_size_are_refused() -> None:
    fixed = PoseDetector("edge-n-int8-640x480", engine="tflite")
    with pytest.raises(ValueError, match=r"edge-n-int8-640x480\.tflite takes images of one size only"):
        FastDetector(fixed, 5)


def test_time_must_advance(detector: PoseDetector, portrait: np.ndarray) -> None:
    fast = FastDetector(detector, 5)
    fast.detect(portrait, 1.0)
    with pytest.raises(ValueError, match=r"1\.0 s"):
        fast.detect(portrait, 0.5)


def test_streams_and_the_command_take_it(
    detector: PoseDetector,
    portrait: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(7):
        cv2.imwrite(str(folder / f"{number}.png"), np.roll(portrait, 5 * number, axis=1))
    spy = Spy(detector, monkeypatch)
    assert [len(faces) for _, faces in detector.stream(folder, fast=3)] == [1] * 7
    assert spy.shapes.count((480, 640)) == 3
    spy.shapes.clear()
    done = record(Source(folder), detector, fast=3, tracker=PoseTracker(), rows=[tmp_path / "rows.csv"])
    assert (done.frames, done.faces) == (7, 7)
    assert spy.shapes.count((480, 640)) == 3
    table = ["video", str(folder), "--csv", str(tmp_path / "faces.csv"), "--threads", "1"]
    assert main([*table, "--fast", "3"]) == 0
    assert "7 frames, 7 faces" in capsys.readouterr().out
    assert main([*table, "--fast", "1"]) == 1
    assert "fast must be an integer of at least 2 frames" in capsys.readouterr().err
    with pytest.raises(ValueError, match="fast must be"):
        next(detector.stream(folder, fast=-1))


def test_openvino_compiles_for_sizes_that_come_often() -> None:
    pytest.importorskip("openvino")
    from img2pose_edge.engines.ov import MOST, OFTEN

    detector = PoseDetector(engine="openvino", threads=1)
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (1, 160, 160, 3), dtype=np.uint8)
    detector.run_network(np.zeros((1, 320, 320, 3), np.uint8))
    network: Any = detector._network
    first = [output.copy() for output in detector.run_network(small)]
    for _ in range(OFTEN):
        again = detector.run_network(small)
    assert list(network._network._requests) == [(1, 320, 320, 3), None, (1, 160, 160, 3)]
    for before, after in zip(first, again, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-3)
    for side in range(64, 64 + 32 * MOST, 32):
        for _ in range(OFTEN + 1):
            detector.run_network(np.zeros((1, side, side, 3), np.uint8))
    assert len(network._network._requests) == MOST
