"""A column holds what its function makes of every step, on its branch alone, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cold import columns as cold
from recollect.cold import commit as committing
from recollect.cold import history
from recollect.cold.dataset import Datasets
from recollect.versions import columns as module
from tests import stores
from tests.support import all_ids, rows_of

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "reward": rc.Tensor("float32", optional=True),
        "uid": rc.Tensor("int64"),
        "note": rc.Text(optional=True),
        "tokens": rc.Ragged("int16"),
    }
)
FLOAT = rc.Tensor("float32")


def write(ws: rc.Workspace, first: int, count: int = 6, lanes: int = 2) -> None:
    """Interleaved episodes, with the observation behind their last step."""
    with ws.writer() as writer:
        episodes = [writer.episode() for _ in range(lanes)]
        for uid in range(first, first + count):
            episodes[uid % lanes].append(
                observation=[uid, 1], reward=None if uid % 5 == 0 else float(uid), uid=uid, note=f"n{uid}",
                tokens=np.arange(uid % 3).astype("int16"), terminated=uid >= first + count - lanes,
                next_observation=[uid, 2],
            )  # fmt: skip


def double(rows: Mapping[str, Any]) -> Any:
    return (rows["uid"] * 2).astype("float32")


def to_go(rows: Mapping[str, Any]) -> Any:
    """Undiscounted return to go."""
    reward = np.where(rows["valid.reward"], rows["reward"], 0.0)
    return np.cumsum(reward[::-1])[::-1].astype("float32")


def column(view: rc.View, name: str = "new") -> dict[int, Any]:
    """uid → value of every step, None where null."""
    slots = np.arange(len(view.rows))
    steps = slots[~view.episodes.is_final & (view.episodes.group >= 0)]
    valid = view.rows.valid(slots, name)
    assert valid.sum() == valid[steps].sum()
    got = view.rows.gather(steps, ("uid", name))
    values = [v.tolist() if known else None for v, known in zip(got[name], valid[steps], strict=True)]
    return dict(zip(got["uid"].tolist(), values, strict=True))


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[rc.Buffer]:
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(3):
            write(ws, 10 * k)
            ws.snapshot(tmp_path / "b", f"r{k}")
        yield rc.open_buffer(tmp_path / "b")


def _uids(*firsts: int) -> set[int]:
    return {uid for first in firsts for uid in range(first, first + 6)}


@pytest.mark.parametrize("batch", [2, 4096])
def test_rows_are_computed_and_main_knows_nothing_of_it(
    buffer: rc.Buffer, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", batch)
    fork = buffer.branch("exp")
    ids, before = all_ids(fork.at()), rows_of(fork.at())
    sizes: list[int] = []

    def compute(rows: Mapping[str, Any]) -> Any:
        sizes.append(len(rows["uid"]))
        assert [n == f"n{u}" for n, u in zip(rows["note"], rows["uid"], strict=True)]
        assert [len(t) == u % 3 for t, u in zip(rows["tokens"], rows["uid"], strict=True)]
        assert (rows["valid.reward"] == (rows["uid"] % 5 != 0)).all()
        return double(rows)

    version = fork.add_column("new", compute, field=FLOAT, fields=["uid", "reward", "note", "tokens"], commit="c0ffee")
    assert max(sizes) <= batch and sum(sizes) == 18
    assert version == 5 and fork.schema.by_path["new"].field.optional
    for opened in (fork, buffer.on("exp")):
        view = opened.at()
        assert column(view) == {uid: 2.0 * uid for uid in _uids(0, 10, 20)}
        assert all_ids(view) == ids
        now = rows_of(view)
        assert all({k: v for k, v in row.items() if "new" not in k} == before[uid] for uid, row in now.items())
        assert len(view.where("new >= 40")) == 6
        told = opened.versions()[-1]
        assert (told.column, told.commit, told.parent, told.rows, told.rows_added) == ("new", "c0ffee", 4, 36, 0)
        assert told.schema == fork.schema.fingerprint
        assert set(column(opened.at("r2")).values()) == {None}  # older versions lack it
        assert opened.verify().ok
    assert buffer.schema == SCHEMA and "new" not in rows_of(buffer.at())[0] and rows_of(buffer.at()) == before
    loader = rc.Loader(fork.at(), rc.Uniform(), batch_size=4, seed=0, steps=1, fields=["new"], output="numpy")
    batch_ = next(iter(loader))
    assert batch_["new"].shape == (4,) and batch_.valid["new"].all()
    changed = buffer.diff(4, None, branch="exp")
    assert changed.schema == (f"field new was added: {fork.schema.by_path['new'].field}",)
    assert changed.rows_added == changed.rows_removed == 0
    told_new = changed.fields["new"]
    assert told_new.a is None and told_new.b is not None and told_new.b.count == 18


def test_later_snapshots_bring_nulls_and_compaction_keeps_all(buffer: rc.Buffer, tmp_path: Path) -> None:
    fork = buffer.branch("exp")
    fork.add_column("new", double, field=FLOAT)
    fork.add_column("vector", lambda rows: np.repeat(rows["new"][:, None], 3, 1), field=rc.Embedding(3, role=None))
    with rc.open_workspace("w") as ws:
        write(ws, 30)
        assert ws.snapshot(tmp_path / "b", branch="exp").rows_added == 12
        assert ws.snapshot(tmp_path / "b", "r3").rows_added == 12
        wanted = {uid: 2.0 * uid if uid < 30 else None for uid in _uids(0, 10, 20, 30)}
        assert column(fork.at()) == wanted
        fork.add_column("again", double, field=FLOAT)
        assert column(fork.at(), "again") == {uid: 2.0 * uid for uid in wanted}
        assert fork.compact().fragments_after == 1
        assert column(fork.at()) == wanted
        vectors = column(fork.at(), "vector")
        assert all((v is None) == (uid >= 30) and (v is None or v == [2.0 * uid] * 3) for uid, v in vectors.items())
        with pytest.raises(errors.AlreadyExists):
            fork.add_column("new", double, field=FLOAT)
        twig = fork.branch("twig")
        assert column(twig.at()) == wanted and fork.verify().ok
        assert [v.column for v in twig.versions()] == [None, None, None, "new", "vector", None, "again"]


@pytest.mark.parametrize(
    "field",
    [
        rc.Tensor("bool"),
        rc.Tensor("bool", (3,)),
        rc.Tensor("int8", (2, 2)),
        rc.Tensor("float16", (40,)),
        rc.Embedding(4),
        rc.Embedding(4, role=None),
    ],
    ids=str,
)
def test_every_dense_field_can_be_computed(buffer: rc.Buffer, field: Any) -> None:
    def compute(rows: Mapping[str, Any]) -> Any:
        shape = (len(rows["uid"]), *((field.size,) if isinstance(field, rc.Embedding) else field.shape))
        each = rows["uid"].reshape(-1, *[1] * (len(shape) - 1)) % 2
        return np.broadcast_to(each, shape).astype(field.dtype)

    fork = buffer.branch("exp", at="r2")
    fork.add_column("new", compute, field=field)
    for uid, value in column(fork.at()).items():
        assert (np.asarray(value) == uid % 2).all()


def test_a_value_beyond_the_fields_range_is_refused(buffer: rc.Buffer) -> None:
    fork = buffer.branch("exp", at="r2")
    with pytest.raises(errors.FieldError, match="ends at"):
        fork.add_column("new", lambda rows: np.full(len(rows["uid"]), 1e300), field=FLOAT)
    assert "new" not in fork.at().schema.by_path


def test_whole_episodes_are_computed_in_step_order(buffer: rc.Buffer) -> None:
    fork = buffer.branch("exp")
    buffer.add_column("new", to_go, field=FLOAT, fields=["reward", "uid"], by="episode", on="exp")
    want: dict[int, float] = {}
    for first in (0, 10, 20):
        for lane in range(2):
            uids = [u for u in range(first, first + 6) if u % 2 == lane]
            want |= {u: float(sum(v for v in uids[k:] if v % 5)) for k, u in enumerate(uids)}
    assert column(buffer.on("exp").at()) == want and fork.verify().ok


def test_late_facts_are_in_the_values(buffer: rc.Buffer, tmp_path: Path) -> None:
    with rc.open_workspace("w") as ws:
        view = ws.view()
        slot = int(np.flatnonzero(view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"] == 13)[0])
        ws.annotate(rc.StepId(*view.rows.ids(np.array([slot]))[0].tolist()), reward=99.0)
        ws.snapshot(tmp_path / "b")
    fork = buffer.branch("exp")
    fork.add_column("new", lambda rows: rows["reward"], field=FLOAT)
    assert column(fork.at())[13] == 99.0 and column(fork.at())[12] == 12.0


def test_what_does_not_fit_is_refused_and_leaves_nothing(buffer: rc.Buffer) -> None:
    with pytest.raises(errors.ArgumentError, match="a column is added to a branch"):
        buffer.add_column("new", double, field=FLOAT)
    fork = buffer.branch("exp")

    def fail(_: Any) -> Any:
        raise KeyError("mine")

    bad: list[tuple[Any, dict[str, Any], type[Exception]]] = [
        (double, {"field": rc.Text()}, errors.ArgumentError),
        (double, {"field": rc.Tensor("float32", default=0.0)}, errors.ArgumentError),
        (double, {"field": rc.Tensor("int32")}, errors.ArgumentError),
        (double, {"field": rc.Tensor("float32", (2,))}, errors.ArgumentError),
        (lambda rows: rows["uid"][:-1], {"field": FLOAT}, errors.ArgumentError),
        (double, {"field": FLOAT, "fields": ["nope"]}, errors.NotFound),
        (double, {"field": FLOAT, "by": "column"}, errors.ArgumentError),
        (fail, {"field": FLOAT}, KeyError),
    ]
    for fn, named, wanted in bad:
        with pytest.raises(wanted):
            fork.add_column("new", fn, **named)
    with pytest.raises(errors.AlreadyExists):
        fork.add_column("reward", double, field=FLOAT)
    with pytest.raises(errors.ArgumentError, match="observation"):
        fork.add_column("seen", double, field=rc.Tensor("float32", role="observation"))
    with pytest.raises(errors.SchemaError):
        fork.add_column("bad name", double, field=FLOAT)
    assert len(fork.versions()) == 3 and fork.schema == SCHEMA


def test_a_snapshot_that_comes_first_is_computed_too(
    buffer: rc.Buffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = buffer.branch("exp")
    real, seen = cold.commit_column, list[int]()

    def late(*args: Any) -> int:
        if not seen:
            with rc.open_workspace("w") as ws:
                write(ws, 40)
                ws.snapshot(tmp_path / "b", branch="exp")
        seen.append(1)
        return real(*args)

    monkeypatch.setattr(module, "commit_column", late)
    fork.add_column("new", double, field=FLOAT)
    assert len(seen) == 2 and column(fork.at()) == {uid: 2.0 * uid for uid in _uids(0, 10, 20, 40)}
    assert [v.column for v in fork.versions()] == [None] * 4 + ["new"]


def test_a_kill_before_the_commit_adds_nothing_and_a_lost_reply_adds_once(
    buffer: rc.Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = buffer.branch("exp")

    class Killed(BaseException):
        pass

    def die(*_: Any) -> Any:
        raise Killed

    for name in ("write_column", "commit_column"):
        with monkeypatch.context() as m, contextlib.suppress(Killed):
            m.setattr(module, name, die)
            fork.add_column("new", double, field=FLOAT)
            raise AssertionError("not killed")
    assert len(fork.versions()) == 3 and fork.verify().ok
    real = committing.commit

    def lose(*args: Any, **named: Any) -> Any:
        real(*args, **named)
        monkeypatch.setattr(cold, "commit", real)
        raise errors.StoreUnavailable("the reply was lost")

    monkeypatch.setattr(cold, "commit", lose)
    assert fork.add_column("new", double, field=FLOAT) == fork.versions()[-1].version
    assert column(fork.at()) == {uid: 2.0 * uid for uid in _uids(0, 10, 20)}
    assert [v.column for v in fork.versions()] == [None, None, None, "new"]


def test_deleted_rows_have_no_value(buffer: rc.Buffer, tmp_path: Path) -> None:
    """As another tool's deletion leaves them: marked, the files as they were."""
    fork = buffer.branch("exp")
    data = Datasets.open_(fork._data.location)
    data.steps.delete("uid IN (3, 12)")
    fork.add_column("new", double, field=FLOAT)
    rows = data.dataset("steps").to_table(columns=["uid", "new", "final"]).to_pylist()
    assert {r["uid"]: r["new"] for r in rows if not r["final"]} == {u: 2.0 * u for u in _uids(0, 10, 20) - {3, 12}}
    fork.add_column("later", double, field=FLOAT, by="row")
    rows = data.dataset("steps").to_table(columns=["uid", "later", "final"]).to_pylist()
    assert {r["uid"]: r["later"] for r in rows if not r["final"]} == {u: 2.0 * u for u in _uids(0, 10, 20) - {3, 12}}


