"""Weights of others and of our own: read, compared, loaded under our names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state_dict of a file: safetensors, or a published .pth, of which tensors alone are read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged safetensors file, or something else under that name.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights {str(path)!r}: no such file")
    if Path(path).suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("model_state", "state_dict"):  # SlowFast's and pytorchvideo's, TSM's
        state = state.get(name, state)
    return {k.removeprefix("module."): v for k, v in state.items()}


def compare_state_dicts(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What a state lacks, has besides, or has in another shape than a module's own; "": nothing."""
    parts = {"missing": own.keys() - state.keys(), "unexpected": state.keys() - own.keys()}
    parts["shapes (there, here)"] = {
        f"{key} {tuple(state[key].shape)} {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    }
    n = sum(map(len, parts.values()))
    lists = (
        f"{words}: {', '.join(sorted(keys)[:6])}{', ...' * (len(keys) > 6)}"
        for words, keys in parts.items()
        if keys
    )
    return f"{n} keys differ; {'; '.join(lists)}" if n else ""


def renamed(keys: Iterable[str], parts: Mapping[str, str]) -> dict[str, str]:
    """Each of our keys -> its name with parts of it replaced, one after another; ours -> theirs."""
    names = {key: key for key in keys}
    for ours, theirs in parts.items():
        names = {key: name.replace(ours, theirs) for key, name in names.items()}
    return names


def load_weights(
    module: nn.Module,
    state: dict[str, Tensor],
    source: str | Path,
    *,
    published: Mapping[str, str] | None = None,
    optional: tuple[str, ...] = (),
) -> None:
    """Load a state_dict whole; an error names what is missing, unexpected or of another shape.

    Args:
        source: where the weights come from, for the error.
        published: parts of our keys -> what the state calls them (renamed). A layer that is a
            convolution here and linear there has a weight of the same size, not shape.
        optional: how keys begin that may be missing; they keep the module's own weights.

    Raises:
        ValueError: the weights are not those of the module.
    """
    own = module.state_dict()
    names = renamed(own, published or {})
    needed = {names[key]: value for key, value in own.items()}
    needed = {k: v for k, v in needed.items() if k in state or not k.startswith(optional)}
    if published:
        state = dict(state)
        for key in needed.keys() & state.keys():
            if state[key].numel() == needed[key].numel():
                state[key] = state[key].view_as(needed[key])
    if difference := compare_state_dicts(state, needed):
        raise ValueError(f"{source}: not the weights of this network; {difference}")
    module.load_state_dict({key: state.get(names[key], value) for key, value in own.items()})


CLASSIFIERS = ("classifier.", "fc.", "head.")  # of torchvision's networks


def load_torchvision(name: str, weights: str | None) -> Any:  # noqa: ANN401
    """A torchvision network, with attributes of its own; its classifier layer is not used here.

    Args:
        weights: one of torchvision's weights names ("IMAGENET1K_V1", "DEFAULT"), a local file that
            holds a state_dict under torchvision's or the TSM authors' names, or None: random ones.

    Raises:
        FileNotFoundError: weights is neither a name nor a file.
        ValueError: the file's keys or shapes are not those of this model (its classifier apart).
    """
    # Imported here: it takes as long as torch, and not every network is torchvision's.
    from torchvision.models import get_model, get_model_weights

    published = [w.name for w in get_model_weights(name)] + ["DEFAULT"]
    if weights is None or weights in published:
        return get_model(name, weights=weights)
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights {weights!r} of {name}: neither a file nor one of torchvision's names "
            f"{published}"
        )
    model = get_model(name, weights=None)
    state = {_torchvision_key(key): value for key, value in read_weights(weights).items()}
    state = {key: value for key, value in state.items() if not key.startswith(CLASSIFIERS)}
    load_weights(model, state, weights, optional=CLASSIFIERS)
    return model


def _torchvision_key(key: str) -> str:
    """A key of a TSM checkpoint by torchvision's name; one of torchvision's stays as it is.

    TSM's files: base_model., then the network, ".net." where a convolution is shifted, new_fc.
    Their MobileNetV2 has all layers of a block in one row, torchvision's has each convolution but
    the last with its batch norm.
    """
    if not key.startswith(("base_model.", "new_fc.")):
        return key
    key = key.removeprefix("base_model.").replace(".net.", ".").replace("new_fc.", "fc.")
    found = re.fullmatch(r"(features\.(\d+)\.conv)\.(\d+)\.(\w+)", key)
    if found is None:
        return key
    layer, last = int(found[3]), 3 if found[2] == "1" else 6  # the first block does not widen
    place = f"{layer // 3}.{layer % 3}" if layer < last else f"{last // 3 + layer - last}"
    return f"{found[1]}.{place}.{found[4]}"
