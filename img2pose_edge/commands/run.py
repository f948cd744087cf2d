"""Commands that find faces: ``detect``, ``video``, ``live`` and ``demo``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2

from img2pose_edge.commands.images import check_picture_suffix, find_images, write_picture
from img2pose_edge.commands.options import (
    add_calibration_option,
    add_detector_options,
    add_frame_options,
    add_sender_options,
    check_replaces,
    detector_from,
    detector_options,
)
from img2pose_edge.draw import draw_faces
from img2pose_edge.face import Face
from img2pose_edge.files import check_writable, real, write_file
from img2pose_edge.preprocess import IMAGE_SUFFIXES, load_image
from img2pose_edge.progress import track


def table(faces: Sequence[Face]) -> str:
    """Faces as lines of text: score, box, angles in degrees, translation in millimetres."""
    lines = [f"{'score':>5}  {'box x1,y1,x2,y2':>23}  {'pitch':>6} {'yaw':>6} {'roll':>6}  {'x, y, z mm':>20}"]
    for face in faces:
        box = ",".join(f"{v:.0f}" for v in face.box)
        where = ", ".join(f"{v:.0f}" for v in face.translation_mm)
        lines.append(f"{face.score:5.2f}  {box:>23}  {face.pitch:6.1f} {face.yaw:6.1f} {face.roll:6.1f}  {where:>20}")
    return "\n".join(lines)


def table_files(options: argparse.Namespace) -> list[Path]:
    """Of ``--csv`` and ``--jsonl``, those that are wanted."""
    for path, suffix in ((options.csv, ".csv"), (options.jsonl, ".jsonl")):
        if path and path.suffix.lower() != suffix:
            raise ValueError(f"--{suffix[1:]} writes a file that ends in {suffix}, got {path}")
    return [path for path in (options.csv, options.jsonl) if path]


def drawn_path(source: Path, out: Path, alone: bool) -> Path:
    """Where the drawing of ``source`` goes: ``out`` itself for one image, else a file in folder ``out``."""
    return out if alone and out.suffix.lower() in IMAGE_SUFFIXES else out / f"{source.stem}.png"


@contextmanager
def stopped_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM, which stops a service, ends what is done here as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@stopped_as_by_ctrl_c()
def detect(options: argparse.Namespace) -> int:
    from img2pose_edge.calibration import read_calibration
    from img2pose_edge.coco import write_coco
    from img2pose_edge.look import look
    from img2pose_edge.rows import RowWriter

    tables = table_files(options)
    paths = find_images(options.paths, options.draw)  # drawings of last time are no photographs
    alone = len(paths) == 1
    if options.draw and not alone and options.draw.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"--draw {options.draw} is one file but there are {len(paths)} images: name a folder")
    sources = {real(path) for path in paths}
    if options.draw and real(options.draw) in sources:
        raise ValueError(f"--draw {options.draw} would replace the image itself: name another file or folder")
    if options.draw and real(options.draw) in {path.parent for path in sources}:
        for target in (drawn_path(path, options.draw, alone) for path in paths):
            if target.exists() and real(target) not in sources:
                raise ValueError(f"--draw would replace {target}, perhaps a photograph: name another folder")
    outputs = {"--json": options.json, "--coco": options.coco, "--csv": options.csv, "--jsonl": options.jsonl}
    for name, file in outputs.items():
        if file and (file.suffix.lower() in IMAGE_SUFFIXES or real(file) in sources):
            raise ValueError(f"{name} {file} is a picture, which results would replace: name another file")
    if options.coco and str(options.coco) == "-":
        raise ValueError("--coco writes a file, not to the terminal: name one")
    written: dict[Path, str] = {}
    for name, file in outputs.items():
        other = written.setdefault(real(file), name) if file else name
        if other != name:
            raise ValueError(f"{other} and {name} would both write {file}: name two files")
    if options.draw and alone and options.draw.suffix and not options.draw.is_dir():
        check_picture_suffix(options.draw)
    for file in outputs.values():  # all, before any is made
        if file and str(file) != "-":
            check_writable(file)
    if str(options.json) == "-" and sys.stdout is None:
        raise OSError("--json -: standard output is closed")
    detector = detector_from(options)
    check_replaces(outputs.values(), detector.model.path, options.calibration)
    calibration = read_calibration(options.calibration) if options.calibration else None
    results, pictured, bad, taken, done = [], [], [], sources, False
    opened = ExitStack()
    try:
        rows = [opened.enter_context(RowWriter(path, begin=False)) for path in tables]
        for writer in rows:
            writer.begin()
        for path in track(paths, "detecting") if not alone else paths:
            try:
                image = load_image(path)
                camera = calibration and calibration.for_size(image.shape[1], image.shape[0])
            except (ValueError, OSError) as error:
                bad.append(f"{error}")
                continue
            found = detector.detect(image, intrinsics=camera and camera.intrinsics)
            looked = look(found, 0.0, None, camera)
            faces = looked.faces
            results.append({"image": str(path), "faces": looked.told()})
            pictured.append((str(path), image.shape[1::-1], found))
            for writer in rows:
                writer.write(faces, str(path))
            if not any(outputs.values()):
                print(f"{path}: {len(faces)} face{'' if len(faces) == 1 else 's'}")
                if faces:
                    print(table(faces))
            if options.draw:
                target = drawn_path(path, options.draw, alone)
                while real(target) in taken:  # two folders may hold files of one name; no image is replaced
                    target = target.with_name(f"{target.stem}_{target.suffix}")
                taken.add(real(target))
                write_picture(target, draw_faces(image, looked.seen))
        done = True
    finally:  # what was found stays, though the rest is interrupted or cannot be drawn
        opened.close()
        for line in bad:
            print(f"error: {line}", file=sys.stderr)
        if options.json and (results or done):
            text = json.dumps(results, indent=1) + "\n"
            if str(options.json) == "-":
                print(text, end="")
            else:
                write_file(options.json, text.encode())
        if options.coco and (pictured or done):
            write_coco(options.coco, pictured)
    return 1 if bad else 0


def video(options: argparse.Namespace) -> int:
    from img2pose_edge.calibration import read_calibration
    from img2pose_edge.record import record
    from img2pose_edge.senders import open_senders
    from img2pose_edge.tracking import PoseTracker
    from img2pose_edge.video import Source

    if not (options.out or options.csv or options.jsonl or options.opentrack or options.osc):
        raise ValueError("nothing to write or send: name --out, --csv, --jsonl, --opentrack or --osc")
    rows = table_files(options)
    detector = detector_from(options)
    calibration = read_calibration(options.calibration) if options.calibration else None
    with stopped_as_by_ctrl_c(), open_senders(options.opentrack, options.osc) as send:
        done = record(
            Source(options.source, options.rate, options.camera_size),
            detector,
            out=options.out,
            rows=rows,
            tracker=PoseTracker(sure_score=detector.score_threshold) if options.smooth else None,
            calibration=calibration,
            every=options.every,
            fast=options.fast,
            send=send,
            sound=Path(options.source) if os.path.isfile(options.source) else None,  # a pipeline may be too long a path
            progress=True,
        )
    print(f"{done.frames} frames, {done.faces} faces{', interrupted' if done.interrupted else ''}")
    for path in filter(None, (options.out, options.csv, options.jsonl)):
        if done.frames:
            print(f"wrote {path}")
    return 130 if done.interrupted else 0


def live(options: argparse.Namespace) -> int:
    from img2pose_edge.calibration import read_calibration
    from img2pose_edge.live.command import serve
    from img2pose_edge.live.shared import SharedDetector
    from img2pose_edge.senders import open_senders

    calibration = read_calibration(options.calibration) if options.calibration else None
    detector = SharedDetector(
        **detector_options(options), smooth=options.smooth, fast=options.fast, calibration=calibration
    )
    with open_senders(options.opentrack, options.osc) as send:
        serve(
            options.source,
            detector,
            options.host,
            options.port,
            send=send,
            rate=options.rate,
            camera_size=options.camera_size,
            token=options.token,
        )
    return 0


def demo(options: argparse.Namespace) -> int:
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise ImportError("the demo's photograph comes with scikit-image: pip install scikit-image") from error
    check_picture_suffix(options.out)
    image = cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR)
    faces = detector_from(options).detect(image)
    write_picture(options.out, draw_faces(image, faces))
    print(table(faces))
    print(f"wrote {options.out}")
    return 0


def add_commands(commands: Any) -> None:
    p = commands.add_parser("detect", help="find faces and poses in photographs")
    p.add_argument("paths", nargs="+", metavar="PATH", help="files, folders (searched below) or globs")
    p.add_argument("--draw", type=Path, metavar="OUT", help="annotated picture, or folder for many")
    p.add_argument("--json", type=Path, metavar="OUT", help="results as JSON ('-' prints them)")
    p.add_argument("--coco", type=Path, metavar="OUT", help="results as a COCO data set")
    p.add_argument("--csv", type=Path, metavar="OUT.csv", help="results as a table, a row for each face")
    p.add_argument("--jsonl", type=Path, metavar="OUT.jsonl", help="the same as JSON lines")
    add_calibration_option(p)
    add_detector_options(p)
    p.set_defaults(do=detect)

    p = commands.add_parser("video", help="find, track and write the faces of a video, camera or stream")
    p.add_argument(
        "source", metavar="SOURCE", help="file, folder of images, camera number, address or GStreamer pipeline"
    )
    p.add_argument("--out", type=Path, metavar="OUT.mp4", help="annotated video, with the file's sound")
    p.add_argument("--csv", type=Path, metavar="OUT.csv", help="a row for each face of each frame")
    p.add_argument("--jsonl", type=Path, metavar="OUT.jsonl", help="the same as JSON lines")
    p.add_argument("--every", type=int, default=1, metavar="N", help="look at one of N frames")
    add_frame_options(p)
    add_sender_options(p)
    add_detector_options(p)
    p.set_defaults(do=video)

    p = commands.add_parser("live", help="a camera's faces on a page, and POST /detect")
    p.add_argument(
        "--source",
        default="0",
        metavar="SOURCE",
        help="camera's number (default: 0), video, folder, address or GStreamer pipeline",
    )
    p.add_argument("--host", default="127.0.0.1", help="where to listen; beyond loopback a token is asked for")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument(
        "--token",
        default=os.environ.get("IMG2POSE_EDGE_TOKEN") or None,
        help="what is asked for, at least 16 letters (default: IMG2POSE_EDGE_TOKEN, else a new one each time)",
    )
    add_frame_options(p)
    add_sender_options(p)
    add_detector_options(p)
    p.set_defaults(do=live)

    p = commands.add_parser("demo", help="annotate the astronaut photograph of scikit-image")
    p.add_argument("--out", type=Path, default=Path("demo.png"))
    add_detector_options(p)
    p.set_defaults(do=demo)
