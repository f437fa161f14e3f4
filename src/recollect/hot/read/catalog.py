"""`Catalog`: where an episode's rows and facts lie, so that nobody has to look through the logs for them.

An index in `<workspace>/catalog.sqlite`, made from the logs alone and brought up to date by whoever reads. It holds
places, never values: what a reader gets comes from the logs, and a place where something else lies throws the index
away. Rows and facts that are not in it yet are found by looking through the logs' ends (design/0009).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from recollect.hot.format.parse import parse
from recollect.hot.read.compare import Difference, compare
from recollect.hot.read.sidecar import Damaged, Sidecar
from recollect.records.block import Block
from recollect.records.layout import Layout
from recollect.view import Cut, EpisodeKey, Extent, Fact, FactIndex, hull

if TYPE_CHECKING:
    from recollect.hot.read.log import WriterLog
    from recollect.hot.read.store import HotStore

T = TypeVar("T")
Query: TypeAlias = Callable[[sqlite3.Connection], list[Any]]

FORMAT = 1
NAME = "catalog.sqlite"
CHUNK_ROWS = 4096
"""A span stays within one chunk of a log, so that an episode that pauses costs no look at all that lies between."""
TAIL_ROWS = 16_384
TAIL_FACTS = 256
"""Rows and facts that a reader rather looks through than brings the index up to date."""
BATCH_ROWS = 1 << 17
BATCH_FACTS = 1 << 16
"""What one transaction adds: so much is indexed again after a kill, so long others wait."""

TABLES = """
CREATE TABLE writers (
    writer INTEGER PRIMARY KEY, rows INTEGER NOT NULL, facts INTEGER NOT NULL, first INTEGER NOT NULL
);
CREATE TABLE spans (
    episode_writer INTEGER, episode INTEGER, writer INTEGER, chunk INTEGER,
    first INTEGER NOT NULL, stop INTEGER NOT NULL,
    PRIMARY KEY (episode_writer, episode, writer, chunk)
) WITHOUT ROWID;
CREATE TABLE facts (
    episode_writer INTEGER, episode INTEGER, writer INTEGER, seq INTEGER,
    PRIMARY KEY (episode_writer, episode, writer, seq)
) WITHOUT ROWID;
CREATE TABLE ids (
    id TEXT, attempt INTEGER, time INTEGER, writer INTEGER, seq INTEGER,
    episode_writer INTEGER NOT NULL, episode INTEGER NOT NULL,
    PRIMARY KEY (id, attempt, time, writer, seq)
) WITHOUT ROWID
"""
_ADD_SPAN = "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET stop = excluded.stop"


class Indexed(NamedTuple):
    """How much of a writer's log is in the index; `first` is the row from which on."""

    rows: int
    facts: int
    first: int


State: TypeAlias = dict[int, Indexed]
_NONE = Indexed(0, 0, 0)


class OwnRows(NamedTuple):
    """The rows of one episode.

    Attributes:
        pieces: blocks that hold them and no others, in the order of `extents`.
        extents: their ids, writers in order.
    """

    pieces: list[tuple[Block, int, int]]
    extents: tuple[Extent, ...]


