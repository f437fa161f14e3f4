"""Views that grow while the schema evolves: slots stay, older views stay, newer ones say what one from scratch says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.errors import NotFound
from recollect.hot.format import translate
from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.records import grow
from recollect.records.grown import GrownView
from tests.hot.live_world import World, assert_same, deepest, everything, leave_out_cut_stacks
from tests.hot.retaining import EVICTOR
from tests.hot.versions import V1, V2, V3, kept_translations
from tests.support import python

_FIELDS = {"uid": rc.Tensor("int64"), "reward": rc.Tensor("float32")}
PLAIN = rc.Schema(_FIELDS)
SCORED = rc.Schema({**_FIELDS, "score": rc.Tensor("float32", default=0.5), "note": rc.Text(optional=True)})
WIDER = rc.Schema(
    {
        "uid": rc.Tensor("int64"),
        "reward": rc.Tensor("float64"),
        "score": rc.Tensor("float64", default=0.5),
        "note": rc.Text(optional=True),
    }
)
SEEDS = [0, 1, *(pytest.param(s, marks=pytest.mark.torture) for s in range(2, 40))]


def _column(view: rc.View, name: str) -> list[Any]:
    assert isinstance(view, GrownView)
    values: list[Any] = view.rows.gather(np.arange(view.moment.first, view.moment.stop), (name,))[name].tolist()
    return values


# -- any moment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("last", [None, 25])
def test_at_every_moment_it_is_what_a_view_of_its_cut_is(
    last: int | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grow, "KEPT_ROWS", 8)
    rng = np.random.default_rng([seed, 23])
    with rc.create_workspace("w", V1) as ws:
        world = World(ws, V1, rng)
        source = ws.live(last)
        kept: list[tuple[rc.View, int, dict[str, Any]]] = []
        slot_of: dict[Any, int] = {}
        for moment in range(30):
            if moment in (9, 19):
                ws.evolve(V2 if moment == 9 else V3)
                world.noted = ("reward", "count") if moment == 9 else ("reward", "count", "weight")
            for _ in range(int(rng.integers(0, 14))):
                world.act()
            view = source.at(0)
            assert isinstance(view, GrownView) and view.schema == ws.schema
            first = view.moment.first
            batches = last is None and moment % 5 == 4
            have = everything(view, first=first, batches=batches)
            for slot, i in enumerate(view.rows.ids(np.arange(first, first + have["rows"])).tolist(), first):
                assert slot_of.setdefault(i, slot) == slot, "a row's slot changed"
            scratch = ws.view(view.cut)
            want = everything(scratch, batches=batches)
            if last is not None:
                leave_out_cut_stacks(scratch, deepest(view.schema), want)
            # Where cast lists lie in a translation depends on the order in which its rows were read.
            assert_same(have, {**want, "raw": have["raw"]})
            if moment % 3 == 2:
                kept.append((view, first, have))
        for view, first, have in kept:
            assert_same(everything(view, first=first, batches="batches" in have), have)
            mark = source.mark(view)
            again = source.pinned(view.cut, mark["first"], mark["schema"])
            assert again.schema == view.schema
            want = {k: v for k, v in have.items() if k not in ("raw", "batches", "sums")}
            got = everything(again, first=first, batches=False)
            del got["raw"]
            assert_same(got, want)


def test_rows_of_both_versions_are_read_without_anybody_doing_anything() -> None:
    with rc.create_workspace("w", PLAIN) as ws, ws.writer() as old, old.episode() as episode:
        first = episode.append(uid=0, reward=1.0)
        source = ws.live()
        before = source.refresh()
        ws.evolve(SCORED)
        assert source.refresh() is not before, "new fields are there with the schema, whatever arrives"
        with ws.writer() as new, new.episode() as other:
            other.append(uid=1, reward=2.0, score=7.0, note="x")
        episode.append(uid=2, reward=3.0)
        ws.annotate(first, score=4.0, note="late")
        view = source.refresh()
        assert view.schema == SCORED and before.schema == PLAIN
        assert _column(view, "uid") == [0, 1, 2] or _column(view, "uid") == [0, 2, 1]
        scores = dict(zip(_column(view, "uid"), _column(view, "score"), strict=True))
        assert scores == {0: 4.0, 1: 7.0, 2: 0.5}
        assert view.rows.heap_values(np.arange(1), "note") == [b"late"]
        ws.evolve(WIDER)
        ws.annotate(first, reward=1 / 3)
        view = source.refresh()
        assert (
            _column(view, "reward")[0] == 1 / 3 and view.rows.gather(np.arange(1), ("reward",))["reward"].dtype == "f8"
        )
        assert _column(before, "reward") == [1.0]
        assert source.refresh() is view


@pytest.mark.parametrize("last", [None, 8])
def test_a_deeper_stack_leaves_out_what_it_cannot_show(last: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema that had no frames gets some: steps whose stack reaches behind the window are not drawn from then on."""
    monkeypatch.setattr(grow, "KEPT_ROWS", 4)
    deep = rc.Schema({**_FIELDS, "camera": rc.Frames((1,), stack=3, optional=True)})
    with rc.create_workspace("w", PLAIN) as ws, ws.writer() as writer:
        episodes = [writer.episode() for _ in range(2)]
        source = ws.live(last)
        for uid in range(30):
            episodes[uid % 2].append(uid=uid, reward=0.0)
            assert source.refresh().anchors.undrawable_beheaded == 0
        ws.evolve(deep)
        for uid in range(30, 50):
            view = source.refresh()
            assert view.anchors.undrawable_beheaded == (0 if last is None else 4)
            assert len(view) == (uid if last is None else 4)
            scratch = ws.view(view.cut)
            want = everything(scratch, batches=False)
            leave_out_cut_stacks(scratch, 3, want)
            have = everything(view, first=view.moment.first, batches=False)  # type: ignore[attr-defined]
            assert_same(have, {**want, "counts": have["counts"]})
            episodes[uid % 2].append(uid=uid, reward=0.0)


