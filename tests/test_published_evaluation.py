"""The protocols on the official layouts, on tiny folders whose truth a pretended detector knows."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ASTRONAUT_BOX, our_commands, shared
from img2pose_edge.benchmarks.accuracy import AP_THRESHOLD, Detect, Found, detect_by, evaluate_wider, wider_records
from img2pose_edge.benchmarks.published import (
    biwi_frames,
    evaluate_aflw2000_official,
    evaluate_biwi,
    landmark_box,
    overlapping_face,
    person_in_the_middle,
    read_aflw2000,
    read_biwi_calibration,
    zxy_angles,
)
from img2pose_edge.benchmarks.wider import multi_scale, vote_boxes
from img2pose_edge.pose_references import load_reference, project_face_box

from img2pose_edge import PoseDetector, geometry
from img2pose_edge.cli import main
from img2pose_edge.manifest import MODELS
from img2pose_edge.nms import pairwise_iou

scipy_io = pytest.importorskip("scipy.io")

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 640, 480


Three = tuple[float, float, float]


def face_at(center: tuple[float, float], size: float, angles: Three, camera: np.ndarray, score: float = 0.95) -> Found:
    """A perfect detection of a face of this local pose."""
    local = geometry.angles_to_matrix(np.array(angles, float))
    rotation, translation = geometry.local_to_camera(np.array(center, float), np.float64(size), local, camera)
    box = project_face_box(rotation, translation, camera)
    return Found(score, box, np.array(angles, float), geometry.compose_pose(rotation, translation))


def knowing(faces: list[list[Found]]) -> Detect:
    """Detects what was planted: the grey value of an image, in tens, is its number."""

    def detect(image: np.ndarray, threshold: float | None) -> list[Found]:
        assert threshold == AP_THRESHOLD
        return faces[round(float(image.mean()) / 10)]

    return detect


def write_image(path: Path, number: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 10 * number, np.uint8))


# --- AFLW2000-3D ---------------------------------------------------------------------------------


def write_aflw(folder: Path, number: int, face: Found, label: Three) -> None:
    path = folder / f"image{number:05}.jpg"
    write_image(path, number)
    camera = geometry.default_intrinsics(WIDTH, HEIGHT)
    pixels = geometry.project(load_reference().points68, *geometry.decompose_pose(face.pose), camera)
    points = np.vstack([pixels.T, np.zeros(68)])
    pose = np.array([[*np.radians(label), 0, 0, 0, 1]])
    scipy_io.savemat(path.with_suffix(".mat"), {"Pose_Para": pose, "pt3d_68": points})


def test_aflw_published_angles_charge_a_face_for_where_it_is(tmp_path: Path, camera: np.ndarray) -> None:
    # A frontal face right of the middle and one below it: the camera's rotation is the ray's, by hand atan(x / f).
    labels = [(0, 0, 0), (0, 0, 0), (0, 0, 120)]
    faces = [
        face_at((520, 240), 60, labels[0], camera),
        face_at((320, 400), 60, labels[1], camera),
        face_at((320, 240), 60, labels[2], camera),
    ]
    for number, (face, label) in enumerate(zip(faces, labels, strict=True)):
        write_aflw(tmp_path / "AFLW2000", number, face, label)
    decoy = face_at((150, 150), 80, (10, 20, 30), camera, score=0.99)
    figures = evaluate_aflw2000_official(knowing([[decoy, faces[0]], [faces[1]], []]), tmp_path)
    assert (figures["faces"], figures["left_out"], figures["missed"]) == (2, 1, 0)
    yaw, pitch = np.degrees(np.arctan([200 / 1120, 160 / 1120]))
    assert figures["published_yaw_mae"] == pytest.approx(yaw / 2, abs=1e-6)
    assert figures["published_pitch_mae"] == pytest.approx(pitch / 2, abs=1e-6)
    assert figures["published_mae"] == pytest.approx((yaw + pitch) / 6, abs=1e-6)
    for name in ("pitch_mae", "yaw_mae", "roll_mae", "mae"):
        assert figures[f"local_{name}"] == pytest.approx(0, abs=1e-6)
    for name in ("tx_mae", "ty_mae", "tz_mae", "translation_mae"):
        assert figures[name] == pytest.approx(0, abs=1e-3)  # PnP's accuracy


def test_official_checkpoints_are_judged_in_their_own_frame(tmp_path: Path, camera: np.ndarray) -> None:
    """Their poses come to us carried over to our reference face; their authors compare without that turn."""
    turn = geometry.angles_to_matrix(np.array([4.0, -2.0, 1.0]))
    points68 = 1.3 * load_reference().points68.astype(float) @ turn.T
    face = face_at((WIDTH / 2, HEIGHT / 2), 60, (10, -20, 5), camera)
    assert face.pose is not None
    rotation, _ = geometry.decompose_pose(face.pose)
    label = tuple(geometry.matrix_to_angles(rotation @ turn.T).tolist())
    write_aflw(tmp_path, 0, face, label)
    theirs = evaluate_aflw2000_official(knowing([[face]]), tmp_path, points68)
    ours = evaluate_aflw2000_official(knowing([[face]]), tmp_path)
    assert theirs["published_mae"] < 1e-3 < 1 < ours["published_mae"]


def test_the_command_line_evaluates_on_official_folders(
    tmp_path: Path, astronaut: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    (face,) = PoseDetector()(astronaut)
    pose = np.array([[*np.radians(face.angles), 0, 0, 0, 1]])
    points = np.vstack([face.landmarks68.T, np.zeros(68)])
    scipy_io.savemat(tmp_path / "image00000.mat", {"Pose_Para": pose, "pt3d_68": points})
    cv2.imwrite(str(tmp_path / "image00000.jpg"), astronaut)
    figures = tmp_path / "figures.json"
    assert main(["evaluate", "--aflw2000", str(tmp_path), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["aflw2000"]["local_mae"] < 1
    for arguments, words in (
        ([], "nothing to evaluate on"),
        (["--aflw2000", str(tmp_path), "--biwi", str(tmp_path / "none")], "lacks"),
        (["--aflw2000", str(tmp_path), "--multi-scale"], "--multi-scale is for --wider"),
        (["--aflw2000", str(tmp_path), "--biwi-frames", str(figures)], "--biwi-frames is for --biwi"),
    ):
        assert main(["evaluate", *arguments]) == 1
        assert words in capsys.readouterr().err


def test_aflw_errors_and_misses(tmp_path: Path, camera: np.ndarray) -> None:
    label = (0.0, 0.0, 0.0)
    truth = face_at((320, 240), 60, label, camera)
    for number in range(3):
        write_aflw(tmp_path, number, truth, label)
    off = face_at((320, 240), 60, (3, -6, 9), camera)
    further = Found(off.score, off.box, off.angles, off.pose + np.array([0, 0, 0, 0.1, 0.2, -0.3]))
    elsewhere = face_at((80, 80), 60, label, camera)
    figures = evaluate_aflw2000_official(knowing([[further], [elsewhere], []]), tmp_path)
    assert (figures["faces"], figures["missed"]) == (3, 2)
    for kind in ("local", "published"):  # in the middle of the image both protocols agree
        assert [figures[f"{kind}_{n}_mae"] for n in ("pitch", "yaw", "roll")] == pytest.approx([3, 6, 9], abs=1e-5)
        assert figures[f"{kind}_mae"] == pytest.approx(6, abs=1e-5)
    assert [figures[f"t{axis}_mae"] for axis in "xyz"] == pytest.approx([0.1, 0.2, 0.3], abs=1e-3)
    assert figures["translation_mae"] == pytest.approx(0.2, abs=1e-3)


def test_aflw_only_local_errors_go_the_short_way_round(tmp_path: Path, camera: np.ndarray) -> None:
    write_aflw(tmp_path, 0, face_at((320, 240), 60, (0, 0, 0), camera), (0, 0, -90))
    figures = evaluate_aflw2000_official(knowing([[face_at((320, 240), 60, (0, 0, 170), camera)]]), tmp_path)
    assert figures["published_roll_mae"] == pytest.approx(260, abs=1e-6)
    assert figures["local_roll_mae"] == pytest.approx(100, abs=1e-6)


def test_aflw_all_missed_gives_nan_and_wrong_files_are_named(tmp_path: Path, camera: np.ndarray) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        evaluate_aflw2000_official(knowing([]), tmp_path)
    write_aflw(tmp_path, 0, face_at((320, 240), 60, (0, 0, 0), camera), (0, 0, 0))
    figures = evaluate_aflw2000_official(knowing([[]]), tmp_path)
    assert figures["missed"] == 1
    assert np.isnan([figures["published_mae"], figures["local_mae"], figures["translation_mae"]]).all()
    (tmp_path / "image00000.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image00000\.jpg"):
        evaluate_aflw2000_official(knowing([[]]), tmp_path)
    path = tmp_path / "image00000.mat"
    for content, message in (
        ({"Pose_Para": np.zeros((1, 7))}, r"image00000\.mat lacks .*pt3d_68"),
        ({"Pose_Para": np.zeros((1, 7)), "pt3d_68": np.zeros((2, 68))}, r"image00000\.mat must hold .*\(2, 68\)"),
    ):
        scipy_io.savemat(path, content)
        with pytest.raises(ValueError, match=message):
            read_aflw2000(path)
    path.write_bytes(b"no MATLAB file")
    with pytest.raises(ValueError, match=r"image00000\.mat cannot be read"):
        read_aflw2000(path)


@pytest.mark.parametrize(
    ("roll", "expected"),
    [
        # 101 x 201 around (150.7, 200.7); 1.1 times that, rounded down, 111 x 221; forehead 30.3 or 60.3.
        (0.0, [95, 29, 206, 311]),
        (1.5, [95, 90, 236, 311]),
        (-1.5, [64, 90, 206, 311]),
        (3.0, [95, 90, 206, 371]),
        (-3.0, [95, 90, 206, 371]),
    ],
)
def test_the_box_around_landmarks(roll: float, expected: list[int]) -> None:
    landmarks = np.array([[100.2, 100.2], [201.2, 301.2], [150, 200]])
    assert landmark_box(landmarks, roll, 640, 480).tolist() == expected
    assert landmark_box(landmarks, roll, 220, 320).tolist() == np.minimum(expected, [220, 320] * 2).tolist()


def test_overlap_counts_the_last_pixel() -> None:
    touching, apart = (Found(0.5, np.array([x, 0, x + 5, 5.0])) for x in (10.5, 11.5))
    box = np.array([0, 0, 10.0, 10])
    assert overlapping_face([apart, touching], box) is touching
    assert overlapping_face([apart], box) is None
    assert overlapping_face([], box) is None


def test_labels_of_the_real_files() -> None:
    root = shared("data/eval/aflw2000")
    with (root / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"].startswith("frames/")]
    assert rows
    for row in rows:
        angles, landmarks = read_aflw2000((root / row["image"]).with_suffix(".mat"))
        known = [float(row[k]) for k in ("pitch_deg", "yaw_deg", "roll_deg")]
        assert angles == pytest.approx(known, abs=0.01), row["image"]
        assert landmarks.shape == (68, 2)


# --- BIWI ----------------------------------------------------------------------------------------

COLOUR = np.array([[520.0, 0, 322], [0, 518, 238], [0, 0, 1]])
TURN = geometry.angles_to_matrix(np.array([2.0, -3.0, 1.0]))
SHIFT = np.array([-25.0, 1, 2])


def write_biwi(
    root: Path, number: int, rotation: np.ndarray, position: np.ndarray, person: str = "01", calibration: bool = True
) -> None:
    """Write a frame whose head has this pose in the colour camera."""
    stem = root / person / f"frame_{number:05}"
    write_image(stem.with_name(f"{stem.name}_rgb.png"), number)
    rows = "\n".join(" ".join(f"{v:.12g}" for v in row) for row in TURN.T @ rotation)
    place = " ".join(f"{v:.12g}" for v in TURN.T @ (position - SHIFT))
    stem.with_name(f"{stem.name}_pose.txt").write_text(f"{rows} \n\n{place} \n")
    if calibration:
        matrix, turn = ("\n".join(" ".join(f"{v:.12g}" for v in row) for row in m) for m in (COLOUR, TURN))
        shift = " ".join(map(str, SHIFT))
        text = f"{matrix} \n\n0 0 0 0 \n\n{turn} \n\n{shift} \n\n{WIDTH} {HEIGHT} \n"
        (root / person / "rgb.cal").write_text(text)


def seen(rotation: np.ndarray, position: np.ndarray, score: float = 0.95) -> Found:
    """The same pixels, as our detector reports them: the pose in the image's default camera."""
    camera = geometry.default_intrinsics(WIDTH, HEIGHT)
    pose = geometry.convert_pose(geometry.compose_pose(rotation, position / geometry.FACE_UNIT_MM), COLOUR, camera)
    rotation, translation = geometry.decompose_pose(pose)
    angles = geometry.matrix_to_angles(geometry.camera_to_local(rotation, translation, camera)[2])
    return Found(score, project_face_box(rotation, translation, camera), angles, pose)


