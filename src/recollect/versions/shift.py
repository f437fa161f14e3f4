"""How the values of a field lie in two versions, from sums and samples of bounded size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SAMPLE_VALUES = 1 << 16
"""About so many values of a field are kept for quantiles and PSI: all of them where there are no more."""
SAMPLE_ROWS = 256
"""At least the values of so many rows."""
BINS = 10


@dataclass(frozen=True)
class Summary:
    """One field of one version. Of a field with a shape all elements count alike; of text the bytes of each value, of
    ragged fields the elements.

    Attributes:
        rows: steps that could hold it; `nulls` those that don't.
        count: finite values; `nonfinite` NaNs and infinities, which are in none of the rest.
        mean, std, min, max: of the values, exact but for rounding (sums after Chan, Golub, LeVeque 1979), or None.
        quantiles: at 5, 25, 50, 75 and 95%: the smallest value with at least that share at or below it. Of a sample of
            rows where there are more than `SAMPLE_VALUES` values: the share is then off by less than 1% as a rule.
    """

    rows: int
    nulls: int
    count: int
    nonfinite: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Shift:
    """A field in two versions, None where a version lacks it.

    Attributes:
        psi: the population stability index from `a` to `b`, see `psi`; None where one of them has no value.
    """

    a: Summary | None
    b: Summary | None
    psi: float | None


class Values:
    """Sums and a sample of a field's values.

    The sample are the rows whose ids have the smallest hashes, so that it is the same however the rows come, and two
    versions that share rows share them in their samples too.
    """

    def __init__(self) -> None:
        self.rows = self.nulls = self.count = self.nonfinite = 0
        self._mean = self._squares = 0.0
        self._low, self._high = np.inf, -np.inf
        self._hashes = np.empty(0, np.uint64)
        self._sample: NDArray[np.float64] = np.empty((0, 1))
        self._keep = SAMPLE_VALUES

    def add(self, hashes: NDArray[np.uint64], values: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Counts rows: `hashes` `[n]` of their ids, `values` `[n, …]`, `valid` `[n]` where they are not null."""
        self.rows += len(values)
        self.nulls += int((~valid).sum())
        if not valid.all():
            hashes, values = hashes[valid], values[valid]
        if not len(values):
            return
        with np.errstate(invalid="ignore"):  # signalling NaNs
            data = values.reshape(len(values), -1).astype(np.float64)
        self._keep = max(SAMPLE_ROWS, SAMPLE_VALUES // data.shape[1])
        finite = data[np.isfinite(data)]
        self.nonfinite += data.size - finite.size
        if finite.size:
            mean = float(finite.mean())
            self._sum(finite.size, mean, float(((finite - mean) ** 2).sum()), float(finite.min()), float(finite.max()))
        if len(self._hashes) >= self._keep:
            small = hashes < self._hashes.max()
            hashes, data = hashes[small], data[small]
        self._sampled(hashes, data)

    def merge(self, other: Values) -> None:
        """Counts what another collection counted, of other rows."""
        self.rows, self.nulls = self.rows + other.rows, self.nulls + other.nulls
        self.nonfinite += other.nonfinite
        if other.count:
            self._sum(other.count, other._mean, other._squares, other._low, other._high)
        if len(other._hashes):
            self._keep = other._keep
            self._sampled(other._hashes, other._sample)

    def _sum(self, count: int, mean: float, squares: float, low: float, high: float) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._squares += squares + delta**2 * self.count * count / total
        self._mean += delta * count / total
        self.count = total
        self._low, self._high = min(self._low, low), max(self._high, high)

    def _sampled(self, hashes: NDArray[np.uint64], data: NDArray[np.float64]) -> None:
        self._hashes = np.concatenate([self._hashes, hashes])
        self._sample = np.concatenate([self._sample, data]) if len(self._sample) else data
        if len(self._hashes) > self._keep:
            kept = np.argpartition(self._hashes, self._keep - 1)[: self._keep]
            self._hashes, self._sample = self._hashes[kept], self._sample[kept]

    @property
    def sample(self) -> NDArray[np.float64]:
        """The finite values of the sampled rows, sorted."""
        return np.sort(self._sample[np.isfinite(self._sample)])

    def summary(self) -> Summary:
        some = self.count > 0
        return Summary(
            self.rows,
            self.nulls,
            self.count,
            self.nonfinite,
            self._mean if some else None,
            float(np.sqrt(self._squares / self.count)) if some else None,
            self._low if some else None,
            self._high if some else None,
            tuple(float(q) for q in np.quantile(self.sample, QUANTILES, method="inverted_cdf"))
            if len(self.sample)
            else (),
        )


def shift(a: Values | None, b: Values | None) -> Shift:
    """What two collections say of a field."""
    index = None if a is None or b is None else psi(a.sample, b.sample)
    return Shift(None if a is None else a.summary(), None if b is None else b.summary(), index)


def psi(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """The population stability index of `b` against `a`, both sorted samples; None where one is empty.

    PSI = Σ (qᵢ - pᵢ) · ln(qᵢ / pᵢ) over bins i, with pᵢ the share of `a` and qᵢ that of `b` (Siddiqi, *Credit Risk
    Scorecards*, 2006; it is the symmetric divergence of Kullback and Leibler, 1951). The bins are the deciles of `a`,
    half-open to the right; where `a` has at most ten different values, one for each. Of k bins a share is
    (n + 1/2) / (N + k/2), so that an empty bin does not make it infinite. Below 0.1 is commonly read as no shift, above
    0.25 as a large one.
    """
    if not len(a) or not len(b):
        return None
    known = np.unique(a)
    if len(known) <= BINS:
        edges = np.concatenate([known, np.nextafter(known, np.inf)])
    else:
        edges = np.quantile(a, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges = np.unique(edges)

    def shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        return np.asarray((counts + 0.5) / (len(values) + 0.5 * len(counts)), np.float64)

    p, q = shares(a), shares(b)
    return float(((q - p) * np.log(q / p)).sum())


def hash_ids(writer: NDArray[np.int64], seq: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A well mixed number for each id (the finaliser of SplitMix64; Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        x = writer.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seq.astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))
