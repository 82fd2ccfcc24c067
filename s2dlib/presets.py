"""Settings of the paper and of this project: model, data and recipes by name; Table 2.

An ablation, a preset and a baseline are values here, never copies of a model or of a notebook.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from s2dlib.config import DataConfig, ModelConfig, Size, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A setting of the paper, or of this project: model, data, and training recipes by name."""

    model: ModelConfig
    data: DataConfig
    recipes: dict[str, TrainConfig]


# Table 2: 11 rows, but 8 different models (docs/decisions.md, D11).
VARIANTS: dict[str, dict[str, Any]] = {
    "a0": {},  # the full model
    "a1": {"dnet": None},  # SNet alone
    "a2": {"snet": None, "sample_time": False, "sample_space": False, "fuse_context": False},
    "b1": {"sample_time": False, "sample_space": False, "fuse_context": False},
    "b2": {"fuse_context": False},
    "b3": {"sample_time": False, "sample_space": False},
    "c2": {"sample_time": False},  # space only
    "c3": {"sample_space": False},  # time only
}
SAME_RUN = {"b0": "a0", "c0": "a0", "c1": "b3"}


def variant_of(config: ModelConfig, variant: str) -> ModelConfig:
    """The model of one row of Table 2.

    Raises:
        ValueError: no such row.
    """
    row = SAME_RUN.get(variant, variant)
    if row not in VARIANTS:
        rows = ", ".join(sorted({*VARIANTS, *SAME_RUN}))
        raise ValueError(f"no row {variant!r} in Table 2; the rows are {rows}")
    return replace(config, **VARIANTS[row])


