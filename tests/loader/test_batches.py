"""What a batch holds: the same in numpy and torch, only named fields, nulls and ragged fields as declared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from tests.support import (
    SCHEMAS,
    batch_bits,
    expected,
    order_of,
    random_trajectories,
    write_appends,
)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_torch_batches_equal_numpy_batches(kind: str) -> None:
    import torch

    schema = SCHEMAS[kind]()
    rng = np.random.default_rng(2)
    trajectories = random_trajectories(schema, rng, count=9)
    transforms = [rc.NStep(2, gamma=0.5)] if kind == "vector" else []
    with rc.create_workspace("w", schema) as ws:
        write_appends(ws.writer(), trajectories, order_of(trajectories, rng))
        view = ws.view()
        fields = list(schema.by_path)

        def batches(output: Any, device: str | None = None) -> list[Any]:
            loader = rc.Loader(
                view, batch_size=5, seed=0, steps=6, fields=fields, transforms=transforms, output=output, device=device
            )
            return list(loader)

        numpy_ = [batch_bits(b) for b in batches("numpy")]
        torch_ = batches("torch")
        assert [batch_bits(b) for b in torch_] == numpy_
        assert [batch_bits(b) for b in batches(None, "cpu")] == numpy_
        assert isinstance(torch_[0]["uid"], torch.Tensor)
        assert torch_[0]["uid"].dtype == torch.int64
        assert isinstance(torch_[0].weight, torch.Tensor)


def test_named_fields_alone_are_read() -> None:
    schema = SCHEMAS["nested-with-nulls"]()
    rng = np.random.default_rng(2)
    trajectories = random_trajectories(schema, rng, count=9)
    with rc.create_workspace("w", schema) as ws:
        write_appends(ws.writer(), trajectories, order_of(trajectories, rng))
        view = ws.view()
        batch = next(rc.Loader(view, batch_size=5, seed=0, fields=["uid", "observation.pose"], output="numpy"))
        assert set(batch.keys()) == {
            "uid",
            "observation",
            "next_observation",
            "terminated",
            "truncated",
            "step_index",
            "is_first",
        }
        assert list(batch["observation"]) == ["pose"] == list(batch["next_observation"])
        assert np.array_equal(batch["observation.pose"], batch["observation"]["pose"])
        everything = next(rc.Loader(view, batch_size=5, seed=0, output="numpy"))
        assert set(everything.keys()) == {
            "observation",
            "action",
            "reward",
            "logits",
            "choice",
            "embedding",
            "uid",
            "terminated",
            "truncated",
            "next_observation",
            "step_index",
            "is_first",
        }
        assert set(everything["observation"]) == {"camera", "pose", "pair"}
        assert set(everything["observation"]["pair"]) == {"0", "1"}
        assert set(everything.valid) == {"reward", "logits", "choice", "embedding", "next_observation"}
        with pytest.raises(KeyError, match="note"):
            everything["note"]
        assert "uid" in everything and "observation.pose" in everything and "note" not in everything
        nested = next(rc.Loader(view, batch_size=5, seed=0, fields=["observation"], output="numpy"))
        assert set(nested["observation"]) == {"camera", "pose", "pair"}


def test_nulls_arrive_as_nan_or_zero_and_are_not_valid() -> None:
    schema = rc.Schema(
        {
            "f": rc.Tensor("float32", (2,), optional=True),
            "h": rc.Tensor("float16", optional=True),
            "d": rc.Tensor("float64", optional=True),
            "i": rc.Tensor("int32", optional=True),
            "b": rc.Tensor("bool", optional=True),
            "e": rc.Embedding(2, optional=True),
            "p": rc.Frames((2,), optional=True),
            "r": rc.Ragged("int32", optional=True),
            "t": rc.Text(optional=True),
            "j": rc.Json(optional=True),
        }
    )
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        episode.append()
        episode.append(f=[0, 0], h=0, d=0, i=0, b=False, e=[0, 0], p=[0, 0], r=[], t="", j=None)
        batch = next(rc.Loader(ws.view(), batch_size=2, seed=0, epochs=1, fields=list(schema.by_path), output="numpy"))
    null, zero = np.argsort(batch["step_index"])
    for name in ("f", "h", "d", "e"):
        assert np.isnan(batch[name][null]).all() and not batch[name][zero].any(), name
    for name in ("i", "b", "p"):
        assert not batch[name].any(), name
    for name in schema.by_path:
        assert [bool(batch.valid[name][k]) for k in (null, zero)] == [False, name != "j"], name
    assert (batch["t"][null], batch["t"][zero]) == (None, "")
    assert batch["r"].shape == (2, 0) and batch.lengths["r"].tolist() == [0, 0]


def test_ragged_fields_are_padded_to_the_longest_of_their_batch() -> None:
    schema = rc.Schema({"tokens": rc.Ragged("float32"), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        for i in range(12):
            episode.append(tokens=np.full(i, i, np.float32), uid=i)
        for batch in rc.Loader(
            ws.view(), batch_size=3, seed=0, steps=8, fields=["tokens", "uid"], ahead=4, output="numpy"
        ):
            uid = batch["uid"]
            assert batch.lengths["tokens"].tolist() == uid.tolist()
            assert batch["tokens"].shape == (3, uid.max())
            assert np.array_equal(batch["tokens"], np.where(np.arange(uid.max()) < uid[:, None], uid[:, None], 0))


def test_language_agents_draw_every_row() -> None:
    schema = SCHEMAS["no-observation"]()
    rng = np.random.default_rng(0)
    trajectories = random_trajectories(schema, rng, count=6)
    with rc.create_workspace("w", schema) as ws:
        write_appends(ws.writer(), trajectories, order_of(trajectories, rng))
        view = ws.view()
        assert len(view) == len(view.rows) == len(expected(schema, trajectories).rows)
        assert "next_observation" not in next(rc.Loader(view, batch_size=2, seed=0, output="numpy")).valid
