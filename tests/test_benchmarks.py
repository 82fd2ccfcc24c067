"""Benchmarks run on the smallest sizes, and time ways that give the same frames and volumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import distances  # noqa: E402
import gpu_check  # noqa: E402
import gpu_steps  # noqa: E402
import loading  # noqa: E402
import models  # noqa: E402
import sampler  # noqa: E402

from s2dlib.report.tables import write_measured  # noqa: E402


def test_loading_ways_give_the_same_clip(tmp_path):
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


def test_loading_batches_hold_the_same_clips(tmp_path):
    path = str(loading.write_clip(tmp_path, seed=0, n=20))
    for way in ("ours", "ours, in process", "copies", "JPEGs, PIL"):
        (batch,) = loading.batches_of(way, [path], 6, [[0, 0]], workers=0)()
        clip = loading.WAYS[way](path, 6)
        assert torch.equal(batch["frames"], clip.expand_as(batch["frames"])), way
        assert len(batch["frames"]) == 2 and batch["label"].min() > 10  # MB


@pytest.mark.slow
def test_loading_benchmark_writes_table_and_record(tmp_path):
    out = tmp_path / "results" / "loading"
    command = [sys.executable, str(ROOT / "benchmarks" / "loading.py"), "--smoke"]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT, timeout=300)
    table = pd.read_csv(f"{out}.csv")
    assert set(table["measure"]) >= {"one core", "workers", "memory of a worker"}
    assert (table.loc[table["way"] != "torchcodec", "median"] > 0).all()
    source = json.loads(Path(f"{out}.json").read_text())
    assert source["command"].endswith(f"--smoke --out {out}")
    assert {"commit", "versions", "device", "date"} <= set(source)


def test_loading_worker_counts_double():
    counts = {n: loading.worker_counts(n) for n in (1, 2, 16, 20)}
    assert (counts[1], counts[2]) == ([0, 1], [0, 1, 2])
    assert (counts[16], counts[20]) == ([0, 1, 2, 4, 8, 16], [0, 1, 2, 4, 8, 16, 20])


@pytest.mark.slow
def test_loading_long_run_reports_memory(tmp_path):
    rows = loading.soak(tmp_path, 20)
    assert [row["measure"] for row in rows] == [f"soak, {n} clips" for n in range(2, 21, 2)]
    assert all(row["median"] > 50 for row in rows)


@pytest.mark.slow
def test_tiles_are_timed_by_the_kernels_that_take_them(monkeypatch, triton_kernels):
    tiles = pytest.importorskip("tiles")
    monkeypatch.setattr(tiles.triton, "TILES", dict(tiles.triton.TILES))
    device = "cuda" if torch.cuda.is_available() else "cpu"  # there in Triton's interpreter
    frames = torch.randint(256, (1, 1, 12, 20, 24), dtype=torch.uint8, device=device)
    p_t, p_y, p_x = (10 * torch.rand(1, *s, device=device) for s in ((2,), (2, 6), (2, 5)))
    clip = (frames, p_t, p_y, p_x, torch.tensor([12], device=device))
    chosen = {name: values[-1] for name, values in tiles.CHOICES.items()}
    clips = {"near": (*clip, torch.ones(1, 1, 2, 6, 5, device=device))}
    try:
        found = tiles.time_tiles(chosen, "tf32", clips, n_runs=1)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(found) == {"forward, near", "backward, near"}
    assert all(ms > 0 for ms in found.values())
    assert chosen == {**tiles.triton.TILES, "maxnreg": tiles.triton.REGISTERS}


def test_distances_are_to_the_peers_measured_beside(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distances.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="make bench"):
        distances.main()
    measured = pd.DataFrame(
        [("workers", "JPEGs, PIL", 75, 2, 10.0), ("workers", "ours", 75, 2, 12.0),
         ("workers", "JPEGs, PIL", 150, 2, 5.0), ("workers", "copies", 150, 2, 9.0)],
        columns=["measure", "way", "frames", "workers", "median"],
    )  # fmt: skip
    write_measured(measured, tmp_path / "loading-cpu", {"commit": "abc"})
    latency = pd.DataFrame({"name": ["ssv2", "tsm-r50"], "ratio": [1.0, 1.2], "batch": [1, 1]})
    write_measured(latency, tmp_path / "latency-cuda", {"commit": "abc"})
    distances.main()
    table = pd.read_csv(tmp_path / "distances.csv").set_index("case")
    assert table["figure"].tolist() == pytest.approx([1.8, 1.2, 1.2])
    assert table["reached"].tolist() == ["NO", "yes", "NO"]
    assert "2 of 3 figures miss their goal" in capsys.readouterr().out


def test_sampler_rates_count_copies_and_products(monkeypatch):
    monkeypatch.setattr(sampler, "milliseconds", lambda call, device: len(call()) / 2)
    for repeats in (1, 7):  # half a millisecond each
        assert sampler.copy_bandwidth("cpu", 1, repeats) == 2 * 2**20 / 0.5
        assert sampler.matrix_rate("cpu", 8, repeats) == 8**3 / 0.5


@pytest.mark.slow
def test_sampler_ways_give_the_same_volume():
    frames = torch.randint(256, (2, 3, 20, sampler.SIDE, sampler.SIDE), dtype=torch.uint8)
    n = torch.tensor([20, 20])
    theta = sampler.make_theta(n, sampler.ZOOMS["zoomed"])
    with torch.no_grad():
        expected = sampler.dense(frames, theta, n)
        for way in (sampler.banded, sampler.banded_tf32, sampler.loop):
            torch.testing.assert_close(way(frames, theta, n), expected, atol=2e-3, rtol=0)
        t, y, x = (torch.arange(length).float() for length in (20, 224, 224))
        ramp = (5 * t[:, None, None] + y[:, None] + 2 * x).expand(2, 3, -1, -1, -1)
        linear = sampler.trilinear(ramp, theta, n)  # another filter, at the same places
        assert (linear - sampler.dense(ramp, theta, n)).abs().median() < 0.2
    touched, macs = sampler.least_work(theta, n, 3)
    assert 0 < touched - 4 * 2 * 3 * 16 * 112 * 112 < frames.numel()
    assert 11 * 2 * 3 * 16 * 112 * 112 < macs < 11 * 2 * 3 * 16 * 3 * 224 * 224


@pytest.mark.slow
def test_sampler_benchmark_writes_table_with_limit(tmp_path, monkeypatch):
    words = ["benchmarks/sampler.py", "--smoke", "--out", str(tmp_path / "sampler")]
    monkeypatch.setattr(sys, "argv", words)
    sampler.main()
    table = pd.read_csv(tmp_path / "sampler.csv")
    ways = set(sampler.WAYS) - (set() if torch.cuda.is_available() else {"banded, TF32"})
    assert set(table["way"]) == ways and (table["of_limit"] > 0).all()
    loop = table[table["way"] == "loop over clips"]
    assert (loop["of_loop"] == 1).all()
    assert '"command": "python benchmarks/sampler.py' in (tmp_path / "sampler.json").read_text()


@pytest.mark.slow
def test_models_benchmark_times_each_way(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["models.py", "--smoke", "--out", str(tmp_path / "models")])
    models.main()
    table = pd.read_csv(tmp_path / "models.csv")
    ways = ["plain", "folded", *["graph"] * torch.cuda.is_available()]
    assert table["how"].tolist() == ways and (table["ratio"] == 1).all()


@pytest.mark.slow
def test_training_benchmark_measures_loop_step_and_loader(tmp_path):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "training.py",
        "--smoke",
        "--processes",
        "1",
        "--out",
    ]
    environment = {"PYTHONPATH": str(ROOT)} | os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "training"], check=True, env=environment, cwd=tmp_path)
    row = pd.read_csv(tmp_path / "training.csv").iloc[0]
    assert (
        row.loop > 0
        and row.feed > 0
        and row.loader > 0
        and row.step > 0
        and row["loop, 1 processes"] > 0
    )
    assert abs(row.loop_of_step - row.loop / row.step) < 1e-3  # of one round
    assert json.loads((tmp_path / "training.json").read_text())["versions"]["torch"]


def check_gpu(monkeypatch, out, *words):
    """The exit code of gpu_check.py, its rows, and the first row of each step by its name."""
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry", "--out", str(out), *words])
    code = gpu_check.main()
    rows = [gpu_check.Row(**row) for row in json.loads((out / "gpu-check.json").read_text())]
    return code, rows, {row.step: row for row in rows if row.claim == gpu_check.RUNS}


@pytest.mark.slow
def test_gpu_check_writes_a_row_a_claim(monkeypatch, tmp_path):
    monkeypatch.setitem(gpu_check.DRY, "correct", [gpu_check.OWN + "kernels"])
    code, rows, first = check_gpu(monkeypatch, tmp_path, "--steps", "facts", "correct", "models")
    assert code == 0 and list(first) == ["facts", "correct", "models"]
    assert all(row.holds for row in first.values()) and not any(row.holds is False for row in rows)
    claims = [row for row in rows if row.step == "correct" and row.goal.startswith("<=")]
    assert len(claims) == 4 and all(0 < row.found < 1e-5 for row in claims)
    assert any(row.step == "models" and row.found == 1.0 for row in rows)  # S2DNet / itself
    text = (tmp_path / "gpu-check.txt").read_text()
    assert (
        all(row.claim in text for row in rows) and "Not tried, or not to the end: nothing" in text
    )
    names = {path.name for path in tmp_path.iterdir()}
    tables = {f"models-cpu.{end}" for end in ("csv", "md", "json")}
    assert names == tables | {f"gpu-check.{end}" for end in ("txt", "log", "json")}


@pytest.mark.slow
def test_gpu_check_tells_failed_cut_off_and_untried_steps(monkeypatch, tmp_path):
    ends = {"facts": "-c 'import sys; sys.exit(3)'", "tests": "-c 'print(1, 23 * \"x\")'"}
    ends |= {"sampler": "-c 'import time; time.sleep(99)'", "latency": "-c pass"}
    for step, command in ends.items():
        monkeypatch.setitem(gpu_check.DRY, step, [command, "-c pass"])
    code, rows, first = check_gpu(monkeypatch, tmp_path, "--budget", "16", "--steps", *ends)
    assert code == 1 and len(rows) == 4
    assert [row.holds for row in rows] == [False, True, False, None]
    assert "cut off" in first["sampler"].note and first["latency"].found == "no time"
    assert "x" * 23 in first["tests"].note
    text = (tmp_path / "gpu-check.txt").read_text()
    assert "Not tried, or not to the end: facts, sampler, latency" in text


def test_gpu_check_compares_with_goals_and_says_where_there_is_no_gpu(monkeypatch):
    rows = [gpu_check.Row("a", "b", *given) for given in ((2.0, ">= 2"), (1.9, ">= 2"))]
    rows += [gpu_check.Row("a", "b", *given) for given in ((float("nan"), "<= 2"), ("?", "-"))]
    assert [row.holds for row in rows] == [True, False, False, None]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: torch .* sees no GPU here"):
        gpu_check.main()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["waits", "synthetic"])
def test_gpu_check_steps_hold_on_a_cpu(part, tmp_path):
    if not gpu_steps.TINY:
        pytest.skip("gpu_check.py runs it here")
    rows = [gpu_check.Row("correct", *found) for found in gpu_steps.STEPS[part](tmp_path)]
    assert rows and all(row.holds is not False for row in rows)
