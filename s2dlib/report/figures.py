"""Figures: frame strips, filters, where the details lie in time and space, Fig. 4 (Sec. 4.6).

Each function draws on the Axes it is given and returns them. A theta here is one clip's:
out.theta.map(lambda v: v[i]). Frame r of a clip, and pixel r of a frame, span r to r + 1.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from s2dlib.model import Output, scale_of
from s2dlib.sampler import Theta, grid_centres, uniform_times

# Of seaborn's palette "colorblind", without seaborn: it brings scipy.stats and IPython, a second
BLUE, ORANGE, GREEN, RED = map(to_rgb, ("#0173B2", "#DE8F05", "#029E73", "#D55E00"))
FONT = 9  # points; nothing is smaller than 8
GAP = 0.06  # between the frames of a strip, in frame widths


def frame_strip(
    ax: Axes,
    frames: Tensor,
    indices: Sequence[int] | None = None,
    title: str = "",
    labels: Sequence[str] | None = None,
) -> Axes:
    """Frames beside each other.

    Args:
        frames: uint8, or float in [0, 1]; one channel is gray. (C, T, H, W)
        indices: the frames shown; None: all.
        labels: a word below each; None: its index.
    """
    indices = range(frames.shape[1]) if indices is None else indices
    shown = frames[:, list(indices)].detach().cpu().expand(3, -1, -1, -1)
    shown = shown.clamp(0, 1) if shown.is_floating_point() else shown
    images = shown.permute(1, 2, 3, 0).numpy()  # (n, H, W, 3)
    H, W = images.shape[1:3]
    step = W * (1 + GAP)
    for n, image in enumerate(images):
        ax.imshow(image, extent=(n * step, n * step + W, H, 0))
    names = [str(i) for i in indices] if labels is None else labels
    ax.set_xticks([n * step + W / 2 for n in range(len(images))], names, fontsize=FONT)
    ax.set(xlim=(0, (len(images) - 1) * step + W), ylim=(H, 0), yticks=[])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=FONT + 1)
    return ax


def filter_bank(ax: Axes, G: Tensor, axis: str) -> Axes:
    """The weights of a bank of filters along an axis ("frame", "row", "column"), Eq. 7.

    G: a row an output. (n_out, n_in)
    """
    n_out, n_in = G.shape
    weights, extent = G.detach().cpu().numpy(), (0, n_in, n_out, 0)
    image = ax.imshow(weights, cmap="viridis", aspect="auto", extent=extent, vmin=0)
    ax.grid(False)
    label_axes(ax.figure.colorbar(image, ax=ax).ax, "", "weight")
    return label_axes(ax, f"raw {axis}", f"detail {axis}")


def time_ticks(
    ax: Axes, theta: Theta, T: int, T_S: int, T_D: int, truth: tuple[float, float] | None = None
) -> Axes:
    """Where SNet's uniform frames and DNet's detail frames lie over the clip of T raw frames.

    truth: where the detail is known to be, shaded; first frame and end, in raw frames.
    """
    uniform, detail = _uniform_times(T, T_S), detail_times(theta, T, T_D).numpy()
    ax.axvspan(0, T, color="0.93", zorder=0)
    if truth is not None:
        ax.axvspan(*truth, color=GREEN, alpha=0.35, lw=0, zorder=1)
        middle = sum(truth) / 2
        ax.text(middle, 1.62, "true detail", color=GREEN, ha="center", va="bottom", fontsize=FONT)
    ax.eventplot([uniform, detail], lineoffsets=[1, 0], linelengths=0.7, colors=["0.35", BLUE])
    first, last = min(0, detail.min()), max(T, detail.max())
    margin = 0.01 * (last - first)
    ax.set(xlim=(first - margin, last + margin), ylim=(-0.6, 1.6))
    ax.set_yticks([1, 0], ["uniform", "detail"])
    ax.tick_params(axis="y", length=0)
    return label_axes(ax, "raw frame of the clip")


def detail_box(
    theta: Theta, z: int, extent: Sequence[int], size: Sequence[int]
) -> tuple[float, float, float, float]:
    """What detail frame z covers, in raw pixels: left, top, right, bottom.

    extent: H, W of the raw frames. size: (T_D, H_D, W_D).
    """
    (H, W), (_, H_D, W_D) = extent, size
    y, x = theta.mu_y[z].item() * H, theta.mu_x[z].item() * W
    half_y, half_x = H_D * theta.delta_y[z].item() / 2, W_D * theta.delta_x[z].item() / 2
    return x - half_x, y - half_y, x + half_x, y + half_y


def boxes(ax: Axes, frame: Tensor, theta: Theta, z: int, size: tuple[int, int, int]) -> Axes:
    """The box that detail frame z (from 0) covers, on a raw frame (C, H, W). size: T_D, H_D, W_D"""
    frame_strip(ax, frame[:, None], labels=[""])
    return _draw_box(ax, detail_box(theta, z, frame.shape[-2:], size), BLUE)


def true_square(ax: Axes, y: float, x: float, side: float, n: int = 0) -> Axes:
    """Where the detail is known to be, on frame n of a strip; y, x of its centre, side: pixels."""
    half = side / 2
    return _draw_box(ax, (x - half, y - half, x + half, y + half), GREEN, n)


def topk_bars(
    ax: Axes, names: Sequence[str], p_before: Tensor, p_after: Tensor, label: int | None, k: int = 5
) -> Axes:
    """SNet's k likeliest actions, before and after DNet; the true one in red, as in Fig. 1.

    A true action that SNet left out of its top k is added below them.

    Args:
        p_before: p of SNet. (N,)
        p_after: p-hat * s. (N,)
        label: the true action; None: it is not known.
    """
    shown = p_before.topk(min(k, len(p_before))).indices.tolist()
    shown += [] if label in (None, *shown) else [label]
    y, colours = np.arange(len(shown)), [RED if n == label else BLUE for n in shown]
    for p, offset, alpha in ((p_before, -0.2, 0.4), (p_after, 0.2, 1.0)):
        widths = p[shown].tolist()
        bars = ax.barh(y + offset, widths, height=0.38, color=colours, alpha=alpha, lw=0)
        ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    words = [textwrap.shorten(names[n], 42, placeholder=" …") for n in shown]
    words = [f"{w} (true)" if n == label else w for n, w in zip(shown, words, strict=True)]
    ax.set_yticks(y, [textwrap.fill(w, 28) for w in words])
    if label is not None:
        ax.get_yticklabels()[shown.index(label)].set_color(RED)
    ax.set(xlim=(0, 1.12), xticks=[0, 0.5, 1], ylim=(len(shown) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    keys = [Patch(fc="0.3", alpha=0.4, label="before: SNet"), Patch(fc="0.3", label="after: DNet")]
    ax.legend(
        handles=keys, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False
    )
    return label_axes(ax, "probability")


def theta_text(theta: Theta) -> str:
    """The six parameters in numbers; those of space as mean and range over the detail frames."""

    def space(values: Tensor, digits: int) -> str:
        mean, low, high = (f"{float(v):.{digits}f}" for v in (values.mean(), *values.aminmax()))
        return mean if low == high else f"{mean} ({low} to {high})"

    return (
        f"time: μ_t {theta.mu_t.item():.2f} of the clip, δ_t {theta.delta_t.item():.1f} frames\n"
        f"rows: μ_y {space(theta.mu_y, 2)}, δ_y {space(theta.delta_y, 1)} px\n"
        f"columns: μ_x {space(theta.mu_x, 2)}, δ_x {space(theta.delta_x, 1)} px"
    )


def figure4(
    frames: Tensor,
    out: Output,
    class_names: Sequence[str],
    label: int | None,
    *,
    i: int = 0,
    truth: tuple[float, float] | None = None,
    square: tuple[float, float, float] | None = None,
) -> Figure:
    """Fig. 4 for one clip: what SNet sees, where DNet looks and what it sees, and the verdicts.

    Args:
        frames: raw frames I of the clip without padding. (C, T, H, W)
        out: the model's output for a batch that holds the clip.
        label: the true class; None: it is not known.
        i: the clip's place in the batch.
        truth: where the detail is known to be: first frame and end, in raw frames.
        square: the same in space, drawn on the raw frames between these: y, x, side of true_square.
    """
    if out.theta is None or out.logits is None:
        raise ValueError("Fig. 4 needs SNet and DNet: no picture for rows a1 and a2 of Table 2")
    clip = {k: v[i].detach().cpu().float() for k, v in vars(out).items() if torch.is_tensor(v)}
    theta, scale = out.theta.map(lambda v: v[i].detach().cpu().float()), scale_of(frames)
    synopsis, detail = clip["synopsis_frames"] * scale, clip["detail_volume"] * scale
    (T, H, W), (T_S, H_S, W_S), (T_D, H_D, W_D) = (v.shape[1:] for v in (frames, synopsis, detail))
    n = min(8, T_S, T_D)  # columns
    at_S, at_D = (torch.linspace(0, m - 1, n).round().int().tolist() for m in (T_S, T_D))
    times = detail_times(theta, T, T_D)[at_D]  # (n,)
    nearest = times.clamp(0, T - 1)  # beyond the clip: its border
    stamps = [[f"frame {int(t)}" for t in row] for row in (_uniform_times(T, T_S)[at_S], nearest)]
    figure, (top, middle, bottom), left, right = _page(n, (H_S / W_S, H / W, H_D / W_D))
    frame_strip(top, synopsis, at_S, f"What SNet sees: uniform frames, {W_S} x {H_S}", stamps[0])
    title = f"Where DNet looks: boxes on the raw frames, {W} x {H}"
    frame_strip(middle, frames[:, nearest.int()], None, title, [""] * n)
    for x, z in enumerate(at_D):
        _draw_box(middle, detail_box(theta, z, (H, W), (T_D, H_D, W_D)), BLUE, x)
        if truth and square and truth[0] <= times[x] <= truth[1]:
            true_square(middle, *square, x)
    frame_strip(bottom, detail, at_D, f"What DNet sees: details, {W_D} x {H_D}", stamps[1])
    time_ticks(left, theta, T, T_S, T_D, truth)
    words, where = theta_text(theta), left.transAxes
    left.text(0, -0.75, words, transform=where, va="top", size=FONT, linespacing=1.5)
    p, p_hat = clip["logits"].softmax(0), clip["scores"]
    topk_bars(right, class_names, p, p_hat, label, int(clip["topk_mask"].sum()))
    verdicts = {"true": label, "SNet": int(p.argmax()), "S2DNet": int(p_hat.argmax())}
    title = "; ".join(f"{k}: {class_names[v]}" for k, v in verdicts.items() if v is not None)
    y = 1 - 0.15 / figure.get_figheight()
    figure.text(0.02, y, textwrap.fill(title, 120), fontsize=FONT + 2, va="top")
    return figure


def _page(n: int, aspects: tuple[float, float, float]) -> tuple[Figure, Sequence[Axes], Axes, Axes]:
    """Fig. 4's Axes: strips of n frames, of these heights / widths, and two below; in inches."""
    strips = 9.6 / (n + (n - 1) * GAP) * sum(aspects)  # their height without what lies between
    above, between, below = 0.85, 0.45, 3.15
    total = above + strips + 2 * between + below
    figure = plt.figure(figsize=(10, total))
    grid = {"left": 0.02, "right": 0.98, "top": 1 - above / total, "bottom": below / total}
    grid["hspace"] = between / (strips / 3)
    axes = figure.subplots(3, height_ratios=aspects, gridspec_kw=grid)
    left = figure.add_axes((0.085, 1.65 / total, 0.415, 0.75 / total))
    return figure, axes, left, figure.add_axes((0.71, 0.5 / total, 0.26, 1.9 / total))


