"""`Schema`: the one declaration that serves records, Arrow, torch, JSON and the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from recollect.errors import NotFound, SchemaError, SchemaMismatch
from recollect.schema.defaults import parse_default, plain_default
from recollect.schema.fields import (
    FIELD_TYPES,
    ROLES,
    Embedding,
    Field,
    Frames,
    Json,
    Tensor,
    Text,
    is_heap,
)

if TYPE_CHECKING:
    from recollect.schema.evolution import Change

FieldSpec: TypeAlias = "Field | Mapping[str, FieldSpec] | tuple[FieldSpec, ...] | list[FieldSpec]"

FORMAT = 1
RESERVED = (
    "writer",
    "seq",
    "episode_writer",
    "episode",
    "step",
    "time",
    "final",
    "has_next",
    "priority",
    "priority_at_append",
)
BUILT_IN_STEP = ("terminated", "truncated")
BUILT_IN_FACTS: dict[str, Field] = {
    "status": Text(optional=True),
    "reward": Tensor("float32", (), optional=True),
    "lesson": Text(optional=True),
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NESTED_NAME = re.compile(r"[A-Za-z0-9_]+\Z")

MOST_BYTES = 1 << 30
"""What a step may take: a segment holds several, and numpy no record of 2 GiB."""


@dataclass(frozen=True)
class Leaf:
    """One stored field: its dotted path, its type, and the role it has by itself or by its root's name."""

    path: str
    field: Field
    role: str | None

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.split("."))

    @property
    def is_observation(self) -> bool:
        return self.role == "observation"


