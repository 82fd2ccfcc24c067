"""The built-in videos: actions plain at a glance but for one brief, small detail.

The direction of the ground's stripes and an actor's shape give the GROUP at any resolution. Within
a group, two or three ACTIONS differ only in a glyph on the actor, of one kind and then of another
or the same, somewhere, some time, small or large, for a short or a longer while; the actor's body
brightens meanwhile, so that a glance can localise the detail but not identify it. In half of the
groups a dark strip at the side of the scene, there or not, exchanges two of the actions: that clue
must be carried from the glance to the detail. Nothing but pixels tells the label; the generator's
truth (when, where, how large) stands beside each clip in the CSV.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s2dlib.data.files import write_atomic, write_video

KINDS = ("bar", "pole", "ring")
# The actions of either actor: kind before, kind after. So there are 4 groups of 2 and 4 of 3.
ACTIONS = {"tall": ((0, 1), (1, 0)), "wide": ((0, 0), (1, 1), (2, 2))}
RADII = {"tall": (12.0, 6.5), "wide": (6.5, 12.0)}  # of an actor along y, x; of 72 pixels
STRIPES = {"upright": 0, "rising": 45, "across": 90, "falling": 135}  # degrees
CLUE_ACTOR = "wide"  # whose first two actions are exchanged where there is a dark strip
STRIP = (8, 13, 44)  # its near and far edge, from the frame's side, and its length; of 72 pixels
CLASSES = [(s, actor, pair) for s in STRIPES for actor in ACTIONS for pair in ACTIONS[actor]]  # 20


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Ranges of what is drawn at random, in pixels and frames of the written video."""

    side: int = 72  # height and width of the video
    n_frames: int = 52
    channels: int = 1  # 1: gray; 3: colour
    border: float = 8.0  # the actor stays this far inside
    travel: float = 22.0  # how far it goes, at most, along each axis
    size: tuple[float, float] = (5.5, 14.0)  # of the glyph, log-uniform
    duration: tuple[float, float] = (4.0, 16.0)  # half of the time it is seen, log-uniform
    time_border: float = 5.0  # its middle stays this far from both ends
    clue: float = 0.3  # share of the clips of CLUE_ACTOR that have the strip
    n_distractors: int = 0  # glyphs of the same kinds elsewhere, which mean nothing
    noise: float = 5.0  # standard deviation, of 255

    @property
    def scale(self) -> float:
        """Pixels of this video in a pixel of one of 72 a side: all that has no range of its own."""
        return self.side / 72


_MAIN = Scene()
# Large, long and centred: where DNet first learns the glyphs, as others start from ImageNet.
_CLOSEUPS = replace(
    _MAIN, border=25, travel=8, size=(13, 20), duration=(11, 21), time_border=17, clue=0
)
_LARGE = Scene(
    side=256, n_frames=104, channels=3, border=24, travel=80, size=(9, 28), duration=(6, 26),
    time_border=8,
)  # fmt: skip
_LARGE_CLOSEUPS = replace(
    _LARGE, border=90, travel=28, size=(18, 36), duration=(12, 36), time_border=34, clue=0
)
_SMALL = {"main": _MAIN, "closeups": _CLOSEUPS}
DATASETS = {
    "synthetic": _SMALL,
    # Harder: two more glyphs in each clip, away from the actor.
    "synthetic-distractors": {k: replace(v, n_distractors=2) for k, v in _SMALL.items()},
    "synthetic-large": {"main": _LARGE, "closeups": _LARGE_CLOSEUPS},
}
SPLITS = {  # split of the CSV -> scene, clips, seed
    "train": ("main", 3000, 1000),
    "val": ("main", 400, 999),
    "test": ("main", 1000, 20261122),
    "closeups": ("closeups", 1500, 500),
}


def class_names() -> list[str]:
    """The 20 classes, group by group: "upright tall bar>pole" and so on."""
    return [f"{stripes} {actor} {KINDS[a]}>{KINDS[b]}" for stripes, actor, (a, b) in CLASSES]


def glyph(kind: int, dy: np.ndarray, dx: np.ndarray, size: float) -> np.ndarray:
    """Coverage in [0, 1] of a glyph around (0, 0). dy: (h, 1); dx: (1, w). Returns (h, w)."""
    width, far = 0.24 * size, np.float64(99)
    if KINDS[kind] == "bar":
        distance = np.where(np.abs(dx) < size / 2, np.abs(dy), far)
    elif KINDS[kind] == "pole":
        distance = np.where(np.abs(dy) < size / 2, np.abs(dx), far)
    else:
        distance = np.abs(np.hypot(dy, dx) - (size - width) / 2)
    return np.clip(0.5 + width / 2 - distance, 0, 1)


