"""`s2d prepare`: working copies of a data set's videos, and the CSV that names them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from s2dlib.config import DataConfig
from s2dlib.data.files import as_text, check_output, file_state
from s2dlib.data.prepare import TOLD, Copy, write_copies_csv, write_copy
from s2dlib.data.rows import Row, RowTable
from s2dlib.data.sources import COPY, cause_of
from s2dlib.data.table import read_csv
from s2dlib.presets import PRESETS
from s2dlib.report.records import command

SOURCE = ["source", "bytes", "modified"]  # the video, and its state (files.file_state)
MADE_FOR = [*TOLD, "clip_frames"]  # tau, pixels, T
COLUMNS = ["path", *SOURCE, "sha256", *MADE_FOR, "first", "n_frames", "copy_bytes"]


def prepare_videos(csv: Path, preset: str, out: Path | None = None) -> int:
    """`s2d prepare`: copy what is not copied yet, several videos at a time, a thread a core.

    Each copy gets a row in <csv>.manifest.csv once it is whole, so that the same command goes on
    after a kill; a video that has changed since, or was copied for another preset, is copied again.

    Args:
        csv: of the videos.
        preset: whose frame_stride, short_side and n_frames the copies are made for.
        out: folder to write to; None: beside the CSV, named by short side and stride.

    Returns:
        The exit status: 1 where a video could not be copied, 130 after Ctrl-C.
    """
    config = PRESETS[preset].data
    if config.short_side % 2:
        raise ValueError(f"H.264 needs even sides, got short_side={config.short_side}")
    if config.within and config.frame_stride > 1:
        raise ValueError(
            f"{csv}: within={config.within} counts frames of the videos, and copies would hold "
            f"every {config.frame_stride} of them; train on the videos"
        )
    out = out or csv.parent / f"copies-{config.short_side}-{config.frame_stride}"
    out = Path(os.path.abspath(out))
    index = out / f"{csv.stem.removesuffix('.checked')}.csv"
    manifest = index.with_suffix(".manifest.csv")
    check_output(index, [csv], rb"\A[^\n]*,frame_stride,short_side\n")
    check_output(manifest, [csv], b"\\A" + ",".join(COLUMNS).encode())
    table = read_csv(csv)
    if set(TOLD) <= set(table.columns):
        raise ValueError(f"{csv}: names working copies; give the CSV of the videos themselves")
    sources = table["path"].tolist()
    # of the rows of each copy the last one
    rows = RowTable(manifest, COLUMNS, lambda rows: [*{row["path"]: row for row in rows}.values()])
    above = os.path.commonpath([os.path.dirname(path) for path in sources])
    paths = {s: out / f"{os.path.relpath(s, above)}.mp4" for s in sources}  # no two alike
    copies = _finished(rows, paths, config)
    if copies:
        print(f"{len(copies)} of {len(sources)} copies are in {as_text(out)} already")
    todo = [source for source in sources if source not in copies]
    if not _copy_all(todo, paths, config, rows, copies):
        return 130
    index = write_copies_csv(csv, index, copies, config)
    print(f"{len(copies)} of {len(sources)} videos are copied: {as_text(index)}")
    print("next:", command(preset, csv=str(index), splits=table["split"].unique()))
    return int(len(copies) < len(sources))


def _state(source: str, config: DataConfig) -> Row:
    """What a copy's row must say for the copy to be of this video as it is, for this preset."""
    made_for = [config.frame_stride, config.short_side, config.n_frames]
    state = {"source": as_text(source), **file_state(Path(source))}
    return state | dict(zip(MADE_FOR, map(str, made_for), strict=True))


def _finished(table: RowTable, paths: dict[str, Path], config: DataConfig) -> dict[str, Copy]:
    """The copies that are there, whole, and of their videos as these are, by video."""
    rows = {row["path"]: row for row in table.rows}
    found = {}
    for source, path in paths.items():
        row = rows.get(as_text(path.relative_to(table.path.parent)), {})
        same = _state(source, config).items() <= row.items()
        if same and file_state(path)["bytes"] == row["copy_bytes"]:
            found[source] = Copy(path, int(row["first"]), int(row["n_frames"]))
    return found


def _copy_all(
    sources: Sequence[str],
    paths: dict[str, Path],
    config: DataConfig,
    table: RowTable,
    copies: dict[str, Copy],
) -> bool:
    """Add the copies of some videos to `copies`, and a row each to the table; False after Ctrl-C.

    A video that cannot be copied is told.
    """
    torch.set_num_threads(1)  # of each thread
    pool = ThreadPoolExecutor(os.cpu_count())
    with tqdm(total=len(sources), unit=" videos", disable=not sources) as bar:
        try:
            known = {row["path"] for row in table.rows}
            names = {s: as_text(paths[s].relative_to(table.path.parent)) for s in sources}
            jobs = {
                pool.submit(_copy, s, paths[s], config, ours=names[s] in known): s for s in sources
            }
            for job in as_completed(jobs):
                bar.update()
                source = jobs[job]
                try:
                    copies[source], row = job.result()
                except Exception as error:  # of whatever kind, it is this video's
                    bar.write(f"{as_text(source)}: {cause_of(error)}", file=sys.stderr)
                else:
                    table.append(row | {"path": names[source]})
            table.settle()
        except KeyboardInterrupt:
            words = "holds the copies so far; the same command goes on"
            bar.write(f"interrupted: {as_text(table.path)} {words}", file=sys.stderr)
            return False
        finally:
            pool.shutdown(cancel_futures=True)
    return True


def _copy(source: str, path: Path, config: DataConfig, *, ours: bool) -> tuple[Copy, Row]:
    """Copy a video. Returns its copy and that one's row, but for its path.

    Args:
        ours: the manifest knows a copy there, perhaps damaged: whatever is there may go.
    """
    if not ours:
        check_output(path, [source], COPY.encode())
    row = _state(source, config)  # before it is read: a change meanwhile shows
    copy = write_copy(source, path, config)
    row |= {"sha256": _digest(source), "copy_bytes": file_state(path)["bytes"]}
    return copy, row | {"first": str(copy.first), "n_frames": str(copy.n_frames)}


def _digest(path: str) -> str:
    """The SHA-256 of a file, or of the names and contents of a folder's files."""
    if not os.path.isdir(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for image in sorted(Path(path).iterdir()):
        digest.update(os.fsencode(image.name) + b"\0" + image.read_bytes())
    return digest.hexdigest()
