"""`recollect workspace`: create, list, show, delete."""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import pytest

import recollect as rc
from recollect.cli import workspace
from recollect.hot.home import DURABILITIES
from recollect.schema.presets import PRESETS
from tests.cli.driver import SCHEMA, Cli, play


def test_create_without_schema_leaves_it_to_the_first_writer(cli: Cli) -> None:
    ran = cli("workspace", "create", "rl-live")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("created workspace rl-live (schema left to the first writer) at ")
    with rc.open_workspace("rl-live") as ws:
        assert ws.schema is None


def test_create_says_what_it_made_in_json(cli: Cli, home: Path) -> None:
    ran = cli("workspace", "create", "w", "--preset", "llm-agent", "--durability", "step", "--json")
    made = ran.document
    assert (ran.code, ran.err) == (0, "")
    assert (made["name"], made["durability"]) == ("w", "step")
    assert made["path"] == str(home / "workspaces" / "w")
    schema = rc.Schema.llm_agent()
    assert made["schema"] == {"fingerprint": schema.fingerprint, **schema.to_dict()}


def test_create_from_a_schema_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SCHEMA.to_toml())
    assert "(6 fields)" in cli("workspace", "create", "w", "--schema", tmp_path / "s.toml").out
    with rc.open_workspace("w") as ws:
        assert ws.schema == SCHEMA


def test_create_from_a_gymnasium_id(cli: Cli) -> None:
    pytest.importorskip("gymnasium")
    ran = cli("workspace", "create", "cart", "--env", "CartPole-v1", "--json")
    assert list(ran.document["schema"]["step"]) == ["observation", "action", "reward"]


def test_the_choices_are_those_of_the_core() -> None:
    assert get_args(workspace.Durability) == DURABILITIES
    assert get_args(workspace.Preset) == tuple(PRESETS)


