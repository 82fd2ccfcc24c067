"""What every test gets: a seed; on demand videos whose frames carry their index, and small runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from packaging.version import Version

if not torch.cuda.is_available():  # kernels run on CPU tensors, if asked before they are loaded
    os.environ["TRITON_INTERPRET"] = "1"

from s2dlib.config import WEIGHTS
from s2dlib.data.synthetic import class_names, write_dataset  # noqa: E402
from s2dlib.model import build_model  # noqa: E402
from s2dlib.presets import PRESETS  # noqa: E402
from s2dlib.report.plots import LOOKING  # noqa: E402
from s2dlib.report.records import write_record  # noqa: E402
from s2dlib.sampler import Theta  # noqa: E402
from s2dlib.training.checkpoints import write_weights  # noqa: E402

N_BITS = 10  # the barcode: ten bars along the top quarter, the lowest bit at the left


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two processes, none then waits long for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def ax() -> Iterator[Axes]:
    """To draw on."""
    import matplotlib.pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


@pytest.fixture
def theta() -> Theta:
    """A batch of one: eight frames, 2 apart, around 1/4 of a clip; a box at 0.5, 0.2 of it."""
    full = torch.ones(1, 8)
    return Theta(*torch.tensor([[0.25], [2.0]]), 0.5 * full, 0.2 * full, 2 * full, full)


@pytest.fixture
def triton_kernels() -> ModuleType:
    """s2dlib.kernels.triton, on a GPU or in Triton's interpreter; skips where neither runs them."""
    kernels = pytest.importorskip("s2dlib.kernels.triton", exc_type=ImportError)
    triton, numpy = Version(kernels.triton.__version__), Version(np.__version__)
    interprets = triton >= Version("3.7") or numpy < Version("2.4")
    if not torch.cuda.is_available() and not interprets:
        pytest.skip(f"Triton {triton} cannot interpret kernels under numpy {numpy}, and no GPU")
    return kernels


@pytest.fixture
def make_video() -> Callable[..., Path]:
    """make_video(path, n_frames, size=(height, width), codec, options, muxer, drop) -> path."""
    return write_video


@pytest.fixture
def read_barcodes() -> Callable[[torch.Tensor], list[int]]:
    """read_barcodes(frames (n, 3, H, W)) -> the index each frame carries."""
    return barcodes


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """write(name, text or bytes or what JSON holds) -> path; write(name) -> an empty file."""

    def write_file(name: str | bytes, content: object = b"") -> str:
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_file


@pytest.fixture(scope="session")
def csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The smallest synthetic data set: 20 clips a split."""
    return str(write_dataset(tmp_path_factory.mktemp("clips") / "clips", share=0.001))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, csv: str) -> Path:
    """A folder of runs of two rows, of untrained models; tests only read it."""
    preset = PRESETS["synthetic"]
    folder = tmp_path_factory.mktemp("results") / "runs"
    data = replace(preset.data, csv=csv, cache=None)
    torch.manual_seed(0)  # now and then weights drawn at random hear nothing of their input
    for row in ("a0", "b3"):
        identity = {"preset": "synthetic", "variant": row, "seed": 0, "recipe": "joint"}
        identity |= {"test_split": "test", "provenance": {"data": "clips", "device": "a CPU"}}
        model = build_model(preset.model, row)
        config = {"model": asdict(model.config), "data": asdict(data), "classes": class_names()}
        metrics = {"top1": 5.0, "top5": 25.0, "snet_top1": 5.0, "n_clips": 20, "gmacs": 0.02}
        history = [{"epoch": epoch} | dict.fromkeys(LOOKING, 1.0 / epoch) for epoch in (1, 2)]
        write_record(folder / f"synthetic-{row}-0", identity | config, metrics, history)
        write_weights(model, folder / f"synthetic-{row}-0" / WEIGHTS)
    return folder


def write_video(
    path: Path,
    n_frames: int = 40,
    size: tuple[int, int] = (64, 80),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    drop: int = 0,
) -> Path:
    """Frames of noise under a barcode of their index; an edit list hides the first `drop`."""
    rng, (height, width) = np.random.default_rng(n_frames), size
    muxer = {"avoid_negative_ts": "disabled"} if drop else muxer or {}
    with av.open(str(path), "w", options=muxer) as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(n_frames + 1):
            image = np.full((height, width, 3), 60, np.uint8)
            image[height // 2 :] = rng.integers(0, 255, (height - height // 2, width, 3))
            bars = np.repeat([255 * (i >> bit & 1) for bit in range(N_BITS)], width // N_BITS)
            image[: height // 4, : len(bars)] = bars[:, None]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24") if i < n_frames else None
            for packet in stream.encode(frame):
                shift = int(drop / 25 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                file.mux(packet)
    return path


def barcodes(frames: torch.Tensor) -> list[int]:
    """The index that each frame carries. frames (n, C, H, W)"""
    height, width = frames.shape[-2:]
    where = [round((bit + 0.5) * (width // N_BITS)) for bit in range(N_BITS)]
    bits = frames.float().mean(1)[:, height // 8, where] > 128  # (n, N_BITS)
    return (bits * 2 ** torch.arange(N_BITS)).sum(1).tolist()
