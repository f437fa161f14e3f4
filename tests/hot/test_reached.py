"""Episodes whose newest steps were evicted: no index is used twice, whatever is left of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.evicted import read_evicted
from recollect.hot.format.files import sync_file
from recollect.hot.format.first import read_first
from recollect.hot.read.catalog import Catalog
from recollect.view import EpisodeKey
from tests.hot.retaining import SCHEMA, evictions_cut_short, small_segments, write_episodes

__all__ = ["small_segments"]
pytestmark = pytest.mark.usefixtures("small_segments")
ALL = rc.Keep(age=1e-6, unpromoted="drop")
"""Nothing stays but what is being written."""


@pytest.fixture
def ws() -> Iterator[rc.Workspace]:
    with rc.create_workspace("w", SCHEMA) as ws:
        yield ws


def _append(episode: Any, start: int, stop: int, **last: Any) -> None:
    for i in range(start, stop):
        episode.append(observation=[i, i], reward=1.0, uid=i, **(last if i == stop - 1 else {}))


def _steps(ws: rc.Workspace, key: EpisodeKey) -> list[int]:
    view = ws.view()
    slots = view.episodes.rows_of(key)
    return sorted(view.rows.gather(slots, ("step",))["step"].tolist())


def _evict(ws: rc.Workspace) -> None:
    ws.set_keep(ALL)
    assert ws.evict().rows


def _newest_gone(ws: rc.Workspace, shape: str) -> tuple[EpisodeKey, list[int]]:
    """An episode that loses its newest steps at the next eviction, with the indices that stay. All its writers stay
    open where only some of their segments go."""
    one, two = ws.writer(), ws.writer()
    episode = one.episode("a")
    if shape != "never by its opener":
        _append(episode, 0, 3)
    episode.close()
    start = 0 if shape == "never by its opener" else 3
    with two.resume_episode(episode.key) as resumed:
        _append(resumed, start, 6, **({"terminated": True} if shape == "ended" else {}))
    if shape == "by its opener again":
        with one.resume_episode(episode.key) as resumed:
            _append(resumed, 6, 9)
        write_episodes(one, 60)
        return episode.key, [3, 4, 5]
    if shape == "segment":
        write_episodes(two, 60)
    else:
        two.close()
    return episode.key, list(range(start))


SHAPES = ("log", "segment", "by its opener again", "ended", "never by its opener")


@pytest.mark.parametrize("shape", SHAPES)
def test_an_episode_that_lost_its_newest_steps_does_not_go_on(ws: rc.Workspace, shape: str) -> None:
    key, left = _newest_gone(ws, shape)
    _evict(ws)
    assert _steps(ws, key) == left
    for handle in (ws, rc.open_workspace("w")):
        with handle.writer() as writer, pytest.raises(errors.EpisodeError, match=r"evicted.*another attempt"):
            writer.resume_episode(key)
    assert _steps(ws, key) == left


def test_steps_that_went_while_newer_ones_stay_hinder_nobody(ws: rc.Workspace) -> None:
    key, _ = _newest_gone(ws, "log")
    with ws.writer() as three:
        with three.resume_episode(key) as episode:
            _append(episode, 6, 8)
        _evict(ws)
        assert _steps(ws, key) == [0, 1, 2, 6, 7]
        assert read_evicted(ws.path / "log").reached == {key: 6}
        with three.resume_episode(key) as episode:
            _append(episode, 8, 9)
        assert _steps(ws, key) == [0, 1, 2, 6, 7, 8]


def test_a_writer_that_has_the_episode_open_goes_on_where_it_was(ws: rc.Workspace) -> None:
    with ws.writer() as one, ws.writer() as two:
        with one.episode() as episode:
            _append(episode, 0, 3)
        resumed = two.resume_episode(episode.key)
        _append(resumed, 3, 6)
        write_episodes(two, 60)
        _evict(ws)
        _append(resumed, 6, 8)
        resumed.close()
        with one.resume_episode(episode.key) as again:
            _append(again, 8, 9)
        assert _steps(ws, episode.key) == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("shape", ["log", "segment"])
@pytest.mark.parametrize("point", range(6))
def test_an_eviction_killed_at_any_step_forgets_no_index(
    ws: rc.Workspace, shape: str, point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, left = _newest_gone(ws, shape)
    ws.set_keep(ALL)
    with evictions_cut_short(monkeypatch, point):
        try:
            ws.evict()
        except KeyboardInterrupt:
            pass
        else:
            assert point > 3
    with rc.open_workspace("w") as fresh:  # evicts too
        assert _steps(fresh, key) == left
        with fresh.writer() as writer, pytest.raises(errors.EpisodeError, match="evicted"):
            writer.resume_episode(key)


def test_an_eviction_that_ends_while_somebody_resumes_is_noticed(
    ws: rc.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rows that were seen goes the note of how far the episode had got."""
    key, _ = _newest_gone(ws, "log")
    _evict(ws)
    opener = next(w for w in ws._writers if w.id == key.writer)
    real, looked = Catalog.rows_of, list[int]()

    def rows_of(catalog: Catalog, *arguments: Any) -> Any:
        found = real(catalog, *arguments)
        looked.append(len(found.pieces))
        if len(looked) == 1:
            opener.close()
            assert ws.evict().rows == 3
            assert not read_evicted(ws.path / "log").reached
        return found

    other = rc.open_workspace("w")
    monkeypatch.setattr(Catalog, "rows_of", rows_of)
    with other.writer() as writer, pytest.raises(errors.EpisodeError, match="evicted"):
        writer.resume_episode(key)
    assert looked[0] and looked[-1] == 0


