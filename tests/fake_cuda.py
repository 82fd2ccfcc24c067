"""Fake CUDA tensors, which need no GPU: where the CPU would wait, a backward, kernels looked at.

A fake tensor (torch's FakeTensorMode) has a shape, a dtype and a device, and no values.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from s2dlib.model import S2DNet, build_model

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
READS = {  # give the CPU values, or a shape that depends on values
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave,
}  # fmt: skip
INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
BUILT = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)  # of Python's numbers


class Waits(TorchDispatchMode):
    """Lines of s2dlib at which the CPU waits for the GPU; a value that is not there reads as 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.muted = False

    def add(self) -> None:
        stack = traceback.extract_stack()[::-1]
        not_ours = ("/torch/", "/fake_cuda.py")
        own = [f for f in stack if not any(name in f.filename for name in not_ours)]
        own = [f for f in own if "/s2dlib/" in f.filename] or own
        self.lines.append(f"{own[0].filename.rpartition('/')[2]}:{own[0].lineno}")

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.muted and waits(op, args, kwargs):
            self.add()
        if op.overloadpacket is aten._local_scalar_dense:
            with suppress(Exception):  # a constant has a value, on the CPU
                return op(*args, **kwargs)
            return {torch.bool: bool, torch.int64: int}.get(args[0].dtype, float)(1)
        return op(*args, **kwargs)


def waits(op, args, kwargs) -> bool:
    """Whether the CPU waits for the GPU in an operation; it does in copies unless told not to."""
    name = op.overloadpacket
    if name is aten._to_copy or name is aten.copy_:
        source, to = args[:2][-1].device, kwargs.get("device", args[0].device)
        asynchronous = kwargs.get("non_blocking") or args[2:] == (True,)
        return source.type != torch.device(to).type and not asynchronous
    if name is aten.where:  # takes a number from the CPU
        return len({v.device for v in args if isinstance(v, Tensor)}) > 1
    if name in READS:
        return args[0].is_cuda and kwargs.get("output_size") is None
    if name in INDEXED and args[0].is_cuda:
        indices = [v for v in args[1] if v is not None]
        masked = any(v.dtype in (torch.bool, torch.uint8) for v in indices)
        filled = "put" in str(op) and args[2].numel() == 1  # as by masked_fill
        return any(not v.is_cuda for v in indices) or (masked and not filled)
    return op in (aten.masked_fill.Tensor, aten.masked_fill_.Tensor) and args[2].is_cuda


class Built(TorchFunctionMode):
    """Counts tensors that are made on the GPU of Python's numbers, for Waits."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        source = args[-1] if args else None
        if function not in BUILT or isinstance(source, Tensor):
            return function(*args, **(kwargs or {}))
        self.waits.muted = True  # the copy inside is the one that counts
        made = function(*args, **(kwargs or {}))
        self.waits.muted = False
        if made.is_cuda:
            self.waits.add()
        return made


@contextmanager
def counted() -> Iterator[list[str]]:
    """The lines at which the CPU waits for the GPU, on fake tensors."""
    counter = Waits()
    with counter, Built(counter):
        yield counter.lines


def backward(loss: Tensor) -> None:
    """Tensor.backward without autograd's engine, which asks the driver for its devices."""
    order: list = []
    stack = [(loss.grad_fn, False)]
    seen = set()
    while stack:  # depth first: what a node needs comes before it in `order`
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((n, False) for n, _ in node.next_functions if n is not None)]
    gradients = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in reversed(order):
        given = gradients.pop(node, {})
        if hasattr(node, "variable"):
            add_gradient(node.variable, given[0])
            continue
        call = node.apply if hasattr(node, "saved_tensors") else node
        made = call(*(given.get(i) for i in range(len(node._input_metadata))))
        made = made if isinstance(made, tuple) else (made,)
        for (to, i), gradient in zip(node.next_functions, made, strict=False):
            if to is not None and gradient is not None:
                there, meta = gradients.setdefault(to, {}), to._input_metadata[i]
                if gradient.shape != meta.shape:  # of what was broadcast
                    gradient = gradient.sum_to_size(meta.shape)
                gradient = gradient.to(meta.dtype)
                there[i] = there[i] + gradient if i in there else gradient


def add_gradient(p: Tensor, gradient: Tensor) -> None:
    assert (gradient.shape, gradient.dtype, gradient.device) == (p.shape, p.dtype, p.device)
    p.grad = gradient if p.grad is None else p.grad + gradient


class Stub:
    """In place of a kernel: looks at what it is given."""

    def __init__(self, kernel, launched: list[str]) -> None:
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid):
        return partial(self.launch, grid)

    def launch(self, grid, *args, **constants) -> None:
        names, given = self.kernel.arg_names, {}
        given = dict(zip(names, args, strict=False)) | constants
        for n, limit in zip(grid, (2**31 - 1, 65535, 65535)[: len(grid)], strict=True):
            assert 0 < n <= limit, grid
        for name, value in given.items():
            if isinstance(value, Tensor):
                assert value.is_cuda and value.is_contiguous(), name
                kinds = (torch.float32, torch.uint8, torch.int32, torch.int64)
                assert value.dtype in kinds and value.numel() > 0, name
            else:
                assert not isinstance(value, int) or abs(value) < 2**31, name
        assert given.keys() >= set(names)
        self.launched.append(self.kernel.__name__)


def on_fake_cuda(model: S2DNet) -> S2DNet:
    """A model on meta, each tensor replaced by a fake one of the same shape and strides."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, v in ((name, v) for name, v in held.items() if v is not None):
                made = torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=CUDA)
                held[name] = nn.Parameter(made) if isinstance(v, nn.Parameter) else made
    return model


def fake_model(preset: str, variant: str) -> S2DNet:
    with unset_fake_temporarily(), torch.device("meta"):
        model = build_model(preset, variant)
    return on_fake_cuda(model).train()
