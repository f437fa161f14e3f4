"""From one version of a schema to the next: what may change without changing what is stored already.

The rule: every row written under the old schema must read the same under the new one, value by value, and every field
must go on meaning what it meant. What the old rows lack is null, or the new field's default (design/0007).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from recollect.errors import SchemaMismatch
from recollect.schema.defaults import stored_default
from recollect.schema.fields import Embedding, Field
from recollect.schema.schema import Leaf, Schema

Kind: TypeAlias = Literal["field_added", "fact_added", "dtype_widened", "made_optional", "default_given"]


@dataclass(frozen=True)
class Change:
    """One difference between a schema and a later version of it.

    Attributes:
        kind: a field or an episode fact that is new; a dtype that holds more; a required field that may now be null; a
            field that may now be left out.
        path: the field's dotted path, or `episode.<fact>`.
        text: the change in words.
    """

    kind: Kind
    path: str
    text: str


def changes(old: Schema, new: Schema) -> list[Change]:
    """`Schema.evolution`."""
    done: list[Change] = []
    refused: list[str] = []
    mine = {leaf.path: leaf for leaf in old.leaves}
    theirs = {leaf.path: leaf for leaf in new.leaves}
    for path, leaf in mine.items():
        if path not in theirs:
            refused.append(f"field {path!r} is gone, and with it the values of every row")
            continue
        _compare(path, leaf.field, theirs[path].field, done, refused)
    added = [leaf for path, leaf in theirs.items() if path not in mine]
    for leaf in added:
        if leaf.field.optional or stored_default(leaf.field) is not None:
            done.append(Change("field_added", leaf.path, f"field {leaf.path!r} added: {leaf.field}"))
        else:
            refused.append(f"new field {leaf.path!r} has no value in old rows: make it optional or give it a default")
    refused += _order(old, new, mine, theirs)
    for name, field in new.episode.items():
        if name in old.episode:
            _compare(f"episode.{name}", old.episode[name], field, done, refused)
        else:
            done.append(Change("fact_added", f"episode.{name}", f"episode fact {name!r} added: {field}"))
    refused += [f"episode fact {name!r} is gone" for name in old.episode if name not in new.episode]
    if refused:
        more = f"; and {len(refused) - 12} more" if len(refused) > 12 else ""
        raise SchemaMismatch(
            f"the schema is no later version of the present one: {'; '.join(refused[:12])}{more}",
            remedy="Keep every field as it is and add another one, or create a new workspace",
        )
    return done


def _order(old: Schema, new: Schema, mine: Mapping[str, Leaf], theirs: Mapping[str, Leaf]) -> Iterator[str]:
    """What must not change though every field is there: which one comes first, and whether there is an observation."""
    before, after = [p for p in mine if p in theirs], [p for p in theirs if p in mine]
    if before != after:
        # It would change nothing but cost a translation of every old row.
        moved = next(b for a, b in zip(before, after, strict=True) if a != b)
        yield f"field {moved!r} has another place among the fields"
    for role in dict.fromkeys(leaf.role for leaf in mine.values() if leaf.role):
        first, now = old.role(role), new.role(role)
        if first and now and first.path != now.path and first.path in theirs and now.path not in mine:
            yield f"new field {now.path!r} takes the role {role} from {first.path!r}: declare it behind"
    if new.observations and not old.observations:
        # The ends of old episodes have no next observation: rows that could be drawn no longer could.
        yield f"new field {new.observations[0].path!r} makes a schema without observations one with observations"


def _compare(path: str, old: Field, new: Field, done: list[Change], refused: list[str]) -> None:
    """Notes how one field changed, or why it may not."""
    if old.type != new.type:
        refused.append(f"field {path!r} is {new.type}, not {old.type}")
        return
    for name in ("shape", "stack", "pad", "role"):
        was, now = getattr(old, name, None), getattr(new, name, None)
        if was != now:
            refused.append(f"field {path!r} has {name} {now!r}, not {was!r}")
    if not isinstance(old, Embedding) and (was := getattr(old, "dtype", None)) != (now := getattr(new, "dtype", None)):
        if is_widened(str(was), str(now)):
            done.append(Change("dtype_widened", path, f"field {path!r} widened from {was} to {now}"))
        else:
            refused.append(f"field {path!r} is {now}, which does not hold every {was} as the same number")
    if old.optional and not new.optional:
        refused.append(f"field {path!r} is no longer optional, but rows without it exist")
    if new.optional and not old.optional:
        done.append(Change("made_optional", path, f"field {path!r} may be null"))
    _compare_defaults(path, old, new, done, refused)


def _compare_defaults(path: str, old: Field, new: Field, done: list[Change], refused: list[str]) -> None:
    was, now = stored_default(old), stored_default(new)
    if was is None and now is None:
        return
    if was is None:
        if old.optional:
            refused.append(f"field {path!r} got a default, but rows without it read as null")
        else:
            text = f"field {path!r} may be left out, which stores {_shown(new)}"
            done.append(Change("default_given", path, text))
    elif now is None or not _same(old, new):
        refused.append(f"field {path!r} has default {_shown(new)}, not {_shown(old)}, which rows without it read as")


def _same(old: Any, new: Any) -> bool:
    """Whether two defaults are one value, bit for bit in the newer dtype."""
    was, now = stored_default(old), stored_default(new)
    if old.type in ("text", "json"):
        return was == now
    with np.errstate(all="ignore"):
        return (
            np.array(old.default, old.dtype).astype(new.dtype).tobytes() == np.array(new.default, new.dtype).tobytes()
        )


def _shown(field: Any) -> str:
    text = repr(field.default)
    return text if len(text) <= 60 else text[:57] + "..."


def is_widened(old: str, new: str) -> bool:
    """Whether every value of dtype `old` is the same number in `new`, and stays a number of its kind.

    Integers may become floats only where each has its float: int16 in float32, int32 in float64, never int64, which
    numpy calls a safe cast to float64 though it rounds beyond 2^53. A truth value is no number: a mask that became
    integers would index instead of select.
    """
    a, b = np.dtype(old), np.dtype(new)
    if a == b or "b" in (a.kind, b.kind) or not np.can_cast(a, b, "safe"):
        return False
    if a.kind in "iu" and b.kind == "f":
        digits = 8 * a.itemsize - (a.kind == "i")
        return digits <= np.finfo(b).nmant + 1
    return True


__all__ = ["Change", "changes", "is_widened"]
