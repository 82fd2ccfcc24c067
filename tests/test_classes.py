"""Classes keep their owner's names, however numbered; what may be off by one is an error."""

from __future__ import annotations

import pytest

from s2dlib.data.classes import Classes, Row, number_labels, read_classes


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("c.txt", "a b\nc, d\n", None),
        ("c.txt", "1 a b\r\n2 c, d\r\n", 1),
        ("c.txt", "1 c, d\n0 a b", 0),
        ("c.txt", '\ufeff0,"a b"\n1,"c, d"\n', 0),
        ("c.txt", "a b\t0\nc, d\t1\n", 0),
        ("c.txt", '"c, d",1\n"a b",0\n', 0),
        ("c.txt", "0: a b\n1: c, d\n", 0),
        ("c.txt", "(1) a b\n(2) c, d\n", 1),
        ("c.csv", 'id,name\n1,"c, d"\n0,a b\n', 0),
        ("c.csv", 'name;label\na b;1\n"c, d";2\n', 1),
        ("c.json", {"c, d": "1", "a b": "0"}, 0),
        ("c.json", {"2": "c, d", "1": "a b"}, 1),
        ("c.json", ["a b", "c, d"], None),
    ],
)
def test_names_are_read_with_or_without_an_index_on_either_side(write, name, content, first):
    assert read_classes(write(name, content)) == Classes(["a b", "c, d"], first)


@pytest.mark.parametrize(
    "names", [["gesture 1", "gesture 2"], ["10", "3"], ["throw 2 balls", "run"], ["2 up", "down"]]
)
def test_numbers_that_belong_to_the_names_stay_there(write, names):
    assert read_classes(write("c.txt", "\n".join(names))) == Classes(names)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", {"a": "0", "b": "2"}, r"x\.json: indices must be 0 to 1 .* there is 2 for 1"),
        ("x.json", {"0": "a", "2": "b"}, "there is 2 for 1"),
        ("x.json", {"a": 0, "b": 0}, "there is 0 for 1"),
        ("x.json", {"5": 0, "7": 1}, "both sides are numbers"),
        ("x.json", {"a": {"id": 0}}, "neither side is all integers"),
        ("x.json", '{"a": 0, "a": 1}', "'a' is there twice"),
        ("x.json", "3", "expected a JSON dict or list, got int"),
        ("x.txt", "a\n\nb\na\n", r"x\.txt, line 4: class 'a' is in .*line 1 already"),
        ("x.txt", b"a\n\xff\xfe", "line 2: not a text in UTF-8"),
        ("x.txt", "0 a\n2 b\n", "indices must be 0 to 1 or 1 to 2"),
        ("x.txt", "1 a\n1 b\n", "each once, but there is 1 for 2"),
        ("x.txt", "7 a\n8 b\n", "there is 7 for 1"),
        ("x.txt", "-1 a\n0 b\n", "there is -1 for 0"),
        ("x.txt", "0 a\n1 a\n", "line 2: class 'a' is in .*line 1 already"),
        ("x.txt", "0 a\n1 b\nc\n", "line 3: no index, which 2 other lines have"),
        ("x.txt", "names:\n  0: a\n  1: b\n", "line 1: no index"),
        ("x.txt", "id,name\n0,a\nb\n", "line 3: no index"),
        ("x.txt", "name\na\n", "line 1: a heading, or a class named 'name'"),
        ("x.txt", "\n", "no class in it"),
    ],
)
def test_a_bad_list_of_classes_is_an_error_that_names_it(write, name, content, words):
    with pytest.raises(ValueError, match=words):
        read_classes(write(name, content))


ABC = ["a", "b", "c"]


