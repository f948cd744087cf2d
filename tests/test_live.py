"""The live page: its answers, what it refuses, what it survives, and the page in a browser."""

# ruff: noqa: E402, for what is skipped where it is not installed

from __future__ import annotations

import ast
import asyncio
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from img2pose_edge import Faces, PoseDetector
from img2pose_edge.calibration import Calibration
from img2pose_edge.cli import main
from img2pose_edge.draw import draw_faces
from img2pose_edge.look import look
from img2pose_edge.senders import open_senders
from img2pose_edge.video import Frame, VideoWriter

pytest.importorskip("av")
pytest.importorskip("httpx")
pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
websockets = pytest.importorskip("websockets")

from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from img2pose_edge.header import image_size
from img2pose_edge.live import capture as capture_module
from img2pose_edge.live import command, security, server, shared
from img2pose_edge.live.capture import Capture, source_name
from img2pose_edge.live.shared import SharedDetector

HERE = "http://127.0.0.1:8000"
CAMERA = "ws://127.0.0.1:8000/ws"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Cameras that are gone are told often here."""
    caplog.set_level(logging.ERROR, "img2pose_edge")


@pytest.fixture(scope="module")
def clip(astronaut: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of the astronaut."""
    path = tmp_path_factory.mktemp("live") / "clip.mp4"
    with VideoWriter(path, (256, 256), 10) as writer:
        for number in range(5):
            writer.write(np.roll(astronaut[:256, 100:356], number, axis=1), number / 10)
    return path


@pytest.fixture(scope="module")
def photo(astronaut: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", astronaut)[1].tobytes()


@pytest.fixture(scope="module")
def detector() -> SharedDetector:
    return SharedDetector(threads=1)


@pytest.fixture
def client(clip: Path, detector: SharedDetector) -> Iterator[TestClient]:
    with TestClient(server.make_app(Capture(clip, detector)), base_url=HERE) as made:
        yield made


@contextmanager
def running(app: Any) -> Iterator[int]:
    """A real server; its port."""
    listener = command.listen("127.0.0.1", 0)
    made = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        made.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def error(response: Any) -> str:
    return str(response.json()["error"])


def camera_refusal(client: TestClient, address: str = CAMERA, **headers: str) -> str:
    """Why the WebSocket is not opened."""
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(address, headers=headers):
        pass
    return error(refused.value)


# --- POST /detect ------------------------------------------------------------------------------------


def test_a_photograph_is_answered_with_its_faces(client: TestClient, photo: bytes, detector: SharedDetector) -> None:
    answer = client.post("/detect", content=photo).json()
    (face,) = answer["faces"]
    (wanted,) = detector.detect(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR))
    assert face == wanted.to_dict()
    assert (answer["width"], answer["height"]) == (512, 512)
    assert answer["intrinsics"] == wanted.intrinsics.tolist()
    assert client.post("/detect", files={"image": photo}).json()["faces"] == [face]


