"""A file is written whole or not at all, and never over one that a command reads or found."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from s2dlib.data.files import (
    MADE,
    append_text,
    as_text,
    atomic_path,
    check_output,
    contains,
    folder_name,
    write_atomic,
    write_video,
)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_and_its_folder_are_written_and_nothing_else_is_left(tmp_path, durable):
    path = write_atomic(tmp_path / "a" / "b.txt", "größe\n", durable=durable)
    assert path.read_bytes() == "größe\n".encode()
    assert write_atomic(str(path), b"\x00", durable=durable).read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["b.txt"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = write_atomic(tmp_path / "b.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        assert partial.name == path.name  # libraries go by the suffix
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["b.txt"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "b.txt", "old")
    code = (
        "import os, signal, sys\nfrom s2dlib.data.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path])
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"
    assert write_atomic(path, "new").read_text() == "new"


OTHER_NAMES = {
    "the same": lambda path: path,
    "another spelling": lambda path: path.parent / ".." / path.parent.name / path.name,
    "a symlink": lambda path: link(path, os.symlink),
    "a hard link": lambda path: link(path, os.link),
    "through a linked folder": lambda path: link(path.parent, os.symlink) / path.name,
}


def link(path: Path, make) -> Path:
    new = path.parent.parent / f"link-{path.name}"
    make(path, new)
    return new


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_an_input_is_no_output_under_any_name_even_one_made_here(name, tmp_path):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "clip.mp4"
    source.write_bytes(b"film " + MADE)
    with pytest.raises(ValueError, match="is read here and would be replaced"):
        check_output(OTHER_NAMES[name](source), [tmp_path / "gone", source])
    check_output(source, [tmp_path / "in" / "CLIP.mp4", tmp_path / "gone"])  # made here, not read


@pytest.mark.parametrize(
    ("content", "is_free"),
    [(b"", True), (MADE, True), (b"0" * 9999 + MADE + b"0", True), (b"mine", False)],
)
def test_a_file_is_replaced_where_it_is_empty_or_has_the_mark(content, is_free, tmp_path):
    path = tmp_path / "x"
    check_output(path)  # nothing there
    path.write_bytes(content)
    if is_free:
        check_output(path)
    else:
        with pytest.raises(ValueError, match="x: a file that this command did not make"):
            check_output(path)
        check_output(path, made=b"^m")
    assert path.read_bytes() == content


NAMES = [
    b"plain.mp4",
    "größe 日本.mp4".encode(),
    b"stra\xdfe.mp4",
    b"stra\\xdfe.mp4",
    b"a\nb\r\x1b.mp4",
]


def test_names_of_any_bytes_are_text_of_one_line_from_which_the_bytes_come_back():
    texts = [as_text(os.fsdecode(name)) for name in NAMES]
    assert texts[:3] == ["plain.mp4", "größe 日本.mp4", r"stra\xdfe.mp4"]
    assert len(set(texts)) == len(NAMES)
    for text, name in zip(texts, NAMES, strict=True):
        assert text.isprintable()
        found = re.sub(
            rb"\\(\\|x(..))",
            lambda m: bytes.fromhex(m[2].decode()) if m[2] else b"\\",
            text.encode(),
        )
        assert found == name


@pytest.mark.parametrize(
    "name", ["20241126", "0", "no", "null", "~", "12:30", "größe", ".x", "a b"]
)
def test_a_folder_has_any_one_name(name):
    assert folder_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "a/b",
        "/a",
        "a/",
        "a\\b",
        "a\0",
        "a\nb",
        "stra\udcdfe",
        "a" * 256,
        "é" * 128,
    ],
)
def test_what_is_no_folders_name_is_refused(name):
    with pytest.raises(ValueError, match="expected the name of one folder"):
        folder_name(name)


def test_a_text_is_appended_whole_or_not_at_all(tmp_path):
    path = write_atomic(tmp_path / "a.csv", "a\n")
    append_text(path, "ö\n")
    assert path.read_text() == "a\nö\n"
    code = (
        "import resource, sys\nfrom s2dlib.data.files import append_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))\n"
        "try:\n    append_text(sys.argv[1], 'x' * 9)\nexcept OSError as e:\n    sys.exit(e.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code, path])
    assert done.returncode == errno.ENOSPC and path.read_text() == "a\nö\n"
    with pytest.raises(FileNotFoundError):  # whoever moved it away: no headless one
        append_text(tmp_path / "b.csv", "x")


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_has_any_name_and_carries_the_mark(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.full((3, 32, 48, 3), np.array([20, 120, 220])[:, None, None, None], np.uint8)
    for name in (b"12:30", b"stra\xdfe", b"50%d", b"-x"):
        path = Path(os.fsdecode(name) + suffix)
        write_video(path, frames, comment=MADE)
        check_output(path)
        with path.open("rb") as file, av.open(file) as film:
            assert sum(1 for _ in film.decode(video=0)) == 3
    write_video(Path(f"x{suffix}"), frames)
    assert not contains(f"x{suffix}", re.escape(MADE)) and len(os.listdir()) == 5
