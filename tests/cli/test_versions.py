"""Branches, tags, diffs and lineage from a shell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import recollect as rc
from tests.cli.driver import Cli, play


@pytest.fixture
def to(cli: Cli, live: list[str], tmp_path: Path) -> str:
    """A buffer with a version `one`."""
    to = str(tmp_path / "replay")
    assert cli("snapshot", "live", "--to", to, "--tag", "one", "--commit", "c0ffee").code == 0
    return to


def _grow() -> None:
    with rc.open_workspace("live") as ws, ws.writer() as writer:
        play(writer, 2, 6)


def test_branches_are_made_listed_filled_and_deleted(cli: Cli, to: str) -> None:
    assert "no branch but main" in cli("branch", "list", to).err
    made = cli("branch", "create", to, "exp", "--at", "one")
    assert made.out == f"{to}: branch exp begins with version 2 of main\n"
    assert cli("branch", "create", to, "exp").code == 5
    _grow()
    done = cli("snapshot", "live", "--to", to, "--branch", "exp", "--tag", "e1", "--json").document
    assert (done["rows"], done["version"]) == (20, 3)
    assert cli("tag", to, "first", "--at", "2").out == f"{to}: first is version 2\n"
    listed = cli("branch", "list", to, "--json").document["branches"]
    assert [(b["name"], b["parent"], b["version"]) for b in listed] == [("exp", "main", 2)]
    assert "exp" in cli("branch", "list", to).out
    told = cli("log", to, "--branch", "exp", "--json").document["versions"]
    assert [(v["version"], v["branch"], v["parent"], v["commit"], v["tags"]) for v in told] == [
        (2, "main", 1, "c0ffee", ["first", "one"]),
        (3, "exp", 2, None, ["e1"]),
    ]
    assert all(v["schema"] and v["workspace_id"] and v["cut"]["extents"] and v["column"] is None for v in told)
    assert [v["version"] for v in cli("log", to, "--json").document["versions"]] == [2]
    for option in ("compact", "cleanup", "verify"):
        assert cli(option, to, "--branch", "exp").code == 0
    assert cli("verify", "live", "--branch", "exp").code == 2
    refused = cli("branch", "delete", to, "exp")
    assert refused.code == 10 and "e1" in refused.err
    assert cli("branch", "delete", to, "exp", "--with-tags").out == f"{to}: branch exp is deleted, with tag e1\n"
    assert cli("log", to, "--branch", "exp").code == 4


def test_a_version_is_named_by_tag_number_or_moment(cli: Cli, to: str) -> None:
    before = datetime.now(UTC)
    _grow()
    cli("snapshot", "live", "--to", to, "--tag", "2001-01-01")

    def shown(which: str) -> list[int]:
        return [v["version"] for v in cli("log", to, "--as-of", which, "--json").document["versions"]]

    assert shown("one") == shown("2") == shown(before.isoformat()) == [2]
    assert shown("2001-01-01") == shown("3") == [2, 3]  # a tag before a moment
    assert shown((before + timedelta(days=1)).isoformat()) == [2, 3]
    assert cli("log", to, "--as-of", "1999-01-01").code == cli("log", to, "--as-of", "nope").code == 4


def test_a_diff_for_people_and_for_programs(cli: Cli, to: str) -> None:
    cli("branch", "create", to, "exp")
    _grow()
    cli("snapshot", "live", "--to", to, "--tag", "two")
    told = cli("diff", to, "one", "two", "--json").document
    assert (told["rows_a"], told["rows_b"], told["rows_added"], told["episodes_added"]) == (8, 20, 12, 2)
    assert told["fields"]["reward"]["b"]["count"] == 20 and told["returns"]["b"]["mean"] == pytest.approx((6 + 15) / 2)
    shown = cli("diff", to, "one", "two").out
    assert "8 -> 20: 12 added, 0 removed" in shown and "reward" in shown and "PSI" in shown
    fork = rc.open_buffer(to, branch="exp")
    fork.add_column("bonus", lambda rows: np.ones(len(rows["step"]), "float32"), field=rc.Tensor("float32"))
    with_bonus = cli("diff", to, "two", "3", "--to-branch", "exp")
    assert with_bonus.code == 0 and "field bonus was added" in with_bonus.out
    assert "column bonus" in cli("log", to, "--branch", "exp").out
    assert cli("diff", to, "one", "two", "--by", "nope").code == 4
