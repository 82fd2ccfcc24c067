"""Predictions on videos by hand, a folder or the command line; the picture and the film."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import s2dlib.apps.pictures as pictures_module
import s2dlib.apps.predict as predict_module
from s2dlib.apps.cli import main
from s2dlib.apps.predict import (
    default_workers,
    find_videos,
    predict_clip,
    predictions,
    top_predictions,
)
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


def test_the_reader_has_the_seconds_that_are_asked_for(model, videos, monkeypatch):
    seen = []
    monkeypatch.setattr(
        predict_module, "load_views", lambda path, data: seen.append(data) or load_views(path, data)
    )
    for timeout in (7.5, None):
        list(predictions(model, [videos / "a.mp4"], timeout=timeout))
    assert seen == [replace(model.data, timeout=7.5), model.data]


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


@pytest.fixture
def many(videos, make_video):
    """The folder with more videos, of other lengths."""
    for n in (5, 30, 48, 17):
        make_video(videos / "below" / f"{n}.mp4", n_frames=n)
    return videos


@pytest.mark.parametrize("crops", [1, 3])
def test_many_at_once_have_the_rows_that_they_have_one_by_one(runs, many, crops):
    model = S2DNet.from_pretrained(runs / "synthetic-a0-0")
    model.record["data"]["test_crops"] = crops
    paths = find_videos([many])
    alone = list(predictions(model, paths))
    together = list(predictions(model, paths, workers=3, batch_size=4))
    assert [path for path, _, _ in together] == paths
    for (path, one, expected), (_, row, seen) in zip(alone, together, strict=True):
        numbers = {k: v for k, v in one.items() if isinstance(v, float)}
        assert row == one | {k: pytest.approx(v, rel=1e-4) for k, v in numbers.items()}
        assert (seen is None) == (path.name == "bad.mp4")
        if seen is not None:
            (views, out), (expected_views, expected_out) = seen, expected
            assert_close(views, expected_views, rtol=0, atol=0)
            assert_close(out.detail_volume, expected_out.detail_volume, rtol=0, atol=0.1)  # of 255
            assert_close(out.scores, expected_out.scores, rtol=1e-4, atol=1e-6)


def test_few_videos_have_one_thread_and_many_have_eight_at_most():
    assert [default_workers(n) for n in (0, 2, 15)] == [1, 1, 1]
    assert 1 <= default_workers(10_000) <= min(8, os.cpu_count())


def test_what_cannot_be_computed_costs_its_own_row_of_a_batch(runs, many):
    model = S2DNet.from_pretrained(runs / "synthetic-a0-0")

    def refuse(module, inputs):
        if (inputs[1] == 17).any():
            raise RuntimeError("CUDA out of memory.\nTried")

    model.register_forward_pre_hook(refuse)
    rows = list(predictions(model, find_videos([many]), workers=2, batch_size=8))
    errors = {path.name: row["error"] for path, row, _ in rows if row["error"]}
    assert errors.keys() == {"17.mp4", "bad.mp4"} and len(rows) == 7
    assert errors["17.mp4"] == "RuntimeError: CUDA out of memory. Tried"


def test_the_command_takes_many_at_once_and_goes_on(many, runs, tmp_path, predict, trouble):
    out = tmp_path / "out"
    run = ("--checkpoint", runs / "synthetic-a0-0", "--out", out, "--workers", 3, "--batch", 2)
    names = [path.name for path in find_videos([many])]
    trouble({names[4]: KeyboardInterrupt()})
    code, _, errors = predict(many, *run)
    assert code == 130 and "holds 4 rows so far" in errors and "videos/s" in errors
    assert list(rows_of(out)) == names[:4]
    asked = trouble({})
    assert predict(many, *run)[0] == 1
    assert set(asked) == {"bad.mp4", *names[4:]} and rows_of(out).keys() == set(names)


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
    with Image.open(out / "a.mp4.s2d.png") as picture:
        assert picture.width > 800
    assert len(read_frames(out / "a.mp4.s2d.mp4")) == 48


def test_a_single_network_gets_its_verdict_and_no_picture(videos, tmp_path, csv, predict):
    model = build_model("synthetic", "a1")
    model.record = {"data": asdict(protocol(csv))}
    model.save_pretrained(tmp_path / "a1")
    arguments = (videos / "a.mp4", "--checkpoint", tmp_path / "a1", "--out", tmp_path / "out")
    code, printed, _ = predict(*arguments)
    assert code == 0 and "a.mp4: 48 frames" in printed and "before: SNet" not in printed
    assert list((tmp_path / "out").iterdir()) == []


def everything_in(folder):
    """Every file's content, by its path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("film", ["mp4", "gif"])
