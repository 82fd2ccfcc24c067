"""One clip through Fig. 2, step by step: pictures of its tensors, and the source that makes them.

A function that takes Axes draws on them and returns them; `theta_steps`, `volume_steps`,
`fusion_steps` and `figure2` make a page each. Tensors and theta are one clip's, without the axis B.
"""

from __future__ import annotations

import inspect
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from s2dlib.config import Size
from s2dlib.data import synthetic
from s2dlib.data.dataset import Item, VideoDataset
from s2dlib.model import Output, S2DNet, scale_of
from s2dlib.report import figures
from s2dlib.report.figures import BLUE, FONT, GREEN, ORANGE, RED, detail_times, frame_strip
from s2dlib.sampler import Theta, gaussian_filters, grid_centres, uniform_times

WIDTH = 9  # inches, of a page
LONG = 30  # lines of source: what is longer is folded
RIM = 1.5  # side of the square around the true detail, in sizes of the detail


def make_clips(model: S2DNet) -> tuple[pd.DataFrame, list[Item]]:
    """New test clips of the built-in videos, one of each class, as the model is tested on them.

    Returns:
        Their rows of the CSV, in the order of classes, and the clips.

    Raises:
        ValueError: the model was trained on other videos.
    """
    if model.record.get("preset") not in synthetic.DATASETS:
        raise ValueError(
            f"expected a model of the built-in videos ({', '.join(synthetic.DATASETS)}), got one "
            f"of {model.record.get('preset', 'no training')}; for others see 05_figure4.ipynb"
        )
    with tempfile.TemporaryDirectory() as folder:
        csv = synthetic.write_dataset(Path(folder, "clips"), model.record["preset"], share=0.001)
        data = replace(model.data, csv=str(csv), cache=None, test_crops=1)
        test = VideoDataset(data, "test", train=False)
        table = test.table.sort_values("label")
        return table, [test[i] for i in table.index]


def explain(shapes: dict[str, Tensor], *parts: nn.Module | Callable[..., object]) -> Markdown:
    """The source of functions, or of what modules do, as it is now; and shapes, by symbol."""
    blocks = []
    for part in parts:
        function = type(part).forward if isinstance(part, nn.Module) else part
        text = textwrap.dedent(inspect.getsource(function)).rstrip()
        block, lines = f"```python\n{text}\n```", text.count("\n") + 1
        name = f"{function.__module__}.{function.__qualname__}"
        if lines > LONG:
            head = f"<details><summary><code>{name}</code>, {lines} lines</summary>"
            blocks += [head, block, "</details>"]
        else:
            blocks += [f"`{name}`", block]
    words = (f"`{symbol}` = {tuple(value.shape)}" for symbol, value in shapes.items())
    return Markdown("\n\n".join([*blocks, ", ".join(words)]))


