"""A file is written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from s2dlib.data.files import atomic_path, write_atomic


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
