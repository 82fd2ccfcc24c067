"""`s2d predict`: the most probable actions in anyone's videos, the picture, the film, the table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor
from tqdm import tqdm

from s2dlib.apps.prediction_table import digest_of, open_table, unpredicted
from s2dlib.data.clips import load_views
from s2dlib.data.files import (
    FPS,
    MADE,
    as_text,
    atomic_path,
    check_output,
    contains,
    file_state,
    write_video,
)
from s2dlib.data.frames import IMAGES
from s2dlib.data.listing import list_folder
from s2dlib.data.rows import RowTable
from s2dlib.data.sources import cause_of
from s2dlib.model import Output, S2DNet

if TYPE_CHECKING:
    from pandas import DataFrame

PICTURE, FILM = ".s2d.png", ".s2d."  # ends of their names, after the video's own; mp4 or gif
HEADINGS = {
    "action": "after DNet",
    "probability": "",
    "snet_action": "before: SNet",
    "snet_probability": "",
}


def find_videos(paths: Sequence[str | Path]) -> list[Path]:
    """Videos named one by one, and those below folders, each once; a folder of frames is a video.

    Films that draw has left below a folder are none of its videos; what else is left out is told.

    Raises:
        FileNotFoundError: a path is not there, or a folder holds no video.
    """
    found: dict[Path, Path] = {}  # by absolute path
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{as_text(path)}: no such file or folder")
        listed, notes = list_folder(path) if path.is_dir() else ([], [])
        below = [video for name in listed if not _is_drawn(video := path / name)]
        for note in notes * bool(below):
            print(f"{as_text(path)}: {note}", file=sys.stderr)
        if path.is_dir() and not below and not _holds_frames(path):
            words = "expected videos below this folder, there are none"
            raise FileNotFoundError(f"{as_text(path)}: {words}")
        found |= {video.absolute(): video for video in below or [path]}
    return list(found.values())


def _is_drawn(path: Path) -> bool:
    """Whether draw has written a film, or all pictures of a folder."""
    if path.is_dir():
        return not _holds_frames(path)
    with suppress(OSError):  # what cannot be read here is a video, whose row will say so
        return FILM in path.name and path.is_file() and contains(path, MADE)
    return False


def _holds_frames(folder: Path) -> bool:
    """Whether a folder has images other than pictures by draw."""
    images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES)
    return any(not p.name.endswith(PICTURE) for p in images)


@torch.no_grad()
def predict_clip(
    model: S2DNet, path: str | Path, device: str = "cpu", timeout: float | None = None
) -> tuple[Tensor, Output]:
    """What a model makes of a video's test clip.

    Args:
        model: in evaluation mode, with its record (S2DNet.from_pretrained).
        timeout: seconds without progress granted to the reader; None: as in training.

    Returns:
        The clip's views, uint8 (V, C, T, H, W), and the output for them (B = V).

    Raises:
        ClipError: the video cannot be read.
    """
    data = model.data if timeout is None else replace(model.data, timeout=timeout)
    views = load_views(path, data)
    return views, model.to(device)(views.to(device))


def top_predictions(model: S2DNet, out: Output, top: int = 5) -> DataFrame:
    """The most probable actions of a video, before and after DNet, means over its views (Sec. 4.1).

    Returns:
        A row a rank: action and probability (p-hat * s), snet_action and snet_probability (p). A
        network alone has but one of the two verdicts, in action and probability.
    """
    import pandas as pd

    columns = _rank_actions(model, out, top)
    index = pd.RangeIndex(1, len(columns["action"]) + 1, name="rank")
    return pd.DataFrame(columns, index=index)


def _rank_actions(model: S2DNet, out: Output, top: int) -> dict[str, list]:
    """The columns of top_predictions."""
    verdicts = {"": cast(Tensor, out.scores)}
    if out.logits is not None and out.detail_logits is not None:
        verdicts["snet_"] = out.logits.float().softmax(dim=1)
    columns: dict[str, list] = {}
    for name, scores in verdicts.items():
        values, at = scores.float().mean(dim=0).cpu().topk(min(top, len(model.classes)))  # (top,)
        columns[f"{name}action"] = [model.classes[n] for n in at.tolist()]
        columns[f"{name}probability"] = values.tolist()
    return columns


def draw(
    model: S2DNet,
    views: Tensor,
    out: Output,
    stem: Path,
    film: str = "mp4",
    inputs: Sequence[Path] = (),
) -> list[Path]:
    """Write the picture of Fig. 4 and the film, of the centre view. Returns their paths.

    Args:
        stem: of the files' names, with their folder: the video's own name.
        film: mp4 or gif.
        inputs: videos that neither may replace.

    Raises:
        ValueError: the model has no theta to draw, since one of its networks is missing, or a file
            in the way is not an earlier picture or film (files.check_output).
    """
    # Matplotlib, seaborn and torchvision: three times what a prediction without pictures needs
    import matplotlib.pyplot as plt

    from s2dlib.report.figures import figure4
    from s2dlib.report.film import film as make_film

    if model.snet is None or model.dnet is None:
        raise ValueError("no picture of a single network: it looks nowhere by itself")
    paths = _ends(stem, film)
    for path in paths:
        check_output(path, inputs)
    i = len(views) // 2
    figure = figure4(views[i], out, model.classes, None, i=i)
    try:
        with atomic_path(paths[0]) as partial:
            figure.savefig(partial, dpi=90, metadata={"Comment": MADE.decode()})
    finally:
        plt.close(figure)
    height = 144 if film == "gif" else 224  # noise makes a large gif
    shots = make_film(views[i], out, i=i, height=height).numpy()
    write_video(paths[1], shots, FPS / model.data.frame_stride, MADE)
    return paths


def _ends(stem: Path, film: str) -> list[Path]:
    """The picture's and the film's path."""
    return [stem.with_name(f"{stem.name}{end}") for end in (PICTURE, f"{FILM}{film}")]


# A video, its row of predictions.csv, and what predict_clip gave, where it gave something.
Prediction: TypeAlias = tuple[Path, dict[str, object], tuple[Tensor, Output] | None]


def predictions(
    model: S2DNet,
    paths: Sequence[Path],
    top: int = 5,
    device: str = "cpu",
    timeout: float | None = None,
    then: Callable[[Path, Tensor, Output], None] | None = None,
) -> Iterator[Prediction]:
    """Each video in turn.

    A row holds columns_of(model, top): path, as files.as_text gives it; error, empty or what went
    wrong; frames; action_1, probability_1, snet_action_1, ...; theta's six, means over the detail
    frames; the model, by a digest; and file_state.

    Args:
        then: called with each video, its views and its output; its error is the row's, too.
    """
    digest = digest_of(model)
    for path in paths:
        row: dict[str, object] = {"path": as_text(path), "error": "", "model": digest}
        row |= file_state(path)
        seen = None
        try:
            views, out = predict_clip(model, path, device, timeout)
            values: dict[str, object] = {"frames": views.shape[2]}
            for name, column in _rank_actions(model, out, top).items():
                values |= {f"{name}_{rank}": value for rank, value in enumerate(column, start=1)}
            if out.theta is not None:
                values |= {name: value.mean().item() for name, value in vars(out.theta).items()}
            row, seen = row | values, (views, out)
            if then is not None:
                then(path, views, out)
        except Exception as error:  # of whatever kind, it is this video's and no other one's
            row["error"] = cause_of(error)
        yield path, row, seen


def picture_stems(videos: Sequence[str | Path], paths: Sequence[Path], out: Path) -> list[Path]:
    """Where each video's picture and film lie, but for their ends: within `out`, as the videos do.

    No two videos share one: it has all of the video's name, below the folder that holds everything
    that was named.

    Args:
        videos: as named by the user.
        paths: what find_videos makes of them.
    """
    above = os.path.commonpath([os.path.dirname(os.path.abspath(video)) for video in videos])
    return [out / os.path.relpath(path, above) for path in paths]


def predict_videos(
    videos: Sequence[str | Path],
    checkpoint: str | Path,
    out: Path,
    top: int = 5,
    film: str = "mp4",
    pictures: bool = False,
    timeout: float | None = None,
) -> int:
    """`s2d predict`: one video is printed and drawn, several get a table.

    A table goes on: videos that it has are not predicted again, those that failed are.

    Args:
        videos: files, or folders of videos.
        out: folder to write to.
        film: mp4 or gif.
        pictures: whether each of several videos is drawn too.
        timeout: seconds without progress granted to the reader of a video.

    Returns:
        The exit status: 1 where a video could not be read or drawn, 130 after Ctrl-C.
    """
    if top < 1 or (timeout is not None and not timeout > 0):
        raise ValueError(f"--top must be >= 1 and --timeout > 0 seconds, got {top} and {timeout}")
    paths = find_videos(videos)
    model = S2DNet.from_pretrained(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_output(out, paths)  # pictures within a folder of frames would be taken for frames
    out.mkdir(parents=True, exist_ok=True)
    stems = dict(zip(paths, picture_stems(videos, paths, out), strict=True))
    both, written = model.snet is not None and model.dnet is not None, list[Path]()

    def draw_it(path: Path, views: Tensor, output: Output) -> None:
        written.extend(draw(model, views, output, stems[path], film, paths))

    drawn = draw_it if both and (pictures or len(paths) == 1) else None
    if len(paths) == 1:
        status = _print_verdict(model, predictions(model, paths, top, device, timeout, drawn), top)
    else:
        table = open_table(model, out, top, paths)
        todo = _unfinished(table, {p: _ends(stems[p], film) if drawn else [] for p in paths})
        if n_there := len(paths) - len(todo):
            print(f"{n_there} of {len(paths)} videos are in {as_text(table.path)} already")
        rows = predictions(model, todo, top, device, timeout, drawn)
        status = _fill(table, rows, len(todo))
        written.insert(0, table.path)
    if written:
        print("written:", ", ".join([*map(as_text, written[:4]), *["..."] * (len(written) > 4)]))
    return status


def _unfinished(table: RowTable, drawn: dict[Path, list[Path]]) -> list[Path]:
    """Of videos, each with its picture and film: those that lack their row or one of these."""
    new = set(unpredicted(table, list(drawn)))
    return [p for p, files in drawn.items() if p in new or not all(map(os.path.exists, files))]


def _print_verdict(model: S2DNet, rows: Iterator[Prediction], top: int) -> int:
    """Print what one video shows. Returns the exit status."""
    ((_, row, seen),) = rows
    if seen is not None:
        table = top_predictions(model, seen[1], top).round(3).rename(columns=HEADINGS)
        print(
            f"{row['path']}: {row['frames']} frames", table.rename_axis(None).to_string(), sep="\n"
        )
    if row["error"]:
        print(f"{row['path']}: {row['error']}", file=sys.stderr)
    return int(row["error"] != "")


def _fill(table: RowTable, rows: Iterator[Prediction], n: int) -> int:
    """Append n rows to a table, each as it comes. Returns the exit status."""
    failed = 0
    with tqdm(total=n, disable=n == 0) as bar:
        try:
            for _, row, _ in rows:
                table.append(row)
                bar.update()
                if row["error"]:
                    failed += 1
                    bar.write(f"{row['path']}: {row['error']}", file=sys.stderr)
            table.settle()
        except KeyboardInterrupt:
            words = f"holds {len(table.rows)} rows so far; the same command goes on"
            bar.write(f"interrupted: {as_text(table.path)} {words}", file=sys.stderr)
            return 130
    if failed:
        print(f"{failed} of {n} videos could not be read or drawn: their rows say why")
    return int(failed > 0)
