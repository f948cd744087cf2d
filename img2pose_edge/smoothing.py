"""The One Euro filter (Casiez, Roussel and Vogel, CHI 2012) on SE(3), for many poses at once.

A **state** is a pose in seven numbers: the unit quaternion (w, x, y, z) of the camera rotation, then x/z, y/z and
log z of the translation. The **step** between two states is six numbers that one can subtract, scale and average,
wherever the face looks and however far away it is: twice the vector part of the quaternion of ``R_1^T R_2`` (its axis
times ``2 sin(angle / 2)``: for small turns the rotation vector, radians), the sideways motion in face units, and the
difference of log z. Noise of a detector is about 0.01 in each of the six, so that one setting of the filter serves
them all.

Arrays are numbers first, poses second: of few poses, what lies together takes half as long.
"""

from __future__ import annotations

import numpy as np

# The quaternion products q p, and q^-1 p, from the sixteen products of q's numbers with p's.
_LEFT = np.array(
    [
        [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [0, -1, 0, 0, 1, 0, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0],
        [0, 0, -1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, -1, 0, 0],
        [0, 0, 0, -1, 0, 0, -1, 0, 0, 1, 0, 0, 1, 0, 0, 0.0],
    ]
).reshape(4, 4, 4)
_CONJUGATE = np.diag([1, -1, -1, -1.0])
AFTER = np.ascontiguousarray(_LEFT.transpose(1, 0, 2)).reshape(4, 16)
BACK = np.ascontiguousarray(_LEFT.transpose(2, 0, 1)).reshape(4, 16)
# The rotation matrix, v -> q v q^-1, from the sixteen products of q's numbers.
TURN = np.einsum("iab,jbc->acij", _LEFT, _CONJUGATE @ _LEFT @ _CONJUGATE)[1:, 1:].reshape(9, 16)
# V^-1 q from the products of w, y and -x of V's quaternion, times the square root of 2, with q's numbers.
FROM_RAY = np.concatenate([BACK[:, :4], BACK[:, 8:12], -BACK[:, 4:8]], axis=1) / np.sqrt(2)
# Which of a step's numbers make one speed: three of the rotation, two sideways, one of depth.
GROUPS = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1.0]])
SHARED = np.ascontiguousarray(GROUPS.T)
AGAINST = -GROUPS
ONES = np.ones(3)
TINY = 1e-100  # keeps the direction of a turn by 0 finite
FEIGNED = 2 * np.array([[2.5], [3.5], [5.0]])
"""Taken off the squared speeds of rotation, sideways motion and depth, in variances of the noise over
``(T + dt) (2 T + dt)``: the 2 that noise feigns on average, 2.5 to 5 times, as few numbers' squares scatter more."""
NOISE_TIME = 0.5
"""Seconds, time constant of the noise."""
MOST_NOISE = 0.005
"""What one measurement tells of the noise at most, as an outlier, there and back, is none: 4 degrees, squared."""


def length(vectors: np.ndarray) -> np.ndarray:
    """(N,) lengths of (3, N) vectors: of few, a product takes half as long as numpy's sum."""
    return np.sqrt(ONES.dot(vectors * vectors))


def quaternion_from_rotvec(rotvec: np.ndarray) -> np.ndarray:
    """(3, N) rotation vectors in radians to (4, N) unit quaternions."""
    half = rotvec * 0.5
    angle = length(half) + TINY
    return np.concatenate([np.cos(angle)[None], half * (np.sin(angle) / angle)])


