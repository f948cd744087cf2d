"""Commands that measure: ``bench``, ``steadiness`` and ``evaluate``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from img2pose_edge.commands.options import add_detector_options, check_replaces, detector_from
from img2pose_edge.files import check_writable, write_file
from img2pose_edge.manifest import find_model, write_manifest


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
    values = {name: getattr(options, name) for name in fields if getattr(options, name) is not None}
    check_reports(options.report, (".html", ".json", ".png", ".md"), options.models or ())
    document = run_bench(BenchOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))
    print(short_table(document))  # before what may fail: measuring took long
    for line in document["missing"]:
        print(f"not measured: {line}", file=sys.stderr)
    written = write_report(document, options.report)
    print(*(f"wrote {path}" for path in written), sep="\n")
    return 130 if INTERRUPTED in document["missing"] else 0


def check_reports(page: Path, suffixes: Sequence[str], models: Sequence[str]) -> None:
    """Before what takes long: that the page and what lies beside it can be written, and replace no model's manifest."""
    outputs = [page.with_suffix(suffix) for suffix in suffixes]
    for path in outputs:
        check_writable(path)
    for model in models:
        try:
            path = find_model(model).path
        except (OSError, ValueError):  # told where it is opened
            continue
        check_replaces(outputs, path)


def steadiness(options: argparse.Namespace) -> int:
    from img2pose_edge.benchmarks.video_report import check_page, run_video_bench, tables, write_video_report

    check_page(options.report)
    check_reports(options.report, (".md", ".json", ".png"), [options.model] if options.model else [])
    document = run_video_bench(options.data, options.pictures, options.model, options.threads)
    print(tables(document))
    written = write_video_report(document, options.report)
    print(*(f"wrote {path}" for path in written), sep="\n")
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
    if options.score_threshold is not None and not options.data:
        raise ValueError("--score-threshold has no effect on AP, AFLW2000-3D and BIWI as published: leave it out")
    changed = [n for n in ("input_size", "score_threshold", "nms_iou") if getattr(options, n) is not None]
    if options.write_manifest and changed:
        named = ", ".join(f"--{n.replace('_', '-')}" for n in changed)
        raise ValueError(f"--write-manifest is for the model's own settings: leave out {named}")
    detector = detector_from(options)
    if options.multi_scale and detector.model.fixed:
        height, width = detector.model.fixed
        raise ValueError(
            f"--multi-scale has many sizes, and {detector.model.path.name} takes images of {width}x{height} only"
        )
    manifest = detector.model.path.with_suffix(".json")
    check_replaces((options.json,), detector.model.path)
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


def add_commands(commands: Any) -> None:
    p = commands.add_parser("bench", help="accuracy, latency, memory and size of our models and of peers")
    p.add_argument("--report", type=Path, default=Path("report.html"), help="page; .json, .png and .md beside it")
    p.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="two earlier benchmarks, side by side")
    p.add_argument("--data", type=Path, help="folder of the evaluation sets: wider/, aflw2000/ and pointing04/")
    p.add_argument("--peers", type=Path, metavar="DIR", help="folder of yunet_n.onnx, scrfd_…, headpose_b66.onnx")
    interpreter = "interpreter that has mediapipe==0.10.21, scikit-image and this package"
    p.add_argument("--mediapipe", default="", metavar="PYTHON", help=interpreter)
    p.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="ours, names or paths (default: bundled)")
    p.add_argument("--sizes", nargs="+", type=int, default=[640, 320], metavar="PX", help="longest sides of the input")
    p.add_argument("--threads", nargs="+", type=int, metavar="N", help="(default: 1, and 2 on two cores or more)")
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
