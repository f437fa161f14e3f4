"""Loaders on sources of growing views: what each batch may hold, and the very next batch after a resume."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.records import grow
from tests.loader.test_loader import Fed, _Log
from tests.support import batch_bits, python, take

PLAIN = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
)


class _Actors:
    """Interleaved episodes of two writers, a step at a time."""

    def __init__(self, ws: rc.Workspace) -> None:
        self.writers = [ws.writer(durability="process") for _ in range(2)]
        self.episodes = [w.episode() for w in self.writers for _ in range(2)]
        self.steps = [0] * 4
        self.uid = 0

    def act(self, count: int) -> None:
        for _ in range(count):
            k = self.uid % 4
            end = self.uid % 11 == 10
            self.episodes[k].append(
                observation=[self.uid, self.steps[k]],
                reward=float(self.uid),
                uid=self.uid,
                terminated=end,
                next_observation=[self.uid + 0.5, 0] if self.uid % 3 == 0 else None,
            )
            self.uid += 1
            self.steps[k] += 1
            if end:
                self.episodes[k] = self.writers[k // 2].episode()
                self.steps[k] = 0


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("feedback", [False, True], ids=["uniform", "feedback"])
def test_batch_k_plus_lag_is_drawn_from_what_is_published_at_the_next_of_batch_k(lag: int, feedback: bool) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        actors = _Actors(ws)
        actors.act(20)
        sampler = Fed(_Log()) if feedback else rc.Uniform()
        loader = rc.Loader(ws.live(), sampler, batch_size=512, seed=0, lag=lag, output="numpy")
        newest = []
        for _ in range(12):
            newest.append(int(next(loader)["uid"].max()))
            actors.act(4)
        drawn = np.array(newest)
        # At the next() of batch k, 20 + 4k steps are there; up to four of them wait for their successors.
        want = 20 + 4 * np.maximum(np.arange(12) - lag, 0) - 1
        assert (drawn <= want).all() and (drawn >= want - 4).all()
        assert drawn[-1] > drawn[lag], "later batches hold newer rows"


@pytest.mark.parametrize("last", [None, 30])
@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("feedback", [False, True], ids=["uniform", "feedback"])
def test_a_resumed_loader_goes_on_bit_for_bit(
    last: int | None, lag: int, feedback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was drawn from older views is given out as it was drawn; what is drawn next comes in the order of the
    source that the state was taken on."""
    monkeypatch.setattr(grow, "KEPT_ROWS", 16)

    with rc.create_workspace("w", PLAIN) as ws:

        def make() -> rc.Loader:
            sampler = Fed(_Log()) if feedback else rc.Uniform()
            return rc.Loader(
                ws.live(last=last),
                sampler,
                batch_size=8,
                seed=3,
                lag=lag,
                output="numpy",
                transforms=[rc.NStep(2, gamma=0.5)],
            )

        actors = _Actors(ws)
        actors.act(25)
        loader = make()
        for position in range(24):
            actors.act(int(position % 3) * 2)
            next(loader)
            if position % 5 == 4:
                state = json.loads(json.dumps(loader.state_dict()))
                after = rc.open_workspace("w").cut()
                resumed = make()
                resumed.load_state_dict(state)
                assert json.loads(json.dumps(resumed.state_dict())) == state
                assert take(resumed, 2 * lag + 3) == take(loader, 2 * lag + 3)
                assert rc.open_workspace("w").cut() == after


def test_a_resumed_loader_sees_what_was_appended_since() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        actors = _Actors(ws)
        actors.act(40)
        loader = rc.Loader(ws.live(last=20), batch_size=64, seed=0, lag=0, output="numpy")
        next(loader)
        state = loader.state_dict()
        actors.act(200)
        ws.writer().episode().append(observation=[0, 0], reward=0.0, uid=-1, next_observation=[0, 0])
        again = rc.Loader(ws.live(last=20), batch_size=64, seed=0, lag=0, output="numpy")
        again.load_state_dict(state)
        uids = next(again)["uid"]
        assert ((uids >= 200) | (uids == -1)).all(), "rows that had left the window before came back"
        assert batch_bits(next(again)) != batch_bits(next(again))