def rotvec_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(4, N) unit quaternions to (3, N) rotation vectors of length 0 to pi, radians; q and -q give the same."""
    w, v = quaternion[0], quaternion[1:]
    sine = length(v) + TINY
    return v * np.copysign(2 * np.arctan2(sine, np.abs(w)) / sine, w)


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(K L, N) products of each of (K, N) numbers with each of (L, N)."""
    return (a[:, None] * b).reshape(len(a) * len(b), -1)


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(4, N) unit quaternions to (N, 3, 3) rotation matrices."""
    return np.ascontiguousarray(TURN.dot(products(quaternion, quaternion)).T).reshape(-1, 3, 3)


def rotations(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3, 3) camera and local rotations of (7, N) states.

    ``V`` of ``geometry.ray_rotation`` turns the optical axis to the ray (x/z, y/z, 1): its quaternion is the half-way
    between the two, (L + 1, -y/z, x/z, 0) with ``L`` the ray's length, divided by its own.
    """
    quaternion, across = state[:4], state[4:6]
    ray = np.sqrt(ONES[:2].dot(across * across) + 1)
    more = ray + 1
    turn = np.concatenate([more[None], across]) / np.sqrt(ray * more)
    local = FROM_RAY.dot(products(turn, quaternion))
    matrices = matrix_from_quaternion(np.concatenate([quaternion, local], axis=1))
    count = state.shape[1]
    return matrices[:count], matrices[count:]


def pose_to_state(pose: np.ndarray) -> np.ndarray:
    """(6, N) poses of positive depth to (7, N) states."""
    depth = pose[5:]
    return np.concatenate([quaternion_from_rotvec(pose[:3]), pose[3:5] / depth, np.log(depth)])


def state_to_pose(state: np.ndarray) -> np.ndarray:
    """(7, N) states to (6, N) poses."""
    depth = np.exp(state[6:])
    return np.concatenate([rotvec_from_quaternion(state[:4]), state[4:6] * depth, depth])


def step_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(6, N) steps that lead from one (7, N) state to another."""
    turn = BACK.dot(products(start[:4], end[:4]))
    return np.concatenate([turn[1:] * np.copysign(2, turn[0]), end[4:] - start[4:]])


def take_step(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(7, N) states after (6, N) steps, the inverse of :func:`step_between`."""
    sine = step[:3] * 0.5
    cosine = np.sqrt(np.abs(1 - ONES.dot(sine * sine)))
    return _move(start, np.concatenate([cosine[None], sine]), step[3:])


