"""Lists of other projects: what they say is read, and what may mean two things is an error."""

from __future__ import annotations

import pytest

from s2dlib.data.classes import Classes, read_classes
from s2dlib.data.index import make_index
from s2dlib.data.lists import read_list


def index_of(rows, folder, classes=None):
    """The index: (path, label or its name, split) of each row; and the notes."""
    table, notes = make_index(rows, folder, classes)
    names = table["label_name"] if "label_name" in table else table["label"]
    return list(zip(table["path"], names, table["split"], strict=True)), notes


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/b.avi 30 7", "a/b.avi", 7),
        ("my clips/a 2 30 7", "my clips/a 2", 7),
        ("a/b c.mp4 7", "a/b c.mp4", 7),
        ("a b;30;7", "a b", 7),
        ("a,b,30,7", "a,b", 7),
        ("a/b\t30\t7  ", "a/b", 7),
        ("  a/b 30 -1", "a/b", -1),
        ("/far/a.mp4, 3", "/far/a.mp4", 3),
        ('"a, ""b"".mp4","3"', 'a, "b".mp4', 3),
        ("a.mp4,3.0", "a.mp4", 3),
        ("a b.mp4 opening a door", "a b.mp4", "opening a door"),
        ('a.MP4,"x, y"', "a.MP4", "x, y"),
        ("a.mp4 3d printing", "a.mp4", "3d printing"),
        ("wave/v_1.avi", "wave/v_1.avi", "wave"),
    ],
)
def test_a_line_of_a_list_is_split_from_the_right(write, line, path, label):
    (row,) = read_list([write("train.txt", f"\ufeff\r\n{line}\r\n")])
    assert (row.names[0], row.label, row.where[-6:]) == (path, label, "line 2")


@pytest.mark.parametrize(
    ("first", "line"),
    [
        ("a/b 30 7", "a/b"),
        ("a/b 30 7", "7"),
        ("a/b 30 7", "a/b 30 wave"),
        ("a.mp4 7", "b.mp4 wave"),
        ("a.mp4 wave", "b.mp4 7"),
        ("a/b.mp4", "a/b.mp4 7"),
        ("a/b.mp4", "c.mp4"),  # no folder that could be its class
        ("a.mp4 1", "b.mp4 1 3"),  # two labels
        ("a.mp4 9 1", "b.mp4 1 3 5"),
        ("w/a.mp4,walk,4,0", "w/b.mp4,walk,3,1"),  # Moments in Time: a name, then votes
    ],
)
def test_a_line_that_is_no_line_of_a_list_is_an_error(write, first, line):
    with pytest.raises(
        ValueError, match=r"train\.txt, line [12]: expected `path num_frames label`"
    ):
        read_list([write("train.txt", f"{first}\n{line}\n")])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no video in it"),
        ("file_name,text\na.mp4,a cat\n", "got file_name, text"),
        ("path,label\na.mp4,0,1\n", "line 2: 3 fields, expected 2"),
        ("id frame path labels\n1 0 1/1.jpg 0\n", "got id, frame, path, labels"),  # a line a frame
        ("a.mp4 0\n".encode("utf-16"), "line 1: not a text in UTF-8"),
        (b"a.mp4 0\nstra\xdfe.mp4 1\n", "line 2: not a text in UTF-8"),
    ],
)
def test_a_file_that_is_no_list_is_an_error_that_names_it(write, content, words):
    with pytest.raises(ValueError, match=rf"train\.csv.*{words}"):
        read_list([write("train.csv", content)])


def test_a_list_names_videos_or_folders_of_frames(tmp_path, write):
    write("v/a b/1.avi"), write("v/c/2/00001.png")
    lists = [write("train.txt", "a b/1.avi 9 1\n"), write("val.txt", "c/2 9 0\na b/3.avi 9 1\n")]
    rows, _ = index_of(read_list(lists), tmp_path / "v", Classes(["nod", "wave"]))
    assert rows == [("a b/1.avi", "wave", "train"), ("c/2", "nod", "val"), (None, "wave", "val")]


@pytest.mark.parametrize(
    ("text", "folders"),
    [
        (
            "my clips/take 1 0\nmy clips/take 2 1\nb 1\n",
            ["my clips/take 1", "my clips/take 2", "b"],
        ),
        ("my clips/take 1 0\nmy clips/take 2 1\n", ["my clips/take 1", "my clips/take 2"]),
        ("my clips/take 1 0\nx 7 1\n", ["my clips/take 1", "x 7"]),
        ("my clips/a 2 30 0\nmy clips/a 3 30 1\n", ["my clips/a 2", "my clips/a 3"]),
        ("100218 42 0\n24413 52 1\n", ["100218", "24413"]),
        ("100218 0\n24413 1\n", ["100218", "24413"]),
        ("C:\\far\\A\\v1 9 0\nD:\\far\\B\\v2 9 1\n", ["A/v1", "B/v2"]),
        ("cafe\u0301/e\u0301 9 0\nb/é 9 1\n", ["café/é", "b/e\u0301"]),  # composed or not
    ],
)
def test_a_number_is_a_frame_count_or_the_end_of_a_path(tmp_path, write, text, folders):
    others = ["my clips/take"] * ("my clips/take 2" in folders)  # the same name without a number
    for folder in folders + others:
        write(f"v/{folder}/img_00001.jpg")
    rows, _ = index_of(read_list([write("train.txt", text)]), tmp_path / "v")
    assert [path for path, *_ in rows] == folders


