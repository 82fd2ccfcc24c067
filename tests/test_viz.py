"""Pictures show the numbers they are given: places, times, classes; of gray clips too."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from s2dlib.model import Output
from s2dlib.report.figures import (
    BLUE,
    GAP,
    GREEN,
    ORANGE,
    RED,
    boxes,
    figure4,
    filter_bank,
    frame_strip,
    theta_text,
    time_ticks,
    topk_bars,
    true_square,
)
from s2dlib.report.film import film
from s2dlib.report.plots import accuracy_cost, curves, exit_curve
from s2dlib.sampler import DetailSampler, UniformSampler, gaussian_filters

T, H, W = 32, 40, 60
SIZE_S, SIZE_D = (4, 10, 15), (8, 8, 12)


def one(theta):
    return theta.map(lambda v: v[0])


def output(frames, theta, n_classes=7):
    logits = torch.arange(n_classes).float()[None]  # SNet's top 5: 6, 5, 4, 3, 2
    mask = (logits >= 2).float()
    n = torch.tensor([T])
    synopsis = UniformSampler(SIZE_S)(frames[None], n)
    volume = DetailSampler(SIZE_D)(frames[None], theta, n)
    scores = (-logits).softmax(1) * mask  # S2DNet's verdict: 2
    return Output(scores, logits, mask, theta, None, synopsis, volume, -logits)


def test_the_box_is_where_eq_6_puts_the_detail_frame(ax, theta):
    boxes(ax, torch.zeros(3, H, W, dtype=torch.uint8), one(theta), 3, SIZE_D)
    rim, box = (p for p in ax.patches if isinstance(p, Rectangle))
    assert box.get_bbox().bounds == pytest.approx((12 - 6, 20 - 8, 12, 16))
    assert rim.get_bbox().bounds == box.get_bbox().bounds
    assert ax.get_xlim() == (0, W) and ax.get_ylim() == (H, 0)


def test_the_ticks_lie_at_the_frames_that_are_read(ax, theta):
    time_ticks(ax, one(theta), T, 4, 8, truth=(5, 9))
    uniform, detail = (c.get_positions() for c in ax.collections)
    assert uniform == pytest.approx([4.5, 12.5, 20.5, 28.5])
    assert detail == pytest.approx(range(1, 17, 2))
    assert ax.patches[-1].get_bbox().intervalx == pytest.approx((5, 9))
    assert ax.get_xlabel() == "raw frame of the clip"


@pytest.mark.parametrize("frames", [torch.rand(1, T, H, W), torch.ones(3, T, H, W).byte()])
def test_a_strip_shows_the_frames_asked_for_gray_or_not(ax, frames):
    frame_strip(ax, frames, [0, 9], "a clip")
    assert len(ax.images) == 2 and ax.images[1].get_array().shape == (H, W, 3)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "9"]


def test_the_true_class_is_red_and_shown_even_where_snet_misses_it(ax):
    p = torch.tensor([0.1, 0.6, 0.3])
    topk_bars(ax, ["jump", "run", "walk"], p, torch.tensor([0.0, 0.2, 0.8]), label=0, k=2)
    labels = ax.get_yticklabels()
    assert [t.get_text() for t in labels] == ["run", "walk", "jump (true)"]
    assert [to_rgb(t.get_color()) == RED for t in labels] == [False, False, True]
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([0.6, 0.3, 0.1, 0.2, 0.8, 0.0])  # before, then after


def test_a_curve_skips_epochs_without_a_value_and_a_missing_column_is_an_error(ax):
    history = pd.DataFrame({"epoch": [0, 1, 2], "val_top1": [10.0, None, 30.0]})
    curves(ax, history, ["val_top1"], "top-1 (%)")
    assert ax.lines[0].get_xdata().tolist() == [0, 2]
    with pytest.raises(ValueError, match="no column .*loss.*it has epoch, val_top1"):
        curves(ax, history, ["loss"], "loss")


def test_a_filter_bank_has_a_row_an_output_and_labels_with_the_axis(ax):
    G = gaussian_filters(torch.tensor([2.0, 4.0]), 6)
    filter_bank(ax, G, "frame")
    assert ax.images[0].get_array().shape == (2, 6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("raw frame", "detail frame")


def test_theta_in_numbers_gives_a_range_only_where_it_varies(theta):
    theta.mu_y[0, 0] = 0.9
    text = theta_text(one(theta))
    assert "μ_t 0.25 of the clip, δ_t 2.0 frames" in text
    assert "μ_y 0.55 (0.50 to 0.90), δ_y 2.0 px" in text and "μ_x 0.20, δ_x 1.0 px" in text


@pytest.mark.parametrize("channels", [1, 3])
def test_figure_4_says_the_verdicts_and_every_text_is_legible_and_inside(channels, theta, tmp_path):
    frames = torch.randint(0, 256, (channels, T, H, W), dtype=torch.uint8)
    names = [f"action number {n} of a class with a long name" for n in range(7)]
    figure = figure4(frames, output(frames, theta), names, 1, truth=(5, 9))
    figure.savefig(tmp_path / "figure4.png", dpi=100)
    texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    assert min(t.get_fontsize() for t in texts) >= 8
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) >= 0 and drawn.x1 <= width and drawn.y1 <= height
    title = (
        figure.texts[0].get_text().replace("\n", " ").replace(" of a class with a long name", "")
    )
    assert title == "true: action number 1; SNet: action number 6; S2DNet: action number 2"
    plt.close(figure)


def test_figure_4_without_a_known_class_names_the_verdicts_alone(theta):
    frames = torch.randint(0, 256, (3, T, H, W), dtype=torch.uint8)
    figure = figure4(frames, output(frames, theta), [f"class {n}" for n in range(7)], None)
    assert figure.texts[0].get_text() == "SNet: class 6; S2DNet: class 2"
    assert not [t for t in figure.findobj(Text) if "(true)" in t.get_text()]
    plt.close(figure)


def test_colours_are_those_of_seaborns_palette_for_the_colour_blind():
    assert [BLUE, ORANGE, GREEN, RED] == sns.color_palette("colorblind")[:4]


@pytest.mark.parametrize("unit", [1, 255])
def test_the_film_shows_each_frame_its_window_and_the_nearest_detail(theta, unit):
    shade = torch.linspace(0.2, 0.8, T)[None, :, None, None].expand(1, T, H, W)
    frames = shade if unit == 1 else (shade * 255).byte()
    out = output(frames, theta)
    shots = film(frames, out, height=80)
    assert shots.shape == (T, 96, 120 + 8 + 120, 3) and shots.dtype == torch.uint8
    for t in (3, 20):  # details lie at 1, 3, ..., 15, two frames apart
        left, right = shots[t, :80, :120].float(), shots[t, 40, 188, 0].item()
        assert left[2, 110].tolist() == pytest.approx([255 * shade[0, t, 0, 0].item()] * 3, abs=1)
        blue = (left - 255 * torch.tensor(BLUE)).abs().amax(-1) < 1.5
        if t == 3:  # rows 12 to 28 and columns 6 to 18 of the clip, twice as large
            rows, columns = blue.any(1).nonzero(), blue.any(0).nonzero()
            assert (rows.min(), rows.max()) == (24, 57) and (columns.min(), columns.max()) == (
                12,
                37,
            )
            z = 1
        else:
            assert not blue.any()
            z = 7
        seen = 255 / unit * out.detail_volume[0, 0, z, 4, 6].item()
        assert right == pytest.approx(seen if t == 3 else seen / 3, abs=2)


def test_figure_4_of_a_network_alone_is_an_error(theta):
    frames = torch.zeros(3, T, H, W, dtype=torch.uint8)
    out = output(frames, theta)
    out.theta = None
    with pytest.raises(ValueError, match="a1 and a2"):
        figure4(frames, out, ["x"] * 7, 0)


def test_accuracy_is_plotted_against_the_cost_of_all_views(ax):
    lines = pd.DataFrame(
        {
            "row": ["TSM R50", "S2DNet MN2/R50"],
            "top1": [63.4, 66.4],
            "gflops": [65.0, 35.0],
            "views": [6.0, 1.0],
            "our_top1": [math.nan, 50.0],
            "our_gmacs": [math.nan, 36.6],
        }
    )
    accuracy_cost(ax, lines, "Something V2")
    points = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert points["others, paper"].tolist() == [[390.0, 63.4]]
    assert points["S2DNet, paper"].tolist() == [[35.0, 66.4]]
    assert points["ours"][~np.isnan(points["ours"]).any(1)].tolist() == [[36.6, 50.0]]
    assert {text.get_text() for text in ax.texts} == {"TSM R50", "S2DNet MN2/R50"}
    assert ax.get_xscale() == "log"


def test_the_curve_of_early_exits_rings_the_threshold_chosen(ax):
    curve = pd.DataFrame(
        {"exit_at": [2.0, 0.9, 0.5], "gmacs": [5.0, 4.0, 1.0], "top1": [80.0, 79.0, 40.0]}
    )
    exit_curve(ax, curve, exit_at=0.7)
    line, ring = ax.lines
    assert line.get_xydata().tolist() == [[5.0, 80.0], [4.0, 79.0], [1.0, 40.0]]
    assert ring.get_xydata().tolist() == [[4.0, 79.0]]


def test_the_true_square_is_centred_on_the_detail_and_drawn_while_it_is_there(ax, theta):
    frames = torch.zeros(3, T, H, W, dtype=torch.uint8)  # shown: detail frames at 1, 5, 11, 15
    true_square(frame_strip(ax, frames[:, :1]), 30.0, 20.0, 6.0)
    assert ax.patches[-1].get_bbox().bounds == pytest.approx((17, 27, 6, 6))
    known = {"truth": (4.0, 12.0), "square": (30.0, 20.0, 6.0)}
    figure = figure4(frames, output(frames, theta), ["x"] * 7, 0, **known)
    squares = [p for p in figure.findobj(Rectangle) if p.get_edgecolor() == (*GREEN, 1)]
    for square, column in zip(squares, (1, 2), strict=True):  # on the second frame and the third
        left = column * W * (1 + GAP)
        assert square.get_bbox().bounds == pytest.approx((left + 17, 27, 6, 6))
        clip = square.get_clip_box().transformed(square.axes.transData.inverted())
        assert clip.intervalx == pytest.approx((left, left + W))  # cut where its frame ends
    plt.close(figure)
