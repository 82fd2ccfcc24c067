"""Records as tables: our rows beside the paper's, and as CSV and Markdown.

Arguments named records come from read_records, paper from paper_table; what was not measured stays
missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from s2dlib.data.files import write_atomic
from s2dlib.presets import SAME_RUN, VARIANTS
from s2dlib.report.records import write_json
from s2dlib.training.trials import CEILING, CONSTANT, study_of

MARKS = {  # what is on in each row of Table 2 (the paper's tick marks)
    **{"a1": "SNet", "a2": "DNet", "a0": "SNet, DNet"},
    **{"b1": "neither", "b2": "sample", "b3": "fuse", "b0": "sample, fuse"},
    **{"c1": "neither", "c2": "space", "c3": "time", "c0": "space, time"},
}
NO_RUNS = pd.Series(dtype=float)
PAPER = ["top1", "top5", "gflops"]
COMPARISONS = {  # what the text concludes from Table 2 (Sec. 4.3): better row, other row, by what
    ("a0", "a1"): "DNet added to SNet",
    ("a0", "a2"): "SNet added to DNet",
    ("b2", "b1"): "sampling, without fusion",
    ("b3", "b1"): "fusion, without sampling",
    ("b0", "b2"): "fusion added to sampling",
    ("b0", "b3"): "sampling added to fusion",
    ("c2", "c1"): "sampling in space alone",
    ("c3", "c1"): "sampling in time alone",
    ("c0", "c2"): "time added to space",
    ("c0", "c3"): "space added to time",
}
CONTROLS = {  # words -> a metric of the full model's runs, or a trial
    "learned theta (a0)": "a0",
    "the mean theta of all clips": "top1_mean",
    "another clip's theta": "top1_shuffled",
    "the uniform grid": "top1_uniform",
    "the true centre, own strides": "top1_truth",
    **{trial.words: name for name, trial in (CONSTANT | CEILING).items()},
}
OURS = {  # table and row of the paper -> the preset that is that row
    ("1-k400", "S2DNet X3D-S/X3D-M"): "kinetics400-x3d-s-m",
    ("1-k400", "S2DNet X3D-S/X3D-XL"): "kinetics400-x3d-s-xl",
    ("1-ssv2", "S2DNet MN2/R50"): "ssv2",
    ("3a", "S2DNet MN2/R50"): "mini-kinetics",
    ("3b-v1", "S2DNet MN2/R50"): "ssv1",
    ("3b-v2", "S2DNet MN2/R50"): "ssv2-efficient",
    ("4", "S2DNet MN2/R50"): "ssv2",
    ("1-k400", "X3D X3D-M"): "x3d-m",
    ("1-k400", "X3D X3D-XL"): "x3d-xl",
    ("1-ssv2", "TSM R50"): "tsm-r50",
    ("1-ssv2", "TDN R50"): "tdn-r50",
    ("4", "TSM R50"): "tsm-r50",
    ("4", "TDN R50"): "tdn-r50",
}


def parts(preset: str) -> dict[str, str]:
    """Words -> the trial that changes one thing about a preset's full model, or is its rival."""
    study = study_of(preset)
    trials = study.trials | study.sweeps
    lines = {trial.words: name for name, trial in trials.items() if trial.words}
    return {"the full model (a0)": "a0"} | lines


def paper_table(path: str | Path) -> pd.DataFrame:
    """The paper's Tables 1-4, a line a row of a table: columns table, row, then one a metric."""
    long = pd.read_csv(path, dtype=str)
    wide = long.pivot(index=["table", "row"], columns="metric", values="value")
    order = pd.MultiIndex.from_frame(long[["table", "row"]].drop_duplicates())
    wide = wide.reindex(index=order, columns=long["metric"].unique()).reset_index()
    for name in set(wide.columns) - {"table", "row", "backbone", "frames", "reproduced"}:
        wide[name] = pd.to_numeric(wide[name])
    return wide.rename_axis(columns=None)


