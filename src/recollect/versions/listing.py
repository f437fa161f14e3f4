"""The versions of a buffer, for people: what each holds, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from recollect.cold.dataset import Datasets
from recollect.cold.fold import cut_of
from recollect.cold.location import MAIN
from recollect.view import Cut, Extent


@dataclass(frozen=True)
class Version:
    """One version of a buffer.

    Attributes:
        version: its number; `tags` the names it has. Version 1 is the empty buffer, the first snapshot is version 2.
        time: when it was promoted, UTC.
        rows: rows in it; `rows_added` those its promotion brought, less those that it deleted.
        workspace: name of the workspace they came from.
        finished_only, where: the filter of its snapshot; `held_rows` rows that it held back.
        open_episodes: episodes that it promoted though somebody had them open; their later rows come in later versions.
        kept: whether it can still be opened; what cleanup removed stays in the list.
        branch: the branch that it is one of; its number is unique there and on the branches that began behind it.
        parent: number of the version that it was made of; `cut` the rows and facts that it added to that one.
        workspace_id: the id of the workspace; `schema` the fingerprint of the schema of the rows.
        commit: the commit of the code that wrote the rows, None where nobody said.
        column: the field that it added to every row, None for a snapshot's.
        reason: why it deleted rows, None where it did not; `deleted` which ones.
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
    kept: bool = True
    finished_only: bool = False
    where: str | None = None
    held_rows: int = 0
    open_episodes: int = 0
    branch: str = MAIN
    parent: int = 0
    cut: Cut = Cut((), ())  # noqa: RUF009
    workspace_id: str = ""
    schema: str = ""
    commit: str | None = None
    column: str | None = None
    reason: str | None = None
    deleted: tuple[Extent, ...] = ()


def listing(data: Datasets) -> list[Version]:
    """Every version that a snapshot, a column or a deletion made, oldest first, those of earlier branches included."""
    data.refresh()
    tags: dict[int, list[str]] = {}
    for name, number in data.tags().items():
        tags.setdefault(number, []).append(name)
    there = data.version_numbers()
    out = []
    for p in data.history().log():
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
                number in there,
                p.record["lineage"]["finished_only"],
                p.record["lineage"]["where"],
                p.record["counts"]["held_rows"],
                p.record["counts"]["open_episodes"],
                data.location.on(data.place(number)[0]).branch_name,
                p.base_version,
                cut_of([p]),
                p.workspace,
                p.record["schema"],
                p.record["lineage"]["commit"],
                p.record["lineage"].get("column"),
                p.record["lineage"].get("reason"),
                tuple(Extent(int(w), a, b) for w, a, b in p.record.get("deleted", ())),
            )
        )
    return out


def _finished(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sums as the statistics that people read: the deviation in place of the squares."""

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
