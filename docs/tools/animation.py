"""The animation of README.md, from videos that ``img2pose-edge video`` drew: ``make animation``."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
from PIL import Image

from img2pose_edge.video import Source


def animation(videos: list[Path], out: Path, frames: int) -> None:
    """The first frames of videos, one after the other, as an animated WebP that repeats."""
    pictures: list[Image.Image] = []
    milliseconds: list[int] = []
    for video in videos:
        with Source(video) as source:
            for frame in source:
                if frame.index == frames:
                    break
                pictures.append(Image.fromarray(cv2.cvtColor(frame.image, cv2.COLOR_BGR2RGB)))
                milliseconds.append(round(1000 / source.rate))
        milliseconds[-1] += 700  # a rest before the next one
    pictures[0].save(
        out, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, quality=70, method=6
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=20, help="of each video")
    options = parser.parse_args()
    animation(options.videos, options.out, options.frames)
