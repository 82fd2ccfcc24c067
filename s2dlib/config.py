"""Every choice of an experiment, as frozen values: model, data, training; presets; Table 2.

An ablation, a preset and a baseline are values here, never copies of a model or of a notebook.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

Size = tuple[int, int, int]  # frames, rows, columns
CONFIG_FILE, METRICS_FILE, WEIGHTS = "config.json", "metrics.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """S2DNet, or one of its two networks alone (Sec. 3, Sec. 4.1-4.4)."""

    n_classes: int  # N
    k: int = 5  # likely actions kept by SNet (Sec. 4.1)
    snet: str | None = "mobilenet_v2"  # backbone f_s; None: DNet alone (row a2)
    dnet: str | None = "resnet50"  # backbone f_d; None: SNet alone (row a1)
    synopsis_size: Size = (16, 144, 144)  # T_S, H_S, W_S (Sec. 4.3)
    detail_size: Size = (16, 112, 112)  # T_D, H_D, W_D (Sec. 4.3)
    context_dim: int = 256  # C_m (Sec. 4.1)
    theta_dim: int = 64  # channels of the two convolutions of f_theta (the paper is silent)
    theta_head: str = "fc"  # "fc": the paper's wording; "attention": keeps position (decisions, D8)
    detach_theta: bool = False  # stop the gradient of theta before SNet's backbone (decisions, D6)
    sample_time: bool = True  # mu_t, delta_t from f_theta; else frames uniform over the clip
    sample_space: bool = True  # mu_y, mu_x, delta_y, delta_x from f_theta; else frozen_space
    frozen_space: str = "crop"  # "crop": centre crop at stride 1 (Sec. 4.3); "full": whole frame
    frozen_zoom: tuple[float, float] = (1.0, 1.0)  # frozen strides / full coverage: time, space
    fuse_context: bool = True  # lateral fusion of m after res3 and res4 (Eq. 9)
    filters: str = "gaussian"  # or "linear" (Sec. 3.2)
    dropout: float = 0.5  # before both classifiers (authors' release)

    def __post_init__(self) -> None:
        for name in ("synopsis_size", "detail_size"):  # JSON and papermill hand over lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != 3 or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be three sizes >= 1, got {getattr(self, name)}")
        object.__setattr__(self, "frozen_zoom", tuple(self.frozen_zoom))
        if len(self.frozen_zoom) != 2 or not all(0 < zoom <= 1 for zoom in self.frozen_zoom):
            raise ValueError(f"frozen_zoom must be two numbers in (0, 1], got {self.frozen_zoom}")
        if self.n_classes < 1:
            raise ValueError(f"n_classes must be >= 1, got {self.n_classes}")
        if not 1 <= self.k <= self.n_classes:
            raise ValueError(f"k must lie in [1, n_classes={self.n_classes}], got {self.k}")
        if self.snet is None and self.dnet is None:
            raise ValueError("snet and dnet are both None: at least one network is needed")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


CHOICES = {
    "theta_head": ("fc", "attention"),
    "frozen_space": ("crop", "full"),
    "filters": ("gaussian", "linear"),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Raw frames I: which files, and how a clip is chosen from a video (Sec. 4.1)."""

    csv: str  # rows path,label,split; paths relative to the file's own folder
    n_frames: int = 150  # T, at most; a shorter video gives fewer frames
    frame_stride: int = 2  # tau
    min_frames: int = 1  # a video with fewer frames at this stride is an error
    short_side: int = 256  # pixels, before cropping
    crop: int = 224  # H = W of the raw frames, pixels
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)  # sides of the training crop / short side
    test_crops: int = 1  # 3: both ends and the centre of the longer side, scores averaged
    flip: bool = True  # training only; not where left and right are labels
    gray: bool = False  # keep one channel; the model repeats it after sampling
    cache: str | None = None  # folder for decoded frames; None: decode each time
    n_clips: int = 0  # of each split, the first so many, for trials; 0: all

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        for name in ("n_frames", "frame_stride", "min_frames", "short_side", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.crop > self.short_side:
            raise ValueError(f"crop={self.crop} does not fit short_side={self.short_side}")
        if self.test_crops not in (1, 3):
            raise ValueError(f"test_crops must be 1 or 3, got {self.test_crops}")
        if not self.scales or not all(0 < s <= 1 for s in self.scales):
            raise ValueError(f"scales must lie in (0, 1], got {self.scales}")


# "model": as the row says. "frozen": as rows without sampling. "random": windows that know nothing
# of the clip, which teach DNet to read at any zoom (D9). "truth": on the detail; synthetic videos.
THETAS = ("model", "frozen", "random", "truth")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training stage of any row (Sec. 4.1; the paper leaves most of it open)."""

    epochs: int = 50
    batch_size: int = 32  # clips of one optimizer step, over all processes
    accumulate: int = 1  # parts of a step, one after the other; batch norm sees a part at a time
    optimizer: str = "adamw"  # or "sgd" (momentum 0.9, Nesterov)
    lr: float = 1e-3  # at the peak, for a step of lr_batch clips
    lr_theta: float = 1e-3  # the same, for f_theta
    lr_batch: int = 0  # rates grow in proportion to batch_size / lr_batch; 0: as they are
    lr_fc: float = 1.0  # linear layers outside f_theta: times lr
    lr_bias: float = 1.0  # biases of convolutions and linear layers outside f_theta: times lr
    hold_zoom: int = 0  # epochs in which zooms keep their start, so that centres come first (D9)
    weight_decay: float = 1e-2
    warmup_epochs: float = 0.5  # linear, then a cosine
    final_lr: float = 0.0  # where the cosine ends, as a fraction of lr
    clip_grad_norm: float = 20.0
    alpha: float = 0.1  # weight of L_s (Eq. 12, Sec. 4.1)
    masked: bool = True  # L_d counts clips whose class is in SNet's top k (Eq. 11); else all clips
    label_smoothing: float = 0.0  # of both cross entropies
    theta: str = "model"  # where DNet looks while it is trained: one of THETAS
    amp: bool = True  # bfloat16 autocast, on CUDA only
    workers: int = 0  # loader processes; 0 reads in the main process
    eval_every: int = 1  # epochs
    checkpoint_steps: int = 0  # also within an epoch, every so many steps; 0: after each epoch
    keep_every: int = 0  # n: checkpoints of every n-th epoch stay, beside the last two and the best

    def __post_init__(self) -> None:
        if self.theta not in THETAS:
            raise ValueError(f"theta must be one of {THETAS}, got {self.theta!r}")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer must be adamw or sgd, got {self.optimizer!r}")
        for name in ("epochs", "batch_size", "accumulate", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    @property
    def rate_scale(self) -> float:
        """What lr and lr_theta are multiplied by for this batch_size (the linear rule)."""
        return self.batch_size / self.lr_batch if self.lr_batch else 1.0


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


def with_networks_of(preset: Preset, model: ModelConfig, data: DataConfig) -> Preset:
    """A preset that goes on from a trained model: its networks and the clips they are used to.

    Recipes, files, k, mirroring and test crops stay the preset's.

    Args:
        model, data: of the trained model (S2DNet.config, S2DNet.data).
    """
    names = ("n_frames", "frame_stride", "short_side", "crop", "scales", "gray")
    clips = replace(preset.data, **{name: getattr(data, name) for name in names})
    own = {"n_classes": preset.model.n_classes, "k": preset.model.k}
    return replace(preset, model=replace(model, **own), data=clips)


def override(preset: Preset, recipe: str, changes: dict[str, Any]) -> Preset:
    """A preset with fields changed by name, whichever of model, data or training holds each.

    Args:
        preset: where to start.
        recipe: the recipe that is changed, the only one that the result keeps.
        changes: field -> value.

    Raises:
        ValueError: no such recipe, or no such field.
    """
    if recipe not in preset.recipes:
        raise ValueError(f"no recipe {recipe!r} here; there are {', '.join(preset.recipes)}")
    parts = {"model": preset.model, "data": preset.data, "train": preset.recipes[recipe]}
    left = dict(changes)
    for part, config in parts.items():
        names = {f.name for f in fields(config)} & left.keys()
        parts[part] = replace(config, **{name: left.pop(name) for name in names})
    if left:
        known = sorted(f.name for config in parts.values() for f in fields(config))
        raise ValueError(f"no fields {sorted(left)} in model, data or training; there are {known}")
    return Preset(model=parts["model"], data=parts["data"], recipes={recipe: parts["train"]})


def to_dict(preset: Preset) -> dict[str, Any]:
    """Plain values for a run's config.json."""
    return asdict(preset)


_SYNTHETIC_MODEL = ModelConfig(
    n_classes=20,
    snet="tiny-s",
    dnet="tiny-d",
    synopsis_size=(8, 16, 16),
    detail_size=(8, 20, 20),
    context_dim=64,
    theta_dim=24,
    theta_head="attention",
    frozen_space="full",
    frozen_zoom=(1.0, 0.7),  # a centre crop, as the paper's; it leaves the strip to SNet
    dropout=0.2,
)
_SYNTHETIC_DATA = DataConfig(
    csv="data/synthetic/synthetic.csv",
    n_frames=48,
    frame_stride=1,
    min_frames=48,
    short_side=72,
    crop=64,
    scales=(64 / 72,),
    flip=False,
    gray=True,
    cache="data/synthetic/cache",
)
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
    "zoom": TrainConfig(epochs=16, lr=3e-3, theta="random", eval_every=4),
    # All together, in one stage.
    "joint": TrainConfig(epochs=12, lr=2e-3, lr_theta=4e-3, hold_zoom=5, eval_every=2),
    # The ceiling: DNet looks at the detail itself.
    "truth": TrainConfig(epochs=12, lr=2e-3, lr_theta=4e-3, theta="truth", eval_every=2),
    # The paper's words: from scratch, in one stage, about as long as all stages above.
    "paper": TrainConfig(epochs=30, lr=2e-3, lr_theta=2e-3, eval_every=3),
    # The release in small: its two stages in the proportion of 40 and 80 epochs.
    "authors-1": replace(
        _AUTHORS, epochs=7, lr=2e-2, lr_theta=2e-3, theta="frozen", eval_every=7
    ),
    "authors-2": replace(_AUTHORS, epochs=13, lr=2e-3, lr_theta=2e-4, eval_every=2),
}  # fmt: skip
# For days on GPUs: a kill costs some minutes, and the loader has processes of its own.
_LONG = {"workers": 8, "checkpoint_steps": 500}
# The paper's words: end to end, from scratch, in one stage.
_ALONE_RECIPES = {"paper": TrainConfig(lr_batch=32, **_LONG)}
_PAPER_RECIPES = _ALONE_RECIPES | {
    # The release: rates per clip of the batch, warm-up of 5 epochs in each stage.
    "authors-1": replace(
        _AUTHORS, epochs=40, lr=1e-5, lr_theta=1e-6, lr_batch=1, warmup_epochs=5, theta="frozen",
        **_LONG,
    ),
    "authors-2": replace(
        _AUTHORS, epochs=80, lr=1e-6, lr_theta=1e-7, lr_batch=1, warmup_epochs=5, **_LONG,
    ),
}  # fmt: skip
_X3D_S_M = ModelConfig(
    n_classes=400,
    snet="x3d-s",
    dnet="x3d-m",
    synopsis_size=(16, 224, 224),
    detail_size=(16, 144, 144),
)
_SS_EFFICIENT = ModelConfig(n_classes=174, synopsis_size=(8, 144, 144), detail_size=(12, 144, 144))
_KINETICS = DataConfig(csv="data/kinetics400/kinetics400.csv", test_crops=3)  # Sec. 4.1
_SSV2 = DataConfig(csv="data/ssv2/ssv2.csv", n_frames=85, flip=False)

