"""Curves and bars: training, accuracy, cost.

Each function draws on the Axes it is given and returns them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from s2dlib.report.figures import BLUE, FONT, ORANGE, label_axes


def curves(ax: Axes, history: pd.DataFrame, columns: Sequence[str], label: str) -> Axes:
    """Columns of a run's history.csv over its epochs; label: their unit."""
    if missing := sorted(set(columns) - set(history.columns)):
        raise ValueError(f"no column {missing} in the history; it has {', '.join(history.columns)}")
    for n, name in enumerate(columns):
        style, colour = ["-", "--", ":", "-."][n % 4], sns.color_palette("colorblind")[n % 10]
        rows = history.dropna(subset=[name])  # some columns are measured every few epochs
        ax.plot(rows["epoch"], rows[name], style, color=colour, marker=".", label=name)
    label_axes(ax, "epoch", label)
    ax.locator_params(axis="x", integer=True)
    ax.legend(fontsize=FONT, frameon=False)
    return ax


LOOKING = {  # columns of a history on synthetic clips -> what they are
    "val_distance_t": "distance in time (frames)",
    "val_iou_t": "IoU in time",
    "val_iou_yx": "IoU in space",
    "val_delta_t_mean": "stride in time (frames)",
    "val_delta_y_mean": "stride in space (pixels)",
}


def theta_curves(axes: Sequence[Axes], history: pd.DataFrame) -> Sequence[Axes]:
    """Where the sampled volume lies and how closely it looks, over training; mean and sd over runs.

    Args:
        axes: one for each of LOOKING; empty where the history has no such column, as of places in
            videos whose moment alone is known.
        history: the evaluated epochs of several runs; columns epoch, theta (words), and LOOKING's.
    """
    order = _learned_first(history)
    for ax, (column, label) in zip(axes, LOOKING.items(), strict=True):
        if column not in history:
            ax.axis("off")
            continue
        sns.lineplot(
            history, x="epoch", y=column, hue="theta", style="theta", hue_order=order,
            style_order=order, errorbar="sd", markers=True, ax=ax, legend=ax is axes[0],
        )  # fmt: skip
        label_axes(ax, "epoch", label)
        ax.set_ylim(0, None)
    axes[0].legend(title=None, fontsize=FONT, frameon=False)
    return axes


def accuracy_by(ax: Axes, means: pd.DataFrame, label: str) -> Axes:
    """Top-1 in groups of clips, a bar a theta; mean and sd over seeds.

    means: columns theta (words), top1 (percent) and, first, the group, whose unit the label tells.
    """
    order = _learned_first(means)
    sns.barplot(
        means, x=means.columns[0], y="top1", hue="theta", hue_order=order, errorbar="sd", ax=ax
    )
    label_axes(ax, label, "top-1 (%)")
    ax.legend(title=None, fontsize=FONT, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def accuracy_cost(ax: Axes, lines: pd.DataFrame, title: str) -> Axes:
    """Accuracy against the cost of all views of a video, in the paper and, where measured, here.

    lines: of paper_comparison.
    """
    lines = lines.sort_values("top1")
    views = lines["views"] if "views" in lines else 1
    cost, is_s2d = lines["gflops"] * views, lines["row"].str.startswith("S2DNet")
    for rows, colour, label in ((~is_s2d, "0.5", "others"), (is_s2d, BLUE, "S2DNet")):
        ax.plot(cost[rows], lines["top1"][rows], "o", color=colour, label=f"{label}, paper")
    ax.plot(lines["our_gmacs"] * views, lines["our_top1"], "*", ms=11, color=ORANGE, label="ours")
    if cost.max() > 10 * cost.min():
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    ax.margins(0.3, 0.12)
    _label_points(ax, list(zip(lines["row"], cost, lines["top1"], strict=True)))
    label_axes(ax, "multiply-adds of a video (G)", "top-1 (%)")
    ax.set_title(title, fontsize=FONT)
    return ax


def _label_points(ax: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Words beside points (x, y): each inside, where it covers no other words and no point."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays the figure out, so that extents are known
    places = [("left", 4, -9), ("right", -4, 3), ("left", 4, 3), ("right", -4, -9)]
    places += [("center", 0, 7), ("center", 0, -14), ("left", 8, -18), ("right", -8, 12)]
    dots, taken = ax.transData.transform([(x, y) for _, x, y in points]), list[Bbox]()
    for n, (words, x, y) in enumerate(points):
        others = np.delete(dots, n, axis=0)
        text = ax.annotate(words, (x, y), (0, 0), textcoords="offset points", fontsize=8)
        text.set_in_layout(False)  # so that it moves nothing
        for side, right, up in places:  # points; crowded all around: better covered than lost
            text.set(ha=side, position=(right, up))
            box = text.get_window_extent()
            free = not any(map(box.overlaps, taken)) and not box.count_contains(others)
            if free and ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1:
                break
        taken.append(box.padded(2))


def exit_curve(ax: Axes, curve: pd.DataFrame, exit_at: float) -> Axes:
    """Accuracy against mean cost over thresholds of inference.exit_curve, and the one chosen."""
    chosen = curve[curve["exit_at"] >= exit_at].iloc[-1]
    ax.plot(curve["gmacs"], curve["top1"], color=BLUE)
    x, y, label = chosen["gmacs"], chosen["top1"], f"exit at {exit_at:.2f}"
    ax.plot(x, y, "o", ms=11, fillstyle="none", color=ORANGE, label=label)
    label_axes(ax, "mean multiply-adds of a clip (G)", "top-1 (%)")
    ax.legend(fontsize=FONT, frameon=False)
    return ax


def _learned_first(table: pd.DataFrame) -> list[str]:
    """The words of the column theta, so that each kind has one colour in all figures."""
    return sorted(table["theta"].unique(), reverse=True)
