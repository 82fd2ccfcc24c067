"""`s2d predict`: the most probable actions in anyone's videos, the picture, the film, the table."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor
from tqdm import tqdm

from s2dlib.apps.pictures import draw, drawn_files, holds_frames, is_drawn
from s2dlib.apps.prediction_table import digest_of, open_table, unpredicted
from s2dlib.config import DataConfig
from s2dlib.data.clips import load_views
from s2dlib.data.files import as_text, check_output, file_state
from s2dlib.data.listing import list_folder
from s2dlib.data.loader import pad
from s2dlib.data.readers import read_ahead
from s2dlib.data.rows import RowTable
from s2dlib.data.sources import cause_of
from s2dlib.model import Output, S2DNet

if TYPE_CHECKING:
    from pandas import DataFrame

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
        below = [video for name in listed if not is_drawn(video := path / name)]
        for note in notes * bool(below):
            print(f"{as_text(path)}: {note}", file=sys.stderr)
        if path.is_dir() and not below and not holds_frames(path):
            words = "expected videos below this folder, there are none"
            raise FileNotFoundError(f"{as_text(path)}: {words}")
        found |= {video.absolute(): video for video in below or [path]}
    return list(found.values())


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


Row: TypeAlias = dict[str, object]  # of predictions.csv
Seen: TypeAlias = tuple[Tensor, Output]  # of one video, as predict_clip gives it
Prediction: TypeAlias = tuple[Path, Row, Seen | None]  # None: it could not be read or computed


def predictions(
    model: S2DNet,
    paths: Sequence[Path],
    top: int = 5,
    device: str = "cpu",
    timeout: float | None = None,
    then: Callable[[Path, Tensor, Output], None] | None = None,
    workers: int = 1,
    batch_size: int = 1,
) -> Iterator[Prediction]:
    """Each video in turn; workers read the next ones while the network computes.

    A row holds columns_of(model, top): path, as files.as_text gives it; error, empty or what went
    wrong; frames; action_1, probability_1, snet_action_1, ...; theta's six, means over the detail
    frames; the model, by a digest; and file_state.

    Args:
        timeout: seconds without progress granted to the reader; None: as in training.
        then: called with each video, its views and its output; its error is the row's, too.
        workers: threads that read, each with a child that decodes.
        batch_size: videos computed at once. Up to 3 batch_size + workers clips are in memory.
    """
    digest = digest_of(model)
    data = model.data if timeout is None else replace(model.data, timeout=timeout)
    for path, state, seen in _computed(model.to(device), paths, data, device, workers, batch_size):
        row: Row = {"path": as_text(path), "error": "", "model": digest, **state}
        shown = None
        try:
            if isinstance(seen, Exception):
                raise seen
            views, out = seen
            row["frames"] = views.shape[2]
            for name, column in _rank_actions(model, out, top).items():
                row |= {f"{name}_{rank}": value for rank, value in enumerate(column, start=1)}
            if out.theta is not None:
                row |= {name: value.mean().item() for name, value in vars(out.theta).items()}
            shown = seen
            if then is not None:
                then(path, views, out)
        except Exception as error:  # of whatever kind, it is this video's and no other one's
            row["error"] = cause_of(error)
        yield path, row, shown


def _computed(
    model: S2DNet,
    paths: Sequence[Path],
    data: DataConfig,
    device: str,
    workers: int,
    batch_size: int,
) -> Iterator[tuple[Path, dict[str, str], Seen | Exception]]:
    """Each video, its state when it was read, and what was computed or went wrong."""

    def read(path: Path) -> tuple[Path, dict[str, str], Tensor | Exception]:
        state = file_state(path)
        try:
            views = load_views(path, data)
            return path, state, views if device == "cpu" else views.pin_memory()
        except Exception as error:
            return path, state, error

    with closing(read_ahead(read, paths, workers, workers + batch_size)) as clips:
        while batch := list(islice(clips, batch_size)):
            good = [views for *_, views in batch if isinstance(views, Tensor)]
            computed = iter(_compute(model, good, device))
            for path, state, views in batch:
                yield path, state, views if isinstance(views, Exception) else next(computed)


@torch.no_grad()
def _compute(model: S2DNet, clips: list[Tensor], device: str) -> list[Seen | Exception]:
    """Videos in one batch; one by one where that fails, so that an error is one video's.

    Args:
        clips: the views of each, uint8. (V, C, T, H, W), T of its own
    """
    out = None
    try:
        if clips:
            out = model(*pad(clips, device))
    except Exception as error:
        if len(clips) == 1:
            return [error]
    if out is None:  # outside the except, which would hold the failed batch's memory
        return [seen for clip in clips for seen in _compute(model, [clip], device)]
    V = len(clips[0])
    return [(clip, _rows_of(out, slice(i * V, i * V + V))) for i, clip in enumerate(clips)]


def _rows_of(out: Output, rows: slice) -> Output:
    """The output for some of a batch."""
    theta = None if out.theta is None else out.theta.map(lambda value: value[rows])
    tensors = {name: value[rows] for name, value in vars(out).items() if isinstance(value, Tensor)}
    return Output(**tensors, theta=theta)


def predict_videos(args: Namespace) -> int:
    """`s2d predict`: one video is printed and drawn, several get a table.

    A table goes on: videos that it has are not predicted again, those that failed are.

    Args:
        args: what apps/cli.py's predict has parsed; timeout in seconds, batch in videos.

    Returns:
        The exit status: 1 where a video could not be read or drawn, 130 after Ctrl-C.
    """
    top, timeout, workers, out = args.top, args.timeout, args.workers, args.out
    if top < 1 or (timeout is not None and not timeout > 0):
        raise ValueError(f"--top must be >= 1 and --timeout > 0 seconds, got {top} and {timeout}")
    if args.batch < 1 or (workers is not None and workers < 1):
        raise ValueError(f"--workers and --batch must be >= 1, got {workers} and {args.batch}")
    paths = find_videos(args.videos)
    model = S2DNet.from_pretrained(args.checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_output(out, paths)  # pictures within a folder of frames would be taken for frames
    out.mkdir(parents=True, exist_ok=True)
    # Pictures lie in `out` as the videos do below the folder of all that was named: no two alike.
    above = os.path.commonpath([os.path.dirname(os.path.abspath(v)) for v in args.videos])
    stems = {path: out / os.path.relpath(path, above) for path in paths}
    both, written = model.snet is not None and model.dnet is not None, list[Path]()

    def draw_it(path: Path, views: Tensor, output: Output) -> None:
        written.extend(draw(model, views, output, stems[path], args.film, paths))

    drawn = draw_it if both and (args.pictures or len(paths) == 1) else None
    if len(paths) == 1:
        status = _print_verdict(model, predictions(model, paths, top, device, timeout, drawn), top)
    else:
        table = open_table(model, out, top, paths)
        files = {p: drawn_files(stems[p], args.film) if drawn else [] for p in paths}
        new = set(unpredicted(table, paths))
        todo = [p for p in paths if p in new or not all(map(os.path.exists, files[p]))]
        if n_there := len(paths) - len(todo):
            print(f"{n_there} of {len(paths)} videos are in {as_text(table.path)} already")
        workers = workers or default_workers(len(todo))
        rows = predictions(model, todo, top, device, timeout, drawn, workers, args.batch)
        status = _fill(table, rows, len(todo))
        written.insert(0, table.path)
    if written:
        print("written:", ", ".join([*map(as_text, written[:4]), *["..."] * (len(written) > 4)]))
    return status


def default_workers(n: int) -> int:
    """Threads that read n videos: one core stays for the network, and each thread has 8 videos.

    At most 8 threads, since each has a child and a clip of 150 frames of 224 x 224 takes 23 MB.
    """
    return max(1, min(8, (os.cpu_count() or 1) - 1, n // 8))


def _print_verdict(model: S2DNet, rows: Iterator[Prediction], top: int) -> int:
    """Print what one video shows. Returns the exit status."""
    ((_, row, seen),) = rows
    if seen is not None:
        table = top_predictions(model, seen[1], top).round(3).rename(columns=HEADINGS)
        print(f"{row['path']}: {row['frames']} frames")
        print(table.rename_axis(None).to_string())
    if row["error"]:
        print(f"{row['path']}: {row['error']}", file=sys.stderr)
    return int(row["error"] != "")


def _fill(table: RowTable, rows: Iterator[Prediction], n: int) -> int:
    """Append n rows to a table, each as it comes. Returns the exit status."""
    failed = 0
    with tqdm(total=n, unit=" videos", disable=n == 0) as bar:
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