def test_rows_that_were_evicted_meanwhile_are_read_from_what_is_held() -> None:
    with rc.create_workspace("w", PLAIN, durability="process") as ws:
        child = python(EVICTOR, str(ws.path))
        try:
            assert child.stdout is not None and child.stdin is not None and child.stdout.readline() == "ready\n"
            with pytest.MonkeyPatch.context() as small:
                small.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (1 << 14,))
                with ws.writer() as writer, writer.episode() as episode:
                    source = ws.live()
                    for uid in range(2000):
                        episode.append(uid=uid, reward=float(uid))
                    source.refresh()
                    child.stdin.write("200\n")
                    child.stdin.flush()
                    assert int(child.stdout.readline()) > 0
                    for schema in (SCORED, WIDER):
                        ws.evolve(schema)
                        assert len(ws.view().rows) < 2000
                        view = source.refresh()
                        assert _column(view, "uid") == list(range(2000)) == _column(view, "reward")
                        assert set(_column(view, "score")) == {0.5}
        finally:
            child.communicate(timeout=60)


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_two_layouts_that_read_one_log_by_turns_find_their_translations_again() -> None:
    with (
        rc.create_workspace("w", PLAIN, durability="process") as ws,
        ws.writer() as writer,
        writer.episode() as episode,
    ):
        for uid in range(50):
            episode.append(uid=uid, reward=0.0)
        ws.view()
        log = ws._hot().log(writer.id)
        layouts = []
        for schema in (SCORED, WIDER):
            ws.evolve(schema)
            ws.view()
            layouts.append(ws._hot().layout)
        first = [log.pieces_in(layout, 0, 50)[0][0] for layout in layouts]
        for _ in range(3):
            for layout, block in zip(layouts, first, strict=True):
                assert log.pieces_in(layout, 0, 50)[0][0] is block
        assert len(kept_translations(log)) == 2
        ws.evolve(rc.Schema({**{leaf.path: leaf.field for leaf in WIDER.leaves}, "more": rc.Text(optional=True)}))
        ws.view()
        assert len(kept_translations(log)) == translate.KEPT_LAYOUTS == 2
        assert log.pieces_in(layouts[1], 0, 50)[0][0] is first[1], "the one used last stays"


def test_a_chain_of_evolutions_keeps_no_copies_of_copies() -> None:
    with (
        rc.create_workspace("w", PLAIN, durability="process") as ws,
        ws.writer() as writer,
        writer.episode() as episode,
    ):
        episode.append(uid=0, reward=0.0)
        source = ws.live()
        source.refresh()
        for schema in (SCORED, WIDER):
            ws.evolve(schema)
            (block,) = source.refresh().moment.blocks  # type: ignore[attr-defined]
            assert block.owner.block is ws._hot().log(writer.id).segments[0].block


