"""Figures: frame strips, filters, where the details lie in time and space, Fig. 4 (Sec. 4.6).

Each function draws on the Axes it is given and returns them. A theta here is one clip's:
out.theta.map(lambda v: v[i]). Frame r of a clip, and pixel r of a frame, span r to r + 1.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from s2dlib.model import Output
from s2dlib.sampler import Theta, grid_centres, uniform_times

Colour = tuple[float, float, float]  # red, green, blue
BLUE, ORANGE, GREEN, RED = sns.color_palette("colorblind")[:4]
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
    images = [_image(frames[:, i]) for i in indices]
    H, W = images[0].shape[:2]
    step = W * (1 + GAP)
    for n, image in enumerate(images):
        ax.imshow(image, extent=(n * step, n * step + W, H, 0))
    ax.set(xlim=(0, (len(images) - 1) * step + W), ylim=(H, 0))
    names = [str(i) for i in indices] if labels is None else labels
    ax.set_xticks([n * step + W / 2 for n in range(len(images))], names, fontsize=FONT)
    return _hide_axes(ax, title)


def filter_bank(ax: Axes, G: Tensor, axis: str) -> Axes:
    """The weights of a bank of filters along an axis ("frame", "row", "column"), Eq. 7.

    G: a row an output. (n_out, n_in)
    """
    n_out, n_in = G.shape
    weights, extent = G.detach().cpu().numpy(), (0, n_in, n_out, 0)
    image = ax.imshow(weights, cmap="viridis", aspect="auto", extent=extent, vmin=0)
    label_axes(ax, f"raw {axis}", f"detail {axis}")
    ax.grid(False)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("weight", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    return ax


def time_ticks(
    ax: Axes,
    theta: Theta,
    T: int,
    T_S: int,
    T_D: int,
    seconds: float | None = None,
    truth: tuple[float, float] | None = None,
) -> Axes:
    """Where SNet's uniform frames and DNet's detail frames lie over the clip of T raw frames.

    Args:
        seconds: of one raw frame, frame_stride / fps; None: the axis counts frames.
        truth: where the detail is known to be, shaded; first frame and end, in raw frames.
    """
    unit = seconds or 1.0
    uniform = _uniform_times(T, T_S) * unit
    detail = detail_times(theta, T, T_D).numpy() * unit
    ax.axvspan(0, T * unit, color="0.93", zorder=0)
    if truth is not None:
        ax.axvspan(truth[0] * unit, truth[1] * unit, color=GREEN, alpha=0.35, lw=0, zorder=1)
        middle = (truth[0] + truth[1]) / 2 * unit
        ax.text(middle, 1.62, "true detail", color=GREEN, ha="center", va="bottom", fontsize=FONT)
    ax.eventplot([uniform, detail], lineoffsets=[1, 0], linelengths=0.7, colors=["0.35", BLUE])
    first, last = min(0, detail.min()), max(T * unit, detail.max())
    margin = 0.01 * (last - first)
    ax.set(xlim=(first - margin, last + margin), ylim=(-0.6, 1.6))
    ax.set_yticks([1, 0], ["uniform", "detail"], fontsize=FONT)
    return _named_rows(ax, "raw frame of the clip" if seconds is None else "time in the clip (s)")


def detail_box(
    theta: Theta, z: int, extent: Sequence[int], size: Sequence[int]
) -> tuple[float, float, float, float]:
    """What detail frame z covers, in raw pixels: y and x of its middle, height, width.

    extent: H, W of the raw frames. size: (T_D, H_D, W_D).
    """
    (H, W), (_, H_D, W_D) = extent, size
    mu_y, mu_x = theta.mu_y[z].item(), theta.mu_x[z].item()
    return mu_y * H, mu_x * W, H_D * theta.delta_y[z].item(), W_D * theta.delta_x[z].item()


def boxes(ax: Axes, frame: Tensor, theta: Theta, z: int, size: tuple[int, int, int]) -> Axes:
    """The box that detail frame z (from 0) covers, on a raw frame.

    Args:
        frame: uint8, or float in [0, 1]. (C, H, W)
        size: (T_D, H_D, W_D)
    """
    H, W = frame.shape[-2:]
    ax.imshow(_image(frame), extent=(0, W, H, 0))
    _draw_box(ax, detail_box(theta, z, (H, W), size), BLUE)
    ax.set(xlim=(0, W), ylim=(H, 0), xticks=[])
    return _hide_axes(ax, "")


def true_square(ax: Axes, y: float, x: float, side: float) -> Axes:
    """Where the detail is known to be, on a raw frame; y, x of its centre and side in pixels."""
    return _draw_box(ax, (y, x, side, side), GREEN)


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
    for y, n in enumerate(shown):
        colour = RED if n == label else BLUE
        for p, offset, alpha in ((p_before[n], -0.2, 0.4), (p_after[n], 0.2, 1.0)):
            ax.barh(y + offset, float(p), height=0.38, color=colour, alpha=alpha, lw=0)
            ax.text(float(p) + 0.01, y + offset, f"{p:.2f}", va="center", fontsize=8)
    words = [textwrap.shorten(names[n], 42, placeholder=" …") for n in shown]
    words = [f"{w} (true)" if n == label else w for n, w in zip(shown, words, strict=True)]
    ax.set_yticks(range(len(shown)), [textwrap.fill(w, 28) for w in words], fontsize=FONT)
    if label is not None:
        ax.get_yticklabels()[shown.index(label)].set_color(RED)
    ax.set(xlim=(0, 1.12), xticks=[0, 0.5, 1], ylim=(len(shown) - 0.5, -0.5))
    ax.spines[["top", "right"]].set_visible(False)
    keys = [Patch(fc="0.3", alpha=0.4, label="before: SNet"), Patch(fc="0.3", label="after: DNet")]
    ax.legend(
        handles=keys, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False
    )
    return _named_rows(ax, "probability")


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
    seconds: float | None = None,
    truth: tuple[float, float] | None = None,
    square: tuple[float, float, float] | None = None,
) -> Figure:
    """Fig. 4 for one clip: what SNet sees, where DNet looks and what it sees, and the verdicts.

    Args:
        frames: raw frames I of the clip without padding. (C, T, H, W)
        out: the model's output for a batch that holds the clip.
        label: the true class; None: it is not known.
        i: the clip's place in the batch.
        seconds: of one raw frame, frame_stride / fps; None: times are counted in frames.
        truth: where the detail is known to be: first frame and end, in raw frames.
        square: the same in space, drawn on the raw frames between these: y, x, side of true_square.
    """
    if out.theta is None or out.logits is None:
        raise ValueError("Fig. 4 needs SNet and DNet: no picture for rows a1 and a2 of Table 2")
    clip = {k: v[i].detach().cpu().float() for k, v in vars(out).items() if torch.is_tensor(v)}
    theta = out.theta.map(lambda v: v[i].detach().cpu().float())
    unit = 1.0 if frames.is_floating_point() else 255.0
    synopsis, detail = clip["synopsis_frames"] / unit, clip["detail_volume"] / unit
    (T, H, W), (T_S, H_S, W_S), (T_D, H_D, W_D) = (v.shape[1:] for v in (frames, synopsis, detail))
    n = min(8, T_S, T_D)  # columns
    at_S, at_D = (torch.linspace(0, last - 1, n).round().int().tolist() for last in (T_S, T_D))
    times = detail_times(theta, T, T_D)[at_D].clamp(0, T - 1)  # beyond the clip: its border
    stamps = [  # below the frames of either strip
        [f"{float(t) * seconds:.2f} s" if seconds else f"frame {int(t)}" for t in row]
        for row in (_uniform_times(T, T_S)[at_S], times)
    ]
    page, words = _Page(n, [H_S / W_S, H / W, H_D / W_D]), theta_text(theta)
    title = f"What SNet sees: uniform frames, {W_S} x {H_S}"
    frame_strip(page.axes(0), synopsis, at_S, title, stamps[0])
    _box_row(page, frames, theta, at_D, (T_D, H_D, W_D), truth and square and (*truth, *square))
    frame_strip(page.axes(2), detail, at_D, f"What DNet sees: details, {W_D} x {H_D}", stamps[1])
    ax = time_ticks(page.axes(3, 0.085, 0.5, 0.75), theta, T, T_S, T_D, seconds, truth)
    ax.text(0, -0.75, words, transform=ax.transAxes, va="top", size=FONT, linespacing=1.5)
    _verdicts(page, clip, class_names, label)
    return page.figure


class _Page:
    """Rows of Fig. 4: two strips of n frames, boxes on frames between them, and the rest."""

    WIDTH, LAST = 10.0, 1.9  # inches: of the page; height of the last row
    SPACES = (0.85, 0.5, 0.28, 0.75, 0.5)  # above each row, and below the last; inches

    def __init__(self, n: int, aspects: Sequence[float]) -> None:
        self.column = 0.96 * self.WIDTH / (n + (n - 1) * GAP)  # a frame of a strip, inches
        self.heights = [*(self.column * aspect for aspect in aspects), self.LAST]
        self.total = sum(self.heights) + sum(self.SPACES)
        self.figure = plt.figure(figsize=(self.WIDTH, self.total))

    def axes(
        self, row: int, left: float = 0.02, right: float = 0.98, height: float | None = None
    ) -> Axes:
        """Axes at the top of a row; edges as shares of the page, height in inches."""
        top = sum(self.SPACES[: row + 1]) + sum(self.heights[:row])
        height = self.heights[row] if height is None else height
        bottom = 1 - (top + height) / self.total
        return self.figure.add_axes((left, bottom, right - left, height / self.total))


def _box_row(
    page: _Page,
    frames: Tensor,
    theta: Theta,
    shown: Sequence[int],
    size: tuple[int, int, int],
    known: tuple[float, ...] | None,
) -> None:
    """Row 1 of Fig. 4: boxes of the detail frames shown; known: truth and square of figure4."""
    T, H, W = frames.shape[1:]
    times = detail_times(theta, T, size[0])  # (T_D,)
    for x, z in enumerate(shown):
        left = 0.02 + x * page.column * (1 + GAP) / page.WIDTH
        ax = page.axes(1, left, left + page.column / page.WIDTH)
        boxes(ax, frames[:, int(times[z].clamp(0, T - 1))], theta, z, size)
        if known and known[0] <= times[z] <= known[1]:
            true_square(ax, *known[2:])
        if x == 0:
            _hide_axes(ax, f"Where DNet looks: boxes on the raw frames, {W} x {H}")


def _verdicts(
    page: _Page, clip: dict[str, Tensor], class_names: Sequence[str], label: int | None
) -> None:
    """Fig. 4's bars, and its title: what SNet and S2DNet say."""
    p, p_hat, k = clip["logits"].softmax(0), clip["scores"], int(clip["topk_mask"].sum())
    topk_bars(page.axes(3, 0.71, 0.97), class_names, p, p_hat, label, k)
    title = f"SNet: {class_names[int(p.argmax())]}; S2DNet: {class_names[int(p_hat.argmax())]}"
    title = title if label is None else f"true: {class_names[label]}; {title}"
    y = 1 - 0.15 / page.total
    page.figure.text(0.02, y, textwrap.fill(title, 120), fontsize=FONT + 2, va="top")


