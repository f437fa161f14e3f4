"""A workspace whose schema evolves: what was written before reads the same, or as null or the default."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot import home
from recollect.hot.format.files import create_exclusive
from recollect.hot.format.notes import unpack
from tests.hot.versions import V1, V2, V3, check, kept_translations, nest, random_step
from tests.support import bits, python, random_value, rows_of

SMALL = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
)
WIDER = rc.Schema(
    {
        "observation": rc.Tensor("float64", (2,)),
        "reward": rc.Tensor("float32"),
        "uid": rc.Tensor("int64"),
        "note": rc.Text(default="none"),
        "score": rc.Tensor("float32", optional=True),
    }
)


def step(uid: int, **more: Any) -> dict[str, Any]:
    return {"observation": np.full(2, uid, np.float32), "reward": uid / 2, "uid": uid, **more}


# -- evolving --------------------------------------------------------------------------------------------------------


def test_evolve_says_what_changed_and_nothing_the_second_time() -> None:
    ws = rc.create_workspace("w", SMALL)
    assert [(c.kind, c.path) for c in ws.evolve(WIDER)] == [
        ("dtype_widened", "observation"),
        ("field_added", "note"),
        ("field_added", "score"),
    ]
    assert ws.evolve(WIDER) == []
    assert ws.schema == WIDER
    assert rc.open_workspace("w").schema == WIDER
    assert sorted(p.name for p in ws.path.glob("schema*")) == ["schema.2.json", "schema.json"]


def test_what_is_refused_leaves_everything_as_it_was() -> None:
    ws = rc.create_workspace("w", SMALL)
    with pytest.raises(errors.SchemaMismatch, match="'uid' is gone"):
        ws.evolve(rc.Schema({"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32")}))
    with pytest.raises(errors.SchemaError, match=r"rc\.Schema"):
        ws.evolve({"a": rc.Text()})  # type: ignore[arg-type]
    assert ws.schema == SMALL
    assert [p.name for p in ws.path.glob("schema*")] == ["schema.json"]
    blank = rc.create_workspace("blank")
    with pytest.raises(errors.SchemaError, match="no schema yet"):
        blank.evolve(SMALL)


def test_a_writer_of_another_version_is_told_what_to_do() -> None:
    ws = rc.create_workspace("w", SMALL)
    with pytest.raises(errors.SchemaMismatch, match=r"'score'.*ws\.evolve\(schema\)"):
        ws.writer(schema=WIDER)
    other = rc.open_workspace("w")
    other.evolve(WIDER)
    with ws.writer(schema=WIDER) as writer:
        assert writer.layout.schema == WIDER
    with pytest.raises(errors.SchemaMismatch, match="'score' is missing") as caught:
        ws.writer(schema=SMALL)
    assert "evolve" not in str(caught.value)


def test_two_that_evolve_at_once_cannot_both_win_unseen() -> None:
    """Threads with a barrier: whoever is second sees the first one's version, and adds to it or is refused."""
    ws = rc.create_workspace("w", SMALL)
    fields = {leaf.path: leaf.field for leaf in SMALL.leaves}
    wanted = [rc.Schema({**fields, f"extra{k}": rc.Text(optional=True)}) for k in range(6)]
    barrier, outcomes = threading.Barrier(6), dict[int, Any]()

    def run(k: int) -> None:
        handle = rc.open_workspace("w")
        barrier.wait()
        try:
            outcomes[k] = handle.evolve(wanted[k])
        except errors.SchemaMismatch as e:
            outcomes[k] = str(e)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [k for k, outcome in outcomes.items() if isinstance(outcome, list)]
    assert len(won) == 1
    assert ws.schema == wanted[won[0]]
    assert all(f"'extra{won[0]}' is gone" in outcomes[k] for k in range(6) if k not in won)
    assert not (ws.path / "schema.3.json").exists()


