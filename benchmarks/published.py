"""img2pose's own evaluation on AFLW2000-3D and BIWI as they are distributed, and beside it a corrected one.

Figures that begin with ``published`` follow the notebooks of Albiero et al., "img2pose" (CVPR 2021): they
compare the rotation in the image's camera with the label, whatever camera that refers to, and subtract angles
without regard to full turns. A face away from the optical axis is charged for where it is. Figures that begin
with ``local`` compare label and prediction in one frame (``geometry``: local and camera rotation).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from img2pose_edge.benchmarks.accuracy import ANGLES, AP_THRESHOLD, Detect, Found, mean_absolute, read_mat, require
from img2pose_edge.benchmarks.metrics import angle_errors
from img2pose_edge.pose_references import load_reference

from img2pose_edge import geometry
from img2pose_edge.nms import pairwise_iou
from img2pose_edge.preprocess import load_image
from img2pose_edge.progress import track
from img2pose_edge.published import project_boxes, similarity_to_ours

AFLW_LARGEST_ANGLE = 99.0
"""Degrees; images with a larger label are left out (31 of 2,000), as in most of the literature."""
BIWI_SURE = 0.9
"""Among faces with a higher score, the one nearest to the middle of the image is the labelled one."""


def own_frame(points68: np.ndarray | None) -> np.ndarray:
    """(3, 3) rotation that undoes the one by which an official checkpoint's poses were carried to our reference."""
    return np.eye(3) if points68 is None else similarity_to_ours(points68)[0].T


# --- AFLW2000-3D ---------------------------------------------------------------------------------


