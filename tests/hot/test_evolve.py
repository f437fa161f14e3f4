"""A workspace whose schema evolves: what was written before reads the same, or as null or the default."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from recollect.hot import home, translate
from recollect.hot.files import create_exclusive
from recollect.hot.recover import verify_segment
from recollect.recall.results import decode_heap
from recollect.records.rows import PackedRows
from tests.support import bits, python, random_value, rows_of

V1 = rc.Schema(
    {
        "observation": {"pose": rc.Tensor("float32", (3,)), "camera": rc.Frames((2, 2), stack=2)},
        "action": rc.Tensor("int32"),
        "reward": rc.Tensor("float32", optional=True),
        "count": rc.Tensor("int16", optional=True),
        "tokens": rc.Ragged("int16", optional=True),
        "note": rc.Text(optional=True),
        "vector": rc.Embedding(2, optional=True),
        "uid": rc.Tensor("int64"),
    }
)
V2 = rc.Schema(
    {
        "first": rc.Tensor("bool", optional=True),
        "observation": {
            "pose": rc.Tensor("float64", (3,)),
            "camera": rc.Frames((2, 2), stack=2, dtype="uint16"),
            "touch": rc.Tensor("float32", (2,), default=[0.5, -1]),
            "depth": rc.Frames((2,), stack=2, optional=True),
        },
        "action": rc.Tensor("int64", optional=True),
        "reward": rc.Tensor("float32", optional=True),
        "mood": rc.Text(default="calm ☃"),
        "count": rc.Tensor("float32", optional=True),
        "tokens": rc.Ragged("int64", optional=True),
        "note": rc.Text(optional=True),
        "vector": rc.Embedding(2, optional=True),
        "other": rc.Embedding(3, optional=True),
        "level": rc.Tensor("uint8", default=7),
        "uid": rc.Tensor("int64"),
    },
    episode={"place": rc.Text()},
)
V3 = rc.Schema(
    {
        "first": rc.Tensor("bool", optional=True),
        "observation": {
            "pose": rc.Tensor("float64", (3,)),
            "camera": rc.Frames((2, 2), stack=2, dtype="uint16"),
            "touch": rc.Tensor("float64", (2,), default=[0.5, -1]),
            "depth": rc.Frames((2,), stack=2, optional=True),
        },
        "action": rc.Tensor("int64", optional=True),
        "reward": rc.Tensor("float64", optional=True),
        "mood": rc.Text(default="calm ☃", optional=True),
        "count": rc.Tensor("float64", optional=True),
        "tokens": rc.Ragged("int64", optional=True),
        "note": rc.Text(optional=True),
        "vector": rc.Embedding(2, optional=True),
        "other": rc.Embedding(3, optional=True),
        "level": rc.Tensor("uint32", default=7, optional=True),
        "uid": rc.Tensor("int64"),
        "plan": rc.Json(default={"steps": [1, None]}),
        "ids": rc.Ragged("uint8", default=[1, 2]),
        "gone": rc.Ragged("int8", default=()),
        "weight": rc.Tensor("float16", default=0.25, optional=True),
    },
    episode={"place": rc.Text(), "rank": rc.Tensor("int32")},
)
VERSIONS = (V1, V2, V3)

SMALL = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
)
WIDER = rc.Schema(
    {
        "observation": rc.Tensor("float64", (2,)),
        "reward": rc.Tensor("float32"),
        "uid": rc.Tensor("int64"),
        "note": rc.Text(default="none"),
        "score": rc.Tensor("float32", optional=True),
    }
)


def step(uid: int, **more: Any) -> dict[str, Any]:
    return {"observation": np.full(2, uid, np.float32), "reward": uid / 2, "uid": uid, **more}


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """A step as `append` takes it."""
    out: dict[str, Any] = {"observation": {}}
    for path, value in values.items():
        if path.startswith("observation."):
            out["observation"][path.partition(".")[2]] = value
        else:
            out[path] = value
    return out


def as_read(leaf: Any, values: dict[str, Any], *, default: bool = True) -> Any:
    """What a view must give for a leaf of which `values` holds what was written, None for null, nothing if left out."""
    field = leaf.field
    value = values.get(leaf.path, getattr(field, "default", None) if default else None)
    if value is None:
        return None
    if field.type in ("text", "json"):
        return value
    if field.type == "ragged":
        return np.asarray(value, field.dtype)
    return np.broadcast_to(np.asarray(value, field.dtype), field.shape)


def packed(view: rc.View) -> PackedRows:
    assert isinstance(view.rows, PackedRows)
    return view.rows


def check(view: rc.View, written: Mapping[rc.StepId, dict[str, Any]]) -> None:
    """Every row that was written, and no other step, with the values of the view's schema."""
    rows = packed(view)
    slots = np.flatnonzero(~view.episodes.is_final)
    ids = [rc.StepId(*i) for i in rows.ids(slots).tolist()]
    assert sorted(ids) == sorted(written)
    for leaf in view.schema.leaves:
        wanted = [as_read(leaf, written[i]) for i in ids]
        if leaf.field.type in ("text", "json", "ragged"):
            have: list[Any] = [decode_heap(leaf, raw) for raw in rows.heap_values(slots, leaf.path)]
            for mine, theirs in zip(have, wanted, strict=True):
                assert bits(mine) == bits(theirs) if isinstance(theirs, np.ndarray) else mine == theirs, leaf.path
            continue
        valid = rows.valid(slots, leaf.path)
        assert valid.tolist() == [value is not None for value in wanted], leaf.path
        have = list(rows.gather(slots, (leaf.path,))[leaf.path])
        for mine, theirs in zip(have, wanted, strict=True):
            if theirs is not None:
                assert bits(mine) == bits(theirs), leaf.path
            elif leaf.field.type == "tensor":
                assert np.isnan(mine).all() if mine.dtype.kind == "f" else not mine.any(), leaf.path


