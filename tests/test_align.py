"""Aligned and upright crops, against the template, against scikit-image and against a detector's points."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import ASTRONAUT_POINTS, shared
from img2pose_edge.benchmarks.peers import Peer
from img2pose_edge.pose_references import load_reference, project_face_box
from skimage.transform import SimilarityTransform

from img2pose_edge import Face, align_face, detect_poses, geometry, upright_face
from img2pose_edge.align import TEMPLATE, alignment, similarity

K = geometry.default_intrinsics(640, 480)


def face_at(angles: tuple[float, float, float], center: tuple[float, float] = (320, 240), size: float = 90) -> Face:
    local = geometry.angles_to_matrix(np.array(angles))
    rotation, translation = geometry.local_to_camera(np.array(center), np.array(size), local, K)
    box = project_face_box(rotation, translation, K)
    return Face(0.9, box, geometry.compose_pose(rotation, translation), rotation, local, np.array(angles), K)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def dots(points: np.ndarray, width: int = 640, height: int = 480) -> np.ndarray:
    """A black picture with a small white disc at each point, in corner-counted pixels."""
    picture = np.zeros((height, width, 3), np.uint8)
    for x, y in np.round((points - 0.5) * 16).astype(int):
        cv2.circle(picture, (int(x), int(y)), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    return picture


def dot_centers(picture: np.ndarray) -> np.ndarray:
    """Centres of gravity of a picture's discs, corner-counted, sorted by height."""
    grey = picture[..., 0].astype(float)
    count, labels = cv2.connectedComponents((grey > 20).astype(np.uint8))
    rows, columns = np.indices(grey.shape)
    parts = [grey * (labels == i) for i in range(1, count)]
    return np.array(
        sorted(([(g * columns).sum(), (g * rows).sum()] / g.sum() + 0.5 for g in parts), key=lambda p: p[1])
    )


def test_the_similarity_is_scikit_images() -> None:
    random = np.random.default_rng(0)
    source, target = random.normal(size=(2, 5, 2)) * 50
    expected = SimilarityTransform.from_estimate(source, target).params[:2]
    np.testing.assert_allclose(similarity(source, target), expected, atol=1e-9)


@pytest.mark.parametrize("angles", [(0, 0, 0), (0, 0, 35), (10, 20, -120), (-15, -40, 5)])
def test_points_of_a_turned_face_meet_the_template(angles: tuple[float, float, float]) -> None:
    face = face_at(angles, (250, 300))
    points = load_reference().detector_points5.astype(float)
    seen = geometry.project(points, face.rotation, face.translation, K)
    there = moved(alignment(face), seen)
    away = np.linalg.norm(there - TEMPLATE, axis=1)
    # No similarity undoes yaw; roll it undoes wholly.
    assert away.mean() < (4 if angles[1] == 0 else 10)
    upright = alignment(face_at((0, 0, 0), (250, 300)))
    if angles[:2] == (0, 0):
        np.testing.assert_allclose(np.linalg.det(alignment(face)[:, :2]), np.linalg.det(upright[:, :2]), rtol=0.02)


@pytest.mark.parametrize(("size", "margin"), [(112, 0.0), (96, 0.25), (224, 0.5), (31, 0.0)])
def test_pixels_go_where_the_alignment_says(size: int, margin: float) -> None:
    face = face_at((0, 10, 25), (300, 200), 110)
    points = load_reference().detector_points5.astype(float)
    seen = geometry.project(points, face.rotation, face.translation, K)
    crop = align_face(dots(seen), face, size, margin)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.uint8
    expected = moved(alignment(face, size, margin), seen)
    distances = np.linalg.norm(dot_centers(crop)[:, None] - expected, axis=2)
    assert distances.shape == (5, 5)
    assert distances.min(0).max() < 0.35
    # Size and margin are those of the template.
    whole = moved(alignment(face), seen)
    np.testing.assert_allclose(expected * (1 + 2 * margin) / size - margin, whole / 112, atol=1e-9)


def test_a_large_face_is_averaged_down_not_sampled() -> None:
    face = face_at((0, 0, 0), size=170)
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    small = align_face(stripes, face, 20)
    assert abs(small[8:12, 8:12].mean() - 127) < 4
    assert small[8:12, 8:12].std() < 12