@dataclass(frozen=True)
class Event:
    """A glyph that comes, turns from one kind into another at `middle`, and goes."""

    kinds: tuple[int, int]
    middle: float  # frame
    duration: float  # frames
    size: float  # pixels

    def draw(self, frame: np.ndarray, i: int, at: np.ndarray) -> None:
        """Draw it into frame i, in place. at: (y, x)"""
        since = i - self.middle
        if abs(since) > self.duration:
            return
        opacity = min(1, 1.25 * np.exp(-((since / (0.55 * self.duration)) ** 2)))
        kind = self.kinds[int(since >= 0)]
        paint(
            frame, at, int(self.size / 2) + 3, 235,
            lambda dy, dx: opacity * glyph(kind, dy, dx, self.size),
        )  # fmt: skip

    @classmethod
    def random(
        cls, kinds: tuple[int, int], border: float, scene: Scene, rng: np.random.Generator
    ) -> Event:
        """One of the scene's range, its middle `border` frames from both ends or more."""
        middle = rng.uniform(border, scene.n_frames - border)
        duration, size = (np.exp(rng.uniform(*np.log(v))) for v in (scene.duration, scene.size))
        return cls(kinds, middle, duration, size)


def paint(
    frame: np.ndarray,
    centre: np.ndarray,
    radius: int,
    value: float | np.ndarray,
    coverage: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Blend a value or colour into the patch around a centre, in place.

    frame: (H, W, C); centre: (y, x); `coverage(dy, dx)` gives (h, w).
    """
    side = frame.shape[0]
    low = np.clip(centre.astype(int) - radius, 0, side)
    high = np.clip(centre.astype(int) + radius + 1, 0, side)
    if (high <= low).any():
        return
    dy = np.arange(low[0], high[0])[:, None] - centre[0]
    dx = np.arange(low[1], high[1])[None] - centre[1]
    patch = frame[low[0] : high[0], low[1] : high[1]]
    patch += coverage(dy, dx)[..., None] * (value - patch)


def render(
    label: int, scene: Scene, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """One clip of a class.

    Returns:
        Frames, uint8 (T, H, W, C), and the truth: middle t (frame) and duration (frames) of the
        detail, its size (pixels), its place y, x at the middle (pixels), and whether the clue is
        there (1 or 0).
    """
    stripes, actor, pair = CLASSES[label]
    unit, N, side = scene.scale, scene.n_frames, scene.side
    clue = actor == CLUE_ACTOR and rng.random() < scene.clue
    if clue:
        first, second, *_ = ACTIONS[actor]
        pair = {first: second, second: first}.get(pair, pair)

    margin = round(6 * unit)  # of ground beyond the frame
    shake = np.cumsum(rng.normal(0, 0.4 * unit * (52 / N) ** 0.5, (N, 2)), axis=0)
    shake = np.clip(shake - shake.mean(axis=0), -margin, margin).round().astype(int)  # (T, 2)
    ground = striped_ground(STRIPES[stripes], side + 2 * margin, scene, rng)  # (H, W, C)
    light = rng.uniform(0.8, 1.15)
    path = actor_path(shake, scene, rng)  # (T, 2); the detail lies on it
    event = Event.random(pair, scene.time_border, scene, rng)
    radii = unit * np.array(RADII[actor]) * rng.uniform(0.9, 1.15)  # (2,)
    body, colour = rng.uniform(30, 55), tint(scene, rng)
    since = np.arange(N) - event.middle
    brighter = 90 * np.exp(-((since / max(5.5 * N / 52, event.duration / 2)) ** 2))  # (T,)
    strip = strip_away_from(path, scene, rng) if clue else None
    n = scene.n_distractors
    distractors = [random_distractor(path + shake, scene, rng) for _ in range(n)]

    frames = np.empty((N, side, side, scene.channels), np.float32)
    for i, frame in enumerate(frames):
        top, left = margin + shake[i]
        frame[:] = ground[top : top + side, left : left + side]
        paint(
            frame, path[i], int(15 * unit) + 2, (body + brighter[i]) * colour,
            lambda dy, dx: np.clip(8.5 - 8 * np.hypot(dy / radii[0], dx / radii[1]), 0, 1),
        )  # fmt: skip
        if strip is not None:
            frame[strip] = 10
        for other, at in distractors:
            other.draw(frame, i, at - shake[i])
        event.draw(frame, i, path[i])
    frames *= np.float32(light)
    frames += rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(scene.noise)
    y, x = path[int(event.middle)]
    truth = {"t": event.middle, "duration": event.duration, "size": event.size, "y": y, "x": x}
    return frames.clip(0, 255).astype(np.uint8), truth | {"clue": float(clue)}


def striped_ground(degrees: float, side: int, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Soft stripes, nearly in a direction. (side, side, C)"""
    angle = np.deg2rad(degrees + rng.uniform(-8, 8))
    rows, columns = np.mgrid[0:side, 0:side] / scene.scale
    phase = (np.sin(angle) * rows + np.cos(angle) * columns) * 2 * np.pi / rng.uniform(14, 22)
    ground = rng.uniform(65, 120) + rng.uniform(6, 14) * np.cos(phase + rng.uniform(0, 2 * np.pi))
    return ground[..., None] * tint(scene, rng)


def actor_path(shake: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A line with a slow wave, as the shaken camera (T, 2) sees it: y, x by frame. (T, 2)"""
    t = np.linspace(0, 1, scene.n_frames)[:, None]
    inside = (scene.border, scene.side - scene.border)
    start = rng.uniform(*inside, 2)
    end = np.clip(start + rng.uniform(-scene.travel, scene.travel, 2), *inside)
    wave = np.sin(2 * np.pi * (t * rng.uniform(1, 2) + rng.random(2)))
    return start + (end - start) * t - shake + 2 * scene.scale * wave


def tint(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A colour of mean 1; of a gray scene, 1. (C,)"""
    if scene.channels == 1:
        return np.ones(1)
    colour = rng.uniform(0.75, 1.25, 3)
    return colour / colour.mean()


def strip_away_from(
    path: np.ndarray, scene: Scene, rng: np.random.Generator
) -> tuple[slice, slice]:
    """The clue: rows and columns of a strip at the side farthest from the path (T, 2)."""
    near, far, length = (round(v * scene.scale) for v in STRIP)
    start = int(rng.integers(near, scene.side - near - length + 1))
    along, low = slice(start, start + length), slice(near, far)
    high = slice(scene.side - far, scene.side - near)
    room = (*path.min(axis=0), *(scene.side - path.max(axis=0)))  # above, left, below, right
    sides = ((low, along), (along, low), (high, along), (along, high))
    return sides[int(np.argmax(room))]


def random_distractor(
    path: np.ndarray, scene: Scene, rng: np.random.Generator
) -> tuple[Event, np.ndarray]:
    """A glyph that is not the detail, and its place: of 30, the farthest from the path (T, 2)."""
    event = Event.random(tuple(rng.integers(len(KINDS), size=2)), 0, scene, rng)
    border = 11 * scene.scale
    places = rng.uniform(border, scene.side - border, (30, 2))
    distance = np.abs(path[None] - places[:, None]).max(axis=2).min(axis=1)  # (30,)
    return event, places[distance.argmax()]


def write_clip(job: tuple[Path, int, Scene, int]) -> dict[str, float]:
    """Render and write one clip; a clip that is there is rendered again only for its truth."""
    path, label, scene, seed = job
    frames, truth = render(label, scene, np.random.default_rng(seed))
    if not path.exists():
        write_video(path, frames)
    return truth | {"side": scene.side}


def write_dataset(out: Path, dataset: str = "synthetic", share: float = 1.0) -> Path:
    """Write all clips and, last, the CSV: path,label,label_name,split and the truth.

    Args:
        out: folder to write to.
        dataset: a key of DATASETS.
        share: of the clips of each split, for trials.

    Returns:
        The CSV.
    """
    import pandas as pd

    names, rows, jobs = class_names(), [], []
    for split, (scene, n, seed) in SPLITS.items():
        n = max(len(names), round(n * share))
        labels = np.random.default_rng(seed).permutation(np.arange(n) % len(names))
        for i, label in enumerate(labels.tolist()):
            path = Path(split) / f"{i:05d}.mp4"
            rows.append({"path": path, "label": label, "label_name": names[label], "split": split})
            jobs.append((out / path, label, DATASETS[dataset][scene], seed * 1_000_000 + i))
    with ProcessPoolExecutor() as pool:
        written = pool.map(write_clip, jobs, chunksize=32)
        truths = list(tqdm(written, total=len(jobs), unit=" clips", disable=None))
    for row, truth in zip(rows, truths, strict=True):
        row |= {name: f"{value:.6g}" for name, value in truth.items()}
    return write_atomic(
        out / f"{out.name}.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\r\n")
    )
