"""Rows that name videos, and a folder of videos -> a CSV of this project: an index.

The folder is listed once and each row is looked up in that list; no file is opened
(00_data.ipynb decodes them). Videos vanish from the web: what is not there is written beside the
index and is no error.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from s2dlib.data.files import write_atomic
from s2dlib.data.table import read_lines

SUFFIXES = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv".split()
VIDEOS, IMAGES = {f".{suffix}" for suffix in SUFFIXES}, {".jpg", ".jpeg", ".png"}
COLUMNS = ["path", "label", "label_name", "split", "name"]  # of an index, and how its owner says it


class Row(NamedTuple):
    """A line of an owner's file."""

    names: tuple[str, ...]  # of its video, likeliest first: a path or the end of one
    label: str | int  # a class's name or index; "": the file tells none
    split: str
    where: str  # "file, line 3"


def list_videos(folder: str | Path) -> list[str]:
    """All videos below a folder: files, by their suffix, and folders that hold nothing but frames.

    Returns:
        Their paths from there, sorted. One listing a folder; links are followed, each once.
    """
    videos: list[str] = []
    linked: set[str] = set()  # what links point to
    todo = [""]
    bar = tqdm(desc=f"listing {folder}", unit=" folders", delay=1, leave=False, disable=None)
    while todo:
        bar.update()
        below, n_before = todo.pop(), len(videos)
        inner: list[str] = []
        suffixes: set[str] = set()
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                path, suffix = os.path.join(below, entry.name), os.path.splitext(entry.name)[1]
                if entry.name.startswith("."):
                    continue
                suffixes.add(suffix.lower())
                if entry.is_dir():
                    target = os.path.realpath(entry.path) if entry.is_symlink() else ""
                    inner += [path] * (target not in linked)
                    linked |= {target} - {""}
                elif suffix.lower() in VIDEOS:
                    videos.append(path)
        if below and suffixes & IMAGES and not inner and len(videos) == n_before:
            videos.append(below)
        todo += inner
    bar.close()
    return sorted(videos)


