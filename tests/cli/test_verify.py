"""`recollect verify` and `recollect recall`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np

import recollect as rc
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.segment import Segment
from recollect.records.layout import column
from tests.cli.driver import SCHEMA, Cli


def _flip_a_row() -> None:
    path = rc.open_workspace("live").path
    (file,) = path.glob("log/*/*.seg")
    segment = Segment.open_(file, Layouts({1: SCHEMA}.get))
    at = segment.records_at + 2 * segment.layout.itemsize + segment.layout.offset(column("reward"))
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def test_a_whole_workspace_exits_with_0(cli: Cli, live: list[str]) -> None:
    ran = cli("verify", "live")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("ok") and "8 rows" in ran.out and "1 writer (0 live)" in ran.out
    found = cli("verify", "live", "--json").document
    assert (found["ok"], found["rows"], found["problems"], found["indexes"]) == (True, 8, [], [])


def test_a_damaged_row_is_named_and_exits_with_9(cli: Cli, live: list[str]) -> None:
    _flip_a_row()
    ran = cli("verify", "live")
    assert ran.code == 9
    writer = live[2].split(":")[0]
    assert f"(rows {writer}:2 to 2)" in ran.out and "damaged" in ran.out and ran.out.startswith("lost")
    ran = cli("verify", "live", "--json")
    assert ran.code == 9
    (problem,) = ran.document["problems"]
    assert problem["level"] == "lost" and problem["rows"] == [{"writer": writer, "start": 2, "stop": 3}]
    assert problem["remedy"] and not ran.document["ok"]


def test_what_is_damaged_can_be_given_up(cli: Cli, live: list[str]) -> None:
    _flip_a_row()
    writer = live[2].split(":")[0]
    ran = cli("verify", "live", "--repair")
    assert ran.code == 0 and f"repaired   rows given up: {writer}:2\n" in ran.out and "7 rows" in ran.out
    found = cli("verify", "live", "--repair", "--json").document
    assert found["ok"] and not any(found["repaired"].values()) and found["rows"] == 7
    assert len(cli("tail", "live", "-n", "20").out.splitlines()) > 0


def test_a_wrong_index_is_repaired(cli: Cli, live: list[str], home: Path) -> None:
    assert cli("recall", "live", "anything").code == 0
    index = home / "workspaces" / "live" / "text.sqlite"
    with sqlite3.connect(index) as connection:
        connection.execute("INSERT INTO documents VALUES (NULL, 0, 1, 1)")
    connection.close()
    ran = cli("verify", "live")
    assert ran.code == 9 and "text.sqlite" in ran.out and "made again" in ran.out
    assert cli("verify", "live").code == 0


def test_an_unknown_workspace_is_not_found(cli: Cli, live: list[str]) -> None:
    assert cli("verify", "nothing", "--json").error["kind"] == "not_found"


def test_recall_shows_what_matches_best_first(cli: Cli) -> None:
    with rc.create_workspace("notes", SCHEMA) as ws, ws.writer() as writer, writer.episode(id="mine") as episode:
        for note in ("the valve in sector-7 leaks", "nothing of interest", "sector-7 again: valve replaced"):
            episode.append(observation=np.zeros(4, np.float32), action=0, reward=0.0, note=note)
    ran = cli("recall", "notes", "valve sector-7", "-k", "2")
    assert ran.code == 0 and len(ran.out.splitlines()) == 2 and ran.out.count("sector-7") == 2
    found = cli("recall", "notes", "valve sector-7", "--json").document
    assert [s["fields"]["note"][:3] for s in found["steps"]] != [] and len(found["steps"]) == 2
    scores = [s["score"] for s in found["steps"]]
    assert scores == sorted(scores, reverse=True)
    ran = cli("recall", "notes", "banana bread")
    assert (ran.code, ran.out) == (0, "") and "nothing" in ran.err