HEADS = [
    (geometry.angles_to_matrix(np.array(angles, float)), np.array(position, float))
    for angles, position in (
        ((10, 30, -5), (200, 100, 900)),
        ((-20, -40, 15), (-250, -80, 1000)),
        ((0, 0, 0), (0, 150, 800)),
    )
]


def test_biwi_truth_is_free_of_error_but_by_the_published_protocol(tmp_path: Path) -> None:
    for number, head in enumerate(HEADS):
        write_biwi(tmp_path, number, *head)
    figures = evaluate_biwi(knowing([[seen(*head)] for head in HEADS]), tmp_path)
    assert (figures["faces"], figures["missed"]) == (3, 0)
    for name in ("pitch_mae", "yaw_mae", "roll_mae", "mae"):
        assert figures[f"local_{name}"] == pytest.approx(0, abs=1e-4)  # matrix_to_angles' own accuracy
    for name in ("tx_mae_mm", "ty_mae_mm", "tz_mae_mm", "translation_mae_mm", "translation_mae_mm_aligned"):
        assert figures[name] == pytest.approx(0, abs=1e-6)
    # The published protocol sees another camera's rotation, and the depth camera's own turn.
    from scipy.spatial.transform import Rotation

    errors = []
    for rotation, position in HEADS:
        predicted = Rotation.from_rotvec(seen(rotation, position).pose[:3]).as_euler("zxy", degrees=True)
        errors.append(abs(predicted - Rotation.from_matrix(TURN.T @ rotation).as_euler("zxy", degrees=True)))
    roll, pitch, yaw = np.mean(errors, axis=0)
    assert pitch > 1
    assert yaw > 1
    got = [figures[f"published_{name}"] for name in ("pitch_mae", "yaw_mae", "roll_mae", "mae")]
    assert got == pytest.approx([pitch, yaw, roll, np.mean(errors)], abs=1e-4)


