"""A progress bar with rate and ETA on stderr (the runtime depends on no terminal library)."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def format_seconds(seconds: float) -> str:
    """``75 -> '1:15'``, ``3675 -> '1:01:15'``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def track(items: Iterable[T], label: str, start: int = 0, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items``, showing a bar when stderr is a terminal (a line a minute when it is not).

    However the loop ends, the bar's line is ended, so that what is told next has one of its own.

    Args:
        items: what to iterate over.
        label: what is being done.
        start: how many were done before the first of ``items`` (a resumed run).
        total: how many there are, where ``items`` does not know; it may be off, and without it there is no bar.
    """
    end = start + len(items) if isinstance(items, Sized) else total
    live = sys.stderr is not None and sys.stderr.isatty()
    began = shown = time.monotonic()
    number = 0
    try:
        for item in items:
            yield item
            number += 1
            now = time.monotonic()
            if sys.stderr is not None and now - shown >= (0.1 if live else 60):
                shown = now
                _show(label, start, number, end, now - began, live)
    finally:
        if live and number:
            _show(label, start, number, end, time.monotonic() - began, live)
            sys.stderr.write("\n")


def _show(label: str, start: int, number: int, end: int | None, seconds: float, live: bool) -> None:
    rate, done = number / max(seconds, 1e-9), start + number
    columns = shutil.get_terminal_size().columns - 1  # a longer line would wrap, and not be drawn over
    wide = 24 if columns > 100 else 10
    room = max(columns - wide - 46, 8)
    if live and len(label) > room:
        label = f"…{label[1 - room :]}"
    text = f"{label} {done}  {rate:.1f}/s  {format_seconds(seconds)} gone"
    if end:
        bar = "#" * int(wide * min(done / end, 1))
        left = format_seconds(max(end - done, 0) / rate)
        text = f"{label} [{bar:<{wide}}] {done}/{end}  {rate:.1f}/s  {format_seconds(seconds)} gone, {left} to go"
    sys.stderr.write(f"\r{text[:columns]:<{columns}}" if live else f"{text}\n")
    sys.stderr.flush()
