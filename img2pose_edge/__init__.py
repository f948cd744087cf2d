"""Every face in a picture with its full 6DoF pose, in milliseconds on small machines."""

from img2pose_edge.detector import PoseDetector, detect_poses
from img2pose_edge.face import Face

__version__ = "0.1.0"
__all__ = ["Face", "PoseDetector", "detect_poses"]
