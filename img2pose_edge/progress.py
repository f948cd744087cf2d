"""A progress bar with rate and ETA on stderr (the runtime depends on no terminal library)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def format_seconds(seconds: float) -> str:
    """``75 -> '1:15'``, ``3675 -> '1:01:15'``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def track(items: Sequence[T], label: str, start: int = 0) -> Iterator[T]:
    """Iterate over ``items``, showing a bar when stderr is a terminal (a line a minute when it is not).

    Args:
        items: what to iterate over.
        label: what is being done.
        start: how many were done before the first of ``items`` (a resumed run).
    """
    end = start + len(items)
    live = sys.stderr.isatty()
    began = shown = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        last = number == len(items)
        if now - shown < (0.1 if live else 60) and not (last and live):
            continue
        shown = now
        rate = number / max(now - began, 1e-9)
        done = start + number
        bar = "#" * int(24 * done / end)
        text = (
            f"{label} [{bar:<24}] {done}/{end}  {rate:.1f}/s  "
            f"{format_seconds(now - began)} gone, {format_seconds((end - done) / rate)} to go"
        )
        print(("\r" if live else "") + text, end="" if live and not last else "\n", file=sys.stderr, flush=True)
