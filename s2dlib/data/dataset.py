"""Clips of a data set: frames, label, and the detail's place where it is known (Sec. 4.1).

Axes: C colours (1 where the frames are gray), T x H x W raw frames. Frames stay uint8: the model
normalises after sampling, and 150 frames of 224 x 224 are 23 MB so, 90 MB as float32.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from s2dlib.config import DataConfig
from s2dlib.data.clips import Crop, choose_crops, choose_frames, for_copies, place_in_silence
from s2dlib.data.files import atomic_path
from s2dlib.data.pixels import resize, rgb_to_grayscale
from s2dlib.data.readers import Wanted, read_frames
from s2dlib.data.sources import ClipError
from s2dlib.data.table import class_names, read_csv

MAX_TRIES = 5  # clips tried for one place of a training batch
READING = 2  # of the cache's keys: raised when files give other frames, so that old ones go unused


class Truth(NamedTuple):
    """Where the detail of a video is: columns of its CSV, in its frames and pixels.

    Of real videos the moment alone may be known: t and duration.
    """

    t: float  # its middle
    duration: float
    size: float = math.nan
    y: float = math.nan  # centre
    x: float = math.nan
    side: float = math.nan  # height and width of the video


MOMENT = Truth._fields[:2]
TRUTH = Truth._fields[:5]


class Item(TypedDict, total=False):
    """A clip, or V = n_crops of one video; of a video that cannot be read only failed."""

    frames: Tensor  # uint8 (C, T, H, W), or (V, C, T, H, W) with several crops
    label: int
    index: int  # its row in the table
    # Where known, the detail's t, duration (raw frames) and, unless it is known in time alone,
    # size, y, x (raw pixels) in this clip; frame and pixel r span r to r + 1.
    # float32 (5,) or (2,); (V, 5) or (V, 2)
    truth: Tensor
    failed: dict[str, str]  # path -> cause of what was tried and cannot be read


class Items(list[Item]):
    """Clips of a batch, and the memory in whose rows their frames lie, each from the beginning."""

    memory: Tensor | None = None  # uint8 (B, V, C, n_frames, crop, crop)


class VideoDataset(Dataset):
    """Clips of one split of a data set; what is random comes from (seed, epoch, index) alone."""

    def __init__(self, config: DataConfig, split: str, train: bool, seed: int = 0) -> None:
        table = read_csv(config.csv)
        splits = sorted(table["split"].unique())
        if split not in splits:
            raise ValueError(f"{config.csv}: no split {split!r}; the splits are {splits}")
        self.config, self.train, self.seed = for_copies(config, table), train, seed
        self._child = self.config is config  # working copies need none (D35)
        self.classes = class_names(table)  # of all splits, so that indices agree
        table = table[table["split"] == split].head(config.n_clips or len(table))
        self.table = table.reset_index(drop=True)
        self._paths, self._labels = self.table["path"].tolist(), self.table["label"].tolist()
        self._truth: list[Truth] | None = None  # of each video as written
        known = Truth._fields if set(TRUTH) <= set(table.columns) else MOMENT
        if set(known) <= set(table.columns):
            self._truth = [Truth(*row) for row in self.table[[*known]].to_numpy(float)]
        self._silence: list[tuple[int, int]] = []  # of each video, until and from which frame
        if {"onset", "end"} <= set(table.columns):
            self._silence = [(int(a), int(b)) for a, b in self.table[["onset", "end"]].to_numpy()]
        self.failed: dict[str, str] = {}  # path -> cause, of the last load_batches
        self._logged: set[str] = set()
        self._epoch = torch.tensor(0).share_memory_()  # workers see it
        self.loader: DataLoader | None = None  # with workers that wait (loader.py)
        # Makes Items.memory, given its shape; None: each clip has memory of its own (loader.py)
        self.memory: Callable[[tuple[int, ...]], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"loader": None}

    def set_epoch(self, epoch: int) -> None:
        """Draw other clips, crops and flips, the same ones whenever this epoch comes back."""
        self._epoch.fill_(epoch)

    @property
    def n_crops(self) -> int:
        """Views of a video, V: all of them are in its item."""
        return 1 if self.train else self.config.test_crops

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Item:
        """A clip (see Item); ClipError where it cannot be read."""
        return self._item(range(len(self))[index])  # IndexError, and -1 is the last

    def _item(self, index: int, row: Tensor | None = None) -> Item:
        """A clip, read into a row of Items.memory where one is given."""
        frames, start, crops = self._read_clip(index, row)  # (V, C, T, crop, crop)
        frames = frames[0] if self.n_crops == 1 else frames
        item: Item = {"frames": frames, "label": self._labels[index], "index": index}
        if self._truth is not None:
            truth = self._truth[index]
            truths = [self._truth_in_crop(truth, start, crop) for crop in crops]
            item["truth"] = torch.stack(truths).squeeze(0)  # no axis of crops where there is one
        return item

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """The clips of a batch, as a DataLoader asks for them; unlike one clip, never a ClipError.

        In training another clip of the split, drawn from (seed, epoch, index), takes the place of
        one that cannot be read.
        """
        # What a subclass gets by __getitem__, it may keep or mix: that has memory of its own
        if self.memory is None or type(self).__getitem__ is not VideoDataset.__getitem__:
            return [self._get_or_replace(index) for index in indices]
        config, items = self.config, Items()
        shape = (self.n_crops, 1 if config.gray else 3, config.n_frames, config.crop, config.crop)
        items.memory = self.memory((len(indices), *shape))
        items += map(self._get_or_replace, indices, items.memory)
        return items

    def _get_or_replace(self, index: int, row: Tensor | None = None) -> Item:
        failed: dict[str, str] = {}
        rng = None  # made where it is needed: that takes a tenth of a small clip's time
        seed = (self.seed, int(self._epoch), index)
        for _ in range(MAX_TRIES if self.train else 1):
            try:
                item = self[index] if row is None else self._item(index, row)
                return {**item, "failed": failed}
            except ClipError as error:
                failed[error.path] = error.cause
                rng = rng or np.random.default_rng(seed)
                index = int(rng.integers(len(self)))
        if self.train:
            causes = "; ".join(f"{path}: {cause}" for path, cause in failed.items())
            raise RuntimeError(f"{MAX_TRIES} clips drawn in turn cannot be read: {causes}")
        return {"failed": failed}

    def _truth_in_crop(self, truth: Truth, start: int, crop: Crop) -> Tensor:
        """The truth of a video in the frames and pixels of a clip cut out of it. (5,) or (2,)"""
        stride = self.config.frame_stride
        moment = [(truth.t - start) / stride + 0.5, truth.duration / stride]
        if math.isnan(truth.size):
            return torch.tensor(moment, dtype=torch.float32)
        scale = self.config.short_side / truth.side  # frames at short_side / video as written
        zoom = self.config.crop / crop.side
        y = (truth.y + 0.5) * scale - crop.top
        x = (truth.x + 0.5) * scale - crop.left
        x = crop.side - x if crop.flip else x
        size, y, x = truth.size * scale * zoom, y * zoom, x * zoom
        return torch.tensor([*moment, size, y, x], dtype=torch.float32)

    def _generator(self, index: int) -> Generator | None:
        """What draws the clip and the crops of a video; None: nothing is drawn."""
        if not self.train and self.config.test_clip != "random":
            return None
        seeds = np.random.SeedSequence((self.seed, int(self._epoch), index))
        return Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))

    def _read_clip(self, index: int, row: Tensor | None) -> tuple[Tensor, int, list[Crop]]:
        """The views of one clip, the first frame's number in the video, and the squares cut out.

        That number is below 0 where the clip begins in the silence set before the video
        (config.within). Returns (V, C, T, crop, crop), in the row if there is one; int; V.
        """
        path, config = self._paths[index], self.config
        start, generator = 0, None
        crops: list[Crop] = []

        def choose(n_total: int) -> list[int]:
            nonlocal start, generator
            generator = self._generator(index)  # anew where fewer frames decode
            crops.clear()
            try:
                indices, start = self._choose(n_total, index, generator)
            except ValueError as error:
                raise ClipError(path, str(error)) from error
            return indices

        def cut(frames: Tensor) -> Tensor:
            """(m, C, H, W) -> (m, V, C, crop, crop)"""
            H, W = frames.shape[-2:]
            if not crops:  # with the first frames
                crops[:] = choose_crops(H, W, config, self.n_crops, generator, self.train)
            views = [self._crop(frames, crop)[:, None] for crop in crops]
            return views[0] if len(views) == 1 else torch.cat(views, 1)

        if config.cache is None:
            frames = self._read_video(path, choose, cut, row)
        else:
            video = self._read_cached(path)  # (T_all, C, H, W)
            indices = choose(len(video))
            view = slice(indices[0], indices[-1] + 1, config.frame_stride)
            frames = cut(video[indices if config.within else view])
        frames = frames.movedim(0, 2)
        if row is not None and frames.data_ptr() != row.data_ptr():
            frames = row[:, :, : frames.shape[2]].copy_(frames)
        return frames, start, crops

    def _choose(
        self, n_total: int, index: int, generator: Generator | None
    ) -> tuple[list[int], int]:
        """The frames of a video that make its clip, and the first one's number, as _read_clip."""
        if not self.config.within:
            indices = choose_frames(n_total, self.config, generator)
            return indices, indices[0]
        silence = self._silence[index] if self._silence else (n_total // 10, n_total * 9 // 10)
        longer, offset = place_in_silence(n_total, self.config.within, silence, generator)
        indices = choose_frames(len(longer), self.config, generator)
        return [longer[i] for i in indices], indices[0] - offset

    def _read_video(
        self,
        path: str,
        wanted: Wanted = None,
        convert: Callable[[Tensor], Tensor] = lambda frames: frames,
        out: Tensor | None = None,
    ) -> Tensor:
        """Frames at short_side, gray if they are to be, converted. (T, C, H, W)"""
        config = self.config
        gray = rgb_to_grayscale if config.gray else lambda frames: frames
        return read_frames(
            path,
            wanted,
            config.short_side,
            config.timeout,
            lambda frames: convert(gray(frames)),
            self._child,
            out,
        )

    def _read_cached(self, path: str) -> Tensor:
        """All frames of a video at short_side, kept in the cache. (T_all, C, H, W)"""
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            raise ClipError(path, "no such file") from None
        config = self.config
        key = (path, stat.st_mtime_ns, stat.st_size, config.short_side, config.gray, READING)
        file = Path(config.cache or "", f"{hashlib.sha1(repr(key).encode()).hexdigest()}.npy")
        if not file.exists():
            with atomic_path(file) as partial:  # a worker beside this one may write it too
                np.save(partial, self._read_video(path).numpy())
        return map_array(file)

    def _crop(self, frames: Tensor, crop: Crop) -> Tensor:
        """A square of the frames at crop pixels a side. (m, C, H, W) -> (m, C, crop, crop)"""
        clip = crop.cut(frames)  # (m, C, side, side)
        if crop.side != self.config.crop:  # channels last halves the time
            clip = clip.contiguous(memory_format=torch.channels_last)
            clip = resize(clip, (self.config.crop, self.config.crop))
        return clip.flip(-1) if crop.flip else clip


def map_array(file: Path) -> Tensor:
    """What np.save wrote, read as it is touched; what is written to it stays in memory.

    As np.load does by mmap_mode="c", which parses each header anew: for a clip of 200 kB that took
    longer than all else.
    """
    with file.open("rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    shape, order, dtype, start = _header(memory[:128])
    return torch.from_numpy(np.ndarray(shape, dtype, memory, start, order=order))


@lru_cache(1024)  # videos of one length share theirs
def _header(head: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype, int]:
    """Shape, order and type of the array that a file of this beginning holds, and its place."""
    file = io.BytesIO(head)
    np.lib.format.read_magic(file)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, "F" if is_fortran else "C", dtype, file.tell()
