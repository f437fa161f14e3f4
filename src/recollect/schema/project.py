"""One schema for several sources: what all of them have, found by name or by role."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recollect.errors import SchemaMismatch
from recollect.schema.evolution import is_widened
from recollect.schema.fields import Embedding, Field
from recollect.schema.schema import FieldSpec, Leaf, Schema

_REMEDY = "Declare the field alike in both, give it the same role, or draw from them with a loader each"


@dataclass(frozen=True)
class Projection:
    """The schema that several parts are read in.

    Attributes:
        schema: the fields that every part has, under the names and in the order of the first part.
        sources: for each part, field of `schema` → the part's own field.
        left_out: for each part, its fields that others lack; they are not read.
    """

    schema: Schema
    sources: tuple[Mapping[str, str], ...]
    left_out: tuple[tuple[str, ...], ...]


def projected(schemas: Mapping[str, Schema]) -> Projection:
    """The schema that parts have in common.

    A field of the first part is that of another part which has the same name, or, where none has, the only one of the
    same role. Dtypes are widened as in an evolution (design/0007), and a field is optional where it is in some part.
    A field that some part lacks is left out.

    Raises:
        SchemaMismatch: two fields of a name or role that cannot be one, or an observation, action or reward that some
            part lacks; named.
    """
    names, every = list(schemas), list(schemas.values())
    first = every[0]
    if all(schema == first for schema in every[1:]):
        same = {leaf.path: leaf.path for leaf in first.leaves}
        return Projection(first, (same,) * len(every), ((),) * len(every))
    chosen: dict[str, Field] = {}
    sources: list[dict[str, str]] = [{} for _ in every]
    for leaf in first.leaves:
        found = [leaf, *(_counterpart(leaf, first, schema) for schema in every[1:])]
        lacking = [name for name, x in zip(names, found, strict=True) if x is None]
        if lacking:
            _require_optional(leaf, names[0], lacking[0])
            continue
        there = [x for x in found if x is not None]
        field = leaf.field
        for name, other in zip(names[1:], there[1:], strict=True):
            field = _joint(leaf.path, field, other.field, names[0], name)
        chosen[leaf.path] = field
        for source, x in zip(sources, there, strict=True):
            source[leaf.path] = x.path
    left_out = []
    for name, schema, source in zip(names, every, sources, strict=True):
        missing = [leaf for leaf in schema.leaves if leaf.path not in source.values()]
        for leaf in missing:
            _require_optional(leaf, name, names[0])
        left_out.append(tuple(leaf.path for leaf in missing))
    if not chosen:
        raise SchemaMismatch(f"{names[0]!r} and {names[1]!r} have no field in common", remedy=_REMEDY)
    return Projection(Schema(_nested(chosen), _facts(schemas)), tuple(sources), tuple(left_out))


def _counterpart(leaf: Leaf, first: Schema, other: Schema) -> Leaf | None:
    """The field of another part that a field of the first is."""
    named = other.by_path.get(leaf.path)
    if named is not None or leaf.role is None:
        return named
    mine = [x for x in first.leaves if x.role == leaf.role]
    theirs = [x for x in other.leaves if x.role == leaf.role]
    alone = len(mine) == len(theirs) == 1 and theirs[0].path not in first.by_path
    return theirs[0] if alone else None


def _require_optional(leaf: Leaf, name: str, lacking: str) -> None:
    if leaf.role in ("observation", "action", "reward"):
        raise SchemaMismatch(
            f"part {lacking!r} has nothing for the {leaf.role} {leaf.path!r} of part {name!r}", remedy=_REMEDY
        )


def _joint(path: str, a: Field, b: Field, first: str, other: str) -> Field:
    """The field that holds the values of both."""

    def refused(what: str, mine: Any, theirs: Any) -> SchemaMismatch:
        return SchemaMismatch(
            f"{path!r} cannot be one field: its {what} is {mine} in part {first!r} and {theirs} in part {other!r}",
            remedy=_REMEDY,
        )

    if a.type != b.type:
        raise refused("type", a.type, b.type)
    for name in ("shape", "stack", "pad", "size"):
        mine, theirs = getattr(a, name, None), getattr(b, name, None)
        if mine != theirs:
            raise refused(name, mine, theirs)
    out: dict[str, Any] = {"optional": a.optional or b.optional}
    mine, theirs = str(getattr(a, "dtype", "")), str(getattr(b, "dtype", ""))
    if not isinstance(a, Embedding) and mine != theirs:
        if a.type not in ("tensor", "frames") or not (is_widened(mine, theirs) or is_widened(theirs, mine)):
            raise refused("dtype", mine, theirs)
        out["dtype"] = theirs if is_widened(mine, theirs) else mine
    if getattr(a, "default", None) is not None:
        out["default"] = None  # it says what a step holds that is written; nothing is written here
    return dataclasses.replace(a, **out)


def _facts(schemas: Mapping[str, Schema]) -> dict[str, Field]:
    """The facts of all parts; one that a part lacks is unknown there."""
    out: dict[str, Field] = {}
    home: dict[str, str] = {}
    for name, schema in schemas.items():
        for fact, field in schema.episode.items():
            if fact not in out:
                out[fact], home[fact] = field, name
            else:
                out[fact] = _joint(f"episode.{fact}", out[fact], field, home[fact], name)
    return out


def _nested(fields: Mapping[str, Field]) -> dict[str, FieldSpec]:
    """Fields by dotted path, as a schema is declared."""
    out: dict[str, Any] = {}
    for path, field in fields.items():
        at = out
        *parents, last = path.split(".")
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = field
    return out
