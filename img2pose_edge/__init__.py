"""Every face in a picture with its full 6DoF pose, in milliseconds on small machines."""

from pathlib import Path

if not (Path(__file__).parent / "pose_references").is_dir():  # a checkout, whose other parts lie beside this folder
    __path__.append(str(Path(__file__).parents[1]))

from img2pose_edge.align import align_face, upright_face
from img2pose_edge.calibration import Calibration, read_calibration, undistort_face
from img2pose_edge.detections import to_supervision
from img2pose_edge.detector import PoseDetector, detect_poses
from img2pose_edge.face import Face, Faces, looking_at_camera
from img2pose_edge.senders import OpenTrackSender, OscSender
from img2pose_edge.tracking import PoseTracker, TrackedFace

__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "Face",
    "Faces",
    "OpenTrackSender",
    "OscSender",
    "PoseDetector",
    "PoseTracker",
    "TrackedFace",
    "align_face",
    "detect_poses",
    "looking_at_camera",
    "read_calibration",
    "to_supervision",
    "undistort_face",
    "upright_face",
]