@pytest.mark.timeout(600)
def test_on_an_object_store(tmp_path: Path) -> None:
    with stores.moto() as endpoint, rc.create_workspace("w", SCHEMA) as ws:
        uri, options = f"s3://{stores.make_bucket(endpoint, 'columns')}/b", stores.s3_options(endpoint)
        write(ws, 0)
        ws.snapshot(uri, storage_options=options)
        fork = rc.open_buffer(uri, storage_options=options).branch("exp")
        fork.add_column("new", double, field=FLOAT)
        write(ws, 10)
        ws.snapshot(uri, storage_options=options, branch="exp")
        again = rc.open_buffer(uri, branch="exp", storage_options=options)
        assert column(again.at()) == {uid: 2.0 * uid if uid < 10 else None for uid in _uids(0, 10)}
        assert again.verify().ok


def test_folds_hold_columns_as_links_do(buffer: rc.Buffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "FOLD_LINKS", 2)
    fork = buffer.branch("exp")
    with rc.open_workspace("w") as ws:
        for k in range(3):
            fork.add_column(f"c{k}", double, field=FLOAT)
            write(ws, 100 * (k + 1))
            assert ws.snapshot(tmp_path / "b", f"s{k}", branch="exp").rows_added == 12
    told = buffer.on("exp").versions()
    assert [v.column for v in told] == [None] * 3 + ["c0", None, "c1", None, "c2", None]
    assert [v.tags for v in told[3:]] == [(), ("s0",), (), ("s1",), (), ("s2",)]
    view = buffer.on("exp").at()
    assert column(view, "c1") == {uid: 2.0 * uid if uid < 200 else None for uid in _uids(0, 10, 20, 100, 200, 300)}
    assert len(view.where("c1 is not null")) == 24 and buffer.on("exp").verify().ok


def test_a_handle_that_was_open_reads_on_without_the_column(buffer: rc.Buffer) -> None:
    early = buffer.branch("exp")
    buffer.add_column("new", double, field=FLOAT, on="exp")
    assert "new" not in early.at().schema.by_path and rows_of(early.at()) == rows_of(buffer.at())
    early.add_column("other", double, field=FLOAT)
    assert column(early.at()) == column(early.at(), "other") == {uid: 2.0 * uid for uid in _uids(0, 10, 20)}
