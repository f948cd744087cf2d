"""Pose and camera conventions, written down once; every function works on numpy arrays and torch tensors.

**Pixel frame**: x right, y down, origin at the top-left corner of the top-left pixel.

**Camera frame**: x right, y down, z forward. A camera is its 3x3 matrix ``K``; unless the caller has a
calibrated one, :func:`default_intrinsics` gives img2pose's: ``f = width + height``, principal point in
the middle (Albiero et al., "img2pose", CVPR 2021, section 3).

**Pose**: ``(rx, ry, rz, tx, ty, tz)``, a rotation vector (radians) and a translation in face units,
``X_camera = R @ X_face + t``. One face unit is :data:`FACE_UNIT_MM` millimetres on an average adult.

**Face frame**: that of 300W-LP / AFLW2000-3D. At ``R = I`` the face looks into the camera, its frame
parallel to the camera's. ``(pitch, yaw, roll)`` in degrees: pitch > 0 looks up, yaw < 0 faces
image-right, and ``R = Rx(-pitch) @ Ry(yaw) @ Rz(roll)``.

**Local and camera rotation**: what a crop around a face shows is the *local* rotation, that of a camera
turned to look straight at the face. In the camera frame ``R = V @ R_local`` where ``V`` is the smallest
rotation from the optical axis to the ray through the face's origin (:func:`ray_rotation`). Networks
predict local rotations, data sets labelled on crops hold them; image poses hold camera rotations.

**Local pose**: ``(center, size, R_local)``: the pixel of the face's origin, its apparent size
``f / tz`` in pixels per face unit, and the local rotation. It does not depend on the camera, so that a
crop, shift or resize of the image changes only ``center`` and ``size``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

TINY = float(np.finfo(np.float32).tiny)

Array = Any  # np.ndarray or torch.Tensor; a function returns the kind it was given

FACE_UNIT_MM = 107.0
"""Millimetres in one face unit (scale of MediaPipe's canonical adult face)."""


def namespace(array: Array) -> Any:
    """numpy or torch, whichever ``array`` belongs to (torch is never imported from here).

    Raises:
        TypeError: if it is of neither.
    """
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    if not hasattr(array, "new_tensor"):
        raise TypeError(f"a numpy array or torch tensor is wanted, got {type(array).__name__}: {array!r}")
    return sys.modules["torch"]


def like(values: np.ndarray, example: Array) -> Array:
    """``values`` as an array of the kind, dtype (of whole numbers: as it is) and device of ``example``."""
    if namespace(example) is np:
        return values.astype(example.dtype, copy=False) if example.dtype.kind == "f" else values
    return example.new_tensor(values.tolist())


def _eye_like(matrix: Array) -> Array:
    """3x3 identity of the kind, dtype and device of ``matrix``."""
    xp = namespace(matrix)
    eye = xp.eye(3, dtype=matrix.dtype)
    return eye if xp is np else eye.to(matrix.device)


def _transpose(matrix: Array) -> Array:
    return matrix.swapaxes(-1, -2)


def _stack(parts: list[Array]) -> Array:
    """Arrays of one shape along a new last axis. Of few numbers, numpy's own takes three times as long."""
    xp = namespace(parts[0])
    if xp is not np:
        return xp.stack(parts, axis=-1)
    stacked = np.array(parts)
    return stacked.T if stacked.ndim <= 2 else np.moveaxis(stacked, 0, -1)


def _skew(v: Array) -> Array:
    """(..., 3) vectors to their (..., 3, 3) cross-product matrices."""
    xp = namespace(v)
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    o = xp.zeros_like(x)
    return _stack([o, -z, y, z, o, -x, -y, x, o]).reshape((*v.shape[:-1], 3, 3))


def _dot(a: Array, b: Array) -> Array:
    """(...,) inner products of (..., 3) vectors: for few numbers much faster than a sum over the last axis."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


# --- rotations -----------------------------------------------------------------------------------


def rotvec_to_matrix(rotvec: Array) -> Array:
    """Rotation vectors to matrices (Rodrigues' formula).

    Args:
        rotvec: (..., 3) radians.

    Returns:
        (..., 3, 3). Gradients are finite everywhere, at zero rotation too.
    """
    xp = namespace(rotvec)
    square = (rotvec * rotvec).sum(-1)
    small = square < 1e-8
    # The branch not taken must stay finite as well: its gradient is multiplied by zero, not skipped.
    safe = xp.where(small, xp.ones_like(square), square)
    angle = xp.sqrt(safe)
    a = xp.where(small, 1 - square / 6, xp.sin(angle) / angle)[..., None, None]
    b = xp.where(small, 0.5 - square / 24, (1 - xp.cos(angle)) / safe)[..., None, None]
    k = _skew(rotvec)
    return _eye_like(rotvec) + a * k + b * (k @ k)


def matrix_to_rotvec(matrix: Array) -> Array:
    """Rotation matrices to rotation vectors of length 0 to pi, through the unit quaternion.

    Args:
        matrix: (..., 3, 3) rotation matrices.

    Returns:
        (..., 3) radians. Gradients are finite everywhere, at zero rotation and near pi too.
    """
    xp = namespace(matrix)
    m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    # 4 q q^T of the quaternion (w, x, y, z) is linear in R; its row of largest diagonal is
    # proportional to q and never close to zero (Shepperd 1978).
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    ww = 1 + m[0][0] + m[1][1] + m[2][2]
    xx = 1 + m[0][0] - m[1][1] - m[2][2]
    yy = 1 - m[0][0] + m[1][1] - m[2][2]
    zz = 1 - m[0][0] - m[1][1] + m[2][2]
    outer = _stack([ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz])
    outer = outer.reshape((*matrix.shape[:-2], 4, 4))
    diagonal = _stack([ww, xx, yy, zz])
    best = xp.argmax(diagonal, -1)
    steps = xp.arange(4) if xp is np else xp.arange(4, device=matrix.device)
    chosen = (best[..., None] == steps)[..., None]
    row = xp.where(chosen, outer, xp.zeros_like(outer)).sum(-2)
    quaternion = row / xp.sqrt((row * row).sum(-1))[..., None]
    w, v = quaternion[..., 0], quaternion[..., 1:]
    v = xp.where((w < 0)[..., None], -v, v)
    w = xp.abs(w)
    square = (v * v).sum(-1)
    small = square < 1e-10
    norm = xp.sqrt(xp.where(small, xp.ones_like(square), square))
    factor = xp.where(small, 2 / xp.where(small, w, xp.ones_like(w)), 2 * xp.arctan2(norm, w) / norm)
    return v * factor[..., None]


_BELOW, _ABOVE = np.array([7, 2, 3]), np.array([5, 6, 1])
"""Where the numbers of (x, y, z) of ``R - R^T`` lie among nine."""
_NEAR_HALF_TURN = 2 * float(np.cos(np.radians(160)))


def _rotvec(rotation: Array) -> Array:
    """What :func:`matrix_to_rotvec` gives of exact rotations; of numpy's in a third of its time.

    ``R - R^T`` is the cross product by the axis times twice the sine, and the trace less 1 twice the cosine. Near half
    turns, from 160 degrees on, the axis is not exact that way.
    """
    if namespace(rotation) is np:
        flat = rotation.reshape((*rotation.shape[:-2], 9))
        axis = flat.take(_BELOW, axis=-1) - flat.take(_ABOVE, axis=-1)
        cosine = flat[..., 0] + flat[..., 4] + flat[..., 8] - 1
        if (cosine > _NEAR_HALF_TURN).all():
            sine = np.sqrt(_dot(axis, axis)) + TINY
            return axis * (np.arctan2(sine, cosine) / sine)[..., None]
    return matrix_to_rotvec(rotation)


def sixd_to_matrix(sixd: Array) -> Array:
    """6D representation to rotation matrices by Gram-Schmidt (Zhou et al., CVPR 2019, equation 15).

    Args:
        sixd: (..., 6), two 3-vectors: after orthonormalization the first two columns of the matrix.

    Returns:
        (..., 3, 3) rotation matrices. Near-zero or parallel vectors stay finite.
    """
    xp = namespace(sixd)
    a, b = sixd[..., :3], sixd[..., 3:]
    x = a / xp.sqrt(_dot(a, a) + 1e-12)[..., None]
    b = b - _dot(x, b)[..., None] * x
    y = b / xp.sqrt(_dot(b, b) + 1e-12)[..., None]
    (x0, x1, x2), (y0, y1, y2) = ([v[..., i] for i in range(3)] for v in (x, y))
    flat = [x0, y0, x1 * y2 - x2 * y1, x1, y1, x2 * y0 - x0 * y2, x2, y2, x0 * y1 - x1 * y0]
    return _stack(flat).reshape((*sixd.shape[:-1], 3, 3))


def matrix_to_sixd(matrix: Array) -> Array:
    """(..., 3, 3) rotation matrices to (..., 6): their first two columns, one after the other."""
    return namespace(matrix).concatenate([matrix[..., :, 0], matrix[..., :, 1]], axis=-1)


def angles_to_matrix(angles: Array) -> Array:
    """300W-LP angles to rotation matrices.

    Args:
        angles: (..., 3) pitch, yaw, roll in degrees.

    Returns:
        (..., 3, 3) ``Rx(-pitch) @ Ry(yaw) @ Rz(roll)``.
    """
    xp = namespace(angles)
    radians = angles * (np.pi / 180)
    (cp, cy, cr), (sp, sy, sr) = ([f(radians)[..., i] for i in range(3)] for f in (xp.cos, xp.sin))
    flat = [
        cy * cr, -cy * sr, sy,
        cp * sr - sp * sy * cr, cp * cr + sp * sy * sr, sp * cy,
        -sp * sr - cp * sy * cr, -sp * cr + cp * sy * sr, cp * cy,
    ]  # fmt: skip
    return _stack(flat).reshape((*angles.shape[:-1], 3, 3))


def matrix_to_angles(matrix: Array) -> Array:
    """Rotation matrices to 300W-LP angles: ``(a0, -a1, -a2)`` with ``a = euler_xyz(R^T)``.

    Args:
        matrix: (..., 3, 3).

    Returns:
        (..., 3) pitch, yaw, roll in degrees; yaw in [-90, 90], pitch and roll in [-180, 180].
    """
    xp = namespace(matrix)
    r00, r01, r02 = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2]
    yaw = xp.arctan2(r02, xp.sqrt(r00 * r00 + r01 * r01 + 1e-12))
    pitch = xp.arctan2(matrix[..., 1, 2], matrix[..., 2, 2])
    roll = xp.arctan2(-r01, r00)
    return _stack([pitch, yaw, roll]) * (180 / np.pi)


def angles_to_pan(angles: Array) -> Array:
    """Where a face looks about the vertical of the camera that the angles refer to.

    Yaw is the angle between that direction and the plane in which pitch turns; the two are the same where pitch is 0,
    and at a pitch of 45 degrees a pan of 60 is a yaw of 51.

    Args:
        angles: (..., 3) pitch, yaw, roll in degrees.

    Returns:
        (...,) degrees, of yaw's sign; in [-90, 90] unless the pitch is beyond 90.
    """
    xp = namespace(angles)
    radians = angles * (np.pi / 180)
    pitch, yaw = radians[..., 0], radians[..., 1]
    return xp.arctan2(xp.sin(yaw), xp.cos(yaw) * xp.cos(pitch)) * (180 / np.pi)


def geodesic_distance(a: Array, b: Array) -> Array:
    """Angle in radians, (...,), of the rotation between (..., 3, 3) matrices ``a`` and ``b``.

    ``2 atan2(|A - B|_F, sqrt(8 - |A - B|_F^2)) `` rather than ``acos(trace)``: accurate, and of finite
    gradient, for equal matrices too.
    """
    xp = namespace(a)
    square = ((a - b) ** 2).sum((-1, -2))
    return 2 * xp.arctan2(xp.sqrt(square + 1e-12), xp.sqrt(xp.where(square < 8, 8 - square, 1e-12 + 0 * square)))


# --- cameras -------------------------------------------------------------------------------------


def default_intrinsics(width: float, height: float) -> np.ndarray:
    """img2pose's camera for an image of this size: (3, 3) float64, ``f = width + height`` pixels."""
    f = float(width + height)
    return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])


