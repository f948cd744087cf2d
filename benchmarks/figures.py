"""Where a result of the benchmark holds a figure, and what contenders are called in plots and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]
Place = tuple[str, ...]
SIZE = 640
"""Longest side of the input that short tables and breakdowns show."""
AFLW_MAE: Place = ("accuracy", "aflw2000_subset", "mae")
BIWI_MAE: Place = ("accuracy", "biwi", "local_mae")


def was_busy(machine: dict[str, Any]) -> bool:
    """Whether other work ran on the machine of a benchmark when that began, so that times are too long."""
    return bool((machine.get("load_before") or 0.0) > 0.3 * (machine.get("cores") or 1))


def read(result: Result, place: Place) -> float | None:
    """A figure of a result; ``None`` where it was not measured."""
    value: Any = result
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def whole_call(faces: int | str = 1, threads: int | str = 1) -> Place:
    return ("latency", str(threads), "faces", str(faces), "whole_ms")


def found_faces(result: Result, faces: int | str, threads: int | str = 1) -> int | None:
    """How many faces it found in a scene that has so many."""
    found = read(result, (*whole_call(faces, threads)[:-1], "found"))
    return None if found is None else int(found)


def finds_most(result: Result, faces: int) -> bool:
    """Whether it finds nine in ten of the faces of a scene, without which it saves their time."""
    found = found_faces(result, faces)
    return found is None or found >= 0.9 * faces


def precision(subset: str) -> Place:
    return ("accuracy", "wider", f"ap_{subset}")


def pan_error(low: int, high: int) -> Place:
    return ("accuracy", "pointing04", f"mae_pan_{low}_{high}")


def own_zero_error(low: int, high: int) -> Place:
    return ("accuracy", "pointing04", f"own_zero_mae_pan_{low}_{high}")


def own_line_error(low: int, high: int) -> Place:
    return ("accuracy", "pointing04", f"own_line_mae_pan_{low}_{high}")


def yaw_error(low: int, high: int) -> Place:
    return ("accuracy", "aflw2000_subset", f"mae_yaw_{low}_{high}")


def missed(place: Place) -> Place:
    """How many faces an angle error leaves out, as they were not found."""
    return (*place[:-1], place[-1].replace("mae", "missed"))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def label(result: Result) -> str:
    """Network, where its pose comes from, and the precision."""
    pose = {"pnp": " + PnP", "b66": " + b66"}.get(result["pose"], "")
    return f"{result['network']}{pose} {result['precision']}"


def fastest(results: Sequence[Result]) -> list[Result]:
    """Of each network, pose and precision the engine of the fastest call: ours first, then by time.

    At an input of :data:`SIZE`, or at the next one to it that was measured.
    """
    sizes: dict[str, set[int]] = {}
    for result in results:
        sizes.setdefault(label(result), set()).add(result["size"])
    best: dict[str, tuple[float, Result]] = {}
    for result in results:
        name, time = label(result), read(result, whole_call())
        counts = result["size"] == min(sizes[name], key=lambda size: abs(size - SIZE))
        if time is not None and counts and time < best.get(name, (math.inf, {}))[0]:
            best[name] = time, result
    return [result for _, result in sorted(best.values(), key=lambda b: (not b[1]["ours"], b[0]))]
