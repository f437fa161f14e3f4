"""Rows of older schemas in the newest one's layout, against a dict model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from recollect.hot.format import translate
from tests.hot.versions import V1, V2, V3, VERSIONS, check, kept_translations, nest, packed, random_step
from tests.support import bits, random_value, rows_of

_seeds = st.integers(0, 2**32 - 1)
_move = st.sampled_from("wwwwevrc")
_limits: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=12, **_limits)
@given(_seeds, st.lists(_move, min_size=6, max_size=25))
def test_rows_of_three_versions_equal_a_model(
    tmp_path_factory: pytest.TempPathFactory, seed: int, moves: list[str]
) -> None:
    _compare_with_model(tmp_path_factory.mktemp("m") / "w", seed, moves)


@pytest.mark.torture
@settings(max_examples=150, **_limits)
@given(_seeds, st.lists(_move, min_size=6, max_size=60))
def test_rows_of_three_versions_equal_a_model_at_length(
    tmp_path_factory: pytest.TempPathFactory, seed: int, moves: list[str]
) -> None:
    _compare_with_model(tmp_path_factory.mktemp("m") / "w", seed, moves)


def _compare_with_model(path: Path, seed: int, moves: list[str]) -> None:
    """Writers of every version side by side; evolutions (e), writes (w), views (v), recalls (r) and closings (c)."""
    rng = np.random.default_rng(seed)
    ws = rc.create_workspace(path, V1)
    reader = rc.open_workspace(ws.path)
    written: dict[rc.StepId, dict[str, Any]] = {}
    version, uid = 0, 0
    episodes: list[tuple[rc.Writer, rc.Episode, rc.Schema]] = []
    for move in [*moves, "e", "w", "w", "e", "w", "w"]:
        if move == "e" and version < 2:
            version += 1
            assert ws.evolve(VERSIONS[version])
        elif move == "v":
            check(reader.view(), written)
        elif move == "r" and written:
            step = reader.recent(1)[0]
            assert step["uid"] == written[step.id]["uid"]
        elif move == "c" and episodes:
            episodes.pop(int(rng.integers(len(episodes))))[0].close()
        if move == "w":
            if not episodes or rng.random() < 0.3:
                writer = ws.writer(durability="process")
                episodes.append((writer, writer.episode(), VERSIONS[version]))
            _, episode, schema = episodes[int(rng.integers(len(episodes)))]
            for _ in range(int(rng.integers(1, 5))):
                values = {**random_step(rng, schema), "uid": uid}
                seen = {k: v for k, v in random_step(rng, schema).items() if k.startswith("observation.")}
                following = nest(seen)["observation"] if rng.random() < 0.5 else None
                written[episode.append(**nest(values), next_observation=following)] = values
                uid += 1
    view = reader.view()
    assert view.schema == V3
    check(view, written)
    check(rc.open_workspace(ws.path).view(), written)
    ws.close()
    check(reader.view(), written)


def test_later_copies_leave_the_earlier_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views between appends, a few rows at a time, with lists that lie in other memory than the log's."""
    monkeypatch.setattr(translate, "CHUNK_ROWS", 3)
    rng = np.random.default_rng(1)
    ws = rc.create_workspace("w", V1)
    writer = ws.writer(durability="process")
    ws.evolve(V2)
    written: dict[rc.StepId, dict[str, Any]] = {}
    for k in range(4):
        with writer.episode() as episode:
            for uid in range(10 * k, 10 * k + 10):
                values = {leaf.path: random_value(rng, leaf) for leaf in V1.leaves}
                values |= {"uid": uid, "tokens": np.arange(uid, dtype=np.int16), "note": f"n{uid}" * uid}
                written[episode.append(**nest(values))] = values
                if uid % 7 == 0:
                    assert ws.recent(2)[0]["tokens"].tolist() == list(range(uid))
        check(ws.view(), written)
    # Now from somewhere in the middle, then the rest around it.
    other = rc.open_workspace("w")
    assert len(other.view(rc.Cut((rc.Extent(writer.id, 11, 17),), ())).rows) == 6
    held = other.view()
    check(held, written)
    # Another version: the same rows once more, and the view of the version before stays what it was.
    ws.evolve(V3)
    check(other.view(), written)
    assert held.schema == V2
    check(held, written)


def test_null_bits_move_between_words() -> None:
    many = {f"x{k}": rc.Tensor("int8", optional=True) for k in range(70)}
    old = rc.Schema({**many, "uid": rc.Tensor("int64")})
    new = rc.Schema(
        {
            "a": rc.Text(optional=True),
            "b": rc.Tensor("int8", default=1, optional=True),
            **many,
            "uid": rc.Tensor("int64"),
        }
    )
    ws = rc.create_workspace("w", old)
    rng = np.random.default_rng(2)
    written: dict[rc.StepId, dict[str, Any]] = {}
    with ws.writer() as writer, writer.episode() as episode:
        for uid in range(30):
            values: dict[str, Any] = {name: k % 100 if rng.random() < 0.5 else None for k, name in enumerate(many)}
            written[episode.append(**values, uid=uid)] = {**values, "uid": uid}
    ws.evolve(new)
    check(ws.view(), written)