def check_intrinsics(intrinsics: Any) -> np.ndarray:
    """(3, 3) float64 camera matrix, or ``ValueError`` if it is none."""
    try:
        camera = np.array(intrinsics, float)  # a copy, read-only: all faces share it
        camera.setflags(write=False)
    except (ValueError, TypeError):
        camera = np.empty(0)
    known = camera.shape == (3, 3) and np.isfinite(camera).all() and (camera[[0, 1], [0, 1]] > 0).all()
    if not known or camera[1, 0] != 0 or not np.allclose(camera[2], [0, 0, 1]):
        raise ValueError(
            "intrinsics must be a 3x3 camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive focal "
            f"lengths, got {intrinsics!r}"
        )
    return camera


def box_intrinsics(boxes: Array) -> Array:
    """Cameras of crops: focal length ``width + height`` of the box, principal point in its middle.

    Args:
        boxes: (..., 4) x1, y1, x2, y2; the crop's own pixels start at its top-left corner.

    Returns:
        (..., 3, 3).
    """
    xp = namespace(boxes)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    focal, zero, one = width + height, xp.zeros_like(width), xp.ones_like(width)
    flat = _stack([focal, zero, width / 2, zero, focal, height / 2, zero, zero, one])
    return flat.reshape((*boxes.shape[:-1], 3, 3))


