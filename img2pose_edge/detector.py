"""The whole runtime on one page: preprocess, engine, decode, NMS, faces."""

from __future__ import annotations

import inspect
import math
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from img2pose_edge import geometry
from img2pose_edge.decode import UNSURE, candidates, least_agreeing, proposal_candidates, weigh_unsure
from img2pose_edge.engines import Engine, choose_engine, installed, load_engine
from img2pose_edge.face import Face, Faces
from img2pose_edge.fast import FastDetector
from img2pose_edge.manifest import Model, check_maps, find_model
from img2pose_edge.nms import non_maximum_suppression, pairwise_iou
from img2pose_edge.pose_references import distant_face_box, project_face_box
from img2pose_edge.preprocess import letterbox, load_image
from img2pose_edge.video import Frame, Source

MAX_CANDIDATES = 2000
"""Cells that go into NMS at most: the best ones (a picture holds hundreds of faces, not thousands)."""


_detectors: weakref.WeakSet[PoseDetector] = weakref.WeakSet()
"""All that there are."""


class PoseDetector:
    """Finds every face of an image with its 6DoF pose. Safe to share between threads.

    The model is read at the first picture, not before.
    """

    _fits = False  # that the model's maps are those of its manifest is seen at the first picture

    def __init__(
        self,
        model: str | Path | None = None,
        engine: str = "auto",
        input_size: int | None = None,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        threads: int | None = None,
        intrinsics: Any = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            model: name of a bundled model, or path of a model with its manifest beside it; default the bundled one
                that suits machine and engine (:func:`img2pose_edge.manifest.default_model`).
            engine: ``auto`` (by the model's file), ``onnxruntime`` (CUDA if it has that, else CPU),
                ``onnxruntime:PROVIDER`` (cpu, cuda, tensorrt, xnnpack, coreml), ``openvino`` or ``tflite``.
            input_size: longest side, in pixels, at which the network sees the image (larger images are
                shrunk, smaller ones keep their size); default the model's own.
            score_threshold: least score of a face, 0 to 1; default the model's own. Of models that average poses
                (``merge_iou``), cells below it do not count, so that poses change a little with it.
            nms_iou: overlap above which two faces are one, 0 to 1; default the model's own.
            threads: of the engine; default its own choice.
            intrinsics: (3, 3) camera matrix; default ``geometry.default_intrinsics`` of each image.
            engine_options: settings of the engine as it knows them: options of ONNX Runtime's provider, properties of
                OpenVINO, arguments of TFLite's interpreter.

        Raises:
            ValueError: naming the option that is wrong, or the model that does not fit its manifest.
            FileNotFoundError: if the model is missing.
            ImportError: if the engine is not installed (at the first picture).
        """
        self.model: Model = find_model(model, engine)
        chosen, provider = choose_engine(engine, self.model)  # a wrong name is told now, not at the first picture
        if provider and installed(chosen):
            from img2pose_edge.engines.ort import PROVIDERS, choose_provider

            if provider not in PROVIDERS:
                choose_provider(provider)  # says which there are
        whole = isinstance(threads, (int, np.integer)) and not isinstance(threads, bool)
        if threads is not None and not (whole and threads > 0):
            raise ValueError(f"threads must be an integer of at least 1, got {threads!r}")
        self.engine = engine
        self.engine_options = engine_options
        self.threads = None if threads is None else int(threads)
        self.input_size = self._size(input_size)
        self.score_threshold = self._fraction("score_threshold", score_threshold, self.model.score_threshold)
        self.nms_iou = self._fraction("nms_iou", nms_iou, self.model.nms_iou)
        self.intrinsics = None if intrinsics is None else geometry.check_intrinsics(intrinsics)
        if engine_options is not None and not isinstance(engine_options, Mapping):
            raise ValueError(f"engine_options must be a mapping of names to settings, got {engine_options!r}")
        self._lock = threading.Lock()
        _detectors.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, in another process or not, loads the network itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_network")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        _detectors.add(self)

    @cached_property
    def _network(self) -> Engine:
        return load_engine(self.engine, self.model, self.threads, self.engine_options)

    def _size(self, value: int | None) -> int:
        if value is None:
            return self.model.input_size
        if not isinstance(value, (int, np.integer)) or value < self.model.multiple:
            raise ValueError(f"input_size must be an integer of at least {self.model.multiple}, got {value!r}")
        if self.model.fixed and value != self.model.input_size:
            height, width = self.model.fixed
            only = f"{self.model.path.name} takes images of {width}x{height} only"
            raise ValueError(f"{only}: input_size cannot be {value}")
        return int(value)

    @staticmethod
    def _fraction(name: str, value: float | None, default: float) -> float:
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
        return float(value)

    def __call__(self, image: Any) -> Faces:
        return self.detect(image)

    def detect(
        self,
        image: Any,
        *,
        input_size: int | None = None,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        intrinsics: Any = None,
    ) -> Faces:
        """Faces of one image, best first.

        Args:
            image: see :func:`img2pose_edge.preprocess.load_image`.
            input_size: for this image only, instead of the detector's.
            score_threshold: likewise.
            nms_iou: likewise.
            intrinsics: likewise.

        Raises:
            ValueError, TypeError, FileNotFoundError: naming what is wrong with the image or an option.
        """
        pixels = load_image(image)
        threshold = self._fraction("score_threshold", score_threshold, self.score_threshold)
        overlap = self._fraction("nms_iou", nms_iou, self.nms_iou)
        camera = self.camera_of(pixels, intrinsics)
        network_image, scale = self.network_input(pixels, input_size)
        boxes = None
        with self._lock:  # engines reuse their output buffers
            outputs = self._network.run(network_image)
            if not self.model.has_proposals:
                if not self._fits:
                    check_maps(self.model, outputs, network_image.shape)
                    self._fits = True
                levels, gain = len(self.model.strides), self.model.score_gain
                least = least_agreeing(threshold, self.model.support_gain)
                found = candidates(outputs[:levels], outputs[levels:], self.model.strides, least, gain)
            else:
                shape = round(pixels.shape[1] * scale[0]), round(pixels.shape[0] * scale[1])
                scores, poses, proposals = outputs
                points = self.model.points68
                found, boxes = proposal_candidates(scores, poses, proposals, threshold, shape, points)
        weighing = self.model.merge_iou, self.model.support_gain, threshold
        return make_faces(*found, scale, camera, overlap, boxes, *weighing)

    def stream(
        self, source: str | Path | int | Source, *, fast: int = 0, **options: Any
    ) -> Iterator[tuple[Frame, Faces]]:
        """Frames of a video, camera, stream or folder of images, each with its faces, in order.

        Frames are read by a thread: every one of a file, of a live source the newest when the last one is done.

        Args:
            source: see :class:`img2pose_edge.video.Source`, which may be passed, too.
            fast: look at a crop around the known faces, and at the whole frame only every so many frames, or when a
                face is lost (:class:`img2pose_edge.fast.FastDetector`); 0: at every whole frame.
            options: of :meth:`detect`.

        Raises:
            FileNotFoundError, ValueError, TypeError: at once, if it cannot be opened, ``fast`` is wrong or an option
                unknown; later, if it holds no frames, breaks off or changes its size.
        """
        inspect.signature(self.detect).bind(None, **options)
        crops = FastDetector(self, fast) if fast else None
        return self._stream(source if isinstance(source, Source) else Source(source), crops, options)

    def _stream(
        self, source: Source, crops: FastDetector | None, options: dict[str, Any]
    ) -> Iterator[tuple[Frame, Faces]]:
        with source as frames:
            for frame in frames:
                if crops:
                    yield frame, crops.detect(frame.image, frame.time, **options)
                else:
                    yield frame, self.detect(frame.image, **options)

    def camera_of(self, image: np.ndarray, intrinsics: Any = None) -> np.ndarray:
        """(3, 3) camera matrix that the poses of an (H, W, 3) image refer to.

        Args:
            intrinsics: instead of the detector's.

        Raises:
            ValueError: if they are no camera matrix.
        """
        if intrinsics is not None:
            return geometry.check_intrinsics(intrinsics)
        if self.intrinsics is not None:
            return self.intrinsics
        return geometry.default_intrinsics(image.shape[1], image.shape[0])

    def network_input(self, image: np.ndarray, input_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What the network sees of an (H, W, 3) uint8 BGR image.

        Args:
            input_size: instead of the detector's.

        Returns:
            (1, H', W', 3) uint8 BGR, and (2,) its pixels per pixel of the image along x and y.
        """
        size = self.input_size if input_size is None else self._size(input_size)
        model = self.model
        pixels, scale = letterbox(image, size, model.multiple, model.shortest, model.fixed)
        return pixels[None], scale

    def run_network(self, network_image: np.ndarray) -> list[np.ndarray]:
        """The network alone: :meth:`network_input` to raw outputs, in the order of the manifest's ``outputs``.

        The arrays are the engine's own and hold until the next call.
        """
        with self._lock:
            return self._network.run(network_image)


def make_faces(
    scores: np.ndarray,
    center: np.ndarray,
    size: np.ndarray,
    local: np.ndarray,
    scale: np.ndarray,
    intrinsics: np.ndarray,
    nms_iou: float,
    boxes: np.ndarray | None = None,
    merge_iou: float = 0.0,
    support_gain: float = 0.0,
    threshold: float = 0.0,
) -> Faces:
    """Local poses in network pixels to faces in image pixels: NMS and means there, then camera poses and boxes.

    Args:
        scores, center, size, local: (N,), (N, 2), (N,), (N, 3, 3), best first (``decode.candidates``).
        scale: (2,) network pixels per image pixel.
        intrinsics: (3, 3) camera of the image.
        nms_iou: 0 to 1.
        boxes: (N, 4) in network pixels, where they do not follow from our own reference face.
        merge_iou: a face's pose is the mean of those whose boxes (as NMS sees them, without perspective) overlap its
            own by at least this, weighted by overlap and score; 0: its own alone, as where ``boxes`` are given.
        support_gain: see ``decode.weigh_unsure``; 0: scores stay as they are.
        threshold: least score of a face, after that.
    """
    if not len(scores):
        return Faces()
    scores, center, size, local = (part[:MAX_CANDIDATES] for part in (scores, center, size, local))
    given = boxes is not None
    # Without perspective, which changes the cells of one face nearly alike, it does not matter which camera it is.
    boxes = distant_face_box(center, size, local) if boxes is None else boxes[:MAX_CANDIDATES]
    if not _finite(boxes):
        sound = np.isfinite(boxes).all(1)
        parts = scores, center, size, local, boxes
        scores, center, size, local, boxes = (part[sound] for part in parts)
        if not len(scores):
            return Faces()
    keep = non_maximum_suppression(boxes, scores, nms_iou)
    unsure = support_gain > 0 and scores[keep[-1]] < UNSURE
    merges = not given and merge_iou > 0 and len(keep) < len(scores)
    if unsure or merges:
        single = boxes.astype(np.float32)  # exact enough, and of many faces twice as fast
        overlap = pairwise_iou(single[keep], single)
    found = scores[keep]
    if unsure:
        found = weigh_unsure(scores, keep, overlap, size[keep], local[keep], support_gain)
        best = np.argsort(-found, kind="stable")[: np.count_nonzero(found >= threshold)]
        found, keep, overlap = found[best], keep[best], overlap[best]
    if merges:
        weights = overlap * (overlap >= merge_iou)
        weights[:, keep] = 0  # what stays is another face
        weights[np.arange(len(keep)), keep] = 1
        center, size, local = mean_poses(weights, scores, center, size, local)
    else:
        center, size, local = center[keep], size[keep], local[keep]
    rotation, translation = geometry.local_to_camera(
        center / scale, size / math.sqrt(scale[0] * scale[1]), local, intrinsics
    )
    if not given:
        with np.errstate(invalid="ignore"):
            boxes = project_face_box(rotation, translation, intrinsics)
    else:
        boxes = boxes[keep] / np.tile(scale, 2)
    if not _finite(boxes):  # a face around the camera, or beside it, has none
        has_box = np.isfinite(boxes).all(1)
        parts = found, rotation, translation, local, boxes
        found, rotation, translation, local, boxes = (part[has_box] for part in parts)
    poses = geometry.compose_pose(rotation, translation)
    angles = geometry.matrix_to_angles(local)
    return Faces(map(Face, found.tolist(), boxes, poses, rotation, local, angles, repeat(intrinsics, len(found))))


def _finite(values: np.ndarray) -> bool:
    """Whether all are, asked faster than of each (False of finite ones whose sum overflows, too)."""
    with np.errstate(invalid="ignore", over="ignore"):
        return math.isfinite(values.sum())


def mean_poses(
    weights: np.ndarray, scores: np.ndarray, center: np.ndarray, size: np.ndarray, local: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted means of N local poses that differ little: centre (K, 2), size (K,), rotation (K, 3, 3).

    Args:
        weights: (K, N) of each pose in each mean, none of the rows all zero.
        scores: (N,) of each pose in all means, beside.
        center, size, local: (N, 2), (N,), (N, 3, 3).
    """
    parts = np.concatenate([center, np.log(size)[:, None], geometry.matrix_to_sixd(local)], axis=1)
    mean = weights @ (parts * scores[:, None]) / (weights @ scores)[:, None]
    return mean[:, :2], np.exp(mean[:, 2]), geometry.sixd_to_matrix(mean[:, 3:])


_loading = threading.Lock()


_abandoned: list[Any] = []
"""Engines of the process that this one was forked from: to end them would be to wait for threads that are not here."""


def _renew_locks() -> None:
    """In a process that was forked: a lock that another thread held, which there is not here, would never be free."""
    global _loading
    _loading = threading.Lock()
    for detector in _detectors:
        if detector._lock.locked():
            detector._lock = threading.Lock()
            _abandoned.append(vars(detector).pop("_network", None))  # it was in the middle of a picture


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_locks)


@lru_cache(maxsize=16)
def _shared_detector(model: str | None, engine: str, threads: int | None, version: Any) -> PoseDetector:
    """``version``: what else tells whether it is the same model."""
    return PoseDetector(model, engine, threads=threads)


def _version(model: str | Path | None) -> tuple[str, int] | None:
    """Where a model's file is, and when it was written: its name may mean another one later."""
    try:
        return (os.path.abspath(model), os.stat(model).st_mtime_ns) if model is not None else None
    except (OSError, ValueError, TypeError):  # no file: the name of a bundled model, or wrong
        return None


def detect_poses(
    image: Any,
    *,
    model: str | Path | None = None,
    engine: str = "auto",
    input_size: int | None = None,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    threads: int | None = None,
    intrinsics: Any = None,
) -> Faces:
    """Every face of an image with its 6DoF pose, best first.

    The model is loaded at the first call and shared by all later ones with the same ``model`` (until its file changes),
    ``engine`` and ``threads``. Arguments (all but ``engine_options``) and errors are those of :class:`PoseDetector` and
    :func:`img2pose_edge.preprocess.load_image`.

    Examples:
        >>> from img2pose_edge import detect_poses
        >>> faces = detect_poses("photo.jpg")  # doctest: +SKIP
    """
    if type(engine) is not str:
        PoseDetector(model, engine)  # tells what is wrong
    with _loading:  # of several first calls at once one loads
        detector = _shared_detector(None if model is None else str(model), engine, threads, _version(model))
    return detector.detect(
        image, input_size=input_size, score_threshold=score_threshold, nms_iou=nms_iou, intrinsics=intrinsics
    )
