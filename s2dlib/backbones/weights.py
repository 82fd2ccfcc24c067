"""Weights of others and of our own: read, compared, loaded under our names."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state_dict of a published file; only tensors are unpickled.

    Raises:
        FileNotFoundError: no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights {str(path)!r}: no such file")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("model_state", "state_dict"):  # SlowFast's and pytorchvideo's, TSM's
        state = state.get(name, state)
    return {k.removeprefix("module."): v for k, v in state.items()}


def load_state(
    module: nn.Module, theirs: dict[str, Tensor], names: dict[str, str], path: str | Path
) -> None:
    """Load published weights whose keys have other names.

    Args:
        module: gets the weights.
        theirs: what read_weights gave of the file, without what has no place here.
        names: each key of the module -> its name there.
        path: the file, for the error.

    Raises:
        ValueError: keys are missing, left over or of another size; lists the first of them.
    """
    own = module.state_dict()
    differ = sorted(set(theirs) ^ set(names.values()))
    differ += [n for k, n in names.items() if n in theirs and theirs[n].numel() != own[k].numel()]
    if differ:
        raise ValueError(
            f"{path}: not the weights of this network; {len(differ)} keys are missing, left over "
            f"or of another size, the first: {', '.join(differ[:5])}"
        )
    module.load_state_dict({k: theirs[name].view_as(own[k]) for k, name in names.items()})


def load_torchvision(name: str, weights: str | None) -> nn.Module:
    """A torchvision classifier; its own classifier layer is not used here.

    Args:
        name: as torchvision's get_model takes it.
        weights: one of torchvision's weights names ("IMAGENET1K_V1", "DEFAULT"), a local file that
            holds a state_dict under torchvision's or the TSM authors' names, or None for random
            weights.

    Raises:
        FileNotFoundError: weights is neither a name nor a file.
        ValueError: the file's keys or shapes are not those of this model (its classifier apart).
    """
    names = [w.name for w in get_model_weights(name)] + ["DEFAULT"]
    if weights is None or weights in names:
        return get_model(name, weights=weights)
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights {weights!r} of {name}: neither a file nor one of torchvision's names {names}"
        )
    model = get_model(name, weights=None)
    state = {_torchvision_key(k): v for k, v in read_weights(weights).items()}
    ours, theirs = (
        {k: v for k, v in d.items() if not k.startswith(("classifier.", "fc.", "head."))}
        for d in (model.state_dict(), state)
    )
    differ = sorted(
        k
        for k in ours | theirs
        if getattr(ours.get(k), "shape", 0) != getattr(theirs.get(k), "shape", 1)
    )
    if differ:
        raise ValueError(
            f"{weights}: not the weights of {name}; {len(differ)} keys are missing, left over or "
            f"of another shape, the first: {', '.join(differ[:5])}"
        )
    model.load_state_dict(theirs, strict=False)
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
    found = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(\w+)", key)
    if found is None:
        return key
    block, layer, rest = int(found[1]), int(found[2]), found[3]
    last = 3 if block == 1 else 6  # the first block does not widen
    if layer >= last:
        return f"features.{block}.conv.{last // 3 + layer - last}.{rest}"
    return f"features.{block}.conv.{layer // 3}.{layer % 3}.{rest}"


def mismatch(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """In words, how weights differ from those that a model has; empty where they do not."""
    shapes = {k: (tuple(v.shape), tuple(own[k].shape)) for k, v in state.items() if k in own}
    found = {
        "it lacks": {k.rpartition(".")[0] for k in own.keys() - state.keys()},  # modules
        "it has besides": {k.rpartition(".")[0] for k in state.keys() - own.keys()},
        "shapes (there, here)": {f"{k} {a} {b}" for k, (a, b) in shapes.items() if a != b},
    }
    parts = []
    for words, names in found.items():
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        parts += [f"{words} {', '.join(sorted(names)[:6])}{more}"] if names else []
    return "; ".join(parts)
