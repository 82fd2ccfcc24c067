"""How fast clips load: our loader, its working copies, other decoders, JPEGs (the authors' way).

    python benchmarks/loading.py --out results/benchmarks/loading

Every way ends as the same tensor: T frames at stride 2, short side 256, centre crop 224, uint8.
Ways take turns on one core, the child of ours with them; then workers make batches of 4, as they
come to a training. A row a measure.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from s2dlib.config import DataConfig
from s2dlib.data import prepare, readers
from s2dlib.data.dataset import Item, VideoDataset
from s2dlib.data.files import write_atomic
from s2dlib.data.loader import load_batches, return_memory
from s2dlib.report.records import provenance
from s2dlib.report.tables import as_text, write_measured

N, SIZE, SHORT, CROP, STRIDE = 300, (256, 340), 256, 224, 2  # frames, pixels as stored
BATCH = 4  # clips, of workers
QUALITY = 85  # of the JPEGs, about what FFmpeg's -q:v 2 to 5 gives


def write_clip(folder: Path, seed: int, n: int = N, size: tuple[int, int] = SIZE) -> Path:
    """A camera that moves over texture, with sensor noise, as H.264 and as JPEGs beside it."""
    rng, (height, width) = np.random.default_rng(seed), size
    world = np.zeros((height + 64, width + n + 1, 3))
    for scale in (2, 8, 32):  # detail of three sizes
        rows, columns = (-(-length // scale) for length in world.shape[:2])
        coarse = rng.normal(0, 3 * scale**0.7, (rows, columns, 1)) + rng.normal(0, 3, 3)
        world += coarse.repeat(scale, 0).repeat(scale, 1)[: len(world), : world.shape[1]]
    path, images = folder / f"{seed}.mp4", folder / f"{seed}"
    images.mkdir()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"crf": "23"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(n):
            top = round(32 + 31 * np.sin(i / 20))
            seen = world[top : top + height, i : i + width] + 128
            seen = (seen + rng.normal(0, 5, (height, width, 1))).clip(0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(seen, "rgb24")))
        file.mux(stream.encode(None))
    with av.open(str(path)) as file:  # JPEGs of the video, as they are made in practice
        for i, frame in enumerate(file.decode(video=0)):
            frame.to_image().save(images / f"{i + 1:05d}.jpg", quality=QUALITY)
    return path


def centred(n_total: int, T: int, stride: int = STRIDE) -> range:
    """T frames at the stride, in the middle."""
    start = (n_total - (T - 1) * stride - 1) // 2
    return range(start, start + T * stride, stride)


def cut(frames: Tensor) -> Tensor:
    """(T, 3, H, W) -> (T, 3, CROP, CROP), a view"""
    y, x = ((side - CROP) // 2 for side in frames.shape[-2:])
    return frames[:, :, y : y + CROP, x : x + CROP]


def cropped(frames: Tensor) -> Tensor:
    """(T, 3, H, W) -> (3, T, CROP, CROP), contiguous"""
    return cut(frames).transpose(0, 1).contiguous()


def ours(path: str, T: int, stride: int = STRIDE, *, child: bool = True) -> Tensor:
    frames = readers.read_frames(
        path, lambda n: centred(n, T, stride), SHORT, convert=cut, child=child
    )
    return frames.transpose(0, 1)


def ours_in_process(path: str, T: int) -> Tensor:
    return ours(path, T, child=False)


def config_of(csv: str | Path, T: int) -> DataConfig:
    return DataConfig(csv=str(csv), n_frames=T, frame_stride=STRIDE, short_side=SHORT, crop=CROP)


@cache
def copy_of(path: str, T: int) -> prepare.Copy:
    """The working copy for clips of T frames, made when it is asked for first."""
    return prepare.write_copy(path, Path(path).with_suffix(f".{T}.mp4"), config_of("", T))


def copies(path: str, T: int) -> Tensor:
    """As VideoDataset reads them, without a child."""
    return ours(str(copy_of(path, T).path), T, stride=1, child=False)


def copies_by_a_child(path: str, T: int) -> Tensor:
    return ours(str(copy_of(path, T).path), T, stride=1)


def pyav(path: str, T: int) -> Tensor:
    with av.open(path) as file:
        file.streams.video[0].thread_type, wanted = "NONE", centred(file.streams.video[0].frames, T)
        frames = zip(range(wanted[-1] + 1), file.decode(video=0), strict=False)
        return _stack(frame.to_ndarray(format="rgb24") for i, frame in frames if i in wanted)


def decord(path: str, T: int) -> Tensor:
    from decord import VideoReader  # a witness of the tests, and once our reader

    video = VideoReader(path, num_threads=1)
    wanted = centred(len(video), T)
    frames = enumerate(video.next() for _ in range(wanted[-1] + 1))  # its seeks are not exact
    return _stack(frame.asnumpy() for i, frame in frames if i in wanted)


def torchcodec(path: str, T: int) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    frames = decoder.get_frames_at(list(centred(decoder.metadata.num_frames, T))).data
    return cropped(resize(frames, [SHORT], antialias=True))


def jpegs_by_pil(path: str, T: int) -> Tensor:
    """Each frame opened, made RGB, scaled and cut by PIL, then all stacked: as TSM's loader does"""
    folder, frames = Path(path).with_suffix(""), []
    for i in centred(len(os.listdir(folder)), T):
        image = Image.open(folder / f"{i + 1:05d}.jpg").convert("RGB")
        scale = SHORT / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.BILINEAR)
        x, y = ((side - CROP) // 2 for side in image.size)
        frames.append(np.array(image.crop((x, y, x + CROP, y + CROP))))
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()


def jpegs_by_us(path: str, T: int) -> Tensor:
    return ours(str(Path(path).with_suffix("")), T)


def _stack(frames: Iterator[np.ndarray]) -> Tensor:
    """Frames (H, W, 3) one by one -> a clip, as is done in practice"""
    small = [
        resize(torch.from_numpy(frame).permute(2, 0, 1), [SHORT], antialias=True).permute(1, 2, 0)
        for frame in frames
    ]
    return cropped(torch.stack(small).permute(0, 3, 1, 2))


WAYS: dict[str, Callable[[str, int], Tensor]] = {
    "ours": ours,
    "ours, in process": ours_in_process,
    "copies": copies,
    "copies, by a child": copies_by_a_child,
    "PyAV": pyav,
    "decord": decord,
    "torchcodec": torchcodec,
    "JPEGs, PIL": jpegs_by_pil,
    "JPEGs, ours": jpegs_by_us,
}


def available(path: str) -> list[str]:
    """The ways that work here: torchcodec may not be installed, or lack the FFmpeg it needs."""
    try:
        torchcodec(path, 2)
    except (ImportError, RuntimeError):
        return [way for way in WAYS if way != "torchcodec"]
    return list(WAYS)


class Ours(VideoDataset):
    """A data set whose labels are the memory of the worker and its children in MB."""

    def __getitems__(self, indices: list[int]) -> list[Item]:
        items = super().__getitems__(indices)
        for item in items:
            item["label"] = round(memory())
        return items


class Jpegs(Dataset):
    """Clips of JPEGs by PIL, with the same; before a batch is made of them, which ours are in."""

    def __init__(self, paths: list[str], T: int) -> None:
        self.paths, self.T = paths, T

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"frames": jpegs_by_pil(self.paths[index], self.T), "label": round(memory())}


