"""The fast path of videos against detection in every whole frame: time, faces missed, poses moved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from img2pose_edge import geometry
from img2pose_edge.detector import PoseDetector
from img2pose_edge.fast import SIZES, FastDetector, match

SAME = 0.4
"""Least overlap (IoU) of the boxes of one face in both."""

WARM_CALLS = 12
"""With each size of input, before anything is timed: engines compile for what comes often."""

Clip = tuple[Sequence[np.ndarray], Sequence[float], Sequence[np.ndarray | None]]
"""Images, their times in seconds, and intrinsics (``None``: the default ones)."""


class FastComparison:
    """Each frame looked at whole, and by a :class:`FastDetector` for each number of ``every``, one after the other."""

    def __init__(self, detector: PoseDetector, every: Sequence[int]) -> None:
        self.detector, self.every = detector, every
        self._spent: dict[int, list[tuple[float, float]]] = {k: [] for k in (0, *every)}
        self._missed, self._extra, self._looked = ({k: 0 for k in every} for _ in range(3))
        self._turned: dict[int, list[float]] = {k: [] for k in every}
        self._faces = 0

    def add(self, clip: Clip) -> None:
        """Look at a clip."""
        images, times, cameras = clip
        self._prepare(images[0])
        fast = {k: FastDetector(self.detector, k) for k in self.every}
        for image, now, camera in zip(images, times, cameras, strict=True):
            began = clocks()
            whole = self.detector.detect(image, intrinsics=camera)
            self._spent[0].append(since(began))
            self._faces += len(whole)
            for k, crops in fast.items():
                began = clocks()
                found = crops.detect(image, now, intrinsics=camera)
                self._spent[k].append(since(began))
                pairs = [(whole[i], found[j]) for i, j in match(np.array([face.box for face in whole]), found, SAME)]
                self._missed[k] += len(whole) - len(pairs)
                self._extra[k] += len(found) - len(pairs)
                self._looked[k] += crops.whole
                self._turned[k] += [float(geometry.geodesic_distance(a.rotation, b.rotation)) for a, b in pairs]

    def _prepare(self, image: np.ndarray) -> None:
        """Have the engine prepare for every size of input, so that no timed call does."""
        for shape in {self.detector.network_input(image)[0].shape[1:3], *SIZES}:
            for _ in range(WARM_CALLS):
                self.detector.run_network(np.zeros((1, *shape, 3), np.uint8))

    def summary(self) -> dict[str, Any]:
        """``frames``, ``faces`` in whole frames, and times when each is looked at ``whole``; under ``fast``, by number,
        times, ``missed`` and ``extra`` faces, ``median_deg`` and ``p95_deg`` by which rotations of common faces differ,
        and ``whole_frames`` that were looked at."""
        fast = {}
        for k in self.every:
            moved = np.degrees(self._turned[k] or [np.nan])
            fast[str(k)] = {
                **spread(self._spent[k]),
                "missed": self._missed[k],
                "extra": self._extra[k],
                "median_deg": known(np.median(moved)),
                "p95_deg": known(np.percentile(moved, 95)),
                "whole_frames": self._looked[k],
            }
        return {"frames": len(self._spent[0]), "faces": self._faces, "whole": spread(self._spent[0]), "fast": fast}


def clocks() -> tuple[float, float]:
    """Seconds of the wall's clock and of the processor's."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Milliseconds of both."""
    wall, cpu = clocks()
    return (wall - began[0]) * 1e3, (cpu - began[1]) * 1e3


def spread(spent: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Median and 95th percentile of the wall's milliseconds, mean of the processor's; ``None`` if nothing was timed."""
    wall, cpu = np.array(spent or [(np.nan, np.nan)]).T
    return {"median_ms": known(np.median(wall)), "p95_ms": known(np.percentile(wall, 95)), "cpu_ms": known(cpu.mean())}


def known(value: float | np.floating) -> float | None:
    """A figure as JSON can hold it: there is none where nothing was measured."""
    return None if np.isnan(value) else float(value)
