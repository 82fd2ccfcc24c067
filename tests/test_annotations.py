"""Every owner's format becomes the one CSV of this project, and every mistake names its line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from s2dlib.apps.cli import main, parse
from s2dlib.apps.index import FORMATS
from s2dlib.apps.run import parse_value
from s2dlib.data.annotations import (
    cut_val,
    read_folders,
    read_kinetics,
    read_mini_kinetics,
    read_something,
)
from s2dlib.data.classes import read_classes
from s2dlib.data.index import make_index
from s2dlib.data.table import class_names, read_csv
from s2dlib.presets import PRESETS

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
air drumming,-7tDxxH2g6I,17,27,{0},0
"passing American football (in game)",0wR5jVB-WPk,417,427,{0},1
massaging person's head,3caPS4FHFF8,0,10,{0},0
air drumming,6IbvOJxXnOo,47,57,{0},0
"""
NAMES = ["air drumming", "massaging person's head", "passing American football (in game)"]


def table_of(rows, folder, classes=None):
    """The index by the videos' names: (path, label, split)."""
    table, _ = make_index(rows, folder, classes)
    return {r.name: (r.path, r.label, r.split) for r in table.itertuples(index=False)}


# Kinetics-400

TREES = {
    "class folders": [
        "air_drumming/-7tDxxH2g6I_000017_000027.mp4",
        "passing American football in game/0wR5jVB-WPk_000417_000427.mkv",
        "massaging persons head/3caPS4FHFF8_000000_000010.webm",
    ],
    "flat": [
        "-7tDxxH2g6I_000017_000027.mp4",
        "0wR5jVB-WPk_000417_000427.mp4",
        "3caPS4FHFF8_000000_000010.avi",
    ],
    "ids": ["x/-7tDxxH2g6I.mp4", "x/0wR5jVB-WPk.mp4", "x/3caPS4FHFF8.mp4.part", "3caPS4FHFF8.mp4"],
    "frames": [
        "train/a/-7tDxxH2g6I/img_00001.jpg",
        "train/b/0wR5jVB-WPk_000417_000427/img_00001.jpg",
        "train/c/3caPS4FHFF8_000000_000010/img_00001.jpg",
    ],
}


@pytest.mark.parametrize("tree", TREES)
def test_kinetics_is_found_in_any_layout_and_its_missing_videos_are_told(tmp_path, write, tree):
    for name in TREES[tree]:
        write(f"videos/{name}")
    rows = read_kinetics([write("kinetics_train.csv", KINETICS.format("train"))])
    table = table_of(rows, tmp_path / "videos")
    assert [label for _, label, _ in table.values()] == [0, 2, 1, 0]
    paths = [path for path, *_ in table.values()]
    assert paths[3] is None and len(set(paths[:3])) == 3
    assert all(name[:11] in path for name, path in zip(list(table)[:3], paths, strict=False))


def test_kinetics_comes_in_one_file_or_one_a_split_and_its_splits_have_many_names(write):
    one = write("kinetics.csv", KINETICS.format("validate"))
    assert {row.split for row in read_kinetics([one])} == {"val"}
    plain = "\n".join(line.rsplit(",", 2)[0] for line in KINETICS.splitlines())
    files = [write("train.csv", plain), write("k400_validation.csv", plain), write("x.csv", plain)]
    assert [row.split for row in read_kinetics(files[:2])] == ["train"] * 4 + ["val"] * 4
    assert {row.split for row in read_kinetics([f"test={files[2]}"])} == {"test"}
    with pytest.raises(ValueError, match=r"x\.csv: its name tells no split; .*train=/.*x\.csv"):
        read_kinetics(files[2:])


def test_bom_crlf_quotes_commas_and_other_columns_first_are_read(write):
    text = (
        '\ufeffSplit,Label,youtube_id,time_start,time_end\r\n\r\nval,"a ""b"", c",abc,1.0,11.0\r\n'
    )
    (row,) = read_kinetics([write("x.csv", text)])
    assert row.label == 'a "b", c' and row.names == ("abc_000001_000011", "abc")
    assert row.where.endswith("x.csv, line 3")


