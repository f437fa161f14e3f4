"""`Buffer`: the cold end. Composes datasets, cache and views; no logic of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from recollect.cache.blocks import BlockCache
from recollect.cache.rotation import Rotation
from recollect.cache.view import BufferReader
from recollect.cold.dataset import Datasets, Promotion
from recollect.cold.location import Location
from recollect.errors import ArgumentError, NotFound
from recollect.promote.plan import cut_of
from recollect.records.layout import Layout
from recollect.records.part import part_of
from recollect.schema import Schema
from recollect.view import Cut, View


@dataclass(frozen=True)
class Version:
    """One version of a buffer.

    Attributes:
        version: its number; `tags` the names it has. Version 1 is the empty buffer, the first snapshot is version 2.
        time: when it was promoted, UTC.
        rows: rows in it; `rows_added` those its promotion brought.
        workspace: name of the workspace they came from.
        statistics: per numeric field: rows, nulls, nans, count, mean, std, min, max (per element for small fields), and
            under `returns` and `lengths` those of the episodes that ended. Of the steps as they were written: late
            facts are not in them.
    """

    version: int
    tags: tuple[str, ...]
    time: datetime
    rows: int
    rows_added: int
    workspace: str
    statistics: Mapping[str, Any]


class Buffer:
    """A versioned replay buffer on local disk or an object store. Thread-safe; open it anew in every process.

    Get one from `open_buffer`.
    """

    def __init__(self, data: Datasets) -> None:
        self._data = data
        self.uri = data.location.uri
        self._layout = Layout.of(data.schema)
        self._reader = BufferReader(data, self._layout, BlockCache())

    @property
    def schema(self) -> Schema:
        return self._data.schema

    def versions(self) -> list[Version]:
        """Every version, oldest first."""
        self._data.refresh()
        tags: dict[int, list[str]] = {}
        for name, number in self._data.tags().items():
            tags.setdefault(number, []).append(name)
        out = []
        for p in self._data.chain(self._data.promotion_id(self._data.steps)):
            number = p.base_version + 1
            out.append(
                Version(
                    number,
                    tuple(sorted(tags.get(number, []))),
                    datetime.fromtimestamp(p.time_ns / 1e9, tz=UTC),
                    p.total_rows,
                    p.rows,
                    p.record["lineage"]["workspace_name"],
                    _finished(p.record["statistics"]),
                )
            )
        return out

    def tags(self) -> dict[str, int]:
        """Tag → version number."""
        return dict(sorted(self._data.tags().items()))

    def at(self, which: str | int | datetime | None = None, *, cut: Cut | None = None) -> View:
        """A view of a version.

        Args:
            which: a tag, a version's number, or a moment: the newest version at that time. None is the newest of all.
            cut: reads only these rows of it, such as `snapshot.cut`.

        Raises:
            NotFound: no such tag or version, none that old, or a buffer without rows.
        """
        view = self._reader.view(*self._read(which))
        return view if cut is None else part_of(view, cut)

    def rotate(
        self, which: str | int | datetime | None = None, *, resident_bytes: int | None = None, reuse: float = 1.0
    ) -> Rotation:
        """A version that is larger than the cache, for a loader: its blocks take turns in the cache.

        Batches are drawn from the rows that are resident, with the same windows and next observations as if all were;
        every row has its turn. The order depends on the rows, the sampler, the seed and these arguments alone.

        Args:
            which: as for `at`.
            resident_bytes: bytes that resident blocks may take; the cache's budget when None. Give it where the
                order must not change with the budget.
            reuse: how often a row is drawn while it is resident, on average: less is closer to uniform, more decodes
                less.

        Raises:
            NotFound: as for `at`.
            ArgumentError: an argument out of range.
        """
        if not (isinstance(reuse, int | float) and 0 < reuse < float("inf")):
            raise ArgumentError("reuse is a number above 0", value=reuse)
        if resident_bytes is not None and resident_bytes < 1:
            raise ArgumentError("resident_bytes is a number of at least 1", value=resident_bytes)
        return self._reader.rotate(*self._read(which), resident_bytes=resident_bytes, reuse=float(reuse))

    def _read(self, which: str | int | datetime | None) -> tuple[Any, list[Promotion], Cut, str]:
        """A version's dataset, its promotions, their cut, and its name. Raises NotFound."""
        self._data.refresh()
        steps = self._data.at_version(self._number(which))
        chain = self._data.chain(self._data.promotion_id(steps))
        name = f"{self.uri}@{which if which is not None else steps.version}"
        if not chain:
            raise NotFound(f"{name} is empty", remedy="Snapshot a workspace to it first")
        return steps, chain, cut_of(chain), name

    def _number(self, which: str | int | datetime | None) -> int:
        if which is None:
            return int(self._data.steps.version)
        if isinstance(which, int):
            if which < 1:
                raise NotFound(f"buffer {self.uri!r} has no version {which}", remedy="Versions count from 1")
            return which
        if isinstance(which, datetime):
            moment = which.astimezone(UTC)
            older = [v for v in self.versions() if v.time <= moment]
            if not older:
                raise NotFound(f"buffer {self.uri!r} has no version as old as {moment.isoformat()}")
            return older[-1].version
        tags = self._data.tags()
        if which not in tags:
            raise NotFound(
                f"buffer {self.uri!r} has no tag {which!r}",
                remedy=f"Tags: {', '.join(sorted(tags)) or 'none'}",
            )
        return tags[which]

    @property
    def decoded_files(self) -> int:
        """Data files of which this handle decoded rows; the others were in the cache."""
        return self._reader.decoded_files

    @property
    def decoded_rows(self) -> int:
        """Rows that this handle decoded; the others were in the cache."""
        return self._reader.decoded_rows

    def close(self) -> None:
        """Nothing is held that outlives the handle; views stay valid."""

    def __enter__(self) -> Buffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Buffer({self.uri!r})"


def open_buffer(uri: str | os.PathLike[str], *, storage_options: Mapping[str, str] | None = None) -> Buffer:
    """Opens a replay buffer.

    Args:
        uri: a path, `file://`, `s3://…`.
        storage_options: endpoint, credentials and region of an object store.

    Raises:
        NotFound: no buffer there.
        StoreError: the store cannot be reached.
    """
    return Buffer(Datasets.open_(Location(uri, storage_options)))


def _finished(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sums as the statistics that people read: the deviation in place of the squares."""
    import numpy as np

    def one(sums: Mapping[str, Any]) -> dict[str, Any]:
        count = np.array(sums["count"])
        with np.errstate(all="ignore"):
            std = np.sqrt(np.array(sums["squares"]) / np.maximum(count, 1))
        none = int(np.max(count, initial=0)) == 0
        return {
            **{k: sums[k] for k in ("rows", "nulls", "nans", "count")},
            "mean": None if none else sums["mean"],
            "std": None if none else std.tolist(),
            "min": None if none else sums["min"],
            "max": None if none else sums["max"],
        }

    return {
        **{path: one(sums) for path, sums in data["fields"].items()},
        "returns": one(data["returns"]),
        "lengths": one(data["lengths"]),
    }


__all__ = ["Buffer", "Promotion", "Version", "open_buffer"]
