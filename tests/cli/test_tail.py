"""`recollect tail`: the newest steps, and every new one exactly once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.cli import follow, tail
from recollect.cli.follow import Follower
from tests.cli.driver import SCHEMA, Cli, play, program


def test_tail_shows_the_newest_steps_oldest_first(cli: Cli, live: list[str]) -> None:
    steps = cli("tail", "live", "-n", "3", "--json").document["steps"]
    assert [s["id"] for s in steps] == live[-3:]
    assert [(s["step"], s["terminated"]) for s in steps] == [(1, False), (2, False), (3, True)]
    lines = cli("tail", "live", "-n", "3").out.splitlines()
    assert len(lines) == 3
    assert "step 3  reward 3  terminated  observation=[3 3 3 3] action=3" in lines[-1]


def test_tail_of_more_than_there_is_shows_all(cli: Cli, live: list[str]) -> None:
    assert [s["id"] for s in cli("tail", "live", "-n", "100", "--json").document["steps"]] == live


def test_tail_before_the_first_writer(cli: Cli) -> None:
    cli("workspace", "create", "w")
    ran = cli("tail", "w")
    assert (ran.code, ran.out) == (0, "")
    assert cli("tail", "w", "--json").document == {"workspace": "w", "steps": []}


def test_json_describes_long_arrays_and_turns_nan_into_null(cli: Cli, live: list[str]) -> None:
    with rc.open_workspace("live") as ws, ws.writer() as writer, writer.episode(id="caller's") as episode:
        episode.append(
            observation=[0.0, np.nan, np.inf, -np.inf],
            action=1,
            reward=float("nan"),
            big=np.zeros((4, 5), np.uint8),
            info={"deep": [1, float("nan")]},
        )
    (step,) = cli("tail", "live", "-n", "1", "--json").document["steps"]
    assert step["episode"] == "caller's"
    assert step["fields"] == {
        "observation": [0.0, None, "Infinity", "-Infinity"],
        "action": 1,
        "reward": None,
        "big": {"dtype": "uint8", "shape": [4, 5]},
        "note": None,
        "info": {"deep": [1, None]},
    }


def test_lines_cannot_drive_the_terminal(cli: Cli, live: list[str]) -> None:
    with rc.open_workspace("live") as ws, ws.writer() as writer, writer.episode(id="\x1b[2J") as episode:
        episode.append(observation=np.zeros(4), action=0, reward=0.0, note="a\x1b[31m\nb" + "c" * 100)
    out = cli("tail", "live", "-n", "1").out
    assert "\x1b" not in out
    assert out.count("\n") == 1
    assert len(out) < 250


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "true"),
        (3, "3"),
        (0.123456, "0.1235"),
        (float("nan"), "nan"),
        ("a\nb", '"a\\nb"'),
        ({"a": 1}, '{"a": 1}'),
        (np.arange(3), "[0 1 2]"),
        (np.arange(17), "[0 1 2 3 +13]"),
        (np.zeros((84, 84), np.uint8), "uint8[84x84]"),
        (np.zeros(0), "[]"),
    ],
)
def test_short_values(value: Any, text: str) -> None:
    assert tail.short(value) == text


def test_a_follower_reads_each_row_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "CHUNK_ROWS", 3)
    with rc.create_workspace("w") as ws, rc.open_workspace("w") as reader:
        follower = Follower(reader)
        assert follower.newest(5) == list(follower.poll()) == []
        with ws.writer(schema=SCHEMA) as a:
            first = play(a, 2, 5)
            assert [str(s.id) for s in follower.poll()] == first
            assert list(follower.poll()) == []
            with ws.writer() as b:
                theirs, more = play(b, 3, 2), play(a, 1, 4)
                got = [str(s.id) for s in follower.poll()]
        assert [i for i in got if i in theirs] == theirs
        assert [i for i in got if i in more] == more
        assert len(got) == len(theirs) + len(more)
        assert [str(s.id) for s in Follower(reader).newest(4)] == more


def test_frame_stacks_are_whole_at_a_chunk_s_edge() -> None:
    schema = rc.Schema({"observation": rc.Frames((1,), stack=3), "action": rc.Tensor("int64", ())})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        for t in range(3):
            episode.append(observation=[t + 1], action=0)
        follower = Follower(ws)
        episode.append(observation=[4], action=0)
        (step,) = follower.poll()
    assert step["observation"].ravel().tolist() == [2, 3, 4]


def test_a_follower_says_that_the_workspace_is_gone(cli: Cli, live: list[str]) -> None:
    with rc.open_workspace("live") as ws:
        follower = Follower(ws)
        cli("workspace", "delete", "live", "--yes")
        with pytest.raises(rc.errors.NotFound, match="was deleted while"):
            list(follower.poll())


WRITE = """
import sys
import numpy as np
import recollect as rc
with rc.open_workspace("live") as ws:
    for k in range(2):
        with ws.writer() as writer, writer.episode() as episode:
            for t in range(40):
                print(episode.append(observation=np.zeros(4), action=t, reward=0.0), flush=True)