def test_biwi_translation_of_another_origin_is_aligned(tmp_path: Path) -> None:
    # The label's origin lies elsewhere in the head: a constant of the face frame, and local angles do not mind.
    offset = np.array([0, -20.0, 60])
    for number, (rotation, position) in enumerate(HEADS):
        write_biwi(tmp_path, number, rotation, position - rotation @ offset)
    figures = evaluate_biwi(knowing([[seen(*head)] for head in HEADS]), tmp_path)
    raw = np.abs([rotation @ offset for rotation, _ in HEADS])
    assert [figures[f"t{axis}_mae_mm"] for axis in "xyz"] == pytest.approx(raw.mean(0), abs=1e-4)
    assert figures["translation_mae_mm"] == pytest.approx(raw.mean(), abs=1e-4)
    assert figures["translation_mae_mm_aligned"] == pytest.approx(0, abs=1e-4)
    assert figures["local_mae"] == pytest.approx(0, abs=1e-4)


def test_biwi_frame_list_and_misses(tmp_path: Path) -> None:
    for number, head in enumerate(HEADS):
        write_biwi(tmp_path, number, *head, person=f"{number + 1:02}")
    listing = tmp_path / "BIWI_annotations.txt"
    listing.write_text("../../datasets/BIWI/03/frame_00002_rgb.png 1 2 3\n/x/01/frame_00000_rgb.png 4 5 6\n")
    paths = biwi_frames(tmp_path, listing)
    assert paths == [tmp_path / "03" / "frame_00002_rgb.png", tmp_path / "01" / "frame_00000_rgb.png"]
    figures = evaluate_biwi(knowing([[seen(*HEADS[0])], [], []]), tmp_path, listing)
    assert (figures["faces"], figures["missed"]) == (2, 1)
    assert figures["local_mae"] == pytest.approx(0, abs=1e-4)
    none = evaluate_biwi(knowing([[], [], []]), tmp_path)
    assert (none["faces"], none["missed"]) == (3, 3)
    assert np.isnan([none["published_mae"], none["translation_mae_mm"], none["translation_mae_mm_aligned"]]).all()
    (tmp_path / "02" / "frame_00001_pose.txt").unlink()
    problems: list[str] = []
    rest = evaluate_biwi(knowing([[], [], []]), tmp_path, problems=problems)
    assert (rest["faces"], rest["missed"]) == (2, 2)
    assert "frame_00001_pose.txt" in problems[0]
    listing.write_text("frame_00002_rgb.png 1 2 3\n")
    with pytest.raises(ValueError, match=r"line 1 of .*BIWI_annotations\.txt"):
        biwi_frames(tmp_path, listing)


