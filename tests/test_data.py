"""Data sets as people have them: every format to records, LMDB, what is bad, one's own photographs."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from conftest import ASTRONAUT_BOX, ASTRONAUT_POINTS, shared
from img2pose_edge.pose_references import load_reference, project_face_box
from scipy.io import savemat

from img2pose_edge import geometry
from img2pose_edge.cli import main
from img2pose_edge.training import store as store_module
from img2pose_edge.training.annotate import whole_lines
from img2pose_edge.training.checkpoint import load_checkpoint
from img2pose_edge.training.data import open_data, read_records, split
from img2pose_edge.training.formats import read_sources
from img2pose_edge.training.loop import TrainOptions, train
from img2pose_edge.training.prepare import identify, prepare

Capture = pytest.CaptureFixture[str]
ANGLES = np.array([12.0, -35.0, 8.0])
X, Y, W, H = (float(v) for v in (*ASTRONAUT_BOX[:2], *(ASTRONAUT_BOX[2:] - ASTRONAUT_BOX[:2])))


def drawn_points(width: int, height: int) -> np.ndarray:
    """Landmarks of a face at known local angles, off the middle of the image."""
    camera = geometry.default_intrinsics(width, height)
    center = np.array([0.3 * width, 0.6 * height])
    pose = geometry.local_to_camera(center, np.array(60.0), geometry.angles_to_matrix(ANGLES), camera)
    return geometry.project(load_reference().points68.astype(float), *pose, camera)


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def retinaface_line(box: list[float], points: np.ndarray | None) -> str:
    marks = [-1.0] * 15 if points is None else np.column_stack([points, np.zeros(5)]).ravel().tolist()
    return " ".join(str(v) for v in [*box, *marks, 0.9])


def test_retinaface_labels(tmp_path: Path, astronaut: np.ndarray) -> None:
    write_image(tmp_path / "images/0--Parade/a.png", astronaut)
    lines = ["# 0--Parade/a.png", retinaface_line([X, Y, W, H], ASTRONAUT_POINTS)]
    lines += [retinaface_line([10, 20, 8, 9], None), retinaface_line([10, 20, 0, 0], None)]
    (tmp_path / "label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # as some editors write it
    done = prepare(tmp_path / "label.txt", tmp_path / "wider.lmdb")
    (record,) = done.records
    assert (record.image, record.collection) == ("wider/0--Parade/a.png", "wider")
    np.testing.assert_allclose(record.faces.boxes, [ASTRONAUT_BOX, [10, 20, 18, 29]])
    assert record.faces.trust[0] > 0.3
    assert record.faces.trust[1] == 0, "no landmarks, no rotation"
    pitch, yaw, roll = geometry.matrix_to_angles(record.faces.local[0])
    assert max(abs(pitch), abs(yaw), abs(roll)) < 20
    assert done.skipped == []


def test_img2pose_lists(tmp_path: Path, astronaut: np.ndarray) -> None:
    write_image(tmp_path / "photos/a.png", astronaut)
    points = drawn_points(512, 512)
    box = project_box(points)
    content = {
        "image_path": "a.png",
        "bboxes": [box, [1, 2, 30, 40, 0.99]],
        "landmarks": [np.column_stack([points, np.zeros(68)]).tolist(), [[-1, -1, -1]] * 5],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.json").write_text(json.dumps(content))
    (tmp_path / "list.txt").write_text("annotations/a.json\n")
    done = prepare(tmp_path / "list.txt", tmp_path / "list.lmdb", images=tmp_path / "photos")
    faces = done.records[0].faces
    np.testing.assert_allclose(geometry.matrix_to_angles(faces.local[0]), ANGLES, atol=0.1)
    assert faces.trust[0] == pytest.approx(1, abs=1e-3)
    assert np.isfinite(faces.landmarks[0]).all()
    assert faces.trust[1] == 0
    # With pose_para, as the lists of 300W-LP have it, the rotation is the file's own.
    (tmp_path / "annotations/a.json").write_text(
        json.dumps({**content, "pose_para": [np.radians([1, 2, 3]).tolist(), [0, 0, 0]]})
    )
    with pytest.raises(ValueError, match="or other labels"):
        prepare(tmp_path / "list.txt", tmp_path / "list.lmdb", images=tmp_path / "photos")
    (tmp_path / "list.lmdb").unlink()
    faces = prepare(tmp_path / "list.txt", tmp_path / "list.lmdb", images=tmp_path / "photos").records[0].faces
    np.testing.assert_allclose(geometry.matrix_to_angles(faces.local[0]), [1, 2, 3], atol=1e-3)


def project_box(points: np.ndarray) -> list[float]:
    return [*points.min(0).tolist(), *points.max(0).tolist()]


@pytest.mark.parametrize("key", ["pt2d", "pt3d_68"])
def test_300w_lp_folders(tmp_path: Path, astronaut: np.ndarray, key: str) -> None:
    write_image(tmp_path / "AFW/a.jpg", astronaut[:400])
    points = drawn_points(512, 400)
    pose = np.array([[*np.radians(ANGLES), 0, 0, 0, 1.0]])
    savemat(
        tmp_path / "AFW/a.mat",
        {"Pose_Para": pose, key: points.T if key == "pt2d" else np.vstack([points.T, points[:, 0]])},
    )
    done = prepare(tmp_path, tmp_path / "lp.lmdb")
    (record,) = done.records
    assert record.collection == "300w-lp"
    np.testing.assert_allclose(geometry.matrix_to_angles(record.faces.local[0]), ANGLES, atol=1e-3)
    camera = geometry.default_intrinsics(512, 400)
    truth = geometry.local_to_camera(
        np.array([0.3 * 512, 240.0]), np.array(60.0), geometry.angles_to_matrix(ANGLES), camera
    )
    np.testing.assert_allclose(record.faces.boxes[0], project_face_box(*truth, camera), atol=0.1)
    pose[0, 0] += 0.1
    savemat(tmp_path / "AFW/a.mat", {"Pose_Para": pose, "pt2d": points.T})
    with pytest.raises(ValueError, match="or other labels"):
        prepare(tmp_path, tmp_path / "lp.lmdb")


def test_300w_folders(tmp_path: Path, astronaut: np.ndarray) -> None:
    write_image(tmp_path / "01_Indoor/a.png", astronaut)
    lines = "\n".join(f"{x + 0.5:.4f} {y + 0.5:.4f}" for x, y in drawn_points(512, 512))
    (tmp_path / "01_Indoor/a.pts").write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")
    (record,) = prepare(tmp_path, tmp_path / "300w.lmdb").records
    assert record.collection == "300w"
    np.testing.assert_allclose(geometry.matrix_to_angles(record.faces.local[0]), ANGLES, atol=0.1)


def test_an_lmdb_holds_what_the_folder_holds(tiny_data: Path, tmp_path: Path) -> None:
    done = prepare(tiny_data, tmp_path / "tiny.lmdb")
    folder, pixels = open_data(tiny_data, tmp_path / "cache")
    records, store = open_data(done.path, tmp_path / "cache")
    assert [r.image for r in records] == [r.image for r in folder]
    for i, (ours, theirs) in enumerate(zip(records, folder, strict=True)):
        np.testing.assert_array_equal(store[i], pixels[i])
        np.testing.assert_array_equal(ours.faces.boxes, theirs.faces.boxes)
        np.testing.assert_array_equal(ours.faces.local, theirs.faces.local)
    mean, deviation = (np.load(p) for p in done.statistics)
    assert mean.shape == deviation.shape == (6,)
    assert 2 < mean[5] < 5
    small = prepare(done.path, tmp_path / "small.lmdb", longest=128)
    assert max(max(r.width, r.height) for r in small.records) == 128
    np.testing.assert_allclose(
        small.records[0].faces.boxes * (records[0].width / 128), records[0].faces.boxes, rtol=0.02
    )


def test_pictures_of_a_store_have_the_size_of_their_labels(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = open_data(prepare(tiny_data, tmp_path / "tiny.lmdb").path, tmp_path / "cache")
    whole = store_module.decode_image
    monkeypatch.setattr(store_module, "decode_image", lambda data, name: whole(data, name)[:-9])  # as if not upright
    with pytest.raises(ValueError, match=r"record 0 of .*tiny\.lmdb is \d+x\d+; its label says \d+x\d+"):
        store[0]


def test_training_reads_an_lmdb_with_several_workers(tiny_data: Path, tmp_path: Path) -> None:
    data = prepare(tiny_data, tmp_path / "tiny.lmdb").path
    options = TrainOptions(steps=3, batch_size=4, crop_size=96, warmup_steps=1)
    folder = train(tiny_data, tmp_path / "folder", options, workers=0)
    many = train(data, tmp_path / "many", options, workers=2)
    a, b = load_checkpoint(folder)["raw_weights"], load_checkpoint(many)["raw_weights"]
    for name, value in a.items():
        np.testing.assert_allclose(b[name].float(), value.float(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_full_model_is_fine_tuned_on_another_set(tiny_data: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    """As the paper goes from WIDER FACE to 300W-LP: weights and pose statistics of the first stage stay."""
    options = TrainOptions("full-18", 1, 2, 96, warmup_steps=1, proposals=16)
    first = train(tiny_data, tmp_path / "first", options, workers=0)
    test_300w_lp_folders(tmp_path / "lp", astronaut, "pt2d")
    for suffix in (".jpg", ".mat"):
        shutil.copy(tmp_path / f"lp/AFW/a{suffix}", tmp_path / f"lp/AFW/b{suffix}")
    (tmp_path / "lp/lp.lmdb").unlink()
    data = prepare(tmp_path / "lp", tmp_path / "lp/lp.lmdb").path
    still = TrainOptions(**{**vars(options), "learning_rate": 0.0})
    second = train(data, tmp_path / "second", still, initial=first, workers=0)
    a, b = load_checkpoint(first)["weights"], load_checkpoint(second)["raw_weights"]
    for name in ("pose_mean", "pose_std", "rpn.head.bbox_pred.weight", "roi_heads.box_head.fc6.weight"):
        np.testing.assert_array_equal(a[name], b[name])


def test_preparing_goes_on_after_an_interruption(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from img2pose_edge.training import prepare as module

    monkeypatch.setattr(module, "BATCH", 5)
    real, seen = module.read_item, []

    def stop_at_eight(source: module.Source, longest: int) -> tuple:
        seen.append(source.name)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return real(source, longest)

    monkeypatch.setattr(module, "read_item", stop_at_eight)
    out = tmp_path / "tiny.lmdb"
    with pytest.raises(KeyboardInterrupt):
        prepare(tiny_data, out, workers=1)
    with pytest.raises(ValueError, match=r"is not finished \(5 of 12 images\).*again"):
        open_data(out, tmp_path)
    monkeypatch.setattr(module, "read_item", lambda s, longest: seen.append(s.name) or real(s, longest))
    seen.clear()
    assert len(prepare(tiny_data, out).records) == 12
    assert len(seen) == 7, "what was written is not read again"
    (tmp_path / "tiny_pose_mean.npy").unlink()
    seen.clear()
    assert len(prepare(tiny_data, out).records) == 12, "a finished one is left as it is"
    assert seen == []
    assert (tmp_path / "tiny_pose_mean.npy").exists()
    with pytest.raises(ValueError, match="holds another data set"):
        prepare(tiny_data, out, longest=100)
    corrected = tmp_path / "corrected"
    shutil.copytree(tiny_data, corrected)
    out = prepare(corrected, tmp_path / "corrected.lmdb").path
    labels = corrected / "labels.jsonl"
    labels.write_text(labels.read_text().replace('"faces"', ' "faces"'))
    with pytest.raises(ValueError, match="other labels"):
        prepare(corrected, out)


def test_a_data_set_may_be_renamed(tiny_data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_data, first)
    out = prepare(first, tmp_path / "a.lmdb").path
    first.rename(second)
    assert len(prepare(second, out).records) == 12


def test_a_face_that_shrinking_takes_out_of_the_picture_is_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((300, 400, 3), np.uint8))
    boxes = [[399.98, 10, 440, 50], [10, 10, 50, 50]]
    label = {"image": "a.png", "width": 400, "height": 300, "faces": [{"box": box} for box in boxes]}
    (tmp_path / "labels.jsonl").write_text(json.dumps(label))
    for longest, faces in ((0, 2), (64, 1)):
        records = prepare(tmp_path, tmp_path / f"{longest}.lmdb", longest=longest).records
        assert len(records[0].faces) == faces


def test_a_replaced_image_makes_another_data_set(tmp_path: Path) -> None:
    image = tmp_path / "images/a.png"
    image.parent.mkdir()
    image.write_bytes(b"old")
    label = {"image": "images/a.png", "width": 9, "height": 9, "faces": []}
    texts = {
        "labels.jsonl": json.dumps(label),
        "label.txt": "# a.png\n1 2 3 4\n",
        "list.txt": "a.json\n",
        "a.json": json.dumps({"image_path": "a.png", "bboxes": [], "landmarks": []}),
        "images/a.pts": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    sources = {name: read_sources(tmp_path / name) for name in ("labels.jsonl", "label.txt", "list.txt", "images")}

    def identities() -> list[int]:
        return [identify(tmp_path / name, found, 0) for name, found in sources.items()]

    before = identities()
    assert identities() == before
    image.write_bytes(b"another")
    larger = identities()
    os.utime(image, (1, 1))
    older = identities()
    image.unlink()
    missing = identities()
    for four in zip(before, larger, older, missing, strict=True):
        assert len({*four}) == 4


def test_blank_lines_and_marks_of_editors_mean_nothing(tiny_data: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    lines = [json.loads(line) for line in (tiny_data / "labels.jsonl").read_text().splitlines()]
    lines[1]["note"] = "one\u2028line"  # that str.splitlines would split
    text = "\r\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    labels.write_text(f"{text}\n \n", encoding="utf-8-sig", newline="")
    names = [line["image"] for line in lines]
    assert [record.image for record in read_records(labels)] == names
    assert [source.name for source in read_sources(labels)] == names
    assert whole_lines(labels) == {*names}
    labels.write_text(f"\n{text}\n\n{{}}\n", encoding="utf-8-sig", newline="")
    for read in (read_records, read_sources, whole_lines):
        with pytest.raises(ValueError, match=r"labels\.jsonl, line 26: KeyError"):
            read(labels)


def test_names_that_are_no_text_can_be_split_and_kept(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels = [json.loads(line) for line in (data / "labels.jsonl").read_text().splitlines()]
    odd = os.fsdecode(b"images/wider/\xe9t\xe9.jpg")
    (data / labels[0]["image"]).rename(data / odd)
    labels[0]["image"] = odd
    (data / "labels.jsonl").write_text("\n".join(json.dumps(label) for label in labels))
    records, pixels = open_data(data, tmp_path / "cache")
    training, held_out = split(records)
    assert len(training) + len(held_out) == len(labels)
    assert pixels[0].shape == (labels[0]["height"], labels[0]["width"], 3)
    assert prepare(data, tmp_path / "odd.lmdb").records[0].image == odd


def test_the_pixel_cache_notices_other_pictures(tiny_data: Path, tmp_path: Path) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(tiny_data, data)
    records, pixels = open_data(data, cache)
    before = pixels[0].copy()
    picture = data / records[0].image
    cv2.imwrite(str(picture), 255 - before)
    assert np.abs(open_data(data, cache)[1][0].astype(int) - before).max() > 50
    picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=picture.name):
        open_data(data, cache)
    assert len(list(cache.iterdir())) == 2, "what could not be finished leaves nothing"
    old, new = (cache / f"pixels-1.{number}" for number in (17, 18))  # of one that was killed, and of one at work
    for path, age in ((old, 7200), (new, 60)):
        path.touch()
        os.utime(path, (0, time.time() - age))
    cv2.imwrite(str(picture), before // 2)  # another picture: its cache is built
    open_data(data, cache)
    assert new.exists()
    assert not old.exists()


def test_bad_images_are_named_and_skipped(tmp_path: Path, astronaut: np.ndarray, capsys: Capture) -> None:
    good = {"box": ASTRONAUT_BOX.tolist()}
    faces = {
        "good.png": good,
        "nan.png": {"box": [1, 2, float("nan"), 9]},
        "outside.png": {"box": [600, 10, 650, 40]},
        "extent.png": {"box": [120, 80, 60, 70]},
        "unit.png": {"box": [-1500, -1500, 1500, 1500]},
        "text.png": {**good, "angles": [1, 2, 3], "spread": "4.0"},
        "angles.png": {**good, "angles": [1, 2]},
        "spread.png": {**good, "angles": [1, 2, 3], "spread": "wide"},
        "none.png": None,
        "missing.png": good,
        "broken.png": good,
    }
    for name in faces:
        if name != "missing.png":
            write_image(tmp_path / name, astronaut)
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    labels = [{"image": n, "width": 512, "height": 512, "faces": [f]} for n, f in faces.items()]
    write_image(tmp_path / "size.png", astronaut)
    labels.append({"image": "size.png", "width": 640, "height": 512, "faces": [good]})
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps(v) for v in labels))
    out = tmp_path / "out.lmdb"
    with pytest.raises(ValueError, match=r"nan\.png: face 0: box must be finite numbers.*--skip-bad"):
        prepare(tmp_path, out)
    assert main(["prepare", str(tmp_path), "--out", str(out), "--skip-bad"]) == 0
    said = capsys.readouterr()
    assert "1 images, 1 faces" in said.out
    assert "skipped 11:" in said.err
    for words in (
        "nan.png: face 0: box must be finite",
        "outside.png: face 0: box [600.0, 10.0, 650.0, 40.0] lies outside the 512x512 image",
        "extent.png: face 0: box must be x1, y1, x2, y2 with x2 > x1 and y2 > y1, got [120.0, 80.0, 60.0, 70.0]",
        "unit.png: face 0: box [-1500.0, -1500.0, 1500.0, 1500.0] is far larger than the 512x512 image",
        "text.png: face 0: spread must be finite numbers of shape ()",
        "angles.png: face 0: angles must be finite numbers of shape (3,)",
        "spread.png: face 0: spread must be finite numbers of shape ()",
        "none.png: face 0",
        "size.png: it is 512x512; its label says 640x512",
        "missing.png",
        "broken.png is truncated",
    ):
        assert words in said.err
    for number, label in enumerate(labels[1:4], 2):
        (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps(v) for v in [labels[0]] * (number - 1) + [label]))
        with pytest.raises(ValueError, match=f"line {number}.*face 0"):
            read_records(tmp_path / "labels.jsonl")


def test_labels_of_wrong_kinds_are_named(tmp_path: Path) -> None:
    face, labels = {"box": [1, 2, 30, 40]}, tmp_path / "labels.jsonl"
    for label, words in (
        ({"faces": [[1, 2, 30, 40]]}, "face 0: it must be an object with box"),
        ({"faces": [{**face, "angles": [1, 2, 3], "spread": -4}]}, "spread is degrees of uncertainty, got -4"),
        ({"width": "320"}, "must be positive whole numbers, got '320'"),
        ({"width": -5}, "must be positive whole numbers, got -5"),
        ({"width": float("inf")}, "must be positive whole numbers, got inf"),
        ({"faces": [{**face, "angles": [1, 2, 3], "spread": "wide"}]}, "spread must be finite"),
        ({"height": 320.5}, "must be positive whole numbers, got 320.5"),
    ):
        whole = {"image": "wider/a.jpg", "width": 320, "height": 320, "faces": [face], **label}
        labels.write_text(json.dumps(whole))
        with pytest.raises(ValueError, match=f"line 1: .*{words}"):
            read_records(labels)
    labels.write_text(json.dumps({"image": "a.jpg", "width": 320.0, "height": 240, "faces": [face]}))
    assert read_records(labels)[0].width == 320
    labels.write_bytes('{"image": "\xe9"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1: UnicodeDecodeError"):
        read_records(labels)


def test_damaged_records_of_an_lmdb_are_named(tiny_data: Path, tmp_path: Path) -> None:
    out = prepare(tiny_data, tmp_path / "tiny.lmdb").path
    env = lmdb.open(str(out), subdir=False, map_size=1 << 30)
    with env.begin(write=True) as transaction:
        image = bytearray(transaction.get(b"image/00000003"))
        image[100] ^= 255
        transaction.put(b"image/00000003", bytes(image))
        transaction.put(b"label/00000005", b"{no json")
    env.close()
    with pytest.raises(ValueError, match=r"2 damaged records: record 3 of .*tiny\.lmdb \(images.*image is damaged"):
        open_data(out, tmp_path)
    mended = prepare(out, tmp_path / "mended.lmdb", skip_bad=True)
    assert len(mended.records) == 10
    assert [("record 3" in s, "record 5" in s) for s in mended.skipped] == [(True, False), (False, True)]
    out.write_bytes(b"no database at all" * 1000)
    with pytest.raises(ValueError, match="cannot be read as LMDB"):
        open_data(out, tmp_path)


def test_an_lmdb_that_is_cut_off_is_named(tiny_data: Path, tmp_path: Path) -> None:
    out = prepare(tiny_data, tmp_path / "tiny.lmdb").path
    os.truncate(out, out.stat().st_size // 2)
    for use in (lambda: open_data(out, tmp_path), lambda: prepare(tiny_data, out)):
        with pytest.raises(ValueError, match=r"tiny\.lmdb is cut off: it has \d+ of \d+ bytes"):
            use()


def test_an_lmdb_of_a_corrected_lmdb_is_another(tiny_data: Path, tmp_path: Path) -> None:
    data, first, second = tmp_path / "data", tmp_path / "first.lmdb", tmp_path / "second.lmdb"
    shutil.copytree(tiny_data, data)
    prepare(prepare(data, first).path, second)
    assert len(prepare(first, second).records) == 12
    labels = data / "labels.jsonl"
    labels.write_text(labels.read_text().replace("[-5.0, 1.0, 3.0]", "[-5.0, 9.0, 3.0]"))
    first.unlink()
    prepare(data, first)
    with pytest.raises(ValueError, match="other labels"):
        prepare(first, second)


def test_other_peoples_lmdbs_are_left_alone(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "WIDER_train_annotations.lmdb"
    env = lmdb.open(str(out), subdir=False, map_size=1 << 20)
    with env.begin(write=True) as transaction:
        transaction.put(b"__len__", b"0")
    env.close()
    before = out.read_bytes()
    with pytest.raises(ValueError, match="holds another data set"):
        prepare(tiny_data, out)
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="none that 'img2pose-edge prepare' wrote"):
        open_data(out, tmp_path)
    out.write_bytes(b"no database at all" * 1000)
    with pytest.raises(ValueError, match="cannot be opened as LMDB"):
        prepare(tiny_data, out)


def test_images_without_labels_are_named(tmp_path: Path, astronaut: np.ndarray) -> None:
    test_300w_folders(tmp_path, astronaut)
    write_image(tmp_path / "01_Indoor/b.png", astronaut)
    done = prepare(tmp_path, tmp_path / "more.lmdb", skip_bad=True)
    assert done.skipped == ["01_Indoor/b.png: no .mat or .pts beside it"]


def test_notes_of_macos_are_no_images(tmp_path: Path, astronaut: np.ndarray) -> None:
    for suffix in (".png", ".pts"):
        (tmp_path / "01_Indoor").mkdir(exist_ok=True)
        (tmp_path / f"01_Indoor/._a{suffix}").write_bytes(b"\0\5\x16\7")
    test_300w_folders(tmp_path, astronaut)


def test_a_few_photographs_are_split_too(tiny_data: Path) -> None:
    records = read_records(tiny_data / "labels.jsonl")
    training, held_out = split(records)
    assert len(held_out) == 1
    assert sorted(training + held_out) == list(range(12))
    assert split(records[:2]) in (([0], [1]), ([1], [0]))
    with pytest.raises(ValueError, match="at least two images with a face to learn from, got 1"):
        split(records[:1])


def test_data_sets_that_are_none_are_named(tmp_path: Path) -> None:
    for path, error, words in (
        (tmp_path / "none", FileNotFoundError, "no data set"),
        (tmp_path, ValueError, r"names no image: expected label\.txt of RetinaFace"),
    ):
        with pytest.raises(error, match=words):
            prepare(path, tmp_path / "out.lmdb")
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(ValueError, match="names no image"):
        prepare(tmp_path / "list.txt", tmp_path / "out.lmdb")
    with pytest.raises(ValueError, match=r"must end in \.lmdb"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "labels.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_records(tmp_path / "labels.jsonl")
    (tmp_path / "list.txt").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"list\.txt is not a text file"):
        prepare(tmp_path / "list.txt", tmp_path / "out.lmdb")
    (tmp_path / "list.txt").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"list\.txt is JSON of another kind: expected label\.txt"):
        prepare(tmp_path / "list.txt", tmp_path / "out.lmdb")
    for options, words in (({"longest": -5}, "longest must be at least 0"), ({"workers": 0}, "workers must be at")):
        with pytest.raises(ValueError, match=words):
            prepare(tmp_path / "list.txt", tmp_path / "out.lmdb", **options)
    with pytest.raises(ValueError, match="images are named for lists of RetinaFace and img2pose"):
        prepare(tmp_path, tmp_path / "out.lmdb", images=tmp_path)
    assert not (tmp_path / "out.lmdb").exists()
    (tmp_path / "list.txt").write_text("gone.json\n")
    with pytest.raises(ValueError, match=r"names gone\.json, which is not there"):
        prepare(tmp_path / "list.txt", tmp_path / "out.lmdb")


def test_own_photographs_are_labelled_by_the_bundled_model(
    tmp_path: Path, astronaut: np.ndarray, capsys: Capture
) -> None:
    write_image(tmp_path / "photos/a/one.png", astronaut)
    write_image(tmp_path / "photos/two.jpg", astronaut[:, ::-1])
    (tmp_path / "photos/zero.png").write_bytes(b"")
    arguments = ["annotate", str(tmp_path / "photos")]
    assert main(arguments) == 1
    assert "zero.png is empty (--skip-bad leaves such images out)" in capsys.readouterr().err
    assert main([*arguments, "--skip-bad"]) == 0
    labels = tmp_path / "photos/labels.jsonl"
    assert "skipped 1:" in capsys.readouterr().err
    labels.write_text(labels.read_text()[:-40])  # cut off in its last line, as by an interruption
    assert main([*arguments, "--skip-bad"]) == 0
    assert "1 images labelled, 1 faces" in capsys.readouterr().out
    records = read_records(labels)
    assert sorted(r.image for r in records) == ["a/one.png", "two.jpg"]
    mirrored = {r.image: geometry.matrix_to_angles(r.faces.local[0]) for r in records}
    assert np.abs(mirrored["a/one.png"] - mirrored["two.jpg"] * [1, -1, -1]).max() < 8
    text = labels.read_text()
    labels.write_text(text.rstrip("\n"))  # a whole last line, as an editor may leave it
    assert len(whole_lines(labels)) == 2
    assert labels.read_text() == text
    mended = text + '{"image": "three.jpg", "width": 9, "height": 9, "faces": []},'  # by hand, and not right
    labels.write_text(mended)
    assert len(whole_lines(labels)) == 2
    assert labels.read_text() == text
    assert (tmp_path / "photos/labels.jsonl.cut").read_text() == mended.removeprefix(text)
    for other in ("{}\n", "{}", '[{"image": "one.png"}]'):
        labels.write_text(text + other)
        with pytest.raises(ValueError, match=r"labels\.jsonl, line 3: (KeyError|TypeError)"):
            whole_lines(labels)
        assert labels.read_text() == text + other


@pytest.mark.parametrize("peer", ["yunet_n", "scrfd_500m_kps"])
def test_own_photographs_are_labelled_by_a_detector_and_pnp(tmp_path: Path, astronaut: np.ndarray, peer: str) -> None:
    model = shared(f"peers/{peer}.onnx")
    write_image(tmp_path / "one.png", astronaut)
    assert main(["annotate", str(tmp_path), "--detector", str(model)]) == 0
    (record,) = read_records(tmp_path / "labels.jsonl")
    (box,) = record.faces.boxes
    np.testing.assert_allclose(box, ASTRONAUT_BOX, atol=15)
    np.testing.assert_allclose(record.faces.landmarks[0], ASTRONAUT_POINTS, atol=10)
    angles = geometry.matrix_to_angles(record.faces.local[0])
    assert (np.abs(angles - [-5, 1, 3]) < [20, 8, 5]).all()  # she smiles: five points take that for looking down


def test_a_detector_without_points_is_refused(tmp_path: Path, astronaut: np.ndarray, capsys: Capture) -> None:
    write_image(tmp_path / "one.png", astronaut)
    model = shared("peers/ultralight_rfb_320.onnx")
    assert main(["annotate", str(tmp_path), "--detector", str(model)]) == 1
    assert "marks no points to take poses from" in capsys.readouterr().err
    assert not (tmp_path / "labels.jsonl").exists()


def test_a_detector_that_is_none_is_named(tmp_path: Path, astronaut: np.ndarray, capsys: Capture) -> None:
    write_image(tmp_path / "one.png", astronaut)
    bundled = Path(__file__).parents[1] / "img2pose_edge/models/edge-n.onnx"
    assert main(["annotate", str(tmp_path), "--detector", str(bundled)]) == 1
    assert "neither YuNet nor SCRFD" in capsys.readouterr().err
    assert main(["annotate", str(tmp_path), "--detector", str(tmp_path / "one.png")]) == 1
    assert "not a model that ONNX Runtime can load" in capsys.readouterr().err
