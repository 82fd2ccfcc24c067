"""Runs with something changed about the full model, for the Snakefile and the tables."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from s2dlib.presets import Preset


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run with something changed about the full model, <preset>-<name>-<seed> (Snakefile)."""

    words: str = ""  # its line in a table; empty: in none
    variant: str = "a0"  # a row of Table 2
    recipe: str = "joint"
    # The runs whose weights SNet and DNet start from; None: their backbones' own.
    start: tuple[str | None, str | None] = ("snet", "zoom")
    fields: dict[str, Any] = field(default_factory=dict)  # of the configuration, by name


# GRID's recipe on drawn clips: close-ups and the start of the attention from what moves, not drawn
# ones of the detail; two stages of DNet, then all together.
MOVING = {"start": "motion", "start_zoom": [0.33, 0.45]}
TRIALS = {
    "linear": Trial(words="linear filters (Sec. 3.2)", fields={"filters": "linear"}),
    "fc": Trial(words="theta head of the paper, by FC layers", fields={"theta_head": "fc"}),
    "detached": Trial(words="no gradient from theta into SNet", fields={"detach_theta": True}),
    "nozoom": Trial(words="DNet has seen whole frames only", start=("snet", "closeups")),
    "noclose": Trial(words="DNet starts from nothing", start=("snet", None)),  # learns from m alone
    "paper": Trial(
        words="the paper's words: from scratch, one stage, FC head",
        recipe="paper",
        start=(None, None),
        fields={"theta_head": "fc"},
    ),
    "authors1": Trial(recipe="authors-1", fields={"theta_head": "fc", "detach_theta": True}),
    "authors": Trial(
        words="the release: two stages, FC head, its loss",
        recipe="authors-2",
        start=("authors1", "authors1"),
        fields={"theta_head": "fc", "detach_theta": True},
    ),
    "motion1": Trial(
        variant="a2",
        recipe="closeups",
        start=(None, None),
        fields=MOVING | {"theta_source": "motion"},
    ),
    "motion2": Trial(
        variant="a2",
        recipe="zoom",
        start=(None, "motion1"),
        fields=MOVING | {"theta_source": "around"},
    ),
    "motion": Trial(
        words="GRID's recipe: close-ups and start from what moves",
        start=("snet", "motion2"),
        fields=MOVING,
    ),
    "motion-start": Trial(
        words="the same, DNet alone where the attention starts",
        variant="a2",
        start=(None, "motion2"),
        fields=MOVING | {"theta_source": "motion"},
    ),
}
SWEEPS = {
    "alpha-0.01": Trial(words="alpha = 0.01 (0.1)", fields={"alpha": 0.01}),
    "alpha-1": Trial(words="alpha = 1 (0.1)", fields={"alpha": 1.0}),
    "k-2": Trial(words="k = 2 (5)", fields={"k": 2}),
    "k-10": Trial(words="k = 10 (5)", fields={"k": 10}),
    "context-16": Trial(words="C_m = 16 (64)", fields={"context_dim": 16}),
    "context-256": Trial(words="C_m = 256 (64)", fields={"context_dim": 256}),
}
CEILING = {"truth": Trial(words="trained with the truth", variant="b3", recipe="truth")}
# Windows that are the same for all clips; the best one on the validation split is then trained on
# all seeds, as "constant": what a global zoom gives without sampling by the clip.
CONSTANT = {"constant": Trial(words="trained with the best constant window", variant="b3")}
WINDOWS = {  # in the middle
    f"window-{t}-{yx}": Trial(variant="b3", fields={"frozen_zoom": [t, yx]})
    for t, yx in ((1.0, 1.0), (1.0, 0.85), (0.8, 0.85), (0.8, 0.7), (0.6, 0.7), (1.0, 0.5))
}
# GRID's, of DNet alone, which takes a third of the time; also elsewhere than at the mean mouth.
GRID_WINDOWS = {
    f"window-{t}-{yx}-{'-'.join(map(str, at))}": Trial(
        variant="a2", start=(None, "zoom"), fields={"frozen_zoom": [t, yx], "frozen_at": at}
    )
    for t, yx, at in (
        *((t, yx, [0.52, 0.79, 0.4]) for t in (0.25, 0.35, 0.5) for yx in (0.45, 0.6)),
        *((0.35, 0.45, at) for at in ([0.45, 0.79, 0.4], [0.6, 0.79, 0.4])),
        *((0.35, 0.45, at) for at in ([0.52, 0.7, 0.4], [0.52, 0.79, 0.5])),
    )
}
_NOTHING = Trial(
    words="from nothing, in one stage of 64 epochs",
    start=(None, None),
    fields={"epochs": 64, "lr": 3e-3, "eval_every": 8},
)
_AT_16 = _NOTHING.fields | {"start_shift": 16.0}  # as validation chooses
GRID = {
    "tsm": Trial(
        words="TSM alone, at as many multiply-adds",
        variant="a1",
        recipe="snet",
        start=(None, None),
        fields={"snet": "tiny-d", "synopsis_size": [32, 64, 64], "epochs": 24},
    ),
    "start": Trial(
        words="DNet alone, where the attention starts",
        variant="a2",
        start=(None, "zoom"),
        fields={"theta_source": "motion"},
    ),
    "nothing": _NOTHING,
    "nothing-shift-16": replace(
        _NOTHING, words="the same, starts 16 frames after motion", fields=_AT_16
    ),
    "nothing-shift-16-start": replace(
        _NOTHING,
        words="DNet alone where that starts, as long",
        variant="a2",
        fields=_AT_16 | {"theta_source": "motion"},
    ),
    "nothing-shift-16-b2": replace(
        _NOTHING, words="the full model there without fusion", variant="b2", fields=_AT_16
    ),
}
# EgoGestAR's, whose true moments nobody knows.
GESTURES = {
    "tsm": replace(GRID["tsm"], fields={"synopsis_size": [12, 96, 96], "epochs": 26}),
    "start": GRID["start"],
    "whole": Trial(
        words="attention starts on the whole clip",
        fields={"start": "uniform", "start_zoom": [1.0, 1.0]},
    ),
}
# How much later than motion the word is: DNet's close-ups there, half as long; chosen on val.
SHIFTS = {
    f"shift-{n}": Trial(
        words=f"DNet's close-ups {n} frames after motion, 24 epochs",
        variant="a2",
        recipe="closeups",
        start=(None, None),
        fields={"start_shift": float(n), "epochs": 24},
    )
    for n in (0, 6, 11, 16, 21)
}