def test_kinetics_test_rows_without_labels_are_left_out_and_counted(tmp_path, write):
    write("abc.mp4"), write("def.mp4")
    files = [write("test.csv", "youtube_id,time_start,time_end,split\nabc,0,10,test\n")]
    files += [write("train.csv", "label,youtube_id,split\nwave,def,train\n,ghi,train\n")]
    table, notes = make_index(read_kinetics(files), tmp_path)
    assert table["path"].tolist() == ["def.mp4"]
    told = [note.split(" tell")[0] for note in notes if "tell" in note]
    assert told == [f"1 rows of {name}" for name in files]


BAD = {
    "video,label\na,b\n": r"x\.csv: no column youtube_id in \['video', 'label'\]",
    "": "no column youtube_id",
    "label,youtube_id,split\na,b,train\na,b\n": r"x\.csv, line 3: 2 fields, expected 3",
    "label,youtube_id,split\na,b,later\n": r"line 2: split must be one of .*, got 'later'",
    "label,youtube_id,time_start,split\na,b,1,val\n": "line 2: time_start, time_end",
    "label,youtube_id,time_start,time_end,split\na,b,1,soon,val\n": "line 2: time_start, time_end",
    b"label,youtube_id,split\n\xff\xfe,b,val\n": r"x\.csv: not a CSV file in UTF-8",
}


@pytest.mark.parametrize(("text", "words"), BAD.items(), ids=BAD.values())
def test_a_bad_kinetics_file_is_an_error_that_names_file_and_line(write, text, words):
    with pytest.raises(ValueError, match=words):
        read_kinetics([write("x.csv", text)])


# Mini-Kinetics


@pytest.mark.parametrize(
    "tree",
    [
        ["train/air drumming/-7tDxxH2g6I_000017_000027.mp4", "val/b/0wR5jVB-WPk_000417_000427.mp4"],
        ["k400/train/-7tDxxH2g6I_000017_000027.mp4", "k400/val/0wR5jVB-WPk.mp4"],
        ["a/-7tDxxH2g6I_000017_000027/1.jpg", "a/0wR5jVB-WPk_000417_000427/1.jpg"],
    ],
    ids=["class folders", "flat, as downloaded", "frames"],
)
def test_ar_nets_lists_fit_whatever_the_folders_are(tmp_path, write, tree):
    for name in tree:
        write(f"videos/{name}")
    clips = ["train/air drumming/-7tDxxH2g6I_000017_000027", "val/a b/0wR5jVB-WPk_000417_000427"]
    lists = [
        write("mini_train_videofolder.txt", f"images/{clips[0]} 300 1\n"),
        write("mini_val_videofolder.txt", f"images/{clips[1]} 250 0\r\n"),
    ]
    found = table_of(read_mini_kinetics(lists), tmp_path / "videos").values()
    assert [path.split("/")[-1][:11] for path, *_ in found if path] == [
        "-7tDxxH2g6I",
        "0wR5jVB-WPk",
    ]
    assert [tuple(rest) for _, *rest in found] == [(1, "train"), (0, "val")]


def test_lists_of_ids_take_labels_and_times_from_kinetics(tmp_path, write):
    write("a/-7tDxxH2g6I_000017_000027.mp4"), write("a/3caPS4FHFF8.mp4")
    lists = [
        write("train_ytid_list.txt", "-7tDxxH2g6I\nunknown_one\n"),
        write("val_ytid_list.txt", "3caPS4FHFF8\n6IbvOJxXnOo\n"),
    ]
    rows = read_mini_kinetics(lists, [write("k.csv", KINETICS.format("train"))])
    table, notes = make_index(rows, tmp_path)
    assert table["split"].tolist() == ["train", "val", "val"]
    assert table["label_name"].tolist() == [NAMES[0], NAMES[1], NAMES[0]]  # two of the three
    assert table["path"].notna().tolist() == [True, True, False]
    assert f"1 rows of {lists[0]} tell no label: left out" in notes


def test_a_list_of_ids_that_kinetics_does_not_have_asks_for_the_other_csv(write):
    lists = [write("train_ytid_list.txt", "one\ntwo\n")]
    with pytest.raises(ValueError, match=r"train_ytid_list\.txt: none of its 2 ids is in .*k\.csv"):
        read_mini_kinetics(lists, [write("k.csv", KINETICS.format("val"))])


