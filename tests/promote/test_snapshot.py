"""Hot and cold are one thing: what a snapshot promotes reads back bit for bit, and nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.support import (
    SCHEMAS,
    all_ids,
    assert_holds,
    order_of,
    random_trajectories,
    rows_of,
    take,
    write_appends,
)

PLAIN = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
)


def _write(writer: rc.Writer, count: int, *, first: int = 0, end: bool = True) -> rc.Episode:
    episode = writer.episode()
    for i in range(first, first + count):
        episode.append(
            observation=[i, 0],
            reward=float(i),
            uid=i,
            terminated=end and i == first + count - 1,
            next_observation=[i + 1, 0],
        )
    return episode


def _same(one: rc.View, other: rc.View) -> None:
    """Fails unless two views have the same slots, ids, drawable rows, values, and batches."""
    assert one.cut.extents == other.cut.extents
    assert all_ids(one) == all_ids(other)
    slots = np.arange(len(one.rows))
    assert one.anchors.mask(slots).tolist() == other.anchors.mask(slots).tolist()
    assert (one.anchors.undrawable_open, one.anchors.undrawable_truncated) == (
        other.anchors.undrawable_open,
        other.anchors.undrawable_truncated,
    )
    assert one.episodes.keys.tolist() == other.episodes.keys.tolist()
    if len(one):
        names = list(one.schema.by_path)
        loaders = [rc.Loader(v, batch_size=9, seed=5, fields=names, output="numpy") for v in (one, other)]
        assert take(loaders[0], 12) == take(loaders[1], 12)
        assert rows_of(one) == rows_of(other)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_version_equals_the_hot_view_of_its_cut_bit_for_bit(kind: str, seed: int, tmp_path: Path) -> None:
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng([seed, 21])
    first = random_trajectories(schema, rng, count=9)
    second = random_trajectories(schema, rng, count=9)
    for trajectory in second:
        for moment in trajectory.moments:
            moment.values["uid"] += 10_000
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        write_appends(writer, first, order_of(first, rng))
        one = ws.snapshot(tmp_path / "buffer", tag="one")
        assert one.cut is not None and one.rows_added == one.rows == len(ws.view().rows)
        write_appends(ws.writer(), second, order_of(second, rng))
        two = ws.snapshot(tmp_path / "buffer", tag="two")
        buffer = rc.open_buffer(tmp_path / "buffer")
        _same(ws.view(cut=one.cut), buffer.at("one"))
        assert_holds(buffer.at("one"), schema, first)
        whole = buffer.at("two")
        assert_holds(whole, schema, [*first, *second])
        _same(ws.view(cut=whole.cut), whole)
        assert two.cut is not None
        _same(ws.view(cut=two.cut), buffer.at("two", cut=two.cut))
        _same(ws.view(cut=one.cut), buffer.at("two", cut=one.cut))


def test_a_signalling_nan_is_kept_and_counted(tmp_path: Path) -> None:
    payload = np.array([0x7FA00001], np.uint32).view(np.float32)
    with rc.create_workspace("w", PLAIN) as ws, ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=[1, 2], reward=payload[0], uid=0, terminated=True)
        assert ws.stats().nan_rewards == 1
        ws.snapshot(tmp_path / "b", tag="t")
        buffer = rc.open_buffer(tmp_path / "b")
        assert buffer.versions()[0].statistics["reward"]["nans"] == 1
        assert rows_of(buffer.at("t"))[0]["reward"][2] == payload.tobytes()


@pytest.mark.parametrize("size", [0, 6, 600_000])
def test_long_values_come_back_whole(size: int, tmp_path: Path) -> None:
    schema = rc.Schema(
        {
            "tokens": rc.Ragged("int64"),
            "flags": rc.Ragged("bool", optional=True),
            "note": rc.Text(),
            "uid": rc.Tensor("int64"),
        }
    )
    tokens = np.arange(size // 8, dtype=np.int64)
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        note = "☃漢" * (size // 6)
        for uid, (t, f, n) in enumerate([([1], None, ""), (tokens, tokens % 2 == 0, note), ([], [], "end")]):
            episode.append(
                tokens=np.asarray(t, np.int64), flags=None if f is None else np.asarray(f, bool), note=n, uid=uid
            )
        ws.snapshot(tmp_path / "b", tag="t")
        view = rc.open_buffer(tmp_path / "b").at("t")
        _same(ws.view(), view)
        names = ("tokens", "flags", "note")
        batch = next(rc.Loader(view, batch_size=3, seed=0, epochs=1, fields=(*names, "uid"), output="numpy"))
        at = {int(u): k for k, u in enumerate(batch["uid"])}
        assert batch["note"][at[1]] == note
        assert np.array_equal(batch["tokens"][at[1]][: len(tokens)], tokens)
        assert batch.lengths["tokens"][[at[0], at[1], at[2]]].tolist() == [1, len(tokens), 0]
        assert batch.valid["flags"][[at[0], at[1], at[2]]].tolist() == [False, True, True]


def test_a_second_snapshot_adds_nothing_and_says_so(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 5)
        first = ws.snapshot(tmp_path / "b", tag="t")
        assert first.created and "created" in first.message
        again = ws.snapshot(tmp_path / "b")
        assert (again.rows_added, again.facts_added, again.created) == (0, 0, False)
        assert "nothing new" in again.message
        assert again.version == first.version and again.rows == first.rows
        assert [v.version for v in rc.open_buffer(tmp_path / "b").versions()] == [first.version]


def test_an_open_tail_is_promoted_and_superseded(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        episode = _write(writer, 3, end=False)
        one = ws.snapshot(tmp_path / "b", tag="one")
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(buffer.at("one")) == 3
        # The next step contradicts what waits in the tail.
        episode.append(observation=[9, 9], reward=0.0, uid=3, terminated=True)
        ws.snapshot(tmp_path / "b", tag="two")
        assert one.cut is not None
        _same(ws.view(cut=one.cut), buffer.at("one"))
        two = buffer.at("two")
        _same(ws.view(), two)
        batch = next(rc.Loader(two, batch_size=9, seed=0, epochs=1, output="numpy"))
        row = batch["uid"].tolist().index(2)
        assert batch["next_observation"][row].tolist() == [3, 0]


def test_the_cut_of_an_empty_snapshot_is_readable_cold(tmp_path: Path) -> None:
    """Two writers, promoted in turns: their rows are interleaved in the buffer."""
    with rc.create_workspace("w", PLAIN) as ws:
        writers = [ws.writer(), ws.writer()]
        for k, tag in enumerate(("one", "two")):
            for j, writer in enumerate(writers):
                _write(writer, 3, first=100 * j + 10 * k)
            ws.snapshot(tmp_path / "b", tag=tag)
        third = ws.snapshot(tmp_path / "b", tag="three")
        assert third.rows_added == 0 and third.cut is not None
        _same(ws.view(cut=third.cut), rc.open_buffer(tmp_path / "b").at("three", cut=third.cut))


@pytest.mark.parametrize("given", [True, False], ids=["with-next", "without-next"])
def test_any_part_of_a_version_draws_alike_hot_and_cold(given: bool, tmp_path: Path) -> None:
    """A cut that ends inside an episode: the next observation lies beyond it."""
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        with writer.episode() as episode:
            for i in range(8):
                episode.append(observation=[i, 0], reward=0.0, uid=i, next_observation=[i + 1, 0] if given else None)
        ws.snapshot(tmp_path / "b", tag="t")
        cut = rc.Cut((rc.Extent(writer.id, 0, 5),), ())
        _same(ws.view(cut=cut), rc.open_buffer(tmp_path / "b").at("t", cut=cut))


def test_a_snapshot_of_facts_alone_makes_a_version(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 4)
        ws.snapshot(tmp_path / "b", tag="one")
        step = ws.recent(1)[0]
        ws.annotate(step.episode, lesson="look left", reward=2.0)
        ws.annotate(step.id, reward=0.25)
        snap = ws.snapshot(tmp_path / "b", tag="two")
        assert (snap.rows_added, snap.facts_added) == (0, 2)
        buffer = rc.open_buffer(tmp_path / "b")
        before, after = buffer.at("one"), buffer.at("two")
        assert before.facts.episodes.get(step.episode, {}) == {}
        assert after.facts.episodes[step.episode] == {"lesson": "look left", "reward": 2.0}
        uid = int(step["uid"])
        assert rows_of(before)[uid]["reward"] != rows_of(after)[uid]["reward"]
        assert rows_of(after)[uid] == rows_of(ws.view())[uid]
        assert ws.snapshot(tmp_path / "b").facts_added == 0


def test_step_facts_overlay_every_kind_of_field_alike_hot_and_cold(tmp_path: Path) -> None:
    schema = SCHEMAS["nested-with-nulls"]()
    rng = np.random.default_rng(4)
    trajectories = random_trajectories(schema, rng, count=6)
    facts: list[dict[str, Any]] = [
        {"reward": 1.5, "logits": [1, 2], "choice": 3, "tokens": [1, 2, 3], "note": "☃", "info": {"a": [1]}},
        {"embedding": [1, 2, 3, 4], "observation.pose": [8, 9]},
        dict.fromkeys(("reward", "logits", "choice", "tokens", "note", "info", "embedding")),
    ]
    with rc.create_workspace("w", schema) as ws:
        ids = write_appends(ws.writer(), trajectories, order_of(trajectories, rng))
        ws.snapshot(tmp_path / "b", tag="raw")
        for trajectory, values in zip(trajectories, facts, strict=False):
            moment = trajectory.moments[0]
            ws.annotate(ids[int(moment.values["uid"])], **values)
            for name, value in values.items():
                if value is None:
                    moment.values.pop(name, None)
                else:
                    moment.values[name] = value
        assert_holds(ws.view(), schema, trajectories)
        ws.snapshot(tmp_path / "b", tag="judged")
        buffer = rc.open_buffer(tmp_path / "b")
        assert_holds(buffer.at("judged"), schema, trajectories)
        _same(ws.view(), buffer.at("judged"))


# -- tags ------------------------------------------------------------------------------------------------------------


def test_a_tag_that_names_another_version_is_refused_before_anything_is_added(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        _write(writer, 3)
        ws.snapshot(tmp_path / "b", tag="t")
        _write(writer, 3, first=3)
        with pytest.raises(errors.AlreadyExists, match="'t'"):
            ws.snapshot(tmp_path / "b", tag="t")
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(buffer.at().rows) == len(buffer.at("t").rows)
        assert len(buffer.versions()) == 1
        assert ws.snapshot(tmp_path / "b", tag="u").rows_added > 0
        assert buffer.tags() == {"t": 2, "u": 3}


def test_the_same_tag_again_is_success_when_nothing_is_new(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 3)
        first = ws.snapshot(tmp_path / "b", tag="t")
        again = ws.snapshot(tmp_path / "b", tag="t")
        assert (again.version, again.rows, again.rows_added) == (first.version, first.rows, 0)


def test_a_version_can_get_a_second_tag(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 3)
        version = ws.snapshot(tmp_path / "b", tag="a").version
        assert ws.snapshot(tmp_path / "b", tag="b").version == version
        assert rc.open_buffer(tmp_path / "b").versions()[0].tags == ("a", "b")


def test_a_snapshot_under_an_older_tag_does_not_report_another_versions_rows(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        _write(writer, 3)
        ws.snapshot(tmp_path / "b", tag="old")
        _write(writer, 3)
        ws.snapshot(tmp_path / "b", tag="new")
        buffer = rc.open_buffer(tmp_path / "b")
        try:
            snap = ws.snapshot(tmp_path / "b", tag="old")
        except errors.AlreadyExists:
            return  # refusing it is as good: the tag names another version than this snapshot would
        assert snap.rows == len(buffer.at(snap.version).rows)


@pytest.mark.parametrize("tag", ["", "a b", "a/b", "12", ".hidden", "-x", "é", "a.lock", "a\n"])
def test_a_bad_tag_is_refused_and_nothing_is_created(tag: str, tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 3)
        with pytest.raises(errors.ArgumentError, match="tag"):
            ws.snapshot(tmp_path / "b", tag=tag)
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("tag", ["a", "round-12", "v1.0_x", "A9"])
def test_a_good_tag_is_taken(tag: str, tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 3)
        ws.snapshot(tmp_path / "b", tag=tag)
        assert list(rc.open_buffer(tmp_path / "b").tags()) == [tag]


# -- versions --------------------------------------------------------------------------------------------------------


def test_a_version_is_found_by_tag_number_and_time(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        start = datetime.now(UTC)
        sizes = []
        for k, tag in enumerate(("one", "two", "three")):
            _write(writer, 2, first=10 * k)
            sizes.append(ws.snapshot(tmp_path / "b", tag=tag).rows)
        buffer = rc.open_buffer(tmp_path / "b")
        versions = buffer.versions()
        assert [v.rows for v in versions] == sizes
        assert [v.tags for v in versions] == [("one",), ("two",), ("three",)]
        assert sum(v.rows_added for v in versions) == sizes[-1]
        assert {v.workspace for v in versions} == {"w"}
        assert [v.time for v in versions] == sorted(v.time for v in versions)
        for version, tag, rows in zip(versions, ("one", "two", "three"), sizes, strict=True):
            for which in (tag, version.version, version.time, version.time.astimezone()):
                assert len(buffer.at(which).rows) == rows
        assert len(buffer.at().rows) == sizes[-1]
        assert len(buffer.at(versions[2].time - timedelta(microseconds=1)).rows) == sizes[1]
        for missing in ("four", 99, 0, -1, start - timedelta(days=1)):
            with pytest.raises(errors.NotFound):
                buffer.at(missing)


def test_an_old_version_stays_what_it_was(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        _write(writer, 4)
        ws.snapshot(tmp_path / "b", tag="one")
        before = rows_of(rc.open_buffer(tmp_path / "b").at("one"))
        _write(writer, 4, first=50)
        ws.annotate(ws.recent(8)[7].id, reward=9.0)
        ws.snapshot(tmp_path / "b", tag="two")
        assert rows_of(rc.open_buffer(tmp_path / "b").at("one")) == before


def test_only_new_data_files_are_decoded(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        _write(writer, 4)
        ws.snapshot(tmp_path / "b", tag="one")
        buffer = rc.open_buffer(tmp_path / "b")
        buffer.at("one")
        assert buffer.decoded_files == 1
        buffer.at("one")
        assert buffer.decoded_files == 1
        _write(writer, 4)
        ws.snapshot(tmp_path / "b", tag="two")
        buffer.at("two")
        assert buffer.decoded_files == 2
        other = rc.open_buffer(tmp_path / "b")
        other.at("two")
        assert other.decoded_files == 0


# -- what cannot be promoted -----------------------------------------------------------------------------------------


def test_a_workspace_without_a_schema_has_nothing_to_promote(tmp_path: Path) -> None:
    with rc.create_workspace("w") as ws:
        snap = ws.snapshot(tmp_path / "b", tag="t")
        assert snap.version is None and snap.rows_added == 0 and "nothing to promote" in snap.message
        assert not (tmp_path / "b").exists()


def test_a_workspace_without_rows_makes_no_version(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        snap = ws.snapshot(tmp_path / "b", tag="t")
        assert snap.version is None and snap.rows_added == 0
        _write(ws.writer(), 2)
        assert ws.snapshot(tmp_path / "b", tag="t").rows_added == 3


def test_another_schema_is_refused_by_field(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 2)
        ws.snapshot(tmp_path / "b")
    other = rc.Schema(
        {"observation": rc.Tensor("float64", (2,)), "reward": rc.Tensor("float32"), "x": rc.Tensor("int8")}
    )
    with rc.create_workspace("v", other) as ws, ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=[1.0, 2.0], reward=0.0, x=1)
        with pytest.raises(errors.SchemaMismatch) as caught:
            ws.snapshot(tmp_path / "b")
        for name in ("observation", "'x'", "uid"):
            assert name in str(caught.value)
    assert len(rc.open_buffer(tmp_path / "b").versions()) == 1


@pytest.mark.parametrize("place", ["file/below", "/proc/nowhere/buffer"])
def test_a_place_that_cannot_be_written_is_a_store_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 2)
        with pytest.raises(errors.StoreError, match=r"file/below|nowhere"):
            ws.snapshot(tmp_path / place)
        assert ws.snapshot(tmp_path / "b").rows_added == 3


@pytest.mark.parametrize("uri", ["ftp://x/y", "http://x/y"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with rc.create_workspace("w", PLAIN) as ws, pytest.raises(errors.StoreError, match="://"):
        ws.snapshot(uri)


def test_a_missing_buffer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        rc.open_buffer(tmp_path / "none")


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 2)
        ws.snapshot(f"file://{tmp_path}/b", tag="t")
        assert len(rc.open_buffer(tmp_path / "b").at("t").rows) == 3


def test_progress_counts_up_to_all_rows(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with rc.create_workspace("w", PLAIN) as ws:
        _write(ws.writer(), 9)
        ws.snapshot(tmp_path / "b", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10) and seen == sorted(seen)


def test_workspaces_of_several_processes_meet_in_one_buffer(tmp_path: Path) -> None:
    """A buffer promoted from two workspaces holds both, and each one's cut reads back."""
    views = []
    for name in ("a", "b"):
        with rc.create_workspace(name, PLAIN) as ws:
            _write(ws.writer(), 5, first=ord(name))
            snap = ws.snapshot(tmp_path / "buf", tag=name)
            assert snap.cut is not None
            views.append((ws.view(cut=snap.cut), snap.cut))
    buffer = rc.open_buffer(tmp_path / "buf")
    assert len(buffer.at("b").rows) == 12
    for (hot, cut), tag in zip(views, ("a", "b"), strict=True):
        _same(hot, buffer.at(tag, cut=cut))
