"""Where poses go: supervision, COCO, tables, graphics, calibrated cameras, the network."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from img2pose_edge.pose_references import load_reference, project_face_box
from scipy.spatial.transform import Rotation

from img2pose_edge import (
    Calibration,
    Face,
    Faces,
    OpenTrackSender,
    OscSender,
    PoseTracker,
    align_face,
    detect_poses,
    geometry,
    looking_at_camera,
    read_calibration,
    senders,
    to_supervision,
    undistort_face,
)
from img2pose_edge.calibration import _warn_once, undistort_points
from img2pose_edge.coco import to_coco, write_coco
from img2pose_edge.draw import draw_faces
from img2pose_edge.look import look
from img2pose_edge.matrices import column_major, model_view, projection
from img2pose_edge.rows import COLUMNS, RowWriter, face_row, read_rows
from img2pose_edge.senders import find_host, opentrack_pose, parse_address
from img2pose_edge.tracking import PATIENCE

K = geometry.default_intrinsics(640, 480)


def make_face(
    angles: tuple[float, float, float],
    center: tuple[float, float] = (320, 240),
    size: float = 60,
    intrinsics: np.ndarray = K,
    score: float = 0.9,
) -> Face:
    local = geometry.angles_to_matrix(np.array(angles, float))
    rotation, translation = geometry.local_to_camera(np.array(center, float), np.array(size), local, intrinsics)
    return posed(rotation, translation, intrinsics, score)


def posed(rotation: np.ndarray, translation: np.ndarray, intrinsics: np.ndarray = K, score: float = 0.9) -> Face:
    local = geometry.camera_to_local(rotation, translation, intrinsics)[2]
    box = project_face_box(rotation, translation, intrinsics)
    pose = geometry.compose_pose(rotation, translation)
    return Face(score, box, pose, rotation, local, geometry.matrix_to_angles(local), intrinsics)


FACES = Faces(
    [make_face((5, -20, 10), (200, 150)), make_face((-10, 40, -5), (450, 300), 80, score=0.7), make_face((0, 0, 0))]
)
cameras = st.builds(
    lambda angles, center, size: make_face(angles, center, size),
    st.tuples(st.floats(-80, 80), st.floats(-80, 80), st.floats(-170, 170)),
    st.tuples(st.floats(0, 640), st.floats(0, 480)),
    st.floats(5, 200),
)


# --- looking at the camera ---


@pytest.mark.parametrize("center", [(320, 240), (40, 400), (639, 5)])
def test_looking_at_the_camera_is_told_wherever_the_face_is(center: tuple[float, float]) -> None:
    assert looking_at_camera(make_face((0, 0, 0), center)) == pytest.approx(0, abs=1e-6)
    assert looking_at_camera(make_face((0, 0, 70), center)) == pytest.approx(0, abs=1e-6), "roll looks nowhere else"
    assert looking_at_camera(make_face((0, -30, 0), center)) == pytest.approx(30)
    assert looking_at_camera(make_face((25, 0, 40), center)) == pytest.approx(25)
    assert looking_at_camera(make_face((0, 90, 0), center)) == pytest.approx(90)
    back = geometry.angles_to_matrix(np.array([0, 0, 0.0])) @ np.diag([-1.0, 1, -1])
    rotation, translation = geometry.local_to_camera(np.array(center, float), np.array(50.0), back, K)
    assert looking_at_camera(posed(rotation, translation)) == pytest.approx(180)


@given(cameras)
@settings(deadline=None, max_examples=50)
def test_looking_at_the_camera_is_the_angle_of_normal_and_ray(face: Face) -> None:
    normal, ray = -face.rotation[:, 2], -face.translation
    cosine = normal @ ray / np.linalg.norm(ray)
    assert looking_at_camera(face) == pytest.approx(np.degrees(np.arccos(np.clip(cosine, -1, 1))), abs=1e-4)


# --- supervision ---


def test_supervision_gets_every_face() -> None:
    supervision = pytest.importorskip("supervision")
    found = FACES.to_supervision(ids=[4, 7, 9])
    assert isinstance(found, supervision.Detections)
    np.testing.assert_allclose(found.xyxy, [f.box for f in FACES])
    np.testing.assert_allclose(found.confidence, [0.9, 0.7, 0.9])
    assert found.tracker_id.tolist() == [4, 7, 9]
    sure = found[found.confidence > 0.8]
    assert [FACES[i] for i in sure.data["index"]] == [FACES[0], FACES[2]]
    np.testing.assert_allclose(sure.data["pose"], [FACES[0].pose, FACES[2].pose])
    np.testing.assert_allclose(sure.data["angles"][0], FACES[0].angles)
    assert to_supervision(list(FACES)).tracker_id is None
    with pytest.raises(ValueError, match="3 faces need as many ids, got 2"):
        to_supervision(FACES, [1, 2])


def test_tracked_faces_are_told_from_faces(astronaut: np.ndarray, tmp_path: Path) -> None:
    tracked = PoseTracker().update(FACES[:1], 0.0)
    tables = tmp_path / "faces.csv"
    calls: list[Callable[[Any], Any]] = [
        to_supervision,
        lambda faces: draw_faces(astronaut, faces),
        lambda faces: align_face(astronaut, faces[0]),
        lambda faces: looking_at_camera(faces[0]),
        lambda faces: model_view(faces[0]),
        lambda faces: to_coco([("a", (512, 512), faces)]),
        lambda faces: RowWriter(tables).write(faces),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"number 0 is TrackedFace.*: give the face of each tracked one"):
            call(tracked)


def test_supervision_draws_faces_of_a_photograph(astronaut: np.ndarray) -> None:
    supervision = pytest.importorskip("supervision")
    faces = detect_poses(astronaut)
    drawn = supervision.BoxAnnotator().annotate(astronaut.copy(), faces.to_supervision())
    drawn = supervision.LabelAnnotator().annotate(drawn, faces.to_supervision())
    changed = np.argwhere((drawn != astronaut).any(2))
    assert abs(changed[:, 1].min() - faces[0].box[0]) < 4
    assert abs(changed[:, 0].max() - faces[0].box[3]) < 4
    assert len(faces[:1].to_supervision()) == 1
    empty = Faces().to_supervision(ids=[])
    assert len(empty) == 0
    assert empty.data["pose"].shape == (0, 6)
    np.testing.assert_array_equal(supervision.BoxAnnotator().annotate(astronaut.copy(), empty), astronaut)
    # Results of several tiles or models, one of them empty, go together.
    assert len(supervision.Detections.merge([empty, faces.to_supervision([3])])) == 1


def test_trackers_keep_faces_apart() -> None:
    # In no extra: it depends on opencv-python, which writes over the files of our opencv-python-headless and needs
    # libGL. `pip install --no-deps trackers` beside the extra dev is enough for this test (2.6.1).
    trackers = pytest.importorskip("trackers")
    tracker = trackers.ByteTrackTracker(minimum_consecutive_frames=1)
    seen = []
    for step in range(12):
        faces = [make_face((0, step, 0), (100 + 4 * step, 200)), make_face((0, 0, 0), (500 - 4 * step, 200))]
        if step % 2:
            faces.reverse()
        tracked = tracker.update(to_supervision(faces))
        ids = {int(i): faces[k] for i, k in zip(tracked.tracker_id, tracked.data["index"], strict=True) if i >= 0}
        seen.append({i: face.box[0] for i, face in ids.items()})
        for i, face in ids.items():
            np.testing.assert_allclose(tracked.data["pose"][tracked.tracker_id == i][0], face.pose)
    first = seen[-1].keys()
    assert len(first) == 2
    for i in first:
        steps = np.diff([s[i] for s in seen if i in s])
        assert len(steps) > 8
        assert (steps > 0).all() or (steps < 0).all(), "one id, one way"


# --- COCO ---


def test_coco_holds_boxes_points_and_poses(tmp_path: Path) -> None:
    outside, beyond_it = make_face((0, 0, 0), (5, 240)), make_face((0, 0, 0), (-900, 240))
    path = tmp_path / "new" / "faces.json"
    write_coco(
        path, [("a.jpg", (640, 480), FACES), ("empty.jpg", (64, 48), []), ("b.jpg", (640, 480), [beyond_it, outside])]
    )
    data = json.loads(path.read_text())
    assert [(i["id"], i["file_name"], i["width"]) for i in data["images"]] == [
        (1, "a.jpg", 640),
        (2, "empty.jpg", 64),
        (3, "b.jpg", 640),
    ]
    assert [(a["id"], a["image_id"]) for a in data["annotations"]] == [(1, 1), (2, 1), (3, 1), (4, 3)]
    first = data["annotations"][0]
    left, top, right, bottom = FACES[0].box
    assert first["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.02)
    assert first["area"] == pytest.approx((right - left) * (bottom - top), rel=1e-3)
    points = np.reshape(first["keypoints"], (68, 3))
    np.testing.assert_allclose(points[:, :2], FACES[0].landmarks68, atol=0.01)
    assert (points[:, 2] == 2).all()
    assert first["attributes"]["yaw"] == pytest.approx(-20)
    np.testing.assert_allclose(first["attributes"]["rotation_vector"], FACES[0].pose[:3], atol=1e-5)
    cut = data["annotations"][3]
    assert cut["bbox"][0] == 0
    assert cut["bbox"][2] == pytest.approx(outside.box[2], abs=0.02)
    beyond = np.reshape(cut["keypoints"], (68, 3))
    np.testing.assert_array_equal(beyond[:, 2] == 1, beyond[:, 0] < 0)
    assert (beyond[:, 0] < 0).any()


def test_coco_names_the_ibug_points() -> None:
    (category,) = to_coco([])["categories"]
    names = category["keypoints"]
    assert len(names) == len(set(names)) == 68
    # The person's right is image-left on a frontal face, in the reference too.
    points = load_reference().points68
    for i, name in enumerate(names):
        if "right_eye" in name or "right_brow" in name:
            assert points[i, 0] < 0, name
        if "left_eye" in name or "left_brow" in name:
            assert points[i, 0] > 0, name
    parts = {i for bone in category["skeleton"] for i in bone}
    assert parts == set(range(1, 69))
    assert [42, 37] in category["skeleton"], "the eye closes"
    assert [17, 18] not in category["skeleton"], "the jaw does not go on in the brow"


def test_supervision_reads_the_coco_file(astronaut: np.ndarray, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "astronaut.png"), astronaut)
    faces = detect_poses(astronaut)
    write_coco(tmp_path / "faces.json", [("astronaut.png", (512, 512), faces)])
    data = supervision.DetectionDataset.from_coco(str(tmp_path / "images"), str(tmp_path / "faces.json"))
    assert data.classes == ["face"]
    ((_, image, annotations),) = list(data)
    assert image.shape == (512, 512, 3)
    np.testing.assert_allclose(annotations.xyxy, [faces[0].box], atol=0.05)


# --- tables ---


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_come_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"faces{suffix}"
    with RowWriter(path) as out:
        out.write(FACES, image='a "nice", picture, näher.jpg', ids=[0, None, 12])
        out.write([], frame=1, time=0.04)
        out.write(FACES[:1], frame=2, time=0.08, ids=[3])
    rows = read_rows(path)
    assert [tuple(r) for r in rows] == [COLUMNS] * 4
    assert [r["id"] for r in rows] == [0, None, 12, 3]
    assert rows[0]["image"] == 'a "nice", picture, näher.jpg'
    assert rows[3] == {**face_row(FACES[0]), "frame": 2, "time": 0.08, "id": 3}
    assert isinstance(rows[3]["frame"], int)
    for row, face in zip(rows, FACES, strict=False):
        assert row["score"] == face.score
        np.testing.assert_allclose([row[k] for k in ("x1", "y1", "x2", "y2")], face.box, atol=0.01)
        np.testing.assert_allclose([row[k] for k in ("pitch", "yaw", "roll")], face.angles, atol=1e-3)
        np.testing.assert_allclose([row[k] for k in ("rx", "ry", "rz")], face.pose[:3], atol=1e-5)
        np.testing.assert_allclose([row[k] for k in ("x_mm", "y_mm", "z_mm")], face.translation_mm, atol=0.01)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_cut_anywhere_holds_its_complete_rows(suffix: str, tmp_path: Path) -> None:
    path, cut = tmp_path / f"faces{suffix}", tmp_path / f"cut{suffix}"
    with RowWriter(path) as out:
        out.write(FACES[:2], image="a,b.jpg", time=1.5)
    data, rows = path.read_bytes(), read_rows(path)
    header = suffix == ".csv"
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        complete = max(0, data[:length].count(b"\n") - header)
        assert read_rows(cut) == rows[:complete], length


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_survive_a_killed_program(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"faces{suffix}"
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_uses import FACES
from img2pose_edge.rows import RowWriter
out = RowWriter({str(path)!r})
for frame in range(5):
    out.write(FACES, frame=frame)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert [r["frame"] for r in read_rows(path)] == [i for i in range(5) for _ in FACES]
    assert path.read_bytes().endswith(b"\n")


def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "faces.csv"
    with RowWriter(path) as out:
        out.write(FACES, image="a.jpg")
    rows = read_rows(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_rows(path) == rows


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_numbers_of_numpy_are_numbers(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"faces{suffix}"
    with RowWriter(path) as out:
        out.write(FACES[:1], frame=np.int64(3), time=np.float32(0.5), ids=np.array([0]))
        out.write(FACES, ids=np.arange(len(FACES)))
    rows = read_rows(path)
    assert [row["id"] for row in rows] == [0, *range(len(FACES))]
    assert (rows[0]["frame"], rows[0]["time"]) == (3, 0.5)


def test_wrong_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.csv or \.jsonl, got .*faces\.xls"):
        RowWriter(tmp_path / "faces.xls")
    with RowWriter(tmp_path / "alone.csv") as out:
        out.write(FACES)
        with pytest.raises(OSError, match="another program is writing it"):
            RowWriter(tmp_path / "alone.csv")
        out.write(FACES)
    assert len(read_rows(tmp_path / "alone.csv")) == 2 * len(FACES)
    with pytest.raises(TypeError, match="float"):
        face_row(FACES[0], frame=1.7)  # type: ignore[arg-type]
    assert json.dumps(dataclasses.replace(FACES[0], score=np.float32(0.5)).to_dict())
    with pytest.raises(ValueError, match=r"ends in \.csv or \.jsonl"):
        read_rows(tmp_path / "faces.txt")
    with RowWriter(tmp_path / "faces.csv") as out:
        with pytest.raises(ValueError, match="3 faces need as many ids, got 1"):
            out.write(FACES, ids=[1])
        with pytest.raises(ValueError, match="must be one line"):
            out.write(FACES, image="a\nb.jpg")
    other = tmp_path / "other.csv"
    other.write_text("name,age\nx,3\n")
    with pytest.raises(ValueError, match="no table of faces: its columns are name,age"):
        read_rows(other)
    other.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"other\.csv is no table of faces: it is not UTF-8"):
        read_rows(other)
    (tmp_path / "list.jsonl").write_text(json.dumps(COLUMNS) + "\n")
    with pytest.raises(ValueError, match="line 1 is no row"):
        read_rows(tmp_path / "list.jsonl")
    with RowWriter(tmp_path / "bad.csv") as out:
        out.write(FACES[:1])
    text = (tmp_path / "bad.csv").read_text()
    (tmp_path / "bad.csv").write_text(text + "a,b\n")
    with pytest.raises(ValueError, match="line 3 is no row"):
        read_rows(tmp_path / "bad.csv")
    for line in ("a\rb,c", "x" * 200_000):
        (tmp_path / "bad.csv").write_text(text + line + "\n")
        with pytest.raises(ValueError, match="line 3 is no row"):
            read_rows(tmp_path / "bad.csv")
    for line in ('{"image": 3}', "[1, 2]", "{", "3", "[" * 100_000):
        (tmp_path / "bad.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match="line 1 is no row"):
            read_rows(tmp_path / "bad.jsonl")


# --- graphics ---


@given(cameras, st.sampled_from([("mm", geometry.FACE_UNIT_MM), ("face", 1.0)]), st.floats(-3, 3))
@settings(deadline=None, max_examples=40)
def test_every_convention_projects_to_the_same_pixels(face: Face, unit: tuple[str, float], skew: float) -> None:
    camera = np.array([[900.0, skew, 300], [0, 870, 260], [0, 0, 1]])
    face = posed(face.rotation, face.translation, camera)
    points = load_reference().points68.astype(float)
    expected = geometry.project(points, face.rotation, face.translation, camera)
    name, scale = unit
    points = np.column_stack([points * scale, np.ones(68)])

    in_camera = points @ model_view(face, "opencv", name).T
    assert (in_camera[:, 2] > 0).all()
    pixels = in_camera[:, :3] @ camera.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], expected, atol=1e-6)

    near, far = 0.1 * scale, 500 * scale
    y_up = points * [1, -1, -1, 1]
    view, lens = model_view(face, "opengl", name), projection(camera, 640, 480, near, far)
    assert ((y_up @ view.T)[:, 2] < 0).all(), "OpenGL's camera looks along -z"
    # three.js: matrices from arrays, columns first; clip space, viewport with y down.
    read = [np.reshape(column_major(m), (4, 4), order="F") for m in (lens, view)]
    clip = y_up @ (read[0] @ read[1]).T
    device = clip[:, :3] / clip[:, 3:]
    np.testing.assert_allclose((device[:, :2] * [1, -1] + 1) / 2 * [640, 480], expected, atol=1e-6)
    assert (abs(device[:, 2]) < 1).all()


def test_near_and_far_are_the_ends_of_clip_space() -> None:
    ends = np.array([[0, 0, -2, 1], [0, 0, -50, 1]]) @ projection(K, 640, 480, 2, 50).T
    np.testing.assert_allclose(ends[:, 2] / ends[:, 3], [-1, 1])


def test_a_frontal_face_stands_upright_in_front_of_either_camera() -> None:
    face = make_face((0, 0, 0), size=56)
    distance = 1120 / 56 * geometry.FACE_UNIT_MM
    for frame, sign in (("opencv", 1), ("opengl", -1)):
        expected = np.eye(4)
        expected[2, 3] = sign * distance
        np.testing.assert_allclose(model_view(face, frame), expected, atol=1e-9)
    assert column_major(model_view(face, "opengl"))[12:] == pytest.approx([0, 0, -distance, 1])


def test_wrong_matrices_are_named() -> None:
    with pytest.raises(ValueError, match=r"frame must be opencv or opengl \(three.js: opengl\), got 'unity'"):
        model_view(FACES[0], "unity")
    with pytest.raises(ValueError, match="unit must be mm or face, got 'inch'"):
        model_view(FACES[0], unit="inch")
    for near, far in ((0, 1), (2, 1), (1, np.inf)):
        with pytest.raises(ValueError, match="near and far must be depths"):
            projection(K, 640, 480, near, far)
    with pytest.raises(ValueError, match="must be positive, got 0 and 480"):
        projection(K, 0, 480, 1, 2)
    with pytest.raises(ValueError, match="must be positive, got inf"):
        projection(K, np.inf, 480, 1, 2)
    with pytest.raises(ValueError, match="3x3 camera matrix"):
        projection(np.eye(4), 640, 480, 1, 2)


# --- calibrated cameras ---

CAMERA = np.array([[700.0, 0, 655], [0, 705, 350], [0, 0, 1]])
LENS = np.array([-0.28, 0.09, 0.0008, -0.0012, -0.01])
CALIBRATION = Calibration(CAMERA, 1280, 720, LENS)


def seen_through(calibration: Calibration, rotation: np.ndarray, translation: np.ndarray) -> Face:
    """What a detector that knows nothing of the lens would find: the pose whose plain projection fits best, told in
    img2pose's camera for images of this size."""
    points = load_reference().points68.astype(float)
    rotvec = geometry.matrix_to_rotvec(rotation)
    camera, lens = calibration.intrinsics, calibration.distortion
    pixels = cv2.projectPoints(points, rotvec, translation, camera, lens)[0][:, 0]
    apparent = geometry.solve_pnp(points, pixels, camera)
    local = geometry.camera_to_local(*geometry.decompose_pose(apparent), camera)
    default = geometry.default_intrinsics(calibration.width, calibration.height)
    return posed(*geometry.local_to_camera(*local, default), default)