# Something-Something

CLASSES = ["Moving something up", "Lifting up one end of something, then letting it drop down"]
LIFTING = "Lifting up one end of [something], then letting it drop down"


def test_v1_is_read_from_its_csvs_and_found_as_folders_of_frames(tmp_path, write):
    for name in ("100218", "24413", "7"):
        write(f"frames/{name}/00001.jpg"), write(f"frames/{name}/00002.jpg")
    files = [
        write("something-something-v1-train.csv", f"100218;{CLASSES[1]}\n5;{CLASSES[0]}\n"),
        write("something-something-v1-validation.csv", f'24413;"{CLASSES[1]}"\r\n'),
        write("something-something-v1-test.csv", "7\n8\n"),
    ]
    classes = read_classes(write("labels.csv", "\ufeff" + "\r\n".join(CLASSES) + "\r\n"))
    assert classes.names == CLASSES
    table, notes = make_index(read_something(files), tmp_path / "frames", classes)
    assert table["path"].tolist() == ["100218", None, "24413"]
    assert table["label"].tolist() == [1, 0, 1] and table["split"].tolist() == ["train"] * 2 + [
        "val"
    ]
    assert notes == [f"2 rows of {files[2]} tell no label: left out"]


def test_v2_templates_lose_their_brackets_and_answers_are_the_test_split(tmp_path, write):
    for name in ("74225.webm", "117478.mp4", "1420.webm"):
        write(f"videos/{name}")
    files = [
        write("train.json", [{"id": "74225", "label": "lifting ..", "template": LIFTING}]),
        write("validation.json", [{"id": 117478, "template": "Moving [something] up"}]),
        write("test.json", [{"id": "1420"}, {"id": "9"}]),
        write("something-something-v2-test-answers.csv", f"1420;{CLASSES[1]}\n"),
    ]  # fmt: skip
    classes = read_classes(write("labels.json", {CLASSES[1]: "1", CLASSES[0]: "0"}))
    assert classes.names == CLASSES
    assert [row.label for row in read_something(files)] == [
        CLASSES[1],
        CLASSES[0],
        "",
        "",
        CLASSES[1],
    ]
    table, notes = make_index(read_something(files), tmp_path / "videos", classes)
    assert table.drop(columns="label_name").to_numpy().tolist() == [
        ["74225.webm", 1, "train", "74225"],
        ["117478.mp4", 0, "val", "117478"],
        ["1420.webm", 1, "test", "1420"],
    ]
    assert notes == [f"2 rows of {files[2]} tell no label: left out"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.json", [{"id": "1"}, {"template": "x"}], r"train\.json, entry 2: expected .* id"),
        ("train.json", {"id": "1"}, "expected a JSON list, got dict"),
        ("train.json", "[{", r"train\.json: not JSON"),
        ("train.csv", "1;a;b\n", r"train\.csv, line 1: 3 fields, expected id;label"),
        ("all.csv", "1;a\n", r"all\.csv: its name tells no split"),
        ("train_and_val.csv", "1;a\n", "its name tells no split"),
    ],
)
def test_a_bad_something_file_is_an_error_that_names_it(write, name, content, words):
    with pytest.raises(ValueError, match=words):
        read_something([write(name, content)])


# Folders


def test_folders_of_splits_and_classes_are_taken_as_they_are(tmp_path, write):
    for name in ("train/wave/1.mp4", "Validation/wave/2.mp4", "test/nod/x/3.mp4"):
        write(name)
    table = table_of(read_folders(tmp_path), tmp_path)
    assert sorted(table.values()) == [
        ("Validation/wave/2.mp4", 1, "val"),
        ("test/nod/x/3.mp4", 0, "test"),
        ("train/wave/1.mp4", 1, "train"),
    ]
    with pytest.raises(ValueError, match="sum to 1"):  # though they are not needed
        read_folders(tmp_path, (0.8, 0.1, 0.2))


