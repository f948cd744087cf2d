"""What tests share: the astronaut photograph, data sets beside the project if there are any, commands of the pages."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from skimage.data import astronaut as astronaut_rgb

from img2pose_edge import geometry

os.environ.pop("IMG2POSE_EDGE_TOKEN", None)  # as services have it: tests ask for tokens of their own
SHARED = Path(os.environ.get("IMG2POSE_EDGE_SHARED", Path(__file__).parents[2] / "shared"))
ASTRONAUT_BOX = np.array([178.0, 60.0, 270.0, 170.0])
EVALUATION_FILES = ("one.png", "absent.png", "broken.png")
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


@contextmanager
def training_interrupted_in(step: int) -> Iterator[None]:
    """Training inside ends as if killed in this step, counted from 0, before it can be saved."""
    from img2pose_edge.training import loop  # torch, which the runtime's tests do without

    average = loop.update_average

    def update(state: Any, network: Any, now: int, decay: float) -> None:
        if now == step:
            raise KeyboardInterrupt
        average(state, network, now, decay)

    with patch.object(loop, "update_average", update), pytest.raises(KeyboardInterrupt):
        yield


@pytest.fixture
def camera() -> np.ndarray:
    return geometry.default_intrinsics(640, 480)


@pytest.fixture
def evaluation_data(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """A folder with one image in each set, one label without an image, and one image that is none."""
    root = tmp_path / "eval"
    for folder in ("wider", "aflw2000", "pointing04"):
        (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / folder / "one.png"), astronaut)
        (root / folder / "broken.png").write_bytes(b"no image")
    box = [178.0, 60.0, 92.0, 110.0]
    lines = [{"image": n, "boxes_xywh": [box], "easy": [0], "medium": [0], "hard": [0]} for n in EVALUATION_FILES]
    cv2.imwrite(str(root / "wider" / "unknown.png"), astronaut)
    (root / "wider" / "ground_truth.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = "".join(f"{name},-5,1,3\n" for name in EVALUATION_FILES)
    (root / "aflw2000" / "labels.csv").write_text("image,pitch_deg,yaw_deg,roll_deg\n" + rows)
    (root / "pointing04" / "labels.csv").write_text(
        "image,person,pan_deg\n" + "".join(f"{n},11,0\n" for n in EVALUATION_FILES)
    )
    return root


def shell_lines(text: str) -> Iterator[list[str]]:
    """Words of each line of shell blocks, fenced or indented, lines ending in a backslash joined."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = line.strip() == "```sh"
        elif fenced or line.startswith("    "):
            try:
                yield shlex.split(line, comments=True)
            except ValueError:  # Python in an indented block
                continue


def our_commands(text: str) -> list[list[str]]:
    """Arguments of ``img2pose-edge`` in shell blocks."""
    return [words[1:] for words in shell_lines(text) if words[:1] == ["img2pose-edge"]]
