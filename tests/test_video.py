"""Sources of frames, and videos that are written."""

from __future__ import annotations

import dataclasses
import gc
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from img2pose_edge import PoseDetector
from img2pose_edge.cli import main
from img2pose_edge.face import Face
from img2pose_edge.record import record
from img2pose_edge.rows import RowWriter, read_rows
from img2pose_edge.tracking import PoseTracker
from img2pose_edge.video import Frame, NotOpen, Source, VideoWriter, is_open_gif, without_password

av = pytest.importorskip("av")


def numbered(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A frame whose brightness is its number."""
    return np.full((*size, 3), 40 + 6 * number, np.uint8)


def number_of(image: np.ndarray) -> int:
    return round((float(image.mean()) - 40) / 6)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Thirty frames at irregular times."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, (48, 64), 25) as writer:
        for number in range(30):
            writer.write(numbered(number), number / 25 + 0.01 * (number % 3))
    return path


def times(path: Path) -> list[float]:
    """Of all frames that can be decoded."""
    found = []
    with av.open(str(path)) as container, suppress(av.error.InvalidDataError):
        for frame in container.decode(video=0):
            found.append(float(frame.time))
    return found


def test_a_file_gives_every_frame_at_its_time(clip: Path) -> None:
    with Source(clip) as source:
        assert not source.live
        frames = []
        for frame in source:
            time.sleep(0.002)  # slower than reading
            frames.append(frame)
    assert [f.index for f in frames] == list(range(30))
    assert max(abs(number_of(f.image) - f.index) for f in frames) <= 1, "but for what compression loses"
    wanted = [n / 25 + 0.01 * (n % 3) for n in range(30)]
    np.testing.assert_allclose([f.time for f in frames], wanted, atol=1e-3)
    np.testing.assert_allclose(times(clip), wanted, atol=1e-4)


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        cv2.imwrite(str(tmp_path / f"{number}.png"), numbered(number))
    (tmp_path / "notes.txt").write_text("no image")
    with Source(tmp_path, rate=10) as source:
        assert source.frames == 3
        assert [(number_of(f.image), f.time) for f in source] == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_names_of_one_number_come_in_their_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["001.png", "01.png", "1.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / name), numbered(1))
    listed = [tmp_path / name for name in ("1.png", "001.png", "01.png")]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    with Source(tmp_path) as source:
        assert [Path(frame.name or "").name for frame in source] == names


class Camera:
    """Stands for ``cv2.VideoCapture``: a frame every two milliseconds."""

    def __init__(self, *_: Any) -> None:
        self.taken, self.released = 0, False

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        time.sleep(0.002)
        self.taken += 1
        return self.taken < 35, numbered(min(self.taken, 35))

    def release(self) -> None:
        self.released = True


def test_a_live_source_gives_the_newest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    seen = []
    with Source(0) as source:
        assert source.live
        camera: Any = source._capture
        frames = iter(source)
        with pytest.raises(ValueError, match="camera 0 gives no more frames"):  # noqa: PT012
            while True:
                taken = camera.taken  # the last of them may not have been handed over yet
                frame = next(frames)
                seen.append((frame.index, taken - number_of(frame.image)))
                time.sleep(0.02)  # slower than the camera
        with pytest.raises(ValueError, match="camera 0 gives no more frames"):
            next(iter(source))
    assert len(seen) < 20, "frames are dropped"
    assert all(behind <= 1 for _, behind in seen)
    assert [i for i, _ in seen] == sorted({i for i, _ in seen})
    assert camera.released


def test_addresses_are_told_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda address: opened.append(address) or Camera())
    address = "http://me:secret@host:8080/?action=stream"
    with Source(address) as source:
        assert opened == [address]
        assert source.name == "http://host:8080/?action=stream"
        assert source.live, "it tells no number of frames"
        assert source.rate == 25


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("rtsp://admin:p@ss@cam/1", "rtsp://cam/1"),
        ("http://cam/video.cgi?user=a&pwd=secret&n=1", "http://cam/video.cgi?user=a&pwd=…&n=1"),
        ("rtspsrc location=rtsp://cam user-pw=secret ! appsink", "rtspsrc location=rtsp://cam user-pw=… ! appsink"),
        ("http://cam/monkey=1", "http://cam/monkey=1"),
        ("http://cam/?access_token=abc&n=1", "http://cam/?access_token=…&n=1"),
        ("http://cam/?apikey=abc&auth=b&x-api-key=c", "http://cam/?apikey=…&auth=…&x-api-key=…"),
        (
            "http://cam/?accessToken=a&sessionKey=b&userPassword=c",
            "http://cam/?accessToken=…&sessionKey=…&userPassword=…",
        ),
        ("http://cam/?loginuse=me&loginpas=a&psw=b", "http://cam/?loginuse=me&loginpas=…&psw=…"),
        ('rtspsrc user-pw="my secret pass" ! appsink', "rtspsrc user-pw=… ! appsink"),
    ],
)
def test_no_secret_of_an_address_is_told(address: str, told: str) -> None:
    assert without_password(address) == told


@pytest.mark.parametrize("pyav", [True, False])
def test_a_trimmed_video_ends_where_it_should(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, pyav: bool
) -> None:
    """As ``ffmpeg -ss 1.5 -c copy`` and telephones trim: frames from the key frame before are kept, but not shown."""
    whole, trimmed = tmp_path / "whole.mp4", tmp_path / "trimmed.mp4"
    with av.open(str(whole), "w") as container:
        video = container.add_stream("libx264", rate=30, options={"g": "60", "bf": "0", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(120):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(number % 30), "bgr24")))
        container.mux(video.encode(None))
    with av.open(str(whole)) as source, av.open(str(trimmed), "w") as target:
        stream = source.streams.video[0]
        copied, earlier = target.add_stream_from_template(stream), round(1.5 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, copied
                target.mux(packet)
    if not pyav:
        monkeypatch.setitem(sys.modules, "av", None)
    with Source(trimmed) as frames:
        assert frames.frames == 120
        assert len(list(frames)) == 75
    assert ("PyAV would tell" in caplog.text) != pyav


@pytest.mark.parametrize(("share", "told"), [(1.0, ""), (1.1, ""), (1.2, "ends after 30 of 36 frames")])
def test_a_few_missing_frames_are_told_too(
    clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, share: float, told: str
) -> None:
    monkeypatch.setattr("img2pose_edge.video.LEAST_SHARE", 0.5)
    real = cv2.VideoCapture

    class Capture:
        def __init__(self, address: str) -> None:
            self._capture = real(address)

        def __getattr__(self, name: str) -> object:
            return getattr(self._capture, name)

        def get(self, what: int) -> float:
            return self._capture.get(what) * (share if what == cv2.CAP_PROP_FRAME_COUNT else 1)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    rate = real(str(clip)).get(cv2.CAP_PROP_FPS)
    monkeypatch.setattr("img2pose_edge.video.shown_seconds", lambda path: 30 / rate * share)
    with Source(clip) as source:
        assert len(list(source)) == 30
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)


def test_a_short_video_that_lacks_little_is_broken_off_all_the_same(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "_open", promise(34))
    rate = cv2.VideoCapture(str(clip)).get(cv2.CAP_PROP_FPS)
    monkeypatch.setattr("img2pose_edge.video.shown_seconds", lambda path: 34 / rate)
    with Source(clip) as source, pytest.raises(ValueError, match="ends after 30 of 34 frames"):
        list(source)


def promise(frames: int) -> Any:
    """``Source._open`` of files that claim to hold so many frames."""
    real = Source._open

    def open_promising(self: Source, *given: Any) -> None:
        real(self, *given)
        self.frames = frames

    return open_promising


@pytest.mark.parametrize("share", [1.0, 0.95, 0.6])
def test_an_address_that_breaks_off_is_an_error(
    share: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Download(Camera):
        def get(self, what: int) -> float:
            return float({cv2.CAP_PROP_FRAME_COUNT: 200, cv2.CAP_PROP_FPS: 500}.get(what, 0))

        def read(self) -> tuple[bool, np.ndarray]:
            self.taken += 1
            return self.taken <= 200 * share, numbered(0)

    monkeypatch.setattr(cv2, "VideoCapture", Download)
    told = f"http://host/clip.mp4 ends after {200 * share:.0f} of 200 frames: it is damaged, or was cut off"
    with Source("http://host/clip.mp4") as source:
        assert not source.live
        if share < 0.9:
            with pytest.raises(ValueError, match=told):
                list(source)
        else:
            assert len(list(source)) == 200 * share
            assert caplog.messages == ([told] if share < 1 else [])


def test_a_long_last_frame_is_no_missing_one(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2pose_edge.video.shown_seconds", lambda path: 60.0)
    with Source(clip) as source:
        assert len(list(source)) == 30


def test_a_source_that_was_read_ends_again(clip: Path) -> None:
    with Source(clip) as source:
        assert len(list(source)) == 30
        assert list(source) == []


def test_a_source_that_nobody_closes_ends_with_its_last_reference(tmp_path: Path) -> None:
    for number in range(9):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((32, 32, 3), np.uint8))
    source = Source(tmp_path)
    next(iter(source))
    thread = source._thread
    del source
    gc.collect()
    assert not thread.is_alive()


def test_times_that_are_told_twice_do_not_shift_those_behind(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0, 40, 40, 80, 120, 160, 200, 200, 240, 280])

    class Clock(Camera):
        def get(self, what: int) -> float:
            return float(next(times)) if what == cv2.CAP_PROP_POS_MSEC else 25.0 if what == cv2.CAP_PROP_FPS else 0.0

        def read(self) -> tuple[bool, np.ndarray]:
            self.taken += 1
            return self.taken <= 10, numbered(self.taken)

    monkeypatch.setattr(cv2, "VideoCapture", Clock)
    monkeypatch.setattr("img2pose_edge.video.shown_seconds", lambda path: None)
    with Source(clip) as source:
        moments = [frame.time for frame in source]
    assert moments == pytest.approx([0, 0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.22, 0.24, 0.28])


def test_leaving_early_ends_the_thread(clip: Path) -> None:
    source = Source(clip)
    for _ in source:
        break
    source.close()
    assert not source._thread.is_alive()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("absent.mp4", "no video absent.mp4: neither file nor folder"),
        ("97", "camera 97 does not open"),
        ("rtsp://127.0.0.1:9/none", "stream rtsp://127.0.0.1:9/none does not open"),
        ("rtsps://me:secret@127.0.0.1:9/none", "stream rtsps://127.0.0.1:9/none does not open"),
        ("gopher://me:secret@host/none", "no video gopher://host/none: neither file nor folder"),
        ("/dev/video97", "camera /dev/video97 does not open"),
        ("/dev/v4l/by-id/none", "camera /dev/v4l/by-id/none does not open"),
        ("/dev/none", "no video /dev/none: neither file nor folder"),
        ("20261128133200", "no video 20261128133200: neither file nor folder"),
        (2**31, "no video 2147483648: neither file nor folder"),
        ("videotestsrc ! appsink", "pipeline videotestsrc ! appsink does not open: .*without GStreamer"),
    ],
)
def test_what_does_not_open_is_named(name: str | int, what: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=what):
        Source(name)


@pytest.mark.parametrize("source", [None, True, 1.5, ["a.mp4"]])
def test_what_is_no_source_is_named(source: object) -> None:
    with pytest.raises(ValueError, match=r"a source is a file, folder, camera number, address or pipeline, got "):
        Source(source)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_may_be_asked_for_a_size() -> None:
    with pytest.raises(NotOpen, match="camera /dev/video97 does not open"):
        Source(Path("/dev/video97"), rate=60, camera_size=(640, 480))


def test_a_pipeline_may_be_longer_than_a_file_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pipeline = "videotestsrc num-buffers=9 ! " + "videoconvert ! " * 20 + "appsink"
    assert main(["video", pipeline, "--csv", str(tmp_path / "a.csv")]) == 1
    assert "appsink does not open: this OpenCV was built without" in capsys.readouterr().err


def test_a_folder_has_the_rate_that_it_is_given(tmp_path: Path, astronaut: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), astronaut)
    assert main(["video", str(tmp_path / "in"), "--rate", "2", "--csv", str(tmp_path / "a.csv"), "--threads", "1"]) == 0
    assert [row["time"] for row in read_rows(tmp_path / "a.csv")] == [0, 0.5, 1]


def test_damaged_and_empty_sources_are_named(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 does not open: it is damaged, or its codec is missing"):
        Source(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        Source(tmp_path / "empty")
    for number, size in ((0, (48, 64)), (1, (32, 64))):
        cv2.imwrite(str(tmp_path / "empty" / f"{number}.png"), numbered(number, size))
    with (
        Source(tmp_path / "empty") as source,
        pytest.raises(ValueError, match="changes size at frame 1: 64x32 after 64x48"),
    ):
        list(source)
    (tmp_path / "empty" / "1.png").write_bytes(b"broken")
    with Source(tmp_path / "empty") as source, pytest.raises(ValueError, match=r"1\.png"):
        list(source)


def write_loud(path: Path, kind: str, rate: int, layout: str = "mono", late: int = 0) -> Path:
    """A second of numbered frames with sound: silence, and from 0.5 s on a tone; ``late`` seconds without before."""
    tone = (9000 * np.sin(2764.6 * np.arange(rate) / rate) * (np.arange(rate) >= rate / 2)).astype(np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = container.add_stream(kind, rate=rate, layout=layout)
        for number in range(-25 * late, 25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(max(number, 0)), "bgr24")))
            if number < 0:
                continue
            start, end = (k * rate // 25 for k in (number, number + 1))
            frame = av.AudioFrame.from_ndarray(tone[start:end].repeat(sound.channels)[None], "s16", layout)
            frame.sample_rate, frame.pts = rate, start + late * rate
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        container.mux(video.encode(None))
    return path


def loudness(path: Path) -> dict[float, float]:
    """Greatest amplitude of the sound's parts, by their times, seconds."""
    with av.open(str(path)) as container:
        return {part.time: float(np.abs(part.to_ndarray()).max()) for part in container.decode(audio=0)}


def copy_video(path: Path, out: Path) -> None:
    with Source(path) as source, VideoWriter(out, (48, 64), source.rate, path) as writer:
        for frame in source:
            writer.write(frame.image, frame.time)


def test_a_video_keeps_times_and_sound(tmp_path: Path, clip: Path) -> None:
    loud = write_loud(tmp_path / "loud.mkv", "aac", 16000)
    copy = tmp_path / "copy.mp4"
    copy_video(loud, copy)
    np.testing.assert_allclose(times(copy), times(loud), atol=2e-3)
    with av.open(str(copy)) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert heard > 15800  # to the end of the last frame

    late = tmp_path / "late.mkv"  # begins at 1.4 s, as transport streams do
    with av.open(str(loud)) as given, av.open(str(late), "w") as container:
        streams = {s.index: container.add_stream_from_template(s) for s in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                shift = round(1.4 / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    moved = tmp_path / "moved.mp4"
    copy_video(late, moved)
    assert times(moved)[0] == pytest.approx(0, abs=2e-3)
    with av.open(str(moved)) as container:
        assert next(container.decode(audio=0)).time == pytest.approx(0, abs=0.1)


def test_a_killed_writer_leaves_a_video_that_plays(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    code = f"""
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
import numpy as np
from img2pose_edge.video import VideoWriter
writer = VideoWriter(Path({str(path)!r}), (240, 320), 25)
for i in range(400):
    writer.write(np.full((240, 320, 3), i // 2, np.uint8), i / 25)
print("written", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(times(path)) >= 370, "all but the last second"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.mkv, got .*out\.avi"):
        VideoWriter(tmp_path / "out.avi", (48, 64), 25)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*folder\.mp4"):
        VideoWriter(tmp_path / "folder.mp4", (48, 64), 25)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_full_disk_is_an_error(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"full{suffix}"
    path.symlink_to("/dev/full")

    def write() -> None:
        with VideoWriter(path, (48, 64), 25) as writer:
            for number in range(60):  # far less than FFmpeg's buffer
                writer.write(np.full((48, 64, 3), number, np.uint8), number / 25)

    with pytest.raises(OSError, match=r"(?i)no space"):
        write()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_table(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "full.csv"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"(?i)no space.*full\.csv"):
        record(str(clip), PoseDetector(), rows=[str(path)])


def test_pixels_of_a_turned_video_are_turned(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {cv2.CAP_PROP_SAR_NUM: 16, cv2.CAP_PROP_SAR_DEN: 11, cv2.CAP_PROP_ORIENTATION_META: 90}

    class Turned(Camera):
        def get(self, which: int) -> float:
            return told.get(which, 1.0)

    monkeypatch.setattr(cv2, "VideoCapture", Turned)
    with Source(clip) as source:
        assert source.pixel_aspect == Fraction(11, 16)
    told[cv2.CAP_PROP_ORIENTATION_META] = 180
    with Source(clip) as source:
        assert source.pixel_aspect == Fraction(16, 11)


def test_a_detector_streams(astronaut: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), astronaut)
    found = [(frame.index, len(faces)) for frame, faces in PoseDetector(threads=1).stream(folder)]
    assert [i for i, _ in found] == [0, 1, 2]
    assert all(count == 1 for _, count in found)


@pytest.fixture
def people(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """Twelve frames of a photograph that moves to the left."""
    path = tmp_path / "people.mp4"
    with VideoWriter(path, (320, 320), 25) as writer:
        for number in range(12):
            writer.write(astronaut[:320, 4 * number : 4 * number + 320], number / 25)
    return path


def test_the_command_writes_video_and_tables(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table, lines = tmp_path / "out.mp4", tmp_path / "out.csv", tmp_path / "out.jsonl"
    arguments = ["--csv", str(table), "--jsonl", str(lines), "--smooth", "--every", "2", "--threads", "1"]
    assert main(["video", str(people), "--out", str(out), *arguments]) == 0
    assert "12 frames, 6 faces" in capsys.readouterr().out
    rows = read_rows(table)
    assert rows == read_rows(lines)
    assert [row["frame"] for row in rows] == [0, 2, 4, 6, 8, 10]
    assert {row["id"] for row in rows} == {0}
    assert all(later["x1"] < former["x1"] for former, later in pairwise(rows))
    np.testing.assert_allclose(times(out), times(people), atol=1e-4)
    with Source(out) as drawn, Source(people) as plain:
        changed = [np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(drawn, plain, strict=True)]
    assert min(changed) > 1


def test_senders_get_the_ids_of_tracked_faces(people: Path) -> None:
    sent: list[tuple[int, Any]] = []
    detector = PoseDetector(threads=1)
    record(Source(people), detector, tracker=PoseTracker(), send=[lambda faces, ids: sent.append((len(faces), ids))])
    record(Source(people), detector, send=[lambda faces, ids: sent.append((len(faces), ids))])
    assert sent == [(1, [0])] * 12 + [(1, None)] * 12


def test_ctrl_c_ends_with_whole_files(people: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    many = tmp_path / "many"
    many.mkdir()
    with Source(people) as source:
        image = next(iter(source)).image
    for number in range(400):
        cv2.imwrite(str(many / f"{number:03}.jpg"), image)
    code = """
import signal, sys
from img2pose_edge.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in what they start in the background
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["video", str(many), "--out", str(out), "--csv", str(table), "--threads", "1"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    for _ in range(400):
        if table.exists() and table.stat().st_size > 1000:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in printed
    rows = read_rows(table)
    assert 0 < len(rows) < 400
    assert abs(len(times(out)) - len(rows)) <= 1


def write_calibration(path: Path, side: int) -> Path:
    """Of a camera with some distortion whose images are square."""
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("image_width", side)
    storage.write("image_height", side)
    storage.write("camera_matrix", np.array([[1.2 * side, 0, side / 2], [0, 1.2 * side, side / 2], [0, 0, 1]]))
    storage.write("distortion_coefficients", np.array([-0.3, 0.1, 0, 0, 0]))
    storage.release()
    return path


def test_a_calibrated_camera_gives_its_poses(people: Path, tmp_path: Path) -> None:
    calibration = write_calibration(tmp_path / "camera.yml", 640)  # of pictures twice as large
    assert main(["video", str(people), "--csv", str(tmp_path / "plain.csv"), "--threads", "1"]) == 0
    arguments = ["--calibration", str(calibration), "--threads", "1"]
    assert main(["video", str(people), "--csv", str(tmp_path / "metric.csv"), *arguments]) == 0
    plain, metric = read_rows(tmp_path / "plain.csv")[0], read_rows(tmp_path / "metric.csv")[0]
    assert metric["x1"] == pytest.approx(plain["x1"], abs=1)
    # Default focal length 640, calibrated 384: the same face is nearer.
    assert metric["z_mm"] / plain["z_mm"] == pytest.approx(0.6, abs=0.05)


def test_a_failed_start_leaves_nothing_and_harms_nothing(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = write_calibration(tmp_path / "camera.yml", 320)
    (tmp_path / "wide.yml").write_text(calibration.read_text().replace("image_width: 320", "image_width: 480"))
    (tmp_path / "file").touch()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/0.png").write_bytes(b"no picture")
    linked = tmp_path / "linked.mp4"
    linked.hardlink_to(people)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    table, out = str(tmp_path / "new/a.csv"), str(tmp_path / "new/a.mp4")
    for arguments, what in (
        ([str(people), "--csv", table, "--calibration", str(tmp_path / "wide.yml")], "images of 480x320, this one is"),
        ([str(people), "--csv", table, "--calibration", str(tmp_path)], "no calibration"),
        ([str(tmp_path / "cut"), "--csv", table, "--out", out], "0.png is not an image"),
        ([str(people), "--csv", table, "--out", str(tmp_path / "file/a.mp4")], "cannot write"),
        ([str(people), "--csv", str(tmp_path / "file/a.csv"), "--out", out], "cannot write"),
        ([str(people), "--csv", table, "--out", str(tmp_path / "new/a.avi")], "must end in .mp4 or .mkv"),
        ([str(people), "--csv", table, "--jsonl", table], "--jsonl writes a file that ends in .jsonl"),
        ([str(people), "--out", str(linked)], "is the source, and would be overwritten"),
        ([str(people), "--out", str(people.parent / "." / people.name)], "is the source, and would be overwritten"),
        ([str(people), "--opentrack", "host.invalid:4242"], "host host.invalid is not known"),
        ([str(people), "--osc", "nonsense"], "an address is HOST:PORT"),
    ):
        assert main(["video", *arguments, "--threads", "1"]) == 1
        assert what in capsys.readouterr().err
    monkeypatch.setattr("img2pose_edge.video.ENCODER", "libnone")
    assert main(["video", str(people), "--out", out, "--threads", "1"]) == 1
    assert "this PyAV has no libnone" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_a_source_that_breaks_off_keeps_what_was_before(
    astronaut: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in enumerate((astronaut, astronaut, astronaut[:300])):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    table, out = tmp_path / "a.csv", tmp_path / "a.mp4"
    assert main(["video", str(folder), "--csv", str(table), "--out", str(out), "--threads", "1"]) == 1
    told = capsys.readouterr().err
    assert "changes size at frame 2: 512x300 after 512x512" in told
    assert "broken off after 2 frames" in told
    assert [row["frame"] for row in read_rows(table)] == [0, 1]
    assert len(times(out)) == 2


def append_video(path: Path, image: np.ndarray, frames: int) -> None:
    """Frames at the end of an H.264 stream, bare or in MPEG-TS."""
    part = path.with_stem("part")
    with av.open(str(part), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"bf": "0"})
        video.height, video.width, video.pix_fmt = *image.shape[:2], "yuv420p"
        for _ in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        container.mux(video.encode(None))
    with path.open("ab") as joined:
        joined.write(part.read_bytes())


@pytest.mark.parametrize("suffix", [".h264", ".ts"])
@pytest.mark.parametrize("size", [(640, 640), (160, 160), (240, 320)])
def test_a_stream_whose_frames_change_size_is_told(
    astronaut: np.ndarray, tmp_path: Path, suffix: str, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    stream, table, out = tmp_path / f"joined{suffix}", tmp_path / "a.csv", tmp_path / "a.mp4"
    append_video(stream, np.ascontiguousarray(astronaut[:320, 40:360]), 30)
    append_video(stream, cv2.resize(astronaut[:320, 100:420], size[::-1], interpolation=cv2.INTER_AREA), 4)
    assert main(["video", str(stream), "--csv", str(table), "--out", str(out), "--threads", "1"]) == 1
    assert f"changes size at frame 30: {size[1]}x{size[0]} after 320x320" in capsys.readouterr().err
    assert [row["frame"] for row in read_rows(table)] == list(range(30))
    assert len(times(out)) == 30


def test_motion_jpeg_whose_frames_change_size_is_told(tmp_path: Path) -> None:
    stream = tmp_path / "joined.mjpeg"
    sizes = [(48, 64)] * 5 + [(96, 64)] * 2
    stream.write_bytes(b"".join(cv2.imencode(".jpg", numbered(i, size))[1].tobytes() for i, size in enumerate(sizes)))
    with Source(stream) as source, pytest.raises(ValueError, match="changes size at frame 5: 64x96 after 64x48"):
        list(source)


def test_a_video_that_was_cut_off_is_told(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    avi = tmp_path / "cut.avi"  # its head tells how many frames there were
    with av.open(str(avi), "w") as container:
        video = container.add_stream("mjpeg", rate=25, options={"color_range": "pc"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p"
        for number in range(30):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(number), "bgr24")))
        container.mux(video.encode(None))
    whole = avi.read_bytes()
    avi.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out.mp4"
    assert main(["video", str(avi), "--out", str(out), "--threads", "1"]) == 1
    told = capsys.readouterr().err
    assert "of 30 frames: it is damaged, or was cut off" in told
    assert 5 < len(times(out)) < 27
    mp4, joined = tmp_path / "cut.mp4", tmp_path / "joined.mp4"
    with av.open(str(joined), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=25, options={"g": "10", "bf": "0", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(60):
            noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(noise, "bgr24")))
        container.mux(video.encode(None))
    whole = joined.read_bytes()
    mp4.write_bytes(whole[: len(whole) // 2])
    assert main(["video", str(mp4), "--csv", str(tmp_path / "a.csv"), "--threads", "1"]) == 1
    assert "of 60 frames: it is damaged, or was cut off" in capsys.readouterr().err


def test_a_full_disk_leaves_a_video_that_plays(tmp_path: Path, astronaut: np.ndarray) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(80):
        noisy = astronaut[:320, :320] // 2 + np.random.default_rng(number).integers(0, 99, (320, 320, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.png"), noisy)
    out, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    code = """
import resource, sys
from img2pose_edge.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["video", str(folder), "--out", str(out), "--csv", str(table), "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search("No space left|too large", done.stderr), done.stderr
    assert out.stat().st_size <= 600_000
    shown = len(times(out))
    assert 5 < shown < 80
    assert [row["frame"] for row in read_rows(table)] == list(range(len(read_rows(table))))
    assert len(read_rows(table)) >= shown


def test_a_damaged_image_among_others_ends_the_video_before_it(
    tmp_path: Path, astronaut: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), astronaut[:320, :320])
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    out, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    assert main(["video", str(folder), "--out", str(out), "--csv", str(table), "--threads", "1"]) == 1
    assert "2.png" in capsys.readouterr().err
    assert [row["frame"] for row in read_rows(table)] == [0, 1]
    assert len(times(out)) == 2


def test_damage_in_the_middle_of_a_video_costs_what_lies_there(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(people.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    damaged, out, table = tmp_path / "damaged.mp4", tmp_path / "out.mp4", tmp_path / "out.csv"
    damaged.write_bytes(data)
    code = main(["video", str(damaged), "--out", str(out), "--csv", str(table), "--threads", "1"])
    frames = [row["frame"] for row in read_rows(table)]
    assert frames == sorted(set(frames))
    assert len(frames) >= 4
    assert len(times(out)) >= len(frames)
    assert code == 0 or "error" in capsys.readouterr().err


class WebCamera(http.server.BaseHTTPRequestHandler):
    """Serves a file, and a stream of JPEGs that breaks off."""

    file = Path()
    pictures: tuple[bytes, ...] = ()

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/clip.mp4":
            data = self.file.read_bytes()
            self.send_header("Content-Type", "video/mp4")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with suppress(OSError):
            for picture in self.pictures:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
                time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(clip: Path) -> Iterator[str]:
    WebCamera.file = clip
    WebCamera.pictures = tuple(cv2.imencode(".jpg", numbered(number % 30))[1].tobytes() for number in range(90))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WebCamera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_on_the_web_gives_every_frame(web: str) -> None:
    with Source(f"{web}/clip.mp4") as source:
        assert not source.live
        numbers = [number_of(frame.image) for frame in source]
    assert len(numbers) == 30
    assert np.abs(numbers - np.arange(30)).max() <= 1, "but for what compression loses"


def test_a_web_camera_gives_the_newest_frame_and_is_told_when_it_breaks_off(web: str) -> None:
    seen = []

    def watch(source: Source) -> None:
        for frame in source:
            seen.append(frame.index)
            time.sleep(0.1)

    with Source(f"{web}/stream.mjpg") as source:
        assert source.live
        with pytest.raises(ValueError, match=r"stream\.mjpg gives no more frames"):
            watch(source)
    assert 2 < len(seen) < 60
    assert seen == sorted(set(seen))


def test_a_camera_that_is_pulled_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    out, table = tmp_path / "a.mp4", tmp_path / "a.csv"
    assert main(["video", "0", "--out", str(out), "--csv", str(table), "--threads", "1", "--every", "2"]) == 1
    assert "camera 0 gives no more frames" in capsys.readouterr().err
    assert times(out)[0] == 0, "it begins with the first frame, however long the camera took"
    assert read_rows(table) == []


class Pipeline(Camera):
    """A GStreamer pipeline as OpenCV runs it, of 64 pixels by 48."""

    image = np.zeros((48, 64, 3), np.uint8)

    def get(self, which: int) -> float:
        return {cv2.CAP_PROP_FRAME_HEIGHT: 48.0, cv2.CAP_PROP_FRAME_WIDTH: 64.0}.get(which, 0.0)

    def read(self) -> tuple[bool, np.ndarray]:
        return super().read()[0], self.image


@pytest.mark.parametrize("shape", [(72, 64), (48, 64, 2), (48, 64, 4)])
def test_a_pipeline_of_another_format_than_bgr_is_told(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """NV12 and I420, YUY2, and BGRx or RGBx, as OpenCV passes them on."""
    monkeypatch.setattr(cv2, "VideoCapture", Pipeline)
    monkeypatch.setattr(Pipeline, "image", np.zeros(shape, np.uint8))
    with Source("nvarguscamerasrc ! appsink") as source, pytest.raises(ValueError, match="videoconvert"):
        next(iter(source))


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3)])
def test_a_pipeline_of_a_camera_that_ends_has_broken_off(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Pipeline)
    monkeypatch.setattr(Pipeline, "image", np.zeros(shape, np.uint8))
    with Source("nvarguscamerasrc ! appsink") as source, pytest.raises(ValueError, match="gives no more frames"):
        assert {frame.image.shape for frame in source} == {(48, 64, 3)}
    with Source("filesrc location=a.mp4 ! decodebin ! appsink") as source:
        assert {frame.image.shape for frame in source} == {(48, 64, 3)}


def test_rows_of_a_camera_tell_the_times_of_the_video(
    astronaut: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Camera):
        def read(self) -> tuple[bool, np.ndarray]:
            self.taken += 1
            time.sleep(0.5)
            return self.taken < 4, astronaut[:320, :320]

    monkeypatch.setattr(cv2, "VideoCapture", Late)
    out, table = tmp_path / "a.mp4", tmp_path / "a.csv"
    for films in ([], ["--out", str(out)]):
        assert main(["video", "0", *films, "--csv", str(table), "--threads", "1"]) == 1
        moments = [row["time"] for row in read_rows(table)]
        assert moments[0] == 0
        assert len(moments) > 1
    np.testing.assert_allclose(moments, times(out), atol=1e-4)


def test_what_is_wrong_with_a_stream_is_told_at_once(clip: Path) -> None:
    detector = PoseDetector()
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        detector.stream("absent.mp4")
    with pytest.raises(ValueError, match="fast"):
        detector.stream(clip, fast=1)
    with pytest.raises(TypeError, match="score_treshold"):
        detector.stream(clip, score_treshold=0.5)


def test_the_last_frame_of_a_live_source_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with Source(0) as source:
        camera: Any = source._capture
        while camera.taken < 35:  # it ends before anybody asks
            time.sleep(0.01)
        time.sleep(0.05)
        frames = iter(source)
        assert next(frames).index == 33
        with pytest.raises(ValueError, match="camera 0 gives no more frames"):
            next(frames)


class Hurried(Source):
    """A source some of whose frames nobody was in time for."""

    def __iter__(self) -> Iterator[Frame]:
        return (frame for frame in super().__iter__() if frame.index in (0, 4, 5, 7, 10, 11, 13))


def test_every_counts_the_frames_that_came(tmp_path: Path) -> None:
    for number in range(14):
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), numbered(number))
    looked: list[int] = []
    done = record(
        Hurried(tmp_path), PoseDetector(threads=1), every=3, send=[lambda faces, ids: looked.append(len(faces))]
    )
    assert done.frames == 7
    assert len(looked) == 3


def test_a_failed_start_leaves_old_files_as_they_were(people: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.mp4"
    old.write_bytes(b"a dear video")
    (tmp_path / "file").touch()
    assert main(["video", str(people), "--out", str(old), "--csv", str(tmp_path / "file/a.csv"), "--threads", "1"]) == 1
    assert old.read_bytes() == b"a dear video"


def test_a_table_that_another_program_writes_costs_no_other_output(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, first, busy = (tmp_path / name for name in ("old.mp4", "first.csv", "busy.jsonl"))
    old.write_bytes(b"a dear video")
    first.write_text("dear rows\n")
    with RowWriter(busy):
        outputs = ["--out", str(old), "--csv", str(first), "--jsonl", str(busy)]
        assert main(["video", str(people), *outputs, "--threads", "1"]) == 1
    assert "another program is writing it" in capsys.readouterr().err
    assert (old.read_bytes(), first.read_text()) == (b"a dear video", "dear rows\n")


def test_a_table_may_be_a_pipe_beside_a_video(people: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "rows.csv"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    record(str(people), PoseDetector(threads=1), out=tmp_path / "a.mp4", rows=pipe)
    reader.join(10)
    assert len(received[0].splitlines()) > 2


def test_a_table_on_a_full_disk_ends_with_a_whole_row(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    code = """
import resource, sys
from img2pose_edge.rows import RowWriter
from img2pose_edge import PoseDetector
from skimage.data import astronaut
faces = PoseDetector(threads=1)(astronaut()[..., ::-1].copy())
with RowWriter(sys.argv[1]) as rows:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        for number in range(100):
            rows.write(faces, "a", number)
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code, str(table)], capture_output=True, text=True, check=True)
    assert "No space left" in done.stdout or "too large" in done.stdout, done.stdout
    assert table.stat().st_size < 1000
    assert table.read_text().endswith("\n")
    assert [row["frame"] for row in read_rows(table)] == list(range(len(read_rows(table))))
    assert read_rows(table)


@pytest.mark.parametrize(
    ("kind", "rate", "layout"),
    [("pcm_s16le", 44100, "stereo"), ("pcm_mulaw", 8000, "mono"), ("libmp3lame", 8000, "mono")],
)
def test_sound_that_mp4_does_not_hold_is_encoded(tmp_path: Path, kind: str, rate: int, layout: str) -> None:
    loud = write_loud(tmp_path / "loud.avi", kind, rate, layout)
    out = tmp_path / "a.mp4"
    copy_video(loud, out)
    np.testing.assert_allclose(times(out), times(loud), atol=2e-3)
    with av.open(str(out)) as container:
        assert (container.streams.audio[0].codec_context.name, container.streams.audio[0].rate) == ("aac", rate)
        heard = list(container.decode(audio=0))
    first = min(moment for moment, level in loudness(out).items() if level > 0.1)
    assert first == pytest.approx(0.5, abs=2048 / rate)
    assert heard[-1].time + heard[-1].samples / rate > 0.98
    slow = tmp_path / "slow.mp4"  # all but the last frame are left out: the last is shown for the rest
    with VideoWriter(slow, (48, 64), 2.0, loud) as writer:
        for number in range(2):
            writer.write(numbered(number), number / 2)
    with av.open(str(slow)) as container:
        assert max(part.time + part.samples / rate for part in container.decode(audio=0)) > 0.98
    copy_video(loud, tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.audio[0].codec_context.name == {"pcm_mulaw": "aac", "libmp3lame": "mp3float"}.get(
            kind, kind
        )


def test_sound_of_a_transport_stream_is_encoded(tmp_path: Path) -> None:
    loud = write_loud(tmp_path / "loud.ts", "aac", 44100)
    copy_video(loud, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 43000


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_joined_recordings_are_heard_to_the_end(tmp_path: Path, suffix: str) -> None:
    part = write_loud(tmp_path / "part.ts", "aac", 44100).read_bytes()
    joined, out = tmp_path / "joined.ts", tmp_path / f"a{suffix}"
    joined.write_bytes(part + part)
    copy_video(joined, out)
    assert len(times(out)) == 50
    loud = [moment for moment, level in loudness(out).items() if level > 0.1]
    assert min(loud) < 0.7
    assert max(loud) > 1.8
    assert not [moment for moment in loud if 1.1 < moment < 1.4], "the second part's silence"


def test_a_damaged_packet_of_sound_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Damaged:
        def __init__(self, packet: Any) -> None:
            self.pts, self.dts, self.duration = packet.pts, packet.dts, packet.duration
            self.time_base, self.size = packet.time_base, packet.size

        def decode(self) -> list[Any]:
            raise av.error.InvalidDataError(1, "damaged")

    loud, out = write_loud(tmp_path / "loud.ts", "aac", 44100), tmp_path / "a.mp4"
    with VideoWriter(out, (48, 64), 25, loud) as writer:
        assert writer._sound
        packets = list(writer._sound._packets)
        packets[10:12] = [Damaged(packet) for packet in packets[10:12]]
        writer._sound._packets = iter(packets)
        for number in range(25):
            writer.write(numbered(number), number / 25)
    assert caplog.text.count("has gaps: ") == 1
    assert max(moment for moment, level in loudness(out).items() if level > 0.1) > 0.9


def test_pictures_before_the_first_sound_are_written_at_once(tmp_path: Path) -> None:
    loud, out = write_loud(tmp_path / "loud.mkv", "aac", 16000, late=4), tmp_path / "a.mp4"
    with VideoWriter(out, (48, 64), 25, loud) as writer:
        for number in range(125):
            writer.write(numbered(number % 25), number / 25)
            if number == 80:
                assert out.stat().st_size > 2000
    levels = loudness(out)
    assert min(levels) == pytest.approx(0, abs=0.1)
    assert min(moment for moment, level in levels.items() if level > 0.1) == pytest.approx(4.5, abs=0.13)


def test_an_mp4_of_few_frames_a_second_can_be_played_but_for_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, (48, 64), 30) as writer:
        for number in range(20):
            writer.write(numbered(number), number / 4)
    with av.open(str(path)) as container:
        keys = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    np.testing.assert_allclose(keys, np.arange(5), atol=0.01)


def test_a_camera_may_lose_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flaky(Camera):
        def read(self) -> tuple[bool, np.ndarray]:
            taken, image = super().read()
            return taken and self.taken % 3 > 0, image

    monkeypatch.setattr(cv2, "VideoCapture", Flaky)
    with Source(0) as source, pytest.raises(ValueError, match="camera 0 gives no more frames"):  # noqa: PT012
        indices = []
        for frame in source:
            indices.append(frame.index)
    assert indices[-1] >= 20


@pytest.mark.skipif(os.name == "nt", reason="a colon names a stream of a file")
def test_names_with_a_colon_are_no_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_loud(tmp_path / "12:30.mkv", "aac", 16000)
    monkeypatch.chdir(tmp_path)
    copy_video(Path("12:30.mkv"), Path("out:1.mp4"))
    assert len(times(tmp_path / "out:1.mp4")) == 25
    with av.open(str(tmp_path / "out:1.mp4")) as container:
        assert container.streams.audio


def test_sound_that_breaks_off_leaves_the_pictures_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, none, loud = tmp_path / "a.mp4", tmp_path / "none.mkv", write_loud(tmp_path / "loud.mkv", "aac", 16000)
    none.write_bytes(b"no container")

    def damaged() -> Iterator[Any]:
        raise av.error.InvalidDataError(1, "damaged")
        yield

    with VideoWriter(path, (48, 64), 25, none):
        assert "a.mp4 has no sound: " in caplog.text
    empty = tmp_path / "empty.mkv"
    with av.open(str(empty), "w") as container:
        pictures, _ = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=16000, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        container.mux(pictures.encode(av.VideoFrame.from_ndarray(numbered(0), "bgr24")))
        container.mux(pictures.encode(None))
    with VideoWriter(path, (48, 64), 25, empty) as writer:
        assert "a.mp4 has no sound: its sound is empty" in caplog.text
        writer.write(numbered(0), 0.0)
    assert len(times(path)) == 1
    unknown = tmp_path / "unknown.avi"
    header, strange = b"\x02\x00\x01\x00\x22\x56", b"\x99\x77\x01\x00\x22\x56"  # format, channels, rate
    unknown.write_bytes(write_loud(tmp_path / "b.avi", "adpcm_ms", 22050).read_bytes().replace(header, strange))
    with VideoWriter(path, (48, 64), 25, unknown) as writer:
        assert "a.mp4 has no sound: its sound is of a kind that FFmpeg does not know" in caplog.text
        writer.write(numbered(0), 0.0)
    assert len(times(path)) == 1
    with VideoWriter(path, (48, 64), 25, loud) as writer:
        assert writer._sound
        writer._sound._packets = damaged()
        for number in range(5):
            writer.write(numbered(number), number / 25)
        assert writer._sound is None
    assert "the sound of" in caplog.text
    assert len(times(path)) == 5


def test_a_wrong_table_leaves_the_video_that_was_there(people: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.mp4"
    keep.write_bytes(b"an older video")
    assert main(["video", str(people), "--out", str(keep), "--csv", str(tmp_path / "poses.txt")]) == 1
    assert keep.read_bytes() == b"an older video"


def test_a_face_once_sure_is_followed_down_to_half_the_threshold(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third frame it is less sure: alone it is not found there, followed it is."""
    image = cv2.VideoCapture(str(people)).read()[1]
    (face,) = PoseDetector(threads=1).detect(image)
    frames = iter(range(100))

    def detect(self: PoseDetector, image: np.ndarray, **options: Any) -> list[Face]:
        seen = dataclasses.replace(face, score=0.3 if next(frames) == 2 else 0.8)
        least = options["score_threshold"] or self.score_threshold
        return [seen] if seen.score >= least else []

    monkeypatch.setattr(PoseDetector, "detect", detect)
    found = []
    for smooth in ([], ["--smooth"]):
        frames = iter(range(100))
        table = tmp_path / f"{len(smooth)}.csv"
        assert main(["video", str(people), "--csv", str(table), *smooth, "--score-threshold", "0.5"]) == 0
        found.append([row["frame"] for row in read_rows(table)])
    assert found == [[0, 1, *range(3, 12)], list(range(12))]


def test_a_threshold_above_the_trackers_holds(people: Path) -> None:
    for threshold, faces in ((0.5, 12), (0.99, 0)):
        detector = PoseDetector(threads=1, score_threshold=threshold)
        assert record(people, detector, tracker=PoseTracker(sure_score=0.5)).faces == faces


def test_a_service_that_is_stopped_ends_with_whole_files(people: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    folder = tmp_path / "long"
    folder.mkdir()
    image = cv2.VideoCapture(str(people)).read()[1]
    for number in range(2000):
        (folder / f"{number}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    command = [sys.executable, "-m", "img2pose_edge", "video", str(folder), "--out", str(out), "--jsonl", str(table)]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
    for _ in range(1200):
        if table.exists() and len(table.read_text().splitlines()) > 30:
            break
        time.sleep(0.05)
    process.terminate()
    assert "interrupted" in process.communicate(timeout=30)[0]
    assert process.returncode == 130
    rows = read_rows(table)
    assert rows[11]["image"] == str(folder / "11.jpg"), "by number, and named"
    assert len(times(out)) >= len(rows) - 1 >= 30, "a row comes before its frame"


def test_a_codec_that_is_missing_is_named(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.VideoCapture, "read", lambda self: (False, None), raising=False)
    with pytest.raises(ValueError, match=r"holds no frames that can be read: this OpenCV may lack its codec, \w+"):
        list(Source(clip))


def test_a_matroska_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    with VideoWriter(whole, (48, 64), 25) as writer:
        for number in range(100):
            writer.write(np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8), number**1.2 / 25)
    assert len(list(Source(whole))) == 100, "frames that come ever later are no damage"
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"cut\.mkv ends after \d+ of \d+ frames: it is damaged, or was cut off"):
        list(Source(cut))


def test_a_gif_that_is_cut_off_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, cut = tmp_path / "whole.gif", tmp_path / "cut.gif"
    with av.open(str(whole), "w") as container:
        video = container.add_stream("gif", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "rgb8"
        for number in range(20):
            noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(noise, "rgb24").reformat(format="rgb8")))
        container.mux(video.encode(None))
    assert len(list(Source(whole))) == 20
    assert not caplog.records
    padded = tmp_path / "padded.gif"
    padded.write_bytes(whole.read_bytes() + bytes(8))
    assert not is_open_gif(padded)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames = len(list(Source(cut)))
    assert 5 < frames < 15
    assert f"cut.gif ends after {frames} frames, but not as a GIF does" in caplog.text


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the source is empty"):
        Source("")
    with pytest.raises(ValueError, match="got True"):
        Source(True)
    for size in (5, (640,), (0, 480)):
        with pytest.raises(ValueError, match="camera_size must be a width and a height in pixels"):
            Source(0, camera_size=size)  # type: ignore[arg-type]
    for rate in (0, float("nan"), "25", 1e10):
        with pytest.raises(ValueError, match="rate must be a positive number of frames a second"):
            Source(tmp_path, rate)  # type: ignore[arg-type]


def test_a_folder_may_have_a_number_for_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2024").mkdir()
    cv2.imwrite(str(tmp_path / "2024" / "a.png"), numbered(3))
    (tmp_path / "2024" / "._a.png").write_bytes(b"what macOS keeps beside it")
    (tmp_path / "2024" / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("2024", Path("2024")):
        with Source(source) as frames:
            assert [number_of(frame.image) for frame in frames] == [3]


def test_times_of_a_live_source_advance_where_the_clock_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr("img2pose_edge.video.time.perf_counter", lambda: 5.0)
    moments = []
    with Source("0") as source, pytest.raises(ValueError, match="gives no more frames"):
        moments += [frame.time for frame in source]
    assert all(b > a for a, b in pairwise(moments))


def test_a_writer_names_frames_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for size, rate, what in (
        ((1, 1), 25, "2x2 to 16384x16384 pixels, got 1x1"),
        ((48, 17000), 25, "got 17000x48"),
        ((48, 64), float("inf"), "rate must be a positive"),
    ):
        with pytest.raises(ValueError, match=what):
            VideoWriter(path, size, rate)
    with VideoWriter(path, (48, 64), Fraction(30000, 1001)) as writer:  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"are \(48, 64, 3\) uint8, got \(64, 48, 3\) uint8"):
            writer.write(np.zeros((64, 48, 3), np.uint8), 0.0)
        for moment in (float("nan"), 1e15):
            with pytest.raises(ValueError, match="time must be finite"):
                writer.write(np.zeros((48, 64, 3), np.uint8), moment)
    with pytest.raises(ValueError, match=r"a\.mp4 is closed"):
        writer.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    assert not path.exists(), "a video without frames"


def test_wrong_commands_are_told(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, what in (
        ([str(people)], "nothing to write or send"),
        (
            [str(people), "--csv", str(tmp_path / "a.csv"), "--every", "0"],
            "every must be a whole number of at least 1, got 0",
        ),
        ([str(people), "--csv", str(tmp_path / "a.txt")], ".csv"),
        (["absent.mp4", "--csv", str(tmp_path / "a.csv")], "no video absent.mp4"),
    ):
        assert main(["video", *arguments]) == 1
        assert what in capsys.readouterr().err


LEFT_OPEN = """
import atexit, sys
from img2pose_edge.video import Source

atexit.register(lambda: print(source._thread.is_alive()))  # called after those of later
source = Source(sys.argv[1])
next(iter(source))
"""


def test_a_source_that_is_left_open_stops_before_the_interpreter_ends(clip: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(clip)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Stalled(Camera):
    """Hangs in its driver."""

    def read(self) -> tuple[bool, np.ndarray]:
        self.taken += 1
        time.sleep(0.01 if self.taken < 3 else 4)
        return True, numbered(self.taken)


def test_closing_does_not_wait_for_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Stalled)
    source = Source(0)
    camera: Any = source._capture
    while camera.taken < 3:
        time.sleep(0.01)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 3.5
    assert not camera.released, "not while it is read from"
    source._thread.join()
    assert camera.released


class Chooses(Camera):
    """Gives the sizes and rates that it knows only."""

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self.given, self.asked = given, {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480}

    def set(self, what: int, value: float) -> None:
        self.asked[what] = {1000: 960, 120: 29.97}.get(value, value)  # type: ignore[assignment]

    def get(self, what: int) -> float:
        return self.asked.get(what, 0.0)


def test_a_camera_is_asked_for_a_size_and_a_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Chooses)
    with Source(0, rate=60, camera_size=(1280, 720)) as source:
        camera: Any = source._capture
        assert camera.asked[cv2.CAP_PROP_FRAME_WIDTH] == 1280
        assert source.rate == 60
    assert not caplog.records
    with Source(0, rate=120) as source:
        camera = source._capture
        assert camera.asked[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
        assert caplog.messages == ["camera 0 gives 29.97 frames a second, asked for 120"]
    with Source("0", camera_size=(1280, 1000)):
        assert "camera 0 gives 1280x960, asked for 1280x1000" in caplog.text
    if Path("/dev/null").is_char_device():
        with Source("/dev/null") as source:
            assert source.live
            camera = source._capture
            assert camera.given == ("/dev/null", cv2.CAP_V4L2)


def test_sizes_and_rates_are_refused_where_they_have_no_effect(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"a rate is for folders, cameras and raw streams .*, not for .*clip\.mp4"):
        Source(clip, rate=30)
    with pytest.raises(ValueError, match=r"camera_size is for cameras, not for .*clip\.mp4"):
        Source(clip, camera_size=(640, 480))
    with pytest.raises(ValueError, match="camera_size must be a width and a height"):
        Source(0, camera_size=(640, 0))
    with pytest.raises(SystemExit):
        main(["video", str(clip), "--csv", "a.csv", "--camera-size", "large"])
    assert "a size is WIDTHxHEIGHT, as 1280x720, got 'large'" in capsys.readouterr().err


def write_packets(path: Path, kind: str, durations: list[int], rate: int = 25) -> None:
    """A video of frames that are shown for so many times the usual."""
    with av.open(str(path), "w", format=kind) as container:
        video = container.add_stream("libx264", rate=rate, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        moment = 0
        for number, duration in enumerate(durations):
            frame = av.VideoFrame.from_ndarray(numbered(number % 30), "bgr24")
            frame.pts, frame.time_base, frame.duration = moment, Fraction(1, rate), duration
            container.mux(video.encode(frame))
            moment += duration
        container.mux(video.encode(None))


@pytest.mark.parametrize("kind", ["matroska", "webm"])
def test_a_last_frame_that_is_shown_for_long_is_no_damage(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.mkv" if kind == "matroska" else "a.webm")
    if kind == "webm":
        write_webm(path)
    else:
        write_packets(path, kind, [1] * 39 + [75])
    with Source(path) as source:
        assert len(list(source)) == 40


def write_webm(path: Path) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libvpx", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(numbered(number % 30), "bgr24")
            frame.pts, frame.time_base, frame.duration = number, Fraction(1, 25), 75 if number == 39 else 1
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def test_a_raw_stream_has_the_rate_that_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "pi.h264"
    write_packets(path, "h264", [1] * 20, 30)
    with Source(path, rate=30) as source:
        assert source.rate == 30
        np.testing.assert_allclose([frame.time for frame in source], np.arange(20) / 30)


def test_a_written_video_tells_its_colours_and_the_shape_of_its_pixels(tmp_path: Path) -> None:
    wide, drawn = tmp_path / "wide.mp4", tmp_path / "drawn.mp4"
    with VideoWriter(str(wide), (48, 64), 25, pixel_aspect=Fraction(4, 3)) as writer:
        for number in range(5):
            writer.write(numbered(number), number / 25)
    record(str(wide), PoseDetector(), out=str(drawn), rows=[str(tmp_path / "rows.csv")])
    with av.open(str(drawn)) as container:
        video = container.streams.video[0]
        assert video.sample_aspect_ratio == Fraction(4, 3)
        context = video.codec_context
        assert (context.colorspace in (5, 6), context.color_range) == (True, 1), "BT.601, 16 to 235"