def test_folders_of_classes_are_split_by_a_hash_that_holds_when_videos_come(tmp_path, write):
    for i in range(300):
        write(f"{'nod' if i % 2 else 'wave'}/{i}.mp4")
    first = {row.names: row.split for row in read_folders(tmp_path)}
    counts = Counter(first.values())
    assert 210 < counts["train"] < 270 and min(counts["val"], counts["test"]) > 12
    write("nod/more.mp4"), write("nap/1.avi")
    again = {row.names: row.split for row in read_folders(tmp_path)}
    assert first.items() < again.items()
    assert {row.names: row.split for row in read_folders(tmp_path, seed=1)} != again
    assert {row.split for row in read_folders(tmp_path, (0.5, 0.5, 0))} == {"train", "val"}
    with pytest.raises(ValueError, match="sum to 1"):
        read_folders(tmp_path, (0.8, 0.1, 0.2))


def test_validation_is_cut_from_training_alone_and_holds_when_videos_come(tmp_path, write):
    for split, n in (("train", 200), ("test", 50)):
        for i in range(n):
            write(f"{split}/wave/{i}.mp4")
            write(f"{split}/nod/{i}.mp4")
    rows = read_folders(tmp_path)
    cut = cut_val(rows, 0.2)
    splits = Counter(row.split for row in cut)
    assert splits["test"] == 100 and 60 <= splits["val"] <= 100
    assert splits["train"] == 400 - splits["val"]
    assert [row._replace(split="") for row in cut] == [row._replace(split="") for row in rows]
    assert cut_val(rows[::2], 0.2) == cut[::2]
    with pytest.raises(ValueError, match=r"there are videos for validation .*\.mp4"):
        cut_val(cut, 0.2)
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 20"):
        cut_val(rows, 20)


def test_files_of_one_stem_and_a_class_named_by_digits_stay_apart(tmp_path, write):
    write("10/a.mp4"), write("10/a.avi"), write("9/a.mp4")
    table, notes = make_index(read_folders(tmp_path), tmp_path)
    assert len(set(table["path"])) == 3 and notes == []
    assert table["label_name"].tolist() == ["10", "10", "9"]


def test_a_video_outside_of_the_layout_is_named(tmp_path, write):
    write("wave/1.mp4"), write("2.mp4")
    with pytest.raises(ValueError, match=r"2\.mp4: expected <class>/<video>"):
        read_folders(tmp_path)


def tree(*folders, n=1):
    return [
        f"{folder}/{c}/{i}.mp4" for folder in folders for c in ("wave", "clap") for i in range(n)
    ]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (tree("train", "dev", "test"), {"train": "train", "dev": "val", "test": "test"}),
        (tree("Training", "eval"), {"Training": "train", "eval": "val"}),
        (tree("rawframes_train", "val_256"), {"rawframes_train": "train", "val_256": "val"}),
        (tree("train1", "train2", "Test Set"), {"train1": "train", "Test Set": "test"}),
        (["wave/train/1.mp4", "wave/test/1.mp4", "clap/train/2.mp4"], {}),
        (["train/café/1.mp4", "test/cafe\u0301/2.mp4", "test/wave/3.mp4"], {}),
    ],
)
def test_folders_name_their_split_in_many_ways(tmp_path, write, names, splits):
    for name in names:
        write(name)
    table, notes = make_index(read_folders(tmp_path), tmp_path)
    assert len(set(table["label"])) == 2
    assert set(table["split"]) <= {"train", "val", "test"} and table["path"].notna().all()
    for folder, split in splits.items():
        of_folder = table["split"][table["path"].str.startswith(f"{folder}/")]
        assert set(of_folder) == {split}
        assert (f"folder {folder} is the split {split}" in notes) == (folder != split)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (tree("train", "val", "demo"), "folders train, val are splits, but demo none; rename"),
        (["train/1.mp4", "test/2.mp4", "demo/3.mp4"], "test, train are splits, but demo none"),
        (["wave/train/1.mp4", "clap/extra/2.mp4"], "folders train are splits, but extra none"),
        (tree("train", "val", "dev"), "dev and val are one split; rename one"),
        (tree("fold1", "fold2"), "each of fold1, fold2 holds clap, wave; which are the classes"),
        (tree("UCF-101"), "UCF-101 would be the only class"),
        (["train/v/wave/1.mp4", "val/v/clap/2.mp4"], "v would be the only class"),
        (tree("a/train", "b/train"), "expected <class>/<split>/<video>"),
        (["train/1.mp4", "val/2.mp4"], "expected <split>/<class>/<video>"),
        ([*tree("train"), "test/1.mp4"], r"test/1\.mp4: expected <split>/<class>/<video>"),
        (["wave/train/1.mp4", "wave/2.mp4"], r"wave/2\.mp4: expected <class>/<split>/<video>"),
    ],
)
def test_folders_that_can_be_read_in_two_ways_are_an_error(tmp_path, write, names, words):
    for name in names:
        write(name)
    with pytest.raises(ValueError, match=words):
        read_folders(tmp_path)


