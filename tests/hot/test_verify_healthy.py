"""verify is silent on healthy workspaces: live, killed and closed."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import recollect as rc
from recollect.hot.write import growing
from recollect.recall.verify import verify
from tests.hot.checked import SCHEMA, assert_silent, closed_workspace, step_of
from tests.support import python


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 13,))


@pytest.fixture
def closed(small_segments: None) -> Path:
    """A workspace with one sealed log of several segments, and both indexes."""
    return closed_workspace()


def test_a_closed_workspace_is_fine(closed: Path) -> None:
    report = verify(closed)
    assert_silent(report)
    assert (report.writers, report.live, report.unsealed, report.rows) == (1, 0, 0, 405)
    assert report.facts == 45 and report.segments >= 4
    assert report.indexes == ("catalog.sqlite", "text.sqlite")


def test_empty_workspaces_are_fine() -> None:
    with rc.create_workspace("none") as ws:
        assert_silent(ws.verify())
    with rc.create_workspace("w", SCHEMA) as ws:
        assert_silent(ws.verify())
        writer = ws.writer()
        assert_silent(ws.verify())
        assert ws.verify().live == 1
        writer.close()
        assert_silent(ws.verify())


def test_it_reads_only(closed: Path) -> None:
    before = {p: p.read_bytes() for p in closed.rglob("*") if p.is_file()}
    verify(closed)
    assert {p: p.read_bytes() for p in closed.rglob("*") if p.is_file()} == before


def test_a_live_writer_that_goes_on_is_fine(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA, durability="interval") as ws:
        done = threading.Event()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with ws.writer() as writer:
                    open_episodes = [writer.episode() for _ in range(5)]
                    uid = 0
                    while not done.is_set():
                        episode = open_episodes[uid % 5]
                        given = np.full(2, uid + 5, np.float32) if uid % 2 else None
                        episode.append(**step_of(uid), next_observation=given)
                        if not uid % 50:
                            ws.annotate(episode.key, lesson=f"lesson {uid}")
                        uid += 1
                        time.sleep(0)
            except BaseException as e:
                failed.append(e)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            while ws.cut().rows < 200 and not failed:
                time.sleep(0.01)
            for _ in range(12):
                ws.similar("lesson 100")
                assert_silent(verify(ws.path))
        finally:
            done.set()
            thread.join()
        assert not failed
        assert verify(ws.path).rows >= 200


KILLED = """
import sys
import numpy as np
import recollect as rc
from recollect.hot.write import growing
growing.SEGMENT_BYTES = (1 << 13,)
ws = rc.open_workspace("w")
writer = ws.writer(durability="process")
print("go", flush=True)
episodes = [writer.episode(id=f"{k}") for k in range(4)]
uid = 0
while True:
    given = np.zeros(2, np.float32) if uid % 3 else None
    seen = np.full(2, uid, np.float32)
    episodes[uid % 4].append(observation=seen, note="some words", uid=uid, next_observation=given)
    if uid % 40 == 39:
        episodes[0].finish(lesson="a word")
    uid += 1
"""


def test_a_killed_writer_is_fine_before_and_after_its_log_is_sealed() -> None:
    rng = random.Random(2)
    for _ in range(6):
        ws = rc.create_workspace("w", SCHEMA)
        child = python(KILLED)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.random() * 0.2)
        child.kill()
        child.communicate()
        report = verify(ws.path)
        assert_silent(report)
        assert (report.live, report.unsealed) == (0, 1)
        with rc.open_workspace("w") as again:
            told = again.verify()
            # Killed while it wrote a slot, it leaves half of an observation that nobody was told of.
            half = [(p.level, "waiting observations were damaged" in p.what) for p in told.problems]
            assert told.ok and half in ([], [("harmless", True)]), told.problems
            assert again.verify().unsealed == 0
            assert again.verify().rows == again.cut().rows
        ws.close()
        rc.delete_workspace("w")
