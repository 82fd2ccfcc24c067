"""`s2d index`: an owner's annotations and a folder of videos -> the one CSV of this project."""

from __future__ import annotations

import argparse
import inspect
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from s2dlib.data.annotations import (
    read_classes,
    read_folders,
    read_kinetics,
    read_list,
    read_mini_kinetics,
    read_something,
)
from s2dlib.data.grid import WORDS, add_moments, read_grid
from s2dlib.data.index import Row, make_index, missing_of, write_index
from s2dlib.presets import PRESETS


class Format(NamedTuple):
    """How an owner's annotations are read."""

    reader: Callable[..., list[Row]]
    preset: str  # whose index it writes, unless --out says otherwise
    example: str


FORMATS = {
    "kinetics400": Format(
        read_kinetics,
        "kinetics400-x3d-s-m",
        "--annotations train.csv val.csv --videos DIR",
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
        if name in ("folders", "grid"):
            default = inspect.signature(reader).parameters["fractions"].default
            sub.add_argument("--fractions", nargs=3, type=float, default=default)
            sub.add_argument("--seed", type=int, default=0)
        else:
            sub.add_argument(
                "--annotations", required=True, nargs="+", metavar="FILE",
                help="SPLIT=FILE if its name has no split",
            )  # fmt: skip
        if name == "mini-kinetics":
            words = "Kinetics-400's own CSVs, for lists of ids"
            sub.add_argument("--kinetics", nargs="+", metavar="FILE", help=words)
        if name == "grid":
            sub.add_argument("--word", choices=WORDS, default="digit", help="what is the class")
            words = "a folder above bbaf2n.align, ...: when the word is spoken"
            sub.add_argument("--alignments", metavar="DIR", help=words)
        words = "class names in their order: one a line, or JSON name -> index"
        sub.add_argument("--classes", required=name.startswith("ssv"), metavar="FILE", help=words)
        sub.add_argument("--videos", required=True, metavar="DIR", help="a folder above all videos")
        words = "the index; default: %(default)s"
        sub.add_argument("--out", default=PRESETS[preset].data.csv, help=words)
        words = "even an index that names more videos"
        sub.add_argument("--replace", action="store_true", help=words)


def index_videos(args: argparse.Namespace) -> None:
    """Write an index and print what was found, what is missing, and the next command."""
    reader, preset, _ = FORMATS[args.format]
    classes = read_classes(args.classes) if args.classes else None
    rows = reader(**{name: getattr(args, name) for name in inspect.signature(reader).parameters})
    table, notes = make_index(rows, args.videos, classes)
    if args.format == "grid" and args.alignments:
        table = add_moments(table, args.alignments, args.word)
    index = write_index(table, args.videos, args.out, args.replace)
    print(summary(table).to_string(), *notes, sep="\n")
    found = table[table["path"].notna()]
    print(f"{found['label'].nunique()} of {table['label'].nunique()} classes: {index}")
    if len(found) < len(table):
        print(f"{len(table) - len(found)} videos are missing: {missing_of(index)}")
    print("next:", next_command(preset, index))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Videos listed, found and missing, and classes found, by split. The columns of make_index."""
    found = table["path"].notna()
    splits = table.assign(found=found, seen=table["label"].where(found)).groupby(
        "split", sort=False
    )
    counts = splits.agg(
        listed=("found", "size"), found=("found", "sum"), classes=("seen", "nunique")
    )
    return counts.assign(missing=counts["listed"] - counts["found"])


def next_command(preset: str, index: Path) -> str:
    """The command that checks an index; by the preset whose own it is, if it is one's."""
    own = [name for name, p in PRESETS.items() if os.path.abspath(p.data.csv) == str(index)]
    words = ["-p", "preset", *own[:1]] if own else ["-p", "preset", preset, "-p", "csv", str(index)]
    executed = index.with_name("00_data.ipynb")
    executed = executed.relative_to(Path.cwd()) if executed.is_relative_to(Path.cwd()) else executed
    return shlex.join(["s2d", "run", "notebooks/00_data.ipynb", str(executed), *words])