def rows_of(labels, file="t.txt"):
    """Rows `name label`; a name may be a path."""
    pairs = [
        pair if isinstance(pair, tuple) else (f"{i}.mp4", pair) for i, pair in enumerate(labels)
    ]
    return [
        Row((name,), label, "train", f"{file}, line {i}")
        for i, (name, label) in enumerate(pairs, 1)
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "note"),
    [
        ([1, 2], Classes(ABC, 1), ["a", "b"], "labels count from 1"),  # a part of UCF101's own
        ([1, 2, 3], Classes(ABC, 1), ABC, "labels count from 1"),
        ([0, 2], Classes(ABC, 1), ["a", "c"], "classes count from 1, lists from 0"),  # mmaction2
        ([("b/1", 1)], Classes(ABC, 1), ["b"], "classes count from 1, lists from 0"),
        ([("b/1", 2)], Classes(ABC), ["b"], "labels count from 1"),
        ([1, 2], Classes(ABC, 0), ["b", "c"], ""),
        ([1, 2, 3], Classes(ABC, 0), ABC, "classes count from 0, lists from 1"),
        ([1, 3, 2], Classes(ABC), ["a", "c", "b"], "labels count from 1"),
        ([2, 1, 3], None, ["2", "1", "3"], "labels count from 1"),  # as their owner numbers them
        (["A_b", 1], Classes(["A b", "c"], 0), ["A b", "c"], ""),
    ],
)
def test_lists_may_count_otherwise_than_the_file_of_classes(labels, classes, expected, note):
    numbers, names, notes = number_labels(rows_of(labels), classes)
    assert [names[number] for number in numbers] == expected
    assert len(notes) == bool(note) and all(note in told for told in notes)


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([1, 2], Classes(ABC), "line 1: no label is 0, the lowest is 1"),
        ([5, 3], None, "line 2: no label is 0, the lowest is 3"),
        ([0, 3], Classes(ABC, 0), "line 2: label must be 0 to 2, got 3"),
        ([0, 3], Classes(ABC, 1), "line 2: label must be 0 to 2, got 3"),
        ([1, 4], Classes(ABC, 1), "line 2: label must be .*, got 4"),
        ([0, -1], None, "line 2: label must be >= 0, got -1"),
        ([("a/1", 0), ("b/1", 2)], Classes(ABC), "line 2: label 2 does not fit the folder of b/1"),
        ([0, "a"], None, "line 2: class 'a' is a name, but t.txt, line 1 has an index"),
        (["d"], Classes(ABC), "line 1: 'd' is none of the 3 classes"),
    ],
)
def test_a_label_that_fits_no_class_or_two_is_an_error_with_its_line(labels, classes, words):
    with pytest.raises(ValueError, match=f"t.txt, {words}"):
        number_labels(rows_of(labels), classes)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ([0, 1, 2], [1, 2, 3]),
        ([1, 2], [0, 1]),
        ([("x/1", 0), ("y/1", 1)], [("x/2", 1), ("y/2", 0)]),  # another order
        ([("x/1", 0), ("y/1", 1)], [("x/2", 1), ("y/2", 2)]),
    ],
)
def test_lists_that_number_classes_differently_are_an_error(train, val):
    rows = rows_of(train) + rows_of(val, file="v.txt")
    with pytest.raises(ValueError, match="t.txt and v.txt number the classes differently"):
        number_labels(rows, None)


def test_folders_that_hold_several_classes_say_nothing_of_their_numbers():
    train, val = [("day1/1", 0), ("day1/2", 1), ("day2/3", 1)], [("day1/4", 1), ("day2/5", 0)]
    numbers, _, notes = number_labels(rows_of(train) + rows_of(val, file="v.txt"), None)
    assert numbers == [0, 1, 1, 1, 0] and notes == []


def test_gaps_in_numbers_are_told():
    assert number_labels(rows_of([0, 4, 2]), None) == (
        [0, 4, 2],
        None,
        ["2 of 5 classes have no video: 1, 3 ..."],
    )
    assert number_labels(rows_of([0, 10**12]), None)[2][0].endswith("no video: 1, 2, 3, 4, 5 ...")


def test_names_that_differ_in_spelling_alone_are_told():
    numbers, _, notes = number_labels(rows_of(["Wave", "wave", "nod ", "nod"]), None)
    assert numbers == [0, 2, 1, 1]
    assert notes == ["classes that differ in their spelling alone: Wave, wave"]
