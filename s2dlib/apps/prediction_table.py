"""predictions.csv: a row a video, which calls of `s2d predict` share and go on with."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from s2dlib.data.files import as_text, check_output, file_state
from s2dlib.data.rows import OtherRows, Row, RowTable
from s2dlib.model import S2DNet
from s2dlib.sampler import Theta

TABLE = "predictions.csv"
BEGIN = rb'\A(\xef\xbb\xbf)?"?path"?,"?error"?,"?frames"?,"?action_1"?,'  # of every such file


def columns_of(model: S2DNet, top: int) -> list[str]:
    """The header of predictions.csv."""
    both = model.snet is not None and model.dnet is not None
    values = ["action", "probability"] + ["snet_action", "snet_probability"] * both
    ranks = range(1, min(top, len(model.classes)) + 1)
    theta = [field.name for field in fields(Theta)] if model.dnet is not None else []
    named = [f"{name}_{rank}" for rank in ranks for name in values]
    return ["path", "error", "frames", *named, *theta, "model", "bytes", "modified"]


def digest_of(model: S2DNet) -> str:
    """What tells a model from any other: of its weights, its classes and how clips are cut."""
    cut = {k: v for k, v in asdict(model.data).items() if k not in ("csv", "cache", "timeout")}
    digest = hashlib.sha256(repr((model.config, model.classes, cut)).encode())
    for weight in model.state_dict().values():
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:12]}"


def open_table(model: S2DNet, folder: Path, top: int = 5, inputs: Sequence[Path] = ()) -> RowTable:
    """predictions.csv in a folder: new, or with the rows of earlier calls, which stay.

    A table by another model or with another `top` becomes predictions.1.csv (2, ...).

    Raises:
        ValueError: a file of this name is an input or no such table (files.check_output).
    """
    path, digest = folder / TABLE, digest_of(model)
    check_output(path, inputs, BEGIN)

    def settle(rows: list[Row]) -> list[Row]:
        if others := {row["model"] for row in rows} - {digest}:
            raise OtherRows(f"{as_text(path)}: rows by another model, {', '.join(others)}")
        return _settle(rows)

    try:
        return RowTable(path, columns_of(model, top), settle)
    except OtherRows:
        names = (path.with_suffix(f".{n}{path.suffix}") for n in itertools.count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        path.rename(aside)
        print(f"{as_text(path)}: of another model or --top; now {aside.name}", file=sys.stderr)
    return RowTable(path, columns_of(model, top), settle)


def unpredicted(table: RowTable, paths: Sequence[Path]) -> list[Path]:
    """Videos that have no row without an error, or were modified since."""
    done = {_identity(row) for row in table.rows if not row["error"]}
    return [
        path for path in paths if _identity({"path": as_text(path)} | file_state(path)) not in done
    ]


def _identity(row: Row) -> tuple[str, str, str]:
    return row["path"], row["bytes"], row["modified"]


def _settle(rows: list[Row]) -> list[Row]:
    """Rows but for failures that were tried again, and a video's that was predicted again."""
    kept: list[Row] = []
    later: set[object] = set()  # paths, and the identities of what was predicted
    for row in reversed(rows):
        if (row["path"] if row["error"] else _identity(row)) not in later:
            kept.append(row)
        later |= {row["path"]} if row["error"] else {row["path"], _identity(row)}
    return kept[::-1]
