"""Draws the figures of docs/poses.md with the package's own geometry: ``python docs/tools/figures.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
from img2pose_edge.pose_references import load_reference, project_face_box
from matplotlib.axes import Axes

from img2pose_edge import Face, geometry
from img2pose_edge.draw import draw_faces, draw_mask

RED, GREEN, BLUE, GREY = "#e0382e", "#2f9e3a", "#2b6fd6", "#606060"
AXES = ((RED, "x"), (GREEN, "y"), (BLUE, "z"))
PAPER = 255


def make_face(rotation: np.ndarray, translation: np.ndarray, camera: np.ndarray) -> Face:
    """A face of known pose."""
    local = geometry.camera_to_local(rotation, translation, camera)[2]
    return Face(
        score=1.0,
        box=project_face_box(rotation, translation, camera),
        pose=geometry.compose_pose(rotation, translation),
        rotation=rotation,
        local_rotation=local,
        angles=geometry.matrix_to_angles(local),
        intrinsics=camera,
    )


def turned(pitch: float = 0, yaw: float = 0, roll: float = 0) -> np.ndarray:
    return geometry.angles_to_matrix(np.array([pitch, yaw, roll], float))


def signed(degrees: float) -> str:
    return f"{round(degrees):+d}°".replace("-", "−").replace("+0°", "0°")


def paper(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def show(axes: Axes, picture: np.ndarray, border: bool = True) -> None:
    axes.imshow(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(border)
    axes.spines[:].set_color("#b0b0b0")


def arrow(axes: Axes, start: np.ndarray, end: np.ndarray, color: str, label: str = "", width: float = 2) -> None:
    style = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)
    if label:
        step = (end - start) / max(np.linalg.norm(end - start), 1e-9)
        axes.text(*(end + 20 * step), label, color=color, ha="center", va="center", fontsize=11, weight="bold")


# --- frames --------------------------------------------------------------------------------------


def frames(out: Path) -> None:
    """Camera, face and the translation between them, seen from beside the camera."""
    width, height, focal = 1100, 470, 1150
    lens = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    eye, target = np.array([7.6, -3.2, -1.3]), np.array([0.35, 0.15, 2.4])
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross([0, 1.0, 0], forward)
    right /= np.linalg.norm(right)
    observer = np.stack([right, np.cross(forward, right), forward])

    def seen(points: Any) -> np.ndarray:
        return geometry.project(np.asarray(points, float), observer, -observer @ eye, lens)

    rotation, translation = turned(), np.array([-0.4, -0.2, 5.2])
    picture = paper(width, height)
    draw_mask(picture, make_face(observer @ rotation, observer @ (translation - eye), lens), 0.9)
    figure, axes = plt.subplots(figsize=(11, 4.7))
    show(axes, picture, border=False)
    # The camera: a pyramid from its centre to its picture.
    depth = 1.1
    corners = np.array([[-0.75, -0.56, depth], [0.75, -0.56, depth], [0.75, 0.56, depth], [-0.75, 0.56, depth]])
    ring = seen(np.vstack([corners, corners[:1]]))
    axes.fill(*ring.T, color="#9fb8c8", alpha=0.25, lw=0)
    axes.plot(*ring.T, color=GREY, lw=1.5)
    for corner in corners:
        axes.plot(*seen([[0, 0, 0], corner]).T, color=GREY, lw=1)
    axes.text(*(seen([[-0.75, -0.56, depth]])[0] + [-6, -16]), "picture", color=GREY, fontsize=11, ha="center")
    for origin, turn, length in ((np.zeros(3), np.eye(3), 1.7), (translation, rotation, 1.5)):
        for column, (color, name) in enumerate(AXES):
            start, end = seen([origin, origin + length * turn[:, column]])
            arrow(axes, start, end, color, name)
    start, end = seen([np.zeros(3), translation])
    axes.plot([start[0], end[0]], [start[1], end[1]], color="black", lw=1.6, ls=(0, (4, 3)))
    axes.text(*((start + end) / 2 + [12, 34]), "translation t", fontsize=11)
    axes.text(start[0] - 18, start[1] + 40, "camera", fontsize=12, ha="right", weight="bold")
    axes.text(end[0] + 40, end[1] - 64, "face", fontsize=12, weight="bold")
    save(figure, out / "frames.png")


# --- signs ---------------------------------------------------------------------------------------


def angles(out: Path) -> None:
    """What each angle does, as the camera sees it."""
    camera = geometry.default_intrinsics(360, 360)
    rows = (
        ("pitch", 30, ("looks down", "straight", "looks up")),
        ("yaw", 45, ("faces image-right", "straight", "faces image-left")),
        ("roll", 30, ("turns counter-clockwise", "straight", "turns clockwise")),
    )
    figure, grid = plt.subplots(3, 3, figsize=(8.2, 8.9))
    for line, (name, degrees, meanings) in zip(grid, rows, strict=True):
        for axes, sign, meaning in zip(line, (-1, 0, 1), meanings, strict=True):
            face = make_face(turned(**{name: sign * degrees}), np.array([0, 0, 5.2]), camera)
            show(axes, draw_faces(paper(360, 360), [face], boxes=False, opacity=0.95))
            axes.set_title(f"{name} {signed(sign * degrees)}: {meaning}", fontsize=10)
    figure.tight_layout()
    save(figure, out / "angles.png")


# --- local and camera rotation -------------------------------------------------------------------

PLACES = (-3.0, 0.0, 3.0)
DEPTH = 6.0


def local_and_camera(out: Path) -> None:
    """Off the optical axis: parallel heads look different, heads that look the same are not parallel."""
    width, height = 900, 330
    camera = np.array([[620.0, 0, width / 2], [0, 620, height / 2], [0, 0, 1]])
    cases = (
        ("The same camera rotation: R = I, heads parallel to each other", True),
        ("The same local rotation: R_local = I, each head looks at the camera", False),
    )
    figure, grid = plt.subplots(2, 2, figsize=(12, 6.6), width_ratios=(1, 2.3))
    for (above, front), (title, parallel) in zip(grid, cases, strict=True):
        faces = []
        for x in PLACES:
            translation = np.array([x, 0, DEPTH])
            center = geometry.project(np.zeros((1, 3)), np.eye(3), translation, camera)[0]
            ray = geometry.ray_rotation(center, camera)
            faces.append(make_face(np.eye(3) if parallel else ray, translation, camera))
        picture = draw_faces(paper(width, height), faces, opacity=0.95, boxes=False)
        show(front, picture)
        front.set_title(title, fontsize=12)
        for face in faces:
            camera_yaw = geometry.matrix_to_angles(face.rotation)[1]
            text = f"camera yaw {signed(camera_yaw)}\nlocal yaw {signed(face.yaw)}"
            front.text(face.box[[0, 2]].mean(), height - 12, text, ha="center", va="bottom", fontsize=10)
        from_above(above, faces)
    figure.tight_layout(h_pad=2.5)
    save(figure, out / "local_and_camera.png")


def from_above(axes: Axes, faces: Sequence[Face]) -> None:
    """x to the right, z upwards: the camera below, heads above it, an arrow where each faces."""
    axes.plot(0, 0, marker="^", color="black", ms=10)
    axes.text(0.4, -0.35, "camera", fontsize=10)
    for face in faces:
        x, _, z = face.translation
        axes.plot([0, x], [0, z], color=GREY, lw=1, ls=(0, (4, 3)))
        axes.add_patch(plt.Circle((x, z), 0.62, fc="#f0d7b4", ec=GREY))
        gaze = -face.rotation[:, 2]
        begin, end = np.array([x, z]) + 0.62 * gaze[[0, 2]], np.array([x, z]) + 1.9 * gaze[[0, 2]]
        arrow(axes, begin, end, BLUE)
    axes.set_xlim(-4.6, 4.6)
    axes.set_ylim(-0.9, 7.0)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title("from above", fontsize=11, color=GREY)


# --- boxes ---------------------------------------------------------------------------------------


def ellipsoid_box(out: Path) -> None:
    """Boxes are those of a projected ellipsoid."""
    camera = geometry.default_intrinsics(420, 420)
    reference = load_reference()
    u, v = np.meshgrid(np.linspace(0, np.pi, 13), np.linspace(0, 2 * np.pi, 25), indexing="ij")
    sphere = np.stack([np.sin(u) * np.cos(v), np.cos(u), np.sin(u) * np.sin(v)], axis=-1)
    surface = reference.ellipsoid_center + sphere * reference.ellipsoid_axes
    figure, grid = plt.subplots(1, 3, figsize=(11, 4.1))
    for axes, yaw in zip(grid, (0, 45, 90), strict=True):
        face = make_face(turned(yaw=-yaw, pitch=-8), np.array([0, 0.15, 4.6]), camera)
        show(axes, draw_faces(paper(420, 420), [face], boxes=False, axes=False, opacity=0.95))
        lines = geometry.project(surface.reshape(-1, 3), face.rotation, face.translation, camera).reshape(*u.shape, 2)
        for line in (*lines[::2], *lines.swapaxes(0, 1)[::2]):
            axes.plot(*line.T, color="#7a4fb0", lw=0.6, alpha=0.7)
        axes.plot(*face.landmarks68.T, ".", color=BLUE, ms=4)
        x1, y1, x2, y2 = face.box
        axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=GREEN, lw=2))
        axes.set_xlim(-0.5, 419.5)
        axes.set_ylim(419.5, -0.5)
        axes.set_title(f"yaw {signed(-yaw)}", fontsize=11)
    figure.tight_layout()
    save(figure, out / "ellipsoid_box.png")


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)


def draw_all(out: Path) -> None:
    for draw in (frames, angles, local_and_camera, ellipsoid_box):
        draw(out)


if __name__ == "__main__":
    plt.switch_backend("agg")
    draw_all(Path(__file__).parents[1] / "figures")