@pytest.mark.parametrize("lens", [LENS, np.array([0.15, -0.05, 0, 0]), np.array([-0.2, 0.05, 0.004, 0.006, 0])])
def test_the_pose_behind_a_lens_is_recovered(lens: np.ndarray) -> None:
    calibration = Calibration(CAMERA, 1280, 720, lens)
    gained = []
    for center in ((655, 350), (250, 150), (1150, 100), (100, 650), (1200, 600)):
        for angles in ((0, 0, 0), (10, -35, 20), (-20, 30, -50)):
            local = geometry.angles_to_matrix(np.array(angles, float))
            truth = geometry.local_to_camera(np.array(center, float), np.array(40.0), local, CAMERA)
            seen = seen_through(calibration, *truth)
            face = undistort_face(seen, calibration)
            assert face.intrinsics is calibration.intrinsics
            turned = np.degrees(geometry.geodesic_distance(face.rotation, truth[0]))
            moved = np.linalg.norm(face.translation - truth[1]) / np.linalg.norm(truth[1])
            assert turned < 2.5
            assert moved < 0.04
            # The same with the calibrated matrix alone, distortion ignored.
            alone = undistort_face(seen, Calibration(CAMERA, 1280, 720))
            rest = np.linalg.norm(alone.translation - truth[1]) / np.linalg.norm(truth[1])
            gained.append((geometry.geodesic_distance(alone.rotation, truth[0]), np.radians(turned), rest, moved))
            # All parts tell of one pose; the box stays where the image shows the face.
            again = posed(face.rotation, face.translation, CAMERA)
            np.testing.assert_allclose(again.local_rotation, face.local_rotation, atol=1e-9)
            np.testing.assert_allclose(again.pose, face.pose, atol=1e-9)
            np.testing.assert_allclose(again.angles, face.angles, atol=1e-6)
            np.testing.assert_array_equal(face.box, seen.box)
    turned_without, turned_with, moved_without, moved_with = np.mean(gained, axis=0)
    assert turned_with < turned_without / 3
    assert moved_with < moved_without / 8


