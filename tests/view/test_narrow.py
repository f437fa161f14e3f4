"""Windows and other narrowings: against lists, on views that stay and on views that grow."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.view.changes import listed
from tests.support import take

FIELDS: Any = {
    "observation": rc.Tensor("float32"),
    "reward": rc.Tensor("float32"),
    "uid": rc.Tensor("int64"),
    "version": rc.Tensor("int64", role="policy_version", optional=True),
}
BY_FIELD = rc.Schema(FIELDS)
BY_FACT = rc.Schema({k: v for k, v in FIELDS.items() if k != "version"}, {"policy_version": rc.Tensor("int64")})
SECOND = 10**9


class Writing:
    """Three interleaved episodes, at times that a clock of its own says."""

    def __init__(self, ws: rc.Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ws, self.rng, self.now = ws, np.random.default_rng(0), 3 * 10**18
        monkeypatch.setattr("recollect.hot.write.append._clock", lambda: self.now)
        self.writers = [ws.writer(durability="process") for _ in range(2)]
        self.by_field = "version" in ws.view().schema.by_path
        self.version, self.uid = 0, 0
        self.episodes = [self.open(k) for k in range(3)]
        self.facts: dict[int, dict[str, Any]] = {}

    def open(self, k: int) -> Any:
        facts: dict[str, Any] = {} if self.by_field else {"policy_version": self.version}
        return self.writers[k % 2].episode(**facts), self.version

    def act(self, count: int) -> None:
        for _ in range(count):
            self.now += int(self.rng.integers(1, 5)) * SECOND
            self.version += int(self.rng.random() < 0.1)
            k, end = int(self.rng.integers(3)), bool(self.rng.random() < 0.15)
            episode, version = self.episodes[k]
            fields: dict[str, Any] = {"observation": 0.0, "reward": float(self.uid), "uid": self.uid}
            if self.by_field:
                version = None if self.uid % 9 == 8 else self.version
                fields["version"] = version
            episode.append(**fields, terminated=end)
            self.facts[self.uid] = {"time": self.now, "version": version}
            if end:
                self.episodes[k] = self.open(k)
            self.uid += 1

    def expected(self, base: Any, last: Any = None, age: Any = None, policy_lag: Any = None) -> list[int]:
        """The uids that a window leaves of a view's drawable rows, in order."""
        uids = base.rows.gather(listed(base.anchors), ("uid",))["uid"].tolist()
        out = uids[-last:] if last else uids
        newest_rows = out
        if age is not None:
            newest = max(self.facts[u]["time"] for u in newest_rows)
            out = [u for u in out if self.facts[u]["time"] >= newest - age * SECOND]
        if policy_lag is not None:
            known = [v for u in newest_rows if (v := self.facts[u]["version"]) is not None]
            least = max(known) - policy_lag
            out = [u for u in out if (v := self.facts[u]["version"]) is not None and v >= least]
        kept: list[int] = out
        return kept


def uids(view: Any) -> list[int]:
    out: list[int] = view.rows.gather(listed(view.anchors), ("uid",))["uid"].tolist()
    return out


