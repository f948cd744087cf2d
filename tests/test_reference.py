"""The reference face: shape, symmetry, and no bias against the angles it must reproduce."""

from __future__ import annotations

import numpy as np
from conftest import shared
from img2pose_edge.pose_references import five_points, load_reference
from img2pose_edge.pose_references.build import MIRROR_68, read_faces

from img2pose_edge import geometry


def test_shapes_symmetry_and_agreement() -> None:
    face = load_reference()
    assert face.points68.shape == (68, 3)
    assert face.vertices.shape == (468, 3)
    assert face.triangles.shape == (898, 3)
    assert face.triangles.max() == 467
    np.testing.assert_allclose(face.points68[MIRROR_68] * [-1, 1, 1], face.points68, atol=1e-5)
    np.testing.assert_allclose(five_points(face.points68), face.points5, atol=1e-5)
    # The dense mesh passes through the inner landmarks: mean distance to the nearest vertex in face units.
    gap = np.linalg.norm(face.points68[17:, None] - face.vertices[None], axis=2).min(1)
    assert gap.mean() < 0.03
    # Image-left eye left, mouth below eyes, nose in front of all.
    assert face.points5[0, 0] < 0 < face.points5[1, 0]
    assert face.points5[3, 1] > face.points5[0, 1]
    assert face.points68[:, 2].argmin() in range(27, 36)


def test_pnp_on_300w_annotations_is_unbiased() -> None:
    faces = [f for f in read_faces(shared("data/train/labels.jsonl")) if "landmarks68" in f]
    points = load_reference().points68.astype(float)
    errors = []
    for face in faces:
        rotation, translation = geometry.decompose_pose(
            geometry.solve_pnp(points, np.array(face["landmarks68"]), face["K"])
        )
        local = geometry.camera_to_local(rotation, translation, face["K"])[2]
        errors.append(geometry.matrix_to_angles(local) - face["angles"])
    bias, mae = np.mean(errors, 0), np.abs(errors).mean(0)
    print(f"\n{len(errors)} faces: bias {bias.round(2)}, MAE {mae.round(2)} degrees (pitch, yaw, roll)")
    assert (np.abs(bias) < 0.5).all(), bias
    assert (mae < [3.2, 2.2, 1.6]).all(), mae
