"""Videos measured as a whole: steadiness, lag, identities, the fast path; as JSON, tables and a plot."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from img2pose_edge.benchmarks.accuracy import wider_records
from img2pose_edge.benchmarks.bench import load_before, machine
from img2pose_edge.benchmarks.fast_path import FastComparison
from img2pose_edge.benchmarks.figures import markdown, was_busy
from img2pose_edge.benchmarks.motion import TURN_SPEED, Motion, Scene, motions, still
from img2pose_edge.benchmarks.steadiness import (
    Trace,
    clip_jitter,
    clip_switches,
    face_center,
    follow,
    follow_clip,
    jitter,
    lag,
    mean_rotation,
    switches,
    time_tracker,
    turned_angles,
    wander,
)

from img2pose_edge import geometry
from img2pose_edge.detector import PoseDetector
from img2pose_edge.engines import choose_engine, installed
from img2pose_edge.files import write_file
from img2pose_edge.manifest import default_model
from img2pose_edge.preprocess import load_image
from img2pose_edge.progress import track
from img2pose_edge.tracking import PoseTracker
from img2pose_edge.video import Source

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('reports need matplotlib: pip install "img2pose-edge[bench]"') from error

EVERY = (5, 30)
"""Frames from one whole frame to the next, of the fast path."""
SMALLEST, MOST_FACES = 70.0, 6
"""Photographs to move over: all their faces at least so high, pixels at a width of 640, and no more of them."""
HELD = 2
"""Frames of each clip that a camera at rest looks at."""
FAST_MOTIONS = ("pan", "sway")
"""In which the fast path is measured."""
TITLES = {
    "pan": f"pan, {TURN_SPEED:.0f}°/s",
    "roll": f"roll, {TURN_SPEED:.0f}°/s",
    "sway": "pan, tilt and roll, slow",
    "zoom": "zoom to 1.5",
}
PLACES = {"clips": "clips", "rendered": "pan and sway"}
TIMES = ("median_ms", "p95_ms", "cpu_ms")
LINES = (("true", "truth", "k--"), ("raw", "raw", ".-"), ("smooth", "smoothed", "-"))
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
"""What a page has around the tables that are replaced in it."""


def choose_photos(wider: Path, count: int) -> list[Path]:
    """Photographs of WIDER FACE's subset with a few large faces, evenly spread over those in the file's order.

    Raises:
        FileNotFoundError: if the subset is not there.
        ValueError: if it has fewer, or is no subset of this project's.
    """
    suitable = []
    for record in wider_records(wider):
        if "width" not in record:
            raise ValueError(
                f"{wider}: --data names the folder of this project's subsets, whose records tell the width"
            )
        heights = np.array(record["boxes_xywh"]).reshape(-1, 4)[:, 3] * 640 / record["width"]
        if 1 <= len(heights) <= MOST_FACES and heights.min() >= SMALLEST and record["width"] >= record["height"]:
            suitable.append(wider / record["image"])
    if not suitable:
        raise ValueError(
            f"{wider} has no photograph to move over: of 1 to {MOST_FACES} faces, {SMALLEST:.0f} pixels high "
            "at a width of 640, and no higher than wide"
        )
    if not 1 <= count <= len(suitable):
        raise ValueError(f"pictures must be 1 to {len(suitable)}, got {count}")
    return [suitable[i] for i in np.linspace(0, len(suitable) - 1, count).round().astype(int)]


def open_scene(detector: PoseDetector, photo: np.ndarray) -> Scene | None:
    """A camera that looks at the largest face; ``None`` if no face is found."""
    camera = Scene(photo, np.zeros(2)).camera
    faces = detector.detect(photo, intrinsics=camera)
    if not faces:
        return None
    return Scene(photo, face_center(min(faces, key=lambda face: face.translation[2])))


Traced = dict[str, list[tuple[Motion, Trace]]]
"""By motion: it, and each face of each photograph in it."""


def run_video_bench(data: Path, pictures: int = 6, model: str | None = None, threads: int = 1) -> dict[str, Any]:
    """Measure everything: about three minutes on one core.

    Raises:
        FileNotFoundError, ValueError: if the data are not there, or too few.
    """
    photos = choose_photos(data / "wider", pictures)
    clips = sorted(p for p in (data / "video").glob("*") if p.suffix in (".gif", ".mkv", ".mp4"))
    if not clips:
        raise FileNotFoundError(f"no clips in {data / 'video'}")
    cv2.setNumThreads(threads)
    began, load = datetime.now(timezone.utc), load_before()
    detector = PoseDetector(model, threads=threads)
    if detector.model.fixed:
        raise ValueError(f"{detector.model.path.name} takes one size of input only: crops of videos need others")
    detectors = {choose_engine("auto", detector.model)[0]: detector}
    if installed("openvino") and "openvino" not in detectors:
        detectors["openvino"] = PoseDetector(model or default_model("openvino"), "openvino", threads=threads)
    scenes = {path.name: scene for path in photos if (scene := open_scene(detector, load_image(path)))}
    if not scenes:
        raise ValueError(f"{detector.model.path.name} finds no face in any of the photographs")
    rendered, moving = measure_rendered(detectors, list(scenes.values()))
    watched, seen = measure_clips(detectors, clips)
    return {
        "date": began.isoformat(timespec="seconds"),
        "command": shlex.join(["img2pose-edge", *sys.argv[1:]]),
        "machine": {**machine(), **load},
        "models": {name: one.model.manifest["name"] for name, one in detectors.items()},
        "sha256": {one.model.path.name: one.model.manifest["sha256"] for one in detectors.values()},
        "threads": threads,
        "smoothing": PoseTracker().smoothing,
        "photographs": list(scenes),
        "rendered": {name: summarize(name, traces) for name, traces in rendered.items()},
        "held": summarize("still", measure_held(detector, clips)),
        "clips": watched,
        "tracker": time_tracker(detector),
        "fast": {"clips": seen, "rendered": moving},
        "series": series(rendered),
    }


def measure_rendered(detectors: dict[str, PoseDetector], scenes: Sequence[Scene]) -> tuple[Traced, dict[str, Any]]:
    """All motions over photographs: traces by the first detector, and the fast path of each in those that pan."""
    traced: Traced = {motion.name: [] for motion in motions()}
    fast = {name: FastComparison(one, EVERY) for name, one in detectors.items()}
    detector = next(iter(detectors.values()))
    for seed, scene in enumerate(track(scenes, "moving over photographs")):
        for motion in motions():
            images = list(scene.frames(motion, seed))
            traced[motion.name] += [(motion, trace) for trace in follow(detector, scene, motion, images)]
            if motion.name in FAST_MOTIONS:
                for comparison in fast.values():
                    comparison.add((images, motion.times.tolist(), list(motion.cameras)))
    return traced, {name: comparison.summary() for name, comparison in fast.items()}


def measure_held(detector: PoseDetector, clips: Sequence[Path]) -> list[tuple[Motion, Trace]]:
    """Frames of the clips, evenly spread, held before a camera at rest: their people are still for certain then."""
    traced, motion = [], still()
    for path in track(clips, "holding frames of clips"):
        with Source(path) as source:
            frames = list(source)
        for seed, number in enumerate(np.linspace(0, len(frames) - 1, HELD + 2).round().astype(int)[1:-1]):
            scene = open_scene(detector, frames[number].image)
            if scene:
                images = list(scene.frames(motion, seed))
                traced += [(motion, trace) for trace in follow(detector, scene, motion, images)]
    return traced


def measure_clips(
    detectors: dict[str, PoseDetector], clips: Sequence[Path]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each clip's figures by the first detector, and the fast path of each detector in all clips."""
    fast = {name: FastComparison(one, EVERY) for name, one in detectors.items()}
    detector = next(iter(detectors.values()))
    watched = []
    for path in track(clips, "watching clips"):
        with Source(path) as source:
            frames = list(source)
        times = np.array([frame.time for frame in frames])
        tracked = follow_clip(detector, frames)
        counts = Counter(t.id for found in tracked for t in found)
        watched.append(
            {
                "clip": path.name,
                "rate": round(source.rate, 1),
                "frames": len(frames),
                "lasting": sum(count >= len(frames) / 2 for count in counts.values()),
                "ids": len(counts),
                "switches": clip_switches(tracked, times),
                **clip_jitter(tracked, times),
            }
        )
        for comparison in fast.values():
            comparison.add(([frame.image for frame in frames], times.tolist(), [None] * len(frames)))
    return watched, {name: comparison.summary() for name, comparison in fast.items()}


