"""What this project claims of GPUs, tested and measured on yours: one command, at most 9 minutes.

    make gpu                                             # or, by any Python with the packages:
    python benchmarks/gpu_check.py --out results/benchmarks
    python benchmarks/gpu_check.py --steps starts        # whole trainings alone: 2 to 8 minutes
    python benchmarks/gpu_check.py --dry                 # tiny, on a CPU, in Triton's interpreter

Steps, in order of worth, are processes of their own, so that a crash or a hang costs one. After
each, --out holds gpu-check.txt (a row a claim: what was found, its goal, whether it holds), .log
and .json, and what was measured as *-cuda.csv, .md and .json. Needs no network; S2D_COMMIT
names the code of a copy. The exit code is 1 where a step failed; a missed goal of speed is told.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
WORK = ".gpu-check"  # a folder in --out, gone at the end
OWN = "benchmarks/gpu_steps.py {step} {out} "
BENCH = "benchmarks/{step}.py --out {out}/{step}-{device} "
MODELS = BENCH.replace("{step}", "models", 1)
TRAINING = BENCH + "--preset mini-kinetics --recipe paper --workers {workers} "
TESTS = "-m pytest -rfE --tb=short -p no:cacheprovider tests/test_"
NOTEBOOK = "-m s2dlib run notebooks/10_latency.ipynb {out}/.gpu-check/10.ipynb -p results {to} "
CHECKER = "compute-sanitizer --error-exitcode 9 env PYTORCH_NO_CUDA_MEMORY_CACHING=1"
STEPS = {  # step -> seconds that it may take, and what Python runs, all at once
    "facts": (60, OWN + "facts"),
    "tests": (
        *(150, TESTS + "cuda.py", TESTS + "banded.py", TESTS + "triton_kernels.py"),
        TESTS + "benchmarks.py -k 'not gpu_check and not loading and not long_run'",
        TESTS + "notebooks.py -k 'smoke_run and (02_train or 07_predict or 10_latency)'",
    ),
    "correct": (110, *[OWN + k for k in ("kernels", "waits", "synthetic", "mini-kinetics")]),
    "sampler": (110, BENCH + "--batches 1 16 64 --runs 5 --memory {gb}"),
    "latency": (60, NOTEBOOK + "-p batches '[1, 16]'"),
    "learn": (120, OWN + "learn"),
    "training": (90, TRAINING + "--steps 30 --rounds 3"),
    "models": (60, BENCH + "--batches 1 16"),
    "compiled": (160, MODELS + "--batches 16 --models ssv2 tsm-r50 tdn-r50 --compile"),
    "tiles": (240, BENCH),
    "parallel": (120, OWN + "processes"),
    "whole": (160, OWN + "compiled"),
    "sanitizer": (100, TESTS + "triton_kernels.py -k 'not papers_size and not two_to'"),
    "starts": (500, OWN + "starts"),
}
DRY = {  # what differs
    **dict.fromkeys(("sampler", "training", "models"), [BENCH + "--smoke"]),
    **{"compiled": [MODELS + "--smoke --compile"], "latency": [NOTEBOOK + "-p smoke true"]},
    **{"tests": [TESTS + "banded.py -k triton"], "correct": STEPS["correct"][1:-1]},
    **{"tiles": [TESTS + "benchmarks.py -k tiles"], "sanitizer": [TESTS + "banded.py -k triton"]},
}
LEAST = {"tiles": 150, "starts": 100}  # seconds left, below which a step is not begun; others: 12
AT_16 = "batch == 16 and T == 150 and way == 'banded' and `pass` == "
GOALS = [  # step, rows of its table, column, goal
    ("sampler", AT_16 + "'forward'", "of_loop", ">= 20"),
    ("sampler", AT_16 + "'forward'", "of_limit", "<= 2"),
    ("sampler", AT_16 + "'forward and backward'", "of_loop", ">= 10"),
    ("training", "rounds > 0", "loop_of_step", ">= 0.9"),
    ("latency", "name == 'tsm-r50'", "ratio", ">= 1.49"),  # Table 4 of the paper
    ("latency", "name == 'tdn-r50'", "ratio", ">= 2.5"),
    ("models", "how == 'folded'", "ratio", "-"),  # to S2DNet
    ("compiled", "how == 'compiled' and model == 'tsm-r50'", "ratio", ">= 2"),
    ("compiled", "how == 'compiled' and model == 'tdn-r50'", "ratio", ">= 3"),
    ("tiles", "total == total.min()", "total", "-"),
]
NAMES = ["preset", "name", "model", "how", "batch", "T", "zoom", "pass", "way"]  # columns of those
RUNS = "runs to its end"  # the first claim of each step
HOLDS = {None: "-", True: "yes", False: "NO"}  # Row.holds, in words


@dataclass
class Row:
    """A claim, a line of the table."""

    step: str
    claim: str
    found: float | bool | str
    goal: str = "-"  # ">= 2" or "<= 2" of a number
    note: str = ""
    holds: bool | None = None  # None: not judged

    def __post_init__(self) -> None:
        sign, _, goal = self.goal.partition(" ")
        if isinstance(self.found, bool):
            self.holds = self.found
        elif sign in (">=", "<="):  # NaN: False
            reaches = operator.ge if sign == ">=" else operator.le
            self.holds = bool(reaches(self.found, float(goal)))


def n_workers() -> int:
    """As many as leave their batches in shared memory, of which containers have little."""
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return max(1, min(8, free // (3 * 32 * 3 * 150 * 224 * 224)))  # three of mini-kinetics each


def commands(step: str, out: Path, dry: bool) -> list[list[str]]:
    """What a step runs, all at once."""
    words = {"step": step, "out": out, "device": "cpu" if dry else "cuda", "workers": n_workers()}
    words["gb"] = 1 if dry else torch.cuda.get_device_properties(0).total_memory * 3 // 2**32
    words["to"] = os.path.relpath(ROOT / out / WORK, ROOT / "notebooks")
    texts = DRY.get(step, STEPS[step][1:]) if dry else STEPS[step][1:]
    before = CHECKER.split() if step == "sanitizer" and not dry else []
    return [[*before, sys.executable, *shlex.split(text.format(**words))] for text in texts]


def run(commands: list[list[str]], cap: float, log: Path, env: dict[str, str]) -> int:
    """Run commands side by side, each with a log of its own; all end with the cap.

    What the cap ends tells in its log where each of its threads was (faulthandler).

    Returns the first exit code that is not 0; 124: the cap ended it.
    """
    children, end = [], time.monotonic() + cap
    threads = max(1, (os.cpu_count() or 1) // len(commands))  # more, and each waits for the others
    env = {"OMP_NUM_THREADS": str(threads)} | env
    for i, command in enumerate(commands):
        with log.with_suffix(f".{i}.log").open("w") as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            child = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **streams)
            children.append(child)
    try:
        codes = [child.wait(max(0.1, end - time.monotonic())) for child in children]
        return next((code for code in codes if code), 0)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        late = [child for child in children if child.poll() is None]
        for sign, seconds in ((signal.SIGABRT, 2.0), (signal.SIGKILL, 0.0)):
            for child in late:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, sign)
            time.sleep(seconds if late else 0.0)


def measured(step: str, path: Path, dry: bool) -> list[Row]:
    """The figures of a benchmark's table that have a goal, and some that have none."""
    table, rows = pd.read_csv(path), []
    for _, wanted, column, goal in (each for each in GOALS if each[0] == step):
        for line in (table.head(1) if dry else table.query(wanted)).to_dict("records"):
            names = ", ".join(f"{k} {line[k]}" for k in NAMES if k in line)
            found, note = float(line[column]), f"{line['ms']:.3g} ms" if "ms" in line else ""
            rows.append(Row(step, f"{column}: {names}", found, "-" if dry else goal, note))
    return rows


