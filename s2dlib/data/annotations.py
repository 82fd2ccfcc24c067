"""A data set as its owner ships it -> the one CSV of this project (Sec. 4.1).

    s2d index kinetics400 --annotations train.csv val.csv --videos DIR

An owner's file names a video by an id or a path, seldom just as it lies on a disk: index.py finds
it. Every reader here gives rows that say in which file and line they were.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from s2dlib.data.index import Row, list_videos, read_fields

T = TypeVar("T", list, dict)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read_kinetics(annotations: Sequence[str]) -> list[Row]:
    """Kinetics' own CSVs: columns label,youtube_id,time_start,time_end,split and others.

    The test split's may lack labels. Videos are `<id>_<start>_<end>`, or `<id>`, in any folder, so
    that it does not matter how a folder spells its class.
    """
    rows = []
    for path, split in map(_file_and_split, annotations):
        lines = read_fields(path, ",")
        header = [name.strip().lower() for name in next(lines, ("", []))[1]]
        if "youtube_id" not in header:
            raise ValueError(
                f"{path}: no column youtube_id in {header}; expected Kinetics' own file, with "
                "label,youtube_id,time_start,time_end,split"
            )
        for where, fields in lines:
            if len(fields) != len(header):
                raise ValueError(f"{where}: {len(fields)} fields, expected {len(header)}")
            row = dict(zip(header, map(str.strip, fields), strict=True))
            own = _parse_split(row.get("split") or split, path, where)
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
    for path, split in map(_file_and_split, annotations):
        ids = list(_text_lines(path))
        if not any(name in known for _, name in ids):
            raise ValueError(
                f"{path}: none of its {len(ids)} ids is in {', '.join(kinetics)}; give --kinetics "
                "the CSVs that list them"
            )
        for where, name in ids:
            video = known.get(name, Row((name,), "", "", ""))
            rows.append(Row(video.names, video.label, _parse_split(split, path, where), where))
    return rows


def read_something(annotations: Sequence[str]) -> list[Row]:
    """Something-Something's own files: JSON with templates (V2), or lines `id;label` (V1).

    A label is the template without its brackets. Test files name ids alone; V2's test answers are
    lines `id;label`. Videos are `<id>`, files or folders of frames.
    """
    rows = []
    for path, split in map(_file_and_split, annotations):
        for where, name, label in _something_lines(path):
            label = re.sub(r"[\[\]]", "", label).strip()
            rows.append(Row((name,), label, _parse_split(split, path, where), where))
    return rows


def _something_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where, id and label of each line."""
    if path.suffix.lower() == ".json":
        for i, entry in enumerate(_load_json(path, list)):
            where = f"{path}, entry {i + 1}"
            if not isinstance(entry, dict) or "id" not in entry:
                raise ValueError(f"{where}: expected an object with id and template, got {entry}")
            yield where, str(entry["id"]), entry.get("template", "")
        return
    for where, fields in read_fields(path, ";"):
        if len(fields) > 2:
            raise ValueError(f"{where}: {len(fields)} fields, expected id;label")
        yield where, fields[0].strip(), fields[1] if len(fields) == 2 else ""


LINE = re.compile(r"(?P<path>.+?)(?:[ \t;,]+\d+)?[ \t;,]+(?P<label>-?\d+)")
CLIP = re.compile(r"(?:^|[/\\])([\w-]{11})(_\d{6}_\d{6})(?:\.\w+)?$")  # of Kinetics


def read_list(annotations: Sequence[str]) -> list[Row]:
    """Lists of TSN, TSM, AR-Net, AdaFocus, TDN: `path num_frames label`, or `path label`, a line.

    The path, which may hold spaces, is a video or a folder of frames. Kinetics' clips are also
    looked for by their name alone, since each list has folders of its own.
    """
    rows = []
    for path, split in map(_file_and_split, annotations):
        for where, line in _text_lines(path):
            match = LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{where}: expected `path num_frames label`, got {line!r}")
            clip = CLIP.search(match["path"])
            names = (match["path"], *((clip[1] + clip[2], clip[1]) if clip else ()))
            rows.append(Row(names, int(match["label"]), _parse_split(split, path, where), where))
    return rows


def read_folders(
    videos: str | Path, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> list[Row]:
    """Folders `<split>/<class>/<video>`; or `<class>/<video>`, split by a hash of each path.

    So a video keeps its split when others come and go.

    Args:
        fractions: of train, val and test, where the folders tell no split; they sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three numbers >= 0 that sum to 1, got {fractions}")
    rows, paths = [], [Path(path) for path in list_videos(videos)]
    has_splits = all(path.parts[0].lower() in SPLITS for path in paths)
    for path in paths:
        where = str(Path(videos, path))
        if len(path.parts) < 2 + has_splits:
            layout = "<split>/<class>/<video>" if has_splits else "<class>/<video>"
            raise ValueError(f"{where}: expected {layout} below {videos}")
        hashed = hash_split(f"{seed}/{path.as_posix()}", fractions)
        split = SPLITS[path.parts[0].lower()] if has_splits else hashed
        rows.append(Row((str(path),), path.parts[has_splits], split, where))
    return rows


def hash_split(text: str, fractions: Sequence[float]) -> str:
    """The split of a text, always the same, whatever other ones there are."""
    u = int.from_bytes(hashlib.sha1(text.encode()).digest()[:8]) / 2**64  # uniform in [0, 1)
    return "train" if u < fractions[0] else "val" if u < sum(fractions[:2]) else "test"


def read_classes(path: str | Path) -> list[str]:
    """Class names in their owner's order: one a line, or JSON name -> index.

    Raises:
        ValueError: a class twice, or indices other than 0 to N - 1.
    """
    if Path(path).suffix.lower() == ".json":
        indices = {name: int(index) for name, index in _load_json(path, dict).items()}
        if sorted(indices.values()) != list(range(len(indices))):
            raise ValueError(f"{path}: indices must be 0 to {len(indices) - 1}, each once")
        return sorted(indices, key=indices.__getitem__)
    names: dict[str, str] = {}  # -> where
    for where, line in _text_lines(path):
        name = line.strip('"')
        if name in names:
            raise ValueError(f"{where}: class {name!r} is in {names[name]} already")
        names[name] = where
    return list(names)


def _file_and_split(text: str) -> tuple[Path, str]:
    """`SPLIT=FILE`, or a file whose name tells its split, or one that does not ("")."""
    word, _, rest = text.partition("=")
    if rest and word.lower() in SPLITS:
        return Path(rest), SPLITS[word.lower()]
    found = set(re.findall("train|val|test", Path(text).name.lower()))
    return Path(text), found.pop() if len(found) == 1 else ""


def _parse_split(word: str, path: Path, where: str) -> str:
    if not word:
        raise ValueError(f"{path}: its name tells no split; give it as SPLIT=FILE, train={path}")
    if word.lower() not in SPLITS:
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {word!r}")
    return SPLITS[word.lower()]


def _text_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Where, and each line that is not blank."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error})") from error
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {i}", line.strip()


def _load_json(path: str | Path, kind: type[T]) -> T:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value
