"""Less work for videos: between whole frames, the network sees a crop around the faces that are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from img2pose_edge import geometry
from img2pose_edge.face import Faces
from img2pose_edge.nms import pairwise_iou
from img2pose_edge.preprocess import PAD_VALUE, letterbox_factor, load_image
from img2pose_edge.tracking import SURE_SIMILARITY, PoseTracker, match_greedily

if TYPE_CHECKING:
    from img2pose_edge.detector import PoseDetector

SIZES = ((160, 160), (224, 224), (224, 448), (320, 320))
"""Heights and widths of crops in pixels of the network, smallest first: few, as engines prepare for each size."""
WORTHWHILE = 0.8
"""Largest crop that is worth it, in areas of the whole frame's input."""
MARGIN = 0.4
"""Room around each face, in its sizes (square roots of areas): what the network needs to see, and may move."""
ENOUGH = 96.0
"""Size of a face, in pixels of the network, from which more pixels do not make its pose better."""
CELL = 32
"""Pixels of the network's coarsest cells. Crops begin at a multiple, so that faces lie in them as in the frame."""
STEP = 16
"""Pixels of the frame by which other crops move and grow, so that they rest when a face does."""
PREDICTION = {"sure_score": 0.0, "min_cutoff": 30.0, "speed_cutoff": 3.0}
"""Of the tracker: all faces count, and where they will be matters more than that they be steady."""


