"""Blocks take turns: every row is drawn as if all were resident, in an order that depends on rows and seed alone."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cache.blocks import BlockCache
from recollect.cache.schedule import Schedule
from recollect.hot.format.files import locked
from tests.cache.buffers import SCHEMA as PLAIN
from tests.cache.buffers import append_rows, make_buffer
from tests.support import SCHEMAS, bits, flags_of, nest, next_of, order_of, random_trajectories, rows_of, take


def _write(folder: Path, kind: str, files: int, *, count: int = 24, seed: int = 3) -> Path:
    """A buffer whose episodes are interleaved and go on from one data file into the next."""
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng(seed)
    trajectories = random_trajectories(schema, rng, count=count, longest=40)
    order = order_of(trajectories, rng)
    with rc.create_workspace(f"w-{kind}", schema) as ws, ws.writer() as writer:
        episodes: dict[int, rc.Episode] = {}
        for k in range(files):
            for t, i in order[len(order) * k // files : len(order) * (k + 1) // files]:
                moment = trajectories[t].moments[i]
                if "reward" in moment.values:
                    moment.values["reward"] = np.nan_to_num(moment.values["reward"], posinf=7, neginf=-7)
                if t not in episodes:
                    episodes[t] = writer.episode()
                episodes[t].append(
                    **nest(moment.values), next_observation=next_of(moment.following), **flags_of(trajectories[t], i)
                )
            ws.snapshot(folder / "b", tag=f"t{k}")
    return folder / "b"


def _rotating(buffer: Path, blocks: int, which: Any = None, **options: Any) -> Any:
    """A rotation with room for so many resident blocks."""
    rotation = rc.open_buffer(buffer).rotate(which, resident_bytes=1, **options)
    largest = max(s.bytes for s in rotation.version.spans)
    return rc.open_buffer(buffer).rotate(which, resident_bytes=(blocks + 2) * largest, **options)


def _loader(source: Any, *, transforms: Sequence[Any] = (), **options: Any) -> rc.Loader:
    return rc.Loader(source, **{"batch_size": 8, "seed": 1, "output": "numpy", "transforms": transforms, **options})


def _rows(loader: Any, fields: Sequence[str]) -> dict[int, Any]:
    """uid → what batches said of it, which must always be the same."""
    out: dict[int, Any] = {}
    for batch in loader:
        names = [n for n in (*fields, *batch._paths()) if n in batch]
        for i in range(len(batch)):
            row = {n: bits(batch[n][i]) for n in names} | {f"valid/{n}": bool(v[i]) for n, v in batch.valid.items()}
            assert out.setdefault(int(batch["uid"][i]), row) == row
    return out


@pytest.mark.parametrize("kind", ["vector", "frames-zero", "frames-repeat", "nested-with-nulls"])
@pytest.mark.parametrize("n", [1, 4])
def test_every_row_is_drawn_as_if_all_were_resident(kind: str, n: int, tmp_path: Path) -> None:
    """Windows, stacks and next observations that lie in other blocks included."""
    buffer = _write(tmp_path, kind, files=6)
    whole = rc.open_buffer(buffer).at()
    steps = [rc.NStep(n, 0.9)] if n > 1 else []
    if whole.schema.by_path["reward"].field.optional:
        steps = []
    want = _rows(_loader(whole, epochs=1, transforms=steps), ())
    with _loader(_rotating(buffer, 2), steps=900, transforms=steps) as loader:
        got = _rows(loader, ())
    assert got == want, "every row, and each as in the whole view"


def test_variable_size_fields_come_along(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=4)
    want = rows_of(rc.open_buffer(buffer).at())
    with _loader(_rotating(buffer, 1), steps=200, fields=list(PLAIN.by_path)) as loader:
        seen = set()
        for batch in loader:
            for i in range(len(batch)):
                uid = int(batch["uid"][i])
                length = batch.lengths["tokens"][i]
                assert bits(batch["tokens"][i][:length]) == want[uid]["tokens"]
                assert batch["note"][i] == want[uid]["note"]
                seen.add(uid)
    assert seen == set(want)


def test_the_order_depends_on_rows_and_seed_alone(tmp_path: Path) -> None:
    """Not on what was in the cache, nor on how fast it was decoded."""
    buffer = _write(tmp_path, "vector", files=6)
    runs = []
    for _ in range(2):
        with _loader(_rotating(buffer, 2)) as loader:
            runs.append(take(loader, 80))
    BlockCache().room.clear()
    with _loader(_rotating(buffer, 2)) as loader:
        runs.append(take(loader, 80))
    assert runs[0] == runs[1] == runs[2]
    with _loader(_rotating(buffer, 2), seed=2) as loader:
        assert take(loader, 80) != runs[0]


@pytest.mark.parametrize("at", [0, 1, 7, 33, 61])
@pytest.mark.parametrize("lag", [0, 3])
def test_a_resumed_loader_goes_on_bit_for_bit(at: int, lag: int, tmp_path: Path) -> None:
    buffer = _write(tmp_path, "vector", files=6)
    with _loader(_rotating(buffer, 2, reuse=0.5), lag=lag) as loader:
        take(loader, at)
        state = json.loads(json.dumps(loader.state_dict()))
        want = take(loader, 60)
        told = loader.stats()
    with _loader(_rotating(buffer, 2, reuse=0.5), lag=lag) as other:
        other.load_state_dict(state)
        assert take(other, 60) == want
        assert other.stats()["distance_from_uniform"] == told["distance_from_uniform"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"blocks": 3}, "resident=2, not 3"), ({"reuse": 4.0}, "dwell="), ({"which": "t4"}, "on other rows")],
)
def test_a_state_of_another_rotation_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    buffer = _write(tmp_path, "vector", files=6)
    with _loader(_rotating(buffer, 2)) as loader:
        take(loader, 5)
        state = loader.state_dict()
    with (
        _loader(_rotating(buffer, **{"blocks": 2, **options})) as other,
        pytest.raises(errors.ArgumentError, match=words),
    ):
        other.load_state_dict(state)


def test_the_budget_is_kept_and_blocks_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = _write(tmp_path, "vector", files=8, count=60)
    rotation = rc.open_buffer(buffer).rotate(resident_bytes=1)
    budget = 5 * max(s.bytes for s in rotation.version.spans)
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", str(budget))
    with pytest.raises(errors.DiskFull, match=r"rotate\(\)"):
        rc.open_buffer(buffer).at()
    room = BlockCache().room
    with _loader(rc.open_buffer(buffer).rotate()) as loader:
        for _ in range(200):
            next(loader)
            with locked(room.folder / ".room", 60):  # a block that goes meanwhile would be counted under both its names
                assert sum(h.bytes for h in room.held()) <= budget
        told = loader.stats()
    assert (told["blocks"], told["resident_blocks"]) == (8, 3) and told["loads"] > 8
    assert told["resident_rows"] < told["total_rows"] / 2
    del loader
    gc.collect()
    assert not any(b.in_use for b in room.show())


def test_room_for_less_than_one_block_and_its_neighbours_is_said(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=3)
    with pytest.raises(errors.DiskFull, match=r"at least 3 blocks.*resident_bytes="):
        _loader(rc.open_buffer(buffer).rotate(resident_bytes=1000))


@pytest.mark.parametrize("options", [{"reuse": 0}, {"reuse": float("nan")}, {"resident_bytes": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    with pytest.raises(errors.ArgumentError):
        rc.open_buffer(buffer).rotate(**options)


def test_a_buffer_that_fits_is_wholly_resident(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=3)
    with _loader(rc.open_buffer(buffer).rotate()) as loader:
        take(loader, 50)
        told = loader.stats()
    assert (told["rotations"], told["loads"], told["resident_rows"]) == (0, 3, told["total_rows"])
    assert told["distance_from_uniform"] == 0 and told["visited_share"] == 1


def test_distance_from_uniform_shrinks_to_nothing_over_a_pass(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=6)
    with _loader(_rotating(buffer, 2)) as loader:
        next(loader)
        first = loader.stats()
        assert first["distance_from_uniform"] == pytest.approx(1 - 2 / 6)
        take(loader, 50 * first["pass_batches"] - 1)
        last = loader.stats()
    assert last["distance_from_uniform"] < 0.02 and last["visited_share"] == 1
    assert last["rotations"] == 50 * 6 - 1


def test_a_plain_view_says_that_it_is_uniform(tmp_path: Path) -> None:
    loader = _loader(rc.open_buffer(make_buffer(tmp_path)).at())
    take(loader, 3)
    told = loader.stats()
    assert {k: v for k, v in told.items() if not k.endswith(("_s", "_us", "_share"))} == {
        "batches": 3, "total_rows": 20, "resident_rows": 20, "hit_rate": 1.0, "rotations": 0,
        "distance_from_uniform": 0.0,
    }  # fmt: skip


def test_deleted_rows_are_not_drawn(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=4)
    lance.dataset(str(buffer / "steps.lance")).delete("uid % 7 = 3 OR uid < 20")
    with _loader(_rotating(buffer, 1), steps=300) as loader:
        seen = {int(u) for batch in loader for u in batch["uid"]}
    assert seen == {u for u in range(20, 80) if u % 7 != 3}


def test_late_facts_reach_rotating_rows(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        append_rows(ws, 0, 20)
        ws.snapshot(tmp_path / "b")
        append_rows(ws, 20, 20)
        for step in list(ws.recent(40).steps)[::5]:
            ws.annotate(step.id, note=f"late {step.fields['uid']}")
        ws.snapshot(tmp_path / "b")
    want = rows_of(rc.open_buffer(tmp_path / "b").at())
    with _loader(_rotating(tmp_path / "b", 1), steps=200, fields=["uid", "note"]) as loader:
        seen = {int(u): note for batch in loader for u, note in zip(batch["uid"], batch["note"], strict=True)}
    assert seen == {uid: row["note"] for uid, row in want.items()}
    assert any(note and note.startswith("late") for note in seen.values())


@pytest.mark.parametrize(("units", "resident"), [(1, 1), (5, 1), (5, 2), (9, 3), (10, 9), (40, 12), (4, 6)])
def test_the_schedule_is_even(units: int, resident: int) -> None:
    schedule = Schedule(3, units, resident, 4)
    stays: Counter[int] = Counter()
    turns = 60 * units
    for turn in range(turns):
        here = schedule.resident_at(turn)
        assert len(set(here)) == len(here) <= units
        assert here == Schedule(3, units, resident, 4).resident_at(turn), "no history"
        if units >= 3 * (resident - 1):
            assert len(here) == min(units, resident), "none is there twice"
        stays.update(here)
    assert set(stays) == set(range(units))
    assert max(stays.values()) - min(stays.values()) <= 2 * resident + turns // 10 * (units < 3 * resident)


def test_two_processes_rotate_over_the_same_blocks(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=6)
    with _loader(_rotating(buffer, 2)) as one, _loader(_rotating(buffer, 2), seed=9) as two:
        for _ in range(100):
            next(one), next(two)
        told = [one.stats(), two.stats()]
    assert told[0]["hit_rate"] + told[1]["hit_rate"] > 1, "what one decoded, the other found"


@pytest.mark.parametrize("options", [{"epochs": 2}, {"steps": 120}, {"steps": 60, "sampler": rc.Sequence(5, stride=5)}])
def test_batches_that_are_kept_hold_no_block_and_say_the_same(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole budget is what the rotation asks for at least, so that one block too many is refused."""
    rows = 500
    schema = rc.Schema({"observation": rc.Tensor("float32", (32,)), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        for k in range(6):
            uid = np.arange(k * rows, (k + 1) * rows)
            writer.extend(
                {
                    "observation": np.repeat(uid[:, None], 32, 1).astype("float32"),
                    "uid": uid,
                    "episode": uid // 50,
                    "step": uid % 50,
                    "terminated": uid % 50 == 49,
                }
            )
            ws.snapshot(tmp_path / "b", tag=f"t{k}")
    largest = max(s.bytes for s in rc.open_buffer(tmp_path / "b").rotate(resident_bytes=1).version.spans)
    for blocks in (3, 4, 5):
        monkeypatch.setenv("RECOLLECT_CACHE_BYTES", str(blocks * largest))
        BlockCache().room.clear()
        buffer = rc.open_buffer(tmp_path / "b")
        with _loader(buffer.rotate(), batch_size=32, **options) as loader:
            now = [(b["uid"].tolist(), b.ids.tolist(), b["step_index"].tolist()) for b in loader]
        del loader
        with _loader(buffer.rotate(), batch_size=32, **options) as loader:
            kept = list(loader)
        assert [(b["uid"].tolist(), b.ids.tolist(), b["step_index"].tolist()) for b in kept] == now
        del loader, kept