def batches_of(
    way: str, paths: list[str], T: int, steps: list[list[int]], workers: int
) -> Callable[[], Iterable[Mapping[str, Tensor]]]:
    """One pass after the other over batches of clips, by workers that wait in between."""
    if way == "JPEGs, PIL":
        loader = DataLoader(
            Jpegs(paths, T),
            batch_sampler=steps,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=return_memory,
        )
        return lambda: loader
    folder = Path(paths[0]).parent
    text = "".join(f"{Path(path).name},0,all\n" for path in paths)
    csv = write_atomic(folder / "videos.csv", "path,label,split\n" + text)
    if way == "copies":
        made = {path: copy_of(path, T) for path in paths}
        csv = prepare.write_copies_csv(csv, folder / f"{T}.csv", made, config_of(csv, T))
    dataset = Ours(config_of(csv, T), "all", train=False)
    dataset._child = way == "ours"
    return lambda: load_batches(dataset, workers=workers, steps=steps)


def memory() -> float:
    """MB resident in this process and its children; what they share counts twice."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [os.getpid(), *(int(pid) for file in children for pid in file.read_text().split())]
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def row(measure: str, way: str, T: int, workers: int, values: list[float], unit: str) -> dict:
    """Median and range of repeated measurements; no value gives an empty cell, shown as a dash."""
    low, middle, high = (
        (min(values), statistics.median(values), max(values)) if values else [np.nan] * 3
    )
    known = {"measure": measure, "way": way, "frames": T, "workers": workers, "unit": unit}
    return known | {"median": middle, "lowest": low, "highest": high, "n": len(values)}


def on_one_core(paths: list[str], T: int, rounds: int) -> list[dict]:
    """Clips a second by each way, in turns, all processes on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    vars(readers._local).clear()  # so that the child starts on this core
    ways = available(paths[0])
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(-1, rounds):  # the first round warms up
        for way in ways:
            start = time.perf_counter()
            WAYS[way](paths[i % len(paths)], T)
            if i >= 0:
                rates[way].append(1 / (time.perf_counter() - start))
    os.sched_setaffinity(0, allowed)
    vars(readers._local).clear()
    return [row("one core", way, T, 0, rates[way], "clips/s") for way in WAYS]


