"""Quantization: folding, the quantized graph, int8 ONNX in every engine, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from img2pose_edge.export.describe import edge_facts, output_names
from img2pose_edge.export.int8 import export_int8, take_pixels, to_onnx, unsigned_activations
from img2pose_edge.export.onnx import export_onnx
from img2pose_edge.export.tflite import export_tflite
from img2pose_edge.quantize.fold import FoldedNet
from img2pose_edge.quantize.graph import calibrate, hold_ranges, prepare
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from img2pose_edge import PoseDetector, geometry
from img2pose_edge.cli import main
from img2pose_edge.preprocess import letterbox
from img2pose_edge.training.checkpoint import load_checkpoint, save_checkpoint
from img2pose_edge.training.loop import TrainOptions, train
from img2pose_edge.training.networks import build_network
from img2pose_edge.training.networks.edge import CONFIGS, EdgeNet
from img2pose_edge.training.prepare import prepare as prepare_data

CHECKPOINT = Path(__file__).parents[1] / "checkpoints/edge-n.pt"


def trained() -> EdgeNet:
    state = load_checkpoint(CHECKPOINT)
    network = build_network(state["network"])
    network.load_state_dict(state["weights"])
    assert isinstance(network, EdgeNet)
    return network.eval()


@pytest.fixture(scope="module")
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    views = [astronaut, astronaut[:, ::-1], astronaut[40:300, 100:400], cv2.resize(astronaut, (200, 200))]
    return [letterbox(np.ascontiguousarray(view), 512, 32)[0] for view in views]


@pytest.fixture(scope="module")
def graph(pictures: list[np.ndarray]) -> GraphModule:
    return convert_pt2e(calibrate(prepare(trained()), pictures))


@pytest.fixture(scope="module")
def signed(graph: GraphModule) -> onnx.ModelProto:
    return to_onnx(graph, output_names(edge_facts()))


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name).train()
    assert isinstance(network, EdgeNet)
    image = torch.randint(0, 255, (2, 96, 64, 3), dtype=torch.uint8)
    image[:, :, :2] = image[:, :2] = 128  # what lies beyond the picture differs by half a grey level
    with torch.no_grad():
        for _ in range(3):  # statistics that are not the initial ones
            network(image)
        expected = network.eval()(image)
        folded = FoldedNet(network).eval()
        got = folded(image)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    for ours, theirs in zip([*got[0], *got[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.01)


def test_weights_are_int8_with_a_scale_a_channel(signed: onnx.ModelProto) -> None:
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in signed.graph.initializer}
    kinds = [n for n in signed.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    weights = [constants[n.input[0]] for n in kinds if constants[n.input[0]].ndim == 4]
    assert all(w.dtype == np.int8 for w in weights)
    assert len(weights) == 44, "all but the last convolutions"
    scales = [constants[n.input[1]] for n in kinds if constants[n.input[0]].ndim == 4]
    assert all(len(s) == len(w) for s, w in zip(scales, weights, strict=True))
    assert signed.ByteSize() < 1e6


def test_unsigned_activations_change_no_value(signed: onnx.ModelProto, pictures: list[np.ndarray]) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    unsigned = unsigned_activations(signed)
    outputs = [
        onnxruntime.InferenceSession(m.SerializeToString(), options).run(None, {"image": pictures[0][None]})
        for m in (signed, unsigned)
    ]
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="activations must be int8"):
        unsigned_activations(unsigned)
    taken = take_pixels(unsigned)
    session = onnxruntime.InferenceSession(taken.SerializeToString(), options)
    for a, b in zip(session.run(None, {"image": pictures[0][None]}), outputs[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not {"Sub", "Div", "Cast"} & {n.op_type for n in taken.graph.node}, "pixels are quantized values"
    with pytest.raises(ValueError, match="pixels cannot stand for an input"):
        take_pixels(signed)


def test_the_onnx_graph_is_the_quantized_graph(
    graph: GraphModule, signed: onnx.ModelProto, pictures: list[np.ndarray]
) -> None:
    session = onnxruntime.InferenceSession(unsigned_activations(signed).SerializeToString())
    for picture in (pictures[0], pictures[2]):
        with torch.no_grad():
            expected = graph(torch.from_numpy(picture[None]))
        got = session.run(None, {"image": picture[None]})
        for ours, theirs in zip(got, [*expected[0], *expected[1]], strict=True):
            # A value between two steps goes either way by an engine's last bit, which the layers behind carry on.
            assert np.abs(ours - theirs.numpy()).mean() < 0.15
            assert np.corrcoef(ours.ravel(), theirs.numpy().ravel())[0, 1] > 0.99


@pytest.fixture(scope="module")
def exported(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "n8.onnx"
    export_int8(CHECKPOINT, out, pictures)
    return out


@pytest.fixture(scope="module")
def lite(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lite") / "n8.tflite"
    export_tflite(CHECKPOINT, out, (512, 512), pictures, int8=True)
    return out


@pytest.mark.parametrize(
    ("engine", "model"), [("onnxruntime", "exported"), ("onnxruntime", "edge-n-int8"), ("tflite", "lite")]
)
def test_an_int8_model_finds_what_the_float_model_finds(
    request: pytest.FixtureRequest, astronaut: np.ndarray, engine: str, model: str
) -> None:
    detector = PoseDetector(model if model == "edge-n-int8" else request.getfixturevalue(model), engine=engine)
    assert detector.model.manifest["precision"] == "int8"
    for image in (astronaut, astronaut[:, ::-1], astronaut[20:330, 60:470]):
        (ours,), (theirs,) = detector(image), PoseDetector()(image)
        assert abs(ours.score - theirs.score) < 0.06
        np.testing.assert_allclose(ours.box, theirs.box, atol=4)
        turned = geometry.geodesic_distance(ours.local_rotation[None], theirs.local_rotation[None])
        assert np.degrees(turned[0]) < 5


def test_openvino_is_kept_from_int8(astronaut: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"engine 'openvino' does not run edge-n-int8\.onnx: onnxruntime does"):
        PoseDetector("edge-n-int8", engine="openvino")(astronaut)


def test_tflite_is_int8_inside(lite: Path) -> None:
    interpreter = Interpreter(str(lite))
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    assert given["dtype"] == np.uint8
    assert given["shape"].tolist() == [1, 512, 512, 3]
    kinds = [d["dtype"] for d in interpreter.get_tensor_details() if len(d["shape"]) == 4]
    assert sum(k == np.int8 for k in kinds) > 2 * sum(k == np.float32 for k in kinds), "float: pixels in, maps out"
    assert lite.stat().st_size < 1e6


def test_float_tflite_gives_the_maps_of_the_checkpoint(tmp_path: Path, astronaut: np.ndarray) -> None:
    export_tflite(CHECKPOINT, tmp_path / "n.tflite", (320, 416))
    detector = PoseDetector(tmp_path / "n.tflite", threads=1)
    image = astronaut[20:330, 60:470]
    pixels, scale = letterbox(image, 640, 32, fixed=(320, 416))
    assert pixels.shape == (320, 416, 3)
    np.testing.assert_allclose(scale, 1, atol=0.01)
    with torch.no_grad():
        expected = FoldedNet(trained()).eval()(torch.from_numpy(pixels[None]))
    for ours, theirs in zip(detector._network.run(pixels[None]), [*expected[0], *expected[1]], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    (ours,), (theirs,) = detector(astronaut), PoseDetector()(astronaut)  # shrunk to fit
    np.testing.assert_allclose(ours.box, theirs.box, atol=6)
    with pytest.raises(ValueError, match=r"engine 'onnxruntime' does not run n\.tflite: tflite does"):
        PoseDetector(tmp_path / "n.tflite", engine="onnxruntime")(astronaut)


def test_what_cannot_be_quantized_is_named(
    tmp_path: Path, pictures: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint({"network": "full-18", "weights": {}}, tmp_path / "full.pt")
    with pytest.raises(ValueError, match=r"only edge networks can be quantized.*full-18"):
        export_int8(tmp_path / "full.pt", tmp_path / "a.onnx", pictures)
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_int8(CHECKPOINT, tmp_path / "a.tflite", pictures)
    with pytest.raises(ValueError, match=r"must end in \.tflite"):
        export_tflite(CHECKPOINT, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"multiples of 32 and at least 64, got \(480, 100\)"):
        export_tflite(CHECKPOINT, tmp_path / "a.tflite", (480, 100))
    with pytest.raises(ValueError, match=r"full\.pt does not hold the weights of full-18"):
        export_tflite(tmp_path / "full.pt", tmp_path / "a.tflite")
    with pytest.raises(ValueError, match="calibration needs pictures, got none"):
        export_int8(CHECKPOINT, tmp_path / "a.onnx", [])
    arguments = ["quantize", "--checkpoint", str(CHECKPOINT), "--out", str(tmp_path / "a.onnx")]
    assert main([*arguments, "--images", str(tmp_path)]) == 1
    assert "no image" in capsys.readouterr().err
    assert main([*arguments, "--count", "0"]) == 1
    assert "count must be at least 1" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full.pt"]


def test_a_disk_that_fills_leaves_nothing_half_written(
    tmp_path: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: onnx.ModelProto, path: Path) -> None:
        Path(path).write_bytes(model.SerializeToString()[:1000])
        raise OSError("no space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(OSError, match="no space"):
        export_int8(CHECKPOINT, tmp_path / "a.onnx", pictures[:1])
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_model_is_not_overwritten(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"file": "a.onnx"}))
    with pytest.raises(ValueError, match=r"would overwrite .*a\.json, which describes a\.onnx"):
        export_tflite(CHECKPOINT, tmp_path / "a.tflite")
    (tmp_path / "a.json").write_text("[]")
    for export in (export_onnx, lambda c, o: export_int8(c, o, pictures)):
        with pytest.raises(ValueError, match="which describes something else"):
            export(CHECKPOINT, tmp_path / "a.onnx")


def test_fine_tuning_for_int8(tiny_data: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    options = TrainOptions(steps=3, batch_size=4, crop_size=128, warmup_steps=1, learning_rate=1e-4, int8=True)
    data = prepare_data(tiny_data, tmp_path / "tiny.lmdb").path
    whole = load_checkpoint(train(data, tmp_path / "whole", options, initial=CHECKPOINT, workers=1))
    assert whole["int8"] is True
    assert sum(name.endswith("zero_point") for name in whole["weights"]) > 50, "ranges are part of it"
    cut = TrainOptions(**{**vars(options), "steps": 2})
    # The learning rate falls over the whole run: a shorter one is cut from it after its first step.
    last = train(data, tmp_path / "cut", options, initial=CHECKPOINT, workers=0, save_every=1)
    again = load_checkpoint(last)
    for name, value in whole["raw_weights"].items():
        torch.testing.assert_close(again["raw_weights"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    save_checkpoint({**again, "options": vars(cut), "step": 2}, last)
    more = load_checkpoint(train(data, tmp_path / "cut", options, workers=0))
    assert more["step"] == 3, "its state fits a graph made anew"

    export_int8(last, tmp_path / "n8.onnx", ())
    (ours,), (theirs,) = PoseDetector(tmp_path / "n8.onnx")(astronaut), PoseDetector()(astronaut)
    np.testing.assert_allclose(ours.box, theirs.box, atol=6)
    with pytest.raises(ValueError, match="holds edge-n in int8, not edge-n"):
        train(data, tmp_path / "other", options, initial=last, workers=0)
    with pytest.raises(ValueError, match="needs a trained network to begin with"):
        train(data, tmp_path / "other", options, workers=0)
    with pytest.raises(ValueError, match="was fine-tuned for int8: it can only be quantized"):
        export_onnx(last, tmp_path / "float.onnx")


def test_a_graph_that_learns_rounds_as_int8(pictures: list[np.ndarray]) -> None:
    """Gradients reach all of its weights; held, its ranges stay whatever it sees."""
    watching = prepare(trained(), fine_tune=True)
    scores, poses = watching(torch.from_numpy(pictures[3][None]))
    (sum(s.sum() for s in scores) + sum(p.sum() for p in poses)).backward()
    assert [n for n, p in watching.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        float_scores, _ = trained()(torch.from_numpy(pictures[3][None]))
        assert all(0 < (a - b).abs().mean() < 1.0 for a, b in zip(scores, float_scores, strict=True))

        def ranges() -> dict[str, torch.Tensor]:
            kept = watching.state_dict().items()
            return {name: value.clone() for name, value in kept if name.endswith(("min_val", "max_val", "scale"))}

        before = ranges()
        watching(torch.from_numpy(255 - pictures[0][None]))
        moved = ranges()
        assert any(not torch.equal(before[name], moved[name]) for name in before), "they follow the pictures"
        hold_ranges(watching)
        watching(torch.from_numpy(pictures[2][None]))
        for name, value in ranges().items():
            torch.testing.assert_close(value, moved[name], msg=name)


def test_the_bundled_int8_model_is_the_committed_checkpoint(tmp_path: Path, astronaut: np.ndarray) -> None:
    export_int8(CHECKPOINT.with_name("edge-n-int8.pt"), tmp_path / "n8.onnx", ())
    (ours,), (theirs,) = PoseDetector(tmp_path / "n8.onnx")(astronaut), PoseDetector("edge-n-int8")(astronaut)
    np.testing.assert_allclose(ours.pose, theirs.pose, atol=1e-3)
