"""A whole video: faces found, tracked, drawn, written and sent, frame by frame."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from img2pose_edge.calibration import Calibration
from img2pose_edge.detector import PoseDetector
from img2pose_edge.draw import BOX_COLOR, FARTHEST, draw_faces
from img2pose_edge.face import Face
from img2pose_edge.fast import FastDetector
from img2pose_edge.files import check_writable, not_yet, real, remove
from img2pose_edge.look import Looked, look
from img2pose_edge.progress import track
from img2pose_edge.rows import RowWriter, table_suffix
from img2pose_edge.senders import Send
from img2pose_edge.tracking import PoseTracker
from img2pose_edge.video import Frame, Source, VideoWriter, check_video_suffix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """How many frames were read and faces found, and whether Ctrl-C ended it."""

    frames: int
    faces: int
    interrupted: bool


def record(
    source: Source | str | Path | int,
    detector: PoseDetector,
    *,
    out: str | PathLike[str] | None = None,
    rows: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    tracker: PoseTracker | None = None,
    calibration: Calibration | None = None,
    every: int = 1,
    fast: int = 0,
    send: Sequence[Send] = (),
    sound: Path | None = None,
    progress: bool = False,
) -> Recorded:
    """Process a video to its end, or until Ctrl-C.

    Files are opened with the first frame whose faces are found, all or none of them. Whatever ends it after that, the
    video written so far plays and the tables end with a complete row.

    Args:
        source: of the frames, or what :class:`Source` opens; closed at the end.
        detector: finds the faces.
        out: annotated video (:class:`VideoWriter`).
        rows: tables, ``.csv`` or ``.jsonl`` (:class:`RowWriter`). Times of a live source count from its first frame, as
            those of the video.
        tracker: gives faces ids and steadies them. Without ``fast`` it is given faces down to its ``least_score``,
            unless the detector's ``score_threshold``, which holds then, is above its ``sure_score``.
        calibration: of the camera; poses are then those in it, without distortion.
        every: frames to look at: each of so many. Those between keep the faces of the last one and have no rows.
        fast: look at crops around known faces, as :meth:`PoseDetector.stream`; counts frames that are looked at.
        send: called with the faces of each frame that was looked at, the best or longest known first.
        sound: file whose sound the video gets.
        progress: show how far it is on stderr.

    Raises:
        ValueError, OSError: naming what could not be read, written or sent.
    """
    if not isinstance(source, Source):
        source = Source(source)
    rows = [rows] if isinstance(rows, (str, PathLike)) else rows
    film, tables = Path(out) if out else None, [Path(path) for path in rows]
    paths = [*([film] if film else []), *tables]
    outputs: _Outputs | None = None
    looked = Looked([], [], None)
    frames = found = 0
    begins = 0.0
    with source, ExitStack() as opened:
        if not isinstance(every, (int, np.integer)) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
        crops = FastDetector(detector, fast) if fast else None
        check_paths(paths, source)
        for path in tables:  # before any output is opened, and so emptied
            table_suffix(path)
        if film:
            check_video_suffix(film)
        try:
            for number, frame in enumerate(track(source, source.name, total=source.frames) if progress else source):
                new = number % every == 0
                if new:
                    looked = _look(frame, detector, crops, tracker, calibration)
                    found += len(looked.faces)
                if outputs is None:
                    # A camera takes its time to begin, and the film shall not begin with nothing. Rows tell its times.
                    begins = frame.time if source.live else 0.0
                    outputs = opened.enter_context(_Outputs(film, tables, frame.image.shape[:2], source, sound))
                if new:
                    outputs.tell(looked, frame.name or source.name, frame.index, frame.time - begins)
                    for call in send:
                        call(looked.faces, looked.ids)
                outputs.show(looked, frame, frame.time - begins)
                frames += 1
        except KeyboardInterrupt:
            return Recorded(frames, found, True)
        except Exception:  # of engines, codecs and receivers, too
            if outputs and paths:
                logger.warning("%s: broken off after %d frames", ", ".join(map(str, paths)), frames)
            raise
    return Recorded(frames, found, False)


def check_paths(paths: Sequence[Path], source: Source) -> None:
    """Refuse outputs that would overwrite each other or the source.

    Raises:
        ValueError: naming them.
    """
    if len({real(path) for path in paths}) < len(paths):
        raise ValueError(f"each output needs a file of its own, got {', '.join(map(str, paths))}")
    for path in paths:
        source.refuse(path)


class _Outputs:
    """The annotated video and the tables, all of them or none."""

    def __init__(
        self, out: Path | None, rows: Sequence[Path], size: tuple[int, ...], source: Source, sound: Path | None
    ) -> None:
        new = [place for path in (out, *rows) if path for place in not_yet(path)]
        self._files = ExitStack()
        try:
            if out:
                check_writable(out)
            # One that cannot be written, or that somebody else writes, fails before any is emptied. A disk that is full
            # already, so that not even a table's header fits, does not.
            self._tables = [self._files.enter_context(RowWriter(path, begin=False)) for path in rows]
            self._video = None
            if out:
                film = VideoWriter(out, (size[0], size[1]), source.rate, sound, source.pixel_aspect)
                self._video = self._files.enter_context(film)
            for table in self._tables:
                table.begin()
        except BaseException:
            self._files.close()
            remove(new)
            raise

    def tell(self, looked: Looked, name: str, index: int, moment: float) -> None:
        for table in self._tables:
            table.write(looked.faces, name, index, moment, looked.ids)

    def show(self, looked: Looked, frame: Frame, moment: float) -> None:
        if self._video:
            self._video.write(_drawn(frame.image, looked.seen, looked.ids), moment)

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


def _look(
    frame: Frame,
    detector: PoseDetector,
    crops: FastDetector | None,
    tracker: PoseTracker | None,
    calibration: Calibration | None,
) -> Looked:
    camera = calibration and calibration.for_size(frame.image.shape[1], frame.image.shape[0])
    intrinsics = camera and camera.intrinsics
    if crops:
        found = crops.detect(frame.image, frame.time, intrinsics=intrinsics)
    else:
        least = tracker.least_score if tracker and detector.score_threshold <= tracker.sure_score else None
        found = detector.detect(frame.image, intrinsics=intrinsics, score_threshold=least)
    return look(found, frame.time, tracker, camera)


def _drawn(image: np.ndarray, faces: Sequence[Face], ids: Sequence[int] | None) -> np.ndarray:
    picture = draw_faces(image, faces)
    for face, number in zip(faces, ids or [], strict=ids is not None):
        left, bottom = np.clip(face.box[[0, 3]], -FARTHEST, max(FARTHEST, *picture.shape))
        corner = round(left), round(bottom) + 14
        cv2.putText(picture, str(number), corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, BOX_COLOR, 1, cv2.LINE_AA)
    return picture