def summarize(name: str, traces: Sequence[tuple[Motion, Trace]]) -> dict[str, Any]:
    """Of one motion: medians over the faces that were measured, and the worst of them."""
    measured = [(motion, trace) for motion, trace in traces if trace.measured]
    figures: dict[str, Any] = {
        "faces": len(measured),
        "switches": sum(switches(trace.ids) for _, trace in traces if trace.inside),
    }
    if not measured:
        return figures
    rows = [of_trace(name, motion, trace) for motion, trace in measured]
    for key in rows[0]:
        values = [row[key] for row in rows]
        worst = min(values) if key.startswith("times") else max(values)
        figures[key] = {"median": float(np.median(values)), "worst": float(worst)}
    return figures


def of_trace(name: str, motion: Motion, trace: Trace) -> dict[str, float]:
    """Figures of one face in one motion."""
    if name == "still":
        found = jitter(trace)
        ratios = {f"times_{unit}": found[f"raw_{unit}"] / found[f"smooth_{unit}"] for unit in ("deg", "px")}
        return {**found, **ratios}
    found = wander(trace)
    if motion.is_turn:
        raw, smooth = turned_angles(trace, motion)
        # The network may show a turn of 60 degrees as one of 55: that is an error of the pose, no lag.
        true = (motion.angles - motion.angles[0]) * raw[trace.found][-1] / (motion.angles[-1] - motion.angles[0])
        found |= {"lag_ms": lag(smooth, raw, motion), "late_ms": lag(smooth, true, motion)}
        found |= {"raw_late_ms": lag(raw, true, motion)}
    return found


