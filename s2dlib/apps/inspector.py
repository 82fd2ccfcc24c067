"""The inspector: a clip, a run, and theta by hand; picture and verdict follow (08_inspector).

    glance (once a clip) -> SNet's theta -> the sliders' theta -> look_closely -> picture, verdict

The only module with widgets; it works without a browser too: move(mu_t=0.2), reset(), state,
figure().
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from traitlets import Bunch

from s2dlib.config import CONFIG_FILE, WEIGHTS
from s2dlib.data import synthetic
from s2dlib.data.dataset import VideoDataset
from s2dlib.data.decoding import ClipError
from s2dlib.model import S2DNet
from s2dlib.report import figures
from s2dlib.report.records import load_run
from s2dlib.sampler import Theta, grid_centres
from s2dlib.training.windows import distance_to_truth

DEMO = "../data/demo/demo.csv"  # a few synthetic clips; seen from notebooks/, as all csv are
WRITE_DEMO = "s2d synthetic --share 0.01 --out data/demo"
DPI = 84  # so that, in a window 1,400 wide, Fig. 4 stands beside the sliders
SLIDERS = {  # of theta -> label, what it is
    "mu_t": ("time μ_t", "centre of the detail frames, as a fraction of the clip"),
    "delta_t": ("time δ_t", "stride between detail frames, in raw frames"),
    "mu_y": ("rows μ_y", "mean centre over the detail frames, as a fraction of the height"),
    "delta_y": ("rows δ_y", "mean stride over the detail frames, in raw pixels"),
    "mu_x": ("columns μ_x", "mean centre over the detail frames, as a fraction of the width"),
    "delta_x": ("columns δ_x", "mean stride over the detail frames, in raw pixels"),
}
LACKS = {  # why a folder is no run to inspect -> what to do
    f"no {CONFIG_FILE} and {WEIGHTS}": "make reproduce trains the runs of Table 2",
    "one network only": "rows a1 and a2 have no theta of their own; train another row",
    "no clips here": f"at the repository's root, {WRITE_DEMO} writes synthetic ones",
}


def find_runs(runs: str | Path | Sequence[str | Path], csv: str = "") -> dict[str, Path]:
    """The runs that can be inspected, by name: trained, both networks, and clips to show.

    Args:
        runs: one or more folders of runs; one that is not there holds none.
        csv: of the clips; empty: the run's own (csv_of).

    Raises:
        FileNotFoundError: no such csv, or no run can be inspected; it says why, and what to do.
    """
    if csv and not Path(csv).is_file():
        raise FileNotFoundError(f"{csv}: no such file; {WRITE_DEMO} writes data/demo/demo.csv")
    parents = [Path(p) for p in ([runs] if isinstance(runs, str | Path) else runs)]
    folders = [f for p in parents if p.is_dir() for f in sorted(p.iterdir()) if f.is_dir()]
    lacks = {folder: _lacks(folder, csv) for folder in folders}
    found = {f"{f.parent.name}/{f.name}": f for f, lack in lacks.items() if not lack}
    if not found:
        counts = Counter(lacks.values()) or {next(iter(LACKS)): "all"}
        reasons = "; ".join(f"{n} with {lack}: {LACKS[lack]}" for lack, n in counts.items())
        raise FileNotFoundError(f"no run to inspect in {', '.join(map(str, parents))}: {reasons}")
    return found


def _lacks(folder: Path, csv: str) -> str:
    """Why the folder is no run to inspect, a key of LACKS; empty for one that is."""
    weights, one_network, clips = LACKS
    if not all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS)):
        return weights
    record = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if None in (record["model"]["snet"], record["model"]["dnet"]):
        return one_network
    return "" if csv or csv_of(record) else clips


def csv_of(record: dict[str, Any]) -> str | None:
    """The clips of a run: its own CSV; else, for a run on synthetic videos, the demo's; else None.

    A shared model knows only its CSV's name, looked for where data/synthetic.py writes it.

    Args:
        record: the run's config.json.
    """
    own = Path(record["data"]["csv"])
    places = [own, Path("../data") / own.stem / own.name]
    if record.get("classes") == synthetic.class_names():
        places.append(Path(DEMO))
    return next((str(place) for place in places if place.is_file()), None)


def open_run(folder: Path, csv: str, split: str) -> tuple[S2DNet, VideoDataset]:
    """A run's model, and the clips to show: one centre crop of one clip a video.

    Args:
        csv: of the clips; empty: the run's own.
    """
    model, record = load_run(folder)
    data = replace(model.data, csv=csv or csv_of(record), cache=None, test_crops=1)
    dataset = VideoDataset(data, split, train=False)
    if not set(dataset.classes) & set(model.classes):
        raise ValueError(
            f"{data.csv}: none of its classes is known to {folder}, which knows "
            f"{', '.join(model.classes[:3])}, ...; choose the data set that the run was trained on"
        )
    return model, dataset


def moved(own: Theta, means: dict[str, float]) -> Theta:
    """Theta with other means: mu of all detail frames shifts alike, delta scales alike.

    So the path over the detail frames, which one number cannot say, is kept.

    Args:
        own: of one clip, as SNet gives it. mu_t, delta_t (1,); the others (1, T_D)
        means: new means, by name; the rest stays as it is.
    """

    def at(name: str, mean: float) -> Tensor:
        values = getattr(own, name)
        if name.startswith("mu"):
            return values + (mean - values.mean())
        return values * (mean / values.mean())

    return replace(own, **{name: at(name, mean) for name, mean in means.items()})


class Inspector:
    """What SNet saw, where theta looks, what DNet saw, and the verdict, with theta in your hand.

    Attributes:
        widget: the whole, to display.
        model, dataset: of the chosen run.
        frames: raw frames of the chosen clip. (1, C, T, H, W)
        own: the Output at SNet's own theta.
        out: the Output at the sliders' theta, out.theta.
    """

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path],
        csv: str = "",
        split: str = "test",
        clip: int = 0,
    ) -> None:
        """Open the first run that can be inspected.

        Args:
            runs: folders of runs, all of which can be chosen.
            csv: of the clips; empty: each run's own, else the demo's.
            clip: a row of the split.

        Raises:
            FileNotFoundError: no run can be inspected; it says which command makes one.
            ValueError: no such split or clip.
            ClipError: the video cannot be read.
        """
        self.csv, self.split = csv, split
        self._means: dict[str, float] = {}  # what was moved
        self._quiet = False  # while code, not a person, sets the widgets
        self._build(find_runs(runs, csv))
        self._open(*open_run(self.run.value, csv, split), clip)

    def _build(self, runs: dict[str, Path]) -> None:
        label, short = {"description_width": "90px"}, {"description_width": "30px"}
        self.run = widgets.Dropdown(options=runs, description="run", style=short)
        self.clip = widgets.BoundedIntText(
            min=0, description="clip", style=short, layout={"width": "130px"}
        )
        self.reset_button = widgets.Button(
            description="SNet's own theta", icon="undo", tooltip="put SNet's own theta back"
        )
        self.truth = widgets.ToggleButton(description="show the truth", icon="eye")
        self.sliders = {
            name: widgets.FloatSlider(
                min=0, max=1, step=0.01, continuous_update=False, description=words, tooltip=tip,
                style=label, layout={"width": "300px"},
            )
            for name, (words, tip) in SLIDERS.items()
        }  # fmt: skip
        self.z = widgets.IntSlider(
            description="frame z", continuous_update=False, style={"description_width": "55px"},
            layout={"width": "230px"},
        )  # fmt: skip
        self.play = widgets.Play(interval=500, show_repeat=False, layout={"width": "80px"})  # ms
        widgets.jslink((self.play, "value"), (self.z, "value"))
        self.picture, self.frame = (widgets.Image(format="png") for _ in range(2))
        self.words, self.line = widgets.HTML(), widgets.HTML()

        for name, slider in self.sliders.items():
            slider.observe(self._slide, "value")
            slider.add_class(f"s2d-{name}")
        for chooser, choose in ((self.run, self._choose_run), (self.clip, self._choose_clip)):
            chooser.observe(choose, "value")
        self.reset_button.on_click(lambda _: self.reset())
        self.truth.observe(lambda _: self._quiet or self._draw(), "value")
        self.z.observe(lambda _: self._quiet or self._draw_frame(), "value")
        for name in ("reset_button", "truth", "picture", "frame", "words", "line"):
            getattr(self, name).add_class(f"s2d-{name}")

        wrap = {"flex_flow": "row wrap"}  # beside each other where the window is wide enough
        walk = widgets.VBox([widgets.HBox([self.play, self.z]), self.frame])
        sliders = widgets.VBox(list(self.sliders.values()))
        self.words.layout = {"width": "280px"}
        self.picture.layout = {"max_width": "100%", "height": "auto", "object_fit": "contain"}
        panel = widgets.Box([sliders, self.words, walk], layout=wrap | {"flex": "1 1 315px"})
        whole = widgets.Box([panel, self.picture], layout=wrap | {"align_items": "flex-start"})
        head = widgets.Box([self.run, self.clip, self.reset_button, self.truth], layout=wrap)
        self.widget = widgets.VBox([head, whole, self.line])

    @torch.no_grad()
    def _open(self, model: S2DNet, dataset: VideoDataset, number: int) -> None:
        """Show a clip; nothing has changed if it cannot be read."""
        if not 0 <= number < len(dataset):
            raise ValueError(f"clip must lie in [0, {len(dataset) - 1}], got {number}")
        item = dataset[number]
        frames = item["frames"][None]  # (1, C, T, H, W)
        n_frames = torch.tensor([frames.shape[2]])
        self.model, self.dataset, self.frames, self.n_frames = model, dataset, frames, n_frames
        name = dataset.classes[item["label"]]
        self.label = model.classes.index(name) if name in model.classes else None
        self._truth: Tensor | None = item.get("truth")  # t, duration, size, y, x. (5,)
        self._seen = model.glance(frames, n_frames)
        self.own = model.look_closely(self._seen, frames, n_frames)
        self._means = {}
        with self._quietly():
            self.clip.max, self.clip.value = len(dataset) - 1, number
            self.z.max = self.play.max = model.config.detail_size[0] - 1
            if self._truth is None:
                self.truth.value = False
            self.truth.disabled = self._truth is None
            self._set_ranges()
        self._look()

    def _set_ranges(self) -> None:
        """Of the strides: from one frame or pixel to a little beyond the whole clip or frame."""
        size, extent = self.model.config.detail_size, self.frames.shape[2:]
        for axis, n, length in zip("tyx", size, extent, strict=True):
            own, full = getattr(self.own.theta, f"delta_{axis}").mean().item(), length / n
            slider = self.sliders[f"delta_{axis}"]
            with slider.hold_trait_notifications():  # or the new minimum meets the old maximum
                slider.min, slider.max = min(1.0, full, own), max(1.25 * full, own)

    def move(self, **means: float) -> None:
        """Look elsewhere, as the sliders do: move(mu_t=0.2, delta_x=1).

        Args:
            means: new values, by the names of theta; in space, means over the detail frames.
        """
        for name, value in means.items():
            if name not in SLIDERS:
                raise ValueError(f"theta has no {name!r}; it has {', '.join(SLIDERS)}")
            low, high = self.sliders[name].min, self.sliders[name].max
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low:.2f}, {high:.2f}], got {value}")
        self._means |= means
        self._look()

    def reset(self) -> None:
        """Put SNet's own theta back."""
        self._means = {}
        self._look()

    @torch.no_grad()
    def _look(self) -> None:
        """DNet's part alone: SNet has seen the clip."""
        theta = moved(self.own.theta, self._means)
        self.out = self.model.look_closely(self._seen, self.frames, self.n_frames, theta)
        with self._quietly():
            for name, slider in self.sliders.items():
                own = getattr(self.own.theta, name).mean().item()
                slider.value = self._means.get(name, own)
        self._draw()

    @property
    def state(self) -> dict[str, Any]:
        """Where it looks and what it says, in plain numbers and words.

        Returns:
            run, clip; theta, its six means; true, snet, own, verdict: the classes of the CSV, of
            SNet, at SNet's own theta, at this one; scores: p-hat * s of SNet's k likeliest classes.
        """
        scores, names = self.out.scores[0], self.model.classes
        likeliest = self._seen.logits[0].topk(int(self._seen.topk_mask[0].sum())).indices.tolist()
        return {
            "run": self.run.label,
            "clip": self.clip.value,
            "theta": {n: round(getattr(self.out.theta, n).mean().item(), 6) for n in SLIDERS},
            "true": None if self.label is None else names[self.label],
            "snet": names[likeliest[0]],
            "own": names[int(self.own.scores[0].argmax())],
            "verdict": names[int(scores.argmax())],
            "scores": {names[n]: round(scores[n].item(), 6) for n in likeliest},
        }

    def figure(self) -> Figure:
        """Fig. 4 of the clip at this theta, with the truth where it is shown; pyplot's."""
        known = {}
        if self.truth.value:
            known = {"truth": self._true_span(), "square": self._true_place()}
        return figures.figure4(self.frames[0], self.out, self.model.classes, self.label, **known)

    def frame_figure(self) -> Figure:
        """Detail frame z, enlarged, beside the raw frame that it is centred on."""
        size, z = self.model.config.detail_size, self.z.value
        theta = self.out.theta.map(lambda v: v[0])
        T = self.frames.shape[2]
        time = grid_centres(theta.mu_t, theta.delta_t, size[0], T)[z].item()
        at = min(max(int(time), 0), T - 1)
        figure = Figure(figsize=(3.6, 2.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        figures.boxes(left, self.frames[0, :, at], theta, z, size)
        left.set_title(f"raw frame {at}", loc="left", fontsize=figures.FONT)
        first, end = self._true_span() if self.truth.value else (0, 0)
        if first <= time < end:
            figures.true_square(left, *self._true_place())
        volume = self.out.detail_volume[0]
        if not self.frames.is_floating_point():
            volume = volume / 255
        figures.frame_strip(right, volume, [z], labels=[""])
        right.set_title(f"detail frame {z}", loc="left", fontsize=figures.FONT)
        return figure

    def _true_span(self) -> tuple[float, float]:
        """First frame and end of the detail, raw frames."""
        t, duration = self._truth[:2].tolist()
        return t - duration / 2, t + duration / 2

    def _true_place(self) -> tuple[float, float, float]:
        """y and x of the detail's centre, and its side, raw pixels."""
        side, y, x = self._truth[2:].tolist()
        return y, x, side

    def _draw(self) -> None:
        self.picture.value = _png(self.figure())
        self._draw_frame()
        lines = [self._verdict_words(), self._moved_words()]
        lines += [self._truth_words()] if self.truth.value else []
        self.words.value = "".join(f"<p style='line-height: 1.4'>{line}</p>" for line in lines)
        line = html.escape(json.dumps(self.state))
        self.line.value = (
            f"<code style='display: block; font-size: 11px; line-height: 1.4'>{line}</code>"
        )

    def _draw_frame(self) -> None:
        self.frame.value = _png(self.frame_figure())

    def _verdict_words(self) -> str:
        state = self.state
        true, snet, own, verdict = (
            html.escape(str(state[name])) for name in ("true", "snet", "own", "verdict")
        )
        p = self._seen.logits[0].softmax(0).max().item()
        words = f"SNet says {snet} ({p:.2f}).<br>DNet says <b>{verdict}</b>"
        words += f" ({state['scores'][state['verdict']]:.2f})"
        if self._means:
            at_own = self.own.scores[0].max().item()
            same = own == verdict
            words += f"; with SNet's own theta {'the same' if same else own} ({at_own:.2f})"
        true = "a class that the run does not know" if self.label is None else f"<b>{true}</b>"
        return f"{words}.<br>True: {true}."

    def _moved_words(self) -> str:
        """How far the sliders' theta is from SNet's."""
        T, H, W = self.frames.shape[2:]
        extents = {"mu_t": (T, "frames"), "mu_y": (H, "pixels"), "mu_x": (W, "pixels")}
        words = []
        for name, mean in self._means.items():
            own = getattr(self.own.theta, name).mean().item()
            if name in extents:
                length, unit = extents[name]
                words.append(f"{SLIDERS[name][0]} by {(mean - own) * length:+.1f} {unit}")
            else:
                words.append(f"{SLIDERS[name][0]} to {mean / own:.2f} of its own")
        return (
            f"Moved from SNet's theta: {', '.join(words)}."
            if words
            else "This is SNet's own theta."
        )

    def _truth_words(self) -> str:
        size, extent = self.model.config.detail_size, self.frames.shape[3:]
        far = distance_to_truth(self.out.theta, self._truth[None], self.n_frames, *extent, size)
        return (
            f"From the true detail, the centre is {far['distance_t'].item():.1f} frames and "
            f"{far['distance_yx'].item():.1f} pixels away."
        )

    def _slide(self, change: Bunch) -> None:
        if not self._quiet:
            name = next(name for name, slider in self.sliders.items() if slider is change.owner)
            self.move(**{name: change.new})

    def _choose_run(self, change: Bunch) -> None:
        if not self._quiet:
            with self._or_back(change):
                model, dataset = open_run(change.new, self.csv, self.split)
                self._open(model, dataset, min(self.clip.value, len(dataset) - 1))

    def _choose_clip(self, change: Bunch) -> None:
        if not self._quiet:
            with self._or_back(change):
                self._open(self.model, self.dataset, change.new)

    @contextmanager
    def _or_back(self, change: Bunch) -> Iterator[None]:
        """Say in the widget what went wrong, which JupyterLab would hide, and choose as before."""
        try:
            yield
        except (ClipError, OSError, ValueError) as error:
            with self._quietly():
                change.owner.value = change.old
            self.words.value = f"<b>{html.escape(str(error))}</b>"

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


def _png(figure: Figure) -> bytes:
    """A figure's picture; pyplot forgets the figure, or every move of a slider would keep one."""
    with BytesIO() as file:
        figure.savefig(file, format="png", dpi=DPI)
        plt.close(figure)
        return file.getvalue()
