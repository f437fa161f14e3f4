"""`recollect workspace create --keep-rows …`, `keep`, and what `show` says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recollect as rc
from recollect.hot.write import growing
from tests.cli.driver import Cli

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32")})


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> rc.Workspace:
    """A workspace `w` of 2,000 rows in small segments that keeps everything."""
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    ws = rc.create_workspace("w", SCHEMA)
    with ws.writer() as writer:
        for k in range(20):
            columns = {"episode": np.full(100, k), "step": np.arange(100), "terminated": np.arange(100) == 99}
            writer.extend(
                columns | {"observation": np.zeros((100, 2), np.float32), "reward": np.zeros(100, np.float32)}
            )
    return ws


def test_create_takes_limits_and_a_home(cli: Cli, tmp_path: Path) -> None:
    options = (
        "--keep-rows",
        "5",
        "--keep-bytes",
        "6000",
        "--keep-age",
        "7.5",
        "--drop-unpromoted",
        "--home",
        "s3://b/r",
    )
    made = cli("workspace", "create", "w", *options, "--json").document
    assert made["keep"] == {"rows": 5, "bytes": 6000, "age": 7.5, "unpromoted": "drop"}
    with rc.open_workspace("w") as ws:
        assert ws.keep == rc.Keep(rows=5, bytes=6000, age=7.5, unpromoted="drop")
        assert ws.home == "s3://b/r"
    ran = cli("workspace", "create", "x", "--keep-rows", "0")
    assert ran.code == 2 and "at least 1" in ran.err
    assert rc.list_workspaces() == ["w"]
    assert cli("workspace", "list", "--json").document["workspaces"][0]["keep"]["rows"] == 5


def test_keep_changes_the_limits_and_show_says_what_waits_and_what_went(
    cli: Cli, full: rc.Workspace, tmp_path: Path
) -> None:
    assert "keeps       everything" in cli("workspace", "show", "w").out
    ran = cli("workspace", "keep", "w", "--keep-rows", "500")
    assert ran.out.startswith("workspace w keeps 500 rows; ")
    shown = cli("workspace", "show", "w").out
    assert "over limit" in shown and "no snapshot was made yet" in shown
    assert cli("snapshot", "w", "--to", tmp_path / "b").code == 0
    shown = cli("workspace", "show", "w").out
    assert "over limit" not in shown
    assert f"home        {tmp_path / 'b'}" in shown
    assert "of which 0 and 0 were not promoted" in shown
    assert 500 <= full.cut().rows < 1000
    kept = cli("workspace", "show", "w", "--json").document["stats"]["retention"]
    assert kept["evicted_rows"] == 2000 - full.cut().rows and not kept["over_limit"]
    assert [t["rows"] for t in kept["targets"]] == [0]


def test_rows_that_are_dropped_are_said_at_once_and_in_the_snapshot(
    cli: Cli, full: rc.Workspace, tmp_path: Path
) -> None:
    ran = cli("workspace", "keep", "w", "--keep-rows", "500", "--drop-unpromoted")
    left = full.cut().rows
    assert f"{2000 - left:,} rows evicted, {2000 - left:,} of them not promoted" in ran.out
    snapshot = cli("snapshot", "w", "--to", tmp_path / "b", "--json").document
    assert (snapshot["rows_added"], snapshot["gap_rows"]) == (left, 2000 - left)
    assert "were evicted or deleted and are not here" in snapshot["message"]