def series(rendered: Traced) -> dict[str, dict[str, list[float | None]]]:
    """What the plot shows: of the first face that was measured in all of still, pan and roll."""
    shown = {}
    names = ("still", "pan", "roll")
    for traces in zip(*(rendered[name] for name in names), strict=True):
        if all(trace.measured for _, trace in traces):
            for name, (motion, trace) in zip(names, traces, strict=True):
                if name == "still":
                    middle = mean_rotation(trace.raw[trace.found])
                    raw, smooth = (
                        np.degrees(geometry.matrix_to_rotvec(r @ middle.T))[:, 1] for r in (trace.raw, trace.smooth)
                    )
                else:
                    raw, smooth = turned_angles(trace, motion)
                true = motion.angles - motion.angles[0]
                columns = {"time": motion.times, "true": true, "raw": raw, "smooth": smooth}
                shown[name] = {k: [None if np.isnan(x) else round(float(x), 4) for x in v] for k, v in columns.items()}
            break
    return shown


# --- tables and plot -----------------------------------------------------------------------------


def shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def both(figures: dict[str, Any], key: str, digits: int) -> str:
    """Median and worst."""
    return f"{figures[key]['median']:.{digits}f} / {figures[key]['worst']:.{digits}f}" if key in figures else "–"


def tables(document: dict[str, Any]) -> str:
    """Everything measured, as Markdown."""
    rendered, clips = document["rendered"], document["clips"]
    rest = [["still camera: RMS, median / worst face", "faces", "raw", "smoothed", "times less"]]
    for what, found in (("photographs", rendered["still"]), ("frames of the clips", document["held"])):
        for unit, title in (("deg", "rotation, degrees"), ("px", "sides of the box, pixels")):
            cells = [*(both(found, f"{k}_{unit}", 2) for k in ("raw", "smooth")), both(found, f"times_{unit}", 1)]
            rest.append([f"{what}: {title}", str(found["faces"]), *cells])
    moving = [["moving camera, median / worst face", "faces", "smoothed behind raw, ms", "raw behind the truth, ms"]]
    moving[0] += ["smoothed behind the truth, ms", "raw off, degrees RMS", "smoothed off", "switches"]
    for name, title in TITLES.items():
        figures = rendered[name]
        row = [title, str(figures["faces"]), *(both(figures, k, 0) for k in ("lag_ms", "raw_late_ms", "late_ms"))]
        moving.append([*row, *(both(figures, k, 1) for k in ("raw_deg", "smooth_deg")), str(figures["switches"])])
    watched = [["clip", "frames a second", "lasting faces", "ids", "switches", "still, s", "raw °", "smoothed °"]]
    watched[0] += ["raw px", "smoothed px", "shaking, times less: °", "px"]
    for clip in clips:
        row = [clip["clip"], f"{clip['rate']:g}", *(str(clip[k]) for k in ("lasting", "ids", "switches"))]
        figures = [shown(clip[k], 2) for k in ("raw_deg", "smooth_deg", "raw_px", "smooth_px")]
        for unit in ("deg", "px"):
            raw, smooth = (clip[f"{which}_{unit}_shake"] for which in ("raw", "smooth"))
            figures.append("–" if raw is None else f"{raw / smooth:.1f}")
        watched.append([*row, f"{clip['seconds']:.1f}", *figures])
    spent = document["tracker"]
    tracker = (
        f"`PoseTracker.update` with {spent['faces']:.0f} faces: {spent['alone_ms']:.2f} ms (median) by itself; between "
        f"detections {spent['median_ms']:.2f} ms, {spent['first_ms']:.2f} ms right after one, which leaves the caches "
        "full of the network."
    )
    fast = [
        ["fast path", "engine", "whole frame one time in", "ms: median", "p95", "CPU ms, mean", "faces missed", "extra"]
    ]
    fast[0] += ["rotation differs, degrees: median", "p95", "frames looked at whole"]
    for where, by_engine in document["fast"].items():
        for engine, found in by_engine.items():
            times = [shown(found["whole"][k], 1) for k in TIMES]
            fast.append([PLACES[where], engine, "1", *times, "–", "–", "–", "–", str(found["frames"])])
            for every, row in found["fast"].items():
                times = [shown(row[k], 1) for k in TIMES]
                turned = [shown(row[k], 1) for k in ("median_deg", "p95_deg")]
                faces = [f"{row['missed']} of {found['faces']}", str(row["extra"])]
                fast.append([PLACES[where], engine, every, *times, *faces, *turned, str(row["whole_frames"])])
    where, threads = document["machine"], document["threads"]
    names = ", ".join(f"`{model}` in {engine}" for engine, model in document["models"].items())
    load = where.get("load_before", 0.0)
    measured = (
        f"{document['date'][:10]}, {where['processor']}, {threads} thread{'s' * (threads > 1)}, load {load} before; "
        f"{names}; {len(document['photographs'])} photographs of the WIDER FACE subset; {len(clips)} clips."
    )
    if was_busy(where):
        measured += " The machine was busy with other work: times but the CPU's are too long."
    return "\n\n".join([measured, markdown(rest), markdown(moving), markdown(watched), tracker, markdown(fast)])


