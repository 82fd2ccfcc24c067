"""The classes of a data set: their names and numbers, as owners write them -> 0 to N - 1.

Owners count from 0 or from 1, and a list need not count as its file of classes does (UCF101's does,
those that mmaction2 and PaddleVideo make of it do not). What cannot be told apart is an error.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

from s2dlib.data.table import load_json, text_lines


class Row(NamedTuple):
    """A line of an owner's file."""

    names: tuple[str, ...]  # of its video, likeliest first: a path or the end of one
    label: str | int  # a class's name or index; "": the file tells none
    split: str
    where: str  # "file, line 3"
    note: str = ""  # what had to be understood, if anything; told once

    @property
    def file(self) -> str:
        return self.where.rsplit(", ", 1)[0]

    @property
    def folder(self) -> str:
        """The folder that its video is listed in, as normalise() writes it."""
        parts = re.split(r"[/\\]", self.names[0])
        return normalise(parts[-2]) if len(parts) > 1 else ""


class Classes(NamedTuple):
    """Names in their owner's order, and the number of the first: 0, 1, or None where none has."""

    names: Sequence[str]
    first: int | None = None


SEPARATOR = r"(?:[ \t]*[,;:.)\t][ \t]*|[ \t]+)"
LEADING = re.compile(rf'["(\[]?(?P<number>-?\d+)["\])]?{SEPARATOR}(?P<name>\S.*)')
TRAILING = re.compile(r'(?P<name>.*\S)(?:[ \t]*[,;:\t][ \t]*|[ \t]+)"?(?P<number>-?\d+)"?')
NUMBER_HEADINGS = {"id", "index", "idx", "number", "label", "label_id", "class_id", "class_index"}
NAME_HEADINGS = {"name", "names", "class", "classes", "label", "labels", "action", "category"}
NAME_HEADINGS |= {"class_name", "label_name", "action_name"}


def read_classes(path: str | Path) -> Classes:
    """Class names, a line each or in JSON, alone or with their indices on either side.

    Raises:
        ValueError: a class twice, indices other than 0 to N - 1 or 1 to N, a line that has none
            where others do, a heading that may be a class.
    """
    is_json = Path(path).suffix.lower() == ".json"
    entries = _json_entries(path) if is_json else _text_entries(path)
    seen: dict[str, str] = {}  # name -> where
    for where, _, name in entries:
        if name in seen:
            raise ValueError(f"{where}: class {name!r} is in {seen[name]} already")
        seen[name] = where
    if not entries:
        raise ValueError(f"{path}: no class in it")
    numbers = sorted(number for _, number, _ in entries if number is not None)
    if not numbers:
        return Classes([name for *_, name in entries])
    first, n = int(numbers[0] > 0), len(entries)
    if numbers != list(range(first, first + n)):
        wrong = next(i for i, number in enumerate(numbers, first) if number != i)
        raise ValueError(
            f"{path}: indices must be 0 to {n - 1} or 1 to {n}, each once, but there is "
            f"{numbers[wrong - first]} for {wrong}. If these numbers belong to the names, write an "
            "index before each name"
        )
    return Classes([name for *_, name in sorted(entries, key=lambda entry: entry[1] or 0)], first)


Entry = tuple[str, int | None, str]  # where, index, name


def _json_entries(path: str | Path) -> list[Entry]:
    """A list of names, name -> index, or index -> name."""
    content = load_json(path, (dict, list))
    if isinstance(content, list):
        return [(f"{path}, entry {i + 1}", None, clean(name)) for i, name in enumerate(content)]
    by_key, by_value = (
        all(re.fullmatch(r"-?\d+", str(text).strip()) for text in side)
        for side in (content, content.values())
    )
    if by_key == by_value:
        reason = "both sides are numbers" if by_key else "neither side is all integers"
        raise ValueError(f"{path}: expected name -> index or index -> name, but {reason}")
    return [
        (f"{path}, {key!r}", int(key if by_key else value), clean(value if by_key else key))
        for key, value in content.items()
    ]


