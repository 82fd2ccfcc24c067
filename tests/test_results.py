"""Records are complete or marked unfinished; tables show what was measured and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from s2dlib.config import WEIGHTS, DataConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.loader import collate, load_batches
from s2dlib.data.synthetic import write_dataset
from s2dlib.model import build_model
from s2dlib.presets import PRESETS, VARIANTS
from s2dlib.report import looking, records
from s2dlib.report.looking import metrics_of, sampling_locations_of_run, top1_by_thirds
from s2dlib.report.records import command, load_run, provenance, read_records, write_record
from s2dlib.report.tables import (
    CONTROLS,
    comparisons,
    difference,
    full_model_comparison,
    paper_comparison,
    paper_table,
    parts,
    reproduction,
    table2,
    to_markdown,
    write_table,
)
from s2dlib.sampler import Extent, frozen_theta
from s2dlib.training.checkpoints import write_weights
from s2dlib.training.evaluation import evaluate
from s2dlib.training.trials import GRID_WINDOWS, TRIALS, WINDOWS, study_of

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "results" / "paper.csv"


@pytest.fixture
def record(tmp_path):
    def record(variant, seed, top1, run=None, n_clips=100, test_split="test", **more):
        source = {"data": "clips", "device": "a CPU"}
        identity = {"preset": "synthetic", "variant": variant, "seed": seed}
        identity |= {"test_split": test_split}
        run = run or f"synthetic-{variant}-{seed}"
        metrics = {"top1": top1, "top5": 90.0, "n_clips": n_clips, "parts": {"x": 1}} | more
        write_record(tmp_path / run, identity | {"provenance": source}, metrics, [{"epoch": 0}])
        return tmp_path / run

    return record


def test_metrics_come_last_so_that_a_kill_while_writing_leaves_an_unfinished_run(
    record, tmp_path, monkeypatch
):
    record("a0", 0, 50.0)
    written = []

    def killed(source, target):
        if target.name == "metrics.json":
            raise KeyboardInterrupt
        written.append(target.name)
        Path(source).rename(target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record("a0", 0, 60.0, test_split="val")
    assert written == ["config.json", "history.csv"]
    assert read_records(tmp_path)["complete"].tolist() == [False]  # not the older run's 50.0


def test_every_folder_is_a_row_and_unfinished_ones_say_so(record, tmp_path):
    record("a0", 0, 50.0)
    (record("a1", 0, 40.0) / "metrics.json").unlink()
    (tmp_path / "synthetic-a2-0").mkdir()
    table = read_records(tmp_path).set_index("run")
    assert table["complete"].to_dict() == {
        "synthetic-a0-0": True,
        "synthetic-a1-0": False,
        "synthetic-a2-0": False,
    }
    assert table.loc["synthetic-a0-0", ["top1", "n_clips", "data"]].tolist() == [50, 100, "clips"]
    assert table["top1"].isna().sum() == 2 and "parts" not in table


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_record_is_an_error_that_names_the_file(record, tmp_path, text):
    (record("a0", 0, 50.0) / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match="synthetic-a0-0/metrics.json"):
        read_records(tmp_path)


def test_table2_shares_runs_averages_seeds_and_leaves_the_unmeasured_missing(record, tmp_path):
    for seed, top1 in enumerate([80.0, 84.0]):
        record("a0", seed, top1)
    record("b3", 0, 70.0)
    table = table2(read_records(tmp_path), paper_table(PAPER), "synthetic").set_index("row")
    assert list(table.index) == ["a1", "a2", "a0", "b1", "b2", "b3", "b0", "c1", "c2", "c3", "c0"]
    for row in ("a0", "b0", "c0"):
        assert table.loc[row, ["top1", "n_seeds", "paper_top1"]].tolist() == [82, 2, 74.7]
        assert table.loc[row, "sd"] == pytest.approx(8**0.5)
    assert table.loc["c1", "top1"] == table.loc["b3", "top1"] == 70
    assert table.loc[["b3", "c1"], "paper_top5"].tolist() == [90.9, 89.6]
    assert table.loc["a1", ["top1", "sd", "top5", "gmacs"]].isna().all()
    line = to_markdown(table.reset_index()).splitlines()[2]
    assert line == "| a1 | SNet | – | – | 0 | – | – | 68.6 | 89.5 | 2.2 |"


def test_table2_with_no_record_at_all_is_the_papers_rows_beside_dashes(tmp_path):
    table = table2(read_records(tmp_path), paper_table(PAPER), "synthetic")
    assert len(table) == 11 and table["top1"].isna().all() and table["paper_top1"].notna().all()


def test_a_seed_measured_twice_or_on_other_clips_makes_no_table(record, tmp_path):
    record("a0", 0, 50.0)
    record("a0", 0, 50.0, run="copy")
    with pytest.raises(ValueError, match="copy, synthetic-a0-0"):
        table2(read_records(tmp_path), paper_table(PAPER), "synthetic")
    record("a0", 1, 50.0, run="copy", n_clips=4)
    with pytest.raises(ValueError, match="4 of clips"):
        table2(read_records(tmp_path), paper_table(PAPER), "synthetic")


def test_the_papers_table_agrees_with_what_its_text_claims():
    paper = paper_table(PAPER)
    assert not paper.duplicated(["table", "row"]).any()
    assert paper["table"].value_counts().to_dict() == {
        **{"1-k400": 15, "1-ssv2": 9, "2a": 3, "2b": 4, "2c": 4},
        **{"3a": 5, "3b-v1": 5, "3b-v2": 4, "4": 3},
    }
    top1 = paper.set_index(["table", "row"])["top1"]
    gflops = paper.set_index(["table", "row"])["gflops"]
    claims = {  # Sec. 4.2-4.5: differences in top-1
        ("1-k400", "S2DNet X3D-S/X3D-M", "X3D X3D-M"): 2.0,
        ("1-k400", "S2DNet X3D-S/X3D-XL", "X3D X3D-XL"): 1.5,
        ("1-k400", "S2DNet X3D-S/X3D-XL", "SlowFast R101-NL"): 0.8,
        ("1-ssv2", "S2DNet MN2/R50", "TSM R50"): 3.0,
        ("1-ssv2", "S2DNet MN2/R50", "TDN R50"): 1.1,
        ("2b", "b2", "b1"): 2.6,
        ("2c", "c3", "c1"): 2.3,
        ("3a", "S2DNet MN2/R50", "DKP R18/R50"): 2.0,
        ("3b-v1", "S2DNet MN2/R50", "AdaFocus MN2/R50"): 1.6,
        ("3b-v2", "S2DNet MN2/R50", "AdaFocus MN2/R50"): 1.8,
    }
    for (table, ours, other), gain in claims.items():
        assert top1[table, ours] - top1[table, other] == pytest.approx(gain)
    ratio = gflops["1-k400", "TDN R50"] / gflops["1-k400", "S2DNet X3D-S/X3D-M"]
    assert ratio == pytest.approx(13.3, abs=0.05)


def test_a_table_is_written_for_machines_and_for_people(tmp_path):
    table = pd.DataFrame({"model": ["x|y", None], "gmacs": [0.0312, float("nan")]})
    csv, md = write_table(table, tmp_path / "tables" / "cost")
    assert pd.read_csv(csv)["gmacs"].tolist()[0] == 0.0312
    assert md.read_text().splitlines()[1:] == ["| :-- | --: |", r"| x\|y | 0.031 |", "| – | – |"]


def test_provenance_says_how_to_repeat_a_run(monkeypatch):
    monkeypatch.setenv("S2D_COMMAND", "s2d run x y")
    source = provenance(None, "cpu", 3, "clips")
    assert source["command"] == "s2d run x y"
    assert {"python", "torch", "torchvision", "numpy"} <= set(source["versions"])
    assert source["seed"] == 3 and source["data"] == "clips" and source["device"]
    assert provenance("make", "cpu", 0, "clips")["command"] == "make"
    monkeypatch.delenv("S2D_COMMAND")
    monkeypatch.setattr(sys, "argv", ["train.py", "two words"])
    assert provenance(None, "cpu", 0, "clips")["command"] == "python train.py 'two words'"
    monkeypatch.setattr(sys, "argv", ["/lib/ipykernel_launcher.py", "-f", "kernel.json"])
    assert provenance(None, "cpu", 0, "clips")["command"] == "by hand in JupyterLab"


def test_a_commit_is_marked_where_the_code_differs_from_it_but_not_for_new_results(tmp_path):
    def git(*words):
        user = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *user, *words], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-qm", "one")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    commit = records._commit(tmp_path)
    assert len(commit) == 12
    (tmp_path / "code.py").write_text("2")
    assert records._commit(tmp_path) == commit + "+"


def test_comparisons_have_the_papers_difference_and_say_whether_ours_agrees(record, tmp_path):
    for seed, top1 in enumerate([80.0, 84.0]):
        record("a0", seed, top1)
    record("b2", 0, 60.0)
    record("b3", 0, 90.0)
    lines = comparisons(read_records(tmp_path), paper_table(PAPER), "synthetic").set_index("rows")
    assert (lines["paper"] > 0).all() and len(lines) == 10
    # In pairs of one seed: seed 1 of a0 has no partner.
    assert lines.loc["b0 - b2", ["ours", "n_seeds", "holds"]].tolist() == [20, 1, "yes"]
    assert lines.loc["b0 - b3", ["ours", "holds"]].tolist() == [-10, "no"]
    assert lines.loc["a0 - a1", ["ours", "interval", "holds"]].isna().all()


def test_an_interval_is_students_over_pairs_of_one_seed():
    ours = pd.Series({0: 70.0, 1: 74.0, 2: 78.0, 3: 0.0})
    other = pd.Series({2: 71.0, 1: 69.0, 0: 60.0, 9: 99.0})
    line = difference(ours, other)  # 10, 5, 7
    assert line["ours"] == pytest.approx(22 / 3) and line["n_seeds"] == 3
    sd = ((10 - 22 / 3) ** 2 + (5 - 22 / 3) ** 2 + (7 - 22 / 3) ** 2) / 2
    assert line["interval"] == pytest.approx(4.302653 * (sd / 3) ** 0.5)  # t of 2 degrees, 97.5 %
    assert pd.isna(difference(ours[:1], other)["interval"])


def test_controls_and_trials_stand_beside_the_full_model_of_their_seed(record, tmp_path):
    for seed, top1 in enumerate([80.0, 84.0]):
        record("a0", seed, top1, top1_shuffled=top1 - 30)
        record("a0", seed, 70.0, run=f"synthetic-linear-{seed}")
    record("a0", 1, 50.0, run="synthetic-fc-1")
    record("a0", 0, 99.0, run="synthetic-k-2-0", test_split="val")  # not of the test split
    kinds = {"full": "a0", "another's": "top1_shuffled", "linear": "linear", "FC": "fc"}
    kinds |= {"k": "k-2", "never": "no-such"}
    table = full_model_comparison(read_records(tmp_path), "synthetic", kinds, ["top5"])
    table = table.set_index("what")
    assert table.loc["full", ["top1", "n_seeds", "a0_minus"]].tolist() == [82, 2, 0]
    assert table.loc["another's", ["top1", "a0_minus", "interval"]].tolist() == [52, 30, 0]
    assert table.loc["linear", ["top1", "a0_minus", "top5"]].tolist() == [70, 12, 90]
    assert table.loc["FC", ["top1", "n_seeds", "a0_minus"]].tolist() == [50, 1, 34]
    assert table.loc[["k", "never"], ["top1", "a0_minus"]].isna().all(axis=None)


def test_a_fresh_mean_lies_within_the_interval_of_the_reference_written_out(record, tmp_path):
    def read(name, top1):
        for run, values in top1.items():
            for seed, value in enumerate(values):
                folder = record("a0", seed, value, run=f"synthetic-{run}-{seed}", top1_mean=value)
                folder.rename((tmp_path / name).joinpath(folder.name))
        return read_records(tmp_path / name)

    (tmp_path / "reference").mkdir(), (tmp_path / "fresh").mkdir()
    numbers = {"a0": [80.0, 84.0, 88.0], "b2": [70.0, 74.0, 78.0], "linear": [60.0]}
    reference = read("reference", numbers | {"c2": [50.0, 52.0]})
    fresh = read("fresh", {"a0": [90.0, 92.0], "b2": [99.0, 95.0], "linear": [60.0], "fc": [40.0]})
    table = reproduction(reference, fresh, "synthetic").set_index("what")
    for what, run in (("Table 2, a0", "a0"), ("Table 2, b2", "b2")):
        values = numbers[run]
        mean = sum(values) / 3
        variance = sum((value - mean) ** 2 for value in values) / 2
        half = 4.302653 * variance**0.5 * (1 / 3 + 1 / 2) ** 0.5  # t of 2 degrees, 97.5 %
        assert table.loc[what, ["reference", "n_reference", "n_fresh"]].tolist() == [mean, 3, 2]
        assert table.loc[what, "interval"] == pytest.approx(half)
    assert table.loc["Table 2, a0", ["fresh", "is"]].tolist() == [91, "within"]  # 7 of 15.7
    assert table.loc["Table 2, b2", ["fresh", "is"]].tolist() == [97, "outside"]  # 23
    assert table.loc["the mean theta of all clips", "fresh"] == 91  # a control, of a0's own runs
    linear, fc = TRIALS["linear"].words, TRIALS["fc"].words
    assert table.loc[linear, ["n_reference", "fresh"]].tolist() == [1, 60]
    assert table.loc[fc, ["n_reference", "fresh"]].tolist() == [0, 40]
    assert table.loc[[linear, fc], ["interval", "is"]].isna().all(axis=None)
    assert "Table 2, c2" not in table.index  # not run
    others = fresh.assign(n_clips=4)  # tested on other clips: no reference
    assert reproduction(reference, others, "synthetic")["is"].isna().all()


def plan(folder: Path, preset: str, *settings: str) -> str:
    """What the graph of runs would do for a preset, its commands among it."""
    for name in ("Snakefile", "s2dlib", "notebooks"):
        (folder / name).symlink_to(ROOT / name)
    if not preset.startswith("synthetic"):  # its owners' videos, indexed by hand
        csv = folder / PRESETS[preset].data.csv
        csv.parent.mkdir(parents=True)
        csv.touch()
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--cores", "2"]
    command += ["--config", f"preset={preset}", "seeds=1", "other_seeds=1", *settings]
    home = dict(os.environ, HOME="/nowhere")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=home)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("preset", "windows", "more"),
    [
        ("synthetic", WINDOWS, {"authors1", "motion1", "motion2"}),
        ("grid", GRID_WINDOWS, {}),
        ("egogestar", {}, {}),
    ],
)
def test_every_line_of_parts_and_controls_is_a_run_of_the_graph_and_the_other_way_round(
    tmp_path, preset, windows, more
):
    found = re.findall(
        rf"runs/{preset}-(\S+)-0/metrics.json", plan(tmp_path, preset, "trial_seeds=1")
    )
    planned, starts = set(found), {"snet", "closeups", "zoom", *more}  # stages before a run
    shown = {*parts(preset).values(), *study_of(preset).controls}
    assert set(CONTROLS.values()) >= {*study_of(preset).controls}
    assert shown - {"a0"} == planned - {*VARIANTS, *windows, *starts}
    assert "a0" in planned and planned >= {*VARIANTS, *windows, *starts}


@pytest.mark.parametrize("preset", ["synthetic", "grid-untrimmed", "mini-kinetics"])
def test_every_command_of_the_graph_names_a_recipe_of_its_preset(tmp_path, preset):
    commands = re.findall(r"notebooks/02_train.ipynb.*", plan(tmp_path, preset))
    assert len(commands) >= len(VARIANTS)
    for text in commands:
        (recipe,) = re.findall(r"-p recipe (\S+)", text) or ["joint"]  # 02_train's own
        assert f"-p preset {preset} " in text and recipe in PRESETS[preset].recipes


def test_another_index_is_studied_by_parameters_alone(tmp_path):
    (tmp_path / "colour.csv").touch()
    said = plan(tmp_path, "grid", "trial_seeds=1", "csv=colour.csv", "results=reproduced/colour")
    commands = re.findall(r"notebooks/0[02]_\w+.ipynb.*", said)
    assert len(commands) > len(VARIANTS)
    assert all("-p csv ../colour.csv " in text for text in commands)
    assert "data/grid/grid.csv" not in said


@pytest.mark.parametrize("preset", ["synthetic", "synthetic-distractors", "grid"])
def test_the_graph_writes_beside_the_reference_and_outside_git(tmp_path, preset):
    said = plan(tmp_path, preset, "trial_seeds=1")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    lines = re.findall(r"^    (?:output|log): (.*)", said, re.M)
    written = {path for line in lines for path in line.split(", ")}
    assert len(written) > 60
    ask, given = ["git", "check-ignore", "--stdin"], "\n".join(sorted(written))
    done = subprocess.run(ask, cwd=tmp_path, input=given, capture_output=True, text=True)
    assert set(done.stdout.splitlines()) == written
    commands = re.findall(r"s2d run --quiet notebooks/(\w+).ipynb(.*)", said)
    assert len(commands) > 20
    for notebook, text in commands:
        takes = '"results: str' in (ROOT / f"notebooks/{notebook}.ipynb").read_text()
        assert takes == ("-p results ../reproduced " in text), text
        assert not re.search(r"\bresults/", text)  # neither reads nor writes the reference


def test_a_line_of_the_paper_gets_our_number_only_from_a_run_of_its_preset(record, tmp_path):
    paper = paper_table(PAPER)
    record("a0", 0, 50.0)
    run = record("a0", 0, 70.0, run="ssv2-a0-0")
    for name in ("config.json", "metrics.json"):
        (run / name).write_text((run / name).read_text().replace('"synthetic"', '"ssv2"'))
    lines = paper_comparison(read_records(tmp_path), paper, "1-ssv2").set_index("row")
    assert lines["our_top1"].dropna().to_dict() == {"S2DNet MN2/R50": 70}
    assert lines.loc["S2DNet MN2/R50", "top1"] == 66.4 and "params" not in lines
    assert paper_comparison(read_records(tmp_path), paper, "3a")["our_top1"].isna().all()


def test_the_command_of_a_run_names_its_preset_row_and_csv():
    assert command("synthetic", "b2") == "make reproduce"
    assert command("mini-kinetics", "c1", 2).endswith(
        "reproduced/runs/mini-kinetics-b3-2/02_train.ipynb "
        "-p preset mini-kinetics -p variant b3 -p recipe paper -p seed 2"
    )
    assert command("videos", csv="a/mine.csv").endswith("-p csv a/mine.csv -p name mine-a0-0")
    checked = command("x3d-s", csv="../my data/kinetics400.checked.csv")  # the preset's own
    assert "runs/x3d-s-a0-0/" in checked
    assert checked.endswith("-p seed 0 -p csv '../my data/kinetics400.checked.csv'")
    assert command("ssv2", splits=["train", "val"]).endswith("-p seed 0 -p test_split val")
    assert command("videos", splits=["train", "test"]).endswith("-p seed 0 -p val_split test")
    assert command("no-such") == "(needs a preset no-such)"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("clips"), share=0.001)


def test_a_run_is_rebuilt_from_its_folder_and_missing_weights_are_named(tmp_path):
    model = build_model("synthetic", "b2")
    config = {"model": asdict(model.config), "preset": "synthetic"}
    write_record(tmp_path, config, {"top1": 1.0}, [{"epoch": 1}])
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_run(tmp_path)
    write_weights(model, tmp_path / WEIGHTS)
    loaded, config = load_run(tmp_path)
    assert config["preset"] == "synthetic" and not loaded.training
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert_close(loaded.state_dict()[name], value)


@torch.no_grad()
def test_where_it_looks_is_the_same_whatever_the_batch_and_knows_no_truth_without_one(runs, csv):
    run = runs / "synthetic-a0-0"
    table, (model, config) = sampling_locations_of_run(run), load_run(run)
    test = VideoDataset(DataConfig(**config["data"]), "test", train=False)
    batches = [looking._locations(model, batch) for batch in load_batches(test, batch_size=7)]
    by_seven = pd.concat(batches, ignore_index=True)
    pd.testing.assert_frame_equal(table[by_seven.columns], by_seven, rtol=1e-3)
    assert table["label"].tolist() == test.table["label"].tolist()
    assert (table["right"] == 100.0 * (table["label"] == table["s2dnet"])).all()
    assert table["looks_t"].between(0, 64).all() and table["looks_y"].between(0, 72).all()
    assert {"t", "size", "distance_t", "iou_yx"} <= set(table.columns)
    steps = torch.arange(8) - 3.5  # Eq. 6, T_D = 8
    looks_t, delta_t, t = (torch.tensor(table[n])[:, None] for n in ("looks_t", "delta_t", "t"))
    nearest = (looks_t + steps * delta_t - t).abs().amin(1)
    assert_close(torch.tensor(table["nearest_t"]), nearest, rtol=0, atol=1e-3)
    text = Path(csv).read_text().replace(",t,", ",moment,", 1)
    (unknown := Path(csv).with_name("unknown.csv")).write_text(text)
    table = sampling_locations_of_run(run, str(unknown))
    assert len(table) == 20 and not {"t", "distance_t", "nearest_t"} & set(table.columns)


def test_a_network_alone_looks_nowhere_and_its_run_is_named(tmp_path):
    model = build_model("synthetic", "a1")
    config = {"model": asdict(model.config), "preset": "synthetic"}
    write_record(tmp_path, config, {"top1": 1.0}, [{"epoch": 1}])
    write_weights(model, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{tmp_path}: expected SNet and DNet"):
        sampling_locations_of_run(tmp_path)


def test_controls_give_each_clip_its_theta_when_one_cannot_be_read(clips):
    model, told = build_model("synthetic").eval(), []
    model.dnet.register_forward_pre_hook(lambda module, args: told[-1].append(args[0]))
    text = Path(clips).read_text().splitlines()
    bad = next(i for i, line in enumerate(text) if ",test," in f"{line},")
    lines = [line.replace(",test", ",none") if i == bad else line for i, line in enumerate(text)]
    for rows in (text, lines):  # a video that is not there, and a table without it
        csv = Path(clips).with_name("some.csv")
        csv.write_text("\n".join(rows).replace(text[bad].split(",")[0], "gone.mp4"))
        config = replace(PRESETS["synthetic"].data, csv=str(csv), cache=None)
        told.append([])
        train = replace(PRESETS["synthetic"].recipes["joint"], batch_size=50)
        metrics_of(model, VideoDataset(config, "test", train=False), train)
    assert [len(volumes) for volumes in told] == [5, 5]  # its own theta, and four others
    for volume, expected in zip(*told, strict=True):
        assert_close(volume, expected)


@pytest.mark.parametrize("n_crops", [1, 3])
def test_controls_exchange_theta_and_nothing_else(clips, n_crops, monkeypatch):
    config = PRESETS["synthetic"].data
    config = replace(config, csv=str(clips), cache=None, test_crops=n_crops)
    test = VideoDataset(config, "test", train=False)
    model = build_model("synthetic").eval()
    seen = []
    model.dnet.register_forward_pre_hook(lambda module, args: seen.append(args))
    train = replace(PRESETS["synthetic"].recipes["joint"], batch_size=20 * n_crops)
    reads, read = [], VideoDataset._item
    monkeypatch.setattr(VideoDataset, "_item", lambda *a: reads.append(a[1]) or read(*a))
    told = metrics_of(model, test, train)
    assert sorted(reads) == sorted([*range(20), *range(20)])  # twice, not six times
    monkeypatch.undo()
    names = ["top1_mean", "top1_shuffled", "top1_uniform", "top1_truth"]
    assert [name for name in told if name.startswith("top1_")] == names
    assert all(0 <= told[name] <= 100 for name in names)
    expected = evaluate(model, test, batch_size=20 * n_crops)
    assert {name: told[name] for name in expected} == expected
    seen.pop()
    batch = collate([test[i] for i in range(20)])
    own = model(batch["frames"], batch["n_frames"]).theta
    thetas = [
        own.map(lambda v: v.mean(0, keepdim=True).expand_as(v)),
        own.map(lambda v: v.roll(n_crops, 0)),  # the same crop of another video
    ]
    thetas.append(frozen_theta(Extent(batch["n_frames"], 64, 64), model.config.detail_size, "full"))
    t, _, _, y, x = (v[:, None] for v in batch["truth"].unbind(1))
    where = {"mu_t": t[:, 0] / 48, "mu_y": (y / 64).expand(-1, 8), "mu_x": (x / 64).expand(-1, 8)}
    thetas.append(replace(own, **where))
    assert len(seen) == 6  # the evaluation, the four controls, and the one above
    for (volume, context), theta in zip(seen[1:5], thetas, strict=True):
        expected = model.detail_sampler(batch["frames"], theta, batch["n_frames"])
        assert_close(volume, model.normalise(expected, 1 / 255), rtol=1e-3, atol=1e-3)
        assert_close(context, seen[5][1], rtol=1e-4, atol=1e-4)


def test_thirds_of_the_clips_are_ranges_of_the_detail():
    clips = pd.DataFrame({"size": range(1, 10), "theta": "learned", "seed": 0})
    clips["right"] = [100.0, 0, 0, 100, 100, 0, 100, 100, 100]
    table = top1_by_thirds(clips, "size")
    assert table["size"].astype(str).tolist() == ["1-4", "4-6", "6-9"]
    assert table["top1"].round().tolist() == [33, 67, 100]


def test_a_copy_names_the_commit_that_it_is_told(monkeypatch):
    monkeypatch.setenv("S2D_COMMIT", "0123456789ab")
    assert provenance("make test", torch.device("cpu"), 0, "-")["commit"] == "0123456789ab"
