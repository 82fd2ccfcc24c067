"""Lists of videos as other projects write them: text, CSV with a heading, JSON lines.

A line is read from the right, since a path may hold blanks and numbers; what a number means, a
frame count or the end of a path, is seen from all lines of a file together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from s2dlib.data.classes import Row, clean, unquote
from s2dlib.data.listing import SUFFIXES
from s2dlib.data.splits import file_and_split, parse_split
from s2dlib.data.table import as_records, load_json, parse_json, read_fields, text_lines

SEP = r"[ \t;,]+"
SUFFIX = rf'\.(?:{"|".join(SUFFIXES)})"?'  # of a video's file
COUNT = r'(?:\d+|"\d+")'
INDEX = r'(?:-?\d+(?:\.0)?|"-?\d+(?:\.0)?")'  # pandas writes 3.0 where other rows have no label
INDEXED = re.compile(rf"(?P<path>.+?)(?P<n_frames>{SEP}{COUNT})?{SEP}(?P<label>{INDEX})")
NAMED = re.compile(
    rf"(?P<path>.+?{SUFFIX}){SEP}(?P<label>(?!\d+{SEP})(?!.*{SUFFIX}$)\S.*)", re.IGNORECASE
)
OVERLONG = re.compile(rf"{SUFFIX}{SEP}[^/\\]*$", re.IGNORECASE)  # a path with more behind it
CLIP = re.compile(r"(?:^|[/\\])([\w-]{11})(_\d{6}_\d{6})(?:\.\w+)?$")  # of Kinetics
HMDB51 = re.compile(r"(.+)_test_split\d\.txt")
PATH_COLUMNS = (
    *("file_name", "path", "video_path", "video", "filename", "filepath", "file"),
    *("video_name", "video_id", "vid_name", "clip"),
)
LABEL_COLUMNS = ("label", "class", "action", "category", "label_name", "class_name")


class Line(NamedTuple):
    """A line of a list: what its video is named, and the label, None if it tells none."""

    path: str
    n_frames: str  # with the blank before, "": none; it may turn out to be the path's end
    label: int | str | None
    where: str
    text: str


def read_list(annotations: Sequence[str]) -> list[Row]:
    """Lists of TSN, TSM, mmaction2, PaddleVideo, SlowFast: `path num_frames label`, `path label`.

    The path, which may hold spaces, is a video or a folder of frames. A label is an index, from 0
    or 1, or a class's name. Lines of paths alone, as UCF101's test lists, are labelled by their
    folders. HMDB51's `<class>_test_split1.txt` are read as their owner means them; a CSV with a
    heading (path or file_name, label, maybe split) and Hugging Face's metadata.csv or .jsonl, by
    their columns. Kinetics' clips are also looked for by their name alone, since each list has
    folders of its own.
    """
    rows: list[Row] = []
    for path, split in map(file_and_split, annotations):
        records = _read_records(path)
        lines = [] if records else [_parse_line(*line) for line in text_lines(path)]
        if not (records or lines):
            raise ValueError(f"{path}: no video in it")
        if records:
            rows += _rows_of_records(records, path, split)
        elif (match := HMDB51.fullmatch(path.name)) and _is_hmdb51(lines):
            rows += _rows_of_hmdb51(lines, match[1])
        else:
            rows += _rows_of_lines(lines, path, split)
    return rows


def _parse_line(where: str, text: str) -> Line:
    if match := INDEXED.fullmatch(text):
        return Line(
            match["path"], match["n_frames"] or "", int(float(unquote(match["label"]))), where, text
        )
    if match := NAMED.fullmatch(text):
        return Line(match["path"], "", clean(match["label"]), where, text)
    return Line(text, "", None, where, text)


def _rows_of_lines(lines: Sequence[Line], path: Path, split: str) -> Iterator[Row]:
    """Rows of lines that all have an index, or all a class's name, or all neither."""
    note = ""
    shorter, longer = ({line.path + line.n_frames * i for line in lines} for i in (0, 1))
    counted = all(line.n_frames for line in lines) and len(shorter) == len(longer)
    for line in lines:
        label, names = line.label, [line.path + line.n_frames]
        if counted:  # or every path ends in a number
            names.insert(0, line.path)
        if label is None:
            label = "/".join(re.split(r"[/\\]", line.path)[-2:-1])
            note = f"{path} has paths alone: their folders are taken for the classes"
        if type(line.label) is not type(lines[0].label) or OVERLONG.search(names[0]) or label == "":
            raise ValueError(
                f"{line.where}: expected `path num_frames label` or `path label`, with one label "
                f"and all lines alike, got {line.text!r}"
            )
        clip = CLIP.search(names[0])
        names += [clip[1] + clip[2], clip[1]] if clip else []
        own = parse_split(split, path, line.where)
        yield Row(tuple(map(unquote, names)), label, own, line.where, note)


