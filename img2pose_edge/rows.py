"""Faces as rows of a table, one a face, in CSV or JSON lines: what was written survives an interruption."""

from __future__ import annotations

import csv
import errno
import io
import json
import operator
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from img2pose_edge.detections import check_ids
from img2pose_edge.face import Face, check_type
from img2pose_edge.files import open_to_write

COLUMNS = (
    "image", "frame", "time", "id", "score", "x1", "y1", "x2", "y2",
    "pitch", "yaw", "roll", "rx", "ry", "rz", "x_mm", "y_mm", "z_mm",
)  # fmt: skip
"""Image (name), frame (number), time (seconds) and id (of a track) where known; score; box, pixels; angles of the local
rotation, degrees; rotation vector, radians, and translation, millimetres, in the camera frame."""
WHOLE = ("frame", "id")
SUFFIXES = (".csv", ".jsonl")

Row = dict[str, Any]


def open_alone(path: Path) -> BinaryIO:
    """A file to write to, locked, so that the rows of two programs do not mingle in it; not emptied yet.

    Raises:
        OSError: naming it, if it cannot be written, or another :class:`RowWriter` has it open.
    """
    file = open_to_write(path, "ab")
    if not path.is_file():  # a pipe
        return file
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OSError(f"cannot write {path}: another program is writing it") from error
    except OSError:  # a file system without locks
        pass
    return file


def face_row(
    face: Face, image: str | None = None, frame: int | None = None, time: float | None = None, id: int | None = None
) -> Row:
    """One face as plain numbers, keys and units those of :data:`COLUMNS`; what is not known is None.

    Raises:
        TypeError: if it is no face, or frame or id is no whole number.
    """
    check_type([face])
    numbers = (
        *face.box.round(2), *face.angles.round(3), *face.pose[:3].round(6), *face.translation_mm.round(2)
    )  # fmt: skip
    frame, id = (None if number is None else operator.index(number) for number in (frame, id))  # numpy's, too
    time = None if time is None else float(time)
    values = (image, frame, time, id, round(float(face.score), 4), *map(float, numbers))
    return dict(zip(COLUMNS, values, strict=True))


class RowWriter:
    """Writes faces to a ``.csv`` or ``.jsonl`` file while they come; use it in a ``with`` statement.

    Each call hands whole lines to the operating system: when the program is killed the file ends with a complete
    row, and if the machine dies :func:`read_rows` leaves out the unfinished one.
    """

    def __init__(self, path: str | PathLike[str], *, begin: bool = True) -> None:
        """
        Args:
            path: ending in ``.csv`` or ``.jsonl``; missing folders are made, an old file is replaced.
            begin: with False the old content stays until :meth:`begin`, while no other writer can have the file.

        Raises:
            ValueError: for another suffix.
            OSError: if it cannot be written, or another writer has it open (where the system can tell).
        """
        self._path = path = Path(path)
        self._csv = table_suffix(path) == ".csv"
        self._file = open_alone(path)
        if begin:
            self.begin()

    def begin(self) -> None:
        """Empty the file; a CSV gets its header."""
        if self._path.is_file():  # and no device or pipe
            self._file.seek(0)
            self._file.truncate()
        if self._csv:
            self._append(",".join(COLUMNS) + "\n")

    def write(
        self,
        faces: Sequence[Face],
        image: str | None = None,
        frame: int | None = None,
        time: float | None = None,
        ids: Sequence[int | None] | None = None,
    ) -> None:
        """Append the faces of one image.

        Args:
            faces: N of them; none writes nothing.
            image: its name, as in :data:`COLUMNS`.
            frame: number of the image.
            time: of the image, seconds.
            ids: N track numbers.

        Raises:
            ValueError: if there are not as many ids as faces, or the image's name has a line break.
            OSError: if there is no room for all rows; none of them is written then.
        """
        check_ids(faces, ids)
        if image is not None:
            image = os.fsencode(image).decode(errors="replace")  # names of files need not be UTF-8
        if image and image.splitlines() != [image]:
            raise ValueError(f"an image's name in a table must be one line, got {image!r}")
        given = [None] * len(faces) if ids is None else ids
        rows = [face_row(f, image, frame, time, i) for f, i in zip(faces, given, strict=True)]
        text = io.StringIO()
        if self._csv:
            csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
        else:
            text.writelines(json.dumps(row) + "\n" for row in rows)
        self._append(text.getvalue())

    def _append(self, lines: str) -> None:
        data = lines.encode()
        end = self._file.tell() if self._file.seekable() else None
        try:
            written = self._file.write(data)
        except OSError as error:  # it does not tell which file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if written < len(data):  # the disk has room for less: no half row stays
            if end is not None:
                self._file.seek(end)
                self._file.truncate()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(path: str | PathLike[str]) -> list[Row]:
    """Rows that :class:`RowWriter` wrote, as :func:`face_row` makes them, up to the last complete one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another suffix, other columns, or a line that is no row, by its number.
    """
    path = Path(path)
    suffix = table_suffix(path)
    # A line without its end was being written when the program stopped.
    try:
        lines = path.read_bytes().rpartition(b"\n")[0].decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no table of faces: it is not UTF-8 text") from error
    lines[-1] = lines[-1].removesuffix("\r")
    if suffix == ".csv":
        header, *lines = lines
        if header and header != ",".join(COLUMNS):
            raise ValueError(f"{path} is no table of faces: its columns are {header}, not {','.join(COLUMNS)}")
    rows = []
    for number, line in enumerate(lines, 2 if suffix == ".csv" else 1):
        if not line:
            continue
        try:
            row = _from_csv(line) if suffix == ".csv" else json.loads(line)
            if not isinstance(row, dict) or tuple(row) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        except (ValueError, TypeError, csv.Error, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no row: {error}") from error
        rows.append(row)
    return rows


def _from_csv(line: str) -> Row:
    texts = dict(zip(COLUMNS, next(csv.reader([line])), strict=True))
    row: Row = {"image": texts.pop("image") or None}
    for name, text in texts.items():
        row[name] = None if text == "" else int(text) if name in WHOLE else float(text)
    return row


def table_suffix(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a table of faces ends in {' or '.join(SUFFIXES)}, got {path}")
    return path.suffix.lower()