@pytest.mark.parametrize("margin", [20.0, 100.0, 1e300])
def test_any_margin_is_cut_without_much_memory(margin: float) -> None:
    white, face = np.full((480, 640, 3), 255, np.uint8), face_at((0, 0, 0), (320, 240), 200)
    crop = align_face(white, face, margin=margin)
    assert crop.shape == (112, 112, 3)
    assert crop[0, 0].max() == 0
    if margin < 1e9:
        scale = np.linalg.norm(alignment(face, margin=margin)[:, 0])
        assert crop[..., 0].sum() / 255 == pytest.approx(640 * 480 * scale**2, rel=0.25)
    with pytest.raises(ValueError, match="no finite pose"):
        align_face(white, replace(face, pose=np.full(6, np.nan), rotation=np.full((3, 3), np.nan)))
    with pytest.raises(ValueError, match="size of a crop must be an integer from 1 to 32767"):
        align_face(white, face, 10**6)


def test_beyond_the_image_is_black(astronaut: np.ndarray) -> None:
    white = np.full((480, 640, 3), 255, np.uint8)
    crop = align_face(white, face_at((0, 0, 0), (0, 240)))
    assert crop[56, 2].max() == 0
    assert crop[56, 110].min() == 255


@pytest.mark.parametrize("size", [112, 2])
def test_a_panorama_is_cut_as_its_part_is(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (480, 33000, 3), dtype=np.uint8)
    face = detected = face_at((0, 20, 10), (320, 240))
    camera = face.intrinsics.copy()
    camera[0, 2] += 32000
    moved_face = replace(detected, box=face.box + np.array([32000, 0, 32000, 0]), intrinsics=camera)
    part = np.ascontiguousarray(pixels[:, 32000:])
    for cut in (align_face, upright_face):
        np.testing.assert_allclose(cut(pixels, moved_face, size), cut(part, face, size), atol=1)
    for far in (-1e5, 1e5):
        camera[0, 2] = far
        assert not align_face(pixels, replace(face, intrinsics=camera), size).any()


def test_crops_lie_as_insightface_cuts_them() -> None:
    """It counts from the middle of the first pixel, and has the image-left eye at (38.2946, 51.6963)."""
    face = face_at((0, 0, 0), (300, 250))
    matrix = alignment(face)
    picture = np.zeros((480, 640, 3), np.uint8)
    x, y = np.linalg.solve(matrix[:, :2], np.array([38.2946, 51.6963]) + 0.5 - matrix[:, 2])
    ys, xs = np.mgrid[:480, :640] + 0.5
    spot = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 4.0**2)) * 255
    picture[:] = spot.round().astype(np.uint8)[..., None]
    crop = align_face(picture, face)[..., 0].astype(float)
    rows, columns = np.mgrid[:112, :112]
    middle = [(crop * places).sum() / crop.sum() for places in (columns, rows)]
    np.testing.assert_allclose(middle, [38.2946, 51.6963], atol=0.1)
    np.testing.assert_allclose(TEMPLATE[0] - 0.5, [38.2946, 51.6963])


def test_the_astronaut_is_aligned(astronaut: np.ndarray) -> None:
    face = detect_poses(astronaut)[0]
    away = np.linalg.norm(moved(alignment(face), ASTRONAUT_POINTS) - TEMPLATE, axis=1)
    assert away.max() < 8
    assert away.mean() < 5


@pytest.mark.parametrize("model", ["edge-n", "edge-n-int8"])
def test_a_detector_finds_the_points_of_the_crop_at_the_template(model: str, astronaut: np.ndarray) -> None:
    detect = Peer(shared("peers/scrfd_500m_kps.onnx"), threads=1)
    for degrees in (0, -15):
        turn = cv2.getRotationMatrix2D((224, 115), degrees, 1)
        image = cv2.warpAffine(astronaut, turn, (512, 512))
        (face,) = detect_poses(image, model=model)
        (found,) = detect(image, 0.3)
        # Where InsightFace's alignment puts the detector's points: a broad smile is 5 pixels wider than the template.
        theirs = moved(similarity(found.landmarks, TEMPLATE), found.landmarks)
        ours = moved(alignment(face), found.landmarks)
        assert np.linalg.norm(ours - theirs, axis=1).max() < 4.5
        assert np.linalg.norm(ours - TEMPLATE, axis=1).mean() < 6
        # The same from the crop's own pixels.
        (again,) = detect(align_face(image, face, 448, 0.5), 0.5)
        from_crop = (again.landmarks / 448 * 2 - 0.5) * 112
        assert np.linalg.norm(from_crop - theirs, axis=1).max() < 6