def _text_entries(path: str | Path) -> list[Entry]:
    """A name a line, all with an index or none; a heading `id,name` is passed over."""
    lines = list(text_lines(path))
    words = [clean(word).lower() for word in re.split(r"[,;\t ]+", lines[0][1])] if lines else []
    if len(words) == 1 and words[0] in NAME_HEADINGS:
        raise ValueError(
            f"{lines[0][0]}: a heading, or a class named {words[0]!r}? Delete the line, or write "
            "an index before each name"
        )
    if len(words) == 2 and words[0] in NUMBER_HEADINGS and words[1] in NAME_HEADINGS:
        return _numbered(LEADING, lines[1:], always=True)
    if len(words) == 2 and words[1] in NUMBER_HEADINGS and words[0] in NAME_HEADINGS:
        return _numbered(TRAILING, lines[1:], always=True)
    return (
        _numbered(LEADING, lines)
        or _numbered(TRAILING, lines)
        or [(where, None, clean(line)) for where, line in lines]
    )


def _numbered(
    pattern: re.Pattern[str], lines: Sequence[tuple[str, str]], always: bool = False
) -> list[Entry]:
    """Entries of lines that all have an index; none where their numbers belong to the names.

    Raises:
        ValueError: a line has none where they always have one, or where most others do.
    """
    matches = [(where, pattern.fullmatch(line)) for where, line in lines]
    entries = [(where, int(m["number"]), clean(m["name"])) for where, m in matches if m]
    numbers, names = ({entry[i] for entry in entries} for i in (1, 2))
    apart = len(names) == len(numbers) == len(entries) > 1 and not numbers.isdisjoint((0, 1))
    if len(entries) < len(lines) and (always or (apart and 2 * len(entries) >= len(lines))):
        where = next(where for where, match in matches if match is None)
        raise ValueError(f"{where}: no index, which {len(entries)} other lines have")
    repeats = pattern is TRAILING and len(names) < len(entries)  # gesture 1, gesture 2
    return [] if len(entries) < len(lines) or (repeats and not always) else list(entries)


def clean(text: object) -> str:
    """A name without the quotes and blanks around it, its accents composed (Unicode NFC)."""
    return unquote(unicodedata.normalize("NFC", str(text)).strip()).strip()


def unquote(text: str) -> str:
    """A field of a CSV without its quotes."""
    is_quoted = re.fullmatch(r'"(?:[^"]|"")*"', text) is not None
    return text[1:-1].replace('""', '"') if is_quoted else text


