"""A model and its manifest: the JSON file beside it that holds its facts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from img2pose_edge.files import write_file
from img2pose_edge.processor import has_vnni

MODELS = Path(__file__).with_name("models")
FLOAT_MODEL, INT8_MODEL = "edge-n", "edge-n-int8"
ENGINE_MODELS = {"openvino": "edge-n-int8-ov", "tflite": "edge-n-int8-640x480"}
"""Of engines with a format of their own."""
REQUIRED = ("name", "file", "sha256", "input", "strides", "outputs", "thresholds", "data", "licence", "metrics")


@dataclass(frozen=True)
class Model:
    """A model file, and its manifest as parsed JSON (fields: ``models/README.md``)."""

    path: Path
    manifest: dict[str, Any]

    @property
    def input_size(self) -> int:
        """Longest side in pixels at which the model works best."""
        return int(self.manifest["input"]["size"])

    @property
    def multiple(self) -> int:
        """Input height and width must be multiples of this."""
        return int(self.manifest["input"]["multiple"])

    @property
    def strides(self) -> list[int]:
        return list(self.manifest["strides"])

    @property
    def shortest(self) -> int:
        """Pixels that the shorter side is brought to; 0 leaves small images as they are."""
        return int(self.manifest["input"].get("shortest", 0))

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width of the only input that the model takes; ``None`` if it takes any."""
        size = self.manifest["input"].get("fixed")
        return None if size is None else (int(size[0]), int(size[1]))

    @property
    def output_names(self) -> list[str]:
        """Of all outputs, in the order in which engines return them."""
        return [name for kind in self.manifest["outputs"].values() for name in kind]

    @property
    def has_proposals(self) -> bool:
        """Whether the outputs are of proposals (the full model), not of cells (the edge models)."""
        return "boxes" in self.manifest["outputs"]

    @property
    def points68(self) -> np.ndarray | None:
        """(68, 3) reference points of an official checkpoint; ``None`` for a model of our own conventions."""
        points = self.manifest.get("points68")
        return None if points is None else np.array(points, float)

    @property
    def score_threshold(self) -> float:
        return float(self.manifest["thresholds"]["score"])

    @property
    def score_gain(self) -> float:
        """What the logit of a face's score gains with each doubling of its size, beyond what the network says."""
        return float(self.manifest.get("score_gain", 0.0))

    @property
    def support_gain(self) -> float:
        """What the logit of an unsure face loses with each halving of the cells that agree on it; where it is more than
        0, yaw and size count, too (``decode.weigh_unsure``)."""
        return float(self.manifest.get("support_gain", 0.0))

    @property
    def float_layers(self) -> list[str]:
        """Convolutions of an int8 model that are not quantized."""
        return list(self.manifest.get("float_layers", []))

    @property
    def nms_iou(self) -> float:
        return float(self.manifest["thresholds"]["nms_iou"])

    @property
    def merge_iou(self) -> float:
        """Overlap from which on poses of one face are averaged; 0: the best-scored one is taken."""
        return float(self.manifest["thresholds"].get("merge_iou", 0.0))


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


def default_model(engine: str = "auto") -> str:
    """Name of the bundled model for an engine on this machine.

    Int8 where it was measured to be faster at equal accuracy (x86 with VNNI: docs/experiments.md); float on processors
    that it was not measured on or is slower on, and on accelerators, which compute in float16.
    """
    name, _, provider = str(engine).partition(":")  # what is no name is told by the engines
    if name in ENGINE_MODELS:
        return ENGINE_MODELS[name]
    return INT8_MODEL if has_vnni() and runs_on_cpu(provider) else FLOAT_MODEL


def runs_on_cpu(provider: str) -> bool:
    """Whether an execution provider of ONNX Runtime, or the automatic one (empty), is the CPU."""
    from img2pose_edge.engines.ort import PROVIDERS, automatic_provider  # not before a detector is made

    return provider == "cpu" or (not provider and automatic_provider() == PROVIDERS["cpu"])


def sha256(path: Path) -> str:
    """Of a model file, and of the weights beside it (``.bin``) where the file is OpenVINO's ``.xml``."""
    weights = path.with_suffix(".bin").read_bytes() if path.suffix == ".xml" else b""
    return hashlib.sha256(path.read_bytes() + weights).hexdigest()


def find_model(model: str | Path | None = None, engine: str = "auto") -> Model:
    """A bundled model by name, or any model by path (its manifest beside it, same name, ``.json``).

    Args:
        model: default :func:`default_model` of the engine.
        engine: that will run it.

    Raises:
        FileNotFoundError: if the model or its manifest is not there.
        ValueError: if the manifest is damaged, or not that of the file.
    """
    name = default_model(engine) if model is None else str(model)
    bundled = MODELS / f"{name}.json"
    is_name = Path(name).name == name and os.path.isfile(bundled)  # it takes a text that is too long for a path
    if not is_name and not os.path.isfile(name):
        raise FileNotFoundError(
            f"no model {name[:300]!r}: neither a file nor a bundled model ({', '.join(bundled_models()) or 'none'})"
        )
    manifest_path = bundled if is_name else Path(name).with_suffix(".json")
    if not manifest_path.is_file():
        raise FileNotFoundError(f"model {name} has no manifest {manifest_path} beside it")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"manifest {manifest_path} is not valid JSON: {error}") from error
    missing = [key for key in REQUIRED if key not in manifest] if isinstance(manifest, dict) else list(REQUIRED)
    if missing:
        raise ValueError(f"manifest {manifest_path} lacks {', '.join(missing)}")
    wrong = wrong_fields(manifest)
    if wrong:
        raise ValueError(f"manifest {manifest_path} is damaged: {', '.join(wrong)}")
    # The engine reads it later, from another working directory perhaps.
    path = manifest_path.with_name(manifest["file"]) if is_name else Path(name).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"model file {path} named by {manifest_path} is missing")
    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
        raise FileNotFoundError(f"model {path} has no weights {path.with_suffix('.bin')} beside it")
    found = sha256(path)
    if found != manifest["sha256"]:
        raise ValueError(
            f"model {path} is not the one its manifest describes: its sha256 is {found}, expected {manifest['sha256']}"
        )
    return Model(path, manifest)


