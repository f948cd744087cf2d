"""The page's server: pictures and poses by WebSocket, ``POST /detect``, settings.

The WebSocket ``/ws`` is asked for each frame: the client sends ``next``, and gets a text (JSON) and, if its ``type`` is
``frame``, the JPEG that it is about. A slow client asks less often, and misses frames; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from img2pose_edge.geometry import FACE_UNIT_MM
from img2pose_edge.header import check_size
from img2pose_edge.live.capture import Capture, Shot
from img2pose_edge.live.security import BodyLimit, Guard, LateBody, RateLimit, SafeHeaders
from img2pose_edge.pose_references import load_reference
from img2pose_edge.preprocess import load_image

STATIC = Path(__file__).with_name("static")
MAX_CLIENTS = 100
MOST_STALLED = 3
"""Times as long as a camera may give no frame, a client waits for one whose faces are looked for."""
MAX_PICTURES = 8
"""Of ``POST /detect`` at once: each is in memory."""


def make_app(capture: Capture, token: str | None = None) -> Starlette:
    """
    Args:
        capture: its thread runs while the server does.
        token: asked of everyone; ``None`` is for servers on loopback only.
    """
    rate = RateLimit()
    pictures = 0
    one_at_a_time = asyncio.Semaphore(1)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        capture.start()
        yield
        capture.stop()

    async def settings(request: Request) -> Response:
        if request.method == "POST":
            rate.check(address(request))
            try:
                try:
                    wanted = await request.json()
                except ValueError as error:
                    raise ValueError(f"settings must be a JSON object: {error}") from error
                if not isinstance(wanted, dict):
                    raise TypeError(f"settings must be a JSON object, got {json.dumps(wanted)[:40]}")
                await run_in_threadpool(capture.detector.change, wanted)
            except (ValueError, TypeError, RecursionError, ImportError) as error:
                raise HTTPException(400, str(error)) from error
        return JSONResponse({"source": capture.name, **capture.detector.describe()})

    async def detect(request: Request) -> Response:
        nonlocal pictures
        rate.check(address(request))
        if pictures >= MAX_PICTURES:
            raise HTTPException(429, f"{pictures} pictures are waiting already: try again later", {"Retry-After": "1"})
        pictures += 1
        try:
            options = detect_options(request)
            data = await sent_image(request)
            async with one_at_a_time:
                return JSONResponse(await run_in_threadpool(detect_in, data, options))
        except (ValueError, ImportError) as error:
            raise HTTPException(400, str(error)) from error
        finally:
            pictures -= 1

    def detect_in(data: bytes, options: dict[str, Any]) -> dict[str, Any]:
        check_size(data)
        image = load_image(data)
        try:
            camera, note = capture.detector.camera(image), {}
        except ValueError as error:  # a photograph of another camera
            camera, note = None, {"note": f"{error}: poses are those in img2pose's camera"}
        settings = {**asdict(capture.detector.settings), **options}
        return {**capture.detector.look(image, camera, **options)[1], **note, "settings": settings}

    async def watch(socket: WebSocket) -> None:
        with suppress(WebSocketDisconnect):
            await socket.accept()
            if capture.watchers >= MAX_CLIENTS:
                why = f"{MAX_CLIENTS} clients are watching already: try again later"
                await socket.send_text(json.dumps({"type": "trouble", "message": why}))
                await socket.close(1013)
                return
            with capture.watched():
                await send_shots(socket, capture)

    return Starlette(
        routes=[
            Route("/", file("index.html")),
            Route("/docs", file("docs.html")),
            Route("/openapi.json", file("openapi.json")),
            Route("/face.json", face),
            Route("/settings", settings, methods=["GET", "POST"]),
            Route("/detect", detect, methods=["POST"]),
            WebSocketRoute("/ws", watch),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(SafeHeaders),
            Middleware(LateBody),
            Middleware(Guard, token=token),
            Middleware(BodyLimit),
        ],
        exception_handlers={HTTPException: tell, ClientDisconnect: nobody, Exception: broken},
        lifespan=lifespan,
    )


async def send_shots(socket: WebSocket, capture: Capture) -> None:
    """The newest shot each time the client asks."""
    number = 0
    while True:
        if (await socket.receive())["type"] == "websocket.disconnect":
            return
        asked = time.monotonic()
        try:
            shot = await newest(capture, number)
        except asyncio.TimeoutError:
            message = f"{capture.name} has given no frame for {capture.stalled:g} s"
            if capture.looking:
                message = "Finding the faces of a frame takes long here: a smaller input size or model is faster"
            await socket.send_text(json.dumps({"type": "trouble", "message": message}))
            continue
        number = shot.number
        now = time.monotonic()
        age, waited = (now - shot.taken) * 1e3, (now - asked) * 1e3
        # Each client's own, put before what was made once for all of them.
        await socket.send_text(f'{{"age_ms": {age:.1f}, "waited_ms": {waited:.1f}, {shot.text[1:]}')
        if shot.jpeg:
            await socket.send_bytes(shot.jpeg)


async def newest(capture: Capture, number: int) -> Shot:
    """The shot after ``number``. Raises ``asyncio.TimeoutError`` if the camera gives none, or if looking for its faces
    takes so long that a page would think that nobody is there."""
    until = time.monotonic() + MOST_STALLED * capture.stalled
    while True:
        try:
            return await asyncio.wait_for(capture.newer(number), capture.stalled)
        except asyncio.TimeoutError:
            if not capture.looking or time.monotonic() + capture.stalled > until:
                raise


def detect_options(request: Request) -> dict[str, Any]:
    """``input_size`` and ``score_threshold`` of the query, where they are given."""
    options: dict[str, Any] = {}
    kinds = (("input_size", int, "whole number"), ("score_threshold", float, "number"))
    unknown = set(request.query_params) - {"token", *(name for name, *_ in kinds)}
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}: known are {', '.join(name for name, *_ in kinds)}")
    for name, kind, what in kinds:
        text = request.query_params.get(name)
        if text is not None:
            try:
                options[name] = kind(text)
            except ValueError as error:
                raise ValueError(f"{name} must be a {what}, got {text!r}") from error
    return options


async def sent_image(request: Request) -> bytes:
    """The body, or the file ``image`` of a form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=4) as form:
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise ValueError("the form has no file 'image'")
        return await upload.read()


def address(request: Request) -> str:
    return request.client.host if request.client else ""


def file(name: str) -> Any:
    async def send(_: Request) -> Response:
        return FileResponse(STATIC / name)

    return send


async def face(_: Request) -> Response:
    """The reference face that the page draws."""
    reference = load_reference()
    return JSONResponse(
        {
            "vertices": reference.vertices.round(4).ravel().tolist(),
            "triangles": reference.triangles.ravel().tolist(),
            "nose": reference.points5[2].round(4).tolist(),
            "unit_mm": FACE_UNIT_MM,
        }
    )


async def tell(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def broken(_: Request, __: Exception) -> Response:
    """A fault of ours, which the log tells."""
    return JSONResponse({"error": "the server failed: its log tells why"}, 500)


async def nobody(_: Request, __: Exception) -> Response:
    """The client left in the middle of its body."""
    return Response(status_code=400)