def normalise(text: str) -> str:
    """A name in plain letters: owners and disks spell classes in many ways."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFC", text).lower()))


def number_labels(
    rows: Sequence[Row], classes: Classes | None
) -> tuple[list[int], list[str] | None, list[str]]:
    """The index of each row's class, from 0.

    Returns:
        An index a row; the classes' names, where they have any; notes, a sentence each.

    Raises:
        ValueError: an unknown class, an index out of range, or that may count from 0 or from 1.
    """
    indexed = [row for row in rows if not isinstance(row.label, str)]
    notes: list[str] = []
    if classes is None and indexed and len(indexed) < len(rows):
        text = next(row for row in rows if isinstance(row.label, str))
        raise ValueError(
            f"{text.where}: class {text.label!r} is a name, but {indexed[0].where} has an index; "
            "--classes must say which is which"
        )
    if classes is None and not indexed:
        names = sorted({clean(row.label) for row in rows})
        classes = Classes(names)
        spelt = Counter(map(normalise, names))
        alike = [name for name in names if spelt[normalise(name)] > 1]
        notes += [f"classes that differ in their spelling alone: {', '.join(alike)}"] * bool(alike)
    first = _first_index(indexed, classes, notes) if indexed else 0
    if classes is None:  # numbers alone, without gaps if they count from 1
        numbers = {int(row.label) for row in rows}
        n = max(numbers, default=0) + 1 - first
        if n > len(numbers) > 0:
            some = islice((str(i) for i in range(n) if i not in numbers), 5)
            notes.append(f"{n - len(numbers)} of {n} classes have no video: {', '.join(some)} ...")
        if first == 1:  # each is named by its owner's index
            classes = Classes([str(i) for i in sorted(numbers)])
    names = [clean(name) for name in classes.names] if classes else []
    indices = {normalise(name): i for i, name in enumerate(names)}
    indices |= {name: i for i, name in enumerate(names)}
    labels = []
    for row in rows:
        if not isinstance(row.label, str):
            labels.append(row.label - first)
            continue
        label = indices.get(clean(row.label), indices.get(normalise(row.label)))
        if label is None:
            raise ValueError(f"{row.where}: {row.label!r} is none of the {len(names)} classes")
        labels.append(label)
    return labels, names or None, notes


def _first_index(rows: Sequence[Row], classes: Classes | None, notes: list[str]) -> int:
    """The index of the first class in rows that have indices: 0 or 1."""
    _check_same_numbers(rows)
    labels = [int(row.label) for row in rows]
    low, high, n = min(labels), max(labels), len(classes.names) if classes else 0
    first = _first_by_folder(rows, classes)
    own = classes.first if classes else None
    if first is None and own is not None and 0 < low and high < own + n:
        first = own
    if first is None and low == 1 and len(set(labels)) == high == (n or high):
        first = 1
    if first is None and low > 0 and (not n or high < n):
        raise ValueError(
            f"{rows[labels.index(low)].where}: no label is 0, the lowest is {low}. Whether they "
            "count from 0 or from 1 can be told by --classes, a file of lines `index name`"
        )
    first = first or 0
    for label in (low, high):
        if label < first or (n and label >= first + n):
            allowed = f"{first} to {first + n - 1}" if n else ">= 0"
            where = rows[labels.index(label)].where
            raise ValueError(f"{where}: label must be {allowed}, got {label}")
    if own is not None and first != own:
        notes.append(f"classes count from {own}, lists from {first}: taken in order")
    elif first == 1:
        notes.append("labels count from 1 in the lists, from 0 in the index")
    return first


def _first_by_folder(rows: Sequence[Row], classes: Classes | None) -> int | None:
    """Where indices start, if the videos' folders are named like the classes."""
    numbers = {normalise(name): i for i, name in enumerate(classes.names)} if classes else {}
    known = [row for row in rows if row.folder and row.folder in numbers]
    if 2 * len(known) <= len(rows):
        return None
    by_offset = {int(row.label) - numbers[row.folder]: row for row in reversed(known)}
    if len(by_offset) == 1 and not by_offset.keys().isdisjoint((0, 1)):
        return next(iter(by_offset))
    row = by_offset[max(by_offset, key=abs)]
    raise ValueError(
        f"{row.where}: label {row.label} does not fit the folder of {row.names[0]}, which names "
        f"class {numbers[row.folder]} (from 0) of the file of classes"
    )


def _check_same_numbers(rows: Sequence[Row]) -> None:
    """ValueError where two files number classes differently, as folders or the ranges show."""
    files: dict[str, dict[str, set[int]]] = {}  # file -> folder -> labels
    for row in rows:
        folders = files.setdefault(row.file, {})
        folders.setdefault(row.folder, set()).add(int(row.label))
    for a, b in combinations(files, 2):
        both = [folder for folder in files[a].keys() & files[b].keys() if folder]
        pairs = [(files[a][folder], files[b][folder]) for folder in both]
        pairs = [pair for pair in pairs if len(pair[0]) == len(pair[1]) == 1]
        first, second = sorted((set().union(*files[f].values()) for f in (a, b)), key=min)
        shifted = len(first) > 1 and first == set(range(len(first))) == {i - 1 for i in second}
        if (len(pairs) > 1 and all(p != q for p, q in pairs)) or (shifted and not pairs):
            raise ValueError(
                f"{a} and {b} number the classes differently; make one follow the other"
            )
