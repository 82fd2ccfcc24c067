"""The numbers that a change of the code's form must not move: stored logits, theta, losses.

    python tests/test_golden.py   # write golden.json anew, where a change is meant to move them

On the kind of CPU and with the torch that golden.json names, they are equal bit for bit; elsewhere
to rounding. Clips are drawn by the generator and kept without loss, so that no codec has a part.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import s2dlib
from s2dlib.data.synthetic import DATASETS, render
from s2dlib.report.records import provenance
from s2dlib.training.trials import override

ROOT = Path(__file__).resolve().parents[1]
STORED = Path(__file__).with_name("golden.json")
ELSEWHERE = 1e-6  # of the largest value, which counts as 1 at least
TRAINED = {  # preset -> fields that differ
    "synthetic": {},
    # In colour and mirrored. Not with MobileNetV2, which makes rounding from nothing much larger,
    # nor resized: CPUs of different kinds round bytes differently there.
    "videos": {"n_frames": 16, "snet": "tiny-s", "dnet": "tiny-d", "scales": (64 / 72,)}
    | {"short_side": 72, "crop": 64},
}


def clip(label: int) -> np.ndarray:
    """A clip of a class, the same on every machine. (T, H, W, 1)"""
    return render(label, DATASETS["synthetic"]["main"], np.random.default_rng(label))[0]


def of_shared_model() -> dict[str, list]:
    """What the shared model says of three clips, one of them shorter."""
    model = s2dlib.S2DNet.from_pretrained(ROOT / "results" / "models" / "synthetic")
    frames = torch.from_numpy(np.stack([clip(n)[:48, 4:68, 4:68, 0] for n in (2, 7, 13)]))
    with torch.no_grad():
        out = model(frames[:, None], torch.tensor([48, 48, 31]))
    found = {name: getattr(out, name) for name in ("logits", "detail_logits", "scores", "context")}
    found |= vars(out.theta) | {"volume": out.detail_volume.mean((3, 4))}
    return {name: value.double().tolist() for name, value in found.items()}


def of_training(preset: str) -> dict[str, float]:
    """The first three steps of a training, from nothing, and the evaluation after them."""
    with tempfile.TemporaryDirectory() as folder:
        lines = ["path,label,split"]
        for n in range(15):
            (video := Path(folder) / f"{n:02d}").mkdir()
            for t, frame in enumerate(clip(n)):
                Image.fromarray(frame[..., 0]).save(video / f"{t:03d}.png", compress_level=1)
            lines.append(f"{video.name},{n % 10},{'train' if n < 12 else 'val'}")
        csv = Path(folder) / "clips.csv"
        csv.write_text("\n".join(lines))
        # Adam makes steps of one size out of gradients that are nothing but rounding; SGD does not.
        changes = {"csv": str(csv), "cache": None, "n_classes": 10, "epochs": 1, "batch_size": 4}
        changes |= {"optimizer": "sgd", "lr": 1e-2, "lr_theta": 1e-2, "hold_zoom": 0}
        setting = override(s2dlib.PRESETS[preset], "joint", changes | TRAINED[preset])
        sets = [s2dlib.VideoDataset(setting.data, s, train=s == "train") for s in ("train", "val")]
        torch.manual_seed(0)
        model, train = s2dlib.build_model(setting.model), setting.recipes["joint"]
        (row,) = s2dlib.fit(model, *sets, train, run_dir=Path(folder) / "run")
    return {name: value for name, value in row.items() if name != "seconds"}


def measured() -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {"shared model": of_shared_model()}
        return found | {f"three steps of {name}": of_training(name) for name in TRAINED}
    finally:
        torch.set_num_threads(threads)


def machine() -> dict[str, str]:
    """What decides the last bits."""
    source = provenance(None, "cpu", 0, "drawn clips")
    return {"device": source["device"], "torch": source["versions"]["torch"]}


@pytest.mark.parametrize("what", ["shared model", *(f"three steps of {name}" for name in TRAINED)])
def test_golden_numbers_stay_as_they_are(what, golden):
    stored, found = json.loads(STORED.read_text()), golden[what]
    assert found.keys() == stored[what].keys()
    here = stored["machine"] == machine()
    for name, expected in stored[what].items():
        expected = torch.tensor(expected, dtype=torch.float64)
        off = (torch.tensor(found[name], dtype=torch.float64) - expected).abs().max().item()
        if "top" in name and not here:
            continue  # of a few clips: rounding may decide one of them
        bound = ELSEWHERE * expected.abs().max().clamp(min=1).item()
        assert off == 0 if here else off <= bound, f"{what}, {name}: off by {off}"


@pytest.fixture(scope="module")
def golden() -> dict:
    return measured()


if __name__ == "__main__":
    sys.stdout.write(f"{STORED}: {machine()}\n")
    STORED.write_text(json.dumps({"machine": machine()} | measured(), indent=None) + "\n")
