"""What every bundled model finds in a picture, in every engine for arm64, and whether two machines agree.

arm64_detect.py PICTURE OUT.json [MODEL ...]    # more models, by path
arm64_detect.py --compare A.json B.json    # what A ran must have run, and found the same, in B
"""

import json
import sys
from pathlib import Path

import numpy as np

ENGINES = ("onnxruntime", "tflite")
"""Both must be installed: one that cannot be imported is an error, not left out."""

SCORE, BOX, ANGLE = 0.01, 1.0, 0.5
"""The largest differences that pass: score, pixels, degrees."""


def detect(picture: str, models: list[str]) -> dict[str, list[dict]]:
    """Faces by ``model@engine``."""
    from img2pose_edge import PoseDetector
    from img2pose_edge.engines import READERS
    from img2pose_edge.manifest import bundled_models, find_model

    found = {}
    for model in [*bundled_models(), *models]:
        path = find_model(model).path
        for engine in READERS[path.suffix]:
            if engine in ENGINES:
                found[f"{path.stem}@{engine}"] = [
                    {"score": f.score, "box": f.box.tolist(), "angles": f.angles.tolist()}
                    for f in PoseDetector(model, engine)(picture)
                ]
    return found


def differences(a: list[dict], b: list[dict]) -> tuple[float, float, float]:
    """The largest of score, box and angles; each face of ``a`` is compared with the nearest of ``b``."""
    largest = np.zeros(3)
    for face in a:
        boxes = np.abs([np.subtract(face["box"], other["box"]) for other in b]).max(1)
        near = b[boxes.argmin()]
        angles = np.abs((np.subtract(face["angles"], near["angles"]) + 180) % 360 - 180)
        largest = np.maximum(largest, [abs(face["score"] - near["score"]), boxes.min(), angles.max()])
    score, box, angle = largest.tolist()
    return score, box, angle


def compare(a: dict[str, list[dict]], b: dict[str, list[dict]]) -> bool:
    """Print a table, and tell whether something was compared and nothing differs."""
    print(f"{'model':20} {'engine':12} {'faces':>5} {'score':>8} {'box px':>8} {'angle °':>8}")
    good = bool(a)
    for key, faces in a.items():
        name, engine = key.split("@")
        others = b.get(key)
        line = f"{name:20} {engine:12} {len(faces):5}"
        if others is None or len(others) != len(faces) or not faces:
            line += f"  against {'nothing' if others is None else len(others)}: differs"
            good = False
        else:
            score, box, angle = differences(faces, others)
            same = score <= SCORE and box <= BOX and angle <= ANGLE
            line += f" {score:8.1e} {box:8.1e} {angle:8.1e}{'' if same else '  differs'}"
            good &= same
        print(line)
    return good


if __name__ == "__main__":
    if sys.argv[1] == "--compare":
        a, b = (json.loads(Path(name).read_text()) for name in sys.argv[2:])
        sys.exit(not compare(a, b))
    Path(sys.argv[2]).write_text(json.dumps(detect(sys.argv[1], sys.argv[3:]), indent=1))
