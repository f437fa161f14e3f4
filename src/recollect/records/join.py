"""`join`: several views and sources as one, in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from datetime import timedelta
from typing import Any, overload

import numpy as np

from recollect.errors import ArgumentError, NotFound
from recollect.records.grown import GrownRows
from recollect.records.layout import Layout
from recollect.records.part import part_of
from recollect.records.parted import (
    PartedAnchors,
    PartedEpisodes,
    PartedRows,
    PartReading,
    own_slots,
    part_of_slots,
)
from recollect.records.rows import PackedRows
from recollect.schema.project import Projection, projected
from recollect.view import Bool, Cut, FactIndex, Narrowing, Slots, Source, View
from recollect.view.changes import LeftOut, among, change, listed, merged_sorted
from recollect.view.matching import matching
from recollect.view.narrow import Narrows, chosen
from recollect.where import Filter

MAX_PARTS = 127
"""`batch.part` is an int8."""


@overload
def join(*views: View, **named: View) -> JoinedView: ...
@overload
def join(*views: View | Source, **named: View | Source) -> JoinedView | JoinedSource: ...
def join(*views: View | Source, **named: View | Source) -> JoinedView | JoinedSource:
    """Several views, or sources of growing ones, as one: buffers of several places, versions, workspaces.

        rc.join(offline=buffer.at("round-12"), online=ws.live(last=1_000_000))

    Its rows are those of its parts, part after part; a loader draws from it as from any other, and `batch.part` `[B]`
    int8 says which part a row is of, in the order of the arguments. No window crosses from part to part: an episode
    that is in two of them is one in each. `rc.Mixture` gives parts their exact shares; other samplers see one list of
    rows.

    - *Rows that several parts hold* are drawn once, from the first of these parts that may draw them; the later ones
      still read them. Where a row leaves the first part, because its window moved, the next one draws it. Shares
      and counts of rows are of what is left.
    - *Schemas that differ* are read as what all parts have, under the names of the first: fields of the same name, or
      alone of the same role, dtypes widened, null where a part may have null. Fields that some part lacks are left
      out, and `view.left_out` names them; an observation, action or reward that some part lacks is refused.
    - *An empty part* is no error, as long as another has rows: its share goes to the others until it has some.

    Args:
        views: parts without names are called `0`, `1` ...
        named: parts by the names that `rc.Mixture` calls them by. Sources belong to the join from now on.

    Returns:
        A view, where all parts are views; else a source, for one loader.

    Raises:
        ArgumentError: fewer than one part, more than 127, or something that is neither view nor source.
        SchemaMismatch: two parts have fields of one name or role that cannot be one; named.
    """
    parts: dict[str, Any] = {**{str(k): v for k, v in enumerate(views)}, **named}
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ArgumentError(f"a join has 1 to {MAX_PARTS} parts", value=len(parts), remedy="Write join(a=..., b=...)")
    for name, part in parts.items():
        if isinstance(part, JoinedView | JoinedSource):
            raise ArgumentError(f"part {name!r} is a join", value=part, remedy="Join all parts at once")
        if not isinstance(part, View) and not all(hasattr(part, x) for x in ("at", "mark", "restore")):
            raise ArgumentError(
                f"part {name!r} is no view or source of growing ones",
                value=part,
                remedy="Pass ws.view(), ws.live() or buffer.at(tag); a rotation is drawn from alone",
            )
    if all(isinstance(part, View) for part in parts.values()):
        return JoinedView(parts, Readings())
    return JoinedSource(parts)


class Readings:
    """How parts are read, kept while their schemas stay: plans are compiled once."""

    def __init__(self) -> None:
        self._known: tuple[Any, Projection, Layout, list[PartReading]] | None = None

    def of(self, parts: Mapping[str, View]) -> tuple[Projection, Layout, list[PartReading]]:
        schemas = {name: view.schema for name, view in parts.items()}
        if self._known is None or self._known[0] != schemas:
            projection = projected(schemas)
            layouts = [_packed(view).layout for view in parts.values()]
            layout = next((x for x in layouts if x.schema == projection.schema), None)
            layout = Layout.of(projection.schema) if layout is None else layout
            reads = [PartReading(layout, own, s) for own, s in zip(layouts, projection.sources, strict=True)]
            self._known = schemas, projection, layout, reads
        return self._known[1:]


class JoinedView(View):
    """The view of several; `join` makes it.

    Attributes:
        parts: name → view, of which only those rows are drawn that no earlier part draws.
        left_out: name → fields of the part that others lack.
        duplicates: name → rows of the part that an earlier one draws.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, given: Mapping[str, View], readings: Readings, older: JoinedView | None = None) -> None:
        projection, layout, reads = readings.of(given)
        dropped = _dropped(list(given.values()), older)
        anchors = [
            v.anchors if not k else LeftOut(v.anchors, d)
            for k, (v, d) in enumerate(zip(given.values(), dropped, strict=True))
        ]
        parts = dict(zip(given, map(_drawing, given.values(), anchors), strict=True))
        joint = PartedAnchors(anchors)
        self.__dict__.update(
            schema=projection.schema,
            rows=PartedRows(layout, [_packed(v) for v in given.values()], joint, reads),
            episodes=PartedEpisodes([v.episodes for v in given.values()]),
            anchors=joint,
            load_facts=lambda: _facts(given),
            name=f"join({', '.join(f'{name}={view.name}' for name, view in given.items())})",
            given=dict(given),
            left_out={n: x for n, x in zip(given, projection.left_out, strict=True) if x},
            duplicates={n: len(d) for n, d in zip(given, dropped, strict=True) if len(d)},
            _parts=parts,
            _readings=readings,
            _dropped=dropped,
        )

    given: Mapping[str, View]
    left_out: Mapping[str, tuple[str, ...]]
    duplicates: Mapping[str, int]
    _parts: Mapping[str, View]
    _readings: Readings
    _dropped: list[Slots]

    @property
    def parts(self) -> Mapping[str, View]:
        return self._parts

    @property
    def cut(self) -> Cut:
        """The cuts of the parts."""
        return Cut((), (), tuple((name, view.cut) for name, view in self.given.items()))

    @property
    def fact_stops(self) -> Any:
        """Those of the parts, one behind the other."""
        return tuple(view.fact_stops for view in self.given.values())

    def same_values(self, older: View) -> bool:
        """Whether the rows that both views hold have the same values in both."""
        if not isinstance(older, JoinedView) or list(self.given) != list(older.given):
            return False
        return all(v.same_values(older.given[name]) for name, v in self.given.items())

    @property
    def restriction(self) -> str | None:
        """What restricted each part."""
        told = [f"{name}: {v.restriction}" for name, v in self.given.items() if v.restriction is not None]
        return "; ".join(told) or None

    def narrow(
        self,
        keep: Narrowing | None = None,
        *,
        last: int | None = None,
        age: float | timedelta | None = None,
        policy_lag: int | None = None,
    ) -> View:
        """The join of the parts, each narrowed for itself; see `View.narrow`. A condition is read in the schema that
        the parts have in common. Rows that a part does not draw any more may be drawn from a later one."""
        narrowing = chosen(keep, last, age, policy_lag)
        _, layout, reads = self._readings.of(self.given)
        parts = {}
        for read, (name, view) in zip(reads, self.given.items(), strict=True):
            own = narrowing
            if isinstance(narrowing, Filter) and narrowing.schema != view.schema:
                self.schema.require_equal(narrowing.schema, what="the condition")
                own = _Projected(narrowing, layout, read)
            parts[name] = view.narrow(own)
        out = JoinedView(parts, self._readings)
        out.__dict__["narrowed_from"] = self
        return out

    def drawing(self, slots: Slots) -> View:
        """The same view, of which only these sorted slots are drawn."""
        out = JoinedView.__new__(JoinedView)
        out.__dict__.update(self.__dict__)
        part, own = part_of_slots(slots), own_slots(slots)
        parts = {name: view.drawing(own[part == k]) for k, (name, view) in enumerate(self._parts.items())}
        joint = PartedAnchors([view.anchors for view in parts.values()])
        out.__dict__.update(_parts=parts, anchors=joint)
        return out

    def part_of(self, cut: Cut) -> View:
        """The join of what earlier cuts held, made of the rows that are here.

        Raises:
            NotFound: rows of the cut are not here, or it has other parts.
        """
        if [name for name, _ in cut.parts] != list(self.given):
            raise NotFound(f"{self.name} has other parts than the cut", value=[name for name, _ in cut.parts])
        return JoinedView({name: part_of(self.given[name], own) for name, own in cut.parts}, self._readings)


