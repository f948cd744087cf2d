"""Poses over the network as they are found: to OpenTrack (games, simulators) and by OSC (music, stage, avatars)."""

from __future__ import annotations

import errno
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np

from img2pose_edge.detections import check_ids
from img2pose_edge.face import Face, check_type
from img2pose_edge.tracking import PATIENCE

logger = logging.getLogger(__name__)

Send = Callable[[Sequence[Face], Sequence[int] | None], None]
"""Takes the faces of a frame, and their ids if they are tracked."""


CLOSED = errno.EBADF, errno.ENOTSOCK
"""What a socket that is closed says, the second one on Windows."""


class Lossy(AbstractContextManager["Lossy"]):
    """What is sent in it may be lost, as datagrams may: a network that is away is told once, and no error."""

    def __init__(self, address: str) -> None:
        self._address, self._told = address, False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> bool:
        if not isinstance(error, OSError) or error.errno in CLOSED:
            self._told = self._told and error is not None
            return False
        if not self._told:
            logger.warning("nothing reaches %s: %s", self._address, error)
        self._told = True
        return True


class OpenTrackSender:
    """Sends one face to OpenTrack's input "UDP over network" (its port is 4242 unless changed there).

    A packet is six little-endian doubles. Position in centimetres: x to image-right, y up, z away from the camera.
    Rotation in degrees, first yaw, then pitch, then roll, as OpenTrack turns its view: yaw > 0 turns to image-left
    (the person's right), pitch > 0 looks up, roll > 0 tilts clockwise in the image (to the person's left). These are
    the signs of OpenTrack's own webcam tracker (``tracker-neuralnet``) for an image that is not mirrored.

    The rotation is the one in the camera frame: a head that keeps facing one way keeps its angles where it moves.
    """

    def __init__(self, address: str) -> None:
        """
        Args:
            address: ``HOST:PORT``; an IPv6 host in brackets. It may be that of all on a network (broadcast).

        Raises:
            ValueError: if it is none.
            OSError: if the host is not known.
        """
        host, port = parse_address(address)
        found = find_host(host, port)
        self._socket, self._target = socket.socket(found[0], socket.SOCK_DGRAM), found[4]
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._lossy = Lossy(address)

    def send(self, face: Face) -> None:
        """Send a face's pose. Nobody needs to listen, and the network may be away."""
        with self._lossy:
            self._socket.sendto(struct.pack("<6d", *opentrack_pose(face)), self._target)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> OpenTrackSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MainHead:
    """Chooses the head that is sent: that of the person known for longest, until it is gone for good."""

    def __init__(self) -> None:
        self._id: int | None = None
        self._seen = -np.inf

    def choose(self, faces: Sequence[Face], ids: Sequence[int] | None) -> Face | None:
        """The head among the faces of a frame; None if it is out of sight, or there is none.

        Args:
            faces: the longest known first, or, if not tracked, the best.
            ids: of tracked faces.
        """
        if not faces or ids is None:
            return faces[0] if faces else None
        now = time.monotonic()
        if self._id not in ids:
            if now - self._seen <= PATIENCE:
                return None
            self._id = ids[0]
        self._seen = now
        return faces[ids.index(self._id)]


def opentrack_pose(face: Face) -> np.ndarray:
    """(6,) x, y, z in centimetres, yaw, pitch, roll in degrees, with the signs of :class:`OpenTrackSender`."""
    check_type([face])
    r = face.rotation
    x, y, z = face.translation_mm / 10
    # R = Ry(yaw) Rx(-pitch) Rz(roll), where 300W-LP's angles have pitch before yaw.
    yaw, pitch = np.arctan2(r[0, 2], r[2, 2]), np.arctan2(r[1, 2], np.hypot(r[0, 2], r[2, 2]))
    roll = np.arctan2(r[1, 0], r[1, 1])
    return np.array([x, -y, z, *np.degrees([yaw, pitch, roll])])


