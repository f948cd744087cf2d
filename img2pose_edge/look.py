"""From the faces found in a camera's frame to those that are told and those that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from img2pose_edge.calibration import Calibration, undistort_faces
from img2pose_edge.face import Face
from img2pose_edge.tracking import PoseTracker


@dataclass(frozen=True)
class Looked:
    """Attributes:
    faces: their poses are the calibrated camera's, if there is one.
    seen: the same faces as the picture shows them, the lens's distortion and all: to draw.
    ids: of tracked faces.
    """

    faces: list[Face]
    seen: list[Face]
    ids: list[int] | None

    def told(self) -> list[dict[str, Any]]:
        """:meth:`Face.to_dict` of each, box and landmarks both in pixels of the picture as it is."""
        pairs = zip(self.faces, self.seen, strict=True)
        return [face.to_dict() | {"landmarks68": seen.landmarks68.round(2).tolist()} for face, seen in pairs]


def look(found: Sequence[Face], time: float, tracker: PoseTracker | None, camera: Calibration | None) -> Looked:
    """
    Args:
        found: faces of a frame, found with the camera's intrinsics.
        time: of the frame, seconds.
        tracker: gives faces ids and steadies them.
        camera: of the frame's size. Faces where its distortion cannot be inverted are left out.
    """
    seen, ids = list(found), None
    if tracker:
        tracked = tracker.update(found, time)
        seen, ids = [t.face for t in tracked], [t.id for t in tracked]
    if camera is None:
        return Looked(seen, seen, ids)
    straight = undistort_faces(seen, camera)
    kept = [i for i, face in enumerate(straight) if face]
    return Looked([f for f in straight if f], [seen[i] for i in kept], ids and [ids[i] for i in kept])