"""


def test_follow_shows_what_other_processes_append_exactly_once_and_ends_on_sigint(
    live: list[str], tmp_path: Path
) -> None:
    process = program("tail", "live", "-n", "2", "-f", "--json")
    assert process.stdout is not None
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        got = [json.loads(process.stdout.readline())["id"] for _ in range(2)]
        assert got == live[-2:]
        writers = [subprocess.Popen([sys.executable, "-c", WRITE], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        wrote = [w.communicate(timeout=60)[0].split() for w in writers]
        want = defaultdict(list)
        for i in wrote[0] + wrote[1]:
            want[i.partition(":")[0]].append(i)
        seen = defaultdict(list)
        for _ in range(160):
            i = json.loads(process.stdout.readline())["id"]
            seen[i.partition(":")[0]].append(i)
        assert len(want) == 4
        assert seen == want
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=10)
        assert (process.returncode, rest, err) == (0, "", "")
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def test_a_reader_that_leaves_ends_it_quietly(live: list[str]) -> None:
    process = program("tail", "live", "-f")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with rc.open_workspace("live") as ws, ws.writer() as writer:
        play(writer)
        code = process.wait(30)
    err = process.stderr.read()
    process.stderr.close()
    assert (code, err) == (141, "")


def test_a_condition_chooses_what_is_shown_and_followed(cli: Cli) -> None:
    schema = rc.Schema({"uid": rc.Tensor("int64")}, episode={"task": rc.Text()})
    with rc.create_workspace("chosen", schema) as ws, ws.writer() as writer:
        episode = writer.episode(task="hopper")
        for uid in range(500):
            episode.append(uid=uid)
        shown = cli("tail", "chosen", "-n", "3", "--where", "uid < 100 and episode.task = 'hopper'", "--json").document
        assert [s["fields"]["uid"] for s in shown["steps"]] == [97, 98, 99]
        assert cli("tail", "chosen", "--where", "uid < 0", "--json").document["steps"] == []
        follower = Follower(ws, "uid % 2 = 0")
        for uid in range(500, 505):
            episode.append(uid=uid)
        assert [s["uid"] for s in follower.poll()] == [500, 502, 504]
    wrong = cli("tail", "chosen", "--where", "uidd < 1", "--json")
    assert (wrong.code, wrong.error["kind"]) == (4, "not_found")
    assert "Did you mean 'uid'" in str(wrong.error)


def test_a_follower_stops_at_the_beginning_of_a_log_that_was_evicted_from() -> None:
    schema = rc.Schema({"uid": rc.Tensor("int64"), "blob": rc.Tensor("float64", (100,))})
    with rc.create_workspace("kept", schema, keep=rc.Keep(rows=3000, unpromoted="drop")) as ws:
        with ws.writer() as writer, writer.episode() as episode:
            for uid in range(12_000):
                episode.append(uid=uid, blob=np.zeros(100))
        ws.evict()
        (extent,) = ws.cut().extents
        assert extent.start > 0
        kept = extent.stop - extent.start
        assert len(Follower(ws).newest(kept + 5)) == kept