class Catalog:
    """The index of one workspace's logs. Thread-safe."""

    def __init__(self, path: Path, store: HotStore) -> None:
        self.file = Sidecar(path, TABLES, FORMAT)
        self._store = store
        self._seen: tuple[sqlite3.Connection, int, State] | None = None

    # -- questions -----------------------------------------------------------------------------------------

    def rows_of(self, key: EpisodeKey, cut: Cut, layout: Layout | None = None) -> OwnRows:
        """The rows of an episode in `layout`, the newest when None, in whichever writers' logs they lie; none where
        the cut holds none."""
        layout = layout or self._store.layout

        def query(connection: sqlite3.Connection) -> list[Any]:
            ask = "SELECT writer, first, stop FROM spans WHERE episode_writer = ? AND episode = ?"
            return [tuple(map(int, row)) for row in connection.execute(ask, key)]

        def use(state: State, found: list[Any]) -> OwnRows:
            bounds = hull(cut.extents)
            places = []
            for writer, first, stop in found:
                if writer in bounds:
                    low, high = max(first, bounds[writer].start), min(stop, bounds[writer].stop)
                    if low < high:
                        places.append((writer, low, high, low == first, high == stop))
            places += [(*e, False, False) for e in _rows_behind(state, cut)]
            return self._collect(key, sorted(places), layout)

        return self._ask(cut, query, use)

    def newest(self, episode_id: str, cut: Cut) -> EpisodeKey | None:
        """The newest attempt at an id of the caller's: the highest attempt, the last opened among equals."""

        def query(connection: sqlite3.Connection) -> list[Any]:
            stops = dict(cut.facts)
            ask = (
                "SELECT attempt, time, writer, seq, episode_writer, episode FROM ids WHERE id = ?"
                " ORDER BY attempt DESC, time DESC, writer DESC, seq DESC"
            )
            rows = (tuple(map(int, row)) for row in connection.execute(ask, (episode_id,)))
            return [next((r for r in rows if r[3] < stops.get(r[2], 0) and self._holds_fact(r[2], r[3])), None)]

        def use(state: State, found: list[Any]) -> EpisodeKey | None:
            best = found[0] if found else None
            if best is not None:
                fact = self._store.log(best[2]).fact(best[3])
                if fact.values.get("id") != episode_id or fact.episode != (best[4], best[5]):
                    raise Damaged("an id names another episode")
            for log, start, stop in self._facts_behind(state, cut):
                for row in _ids(log, start, stop):
                    if row[0] == episode_id and (best is None or row[1:5] > best[:4]):
                        best = row[1:]
            return None if best is None else EpisodeKey(best[4], best[5])

        return self._ask(cut, query, use, rows=False)

    def facts_of(self, keys: Iterable[EpisodeKey], cut: Cut) -> FactIndex:
        """Every fact of the cut about some episodes and their steps, and no others."""
        wanted = set(keys)

        def query(connection: sqlite3.Connection) -> list[Any]:
            ask = "SELECT writer, seq FROM facts WHERE episode_writer = ? AND episode = ?"
            return [tuple(map(int, row)) for key in wanted for row in connection.execute(ask, key)]

        def use(state: State, found: list[Any]) -> FactIndex:
            stops = dict(cut.facts)
            places = {(w, s) for w, s in found if s < stops.get(w, 0) and self._holds_fact(w, s)}
            counters = np.array([key.counter for key in wanted], np.int64)
            for log, start, stop in self._facts_behind(state, cut):
                carried, pieces = log.fact_pieces(start, stop)
                places |= {(log.writer, fact.seq) for fact in carried if fact.episode in wanted}
                for segment, low, high in pieces:
                    segment.checked.require_facts(high)
                    records = segment.facts[low:high]
                    for at in np.flatnonzero(np.isin(records["episode"], counters)).tolist():
                        if (int(records["episode_writer"][at]), int(records["episode"][at])) in wanted:
                            places.add((log.writer, segment.header.first_fact + low + at))
            facts = [self._store.logs[writer].fact(seq) for writer, seq in sorted(places)]
            if any(fact.episode not in wanted for fact in facts):
                raise Damaged("a fact is about another episode")
            return FactIndex.of(facts)

        # Looking through facts by episode is fast: the first reader of a big workspace does not wait for all of it.
        return self._ask(cut, query, use, rows=False, batches=1)

    # -- bringing it up to date ----------------------------------------------------------------------------

    def catch_up(self, cut: Cut, *, rows: bool = True, batches: int | None = None) -> bool:
        """Adds what the cut holds and the index does not.

        Args:
            rows: False leaves rows for later, and adds facts only.
            batches: at most so many; None for all.

        Returns:
            Whether all is in it now. False where another process is at it, or the file cannot be written.
        """
        tries = 2
        while tries and batches != 0:
            batches = None if batches is None else batches - 1
            before = self.file.thrown_away
            added = self.file.write(lambda connection: self._add(connection, cut, rows))
            if added == 0:
                return True
            if added is None:
                tries -= 1 if self.file.thrown_away is not before else tries
        return False

    def _add(self, connection: sqlite3.Connection, cut: Cut, rows: bool) -> int:
        """One batch. Returns how many rows and facts it added."""
        self._seen = None  # while no other thread reads: this connection's own changes have no version
        state = _read_state(connection)
        self._check(state)
        if evicted(state.items(), cut) > max(BATCH_ROWS, cut.rows):
            raise Damaged("most of what the index holds was evicted")
        stops = dict(cut.facts)
        bounds = hull(cut.extents)
        left_rows, left_facts = BATCH_ROWS, BATCH_FACTS
        for writer in sorted(bounds.keys() | stops.keys()):
            had = state.get(writer, _NONE)
            if self._went(writer, bounds):
                continue
            log = self._store.log(writer)
            extent = bounds.get(writer, Extent(writer, 0, 0))
            start, fact = max(had.rows, extent.start), had.facts
            stop = min(extent.stop, start + left_rows) if rows else 0
            fact_stop = min(stops.get(writer, 0), fact + left_facts)
            if start >= stop and fact >= fact_stop:
                continue
            first = had.first if writer in state else extent.start
            if start < stop:
                connection.executemany(_ADD_SPAN, spans(log, start, stop))
                left_rows -= stop - start
            if fact < fact_stop:
                connection.executemany("INSERT INTO facts VALUES (?, ?, ?, ?)", fact_places(log, fact, fact_stop))
                connection.executemany("INSERT INTO ids VALUES (?, ?, ?, ?, ?, ?, ?)", _ids(log, fact, fact_stop))
                left_facts -= fact_stop - fact
            connection.execute(
                "INSERT OR REPLACE INTO writers VALUES (?, ?, ?, ?)",
                (writer, max(stop, had.rows), max(fact_stop, fact), first),
            )
            if not left_rows or not left_facts:
                break
        self._store.require_current()
        return BATCH_ROWS - left_rows + BATCH_FACTS - left_facts

    def _check(self, state: State) -> None:
        """Raises Damaged for an index of logs that were longer than these."""
        for writer, had in state.items():
            log = self._store.logs.get(writer)
            if log is not None and not log.gone and (had.rows > log.rows or had.facts > log.facts):
                log.refresh()
                if had.rows > log.rows or had.facts > log.facts:
                    raise Damaged("the index is of another log")

    def compare(self, cut: Cut) -> Difference | None:
        """How the index differs from the logs, None where it does not."""
        bounds = hull(cut.extents)

        def fill(connection: sqlite3.Connection) -> None:
            state = _read_state(connection, "held.")
            self._check(state)
            for writer, had in state.items():
                log = self._store.logs.get(writer)
                start = had.rows if log is None else bounds[writer].start if writer in bounds else log.first.row
                connection.execute("INSERT INTO writers VALUES (?, ?, ?, ?)", (writer, had.rows, had.facts, had.first))
                if log is not None:
                    connection.executemany(_ADD_SPAN, spans(log, start, had.rows))
                    connection.executemany("INSERT INTO facts VALUES (?, ?, ?, ?)", fact_places(log, 0, had.facts))
                    connection.executemany("INSERT INTO ids VALUES (?, ?, ?, ?, ?, ?, ?)", _ids(log, 0, had.facts))
                    for table in ("facts", "ids"):  # of facts that retention took, too
                        ask = f"SELECT seq FROM held.{table} WHERE writer = ? AND seq < ?"
                        early = connection.execute(ask, (writer, log.first.fact)).fetchall()
                        taken = [(writer, seq) for (seq,) in early if not log.holds_fact(seq)]
                        connection.executemany(f"DELETE FROM held.{table} WHERE writer = ? AND seq = ?", taken)
                else:
                    connection.execute("DELETE FROM held.facts WHERE writer = ?", (writer,))
                    connection.execute("DELETE FROM held.ids WHERE writer = ?", (writer,))
                # Rows that retention took may still have spans, which nobody looks at.
                for schema in ("main", "held") if start else ():
                    old = f"DELETE FROM {schema}.spans WHERE writer = ? AND chunk <= ?"
                    connection.execute(old, (writer, start // CHUNK_ROWS))

        tables = ("writers", "spans", "facts", "ids")
        return compare(self.file, TABLES, fill, dict.fromkeys(tables, "SELECT * FROM {schema}.{name}"))

    # -- inside --------------------------------------------------------------------------------------------

    def _holds_fact(self, writer: int, seq: int) -> bool:
        log = self._store.logs.get(writer)
        return log is not None and log.holds_fact(seq)

    def _ask(
        self,
        cut: Cut,
        query: Query,
        use: Callable[[State, list[Any]], T],
        *,
        rows: bool = True,
        batches: int | None = None,
    ) -> T:
        """`use` of what the index knows and of how far it goes; of nothing where it cannot be asked."""
        state, found = self._look(query)
        if self._is_behind(state, cut, rows):
            self.catch_up(cut, rows=rows, batches=batches)
            state, found = self._look(query)
        try:
            return use(state, found)
        except Damaged:
            self.file.discard()
            return use({}, [])

    def _look(self, query: Query) -> tuple[State, list[Any]]:
        answer = self.file.read(lambda connection: (self._state(connection), query(connection)))
        return ({}, []) if answer is None else answer

    def _state(self, connection: sqlite3.Connection) -> State:
        """How far the index goes, read again only when another connection has changed it."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        seen = self._seen
        if seen is None or seen[0] is not connection or seen[1] != version:
            state = _read_state(connection)
            self._check(state)
            seen = self._seen = (connection, version, state)
        return seen[2]

    @staticmethod
    def _is_behind(state: State, cut: Cut, rows: bool) -> bool:
        behind = sum(e.stop - e.start for e in _rows_behind(state, cut)) if rows else 0
        facts = sum(max(0, stop - state.get(writer, _NONE).facts) for writer, stop in cut.facts)
        return behind > TAIL_ROWS or facts > TAIL_FACTS

    def _facts_behind(self, state: State, cut: Cut) -> list[tuple[WriterLog, int, int]]:
        out = []
        with_rows = {e.writer for e in cut.extents}
        for writer, stop in cut.facts:
            start = state.get(writer, _NONE).facts
            if start < stop and not self._went(writer, with_rows):
                out.append((self._store.log(writer), start, stop))
        return out

    def _went(self, writer: int, with_rows: Container[int]) -> bool:
        """Whether a log of a cut went since, which had no rows in it. Nobody keeps it: it held none but facts about
        rows that are gone, or was found amid its own eviction."""
        return writer not in with_rows and writer not in self._store.logs

    def _collect(self, key: EpisodeKey, places: Sequence[tuple[int, int, int, bool, bool]], layout: Layout) -> OwnRows:
        """The episode's rows among places (writer, start, stop, is it the episode's row there at the start, the end).

        Raises:
            Damaged: it is not, or places overlap.
        """
        pieces: list[tuple[Block, int, int]] = []
        extents: list[Extent] = []
        for writer, start, stop, starts, ends in places:
            if extents and extents[-1].writer == writer and start < extents[-1].stop:
                raise Damaged("spans overlap")
            at = start
            for block, low, high in self._store.pieces((Extent(writer, start, stop),), layout):
                records = block.records[low:high]
                mine = (records["episode"] == key.counter) & (records["episode_writer"] == key.writer)
                if (starts and at == start and not mine[0]) or (ends and at + high - low == stop and not mine[-1]):
                    raise Damaged("a span holds another episode")
                rows = np.flatnonzero(mine)
                if len(rows):
                    _append_rows(pieces, block, low, rows)
                    extents += _runs(writer, rows + at)
                at += high - low
        return OwnRows(pieces, tuple(extents))


def evicted(indexed: Iterable[tuple[int, tuple[int, int, int]]], cut: Cut) -> int:
    """How many of the rows that an index knows, by writer (rows, facts, first), retention has taken since."""
    bounds = hull(cut.extents)
    starts = ((bounds[writer].start if writer in bounds else rows, first) for writer, (rows, _, first) in indexed)
    return sum(max(0, start - first) for start, first in starts)


def _append_rows(pieces: list[tuple[Block, int, int]], block: Block, low: int, rows: NDArray[np.int64]) -> None:
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        pieces.append((block, low + first, low + last + 1))
    else:
        # Copied records still say where their planes and heap bytes lie.
        pieces.append((Block(block.records[low + rows], block.planes, block.heap, block.owner), 0, len(rows)))


def _runs(writer: int, seqs: NDArray[np.int64]) -> list[Extent]:
    breaks = np.flatnonzero(np.diff(seqs) != 1)
    firsts = seqs[np.concatenate([[0], breaks + 1])]
    lasts = seqs[np.concatenate([breaks, [len(seqs) - 1]])]
    return [Extent(writer, a, b + 1) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]


def _rows_behind(state: State, cut: Cut) -> list[Extent]:
    """The rows of a cut that are not in the index."""
    out = []
    for writer, start, stop in cut.extents:
        begin = max(start, state.get(writer, _NONE).rows)
        if begin < stop:
            out.append(Extent(writer, begin, stop))
    return out


def _read_state(connection: sqlite3.Connection, schema: str = "") -> State:
    rows = connection.execute(f"SELECT writer, rows, facts, first FROM {schema}writers")
    return {writer: Indexed(*map(int, rest)) for writer, *rest in rows}


def spans(log: WriterLog, start: int, stop: int) -> Iterable[tuple[int, int, int, int, int, int]]:
    """Rows for the table of spans: for each episode, the first and the last of its rows in each chunk of the log."""
    at = start
    for block, low, high in log.pieces(start, stop):
        while low < high:
            chunk = at // CHUNK_ROWS
            count = min(high - low, (chunk + 1) * CHUNK_ROWS - at)
            records = block.records[low : low + count]
            writers, counters = records["episode_writer"], records["episode"]
            changes = np.flatnonzero((counters[1:] != counters[:-1]) | (writers[1:] != writers[:-1])) + 1
            firsts = np.concatenate([[0], changes])
            stops = np.concatenate([changes, [count]])
            writers, counters = writers[firsts], counters[firsts]
            order = np.lexsort((firsts, counters, writers))
            writers, counters, firsts, stops = writers[order], counters[order], firsts[order], stops[order]
            new = (counters[1:] != counters[:-1]) | (writers[1:] != writers[:-1])
            begins = np.concatenate([[0], np.flatnonzero(new) + 1])
            ends = np.concatenate([begins[1:], [len(order)]]) - 1
            columns = (writers[begins], counters[begins], firsts[begins] + at, stops[ends] + at)
            for episode_writer, episode, first, end in zip(*(c.tolist() for c in columns), strict=True):
                if episode_writer >= 0:  # otherwise rows that are gone
                    yield episode_writer, episode, log.writer, chunk, first, end
            at += count
            low += count


def fact_places(log: WriterLog, start: int, stop: int) -> Iterable[tuple[int, int, int, int]]:
    """Rows for the table of facts."""
    carried, pieces = log.fact_pieces(start, stop)
    for fact in carried:
        yield *fact.episode, log.writer, fact.seq
    for segment, low, high in pieces:
        segment.checked.require_facts(high)
        records = segment.facts[low:high]
        first = segment.header.first_fact + low
        keys = zip(records["episode_writer"].tolist(), records["episode"].tolist(), strict=True)
        for seq, key in enumerate(keys, first):
            yield *key, log.writer, seq


def _ids(log: WriterLog, start: int, stop: int) -> Iterable[tuple[str, int, int, int, int, int, int]]:
    """Rows for the table of ids."""
    carried, pieces = log.fact_pieces(start, stop)
    for fact in carried:
        if fact.step is None and "id" in fact.values:
            yield _id(fact)
    for segment, low, high in pieces:
        segment.checked.require_facts(high)
        records = segment.facts[low:high]
        columns = (records[name].tolist() for name in ("step_seq", "heap_at", "heap_bytes"))
        for row, (step, at, count) in enumerate(zip(*columns, strict=True), low):
            # Most facts bear no id; looking for its name is much cheaper than parsing.
            if step < 0 and b'"id"' in segment.heap[at : at + count].tobytes():
                fact = parse(segment, row)
                if "id" in fact.values:
                    yield _id(fact)


def _id(fact: Fact) -> tuple[str, int, int, int, int, int, int]:
    attempt = fact.values.get("attempt")
    order = (0 if attempt is None else attempt, fact.time_ns, fact.writer, fact.seq)
    return str(fact.values["id"]), *order, *fact.episode
