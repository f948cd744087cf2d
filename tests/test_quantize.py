"""Quantization: folding, equalizing, steps, the quantized graph; every format and precision, in every engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from conftest import training_interrupted_in
from img2pose_edge.export.describe import edge_facts, output_names
from img2pose_edge.export.model import FORMATS, ExportOptions, export_model
from img2pose_edge.export.openvino import KERNELS, write_openvino
from img2pose_edge.export.parity import check_artefact, compare, load_torch, torch_detector
from img2pose_edge.export.quantized_onnx import (
    copy_terms,
    own_constants,
    quantized_onnx,
    take_pixels,
    to_onnx,
    unsigned_activations,
)
from img2pose_edge.quantize import adjust as adjusting
from img2pose_edge.quantize import rounding
from img2pose_edge.quantize.equalize import equalize, shared_channels
from img2pose_edge.quantize.fold import FoldedNet
from img2pose_edge.quantize.graph import (
    ADD,
    calibrate,
    calibrated,
    convert,
    equalized,
    load_quantized,
    prepare,
    quantize_checkpoint,
)
from img2pose_edge.quantize.nodes import CONV, get_attribute, layer_name
from img2pose_edge.quantize.rounding import replace, round_outputs
from img2pose_edge.quantize.sensitivity import sensitivities
from img2pose_edge.quantize.steps import SAMPLES, ActivationStep, ChannelStep
from torch import fx
from torch.fx import GraphModule, Node

from img2pose_edge import PoseDetector
from img2pose_edge.cli import main
from img2pose_edge.manifest import find_model, sha256
from img2pose_edge.nms import pairwise_iou
from img2pose_edge.preprocess import letterbox
from img2pose_edge.training.checkpoint import load_checkpoint, save_checkpoint
from img2pose_edge.training.loop import TrainOptions, train
from img2pose_edge.training.networks import build_network, load_network
from img2pose_edge.training.networks.edge import CONFIGS, EdgeNet
from img2pose_edge.training.prepare import prepare as prepare_data

CHECKPOINT = Path(__file__).parents[1] / "checkpoints/edge-n.pt"


def trained() -> EdgeNet:
    network = load_network(CHECKPOINT)[1]
    assert isinstance(network, EdgeNet)
    return network


@pytest.fixture(scope="module")
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    views = [astronaut, astronaut[:, ::-1], astronaut[40:300, 100:400], cv2.resize(astronaut, (200, 200))]
    return [letterbox(np.ascontiguousarray(view), 512, 32)[0] for view in views]


@pytest.fixture(scope="module")
def graph(pictures: list[np.ndarray]) -> GraphModule:
    return convert(calibrated(trained(), pictures))


@pytest.fixture(scope="module")
def quantized(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was quantized after training."""
    path = tmp_path_factory.mktemp("quantized") / "n8.pt"
    save_checkpoint(quantize_checkpoint(CHECKPOINT, pictures), path)
    return path


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
    assert len(weights) == 51
    scales = [constants[n.input[1]] for n in kinds if constants[n.input[0]].ndim == 4]
    assert all(len(s) == len(w) for s, w in zip(scales, weights, strict=True))
    assert signed.ByteSize() < 1e6


def test_the_format_is_no_newer_than_needed(signed: onnx.ModelProto) -> None:
    assert signed.ir_version == onnx.helper.find_min_ir_version_for(list(signed.opset_import)) == 8