_SYNTHETIC_MODEL = ModelConfig(
    n_classes=20, snet="tiny-s", dnet="tiny-d", synopsis_size=(8, 16, 16), detail_size=(8, 20, 20),
    context_dim=64, theta_dim=24, theta_head="attention", dropout=0.2,
    frozen_space="full", frozen_zoom=(1.0, 0.7),  # a centre crop, as the paper's
)  # fmt: skip
_SYNTHETIC_LARGE = ModelConfig(
    n_classes=20, theta_head="attention", frozen_space="full", frozen_zoom=(1.0, 0.7), dropout=0.2,
)  # fmt: skip
_SYNTHETIC_LARGE_DATA = DataConfig(
    csv="data/synthetic-large/synthetic-large.csv", flip=False,
    n_frames=96, frame_stride=1, min_frames=96, scales=(224 / 256,),
)  # fmt: skip
_SYNTHETIC_DATA = DataConfig(
    csv="data/synthetic/synthetic.csv", cache="data/synthetic/cache", flip=False, gray=True,
    n_frames=48, frame_stride=1, min_frames=48, short_side=72, crop=64, scales=(64 / 72,),
)  # fmt: skip
# The authors' release: from trained networks, theta frozen and then free at a tenth of the rate,
# plain cross entropy with label smoothing. Its model: theta_head="fc", detach_theta=True. Stage two
# starts from both networks of stage one (snet_from, dnet_from).
_AUTHORS = TrainConfig(
    optimizer="sgd", weight_decay=1e-3, lr_fc=5.0, lr_bias=2.0, final_lr=0.01, masked=False,
    label_smoothing=0.1,
)  # fmt: skip
_SYNTHETIC_RECIPES = {
    # SNet alone: the start of every row.
    "snet": TrainConfig(epochs=20, lr=3e-3, eval_every=5),
    # DNet alone, on large and centred details; then on the same at any zoom.
    "closeups": TrainConfig(epochs=12, lr=3e-3, eval_every=4),
    "zoom": TrainConfig(epochs=16, lr=3e-3, theta_source="random", eval_every=4),
    # All together, in one stage.
    "joint": TrainConfig(epochs=12, lr=2e-3, lr_theta=4e-3, hold_zoom=5, eval_every=2),
    # The ceiling: DNet looks at the detail itself.
    "truth": TrainConfig(epochs=12, lr=2e-3, lr_theta=4e-3, theta_source="truth", eval_every=2),
    # The paper's words: from scratch, in one stage, about as long as all stages above.
    "paper": TrainConfig(epochs=30, lr=2e-3, lr_theta=2e-3, eval_every=3),
    # The release in small: its two stages in the proportion of 40 and 80 epochs.
    "authors-1": replace(
        _AUTHORS, epochs=7, lr=2e-2, lr_theta=2e-3, theta_source="frozen", eval_every=7
    ),
    "authors-2": replace(_AUTHORS, epochs=13, lr=2e-3, lr_theta=2e-4, eval_every=2),
}  # fmt: skip
_GRID_MODEL = ModelConfig(
    n_classes=25, k=25,  # letters are most; a glance that cannot read leaves the choice to DNet
    snet="tiny-s", dnet="tiny-3d", synopsis_size=(32, 32, 32), detail_size=(12, 24, 24),
    context_dim=64, theta_dim=16, theta_head="attention", frozen_space="full", dropout=0.2,
    start="motion", start_zoom=(0.22, 0.25), start_shift=11.0,  # windows of 14 frames, 40 pixels
)  # fmt: skip
_GRID_LARGE = replace(
    _GRID_MODEL, snet="mobilenet_v2", dnet="resnet50", synopsis_size=(16, 144, 144),
    detail_size=(12, 64, 64), context_dim=256, theta_dim=64,
)  # fmt: skip
_GRID_DATA = DataConfig(
    csv="data/grid/grid.csv", cache="data/grid/cache", gray=True, test_clip="random",
    n_frames=64, frame_stride=1, min_frames=64, short_side=192, crop=160, scales=(160 / 192,),
)  # fmt: skip
_GRID_TRAIN = TrainConfig(epochs=8, batch_size=16, lr=3e-3, label_smoothing=0.1, eval_every=4)
_GRID_RECIPES = {
    # SNet alone; DNet alone, on what moves, then around that at any time; then all together.
    "snet": replace(_GRID_TRAIN, epochs=12),
    "closeups": replace(_GRID_TRAIN, epochs=48, theta_source="motion", eval_every=8),
    "zoom": replace(_GRID_TRAIN, epochs=16, lr=2e-3, theta_source="around"),
    "joint": replace(_GRID_TRAIN, lr=1e-3, lr_theta=4e-3, hold_zoom=2, eval_every=2),
    "truth": replace(_GRID_TRAIN, lr=1e-3, lr_theta=4e-3, theta_source="truth", eval_every=2),
}
# Small enough to be fine-tuned on a CPU.
_VIDEOS_MODEL = ModelConfig(
    n_classes=10, dnet="mobilenet_v2", synopsis_size=(8, 64, 64), detail_size=(8, 80, 80),
    theta_head="attention", frozen_space="full",
)  # fmt: skip
_VIDEOS_DATA = DataConfig(
    csv="data/videos/videos.csv", cache="data/videos/cache",
    n_frames=108, short_side=144, crop=128, scales=(128 / 144,),
)  # fmt: skip
_GESTURE_MODEL = replace(_VIDEOS_MODEL, k=10, start="motion", start_zoom=(1.0, 0.7))
_GESTURE_DATA = DataConfig(
    csv="data/egogestar/egogestar.csv", cache="data/egogestar/cache", flip=False,
    n_frames=108, short_side=168, crop=160, scales=(160 / 168,),
)  # fmt: skip
# Each network learns for 26 epochs; SNet's last eight at a tenth of the rate leave it as it was.
_GESTURE_TRAIN = TrainConfig(epochs=8, batch_size=8, lr=5e-4, lr_theta=1e-3, eval_every=2)
_GESTURE_RECIPES = {
    "snet": replace(_GESTURE_TRAIN, epochs=18),
    "closeups": replace(_GESTURE_TRAIN, epochs=12, theta_source="motion"),
    "zoom": replace(_GESTURE_TRAIN, epochs=6, theta_source="around"),
    "joint": replace(_GESTURE_TRAIN, lr_snet=0.1, hold_zoom=2),
}
# For days on GPUs: a kill costs some minutes, and the loader has processes of its own.
_LONG: dict[str, Any] = {"workers": 8, "checkpoint_steps": 500}
# The paper's words: end to end, from scratch, in one stage.
_ALONE_RECIPES = {"paper": TrainConfig(lr_batch=32, **_LONG)}
_PAPER_RECIPES = _ALONE_RECIPES | {
    # The release: rates per clip of the batch, warm-up of 5 epochs in each stage.
    "authors-1": replace(
        _AUTHORS, epochs=40, lr=1e-5, lr_theta=1e-6, lr_batch=1, warmup_epochs=5,
        theta_source="frozen", **_LONG,
    ),
    "authors-2": replace(
        _AUTHORS, epochs=80, lr=1e-6, lr_theta=1e-7, lr_batch=1, warmup_epochs=5, **_LONG,
    ),
}  # fmt: skip
_X3D_S_M = ModelConfig(
    n_classes=400, snet="x3d-s", dnet="x3d-m",
    synopsis_size=(16, 224, 224), detail_size=(16, 144, 144),
)  # fmt: skip
_SS_EFFICIENT = ModelConfig(n_classes=174, synopsis_size=(8, 144, 144), detail_size=(12, 144, 144))
_MINI = DataConfig(csv="data/mini-kinetics/mini-kinetics.csv")
_KINETICS = DataConfig(csv="data/kinetics400/kinetics400.csv", test_crops=3)  # Sec. 4.1
_SSV2 = DataConfig(csv="data/ssv2/ssv2.csv", n_frames=85, flip=False)
_SSV1 = replace(_SSV2, csv="data/ssv1/ssv1.csv")


