"""How far what was measured is from its limit and its peer: the last table of `make bench`.

    python benchmarks/distances.py reproduced/benchmarks      # or results/benchmarks

Reads the tables there, of a CPU and of a GPU, and writes distances.csv and .md beside them. What
was not measured is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from gpu_check import GOALS, HOLDS, NAMES, Row

from s2dlib.report.tables import write_table
from s2dlib.training.run_config import read_json

PEERS = {  # column -> what the figure is relative to
    "of_loop": "times as fast as the loop over clips",
    "of_limit": "times a copy of its bytes",
    "loop_of_step": "of the rate of steps alone",
    "ratio": "times S2DNet's time",
    "of_slower": "of the slower of reader and network",
    "of_jpegs": "times the clips a second of JPEGs by PIL",
}
AT_150 = "T == 150 and way == 'banded' and `pass` == 'forward'"
WORKERS = "measure == 'workers' and workers == 2 and way == "
ON_A_CPU = [  # as GOALS
    ("sampler", AT_150, "of_loop", "-"),
    ("sampler", AT_150, "of_limit", "-"),
    ("loading", WORKERS + "'copies'", "of_jpegs", ">= 2"),
    ("loading", WORKERS + "'ours'", "of_jpegs", ">= 1"),
    ("predicting", "workers > 0", "of_slower", ">= 0.8"),
    *(goal for goal in GOALS if goal[0] in ("training", "latency")),
]


def read_measured(path: Path) -> pd.DataFrame:
    """A benchmark's table; that of loading with its ratio to JPEGs by PIL, measured beside it."""
    table = pd.read_csv(path)
    if "measure" in table:
        alike = ["measure", "frames", "workers"]
        peers = table[table["way"] == "JPEGs, PIL"].set_index(alike)["median"].rename("peer")
        table = table.join(peers, on=alike)
        table["of_jpegs"] = table["median"] / table["peer"]
    return table


def distances(folder: Path, device: str) -> list[dict[str, object]]:
    """A row for each goal whose benchmark was run on this device."""
    rows: list[dict[str, object]] = []
    goals = ON_A_CPU if device == "cpu" else [goal for goal in GOALS if goal[2] in PEERS]
    for step, wanted, column, goal in goals:
        path = folder / f"{step}-{device}.csv"
        found = read_measured(path).query(wanted) if path.exists() else pd.DataFrame()
        for line in found.to_dict("records"):
            names = [f"{k} {line[k]}" for k in (*NAMES, "frames", "workers") if k in line]
            row = Row(step, ", ".join(names), float(line[column]), goal)
            rows.append(
                {"device": device, "what": step, "case": row.claim, "figure": row.found}
                | {"is": PEERS[column], "goal": goal, "reached": HOLDS[row.holds]}
                | {"commit": read_json(path.with_suffix(".json"))["commit"]}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the benchmarks' tables are")
    folder = parser.parse_args().folder
    table = pd.DataFrame(distances(folder, "cpu") + distances(folder, "cuda"))
    if table.empty:
        raise SystemExit(f"error: {folder} holds no table of a benchmark: make bench writes them")
    write_table(table, folder / "distances")
    print(table.drop(columns="commit").round(2).to_string(index=False))
    missed = table[table["reached"] == "NO"]
    print(f"\n{len(missed)} of {(table['reached'] != '-').sum()} figures miss their goal.")


if __name__ == "__main__":
    main()
