"""Any labelled data set into one LMDB of records, with the poses' mean and deviation beside it."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from img2pose_edge.files import write_file
from img2pose_edge.preprocess import decode_image
from img2pose_edge.progress import track
from img2pose_edge.training.complete import check_face, complete_face, is_sound
from img2pose_edge.training.data import Record, as_bytes, make_record
from img2pose_edge.training.formats import Source, read_sources
from img2pose_edge.training.store import LmdbReader, LmdbWriter

BATCH = 128
"""Images read at once and written in one transaction."""
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Prepared:
    """What came of it: the store, its records, why images were skipped, files of statistics if faces are posed."""

    path: Path
    records: list[Record]
    skipped: list[str]
    statistics: list[Path]


def read_item(source: Source, longest: int) -> tuple[dict[str, Any], bytes]:
    """Label and encoded image of one source, checked and completed; shrunk to ``longest`` pixels if larger.

    Raises:
        OSError, ValueError: naming what is wrong.
    """
    data = source.image()
    image = decode_image(data, source.name)
    height, width = image.shape[:2]
    if source.size and source.size != (width, height):
        raise ValueError(f"it is {width}x{height}; its label says {source.size[0]}x{source.size[1]}")
    faces = []
    for number, face in enumerate(source.faces()):
        try:
            if source.posed:
                check_face(face, width, height)
            faces.append(dict(face) if source.posed else complete_face(face, width, height))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"face {number}: {error}") from error
    factor = longest / max(width, height) if longest else 1.0
    if factor < 1:
        shape = max(1, round(width * factor)), max(1, round(height * factor))
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
        scale = np.array([image.shape[1] / width, image.shape[0] / height])
        for face in faces:
            moved = {k: (np.array(face[k], float).reshape(-1, 2) * scale).round(2) for k in PIXELS if k in face}
            face |= {k: (v.ravel() if k == "box" else v).tolist() for k, v in moved.items()}
        # What touched the picture by less than a hundredth of a pixel is outside now.
        faces = [face for face in faces if is_sound(face, *shape)]
    return {"image": source.name, "width": image.shape[1], "height": image.shape[0], "faces": faces}, data


PIXELS = ("box", "landmarks", "landmarks68")
"""Fields of a face that are in pixels."""


def prepare(
    source: Path, out: Path, *, images: Path | None = None, longest: int = 0, skip_bad: bool = False, workers: int = 2
) -> Prepared:
    """Write a data set as one LMDB; the same call goes on after an interruption.

    Args:
        source: see ``formats.read_sources``.
        images: see ``formats.read_sources``.
        out: path ending in ``.lmdb``. ``<stem>_pose_mean.npy`` and ``<stem>_pose_stddev.npy`` (6,) come beside it:
            of poses in proposals' cameras, as the full model normalizes them.
        longest: shrink images to this longest side, pixels; 0 keeps them.
        skip_bad: leave out, and name, images that cannot be used, instead of stopping at the first.
        workers: threads that read and decode.

    Raises:
        FileNotFoundError, ValueError: if the data set is missing, unknown, empty, or an image of it is bad.
    """
    if out.suffix != ".lmdb":
        raise ValueError(f"the output must end in .lmdb, got {out}")
    for name, value, least in (("longest", longest, 0), ("workers", workers, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    sources = read_sources(source, images)
    identity = identify(source, sources, longest)
    writer = LmdbWriter(out, f"{identity:08x}", len(sources))

    def load(item: Source) -> tuple[dict[str, Any], bytes] | str:
        try:
            return read_item(item, longest)
        except (OSError, ValueError, TypeError, KeyError) as error:
            return f"{item.name}: {error}"

    try:
        with ThreadPoolExecutor(workers) as pool:
            starts = range(writer.done, len(sources), BATCH)
            for start in track(starts, f"batches of {BATCH} images", writer.done // BATCH):
                batch = list(pool.map(load, sources[start : start + BATCH]))
                bad = [item for item in batch if isinstance(item, str)]
                if bad and not skip_bad:
                    raise ValueError(f"{bad[0]} (--skip-bad leaves such images out)")
                writer.write(batch)
        skipped = list(writer.meta["skipped"])
    finally:
        writer.close()
    records = [make_record(label) for label in LmdbReader(out).labels]
    if not records:
        out.unlink()
        raise ValueError(f"{source} has no image that can be used; {len(skipped)} were skipped, as {skipped[0]}")
    return Prepared(out, records, skipped, write_statistics(records, out))


def identify(source: Path, sources: list[Source], longest: int) -> int:
    """What tells a data set from others: its images' names, files and labels (corrected ones make another), and the
    size. Not where it lies: a folder may be moved."""
    marks = [s.name if s.checksum is None else f"{s.name} {s.checksum:08x}" for s in sources]
    names = "\n".join([*marks, f"longest {longest}"])
    identity = zlib.crc32(as_bytes(names))
    listed = source / "labels.jsonl" if source.is_dir() else source
    files = [listed] if listed.is_file() and listed.suffix != ".lmdb" else []
    files += [s.label for s in sources if s.label]
    for path in track(files, "reading labels"):
        identity = zlib.crc32(path.read_bytes(), identity)
    for item in track(sources, "looking at images"):
        identity = zlib.crc32(file_state(item).encode(), identity)
    return identity


def file_state(source: Source) -> str:
    """Size and time of an image's file, as of one that was replaced they are others; empty where there is none."""
    try:
        state = source.file().stat() if source.file else None
    except (OSError, ValueError, TypeError, KeyError):  # told when it is read
        state = None
    return f"{state.st_size} {state.st_mtime_ns}" if state else ""


def write_statistics(records: list[Record], out: Path) -> list[Path]:
    from img2pose_edge.training.full_objective import pose_statistics
    from img2pose_edge.training.networks.full import ExactConvention

    if sum(int((~r.faces.ignore & (r.faces.trust > 0)).sum()) for r in records) < 2:
        return []
    paths = [out.with_name(f"{out.stem}_pose_{name}.npy") for name in ("mean", "stddev")]
    for path, values in zip(paths, pose_statistics(records, ExactConvention()), strict=True):
        data = io.BytesIO()
        np.save(data, values.numpy())
        write_file(path, data.getvalue())
    return paths
