"""A run's config.json: there before the first step, read by who launches, resumes or shows it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import TRAIN, data, model_of, same, sets  # noqa: F401 (fixtures)

from s2dlib.data.dataset import VideoDataset
from s2dlib.report.records import begin_record, load_run, read_records, write_json
from s2dlib.training.checkpoints import only_writer, write_weights
from s2dlib.training.launch import START
from s2dlib.training.loop import fit
from s2dlib.training.run_config import describe_run

ROOT = Path(__file__).resolve().parents[1]


def config_of(run):
    return json.loads((run / "config.json").read_text())


def launch_alone(run):
    """What torchrun starts, as the only process of the run."""
    command = [sys.executable, "-m", "s2dlib.training.launch", str(run)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_config_is_there_before_the_first_step(sets, tmp_path):  # noqa: F811
    model, run = model_of(), tmp_path / "runs" / "one"
    with torch.no_grad():
        model.snet.classifier.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        fit(model, *sets, TRAIN, run_dir=run, seed=4)
    config = config_of(run)
    assert (config["seed"], config["n_train"], config["train"]["lr"]) == (4, 8, 1e-2)
    assert config["model"]["detail_size"] == [3, 12, 12] and config["classes"] == list("0123")
    assert not list(run.glob(".part*"))
    assert read_records(tmp_path / "runs")[["seed", "complete"]].to_numpy().tolist() == [[4, False]]


def test_fit_keeps_what_the_record_says_beyond_it(sets, tmp_path):  # noqa: F811
    run, known = tmp_path / "run", describe_run(model_of(), *sets, TRAIN, 0)
    begin_record(run, {"preset": "mine"} | known)
    fit(model_of(), *sets, TRAIN, run_dir=run)
    assert config_of(run) == json.loads(json.dumps({"preset": "mine"} | known))
    model, record = load_run(run)
    assert record["preset"] == "mine" and model.classes == list("0123")
    # Another run begins in its place: nothing of the former is told of it.
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "new", seed=1)
    begin_record(tmp_path / "other", {"preset": "mine"} | known)
    fit(model_of(), *sets, TRAIN, run_dir=tmp_path / "other", seed=1)
    assert config_of(tmp_path / "other") == config_of(tmp_path / "new")


@pytest.mark.slow
def test_launched_process_trains_what_config_says(data, sets, tmp_path):  # noqa: F811
    train_set = VideoDataset(data, "train", train=True, seed=5)
    val_set = VideoDataset(replace(data, test_crops=3), "test", train=False)
    fit(model_of(), train_set, val_set, TRAIN, run_dir=tmp_path / "here", seed=3)
    run = tmp_path / "run"
    begin_record(run, describe_run(model_of(), train_set, val_set, TRAIN, 3))
    assert config_of(run)["val_data"] == {"test_crops": 3}
    write_weights(model_of(), run / START)
    done = launch_alone(run)
    assert done.returncode == 0, done.stderr
    same(run, tmp_path / "here")
    # What it says decides, not what it was made of.
    write_json(tmp_path / "more" / "config.json", config_of(run) | {"seed": 6})
    write_weights(model_of(), tmp_path / "more" / START)
    fit(model_of(), train_set, val_set, TRAIN, run_dir=tmp_path / "six", seed=6)
    assert launch_alone(tmp_path / "more").returncode == 0
    same(tmp_path / "more", tmp_path / "six")


@pytest.mark.slow
def test_launched_process_names_a_folder_without_config(tmp_path):
    done = launch_alone(tmp_path)
    assert done.returncode == 1 and f"error: {tmp_path}/config.json: expected" in done.stderr


def test_resume_may_change_workers_and_where_files_lie(data, sets, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    history = fit(model_of(), *sets, TRAIN, run_dir=run)
    moved = VideoDataset(replace(data, cache=None, test_crops=3), "train", train=True)
    other = replace(TRAIN, workers=1, checkpoint_steps=5, keep_every=3)
    assert fit(model_of(), moved, sets[1], other, run_dir=run) == history
    config = config_of(run)
    assert config["data"]["cache"] is None and config["train"]["keep_every"] == 3


@pytest.mark.parametrize("config", ["{}", '{"recipes": {"joint": {"lr": 0.1}}, "seed": 0}'])
def test_resume_refuses_a_checkpoint_of_unknown_training(config, sets, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    fit(model_of(), *sets, replace(TRAIN, epochs=1), run_dir=run)
    (run / "config.json").unlink()
    if config != "{}":
        (run / "config.json").write_text(config)
    with pytest.raises(ValueError, match="epoch-0001: .* config.json does not tell the training"):
        fit(model_of(), *sets, replace(TRAIN, epochs=1), run_dir=run)


def test_results_of_an_older_run_go_and_its_weights_are_no_other_run_s(sets, tmp_path):  # noqa: F811
    run, known = tmp_path / "runs" / "one", describe_run(model_of(), *sets, TRAIN, 0)
    record = {"preset": "mine"} | known
    metrics, weights = run / "metrics.json", run / "model.safetensors"
    begin_record(run, record)
    metrics.write_text('{"top1": 1}')
    begin_record(run, record)
    assert metrics.exists()
    begin_record(run, record | {"provenance": {"date": "today"}})
    assert not metrics.exists()
    weights.write_bytes(b"trained")
    before = config_of(run)
    with pytest.raises(ValueError, match=r"model.safetensors: weights of another run.*'seed'"):
        begin_record(run, record | {"seed": 1})
    assert weights.read_bytes() == b"trained" and config_of(run) == before
    weights.unlink()
    begin_record(run, record | {"seed": 1})
    assert config_of(run)["seed"] == 1
    assert read_records(tmp_path / "runs")["complete"].tolist() == [False]


def test_config_of_a_run_under_way_is_not_written(sets, tmp_path):  # noqa: F811
    run, record = tmp_path / "run", describe_run(model_of(), *sets, TRAIN, 0)
    begin_record(run, record)
    with only_writer(run), pytest.raises(RuntimeError, match="another process is writing"):
        begin_record(run, record | {"seed": 1})
    assert config_of(run)["seed"] == 0


def test_records_of_the_first_version_are_read():
    runs = read_records(ROOT / "results" / "runs").set_index("run")
    row = runs.loc["synthetic-a0-0"]
    assert row["complete"] and row["variant"] == "a0" and row["top1"] > 50
