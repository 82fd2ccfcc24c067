"""Start a model from trained ones: from another model, or from networks trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from s2dlib.backbones.weights import compare_state_dicts, load_weights, read_weights
from s2dlib.config import DataConfig, ModelConfig
from s2dlib.model import S2DNet, build_model
from s2dlib.presets import Preset

# Weights of which each row belongs to a class, and those whose last inputs are s.
CLASS_ROWS = [f"{net}.classifier.{part}" for net in ("snet", "dnet") for part in ("weight", "bias")]
CLASS_INPUTS = ["snet.theta_head.convolutions.0.weight", "snet.context_head.fc.weight"]


@torch.no_grad()
def initialise_from(model: S2DNet, start: S2DNet, classes: Sequence[str]) -> None:
    """Start a model from a trained one of the same networks, for the same or for other classes.

    What belongs to a class (rows of h_s and h_d, the inputs of s in f_theta and f_m) is taken up by
    the class's name; for a new class it keeps the model's own start.

    Args:
        start: the trained model, with the names of its classes.
        classes: names of the model's classes, in order.

    Raises:
        ValueError: the networks differ; it says in what.
    """
    with torch.device("meta"):  # shapes alone: the trained model, had it these classes
        alike = build_model(start.config, n_classes=len(classes)).state_dict()
    own, state = model.state_dict(), start.state_dict()
    if difference := compare_state_dicts(alike, own):
        raise ValueError(f"the checkpoint is of another architecture than the model: {difference}")
    here = [n for n, name in enumerate(classes) if name in start.classes]
    there = [start.classes.index(classes[n]) for n in here]
    for name, weight in own.items():
        if name in CLASS_ROWS:
            weight[here] = state[name][there]
        elif name in CLASS_INPUTS:
            C = weight.shape[1] - len(classes)  # channels of e, before s
            weight[:, :C] = state[name][:, :C]
            weight[:, [C + n for n in here]] = state[name][:, [C + n for n in there]]
        else:
            weight.copy_(state[name])


def load_networks(model: S2DNet, snet: str | Path | None, dnet: str | Path | None) -> None:
    """Start a model's networks from those of other runs, in which each was trained alone, or both.

    What the lone network did not have (f_theta, f_m, the fusions, DNet's weights for m) keeps its
    own start; DNet's weights for m are scaled down, so that its verdict starts as it was.

    Args:
        snet, dnet: weights files (.safetensors) of such runs; None leaves that network as it is.

    Raises:
        ValueError: a weight of the file has no place in the model, or another shape.
    """
    for part, path in (("snet", snet), ("dnet", dnet)):
        if path is None:
            continue
        network = getattr(model, part)
        if network is None:
            raise ValueError(f"{path}: given for {part}, which this model does not have")
        prefix = f"{part}."
        state = {
            key.removeprefix(prefix): value
            for key, value in read_weights(path).items()
            if key.startswith(prefix)
        }
        if not state:
            raise ValueError(f"{path}: expected weights of {part}, there are none")
        if part == "dnet" and "classifier.weight" in state:
            seen, weight = state["classifier.weight"], network.state_dict()["classifier.weight"]
            if len(seen) == len(weight) and seen.shape[1] <= weight.shape[1]:
                unseen = weight[:, seen.shape[1] :] * 0.1  # for m. (N, C_m)
                state["classifier.weight"] = torch.cat((seen, unseen), dim=1)
        load_weights(network, state, path, optional=("",))


def with_networks_of(preset: Preset, model: ModelConfig, data: DataConfig) -> Preset:
    """A preset that goes on from a trained model: its networks and the clips they are used to.

    Recipes, files, k, mirroring and test crops stay the preset's.
    """
    names = ("n_frames", "frame_stride", "short_side", "crop", "scales", "gray")
    clips = replace(preset.data, **{name: getattr(data, name) for name in names})
    model = replace(model, n_classes=preset.model.n_classes, k=preset.model.k)
    return replace(preset, model=model, data=clips)
