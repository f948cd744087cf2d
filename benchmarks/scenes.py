"""Pictures of 640x480 with a known number of faces, to time detectors on: from photographs of scikit-image."""

from __future__ import annotations

import cv2
import numpy as np

WIDTH, HEIGHT = 640, 480
FACE_COUNTS = (0, 1, 10, 50)
GRIDS = {10: (5, 2), 50: (10, 5)}
"""Columns and rows of faces."""
FACE_MIDDLE = (224, 115)
"""Of the astronaut's face, pixels."""
CELL_HEIGHT = 240
"""Pixels of the photograph that a cell of the grid shows, from top to bottom."""


def scene(faces: int) -> np.ndarray:
    """(480, 640, 3) uint8 BGR with 0 (a cup of coffee), 1, 10 or 50 faces (the astronaut, mirrored by turns)."""
    from skimage.data import astronaut, coffee

    if faces not in FACE_COUNTS:
        raise ValueError(f"there are scenes of {', '.join(map(str, FACE_COUNTS))} faces, not of {faces}")
    if faces == 0:
        return cv2.resize(cv2.cvtColor(coffee(), cv2.COLOR_RGB2BGR), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    photograph = cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR)
    if faces == 1:
        side = (WIDTH - photograph.shape[1]) // 2
        return cv2.copyMakeBorder(photograph[:HEIGHT], 0, 0, side, side, cv2.BORDER_REPLICATE)
    columns, rows = GRIDS[faces]
    width, height = WIDTH // columns, HEIGHT // rows
    seen = round(CELL_HEIGHT * width / height)
    left = FACE_MIDDLE[0] - seen // 2
    tile = cv2.resize(photograph[:CELL_HEIGHT, left : left + seen], (width, height), interpolation=cv2.INTER_AREA)
    mirrored = cv2.flip(tile, 1)
    return np.vstack([np.hstack([(tile, mirrored)[(x + y) % 2] for x in range(columns)]) for y in range(rows)])