def test_old_tails_and_final_rows_hold_the_observations_they_held() -> None:
    """A waiting observation under an old schema, in its slot, and as the final row that it becomes."""
    ws = rc.create_workspace("w", V1)
    camera = np.arange(4, dtype=np.uint8).reshape(2, 2)
    writer = ws.writer()
    episode = writer.episode()
    episode.append(
        observation={"pose": [1, 2, 3], "camera": camera},
        action=1,
        uid=0,
        next_observation={"pose": [4, 5, 6], "camera": camera + 1},
    )
    ws.evolve(V2)
    for _ in range(2):
        (row,) = rows_of(ws.view()).values()
        assert row["next_observation.pose"] == bits(np.array([4.0, 5, 6]))
        assert row["next_observation.camera"] == bits(np.stack([camera, camera + 1]).astype(np.uint16))
        assert row["next_observation.touch"] == bits(np.array([0.5, -1], np.float32))
        assert row["next_observation.depth"] == bits(np.zeros((2, 2), np.uint8))
        assert ws.episode(episode.key).final is not None
        writer.close()
    view = ws.view()
    assert view.episodes.is_final.tolist() == [False, True]
    # What a final row lacks is null in it, whichever schema it was written under.
    slots = np.array([1])
    assert not packed(view).valid(slots, "action")[0] and not packed(view).valid(slots, "first")[0]
    assert np.isnan(view.rows.gather(slots, ("count",))["count"]).all()


def test_checksums_are_found_on_the_rows_as_they_were_written() -> None:
    ws = rc.create_workspace("w", V1)
    rng = np.random.default_rng(0)
    with ws.writer() as writer, writer.episode() as episode:
        for uid in range(20):
            values = {leaf.path: random_value(rng, leaf) for leaf in V1.leaves}
            episode.append(**nest({**values, "uid": uid}))
    ws.evolve(V2)
    ws.view()
    log = ws._hot().log(writer.id)
    (translation,) = kept_translations(log)
    (segment,) = log.segments
    assert translation.source is segment.block
    assert (segment.checked.whole_rows(0, 20), segment.checked.whole_facts(0, 1)) == (20, 1)
    assert log.pieces(0, 20)[0][0] is segment.block
    assert log.pieces_in(ws._hot().layout, 0, 20)[0][0] is not segment.block


def test_what_needs_no_other_bytes_is_shared() -> None:
    """Planes of an unchanged dtype, and the heap where no default or wider list needs room."""
    ws = rc.create_workspace("w", V1)
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(observation={"pose": [0, 0, 0], "camera": np.zeros((2, 2), np.uint8)}, action=0, uid=0, note="n")
    fields: dict[str, Any] = {
        "observation": {"pose": rc.Tensor("float32", (3,)), "camera": rc.Frames((2, 2), stack=2)},
        **{leaf.path: leaf.field for leaf in V1.leaves if "." not in leaf.path},
    }
    ws.evolve(rc.Schema({**fields, "more": rc.Text(default=""), "score": rc.Tensor("int8", default=1)}))
    ws.view()
    (translation,) = kept_translations(ws._hot().log(writer.id))
    mine = translation.read(0, 1)
    assert mine.heap is translation.source.heap
    assert mine.planes["observation.camera"] is translation.source.planes["observation.camera"]
    assert ws.recent(1)[0]["more"] == "" and ws.recent(1)[0]["note"] == "n"


def test_rows_are_not_read_in_an_older_layout_than_their_own() -> None:
    """Who kept a layout over an evolution is told, and not given half a row."""
    ws = rc.create_workspace("w", V1)
    before = ws._hot().layout
    ws.evolve(V2)
    with ws.writer() as writer, writer.episode() as episode:
        id = episode.append(**nest({**random_step(np.random.default_rng(0), V2), "uid": 0}))
    store = ws._hot()
    extents = store.cut().extents
    with pytest.raises(errors.SchemaMismatch, match="'level' is gone"):
        store.pieces(extents, before)
    assert store.log(id.writer).layout is store.layout is not before


def test_a_signalling_nan_is_widened_without_a_warning() -> None:
    raw = np.array([0x7F800001, 0x3F800000], np.uint32).view(np.float32)
    ws = rc.create_workspace("w", rc.Schema({"observation": rc.Tensor("float32", (2,)), "past": rc.Ragged("float32")}))
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=raw, past=raw)
    ws.evolve(rc.Schema({"observation": rc.Tensor("float64", (2,)), "past": rc.Ragged("float64")}))
    step = ws.recent(1)[0]
    for held in (step["observation"], step["past"]):
        assert held.dtype == np.float64
        assert np.isnan(held[0]) and held[1] == 1.0
