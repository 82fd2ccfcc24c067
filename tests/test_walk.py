"""The walk through Fig. 2 draws the numbers it is given, and shows the source as it is."""

import inspect

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from s2dlib.data.synthetic import class_names
from s2dlib.model import S2DNet, build_model
from s2dlib.report import walk
from s2dlib.report.figures import BLUE, RED
from s2dlib.synopsis import topk_mask

T, H, W = 32, 40, 60
SIZE = (8, 8, 12)


@pytest.fixture
def theta(theta):
    """Of one clip, without the axis B."""
    return theta.map(lambda v: v[0])


def test_a_page_shows_the_source_of_functions_and_modules_and_folds_what_is_long():
    model = build_model("synthetic")
    text = walk.explain({"V": torch.zeros(2, 3)}, topk_mask, model.dnet, model.snet.backbone).data
    assert f"```python\n{inspect.getsource(topk_mask)}```" in text
    assert "`s2dlib.synopsis.topk_mask`" in text and text.endswith("`V` = (2, 3)")
    assert "\ndef forward(self, volume: Tensor" in text  # DNet's, as if it were no method
    assert text.count("<details>") == text.count("</details>") == 0
    text = walk.explain({}, model.snet.theta_head.branches).data
    assert text.startswith("<details><summary><code>s2dlib.synopsis.AttentionHead.forward</code>")


def test_bars_are_solid_where_s_is_one_and_red_for_the_true_class(ax):
    p, s = torch.tensor([0.2, 0.7, 0.1]), torch.tensor([1.0, 1.0, 0.0])
    walk.class_bars(ax, p, s, 1, "p", ["jump", "run", "walk"])
    bars = ax.patches
    assert [bar.get_height() for bar in bars] == pytest.approx(p.tolist())
    assert [bar.get_alpha() for bar in bars] == [1, 1, 0.3]
    assert [to_rgb(bar.get_facecolor()[:3]) for bar in bars] == [BLUE, RED, BLUE]
    assert [to_rgb(text.get_color()) == RED for text in ax.get_xticklabels()] == [
        False,
        True,
        False,
    ]
    assert [c[0] for c in ax.collections[0].get_facecolors()] == [0, 0, 1]  # black, black, white


def test_energy_is_the_root_mean_square_on_one_scale_from_zero(ax):
    features = torch.zeros(4, 2, 1, 1)  # of two frames; the first is dark
    features[0, 1] = -2
    walk.energy_strip(ax, features, "e")
    dark, bright = (image.get_array()[0, 0].tolist() for image in ax.images)
    assert dark == pytest.approx(plt.get_cmap("magma")(0.0)[:3])
    assert bright == pytest.approx(plt.get_cmap("magma")(1.0)[:3])


def test_differences_are_white_at_zero(ax):
    walk.map_strip(ax, torch.tensor([[[0.0]], [[-1.0]], [[0.5]]]), "after - before")
    colours = [image.get_array()[0, 0].tolist() for image in ax.images]
    wanted = [plt.get_cmap("RdBu_r")(share)[:3] for share in (0.5, 0.0, 0.75)]
    assert colours == [pytest.approx(colour) for colour in wanted]


def test_boxes_lie_where_theta_says_on_the_frame_of_that_moment(ax, theta):
    frames = torch.arange(T, dtype=torch.uint8)[:, None, None].expand(1, T, H, W)
    walk.box_strip(ax, frames, theta, SIZE, "I")
    cells = ax.child_axes
    assert [cell.get_xlabel() for cell in cells] == [f"{t:.1f}" for t in range(1, 17, 2)]
    assert [cell.images[0].get_array()[0, 0, 0] for cell in cells] == list(range(1, 17, 2))
    box = next(p for p in cells[3].patches if isinstance(p, Rectangle))
    assert box.get_bbox().bounds == pytest.approx((12 - 6, 20 - 8, 12, 16))


def test_bars_over_time_cover_what_a_detail_frame_covers(theta):
    frames, truth = torch.zeros(1, T, H, W, dtype=torch.uint8), torch.tensor([8.0, 4, 6, 20, 12])
    figure = walk.theta_steps(frames, theta, SIZE, truth)
    rows, columns = figure.axes[1:3]
    for ax, low, high in ((rows, 12, 28), (columns, 6, 18)):
        (bars,) = (c for c in ax.collections)
        segments = [s.tolist() for s in bars.get_segments()]
        assert segments[0] == [pytest.approx([1, low]), pytest.approx([1, high])]
    detail = rows.patches[0].get_bbox()
    assert detail.bounds == pytest.approx((6, 20 - 4.5, 4, 9))
    plt.close("all")


def test_figure_2_says_the_verdicts_and_needs_both_networks():
    frames = torch.randint(256, (1, 48, 64, 64), dtype=torch.uint8)
    model, names = build_model("synthetic").eval(), class_names()
    with torch.no_grad():
        out = model(frames[None])
        alone = build_model("synthetic", "a1").eval()(frames[None])
    e, e_hat = torch.rand(48, 8, 4, 4), torch.rand(64, 8, 3, 3)
    figure = walk.figure2(frames, out, e, e_hat, names, 3)
    before, after = (names[int(v[0].argmax())] for v in (out.logits, out.scores))
    words = f"true: {names[3]}\nSNet: {before}\nS2DNet: {after}"
    assert words in [text.get_text() for text in figure.texts]
    assert "8 x 16 x 16" in " ".join(ax.get_title("left") for ax in figure.axes)
    with pytest.raises(ValueError, match="needs SNet and DNet"):
        walk.figure2(frames, alone, e, e_hat, names, 3)
    plt.close("all")


@pytest.mark.slow
def test_clips_are_one_of_each_class_for_a_model_of_these_videos(runs):
    table, clips = walk.make_clips(S2DNet.from_pretrained(runs / "synthetic-a0-0"))
    assert table["class_name"].tolist() == class_names()
    assert [clip["label"] for clip in clips] == list(range(20))
    assert all(clip["frames"].shape == (1, 48, 64, 64) for clip in clips)
    with pytest.raises(
        ValueError, match="a model of the built-in videos .*, got one of no training"
    ):
        walk.make_clips(build_model("synthetic"))