def test_points_are_undistorted_to_the_last_digit() -> None:
    pixels = np.stack(np.meshgrid(np.linspace(0, 1280, 9), np.linspace(0, 720, 7)), axis=-1).reshape(-1, 2)
    straight = undistort_points(pixels, CALIBRATION)
    assert np.linalg.norm(straight - pixels, axis=1).max() > 100
    rays = geometry.pixel_rays(straight, CAMERA)
    again = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), CAMERA, LENS)[0][:, 0]
    np.testing.assert_allclose(again, pixels, atol=1e-4)


def test_a_photograph_through_a_lens_shows_the_same_pose(astronaut: np.ndarray) -> None:
    """The network looks at a corner of a wide-angle picture, once straight, once through the lens; at six places, as it
    sees the same face a little otherwise at each."""
    pixels = np.stack(np.meshgrid(np.arange(1280.0), np.arange(720.0)), axis=-1).reshape(-1, 1, 2)
    source = cv2.undistortPoints(pixels, CAMERA, LENS, None, None, CAMERA).reshape(720, 1280, 2).astype(np.float32)
    errors = []
    for x, y in ((740, 300), (728, 300), (716, 300), (740, 288), (728, 288), (716, 276)):
        straight = np.full((720, 1280, 3), 90, np.uint8)
        straight[y : y + 420, x : x + 512] = astronaut[:420]
        bent = cv2.remap(straight, source, None, cv2.INTER_LINEAR)
        (truth,) = detect_poses(straight, intrinsics=CAMERA)
        (seen,) = detect_poses(bent)
        (ignoring,) = detect_poses(bent, intrinsics=CAMERA)
        face = undistort_face(seen, CALIBRATION)
        moved = [
            float(np.linalg.norm(f.translation - truth.translation) / np.linalg.norm(truth.translation))
            for f in (face, ignoring)
        ]
        errors.append([*moved, np.degrees(geometry.geodesic_distance(face.rotation, truth.rotation))])
    moved_away, ignoring_away, turned = np.mean(errors, axis=0)
    assert moved_away < 0.06
    assert ignoring_away > max(0.08, 2 * moved_away)
    assert turned < 5