# -- evolving --------------------------------------------------------------------------------------------------------


def test_evolve_says_what_changed_and_nothing_the_second_time() -> None:
    ws = rc.create_workspace("w", SMALL)
    assert [(c.kind, c.path) for c in ws.evolve(WIDER)] == [
        ("dtype_widened", "observation"),
        ("field_added", "note"),
        ("field_added", "score"),
    ]
    assert ws.evolve(WIDER) == []
    assert ws.schema == WIDER
    assert rc.open_workspace("w").schema == WIDER
    assert sorted(p.name for p in ws.path.glob("schema*")) == ["schema.2.json", "schema.json"]


def test_what_is_refused_leaves_everything_as_it_was() -> None:
    ws = rc.create_workspace("w", SMALL)
    with pytest.raises(errors.SchemaMismatch, match="'uid' is gone"):
        ws.evolve(rc.Schema({"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32")}))
    with pytest.raises(errors.SchemaError, match=r"rc\.Schema"):
        ws.evolve({"a": rc.Text()})  # type: ignore[arg-type]
    assert ws.schema == SMALL
    assert [p.name for p in ws.path.glob("schema*")] == ["schema.json"]
    blank = rc.create_workspace("blank")
    with pytest.raises(errors.SchemaError, match="no schema yet"):
        blank.evolve(SMALL)


def test_a_writer_of_another_version_is_told_what_to_do() -> None:
    ws = rc.create_workspace("w", SMALL)
    with pytest.raises(errors.SchemaMismatch, match=r"'score'.*ws\.evolve\(schema\)"):
        ws.writer(schema=WIDER)
    other = rc.open_workspace("w")
    other.evolve(WIDER)
    with ws.writer(schema=WIDER) as writer:
        assert writer.layout.schema == WIDER
    with pytest.raises(errors.SchemaMismatch, match="'score' is missing") as caught:
        ws.writer(schema=SMALL)
    assert "evolve" not in str(caught.value)


def test_two_that_evolve_at_once_cannot_both_win_unseen() -> None:
    """Threads with a barrier: whoever is second sees the first one's version, and adds to it or is refused."""
    ws = rc.create_workspace("w", SMALL)
    fields = {leaf.path: leaf.field for leaf in SMALL.leaves}
    wanted = [rc.Schema({**fields, f"extra{k}": rc.Text(optional=True)}) for k in range(6)]
    barrier, outcomes = threading.Barrier(6), dict[int, Any]()

    def run(k: int) -> None:
        handle = rc.open_workspace("w")
        barrier.wait()
        try:
            outcomes[k] = handle.evolve(wanted[k])
        except errors.SchemaMismatch as e:
            outcomes[k] = str(e)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [k for k, outcome in outcomes.items() if isinstance(outcome, list)]
    assert len(won) == 1
    assert ws.schema == wanted[won[0]]
    assert all(f"'extra{won[0]}' is gone" in outcomes[k] for k in range(6) if k not in won)
    assert not (ws.path / "schema.3.json").exists()


def test_the_one_who_comes_second_with_the_same_schema_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file appears between the look and the creation."""
    ws = rc.create_workspace("w", SMALL)
    create = create_exclusive

    def late(path: Path, data: bytes) -> bool:
        monkeypatch.setattr(home, "create_exclusive", create)
        assert rc.open_workspace("w").evolve(WIDER)
        return create(path, data)

    monkeypatch.setattr(home, "create_exclusive", late)
    assert ws.evolve(WIDER) == []
    assert [p.name for p in sorted(ws.path.glob("schema.*"))] == ["schema.2.json", "schema.json"]


def test_a_damaged_version_is_named() -> None:
    ws = rc.create_workspace("w", SMALL)
    ws.evolve(WIDER)
    (ws.path / "schema.2.json").write_text("{")
    with pytest.raises(errors.CorruptionError, match=r"schema\.2\.json"):
        rc.open_workspace("w")


def test_a_segment_of_a_schema_that_never_was_is_corruption() -> None:
    ws = rc.create_workspace("w", SMALL)
    ws.evolve(WIDER)
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(**step(1))
        (ws.path / "schema.2.json").unlink()
        with pytest.raises(errors.CorruptionError, match="another schema"):
            rc.open_workspace("w").view()


# -- reading ---------------------------------------------------------------------------------------------------------


def test_old_rows_read_as_null_or_the_default_everywhere() -> None:
    ws = rc.create_workspace("w", SMALL)
    with ws.writer() as writer, writer.episode(id="old") as episode:
        ids = [episode.append(**step(uid), terminated=uid == 3) for uid in range(4)]
    ws.annotate(ids[1], reward=99.0)
    before = ws.view()
    assert ws.evolve(WIDER)
    with ws.writer() as writer, writer.episode(id="new") as episode:
        episode.append(**step(4), score=1.5, note="said", terminated=True)
    ws.annotate(ids[2], score=2.5, note="late")
    assert [(s["uid"], s["note"], s["score"]) for s in ws.recent(5)] == [
        (4, "said", 1.5),
        (3, "none", None),
        (2, "late", 2.5),
        (1, "none", None),
        (0, "none", None),
    ]
    old = ws.episode("old")
    assert old["note"] == ["none", "none", "late", "none"]
    assert old["observation"].dtype == np.float64 and old["observation"][:, 0].tolist() == [0, 1, 2, 3]
    assert old["reward"].tolist() == [0, 99, 1, 1.5]
    assert old.valid("score").tolist() == [False, False, True, False]
    rows = rows_of(ws.view())
    assert sorted(rows) == [0, 1, 2, 3, 4]
    assert rows[0]["next_observation"] == bits(np.full(2, 1.0))
    # A view is what it was when it was made.
    assert before.schema == SMALL and sorted(rows_of(before)) == [0, 1, 2, 3]


def test_a_live_old_writer_is_read_row_by_row_and_goes_on() -> None:
    """Each view after an append copies the new rows alone; the rows it gave out before stay where they are."""
    ws = rc.create_workspace("w", SMALL)
    reader = rc.open_workspace("w")
    writer = ws.writer()
    episode = writer.episode()
    episode.append(**step(0), next_observation=[1, 1])
    assert len(reader.view()) == 1
    ws.evolve(WIDER)
    views = []
    for uid in range(1, 40):
        episode.append(**step(uid), next_observation=[uid + 1, uid + 1])
        views.append(reader.view())
        assert views[-1].schema == WIDER and len(views[-1]) == uid + 1
        assert reader.recent(1)[0]["uid"] == uid
        assert reader.recent(1)[0]["note"] == "none"
    log = reader._hot().log(writer.id)
    (translation,) = log._translations.values()
    assert translation._done.sum() == 40
    first = rows_of(views[0])
    assert sorted(first) == [0, 1] and first[1]["next_observation"] == bits(np.full(2, 2.0))
    writer.close()
    assert len(reader.view()) == 40


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
    (translation,) = log._translations.values()
    (segment,) = log.segments
    assert translation.source is segment.block
    assert verify_segment(segment) == (20, 1)
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
    (translation,) = ws._hot().log(writer.id)._translations.values()
    mine = translation.read(0, 1)
    assert mine.heap is translation.source.heap
    assert mine.planes["observation.camera"] is translation.source.planes["observation.camera"]
    assert ws.recent(1)[0]["more"] == "" and ws.recent(1)[0]["note"] == "n"


def test_an_old_handle_reads_facts_about_fields_it_had_not_heard_of() -> None:
    """A log that was there before can hold facts under the newer schema; no segment of it gives that away."""
    ws = rc.create_workspace("w", SMALL)
    with ws.writer() as writer, writer.episode() as episode:
        first = episode.append(**step(0))
        ws.annotate(first, reward=5.0)
    reader = rc.open_workspace("w")
    assert reader.recent(1)[0]["reward"] == 5.0
    ws.evolve(WIDER)
    ws.annotate(first, score=3.0)
    assert reader.recent(1)[0]["score"] == 3.0
    assert reader.episode(first)["note"] == ["none"]


# -- defaults on the way in ------------------------------------------------------------------------------------------


def test_a_field_with_a_default_may_be_left_out_of_every_way_to_write() -> None:
    ws = rc.create_workspace("w", V3)
    bare: dict[str, Any] = {"observation": {"pose": [1, 2, 3], "camera": np.zeros((2, 2), np.uint16)}}
    with ws.writer() as writer:
        with writer.episode() as episode:
            episode.append(**bare, uid=0, next_observation=bare["observation"])
            episode.append(**bare, uid=1, weight=None, mood=None, level=9, ids=[5])
        lanes = writer.lanes(3)
        many = {"pose": np.ones((3, 3)), "camera": np.zeros((3, 2, 2), np.uint16)}
        on = np.array([True, False, True])
        lanes.append(observation=many, uid=np.array([2, 99, 3]), active=on, next_observation=many)
        block = {"observation": many, "uid": np.array([4, 5, 6]), "episode": [0, 0, 0], "step": [0, 1, 2]}
        some = np.array([True, False, True])
        writer.extend({**block, "valid": {"weight": some, "mood": some}, "next_observation": many})
    rows = rows_of(ws.view())
    assert sorted(rows) == [0, 2, 3, 4, 5, 6]
    defaults = {"observation.touch": [0.5, -1], "level": 7, "plan": {"steps": [1, None]}, "ids": [1, 2], "gone": []}
    for uid, row in rows.items():
        for path, value in defaults.items():
            leaf = V3.by_path[path]
            plain = value if leaf.field.type == "json" else np.array(value, leaf.field.dtype)  # type: ignore[union-attr]
            assert row[path] == bits(plain), (uid, path)
        assert row["valid/weight"] == bits(np.bool_(uid != 5))
        assert row["mood"] == (None if uid == 5 else "calm ☃")
        assert row["next_observation.touch"] == bits(np.array([0.5, -1]))
    last = ws.recent(7)[-2]
    assert (last["uid"], last["weight"], last["mood"], last["level"]) == (1, None, None, 9)
    assert last["ids"].tolist() == [5]


def test_a_default_left_out_hides_no_unknown_name() -> None:
    schema = rc.Schema({"a": rc.Tensor("int64"), "b": rc.Tensor("float32", (2,), default=3)})
    ws = rc.create_workspace("w", schema)
    with ws.writer() as writer, writer.episode() as episode:
        with pytest.raises(errors.FieldError, match="no field 'c'"):
            episode.append(a=1, c=2)
        with pytest.raises(errors.FieldError, match="'a' is missing"):
            episode.append(b=[1, 2])
        with pytest.raises(errors.FieldError, match="'b' is missing"):
            episode.append(a=1, b=None)
        with pytest.raises(errors.FieldError, match="'b' is not optional"):
            writer.extend({"a": [1], "episode": [0], "step": [0], "valid": {"b": np.array([False])}})
        episode.append(a=1)
        episode.append(a=2, b=[4, 5])
    assert [s["b"].tolist() for s in ws.recent(2)] == [[4, 5], [3, 3]]


def test_the_mask_does_not_touch_a_default() -> None:
    """Old rows and new ones read as the same text."""
    schema = rc.Schema({"uid": rc.Tensor("int64"), "note": rc.Text(default="secret")})
    ws = rc.create_workspace("w", schema, mask=lambda text: text.replace("secret", "***"))
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(uid=0)
        episode.append(uid=1, note="secret")
    assert [s["note"] for s in ws.recent(2)] == ["***", "secret"]


# -- against a model -------------------------------------------------------------------------------------------------


def _values(rng: np.random.Generator, schema: rc.Schema) -> dict[str, Any]:
    """A step under a schema: optional fields null or absent now and then, defaults left out."""
    out: dict[str, Any] = {}
    for leaf in schema.leaves:
        has_default = getattr(leaf.field, "default", None) is not None
        if has_default and rng.random() < 0.5:
            continue
        if leaf.field.optional and rng.random() < 0.4:
            if has_default or rng.random() < 0.5:
                out[leaf.path] = None
            continue
        out[leaf.path] = random_value(rng, leaf)
    return out


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from("wwwwevrc"), min_size=6, max_size=25))
def test_rows_of_three_versions_equal_a_model(tmp_path_factory: pytest.TempPathFactory, seed: int, moves: str) -> None:
    """Writers of every version side by side; evolutions, views and closings in between."""
    rng = np.random.default_rng(seed)
    ws = rc.create_workspace(tmp_path_factory.mktemp("m") / "w", V1)
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
                values = {**_values(rng, schema), "uid": uid}
                seen = {k: v for k, v in _values(rng, schema).items() if k.startswith("observation.")}
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


# -- other processes -------------------------------------------------------------------------------------------------

OLD_WRITER = """
import sys
import numpy as np
import recollect as rc
ws = rc.open_workspace("w")
writer = ws.writer(durability=sys.argv[1])
print("ready", flush=True)
uid = 0
with writer.episode() as episode:
    for line in sys.stdin:
        seen = np.full(2, uid, np.float32)
        id = episode.append(observation=seen, reward=uid / 2, uid=uid, next_observation=seen + 1)
        print(id, flush=True)
        uid += 1
