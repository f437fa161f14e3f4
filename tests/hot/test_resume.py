"""Episodes that another writer goes on with."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.files import is_locked
from recollect.hot.format.segment import ROWS_MASK
from recollect.hot.read.log import WriterLog
from recollect.hot.read.turns import Turns
from recollect.hot.write import resume
from recollect.view import Cut, EpisodeKey, Extent
from tests.support import python, run_python

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "action": rc.Tensor("int64", ())}, episode={"task": rc.Text()}
)
STACKED = rc.Schema({"observation": rc.Frames((2, 2), stack=3, pad="repeat"), "action": rc.Tensor("int64", ())})
AGENT = """
import sys
import recollect as rc
ws = rc.open_workspace("w")
writer = ws.writer(durability="process")
episode = writer.episode("long", task="t")
for i in range(4):
    episode.append(observation=[i, i], action=i, next_observation=[i + 1, i + 1])
print(writer.id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ws() -> Iterator[rc.Workspace]:
    with rc.create_workspace("w", SCHEMA) as ws:
        yield ws


def _steps(ws: rc.Workspace, cut: Cut | None = None) -> dict[int, tuple[int, Any]]:
    """Drawable steps: step → (action, the next observation's first number)."""
    view = ws.view(cut)
    slots = view.anchors.select(np.arange(len(view)))
    got = view.rows.gather(slots, ("step", "action"))
    after = view.rows.gather(view.episodes.next_observation(slots), ("observation",))["observation"]
    columns = (got["step"].tolist(), got["action"].tolist(), after.tolist())
    return {s: (a, o[0]) for s, a, o in zip(*columns, strict=True)}


def _append(episode: Any, start: int, stop: int, **last: Any) -> None:
    for i in range(start, stop):
        more = last if i == stop - 1 else {}
        episode.append(observation=[i, i], action=i, next_observation=[i + 1, i + 1], **more)


def _killed_agent() -> int:
    child = python(AGENT)
    assert child.stdout is not None
    writer = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return writer


def test_an_episode_goes_on_after_its_writer_was_killed(ws: rc.Workspace) -> None:
    dead = _killed_agent()
    ws = rc.open_workspace("w")
    with ws.writer() as writer:
        with writer.resume_episode("long") as episode:
            assert (episode.key, episode.id) == (EpisodeKey(dead, 0), "long")
            _append(episode, 4, 7, terminated=True)
        with pytest.raises(errors.EpisodeError, match="has ended"):
            writer.resume_episode("long")
    record = ws.episode("long")
    assert record["action"].tolist() == list(range(7))
    assert record.facts["task"] == "t"
    assert _steps(ws) == {i: (i, float(i + 1)) for i in range(7)}
    view = ws.view()
    slots = view.episodes.rows_of(EpisodeKey(dead, 0))
    assert (view.episodes.offset(slots[:1], 6) == slots[6]).all()


def test_a_different_first_observation_does_not_replace_the_one_that_waited(ws: rc.Workspace) -> None:
    _killed_agent()
    ws = rc.open_workspace("w")
    with ws.writer() as writer, writer.resume_episode("long") as episode:
        episode.append(observation=[40, 40], action=4, next_observation=[5, 5], terminated=True)
    assert _steps(ws) == {0: (0, 1.0), 1: (1, 2.0), 2: (2, 3.0), 3: (3, 4.0), 4: (4, 5.0)}


def test_a_step_without_a_next_observation_is_followed_by_the_first_resumed_one(ws: rc.Workspace) -> None:
    with ws.writer() as writer, writer.episode("a") as episode:
        episode.append(observation=[0, 0], action=0)
    assert _steps(ws) == {}
    with ws.writer() as writer, writer.resume_episode("a") as episode:
        episode.append(observation=[1, 1], action=1, terminated=True, next_observation=[2, 2])
    assert _steps(ws) == {0: (0, 1.0), 1: (1, 2.0)}


def test_it_goes_on_from_writer_to_writer_and_says_when_it_is_interrupted(ws: rc.Workspace) -> None:
    keys = set()
    for k in range(5):
        with ws.writer() as writer:
            episode = writer.episode("a") if k == 0 else writer.resume_episode("a")
            if k:
                assert ws.episode("a").facts.get("status") is None
            _append(episode, 3 * k, 3 * k + 3)
            keys.add(episode.key)
            episode.close()
        assert ws.episode("a").facts["status"] == "interrupted"
    assert len(keys) == 1
    assert ws.episode("a")["action"].tolist() == list(range(15))
    assert _steps(ws) == {i: (i, float(i + 1)) for i in range(15)}


def test_an_episode_that_is_open_in_a_live_writer_is_refused(ws: rc.Workspace) -> None:
    with ws.writer() as one, ws.writer() as two:
        episode = one.episode("a")
        _append(episode, 0, 2)
        with pytest.raises(errors.EpisodeError, match="still open in writer"):
            two.resume_episode("a")
        episode.close()
        resumed = two.resume_episode("a")
        with pytest.raises(errors.EpisodeError, match=f"still open in writer {two.id}"):
            one.resume_episode("a")
        with pytest.raises(errors.EpisodeError, match="has ended"):
            _append(episode, 2, 3)
        _append(resumed, 2, 3)
    with pytest.raises(errors.NotFound), ws.writer() as writer:
        writer.resume_episode("nobody's")


def test_of_many_that_resume_at_once_one_wins(ws: rc.Workspace) -> None:
    with ws.writer() as writer, writer.episode("a") as episode:
        _append(episode, 0, 2)
    won: list[Any] = []
    refused: list[Exception] = []
    writers = [ws.writer() for _ in range(6)]

    def resume(writer: Any) -> None:
        try:
            won.append(writer.resume_episode("a"))
        except errors.EpisodeError as e:
            refused.append(e)

    threads = [threading.Thread(target=resume, args=(w,)) for w in writers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (len(won), len(refused)) == (1, 5)


def test_resumed_frames_are_stacked_on_those_of_the_other_writer() -> None:
    with rc.create_workspace("w", STACKED) as ws:
        frames = [np.full((2, 2), 10 * (i + 1), np.uint8) for i in range(8)]
        with ws.writer() as writer, writer.episode("a") as episode:
            for i in range(4):
                episode.append(observation=frames[i], action=i)
        with ws.writer() as writer, writer.resume_episode("a") as episode:
            stack = np.stack(frames[2:5])
            episode.append(observation=stack, action=4)
            with pytest.raises(errors.FieldError, match="is not the one stored before it"):
                episode.append(observation=np.stack([frames[0], frames[1], frames[5]]), action=5)
            episode.append(observation=frames[5], action=5)
        newest = ws.recent(2)
        assert [s.fields["observation"][:, 0, 0].tolist() for s in newest] == [[40, 50, 60], [30, 40, 50]]
        assert ws.episode("a")["observation"][5][:, 0, 0].tolist() == [40, 50, 60]


def test_a_cut_holds_resumed_rows_only_with_their_predecessors(ws: rc.Workspace, tmp_path: Path) -> None:
    with ws.writer() as one, ws.writer() as two:
        first = one.episode("a")
        _append(first, 0, 3)
        other = rc.open_workspace("w")
        store = other._hot()
        store.cut()
        stale = store.logs[one.id].rows
        _append(first, 3, 5)
        first.close()
        _append(two.resume_episode("a"), 5, 8)
        log = store.logs[one.id]
        refresh = log.refresh
        refreshed = []

        def late() -> None:
            refreshed.append(1)
            if len(refreshed) > 1:
                refresh()

        log.refresh = late  # type: ignore[method-assign]
        assert log.rows == stale
        cut = other.cut()
        assert len(refreshed) == 2
        assert {e.writer: e.stop for e in cut.extents} == {one.id: 6, two.id: 3}


def test_rows_whose_predecessors_are_lost_stay_out_of_the_cut(ws: rc.Workspace, tmp_path: Path) -> None:
    """A folder copied while agents write: the first log is older in the copy than the second."""
    import shutil

    with ws.writer() as one, ws.writer() as two:
        first = one.episode("a")
        _append(first, 0, 3)
        (tmp_path / "copy/log").mkdir(parents=True)
        shutil.copytree(ws.path / "log" / f"{one.id:016x}", tmp_path / "copy/log" / f"{one.id:016x}")
        _append(first, 3, 5)
        first.close()
        _append(two.episode("b"), 0, 2)
        _append(two.resume_episode("a"), 5, 8)
        shutil.copytree(ws.path / "log" / f"{two.id:016x}", tmp_path / "copy/log" / f"{two.id:016x}")
        for name in ("workspace.json", "schema.json"):
            shutil.copy(ws.path / name, tmp_path / "copy" / name)
        copied = rc.open_workspace(tmp_path / "copy")
        assert set(copied.cut().extents) == {Extent(one.id, 0, 3), Extent(two.id, 0, 2)}
        assert {w.writer: (w.appended, w.visible) for w in copied.stats().writers}[two.id] == (5, 2)


def test_resumed_rows_are_promoted_and_read_back_in_order(ws: rc.Workspace, tmp_path: Path) -> None:
    with ws.writer() as writer, writer.episode("a") as episode:
        _append(episode, 0, 3)
    ws.snapshot(tmp_path / "buffer")
    with ws.writer() as writer, writer.resume_episode("a") as episode:
        _append(episode, 3, 6, terminated=True)
    ws.snapshot(tmp_path / "buffer")
    cold = rc.open_buffer(tmp_path / "buffer").at()
    hot = ws.view(cold.cut)
    for view in (cold, hot):
        slots = view.episodes.rows_of(ws.episode("a").key)
        assert view.rows.gather(slots[:6], ("action",))["action"].tolist() == list(range(6))
        assert view.facts.episodes[ws.episode("a").key].get("status") is None
    assert len(cold) == len(hot) == 6


def test_a_forked_child_may_not_resume(ws: rc.Workspace) -> None:
    with ws.writer() as writer, writer.episode("a") as episode:
        _append(episode, 0, 2)
    with ws.writer() as writer:
        pid = os.fork()
        if not pid:
            try:
                writer.resume_episode("a")
            except errors.WriterError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0


# -- who has an episode, and what it holds ----------------------------------------------------------------


def _logged(ws: rc.Workspace, name: str | EpisodeKey) -> list[int]:
    return ws.episode(name)["step"].tolist()  # type: ignore[no-any-return]


def test_steps_appended_while_somebody_looks_whether_the_writer_lives_are_not_overlooked(
    ws: rc.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ws.writer(), rc.open_workspace("w").writer()
    first = one.episode("a")
    _append(first, 0, 1)

    def slow(path: Path) -> bool:
        if one.is_open:
            _append(first, 1, 3)
            one.close()
        return is_locked(path)

    monkeypatch.setattr("recollect.hot.write.resume.is_locked", slow)
    _append(two.resume_episode("a"), 3, 4)
    two.close()
    assert _logged(ws, "a") == [0, 1, 2, 3]


def test_frames_that_a_dead_writer_never_counted_come_before_the_resumed_ones(ws: rc.Workspace) -> None:
    columns = {"observation": np.zeros((4, 2), np.float32), "action": np.arange(4)}
    pid = os.fork()
    if not pid:
        writer = rc.open_workspace("w").writer(durability="process")
        lanes = writer.lanes(4)
        lanes.append(**columns)
        writer._log.publish = lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        lanes.append(**columns)
    os.waitpid(pid, 0)
    key = ws.recent(1)[0].episode
    with ws.writer() as writer, writer.resume_episode(key) as episode:
        _append(episode, 100, 102)
    assert _logged(ws, key) == [0, 1, 2, 3]
    assert rc.open_workspace("w").recovered == []


def test_a_resumption_is_durable_before_the_first_resumed_row(ws: rc.Workspace) -> None:
    _killed_agent()
    ws = rc.open_workspace("w")
    with ws.writer(durability="process") as writer:
        writer.resume_episode("long")
        segment = ws._hot().log(writer.id).segments[0]
        assert segment.durable_word == segment.word
        assert (segment.word >> 32, segment.word & ROWS_MASK) == (1, 1)  # the observation that waited is a row


def test_rows_whose_resumption_is_lost_are_counted(ws: rc.Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with ws.writer() as writer, writer.episode("a") as episode:
        _append(episode, 0, 2)
    with ws.writer() as writer:
        lost = writer.id
        _append(writer.resume_episode("a"), 2, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Turns, "scan", lambda turns, spans, stop: None)
        ws = rc.open_workspace("w")
        assert not ws._hot().log(lost).resumed
        with ws.writer() as writer:
            key, last = ws.episode("a").key, writer.id
            _append(writer.resume_episode("a"), 4, 5)
    assert _logged(ws, "a") == [0, 1, 2, 3, 4]
    assert set(dict(rc.open_workspace("w")._hot().log(last).resumed[key][0].after)) == {key.writer, lost}


def test_a_status_from_elsewhere_opens_no_door(ws: rc.Workspace) -> None:
    with ws.writer() as one, ws.writer() as two:
        _append(one.episode("a"), 0, 2)
        ws.annotate("a", status="interrupted")
        with pytest.raises(errors.EpisodeError, match=f"still open in writer {one.id}"):
            two.resume_episode("a")


def test_an_episode_that_was_judged_early_goes_on_after_it_was_closed(ws: rc.Workspace) -> None:
    with ws.writer() as one, ws.writer() as two:
        first = one.episode("a")
        _append(first, 0, 2)
        first.finish(status="good")
        with pytest.raises(errors.EpisodeError, match="still open"):
            two.resume_episode("a")
        first.close()
        with two.resume_episode("a") as second:
            _append(second, 2, 3)
        assert ws.episode("a").facts == {"status": "good"}
        with one.resume_episode("a") as third:
            _append(third, 3, 4, terminated=True)
        first.close()
    assert _logged(ws, "a") == [0, 1, 2, 3]


def test_closing_an_old_handle_leaves_the_resumed_episode_open(ws: rc.Workspace) -> None:
    with ws.writer() as writer, ws.writer() as other:
        first = writer.episode("a")
        _append(first, 0, 2)
        first.close()
        _append(writer.resume_episode("a"), 2, 3)
        first.close()
        with pytest.raises(errors.EpisodeError, match="still open"):
            other.resume_episode("a")
    assert ws.episode("a").facts["status"] == "interrupted"
    assert not ws.episode("a").derived


def test_the_order_of_resumptions_does_not_come_from_clocks(ws: rc.Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with ws.writer() as one, ws.writer() as two, ws.writer() as three:
        episode = one.episode("a")
        _append(episode, 0, 1)
        for writer, hours in ((two, 2), (three, 1)):
            episode.close()
            monkeypatch.setattr(writer._log, "now", lambda h=hours: 10**18 + h * 3600 * 10**9)
            episode = writer.resume_episode("a")
        with pytest.raises(errors.EpisodeError, match=f"still open in writer {three.id}"):
            one.resume_episode("a")


def test_a_resumption_leaves_no_status_where_none_was(ws: rc.Workspace) -> None:
    _killed_agent()
    ws = rc.open_workspace("w")
    with ws.writer() as writer:
        writer.resume_episode("long")
        assert ws.episode("long").facts == {"task": "t"}


@pytest.mark.parametrize("order", [(0,), (1, 0), (0, 1, 0), (1, 0, 1), (1, 2, 1), (0, 0, 1, 0)])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_stacks_reach_back_through_every_resumption(order: tuple[int, ...], count: int) -> None:
    with rc.create_workspace("w", STACKED) as ws, ws.writer() as a, ws.writer() as b, ws.writer() as c:
        writers, n = (a, b, c), 0
        episode = a.episode("a")
        for writer, steps in ((None, 1), *((writers[k], count) for k in order), (b, 1)):
            if writer is not None:
                episode.close()
                episode = writer.resume_episode("a")
            for _ in range(steps):
                n += 1
                episode.append(observation=np.full((2, 2), n, np.uint8), action=n)
        want = [[max(1, i - 2), max(1, i - 1), i] for i in range(1, n + 1)]
        assert [o[:, 0, 0].tolist() for o in ws.episode("a")["observation"]] == want
        for k in range(1, n + 1):
            got = {s.fields["action"]: s.fields["observation"][:, 0, 0].tolist() for s in ws.recent(k)}
            assert got == {i: want[i - 1] for i in got}
            assert len(got) == k


def test_a_second_resumption_in_one_log_waits_for_its_predecessors_too(ws: rc.Workspace) -> None:
    with ws.writer() as one, ws.writer() as two:
        with one.episode("a") as episode:
            _append(episode, 0, 1)
        for k, writer in enumerate((two, one, two), 1):
            with writer.resume_episode("a") as episode:
                _append(episode, k, k + 1)
        store = rc.open_workspace("w")._hot()
        rows = {w: store.log(w).rows for w in (one.id, two.id)}
        turns = store.log(two.id).resumed[episode.key]
        assert [r.turn for r in turns] == [1, 3]
        stops = store.with_predecessors({two.id: rows[two.id], one.id: dict(turns[0].after)[one.id]})
        assert stops == {two.id: rows[two.id], one.id: rows[one.id]}


@pytest.mark.parametrize("annotate", [False, True])
@pytest.mark.parametrize("resumer", ["none", "alive", "dead"])
def test_counts_and_episodes_agree_on_what_was_interrupted(ws: rc.Workspace, resumer: str, annotate: bool) -> None:
    _killed_agent()
    ws = rc.open_workspace("w")
    if resumer == "dead":
        pid = os.fork()
        if not pid:
            rc.open_workspace("w").writer().resume_episode("long")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        ws = rc.open_workspace("w")
    writer = ws.writer()
    if resumer == "alive":
        writer.resume_episode("long")
    if annotate:
        ws.annotate("long", lesson="slow")
    over = resumer != "alive"
    assert ws.stats().interrupted == over
    assert ws.episode("long").derived == ({"status"} if over else set())


def test_opening_cleanly_closed_logs_reads_no_fact(ws: rc.Workspace) -> None:
    with ws.writer() as writer:
        for i in range(50):
            with writer.episode(f"run-{i}", task="t") as episode:
                _append(episode, 0, 2, terminated=True)
    ws.close()
    code = 'import sys; import recollect as rc; rc.open_workspace("w"); print("numba" in sys.modules)'
    assert run_python(code).strip() == "False", "checksums are computed with numba"


def test_a_damaged_resumption_is_refused_every_time_it_is_needed(ws: rc.Workspace) -> None:
    with ws.writer() as writer:
        writer.episode("long", task="t").append(observation=[0, 0], action=0, next_observation=[1, 1])
    with ws.writer() as writer:
        writer.resume_episode("long").append(observation=[1, 1], action=1, next_observation=[2, 2])
        folder = ws.path / "log" / f"{writer.id:016x}"
    log = WriterLog(folder, ws._hot().layouts)
    log.refresh()
    segment = log.segments[0]
    at = segment.facts.ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data
    with open(segment.path, "r+b") as file:
        file.seek(at + segment.facts.itemsize // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    for _ in range(2):
        with pytest.raises(errors.CorruptionError):
            _ = log.resumed
    with rc.open_workspace("w") as again:
        for _ in range(2):
            with pytest.raises(errors.CorruptionError):
                again.view()


def test_going_on_makes_the_names_of_the_files_before_it_durable(
    ws: rc.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(resume, "sync_folder", flushed.append)
    first, second = ws.writer(durability="process"), ws.writer(durability="process")
    with first.episode("long", task="t") as episode:
        _append(episode, 0, 2)
    second.resume_episode("long")
    assert flushed == [ws.path / "log" / f"{first.id:016x}"], "a segment that was never synced may lose its name"