def test_a_camera_without_distortion_only_changes_the_intrinsics() -> None:
    face = make_face((10, 20, 30), (100, 400), intrinsics=CAMERA)
    same = undistort_face(face, Calibration(CAMERA, 1280, 720))
    np.testing.assert_allclose(same.pose, face.pose, atol=1e-6)


def test_where_the_distortion_folds_over_there_is_no_pose() -> None:
    strong = Calibration(CAMERA, 1280, 720, np.array([-0.6, 0, 0, 0]))
    face = make_face((0, 0, 0), (1270, 700), intrinsics=CAMERA)
    with pytest.raises(ValueError, match=r"cannot be inverted around the face at pixel \(1270, 700\)"):
        undistort_face(face, strong)


def test_a_face_that_reaches_where_the_distortion_folds_over_keeps_its_pose() -> None:
    strong = Calibration(CAMERA, 1280, 720, np.array([-0.5, 0.0, 0, 0]))
    truth = geometry.local_to_camera(np.array([1060.0, 350]), np.array(120.0), np.eye(3), CAMERA)
    seen = seen_through(strong, *truth)
    local_pose = geometry.camera_to_local(seen.rotation, seen.translation, seen.intrinsics)
    points = load_reference().points68.astype(float)
    pixels = geometry.project(points, *geometry.local_to_camera(*local_pose, CAMERA), CAMERA)
    lost = np.isnan(undistort_points(pixels, strong)).any(1)
    assert 0 < lost.sum() < 34
    face = undistort_face(seen, strong)
    assert np.degrees(geometry.geodesic_distance(face.rotation, truth[0])) < 10
    np.testing.assert_allclose(face.translation, truth[1], atol=0.06 * np.linalg.norm(truth[1]))


