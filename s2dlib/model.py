"""S2DNet: two samplers and two networks (Fig. 2); any row of the tables, built by name."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from s2dlib.backbones.build import build_backbone
from s2dlib.backbones.weights import mismatch
from s2dlib.config import CONFIG_FILE, METRICS_FILE, WEIGHTS, DataConfig, ModelConfig
from s2dlib.detail import DNet
from s2dlib.hub.card import card_text
from s2dlib.presets import PRESETS, variant_of
from s2dlib.sampler import DetailSampler, Theta, UniformSampler, check_clips, frozen_theta
from s2dlib.synopsis import SNet

ABSOLUTE_FOLDERS = r"""(?<![\w.~-])/(?:[^/\s,{}'"]+/)+"""  # of a path in a command, up to its name
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Output:
    """All of Fig. 2 by name. What a network alone does not make is None."""

    scores: Tensor | None  # p-hat * s; p of SNet alone, p-hat of DNet alone. (B, N)
    logits: Tensor | None  # SNet's; softmax is p. (B, N)
    topk_mask: Tensor | None  # s. (B, N)
    theta: Theta | None
    context: Tensor | None  # m. (B, C_m)
    synopsis_frames: Tensor | None  # V, in the units of the frames. (B, C, T_S, H_S, W_S)
    detail_volume: Tensor | None  # V-hat, in the units of the frames. (B, C, T_D, H_D, W_D)
    detail_logits: Tensor | None  # DNet's; softmax is p-hat. (B, N)


class S2DNet(nn.Module, ModelHubMixin):
    """Synopsis-to-Detail Network (Sec. 3); rows a1 and a2 of Table 2 lack one of its networks.

    Shared as config.json, model.safetensors and README.md, a model card: save_pretrained(folder),
    from_pretrained(folder or hub id), push_to_hub(hub id). The folder of a run is one of these.

    Attributes:
        record: of the run that trained it, its config.json (results.write_record): classes, data,
            recipe, provenance, and metrics; empty for a model that was built.
    """

    def __init__(self, config: ModelConfig, snet: SNet | None, dnet: DNet | None) -> None:
        super().__init__()
        self.config = config
        self.record: dict[str, Any] = {}
        self.snet, self.dnet = snet, dnet
        self.synopsis_sampler = UniformSampler(config.synopsis_size)
        self.detail_sampler = DetailSampler(config.detail_size, config.filters)
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1, 1), persistent=False)

    @property
    def classes(self) -> list[str]:
        """Names of the actions; their numbers, for a model that was not trained."""
        return self.record.get("classes") or [str(n) for n in range(self.config.n_classes)]

    @property
    def data(self) -> DataConfig:
        """How the clips that it was trained on are chosen and cropped.

        Raises:
            ValueError: the model was built, not trained.
        """
        if "data" not in self.record:
            raise ValueError("expected a trained model: this one's record says nothing of its data")
        return DataConfig(**self.record["data"])

    @classmethod
    def from_pretrained(cls, source: str | Path, **how: Any) -> S2DNet:  # noqa: ANN401
        """A trained model, in evaluation mode, with its record. Nothing is unpickled.

        Args:
            source: the folder of a run, one that save_pretrained wrote, or a model's id on the hub.
            how: revision, token, cache_dir and so on, of huggingface_hub.

        Raises:
            FileNotFoundError: neither a folder that holds a model nor one that the hub has.
            ValueError: the weights are not those of the architecture in config.json.
        """
        folder = Path(source)
        if not folder.is_dir() and folder.parent != Path() and folder.parent.is_dir():
            raise FileNotFoundError(f"{source}: no such folder in {folder.parent}")
        try:
            return super().from_pretrained(source, **how)
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"{source}: expected a folder with {CONFIG_FILE} and {WEIGHTS}, or the id of a "
                f"model on the hub; there is no such folder, and the hub says: {error}"
            ) from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, **how: str | bool | None
    ) -> S2DNet:
        """What from_pretrained of the mixin calls, with the config.json that it has read."""
        folder, record = Path(model_id), config or {}
        if "model" not in record:
            raise FileNotFoundError(
                f"{model_id}: expected {CONFIG_FILE} of a model, with its networks"
            )
        weights = folder / WEIGHTS
        if not folder.is_dir():
            weights = Path(hf_hub_download(model_id, WEIGHTS, **how))
        elif not weights.is_file():
            raise FileNotFoundError(
                f"{weights}: expected the weights, which a training leaves there and git does not "
                f"keep; train the run again with the command in its {CONFIG_FILE}"
            )
        if (metrics := folder / METRICS_FILE).is_file():
            record["metrics"] = json.loads(metrics.read_text())
        try:
            model = build_model(ModelConfig(**record["model"]))
        except TypeError as error:
            raise ValueError(
                f"{model_id}: {CONFIG_FILE} is not of this version: {error}"
            ) from error
        try:
            state = load_file(weights)
        except SafetensorError as error:
            raise ValueError(f"{weights}: not a safetensors file ({error})") from error
        if differs := mismatch(state, model.state_dict()):
            raise ValueError(f"{weights}: not the weights of the model in {CONFIG_FILE}; {differs}")
        model.load_state_dict(state)
        model.record = record
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **how: Any) -> str | None:  # noqa: ANN401
        """Write config.json, model.safetensors and, where there is none yet, README.md.

        Args:
            save_directory: made if need be; an older model there is replaced.
            how: of huggingface_hub, to push it to the hub as well.

        Raises:
            ValueError: the folder is a run's, whose record would lose the paths of its data.
        """
        if (Path(save_directory) / METRICS_FILE).exists():
            raise ValueError(
                f"{save_directory}: the folder of a run, which from_pretrained reads as it is; "
                "choose another folder for a copy to share"
            )
        return super().save_pretrained(save_directory, **how)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What save_pretrained of the mixin calls."""
        state = {k: v.contiguous() for k, v in self.state_dict().items()}
        (save_directory / WEIGHTS).write_bytes(save(state))
        (save_directory / CONFIG_FILE).write_text(json.dumps(self._to_share(), indent=1) + "\n")

    def generate_model_card(self, *_: object, **__: object) -> ModelCard:
        """README.md of a shared model: data, recipe, results, how to use it."""
        n_parameters = sum(p.numel() for p in self.parameters())
        return ModelCard(card_text(self._to_share(), n_parameters))

    def _to_share(self) -> dict[str, Any]:
        """The record, without the folders of its owner: names of files, relative paths at most."""
        record = self.record | {"model": asdict(self.config), "classes": self.classes}
        if "data" in record:
            names = {"csv": Path(record["data"]["csv"]).name, "cache": None}
            record["data"] = record["data"] | names
        source = record.get("provenance", {})
        if "command" in source:
            command = re.sub(ABSOLUTE_FOLDERS, "", source["command"])
            record["provenance"] = source | {"command": command}
        return record

    def normalise(self, frames: Tensor, scale: float) -> Tensor:
        """Per channel, to ImageNet's mean and spread; gray clips become three channels here.

        Filters sum to 1, so this commutes with sampling, and raw frames stay uint8 until then (D5).
        """
        return (frames * scale - self.mean) / self.std

    def frozen_theta(self, n_frames: Tensor, height: int, width: int) -> Theta:
        """Where a row without sampling looks. n_frames: (B,)"""
        how = (self.config.frozen_space, self.config.frozen_zoom)
        return frozen_theta(n_frames, height, width, self.config.detail_size, *how)

    def forward(
        self, frames: Tensor, n_frames: Tensor | None = None, theta: Theta | None = None
    ) -> Output:
        """Fig. 2, from raw frames to the verdict.

        Args:
            frames: raw frames I, uint8, or float in [0, 1]; gray clips may have one channel.
                (B, 3, T, H, W)
            n_frames: real frames of each clip, the rest is padding; None: T. (B,)
            theta: look here, instead of where SNet says (controls, training of DNet alone).

        Returns:
            Output, every symbol of Fig. 2 by name.

        Raises:
            ValueError: frames or n_frames of wrong shape or range (sampler.check_clips).
        """
        n_frames = check_clips(frames, n_frames)
        out = self.glance(frames, n_frames)
        return out if self.dnet is None else self.look_closely(out, frames, n_frames, theta)

    def glance(self, frames: Tensor, n_frames: Tensor) -> Output:
        """SNet's part: V, p, s, theta and m; scores are p. Without SNet, the frozen theta alone."""
        extent = (n_frames, *frames.shape[-2:])
        if self.snet is None:
            return Output(None, None, None, self.frozen_theta(*extent), None, None, None, None)
        synopsis = self.synopsis_sampler(frames, n_frames)
        normalised = self.normalise(synopsis, scale_of(frames))
        logits, mask, theta, context = self.snet(normalised, extent)
        if self.dnet is None:
            theta = context = None
        p = logits.float().softmax(dim=1)
        return Output(p, logits, mask, theta, context, synopsis, None, None)

    def look_closely(
        self, seen: Output, frames: Tensor, n_frames: Tensor, theta: Theta | None = None
    ) -> Output:
        """DNet's part, on what glance gave; arguments as of forward."""
        theta = seen.theta if theta is None else theta
        volume = self.detail_sampler(frames, theta, n_frames)
        logits = self.dnet(self.normalise(volume, scale_of(frames)), seen.context)
        scores = logits.float().softmax(dim=1)
        if seen.topk_mask is not None:  # no candidate's score may underflow to the others' zero
            scores = scores.clamp(min=torch.finfo(scores.dtype).tiny) * seen.topk_mask
        return replace(seen, scores=scores, theta=theta, detail_volume=volume, detail_logits=logits)


