"""Checkpoint to a model that the runtime loads, in any format and precision, with its manifest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from img2pose_edge.export import onnx as float_onnx
from img2pose_edge.export.describe import check_manifest, describe, edge_facts, full_facts, output_names
from img2pose_edge.export.openvino import write_openvino
from img2pose_edge.export.parity import check_artefact, load_torch
from img2pose_edge.export.quantized_onnx import quantized_onnx
from img2pose_edge.quantize.fold import INPUT_ZERO, FoldedNet
from torch import nn

from img2pose_edge.files import not_yet, remove
from img2pose_edge.training.networks import load_network
from img2pose_edge.training.networks.edge import PIXEL_MEAN, EdgeNet

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite"}
PRECISIONS = ("fp32", "fp16", "int8")
TFLITE_SIZE = 480, 640
PROPOSALS = 1000
MERGE_IOU = 0.6
"""Overlap from which on the poses of one face's cells are averaged."""


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    ``format``: ``onnx``, ``openvino`` or ``tflite``. ``precision``: ``fp32``, ``fp16`` (weights; arithmetic where the
    engine has it) or ``int8``, of a quantized checkpoint. ``size``: height and width of a TFLite model's input,
    multiples of 32 (default 480 and 640). ``proposals``: of a full network in an image (default 1,000).
    ``score_threshold``, ``nms_iou``, ``merge_iou``: the runtime's defaults for this model; poses of an edge network's
    cells are averaged (:data:`MERGE_IOU`) unless ``merge_iou`` is 0, a full network's are not. ``data``, ``licence``:
    what the manifest says of training data and weights; empty means what the checkpoint knows of them.
    """

    format: str = "onnx"
    precision: str = "fp32"
    size: tuple[int, int] | None = None
    proposals: int | None = None
    score_threshold: float = 0.5
    nms_iou: float = 0.5
    merge_iou: float | None = None
    data: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        for name, known in {"format": tuple(FORMATS), "precision": PRECISIONS}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.merge_iou is not None and not 0 <= self.merge_iou <= 1:
            raise ValueError(f"merge_iou must be between 0 and 1, got {self.merge_iou}")
        if self.size and self.format != "tflite":
            raise ValueError(f"size is of models in tflite; those in {self.format} take images of any size")
        if self.proposals is not None and self.proposals < 1:
            raise ValueError(f"proposals must be at least 1, got {self.proposals}")


def export_model(
    checkpoint: Path, out: Path, options: ExportOptions | None = None, images: Sequence[np.ndarray] | None = None
) -> Path:
    """Write ``out`` and the manifest beside it (``.json``), if every engine finds what the torch network finds.

    Args:
        checkpoint: of a training run, a published or converted one; for int8 one that is quantized.
        out: ending in the format's suffix (``.onnx``, ``.xml`` with ``.bin`` beside it, ``.tflite``).
        options: default float ONNX.
        images: (H, W, 3) uint8 BGR photographs to compare on; default one that comes with scikit-image.

    Returns:
        path of the manifest.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint is missing or does not fit the format or precision, or
            an engine cannot run the model or finds other faces in it. Nothing is written then.
        ImportError: if what the format needs is not installed.
    """
    options = options or ExportOptions()
    if out.suffix != FORMATS[options.format]:
        raise ValueError(f"a model in {options.format} must end in {FORMATS[options.format]}, got {out}")
    check_manifest(out)
    new = not_yet(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        undo.callback(remove, new)
        folder = undo.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix="."))
        written = Path(folder) / out.name
        state, network, facts = _write(checkpoint, written, options)
        averaged = MERGE_IOU if isinstance(network, EdgeNet) else 0.0
        merge_iou = averaged if options.merge_iou is None else options.merge_iou
        manifest = describe(
            state,
            network,
            written,
            facts,
            precision=options.precision,
            **({"float_layers": state["float_layers"]} if state.get("float_layers") else {}),
            thresholds={
                "score": options.score_threshold,
                "nms_iou": options.nms_iou,
                "merge_iou": merge_iou,
            },
            data=options.data,
            licence=options.licence,
        )
        check_artefact(network if options.precision != "int8" else load_torch(checkpoint), written, images)
        files = [path for path in Path(folder).iterdir() if path.is_file()]
        new.clear()  # what is made now stays
        for path in sorted(files, key=lambda p: p == manifest):  # the manifest last
            os.replace(path, out.with_suffix(path.suffix))
    return out.with_suffix(".json")


def _write(checkpoint: Path, out: Path, options: ExportOptions) -> tuple[dict[str, Any], nn.Module, dict[str, Any]]:
    """Write the model itself; returns checkpoint, network, and the manifest's facts."""
    int8, half, lite = options.precision == "int8", options.precision == "fp16", options.format == "tflite"
    if int8:
        from img2pose_edge.quantize.graph import load_quantized

        state, network, graph = load_quantized(checkpoint, fold=not lite)
    else:
        state, network = load_network(checkpoint)
    if lite and not isinstance(network, EdgeNet):
        raise ValueError(f"only edge networks run in TFLite, {checkpoint} holds a {state['network']}")
    if options.merge_iou and not isinstance(network, EdgeNet):
        raise ValueError(f"only poses of edge networks are averaged, {checkpoint} holds a {state['network']}")
    if options.proposals is not None and isinstance(network, EdgeNet):
        raise ValueError(f"only full networks have proposals, {checkpoint} holds a {state['network']}")
    facts = edge_facts() if isinstance(network, EdgeNet) else full_facts(network, options.proposals or PROPOSALS)
    if lite:
        from img2pose_edge.export import tflite

        size = options.size or TFLITE_SIZE
        tflite.check_size(size)
        assert isinstance(network, EdgeNet)
        # Floats need no whole steps, and keep the network's own grey beyond the border.
        tflite.write_tflite(graph if int8 else FoldedNet(network, PIXEL_MEAN).eval(), out, size, int8)
        if half:
            tflite.halve(out)
        facts["input"] |= {"size": max(size), "fixed": list(size)} | ({"mean": INPUT_ZERO} if int8 else {})
        return state, network, facts
    middle = out
    if options.format == "openvino":
        middle = Path(tempfile.mkdtemp(dir=out.parent)) / "model.onnx"
    if int8:
        facts["input"]["mean"] = INPUT_ZERO
        onnx.save(quantized_onnx(graph, output_names(facts), options.format == "openvino"), middle)
    else:
        float_onnx.write_onnx(network, middle, output_names(facts))
    if options.format == "openvino":
        write_openvino(middle, out, half, int8)
    elif half:
        float_onnx.halve(middle)
    return state, network, facts
