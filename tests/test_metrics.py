"""WIDER FACE's protocol on a case computed by hand, and on a peer whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import shared
from img2pose_edge.benchmarks.accuracy import Found, evaluate_wider, middle_face
from img2pose_edge.benchmarks.metrics import (
    Detections,
    GroundTruth,
    angle_errors,
    normalize_scores,
    pairwise_iou,
    wider_average_precision,
)


def square(x: float, y: float, side: float = 9.0) -> list[float]:
    return [x, y, x + side, y + side]


def test_average_precision_by_hand() -> None:
    truth = [
        GroundTruth(np.array([square(0, 0), square(100, 0), square(200, 0)]), np.array([True, True, False])),
        GroundTruth(np.array([square(0, 0)]), np.array([True])),
    ]
    found = [
        # find, ignored (no proposal), false, second on a claimed face (a proposal, no find)
        Detections(
            np.array([square(0, 0), square(200, 0), square(50, 50), square(0, 1)]), np.array([0.9, 0.85, 0.8, 0.5])
        ),
        Detections(np.array([square(0, 1)]), np.array([0.6])),
    ]
    # Scores high to low: find (P 1/1, R 1/3), false (1/2, 1/3), find (2/3, 2/3), double (2/4, 2/3). The third
    # face is never found. AP = 1/3 * 1 + 1/3 * 2/3.
    assert wider_average_precision(found, truth) == pytest.approx(1 / 3 + 2 / 9, abs=1e-9)


def test_nothing_found_is_zero_and_no_face_an_error() -> None:
    empty = Detections(np.empty((0, 4)), np.empty(0))
    one = GroundTruth(np.array([square(0, 0)]), np.array([True]))
    assert wider_average_precision(normalize_scores([empty]), [one]) == 0
    with pytest.raises(ValueError, match="without a face"):
        wider_average_precision([empty], [GroundTruth(one.boxes, np.array([False]))])


def test_scores_are_normalized_over_the_set() -> None:
    found = [Detections(np.zeros((2, 4)), np.array([0.9, 0.5])), Detections(np.zeros((1, 4)), np.array([0.1]))]
    assert [d.scores.tolist() for d in normalize_scores(found)] == [[1.0, pytest.approx(0.5)], [0.0]]


def test_iou_and_angle_errors() -> None:
    assert pairwise_iou(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0]]))[0, 0] == pytest.approx(1 / 3)
    assert angle_errors(np.array([179.0, 0, -10]), np.array([-179.0, 5, 10])).tolist() == [2, 5, 20]


def test_the_face_in_the_middle_is_the_labelled_one() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    side, middle = Found(0.9, np.array([0, 0, 20, 20.0])), Found(0.5, np.array([30, 30, 70, 70.0]))
    assert middle_face([side, middle], image) is middle
    assert middle_face([side], image) is None


def test_yunet_reaches_its_known_figures() -> None:
    from img2pose_edge.benchmarks.peers import YUNET_NMS, Peer

    detect = Peer(shared("peers/yunet_n.onnx"))
    detect._evaluation_overlap = YUNET_NMS  # with which the known figures were measured
    figures = evaluate_wider(detect, shared("data/eval/wider"))
    known = {"ap_easy": 0.901, "ap_medium": 0.856, "ap_hard": 0.663}
    assert {name: figures[name] for name in known} == pytest.approx(known, abs=0.005)
