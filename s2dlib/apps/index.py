"""`s2d index`: an owner's annotations and a folder of videos -> the one CSV of this project."""

from __future__ import annotations

import argparse
import inspect
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from s2dlib.data.annotations import (
    cut_val,
    read_folders,
    read_kinetics,
    read_mini_kinetics,
    read_something,
)
from s2dlib.data.classes import Row, read_classes
from s2dlib.data.files import check_output
from s2dlib.data.grid import WORDS, add_moments, read_grid
from s2dlib.data.lists import read_list
from s2dlib.data.splits import file_and_split
from s2dlib.data.table import escape
from s2dlib.presets import PRESETS

if TYPE_CHECKING:
    import pandas as pd


class Format(NamedTuple):
    """How an owner's annotations are read."""

    reader: Callable[..., list[Row]]
    preset: str  # whose index it writes, unless --out says otherwise
    example: str


FORMATS = {
    "kinetics400": Format(
        read_kinetics, "kinetics400-x3d-s-m", "--annotations train.csv val.csv --videos DIR"
    ),
    "mini-kinetics": Format(
        read_mini_kinetics,
        "mini-kinetics",
        "--annotations mini_train_videofolder.txt mini_val_videofolder.txt --videos DIR",
    ),
    "ssv1": Format(
        read_something,
        "ssv1",
        "--annotations train.csv validation.csv --classes labels.csv --videos DIR",
    ),
    "ssv2": Format(
        read_something,
        "ssv2",
        "--annotations train.json validation.json --classes labels.json --videos DIR",
    ),
    "list": Format(
        read_list,
        "videos",
        "--annotations train=a.txt val=b.txt --videos DIR --out data/mine/mine.csv",
    ),
    "grid": Format(read_grid, "grid", "--videos DIR --alignments DIR --word digit"),
    "folders": Format(read_folders, "videos", "--videos DIR --out data/mine/mine.csv"),
}
ARGUMENTS: dict[str, dict[str, Any]] = {  # of readers, but for the folder of videos
    "annotations": {
        "required": True, "nargs": "+", "metavar": "FILE",
        "help": "SPLIT=FILE if its name has no split",
    },
    "kinetics": {
        "nargs": "+", "metavar": "FILE", "help": "Kinetics-400's own CSVs, for lists of ids",
    },
    "word": {"choices": WORDS, "help": "what is the class; default: %(default)s"},
    "fractions": {"nargs": 3, "type": float, "help": "default: %(default)s"},
    "seed": {"type": int, "help": "of the splits; default: %(default)s"},
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A subcommand a format, described by the docstring of its reader."""
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, (reader, preset, example) in FORMATS.items():
        description = inspect.getdoc(reader) or ""
        sub = formats.add_parser(
            name,
            help=description.split("\n")[0],
            description=description,
            epilog=f"example:\n  s2d index {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for parameter, of in inspect.signature(reader).parameters.items():
            if parameter in ARGUMENTS:
                default = None if of.default is inspect.Parameter.empty else of.default
                sub.add_argument(f"--{parameter}", default=default, **ARGUMENTS[parameter])
        if reader is read_grid:
            words = "a folder above bbaf2n.align, ...: when the word is spoken"
            sub.add_argument("--alignments", metavar="DIR", help=words)
        words = "class names: one a line, with or without its index, or JSON"
        needed = reader is read_something
        sub.add_argument("--classes", required=needed, metavar="FILE", help=words)
        sub.add_argument("--videos", required=True, metavar="DIR", help="a folder above all videos")
        words = "this share of the training videos is for validation, where the owner has none"
        sub.add_argument("--val", type=float, metavar="SHARE", help=words)
        words = "the index; default: %(default)s"
        sub.add_argument("--out", default=PRESETS[preset].data.csv, help=words)
        words = "even an index that names more videos"
        sub.add_argument("--replace", action="store_true", help=words)


def index_videos(args: argparse.Namespace) -> None:
    """Write an index and print what was found, what is missing, and the next command."""
    from s2dlib.data.index import make_index, missing_of, write_index  # by pandas

    reader, preset, _ = FORMATS[args.format]
    classes = read_classes(args.classes) if args.classes else None
    _check_outputs(args)
    rows = reader(**{name: getattr(args, name) for name in inspect.signature(reader).parameters})
    rows = rows if args.val is None else cut_val(rows, args.val)
    table, notes = make_index(rows, args.videos, classes)
    if getattr(args, "alignments", None):
        table = add_moments(table, args.alignments, args.word)
    index = write_index(table, args.videos, args.out, args.replace)
    print(escape("\n".join([summary(table).to_string(), *notes])))
    found = table[table["path"].notna()]
    print(f"{found['label'].nunique()} of {table['label'].nunique()} classes: {index}")
    if len(found) < len(table):
        print(f"{len(table) - len(found)} videos are missing: {missing_of(index)}")
    print("next:", next_command(preset, index))


def _check_outputs(args: argparse.Namespace) -> None:
    """ValueError where the index would replace a file that is read, or that no index call wrote."""
    from s2dlib.data.index import missing_of

    given = [*(getattr(args, "kinetics", None) or ()), args.classes]
    inputs = [file_and_split(text)[0] for text in getattr(args, "annotations", ())]
    inputs += [Path(path) for path in given if path]
    missing = missing_of(args.out)  # is written beside every index: where it is not, a person's
    check_output(args.out, inputs, rb"\Apath,label" if missing.is_file() else rb"(?!)")
    check_output(missing, inputs, rb"\Alabel,(?:label_name,)?split,name[,\r\n]")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Videos listed, found and missing, and classes found, by split. The columns of make_index."""
    found = table["path"].notna()
    splits = table.assign(seen=table["label"].where(found)).groupby("split", sort=False)
    counts = splits.agg(
        listed=("label", "size"), found=("path", "count"), classes=("seen", "nunique")
    )
    return counts.assign(missing=counts["listed"] - counts["found"])


def next_command(preset: str, index: Path) -> str:
    """The command that checks an index; by the preset whose own it is, if it is one's."""
    own = [name for name, p in PRESETS.items() if os.path.abspath(p.data.csv) == str(index)]
    words = ["-p", "preset", *own[:1]] if own else ["-p", "preset", preset, "-p", "csv", str(index)]
    executed = index.with_name("00_data.ipynb")
    executed = executed.relative_to(Path.cwd()) if executed.is_relative_to(Path.cwd()) else executed
    return shlex.join(["s2d", "run", "notebooks/00_data.ipynb", str(executed), *words])
