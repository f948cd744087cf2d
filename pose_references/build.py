"""Build the reference face: 68 points, head ellipsoid and dense mesh, in the 300W-LP face frame.

    python -m img2pose_edge.pose_references.build --labels TRAIN/labels.jsonl --canonical canonical_face.npz

- 68 points: structure from known motion. Every ``landmarks68`` record gives 68 annotated pixels and a
  rotation; each face's translation and each 3-D point are solved in turn by robust linear least squares.
- Head ellipsoid: the one whose projected box best matches the boxes people drew (WIDER FACE, plus
  detector boxes for large and turned heads), so that a face's box follows from its pose.
- Dense mesh: MediaPipe's canonical face, warped by a thin-plate spline onto the 68 points.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from img2pose_edge.pose_references import MIRROR_5, five_points
from scipy.interpolate import RBFInterpolator
from scipy.optimize import least_squares

from img2pose_edge import geometry

# iBUG landmarks of the left half and their mirror images (the midline maps to itself).
MIRROR_68 = np.array(
    [
        *(*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *(*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)),
    ]
)


def read_faces(labels: Path) -> list[dict]:
    """Faces of ``labels.jsonl`` that carry angles, each with its image's camera as ``K``."""
    faces = []
    with labels.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            camera = geometry.default_intrinsics(record["width"], record["height"])
            for face in record["faces"]:
                if "angles" in face and not face.get("ignore"):
                    faces.append({**face, "K": camera})
    return faces


