"""Clips of a data set: frames, label, and the detail's place where it is known (Sec. 4.1).

Axes: C colours (1 where the frames are gray), T x H x W raw frames. Frames stay uint8: the model
normalises after sampling, and 150 frames of 224 x 224 are 23 MB so, 90 MB as float32.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from s2dlib.config import DataConfig
from s2dlib.data.clips import choose_frames, windows
from s2dlib.data.decoding import ClipError
from s2dlib.data.files import atomic_path
from s2dlib.data.readers import read_frames
from s2dlib.data.table import class_names, read_csv

TRIES = 5  # clips tried for one place of a training batch
TRUTH = ("t", "duration", "size", "y", "x")  # columns of a synthetic CSV: where the detail is


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
            with atomic_path(file) as partial:  # a worker beside this one may write it too
                np.save(partial, self._decode(path))
            return np.lib.format.open_memmap(file, mode="r")

    def _crop(self, frames: np.ndarray, side: int, y: int, x: int, flip: bool) -> Tensor:
        """A square of the frames at crop pixels a side. (T, C, H, W) -> (C, T, crop, crop)"""
        square = frames[:, :, y : y + side, x : x + side]  # (T, C, side, side)
        clip = torch.from_numpy(np.array(square))
        if side != self.config.crop:  # channels last halves the time
            clip = clip.contiguous(memory_format=torch.channels_last)
            clip = resize(clip, [self.config.crop] * 2, antialias=True)
        return (clip.flip(-1) if flip else clip).transpose(0, 1).contiguous()