def _on_a_gpu(recipes: dict[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The recipes of tiny networks for large ones, which learn at smaller rates."""
    return {
        name: replace(recipe, lr=recipe.lr / 4, lr_theta=recipe.lr_theta / 4, workers=14)
        for name, recipe in recipes.items()
    }


def _alone(n_classes: int, backbone: str, size: Size, data: DataConfig) -> Preset:
    """A single network, as an SNet without DNet."""
    model = ModelConfig(n_classes=n_classes, snet=backbone, dnet=None, synopsis_size=size)
    return Preset(model=model, data=data, recipes=_ALONE_RECIPES)


PRESETS: dict[str, Preset] = {
    # The built-in videos, a row in two or three minutes on one core.
    "synthetic": Preset(model=_SYNTHETIC_MODEL, data=_SYNTHETIC_DATA, recipes=_SYNTHETIC_RECIPES),
    # The same with glyphs elsewhere that mean nothing.
    "synthetic-distractors": Preset(
        model=_SYNTHETIC_MODEL,
        data=replace(
            _SYNTHETIC_DATA,
            csv="data/synthetic-distractors/synthetic-distractors.csv",
            cache="data/synthetic-distractors/cache",
        ),
        recipes=_SYNTHETIC_RECIPES,
    ),
    # The same in colour and at the paper's sizes, with its TSM networks: a row in minutes on a GPU.
    "synthetic-large": Preset(
        model=_SYNTHETIC_LARGE,
        data=_SYNTHETIC_LARGE_DATA,
        recipes=_on_a_gpu(_SYNTHETIC_RECIPES),
    ),
    # Table 2 and Table 3a: top-1 74.7, 18.0 G multiply-adds in the paper.
    "mini-kinetics": Preset(model=ModelConfig(n_classes=200), data=_MINI, recipes=_PAPER_RECIPES),
    # Table 1, Kinetics-400: top-1 78.0, 5.4 G a view (of 3). Counted: 7.9 G
    "kinetics400-x3d-s-m": Preset(model=_X3D_S_M, data=_KINETICS, recipes=_PAPER_RECIPES),
    # Table 1, Kinetics-400: top-1 80.6, 39 G a view (of 3). Counted: 13.7 G
    "kinetics400-x3d-s-xl": Preset(
        model=replace(_X3D_S_M, dnet="x3d-xl"), data=_KINETICS, recipes=_PAPER_RECIPES
    ),
    # Table 1 and Table 4, Something-Something V2: top-1 66.4, 35 G. Counted: 36.6 G
    "ssv2": Preset(
        model=ModelConfig(n_classes=174, synopsis_size=(16, 224, 224), detail_size=(16, 144, 144)),
        data=_SSV2,
        recipes=_PAPER_RECIPES,
    ),
    # Table 3b, Something-Something V2: top-1 62.5, 22 G. Counted: 24.8 G
    "ssv2-efficient": Preset(model=_SS_EFFICIENT, data=_SSV2, recipes=_PAPER_RECIPES),
    # Table 3b, Something-Something V1: top-1 49.7, 22 G. The model of ssv2-efficient.
    "ssv1": Preset(model=_SS_EFFICIENT, data=_SSV1, recipes=_PAPER_RECIPES),
    # Single networks, their frames sampled uniformly. Table 4, TSM: top-1 63.4, 66 G, 24.3 M.
    "tsm-r50": _alone(174, "resnet50", (16, 224, 224), _SSV2),
    # Table 1 and Table 4, TDN-R50: top-1 65.3, 72 G. Counted: 71.3 G. 16 segments of 5 frames,
    # almost one after another in a clip of 85.
    "tdn-r50": _alone(174, "tdn-r50", (80, 224, 224), _SSV2),
    # The paper's SNet on Mini-Kinetics (Table 2a, a1): top-1 68.6, 2.2 G.
    "tsm-mn2": _alone(200, "mobilenet_v2", ModelConfig.synopsis_size, _MINI),
    # X3D at the sizes of its own paper (there 10 clips and 3 crops): top-1 73.3, 76.0, 79.1.
    "x3d-s": _alone(400, "x3d-s", (13, 160, 160), _KINETICS),
    # Table 1: 6.2 G and 48 G
    "x3d-m": _alone(400, "x3d-m", (16, 256, 256), replace(_KINETICS, short_side=292, crop=256)),
    "x3d-xl": _alone(400, "x3d-xl", (16, 312, 312), replace(_KINETICS, short_side=356, crop=312)),
    # GRID, a spoken word (s2d index grid): the mouth tells, the whole picture tells when and where.
    "grid": Preset(model=_GRID_MODEL, data=_GRID_DATA, recipes=_GRID_RECIPES),
    # The same sentences, each somewhere in a clip of twice the length, in the talker's own silence.
    "grid-untrimmed": Preset(
        model=replace(_GRID_MODEL, synopsis_size=(48, 32, 32), start_zoom=(0.11, 0.25)),
        data=replace(_GRID_DATA, within=150, n_frames=128, min_frames=128),
        recipes=_GRID_RECIPES,
    ),
    # As they were filmed, in colour, with the paper's networks: a row in minutes on a GPU.
    "grid-large": Preset(
        model=_GRID_LARGE,
        data=replace(
            _GRID_DATA, short_side=288, crop=256, scales=(256 / 288,), gray=False, cache=None
        ),
        recipes=_on_a_gpu(_GRID_RECIPES),
    ),
    # Gestures of a fingertip (EgoGestAR): the class is the whole path. GRID's stages and rows.
    "egogestar": Preset(model=_GESTURE_MODEL, data=_GESTURE_DATA, recipes=_GESTURE_RECIPES),
    # Videos of one's own, by a CSV: MobileNetV2 in both networks, fine-tuned on a CPU if need be.
    "videos": Preset(
        model=replace(_VIDEOS_MODEL, synopsis_size=(8, 80, 80), detail_size=(12, 96, 96)),
        data=_VIDEOS_DATA,
        recipes={"joint": TrainConfig(epochs=15, batch_size=8, lr=5e-4, lr_theta=1e-3)},
    ),
}