def test_an_episode_of_which_only_facts_are_left_does_not_begin_again(ws: rc.Workspace) -> None:
    with ws.writer() as writer, writer.episode() as episode:
        _append(episode, 0, 3)
    ws.annotate(episode.key, lesson="slow")
    _evict(ws)
    with ws.writer() as writer, pytest.raises(errors.EpisodeError, match="were evicted"):
        writer.resume_episode(episode.key)


@pytest.mark.parametrize("newest", [1, 2])
def test_frames_that_went_from_the_middle_of_an_episode_are_missed(newest: int) -> None:
    schema = rc.Schema({"observation": rc.Frames((2, 2), stack=3), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws:

        def append(episode: Any, start: int, stop: int) -> None:
            for i in range(start, stop):
                episode.append(observation=np.full((2, 2), 10 * i + 10, np.uint8), uid=i)

        with ws.writer() as one, ws.writer() as three:
            with one.episode() as episode:
                append(episode, 0, 3)
            with ws.writer() as two, two.resume_episode(episode.key) as resumed:
                append(resumed, 3, 6)
            with three.resume_episode(episode.key) as resumed:
                append(resumed, 6, 6 + newest)
            _evict(ws)
            if newest == 1:
                with pytest.raises(errors.EpisodeError, match="frames"):
                    three.resume_episode(episode.key)
                return
            with three.resume_episode(episode.key) as resumed:
                append(resumed, 8, 9)
            assert ws.recent(1)[0].fields["observation"][:, 0, 0].tolist() == [70, 80, 90]


@pytest.mark.parametrize("end", ["left", "ended"])
def test_what_is_noted_of_resumed_episodes_does_not_grow_without_end(ws: rc.Workspace, end: str) -> None:
    ws.set_keep(rc.Keep(rows=120, unpromoted="drop"))
    most = 0
    with ws.writer() as opener, ws.writer() as resumer:
        for k in range(150):
            with opener.episode(f"e{k}") as episode:
                _append(episode, 0, 8)
            for writer in (ws.writer(), resumer):
                with writer.resume_episode(episode.key) as resumed:
                    _append(resumed, 0, 8, **({"terminated": True} if writer is resumer and end == "ended" else {}))
                if writer is not resumer:
                    writer.close()
            if k % 10 == 9:
                ws.retainer.close()
                ws.evict()
                firsts = [read_first(folder) for folder in (ws.path / "log").glob("*[0-9a-f]")]
                carried = sum(len(f.resumed) + len(f.closed) for f in firsts)
                most = max(most, len(read_evicted(ws.path / "log").reached))
                assert carried < 100 and most < 100, (k, carried, most)
    assert most


def test_a_resumption_whose_episode_ended_in_what_went_is_forgotten(ws: rc.Workspace) -> None:
    """Its opener's rows stay at that eviction, and go at a later one, where nothing says any more that it ended."""
    with ws.writer() as resumer:
        with ws.writer() as opener:
            for _ in range(20):
                with opener.episode() as episode:
                    _append(episode, 0, 1)
                _append(resumer.resume_episode(episode.key), 1, 3, terminated=True)
            write_episodes(resumer, 60)
            _evict(ws)
            assert len(read_evicted(ws.path / "log").reached) == 20
        write_episodes(resumer, 60)
        ws.retainer.close()  # it evicts behind a roll too
        ws.evict()
        assert not read_first(ws.path / "log" / f"{resumer.id:016x}").resumed
        assert not read_evicted(ws.path / "log").reached


def test_a_segment_that_goes_while_its_log_is_flushed_is_not_missed(
    ws: rc.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ws.writer() as one, ws.writer() as two:
        write_episodes(one, 60)
        with one.episode() as episode:
            _append(episode, 0, 3)
        synced = list[Path]()

        def late(path: Path) -> None:
            if not synced:
                _evict(ws)
            synced.append(path)
            sync_file(path)

        monkeypatch.setattr("recollect.hot.write.resume.sync_file", late)
        with two.resume_episode(episode.key) as resumed:
            _append(resumed, 3, 4)
        assert not all(path.exists() for path in synced)
        assert _steps(ws, episode.key) == [0, 1, 2, 3]