def draw(document: dict[str, Any]) -> bytes:
    """Raw and smoothed rotation against the truth, as PNG."""
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    titles = {
        "still": "Still camera: yaw",
        "pan": f"Pan at {TURN_SPEED:.0f}°/s",
        "roll": f"Roll at {TURN_SPEED:.0f}°/s",
    }
    for number, (name, values) in enumerate(document["series"].items(), 1):
        axes = figure.add_subplot(1, len(document["series"]), number)
        columns = {k: np.array(v, float) for k, v in values.items()}
        for key, label, style in LINES:
            axes.plot(columns["time"], columns[key], style, label=label, linewidth=1.4, markersize=3.5)
        axes.set_title(titles[name], fontsize=10)
        axes.set_xlabel("seconds", fontsize=8)
        axes.set_ylabel("degrees", fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def check_page(page: Path) -> None:
    """Raises ``ValueError`` for a page whose name is no Markdown file's."""
    if page.suffix != ".md":
        raise ValueError(f"the page is Markdown and must end in .md, got {page}")


def write_video_report(document: dict[str, Any], page: Path) -> list[Path]:
    """Write the tables into a page, between :data:`BEGIN` and :data:`END` if it has them, and the plot and the document
    beside it (``.png``, ``.json``).

    Raises:
        ValueError: if the page's name is no Markdown file's.
    """
    check_page(page)
    data = page.with_suffix(".json")
    # First: drawing may fail, and measuring took long.
    write_file(data, (json.dumps(document, indent=1) + "\n").encode())
    picture = page.with_suffix(".png")
    text = f"{BEGIN}\n\n![Raw and smoothed poses against the truth]({picture.name})\n\n{tables(document)}\n\n{END}"
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    if BEGIN in old and END in old:
        text = old[: old.index(BEGIN)] + text + old[old.index(END) + len(END) :]
    else:
        text += "\n"
    contents = {page: text.encode(), picture: draw(document)}
    for path, content in contents.items():
        write_file(path, content)
    return [data, *contents]
