"""What is measured: a model in an engine at an input size, ours or a peer's, with or without a pose of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from img2pose_edge.benchmarks.accuracy import Detect, detect_by
from img2pose_edge.benchmarks.peer_network import ENGINES as PEER_ENGINES

from img2pose_edge.detector import PoseDetector
from img2pose_edge.engines import READERS, installed
from img2pose_edge.manifest import bundled_models, find_model
from img2pose_edge.preprocess import load_image

PEERS = {
    "YuNet": "yunet_n.onnx",
    "SCRFD-500M": "scrfd_500m_kps.onnx",
    "SCRFD-2.5G": "scrfd_2.5g_kps.onnx",
    "RFB-320": "ultralight_rfb_320.onnx",
}
"""Files of the folder of peers."""
HEAD_POSE = "headpose_b66.onnx"
FACE_MESH = "MediaPipe Face Mesh"
MEDIAPIPE = {"MediaPipe detection": ("none", 192), FACE_MESH: ("own", 128)}
"""Whence their poses come, and the side of the square that their detectors look at."""


@dataclass(frozen=True)
class Contender:
    """Attributes:
    network: what it is, without engine and size.
    ours: whether it is ours.
    model: bundled name, or path; empty for MediaPipe, which brings its own.
    engine: ``onnxruntime``, ``openvino``, ``tflite`` or ``mediapipe``.
    precision: ``fp32``, ``fp16`` or ``int8``.
    size: longest side of the network's input, pixels.
    pose: ``own``, ``pnp`` (on five points), ``b66`` or ``none``.
    head_pose: path of b66.
    """

    network: str
    ours: bool
    model: str
    engine: str
    precision: str
    size: int
    pose: str
    head_pose: str = ""

    @property
    def name(self) -> str:
        pose = {"own": "", "none": "", "pnp": " + PnP", "b66": " + b66"}[self.pose]
        what = Path(self.model).stem if self.ours else self.network
        return f"{what}{pose} {self.engine} {self.size}"

    @property
    def detection(self) -> str:
        """Contenders for which this is equal find the same boxes."""
        return f"{self.network} {self.model} {self.size}"

    @property
    def scored(self) -> bool:
        """Whether its faces have scores, without which there is no average precision."""
        return self.network != FACE_MESH

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Opened:
    """A contender ready to run: ``detect`` is the whole call, ``network(image)`` gives the detection network's run
    alone on what it sees of an image, or ``None`` where it cannot be taken apart."""

    detect: Detect
    network: Callable[[np.ndarray], Callable[[], object] | None]


def open_contender(contender: Contender, threads: int) -> Opened:
    """Load it.

    Raises:
        FileNotFoundError, ValueError, ImportError: naming what is missing or does not fit.
    """
    if contender.ours:
        return _open_ours(contender, threads)
    if contender.engine == "mediapipe":
        from img2pose_edge.benchmarks import media_pipe

        opens = media_pipe.face_mesh if contender.pose == "own" else media_pipe.face_detection
        return Opened(opens(), lambda _: None)
    from img2pose_edge.benchmarks.head_pose import HeadPoseNetwork, with_points
    from img2pose_edge.benchmarks.peers import Peer

    peer = Peer(Path(contender.model), contender.size, threads, contender.engine, alone=contender.pose != "b66")
    if peer.network.size and max(peer.network.size) != contender.size:
        raise ValueError(f"it takes {max(peer.network.size)} pixels only")
    detect: Detect = peer
    if contender.pose == "pnp":
        detect = with_points(peer)
    elif contender.pose == "b66":
        detect = HeadPoseNetwork(Path(contender.head_pose), threads, contender.engine).posed(peer)

    def network(image: np.ndarray) -> Callable[[], object]:
        blob = peer.prepare(image)[0]
        return lambda: peer.network.run(blob)

    return Opened(detect, network)


def _open_ours(contender: Contender, threads: int) -> Opened:
    # Peers run on the processor, whatever else ONNX Runtime would choose here.
    engine = {"onnxruntime": "onnxruntime:cpu"}.get(contender.engine, contender.engine)
    detector = PoseDetector(contender.model, engine, contender.size, threads=threads)
    _ = detector._network  # loaded now, as peers are: what their first pictures take can then be compared

    def network(image: np.ndarray) -> Callable[[], object]:
        pixels = detector.network_input(load_image(image))[0]
        return lambda: detector.run_network(pixels)

    return Opened(detect_by(detector), network)


def our_contenders(models: Sequence[str], sizes: Sequence[int], missing: list[str]) -> list[Contender]:
    """Our models in every installed engine that reads them, at every size that they take.

    Args:
        models: bundled names or paths; without any all bundled ones.
        sizes: longest sides, pixels.
        missing: what is left out is added to it, by name and reason.
    """
    found = []
    for named in models or bundled_models():
        try:
            model = find_model(named)
        except (OSError, ValueError) as error:
            missing.append(str(error))
            continue
        engines = READERS.get(model.path.suffix, ())
        if not engines:
            missing.append(f"{named}: no engine reads {model.path.suffix}, but {', '.join(READERS)}")
        for engine in engines:
            if not installed(engine):
                missing.append(f"{named} in {engine}: it is not installed")
                continue
            takes = [s for s in sizes if not model.fixed or s == model.input_size]
            if not takes and named not in bundled_models():
                takes = [model.input_size]
            missing.extend(f"{named} at {s}: it takes {model.input_size} only" for s in sizes if s not in takes)
            precision = str(model.manifest.get("precision", "fp32"))
            # Of a user's own models each counts for itself, whatever it was exported from.
            network = network_name(named) if named in bundled_models() else Path(named).stem
            found += [Contender(network, True, str(named), engine, precision, s, "own") for s in takes]
    return found


def network_name(model: str) -> str:
    """``edge-n`` of ``edge-n-int8-640x480``: what was trained, without how it is written."""
    return model.split("-int8")[0].split("-fp16")[0]


def peer_contenders(folder: Path, sizes: Sequence[int], missing: list[str]) -> list[Contender]:
    """Peers whose files a folder holds: each alone, with PnP where it has points, and with b66.

    Arguments as :func:`our_contenders`.
    """
    if not folder.is_dir():
        missing.append(f"peers: no folder {folder}")
        return []
    head_pose = folder / HEAD_POSE
    if not head_pose.is_file():
        missing.append(f"peers with b66: no file {head_pose}")
    found = []
    for network, file in PEERS.items():
        path = folder / file
        if not path.is_file():
            missing.append(f"{network}: no file {path}")
            continue
        poses = ["none"] if network == "RFB-320" else ["none", "pnp"]
        poses += ["b66"] if head_pose.is_file() else []
        own_sizes = [320] if network == "RFB-320" else sizes
        for engine in PEER_ENGINES:
            if not installed(engine):
                missing.append(f"{network} in {engine}: it is not installed")
                continue
            for size in own_sizes:
                for pose in poses:
                    beside = str(head_pose) if pose == "b66" else ""
                    found.append(Contender(network, False, str(path), engine, "fp32", size, pose, beside))
    return found


def mediapipe_contenders() -> list[Contender]:
    """MediaPipe's detector, and its Face Mesh."""
    return [
        Contender(network, False, "", "mediapipe", "fp32", size, pose) for network, (pose, size) in MEDIAPIPE.items()
    ]
