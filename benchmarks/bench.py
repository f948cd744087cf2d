"""The whole benchmark: accuracy, latency, memory, size and work of our models and their peers, as one JSON document."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import queue
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from img2pose_edge.benchmarks.contenders import (
    Contender,
    mediapipe_contenders,
    our_contenders,
    peer_contenders,
)
from img2pose_edge.benchmarks.latency import (
    EVALUATION_LIMIT,
    ContenderError,
    Process,
    choose_cores,
    time_contenders,
)
from img2pose_edge.benchmarks.macs import count_macs
from img2pose_edge.benchmarks.scenes import FACE_COUNTS, HEIGHT, WIDTH
from img2pose_edge.benchmarks.sets import SETS

from img2pose_edge.manifest import find_model
from img2pose_edge.preprocess import letterbox
from img2pose_edge.progress import track

INTERRUPTED = "what had not been measured when it was interrupted"
"""What is missing of a benchmark that Ctrl-C ended."""
logger = logging.getLogger(__name__)
PACKAGES = ("img2pose-edge", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "ai-edge-litert")


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    ``models``: ours, names or paths; empty means the bundled ones. ``sizes``: longest sides of the networks' input.
    ``threads``, ``faces``: numbers of them, each of which is timed; threads are 1 and, where there are two cores, 2 if
    none are named. ``rounds``: turns of each contender.
    ``data``: folder of the evaluation sets, ``peers``: of the peers' models, ``mediapipe``: a Python interpreter that
    has MediaPipe, scikit-image and this package; without them that part is left out.

    Raises:
        FileNotFoundError: naming the folder or interpreter that is not there.
        ValueError: naming the option that is wrong.
    """

    models: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (640, 320)
    threads: tuple[int, ...] = field(default_factory=lambda: tuple(range(1, len(choose_cores()[:2]) + 1)))
    faces: tuple[int, ...] = FACE_COUNTS
    rounds: int = 15
    data: Path | None = None
    peers: Path | None = None
    mediapipe: str = ""

    def __post_init__(self) -> None:
        for name in ("data", "peers"):  # before an hour goes into the rest
            folder = getattr(self, name)
            if folder and not folder.is_dir():
                raise FileNotFoundError(f"{name}: no folder {folder}")
        if self.mediapipe and not shutil.which(self.mediapipe):
            raise FileNotFoundError(f"mediapipe: no Python interpreter {self.mediapipe}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        for faces in self.faces:
            if faces not in FACE_COUNTS:
                raise ValueError(f"faces must be among {', '.join(map(str, FACE_COUNTS))}, got {faces}")
        for name in ("sizes", "threads", "faces"):
            numbers = getattr(self, name)
            if not numbers or len(set(numbers)) < len(numbers):
                raise ValueError(f"{name} must be different numbers, got {', '.join(map(str, numbers)) or 'none'}")
        for size in self.sizes:
            if size < 32:
                raise ValueError(f"sizes must be at least 32, got {size}")
        for threads in self.threads:
            if threads < 1:
                raise ValueError(f"threads must be at least 1, got {threads}")
            try:
                choose_cores(threads)
            except ValueError as error:
                raise ValueError(f"threads: {error}") from error
        for name, numbers in (("threads", self.threads), ("faces", self.faces)):
            if 1 not in numbers:
                raise ValueError(f"{name} must hold 1, which the summary is about, got {', '.join(map(str, numbers))}")


def run_bench(options: BenchOptions) -> dict[str, Any]:
    """Measure everything that is there; what is not is listed under ``missing``, by name and reason.

    Interrupted by Ctrl-C it gives what it has, times of one number of threads and accuracy of one contender as a whole;
    :data:`INTERRUPTED` is then missing.

    Raises:
        ValueError: if there is nothing to measure, or two models have one file name.
        KeyboardInterrupt: if it is interrupted before it has anything.
    """
    missing: list[str] = []
    contenders = our_contenders(options.models, options.sizes, missing)
    if options.peers:
        contenders += peer_contenders(options.peers, options.sizes, missing)
    else:
        missing.append("peers: --peers names no folder")
    if options.mediapipe:
        contenders += mediapipe_contenders()
    else:
        missing.append("MediaPipe: --mediapipe names no Python that has it")
    if not any(contender.network.startswith(("full-", "img2pose-")) for contender in contenders):
        missing.append("the full model: it is not bundled (170 MB); name an exported one in --models")
    if not contenders:
        raise ValueError(f"nothing to measure: {'; '.join(missing)}")
    twice = [name for name, count in Counter(c.name for c in contenders).items() if count > 1]
    if twice:
        raise ValueError(f"models need file names of their own to be told apart: there are several of {twice[0]}")
    for line in missing:
        logger.warning("will not be measured: %s", line)  # an hour before the report says so
    pythons = {"mediapipe": options.mediapipe}
    began, load = datetime.now(timezone.utc), load_before()
    # Before the hour that follows: these are the files that it measures, and then nothing is left to be interrupted.
    weights = {contender.name: weigh(contender, missing) for contender in contenders}
    latency: dict[str, dict[str, dict[str, Any]]] = {}
    accuracy: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        for threads in options.threads:
            timed = time_contenders(contenders, threads, options.faces, options.rounds, pythons, missing)
            latency[str(threads)] = timed
        if options.data:
            accuracy = measure_accuracy(contenders, options.data, pythons, missing)
        else:
            missing.append("accuracy: --data names no folder")
    except KeyboardInterrupt:
        if not latency:
            raise
        missing.append(INTERRUPTED)
    results = []
    for contender in contenders:
        timed = {threads: of[contender.name] for threads, of in latency.items() if contender.name in of}
        figures = accuracy.get(contender.name, {})
        if timed or figures:
            own = {"latency": timed, "accuracy": figures, **weights[contender.name]}
            results.append({**contender.to_dict(), **own})
    if not results:
        raise ValueError(f"nothing could be measured: {'; '.join(dict.fromkeys(missing))}")
    return {
        "date": began.isoformat(timespec="seconds"),
        "command": shlex.join(["img2pose-edge", *sys.argv[1:]]),
        "machine": {**machine(), **load},
        "image": f"{WIDTH}x{HEIGHT}",
        "results": results,
        "missing": list(dict.fromkeys(missing)),
    }


def measure_accuracy(
    contenders: Sequence[Contender], data: Path, pythons: dict[str, str], missing: list[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures of each contender on each set of ``sets.SETS``, by name; a contender on each core at a time.

    Contenders that find the same by construction (in another engine, or with a pose beside) are measured once:
    ``measured`` names which of them was.
    """
    sets = []
    for name, (folder, _) in SETS.items():
        if (data / folder).is_dir():
            sets.append(name)
        else:
            missing.append(f"{name}: no folder {data / folder}")
    running: set[Process] = set()
    cores: queue.Queue[list[int]] = queue.Queue()
    for core in choose_cores():
        cores.put([core])

    def measure(task: tuple[Contender, list[str]]) -> tuple[dict[str, dict[str, float]], list[str]]:
        """Figures by set, without the sets on which it failed; and what there is to say."""
        contender, names = task
        core = cores.get()
        figures: dict[str, dict[str, float]] = {}
        problems: list[str] = []
        try:
            with Process(contender, pythons.get(contender.engine, sys.executable), 1, core) as process:
                running.add(process)
                process.load()
                for name in names:
                    answer = process.ask("evaluate", limit=EVALUATION_LIMIT, data=str(data), name=name)
                    problems += answer["problems"]
                    if not answer["failed"]:
                        figures[name] = answer["figures"]
        except ContenderError as error:
            problems.append(str(error))
        finally:
            cores.put(core)
        return figures, problems

    found: dict[tuple[str, ...], dict[str, Any]] = {}
    failed: set[tuple[str, str]] = set()
    pool = ThreadPoolExecutor(cores.qsize())
    try:
        while tasks := choose_tasks(contenders, sets, found, failed):
            measuring = pool.map(measure, tasks.items())
            for contender, names in track(list(tasks.items()), "measuring accuracy"):
                measured, problems = next(measuring)
                missing.extend(problems)
                # Where it could not run, another engine that finds the same may.
                failed |= {(contender.name, name) for name in set(names) - set(measured)}
                for name, values in measured.items():
                    found[_same(contender, name)] = {**values, "measured": contender.name} if values else {}
    except KeyboardInterrupt:
        missing.append(INTERRUPTED)
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):  # it may have hours to go, and hears of Ctrl-C only in a terminal
            process.kill()
    finally:
        pool.shutdown(cancel_futures=True)
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for contender in contenders:
        of_set = {name: found.get(_same(contender, name)) for name in sets}
        figures[contender.name] = {name: values for name, values in of_set.items() if values}
    return figures


def choose_tasks(
    contenders: Sequence[Contender],
    sets: Sequence[str],
    found: Collection[tuple[str, ...]],
    failed: Collection[tuple[str, str]],
) -> dict[Contender, list[str]]:
    """Which contender measures which sets: of those that find the same the first that has not ``failed`` (by name and
    set), where it is not yet ``found``."""
    chosen = set(found)
    tasks: dict[Contender, list[str]] = {}
    for contender in contenders:
        for name in sets:
            same = _same(contender, name)
            if same and same not in chosen and (contender.name, name) not in failed:
                chosen.add(same)
                tasks.setdefault(contender, []).append(name)
    return tasks


def _same(contender: Contender, name: str) -> tuple[str, ...]:
    """What contenders have in common whose figures on a set are the same; empty if they have none."""
    if name == "wider":
        return (name, contender.detection) if contender.scored else ()
    return (name, contender.detection, contender.pose) if contender.pose != "none" else ()


def weigh(contender: Contender, missing: list[str]) -> dict[str, Any]:
    """Bytes and SHA-256 of its files, and multiply-accumulates for an image of 640x480 with one face; what cannot be
    counted is named in ``missing``."""
    unknown: dict[str, Any] = {"bytes": None, "macs": None, "sha256": {}}
    if not contender.model:
        return unknown
    try:
        path = find_model(contender.model).path if contender.ours else Path(contender.model)
        files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
        files += [Path(contender.head_pose)] if contender.pose == "b66" else []
        contents = {file.name: file.read_bytes() for file in files}
    except (OSError, ValueError) as error:
        missing.append(f"{contender.name}, its files: {error}")
        return unknown
    pixels = letterbox(np.zeros((HEIGHT, WIDTH, 3), np.uint8), contender.size, 32)[0]
    parts = [(path, pixels.shape[:2])]
    if contender.pose == "b66":
        parts.append((files[-1], (224, 224)))
    try:
        counts = [count_macs(part, *shape) for part, shape in parts]
        macs = None if None in counts else sum(filter(None, counts))
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        missing.append(f"{contender.name}, MACs: {error}")
        macs = None
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return {"bytes": sum(map(len, contents.values())), "macs": macs, "sha256": sums}


def load_before() -> dict[str, float]:
    """Of the last minute, where the system tells (Windows does not)."""
    return {"load_before": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = named[0].partition(":")[2].strip() if named else processor
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "processor": processor,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }
