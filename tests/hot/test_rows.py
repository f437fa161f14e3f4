"""How a block is taken apart: keys, neighbours, what differs, stacks of frames; and what its episodes leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import recollect as rc
from recollect import errors
from recollect.hot.write.rows import differ, neighbours, number_keys
from recollect.records.block import Values
from recollect.view import EpisodeKey

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (2,)), "uid": rc.Tensor("int64")})

KEYS: list[Callable[[NDArray[np.int64]], Any]] = [
    lambda k: k,
    lambda k: k.astype(np.uint8),
    lambda k: np.array([f"run-{i}" for i in k.tolist()]),
    lambda k: np.array([i if i % 2 else f"run-{i}" for i in k.tolist()], dtype=object),
]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("form", KEYS, ids=["int64", "uint8", "text", "mixed"])
def test_keys_are_numbered_as_they_appear_and_rows_find_their_neighbours(
    form: Callable[[NDArray[np.int64]], Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    raw = rng.integers(0, int(rng.integers(1, 12)), n)
    keys = form(np.sort(raw) if seed % 3 == 0 else np.repeat(raw, 3)[:n] if seed % 3 == 1 else raw)
    which, index = number_keys(keys)
    assert list(index) == list(dict.fromkeys(keys.tolist()))
    assert [list(index)[k] for k in which.tolist()] == keys.tolist()
    later, first = neighbours(which)
    rows = {k: np.flatnonzero(which == k).tolist() for k in range(len(index))}
    assert first.tolist() == [rows[k][0] for k in range(len(index))]
    for mine in rows.values():
        assert later[mine].tolist() == [*mine[1:], -1]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (5,), (0,)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "float64", "bool"])
def test_rows_differ_where_a_byte_or_a_null_does(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    data = (rng.random((6, *shape)) * 9).astype(dtype)
    other = data[[5, 4, 3, 2, 1, 0]].copy()
    other[2] = other[2] == 0  # row 3 of the first
    at, to = np.arange(6), np.arange(5, -1, -1)
    changed = data.size > 0 and data[3].tobytes() != other[2].tobytes()
    want = [False, False, False, changed, False, False]
    assert differ(["x"], {"x": Values(data)}, at, {"x": Values(other)}, to, 6).tolist() == want
    assert differ(["x"], {"x": Values(data)}, None, {"x": Values(data)}, None, 6).tolist() == [False] * 6
    a, b = np.array([1, 1, 0, 0, 0, 1], bool), np.array([1, 0, 0, 0, 0, 1], bool)
    got = differ(["x"], {"x": Values(data, a)}, at, {"x": Values(other, b)}, to, 6)
    assert got.tolist() == [False, True, False, False, False, False]  # row 3 is null in both
    missing = differ(["x"], {}, None, {"x": Values(data, a)}, None, 6)
    assert missing.tolist() == a.tolist()


def test_a_nan_of_another_payload_differs() -> None:
    bits = np.array([[0x7FC00000], [0x7FC00000]], np.uint32)
    a, b = Values(bits.view(np.float32)), Values((bits + [[0], [1]]).astype(np.uint32).view(np.float32))
    assert differ(["x"], {"x": a}, None, {"x": b}, None, 2).tolist() == [False, True]


def _block(keys: list[Any], steps: list[int], uids: list[int], ended: list[bool], following: Any = None) -> Any:
    seen = np.array(uids, np.float32)[:, None] * [1, 1]
    block = {"episode": np.array(keys, object), "step": steps, "observation": seen, "uid": uids, "terminated": ended}
    return (
        block if following is None else {**block, "next_observation": np.array(following, np.float32)[:, None] * [1, 1]}
    )


def test_episodes_get_their_keys_in_the_order_in_which_they_appear() -> None:
    """Whole ones that leave no state, open ones, named ones and judged ones, in one block."""
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        block = _block([7, 3, "a", 9, 3, 5], [0, 0, 0, 0, 1, 0], list(range(6)), [True, False, True, True, True, False])
        writer.extend({**block, "facts": {9: {"reward": 2.0}}})
        assert writer._named.keys() == {5}
        writer.extend(_block([7, 5, 8], [0, 1, 0], [6, 7, 8], [True, True, False]))
        writer.episode().append(observation=[0, 0], uid=9)
        ids = {int(s["uid"]): s.episode.counter for s in ws.recent(20)}
        assert ids == {0: 0, 1: 1, 4: 1, 2: 2, 3: 3, 5: 4, 7: 4, 6: 5, 8: 6, 9: 7}
        assert ws.episode("a").key == EpisodeKey(writer.id, 2)
        assert ws.episode(EpisodeKey(writer.id, 3)).facts["reward"] == 2.0


def test_open_episodes_of_a_block_wait_each_in_its_own_tail() -> None:
    """Episodes end in another order than they began; a third block contradicts one of them."""
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        writer.extend(_block([0, 1, 1, 0], [0, 0, 1, 1], [0, 10, 11, 1], [False] * 4, [1, 11, 12, 2]))
        follows = {int(r["uid"]): int(r["next_observation"][0]) for r in _drawn(ws)}
        assert follows == {0: 1, 1: 2, 10: 11, 11: 12}
        writer.extend(_block([1, 0], [2, 2], [12, 50], [False, False], [13, 51]))
        follows = {int(r["uid"]): int(r["next_observation"][0]) for r in _drawn(ws)}
        assert follows == {0: 1, 1: 2, 10: 11, 11: 12, 12: 13, 50: 51}


def _drawn(ws: rc.Workspace) -> list[dict[str, Any]]:
    view = ws.view()
    out = []
    for batch in rc.Loader(view, rc.Uniform(), batch_size=4, seed=0, epochs=1, output="numpy"):
        out += [{name: batch[name][i] for name in ("uid", "next_observation")} for i in range(len(batch))]
    return out


def test_a_null_next_observation_is_not_that_of_the_next_step() -> None:
    """A block leaves an optional observation field out of the next observations; the next step has it."""
    schema = rc.Schema(
        {
            "observation": {"a": rc.Tensor("float32"), "b": rc.Tensor("float32", optional=True)},
            "uid": rc.Tensor("int64"),
        }
    )
    seen = {"a": np.arange(3, dtype=np.float32), "b": np.arange(3, dtype=np.float32)}
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        writer.extend(
            {
                "episode": [0, 0, 0],
                "step": [0, 1, 2],
                "observation": seen,
                "uid": [0, 1, 2],
                "next_observation": {"a": seen["a"] + 1},
            }
        )
        (batch,) = rc.Loader(ws.view(), rc.Uniform(), batch_size=3, seed=0, epochs=1, output="numpy")
        assert np.isnan(batch["next_observation"]["b"]).all()


@pytest.mark.parametrize("pad", ["zero", "repeat"])
@pytest.mark.parametrize("seed", range(12))
def test_stacks_in_blocks_are_checked_against_every_plane_before_them(pad: Any, seed: int) -> None:
    """Interleaved episodes over several blocks; then one plane of one stack is wrong."""
    rng = np.random.default_rng(seed)
    schema = rc.Schema({"observation": rc.Frames((2,), stack=4, pad=pad), "uid": rc.Tensor("int64")})
    planes: dict[int, list[NDArray[np.uint8]]] = {k: [rng.integers(1, 9, 2, np.uint8)] for k in range(3)}

    def stack(key: int) -> NDArray[np.uint8]:
        held = planes[key][-4:]
        blank = np.zeros_like(held[0]) if pad == "zero" else held[0]
        return np.stack([*([blank] * (4 - len(held))), *held])

    uid = 0
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        for _ in range(4):
            keys = rng.integers(0, 3, int(rng.integers(1, 8))).tolist()
            seen, following, steps = [], [], []
            for key in keys:
                seen.append(stack(key))
                steps.append(len(planes[key]) - 1)
                planes[key].append(rng.integers(1, 9, 2, np.uint8))
                following.append(stack(key))
            block = {"episode": keys, "step": steps, "observation": np.stack(seen), "uid": uid + np.arange(len(keys))}
            block["next_observation"] = np.stack(following)
            for name in ("observation", "next_observation"):
                wrong = block[name].copy()
                wrong[int(rng.integers(len(keys))), int(rng.integers(3)), int(rng.integers(2))] ^= 64
                with pytest.raises(errors.FieldError, match="observation"):
                    writer.extend({**block, name: wrong})
            writer.extend(block)
            uid += len(keys)
        assert len(ws.view()) == uid
        for row in _drawn(ws):
            assert row["next_observation"].shape == (4, 2)