WINDOWS: list[dict[str, Any]] = [
    {"last": 7},
    {"last": 10**6},
    {"age": 30},
    {"age": 0},
    {"policy_lag": 0},
    {"policy_lag": 2},
    {"last": 40, "age": 60, "policy_lag": 3},
    {"age": 40, "policy_lag": 2},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("schema", [BY_FIELD, BY_FACT], ids=["field", "fact"])
@pytest.mark.parametrize("last", [None, 50])
def test_a_window_moves_with_the_view_and_holds_what_a_list_holds(
    window: Any, schema: Any, last: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", schema) as ws:
        writing = Writing(ws, monkeypatch)
        writing.act(60)
        source = ws.live(last=last)
        narrow = source.narrow(**window)
        for turn in range(15):
            view = narrow.at(turn)
            base = view.narrowed_from
            assert base is not None and narrow.at(turn) is view
            assert uids(view) == writing.expected(base, **window)
            assert uids(base.narrow(**window)) == uids(view)
            assert uids(base.narrow(rc.Window(**window))) == uids(view)
            assert view.anchors.complete(listed(base.anchors)).all(), "windows reach what is not drawn"
            writing.act(int(writing.rng.integers(0, 12)))


def test_a_condition_on_a_growing_source_is_asked_of_new_rows_and_again_when_facts_come() -> None:
    with rc.create_workspace("w", BY_FACT) as ws:
        writer = ws.writer()
        source = ws.live()
        chosen = source.where("episode.policy_version >= 1 and reward > 2")
        episodes = []
        for k in range(4):
            with writer.episode() as episode:
                for i in range(5):
                    episode.append(observation=0.0, reward=float(i), uid=10 * k + i, terminated=i == 4)
            episodes.append(episode)
        assert uids(chosen.at(0)) == []
        episodes[2].finish(policy_version=3)
        assert uids(chosen.at(1)) == [23, 24]
        episodes[2].finish(policy_version=0)
        episodes[0].finish(policy_version=1)
        assert uids(chosen.at(2)) == [3, 4]
        both = ws.live().narrow(last=10).where("reward > 2")
        assert uids(both.at(0)) == [23, 24, 33, 34]


def test_only_new_rows_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    columns = rc.Window.columns

    def noted(self: rc.Window, view: rc.View, slots: Any) -> Any:
        looked.append(len(slots))
        return columns(self, view, slots)

    monkeypatch.setattr(rc.Window, "columns", noted)
    with rc.create_workspace("w", BY_FIELD) as ws:
        writing = Writing(ws, monkeypatch)
        writing.act(50)
        source = ws.live().narrow(age=20)
        first = len(source.at(0).narrowed_from or ())
        writing.act(3)
        source.at(1)
        assert looked[0] == first and sum(looked[1:]) <= 6


NARROWED: list[Any] = [
    lambda s: s.narrow(last=20, policy_lag=4),
    lambda s: s.where("reward > 30"),
    lambda s: s.narrow(even),
]


@pytest.mark.parametrize("make", NARROWED, ids=["window", "condition", "function"])
@pytest.mark.parametrize("sampler", [rc.Uniform, rc.Prioritized])
def test_a_loader_on_a_moving_window_goes_on_bit_for_bit(
    make: Any, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", BY_FIELD) as ws:
        writing = Writing(ws, monkeypatch)
        writing.act(80)

        def loader() -> rc.Loader:
            return rc.Loader(make(ws.live(last=70)), sampler(), batch_size=8, seed=0, output="numpy")

        mine = loader()
        for _ in range(6):
            next(mine)
            writing.act(4)
            state = json.loads(json.dumps(mine.state_dict()))
            other = loader()
            other.load_state_dict(state)
            assert take(other, 4) == take(mine, 4)
        with pytest.raises(errors.ArgumentError, match="where"):
            rc.Loader(ws.live(last=70), sampler(), batch_size=8, seed=0, output="numpy").load_state_dict(state)


def even(view: rc.View, slots: Any) -> Any:
    return view.rows.gather(slots, ("uid",))["uid"] % 2 == 0


def test_a_function_narrows_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", BY_FIELD) as ws:
        Writing(ws, monkeypatch).act(30)
        view = ws.view()
        narrow = view.narrow(even)
        assert uids(narrow) == [u for u in uids(view) if u % 2 == 0]
        assert narrow.restriction == f"{__name__}.even"
        assert narrow.narrow(last=3).restriction == f"({__name__}.even) and (window last=3)"
        assert uids(narrow.narrow(last=3)) == uids(narrow)[-3:]
        with pytest.raises(errors.ArgumentError, match="bool for each"):
            view.narrow(lambda view, slots: slots)
        with pytest.raises(errors.ArgumentError, match="nothing can be drawn"):
            rc.Loader(view.narrow(lambda view, slots: slots < 0), batch_size=4, seed=0)


def test_what_is_no_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"last": 0}, {"age": -1}, {"policy_lag": -1}, {"last": True}, {"age": float("nan")}):
        with pytest.raises(errors.ArgumentError, match=next(iter(options), "window")):
            rc.Window(**options)
    assert rc.Window(age=timedelta(minutes=1)) == rc.Window(age=60.0)
    with rc.create_workspace("w", rc.Schema({"uid": rc.Tensor("int64")})) as ws:
        with pytest.raises(errors.NotFound, match="policy version"):
            ws.view().narrow(policy_lag=1)
        with pytest.raises(errors.ArgumentError, match="both"):
            ws.view().narrow(rc.Window(last=1), last=1)
        with pytest.raises(errors.ArgumentError, match="narrowed by"):
            ws.view().narrow("uid > 1")  # type: ignore[arg-type]