@pytest.mark.parametrize("roll", [30, -75, 160])
@pytest.mark.parametrize("yaw", [0, 80])
def test_an_upright_face_is_the_same_whatever_its_roll(roll: float, yaw: float) -> None:
    def crop(degrees: float) -> np.ndarray:
        local = geometry.roll_matrix(np.array(degrees)) @ geometry.angles_to_matrix(np.array([5.0, yaw, 0]))
        face = face_at(tuple(geometry.matrix_to_angles(local)), (330, 250), 60)
        between_the_eyes, chin = face.landmarks68[[27, 8]]
        found = [dot_centers(upright_face(dots(p[None]), face, 128, 0.1))[0] for p in (between_the_eyes, chin)]
        return np.array(found)

    straight = crop(0)
    assert straight[1, 1] - straight[0, 1] > 50, "the eyes are above the chin"
    np.testing.assert_allclose(crop(roll), straight, atol=0.7)


def test_an_upright_face_fills_its_square() -> None:
    face = face_at((0, 0, 0), (320, 240), 60)
    corners = face.box.reshape(2, 2)
    height = corners[1, 1] - corners[0, 1]
    ends = np.array([[corners.mean(0)[0], corners[0, 1]], [corners.mean(0)[0], corners[1, 1]]])
    found = dot_centers(upright_face(dots(ends), face, round(2 * height), 0.5))
    np.testing.assert_allclose(found, [[height, height / 2], [height, 1.5 * height]], atol=1)


def test_small_faces_are_enlarged_smoothly() -> None:
    y, x = np.mgrid[:60, :80]
    waves = (127 + 60 * np.sin(x / 6) + 60 * np.cos(y / 5)).astype(np.uint8)[..., None].repeat(3, 2)
    face = face_at((0, 0, 0), (40, 30), 12)
    crop = upright_face(waves, face, 1200).astype(int)
    steps = np.abs(np.diff(crop[::7], axis=1))
    assert steps.max() <= 3, "no blocks"
    assert np.abs(crop[::8, ::8] - upright_face(waves, face, 150)).max() <= 5


def test_wrong_options_are_named(astronaut: np.ndarray) -> None:
    face = face_at((0, 0, 0))
    for cut in (align_face, upright_face):
        with pytest.raises(ValueError, match="size of a crop must be an integer from 1 to 32767, got 0"):
            cut(astronaut, face, 0)
        with pytest.raises(ValueError, match=r"from 1 to 32767, got 11\.5"):
            cut(astronaut, face, 11.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
            cut(astronaut, face, margin=-1)
        with pytest.raises(ValueError, match="must be uint8"):
            cut(astronaut.astype(float), face)


def test_faces_that_would_reach_around_the_camera_upright_are_cut_out_by_their_boxes() -> None:
    random, image, found = np.random.default_rng(0), np.zeros((480, 640, 3), np.uint8), 0
    for _ in range(1000):  # very near, with wide lenses; of some the upright ellipsoid has no outline
        focal = random.uniform(224, 1120)
        camera = np.array([[focal, 0, 320], [0, focal, 240], [0, 0, 1]])
        local = geometry.angles_to_matrix(random.uniform(-80, 80, 3))
        center, size = random.uniform(0, [640, 480]), random.uniform(100, 450)
        rotation, translation = geometry.local_to_camera(center, np.array(size), local, camera)
        box = project_face_box(rotation, translation, camera)
        if np.isfinite(box).all():
            pose = geometry.compose_pose(rotation, translation)
            face = Face(0.9, box, pose, rotation, local, geometry.matrix_to_angles(local), camera)
            assert upright_face(image, face, 16).shape == (16, 16, 3)
            found += 1
    assert found > 900
