"""Synopsis-to-Detail Networks for video recognition (Liang et al., ECCV 2022)."""

from importlib import import_module

# Public names and their modules, imported when first asked for: running a notebook, or checking
# a video in a child process, need not wait for torch.
_HOMES = {
    "PRESETS": "config",
    "VARIANTS": "config",
    "ModelConfig": "config",
    "VideoDataset": "data",
    "load_clip": "data",
    "load_views": "data",
    "DetailSampler": "sampler",
    "Theta": "sampler",
    "UniformSampler": "sampler",
    "SNet": "synopsis",
    "DNet": "detail",
    "Output": "model",
    "S2DNet": "model",
    "build_model": "model",
    "s2d_loss": "losses",
    "evaluate": "train",
    "fit": "train",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