PRESETS: dict[str, Preset] = {
    # The built-in videos, a row in two or three minutes on one core.
    "synthetic": Preset(
        model=_SYNTHETIC_MODEL,
        data=_SYNTHETIC_DATA,
        recipes=_SYNTHETIC_RECIPES,
    ),
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
        model=ModelConfig(
            n_classes=20,
            theta_head="attention",
            frozen_space="full",
            frozen_zoom=(1.0, 0.7),
            dropout=0.2,
        ),
        data=DataConfig(
            csv="data/synthetic-large/synthetic-large.csv",
            n_frames=96,
            frame_stride=1,
            min_frames=96,
            scales=(224 / 256,),
            flip=False,
        ),
        recipes={
            name: replace(recipe, lr=recipe.lr / 4, lr_theta=recipe.lr_theta / 4, workers=14)
            for name, recipe in _SYNTHETIC_RECIPES.items()
        },
    ),
    # Table 2 and Table 3a: top-1 74.7, 18.0 G multiply-adds in the paper.
    "mini-kinetics": Preset(
        model=ModelConfig(n_classes=200),
        data=DataConfig(csv="data/mini-kinetics/mini-kinetics.csv"),
        recipes=_PAPER_RECIPES,
    ),
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
    "ssv2-efficient": Preset(
        model=_SS_EFFICIENT,
        data=_SSV2,
        recipes=_PAPER_RECIPES,
    ),
    # Table 3b, Something-Something V1: top-1 49.7, 22 G. The model of ssv2-efficient.
    "ssv1": Preset(
        model=_SS_EFFICIENT,
        data=replace(_SSV2, csv="data/ssv1/ssv1.csv"),
        recipes=_PAPER_RECIPES,
    ),
    # Single networks, their frames sampled uniformly. Table 4, TSM: top-1 63.4, 66 G, 24.3 M.
    "tsm-r50": Preset(
        model=ModelConfig(n_classes=174, snet="resnet50", dnet=None, synopsis_size=(16, 224, 224)),
        data=_SSV2,
        recipes=_ALONE_RECIPES,
    ),
    # Table 1 and Table 4, TDN-R50: top-1 65.3, 72 G. Counted: 71.3 G
    "tdn-r50": Preset(  # 16 segments of 5 frames, almost one after another in a clip of 85
        model=ModelConfig(n_classes=174, snet="tdn-r50", dnet=None, synopsis_size=(80, 224, 224)),
        data=_SSV2,
        recipes=_PAPER_RECIPES,
    ),
    # The paper's SNet on Mini-Kinetics (Table 2a, a1): top-1 68.6, 2.2 G.
    "tsm-mn2": Preset(
        model=ModelConfig(n_classes=200, dnet=None),
        data=DataConfig(csv="data/mini-kinetics/mini-kinetics.csv"),
        recipes=_ALONE_RECIPES,
    ),
    # X3D at the sizes of its own paper (there 10 clips and 3 crops): top-1 73.3, 76.0, 79.1.
    "x3d-s": Preset(
        model=ModelConfig(n_classes=400, snet="x3d-s", dnet=None, synopsis_size=(13, 160, 160)),
        data=_KINETICS,
        recipes=_ALONE_RECIPES,
    ),
    "x3d-m": Preset(  # Table 1: 6.2 G
        model=ModelConfig(n_classes=400, snet="x3d-m", dnet=None, synopsis_size=(16, 256, 256)),
        data=replace(_KINETICS, short_side=292, crop=256),
        recipes=_ALONE_RECIPES,
    ),
    "x3d-xl": Preset(  # Table 1: 48 G
        model=ModelConfig(n_classes=400, snet="x3d-xl", dnet=None, synopsis_size=(16, 312, 312)),
        data=replace(_KINETICS, short_side=356, crop=312),
        recipes=_ALONE_RECIPES,
    ),
    # Videos of one's own, by a CSV: MobileNetV2 in both networks, fine-tuned on a CPU if need be.
    "videos": Preset(
        model=ModelConfig(
            n_classes=10,
            dnet="mobilenet_v2",
            synopsis_size=(8, 80, 80),
            detail_size=(12, 96, 96),
            theta_head="attention",
            frozen_space="full",
        ),
        data=DataConfig(
            csv="data/videos/videos.csv",
            n_frames=108,
            short_side=144,
            crop=128,
            scales=(128 / 144,),
            cache="data/videos/cache",
        ),
        recipes={"joint": TrainConfig(epochs=15, batch_size=8, lr=5e-4, lr_theta=1e-3)},
    ),
}
