"""A buffer's history: one small file per promotion, and folds of what is old.

    <buffer>/history/<promotion>.lance     the promotion, the links between it and the fold, and the fold's name
    <buffer>/history/fold-<name>.lance     a stretch of the chain in full, and all that came before it folded

A promotion's file is written once, before the commit that names it. So a promoter reads two files, however long the
history is; whoever lists all versions reads one file per `FOLD_LINKS` promotions. A file that no version leads to is
the leftover of an attempt that did not land.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from lance.file import LanceFileSession

from recollect.cold.commit import FILE_FORMAT
from recollect.cold.durable import sync_files
from recollect.cold.faults import store_errors
from recollect.cold.fold import FOLDED_KEYS, Fold, Gone, Promotion, cut_of, fold, gone_of, stages_of, weight
from recollect.cold.location import Location
from recollect.errors import CorruptionError, NotFound, StoreError
from recollect.view import Cut, Extent
from recollect.view.reach import pack, unpack

FOLDER = "history"
FOLD_LINKS = 64
"""So many links are carried along before they are folded."""
FOLD_WEIGHT = 64 << 10
"""Likewise, in characters."""
_KEPT = 256
_READERS = 16
_ZSTD = {b"lance-encoding:compression": b"zstd"}
_RECORD = pa.schema(
    [
        pa.field("promotion", pa.string(), metadata=_ZSTD),
        pa.field("open", pa.string(), metadata=_ZSTD),
        pa.field("fold", pa.string()),
        pa.field("branch", pa.string()),
        pa.field("base_version", pa.int64()),
        pa.field("written", pa.timestamp("ns", tz="UTC")),
    ]
)
_FOLD = pa.schema(
    [
        pa.field("last", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("earlier", pa.list_(pa.string())),
        pa.field("extents", pa.string(), metadata=_ZSTD),
        pa.field("stages", pa.list_(pa.string())),
        pa.field("summaries", pa.string(), metadata=_ZSTD),
        pa.field("links", pa.string(), metadata=_ZSTD),
        pa.field("branch", pa.string()),
        pa.field("base_version", pa.int64()),
        pa.field("written", pa.timestamp("ns", tz="UTC")),
    ]
)


class History:
    """The promotions that one version is made of.

    Attributes:
        head: the newest, in full; None for an empty buffer.
        links: those since the fold, oldest first, the head last; `fold_name` the fold's name, "" for none.
    """

    def __init__(self, records: Records, head: Promotion | None, links: Sequence[Promotion], fold_name: str) -> None:
        self._records = records
        self.head, self.links, self.fold_name = head, tuple(links), fold_name

    @property
    def fold(self) -> Fold | None:
        """What lies before the links, None for nothing."""
        return self._records.fold(self.fold_name) if self.fold_name else None

    @property
    def chain(self) -> list[Promotion]:
        """One summary per workspace of what is folded, then the links: what a promoter folds into its watermark."""
        before = self.fold
        return [*(before.summaries if before else ()), *self.links]

    @property
    def cut(self) -> Cut:
        """The rows of the version in their order, and its facts."""
        return cut_of(self.links, self.fold)

    @property
    def stages(self) -> frozenset[str]:
        """Names of the facts and tails that belong to the version."""
        before = self.fold
        return frozenset((*(before.stages if before else ()), *stages_of(self.links)))

    @property
    def gone(self) -> Gone:
        """What deletions took: rows, facts and waiting observations that are not shown, whoever promotes them."""
        return gone_of(self.chain)

    @property
    def has_facts(self) -> bool:
        return any(p.record["facts"] for p in self.chain)

    def find(self, promotion: str, since: int) -> Promotion | None:
        """A link by name, None when the history does not hold it.

        Args:
            since: the version it was committed on or any before that: older folds are not read.
        """
        for p in reversed(self.links):
            if p.id == promotion:
                return p
        before = self.fold
        for name in (before.name, *reversed(before.earlier)) if before else ():
            links = self._records.folded(name)
            for p in links:
                if p.id == promotion:
                    return p
            if links[0].base_version < since:
                break
        return None

    def log(self) -> list[Promotion]:
        """Every link in full, oldest first."""
        before = self.fold
        names = [*before.earlier, before.name] if before else []
        parts = self._records.each(self._records.folded, names)
        newest = self._records.each(self._records.promotion, [p.id for p in self.links[:-1]])
        return [*(p for part in parts for p in part), *newest, *self.links[-1:]]


class Records:
    """The files under `history`. They never change, so that what was read once is kept."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._session: Any = None
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    # -- reading -------------------------------------------------------------------------------------------

    def history(self, promotion: str) -> History:
        """The history of the version that names `promotion`.

        Raises:
            CorruptionError: its file is missing or damaged.
        """
        if not promotion:
            return History(self, None, (), "")
        head, opened, name = self._keep("record", promotion, self._read_record)
        return History(self, head, (*opened, head), name)

    def promotion(self, name: str) -> Promotion:
        """One link in full."""
        head: Promotion = self._keep("record", name, self._read_record)[0]
        return head

    def fold(self, name: str) -> Fold:
        out: Fold = self._keep("fold", name, self._read_fold)
        return out

    def folded(self, name: str) -> list[Promotion]:
        """The links that a fold is the first to cover, in full, oldest first."""
        row = self._read(f"fold-{name}", ["links"])
        return [Promotion.from_dict(d) for d in json.loads(row["links"])]

    def each(self, read: Callable[[str], Any], names: Sequence[str]) -> list[Any]:
        """`read` of every name, several at a time where the store is far away."""
        if self.location.is_local or len(names) < 2:
            return [read(name) for name in names]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, names))

    def names(self) -> list[str]:
        """Every file, of landed promotions or not: its name without folder and ending."""
        with store_errors("reading buffer", self.location):
            return [Path(path).stem for path in self._open().list(FOLDER) if path.endswith(".lance")]

    def written_for(self, name: str) -> tuple[str, int, float]:
        """Which version's successor a file was written for, its branch (lance's name) before it, and when, in seconds
        since 1970, by its writer's clock."""
        table = self._table(name, ["branch", "base_version", "written"])
        branch, version = (table.column(c)[0].as_py() for c in ("branch", "base_version"))
        return branch, version, table.column("written").cast(pa.int64())[0].as_py() / 1e9

    def remove(self, name: str) -> None:
        with store_errors("cleaning up", self.location):
            self._open().delete_file(f"{FOLDER}/{name}.lance")

    def _keep(self, kind: str, name: str, read: Callable[[str], Any]) -> Any:
        with self._lock:
            value = self._kept.get((kind, name))
        if value is None:
            value = read(name)
            with self._lock:
                self._kept[kind, name] = value
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return value

    def _read_record(self, name: str) -> tuple[Promotion, list[Promotion], str]:
        row = self._read(name, ["promotion", "open", "fold"])
        opened = [Promotion.from_dict(d) for d in json.loads(row["open"])]
        return Promotion.from_dict(json.loads(row["promotion"])), opened, row["fold"]

    def _read_fold(self, name: str) -> Fold:
        row = self._read(f"fold-{name}", ["last", "count", "earlier", "extents", "stages", "summaries"])
        return Fold(
            name,
            tuple(row["earlier"]),
            row["last"],
            row["count"],
            tuple(Extent(*e) for e in unpack(json.loads(row["extents"]))),
            tuple(Promotion.from_dict(d) for d in json.loads(row["summaries"])),
            tuple(row["stages"]),
        )

    def _read(self, name: str, columns: list[str]) -> dict[str, Any]:
        row: dict[str, Any] = self._table(name, columns).to_pylist()[0]
        return row

    def _table(self, name: str, columns: list[str]) -> Any:
        path = f"{FOLDER}/{name}.lance"
        try:
            with store_errors("reading buffer", self.location):
                return self._open().open_reader(path, columns).read_all().to_table()
        except (NotFound, StoreError) as e:
            with store_errors("reading buffer", self.location):
                there = self._open().contains(path)
            if there and not self.location.is_local:
                raise
            raise CorruptionError(
                f"buffer {self.location.uri!r} needs {path}, which {'cannot be read' if there else 'is not there'}",
                remedy="Restore it from a backup, or go back to a version before it",
            ) from e

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, promotion: Promotion, parent: History) -> None:
        """Makes the file of a promotion that follows `parent`. Durable when it returns, on a local disk."""
        assert promotion.record.keys() <= FOLDED_KEYS, "a promotion's record holds what cannot be folded"
        opened, name = parent.links, parent.fold_name
        if len(opened) >= FOLD_LINKS or weight(opened) >= FOLD_WEIGHT:
            opened, name = (), self._write_fold(parent, promotion.base_version)
        row = {
            "promotion": [_text(promotion.to_dict())],
            "open": [_text([p.slim().to_dict() for p in opened])],
            "fold": [name],
        }
        self._write(promotion.id, row, _RECORD, promotion.base_version)

    def _write_fold(self, parent: History, base_version: int) -> str:
        full = [*self.each(self.promotion, [p.id for p in parent.links[:-1]]), parent.links[-1]]
        made = fold(uuid.uuid4().hex, parent.fold, full)
        row = {
            "last": [made.last],
            "count": [made.count],
            "earlier": [list(made.earlier)],
            "extents": [_text(pack(made.extents))],
            "stages": [list(made.stages)],
            "summaries": [_text([p.to_dict() for p in made.summaries])],
            "links": [_text([p.to_dict() for p in full])],
        }
        self._write(f"fold-{made.name}", row, _FOLD, base_version)
        return made.name

    def _write(self, name: str, row: dict[str, Any], form: Any, base_version: int) -> None:
        path = f"{FOLDER}/{name}.lance"
        now = pa.array([time.time_ns()], form.field("written").type)
        where = {"branch": [self.location.branch], "base_version": [base_version], "written": now}
        table = pa.table({**row, **where}, schema=form)
        with store_errors("writing to", self.location):
            with self._open().open_writer(path, schema=table.schema, version=FILE_FORMAT) as writer:
                writer.write_batch(table)
            if self.location.is_local:
                sync_files([Path(self.location.child(path))])

    def _open(self) -> Any:
        if self._session is None:
            self._session = LanceFileSession(self.location.uri, storage_options=self.location.options)
        return self._session


def _text(value: Any) -> str:
    """JSON without spaces: most of a record may be ranges, small numbers each."""
    return json.dumps(value, separators=(",", ":"))
