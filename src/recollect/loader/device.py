"""Torch tensors on another device: one copy a gather, out of pinned memory that is used again and again."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.records.plan import Target

_ALIGNED = 64
_NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")


class Pinned:
    """Host memory that a GPU copies from by itself. A buffer is used again once its copy is done, which is asked and
    never waited for: while it is not, there is another one.

    Args:
        torch: the module.
        pinned: False for memory of the usual kind, where there is no GPU to copy from it.
    """

    def __init__(self, torch: Any, *, pinned: bool) -> None:
        self._torch, self._pinned = torch, pinned
        self._free: list[tuple[Any, Any]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Any:
        """A buffer of at least `size` bytes, to be given back."""
        with self._lock:
            for k, (buffer, copied) in enumerate(self._free):
                if buffer.numel() >= size and (copied is None or copied.query()):
                    del self._free[k]
                    return buffer
        return self._torch.empty(size, dtype=self._torch.uint8, pin_memory=self._pinned)

    def give(self, buffer: Any, copied: Any) -> None:
        """Takes a buffer back. `copied` is the event after which nothing reads it any more; None when nothing does."""
        with self._lock:
            self._free.append((buffer, copied))
            if len(self._free) > 16:  # sizes that are asked for no more
                del self._free[0]


class DeviceOutput:
    """Everything that a chunk holds is laid into one buffer and copied in one piece on the consumer's current stream,
    without waiting. Kernels that the consumer enqueues there see it."""

    is_far = True

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        try:
            self._device = torch.device(device)
        except RuntimeError as e:
            raise ArgumentError(f"unknown device: {e}", value=device) from None
        self._cuda = self._device.type == "cuda"
        if self._cuda and not torch.cuda.is_available():
            raise ArgumentError("no CUDA device here", value=device, remedy="Use device='cpu'")
        self._dtypes = {np.dtype(n): getattr(torch, n) for n in ("bool", *_NUMBERS)}
        self._buffers = Pinned(torch, pinned=self._cuda)
        self._extra = 0  # bytes that arrays beside the gather took so far

    def arena(self, size: int) -> Any:
        return self._buffers.take(size + self._extra)

    def host(self, arena: Any) -> NDArray[np.uint8]:
        out: NDArray[np.uint8] = arena.numpy()
        return out

    def finish(self, arena: Any, size: int, extras: Mapping[str, NDArray[Any]]) -> tuple[Any, Mapping[str, Any]]:
        places, stop = {}, size
        for name, array in extras.items():
            places[name] = stop
            stop += -(-array.nbytes // _ALIGNED) * _ALIGNED
        self._extra = max(self._extra, stop - size)
        if stop > arena.numel():  # the first time only: extras are as large the next
            small, arena = arena, self._buffers.take(stop)
            arena[:size] = small[:size]
            self._buffers.give(small, None)
        host = arena.numpy()
        for name, array in extras.items():
            at = places[name]
            host[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        ready = self._torch.empty(stop, dtype=self._torch.uint8, device=self._device)
        ready.copy_(arena[:stop], non_blocking=True)
        copied = None
        if self._cuda:
            copied = self._torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._torch.cuda.current_stream(self._device))
        self._buffers.give(arena, copied)
        return ready, {n: self._tensor(ready, places[n], a.dtype, a.shape, a.nbytes) for n, a in extras.items()}

    def _tensor(self, ready: Any, at: int, dtype: np.dtype[Any], shape: Sequence[int], size: int) -> Any:
        return ready[at : at + size].view(self._dtypes[dtype]).view(tuple(shape))

    def split(self, arena: Any, target: Target, at: int, rows: int, sizes: Sequence[int]) -> list[Any]:
        whole = self._tensor(arena, at, target.dtype, (rows, *target.shape), rows * target.row_bytes)
        return self._cut(whole, sizes)

    def from_host(self, array: Any, sizes: Sequence[int]) -> list[Any]:
        if isinstance(array, np.ndarray):
            array = self._torch.from_numpy(array).to(self._device, non_blocking=True)
        return self._cut(array, sizes)

    def _cut(self, whole: Any, sizes: Sequence[int]) -> list[Any]:
        return [whole] if len(sizes) == 1 else list(whole.split(list(sizes)))
