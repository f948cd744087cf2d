"""Do exported models, in every engine, find the faces and poses that the torch network finds?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from img2pose_edge.quantize.fold import LEAST
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from img2pose_edge import geometry
from img2pose_edge.detector import PoseDetector
from img2pose_edge.engines import READERS, installed
from img2pose_edge.face import Face
from img2pose_edge.nms import pairwise_iou
from img2pose_edge.training.checkpoint import load_checkpoint
from img2pose_edge.training.networks import load_network

SCORE, BOX, ANGLE = 0.01, 1.0, 0.5
"""What may differ: probability, pixels at a longest side of 640, degrees."""
MARGIN = 0.05
"""A face whose score is this near to the threshold may be found by one and missed by the other."""
SAME_IOU = 0.5
PIXELS = 640
MAPS, ANY_MAPS = 0.2, 3.0
"""What raw maps of an edge network may differ by where no faces are found to compare (float16 takes most of it), and in
any case (TFLite's own kernels, without XNNPACK, round int8 by up to 1.6)."""


class TorchEngine:
    """A torch network in the place of an engine."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @torch.no_grad()
    def run(self, image: np.ndarray) -> list[np.ndarray]:
        if isinstance(self._network, GraphModule) and min(image.shape[1:3]) < LEAST:
            raise ValueError(f"quantized torch graphs take images of at least {LEAST}x{LEAST} pixels: name larger ones")
        return [output.float().numpy() for output in tree_leaves(self._network(torch.from_numpy(image)))]


@dataclass(frozen=True)
class Parity:
    """Differences over all photographs: faces found by both, by one alone, and the largest of each kind.

    ``maps``: of the raw outputs of an edge network, NaN where the two do not see the same pixels.
    """

    faces: int
    alone: int
    score: float
    box: float
    angle: float
    maps: float = math.nan

    @property
    def holds(self) -> bool:
        """Whether the same faces are found and nothing differs by more than it may."""
        return self.alone == 0 and self.score <= SCORE and self.box <= BOX and self.angle <= ANGLE


def match(first: list[Face], second: list[Face]) -> list[tuple[int, int]]:
    """Pairs of faces that overlap each other most, by at least ``SAME_IOU``."""
    if not first or not second:
        return []
    overlap = pairwise_iou(np.array([f.box for f in first]), np.array([f.box for f in second]))
    back = overlap.argmax(0)
    return [(i, j) for i, j in enumerate(overlap.argmax(1)) if back[j] == i and overlap[i, j] >= SAME_IOU]


def compare(reference: PoseDetector, other: PoseDetector, images: Iterable[np.ndarray]) -> Parity:
    """Compare what two detectors find.

    Args:
        reference, other: detectors; faces near ``reference``'s score threshold (:data:`MARGIN`) may be missed.
        images: (H, W, 3) uint8 BGR.
    """
    pairs: list[tuple[Face, Face, float]] = []
    alone, maps = 0, []
    for image in images:
        seen = [detector.network_input(image)[0] for detector in (reference, other)]
        proposals = reference.model.has_proposals or other.model.has_proposals
        if not proposals and seen[0].shape == seen[1].shape:
            first, second = ([m.copy() for m in d.run_network(seen[0])] for d in (reference, other))
            maps += [np.abs(a - b).max() for a, b in zip(first, second, strict=True)]
        faces = reference.detect(image), other.detect(image)
        matched = match(*faces)
        pairs += [(faces[0][i], faces[1][j], PIXELS / max(image.shape)) for i, j in matched]
        for side, found in enumerate(faces):
            single = set(range(len(found))) - {pair[side] for pair in matched}
            alone += sum(found[k].score > reference.score_threshold + MARGIN for k in single)
    largest = float(np.max(maps)) if maps else math.nan
    if not pairs:
        return Parity(0, alone, 0.0, 0.0, 0.0, largest)
    turned = geometry.geodesic_distance(
        np.stack([a.local_rotation for a, _, _ in pairs]), np.stack([b.local_rotation for _, b, _ in pairs])
    )
    return Parity(
        len(pairs),
        alone,
        max(abs(a.score - b.score) for a, b, _ in pairs),
        max(float(np.abs(a.box - b.box).max() * scale) for a, b, scale in pairs),
        float(np.degrees(turned.max())),
        largest,
    )


def load_torch(checkpoint: Path) -> nn.Module:
    """The network of a checkpoint, or the quantized graph of one that is quantized.

    Raises:
        FileNotFoundError, ValueError: if it is missing or not ours.
    """
    if not load_checkpoint(checkpoint).get("int8"):
        return load_network(checkpoint)[1]
    from img2pose_edge.quantize.graph import load_quantized

    return load_quantized(checkpoint)[2]


def torch_detector(network: nn.Module, path: Path) -> PoseDetector:
    """A detector that runs a torch network as the model at ``path``, which was exported from it, is run."""
    detector = PoseDetector(path)
    if detector.model.has_proposals != hasattr(network, "search"):
        raise ValueError(f"{path} was not exported from this checkpoint: one is an edge network, the other a full one")
    if detector.model.has_proposals:
        from img2pose_edge.training.networks.full import FullNet, SearchOptions

        assert isinstance(network, FullNet)
        kept = detector.model.manifest["proposals"]
        network.search(SearchOptions(pre_nms_top_n=kept["before_nms"], post_nms_top_n=kept["after_nms"]))
    vars(detector)["_network"] = TorchEngine(network)  # in the place of what would be loaded at the first picture
    return detector


def photographs() -> list[np.ndarray]:
    """A photograph of a face that may be shown to anyone: straight, mirrored, cut, and as small and as large as other
    strides of an edge network find it.

    Raises:
        ImportError: if scikit-image, which it comes with, is not installed.
    """
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise ImportError("name photographs to compare on, or: pip install scikit-image") from error
    image = np.ascontiguousarray(astronaut()[..., ::-1])
    small = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
    large = cv2.resize(image[:250, 100:350], (640, 640))
    return [image, np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(image[20:330, 60:470]), small, large]


def check_artefact(network: nn.Module, path: Path, images: Sequence[np.ndarray] | None = None) -> dict[str, Parity]:
    """Compare a model with the network it was exported from, in every installed engine that reads it.

    Args:
        network: torch network, or quantized graph.
        path: of the model, its manifest beside it.
        images: (H, W, 3) uint8 BGR; default :func:`photographs`.

    Returns:
        parity by engine.

    Raises:
        ValueError: naming the engine that cannot run the model, or that finds something else; if there are no images.
    """
    shown = photographs() if images is None else images
    if not len(shown):
        raise ValueError("a model is compared with torch on photographs, got none")
    reference = torch_detector(network, path)
    found = {}
    for engine in READERS[path.suffix]:
        if not installed(engine):
            continue
        first = shown[0]  # one that cannot be read is not the engine's fault
        try:
            detector = PoseDetector(path, engine=engine, threads=1)
            detector.detect(first)
        except Exception as error:  # every engine has kinds of its own for operators it lacks
            raise ValueError(f"{engine} cannot run {path.name}: {error}") from error
        del first  # of many photographs one at a time is held
        found[engine] = compare(reference, detector, shown)
        seen = found[engine].faces > 0 and not found[engine].maps > ANY_MAPS
        if not found[engine].faces and detector.model.has_proposals:
            warnings.warn(f"{path.name} finds no face in the photographs: only that it runs was seen", stacklevel=3)
            seen = True
        if not found[engine].holds or not (seen or found[engine].maps <= MAPS):
            raise ValueError(f"{engine} finds something else in {path.name} than torch: {found[engine]}")
    return found