def transform_intrinsics(intrinsics: Array, scale: Array, offset: Array) -> Array:
    """Camera of an image whose pixels moved by ``x' = scale * x + offset`` (a crop, a resize or both).

    Args:
        intrinsics: (..., 3, 3).
        scale: (...,) new pixels per old pixel.
        offset: (..., 2) new pixels.
    """
    xp = namespace(intrinsics)
    intrinsics = intrinsics * 1.0  # whole numbers could not be scaled
    s = (xp.ones_like(intrinsics[..., 0, 0]) * scale)[..., None]
    focal = intrinsics[..., :2, :2] * s[..., None]
    point = intrinsics[..., :2, 2] * s + offset
    top = xp.concatenate([focal, point[..., None]], axis=-1)
    bottom = intrinsics[..., 2:, :] + 0 * top[..., :1, :]
    return xp.concatenate([top, bottom], axis=-2)


def pixel_rays(center: Array, intrinsics: Array) -> Array:
    """(..., 3) points at depth 1 that ``intrinsics`` images at ``center`` (..., 2)."""
    xp = namespace(center)
    y = (center[..., 1] - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1]
    x = (center[..., 0] - intrinsics[..., 0, 2] - intrinsics[..., 0, 1] * y) / intrinsics[..., 0, 0]
    return _stack([x, y, xp.ones_like(x)])


