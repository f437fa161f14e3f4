"""A workspace under random writing, and everything that can be read of a view, in a form that compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import recollect as rc
from recollect.hot.write.writer import Episode
from recollect.records.layout import FINAL
from recollect.records.rows import PackedRows
from recollect.schema.fields import is_heap
from recollect.view import StepId
from tests.support import batch_bits, bits, nest, next_of, random_value


@dataclass
class _Open:
    """An episode that goes on, and the next observation that was given with its newest step."""

    writer: int
    episode: Episode
    promised: dict[str, Any] | None = None


@dataclass
class World:
    """Writers that come, go, and append what `rng` says, each under the schema that was the newest when it came. Every
    kind of row and of fact is written.

    Attributes:
        noted: fields that facts about steps are written about.
    """

    ws: rc.Workspace
    schema: rc.Schema
    rng: np.random.Generator
    writers: dict[int, rc.Writer] = field(default_factory=dict)
    open: list[_Open] = field(default_factory=list)
    given_up: list[_Open] = field(default_factory=list)
    steps: list[StepId] = field(default_factory=list)
    uid: int = 0
    blocks: int = 0
    noted: tuple[str, ...] = ("reward",)

    def act(self) -> None:
        rng = self.rng
        choice = rng.random()
        if not self.writers or (choice < 0.03 and len(self.writers) < 5):
            writer = self.ws.writer(durability="process")
            self.writers[writer.id] = writer
        elif choice < 0.05:
            self._close(int(rng.choice(list(self.writers))))
        elif choice < 0.12 or not self.open:
            writer = self.writers[int(rng.choice(list(self.writers)))]
            self.open.append(_Open(writer.id, writer.episode(status="begun" if rng.random() < 0.3 else None)))
        elif choice < 0.16:
            self._extend()
        elif choice < 0.24 and self.steps:
            self._annotate()
        elif choice < 0.28:
            self._hand_over()
        else:
            self._append(self.open[int(rng.integers(len(self.open)))])

    def _schema_of(self, writer: int) -> rc.Schema:
        return self.writers[writer].layout.schema

    def _moment(self, schema: rc.Schema) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for leaf in schema.leaves:
            if not (leaf.field.optional and self.rng.random() < 0.3):
                values[leaf.path] = random_value(self.rng, leaf)
        values["uid"] = np.int64(self.uid)
        values["reward"] = np.asarray(self.rng.standard_normal(), _reward(schema))  # sums of infinities warn
        self.uid += 1
        return values

    def _append(self, at: _Open) -> None:
        rng = self.rng
        schema = self._schema_of(at.writer)
        values = self._moment(schema)
        if at.promised is not None and rng.random() < 0.8:  # otherwise the step contradicts its tail
            for leaf in schema.observations:
                values.pop(leaf.path, None)
            values.update(at.promised)
        following = None
        if schema.observations and rng.random() < 0.6:
            following = self._observation(schema)
        end = str(rng.choice(["", "terminated", "truncated"], p=[0.84, 0.08, 0.08]))
        ends = {end: True} if end else {}
        self.steps.append(at.episode.append(**nest(values), next_observation=next_of(following), **ends))
        at.promised = following
        if end:
            self.open.remove(at)
        elif rng.random() < 0.03:
            at.episode.close()
            self.open.remove(at)
            self.given_up.append(at)

    def _observation(self, schema: rc.Schema) -> dict[str, Any]:
        return {
            leaf.path: random_value(self.rng, leaf)
            for leaf in schema.observations
            if not (leaf.field.optional and self.rng.random() < 0.3)
        }

    def _extend(self) -> None:
        """A block of two interleaved episodes."""
        writer = self.writers[int(self.rng.choice(list(self.writers)))]
        schema = self._schema_of(writer.id)
        plain = [leaf for leaf in schema.leaves if not is_heap(leaf.field) or not leaf.field.optional]
        n = int(self.rng.integers(2, 8))
        episode = self.blocks + np.arange(n) % 2
        self.blocks += 2
        columns: dict[str, Any] = {}
        for leaf in plain:
            values = [random_value(self.rng, leaf) for _ in range(n)]
            columns[leaf.path] = values if is_heap(leaf.field) else np.stack([np.asarray(v) for v in values])
        columns["reward"] = self.rng.standard_normal(n).astype(_reward(schema))
        columns["uid"] = self.uid + np.arange(n)
        self.uid += n
        terminated = np.zeros(n, np.bool_)
        terminated[-1] = self.rng.random() < 0.5
        block = {"episode": episode, "step": np.arange(n) // 2, "terminated": terminated, **nest(columns)}
        if schema.observations and self.rng.random() < 0.5:
            following = {}
            for leaf in schema.observations:
                values = [random_value(self.rng, leaf) for _ in range(n)]
                following[leaf.path] = values if is_heap(leaf.field) else np.stack([np.asarray(v) for v in values])
            block["next_observation"] = next_of(following)
        writer.extend(block)

    def _annotate(self) -> None:
        step = self.steps[int(self.rng.integers(len(self.steps)))]
        field = self.noted[int(self.rng.integers(len(self.noted)))]
        self.ws.annotate(step, **{field: round(float(self.rng.standard_normal()), 3)})

    def _close(self, writer: int) -> None:
        self.writers.pop(writer).close()
        self.given_up += [e for e in self.open if e.writer == writer]
        self.open = [e for e in self.open if e.writer != writer]

    def _hand_over(self) -> None:
        """An episode that was given up goes on in the log of another writer, which knows the newest schema."""
        able = [w for w in self.writers if self._schema_of(w) == self.ws.schema]
        if not self.given_up or not able:
            return
        old = self.given_up.pop(int(self.rng.integers(len(self.given_up))))
        open_still = old.episode._state.judged and old.writer in self.writers  # judged, so not marked interrupted
        if old.episode._state.step and not open_still:
            writer = self.writers[int(self.rng.choice(able))]
            self.open.append(_Open(writer.id, writer.resume_episode(old.episode.key)))


def _reward(schema: rc.Schema) -> Any:
    return schema.by_path["reward"].field.dtype  # type: ignore[union-attr]


def everything(view: rc.View, *, first: int = 0, batches: bool = True) -> dict[str, Any]:
    """All that a view says, with slots counted from its first row; `batches` that a loader makes of it too."""
    rows, episodes, anchors = view.rows, view.episodes, view.anchors
    assert isinstance(rows, PackedRows)
    n = len(rows)
    slots = np.arange(first, first + n)
    schema, stop = view.schema, first + n
    plain = [leaf.path for leaf in schema.leaves if not is_heap(leaf.field)]
    out: dict[str, Any] = {"cut": view.cut, "rows": n}
    out["values"] = bits(rows.gather(slots, [*plain, "terminated", "truncated", "step", "time", "flags"]))
    out["heap"] = {p: rows.heap_values(slots, p) for p in (x.path for x in schema.leaves) if p not in plain}
    out["raw"] = [bits(b.records[r : r + 1]) for b, r in (rows.locate(int(s), raw=True) for s in slots)]
    ids = rows.ids(slots)
    out["ids"] = bits(ids)
    out["found"] = bits(rows.find(ids) - first)
    out["drawable"] = bits(anchors.select(np.arange(len(view))) - first)
    out["mask"] = bits(anchors.mask(np.arange(first - 3, stop + 3)))
    out["counts"] = (len(view), anchors.undrawable_open, anchors.undrawable_truncated, anchors.undrawable_beheaded)
    # Nobody asks what follows a final row; which one does depends on which log was read first.
    is_final = (rows.gather(slots, ["flags"])["flags"] & FINAL) != 0
    after = np.where(is_final, -1, episodes.next_observation(slots))
    out["after"] = bits(np.where(after >= stop, n, np.where(after < 0, -1, after - first)))
    observed = [leaf.path for leaf in schema.observations if not is_heap(leaf.field)]
    out["observed"] = bits(rows.gather(after, observed))
    for k in range(-3, 4):
        there = episodes.offset(slots, k)
        out[f"offset {k}"] = bits(np.where(there < 0, -1, there - first))
    out["group"] = [tuple(episodes.keys[g].tolist()) if g >= 0 else None for g in episodes.group[first:].tolist()]
    out["final"] = bits(episodes.is_final[first:])
    keys = {k for k in out["group"] if k is not None}
    out["episodes"] = {k: bits(episodes.rows_of(rc.EpisodeKey(*k)) - first) for k in keys}
    out["facts"] = (view.facts.episodes, view.facts.steps)
    if batches and len(view):
        options: dict[str, Any] = {"fields": list(schema.by_path), "output": "numpy", "batch_size": 64, "seed": 1}
        out["batches"] = [batch_bits(b) for b in rc.Loader(view, epochs=1, **options)]
        out["sums"] = [batch_bits(b) for b in rc.Loader(view, epochs=1, transforms=[rc.NStep(3, gamma=0.5)], **options)]
    return out


def assert_same(have: dict[str, Any], want: dict[str, Any]) -> None:
    assert have.keys() == want.keys()
    for name in want:
        assert have[name] == want[name], name


def deepest(schema: rc.Schema) -> int:
    return max((leaf.field.stack for leaf in schema.leaves if isinstance(leaf.field, rc.Frames)), default=1)


def leave_out_cut_stacks(view: rc.View, stack: int, want: dict[str, Any]) -> None:
    """Takes away the steps whose frame stacks reach back to rows that are not there."""
    slots = view.anchors.select(np.arange(len(view)))
    step = view.rows.gather(slots, ("step",))["step"]
    whole = np.ones(len(slots), np.bool_)
    for k in range(1, stack):
        whole &= (view.episodes.offset(slots, -k) >= 0) | (step < k)
    mask = np.zeros(len(view.rows) + 6, np.bool_)
    mask[slots[whole] + 3] = True
    want["drawable"], want["mask"] = bits(slots[whole]), bits(mask)
    want["counts"] = (int(whole.sum()), *want["counts"][1:])
