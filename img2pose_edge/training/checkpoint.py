"""Checkpoints: written atomically, read without running code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from img2pose_edge.files import write_file


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` holds either the old or the new checkpoint, never half of one."""
    data = io.BytesIO()
    torch.save(state, data)
    write_file(path, data.getvalue(), sync=True)


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, onto the CPU, without running code that the file may carry.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error!r}") from error
    except Exception as error:  # torch raises several unrelated kinds for damaged files
        # Its text is advice to run what the file carries.
        why = "it is none, is damaged, or holds more than tensors and plain values"
        raise ValueError(f"{path} cannot be read as a checkpoint: {why}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not a checkpoint of ours.
    """
    state = read_torch_file(path)
    if not isinstance(state, dict) or not {"network", "weights"} <= state.keys():
        raise ValueError(f"{path} is not an img2pose-edge checkpoint: it lacks 'network' or 'weights'")
    return state


def run_of(state: dict[str, Any]) -> dict[str, Any]:
    """``steps`` and ``options`` of the run that a checkpoint is of, its teachers by their files' names: where they lie
    on somebody's machine is nobody's business."""
    options = {**state.get("options", {})}
    if "teacher" in options:
        teachers = [options["teacher"]] if isinstance(options["teacher"], str) else options["teacher"]
        options["teacher"] = [Path(teacher).name for teacher in teachers if teacher]
    return {"steps": state.get("step"), "options": options}


def join_origins(states: Sequence[dict[str, Any]]) -> dict[str, str]:
    """``data`` and ``licence`` of weights that come from several checkpoints or data sets, in order; what none of them
    tells is left out."""
    joined = {}
    for name in ("data", "licence"):
        known = [part for state in states for part in str(state.get(name) or "").split("; ") if part]
        if known:
            joined[name] = "; ".join(dict.fromkeys(known))
    return joined
