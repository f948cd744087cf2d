"""Parity between models and engines."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from img2pose_edge.export import parity
from img2pose_edge.export.parity import Parity, compare, match

from img2pose_edge import PoseDetector
from img2pose_edge.cli import main


def test_engines_agree_on_the_float_model(astronaut: np.ndarray) -> None:
    images = [astronaut, astronaut[:, ::-1].copy(), np.zeros((64, 64, 3), np.uint8)]
    found = compare(PoseDetector("edge-n", engine="onnxruntime"), PoseDetector("edge-n", engine="openvino"), images)
    assert found.holds
    assert (found.faces, found.alone) == (2, 0)
    assert found.angle < 0.05
    assert 0 < found.maps < 1e-3


def test_what_differs_is_seen(astronaut: np.ndarray) -> None:
    class Moved(PoseDetector):
        def detect(self, image: np.ndarray, **options: object) -> list:  # type: ignore[override]
            return super().detect(np.roll(image, 3, axis=1))

    class Blind(PoseDetector):
        def detect(self, image: np.ndarray, **options: object) -> list:  # type: ignore[override]
            return []

    moved = compare(PoseDetector(), Moved(), [astronaut])
    assert not moved.holds
    assert 1 < moved.box < 10
    blind = compare(PoseDetector(), Blind(), [astronaut])
    assert (blind.faces, blind.alone, blind.holds) == (0, 1, False)
    assert Parity(1, 0, 0.01, 1.0, 0.5).holds
    assert not Parity(1, 0, 0.02, 0, 0).holds
    (face,) = PoseDetector()(astronaut)
    assert match([face], [face, face]) == [(0, 0)]
    assert match([], [face]) == []


def test_the_command_line_compares(
    tmp_path: Path,
    astronaut: np.ndarray,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    assert main(["parity", "edge-n", "edge-n@openvino", "--images", str(tmp_path)]) == 0
    assert "edge-n@openvino" in capsys.readouterr().out
    monkeypatch.setattr(parity, "SCORE", -1.0)
    assert main(["parity", "edge-n", "edge-n-int8", "--images", str(tmp_path)]) == 1
    assert "differs" in capsys.readouterr().out
    assert main(["parity", "edge-n", "edge-n@tflite", "--images", str(tmp_path)]) == 1
    assert "does not run" in capsys.readouterr().err
