"""`recollect delete`: by condition, episode and id; with a reason; tried first."""

from __future__ import annotations

from pathlib import Path

import recollect as rc
from tests.cli.driver import Cli


def _left() -> int:
    with rc.open_workspace("live") as ws:
        return len(ws.view().rows)


def test_steps_are_deleted_by_id(cli: Cli, live: list[str]) -> None:
    whole = _left()
    ran = cli("delete", "live", "--id", live[2], "--reason", "poisoned", "--dry-run")
    assert ran.code == 0 and "would delete" in ran.out and _left() == whole
    ran = cli("delete", "live", "--id", live[2], "--reason", "poisoned", "--json")
    assert ran.document["rows"] >= 1 and ran.document["reason"] == "poisoned" and not ran.document["purged"]
    assert _left() == whole - ran.document["rows"]
    again = cli("delete", "live", "--id", live[2], "--reason", "poisoned", "--purge")
    assert again.code == 0 and "deleted 0 rows" in again.out and "overwritten" in again.out
    assert cli("verify", "live").code == 0


def test_steps_are_deleted_by_condition_and_episode(cli: Cli, live: list[str]) -> None:
    with rc.open_workspace("live") as ws:
        (name, *_) = {step.episode_id for step in ws.recent(100)}
    assert cli("delete", "live", "--episode", name, "--reason", "private").code == 0
    with rc.open_workspace("live") as ws:
        assert name not in {step.episode_id for step in ws.recent(100)}
    assert cli("delete", "live", "--where", "step >= 0", "--reason", "all").code == 0
    with rc.open_workspace("live") as ws:
        assert not ws.recent(100)


def test_what_is_missing_is_said(cli: Cli, live: list[str]) -> None:
    assert cli("delete", "live", "--reason", "x", "--json").error["kind"] == "argument"
    assert cli("delete", "live", "--where", "reward > 0").code == 2
    assert cli("delete", "live", "--id", "nothing", "--reason", "x", "--json").error["kind"] == "argument"


def test_of_a_buffer(cli: Cli, live: list[str], tmp_path: Path) -> None:
    at = tmp_path / "b"
    assert cli("snapshot", "live", "--to", at, "--tag", "r1").code == 0
    whole = len(rc.open_buffer(at).at().rows)
    tried = cli("delete", at, "--id", live[2], "--reason", "poisoned", "--dry-run")
    assert tried.code == 0 and "would delete" in tried.out and len(rc.open_buffer(at).at().rows) == whole
    ran = cli("delete", at, "--id", live[2], "--reason", "poisoned")
    assert "main is version 3" in ran.out and "tag r1 names" in ran.out and "workspace live holds them" in ran.out
    assert "deleted: poisoned" in cli("log", at).out
    newest = cli("log", at, "--json").document["versions"][-1]
    assert newest["reason"] == "poisoned" and newest["deleted"][0]["start"] >= 0 > newest["rows_added"]
    left = len(rc.open_buffer(at).at().rows)
    assert left < whole and _left() == whole
    again = cli("delete", at, "--where", "step >= 0", "--reason", "all", "--json")
    assert again.document["rows"] == left and again.document["versions"] == {"main": 4}
    assert again.document["tags"] == ["r1"] and again.document["workspaces"] == ["live"]
    assert cli("delete", at, "--where", "nothing > 0", "--reason", "x", "--json").error["kind"] == "not_found"
