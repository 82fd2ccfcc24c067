"""The inspector: a clip, a run, and theta by hand; picture and verdict follow (08_inspector).

    glance (once a clip) -> SNet's theta -> the sliders' theta -> look_closely -> picture, verdict

It works without a browser too: move(mu_t=0.2), reset(), state, figure().
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from traitlets import Bunch

from s2dlib.config import CONFIG_FILE, WEIGHTS
from s2dlib.data import table
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.sources import ClipError
from s2dlib.data.synthetic import class_names
from s2dlib.model import S2DNet, scale_of
from s2dlib.report import figures
from s2dlib.sampler import Theta

DEMO = "../data/demo/demo.csv"  # a few synthetic clips; seen from notebooks/, as all csv are
DPI = 84  # so that, in a window 1,400 wide, Fig. 4 stands beside the sliders
SLIDERS = {  # of theta -> what it is; in space, means over the detail frames
    "mu_t": "time μ, of the clip",
    "delta_t": "time δ, frames",
    "mu_y": "rows μ, of the height",
    "delta_y": "rows δ, pixels",
    "mu_x": "columns μ, of the width",
    "delta_x": "columns δ, pixels",
}
UNTRAINED = f"no {CONFIG_FILE} and {WEIGHTS}: make reproduce trains the runs of Table 2"
NO_CLIPS = "no clips here: at the root, s2d synthetic --share 0.01 --out data/demo writes some"


def find_runs(runs: str | Path | Sequence[str | Path], csv: str = "") -> dict[str, Path]:
    """The runs that can be inspected, by name: trained, both networks, and clips to show."""
    found: dict[str, Path] = {}
    reasons: Counter[str] = Counter()
    parents = [runs] if isinstance(runs, str | Path) else runs
    for folder in (f for parent in parents for f in sorted(Path(parent).glob("*/"))):
        try:
            find_csv(folder, csv)
            found[f"{folder.parent.name}/{folder.name}"] = folder
        except ValueError as error:
            reasons[str(error)] += 1
    if not found:
        words = "; ".join(f"{n} with {reason}" for reason, n in reasons.items())
        where = ", ".join(map(str, parents))
        raise FileNotFoundError(f"no run to inspect in {where}: {words or UNTRAINED}")
    return found


def find_csv(folder: Path, csv: str = "") -> str:
    """The clips to show with a run: csv, else its own; if synthetic, else the demo's.

    A shared model knows only its CSV's name, looked for where `s2d synthetic` writes it.

    Raises:
        ValueError: why the folder is no run to inspect, and what to do.
    """
    if not all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS)):
        raise ValueError(UNTRAINED)
    record = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not {"model", "data"} <= record.keys():
        raise ValueError("no clips that it was trained on: choose the folder of a run")
    if None in (record["model"]["snet"], record["model"]["dnet"]):
        raise ValueError("one network only: rows a1 and a2 have no theta; train another row")
    own = Path(record["data"]["csv"])
    paths = [own, Path("../data") / own.stem / own.name]
    if record.get("classes") == class_names():
        paths.append(Path(DEMO))
    found = [csv] if csv else [str(path) for path in paths if path.is_file()]
    if not found:
        raise ValueError(NO_CLIPS)
    if csv and not set(classes_of(csv)) & set(record.get("classes", ())):
        raise ValueError(f"other classes than those of {csv}; choose the run's own data set")
    return found[0]


@cache
def classes_of(csv: str) -> list[str]:
    """The classes of a data set."""
    return table.class_names(table.read_csv(csv))


def open_run(folder: Path, csv: str, split: str) -> tuple[S2DNet, VideoDataset]:
    """A run's model, and the clips to show: one centre crop of one clip a video."""
    model = S2DNet.from_pretrained(folder)
    data = replace(model.data, csv=find_csv(folder, csv), cache=None, test_crops=1)
    return model, VideoDataset(data, split, train=False)