def make_index(
    rows: Sequence[Row], folder: str | Path, classes: Sequence[str] | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Look every row's video up below a folder, and number the classes.

    Args:
        rows: of any of the readers.
        folder: where the videos are.
        classes: names in their owner's order; None: sorted, and indices stay without names.

    Returns:
        COLUMNS, a row a video that has a label, path relative to the folder and missing where the
        video is; and notes, a sentence each.

    Raises:
        ValueError: an unknown class, a video with two labels or splits, nothing found at all.
    """
    videos = list_videos(folder)
    by_end = _paths_by_end(videos)
    unlabelled = Counter(row.where.rsplit(", ", 1)[0] for row in rows if row.label == "")
    notes = [f"{n} rows of {file} tell no label: left out" for file, n in unlabelled.items()]
    rows = [row for row in rows if row.label != ""]
    labels, classes = _number_labels(rows, classes)
    table, ambiguous = [], []
    first: dict[str, Row] = {}  # by path, or by name where the video is missing
    for row, label in zip(rows, labels, strict=True):
        found = next(filter(None, (_find(name, by_end) for name in row.names)), [])
        path, name = found[0] if found else None, row.names[0]
        ambiguous += [name] * (len(found) > 1)
        other = first.setdefault(path or name, row)
        if other is row:
            table.append((path, label, classes[label] if classes else None, row.split, name))
        elif (other.label, other.split) != (row.label, row.split):
            raise ValueError(
                f"{row.where}: {name} is {row.label!r} in {row.split}, but {other.label!r} "
                f"in {other.split} by {other.where}; one of the two must go"
            )
    if not any(path for path, *_ in table):
        names = ", ".join(
            [name for row in rows[:2] for name in row.names] or ["no row with a label"]
        )
        there = ", ".join(videos[:3] or ["no video file, nor a folder of frames"])
        raise ValueError(f"{folder}: nothing found; expected names like {names}; there: {there}")
    if len(table) < len(rows):
        notes.append(f"{len(rows) - len(table)} rows repeat another one: dropped")
    if n := len(ambiguous):
        notes.append(f"{n} rows fit several files, as {ambiguous[0]}: the first is taken")
    index = pd.DataFrame(table, columns=COLUMNS, dtype=object)
    return index if classes else index.drop(columns="label_name"), notes


def _path_parts(path: str) -> tuple[str, ...]:
    """A path's folders in plain letters, and its last name without the suffix of a video.

    Folders of a class are written in many ways: spaces or underscores, with or without brackets.
    """
    *folders, last = [part for part in re.split(r"[/\\]", path) if part not in ("", ".")] or [""]
    stem, suffix = os.path.splitext(last)
    return (*map(_normalise, folders), stem if suffix.lower() in VIDEOS else last)


def _normalise(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


Ends = dict[str | tuple[str, ...], list[str]]


def _paths_by_end(videos: Sequence[str]) -> Ends:
    """Every path, and every end of one in _path_parts -> the paths that are or end so."""
    by_end: Ends = {path: [path] for path in videos}
    for path in videos:
        parts = _path_parts(path)
        for i in range(len(parts)):
            by_end.setdefault(parts[i:], []).append(path)
    return by_end


def _find(name: str, by_end: Ends) -> list[str]:
    """The videos that a name fits: the shorter of the two is the end of the other."""
    parts = _path_parts(name)
    if exact := by_end.get(name) or by_end.get(parts):
        return exact
    ends = (parts[i:] for i in range(1, len(parts)))
    whole = ([path for path in by_end.get(end, ()) if _path_parts(path) == end] for end in ends)
    return next(filter(None, whole), [])


def _number_labels(
    rows: Sequence[Row], classes: Sequence[str] | None
) -> tuple[list[int], Sequence[str] | None]:
    """The index of each row's class, and the classes' names where they have any."""
    if classes is None and all(isinstance(row.label, str) for row in rows):
        classes = sorted({str(row.label) for row in rows})
    names = list(enumerate(classes or ()))
    n, indices = (
        len(names),
        {_normalise(name): i for i, name in names} | {name: i for i, name in names},
    )

    def number(row: Row) -> int:
        if isinstance(row.label, str):
            label = indices.get(row.label, indices.get(_normalise(row.label)))
            if label is None:
                raise ValueError(f"{row.where}: {row.label!r} is none of the {n} classes")
            return label
        if row.label < 0 or (classes and row.label >= n):
            allowed = f"0 to {n - 1}" if classes else ">= 0"
            raise ValueError(f"{row.where}: label must be {allowed}, got {row.label}")
        return row.label

    return [number(row) for row in rows], classes


def write_index(
    table: pd.DataFrame, folder: str | Path, out: str | Path, replace: bool = False
) -> Path:
    """Write the index, and <index>.missing.csv (name, label, split) beside it.

    Args:
        table: from make_index, of that folder.
        out: the index. Paths are relative to its own folder where the videos lie below that.
        replace: whether an index that names more videos may be lost.
    """
    out, folder = Path(os.path.abspath(out)), Path(os.path.abspath(folder))
    found, missing = table[table["path"].notna()], table[table["path"].isna()]
    n_before = sum(1 for _ in read_lines(out)) - 1 if out.exists() else 0
    if n_before > len(found) and not replace:
        text = f"{out}: names {n_before} videos, this would leave {len(found)}; --replace"
        raise ValueError(text)
    if folder.is_relative_to(out.parent):
        folder = folder.relative_to(out.parent)
    found = found.assign(path=[folder / path for path in found["path"]])
    write_atomic(missing_of(out), missing.drop(columns="path").to_csv(index=False))
    return write_atomic(out, found.drop(columns="name").to_csv(index=False))


def missing_of(index: str | Path) -> Path:
    """Where an index's missing videos are written."""
    return Path(index).with_name(f"{Path(index).stem.removesuffix('.checked')}.missing.csv")


def read_missing(index: str | Path) -> pd.DataFrame:
    """Videos that their owner names and that were not found: name, label, split, as text."""
    path = missing_of(index)
    if not path.is_file():
        return pd.DataFrame(columns=["name", "label", "split"])
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def write_checked(index: str | Path, bad: Iterable[str], found: pd.DataFrame | None = None) -> Path:
    """Write <index>.checked.csv, the same without the videos at some absolute paths.

    Args:
        found: of check_videos: its columns reader and n_frames are added, empty for videos that it
            does not know, and the file is written even if no video is bad.

    Returns:
        The index to go on with: the one given, where no video of it is bad.
    """
    bad, (header, *rows) = set(bad), [fields for _, fields in read_lines(index)]
    table = pd.DataFrame(rows, columns=[name.strip() for name in header], dtype=object)
    folder = os.path.abspath(os.path.dirname(index))
    paths = [os.path.normpath(os.path.join(folder, path)) for path in table["path"]]
    if found is not None:
        known = found.drop_duplicates("path").set_index("path").reindex(paths)
        table["reader"] = known["reader"].to_numpy()
        table["n_frames"] = known["n_frames"].astype("Int64").array
    kept = table[[path not in bad for path in paths]]
    if kept.empty:
        raise ValueError(f"{index}: none of its {len(rows)} videos is usable")
    checked = Path(index).with_name(f"{Path(index).stem.removesuffix('.checked')}.checked.csv")
    if len(kept) < len(rows) or found is not None:
        write_atomic(checked, kept.to_csv(index=False))
    return checked if len(kept) < len(rows) else Path(index)


def read_fields(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Where, and the fields of each line that is not blank."""
    return ((f"{path}, line {n}", fields) for n, fields in read_lines(path, delimiter))
