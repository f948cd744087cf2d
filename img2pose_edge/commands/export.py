"""Commands from checkpoint to model: ``export``, ``quantize``, ``sensitivity``, ``parity``, ``convert-checkpoint``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from img2pose_edge.commands.images import Photographs, add_picture_options, find_images, spread_pictures
from img2pose_edge.detector import PoseDetector
from img2pose_edge.engines import ENGINES
from img2pose_edge.files import check_writable, real
from img2pose_edge.preprocess import load_image
from img2pose_edge.progress import track


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
    images = Photographs(find_images(options.images)) if options.images else None
    print(export_model(options.checkpoint, options.out, chosen, images))
    return 0


def image_size(text: str) -> tuple[int, int]:
    """``640x480`` (width x height) to height and width."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT, as 640x480, got {text!r}")
    return int(height), int(width)


def quantize(options: argparse.Namespace) -> int:
    from img2pose_edge.quantize.graph import quantize_checkpoint
    from img2pose_edge.training.checkpoint import save_checkpoint

    check_writable(options.out)
    if real(options.out) == real(options.checkpoint):
        raise ValueError(f"--out {options.out} is the checkpoint itself, whose float weights would be lost")
    state = quantize_checkpoint(options.checkpoint, spread_pictures(options), options.float_layers, options.steps)
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
    named = [model_and_engine(name) for name in options.models]
    first, engine = named[0]
    if first.endswith(".pt") and engine != "auto":
        raise ValueError(f"{first} is a checkpoint, which torch runs: name it without @{engine}")
    for name, _ in named[1:]:
        if name.endswith(".pt"):
            raise ValueError(f"{name} is a checkpoint, which only the first may be: export it, or name it first")
    paths = find_images(options.images)
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

    check_writable(options.out)
    sources = options.source, options.pose_mean, options.pose_std, options.points68
    if real(options.out) in [real(path) for path in sources]:
        raise ValueError(f"--out {options.out} is what is read, and would be lost")
    print(convert(options.source, options.out, *sources[1:], options.depth))
    return 0


def add_commands(commands: Any) -> None:
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
        metavar="IOU",
        help="average the poses of a face whose boxes overlap by this; 0: do not (default: 0.6, full networks 0)",
    )
    p.set_defaults(do=export)

    p = commands.add_parser("quantize", help="edge checkpoint to a quantized one, to export with --precision int8")
    p.add_argument("--checkpoint", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, metavar="INT8.pt")
    p.add_argument(
        "--float-layers", nargs="+", default=[], metavar="LAYER", help="convolutions to keep in float, by name"
    )
    p.add_argument(
        "--steps", type=int, default=600, help="of adjusting weights to their rounding, by all images; 0 for none"
    )
    add_picture_options(p)
    p.set_defaults(do=quantize, count=400)

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