def test_options_of_one_photograph_are_its_own(client: TestClient, photo: bytes) -> None:
    assert client.post("/detect?score_threshold=0.99", content=photo).json()["faces"] == []
    assert client.post("/detect?input_size=320", content=photo).json()["settings"]["input_size"] == 320
    assert len(client.post("/detect", content=photo).json()["faces"]) == 1
    for query, why in (
        ("score_treshold=0.9", "unknown score_treshold: known are input_size, score_threshold"),
        ("input_size=large", "input_size must be a whole number, got 'large'"),
        ("input_size=100000", "input_size must be at most 1920, got 100000"),
        ("input_size=-1", "input_size must be an integer of at least"),
        ("score_threshold=nan", "score_threshold must be between 0 and 1, got nan"),
    ):
        response = client.post(f"/detect?{query}", content=photo)
        assert response.status_code == 400
        assert why in error(response)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_what_is_no_good_image_is_named(client: TestClient, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for body, why in (
        (b"", "is empty"),
        (b"hello", "no JPEG, PNG, WebP or BMP"),
        (photo[:9], "truncated"),
        (photo[: len(photo) // 2], "truncated"),
        (cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes(), "at least 8x8"),
    ):
        response = client.post("/detect", content=body)
        assert response.status_code == 400
        assert why in error(response)
    response = client.post("/detect", files={"picture": photo})
    assert (response.status_code, error(response)) == (400, "the form has no file 'image'")
    monkeypatch.setattr(server, "load_image", lambda _: pytest.fail("a bomb is decoded"))
    response = client.post("/detect", content=png_that_claims(50000, 50000))
    assert response.status_code == 400
    assert error(response) == "the image is 50000x50000 pixels: at most 50 million are accepted"


@pytest.mark.parametrize("size", [(37, 300), (300, 37), (1, 1)])
def test_sizes_are_told_without_decoding(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    alpha = np.dstack([image, image[..., :1]])
    encoded = [
        cv2.imencode(suffix, picture, options)[1].tobytes()
        for suffix, picture, options in (
            (".jpg", image, []),
            (".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
            (".png", alpha, []),
            (".bmp", image, []),
            (".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 80]),
            (".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101]),  # lossless
            (".webp", alpha, [cv2.IMWRITE_WEBP_QUALITY, 80]),  # extended
        )
    ]
    for data in encoded:
        assert image_size(data) == (size[1], size[0])
        with pytest.raises(ValueError, match=r"truncated|no JPEG"):
            image_size(data[:15])
    # A thumbnail inside the metadata does not count.
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(encoded[0])) + encoded[0]
    if len(encoded[0]) < 65000:
        large = cv2.imencode(".jpg", np.zeros((90, 80, 3), np.uint8))[1].tobytes()
        assert image_size(large[:2] + thumbnail + b"\xff\x01\xff" + large[2:]) == (80, 90), "nor do fillings"


def test_an_image_of_many_scans_is_refused_undecoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    """Each scan makes the decoder go through all pixels: files of kilobytes would keep it busy for hours."""
    progressive = cv2.imencode(".jpg", astronaut, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert client.post("/detect", content=progressive).status_code == 200
    monkeypatch.setattr(server, "load_image", lambda _: pytest.fail("a bomb is decoded"))
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    comment = b"\xff\xfe" + struct.pack(">H", 6) + b"\xff\xd9\xff\xd9"  # no end, though it looks like one
    for between in (b"", comment):
        response = client.post("/detect", content=progressive[:-2] + 100 * (between + scan) + progressive[-2:])
        assert response.status_code == 400
        assert error(response).startswith("the JPEG image is in more than 100 scans")


def test_what_follows_an_image_is_not_counted_as_its_scans(client: TestClient, photo: bytes) -> None:
    film = 1000 * b"\xff\xda\x00\x08"
    assert client.post("/detect", content=photo + film).status_code == 200
    begun = time.monotonic()
    with pytest.raises(ValueError, match="truncated"):
        image_size(b"\xff\xd8" + 2**23 * b"\xff")
    assert time.monotonic() - begun < 2


# --- what is refused ---------------------------------------------------------------------------------


def test_too_large_a_body_is_refused(client: TestClient) -> None:
    why = "the body is too large: at most 16 MiB are accepted"
    response = client.post("/detect", content=b"x" * (2**24 + 1))
    assert (response.status_code, error(response)) == (413, why)

    def chunks() -> Iterator[bytes]:  # without a Content-Length
        for _ in range(17):
            yield bytes(2**20)

    response = client.post("/detect", content=chunks())
    assert (response.status_code, error(response)) == (413, why)


def test_settings_are_small(client: TestClient) -> None:
    response = client.post("/settings", content=b"[" + b"1," * 2**15 + b"1]")
    assert (response.status_code, error(response)) == (413, "the body is too large: at most 64 KiB are accepted")
    response = client.post("/settings", json=[1, 2])
    assert (response.status_code, error(response)) == (400, "settings must be a JSON object, got [1, 2]")
    assert error(client.post("/settings", content=b"x")).startswith("settings must be a JSON object: Expecting value")


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, clip: Path, detector: SharedDetector) -> Iterator[int]:
    """What the command runs; its port."""
    listener = command.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    monkeypatch.setattr(command, "listen", lambda host, port: listener)
    made: list[uvicorn.Server] = []
    run = uvicorn.Server.run

    def keep(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        made.append(self)
        run(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", keep)
    thread = threading.Thread(target=command.serve, args=(str(clip), detector, "127.0.0.1", 0), daemon=True)
    thread.start()
    try:
        yield port
    finally:
        made[0].should_exit = True
        thread.join(10)


def test_connections_on_which_nothing_is_asked_are_closed(
    monkeypatch: pytest.MonkeyPatch, clip: Path, detector: SharedDetector
) -> None:
    monkeypatch.setattr(command, "SILENT", 0.3)
    with served(monkeypatch, clip, detector) as port:
        address = ("127.0.0.1", port)
        silent, half, spent = (socket.create_connection(address, 10) for _ in range(3))
        half.sendall(b"GET /settings HTTP/1.1\r\nHost: 127")
        spent.sendall(b"GET /face.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert spent.recv(12) == b"HTTP/1.1 200"
        spent.sendall(b"GET /settings HTTP/1.1\r\nHost: 127")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(address)
        script = b"GET /static/vendor/three.module.min.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        deaf.sendall(20 * script)
        with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/ws") as watching:
            for connection in (silent, half, spent):
                while connection.recv(65536):
                    pass
                connection.close()
            time.sleep(1)
            watching.send("next")
            assert json.loads(watching.recv(10))["type"] == "frame", "who watches may be silent for long"
        taken = 0
        with suppress(ConnectionResetError):
            while part := deaf.recv(2**20):
                taken += len(part)
        deaf.close()
        assert taken < 7_000_000, "who takes no answer is cut off"


@pytest.mark.parametrize("most", ["CONNECTIONS", "OF_ONE"])
def test_connections_are_bounded(
    most: str, monkeypatch: pytest.MonkeyPatch, clip: Path, detector: SharedDetector
) -> None:
    monkeypatch.setattr(command, most, 6)
    with served(monkeypatch, clip, detector) as port:
        time.sleep(0.5)  # until it serves
        connections = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(30)]
        time.sleep(0.5)
        open_still = 0
        for connection in connections:
            connection.setblocking(False)
            try:
                connection.recv(1)
            except BlockingIOError:
                open_still += 1
            except ConnectionResetError:
                pass
        assert open_still == (6 if most == "OF_ONE" else 11)
        for connection in connections:
            connection.close()
        time.sleep(0.3)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/settings", timeout=10) as answer:
            assert answer.status == 200, "there is room again"


def test_a_refusal_reaches_who_sends_first_and_reads_then(
    clip: Path, detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(port: int, size: int, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/detect", bytes(size), headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        return refused.value.code, json.loads(refused.value.read())["error"]

    monkeypatch.setattr(security, "PER_SECOND", 1e-3)
    with running(server.make_app(Capture(clip, detector), "secret")) as port:
        assert post(port, 20_000_000)[0] == 401
        allowed = {"Authorization": "Bearer secret"}
        status, why = post(port, 40_000_000, **allowed)
        assert (status, why) == (413, "the body is too large: at most 16 MiB are accepted")
        assert post(port, 20_000_000, Origin="http://evil.example", **allowed)[0] == 403
        for _ in range(2 * security.BURST):
            status, why = post(port, 1, **allowed)
        assert status == 429
        assert post(port, 10_000_000, **allowed)[0] == 429


def test_a_fault_of_ours_is_told_as_json(
    clip: Path, detector: SharedDetector, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("an engine's own")

    monkeypatch.setattr(SharedDetector, "look", fail)
    app = server.make_app(Capture(clip, detector))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        answer = client.post("/detect", content=photo)
    assert (answer.status_code, error(answer)) == (500, "the server failed: its log tells why")


def test_a_huge_upload_is_answered_before_it_ends(clip: Path, detector: SharedDetector, photo: bytes) -> None:
    with running(server.make_app(Capture(clip, detector))) as port:
        huge = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        huge.putrequest("POST", "/detect")
        huge.putheader("Content-Length", str(10**12))
        huge.endheaders()
        assert huge.getresponse().status == 413
        huge.close()
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        other.request("POST", "/detect", photo)
        assert other.getresponse().status == 200
        other.close()


def test_an_upload_that_never_ends_is_given_up(
    clip: Path, detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "UPLOAD_SECONDS", 0.2)
    with running(server.make_app(Capture(clip, detector))) as port:
        slow = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        slow.putrequest("POST", "/detect")
        slow.putheader("Content-Length", "1000")
        slow.endheaders(b"a few bytes")
        response = slow.getresponse()
        assert (response.status, json.loads(response.read())["error"]) == (408, "the body did not arrive within 0.2 s")
        slow.close()


def test_pages_of_other_origins_are_refused(client: TestClient, photo: bytes) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1:8000.evil.example", ""):
        headers = {"Origin": origin}
        for response in (
            client.post("/detect", content=photo, headers=headers),
            client.post("/settings", json={}, headers=headers),
            client.get("/settings", headers=headers),
        ):
            assert response.status_code == 403
            assert "pages of another origin" in error(response)
        assert "pages of another origin" in camera_refusal(client, **headers)
    assert client.post("/detect", content=photo, headers={"Origin": HERE}).status_code == 200
    with client.websocket_connect(CAMERA, headers={"Origin": HERE}) as socket:
        socket.send_text("next")
        assert socket.receive_json()["type"] == "frame"


def test_a_page_that_renames_itself_to_us_is_refused(client: TestClient) -> None:
    for host in ("evil.example:8000", "evil.example", "127.0.0.1.evil.example", "192.168.0.7:8000", ""):
        headers = {"Host": host, "Origin": f"http://{host}"}
        response = client.get("/settings", headers=headers)
        assert response.status_code == 403
        assert "is not this machine's loopback" in error(response)
        assert "is not this machine's loopback" in camera_refusal(client, **headers)
    for host in ("localhost:8000", "LocalHost.:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/settings", headers={"Host": host}).status_code == 200


def test_a_token_is_asked_for(clip: Path, detector: SharedDetector, photo: bytes) -> None:
    with TestClient(server.make_app(Capture(clip, detector), "secret"), base_url="http://camera.example") as client:
        assert client.get("/").status_code == 200
        assert client.get("/static/app.js").status_code == 200
        for path in ("/settings", "/settings?token=", "/settings?token=Secret"):
            response = client.get(path)
            assert response.status_code == 401
            assert ("wrong token" in error(response)) == path.endswith("Secret")
            assert "as ?token=… or as the header" in error(response)
        assert client.post("/detect", content=photo).status_code == 401
        assert client.post("/settings", json={}, headers={"Authorization": "Bearer nonsense"}).status_code == 401
        camera = "ws://camera.example/ws"
        assert "this server asks for a token" in camera_refusal(client, camera)
        assert "wrong token" in camera_refusal(client, camera, authorization="Bearer Secret")
        assert client.get("/settings?token=secret").status_code == 200
        bearer = {"Authorization": "Bearer secret"}
        assert client.post("/detect", content=photo, headers=bearer).status_code == 200
        with client.websocket_connect(f"{camera}?token=secret") as socket:
            socket.send_text("next")
            assert socket.receive_json()["type"] == "frame"


def test_requests_are_bounded_in_rate(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(security.time, "monotonic", lambda: now[0])
    limit = security.RateLimit()
    for _ in range(security.BURST):
        limit.check("one")
    with pytest.raises(Exception, match="too many requests: at most 5 a second are answered, 20 at once"):
        limit.check("one")
    limit.check("another")
    now[0] += 1
    for _ in range(5):
        limit.check("one")
    with pytest.raises(Exception, match="too many requests"):
        limit.check("one")
    answered = 0
    for _ in range(200):  # ten a second for twenty seconds: half of them are answered, not none
        now[0] += 0.1
        with suppress(security.HTTPException):
            limit.check("one")
            answered += 1
    assert 95 <= answered <= 105
    monkeypatch.undo()
    monkeypatch.setattr(security, "PER_SECOND", 1e-9)
    answers = [client.post("/settings", json={}) for _ in range(security.BURST + 1)]
    assert [a.status_code for a in answers] == [200] * security.BURST + [429]
    assert answers[-1].headers["Retry-After"] == "1"
    assert "too many requests" in error(answers[-1])


def test_waiting_pictures_are_bounded(clip: Path, detector: SharedDetector, photo: bytes) -> None:
    with running(server.make_app(Capture(clip, detector))) as port:
        waiting = []
        for _ in range(server.MAX_PICTURES):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.putrequest("POST", "/detect")
            connection.putheader("Content-Length", "1000")
            connection.endheaders(b"a few bytes")
            waiting.append(connection)
        status = 0
        for _ in range(20):  # until all of them have arrived
            other = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            other.request("POST", "/detect", photo)
            response = other.getresponse()
            status, body = response.status, response.read()
            other.close()
            if status == 429:
                break
            time.sleep(0.1)
        assert status == 429
        assert "8 pictures are waiting already" in json.loads(body)["error"]
        for connection in waiting:
            connection.close()


def test_browsers_are_told_to_load_nothing_from_elsewhere(client: TestClient) -> None:
    response = client.get("/")
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert response.headers["Referrer-Policy"] == "no-referrer"
    for path in server.STATIC.rglob("*"):
        if path.is_file() and path.parent.name != "vendor":
            addresses = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "://" not in addresses.replace("http://${", ""), f"{path.name} names an address"


# --- calibrated cameras ------------------------------------------------------------------------------

LENS = Calibration(np.array([[380.0, 0, 325], [0, 382, 236], [0, 0, 1]]), 640, 480, np.array([-0.28, 0.08, 0, 0, 0]))


@pytest.fixture(scope="module")
def bent(astronaut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut in a corner, as a camera without distortion takes it, and through the lens."""
    straight = np.full((480, 640, 3), 90, np.uint8)
    straight[200:, 384:] = astronaut[:280, 100:356]
    pixels = np.stack(np.meshgrid(np.arange(640.0), np.arange(480.0)), axis=-1).reshape(-1, 1, 2)
    camera, lens = LENS.intrinsics, LENS.distortion
    source = cv2.undistortPoints(pixels, camera, lens, None, None, camera).reshape(480, 640, 2)
    return straight, cv2.remap(straight, source.astype(np.float32), None, cv2.INTER_LINEAR)


@pytest.fixture(scope="module")
def calibrated() -> SharedDetector:
    return SharedDetector(threads=1, calibration=LENS)


def distance(a: Any, b: Any) -> float:
    return float(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b))


@pytest.mark.parametrize("scale", [1, 2])
def test_photographs_of_the_calibrated_camera(
    bent: tuple[np.ndarray, np.ndarray], calibrated: SharedDetector, clip: Path, scale: int
) -> None:
    straight, picture = (cv2.resize(image, None, fx=scale, fy=scale) for image in bent)
    camera = LENS.for_size(640 * scale, 480 * scale)
    (truth,) = calibrated.detect(straight, camera.intrinsics)
    (seen,) = calibrated.detect(picture, camera.intrinsics)
    with TestClient(server.make_app(Capture(clip, calibrated)), base_url=HERE) as client:
        answer = client.post("/detect", content=cv2.imencode(".png", picture)[1].tobytes()).json()
    (face,) = answer["faces"]
    assert answer["calibrated"]
    assert "note" not in answer
    assert answer["intrinsics"] == camera.intrinsics.tolist()
    assert distance(face["translation"], truth.translation) < 0.06 < 0.1 < distance(seen.translation, truth.translation)
    np.testing.assert_allclose(face["seen"]["translation"], seen.translation)
    np.testing.assert_allclose(face["seen"]["rotation"], seen.rotation)


def test_photographs_of_another_shape_are_told_apart(
    client: TestClient, calibrated: SharedDetector, clip: Path, photo: bytes
) -> None:
    plain = client.post("/detect", content=photo).json()
    assert not plain["calibrated"]
    with TestClient(server.make_app(Capture(clip, calibrated)), base_url=HERE) as calibrated_client:
        answer = calibrated_client.post("/detect", content=photo).json()
    assert answer["note"].startswith("the calibration is for images of 640x480, this one is 512x512")
    assert answer["faces"] == plain["faces"]
    assert not answer["calibrated"]


def test_frames_of_the_calibrated_camera(
    camera: type[Camera], bent: tuple[np.ndarray, np.ndarray], calibrated: SharedDetector
) -> None:
    camera.image = bent[1]
    (truth,) = calibrated.detect(bent[0], LENS.intrinsics)
    with TestClient(server.make_app(Capture(0, calibrated)), base_url=HERE) as client:
        client.post("/settings", json={"smooth": True})
        with client.websocket_connect(CAMERA) as socket:
            message = until(socket, lambda m: m["type"] == "frame" and m["settings"]["smooth"])
        client.post("/settings", json={"smooth": False})
    (face,) = message["faces"]
    assert face["id"] == 0
    assert message["calibrated"]
    assert message["intrinsics"] == LENS.intrinsics.tolist()
    assert distance(face["translation"], truth.translation) < 0.06


def test_frames_of_another_shape_are_trouble(clip: Path, calibrated: SharedDetector) -> None:
    with (
        TestClient(server.make_app(Capture(clip, calibrated)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        trouble = next_message(socket)
    assert trouble["type"] == "trouble"
    assert "the calibration is for images of 640x480, this one is 256x256" in trouble["message"]


# --- settings ----------------------------------------------------------------------------------------


def test_settings_change_for_everyone_or_not_at_all(clip: Path) -> None:
    detector = SharedDetector("edge-n", threads=1)
    with TestClient(server.make_app(Capture(clip, detector)), base_url=HERE) as client:
        before = client.get("/settings").json()
        assert before["source"] == "clip.mp4"
        assert before["settings"]["model"] == "edge-n"
        assert "edge-n-int8" in before["models"]
        for wanted, why in (
            ({"modell": "edge-n"}, "there is no setting 'modell', only model, input_size"),
            ({"model": str(clip)}, "there is no model"),
            ({"model": 3}, "setting model cannot be 3"),
            ({"input_size": True}, "setting input_size cannot be True"),
            ({"input_size": 5000}, "input_size must be at most 1920"),
            ({"fast": 2.5}, "setting fast cannot be 2.5"),
            ({"input_size": 320, "fast": 1}, "fast must be an integer of at least 2 frames (or 0: off), got 1"),
            ({"smooth": True, "score_threshold": 2}, "score_threshold must be between 0 and 1, got 2"),
            ([], "settings must be a JSON object, got []"),
        ):
            response = client.post("/settings", json=wanted)
            assert response.status_code == 400
            assert why in error(response)
        assert client.post("/settings", content=b"{").status_code == 400
        assert client.post("/settings", content=b"[" * 50000).status_code == 400
        assert client.get("/settings").json() == before
        client.post("/settings", json={"model": "edge-n-int8", "score_threshold": 0.3, "smooth": True})
        assert client.get("/settings").json()["settings"] == {
            "model": "edge-n-int8",
            "input_size": 640,
            "score_threshold": 0.3,
            "smooth": True,
            "fast": 0,
        }
        with client.websocket_connect(CAMERA) as socket:
            socket.send_text("next")
            message = socket.receive_json()
        assert message["settings"]["smooth"]
        assert [face["id"] for face in message["faces"]] == [0]


def test_crops_and_a_model_of_one_size_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ai_edge_litert")
    assert main(["live", "--fast", "1"]) == 1
    assert "fast must be an integer of at least 2 frames" in capsys.readouterr().err
    why = "edge-n-int8-640x480.tflite takes images of one size only"
    with pytest.raises(ValueError, match=why):
        SharedDetector("edge-n-int8-640x480", fast=5)
    detector = SharedDetector("edge-n", threads=1, fast=5)
    before = detector.settings
    with pytest.raises(ValueError, match=why):
        detector.change({"model": "edge-n-int8-640x480"})
    assert detector.settings == before
    detector.change({"model": "edge-n-int8-640x480", "fast": 0})
    with pytest.raises(ValueError, match=why):
        detector.change({"fast": 5})


def test_the_api_is_written_down(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/detect", "/settings", "/ws"}
    told = client.get("/openapi.json").json()["components"]["schemas"]["Settings"]["properties"]
    assert list(told) == list(client.get("/settings").json()["settings"])
    routes = {route.path: getattr(route, "methods", None) or {"GET"} for route in client.app.routes}  # type: ignore[attr-defined]
    for path, methods in paths.items():
        assert {m.upper() for m in methods} == routes[path] - {"HEAD"}


def test_answers_hold_what_the_api_says(client: TestClient, photo: bytes) -> None:
    told = client.get("/openapi.json").json()["components"]["schemas"]
    schemas = {name: set(schema["properties"]) for name, schema in told.items()}
    answer = client.post("/detect", content=photo).json()
    assert schemas["Detection"] - {"calibrated", "note"} <= set(answer) <= schemas["Detection"]
    (face,) = answer["faces"]
    assert schemas["Face"] - {"id", "seen"} <= set(face) <= schemas["Face"]
    assert set(client.get("/settings").json()) <= schemas["Choice"]
    assert set(client.post("/detect", content=b"none").json()) == schemas["Error"]


def test_examples_of_the_api_work(clip: Path, photo: bytes, tmp_path: Path) -> None:
    paths = json.loads((server.STATIC / "openapi.json").read_text())["paths"]
    examples = {(path, verb): told["x-example"] for path, verbs in paths.items() for verb, told in verbs.items()}
    (tmp_path / "photo.jpg").write_bytes(photo)
    detector = SharedDetector("edge-n", threads=1)

    def run(path: str, verb: str, command: list[str], loop: str = "while True") -> str:
        text = examples.pop((path, verb)).replace("ADDRESS", f"http://127.0.0.1:{port}")
        text = text.replace("curl", "curl --silent --show-error --fail").replace(loop, "for _ in range(3)")
        done = subprocess.run([*command, text], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with running(server.make_app(Capture(clip, detector))) as port:
        faces = run("/ws", "get", [sys.executable, "-c"])
        assert [len(ast.literal_eval(line)) for line in faces.splitlines()] == [1, 1, 1]
        if shutil.which("curl") is None:
            pytest.skip("no curl here")
        shell = ["sh", "-ec"]
        answers = json.loads("[" + run("/detect", "post", shell).replace("}{", "},{") + "]")
        assert [len(answer["faces"]) for answer in answers] == [1, 1]
        assert json.loads(run("/settings", "get", shell))["settings"]["input_size"] == 640
        assert json.loads(run("/settings", "post", shell))["settings"]["input_size"] == 320
    assert not examples


# --- the camera --------------------------------------------------------------------------------------


def test_frames_arrive_with_their_faces(client: TestClient) -> None:
    numbers = []
    with client.websocket_connect(CAMERA) as socket:
        for _ in range(7):  # more than the clip has
            socket.send_text("next")
            message = socket.receive_json()
            assert message["type"] == "frame"
            picture = cv2.imdecode(np.frombuffer(socket.receive_bytes(), np.uint8), cv2.IMREAD_COLOR)
            assert picture.shape == (256, 256, 3)
            assert (message["width"], message["height"]) == (256, 256)
            (face,) = message["faces"]
            assert abs(face["yaw"]) < 15
            assert message["age_ms"] >= 0
            numbers.append(message["number"])
    assert numbers == sorted(set(numbers))


def test_no_more_faces_are_told_than_anybody_can_tell_apart(camera: type[Camera]) -> None:
    for smooth in (False, True):
        detector = SharedDetector(threads=1, score_threshold=0.0, smooth=smooth)
        with (
            TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
            client.websocket_connect(CAMERA) as watching,
        ):
            faces = next_message(watching)["faces"]
        assert 0 < len(faces) <= shared.MOST_FACES
        assert max(face["score"] for face in faces) > 0.5


def test_large_pictures_are_sent_smaller(astronaut: np.ndarray) -> None:
    data = capture_module.encode(cv2.resize(astronaut, (2000, 1000)))
    assert image_size(data) == (1280, 640)


class Camera:
    """Stands for a live :class:`Source`: gives frames until it is pulled out."""

    image: np.ndarray
    frames = 1000
    opened: list[Any]
    error: Exception | None = None

    def __init__(self, source: Any, rate: float | None = None, camera_size: tuple[int, int] | None = None) -> None:
        if self.error and len(self.opened) == 1:
            self.opened.append(None)
            raise self.error
        self.live, self.rate, self.closed = True, 100.0, False
        self.opened.append(self)

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[Frame]:
        began = time.monotonic()
        for index in range(self.frames):
            time.sleep(0.01)
            yield Frame(self.image, index, time.monotonic() - began)
        raise ValueError("camera 0 gives no more frames")


@pytest.fixture
def camera(astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> type[Camera]:
    class Made(Camera):
        image = astronaut[:256, 100:356]
        opened: list[Any] = []  # noqa: RUF012

    monkeypatch.setattr(capture_module, "Source", Made)
    return Made


def next_message(socket: Any) -> dict[str, Any]:
    socket.send_text("next")
    message: dict[str, Any] = socket.receive_json()
    if message["type"] == "frame":
        socket.receive_bytes()
    return message


def until(socket: Any, right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for _ in range(200):
        message = next_message(socket)
        if right(message):
            return message
    raise AssertionError(f"never told, last: {message}")


@pytest.fixture
def portrait(astronaut: np.ndarray) -> np.ndarray:
    """(480, 640, 3): a face of 80 pixels on grey."""
    picture = np.full((480, 640, 3), 127, np.uint8)
    picture[140:360, 110:330] = astronaut[10:230, 115:335]
    return picture


@pytest.fixture
def even(camera: type[Camera], portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> type[Camera]:
    """A camera whose clock does not tell how busy the machine is: after a pause faces are looked for everywhere."""

    def frames(self: Camera) -> Iterator[Frame]:
        for index in range(10000):
            time.sleep(0.005)
            yield Frame(self.image, index, index / 30)

    monkeypatch.setattr(camera, "__iter__", frames)
    camera.image = portrait
    return camera


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Of each picture that a detector gets: its model, the longest side that the network sees, whether it is whole."""
    noted = []
    given = PoseDetector.detect

    def detect(self: PoseDetector, image: np.ndarray, **options: Any) -> Faces:
        noted.append((self.model.path.stem, options["input_size"], image.shape == (480, 640, 3)))
        return given(self, image, **options)

    monkeypatch.setattr(PoseDetector, "detect", detect)
    return noted


def test_crops_only_where_they_are_asked_for(
    even: type[Camera], portrait: np.ndarray, looked_at: list[tuple[str, int, bool]]
) -> None:
    detector = SharedDetector("edge-n-int8", threads=1)
    with (
        TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        (plain,) = until(socket, lambda m: m["number"] >= 5)["faces"]
        assert len(looked_at) >= 5
        assert all(whole for *_, whole in looked_at)
        client.post("/settings", json={"fast": 4, "smooth": True})
        until(socket, lambda m: m["settings"]["fast"] == 4)
        looked_at.clear()
        first = next_message(socket)["number"]
        message = until(socket, lambda m: m["number"] >= first + 9)
        wholes = [k for k, (*_, whole) in enumerate(looked_at) if whole]
        assert len(wholes) >= 2
        assert set(np.diff(wholes)) == {4}
        (face,) = message["faces"]
        assert face["id"] == 0
        np.testing.assert_allclose(face["translation"], plain["translation"], rtol=0.03, atol=0.03)
        looked_at.clear()
        picture = cv2.imencode(".png", portrait)[1].tobytes()
        client.post("/settings", json={"fast": 10**6})
        for _ in range(3):
            assert client.post("/detect", content=picture).json()["faces"] == [plain], "photographs are seen whole"


def test_a_new_face_appears_beside_the_crop(even: type[Camera], portrait: np.ndarray) -> None:
    two = portrait.copy()
    two[:, 400:620] = portrait[:, 110:330]
    detector = SharedDetector("edge-n-int8", threads=1, fast=8)
    with (
        TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        assert len(until(socket, lambda m: m["number"] >= 3)["faces"]) == 1
        even.image = two
        before = next_message(socket)["number"]
        after = until(socket, lambda m: len(m["faces"]) == 2)["number"]
        assert after - before <= 9, "one was on its way"
        even.image = np.full_like(portrait, 127)
        until(socket, lambda m: not m["faces"])
        even.image = portrait
        until(socket, lambda m: len(m["faces"]) == 1)


def test_crops_begin_anew_with_other_settings(even: type[Camera], looked_at: list[tuple[str, int, bool]]) -> None:
    detector = SharedDetector("edge-n-int8", threads=1, fast=10**6)
    with (
        TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        until(socket, lambda m: m["number"] >= 3)
        assert [whole for *_, whole in looked_at].count(True) == 1
        for change, model, size, faces in (
            ({"input_size": 480}, "edge-n-int8", 480, 1),
            ({"model": "edge-n"}, "edge-n", 640, 1),
            ({"score_threshold": 0.99}, "edge-n", 640, 0),
        ):
            looked_at.clear()
            client.post("/settings", json=change)
            changed = until(socket, lambda m, change=change: m["settings"].items() >= change.items())["number"]
            message = until(socket, lambda m, changed=changed: m["number"] >= changed + 3)
            assert len(message["faces"]) == faces
            frames = [look for look in looked_at if look[2] and look[1] == size and look[0] == model]
            assert frames, "the first is looked at whole"
            assert len(frames) == 1 or not faces
            assert {name for name, *_ in looked_at[-3:]} == {model}


def test_who_is_followed_keeps_the_number_when_settings_change(even: type[Camera], portrait: np.ndarray) -> None:
    even.image = np.full_like(portrait, 127)
    two = portrait.copy()
    two[:, 400:620] = portrait[:, 110:330]
    detector = SharedDetector("edge-n-int8", threads=1, smooth=True)
    with (
        TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        even.image = portrait
        (first,) = until(socket, lambda m: len(m["faces"]) == 1)["faces"]
        even.image = two
        before = until(socket, lambda m: len(m["faces"]) == 2)["faces"]
        where = {face["id"]: face["box"][0] for face in before}
        assert where[first["id"]] == pytest.approx(first["box"][0], abs=3)
        client.post("/settings", json={"score_threshold": 0.4})
        after = until(socket, lambda m: m["settings"]["score_threshold"] == 0.4 and len(m["faces"]) == 2)["faces"]
        assert {face["id"]: face["box"][0] for face in after} == pytest.approx(where, abs=3)
        client.post("/settings", json={"smooth": False})
        until(socket, lambda m: not any("id" in face for face in m["faces"]))  # settings are told before they are seen
        client.post("/settings", json={"smooth": True})
        anew = until(socket, lambda m: len(m["faces"]) == 2 and all("id" in face for face in m["faces"]))["faces"]
        assert not {face["id"] for face in anew} & where.keys(), "not known to be the same"


def test_nothing_is_encoded_that_nobody_sees(even: type[Camera], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2pose_edge.live.capture.encode", lambda image: pytest.fail("nobody looks"))
    frames: list[int] = []
    done = threading.Event()

    def send(faces: Any, ids: Any) -> None:
        frames.append(len(faces))
        if len(frames) == 4:
            done.set()

    capture = Capture(0, SharedDetector("edge-n-int8", threads=1), [send])
    with TestClient(server.make_app(capture), base_url=HERE):
        assert done.wait(20)
    assert capture._shot is None


@pytest.mark.parametrize("names", [["1.jpg", "2.jpg"], ["only.jpg"]])
def test_a_picture_that_is_held_is_sent_again(
    names: list[str], tmp_path: Path, detector: SharedDetector, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2pose_edge.live.capture.HOLD", 0.1)
    monkeypatch.setattr(capture_module, "STALLED", 0.8)
    for name in names:
        (tmp_path / name).write_bytes(photo)
    with (
        TestClient(server.make_app(Capture(str(tmp_path), detector, rate=0.3)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        messages = [next_message(socket) for _ in range(6)]
    assert {m["type"] for m in messages} == {"frame"}, "it is not said to be stuck"
    assert {m["time"] for m in messages} == {0.0}


def test_who_comes_back_sees_the_slide_that_stands(
    tmp_path: Path, detector: SharedDetector, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2pose_edge.live.capture.HOLD", 0.1)
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (tmp_path / name).write_bytes(photo)
    capture = Capture(str(tmp_path), detector, [lambda faces, ids: None], rate=0.4)
    with TestClient(server.make_app(capture), base_url=HERE) as client:
        with client.websocket_connect(CAMERA) as socket:
            assert next_message(socket)["time"] == 0
        time.sleep(2.9)
        with client.websocket_connect(CAMERA) as socket:
            assert {next_message(socket)["time"] for _ in range(3)} == {2.5}


def test_a_path_is_not_told(tmp_path: Path, detector: SharedDetector) -> None:
    (tmp_path / "gone.mp4").write_bytes(b"no video")
    with (
        TestClient(server.make_app(Capture(str(tmp_path / "gone.mp4"), detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        message = next_message(socket)
    assert message["type"] == "trouble"
    assert "gone.mp4" in message["message"]
    assert str(tmp_path) not in message["message"]


def test_a_device_is_told_by_its_name(detector: SharedDetector) -> None:
    with (
        TestClient(server.make_app(Capture("/dev/video97", detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        assert next_message(socket)["message"].startswith("camera /dev/video97 does not open")


def test_tokens_may_be_chosen(monkeypatch: pytest.MonkeyPatch, clip: Path, capsys: Any) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    asked = ["live", "--source", str(clip), "--port", "0"]
    assert main([*asked, "--token", "a-token-of-my-own"]) == 0
    assert capsys.readouterr().out.strip().endswith("?token=a-token-of-my-own")
    monkeypatch.setenv("IMG2POSE_EDGE_TOKEN", "")
    assert main(asked) == 0
    assert "token" not in capsys.readouterr().out
    monkeypatch.setenv("IMG2POSE_EDGE_TOKEN", "0123456789abcdef")
    assert main([*asked, "--host", "0.0.0.0"]) == 0
    assert capsys.readouterr().out.strip().endswith("?token=0123456789abcdef")
    for wrong in ("short", "with spaces and more", "with&signs=and-more"):
        assert main([*asked, "--token", wrong]) == 1
        assert "a token is at least 16" in capsys.readouterr().err


def test_every_address_means_both_kinds() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this system has no IPv6")
    with command.listen("::", 0) as listener:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1]), 5).close()


def test_poses_are_sent_though_nobody_looks(camera: type[Camera], detector: SharedDetector) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(10)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with open_senders(address, None) as send:
            app = server.make_app(Capture(0, detector, send))
            with TestClient(app, base_url=HERE):
                assert len(listening.recv(1000)) == 48
    assert camera.opened


def test_a_camera_that_is_pulled_out_is_told_and_comes_back(
    camera: type[Camera], detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "RETRY", 0.05)
    camera.frames, camera.error = 5, ValueError("camera 0 does not open: there is none of this number")
    with (
        TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as socket,
    ):
        assert next_message(socket)["type"] == "frame"
        gone = until(socket, lambda m: m["type"] == "trouble")
        assert gone["message"].startswith("camera 0 gives no more frames; trying again every")
        absent = until(socket, lambda m: m["type"] == "trouble" and m["number"] > gone["number"])
        assert absent["message"].startswith("camera 0 does not open: there is none of this number; trying again every")
        assert until(socket, lambda m: m["type"] == "frame")["number"] > absent["number"]


def test_a_camera_that_hangs_is_told(
    camera: type[Camera], detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(self: Camera) -> Iterator[Frame]:
        yield Frame(self.image, 0, 0.0)
        time.sleep(2)

    monkeypatch.setattr(capture_module, "STALLED", 0.3)
    monkeypatch.setattr(camera, "__iter__", hang)
    told = {"type": "trouble", "message": "camera 0 has given no frame for 0.3 s"}
    with TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client:
        with client.websocket_connect(CAMERA) as socket:
            assert until(socket, lambda m: m["type"] == "frame")["number"] == 1
            assert next_message(socket) == told
        with client.websocket_connect(CAMERA) as socket:
            assert next_message(socket) == told, "not the picture from before it hung"


def test_a_slow_network_is_no_camera_that_hangs(
    camera: type[Camera], detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, look = [0.4], SharedDetector.look

    def look_slowly(self: SharedDetector, *arguments: Any, **options: Any) -> Any:
        time.sleep(slow[0])
        return look(self, *arguments, **options)

    monkeypatch.setattr(capture_module, "STALLED", 0.3)
    monkeypatch.setattr(SharedDetector, "look", look_slowly)
    with (
        TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as watching,
    ):
        assert [next_message(watching)["type"] for _ in range(3)] == ["frame"] * 3
        slow[0] = 2.0
        assert "takes long here" in until(watching, lambda m: m["type"] == "trouble")["message"]


def test_why_a_camera_does_not_open_is_told_to_who_comes_later(
    camera: type[Camera], detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "STALLED", 0.3)
    monkeypatch.setattr(capture_module, "RETRY", 0.1)
    attempts = []

    def open_slowly(self: Camera, *_: Any) -> None:
        attempts.append(self)
        if len(attempts) > 1:
            time.sleep(2)
        raise ValueError("camera 0 does not open")

    monkeypatch.setattr(camera, "__init__", open_slowly)
    with (
        TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client,
        client.websocket_connect(CAMERA) as watching,
    ):
        assert "does not open" in until(watching, lambda m: m["type"] == "trouble")["message"]
        time.sleep(0.8)
        with client.websocket_connect(CAMERA) as later:
            assert "does not open" in next_message(later)["message"]


def test_the_camera_is_held_only_while_someone_looks(
    camera: type[Camera], detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "LINGER", 0.2)
    with TestClient(server.make_app(Capture(0, detector)), base_url=HERE) as client:
        time.sleep(0.3)
        assert camera.opened == []
        with client.websocket_connect(CAMERA) as socket:
            first = next_message(socket)
        for _ in range(50):
            if camera.opened[0].closed:
                break
            time.sleep(0.1)
        assert camera.opened[0].closed
        time.sleep(0.2)
        with client.websocket_connect(CAMERA) as socket:
            again = next_message(socket)
        assert len(camera.opened) == 2
        assert again["number"] > first["number"]
        assert again["age_ms"] < 2000, "not the picture from before"


def test_addresses_are_told_without_their_password(clip: Path) -> None:
    assert source_name("rtsp://me:secret@10.0.0.7/live") == "rtsp://10.0.0.7/live"
    assert source_name("2") == "camera 2"
    assert source_name(str(clip)) == "clip.mp4"


def test_fifty_clients_at_once_and_no_more_than_the_bound(
    camera: type[Camera], detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 50)

    async def look(socket: Any) -> list[int]:
        numbers = []
        for _ in range(3):
            await socket.send("next")
            numbers.append(json.loads(await socket.recv())["number"])
            assert (await socket.recv())[:2] == b"\xff\xd8"
        return numbers

    async def all_look(address: str) -> str:
        async with AsyncExitStack() as stack:
            sockets = [await stack.enter_async_context(connect_async(address)) for _ in range(50)]
            for numbers in await asyncio.gather(*map(look, sockets)):
                assert numbers == sorted(set(numbers))
            one_more = await stack.enter_async_context(connect_async(address))
            return str(json.loads(await one_more.recv())["message"])

    with running(server.make_app(Capture(0, detector))) as port:
        refusal = asyncio.run(asyncio.wait_for(all_look(f"ws://127.0.0.1:{port}/ws"), 60))
    assert refusal == "50 clients are watching already: try again later"
    assert len(camera.opened) == 1, "one camera for all"


def test_a_slow_client_misses_frames_and_nobody_waits(camera: type[Camera], detector: SharedDetector) -> None:
    def ask(socket: Any) -> int:
        socket.send("next")
        number = json.loads(socket.recv())["number"]
        socket.recv()
        return int(number)

    with (
        running(server.make_app(Capture(0, detector))) as port,
        connect(f"ws://127.0.0.1:{port}/ws") as slow,
        connect(f"ws://127.0.0.1:{port}/ws", close_timeout=0.1) as deaf,
        connect(f"ws://127.0.0.1:{port}/ws") as quick,
    ):
        for _ in range(100):  # asks, and reads nothing
            deaf.send("next")
        before = ask(slow)
        seen = [ask(quick) for _ in range(20)]
        after = ask(slow)
    assert len(set(seen)) == 20
    assert after >= seen[-1], "the newest frame, not the one after its last"
    assert after - before >= 19


# --- the command -------------------------------------------------------------------------------------


def test_only_loopback_needs_no_token(monkeypatch: pytest.MonkeyPatch, clip: Path, capsys: Any) -> None:
    started = []

    def run(self: Any, sockets: list[Any]) -> None:
        started.append(sockets[0].getsockname()[0])
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["live", "--source", str(clip), "--port", "0"]) == 0
    assert "token" not in capsys.readouterr().out
    assert main(["live", "--source", str(clip), "--port", "0", "--host", "0.0.0.0"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.split("?token=")[1].strip()) >= 32
    assert started == ["127.0.0.1", "0.0.0.0"]
    for camera in ("97", "/dev/video97"):
        assert main(["live", "--source", camera, "--port", "0"]) == 0, "the camera may come yet"
        assert f"camera {camera} does not open" in capsys.readouterr().err


def test_options_are_the_first_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[SharedDetector] = []
    monkeypatch.setattr(command, "serve", lambda source, detector, *_, **__: served.append(detector))
    assert main(["live", "--model", "edge-n"]) == 0
    assert main(["live", "--model", "edge-n", "--smooth", "--fast", "7", "--input-size", "320"]) == 0
    plain, chosen = (detector.settings for detector in served)
    assert (plain.smooth, plain.fast, plain.input_size) == (False, 0, 640)
    assert (chosen.smooth, chosen.fast, chosen.input_size) == (True, 7, 320)


def test_what_cannot_be_served_is_named(clip: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: pytest.fail("it is served"))
    for arguments, what in (
        (["absent.mp4"], "no video absent.mp4"),
        (["absent.mp4", "--rate", "5"], "no video absent.mp4"),
        (["97", "--rate", "0"], "rate must be a positive number"),
        (["97", "--camera-size", "0x5"], "camera_size must be a width and a height"),
        ([""], "the source is empty"),
    ):
        assert main(["live", "--source", *arguments]) == 1
        assert what in capsys.readouterr().err
    with command.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["live", "--source", str(clip), "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1, port {port}: " in capsys.readouterr().err
    assert main(["live", "--source", str(clip), "--port", "70000"]) == 1
    assert "port 70000" in capsys.readouterr().err


def test_a_calibration_of_another_size_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, clip: Path, tmp_path: Path, capsys: Any
) -> None:
    text = "camera_matrix: {{rows: 3, cols: 3, data: [300., 0., 128., 0., 300., 128., 0., 0., 1.]}}\n"
    text += "distortion_coefficients: {{rows: 1, cols: 5, data: [-0.1, 0., 0., 0., 0.]}}\n"
    text += "image_width: {0}\nimage_height: {1}\n"
    for name, size in (("wide", (640, 480)), ("square", (512, 512))):
        (tmp_path / f"{name}.yml").write_text(text.format(*size))
    asked = ["live", "--source", str(clip), "--port", "0", "--calibration"]
    assert main([*asked, str(tmp_path / "wide.yml")]) == 1
    assert "images of 640x480, this one is 256x256" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "none.yml")]) == 1
    assert "no calibration" in capsys.readouterr().err
    monkeypatch.setattr(command, "listen", lambda host, port: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        main([*asked, str(tmp_path / "square.yml")])


def test_ctrl_c_twice_ends_without_a_traceback(clip: Path) -> None:
    code = """
import signal, sys
from img2pose_edge.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in what they start in the background
sys.exit(main(sys.argv[1:]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "live", "--source", str(clip), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    port = process.stdout.readline().rsplit(":", 1)[1].strip("/\n")
    for _ in range(100):  # until it serves
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (130, "")


def test_without_a_web_server_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["live"]) == 1
    assert 'pip install "img2pose-edge[live]"' in capsys.readouterr().err


# --- the page ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as made:
        options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = made.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str) -> Iterator[Any]:
    """A page without errors that asks nothing of anyone but loopback."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.set_default_timeout(20000)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(address)
    yield page
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{len(asked)}.png")
    page.close()
    assert [text for text in wrong if "status of 400" not in text] == []  # what a broken photograph is answered with
    outside = [url for url in asked if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "blob:"))]
    assert outside == []
    assert any(url.startswith("ws://") for url in asked)


DROP = """([bytes, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(bytes)], name));
  for (const kind of ["dragenter", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true }));
  }
}"""


def test_the_page_shows_faces(browser: Any, clip: Path, astronaut: np.ndarray, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    detector = SharedDetector(threads=1)
    with (
        running(server.make_app(Capture(clip, detector))) as port,
        opened(browser, f"http://127.0.0.1:{port}/") as page,
    ):
        page.wait_for_selector("#faces td:nth-child(9)")
        cells = page.locator("#faces tr").first.locator("td").all_inner_texts()
        assert len(page.locator("#faces tr").all()) == 1
        assert 0.5 < float(cells[1]) <= 1
        assert all(abs(float(angle)) < 20 for angle in cells[2:5])
        assert float(cells[5]) > 300
        expect(page.locator("#latency")).to_have_text(re.compile(r"^\d+ ms$"))
        space = cv2.imdecode(np.frombuffer(page.locator("#space").screenshot(), np.uint8), cv2.IMREAD_COLOR).astype(int)
        assert 20 < (space[..., 0] - space[..., 2] > 60).sum() < 0.1 * space[..., 0].size, "a blue head in space"
        page.uncheck("#boxes")
        page.uncheck("#axes")
        page.select_option("#fast", "10")
        page.check("#smooth")
        # Identities go on with each turn of the clip, from 0, which may be over before the page is looked at; without
        # them the only face is always 1.
        expect(page.locator("#faces td").first).to_have_text(re.compile(r"^([02-9]|\d\d+)$"))
        assert detector.settings.smooth
        assert detector.settings.fast == 10

        twice = np.hstack([astronaut, astronaut])
        page.evaluate(DROP, [list(cv2.imencode(".png", twice)[1].tobytes()), "two.png"])
        expect(page.locator("#faces tr")).to_have_count(2)
        assert page.evaluate("document.getElementById('view').width") == 1024
        assert page.is_visible("#back")
        with page.expect_download() as download:
            page.click("#snapshot")
        download.value.save_as(tmp_path / "snapshot.png")
        assert image_size((tmp_path / "snapshot.png").read_bytes()) == (1024, 512)
        shown = np.abs(cv2.imread(str(tmp_path / "snapshot.png")).astype(int) - twice).max(2) > 12
        faces = detector.detect(twice)
        wanted = (draw_faces(twice, faces, boxes=False, axes=False) != twice).any(2)
        assert (shown & wanted).sum() / (shown | wanted).sum() > 0.9, "masks as draw_faces draws them"

        with page.expect_response("**/detect"):  # again, with the new setting
            page.select_option("#input_size", "320")
        assert detector.settings.input_size == 320
        slider = page.locator("#score_threshold")
        slider.fill("0.95")
        expect(page.locator("#faces")).to_have_text("no face")
        slider.fill("0.5")
        expect(page.locator("#faces tr")).to_have_count(2)
        slider.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#threshold")).to_have_text("0.55")
        with page.expect_response("**/settings"):
            pass
        assert detector.settings.score_threshold == pytest.approx(0.55)
        assert page.evaluate("document.activeElement.id") == "score_threshold"
        page.locator("#space").focus()
        before = page.locator("#space").screenshot()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("+")
        assert page.locator("#space").screenshot() != before
        page.evaluate(DROP, [list(b"hello"), "bad.jpg"])
        expect(page.locator("#notice")).to_have_text("bad.jpg: this is no JPEG, PNG, WebP or BMP image")

        page.click("#back")
        expect(page.locator("#faces tr")).to_have_count(1)
        assert page.evaluate("document.getElementById('view').width") == 256

        page.route("**/settings", lambda route: route.fulfill(status=400, json={"error": "not now"}))
        page.uncheck("#smooth")
        expect(page.locator("#notice")).to_have_text("not now")
        shown = page.locator("#rate").inner_text()
        expect(page.locator("#rate")).not_to_have_text(shown)  # frames come
        expect(page.locator("#notice")).to_have_text("not now")


def test_a_photograph_beyond_the_limits_of_browsers_is_drawn_smaller(
    browser: Any, clip: Path, detector: SharedDetector, astronaut: np.ndarray, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    picture = np.full((6120, 8160, 3), 255, np.uint8)
    picture[2000:5072, 4000:7072] = cv2.resize(astronaut, (3072, 3072))
    with (
        running(server.make_app(Capture(clip, detector))) as port,
        opened(browser, f"http://127.0.0.1:{port}/") as page,
    ):
        page.uncheck("#boxes")
        page.uncheck("#axes")
        page.evaluate(DROP, [list(cv2.imencode(".jpg", picture)[1].tobytes()), "large.jpg"])
        expect(page.locator("#back")).to_be_visible()
        with page.expect_download() as download:
            page.click("#snapshot")
        download.value.save_as(tmp_path / "snapshot.png")
    shown = cv2.imread(str(tmp_path / "snapshot.png"))
    assert shown.shape == (3072, 4096, 3)
    masked = (np.abs(shown.astype(int) - cv2.resize(picture, (4096, 3072), interpolation=cv2.INTER_AREA)) > 40).any(2)
    middle = np.argwhere(cv2.erode(masked.astype(np.uint8), np.ones((9, 9), np.uint8))).mean(0)[::-1]
    box = detector.detect(picture)[0].box * 4096 / 8160
    assert np.abs(middle - (box[:2] + box[2:]) / 2).max() < 0.15 * (box[2] - box[0])


def test_a_connection_that_falls_silent_is_told(browser: Any, clip: Path, detector: SharedDetector) -> None:
    from playwright.sync_api import expect

    with running(server.make_app(Capture(clip, detector))) as port:
        page = browser.new_page()
        opened_sockets: list[Any] = []
        page.route_web_socket("**/ws*", lambda socket: opened_sockets.append(socket))  # it opens, and answers nothing
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#notice")).to_have_text("No connection to the server; trying again.", timeout=20000)
        page.wait_for_timeout(2500)
        assert len(opened_sockets) > 1
        page.close()


def test_the_page_draws_as_the_lens_does(
    browser: Any,
    bent: tuple[np.ndarray, np.ndarray],
    calibrated: SharedDetector,
    clip: Path,
    photo: bytes,
    tmp_path: Path,
) -> None:
    from playwright.sync_api import expect

    picture = bent[1]
    with (
        running(server.make_app(Capture(clip, calibrated))) as port,
        opened(browser, f"http://127.0.0.1:{port}/") as page,
    ):
        expect(page.locator("#notice")).to_contain_text("the calibration is for images of 640x480, this one is 256x256")
        page.uncheck("#boxes")
        page.uncheck("#axes")
        page.evaluate(DROP, [list(cv2.imencode(".png", picture)[1].tobytes()), "bent.png"])
        expect(page.locator("#faces td:nth-child(9)")).to_have_count(1)
        expect(page.locator("#notice")).to_be_hidden()
        with page.expect_download() as download:
            page.click("#snapshot")
        download.value.save_as(tmp_path / "snapshot.png")
        shown = np.abs(cv2.imread(str(tmp_path / "snapshot.png")).astype(int) - picture).max(2) > 12
        looked = look(calibrated.detect(picture, LENS.intrinsics), 0.0, None, LENS)
        overlaps = []
        for faces in (looked.seen, looked.faces):
            wanted = (draw_faces(picture, faces, boxes=False, axes=False) != picture).any(2)
            overlaps.append((shown & wanted).sum() / (shown | wanted).sum())
        assert overlaps[0] > 0.9 > 0.8 > overlaps[1]
        page.evaluate(DROP, [list(photo), "other.jpg"])
        expect(page.locator("#notice")).to_contain_text("this one is 512x512")


def test_the_page_tells_what_is_wrong(
    browser: Any, camera: type[Camera], detector: SharedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "RETRY", 1.0)
    camera.frames, camera.error = 5, ValueError("camera 0 does not open: there is none of this number")
    from playwright.sync_api import expect

    with (
        running(server.make_app(Capture(0, detector), "secret")) as port,
        opened(browser, f"http://127.0.0.1:{port}/?token=secret") as page,
    ):
        notice = page.locator("#notice")
        expect(notice).to_contain_text("camera 0 gives no more frames")
        expect(page.locator("#view")).to_have_class("lost")
        expect(page.locator("#count")).to_have_text("–")
        expect(page.locator("#faces tr")).to_have_count(0)
        camera.frames = 1000
        expect(notice).to_contain_text("camera 0 does not open")
        expect(notice).to_be_hidden()  # it is back
        expect(page.locator("#view")).not_to_have_class("lost")
        expect(page.locator("#count")).to_have_text("1")
        assert page.url == f"http://127.0.0.1:{port}/", "the token is not left in the address"


def test_the_page_asks_for_the_token(browser: Any, clip: Path, detector: SharedDetector) -> None:
    from playwright.sync_api import expect

    with running(server.make_app(Capture(clip, detector), "secret")) as port:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#notice")).to_contain_text("this server asks for a token")
        page.goto(f"http://127.0.0.1:{port}/?token=secret")
        expect(page.locator("#faces tr")).to_have_count(1)
        tab = context.new_page()  # as a bookmark of the page opens it
        tab.goto(f"http://127.0.0.1:{port}/")
        expect(tab.locator("#faces tr")).to_have_count(1)
        context.close()


def test_nothing_of_torch_is_imported(client: TestClient) -> None:
    code = "import sys; import img2pose_edge.live.server, img2pose_edge.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; import img2pose_edge.cli; assert 'starlette' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
