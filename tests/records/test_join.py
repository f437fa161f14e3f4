"""Joined views: against a dict of rows, against their parts alone, and against the same rows in one view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.records.join import JoinedView, Readings
from recollect.view.changes import change, listed
from tests.samplers.made import assert_true_to
from tests.support import take

Loader: Any = rc.Loader

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "reward": rc.Tensor("float32"),
        "uid": rc.Tensor("int64"),
        "note": rc.Text(optional=True),
        "extra": rc.Tensor("float32", optional=True),
    },
    episode={"task": rc.Text()},
)


class Agents:
    """Interleaved episodes of two writers: terminated, truncated with and without what was seen next, open."""

    def __init__(self, ws: rc.Workspace, seed: int = 0, first: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.writers = [ws.writer(durability="process") for _ in range(2)]
        self.episodes = [self._open(k) for k in range(4)]
        self.uid = first

    def _open(self, k: int) -> Any:
        return self.writers[k % 2].episode(task="ab"[k % 2])

    def act(self, count: int) -> None:
        for _ in range(count):
            k, end = int(self.rng.integers(4)), self.rng.random()
            self.episodes[k].append(
                observation=[self.uid, k],
                reward=float(self.uid % 17),
                uid=self.uid,
                note=f"n{self.uid}" if self.uid % 3 else None,
                extra=None if self.uid % 4 else 1.0,
                terminated=bool(end < 0.1),
                truncated=bool(0.1 <= end < 0.2),
                next_observation=[-self.uid, k] if end < 0.15 or self.uid % 5 == 0 else None,
            )
            self.uid += 1
            if end < 0.2:
                self.episodes[k] = self._open(k)


FIELDS = ["observation", "reward", "uid", "note", "extra"]


def rows(view: Any, n: int = 3) -> dict[tuple[int, int], tuple[Any, ...]]:
    """StepId → everything that a batch says of the row, n-step returns included. Each drawable row comes once."""
    out: dict[tuple[int, int], tuple[Any, ...]] = {}
    loader = Loader(view, batch_size=7, seed=1, epochs=1, output="numpy", transforms=[rc.NStep(n, 0.5)], fields=FIELDS)
    for batch in loader:
        names = [k for k in batch if k != "note"]
        for i, key in enumerate(map(tuple, batch.ids.tolist())):
            assert key not in out, "a row was drawn twice"
            values = [batch[name][i].tobytes() for name in names]
            valid = [(name, bool(v[i])) for name, v in sorted(batch.valid.items())]
            out[key] = (*names, *values, *valid, batch["note"][i])
    return out


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are made in the folder that one is in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def both() -> Any:
    """A workspace, its snapshot, what came after it, and a buffer of others."""
    ws, other = rc.create_workspace("w", SCHEMA), rc.create_workspace("o", SCHEMA)
    agents, others = Agents(ws), Agents(other, 1, 10_000)
    agents.act(120)
    others.act(80)
    ws.snapshot(to="first", tag="t")
    other.snapshot(to="second", tag="t")
    agents.act(60)
    return ws, rc.open_buffer("first").at("t"), rc.open_buffer("second").at("t"), agents


@pytest.mark.parametrize("order", ["cold first", "hot first"])
def test_a_join_is_the_dict_of_its_parts_and_the_first_part_that_draws_a_row_keeps_it(both: Any, order: str) -> None:
    ws, cold, second, _ = both
    parts = {"cold": cold, "hot": ws.view(), "second": second}
    if order == "hot first":
        parts = {"hot": parts["hot"], "cold": cold, "second": second}
    model: dict[Any, Any] = {}
    home: dict[Any, str] = {}
    for name, view in parts.items():
        for key, row in rows(view).items():
            if key not in model:
                model[key], home[key] = row, name
    joined = rc.join(**parts)
    assert isinstance(joined, JoinedView) and len(joined) == len(model)
    assert rows(joined) == model
    names = list(parts)
    got: dict[Any, str] = {}
    for batch in Loader(joined, batch_size=16, seed=0, epochs=1):
        assert batch.part is not None and batch.part.dtype == np.int8
        got |= {tuple(i): names[k] for i, k in zip(batch.ids.tolist(), batch.part.tolist(), strict=True)}
    assert got == home
    twice = len(rows(parts[names[0]]).keys() & rows(parts[names[1]]).keys())
    assert twice and joined.duplicates == {names[1]: twice}
    assert joined.cut.rows == sum(v.cut.rows for v in parts.values())
    assert rc.Cut.from_dict(json.loads(json.dumps(joined.cut.to_dict()))) == joined.cut


def test_slots_ids_and_marks_agree(both: Any) -> None:
    ws, cold, second, _ = both
    joined = rc.join(cold, ws.view(), second)
    slots = listed(joined.anchors)
    assert (np.diff(slots) > 0).all() and joined.anchors.mask(slots).all()
    assert np.array_equal(joined.rows.find(joined.rows.ids(slots)), slots)
    assert np.array_equal(joined.anchors.ranks(slots), np.arange(len(slots)))
    held = np.setdiff1d(listed(joined.given["1"].anchors), listed(joined.parts["1"].anchors)) | (1 << 48)
    assert len(held) == joined.duplicates["1"]
    assert not joined.anchors.mask(held).any() and joined.anchors.complete(held).all()
    assert joined.anchors.mask(joined.rows.find(joined.rows.ids(held))).all(), "an id is found where it is drawn"


def test_windows_stay_in_their_part(both: Any) -> None:
    """An episode that goes on in the workspace after the snapshot ends in the snapshot's part, for sequences too."""
    ws, cold, _, _ = both
    joined = rc.join(cold=cold, hot=ws.view())
    loader = Loader(joined, rc.Sequence(6, burn_in=3, stride=2), batch_size=64, seed=0, output="numpy", steps=20)
    alone = dict(joined.given)
    for batch in loader:
        for i, part in enumerate(batch.part.tolist()):
            ids = batch.step_ids[i][batch.mask[i]]
            view = list(alone.values())[part]
            assert (view.rows.find(ids) >= 0).all()
            episodes = view.rows.gather(view.rows.find(ids), ("episode_writer", "episode"))
            assert len({*zip(*(c.tolist() for c in episodes.values()), strict=True)}) == 1
            start = view.rows.find(batch.ids[i : i + 1])
            assert view.rows.gather(start, ("step",))["step"][0] % 2 == 0


