"""`recollect snapshot` and `recollect log`."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path

import recollect as rc
from tests.cli.driver import Cli, play, program


def test_the_two_commands_work_as_they_stand(cli: Cli, tmp_path: Path) -> None:
    assert cli("workspace", "create", "rl-live").code == 0
    ran = cli("snapshot", "rl-live", "--to", tmp_path / "replay")
    assert ran.code == 0
    assert ran.out.startswith("nothing to promote")
    assert not (tmp_path / "replay").exists()


def test_snapshot_without_schema_in_json(cli: Cli, tmp_path: Path) -> None:
    cli("workspace", "create", "rl-live")
    made = cli("snapshot", "rl-live", "--to", tmp_path / "replay", "--json").document
    assert (made["version"], made["rows_added"], made["cut"]) == (None, 0, None)


def test_snapshot_and_log(cli: Cli, live: list[str], tmp_path: Path) -> None:
    to = str(tmp_path / "replay")
    first = cli("snapshot", "live", "--to", to, "--tag", "one")
    assert (first.code, first.err) == (0, "")
    assert "8 rows added" in first.out
    again = cli("snapshot", "live", "--to", to)
    assert again.code == 0
    assert "nothing new" in again.out
    with rc.open_workspace("live") as ws, ws.writer() as writer:
        play(writer, 1, 2)
    second = cli("snapshot", "live", "--to", to, "--tag", "two", "--json").document
    assert (second["tag"], second["rows_added"], second["rows"], second["created"]) == ("two", 2, 10, False)
    assert all(isinstance(w, str) for w, _, _ in second["cut"]["extents"])

    versions = cli("log", to, "--json").document["versions"]
    assert [(v["tags"], v["rows"], v["rows_added"], v["workspace"]) for v in versions] == [
        (["one"], 8, 8, "live"),
        (["two"], 10, 2, "live"),
    ]
    assert [v["returns"]["count"] for v in versions] == [2, 3]
    assert versions[0]["mean_return"] == 6.0
    lines = [line.split() for line in cli("log", f"file://{to}").out.splitlines() if "live" in line]
    assert [(x[0], x[1], x[4], x[5]) for x in lines] == [
        (str(versions[0]["version"]), "one", "8", "+8"),
        (str(versions[1]["version"]), "two", "10", "+2"),
    ]


def test_a_filtered_snapshot_and_its_dry_run(cli: Cli, tmp_path: Path) -> None:
    to = tmp_path / "replay"
    schema = rc.Schema({"reward": rc.Tensor("float32")}, episode={"task": rc.Text()})
    with rc.create_workspace("tasks", schema) as ws, ws.writer() as writer:
        for task, end in (("hopper", True), ("hopper", False), ("ant", True)):
            writer.episode(task=task).append(reward=1.0, terminated=end)
        options = ("--to", to, "--finished-only", "--where", "episode.task = 'hopper'")
        dry = cli("snapshot", "tasks", *options, "--dry-run")
        assert "would create" in dry.out and "1 rows of 1 episodes" in dry.out
        assert "2 rows of 2 episodes are held back" in dry.out and not to.exists()
        made = cli("snapshot", "tasks", *options, "--json").document
        assert (made["rows_added"], made["held_rows"], made["held_episodes"], made["dry_run"]) == (1, 2, 2, False)
        rest = cli("snapshot", "tasks", "--to", to, "--json").document
        assert (rest["rows_added"], rest["open_episodes"]) == (2, 1)
    versions = cli("log", to, "--json").document["versions"]
    assert [(v["finished_only"], v["where"], v["held_rows"], v["open_episodes"]) for v in versions] == [
        (True, "episode.task = 'hopper'", 2, 0),
        (False, None, 0, 1),
    ]


def test_progress_goes_to_a_terminal_on_stderr_only(live: list[str], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = program("snapshot", "live", "--to", str(tmp_path / "replay"), "--json", stderr=theirs)
    os.close(theirs)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(30) == 0
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # the kernel's way to say that the terminal is closed
        pass
    os.close(ours)
    assert json.loads(out)["rows_added"] == 8
    assert b"promoting" in seen
