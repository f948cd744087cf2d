"""Training pictures: crops and mosaics whose pixels, boxes, landmarks, poses and cameras move together.

Every random choice of sample ``i`` follows from ``(seed, i)``: a run can be resumed at any sample, with
any number of workers, and sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from img2pose_edge import geometry
from img2pose_edge.pose_references import MIRROR_5, load_reference, project_face_box
from img2pose_edge.training.data import Faces, Pixels, Record, pose_from_boxes

FILL = 127
MIN_FACE, MAX_FACE = 6.0, 0.9375
"""Faces smaller than this many pixels, or larger than this share of the training picture, are ignored, not learnt."""
CENTRED_FACE = 0.78125
"""Largest face, as a share of the training picture, that a scene is shown around."""
LEAST_SEEN = 0.5
"""Faces of which less than this share of the box lies in the training picture are ignored."""
LYING = 120.0
"""Most degrees by which pictures of people lying or bending down are turned, either way."""
EYES_COVERED = 0.35
"""Share of covered faces whose eyes are covered, not one of their sides."""
EYES = [*range(17, 27), *range(36, 48), 29]
"""Of the 68 points: brows, eyes and one on the nose below them."""
GLASSES = [*EYES, 0, 16]
"""And the ends of the jaw, at the ears."""
LEAST_COVERED = 14.0
"""Size of faces that may be covered, in pixels of the training picture."""
MOST_ENLARGED = 4.0
"""How many times portraits are enlarged at most: what was a few pixels is no picture of a large face."""
SCENES = {"wider": 0.82, "masks": 0.18}
PORTRAITS = {"300w": 0.36, "mtfl": 0.28, "pointing04": 0.20, "genki": 0.16}
"""Shares of the collections among scenes and among portraits."""
SCENE, MOSAIC = 0.76, 0.16
"""Shares of pictures that are one scene, or four portraits; the rest are one portrait."""
FACELESS = 0.2
"""Share of the portraits in whose place something close up is that is no face."""
CLOSE_UP = (24.0, 120.0)
"""Sides of the faceless squares of scenes that are shown close up, pixels."""


@dataclass(frozen=True)
class Strength:
    """How far training pictures are from photographs.

    Attributes:
        scales: of scenes, least and greatest.
        whole: share of scenes that keep their size: as the runtime sees them, to the pixel.
        centred: share of scenes that are around a face, not anywhere.
        filled: share of scenes without a margin where the image is large enough.
        turned: share of scenes that are turned a little.
        lying: share of scenes and portraits that are turned by any angle up to :data:`LYING`.
        colored: share of pictures whose colours, sharpness or noise are changed.
        covered: share of pictures some of whose faces are partly covered.
        backed: share of pictures that have a scene behind them, where else they would be plain.
    """

    scales: tuple[float, float]
    whole: float
    centred: float
    filled: float
    turned: float
    lying: float
    colored: float
    covered: float
    backed: float


STRENGTHS = {
    "full": Strength((0.45, 2.0), 0.0, 0.9, 0.8, 0.3, 0.12, 1.0, 0.3, 0.6),
    "mild": Strength((0.5, 0.8), 0.5, 0.5, 1.0, 0.0, 0.06, 0.25, 0.0, 0.6),
}
"""``mild`` is for a last phase at a low rate: what a network learns last it should learn from what it will see."""


@dataclass(frozen=True)
class Sample:
    """One training picture: (S, S, 3) uint8 BGR, its faces, and each face's (3, 3) camera."""

    image: np.ndarray
    faces: Faces
    intrinsics: np.ndarray


@dataclass(frozen=True)
class Placement:
    """Where a source image lands: ``x' = scale * turn(degrees) @ mirror @ (x - source) + target``."""

    source: np.ndarray
    target: np.ndarray
    scale: float
    degrees: float = 0.0
    flip: bool = False

    @property
    def matrix(self) -> np.ndarray:
        """(2, 3) affine matrix from source pixels to target pixels."""
        linear = self.scale * geometry.roll_matrix(np.array(self.degrees))[:2, :2]
        if self.flip:
            linear = linear @ np.diag([-1.0, 1.0])
        return np.column_stack([linear, self.target - linear @ self.source])


