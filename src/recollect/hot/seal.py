"""The seal of a log that will never grow again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recollect.hot.files import replace_file

NAME = "sealed.json"


def seal(folder: Path, rows: int, facts: int, *, clean: bool, lost_rows: int = 0) -> None:
    """Notes where a log ends. `clean` says that its writer closed it; `lost_rows` how many failed verification."""
    data = {"rows": rows, "facts": facts, "clean": clean, "lost_rows": lost_rows}
    replace_file(folder / NAME, json.dumps(data).encode())


def read_seal(folder: Path) -> dict[str, Any] | None:
    """The seal, or None while the log can grow."""
    try:
        data: dict[str, Any] = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        return None
    return data
