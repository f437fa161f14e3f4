"""Schema files: TOML in both directions."""

from __future__ import annotations

import tomllib
from os import PathLike
from pathlib import Path

import tomli_w

from recollect.errors import NotFound, SchemaError
from recollect.schema.schema import Schema


def dumps(schema: Schema) -> str:
    return tomli_w.dumps(schema.to_dict())


def loads(text: str, *, what: str = "schema text") -> Schema:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise SchemaError(f"{what} is not TOML: {e}") from None
    return Schema.from_dict(data)


def load(path: str | PathLike[str]) -> Schema:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise NotFound(f"cannot read schema file {str(path)!r}: {e.strerror}") from None
    return loads(text, what=f"schema file {str(path)!r}")