@pytest.mark.parametrize("last", [None, 40])
@pytest.mark.parametrize("live_first", [False, True])
def test_a_growing_join_says_at_every_moment_what_one_made_from_scratch_says(last: Any, live_first: bool) -> None:
    """Two live views of one workspace that come and go differently, beside a snapshot of it."""
    with rc.create_workspace("w", SCHEMA) as ws:
        agents = Agents(ws)
        agents.act(60)
        ws.snapshot(to="b", tag="t")
        cold = rc.open_buffer("b").at("t")
        live, window = ws.live(), ws.live(last=last or 25)
        parts: dict[str, Any] = (
            {"window": window, "cold": cold, "live": live} if live_first else {"cold": cold, "window": window}
        )
        source: Any = rc.join(**parts)
        older = None
        for turn in range(30):
            view = source.at(turn)
            assert source.at(turn) is view
            scratch = JoinedView(view.given, Readings())
            assert listed(view.anchors).tolist() == listed(scratch.anchors).tolist()
            every = np.arange(len(view))
            assert np.array_equal(view.anchors.select(every), listed(scratch.anchors))
            ids = view.rows.ids(listed(view.anchors)).tolist()
            assert len(set(ids)) == len(ids)
            wanted: set[Any] = set()
            for part in view.given.values():
                wanted |= set(part.rows.ids(listed(part.anchors)).tolist())
            assert set(ids) == wanted
            if older is not None:
                before, after = set(listed(older.anchors).tolist()), set(listed(view.anchors).tolist())
                added, removed = change(older.anchors, view.anchors)
                assert added.tolist() == sorted(after - before)
                assert removed.tolist() == sorted(before - after)
            older = view
            agents.act(int(agents.rng.integers(0, 9)))


MIXED = [
    lambda: rc.Uniform(),
    lambda: rc.Prioritized(),
    lambda: rc.Prioritized(kind="rank"),
    lambda: rc.Reservoir(50),
    lambda: rc.Stratified("episode.task"),
    lambda: rc.Recent(30),
    lambda: rc.Mixture(cold=(0.3, rc.Prioritized()), live=(rc.Linear(0, 0.7, 9), rc.Prioritized(kind="rank"))),
    lambda: rc.Sequence(4, stride=2, inner=rc.Mixture(cold=(1, rc.Prioritized()), live=(1, rc.Uniform()))),
]


