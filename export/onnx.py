"""Checkpoint to float ONNX with its manifest."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from img2pose_edge.export.describe import check_manifest, describe, edge_facts, full_facts, output_names
from torch import nn

from img2pose_edge.training.networks import load_network
from img2pose_edge.training.networks.edge import EdgeNet

OPSET = 17


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
    check_manifest(out)
    state, network = load_network(checkpoint)
    facts = edge_facts() if isinstance(network, EdgeNet) else full_facts(network, proposals)
    _write_graph(network, out, output_names(facts))
    thresholds = {"score": score_threshold, "nms_iou": nms_iou}
    return describe(
        state, network, out, facts, precision="fp32", opset=OPSET, thresholds=thresholds, data=data, licence=licence
    )


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