@pytest.mark.parametrize("text", ["d1 163 1 3 5\nd2 122 0 2\n", "d1 0 163 0\nd2 10 122 1\n"])
def test_several_labels_or_a_first_frame_are_no_missing_videos(tmp_path, write, text):
    write("v/d1/img_00001.jpg"), write("v/d2/img_00001.jpg")
    with pytest.raises(ValueError, match=r"train\.txt, line 1: 'd1 .*' is not there, but 'd1' is"):
        make_index(read_list([write("train.txt", text)]), tmp_path / "v")


# Data sets whose owners ship lists


def test_ucf101_is_numbered_from_1_and_its_test_lists_name_folders(tmp_path, write):
    names = [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "ApplyLipstick/v_ApplyLipstick_g01_c01.avi",
    ]
    for name in names:
        write(f"v/{name}"), write(f"v/{name.replace('c01', 'c02')}")
    lists = [
        write("trainlist01.txt", f"{names[0]} 1\r\n{names[1]} 2\r\n"),
        write("testlist01.txt", "\r\n".join(name.replace("c01", "c02") for name in names)),
    ]
    classes = read_classes(
        write("classInd.txt", "1 ApplyEyeMakeup\r\n2 ApplyLipstick\r\n3 Archery\r\n")
    )
    rows, notes = index_of(read_list(lists), tmp_path / "v", classes)
    assert [row[1:] for row in rows] == [
        *(("ApplyEyeMakeup", "train"), ("ApplyLipstick", "train")),
        *(("ApplyEyeMakeup", "test"), ("ApplyLipstick", "test")),
    ]
    assert "labels count from 1 in the lists, from 0 in the index" in notes
    with pytest.raises(ValueError, match="--classes must say which is which"):
        make_index(read_list(lists), tmp_path / "v")


def test_hmdb51_tells_its_splits_by_numbers(tmp_path, write):
    for name in ("brush_hair/a b.avi", "brush_hair/c.avi", "wave/a.avi", "wave/u.avi"):
        write(f"v/{name}")
    lists = [
        write("brush_hair_test_split1.txt", "a b.avi 1 \nc.avi 2 \n"),
        write("wave_test_split1.txt", "a.avi 1 \nu.avi 0 \n"),
    ]
    rows, notes = index_of(read_list(lists), tmp_path / "v")
    assert rows == [
        ("brush_hair/a b.avi", "brush_hair", "train"),
        ("brush_hair/c.avi", "brush_hair", "test"),
        ("wave/a.avi", "wave", "train"),
    ]
    assert any("1 rows of" in note and "left out" in note for note in notes)


def test_metadata_of_hugging_face_lie_beside_their_videos(tmp_path, write):
    for name in ("train/001.mp4", "train/002.mp4", "test/001.mp4"):
        write(f"v/{name}")
    lists = [
        write("v/train/metadata.csv", 'file_name,label\n001.mp4,"wave, hard"\n002.mp4,nod\n'),
        write("v/test/metadata.jsonl", '{"file_name": "001.mp4", "label": "nod"}\n'),
    ]
    rows, _ = index_of(read_list(lists), tmp_path / "v")
    assert rows == [
        ("train/001.mp4", "wave, hard", "train"),
        ("train/002.mp4", "nod", "train"),
        ("test/001.mp4", "nod", "test"),
    ]
    several = write("v/train/metadata.jsonl", '{"file_name": "001.mp4", "label": [0, 1]}\n')
    with pytest.raises(
        ValueError, match=r"metadata\.jsonl, line 1: expected one file_name and one"
    ):
        read_list([several])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("all.tsv", "video_path\tlabel\tsplit\na b.mp4\t0\ttrain\nc.mp4\t1\tvalidation\n"),
        ("all.csv", "\ufeffPath,Label,Split\r\na b.mp4,0.0,train\r\nc.mp4,1.0,val\r\n"),
        ("all.json", [{"path": "a b.mp4", "label": 0, "split": "train"},
                      {"path": "c.mp4", "label": 1, "split": "dev"}]),
    ],
)  # fmt: skip
def test_columns_are_read_by_their_headings(tmp_path, write, name, content):
    write("v/a b.mp4"), write("v/c.mp4")
    rows, _ = index_of(read_list([write(name, content)]), tmp_path / "v")
    assert rows == [("a b.mp4", 0, "train"), ("c.mp4", 1, "val")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("dev.txt", "val"),
        ("miniTrain.txt", "train"),
        ("ucf101_train_split_1_rawframes.txt", "train"),
        ("vallist.txt", "val"),
        ("contest.txt", None),
        ("trainval.txt", None),
        ("values.txt", None),
    ],
)
def test_a_file_tells_its_split_by_a_word_of_its_name(write, name, split):
    path = write(name, "a.mp4 0\n")
    if split:
        assert [row.split for row in read_list([path])] == [split]
    else:
        with pytest.raises(ValueError, match="its name tells no split"):
            read_list([path])


def test_diving48_names_its_videos_in_a_column_of_its_own(write):
    path = write("train.json", '[{"vid_name": "a_00001", "label": 2, "end_frame": 9}]')
    assert [(row.names, row.label) for row in read_list([path])] == [(("a_00001",), 2)]