def wrong_fields(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the fields that the runtime reads."""

    def number(section: str, field: str, low: float, high: float, default: Any = None) -> str:
        values = manifest[section] if isinstance(manifest[section], dict) else {}
        value = values.get(field, default)
        whole = section == "input"  # of pixels
        kinds = (int,) if whole else (int, float)
        good = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        kind = "a whole number" if whole else "a number"
        return "" if good else f"{section}.{field} must be {kind} from {low:g} to {high:g}, got {value!r}"

    def numbers(name: str, values: Any, count: int | None = None) -> str:
        good = isinstance(values, list) and all(type(v) is int and v > 0 for v in values)
        good = good and (len(values) == count if count else bool(values))
        return "" if good else f"{name} must be {count or 'some'} positive whole numbers, got {values!r}"

    points = manifest.get("points68")
    try:
        posed = points is None or np.array(points, float).shape == (68, 3)
    except (ValueError, TypeError):
        posed = False
    gains = [(name, manifest.get(name, 0.0)) for name in ("score_gain", "support_gain")]
    fixed = manifest["input"].get("fixed") if isinstance(manifest["input"], dict) else None
    lists = manifest["outputs"].values() if isinstance(manifest["outputs"], dict) else []
    named = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
    kinds = list(manifest["outputs"]) if isinstance(manifest["outputs"], dict) else []
    every = [name for names in lists for name in names] if named else []
    order = "" if len(set(every)) == len(every) else "outputs must have names of their own"
    if named and "boxes" in kinds and any(len(names) != 1 for names in lists):
        order = "outputs must be one of scores, poses and boxes each"
    if kinds not in (["scores", "poses"], ["scores", "poses", "boxes"]):
        order = "outputs must be scores, then poses"
    found = (
        number("input", "size", 1, 1e5),
        number("input", "multiple", 1, 1e5),
        number("input", "shortest", 0, 1e5, 0),
        "" if fixed is None else numbers("input.fixed", fixed, 2),
        numbers("strides", manifest["strides"]) if kinds == ["scores", "poses"] else "",
        number("thresholds", "score", 0, 1),
        number("thresholds", "nms_iou", 0, 1),
        number("thresholds", "merge_iou", 0, 1, 0.0),
        *(f"{k} must be 0 to 100, got {v!r}" for k, v in gains if not isinstance(v, (int, float)) or not 0 <= v < 100),
        "" if posed else "points68 must be 68 points x, y, z",
        order or ("" if named else "outputs must be lists of names"),
    )
    wrong = [text for text in found if text]
    return wrong_strides(manifest) if kinds == ["scores", "poses"] and not wrong else wrong


def wrong_strides(manifest: dict[str, Any]) -> list[str]:
    """Whether the strides fit neither outputs nor input, each of which is sound alone."""
    strides, multiple = manifest["strides"], manifest["input"]["multiple"]
    if any(len(names) != len(strides) for names in manifest["outputs"].values()):
        return [f"there must be as many scores and poses as strides, {len(strides)}"]
    if multiple % max(strides):
        return [f"input.multiple must be a multiple of the strides, got {multiple}"]
    fixed = manifest["input"].get("fixed")
    if fixed and any(side % multiple for side in fixed):
        return [f"input.fixed must be multiples of input.multiple, {multiple}, got {fixed}"]
    return []


def check_maps(model: Model, outputs: Sequence[np.ndarray], shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` if an edge network's outputs for an image of ``shape``, (1, H, W, 3), are not those that the
    manifest tells: one value or nine at every stride."""
    for outputs_of, values in ((outputs[: len(model.strides)], 1), (outputs[len(model.strides) :], 9)):
        for stride, found in zip(model.strides, outputs_of, strict=True):
            wanted = (1, values, shape[1] // stride, shape[2] // stride)
            if found.shape != wanted:
                raise ValueError(
                    f"outputs or strides in the manifest of {model.path} are not the model's: {found.shape} at stride "
                    f"{stride} instead of {wanted}"
                )


def check_outputs(named: list[str], found: list[str]) -> None:
    """Raise ``ValueError`` if a model lacks outputs that its manifest names."""
    missing = [name for name in named if name not in found]
    if missing:
        raise ValueError(f"the manifest names outputs {', '.join(missing)}, which the model lacks: {', '.join(found)}")


def write_manifest(manifest: dict[str, Any], path: Path) -> Path:
    """Write a manifest so that ``path`` holds either the old or the new one."""
    write_file(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    return path