def _focal(intrinsics: Array) -> Array:
    return namespace(intrinsics).sqrt(intrinsics[..., 0, 0] * intrinsics[..., 1, 1])


def ray_rotation(center: Array, intrinsics: Array) -> Array:
    """Smallest rotation ``V`` from the optical axis to the ray through a pixel.

    Args:
        center: (..., 2) pixels.
        intrinsics: (3, 3) or (..., 3, 3).

    Returns:
        (..., 3, 3); ``V @ R_local`` is the camera rotation, ``V.T @ R`` the local one.
    """
    return _turn_to(pixel_rays(center, intrinsics))


def _turn_to(ray: Array) -> Array:
    """(..., 3, 3) smallest rotations from the optical axis to (..., 3) rays at depth 1: ``I + [v] + [v]^2 / (1 + c)``
    with ``v`` the cross product of axis and unit ray and ``c`` the cosine between them, multiplied out."""
    xp = namespace(ray)
    c = 1 / xp.sqrt(_dot(ray, ray))
    x, y = ray[..., 0] * c, ray[..., 1] * c
    share = 1 / (1 + c)
    xy = -x * y * share
    flat = [1 - x * x * share, xy, x, xy, 1 - y * y * share, y, -x, -y, c]
    return _stack(flat).reshape((*ray.shape[:-1], 3, 3))


