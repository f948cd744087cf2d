"""``img2pose-edge live``."""

from __future__ import annotations

import argparse
import logging
import secrets
import socket
import sys
from typing import Any

from img2pose_edge.video import Source


def add_live_parser(commands: Any) -> argparse.ArgumentParser:
    """Register the command; the detector's options are the caller's to add."""
    parser: argparse.ArgumentParser = commands.add_parser("live", help="a camera's faces on a page, and POST /detect")
    parser.add_argument(
        "--source", default="0", help="camera's number (default: 0), video, folder, address or GStreamer pipeline"
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; beyond loopback a token is asked for")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--smoothing", action="store_true", help="tell faces apart and steady their poses")
    parser.set_defaults(do=run)
    return parser


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        ImportError: if the web server is not installed.
        FileNotFoundError, ValueError: naming the option that is wrong.
        OSError: if the port cannot be listened on.
    """
    try:
        import python_multipart as _multipart  # noqa: F401
        import uvicorn
        import websockets as _websockets  # noqa: F401

        from img2pose_edge.live.server import make_app
    except ImportError as error:
        raise ImportError(f'the live page needs a web server: pip install "img2pose-edge[live]" ({error})') from error
    from img2pose_edge.live.capture import Capture
    from img2pose_edge.live.security import is_loopback
    from img2pose_edge.live.shared import SharedDetector

    detector = SharedDetector(
        model=options.model,
        engine=options.engine,
        input_size=options.input_size,
        score_threshold=options.score_threshold,
        smoothing=options.smoothing,
        nms_iou=options.nms_iou,
        threads=options.threads,
        engine_options=dict(options.engine_option),
    )
    try:
        Source(options.source).close()
    except ValueError as error:  # it may come yet; photographs are served without it
        print(f"warning: {error}; the page shows it once it is there", file=sys.stderr)
    token = None if is_loopback(options.host) else secrets.token_urlsafe(24)
    listener = listen(options.host, options.port)
    print(page_address(options.host, listener.getsockname()[1], token), flush=True)
    logging.basicConfig(format="%(message)s")
    config = uvicorn.Config(
        make_app(Capture(options.source, detector), token),
        log_level="warning",
        access_log=False,  # addresses hold the token
        server_header=False,
        ws_max_size=1024,
        ws_per_message_deflate=False,  # JPEG is compressed
        limit_concurrency=250,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket on which nothing else listens."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}") from error


def page_address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'?token={token}' if token else ''}"
