"""`recollect doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

import recollect as rc
from recollect.cli import checks
from tests.cli.driver import Cli


def test_a_sound_machine_is_fine(cli: Cli, live: list[str], home: Path) -> None:
    ran = cli("doctor", "--json")
    found = ran.document
    assert (ran.code, found["ok"], ran.err) == (0, True, "")
    assert found["versions"]["recollect"] == rc.__version__
    assert set(found["versions"]) == {"recollect", *checks.PACKAGES}
    assert (found["home"]["path"], found["home"]["source"], found["home"]["workspaces"]) == (
        str(home),
        "RECOLLECT_HOME",
        1,
    )
    assert found["cache"]["source"] == "RECOLLECT_CACHE"
    assert found["home"]["free_bytes"] > 0
    assert {c["level"] for c in found["checks"]} <= {"ok", "warning"}


def test_doctor_for_people_names_everything(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.delenv("RECOLLECT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent / "xdg"))
    ran = cli("doctor")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert "no-such-package not installed" in [" ".join(line.split()) for line in lines]
    assert any(line.startswith("home") and f"{home} (from RECOLLECT_HOME)" in line for line in lines)
    assert any(line.startswith("cache") and "xdg/recollect (from XDG_CACHE_HOME)" in line for line in lines)
    assert not home.exists()


def test_an_unwritable_home_fails_with_a_remedy(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECOLLECT_HOME", str(tmp_path / "file"))
    ran = cli("doctor")
    assert ran.code == 1
    assert "failed   home is writable" in ran.out
    assert "Set RECOLLECT_HOME to a folder" in ran.out


def test_a_network_home_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.format.files.file_system_type", lambda path: "nfs4")
    ran = cli("doctor", "--json")
    assert (ran.code, ran.document["ok"]) == (1, False)
    assert [c["name"] for c in ran.document["checks"] if c["level"] == "failed"] == ["home is on a local file system"]


def test_a_damaged_workspace_fails(cli: Cli, live: list[str], home: Path) -> None:
    (home / "workspaces" / "live" / "workspace.json").write_text("{")
    ran = cli("doctor")
    assert ran.code == 1
    assert "failed   workspaces are readable" in ran.out
