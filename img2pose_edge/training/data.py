"""Labelled photographs: a folder with ``labels.jsonl`` and a cache of decoded pixels, or one LMDB."""

from __future__ import annotations

import codecs
import json
import math
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from img2pose_edge import geometry
from img2pose_edge.files import real
from img2pose_edge.pose_references import project_face_box
from img2pose_edge.preprocess import load_image
from img2pose_edge.progress import track
from img2pose_edge.training.complete import check_face
from img2pose_edge.training.store import LmdbReader

T = TypeVar("T")

HELD_OUT_ONE_IN = 40
"""One image in this many, by a checksum of its name (:func:`split`), is never trained on but validated on."""


@dataclass(frozen=True)
class Faces:
    """The F faces of one picture.

    Attributes:
        boxes: (F, 4) float64 x1, y1, x2, y2, pixels.
        local: (F, 3, 3) float64 local rotations, identity where unknown.
        trust: (F,) float64, weight of the rotation label, 0 where there is none.
        landmarks: (F, 5, 2) float64 pixels, NaN where unknown; order of ``ReferenceFace.points5``.
        ignore: (F,) bool, neither face nor background.
    """

    boxes: np.ndarray
    local: np.ndarray
    trust: np.ndarray
    landmarks: np.ndarray
    ignore: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def sizes(self) -> np.ndarray:
        """(F,) square roots of the boxes' areas, pixels."""
        return np.sqrt(np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1))

    def select(self, which: np.ndarray) -> Faces:
        return Faces(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Record:
    """One labelled image: its path below the data's root, collection (first folder below), size and faces."""

    image: str
    collection: str
    width: int
    height: int
    faces: Faces


MOST_SPREAD = 18.0
"""Degrees of disagreement beyond which a label says nothing of the rotation: teachers see who lies down as upright."""


def blend_pan(face: dict[str, Any]) -> np.ndarray:
    """Pitch, yaw, roll of a labelled face; where it looks about the vertical (``geometry.angles_to_pan``) half way to
    the ``pan`` that its ``label`` says the person was told to turn by, unless the head is beyond upright.

    Estimators that label photographs are off Pointing'04's pan by 5 degrees on average, and mostly short of it at 45:
    what they agree in is not all true; nor is where a person turned who was told to look at a mark.
    """
    pitch, yaw, roll = np.asarray(face["angles"], float)
    label = face.get("label")
    if isinstance(label, dict) and "pan" in label and abs(pitch) < 90:
        pan = np.radians(geometry.angles_to_pan(np.array([pitch, yaw, roll])) + label["pan"]) / 2
        yaw = np.degrees(np.arctan2(np.sin(pan) * np.cos(np.radians(pitch)), np.cos(pan)))
    return np.array([pitch, yaw, roll])


def parse_faces(faces: list[dict]) -> Faces:
    """Faces of one ``labels.jsonl`` record (format: README of the training data)."""
    boxes, angles, trust, landmarks, ignore = [], [], [], [], []
    for face in faces:
        box = np.asarray(face["box"], float)
        if not (box[2:] > box[:2]).all():
            continue  # no area: nothing to see
        boxes.append(box)
        angles.append(blend_pan(face) if "angles" in face else np.zeros(3))
        # Teachers that disagree by `spread` degrees are about that wrong.
        known = "angles" in face and face["spread"] <= MOST_SPREAD
        trust.append(1 / (1 + (face["spread"] / 6) ** 2) if known else 0.0)
        landmarks.append(np.asarray(face.get("landmarks", np.full((5, 2), np.nan)), float))
        ignore.append(bool(face.get("ignore", False)))
    return Faces(
        np.array(boxes).reshape(-1, 4),
        geometry.angles_to_matrix(np.array(angles).reshape(-1, 3)),
        np.array(trust),
        np.array(landmarks).reshape(-1, 5, 2),
        np.array(ignore, bool),
    )


def make_record(label: dict[str, Any]) -> Record:
    """A record from a line of ``labels.jsonl``, parsed.

    Raises:
        KeyError, TypeError, ValueError: if something is missing, misshapen, not finite or outside the image.
    """
    folders = [part for part in Path(label["image"]).parts[:-1] if part != "images"]
    collection = folders[0] if folders else ""
    width, height = whole_pixels(label["width"]), whole_pixels(label["height"])
    for number, face in enumerate(label["faces"]):
        try:
            check_face(face, width, height)
        except ValueError as error:
            raise ValueError(f"face {number}: {error}") from error
    return Record(label["image"], collection, width, height, parse_faces(label["faces"]))


def whole_pixels(side: Any) -> int:
    """A width or height of a label, which may be written as 320.0.

    Raises:
        ValueError: if it is none.
    """
    number = isinstance(side, (int, float, np.integer)) and not isinstance(side, bool)
    if not (number and 1 <= side < math.inf and side == int(side)):
        raise ValueError(f"width and height must be positive whole numbers, got {side!r}")
    return int(side)


def as_bytes(name: str) -> bytes:
    """A file's name in UTF-8, even if it is none, as names from old disks."""
    return name.encode(errors="surrogatepass")


def split(records: list[Record]) -> tuple[list[int], list[int]]:
    """Positions of the records to train on and of those held out: a fortieth, at least one with a face.

    Raises:
        ValueError: if there are not two records with a face to learn from.
    """
    marks = {i: zlib.crc32(as_bytes(r.image)) for i, r in enumerate(records)}
    useful = [i for i, r in enumerate(records) if (~r.faces.ignore).any()]
    if len(useful) < 2:
        raise ValueError(f"training needs at least two images with a face to learn from, got {len(useful)}")
    held_out = {i for i, mark in marks.items() if mark % HELD_OUT_ONE_IN == 0}
    if not held_out & {*useful} or {*useful} <= held_out:
        held_out = {min(useful, key=marks.__getitem__)}
    return [i for i in marks if i not in held_out], sorted(held_out)


def parse_lines(labels: Path, data: bytes, parse: Callable[[Any], T]) -> list[T]:
    """What ``parse`` makes of each line of JSON in ``data``, which is of the file ``labels``. Blank lines, and the mark
    that some editors put before the first one, mean nothing.

    Raises:
        ValueError: naming file and line, if a line is no JSON, or lacks what ``parse`` takes of it.
    """
    parsed = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            try:
                parsed.append(parse(json.loads(line)))
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{labels}, line {number}: {error!r}") from error
    return parsed


def read_records(labels: Path) -> list[Record]:
    """Records of a ``labels.jsonl`` file, in file order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, if a line is not a valid record.
    """
    if not labels.is_file():
        raise FileNotFoundError(
            f"no labels file {labels}: --data expects a folder with labels.jsonl and the images it names"
        )
    records = parse_lines(labels, labels.read_bytes(), make_record)
    if not records:
        raise ValueError(f"{labels} is empty: expected one image a line")
    return records


class Pixels(Protocol):
    """The images of records: (H, W, 3) uint8 BGR by position, in any process."""

    def __getitem__(self, index: int) -> np.ndarray: ...


def open_data(data: Path, cache: Path) -> tuple[list[Record], Pixels]:
    """Records and pixels of a data set.

    Args:
        data: folder with ``labels.jsonl`` and its images, which are decoded once, or a ``.lmdb`` that
            ``img2pose-edge prepare`` wrote, whose images are decoded each time.
        cache: folder for decoded pixels.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or damaged.
    """
    if data.suffix != ".lmdb":
        records = read_records(data / "labels.jsonl")
        return records, PixelCache(data, records, cache)
    store = LmdbReader(data)
    if store.damaged:
        first = "; ".join(list(store.damaged.values())[:5])
        raise ValueError(
            f"{data} has {len(store.damaged)} damaged records: {first}. A copy without them: "
            f"img2pose-edge prepare {data} --out NEW.lmdb --skip-bad"
        )
    return [make_record(label) for label in store.labels], store


def pose_from_boxes(
    boxes: geometry.Array, local: geometry.Array, intrinsics: geometry.Array
) -> tuple[geometry.Array, geometry.Array]:
    """Centre and apparent size at which each face's projected box best fits its annotated one.

    Args:
        boxes: (F, 4) pixels, numpy or torch.
        local: (F, 3, 3) local rotations.
        intrinsics: (3, 3) or (F, 3, 3).

    Returns:
        (F, 2) pixels and (F,) pixels per face unit.
    """
    xp = geometry.namespace(boxes)
    annotated = xp.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, annotated / 1.5
    for _ in range(3):
        box = project_face_box(*geometry.local_to_camera(center, size, local, intrinsics), intrinsics)
        size = size * annotated / xp.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
        center = center + ((boxes[:, :2] + boxes[:, 2:]) - (box[:, :2] + box[:, 2:])) / 2
    return center, size


def reserve(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes for which there is room: a full disk kills whoever writes to a mapped file.

    Raises:
        OSError: if there is none; no file is left.
    """
    try:
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"no room for {size / 1e9:.1f} GB of decoded pixels in {path.parent}: {error}") from error


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed have left of caches: gigabytes, not written to for an hour."""
    for path in folder.glob("pixels-*.[0-9]*"):
        with suppress(OSError):  # another process removes it, too
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


class PixelCache:
    """Decoded BGR images in one memory-mapped file: reading a crop costs no decoding.

    The file is built once (a few GB, with a progress bar) and appears only when complete.
    """

    def __init__(self, root: Path, records: list[Record], folder: Path) -> None:
        shapes = [(r.height, r.width, 3) for r in records]
        sizes = [h * w * c for h, w, c in shapes]
        starts = np.cumsum([0, *sizes]).tolist()
        files = [root / r.image for r in records]
        # A picture replaced by another is noticed.
        states = [(f.stat().st_size, f.stat().st_mtime_ns) if f.is_file() else () for f in files]
        names = "\n".join(f"{real(f)} {n} {s}" for f, n, s in zip(files, states, shapes, strict=True))
        path = folder / f"pixels-{zlib.crc32(as_bytes(names)):08x}.u8"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(folder)
            partial = path.with_suffix(f".{os.getpid()}")
            reserve(partial, starts[-1])
            pixels = np.memmap(partial, np.uint8, "r+", shape=(starts[-1],))

            def decode(number: int) -> None:
                record, start = records[number], starts[number]
                try:
                    image = load_image(files[number])
                except (OSError, ValueError) as error:
                    raise ValueError(f"{files[number]} is unreadable: {error}") from error
                if image.shape != shapes[number]:
                    found = f"{image.shape[1]}x{image.shape[0]}"
                    raise ValueError(f"{files[number]} is {found}; its label says {record.width}x{record.height}")
                pixels[start : start + sizes[number]] = image.ravel()

            try:
                with ThreadPoolExecutor() as threads:  # OpenCV decodes without the interpreter's lock
                    decoded = threads.map(decode, range(len(records)))
                    for _ in track(decoded, "decoding", total=len(records)):
                        pass
                pixels.flush()
                del pixels  # Windows renames no file that is mapped
                os.replace(partial, path)
            finally:
                with suppress(OSError):  # Windows, if it is still mapped
                    partial.unlink(missing_ok=True)
        self._path, self._shapes, self._starts = path, shapes, starts
        self._pixels: np.ndarray | None = None

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 read-only view of image ``index``."""
        if self._pixels is None:  # mapped in the process that reads, not in the one that pickles
            self._pixels = np.memmap(self._path, np.uint8, "r")
        start, shape = self._starts[index], self._shapes[index]
        return self._pixels[start : start + int(np.prod(shape))].reshape(shape)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None}