def perform(step: str, left: float, args: argparse.Namespace, env: dict[str, str]) -> list[Row]:
    """Run a step, if there is time left for it, and tell what it found."""
    out, work, start = args.out, args.out / WORK, time.monotonic()
    if left < LEAST.get(step, 12):
        return [Row(step, RUNS, "no time")]
    chosen = commands(step, out.relative_to(ROOT) if out.is_relative_to(ROOT) else out, args.dry)
    if shutil.which(chosen[0][0]) is None:
        return [Row(step, RUNS, f"no {chosen[0][0]} here")]
    cap = min(left - 4, STEPS[step][0] * (3 if args.dry else 1))  # a CPU compiles slowly
    code = run(chosen, cap, work / step, env)
    note = f"{time.monotonic() - start:.0f} s" + ", cut off" * (code == 124)
    if code or step == "tests":  # the last lines say what is wrong, or how many passed
        texts = [path.read_text(errors="replace") for path in sorted(work.glob(f"{step}.*.log"))]
        note += "".join(f"; {text.strip().rpartition(chr(10))[2][-200:]}" for text in texts)
    rows = [Row(step, RUNS, code == 0, f"in {cap:.0f} s", note)]
    for path in (work / "benchmarks").glob("*"):  # of the notebook
        path.replace(out / path.name)
    path = out / f"{step}-{'cpu' if args.dry else 'cuda'}.csv"
    if code == 0 and path.exists():
        rows += measured(step, path, args.dry)
    for path in sorted(work.glob(f"{step}-*.json")):
        rows += [Row(**row) for row in json.loads(path.read_text())]
    return rows


