"""The command line, run as a person would."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from img2pose_edge import PoseDetector, read_calibration, undistort_face
from img2pose_edge.cli import main
from img2pose_edge.commands.images import find_images, write_picture
from img2pose_edge.files import check_writable, write_file
from img2pose_edge.manifest import MODELS
from img2pose_edge.preprocess import load_image
from img2pose_edge.rows import read_rows


@pytest.fixture
def folder(tmp_path: Path, astronaut: np.ndarray) -> Path:
    (tmp_path / "in" / "more").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in/a.jpg"), astronaut)
    cv2.imwrite(str(tmp_path / "in/more/a.png"), astronaut[:, ::-1])
    cv2.imwrite(str(tmp_path / "in/sky.png"), np.full((64, 64, 3), 200, np.uint8))
    return tmp_path / "in"


def test_one_photograph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn.png"
    assert main(["detect", str(folder / "a.jpg"), "--draw", str(out)]) == 0
    assert "1 face\n" in capsys.readouterr().out
    drawn, plain = cv2.imread(str(out)), cv2.imread(str(folder / "a.jpg"))
    changed = (drawn != plain).any(2)
    assert changed[60:170, 180:270].mean() > 0.4, "the mask covers the face"
    assert changed[250:].mean() == 0, "nothing else is touched"


def test_a_folder_with_bad_files_goes_on_and_tells(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.jpg").write_text("no photograph")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:5000])
    out = tmp_path / "out.json"
    assert main(["detect", str(folder), "--json", str(out), "--draw", str(tmp_path / "drawn")]) == 1
    errors = capsys.readouterr().err
    assert "text.jpg" in errors
    assert "cut.jpg" in errors
    results = json.loads(out.read_text())
    assert [len(r["faces"]) for r in results] == [1, 1, 0]
    assert set(results[0]["faces"][0]) >= {"score", "box", "pose", "pitch", "yaw", "roll", "translation_mm"}
    assert len(list((tmp_path / "drawn").iterdir())) == 3, "two files of one name keep a drawing each"


def test_results_replace_no_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "a.jpg").read_bytes()
    assert main(["detect", str(folder / "sky.png"), "--json", str(folder / "a.jpg")]) == 1  # --json *.jpg
    assert "is a picture, which results would replace" in capsys.readouterr().err
    assert (folder / "a.jpg").read_bytes() == before


def test_drawings_replace_no_photograph_beside_those_that_are_looked_at(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "sky.png", folder / "a.png")
    before = (folder / "a.png").read_bytes()
    assert main(["detect", str(folder / "a.jpg"), "--draw", str(folder)]) == 1
    assert "a.png, perhaps a photograph: name another folder" in capsys.readouterr().err
    assert (folder / "a.png").read_bytes() == before
    (folder / "a.png").unlink()
    assert main(["detect", str(folder / "a.jpg"), "--draw", str(folder)]) == 0
    assert (folder / "a.png").is_file()


def test_what_cannot_be_read_in_a_folder_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert main(["detect", str(folder)]) == 1
    assert "broken.jpg" in capsys.readouterr().err
    (folder / "broken.jpg").unlink()
    closed, look_in, access = folder / "more", os.scandir, os.access

    def refuse(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look_in(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and access(path, mode))
    assert main(["detect", str(folder)]) == 1
    told = capsys.readouterr()
    assert "more is a folder that cannot be read" in told.err
    assert "a.jpg: 1 face" in told.out


def test_an_empty_path_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", ""]) == 1
    assert capsys.readouterr().err == "error: the path of an image is empty\n"


def shell(text: str, *arguments: Path) -> int:
    program = f"{sys.executable} -m img2pose_edge"
    return subprocess.run(["bash", "-c", text.replace("PROGRAM", program), "bash", *arguments]).returncode


def test_standard_output_by_its_path_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shell('{ echo first; PROGRAM detect "$1" --json /dev/stdout; echo last; } > "$2"', folder / "a.jpg", log)
    first, *text, last = log.read_text().splitlines()
    assert (first, last) == ("first", "last")
    assert len(json.loads("\n".join(text))[0]["faces"]) == 1
    shell('PROGRAM detect "$1" --json /dev/fd/1 >> "$2"', folder / "a.jpg", log)
    assert log.read_text().count('"pitch"') == 2
    assert log.read_text().startswith("first\n")


def test_without_standard_error_it_works(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert shell('PROGRAM detect "$1" --json "$2" 2>&-', folder, out) == 0
    assert len(json.loads(out.read_text())) == 3
    (folder / "bad.jpg").write_bytes(b"no picture")
    assert shell('PROGRAM detect "$1" --json - 2>&- > "$2"', folder / "bad.jpg", out) == 1
    assert json.loads(out.read_text()) == []


def test_a_completion_that_has_no_room_is_told(tmp_path: Path) -> None:
    told = tmp_path / "told"
    assert shell('PROGRAM --print-completion bash > /dev/full 2> "$1"', told) == 1
    assert told.read_text().startswith("error: ")


def test_what_cannot_be_written_is_told_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PoseDetector, "detect", lambda *_, **__: pytest.fail("it was looked at"))
    (tmp_path / "file").write_text("no folder")
    one = ["detect", str(folder / "a.jpg")]
    assert main([*one, "--json", str(tmp_path / "file" / "a.json")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert main([*one, "--draw", str(tmp_path / "out.gif")]) == 1
    assert "out.gif: use .jpg" in capsys.readouterr().err
    check_writable(tmp_path / "new.json")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    check_writable(tmp_path / "link")
    check_writable(tmp_path / "new" / "deep" / "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "link"]
    capsys.readouterr()
    for command in (one, ["evaluate", "--wider", str(tmp_path)], ["quantize", "--checkpoint", "x", "--images", "x"]):
        where = "--out" if command[0] == "quantize" else "--json"
        assert main([*command, where, str(folder)]) == 1
        assert f"cannot write {folder}: it is a folder" in capsys.readouterr().err


def test_an_engine_that_refuses_is_told_once_and_replaces_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keep.json").write_text("before")
    refused = ["--model", "edge-n-int8-ov", "--engine-option", "NOPE=1", "--json", str(tmp_path / "keep.json")]
    assert main(["detect", str(folder), *refused]) == 1
    assert capsys.readouterr().err.count("error:") == 1
    assert (tmp_path / "keep.json").read_text() == "before"


def test_a_calibrated_cameras_photograph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """%YAML:1.0
---
image_width: 1024
image_height: 1024
camera_matrix: !!opencv-matrix {rows: 3, cols: 3, dt: d, data: [2000., 0., 512., 0., 2000., 512., 0., 0., 1.]}
distortion_coefficients: !!opencv-matrix {rows: 1, cols: 5, dt: d, data: [-0.1, 0., 0., 0., 0.]}
"""
    (tmp_path / "camera.yml").write_text(text)
    out = tmp_path / "out.json"
    assert main(["detect", str(folder), "--calibration", str(tmp_path / "camera.yml"), "--json", str(out)]) == 0
    found = json.loads(out.read_text())[0]["faces"][0]
    image = load_image(folder / "a.jpg")
    calibration = read_calibration(tmp_path / "camera.yml").for_size(image.shape[1], image.shape[0])
    (face,) = PoseDetector().detect(image, intrinsics=calibration.intrinsics)
    np.testing.assert_allclose(found["pose"], undistort_face(face, calibration).pose, atol=1e-4)
    np.testing.assert_allclose(found["landmarks68"], face.landmarks68, atol=0.01)
    (tmp_path / "camera.yml").write_text(text.replace("height: 1024", "height: 768"))
    assert main(["detect", str(folder), "--calibration", str(tmp_path / "camera.yml")]) == 1
    assert "images of 1024x768, this one is 512x512" in capsys.readouterr().err


def test_a_name_that_the_terminal_cannot_show_stops_nothing(folder: Path) -> None:
    shutil.copy(folder / "sky.png", folder / "日本.png")
    command = [sys.executable, "-m", "img2pose_edge", "detect", str(folder / "日本.png"), str(folder / "sky.png")]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True, check=True)
    assert rb"\u65e5\u672c.png: 0 faces" in done.stdout
    assert b"sky.png: 0 faces" in done.stdout


def test_a_picture_too_wide_for_its_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wide\.jpg: \.jpg does not hold a picture of 66000x8"):
        write_picture(tmp_path / "wide.jpg", np.zeros((8, 66000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_what_is_written_keeps_links_permissions_and_pipes(tmp_path: Path) -> None:
    real, link, pipe = (tmp_path / name for name in ("real.json", "link.json", "pipe"))
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    write_file(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o600
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(pipe.read_bytes)
        write_file(pipe, b"through")
        assert reading.result() == b"through"
    assert pipe.is_fifo()
    write_file(tmp_path / f"{'n' * 250}.txt", b"a name as long as names may be")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_whose_place_no_other_takes_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is mounted alone, as ``docker -v out.json:/out.json`` does."""

    def busy(*_: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", "/.partial")

    mounted = tmp_path / "out.json"
    mounted.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", busy)
    write_file(mounted, b"new")
    assert mounted.read_bytes() == b"new"
    with pytest.raises(OSError, match=r"busy: '.*other\.json'"):
        write_file(tmp_path / "other.json", b"new")
    assert list(tmp_path.iterdir()) == [mounted]


def test_drawings_replace_no_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert main(["detect", str(folder), "--draw", str(folder)]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(folder.rglob("*.*"))) == 2 * len(before)
    assert main(["detect", str(folder / "sky.png"), "--draw", str(folder)]) == 0
    assert main(["detect", str(folder / "sky.png"), "--draw", str(folder / "sky.png")]) == 1
    assert "would replace the image itself" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_globs_and_json_on_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", str(folder / "**/*.png"), str(folder / "sky.png"), "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_results_as_a_coco_data_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "faces.json"
    assert main(["detect", str(folder), "--coco", str(out)]) == 0
    data = json.loads(out.read_text())
    assert {Path(image["file_name"]) for image in data["images"]} == {*folder.rglob("*.*")}
    assert len(data["annotations"]) == 2
    for more, words in (
        ([str(folder / "sky.png")], "is a picture"),
        (["-"], "name one"),
        ([str(out), "--json", str(out)], "name two files"),
    ):
        assert main(["detect", str(folder), "--coco", *more]) == 1
        assert words in capsys.readouterr().err


def test_results_as_tables(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, lines, out = tmp_path / "faces.csv", tmp_path / "faces.jsonl", tmp_path / "faces.json"
    arguments = ["detect", str(folder), "--csv", str(table), "--jsonl", str(lines), "--json", str(out)]
    assert main(arguments) == 0
    rows = read_rows(table)
    assert rows == read_rows(lines)
    told = [(image["image"], face) for image in json.loads(out.read_text()) for face in image["faces"]]
    assert [row["image"] for row in rows] == [image for image, _ in told]
    for row, (_, face) in zip(rows, told, strict=True):
        for name, digit in (("score", 1e-4), ("yaw", 0.006)):
            assert row[name] == pytest.approx(face[name], abs=digit)
        assert (row["frame"], row["time"], row["id"]) == (None, None, None)
    before = table.read_bytes()
    for more, words in (
        (["--csv", str(tmp_path / "faces.txt")], "ends in .csv"),
        (["--csv", str(table), "--coco", str(table)], "--coco and --csv would both write"),
        (["--csv", str(table), "--model", "none-such"], "none-such"),
    ):
        assert main(["detect", str(folder), *more]) == 1
        assert words in capsys.readouterr().err
    assert table.read_bytes() == before
    new, folder_in_the_way = tmp_path / "new.csv", tmp_path / "folder.jsonl"
    folder_in_the_way.mkdir()
    assert main(["detect", str(folder), "--csv", str(new), "--jsonl", str(folder_in_the_way)]) == 1
    assert not new.exists()


def test_detections_before_an_interruption_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), astronaut)
    real, left = PoseDetector.detect, iter(range(2))

    def detect(self: PoseDetector, image: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(self, image, **options)

    monkeypatch.setattr(PoseDetector, "detect", detect)
    assert main(["detect", str(tmp_path), "--json", str(tmp_path / "faces.json"), "--threads", "1"]) == 130
    found = json.loads((tmp_path / "faces.json").read_text())
    assert [len(image["faces"]) for image in found] == [1, 1]


def test_detections_before_a_service_is_stopped_are_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = PoseDetector.detect, iter(range(1))

    def detect(self: PoseDetector, image: Any, **options: Any) -> Any:
        if next(left, None) is None:
            signal.raise_signal(signal.SIGTERM)
        return real(self, image, **options)

    monkeypatch.setattr(PoseDetector, "detect", detect)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert main(["detect", str(folder), "--json", str(tmp_path / "faces.json"), "--threads", "1"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(json.loads((tmp_path / "faces.json").read_text())) == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_nobody_reads_ends_it_quietly(folder: Path, unbuffered: str) -> None:
    """With a buffer it is noticed at the end only."""
    command = [sys.executable, "-m", "img2pose_edge", "detect", str(folder / "sky.png"), "--threads", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "none.jpg"], "none.jpg"),
        (["detect", "none/*.jpg"], "none/*.jpg"),
        (["detect", "{folder}/more", "--engine", "abacus"], "abacus"),
        (["detect", "{folder}/a.jpg", "--model", "none.onnx"], "none.onnx"),
        (["detect", "{folder}", "--draw", "{folder}/one.png"], "name a folder"),
        (["evaluate", "--data", "nowhere"], "nowhere"),
        (["evaluate", "--biwi", "{folder}", "--score-threshold", "0.3"], "--score-threshold has no effect"),
        (["evaluate", "--biwi", "{folder}", "--write-manifest", "--nms-iou", "0.3"], "leave out --nms-iou"),
        (["parity", "edge-n", "x.pt", "--images", "{folder}"], "x.pt is a checkpoint, which only the first may be"),
        (["annotate", "{folder}", "--detector", "x.onnx", "--model", "edge-n"], "both label: name one"),
        (["train", "--data", "x", "--out", "x", "--proposals", "64"], "--proposals is for full networks"),
        (["train", "--data", "x.lmdb", "--out", "x", "--cache", "y"], "a cache is for the pictures of a folder"),
        (["train", "--data", "nowhere", "--out", "{folder}/run"], "labels.jsonl"),
        (["quantize", "--checkpoint", "{folder}/a.jpg", "--images", "x", "--out", "{folder}/./a.jpg"], "would be lost"),
        (["export", "--checkpoint", "none.pt", "--out", "{folder}/x.onnx"], "none.pt"),
        (["export", "--checkpoint", "{folder}/a.jpg", "--out", "{folder}/x.onnx"], "a.jpg"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([a.replace("{folder}", str(folder)) for a in arguments]) == 1
    assert message in capsys.readouterr().err


def test_drawings_of_last_time_are_no_photographs(folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    drawn, found = photos / "drawn", tmp_path / "found.json"
    for _ in range(2):
        main(["detect", str(photos), "--draw", str(drawn), "--json", str(found)])
    assert not [entry for entry in json.loads(found.read_text()) if "drawn" in entry["image"]]
    count = len(list(drawn.iterdir()))
    assert count >= 1
    assert main(["detect", str(drawn), "--json", str(found)]) == 0, "unless they are asked for"
    assert len(json.loads(found.read_text())) == count


def test_a_drawing_beside_its_photograph_is_none_the_next_time(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(folder / "a.jpg", one)
    for _ in range(2):
        assert main(["detect", str(one), "--draw", str(one / "out.png")]) == 0
    assert sorted(p.name for p in one.iterdir()) == ["a.jpg", "out.png"]


def test_globs_of_folders_are_searched(folder: Path) -> None:
    assert find_images([str(folder / "m*")]) == [folder / "more" / "a.png"]
    found = find_images([str(folder / "**")])
    assert sorted(found) == sorted(p for p in folder.rglob("*") if p.is_file())


def test_results_replace_no_model_and_no_calibration(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".onnx", ".json"):
        shutil.copy(MODELS / f"edge-n{suffix}", tmp_path / f"edge-n{suffix}")
    camera = tmp_path / "camera.json"
    camera.write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    one = ["detect", str(folder / "a.jpg"), "--model", str(tmp_path / "edge-n.onnx")]
    for wrong in (
        ["--json", str(tmp_path / "edge-n.json")],
        ["--coco", str(tmp_path / "edge-n.onnx")],
        ["--json", str(camera), "--calibration", str(camera)],
    ):
        assert main([*one, *wrong]) == 1
        assert "name another" in capsys.readouterr().err
    data = tmp_path / "data"
    for name in ("wider", "aflw2000", "pointing04"):
        (data / name).mkdir(parents=True)
    assert main(["evaluate", "--data", str(data), *one[2:], "--json", str(tmp_path / "edge-n.json")]) == 1
    assert "name another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_links_in_a_circle_are_bad_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    found = tmp_path / "found.json"
    assert main(["detect", str(folder / "a.jpg"), str(folder / "loop.jpg"), "--json", str(found)]) == 1
    assert "error: no image" in capsys.readouterr().err
    assert len(json.loads(found.read_text())) == 1
    assert main(["detect", str(folder / "a.jpg"), "--json", str(folder / "loop.jpg")]) == 1
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    assert main(["detect", str(folder / "a.jpg"), "--json", str(tmp_path / "loop.json")]) == 1
    assert "loop.json" in capsys.readouterr().err


def test_a_full_device_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", str(folder / "a.jpg"), "--json", "/dev/full"]) == 1
    assert "/dev/full" in capsys.readouterr().err
    command = [sys.executable, "-m", "img2pose_edge", "detect", str(folder / "a.jpg")]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command, "--json", "-"], stderr=subprocess.PIPE, text=True, check=False
    )
    assert closed.returncode == 1
    assert "standard output is closed" in closed.stderr


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo.png")]) == 0
    assert cv2.imread(str(tmp_path / "demo.png")).shape == (512, 512, 3)
    assert "pitch" in capsys.readouterr().out