def test_a_class_may_be_named_as_a_split_and_as_a_part_of_one(tmp_path, write):
    for name in ("bus/1.mp4", "train/2.mp4", "training dog/3.mp4", "test tube/4.mp4"):
        write(name)
    table, notes = make_index(read_folders(tmp_path), tmp_path)
    assert sorted(table["label_name"]) == ["bus", "test tube", "train", "training dog"]
    assert notes == ["folder train is taken for a class, not for train"]


# The command


def run_main(capsys, *words):
    assert main(["index", *words]) == 0
    return capsys.readouterr().out


def test_the_command_writes_the_presets_index_and_says_how_to_go_on(
    tmp_path, write, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(TREES["flat"]):
        write(f"data/kinetics400/videos/{name}", b"x" * i)
    words = ["kinetics400", "--videos", "data/kinetics400/videos", "--annotations"]
    files = [write("train.csv", KINETICS.format("train")), write("val.csv", KINETICS.format("val"))]
    with pytest.raises(SystemExit, match=r"error: .*val\.csv, line 2: .*in val, but .*in train by"):
        run_main(capsys, *words, *files)
    out = run_main(capsys, *words, files[0])
    table = read_csv("data/kinetics400/kinetics400.csv")
    assert class_names(table) == NAMES and table["split"].tolist() == ["train"] * 3
    assert all(Path(path).is_file() for path in table["path"])
    assert "train       4      3        3        1" in out and "3 of 3 classes" in out
    assert "1 videos are missing: " in out and "kinetics400.missing.csv" in out
    assert out.endswith(
        "next: s2d run notebooks/00_data.ipynb data/kinetics400/00_data.ipynb "
        "-p preset kinetics400-x3d-s-m\n"
    )


def test_an_index_elsewhere_is_named_in_the_next_command(tmp_path, write, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("my videos/train/wave/1.mp4")
    out = run_main(capsys, "folders", "--videos", "my videos", "--out", "my videos/x.csv")
    words = shlex.split(out.split("next: ")[1])
    assert words[3:] == [
        "my videos/00_data.ipynb", "-p", "preset", "videos",
        "-p", "csv", str(tmp_path / "my videos" / "x.csv"),
    ]  # fmt: skip
    assert parse_value(words[-1]) == words[-1]


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_a_format_parses_and_its_default_is_a_presets_index(name):
    _, preset, example = FORMATS[name]
    args = parse(["index", name, *example.split()])
    assert args.videos == "DIR"
    if "--out" not in example:
        assert args.out == PRESETS[preset].data.csv


def test_the_command_runs_by_itself_and_a_mistake_is_one_line(tmp_path):
    command = [sys.executable, "-m", "s2dlib", "index"]
    words = [*command, "kinetics400", "--annotations", "train.csv", "--videos", "."]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 2] No such file or directory: 'train.csv'\n"


def test_the_command_counts_what_it_leaves_out_and_prints_any_name(
    tmp_path, write, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write("my videos/wave/1.mp4"), write(b"my videos/n\xf6d/2.mp4")
    write("my videos/clap/1.xyz", b"\0"), write("my videos/clap/2.xyz", b"\0")
    out = run_main(capsys, "folders", "--videos", "my videos", "--out", "x.csv")
    assert "left out, being no videos: 2 files .xyz" in out
    assert "without a video: 1 folder (clap)" in out and "2 of 2 classes" in out
