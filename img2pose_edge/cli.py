"""Command line: ``img2pose-edge COMMAND``; ``--help`` lists the commands."""

from __future__ import annotations

import argparse
import glob
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from img2pose_edge import __version__
from img2pose_edge.completion import SHELLS, PrintCompletion
from img2pose_edge.detector import PoseDetector
from img2pose_edge.draw import draw_faces
from img2pose_edge.engines import ENGINES
from img2pose_edge.face import Face
from img2pose_edge.files import check_writable, write_file
from img2pose_edge.manifest import write_manifest
from img2pose_edge.preprocess import IMAGE_SUFFIXES, is_image, load_image
from img2pose_edge.progress import track


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Image files named by paths, folders (searched below) and globs, in order, without repeats.

    Raises:
        FileNotFoundError: for a folder without images, or a pattern that matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if is_image(p))
            if not matches:
                raise FileNotFoundError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in folder {path}")
        elif path.exists() or not glob.has_magic(pattern):
            matches = [path]
        else:
            matches = [Path(p) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).is_file()]
            if not matches:
                raise FileNotFoundError(f"no image matches {pattern}")
        found.update(dict.fromkeys(matches))
    return list(found)


def table(faces: Sequence[Face]) -> str:
    """Faces as lines of text: score, box, angles in degrees, translation in millimetres."""
    lines = [f"{'score':>5}  {'box x1,y1,x2,y2':>23}  {'pitch':>6} {'yaw':>6} {'roll':>6}  {'x, y, z mm':>20}"]
    for face in faces:
        box = ",".join(f"{v:.0f}" for v in face.box)
        where = ", ".join(f"{v:.0f}" for v in face.translation_mm)
        lines.append(f"{face.score:5.2f}  {box:>23}  {face.pitch:6.1f} {face.yaw:6.1f} {face.roll:6.1f}  {where:>20}")
    return "\n".join(lines)


def check_picture_suffix(path: Path) -> None:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"cannot write a picture as {path}: use {', '.join(IMAGE_SUFFIXES)}")


def write_picture(path: Path, image: Any) -> None:
    """Encode by the path's suffix and write atomically."""
    check_picture_suffix(path)
    suffix = path.suffix.lower()
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"cannot write {path}: {suffix} does not hold a picture of {image.shape[1]}x{image.shape[0]}")
    write_file(path, data.tobytes())


def drawn_path(source: Path, out: Path, alone: bool) -> Path:
    """Where the drawing of ``source`` goes: ``out`` itself for one image, else a file in folder ``out``."""
    return out if alone and out.suffix.lower() in IMAGE_SUFFIXES else out / f"{source.stem}.png"


