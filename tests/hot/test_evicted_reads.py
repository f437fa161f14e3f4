"""Growing views, indexes and resumed episodes while another process evicts: they go on with what is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, nullcontext

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.retention.retain import Retainer
from tests.hot.live_world import assert_same, everything
from tests.hot.retaining import evicting, evictor, small_segments
from tests.support import bits

__all__ = ["small_segments"]
pytestmark = pytest.mark.usefixtures("small_segments")
WORDS = rc.Schema(
    {"uid": rc.Tensor("int64"), "reward": rc.Tensor("float32"), "note": rc.Text()}, episode={"task": rc.Text()}
)
STACKED = rc.Schema(
    {"observation": rc.Frames((2, 2), stack=3), "uid": rc.Tensor("int64"), "reward": rc.Tensor("float32")}
)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """The process that evicts from workspace "w", in place of this one."""
    monkeypatch.setattr(Retainer, "after_roll", lambda self: None)
    rc.create_workspace("w").close()
    with evictor("w") as process:
        yield process


def _uids(view: rc.View) -> list[int]:
    rows = view.rows
    first = getattr(rows, "first", 0)
    uids: list[int] = rows.gather(np.arange(first, first + len(rows)), ("uid",))["uid"].tolist()
    return uids


def _write(episode: rc.Episode, first: int, count: int = 30) -> None:
    for uid in range(first, first + count):
        episode.append(uid=uid, reward=1.0, note=f"word{uid}", terminated=uid == first + 29)


def test_everything_goes_on_through_evictions_by_another_process(child: subprocess.Popen[str]) -> None:
    with rc.open_workspace("w") as ws, ws.writer(schema=WORDS) as writer:
        source, window = ws.live(), ws.live(last=200)
        looked: set[int] = set()
        for k in range(40):
            own = ws.writer() if k % 4 == 0 else writer
            with own.episode(f"e{k}", task=f"goal{k} of many") as episode:
                _write(episode, 30 * k)
            if own is not writer:
                own.close()
            ws.annotate(f"e{k}", lesson=f"lesson{k}")
            if k % 5:  # now and then rows go before the sources have seen them
                looked |= set(range(30 * k, 30 * k + 30))
                assert set(_uids(source.refresh())) >= looked
                assert _uids(window.refresh())[-30:] == list(range(30 * k, 30 * k + 30))
            evicting(child, 120)
            here, static = _uids(source.refresh()), _uids(ws.view())
            assert 120 <= len(static) < 400 or k < 10
            assert len(set(here)) == len(here) and set(here) >= looked | set(static)
            assert _uids(window.refresh())[-30:] == list(range(30 * k, 30 * k + 30))
            record = ws.episode(f"e{k}")
            assert record["uid"].tolist() == list(range(30 * k, 30 * k + 30))
            assert record.facts["task"] == f"goal{k} of many" and record.facts["lesson"] == f"lesson{k}"
            assert [s.fields["uid"] for s in ws.similar(f"goal{k}")] == [30 * k + 29]
            assert [s.fields["uid"] for s in ws.similar(f"lesson{k}")] == [30 * k + 29]
            assert [s.fields["uid"] for s in ws.similar(f"word{30 * k + 7}")] == [30 * k + 7]
            assert [s.fields["uid"] for s in ws.recent(3)] == [30 * k + 29, 30 * k + 28, 30 * k + 27]
        with pytest.raises(errors.NotFound):
            ws.episode("e0")
        assert not ws.similar("goal0") and not ws.similar("word7") and not ws.similar("lesson0")
        assert [p.what for p in ws.verify().problems] == []
        assert len(window.refresh().rows) == 200


def test_a_growing_view_draws_no_stack_that_reaches_into_evicted_steps(child: subprocess.Popen[str]) -> None:
    with rc.open_workspace("w") as ws, ws.writer(schema=STACKED) as writer, writer.episode() as episode:
        early = ws.live()
        for uid in range(400):
            episode.append(observation=np.full((2, 2), uid % 251, np.uint8), uid=uid, reward=1.0)
        before = bits(early.refresh().rows.gather(np.arange(400), ("uid",)))
        evicting(child, 100)
        late = ws.live()
        for source in (late, ws.live(last=1000)):
            view = source.refresh()
            assert view.anchors.undrawable_beheaded == 2 and len(view.rows) < 400
            assert_same(everything(view), everything(ws.view(view.cut)))
        for uid in range(400, 450):
            episode.append(observation=np.full((2, 2), uid % 251, np.uint8), uid=uid, reward=1.0)
        evicting(child, 100)
        view = late.refresh()
        assert view.anchors.undrawable_beheaded == 2 and _uids(view)[-1] == 449
        whole = early.refresh()
        assert whole.anchors.undrawable_beheaded == 0 and _uids(whole) == list(range(450))
        assert bits(whole.rows.gather(np.arange(400), ("uid",))) == before


def test_a_resumption_outlives_the_segment_it_was_noted_in(child: subprocess.Popen[str]) -> None:
    with rc.open_workspace("w") as ws:
        with ws.writer(schema=WORDS) as one, one.episode("long", task="t") as episode:
            _write(episode, 0, 10)
        two = ws.writer()
        resumed = two.resume_episode("long")
        _write(resumed, 10, 5)
        for k in range(1, 21):
            with two.episode(f"e{k}") as other:
                _write(other, 30 * k)
            resumed.append(uid=10_000 + k, reward=0.0, note="on")
        evicting(child, 120)
        for handle in (ws, rc.open_workspace("w")):
            with closing(handle) if handle is not ws else nullcontext():
                assert [e.writer for e in handle.cut().extents] == [two.id], "the log that it came from is gone"
                log = handle._hot().log(two.id)
                assert log.first.row > 0 and [r.key for r in log.first.resumed] == [rc.EpisodeKey(one.id, 0)]
                assert log.resumed.keys() == {rc.EpisodeKey(one.id, 0)}
                record = handle.episode("long")
                assert record["uid"].tolist()[-1] == 10_020 and record["step"].tolist()[-1] == 34
                assert record["step"].tolist() == list(range(35 - len(record), 35)), "the rows left, in their order"
                assert set(_uids(handle.live().refresh())) == set(_uids(handle.view()))
        resumed.close()
        two.close()
        with ws.writer() as three, three.resume_episode("long") as last:
            assert last.append(uid=20_000, reward=0.0, note="end", terminated=True).writer == three.id
        assert ws.episode("long")["step"].tolist()[-1] == 35
        assert [p.what for p in ws.verify().problems] == []


def test_an_episode_whose_frames_went_is_not_resumed(child: subprocess.Popen[str]) -> None:
    with rc.open_workspace("w") as ws:
        with ws.writer(schema=STACKED) as one:
            episode, uid = one.episode("a"), 0
            while not one._log.first_row:  # until one row is in the next segment
                episode.append(observation=np.zeros((2, 2), np.uint8), uid=uid, reward=1.0)
                uid += 1
        evicting(child, 1)
        assert len(ws.episode("a")) == 1
        with ws.writer() as two, pytest.raises(errors.EpisodeError, match="reaches back to were evicted"):
            two.resume_episode("a")