@dataclass(frozen=True)
class Study:
    """The runs beside the rows of Table 2: trials over seeds, sweeps, and controls."""

    trials: dict[str, Trial]
    sweeps: dict[str, Trial] = field(default_factory=dict)
    windows: dict[str, Trial] = field(default_factory=dict)  # the best one is then CONSTANT
    ceiling: dict[str, Trial] = field(default_factory=dict)

    @property
    def controls(self) -> dict[str, Trial]:
        """Models that look at one window, and those that know where to look."""
        return (CONSTANT if self.windows else {}) | self.ceiling


STUDIES = {  # a preset, or the begin of its name -> its study
    "synthetic": Study(TRIALS, SWEEPS, WINDOWS, CEILING),
    "grid": Study(GRID, SHIFTS, GRID_WINDOWS, CEILING),
    "egogestar": Study(GESTURES),
}


def study_of(preset: str) -> Study:
    """The study of a preset; of the paper's own settings, which have none, an empty one."""
    return next((s for name, s in STUDIES.items() if preset.startswith(name)), Study({}))


def override(preset: Preset, recipe: str, changes: dict[str, Any]) -> Preset:
    """A preset with fields changed by name, whichever of model, data or training holds each.

    Args:
        recipe: the recipe that is changed, the only one that the result keeps.
        changes: field -> value.

    Raises:
        ValueError: no such recipe, or no such field.
    """
    if recipe not in preset.recipes:
        raise ValueError(f"no recipe {recipe!r} here; there are {', '.join(preset.recipes)}")
    configs: list[Any] = [preset.model, preset.data, preset.recipes[recipe]]
    left = dict(changes)
    for i, config in enumerate(configs):
        names = {f.name for f in fields(config)} & left.keys()
        configs[i] = replace(config, **{name: left.pop(name) for name in names})
    model, data, train = configs
    if left:
        known = sorted(f.name for config in configs for f in fields(config))
        raise ValueError(f"no fields {sorted(left)} in model, data or training; there are {known}")
    return Preset(model=model, data=data, recipes={recipe: train})
