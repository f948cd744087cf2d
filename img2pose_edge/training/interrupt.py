"""Ctrl-C and SIGTERM between two steps of a run, so that its state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = signal.SIGINT, signal.SIGTERM


@contextmanager
def kept_signals() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM are written to, for the interrupted code to look at when it suits; a second one
    raises KeyboardInterrupt at once. What was ignored stays ignored, as Ctrl-C is by what a script runs in the
    background. In other threads than the main one, which alone gets signals, the list stays empty."""
    came: list[int] = []

    def keep(number: int, _: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, keep)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