def test_no_constant_is_shared(signed: onnx.ModelProto) -> None:
    """ONNX Runtime does not load it elsewise where it makes weights unsigned."""
    owned = onnx.ModelProto.FromString(signed.SerializeToString())
    own_constants(owned.graph)
    constants = {tensor.name for tensor in owned.graph.initializer}
    weights = [n for n in owned.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    used = [name for node in weights for name in node.input]
    assert len(used) == len(set(used))
    read = [name for node in owned.graph.node for name in node.input]
    assert all(read.count(node.output[0]) == 1 for node in weights)


def test_openvinos_dense_blocks_add_to_a_copy(signed: onnx.ModelProto, pictures: list[np.ndarray]) -> None:
    copied = onnx.ModelProto.FromString(signed.SerializeToString())
    copy_terms(copied.graph)
    onnx.checker.check_model(copied)
    (copy,) = (n for n in copied.graph.node if n.name.endswith("_copied"))  # edge-n has one dense block
    (reader,) = (n for n in copied.graph.node if copy.output[0] in n.input)
    assert reader.op_type == "Add"
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"image": pictures[0][None]})
        for m in (signed, copied)
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def preferred(ir: Path) -> dict[str, set[str | None]]:
    """Kernels that layers of an IR ask for, by their type."""
    found: dict[str, set[str | None]] = {}
    for layer in ElementTree.parse(ir).iterfind("layers/layer"):
        asked = layer.find("rt_info/attribute[@name='primitives_priority']")
        found.setdefault(layer.get("type", ""), set()).add(None if asked is None else asked.get("value"))
    return found


@pytest.mark.parametrize("name", ["edge-n-int8-ov", "edge-s-int8-ov"])
def test_bundled_irs_prefer_kernels(name: str) -> None:
    found = preferred(find_model(name).path)
    assert found.pop("Convolution") == {KERNELS}
    assert "GroupConvolution" in found
    assert all(asked == {None} for asked in found.values())


def test_an_ir_of_integers_prefers_kernels(tmp_path: Path, signed: onnx.ModelProto) -> None:
    onnx.save(signed, tmp_path / "m.onnx")
    for int8, asked in ((False, {None}), (True, {KERNELS})):
        write_openvino(tmp_path / "m.onnx", tmp_path / "m.xml", half=False, int8=int8)
        assert preferred(tmp_path / "m.xml")["Convolution"] == asked