def local_to_camera(center: Array, size: Array, local_rotation: Array, intrinsics: Array) -> tuple[Array, Array]:
    """Local pose to camera rotation and translation.

    Args:
        center: (..., 2) pixel of the face's origin.
        size: (...,) pixels per face unit.
        local_rotation: (..., 3, 3).
        intrinsics: (3, 3) or (..., 3, 3).

    Returns:
        (..., 3, 3) camera rotation and (..., 3) translation in face units.
    """
    ray = pixel_rays(center, intrinsics)
    return _turn_to(ray) @ local_rotation, ray * (_focal(intrinsics) / size)[..., None]


def camera_to_local(rotation: Array, translation: Array, intrinsics: Array) -> tuple[Array, Array, Array]:
    """Inverse of :func:`local_to_camera`: ``(center, size, local_rotation)``. Depth must be positive."""
    center = project(namespace(translation).zeros_like(translation)[..., None, :], rotation, translation, intrinsics)
    center = center[..., 0, :]
    local = _transpose(ray_rotation(center, intrinsics)) @ rotation
    return center, _focal(intrinsics) / translation[..., 2], local


# --- poses ---------------------------------------------------------------------------------------


def compose_pose(rotation: Array, translation: Array) -> Array:
    """(..., 3, 3) rotation and (..., 3) translation to (..., 6) poses."""
    return namespace(rotation).concatenate([_rotvec(rotation), translation], axis=-1)


def decompose_pose(pose: Array) -> tuple[Array, Array]:
    """(..., 6) poses to (..., 3, 3) rotations and (..., 3) translations."""
    return rotvec_to_matrix(pose[..., :3]), pose[..., 3:]


def convert_pose(
    pose: Array, from_intrinsics: Array, to_intrinsics: Array, scale: Array = 1.0, offset: Array = 0.0
) -> Array:
    """Pose in one crop's camera to the pose of the same pixels in another's (img2pose, section 3).

    The face keeps its appearance: local rotation stays, centre and apparent size move with the pixels
    by ``x' = scale * x + offset``. From a proposal box at ``(x1, y1)`` to the whole image, for
    instance, ``offset = (x1, y1)``. For a mere crop of one camera use
    ``to_intrinsics = transform_intrinsics(from_intrinsics, scale, offset)``: the pose is then unchanged.

    Args:
        pose: (..., 6) in the first camera.
        from_intrinsics: (3, 3) or (..., 3, 3).
        to_intrinsics: (3, 3) or (..., 3, 3).
        scale: (...,) second crop's pixels per first crop's pixel.
        offset: (..., 2) second crop's pixels.

    Returns:
        (..., 6) pose in the second camera.
    """
    rotation, translation = decompose_pose(pose)
    center, size, local = camera_to_local(rotation, translation, from_intrinsics)
    factor = namespace(pose).ones_like(pose[..., 0]) * scale
    center = center * factor[..., None] + offset
    return compose_pose(*local_to_camera(center, size * factor, local, to_intrinsics))


