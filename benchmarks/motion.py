"""Camera motion over a photograph, rendered: a turning and zooming camera images every scene by a known homography.

A camera that turns by ``R`` about its centre and has the matrix ``K`` sees what the photograph's camera ``K_0`` sees,
moved by ``K R K_0^-1`` (Hartley & Zisserman, "Multiple View Geometry", section 8.4): no depth is needed, and a face of
pose ``(R_f, t)`` has the pose ``(R R_f, R t)``. Only what does not follow from that is made up: the photograph's focal
length, which is taken to be its width (53 degrees across, a usual lens), and the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from img2pose_edge import geometry

WIDTH, HEIGHT = 640, 480
FOCAL = 640.0
"""Pixels, of the moving camera."""
RATE = 30.0
"""Frames a second."""
TURN_SPEED = 90.0
"""Degrees a second."""
SETTLE, COUNTED = 2.0, 2.0
"""Seconds of a still camera before jitter counts, and while it does."""
READ_NOISE, SHOT_NOISE = 1.0, 0.02
"""Variance of a pixel, grey levels squared: of a black one, and per grey level (together 1.9 levels at mid-grey)."""
SIGMA = np.sqrt(READ_NOISE + SHOT_NOISE * np.arange(256, dtype=np.float32))
SPARE = 128
"""Pixels of noise beyond the frame on each axis: each frame takes another part of it."""
JPEG_QUALITY = 90
SOFTNESS = 0.5
"""Sigma of the lens, in pixels of the finer of photograph and view: nothing is left to alias."""


@dataclass(frozen=True, eq=False)
class Motion:
    """What a camera does.

    Attributes:
        name: of it.
        rotations: (N, 3, 3), in each frame, from the first direction to the camera's: ``X_now = R X_first``.
        cameras: (N, 3, 3) matrices.
        angles: (N,) degrees turned about ``axis`` (all 0 of motions that are no turn).
        axis: (3,) unit vector.
    """

    name: str
    rotations: np.ndarray
    cameras: np.ndarray
    angles: np.ndarray
    axis: np.ndarray

    @property
    def is_turn(self) -> bool:
        return bool((self.angles != self.angles[0]).any())

    @property
    def times(self) -> np.ndarray:
        """(N,) seconds."""
        return np.arange(len(self.rotations)) / RATE


def camera_matrix(zoom: float = 1.0) -> np.ndarray:
    """(3, 3), of the moving camera."""
    return np.array([[FOCAL * zoom, 0, WIDTH / 2], [0, FOCAL * zoom, HEIGHT / 2], [0, 0, 1]])


def make_motion(name: str, rotvecs: np.ndarray, zooms: np.ndarray | None = None, turn: int | None = None) -> Motion:
    """A motion of (N, 3) rotation vectors in degrees and (N,) zooms; a turn about one axis names its number."""
    zooms = np.ones(len(rotvecs)) if zooms is None else zooms
    angles = np.zeros(len(rotvecs)) if turn is None else rotvecs[:, turn]
    cameras = np.array([camera_matrix(zoom) for zoom in zooms])
    return Motion(name, geometry.rotvec_to_matrix(np.radians(rotvecs)), cameras, angles, np.eye(3)[turn or 0])


def still() -> Motion:
    return make_motion("still", np.zeros((round((SETTLE + COUNTED) * RATE), 3)))


def turn(name: str, axis: int, reach: float, before: float = 0.6, after: float = 0.6) -> Motion:
    """From ``-reach`` to ``reach`` degrees about an axis at :data:`TURN_SPEED`, at rest before and after (seconds)."""
    times = np.arange(round((before + after + 2 * reach / TURN_SPEED) * RATE)) / RATE
    rotvecs = np.zeros((len(times), 3))
    rotvecs[:, axis] = np.clip(-reach + TURN_SPEED * (times - before), -reach, reach)
    return make_motion(name, rotvecs, turn=axis)


def sway(seconds: float = 3.0) -> Motion:
    """Slow pan, tilt and roll at once, as of a camera in the hand that follows someone."""
    times = np.arange(round(seconds * RATE)) / RATE
    reach, pace = np.array([4.0, 8.0, 12.0]), np.array([0.5, 0.4, 0.3])
    return make_motion("sway", reach * np.sin(2 * np.pi * times[:, None] * pace))


def zoom(largest: float = 1.5, seconds: float = 1.5) -> Motion:
    """From 1 to ``largest`` at a constant rate; the pose in the camera's frame stays."""
    times = np.arange(round(seconds * RATE)) / RATE
    return make_motion("zoom", np.zeros((len(times), 3)), largest ** (times / times[-1]))


def motions() -> list[Motion]:
    return [still(), turn("pan", 1, 18.0), turn("roll", 2, 30.0), sway(), zoom()]


class Scene:
    """A photograph, and the direction from which motions start."""

    def __init__(self, photo: np.ndarray, looks_at: np.ndarray) -> None:
        """
        Args:
            photo: (H, W, 3) uint8 BGR.
            looks_at: (2,) pixel of the photograph that the camera's axis goes through at first.
        """
        self.photo = photo
        height, width = photo.shape[:2]
        self.camera = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        self.start = geometry.ray_rotation(np.asarray(looks_at, float), self.camera).T
        self._soft: tuple[float, np.ndarray] | None = None

    def homography(self, motion: Motion, frame: int) -> np.ndarray:
        """(3, 3), from pixels of the photograph to those of the frame."""
        turned = motion.rotations[frame] @ self.start
        return motion.cameras[frame] @ turned @ np.linalg.inv(self.camera)

    def move(self, points: np.ndarray, motion: Motion, frame: int) -> np.ndarray:
        """(N, 2) pixels of the photograph to those of a frame."""
        return cv2.perspectiveTransform(points[:, None].astype(float), self.homography(motion, frame))[:, 0]

    def frames(self, motion: Motion, seed: int = 0) -> Iterator[np.ndarray]:
        """(480, 640, 3) uint8 BGR each: resampled, with the noise of a sensor, and through JPEG."""
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((HEIGHT + SPARE, WIDTH + SPARE, 3), dtype=np.float32)
        for number in range(len(motion.rotations)):
            yield self._compressed(self._noisy(self._view(motion, number), noise, rng))

    def _view(self, motion: Motion, frame: int) -> np.ndarray:
        scale = max(self.camera[0, 0] / motion.cameras[frame, 0, 0], 1.0)  # pixels of the photograph per pixel
        if self._soft is None or self._soft[0] != scale:
            self._soft = scale, cv2.GaussianBlur(self.photo, (0, 0), SOFTNESS * scale)
        half = np.array(
            [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]
        )  # OpenCV's pixels have their origin in the first's middle
        moved = np.linalg.inv(half) @ self.homography(motion, frame) @ half
        return cv2.warpPerspective(
            self._soft[1], moved, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )

    @staticmethod
    def _noisy(image: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y = rng.integers(0, SPARE, 2)
        levels = cv2.LUT(image, SIGMA) * noise[y : y + HEIGHT, x : x + WIDTH]
        return np.clip(np.rint(levels + image), 0, 255).astype(np.uint8)

    @staticmethod
    def _compressed(image: np.ndarray) -> np.ndarray:
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
