"""Rows that name videos, and a folder of videos -> a CSV of this project: an index.

The folder is listed once and each row is looked up in that list; no file is opened
(00_data.ipynb decodes them). Videos vanish from the web: what is not there is written beside the
index and is no error.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from s2dlib.data.classes import Classes, Row, normalise, number_labels
from s2dlib.data.files import write_atomic
from s2dlib.data.listing import VIDEOS, list_folder
from s2dlib.data.table import absolute_path, escape, read_lines

COLUMNS = ["path", "label", "label_name", "split", "name"]  # of an index, and how its owner says it


def make_index(
    rows: Sequence[Row], folder: str | Path, classes: Classes | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Look every row's video up below a folder, and number the classes.

    Args:
        rows: of any of the readers.
        folder: where the videos are.
        classes: of read_classes; None: sorted by name, and indices stay without names.

    Returns:
        COLUMNS, a row a video that has a label, path relative to the folder or missing; and notes,
        a sentence each.

    Raises:
        ValueError: an unknown class, a video with two labels or splits, nothing found at all.
    """
    videos, notes = list_folder(folder)
    by_end = _paths_by_end(videos)
    notes += [*dict.fromkeys(row.note for row in rows if row.note), *_unlabelled(rows)]
    rows = [row for row in rows if row.label != ""]
    found = [next(filter(None, (_find(n, by_end) for n in row.names)), []) for row in rows]
    _check_misread([row for row, paths in zip(rows, found, strict=True) if not paths], rows, by_end)
    labels, names, more = number_labels(rows, classes)
    notes += more
    table, ambiguous = [], []
    first: dict[str, Row] = {}  # by path, or by name where the video is missing
    for row, label, paths in zip(rows, labels, found, strict=True):
        path, name = paths[0] if paths else None, row.names[0]
        ambiguous += [name] * (len(paths) > 1)
        other = first.setdefault(path or name, row)
        if other is row:
            table.append((path, label, names[label] if names else None, row.split, name))
        elif (other.label, other.split) != (row.label, row.split):
            raise ValueError(
                f"{row.where}: {name} is {row.label!r} in {row.split}, but {other.label!r} "
                f"in {other.split} by {other.where}; one of the two must go"
            )
    if not any(found):
        wanted = ", ".join(name for row in rows[:2] for name in row.names) or "no row with a label"
        there = ", ".join([*videos[:3], *notes]) or "no video file, nor a folder of frames"
        raise ValueError(f"{folder}: nothing found; expected names like {wanted}; there: {there}")
    if len(table) < len(rows):
        notes.append(f"{len(rows) - len(table)} rows repeat another one: dropped")
    if n := len(ambiguous):
        notes.append(f"{n} rows fit several files, as {ambiguous[0]}: the first is taken")
    index = pd.DataFrame(table, columns=COLUMNS, dtype=object)
    return index if names else index.drop(columns="label_name"), notes


def _unlabelled(rows: Sequence[Row]) -> list[str]:
    """Notes on the rows without a label: a file each, or one for many files."""
    files = Counter(row.file for row in rows if row.label == "")
    if len(files) > 4:
        return [f"{files.total()} rows of {len(files)} files tell no label: left out"]
    return [f"{n} rows of {file} tell no label: left out" for file, n in files.items()]


def _check_misread(missing: Sequence[Row], rows: Sequence[Row], by_end: Ends) -> None:
    """ValueError where a video is there without the numbers at the end of its name in a list."""
    listed = {name for row in rows for name in row.names}
    for row in missing:
        shorter = re.sub(r"(?:[ \t;,]+\d+)+$", "", row.names[0])
        if shorter not in listed and _find(shorter, by_end):
            raise ValueError(
                f"{row.where}: {row.names[0]!r} is not there, but {shorter!r} is. Expected `path "
                "num_frames label` or `path label`; a second label or a first frame is not read"
            )