def flip_rotation(rotation: Array) -> Array:
    """(..., 3, 3) rotation, local or camera, of the mirrored face: ``M R M`` with ``M = diag(-1, 1, 1)``."""
    mirror = _eye_like(rotation)
    mirror[0, 0] = -1
    return mirror @ rotation @ mirror


def flip_pose(pose: Array) -> Array:
    """(..., 6) pose after mirroring the image left to right about the camera's principal point."""
    rx, ry, rz, tx, ty, tz = (pose[..., i] for i in range(6))
    return _stack([rx, -ry, -rz, -tx, ty, tz])


def roll_matrix(degrees: Array) -> Array:
    """(..., 3, 3) rotation about the optical axis; positive turns the picture clockwise."""
    xp = namespace(degrees)
    zero = xp.zeros_like(degrees)
    return angles_to_matrix(_stack([zero, zero, degrees]))


def roll_pose(pose: Array, degrees: Array) -> Array:
    """(..., 6) pose after turning the image clockwise by (...,) degrees about its principal point."""
    rotation, translation = decompose_pose(pose)
    roll = roll_matrix(degrees)
    return compose_pose(roll @ rotation, (roll @ translation[..., None])[..., 0])


# --- projection and its inverses -----------------------------------------------------------------


def project(points: Array, rotation: Array, translation: Array, intrinsics: Array) -> Array:
    """Pixels of 3-D face points.

    Args:
        points: (N, 3) or (..., N, 3) in the face frame, face units.
        rotation: (..., 3, 3) camera rotation.
        translation: (..., 3) face units.
        intrinsics: (3, 3) or (..., 3, 3).

    Returns:
        (..., N, 2) pixels.
    """
    camera = points @ _transpose(rotation) + translation[..., None, :]
    homogeneous = camera @ _transpose(intrinsics)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def ellipsoid(center: np.ndarray, semi_axes: np.ndarray) -> np.ndarray:
    """(4, 4) homogeneous matrix that maps the unit sphere to the ellipsoid of (3,) centre and (3,) semi-axes along the
    face frame's, face units."""
    matrix = np.diag([*semi_axes, 1.0])
    matrix[:3, 3] = center
    return matrix


_SPHERE = np.array([-1.0, -1.0, -1.0, 1.0])
"""Diagonal of the unit sphere's dual quadric."""


def project_ellipsoid_box(shape: Array, rotation: Array, translation: Array, intrinsics: Array) -> Array:
    """Tight box around the image of an ellipsoid.

    The outline of a quadric is a conic whose dual is the projected dual quadric, ``C* = P Q* P^T``
    (Hartley & Zisserman, "Multiple View Geometry", equation 8.5): the box is closed-form, exact under
    perspective and smooth in the pose.

    Args:
        shape: (4, 4), see :func:`ellipsoid`; of the kind and dtype of ``rotation``.
        rotation, translation, intrinsics: as in :func:`project`.

    Returns:
        (..., 4) x1, y1, x2, y2 in pixels. The ellipsoid must lie in front of the camera: of numpy's others the box is
        NaN, of torch's anything.
    """
    xp = namespace(rotation)
    placed = xp.concatenate([rotation, translation[..., None]], axis=-1)
    placed = (placed.reshape(-1, 4) @ shape).reshape(placed.shape)
    seen = intrinsics @ placed  # (..., 3, 4): images of the semi-axes and the centre
    conic = (seen * like(_SPHERE, seen)) @ _transpose(seen)
    depth = conic[..., 2:, 2]
    if xp is np:
        depth[~((depth > 0) & (seen[..., 2:, 3] > 0))] = np.nan
    middle = conic[..., :2, 2] / depth
    diagonal = conic.reshape((*conic.shape[:-2], 9))[..., :5:4]
    half = xp.sqrt(middle * middle - diagonal / depth)
    return xp.concatenate([middle - half, middle + half], axis=-1)


