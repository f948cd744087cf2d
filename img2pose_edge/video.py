"""Frames of videos, cameras, streams and folders of images, read by a thread of their own.

>>> from img2pose_edge import PoseDetector
>>> for frame, faces in PoseDetector().stream("clip.mp4"):  # doctest: +SKIP
...     print(frame.time, len(faces))
"""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from img2pose_edge.files import open_to_write
from img2pose_edge.header import image_size
from img2pose_edge.preprocess import IMAGE_SUFFIXES, is_image, load_image
from img2pose_edge.sound import open_sound

logger = logging.getLogger(__name__)

AHEAD = 4
"""Frames of a file that are read before they are asked for."""
FOLDER_RATE = 25.0
"""Frames a second of a folder of images."""
RAW = (".h264", ".264", ".hevc", ".h265", ".mjpeg", ".mjpg")
"""Files without a clock; FFmpeg takes them for 25 frames a second."""
FASTEST = 240.0
"""Frames a second that are believed."""
COUNTED = (".avi",)
"""Files that hold the number of the frames that they show; others count hidden ones, too, or it is an estimate."""
STALLED = 2.0
"""Seconds that a source which is closed may take for the frame it is reading."""
LEAST_SHARE = 0.9
"""Of a file; one that ends before is broken off."""
FEW = 5
"""Frames that may be missing at the end without a word: counts and durations are not that exact."""
LIVE = re.compile(r"^(rtsps?|rtmps?|rtp|udp|tcp|srt)://", re.IGNORECASE)
PATIENCE = 1.0
"""Seconds that a camera may give nothing: a frame may be damaged on its way, now and then."""
DEVICE = re.compile(r"/dev/(video\d+$|v4l/)")
"""Of a camera, plugged in or not."""
SECRETS = re.compile(
    r"\b([\w-]*(?:token|secret|pass?|passwd|password|passphrase|signature|apikey)"
    r"|(?:[\w-]*[_-])?(?:key|pwd|psw|pw|auth|sig)|[\w-]*[a-z](?-i:Key|Pwd|Auth))(\s*=\s*)"
    r"(?:\"[^\"]*\"|'[^']*'|[^&\s!]+)",
    re.IGNORECASE,
)
"""Of addresses' queries and of pipelines' properties."""
WEB = re.compile(r"^https?://", re.IGNORECASE)
ENDING = re.compile(r"filesrc|splitmuxsrc|giosrc|httpsrc|num-buffers|\b(file|https?):", re.IGNORECASE)
"""In pipelines that may end; the others are of cameras and streams."""
TICK = Fraction(1, 90000)
"""Seconds; the clock of written videos."""
ENCODER: Final = "libx264"
LARGEST = 16384
"""Pixels of a side that it takes."""
STREAMED = (".mjpg", ".mjpeg", ".cgi")
"""What addresses of web cameras end in; other web addresses are files if they tell how long they are."""


class NotOpen(ValueError):
    """A source, right in itself, does not open or gives no frame: one that is live may come yet."""


@dataclass(frozen=True)
class Frame:
    """A picture of a source.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        index: from 0, counting frames that were left out, too.
        time: seconds; of a file its own clock, of a live source since it was opened.
        name: path of the image; empty if it is not of a folder.
    """

    image: np.ndarray
    index: int
    time: float
    name: str = ""