def test_biwi_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="frame_"):
        evaluate_biwi(knowing([]), tmp_path)
    write_biwi(tmp_path, 0, *HEADS[0], calibration=False)
    with pytest.raises(FileNotFoundError, match=r"rgb\.cal"):
        evaluate_biwi(knowing([[]]), tmp_path)
    path = tmp_path / "01" / "rgb.cal"
    path.write_text("517 0 320\n0 517 240\n0 0 1\n")
    with pytest.raises(ValueError, match=r"rgb\.cal must hold 27 numbers .* got 9"):
        evaluate_biwi(knowing([[]]), tmp_path)
    path.write_text("a b c\n")
    with pytest.raises(ValueError, match=r"rgb\.cal must hold numbers only"):
        read_biwi_calibration(path)
    (tmp_path / "01" / "frame_00000_pose.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame_00000_pose\.txt"):
        evaluate_biwi(knowing([[]]), tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate_biwi(knowing([[]]), tmp_path, tmp_path / "nowhere")


def test_biwi_person_in_the_middle() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    side, middle, unsure = (
        Found(score, np.array([x, 40, x + 20, 60.0])) for score, x in ((0.99, 0), (0.91, 35), (0.9, 40))
    )
    assert person_in_the_middle([side, middle, unsure], image) is middle
    assert person_in_the_middle([unsure, Found(0.3, middle.box)], image) is unsure
    assert person_in_the_middle([], image) is None


def test_zxy_angles_are_scipys() -> None:
    from scipy.spatial.transform import Rotation

    rotations = Rotation.random(50, random_state=0)
    roll, pitch, yaw = rotations.as_euler("zxy", degrees=True).T
    assert zxy_angles(rotations.as_matrix()) == pytest.approx(np.stack([pitch, yaw, roll], axis=1), abs=1e-6)


# --- WIDER FACE ----------------------------------------------------------------------------------


def cells(values: list[Any]) -> np.ndarray:
    """A MATLAB cell column."""
    array = np.empty((len(values), 1), object)
    for i, value in enumerate(values):
        array[i, 0] = value
    return array


@pytest.fixture
def wider(tmp_path: Path) -> Path:
    """Two events, three images: in the official layout."""
    events = {"0--Parade": ["0_Parade_a_1", "0_Parade_b_2"], "1--Handshaking": ["1_Handshaking_c_3"]}
    boxes = [
        [np.array([[10, 20, 30, 40], [100, 100, 50, 60]]), np.array([[200, 200, 20, 20]])],
        [np.array([[5.0, 6, 7, 8]])],
    ]
    counted: dict[str, list[list[np.ndarray]]] = {
        "easy": [[np.array([[2]], np.uint8), np.zeros((0, 0))], [np.array([[1]])]],
        "medium": [[np.array([[2]]), np.array([[1]])], [np.array([[1]])]],
        "hard": [[np.array([[1], [2]]), np.array([[1]])], [np.array([[1]])]],
    }
    (tmp_path / "ground_truth").mkdir()
    for subset, lists in counted.items():
        content = {
            "event_list": cells(list(events)),
            "file_list": cells([cells(names) for names in events.values()]),
            "face_bbx_list": cells([cells(b) for b in boxes]),
            "gt_list": cells([cells(c) for c in lists]),
        }
        scipy_io.savemat(tmp_path / "ground_truth" / f"wider_{subset}_val.mat", content)
    number = 0
    for event, names in events.items():
        for name in names:
            write_image(tmp_path / "WIDER_val" / "images" / event / f"{name}.jpg", number)
            number += 1
    return tmp_path


def test_wider_records_of_the_official_layout(wider: Path) -> None:
    records = wider_records(wider)
    assert [r["image"] for r in records] == [
        "WIDER_val/images/0--Parade/0_Parade_a_1.jpg",
        "WIDER_val/images/0--Parade/0_Parade_b_2.jpg",
        "WIDER_val/images/1--Handshaking/1_Handshaking_c_3.jpg",
    ]
    assert records[0]["boxes_xywh"] == [[10, 20, 30, 40], [100, 100, 50, 60]]
    assert [r["easy"] for r in records] == [[1], [], [0]]
    assert [r["medium"] for r in records] == [[1], [0], [0]]
    assert [r["hard"] for r in records] == [[0, 1], [0], [0]]
    (wider / "eval_tools").mkdir()
    (wider / "ground_truth").rename(wider / "eval_tools" / "ground_truth")
    assert wider_records(wider) == records


def test_wider_evaluates_on_the_official_layout(wider: Path) -> None:
    found = [
        [Found(0.9 - 0.1 * i, np.array([x, y, x + w, y + h])) for i, (x, y, w, h) in enumerate(record["boxes_xywh"])]
        for record in wider_records(wider)
    ]

    def subsets() -> list[float]:
        figures = evaluate_wider(knowing(found), wider)
        return [figures[f"ap_{name}"] for name in ("easy", "medium", "hard")]

    assert subsets() == pytest.approx([1, 1, 1])
    found[1] = []
    assert subsets() == pytest.approx([1, 2 / 3, 3 / 4])


def test_the_page_s_command_evaluates(
    wider: Path, camera: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All official folders at once, as docs/training.md has it; another model stands in for the full one."""
    (words,) = [w for w in our_commands((DOCS / "training.md").read_text()) if w[0] == "evaluate"]
    monkeypatch.chdir(wider)
    for name in ("WIDER", "AFLW2000", "BIWI"):
        (wider / name).mkdir()
    for name in ("WIDER_val", "ground_truth"):
        (wider / name).rename(wider / "WIDER" / name)
    write_aflw(wider / "AFLW2000", 0, face_at((320, 240), 60, (0, 0, 0), camera), (0, 0, 0))
    write_biwi(wider / "BIWI", 0, *HEADS[0])
    Path("BIWI_annotations.txt").write_text("01/frame_00000_rgb.png 0 0 0\n")
    for suffix in (".onnx", ".json"):
        shutil.copy(MODELS / f"edge-n{suffix}", f"full-18{suffix}")
    assert main([*words, "--json", "figures.json"]) == 0, capsys.readouterr().err
    figures = json.loads(Path("figures.json").read_text())
    assert figures["wider_val_multi_scale"]["ap_easy"] == 0  # the pictures are plain grey
    assert (figures["aflw2000"]["faces"], figures["biwi"]["faces"]) == (1, 1)


def test_wider_missing_files_are_named(wider: Path) -> None:
    (wider / "WIDER_val" / "images" / "0--Parade" / "0_Parade_b_2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"0_Parade_b_2\.jpg"):
        evaluate_wider(lambda image, threshold: [], wider)
    problems: list[str] = []
    assert evaluate_wider(lambda image, threshold: [], wider, problems)["images"] > 0, "the rest is measured"
    assert any("0_Parade_b_2.jpg" in line for line in problems)
    (wider / "ground_truth" / "wider_easy_val.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"wider_easy_val\.mat"):
        wider_records(wider)
    with pytest.raises(FileNotFoundError, match=r"ground_truth\.jsonl.* official layout.*ground_truth"):
        wider_records(wider / "WIDER_val")


def test_vote_by_hand() -> None:
    boxes = np.array([[100, 100, 109, 109.0], [0, 0, 9, 9], [1, 0, 10, 9], [0, 5, 9, 14]])
    scores = np.array([0.4, 0.8, 0.4, 0.9])
    # Best first: 0.9 overlaps the second box 5 of 15 rows: alone. 0.8 takes 0.4, which overlaps it 9 of 11 columns
    # and so weighs 0.5 * 9 / 11 = 9 / 22 to its 1; then the far one.
    voted, sums = vote_boxes(boxes, scores)
    weight = 9 / 22
    shifted = weight / (1 + weight)
    assert sums == pytest.approx([0.8 + 0.4 * weight, 0.9, 0.4])
    assert voted == pytest.approx(np.array([[shifted, 0, 9 + shifted, 9], [0, 5, 9, 14], [100, 100, 109, 109]]))


def test_vote_of_nothing_and_of_an_empty_box() -> None:
    voted, sums = vote_boxes(np.empty((0, 4)), np.empty(0))
    assert voted.shape == (0, 4)
    assert sums.shape == (0,)
    assert vote_boxes(np.array([[5, 5, 1, 1.0]]), np.array([0.5]))[0].tolist() == [[5, 5, 1, 1]]


def bright_box(calls: list[tuple[int, int, int]]) -> Callable[..., list[SimpleNamespace]]:
    """A detector of the one bright rectangle, which also notes sizes."""

    def detect(image: np.ndarray, *, input_size: int, score_threshold: float) -> list[SimpleNamespace]:
        calls.append((image.shape[1], image.shape[0], input_size))
        y, x = np.nonzero(image[..., 0] > 127)
        return [SimpleNamespace(score=0.5, box=np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]))]

    return detect


def test_multi_scale_maps_all_passes_to_the_image() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[40:120, 180:240] = 255
    calls: list[tuple[int, int, int]] = []
    detect = multi_scale(SimpleNamespace(detect=bright_box(calls), model=SimpleNamespace(shortest=0)), sizes=(100, 400))
    (face,) = detect(image, 0.1)
    assert calls == [(150, 100, 150)] * 2 + [(600, 400, 600)] * 2
    assert face.box == pytest.approx([180, 40, 240, 120], abs=1.0)
    assert face.score == pytest.approx(4 * 0.5, rel=0.05)  # each pass weighs about 1
    assert face.pose is None
    assert face.angles is None


def test_multi_scale_shows_the_sizes_that_it_names(
    tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = PoseDetector("edge-n").model
    (tmp_path / "own.onnx").write_bytes(bundled.path.read_bytes())
    manifest = {**bundled.manifest, "input": {**bundled.manifest["input"], "shortest": 64}}
    (tmp_path / "own.json").write_text(json.dumps(manifest))
    shapes = []
    before = PoseDetector.network_input

    def network_input(self: PoseDetector, image: np.ndarray, input_size: int | None) -> tuple[np.ndarray, np.ndarray]:
        pixels, scale = before(self, image, input_size)
        shapes.append(pixels.shape[1:3])
        return pixels, scale

    monkeypatch.setattr(PoseDetector, "network_input", network_input)
    detector = PoseDetector(tmp_path / "own.onnx")
    multi_scale(detector, sizes=(32, 64, 128))(astronaut, 0.3)
    assert shapes == [(size, size) for size in (32, 64, 128) for _ in range(2)]
    assert detector.model.shortest == 64


def test_multi_scale_needs_a_model_of_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wider").mkdir()
    monkeypatch.setattr("img2pose_edge.benchmarks.accuracy.evaluate_wider", lambda *_: pytest.fail("nothing is run"))
    wanted = ["evaluate", "--wider", str(tmp_path / "wider"), "--multi-scale", "--model", "edge-n-int8-640x480"]
    assert main(wanted) == 1
    assert "takes images of 640x480 only" in capsys.readouterr().err


def test_multi_scale_with_the_bundled_model(astronaut: np.ndarray) -> None:
    detector = PoseDetector(engine="onnxruntime")
    best = multi_scale(detector, sizes=(200, 300))(astronaut, 0.3)[0]
    assert pairwise_iou(best.box[None], ASTRONAUT_BOX[None])[0, 0] > 0.6
    assert best.score > 1  # several passes agree
    single = detect_by(detector)(astronaut, 0.3)[0]
    assert single.pose is not None
    assert geometry.rotvec_to_matrix(single.pose[:3]) == pytest.approx(
        detector.detect(astronaut, score_threshold=0.3)[0].rotation
    )
