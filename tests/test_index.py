"""Rows find their videos in a folder, however it spells them, and what is missing is told."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from s2dlib.apps.cli import main
from s2dlib.data.classes import Classes, Row
from s2dlib.data.index import (
    make_index,
    missing_of,
    read_missing,
    write_checked,
    write_index,
)
from s2dlib.data.table import class_names, read_csv


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def row(name, label="wave", split="train", where="a.txt, line 1"):
    return Row((name,) if isinstance(name, str) else name, label, split, where)


def paths(folder, *names, **options):
    """The paths found for some names, each of a class of its own."""
    rows = [row(name, label=f"class {i}") for i, name in enumerate(names)]
    return make_index(rows, folder, **options)[0]["path"].tolist()


# The look-up


def test_no_file_is_asked_for_by_itself(tmp_path, monkeypatch):
    touch(tmp_path, *(f"class {i}/{i}.mp4" for i in range(5)))
    asked = []
    for name in ("stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, _real=real, **k: (asked.append(a), _real(*a, **k))[1]
        )
    assert len(paths(tmp_path, *(str(i) for i in range(5)))) == 5
    monkeypatch.undo()
    assert asked == []


@pytest.mark.parametrize(
    "listed",
    [
        "b 1/x.avi",  # as it lies there
        "b 1/x",
        "b_1/x.mp4",  # another suffix, another spelling of the class
        "B (1)/x",
        "/far/frames/b 1/x",  # a longer path
        "C:\\frames\\b 1\\x.avi",
        "./b 1/x/",
        "x",  # a shorter one
    ],
)
def test_a_listed_path_fits_the_file_whose_path_agrees_as_far_as_both_go(tmp_path, listed):
    touch(tmp_path, "b 1/x.avi", "c/y.avi")
    assert paths(tmp_path, listed) == ["b 1/x.avi"]


def test_a_video_of_the_same_name_in_another_class_is_not_taken_for_it(tmp_path):
    touch(tmp_path, "clap/001.avi", "wave/002.avi")
    table, _ = make_index([row("wave/001"), row("wave/002")], tmp_path)
    assert table["path"].tolist() == [None, "wave/002.avi"]


def test_names_are_told_apart_by_case_and_punctuation(tmp_path):
    touch(tmp_path, "ab-C.mp4", "ab_c.mp4", "abc.mp4")
    assert paths(tmp_path, "ab_c", "ab-C", "ab-c") == ["ab_c.mp4", "ab-C.mp4", None]


def test_the_likelier_name_is_taken_and_several_files_are_told(tmp_path):
    touch(tmp_path, "x/id.mp4", "x/id_1.mp4", "y/other.mp4", "z/other.webm")
    table, notes = make_index([row(("id_1", "id")), row("other")], tmp_path)
    assert table["path"].tolist() == ["x/id_1.mp4", "y/other.mp4"]
    assert notes == ["1 rows fit several files, as other: the first is taken"]


def test_nothing_found_shows_names_expected_and_names_there(tmp_path):
    with pytest.raises(ValueError, match="nothing found; .*like a, b; there: no video file"):
        make_index([row("a"), row("b")], tmp_path)
    touch(tmp_path, "x/y.mp4")
    with pytest.raises(ValueError, match=r"like a; there: x/y\.mp4"):
        make_index([row("a")], tmp_path)
    with pytest.raises(ValueError, match="no row with a label"):
        make_index([row("y", label="")], tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_index([row("y")], tmp_path / "nowhere")


def test_suffixes_upon_suffixes_and_unknown_ones_are_no_part_of_a_name(tmp_path, make_video):
    touch(tmp_path, "a.mp4.webm", "b.mkv")
    make_video(tmp_path / "c.mp4", 2).rename(tmp_path / "c.xyz")
    assert paths(tmp_path, "a", "b.avi", "c.mp4") == ["a.mp4.webm", "b.mkv", "c.xyz"]


def test_names_composed_or_decomposed_are_the_same_and_such_files_are_kept_apart(tmp_path):
    touch(tmp_path, "cafe\u0301/e\u0301.mp4", "b/é.mp4", "b/e\u0301.mp4")
    assert paths(tmp_path, "café/é") == ["cafe\u0301/e\u0301.mp4"]
    assert paths(tmp_path, "b/é.mp4", "b/e\u0301.mp4") == ["b/é.mp4", "b/e\u0301.mp4"]


# Classes and repeated rows


def test_classes_are_numbered_in_their_owners_order_else_sorted(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [row("a", "wave"), row("b", "clap"), row("gone", "nod")]
    assert make_index(rows, tmp_path)[0]["label"].tolist() == [2, 0, 1]
    rows[0] = row("a", "wave_ (hard)")  # spelt otherwise than by its owner
    table, _ = make_index(rows, tmp_path, Classes(["Wave, hard", "walk", "nod", "clap"]))
    assert table["label"].tolist() == [0, 3, 2] and table["label_name"][0] == "Wave, hard"


def test_an_index_keeps_its_number_and_gets_a_name_where_there_is_one(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [row("a", 2), row("b", 0)]
    table, _ = make_index(rows, tmp_path)
    assert table["label"].tolist() == [2, 0] and "label_name" not in table
    table, _ = make_index(rows, tmp_path, Classes(["x", "y", "z"]))
    assert table["label_name"].tolist() == ["z", "x"]


@pytest.mark.parametrize(
    ("label", "words"),
    [(2, "label must be 0 to 1, got 2"), (-1, "got -1"), ("nap", "'nap' is none of the 2 classes")],
)
def test_a_class_that_is_not_there_is_an_error_with_its_line(tmp_path, label, words):
    touch(tmp_path, "a.mp4")
    with pytest.raises(ValueError, match=f"a.txt, line 7: .*{words}"):
        make_index([row("a", label, where="a.txt, line 7")], tmp_path, Classes(["wave", "clap"]))


def test_rows_without_label_are_left_out_and_counted_by_file(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [row("a"), *(row("b", "", "test", f"x, y.csv, line {i}") for i in range(3))]
    table, notes = make_index(rows, tmp_path)
    assert len(table) == 1 and notes == ["3 rows of x, y.csv tell no label: left out"]


def test_a_row_twice_is_dropped_and_counted(tmp_path):
    touch(tmp_path, "a.mp4")
    table, notes = make_index([row("a"), row("a"), row("b"), row("b"), row("a.mp4")], tmp_path)
    assert table["name"].tolist() == ["a", "b"]
    assert notes == ["3 rows repeat another one: dropped"]


@pytest.mark.parametrize("name", ["a", "gone", "x/a.mp4"])
@pytest.mark.parametrize("change", [{"label": "clap"}, {"split": "val"}])
def test_one_video_with_two_labels_or_splits_names_both_lines(tmp_path, name, change):
    touch(tmp_path, "x/a.mp4", "x/b.mp4")
    first = row("gone" if name == "gone" else "x/a")
    rows = [row("b"), first, row(name, **{"where": "b.txt, line 9"} | change)]
    with pytest.raises(ValueError, match="b.txt, line 9: .*by a.txt, line 1"):
        make_index(rows, tmp_path)


# The file


def test_the_index_is_read_back_with_paths_relative_where_the_videos_lie_below_it(tmp_path):
    videos = touch(tmp_path / "data" / "videos", 'a "b", c.mp4', "d.mp4")
    rows = [row('a "b", c', 'pulling, "hard"'), row("d", "größer"), row("gone", "größer", "val")]
    table, _ = make_index(rows, videos)
    inside = write_index(table, videos, tmp_path / "data" / "x.csv")
    outside = write_index(table, videos, tmp_path / "other" / "x.csv")
    assert 'videos/a ""b"", c.mp4' in inside.read_text()
    assert pd.read_csv(outside)["path"].tolist() == [str(videos / p) for p in table["path"][:2]]
    for index in (inside, outside):
        read = read_csv(index)
        assert [os.path.isfile(path) for path in read["path"]] == [True, True]
        assert class_names(read) == ["größer", 'pulling, "hard"']
        missing = read_missing(index)
        assert missing[["name", "split"]].to_numpy().tolist() == [["gone", "val"]]
    assert missing_of(inside).name == "x.missing.csv" and not list(tmp_path.rglob(".part*"))
    assert len(read_missing(tmp_path / "none.csv")) == 0


NAMES = [
    *("2024-11-26T12:30:05.mp4", 'a "b", c.mp4', "line\nbreak.mp4", "cr\rret.mp4", "-dash.mp4"),
    *(" blank.mp4", "blank .mp4", "back\\slash.mp4", "\\xdf.mp4", "=1.mp4", "NA.mp4", "\u2028.mp4"),
    *(os.fsdecode(b"stra\xdfe.mp4"), os.fsdecode(b"\xff\xfe.mp4"), "größe.mp4"),
]


@pytest.mark.parametrize("odd", [NAMES, [name for name in NAMES if "\r" not in name]])
def test_any_name_survives_the_index_and_other_readers_of_it(tmp_path, odd):
    touch(tmp_path, *odd)
    table, _ = make_index([row(name) for name in odd], tmp_path)
    read = read_csv(index := write_index(table, tmp_path, tmp_path / "x.csv"))
    assert read["path"].tolist() == [str(tmp_path / name) for name in odd]
    assert all(map(os.path.exists, read["path"]))
    assert pd.read_csv(index)["path"].iloc[-1] == "größe.mp4" and len(pd.read_csv(index)) == len(
        odd
    )


def test_an_index_is_not_replaced_by_a_smaller_one_unasked(tmp_path):
    videos = touch(tmp_path, "a.mp4", "b.mp4")
    both, one = (make_index(rows, videos)[0] for rows in ([row("a"), row("b")], [row("a")]))
    out = write_index(both, videos, tmp_path / "x.csv")
    before = out.read_text()
    with pytest.raises(ValueError, match=r"x\.csv: names 2 videos, this would leave 1; --replace"):
        write_index(one, videos, out)
    assert out.read_text() == before and write_index(both, videos, out)
    assert len(read_csv(write_index(one, videos, out, replace=True))) == 1


def test_the_checked_index_lacks_the_bad_videos_and_nothing_else(tmp_path):
    rows = ["\ufeffpath,label,split,fold", "clips/a.mp4,wave,train,1"]
    rows += ['"b, c.mp4",nod,val,2', "/d.mp4,nod,val,3"]
    index = tmp_path / "x.csv"
    index.write_text("\n".join(rows), encoding="utf-8")
    table = read_csv(index)
    assert write_checked(index, []) == index and len(list(tmp_path.iterdir())) == 1
    checked = write_checked(index, [table["path"][1]])
    assert checked.name == "x.checked.csv"
    pd.testing.assert_frame_equal(read_csv(checked), table.drop(1).reset_index(drop=True))
    assert write_checked(checked, [table["path"][2]]) == checked and len(read_csv(checked)) == 1
    assert missing_of(checked) == missing_of(index)
    known = {"path": table["path"][1:], "ok": True, "reader": ["pyav", ""], "n_frames": [7, 0]}
    found = pd.DataFrame(known)
    assert write_checked(index, [], found) == index and len(read_csv(checked)) == 3
    assert write_checked(checked, [table["path"][2]], found) == checked
    assert checked.read_text().splitlines()[1:] == [
        "clips/a.mp4,wave,train,1,,",
        '"b, c.mp4",nod,val,2,pyav,7',
    ]
    with pytest.raises(ValueError, match=r"x\.csv: none of its 3 videos is usable"):
        write_checked(index, table["path"])


def test_index_replaces_its_own_file_and_no_other_one(tmp_path, capsys, make_video):
    for name in ("wave/a.mp4", "clap/b.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "videos" / name, 2)
    out, lists = tmp_path / "mine.csv", tmp_path / "train.csv"
    words = ["index", "folders", "--videos", str(tmp_path / "videos"), "--out", str(out)]
    words += ["--fractions", "1", "0", "0"]
    by_hand = "path,label,split\nvideos/wave/a.mp4,wave,train\n"
    out.write_text(by_hand)
    with pytest.raises(SystemExit, match=r"mine\.csv: a file that this command did not make"):
        main(words)
    assert out.read_text() == by_hand
    out.unlink()
    assert main(words) == main(words) == 0
    assert len(read_csv(out)) == 2
    lists.write_text("path,label\nwave/a.mp4,wave\nclap/b.mp4,clap\n")
    (tmp_path / "link.csv").symlink_to(lists)
    words = ["index", "list", "--annotations", str(lists), "--videos", str(tmp_path / "videos")]
    for name in ("train.csv", "link.csv", "videos/../train.csv"):
        with pytest.raises(SystemExit, match="is read here"):
            main([*words, "--out", str(tmp_path / name)])
    assert lists.read_text().startswith("path,label\nwave")
