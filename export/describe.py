"""What a manifest says of an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from img2pose_edge import __version__
from img2pose_edge.manifest import sha256, write_manifest
from img2pose_edge.training.checkpoint import run_of
from img2pose_edge.training.networks.edge import PIXEL_MEAN, PIXEL_STD, SCORE_GAIN, STRIDES, SUPPORT_GAIN
from img2pose_edge.training.official import OFFICIAL_DATA, OFFICIAL_LICENCE

LICENCE = "as the training data allow"


def output_names(facts: dict[str, Any]) -> list[str]:
    return [name for kind in facts["outputs"].values() for name in kind]


def check_manifest(out: Path) -> None:
    """Raise ``ValueError`` if the manifest beside ``out`` is that of another model."""
    path = out.with_suffix(".json")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))["file"] if path.is_file() else out.name
    except (ValueError, KeyError, TypeError):
        held = "something else"
    if held != out.name:
        raise ValueError(f"the manifest of {out} would overwrite {path}, which describes {held}: choose another name")


def describe(state: dict[str, Any], network: nn.Module, out: Path, facts: dict[str, Any], **more: Any) -> Path:
    """Write the manifest beside the exported model ``out``.

    Args:
        state: checkpoint that it comes from.
        network: of which it holds the weights.
        facts: :func:`edge_facts` or :func:`full_facts`.
        more: further entries, or others than the default ones; empty ``data`` and ``licence`` mean what the
            checkpoint knows of them.

    Returns:
        path of the manifest.
    """
    official = "points68" in facts
    manifest = {
        "name": out.stem,
        "file": out.name,
        "sha256": sha256(out),
        "format": {".xml": "openvino"}.get(out.suffix, out.suffix.removeprefix(".")),
        "parameters": sum(p.numel() for p in network.parameters()),
        "training": {"averaged": state["averaged"]} if "averaged" in state else run_of(state),
        "metrics": {},
        "versions": {"img2pose-edge": __version__, "torch": torch.__version__.split("+")[0]},
        **facts,
        **more,
    }
    manifest["data"] = manifest.get("data") or state.get("data") or (OFFICIAL_DATA if official else "unknown")
    known = state.get("licence") or (OFFICIAL_LICENCE if official else LICENCE)
    manifest["licence"] = manifest.get("licence") or known
    return write_manifest(manifest, out.with_suffix(".json"))


def edge_facts() -> dict[str, Any]:
    return {
        "input": _input(640, PIXEL_MEAN, PIXEL_STD),
        "strides": list(STRIDES),
        "score_gain": SCORE_GAIN,
        "support_gain": SUPPORT_GAIN,
        "outputs": {"scores": [f"score_{s}" for s in STRIDES], "poses": [f"pose_{s}" for s in STRIDES]},
    }


def full_facts(network: nn.Module, proposals: int) -> dict[str, Any]:
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
        "multiple": max(STRIDES),
        "mean": mean,
        "std": std,
        "normalization": "inside the graph",
    }