def detail_times(theta: Theta, T: int, T_D: int) -> Tensor:
    """p_t, where each detail frame is centred, in raw frames. (T_D,)"""
    return grid_centres(theta.mu_t.detach().cpu(), theta.delta_t.detach().cpu(), T_D, T)


def _uniform_times(T: int, T_S: int) -> np.ndarray:
    """Middles of the raw frames that the synopsis sampler takes. (T_S,)"""
    return uniform_times(torch.tensor([T]), T_S)[0].numpy() + 0.5


def _draw_box(
    ax: Axes, box: tuple[float, float, float, float], colour: tuple[float, ...], n: int = 0
) -> Axes:
    """Draw a box of detail_box on frame n of a strip; with a white rim, seen on any picture."""
    left, right, bottom, top = ax.images[n].get_extent()
    frame = Rectangle((left, top), right - left, bottom - top, transform=ax.transData)
    for edge, line in (("white", 3.5), (colour, 2)):
        corner, size = (left + box[0], box[1]), (box[2] - box[0], box[3] - box[1])
        patch = Rectangle(corner, *size, fill=False, ec=edge, lw=line)
        ax.add_patch(patch).set_clip_path(frame)  # a box that leaves its frame ends there
    return ax


def label_axes(ax: Axes, x: str, y: str = "") -> Axes:
    """Words along the axes, and all their text in FONT."""
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT)
    ax.tick_params(labelsize=FONT)
    return ax