@dataclass(frozen=True)
class Window:
    """A part of the frame, and how the network sees it.

    Attributes:
        x, y, width, height: pixels of the frame; it may reach beyond the frame on the right and below.
        longest: longest side of the network's input, which has the window's shape.
        same: whether the network sees faces as in the whole frame: as large, and in the same cells of its maps.
    """

    x: int
    y: int
    width: int
    height: int
    longest: int
    same: bool

    def cut(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 3), padded where the frame ends."""
        part = image[self.y : self.y + self.height, self.x : self.x + self.width]
        below, right = self.height - part.shape[0], self.width - part.shape[1]
        if below or right:
            part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3)
        return part

    def holds(self, box: np.ndarray, frame: tuple[int, ...]) -> bool:
        """Whether a (4,) box, pixels of the frame of this shape, is seen as whole as in the frame."""
        x1, y1, x2, y2 = box
        right, below = self.x + self.width, self.y + self.height
        across = (x1 >= self.x or self.x == 0) and (x2 <= right or right >= frame[1])
        return across and (y1 >= self.y or self.y == 0) and (y2 <= below or below >= frame[0])


def choose_window(boxes: np.ndarray, frame: tuple[int, ...], whole: float, area: float) -> Window | None:
    """The smallest part of the frame in which the network sees faces as in the whole frame; if none saves work, one in
    which it sees them smaller but large enough; else ``None``.

    Args:
        boxes: (N, 4) of faces, pixels of the frame, N >= 1.
        frame: height and width.
        whole: pixels of the network per pixel, when it sees the whole frame.
        area: of the network's input then, pixels.
    """
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    end = np.array([frame[1], frame[0]], float)
    low = np.clip((boxes[:, :2] - MARGIN * sides[:, None]).min(0), 0, end - 1)
    high = np.clip((boxes[:, 2:] + MARGIN * sides[:, None]).max(0), low + 1, end)
    sizes = [(height, width) for height, width in SIZES if height * width <= WORTHWHILE * area]
    for height, width in sizes:
        size = np.array([width, height]) / whole
        if (np.floor(low / (CELL / whole)) * (CELL / whole) + size >= high).all():
            return _window(low, high, size, end, CELL / whole, width, True)
    least = min(whole, ENOUGH / float(sides.min()))
    low, high = np.floor(low / STEP) * STEP, np.ceil(high / STEP) * STEP
    for height, width in sizes:
        fits = max(width / whole, ((high - low) * (1, width / height)).max())
        across = np.ceil(fits / STEP) * STEP
        if width / across >= least:
            return _window(low, high, np.array([across, across * height / width]), end, STEP, width, False)
    return None


def _window(
    low: np.ndarray, high: np.ndarray, size: np.ndarray, end: np.ndarray, step: float, longest: int, same: bool
) -> Window:
    """A window of this size around ``low`` to ``high``, these in its middle if the frame's ``end`` allows, its corner a
    multiple of ``step``; x and y each, pixels of the frame."""
    corner = np.floor((low + high - size) / 2 / step)
    corner = np.where(corner * step + size < high, corner + 1, corner)
    corner = np.clip(corner, 0, np.maximum(np.ceil((end - size) / step), 0)) * step
    x, y = np.rint(corner).astype(int).tolist()
    across = round(size[0])
    # No more than is needed for the input to have the window's shape to the pixel.
    return Window(x, y, across, int(across * size[1] / size[0] + 1e-9), longest, same)


class FastDetector:
    """A :class:`PoseDetector` for the frames of one video, in order.

    The whole frame is looked at at first, at every ``every``-th frame after the last whole one, when no face is known,
    when the known ones fill too much of the frame for a crop to save time, and, in addition to the crop, when a known
    face is not found in it. New faces outside the crop are thus found up to ``every - 1`` frames late.

    The crop holds the faces of the last frame where they should be at constant velocity. It is part of the same
    camera's picture, so that poses are those in the whole frame's camera. Where the network sees faces smaller in it
    than in the whole frame, which changes their poses by a few degrees, whole frames only tell which faces there are,
    and a crop beside them their poses, so that these do not jump.

    Attributes:
        whole: whether the last frame was looked at whole.
    """

    def __init__(self, detector: PoseDetector, every: int) -> None:
        """
        Args:
            detector: of a model that takes more than one size of input.
            every: frames from one whole frame to the next at most.

        Raises:
            ValueError: if ``every`` is no integer of at least 2, or the model takes one size only.
        """
        if not isinstance(every, (int, np.integer)) or isinstance(every, bool) or every < 2:
            raise ValueError(f"fast must be an integer of at least 2 frames (or 0: off), got {every!r}")
        if detector.model.fixed:
            name = detector.model.path.name
            raise ValueError(f"{name} takes images of one size only, so that crops would save nothing: turn fast off")
        self.detector, self.every = detector, int(every)
        self.reset()

    def reset(self) -> None:
        """Forget the faces: the next frame is looked at whole. For cuts, and before another video."""
        self._tracker = PoseTracker(**PREDICTION)
        self._seen: set[int] = set()
        self._since = 0
        self._shape: tuple[int, ...] = ()
        self.whole = False

    def detect(
        self, image: Any, time: float, *, input_size: int | None = None, intrinsics: Any = None, **options: Any
    ) -> Faces:
        """Faces of the next frame, best first.

        Args:
            image: as for :meth:`PoseDetector.detect`.
            time: of the frame, seconds, later than the last.
            input_size: of :meth:`PoseDetector.detect`, for whole frames.
            intrinsics: of :meth:`PoseDetector.detect`.
            options: the rest of its options.

        Raises:
            ValueError, TypeError, FileNotFoundError: as :meth:`PoseDetector.detect`, and if time does not advance.
        """
        pixels = load_image(image)
        if pixels.shape != self._shape:
            self.reset()
            self._shape = pixels.shape
        camera = self.detector.camera_of(pixels, intrinsics)
        known = self._expected(time) if self._seen else np.empty((0, 4))
        window = self._window(known, input_size) if len(known) == len(self._seen) > 0 else None
        due = self._since >= self.every
        near = self._look(pixels, window, known, camera, **options) if window and not (window.same and due) else None
        self.whole = near is None or due
        if near is None or due:
            faces = self.detector.detect(pixels, input_size=input_size, intrinsics=camera, **options)
            if near:
                for i, j in match(np.array([face.box for face in faces]), near):
                    faces[i] = near[j]
                faces.sort(key=lambda face: -face.score)
            self._since = 0
        else:
            faces = near
        self._seen = {track.id for track in self._tracker.update(faces, time)}
        self._since += 1
        return faces

    def _expected(self, time: float) -> np.ndarray:
        """(N, 4) boxes of the last frame's faces at ``time``."""
        return np.array([track.face.box for track in self._tracker.predict(time) if track.id in self._seen])

    def _window(self, known: np.ndarray, input_size: int | None) -> Window | None:
        height, width = self._shape[:2]
        longest = self.detector.input_size if input_size is None else input_size
        whole = letterbox_factor(height, width, longest, self.detector.model.shortest)
        return choose_window(known, self._shape, whole, height * width * whole**2)

    def _look(
        self, pixels: np.ndarray, window: Window, known: np.ndarray, camera: np.ndarray, **options: Any
    ) -> Faces | None:
        """Faces in a window; ``None`` if a known one is not among them."""
        corner = np.array([window.x, window.y])
        part = geometry.transform_intrinsics(camera, 1.0, -corner)
        found = self.detector.detect(window.cut(pixels), input_size=window.longest, intrinsics=part, **options)
        faces = Faces(replace(face, box=face.box + np.tile(corner, 2), intrinsics=camera) for face in found)
        again = match(known, faces)
        if len(again) < len(known):
            return None
        # What is new and cut by the crop's border waits for the whole frame: half a face has no sound pose.
        old = {column for _, column in again}
        return Faces(face for i, face in enumerate(faces) if i in old or window.holds(face.box, pixels.shape))


def match(boxes: np.ndarray, faces: Faces, least: float = SURE_SIMILARITY) -> list[tuple[int, int]]:
    """Numbers of (N, 4) boxes, and of the faces whose boxes overlap them most, by ``least`` (IoU) at least."""
    if not len(boxes) or not faces:
        return []
    overlap = pairwise_iou(boxes, np.array([face.box for face in faces]))
    return match_greedily(overlap, overlap >= least, np.zeros(len(faces), bool))