@pytest.mark.parametrize("grows", [True, False], ids=["rows arrive", "facts alone"])
def test_step_facts_are_bounded_with_the_window(grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grow, "KEPT_ROWS", 16)
    monkeypatch.setattr("recollect.hot.read.step_facts.PRUNED_FROM", 16)
    with (
        rc.create_workspace("w", PLAIN, durability="process") as ws,
        ws.writer() as writer,
        writer.episode() as episode,
    ):
        ids = [episode.append(uid=uid, reward=-1.0) for uid in range(20)]
        source = ws.live(last=20)
        for k in range(400):
            if grows:
                ids.append(episode.append(uid=20 + k, reward=-1.0))
            ws.annotate(ids[-1 if grows else -1 - k % 20], reward=float(k))
            view = source.refresh()
            moment = view.moment  # type: ignore[attr-defined]
            assert len(source._steps) <= 100 and moment.patches <= 100 and len(moment.blocks) <= 110
        want = everything(ws.view(view.cut), batches=False)
        have = everything(view, first=moment.first, batches=False)
        assert have["values"] == want["values"]


# -- observations that wait ------------------------------------------------------------------------------------------


def test_waiting_observations_are_looked_for_once_and_again_only_when_their_log_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = rc.Schema({**_FIELDS, "observation": rc.Tensor("float32", (2,))})
    with rc.create_workspace("w", schema, durability="process") as ws, ws.writer() as one, ws.writer() as two:
        a, b = one.episode(), two.episode()
        source = ws.live()
        asked: list[list[int]] = []
        real = HotStore.tails_by_writer
        lost = True

        def counted(store: HotStore, ids: Any, layout: Any = None) -> Any:
            asked.append(sorted(ids["writer"].tolist()))
            return [] if lost else real(store, ids, layout)

        monkeypatch.setattr(HotStore, "tails_by_writer", counted)
        values: dict[str, Any] = {"reward": 0.0, "observation": [0, 0], "next_observation": [1, 1]}
        a.append(uid=0, **values)
        assert len(source.refresh()) == 0 and asked == [[one.id]]
        b.append(uid=1, **values)
        source.refresh()
        assert asked == [[one.id], [two.id]], "nothing new of the first log: what was lost is lost still"
        lost = False
        one.episode().append(uid=2, **values)
        assert len(source.refresh()) == 2 and asked[2] == [one.id, one.id]
        two.episode().append(uid=3, **values)
        assert len(source.refresh()) == 4 and asked[3] == [two.id, two.id], "those that were found are held"


def test_a_tail_is_found_among_those_of_many_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.format.tails.LANES_PER_FILE", 4)
    schema = rc.Schema({**_FIELDS, "observation": {"a": rc.Tensor("float32"), "b": rc.Frames((2,))}})
    with rc.create_workspace("w", schema, durability="process") as ws, ws.writer() as writer:
        source = ws.live()
        looks: list[int] = []
        real = WriterLog.tails

        def counted(log: WriterLog, ids: Any) -> Any:
            looks.append(len(ids))
            return real(log, ids)

        monkeypatch.setattr(WriterLog, "tails", counted)
        episodes = [writer.episode() for _ in range(13)]
        for uid in range(60):
            n, later = uid + 1, uid + 13
            episodes[uid % 13].append(
                uid=uid,
                reward=0.0,
                observation={"a": uid, "b": np.full(2, uid, np.uint8)},
                next_observation={"a": later, "b": np.full(2, later, np.uint8)},
            )
            view = source.refresh()
            slots = np.arange(n)
            after = view.episodes.next_observation(slots)
            found = view.rows.gather(after, ("observation.a", "observation.b"))
            assert len(view) == n and found["observation.a"].tolist() == (slots + 13).tolist()
            assert found["observation.b"].tolist() == [[k, k] for k in range(13, uid + 14)]
        assert looks == [1] * 60


def test_a_version_that_the_workspace_lacks_is_refused_by_name() -> None:
    with (
        rc.create_workspace("w", PLAIN) as ws,
        pytest.raises(NotFound, match="'w' has no version 0123 of its schema"),
    ):
        ws.live().pinned(rc.Cut((), ()), 0, "0123")
