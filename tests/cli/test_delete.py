"""`recollect delete`: by condition, episode and id; with a reason; tried first."""

from __future__ import annotations

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