def report(rows: list[Row], out: Path) -> str:
    """Write what is known so far. Returns the table, and what this machine has confirmed."""
    table = pd.DataFrame([asdict(row) for row in rows], dtype=object)
    table = table.map(lambda v: f"{v:.3g}" if isinstance(v, float) else str(HOLDS.get(v, v)))
    table = table[["step", "claim", "found", "goal", "holds", "note"]]
    text = table.apply(lambda column: column.str.ljust(column.str.len().max()))
    judged = [row for row in rows if row.holds is not None and row.claim != RUNS]
    lines = [line.rstrip() for line in text.to_string(index=False, justify="left").splitlines()]
    lines += [f"\n{sum(row.holds for row in judged)} of {len(judged)} claims hold on this machine."]
    lines += [f"NO: {row.step}, {row.claim}" for row in judged if not row.holds]
    left = [row.step for row in rows if row.claim == RUNS and row.holds is not True]
    lines += [f"Not tried, or not to the end: {', '.join(left) or 'nothing'}\n"]
    (out / "gpu-check.txt").write_text("\n".join(lines))
    found = json.dumps([asdict(row) for row in rows], indent=1, default=float)
    (out / "gpu-check.json").write_text(found + "\n")
    logs = sorted((out / WORK).glob("*.log"), key=lambda path: path.stat().st_mtime)
    texts = (f"\n==== {p.stem}\n{p.read_text(errors='replace')[-1_000_000:]}" for p in logs)
    (out / "gpu-check.log").write_text("".join(texts))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: results/benchmarks; dry: data/gpu-dry")
    parser.add_argument("--budget", type=float, help="seconds for all steps: 520; dry: 900")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS, metavar="STEP")
    parser.add_argument("--dry", action="store_true", help="tiny, on a CPU; no speed is judged")
    start, args, rows = time.monotonic(), parser.parse_args(), []
    if not args.dry and not torch.cuda.is_available():
        sys.exit(f"error: torch {torch.__version__} sees no GPU here; --dry runs on a CPU, tiny")
    out = args.out or ROOT / ("data/gpu-dry" if args.dry else "results/benchmarks")
    args.out, budget = out.resolve(), args.budget or (900 if args.dry else 520)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"S2D_COMMAND": "", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    env["PYTHONFAULTHANDLER"] = "1"
    if args.dry:
        env |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    shutil.rmtree(args.out / WORK, ignore_errors=True)
    (args.out / WORK).mkdir(parents=True)
    try:
        for step in args.steps:
            found = perform(step, budget - (time.monotonic() - start), args, env)
            rows += found
            text = report(rows, args.out)
            print(f"{step}: {found[0].note or found[0].found}", flush=True)
    finally:
        shutil.rmtree(args.out / WORK, ignore_errors=True)
    print(text)
    return int(any(row.claim == RUNS and row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