@pytest.mark.parametrize("make", MIXED)
@pytest.mark.parametrize("growing", [False, True])
def test_a_loader_on_a_join_goes_on_bit_for_bit_at_every_batch(make: Any, growing: bool) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        agents = Agents(ws)
        agents.act(70)
        ws.snapshot(to="b", tag="t")
        cold = rc.open_buffer("b").at("t").where("uid < 50")

        def loader() -> Any:
            return Loader(
                rc.join(cold=cold, live=ws.live(last=60) if growing else ws.view()),
                make(),
                batch_size=12,
                seed=3,
                output="numpy",
                transforms=[rc.NStep(2, 0.9)],
            )

        agents.act(20)
        mine = loader()
        for step in range(10):
            batch = next(mine)
            if mine._drawing.known.takes_feedback:
                mine.update_priorities(batch.ids, agents.rng.exponential(size=12))
            state = json.loads(json.dumps(mine.state_dict()))
            other = loader()
            other.load_state_dict(state)
            assert json.loads(json.dumps(other.state_dict())) == state
            assert take(other, 4) == take(mine, 4)
            if growing:
                agents.act(int(agents.rng.integers(0, 12)))
            assert step < 10


def test_a_mixture_has_its_exact_shares_of_real_parts_and_schedules(both: Any) -> None:
    _, cold, second, _ = both
    mixture = rc.Mixture(
        a=(rc.Linear(0.0, 1.0, steps=10), rc.Uniform()), b=(rc.Linear(1.0, 0.0, steps=10), rc.Recent(9))
    )
    with Loader(rc.join(a=cold, b=second), mixture, batch_size=20, seed=0, steps=12, output="numpy") as loader:
        for step, batch in enumerate(loader):
            share = min(step, 10) / 10
            assert np.bincount(batch.part, minlength=2).tolist() == [round(20 * share), 20 - round(20 * share)]
            of = np.where(batch.part == 0, share / len(cold), (1 - share) / 9)
            assert np.allclose(batch.probability, of, rtol=1e-6)


def test_an_empty_part_gives_its_share_away_until_it_has_rows_and_priorities_reach_their_part(both: Any) -> None:
    _, cold, second, _ = both
    with rc.create_workspace("new", SCHEMA) as ws:
        source = rc.join(cold=cold, online=ws.live(), second=second)
        mixture = rc.Mixture(
            cold=(1, rc.Uniform()), online=(2, rc.Prioritized()), second=(1, rc.Prioritized(kind="rank"))
        )
        loader = Loader(source, mixture, batch_size=16, seed=0, lag=0, output="numpy")
        assert np.bincount(next(loader).part, minlength=3).tolist() == [8, 0, 8]
        Agents(ws, 5, 20_000).act(30)
        batch = next(loader)
        assert np.bincount(batch.part, minlength=3).tolist() == [4, 8, 4]
        assert (batch["uid"][batch.part == 1] >= 20_000).all()
        ids = np.concatenate([batch.ids, np.array([(1, 2)], batch.ids.dtype)])
        assert loader.update_priorities(ids, np.full(17, 5.0)) == (12, 5, 0)
        with pytest.raises(errors.ArgumentError, match="drawn"):
            Loader(rc.join(x=rc.create_workspace("none", SCHEMA).live()), batch_size=4, seed=0)


@pytest.mark.parametrize("make", [lambda: rc.Uniform(), lambda: rc.Prioritized(), lambda: rc.Stratified("terminated")])
def test_draws_of_a_join_are_true_to_the_chances_it_states(both: Any, make: Any) -> None:
    """And equal to those of the same rows in one view: by rank for a uniform draw, over all parts for the others."""
    _, cold, second, _ = both
    joined: Any = rc.join(cold, second)
    cursor = make().bind(joined, 7)
    slots = listed(joined.anchors)
    place = {int(s): k for k, s in enumerate(slots)}
    if cursor.takes_feedback:
        cursor.update(slots, np.linspace(0.2, 3.0, len(slots)))
    counts, stated = np.zeros(len(slots), np.int64), np.full(len(slots), np.nan)
    for step in range(1500):
        draw = cursor.draw(step, 64)
        at = [place[int(s)] for s in draw.keys[0]]
        np.add.at(counts, at, 1)
        stated[at] = np.broadcast_to(draw.probability, draw.keys.shape)[0]
    assert np.nansum(stated) == pytest.approx(1)
    assert_true_to(counts, stated)