def synopsis_steps(frames: Tensor, synopsis: Tensor, truth: Tensor) -> Figure:
    """The raw frames that the synopsis sampler takes, with the detail while it is seen, and V.

    Args:
        frames: raw frames I. (C, T, H, W)
        synopsis: V, in units of the frames. (C, T_S, H_S, W_S)
        truth: the detail's t, duration, size, y, x, in raw frames and pixels. (5,)
    """
    figure = plt.figure(figsize=(WIDTH, 2.9), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    times = uniform_times(torch.tensor([frames.shape[1]]), synopsis.shape[1])[0].tolist()
    frame_strip(upper, frames, times, "these raw frames (green: the detail, while it is seen)")
    for n, time in enumerate(times):
        mark_truth(upper, truth, time + 0.5, n)
    frame_strip(lower, synopsis * scale_of(frames), None, "$V$")
    return figure


def mark_truth(ax: Axes, truth: Tensor, time: float, n: int = 0) -> Axes:
    """The square around the detail on frame n of a strip, if it is seen at that time."""
    t, duration, size, y, x = truth.tolist()
    return figures.true_square(ax, y, x, RIM * size, n) if abs(time - t) <= duration / 2 else ax


def energy_strip(ax: Axes, features: Tensor, title: str) -> Axes:
    """Where features are large: the root mean square over channels, a map a frame. (C, T, h, w)"""
    return map_strip(ax, features.square().mean(0).sqrt(), title)


def map_strip(ax: Axes, maps: Tensor, title: str) -> Axes:
    """Maps beside each other where frame_strip would lay frames, on one scale. (T, h, w)

    It begins at zero; where some are negative, red is above zero and blue below.
    """
    high, signed = max(float(maps.abs().max()), 1e-9), bool(maps.min() < 0)
    low, name = (-high, "RdBu_r") if signed else (0, "magma")
    shares = ((maps.cpu() - low) / (high - low)).numpy()
    colours = torch.from_numpy(plt.get_cmap(name)(shares)[..., :3])  # (T, h, w, 3)
    return frame_strip(ax, colours.permute(3, 0, 1, 2), None, title)


def class_bars(
    ax: Axes, p: Tensor, mask: Tensor, label: int, title: str, names: Sequence[str] = ()
) -> Axes:
    """Probabilities p (N,), solid where s (N,) is 1; below them s, names; the true class is red."""
    classes, kept = range(len(p)), mask.bool().tolist()
    bars = ax.bar(classes, p.tolist(), color=[RED if n == label else BLUE for n in classes])
    for bar, is_kept in zip(bars, kept, strict=True):
        bar.set_alpha(1.0 if is_kept else 0.3)
    below = ax.get_xaxis_transform()  # x in classes, y in heights of the Axes
    squares = ["black" if is_kept else "white" for is_kept in kept]
    ax.scatter(
        classes, [-0.1] * len(p), s=24, marker="s", c=squares, edgecolors="0.4", linewidths=0.6,
        transform=below, clip_on=False,
    )  # fmt: skip
    ax.text(-1, -0.1, "s ", transform=below, ha="right", va="center", fontsize=FONT)
    ax.set(xlim=(-0.7, len(p) - 0.3), ylim=(0, 1), yticks=[0, 0.5, 1])
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.tick_params(axis="both", labelsize=8)
    ax.tick_params(axis="x", length=0, pad=20)
    for n, text in enumerate(ax.get_xticklabels()):
        text.set_color(RED if n == label else "black")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_facecolor("none")
    ax.set_title(title, loc="left", fontsize=FONT + 1)
    return ax


def vectors(
    ax: Axes, values: Tensor, title: str, names: Sequence[str], marked: int | None = None
) -> Axes:
    """Vectors (n, C) as rows of colours: blue below zero, red above; the marked name is red."""
    most = float(values.abs().max())
    ax.imshow(values.cpu().numpy(), aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0, labelsize=8)
    for n, text in enumerate(ax.get_yticklabels()):
        text.set_color(RED if n == marked else "black")
    ax.set_title(title, loc="left", fontsize=FONT + 1)
    ax.set_xlabel(f"channel (darkest: {most:.1f})", fontsize=FONT)
    ax.tick_params(axis="x", labelsize=FONT)
    return ax


def box_strip(
    ax: Axes, frames: Tensor, theta: Theta, size: Size, title: str, truth: Tensor | None = None
) -> Axes:
    """The raw frames I (C, T, H, W) nearest to the detail frames, with the box that each covers.

    size: (T_D, H_D, W_D). truth: as of synopsis_steps.
    """
    ax.axis("off")
    ax.set_title(title, loc="left", fontsize=FONT + 1)
    T, T_D = frames.shape[1], size[0]
    for z, time in enumerate(detail_times(theta, T, T_D).tolist()):
        cell = ax.inset_axes((z / T_D, 0, 0.95 / T_D, 1))
        nearest = min(max(int(time), 0), T - 1)  # beyond the clip: its border
        figures.boxes(cell, frames[:, nearest], theta, z, size)
        cell.set_xlabel(f"{time:.1f}", fontsize=FONT, labelpad=2)
        if truth is not None:
            mark_truth(cell, truth, time)
    return ax


def theta_steps(frames: Tensor, theta: Theta, size: Size, truth: Tensor) -> Figure:
    """theta on the raw frames, as of box_strip, and over time: bars that detail frames cover."""
    (T, H, W), (T_D, H_D, W_D) = frames.shape[1:], size
    figure = plt.figure(figsize=(WIDTH, 3.7), layout="constrained")
    at = figure.subplot_mosaic([["I"] * 2, ["rows", "columns"]], height_ratios=[2, 3])
    title = "blue: what DNet reads at these moments; green: the detail"
    box_strip(at["I"], frames, theta, size, title, truth)
    times = detail_times(theta, T, T_D).tolist()
    t, duration, side, y, x = truth.tolist()
    for name, mu, delta, length, n_out, place in (
        ("rows", theta.mu_y, theta.delta_y, H, H_D, y),
        ("columns", theta.mu_x, theta.delta_x, W, W_D, x),
    ):
        ax, reach = at[name], (delta.cpu() * n_out / 2).tolist()
        ax.errorbar(times, (mu.cpu() * length).tolist(), reach, fmt="o", color=BLUE, elinewidth=5)
        corner = (t - duration / 2, place - RIM * side / 2)
        ax.add_patch(Rectangle(corner, duration, RIM * side, color=GREEN, alpha=0.4, zorder=3))
        ax.set(xlim=(0, T), ylim=(length, 0), yticks=[0, length])
        figures.label_axes(ax, "raw frame of the clip", name)
    return figure


def volume_steps(frames: Tensor, theta: Theta, volume: Tensor) -> Figure:
    """The filters along time and, for the middle detail frame, rows and columns; what they give.

    frames: (C, T, H, W). volume: V-hat, in units of the frames. (C, T_D, H_D, W_D)
    """
    (T, H, W), (T_D, H_D, W_D) = frames.shape[1:], volume.shape[1:]
    figure = plt.figure(figsize=(WIDTH, 3.6), layout="constrained")
    at = figure.subplot_mosaic([["G_T", "G_Y", "G_X"], ["V-hat"] * 3], height_ratios=[3, 2])
    z = T_D // 2
    for name, axis, mu, delta, n_out, n_in in (
        ("G_T", "frame", theta.mu_t, theta.delta_t, T_D, T),
        ("G_Y", "row", theta.mu_y[z], theta.delta_y[z], H_D, H),
        ("G_X", "column", theta.mu_x[z], theta.delta_x[z], W_D, W),
    ):
        G = gaussian_filters(grid_centres(mu, delta, n_out, n_in), n_in)  # (n_out, n_in)
        words = f"${name}$" + ("" if name == "G_T" else f" of detail frame {z}")
        figures.filter_bank(at[name], G, axis).set_title(words, loc="left", fontsize=FONT + 1)
    frame_strip(at["V-hat"], volume * scale_of(frames), None, r"$\hat{V}$: the detail frames")
    return figure


def fusion_steps(before: Tensor, after: Tensor, added: Tensor) -> Figure:
    """Features of res3 before and after the fusion, their difference, and what m adds to them.

    before, after: e-hat_3 and e-hat'_3. (C_3, T_D, h, w). added: W_m m. (C_3,)
    """
    figure = plt.figure(figsize=(WIDTH, 5.6), layout="constrained")
    axes = figure.subplots(4, 1, height_ratios=[4, 4, 4, 1])
    energy_strip(axes[0], before, r"before: energy of $\hat{e}_3$")
    energy_strip(axes[1], after, r"after: energy of $\hat{e}'_3$")
    map_strip(axes[2], (after - before).mean(0), "after - before, mean over channels")
    vectors(axes[3], added[None], "$W_m m$, what $m$ adds: one number a channel", [""])
    return figure


# Where Fig. 2's tensors are drawn: left, bottom, width, height, as shares of the figure's.
PLACES = {
    "V": (0.03, 0.80, 0.37, 0.10), "e": (0.47, 0.80, 0.25, 0.10), "p": (0.81, 0.77, 0.17, 0.15),
    "I": (0.03, 0.50, 0.37, 0.10), "m": (0.47, 0.53, 0.27, 0.05),
    "V-hat": (0.03, 0.24, 0.37, 0.10), "e-hat": (0.47, 0.24, 0.25, 0.10),
    "scores": (0.81, 0.27, 0.17, 0.15),
}  # fmt: skip
ARROWS = (  # start and end; what is done on the way
    ((0.21, 0.65), (0.21, 0.78), "synopsis sampler"),
    ((0.41, 0.85), (0.46, 0.85), "$f_s$"),
    ((0.73, 0.85), (0.78, 0.85), "$h_s$"),
    ((0.52, 0.77), (0.41, 0.62), r"$f_\theta$"),
    ((0.60, 0.77), (0.60, 0.64), "$f_m$"),
    ((0.80, 0.71), (0.73, 0.62), "$s$"),
    ((0.21, 0.46), (0.21, 0.38), "detail sampler"),
    ((0.41, 0.29), (0.46, 0.29), "$f_d$"),
    ((0.60, 0.51), (0.60, 0.39), "$f_u$"),
    ((0.73, 0.29), (0.78, 0.29), "$h_d$"),
    ((0.68, 0.51), (0.75, 0.33), "$m$"),
    ((0.90, 0.70), (0.90, 0.49), r"$\cdot\, s$"),
)


def figure2(
    frames: Tensor, out: Output, features: Tensor, detail_features: Tensor,
    class_names: Sequence[str], label: int,
) -> Figure:  # fmt: skip
    """Fig. 2 with a clip's own tensors in their places.

    Args:
        frames: raw frames I. (C, T, H, W)
        out: the model's output for a batch of this clip alone.
        features: e. (C_S, T_S, h, w)
        detail_features: e-hat. (C_D, T_D, h, w)
        label: the true class.

    Raises:
        ValueError: the model lacks one of its networks.
    """
    if out.theta is None or out.logits is None:
        raise ValueError("Fig. 2 needs SNet and DNet: no picture for rows a1 and a2 of Table 2")
    clip = {k: v[0].cpu() for k, v in vars(out).items() if torch.is_tensor(v)}
    theta, mask = out.theta.map(lambda v: v[0].cpu()), clip["topk_mask"]
    synopsis, volume = (clip[k] * scale_of(frames) for k in ("synopsis_frames", "detail_volume"))
    size = (volume.shape[1], volume.shape[2], volume.shape[3])
    figure = plt.figure(figsize=(12, 6.6))
    for name, bottom, top, colour in (("SNet", 0.70, 0.99, BLUE), ("DNet", 0.01, 0.42, ORANGE)):
        block = Rectangle((0.01, bottom), 0.98, top - bottom, transform=figure.transFigure)
        block.set(fc=colour, alpha=0.08, zorder=-1)
        figure.add_artist(block)
        figure.text(0.02, bottom + 0.02, name, fontsize=FONT + 5, color=colour, weight="bold")
    at = {name: figure.add_axes(place) for name, place in PLACES.items()}
    frame_strip(at["V"], synopsis, None, f"$V$: {_size(synopsis)}")
    energy_strip(at["e"], features, f"$e$: {_size(features)}, {len(features)} channels")
    class_bars(at["p"], clip["logits"].softmax(0), mask, label, "$p$, and its top $k$: $s$")
    box_strip(at["I"], frames, theta, size, rf"$I$: {_size(frames)}, and $\theta$ on it")
    vectors(at["m"], clip["context"][None], f"$m$: {len(clip['context'])} numbers", [""])
    at["m"].set(xlabel="", xticks=[])
    frame_strip(at["V-hat"], volume, None, rf"$\hat{{V}}$: {_size(volume)}")
    words = rf"$\hat{{e}}$: {_size(detail_features)}, {len(detail_features)} channels"
    energy_strip(at["e-hat"], detail_features, words)
    class_bars(
        at["scores"], clip["scores"], mask, label, r"$\hat{p} \cdot s$: the verdict", class_names
    )
    snet, s2dnet = (class_names[int(clip[key].argmax())] for key in ("logits", "scores"))
    words = f"true: {class_names[label]}\nSNet: {snet}\nS2DNet: {s2dnet}"
    figure.text(0.47, 0.04, words, fontsize=FONT + 3, linespacing=1.6)
    for start, end, word in ARROWS:
        _arrow(figure, start, end, word)
    return figure


def _size(volume: Tensor) -> str:
    """T x H x W in words. (C, T, H, W)"""
    return " x ".join(str(n) for n in volume.shape[1:])


def _arrow(figure: Figure, start: tuple[float, float], end: tuple[float, float], word: str) -> None:
    """An arrow between two places of a figure, with a word: above it, or to its right."""
    line = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="0.35", lw=1.5)
    line.set_transform(figure.transFigure)
    figure.add_artist(line)
    (x, y), right = ((a + b) / 2 for a, b in zip(start, end, strict=True)), end[0] - start[0]
    flat = start[1] == end[1]
    x, y = (x, y + 0.02) if flat else (x + 0.01, y + (0.02 if right > 0 else -0.02) * (right != 0))
    figure.text(x, y, word, fontsize=FONT + 3, ha="center" if flat else "left", va="center")