def read_aflw2000(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Label of an image of AFLW2000-3D from its ``.mat`` file.

    Returns:
        (3,) pitch, yaw, roll in degrees (local rotation, 300W-LP convention) and (68, 2) landmarks in pixels.

    Raises:
        FileNotFoundError, ValueError, ImportError: as :func:`accuracy.read_mat`.
    """
    pose, points = read_mat(path, "Pose_Para", "pt3d_68")
    if pose.size != 7 or points.shape != (3, 68):
        raise ValueError(f"{path} must hold Pose_Para (1, 7) and pt3d_68 (3, 68), got {pose.shape} and {points.shape}")
    if not (np.isfinite(pose).all() and np.isfinite(points).all()):
        raise ValueError(f"{path} must hold finite numbers")
    return np.degrees(pose.ravel()[:3].astype(float)), points[:2].T.astype(float)


def landmark_box(landmarks: np.ndarray, roll: float, width: int, height: int) -> np.ndarray:
    """img2pose's box around landmarks (``published.project_boxes``).

    Args:
        landmarks: (N, 2) pixels.
        roll: third component of the face's rotation vector, radians: tells where the forehead is.
        width, height: of the image, pixels; the box ends there.

    Returns:
        (4,) x1, y1, x2, y2, whole pixels.
    """
    # The rule is written for projections: these points, turned by the roll, project onto the landmarks.
    pose = np.array([[0, 0, roll, 0, 0, 0]])
    points = np.column_stack([landmarks, np.ones(len(landmarks))]) @ geometry.rotvec_to_matrix(pose[0, :3])
    return project_boxes(pose, points, np.eye(3), width, height)[0]


def overlapping_face(faces: list[Found], box: np.ndarray) -> Found | None:
    """The face that overlaps ``box`` most, whatever its score; None if none does (boxes hold their last pixel)."""
    overlap = pairwise_iou(np.array([f.box for f in faces]).reshape(-1, 4), box[None], extra=1.0)[:, 0]
    return faces[overlap.argmax()] if overlap.any() else None


def evaluate_aflw2000_official(detect: Detect, root: Path, points68: np.ndarray | None = None) -> dict[str, float]:
    """Angles and translation on AFLW2000-3D by img2pose's protocol.

    The labelled face is the one of at least ``AP_THRESHOLD`` that overlaps img2pose's box around the 68 labelled
    landmarks most. ``published_`` angles are those of the camera rotation, ``local_`` ones of the local rotation,
    which is what the labels, made on crops, describe. The true translation is PnP's of our 68 reference points on
    the landmarks, in the image's default camera. img2pose's own figures refer to its own reference face, whose
    unit and origin are others: they can be set beside ours, not equated with them.

    Args:
        root: the folder of the ``.jpg`` and ``.mat`` files, or the one that holds it as ``AFLW2000``.
        points68: (68, 3) reference points of an official checkpoint, whose own frame ``published_`` angles refer to.

    Returns:
        ``faces`` counted, images ``left_out`` for an angle beyond 99 degrees, faces ``missed`` (not in the means);
        ``published_`` and ``local_`` ``pitch_mae``, ``yaw_mae``, ``roll_mae`` and their mean ``mae``, degrees;
        ``tx_mae``, ``ty_mae``, ``tz_mae`` and their mean ``translation_mae``, face units.

    Raises:
        FileNotFoundError: if there is no ``.mat`` file, or one without its image.
        ValueError, ImportError: as :func:`read_aflw2000`.
    """
    names = "[!.]*.mat"  # macOS keeps notes in ``._`` files
    files = sorted(root.glob(names)) or sorted((root / "AFLW2000").glob(names))
    if not files:
        raise FileNotFoundError(f"evaluation data lacks image*.mat of AFLW2000-3D in {root} or {root / 'AFLW2000'}")
    published, local, shifts, frame = [], [], [], own_frame(points68)
    left_out = missed = 0
    for path in track(files, "AFLW2000-3D"):
        label, landmarks = read_aflw2000(path)
        if (np.abs(label) > AFLW_LARGEST_ANGLE).any():
            left_out += 1
            continue
        image = load_image(path.with_suffix(".jpg"))
        height, width = image.shape[:2]
        camera = geometry.default_intrinsics(width, height)
        target = geometry.solve_pnp(load_reference().points68, landmarks, camera)
        face = overlapping_face(detect(image, AP_THRESHOLD), landmark_box(landmarks, target[2], width, height))
        if face is None or face.pose is None or face.angles is None:
            missed += 1
            continue
        rotation, translation = geometry.decompose_pose(face.pose)
        published.append(geometry.matrix_to_angles(rotation @ frame) - label)
        local.append(angle_errors(face.angles, label))
        shifts.append(translation - target[3:])
    return {
        "faces": len(files) - left_out,
        "left_out": left_out,
        "missed": missed,
        **mean_absolute(published, *(f"published_{name}" for name in ANGLES)),
        **mean_absolute(local, *(f"local_{name}" for name in ANGLES)),
        **mean_absolute(shifts, "tx_mae", "ty_mae", "tz_mae", "translation_mae"),
    }


# --- BIWI ----------------------------------------------------------------------------------------


def _read_numbers(path: Path, count: int, what: str) -> np.ndarray:
    try:
        numbers = np.array(require(path).read_text(encoding="utf-8").split(), float)
    except ValueError as error:
        raise ValueError(f"{path} must hold numbers only: {error}") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"{path} must hold finite numbers")
    if len(numbers) != count:
        raise ValueError(f"{path} must hold {count} numbers ({what}), got {len(numbers)}")
    return numbers


def read_biwi_pose(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) rotation of the head and (3,) its position in mm, both in the depth camera, from ``*_pose.txt``."""
    numbers = _read_numbers(path, 12, "3x3 rotation, position")
    return numbers[:9].reshape(3, 3), numbers[9:]


def read_biwi_calibration(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The colour camera from ``rgb.cal``: (3, 3) intrinsics, and (3, 3) rotation and (3,) translation in mm that
    lead from the depth camera to it, ``X_rgb = R @ X_depth + t``. Lens distortion is left out of account.
    """
    numbers = _read_numbers(
        path, 27, "3x3 intrinsics, 4 of distortion, 3x3 rotation, translation, image width and height"
    )
    return numbers[:9].reshape(3, 3), numbers[13:22].reshape(3, 3), numbers[22:25]


def biwi_frames(root: Path, frames: Path | None = None) -> list[Path]:
    """The colour images to evaluate on.

    Args:
        root: folder of BIWI, ``01`` to ``24`` below it.
        frames: img2pose's ``BIWI_annotations.txt``, a path and three angles a line. Of each path the last two
            components count, the angles do not. Without it all frames are taken.

    Raises:
        FileNotFoundError: if the list is missing, or without a list there are no frames.
        ValueError: naming a line of the list that does not begin with such a path.
    """
    if frames is None:
        found = sorted(root.glob("[0-9][0-9]/frame_*_rgb.png"))
        if not found:
            raise FileNotFoundError(f"evaluation data lacks {root / '01' / 'frame_*_rgb.png'} and the like")
        return found
    listed = []
    try:
        text = require(frames).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{frames} is no list of frames: it is not UTF-8 text") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = Path(line.split()[0]).parts
        if len(parts) < 2 or not parts[-1].endswith("_rgb.png"):
            raise ValueError(
                f"line {number} of {frames} must begin with a path as ../01/frame_00003_rgb.png, got {line!r}"
            )
        listed.append(root / parts[-2] / parts[-1])
    if not listed:
        raise ValueError(f"{frames} names no frame")
    return listed


def person_in_the_middle(faces: list[Found], image: np.ndarray) -> Found | None:
    """Of the faces above ``BIWI_SURE`` the one nearest to the image's middle; without any the best-scored face."""
    sure = [f for f in faces if f.score > BIWI_SURE]
    if not sure:
        return max(faces, key=lambda f: f.score, default=None)
    middle = np.array([image.shape[1], image.shape[0]]) / 2
    return min(sure, key=lambda f: float(np.linalg.norm((f.box[:2] + f.box[2:]) / 2 - middle)))


def zxy_angles(rotation: np.ndarray) -> np.ndarray:
    """(..., 3) pitch, yaw, roll in degrees with ``R = Ry(yaw) @ Rx(pitch) @ Rz(roll)``, img2pose's on BIWI."""
    pitch = np.arctan2(-rotation[..., 1, 2], np.hypot(rotation[..., 1, 0], rotation[..., 1, 1]))
    yaw = np.arctan2(rotation[..., 0, 2], rotation[..., 2, 2])
    roll = np.arctan2(rotation[..., 1, 0], rotation[..., 1, 1])
    return np.degrees(np.stack([pitch, yaw, roll], axis=-1))


def evaluate_biwi(
    detect: Detect,
    root: Path,
    frames: Path | None = None,
    points68: np.ndarray | None = None,
    problems: list[str] | None = None,
) -> dict[str, float]:
    """Angles and translation on the BIWI Kinect head pose database.

    The labelled face is :func:`person_in_the_middle`, of the faces of at least ``AP_THRESHOLD``. ``published_``
    angles (:func:`zxy_angles`) are those of the rotation in the image's default camera, against the head's in the
    depth camera. For ``local_`` angles (300W-LP convention) and translation, label and prediction are brought into
    the colour camera as calibrated, the prediction by its appearance (``geometry.convert_pose``). Both rotations are
    then turned back by the ray through the labelled position: were each turned by the ray through its own origin,
    these being different points of a head, a perfect prediction would be off by the angle between the rays.

    The label's position and our origin differ by a constant in the face frame, which ``translation_mae_mm`` holds
    in full. ``translation_mae_mm_aligned`` is what is left after the mean offset over the whole set, taken in the
    face frame, is added to each prediction as its rotation turns it. A constant rotation between the head's frame
    and ours stays in the angles, as in all of the literature.

    Args:
        root, frames: as in :func:`biwi_frames`; ``root`` holds ``01/frame_00003_rgb.png``,
            ``01/frame_00003_pose.txt``, ``01/rgb.cal`` and so on.
        points68: as in :func:`evaluate_aflw2000_official`.
        problems: frames that cannot be read are named in it and left out; without it the first one is an error.

    Returns:
        ``faces`` counted, and how many of them were ``missed`` (not in the means); ``published_`` and ``local_``
        ``pitch_mae``, ``yaw_mae``, ``roll_mae`` and their mean ``mae``, degrees; ``tx_mae_mm``, ``ty_mae_mm``,
        ``tz_mae_mm``, their mean ``translation_mae_mm`` and ``translation_mae_mm_aligned``, millimetres.

    Raises:
        FileNotFoundError: naming the frame, pose, calibration or list that is missing.
        ValueError: naming the pose, calibration or list that does not hold what it should.
    """
    paths = biwi_frames(root, frames)
    published, local, shifts, rotations, frame = [], [], [], [], own_frame(points68)
    missed = unread = 0
    for path in track(paths, "BIWI"):
        try:
            head, position = read_biwi_pose(path.with_name(path.name.replace("_rgb.png", "_pose.txt")))
            camera, turn, shift = read_biwi_calibration(path.with_name("rgb.cal"))
            image = load_image(path)
        except (OSError, ValueError) as error:
            if problems is None:
                raise
            problems.append(f"BIWI: {error}")
            unread += 1
            continue
        face = person_in_the_middle(detect(image, AP_THRESHOLD), image)
        position = turn @ position + shift
        center, _, true_local = geometry.camera_to_local(turn @ head, position, camera)
        true_angles = geometry.matrix_to_angles(true_local)
        if face is None or face.pose is None:
            if face is None or face.angles is None:
                missed += 1
            else:  # a detector that tells no translation
                local.append(angle_errors(face.angles, true_angles))
            continue
        published.append(zxy_angles(geometry.rotvec_to_matrix(face.pose[:3]) @ frame) - zxy_angles(head))
        default = geometry.default_intrinsics(image.shape[1], image.shape[0])
        rotation, translation = geometry.decompose_pose(geometry.convert_pose(face.pose, default, camera))
        seen_local = geometry.ray_rotation(center, camera).T @ rotation
        local.append(angle_errors(geometry.matrix_to_angles(seen_local), true_angles))
        shifts.append(translation * geometry.FACE_UNIT_MM - position)
        rotations.append(rotation)
    return {
        "faces": len(paths) - unread,
        "missed": missed,
        **mean_absolute(published, *(f"published_{name}" for name in ANGLES)),
        **mean_absolute(local, *(f"local_{name}" for name in ANGLES)),
        **mean_absolute(shifts, "tx_mae_mm", "ty_mae_mm", "tz_mae_mm", "translation_mae_mm"),
        "translation_mae_mm_aligned": _aligned_error(shifts, rotations),
    }


def _aligned_error(shifts: list[np.ndarray], rotations: list[np.ndarray]) -> float:
    """Mean absolute component of N x 3 errors of translations after their mean in the face frame is taken off."""
    if not shifts:
        return float("nan")
    errors, turns = np.array(shifts), np.array(rotations)
    offset = np.einsum("nji,nj->ni", turns, errors).mean(0)
    return float(np.abs(errors - turns @ offset).mean())
