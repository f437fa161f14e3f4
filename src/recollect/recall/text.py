"""Finding steps by text: an FTS5 index of what a workspace holds in words, behind an absolute floor.

Documents are the steps' `Text` fields and the strings in their `Json` fields, and the strings among facts. The index
holds no text, only which document has which terms; it lies in `<workspace>/text.sqlite`, is brought up to date by
whoever searches, and can be made from the logs again (design/0009).
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from recollect.errors import ArgumentError
from recollect.hot.read.catalog import evicted
from recollect.hot.read.compare import Difference, compare
from recollect.hot.read.log import WriterLog
from recollect.hot.read.sidecar import Damaged, Sidecar
from recollect.hot.read.store import HotStore
from recollect.recall.recent import steps_of
from recollect.recall.results import Hits, Step
from recollect.recall.terms import STOP, Word, words
from recollect.recall.window import with_predecessors
from recollect.records.block import Block
from recollect.records.layout import FINAL
from recollect.schema import Json, Leaf, Text
from recollect.view import Cut, Extent, StepId, hull

FORMAT = 1
NAME = "text.sqlite"
KEPT_ROWS = 100_000
"""So many evicted rows an index may always hold; beyond, as many as there are others."""
BATCH = 4096
"""Rows and facts of one transaction."""
COMMON = (0.05, 1000)
"""A term in more than this share of the documents, and in more than so many, finds nothing."""
FLOOR = 0.35
"""Share of a query's weight that a document must hold."""
CANDIDATES = 64
"""Best documents by BM25 that are held against the floor, for each hit asked for at least four."""
ROW, FACT = 0, 1
PATIENCE_S = 2.0
"""How long a search waits for an index that another process should be filling, and is not."""

TABLES = """
CREATE TABLE writers (
    writer INTEGER PRIMARY KEY, rows INTEGER NOT NULL, facts INTEGER NOT NULL, first INTEGER NOT NULL
);
CREATE TABLE documents (
    document INTEGER PRIMARY KEY, kind INTEGER NOT NULL, writer INTEGER NOT NULL, seq INTEGER NOT NULL
);
CREATE VIRTUAL TABLE terms USING fts5(text, content = '', tokenize = "ascii tokenchars '_-./:'");
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(terms, row)
"""

State: TypeAlias = dict[int, tuple[int, int, int]]
"""By writer: its rows and facts that are in an index, and the row from which on."""
_NONE = (0, 0, 0)


class Found(NamedTuple):
    """A document that passed the floor: a step's row or a fact, by its id, and its BM25 score, higher is better."""

    score: float
    kind: int
    writer: int
    seq: int