def test_what_is_drawn_follows_the_lens_and_what_is_told_does_not(caplog: pytest.LogCaptureFixture) -> None:
    local = geometry.angles_to_matrix(np.array([10.0, -20, 5]))
    truth = geometry.local_to_camera(np.array([1150.0, 100]), np.array(40.0), local, CAMERA)
    here, gone = make_face((0, 0, 0), (400, 300), intrinsics=CAMERA), make_face((0, 0, 0), (-900, -900), 20, CAMERA)
    behind = seen_through(CALIBRATION, *truth)
    local_pose = geometry.camera_to_local(behind.rotation, behind.translation, behind.intrinsics)
    found = [gone, posed(*geometry.local_to_camera(*local_pose, CAMERA), CAMERA), here]
    _warn_once.cache_clear()
    looked = look(found, 0.0, PoseTracker(), CALIBRATION)
    assert looked.ids == [1, 2], "faces that are left out take their ids with them"
    assert "cannot be inverted" in caplog.text
    caplog.clear()
    look(found, 0.1, None, Calibration(CAMERA, 1280, 720, LENS))
    assert not caplog.records, "once for each lens"
    (told, drawn), points = (looked.faces[0], looked.seen[0]), load_reference().points68.astype(float)
    np.testing.assert_allclose(told.translation, truth[1], atol=0.04 * np.linalg.norm(truth[1]))
    bent = cv2.projectPoints(points, told.pose[:3], told.translation, CAMERA, LENS)[0][:, 0]
    as_drawn = geometry.project(points, drawn.rotation, drawn.translation, drawn.intrinsics)
    assert np.linalg.norm(as_drawn - bent, axis=1).mean() < 3
    assert np.linalg.norm(told.landmarks68 - bent, axis=1).mean() > 30
    plain = look(found, 0.0, None, None)
    assert (plain.faces, plain.seen, plain.ids) == (found, found, None)