def detail_times(theta: Theta, T: int, T_D: int) -> Tensor:
    """p_t, where each detail frame is centred, in raw frames. (T_D,)"""
    return grid_centres(theta.mu_t.detach().cpu(), theta.delta_t.detach().cpu(), T_D, T)


def _uniform_times(T: int, T_S: int) -> np.ndarray:
    """Middles of the raw frames that the synopsis sampler takes. (T_S,)"""
    return uniform_times(torch.tensor([T]), T_S)[0].numpy() + 0.5


def _image(frame: Tensor) -> np.ndarray:
    """(C, H, W), C 1 or 3 -> (H, W, 3), as imshow wants it."""
    image = frame.detach().cpu().expand(3, -1, -1).permute(1, 2, 0)  # (H, W, 3)
    return (image.clamp(0, 1) if image.is_floating_point() else image).numpy()


def _draw_box(ax: Axes, box: tuple[float, float, float, float], colour: Colour) -> Axes:
    """Draw y, x of the middle, height, width; with a white rim, seen on any picture."""
    y, x, height, width = box
    for edge, line in (("white", 3.5), (colour, 2)):
        corner = (x - width / 2, y - height / 2)
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec=edge, lw=line))
    return ax


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Words along both axes, and all their text in FONT."""
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT)
    ax.tick_params(labelsize=FONT)


def _named_rows(ax: Axes, x: str) -> Axes:
    """Words along x; the rows have names, and no ticks."""
    ax.set_xlabel(x, fontsize=FONT)
    ax.tick_params(axis="x", labelsize=FONT)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    return ax


def _hide_axes(ax: Axes, title: str) -> Axes:
    """Pictures: no frame, no grid, no vertical ticks; the title at the left."""
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=FONT + 1)
    return ax
