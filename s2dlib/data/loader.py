"""Clips -> batches, on the device ahead of need.

Axes: B clips, C colours (1 where the frames are gray), T x H x W raw frames.
"""

from __future__ import annotations

import ctypes
import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from s2dlib.data.dataset import Item, Items, VideoDataset

log = logging.getLogger(__name__)
MAX_FAILED = 0.1  # of a split: with more unreadable clips it is not the data set one thinks it is
PREFETCH = 2  # batches that a worker makes ahead of need


class Batch(TypedDict, total=False):
    """B clips, padded with zeros in time; truth only where the clips have one.

    Each of the V crops of a video is a clip of its own: those of a video stand together, and index
    counts them (its row in the table times V, and on).
    """

    frames: Tensor  # uint8 (B, C, T_max, H, W)
    n_frames: Tensor  # int64 (B,)
    label: Tensor  # int64 (B,)
    index: Tensor  # int64 (B,)
    truth: Tensor  # float32 (B, 5), or (B, 2) where known in time alone
    failed: dict[str, str]  # of collate only: path -> cause of what cannot be read


def collate(items: list[Item], pin: bool = False) -> Batch:
    """One batch of clips of different length, without those that cannot be read.

    Args:
        items: of B videos.
        pin: as pad.

    Returns:
        A Batch with failed, and with nothing else where no clip is left.
    """
    memory = items.memory if isinstance(items, Items) else None
    failed = {path: why for item in items for path, why in item.get("failed", {}).items()}
    items = [item for item in items if "frames" in item]
    if not items:
        return {"failed": failed}
    clips = [x if (x := item["frames"]).ndim == 5 else x[None] for item in items]
    V = len(clips[0])
    frames, n_frames = pad(clips, pin=pin, memory=memory)
    index = torch.tensor([item["index"] for item in items])
    batch: Batch = {
        "frames": frames,
        "n_frames": n_frames,
        "label": torch.tensor([item["label"] for item in items]).repeat_interleave(V),
        "index": (index[:, None] * V + torch.arange(V)).flatten(),
        "failed": failed,
    }
    if "truth" in items[0]:
        batch["truth"] = torch.cat([torch.atleast_2d(item["truth"]) for item in items])
    return batch


def pad(
    clips: Sequence[Tensor],
    device: str | torch.device = "cpu",
    pin: bool = False,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clips of different length in one tensor, each with zeros after its end.

    Args:
        clips: the views of B videos; for a GPU in pinned memory, or each copy waits.
            (V, C, T, H, W) each
        pin: as batch_memory.
        memory: of a batch, in whose rows clips may lie already; taken where it has the shape due:
            no clip is missing, and one is as long as can be.

    Returns:
        (B V, C, T_max, H, W) on the device, and n_frames on the CPU. (B V,)
    """
    V, C, _, H, W = clips[0].shape
    n_frames = torch.tensor([clip.shape[2] for clip in clips])
    shape, dtype = (len(clips), V, C, int(n_frames.max()), H, W), clips[0].dtype
    if memory is None or memory.shape != shape or memory.dtype != dtype:
        memory = batch_memory(shape, pin, device, dtype, of="padded")
    for row, clip in zip(memory, clips, strict=True):
        if row.data_ptr() != clip.data_ptr():
            row[:, :, : clip.shape[2]].copy_(clip, non_blocking=True)
        row[:, :, clip.shape[2] :] = 0
    return memory.flatten(0, 1), n_frames.repeat_interleave(V)


def batch_memory(
    shape: tuple[int, ...],
    pin: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.uint8,
    of: str = "read",
) -> Tensor:
    """Memory for the frames of a batch; of a worker shared, or its way would be one more copy.

    Args:
        shape: (B, V, C, T_max, H, W)
        pin: memory that is pinned: a worker's PREFETCH + 1 batches by turns, which are pinned by
            who gets them (SlotLoader).
        of: whose turns they are; none may take two for one batch.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=pin)
    n = math.prod(shape)
    nbytes = n * dtype.itemsize
    storage = _slot(nbytes, of) if pin else torch.UntypedStorage._new_shared(nbytes)
    return torch.empty(0, dtype=dtype).set_(storage)[:n].view(shape)


_slots: dict[str, list[torch.UntypedStorage]] = {}  # of a worker, the next one first


