"""Round trips of every conversion, on numpy and torch; gradients; known cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from img2pose_edge import geometry as g

settings.register_profile("ci", deadline=None, max_examples=60)
settings.load_profile("ci")

unit = st.floats(-1, 1, allow_nan=False)
direction = st.tuples(unit, unit, unit).filter(lambda v: np.linalg.norm(v) > 0.1)
angle = st.floats(0, np.pi - 1e-4)
rotvecs = st.builds(lambda d, a: np.array(d) / np.linalg.norm(d) * a, direction, angle)
pixels = st.tuples(st.floats(-100, 740), st.floats(-100, 580)).map(np.array)
sizes = st.floats(2, 300)
K = g.default_intrinsics(640, 480)
POINTS = np.random.default_rng(0).normal(size=(12, 3)) * 0.5


@given(rotvecs)
def test_rotvec_matrix_round_trip_agrees_with_scipy(r: np.ndarray) -> None:
    matrix = g.rotvec_to_matrix(r)
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(r).as_matrix(), atol=1e-9)
    np.testing.assert_allclose(g.matrix_to_rotvec(matrix), r, atol=1e-6)
    np.testing.assert_allclose(g.compose_pose(matrix, r)[:3], r, atol=1e-6)
    np.testing.assert_allclose(g.compose_pose(matrix.astype(np.float32), r)[:3], r, atol=2e-3)


@given(direction)
def test_half_turns_survive(d: tuple[float, float, float]) -> None:
    matrix = Rotation.from_rotvec(np.array(d) / np.linalg.norm(d) * np.pi).as_matrix()
    np.testing.assert_allclose(g.rotvec_to_matrix(g.matrix_to_rotvec(matrix)), matrix, atol=1e-7)


@given(rotvecs)
def test_sixd_round_trip(r: np.ndarray) -> None:
    matrix = g.rotvec_to_matrix(r)
    np.testing.assert_allclose(g.sixd_to_matrix(g.matrix_to_sixd(matrix)), matrix, atol=1e-9)


@given(st.tuples(st.floats(-179, 179), st.floats(-89, 89), st.floats(-179, 179)).map(np.array))
def test_angles_round_trip(a: np.ndarray) -> None:
    np.testing.assert_allclose(g.matrix_to_angles(g.angles_to_matrix(a)), a, atol=1e-5)


@given(rotvecs)
def test_angles_are_those_of_300w_lp(r: np.ndarray) -> None:
    matrix = g.rotvec_to_matrix(r)
    a = Rotation.from_matrix(matrix.T).as_euler("xyz", degrees=True)
    expected = g.angles_to_matrix(np.array([a[0], -a[1], -a[2]]))
    np.testing.assert_allclose(expected, matrix, atol=1e-7)


@given(st.tuples(st.floats(-89, 89), st.floats(-89, 89), st.floats(-179, 179)).map(np.array))
def test_pan_is_the_heading_of_what_leaves_the_face(a: np.ndarray) -> None:
    x, _, z = g.angles_to_matrix(a) @ np.array([0, 0, -1.0])
    assert g.angles_to_pan(a) == pytest.approx(np.degrees(np.arctan2(-x, -z)), abs=1e-9)
    assert g.angles_to_pan(a) * a[1] >= 0
    assert g.angles_to_pan(np.array([0.0, a[1], a[2]])) == pytest.approx(a[1], abs=1e-9)


def test_signs_of_the_angles() -> None:
    out_of_face = np.array([0, 0, -1.0])
    assert (g.angles_to_matrix(np.array([30.0, 0, 0])) @ out_of_face)[1] < 0, "pitch > 0 looks up"
    assert (g.angles_to_matrix(np.array([0, -30.0, 0])) @ out_of_face)[0] > 0, "yaw < 0 faces image-right"
    down = g.angles_to_matrix(np.array([0, 0, 30.0])) @ np.array([0, 1.0, 0])
    assert down[0] < 0, "roll > 0 turns clockwise: the chin goes image-left"


@given(rotvecs, rotvecs)
def test_geodesic_distance_is_the_relative_angle(a: np.ndarray, b: np.ndarray) -> None:
    relative = Rotation.from_rotvec(a).inv() * Rotation.from_rotvec(b)
    distance = g.geodesic_distance(g.rotvec_to_matrix(a), g.rotvec_to_matrix(b))
    np.testing.assert_allclose(distance, relative.magnitude(), atol=1e-5)


@given(rotvecs, pixels, sizes)
def test_local_camera_round_trip(r: np.ndarray, center: np.ndarray, size: float) -> None:
    local = g.rotvec_to_matrix(r)
    rotation, translation = g.local_to_camera(center, np.array(size), local, K)
    back = g.camera_to_local(rotation, translation, K)
    np.testing.assert_allclose(back[0], center, atol=1e-6)
    np.testing.assert_allclose(back[1], size, rtol=1e-9)
    np.testing.assert_allclose(back[2], local, atol=1e-9)


@given(pixels)
def test_ray_rotation_turns_the_axis_to_the_ray(center: np.ndarray) -> None:
    turned = g.ray_rotation(center, K) @ np.array([0, 0, 1.0])
    image = K @ turned
    np.testing.assert_allclose(image[:2] / image[2], center, atol=1e-6)
    # The smallest such rotation has its axis in the image plane.
    assert abs(g.matrix_to_rotvec(g.ray_rotation(center, K))[2]) < 1e-9


def pose_of(r: np.ndarray, center: np.ndarray, size: float) -> np.ndarray:
    return g.compose_pose(*g.local_to_camera(center, np.array(size), g.rotvec_to_matrix(r), K))


def test_poses_are_converted_on_any_device() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode  # stands for a GPU

    with FakeTensorMode():
        poses, cameras = torch.zeros(5, 6, device="cuda"), torch.zeros(5, 3, 3, device="cuda")
        offset = torch.zeros(5, 2, device="cuda")
        assert g.convert_pose(poses, cameras, cameras[0], 0.5, offset).device.type == "cuda"
        assert g.transform_intrinsics(cameras, 0.5, offset).device.type == "cuda"


def test_cameras_in_whole_numbers_are_scaled() -> None:
    camera = np.array([[701, 0, 321], [0, 701, 239], [0, 0, 1]])
    half = g.transform_intrinsics(camera, 0.5, np.zeros(2))
    np.testing.assert_array_equal(half, [[350.5, 0, 160.5], [0, 350.5, 119.5], [0, 0, 1]])


@given(rotvecs, pixels, sizes, st.floats(0.2, 5), pixels)
def test_convert_pose_to_a_box_and_back(
    r: np.ndarray, center: np.ndarray, size: float, scale: float, offset: np.ndarray
) -> None:
    pose = pose_of(r, center, size)
    box_camera = g.default_intrinsics(120, 150)
    inside = g.convert_pose(pose, K, box_camera, scale, offset)
    back = g.convert_pose(inside, box_camera, K, 1 / scale, -offset / scale)
    np.testing.assert_allclose(g.decompose_pose(back)[0], g.decompose_pose(pose)[0], atol=1e-6)
    np.testing.assert_allclose(back[3:], pose[3:], rtol=1e-6, atol=1e-6)
    # Local rotation, apparent size and centre are what the pixels show: they move with them.
    seen = g.camera_to_local(*g.decompose_pose(inside), box_camera)
    np.testing.assert_allclose(seen[0], center * scale + offset, atol=1e-4)
    np.testing.assert_allclose(seen[2], g.rotvec_to_matrix(r), atol=1e-6)


@given(rotvecs, pixels, sizes, st.floats(0.2, 5), pixels)
def test_a_crop_of_one_camera_leaves_the_pose(
    r: np.ndarray, center: np.ndarray, size: float, scale: float, offset: np.ndarray
) -> None:
    pose = pose_of(r, center, size)
    crop = g.transform_intrinsics(K, np.array(scale), offset)
    rotation, translation = g.decompose_pose(pose)
    if translation[2] < 2:
        return
    whole = g.project(POINTS, rotation, translation, K)
    np.testing.assert_allclose(g.project(POINTS, rotation, translation, crop), whole * scale + offset, atol=1e-5)
    converted = g.convert_pose(pose, K, crop, scale, offset)
    np.testing.assert_allclose(g.decompose_pose(converted)[0], rotation, atol=1e-6)


def test_resizing_an_image_leaves_the_pose_of_the_default_camera() -> None:
    half = g.transform_intrinsics(K, np.array(0.5), np.zeros(2))
    np.testing.assert_allclose(half, g.default_intrinsics(320, 240))


@given(rotvecs, pixels, sizes)
def test_flip_mirrors_the_projection(r: np.ndarray, center: np.ndarray, size: float) -> None:
    pose = pose_of(r, center, size)
    mirrored = g.flip_pose(pose)
    straight = g.project(POINTS, *g.decompose_pose(pose), K)
    flipped = g.project(POINTS * [-1, 1, 1], *g.decompose_pose(mirrored), K)
    np.testing.assert_allclose(flipped, straight * [-1, 1] + [640, 0], atol=1e-4)
    np.testing.assert_allclose(g.flip_pose(mirrored), pose)
    np.testing.assert_allclose(g.flip_rotation(g.decompose_pose(pose)[0]), g.decompose_pose(mirrored)[0], atol=1e-9)


@given(rotvecs, pixels, sizes, st.floats(-180, 180))
def test_roll_turns_the_projection_clockwise(r: np.ndarray, center: np.ndarray, size: float, degrees: float) -> None:
    pose = pose_of(r, center, size)
    turned = g.project(POINTS, *g.decompose_pose(g.roll_pose(pose, np.array(degrees))), K)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = K[:2, 2]
    expected = (g.project(POINTS, *g.decompose_pose(pose), K) - middle) @ np.array([[c, s], [-s, c]]) + middle
    np.testing.assert_allclose(turned, expected, atol=1e-4)


@given(rotvecs, pixels, st.floats(2, 150))
def test_solve_translation_and_pnp_recover_the_pose(r: np.ndarray, center: np.ndarray, size: float) -> None:
    rotation, translation = g.local_to_camera(center, np.array(size), g.rotvec_to_matrix(r), K)
    seen = g.project(POINTS, rotation, translation, K)
    np.testing.assert_allclose(g.solve_translation(POINTS, seen, rotation, K), translation, rtol=1e-5, atol=1e-6)
    weights = np.r_[np.ones(6), np.zeros(6)]
    spoiled = seen + np.r_[np.zeros((6, 2)), np.full((6, 2), 50.0)]
    np.testing.assert_allclose(
        g.solve_translation(POINTS, spoiled, rotation, K, weights), translation, rtol=1e-5, atol=1e-6
    )
    pose = g.solve_pnp(POINTS, seen, K)
    np.testing.assert_allclose(g.rotvec_to_matrix(pose[:3]), rotation, atol=1e-3)


def test_solve_pnp_knows_skew() -> None:
    camera = K + np.array([[0, 0.06 * K[0, 0], 0], [0, 0, 0], [0, 0, 0]])
    pose = np.array([0.1, -0.3, 0.2, 1.0, 0.5, 12.0])
    seen = g.project(POINTS, *g.decompose_pose(pose), camera)
    np.testing.assert_allclose(g.solve_pnp(POINTS, seen, camera), pose, atol=1e-3)


def test_solve_pnp_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="N >= 4"):
        g.solve_pnp(np.zeros((3, 3)), np.zeros((3, 2)), K)
    with pytest.raises(ValueError, match="finite points and pixels"):
        g.solve_pnp(POINTS, np.full((len(POINTS), 2), np.nan), K)
    with pytest.raises(ValueError, match="3x3 camera matrix"):
        g.solve_pnp(POINTS, np.zeros((len(POINTS), 2)), np.eye(4))
    for points, pixels in ((np.ones((5, 3)), np.ones((5, 2))), (POINTS, np.full((len(POINTS), 2), 100.0))):
        with pytest.raises(ValueError, match="no pose explains"):
            g.solve_pnp(points, pixels, K)


def test_lists_are_named_as_what_they_are() -> None:
    with pytest.raises(TypeError, match=r"a numpy array or torch tensor is wanted, got list: \[1, 2, 3\]"):
        g.angles_to_matrix([1, 2, 3])


@given(rotvecs, pixels, st.floats(2, 120))
def test_ellipsoid_box_bounds_its_projection(r: np.ndarray, center: np.ndarray, size: float) -> None:
    rotation, translation = g.local_to_camera(center, np.array(size), g.rotvec_to_matrix(r), K)
    middle, axes = np.array([0.0, -0.2, -0.1]), np.array([0.7, 0.9, 0.55])
    sphere = np.random.default_rng(1).normal(size=(4000, 3))
    sphere /= np.linalg.norm(sphere, axis=1)[:, None]
    seen = g.project(sphere * axes + middle, rotation, translation, K)
    box = g.project_ellipsoid_box(g.ellipsoid(middle, axes), rotation, translation, K)
    slack = 0.01 * size
    assert (seen.min(0) >= box[:2] - 1e-6).all()
    assert (seen.max(0) <= box[2:] + 1e-6).all()
    assert (seen.min(0) <= box[:2] + slack).all()
    assert (seen.max(0) >= box[2:] - slack).all()


def torch_and_numpy() -> list[tuple[str, tuple[np.ndarray, ...]]]:
    rng = np.random.default_rng(3)
    r = rng.normal(size=(5, 3))
    rotation, center, size = g.rotvec_to_matrix(r), rng.uniform(0, 480, (5, 2)), rng.uniform(5, 90, 5)
    camera_rotation, translation = g.local_to_camera(center, size, rotation, K)
    pose = g.compose_pose(camera_rotation, translation)
    seen = g.project(POINTS, camera_rotation, translation, K)
    return [
        ("rotvec_to_matrix", (r,)),
        ("matrix_to_rotvec", (rotation,)),
        ("sixd_to_matrix", (rng.normal(size=(5, 6)),)),
        ("matrix_to_sixd", (rotation,)),
        ("angles_to_matrix", (r * 40,)),
        ("matrix_to_angles", (rotation,)),
        ("angles_to_pan", (r * 40,)),
        ("geodesic_distance", (rotation, rotation[::-1].copy())),
        ("transform_intrinsics", (np.stack([K] * 5), size, center)),
        ("ray_rotation", (center, K)),
        ("local_to_camera", (center, size, rotation, K)),
        ("camera_to_local", (camera_rotation, translation, K)),
        ("convert_pose", (pose, K, g.default_intrinsics(99, 77), size, center)),
        ("flip_pose", (pose,)),
        ("flip_rotation", (rotation,)),
        ("roll_pose", (pose, size)),
        ("project", (POINTS, camera_rotation, translation, K)),
        ("solve_translation", (POINTS, seen, camera_rotation, K)),
        ("project_ellipsoid_box", (g.ellipsoid(np.array([0, 0.1, 0.2]), np.ones(3)), camera_rotation, translation, K)),
    ]


@pytest.mark.parametrize(("name", "arguments"), torch_and_numpy(), ids=lambda v: v if isinstance(v, str) else "")
def test_torch_gives_what_numpy_gives(name: str, arguments: tuple[np.ndarray, ...]) -> None:
    function = getattr(g, name)
    ours, theirs = function(*arguments), function(*map(torch.tensor, arguments))
    if not isinstance(ours, tuple):
        ours, theirs = (ours,), (theirs,)
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(b, torch.Tensor)
        np.testing.assert_allclose(b.numpy(), a, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-5, 1.0, np.pi - 1e-6, np.pi])
def test_gradients_are_finite_at_zero_and_near_pi(size: float) -> None:
    for d in np.vstack([np.eye(3), np.ones((1, 3)) / np.sqrt(3)]):
        r = torch.tensor(d * size, requires_grad=True)
        matrix = g.rotvec_to_matrix(r)
        identity = torch.eye(3, dtype=matrix.dtype)
        total = (
            g.matrix_to_rotvec(matrix).sum()
            + g.matrix_to_angles(matrix).sum()
            + g.geodesic_distance(matrix, identity)
            + g.geodesic_distance(matrix, matrix.detach())
        )
        (gradient,) = torch.autograd.grad(total, r)
        assert gradient.isfinite().all(), (d, size, gradient)
