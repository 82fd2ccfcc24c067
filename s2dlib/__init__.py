"""Synopsis-to-Detail Networks for video recognition (Liang et al., ECCV 2022)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2dlib.config import ModelConfig
    from s2dlib.data.clips import load_clip, load_views
    from s2dlib.data.dataset import VideoDataset
    from s2dlib.detail import DNet
    from s2dlib.losses import s2d_loss
    from s2dlib.model import Output, S2DNet, build_model
    from s2dlib.presets import PRESETS, VARIANTS
    from s2dlib.sampler import DetailSampler, Theta, UniformSampler
    from s2dlib.synopsis import SNet
    from s2dlib.training.evaluation import evaluate
    from s2dlib.training.loop import fit

# Public names and their modules, imported when first asked for: running a notebook, or checking
# a video in a child process, need not wait for torch.
_MODULES = {
    "PRESETS": "presets",
    "VARIANTS": "presets",
    "ModelConfig": "config",
    "VideoDataset": "data.dataset",
    "load_clip": "data.clips",
    "load_views": "data.clips",
    "DetailSampler": "sampler",
    "Theta": "sampler",
    "UniformSampler": "sampler",
    "SNet": "synopsis",
    "DNet": "detail",
    "Output": "model",
    "S2DNet": "model",
    "build_model": "model",
    "s2d_loss": "losses",
    "evaluate": "training.evaluation",
    "fit": "training.loop",
}
__all__ = [
    "DNet",
    "DetailSampler",
    "ModelConfig",
    "Output",
    "PRESETS",
    "S2DNet",
    "SNet",
    "Theta",
    "UniformSampler",
    "VARIANTS",
    "VideoDataset",
    "build_model",
    "evaluate",
    "fit",
    "load_clip",
    "load_views",
    "s2d_loss",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
