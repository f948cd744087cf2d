"""How steady tracked poses are, and how late: on rendered camera motion, where the truth is known, and on clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from img2pose_edge.benchmarks.motion import RATE, SETTLE, Motion, Scene
from img2pose_edge.benchmarks.scenes import scene

from img2pose_edge import geometry
from img2pose_edge.detector import PoseDetector
from img2pose_edge.face import Face
from img2pose_edge.tracking import PoseTracker, TrackedFace

NEAR = 0.5
"""Of a face's size in pixels: how far from where it must be a detection may lie to be of it."""
SEEN = 0.9
"""Share of a motion's frames in which a face must be found to be measured in it."""
LATEST = 0.25
"""Seconds, the largest lag that is looked for."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One face of a photograph through one motion of N frames; NaN, and id -1, where it was not found.

    Attributes:
        raw, smooth: (N, 3, 3) rotations, turned back by the camera's: all the same if nothing were wrong.
        raw_box, smooth_box: (N, 4) pixels of the frame.
        ids: (N,) of the track.
    """

    raw: np.ndarray
    smooth: np.ndarray
    raw_box: np.ndarray
    smooth_box: np.ndarray
    ids: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(N,) bool."""
        return self.ids >= 0


def follow(
    detector: PoseDetector, scene: Scene, motion: Motion, anchors: np.ndarray, sizes: np.ndarray, seed: int = 0
) -> list[Trace]:
    """Detect and track through a rendered motion.

    Args:
        anchors: (F, 2) pixels of the photograph, origins of its faces.
        sizes: (F,) pixels of the photograph per face unit.

    Returns:
        F traces.
    """
    count, faces = len(motion.rotations), len(anchors)
    rotations, boxes = np.full((2, faces, count, 3, 3), np.nan), np.full((2, faces, count, 4), np.nan)
    ids = np.full((faces, count), -1)
    tracker = PoseTracker()
    for k, image in enumerate(scene.frames(motion, seed)):
        camera = motion.cameras[k]
        tracked = tracker.update(detector.detect(image, intrinsics=camera), motion.times[k])
        expected = scene.move(anchors, motion, k)
        near = NEAR * sizes * camera[0, 0] / scene.camera[0, 0]
        for face, number in zip(*assign(tracked, expected, near), strict=True):
            for which, part in enumerate((tracked[face].raw, tracked[face].face)):
                rotations[which, number, k] = motion.rotations[k].T @ part.rotation
                boxes[which, number, k] = part.box
            ids[number, k] = tracked[face].id
    return [Trace(*rotations[:, i], *boxes[:, i], ids[i]) for i in range(faces)]


def assign(tracked: Sequence[TrackedFace], expected: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of tracked faces, and of the (F, 2) places that each is at: the nearest, not farther than ``near``."""
    if not tracked:
        return np.empty(0, int), np.empty(0, int)
    centers = np.array([face_center(t.raw) for t in tracked])
    distance = np.linalg.norm(centers[:, None] - expected, axis=2) / near
    closest = distance.argmin(1)
    mine = distance.argmin(0)[closest] == np.arange(len(tracked))
    faces = np.flatnonzero(mine & (distance.min(1) < 1))
    return faces, closest[faces]


def face_center(face: Face) -> np.ndarray:
    """(2,) pixel of its origin."""
    return geometry.camera_to_local(face.rotation, face.translation, face.intrinsics)[0]


def anchors_of(detector: PoseDetector, photo: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the faces of a photograph are: (F, 2) origins, pixels, and (F,) pixels per face unit; best first."""
    faces = detector.detect(photo, intrinsics=camera)
    parts = [geometry.camera_to_local(f.rotation, f.translation, f.intrinsics) for f in faces]
    return np.array([p[0] for p in parts]).reshape(-1, 2), np.array([p[1] for p in parts])


# --- figures of a trace --------------------------------------------------------------------------


def mean_rotation(rotations: np.ndarray) -> np.ndarray:
    """(3, 3) chordal mean of (N, 3, 3) rotations."""
    u, _, v = np.linalg.svd(rotations.mean(0))
    return u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v


def angle_rms(rotations: np.ndarray, middle: np.ndarray) -> float:
    """Degrees, RMS angle of (N, 3, 3) rotations to one."""
    return float(np.degrees(np.sqrt((geometry.geodesic_distance(rotations, middle) ** 2).mean())))


def jitter(trace: Trace) -> dict[str, float]:
    """RMS of a still camera's rotations (degrees) and boxes' sides (pixels) about their mean, once settled."""
    use = trace.found & (np.arange(len(trace.ids)) >= SETTLE * RATE)
    figures = {}
    for name, rotations, boxes in (("raw", trace.raw, trace.raw_box), ("smooth", trace.smooth, trace.smooth_box)):
        turned, sides = rotations[use], boxes[use]
        figures[f"{name}_deg"] = angle_rms(turned, mean_rotation(turned))
        figures[f"{name}_px"] = float(np.sqrt(((sides - sides.mean(0)) ** 2).mean()))
    return figures


def wander(trace: Trace) -> dict[str, float]:
    """RMS degrees of raw and smoothed rotations of a moving camera about the raw ones' mean, when turned back by it."""
    middle = mean_rotation(trace.raw[trace.found])
    return {n: angle_rms(r[trace.found], middle) for n, r in (("raw_deg", trace.raw), ("smooth_deg", trace.smooth))}


def turned_angles(trace: Trace, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """(N,) degrees, raw and smoothed, that the face has turned about the motion's axis; NaN where it was not found."""
    resting = trace.found & (motion.angles == motion.angles[0])
    first = motion.rotations[0] @ mean_rotation(trace.raw[resting])
    angles = [motion.rotations @ r @ first.T for r in (trace.raw, trace.smooth)]
    raw, smooth = (np.degrees(geometry.matrix_to_rotvec(a) @ motion.axis) for a in angles)
    return raw, smooth


def lag(angles: np.ndarray, others: np.ndarray, motion: Motion) -> float:
    """Milliseconds by which ``angles`` follow ``others``, (N,) degrees: the shift of least squares over a turn.

    From its beginning to a quarter of a second after its end.
    """
    times = motion.times
    moving = np.flatnonzero(np.abs(np.gradient(motion.angles)) > 0)
    use = (times >= times[moving[0]]) & (times <= times[moving[-1]] + LATEST) & np.isfinite(angles)
    known = np.isfinite(others)
    shifts = np.arange(-0.05, LATEST, 0.001)
    errors = [((angles[use] - np.interp(times[use] - d, times[known], others[known])) ** 2).sum() for d in shifts]
    return float(shifts[int(np.argmin(errors))] * 1e3)


def switches(ids: np.ndarray) -> int:
    """How often (N,) ids of one face change, those of -1 left out."""
    seen = ids[ids >= 0]
    return int((np.diff(seen) != 0).sum())


# --- time ----------------------------------------------------------------------------------------


def time_tracker(detector: PoseDetector, faces: int = 10, rounds: int = 60) -> dict[str, float]:
    """Milliseconds of ``PoseTracker.update`` with so many faces, by turns with detection, which empties the caches."""
    image = scene(faces)
    rng = np.random.default_rng(0)
    tracker = PoseTracker()
    spent: list[float] = []
    for k in range(rounds):
        noisy = np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
        found = detector.detect(noisy)
        spent.append(timed(lambda k=k, found=found: tracker.update(found, k / RATE)))  # type: ignore[misc]
    return {"faces": len(found), "median_ms": float(np.median(spent)), "p95_ms": float(np.percentile(spent, 95))}


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