def _slot(nbytes: int, of: str) -> torch.UntypedStorage:
    """Shared memory for a worker's next batch: that of the last but PREFETCH.

    New memory would cost a batch more than its copy: each page is made, zeroed and pinned.
    """
    slots = _slots.setdefault(of, [])
    slot = slots.pop(0) if len(slots) > PREFETCH else None
    if slot is None or slot.nbytes() < nbytes:
        grown = nbytes if slot is None else max(nbytes, slot.nbytes() * 3 // 2)
        slot = torch.UntypedStorage._new_shared(grown)
    slots.append(slot)
    return slot


class SlotLoader(DataLoader):
    """A DataLoader that pins the memory of its workers' batches once, not each batch anew.

    Args:
        dataset: its batch_sampler is a list, to be filled before each pass.
        workers: processes, each with PREFETCH + 1 batches in shared memory.
        pin: for a GPU; who iterates hands each batch to pin_slot.
    """

    def __init__(self, dataset: VideoDataset, workers: int, pin: bool) -> None:
        super().__init__(
            dataset,
            batch_sampler=[],
            num_workers=workers,
            collate_fn=partial(collate, pin=pin),
            worker_init_fn=partial(start_worker, pin=pin),
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        )
        if not (workers or pin):  # pinned memory could not be had in a worker of another loader
            dataset.memory = partial(torch.empty, dtype=torch.uint8)
        self.pin = pin
        self._pinned: dict[int, torch.UntypedStorage] = {}  # held, or a batch is mapped anew
        weakref.finalize(self, _unpin, self._pinned)

    def pin_slot(self, batch: Batch) -> Batch:
        """The batch itself, whose frames lie in pinned memory now.

        Raises:
            CudaError: the memory cannot be pinned.
        """
        slot = batch["frames"].untyped_storage()
        if slot.data_ptr() not in self._pinned and not slot.is_pinned():
            cuda = torch.cuda.cudart()
            torch.cuda.check_error(cuda.cudaHostRegister(slot.data_ptr(), slot.nbytes(), 0))
            self._pinned[slot.data_ptr()] = slot
        return batch


def _unpin(slots: dict[int, torch.UntypedStorage]) -> None:
    """Before their memory is given back."""
    for address in slots:
        torch.cuda.cudart().cudaHostUnregister(address)
    slots.clear()


def start_worker(worker: int, pin: bool) -> None:  # noqa: ARG001
    """Set a worker of a SlotLoader up; its data set's copy alone learns of the slots."""
    return_memory()
    info = get_worker_info()
    assert info is not None
    cast("VideoDataset", info.dataset).memory = partial(batch_memory, pin=pin)


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
) -> Iterator[Batch]:
    """Batches of the clips that can be read; dataset.failed tells which cannot, and why.

    The loader starts at once, not with the first batch: it draws a random number.

    Args:
        dataset: in training an unreadable clip is replaced by another, in testing it is left out.
        batch_size: clips a batch (crops, where videos have several), in the data set's order.
        workers: processes that load.
        steps: the clips of each batch instead.
        device: where the batches are to lie; a GPU gets them ahead of need (on_device).

    Raises:
        RuntimeError: more than MAX_FAILED of the clips cannot be read, or MAX_TRIES in turn.
    """
    dataset.failed = {}
    if steps is None:
        indices, at_once = range(len(dataset)), max(1, batch_size // dataset.n_crops)
        steps = [indices[i : i + at_once] for i in range(0, len(dataset), at_once)]
    loader = _loader_of(dataset, workers, torch.device(device).type == "cuda")
    cast("list[Sequence[int]]", loader.batch_sampler)[:] = steps
    torch.empty((), dtype=torch.int64).random_()  # as one made anew: runs are what they were
    return on_device(_drop_failed(dataset, loader, iter(loader), len(steps)), device)


def _loader_of(dataset: VideoDataset, workers: int, pin: bool) -> SlotLoader:
    """The data set's loader, whose workers wait since it was last read to its end; or a new one.

    Beside a GPU eight workers take seconds to start, as long as an epoch of a small data set.
    """
    loader = cast("SlotLoader | None", dataset.loader)
    dataset.loader = None  # it is busy until it is given back
    if loader is None or (loader.num_workers, loader.pin) != (workers, pin):
        loader = SlotLoader(dataset, workers, pin)
    return loader


def on_device(batches: Iterator[Batch], device: str | torch.device) -> Iterator[Batch]:
    """Batches whose tensors lie on a device; on a GPU the next one is copied while one is used.

    Args:
        batches: on the CPU; for a GPU in pinned memory, or each copy waits. A batch's memory may
            be used again once the next one is asked for.
    """
    if (device := torch.device(device)).type != "cuda":
        yield from (_copy(batch, device) for batch in batches)
        return
    stream, before = torch.cuda.Stream(device), None
    while batch := next(batches, None):
        with torch.cuda.stream(stream):
            copies = _copy(batch, device, non_blocking=True)
        after = (copies, stream.record_event())
        if before is not None:
            yield _wait_for_copy(*before)
        before = after
        after[1].synchronize()  # begun before the step that was just launched
    if before is not None:
        yield _wait_for_copy(*before)


def _copy(batch: Batch, device: torch.device, non_blocking: bool = False) -> Batch:
    tensors = cast("dict[str, Tensor]", batch)
    copies = {name: x.to(device, non_blocking=non_blocking) for name, x in tensors.items()}
    return cast("Batch", copies)


def _wait_for_copy(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """A batch for the current stream, which waits for its copy; the CPU does not."""
    stream = torch.cuda.current_stream(batch["frames"].device)
    stream.wait_event(copied)
    for value in cast("dict[str, Tensor]", batch).values():
        value.record_stream(stream)  # or its memory might be given away before it is read
    return batch


def _drop_failed(
    dataset: VideoDataset, loader: SlotLoader, batches: Iterator[Batch], n: int
) -> Iterator[Batch]:
    """Those of n batches that hold a clip; what cannot be read is logged and counted."""
    for i, batch in enumerate(batches, start=1):
        if i == n:
            dataset.loader = loader
        if failed := batch.pop("failed"):
            _log_failed(dataset, failed)
        if batch:
            yield loader.pin_slot(batch) if loader.pin else batch


def _log_failed(dataset: VideoDataset, failed: dict[str, str]) -> None:
    """Log what cannot be read, each video once; an error where it is more than MAX_FAILED."""
    dataset.failed |= failed
    for path in failed.keys() - dataset._logged:
        done = "another clip takes its place" if dataset.train else "left out"
        log.warning("%s: %s; %s", path, failed[path], done)
        dataset._logged.add(path)
    n = len(dataset.failed)
    if n > MAX_FAILED * len(dataset):
        causes = "; ".join(f"{path}: {why}" for path, why in list(dataset.failed.items())[:5])
        raise RuntimeError(
            f"{n} of {len(dataset)} clips cannot be read so far, more than {MAX_FAILED:.0%}: "
            f"{causes}; notebook 00_data checks every file"
        )
