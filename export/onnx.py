"""Checkpoint to float ONNX with its manifest."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from img2pose_edge import __version__
from img2pose_edge.manifest import sha256, write_manifest
from img2pose_edge.training.checkpoint import load_checkpoint
from img2pose_edge.training.networks import build_network
from img2pose_edge.training.networks.edge import PIXEL_MEAN, PIXEL_STD, STRIDES, EdgeNet

OPSET = 17
LICENCE = "as the training data allow"
OFFICIAL_DATA = "as the official img2pose checkpoint it was converted from (WIDER FACE)"
OFFICIAL_LICENCE = "CC BY-NC 4.0, as the official img2pose checkpoint it was converted from"


def export_onnx(
    checkpoint: Path,
    out: Path,
    score_threshold: float = 0.5,
    nms_iou: float = 0.5,
    proposals: int = 1000,
    data: str = "",
    licence: str = "",
) -> Path:
    """Write ``out`` (.onnx) and the manifest beside it (.json).

    The graph takes uint8 BGR (1, H, W, 3), H and W multiples of 32, and normalizes inside. An edge network gives,
    per stride, a score logit and a raw local pose; a full one the scores, poses and boxes of its proposals
    (region proposals, their NMS and RoIAlign are in the graph).

    Args:
        checkpoint: of a training run, a published one, or a converted official one.
        out: path ending in ``.onnx``.
        score_threshold, nms_iou: written to the manifest as the runtime's defaults.
        proposals: of a full network in an image; most of its time goes into them.
        data, licence: what the manifest says of the training data and of the weights' licence; default what the
            checkpoint knows of them.

    Returns:
        path of the manifest.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint is missing or not ours, or ``out`` is no .onnx path.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"the output must end in .onnx, got {out}")
    if proposals < 1:
        raise ValueError(f"proposals must be at least 1, got {proposals}")
    state = load_checkpoint(checkpoint)
    network = build_network(state["network"])
    network.load_state_dict(state["weights"])
    network.eval()
    facts = _edge_facts() if isinstance(network, EdgeNet) else _full_facts(network, proposals)
    official = "points68" in facts
    names = [name for kind in facts["outputs"].values() for name in kind]
    _write_graph(network, out, names)
    manifest: dict[str, Any] = {
        "name": state["network"],
        "file": out.name,
        "sha256": sha256(out),
        "format": "onnx",
        "precision": "fp32",
        "parameters": sum(p.numel() for p in network.parameters()),
        "thresholds": {"score": score_threshold, "nms_iou": nms_iou},
        "training": {"steps": state.get("step"), "options": state.get("options", {})},
        "data": data or state.get("data") or (OFFICIAL_DATA if official else "unknown"),
        "licence": licence or (OFFICIAL_LICENCE if official else LICENCE),
        **facts,
        "metrics": {},
        "versions": {"img2pose-edge": __version__, "torch": torch.__version__.split("+")[0], "opset": OPSET},
    }
    return write_manifest(manifest, out.with_suffix(".json"))


def _edge_facts() -> dict[str, Any]:
    return {
        "input": _input(640, PIXEL_MEAN, PIXEL_STD),
        "strides": list(STRIDES),
        "outputs": {"scores": [f"score_{s}" for s in STRIDES], "poses": [f"pose_{s}" for s in STRIDES]},
    }


def _full_facts(network: nn.Module, proposals: int) -> dict[str, Any]:
    from img2pose_edge.training.networks.full import ANCHOR_SIZES, IMAGE_MEAN, IMAGE_STD, FullNet, SearchOptions

    assert isinstance(network, FullNet)
    options = SearchOptions(post_nms_top_n=proposals)
    network.search(options)
    mean, std = ([round(255 * v, 3) for v in reversed(values)] for values in (IMAGE_MEAN, IMAGE_STD))
    facts: dict[str, Any] = {
        "input": _input(640, mean, std),
        "strides": [4 * 2**level for level in range(len(ANCHOR_SIZES))],
        "outputs": {"scores": ["scores"], "poses": ["poses"], "boxes": ["boxes"]},
        "proposals": {"before_nms": options.pre_nms_top_n, "after_nms": proposals},
    }
    if network.official:
        facts["input"] |= {"size": options.max_size, "shortest": options.min_size}
        facts |= {"points68": network.points.tolist()}
    return facts


def _input(size: int, mean: float | list[float], std: float | list[float]) -> dict[str, Any]:
    return {
        "name": "image",
        "layout": "NHWC",
        "color": "BGR",
        "dtype": "uint8",
        "size": size,
        "multiple": 32,
        "mean": mean,
        "std": std,
        "normalization": "inside the graph",
    }


def _write_graph(network: nn.Module, out: Path, names: list[str]) -> None:
    """``out`` appears only when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    axes = {"image": {1: "height", 2: "width"}}
    if isinstance(network, EdgeNet):
        axes |= {n: {2: f"{n}_rows", 3: f"{n}_columns"} for n in names}
    else:
        axes |= {n: {0: "proposals"} for n in names}
    try:
        with warnings.catch_warnings():  # of traced constants: tests compare the graph at other sizes
            warnings.simplefilter("ignore")
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
