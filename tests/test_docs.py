"""README and docs/: every Python block runs, every command is one, with stand-ins for cameras, boards and receivers."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import our_commands, shell_lines

from img2pose_edge import PoseTracker, read_calibration, senders
from img2pose_edge import detector as detector_module
from img2pose_edge.cli import build_parser, main
from img2pose_edge.manifest import MODELS, bundled_models
from img2pose_edge.tracking import PATIENCE
from img2pose_edge.video import Source, VideoWriter

sybil = pytest.importorskip("sybil")
from sybil.parsers.markdown import PythonCodeBlockParser  # noqa: E402

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
OTHERS = ["CONTRIBUTING.md", "CHANGELOG.md", "img2pose_edge/models/README.md", "pose_references/README.md"]
RUN = ("detect", "video", "demo")
"""Commands that run here; those of training take minutes as they are written, and are parsed."""
SMALL = {
    "train": "--steps 2 --warmup-steps 1 --batch-size 2 --crop-size 96 --validate-every 2 --device cpu",
    "quantize": "--count 2 --input-size 128 --steps 2",
    "sensitivity": "--count 1 --input-size 128",
}
"""Added to commands of a model of one's own to make them short; later options win."""
BOARD = (9, 6)
LENS = np.array([[700.0, 0, 322], [0, 700, 236], [0, 0, 1]])


# --- what the pages' readers have ----------------------------------------------------------------


def chessboard(folder: Path) -> None:
    """Ten views, 640x480, of a board with squares of 25 mm, by the camera ``LENS``."""
    folder.mkdir()
    columns, rows = BOARD[0] + 1, BOARD[1] + 1
    squares = np.indices((rows, columns)).sum(0) % 2 * 255
    board = np.pad(np.kron(squares, np.ones((50, 50))), 50, constant_values=255).astype(np.uint8)
    pixel_to_mm = np.array([[0.5, 0, -50.0], [0, 0.5, -50.0], [0, 0, 1]])  # 50 pixels a square; the first inner corner
    random = np.random.default_rng(0)
    for number in range(10):
        turn = cv2.Rodrigues(random.uniform(-0.5, 0.5, 3))[0]
        place = np.array([0, 0, 420.0]) + random.uniform(-30, 30, 3) - turn @ [100, 62, 0]
        view = LENS @ np.column_stack([turn[:, :2], place]) @ pixel_to_mm
        cv2.imwrite(str(folder / f"{number}.png"), cv2.warpPerspective(board, view, (640, 480), borderValue=255))


class Picamera2:
    """Of the library's class what the page uses, by its real names; Ctrl-C after three frames."""

    frame = np.zeros((0, 0, 3), np.uint8)

    def __init__(self) -> None:
        self.left, self.running = 3, False

    def create_video_configuration(self, main: dict[str, Any]) -> dict[str, Any]:
        assert main["format"] == "RGB888"
        return {"main": main}

    def configure(self, configuration: dict[str, Any]) -> None:
        self.size = configuration["main"]["size"]

    def start(self) -> None:
        self.running = True

    def capture_array(self, name: str = "main") -> np.ndarray:
        assert self.running
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return cv2.resize(self.frame, self.size)


@pytest.fixture(scope="module")
def belongings(tmp_path_factory: pytest.TempPathFactory, astronaut: np.ndarray) -> Path:
    """The files that the pages speak of."""
    pytest.importorskip("av")
    root = tmp_path_factory.mktemp("docs")
    image = np.ascontiguousarray(astronaut[:240, 60:380])
    for name in ("photo.jpg", "folder/a.jpg", "more/b.jpg", *(f"photos/{i}.jpg" for i in range(4))):
        (root / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(root / name), np.roll(image, len(name), axis=1))
    with VideoWriter(root / "clip.mp4", (240, 320), 10) as writer:
        for number in range(6):
            writer.write(np.roll(image, number, axis=1), number / 10)
    chessboard(root / "chessboard")
    storage = cv2.FileStorage(str(root / "camera.yml"), cv2.FILE_STORAGE_WRITE)
    for key, value in (("image_width", 640), ("image_height", 480), ("camera_matrix", LENS)):
        storage.write(key, value)
    storage.write("distortion_coefficients", np.zeros(5))
    storage.release()
    for name, bundled in (("mine", "edge-n"), ("mine-int8", "edge-n-int8")):
        for suffix in (".onnx", ".json"):
            shutil.copy(MODELS / f"{bundled}{suffix}", root / f"{name}{suffix}")
    (root / "checkpoints").symlink_to(ROOT / "checkpoints")
    Picamera2.frame = image
    return root


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(5)
        yield opened


