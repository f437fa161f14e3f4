"""Verify finds what is missing or damaged in a buffer, and a torn newest version can be gone back from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from recollect.buffer import repair_buffer
from recollect.cold.dataset import Datasets
from recollect.cold.durable import manifest_path
from recollect.cold.location import Location
from tests.support import all_ids

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)


def _write(writer: rc.Writer, first: int, count: int = 4) -> None:
    episode = writer.episode(task=f"t{first}")
    for uid in range(first, first + count):
        episode.append(observation=[uid, 0], reward=1.0, uid=uid, next_observation=[uid + 1, 0])


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    """Three snapshots of 4 rows, tagged t0 to t2, versions 2 to 4."""
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(3):
            _write(ws.writer(), 1000 * k)
            ws.snapshot(tmp_path / "b", tag=f"t{k}")
    return tmp_path / "b"


def test_a_whole_buffer_is_counted_and_nothing_is_wrong(buffer: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = rc.open_buffer(buffer).verify(progress=lambda done, total: seen.append((done, total)))
    assert report.ok and report.findings == []
    assert (report.newest, report.versions, report.tags, report.promotions) == (4, 3, 3, 3)
    assert (report.fragments, report.rows, report.facts) == (3, 12, 3)
    assert seen[-1] == (12, 12)


def _flip(buffer: Path) -> None:
    path = next((buffer / "steps.lance" / "data").iterdir())
    data = path.read_bytes()
    path.write_bytes(bytes(len(data) // 2) + data[len(data) // 2 :])


def _drop_rows(buffer: Path) -> None:
    next((buffer / "steps.lance" / "data").iterdir()).unlink()


def _drop_history(buffer: Path) -> None:
    next((buffer / "history").iterdir()).unlink()


def _drop_facts(buffer: Path) -> None:
    Datasets.open_(Location(buffer)).dataset("facts").delete("seq = 0")


def _drop_tails(buffer: Path) -> None:
    Datasets.open_(Location(buffer)).dataset("tails").delete("seq >= 0")


def _drop_tagged_version(buffer: Path) -> None:
    manifest_path(buffer / "steps.lance", 3).unlink()


def _delete_a_row(buffer: Path) -> None:
    Datasets.open_(Location(buffer)).steps.delete("uid = 1001")


def _drop_a_fragment_file_of_facts(buffer: Path) -> None:
    next((buffer / "facts.lance" / "data").iterdir()).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip, "reading"), (_drop_rows, "lance"), (_drop_history, "history/"), (_drop_facts, "facts of promotion"),
        (_drop_tails, "tails of promotion"), (_drop_tagged_version, "no version 3"), (_delete_a_row, "holds 11 rows"),
        (_drop_a_fragment_file_of_facts, "facts"),
    ],
)  # fmt: skip
def test_damage_is_found(damage: Callable[[Path], None], said: str, buffer: Path) -> None:
    damage(buffer)
    report = rc.open_buffer(buffer).verify()
    assert not report.ok
    assert any(said in f"{f.where} {f.what}" for f in report.findings), report.findings
    assert all(f.remedy for f in report.findings)


def test_rows_in_another_order_are_found(buffer: Path) -> None:
    """As lance's own rewriting of some fragments in the middle would leave them."""
    import lance

    data = Datasets.open_(Location(buffer))
    old = data.steps.get_fragments()[:2]
    batches = list(data.steps.scanner(fragments=old, scan_in_order=True).to_batches())
    made = data.stage_steps(batches, data.steps.schema)
    group = lance.LanceOperation.RewriteGroup([f.metadata for f in old], made)
    path = data.location.child("steps.lance")
    lance.LanceDataset.commit(path, lance.LanceOperation.Rewrite([group], []), read_version=data.steps.version)
    report = rc.open_buffer(buffer).verify()
    assert any("does not place there" in f.what for f in report.findings)


TEARS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda b: b"",
    "half": lambda b: b[: len(b) // 2],
    "zeros": lambda b: bytes(len(b)),
    "zero head": lambda b: bytes(len(b) // 2) + b[len(b) // 2 :],
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_newest_version_is_refused_and_gone_back_from(tear: str, buffer: Path) -> None:
    path = manifest_path(buffer / "steps.lance", 4)
    path.write_bytes(TEARS[tear](path.read_bytes()))
    with rc.open_workspace("w") as ws:
        with pytest.raises(errors.CorruptionError, match="--repair"):
            rc.open_buffer(buffer)
        with pytest.raises(errors.CorruptionError, match="--repair"):
            ws.snapshot(buffer)
        done = repair_buffer(buffer)
        assert len(done) == 2 and "version 4" in done[0] and "t2" in done[1]
        opened = rc.open_buffer(buffer)
        assert opened.tags() == {"t0": 2, "t1": 3} and opened.verify().ok
        assert len(list((buffer / "torn").iterdir())) == 1
        assert repair_buffer(buffer) == []
        assert ws.snapshot(buffer, tag="again").rows_added >= 4
        view = opened.at("again")
        assert sorted(all_ids(view)) == sorted(all_ids(ws.view()))
        assert opened.verify().ok


def test_torn_facts_are_gone_back_from(buffer: Path) -> None:
    facts = Datasets.open_(Location(buffer)).dataset("facts")
    manifest_path(buffer / "facts.lance", facts.version).write_bytes(b"")
    with pytest.raises(errors.CorruptionError, match="--repair"):
        len(rc.open_buffer(buffer).at().facts.history)
    assert "facts went back" in repair_buffer(buffer)[0]
    assert not rc.open_buffer(buffer).verify().ok, "the facts of the newest snapshot were torn with it"


def test_a_buffer_without_a_readable_version_is_left_as_it_is(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws.writer(), 0)
        ws.snapshot(tmp_path / "b")
    for version in (1, 2):
        path = manifest_path(tmp_path / "b" / "steps.lance", version)
        path.write_bytes(b"")
    with pytest.raises(errors.CorruptionError, match="backup"):
        repair_buffer(tmp_path / "b")
    assert path.exists()
    with pytest.raises(errors.ArgumentError, match="local"):
        repair_buffer("s3://bucket/b")
