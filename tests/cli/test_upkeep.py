"""`recollect compact`, `recollect cleanup`, and `recollect verify` of a buffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recollect as rc
from recollect.cold.durable import manifest_path
from tests.cli.driver import SCHEMA, Cli


@pytest.fixture
def buffer(tmp_path: Path) -> str:
    """Five snapshots of a step, the second tagged: versions 2 to 6."""
    with rc.create_workspace("many", SCHEMA) as ws, ws.writer() as writer:
        for k in range(5):
            with writer.episode() as episode:
                episode.append(observation=np.zeros(4, np.float32), action=0, reward=0.0, note="x", terminated=True)
            ws.snapshot(tmp_path / "b", tag="two" if k == 1 else None)
    return str(tmp_path / "b")


def test_compact_says_what_it_merged(cli: Cli, buffer: str) -> None:
    ran = cli("compact", buffer)
    assert ran.code == 0 and "version 7: 5 data files are 1 now; 5 rows" in ran.out
    found = cli("compact", buffer, "--json").document
    assert (found["version"], found["note"], found["uri"]) == (None, "nothing to merge", buffer)
    assert cli("compact", buffer).out.startswith(f"{buffer} stays as it is")


def test_cleanup_says_what_goes_and_what_it_keeps_and_why(cli: Cli, buffer: str) -> None:
    ran = cli("cleanup", buffer, "--dry-run")
    assert ran.code == 0 and "would free 0 B: 0 versions" in ran.out and "kept 5 versions younger than 7d" in ran.out
    tried = cli("cleanup", buffer, "--older-than", "0s", "--dry-run", "--json").document
    assert tried["versions"] == [1, 2, 4, 5] and tried["dry_run"]
    ran = cli("cleanup", buffer, "--older-than", "0s")
    assert ran.code == 0 and "freed" in ran.out and "4 versions" in ran.out
    assert "kept version 3: tagged two" in ran.out and "the newest" in ran.out
    assert cli("log", buffer).code == 0


@pytest.mark.parametrize("age", ["7", "d", "-1d", "1.5h", "", "９d"])
def test_an_age_is_a_number_and_a_unit(age: str, cli: Cli, buffer: str) -> None:
    ran = cli("cleanup", buffer, "--older-than", age, "--json")
    assert ran.code == 2 and "7d" in ran.error["remedy"]


def test_verify_takes_a_buffer(cli: Cli, buffer: str) -> None:
    ran = cli("verify", buffer)
    assert (ran.code, ran.err) == (0, "") and ran.out.startswith("ok") and "5 rows" in ran.out
    assert cli("verify", f"file://{buffer}", "--json").document["ok"]
    next((Path(buffer) / "history").iterdir()).unlink()
    ran = cli("verify", buffer)
    assert ran.code == 9 and "damaged" in ran.out and ran.out.startswith("lost")
    assert not cli("verify", buffer, "--json").document["ok"]


def test_a_torn_version_is_repaired_when_asked_for(cli: Cli, buffer: str) -> None:
    manifest_path(Path(buffer) / "steps.lance", 6).write_bytes(b"")
    ran = cli("verify", buffer, "--json")
    assert ran.code == 9 and "--repair" in ran.error["remedy"]
    ran = cli("verify", buffer, "--repair")
    assert ran.code == 0 and ran.out.startswith("repaired") and "went back from version 6" in ran.out
    assert cli("verify", buffer, "--json").document["repaired"] == []