class TextIndex:
    """The text of one workspace. Thread-safe."""

    def __init__(self, store: HotStore) -> None:
        self.file = Sidecar(store.folder.parent / NAME, TABLES, FORMAT)
        self._store = store

    def similar(self, query: object, k: int) -> Hits:
        """The steps that a text is most about, best first; none where nothing is relevant.

        Raises:
            ArgumentError: a query that is no text, or `k` below 1.
        """
        if not isinstance(query, str):
            raise ArgumentError(
                "similar() takes text; searching by an observation or an embedding is not supported yet",
                value=type(query).__name__,
                remedy='Pass what to look for in words: ws.similar("connection refused")',
            )
        if not isinstance(k, int) or k < 1:
            raise ArgumentError("similar() takes a whole number of at least 1", value=k)
        asked = [w for w in dict.fromkeys(words(query)) if w.whole not in STOP]
        with self._store.pinned():
            return self._similar(asked, k)

    def _similar(self, asked: Sequence[Word], k: int) -> Hits:
        cut = self._store.cut()
        if not asked or not (cut.extents or cut.facts):
            return Hits(())
        found = self._search(cut, asked, max(CANDIDATES, 4 * k))
        steps: dict[StepId, float] = {}
        for hit in sorted(found, key=lambda f: -f.score):
            target = self._step(hit, cut)
            if target is not None:
                steps.setdefault(target, hit.score)
            if len(steps) == k:
                break
        return Hits(tuple(self._read(step, cut) for step in steps), tuple(steps.values()))

    def catch_up(self, cut: Cut) -> bool:
        """Adds what the cut holds and the index does not. Returns whether all is in it now.

        While another process adds to it this one waits, but not for one that stands still.
        """
        before, deadline = None, time.monotonic() + PATIENCE_S
        while True:
            state = self.file.read(self._state)
            if state is not None and _covers(state, cut):
                return True
            if state != before:
                before, deadline = state, time.monotonic() + PATIENCE_S
            if self.file.write(lambda connection: self._add(connection, cut)) is None:
                if self.file.is_paused or time.monotonic() > deadline:
                    return False
                time.sleep(0.005)

    def add(self, connection: sqlite3.Connection, cut: Cut) -> int:
        """Adds one batch of a cut to an index. Returns how many rows and facts that were."""
        state = self._state(connection)
        if evicted(state.items(), cut) > max(KEPT_ROWS, cut.rows):
            raise Damaged("most of what the index holds was evicted")
        bounds, stops = hull(cut.extents), dict(cut.facts)
        for writer in sorted(bounds.keys() | stops.keys()):
            extent = bounds.get(writer, Extent(writer, 0, 0))
            had_rows, had_facts, first = state.get(writer, (0, 0, extent.start))
            log = self._store.log(writer)
            start, stop = max(had_rows, extent.start), min(extent.stop, max(had_rows, extent.start) + BATCH)
            fact_stop = min(stops.get(writer, 0), had_facts + BATCH)
            if start >= stop and had_facts >= fact_stop:
                continue
            for kind, seq, text in [*self.rows(log, start, stop), *facts(log, had_facts, fact_stop)]:
                body = " ".join(term for word in words(text) for term in word.terms)
                place = connection.execute("INSERT INTO documents VALUES (NULL, ?, ?, ?)", (kind, writer, seq))
                connection.execute("INSERT INTO terms(rowid, text) VALUES (?, ?)", (place.lastrowid, body))
            connection.execute(
                "INSERT OR REPLACE INTO writers VALUES (?, ?, ?, ?)",
                (writer, max(had_rows, stop), max(had_facts, fact_stop), first),
            )
            return max(0, stop - start) + max(0, fact_stop - had_facts)
        return 0

    def _add(self, connection: sqlite3.Connection, cut: Cut) -> int:
        """Likewise, to the file."""
        added = self.add(connection, cut)
        self._store.require_current()
        return added

    def compare(self, cut: Cut) -> Difference | None:
        """How the index differs from the logs, None where it does not."""
        starts = {w: e.start for w, e in hull(cut.extents).items()}

        def fill(connection: sqlite3.Connection) -> None:
            held = read_state(connection, "held.")
            here = {w: n for w, n in held.items() if w in self._store.logs}
            first = {w: starts.get(w, self._store.logs[w].first.row) for w in here}
            extents = tuple(Extent(w, first[w], n[0]) for w, n in here.items() if n[0] > first[w])
            as_far = Cut(extents, tuple((w, n[1]) for w, n in here.items() if n[1]))
            while self.add(connection, as_far):
                pass
            connection.executemany("INSERT OR REPLACE INTO writers VALUES (?, ?, ?, ?)", ((w, *held[w]) for w in held))
            for schema in ("main", "held"):
                connection.execute(f"CREATE VIRTUAL TABLE temp.{schema} USING fts5vocab({schema}, terms, instance)")
                # What retention took may still have documents, which lead nowhere.
                old = f"DELETE FROM {schema}.documents WHERE writer = ? AND (kind = ? AND seq < ? OR ?)"
                for writer in held:
                    connection.execute(old, (writer, ROW, first.get(writer, 0), writer not in here))
                    log = self._store.logs.get(writer)
                    ask = f"SELECT seq FROM {schema}.documents WHERE writer = ? AND kind = ? AND seq < ?"
                    early = () if log is None else connection.execute(ask, (writer, FACT, log.first.fact)).fetchall()
                    connection.executemany(
                        f"DELETE FROM {schema}.documents WHERE writer = ? AND kind = ? AND seq = ?",
                        [(writer, FACT, seq) for (seq,) in early if log is not None and not log.holds_fact(seq)],
                    )

        documents = "{schema}.documents"
        return compare(
            self.file,
            TABLES,
            fill,
            {
                "writers": "SELECT * FROM {schema}.writers",
                "documents": f"SELECT kind, writer, seq FROM {documents}",
                "terms": f"SELECT d.kind, d.writer, d.seq, t.term, t.offset FROM temp.{{schema}} t"
                f" JOIN {documents} d ON d.document = t.doc",
            },
        )

    # -- inside --------------------------------------------------------------------------------------------

    def _search(self, cut: Cut, asked: Sequence[Word], count: int) -> list[Found]:
        if self.catch_up(cut):
            answer = self.file.read(lambda connection: search([connection], asked, count))
            if answer is not None:
                return answer
        # Nobody can bring the index up to date now: what it lacks is indexed in memory, in the end all of it.
        for state in (self.file.read(self._state), None):
            with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as own:
                answer = self._search_beside(own, state or {}, cut, asked, count)
            if answer is not None:
                return answer
        raise AssertionError("an index in memory answers")

    def _search_beside(
        self, own: sqlite3.Connection, state: State, cut: Cut, asked: Sequence[Word], count: int
    ) -> list[Found] | None:
        """Searches what the index holds, as far as `state` says, and the rest in memory; None where it changed."""
        own.execute("BEGIN")
        for statement in TABLES.split(";"):
            own.execute(statement)
        own.executemany("INSERT INTO writers VALUES (?, ?, ?, ?)", ((w, *n) for w, n in state.items()))
        try:
            while self.add(own, cut):
                pass
        except Damaged:
            return None
        if not state:
            return search([own], asked, count)

        def both(connection: sqlite3.Connection) -> list[Found] | None:
            now = read_state(connection)
            whole = all(w in now and now[w] >= have for w, have in state.items())
            return search([connection, own], asked, count) if whole else None

        return self.file.read(both)

    def _state(self, connection: sqlite3.Connection) -> State:
        """Raises Damaged for an index of logs that were longer than these."""
        state = read_state(connection)
        for writer, (rows, count, _) in state.items():
            log = self._store.logs.get(writer)
            if log is not None and not log.gone and (rows > log.rows or count > log.facts):
                log.refresh()
                if rows > log.rows or count > log.facts:
                    raise Damaged("the index is of another log")
        return state

    def rows(self, log: WriterLog, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
        """The documents of a log's rows, as they were written; a row without text is none."""
        leaves = [leaf for leaf in log.layout.heap if isinstance(leaf.field, Text | Json)]
        if not leaves:
            return
        at = start
        for block, low, high in log.pieces(start, stop):
            steps = (block.records["flags"][low:high] & FINAL) == 0
            for row in np.flatnonzero(steps).tolist():
                text = _text(block, low + row, leaves)
                if text:
                    yield ROW, at + row, text
            at += high - low

    def _step(self, hit: Found, cut: Cut) -> StepId | None:
        """The step that a document is about: a fact about an episode speaks of its last step."""
        if hit.kind == ROW:
            inside = any(e.writer == hit.writer and e.start <= hit.seq < e.stop for e in cut.extents)
            return StepId(hit.writer, hit.seq) if inside else None
        if hit.seq >= dict(cut.facts).get(hit.writer, 0):
            return None
        log = self._store.logs.get(hit.writer)
        if log is None or not log.holds_fact(hit.seq):
            return None
        fact = log.fact(hit.seq)
        if fact.step is not None:
            return self._step(Found(hit.score, ROW, *fact.step), cut)
        last: tuple[int, StepId] | None = None
        own = self._store.catalog.rows_of(fact.episode, cut)
        ids = (StepId(e.writer, seq) for e in own.extents for seq in range(e.start, e.stop))
        for block, low, high in own.pieces:
            records = block.records[low:high]
            for step, flags in zip(records["step"].tolist(), records["flags"].tolist(), strict=True):
                place = next(ids)
                if not flags & FINAL and (last is None or step >= last[0]):
                    last = (step, place)
        return None if last is None else last[1]

    def _read(self, step: StepId, cut: Cut) -> Step:
        own = Cut((Extent(step.writer, step.seq, step.seq + 1),), cut.facts)
        return steps_of(self._store, with_predecessors(self._store, own), [step])[0]


def _text(block: Block, row: int, leaves: list[Leaf]) -> str:
    """The text of a row's leaves."""
    raw = ((leaf, block.heap_value(row, leaf.path)) for leaf in leaves)
    return "\n".join(_readable(leaf, value) for leaf, value in raw if value)


def _covers(state: State, cut: Cut) -> bool:
    rows = all(state.get(e.writer, _NONE)[0] >= e.stop for e in cut.extents)
    return rows and all(state.get(writer, _NONE)[1] >= stop for writer, stop in cut.facts)


def read_state(connection: sqlite3.Connection, schema: str = "") -> State:
    """How far an index goes."""
    rows = connection.execute(f"SELECT writer, rows, facts, first FROM {schema}writers")
    return {writer: (int(count), int(facts), int(first)) for writer, count, facts, first in rows}


def facts(log: WriterLog, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
    """The documents of a log's facts; a fact without text is none. Names of episodes are no text."""
    for fact in log.fact_pieces(start, stop).parsed():
        text = "\n".join(s for name, value in fact.values.items() if name != "id" for s in _strings(value))
        if text:
            yield FACT, fact.seq, text


def _readable(leaf: Leaf, raw: bytes) -> str:
    text = raw.decode("utf-8")
    return text if isinstance(leaf.field, Text) else "\n".join(_strings(json.loads(text)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


@dataclass(frozen=True)
class _Weighed:
    """A word of the query with its weight, and the weight of each of its terms (0 where it is too common)."""

    word: Word
    weight: float
    terms: dict[str, float]

    def held(self, terms: set[str]) -> float:
        """The weight that a document with these terms holds: all of it with the whole word, else its parts' share.

        One part alone is no sign of the word: `E1234` is not in a text that speaks of 1234 rows.
        """
        if self.word.whole in terms:
            return self.weight
        found = [self.terms[p] for p in self.word.parts if p in terms]
        return self.weight * sum(found) / sum(self.terms[p] for p in self.word.parts) if len(found) > 1 else 0.0


def search(indexes: Sequence[sqlite3.Connection], asked: Sequence[Word], count: int) -> list[Found]:
    """Documents that pass the floor, among the best `count` of each index by BM25.

    A document passes when it holds at least `FLOOR` of the query's weight, by at least two of its words (one, where the
    query has one) or a whole identifier. Words that no document has count; those that too many have do not.
    """
    total = sum(c.execute("SELECT count(*) FROM documents").fetchone()[0] for c in indexes)
    most = max(COMMON[0] * total, COMMON[1])
    seen = {t: _documents_with(indexes, t) for w in asked for t in w.terms}
    weights = {t: 0.0 if n > most else math.log(1 + (total + 1000 - n + 0.5) / (n + 0.5)) for t, n in seen.items()}
    query = []
    for word in asked:
        terms = {t: weights[t] for t in word.terms}
        weight = weights[word.whole]
        if weight:
            query.append(_Weighed(word, weight, terms))
    useful = [t for w in query for t, weight in w.terms.items() if weight and seen[t]]
    if not useful:
        return []
    whole = sum(w.weight for w in query)
    needed = min(2, len(query))
    out = []
    for connection in indexes:
        best = connection.execute(
            "SELECT rowid, bm25(terms) FROM terms WHERE terms MATCH ? ORDER BY rank LIMIT ?",
            (" OR ".join(f'"{t}"' for t in dict.fromkeys(useful)), count),
        ).fetchall()
        held: dict[int, set[str]] = {rowid: set() for rowid, _ in best}
        for term in dict.fromkeys(useful):
            for rowid in held:
                one = "SELECT 1 FROM terms WHERE terms MATCH ? AND rowid = ?"
                if connection.execute(one, (f'"{term}"', rowid)).fetchone():
                    held[rowid].add(term)
        for rowid, score in best:
            shares = [(w, w.held(held[rowid])) for w in query]
            matched = sum(share > 0 for _, share in shares)
            named = any(w.word.is_identifier and w.word.whole in held[rowid] for w, _ in shares)
            if (matched >= needed or named) and sum(share for _, share in shares) >= FLOOR * whole:
                place = connection.execute(
                    "SELECT kind, writer, seq FROM documents WHERE document = ?", (rowid,)
                ).fetchone()
                if place is None or not all(isinstance(part, int) for part in place):
                    raise Damaged("a document has no place")
                out.append(Found(-score, *place))
    return out


def _documents_with(indexes: Sequence[sqlite3.Connection], term: str) -> int:
    rows = (c.execute("SELECT doc FROM vocabulary WHERE term = ?", (term,)).fetchone() for c in indexes)
    return sum(row[0] for row in rows if row)