class Source:
    """Frames in order, each once: every one of a file; of a live source the newest at each time it is asked.

    ``rate`` is about how many come a second, ``frames`` how many there are (of a file perhaps an estimate, None if not
    known), ``pixel_aspect`` how much wider than high a pixel is shown.

    A context manager that closes what it opened. Iterating raises ``ValueError`` where the source breaks off or a frame
    has another size than the first one.
    """

    def __init__(
        self, source: str | Path | int, rate: float | None = None, camera_size: tuple[int, int] | None = None
    ) -> None:
        """
        Args:
            source: file, folder of images (by name, ``2.png`` before ``10.png``), address (``rtsp://``, ``http://``
                …), number or device (``/dev/v4l/by-id/…``) of a camera, or a GStreamer pipeline that ends in
                ``appsink``, which counts as live, also where it reads a file, and gives BGR or grey.
            rate: frames a second of a folder (default: 25) or of a raw stream (``.h264`` …), and what a camera is
                asked for; others have times of their own.
            camera_size: width and height that a camera is asked for. What it gives instead of them, or of a rate, is
                logged.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be opened (:class:`NotOpen`), or holds no images, or has no use for a rate or size,
                or they are wrong.
        """
        if rate is not None:
            check_rate(rate)
        if camera_size is not None and (
            not isinstance(camera_size, (tuple, list))
            or len(camera_size) != 2
            or not all(isinstance(side, (int, np.integer)) and side > 0 for side in camera_size)
        ):
            raise ValueError(f"camera_size must be a width and a height in pixels, got {camera_size!r}")
        self._address = str(source)
        if not self._address:
            raise ValueError("the source is empty: a file, folder, camera number, address or pipeline is wanted")
        # Of os.path, which takes pipelines for no files, however long they are.
        self.name = self._address if os.path.exists(self._address) else without_password(self._address)
        self._stop = threading.Event()
        self._capture: cv2.VideoCapture | None = None
        self._paths: list[Path] = []
        self.frames: int | None = None
        self.live = False
        self.pixel_aspect = Fraction(1)
        self._endless = self._begun = False
        self._fourcc = 0
        path = Path(self._address)
        camera = is_camera(source)
        folder = not camera and os.path.isdir(path)
        file = not camera and os.path.isfile(path)
        pipeline = " ! " in self._address and not os.path.exists(path)
        address = not file and bool(LIVE.match(self._address) or WEB.match(self._address))
        if not (camera or folder or file or pipeline or address):
            raise FileNotFoundError(
                f"no video {self.name}: neither file nor folder, camera number, address or pipeline"
            )
        self._rate = rate if path.suffix.lower() in RAW and file else None
        if rate is not None and self._rate is None and not (camera or folder):
            raise ValueError(f"a rate is for folders, cameras and raw streams ({' '.join(RAW)}), not for {self.name}")
        if camera_size is not None and not camera:
            raise ValueError(f"camera_size is for cameras, not for {self.name}")
        if file:  # FFmpeg takes what stands before a colon for a protocol
            self._address = os.path.abspath(path)
        if folder:
            self._paths = sorted(filter(is_image, path.iterdir()), key=lambda image: (_counted(image), image.name))
            if not self._paths:
                raise ValueError(f"folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            self.frames, self.rate = len(self._paths), rate or FOLDER_RATE
        else:
            what = "camera" if camera else "pipeline" if pipeline else "stream" if address else "video"
            self._open(what, rate, camera_size)
        self._frames: queue.Queue[Frame | Exception | None] = queue.Queue(1 if self.live else AHEAD)
        self._reader = _Reader(
            self.name,
            self._address,
            self._capture,
            self._paths,
            self.live,
            self._endless,
            camera,
            pipeline,
            self.rate,
            self._rate is not None,
            self.frames,
            self._stop,
            self._frames,
        )
        self._thread = threading.Thread(target=self._reader.read, name=f"reading {self.name}", daemon=True)
        # Also where nobody closes it: a thread within OpenCV does not survive the interpreter's end.
        self._end = weakref.finalize(self, end_reading, self._thread, self._stop)
        self._thread.start()

    def _open(self, what: str, rate: float | None, size: tuple[int, int] | None) -> None:
        streamed = self._address.split("?")[0].lower().endswith(STREAMED)
        self._endless = what == "camera" or bool(LIVE.match(self._address)) or (what == "stream" and streamed)
        if what == "pipeline":
            self._capture = cv2.VideoCapture(self._address, cv2.CAP_GSTREAMER)
        elif what == "camera" and self._address.isdecimal():
            self._capture = cv2.VideoCapture(int(self._address))
        elif what == "camera":
            self._capture = cv2.VideoCapture(self._address, cv2.CAP_V4L2)
        else:
            self._capture = cv2.VideoCapture(self._address)
        if not self._capture.isOpened():
            self._capture.release()
            why = {
                "camera": "there is none of this number or name, or another program holds it",
                "pipeline": "it is faulty: gst-launch-1.0 tells where"
                if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER)
                else "this OpenCV was built without GStreamer (the wheel on PyPI is)",
                "stream": "there is none, or it is of a kind that OpenCV cannot read",
                "video": "it is damaged, or its codec is missing",
            }
            raise NotOpen(f"{what} {self.name} does not open: {why[what]}")
        if what == "camera":
            ask_camera(self._capture, self.name, size, rate)
        told = self._capture.get(cv2.CAP_PROP_FPS)
        if not 0 < told <= FASTEST:  # some cameras tell the ticks of their clock
            told = FOLDER_RATE
        self.rate = self._rate or told
        self._fourcc = int(self._capture.get(cv2.CAP_PROP_FOURCC))
        across, down = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        if across > 0 and down > 0:
            turned = self._capture.get(cv2.CAP_PROP_ORIENTATION_META) % 180 == 90
            upright = turned and self._capture.get(cv2.CAP_PROP_ORIENTATION_AUTO)
            self.pixel_aspect = Fraction(down, across) if upright else Fraction(across, down)
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._endless = self._endless or (what == "stream" and count <= 0)  # a web camera, whatever its address ends in
        self._endless = self._endless or (what == "pipeline" and not ENDING.search(self._address))
        self.live = self._endless or what == "pipeline"
        self.frames = count if count > 0 and not self.live else None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and let the source go; one that hangs in a camera's driver goes when that answers."""
        self._end()
        self._reader.drop()
        with suppress(queue.Full):
            self._frames.put_nowait(None)  # for whoever waits

    def __iter__(self) -> Iterator[Frame]:
        shape: tuple[int, ...] | None = None
        while not self._stop.is_set():
            frame = self._frames.get()
            if frame is None or isinstance(frame, Exception):
                with suppress(queue.Full):
                    self._frames.put_nowait(frame)  # for whoever asks again
                if frame:
                    raise frame
                break
            if shape is None:
                shape = frame.image.shape
            if frame.image.shape != shape:
                raise ValueError(changed(self.name, frame.index, frame.image.shape[1::-1], shape[1::-1]))
            self._begun = True
            yield frame
        if not self._begun and not self._stop.is_set():
            raise NotOpen(f"{self.name} holds no frames that can be read{self._codec()}")

    def _codec(self) -> str:
        """Of a video of which nothing is decoded, the likely reason."""
        name = "".join(chr(self._fourcc >> shift & 255) for shift in (0, 8, 16, 24)).strip("\0 ")
        return f": this OpenCV may lack its codec, {name}" if name.isprintable() and name else ""

    def refuse(self, path: Path) -> None:
        """Raise ``ValueError`` if writing to ``path`` would overwrite the source."""
        with suppress(OSError):
            if path.samefile(self._address):
                raise ValueError(f"{path} is the source, and would be overwritten")


