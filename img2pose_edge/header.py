"""What the bytes of an image file tell before it is decoded: how large it is, whether it is whole, and how it lies."""

from __future__ import annotations

import re

MAX_PIXELS = 50_000_000
"""150 MB once decoded."""
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG markers that begin a frame and tell its size."""
SCAN, END = 0xDA, 0xD9
"""JPEG markers that begin a scan, the pixels, and end the image."""
BARE = {0x01, *range(0xD0, 0xD9)}
"""JPEG markers without a length."""
ORIENTATION = 0x112
"""Tag of EXIF."""
MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
MAX_SCANS = 100
"""Each makes a decoder go through all pixels again; progressive images have about ten."""


def check_size(data: bytes) -> None:
    """Refuse what is no JPEG, PNG, WebP or BMP, would be too large once decoded, or take too long to decode.

    Raises:
        ValueError: naming which.
    """
    if not data:
        raise ValueError("the image is empty: send the bytes of a file")
    width, height = image_size(data)
    if width * height > MAX_PIXELS:
        most = f"at most {MAX_PIXELS // 10**6} million are accepted"
        raise ValueError(f"the image is {width}x{height} pixels: {most}")
    if data.startswith(b"\xff\xd8") and has_many_scans(data):
        raise ValueError(f"the JPEG image is in more than {MAX_SCANS} scans: save it again as a plain one")


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height that an image file claims.

    Raises:
        ValueError: if it is of another format, or ends before it tells.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return jpeg_size(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return number(data, 16, 4, "big"), number(data, 20, 4, "big")
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return webp_size(data)
        if data.startswith(b"BM"):
            bytes_each = 2 if number(data, 14, 4) == 12 else 4  # the oldest header has 16-bit sizes
            sides = (number(data, 18 + bytes_each * i, bytes_each, signed=bytes_each == 4) for i in range(2))
            width, height = (abs(side) for side in sides)  # a negative height counts from the top
            return width, height
    except IndexError as error:
        raise ValueError("the image is truncated: it ends before it tells its size") from error
    raise ValueError("this is no JPEG, PNG, WebP or BMP image")


def jpeg_size(data: bytes) -> tuple[int, int]:
    at = find_segment(data, FRAMES)
    return number(data, at + 5, 2, "big"), number(data, at + 3, 2, "big")


def has_many_scans(data: bytes) -> bool:
    """Whether a JPEG file has more than :data:`MAX_SCANS` scans."""
    at = 2
    for _ in range(MAX_SCANS + 1):
        try:
            at = find_segment(data, {SCAN, END}, at)
        except IndexError:  # truncated: there are no more
            return False
        if data[at - 1] == END:
            return False
    return True


def ends(data: bytes) -> bool:
    """Whether a JPEG or PNG file has its end; True for other formats.

    Other things may follow the end (telephones append a film, whose bytes look like anything), and thumbnails have ends
    of their own: in a JPEG the end that counts is the first after the start of the scan.
    """
    if data.startswith(b"\xff\xd8"):
        try:
            return data.find(b"\xff\xd9", find_segment(data, {SCAN})) >= 0
        except IndexError:
            return False
    return not data.startswith(b"\x89PNG") or b"IEND" in data


def find_segment(data: bytes, markers: set[int], at: int = 2) -> int:
    """Where the first segment of a JPEG with one of these markers begins, from the byte ``at`` on: behind its marker.

    Raises:
        IndexError: if there is none.
    """
    while found := MARKER.search(data, at):
        at, marker = found.end(), found[1][0]
        if marker in markers:
            return at
        if marker not in BARE:
            at += number(data, at, 2, "big")
    raise IndexError


def webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if len(kind) < 4:
        raise IndexError
    if kind == b"VP8X":
        return number(data, 24, 3) + 1, number(data, 27, 3) + 1
    if kind == b"VP8L":
        bits = number(data, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return number(data, 26, 2) & 0x3FFF, number(data, 28, 2) & 0x3FFF
    raise ValueError(f"this WebP image begins with an unknown chunk {kind!r}")


def webp_orientation(data: bytes) -> int:
    """EXIF orientation of a WebP file, 1 to 8; 1, upright, where it does not tell."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return exif_orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 1


def exif_orientation(exif: bytes) -> int:
    """Of the first directory of EXIF, which is TIFF without its pixels."""
    order = "little" if exif.startswith(b"II") else "big"
    try:
        first = number(exif, 4, 4, order)
        for entry in range(first + 2, first + 2 + 12 * number(exif, first, 2, order), 12):
            if number(exif, entry, 2, order) == ORIENTATION:
                found = number(exif, entry + 8, 2, order)
                return found if found <= 8 else 1
    except IndexError:
        pass
    return 1


def number(data: bytes, start: int, length: int, order: str = "little", signed: bool = False) -> int:
    if len(data) < start + length:
        raise IndexError
    return int.from_bytes(data[start : start + length], "big" if order == "big" else "little", signed=signed)
