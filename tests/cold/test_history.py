"""A folded history says what an unfolded one says, and is read in two files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cold import history as module
from recollect.cold.dataset import Datasets
from recollect.cold.fold import FOLDED_KEYS, Promotion, cut_of, fold, summaries
from recollect.cold.history import Records
from recollect.cold.location import Location
from recollect.promote.plan import missing, watermark
from tests.support import all_ids

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)


def _write(writer: rc.Writer, first: int, count: int) -> None:
    with writer.episode(task=f"t{first}") as episode:
        for uid in range(first, first + count):
            episode.append(observation=[uid, 0], reward=1.0, uid=uid, next_observation=[uid + 1, 0])


def _links(seed: int, count: int) -> list[Promotion]:
    """A chain of promotions from three workspaces of two writers each, with gaps and facts."""
    chance = random.Random(seed)
    rows = dict.fromkeys(range(6), 0)
    facts = dict.fromkeys(range(6), 0)
    out: list[Promotion] = []
    total = 0
    for k in range(count):
        workspace = chance.randrange(3)
        record: dict[str, Any] = {
            "extents": [],
            "facts": [],
            "gaps": [],
            "held": [],
            "missing_rows": 0,
            "missing_facts": 0,
        }
        for writer in sorted(chance.sample((2 * workspace, 2 * workspace + 1), chance.randint(1, 2))):
            if chance.random() < 0.2:
                record["gaps"].append([str(writer), rows[writer], rows[writer] + 5])
                rows[writer] += 5
                record["missing_rows"] += 5
            n = chance.randint(1, 9)
            record["extents"].append([str(writer), rows[writer], rows[writer] + n])
            rows[writer] += n
            total += n
            if chance.random() < 0.5:
                record["facts"].append([str(writer), facts[writer], facts[writer] + 2])
                facts[writer] += 2
        record |= {
            "counts": {"open_episodes": k},
            "schema": "s",
            "lineage": {},
            "staged": ["facts"] if record["facts"] else [],
            "statistics": {"k": k},
        }
        tag = f"t{k}" if chance.random() < 0.3 else ""
        parent = out[-1].id if out else ""
        out.append(Promotion(f"p{k}", parent, f"s{k}", k + 1, k, f"w{workspace}", tag, 0, total, record))
    return out


@pytest.mark.parametrize("seed", range(20))
def test_a_fold_answers_what_its_links_answer(seed: int) -> None:
    links = _links(seed, 40)
    chance = random.Random(seed)
    before, at = None, 0
    while at < 30:
        step = chance.randint(1, 9)
        before = fold(f"f{at}", before, links[at : at + step])
        at = min(at + step, len(links))
    assert before is not None and (before.count, before.last) == (at, links[at - 1].id)
    rest = links[at:]
    chain = [*before.summaries, *rest]
    assert cut_of(rest, before) == cut_of(links)
    assert watermark(chain) == watermark(links)
    assert {*before.stages} == {p.stage for p in links[:at] if p.record["staged"]}
    for w in range(3):
        name = f"w{w}"
        for firsts in ({2 * w: 7, 2 * w + 1: 30}, {2 * w: 12}, {}):
            assert missing(firsts, 50, chain, name) == missing(firsts, 50, links, name)
        tagged = [p for p in links if p.workspace == name and p.tag]
        folded = [p for p in chain if p.workspace == name and p.tag]
        assert [(p.tag, p.base_version) for p in folded[-1:]] == [(p.tag, p.base_version) for p in tagged[-1:]]
    assert summaries(chain) == summaries(links)


@pytest.fixture
def small_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLD_LINKS", 3)


def test_every_version_of_a_folded_buffer_reads_back(small_folds: None, tmp_path: Path) -> None:
    spaces = [rc.create_workspace(f"w{k}", SCHEMA) for k in range(2)]
    seen: dict[str, tuple[rc.Cut, list[Any]]] = {}
    added = []
    for k in range(14):
        ws = spaces[k % 3 // 2]
        _write(ws.writer(), 100 * k, 4 + k)
        made = ws.snapshot(tmp_path / "b", tag=f"t{k}")
        added.append(made.rows_added)
        view = rc.open_buffer(tmp_path / "b").at()
        seen[f"t{k}"] = view.cut, all_ids(view)
    buffer = rc.open_buffer(tmp_path / "b")
    versions = buffer.versions()
    assert [v.tags for v in versions] == [(f"t{k}",) for k in range(14)]
    assert [v.rows_added for v in versions] == added and all(v.kept for v in versions)
    assert [v.rows for v in versions] == np.cumsum(added).tolist()
    counted = [v.statistics["observation"]["rows"] for v in versions]
    assert counted == [v.rows for v in versions]
    for tag, (cut, ids) in seen.items():
        view = buffer.at(tag)
        assert (view.cut, all_ids(view)) == (cut, ids)
        assert sum(len(h) for h in view.facts.history.values()) == sum(stop for _, stop in cut.facts)
    for ws in spaces:
        assert ws.snapshot(tmp_path / "b").rows_added == 0
        assert ws.snapshot(tmp_path / "b", tag="t0" if ws is spaces[0] else "t2").rows_added == 0
        ws.close()


def test_a_promoter_reads_two_files_however_long_the_history(
    small_folds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(12):
            _write(ws.writer(), 100 * k, 3)
            ws.snapshot(tmp_path / "b")
        data = Datasets.open_(Location(tmp_path / "b"))
        read: list[str] = []
        real = Records._table

        def counting(self: Records, name: str, columns: list[str]) -> Any:
            read.append(name)
            return real(self, name, columns)

        monkeypatch.setattr(Records, "_table", counting)
        assert watermark(data.history().chain)
        assert len(read) == 2 and read[1].startswith("fold-")


def test_a_missing_part_of_the_history_is_corruption(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws.writer(), 0, 3)
        ws.snapshot(tmp_path / "b")
        (part,) = (tmp_path / "b" / "history").iterdir()
        part.unlink()
        with pytest.raises(errors.CorruptionError, match=part.stem):
            rc.open_buffer(tmp_path / "b").at()
        _write(ws.writer(), 10, 3)
        with pytest.raises(errors.CorruptionError, match=part.stem):
            ws.snapshot(tmp_path / "b")


def test_a_record_that_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    data = Datasets.create(Location(tmp_path / "b"), SCHEMA)
    record = dict.fromkeys(FOLDED_KEYS, 0) | {"something new": 1}
    with pytest.raises(AssertionError, match="folded"):
        data.record(Promotion("p", "", "s", 1, 0, "w", "", 0, 0, record), data.history())
