"""The figures of README.md and docs/results.md, written from results/ (`make readme`).

A page holds blocks, whose content is replaced and nothing else:

    <!-- make readme: NAME -->
    <!-- end -->

NAME is a table's file, such as results/tables/table2.md, or `results`: results_block.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill

import pandas as pd

from s2dlib.data.files import write_atomic
from s2dlib.report.records import read_records
from s2dlib.report.tables import comparisons, full_model_comparison, paper_table

WIDTH = 120  # columns of a page
PAGES = ("README.md", "docs/results.md")
BLOCK = re.compile(r"(<!-- make readme: (\S+) -->\n).*?(?=<!-- end -->)", re.S)
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
    "nothing-shift-16": "a0 from nothing, in one stage",
    "nothing-shift-16-start": "DNet alone, where that starts",
    "tsm": "one TSM of a0's cost",
}
IN_PROSE = ("fc", "paper", "authors")  # kinds whose top-1 stands in the sentences below the table
SHOWN = {  # preset -> its videos, and kinds
    "synthetic": ("drawn", ["a0", "a1", "a2", "b3", "top1_shuffled", "constant", *IN_PROSE]),
    "grid": (
        "a spoken digit (GRID)",
        ["a0", "b3", "top1_shuffled", "start", "nothing-shift-16", "nothing-shift-16-start"],
    ),
    "grid-untrimmed": (
        "the same, anywhere in clips twice as long",
        ["a0", "top1_shuffled", "constant"],
    ),
    "egogestar": ("gestures (EgoGestAR)", ["a0", "a1", "a2", "tsm"]),
}


def shown(records: pd.DataFrame) -> pd.DataFrame:
    """The lines of README's table.

    Returns:
        videos (the preset), what, kind, and top1, sd, n_seeds, a0_minus, interval as of
        tables.full_model_comparison.
    """
    parts = []
    for preset, (_, kinds) in SHOWN.items():
        lines = full_model_comparison(records, preset, {WORDS[kind]: kind for kind in kinds})
        parts.append(lines.assign(videos=preset, kind=kinds))
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


def written(text: str, root: Path) -> str:
    """A page with each of its blocks written anew from the files in root / results."""
    results = root / "results"
    lines = results_block(read_records(results / "runs"), paper_table(results / "paper.csv"))

    def block(match: re.Match[str]) -> str:
        return match[1] + (lines if match[2] == "results" else (root / match[2]).read_text())

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
