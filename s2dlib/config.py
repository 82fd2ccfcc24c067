"""Every choice of an experiment, as frozen values: model, data, training."""

from __future__ import annotations

from dataclasses import dataclass

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
