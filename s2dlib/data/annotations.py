"""A data set as its owner ships it -> the one CSV of this project (Sec. 4.1).

    s2d index kinetics400 --annotations train.csv val.csv --videos DIR

An owner's file names a video by an id or a path, seldom just as it lies on a disk: index.py finds
it. Every reader here gives rows that say in which file and line they were.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from s2dlib.data.classes import Row
from s2dlib.data.listing import list_folder
from s2dlib.data.lists import read_list
from s2dlib.data.splits import SPLITS, file_and_split, parse_split, split_of_folder, words
from s2dlib.data.table import as_records, load_json, read_fields, text_lines


def read_kinetics(annotations: Sequence[str]) -> list[Row]:
    """Kinetics' own CSVs: columns label,youtube_id,time_start,time_end,split and others.

    The test split's may lack labels. Videos are `<id>_<start>_<end>`, or `<id>`, in any folder, so
    that it does not matter how a folder spells its class.
    """
    rows = []
    for path, split in map(file_and_split, annotations):
        lines = read_fields(path, ",")
        header = [name.strip().lower() for name in next(lines, ("", []))[1]]
        if "youtube_id" not in header:
            raise ValueError(
                f"{path}: no column youtube_id in {header}; expected Kinetics' own file, with "
                "label,youtube_id,time_start,time_end,split"
            )
        for where, record in as_records(header, lines):
            row = {name: field.strip() for name, field in record.items()}
            own = parse_split(row.get("split") or split, path, where)
            rows.append(Row(_kinetics_names(row, where), row.get("label", ""), own, where))
    return rows


def _kinetics_names(row: dict[str, str], where: str) -> tuple[str, ...]:
    if not row.get("time_start"):
        return (row["youtube_id"],)
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where}: time_start, time_end are no seconds") from error
    return (f"{row['youtube_id']}_{start:06d}_{end:06d}", row["youtube_id"])


def read_mini_kinetics(
    annotations: Sequence[str], kinetics: Sequence[str] | None = None
) -> list[Row]:
    """Mini-Kinetics: AR-Net's lists (see `list`), or S3D's ids with Kinetics' own CSVs.

    The paper's is AR-Net's, 121k / 10k videos; S3D's, an id a line, has 80k / 5k. An id that the
    CSVs do not have is a row without a label.
    """
    if kinetics is None:
        return read_list(annotations)
    known, rows = {row.names[-1]: row for row in read_kinetics(kinetics)}, []
    for path, split in map(file_and_split, annotations):
        ids = list(text_lines(path))
        if not any(name in known for _, name in ids):
            raise ValueError(
                f"{path}: none of its {len(ids)} ids is in {', '.join(kinetics)}; give --kinetics "
                "the CSVs that list them"
            )
        for where, name in ids:
            video = known.get(name, Row((name,), "", "", ""))
            rows.append(Row(video.names, video.label, parse_split(split, path, where), where))
    return rows


def read_something(annotations: Sequence[str]) -> list[Row]:
    """Something-Something's own files: JSON with templates (V2), or lines `id;label` (V1).

    A label is the template without its brackets. Test files name ids alone; V2's test answers are
    lines `id;label`. Videos are `<id>`, files or folders of frames.
    """
    rows = []
    for path, split in map(file_and_split, annotations):
        for where, name, label in _something_lines(path):
            label = re.sub(r"[\[\]]", "", label).strip()
            rows.append(Row((name,), label, parse_split(split, path, where), where))
    return rows


def _something_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where, id and label of each line."""
    if path.suffix.lower() == ".json":
        for i, entry in enumerate(load_json(path, (list,))):
            where = f"{path}, entry {i + 1}"
            if not isinstance(entry, dict) or "id" not in entry:
                raise ValueError(f"{where}: expected an object with id and template, got {entry}")
            yield where, str(entry["id"]), entry.get("template", "")
        return
    for where, fields in read_fields(path, ";"):
        if len(fields) > 2:
            raise ValueError(f"{where}: {len(fields)} fields, expected id;label")
        yield where, fields[0].strip(), fields[1] if len(fields) == 2 else ""


LAYOUTS = {None: "<class>/<video>", 0: "<split>/<class>/<video>", 1: "<class>/<split>/<video>"}


