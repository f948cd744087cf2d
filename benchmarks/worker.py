"""The process that runs one contender: ``python -m img2pose_edge.benchmarks.worker``.

It reads requests as lines of JSON and answers each with one. A process of its own makes memory and cold start those of
one contender, keeps engines out of each other's threads, and lets one of another interpreter (MediaPipe's) take part.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from img2pose_edge.benchmarks.accuracy import Found

CALLS = 3
"""Timed calls of a turn, after one that is not: other contenders ran meanwhile, and their data fill the caches."""
LONG_MS = 500.0
"""A call that takes so long is timed once a turn: what the caches held does not matter to it."""


class Worker:
    """Answers requests; each method is one kind."""

    def open(self, contender: dict[str, Any], threads: int) -> dict[str, Any]:
        """Load the contender."""
        began = time.perf_counter()
        import cv2
        from img2pose_edge.benchmarks.contenders import Contender, open_contender

        cv2.setNumThreads(threads)
        chosen = Contender(**contender)
        self._name = chosen.name
        self._opened = open_contender(chosen, threads)
        self._scenes: dict[int, np.ndarray] = {}
        loaded = (time.perf_counter() - began) * 1e3
        versions = {}
        if chosen.engine == "mediapipe":  # an interpreter of its own, with packages of its own
            for package in ("mediapipe", "numpy", "opencv-contrib-python"):
                with suppress(metadata.PackageNotFoundError):
                    versions[package] = metadata.version(package)
        return {"load_ms": loaded, "versions": versions}

    def first(self, faces: int) -> dict[str, Any]:
        """The first call: engines finish their loading in it. Drawing the scene is told apart: it is ours to do."""
        began = time.perf_counter()
        image = self._scene(faces)
        drawn = time.perf_counter()
        found = self._opened.detect(image, None)
        done = time.perf_counter()
        return {"scene_ms": (drawn - began) * 1e3, "first_ms": (done - drawn) * 1e3, "found": len(found)}

    def turn(self, faces: int) -> dict[str, Any]:
        """A few whole calls, and runs of the network alone: milliseconds of each, and CPU time of a whole call."""
        image = self._scene(faces)
        network = self._opened.network(image)
        began = time.perf_counter()
        found = self._opened.detect(image, None)
        calls = CALLS if (time.perf_counter() - began) * 1e3 < LONG_MS else 1
        whole, cpu, alone = [], [], []
        for _ in range(calls):
            cpu_began, began = time.process_time(), time.perf_counter()
            self._opened.detect(image, None)
            whole.append((time.perf_counter() - began) * 1e3)
            cpu.append((time.process_time() - cpu_began) * 1e3)
        if network:
            network()
            for _ in range(calls):
                began = time.perf_counter()
                network()
                alone.append((time.perf_counter() - began) * 1e3)
        return {"whole_ms": whole, "cpu_ms": cpu, "network_ms": alone, "found": len(found)}

    def memory(self) -> dict[str, Any]:
        """The most memory that the process has held, MB."""
        status = Path("/proc/self/status")
        if status.exists():  # what getrusage tells there begins at the parent's
            peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return {"peak_mb": int(peak.split()[1]) * 1024 / 1e6}
        try:
            import resource
        except ImportError:  # Windows
            return {}
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}

    def evaluate(self, data: str, name: str) -> dict[str, Any]:
        """Accuracy on a data set below the folder ``data``, empty if that has none; what is missing there; and whether
        the contender failed."""
        from img2pose_edge.benchmarks.sets import SETS

        problems: list[str] = []
        figures: dict[str, float] = {}
        folder, protocol = SETS[name]
        failed = False
        try:
            found = protocol(self._detect, Path(data) / folder, problems)
            if found["faces"]:
                figures = {k: v for k, v in found.items() if v == v}  # no NaN: JSON has none
        except (OSError, ValueError, ImportError) as error:
            problems.append(str(error))
        except Exception as error:  # of the model or its engine: another engine may run it
            problems.append(f"{self._name} on {Path(data) / folder}: {error}")
            failed = True
        return {"figures": figures, "problems": problems, "failed": failed}

    def _detect(self, image: np.ndarray, threshold: float | None) -> list[Found]:
        try:
            return self._opened.detect(image, threshold)
        except Exception as error:  # whatever it is, it is not the data's fault
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def _scene(self, faces: int) -> np.ndarray:
        from img2pose_edge.benchmarks.scenes import scene

        if faces not in self._scenes:
            self._scenes[faces] = scene(faces)
        return self._scenes[faces]


def main() -> None:
    """Answer requests on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print to standard output as they like
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever a model or its engine raises is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
