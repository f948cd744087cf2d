"""Checkpoint to float ONNX with its manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from img2pose_edge import __version__
from img2pose_edge.manifest import sha256, write_manifest
from img2pose_edge.training.checkpoint import load_checkpoint
from img2pose_edge.training.networks import build_network
from img2pose_edge.training.networks.edge import CONFIGS, PIXEL_MEAN, PIXEL_STD, STRIDES

OPSET = 17
SCORE_OUTPUTS = [f"score_{s}" for s in STRIDES]
POSE_OUTPUTS = [f"pose_{s}" for s in STRIDES]
DATA = (
    "WIDER FACE (CC BY-NC-ND 4.0), 300W, MTFL/LFW, GENKI-4K (research use), a public set of masked faces, "
    "Pointing'04 (free with citation); poses labelled by WHENet, b66 and 3DDFA_V2, five points and part of the "
    "boxes by SCRFD-2.5G"
)
LICENCE = "non-commercial research use, as the training data"


def export_onnx(checkpoint: Path, out: Path, score_threshold: float = 0.5, nms_iou: float = 0.5) -> Path:
    """Write ``out`` (.onnx) and the manifest beside it (.json).

    The graph takes uint8 BGR (1, H, W, 3), H and W multiples of the largest stride, normalizes inside
    and gives per stride a score logit and a raw local pose.

    Args:
        checkpoint: of a training run, or a published one.
        out: path ending in ``.onnx``.
        score_threshold, nms_iou: written to the manifest as the runtime's defaults.

    Returns:
        path of the manifest.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint is missing or not ours, or ``out`` is no .onnx path.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"the output must end in .onnx, got {out}")
    state = load_checkpoint(checkpoint)
    if state["network"] not in CONFIGS:
        raise ValueError(f"only {', '.join(CONFIGS)} can be exported yet, {checkpoint} holds a {state['network']}")
    network = build_network(state["network"])
    network.load_state_dict(state["weights"])
    network.eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    names = SCORE_OUTPUTS + POSE_OUTPUTS
    axes = {"image": {1: "height", 2: "width"}, **{n: {2: f"{n}_rows", 3: f"{n}_columns"} for n in names}}
    try:
        torch.onnx.export(
            network,
            (torch.zeros(1, 480, 640, 3, dtype=torch.uint8),),
            str(partial),
            input_names=["image"],
            output_names=names,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    manifest: dict[str, Any] = {
        "name": state["network"],
        "file": out.name,
        "sha256": sha256(out),
        "format": "onnx",
        "precision": "fp32",
        "parameters": sum(p.numel() for p in network.parameters()),
        "input": {
            "name": "image",
            "layout": "NHWC",
            "color": "BGR",
            "dtype": "uint8",
            "size": 640,
            "multiple": max(STRIDES),
            "mean": PIXEL_MEAN,
            "std": PIXEL_STD,
            "normalization": "inside the graph",
        },
        "strides": list(STRIDES),
        "outputs": {"scores": SCORE_OUTPUTS, "poses": POSE_OUTPUTS},
        "thresholds": {"score": score_threshold, "nms_iou": nms_iou},
        "training": {"steps": state["step"], "options": state.get("options", {})},
        "data": DATA,
        "licence": LICENCE,
        "metrics": {},
        "versions": {"img2pose-edge": __version__, "torch": torch.__version__.split("+")[0], "opset": OPSET},
    }
    return write_manifest(manifest, out.with_suffix(".json"))
