"""The program as a whole: errors, exit codes, help, start-up, the demo's door."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import recollect as rc
from recollect.cli import app as program_module
from recollect.cli import demo
from recollect.errors import ConflictError, DiskFull, RecollectError
from tests.cli.driver import SOURCE, Cli, program

HEAVY = ("lance", "pyarrow", "numba", "torch", "gymnasium", "numpy", "rich.progress")

FAILURES: list[tuple[str, int, str, str]] = [
    ("workspace show nope", 4, "not_found", "nope"),
    ("workspace delete nope --yes", 4, "not_found", "nope"),
    ("snapshot nope --to {tmp}/replay", 4, "not_found", "nope"),
    ("tail nope", 4, "not_found", "nope"),
    ("tail nope -f", 4, "not_found", "nope"),
    ("workspace create live", 5, "already_exists", "live"),
    ("workspace create bad!name", 2, "argument", "bad!name"),
    ("workspace create s3://bucket/w", 2, "argument", "s3://bucket/w"),
    ("workspace create w --preset llm-agent --env X", 2, "argument", "--env"),
    ("workspace create w --schema {tmp}/none.toml", 4, "not_found", "none.toml"),
    ("workspace create w --schema {tmp}/bad.toml", 3, "schema", "bad.toml"),
    ("workspace create w --schema {tmp}/odd.toml", 3, "schema", "quaternion"),
    ("workspace evolve nope --schema {tmp}/odd.toml", 3, "schema", "quaternion"),
    ("workspace evolve live --schema {tmp}/none.toml", 4, "not_found", "none.toml"),
    ("workspace create {tmp}/file/w", 7, "store", "file/w"),
    ("workspace create w --env Nope-v1", 4, "not_found", "Nope"),
    ("workspace create w --env no_such_module:Nope-v1", 11, "missing_dependency", "no_such_module"),
    ("log {tmp}/nothing", 4, "not_found", "nothing"),
    ("log ftp://host/x", 7, "store", "ftp://"),
    ("log {tmp}/nothing --storage-option region", 2, "argument", "region"),
    ("snapshot live --to {tmp}/file/replay", 7, "store", "file/replay"),
    ("snapshot live --to {tmp}/replay --tag -x", 2, "argument", "-x"),
    ("snapshot live --to {tmp}/replay --tag 12", 2, "argument", "12"),
    ("snapshot live --to {tmp}/replay --storage-option =v", 2, "argument", "=v"),
]


@pytest.mark.parametrize("args", [["log", ""], ["snapshot", "live", "--to", ""], ["workspace", "show", ""]])
def test_an_empty_address_is_not_the_current_folder(
    cli: Cli, live: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli(*args)
    assert (ran.code, ran.out) == (2, "")
    assert not list(tmp_path.glob("*.lance"))


@pytest.fixture
def places(tmp_path: Path, live: list[str]) -> Path:
    (tmp_path / "bad.toml").write_text("not = = toml")
    (tmp_path / "odd.toml").write_text('format = 1\n[step.x]\ntype = "quaternion"\n')
    (tmp_path / "file").write_text("a file, no folder")
    return tmp_path


@pytest.mark.parametrize(("command", "code", "kind", "named"), FAILURES, ids=[f[0] for f in FAILURES])
def test_an_error_is_one_line_and_an_exit_code(
    cli: Cli, places: Path, command: str, code: int, kind: str, named: str
) -> None:
    if "--env Nope" in command:
        pytest.importorskip("gymnasium")
    args = command.format(tmp=places).split()
    ran = cli(*args)
    assert (ran.code, ran.out) == (code, "")
    assert re.fullmatch(r"error: [^\n]+\n", ran.err)
    assert named in ran.err
    if kind == "already_exists":
        assert rc.list_workspaces() == ["live"]
    error = cli(*args, "--json")
    assert error.code == code
    assert set(error.error) == {"kind", "message", "value", "remedy"}
    assert error.error["kind"] == kind
    assert rc.list_workspaces() == ["live"]


def test_a_tag_that_is_taken(cli: Cli, places: Path) -> None:
    cli("snapshot", "live", "--to", places / "replay", "--tag", "t")
    with rc.open_workspace("live") as ws, ws.writer() as w, w.episode() as e:
        e.append(observation=[0, 0, 0, 0], action=0, reward=0.0)
    ran = cli("snapshot", "live", "--to", places / "replay", "--tag", "t")
    assert ran.code == 5
    assert "'t'" in ran.err


def _raise(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConflictError("a\nb", value="v", remedy="again"), 10, "error: a b (got 'v'). again"),
        (DiskFull("full"), 8, "error: full"),
        (OSError(errno.EACCES, "Permission denied", "/x"), 7, "error: permission denied: '/x'. Check"),
        (ZeroDivisionError("zero"), 1, "error: unexpected ZeroDivisionError: zero. This is a bug"),
    ],
)
def test_whatever_is_raised_becomes_a_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, text: str
) -> None:
    monkeypatch.setattr("recollect.opening.open_workspace", _raise(error))
    ran = cli("workspace", "show", "w")
    assert ran.code == code
    assert ran.err.startswith(text)
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_exits_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.setattr("recollect.opening.open_workspace", _raise(KeyboardInterrupt()))
    assert cli("workspace", "show", "w", *flags).code == 130


@pytest.mark.parametrize("args", [["snapshot", "w"], ["tail", "w", "-n", "-1"], ["nope"], ["log", "x", "--nope"]])
def test_wrong_usage_exits_with_2(cli: Cli, args: list[str]) -> None:
    ran = cli(*args)
    assert (ran.code, ran.out) == (2, "")
    assert cli(*args, "--json").error["kind"] == "argument"


def test_every_error_has_an_exit_code_of_its_own_family() -> None:
    todo: list[type[RecollectError]] = [RecollectError]
    while todo:
        kind = todo.pop()
        assert 0 < kind.exit_code < 64
        todo += kind.__subclasses__()


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"recollect {rc.__version__}\n"
    assert cli("--version", "--json").document["recollect"] == rc.__version__


def test_json_may_stand_before_the_command(cli: Cli, live: list[str]) -> None:
    assert cli("--json", "workspace", "list").document["workspaces"][0]["name"] == "live"
    assert cli("--json", "workspace", "show", "nope").error["kind"] == "not_found"


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


COMMANDS = list(_commands(typer.main.get_command(program_module.app)))


def test_the_nouns_are_those_of_the_design() -> None:
    assert {" ".join(path) for path, c in COMMANDS if path and not hasattr(c, "commands")} == {
        "workspace create", "workspace list", "workspace show", "workspace evolve", "workspace delete",
        "workspace keep", "cache show", "cache clear",
        "snapshot", "log", "tail", "recall", "verify", "doctor", "demo", "compact", "cleanup",
        "branch create", "branch list", "branch delete", "tag", "diff",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(p) or "recollect" for p, _ in COMMANDS])
def test_help_has_a_sentence_for_every_option(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], command: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = cli(*path, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert command.help
    for option in command.params:
        assert option.help, option.name
        assert option.help.rstrip().endswith("."), option.help
        names = option.opts if option.param_type_name == "option" else []
        assert all(name in ran.out for name in names)
        assert " ".join(option.help.split())[:40] in " ".join(ran.out.split())
    if path and not hasattr(command, "commands"):
        assert any("--json" in option.opts for option in command.params)


def test_starting_up_loads_nothing_heavy() -> None:
    code = (
        "import sys; from recollect.cli import main; main(['--version']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCE)}
    )
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_the_entry_point_returns_the_exit_code() -> None:
    process = program("workspace", "show", "nope", "--json")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, "")
    assert json.loads(err)["error"]["kind"] == "not_found"


def _fake_demo(monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]], code: int = 0) -> None:
    fake = types.ModuleType("recollect.demo")

    def run(**given: Any) -> int:
        print("chatter")
        calls.append(given)
        return code

    fake.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recollect.demo", fake)
    monkeypatch.setattr(demo, "NEEDS", ())


def test_demo_passes_its_options_on(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    _fake_demo(monkeypatch, calls, code=3)
    assert cli("demo", "--seed", "7", "--rounds", "2", "--out", tmp_path, "--quiet").code == 3
    assert calls == [{"seed": 7, "rounds": 2, "out": tmp_path, "quiet": True}]


def test_demo_in_json_keeps_stdout_for_the_document(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    _fake_demo(monkeypatch, calls)
    ran = cli("demo", "--json")
    assert ran.document["exit_code"] == 0
    assert "chatter" in ran.err
    assert calls[0]["quiet"] is True


def test_demo_names_what_is_missing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NEEDS", ("no_such_package",))
    ran = cli("demo")
    assert ran.code == 11
    assert ran.err == "error: the demo needs no_such_package. pip install 'recollect[demo]'\n"


def test_missing_gymnasium_is_said(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    ran = cli("workspace", "create", "w", "--env", "CartPole-v1")
    assert ran.code == 11
    assert "recollect[gym]" in ran.err
    assert rc.list_workspaces() == []
