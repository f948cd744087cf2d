"""Pictures as people have them to the network's input: loading, then letterboxing, nothing else."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from img2pose_edge.header import ORIENTATION, ends, webp_orientation

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MIN_SIDE = 8
SHOWN = 300
"""Letters of a path that errors repeat: somebody may pass the picture itself as text."""
PAD_VALUE = 127
"""About the networks' pixel mean: padding is nothing to them."""


def is_named_image(path: Path) -> bool:
    """Whether a path in a folder is an image's by its name; macOS keeps notes in ``._`` files beside them."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


def is_image(path: Path) -> bool:
    """Whether a path in a folder is a file that is an image by its name."""
    return is_named_image(path) and path.is_file()


def load_image(source: Any) -> np.ndarray:
    """An image in any accepted form as (H, W, 3) uint8 BGR.

    Args:
        source: a path; the bytes of an encoded image; a PIL image; or a uint8 array, (H, W) or (H, W, 1)
            grey, (H, W, 3) BGR or (H, W, 4) BGRA, contiguous or not. Files are turned upright by their
            EXIF orientation.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if it is not a readable, whole image, or of another dtype or shape.
        TypeError: if it is nothing of the above.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        if not name:
            raise ValueError("the path of an image is empty")
        if os.path.isdir(name):  # unlike Path's these take a text that is too long for a path
            what = ", not an image" if os.access(name, os.R_OK) else " that cannot be read"
            raise ValueError(f"{name} is a folder{what}")
        if not os.path.exists(name):
            raise FileNotFoundError(f"no image {name[:SHOWN]}{'…' if len(name) > SHOWN else ''}")
        return decode_image(Path(name).read_bytes(), name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return decode_image(data, f"image bytes ({len(data)} long)")
    if hasattr(source, "convert") and hasattr(source, "getexif"):  # PIL, which we do not depend on
        orientation = 1
        try:
            source.load()  # first: PIL turns a TIFF while it loads, and drops its tag
            with suppress(Exception):  # metadata that are damaged, in whatever way, turn nothing
                orientation = source.getexif().get(ORIENTATION, 1)
            if source.mode[0] in "IF":  # 16 or 32 bits, which converting would clip
                return _from_array(np.asarray(source))
            return _from_array(upright(np.asarray(source.convert("RGB"))[..., ::-1], orientation))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"the PIL image cannot be read: {error}") from error
    kind = f"{type(source).__module__}.{type(source).__name__}"
    raise TypeError(f"an image must be a path, bytes, numpy array or PIL image, got {kind}")


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode the bytes of an image file, refusing what OpenCV would silently fill with grey."""
    if not data:
        raise ValueError(f"{name} is empty")
    short = data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if short or not ends(data):
        raise ValueError(f"{name} is truncated: the end of the image is missing")
    webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    values = np.frombuffer(data, np.uint8)
    try:
        # OpenCV 4.12 and older wrap TIFF's floats around, and any takes those of 0 to 1 of others for black.
        if data.startswith((b"II*\0", b"MM\0*", b"PF", b"Pf", b"#?RADIANCE", b"#?RGBE")):
            stored = cv2.imdecode(values, cv2.IMREAD_UNCHANGED)
            if stored is not None and stored.dtype.kind == "f":
                return _from_array(stored, name)
        # WebP is turned by OpenCV from 4.13 on, other formats by any.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if webp else cv2.IMREAD_COLOR
        image = cv2.imdecode(values, flags)
    except cv2.error as error:
        raise ValueError(f"{name} cannot be decoded: {error.err}") from error
    if image is None:
        raise ValueError(f"{name} is not an image that OpenCV can decode (JPEG, PNG, WebP, BMP, TIFF, …)")
    return _from_array(upright(image, webp_orientation(data)) if webp else image, name)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """An (H, W, 3) image as it is to be seen, in memory in order.

    Args:
        orientation: EXIF's, 1 to 8; others are as 1.
    """
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _from_array(image: np.ndarray, name: str = "image") -> np.ndarray:
    if image.dtype != np.uint8:
        detail = ""
        if image.dtype.kind == "f" and image.size and not np.isfinite(image).all():
            detail = " with NaN or infinite values"
        raise ValueError(f"{name} must be uint8 (0 to 255), got {image.dtype}{detail}: scale and convert it first")
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(f"{name} must be (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA, got shape {image.shape}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"{name} is {image.shape[1]}x{image.shape[0]} pixels: no face fits, at least {MIN_SIDE}x{MIN_SIDE} needed"
        )
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if channels == 4:
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
    return image


def letterbox_factor(
    height: int, width: int, longest: int, shortest: int = 0, fixed: tuple[int, int] | None = None
) -> float:
    """Pixels per pixel of an image of this size that :func:`letterbox` resizes it by, but for rounding."""
    factor = min(shortest / min(height, width) if shortest else 1.0, longest / max(height, width))
    return min(factor, fixed[0] / height, fixed[1] / width) if fixed else factor


def letterbox(
    image: np.ndarray, longest: int, multiple: int, shortest: int = 0, fixed: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink an image so that its longest side is at most ``longest``; pad right and bottom.

    Args:
        image: (H, W, 3) uint8.
        longest: pixels.
        multiple: padded height and width are multiples of this.
        shortest: pixels that the shorter side is brought to, as far as ``longest`` allows; 0 keeps the size
            of small images.
        fixed: height and width to fit into and to pad to, whatever ``multiple``.

    Returns:
        (H', W', 3) uint8 C-contiguous, and (2,) network pixels per image pixel along x and y.
    """
    height, width = image.shape[:2]
    factor = letterbox_factor(height, width, longest, shortest, fixed)
    new_width, new_height = max(1, round(width * factor)), max(1, round(height * factor))
    if factor != 1:
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (new_width, new_height), interpolation=method)
    right, bottom = -new_width % multiple, -new_height % multiple
    if fixed:
        right, bottom = fixed[1] - new_width, fixed[0] - new_height
    if right or bottom:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
    return np.ascontiguousarray(image), np.array([new_width / width, new_height / height])