def scale_of(frames: Tensor) -> float:
    """What brings raw frames into [0, 1]."""
    return 1.0 if frames.is_floating_point() else 1 / 255


def build_model(
    preset: str | ModelConfig,
    variant: str = "a0",
    *,
    n_classes: int | None = None,
    snet_weights: str | None = None,
    dnet_weights: str | None = None,
) -> S2DNet:
    """A model by the name of a preset and of a row of Table 2, or from a configuration.

    Args:
        preset: a key of PRESETS, or a ModelConfig.
        variant: a row of Table 2, applied to it.
        n_classes: N, in place of the preset's.
        snet_weights, dnet_weights: published weights for the backbones: one of torchvision's names
            or a local file.

    Raises:
        ValueError: no such preset, row or backbone.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        preset = PRESETS[preset].model
    if n_classes is not None:
        preset = replace(preset, n_classes=n_classes, k=min(preset.k, n_classes))
    config = variant_of(preset, variant)
    snet = dnet = None
    if config.snet is not None:
        backbone = build_backbone(config.snet, snet_weights)
        snet = SNet(backbone, config, synopsis=config.dnet is not None)
    if config.dnet is not None:
        backbone = build_backbone(config.dnet, dnet_weights)
        context_dim = config.context_dim if snet is not None else 0
        dnet = DNet(backbone, config.n_classes, context_dim, config.fuse_context, config.dropout)
    return S2DNet(config, snet, dnet)
