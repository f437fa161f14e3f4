"""Arenas and the arrays handed out of them: numpy's, torch's on the CPU, JAX's. `device` has those on a GPU."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError, MissingDependency
from recollect.records.plan import Target

Kind = Literal["torch", "numpy", "jax", "tensordict"]
_PACKAGES = {"torch": "torch", "jax": "jax", "tensordict": "tensordict"}
_ALIGNED = 64
"""Bytes. JAX shares memory that is aligned so, and copies other."""


class Output(Protocol):
    """How batches leave the loader.

    Attributes:
        is_far: whether arrays are copied to another device. All of a chunk's are then copied there together.
    """

    @property
    def is_far(self) -> bool: ...

    def arena(self, size: int) -> Any:
        """Fresh memory of `size` bytes."""

    def host(self, arena: Any) -> NDArray[np.uint8]:
        """The arena as a numpy array over the same memory."""

    def finish(self, arena: Any, size: int, extras: Mapping[str, NDArray[Any]]) -> tuple[Any, Mapping[str, Any]]:
        """The arena's first `size` bytes and arrays beside it, where batches are wanted: themselves, or copies on the
        device, made in one piece. Called once, by the consumer's thread; the arena is not touched afterwards."""

    def split(self, arena: Any, target: Target, at: int, rows: int, sizes: Sequence[int]) -> list[Any]:
        """The arrays of one target, one per batch, over the arena's memory."""

    def from_host(self, array: NDArray[Any], sizes: Sequence[int]) -> list[Any]:
        """Likewise for an array that lies outside the arena."""


def choose(kind: Kind | None, device: str | None) -> Output:
    """The output for what the caller asked: torch when it is installed, numpy otherwise.

    Raises:
        MissingDependency: a package was asked for, by name or by a device, and is not installed.
        ArgumentError: no such output, or no such device here.
    """
    if kind not in (None, "numpy", *_PACKAGES):
        raise ArgumentError("unknown output", value=kind, remedy="Use 'torch', 'numpy', 'jax' or 'tensordict'")
    needed = ["torch"] if device is not None and kind is None else [] if kind in (None, "numpy") else [_PACKAGES[kind]]
    for package in (*needed, *(("torch",) if kind == "tensordict" else ())):
        if not _is_installed(package):
            extra = "pip install 'recollect[torch]'" if package == "torch" else f"pip install {package}"
            raise MissingDependency(f"{package} is not installed", remedy=f"{extra}, or output='numpy'")
    if kind == "numpy" and device not in (None, "cpu"):
        raise ArgumentError("numpy arrays live on the CPU", value=device)
    if kind == "jax":
        return JaxOutput(device)
    if kind == "numpy" or not _is_installed("torch"):
        return NumpyOutput()
    if device in (None, "cpu"):
        return TorchOutput()
    from recollect.loader.device import DeviceOutput

    return DeviceOutput(str(device))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


class NumpyOutput:
    is_far = False

    def arena(self, size: int) -> Any:
        return np.empty(size, np.uint8)

    def host(self, arena: Any) -> NDArray[np.uint8]:
        out: NDArray[np.uint8] = arena
        return out

    def finish(self, arena: Any, size: int, extras: Mapping[str, NDArray[Any]]) -> tuple[Any, Mapping[str, Any]]:
        return arena, extras

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


class JaxOutput(NumpyOutput):
    """JAX arrays over the same memory as numpy's, through DLPack. JAX's own rules for dtypes hold: without
    `jax_enable_x64` 64-bit numbers become 32-bit ones, in a copy."""

    def __init__(self, device: str | None) -> None:
        import jax

        self._from, self._put = jax.dlpack.from_dlpack, jax.device_put
        self._device = None
        if device is not None:
            platform, _, index = device.partition(":")
            try:
                self._device = jax.devices(platform)[int(index or 0)]
            except (RuntimeError, ValueError, IndexError) as e:
                raise ArgumentError(f"no such JAX device: {e}", value=device) from None

    def arena(self, size: int) -> Any:
        whole = np.empty(size + _ALIGNED, np.uint8)
        skip = -whole.ctypes.data % _ALIGNED
        return whole[skip : skip + size]

    def from_host(self, array: NDArray[Any], sizes: Sequence[int]) -> list[Any]:
        arrays = [self._from(part) for part in super().from_host(array, sizes)]
        return arrays if self._device is None else [self._put(a, self._device) for a in arrays]
