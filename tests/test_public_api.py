"""The public names, and what importing them costs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import recollect as rc
from tests.support import ROOT, run_python

HEAVY = ("torch", "lance", "mcp", "numba", "pyarrow", "sqlglot", "gymnasium", "typer", "rich", "matplotlib")


def test_every_public_name_exists_and_is_documented() -> None:
    assert len(set(rc.__all__)) == len(rc.__all__)
    assert rc.__all__ == sorted(rc.__all__)
    for name in rc.__all__:
        if name == "gym":
            pytest.importorskip("gymnasium")
        value = getattr(rc, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), f"{name} has no docstring"


def test_the_list_of_public_names_is_complete() -> None:
    """What the module can hand out, what it promises to type checkers, and `__all__` are one list."""
    source = Path(rc.__file__).read_text()
    checked = source.split("if TYPE_CHECKING:")[1].split("__all__")[0]
    imported: set[str] = set()
    for found in re.finditer(r"from [\w.]+ import (?:\(([^)]*)\)|([^\n(]+))", checked):
        for item in (found.group(1) or found.group(2)).split(","):
            if name := item.strip().split(" as ")[-1].strip():
                imported.add(name)
    assert imported == set(rc.__all__)
    assert set(rc._HOME) | set(rc._MODULES) == set(rc.__all__)
    assert set(dir(rc)) >= set(rc.__all__)


def test_public_classes_are_found_where_the_design_names_them() -> None:
    wanted = (
        "Tensor Frames Ragged Text Json Embedding Schema create_workspace open_workspace open_buffer Loader Uniform "
        "NStep View StepId EpisodeKey errors"
    )
    assert set(wanted.split()) <= set(rc.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_this"):
        rc.nothing_like_this  # noqa: B018
    assert not hasattr(rc, "np")


def test_importing_recollect_loads_nothing_heavy() -> None:
    code = f"import sys, json, recollect; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run_python(code)) == []


def test_declaring_a_schema_loads_nothing_heavy() -> None:
    code = f"""
import sys, json, recollect as rc
rc.Schema({{"observation": rc.Frames((2, 2), stack=2), "note": rc.Text()}}).to_toml()
rc.errors.NotFound("x")
print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))
"""
    assert json.loads(run_python(code)) == []


def test_writing_to_a_workspace_loads_neither_lance_nor_torch() -> None:
    code = f"""
import sys, json, recollect as rc
ws = rc.create_workspace("w", rc.Schema({{"reward": rc.Tensor("float32")}}))
with ws.writer() as writer, writer.episode() as episode:
    episode.append(reward=1.0)
ws.close()
print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))
"""
    assert not set(json.loads(run_python(code))) & {"torch", "lance", "mcp", "sqlglot", "gymnasium"}


def test_the_package_is_typed() -> None:
    assert (Path(rc.__file__).parent / "py.typed").exists()
    assert (ROOT / "pyproject.toml").exists()
