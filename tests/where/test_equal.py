"""A condition chooses the same rows by numpy, by Lance's scanner, and by going through the rows one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recollect.cold.arrow import decode
from recollect.records.build import build_view, unchanged
from recollect.records.layout import Layout
from recollect.schema.arrow import arrow_schema
from recollect.view import Cut, EpisodeKey, Extent, Fact, FactIndex, View
from recollect.view.matching import matching
from recollect.where import parse
from tests.where.language import SCHEMA, SOME_FACTS, conditions, facts, simple, some_rows, steps

WRITERS = (5, 2**62 + 1)
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("where")
    return (folder / f"{k}.lance" for k in itertools.count())


def index(told: list[dict[str, Any]]) -> FactIndex:
    keys = [EpisodeKey(WRITERS[k % 2], k) for k in range(4)]
    return FactIndex.of(
        Fact(key.writer, n, n, key, None, values)
        for n, (key, values) in enumerate(zip(keys, told, strict=False))
        if values
    )


def completed(given_rows: Rows, known: FactIndex) -> Rows:
    """Rows with their ids and the facts of their episodes, writer by writer."""
    out = []
    for row in given_rows:
        key = EpisodeKey(WRITERS[row["episode"] % 2], row["episode"])
        told = {f"episode.{k}": v for k, v in known.episodes.get(key, {}).items()}
        out.append({**row, "key": key, "writer": key.writer, **told, "episode.id": known.id_of(key)})
    out.sort(key=lambda row: row["writer"])
    for _, mine in itertools.groupby(out, lambda row: row["writer"]):
        for seq, row in enumerate(mine):
            row["seq"] = seq
    return out


def arrow(rows: Rows) -> Any:
    """The rows as a buffer holds them: fields that final rows do not have are null there."""
    schema = arrow_schema(SCHEMA)
    seen = {leaf.path for leaf in SCHEMA.observations}

    def tree(field: Any, path: str, row: dict[str, Any]) -> Any:
        if pa.types.is_struct(field.type):
            return {inner.name: tree(inner, f"{path}.{inner.name}", row) for inner in field.type}
        if path in SCHEMA.by_path and row["final"] and path not in seen:
            return None
        value = row[path]
        return np.float16(value) if pa.types.is_float16(field.type) and value is not None else value

    columns = []
    for field in schema:
        if field.name in ("episode_writer", "has_next", "priority_at_append"):
            plain = {"episode_writer": [r["writer"] for r in rows], "has_next": [False] * len(rows)}
            values = plain.get(field.name, [None] * len(rows))
        else:
            values = [tree(field, field.name, row) for row in rows]
        if pa.types.is_fixed_size_list(field.type):
            size, null = field.type.list_size, [v is None for v in values]
            empty = False if pa.types.is_boolean(field.type.value_type) else 0
            flat = pa.array([x for v in values for x in v or [empty] * size], type=field.type.value_type)
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type, mask=pa.array(null, pa.bool_())))
            continue
        columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def view_of(table: Any, rows: Rows, known: FactIndex) -> View:
    layout = Layout.of(SCHEMA)
    block = decode(layout, table.to_batches())
    extents = tuple(Extent(w, 0, sum(r["writer"] == w for r in rows)) for w in WRITERS)
    return build_view(
        layout, Cut(extents, ()), [(block, 0, len(rows))], lambda ids: (ids[:0], None), lambda: known, unchanged, "rows"
    )


def by_numpy(view: View, text: str) -> list[int]:
    slots = np.flatnonzero(~view.episodes.is_final)
    e = view.episodes
    chosen = matching(parse(text, SCHEMA), view.rows, slots, e.group[slots], e.keys, lambda: view.facts)
    return [int(slot) for slot in slots[chosen]]


def by_lance(dataset: Any, text: str, known: FactIndex) -> list[tuple[int, int]]:
    keys = [EpisodeKey(WRITERS[k % 2], k) for k in range(4)]
    table = dataset.to_table(filter=parse(text, SCHEMA).to_lance(keys, known), columns=["writer", "seq"])
    return sorted(zip(table["writer"].to_pylist(), table["seq"].to_pylist(), strict=True))


def test_every_field_and_comparison_chooses_what_its_meaning_says(places: Iterator[Path]) -> None:
    check(next(places), some_rows(60), SOME_FACTS, simple())


def test_numpy_and_lance_choose_what_the_meaning_says(places: Iterator[Path]) -> None:
    compare = prepared(next(places), some_rows(60), SOME_FACTS)

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(conditions())
    def ask(condition: Any) -> None:
        compare(condition)

    ask()


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(steps(), max_size=8), st.lists(facts(), max_size=4), st.lists(conditions(), min_size=3, max_size=6))
def test_any_rows_will_do(places: Iterator[Path], given_rows: Rows, told: Any, asked: Any) -> None:
    check(next(places), given_rows, told, asked)


@pytest.mark.torture
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps(), max_size=30), st.lists(facts(), max_size=4), st.lists(conditions(), min_size=3, max_size=9))
def test_numpy_and_lance_choose_what_the_meaning_says_of_many(
    places: Iterator[Path], given_rows: Rows, told: Any, asked: Any
) -> None:
    check(next(places), given_rows, told, asked)


def check(place: Path, given_rows: Rows, told: Any, asked: Any) -> None:
    compare = prepared(place, given_rows, told)
    for condition in asked:
        compare(condition)


def prepared(place: Path, given_rows: Rows, told: Any) -> Callable[[Any], None]:
    """What compares the three answers to a condition on these rows."""
    known = index(told)
    rows = completed(given_rows, known)
    table = arrow(rows)
    view, dataset = view_of(table, rows, known), lance.write_dataset(table, str(place), data_storage_version="2.2")

    def compare(condition: Any) -> None:
        meant = [k for k, row in enumerate(rows) if not row["final"] and condition.of(row) is True]
        assert by_numpy(view, condition.text) == meant, condition.text
        want = [(rows[k]["writer"], rows[k]["seq"]) for k in meant]
        assert by_lance(dataset, condition.text, known) == want, condition.text
        parsed = parse(condition.text, SCHEMA)
        again = parse(str(parsed), SCHEMA)
        assert (again.condition, str(again)) == (parsed.condition, str(parsed)), condition.text

    return compare


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(facts(), max_size=4), conditions("episode"))
def test_episodes_are_chosen_as_their_facts_say(told: Any, condition: Any) -> None:
    known = index(told)
    keys = [EpisodeKey(WRITERS[k % 2], k) for k in range(4)]
    chosen = parse(condition.text, SCHEMA)
    rows = [
        {**{f"episode.{k}": v for k, v in known.episodes.get(key, {}).items()}, "episode.id": known.id_of(key)}
        for key in keys
    ]
    assert chosen.mask_episodes(keys, known).tolist() == [condition.of(row) is True for row in rows]
    assert chosen.episode_only
