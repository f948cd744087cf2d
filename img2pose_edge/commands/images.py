"""Photographs that commands are given, and pictures that they write."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from img2pose_edge.files import real, write_file
from img2pose_edge.preprocess import IMAGE_SUFFIXES, is_image, is_named_image, load_image
from img2pose_edge.progress import track


def find_images(patterns: Sequence[str], without: Path | None = None) -> list[Path]:
    """Image files named by paths, folders (searched below) and globs, in order, without repeats.

    Args:
        patterns: what to look for.
        without: a file or folder; where it lies below a folder that is searched, it and what it holds is left out.

    Raises:
        FileNotFoundError: for a folder without images, or a pattern that matches nothing.
        ValueError: for an empty one.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if not pattern:
            raise ValueError("the path of an image is empty")
        path = Path(pattern)
        if path.is_dir():
            matches = search(path, without)
            if not matches:
                raise FileNotFoundError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in folder {path}")
        elif path.exists() or not glob.has_magic(pattern):
            matches = [path]
        else:
            matches = []
            for named in map(Path, sorted(glob.glob(pattern, recursive=True))):
                matches += search(named, without) if named.is_dir() else [named] if named.is_file() else []
            if not matches:
                raise FileNotFoundError(f"no image matches {pattern}")
        found.update(dict.fromkeys(matches))
    return list(found)


def search(folder: Path, without: Path | None) -> list[Path]:
    """Images in a folder and below, but for ``without``, a file or folder below it, and what that holds; folders that
    cannot be read and links that lead nowhere are among them, to be told as images are."""
    outer, inner = real(folder), without and real(without)
    hidden = inner if inner and outer in inner.parents else None
    closed: list[Path] = []
    found: list[Path] = []
    for place, _, names in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        paths = [Path(place, name) for name in names]
        found += [path for path in paths if is_image(path) or (is_named_image(path) and not os.path.exists(path))]
    return [path for path in sorted(found + closed) if hidden not in (real(path), *real(path).parents)]


class Photographs(Sequence[np.ndarray]):
    """Image files as (H, W, 3) uint8 BGR, each read when it is looked at: a folder of them may not fit in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return load_image(self._paths[index])


def check_picture_suffix(path: Path) -> None:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"cannot write a picture as {path}: use {', '.join(IMAGE_SUFFIXES)}")


def write_picture(path: Path, image: Any) -> None:
    """Encode by the path's suffix and write atomically."""
    check_picture_suffix(path)
    suffix = path.suffix.lower()
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"cannot write {path}: {suffix} does not hold a picture of {image.shape[1]}x{image.shape[0]}")
    write_file(path, data.tobytes())


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="photographs: files, folders, globs")
    parser.add_argument("--count", type=int, default=96, help="of them that are used, evenly spread")
    parser.add_argument("--input-size", type=int, default=640, metavar="PX", help="longest side they are shown at")


def spread_pictures(options: argparse.Namespace) -> Iterator[np.ndarray]:
    """``--count`` of the ``--images``, evenly spread, as the network sees them; read when they are asked for, so that a
    wrong checkpoint is told first."""
    from img2pose_edge.preprocess import letterbox

    if options.count < 1:
        raise ValueError(f"count must be at least 1, got {options.count}")
    if options.input_size < 64:
        raise ValueError(f"input_size must be at least 64 pixels, got {options.input_size}")
    paths = find_images(options.images)
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, options.count).round().astype(int))]
    return (letterbox(load_image(path), options.input_size, 64)[0] for path in track(chosen, "reading"))