class Schema:
    """What a step is.

    Args:
        fields: name → field type. A mapping or a tuple nests (gymnasium's Dict and Tuple spaces); a field
            named like a role has that role, and everything nested in it too.
        episode: name → type of the facts that an episode carries besides the built-in `status`, `reward`
            and `lesson`. Facts are always nullable.

    Raises:
        SchemaError: a reserved or malformed name, an unknown type or role, no field at all.
    """

    def __init__(self, fields: Mapping[str, FieldSpec], episode: Mapping[str, Field] | None = None) -> None:
        if not fields:
            raise SchemaError("a schema needs at least one field")
        self.leaves: tuple[Leaf, ...] = tuple(_flatten(fields))
        fixed = [f for leaf in self.leaves if isinstance(f := leaf.field, Tensor | Frames | Embedding)]
        size = sum(int(math.prod(f.shape)) * np.dtype(f.dtype).itemsize for f in fixed)
        if size > MOST_BYTES:
            raise SchemaError(
                f"a step of this schema takes more than {MOST_BYTES:,} bytes",
                value=size,
                remedy="Store what is that large beside it, and a path or key to it in a Text field",
            )
        facts: dict[str, Field] = dict(BUILT_IN_FACTS)
        for name, field in (episode or {}).items():
            _check_name(name, "episode fact")
            if name in ("id", "attempt"):
                raise SchemaError(
                    f"episode fact {name!r} is built in", remedy="Pass it to writer.episode(id=, attempt=)"
                )
            if name in BUILT_IN_FACTS and field.type != BUILT_IN_FACTS[name].type:
                raise SchemaError(f"episode fact {name!r} is built in with another type", value=field)
            if not isinstance(field, Tensor | Text | Json):
                raise SchemaError(f"episode fact {name!r} must be Tensor, Text or Json", value=field)
            if field.default is not None:
                raise SchemaError(
                    f"episode fact {name!r} takes no default", value=field.default, remedy="A fact not given is unknown"
                )
            facts[name] = dataclasses.replace(field, optional=True)
        self.episode: Mapping[str, Field] = facts

    # -- lookups -------------------------------------------------------------------------------------------

    @cached_property
    def by_path(self) -> Mapping[str, Leaf]:
        return {leaf.path: leaf for leaf in self.leaves}

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Top-level names in declaration order."""
        return tuple(dict.fromkeys(leaf.parts[0] for leaf in self.leaves))

    @cached_property
    def observations(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.leaves if leaf.is_observation)

    @cached_property
    def numeric(self) -> tuple[Leaf, ...]:
        """Leaves of fixed shape: what a batch holds when no fields are named."""
        return tuple(leaf for leaf in self.leaves if not is_heap(leaf.field))

    def select(self, names: list[str] | tuple[str, ...] | None) -> tuple[Leaf, ...]:
        """Leaves that are named or lie under a named root; the numeric ones when `names` is None.

        Raises:
            NotFound: a name that is neither a leaf nor a root.
        """
        if names is None:
            return self.numeric
        chosen: dict[str, Leaf] = {}
        for name in names:
            hits = [x for x in self.leaves if x.path == name or x.path.startswith(name + ".")]
            if not hits:
                raise NotFound(f"no field {name!r} in the schema", remedy=f"Fields: {', '.join(self.by_path)}")
            chosen.update((leaf.path, leaf) for leaf in hits)
        return tuple(chosen.values())

    def role(self, role: str) -> Leaf | None:
        """The first leaf that has `role`, or None."""
        return next((leaf for leaf in self.leaves if leaf.role == role), None)

    # -- identity ------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description from which `from_dict` makes an equal schema."""
        step: dict[str, Any] = {}
        for leaf in self.leaves:
            at = step
            for part in leaf.parts[:-1]:
                at = at.setdefault(part, {})
            at[leaf.parts[-1]] = _field_to_dict(leaf.field)
        extra = {k: v for k, v in self.episode.items() if BUILT_IN_FACTS.get(k) != v}
        return {
            "format": FORMAT,
            "step": step,
            "episode": {name: _field_to_dict(field) for name, field in extra.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schema:
        """Raises SchemaError where the description is malformed or of a newer format."""
        if data.get("format") != FORMAT:
            raise SchemaError("unknown schema format", value=data.get("format"), remedy=f"This release reads {FORMAT}")
        if not isinstance(data.get("step"), Mapping):
            raise SchemaError("a schema description needs a table 'step'", value=sorted(data))
        facts = data.get("episode", {})
        if not isinstance(facts, Mapping) or not all(isinstance(v, Mapping) for v in facts.values()):
            raise SchemaError("'episode' holds one table per fact", value=facts)
        episode = {k: _field_from_dict(f"episode.{k}", v) for k, v in facts.items()}
        return cls(_spec_from_dict("", data["step"]), episode=episode)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that are equal exactly when two schemas are."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        order = [leaf.path for leaf in self.leaves]
        return hashlib.sha256((text + json.dumps(order)).encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        inner = ", ".join(f"{leaf.path}: {leaf.field}" for leaf in self.leaves)
        return f"Schema({inner})"

    def differences(self, other: Schema) -> list[str]:
        """One line for each field or fact in which `other` differs, in words."""
        lines = []
        for title, mine, theirs in (
            (
                "field",
                {p: leaf.field for p, leaf in self.by_path.items()},
                {p: leaf.field for p, leaf in other.by_path.items()},
            ),
            ("episode fact", dict(self.episode), dict(other.episode)),
        ):
            for name in dict.fromkeys([*mine, *theirs]):
                if name not in theirs:
                    lines.append(f"{title} {name!r} is missing")
                elif name not in mine:
                    lines.append(f"{title} {name!r} is not expected")
                elif _field_to_dict(mine[name]) != _field_to_dict(theirs[name]):
                    lines.append(f"{title} {name!r} is {theirs[name]}, not {mine[name]}")
        if not lines and self != other:
            lines.append("the fields are declared in another order")
        return lines

    def require_equal(
        self, other: Schema, *, what: str, remedy: str = "Use a workspace or buffer of that schema, or create a new one"
    ) -> None:
        """Raises SchemaMismatch, naming the fields that differ, unless `other` equals this schema."""
        if self != other:
            lines = self.differences(other)
            more = f"; and {len(lines) - 12} more" if len(lines) > 12 else ""
            raise SchemaMismatch(f"{what} has another schema: {'; '.join(lines[:12])}{more}", remedy=remedy)

    def evolution(self, to: Schema) -> list[Change]:
        """The changes that lead from this schema to a later version of it; empty when they are equal.

        Fields may be added that are optional or have a default; dtypes may be widened, required fields become optional
        or get a default, episode facts be added. Rows written under this schema keep their values.

        Raises:
            SchemaMismatch: anything else; every field that would lose values or change its meaning is named.
        """
        from recollect.schema.evolution import changes

        return changes(self, to)

    def evolves_to(self, to: Schema) -> bool:
        """Whether `to` is this schema or a later version of it, as `evolution` has it."""
        try:
            self.evolution(to)
        except SchemaMismatch:
            return False
        return True

    # -- other forms ---------------------------------------------------------------------------------------

    def to_toml(self) -> str:
        """The TOML text that `from_toml` reads back into an equal schema."""
        from recollect.schema.toml import dumps

        return dumps(self)

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Schema:
        """Reads a schema file.

        Raises:
            NotFound: no such file.
            SchemaError: not TOML, or not a schema.
        """
        from recollect.schema.toml import load

        return load(path)

    @classmethod
    def from_env(cls, env: Any) -> Schema:
        """The schema of a gymnasium environment or vector environment: its single spaces and a float32 reward.

        Raises:
            SchemaError: a space that has no stored form, named by its path.
        """
        from recollect.schema.spaces import schema_from_env

        return schema_from_env(env)

    @classmethod
    def llm_agent(cls) -> Schema:
        """Steps of a language-model agent: messages, tokens, tool calls, late rewards."""
        from recollect.schema.presets import llm_agent

        return llm_agent()


def _check_name(name: str, what: str) -> None:
    if not isinstance(name, str) or not _NAME.match(name):
        raise SchemaError(
            f"a {what}'s name must be letters, digits and underscores, not starting with a digit", value=name
        )


def _flatten(fields: Mapping[str, FieldSpec]) -> Iterator[Leaf]:
    for name, spec in fields.items():
        _check_name(name, "field")
        if name in RESERVED or name.startswith("next_"):
            remedy = f"Reserved: {', '.join(RESERVED)}, next_*"
            if name == "priority":
                remedy = "append(priority=) takes one; a field of your own has another name, and role='priority'"
            raise SchemaError(f"field name {name!r} is reserved", remedy=remedy)
        if name in BUILT_IN_STEP:
            raise SchemaError(f"field {name!r} is built in", remedy="Leave it out; append() takes it")
        yield from _leaves(name, spec, name if name in ROLES else None)


def _leaves(path: str, spec: FieldSpec, inherited: str | None) -> Iterator[Leaf]:
    if isinstance(spec, tuple | list):
        spec = {str(i): inner for i, inner in enumerate(spec)}
    if isinstance(spec, Mapping):
        if not spec:
            raise SchemaError(f"field {path!r} nests nothing")
        for name, inner in spec.items():
            if not isinstance(name, str) or not _NESTED_NAME.match(name):
                raise SchemaError(f"a name nested in {path!r} must be letters, digits and underscores", value=name)
            yield from _leaves(f"{path}.{name}", inner, inherited)
        return
    if not isinstance(spec, tuple(FIELD_TYPES.values())):
        raise SchemaError(
            f"field {path!r} has no known type",
            value=spec,
            remedy="Use Tensor, Frames, Ragged, Text, Json, Embedding, or a mapping of these",
        )
    yield Leaf(path, spec, spec.role or inherited)


def _field_to_dict(field: Field) -> dict[str, Any]:
    out: dict[str, Any] = {"type": field.type}
    for item in dataclasses.fields(field):
        value = getattr(field, item.name)
        if item.default is dataclasses.MISSING or value != item.default:
            if item.name == "default":
                value = plain_default(field, value)
            # TOML has no null: an embedding without its usual role says so in a word.
            out[item.name] = "none" if value is None else list(value) if isinstance(value, tuple) else value
    return out


def _field_from_dict(path: str, data: Mapping[str, Any]) -> Field:
    kind = data.get("type")
    cls = FIELD_TYPES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise SchemaError(f"field {path!r} has no known type", value=kind, remedy=f"Types: {', '.join(FIELD_TYPES)}")
    options = {k: v for k, v in data.items() if k != "type"}
    known = {item.name for item in dataclasses.fields(cls)}
    for name in options:
        if name not in known:
            raise SchemaError(
                f"field {path!r} has an unknown option {name!r}",
                remedy=f"Options: {', '.join(sorted(known))}",
            )
    if options.get("role") == "none":
        options["role"] = None
    if "shape" in options:
        shape = options["shape"]
        if not isinstance(shape, list | tuple) or not all(type(n) is int for n in shape):
            raise SchemaError(f"field {path!r}: shape is a list of whole numbers", value=shape)
        options["shape"] = tuple(shape)
    if "default" in options:
        options["default"] = parse_default(cls.type, path, options["default"])
    try:
        field: Field = cls(**options)
    except TypeError as e:
        raise SchemaError(f"field {path!r} is incomplete: {e}") from None
    return field


def _spec_from_dict(path: str, data: Mapping[str, Any]) -> dict[str, FieldSpec]:
    out: dict[str, FieldSpec] = {}
    for name, inner in data.items():
        at = f"{path}.{name}" if path else name
        if not isinstance(inner, Mapping):
            raise SchemaError(f"field {at!r} must be a table", value=inner)
        if isinstance(inner.get("type"), str):
            out[name] = _field_from_dict(at, inner)
        else:
            out[name] = _spec_from_dict(at, inner)
    return out


__all__ = ["Embedding", "FieldSpec", "Frames", "Leaf", "Schema"]