class OscSender:
    """Sends faces as OSC over UDP, by python-osc.

    For each image a message ``/faces`` with the number of faces (int), then for each face a bundle of
    ``/face/ID/score`` (1 float, 0 to 1), ``/face/ID/box`` (x1, y1, x2, y2, pixels), ``/face/ID/angles`` (pitch, yaw,
    roll of the local rotation, degrees: pitch > 0 looks up, yaw < 0 faces image-right, roll > 0 is clockwise),
    ``/face/ID/rotation`` (rotation vector, radians) and ``/face/ID/position`` (x, y, z, millimetres), the last two in
    the camera frame, x right, y down, z forward. ID is the track's number, or the face's place in the list, best
    first, from 0.
    """

    def __init__(self, address: str) -> None:
        """
        Args:
            address: ``HOST:PORT``; an IPv6 host in brackets.

        Raises:
            ValueError: if it is none.
            OSError: if the host is not known.
            ImportError: if python-osc is not installed.
        """
        host, port = parse_address(address)
        try:
            from pythonosc.udp_client import SimpleUDPClient
        except ImportError as error:
            raise ImportError("OSC needs python-osc: pip install 'img2pose-edge[osc]'") from error
        found = find_host(host, port)[4][0]
        # A name would be looked up for each datagram; but a link-local address says more than what is found for it.
        self._client = SimpleUDPClient(host if "%" in host else found, port, allow_broadcast=True)
        self._lossy = Lossy(address)

    def send(self, faces: Sequence[Face], ids: Sequence[int] | None = None) -> None:
        """Send the faces of one image. The network may be away.

        Args:
            faces: N of them; none sends ``/faces 0``.
            ids: N track numbers, if there are.

        Raises:
            ValueError: if there are not as many ids as faces.
        """
        from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
        from pythonosc.osc_message_builder import build_msg

        check_type(faces)
        check_ids(faces, ids)
        with self._lossy:
            self._client.send_message("/faces", len(faces))
        for number, face in zip(range(len(faces)) if ids is None else ids, faces, strict=True):
            bundle = OscBundleBuilder(IMMEDIATELY)
            for name, values in {
                "score": [face.score],
                "box": face.box.tolist(),
                "angles": face.angles.tolist(),
                "rotation": face.pose[:3].tolist(),
                "position": face.translation_mm.tolist(),
            }.items():
                bundle.add_content(build_msg(f"/face/{number}/{name}", values))
            with self._lossy:
                self._client.send(bundle.build())

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> OscSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def open_senders(opentrack: str | None, osc: str | None) -> Iterator[list[Send]]:
    """What sends a frame's faces to these addresses, ``HOST:PORT``.

    Raises:
        ValueError, OSError, ImportError: as :class:`OpenTrackSender` and :class:`OscSender`.
    """
    with ExitStack() as opened:
        send: list[Send] = []
        if opentrack is not None:
            sender, head = opened.enter_context(OpenTrackSender(opentrack)), MainHead()

            def send_head(faces: Sequence[Face], ids: Sequence[int] | None) -> None:
                face = head.choose(faces, ids)
                if face:
                    sender.send(face)

            send.append(send_head)
        if osc is not None:
            send.append(opened.enter_context(OscSender(osc)).send)
        yield send


def find_host(host: str, port: int) -> Any:
    """What the system knows of a host, for UDP: of ``localhost`` and others of both kinds IPv4, where most listen.

    Raises:
        OSError: if it does not know it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except UnicodeError as error:
        raise OSError(f"host {host} is not known: it is no name of one") from error
    except OSError as error:
        raise OSError(f"host {host} is not known: {error.strerror}") from error
    return next((one for one in found if one[0] == socket.AF_INET), found[0])


def parse_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` to its parts, an IPv6 host without its brackets.

    Raises:
        ValueError: if it is not of this form.
    """
    host, _, port = str(address).rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare) != host.startswith("[") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"an address is HOST:PORT, as 127.0.0.1:4242 or [::1]:4242, got {address!r}")
    return bare, int(port)
