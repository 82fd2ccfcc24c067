"""Clips -> batches, on the device ahead of need.

Axes: B clips, C colours (1 where the frames are gray), T x H x W raw frames.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from s2dlib.data.dataset import VideoDataset

log = logging.getLogger(__name__)
MAX_FAILED = 0.1  # of a split: with more unreadable clips it is not the data set one thinks it is


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
