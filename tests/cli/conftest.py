"""A home of its own for every test, and the command line as a function."""

from __future__ import annotations

from pathlib import Path

import pytest

import recollect as rc
from recollect.cli import main
from tests.cli.driver import SCHEMA, Cli, Ran, play


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECOLLECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RECOLLECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECOLLECT_DEBUG", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*args: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(a) for a in args])
        got = capsys.readouterr()
        assert "Traceback" not in got.out + got.err
        return Ran(code, got.out, got.err)

    return run


@pytest.fixture
def live() -> list[str]:
    """A workspace `live` with one writer, two episodes of four steps; their ids."""
    with rc.create_workspace("live", SCHEMA) as ws, ws.writer(agent="actor-0") as writer:
        return play(writer, 2)