class Inspector:
    """What SNet saw, where theta looks, what DNet saw, and the verdict, with theta in your hand.

    Args:
        runs: folder or folders of runs, all of which can be chosen; where there is none, no run.
        csv: of the clips; empty: as find_csv finds it.
        clip: a row of the split.

    Attributes:
        widget: the whole, to display.
        frames: raw frames of the chosen clip. (1, C, T, H, W)
        own, out: the Output at SNet's own theta, and at the sliders'.

    Raises:
        FileNotFoundError: no run can be inspected, and why; or no such csv.
        ValueError, ClipError: no such split or clip; the video cannot be read.
    """

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path],
        csv: str = "",
        split: str = "test",
        clip: int = 0,
    ) -> None:
        self.csv, self.split = csv, split
        self._quiet = False  # while code, not a person, sets the widgets
        self._build(find_runs(runs, csv))
        self._open(*open_run(self.run.value, csv, split), clip)

    def _build(self, runs: dict[str, Path]) -> None:
        self.run = widgets.Dropdown(options=runs, description="run")
        self.clip = widgets.BoundedIntText(min=0, description="clip")
        self.reset_button = widgets.Button(description="SNet's own theta", icon="undo")
        self.reset_button.on_click(lambda _: self.reset())
        self.truth = widgets.ToggleButton(description="show the truth", icon="eye")
        wide = {"style": {"description_width": "170px"}, "continuous_update": False}
        self.sliders = {
            name: widgets.FloatSlider(min=0, max=1, step=0.01, description=label, **wide)
            for name, label in SLIDERS.items()
        }
        self.z = widgets.IntSlider(description="detail frame z", **wide)
        self.play = widgets.Play(interval=500, show_repeat=False)  # ms
        widgets.jslink((self.play, "value"), (self.z, "value"))
        self.picture, self.frame = widgets.Image(format="png"), widgets.Image(format="png")
        # An Image of ipywidgets has no alt, and with a tooltip it is not drawn: words stand below.
        self.verdict, self.caption, self.line = widgets.HTML(), widgets.HTML(), widgets.HTML()
        for widget in (self.run, self.clip, self.truth, self.z, *self.sliders.values()):
            widget.observe(self._changed, "value")
        shown = ("reset_button", "picture", "frame", "caption", "line")
        named = {name: getattr(self, name) for name in shown}
        for name, widget in (named | self.sliders).items():
            widget.add_class(f"s2d-{name}")
        wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}  # side by side where it fits
        self.picture.layout = {"max_width": "100%", "height": "auto", "object_fit": "contain"}
        head = widgets.Box([self.run, self.clip, self.reset_button, self.truth], layout=wrap)
        hand = widgets.VBox([*self.sliders.values(), self.z, self.play, self.frame])
        whole = widgets.Box([hand, widgets.VBox([self.picture, self.caption])], layout=wrap)
        self.widget = widgets.VBox([head, self.verdict, whole, self.line])

    @torch.no_grad()
    def _open(self, model: S2DNet, dataset: VideoDataset, number: int) -> None:
        """Show a clip; nothing has changed if it cannot be read."""
        if not 0 <= number < len(dataset):
            raise ValueError(f"clip must lie in [0, {len(dataset) - 1}], got {number}")
        item = dataset[number]
        self.model, self.dataset, self.frames = model, dataset, item["frames"][None]
        name = dataset.classes[item["label"]]
        self.label = model.classes.index(name) if name in model.classes else None
        self._truth: Tensor | None = item.get("truth")  # t, duration, size, y, x. (5,)
        self.own, size = model(self.frames), model.config.detail_size
        self._means = {name: getattr(self.own.theta, name).mean().item() for name in SLIDERS}
        with self._quietly():
            self.clip.max, self.clip.value = len(dataset) - 1, number
            self.z.max = self.play.max = size[0] - 1
            self.truth.value &= self._truth is not None
            self.truth.disabled = self._truth is None
            for axis, n, length in zip("tyx", size, self.frames.shape[2:], strict=True):
                slider, delta = self.sliders[f"delta_{axis}"], self._means[f"delta_{axis}"]
                with slider.hold_trait_notifications():  # or the new minimum meets the old maximum
                    slider.min = min(1.0, length / n, delta)
                    slider.max = max(1.25 * length / n, delta)  # a little beyond all of it
        self.reset()

    def move(self, **means: float) -> None:
        """Look elsewhere, as the sliders do: move(mu_t=0.2, delta_x=1)."""
        for name, value in means.items():
            if name not in SLIDERS:
                raise ValueError(f"theta has no {name!r}; it has {', '.join(SLIDERS)}")
            low, high = self.sliders[name].min, self.sliders[name].max
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low:.2f}, {high:.2f}], got {value}")
        with self._quietly():
            for name, value in means.items():
                self.sliders[name].value = value
        self._look()

    def reset(self) -> None:
        """Put SNet's own theta back."""
        self.move(**self._means)

    @torch.no_grad()
    def _look(self) -> None:
        """DNet's part alone, at SNet's theta with the sliders' means; picture and verdict.

        Where theta has a value for each detail frame, mu of all shifts alike and delta scales.
        """
        moved = {}
        for name, slider in self.sliders.items():
            values = getattr(self.own.theta, name)  # (1,) or (1, T_D)
            shift, factor = slider.value - values.mean(), slider.value / values.mean()
            moved[name] = values + shift if name.startswith("mu") else values * factor
        self.theta, n_frames = Theta(**moved), torch.tensor([self.frames.shape[2]])
        self.out = self.model.look_closely(self.own, self.frames, n_frames, self.theta)
        self.picture.value, self.frame.value = _png(self.figure()), _png(self.frame_figure())
        state = self.state
        score, true = state["scores"][state["verdict"]], state["true"] or "not known to this run"
        words = f"SNet: {state['snet']}. DNet: {state['verdict']} ({score:.2f}); with SNet's own "
        self.verdict.value = html.escape(f"{words}theta: {state['own']}. True: {true}.")
        self.line.value = f"<code>{html.escape(json.dumps(state))}</code>"
        self.caption.value = html.escape(self.description())

    def description(self) -> str:
        """The picture in words, for a screen reader, too: where DNet looks, and at how much."""
        (T, H, W), (T_D, H_D, W_D) = self.frames.shape[2:], self.model.config.detail_size
        at = {name: slider.value for name, slider in self.sliders.items()}
        return (
            f"Fig. 4 of clip {self.clip.value}: {T_D} detail frames around frame "
            f"{at['mu_t'] * T:.1f} of {T}, {at['delta_t']:.1f} frames apart; each shows "
            f"{H_D * at['delta_y']:.0f} x {W_D * at['delta_x']:.0f} pixels around row "
            f"{at['mu_y'] * H:.0f} of {H} and column {at['mu_x'] * W:.0f} of {W}"
        )

    @property
    def state(self) -> dict[str, Any]:
        """Where it looks and what it says, in plain numbers and words.

        Returns:
            run, clip; theta, its six means; true, snet, own, verdict: the classes of the CSV, of
            SNet, at SNet's own theta, at this one; scores: p-hat * s of SNet's k likeliest classes.
        """
        names, scores = self.model.classes, self.out.scores[0]
        logits = cast(Tensor, self.out.logits)[0]
        candidates = logits.topk(self.model.config.k).indices.tolist()
        return {
            "run": self.run.label,
            "clip": self.clip.value,
            "theta": {name: round(slider.value, 6) for name, slider in self.sliders.items()},
            "true": None if self.label is None else names[self.label],
            "snet": names[candidates[0]],
            "own": names[int(self.own.scores[0].argmax())],
            "verdict": names[int(scores.argmax())],
            "scores": {names[n]: round(scores[n].item(), 6) for n in candidates},
        }

    def figure(self) -> Figure:
        """Fig. 4 of the clip at this theta, with the truth where it is shown; pyplot's."""
        span, square = self._shown_truth()
        frames, classes = self.frames[0], self.model.classes
        return figures.figure4(frames, self.out, classes, self.label, truth=span, square=square)

    def frame_figure(self) -> Figure:
        """Detail frame z, enlarged, beside the raw frame that it is centred on."""
        size, z, T = self.model.config.detail_size, self.z.value, self.frames.shape[2]
        theta, (span, square) = self.theta.map(lambda v: v[0]), self._shown_truth()
        time = figures.detail_times(theta, T, size[0])[z].item()
        at = min(max(int(time), 0), T - 1)
        figure = Figure(figsize=(3.6, 2.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        figures.boxes(left, self.frames[0, :, at], theta, z, size)
        if span and square and span[0] <= time < span[1]:
            figures.true_square(left, *square)
        volume = cast(Tensor, self.out.detail_volume)[0] * scale_of(self.frames)
        figures.frame_strip(right, volume, [z], f"detail frame {z}", labels=[""])
        left.set_title(f"raw frame {at}", loc="left", fontsize=figures.FONT + 1)
        return figure

    def _shown_truth(self) -> tuple[tuple[float, float] | None, tuple[float, float, float] | None]:
        """First frame and end of the detail; y, x and side of its square. None: not to be shown."""
        if not self.truth.value or self._truth is None:
            return None, None
        t, duration, *place = self._truth.tolist()
        square = (place[1], place[2], place[0]) if place else None  # known in time alone
        return (t - duration / 2, t + duration / 2), square

    def _changed(self, change: Bunch) -> None:
        """A person has set a widget. An error is shown, which JupyterLab would hide, and undone."""
        if self._quiet:
            return
        try:
            if change.owner is self.run:
                model, dataset = open_run(change.new, self.csv, self.split)
                self._open(model, dataset, min(self.clip.value, len(dataset) - 1))
            elif change.owner is self.clip:
                self._open(self.model, self.dataset, change.new)
            elif change.owner is self.z:
                self.frame.value = _png(self.frame_figure())
            else:
                self._look()
        except (ClipError, OSError, ValueError) as error:
            with self._quietly():
                change.owner.value = change.old
            self.verdict.value = f"<b>{html.escape(str(error))}</b>"

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False


def _png(figure: Figure) -> bytes:
    """A figure's picture; pyplot forgets the figure, or every move of a slider would keep one."""
    with BytesIO() as file:
        figure.savefig(file, format="png", dpi=DPI)
        plt.close(figure)
        return file.getvalue()
