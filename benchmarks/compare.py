"""Two benchmark documents side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from img2pose_edge.benchmarks.figures import (
    AFLW_MAE,
    BIWI_MAE,
    Place,
    own_line_error,
    own_zero_error,
    pan_error,
    precision,
    read,
    was_busy,
    whole_call,
)

FIGURES: dict[str, Place] = {
    "ms": whole_call(),
    "network ms": ("latency", "1", "faces", "1", "network_ms"),
    "peak MB": ("latency", "1", "peak_mb"),
    **{f"AP {subset}": precision(subset) for subset in ("easy", "medium", "hard")},
    "AFLW MAE": AFLW_MAE,
    "AFLW missed": (*AFLW_MAE[:2], "missed"),
    "P'04 0-60": pan_error(0, 60),
    "P'04 own zero": own_zero_error(0, 60),
    "P'04 own line": own_line_error(0, 60),
    "P'04 75-90": pan_error(75, 90),
    "P'04 missed": (*pan_error(0, 60)[:2], "missed"),
    "BIWI MAE": BIWI_MAE,
}
"""What is compared (one thread, one face), and where a result holds it."""
RATIOS = ("ms", "network ms", "peak MB")
"""Of these the ratio is shown, of the rest the difference."""

MACHINE = ("processor", "architecture", "cores", "system", "python")
"""What a document tells of its machine beside its load and its packages."""


def load_document(path: Path) -> dict[str, Any]:
    """A document that ``bench`` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no benchmark {path}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for result in document["results"]:
            result["name"]
        document["machine"]["processor"]
        told = [*document["machine"].get("versions", {}).values(), *(result["name"] for result in document["results"])]
        if not all(isinstance(text, str) for text in told):
            raise TypeError("a name or version is no text")
        if not isinstance(document["machine"].get("load_before", 0.0), (int, float)):
            raise TypeError("its load is no number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what `img2pose-edge bench` writes: {error!r}") from error
    return dict(document)


def compare_documents(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Lines of text: for every contender of both the new figures, and in brackets the ratio (times, memory) or the
    difference to the old ones; then the contenders of one alone, and the machines where they are not the same."""
    first, second = ({r["name"]: r for r in d["results"]} for d in (before, after))
    both = [name for name in first if name in second]
    width = max([len(name) for name in both], default=4)
    lines = [f"{'':{width}}  " + "  ".join(f"{name:>15}" for name in FIGURES)]
    for name in both:
        cells = [_cell(kind, read(first[name], place), read(second[name], place)) for kind, place in FIGURES.items()]
        lines.append(f"{name:{width}}  " + "  ".join(f"{text:>15}" for text in cells))
    for which, one, other in (("first", first, second), ("second", second, first)):
        alone = [name for name in one if name not in other]
        if alone:
            lines.append(f"only in the {which}: {', '.join(alone)}")
    for place in (("wider", "images"), ("aflw2000_subset", "faces"), ("pointing04", "faces"), ("biwi", "faces")):
        counts = [{read(of[name], ("accuracy", *place)) for name in both} - {None} for of in (first, second)]
        if counts[0] and counts[1] and counts[0] != counts[1]:
            told = ", then ".join("/".join(f"{n:.0f}" for n in sorted(filter(None, c))) for c in counts)
            lines.append(f"accuracy is of other pictures: {' '.join(place)} {told}")
    versions = [d["machine"].get("versions", {}) for d in (before, after)]
    for package in sorted({*versions[0], *versions[1]}):
        old, new = (v.get(package, "none") for v in versions)
        if old != new:
            lines.append(f"{package}: {old}, then {new}")
    for which, of in (("first", before), ("second", after)):
        if was_busy(of["machine"]):
            lines.append(f"the machine was not idle when the {which} began, so its times say less")
    if before.get("missing", []) != after.get("missing", []):
        lines.append("not the same was missing: see the end of each report")
    of_both = [{k: d["machine"].get(k) for k in MACHINE} | {"image": d.get("image")} for d in (before, after)]
    differ = [f"{k} {of_both[0][k]}, then {of_both[1][k]}" for k in of_both[0] if of_both[0][k] != of_both[1][k]]
    if differ:
        lines.append(f"measured on different machines or images, so times say little: {'; '.join(differ)}")
    changed = [name for name in both if first[name].get("sha256") != second[name].get("sha256")]
    if changed:
        lines.append(f"other files than then: {', '.join(changed)}")
    return "\n".join(lines)


def _cell(kind: str, old: float | None, new: float | None) -> str:
    if new is None:
        return "–" if old is None else f"gone ({old:.2f})"
    if old is None:
        return f"{new:.2f} (new)"
    if kind in RATIOS and old:
        return f"{new:.2f} (x{new / old:.2f})"
    digits = 3 if kind.startswith("AP") else 2
    return f"{new:.{digits}f} ({new - old:+.{digits}f})"
