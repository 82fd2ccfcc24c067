"""A CSV that grows by a row at a time and goes on where an earlier process stopped."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from s2dlib.data.files import append_text, as_text, write_atomic

Row = dict[str, str]


class OtherRows(ValueError):
    """A table of another kind of rows, which may be as good."""


class RowTable:
    """Rows of text below a fixed header; valid CSV in UTF-8 at any moment, a line a row.

    A line that a kill has torn is dropped when the table is opened next. A spreadsheet may have
    saved the file, with other line ends and quotes. Processes side by side may append to one table.

    Attributes:
        rows: those that were there when it was opened, and those appended since.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], settle: Callable[[list[Row]], list[Row]]
    ) -> None:
        """Make the table, or open one that is there.

        Args:
            settle: leaves out rows that later ones stand for.

        Raises:
            OtherRows: the file has another header, or `settle` says so.
            ValueError: it is damaged.
        """
        self.path, self.columns, self._settle = path, list(columns), settle
        path.parent.mkdir(parents=True, exist_ok=True)
        self.settle()

    def append(self, row: Mapping[str, object]) -> None:
        """Write a row at once; columns that it lacks stay empty, line breaks become spaces."""
        texts = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        texts = dict.fromkeys(self.columns, "") | texts
        with _locked(self.path.parent):
            with self.path.open("rb") as file:
                self._check_header(file.readline())
            append_text(self.path, self._text(texts.values()))
        self.rows.append(texts)

    def settle(self) -> None:
        """Read the rows again, those of other processes too, and drop the superseded ones."""
        with _locked(self.path.parent):
            before = self.path.read_bytes() if self.path.exists() else b""
            self.rows = self._settle(self._parse(before))
            text = self._text(self.columns, *(row.values() for row in self.rows))
            if text.encode() != before:
                write_atomic(self.path, text)

    def _parse(self, content: bytes) -> list[Row]:
        if content:
            self._check_header(content)
        whole = content[: content.rfind(b"\n") + 1].decode("utf-8-sig", "replace")
        try:
            lines = list(csv.reader(io.StringIO(whole, newline=""), strict=True))[1:]
        except csv.Error as error:
            raise ValueError(f"{as_text(self.path)}: damaged ({error}); move it") from error
        for i, fields in enumerate(lines, 1):
            if len(fields) not in (0, len(self.columns)):
                expected = f"expected {len(self.columns)} fields, got {len(fields)}"
                raise ValueError(f"{as_text(self.path)}, row {i}: {expected}; mend or move it")
        return [dict(zip(self.columns, fields, strict=True)) for fields in lines if fields]

    def _check_header(self, content: bytes) -> None:
        first, end, _ = content.partition(b"\n")
        if not end or [*csv.reader([first.decode("utf-8-sig", "replace")])] != [self.columns]:
            raise OtherRows(f"{as_text(self.path)}: expected the columns {', '.join(self.columns)}")

    def _text(self, *lines: Iterable[str]) -> str:
        """Lines of the file."""
        text = io.StringIO()
        flat = ([re.sub(r"[\r\n]+", " ", value) for value in line] for line in lines)
        csv.writer(text, lineterminator="\n").writerows(flat)
        return text.getvalue().encode("utf-8", "backslashreplace").decode()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is within this block for the same folder."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # disks of a network may know no lock of a folder
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
