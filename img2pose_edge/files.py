"""Files that are whole or not there, and those that grow."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, data: bytes, sync: bool = False) -> None:
    """Write ``data`` so that ``path`` holds either the old or the new content; missing folders are made.

    A link stays one, a file keeps its permissions; devices and pipes are written to, and so is a file whose place no
    other can take (mounted alone, or in a folder that may not be written to).

    Args:
        sync: wait until the disk has it, so that a machine without power loses neither content: of hours of work.
    """
    if descriptor(path) is not None or (path.exists() and not path.is_file()):
        write_in_place(path, data)
        return
    path = real(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EACCES, errno.EPERM) or not path.is_file():
            raise OSError(error.errno, error.strerror, str(path)) from error
        write_in_place(path, data)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def descriptor(path: Path) -> int | None:
    """The number of the open file that a path such as /dev/stdout stands for. It may be redirected to a file, in whose
    place no other may be put, and which others write to, too."""
    named = re.fullmatch(r"/dev/std(out|err)|/(?:dev|proc/self)/fd/(\d+)", str(path))
    return (int(named[2]) if named[2] else 1 if named[1] == "out" else 2) if named else None


def write_in_place(path: Path, data: bytes) -> None:
    try:
        if (number := descriptor(path)) is None:
            path.write_bytes(data)
            return
        if sys.stdout:
            sys.stdout.flush()  # what was printed before
        with open(os.dup(number), "wb") as file:
            file.write(data)
    except OSError as error:  # of a full device it does not tell which
        raise OSError(error.errno, error.strerror, str(path)) from error


def real(path: Path) -> Path:
    """The absolute path without links; of links that go round in a circle one of them, where ``Path.resolve`` raises
    (before Python 3.13) what is no ``OSError``."""
    return Path(os.path.realpath(path))


def check_writable(path: Path) -> None:
    """Raise ``OSError``, naming a file, if it could not be written: before work whose results go there."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.exists() and (descriptor(path) is not None or not path.is_file()):
        return  # a device, or a pipe that would wait for its reader
    new = not_yet(path)
    try:
        open_to_write(real(path), "ab").close()
    finally:
        remove(new)


def not_yet(path: Path) -> list[Path]:
    """What writing a file would make: it and the folders above it that are not there, the innermost first."""
    path = real(path)
    return [place for place in (path, *path.parents) if not place.exists()]


def remove(places: Iterable[Path]) -> None:
    """Remove files and empty folders, as far as that can be done."""
    for place in places:
        with suppress(OSError):
            place.rmdir() if place.is_dir() else place.unlink()


def open_to_write(path: Path, mode: str = "wb") -> BinaryIO:
    """A file without a buffer; missing folders are made.

    Args:
        mode: ``wb`` to begin anew, ``ab`` to go on at its end.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open(mode, buffering=0)  # type: ignore[return-value]
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
