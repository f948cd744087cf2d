"""The package: what is built, installed and typed at a shell."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

import img2pose_edge
from img2pose_edge.cli import log_to_stderr, main

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "img2pose_edge": "",
    **{name: f"{name}/" for name in ("benchmarks", "export", "pose_references", "quantize")},
}
"""Folders of the tree, and below what in the package they are installed."""


def build(out: Path, *arguments: str) -> None:
    # Outside the tree, whose build folder may hold files of before.
    made = out.with_name(f"{out.name}-build")
    made.mkdir()
    config = made / "setup.cfg"
    config.write_text(f"[build]\nbuild_base={made}\n[egg_info]\negg_base={made}\n")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *arguments, str(ROOT)]
    environment = {**os.environ, "DIST_EXTRA_CONFIG": str(config)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel made of it."""
    pytest.importorskip("build")
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def contents(wheel: Path) -> dict[str, int]:
    """Checksums by name, without the list that has them, too."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist() if not item.filename.endswith("/RECORD")}


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    build(tmp_path, "--wheel")
    (direct,) = tmp_path.glob("*.whl")
    assert contents(wheel) == contents(direct)
    assert wheel.name == f"img2pose_edge-{img2pose_edge.__version__}-py3-none-any.whl"


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    wanted = set()
    for folder, below in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(f"img2pose_edge/{below}{path.relative_to(ROOT / folder).as_posix()}")
    found = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert found == wanted
    assert {
        "img2pose_edge/py.typed",
        "img2pose_edge/models/edge-n.onnx",
        "img2pose_edge/live/static/index.html",
    } < found


def test_the_wheel_leaves_room_for_what_it_needs(wheel: Path) -> None:
    """Of 100 MB on arm64 Linux numpy, OpenCV and ONNX Runtime take 76 (docs/raspberry-pi.md)."""
    assert wheel.stat().st_size < 15e6


def test_three_is_npms() -> None:
    vendor = ROOT / "img2pose_edge/live/static/vendor"
    told = (vendor / "README.md").read_text()
    script = (vendor / "three.module.min.js").read_bytes()
    assert hashlib.sha256(script).hexdigest() in told
    (version,) = re.findall(r"npm `three` 0\.(\d+)\.0", told)
    assert f'"{version}"'.encode() in script


def test_its_description_is_what_an_index_takes(built: Path) -> None:
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_installed_wheel_finds_a_face(wheel: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # numpy, OpenCV and ONNX Runtime are those here; this package is not, as files that point to it are not followed.
    needed = {str(Path(module.__file__ or "").parents[1]) for module in (np, cv2, __import__("onnxruntime"))}
    place = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    (Path(place) / "needed.pth").write_text("\n".join(needed))
    cv2.imwrite(str(tmp_path / "photo.png"), astronaut)

    def run(*arguments: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [str(python), *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import img2pose_edge as package; print(package.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path)
    (photo,) = json.loads(run("-m", "img2pose_edge", "detect", "photo.png", "--json", "-"))
    (face,) = photo["faces"]
    assert face["score"] > 0.5
    assert abs(face["yaw"]) < 15


def test_the_package_is_whole_where_a_checkout_hides_the_installed_one(tmp_path: Path) -> None:
    """As with ``pip install .`` and Python begun in the checkout; here without what an editable install adds."""
    plain = "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
    parts = "import img2pose_edge, img2pose_edge.benchmarks.bench; print(img2pose_edge.pose_references.__file__)"
    safe = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, "-c", plain + parts], cwd=ROOT, env=safe, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "pose_references" / "__init__.py"), done.stderr


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"img2pose-edge {img2pose_edge.__version__}\n"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.search(r"^## \[?(\d[^\] ]*)", changelog, re.MULTILINE)
    assert released
    assert released[1] == img2pose_edge.__version__


@pytest.mark.parametrize(
    ("shell", "start"),
    [
        ("bash", ["--noprofile", "--rcfile", ".zshrc", "-i"]),
        ("zsh", ["-i"]),
    ],
)
def test_shells_complete(shell: str, start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    (tmp_path / "photo.jpg").touch()
    # The command only tells what it was called with.
    lines = 'eval "$(cat completion)"', "PS1='$ '", "img2pose-edge() { printf '<%s>' \"$@\"; exit; }"
    system = ["autoload -Uz compinit", "compinit -u -D"] if shell == "zsh" else []
    (tmp_path / ".zshrc").write_text("\n".join([*system, *lines, ""]))
    ours, its = pty.openpty()
    place = {**os.environ, "TERM": "dumb", "ZDOTDIR": str(tmp_path)}
    process = subprocess.Popen(
        [shell, *start], stdin=its, stdout=its, stderr=its, cwd=tmp_path, start_new_session=True, env=place
    )
    os.close(its)
    said, typed, end = b"", b"img2pose-edge det\t--dr\tout.png ph\t\n", time.monotonic() + 20
    try:
        while b"jpg>" not in said and time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                said += os.read(ours, 65536)
            if typed and b"$ " in said:  # it listens
                os.write(ours, typed)
                typed = b""
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "<detect><--draw><out.png><photo.jpg>" in said.decode()


def test_without_shtab_completion_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--print-completion", "zsh"])
    assert 'pip install "img2pose-edge[completion]"' in capsys.readouterr().err


def test_commands_log_to_standard_error_and_leave_no_handler(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("img2pose_edge")
    before = logger.level, list(logger.handlers)
    with log_to_stderr():
        logging.getLogger("img2pose_edge.training.loop").info("going on")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "going on\n")
    assert (logger.level, logger.handlers) == before