def test_pictures_beside_the_videos_replace_none_and_are_no_videos_next_time(
    videos, runs, predict, film
):
    before = everything_in(videos)
    run = ("--checkpoint", runs / "synthetic-a0-0", "--out", videos, "--film", film)
    assert [predict(videos / "a.mp4", *run)[0] for _ in range(2)] == [0, 0]  # its own are replaced
    assert predict(videos, *run, "--pictures")[0] == 1
    after = everything_in(videos)
    assert {path: after[path] for path in before} == before
    ends = [".s2d.png", f".s2d.{film}"]
    new = {f"a.mp4{end}" for end in ends} | {"predictions.csv"}
    new |= {f"{name}{end}" for name in ("in/a.mp4", "in/below/b.mp4") for end in ends}
    assert {str(path.relative_to(videos)) for path in set(after) - set(before)} == new
    assert {p.name for p in find_videos([videos])} == {"a.mp4", "b.mp4", "bad.mp4"}


@pytest.mark.parametrize("way", ["a text", "a hard link to the video", "a link to the video"])
def test_a_file_in_the_way_of_a_picture_stays_and_is_told(way, videos, runs, tmp_path, predict):
    video, out = videos / "a.mp4", tmp_path / "out"
    out.mkdir()
    path = out / "a.mp4.s2d.mp4"
    if way == "a text":
        path.write_bytes(b"mine")
    else:
        (path.hardlink_to if "hard" in way else path.symlink_to)(video)
    before = video.read_bytes(), path.read_bytes()
    code, printed, errors = predict(video, "--checkpoint", runs / "synthetic-a0-0", "--out", out)
    assert code == 1 and "a.mp4: 48 frames" in printed and "write elsewhere" in errors
    assert (video.read_bytes(), path.read_bytes()) == before


def test_a_table_of_someone_else_stays(videos, runs, predict):
    for content in ("path,label\na.mp4,1\n", "mine"):
        (videos / "predictions.csv").write_text(content)
        message, *_ = predict(videos, "--checkpoint", runs / "synthetic-a0-0", "--out", videos)
        assert "predictions.csv: a file that this command did not make" in message
        assert (videos / "predictions.csv").read_text() == content


def test_pictures_do_not_go_among_the_frames_of_a_video(runs, tmp_path, predict):
    for n in range(8):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.new("RGB", (80, 80)).save(tmp_path / "frames" / f"{n:05d}.png")
    frames = tmp_path / "frames"
    message, *_ = predict(frames, "--checkpoint", runs / "synthetic-a0-0", "--out", frames)
    assert "is read here" in message and len(list(frames.iterdir())) == 8


@pytest.fixture
def trouble(monkeypatch):
    """trouble({name: error}) raises errors for videos of these names; returns those asked for."""

    def start(errors):
        asked = []

        def load(path, data):
            asked.append(path.name)
            if error := errors.get(path.name):
                raise error
            return load_views(path, data)

        monkeypatch.setattr(predict_module, "load_views", load)
        return asked

    return start