class _Projected:
    """A condition in the joint schema, asked of one part's rows."""

    def __init__(self, condition: Filter, layout: Layout, read: PartReading) -> None:
        self._condition, self._layout, self._read = condition, layout, read

    def __call__(self, view: View, slots: Slots) -> Bool:
        rows = PartedRows(self._layout, [_packed(view)], PartedAnchors([view.anchors]), [self._read])
        episodes = view.episodes
        return matching(self._condition, rows, slots, episodes.group_of(slots), episodes.keys, lambda: view.facts)

    def __repr__(self) -> str:
        return str(self._condition)


class JoinedSource(Narrows):
    """Successive joined views, for one loader; `join` makes it. A refresh costs what the parts' refreshes cost, and
    what changed among the rows."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts, self._readings = dict(parts), Readings()
        self._view: JoinedView | None = None

    def at(self, step: int) -> JoinedView:
        """What the parts hold now."""
        now = {name: part.at(step) for name, part in self._parts.items()}
        older = self._view
        if older is None or any(now[name] is not older.given[name] for name in now):
            self._view = JoinedView(now, self._readings, older)
        assert self._view is not None
        return self._view

    def is_alone(self) -> bool:
        """Whether nobody but the calling thread appends to any part."""
        alone = [getattr(part, "is_alone", None) for part in self._parts.values() if not isinstance(part, View)]
        return all(is_alone is not None and is_alone() for is_alone in alone)

    def mark(self, view: View) -> dict[str, Any]:
        """Names one of its views in plain values."""
        assert isinstance(view, JoinedView)
        marks = {}
        for name, part in self._parts.items():
            own = view.given[name]
            marks[name] = {"cut": own.cut.to_dict()} if isinstance(part, View) else part.mark(own)
        return {"parts": marks}

    def restore(self, marks: Sequence[Mapping[str, Any]]) -> list[View]:
        """The views that marks name; the source goes on from the last.

        Raises:
            ArgumentError: they were taken on other parts.
            NotFound: rows are gone.
        """
        views: dict[str, list[View]] = {}
        for name, part in self._parts.items():
            if any(list(mark["parts"]) != list(self._parts) for mark in marks):
                raise ArgumentError(
                    "the state was taken on a join of other parts",
                    value=list(marks[-1]["parts"]),
                    remedy=f"This one has {list(self._parts)}",
                )
            mine = [mark["parts"][name] for mark in marks]
            if not isinstance(part, View):
                views[name] = part.restore(mine)
            elif any(mark["cut"] != part.cut.to_dict() for mark in mine):
                raise ArgumentError(
                    f"the state was taken on other rows than part {name!r} holds",
                    remedy="Join the version it was taken on",
                )
            else:
                views[name] = [part] * len(mine)
        out: list[View] = []
        for k in range(len(marks)):
            self._view = JoinedView({name: held[k] for name, held in views.items()}, self._readings)
            out.append(self._view)
        return out

    def close(self) -> None:
        """Lets go of what the parts hold."""
        for part in self._parts.values():
            if (close := getattr(part, "close", None)) is not None:
                close()


def earlier_view(newest: View, cut: Cut) -> View:
    """The view of an earlier cut, made of the rows that are in a later one. Raises NotFound where some are not."""
    return newest.part_of(cut) if isinstance(newest, JoinedView) else part_of(newest, cut)


def _packed(view: View) -> PackedRows:
    assert isinstance(view.rows, PackedRows)
    return view.rows


def _drawing(view: View, anchors: Any) -> View:
    """The view with other drawable rows."""
    if anchors is view.anchors:
        return view
    out = copy(view)
    out.__dict__["anchors"] = anchors
    return out


def _facts(given: Mapping[str, View]) -> FactIndex:
    seen = {}
    for view in given.values():
        for history in view.facts.history.values():
            seen.update({(f.writer, f.seq): f for f in history})
    return FactIndex.of(seen[key] for key in sorted(seen))


def _writers(view: View) -> set[int]:
    rows = view.rows
    if isinstance(rows, GrownRows):
        return set(rows.moment.by_writer)
    return {e.writer for e in view.cut.extents}


def _dropped(views: Sequence[View], older: JoinedView | None) -> list[Slots]:
    """For each part the sorted slots of its drawable rows that an earlier part draws too."""
    none = np.empty(0, np.int64)
    out = [none]
    before = None if older is None else list(older.given.values())
    for k in range(1, len(views)):
        view = views[k]
        earlier = [v for v in views[:k] if _writers(v) & _writers(view)]
        if before is None or older is None:
            out.append(_doubled(view, listed(view.anchors), earlier) if earlier else none)
            continue
        came = change(before[k].anchors, view.anchors)
        held = older._dropped[k]
        if len(came.removed) and (gone := among(held, came.removed)).any():
            held = held[~gone]
        asked = [came.added]
        for v, old in zip(views[:k], before[:k], strict=True):
            moved = change(old.anchors, v.anchors)
            for rows, slots in ((v.rows, moved.added), (old.rows, moved.removed)):
                if len(slots):
                    found = view.rows.find(rows.ids(slots))
                    asked.append(found[found >= 0])
        again = np.unique(np.concatenate(asked))
        again = again[view.anchors.mask(again)]
        if len(again) and (known := among(held, again)).any():
            held = held[~known]
        out.append(merged_sorted(held, _doubled(view, again, earlier) if earlier else none))
    return out


def _doubled(view: View, slots: Slots, earlier: Sequence[View]) -> Slots:
    """Those of some drawable rows that earlier parts draw."""
    ids = view.rows.ids(slots)
    twice = np.zeros(len(slots), np.bool_)
    for other in earlier:
        found = other.rows.find(ids)
        twice |= (found >= 0) & other.anchors.mask(found)
    return slots[twice]
