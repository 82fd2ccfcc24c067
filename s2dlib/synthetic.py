"""The built-in videos: actions plain at a glance but for one brief, small detail.

A striped ground and an actor's shape give the GROUP at any resolution. Within a group, five ACTIONS
differ only in a glyph on the actor that turns from one kind into another, somewhere, some time,
small or large, for a short or a longer while; the actor's body brightens meanwhile, so that a
glance can localise the detail but not identify it. In half of the groups a dark square elsewhere in
the scene, there or not, exchanges two of the actions: that clue must be carried from the glance to
the detail. Nothing but pixels tells the label; the generator's truth (when, where, how large)
stands beside each clip in the CSV.
"""

from __future__ import annotations

import argparse
import csv
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

N_FRAMES, SIDE, FPS = 52, 72, 25
KINDS = ("ring", "cross", "bar", "pole")
GROUPS = [(stripes, actor) for actor in ("tall", "wide") for stripes in ("across", "upright")]
# Kinds (A, B, C) of each group; its actions are A>B, B>A, A>A, B>B, C>C.
GROUP_KINDS = ((0, 2, 1), (3, 1, 2), (1, 0, 3), (2, 3, 0))
CLUE_GROUPS = (0, 1)  # where the dark square exchanges A>A and B>B
MARGIN = 6  # pixels of ground beyond the frame, for the camera's shake


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Ranges of what is drawn at random, in pixels and frames of the written video."""

    border: float = 8.0  # the actor stays this far inside
    travel: float = 22.0  # how far it goes, at most, along each axis
    size: tuple[float, float] = (8.0, 20.0)  # of the glyph, log-uniform
    duration: tuple[float, float] = (5.0, 21.0)  # half of the time it is seen, log-uniform
    time_border: float = 5.0  # its middle stays this far from both ends
    clue: bool = True


SCENES = {
    "main": Scene(),
    # Large, long and centred: where DNet first learns the glyphs, as others start from ImageNet.
    "closeups": Scene(
        border=25, travel=8, size=(13, 20), duration=(11, 21), time_border=17, clue=False
    ),
}
SPLITS = {  # split of the CSV -> scene, clips, seed
    "train": ("main", 3000, 1000),
    "val": ("main", 400, 999),
    "test": ("main", 1000, 777),
    "closeups": ("closeups", 1500, 500),
}


def class_names() -> list[str]:
    """The 20 classes, group by group: "across tall ring>bar" and so on."""
    return [
        f"{stripes} {actor} {KINDS[a]}>{KINDS[b]}"
        for (stripes, actor), kinds in zip(GROUPS, GROUP_KINDS, strict=True)
        for a, b in actions(kinds)
    ]


def actions(kinds: tuple[int, int, int]) -> list[tuple[int, int]]:
    """The five pairs (kind before, kind after) of a group."""
    A, B, C = kinds
    return [(A, B), (B, A), (A, A), (B, B), (C, C)]


def glyph(kind: int, dy: np.ndarray, dx: np.ndarray, size: float) -> np.ndarray:
    """Coverage in [0, 1] of a glyph around (0, 0). dy: (h, 1); dx: (1, w). Returns (h, w)."""
    width, far = 0.24 * size, np.float64(99)
    if kind == 0:
        distance = np.abs(np.hypot(dy, dx) - (size - width) / 2)
    elif kind == 1:
        inside = np.maximum(np.abs(dy), np.abs(dx)) < size / 2
        distance = np.where(inside, np.minimum(np.abs(dy), np.abs(dx)), far)
    elif kind == 2:
        distance = np.where(np.abs(dx) < size / 2, np.abs(dy), far)
    else:
        distance = np.where(np.abs(dy) < size / 2, np.abs(dx), far)
    return np.clip(0.5 + width / 2 - distance, 0, 1)


def paint(frame: np.ndarray, centre: np.ndarray, radius: int, value: float, coverage) -> None:  # noqa: ANN001
    """Blend a value into the patch around a centre, in place; `coverage(dy, dx)` gives (h, w)."""
    low = np.clip(centre.astype(int) - radius, 0, SIDE)
    high = np.clip(centre.astype(int) + radius + 1, 0, SIDE)
    if (high <= low).any():
        return
    dy = np.arange(low[0], high[0])[:, None] - centre[0]
    dx = np.arange(low[1], high[1])[None] - centre[1]
    patch = frame[low[0] : high[0], low[1] : high[1]]
    patch += coverage(dy, dx) * (value - patch)


def render(
    label: int, scene: Scene, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """One clip of a class.

    Returns:
        Gray frames, uint8 (T, H, W), and the truth: middle (frame) and duration (frames) of the
        detail, its size (pixels) and its place y, x at the middle (pixels).
    """
    group, action = divmod(label, 5)
    upright, wide = group % 2, group // 2
    clue = scene.clue and rng.random() < 0.5
    if clue and group in CLUE_GROUPS and action in (2, 3):
        action = 5 - action
    before, after = actions(GROUP_KINDS[group])[action]

    # Camera shake, ground, light.
    shake = np.cumsum(rng.normal(0, 0.4, (N_FRAMES, 2)), axis=0)
    shake = np.clip(shake - shake.mean(axis=0), -MARGIN, MARGIN).round().astype(int)  # (T, 2)
    angle = np.deg2rad(90 * (1 - upright) + rng.uniform(-8, 8))
    rows, columns = np.mgrid[0 : SIDE + 2 * MARGIN, 0 : SIDE + 2 * MARGIN]
    phase = (np.sin(angle) * rows + np.cos(angle) * columns) * 2 * np.pi / rng.uniform(14, 22)
    ground = rng.uniform(60, 120) + rng.uniform(6, 14) * np.cos(phase + rng.uniform(0, 2 * np.pi))
    light = rng.uniform(0.8, 1.15)

    # The actor's path: a line with a slow wave. The detail lies on it.
    t = np.linspace(0, 1, N_FRAMES)[:, None]
    inside = (scene.border, SIDE - scene.border)
    start = rng.uniform(*inside, 2)
    end = np.clip(start + rng.uniform(-scene.travel, scene.travel, 2), *inside)
    wave = np.sin(2 * np.pi * (t * rng.uniform(1, 2) + rng.random(2)))
    path = start + (end - start) * t - shake + 2 * wave  # (T, 2)
    middle = rng.uniform(scene.time_border, N_FRAMES - scene.time_border)
    duration = np.exp(rng.uniform(*np.log(scene.duration)))
    size = np.exp(rng.uniform(*np.log(scene.size)))
    radii = np.array([12.0, 6.5] if not wide else [6.5, 12.0]) * rng.uniform(0.9, 1.15)
    body = rng.uniform(30, 60)

    since = np.arange(N_FRAMES) - middle  # frames from the middle of the detail
    brighter = 60 * np.exp(-((since / max(5.5, duration / 2)) ** 2))  # (T,)
    seen = np.minimum(1, 1.25 * np.exp(-((since / (0.55 * duration)) ** 2)))  # (T,)
    clue_at = far_from(path + shake, rng) if clue else None

    frames = np.empty((N_FRAMES, SIDE, SIDE), np.float32)
    for i, frame in enumerate(frames):
        top, left = MARGIN + shake[i]
        frame[:] = ground[top : top + SIDE, left : left + SIDE]
        paint(
            frame, path[i], 17, body + brighter[i],
            lambda dy, dx: np.clip(8.5 - 8 * np.hypot(dy / radii[0], dx / radii[1]), 0, 1),
        )  # fmt: skip
        if clue_at is not None:
            paint(frame, clue_at - shake[i], 6, 10, lambda dy, dx: np.ones((dy.size, dx.size)))
        if abs(since[i]) <= duration:
            kind, opacity = before if since[i] < 0 else after, seen[i]
            paint(
                frame, path[i], int(size / 2) + 3, 235,
                lambda dy, dx, k=kind, o=opacity: o * glyph(k, dy, dx, size),
            )  # fmt: skip
    frames = frames * np.float32(light) + rng.standard_normal(frames.shape, dtype=np.float32) * 5
    y, x = path[int(middle)]
    truth = {"t": middle, "duration": duration, "size": size, "y": y, "x": x}
    return frames.clip(0, 255).astype(np.uint8), truth


def far_from(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A place for the clue, of 30 tries the farthest from the actor's path. (T, 2) -> (2,)"""
    places = rng.uniform(11, SIDE - 11, (30, 2))
    distance = np.abs(path[None] - places[:, None]).max(axis=2).min(axis=1)  # (30,)
    return places[distance.argmax()]


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write gray frames as H.264, atomically. frames: (T, H, W) uint8"""
    partial = path.with_suffix(".part.mp4")
    with av.open(partial, "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "crf": "26"}
        )
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    os.replace(partial, path)


def write_clip(job: tuple[Path, int, str, int]) -> dict[str, float]:
    """Render and write one clip; a clip that is there is rendered again only for its truth."""
    path, label, scene, seed = job
    frames, truth = render(label, SCENES[scene], np.random.default_rng(seed))
    if not path.exists():
        write_video(path, frames)
    return truth


def write_dataset(out: Path, share: float = 1.0) -> Path:
    """Write all clips and, last, the CSV: path,label,label_name,split and the truth.

    Args:
        out: folder to write to.
        share: of the clips of each split, for trials.

    Returns:
        The CSV.
    """
    names, rows, jobs = class_names(), [], []
    for split, (scene, n, seed) in SPLITS.items():
        n = max(len(names), round(n * share))
        (out / split).mkdir(parents=True, exist_ok=True)
        labels = np.random.default_rng(seed).permutation(np.arange(n) % len(names))
        for i, label in enumerate(labels.tolist()):
            path = Path(split) / f"{i:05d}.mp4"
            rows.append({"path": path, "label": label, "label_name": names[label], "split": split})
            jobs.append((out / path, label, scene, seed * 1_000_000 + i))
    with ProcessPoolExecutor() as pool:
        truths = list(pool.map(write_clip, jobs, chunksize=32))
    target = out / f"{out.name}.csv"
    partial = target.with_suffix(".part")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *truths[0]])
        writer.writeheader()
        for row, truth in zip(rows, truths, strict=True):
            writer.writerow(row | {name: f"{value:.2f}" for name, value in truth.items()})
    os.replace(partial, target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the synthetic videos.")
    parser.add_argument("--out", type=Path, default=Path("data/synthetic"))
    parser.add_argument("--share", type=float, default=1.0, help="share of the clips to write")
    arguments = parser.parse_args()
    print(write_dataset(arguments.out, arguments.share))
