"""Every choice of an experiment, as frozen values: model, data, training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Literal, get_type_hints

from pydantic import Field, Strict, TypeAdapter, ValidationError

CONFIG_FILE, METRICS_FILE, WEIGHTS = "config.json", "metrics.json", "model.safetensors"

Count = Annotated[int, Field(ge=1)]
Bool = Annotated[bool, Strict()]  # or the text "no" were true, and "off" false
Size = tuple[Count, Count, Count]  # frames, rows, columns
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fields checked against their annotations, and taken over in their type.

    JSON and YAML hand over lists for tuples, and some numbers, as 1e-3, as text.
    """

    def __post_init__(self) -> None:
        for name, adapter in _adapters(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, adapter.validate_python(value))
            except ValidationError as error:
                why = error.errors()[0]["msg"].replace("Input should be", "must be")
                raise ValueError(f"{name}: {why}, got {value!r}") from None


@cache
def _adapters(config: type[Config]) -> dict[str, TypeAdapter]:
    hints = get_type_hints(config, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(config)}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """S2DNet, or one of its two networks alone (Sec. 3, Sec. 4.1-4.4)."""

    n_classes: Count  # N
    k: int = 5  # likely actions kept by SNet (Sec. 4.1)
    snet: str | None = "mobilenet_v2"  # backbone f_s; None: DNet alone (row a2)
    dnet: str | None = "resnet50"  # backbone f_d; None: SNet alone (row a1)
    synopsis_size: Size = (16, 144, 144)  # T_S, H_S, W_S (Sec. 4.3)
    detail_size: Size = (16, 112, 112)  # T_D, H_D, W_D (Sec. 4.3)
    context_dim: Count = 256  # C_m (Sec. 4.1)
    theta_dim: Count = 64  # channels of the two convolutions of f_theta (the paper is silent)
    # "fc": the paper's wording; "attention": keeps position (docs/decisions.md, D8)
    theta_head: Literal["fc", "attention"] = "fc"
    detach_theta: Bool = False  # stop the gradient of theta before SNet's backbone (D6)
    sample_time: Bool = True  # mu_t, delta_t from f_theta; else frames uniform over the clip
    sample_space: Bool = True  # mu_y, mu_x, delta_y, delta_x from f_theta; else frozen_space
    # "crop": centre crop at stride 1 (Sec. 4.3); "full": whole frame
    frozen_space: Literal["crop", "full"] = "crop"
    frozen_zoom: tuple[Share, Share] = (1.0, 1.0)  # frozen strides / full coverage: time, space
    frozen_at: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)  # its middle: time, height, width
    # Where the attention looks at first: at nothing in particular, or at what moves (D8)
    start: Literal["uniform", "motion"] = "uniform"
    start_zoom: tuple[Share, Share] = (0.5, 0.8)  # its zooms s at first: time, space
    start_shift: float = 0.0  # how much later than motion, raw frames
    fuse_context: Bool = True  # lateral fusion of m after res3 and res4 (Eq. 9)
    filters: Literal["gaussian", "linear"] = "gaussian"  # (Sec. 3.2)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # before both classifiers (release)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.n_classes:
            raise ValueError(f"k must lie in [1, n_classes={self.n_classes}], got {self.k}")
        if self.snet is None and self.dnet is None:
            raise ValueError("snet and dnet are both None: at least one network is needed")
        if self.theta_head == "fc" and self.start == "motion":
            raise ValueError("start='motion' needs theta_head='attention', got 'fc'")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Raw frames I: which files, and how a clip is chosen from a video (Sec. 4.1)."""

    csv: str  # rows path,label,split; paths relative to the file's own folder
    n_frames: Count = 150  # T, at most; a shorter video gives fewer frames
    frame_stride: Count = 2  # tau
    min_frames: Count = 1  # a video with fewer frames at this stride is an error
    # A video lies at random in one of so many frames, the rest its own silence to and fro: before
    # column onset and from column end, or its first and last tenth; 0: as it is
    within: Annotated[int, Field(ge=0)] = 0
    short_side: Count = 256  # pixels, before cropping
    crop: Count = 224  # H = W of the raw frames, pixels
    # Sides of the training crop / short side.
    scales: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0, 0.875, 0.75, 0.66)
    # 3: both ends and the centre of the longer side, scores averaged
    test_crops: Literal[1, 3] = 1
    # Testing clips and squares: the middle ones, or drawn at random, the same ones each time
    test_clip: Literal["centre", "random"] = "centre"
    flip: Bool = True  # training only; not where left and right are labels
    gray: Bool = False  # keep one channel; the model repeats it after sampling
    cache: str | None = None  # folder for decoded frames; None: decode each time
    # seconds without progress that are granted to the reader of a video
    timeout: Annotated[float, Field(gt=0)] = 60.0
    n_clips: Annotated[int, Field(ge=0)] = 0  # of each split, the first, for trials; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop > self.short_side:
            raise ValueError(f"crop={self.crop} does not fit short_side={self.short_side}")
        if self.test_clip == "random" and self.test_crops != 1:
            raise ValueError(f"test_clip='random' needs test_crops=1, got {self.test_crops}")


# "model": as the row says. "frozen": as rows without sampling. "random": windows that know nothing
# of the clip, which teach DNet to read at any zoom (D9). "motion": on what moves, as large and as
# much later as start_zoom and start_shift say; "around": there, at random times. "truth": on the
# detail, where it is known; of a detail known in time alone, on what moves at that time.
ThetaSource = Literal["model", "frozen", "random", "motion", "around", "truth"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """One training stage of any row (Sec. 4.1; the paper leaves most of it open)."""

    epochs: Count = 50
    batch_size: Count = 32  # clips of one optimizer step, over all processes
    accumulate: Count = 1  # parts of a step, one after the other; batch norm sees a part at a time
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: momentum 0.9, Nesterov
    lr: float = 1e-3  # at the peak, for a step of lr_batch clips
    lr_theta: float = 1e-3  # the same, for f_theta
    lr_batch: int = 0  # rates grow in proportion to batch_size / lr_batch; 0: as they are
    lr_snet: float = 1.0  # f_s and h_s beside DNet: times lr; 0: still
    lr_fc: float = 1.0  # linear layers outside f_theta: times lr
    lr_bias: float = 1.0  # biases of convolutions and linear layers outside f_theta: times lr
    hold_zoom: int = 0  # epochs in which zooms keep their start, so that centres come first (D9)
    weight_decay: float = 1e-2
    warmup_epochs: float = 0.5  # linear, then a cosine
    final_lr: float = 0.0  # where the cosine ends, as a fraction of lr
    clip_grad_norm: float = 20.0
    alpha: float = 0.1  # weight of L_s (Eq. 12, Sec. 4.1)
    masked: Bool = True  # L_d counts clips whose class is in SNet's top k (Eq. 11); else all clips
    label_smoothing: float = 0.0  # of both cross entropies
    theta_source: ThetaSource = "model"  # where DNet looks while it is trained
    amp: Bool = True  # bfloat16 autocast, on CUDA only
    workers: Annotated[int, Field(ge=0)] = 0  # loader processes; 0 reads in the main process
    eval_every: Count = 1  # epochs
    checkpoint_steps: int = 0  # also within an epoch, every so many steps; 0: after each epoch
    keep_every: int = 0  # n: checkpoints of every n-th epoch stay, beside the last two and the best

    @property
    def rate_scale(self) -> float:
        """What lr and lr_theta are multiplied by for this batch_size (the linear rule)."""
        return self.batch_size / self.lr_batch if self.lr_batch else 1.0
