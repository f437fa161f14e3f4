"""The README's Python blocks run as they stand, one after another, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), space)


def test_the_commands_it_names_exist() -> None:
    from typer.main import get_command

    from recollect.cli.app import app

    group = get_command(app)
    named = {line.split()[1] for line in README.read_text().splitlines() if line.startswith("recollect ")}
    assert named and named <= set(group.commands)  # type: ignore[attr-defined]


def test_the_quick_start_is_about_twenty_lines() -> None:
    block = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 22
