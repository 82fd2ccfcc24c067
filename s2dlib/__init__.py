"""Synopsis-to-Detail Networks for video recognition (Liang et al., ECCV 2022)."""

from s2dlib.config import PRESETS, VARIANTS, ModelConfig
from s2dlib.data import VideoDataset, load_clip
from s2dlib.detail import DNet
from s2dlib.losses import s2d_loss
from s2dlib.model import Output, S2DNet, build_model
from s2dlib.sampler import DetailSampler, Theta, UniformSampler
from s2dlib.synopsis import SNet
from s2dlib.train import evaluate, fit

__all__ = [
    "PRESETS",
    "VARIANTS",
    "DNet",
    "DetailSampler",
    "ModelConfig",
    "Output",
    "S2DNet",
    "SNet",
    "Theta",
    "UniformSampler",
    "VideoDataset",
    "build_model",
    "evaluate",
    "fit",
    "load_clip",
    "s2d_loss",
]
