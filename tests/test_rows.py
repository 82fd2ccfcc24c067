"""A table that grows by rows: nothing that was written is lost, and it goes on."""

from __future__ import annotations

import csv
import io
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from s2dlib.data.rows import OtherRows, RowTable

COLUMNS = ["path", "error", "value"]
NAMES = ["plain", "größe, 日本", 'with "quotes"', "two lines", " ", ""]
CHILD = """
import sys
from pathlib import Path
from s2dlib.data.rows import RowTable
table = RowTable(Path(sys.argv[1]), ["path", "error", "value"], list)
"""


def opened(path: Path) -> RowTable:
    return RowTable(path, COLUMNS, list)


def filled(path: Path) -> list[str]:
    """Append NAMES; every path that must be there."""
    table = opened(path)
    for n, name in enumerate([*NAMES[:3], "two\r\nlines", "\r", ""]):
        table.append({"path": name, "value": n / 3})
        read = pd.read_csv(path, keep_default_na=False)  # valid at any moment
        assert len(read) == n + 1 and read["path"][0] == "plain"
    return NAMES


def test_rows_are_there_as_they_come_and_again_when_opened(tmp_path):
    filled(tmp_path / "new" / "rows.csv")
    table = opened(tmp_path / "new" / "rows.csv")
    assert [row["path"] for row in table.rows] == NAMES
    assert table.rows[1] == {"path": NAMES[1], "error": "", "value": "0.3333"}
    table.append({"path": "more"})
    assert [row["path"] for row in opened(table.path).rows] == [*NAMES, "more"]
    assert [p.name for p in table.path.parent.iterdir()] == ["rows.csv"]


def test_a_line_torn_at_any_byte_is_dropped_and_no_other_one(tmp_path):
    path = tmp_path / "rows.csv"
    filled(path)
    whole = path.read_bytes()
    ends, header = [], len("path,error,value\n")
    for n in range(len(NAMES) + 1):  # where the first n rows end
        text = io.StringIO(whole.decode(), newline="")
        lines = itertools.islice(csv.reader(text), n + 1)
        assert len(list(lines)) == n + 1
        ends.append(len(text.getvalue()[: text.tell()].encode()))
    assert ends[0] == header and ends[-1] == len(whole)
    for cut in range(header, len(whole) + 1):
        path.write_bytes(whole[:cut])
        table = opened(path)
        n = sum(end <= cut for end in ends[1:])
        assert [row["path"] for row in table.rows] == NAMES[:n], cut
        table.append({"path": "after"})
        assert [row["path"] for row in opened(path).rows] == [*NAMES[:n], "after"]


def test_a_kill_loses_no_row(tmp_path):
    code = CHILD + "for n in range(10**9):\n    table.append({'path': n}), print(n, flush=True)"
    command = [sys.executable, "-c", code, tmp_path / "rows.csv"]
    for _ in range(2):  # the second one goes on
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            told = [child.stdout.readline() for _ in range(30)]
            child.send_signal(signal.SIGKILL)
            told += child.stdout.readlines()
        rows = [row["path"] for row in opened(tmp_path / "rows.csv").rows]
        n = sum(line.endswith("\n") for line in told)
        own = rows[len(rows) - 1 - rows[::-1].index("0") :]  # since the last start
        assert own[:n] == [str(i) for i in range(n)] and len(own) <= n + 1
    assert rows.count("0") == 2


def test_a_full_disk_takes_no_half_row_and_leaves_the_others(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    code = CHILD + limit + "while True:\n    table.append({'path': 'x' * 64})"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "rows.csv"], capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1].startswith("OSError: [Errno"), done.stderr
    content = (tmp_path / "rows.csv").read_text()
    assert content == "path,error,value\n" + f"{'x' * 64},,\n" * ((1000 - 17) // 67)


def test_processes_side_by_side_keep_each_others_rows(tmp_path):
    code = CHILD + (
        "for n in range(100):\n"
        "    table.append({'path': f'{sys.argv[2]}-{n}'})\n"
        "    if n % 10 == 0:\n"
        "        table._settle = list if n % 20 else lambda rows: rows[:1] + rows\n"
        "        table.settle()"
    )
    command = [sys.executable, "-c", code, tmp_path / "rows.csv"]
    children = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [child.wait() for child in children] == [0, 0]
    rows = {row["path"] for row in opened(tmp_path / "rows.csv").rows}
    assert rows == {f"{name}-{n}" for name in "ab" for n in range(100)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n", b"\r\n"),
        (b"path,", b"\xef\xbb\xbfpath,"),
        (b"path,error", b'"path","error"'),
        (b"plain", b'"plain"'),
        (b"\nplain", b"\n\n\nplain"),
        (b",,0\n", b",,0\n\n"),
    ],
)
def test_a_table_that_a_spreadsheet_or_an_editor_has_saved_goes_on(old, new, tmp_path):
    filled(tmp_path / "rows.csv")
    content = (tmp_path / "rows.csv").read_bytes()
    (tmp_path / "rows.csv").write_bytes(content.replace(old, new))
    table = opened(tmp_path / "rows.csv")
    assert [row["path"] for row in table.rows] == NAMES
    assert table.path.read_bytes() == content
    table.path.write_bytes(content.replace(old, new))  # saved meanwhile
    table.append({"path": "more"})
    assert [row["path"] for row in opened(table.path).rows] == [*NAMES, "more"]


def test_what_settle_leaves_out_is_gone_from_the_file(tmp_path):
    filled(tmp_path / "rows.csv")
    RowTable(tmp_path / "rows.csv", COLUMNS, lambda rows: rows[1:])
    assert [row["path"] for row in opened(tmp_path / "rows.csv").rows] == NAMES[1:]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"path,label\n", OtherRows, "expected the columns path, error, value"),
        (b"\xff\xfe binary \x00\n", OtherRows, "expected the columns"),
        (b"path,error,value", OtherRows, "expected the columns"),  # without an end
        (b"path,error,value\na,,1,2\nb,,2\n", ValueError, "row 1: expected 3 fields, got 4"),
        (b"path,error,value\na,,1\na note\n", ValueError, "row 2: expected 3 fields, got 1"),
        (b'path,error,value\n"a,,1\nb,,2\n', ValueError, "damaged"),
    ],
)
def test_another_file_is_left_as_it_is(content, error, words, tmp_path):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(error, match=words):
        opened(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == content


def test_a_table_exchanged_for_another_one_takes_no_row(tmp_path):
    table = opened(tmp_path / "rows.csv")
    table.path.write_text("other,columns\n")
    with pytest.raises(OtherRows):
        table.append({"path": "a"})
    assert table.path.read_text() == "other,columns\n"
