"""A CSV of videos -> batches of raw frames I: which frames, which crop, which flip (Sec. 4.1).

Axes: B clips, C colours (1 where the frames are gray), T x H x W raw frames. Frames stay uint8: the
model normalises after sampling, and 150 frames of 224 x 224 are 23 MB so, 90 MB as float32.
"""

from __future__ import annotations

import csv as csv_format
import ctypes
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from s2dlib.config import DataConfig
from s2dlib.video import ClipError, read_frames

log = logging.getLogger(__name__)
TRIES = 5  # clips tried for one place of a training batch
MAX_FAILED = 0.1  # of a split: with more unreadable clips it is not the data set one thinks it is
TRUTH = ("t", "duration", "size", "y", "x")  # columns of a synthetic CSV: where the detail is


def read_csv(csv: str | Path) -> pd.DataFrame:
    """Read a data set's list of videos: columns path, label, split, and any others.

    Paths are relative to the file's own folder. Labels that are all integers are class indices,
    named by a column label_name where there is one; other labels are names, numbered in sorted
    order over all splits.

    Returns:
        path (absolute), label (index), split, class_name, and the other columns as text.
    """
    if not os.path.isfile(csv):
        raise FileNotFoundError(
            f"{os.path.abspath(csv)}: no such file; a data set is a CSV path,label,split, which "
            "python -m s2dlib.annotations makes of what its owner ships; see data/README.md"
        )
    try:
        with open(csv, newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a BOM
            reader = csv_format.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = dict((reader.line_num, row) for row in reader)  # by its last line
    except (UnicodeDecodeError, csv_format.Error) as error:
        raise ValueError(f"{csv}: not a CSV file in UTF-8 ({error})") from error
    if missing := [name for name in ("path", "label", "split") if name not in columns]:
        raise ValueError(f"{csv}: no column {', '.join(missing)}; the columns are {columns}")
    if not rows:
        raise ValueError(f"{csv}: no rows below the header")
    for line, row in rows.items():
        if None in row or None in row.values():
            n_fields = len(columns) + len(row.get(None, ())) - list(row.values()).count(None)
            raise ValueError(f"{csv}, row {line}: {n_fields} fields, expected {len(columns)}")
        if empty := [name for name in ("path", "label", "split") if not row[name].strip()]:
            raise ValueError(f"{csv}, row {line}: {empty[0]} is empty")
    table = pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)
    table[["label", "split"]] = table[["label", "split"]].map(str.strip)
    folder = os.path.abspath(os.path.dirname(csv))
    table["path"] = [os.path.normpath(os.path.join(folder, path)) for path in table["path"]]
    if (twice := table["path"].duplicated()).any():
        line = twice.idxmax()
        first = (table["path"] == table["path"][line]).idxmax()
        raise ValueError(f"{csv}, row {line}: {table['path'][line]} is in row {first} already")
    _number_labels(table, csv)
    return table.reset_index(drop=True)


def _number_labels(table: pd.DataFrame, csv: str | Path) -> None:
    """Turn the column label into class indices and add class_name. The table's index is the row."""
    is_index = table["label"].str.fullmatch(r"[+-]?\d+").astype(bool)
    if "label_name" in table and not is_index.all():
        line = is_index.idxmin()
        label = table["label"][line]
        raise ValueError(f"{csv}, row {line}: with label_name, label is an integer, got {label!r}")
    if not is_index.all():
        table["class_name"] = table["label"]
        table["label"] = np.unique(table["label"].astype(str), return_inverse=True)[1]
        return
    table["label"] = table["label"].astype(int)
    if (table["label"] < 0).any():
        line = table["label"].idxmin()
        raise ValueError(f"{csv}, row {line}: label must be >= 0, got {table['label'][line]}")
    table["class_name"] = table["label"].astype(str)
    if "label_name" in table:
        table["class_name"] = table["label_name"].str.strip()
        for a, b in (("label", "class_name"), ("class_name", "label")):
            expected = table.groupby(a)[b].transform("first")
            if (other := expected != table[b]).any():
                line = other.idxmax()
                raise ValueError(
                    f"{csv}, row {line}: {a} {table[a][line]} has {b} {table[b][line]}, "
                    f"but {expected[line]} in an earlier row"
                )


