"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from img2pose_edge.detector import PoseDetector
from img2pose_edge.files import real


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


def key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"an engine's option is KEY=VALUE, got {text!r}")
    return key, value


def detector_options(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_detector_options` added, as :class:`PoseDetector` takes it."""
    names = "model", "engine", "input_size", "score_threshold", "nms_iou", "threads"
    return {**{name: getattr(options, name) for name in names}, "engine_options": dict(options.engine_option)}


def detector_from(options: argparse.Namespace) -> PoseDetector:
    return PoseDetector(**detector_options(options))


def check_replaces(outputs: Iterable[Path | None], model: Path, calibration: Path | None = None) -> None:
    """Raise ValueError if an output would replace a file of the model or the calibration."""
    kept = [model, model.with_suffix(".json"), model.with_suffix(".bin"), *([calibration] if calibration else [])]
    for path in filter(None, outputs):
        if real(path) in map(real, kept):
            raise ValueError(
                f"{path} belongs to the model or the calibration, which results would replace: name another"
            )


def camera_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT, as 1280x720, got {text!r}")
    return int(width), int(height)


def add_frame_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate", type=float, metavar="FPS", help="of a folder of images (default: 25), a raw stream (.h264), a camera"
    )
    parser.add_argument("--camera-size", type=camera_size, metavar="WxH", help="what a camera is asked for: 1280x720")
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