def rows_of(out):
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    return {Path(row["path"]).name: row for _, row in table.iterrows()}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory.\nTried"),
        MemoryError(),
        ValueError("odd"),
        PermissionError(13, "no", "x"),
        UnicodeEncodeError("utf-8", "\udcdf", 0, 1, "surrogates"),
        KeyError("mp4"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_trouble_is_the_row_of_one_video_and_is_tried_again(
    error, videos, runs, tmp_path, predict, trouble
):
    arguments = (videos, "--checkpoint", runs / "synthetic-a0-0", "--out", tmp_path / "out")
    trouble({"a.mp4": error})
    assert predict(*arguments)[0] == 1
    rows = rows_of(tmp_path / "out")
    assert rows["a.mp4"]["error"].startswith(type(error).__name__) and rows["b.mp4"]["error"] == ""
    asked = trouble({})
    assert predict(*arguments)[0] == 1  # bad.mp4 is still bad
    assert asked == ["a.mp4", "bad.mp4"]  # what failed, and not what is there
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 3 and rows["a.mp4"]["action_1"] != ""
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 3


def test_ctrl_c_leaves_what_is_there_and_the_same_command_goes_on(
    videos, runs, tmp_path, predict, trouble
):
    arguments = (videos, "--checkpoint", runs / "synthetic-a0-0", "--out", tmp_path / "out")
    trouble({"b.mp4": KeyboardInterrupt()})
    code, _, errors = predict(*arguments)
    assert code == 130 and "holds 2 rows so far; the same command goes on" in errors
    first = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert list(rows_of(tmp_path / "out")) == ["a.mp4", "bad.mp4"]
    asked = trouble({})
    predict(*arguments)
    assert asked == ["bad.mp4", "b.mp4"]
    content = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert content.startswith(first.splitlines(keepends=True)[0] + first.splitlines(True)[1])
    trouble({"a.mp4": KeyboardInterrupt()})  # alone, without a table
    code, _, errors = predict(videos / "a.mp4", *arguments[1:])
    assert (code, errors) == (130, "interrupted\n")
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == content


def test_a_full_disk_ends_in_a_line_with_the_rows_so_far(
    videos, runs, tmp_path, predict, monkeypatch
):
    original, full = pictures_module.write_video, OSError(errno.ENOSPC, "No space left on device")

    def write_video(path, *arguments):
        if path.name.startswith("b."):
            raise full
        original(path, *arguments)

    monkeypatch.setattr(pictures_module, "write_video", write_video)
    run = ("--checkpoint", runs / "synthetic-a0-0", "--out", tmp_path / "out", "--pictures")
    message, *_ = predict(videos, *run)
    assert message == "error: [Errno 28] No space left on device"
    assert list(rows_of(tmp_path / "out")) == ["a.mp4", "bad.mp4"]
    full = OSError(errno.ENAMETOOLONG, "File name too long")  # this one's own: its row says it
    assert predict(videos, *run)[0] == 1
    row = rows_of(tmp_path / "out")["b.mp4"]
    assert "File name too long" in row["error"] and row["action_1"] != ""


def test_another_model_or_top_starts_anew_and_a_changed_video_gets_another_row(
    videos, runs, tmp_path, predict, trouble
):
    out = tmp_path / "out"

    def call(run, *more):
        asked = trouble({})
        _, _, errors = predict(
            videos / "a.mp4", videos / "below", "--checkpoint", runs / run, "--out", out, *more
        )
        return asked, errors

    assert call("synthetic-a0-0")[0] == ["a.mp4", "b.mp4"]
    assert call("synthetic-a0-0", "--timeout", 300) == ([], "")
    first = (out / "predictions.csv").read_bytes()
    for n, (run, top) in enumerate([("synthetic-b3-0", 5), ("synthetic-b3-0", 2)], start=1):
        asked, errors = call(run, "--top", top)
        assert asked == ["a.mp4", "b.mp4"] and f"now predictions.{n}.csv" in errors
    assert (out / "predictions.1.csv").read_bytes() == first
    shutil.copy(videos / "below" / "b.mp4", videos / "a.mp4")
    assert call("synthetic-b3-0", "--top", 2)[0] == ["a.mp4"]
    assert len(pd.read_csv(out / "predictions.csv")) == 3


def test_videos_of_one_stem_have_pictures_of_their_own(videos, runs, tmp_path, predict, trouble):
    (videos / "other").mkdir()
    for path in (videos / "other" / "a.mp4", videos / "a.avi", videos / "other-a.mp4"):
        shutil.copy(videos / "a.mp4", path)
    run = ("--checkpoint", runs / "synthetic-a0-0", "--out", tmp_path / "out", "--pictures")
    named = (videos / "a.mp4", videos / "a.avi", videos / "other", videos / "other-a.mp4")
    predict(*named, *run)
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    stems = ("a.mp4", "a.avi", "other/a.mp4", "other-a.mp4")
    assert names == {f"{stem}.s2d.png" for stem in stems}
    (tmp_path / "out" / "a.avi.s2d.mp4").unlink()
    asked = trouble({})
    predict(*named, *run)  # goes on with pictures, too
    assert asked == ["a.avi"] and (tmp_path / "out" / "a.avi.s2d.mp4").is_file()


def test_a_name_too_long_for_pictures_costs_its_own_picture(videos, runs, tmp_path, predict):
    shutil.copy(videos / "a.mp4", videos / f"{'x' * 246}.mp4")
    run = ("--checkpoint", runs / "synthetic-a0-0", "--out", tmp_path / "out", "--pictures")
    for _ in range(2):  # the second time the folder is there
        assert predict(videos, *run)[0] == 1
        row = rows_of(tmp_path / "out")[f"{'x' * 246}.mp4"]
        assert "File name too long" in row["error"] and row["action_1"] != ""


def test_a_video_that_cannot_be_opened_and_is_named_as_a_film_is_found(videos, monkeypatch):
    (videos / "a.s2d.mp4").write_bytes(b"x")

    def refuse(path, pattern):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pictures_module, "contains", refuse)  # root can read everything
    assert videos / "a.s2d.mp4" in find_videos([videos])


