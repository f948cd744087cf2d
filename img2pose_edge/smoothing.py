"""The One Euro filter (Casiez, Roussel and Vogel, CHI 2012) on SE(3), for many poses at once.

A **state** is a pose in seven numbers: the unit quaternion (w, x, y, z) of the camera rotation, then x/z, y/z and
log z of the translation. The **step** between two states is six numbers that one can subtract, scale and average,
wherever the face looks and however far away it is: the rotation vector from the first to the second rotation (the
logarithm of ``R_1^T R_2``, radians), the sideways motion in face units, and the difference of log z. Noise of a
detector is about 0.01 in each of the six, so that one setting of the filter serves them all.
"""

from __future__ import annotations

import numpy as np

# The matrix of the quaternion product p -> q p, row by row from q.
LEFT = np.array(
    [
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [0, -1, 0, 0, 1, 0, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0],
        [0, 0, -1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, -1, 0, 0],
        [0, 0, 0, -1, 0, 0, -1, 0, 0, 1, 0, 0, 1, 0, 0, 0.0],
    ]
)
_CONJUGATE = np.diag([1, -1, -1, -1.0])
# The rotation matrix, v -> q v q^-1, row by row from the sixteen products of q's numbers.
TURN = np.einsum("iab,jbc->ijac", LEFT.reshape(4, 4, 4), _CONJUGATE @ LEFT.reshape(4, 4, 4) @ _CONJUGATE)
TURN = TURN[:, :, 1:, 1:].reshape(16, 9)
# Which of a step's numbers make one speed: three of the rotation, two sideways, one of depth.
GROUPS = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1.0]])
ONES = np.ones((3, 1))
TINY = 1e-100  # keeps the direction of a turn by 0 finite


def length(vectors: np.ndarray) -> np.ndarray:
    """(N, 1) lengths of (N, 3) vectors: of few, a product takes half as long as numpy's sum."""
    return np.sqrt((vectors * vectors) @ ONES)


def quaternion_from_rotvec(rotvec: np.ndarray) -> np.ndarray:
    """(N, 3) rotation vectors in radians to (N, 4) unit quaternions."""
    half = rotvec * 0.5
    angle = length(half) + TINY
    return np.concatenate([np.cos(angle), half * (np.sin(angle) / angle)], axis=1)


def rotvec_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions to (N, 3) rotation vectors of length 0 to pi, radians; q and -q give the same."""
    w, v = quaternion[:, :1], quaternion[:, 1:]
    sine = length(v) + TINY
    return v * np.copysign(2 * np.arctan2(sine, np.abs(w)) / sine, w)


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions to (N, 3, 3) rotation matrices."""
    products = quaternion[:, :, None] * quaternion[:, None]
    return (products.reshape(-1, 16) @ TURN).reshape(-1, 3, 3)


def left_matrix(quaternion: np.ndarray) -> np.ndarray:
    """(N, 4, 4) matrices ``L`` with ``L @ p = q p``; orthogonal, so that ``p @ L = q^-1 p``."""
    return (quaternion @ LEFT).reshape(-1, 4, 4)


def local_rotation(rotation: np.ndarray, state: np.ndarray) -> np.ndarray:
    """(N, 3, 3) local rotations of (N, 7) states, whose camera rotations are ``rotation``: ``V^T R``.

    The transpose of ``geometry.ray_rotation`` turns the ray ``n``, parallel to (x/z, y/z, 1), to the optical axis
    ``e``: it is ``I - (n + e)(n + e)^T / (1 + n_z) + 2 e n^T``.
    """
    ray = np.concatenate([state[:, 4:6], np.ones((len(state), 1))], axis=1)
    ray /= length(ray)
    along = (ray[:, None] @ rotation)[:, 0]
    ray[:, 2] += 1
    local = rotation - ray[..., None] * ((along + rotation[:, 2]) / ray[:, 2:])[:, None]
    local[:, 2] += 2 * along
    return local


def pose_to_state(pose: np.ndarray) -> np.ndarray:
    """(N, 6) poses of positive depth to (N, 7) states."""
    depth = pose[:, 5:]
    return np.concatenate([quaternion_from_rotvec(pose[:, :3]), pose[:, 3:5] / depth, np.log(depth)], axis=1)


def state_translation(state: np.ndarray) -> np.ndarray:
    """(N, 3) translations of (N, 7) states, face units."""
    depth = np.exp(state[:, 6:])
    return np.concatenate([state[:, 4:6] * depth, depth], axis=1)


def step_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(N, 6) steps that lead from one (N, 7) state to another."""
    turn = (end[:, None, :4] @ left_matrix(start[:, :4]))[:, 0]
    return np.concatenate([rotvec_from_quaternion(turn), end[:, 4:] - start[:, 4:]], axis=1)


def take_step(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(N, 7) states after (N, 6) steps, the inverse of :func:`step_between`."""
    turned = left_matrix(start[:, :4]) @ quaternion_from_rotvec(step[:, :3])[..., None]
    return np.concatenate([turned[..., 0], start[:, 4:] + step[:, 3:]], axis=1)


