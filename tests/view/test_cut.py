"""Ids, cuts and views as values."""

from __future__ import annotations

import json

import numpy as np
import pytest

import recollect as rc
from recollect import Cut, Extent, StepId, errors
from recollect.view import merged


def test_a_step_id_reads_back_from_its_text() -> None:
    for id in (StepId(0, 0), StepId(2**63 - 1, 2**40)):
        assert StepId.parse(str(id)) == id


@pytest.mark.parametrize(
    "text", ["", "1", "1:", ":1", "a:1", "1:b", "-1:1", "1:-1", "1:2:3", " 1:2", "1.0:2", "²:1", "١:1"]
)
def test_text_that_is_no_step_id_is_refused(text: str) -> None:
    with pytest.raises(errors.ArgumentError, match="writer:seq"):
        StepId.parse(text)


def test_a_default_episode_id_spells_its_key() -> None:
    key = rc.EpisodeKey(2**62, 17)
    assert rc.EpisodeKey.parse_default_id(key.default_id) == key
    for text in ("", "e", "e1", "e1.", "x1.2", "e1.x", "e-1.2"):
        assert rc.EpisodeKey.parse_default_id(text) is None


def test_a_cut_survives_json_with_numbers_above_53_bits() -> None:
    cut = Cut((Extent(2**63 - 1, 0, 5), Extent(3, 2, 9)), ((2**62 + 1, 4),))
    assert Cut.from_dict(json.loads(json.dumps(cut.to_dict()))) == cut
    assert cut.rows == 12


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ([], []),
        ([(1, 0, 0)], []),
        ([(1, 0, 2), (1, 2, 5)], [(1, 0, 5)]),
        ([(1, 0, 2), (1, 3, 5)], [(1, 0, 2), (1, 3, 5)]),
        ([(1, 0, 2), (2, 2, 5), (1, 2, 3)], [(1, 0, 2), (2, 2, 5), (1, 2, 3)]),
        ([(1, 2, 4), (1, 0, 2)], [(1, 2, 4), (1, 0, 2)]),
    ],
)
def test_adjacent_extents_join(given: list[tuple[int, int, int]], want: list[tuple[int, int, int]]) -> None:
    assert merged(Extent(*e) for e in given) == tuple(Extent(*e) for e in want)


@pytest.mark.parametrize(
    ("new", "old", "extends"),
    [
        ([(1, 0, 5)], [], True),
        ([(1, 0, 5)], [(1, 0, 5)], True),
        ([(1, 0, 9)], [(1, 0, 5)], True),
        ([(1, 0, 4)], [(1, 0, 5)], False),
        ([(1, 0, 5), (2, 0, 3)], [(1, 0, 5)], True),
        ([(1, 0, 9), (2, 0, 3)], [(1, 0, 5), (2, 0, 3)], False),
        ([(2, 0, 3), (1, 0, 5)], [(1, 0, 5)], False),
        ([(1, 0, 5), (2, 0, 3), (1, 5, 9)], [(1, 0, 5), (2, 0, 3)], True),
        ([(1, 0, 5), (2, 0, 4)], [(1, 0, 5), (2, 0, 3)], True),
        ([(1, 1, 5)], [(1, 0, 5)], False),
        ([], [(1, 0, 1)], False),
    ],
)
def test_a_later_cut_keeps_every_slot(
    new: list[tuple[int, int, int]], old: list[tuple[int, int, int]], extends: bool
) -> None:
    make = [Cut(tuple(Extent(*e) for e in cut), ()) for cut in (new, old)]
    assert make[0].extends(make[1]) is extends


def test_rows_are_found_by_id_and_unknown_ids_are_not() -> None:
    schema = rc.Schema({"uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws:
        for k in range(3):
            with ws.writer().episode() as episode:
                for i in range(4):
                    episode.append(uid=10 * k + i)
        view = ws.view()
        slots = np.arange(len(view.rows))
        ids = view.rows.ids(slots)
        assert np.array_equal(view.rows.find(ids), slots)
        ids["seq"] += 100
        assert (view.rows.find(ids) == -1).all()


def test_a_view_does_not_change_while_its_workspace_grows() -> None:
    schema = rc.Schema({"observation": rc.Tensor("int64"), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        episode.append(observation=0, uid=0, next_observation=1)
        view = ws.view()
        cut = view.cut
        for i in range(1, 50):
            episode.append(observation=i, uid=i, next_observation=i + 1)
        assert (len(view.rows), len(view), view.cut) == (1, 1, cut)
        again = ws.view(cut=cut)
        assert len(again) == 1
        batch = next(rc.Loader(again, batch_size=1, seed=0, output="numpy"))
        assert batch["next_observation"].tolist() == [1]


def test_a_cut_of_another_workspace_is_refused() -> None:
    schema = rc.Schema({"uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        episode.append(uid=0)
        writer = ws.cut().extents[0].writer
        with pytest.raises(errors.RecollectError):
            ws.view(cut=Cut((Extent(writer, 0, 9),), ()))
        with pytest.raises(errors.NotFound, match="12345"):
            ws.view(cut=Cut((Extent(12345, 0, 1),), ()))


def test_windows_stay_inside_their_episode() -> None:
    """Neighbours by offset, against the lists the episodes were written from."""
    rng = np.random.default_rng(0)
    schema = rc.Schema({"observation": rc.Tensor("int64"), "uid": rc.Tensor("int64")})
    lengths = [int(n) for n in rng.integers(1, 9, 7)]
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        episodes = [writer.episode() for _ in lengths]
        todo = [k for k, n in enumerate(lengths) for _ in range(n)]
        done = [0] * len(lengths)
        for k in rng.permutation(todo):
            t = done[k]
            last = t == lengths[k] - 1
            episodes[k].append(
                observation=t, uid=100 * k + t, terminated=last, next_observation=t + 1 if last and k % 2 else None
            )
            done[k] += 1
        view = ws.view()
        step = np.flatnonzero(~view.episodes.is_final)
        uid = view.rows.gather(step, ("uid",))["uid"]
        at = dict(zip(uid.tolist(), step.tolist(), strict=True))
        for offset in (-3, -1, 0, 1, 2, 5):
            got = view.episodes.offset(step, offset)
            for u, slot in zip(uid.tolist(), got.tolist(), strict=True):
                k, t = divmod(u, 100)
                inside = 0 <= t + offset < lengths[k]
                final = t + offset == lengths[k] and k % 2
                if inside:
                    assert slot == at[u + offset]
                else:
                    assert bool(final) == (slot >= 0)
        for k, n in enumerate(lengths):
            rows = view.episodes.rows_of(episodes[k].key)
            assert len(rows) == n + k % 2
            assert view.rows.gather(rows[:n], ("uid",))["uid"].tolist() == [100 * k + t for t in range(n)]
        assert not len(view.episodes.rows_of(rc.EpisodeKey(1, 2)))
