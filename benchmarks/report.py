"""The benchmark as a page, a picture and a table to look at."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from img2pose_edge.benchmarks.accuracy import OWN_PANS, SUBSETS, YAWS
from img2pose_edge.benchmarks.figures import (
    AFLW_MAE,
    BIWI_MAE,
    Place,
    Result,
    fastest,
    found_faces,
    label,
    markdown,
    missed,
    own_line_error,
    own_zero_error,
    pan_error,
    precision,
    read,
    was_busy,
    whole_call,
    yaw_error,
)
from img2pose_edge.benchmarks.plots import draw_breakdowns, draw_overview

from img2pose_edge.files import write_file

try:
    import jinja2
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('reports need jinja2 and matplotlib: pip install "img2pose-edge[bench]"') from error

SHOWN_PANS = ((0, 60), (75, 90))


def picture(figure: Figure, kind: str) -> bytes:
    """A figure as ``svg`` or ``png``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def embedded(figure: Figure) -> str:
    """A figure as an image that a page can hold."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture(figure, "svg")).decode()


def cell(result: Result, place: Place, digits: int, factor: float = 1.0) -> str:
    value = read(result, place)
    return "–" if value is None else f"{value * factor:.{digits}f}"


def time_cell(result: Result, faces: int | str, threads: int | str, digits: int) -> str:
    """Milliseconds of a whole call; and how many faces it found, if they are not those that are there."""
    found = found_faces(result, faces, threads)
    note = "" if found in (None, int(faces)) else f" ({found} found)"
    return cell(result, whole_call(faces, threads), digits) + note


def error_cell(result: Result, place: Place, digits: int) -> str:
    """A mean error, and how many faces it leaves out as they were not found."""
    lost = read(result, missed(place))
    return cell(result, place, digits) + (f" ({lost:.0f} missed)" if lost else "")


def long_row(result: Result) -> dict[str, str]:
    """All figures of a contender, by column."""
    columns = {
        "model": f"{Path(result['model']).stem} {result['precision']} (ours)" if result["ours"] else label(result),
        "engine": result["engine"],
        "input": str(result["size"]),
        "file MB": cell(result, ("bytes",), 2, 1e-6),
        "MMACs": cell(result, ("macs",), 0, 1e-6),
    }
    for threads, timed in sorted(result["latency"].items()):
        name = f"{threads} thread" + "s" * (threads != "1")
        place = ("latency", threads)
        for faces in timed["faces"]:
            columns[f"ms, faces: {faces}, {name}"] = time_cell(result, faces, threads, 2)
        for key, title in (("p95_ms", "p95 ms"), ("network_ms", "network ms"), ("cpu_ms", "CPU ms")):
            columns[f"{title}, {name}"] = cell(result, (*place, "faces", "1", key), 2)
        for key, title in (("first_ms", "first frame ms"), ("cold_start_ms", "cold start ms"), ("peak_mb", "peak MB")):
            columns[f"{title}, {name}"] = cell(result, (*place, key), 0)
    for subset in SUBSETS:
        columns[f"AP {subset}"] = cell(result, precision(subset), 3)
    columns["AFLW MAE"] = cell(result, AFLW_MAE, 2)
    for low, high in YAWS:
        count = cell(result, (*AFLW_MAE[:2], f"faces_yaw_{low}_{high}"), 0)
        columns[f"AFLW MAE, yaw {low}-{high}"] = f"{error_cell(result, yaw_error(low, high), 2)} of {count}"
    columns["AFLW missed"] = cell(result, missed(AFLW_MAE), 0)
    for low, high in SHOWN_PANS:
        columns[f"P'04 pan {low}-{high}"] = error_cell(result, pan_error(low, high), 2)
    low, high = OWN_PANS
    columns[f"P'04 pan {low}-{high}, own zero"] = cell(result, own_zero_error(low, high), 2)
    columns[f"P'04 pan {low}-{high}, own line"] = cell(result, own_line_error(low, high), 2)
    columns["BIWI MAE"] = cell(result, BIWI_MAE, 2)
    columns["P'04 missed"] = cell(result, ("accuracy", "pointing04", "missed"), 0)
    return columns


def short_table(document: dict[str, Any]) -> str:
    """Markdown: of each model and precision its fastest engine, one thread."""
    head = ["", "engine", "MB", "MMACs", "ms, 1 face", "ms, 50 faces", "AP easy / medium / hard", "AFLW MAE"]
    head.append("P'04 pan, 0–60 / 75–90")
    lines = [head]
    for result in fastest(document["results"]):
        named = f"**{label(result)}**" if result["ours"] else label(result)
        lines.append([named, result["engine"], cell(result, ("bytes",), 2, 1e-6), cell(result, ("macs",), 0, 1e-6)])
        lines[-1] += [time_cell(result, faces, 1, 1) for faces in (1, 50)]
        lines[-1].append(" / ".join(cell(result, precision(s), 3).removeprefix("0") for s in SUBSETS))
        lines[-1].append(error_cell(result, AFLW_MAE, 2))
        lines[-1].append(" / ".join(error_cell(result, pan_error(*pan), 1) for pan in SHOWN_PANS))
    return markdown(lines)


def other_versions(results: Sequence[dict[str, Any]]) -> list[str]:
    """Networks that ran in an interpreter of their own, and what it had."""
    lines = []
    for result in results:
        for timed in result["latency"].values():
            if timed.get("versions"):
                had = ", ".join(f"{name} {version}" for name, version in timed["versions"].items())
                lines.append(f"{result['network']}: {had}")
    return list(dict.fromkeys(lines))


def write_report(document: dict[str, Any], page: Path) -> list[Path]:
    """Write the page, and beside it ``.json`` (everything), ``.png`` (the overview) and ``.md`` (the short table)."""
    results = document["results"]
    data = (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
    try:
        write_file(page.with_suffix(".json"), data)  # first: drawing may fail, and measuring took long
    except OSError as error:  # the disk has filled meanwhile
        kept = Path(tempfile.mkdtemp()) / page.with_suffix(".json").name
        write_file(kept, data)
        raise OSError(error.errno, f"{error.strerror}; what was measured is in {kept}", error.filename) from error
    rows = [long_row(result) for result in results]
    template = resources.files("img2pose_edge.benchmarks").joinpath("report.html.jinja").read_text(encoding="utf-8")
    overview = draw_overview(results)
    text = (
        jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            document=document,
            busy=was_busy(document["machine"]),
            overview=embedded(overview),
            breakdowns=[embedded(figure) for figure in draw_breakdowns(results)],
            columns=list(dict.fromkeys(k for row in rows for k in row)),
            rows=rows,
            ours=[result["ours"] for result in results],
            others=other_versions(results),
        )
    )
    contents = {
        page: text.encode("utf-8", "replace"),  # names of files need not be text
        page.with_suffix(".png"): picture(overview, "png"),
        page.with_suffix(".md"): (short_table(document) + "\n").encode("utf-8", "replace"),
    }
    for path, data in contents.items():
        write_file(path, data)
    return [page.with_suffix(".json"), *contents]
