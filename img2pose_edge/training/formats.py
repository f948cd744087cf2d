"""Label files as img2pose's users have them: what each says of every image, in one form.

A reader returns one :class:`Source` an image. Its faces are dicts with what the format knows of ``box``
(x1, y1, x2, y2), ``landmarks`` (five points), ``landmarks68``, ``angles`` (pitch, yaw, roll of the local rotation in
degrees, 300W-LP convention), ``spread`` (their uncertainty) and ``ignore``; ``complete.py`` derives the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from img2pose_edge.benchmarks.accuracy import read_mat
from img2pose_edge.preprocess import is_image
from img2pose_edge.training.data import parse_lines
from img2pose_edge.training.store import LmdbReader

Face = dict[str, Any]
EXPECTED = (
    "label.txt of RetinaFace, a list of img2pose's JSON files, a folder of 300W-LP (.mat) or 300W (.pts), a folder "
    "with labels.jsonl, a .jsonl file or a .lmdb of ours"
)


@dataclass(frozen=True)
class Source:
    """One image: ``image()`` gives its encoded bytes, ``faces()`` what is known of its faces.

    Both raise ``OSError`` or ``ValueError`` where a file is missing or damaged. ``name`` starts with the
    collection (``wider``, ``300w``, …) that training mixes by. ``posed``: faces come with all that training needs.
    ``size``: width and height that the label claims. ``label``: the file that holds this image's label alone.
    ``checksum``: of label and image, where the data set tells one. ``file()``: where the image lies, if it has a file
    of its own; raises as the others do.
    """

    name: str
    image: Callable[[], bytes]
    faces: Callable[[], list[Face]]
    posed: bool = False
    size: tuple[int, int] | None = None
    label: Path | None = None
    checksum: int | None = None
    file: Callable[[], Path] | None = None


def read_sources(path: Path, images: Path | None = None) -> list[Source]:
    """The images of a data set in any known format, told by what is there.

    Args:
        path: label file or folder (:data:`EXPECTED`).
        images: folder that image paths in RetinaFace's and img2pose's lists are relative to; default ``images``
            beside the file, where there is one, else the file's own folder.

    Raises:
        FileNotFoundError: if ``path`` does not exist.
        ValueError: if it is of no known format, names no image, or its own lines are damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"no data set {path}: expected {EXPECTED}")
    if images and (path.is_dir() or path.suffix in (".jsonl", ".lmdb")):
        raise ValueError(f"images are named for lists of RetinaFace and img2pose: {path} says itself where its own are")
    beside = path.parent / "images"
    root = images or (beside if beside.is_dir() else path.parent)
    try:
        found = _read(path, root)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: expected {EXPECTED}") from error
    if not found:
        raise ValueError(f"{path} names no image: expected {EXPECTED}")
    return found


def _read(path: Path, root: Path) -> list[Source]:
    if path.suffix == ".lmdb":
        return _read_lmdb(path)
    if path.suffix == ".jsonl" or (path / "labels.jsonl").is_file():
        return _read_jsonl(path if path.suffix == ".jsonl" else path / "labels.jsonl")
    if path.is_dir():
        return _read_folder(path)
    with path.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "")
    return _read_retinaface(path, root) if first.startswith("#") else _read_img2pose(path, root)


def _of_file(name: str, file: Path, faces: Callable[[], list[Face]], **more: Any) -> Source:
    return Source(name, file.read_bytes, faces, file=lambda: file, **more)


def _read_lmdb(path: Path) -> list[Source]:
    reader = LmdbReader(path)

    def source(i: int) -> Source:
        name = f"record {i}" if i in reader.damaged else reader.labels[i]["image"]

        def faces() -> list[Face]:
            return list(reader.label(i)["faces"])

        return Source(name, partial(reader.image, i), faces, posed=True, checksum=reader.checksums[i])

    return [source(i) for i in range(len(reader.labels))]


def _read_jsonl(path: Path) -> list[Source]:
    def source(label: dict[str, Any]) -> Source:
        name, faces, size = label["image"], label["faces"], (label["width"], label["height"])
        return _of_file(name, path.parent / name, partial(list, faces), posed=True, size=size)

    return parse_lines(path, path.read_bytes(), source)


