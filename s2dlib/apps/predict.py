"""A trained model on anyone's videos: the most probable actions, the picture, the film.

    s2d predict video.mp4 --checkpoint results/models/synthetic

One video gets its top-5 before and after DNet, the picture of Fig. 4 and a film of what DNet sees
beside the clip; several, or a folder, get a row each in predictions.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from s2dlib.data.clips import load_views
from s2dlib.data.decoding import ClipError
from s2dlib.data.files import FPS, write_atomic, write_video
from s2dlib.data.index import IMAGES, list_videos
from s2dlib.model import Output, S2DNet
from s2dlib.report import figures
from s2dlib.report import film as films

TABLE = "predictions.csv"
HEADINGS = {
    "action": "after DNet",
    "probability": "",
    "snet_action": "before: SNet",
    "snet_probability": "",
}


def find_videos(paths: Sequence[str | Path]) -> list[Path]:
    """Videos named one by one, and those below folders; a folder of frames is a video.

    Raises:
        FileNotFoundError: a path is not there, or a folder holds no video.
    """
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        below = [path / name for name in list_videos(path)] if path.is_dir() else []
        is_frames = path.is_dir() and any(p.suffix.lower() in IMAGES for p in path.iterdir())
        if path.is_dir() and not below and not is_frames:
            raise FileNotFoundError(f"{path}: expected videos below this folder, there are none")
        found += below or [path]
    return found


@torch.no_grad()
def predict_clip(model: S2DNet, path: str | Path, device: str = "cpu") -> tuple[Tensor, Output]:
    """What a model makes of a video's test clip.

    Args:
        model: in evaluation mode, with its record (S2DNet.from_pretrained).

    Returns:
        The clip's views, uint8 (V, C, T, H, W), and the output for them (B = V).

    Raises:
        ClipError: the video cannot be read.
    """
    views = load_views(path, model.data)
    return views, model.to(device)(views.to(device))


def top_predictions(model: S2DNet, out: Output, top: int = 5) -> pd.DataFrame:
    """The most probable actions of a video, before and after DNet, means over its views (Sec. 4.1).

    Returns:
        A row a rank: action and probability (p-hat * s), snet_action and snet_probability (p). A
        network alone has but one of the two verdicts, in action and probability.
    """
    verdicts = {"": cast(Tensor, out.scores)}
    if out.logits is not None and out.detail_logits is not None:
        verdicts["snet_"] = out.logits.float().softmax(dim=1)
    table = pd.DataFrame(index=pd.RangeIndex(1, min(top, len(model.classes)) + 1, name="rank"))
    for name, scores in verdicts.items():
        values, at = scores.float().mean(dim=0).cpu().topk(len(table))  # (top,)
        table[f"{name}action"] = [model.classes[n] for n in at.tolist()]
        table[f"{name}probability"] = values.tolist()
    return table


def draw(model: S2DNet, views: Tensor, out: Output, stem: Path, film: str = "mp4") -> list[Path]:
    """Write the picture of Fig. 4 and the film, of the centre view. Returns their paths.

    Args:
        stem: of the files' names, with their folder.
        film: mp4 or gif.

    Raises:
        ValueError: the model has no theta to draw: one of its networks is missing.
    """
    if model.snet is None or model.dnet is None:
        raise ValueError("no picture of a single network: it looks nowhere by itself")
    i = len(views) // 2
    figure = figures.figure4(views[i], out, model.classes, None, i=i)
    paths = [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.{film}")]
    figure.savefig(paths[0], dpi=90)
    plt.close(figure)
    height = 144 if film == "gif" else 224  # noise makes a large gif
    shots = films.film(views[i], out, i=i, height=height).numpy()
    write_video(paths[1], shots, FPS / model.data.frame_stride)
    return paths


def predictions(
    model: S2DNet, paths: Sequence[Path], top: int = 5, device: str = "cpu"
) -> Iterator[tuple[Path, dict[str, object], tuple[Tensor, Output] | None]]:
    """Each video in turn: its path, its row of predictions.csv, and what predict_clip gave.

    A row holds path, error (empty, or why the video cannot be read; then nothing else), frames,
    action_1, probability_1, ..., snet_action_1, ..., and theta's six, means over the detail frames.
    """
    for path in paths:
        row: dict[str, object] = {"path": str(path), "error": ""}
        try:
            views, out = predict_clip(model, path, device)
        except ClipError as error:
            yield path, row | {"error": error.cause}, None
            continue
        row["frames"] = views.shape[2]
        for rank, line in top_predictions(model, out, top).iterrows():
            row |= {f"{name}_{rank}": value for name, value in line.items()}
        if out.theta is not None:
            row |= {name: value.mean().item() for name, value in vars(out.theta).items()}
        yield path, row, (views, out)


def write_table(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Write predictions.csv, whole or not at all."""
    write_atomic(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g"))


def predict_videos(
    videos: Sequence[str | Path],
    checkpoint: str | Path,
    out: Path,
    top: int = 5,
    film: str = "mp4",
    pictures: bool = False,
) -> int:
    """`s2d predict`: one video is printed and drawn, several get a table.

    Args:
        videos: files, or folders of videos.
        out: folder to write to.
        film: mp4 or gif.
        pictures: whether each of several videos is drawn too.

    Returns:
        The exit status: 1 where a video could not be read.
    """
    if top < 1:
        raise ValueError(f"--top must be >= 1, got {top}")
    paths = find_videos(videos)
    model = S2DNet.from_pretrained(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    alone, both = len(paths) == 1, model.snet is not None and model.dnet is not None
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    written: list[Path] = []
    bar = tqdm(predictions(model, paths, top, device), total=len(paths), disable=alone)
    for path, row, seen in bar:
        rows.append(row)
        if seen is None:
            bar.write(f"{path}: {row['error']}", file=sys.stderr)
            continue
        if alone:
            table = top_predictions(model, seen[1], top).round(3).rename(columns=HEADINGS)
            print(f"{path}: {row['frames']} frames", table.rename_axis(None).to_string(), sep="\n")
        if both and (alone or pictures):
            name = path.stem if alone else f"{len(rows):05d}-{path.stem}"
            views, output = seen
            written += draw(model, views, output, out / name, film)
    if not alone:
        write_table(rows, out / TABLE)
        written = [out / TABLE, *written]
    failed = sum(bool(row["error"]) for row in rows)
    if failed and not alone:
        print(f"{failed} of {len(rows)} videos could not be read: their rows say why")
    if written:
        print("written:", ", ".join(map(str, written[:4])), "..." * (len(written) > 4))
    return int(failed > 0)
