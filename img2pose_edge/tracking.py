"""Faces of a video told apart from frame to frame, their poses steadied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np

from img2pose_edge.face import Face, check_type
from img2pose_edge.geometry import matrix_to_angles
from img2pose_edge.nms import pairwise_iou
from img2pose_edge.pose_references import project_face_box
from img2pose_edge.smoothing import PoseFilter, pose_to_state, rotations, state_to_pose

SURE_SIMILARITY, UNSURE_SIMILARITY = 0.2, 0.5
"""Least similarity of a face to a track that it continues (the overlaps that ByteTrack's code asks for)."""
PATIENCE = 1.0
"""Seconds that a face may stay unseen and be the same, as in ByteTrack: ten lost frames at 11 a second."""
GROWN = np.array([[1.5, 0, -0.5, 0], [0, 1.5, 0, -0.5], [-0.5, 0, 1.5, 0], [0, -0.5, 0, 1.5]])
"""Doubles a box about its middle."""


class TrackedFace(NamedTuple):
    """A face of a video.

    Attributes:
        id: the same for the same face in all frames; counted from 0, never used again before ``reset``.
        face: smoothed; box, rotations and angles are those of the smoothed pose. Its score is ``raw``'s.
        raw: what the detector saw last.
        age: seconds since the face was first seen.
        unseen: seconds since the face was last seen; 0 if it is in this frame.
    """

    id: int
    face: Face
    raw: Face
    age: float
    unseen: float

    @property
    def lost(self) -> bool:
        """Not seen in this frame: ``face`` is predicted."""
        return self.unseen > 0


@dataclass
class Track:
    """What a tracker remembers of a face beside its column in the filter and its box: see :class:`TrackedFace`."""

    id: int
    raw: Face


class PoseTracker:
    """Gives each face of a video an identity and a steady pose.

    **Identity** follows ByteTrack's two thresholds (Zhang et al., ECCV 2022): sure faces continue the tracks they
    resemble most, then unsure ones may continue tracks seen in the last frame, and only sure faces begin new tracks.
    The similarity of a face to a track is the overlap (IoU) of its box and the track's last one, moved on and resized
    at constant velocity, times ``cos²`` of half the angle between the rotations as last measured. The most similar pair
    is matched first, then the next of those left (greedy, not the best sum of all); at last sure faces and tracks of
    the last frame that are still alone, by boxes of twice the size.

    **Smoothing** is a One Euro filter on SE(3) that tells noise from motion: see :mod:`img2pose_edge.smoothing`.

    Both work in the camera frame, so that intrinsics and image size may change between frames as long as they tell
    of the same camera (a resize, a zoom with known focal length); at a cut, call :meth:`reset`. Not for use by
    several threads at once.
    """

    def __init__(
        self,
        sure_score: float = 0.5,
        patience: float = PATIENCE,
        min_cutoff: float = 0.1,
        speed_slope: float = 6.0,
        speed_cutoff: float = 0.7,
    ) -> None:
        """
        Args:
            sure_score: least score, 0 to 1, of a face that begins a track. For a second threshold to matter, let the
                detector's ``score_threshold`` be lower: :attr:`least_score`.
            patience: seconds that a face may stay unseen and keep its id (1: ten lost frames at 11 a second). One
                that was in the last frame keeps it, however long ago that was.
            min_cutoff: hertz, cutoff of the filter at rest: lower is steadier, and slower to settle.
            speed_slope: hertz by which a speed of 1 radian/s (or face unit/s, or 1/s of log depth) raises the cutoff:
                higher lags less, and is less steady.
            speed_cutoff: hertz, cutoff of the filter of the speeds.

        Raises:
            ValueError: naming the option that is wrong.
        """
        numbers = {"sure_score": sure_score, "patience": patience, "min_cutoff": min_cutoff}
        for name, value in (numbers | {"speed_slope": speed_slope, "speed_cutoff": speed_cutoff}).items():
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 <= sure_score <= 1:
            raise ValueError(f"sure_score must be between 0 and 1, got {sure_score!r}")
        for name, value in (("min_cutoff", min_cutoff), ("speed_cutoff", speed_cutoff)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number of hertz, got {value!r}")
        for name, value in (("patience", patience), ("speed_slope", speed_slope)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        self.sure_score, self.patience = sure_score, patience
        self.smoothing = {"min_cutoff": min_cutoff, "speed_slope": speed_slope, "speed_cutoff": speed_cutoff}
        self._next_id = 0
        self.reset()

    @property
    def least_score(self) -> float:
        """What faces to ask a detector for: a face once sure may be followed down to half that score."""
        return self.sure_score / 2

    def reset(self, *, ids_go_on: bool = False) -> None:
        """Forget all faces and the time; ids start again at 0, or go on where they were."""
        self._filter = PoseFilter(**self.smoothing)
        self._tracks: list[Track] = []
        self._missing = False  # whether some were not in the last frame
        self._boxes = np.empty((4, 0))  # of their raw faces, at depth 1 of the camera frame
        self._time = -math.inf
        self._next_id = self._next_id if ids_go_on else 0
        self._camera = np.eye(3)

    def update(self, faces: Sequence[Face], time: float, *, predicted: bool = False) -> list[TrackedFace]:
        """Take the faces of one frame.

        Args:
            faces: of one frame, from one camera, in any order.
            time: of the frame, seconds, later than the last; frames need not come evenly.
            predicted: also give faces that are lost in this frame but not yet forgotten, where they should be by now.

        Returns:
            Tracked faces, the longest known first. Unsure faces that continue no track are left out, as are
            predictions that reach around the camera.

        Raises:
            ValueError: if time does not advance (to start over, call :meth:`reset`), or naming the face that has no
                finite pose in front of the camera, or another camera than the rest. The tracker is then unchanged.
            TypeError: naming what is not a :class:`~img2pose_edge.Face`.
        """
        if not self._time < time < math.inf:
            raise ValueError(f"time must be finite and later than the last frame's, {self._time} s, got {time!r}")
        faces = list(faces)
        poses = check_faces(faces)
        if faces:
            self._camera = faces[0].intrinsics
        if self._missing:
            self._forget(time)
        with np.errstate(over="ignore", invalid="ignore"):  # of faces predicted beside the camera
            self._missing = bool(self._tracks)
            if faces:
                self._continue_and_begin(faces, pose_to_state(poses.T.copy()), time)
            self._time = time
            return self._result(time, predicted)

    def _forget(self, time: float) -> None:
        # Frames may be further apart than patience: a face of the last one is not lost.
        alive = self._filter.seen >= min(time - self.patience, self._time) - 1e-9
        if not alive.all():
            self._filter.keep(alive)
            self._boxes = self._boxes[:, alive]
            self._tracks = [track for track, stays in zip(self._tracks, alive, strict=True) if stays]

    def predict(self, time: float) -> list[TrackedFace]:
        """Where the faces not yet forgotten should be at ``time`` (seconds, not before the last frame), at constant
        velocity; takes no frame. Those around the camera are left out."""
        if not self._time <= time < math.inf:
            raise ValueError(f"time must be finite and not before the last frame's, {self._time} s, got {time!r}")
        with np.errstate(over="ignore", invalid="ignore"):
            return [face for face in self._result(time, True) if face.unseen <= self.patience + 1e-9]

    def _continue_and_begin(self, faces: Sequence[Face], states: np.ndarray, time: float) -> None:
        sure = [face.score >= self.sure_score for face in faces]
        boxes = self._camera_boxes(faces)
        rows, columns = self._match(boxes, states, sure, time)
        for row, column in zip(rows, columns, strict=True):
            self._tracks[row].raw = faces[column]
        if rows:
            every = len(rows) == len(self._tracks)  # in order then
            self._missing = not every
            continued, seen = slice(None) if every else np.array(rows), np.array(columns)
            self._boxes[:, continued] = boxes[:, seen]
            self._filter.update(continued, states[:, seen], time)
        known = set(columns)
        begun = [k for k in range(len(faces)) if sure[k] and k not in known] if len(known) < len(faces) else []
        if begun:
            self._filter.add(states[:, begun], time)
            self._boxes = np.concatenate([self._boxes, boxes[:, begun]], axis=1)
            self._tracks += [Track(self._next_id + i, faces[k]) for i, k in enumerate(begun)]
            self._next_id += len(begun)

    def _camera_boxes(self, faces: Sequence[Face]) -> np.ndarray:
        """(4, N) boxes at depth 1 of the camera frame, where pictures of any size and zoom agree."""
        camera = self._camera
        corners = np.concatenate([face.box for face in faces]).reshape(-1, 4).T.reshape(2, 2, -1)
        return ((corners - camera[:2, 2:]) / camera.diagonal()[:2, None]).reshape(4, -1)

    def _match(
        self, boxes: np.ndarray, states: np.ndarray, are_sure: list[bool], time: float
    ) -> tuple[list[int], list[int]]:
        """Which tracks (rows, in order) continue in which faces (columns)."""
        if not self._tracks:
            return [], []
        sure = np.array(are_sure)
        # Where a face has gone in a longer gap nobody knows: most likely nowhere far.
        moment = min(time, self._time + self.patience)
        expected = self._filter.expected_boxes(self._boxes, moment)
        alike = self._filter.measured[:4].T.dot(states[:4]) ** 2
        similarity = pairwise_iou(expected.T, boxes.T) * alike
        may = similarity >= SURE_SIMILARITY
        if not all(are_sure):
            may &= sure | (self._recent() & (similarity >= UNSURE_SIMILARITY))
        pairs = match_greedily(similarity, may, ~sure)
        if len(pairs) < min(similarity.shape):
            # A camera that is swung round moves faces by more than their size, before their speed is known.
            left = sure & self._recent()
            for row, column in pairs:
                left[row] = left[:, column] = False
            if left.any():
                similarity = pairwise_iou((GROWN @ expected).T, (GROWN @ boxes).T) * alike
                pairs += match_greedily(similarity, left & (similarity >= SURE_SIMILARITY), ~sure)
        pairs.sort()
        return [row for row, _ in pairs], [column for _, column in pairs]

    def _recent(self) -> np.ndarray:
        """(M, 1) bool, tracks that were in the last frame."""
        return (self._filter.seen == self._time)[:, None]

    def _result(self, time: float, predicted: bool) -> list[TrackedFace]:
        unseen, age = (time - self._filter.seen).tolist(), (time - self._filter.born).tolist()
        states, tracks = self._filter.at(time) if predicted else self._filter.smooth, self._tracks
        if not predicted and any(unseen):
            rows = [row for row, gone in enumerate(unseen) if not gone]
            states, tracks = states[:, rows], [tracks[row] for row in rows]
            age, unseen = [age[row] for row in rows], [0.0] * len(rows)
        if not tracks:
            return []
        rotation, local = rotations(states)
        poses = state_to_pose(states).T.copy()
        boxes = project_face_box(rotation, poses[:, 3:], self._camera)
        shown = np.isfinite(boxes).all(1).tolist()
        raw = [track.raw for track in tracks]
        parts = boxes, poses, rotation, local, matrix_to_angles(local), repeat(self._camera)
        smooth = map(Face, [face.score for face in raw], *parts)
        tracked = map(TrackedFace, [track.id for track in tracks], smooth, raw, age, unseen)
        return [face for face, fits in zip(tracked, shown, strict=True) if fits]


def match_greedily(similarity: np.ndarray, may: np.ndarray, late: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of (N, M) similarities that go together, where they ``may``: the most similar pair first, then
    the next of those left; (M,) ``late`` columns after the others."""
    pairs = np.nonzero(may)
    rows, columns = pairs[0].tolist(), pairs[1].tolist()
    if len(set(rows)) < len(rows) or len(set(columns)) < len(columns):
        order = np.lexsort((-similarity[pairs], late[pairs[1]])).tolist()
        matched: dict[int, int] = {}
        for row, column in ((rows[i], columns[i]) for i in order):
            if row not in matched and column not in matched.values():
                matched[row] = column
        return list(matched.items())
    return list(zip(rows, columns, strict=True))


def check_faces(faces: Sequence[Face]) -> np.ndarray:
    """(N, 6) poses of the faces of one frame, or an error that names the wrong one: see ``PoseTracker.update``."""
    check_type(faces)
    for i, face in enumerate(faces):
        if face.intrinsics is not faces[0].intrinsics and not np.array_equal(face.intrinsics, faces[0].intrinsics):
            raise ValueError(f"the faces of one frame must share one camera; number {i} has other intrinsics")
    poses = np.array([face.pose for face in faces]).reshape(-1, 6)
    if not (np.abs(poses).max(initial=0) < math.inf and min(poses[:, 5].tolist(), default=1) > 0):
        fine = np.isfinite(poses).all(1) & (poses[:, 5] > 0)
        if not fine.all():
            i = int(np.argmin(fine))
            raise ValueError(f"face number {i} has no finite pose in front of the camera: {poses[i]}")
    return poses