def test_list_of_an_empty_home(cli: Cli, home: Path) -> None:
    ran = cli("workspace", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "no workspaces" in ran.err
    assert cli("workspace", "list", "--json").document == {"home": str(home), "workspaces": []}


def test_list_names_every_workspace(cli: Cli, live: list[str]) -> None:
    cli("workspace", "create", "blank")
    with rc.open_workspace("live") as ws, ws.writer():
        lines = [line.split() for line in cli("workspace", "list").out.splitlines() if "interval" in line]
        found = cli("workspace", "list", "--json").document["workspaces"]
    assert [(w["name"], w["fields"], w["live_writers"]) for w in found] == [("blank", None, 0), ("live", 6, 1)]
    assert [line[0] for line in lines] == ["blank", "live"]


def test_show_counts_rows_and_writers(cli: Cli, live: list[str]) -> None:
    with rc.open_workspace("live") as ws, ws.writer(agent="[red]x") as writer:
        play(writer, 1, 2, note="n")
        human = cli("workspace", "show", "live").out
        shown = cli("workspace", "show", "live", "--json").document
    stats = shown["stats"]
    assert (stats["steps"], stats["episodes"]) == (10, 3)
    assert {w["agent"]: (w["rows"], w["live"]) for w in stats["writers"]} == {
        "actor-0": (8, False),
        "[red]x": (2, True),
    }
    assert {w["writer"] for w in stats["writers"]} >= {live[0].partition(":")[0]}
    assert shown["schema"]["fingerprint"] == SCHEMA.fingerprint
    for text in ("10 steps in 3 episodes", "actor-0", "[red]x", SCHEMA.fingerprint, "4x5", live[0].partition(":")[0]):
        assert text in human


def test_show_without_schema(cli: Cli) -> None:
    cli("workspace", "create", "w")
    assert "not fixed yet" in cli("workspace", "show", "w").out
    shown = cli("workspace", "show", "w", "--json").document
    assert shown["schema"] is None
    assert shown["stats"]["rows"] == 0


def test_show_with_schema_before_the_first_row(cli: Cli) -> None:
    cli("workspace", "create", "w", "--preset", "llm-agent")
    ran = cli("workspace", "show", "w")
    assert ran.code == 0, ran.err
    assert "0 steps in 0 episodes" in ran.out


def test_delete_removes_and_says_how_much(cli: Cli, live: list[str], home: Path) -> None:
    ran = cli("workspace", "delete", "live", "--yes", "--json")
    assert (ran.document["deleted"], ran.document["rows"]) == (True, 8)
    assert not (home / "workspaces" / "live").exists()


def test_delete_where_nobody_can_be_asked_needs_yes(cli: Cli, live: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    ran = cli("workspace", "delete", "live")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert rc.list_workspaces() == ["live"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "left"), [("y\n", []), ("YES\n", []), ("n\n", ["live"]), ("\n", ["live"]), ("", ["live"])]
)
def test_delete_asks_on_a_terminal(
    cli: Cli, live: list[str], monkeypatch: pytest.MonkeyPatch, answer: str, left: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal(answer))
    ran = cli("workspace", "delete", "live", "--json")
    assert "Delete workspace live with 8 rows?" in ran.err
    assert ran.code == (1 if left else 0)
    assert (ran.out == "") == bool(left)
    assert rc.list_workspaces() == left


def test_delete_refuses_while_an_agent_writes(cli: Cli, live: list[str]) -> None:
    with rc.open_workspace("live") as ws, ws.writer():
        ran = cli("workspace", "delete", "live", "--yes", "--json")
    assert (ran.code, ran.error["kind"]) == (6, "writer")


def test_a_damaged_workspace_is_listed_and_can_be_deleted(cli: Cli, live: list[str], home: Path) -> None:
    cli("workspace", "create", "whole")
    (home / "workspaces" / "live" / "schema.json").write_text("{")
    assert "damaged" in cli("workspace", "list").out
    found = cli("workspace", "list", "--json").document["workspaces"]
    assert [(w["name"], w["damaged"]) for w in found] == [("live", True), ("whole", False)]
    assert cli("workspace", "show", "live").code == 9
    assert cli("workspace", "delete", "live", "--yes", "--json").document["rows"] is None
    assert rc.list_workspaces() == ["whole"]


def test_evolve_makes_the_next_version_and_says_what_changed(cli: Cli, live: list[str], tmp_path: Path) -> None:
    fields = {leaf.path: leaf.field for leaf in SCHEMA.leaves}
    later = rc.Schema({**fields, "action": rc.Tensor("int64", optional=True), "mood": rc.Text(default="calm")})
    (tmp_path / "later.toml").write_text(later.to_toml())
    ran = cli("workspace", "evolve", "live", "--schema", tmp_path / "later.toml", "--json")
    assert (ran.code, ran.err) == (0, "")
    made = ran.document
    assert [(c["kind"], c["path"]) for c in made["changes"]] == [("made_optional", "action"), ("field_added", "mood")]
    assert made["name"] == "live" and made["schema"]["fingerprint"] == later.fingerprint
    assert made["schema"]["step"]["mood"]["default"] == "calm"
    again = cli("workspace", "evolve", "live", "--schema", tmp_path / "later.toml")
    assert (again.code, again.out) == (0, f"workspace live has that schema already ({later.fingerprint})\n")
    with rc.open_workspace("live") as ws:
        assert [s["mood"] for s in ws.recent(2)] == ["calm", "calm"]
    assert "'calm'" in cli("workspace", "show", "live").out


def test_evolve_prints_each_change_on_a_line(cli: Cli, live: list[str], tmp_path: Path) -> None:
    fields = {leaf.path: leaf.field for leaf in SCHEMA.leaves}
    later = rc.Schema({**fields, "reward": rc.Tensor("float64")}, episode={"task": rc.Text()})
    (tmp_path / "later.toml").write_text(later.to_toml())
    ran = cli("workspace", "evolve", "live", "--schema", tmp_path / "later.toml")
    assert ran.out.splitlines()[0] == "field 'reward' widened from float32 to float64"
    assert ran.out.splitlines()[-1] == f"workspace live evolved with 2 changes ({later.fingerprint})"


def test_evolve_refuses_what_would_lose_values(cli: Cli, live: list[str], tmp_path: Path) -> None:
    fields = {leaf.path: leaf.field for leaf in SCHEMA.leaves if leaf.path != "note"}
    (tmp_path / "less.toml").write_text(rc.Schema(fields).to_toml())
    ran = cli("workspace", "evolve", "live", "--schema", tmp_path / "less.toml", "--json")
    assert (ran.code, ran.error["kind"]) == (3, "schema_mismatch")
    assert "'note' is gone" in ran.error["message"]
    cli("workspace", "create", "blank")
    assert cli("workspace", "evolve", "blank", "--schema", tmp_path / "less.toml").code == 3
