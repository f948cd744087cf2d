"""The result type: one face and its pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex, overload

import numpy as np

from img2pose_edge.geometry import FACE_UNIT_MM, project
from img2pose_edge.pose_references import load_reference


@dataclass(frozen=True, eq=False)
class Face:
    """A face found in an image. Arrays are float64; frames and signs are those of ``geometry.py``.

    Attributes:
        score: 0 to 1.
        box: (4,) x1, y1, x2, y2 in image pixels, projected from the pose; may reach beyond the image.
        pose: (6,) rx, ry, rz (radians), tx, ty, tz (face units) in the camera frame.
        rotation: (3, 3) camera rotation: ``X_camera = rotation @ X_face + translation``.
        local_rotation: (3, 3) rotation as a crop around the face shows it.
        angles: (3,) pitch, yaw, roll in degrees of the local rotation, 300W-LP convention.
        intrinsics: (3, 3) camera that the pose refers to.
    """

    score: float
    box: np.ndarray
    pose: np.ndarray
    rotation: np.ndarray
    local_rotation: np.ndarray
    angles: np.ndarray
    intrinsics: np.ndarray

    def __init__(
        self,
        score: float,
        box: np.ndarray,
        pose: np.ndarray,
        rotation: np.ndarray,
        local_rotation: np.ndarray,
        angles: np.ndarray,
        intrinsics: np.ndarray,
    ) -> None:
        values = self.__dict__  # a frozen dataclass's own setting of attributes takes twice as long
        values["score"], values["box"], values["pose"] = score, box, pose
        values["rotation"], values["local_rotation"], values["angles"] = rotation, local_rotation, angles
        values["intrinsics"] = intrinsics

    @cached_property
    def landmarks68(self) -> np.ndarray:
        """(68, 2) projected iBUG points, image pixels."""
        return project(load_reference().points68, self.rotation, self.translation, self.intrinsics)

    @property
    def translation(self) -> np.ndarray:
        """(3,) face units, camera frame."""
        return self.pose[3:]

    @property
    def translation_mm(self) -> np.ndarray:
        """(3,) millimetres, camera frame, for a face of average adult size; metric only with a
        calibrated camera's intrinsics."""
        return self.translation * FACE_UNIT_MM

    @property
    def pitch(self) -> float:
        """Degrees, positive looks up."""
        return float(self.angles[0])

    @property
    def yaw(self) -> float:
        """Degrees, negative faces image-right."""
        return float(self.angles[1])

    @property
    def roll(self) -> float:
        """Degrees, positive turns the head clockwise in the image."""
        return float(self.angles[2])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON."""
        return {
            "score": round(float(self.score), 4),
            "box": self.box.round(2).tolist(),
            "pose": self.pose.round(5).tolist(),
            "rotation": self.rotation.round(6).tolist(),
            "pitch": round(self.pitch, 2),
            "yaw": round(self.yaw, 2),
            "roll": round(self.roll, 2),
            "translation": self.translation.round(4).tolist(),
            "translation_mm": self.translation_mm.round(1).tolist(),
            "landmarks68": self.landmarks68.round(2).tolist(),
        }

    def __repr__(self) -> str:
        return (
            f"Face(score={self.score:.2f}, box=({', '.join(f'{v:.0f}' for v in self.box)}), "
            f"pitch={self.pitch:.1f}, yaw={self.yaw:.1f}, roll={self.roll:.1f}, "
            f"translation_mm=({', '.join(f'{v:.0f}' for v in self.translation_mm)}))"
        )


class Faces(list[Face]):
    """The faces of one image: a list, best first, that knows how to hand itself on. So do its slices; lists of some of
    them are given to the functions themselves (:func:`img2pose_edge.detections.to_supervision`)."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Face: ...

    @overload
    def __getitem__(self, index: slice) -> Faces: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Face | Faces:
        return Faces(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    def to_supervision(self, ids: Sequence[int] | None = None) -> Any:
        """As ``supervision.Detections``: see :func:`img2pose_edge.detections.to_supervision`."""
        from img2pose_edge.detections import to_supervision

        return to_supervision(self, ids)


def check_type(faces: Sequence[Any]) -> None:
    """Raise TypeError, naming what is not a :class:`Face`."""
    for i, face in enumerate(faces):
        if not isinstance(face, Face):
            hint = ": give the face of each tracked one" if hasattr(face, "face") else ""
            raise TypeError(f"faces must be Face, as PoseDetector gives them; number {i} is {face!r}{hint}")


def looking_at_camera(face: Face) -> float:
    """How far a face is from looking straight into the camera.

    Returns:
        Degrees, 0 to 180, between the face's normal (out of the face, its -z) and the ray from the face to the camera,
        wherever in the picture it is: 0 faces the camera, 90 is a profile or looks straight up or down. It is the
        head's direction; where the eyes look in it is not known.
    """
    check_type([face])
    # The ray to the camera is the local frame's -z, whatever the intrinsics.
    x, y, z = face.local_rotation[:, 2]
    return float(np.degrees(np.arctan2(np.hypot(x, y), z)))
