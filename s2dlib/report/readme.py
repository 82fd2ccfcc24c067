"""The figures of README.md and docs/results.md, written from results/ (`make readme`).

A page holds blocks, whose content is replaced and nothing else:

    <!-- make readme: NAME -->
    <!-- end -->

NAME is a table's file, such as results/tables/table2.md, or `results` or `gestures`: the functions
results_block and gestures_block.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill

import pandas as pd

from s2dlib.data.files import write_atomic
from s2dlib.report.records import read_records
from s2dlib.report.tables import comparisons, full_model_comparison, paper_table, to_markdown

WIDTH = 120  # columns of a page
PAGES = ("README.md", "docs/results.md")
BLOCK = re.compile(r"(<!-- make readme: (\S+) -->\n).*?(?=<!-- end -->)", re.S)
GESTURES = "egogestar-equal"  # prefix of runs whose preset is videos; it stands for one here
WORDS = {  # kinds of full_model_comparison
    "a0": "**full model (a0)**",
    "a1": "SNet alone (a1)",
    "a2": "DNet alone (a2)",
    "b3": "theta frozen (b3)",
    "top1_shuffled": "a0 with another clip's theta",
    "constant": "the best window for all clips",
    "fc": "the paper's theta head, our recipe",
    "paper": "the paper's theta head and recipe",
    "authors": "the release's two stages",
    "start": "DNet alone, where a0's attention starts",
    "tsm": "one TSM of a0's cost",
}
IN_PROSE = ("fc", "paper", "authors")  # kinds whose top-1 stands in the sentences below the table
SHOWN = {  # prefix of runs -> its videos, and kinds
    "synthetic": ("drawn", ["a0", "a1", "a2", "b3", "top1_shuffled", "constant", *IN_PROSE]),
    "grid": ("a spoken digit (GRID)", ["a0", "b3", "top1_shuffled", "start"]),
    "grid-untrimmed": (
        "the same, anywhere in clips twice as long",
        ["a0", "top1_shuffled", "constant"],
    ),
    GESTURES: ("gestures (EgoGestAR)", ["a0", "a1", "a2", "tsm"]),
}


def shown(records: pd.DataFrame) -> pd.DataFrame:
    """The lines of README's table.

    Returns:
        videos (the prefix of the runs), what, kind, and top1, sd, n_seeds, a0_minus, interval as of
        tables.full_model_comparison.
    """
    parts = []
    for prefix, (_, kinds) in SHOWN.items():
        lines = full_model_comparison(records, prefix, {WORDS[kind]: kind for kind in kinds})
        parts.append(lines.assign(videos=prefix, kind=kinds))
    return pd.concat(parts, ignore_index=True)


def results_block(records: pd.DataFrame, paper: pd.DataFrame) -> str:
    """README's table of results, and the sentences that belong beside it."""
    lines = shown(records)
    rows = ["| videos | model | top-1 | seeds | a0 is better by |", "|:--|:--|--:|--:|--:|"]
    for line in lines[~lines["kind"].isin(IN_PROSE)].itertuples():
        first = line.kind == "a0"
        videos = SHOWN[line.videos][0] if first else ""
        better = "" if first else _plus_minus(line.a0_minus, line.interval)
        cells = [videos, line.what, _plus_minus(line.top1, line.sd), line.n_seeds, better]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    drawn = lines[lines["videos"] == "synthetic"].set_index("kind")
    at = {kind: f"{drawn['top1'][kind]:.1f}" for kind in drawn.index}
    rows_only = records[records["run"].str.fullmatch(r"synthetic-[abc]\d-\d+")]
    signs = comparisons(rows_only, paper, "synthetic")
    agree = signs[signs["holds"] == "yes"]
    clear = (agree["ours"].abs() > agree["interval"]).sum()
    prose = f"""\
Top-1 in percent, on test clips. ± is the standard deviation over seeds after a top-1, and half of
the 95 % interval after a difference, which is taken seed by seed; one seed has neither.

**The paper's own theta head and recipe stay at SNet's level on these videos**: {at["paper"]} from
scratch in one stage, {at["authors"]} in the release's two stages, {at["fc"]} with the head alone in
our recipe, where SNet alone has {at["a1"]}; a budget of CPU minutes.

{len(agree)} of the {len(signs)} differences that the paper draws from Table 2 have its sign on the
drawn videos, {clear} beyond their interval.
"""
    paragraphs = [fill(paragraph, WIDTH) for paragraph in prose.split("\n\n")]
    return "\n\n".join(["\n".join(rows), *paragraphs]) + "\n"


def gestures_block(records: pd.DataFrame) -> str:
    """The table of docs/results.md on gestures, with costs and SNet's top-1 within each model."""
    kinds = {WORDS[kind]: kind for kind in [*SHOWN[GESTURES][1], "b3"]}
    metrics = ("top5", "snet_top1", "gmacs")
    return to_markdown(full_model_comparison(records, GESTURES, kinds, metrics))


def written(text: str, root: Path) -> str:
    """A page with each of its blocks written anew from the files in root / results."""
    records = read_records(root / "results" / "runs")
    gestures = records["run"].str.startswith(f"{GESTURES}-")
    records["preset"] = records["preset"].mask(gestures, GESTURES)
    paper = paper_table(root / "results" / "paper.csv")
    made = {"results": results_block(records, paper), "gestures": gestures_block(records)}

    def block(match: re.Match[str]) -> str:
        name = match[2]
        return match[1] + (made[name] if name in made else (root / name).read_text())

    return BLOCK.sub(block, text)


def _plus_minus(value: float, spread: float) -> str:
    """One decimal, and the spread where there is one."""
    if pd.isna(value):
        return "–"
    return f"{value:.1f}" + ("" if pd.isna(spread) else f" ± {spread:.1f}")


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    for name in PAGES:
        write_atomic(root / name, written((root / name).read_text(), root))
