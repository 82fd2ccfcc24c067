"""Benchmarks run, and time ways that load the same frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import loading  # noqa: E402


def test_every_way_of_loading_gives_the_same_clip(tmp_path):
    path = str(loading.write_clip(tmp_path, seed=0, n=20))
    expected = loading.ours(path, 6)
    assert expected.shape == (3, 6, 224, 224) and expected.dtype == torch.uint8
    others = (expected[:, 1:].int() - expected[:, :-1].int()).abs().float().mean()
    assert len(loading.available(path)) >= 5
    for name in loading.available(path):
        clip = loading.WAYS[name](path, 6)
        assert clip.shape == expected.shape and clip.is_contiguous(), name
        difference = (clip.int() - expected.int()).abs().float().mean()
        assert difference < others / 2, name  # JPEG loses a little; another frame is far


def test_the_benchmark_of_loading_writes_its_table_and_how_it_came_about(tmp_path):
    out = tmp_path / "results" / "loading.csv"
    command = [sys.executable, str(ROOT / "benchmarks" / "loading.py"), "--smoke"]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT, timeout=300)
    table = pd.read_csv(out)
    assert set(table["measure"]) >= {"one core", "workers", "memory of a worker"}
    assert (table.loc[table["way"] != "torchcodec", "median"] > 0).all()
    assert table["command"][0].endswith(f"--smoke --out {out}")
    assert {"commit", "versions", "device", "date"} <= set(table.columns)


def test_a_long_run_reports_its_memory_in_steps(tmp_path):
    rows = loading.soak(tmp_path, 20)
    assert [row["measure"] for row in rows] == [f"soak, {n} clips" for n in range(2, 21, 2)]
    assert all(row["median"] > 50 for row in rows)