def test_batches_stay_what_they_were_while_views_grow_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids and step numbers are read when somebody asks, which may be long after the rows left the window."""
    monkeypatch.setattr(grow, "KEPT_ROWS", 4)
    with rc.create_workspace("w", PLAIN) as ws:
        actors = _Actors(ws)
        actors.act(30)
        held = []
        names = {w.id for w in actors.writers}
        loader = rc.Loader(ws.live(last=30), batch_size=16, seed=0, output="numpy")
        for _ in range(20):
            batch = next(loader)
            held.append((batch, batch["uid"].copy(), batch["observation"].copy()))
            actors.act(13)
        scratch = ws.view()
        for batch, uid, observation in held:
            assert set(batch.ids["writer"].tolist()) <= names
            assert np.array_equal(scratch.rows.gather(scratch.rows.find(batch.ids), ("uid",))["uid"], uid)
            assert np.array_equal(batch["step_index"], observation[:, 1])
            assert np.array_equal(batch["uid"], uid) and np.array_equal(batch["observation"], observation)


ACTOR = """
import sys
import time
import recollect as rc
ws = rc.open_workspace(sys.argv[1])
with ws.writer() as writer:
    for k in range(150):
        episode = writer.episode()
        for t in range(20):
            uid = 20 * k + t
            episode.append(observation=[uid, t], reward=float(uid), uid=uid, terminated=t == 19,
                           next_observation=[uid + 1, t + 1])
        print(k, flush=True)
        time.sleep(0.005)