def class_names(table: pd.DataFrame) -> list[str]:
    """Names of classes 0..N-1 of a whole table of read_csv; one without a video is named str(n)."""
    names = dict(zip(table["label"], table["class_name"], strict=True))
    return [names.get(i, str(i)) for i in range(int(table["label"].max()) + 1)]


def choose_frames(
    n_total: int, config: DataConfig, generator: Generator | None = None
) -> list[int]:
    """One clip of at most n_frames frames, frame_stride apart, of a video of n_total frames.

    Args:
        n_total: frames in the video.
        config: n_frames (T), frame_stride (tau) and min_frames.
        generator: draws the start (training); None: the clip is centred (testing).

    Returns:
        Frame indices, ascending; fewer than n_frames where the video is short.
    """
    indices = _span(n_total, config.n_frames, config.frame_stride, generator)
    if len(indices) < config.min_frames:
        raise ValueError(
            f"{n_total} frames give {len(indices)} at stride {config.frame_stride}, "
            f"but min_frames is {config.min_frames}"
        )
    return list(indices)


def _span(n_total: int, n_frames: int, stride: int, generator: Generator | None) -> range:
    n = min(n_frames, -(-n_total // stride))
    slack = n_total - (n - 1) * stride  # places where the clip can start
    start = (slack - 1) // 2 if generator is None else _draw(slack, generator)
    return range(start, start + n * stride, stride)


def _draw(n: int, generator: Generator) -> int:
    """One of 0..n-1."""
    return int(torch.randint(n, (), generator=generator))


def windows(
    height: int, width: int, config: DataConfig, n_crops: int, generator: Generator | None
) -> list[tuple[int, int, int, bool]]:
    """Which squares of the frames a clip is cut from (Sec. 4.1).

    Args:
        height, width: of the frames at short_side, pixels.
        n_crops: in testing 1, the centre, or 3 along the longer side.
        generator: draws one of random scale, place and flip (training); None: testing.

    Returns:
        For each its side, top, left (pixels), and whether it is mirrored.
    """
    if generator is not None:
        scale = config.scales[_draw(len(config.scales), generator)]
        side = max(1, round(scale * config.short_side))
        y, x = _draw(height - side + 1, generator), _draw(width - side + 1, generator)
        return [(side, y, x, config.flip and _draw(2, generator) == 1)]
    side = config.crop
    y, x = height - side, width - side  # the last places
    if n_crops == 1:
        return [(side, y // 2, x // 2, False)]
    if height > width:
        return [(side, at, x // 2, False) for at in (0, y // 2, y)]
    return [(side, y // 2, at, False) for at in (0, x // 2, x)]


def load_clip(
    path: str | Path,
    n_frames: int | None = None,
    frame_stride: int = 1,
    short_side: int | None = None,
) -> Tensor:
    """The centred clip of a video, ready for a model.

    Args:
        path: the video file.
        n_frames: frames at most; None: the whole video.
        frame_stride: tau, every how many frames one is taken.
        short_side: pixels of the shorter side after resizing; None: as stored.

    Returns:
        Raw frames I, uint8. (3, T, H, W)
    """
    if frame_stride < 1 or (n_frames is not None and n_frames < 1):
        raise ValueError(f"n_frames and frame_stride must be >= 1, got {n_frames}, {frame_stride}")

    def wanted(n_total: int) -> range:
        return _span(n_total, n_frames or n_total, frame_stride, None)

    return read_frames(path, wanted, short_side).transpose(0, 1)


def load_views(path: str | Path, config: DataConfig) -> Tensor:
    """The clip of a video as testing takes it: centred, and its crops (Sec. 4.1).

    Args:
        path: a video file, or a folder of frames.
        config: of the model that is to see it (model.data). A video shorter than min_frames is
            taken as it is.

    Returns:
        Raw frames I of each of the test_crops views, uint8. (V, C, T, H, W)

    Raises:
        ClipError: the video cannot be read.
    """
    config = replace(config, min_frames=1)
    frames = read_frames(path, lambda n: choose_frames(n, config), config.short_side)
    if config.gray:
        frames = rgb_to_grayscale(frames)
    where = windows(*frames.shape[-2:], config, config.test_crops, None)
    views = [frames[:, :, y : y + side, x : x + side] for side, y, x, _ in where]  # (T, C, H, W)
    return torch.stack(views).transpose(1, 2).contiguous()


class VideoDataset(Dataset):
    """Clips of one split of a data set; what is random comes from (seed, epoch, index) alone."""

    def __init__(self, config: DataConfig, split: str, train: bool, seed: int = 0) -> None:
        table = read_csv(config.csv)
        splits = sorted(table["split"].unique())
        if split not in splits:
            raise ValueError(f"{config.csv}: no split {split!r}; the splits are {splits}")
        self.config, self.train, self.seed = config, train, seed
        self.classes = class_names(table)  # of all splits, so that indices agree
        table = table[table["split"] == split].head(config.n_clips or len(table))
        self.table = table.reset_index(drop=True)
        self._paths, self._labels = self.table["path"].tolist(), self.table["label"].tolist()
        self._truth = None  # of each video as written, with its own side. (n, 6)
        if set(TRUTH) <= set(table.columns):
            self._truth = self.table[[*TRUTH, "side"]].to_numpy(float)
        self.failed: dict[str, str] = {}  # path -> cause, of the last load_batches
        self._logged: set[str] = set()
        self._epoch = torch.zeros(
            (), dtype=torch.int64
        ).share_memory_()  # persistent workers see it
        if config.cache is not None:
            os.makedirs(config.cache, exist_ok=True)

    def set_epoch(self, epoch: int) -> None:
        """Draw other clips, crops and flips, the same ones whenever this epoch comes back."""
        self._epoch.fill_(epoch)

    @property
    def n_crops(self) -> int:
        """Views of a video, V: all of them are in its item."""
        return 1 if self.train else self.config.test_crops

    @property
    def has_truth(self) -> bool:
        """Whether the CSV tells where each clip's detail is."""
        return self._truth is not None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """A clip: frames uint8 (C, T, H, W), label, and index, its row in the table.

        Where the CSV tells it (synthetic videos), also truth: t, duration (raw frames), size, y, x
        (raw pixels) of the clip's detail; frame and pixel r span r to r + 1. float32 (5,)

        With several crops, V = n_crops, frames are (V, C, T, H, W) and truth is (V, 5).
        """
        index = range(len(self))[index]  # IndexError, and -1 is the last
        generator = None
        if self.train:
            seeds = np.random.SeedSequence((self.seed, int(self._epoch), index))
            generator = Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        frames, start = self._frames(self._paths[index], generator)  # (T, C, H, W)
        where = windows(*frames.shape[-2:], self.config, self.n_crops, generator)
        item = {"frames": [self._crop(frames, *window) for window in where]}  # (C, T, H, W) each
        if self._truth is not None:
            item["truth"] = [self._seen(index, start, *window) for window in where]
        item = {k: torch.stack(v) if self.n_crops > 1 else v[0] for k, v in item.items()}
        return item | {"label": self._labels[index], "index": index}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor | int | dict]]:
        """The clips of a batch, as a DataLoader asks for them; unlike one clip, never a ClipError.

        In testing an item whose video cannot be read has no frames, only failed, {path: cause}. In
        training another clip of the split takes its place, drawn from (seed, epoch, index).
        """
        return [self._readable(index) for index in indices]

    def _readable(self, index: int) -> dict[str, Tensor | int | dict]:
        failed, draw = {}, np.random.default_rng((self.seed, int(self._epoch), index))
        for _ in range(TRIES if self.train else 1):
            try:
                return self[index] | {"failed": failed}
            except ClipError as error:
                failed[error.path] = error.cause
                index = int(draw.integers(len(self)))
        if self.train:
            causes = "; ".join(f"{path}: {cause}" for path, cause in failed.items())
            raise RuntimeError(f"{TRIES} clips drawn in turn cannot be read: {causes}")
        return {"failed": failed}

    def _seen(self, index: int, start: int, side: int, y: int, x: int, flip: bool) -> Tensor:
        """The truth of a video in the frames and pixels of a clip cut out of it. (5,)"""
        t, duration, size, at_y, at_x, written = self._truth[index]
        stride, crop = self.config.frame_stride, self.config.crop
        to_frame, to_crop = self.config.short_side / written, crop / side
        at_y, at_x = (((v + 0.5) * to_frame - low) * to_crop for v, low in ((at_y, y), (at_x, x)))
        seen = ((t - start) / stride + 0.5, duration / stride, size * to_frame * to_crop)
        return torch.tensor([*seen, at_y, crop - at_x if flip else at_x], dtype=torch.float32)

    def _frames(self, path: str, generator: Generator | None) -> tuple[np.ndarray, int]:
        """The frames of one clip at short_side, uncropped, and the first one's number in the video.

        Returns (T, C, H, W), int.
        """
        indices: list[int] = []

        def wanted(n_total: int) -> list[int]:
            try:
                indices[:] = choose_frames(n_total, self.config, generator)
            except ValueError as error:
                raise ClipError(path, str(error)) from error
            return indices

        if self.config.cache is None:
            frames = self._decode(path, wanted)
        else:
            video = self._cached(path)  # (T_all, C, H, W)
            wanted(len(video))
            frames = video[indices[0] : indices[-1] + 1 : self.config.frame_stride]  # a view
        return frames, indices[0]

    def _decode(self, path: str, wanted: Callable[[int], list[int]] | None = None) -> np.ndarray:
        frames = read_frames(path, wanted, self.config.short_side)  # (T, 3, H, W)
        return (rgb_to_grayscale(frames) if self.config.gray else frames).numpy()

    def _cached(self, path: str) -> np.ndarray:
        """All frames of a video at short_side, kept in the cache. (T_all, C, H, W)"""
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            raise ClipError(path, "no such file") from None
        key = (path, stat.st_mtime_ns, stat.st_size, self.config.short_side, self.config.gray)
        file = os.path.join(
            self.config.cache, hashlib.sha1(repr(key).encode()).hexdigest() + ".npy"
        )
        try:
            return np.lib.format.open_memmap(file, mode="r")
        except FileNotFoundError:
            temporary = f"{file}.{os.getpid()}.tmp"  # a worker beside this one may write it too
            with open(temporary, "wb") as out:
                np.save(out, self._decode(path))
            os.replace(temporary, file)
            return np.lib.format.open_memmap(file, mode="r")

    def _crop(self, frames: np.ndarray, side: int, y: int, x: int, flip: bool) -> Tensor:
        """A square of the frames at crop pixels a side. (T, C, H, W) -> (C, T, crop, crop)"""
        square = frames[:, :, y : y + side, x : x + side]  # (T, C, side, side)
        clip = torch.from_numpy(np.array(square))
        if side != self.config.crop:  # channels last halves the time
            clip = clip.contiguous(memory_format=torch.channels_last)
            clip = resize(clip, [self.config.crop] * 2, antialias=True)
        return (clip.flip(-1) if flip else clip).transpose(0, 1).contiguous()


def collate(items: list[dict[str, Tensor | int | dict]]) -> dict[str, Tensor | dict]:
    """One batch of clips of different length, padded with zeros in time.

    Each of the V crops of a video is a clip of its own, B in all: those of a video stand together,
    and index counts them (its row in the table times V, and on).

    Returns:
        frames uint8 (B, C, T_max, H, W); n_frames, label, index int64 (B,); truth float32 (B, 5),
        where the clips have one; failed, {path: cause} of what could not be read, which is left out
        of the rest: nothing else is there when no clip is left.
    """
    failed = {path: why for item in items for path, why in item.get("failed", {}).items()}
    items = [item for item in items if "frames" in item]
    if not items:
        return {"failed": failed}
    items = [clip for item in items for clip in _clips(item)]
    clips = [item["frames"] for item in items]
    n_frames = torch.tensor([clip.shape[1] for clip in clips])  # (B,)
    C, _, H, W = clips[0].shape
    frames = clips[0].new_zeros((len(clips), C, int(n_frames.max()), H, W))
    for row, clip in zip(frames, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    batch = {"frames": frames, "n_frames": n_frames, "failed": failed}
    batch |= {name: torch.tensor([item[name] for item in items]) for name in ("label", "index")}
    if "truth" in items[0]:
        batch["truth"] = torch.stack([item["truth"] for item in items])
    return batch


def _clips(item: dict[str, Tensor | int]) -> list[dict[str, Tensor | int]]:
    """An item of one clip for each crop of a video."""
    if item["frames"].ndim == 4:
        return [item]
    V, own = len(item["frames"]), item.keys() & {"frames", "truth"}
    number = item["index"] * V
    return [item | {"index": number + v} | {k: item[k][v] for k in own} for v in range(V)]


def return_memory(worker: int = 0) -> None:
    """Let glibc hand back every block above 1 MB that a worker frees, as it does until it learns.

    A worker frees clips in another thread and another order than it made them; glibc then found no
    hole that fits, and a worker grew by up to 20 MB a clip.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def load_batches(
    dataset: VideoDataset,
    batch_size: int = 1,
    workers: int = 0,
    steps: Sequence[Sequence[int]] | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[dict[str, Tensor]]:
    """Batches of the clips that can be read; dataset.failed tells which cannot, and why.

    The loader starts at once, not with the first batch: it draws a random number.

    Args:
        dataset: in training an unreadable clip is replaced by another, in testing it is left out.
        batch_size: clips a batch (crops, where videos have several), in the data set's order.
        workers: processes that load.
        steps: the clips of each batch instead.
        device: where the batches are to lie; a GPU gets them ahead of need (on_device).

    Raises:
        RuntimeError: more than MAX_FAILED of the clips cannot be read, or TRIES of them in turn.
    """
    videos = max(1, batch_size // dataset.n_crops)
    how = {"batch_sampler": steps} if steps is not None else {"batch_size": videos}
    how |= {"num_workers": workers, "worker_init_fn": return_memory}
    how |= {"pin_memory": torch.device(device).type == "cuda"}
    dataset.failed = {}
    batches = _readable(dataset, iter(DataLoader(dataset, collate_fn=collate, **how)))
    return on_device(batches, device)


def on_device(
    batches: Iterator[dict[str, Tensor]], device: str | torch.device
) -> Iterator[dict[str, Tensor]]:
    """Batches whose tensors lie on a device; on a GPU the next one is copied while one is used.

    Args:
        batches: on the CPU; for a GPU in pinned memory, or each copy waits.
    """
    if (device := torch.device(device)).type != "cuda":
        for batch in batches:
            yield {name: value.to(device) for name, value in batch.items()}
        return
    stream, before = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = {name: v.to(device, non_blocking=True) for name, v in batch.items()}
        after = (copies, stream.record_event())
        if before is not None:
            yield _arrived(*before)
        before = after
    if before is not None:
        yield _arrived(*before)


def _arrived(batch: dict[str, Tensor], copied: torch.cuda.Event) -> dict[str, Tensor]:
    """A batch for the current stream, which waits for its copy; the CPU does not."""
    stream = torch.cuda.current_stream(batch["frames"].device)
    stream.wait_event(copied)
    for value in batch.values():
        value.record_stream(stream)  # or its memory might be given away before it is read
    return batch


def _readable(
    dataset: VideoDataset, batches: Iterator[dict[str, Tensor | dict]]
) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        if failed := batch.pop("failed"):
            _tell(dataset, failed)
        if batch:
            yield batch


def _tell(dataset: VideoDataset, failed: dict[str, str]) -> None:
    """Log what could not be read, each video once, and stop where it is too much."""
    dataset.failed |= failed
    for path in failed.keys() - dataset._logged:
        done = "another clip takes its place" if dataset.train else "left out"
        log.warning("%s: %s; %s", path, failed[path], done)
        dataset._logged.add(path)
    n, some = len(dataset.failed), list(dataset.failed.items())[:5]
    if n > MAX_FAILED * len(dataset):
        raise RuntimeError(
            f"{n} of {len(dataset)} clips cannot be read so far, more than {MAX_FAILED:.0%}: "
            + "; ".join(f"{path}: {cause}" for path, cause in some)
            + "; notebook 00_data checks every file"
        )