def place_faces(faces: Faces, intrinsics: np.ndarray, placement: Placement) -> tuple[Faces, np.ndarray]:
    """Move the faces of a picture and its camera (3, 3) as ``placement`` moves its pixels."""
    matrix = placement.matrix

    def move(points: np.ndarray) -> np.ndarray:
        return points @ matrix[:, :2].T + matrix[:, 2]

    camera = intrinsics.copy()
    camera[:2, :2] *= placement.scale
    camera[:2, 2] = move(intrinsics[:2, 2])
    local, landmarks = faces.local, move(faces.landmarks)
    if placement.flip:
        local, landmarks = geometry.flip_rotation(local), landmarks[:, MIRROR_5]
    local = geometry.roll_matrix(np.array(placement.degrees)) @ local
    middle = move((faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2)
    extent = (faces.boxes[:, 2:] - faces.boxes[:, :2]) * placement.scale / 2
    if placement.degrees:  # of an upright ellipse, turned: the best guess where no rotation is known
        extent = np.sqrt(extent**2 @ (geometry.roll_matrix(np.array(placement.degrees))[:2, :2] ** 2).T)
    boxes = np.concatenate([middle - extent, middle + extent], axis=1)
    turned = (faces.trust > 0) & (placement.degrees != 0)
    if turned.any():  # the axis-aligned box of a turned face follows from its pose, not from its old box
        center, size = pose_from_boxes(faces.boxes[turned], faces.local[turned], intrinsics)
        boxes[turned] = project_face_box(
            *geometry.local_to_camera(move(center), size * placement.scale, local[turned], camera),
            camera,
        )
    return Faces(boxes, local, faces.trust, landmarks, faces.ignore), camera


def clip_faces(faces: Faces, width: int, height: int) -> Faces:
    """Drop faces out of the picture; ignore those mostly cut off, too small or too large to learn from."""
    visible = np.clip(faces.boxes, 0, [width, height, width, height])
    seen = np.prod(np.clip(visible[:, 2:] - visible[:, :2], 0, None), axis=1)
    area = np.prod(faces.boxes[:, 2:] - faces.boxes[:, :2], axis=1)
    size = np.sqrt(area)
    ignore = faces.ignore | (seen < LEAST_SEEN * area) | (size < MIN_FACE) | (size > MAX_FACE * max(width, height))
    faces = Faces(faces.boxes, faces.local, faces.trust, faces.landmarks, ignore)
    return faces.select(seen > 0.02 * area)


def adjust_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, gamma, colour cast, grey, blur, low resolution, JPEG and sensor noise."""
    ramp = np.arange(256, dtype=np.float32)[:, None] / 255
    if rng.random() < 0.8:
        gain = rng.uniform(0.5, 1.4) * rng.uniform(0.9, 1.1, 3)
        curve = (ramp ** np.exp(rng.uniform(-0.5, 0.5)) - 0.5) * gain + 0.5 + rng.uniform(-0.15, 0.15)
        table = np.clip(curve * 255, 0, 255).astype(np.uint8)[None]
        image = cv2.LUT(image, table)
    if rng.random() < 0.12:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    kind = rng.random()
    if kind < 0.08:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.0))
    elif kind < 0.14:
        height, width = image.shape[:2]
        small = cv2.resize(image, None, fx=(f := rng.uniform(0.35, 0.8)), fy=f, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.1:
        quality = int(rng.integers(20, 80))
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    if rng.random() < 0.08:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(3, 14))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def cover_faces(
    image: np.ndarray,
    faces: Faces,
    cameras: np.ndarray,
    source: np.ndarray,
    there: Faces,
    rng: np.random.Generator,
) -> None:
    """Cover some faces of ``image``, seen by ``cameras`` (F, 3, 3), labels unchanged: annotators draw the whole face,
    too, as far as they can guess it. About half of a face is covered from one side, as hands, hats and neighbours do,
    with a piece of the image ``source`` without a face (``there`` are its faces), or, if none is found, with one
    colour; or its eyes are, as by glasses.
    """
    for i in np.flatnonzero(~faces.ignore & (faces.sizes >= LEAST_COVERED)):
        box = faces.boxes[i]
        if rng.random() < 0.5:
            continue
        if faces.trust[i] > 0 and rng.random() < EYES_COVERED:
            cover_eyes(image, faces.select(np.array([i])), cameras[i], rng)
            continue
        side, depth = int(rng.integers(4)), rng.uniform(0.15, 0.5)
        extent = np.tile(box[2:] - box[:2], 2)
        region = box + extent * [-0.15, -0.15, 0.15, 0.15]
        axis = side % 2
        if side < 2:
            region[2 + axis] = box[axis] + depth * extent[axis]
        else:
            region[axis] = box[2 + axis] - depth * extent[axis]
        x1, y1, x2, y2 = np.clip(region, 0, np.tile(image.shape[1::-1], 2)).round().astype(int)
        if x2 <= x1 or y2 <= y1:
            continue
        piece = find_faceless(source, there, np.array([x2 - x1, y2 - y1]), rng)
        image[y1:y2, x1:x2] = rng.integers(256, size=3) if piece is None else piece


def cover_eyes(image: np.ndarray, face: Faces, camera: np.ndarray, rng: np.random.Generator) -> None:
    """Cover the eyes of one ``face`` of known rotation, seen by ``camera`` (3, 3), as goggles or dark glasses do."""
    center, size = pose_from_boxes(face.boxes, face.local, camera)
    pose = geometry.local_to_camera(center, size * rng.uniform(0.9, 1.3), face.local, camera)
    points = load_reference().points68[GLASSES if rng.random() < 0.5 else EYES].astype(float)
    points[:, 1] += (points[:, 1] - points[:, 1].mean()) * rng.uniform(-0.1, 0.6)
    outline = cv2.convexHull(geometry.project(points, *pose, camera)[0].astype(np.float32))
    color = (rng.uniform(0, 70) if rng.random() < 0.7 else rng.uniform(0, 255)) + rng.normal(0, 15, 3)
    cv2.fillPoly(image, [outline.round().astype(np.int32)], np.clip(color, 0, 255).tolist(), cv2.LINE_AA)


def find_faceless(source: np.ndarray, faces: Faces, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A piece of this ``shape`` (width, height) of the image ``source`` where none of its ``faces`` is; None if three
    tries found none."""
    room = np.array(source.shape[1::-1]) - shape
    for _ in range(3 if (room >= 0).all() else 0):
        x1, y1 = rng.integers(room + 1)
        x2, y2 = x1 + shape[0], y1 + shape[1]
        if ((faces.boxes[:, :2] >= [x2, y2]) | (faces.boxes[:, 2:] <= [x1, y1])).any(1).all():
            return source[y1:y2, x1:x2]
    return None


def draw_round(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw ellipses inside one another, as cups, plates, wheels and lamps show: what is round need not be a face.

    Half of them have colours of skin, wood or coffee; all show something of the texture that ``canvas`` holds.
    """
    side = min(canvas.shape[:2])
    middle, axes = rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.2, 0.5) * side * np.array([1, rng.uniform(0.6, 1)])
    turn = float(rng.uniform(0, 180))
    texture = canvas - canvas.mean((0, 1))
    for _ in range(rng.integers(2, 6)):
        tint = rng.uniform([0.35, 0.55, 0.9], 1) if rng.random() < 0.5 else np.ones(3)
        color = rng.uniform(0, 255) * tint + rng.normal(0, 15, 3)
        mask = np.zeros(canvas.shape[:2], np.uint8)
        cv2.ellipse(mask, (tuple(middle), tuple(2 * axes), turn), 255, -1)
        inside = mask > 0
        canvas[inside] = np.clip(color + rng.uniform(0, 0.8) * texture[inside], 0, 255)
        texture = np.flip(texture, int(rng.integers(2)))
        shrunk = axes * rng.uniform(0.5, 0.95)
        middle, axes = middle + rng.uniform(-0.5, 0.5, 2) * (axes - shrunk), shrunk
    canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 2.5))


def uncovered_faces(faces: Faces, covered: np.ndarray) -> Faces:
    """Faces that can be seen where a picture is not ``covered`` (S, S) bool; ignored if less than two thirds can."""
    corners = np.clip(faces.boxes, 0, np.tile(covered.shape[::-1], 2)).round().astype(int)
    hidden = np.array([covered[y1:y2, x1:x2].mean() if x2 > x1 and y2 > y1 else 1.0 for x1, y1, x2, y2 in corners])
    area = np.prod(faces.boxes[:, 2:] - faces.boxes[:, :2], axis=1)
    seen = (1 - hidden) * np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    ignore = faces.ignore | (hidden > 1 / 3) | (seen < LEAST_SEEN * area)
    return Faces(faces.boxes, faces.local, faces.trust, faces.landmarks, ignore).select(hidden < 0.9)


class Composer:
    """Makes training pictures of ``size`` pixels square out of labelled images.

    Scenes (collections in :data:`SCENES`: many faces, mostly small) are cropped at random scales; portraits
    (the rest: few faces, large) fill a whole picture or share one, four at a time; some are replaced by what is no
    face, close up. Most have another scene behind them.
    """

    def __init__(
        self,
        records: list[Record],
        pixels: Pixels,
        indices: list[int],
        size: int,
        seed: int,
        strength: Strength = STRENGTHS["full"],
    ) -> None:
        self.strength = strength
        self.records, self.pixels, self.size, self.seed = records, pixels, size, seed
        useful = [i for i in indices if (~records[i].faces.ignore).any()]
        if not useful:
            raise ValueError("no image with a face to learn from")
        groups: dict[str, list[int]] = {}
        for i in useful:
            groups.setdefault(records[i].collection, []).append(i)
        shown = {name: w for name, w in SCENES.items() if name in groups} or dict.fromkeys(groups, 1.0)
        scenes = {name: [*groups[name]] for name in shown}
        most = max(scenes, key=lambda name: len(scenes[name]))
        for i in indices:  # pictures without a face show what is none
            if len(records[i].faces) == 0:
                scenes.get(records[i].collection, scenes[most]).append(i)
        self.scenes = self._weighted(scenes, shown)
        others = {name: PORTRAITS.get(name, 0.2) for name in groups if name not in SCENES}
        self.portraits = self._weighted(groups, others or shown)  # of a face each, unlike all scenes

    @staticmethod
    def _weighted(groups: dict[str, list[int]], weights: dict[str, float]) -> list[tuple[float, list[int]]]:
        """(cumulative probability, image indices) of the collections that are there."""
        there = {name: w for name, w in weights.items() if name in groups}
        bounds = np.cumsum(list(there.values())) / max(sum(there.values()), 1e-9)
        return [(float(b), groups[name]) for b, name in zip(bounds, there, strict=True)]

    @staticmethod
    def _draw(groups: list[tuple[float, list[int]]], rng: np.random.Generator) -> int:
        draw = rng.random()
        members = next((g for bound, g in groups if draw <= bound), groups[-1][1])
        return members[int(rng.integers(len(members)))]

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng((self.seed, number))
        fill = FILL if rng.random() < 0.7 else int(rng.integers(256))
        canvas = np.full((self.size, self.size, 3), fill, np.uint8)
        extra = np.random.default_rng((self.seed, number, 1))
        backed = extra.random() < self.strength.backed
        behind = self._backdrop(canvas, extra) if backed else None
        plain = canvas.copy()
        draw = rng.random()
        if draw < SCENE:
            parts = [self._scene(canvas, rng)]
        else:
            side = self.size // 2 if draw < SCENE + MOSAIC else self.size
            other = np.random.default_rng((self.seed, number, 2))
            parts = [
                self._close_up(canvas[y : y + side, x : x + side], other)
                if other.random() < FACELESS
                else self._portrait(canvas, x, y, side, rng)
                for y in range(0, self.size, side)
                for x in range(0, self.size, side)
            ]
        if behind:
            drawn = cv2.cvtColor(cv2.absdiff(canvas, plain), cv2.COLOR_BGR2GRAY) > 0
            parts.append((uncovered_faces(behind[0], drawn), behind[1]))
        faces = Faces(*(np.concatenate([getattr(f, name) for f, _ in parts]) for name in Faces.__dataclass_fields__))
        cameras = np.concatenate([np.broadcast_to(k, (len(f), 3, 3)) for f, k in parts])
        if extra.random() < self.strength.covered:
            index = self._draw(self.scenes, extra)
            cover_faces(canvas, faces, cameras, self.pixels[index], self.records[index].faces, extra)
        if self.strength.colored == 1 or rng.random() < self.strength.colored:
            canvas = adjust_colors(canvas, rng)
        return Sample(canvas, faces, cameras)

    def _backdrop(self, canvas: np.ndarray, rng: np.random.Generator) -> tuple[Faces, np.ndarray]:
        """A scene that fills the whole picture."""
        index = self._draw(self.scenes, rng)
        shape = np.array([self.records[index].width, self.records[index].height])
        scale = float(self.size / shape.min() * rng.uniform(1, 1.5))
        source = self.size / scale / 2 + rng.random(2) * (shape - self.size / scale)
        return self._paste(
            canvas, index, Placement(source, np.full(2, self.size / 2), scale, 0.0, bool(rng.random() < 0.5))
        )

    def _scene(self, canvas: np.ndarray, rng: np.random.Generator) -> tuple[Faces, np.ndarray]:
        index = self._draw(self.scenes, rng)
        record = self.records[index]
        scale = np.exp(rng.uniform(*np.log(self.strength.scales)))
        scale = 1.0 if rng.random() < self.strength.whole else float(scale)
        real = np.flatnonzero(~record.faces.ignore)
        if rng.random() < self.strength.centred and len(real):
            # Photographs show few profiles, and few of them are found: they are looked at up to three times as often.
            aside = 3 - 2 * record.faces.local[real, 2, 2].clip(0, 1)
            chosen = int(rng.choice(real, p=aside / aside.sum()))
            scale = min(scale, CENTRED_FACE * self.size / record.faces.sizes[chosen])
            source = (record.faces.boxes[chosen, :2] + record.faces.boxes[chosen, 2:]) / 2
        else:
            source = rng.uniform(0, 1, 2) * [record.width, record.height]
        target = rng.uniform(0.05, 0.95, 2) * self.size
        flip = bool(rng.random() < 0.5)
        if rng.random() < self.strength.filled:  # no margin where the image is large enough to fill the picture
            before, behind = source, [record.width, record.height] - source
            if flip:
                before, behind = np.array([behind[0], before[1]]), np.array([before[0], behind[1]])
            low, high = self.size - scale * behind, scale * before
            target = np.clip(target, np.minimum(low, high), np.maximum(low, high))
        degrees = float(np.clip(rng.normal(0, 16), -40, 40)) if rng.random() < self.strength.turned else 0.0
        return self._paste(canvas, index, Placement(source, target, scale, self._lie(degrees, rng), flip))

    def _lie(self, degrees: float, rng: np.random.Generator) -> float:
        """Turn of a picture in degrees, here and there that of one of people lying down."""
        return float(rng.uniform(-LYING, LYING)) if rng.random() < self.strength.lying else degrees

    def _close_up(self, tile: np.ndarray, rng: np.random.Generator) -> tuple[Faces, np.ndarray]:
        """Fill ``tile`` with a piece of a scene without a face, magnified, or, as often, with round things."""
        index = self._draw(self.scenes, rng)
        side = round(np.exp(rng.uniform(*np.log(CLOSE_UP))))
        faces = self.records[index].faces
        piece = find_faceless(self.pixels[index], faces, np.array([side, side]), rng)
        if piece is not None:
            tile[:] = cv2.resize(piece, tile.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        if piece is None or rng.random() < 0.5:
            draw_round(tile, rng)
        return faces.select(np.zeros(len(faces), bool)), np.eye(3)

    def _portrait(
        self, canvas: np.ndarray, x: int, y: int, side: int, rng: np.random.Generator
    ) -> tuple[Faces, np.ndarray]:
        index = self._draw(self.portraits, rng)
        record = self.records[index]
        trusted = np.where(record.faces.ignore, -1.0, record.faces.trust + 0.01)
        chosen = int(rng.choice(np.flatnonzero(trusted > 0)))
        size = np.exp(rng.uniform(np.log(min(30, side / 2)), np.log(side * 0.85)))
        scale = min(size / record.faces.sizes[chosen], MOST_ENLARGED)
        size = scale * record.faces.sizes[chosen]
        source = (record.faces.boxes[chosen, :2] + record.faces.boxes[chosen, 2:]) / 2
        room = max(side / 2 - size * 0.45, 0)
        target = side / 2 + rng.uniform(-room, room, 2)
        degrees = float(np.clip(rng.normal(0, 18), -50, 50)) if rng.random() < 0.45 else 0.0
        degrees = self._lie(degrees, rng)
        placement = Placement(source, target, scale, degrees, bool(rng.random() < 0.5))
        tile = canvas[y : y + side, x : x + side]
        crop = None
        if rng.random() < 0.15:  # a tight crop with an edge around it, as photo archives hold
            margin = record.faces.sizes[chosen] * rng.uniform(0.1, 0.5)
            crop = record.faces.boxes[chosen] + np.array([-1, -1, 1, 1]) * margin
        faces, camera = self._paste(tile, index, placement, crop)
        shift = np.array([x, y, x, y])
        faces = Faces(faces.boxes + shift, faces.local, faces.trust, faces.landmarks + shift[:2], faces.ignore)
        return faces, geometry.transform_intrinsics(camera, np.array(1.0), shift[:2].astype(float))

    def _paste(
        self, canvas: np.ndarray, index: int, placement: Placement, crop: np.ndarray | None = None
    ) -> tuple[Faces, np.ndarray]:
        """Draw image ``index`` (or just its ``crop``) into ``canvas``; return what of its faces is there."""
        record, pixels, matrix = self.records[index], self.pixels[index], placement.matrix
        faces = record.faces
        if crop is not None:
            x1, y1 = np.clip(crop[:2], 0, None).astype(int)
            x2, y2 = np.ceil(np.minimum(crop[2:], [record.width, record.height])).astype(int)
            pixels = pixels[y1:y2, x1:x2]
            matrix = np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ [x1, y1]])
            inside = clip_faces(_shifted(faces, -np.array([x1, y1])), x2 - x1, y2 - y1)
            faces = _shifted(inside, np.array([x1, y1]))
        if (scale := placement.scale) < 1:  # as the runtime shrinks images; warpAffine does not low-pass
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            matrix = np.column_stack([matrix[:, :2] / scale, matrix[:, 2]])
        # Pixel i covers [i, i + 1): OpenCV puts coordinates at pixel centres, we at corners.
        matrix = np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ [0.5, 0.5] - 0.5])
        if not placement.degrees:  # by whole pixels, as between them fine detail is lost
            shift = matrix[:, 2].round() - matrix[:, 2]
            matrix[:, 2] += shift
            placement = replace(placement, target=placement.target + shift)
        shape = canvas.shape[1], canvas.shape[0]
        # Linear would halve the power of fine detail; beside the picture cubic would ring with what lies there.
        drawn = cv2.warpAffine(pixels, matrix, shape, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        there = cv2.warpAffine(np.ones(pixels.shape[:2], np.uint8), matrix, shape, flags=cv2.INTER_NEAREST)
        np.copyto(canvas, drawn, where=there[..., None] > 0)
        camera = geometry.default_intrinsics(record.width, record.height)
        moved, camera = place_faces(faces, camera, placement)
        return clip_faces(moved, canvas.shape[1], canvas.shape[0]), camera


def _shifted(faces: Faces, offset: np.ndarray) -> Faces:
    boxes = faces.boxes + np.concatenate([offset, offset])
    return Faces(boxes, faces.local, faces.trust, faces.landmarks + offset, faces.ignore)
