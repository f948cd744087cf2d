"""One thread takes and detects the camera's frames for everyone who looks; the newest frame wins."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from img2pose_edge.live.shared import SharedDetector, Stream
from img2pose_edge.senders import Send
from img2pose_edge.tracking import PoseTracker
from img2pose_edge.video import Source, is_camera, without_password

logger = logging.getLogger(__name__)

RETRY = 2.0
"""Seconds after which a camera that is gone is tried again."""
LINGER = 5.0
"""Seconds that the camera stays open when nobody looks."""
STALLED = 3.0
"""Seconds without a frame after which clients are told."""
HOLD = 1.0
"""Seconds after which a picture of a file that is still shown is sent again."""
LONGEST = 1280
"""Pixels of the longest side of pictures sent: the page's, whatever the camera's."""
QUALITY = 80
"""Of their JPEG."""


@dataclass(frozen=True)
class Shot:
    """What is sent of one frame, or of trouble with the camera.

    Attributes:
        number: counts up.
        text: a JSON object.
        jpeg: the picture; empty of trouble.
        taken: ``time.monotonic()`` when the camera gave the frame.
        made: the same when the shot was complete.
    """

    number: int
    text: str
    jpeg: bytes
    taken: float
    made: float


class Capture:
    """The thread. It holds the camera only while someone looks, or always if faces are sent somewhere.

    A file is played at its own rate, or slower where the machine is, again and again.
    """

    def __init__(
        self,
        source: str | int,
        detector: SharedDetector,
        send: Sequence[Send] = (),
        rate: float | None = None,
        camera_size: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            source, rate, camera_size: as :class:`~img2pose_edge.video.Source` takes them.
            detector: what finds the faces.
            send: called with the faces of each frame.
        """
        self.send = send
        self.rate, self.camera_size = rate, camera_size
        self.source = source
        self.detector = detector
        self.name = source_name(str(source))
        self.watchers = 0
        self.stalled = STALLED
        self.looking = False  # for the faces of a frame, for which a slow machine may need long
        self._last_look = -LINGER
        self._trouble = ""
        self._tracker: PoseTracker | None = None
        self._shot: Shot | None = None
        self._number = 0
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread, from within the event loop that will wait for its shots."""
        self._loop = asyncio.get_running_loop()
        self._new = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that hangs in a camera's driver is left to the end of the process."""
        self._stop.set()
        self._thread.join(2)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the camera open."""
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1
            self._last_look = time.monotonic()

    async def newer(self, number: int) -> Shot:
        """The newest shot, as soon as there is one after ``number``: no picture from before the camera hung."""
        while True:
            shot = self._shot
            if shot is not None and shot.number > number:
                fresh = self.looking or time.monotonic() - shot.made < self.stalled
                if fresh or not shot.jpeg:
                    return shot
            await self._new.wait()

    # --- the thread ----------------------------------------------------------------------------------

    @property
    def _wanted(self) -> bool:
        looked_at = bool(self.send) or self.watchers > 0 or time.monotonic() - self._last_look < LINGER
        return looked_at and not self._stop.is_set()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._wanted:
                self._shot = None  # whoever comes next shall not see an old picture
                self._stop.wait(0.1)
                continue
            try:
                with Source(self.source, self.rate, self.camera_size) as source:
                    self._show(source)
            except Exception as error:  # of cameras, drivers, engines: told, and tried again
                told = str(error)
                if os.sep in str(self.source) and not is_camera(self.source):  # where a file lies is nobody's business
                    told = told.replace(str(self.source), self.name)
                trouble = without_password(told)
                if trouble != self._trouble:
                    logger.warning("%s", trouble)
                self._trouble = trouble
                self._publish({"type": "trouble", "message": f"{trouble}; trying again every {RETRY:.0f} s"})
                self._stop.wait(RETRY)

    def _show(self, source: Source) -> None:
        opened = time.monotonic()
        period, last = 0.0, opened
        shown: tuple[dict[str, Any], bytes] | None = None
        # Nobody takes over the number of somebody else, whom a head tracker may follow.
        stream = self._stream(fresh=True)
        for number, frame in enumerate(source):
            if not self._wanted:
                return
            if self._trouble:
                logger.warning("%s is there again", self.name)
                self._trouble = ""
            if stream.settings != self.detector.settings:
                stream = self._stream(fresh=stream.tracker is None)
            if not source.live:
                self._hold(opened + frame.time, shown)
                opened = max(opened, time.monotonic() - frame.time)
            taken = opened + frame.time
            camera = self.detector.camera(frame.image)
            self.looking = True
            try:
                looked, seen = self.detector.look(frame.image, camera, stream, frame.time)
            finally:
                self.looking = False
            for call in self.send:
                call(looked.faces, looked.ids)
            now = time.monotonic()
            period = max(now - last if number < 2 else 0.9 * period + 0.1 * (now - last), 1e-3)
            last = now
            message = {
                "type": "frame",
                "time": round(frame.time, 4),
                "frames_per_second": round(1 / period, 1) if number else 0.0,
                **seen,
            }
            # Whoever comes while a picture stands is to see it.
            stands = not source.live and source.rate < 1 / HOLD
            shown = (message, encode(frame.image)) if self.watchers or stands else None
            if shown and self.watchers:
                self._publish(*shown, taken)
            else:
                self._shot = None  # whoever comes next shall not see an old picture
        if not source.live:
            self._hold(time.monotonic() + 1 / source.rate, shown)  # the last frame is shown as long as the others

    def _hold(self, until: float, shown: tuple[dict[str, Any], bytes] | None) -> None:
        """Wait for a moment of the monotonic clock, while anybody looks."""
        while (left := until - time.monotonic()) > 0 and self._wanted:
            self._stop.wait(min(left, HOLD))
            if left > HOLD and shown and self.watchers:
                self._publish(*shown)  # a picture that stands still is no camera that is stuck

    def _stream(self, fresh: bool) -> Stream:
        """For the next frames; with ``fresh`` faces are others than before, with numbers of their own."""
        if fresh and self._tracker:
            self._tracker.reset(ids_go_on=True)
        stream = self.detector.stream(self._tracker)
        self._tracker = stream.tracker or self._tracker
        return stream

    def _publish(self, message: dict[str, Any], jpeg: bytes = b"", taken: float | None = None) -> None:
        self._number += 1
        message = {**message, "number": self._number, "settings": asdict(self.detector.settings)}
        now = time.monotonic()
        self._shot = Shot(self._number, json.dumps(message), jpeg, now if taken is None else taken, now)
        with suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._new.set()
        self._new = asyncio.Event()


def encode(image: np.ndarray) -> bytes:
    """A JPEG for the page of an (H, W, 3) uint8 BGR image."""
    factor = LONGEST / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def source_name(source: str) -> str:
    """What the page calls a source; of a file its name alone."""
    if is_camera(source):
        return f"camera {source}"
    name = os.path.basename(os.path.abspath(source)) if os.path.exists(source) else without_password(source)
    return os.fsencode(name).decode(errors="replace")
