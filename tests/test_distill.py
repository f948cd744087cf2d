"""Distillation: hints of edge and full teachers, and what a student makes of them."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from img2pose_edge import geometry
from img2pose_edge.training import distill
from img2pose_edge.training.augment import Composer
from img2pose_edge.training.checkpoint import load_checkpoint, save_checkpoint
from img2pose_edge.training.data import PixelCache, read_records
from img2pose_edge.training.distill import (
    DetectorTeacher,
    EdgeTeacher,
    FullTeacher,
    Hints,
    hint_losses,
    load_teacher,
    refine_boxes,
)
from img2pose_edge.training.loop import TrainOptions, collate, train
from img2pose_edge.training.networks import build_network
from img2pose_edge.training.networks.edge import STRIDES, EdgeNet
from img2pose_edge.training.objective import EdgeObjective
from img2pose_edge.training.targets import Batch, Cells, covered_cells, flatten_maps, lay_out_cells

BUNDLED = Path(__file__).parents[1] / "checkpoints/edge-n.pt"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    records = read_records(tiny_data / "labels.jsonl")
    pixels = PixelCache(tiny_data, records, tmp_path_factory.mktemp("pixels"))
    composer = Composer(records, pixels, list(range(len(records))), 160, 3)
    return collate([composer[i] for i in range(4)])


def maps(network: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Cells]:
    with torch.autocast("cpu", torch.bfloat16):
        scores, poses = network(batch.images)
    cells = lay_out_cells([(s.shape[2], s.shape[3]) for s in scores], STRIDES, CPU)
    return flatten_maps(scores)[..., 0], flatten_maps(poses), cells


def test_a_student_that_is_its_teacher_has_nothing_to_learn(batch: Batch) -> None:
    teacher = load_teacher(BUNDLED, CPU)
    assert isinstance(teacher, EdgeTeacher)
    with torch.no_grad():
        logits, raw, cells = maps(teacher.network, batch)
        hints = teacher(batch, cells)
        same = hint_losses(logits, raw, cells, hints)
        other = hint_losses(logits - 1, raw + 0.1, cells, hints)
    assert hints.score.shape == (4, len(cells.stride))
    assert len(hints.cell) >= 4, "the bundled model sees the faces"
    for name in same:
        assert same[name] < 1e-4 < 0.01 < other[name], name


def test_an_edge_teacher_is_not_believed_where_it_alone_sees_a_face(batch: Batch) -> None:
    teacher = load_teacher(BUNDLED, CPU)
    _, _, cells = maps(build_network("edge-n"), batch)
    labelled, alone = teacher(batch, cells), teacher(batch.select(batch.picture > 0), cells)
    sure = labelled.score >= 0.5
    assert sure[0].any()
    assert not labelled.known[0, sure[0]].logical_not().all(), "it is believed where there is a label"
    assert not alone.known[0, sure[0]].any()
    assert alone.known[~sure].all()


def test_no_teacher_is_asked_about_people_who_lie(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher(BUNDLED, CPU)
    network = build_network("edge-n").train()
    known = []

    def keep(logits: Tensor, raw: Tensor, cells: Cells, hints: Hints) -> dict[str, Tensor]:
        known.append(hints.known)
        silent = dataclasses.replace(hints, known=torch.zeros_like(hints.known))
        assert hint_losses(logits, raw, cells, silent)["hint_pose"] == 0
        return hint_losses(logits, raw, cells, hints)

    monkeypatch.setattr("img2pose_edge.training.objective.hint_losses", keep)
    upright = dataclasses.replace(batch, local=torch.eye(3).expand_as(batch.local))
    lying = dataclasses.replace(batch, local=geometry.roll_matrix(torch.full((len(batch.local),), 90.0)))
    for pictures in (upright, lying):
        EdgeObjective(network, [teacher])(pictures)
    _, _, cells = maps(network, batch)
    assert known[0].any()
    torch.testing.assert_close(known[1], known[0] & ~covered_cells(batch, cells))
    assert (known[0] & ~known[1]).any()


def test_teachers_take_turns_by_lot_as_the_seed_says(batch: Batch, tmp_path: Path) -> None:
    write_detector(tmp_path / "scrfd.onnx")
    teachers = [load_teacher(BUNDLED, CPU), load_teacher(tmp_path / "scrfd.onnx", CPU)]
    objective = EdgeObjective(build_network("edge-n").train(), teachers)
    assert set(objective.parts) >= {"hint_score", "hint_pose"}

    def heard(seed: int) -> bool:
        torch.manual_seed(seed)
        return "hint_pose" in objective(batch)[1]

    turns = [heard(seed) for seed in range(8)]
    assert {*turns} == {True, False}
    assert turns == [heard(seed) for seed in range(8)], "a run that goes on hears the same"


def test_a_full_teacher_speaks_for_the_cells_around_its_faces(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor([[40.0, 40, 100, 110], [60, 50, 120, 120], [8, 8, 20, 22]])
    local = geometry.angles_to_matrix(torch.tensor([[10.0, 20, 5], [0, -30, 0], [5, 5, 5]]))
    faces = (
        torch.tensor([0.9, 0.6, 0.4]),
        boxes,
        (boxes[:, :2] + boxes[:, 2:]) / 2,
        torch.tensor([45.0, 50, 9]),
        local,
    )
    nothing = tuple(v[:0] for v in faces)
    answers = iter([faces, nothing, nothing, faces])
    monkeypatch.setattr(distill, "find_local_poses", lambda *_: next(answers))
    network = build_network("edge-n").eval()
    logits, raw, cells = maps(network, batch)
    hints = FullTeacher(network)(batch, cells)
    assert hints.known[[1, 2]].sum() == 0, "where it finds nothing it says nothing"
    np.testing.assert_allclose(hints.score[0].unique(), [0, 0.4, 0.6, 0.9])
    assert len({*zip(hints.picture.tolist(), hints.cell.tolist(), strict=True)}) == len(hints.cell)
    middle = cells.middle[hints.cell]
    assert ((middle - hints.center).abs() < cells.stride[hints.cell][:, None]).all()
    # The cell that holds the middle of the surest face says so, on every level that may learn it.
    for stride in (8.0, 16.0, 32.0):
        there = (cells.stride == stride) & ((cells.middle - faces[2][0]).abs() <= stride / 2).all(1)
        assert (hints.score[0, there] == 0.9).all(), stride
    losses = hint_losses(logits, raw, cells, hints)
    assert all(v.isfinite() and v > 0 for v in losses.values())
    monkeypatch.setattr(distill, "find_local_poses", lambda *_: nothing)
    losses = hint_losses(logits, raw, cells, FullTeacher(network)(batch, cells))
    assert [v.item() for v in losses.values()] == [0, 0]


def test_a_full_network_finds_local_poses(batch: Batch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network("full-18")
    network.pose_mean = torch.tensor([0.0, 0, 0, 0, 0, 3.0])
    save_checkpoint({"network": "full-18", "weights": network.state_dict()}, tmp_path / "full.pt")
    teacher = load_teacher(tmp_path / "full.pt", CPU)
    assert isinstance(teacher, FullTeacher)
    _, _, cells = maps(build_network("edge-n"), batch)
    hints = teacher(batch, cells)
    assert hints.local.shape == (len(hints.cell), 3, 3)
    assert len(hints.cell) > 0


def write_detector(path: Path) -> None:
    """Outputs as SCRFD's: the first anchor of a cell is as sure as it is red, the second as it is blue; sides of one
    stride and of two."""
    nodes, outputs, weights = [], [], []
    kinds = {"score": (1, np.zeros(2)), "bbox": (4, np.repeat([1.0, 2.0], 4)), "kps": (10, np.zeros(20))}
    for kind, (numbers, bias) in kinds.items():
        matrix = np.zeros((len(bias), 3, 1, 1))
        if kind == "score":
            matrix[0, 0], matrix[1, 2] = 4, 4
        arrays = {f"{kind}_w": matrix, f"{kind}_b": bias}
        weights += [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()]
        weights.append(onnx.numpy_helper.from_array(np.array([0, -1, numbers]), f"{kind}_shape"))
        for stride in STRIDES:
            name = f"{kind}_{stride}"
            sides = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
            nodes += [
                onnx.helper.make_node("AveragePool", ["x"], [f"{name}_pool"], **sides),
                onnx.helper.make_node("Conv", [f"{name}_pool", *arrays], [f"{name}_conv"]),
                onnx.helper.make_node("Transpose", [f"{name}_conv"], [f"{name}_last"], perm=[0, 2, 3, 1]),
                onnx.helper.make_node("Reshape", [f"{name}_last", f"{kind}_shape"], [f"{name}_raw"]),
                onnx.helper.make_node("Sigmoid" if kind == "score" else "Identity", [f"{name}_raw"], [name]),
            ]
            outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", "n", numbers]))
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", 3, "h", "w"])]
    graph = onnx.helper.make_graph(nodes, "detector", inputs, outputs, weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)


def test_a_detector_teaches_scores_and_boxes_of_small_faces(batch: Batch, tmp_path: Path) -> None:
    write_detector(tmp_path / "scrfd.onnx")
    teacher = load_teacher(tmp_path / "scrfd.onnx", CPU)
    assert isinstance(teacher, DetectorTeacher)
    images = torch.zeros_like(batch.images)
    images[1, 60:68, 44:52, 2] = 255  # red, what lies around the anchor (48, 64)
    images[2, 60:68, 44:52, 0] = 255  # blue
    cells = lay_out_cells([(160 // s, 160 // s) for s in STRIDES], STRIDES, CPU)
    hints = teacher(dataclasses.replace(batch, images=images), cells)
    at = 7 * 20 + 5  # the cell with this middle
    assert cells.middle[at].tolist() == [44, 60]
    assert (hints.score.argmax(1)[1:3] == at).all()
    assert hints.score[0, at] < 0.05 < 0.95 < hints.score[1, at]
    assert hints.boxes is not None
    assert hints.boxes[1, at].tolist() == [36, 52, 52, 68]
    assert hints.boxes[2, at].tolist() == [28, 44, 60, 76]
    assert hints.known[:, cells.stride < 32].all()
    assert not hints.known[:, cells.stride == 32].any()
    assert len(hints.cell) == 0

    # Labels that disagree a little, agree too little, are of a large face, and of one of which the teacher is not sure.
    labels = torch.tensor([[38.0, 54, 54, 70], [38, 54, 80, 90], [0, 0, 100, 120], [100, 100, 116, 116]])
    first = batch.select(torch.tensor([0] * 4))
    moved = refine_boxes(dataclasses.replace(first, boxes=labels, picture=torch.tensor([1] * 4)), cells, hints).boxes
    assert moved[0].tolist() == [37, 53, 53, 69]
    assert (moved[1:] == labels[1:]).all()

    student = build_network("edge-n").train()
    loss, parts = EdgeObjective(student, [teacher])(batch)
    assert loss.isfinite()
    assert parts["hint_score"] > 0
    assert "hint_pose" not in parts

    wrong = onnx.load(tmp_path / "scrfd.onnx")
    del wrong.graph.output[3:]
    onnx.save(wrong, tmp_path / "wrong.onnx")
    with pytest.raises(ValueError, match=r"wrong\.onnx is not SCRFD"):
        load_teacher(tmp_path / "wrong.onnx", CPU)
    with pytest.raises(FileNotFoundError, match=r"no model .*none\.onnx"):
        load_teacher(tmp_path / "none.onnx", CPU)


def test_a_student_comes_nearer_to_its_teacher(batch: Batch) -> None:
    torch.manual_seed(0)
    student = build_network("edge-n").train()
    assert isinstance(student, EdgeNet)
    objective = EdgeObjective(student, [load_teacher(BUNDLED, CPU)])
    assert not any("teacher" in name for name, _ in objective.named_parameters()), "the teacher is not trained"
    optimizer = torch.optim.AdamW(objective.parameters(), 2e-3)
    history = []
    for _ in range(25):
        loss, parts = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({k: v.item() for k, v in parts.items()})
    for name in ("hint_score", "hint_pose"):
        assert history[-1][name] < 0.7 * history[0][name], name


def test_the_loop_logs_what_the_teacher_taught(tiny_data: Path, tmp_path: Path) -> None:
    options = TrainOptions(steps=2, batch_size=2, crop_size=96, warmup_steps=1, teacher=(str(BUNDLED),))
    train(tiny_data, tmp_path / "run", options, workers=0)
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert np.isfinite([float(rows[0][k]) for k in ("hint_score", "hint_pose")]).all()
    with pytest.raises(ValueError, match="teacher="):
        train(tiny_data, tmp_path / "run", TrainOptions(**{**vars(options), "teacher": ()}), workers=0)
    write_detector(tmp_path / "scrfd.onnx")
    both = TrainOptions(**{**vars(options), "steps": 1, "teacher": (str(BUNDLED), str(tmp_path / "scrfd.onnx"))})
    train(tiny_data, tmp_path / "both", both, workers=0)
    of_run, of_teacher = load_checkpoint(tmp_path / "both/last.pt"), load_checkpoint(BUNDLED)
    assert of_run["data"].startswith(f"{of_teacher['data']}; what scrfd.onnx finds; tiny")
    assert of_run["licence"] == of_teacher["licence"]
    full = TrainOptions(**{**vars(options), "network": "full-18"})
    with pytest.raises(ValueError, match="only edge networks learn from a teacher, not a full-18"):
        train(tiny_data, tmp_path / "full", full, workers=0)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        train(tiny_data, tmp_path / "none", TrainOptions(**{**vars(options), "teacher": ("none.pt",)}), workers=0)


def test_a_damaged_detector_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scrfd.onnx"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"scrfd\.onnx is not SCRFD with five points"):
        load_teacher(path, CPU)