def test_openvino_takes_the_kernels_that_an_ir_prefers(tmp_path: Path) -> None:
    source = find_model("edge-n-int8-ov").path
    ir = tmp_path / "m.xml"
    ir.write_text(source.read_text().replace(KERNELS, "cpu:ref_any"))
    shutil.copy(source.with_suffix(".bin"), ir.with_suffix(".bin"))
    compiled = openvino.Core().compile_model(ir, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    # Whichever kernel computes it, the integers are the same.
    expected = PoseDetector("edge-n-int8-ov", threads=1).run_network(image)
    for name, values in zip(compiled.outputs, expected, strict=True):
        np.testing.assert_array_equal(compiled([image])[name], values)
    kinds = {o.get_rt_info()["primitiveType"].astype(str) for o in compiled.get_runtime_model().get_ops()}
    assert "ref_any_I8" in kinds


def test_weights_are_rounded_together() -> None:
    torch.manual_seed(0)
    seen = ((torch.randn(400, 8) @ torch.randn(8, 24)).relu() + 0.1 * torch.rand(400, 24)).double()
    layer = torch.nn.Conv2d(24, 3, 1)
    before, bias = layer.weight.detach().flatten(1).double(), layer.bias.detach().double()  # type: ignore[union-attr]
    observer = ChannelStep()
    observer(layer.weight)
    step = observer.step
    with torch.no_grad():
        replace(layer.weight, layer.bias, seen[None], observer)  # type: ignore[arg-type]
    after = layer.weight.detach().flatten(1).clone()
    torch.testing.assert_close(after / step[:, None], (after / step[:, None]).round())
    observer(layer.weight)
    assert torch.equal(observer.step, step), "rounded again, nothing changes"
    nearest = (before / step[:, None]).round() * step[:, None]
    expected = seen @ before.T + bias
    assert layer.bias is not None
    got, plain = seen @ after.double().T + layer.bias.detach(), seen @ nearest.T + bias
    assert (got - expected).square().mean() < 0.5 * (plain - expected).square().mean()
    with torch.no_grad():
        replace(layer.weight, layer.bias, torch.ones(1, 1, 24, dtype=torch.float64), observer)  # too little to go by
        torch.testing.assert_close(layer.weight.flatten(1), after)
        layer.weight[0, 0] = 127 * 0.98 * 2**-6  # more than 127 of its steps, which have five bits
        replace(layer.weight, layer.bias, seen[None], observer)
        observer(layer.weight)
        assert float((layer.weight.flatten(1).abs() / observer.step[:, None]).max()) == pytest.approx(127)


def test_groups_of_a_convolution_are_rounded_by_what_each_sees() -> None:
    torch.manual_seed(0)
    weight, bias, seen = torch.randn(4, 1, 3, 3), torch.zeros(4), torch.rand(4, 300, 9, dtype=torch.float64)
    alone = []
    for channel in range(4):
        own, own_bias = weight[channel : channel + 1].clone(), bias[channel : channel + 1].clone()
        replace(own, own_bias, seen[channel : channel + 1], ChannelStep())
        alone.append((own, own_bias))
    replace(weight, bias, seen, ChannelStep())
    torch.testing.assert_close(weight, torch.cat([own for own, _ in alone]))
    torch.testing.assert_close(bias, torch.cat([own for _, own in alone]))


def test_layers_are_rounded_behind_rounded_ones(pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, Any]] = []
    real = rounding.round_convolution

    def note(graph: Any, node: Any, inputs: Any, random: Any) -> Any:
        given.append((node.name, inputs[0].clone()))
        return real(graph, node, inputs, random)

    monkeypatch.setattr(rounding, "round_convolution", note)
    graph = calibrated(trained(), pictures)
    seen = dict(given)
    assert len(seen) == len(given) > 40

    class Watched(fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            if n.name in seen:
                torch.testing.assert_close(self.env[n.args[0]], seen.pop(n.name), atol=0, rtol=0)
            return super().run_node(n)

    with torch.no_grad():
        Watched(graph).run(torch.from_numpy(pictures[0][None]))
    assert not seen


def test_layers_rounded_together_are_nearer_to_the_float_network(pictures: list[np.ndarray]) -> None:
    together = calibrated(trained(), pictures)
    nearest = calibrate(prepare(round_outputs(equalized(trained(), pictures), pictures)), pictures)
    image = torch.from_numpy(pictures[0][None])
    with torch.no_grad():
        exact, *others = (network(image) for network in (trained(), together, nearest))
    sure = torch.cat([s.flatten() for s in exact[0]]) > -3
    assert sure.sum() > 5

    def error(maps: Any) -> float:
        differences = [torch.cat([(a - b)[0].flatten(1).T for a, b in zip(*kind, strict=True)]) for kind in maps]
        return float(torch.cat(differences, 1)[sure].abs().mean())

    errors = [error(zip(exact, got, strict=True)) for got in others]
    assert errors[0] < 0.95 * errors[1]
    for node in together.graph.nodes:
        if node.target is CONV and layer_name(node) != "score":
            own = together.get_submodule(str(node.args[1].target))
            steps = get_attribute(together, node.args[1].args[0]) / own.scale[:, None, None, None]
            torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


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


def test_steps_are_exact_in_float32(graph: GraphModule) -> None:
    steps = [n.args[1] for n in graph.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert len(steps) > 50
    assert all(float(np.log2(step)).is_integer() for step in steps)
    weights = [buffer for name, buffer in graph.named_buffers() if name.startswith("_scale")]
    assert len(weights) == 51
    odd = torch.cat([torch.frexp(step).mantissa for step in weights]) * 32
    assert (odd == odd.round()).all()
    assert (odd % 2 == 1).all()

    def becomes_a_term(convolution: Node) -> bool:
        (relu,) = convolution.users
        return any(reader.target is ADD for q in relu.users for dq in q.users for reader in dq.users)

    convolutions = [n for n in graph.graph.nodes if n.target is CONV and "relu" in str(next(iter(n.users)).target)]
    terms = [n for n in convolutions if becomes_a_term(n)]
    assert len(terms) == 16
    for source, weight, bias, *_ in (n.args for n in terms):
        whole = get_attribute(graph, weight.args[0])
        assert (whole % 2 == 0).all()
        sums = get_attribute(graph, bias) / (source.args[1] * get_attribute(graph, weight.args[1]))
        # The product of a bias of many steps and a step of five bits may need more than float32's 24.
        small = sums.abs() < 2**22
        assert (sums - sums.round()).abs()[small].max() < 0.25
        assert (sums.round()[small] % 2 == 1).all(), "no sum lies in the middle of two steps"
        most = 255 * whole.float().abs().flatten(1).sum(1)
        assert (sums[~small] < -most[~small]).all(), "a channel whose bias is larger is off whatever it sees"


def test_a_step_is_the_best_power_of_two() -> None:
    step = ActivationStep()
    step(torch.rand(4, 8, 16, 16) * 3.9)
    assert step.calculate_qparams()[0].item() == 2.0**-6  # 256 steps up to 4
    step = ActivationStep()
    step(torch.cat([torch.rand(100_000) * 3.9, torch.tensor([6.0])]))
    assert step.calculate_qparams()[0].item() == 2.0**-6, "one value far out is clipped"
    wide = torch.rand(SAMPLES // 4, 320) * 3.9
    wide[:, ::80] /= 100  # columns that every eightieth value lies in
    step = ActivationStep()
    step(wide)
    assert step.calculate_qparams()[0].item() == 2.0**-6
    with pytest.raises(ValueError, match="negative"):
        step(torch.tensor([-1.0, 1.0]))
    weights = ChannelStep()
    weights(torch.tensor([[[[1.0]]], [[[-0.3]]], [[[0.0]]]]))
    held = torch.tensor([1.0, 0.3, 0.0]) / weights.step
    assert (held <= 127).all()
    assert (held[:2] > 115).all()


def test_the_onnx_graph_is_the_quantized_graph_exactly(graph: GraphModule, pictures: list[np.ndarray]) -> None:
    model = quantized_onnx(graph, output_names(edge_facts())).SerializeToString()
    levels = onnxruntime.GraphOptimizationLevel
    sessions = []
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        sessions.append(onnxruntime.InferenceSession(model, options))
    for picture in (pictures[0], pictures[2]):
        with torch.no_grad():
            expected = graph(torch.from_numpy(picture[None]))
        for session in sessions:
            got = session.run(None, {"image": picture[None]})
            for ours, theirs in zip(got, [*expected[0], *expected[1]], strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_equalizing_changes_nothing_but_ranges(pictures: list[np.ndarray]) -> None:
    before, after = FoldedNet(trained()).eval(), equalize(FoldedNet(trained()).eval(), pictures)
    image = torch.from_numpy(pictures[0][None])
    with torch.no_grad():
        for ours, theirs in zip(*([m for kind in f(image) for m in kind] for f in (before, after)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        ranges = [f.network.stem(f.input(image)).amax((0, 2, 3)) for f in (before, after)]
    spread = [float(r.max() / r.median()) for r in ranges]
    assert spread[1] < 0.5 * spread[0]
    convolutions = {m for m in after.modules() if isinstance(m, torch.nn.Conv2d)}
    tensors = shared_channels(after)
    assert {m for t in tensors for m in t.writers} == convolutions - {after.network.score, after.network.pose}
    assert len({m for t in tensors for m in t.readers}) == sum(len(t.readers) for t in tensors), "each is read once"


@pytest.fixture(scope="module")
def artefacts(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One checkpoint in every format and precision."""
    folder, made = tmp_path_factory.mktemp("artefacts"), {}
    for format, suffix in FORMATS.items():
        for precision in ("fp32", "fp16", "int8"):
            out = folder / f"{format}-{precision}{suffix}"
            options = ExportOptions(format, precision, size=(512, 512) if format == "tflite" else None)
            export_model(quantized if precision == "int8" else CHECKPOINT, out, options)
            made[format, precision] = out
    return made


def test_every_format_and_precision_finds_the_same_faces(
    artefacts: dict[tuple[str, str], Path], quantized: Path, astronaut: np.ndarray
) -> None:
    images = [astronaut, np.ascontiguousarray(astronaut[:, ::-1]), np.ascontiguousarray(astronaut[20:330, 60:470])]
    networks = {"int8": load_torch(quantized), "fp32": load_torch(CHECKPOINT)}
    for (format, precision), path in artefacts.items():
        network = networks.get(precision, networks["fp32"])
        for engine, parity in check_artefact(network, path, images).items():
            assert (parity.faces, parity.alone) == (3, 0), (format, precision, engine)
            assert parity.maps < {"int8": 1e-4, "fp32": 0.01, "fp16": 0.2}[precision], (format, precision, engine)
            assert parity.score < {"int8": 1e-4, "fp32": 1e-4, "fp16": 5e-3}[precision], (format, precision, engine)
        manifest = json.loads(path.with_suffix(".json").read_text())
        assert (manifest["format"], manifest["precision"]) == (format, precision)
        assert manifest["sha256"] == sha256(path)
    sizes = {key: path.stat().st_size for key, path in artefacts.items()}
    assert sizes["onnx", "int8"] < sizes["onnx", "fp16"] < 0.6 * sizes["onnx", "fp32"]
    assert sizes["tflite", "fp16"] < 0.6 * sizes["tflite", "fp32"]
    assert {p.suffix for p in path.parent.iterdir()} == {".onnx", ".xml", ".bin", ".tflite", ".json"}


def test_int8_is_near_the_float_model(artefacts: dict[tuple[str, str], Path], astronaut: np.ndarray) -> None:
    images = [astronaut, np.ascontiguousarray(astronaut[:, ::-1])]
    found = compare(PoseDetector("edge-n"), PoseDetector(artefacts["onnx", "int8"]), images)
    assert (found.faces, found.alone) == (2, 0)
    assert found.score < 0.06
    assert found.box < 4
    assert found.angle < 4


def test_a_model_that_finds_something_else_is_not_written(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import img2pose_edge.export.model as module

    def unlike(graph: GraphModule, names: list[str], for_openvino: bool = False) -> onnx.ModelProto:
        model = quantized_onnx(graph, names)
        (bias,) = (t for t in model.graph.initializer if t.name.endswith("pose.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.1, bias.name))
        return model

    monkeypatch.setattr(module, "quantized_onnx", unlike)
    arguments = ["export", "--checkpoint", str(quantized), "--precision", "int8", "--out", str(tmp_path / "a.onnx")]
    assert main(arguments) == 1
    assert "onnxruntime finds something else in a.onnx than torch" in capsys.readouterr().err
    monkeypatch.setattr(module.float_onnx, "write_onnx", lambda n, out, names: out.write_bytes(b"no model"))
    with pytest.raises(ValueError, match=r"onnxruntime cannot run a\.onnx"):
        export_model(CHECKPOINT, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_layers_stay_float_on_demand(pictures: list[np.ndarray], tmp_path: Path, astronaut: np.ndarray) -> None:
    kept = ["laterals.0.0", "pose_tower.depthwise.2", "pose", "stages.1.3.body.0.0"]
    save_checkpoint(quantize_checkpoint(CHECKPOINT, pictures, kept), tmp_path / "mixed.pt")
    export_model(tmp_path / "mixed.pt", tmp_path / "mixed.onnx", ExportOptions(precision="int8"))
    model = onnx.load(tmp_path / "mixed.onnx")
    constants = {t.name: t.data_type for t in model.graph.initializer}
    floats = [
        n for n in model.graph.node if n.op_type == "Conv" and constants.get(n.input[1]) == onnx.TensorProto.FLOAT
    ]
    assert len(floats) == len(kept) + 2  # an output layer is there for each stride
    # ONNX Runtime would round them again.
    detector = PoseDetector(tmp_path / "mixed.onnx", "onnxruntime")
    found = compare(torch_detector(load_torch(tmp_path / "mixed.pt"), detector.model.path), detector, [astronaut])
    assert found.maps < 0.3


def test_unknown_float_layers_are_told_first(
    pictures: list[np.ndarray], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow in ("img2pose_edge.quantize.graph.equalized", "img2pose_edge.training.loop.open_data"):
        monkeypatch.setattr(slow, lambda *_: pytest.fail("told too late"))
    with pytest.raises(ValueError, match=r"no layer stem\.7 to keep in float"):
        quantize_checkpoint(CHECKPOINT, pictures, ["stem.7", "stem.0"])
    options = TrainOptions(int8=True, float_layers=("stem.7",))
    with pytest.raises(ValueError, match=r"no layer stem\.7 to keep in float"):
        train(tiny_data, tmp_path / "run", options, initial=CHECKPOINT, workers=0)


def test_sensitivity_names_the_layers(
    pictures: list[np.ndarray], tmp_path: Path, astronaut: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sensitivities(CHECKPOINT, pictures)
    assert len(found) == len({s.layer for s in found}) == 51
    assert [s.angle for s in found] == sorted((s.angle for s in found), reverse=True)
    towers = {s.layer: s for s in found if s.layer.startswith(("score_tower", "pose_tower"))}
    assert towers["score_tower.depthwise.0"].angle < 1e-3 < towers["pose_tower.depthwise.1"].angle
    outputs = {s.layer: s for s in found if s.layer in ("score", "pose")}
    assert outputs["score"].angle < 1e-3 < outputs["pose"].angle
    assert outputs["pose"].score < 1e-5 < outputs["score"].score
    with pytest.raises(ValueError, match="show no face"):
        sensitivities(CHECKPOINT, [np.full((64, 64, 3), 90, np.uint8)])
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    arguments = ["sensitivity", "--checkpoint", str(CHECKPOINT), "--images", str(tmp_path), "--count", "1"]
    assert main(arguments) == 0
    head, first, *rest = capsys.readouterr().out.splitlines()
    (worst, *_) = sensitivities(CHECKPOINT, [letterbox(astronaut, 640, 64)[0]])
    assert head.split() == ["layer", "score", "centre", "size", "angle"]
    assert (first.split()[0], first.split()[-1]) == (worst.layer, f"{worst.angle:.3f}°")
    assert len(rest) == 50


def test_tflite_is_int8_inside(artefacts: dict[tuple[str, str], Path]) -> None:
    path = artefacts["tflite", "int8"]
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    assert given["dtype"] == np.uint8
    assert given["shape"].tolist() == [1, 512, 512, 3]
    kinds = [d["dtype"] for d in interpreter.get_tensor_details() if len(d["shape"]) == 4]
    assert sum(k == np.int8 for k in kinds) > 2 * sum(k == np.float32 for k in kinds), "float: pixels in, maps out"
    assert path.stat().st_size < 1e6


def test_a_tflite_model_has_one_size(tmp_path: Path, astronaut: np.ndarray) -> None:
    export_model(CHECKPOINT, tmp_path / "n.tflite", ExportOptions("tflite", size=(320, 416)))
    detector = PoseDetector(tmp_path / "n.tflite", threads=1)
    pixels, scale = letterbox(astronaut[20:330, 60:470], 640, 32, fixed=(320, 416))
    assert pixels.shape == (320, 416, 3)
    np.testing.assert_allclose(scale, 1, atol=0.01)
    (ours,), (theirs,) = detector(astronaut), PoseDetector("edge-n")(astronaut)  # shrunk to fit
    assert pairwise_iou(ours.box[None], theirs.box[None]) > 0.85
    with pytest.raises(ValueError, match=r"engine 'onnxruntime' does not run n\.tflite: use tflite"):
        PoseDetector(tmp_path / "n.tflite", engine="onnxruntime")(astronaut)


def test_weights_are_adjusted_to_their_rounding(monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray]) -> None:
    monkeypatch.setattr(adjusting, "BATCH", 4)
    teacher = FoldedNet(trained()).eval()
    graph = calibrated(trained(), pictures)
    images = [torch.from_numpy(picture[None]) for picture in pictures]

    def apart() -> float:
        with torch.no_grad():
            return sum(float(adjusting.distance(graph(image), teacher(image))) for image in images)

    before, weights = apart(), {name: w.detach().clone() for name, w in graph.named_parameters()}
    adjusting.adjust(graph, teacher, pictures, 80)
    assert apart() < 0.85 * before
    for name, weight in graph.named_parameters():
        assert (weight - weights[name]).abs().max() <= 80 * adjusting.LEARNING_RATE
    with torch.no_grad():
        assert adjusting.distance(teacher(images[0]), teacher(images[0])) == 0


def test_crops_to_adjust_by_have_one_size(pictures: list[np.ndarray]) -> None:
    random = np.random.default_rng(0)
    (small,) = (p for p in pictures if p.shape == (224, 224, 3))
    crop = adjusting.crop([small], random)
    assert crop.shape == (320, 320, 3)
    assert (crop[224:] == 127).all()
    assert crop[:224, :224].std() > 30
    seen = {adjusting.crop([pictures[0]], random).tobytes() for _ in range(8)}
    assert len(seen) == 8


def test_what_cannot_be_quantized_or_exported_is_named(
    tmp_path: Path, quantized: Path, pictures: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    full = build_network("full-18")
    save_checkpoint({"network": "full-18", "weights": full.state_dict()}, tmp_path / "full.pt")
    with pytest.raises(ValueError, match=r"only edge networks can be quantized.*full-18"):
        quantize_checkpoint(tmp_path / "full.pt", pictures)
    with pytest.raises(ValueError, match=r"only edge networks run in TFLite.*full-18"):
        export_model(tmp_path / "full.pt", tmp_path / "a.tflite", ExportOptions("tflite"))
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_model(CHECKPOINT, tmp_path / "a.tflite")
    with pytest.raises(ValueError, match=r"must end in \.tflite"):
        export_model(CHECKPOINT, tmp_path / "a.onnx", ExportOptions("tflite"))
    with pytest.raises(ValueError, match=r"multiples of 32 and at least 64, got \(480, 100\)"):
        export_model(CHECKPOINT, tmp_path / "a.tflite", ExportOptions("tflite", size=(480, 100)))
    with pytest.raises(ValueError, match="calibration needs pictures, got none"):
        quantize_checkpoint(CHECKPOINT, [])
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        quantize_checkpoint(CHECKPOINT, pictures, steps=-1)
    with pytest.raises(ValueError, match="is quantized: it can only be exported, with --precision int8"):
        quantize_checkpoint(quantized, pictures)
    with pytest.raises(ValueError, match=r"edge-n\.pt is not quantized"):
        export_model(CHECKPOINT, tmp_path / "a.onnx", ExportOptions(precision="int8"))
    arguments = ["quantize", "--checkpoint", str(CHECKPOINT), "--out", str(tmp_path / "a.pt")]
    assert main([*arguments, "--images", str(tmp_path)]) == 1
    assert "no image" in capsys.readouterr().err
    assert main([*arguments, "--images", str(tmp_path), "--count", "0"]) == 1
    assert "count must be at least 1" in capsys.readouterr().err
    assert main([*arguments, "--images", str(tmp_path), "--input-size", "0"]) == 1
    assert "input_size must be at least 64 pixels, got 0" in capsys.readouterr().err
    arguments = ["export", "--checkpoint", str(CHECKPOINT), "--out", str(tmp_path / "a.onnx")]
    assert main([*arguments, "--format", "coreml"]) == 1
    assert "format must be one of onnx, openvino, tflite, got 'coreml'" in capsys.readouterr().err
    assert main([*arguments, "--precision", "int4"]) == 1
    assert "precision must be one of fp32, fp16, int8, got 'int4'" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full.pt"]


def test_a_disk_that_fills_leaves_nothing_half_written(
    tmp_path: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: onnx.ModelProto, path: Path) -> None:
        Path(path).write_bytes(model.SerializeToString()[:1000])
        raise OSError("no space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(OSError, match="no space"):
        export_model(quantized, tmp_path / "a.onnx", ExportOptions(precision="int8"))
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"file": "a.onnx"}))
    with pytest.raises(ValueError, match=r"would overwrite .*a\.json, which describes a\.onnx"):
        export_model(CHECKPOINT, tmp_path / "a.tflite", ExportOptions("tflite"))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="which describes something else"):
        export_model(CHECKPOINT, tmp_path / "a.onnx")


def test_fine_tuning_for_int8(tiny_data: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    options = TrainOptions(steps=3, batch_size=4, crop_size=128, warmup_steps=1, learning_rate=1e-4, int8=True)
    data = prepare_data(tiny_data, tmp_path / "tiny.lmdb").path
    whole = load_checkpoint(train(data, tmp_path / "whole", options, initial=CHECKPOINT, workers=1))
    assert whole["int8"] is True
    assert sum(name.endswith("zero_point") for name in whole["weights"]) > 50, "ranges are part of it"
    with training_interrupted_in(2):
        train(data, tmp_path / "cut", options, initial=CHECKPOINT, workers=0, save_every=1)
    assert load_checkpoint(tmp_path / "cut/last.pt")["step"] == 2
    last = train(data, tmp_path / "cut", options, workers=0)
    again = load_checkpoint(last)
    assert again["step"] == 3, "its state fits a graph made anew"
    for kind in ("weights", "raw_weights"):
        for name, value in whole[kind].items():
            torch.testing.assert_close(again[kind][name], value, rtol=1e-3, atol=1e-4, msg=name)

    export_model(last, tmp_path / "n8.onnx", ExportOptions(precision="int8"))
    (ours,), (theirs,) = PoseDetector(tmp_path / "n8.onnx")(astronaut), PoseDetector("edge-n")(astronaut)
    assert pairwise_iou(ours.box[None], theirs.box[None]) > 0.85
    with pytest.raises(ValueError, match="is quantized: it can only be exported"):
        train(data, tmp_path / "other", options, initial=last, workers=0)
    with pytest.raises(ValueError, match="needs a trained network to begin with"):
        train(data, tmp_path / "other", options, workers=0)
    with pytest.raises(ValueError, match="is quantized: it can only be exported, with --precision int8"):
        export_model(last, tmp_path / "float.onnx")


def test_a_graph_that_learns_rounds_as_int8(pictures: list[np.ndarray]) -> None:
    """Gradients reach all of its weights; activations keep their steps whatever it sees."""
    graph = calibrated(trained(), pictures)
    scores, poses = graph(torch.from_numpy(pictures[3][None]))
    (sum(s.sum() for s in scores) + sum(p.sum() for p in poses)).backward()
    assert [n for n, p in graph.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        float_scores, _ = trained()(torch.from_numpy(pictures[3][None]))
        assert all(0 < (a - b).abs().mean() < 1.0 for a, b in zip(scores, float_scores, strict=True))
        before = {name: value.clone() for name, value in graph.state_dict().items()}
        graph(torch.from_numpy(255 - pictures[0][None]))
        for name, value in graph.state_dict().items():
            torch.testing.assert_close(value, before[name], msg=name)
        convolution = next(n for n in graph.graph.nodes if n.target is CONV)
        weight = graph.get_parameter(str(convolution.args[1].args[0].target))
        weight *= 4
        graph(torch.from_numpy(pictures[0][None]))
        rounding = graph.get_submodule(str(convolution.args[1].target))
        torch.testing.assert_close(rounding.scale, 4 * before[f"{convolution.args[1].target}.scale"])


@pytest.mark.parametrize("suffix", ["", "-ov", "-640x480"])
@pytest.mark.parametrize("network", ["edge-n", "edge-s"])
def test_bundled_int8_models_are_the_committed_checkpoint(network: str, suffix: str, astronaut: np.ndarray) -> None:
    state, _, graph = load_quantized(CHECKPOINT.with_name(f"{network}-int8.pt"))
    model = f"{network}-int8{suffix}"
    ours, of_float = find_model(model).manifest, find_model(network).manifest
    assert (ours["data"], ours["licence"]) == (of_float["data"], of_float["licence"])
    assert (state["data"], state["licence"]) == (ours["data"], ours["licence"])
    detector = PoseDetector(model)
    found = compare(torch_detector(graph, detector.model.path), detector, [astronaut])
    assert (found.faces, found.alone) == (1, 0)
    assert found.maps < 1e-4
