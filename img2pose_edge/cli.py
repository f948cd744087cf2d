"""Command line: ``img2pose-edge COMMAND``; ``--help`` lists the commands."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from img2pose_edge import __version__
from img2pose_edge.commands import export, measure, run, train
from img2pose_edge.completion import SHELLS, PrintCompletion


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="img2pose-edge", description="Every face in a picture with its 6DoF pose.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, choices=SHELLS, help="print what the shell sources to complete"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (run, train, export, measure):
        group.add_commands(commands)
    return parser


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """What the library logs, from INFO on, goes to standard error while a command runs."""
    logger, handler = logging.getLogger("img2pose_edge"), logging.StreamHandler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


EXTRAS = {
    "train": ("torch", "torchvision", "lmdb", "onnx2torch", "scipy"),
    "export": ("onnx",),
    "quantize": ("torchao", "onnxscript"),
    "export-tflite": ("litert_torch",),
    "bench": ("matplotlib", "jinja2"),
    "demo": ("skimage",),
}
"""Modules that only some commands need, by what installs them."""
OWN_EXTRAS = {"export": "export", "quantize": "quantize", "sensitivity": "quantize"}
"""Of commands that need torch as training does, and more."""


def nobody_reads() -> int:
    """Of a pipe, as behind ``| head``: what shells tell that by."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter has yet to write
    return 141


def main(arguments: Sequence[str] | None = None) -> int:
    if sys.stderr is None:  # closed, or a program without a console
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        options = build_parser().parse_args(arguments)
    except BrokenPipeError:
        return nobody_reads()
    except OSError as error:  # what --print-completion prints has no room
        print(f"error: {error}", file=sys.stderr)
        return 1
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with log_to_stderr():
            status = int(options.do(options))
            print(end="", flush=True)  # a pipe that is closed is told here, not when the interpreter ends
            return status
    except ModuleNotFoundError as error:
        own = OWN_EXTRAS.get(options.do.__name__)
        extra = next((own or extra for extra, modules in EXTRAS.items() if error.name in modules), None)
        print(f"error: {error}" + (f' (pip install "img2pose-edge[{extra}]")' if extra else ""), file=sys.stderr)
        return 1
    except BrokenPipeError:
        return nobody_reads()
    except (ValueError, OSError, ImportError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
