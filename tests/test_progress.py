"""The bar of long commands, on a terminal and beside what else is told there."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import cv2
import numpy as np
import pytest

from img2pose_edge import PoseDetector
from img2pose_edge.cli import main
from img2pose_edge.progress import track
from img2pose_edge.record import record


def told(run: Callable[[], object]) -> list[str]:
    """What a terminal shows of it, line by line: of each what stands behind the last carriage return."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    with redirect_stderr(terminal):
        run()
    return [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]


@pytest.mark.parametrize(("columns", "wide"), [(120, 24), (80, 10)])
def test_the_bar_counts_what_is_done(columns: int, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bar, rest = told(lambda: list(track(range(3), "counting")))
    assert bar.startswith(f"counting [{wide * '#'}] 3/3 ")
    assert rest == ""
    (long, _) = told(lambda: list(track(range(3), 30 * "long/" + "name.mp4")))
    assert "/name.mp4 [" in long
    assert long.rstrip().endswith(" to go")
    assert len(bar) == len(long) == columns - 1, "a line that wraps is not drawn over"
    assert told(lambda: list(track([], "counting"))) == [""]


def fails_in_the_loop() -> None:
    for number in track(range(100), "working"):
        time.sleep(0.06)
        if number == 4:
            raise ValueError("of the loop")


def fails_in_what_is_given() -> None:
    for _ in track((1 // (4 - number) for number in range(9)), "working"):
        time.sleep(0.06)


@pytest.mark.parametrize("run", [fails_in_the_loop, fails_in_what_is_given])
def test_whatever_ends_the_loop_ends_the_line(run: Callable[[], None]) -> None:
    def command() -> None:
        try:
            run()
        except (ValueError, ZeroDivisionError) as error:
            print(f"error: {error}", file=sys.stderr)

    bar, message, rest = told(command)
    assert " 4/100 " in bar or bar.startswith("working 4 ")
    assert message.startswith("error: ")
    assert rest == ""


def test_a_first_item_that_fails_shows_no_bar() -> None:
    def command() -> None:
        for _ in track(range(3), "working"):
            return

    assert told(command) == [""]


def test_errors_of_a_command_have_their_own_line(astronaut: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in enumerate((astronaut, astronaut, astronaut[:300])):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    arguments = ["video", str(folder), "--csv", str(tmp_path / "a.csv"), "--threads", "1"]
    bar, broken, error, rest = told(lambda: main(arguments))
    assert bar.startswith("…")
    assert "/frames [" in bar
    assert "2/3" in bar
    assert broken == f"{tmp_path / 'a.csv'}: broken off after 2 frames"
    assert error.startswith("error: ")
    assert "changes size at frame 2" in error
    assert rest == ""


def test_the_library_shows_a_bar_only_where_it_is_asked_for(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((64, 64, 3), np.uint8))
    detector = PoseDetector(threads=1)
    assert told(lambda: record(tmp_path, detector)) == [""]
    assert "1/1" in told(lambda: record(tmp_path, detector, progress=True))[0]
