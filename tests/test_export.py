"""Exported files give what the model gives, on clips unlike the example, and say how to be used."""

from __future__ import annotations

import functools
import json
import pickle
import sys
from dataclasses import asdict, replace

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from s2dlib.apps import cli, export
from s2dlib.apps.export import export_model
from s2dlib.backbones.tsm import FramewiseStage, Shifted
from s2dlib.config import DataConfig
from s2dlib.data.files import as_text, check_output
from s2dlib.kernels import banded
from s2dlib.model import build_model
from s2dlib.presets import PRESETS, VARIANTS

pytestmark = pytest.mark.slow

THETA = ["mu_t", "delta_t", "mu_y", "mu_x", "delta_y", "delta_x"]
STRIDES = ["delta_t", "delta_y", "delta_x"]
SMALL = {"n_classes": 9, "synopsis_size": (2, 32, 32), "detail_size": (3, 32, 32)}
CLIPS = DataConfig(csv="", n_frames=7, crop=48, short_side=56)  # no size like another
GRAY = DataConfig(csv="", n_frames=24, crop=40, short_side=40, gray=True)


def clips(n, data):
    """Blocks of gray that change over time, in clips of different brightness, under noise."""
    C, T, S = 1 if data.gray else 3, data.n_frames, data.crop
    blocks = torch.rand(n, C, T, S // 8, S // 8).repeat_interleave(8, 3).repeat_interleave(8, 4)
    noise = torch.rand(n, C, T, S, S)
    return (255 * torch.rand(n, 1, 1, 1, 1) * (0.7 * blocks + 0.3 * noise)).to(torch.uint8)


def shallow(model):
    """The model with one block of a kind in each stage: the same operations, a shorter graph."""
    for stage in (m for m in model.modules() if isinstance(m, FramewiseStage)):
        blocks = [m for m in stage.layers if isinstance(m, Shifted)]
        alike = [m for m in blocks if isinstance(m.shortcut, nn.Identity)]
        stage.layers = nn.ModuleList(m for m in stage.layers if m not in alike[1:])
    return model


def trained(config, data):
    """A model as training might leave it: batch norms with statistics, theta with a will."""
    model = shallow(build_model(config))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
    if model.snet is not None and model.snet.theta_head is not None:
        for weight in model.snet.theta_head.branches.parameters():
            nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
    with torch.no_grad():
        model.train()(clips(8, data))
    for norm in norms:  # channels all but dead would blow rounding up, in the model as in the file
        norm.running_var.clamp_(min=norm.running_var.median())
    return model.eval()


@torch.no_grad()
def expected_of(model, frames, n_frames):
    """What the model itself gives, by the names of the outputs."""
    out = model(frames, n_frames)
    theta = {} if out.theta is None else {name: getattr(out.theta, name) for name in THETA}
    named = {"scores": out.scores, "logits": out.logits} | theta
    named |= {"detail_volume": out.detail_volume}
    return {name: value for name, value in named.items() if value is not None}


def opened(path):
    """An exported file as a function of frames and n_frames, and its two texts."""
    if path.suffix == ".pt2":
        texts = {"classes": "", "clip": ""}
        return torch.export.load(path, extra_files=texts).module(), texts
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(frames, n_frames):
        values = session.run(names, {"frames": frames.numpy(), "n_frames": n_frames.numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run, session.get_modelmeta().custom_metadata_map


def small(preset, **changes):
    return replace(PRESETS[preset].model, **SMALL | changes), CLIPS


def synthetic(row="a0", **changes):
    sizes = {"synopsis_size": (4, 16, 16), "detail_size": (6, 14, 14)}
    return replace(PRESETS["synthetic"].model, **sizes | VARIANTS[row] | changes), GRAY


MODELS = {
    "attention, linear": synthetic(filters="linear"),
    "fc, gaussian, mobilenet_v2, resnet50": small("mini-kinetics"),
    "a1, x3d-s": small("kinetics400-x3d-s-m", dnet=None),
}


@pytest.mark.parametrize("name", MODELS)
def test_export_equals_the_model(name, tmp_path, monkeypatch):
    config, data = MODELS[name]
    T, S = data.n_frames, data.crop
    model = trained(config, data)
    monkeypatch.setattr(banded, "SMALL", 0)  # the model samples as it does large clips
    batches = [(clips(len(n), data), torch.tensor(n)) for n in ([T, 3, T - 2], [T - 1])]
    expected = [expected_of(model, *batch) for batch in batches]
    if "logits" in expected[0] and config.dnet:  # or a sampler that never zooms would do
        for name, length, n_out in zip(STRIDES, (T, S, S), config.detail_size, strict=True):
            assert expected[0][name].min() < 0.8 * length / n_out
    # Both files from one graph: capturing it takes long.
    monkeypatch.setattr(export, "capture", functools.cache(export.capture))
    for path in (tmp_path / "model.onnx", tmp_path / "model.pt2"):
        assert export_model(model, path, data) == list(expected[0])
        run, _ = opened(path)
        for batch, values in zip(batches, expected, strict=True):
            given = run(*batch)
            assert list(given) == list(values)
            for name, value in given.items():
                scale = 255 if name == "detail_volume" else 1  # frames in [0, 1]
                assert_close(value / scale, values[name] / scale, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def shared():
    """A small trained model with its record, as from_pretrained gives it."""
    config, data = synthetic("a2")
    model = trained(config, data)
    model.record = {"data": asdict(data), "classes": [f"action {n}" for n in range(20)]}
    return model


@pytest.mark.parametrize("name", ["stra\udcdfe.pt2", "größe 1:2.onnx"])
def test_export_command_writes_classes_and_clip(name, shared, tmp_path, capsys):
    shared.save_pretrained(tmp_path / "run")
    path = tmp_path / "new" / name
    assert cli.main(["export", str(tmp_path / "run"), str(path)]) == 0
    assert f"{as_text(path)}: " in capsys.readouterr().out
    check_output(path, made=export.MADE)  # the next one may replace it
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    T = GRAY.n_frames
    frames, n_frames = clips(5, GRAY), torch.tensor([T, 5, 0, T + 1, -1])
    frames[1, :, 5:] = 99  # padding, whatever it is
    run, texts = opened(path.rename(path.with_name(f"model{path.suffix}")))
    given = run(frames, n_frames)
    frames[1, :, 5:] = 0
    scores = expected_of(shared, frames[:2], n_frames[:2])["scores"]
    assert_close(given["scores"][:2], scores, rtol=0, atol=1e-4)
    assert given["scores"][2:].isnan().all()  # no such lengths
    assert not given["scores"].requires_grad
    assert json.loads(texts["classes"]) == shared.record["classes"]
    clip = DataConfig(csv="", **json.loads(texts["clip"]))
    assert replace(clip, csv=GRAY.csv) == replace(GRAY, min_frames=clip.min_frames)


def test_export_pt2_holds_no_pickle(shared, tmp_path, monkeypatch):
    before = {k: v.clone() for k, v in shared.state_dict().items()}
    export_model(shared, tmp_path / "model.pt2")
    assert_close(shared.state_dict(), before, rtol=0, atol=0)
    assert shared.detail_sampler.algorithm == "auto"
    assert all(p.requires_grad for p in shared.parameters())
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("unpickled"))
    torch.export.load(tmp_path / "model.pt2")


def test_export_that_fails_leaves_the_old_file(shared, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    with pytest.raises(ValueError, match="a file that this command did not make"):
        export_model(shared, path)
    assert path.read_text() == "mine"
    path.write_text('the one before: "n_frames": 24, "frame_stride": 1')
    before = path.read_text()

    def half(program, path, extra_files):
        path.write_text("half of i")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", half)
    with pytest.raises(OSError, match="disk full"):
        export_model(shared, path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_export_errors(shared, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ends in \.pt2 or \.onnx"):
        export_model(shared, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="record"):
        export_model(build_model(shared.config), tmp_path / "model.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"onnxscript; pip install s2dlib\[onnx\]"):
        export_model(shared, tmp_path / "model.onnx")
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*config\.json"):
        cli.main(["export", str(tmp_path / "run"), "model.pt2"])