def read_folders(
    videos: str | Path, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> list[Row]:
    """Folders `<split>/<class>/<video>`; or `<class>/<video>`, split by a hash of each path.

    So a video keeps its split when others come and go. A split is named train, val, dev, test or
    alike (train_256, Validation); `<class>/<split>/<video>` is read too. Folders of which some name
    a split and some do not, or that may be classes or something above them, are an error.

    Args:
        fractions: of train, val and test, where the folders tell no split; they sum to 1.
    """
    hash_split("", fractions)  # refuses bad ones, used or not
    rows, paths = [], [Path(path) for path in list_folder(videos).videos]
    level = _split_level(Path(videos), paths)
    depth = len(Path(LAYOUTS[level]).parts)
    for path in paths:
        where, parts, note = str(Path(videos, path)), path.parts, ""
        if len(parts) < depth or (level == 1 and len(parts) > depth):
            raise ValueError(f"{where}: expected {LAYOUTS[level]} below {videos}")
        split = split_of_folder(parts[level or 0])
        if level is None:
            note = f"folder {parts[0]} is taken for a class, not for {split}" * bool(split)
            split = hash_split(f"{seed}/{path.as_posix()}", fractions)
        elif parts[level].lower() != split:
            note = f"folder {parts[level]} is the split {split}"
        rows.append(Row((str(path),), parts[int(level == 0)], split, where, note))
    if len({row.label for row in rows}) == 1 and all(len(path.parts) > depth for path in paths):
        raise ValueError(
            f"{videos}: {rows[0].label} would be the only class, for all videos; give --videos the "
            f"folder that holds {LAYOUTS[level]}"
        )
    return rows


def _split_level(videos: Path, paths: Sequence[Path]) -> int | None:
    """Which folder of the paths names the split: 0, 1, or None where none does.

    Raises:
        ValueError: some folders do and some do not, or in two words for one split; or all folders
            hold the same ones, so that either may be the classes.
    """
    for level in (0, 1):
        inner = [path.parts for path in paths if len(path.parts) > level + 1]
        names = {parts[level] for parts in inner}
        splits = {name for name in names if split_of_folder(name)}
        other = sorted(names - splits)
        told = sorted({word for name in splits for word in words(name) if word in SPLITS})
        if level == 0 and len(told) == 1 and other and all(len(parts) == 2 for parts in inner):
            continue  # a class of this name: there is no folder of a class below it
        if told and other:
            raise ValueError(
                f"{videos}: folders {', '.join(told)} are splits, but {', '.join(other[:5])} none; "
                f"rename or move these, or use the words {', '.join(SPLITS)}"
            )
        for split in {SPLITS[word] for word in told}:
            same = [word for word in told if SPLITS[word] == split]
            if len(same) > 1:
                raise ValueError(f"{videos}: {' and '.join(same)} are one split; rename one")
        if told:
            return level
    below: dict[str, set[str]] = {}  # folder -> those within it
    for parts in inner:
        below.setdefault(parts[0], set()).add(parts[1])
    shared = set.intersection(*below.values()) if len(below) > 1 else set()
    if shared:
        raise ValueError(
            f"{videos}: each of {', '.join(sorted(below)[:5])} holds "
            f"{', '.join(sorted(shared)[:5])}; which are the classes? Name the splits train, val "
            "and test, or give the videos of a class one folder"
        )
    return None


def cut_val(rows: Sequence[Row], share: float) -> list[Row]:
    """Rows of which a share of the training videos are for validation, by a hash of their names.

    For data sets that have training and test videos alone: designs are not to be chosen on test.

    Raises:
        ValueError: there are rows for validation, or the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"--val: expected a share of the training videos, in (0, 1), got {share}")
    if held := next((row for row in rows if row.split == "val"), None):
        raise ValueError(f"--val {share:g}: there are videos for validation ({held.where})")
    fractions = (1 - share, share, 0)
    return [
        row._replace(split=hash_split(row.names[0], fractions)) if row.split == "train" else row
        for row in rows
    ]


def hash_split(text: str, fractions: Sequence[float]) -> str:
    """The split of a text, always the same, whatever other ones there are.

    Raises:
        ValueError: fractions, of train, val and test, are not three that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three numbers >= 0 that sum to 1, got {fractions}")
    u = int.from_bytes(hashlib.sha1(os.fsencode(text)).digest()[:8]) / 2**64  # uniform in [0, 1)
    return "train" if u < fractions[0] else "val" if u < sum(fractions[:2]) else "test"
