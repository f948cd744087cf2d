"""Parity between models and engines."""

from __future__ import annotations

import weakref
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from img2pose_edge.export import parity
from img2pose_edge.export.parity import Parity, compare, match

from img2pose_edge import PoseDetector
from img2pose_edge.cli import main
from img2pose_edge.commands import images
from img2pose_edge.manifest import find_model
from img2pose_edge.preprocess import load_image
from img2pose_edge.training.checkpoint import save_checkpoint
from img2pose_edge.training.networks import build_network


def test_engines_agree_on_the_float_model(astronaut: np.ndarray) -> None:
    images = [astronaut, astronaut[:, ::-1].copy(), np.zeros((64, 64, 3), np.uint8)]
    found = compare(PoseDetector("edge-n", engine="onnxruntime"), PoseDetector("edge-n", engine="openvino"), images)
    assert found.holds
    assert (found.faces, found.alone) == (2, 0)
    assert found.angle < 0.05
    assert 0 < found.maps < 1e-3


@pytest.mark.parametrize("name", ["edge-n", "edge-n-int8", "edge-s", "edge-s-int8"])
def test_bundled_graphs_ask_for_no_newer_runtime_than_their_operators_do(name: str) -> None:
    graph = onnx.load(find_model(name).path, load_external_data=False)
    assert graph.ir_version == onnx.helper.find_min_ir_version_for(list(graph.opset_import)) <= 8  # ONNX Runtime 1.14


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


def test_checkpoints_have_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for models, told in (
        (["a.pt@openvino", "edge-n"], "a.pt is a checkpoint, which torch runs: name it without @openvino"),
        (["edge-n", "a.pt@openvino"], "a.pt is a checkpoint, which only the first may be"),
        (["edge-n", "a.pt"], "a.pt is a checkpoint, which only the first may be"),
    ):
        assert main(["parity", *models, "--images", str(tmp_path)]) == 1
        assert told in capsys.readouterr().err


def test_photographs_are_read_one_after_the_other(
    tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref] = []

    def load(path: Path) -> np.ndarray:
        assert sum(reference() is not None for reference in held) <= 1, "but the one that was looked at before"
        image = load_image(path)
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr(images, "load_image", load)
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), astronaut[:96, :96])
    torch.manual_seed(0)
    save_checkpoint({"network": "edge-n", "weights": build_network("edge-n").state_dict()}, tmp_path / "a.pt")
    files = ["--checkpoint", str(tmp_path / "a.pt"), "--out", str(tmp_path / "a.onnx")]
    assert main(["export", *files, "--images", str(tmp_path)]) == 0
    assert len(held) > 4