def _is_hmdb51(lines: Sequence[Line]) -> bool:
    return all(line.label in (0, 1, 2) and not re.search(r"[/\\]", line.path) for line in lines)


def _rows_of_hmdb51(lines: Sequence[Line], name: str) -> Iterator[Row]:
    note = "<class>_test_split files are read as HMDB51's: 1 is train, 2 is test, 0 is neither"
    for line in lines:
        names = (f"{name}/{line.path}", line.path)
        split = "train" if line.label == 1 else "test"
        yield Row(names, name if line.label else "", split, line.where, note)


Record = tuple[str, dict[str, Any]]  # where, and the columns


def _read_records(path: Path) -> list[Record]:
    """The lines of a file with a heading, or the objects of a JSON file; other files have none."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        objects = [(f"{path}, entry {i}", x) for i, x in enumerate(load_json(path, (list,)), 1)]
    elif suffix == ".jsonl":
        objects = [(where, parse_json(where, text)) for where, text in text_lines(path)]
    else:
        return _read_columns(path)
    if wrong := next((pair for pair in objects if not isinstance(pair[1], dict)), None):
        raise ValueError(f"{wrong[0]}: expected an object of file_name and label, got {wrong[1]}")
    return objects


def _read_columns(path: Path) -> list[Record]:
    _, first = next(text_lines(path), ("", ""))
    delimiter = next((sign for sign in ",;\t" if sign in first), " ")
    heading = [clean(word).lower() for word in first.split(delimiter)]
    if len(heading) < 2 or not set(heading) & set(PATH_COLUMNS):
        return []
    return list(as_records(heading, list(read_fields(path, delimiter))[1:]))


def _rows_of_records(records: Sequence[Record], path: Path, split: str) -> Iterator[Row]:
    columns = records[0][1]
    name = next((name for name in PATH_COLUMNS if name in columns), "")
    label = next((name for name in LABEL_COLUMNS if name in columns), "")
    if not (name and label):
        raise ValueError(
            f"{path}: expected a column of {', '.join(PATH_COLUMNS)} and one of "
            f"{', '.join(LABEL_COLUMNS)}, got {', '.join(columns)}"
        )
    labels = [record.get(label) for _, record in records]
    texts = ["" if value is None else clean(value) for value in labels]
    indexed = all(re.fullmatch(rf"{INDEX}|", text) for text in texts)
    for (where, record), value, text in zip(records, labels, texts, strict=True):
        video = record.get(name)
        if not isinstance(value, str | int | float | None) or not isinstance(video, str):
            raise ValueError(f"{where}: expected one {name} and one {label}, got {record}")
        own = parse_split(str(record.get("split") or split), path, where)
        names = (f"{path.absolute().parent.name}/{video}", video)  # of the file's own folder
        index = int(float(text)) if indexed and text else text
        yield Row(names if path.stem == "metadata" else (video,), index, own, where)
