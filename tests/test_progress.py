"""The terminal shows a line a run, a bar with the time left, what failed, and nothing else."""

import os
import re
import subprocess
import sys
import termios
from contextlib import suppress

GRAPH = """
from snakemake.logging import logger
from s2dlib.report.progress import show_progress

rule all:
    input: "runs/a0-0/model.safetensors", "04_table2.ipynb"
    run: print("the end")

onstart:
    show_progress(logger, len(workflow.dag))

rule run:
    output: "runs/{run}/model.safetensors", "runs/{run}/metrics.json"
    shell: "echo '{{\\"top1\\": 85.125}}' > {output[1]}; touch {output[0]}"

rule notebook:
    input: "runs/a0-0/model.safetensors"
    output: "{name}.ipynb"
    log: "{name}.log"
    shell: "COMMAND"
"""


def walk(tmp_path, command):
    """Walk the graph on a terminal; its exit status, and what is on stdout and on the terminal."""
    (tmp_path / "Snakefile").write_text(GRAPH.replace("COMMAND", command))
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (40, 100))
    words = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "host"]
    options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": terminal}
    with subprocess.Popen(words, **options, text=True) as child:
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # no process holds the terminal any more
            while more := os.read(screen, 10_000):
                shown += more
        out = child.stdout.read()
    os.close(screen)
    return child.returncode, out, shown.decode().split("Job stats")[1]


def test_a_line_a_run_with_its_top1_and_a_bar_with_the_time_left(tmp_path):
    status, out, shown = walk(tmp_path, "touch {output}")
    assert status == 0 and out.splitlines() == ["the end"]
    lines = [line for line in re.split(r"[\r\n]+", shown) if re.match(r" +\d+/3  ", line)]
    assert [re.sub(r" +\d+ s$", "", line).split() for line in lines] == [
        ["1/3", "a0-0", "top-1", "85.1"],
        ["2/3", "04_table2"],
    ]
    bars = re.findall(r"(\d)/3 jobs, [\d:]+ so far, about ([\d:?]+) left", shown)
    assert bars[0] == ("0", "?") and {n for n, _ in bars} == {"0", "1", "2"}
    assert all(re.fullmatch(r"\d\d:\d\d", left) for n, left in bars if n != "0")
    assert "rule run" not in shown and "Finished" not in shown and "touch" not in shown


def test_what_failed_is_named_with_its_log_and_why_is_not_lost(tmp_path):
    status, out, shown = walk(tmp_path, "echo no such row b9 >&2; exit 3")
    assert status == 1 and not out
    assert "no such row b9" in shown
    assert re.search(r"FAILED +04_table2 .* s; its log: 04_table2.log", shown)
    assert "non-zero exit status 3" in shown