def table2(records: pd.DataFrame, paper: pd.DataFrame, preset: str) -> pd.DataFrame:
    """All 11 rows of Table 2, ours (mean and sample sd over seeds) beside the paper's.

    Rows that are one model share its runs (SAME_RUN).
    """
    table = pd.DataFrame({"row": list(MARKS), "on": list(MARKS.values())})
    runs = _table2_runs(records, preset).groupby("variant")
    ours = runs.agg(
        top1=("top1", "mean"),
        sd=("top1", "std"),  # missing for one seed
        n_seeds=("top1", "size"),
        top5=("top5", "mean"),
        gmacs=("gmacs", "mean"),
    ).reindex(table["row"].replace(SAME_RUN))
    ours["n_seeds"] = ours["n_seeds"].fillna(0).astype(int)
    theirs = paper[paper["table"].isin(["2a", "2b", "2c"])].set_index("row")[PAPER]
    return table.join(ours.set_index(table.index)).join(theirs.add_prefix("paper_"), on="row")


def comparisons(records: pd.DataFrame, paper: pd.DataFrame, preset: str) -> pd.DataFrame:
    """What the paper concludes from Table 2, and whether our rows agree.

    Returns:
        rows, what is compared, ours, interval and n_seeds (difference, of top-1), the paper's
        difference, and whether ours has its sign (holds: yes, no, or missing).
    """
    runs = _table2_runs(records, preset)
    top1 = runs.pivot(index="seed", columns="variant", values="top1")
    theirs, lines = paper.drop_duplicates("row").set_index("row")["top1"], []
    for (better, other), what in COMPARISONS.items():
        ours = difference(*(top1.get(SAME_RUN.get(r, r), NO_RUNS) for r in (better, other)))
        gain = theirs[better] - theirs[other]
        holds = ("yes" if ours["ours"] * gain > 0 else "no") if ours["n_seeds"] else None
        names = {"rows": f"{better} - {other}", "what": what}
        lines.append({**names, **ours, "paper": gain, "holds": holds})
    return pd.DataFrame(lines)


def difference(ours: pd.Series, other: pd.Series) -> dict[str, float]:
    """Mean difference of top-1 by seed, over the seeds that both have, and its 95 % interval.

    Runs of one seed start from the same networks, so they are compared in pairs (Student's t).

    Returns:
        ours (points; missing without a common seed), interval (half-width; missing for one seed),
        n_seeds.
    """
    from scipy import stats

    pairs = (ours - other).dropna()
    half = stats.t.ppf(0.975, len(pairs) - 1) * pairs.sem()
    return {"ours": pairs.mean(), "interval": half, "n_seeds": len(pairs)}


def full_model_comparison(
    records: pd.DataFrame, preset: str, kinds: dict[str, str], metrics: Sequence[str] = ()
) -> pd.DataFrame:
    """Runs with one thing changed, and exchanged thetas, beside the full model (a0) of each seed.

    Args:
        kinds: words for a line -> its trial (presets.Trial), or a control, a metric top1_... of the
            full model's own runs.
        metrics: other numbers of the records to show, means over seeds.

    Returns:
        A line a kind: top1 (mean), sd, n_seeds, a0_minus (difference of the full model's top-1 from
        this one's), its interval, and metrics.
    """
    done = _complete(records, preset)
    done = done[done["test_split"] == "test"]
    full, lines = _top1_of(done, preset, "a0"), []
    for words, kind in kinds.items():
        runs, top1 = _runs_of(done, preset, kind), _top1_of(done, preset, kind)
        less = difference(full, top1)
        sd = round(top1.std(), 9)  # of equal seeds 0, not what is left of rounding
        line = {"what": words, "top1": top1.mean(), "sd": sd, "n_seeds": top1.count()}
        line |= {"a0_minus": less["ours"], "interval": less["interval"]}
        lines.append(line | {name: runs[name].mean() for name in metrics if name in runs})
    return pd.DataFrame(lines)