def test_the_one_who_comes_second_with_the_same_schema_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file appears between the look and the creation."""
    ws = rc.create_workspace("w", SMALL)
    create = create_exclusive

    def late(path: Path, data: bytes) -> bool:
        monkeypatch.setattr(home, "create_exclusive", create)
        assert rc.open_workspace("w").evolve(WIDER)
        return create(path, data)

    monkeypatch.setattr(home, "create_exclusive", late)
    assert ws.evolve(WIDER) == []
    assert [p.name for p in sorted(ws.path.glob("schema.*"))] == ["schema.2.json", "schema.json"]


def test_a_damaged_version_is_named() -> None:
    ws = rc.create_workspace("w", SMALL)
    ws.evolve(WIDER)
    (ws.path / "schema.2.json").write_text("{")
    with pytest.raises(errors.CorruptionError, match=r"schema\.2\.json"):
        rc.open_workspace("w")


def test_a_segment_of_a_schema_that_never_was_is_corruption() -> None:
    ws = rc.create_workspace("w", SMALL)
    ws.evolve(WIDER)
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(**step(1))
        (ws.path / "schema.2.json").unlink()
        with pytest.raises(errors.SchemaMismatch, match="another schema"):
            rc.open_workspace("w").view()


# -- reading ---------------------------------------------------------------------------------------------------------


def test_old_rows_read_as_null_or_the_default_everywhere() -> None:
    ws = rc.create_workspace("w", SMALL)
    with ws.writer() as writer, writer.episode(id="old") as episode:
        ids = [episode.append(**step(uid), terminated=uid == 3) for uid in range(4)]
    ws.annotate(ids[1], reward=99.0)
    before = ws.view()
    assert ws.evolve(WIDER)
    with ws.writer() as writer, writer.episode(id="new") as episode:
        episode.append(**step(4), score=1.5, note="said", terminated=True)
    ws.annotate(ids[2], score=2.5, note="late")
    assert [(s["uid"], s["note"], s["score"]) for s in ws.recent(5)] == [
        (4, "said", 1.5),
        (3, "none", None),
        (2, "late", 2.5),
        (1, "none", None),
        (0, "none", None),
    ]
    old = ws.episode("old")
    assert old["note"] == ["none", "none", "late", "none"]
    assert old["observation"].dtype == np.float64 and old["observation"][:, 0].tolist() == [0, 1, 2, 3]
    assert old["reward"].tolist() == [0, 99, 1, 1.5]
    assert old.valid("score").tolist() == [False, False, True, False]
    rows = rows_of(ws.view())
    assert sorted(rows) == [0, 1, 2, 3, 4]
    assert rows[0]["next_observation"] == bits(np.full(2, 1.0))
    # A view is what it was when it was made.
    assert before.schema == SMALL and sorted(rows_of(before)) == [0, 1, 2, 3]


def test_a_live_old_writer_is_read_row_by_row_and_goes_on() -> None:
    """Each view after an append copies the new rows alone; the rows it gave out before stay where they are."""
    ws = rc.create_workspace("w", SMALL)
    reader = rc.open_workspace("w")
    writer = ws.writer()
    episode = writer.episode()
    episode.append(**step(0), next_observation=[1, 1])
    assert len(reader.view()) == 1
    ws.evolve(WIDER)
    views = []
    for uid in range(1, 40):
        episode.append(**step(uid), next_observation=[uid + 1, uid + 1])
        views.append(reader.view())
        assert views[-1].schema == WIDER and len(views[-1]) == uid + 1
        assert reader.recent(1)[0]["uid"] == uid
        assert reader.recent(1)[0]["note"] == "none"
    log = reader._hot().log(writer.id)
    (translation,) = kept_translations(log)
    assert translation._done.sum() == 40
    first = rows_of(views[0])
    assert sorted(first) == [0, 1] and first[1]["next_observation"] == bits(np.full(2, 2.0))
    writer.close()
    assert len(reader.view()) == 40


def test_an_old_handle_reads_facts_about_fields_it_had_not_heard_of() -> None:
    """A log that was there before can hold facts under the newer schema; no segment of it gives that away."""
    ws = rc.create_workspace("w", SMALL)
    with ws.writer() as writer, writer.episode() as episode:
        first = episode.append(**step(0))
        ws.annotate(first, reward=5.0)
    reader = rc.open_workspace("w")
    assert reader.recent(1)[0]["reward"] == 5.0
    ws.evolve(WIDER)
    ws.annotate(first, score=3.0)
    assert reader.recent(1)[0]["score"] == 3.0
    assert reader.episode(first)["note"] == ["none"]


# -- other processes -------------------------------------------------------------------------------------------------

OLD_WRITER = """
import sys
import numpy as np
import recollect as rc
ws = rc.open_workspace("w")
writer = ws.writer(durability=sys.argv[1])
print("ready", flush=True)
uid = 0
with writer.episode() as episode:
    for line in sys.stdin:
        seen = np.full(2, uid, np.float32)
        id = episode.append(observation=seen, reward=uid / 2, uid=uid, next_observation=seen + 1)
        print(id, flush=True)
        uid += 1
