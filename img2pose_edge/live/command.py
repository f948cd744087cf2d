"""``img2pose-edge live``: the server's start."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from img2pose_edge.live.shared import SharedDetector
from img2pose_edge.senders import Send
from img2pose_edge.video import NotOpen, Source, is_camera

logger = logging.getLogger(__name__)

LEAST_TOKEN = 16
"""Letters, of one that is given."""
TOKEN = re.compile(r"[\w-]+", re.ASCII)
SILENT = 10.0
"""Seconds after which a connection without a whole request is closed."""
CONNECTIONS, OF_ONE = 250, 150
"""At once, and of them of one address. Each is an open file, of which a process often may have 1024."""


def serve(
    source: str,
    detector: SharedDetector,
    host: str,
    port: int,
    send: Sequence[Send] = (),
    rate: float | None = None,
    camera_size: tuple[int, int] | None = None,
    token: str | None = None,
) -> None:
    """Print the page's address and serve until interrupted.

    Args:
        source: as :class:`~img2pose_edge.video.Source` takes it.
        detector: what finds the faces.
        host: address to listen on; beyond loopback a token is asked for.
        port: 0 for any that is free.
        send: called with the faces of each of the camera's frames.
        rate, camera_size: as :class:`~img2pose_edge.video.Source` takes them.
        token: to ask for; default, beyond loopback, a new one.

    Raises:
        ImportError: if the web server is not installed.
        FileNotFoundError, ValueError: naming the option that is wrong.
        OSError: if the port cannot be listened on.
    """
    if token is not None and (len(token) < LEAST_TOKEN or not TOKEN.fullmatch(token)):
        raise ValueError(f"a token is at least {LEAST_TOKEN} letters, digits, - and _")
    try:
        import python_multipart as _multipart  # noqa: F401
        import uvicorn
        import websockets as _websockets  # noqa: F401
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        from img2pose_edge.live.capture import Capture
        from img2pose_edge.live.security import is_loopback
        from img2pose_edge.live.server import make_app
    except ImportError as error:
        raise ImportError(f'the live page needs a web server: pip install "img2pose-edge[live]" ({error})') from error

    try:
        with Source(source, rate, camera_size) as opened:
            first = next(iter(opened)) if detector.calibration else None
    except NotOpen as error:  # a camera may come yet; photographs are served without it
        if os.path.exists(source) and not is_camera(source):  # pipelines are too long for a Path
            raise
        logger.warning("%s; the page shows it once it is there", error)
    else:
        if first:
            detector.camera(first.image)  # a calibration of another size is told now
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    listener = listen(host, port)
    print(page_address(host, listener.getsockname()[1], token), flush=True)

    class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """Connections on which nothing is asked, or no answer taken, are closed: there is room for so many."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            same = sum(peer(other.transport) == peer(transport) for other in self.connections)
            if len(self.connections) > CONNECTIONS + 5 or same > OF_ONE:  # a few more are still told that it is full
                transport.abort()
            else:
                self._look_again(None, 0)

        def _look_again(self, cycle: Any, waiting: int) -> None:
            self.loop.call_later(SILENT, self._close_if_silent, cycle, waiting)

        def _close_if_silent(self, cycle: Any, waited: int) -> None:
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return  # a WebSocket now
            waiting = self.transport.get_write_buffer_size()
            answered = self.cycle is None or self.cycle.response_complete
            if waiting and (self.cycle, waiting) == (cycle, waited):
                self.transport.abort()  # closing would wait until it is taken
            elif answered and not waiting and self.cycle is cycle:
                self.transport.close()
            else:
                self._look_again(self.cycle, waiting)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not self.should_exit:  # a second Ctrl-C would end it with a traceback; it ends in a second or two
                # What is cut short, such as an upload, is no error.
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                super().handle_exit(sig, frame)

    config = uvicorn.Config(
        make_app(Capture(source, detector, send, rate, camera_size), token),
        log_level="warning",
        access_log=False,  # addresses hold the token
        server_header=False,
        proxy_headers=False,  # anybody can write them, and be another client at each request
        ws_max_size=1024,
        ws_per_message_deflate=False,  # JPEG is compressed
        http=Impatient,
        limit_concurrency=CONNECTIONS,
        backlog=64,
        timeout_graceful_shutdown=1,
    )
    Server(config).run(sockets=[listener])


def peer(transport: Any) -> str:
    """The address that a connection comes from."""
    return str((transport.get_extra_info("peername") or [""])[0])


def listen(host: str, port: int) -> socket.socket:
    """A socket on which nothing else listens; that of ``::`` is reached by IPv4, too."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except (OSError, OverflowError, UnicodeError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}") from error


def own_address() -> str:
    """By which the network knows this machine; its name where there is no network."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # chooses the way out; nothing is sent
        return str(probe.getsockname()[0])
    return socket.gethostname()


def page_address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    if host in ("", "0.0.0.0", "::"):
        host = own_address()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'?token={token}' if token else ''}"