def test_a_join_of_one_part_draws_what_the_part_alone_draws_hot_and_cold() -> None:
    """Equal cuts, equal seeds: equal batches, for every sampler."""
    with rc.create_workspace("w", SCHEMA) as ws:
        agents = Agents(ws)
        agents.act(150)
        for e in agents.episodes:
            e.close()
        ws.snapshot(to="b", tag="t")
        cold = rc.open_buffer("b").at("t")
        hot = ws.view(cold.cut)
        for make in MIXED[:6]:

            def batches(view: Any, make: Any = make) -> list[Any]:
                loader = Loader(view, make(), batch_size=9, seed=11, output="numpy", transforms=[rc.NStep(3, 0.9)])
                out = []
                for _ in range(8):
                    batch = next(loader)
                    out.append({k: batch[k].tobytes() for k in batch} | {"ids": batch.ids.tobytes()})
                    if loader._drawing.known.takes_feedback:
                        loader.update_priorities(batch.ids, batch["reward"].astype(float) % 7)
                return out

            alone = batches(cold)
            assert batches(hot) == alone and batches(rc.join(x=cold)) == alone and batches(rc.join(x=hot)) == alone


def test_conditions_and_windows_of_a_join_are_those_of_its_parts(both: Any) -> None:
    ws, cold, second, _ = both
    joined = rc.join(cold=cold, hot=ws.view(), second=second)
    chosen = joined.where("episode.task = 'a' and reward > 3")
    want: dict[Any, Any] = {}
    for part in reversed(list(joined.given.values())):
        want |= rows(part.where("episode.task = 'a' and reward > 3"))
    assert rows(chosen) == want
    narrow: Any = joined.narrow(last=10)
    assert [len(p) for p in narrow.given.values()] == [10, 10, 10]
    a = Loader(chosen, batch_size=4, seed=0)
    with pytest.raises(errors.ArgumentError, match="where"):
        Loader(joined, batch_size=4, seed=0).load_state_dict(a.state_dict())


def test_a_loader_on_a_join_advances_to_later_versions(both: Any) -> None:
    ws, cold, second, _ = both
    loader = Loader(rc.join(a=cold, b=second), rc.Prioritized(), batch_size=8, seed=0, output="numpy")
    next(loader)
    ws.snapshot(to="first", tag="later")
    later = rc.open_buffer("first").at("later")
    loader.advance(rc.join(a=later, b=second))
    state = loader.state_dict()
    other = Loader(rc.join(a=later, b=second), rc.Prioritized(), batch_size=8, seed=0, output="numpy")
    other.load_state_dict(json.loads(json.dumps(state)))
    assert take(other, 6) == take(loader, 6)
    with pytest.raises(errors.ArgumentError, match="later version"):
        loader.advance(rc.join(a=later))


OTHER = rc.Schema(
    {
        "camera": rc.Tensor("float32", (2,), role="observation"),
        "gain": rc.Tensor("float16", role="reward"),
        "uid": rc.Tensor("int32", optional=True),
        "note": rc.Text(),
        "own": rc.Tensor("float32"),
    }
)


def test_schemas_that_differ_are_read_as_what_they_have_in_common(both: Any) -> None:
    _, cold, _, _ = both
    with rc.create_workspace("p", OTHER) as ws:
        with ws.writer() as writer, writer.episode() as episode:
            for k in range(9):
                episode.append(
                    camera=[k, -k], gain=k / 4, uid=None if k % 2 else k, note=f"m{k}", own=1.0, terminated=k == 8
                )
        joined = rc.join(a=cold, p=ws.view())
        assert joined.left_out == {"a": ("extra",), "p": ("own",)}
        field: Any = joined.schema.by_path["uid"].field
        assert field.dtype == "int64" and field.optional
        got = {}
        for batch in Loader(
            joined.where("reward < 2"),
            batch_size=7,
            seed=0,
            epochs=1,
            output="numpy",
            fields=["observation", "reward", "uid", "note"],
        ):
            assert batch["uid"].dtype == np.int64 and batch["reward"].dtype == np.float32
            for i in np.flatnonzero(batch.part == 1).tolist():
                got[float(batch["observation"][i][0])] = (
                    float(batch["observation"][i][1]),
                    float(batch["reward"][i]),
                    int(batch["uid"][i]),
                    bool(batch.valid["uid"][i]),
                    batch["note"][i],
                    float(batch["next_observation"][i][0]),
                )
            mine = batch.part == 0
            assert batch.valid["uid"][mine].all()
            found = cold.rows.find(batch.ids[mine])
            assert np.array_equal(cold.rows.gather(found, ("uid",))["uid"], batch["uid"][mine])
        assert got == {float(k): (-k, k / 4, 0 if k % 2 else k, k % 2 == 0, f"m{k}", float(k + 1)) for k in range(8)}
        state = json.loads(json.dumps(Loader(joined.where("reward < 2"), batch_size=7, seed=0).state_dict()))
        assert "reward" in state["where"]


