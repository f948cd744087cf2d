"""How steady tracked poses are, and how late: on rendered camera motion, where the truth is known, and on clips."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from img2pose_edge.benchmarks.motion import HEIGHT, RATE, SETTLE, WIDTH, Motion, Scene
from img2pose_edge.benchmarks.scenes import scene as still_scene

from img2pose_edge import geometry
from img2pose_edge.detector import PoseDetector
from img2pose_edge.face import Face
from img2pose_edge.nms import pairwise_iou
from img2pose_edge.tracking import PATIENCE, SURE_SIMILARITY, PoseTracker, TrackedFace
from img2pose_edge.video import Frame

NEAR = 0.5
"""Of a face unit in pixels: how far from where it must be a detection may lie to be of a face."""
SEEN = 0.9
"""Share of a motion's frames in which a face must be found for its pose to be measured in it."""
LATEST = 0.25
"""Seconds, the largest lag that is looked for."""
STRETCH, STILL_SPEED, STILL_SHIFT = 0.7, 10.0, 0.2
"""Stretches of a clip in which a face counts as still: their seconds, and its speed at most, in degrees and in widths
of its box a second."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One face of a photograph through one motion of N frames; NaN, and id -1, where it was not found.

    Attributes:
        raw, smooth: (N, 3, 3) rotations, turned back by the camera's: all the same if nothing were wrong.
        raw_box, smooth_box: (N, 4) pixels of the frame.
        ids: (N,) of the track.
        inside: whether the whole face is in the frame throughout.
    """

    raw: np.ndarray
    smooth: np.ndarray
    raw_box: np.ndarray
    smooth_box: np.ndarray
    ids: np.ndarray
    inside: bool

    @property
    def found(self) -> np.ndarray:
        """(N,) bool."""
        return self.ids >= 0

    @property
    def measured(self) -> bool:
        return self.inside and float(self.found.mean()) >= SEEN


def follow(detector: PoseDetector, scene: Scene, motion: Motion, images: Sequence[np.ndarray]) -> list[Trace]:
    """Detect and track through a rendered motion.

    Args:
        images: its N frames (:meth:`Scene.frames`).

    Returns:
        a trace of each face that is found in the photograph itself, the best first.
    """
    anchors = detector.detect(scene.photo, intrinsics=scene.camera)
    count, faces = len(images), len(anchors)
    rotations, boxes = np.full((2, faces, count, 3, 3), np.nan), np.full((2, faces, count, 4), np.nan)
    ids, inside = np.full((faces, count), -1), np.full(faces, True)
    if not faces:
        return []
    origins = np.array([face_center(face) for face in anchors])
    corners = np.array([face.box[[[0, 1], [2, 1], [0, 3], [2, 3]]] for face in anchors])
    tracker = PoseTracker()
    for k, image in enumerate(images):
        camera = motion.cameras[k]
        tracked = tracker.update(detector.detect(image, intrinsics=camera), motion.times[k])
        seen = scene.move(corners.reshape(-1, 2), motion, k).reshape(-1, 4, 2)
        inside &= ((seen > 0) & (seen < (WIDTH, HEIGHT))).all((1, 2))
        for number, place in assign(tracked, scene.move(origins, motion, k)):
            for which, part in enumerate((tracked[number].raw, tracked[number].face)):
                rotations[which, place, k] = motion.rotations[k].T @ part.rotation
                boxes[which, place, k] = part.box
            ids[place, k] = tracked[number].id
    return [Trace(*rotations[:, i], *boxes[:, i], ids[i], bool(inside[i])) for i in range(faces)]  # type: ignore[call-arg]


def assign(tracked: Sequence[TrackedFace], places: np.ndarray) -> list[tuple[int, int]]:
    """Numbers of tracked faces, and of the (F, 2) places that they are at: each other's nearest, and near."""
    if not tracked:
        return []
    centers = np.array([face_center(t.raw) for t in tracked])
    near = NEAR * np.array(
        [geometry.camera_to_local(t.raw.rotation, t.raw.translation, t.raw.intrinsics)[1] for t in tracked]
    )
    distance = np.linalg.norm(centers[:, None] - places, axis=2) / near[:, None]
    closest = distance.argmin(1).tolist()
    return [(i, j) for i, j in enumerate(closest) if distance[:, j].argmin() == i and distance[i, j] < 1]


def face_center(face: Face) -> np.ndarray:
    """(2,) pixel of its origin."""
    center: np.ndarray = geometry.camera_to_local(face.rotation, face.translation, face.intrinsics)[0]
    return center


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
    """RMS degrees of the raw and smoothed rotations, turned back by a moving camera's, about the raw ones' mean."""
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

    From its beginning to :data:`LATEST` after its end.
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


# --- clips ---------------------------------------------------------------------------------------


def follow_clip(detector: PoseDetector, frames: Sequence[Frame]) -> list[list[TrackedFace]]:
    """Tracked faces of each frame."""
    tracker = PoseTracker()
    least = tracker.least_score
    return [tracker.update(detector.detect(frame.image, score_threshold=least), frame.time) for frame in frames]


