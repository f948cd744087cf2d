"""``--print-completion SHELL``: what the shell sources to complete commands, options and paths.

The script is static: no Python starts while someone types.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh")
FILES = ("PATH", "SOURCE")
"""Names, in the help, of texts that may be paths."""


class PrintCompletion(argparse.Action):
    """Prints the script for the shell that it is given, and exits."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: argparse.Namespace, shell: Any, __: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error('completion needs shtab: pip install "img2pose-edge[completion]"')
        for action in actions(parser):
            if action.type is Path or action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        sys.stdout.write(shtab.complete(parser, shell) + "\n")
        parser.exit()


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
