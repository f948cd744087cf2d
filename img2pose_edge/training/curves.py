"""Pictures of training runs: every column of their ``metrics.csv`` over the steps."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from img2pose_edge.files import write_file

COLUMNS = 3


def read_metrics(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs of each column of a run's ``metrics.csv``, gaps left out.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if it is no log of a training run.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no run: there is no {path}")
    columns: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="") as file:
        try:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        columns.setdefault(name, []).append((int(row["step"]), float(value)))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is not the log of a training run: {error!r}") from error
    if not columns:
        raise ValueError(f"{path} holds no figures yet")
    return columns


def draw_curves(runs: list[Path], out: Path) -> Path:
    """Write a picture with one plot a column, in which every run that has it is a line.

    Args:
        runs: folders of runs; their names, or paths where names repeat, are the legend.
        out: path ending in ``.png`` or another format of matplotlib.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_metrics`.
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('curves need matplotlib: pip install "img2pose-edge[bench]"') from error
    unique = len({run.name for run in runs}) == len(runs)
    logs = {run.name if unique else str(run): read_metrics(run) for run in runs}
    names = list(dict.fromkeys(name for log in logs.values() for name in log))
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * rows), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, COLUMNS, number)
        for run, log in logs.items():
            steps, values = zip(*log.get(name, [(float("nan"), float("nan"))]), strict=True)
            axes.plot(steps, values, label=run, marker="o" if len(steps) < 20 else None, markersize=3)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        if number == 1:
            axes.legend(fontsize=8)
        if number > len(names) - COLUMNS:
            axes.set_xlabel("step", fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix.removeprefix("."), dpi=110)
    write_file(out, picture.getvalue())
    return out
