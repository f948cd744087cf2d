"""Checkpoint to TFLite, float or int8 (but for normalization and last convolutions), with its manifest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from img2pose_edge.export.describe import check_manifest, describe, edge_facts
from img2pose_edge.quantize.fold import FoldedNet
from img2pose_edge.quantize.graph import EdgeQuantizer, quantize_checkpoint, quantizer

from img2pose_edge.training.networks import load_network
from img2pose_edge.training.networks.edge import STRIDES, EdgeNet

MULTIPLE = max(STRIDES)


def export_tflite(
    checkpoint: Path,
    out: Path,
    size: tuple[int, int] = (480, 640),
    pictures: Iterable[np.ndarray] = (),
    int8: bool = False,
    score_threshold: float = 0.5,
    nms_iou: float = 0.5,
    data: str = "",
    licence: str = "",
) -> Path:
    """Write ``out`` (.tflite) and the manifest beside it (.json).

    Args:
        checkpoint: of a training run of an edge network, or a published one.
        out: path ending in ``.tflite``.
        size: height and width of the input, multiples of 32: TFLite plans its memory for one.
        pictures: for int8, as in ``export.int8.export_int8``.
        int8: quantize; else float.
        score_threshold, nms_iou, data, licence: as in ``export.int8.export_int8``.

    Returns:
        path of the manifest.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint is missing or not of an edge network, ``out`` is no
            .tflite path, the size does not fit, or int8 lacks pictures.
    """
    if out.suffix != ".tflite":
        raise ValueError(f"the output must end in .tflite, got {out}")
    if min(size) < 2 * MULTIPLE or any(side % MULTIPLE for side in size):
        raise ValueError(f"height and width must be multiples of {MULTIPLE} and at least {2 * MULTIPLE}, got {size}")
    check_manifest(out)
    if int8:
        # Weights stay float in the graph, behind their quantization: LiteRT's converter folds them itself.
        state, network, graph = quantize_checkpoint(checkpoint, pictures, fold=False)
    else:
        state, network = load_network(checkpoint)
        if not isinstance(network, EdgeNet):
            raise ValueError(f"only edge networks run in TFLite, {checkpoint} holds a {state['network']}")
        graph = FoldedNet(network).eval()
    _write(graph, out, size, quantizer() if int8 else None)
    facts = edge_facts()
    facts["input"] |= {"size": max(size), "fixed": list(size)}
    return describe(
        state,
        network,
        out,
        facts,
        precision="int8" if int8 else "fp32",
        thresholds={"score": score_threshold, "nms_iou": nms_iou},
        data=data,
        licence=licence,
    )


def _write(graph: torch.nn.Module, out: Path, size: tuple[int, int], annotator: EdgeQuantizer | None) -> None:
    import litert_torch
    from litert_torch.quantize.quant_config import QuantConfig

    config = QuantConfig(pt2e_quantizer=annotator) if annotator else None
    picture = torch.zeros(1, *size, 3, dtype=torch.uint8)
    model = litert_torch.convert(graph, (picture,), quant_config=config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as folder:
        partial = Path(folder) / out.name
        model.export(str(partial))
        os.replace(partial, out)
