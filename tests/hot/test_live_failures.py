"""Growing views after a look that failed or was interrupted: the next one brings what it would have brought."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.read import live
from recollect.hot.read.facts import FactSpans
from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.records.grow import Growing
from recollect.records.grown import GrownView
from recollect.view import View

_FIELDS = {"uid": rc.Tensor("int64"), "reward": rc.Tensor("float32")}
PLAIN = rc.Schema(_FIELDS)
NEWER = rc.Schema({**_FIELDS, "score": rc.Tensor("float32", optional=True)})


def _column(view: View, name: str) -> list[Any]:
    assert isinstance(view, GrownView)
    values: list[Any] = view.rows.gather(np.arange(view.moment.first, view.moment.stop), (name,))[name].tolist()
    return values


def _uids(view: View) -> list[int]:
    return _column(view, "uid")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), errors.CorruptionError("damaged")], ids=["stop", "damaged"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "where",
    [
        (Growing, "add"),
        (Growing, "change"),
        (Growing, "anchors"),
        (HotStore, "pieces"),
        (HotStore, "refresh"),
        (FactSpans, "about_steps"),
        (live.LiveSource, "_note_facts"),
        (live.LiveSource, "_add"),
        (live.LiveSource, "_change"),
    ],
    ids=lambda w: f"{w[0].__name__}.{w[1]}",
)
@pytest.mark.parametrize("last", [None, 4])
def test_a_look_that_fails_loses_nothing(
    last: int | None, where: tuple[type, str], late: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", PLAIN, durability="process") as ws, ws.writer() as one, ws.writer() as two:
        a, b = one.episode("a"), two.episode("b")
        ids = [a.append(uid=0, reward=0.0), b.append(uid=1, reward=0.0)]
        source, plain = ws.live(last), ws.live(last)
        before, _ = source.refresh(), plain.refresh()
        held = _uids(before)
        for uid in range(2, 6):
            ids.append((a, b)[uid % 2].append(uid=uid, reward=0.0))
        ws.annotate(ids[3], reward=7.0)
        a.finish(lesson="x")
        mark = source.mark(before)
        real = getattr(*where)

        def fail(*arguments: Any, **named: Any) -> None:
            if late:
                real(*arguments, **named)
            raise error

        with monkeypatch.context() as m:
            m.setattr(*where, fail)
            for _ in range(2):
                with pytest.raises(type(error)):
                    source.refresh()
        assert source.mark(before) == mark
        after = source.refresh()
        assert _uids(after) == _uids(plain.refresh()) and _column(after, "reward").count(7.0) == 1
        assert after.facts.episodes[a.key]["lesson"] == "x" and after.cut == plain.refresh().cut
        assert source.refresh() is after and _uids(before) == held
        a.append(uid=6, reward=0.0)
        assert _uids(source.refresh()) == _uids(plain.refresh())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), errors.CorruptionError("damaged")], ids=["stop", "damaged"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "where",
    [
        (Growing, "evolved"),
        (Growing, "change"),
        (Growing, "anchors"),
        (live.LiveSource, "_evolve"),
        (live, "translated"),
    ],
    ids=lambda w: f"{w[0].__name__}.{w[1]}",
)
@pytest.mark.parametrize("last", [None, 4])
def test_a_look_that_fails_over_an_evolution_loses_nothing(
    last: int | None, where: tuple[Any, str], late: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", PLAIN, durability="process") as ws, ws.writer() as old:
        episode = old.episode()
        ids = [episode.append(uid=uid, reward=0.0) for uid in range(3)]
        ws.annotate(ids[1], reward=5.0)
        source = ws.live(last)
        before = source.refresh()
        ws.evolve(NEWER)
        with ws.writer() as new, new.episode() as other:
            other.append(uid=3, reward=0.0, score=1.5)
            ws.annotate(ids[2], score=2.5)
            real = getattr(*where)

            def fail(*arguments: Any, **named: Any) -> None:
                if late:
                    real(*arguments, **named)
                raise error

            with monkeypatch.context() as m:
                m.setattr(*where, fail)
                for _ in range(2):
                    with pytest.raises(type(error)):
                        source.refresh()
            after = source.refresh()
            assert after.schema == NEWER and before.schema == PLAIN
            assert _uids(after) == [0, 1, 2, 3] and _column(after, "reward") == [0.0, 5.0, 0.0, 0.0]
            assert np.array_equal(_column(after, "score"), [np.nan, np.nan, 2.5, 1.5], equal_nan=True)
            assert _uids(before) == [0, 1, 2] and _column(before, "reward") == [0.0, 5.0, 0.0]
            assert source.refresh() is after


def test_a_log_that_is_sealed_between_two_looks_at_it_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come between the look at the counter and the seal are there at the next look."""
    with rc.create_workspace("w", PLAIN, durability="process") as ws:
        writer = ws.writer()
        episode = writer.episode()
        episode.append(uid=0, reward=0.0)
        source, store = ws.live(), ws._hot()
        real_open, real_sealed = source._open_logs, WriterLog.sealed.fget  # type: ignore[attr-defined]
        moments: list[str] = []

        def open_logs(at_work: Any) -> None:
            real_open(at_work)
            moments.append("looking")

        def sealed(log: WriterLog) -> bool:
            if moments == ["looking"]:
                moments.append("sealed")
                episode.finish(lesson="x")
                writer.close()
                store.refresh()
            return bool(real_sealed(log))

        monkeypatch.setattr(source, "_open_logs", open_logs)
        monkeypatch.setattr(WriterLog, "sealed", property(sealed))
        source.refresh()
        assert moments == ["looking", "sealed"]
        assert source.refresh().facts.episodes[episode.key]["lesson"] == "x"