def write_storage(path: Path, names: tuple[str, str, str, str]) -> None:
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("calibration_time", "today")
    for name, value in zip(names, (1280, 720, CAMERA, LENS.reshape(-1, 1)), strict=True):
        storage.write(name, value)
    storage.release()


HALF_PIXEL = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # OpenCV counts from the middle of a pixel
SAMPLE = ("image_width", "image_height", "camera_matrix", "distortion_coefficients")


@pytest.mark.parametrize("suffix", [".yml", ".xml", ".json"])
@pytest.mark.parametrize("names", [SAMPLE, ("image_Width", "image_Height", "Camera_Matrix", "Distortion_Coefficients")])
def test_calibrations_of_opencv_are_read(suffix: str, names: tuple[str, str, str, str], tmp_path: Path) -> None:
    path = tmp_path / f"camera{suffix}"
    write_storage(path, names)
    found = read_calibration(path)
    np.testing.assert_array_equal(found.intrinsics, CAMERA + HALF_PIXEL)
    np.testing.assert_array_equal(found.distortion, LENS)
    assert (found.width, found.height) == (1280, 720)


ROS = """image_width: 1280
image_height: 720
camera_name: cam
camera_matrix:
  rows: 3
  cols: 3
  data: [700.0, 0.0, 655.0, 0.0, 705, 350, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.28, 0.09, 0.0008, -0.0012, -0.01]
"""