def solve_translation(
    points: Array, pixels: Array, rotation: Array, intrinsics: Array, weights: Array | None = None
) -> Array:
    """Translation that best explains pixels of known 3-D points under a known rotation.

    Each point gives two equations linear in ``t`` (``x Z = X`` and ``y Z = Y`` in normalized image
    coordinates); their weighted least-squares solution is closed-form.

    Args:
        points: (N, 3) or (..., N, 3) face frame, face units.
        pixels: (..., N, 2), N >= 2.
        rotation: (..., 3, 3) camera rotation.
        intrinsics: (3, 3) or (..., 3, 3).
        weights: (..., N), optional.

    Returns:
        (..., 3) face units.
    """
    xp = namespace(pixels)
    rays = pixel_rays(pixels, intrinsics[..., None, :, :])
    x, y = rays[..., 0], rays[..., 1]
    turned = points @ _transpose(rotation)
    w = xp.ones_like(x) if weights is None else weights
    bx = x * turned[..., 2] - turned[..., 0]
    by = y * turned[..., 2] - turned[..., 1]
    s, sx, sy = w.sum(-1), (w * x).sum(-1), (w * y).sum(-1)
    squares = (w * (x * x + y * y)).sum(-1)
    rx, ry, rz = (w * bx).sum(-1), (w * by).sum(-1), -(w * (x * bx + y * by)).sum(-1)
    # Normal equations [[s, 0, -sx], [0, s, -sy], [-sx, -sy, squares]] t = (rx, ry, rz), eliminated by hand.
    tz = (rz + (sx * rx + sy * ry) / s) / (squares - (sx * sx + sy * sy) / s)
    return _stack([(rx + sx * tz) / s, (ry + sy * tz) / s, tz])


def solve_pnp(points: np.ndarray, pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Pose of one face from its 3-D points and their pixels, by OpenCV (EPnP, then refined by Levenberg-Marquardt).

    Args:
        points: (N, 3) face frame, face units, N >= 4.
        pixels: (N, 2).
        intrinsics: (3, 3).

    Returns:
        (6,) pose, float64.

    Raises:
        ValueError: if the arrays do not fit together, hold NaN or infinity, or no pose explains them.
    """
    import cv2

    points, pixels = np.asarray(points, np.float64), np.asarray(pixels, np.float64)
    if points.ndim != 2 or points.shape[1:] != (3,) or pixels.shape != (len(points), 2) or len(points) < 4:
        raise ValueError(
            f"solve_pnp needs N x 3 points and N x 2 pixels with N >= 4, got {points.shape} and {pixels.shape}"
        )
    if not (np.isfinite(points).all() and np.isfinite(pixels).all()):
        raise ValueError("solve_pnp needs finite points and pixels: leave out those that are not known")
    camera = check_intrinsics(intrinsics)
    intrinsics = camera * [[1, 0, 1], [0, 1, 1], [0, 0, 1]]  # OpenCV knows no skew
    pixels = project(pixel_rays(pixels, camera), np.eye(3), np.zeros(3), intrinsics)
    found, rotvec, translation = cv2.solvePnP(points, pixels, intrinsics, np.empty(0), flags=cv2.SOLVEPNP_EPNP)
    if not found:
        raise ValueError("solve_pnp: no pose explains these pixels")
    rotvec, translation = cv2.solvePnPRefineLM(points, pixels, intrinsics, np.empty(0), rotvec, translation)
    pose = np.concatenate([rotvec.ravel(), translation.ravel()])
    # What OpenCV makes of points or pixels that coincide is no number, or as far away as numbers go.
    if not np.isfinite(pose).all() or not 0 < pose[5] < 1e9:
        raise ValueError("solve_pnp: no pose explains these pixels")
    return pose
