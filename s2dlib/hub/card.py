"""The model card of a shared model, from the record of the run that trained it: no word by hand."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

MEASURED = {  # metrics of a record -> what they are
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "snet_top1": "top-1 of SNet alone (%)",
    "top1_mean": "top-1 with the mean theta of all clips (%)",
    "top1_shuffled": "top-1 with another clip's theta (%)",
    "top1_uniform": "top-1 with the uniform grid (%)",
    "n_clips": "clips tested",
    "gmacs": "multiply-adds of a clip (G)",
}
USE = """
    from s2dlib import S2DNet, load_views
    model = S2DNet.from_pretrained("FOLDER OR HUB ID")
    frames = load_views("video.mp4", model.data)     # (V, C, T, H, W) uint8
    scores = model(frames).scores.mean(0)            # of model.classes

or, for top-5, the picture and the film of where it looks:

    s2d predict video.mp4 --checkpoint "FOLDER OR HUB ID"
"""


def card_text(record: dict[str, Any], n_parameters: int) -> str:
    """README.md of a model: data, recipe, results, provenance; a dash where nothing is known.

    Args:
        record: a run's config.json, with its metrics; model and classes at least.
    """
    source, metrics = record.get("provenance", {}), record.get("metrics", {})
    names = " ".join(record[k] for k in ("preset", "variant") if record.get(k))
    title = f"S2DNet, {names}" if names else "S2DNet"
    recipes = record.get("recipes", {})  # by name, in older records
    parts = {
        "Model": record["model"] | {"parameters": n_parameters},
        "Data and clips": {"data set": source.get("data")} | record.get("data", {}),
        "Recipe": {"recipe": record.get("recipe"), "seed": record.get("seed")}
        | record.get("train", next(iter(recipes.values()), {})),
        f"Results on the split {record.get('test_split', '-')}": {
            words: metrics.get(name) for name, words in MEASURED.items()
        },
        "Provenance": {k: v for k, v in source.items() if k not in ("data", "seed")},
    }
    lines = ["---", _metadata(record, title).to_yaml(), "---", "", f"# {title}", ""]
    lines += [
        "A Synopsis-to-Detail Network (Liang et al., ECCV 2022): a glance at small frames says",
        "where, when and how closely to look; a second network decides on what is sampled there.",
    ]
    for heading, values in parts.items():
        lines += ["", f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_shown(value)} |" for name, value in values.items()]
    lines += ["", "## Classes", "", "; ".join(record["classes"]), "", "## Use", USE]
    return "\n".join(lines)


def _metadata(record: dict[str, Any], title: str) -> ModelCardData:
    """What the hub indexes."""
    task, data = "video-classification", record.get("provenance", {}).get("data", "unknown")
    top1, split = record.get("metrics", {}).get("top1"), record.get("test_split")
    results = None
    if top1 is not None:
        share = round(top1 / 100, 4)
        results = [
            EvalResult(
                task, data, data, "accuracy", share, metric_name="top-1", dataset_split=split
            )
        ]
    return ModelCardData(
        model_name=title,
        library_name="s2dlib",
        pipeline_tag=task,
        tags=[task, "model_hub_mixin"],
        eval_results=results,
    )


def _shown(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " x ".join(map(_shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return str(value).replace("|", "\\|")
