"""The list of a data set's videos: a CSV path,label,split."""

from __future__ import annotations

import csv as csv_format
import json
import os
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("path", "label", "split")


def read_csv(csv: str | Path) -> pd.DataFrame:
    """Read a data set's list of videos: columns path, label, split, and any others.

    Paths are relative to the file's own folder. Labels that are all integers are class indices,
    named by a column label_name where there is one; other labels are names, numbered in sorted
    order over all splits.

    Returns:
        path (absolute), label (index), split, class_name, and the other columns as text.
    """
    import pandas as pd

    if not os.path.isfile(csv):
        raise FileNotFoundError(
            f"{os.path.abspath(csv)}: no such file; a data set is a CSV path,label,split, which "
            "s2d index makes of what its owner ships; see data/README.md"
        )
    (_, header), *rows = [*read_lines(csv)] or [(0, [])]
    columns = [name.strip() for name in header]
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(f"{csv}: no column {', '.join(missing)}; the columns are {columns}")
    if not rows:
        raise ValueError(f"{csv}: no rows below the header")
    records = []
    for where, record in as_records(columns, ((f"{csv}, row {i}", fields) for i, fields in rows)):
        if empty := [name for name in REQUIRED if not record[name].strip()]:
            raise ValueError(f"{where}: {empty[0]} is empty")
        records.append(record)
    table = pd.DataFrame(records, index=[i for i, _ in rows], dtype=object)
    table["split"] = table["split"].str.strip()
    for column in {"label", "label_name"} & set(columns):  # composed, so that one class is one
        table[column] = table[column].str.strip().str.normalize("NFC")
    folder = os.path.abspath(os.path.dirname(csv))
    table["path"] = [absolute_path(folder, path) for path in table["path"]]
    if (twice := table["path"].duplicated()).any():
        line = twice.idxmax()
        first = (table["path"] == table["path"][line]).idxmax()
        raise ValueError(f"{csv}, row {line}: {table['path'][line]} is in row {first} already")
    _number_labels(table, csv)
    return table.reset_index(drop=True)


def read_lines(path: str | Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line of a CSV that is not blank."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a BOM
            lines = csv_format.reader(file, delimiter=delimiter, skipinitialspace=True)
            yield from ((lines.line_num, fields) for fields in lines if fields)
    except (UnicodeDecodeError, csv_format.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def read_fields(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Where, and the fields of each line that is not blank."""
    return ((f"{path}, line {n}", fields) for n, fields in read_lines(path, delimiter))


def as_records(
    columns: Sequence[str], lines: Iterable[tuple[str, list[str]]]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where, and the fields of each line by their columns; ValueError where one lacks some."""
    for where, fields in lines:
        if len(fields) != len(columns):
            raise ValueError(f"{where}: {len(fields)} fields, expected {len(columns)}")
        yield where, dict(zip(columns, fields, strict=True))


def text_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Where, and each line that is not blank, without the blanks around it."""
    for i, line in enumerate(Path(path).read_bytes().removeprefix(BOM_UTF8).splitlines(), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {i}: not a text in UTF-8 ({error})") from error
        if text:
            yield f"{path}, line {i}", text


def load_json(path: str | Path, kinds: tuple[type, ...]) -> Any:  # noqa: ANN401
    """The content of a JSON file, of one of some types."""
    value = parse_json(str(path), Path(path).read_bytes())
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{path}: expected a JSON {names}, got {type(value).__name__}")
    return value


def parse_json(where: str, text: str | bytes) -> Any:  # noqa: ANN401
    """The value of a JSON text; an error, also a key that is there twice, begins with `where`."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if repeated := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
            raise ValueError(f"{repeated[0]!r} is there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON, or not clear ({error})") from error


ESCAPED = re.compile(r"\\x([89a-f][0-9a-f])")


def escape(text: str) -> str:
    r"""A text that a file in UTF-8 can hold: bytes of a path that are not UTF-8 become \xdf."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def absolute_path(folder: str | Path, text: str) -> str:
    """The path that a CSV of that folder means by a text, escaped or not."""
    path = os.path.normpath(os.path.join(folder, text))
    if ESCAPED.search(text) and not os.path.lexists(path):
        return ESCAPED.sub(lambda match: os.fsdecode(bytes.fromhex(match[1])), path)
    return path


def _number_labels(table: pd.DataFrame, csv: str | Path) -> None:
    """Turn the column label into class indices and add class_name. The table's index is the row."""
    import numpy as np

    is_index = table["label"].str.fullmatch(r"[+-]?\d+").astype(bool)
    if "label_name" in table and not is_index.all():
        line = is_index.idxmin()
        label = table["label"][line]
        raise ValueError(f"{csv}, row {line}: with label_name, label is an integer, got {label!r}")
    if not is_index.all():
        table["class_name"] = table["label"]
        table["label"] = np.unique(table["label"].astype(str), return_inverse=True)[1]
        return
    table["label"] = table["label"].astype(int)
    if (table["label"] < 0).any():
        line = table["label"].idxmin()
        raise ValueError(f"{csv}, row {line}: label must be >= 0, got {table['label'][line]}")
    table["class_name"] = table["label"].astype(str)
    if "label_name" not in table:
        n = table["label"].nunique()
        if n > 1 and table["label"].min() == 1 and table["label"].max() == n:
            raise ValueError(f"{csv}: labels run from 1 to {n}; they must count from 0")
        return
    table["class_name"] = table["label_name"]
    for a, b in (("label", "class_name"), ("class_name", "label")):
        first = table.groupby(a)[b].transform("first")
        if (differs := first != table[b]).any():
            line = differs.idxmax()
            raise ValueError(
                f"{csv}, row {line}: {a} {table[a][line]} has {b} {table[b][line]}, "
                f"but {first[line]} in an earlier row"
            )


def class_names(table: pd.DataFrame) -> list[str]:
    """Names of classes 0..N-1 of a whole table of read_csv; one without a video is named str(n)."""
    names = dict(zip(table["label"], table["class_name"], strict=True))
    return [names.get(i, str(i)) for i in range(int(table["label"].max()) + 1)]
