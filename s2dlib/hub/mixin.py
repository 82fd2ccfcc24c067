"""Models by folder or hub id: config.json, model.safetensors and a model card; no pickle.

The folder of a run is one of these. huggingface_hub's mixin brings folder, hub and upload; its own
way of loading falls back on a pickle and lets missing weights pass, so it is replaced.
"""

# ruff: noqa: ANN401  # of options, which are huggingface_hub's

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save
from torch import nn

from s2dlib.backbones.weights import load_weights, read_weights
from s2dlib.config import CONFIG_FILE, METRICS_FILE, WEIGHTS, DataConfig, ModelConfig
from s2dlib.hub.card import card_text

CARD = "README.md"
ABSOLUTE_FOLDERS = r"""(?<![\w.~-])/(?:[^/\s,{}'"]+/)+"""  # of a path in a command, up to its name


class PretrainedMixin(ModelHubMixin, nn.Module):
    """from_pretrained, save_pretrained, push_to_hub, and the record of the run behind a model.

    Attributes:
        config: the ModelConfig of the model.
        record: of the run that trained it, its config.json (report.records.write_record): classes,
            data, recipe, provenance, and metrics; empty for a model that was built.
    """

    config: ModelConfig
    record: dict[str, Any]

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """A model with random weights; the class that has the networks says how."""
        raise NotImplementedError

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
    def from_pretrained(  # type: ignore[override]  # a shorter name, and options by name alone
        cls, source: str | Path, **options: Any
    ) -> Self:
        """A trained model, in evaluation mode, with its record. Nothing is unpickled.

        Args:
            source: the folder of a run, one that save_pretrained wrote, or a model's id on the hub.
            options: revision, token, cache_dir and so on, of huggingface_hub.

        Raises:
            FileNotFoundError: neither a folder that holds a model nor one that the hub has.
            ValueError: the weights are not those of the architecture in config.json.
        """
        folder = Path(source)
        if not folder.is_dir() and folder.parent != Path() and folder.parent.is_dir():
            raise FileNotFoundError(f"{source}: no such folder in {folder.parent}")
        try:
            return super().from_pretrained(source, **options)
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"{source}: expected a folder with {CONFIG_FILE} and {WEIGHTS}, or the id of a "
                f"model on the hub; there is no such folder, and the hub says: {error}"
            ) from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any
    ) -> Self:
        """What from_pretrained of the mixin calls, with the config.json that it has read."""
        folder, record = Path(model_id), config or {}
        if "model" not in record:
            raise FileNotFoundError(
                f"{model_id}: expected {CONFIG_FILE} of a model, with its networks"
            )
        weights = folder / WEIGHTS
        if not folder.is_dir():
            weights = Path(hf_hub_download(model_id, WEIGHTS, **options))
        elif not weights.is_file():
            raise FileNotFoundError(
                f"{weights}: expected the weights, which a training leaves there and git does not "
                f"keep; train the run again with the command in its {CONFIG_FILE}"
            )
        if (metrics := folder / METRICS_FILE).is_file():
            record["metrics"] = json.loads(metrics.read_text())
        try:
            model = cls.from_config(ModelConfig(**record["model"]))
        except TypeError as error:
            raise ValueError(
                f"{model_id}: {CONFIG_FILE} is not of this version: {error}"
            ) from error
        load_weights(model, read_weights(weights), f"{weights} for the model in {CONFIG_FILE}")
        model.record = record
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and, where there is none yet, README.md.

        Args:
            save_directory: made if need be; an older model there is replaced, all of it or none.
            options: of huggingface_hub, to push it to the hub as well.

        Raises:
            ValueError: the folder is a run's, whose record would lose the paths of its data, or
                holds files of these names that are no model of this package.
        """
        folder = Path(save_directory)
        if (folder / METRICS_FILE).exists():
            raise ValueError(
                f"{save_directory}: the folder of a run, which from_pretrained reads as it is; "
                "choose another folder for a copy to share"
            )
        there = [name for name in (CONFIG_FILE, WEIGHTS) if (folder / name).exists()]
        if there and not _is_record(folder / CONFIG_FILE):
            raise ValueError(
                f"{save_directory}: holds {' and '.join(there)}, but no model of this package, "
                "which alone is replaced; choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as temporary:
            whole = Path(temporary)
            state = {name: value.contiguous() for name, value in self.state_dict().items()}
            (whole / WEIGHTS).write_bytes(save(state))
            text = json.dumps(self._record_to_share(), indent=1)
            (whole / CONFIG_FILE).write_text(text + "\n")
            if not (folder / CARD).exists():
                self.generate_model_card().save(whole / CARD)
            for path in sorted(whole.iterdir()):
                path.replace(folder / path.name)
        if not options.pop("push_to_hub", False):
            return None
        name = options.pop("repo_id", None) or folder.absolute().name
        return self.push_to_hub(name, **options)

    def generate_model_card(self, *_: object, **__: object) -> ModelCard:
        """README.md of a shared model: data, recipe, results, how to use it."""
        n_parameters = sum(p.numel() for p in self.parameters())
        return ModelCard(card_text(self._record_to_share(), n_parameters))

    def _record_to_share(self) -> dict[str, Any]:
        """The record, without the folders of its owner: names of files, relative paths at most."""
        record = self.record | {"model": asdict(self.config), "classes": self.classes}
        if "data" in record:
            csv = Path(record["data"]["csv"]).name
            record["data"] = record["data"] | {"csv": csv, "cache": None}
        record.pop("val_data", None)  # may name a folder, and is of no use without its clips
        source = record.get("provenance", {})
        if "command" in source:
            command = re.sub(ABSOLUTE_FOLDERS, "", source["command"])
            record["provenance"] = source | {"command": command}
        return record


def _is_record(path: Path) -> bool:
    """Whether a config.json is one of this package."""
    try:
        model = json.loads(path.read_text())["model"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return isinstance(model, dict) and set(model) >= {"n_classes", "snet", "dnet"}