@dataclass
class _Reader:
    """What the reading thread knows of a source. It holds nothing of the :class:`Source` itself, so that one that
    nobody closes ends when nobody holds it any more."""

    name: str
    address: str
    capture: cv2.VideoCapture | None
    paths: list[Path]
    live: bool
    endless: bool
    camera: bool
    pipeline: bool
    rate: float
    raw: bool
    frames: int | None
    stop: threading.Event
    queue: queue.Queue[Frame | Exception | None]

    def read(self) -> None:
        try:
            for frame in self._images() if self.paths else self._grab():
                self._put(frame)
                if self.stop.is_set():
                    return
            self._put(None)
        except Exception as error:  # told to whoever asks for the next frame
            self._put(error)
        finally:
            if self.capture:
                self.capture.release()

    def _images(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            yield Frame(load_image(path), index, index / self.rate, str(path))

    def _grab(self) -> Iterator[Frame]:
        assert self.capture
        began, last = time.perf_counter(), -1.0  # the other clock has ticks of 16 ms on Windows
        index, good = 0, time.monotonic()
        ticking = False  # whether the file's clock has moved with the last frame
        sizes = iter(()) if self.live else coded_sizes(Path(self.address))
        first = size = next(sizes, None)
        while not self.stop.is_set():
            taken, image = self.capture.read()
            now = time.monotonic()
            if not taken and self.camera and now - good < PATIENCE and self.capture.isOpened():
                self.stop.wait(0.05)
                continue
            if not taken:
                break
            good = now
            if self.pipeline:
                check_format(self.name, image, self.capture)
            if size and first and size != first:
                raise ValueError(changed(self.name, index, size, first))
            if self.live:
                moment = max(time.perf_counter() - began, last + 1e-6)
            elif self.raw:
                moment = index / self.rate
            else:
                moment = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
                # Containers without a clock say 0 for every frame. A time that is told twice is put before the next.
                stuck, step = moment <= last, (0.5 if ticking else 1.0) / self.rate
                ticking = not stuck and last >= 0
                if stuck:
                    moment = round(last + step, 9) if last >= 0 else 0.0
            yield Frame(_three_channels(image), index, moment)
            index, last = index + 1, moment
            size = next(sizes, size)
            first = first or size
        if self.stop.is_set() or not index:
            return
        if self.endless:
            raise ValueError(f"{'camera ' * self.name.isdigit()}{self.name} gives no more frames")
        if is_open_gif(Path(self.address)):
            logger.warning("%s ends after %d frames, but not as a GIF does: it may have been cut off", self.name, index)
        # The number of frames counts those that are not shown, too; the duration does not, but holds a long last frame.
        whole = shown_seconds(Path(self.address))
        counted = self.name.lower().endswith(COUNTED) and self.frames  # of these, some may be holes that show none
        length = whole * self.rate if whole else counted
        share = max(index / (self.frames or index), (last * self.rate + 1) / length if length else 0.0)
        missing = round((1 - share) / share * index)
        if share < LEAST_SHARE or missing > FEW:
            what = f"{self.name} ends after {index} of {index + missing} frames: it is damaged, or was cut off"
            web = WEB.match(self.address)  # a connection that breaks off is likelier than frames that are hidden
            if share < LEAST_SHARE and (whole or web or counted):
                raise ValueError(what)
            logger.warning("%s%s", what, "" if whole or web else " (or it does not show them all: PyAV would tell)")

    def _put(self, item: Frame | Exception | None) -> None:
        while not self.stop.is_set():
            if self.live and isinstance(item, Frame) and self.queue.full():
                self.drop()  # an older frame that nobody asked for
            try:
                self.queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def drop(self) -> None:
        with suppress(queue.Empty):
            self.queue.get_nowait()


def end_reading(thread: threading.Thread, stop: threading.Event) -> None:
    """Let a source's thread end, within :data:`STALLED` seconds."""
    stop.set()
    if thread is not threading.current_thread():  # which may be what drops the last reference
        thread.join(STALLED)


def ask_camera(capture: cv2.VideoCapture, name: str, size: tuple[int, int] | None, rate: float | None) -> None:
    """Ask a camera for a size and a rate; what it gives instead is logged."""
    if size is not None or rate is not None:  # without compression USB has no room for large frames at full rate
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    if size is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        given = tuple(round(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if given != tuple(size):
            logger.warning("camera %s gives %dx%d, asked for %dx%d", name, *given, *size)
    if rate is not None:
        capture.set(cv2.CAP_PROP_FPS, rate)
        told = capture.get(cv2.CAP_PROP_FPS)
        if 0 < told <= FASTEST and not math.isclose(told, rate, rel_tol=0.01):  # 29.97 is 30
            logger.warning("camera %s gives %g frames a second, asked for %g", name, told, rate)


def changed(name: str, index: int, now: tuple[int, ...], then: tuple[int, ...]) -> str:
    """What is told of frame ``index`` whose width and height differ from the former ones."""
    return f"{name} changes size at frame {index}: {now[0]}x{now[1]} after {then[0]}x{then[1]}"


def coded_sizes(path: Path) -> Iterator[tuple[int, int] | None]:
    """Width and height in which each frame of a file is coded, where known; none of what is no file, or without PyAV.

    OpenCV stretches frames of another size to the first one, and does not tell. Sizes change at key frames, which are
    all that is decoded here; those of motion JPEG, which has no others, tell it themselves. Not known of other codecs
    that have no others, such as ProRes.
    """
    if not os.path.isfile(path):  # a pipeline may be too long for a path of pathlib's
        return
    try:
        import av
    except ImportError:
        return
    with suppress(av.FFmpegError, IndexError), av.open(os.path.abspath(path)) as container:
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        if context.codec.intra_only and context.name != "mjpeg":  # decoding them all would take as long as reading
            return
        size = None
        for packet in container.demux(video=0):
            if packet.is_keyframe:
                with suppress(av.FFmpegError, ValueError):
                    if context.name == "mjpeg":
                        size = image_size(bytes(packet))
                    else:
                        context.decode(packet)
                        size = (context.width, context.height) if context.width else None
            yield size


def shown_seconds(path: Path) -> float | None:
    """How long a file says that its video is, without what it does not show; None where that is not known, or without
    PyAV."""
    if not os.path.isfile(path):
        return None
    try:
        import av
    except ImportError:
        return None
    with suppress(av.FFmpegError, IndexError, ValueError), av.open(os.path.abspath(path)) as container:
        video = container.streams.video[0]
        begins = float((video.start_time or 0) * (video.time_base or 0))
        if path.suffix.lower() in (".mkv", ".webm"):  # they tell the whole file's, and of a stream where it ends
            hours, minutes, seconds = video.metadata.get("DURATION", "0:0:0").split(":")
            ends = 3600 * float(hours) + 60 * float(minutes) + float(seconds)
            return ends - begins - last_hold(container, ends) if ends > begins else None
        if path.suffix.lower() in (".mp4", ".m4v", ".mov") and video.duration and video.time_base:
            return float(video.duration * video.time_base)
    return None


def last_hold(container: Any, ends: float) -> float:
    """Seconds that the last frame of a file is shown; 0 where it does not tell. ``ends``: seconds, where to look."""
    video, last, hold = container.streams.video[0], -1, 0
    container.seek(int(ends * 1e6))  # to the key frame before
    for packet in container.demux(video):
        if packet.pts is not None and packet.pts > last:
            last, hold = packet.pts, packet.duration or 0
    return float(hold * video.time_base)


def is_open_gif(path: Path) -> bool:
    """Whether a file is a GIF, which does not tell how many frames it has, without the byte that ends it (some programs
    add zeros or a line's end)."""
    if not os.path.isfile(path):
        return False
    with path.open("rb") as file:
        if file.read(4) != b"GIF8":
            return False
        file.seek(-min(path.stat().st_size, 64), os.SEEK_END)
        return not file.read().rstrip(b"\0\r\n").endswith(b";")


def check_rate(rate: Any) -> None:
    """Raises ``ValueError`` for what is no rate of a video."""
    if not isinstance(rate, (int, float, Fraction, np.integer, np.floating)) or not 0 < rate <= 1 / TICK:
        raise ValueError(f"rate must be a positive number of frames a second, at most {1 / TICK}, got {rate!r}")


def is_camera(source: str | Path | int) -> bool:
    """Whether a source is a camera: its number, whole or in digits where no file has that name, or its device,
    which may not be there yet."""
    if isinstance(source, bool) or not isinstance(source, (str, os.PathLike, int, np.integer)):
        raise ValueError(f"a source is a file, folder, camera number, address or pipeline, got {source!r}")
    digits = isinstance(source, str) and source.isdecimal()
    if isinstance(source, (int, np.integer)) or (digits and not Path(source).exists()):
        return int(str(source)) < 2**31  # more OpenCV does not take
    if DEVICE.match(str(source)):
        return True
    return os.path.exists(source) and Path(source).is_char_device()  # pipelines are too long for a Path


def without_password(text: str) -> str:
    """Addresses in a text without the user, password and keys that they may hold."""
    text = re.sub(r"//[^/\s]*@", "//", text)
    return SECRETS.sub(r"\1\2…", text)


def _counted(path: Path) -> list[int | str]:
    """A key that sorts names with numbers by these."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _three_channels(image: np.ndarray) -> np.ndarray:
    """Cameras of one channel give grey frames."""
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def check_format(name: str, image: np.ndarray, capture: cv2.VideoCapture) -> None:
    """Raises ``ValueError`` for a pipeline's frame in a format that OpenCV passes on as it is: YUV (NV12 of Jetsons, a
    plane half again as high) or four channels in an order that nobody knows."""
    height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    grey_or_bgr = image.ndim == 2 or image.shape[2] in (1, 3)
    if not grey_or_bgr or (height > 0 and image.shape[0] != height):
        raise ValueError(
            f"pipeline {name} gives frames of another format than BGR: "
            "let it end in videoconvert ! video/x-raw, format=BGR ! appsink"
        )


def check_video_suffix(path: Path) -> None:
    """Raises ``ValueError`` for a file that :class:`VideoWriter` does not write."""
    if path.suffix.lower() not in (".mp4", ".mkv"):
        raise ValueError(f"a video must end in .mp4 or .mkv, got {path}")


class VideoWriter:
    """An MP4 (H.264) with frames at their own times and, of a file, its sound. A context manager.

    What was written can be played even if the process is killed, but for the last second: the file is fragmented.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        size: tuple[int, int],
        rate: float,
        sound: Path | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        """
        Args:
            path: ending in .mp4 or .mkv.
            size: height and width, pixels; an odd last row or column is left out, as H.264 has none.
            rate: frames a second, about.
            sound: file whose first audio stream it gets (:mod:`img2pose_edge.sound`).
            pixel_aspect: how much wider than high a pixel is to be shown.

        Raises:
            ImportError: without PyAV.
            ValueError: if the suffix is another, this PyAV cannot encode, or size or rate are wrong.
            OSError: if it cannot be written.
        """
        try:
            import av
        except ImportError as error:
            raise ImportError('writing videos needs PyAV: pip install "img2pose-edge[video]"') from error
        path = Path(path)
        check_video_suffix(path)
        if not 2 <= min(size) <= max(size) <= LARGEST:
            raise ValueError(f"a video's frames are 2x2 to {LARGEST}x{LARGEST} pixels, got {size[1]}x{size[0]}")
        check_rate(rate)
        try:
            av.codec.Codec(ENCODER, "w")
        except ValueError as error:
            raise ValueError(f"cannot write {path}: this PyAV has no {ENCODER}, as the wheel on PyPI has") from error
        self._av: Any = av
        self.path, self._size = path, tuple(size)
        # FFmpeg would keep up to 256 KB, and lose the error of a full disk with it; and, where the sound has ended,
        # pictures of ten seconds.
        options = {"flush_packets": "1", "max_interleave_delta": "1000000"}
        if path.suffix.lower() == ".mp4":
            options["movflags"] = "frag_keyframe+delay_moov+default_base_moof"
        open_to_write(path).close()
        self._file: Any = av.open(os.path.abspath(path), "w", options=options)
        # Without frames that refer to later ones the first is shown at its own time, not two frames later. A key frame,
        # with which a fragment begins, comes every second by the clock.
        options = {"crf": "20", "preset": "veryfast", "bf": "0", "g": str(10 * max(round(rate), 1))}
        self._video: Any = self._file.add_stream(ENCODER, rate=round(rate) or 1, options=options)
        self._height, self._width = size[0] - size[0] % 2, size[1] - size[1] % 2
        self._video.width, self._video.height, self._video.pix_fmt = self._width, self._height, "yuv420p"
        self._video.codec_context.time_base = self._video.time_base = TICK
        self._video.sample_aspect_ratio = pixel_aspect
        # What FFmpeg turns BGR into; players take high video that does not tell for BT.709.
        self._video.codec_context.colorspace = av.video.reformatter.Colorspace.SMPTE170M
        self._video.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        self._sound = open_sound(sound, path, self._file) if sound else None
        self._last = -1
        self._moment, self._interval, self._key = 0.0, 1 / rate, 0.0
        # Ctrl-C interrupts the main thread alone: one that came between encoding and writing would lose frames, and
        # with a key frame all those after it.
        self._worker = ThreadPoolExecutor(1, "writing")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, image: np.ndarray, moment: float) -> None:
        """Add an (H, W, 3) uint8 BGR frame shown from ``moment`` on, seconds.

        Raises:
            ValueError: if it has another size or dtype, or the moment is not finite.
            OSError: if it cannot be written (the disk is full).
        """
        if image.shape != (*self._size, 3) or image.dtype != np.uint8:
            wanted = f"({self._size[0]}, {self._size[1]}, 3) uint8"
            raise ValueError(f"frames of {self.path} are {wanted}, got {image.shape} {image.dtype}")
        if not abs(moment) < 2**62 * TICK:
            raise ValueError(f"a frame's time must be finite, in seconds, got {moment!r}")
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        try:
            self._worker.submit(self._write, image, moment).result()
        except self._av.FFmpegError as error:
            raise OSError(f"cannot write {self.path}: {error}") from error

    def _write(self, image: np.ndarray, moment: float) -> None:
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image[: self._height, : self._width]), "bgr24")
        if self._last >= 0:
            self._interval = moment - self._moment
        self._moment = moment
        self._last = max(round(moment / TICK), self._last + 1)
        frame.pts, frame.time_base = self._last, TICK
        if moment - self._key >= 1:  # of a camera not all frames come
            frame.pict_type = self._av.video.frame.PictureType.I
            self._key = moment
        for packet in self._video.encode(frame):
            self._file.mux(packet)
        self._write_sound(moment)

    def _write_sound(self, until: float) -> None:
        if self._sound and not self._sound.write(until):
            self._sound.close()
            self._sound = None

    def close(self) -> None:
        """Write what is left; the file is complete then."""
        with self._worker:
            if self._file is not None:
                try:
                    self._worker.submit(self._finish).result()
                except self._av.FFmpegError as error:
                    raise OSError(f"cannot write {self.path}: {error}") from error

    def _finish(self) -> None:
        file, self._file = self._file, None
        try:
            for packet in self._video.encode(None):
                file.mux(packet)
            if self._last >= 0:
                self._write_sound(self._moment + self._interval)  # the last frame is shown as long as that before
            if self._sound:
                self._sound.finish()
        finally:
            file.close()
            if self._sound:
                self._sound.close()
            if self._last < 0:  # no frame came: an empty file plays nowhere
                self.path.unlink(missing_ok=True)
