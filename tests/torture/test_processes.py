"""Many processes at one workspace at once: writing, reading, creating, opening, sealing, deleting."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import recollect as rc
from recollect.errors import RecollectError
from recollect.testing.actor import Actor, Journal
from recollect.testing.cases import default_seed
from recollect.testing.corpus import SCHEMAS
from recollect.testing.expected import expect
from recollect.testing.ledger import Close, End, Lanes, Open
from recollect.testing.oracle import check_workspace
from tests.support import run_python

LONG = pytest.mark.torture


def crowd(call: str, *, timeout_s: float = 3000) -> str:
    """Runs a scenario of `tests.torture.crowd` in a clean process."""
    return run_python(f"from tests.torture import crowd; crowd.{call}", timeout_s=timeout_s)


@pytest.mark.parametrize("ops", [60, pytest.param(3000, marks=[LONG, pytest.mark.timeout(3600)])])
def test_eight_writers_and_four_readers_agree_on_a_growing_prefix(ops: int, memory: Path) -> None:
    seed = default_seed()
    print(f"seed {seed}")
    crowd(f"many({str(memory)!r}, 8, 4, {ops}, {seed})")


@pytest.mark.parametrize("rounds", [10, pytest.param(500, marks=LONG)])
def test_of_those_who_create_a_workspace_at_once_one_wins(rounds: int, memory: Path) -> None:
    crowd(f"creating({str(memory)!r}, {rounds}, 6)")


@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=LONG)])
def test_who_creates_and_deletes_the_same_names_is_told_what_happened(rounds: int, memory: Path) -> None:
    seed = default_seed()
    print(f"seed {seed}")
    crowd(f"contending({str(memory)!r}, {rounds}, 4, {seed})")


@pytest.mark.parametrize("rounds", [10, pytest.param(300, marks=LONG)])
def test_those_who_open_a_workspace_of_dead_writers_at_once_agree(rounds: int, memory: Path) -> None:
    seed = default_seed()
    print(f"seed {seed}")
    crowd(f"recovering({str(memory)!r}, {rounds}, 6, {seed})")


@pytest.mark.parametrize("rounds", [40, pytest.param(2000, marks=LONG)])
def test_nothing_is_acknowledged_in_a_workspace_that_is_deleted(rounds: int, memory: Path) -> None:
    crowd(f"deleting({str(memory)!r}, {rounds})")


@pytest.mark.parametrize("rounds", [6, pytest.param(300, marks=LONG)])
def test_nobody_waits_for_a_process_that_is_stopped_while_it_recovers(rounds: int, memory: Path) -> None:
    seed = default_seed()
    print(f"seed {seed}")
    crowd(f"stopping({str(memory)!r}, {rounds}, {seed})")


def test_a_deleted_workspace_takes_no_new_writer(tmp_path: Path) -> None:
    ws = rc.create_workspace(tmp_path / "w", SCHEMAS["plain"]())
    rc.delete_workspace(tmp_path / "w")
    with pytest.raises(RecollectError):
        ws.writer()
    assert not (tmp_path / "w").exists()


def test_sixty_four_lanes_interleave_in_one_writer(tmp_path: Path) -> None:
    seed = default_seed()
    print(f"seed {seed}")
    chance = random.Random(seed)
    ends: tuple[End, ...] = ("",) * 12 + ("terminated", "truncated")
    ops: list[Any] = [Open(0, "process")]
    for _ in range(60):
        named = sorted(chance.sample(range(64), chance.randint(1, 64)))
        ops.append(
            Lanes(0, 64, tuple((k, chance.choice(ends)) for k in named), chance.choice(("none", "same", "other")))
        )
    ops.append(Close(0))
    journal = Journal()
    with rc.create_workspace(tmp_path / "w", SCHEMAS["wide"]()) as ws:
        Actor(ws).run(ops, journal.note)
        check_workspace(ws, expect(ops, journal.read(), durability="interval", power=False))
    journal.close()
