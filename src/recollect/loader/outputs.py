"""Arenas and the arrays handed out of them, for numpy and for torch. The only importer of torch."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError, MissingDependency
from recollect.records.plan import Target

Kind = Literal["torch", "numpy"]


class Output(Protocol):
    """How batches leave the loader."""

    def arena(self, size: int) -> Any:
        """Fresh memory of `size` bytes."""

    def host(self, arena: Any) -> NDArray[np.uint8]:
        """The arena as a numpy array over the same memory."""

    def finish(self, arena: Any) -> Any:
        """The arena where batches are wanted: itself, or a copy on the device."""

    def split(self, arena: Any, target: Target, at: int, rows: int, sizes: Sequence[int]) -> list[Any]:
        """The arrays of one target, one per batch, over the arena's memory."""

    def from_host(self, array: NDArray[Any], sizes: Sequence[int]) -> list[Any]:
        """Likewise for an array that lies outside the arena."""


def choose(kind: Kind | None, device: str | None) -> Output:
    """The output for what the caller asked: torch when it is installed, numpy otherwise.

    Raises:
        MissingDependency: torch was asked for, by name or by a device, and is not installed.
    """
    if kind not in (None, "torch", "numpy"):
        raise ArgumentError("unknown output", value=kind, remedy="Use 'torch' or 'numpy'")
    have = importlib.util.find_spec("torch") is not None
    if (kind == "torch" or device is not None) and not have:
        raise MissingDependency("torch is not installed", remedy="pip install 'recollect[torch]', or output='numpy'")
    if kind == "numpy" and device not in (None, "cpu"):
        raise ArgumentError("numpy arrays live on the CPU", value=device)
    if not have or kind == "numpy":
        return NumpyOutput()
    return TorchOutput() if device in (None, "cpu") else DeviceOutput(str(device))


class NumpyOutput:
    def arena(self, size: int) -> Any:
        return np.empty(size, np.uint8)

    def host(self, arena: Any) -> NDArray[np.uint8]:
        out: NDArray[np.uint8] = arena
        return out

    def finish(self, arena: Any) -> Any:
        return arena

    def split(self, arena: Any, target: Target, at: int, rows: int, sizes: Sequence[int]) -> list[Any]:
        return self.from_host(np.ndarray((rows, *target.shape), target.dtype, arena, at), sizes)

    def from_host(self, array: NDArray[Any], sizes: Sequence[int]) -> list[Any]:
        if len(sizes) == 1:
            return [array]
        ends = list(itertools.accumulate(sizes))
        return [array[end - size : end] for end, size in zip(ends, sizes, strict=True)]


class TorchOutput(NumpyOutput):
    """Torch tensors on the CPU, over the same memory as numpy's."""

    def __init__(self) -> None:
        import torch

        self._from_numpy = torch.from_numpy

    def from_host(self, array: NDArray[Any], sizes: Sequence[int]) -> list[Any]:
        tensor: Any = self._from_numpy(array)
        return [tensor] if len(sizes) == 1 else list(tensor.split(list(sizes)))


class DeviceOutput:
    """Torch tensors on another device: the arena is pinned and copied there in one piece."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        try:
            self._device = torch.device(device)
        except RuntimeError as e:
            raise ArgumentError(f"unknown device: {e}", value=device) from None
        self._pinned = self._device.type == "cuda"
        if self._pinned and not torch.cuda.is_available():
            raise ArgumentError("no CUDA device here", value=device, remedy="Use device='cpu'")
        names = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
        self._dtypes = {np.dtype(n): getattr(torch, n) for n in (*names, "float16", "float32", "float64")}

    def arena(self, size: int) -> Any:
        return self._torch.empty(size, dtype=self._torch.uint8, pin_memory=self._pinned)

    def host(self, arena: Any) -> NDArray[np.uint8]:
        out: NDArray[np.uint8] = arena.numpy()
        return out

    def finish(self, arena: Any) -> Any:
        return arena.to(self._device, non_blocking=True)

    def split(self, arena: Any, target: Target, at: int, rows: int, sizes: Sequence[int]) -> list[Any]:
        flat = arena[at : at + rows * target.row_bytes].view(self._dtypes[target.dtype])
        return self._cut(flat.view(rows, *target.shape), sizes)

    def from_host(self, array: NDArray[Any], sizes: Sequence[int]) -> list[Any]:
        return self._cut(self._torch.from_numpy(array).to(self._device, non_blocking=True), sizes)

    def _cut(self, whole: Any, sizes: Sequence[int]) -> list[Any]:
        return [whole] if len(sizes) == 1 else list(whole.split(list(sizes)))
