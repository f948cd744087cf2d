"""A whole video: faces found, tracked, drawn, written and sent, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from img2pose_edge.calibration import Calibration, undistort_face
from img2pose_edge.detector import PoseDetector
from img2pose_edge.draw import BOX_COLOR, draw_faces
from img2pose_edge.face import Face
from img2pose_edge.fast import FastDetector
from img2pose_edge.progress import track
from img2pose_edge.rows import RowWriter
from img2pose_edge.tracking import PoseTracker
from img2pose_edge.video import Frame, Source, VideoWriter

Send = Callable[[Sequence[Face], Sequence[int] | None], None]
"""Takes the faces of a frame, and their ids if they are tracked."""


@dataclass(frozen=True)
class Recorded:
    """How many frames were read and faces found, and whether Ctrl-C ended it."""

    frames: int
    faces: int
    interrupted: bool


def record(
    source: Source,
    detector: PoseDetector,
    *,
    out: Path | None = None,
    rows: Sequence[Path] = (),
    tracker: PoseTracker | None = None,
    calibration: Calibration | None = None,
    every: int = 1,
    fast: int = 0,
    send: Sequence[Send] = (),
    sound: Path | None = None,
) -> Recorded:
    """Process a video to its end, or until Ctrl-C.

    Whatever ends it, the video written so far plays and the tables end with a complete row.

    Args:
        source: closed at the end.
        detector: finds the faces.
        out: annotated video (:class:`VideoWriter`).
        rows: tables, ``.csv`` or ``.jsonl`` (:class:`RowWriter`).
        tracker: gives faces ids and steadies them.
        calibration: of the camera; poses are then those in it, without distortion.
        every: frames to look at: each of so many. Those between keep the faces of the last one and have no rows.
        fast: look at crops around known faces, as :meth:`PoseDetector.stream`; counts frames that are looked at.
        send: called with the faces of each frame that was looked at, the best or longest known first.
        sound: file whose sound the video gets.

    Raises:
        ValueError, OSError: naming what could not be read, written or sent.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    crops = FastDetector(detector, fast) if fast else None
    frames = found = 0
    with source, ExitStack() as open_files:
        tables = [open_files.enter_context(RowWriter(path)) for path in rows]
        writer: VideoWriter | None = None
        faces: list[Face] = []
        ids: list[int] | None = None
        try:
            for frame in track(source, source.name, total=source.frames):
                if frame.index % every == 0 or source.live:
                    seen = crops.detect(frame.image, frame.time) if crops else detector.detect(frame.image)
                    faces, ids = _follow(frame, seen, tracker, calibration)
                    found += len(faces)
                    for table in tables:
                        table.write(faces, source.name, frame.index, frame.time, ids)
                    for call in send:
                        call(faces, ids)
                if out:
                    if writer is None:
                        size = frame.image.shape[0], frame.image.shape[1]
                        writer = open_files.enter_context(VideoWriter(out, size, source.rate, sound))
                    writer.write(_drawn(frame.image, faces, ids), frame.time)
                frames += 1
        except KeyboardInterrupt:
            return Recorded(frames, found, True)
    return Recorded(frames, found, False)


def _follow(
    frame: Frame, faces: list[Face], tracker: PoseTracker | None, calibration: Calibration | None
) -> tuple[list[Face], list[int] | None]:
    if calibration:
        height, width = frame.image.shape[:2]
        camera = calibration.for_size(width, height)
        faces = [undistort_face(face, camera) for face in faces]
    if tracker is None:
        return faces, None
    tracked = tracker.update(faces, frame.time)
    return [t.face for t in tracked], [t.id for t in tracked]


def _drawn(image: np.ndarray, faces: Sequence[Face], ids: Sequence[int] | None) -> np.ndarray:
    picture = draw_faces(image, faces)
    for face, number in zip(faces, ids or [], strict=ids is not None):
        corner = round(face.box[0]), round(face.box[3]) + 14
        cv2.putText(picture, str(number), corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, BOX_COLOR, 1, cv2.LINE_AA)
    return picture
