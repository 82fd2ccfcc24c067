"""Predictions on videos by hand, a folder or the command line; the picture and the film."""

import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from s2dlib.apps.cli import main
from s2dlib.apps.predict import find_videos, predict_clip, predictions, top_predictions
from s2dlib.data.clips import load_views
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.files import write_video
from s2dlib.data.readers import read_frames
from s2dlib.model import S2DNet, build_model
from s2dlib.presets import PRESETS


@pytest.fixture(scope="module")
def model(runs):
    return S2DNet.from_pretrained(runs / "synthetic-a0-0")


@pytest.fixture
def videos(csv, tmp_path):
    """A folder of two videos, one in a folder below, and one that is none."""
    (tmp_path / "in" / "below").mkdir(parents=True)
    shutil.copy(Path(csv).parent / "test" / "00000.mp4", tmp_path / "in" / "a.mp4")
    shutil.copy(Path(csv).parent / "test" / "00001.mp4", tmp_path / "in" / "below" / "b.mp4")
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no video")
    return tmp_path / "in"


def protocol(csv, **changes):
    return replace(PRESETS["synthetic"].data, csv=csv, cache=None, **changes)


@pytest.fixture
def predict(capsys):
    """predict(*arguments) -> exit code or message, what was printed, what went to stderr."""

    def call(*arguments):
        try:
            code = main(["predict", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("crops", [1, 3])
def test_the_views_of_a_video_are_those_that_testing_takes(csv, crops):
    data = protocol(csv, test_crops=crops)
    dataset = VideoDataset(data, "test", train=False)
    frames = dataset[3]["frames"]
    views = load_views(dataset.table["path"][3], data)
    assert_close(views, frames if crops == 3 else frames[None], rtol=0, atol=0)


def test_a_video_that_is_shorter_than_the_clip_is_taken_as_it_is(model, make_video, tmp_path):
    views, out = predict_clip(model, make_video(tmp_path / "short.mp4", n_frames=7))
    assert views.shape == (1, 1, 7, 64, 64) and out.scores.shape == (1, 20)


def test_the_verdicts_are_means_over_the_views_before_and_after(model):
    frames = torch.randint(0, 256, (3, 1, 48, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        out = model(frames)
    table = top_predictions(model, out, top=4)
    p, scores = out.logits.softmax(1).mean(0), out.scores.mean(0)
    assert table.index.tolist() == [1, 2, 3, 4]
    for name, values in (("", scores), ("snet_", p)):
        order = values.argsort(descending=True)[:4].tolist()
        assert table[f"{name}action"].tolist() == [model.classes[n] for n in order]
        assert table[f"{name}probability"].tolist() == pytest.approx(values[order].tolist())


def test_a_network_alone_has_one_verdict(csv):
    model = build_model("synthetic", "a2").eval()
    out = model(torch.zeros(1, 1, 48, 64, 64, dtype=torch.uint8))
    assert top_predictions(model, out).columns.tolist() == ["action", "probability"]


def test_videos_are_files_those_below_folders_and_folders_of_frames(videos, tmp_path):
    assert [p.name for p in find_videos([videos])] == ["a.mp4", "bad.mp4", "b.mp4"]
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (8, 8)).save(frames / "00001.png")
    assert find_videos([frames, videos / "a.mp4"]) == [frames, videos / "a.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected videos below"):
        find_videos([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_videos([tmp_path / "gone.mp4"])


def test_a_bad_file_costs_its_own_row_and_no_other(model, videos):
    rows = {path.name: row for path, row, _ in predictions(model, find_videos([videos]))}
    assert rows["bad.mp4"]["error"].startswith("not a video, or cut off before its index")
    assert "action_1" not in rows["bad.mp4"]
    _, out = predict_clip(model, videos / "a.mp4")
    assert rows["a.mp4"]["error"] == "" and rows["a.mp4"]["frames"] == 48
    assert rows["a.mp4"]["probability_1"] == pytest.approx(out.scores.max().item())
    assert rows["a.mp4"]["delta_y"] == pytest.approx(out.theta.delta_y.mean().item())


def test_the_command_writes_a_table_for_a_folder_and_tells_the_bad_video(videos, runs, tmp_path):
    out, run = tmp_path / "out", runs / "synthetic-a0-0"
    command = ["-m", "s2dlib", "predict", videos, "--checkpoint", run, "--out", out, "--top", "2"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 1 and "bad.mp4: not a video" in done.stderr, done.stderr
    assert "3/3" in done.stderr  # the bar
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    assert [Path(p).name for p in table["path"]] == ["a.mp4", "bad.mp4", "b.mp4"]
    assert "action_2" in table and "action_3" not in table
    assert [p.name for p in out.iterdir()] == ["predictions.csv"]


def test_the_command_shows_one_video_with_its_picture_and_film(videos, runs, tmp_path, predict):
    out, run = tmp_path / "out", runs / "synthetic-a0-0"
    code, printed, errors = predict(videos / "a.mp4", "--checkpoint", run, "--out", out)
    assert (code, errors) == (0, "")
    assert "after DNet" in printed and "before: SNet" in printed
    with Image.open(out / "a.png") as picture:
        assert picture.width > 800
    assert len(read_frames(out / "a.mp4")) == 48


def test_a_single_network_gets_its_verdict_and_no_picture(videos, tmp_path, csv, predict):
    model = build_model("synthetic", "a1")
    model.record = {"data": asdict(protocol(csv))}
    model.save_pretrained(tmp_path / "a1")
    arguments = (videos / "a.mp4", "--checkpoint", tmp_path / "a1", "--out", tmp_path / "out")
    code, printed, _ = predict(*arguments)
    assert code == 0 and "a.mp4: 48 frames" in printed and "before: SNet" not in printed
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("missing", ["video", "checkpoint"])
def test_what_is_not_there_is_one_line(videos, runs, tmp_path, missing, predict):
    video = videos / ("gone.mp4" if missing == "video" else "a.mp4")
    checkpoint = tmp_path / "gone" if missing == "checkpoint" else runs / "synthetic-a0-0"
    message, *_ = predict(video, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert message.startswith("error: ") and "gone" in message and "\n" not in message


def test_a_table_of_nothing_and_a_folder_that_is_a_file_are_errors_in_a_line(
    videos, runs, tmp_path, predict
):
    run = runs / "synthetic-a0-0"
    message, *_ = predict(videos / "a.mp4", "--checkpoint", run, "--top", 0)
    assert message == "error: --top must be >= 1, got 0"
    message, *_ = predict(videos / "a.mp4", "--checkpoint", run, "--out", videos / "bad.mp4")
    assert message.startswith("error: ") and "bad.mp4" in message


@pytest.mark.parametrize("suffix,channels", [(".mp4", 3), (".mp4", 1), (".gif", 3), (".gif", 1)])
def test_a_film_holds_its_frames_at_its_rate(tmp_path, suffix, channels):
    shades = np.array([20, 120, 220], np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (3, 32, 48, channels))
    path = tmp_path / f"film{suffix}"
    write_video(path, frames, fps=12.5)
    with av.open(path) as file:
        stream = file.streams.video[0]
        read = [f.to_ndarray(format="gray") for f in file.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(12.5, rel=0.01)
    assert [round(image.mean() / 100) for image in read] == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
