"""The detector, with settings that everyone who looks shares."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from img2pose_edge.calibration import Calibration
from img2pose_edge.detector import PoseDetector
from img2pose_edge.engines import choose_engine, installed
from img2pose_edge.face import Faces
from img2pose_edge.fast import FastDetector
from img2pose_edge.look import Looked, look
from img2pose_edge.manifest import bundled_models, find_model
from img2pose_edge.tracking import PoseTracker

MOST_FACES = 200
"""Of a frame, the best: at a threshold of 0 there are thousands, none of which anybody could tell apart."""
MAX_INPUT_SIZE = 1920
"""Pixels; the memory that a network takes grows with its input."""


@dataclass(frozen=True)
class Settings:
    """What the page can change.

    Attributes:
        model: name of a bundled model, or of the one that the server was started with.
        input_size: longest side, in pixels, at which the network sees the picture.
        score_threshold: least score of a face, 0 to 1.
        smooth: give the camera's faces identities and steady poses.
        fast: of the camera's frames, look at the whole one one time in so many only, and at crops around known faces
            in between; 0: at every whole frame.
    """

    model: str
    input_size: int
    score_threshold: float
    smooth: bool
    fast: int


KINDS: dict[str, Any] = {
    "model": str,
    "input_size": int,
    "score_threshold": (int, float),
    "smooth": bool,
    "fast": int,
}


class Stream:
    """Finds the faces of the camera's frames, in order, while the settings hold.

    Attributes:
        settings: they hold.
        tracker: gives the faces ids and steadies them; ``None``: neither is wanted.
    """

    def __init__(self, detector: PoseDetector, settings: Settings, tracker: PoseTracker | None = None) -> None:
        """
        Args:
            tracker: goes on with the faces that it knows, if the settings want one.

        Raises:
            ValueError: naming the setting that is wrong.
        """
        self.settings = settings
        self.tracker = (tracker or PoseTracker(sure_score=settings.score_threshold)) if settings.smooth else None
        if self.tracker:
            self.tracker.sure_score = settings.score_threshold
        self._detector = detector
        self._crops = FastDetector(detector, settings.fast) if settings.fast else None

    def detect(self, image: np.ndarray, moment: float, intrinsics: np.ndarray) -> Faces:
        """Faces of the next frame, best first, at most :data:`MOST_FACES`.

        Args:
            image: (H, W, 3) uint8 BGR.
            moment: of the frame, seconds, later than the last.
            intrinsics: (3, 3) camera matrix.
        """
        if self._crops is None:
            least = self.tracker.least_score if self.tracker else self.settings.score_threshold
            found = find(self._detector, replace(self.settings, score_threshold=least), image, intrinsics)
        else:
            size, threshold = self.settings.input_size, self.settings.score_threshold
            found = self._crops.detect(image, moment, input_size=size, score_threshold=threshold, intrinsics=intrinsics)
        return found[:MOST_FACES]


class SharedDetector:
    """A detector whose settings can be changed while threads use it."""

    def __init__(
        self,
        model: str | None = None,
        engine: str = "auto",
        input_size: int | None = None,
        score_threshold: float | None = None,
        smooth: bool = False,
        fast: int = 0,
        calibration: Calibration | None = None,
        **options: Any,
    ) -> None:
        """Arguments and errors are those of :class:`~img2pose_edge.PoseDetector`, but for ``smooth`` and ``fast`` of
        :class:`Settings` and the camera's ``calibration``."""
        self.calibration = calibration
        self._make = {"engine": engine, **options}
        detector = PoseDetector(model, input_size=input_size, score_threshold=score_threshold, **self._make)
        self._models = {name: name for name in usable_models(engine)}
        name = detector.model.path.stem
        self._models[name] = name if model is None else model  # a path is nobody's business
        settings = Settings(name, detector.input_size, detector.score_threshold, smooth, fast)
        Stream(detector, settings)  # wrong ones are told now
        self._current = settings, detector
        self._lock = threading.Lock()

    @property
    def settings(self) -> Settings:
        """Those that hold now."""
        return self._current[0]

    def stream(self, tracker: PoseTracker | None = None) -> Stream:
        """For the camera's next frames, with the settings that hold now; ``tracker`` as of :class:`Stream`."""
        settings, detector = self._current
        return Stream(detector, settings, tracker)

    def camera(self, image: np.ndarray) -> Calibration | None:
        """The calibrated camera, if there is one, for an image of this size.

        Raises:
            ValueError: if the image is of another shape.
        """
        return self.calibration and self.calibration.for_size(image.shape[1], image.shape[0])

    def change(self, wanted: Mapping[str, Any]) -> Settings:
        """Change some settings, all or none of them; another model comes with its own input size.

        Raises:
            ValueError, TypeError, ImportError: naming what is wrong.
        """
        for name, value in wanted.items():
            if name not in KINDS:
                raise ValueError(f"there is no setting {name!r}, only {', '.join(KINDS)}")
            if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and name != "smooth"):
                raise TypeError(f"setting {name} cannot be {value!r}")
        with self._lock:
            settings, detector = self._current
            if wanted.get("model", settings.model) != settings.model:
                if wanted["model"] not in self._models:  # no path: a page must not read files
                    raise ValueError(f"there is no model {wanted['model']!r}, only {', '.join(self._models)}")
                detector = PoseDetector(self._models[wanted["model"]], **self._make)
                settings = replace(settings, input_size=detector.input_size)
            settings = replace(settings, **wanted)
            # Checks the values, and that the engine is there.
            find(detector, settings, np.zeros((32, 32, 3), np.uint8))
            Stream(detector, settings)
            self._current = settings, detector
        return settings

    def detect(self, image: np.ndarray, intrinsics: np.ndarray | None = None, **changes: Any) -> Faces:
        """Faces of one image, best first.

        Args:
            image: (H, W, 3) uint8 BGR.
            intrinsics: (3, 3) camera matrix; default ``geometry.default_intrinsics``.
            changes: ``input_size`` and ``score_threshold`` of this image only.

        Raises:
            ValueError: if one of these cannot be.
        """
        settings, detector = self._current
        return find(detector, replace(settings, **changes), image, intrinsics)

    def look(
        self,
        image: np.ndarray,
        camera: Calibration | None,
        stream: Stream | None = None,
        moment: float = 0.0,
        **changes: Any,
    ) -> tuple[Looked, dict[str, Any]]:
        """The faces of one image, and what is told of it, ready for JSON.

        Args:
            image: (H, W, 3) uint8 BGR.
            camera: of the image's size; poses are then those in it, without distortion.
            stream: whose next frame it is.
            moment: of the frame, seconds.
            changes: of an image that is no frame, its own ``input_size`` and ``score_threshold``.

        Raises:
            ValueError: if one of these cannot be.
        """
        began = time.monotonic()
        height, width = image.shape[:2]
        intrinsics = self._current[1].camera_of(image, camera and camera.intrinsics)
        if stream:
            looked = look(stream.detect(image, moment, intrinsics), moment, stream.tracker, camera)
        else:
            looked = look(self.detect(image, intrinsics, **changes), moment, None, camera)
        faces = looked.told()
        for face, number in zip(faces, looked.ids or [], strict=looked.ids is not None):
            face["id"] = number
        if camera:
            for face, seen in zip(faces, looked.seen, strict=True):
                face["seen"] = {"rotation": seen.rotation.tolist(), "translation": seen.translation.tolist()}
        return looked, {
            "width": width,
            "height": height,
            "intrinsics": intrinsics.tolist(),
            "calibrated": camera is not None,
            "faces": faces,
            "detect_ms": round((time.monotonic() - began) * 1e3, 1),
        }

    def describe(self) -> dict[str, Any]:
        """Settings and the models to choose from, ready for JSON."""
        return {"settings": asdict(self.settings), "models": list(self._models)}


def find(detector: PoseDetector, settings: Settings, image: np.ndarray, intrinsics: np.ndarray | None = None) -> Faces:
    if settings.input_size > max(MAX_INPUT_SIZE, detector.input_size):
        raise ValueError(f"input_size must be at most {MAX_INPUT_SIZE}, got {settings.input_size}")
    return detector.detect(
        image, input_size=settings.input_size, score_threshold=settings.score_threshold, intrinsics=intrinsics
    )


def usable_models(engine: str) -> list[str]:
    """Bundled models that an engine, or for ``auto`` any installed one, runs."""
    names = []
    for name in bundled_models():
        try:
            chosen, _ = choose_engine(engine, find_model(name))
        except ValueError:
            continue
        if installed(chosen):
            names.append(name)
    return names