BAD = [
    ({"observation": rc.Tensor("float32", (3,)), "reward": rc.Tensor("float32")}, "shape"),
    ({"observation": rc.Tensor("int64", (2,)), "reward": rc.Tensor("float32")}, "dtype"),
    ({"observation": rc.Frames((2, 2)), "reward": rc.Tensor("float32")}, "type"),
    ({"observation": rc.Tensor("float32", (2,))}, "reward"),
    (
        {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "action": rc.Tensor("int64")},
        "action",
    ),
]


@pytest.mark.parametrize(("fields", "word"), BAD, ids=[word for _, word in BAD])
def test_schemas_that_cannot_be_one_are_refused_by_name(fields: Any, word: str) -> None:
    a, b = rc.create_workspace("a", SCHEMA), rc.create_workspace("b", rc.Schema(fields))
    with pytest.raises(errors.SchemaMismatch, match=word) as caught:
        rc.join(first=a.view(), second=b.view())
    assert "'first'" in str(caught.value) and "'second'" in str(caught.value) and caught.value.remedy


def test_what_is_no_join_is_refused(both: Any) -> None:
    ws, cold, second, _ = both
    with pytest.raises(errors.ArgumentError, match="parts"):
        rc.join()
    with pytest.raises(errors.ArgumentError, match="'0' is a join"):
        rc.join(rc.join(cold, second))
    wrong: Any
    for wrong in (3, rc.open_buffer("first").rotate("t")):
        with pytest.raises(errors.ArgumentError, match="'x' is no view"):
            rc.join(cold, x=wrong)
    with pytest.raises(errors.ArgumentError, match="parts"):
        rc.Mixture(a=(1, rc.Uniform())).bind(rc.join(b=cold), 0)
    taken = Loader(rc.join(a=cold, live=ws.live()), batch_size=4, seed=0).state_dict()
    with pytest.raises(errors.ArgumentError, match="other parts"):
        Loader(rc.join(b=cold, live=ws.live()), batch_size=4, seed=0).load_state_dict(taken)
    with pytest.raises(errors.ArgumentError, match="other rows"):
        Loader(rc.join(a=second, live=ws.live()), batch_size=4, seed=0).load_state_dict(taken)


def test_a_part_whose_schema_evolves_is_read_on() -> None:
    """A field that is wider in one part is wider in the join; one that is new in one part is left out."""
    with rc.create_workspace("w", SCHEMA) as ws:
        agents = Agents(ws)
        agents.act(60)
        ws.snapshot(to="b", tag="t")
        cold = rc.open_buffer("b").at("t")

        def loader() -> Any:
            mixture = rc.Mixture(cold=(1, rc.Prioritized()), live=(1, rc.Prioritized()))
            return Loader(rc.join(cold=cold, live=ws.live()), mixture, batch_size=16, seed=0, output="numpy")

        mine = loader()
        agents.act(60)
        assert next(mine)["reward"].dtype == np.float32
        fields: dict[str, Any] = {leaf.path: leaf.field for leaf in SCHEMA.leaves}
        fields |= {"reward": rc.Tensor("float64"), "more": rc.Tensor("float32", optional=True)}
        ws.evolve(rc.Schema(fields, {"task": rc.Text()}))
        agents.act(40)
        for _ in range(4):
            batch = next(mine)
            state = json.loads(json.dumps(mine.state_dict()))
            other = loader()
            other.load_state_dict(state)
            assert take(other, 5) == take(mine, 5)
        assert batch["reward"].dtype == np.float64 and "more" not in batch
        assert mine.view.left_out == {"live": ("more",)}
        assert np.array_equal(batch["reward"], batch["uid"] % 17)
        assert mine.update_priorities(batch.ids, np.ones(16)).applied == 16
