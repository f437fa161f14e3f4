"""docs/open-formats.md: its Python blocks run as they stand, tool by tool, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "open-formats.md"
SECTION = re.compile(r"^## (.*?)$(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
TOOLS = {"Lance": "lance", "DuckDB": "duckdb", "Polars": "polars", "Ray Data": "ray"}
"""Section → the module that it shows."""


def test_each_tool_has_a_section_with_blocks() -> None:
    shown = {title for title, body in SECTION.findall(PAGE.read_text()) if BLOCK.search(body)}
    assert shown == set(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_its_blocks_run(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = TOOLS[tool]
    pytest.importorskip(module, reason=f"{module} is not installed: the blocks about {tool} are not run")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    sections = dict(SECTION.findall(text))
    before = BLOCK.findall(text[: text.index("\n## ")])
    assert len(before) == 1  # makes the buffer
    space: dict[str, object] = {}
    for block in before + BLOCK.findall(sections["Lance"]) + (BLOCK.findall(sections[tool]) if tool != "Lance" else []):
        exec(compile(block, str(PAGE), "exec"), space)


def test_the_page_names_every_column_and_type() -> None:
    from recollect.schema.arrow import SYSTEM
    from recollect.schema.fields import FIELD_TYPES

    text = PAGE.read_text()
    assert [name for name, _ in SYSTEM if f"`{name}`" not in text] == []
    assert [t.__name__ for t in FIELD_TYPES.values() if f"`{t.__name__}`" not in text] == []