def worker_counts(n_cores: int) -> list[int]:
    """None, then doubled up to a worker a core."""
    return sorted({0, *(2**i for i in range(n_cores.bit_length())), n_cores})


def by_workers(paths: list[str], T: int, n_clips: int, n_workers: list[int]) -> list[dict]:
    """Clips a second in batches of BATCH by workers that are warm, in turns, and their memory.

    Args:
        n_clips: read in a round, or more, so that each worker makes several batches.
    """
    rows = []
    for workers in n_workers:
        n = max(n_clips, 3 * BATCH * workers)
        steps = [[i % len(paths) for i in range(k, k + BATCH)] for k in range(0, n, BATCH)]
        ways = ("ours", "ours, in process", "copies", "JPEGs, PIL")
        passes = {way: batches_of(way, paths, T, steps, workers) for way in ways}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        sizes = dict(rates)
        for _ in range(4):
            for way, batches in passes.items():
                start = time.perf_counter()
                sizes[way] = [size for batch in batches() for size in batch["label"].tolist()]
                rates[way].append(len(sizes[way]) / (time.perf_counter() - start))
        for way in ways:
            rows.append(row("workers", way, T, workers, rates[way][1:], "clips/s"))
            rows.append(row("memory of a worker", way, T, workers, sizes[way], "MB"))
    return rows


def soak(folder: Path, n: int) -> list[dict]:
    """Memory while a small file is read again and again, in ten steps."""
    path, rows = write_clip(folder, seed=1000, n=20, size=(64, 80)), []
    for step in range(10):
        for _ in range(n // 10):
            readers.read_frames(path)
        rows.append(row(f"soak, {(step + 1) * n // 10} clips", "ours", 20, 0, [memory()], "MB"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="stem of the files written; without it nothing is")
    parser.add_argument("--smoke", action="store_true", help="one short round: what the test runs")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="read N clips instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.soak:
            rows = soak(Path(folder), arguments.soak)
        else:
            n_files, n, rounds = (1, 40, 1) if arguments.smoke else (4, N, 12)
            paths = [str(write_clip(Path(folder), seed, n)) for seed in range(n_files)]
            video_mb = statistics.mean(os.path.getsize(path) for path in paths) / 1e6
            images = Path(folder).glob("*/*.jpg")
            jpeg_mb = sum(file.stat().st_size for file in images) / 1e6 / n_files
            rows = [row("size of a video", "ours", n, 0, [video_mb], "MB")]
            rows += [row("size of a video", "JPEGs, PIL", n, 0, [jpeg_mb], "MB")]
            made = [copy_of(path, n // 2).path for path in paths]
            copy_mb = statistics.mean(os.path.getsize(path) for path in made) / 1e6
            rows += [row("size of a video", "copies", n // 2, 0, [copy_mb], "MB")]
            workers = worker_counts(1 if arguments.smoke else len(os.sched_getaffinity(0)))
            for T in (8,) if arguments.smoke else (150, 75):
                rows += on_one_core(paths, T, rounds)
                rows += by_workers(paths, T, 2 if arguments.smoke else 30, workers)
    command = "python " + shlex.join(sys.argv)
    source = provenance(command, "cpu", 0, f"synthetic, {N} frames of 340 x 256, JPEG {QUALITY}")
    table = pd.DataFrame(rows).round(2)
    print(as_text(table).to_string(index=False))
    if arguments.out:
        write_measured(table, arguments.out, source)


if __name__ == "__main__":
    main()
