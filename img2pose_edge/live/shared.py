"""The detector, with settings that everyone who looks shares."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from img2pose_edge.detector import PoseDetector
from img2pose_edge.engines import choose_engine, installed
from img2pose_edge.face import Faces
from img2pose_edge.manifest import bundled_models, find_model

MAX_INPUT_SIZE = 1920
"""Pixels; the memory that a network takes grows with its input."""


@dataclass(frozen=True)
class Settings:
    """What the page can change.

    Attributes:
        model: name of a bundled model, or of the one that the server was started with.
        input_size: longest side, in pixels, at which the network sees the picture.
        score_threshold: least score of a face, 0 to 1.
        smoothing: give the camera's faces identities and steady poses.
    """

    model: str
    input_size: int
    score_threshold: float
    smoothing: bool


KINDS: dict[str, Any] = {"model": str, "input_size": int, "score_threshold": (int, float), "smoothing": bool}


class SharedDetector:
    """A detector whose settings can be changed while threads use it."""

    def __init__(
        self,
        model: str | None = None,
        engine: str = "auto",
        input_size: int | None = None,
        score_threshold: float | None = None,
        smoothing: bool = False,
        **options: Any,
    ) -> None:
        """Arguments and errors are those of :class:`~img2pose_edge.PoseDetector`, but for ``smoothing``."""
        self._make = {"engine": engine, **options}
        detector = PoseDetector(model, input_size=input_size, score_threshold=score_threshold, **self._make)
        self._models = {name: name for name in usable_models(engine)}
        name = detector.model.path.stem
        self._models[name] = name if model is None else model  # a path is nobody's business
        settings = Settings(name, detector.input_size, detector.score_threshold, smoothing)
        self._current = settings, detector
        self._lock = threading.Lock()

    @property
    def settings(self) -> Settings:
        """Those that hold now."""
        return self._current[0]

    @property
    def intrinsics(self) -> np.ndarray | None:
        """(3, 3) of the calibrated camera, if there is one."""
        return self._current[1].intrinsics

    def change(self, wanted: Mapping[str, Any]) -> Settings:
        """Change some settings, all or none of them; another model comes with its own input size.

        Raises:
            ValueError, TypeError, ImportError: naming what is wrong.
        """
        for name, value in wanted.items():
            if name not in KINDS:
                raise ValueError(f"there is no setting {name!r}, only {', '.join(KINDS)}")
            if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and name != "smoothing"):
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
            self._current = settings, detector
        return settings

    def detect(self, image: np.ndarray, **changes: Any) -> Faces:
        """Faces of one image, best first.

        Args:
            image: (H, W, 3) uint8 BGR.
            changes: ``input_size`` and ``score_threshold`` of this image only.

        Raises:
            ValueError: if one of these cannot be.
        """
        settings, detector = self._current
        return find(detector, replace(settings, **changes), image)

    def describe(self) -> dict[str, Any]:
        """Settings and the models to choose from, ready for JSON."""
        return {"settings": asdict(self.settings), "models": list(self._models)}


def find(detector: PoseDetector, settings: Settings, image: np.ndarray) -> Faces:
    if settings.input_size > max(MAX_INPUT_SIZE, detector.input_size):
        raise ValueError(f"input_size must be at most {MAX_INPUT_SIZE}, got {settings.input_size}")
    return detector.detect(image, input_size=settings.input_size, score_threshold=settings.score_threshold)


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