@pytest.fixture
def reader(belongings: Path, tmp_path: Path, receiver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """In a folder with those files: cameras show the clip, GPUs are the CPU, whatever is sent goes to a socket."""
    shutil.copytree(belongings, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    open_video, load_engine, parse_address = cv2.VideoCapture, detector_module.load_engine, senders.parse_address

    def open_camera(source: Any, *backend: int) -> Any:
        is_camera = isinstance(source, int) or (" ! " in source and backend == (cv2.CAP_GSTREAMER,))
        return open_video("clip.mp4") if is_camera else open_video(source, *backend)

    def load_on_cpu(name: str, model: Any, threads: Any, options: Any = None) -> Any:
        gpu = name in ("onnxruntime:cuda", "onnxruntime:tensorrt")
        # One thread, as others may keep the cores busy.
        return load_engine("onnxruntime:cpu" if gpu else name, model, threads and 1, None if gpu else options)

    monkeypatch.setattr(cv2, "VideoCapture", open_camera)
    open_source = Source._open

    def open_ending(source: Source, *arguments: Any) -> None:
        open_source(source, *arguments)
        source._endless = False  # the clip's end is no camera's that was pulled out

    monkeypatch.setattr(Source, "_open", open_ending)
    monkeypatch.setattr(detector_module, "load_engine", load_on_cpu)
    monkeypatch.setattr(senders, "parse_address", lambda text: parse_address(text) and receiver.getsockname())
    library = types.ModuleType("picamera2")
    library.Picamera2 = Picamera2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "picamera2", library)
    return receiver


@pytest.fixture
def live(reader: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``img2pose-edge live`` on a free port, which is reached as port 8000."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "img2pose_edge.cli", "live", "--source", "clip.mp4", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
        connect = socket.create_connection

        def connect_there(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
            return connect((address[0], port if address[1] == 8000 else address[1]), *rest, **more)

        monkeypatch.setattr(socket, "create_connection", connect_there)
        yield
        server.terminate()


# --- Python --------------------------------------------------------------------------------------


def run_blocks(page: Path) -> dict[str, Any]:
    """Run a page's Python blocks in order; what they leave behind."""
    document = sybil.Sybil([PythonCodeBlockParser()]).parse(page)
    examples = list(document.examples())
    assert len(examples) == page.read_text().count("```python")
    for example in examples:
        try:
            example.evaluate()
        except KeyboardInterrupt:
            assert "while True" in example.parsed
    return dict(document.namespace)


WITH_PYTHON = [name for name, page in zip(NAMES, PAGES, strict=True) if "```python" in page.read_text()]


@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if name != "docs/reference/live.md"])
def test_python_blocks_run(name: str, reader: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    left = run_blocks(ROOT / name)
    if name in ("docs/raspberry-pi.md", "docs/jetson.md"):
        assert capsys.readouterr().out.count("pitch") >= 3  # faces of the camera's frames
    if name in ("docs/opentrack.md", "docs/raspberry-pi.md"):
        assert len(reader.recv(4096)) == 6 * 8
    if name == "docs/calibration.md":
        assert len(left["seen"]) == 10
        np.testing.assert_allclose(read_calibration("camera.yml").intrinsics, LENS, atol=5)


def test_python_blocks_of_the_live_server_run(live: None, capsys: pytest.CaptureFixture[str]) -> None:
    left = run_blocks(ROOT / "docs/reference/live.md")
    assert len(left["found"]["faces"]) == 1
    assert left["jpeg"].startswith(b"\xff\xd8")


def test_all_addresses_of_the_live_server_are_told() -> None:
    known = json.loads((ROOT / "img2pose_edge/live/static/openapi.json").read_text())["paths"]
    page = (ROOT / "docs/reference/live.md").read_text()
    told = set(re.findall(r"`(GET|POST) (/\w+)`", page))
    assert told == {(method.upper(), path) for path, methods in known.items() for method in methods}


def test_the_pages_are_built_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # as `make docs`: of what MkDocs may become
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site/reference/video.html").is_file()


# --- commands ------------------------------------------------------------------------------------


def subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._subparsers._group_actions  # type: ignore[union-attr]
    return dict(actions[0].choices)  # type: ignore[arg-type]


def check_options(words: list[str]) -> None:
    """Command and options exist, written in full (argparse takes any unique beginning)."""
    commands = subcommands()
    assert words[0] in commands, words
    known = commands[words[0]]._option_string_actions
    assert not {word.split("=")[0] for word in words if word.startswith("--")} - {*known}, words


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_parsed_and_cheap_ones_run(
    name: str, reader: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in our_commands((ROOT / name).read_text()):
        check_options(words)
        try:
            options = build_parser().parse_args(words)
        except SystemExit as stop:
            pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err}") if stop.code else None
            continue
        if words[0] in RUN and (options.model in (None, *bundled_models()) or Path(options.model).exists()):
            assert main(words) == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_commands_in_sentences_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for span in re.findall(r"`img2pose-edge ([^`…]+)", text):
        check_options(span.split())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {*re.findall(r"`make ([\w-]+)`", text), *(w[1] for w in shell_lines(text) if w[:1] == ["make"])}
    assert named <= targets
    extras = set(metadata.metadata("img2pose-edge").get_all("Provides-Extra") or ())
    asked = re.findall(r"(?:img2pose-edge|\.)\[([a-z][\w,-]*)\]", text)
    assert {extra for some in asked for extra in some.split(",")} <= extras


def test_a_model_of_your_own(reader: socket.socket) -> None:
    """The pages' way from photographs to a model, with short training, in a process that may be full of threads."""
    pytest.importorskip("torchao")
    commands = our_commands((ROOT / "docs/own-pictures.md").read_text())
    commands += our_commands((ROOT / "docs/own-model.md").read_text())
    commands = [w + shlex.split(SMALL.get(w[0], "")) for w in commands if not {"--detector", "--size"} & {*w}]
    # own-pictures.md; TFLite and a detector left out
    expected = ["annotate", "prepare", "train", "curves", "export", "detect"]
    expected += ["export"] * 2 + ["quantize"] + ["export"] * 3 + ["parity", "sensitivity", "train", "detect"]
    assert [w[0] for w in commands] == expected
    for stand_in in Path().glob("mine*"):
        stand_in.unlink()
    script = (
        f"from img2pose_edge.cli import main\nfor words in {commands}:\n"
        "    assert main(words) in ((0, 1) if words[0] == 'parity' else (0,)), words"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = ["photos/labels.jsonl", "photos.lmdb", "runs/mine/best.pt", "curves.png", "mine.onnx", "out.png"]
    for name in (
        *made,
        "mine-int8.pt",
        "mine-fp16.onnx",
        "mine-int8.onnx",
        "mine-int8-ov.xml",
        "mine-alone.onnx",
        "runs/mine-int8/best.pt",
    ):
        assert Path(name).stat().st_size > 0


def test_benchmarks_of_the_pages(reader: socket.socket, evaluation_data: Path, capsys: Capture) -> None:
    commands = [
        words
        for name in ("docs/measured.md", "docs/training.md")
        for words in our_commands((ROOT / name).read_text())
        if words[0] == "bench"
    ]
    assert len(commands) == 3
    evaluation_data.rename("EVAL")
    Path("PEERS").mkdir()
    for words in commands:
        if "--compare" in words:
            for name in words[-2:]:
                shutil.copy("report.json", name)
        else:
            words += ["--sizes", "320", "--threads", "1", "--faces", "1", "--rounds", "1"]
            words += [] if "--models" in words else ["--models", "edge-n"]
        assert main(words) == 0, f"{' '.join(words)}: {capsys.readouterr().err}"
    assert "mine-int8" in Path("report.html").read_text()


def test_an_official_checkpoint_as_the_pages_have_it(reader: socket.socket, capsys: Capture) -> None:
    for library in ("torch", "scipy", "onnxscript"):
        pytest.importorskip(library)
    from test_full import official_checkpoint

    official_checkpoint(Path())
    commands = our_commands((ROOT / "docs/from-img2pose.md").read_text())
    commands = commands[: [words[0] for words in commands].index("detect") + 1]
    assert [words[0] for words in commands] == ["convert-checkpoint", "export", "detect"]
    Path("img2pose.pth").rename(commands[0][1])
    for option, made in (("--pose-mean", "mean.npy"), ("--pose-std", "std.npy"), ("--points68", "points.npy")):
        Path(made).rename(commands[0][commands[0].index(option) + 1])
    commands[-1] += ["--input-size", "320", "--score-threshold", "0.01"]
    for words in commands:
        assert main(words) == 0, f"{' '.join(words)}: {capsys.readouterr().err}"
    assert Path("out.png").stat().st_size > 0
    same = [w for w in our_commands((ROOT / "docs/training.md").read_text()) if w[0] == "convert-checkpoint"]
    assert same == commands[:1]


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_the_pages_are_labels(name: str) -> None:
    from img2pose_edge.training.data import make_record

    for block in re.findall(r"```json\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        for line in block.splitlines():
            assert len(make_record(json.loads(line)).faces) > 0


def test_the_readme_tells_what_was_measured_and_what_holds() -> None:
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "docs/benchmark.md").read_text() in readme
    assert f"keeps its id for {PATIENCE} s" in readme
    defaults = inspect.signature(PoseTracker).parameters
    rows = dict(re.findall(r"\| `(\w+)` \| ([\d.]+) \|", (ROOT / "docs/video.md").read_text()))
    assert {name: float(value) for name, value in rows.items()} == {n: p.default for n, p in defaults.items()}


# --- figures -------------------------------------------------------------------------------------


def test_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    figures = runpy.run_path(str(ROOT / "docs/tools/figures.py"))
    figures["draw_all"](tmp_path)
    shown = set(re.findall(r"figures/(\w+\.png)", (ROOT / "docs/poses.md").read_text()))
    assert {path.name for path in tmp_path.iterdir()} == shown