def clip_jitter(tracked: Sequence[Sequence[TrackedFace]], times: np.ndarray) -> dict[str, float | None]:
    """What is left of poses and boxes when a straight line is taken out of each still stretch: RMS, raw and smoothed.

    A face is still in a stretch if the line of its raw pose is no steeper than :data:`STILL_SPEED` and
    :data:`STILL_SHIFT`. Slow true motion that is no straight line counts as jitter of both.

    Returns:
        ``raw_deg``, ``smooth_deg`` (angle), ``raw_px``, ``smooth_px`` (sides of the box); with ``_shake`` behind, from
        the frame-to-frame part alone (:func:`shake`); ``None`` if no face is ever still; ``seconds`` of still faces.
    """
    interval = float(np.median(np.diff(times))) if len(times) > 1 else math.inf
    length = max(round(STRETCH / interval), 4)
    names = [f"{which}_{unit}" for which in ("raw", "smooth") for unit in ("deg", "px")]
    rest: dict[str, list[np.ndarray]] = {name: [] for name in names + [f"{name}_shake" for name in names]}
    for start in range(0, len(times) - length + 1, length):
        part = tracked[start : start + length]
        now = times[start : start + length] - times[start]
        for number in {t.id for t in part[0]}.intersection(*({t.id for t in found} for found in part)):
            pairs = [next((t.raw, t.face) for t in found if t.id == number) for found in part]
            raw, smooth = zip(*pairs, strict=True)
            turns = [
                straighten(turned_from_mean(np.array([f.rotation for f in faces])), now) for faces in (raw, smooth)
            ]
            sides = [straighten(np.array([f.box for f in faces]), now) for faces in (raw, smooth)]
            width = float(np.mean([f.box[2] - f.box[0] for f in raw]))
            if np.linalg.norm(turns[0][0]) <= STILL_SPEED and np.abs(sides[0][0]).max() <= STILL_SHIFT * width:
                for which, name in enumerate(("raw", "smooth")):
                    turned, moved = turns[which][1], sides[which][1]
                    rest[f"{name}_deg"].append((turned**2).sum(1))
                    rest[f"{name}_px"].append((moved**2).ravel())
                    rest[f"{name}_deg_shake"].append((shake(turned) ** 2).sum(1))
                    rest[f"{name}_px_shake"].append((shake(moved) ** 2).ravel())
    figures = {k: float(np.sqrt(np.concatenate(v).mean())) if v else None for k, v in rest.items()}
    still = len(rest["raw_deg"])
    return {**figures, "seconds": still * length * interval if still else 0.0}


def turned_from_mean(rotations: np.ndarray) -> np.ndarray:
    """(N, 3) rotation vectors in degrees from the mean of (N, 3, 3) rotations."""
    turned: np.ndarray = np.degrees(geometry.matrix_to_rotvec(mean_rotation(rotations).T @ rotations))
    return turned


def shake(values: np.ndarray) -> np.ndarray:
    """(N - 2, C) second differences of (N, C) over sqrt 6: noise that is new in each frame keeps its RMS, slow motion
    of whatever form hardly shows (the estimate of noise of Gasser, Sroka and Jennen-Steinmetz, Biometrika 1986)."""
    return np.diff(values, 2, axis=0) / np.sqrt(6)


def straighten(values: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (C,) per second of the lines of least squares through the columns of (N, C), and what they leave."""
    line = np.stack([times, np.ones_like(times)], axis=1)
    solved = np.linalg.lstsq(line, values, rcond=None)[0]
    return solved[0], values - line @ solved


def clip_switches(tracked: Sequence[Sequence[TrackedFace]], times: np.ndarray, patience: float = PATIENCE) -> int:
    """Identity switches, as far as they show without labels.

    A new id where another one that is gone was seen within the tracker's patience (seconds), or an id that leaves its
    own last box for that of another id.
    """
    last: dict[int, tuple[float, np.ndarray]] = {}
    count = 0
    for found, now in zip(tracked, times.tolist(), strict=True):
        present = {t.id for t in found}
        for face in found:
            others = {i: box for i, (seen, box) in last.items() if i != face.id and now - seen <= patience}
            near = {i for i, box in others.items() if pairwise_iou(box[None], face.raw.box[None]) >= SURE_SIMILARITY}
            if face.id not in last:
                count += bool(near - present)
            elif near and pairwise_iou(last[face.id][1][None], face.raw.box[None]) < SURE_SIMILARITY:
                count += 1
        last |= {t.id: (now, t.raw.box) for t in found}
    return count


# --- time ----------------------------------------------------------------------------------------


def time_tracker(detector: PoseDetector, faces: int = 10, rounds: int = 60, calls: int = 5) -> dict[str, float]:
    """Milliseconds of ``PoseTracker.update`` with so many faces.

    By turns with detection, ``calls`` at a time: the first of them finds the caches full of the network.

    Returns:
        ``first_ms``, ``median_ms`` of the rest, ``alone_ms`` of five times as many calls without detections between
        them, and how many ``faces`` there were.
    """
    image = still_scene(faces)
    rng, tracker, frame = np.random.default_rng(0), PoseTracker(), itertools.count()

    def update() -> float:
        now = next(frame) / RATE
        began = time.perf_counter()
        tracker.update(found, now)
        return (time.perf_counter() - began) * 1e3

    spent = np.empty((rounds, calls))
    for i in range(rounds):
        noisy = np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
        found = detector.detect(noisy)
        spent[i] = [update() for _ in range(calls)]
    alone = [update() for _ in range(5 * rounds * calls)]  # a moment in which the machine is slow counts less
    figures = {"first_ms": spent[:, 0], "median_ms": spent[:, 1:], "alone_ms": np.array(alone)}
    return {"faces": len(found), **{name: float(np.median(values)) for name, values in figures.items()}}
