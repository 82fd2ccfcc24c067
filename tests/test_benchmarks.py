"""The benchmarks run, on the smallest sizes, and leave what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

TOP = Path(__file__).resolve().parents[1]


def test_the_training_benchmark_measures_loop_step_and_loader(tmp_path):
    command = [sys.executable, TOP / "benchmarks" / "training.py", "--smoke", "--out"]
    environment = {"PYTHONPATH": str(TOP)} | os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "training"], check=True, env=environment, cwd=tmp_path)
    row = pd.read_csv(tmp_path / "training.csv").iloc[0]
    assert row.loop > 0 and row.loader > 0 and row.step > 0
    assert abs(row.loop_of_step - row.loop / row.step) < 1e-3  # of one round
    assert json.loads((tmp_path / "training.json").read_text())["versions"]["torch"]