def _path_parts(path: str) -> tuple[str, ...]:
    """A path's folders in plain letters, and its last name without the suffix of a video.

    Folders of a class are written in many ways: spaces or underscores, with or without brackets.
    """
    *folders, last = [part for part in re.split(r"[/\\]", path) if part not in ("", ".")] or [""]
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", last))
    while suffix.lower() in VIDEOS:  # downloaders write id.mp4.webm
        stem, suffix = os.path.splitext(stem)
    return (*map(normalise, folders), stem + suffix)


OTHER_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")  # as a file's that a reader can open
Ends = dict[str | tuple[str, ...], list[str]]


def _paths_by_end(videos: Sequence[str]) -> Ends:
    """Every path, and every end of one in _path_parts -> the paths that are or end so."""
    by_end: Ends = {path: [path] for path in videos}
    for path in videos:
        stem, suffix = os.path.splitext(path)
        other = suffix.lower() not in VIDEOS and OTHER_SUFFIX.fullmatch(suffix)
        paths = [path, stem] if other else [path]
        for parts in dict.fromkeys(map(_path_parts, paths)):
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
    if (n := len(found)) < n_before and not replace:
        raise ValueError(f"{out}: names {n_before} videos, this would leave {n}; --replace")
    if folder.is_relative_to(out.parent):
        folder = folder.relative_to(out.parent)
    found = found.assign(path=[no_blank_first(folder / path) for path in found["path"]])
    write_atomic(missing_of(out), as_csv(missing.drop(columns="path")))
    return write_atomic(out, as_csv(found.drop(columns="name")))


def no_blank_first(path: Path) -> str:
    """A path as it is, or from ./ on: readers of a CSV skip the blanks before a field."""
    return f"./{path}" if str(path)[0].isspace() else str(path)


def as_csv(table: pd.DataFrame) -> bytes:
    """A table as CSV; what is not UTF-8, as in a folder's name, is escaped."""
    text = table.to_csv(index=False)
    if "\r" in text:  # which is not quoted, and ends a line
        text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    return escape(text).encode()


def missing_of(index: str | Path) -> Path:
    """Where an index's missing videos are written."""
    return Path(index).with_name(f"{Path(index).stem.removesuffix('.checked')}.missing.csv")


def read_missing(index: str | Path) -> pd.DataFrame:
    """Videos that their owner names and that were not found: name, label, split, as text."""
    path = missing_of(index)
    if not path.is_file():
        return pd.DataFrame(columns=["name", "label", "split"])
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_index(index: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """An index as it is written, all columns text, and the absolute path of each row."""
    header, *rows = [fields for _, fields in read_lines(index)]
    table = pd.DataFrame(rows, columns=[name.strip() for name in header], dtype=object)
    folder = os.path.abspath(os.path.dirname(index))
    return table, [absolute_path(folder, path) for path in table["path"]]


def write_checked(index: str | Path, bad: Iterable[str], found: pd.DataFrame | None = None) -> Path:
    """Write <index>.checked.csv, the same without the videos at some absolute paths.

    Args:
        found: of check_videos: its columns reader and n_frames are added, empty for videos that it
            does not know, and the file is written even if no video is bad.

    Returns:
        The index to go on with: the one given, where no video of it is bad.
    """
    bad, (table, paths) = set(bad), read_index(index)
    if found is not None:
        known = found.drop_duplicates("path").set_index("path").reindex(paths)
        table["reader"] = known["reader"].to_numpy()
        table["n_frames"] = known["n_frames"].astype("Int64").array
    kept = table[[path not in bad for path in paths]]
    if kept.empty:
        raise ValueError(f"{index}: none of its {len(table)} videos is usable")
    checked = Path(index).with_name(f"{Path(index).stem.removesuffix('.checked')}.checked.csv")
    if len(kept) < len(table) or found is not None:
        write_atomic(checked, as_csv(kept))
    return checked if len(kept) < len(table) else Path(index)