"""


@pytest.mark.parametrize("last", [None, 400])
def test_training_while_another_process_appends(last: int | None) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        children = [python(ACTOR, str(ws.path)) for _ in range(2)]
        try:
            for child in children:
                assert child.stdout is not None and child.stdout.readline() == "0\n"
            source = ws.live(last=last)
            loader = rc.Loader(source, batch_size=64, seed=0, output="numpy", lag=1)
            newest: list[int] = []
            while any(child.poll() is None for child in children) or len(newest) < 50:
                batch = next(loader)
                uid = batch["uid"]
                newest.append(int(uid.max()))
                assert np.array_equal(batch["observation"][:, 0], uid) and np.array_equal(batch["reward"], uid)
                assert np.array_equal(batch["next_observation"][:, 0], uid + 1)
                assert np.array_equal(batch["observation"][:, 1], batch["step_index"])
                assert np.array_equal(batch["terminated"], uid % 20 == 19)
                assert batch.valid["next_observation"].all()
        finally:
            for child in children:
                _, problems = child.communicate(timeout=60)
                assert child.returncode == 0, problems
        next(loader)
        view = source.at(0)
        assert view.cut.rows == (6300 if last is None else last)  # 150 episodes of 20 steps and a final row, twice
        if last is None:
            assert len(view) == 6000 == len(ws.view(view.cut))
        assert newest[0] < max(newest)


def test_what_a_growing_source_cannot_do_is_refused() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        with pytest.raises(errors.ArgumentError, match="nothing can be drawn"):
            rc.Loader(ws.live(), batch_size=2, seed=0)
        _Actors(ws).act(20)
        with pytest.raises(errors.ArgumentError, match="epochs"):
            rc.Loader(ws.live(), batch_size=2, seed=0, epochs=1)
        with pytest.raises(errors.ArgumentError, match="source"):
            rc.Loader(ws, batch_size=2, seed=0)  # type: ignore[arg-type]
        loader = rc.Loader(ws.live(), batch_size=2, seed=0)
        with pytest.raises(errors.ArgumentError, match="own views"):
            loader.advance(ws.view())
        with pytest.raises(errors.ArgumentError, match="growing"):
            rc.Loader(ws.view(), batch_size=2, seed=0).load_state_dict(loader.state_dict())
        with rc.create_workspace("other", PLAIN) as other:
            _Actors(other).act(20)
            next(loader)
            with pytest.raises(errors.NotFound, match="of writer"):
                rc.Loader(other.live(), batch_size=2, seed=0).load_state_dict(loader.state_dict())


def test_a_window_in_which_nothing_can_be_drawn_is_waited_out() -> None:
    """The call that finds nothing fails; the loader goes on once something can be drawn."""
    with rc.create_workspace("w", PLAIN) as ws:
        episode = ws.writer().episode()
        values: dict[str, Any] = {"observation": [0, 0], "reward": 0.0}
        episode.append(uid=0, next_observation=[1, 0], **values)
        loader = rc.Loader(ws.live(last=1), batch_size=2, seed=0, lag=0, output="numpy")
        assert next(loader)["uid"].tolist() == [0, 0]
        episode.append(uid=1, **values)
        for _ in range(2):
            with pytest.raises(errors.ArgumentError, match="nothing can be drawn"):
                next(loader)
        episode.append(uid=2, next_observation=[1, 0], **values)
        assert next(loader)["uid"].tolist() == [2, 2]


# -- a schema that evolves -------------------------------------------------------------------------------------------

WIDER = rc.Schema(
    {
        "observation": rc.Tensor("float64", (2,)),
        "reward": rc.Tensor("float32"),
        "uid": rc.Tensor("int64", optional=True),
        "score": rc.Tensor("int16", optional=True),
        "level": rc.Tensor("float32", default=0.5),
        "note": rc.Text(default="none"),
    }
)


class _Evolving:
    """Episodes of 12 steps one after the other, each by a writer of its own. The schema evolves with step 96, unless it
    does not."""

    def __init__(self, ws: rc.Workspace, *, evolves: bool = True) -> None:
        self.ws, self.evolves, self.uid = ws, evolves, 0
        self.writers: list[rc.Writer] = []

    def act(self, count: int) -> None:
        for _ in range(count):
            if self.uid % 12 == 0:
                if self.uid == 96 and self.evolves:
                    self.ws.evolve(WIDER)
                self.writers.append(self.ws.writer(durability="process"))
                self.episode = self.writers[-1].episode()
            uid = self.uid
            more: dict[str, Any] = {}
            if "score" in self.writers[-1].layout.schema.by_path:
                more = {"score": uid, "level": float(uid)}
            self.episode.append(observation=[uid, 0], reward=float(uid), uid=uid, next_observation=[uid + 1, 0], **more)
            self.uid += 1


def _loader(ws: rc.Workspace, last: int | None, **options: Any) -> rc.Loader:
    given = {"batch_size": 16, "seed": 5, "lag": 2, "output": "numpy", **options}
    return rc.Loader(ws.live(last=last), **given)


@pytest.mark.parametrize("last", [None, 40])
@pytest.mark.parametrize("named", [False, True])
def test_a_loader_goes_on_over_an_evolution_and_draws_the_same_rows(
    last: int | None, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grow, "KEPT_ROWS", 16)
    with rc.create_workspace("a", PLAIN) as a, rc.create_workspace("b", PLAIN) as b:
        worlds = [_Evolving(a), _Evolving(b, evolves=False)]
        for world in worlds:
            world.act(12)
        options: dict[str, Any] = {"fields": ["observation", "uid"]} if named else {}
        options["transforms"] = [] if named else [rc.NStep(2, gamma=0.5)]
        loader, plain = (_loader(ws, last, **options) for ws in (a, b))
        wide = 0
        for k in range(50):
            batch, other = next(loader), next(plain)
            uid = batch["uid"]
            assert np.array_equal(uid, other["uid"]) and batch.step == other.step == k
            for name in other.keys():  # noqa: SIM118
                assert np.array_equal(batch[name], other[name]), name
            assert np.array_equal(batch["observation"][:, 0], uid)
            assert other["observation"].dtype == np.float32
            if batch["observation"].dtype == np.float64:
                wide += 1
                assert batch["next_observation"].dtype == np.float64 and batch.valid["uid"].all()
                assert set(batch.keys()) - set(other.keys()) == (set() if named else {"score", "level"})
                if not named:
                    assert np.array_equal(batch.valid["score"], uid >= 96)
                    assert np.array_equal(batch["score"], np.where(uid >= 96, uid, 0))
                    assert np.array_equal(batch["level"], np.where(uid >= 96, uid, np.float32(0.5)))
            else:
                assert batch.keys() == other.keys() and not wide
            for world in worlds:
                world.act(3)
        # Step 96 comes after batch 28; batches 29 and 30 were drawn by then.
        assert wide == 50 - 31


def test_a_name_that_stands_for_nested_fields_holds_what_is_new_there() -> None:
    fields: dict[str, Any] = {"a": rc.Tensor("float32")}
    with rc.create_workspace("w", rc.Schema({"info": fields, "uid": rc.Tensor("int64")})) as ws:
        ws.writer().episode().append(info={"a": 1.0}, uid=0)
        loader = _loader(ws, None, fields=["info"], lag=0)
        assert next(loader)["info"].keys() == {"a"}
        ws.evolve(rc.Schema({"info": {**fields, "b": rc.Tensor("float32", default=2.0)}, "uid": rc.Tensor("int64")}))
        info = next(loader)["info"]
        assert info["a"].tolist() == [1.0] * 16 and info["b"].tolist() == [2.0] * 16


@pytest.mark.parametrize("last", [None, 40])
@pytest.mark.parametrize("at", [24, 28, 29, 30, 31, 33])
def test_a_loader_resumed_over_an_evolution_goes_on_bit_for_bit(
    last: int | None, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States from before it, from when batches drawn before it were still to come, and from after it."""
    monkeypatch.setattr(grow, "KEPT_ROWS", 16)
    with rc.create_workspace("w", PLAIN) as ws:
        world = _Evolving(ws)
        world.act(12)
        loader = _loader(ws, last)
        for _ in range(at):
            next(loader)
            world.act(3)
        state = json.loads(json.dumps(loader.state_dict()))
        world.act(120 - world.uid)
        assert ws.schema == WIDER
        resumed = _loader(rc.open_workspace("w"), last)
        resumed.load_state_dict(state)
        assert json.loads(json.dumps(resumed.state_dict())) == state
        batches = take(loader, 6)
        assert take(resumed, 6) == batches
        assert "level" in batches[-1]
        assert ("level" in batches[0]) == (at >= 31)


def test_batches_keep_the_schema_that_they_were_drawn_with() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        world = _Evolving(ws)
        world.act(90)
        loader = _loader(ws, 40)
        before = next(loader)
        kept = batch_bits(before)
        world.act(60)
        for _ in range(5):
            next(loader)
        assert batch_bits(before) == kept and "level" not in before
        assert set(before.ids["seq"].tolist()) <= set(range(12))


@pytest.mark.parametrize("lag", [1, 3])
def test_a_resumed_loader_whose_views_go_on_growing_draws_from_the_newest(lag: int) -> None:
    """Its state names several views; those that follow take their place."""
    with rc.create_workspace("w", PLAIN) as ws:
        actors = _Actors(ws)
        actors.act(20)
        loader = rc.Loader(ws.live(), batch_size=512, seed=0, lag=lag, output="numpy")
        for _ in range(6):
            next(loader)
            actors.act(4)
        resumed = rc.Loader(ws.live(), batch_size=512, seed=0, lag=lag, output="numpy")
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        for _ in range(lag + 4):
            assert batch_bits(next(resumed)) == batch_bits(next(loader))
            actors.act(4)
        assert next(resumed)["uid"].max() > 20 + 4 * 6