def detector_options(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_detector_options` added, as :class:`PoseDetector` takes it."""
    names = "model", "engine", "input_size", "score_threshold", "nms_iou", "threads"
    return {**{name: getattr(options, name) for name in names}, "engine_options": dict(options.engine_option)}


def detector_from(options: argparse.Namespace) -> PoseDetector:
    return PoseDetector(**detector_options(options))


def key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"an engine's option is KEY=VALUE, got {text!r}")
    return key, value


def detect(options: argparse.Namespace) -> int:
    from img2pose_edge.calibration import read_calibration
    from img2pose_edge.look import look

    paths = find_images(options.paths)
    alone = len(paths) == 1
    if options.draw and not alone and options.draw.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"--draw {options.draw} is one file but there are {len(paths)} images: name a folder")
    sources = {path.resolve() for path in paths}
    if options.draw and options.draw.resolve() in sources:
        raise ValueError(f"--draw {options.draw} would replace the image itself: name another file or folder")
    if options.json and (options.json.suffix.lower() in IMAGE_SUFFIXES or options.json.resolve() in sources):
        raise ValueError(f"--json {options.json} is a picture, which results would replace: name another file")
    if options.draw and alone and options.draw.suffix and not options.draw.is_dir():
        check_picture_suffix(options.draw)
    if options.json and str(options.json) != "-":
        check_writable(options.json)
    detector = detector_from(options)
    calibration = read_calibration(options.calibration) if options.calibration else None
    results, bad, taken, done = [], [], sources, False
    try:
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
            results.append({"image": str(path), "faces": [f.to_dict() for f in faces]})
            if not options.json:
                print(f"{path}: {len(faces)} face{'' if len(faces) == 1 else 's'}")
                if faces:
                    print(table(faces))
            if options.draw:
                target = drawn_path(path, options.draw, alone)
                while target.resolve() in taken:  # two folders may hold files of one name; no image is replaced
                    target = target.with_name(f"{target.stem}_{target.suffix}")
                taken.add(target.resolve())
                write_picture(target, draw_faces(image, looked.seen))
        done = True
    finally:  # what was found stays, though the rest is interrupted or cannot be drawn
        for line in bad:
            print(f"error: {line}", file=sys.stderr)
        if options.json and (results or done):
            text = json.dumps(results, indent=1) + "\n"
            if str(options.json) == "-":
                print(text, end="")
            else:
                write_file(options.json, text.encode())
    return 1 if bad else 0


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


def video(options: argparse.Namespace) -> int:
    from img2pose_edge.calibration import read_calibration
    from img2pose_edge.record import record
    from img2pose_edge.senders import open_senders
    from img2pose_edge.tracking import PoseTracker
    from img2pose_edge.video import Source

    if not (options.out or options.csv or options.jsonl or options.opentrack or options.osc):
        raise ValueError("nothing to write or send: name --out, --csv, --jsonl, --opentrack or --osc")
    for path, suffix in ((options.csv, ".csv"), (options.jsonl, ".jsonl")):
        if path and path.suffix.lower() != suffix:
            raise ValueError(f"--{suffix[1:]} writes a file that ends in {suffix}, got {path}")
    detector = detector_from(options)
    calibration = read_calibration(options.calibration) if options.calibration else None
    with stopped_as_by_ctrl_c(), open_senders(options.opentrack, options.osc) as send:
        done = record(
            Source(options.source, options.rate),
            detector,
            out=options.out,
            rows=[path for path in (options.csv, options.jsonl) if path],
            tracker=PoseTracker(sure_score=detector.score_threshold) if options.smooth else None,
            calibration=calibration,
            every=options.every,
            fast=options.fast,
            send=send,
            sound=Path(options.source) if os.path.isfile(options.source) else None,  # a pipeline may be too long a path
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
        serve(options.source, detector, options.host, options.port, send)
    return 0


def demo(options: argparse.Namespace) -> int:
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise ImportError("the demo's photograph comes with scikit-image: pip install scikit-image") from error
    image = cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR)
    faces = detector_from(options).detect(image)
    write_picture(options.out, draw_faces(image, faces))
    print(table(faces))
    print(f"wrote {options.out}")
    return 0


def report_skipped(skipped: list[str]) -> None:
    if skipped:
        print(f"skipped {len(skipped)}:", *skipped, sep="\n  ", file=sys.stderr)


def prepare(options: argparse.Namespace) -> int:
    from img2pose_edge.training.prepare import prepare as run

    done = run(
        options.source,
        options.out,
        images=options.images,
        longest=options.longest,
        skip_bad=options.skip_bad,
        workers=options.workers,
    )
    report_skipped(done.skipped)
    print(f"{done.path}: {len(done.records)} images, {sum(len(r.faces) for r in done.records)} faces")
    for path in done.statistics:
        print(path)
    return 0


def annotate(options: argparse.Namespace) -> int:
    from img2pose_edge.training.annotate import annotate as run
    from img2pose_edge.training.annotate import label_by_detector, label_by_model

    if not 0 <= options.score_threshold <= 1:
        raise ValueError(f"score_threshold must be between 0 and 1, got {options.score_threshold}")
    if options.detector and options.model:
        raise ValueError("--detector and --model both label: name one")
    if options.detector:
        label = label_by_detector(options.detector, options.score_threshold)
    else:
        label = label_by_model(options.model, options.score_threshold)
    out = options.out or Path(options.paths[0]) / "labels.jsonl"
    if not options.out and not out.parent.is_dir():
        raise ValueError("name --out FOLDER/labels.jsonl, as the first path is no folder")
    done = run(find_images(options.paths), out, label, skip_bad=options.skip_bad)
    report_skipped(done.skipped)
    print(f"{out}: {done.images} images labelled, {done.faces} faces")
    return 0


def train(options: argparse.Namespace) -> int:
    from img2pose_edge.training.loop import TrainOptions
    from img2pose_edge.training.loop import train as run

    fields = TrainOptions.__dataclass_fields__
    if options.proposals is None:
        options.proposals = fields["proposals"].default
    elif options.network.startswith("edge-"):
        raise ValueError(f"--proposals is for full networks, not for {options.network}")
    options.float_layers = tuple(options.float_layers)
    chosen = TrainOptions(**{name: getattr(options, name) for name in fields})
    print(
        run(
            options.data,
            options.out,
            chosen,
            initial=options.initial,
            cache=options.cache,
            device=options.device,
            workers=options.workers,
            validate_every=options.validate_every,
        )
    )
    return 0


def average(options: argparse.Namespace) -> int:
    from img2pose_edge.training.average import average_checkpoints
    from img2pose_edge.training.checkpoint import save_checkpoint

    check_writable(options.out)
    save_checkpoint(average_checkpoints(options.checkpoints), options.out)
    print(options.out)
    return 0


def curves(options: argparse.Namespace) -> int:
    from img2pose_edge.training.curves import draw_curves

    check_writable(options.out)
    print(draw_curves(options.runs, options.out))
    return 0


def export(options: argparse.Namespace) -> int:
    from img2pose_edge.export.model import FORMATS, ExportOptions, export_model

    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    chosen = ExportOptions(
        format=options.format or by_suffix.get(options.out.suffix, "onnx"),
        precision=options.precision,
        size=options.size,
        proposals=options.proposals,
        merge_iou=options.merge_iou,
        data=options.data_note,
        licence=options.licence,
    )
    images = [load_image(path) for path in find_images(options.images)] if options.images else None
    print(export_model(options.checkpoint, options.out, chosen, images))
    return 0


def image_size(text: str) -> tuple[int, int]:
    """``640x480`` (width x height) to height and width."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT, as 640x480, got {text!r}")
    return int(height), int(width)


def spread_pictures(options: argparse.Namespace) -> list[np.ndarray]:
    """``--count`` of the ``--images``, evenly spread, as the network sees them."""
    from img2pose_edge.preprocess import letterbox

    if options.count < 1:
        raise ValueError(f"count must be at least 1, got {options.count}")
    if options.input_size < 64:
        raise ValueError(f"input_size must be at least 64 pixels, got {options.input_size}")
    paths = find_images(options.images)
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, options.count).round().astype(int))]
    return [letterbox(load_image(path), options.input_size, 64)[0] for path in track(chosen, "reading")]


def quantize(options: argparse.Namespace) -> int:
    from img2pose_edge.quantize.graph import quantize_checkpoint
    from img2pose_edge.training.checkpoint import save_checkpoint

    check_writable(options.out)
    state = quantize_checkpoint(options.checkpoint, spread_pictures(options), options.float_layers)
    save_checkpoint(state, options.out)
    print(options.out)
    return 0


def sensitivity(options: argparse.Namespace) -> int:
    from img2pose_edge.quantize.sensitivity import sensitivities

    found = sensitivities(options.checkpoint, spread_pictures(options))
    print(f"{'layer':24} {'score':>8} {'centre':>8} {'size':>8} {'angle':>8}")
    for layer in found:
        figures = f"{layer.score:8.4f} {layer.centre:8.4f} {layer.size:8.4f} {layer.angle:7.3f}°"
        print(f"{layer.layer:24} {figures}")
    return 0


def parity(options: argparse.Namespace) -> int:
    from img2pose_edge.export.parity import ANGLE, BOX, SCORE, compare, load_torch, torch_detector

    if len(options.models) < 2:
        raise ValueError("parity compares models: name at least two")
    for name in options.models[1:]:
        if name.endswith(".pt"):
            raise ValueError(f"{name} is a checkpoint, which only the first may be: export it, or name it first")
    paths = find_images(options.images)
    named = [model_and_engine(name) for name in options.models]
    first, engine = named[0]
    network = load_torch(Path(first)) if first.endswith(".pt") else None
    print(f"against {first}; may differ: score {SCORE}, box {BOX} px at 640, angle {ANGLE} degrees")
    print(f"{'model':32} {'faces':>6} {'alone':>6} {'score':>7} {'box':>7} {'angle':>7} {'maps':>9}")
    same = True
    for name, (model, other) in zip(options.models[1:], named[1:], strict=True):
        detector = PoseDetector(model, engine=other, threads=options.threads)
        if network is None:
            reference = PoseDetector(first, engine=engine, threads=options.threads)
        else:
            reference = torch_detector(network, detector.model.path)
        found = compare(reference, detector, (load_image(path) for path in track(paths, name)))
        if not found.faces and not found.alone:
            raise ValueError(f"neither {first} nor {name} finds a face: parity shows nothing")
        same = same and found.holds
        figures = f"{found.score:7.3f} {found.box:7.2f} {found.angle:7.2f} {found.maps:9.6f}"
        print(f"{name:32} {found.faces:6} {found.alone:6} {figures}{'' if found.holds else '  differs'}")
    return 0 if same else 1


def model_and_engine(name: str) -> tuple[str, str]:
    """``MODEL@ENGINE`` in its parts, the engine ``auto`` if it is not named."""
    model, _, engine = name.rpartition("@")
    return (model, engine) if engine.split(":")[0] in ENGINES else (name, "auto")


def convert_checkpoint(options: argparse.Namespace) -> int:
    from img2pose_edge.training.official import convert_checkpoint as convert

    print(convert(options.source, options.out, options.pose_mean, options.pose_std, options.points68, options.depth))
    return 0


def without_nan(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The figures that there are: JSON has no NaN."""
    return {name: {k: v for k, v in values.items() if v == v} for name, values in figures.items()}


def evaluate(options: argparse.Namespace) -> int:
    from img2pose_edge.benchmarks import accuracy, published, wider

    folders = [options.data, options.wider, options.aflw2000, options.biwi, options.biwi_frames]
    ours = [options.data / folder for folder, _ in accuracy.EVALUATIONS.values()] if options.data else []
    for path in filter(None, [*folders, *ours]):
        accuracy.require(path)  # before hours go into the others
    if not any(folders[:4]):
        raise ValueError("nothing to evaluate on: name --data, --wider, --aflw2000 or --biwi")
    if options.multi_scale and not options.wider:
        raise ValueError("--multi-scale is for --wider, which is not given")
    if options.biwi_frames and not options.biwi:
        raise ValueError("--biwi-frames is for --biwi, which is not given")
    if options.multi_scale and options.input_size and not any((options.data, options.aflw2000, options.biwi)):
        raise ValueError("--multi-scale has sizes of its own: leave out --input-size")
    detector = detector_from(options)
    manifest = detector.model.path.with_suffix(".json")
    for path in (options.json, options.write_manifest and manifest):
        if path:
            check_writable(path)
    detect, points = accuracy.detect_by(detector), detector.model.points68
    figures: dict[str, dict[str, float]] = {}

    def report(name: str, values: dict[str, float]) -> None:
        figures[name] = values
        print(name)
        for key, value in values.items():
            print(f"  {key:20} {value:.3f}" if isinstance(value, float) else f"  {key:20} {value}", flush=True)
        if options.json:
            write_file(options.json, (json.dumps(without_nan(figures), indent=1) + "\n").encode())

    if options.data:
        for name, (folder, protocol) in accuracy.EVALUATIONS.items():
            report(name, protocol(detect, options.data / folder, None))
    if options.wider:
        name, pyramid = ("_multi_scale", wider.multi_scale(detector)) if options.multi_scale else ("", detect)
        report(f"wider_val{name}", accuracy.evaluate_wider(pyramid, options.wider))
    if options.aflw2000:
        report("aflw2000", published.evaluate_aflw2000_official(detect, options.aflw2000, points))
    if options.biwi:
        report("biwi", published.evaluate_biwi(detect, options.biwi, options.biwi_frames, points))
    if options.write_manifest:
        rounded = {k: {n: round(float(v), 4) for n, v in d.items()} for k, d in without_nan(figures).items()}
        metrics = {**detector.model.manifest["metrics"], **rounded}
        write_manifest({**detector.model.manifest, "metrics": metrics}, manifest)
        print(f"wrote {manifest}")
    return 0


def bench(options: argparse.Namespace) -> int:
    from img2pose_edge.benchmarks.compare import compare_documents, load_document

    if options.compare:
        before, after = (load_document(path) for path in options.compare)
        print(compare_documents(before, after))
        return 0
    from img2pose_edge.benchmarks.bench import INTERRUPTED, BenchOptions, run_bench
    from img2pose_edge.benchmarks.report import short_table, write_report

    if options.report.suffix != ".html":
        raise ValueError(f"the report is a page and must end in .html, got {options.report}")
    fields = BenchOptions.__dataclass_fields__
    values = {name: getattr(options, name) for name in fields}
    for suffix in (".html", ".json", ".png", ".md"):
        check_writable(options.report.with_suffix(suffix))
    document = run_bench(BenchOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))
    written = write_report(document, options.report)
    print(short_table(document))
    for line in document["missing"]:
        print(f"not measured: {line}", file=sys.stderr)
    print(*(f"wrote {path}" for path in written), sep="\n")
    return 130 if INTERRUPTED in document["missing"] else 0


def steadiness(options: argparse.Namespace) -> int:
    from img2pose_edge.benchmarks.video_report import check_page, run_video_bench, tables, write_video_report

    check_page(options.report)
    for suffix in (".md", ".json", ".png"):
        check_writable(options.report.with_suffix(suffix))
    document = run_video_bench(options.data, options.pictures, options.model, options.threads)
    written = write_video_report(document, options.report)
    print(tables(document))
    print(*(f"wrote {path}" for path in written), sep="\n")
    return 0


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="photographs: files, folders, globs")
    parser.add_argument("--count", type=int, default=96, help="of them that are used, evenly spread")
    parser.add_argument("--input-size", type=int, default=640, metavar="PX", help="longest side they are shown at")


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="bundled model's name, or path of a model (default: by machine and engine)")
    parser.add_argument(
        "--engine", default="auto", help="auto, onnxruntime (or onnxruntime:cuda, :tensorrt, …), openvino or tflite"
    )
    parser.add_argument(
        "--engine-option", type=key_value, action="append", default=[], metavar="KEY=VALUE", help="passed to the engine"
    )
    parser.add_argument("--input-size", type=int, metavar="PX", help="longest side the network sees")
    parser.add_argument("--score-threshold", type=float, metavar="P", help="least score of a face")
    parser.add_argument("--nms-iou", type=float, metavar="IOU", help="overlap above which two faces are one")
    parser.add_argument("--threads", type=int, help="threads of the engine")


def add_frame_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--smooth", action="store_true", help="track faces: ids, and poses without jitter")
    parser.add_argument(
        "--fast", type=int, default=0, metavar="K", help="crops around known faces, the whole frame one time in K only"
    )
    add_calibration_option(parser)


def add_calibration_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="of the camera, as OpenCV (YAML, XML, JSON) or ROS wrote it"
    )


def add_sender_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--opentrack",
        metavar="HOST:PORT",
        help="send a pose to OpenTrack (UDP): the surest face's; of tracked faces the longest known one's",
    )
    parser.add_argument("--osc", metavar="HOST:PORT", help="send poses by OSC")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="img2pose-edge", description="Every face in a picture with its 6DoF pose.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, choices=SHELLS, help="print what the shell sources to complete"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("detect", help="find faces and poses in photographs")
    p.add_argument("paths", nargs="+", metavar="PATH", help="files, folders (searched below) or globs")
    p.add_argument("--draw", type=Path, metavar="OUT", help="annotated picture, or folder for many")
    p.add_argument("--json", type=Path, metavar="OUT", help="results as JSON ('-' prints them)")
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
    p.add_argument("--rate", type=float, default=25.0, metavar="FPS", help="frames a second of a folder of images")
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
    add_frame_options(p)
    add_sender_options(p)
    add_detector_options(p)
    p.set_defaults(do=live)

    p = commands.add_parser("demo", help="annotate the astronaut photograph of scikit-image")
    p.add_argument("--out", type=Path, default=Path("demo.png"))
    add_detector_options(p)
    p.set_defaults(do=demo)

    p = commands.add_parser("prepare", help="turn a labelled data set into one LMDB to train on")
    p.add_argument(
        "source",
        type=Path,
        metavar="DATA",
        help="RetinaFace's label.txt, img2pose's list of JSON files, a folder of 300W-LP or 300W, labels.jsonl or LMDB",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DATA.lmdb")
    p.add_argument("--images", type=Path, help="folder that a list's image paths are relative to")
    p.add_argument("--longest", type=int, default=0, metavar="PX", help="shrink images to this longest side")
    p.add_argument("--skip-bad", action="store_true", help="leave out, count and list what cannot be used")
    p.add_argument("--workers", type=int, default=2, help="threads that read and decode")
    p.set_defaults(do=prepare)

    p = commands.add_parser("annotate", help="label photographs of one's own, to train on")
    p.add_argument("paths", nargs="+", metavar="PATH", help="files, folders (searched below) or globs")
    p.add_argument("--out", type=Path, metavar="labels.jsonl", help="default: in the first folder")
    p.add_argument("--detector", type=Path, metavar="ONNX", help="YuNet or SCRFD with five points; poses by PnP")
    p.add_argument("--model", help="without --detector: the model of ours that labels (default: the bundled one)")
    p.add_argument("--score-threshold", type=float, default=0.6, metavar="P", help="least score of a face")
    p.add_argument("--skip-bad", action="store_true", help="leave out, count and list what cannot be read")
    p.set_defaults(do=annotate)

    p = commands.add_parser("train", help="train a network, or go on with an interrupted run")
    p.add_argument(
        "--data", type=Path, required=True, help="folder with labels.jsonl and the images it names, or .lmdb"
    )
    p.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for checkpoints and metrics.csv")
    p.add_argument(
        "--network",
        default="edge-n",
        help="edge-n, edge-s, full-18, full-50 or full-101; img2pose-18 to fine-tune an official checkpoint",
    )
    p.add_argument("--steps", type=int, default=14000)
    p.add_argument("--batch-size", type=int, default=48)
    p.add_argument("--crop-size", type=int, default=320, help="pixels, a multiple of 32")
    p.add_argument("--learning-rate", type=float, default=2e-3)
    p.add_argument("--weight-decay", type=float, default=0.02)
    p.add_argument("--warmup-steps", type=int, default=500)
    p.add_argument("--ema-decay", type=float, default=0.999)
    p.add_argument("--clip-norm", type=float, default=10.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--optimizer", default="muon", help="muon, adamw or sgd")
    p.add_argument("--schedule", default="cosine", help="cosine, or plateau: a tenth of the rate without progress")
    p.add_argument("--augmentation", default="full", help="full, or mild: for a last phase")
    p.add_argument("--patience", type=int, default=0, help="stop after this many validations without progress")
    p.add_argument(
        "--proposals",
        type=int,
        help="of each picture that a full model's heads learn from (default: 512): fewer are faster",
    )
    p.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="edge or full network whose outputs an edge network learns too; of several, each step from one by lot",
    )
    p.add_argument(
        "--int8", action="store_true", help="fine-tune an edge network, from --initial, as it will be quantized"
    )
    p.add_argument(
        "--float-layers", nargs="+", default=(), metavar="LAYER", help="convolutions that --int8 keeps in float"
    )
    p.add_argument("--validate-every", type=int, default=1000, metavar="STEPS")
    p.add_argument("--initial", type=Path, metavar="CHECKPOINT", help="weights a new run starts from")
    p.add_argument("--cache", type=Path, help="folder for decoded pixels (default: the run's)")
    p.add_argument("--device", default="", help="cpu or cuda (default: CUDA where there is one)")
    p.add_argument("--workers", type=int, default=1, help="loader processes")
    p.set_defaults(do=train)

    p = commands.add_parser("average", help="one network of several that have trained on from the same one")
    p.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    p.add_argument("--out", type=Path, required=True, metavar="AVERAGE.pt")
    p.set_defaults(do=average)

    p = commands.add_parser("curves", help="draw losses and figures of training runs over their steps")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that train --out wrote to")
    p.add_argument("--out", type=Path, required=True, metavar="CURVES.png")
    p.set_defaults(do=curves)

    p = commands.add_parser("export", help="checkpoint to a model with its manifest, compared with torch")
    p.add_argument("--checkpoint", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, metavar="MODEL", help="ending in .onnx, .xml or .tflite")
    p.add_argument("--format", help="onnx, openvino or tflite (default: by --out)")
    p.add_argument("--precision", default="fp32", help="fp32, fp16, or int8 of a quantized checkpoint")
    p.add_argument("--size", type=image_size, metavar="WxH", help="of a .tflite model's input (default: 640x480)")
    p.add_argument("--images", nargs="+", metavar="PATH", help="photographs to compare on (default: scikit-image's)")
    p.add_argument("--data-note", default="", metavar="TEXT", help="training data, for the manifest")
    p.add_argument("--licence", default="", metavar="TEXT", help="of the weights, for the manifest")
    p.add_argument("--proposals", type=int, help="of a full network in an image (default: 1000): fewer are faster")
    p.add_argument(
        "--merge-iou",
        type=float,
        default=0.0,
        metavar="IOU",
        help="average the poses of a face whose boxes overlap by this: more accurate, slower",
    )
    p.set_defaults(do=export)

    p = commands.add_parser("quantize", help="edge checkpoint to a quantized one, to export with --precision int8")
    p.add_argument("--checkpoint", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, metavar="INT8.pt")
    p.add_argument(
        "--float-layers", nargs="+", default=[], metavar="LAYER", help="convolutions to keep in float, by name"
    )
    add_picture_options(p)
    p.set_defaults(do=quantize)

    p = commands.add_parser("sensitivity", help="what int8 costs in each layer of an edge checkpoint, on faces")
    p.add_argument("--checkpoint", type=Path, required=True)
    add_picture_options(p)
    p.set_defaults(do=sensitivity)

    p = commands.add_parser("parity", help="compare what exported models, or engines, find in photographs")
    p.add_argument(
        "models",
        nargs="+",
        metavar="MODEL[@ENGINE]",
        help="the first, or its CHECKPOINT.pt, is what others are compared with",
    )
    p.add_argument(
        "--images", nargs="+", required=True, metavar="PATH", help="files, folders (searched below) or globs"
    )
    p.add_argument("--threads", type=int, help="threads of the engines")
    p.set_defaults(do=parity)

    p = commands.add_parser("convert-checkpoint", help="official img2pose checkpoint to ours")
    p.add_argument("source", type=Path, metavar="img2pose_v1.pth")
    p.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT.pt")
    p.add_argument("--pose-mean", type=Path, required=True, metavar="MEAN.npy")
    p.add_argument("--pose-std", type=Path, required=True, metavar="STDDEV.npy")
    p.add_argument("--points68", type=Path, required=True, metavar="reference_3d_68_points_trans.npy")
    p.add_argument("--depth", type=int, default=18, help="of its ResNet: 18, 50 or 101")
    p.set_defaults(do=convert_checkpoint)

    p = commands.add_parser("bench", help="accuracy, latency, memory and size of our models and of peers")
    p.add_argument("--report", type=Path, default=Path("report.html"), help="page; .json, .png and .md beside it")
    p.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="two earlier benchmarks, side by side")
    p.add_argument("--data", type=Path, help="folder of the evaluation sets: wider/, aflw2000/ and pointing04/")
    p.add_argument("--peers", type=Path, metavar="DIR", help="folder of yunet_n.onnx, scrfd_…, headpose_b66.onnx")
    p.add_argument(
        "--mediapipe", default="", metavar="PYTHON", help="interpreter that has mediapipe==0.10.21 and this package"
    )
    p.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="ours, names or paths (default: bundled)")
    p.add_argument("--sizes", nargs="+", type=int, default=[640, 320], metavar="PX", help="longest sides of the input")
    p.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    p.add_argument("--faces", nargs="+", type=int, default=[0, 1, 10, 50], metavar="N", help="in the timed images")
    p.add_argument("--rounds", type=int, default=15, help="turns of every contender")
    p.set_defaults(do=bench)

    p = commands.add_parser(
        "steadiness", help="jitter, lag and identities of tracked faces; what --fast saves and misses"
    )
    p.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets: wider/ and video/")
    p.add_argument(
        "--report", type=Path, default=Path("video.md"), metavar="PAGE.md", help=".json and .png are written beside it"
    )
    p.add_argument("--pictures", type=int, default=6, metavar="N", help="photographs that the camera moves over")
    p.add_argument("--model", help="bundled model's name, or path (default: by machine and engine)")
    p.add_argument("--threads", type=int, default=1, help="threads of the engine")
    p.set_defaults(do=steadiness)

    p = commands.add_parser("evaluate", help="accuracy on WIDER FACE, AFLW2000-3D, BIWI and Pointing'04")
    p.add_argument("--data", type=Path, help="folder with this project's subsets: wider/, aflw2000/ and pointing04/")
    p.add_argument("--wider", type=Path, metavar="DIR", help="WIDER_val/images and the evaluation tools' ground_truth")
    p.add_argument(
        "--multi-scale", action="store_true", help="WIDER FACE at seven sizes, mirrored too, with box voting"
    )
    p.add_argument("--aflw2000", type=Path, metavar="DIR", help="AFLW2000-3D as distributed: .jpg and .mat")
    p.add_argument("--biwi", type=Path, metavar="DIR", help="BIWI as distributed: 01/ … 24/ with rgb.cal")
    p.add_argument("--biwi-frames", type=Path, metavar="FILE", help="img2pose's BIWI_annotations.txt (13,219 frames)")
    p.add_argument("--json", type=Path, metavar="OUT")
    p.add_argument("--write-manifest", action="store_true", help="record the figures in the model's manifest")
    add_detector_options(p)
    p.set_defaults(do=evaluate)
    return parser


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """What the library logs, from INFO on, goes to standard error while a command runs."""
    logger, handler = logging.getLogger("img2pose_edge"), logging.StreamHandler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


EXTRAS = {
    "train": ("torch", "torchvision", "lmdb", "onnx2torch", "scipy"),
    "export": ("onnx",),
    "quantize": ("torchao", "onnxscript"),
    "export-tflite": ("litert_torch",),
    "bench": ("matplotlib", "jinja2"),
    "demo": ("skimage",),
}
"""Modules that only some commands need, by what installs them."""
OWN_EXTRAS = {"export": "export", "quantize": "quantize", "sensitivity": "quantize"}
"""Of commands that need torch as training does, and more."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with log_to_stderr():
            return int(options.do(options))
    except ModuleNotFoundError as error:
        own = OWN_EXTRAS.get(options.do.__name__)
        extra = next((own or extra for extra, modules in EXTRAS.items() if error.name in modules), None)
        print(f"error: {error}" + (f' (pip install "img2pose-edge[{extra}]")' if extra else ""), file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