def _read_retinaface(path: Path, root: Path) -> list[Source]:
    """``label.txt`` (Deng et al., RetinaFace): ``# image``, then a line a face: x y w h, five times x y visibility."""
    blocks: list[tuple[str, list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.startswith("#"):
            blocks.append((line[1:].strip(), []))
        elif line.strip():
            if not blocks:
                raise ValueError(f"{path}, line {number}: a face before the first '# image' line")
            blocks[-1][1].append(line)

    def faces(lines: list[str]) -> list[Face]:
        parsed = []
        for line in lines:
            try:
                numbers = [float(v) for v in line.split()]
            except ValueError:
                numbers = []
            if len(numbers) < 4:
                raise ValueError(f"a face needs x y w h, got {line.strip()!r}")
            x, y, w, h = numbers[:4]
            if w <= 0 or h <= 0:
                continue  # WIDER FACE lists some faces without an extent
            face: Face = {"box": [x, y, x + w, y + h]}
            if len(numbers) >= 19 and min(numbers[4:19]) > -1:
                face["landmarks"] = [numbers[i : i + 2] for i in range(4, 19, 3)]
            parsed.append(face)
        return parsed

    return [_of_file(f"wider/{name}", root / name, partial(faces, lines)) for name, lines in blocks]


def _read_img2pose(path: Path, root: Path) -> list[Source]:
    """A list of JSON files, one an image: ``image_path``, ``bboxes``, ``landmarks`` (5 or 68; -1 where unknown),
    and for 300W-LP ``pose_para`` (radians)."""

    def find(name: str) -> Path | None:
        return next((p for p in (path.parent / name, Path(name)) if p.is_file()), None)

    def load(name: str) -> dict[str, Any]:
        file = find(name)
        if file is None:
            raise FileNotFoundError(f"{path} names {name}, which is not there")
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        missing = [k for k in ("image_path", "bboxes", "landmarks") if k not in content]
        if missing or len(content["bboxes"]) != len(content["landmarks"]):
            raise ValueError(f"{file} lacks {', '.join(missing) or 'a box or landmarks of a face'}")
        return dict(content)

    def faces(name: str) -> list[Face]:
        content, parsed = load(name), []
        angles = content.get("pose_para", [None] * len(content["bboxes"]))
        for box, points, radians in zip(content["bboxes"], content["landmarks"], angles, strict=True):
            face: Face = {"box": [float(v) for v in box[:4]]}
            known = [[float(x), float(y)] for x, y in (p[:2] for p in points)]
            if known and -1 not in np.array(known):
                face["landmarks68" if len(known) == 68 else "landmarks"] = known
            if radians is not None:
                face |= {"angles": np.degrees(radians[:3]).tolist(), "spread": 0.0}
            parsed.append(face)
        return parsed

    def file(name: str) -> Path:
        return root / str(load(name)["image_path"])

    def image(name: str) -> bytes:
        return file(name).read_bytes()

    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if names and names[0].startswith(("{", "[")):
        raise ValueError(f"{path} is JSON of another kind: expected {EXPECTED}")
    collection = "wider" if "wider" in path.stem.lower() else path.stem
    return [
        Source(f"{collection}/{n}", partial(image, n), partial(faces, n), label=find(n), file=partial(file, n))
        for n in names
    ]


def _read_folder(path: Path) -> list[Source]:
    """300W-LP: an image and a ``.mat`` of 3DMM parameters; 300W: an image and a ``.pts``."""
    images = sorted(filter(is_image, path.rglob("*")))
    kinds = {".mat": ("300w-lp", _read_mat), ".pts": ("300w", _read_pts)}
    labels = {image: [s for s in kinds if image.with_suffix(s).is_file()] for image in images}
    if not any(labels.values()):
        return []

    def unlabelled(image: Path) -> list[Face]:
        raise ValueError(f"no {' or '.join(kinds)} beside it")

    found = []
    for image in images:
        name = image.relative_to(path)
        for suffix in labels[image][:1]:
            collection, read = kinds[suffix]
            label = image.with_suffix(suffix)
            found.append(_of_file(f"{collection}/{name}", image, partial(read, label), label=label))
        if not labels[image]:
            found.append(_of_file(str(name), image, partial(unlabelled, image)))
    return found


def _read_mat(path: Path) -> list[Face]:
    """``Pose_Para`` (radians) and the 68 points of 300W-LP (``pt2d``) or AFLW2000-3D (``pt3d_68``)."""
    try:
        pose, points = read_mat(path, "Pose_Para", "pt3d_68")
    except ValueError:
        pose, points = read_mat(path, "Pose_Para", "pt2d")
    if pose.size < 3 or points.shape[1] != 68:
        raise ValueError(f"{path} must hold three angles and 68 points, got {pose.shape} and {points.shape}")
    angles = np.degrees(pose.ravel()[:3].astype(float))
    return [{"landmarks68": points[:2].T.astype(float).tolist(), "angles": angles.tolist(), "spread": 0.0}]


def _read_pts(path: Path) -> list[Face]:
    """68 points of iBUG's annotation tool, where the middle of the first pixel is (1, 1); here it is (0.5, 0.5)."""
    text = path.read_text(errors="replace")
    try:
        numbers = np.array(text[text.index("{") + 1 : text.index("}")].split(), float)
    except ValueError as error:
        raise ValueError(f"{path} is not a .pts file: {error}") from error
    if len(numbers) != 136:
        raise ValueError(f"{path} must hold 68 points, got {len(numbers) / 2:g}")
    return [{"landmarks68": (numbers.reshape(-1, 2) - 0.5).tolist()}]
