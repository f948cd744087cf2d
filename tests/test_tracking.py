"""Identity and smoothing of faces in a video, on faces whose true poses are known."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from img2pose_edge.pose_references import project_face_box

from img2pose_edge import Face, PoseTracker, TrackedFace, geometry, smoothing
from img2pose_edge.detector import make_faces
from img2pose_edge.smoothing import (
    PoseFilter,
    matrix_from_quaternion,
    pose_to_state,
    quaternion_from_rotvec,
    rotations,
    rotvec_from_quaternion,
    state_to_pose,
    step_between,
    take_step,
)

FRAME = 1 / 30
CAMERA = geometry.default_intrinsics(640, 480)
STILL = np.array([[100.0, 120], [320, 110], [540, 130], [200, 360], [450, 350]])
ANGLES = np.array([[0.0, 0, 0], [15, 60, 5], [-20, -30, 175], [5, 0, 90], [-10, 80, -20]])


def see(center: np.ndarray, size: float | np.ndarray, angles: np.ndarray, score: float = 0.9) -> list[Face]:
    """Faces at (N, 2) pixels, pixels per face unit and (N, 3) degrees, as a detector gives them."""
    center, angles = np.atleast_2d(np.asarray(center, float)), np.atleast_2d(np.asarray(angles, float))
    scores, sizes = np.full(len(center), score), np.broadcast_to(np.asarray(size, float), len(center))
    local = geometry.angles_to_matrix(angles)
    return make_faces(scores, center, sizes, local, np.ones(2), CAMERA, nms_iou=1.0)


def see_noisy(
    rng: np.random.Generator, center: np.ndarray, size: float, angles: np.ndarray, pixels: float = 0.5
) -> list[Face]:
    """The same with a detector's noise: 1 degree RMS in all, 0.5 pixel on each axis, 1 % of size."""
    count = len(center)
    turned = geometry.angles_to_matrix(angles) @ geometry.rotvec_to_matrix(
        rng.normal(size=(count, 3)) * np.radians(1) / np.sqrt(3)
    )
    sizes = size * np.exp(rng.normal(size=count) * 0.01)
    moved = center + rng.normal(size=(count, 2)) * pixels
    return make_faces(np.full(count, 0.9), moved, sizes, turned, np.ones(2), CAMERA, nms_iou=1.0)


def ids(tracked: list[TrackedFace]) -> list[int]:
    return [face.id for face in tracked]


def one(faces: list[TrackedFace]) -> TrackedFace:
    assert len(faces) == 1
    return faces[0]


def seen_center(face: Face) -> np.ndarray:
    return geometry.camera_to_local(face.rotation, face.translation, face.intrinsics)[0]


def rms(values: list) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def assert_consistent(face: Face) -> None:
    """Every part of the face tells of the same pose."""
    rotation, translation = geometry.decompose_pose(face.pose)
    np.testing.assert_allclose(rotation, face.rotation, atol=1e-9)
    np.testing.assert_allclose(face.box, project_face_box(rotation, translation, face.intrinsics), atol=1e-6)
    local = geometry.camera_to_local(rotation, translation, face.intrinsics)[2]
    np.testing.assert_allclose(local, face.local_rotation, atol=1e-9)
    np.testing.assert_allclose(geometry.matrix_to_angles(local), face.angles, atol=1e-6)


# --- smoothing -----------------------------------------------------------------------------------


def jitter(intervals: np.ndarray) -> dict[str, tuple[float, float]]:
    """RMS errors on still faces, raw and smoothed, after two seconds: degrees, and pixels of centre and box."""
    rng, tracker, time = np.random.default_rng(0), PoseTracker(), 0.0
    truth = see(STILL, 60, ANGLES)
    errors: dict[str, tuple[list, list]] = {"degrees": ([], []), "center": ([], []), "box": ([], [])}
    for interval in intervals:
        time += interval
        tracked = tracker.update(see_noisy(rng, STILL, 60, ANGLES), time)
        assert ids(tracked) == [0, 1, 2, 3, 4]
        if time < 2:
            continue
        for result in tracked:
            true = truth[result.id]
            for which, face in enumerate((result.raw, result.face)):
                turned = np.degrees(geometry.geodesic_distance(face.local_rotation, true.local_rotation))
                errors["degrees"][which].append(turned)
                errors["center"][which].append(seen_center(face) - STILL[result.id])
                errors["box"][which].append(face.box - true.box)
    return {name: (rms(raw), rms(smooth)) for name, (raw, smooth) in errors.items()}