def smoothing_factor(cutoff: np.ndarray | float, interval: np.ndarray) -> np.ndarray:
    """Share of the new value in a first-order low-pass filter (Casiez et al., equation 5 to 6).

    Args:
        cutoff: hertz.
        interval: seconds since the last value.
    """
    turn = 2 * np.pi * cutoff * interval
    return turn / (1 + turn)


class PoseFilter:
    """One Euro filters of M moving poses, rows of the same arrays.

    A low-pass filter whose cutoff grows with speed: steady at rest, prompt in motion. Rotation, sideways motion and
    depth each have their speed, the length of their part of the step per second; the cutoff is ``min_cutoff +
    speed_slope * speed``, so that a steadily moving face is followed at a distance below ``1 / (2 pi speed_slope)``.
    At first it takes the mean of what it has seen, if that is prompter.

    Attributes:
        born, seen: (M,) seconds, when each was first and last measured.
        measured: (M, 7) last measured states.
        smooth: (M, 7) filtered states, at time ``seen``.
        speed: (M, 6) filtered steps per second.
    """

    def __init__(self, min_cutoff: float, speed_slope: float, speed_cutoff: float) -> None:
        """
        Args:
            min_cutoff: hertz, of a face at rest.
            speed_slope: hertz per radian/s, face unit/s and 1/s (log depth).
            speed_cutoff: hertz, of the speeds themselves.
        """
        self.min_cutoff, self.speed_slope, self.speed_cutoff = min_cutoff, speed_slope, speed_cutoff
        self.born, self.seen = np.empty(0), np.empty(0)
        self.measured, self.smooth, self.speed = np.empty((0, 7)), np.empty((0, 7)), np.empty((0, 6))

    def at(self, time: float) -> np.ndarray:
        """(M, 7) states at ``time`` (seconds): the filtered ones, moved on at constant speed."""
        return take_step(self.smooth, self.speed * (time - self.seen)[:, None])

    def expected_boxes(self, boxes: np.ndarray, time: float) -> np.ndarray:
        """Where boxes should be at ``time`` (seconds): moved on from the last measurement, which does not lag.

        Args:
            boxes: (M, 4) x1, y1, x2, y2 when last measured, at depth 1.

        Returns:
            (M, 4), in size and place; what turning does to them is left out.
        """
        moved = self.speed[:, 3:] * (time - self.seen)[:, None]
        place = self.measured[:, None, 4:6]
        grown = (boxes.reshape(-1, 2, 2) - place) * np.exp(-moved[:, 2, None, None])
        return (grown + place + moved[:, None, :2]).reshape(-1, 4)

    def update(self, rows: np.ndarray | slice, states: np.ndarray, time: float) -> None:
        """Measurements of rows, (N,) indices or all: (N, 7) states at ``time``, later than the last (seconds)."""
        interval = (time - self.seen[rows])[:, None]
        both = np.concatenate([self.measured[rows], self.smooth[rows]])
        steps = step_between(both, np.concatenate([states, states]))
        # The speed is that between measurements, as in the authors' code: the paper's, between the measurement and
        # the last filtered value, counts the filter's own lag as motion, differently at each frame rate.
        moved, behind = steps[: len(states)], steps[len(states) :]
        speed = self.speed[rows]
        speed += smoothing_factor(self.speed_cutoff, interval) * (moved / interval - speed)
        lengths = np.sqrt((speed * speed) @ GROUPS)
        lengths[:, 1] *= np.exp(states[:, 6])  # sideways, x/z and y/z to face units
        cutoff = self.min_cutoff + self.speed_slope * lengths
        # The first value, which may be far off, weighs no more than those that follow.
        share = np.maximum(
            smoothing_factor(cutoff, interval), interval / (interval + (time - self.born[rows])[:, None])
        )
        self.smooth[rows] = take_step(both[len(states) :], behind * (share @ GROUPS.T))
        self.measured[rows], self.speed[rows], self.seen[rows] = states, speed, time

    def add(self, states: np.ndarray, time: float) -> None:
        """Append (N, 7) states first measured at ``time`` (seconds), at rest."""
        now = np.full(len(states), time)
        self.born, self.seen = np.concatenate([self.born, now]), np.concatenate([self.seen, now])
        self.measured = np.concatenate([self.measured, states])
        self.smooth = np.concatenate([self.smooth, states])
        self.speed = np.concatenate([self.speed, np.zeros((len(states), 6))])

    def keep(self, rows: np.ndarray) -> None:
        """Drop all rows but these: (M,) bool."""
        self.born, self.seen, self.measured, self.smooth, self.speed = (
            array[rows] for array in (self.born, self.seen, self.measured, self.smooth, self.speed)
        )