def test_calibrations_of_ros_are_read(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(ROS)
    found = read_calibration(path)
    np.testing.assert_array_equal(found.intrinsics, CAMERA + HALF_PIXEL)
    np.testing.assert_array_equal(found.distortion, LENS)


def test_calibrations_with_rows_or_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "camera.json"
    names = ("image_width", "image_height", "camera_matrix", "distortion_coefficients")
    values = (1280, 720, CAMERA.tolist(), LENS.tolist())
    path.write_text(json.dumps(dict(zip(names, values, strict=True))))
    np.testing.assert_array_equal(read_calibration(path).intrinsics, CAMERA + HALF_PIXEL)
    path.write_text("\n" + path.read_text())
    np.testing.assert_array_equal(read_calibration(path).intrinsics, CAMERA + HALF_PIXEL)
    indented = "".join(f"  {line}\n" for line in ROS.splitlines())
    for text in (b"\xef\xbb\xbf" + ROS.encode(), b"---\n" + ROS.encode(), indented.encode()):
        path.write_bytes(text)
        np.testing.assert_array_equal(read_calibration(path).distortion, LENS)


def test_a_calibration_keeps_its_numbers() -> None:
    lens = LENS.copy()
    found = Calibration(CAMERA, 1280, 720, lens)
    lens[0] = 9
    np.testing.assert_array_equal(found.distortion, LENS)
    for width in (float("nan"), 640.5, "640"):
        with pytest.raises(ValueError, match="width and height are whole pixels"):
            Calibration(CAMERA, width, 480)  # type: ignore[arg-type]
    assert undistort_points(np.empty((0, 2)), found).shape == (0, 2)
    assert undistort_points(np.array([[640, 360]]), found).shape == (1, 2)


def test_a_calibration_scales_with_the_whole_image_only() -> None:
    half = CALIBRATION.for_size(640, 360)
    np.testing.assert_allclose(half.intrinsics, [[350, 0, 327.5], [0, 352.5, 175], [0, 0, 1]])
    np.testing.assert_array_equal(half.distortion, LENS)
    assert (half.width, half.height) == (640, 360)
    assert CALIBRATION.for_size(1280, 720) is CALIBRATION
    assert CALIBRATION.for_size(427, 240).width == 427  # 426.67 rounded
    assert Calibration(K, 320, 180).for_size(1280, 718).height == 718  # 179.5 rounded, when it was calibrated
    with pytest.raises(ValueError, match="width and height are positive, got 0x0"):
        CALIBRATION.for_size(0, 0)
    with pytest.raises(ValueError, match="is for images of 1280x720, this one is 640x480"):
        CALIBRATION.for_size(640, 480)


def test_wrong_calibrations_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    skewed = np.array([[700.0, 5, 640], [0, 700, 360], [0, 0, 1]])
    with pytest.raises(ValueError, match="know no skew: calibrate without it, got 5"):
        Calibration(skewed, 1280, 720)
    with pytest.raises(FileNotFoundError, match="no calibration"):
        read_calibration(tmp_path / "none.yml")
    path = tmp_path / "camera.yaml"
    wrong = {
        "not a calibration that OpenCV can read": "%YAML:1.0\n---\nhello: [1, 2",
        "no camera_matrix": ROS.replace("camera_matrix", "matrix"),
        "no distortion_coefficients": ROS.replace("distortion_coefficients", "lens"),
        "no image_width": ROS.replace("image_width", "wide"),
        "of the model 'equidistant'": ROS.replace("plumb_bob", "EQUIDISTANT"),
        "of the model 'kannala_brandt'": ROS.replace("plumb_bob", "kannala_brandt"),
        "of the model 'omni'": ROS + "camera_model: omni\n",
        "infinity": ROS.replace("1280", ".Inf"),
        "more than 2000 lists": "hello: " + 5000 * "[" + 5000 * "]",
        "larger than 1 MiB": ROS + "#" * 2**20,
        "finite distortion coefficients": ROS.replace("[-0.28, 0.09, 0.0008, -0.0012, -0.01]", "[0.1, 0.2]"),
        "positive focal": ROS.replace("700.0", "-700.0"),
        r"camera\.yaml: ": ROS.replace("0, 0, 1]", "0, 0]"),
        "width and height are whole pixels, got 0x720": ROS.replace("1280", "0"),
        "whole numbers, got 1280.5": ROS.replace("1280", "1280.5"),
        "camera_matrix holds something that is no number": ROS.replace("700.0", "abc"),
        "distortion_coefficients holds something that is no number": ROS.replace("0.09", '"0.09"'),
        "image_width holds something that is no number": ROS.replace("1280", "wide"),
        "nine numbers, got 8": ROS.replace("700.0, ", ""),
    }
    for message, text in wrong.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_calibration(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"camera\.yaml"):
        read_calibration(path)
    caplog.clear()
    path.write_text(ROS.replace("[-0.28, 0.09, 0.0008, -0.0012, -0.01]", "[0.1, 0.2, 0, 0]"))
    read_calibration(path)
    assert not caplog.records, "it names its model"
    path.write_text(path.read_text().replace("distortion_model", "lens"))
    read_calibration(path)
    assert "k1, k2, p1, p2 are assumed" in caplog.text
    fisheye = tmp_path / "fisheye.yml"
    write_storage(fisheye, SAMPLE)
    fisheye.write_text(fisheye.read_text() + "fisheye_model: 1\n")
    with pytest.raises(ValueError, match="fisheye lens"):
        read_calibration(fisheye)


# --- the network ---


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.bind(("127.0.0.1", 0))
    listening.settimeout(5)
    yield listening
    listening.close()


def address_of(listening: socket.socket) -> str:
    return f"127.0.0.1:{listening.getsockname()[1]}"


def test_opentrack_gets_six_doubles(listener: socket.socket) -> None:
    with OpenTrackSender(address_of(listener)) as sender:
        for face in FACES:
            sender.send(face)
            packet = listener.recv(1000)
            assert len(packet) == 48
            assert struct.unpack("<6d", packet) == pytest.approx(opentrack_pose(face))
    with pytest.raises(OSError, match=r"descriptor|socket"):
        sender.send(FACES[0])


def test_opentrack_stays_with_the_head_it_follows(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("img2pose_edge.senders.time.monotonic", lambda: now[0])
    listener.settimeout(0.2)

    def sent(send: Any, faces: list[Face], ids: list[int] | None, later: float = 0.03) -> Face | None:
        now[0] += later
        send(faces, ids)
        try:
            packet = struct.unpack("<6d", listener.recv(1000))
        except TimeoutError:
            return None
        return next(face for face in FACES if packet == pytest.approx(opentrack_pose(face)))

    first, second = FACES[:2]
    with senders.open_senders(address_of(listener), None) as (send,):
        assert sent(send, [first, second], [3, 4]) is first
        assert sent(send, [second], [4]) is None, "missed for a frame: nobody takes over"
        assert sent(send, [], []) is None
        assert sent(send, [second, first], [4, 3]) is first
        assert sent(send, [second], [4], PATIENCE + 0.1) is second, "gone for good"
        assert sent(send, [first, second], [3, 4]) is second
        assert sent(send, [first], None) is first, "without ids, the best"


def test_all_of_a_network_may_listen() -> None:
    with OpenTrackSender("255.255.255.255:4242") as sender:
        assert sender._socket.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
    pytest.importorskip("pythonosc")
    with OscSender("255.255.255.255:9000") as osc:
        assert osc._client._sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)


def test_a_network_that_is_away_is_told_once(listener: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        def sendto(self, *_: object) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    with OpenTrackSender(address_of(listener)) as sender:
        there, sender._socket = sender._socket, Away()  # type: ignore[assignment]
        for _ in range(3):
            sender.send(FACES[0])
        sender._socket = there
        sender.send(FACES[0])
        assert len(listener.recv(1000)) == 48
    assert [record.getMessage() for record in caplog.records if "Network is unreachable" in record.getMessage()] == [
        f"nothing reaches {address_of(listener)}: [Errno {errno.ENETUNREACH}] Network is unreachable"
    ]


def test_opentrack_signs() -> None:
    x, y, z, *angles = opentrack_pose(make_face((0, 0, 0), (420, 140), 56))
    assert x == pytest.approx(100 / 56 * geometry.FACE_UNIT_MM / 10), "centimetres to image-right"
    assert y == pytest.approx(x), "up"
    assert z == pytest.approx(1120 / 56 * geometry.FACE_UNIT_MM / 10), "away"
    # In the middle, one turn at a time, they are our angles.
    for turned in ((20, 0, 0), (0, 35, 0), (0, 0, -15)):
        pitch, yaw, roll = turned
        assert opentrack_pose(make_face(turned))[3:] == pytest.approx([yaw, pitch, roll])
    # Off to image-right and above, who faces the camera turns to image-left and looks down.
    assert angles[0] == pytest.approx(np.degrees(np.arctan(100 / 1120)))
    assert angles[1] == pytest.approx(-np.degrees(np.arctan(100 / np.hypot(1120, 100))))


@given(cameras)
@settings(deadline=None, max_examples=50)
def test_opentrack_angles_make_the_rotation_again(face: Face) -> None:
    """Yaw about the vertical, then pitch, then roll, in OpenTrack's axes: up and left are y and -x here."""
    yaw, pitch, roll = opentrack_pose(face)[3:]
    again = Rotation.from_euler("YXZ", [yaw, -pitch, roll], degrees=True).as_matrix()
    np.testing.assert_allclose(again, face.rotation, atol=1e-9)


def test_a_host_of_two_kinds_is_asked_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(family, socket.SOCK_DGRAM, 17, "", ()) for family in (socket.AF_INET6, socket.AF_INET)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert find_host("localhost", 9000)[0] == socket.AF_INET
    both.pop()
    assert find_host("::1", 9000)[0] == socket.AF_INET6


def test_osc_gets_every_face(listener: socket.socket) -> None:
    pytest.importorskip("pythonosc")
    from pythonosc.osc_packet import OscPacket

    def received(count: int) -> dict[str, list[float]]:
        packets = [OscPacket(listener.recv(4096)) for _ in range(count)]
        return {m.message.address: list(m.message.params) for p in packets for m in p.messages}

    with OscSender(address_of(listener)) as sender:
        sender.send(FACES[:2], ids=[7, 3])
        found = received(3)
        assert found.pop("/faces") == [2]
        for number, face in ((7, FACES[0]), (3, FACES[1])):
            assert found.pop(f"/face/{number}/score") == pytest.approx([face.score])
            assert found.pop(f"/face/{number}/box") == pytest.approx(face.box)
            assert found.pop(f"/face/{number}/angles") == pytest.approx(face.angles)
            assert found.pop(f"/face/{number}/rotation") == pytest.approx(face.pose[:3])
            assert found.pop(f"/face/{number}/position") == pytest.approx(face.translation_mm)
        assert not found
        sender.send(FACES[:1])
        assert "/face/0/angles" in received(2)
        sender.send([])
        assert received(1) == {"/faces": [0]}
        with pytest.raises(ValueError, match="1 faces need as many ids, got 0"):
            sender.send(FACES[:1], [])


def test_addresses() -> None:
    assert parse_address("127.0.0.1:4242") == ("127.0.0.1", 4242)
    assert parse_address("host.example:1") == ("host.example", 1)
    assert parse_address("[::1]:4242") == ("::1", 4242)
    for wrong in ("4242", "host", "host:", ":4242", "host:x", "host:0", "host:65536", "::1:4242", "[]:4242"):
        with pytest.raises(ValueError, match="an address is HOST:PORT"):
            parse_address(wrong)
    with pytest.raises(ValueError, match="an address is HOST:PORT"):
        OpenTrackSender(("127.0.0.1", 4242))  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"host a\.\.b is not known"):
        OpenTrackSender("a..b:4242")
    with pytest.raises(ValueError, match="an address is HOST:PORT"), senders.open_senders("", None):
        pass


# --- packages that are not there ---


@pytest.mark.parametrize(
    ("package", "use", "extra"),
    [
        ("supervision", lambda: to_supervision(FACES), "supervision"),
        ("pythonosc.udp_client", lambda: OscSender("127.0.0.1:9"), "osc"),
    ],
)
def test_a_missing_package_is_named(package: str, use: object, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'img2pose-edge\[{extra}\]'"):
        use()  # type: ignore[operator]
