"""The sound of a file beside a new video: copied, or encoded as AAC where nobody plays its kind in such a video."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

ENCODER: Final = "aac"
LATE: Final = 1.0
"""Seconds of pictures without sound from which on an MP4 gets silence first: it keeps them all in memory until there is
a sound to write beside."""
LEAST_MP3_RATE: Final = 16000
"""Hertz; below is MPEG 2.5."""
SAMPLES: Final = 1024
"""Of silence at a time."""
JOINT: Final = 1.0
"""Seconds by which the clock of sound steps back where recordings were joined; what steps back less is left out."""


def open_sound(source: Path, out: Path, file: Any) -> Sound | None:
    """The first audio stream of ``source`` as a new stream of ``file``, PyAV's container that is written to ``out``;
    none if there is none, or none that can be read (said so)."""
    import av

    try:
        container: Any = av.open(os.path.abspath(source))  # FFmpeg takes what stands before a colon for a protocol
    except av.FFmpegError as error:  # OpenCV could read it
        logger.warning("%s has no sound: %s", out, error)
        return None
    if not container.streams.audio:
        container.close()
        return None
    try:
        return Sound(container, out, file)
    except (ValueError, av.FFmpegError) as error:
        container.close()
        logger.warning("%s has no sound: %s", out, error)
        return None


class Sound:
    """A stream that is written along with the pictures."""

    def __init__(self, container: Any, out: Path, file: Any) -> None:
        """
        Args:
            container: PyAV's, read from; closed with this.
            out: where ``file`` is written.
            file: PyAV's container that the stream is added to.

        Raises:
            ValueError: if it takes no such sound.
        """
        given = container.streams.audio[0]
        if given.codec_context is None:
            raise ValueError("its sound is of a kind that FFmpeg does not know")
        self._source, self._given, self._file, self._out = container, given, file, out
        self._packets: Iterator[Any] = iter(container.demux(given))
        self._last, self._shift = -(2**62), 0  # ticks of the last packet; what is added to those after a joint
        self._damaged, self._begun = False, False
        self._strict = out.suffix.lower() == ".mp4"  # where no two packets may have one time
        self._silence = 0  # samples of it written
        self._waiting = self._next()
        if self._waiting is None or self._waiting.dts is None:
            raise ValueError("its sound is empty")
        # Frames count from the first one shown, which in some containers is not at zero.
        video = container.streams.video[0] if container.streams.video else None
        self._begins = float(video.start_time * video.time_base) if video and video.start_time else 0.0
        self._resampler: Any = None
        kind = given.codec_context.name
        streamed = kind == "aac" and not given.codec_context.extradata  # of MPEG-TS, each packet with a head of its own
        # Of no known kind, silence cannot be.
        self._known = bool(given.codec_context.format and given.codec_context.rate)
        late = self._known and self._seconds(self._waiting) > LATE
        # What FFmpeg takes for an MP4 and then refuses to write.
        refused = kind == "truehd" or (kind.startswith("mp3") and (given.rate or 0) < LEAST_MP3_RATE)
        if out.suffix.lower() == ".mp4" and (streamed or late or refused or kind.startswith("pcm_")):
            self._stream = self._encoded(given)
        else:
            try:
                self._stream = file.add_stream_from_template(given)
            except ValueError:  # of a kind that this container does not take
                self._stream = self._encoded(given)

    def _encoded(self, given: Any) -> Any:
        import av

        rates = [rate for rate in av.codec.Codec(ENCODER, "w").audio_rates or [] if rate >= (given.rate or 0)]
        stream: Any = self._file.add_stream(
            ENCODER, rate=min(rates, default=48000), layout="mono" if given.channels == 1 else "stereo"
        )
        stream.codec_context.open()  # which tells how many samples it wants at once
        wanted = stream.codec_context
        self._resampler = av.AudioResampler(wanted.format, wanted.layout, wanted.rate, wanted.frame_size)
        return stream

    def write(self, until: float) -> bool:
        """Add what is heard up to a time, seconds; false if the sound breaks off there (said so).

        Raises:
            av.FFmpegError: if it cannot be written.
        """
        for part in self._read(until):
            if part is None:
                return False
            self._begun = True
            self._add(part)
        if self._resampler is not None and self._known and not self._begun and self._waiting is not None:
            self._be_silent(until)
        return True

    def _be_silent(self, until: float) -> None:
        """Encode silence of the source's kind up to a time, seconds."""
        import av

        kind = self._given.codec_context
        while (self._silence + SAMPLES) / kind.rate <= until:
            frame = av.AudioFrame(kind.format.name, kind.layout.name, SAMPLES)
            for plane in frame.planes:
                plane.update((b"\x80" if kind.format.name.startswith("u8") else b"\0") * plane.buffer_size)
            frame.rate, frame.time_base = kind.rate, self._given.time_base
            frame.pts = round(self._silence / kind.rate / frame.time_base)
            self._silence += SAMPLES
            self._encode(frame)

    def _seconds(self, packet: Any) -> float:
        return float(packet.dts * packet.time_base) - self._begins

    def _next(self) -> Any:
        """The next packet, its times after those of the last; at the end ``None``, or an empty one without times."""
        while (packet := next(self._packets, None)) is not None:
            if packet.dts is None:
                if packet.size == 0:
                    return packet
                continue  # nobody knows when it is heard
            back = (self._last - packet.dts - self._shift) * packet.time_base
            repeated = back == 0 and self._strict
            if back >= JOINT:
                self._shift = self._last + (packet.duration or 1) - packet.dts
            elif back > 0 or repeated:
                continue
            packet.dts += self._shift
            packet.pts = packet.dts if packet.pts is None else packet.pts + self._shift
            self._last = packet.dts
            return packet
        return None

    def _read(self, until: float) -> Iterator[Any]:
        """Packets, or decoded frames where they are encoded anew; ``None`` where it breaks off."""
        import av

        try:
            while True:
                packet = self._waiting or self._next()
                self._waiting = None
                if packet is None:
                    return
                if packet.dts is None:  # the end: what the decoder still holds
                    yield from () if self._resampler is None else self._decoded(packet)
                    return
                seconds = self._seconds(packet)
                if seconds > until:
                    self._waiting = packet
                    return
                if seconds >= 0 or not self._begins:  # what was before the first frame is left out
                    yield from [packet] if self._resampler is None else self._decoded(packet)
        except av.FFmpegError as error:  # the pictures are whole all the same
            logger.warning("the sound of %s ends at %.1f s: %s", self._out, until, error)
            yield None

    def _decoded(self, packet: Any) -> list[Any]:
        """Its frames: none of a damaged packet, of which broadcasts have some."""
        import av

        try:
            return [frame for frame in packet.decode() if frame.pts is not None]
        except av.error.InvalidDataError as error:
            if not self._damaged:
                logger.warning("the sound of %s has gaps: %s", self._out, error)
            self._damaged = True
            return []

    def _add(self, part: Any) -> None:
        earlier = round(self._begins / part.time_base)
        part.pts -= earlier
        if self._resampler is not None:
            self._encode(part)
            return
        part.dts -= earlier
        part.stream = self._stream
        self._file.mux(part)

    def _encode(self, frame: Any) -> None:
        for part in self._resampler.resample(frame):
            self._file.mux(self._stream.encode(part))

    def finish(self) -> None:
        """Add the rest of what was written."""
        if self._resampler is not None:
            self._encode(None)
            self._file.mux(self._stream.encode(None))

    def close(self) -> None:
        self._source.close()