def test_still_faces_jitter_four_times_less() -> None:
    for name, (raw, smooth) in jitter(np.full(300, FRAME)).items():
        assert raw > 0.4, name
        assert smooth < raw / 4, name


def test_still_faces_are_steady_at_uneven_times() -> None:
    intervals = np.random.default_rng(1).choice([1 / 60, 1 / 30, 1 / 15], 300, p=[0.45, 0.35, 0.2])
    for name, (raw, smooth) in jitter(intervals).items():
        assert smooth < raw / 4, name


def smooth_rotvecs(rotvecs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(T, 3, N) rotation vectors of N faces at (T,) seconds, filtered as the tracker does by default."""
    filter_, smooth = PoseFilter(**PoseTracker().smoothing), []
    for k, (turned, time) in enumerate(zip(rotvecs, times.tolist(), strict=True)):
        states = np.concatenate([quaternion_from_rotvec(turned), np.zeros_like(turned)])
        if k == 0:
            filter_.add(states, time)
        else:
            filter_.update(slice(None), states, time)
        smooth.append(rotvec_from_quaternion(filter_.smooth[:4]))
    return np.array(smooth)


def noisy(degrees: float, frames: int) -> np.ndarray:
    """(T, 3, 100) rotation vectors of still faces, ``degrees`` RMS in all."""
    return np.random.default_rng(0).normal(size=(frames, 3, 100)) * np.radians(degrees) / np.sqrt(3)


@pytest.mark.parametrize(("degrees", "times_less"), [(0.3, 40), (1.0, 22)])
def test_noise_of_a_still_face_hardly_counts_as_speed(degrees: float, times_less: float) -> None:
    """From frame to frame; if nothing of the speed were taken off as noise, 27 and 12 times."""
    noise = noisy(degrees, 300)
    smooth = smooth_rotvecs(noise, np.arange(300) * FRAME)
    less = rms(np.diff(noise, axis=0)) / rms(np.diff(smooth, axis=0)[150:])
    assert times_less < less


@pytest.mark.parametrize("degrees", [4, 15])
@pytest.mark.parametrize(("rate", "hertz"), [(5, 1), (10, 2), (30, 2)])
def test_a_quick_nod_is_no_noise(rate: int, hertz: float, degrees: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of it is left as if nothing were taken for noise."""
    times = np.arange(8 * rate) / rate
    rotvecs = noisy(0.5, len(times))
    rotvecs[:, 0] += np.radians(degrees) * np.sin(2 * np.pi * hertz * times + 0.3)[:, None]
    left = rms(smooth_rotvecs(rotvecs, times)[4 * rate :, 0])
    monkeypatch.setattr(smoothing, "FEIGNED", np.zeros((3, 1)))
    assert left > 0.94 * rms(smooth_rotvecs(rotvecs, times)[4 * rate :, 0])


@pytest.mark.parametrize("rate", [2, 10])
def test_one_outlier_is_soon_forgotten(rate: float) -> None:
    times = np.arange(25) / rate
    rotvecs = np.zeros((25, 3, 1))
    rotvecs[20, 1] = np.radians(30)
    after = np.degrees(smooth_rotvecs(rotvecs, times)[21:, 1, 0])
    assert after[-1] < 2.5


@pytest.mark.parametrize("gap", [0.2, 0.5, 0.9])
def test_a_turn_is_followed_beyond_a_gap(gap: float) -> None:
    """60 degrees a second for half a second, on both sides of the gap."""
    times = np.concatenate([np.arange(-1, 0.5, FRAME), 0.5 + gap + np.arange(0, 0.5, FRAME)])
    yaw = np.radians(60) * np.maximum(times, 0)
    rotvecs = np.zeros((len(times), 3, 1))
    rotvecs[:, 1, 0] = yaw
    behind = np.degrees(yaw - smooth_rotvecs(rotvecs, times)[:, 1, 0])
    assert behind.max() < 5


@pytest.mark.parametrize("interval", [FRAME, 0.2, 0.8])
def test_a_sudden_turn_after_rest_is_no_noise(interval: float) -> None:
    """Few frames a second, or a gap: what moves far at once is followed at once."""
    rng, tracker, facing = np.random.default_rng(0), PoseTracker(), np.zeros((5, 3))
    for k in range(20):
        tracker.update(see_noisy(rng, STILL, 60, facing), k * interval)
    for tracked in tracker.update(see_noisy(rng, STILL, 60, facing + np.array([0, 30, 0])), 20 * interval):
        assert tracked.face.yaw > 20


def turn_lag(intervals: np.ndarray, noise: bool) -> float:
    """Mean seconds by which smoothed yaw is late on a turn of 90 degrees in the second second."""
    rng, tracker, time, late = np.random.default_rng(0), PoseTracker(), 0.0, []
    for interval in intervals:
        time += interval
        yaw = float(np.clip((time - 1) * 90, 0, 90)) - 45
        angles = np.tile([0, yaw, 0], (len(STILL), 1))
        faces = see_noisy(rng, STILL, 60, angles) if noise else see(STILL, 60, angles)
        tracked = tracker.update(faces, time)
        assert ids(tracked) == [0, 1, 2, 3, 4]
        if 1 < time <= 2:
            late.append((yaw - np.mean([t.face.yaw for t in tracked])) / 90)
    return float(np.mean(late))


@pytest.mark.parametrize("noise", [False, True])
def test_a_turn_of_90_degrees_a_second_lags_less_than_30_ms(noise: bool) -> None:
    lag = turn_lag(np.full(75, FRAME), noise)
    assert 0.001 < lag < 0.030  # a filter that does nothing is not what we test


def test_lag_does_not_depend_on_the_frame_rate() -> None:
    uneven = np.random.default_rng(2).uniform(0.5, 1.5, 150) / 60
    for intervals in (np.full(150, 1 / 60), np.full(38, 1 / 15), uneven):
        assert turn_lag(intervals, noise=False) == pytest.approx(turn_lag(np.full(75, FRAME), False), abs=0.010)


def test_near_and_far_faces_are_filtered_alike() -> None:
    """The same motion in face units, of one face 8 times as far as the other."""
    tracker = PoseTracker()
    for k in range(40):
        moved = np.array([0.02 * k, 0])
        centers = np.array([[100.0, 100] + moved * 80, [100.0, 400] + moved * 10])
        near, far = tracker.update(see(centers, np.array([80.0, 10]), np.zeros((2, 3))), k * FRAME)
    behind = [(seen_center(t.raw) - seen_center(t.face))[0] for t in (near, far)]
    assert behind[0] > 0.1
    assert behind[0] / 80 == pytest.approx(behind[1] / 10, rel=0.02)


def test_every_part_follows_from_the_smoothed_pose() -> None:
    rng, tracker = np.random.default_rng(3), PoseTracker()
    for k in range(20):
        centers = STILL + np.array([4.0 * k, 0])
        tracked = tracker.update(see_noisy(rng, centers, 40 + k, ANGLES), k * FRAME)
        for result in tracked:
            assert_consistent(result.face)
            assert result.face.score == result.raw.score
            assert result.age == pytest.approx(k * FRAME)
            assert not result.lost
    assert all(np.abs(result.face.pose - result.raw.pose).max() > 1e-3 for result in tracked)
    (predicted,) = tracker.update([], 20 * FRAME, predicted=True)[:1]
    assert_consistent(predicted.face)


def test_the_first_frame_is_given_as_it_is() -> None:
    faces = see(STILL, 60, ANGLES)
    for result, face in zip(PoseTracker().update(faces, 7.5), faces, strict=True):
        assert result.raw is face
        np.testing.assert_allclose(result.face.box, face.box)
        np.testing.assert_allclose(result.face.rotation, face.rotation, atol=1e-12)
        assert result.age == 0


def test_noise_about_a_half_turn_is_averaged() -> None:
    """The rotation vector of a face upside down jumps from pi to -pi, its Euler angles from 180 to -180."""
    noise = np.random.default_rng(4).normal(size=(150, 1, 3)) * np.radians(1)
    errors = {}
    for turn in (np.zeros(3), *np.pi * np.eye(3)):
        tracker, middle = PoseTracker(), geometry.rotvec_to_matrix(turn)
        signs, off = set(), []
        for k, rotation in enumerate(middle @ geometry.rotvec_to_matrix(noise)):
            face = make_faces(np.ones(1), np.array([[320.0, 240]]), np.array([60.0]), rotation, np.ones(2), CAMERA, 1)
            signs.add(float(np.sign(face[0].pose[:3] @ turn)))
            off.append(geometry.geodesic_distance(one(tracker.update(face, k * FRAME)).face.rotation, middle))
        assert signs == ({1.0, -1.0} if turn.any() else {0.0})
        errors[tuple(turn)] = np.degrees(off)
    upright, *turned = errors.values()
    np.testing.assert_allclose(turned, [upright] * 3, atol=1e-6)
    assert upright[30:].max() < 1.2


def test_turning_through_a_half_turn_goes_the_short_way() -> None:
    tracker = PoseTracker()
    for k in range(60):
        roll = 150 + 2.0 * k  # 60 degrees/s, past 180
        result = one(tracker.update(see([320, 240], 60, [0, 0, roll]), k * FRAME))
        behind = (roll - result.face.roll + 180) % 360 - 180
        assert -0.01 < behind < 6
        np.testing.assert_allclose(np.linalg.det(result.face.rotation), 1)


def test_a_flip_by_exactly_half_a_turn_is_followed() -> None:
    """The detector takes a chin for a forehead: no way is shorter, but the filter must take one."""
    front, back = np.array([[1, 0, 0, 0, 0, 0, 0.0]]).T, np.array([[0, 0, 0, 1, 0, 0, 0.0]]).T
    step = step_between(front, back)
    assert np.linalg.norm(step) == pytest.approx(2)
    np.testing.assert_allclose(
        matrix_from_quaternion(take_step(front, step)[:4])[0], np.diag([-1.0, -1, 1]), atol=1e-12
    )
    other_sign = -front * [[1], [1], [1], [1], [0], [0], [0]]
    np.testing.assert_allclose(step_between(front, other_sign), 0, atol=1e-12)


def test_steps_lead_where_they_should() -> None:
    rng = np.random.default_rng(5)
    rotvec, place = rng.normal(size=(2, 50, 3)), rng.normal(size=(2, 50, 3)) + np.array([0, 0, 8])
    start, end = (pose_to_state(np.hstack([r, p]).T) for r, p in zip(rotvec, place, strict=True))
    step = step_between(start, end)
    reached = take_step(start, step)
    np.testing.assert_allclose(reached[4:], end[4:])
    np.testing.assert_allclose(matrix_from_quaternion(reached[:4]), geometry.rotvec_to_matrix(rotvec[1]), atol=1e-12)
    np.testing.assert_allclose(take_step(start, 0 * step), start)
    # Twice the sine of half the angle, about the axis in the first face's own frame.
    turn = geometry.matrix_to_rotvec(
        np.swapaxes(geometry.rotvec_to_matrix(rotvec[0]), 1, 2) @ geometry.rotvec_to_matrix(rotvec[1])
    )
    angle = np.linalg.norm(turn, axis=1)[:, None]
    np.testing.assert_allclose(step[:3].T, turn / angle * 2 * np.sin(angle / 2), atol=1e-12)


def test_states_have_the_poses_rotations() -> None:
    rng = np.random.default_rng(6)
    pose = np.hstack([rng.uniform(-1.8, 1.8, (50, 3)), rng.normal(size=(50, 2)) * 5, rng.uniform(1, 30, (50, 1))])
    state = pose_to_state(pose.T)
    np.testing.assert_allclose(state_to_pose(state).T, pose, atol=1e-12)
    camera = geometry.default_intrinsics(640, 480)
    rotation, translation = geometry.decompose_pose(pose)
    whole, local = rotations(state)
    np.testing.assert_allclose(whole, rotation, atol=1e-12)
    np.testing.assert_allclose(local, geometry.camera_to_local(rotation, translation, camera)[2], atol=1e-12)


# --- identity ------------------------------------------------------------------------------------


def test_a_face_survives_ten_lost_frames_and_keeps_its_id() -> None:
    tracker = PoseTracker()

    def face(k: int) -> list[Face]:
        return see([100 + 6 * k, 240], 60, [0, -45 + 2 * k, 0])

    for k in range(20):
        one(tracker.update(face(k), k * FRAME))
    for k in range(20, 30):
        result = one(tracker.update([], k * FRAME, predicted=True))
        assert result.lost
        assert result.unseen == pytest.approx((k - 19) * FRAME)
        assert result.age == pytest.approx(k * FRAME)
        np.testing.assert_allclose(result.raw.pose, face(19)[0].pose)
        # It moves on: nearer to where the face is than to where it was seen.
        assert np.linalg.norm(seen_center(result.face) - [100 + 6 * k, 240]) < 0.35 * 60
        assert abs(result.face.yaw - (-45 + 2 * k)) < 12
    result = one(tracker.update(face(30), 30 * FRAME))
    assert result.id == 0
    assert not result.lost


@pytest.mark.parametrize(("rate", "lost"), [(11, 10), (15, 14), (24, 23)])
def test_ten_frames_and_more_may_be_lost(rate: int, lost: int) -> None:
    tracker = PoseTracker()
    face = see([320, 240], 60, [0, 10, 0])
    one(tracker.update(face, 0.0))
    one(tracker.update(face, 1 / rate))
    for k in range(2, 2 + lost):
        assert tracker.update([], k / rate) == []
    assert one(tracker.update(face, (2 + lost) / rate)).id == 0


def test_a_face_unseen_for_longer_than_patience_is_a_new_one() -> None:
    tracker = PoseTracker(patience=0.2)
    face = see([320, 240], 60, [0, 0, 0])
    assert one(tracker.update(face, 0.0)).id == 0
    assert one(tracker.update(face, 0.2)).id == 0
    assert tracker.update([], 0.3) == []
    assert tracker.update([], 0.41, predicted=True) == []
    result = one(tracker.update(face, 0.42))
    assert (result.id, result.age) == (1, 0)


@pytest.mark.parametrize("interval", [0.8, 1.0, 2.0])
def test_frames_further_apart_than_patience_keep_ids(interval: float) -> None:
    tracker, face = PoseTracker(), see([320, 240], 60, [0, 0, 0])
    assert [one(tracker.update(face, k * interval)).id for k in range(6)] == [0] * 6
    assert tracker.update([], 6 * interval) == []
    assert tracker.update([], 7 * interval, predicted=True) == [], "now it was unseen for longer"


@pytest.mark.parametrize("gap", [5.0, 60.0])
@pytest.mark.parametrize("speed", [0.0, 30.0])
def test_a_face_that_is_there_again_after_a_pause_keeps_its_id(gap: float, speed: float) -> None:
    """A stream that stalls, a computer that sleeps: nobody knows how a face went on, so it is looked for nearby."""
    for seed in range(20):
        rng, tracker = np.random.default_rng(seed), PoseTracker()
        for k in range(60):
            tracker.update(see_noisy(rng, np.array([[200 + speed * k / 30, 240]]), 60, np.zeros((1, 3))), k / 30)
        back = see_noisy(rng, np.array([[200 + speed * 2, 240]]), 60, np.zeros((1, 3)))
        assert one(tracker.update(back, 59 / 30 + gap)).id == 0


def test_ids_may_go_on_where_all_faces_are_others() -> None:
    tracker, face = PoseTracker(), see([320, 240], 60, [0, 0, 0])
    assert one(tracker.update(face, 5.0)).id == 0
    tracker.reset(ids_go_on=True)
    assert one(tracker.update(face, 0.0)).id == 1
    tracker.reset()
    assert one(tracker.update(face, 0.0)).id == 0


def test_a_new_person_gets_a_new_id() -> None:
    tracker = PoseTracker()
    first = see([150, 240], 60, [0, 0, 0])
    second = see([450, 240], 60, [0, 20, 0])
    assert ids(tracker.update(first, 0.0)) == [0]
    assert ids(tracker.update(second + first, FRAME)) == [0, 1]
    assert ids(tracker.update(second, 2 * FRAME)) == [1], "lost faces are not given unasked"
    third = see([300, 100], 60, [0, 0, 0])
    assert ids(tracker.update(third + second, 3 * FRAME, predicted=True)) == [0, 1, 2]


def test_many_faces_in_motion_never_change_ids() -> None:
    rng, tracker, phase = np.random.default_rng(6), PoseTracker(), np.arange(10)
    home = np.array([[70 + 125 * (i % 5), 130 + 210 * (i // 5)] for i in range(10)])
    who: dict[int, int] = {}
    for k in range(150):
        t = k * FRAME
        shake = 25 * np.stack([np.sin(5 * t + phase), np.cos(4 * t + phase)], axis=1)
        angles = 40 * np.stack([np.sin(3 * t + phase) / 2, np.sin(2 * t + phase), np.cos(t + phase) / 2], axis=1)
        centers = home + shake
        order = rng.permutation(10)
        present = order[rng.random(10) > 0.1]  # one in ten is missed
        tracked = tracker.update(see_noisy(rng, centers[present], 35, angles[present]), t)
        assert len(tracked) == len(present)
        for result in tracked:
            person = int(np.linalg.norm(centers - seen_center(result.raw), axis=1).argmin())
            assert who.setdefault(person, result.id) == result.id
    assert len(who) == 10


@pytest.mark.parametrize("gap", [60.0, 40.0, 25.0])
def test_faces_that_pass_near_each_other_do_not_swap(gap: float) -> None:
    """Two faces of 87 x 103 pixels pass at 300 pixels/s, one above the other by ``gap`` pixels."""
    rng, tracker = np.random.default_rng(7), PoseTracker()
    overlaps = 0
    for k in range(60):
        x = 10.0 * k
        centers = np.array([[20 + x, 240 - gap / 2], [620 - x, 240 + gap / 2]])
        angles = np.array([[0.0, 30, 0], [0, -30, 0]])
        faces = see_noisy(rng, centers, 60, angles)
        low, high = np.maximum(faces[0].box, faces[1].box)[:2], np.minimum(faces[0].box, faces[1].box)[2:]
        overlaps += bool((high > low).all())
        tracked = tracker.update(faces[::-1] if k % 2 else faces, k * FRAME)
        assert ids(tracked) == [0, 1]
        for result in tracked:
            expected = 30 if result.id == 0 else -30
            assert abs(result.raw.yaw - expected) < 10
    assert overlaps > 5


def test_unsure_faces_continue_tracks_but_begin_none() -> None:
    tracker = PoseTracker(sure_score=0.5)
    sure, unsure = see([320, 240], 60, [0, 0, 0]), see([322, 240], 60, [0, 2, 0], score=0.2)
    assert tracker.update(unsure, 0.0) == []
    assert ids(tracker.update(sure, 0.1)) == [0]
    result = one(tracker.update(unsure, 0.2))
    assert (result.id, result.lost, result.face.score) == (0, False, 0.2)
    elsewhere = see([100, 100], 60, [0, 0, 0], score=0.2)
    assert ids(tracker.update(unsure + elsewhere, 0.3)) == [0]
    # A sure face goes before an unsure one that resembles the track more.
    result = one(tracker.update(unsure + see([340, 240], 60, [0, 0, 0]), 0.4))
    assert (result.id, result.raw.score) == (0, 0.9)
    # A lost face comes back by a sure one only.
    assert tracker.update([], 0.5) == []
    assert tracker.update(unsure, 0.6) == []
    assert one(tracker.update(sure, 0.7)).id == 0


def test_the_pose_decides_between_equal_boxes() -> None:
    tracker = PoseTracker()
    left, right = see([320, 240], 60, [0, 50, 0]), see([320, 240], 60, [0, -50, 0])
    tracker.update(left + right, 0.0)
    for k in range(1, 5):
        tracked = tracker.update(right + left, k * FRAME)
        assert ids(tracked) == [0, 1]
        assert [round(result.raw.yaw) for result in tracked] == [50, -50]
        np.testing.assert_allclose([result.face.yaw for result in tracked], [50, -50], atol=1e-6)


def test_the_more_alike_pair_first_mixes_no_poses() -> None:
    """The second track resembles its face more than the first does: it is matched first."""
    tracker = PoseTracker()
    tracker.update(see([300, 240], 60, [0, 20, 0]) + see([330, 240], 60, [0, -20, 0]), 0.0)
    for k in range(1, 5):
        faces = see([330, 240], 60, [0, -20, 0]) + see([308, 240], 60, [0, 15, 0])
        tracked = tracker.update(faces, k * FRAME)
        assert ids(tracked) == [0, 1]
        assert [round(result.raw.yaw) for result in tracked] == [15, -20]
        assert 14 < tracked[0].face.yaw < 21
        assert tracked[1].face.yaw == pytest.approx(-20)


def test_unsure_faces_must_resemble_more() -> None:
    def follow(score: float) -> list[TrackedFace]:
        tracker = PoseTracker(sure_score=0.5)
        tracker.update(see([320, 240], 60, [0, 0, 0]), 0.0)
        return tracker.update(see([360, 240], 60, [0, 0, 0], score=score), FRAME)  # a third of the two boxes' area

    assert len(follow(0.6)) == 1
    assert not follow(0.4)


def test_at_first_the_mean_of_what_was_seen_is_taken() -> None:
    """With a filter that hardly moves: of a first value that is far off no more stays than of the others."""
    tracker = PoseTracker(min_cutoff=1e-3, speed_slope=0)
    yaws = [9.0, 0, 3, 0, 3]
    for k, yaw in enumerate(yaws, 1):
        face = one(tracker.update(see([320, 240], 60, [0, yaw, 0]), k * FRAME)).face
        assert face.yaw == pytest.approx(np.mean(yaws[:k]), abs=0.02)


def test_a_face_that_comes_nearer_is_expected_larger() -> None:
    filter_ = PoseFilter(0.1, 3.5, 0.7)
    near = pose_to_state(np.array([[0, 0, 0, 1, 0, 10.0]]).T)
    filter_.add(near, 0.0)
    filter_.speed[5] = -np.log(2)  # twice as near in a second
    box = np.array([[0.0, -0.1, 0.2, 0.1]]).T  # about (0.1, 0)
    np.testing.assert_allclose(filter_.expected_boxes(box, 1.0)[:, 0], [-0.1, -0.2, 0.3, 0.2])


def test_who_came_nearer_and_is_long_gone_disturbs_nobody() -> None:
    tracker = PoseTracker(patience=1e5)
    for k in range(10):
        tracker.update(see([320, 240], 40 * 1.2**k, [0, 0, 0]), k * FRAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for moment in (3000.0, 9000.0):
            tracker.predict(moment)
            tracker.update(see([100, 100], 60, [0, 0, 0]), moment)


def test_a_resized_picture_changes_nothing() -> None:
    tracker, half = PoseTracker(), np.array([0.5, 0.5])
    faces = see([200, 240], 60, [5, 20, 0])
    for k in range(10):
        before = one(tracker.update(faces, k * FRAME))
    small = geometry.transform_intrinsics(CAMERA, 0.5, np.zeros(2))
    local = geometry.angles_to_matrix(np.array([[5.0, 20, 0]]))
    faces = make_faces(np.ones(1), np.array([[200.0, 240]]), np.array([60.0]), local, 1 / half, small, 1.0)
    after = one(tracker.update(faces, 10 * FRAME))
    assert after.id == before.id
    np.testing.assert_allclose(after.face.pose, before.face.pose, atol=1e-9)
    np.testing.assert_allclose(after.face.box, before.face.box / 2, atol=1e-6)
    assert_consistent(after.face)


def test_reset_forgets_everything() -> None:
    tracker = PoseTracker()
    tracker.update(see(STILL, 60, ANGLES), 100.0)
    tracker.reset()
    result = one(tracker.update(see([320, 240], 60, [0, 0, 0]), 1.0))
    assert (result.id, result.age) == (0, 0)
    assert ids(tracker.update([], 1.1, predicted=True)) == [0]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1.0, 0.9, float("nan"), float("inf")])
def test_time_must_advance(time: float) -> None:
    tracker = PoseTracker()
    face = see([320, 240], 60, [0, 0, 0])
    tracker.update(face, 1.0)
    with pytest.raises(ValueError, match=r"later than the last frame's, 1\.0 s"):
        tracker.update(face, time)
    assert one(tracker.update(face, 1.1)).id == 0, "the error changed nothing"


def test_bad_faces_are_named() -> None:
    tracker = PoseTracker()
    good = see([[100, 100], [400, 300]], 60, np.zeros((2, 3)))
    tracker.update(good, 0.0)
    behind = replace(good[1], pose=good[1].pose * [1, 1, 1, 1, 1, -1])
    missing = replace(good[1], pose=np.full(6, np.nan))
    for bad in (behind, missing):
        with pytest.raises(ValueError, match=r"number 1 has no finite pose in front of the camera"):
            tracker.update([good[0], bad], 0.1)
    with pytest.raises(ValueError, match="number 1 has other intrinsics"):
        tracker.update([good[0], replace(good[1], intrinsics=2 * CAMERA)], 0.1)
    with pytest.raises(TypeError, match="number 1 is 'face'"):
        tracker.update([good[0], "face"], 0.1)  # type: ignore[list-item]
    tracked = tracker.update([good[0], replace(good[1], intrinsics=CAMERA.copy())], 0.1)
    assert ids(tracked) == [0, 1], "the errors changed nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"sure_score": 1.5},
        {"sure_score": float("nan")},
        {"patience": -1},
        {"patience": float("inf")},
        {"min_cutoff": 0},
        {"speed_slope": -0.1},
        {"speed_cutoff": float("nan")},
    ],
)
def test_bad_options_of_the_tracker_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PoseTracker(**options)


def test_a_prediction_around_the_camera_is_left_out() -> None:
    tracker = PoseTracker(patience=1)
    for k in range(21):  # to 1.3 face units from the camera, 17 % nearer in each frame
        one(tracker.update(see([320, 240], 860 * 1.2 ** (k - 20), [0, 0, 0]), k * 0.1))
    counts = [len(tracker.update([], 2 + 0.1 * k, predicted=True)) for k in range(1, 10)]
    assert counts[0] == 1
    assert counts[-1] == 0


def test_faces_are_predicted_between_frames() -> None:
    """Where a face in steady motion should be, without taking a frame; for as long as it would be waited for."""
    tracker = PoseTracker(patience=0.5)
    for frame in range(20):
        tracked = tracker.update(see([100.0 + 3 * frame, 200], 40, [0, 20, 0]), frame * FRAME)
    now = 19 * FRAME
    assert one(tracker.predict(now)).unseen == 0
    soon = one(tracker.predict(now + 2 * FRAME))
    assert (soon.id, soon.lost, soon.raw) == (tracked[0].id, True, tracked[0].raw)
    assert_consistent(soon.face)
    moved = seen_center(soon.face) - seen_center(tracked[0].face)
    np.testing.assert_allclose(moved, [6, 0], atol=0.5)
    np.testing.assert_allclose(one(tracker.predict(now + 2 * FRAME)).face.pose, soon.face.pose)
    assert tracker.predict(now + 0.5) != []
    assert tracker.predict(now + 0.51) == []
    for wrong in (now - FRAME, np.nan, np.inf):
        with pytest.raises(ValueError, match="must be finite and not before the last frame's"):
            tracker.predict(wrong)
    assert ids(tracker.update(see([160.0, 200], 40, [0, 20, 0]), now + FRAME)) == ids(tracked), "no time has gone by"


def test_no_faces() -> None:
    tracker = PoseTracker()
    assert tracker.update([], 0.0) == []
    assert tracker.update([], 0.1, predicted=True) == []
