"""Records in one LMDB: every image's bytes and label, written in order, readable by many processes.

Keys: ``meta`` (JSON: items, done, complete, source, skipped); ``label/00000000`` (a record of ``labels.jsonl``,
with the checksum of its image) and ``image/00000000`` (the encoded image). A skipped item has no record.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from img2pose_edge.files import real
from img2pose_edge.preprocess import decode_image
from img2pose_edge.progress import track

MAP_SIZE = 1 << 40
"""Most bytes that a store may grow to; address space, not disk."""


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise ImportError('.lmdb data sets need lmdb: pip install "img2pose-edge[train]"') from error
    return lmdb


_READING: dict[tuple[int, Path], Any] = {}
_LOCK = threading.Lock()


def _reading(path: Path) -> Any:
    """The environment of a store in this process; LMDB allows one, whoever reads. ``ValueError`` if it is cut off."""
    key = os.getpid(), real(path)
    with _LOCK:
        if key not in _READING:
            environment = _lmdb().open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
            whole = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if path.stat().st_size < whole:  # whoever reads beyond a file's end is killed
                environment.close()
                raise ValueError(f"{path} is cut off: it has {path.stat().st_size} of {whole} bytes")
            _READING[key] = environment
        return _READING[key]


def _close(path: Path) -> None:
    with _LOCK:
        environment = _READING.pop((os.getpid(), real(path)), None)
    if environment is not None:
        environment.close()


class LmdbWriter:
    """Writes a store batch by batch; what a batch wrote survives whatever happens after it.

    Raises:
        ValueError: if ``path`` holds another data set or is no store of ours.
    """

    def __init__(self, path: Path, source: str, items: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lmdb = _lmdb()
        try:
            if path.is_file() and path.stat().st_size:
                _reading(path)  # says if it is cut off
            _close(path)
            self._env = lmdb.open(str(path), subdir=False, map_size=MAP_SIZE)
            with self._env.begin() as transaction:
                meta, used = transaction.get(b"meta"), transaction.stat()["entries"] > 0
        except lmdb.Error as error:
            raise ValueError(f"{path} is there but cannot be opened as LMDB: {error}") from error
        new: dict[str, Any] = {"items": items, "done": 0, "complete": False, "source": source, "skipped": []}
        self.meta: dict[str, Any] = json.loads(meta) if meta else new
        known = self.meta["source"].split()[-1]  # once behind the name of a folder, which may be another now
        if (used and not meta) or (known, self.meta["items"]) != (source, items):
            self._env.close()
            raise ValueError(f"{path} holds another data set, or other labels: remove it or choose another --out")

    @property
    def done(self) -> int:
        """Items that were handled already, by this process or an earlier one."""
        return int(self.meta["done"])

    def write(self, batch: list[tuple[dict[str, Any], bytes] | str]) -> None:
        """Add the next items: label and image, or why one was skipped."""
        meta = {**self.meta, "skipped": [*self.meta["skipped"], *(item for item in batch if isinstance(item, str))]}
        meta["done"] = self.done + len(batch)
        meta["complete"] = meta["done"] == meta["items"]
        try:
            with self._env.begin(write=True) as transaction:
                for number, item in enumerate(batch, self.done):
                    if isinstance(item, str):
                        continue
                    label, image = item
                    text = json.dumps({**label, "crc32": zlib.crc32(image)}, separators=(",", ":"))
                    transaction.put(b"label/%08d" % number, text.encode())
                    transaction.put(b"image/%08d" % number, image)
                transaction.put(b"meta", json.dumps(meta).encode())
        except _lmdb().Error as error:
            raise OSError(f"cannot write {self._path}; is the disk full? {error}") from error
        self.meta = meta

    def close(self) -> None:
        try:
            self._env.sync()
        except _lmdb().Error as error:
            raise OSError(f"cannot write {self._path}; is the disk full? {error}") from error
        finally:
            self._env.close()


class LmdbReader:
    """A finished store. Reading verifies every image's checksum once.

    Attributes:
        labels: of all records, in order; empty dicts for the damaged ones.
        checksums: of all records.
        damaged: what is wrong with which record.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no store of ours, or not finished.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no data set {path}")
        self._path = path
        self.labels: list[dict[str, Any]] = []
        self.checksums: list[int] = []
        self.damaged: dict[int, str] = {}
        lmdb = _lmdb()
        try:
            with _reading(path).begin() as transaction:
                meta = json.loads(transaction.get(b"meta") or b"{}")
                if "complete" not in meta:
                    raise ValueError(f"{path} is an LMDB, but none that 'img2pose-edge prepare' wrote")
                if not meta["complete"]:
                    done = f"{meta['done']} of {meta['items']} images"
                    raise ValueError(f"{path} is not finished ({done}): run the same 'img2pose-edge prepare' again")
                self._keys = [bytes(k)[6:] for k in transaction.cursor().iternext(values=False) if k[:6] == b"label/"]
                for number, key in enumerate(track(self._keys, "checking")):
                    text = transaction.get(b"label/" + key)
                    self.checksums.append(zlib.crc32(text))
                    self.labels.append(self._check(number, text, key, transaction))
        except lmdb.Error as error:
            raise ValueError(f"{path} cannot be read as LMDB: {error}") from error
        finally:
            _close(path)  # a process that is forked from this one must open it itself

    def _check(self, number: int, text: bytes, key: bytes, transaction: Any) -> dict[str, Any]:
        name = f"record {int(key)} of {self._path}"
        try:
            label = dict(json.loads(text))
            name = f"{name} ({label['image']})"
            image = transaction.get(b"image/" + key)
            if image is None or zlib.crc32(image) != label.pop("crc32"):
                raise ValueError("its image is damaged")
        except (ValueError, KeyError, TypeError) as error:
            self.damaged[number] = f"{name}: {error}"
            return {}
        return label

    def label(self, number: int) -> dict[str, Any]:
        """Label of a record, by position. Raises ``ValueError`` if it is damaged."""
        if number in self.damaged:
            raise ValueError(self.damaged[number])
        return self.labels[number]

    def image(self, number: int) -> bytes:
        """Encoded image of a record, by position."""
        self.label(number)
        with _reading(self._path).begin() as transaction:
            return bytes(transaction.get(b"image/" + self._keys[number]))

    def __getitem__(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 BGR image of a record, by position."""
        label, name = self.label(number), f"record {int(self._keys[number])} of {self._path}"
        image = decode_image(self.image(number), name)
        if image.shape[:2] != (label["height"], label["width"]):
            told = f"{label['width']}x{label['height']}"
            raise ValueError(f"{name} is {image.shape[1]}x{image.shape[0]}; its label says {told}")
        return image
