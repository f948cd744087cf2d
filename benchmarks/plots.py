"""The benchmark's plots: accuracy against latency, and what makes faces hard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from img2pose_edge.benchmarks.accuracy import PANS, YAWS
from img2pose_edge.benchmarks.figures import (
    AFLW_MAE,
    Place,
    Result,
    fastest,
    finds_most,
    label,
    missed,
    pan_error,
    precision,
    read,
    whole_call,
    yaw_error,
)

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise ImportError('reports need matplotlib: pip install "img2pose-edge[bench]"') from error

MARKERS = {"onnxruntime": "o", "openvino": "s", "tflite": "^", "mediapipe": "D"}
OURS = ("tab:red", "tab:orange", "tab:pink", "tab:purple")
THEIRS = ("tab:blue", "tab:green", "tab:cyan", "tab:olive", "tab:brown", "tab:gray")
TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 2000)
PANELS: tuple[tuple[str, Place, bool], ...] = (
    ("WIDER FACE subset, medium: AP", precision("medium"), True),
    ("WIDER FACE subset, hard: AP", precision("hard"), True),
    ("AFLW2000-3D subset: mean angle error, degrees", AFLW_MAE, False),
)
"""Title, figure, and whether a larger one is better."""


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of those that none beats in both, cheapest first."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not front or gains[i] > gains[front[-1]]:
            front.append(i)
    return front


def drawn(name: str) -> str:
    """A name as matplotlib draws it: dollars begin no formula, and what is no text is question marks."""
    return name.encode("utf-8", "replace").decode().replace("$", r"\$")


def colors(results: Sequence[Result]) -> dict[str, str]:
    """Of each network: warm ones for ours."""
    chosen: dict[str, str] = {}
    for own, palette in ((True, OURS), (False, THEIRS)):
        networks = list(dict.fromkeys(r["network"] for r in results if r["ours"] == own))
        chosen |= {name: palette[i % len(palette)] for i, name in enumerate(networks)}
    return chosen


def draw_panel(
    axes: Axes, results: Sequence[Result], palette: dict[str, str], title: str, place: Place, larger_is_better: bool
) -> None:
    """Every contender as a point; those that none beats in both are joined, numbered, and named where there is room."""
    points = [(r, read(r, whole_call()), read(r, place)) for r in results]
    shown = [(r, time, value) for r, time, value in points if time is not None and value is not None]
    for result, time, value in shown:
        color = palette[result["network"]]
        fill = color if result["ours"] else "none"
        axes.plot(time, value, MARKERS[result["engine"]], color=color, markerfacecolor=fill, markersize=6.5)
    sign = 1 if larger_is_better else -1
    front = [shown[i] for i in pareto([t for _, t, _ in shown], [sign * v for _, _, v in shown])]
    axes.step([t for _, t, _ in front], [v for _, _, v in front], "k:", where="post", linewidth=1, alpha=0.7)
    names = []
    for number, (result, time, value) in enumerate(front, 1):
        above = (-3, 7 * sign - 3)
        axes.annotate(str(number), (time, value), xytext=above, textcoords="offset points", fontsize=7, weight="bold")
        lost = None if larger_is_better else read(result, missed(place))
        names.append(f"{number}  {drawn(label(result))}, {result['size']}" + (f" ({lost:.0f} missed)" if lost else ""))
    unseen = [Line2D([], [], linestyle="") for _ in names]
    axes.legend(unseen, names, fontsize=7, handlelength=0, handletextpad=0, framealpha=0.5, edgecolor="none")
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in TICKS if low <= t <= high])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("whole call, ms", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)


def draw_overview(results: Sequence[Result]) -> Figure:
    """Accuracy against latency: :data:`PANELS`."""
    figure = Figure(figsize=(13.5, 4.4), layout="constrained")
    for number, panel in enumerate(PANELS, 1):
        draw_panel(figure.add_subplot(1, len(PANELS), number), results, colors(results), *panel)

    def entry(name: str, marker: str, color: str, fill: str) -> Line2D:
        return Line2D([], [], color=color, marker=marker, markerfacecolor=fill, linestyle="", label=drawn(name))

    own = {r["network"] for r in results if r["ours"]}
    legend = [entry(n, "o", c, c if n in own else "none") for n, c in colors(results).items()]
    engines = {r["engine"] for r in results}
    legend += [entry(name, marker, "k", "none") for name, marker in MARKERS.items() if name in engines]
    figure.legend(handles=legend, loc="outside lower center", ncols=7, fontsize=8)
    return figure


def draw_lines(
    results: Sequence[Result],
    palette: dict[str, str],
    places: dict[str, Place],
    title: str,
    unit: str,
    log: bool = False,
) -> Figure | None:
    """Named figures, a line for each contender that has any; ``None`` if there is none."""
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for result in results:
        values = [read(result, place) for place in places.values()]
        if all(v is None for v in values):
            continue
        style: dict[str, Any] = {"linestyle": "--" if result["precision"] == "fp32" and result["ours"] else "-"}
        style |= {"marker": "o" if result["ours"] else ".", "markersize": 5}
        style |= {"alpha": 0.45} if result["pose"] == "b66" else {}
        numbers = [math.nan if v is None else v for v in values]
        axes.plot(list(places), numbers, color=palette[result["network"]], label=drawn(label(result)), **style)
    if not axes.lines:
        return None
    if log:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit, fontsize=8)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def draw_breakdowns(results: Sequence[Result]) -> list[Figure]:
    """By number of faces, size of face, attribute and yaw: of each network its fastest engine."""
    chosen = fastest(results)
    counts = sorted({int(n) for r in chosen for n in r["latency"].get("1", {}).get("faces", {})})
    # A pose network beside does not change boxes.
    boxes = list({(r["network"], r["precision"]): r for r in reversed(chosen)}.values())[::-1]
    keys = list(dict.fromkeys(k for r in boxes for k in r["accuracy"].get("wider", {})))
    parts = [k[3:] for k in keys if k.startswith("ap_") and k not in ("ap_easy", "ap_medium", "ap_hard")]
    sizes = {
        p.replace("_px_up", " up").removesuffix("_px").replace("_", "-"): precision(p) for p in parts if "_px" in p
    }
    attributes = {p.replace("_", " "): precision(p) for p in parts if "_px" not in p}
    yaws: dict[str, Place] = {}
    for low, high in YAWS:
        yaws[f"AFLW\n{low}-{high}"] = yaw_error(low, high)
    for low, high in PANS:
        if high - low <= 30:  # apart from one another
            yaws[f"P'04\n{low}-{high}"] = pan_error(low, high)
    palette, number = colors(results), {str(n): whole_call(n) for n in counts}
    finding = [r for r in chosen if all(finds_most(r, n) for n in counts)]
    plots = [
        draw_lines(finding, palette, number, "Whole call by number of faces, of which it finds most", "ms", log=True),
        draw_lines(boxes, palette, sizes, "WIDER FACE subset: AP by size of face, pixels at 640", "AP"),
        draw_lines(chosen, palette, yaws, "AFLW2000-3D subset (three angles), Pointing'04 (pan)", "error, degrees"),
        draw_lines(boxes, palette, attributes, "WIDER FACE: AP by attribute", "AP"),
    ]
    return [plot for plot in plots if plot]
