"""The data sets that the benchmark looks for in a folder."""

from __future__ import annotations

from pathlib import Path

from img2pose_edge.benchmarks.accuracy import EVALUATIONS, Detect, Protocol
from img2pose_edge.benchmarks.published import evaluate_biwi


def _biwi(detect: Detect, root: Path, problems: list[str] | None) -> dict[str, float]:
    return evaluate_biwi(detect, root, problems=problems)


SETS: dict[str, tuple[str, Protocol]] = {**EVALUATIONS, "biwi": ("biwi", _biwi)}
"""Folder and protocol of each: this project's subsets, and BIWI as it is distributed."""