def test_a_table_saved_by_a_spreadsheet_goes_on(videos, runs, tmp_path, predict):
    arguments = (videos, "--checkpoint", runs / "synthetic-a0-0", "--out", tmp_path / "out")
    (videos / "bad.mp4").unlink()
    predict(*arguments)
    path = tmp_path / "out" / "predictions.csv"
    content = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert "2 of 2 videos are in" in predict(*arguments)[1]
    assert path.read_bytes() == content and [p.name for p in path.parent.iterdir()] == [path.name]


def test_names_in_latin_1_and_of_two_lines_cost_no_row(videos, runs, tmp_path, predict):
    names = [b"stra\xdfe.mp4", b"stra\\xdfe.mp4", b"two\nlines.mp4", "größe.mp4".encode()]
    for name in names:
        shutil.copy(videos / "a.mp4", videos / os.fsdecode(name))
    run = ("--checkpoint", runs / "synthetic-a0-0", "--out", tmp_path / "out")
    for _ in range(2):
        assert predict(videos, *run)[0] == 1
        rows = rows_of(tmp_path / "out")
        assert set(rows) == {
            *("a.mp4", "b.mp4", "bad.mp4", r"stra\xdfe.mp4", r"stra\\xdfe.mp4"),
            *(r"two\x0alines.mp4", "größe.mp4"),
        }
        assert [rows[n]["error"] for n in (r"stra\\xdfe.mp4", "größe.mp4")] == ["", ""]


@pytest.mark.slow
def test_ctrl_c_and_a_kill_in_earnest(videos, runs, tmp_path):
    for n in range(200):
        (videos / f"{n}.mp4").hardlink_to(videos / "a.mp4")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "s2dlib", "predict", videos, "--out", out]
    command += ["--checkpoint", runs / "synthetic-a0-0"]
    paths = set()
    for sent, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        child = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while not (out / "predictions.csv").exists() or len(rows_of(out)) < len(paths) + 3:
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(sent)
        _, errors = child.communicate()
        assert child.returncode == status and "Traceback" not in errors, errors
        rows = set(rows_of(out))
        assert rows >= paths and len(rows) < 200
        paths = rows
    assert [p.name for p in out.iterdir()] == ["predictions.csv"]


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
    assert message == "error: --top must be >= 1 and --timeout > 0 seconds, got 0 and None"
    message, *_ = predict(videos / "a.mp4", "--checkpoint", run, "--timeout", "nan")
    assert message == "error: --top must be >= 1 and --timeout > 0 seconds, got 5 and nan"
    message, *_ = predict(videos, "--checkpoint", run, "--batch", 0)
    assert message == "error: --workers and --batch must be >= 1, got None and 0"
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