"""

HANDLE = """
import sys
import recollect as rc
ws = rc.open_workspace("w")
for line in sys.stdin:
    view = ws.view()
    print(view.schema.fingerprint, len(view), flush=True)
"""


def _ask(child: Any) -> str:
    child.stdin.write("\n")
    child.stdin.flush()
    answer: str = child.stdout.readline().strip()
    return answer


def test_other_processes_go_on_writing_and_notice_the_new_schema() -> None:
    ws = rc.create_workspace("w", SMALL)
    writer, handle = python(OLD_WRITER, "process"), python(HANDLE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        for _ in range(3):
            _ask(writer)
        assert _ask(handle).split() == [SMALL.fingerprint, "3"]
        ws.evolve(WIDER)
        assert _ask(handle).split() == [WIDER.fingerprint, "3"]
        for uid in range(3, 30):
            _ask(writer)
            newest = ws.recent(1)[0]
            assert (newest["uid"], newest["note"], newest["score"]) == (uid, "none", None)
            assert len(ws.view()) == uid + 1
        with ws.writer() as new, new.episode() as episode:
            episode.append(**step(100), note="mine", terminated=True)
            assert _ask(handle).split() == [WIDER.fingerprint, "31"]
            assert unpack((ws.path / "schema.json").read_bytes()) == json.loads(json.dumps(SMALL.to_dict()))
        writer.communicate(timeout=20)
        handle.communicate(timeout=20)
        assert (writer.returncode, handle.returncode) == (0, 0)
    finally:
        for child in (writer, handle):
            if child.poll() is None:
                child.kill()
                child.communicate()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_killed_writer_of_the_old_schema_is_recovered_after_the_evolution(trusted: bool) -> None:
    """Its frames are checked in the layout they were written in, whether or not its counter is believed."""
    ws = rc.create_workspace("w", SMALL)
    child = python(OLD_WRITER, "process")
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    _ask(child)
    ws.evolve(WIDER)
    ids = [_ask(child) for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    child.communicate()
    path = ws.path
    if not trusted:  # other inodes, so that every frame is verified
        path = ws.path.with_name("copy")
        shutil.copytree(ws.path, path)
    again = rc.open_workspace(path)
    assert [(r.rows, r.lost) for r in again.recovered] == [(21, None)]
    view = again.view()
    assert view.schema == WIDER and len(view) == 21
    rows = rows_of(view)
    assert sorted(rows) == list(range(21))
    assert all(row["note"] == "none" and row["observation"] == bits(np.full(2, float(k))) for k, row in rows.items())
    assert f"{again.recent(1)[0].id}" == ids[-1]


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_into_an_older_buffer_is_refused_and_a_new_one_holds_every_row(tmp_path: Path) -> None:
    ws = rc.create_workspace("w", V1)
    rng = np.random.default_rng(3)
    written: dict[rc.StepId, dict[str, Any]] = {}
    old = ws.writer()

    def write(writer: rc.Writer, schema: rc.Schema, first: int) -> None:
        with writer.episode() as episode:
            for uid in range(first, first + 6):
                values = {**random_step(rng, schema), "uid": uid}
                written[episode.append(**nest(values), terminated=uid == first + 5)] = values

    write(old, V1, 0)
    assert ws.snapshot(to=tmp_path / "before").rows_added == 6
    ws.evolve(V2)
    ws.evolve(V3)
    with ws.writer() as new:
        write(new, V3, 10)
    write(old, V1, 20)
    waiting = old.episode()
    values = {**random_step(rng, V1), "uid": 30}
    seen = {leaf.path: random_value(rng, leaf) for leaf in V1.observations}
    written[waiting.append(**nest(values), next_observation=nest(seen)["observation"])] = values
    with pytest.raises(errors.SchemaMismatch, match="snapshot to a new buffer"):
        ws.snapshot(to=tmp_path / "before")
    assert len(rc.open_buffer(tmp_path / "before").at().rows) == 6
    made = ws.snapshot(to=tmp_path / "after")
    assert made.created and made.rows_added == len(written)
    hot, cold = ws.view(), rc.open_buffer(tmp_path / "after").at()
    assert cold.schema == V3
    check(hot, written)
    assert len(hot) == len(cold) == len(written)
    assert rows_of(hot) == rows_of(cold)
    ws.close()