"""

HANDLE = """
import sys
import recollect as rc
ws = rc.open_workspace("w")
for line in sys.stdin:
    view = ws.view()
    print(view.schema.fingerprint, len(view), flush=True)
"""


def _ask(child: Any) -> str:
    child.stdin.write("\n")
    child.stdin.flush()
    answer: str = child.stdout.readline().strip()
    return answer


def test_other_processes_go_on_writing_and_notice_the_new_schema() -> None:
    ws = rc.create_workspace("w", SMALL)
    writer, handle = python(OLD_WRITER, "process"), python(HANDLE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        for _ in range(3):
            _ask(writer)
        assert _ask(handle).split() == [SMALL.fingerprint, "3"]
        ws.evolve(WIDER)
        assert _ask(handle).split() == [WIDER.fingerprint, "3"]
        for uid in range(3, 30):
            _ask(writer)
            newest = ws.recent(1)[0]
            assert (newest["uid"], newest["note"], newest["score"]) == (uid, "none", None)
            assert len(ws.view()) == uid + 1
        with ws.writer() as new, new.episode() as episode:
            episode.append(**step(100), note="mine", terminated=True)
            assert _ask(handle).split() == [WIDER.fingerprint, "31"]
            assert json.loads((ws.path / "schema.json").read_bytes()) == SMALL.to_dict()
        writer.communicate(timeout=20)
        handle.communicate(timeout=20)
        assert (writer.returncode, handle.returncode) == (0, 0)
    finally:
        for child in (writer, handle):
            if child.poll() is None:
                child.kill()
                child.communicate()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_killed_writer_of_the_old_schema_is_recovered_after_the_evolution(trusted: bool) -> None:
    """Its frames are checked in the layout they were written in, whether or not its counter is believed."""
    ws = rc.create_workspace("w", SMALL)
    child = python(OLD_WRITER, "process")
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    _ask(child)
    ws.evolve(WIDER)
    ids = [_ask(child) for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    child.communicate()
    path = ws.path
    if not trusted:  # other inodes, so that every frame is verified
        path = ws.path.with_name("copy")
        shutil.copytree(ws.path, path)
    again = rc.open_workspace(path)
    assert [(r.rows, r.lost_rows, r.verified) for r in again.recovered] == [(21, 0, not trusted)]
    view = again.view()
    assert view.schema == WIDER and len(view) == 21
    rows = rows_of(view)
    assert sorted(rows) == list(range(21))
    assert all(row["note"] == "none" and row["observation"] == bits(np.full(2, float(k))) for k, row in rows.items())
    assert f"{again.recent(1)[0].id}" == ids[-1]


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_into_an_older_buffer_is_refused_and_a_new_one_holds_every_row(tmp_path: Path) -> None:
    ws = rc.create_workspace("w", V1)
    rng = np.random.default_rng(3)
    written: dict[rc.StepId, dict[str, Any]] = {}
    old = ws.writer()

    def write(writer: rc.Writer, schema: rc.Schema, first: int) -> None:
        with writer.episode() as episode:
            for uid in range(first, first + 6):
                values = {**_values(rng, schema), "uid": uid}
                written[episode.append(**nest(values), terminated=uid == first + 5)] = values

    write(old, V1, 0)
    assert ws.snapshot(to=tmp_path / "before").rows_added == 6
    ws.evolve(V2)
    ws.evolve(V3)
    with ws.writer() as new:
        write(new, V3, 10)
    write(old, V1, 20)
    waiting = old.episode()
    values = {**_values(rng, V1), "uid": 30}
    seen = {leaf.path: random_value(rng, leaf) for leaf in V1.observations}
    written[waiting.append(**nest(values), next_observation=nest(seen)["observation"])] = values
    with pytest.raises(errors.SchemaMismatch, match="snapshot to a new buffer"):
        ws.snapshot(to=tmp_path / "before")
    assert len(rc.open_buffer(tmp_path / "before").at().rows) == 6
    made = ws.snapshot(to=tmp_path / "after")
    assert made.created and made.rows_added == len(written)
    hot, cold = ws.view(), rc.open_buffer(tmp_path / "after").at()
    assert cold.schema == V3
    check(hot, written)
    assert len(hot) == len(cold) == len(written)
    assert rows_of(hot) == rows_of(cold)
    ws.close()
