"""Who may ask what, and how much: origins, token, size of bodies, rate."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
from collections import OrderedDict
from contextlib import suppress
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY, MAX_SETTINGS = 16 * 2**20, 2**16
UPLOAD_SECONDS = 30.0
MAX_LATE, LATE_SECONDS = 64 * 2**20, 5.0
"""Bytes, and for how long, of a body that is refused."""
BURST, PER_SECOND = 20, 5.0
"""Requests at once, and on average, of one address."""
ADDRESSES = 1000
"""That are remembered."""
OPEN = ("/static/", "/docs", "/openapi.json", "/face.json")
"""Paths that tell nothing of the camera, and need no token; ``/`` neither."""
POLICY = "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HOST = re.compile(r"[\w.:\[\]-]+", re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, reached from nowhere else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


class Guard:
    """Refuses foreign pages and whoever lacks the token.

    A page of another origin may not use the reader's browser to reach this server: its ``Origin`` is not our ``Host``.
    Without a token the ``Host`` must be loopback's, so that a page cannot rename itself to us (DNS rebinding); with one
    such a page does not know it.
    """

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.token is None and not is_loopback(host_name(host)):
            why = (
                f"host {host!r} is not this machine's loopback: use http://127.0.0.1, http://localhost or http://[::1]"
            )
            return JSONResponse({"error": why}, 403)
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return JSONResponse({"error": f"pages of another origin ({origin}) may not use this server"}, 403)
        if self.token is None or scope["path"] == "/" or scope["path"].startswith(OPEN):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = bearer.strip()
        if hmac.compare_digest(given.encode(), self.token.encode()):
            return None
        why = "wrong token" if given else "this server asks for a token"
        how = "give the one it printed at its start, as ?token=… or as the header 'Authorization: Bearer …'"
        return JSONResponse({"error": f"{why}: {how}"}, 401, {"WWW-Authenticate": "Bearer"})


def host_name(host: str) -> str:
    """A ``Host`` header without its port."""
    return host.rsplit(":", 1)[0] if not host.endswith("]") else host


class BodyLimit:
    """Bounds what a request may send, and for how long."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = MAX_SETTINGS if scope["path"] == "/settings" else MAX_BODY
        accepted = f"{most // 2**20} MiB" if most >= 2**20 else f"{most // 2**10} KiB"
        too_large = f"the body is too large: at most {accepted} are accepted"
        claimed = Headers(scope=scope).get("content-length", "0")
        if claimed.isdigit() and int(claimed) > most:
            await JSONResponse({"error": too_large}, 413)(scope, receive, send)
            return
        taken, began = 0, time.monotonic()
        arriving = True

        async def limited() -> Message:
            nonlocal taken, arriving
            if not arriving:  # what comes now is only that the client left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), began + UPLOAD_SECONDS - time.monotonic())
            except asyncio.TimeoutError as error:
                raise HTTPException(408, f"the body did not arrive within {UPLOAD_SECONDS:g} s") from error
            taken += len(message.get("body", b""))
            arriving = bool(message.get("more_body"))
            if taken > most:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, limited, send)


class LateBody:
    """Takes what is left of the body of a request that is answered before its end, for a while: on a connection that is
    closed while the client still sends, many never see the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        arriving = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

        async def watched() -> Message:
            nonlocal arriving
            message = await receive()
            arriving = arriving and bool(message.get("more_body"))
            return message

        async def patient(message: Message) -> None:
            if not arriving or message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            await send({**message, "more_body": True})  # the answer is whole, and on its way
            taken, until = 0, time.monotonic() + LATE_SECONDS
            with suppress(asyncio.TimeoutError):
                while arriving and taken < MAX_LATE:
                    more = await asyncio.wait_for(watched(), until - time.monotonic())
                    taken += len(more.get("body", b""))
            await send({"type": "http.response.body", "body": b""})

        await self.app(scope, watched, patient)


class SafeHeaders:
    """Tells browsers to load nothing from elsewhere, and to tell the address (it may hold the token) to nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        # Safari before 16 does not count WebSockets as 'self'.
        sockets = f"; connect-src 'self' ws://{host} wss://{host}" if HOST.fullmatch(host) else ""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY + sockets
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Cache-Control"] = "no-cache"
            await send(message)

        await self.app(scope, receive, with_headers)


class RateLimit:
    """A bucket of requests for each address, filled again as time goes by."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise the answer 429 if the address asks too often."""
        now = time.monotonic()
        left, since = self._buckets.pop(address, (float(BURST), now))
        left = min(float(BURST), left + (now - since) * PER_SECOND)
        answered = left >= 1
        self._buckets[address] = left - answered, now
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        if not answered:
            most = f"at most {PER_SECOND:g} a second are answered, {BURST} at once"
            raise HTTPException(429, f"too many requests: {most}", {"Retry-After": "1"})