def _move(start: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(7, N) states turned by (4, N) quaternions and moved by (3, N)."""
    return np.concatenate([AFTER.dot(products(start[:4], turn)), start[4:] + shift])


class PoseFilter:
    """One Euro filters of M moving poses, columns of the same arrays.

    A low-pass filter whose cutoff grows with speed: steady at rest, prompt in motion. Rotation, sideways motion and
    depth each have their speed, the length of their part of the step per second; the cutoff is ``min_cutoff +
    speed_slope * speed``, so that a steadily moving face is followed at a distance of about ``1 / (2 pi speed_slope)``.
    At first it takes the mean of what it has seen, if that is prompter.

    Noise feigns speed, and more of it of a small or blurred face. What noise moves it moves back: of white noise of
    variance ``s²`` one step between measurements times the next is ``-s²`` on average, whereas steps of a motion go the
    same way; and the square of the filtered speed is ``2 s² / ((T + dt) (2 T + dt))``, where ``T`` is the time constant
    of its filter. A multiple of that, :data:`FEIGNED`, is taken off it (the original filter takes nothing off).

    Attributes:
        born, seen: (M,) seconds, when each was first and last measured.
        measured: (7, M) last measured states.
        smooth: (7, M) filtered states, at time ``seen``.
        speed: (6, M) filtered steps per second.
        moved: (6, M) last steps between measurements.
        noise: (3, M) variances of the noise, of rotation, sideways motion and depth.
    """

    def __init__(self, min_cutoff: float, speed_slope: float, speed_cutoff: float) -> None:
        """
        Args:
            min_cutoff: hertz, of a face at rest.
            speed_slope: hertz per radian/s, face unit/s and 1/s (log depth).
            speed_cutoff: hertz, of the speeds themselves.
        """
        # Of a cutoff f, the low-pass filter's rate is 2 pi f and its time constant 1 / (2 pi f).
        self._rest_rate, self._rate_slope = 2 * np.pi * min_cutoff, 2 * np.pi * speed_slope
        self._speed_time = 1 / (2 * np.pi * speed_cutoff)
        self.born, self.seen = np.empty(0), np.empty(0)
        self.measured, self.smooth, self.speed = np.empty((7, 0)), np.empty((7, 0)), np.empty((6, 0))
        self.moved, self.noise = np.empty((6, 0)), np.empty((3, 0))

    def at(self, time: float) -> np.ndarray:
        """(7, M) states at ``time`` (seconds): the filtered ones, moved on at constant speed."""
        moved = self.speed * (time - self.seen)
        return _move(self.smooth, quaternion_from_rotvec(moved[:3]), moved[3:])

    def expected_boxes(self, boxes: np.ndarray, time: float) -> np.ndarray:
        """Where boxes should be at ``time`` (seconds): moved on from the last measurement, which does not lag.

        Args:
            boxes: (4, M) x1, y1, x2, y2 when last measured, at depth 1.

        Returns:
            (4, M), in size and place; what turning does to them is left out.
        """
        moved = self.speed[3:] * (time - self.seen)
        place = self.measured[4:6]
        grown = (boxes.reshape(2, 2, -1) - place) * np.exp(-moved[2])
        return (grown + (place + moved[:2])).reshape(4, -1)

    def update(self, which: np.ndarray | slice, states: np.ndarray, time: float) -> None:
        """Measurements of ``which``, (N,) indices or all: (7, N) states at ``time``, later than the last (seconds)."""
        interval = time - self.seen[which]
        smooth, count = self.smooth[:, which], len(interval)
        known = np.concatenate([self.measured[:, which], smooth], axis=1)
        steps = step_between(known, np.concatenate([states, states], axis=1))
        # The speed is that between measurements, as in the authors' code: the paper's, between the measurement and
        # the last filtered value, counts the filter's own lag as motion, differently at each frame rate.
        moved, behind = steps[:, :count], steps[:, count:]
        # A low-pass filter of time constant T takes dt / (dt + T) of what is new (equation 6).
        speed, slow = self.speed[:, which], interval + self._speed_time
        speed = speed + (moved - speed * interval) / slow
        # The noise up to the last measurement: what is new in this one may be a motion that begins.
        noise = self.noise[:, which]
        feigned = noise * (FEIGNED / (slow * (slow + self._speed_time)))
        lengths = np.sqrt(np.maximum(GROUPS.dot(speed * speed) - feigned, 0))
        back = np.minimum(AGAINST.dot(self.moved[:, which] * moved), MOST_NOISE)
        self.noise[:, which] = np.maximum(noise + (back - noise) * (interval / (interval + NOISE_TIME)), 0)
        lengths[1] *= np.exp(states[6])  # sideways, x/z and y/z to face units
        # The first value, which may be far off, weighs no more than those that follow.
        memory = np.minimum(1 / (self._rest_rate + self._rate_slope * lengths), time - self.born[which])
        share = interval / (interval + memory)
        self.smooth[:, which] = take_step(smooth, behind * SHARED.dot(share))
        self.measured[:, which], self.moved[:, which] = states, moved
        self.speed[:, which], self.seen[which] = speed, time

    def add(self, states: np.ndarray, time: float) -> None:
        """Append (7, N) states first measured at ``time`` (seconds), at rest."""
        count = states.shape[1]
        now = np.full(count, time)
        self.born, self.seen = np.concatenate([self.born, now]), np.concatenate([self.seen, now])
        self.measured = np.concatenate([self.measured, states], axis=1)
        self.smooth = np.concatenate([self.smooth, states], axis=1)
        self.speed = np.concatenate([self.speed, np.zeros((6, count))], axis=1)
        self.moved = np.concatenate([self.moved, np.zeros((6, count))], axis=1)
        self.noise = np.concatenate([self.noise, np.zeros((3, count))], axis=1)

    def keep(self, which: np.ndarray) -> None:
        """Drop all but these: (M,) bool."""
        self.born, self.seen = self.born[which], self.seen[which]
        self.measured, self.smooth = self.measured[:, which], self.smooth[:, which]
        self.speed, self.moved, self.noise = (array[:, which] for array in (self.speed, self.moved, self.noise))
