"""`s2d export`: a model as one file that runs without this package (.pt2, .onnx), all of Fig. 2.

Inputs: frames, uint8 (B, C, T, H, W), and n_frames, int64 (B,). B is free. T, H, W and C are fixed,
those of the clips that the model was trained on; a shorter clip is padded at its end with anything,
and n_frames says how many of its frames are real, from 1 to T. A graph cannot refuse another
number: that clip's scores are NaN.

Outputs, as far as the model makes them: scores, logits, mu_t, delta_t, mu_y, mu_x, delta_y,
delta_x, detail_volume, as of model.Output and sampler.Theta. They equal the model's but for
rounding, and for which of two classes stays that tie for the k-th place. Both samplers are inside,
the detail sampler in its dense form (Eq. 7 as written).

Two texts in the file say the rest: classes, a JSON list in the order of the scores, and clip, a
JSON object of those fields of DataConfig that make frames of a video. In ONNX they are metadata of
the model; of a .pt2 file they are had by

    texts = {"classes": "", "clip": ""}
    program = torch.export.load("model.pt2", extra_files=texts).module()
    scores = program(frames, n_frames)["scores"]

torch.export.load unpickles whatever a file asks it to: load no .pt2 file that you do not trust.
Those written here hold no pickle. ONNX files are data alone.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from s2dlib.apps.inference import for_inference
from s2dlib.config import DataConfig
from s2dlib.data.files import atomic_path, check_output
from s2dlib.model import S2DNet

MADE = rb'"n_frames": \d+, "frame_stride": '  # in the text `clip` of every such file
CLIP_FIELDS = ("n_frames", "frame_stride", "short_side", "crop", "gray", "test_crops")
OPSET = 20  # of ONNX; what torch translates into changes with its version


class Graph(nn.Module):
    """A model whose output is tensors by name, which is what a graph can give."""

    def __init__(self, model: S2DNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, n_frames: Tensor) -> dict[str, Tensor]:
        """frames: raw frames I, uint8 (B, C, T, H, W); n_frames: int64 (B,)."""
        possible = n_frames.clamp(1, frames.shape[2])  # (B,)
        out = self.model(frames, possible)
        scores = out.scores.masked_fill((n_frames != possible)[:, None], torch.nan)  # (B, N)
        theta = {} if out.theta is None else vars(out.theta)
        named = {"scores": scores, "logits": out.logits, **theta}
        named["detail_volume"] = out.detail_volume
        return {name: value for name, value in named.items() if value is not None}


def export_model(model: S2DNet, path: str | Path, data: DataConfig | None = None) -> list[str]:
    """Write a model as a program of torch.export (.pt2) or as ONNX (.onnx).

    Batch norms are folded into convolutions (inference.for_inference). The file appears by a
    rename: a kill leaves the old one or none.

    Args:
        model: stays as it is.
        path: its ending chooses the format.
        data: n_frames, crop and gray fix the shape of the frames; None: of the clips that the model
            was trained on (model.data).

    Returns:
        The names of the outputs, in order.

    Raises:
        ValueError: another ending, a model that was built and comes without data, or a file in the
            way that is no such export (files.check_output).
        ImportError: .onnx without the packages of the extra.
    """
    path, data = Path(path), model.data if data is None else data
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{path}: expected a name that ends in .pt2 or .onnx")
    check_output(path, made=MADE)
    lacking = [n for n in ("onnx", "onnxscript") if importlib.util.find_spec(n) is None]
    if path.suffix == ".onnx" and lacking:
        raise ImportError(f"{path}: needs {' and '.join(lacking)}; pip install s2dlib[onnx]")
    program, names = capture(model, data)
    texts = {
        "classes": json.dumps(model.classes, ensure_ascii=False),
        "clip": json.dumps({name: getattr(data, name) for name in CLIP_FIELDS}),
    }
    with atomic_path(path) as named:
        whole = named.with_name(f"model{path.suffix}")  # for libraries that know UTF-8 alone
        if path.suffix == ".pt2":
            program.example_inputs = None  # a whole clip, pickled
            torch.export.save(program, whole, extra_files=texts)
        else:
            write_onnx(program, names, whole, texts)
        whole.rename(named)
    return names


@torch.no_grad()
def capture(model: S2DNet, data: DataConfig) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The graph of a model for clips of one size, and the names of its outputs in order."""
    model = for_inference(model).requires_grad_(False)
    model.cpu().to(memory_format=torch.contiguous_format)  # no slower there, and saved plainly
    model.detail_sampler.algorithm = "dense"  # the banded form reads theta's values
    T, S = data.n_frames, data.crop
    frames = torch.zeros(2, 1 if data.gray else 3, T, S, S, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        Graph(model), (frames, torch.full((2,), T)), dynamic_shapes=(batch, batch)
    )
    return program, list(program.call_spec.out_spec.context)


def write_onnx(
    program: torch.export.ExportedProgram, names: list[str], path: Path, texts: dict[str, str]
) -> None:
    """Write a graph and its weights as one ONNX file. names: of the outputs; texts: metadata."""
    translated = torch.onnx.export(
        program,
        input_names=["frames", "n_frames"],
        output_names=names,
        opset_version=OPSET,
        dynamic_shapes=({0: "batch"}, {}),  # the other one is known to be the same
        verbose=False,
    )
    assert translated is not None  # it is, without a path
    translated.model.metadata_props.update(texts)
    translated.save(path, external_data=False)