def solve_pose(
    points: np.ndarray,
    pixels: np.ndarray,
    local: np.ndarray,
    cameras: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Camera rotations and translations of faces with known local rotations, (F, 3, 3) and (F, 3)."""
    center = pixels.mean(1)
    for _ in range(3):  # the ray to the face depends on the translation, a little
        rotation = geometry.ray_rotation(center, cameras) @ local
        translation = geometry.solve_translation(points, pixels, rotation, cameras, weights)
        center = geometry.camera_to_local(rotation, translation, cameras)[0]
    return rotation, translation


def trust(
    points: np.ndarray, pixels: np.ndarray, rotation: np.ndarray, translation: np.ndarray, cameras: np.ndarray
) -> np.ndarray:
    """(F, P) robust weights (Cauchy, 5 % of a face unit) of pixels by how well the points explain them."""
    size = np.sqrt(cameras[:, 0, 0] * cameras[:, 1, 1]) / translation[:, 2]
    error = (geometry.project(points, rotation, translation, cameras) - pixels) / size[:, None, None]
    return 1 / (1 + (np.linalg.norm(error, axis=-1) / 0.05) ** 2)


def triangulate(
    pixels: np.ndarray, rotation: np.ndarray, translation: np.ndarray, cameras: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(P, 3) points that pixels (F, P, 2) of faces of known pose show, by weighted linear least squares."""
    # A pixel (x, y) gives two equations linear in the point: (r1 - x r3) X = x tz - tx, and so for y.
    xy = geometry.pixel_rays(pixels, cameras[:, None])[..., :2]
    rows = rotation[:, None, :2, :] - xy[..., None] * rotation[:, None, 2:, :]
    target = xy * translation[:, None, 2:] - translation[:, None, :2]
    # Divided by depth the residual is in normalized image units; near and far faces then count the same.
    size = np.sqrt(cameras[:, 0, 0] * cameras[:, 1, 1]) / translation[:, 2]
    w = weights / translation[:, None, 2] ** 2 * size[:, None] ** 2
    normal = np.einsum("fj,fjki,fjkl->jil", w, rows, rows)
    right = np.einsum("fj,fjki,fjk->ji", w, rows, target)
    return np.linalg.solve(normal, right[..., None])[..., 0]


def mirrored_mean(points: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """(P, 3) points made symmetric."""
    return (points + points[mirror] * [-1, 1, 1]) / 2


def fit_detector_points(points: np.ndarray, faces: list[dict], rounds: int = 10) -> np.ndarray:
    """(5, 3) points that a detector's five landmarks show, on faces whose pose the 68 annotated ones give.

    They are not quite the means of the 68: a detector's nose lies lower and its mouth corners higher, which
    would turn a face solved from them up by some 5 degrees.
    """
    chosen = [f for f in faces if "landmarks68" in f and "landmarks" in f and f["spread"] < 6]
    pixels = np.array([f["landmarks"] for f in chosen])
    cameras = np.array([f["K"] for f in chosen])
    local = geometry.angles_to_matrix(np.array([f["angles"] for f in chosen]))
    pose = solve_pose(points, np.array([f["landmarks68"] for f in chosen]), local, cameras)
    five = five_points(points)
    for _ in range(rounds):
        weights = trust(five, pixels, *pose, cameras)
        five = mirrored_mean(triangulate(pixels, *pose, cameras, weights), MIRROR_5)
    return five


def structure_from_known_motion(
    initial: np.ndarray, pixels: np.ndarray, local: np.ndarray, cameras: np.ndarray, rounds: int = 30
) -> np.ndarray:
    """68 symmetric 3-D points from annotated pixels (F, 68, 2) and local rotations (F, 3, 3).

    Scale and origin, which pictures do not show, are those of ``initial`` (68, 3).
    """
    points = initial.copy()
    inner = np.r_[17:68]  # the jaw line's landmarks slide with the view: they do not place the face
    weights = np.ones(pixels.shape[:2])
    for _ in range(rounds):
        placing = np.zeros_like(weights)
        placing[:, inner] = weights[:, inner]
        rotation, translation = solve_pose(points, pixels, local, cameras, placing)
        weights = trust(points, pixels, rotation, translation, cameras)
        points = mirrored_mean(triangulate(pixels, rotation, translation, cameras, weights), MIRROR_68)
        scale = np.sqrt(np.var(initial[inner], 0).sum() / np.var(points[inner], 0).sum())
        shift = initial[inner].mean(0) - scale * points[inner].mean(0)
        points = scale * points + [0, shift[1], shift[2]]
    return points


def fit_ellipsoid(points: np.ndarray, faces: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Centre (3,) and semi-axes (3,) of the ellipsoid whose projection best gives the annotated boxes."""
    five = five_points(points)
    chosen = [f for f in faces if "landmarks" in f and f["spread"] < 8 and box_size(f) > 24]
    local = geometry.angles_to_matrix(np.array([f["angles"] for f in chosen]))
    cameras = np.array([f["K"] for f in chosen])
    boxes = np.array([f["box"] for f in chosen])
    rotation, translation = solve_pose(five, np.array([f["landmarks"] for f in chosen]), local, cameras)
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))[:, None]
    yaw = np.abs([f["angles"][1] for f in chosen])
    balance = 1 / np.sqrt(np.bincount((yaw // 15).astype(int))[(yaw // 15).astype(int)])[:, None]

    def residual(x: np.ndarray) -> np.ndarray:
        box = geometry.project_ellipsoid_box(
            geometry.ellipsoid(np.array([0, x[0], x[1]]), x[2:]), rotation, translation, cameras
        )
        return (balance * (box - boxes) / sides).ravel()

    solution = least_squares(residual, [0.0, 0.2, 0.75, 1.0, 0.8], loss="soft_l1", f_scale=0.01).x
    return np.array([0, *solution[:2]]), np.abs(solution[2:])


def box_size(face: dict) -> float:
    x1, y1, x2, y2 = face["box"]
    return float(np.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0)))


def build(labels: Path, canonical: Path) -> dict[str, np.ndarray]:
    """The arrays of ``reference_face.npz``, float32 in face units (triangles int32)."""
    faces = read_faces(labels)
    annotated = [f for f in faces if "landmarks68" in f and f["spread"] < 6]
    mesh = np.load(canonical)
    vertices, index = mesh["vertices"].astype(float), mesh["index68"]
    points = structure_from_known_motion(
        vertices[index],
        np.array([f["landmarks68"] for f in annotated]),
        geometry.angles_to_matrix(np.array([f["angles"] for f in annotated])),
        np.array([f["K"] for f in annotated]),
    )
    center, axes = fit_ellipsoid(points, faces)
    # The canonical mesh knows the jaw line only roughly, and two landmarks may share a vertex there.
    inner = np.r_[17:60]
    anchors, first = np.unique(index[inner], return_index=True)
    warp = RBFInterpolator(
        vertices[anchors], points[inner][first] - vertices[anchors], kernel="thin_plate_spline", smoothing=1e-3
    )
    return {
        "points68": points.astype(np.float32),
        "points5": (five_points(points)).astype(np.float32),
        "detector_points5": fit_detector_points(points, faces).astype(np.float32),
        "ellipsoid_center": center.astype(np.float32),
        "ellipsoid_axes": axes.astype(np.float32),
        "vertices": (vertices + warp(vertices)).astype(np.float32),
        "triangles": mesh["triangles"].astype(np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, help="labels.jsonl with landmarks68 records")
    parser.add_argument("--canonical", type=Path, required=True, help="canonical face: vertices, triangles, index68")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("reference_face.npz"))
    options = parser.parse_args()
    arrays = build(options.labels, options.canonical)
    np.savez_compressed(options.out, **arrays)  # type: ignore[arg-type]
    print(f"wrote {options.out}: " + ", ".join(f"{k} {v.shape}" for k, v in arrays.items()))


if __name__ == "__main__":
    main()