def reproduction(reference: pd.DataFrame, fresh: pd.DataFrame, preset: str) -> pd.DataFrame:
    """Fresh runs beside the reference's: rows of Table 2, controls and trials, as far as run.

    The interval is one in which a mean over n fresh seeds lies with 95 %, if it differs from the
    reference as other seeds do: t sd sqrt(1 / n_reference + 1 / n), sd over the reference's seeds
    and t of n_reference - 1 degrees of freedom. Of twenty lines one lies outside by chance.

    Args:
        reference, fresh: records; a reference tested on other clips than the fresh runs is none.

    Returns:
        A line a kind: what, reference (mean of top-1), interval (half-width; missing for one seed),
        n_reference, fresh (mean), n_fresh, is (within, outside, or missing without an interval).
    """
    from scipy import stats

    done, ours = _complete(fresh, preset), _complete(reference, preset)
    clips = ["data", "n_clips", "test_split"]
    ours = ours.merge(done[clips].drop_duplicates(), on=clips)
    kinds = {f"Table 2, {row}": row for row in VARIANTS}
    others = CONTROLS | parts(preset)
    kinds |= {words: kind for words, kind in others.items() if kind not in VARIANTS}
    lines = []
    for words, kind in kinds.items():
        new, old = (_top1_of(runs, preset, kind).dropna() for runs in (done, ours))
        n, m = len(new), len(old)
        if not n:
            continue
        half = stats.t.ppf(0.975, m - 1) * old.std() * (1 / m + 1 / n) ** 0.5 if m else math.nan
        near = abs(new.mean() - old.mean()) <= half
        line = {"what": words, "reference": old.mean(), "interval": half, "n_reference": m}
        line |= {"fresh": new.mean(), "n_fresh": n}
        lines.append(line | {"is": None if math.isnan(half) else "within" if near else "outside"})
    return pd.DataFrame(lines)


def _complete(records: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The complete runs of a preset."""
    return records[(records["preset"] == preset) & records["complete"].astype(bool)]


def _runs_of(done: pd.DataFrame, preset: str, kind: str) -> pd.DataFrame:
    """Runs <preset>-<kind>-<seed> by seed; the full model's if the kind is a control, top1_..."""
    name = "a0" if kind.startswith("top1_") else kind
    return done[done["run"].str.fullmatch(rf"{preset}-{re.escape(name)}-\d+")].set_index("seed")


def _top1_of(done: pd.DataFrame, preset: str, kind: str) -> pd.Series:
    """Top-1 by seed of a trial, a row, or a control."""
    return _runs_of(done, preset, kind).get(kind if kind.startswith("top1_") else "top1", NO_RUNS)


def _table2_runs(records: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The complete runs of a preset, one a row and seed, all tested on the same clips."""
    done = _complete(records, preset)
    repeated = done[done.duplicated(["variant", "seed"], keep=False)]
    if len(repeated):
        raise ValueError(f"one seed measured twice, keep one: {', '.join(repeated['run'])}")
    if len(done[["data", "n_clips"]].drop_duplicates()) > 1:
        raise ValueError(
            f"the runs of preset {preset!r} were tested on different clips, so they make no table: "
            + ", ".join(f"{r.run} ({r.n_clips} of {r.data})" for r in done.itertuples())
        )
    return done


def paper_comparison(records: pd.DataFrame, paper: pd.DataFrame, table: str) -> pd.DataFrame:
    """One of the Tables 1, 3, 4: the paper's lines, and ours (mean over seeds) where measured.

    table: as named in the paper's, "1-k400" and so on.
    """
    lines = paper[paper["table"] == table].dropna(axis=1, how="all").drop(columns="table")
    done = records[records["complete"].astype(bool) & (records["variant"] == "a0")]
    names = {"top1": "our_top1", "top5": "our_top5", "gmacs": "our_gmacs"}
    ours = done.groupby("preset")[list(names)].mean().rename(columns=names)
    presets = [OURS.get((table, row)) for row in lines["row"]]
    return lines.reset_index(drop=True).join(ours.reindex(presets).reset_index(drop=True))


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table as people read it: one decimal (below 1, two digits), a dash for what is missing."""
    return table.astype(object).map(_cell)


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table of as_text; numbers at the right."""
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    lines = [list(table.columns), ["--:" if n else ":--" for n in numeric]]
    lines += as_text(table).to_numpy().tolist()
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def write_table(table: pd.DataFrame, stem: str | Path) -> tuple[Path, Path]:
    """Write stem.csv (for machines) and stem.md (for people), and return their paths."""
    csv = table.to_csv(index=False, float_format="%.6g")
    return write_atomic(f"{stem}.csv", csv), write_atomic(f"{stem}.md", to_markdown(table))


def write_measured(table: pd.DataFrame, stem: str | Path, source: dict[str, Any]) -> None:
    """Write stem.csv and stem.md of measurements, and their provenance `source` as stem.json."""
    write_table(table, stem)
    write_json(f"{stem}.json", source)


def _cell(value: object) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"
    return str(value).replace("|", r"\|").replace("\n", " ")
