"""Random numbers that belong to nobody: a pure function of (seed, stream, step, index).

Philox 4×64-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), the generator behind
`numpy.random.Philox`, with the counter spelt out. Integers only, so the numbers are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@njit(nogil=True, cache=True, inline="always")
def _high(a: Any, b: Any) -> Any:
    """The upper 64 bits of a product of two 64-bit numbers."""
    a0, a1, b0, b1 = a & _LOW, a >> _32, b & _LOW, b >> _32
    mid = a1 * b0 + ((a0 * b0) >> _32)
    low = a0 * b1 + (mid & _LOW)
    return a1 * b1 + (mid >> _32) + (low >> _32)


@njit(nogil=True, cache=True)
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Four 64-bit numbers for one counter and key."""
    for _ in range(10):
        h0, l0 = _high(_M0, c0), _M0 * c0
        h1, l1 = _high(_M1, c2), _M1 * c2
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0 += _W0
        k1 += _W1
    return c0, c1, c2, c3


@njit(nogil=True, cache=True)
def bounded(k0: Any, k1: Any, first_step: int, steps: int, n: int, bound: int, out: Any) -> None:
    """Fills `out` `[steps * n]` with integers in `[0, bound)`; row s is a function of step `first_step + s` alone.

    The upper half of (64 random bits × bound): the bias is below bound / 2**64.
    """
    limit = np.uint64(bound)
    for s in range(steps):
        base = s * n
        step = np.uint64(first_step + s)
        for i in range(0, n, 4):
            a, b, c, d = philox(np.uint64(i >> 2), step, np.uint64(0), np.uint64(0), k0, k1)
            out[base + i] = np.int64(_high(a, limit))
            if i + 1 < n:
                out[base + i + 1] = np.int64(_high(b, limit))
            if i + 2 < n:
                out[base + i + 2] = np.int64(_high(c, limit))
            if i + 3 < n:
                out[base + i + 3] = np.int64(_high(d, limit))


@njit(nogil=True, cache=True)
def permuted(k0: Any, k1: Any, start: int, count: int, size: int, bits: int, out: Any) -> None:
    """Fills `out` `[count]` with positions `start` to `start + count` of a permutation of `[0, size)`.

    A balanced Feistel network of ten rounds over `2 * bits` bits with Philox as its round function, walked until it
    falls inside (Black, Rogaway 2002, "Ciphers with arbitrary finite domains"). Nothing is stored.
    """
    mask = np.uint64((1 << bits) - 1)
    shift = np.uint64(bits)
    limit = np.uint64(size)
    for i in range(count):
        x = np.uint64(start + i)
        while True:
            left, right = x >> shift, x & mask
            for r in range(10):
                f, _, _, _ = philox(right, np.uint64(r), np.uint64(0), np.uint64(1), k0, k1)
                left, right = right, (left ^ f) & mask
            x = (left << shift) | right
            if x < limit:
                break
        out[i] = np.int64(x)


def derived(seed: int, *path: int) -> int:
    """A seed of its own for each part of something that has one seed."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0])


class Stream:
    """The numbers of one purpose under one seed.

    Args:
        seed: the run's seed.
        path: names the purpose, such as `("uniform",)` or `("epoch", 3)`; mixed in through `SeedSequence`.
    """

    def __init__(self, seed: int, *path: int) -> None:
        words = np.random.SeedSequence([seed, *path]).generate_state(2, np.uint64)
        self.key: tuple[np.uint64, np.uint64] = (np.uint64(words[0]), np.uint64(words[1]))

    def integers(self, step: int, steps: int, n: int, bound: int) -> NDArray[np.int64]:
        """`[steps, n]` integers in `[0, bound)`."""
        out = np.empty(steps * n, np.int64)
        bounded(*self.key, step, steps, n, bound, out)
        return out.reshape(steps, n)

    def uniforms(self, step: int, steps: int, n: int) -> NDArray[np.float64]:
        """`[steps, n]` numbers in `[0, 1)`, multiples of 2**-53."""
        return (self.integers(step, steps, n, 1 << 53) * 2.0**-53).astype(np.float64)

    def permutation(self, start: int, count: int, size: int) -> NDArray[np.int64]:
        """`[count]`: a stretch of a permutation of `[0, size)`."""
        out = np.empty(count, np.int64)
        bits = max(1, ((size - 1).bit_length() + 1) // 2)
        permuted(*self.key, start, count, size, bits, out)
        return out
