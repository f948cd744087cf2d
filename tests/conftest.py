"""What the tests share: the astronaut photograph, and the data sets when they lie beside the project."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import astronaut as astronaut_rgb

from img2pose_edge import geometry

SHARED = Path(os.environ.get("IMG2POSE_EDGE_SHARED", Path(__file__).parents[2] / "shared"))
ASTRONAUT_BOX = np.array([178.0, 60.0, 270.0, 170.0])
ASTRONAUT_POINTS = np.array([[205.0, 103], [244, 101], [226, 127], [209, 146], [245, 144]])


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """(512, 512, 3) uint8 BGR, one frontal face (public domain, NASA)."""
    return cv2.cvtColor(astronaut_rgb(), cv2.COLOR_RGB2BGR)


def shared(relative: str) -> Path:
    """A path of the shared data; the test that asks is skipped where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the shared data")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, astronaut: np.ndarray) -> Path:
    """A training folder of six labelled pictures made from the astronaut."""
    root = tmp_path_factory.mktemp("tiny")
    lines = []
    for number, size in enumerate((512, 448, 400, 352, 320, 288)):
        for collection in ("wider", "300w"):
            name = f"images/{collection}/astronaut_{number}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / name), cv2.resize(astronaut, (size, size), interpolation=cv2.INTER_AREA))
            lines.append(
                json.dumps(
                    {
                        "image": name,
                        "width": size,
                        "height": size,
                        "faces": [
                            {
                                "box": (ASTRONAUT_BOX * size / 512).tolist(),
                                "source": "detector",
                                "landmarks": (ASTRONAUT_POINTS * size / 512).tolist(),
                                "angles": [-5.0, 1.0, 3.0],
                                "spread": 1.0,
                            }
                        ],
                    }
                )
            )
    (root / "labels.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def camera() -> np.ndarray:
    return geometry.default_intrinsics(640, 480)
