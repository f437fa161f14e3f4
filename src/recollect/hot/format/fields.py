"""The schema arranged for appends: the caller's values checked, cast, masked and encoded, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recollect.errors import FieldError
from recollect.masking import Masker, mask_json
from recollect.records.layout import NO_PLANE, Layout, column
from recollect.schema import Leaf, Schema
from recollect.schema.defaults import stored_default
from recollect.schema.fields import Frames, Json, Ragged, Tensor, Text, is_heap, is_inline, is_wide
from recollect.schema.values import cast_array, check_text, dump_json
from recollect.view import EpisodeKey

MISSING: Any = object()
Prepared: TypeAlias = "list[tuple[Leaf, Any]]"
"""Leaves with their values as they will be stored: arrays, planes, bytes; None for null."""


class OpenEpisode:
    """An episode that can still grow, as its writer knows it.

    Attributes:
        key: its name; `id` the caller's, None for the default.
        step: index of the next step.
        ended: whether a terminated or truncated step closed it.
        judged: whether a status was given, so that leaving it is not an interruption.
        lane: its tail slots, None before it needs them.
        pending: whether the newest of them holds the observation after the newest step.
        history: frames path → the newest `stack - 1` planes, oldest first.
    """

    __slots__ = ("ended", "history", "id", "judged", "key", "lane", "pending", "step")

    def __init__(self, key: EpisodeKey) -> None:
        self.key = key
        self.id: str | None = None
        self.step = 0
        self.ended = False
        self.judged = False
        self.lane: int | None = None
        self.pending = False
        self.history: dict[str, list[NDArray[Any]]] = {}


class FieldWriters:
    """The schema, arranged for appends."""

    def __init__(self, layout: Layout, mask: Masker) -> None:
        self.layout, self.mask = layout, mask
        schema = layout.schema
        self.schema: Schema = schema
        self.roots = frozenset(schema.roots)
        self.nested = frozenset(leaf.parts[0] for leaf in schema.leaves if len(leaf.parts) > 1)
        self.plain: list[tuple[str, str, Any, tuple[int, ...], float, bool, Any]] = []
        self.rich: list[Leaf] = []
        for leaf in schema.leaves:
            field = leaf.field
            if isinstance(field, Tensor) and not field.optional and len(leaf.parts) == 1:
                dtype = np.dtype(field.dtype)
                scalar = field.shape == ()
                self.plain.append(
                    (
                        leaf.path,
                        column(leaf.path),
                        dtype,
                        field.shape,
                        float(np.finfo(dtype).max) if scalar and dtype.kind == "f" else 0.0,
                        scalar and dtype.kind in "iu",
                        dtype.type if scalar else None,
                    )
                )
            else:
                self.rich.append(leaf)
        self.defaults: dict[str, Any] = {
            leaf.path: value for leaf in schema.leaves if (value := stored_default(leaf.field)) is not None
        }
        """Leaf path → what is stored where the field is left out: an array, or heap bytes."""
        self.tailed = bool(schema.observations) and not any(is_heap(leaf.field) for leaf in schema.observations)
        self.blank = np.zeros(1, layout.dtype)
        for leaf in layout.inline:
            if np.dtype(leaf.field.dtype).kind == "f":  # type: ignore[union-attr]
                self.blank[column(leaf.path)] = np.nan
        for leaf in layout.wide:
            self.blank[column(leaf.path)] = NO_PLANE
        for word, bit in layout.nulls.values():
            self.blank["nulls"][0, word] |= np.uint64(1 << bit)
        self.blank_void = self.blank[0]
        self._blank_nulls: list[int] = self.blank["nulls"][0].tolist() if layout.nulls else []
        self.simple_observation: tuple[str, str, np.dtype[Any], tuple[int, ...]] | None = None
        if len(schema.observations) == 1:
            only = schema.observations[0]
            if isinstance(only.field, Tensor) and not only.field.optional and len(only.parts) == 1:
                self.simple_observation = (only.path, column(only.path), np.dtype(only.field.dtype), only.field.shape)

    # -- reading the caller's values -----------------------------------------------------------------------

    def take(self, values: Mapping[str, Any], leaf: Leaf) -> Any:
        """The caller's value of a leaf; `MISSING` where it was not given."""
        parts = leaf.parts
        value = values.get(parts[0], MISSING)
        for part in parts[1:]:
            if value is MISSING or value is None:
                return MISSING
            if isinstance(value, Mapping):
                # Dict spaces may have whole numbers as keys; paths are text.
                value = value[part] if part in value else value.get(int(part), MISSING) if part.isdecimal() else MISSING
            elif isinstance(value, tuple | list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                raise FieldError(
                    f"field {leaf.path!r} nests in {parts[0]!r}, which takes a mapping or a tuple",
                    value=value,
                )
        return value

    def check_names(self, values: Mapping[str, Any]) -> None:
        """Raises FieldError for names that the schema lacks."""
        for name in values:
            if name not in self.roots:
                raise FieldError(
                    f"no field {name!r} in the schema",
                    remedy=f"Fields: {', '.join(self.schema.roots)}. "
                    "Writers opened before evolve() have the older schema",
                )
        for root in self.nested & set(values):
            self._check_nested(root, values[root])

    def _check_nested(self, path: str, value: Any) -> None:
        """Raises FieldError for names or places that the schema lacks below `path`."""
        if isinstance(value, tuple | list):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping):
            return
        for name, inner in value.items():
            at = f"{path}.{name}"
            if at in self.schema.by_path:
                continue
            below = [p for p in self.schema.by_path if p.startswith(at + ".")]
            if not below:
                raise FieldError(f"no field {at!r} in the schema", remedy=f"Fields: {', '.join(self.schema.by_path)}")
            self._check_nested(at, inner)

    def missing(self, path: str) -> FieldError:
        return FieldError(
            f"field {path!r} is missing",
            remedy="Pass it, or declare it optional=True if it can be unknown, or give it a default=",
        )

    def encode(self, leaf: Leaf, value: Any) -> Any:
        """A heap value's bytes, or a tensor's or embedding's array; the default where nothing was given and the field
        has one. None stays None where the field allows it."""
        field = leaf.field
        if value is MISSING and leaf.path in self.defaults:
            return self.defaults[leaf.path]
        if value is None or value is MISSING:
            if not field.optional:
                raise self.missing(leaf.path)
            return None
        if isinstance(field, Text):
            return self.mask(check_text(value, leaf.path)).encode("utf-8")
        if isinstance(field, Json):
            return dump_json(mask_json(value, self.mask), leaf.path).encode("utf-8")
        if isinstance(field, Ragged):
            return cast_array(value, np.dtype(field.dtype), None, leaf.path).tobytes()
        return cast_array(value, np.dtype(field.dtype), field.shape, leaf.path)

    def newest_plane(self, leaf: Leaf, value: Any, history: list[NDArray[Any]] | None) -> NDArray[Any] | None:
        """The plane to store from a single frame or a whole stack.

        Args:
            history: the planes that a stack must begin with (oldest first, shorter at an episode's start), or None
                where nothing is known yet.

        Raises:
            FieldError: another shape or dtype, or a stack whose older planes are not those stored before.
        """
        field = leaf.field
        assert isinstance(field, Frames)
        if value is None or value is MISSING:
            if not field.optional:
                raise self.missing(leaf.path)
            return None
        dtype = np.dtype(field.dtype)
        if field.stack == 1 or np.shape(value) == field.shape:
            return cast_array(value, dtype, field.shape, leaf.path)
        stack = cast_array(value, dtype, field.stacked_shape, leaf.path)
        older = padded(field, list(history or []), stack[-1])
        for k, plane in enumerate(older):
            if not np.array_equal(stack[k], plane):
                raise FieldError(
                    f"field {leaf.path!r}: plane {k} of the stack is not the one stored before it",
                    remedy=f"Pass single frames of shape {field.shape}, or match pad={field.pad!r} at the start",
                )
        newest: NDArray[Any] = stack[-1]
        return newest

    # -- writing -------------------------------------------------------------------------------------------

    def prepare_step(
        self, values: Mapping[str, Any], histories: Mapping[str, list[NDArray[Any]]]
    ) -> tuple[Prepared, int]:
        """The values of every leaf that the short loop does not take, and the heap bytes they need."""
        self.check_names(values)
        return self._prepare(values, histories, self.rich)

    def prepare_observation(self, observation: Any, histories: Mapping[str, list[NDArray[Any]]]) -> Prepared:
        """A next observation as prepared values of the observation leaves."""
        leaves = self.schema.observations
        if not leaves:
            raise FieldError(
                "next_observation was given, but no field has the role observation",
                remedy="Name a field 'observation', or give it role='observation'",
            )
        roots = list(dict.fromkeys(leaf.parts[0] for leaf in leaves))
        if len(roots) > 1 and not isinstance(observation, Mapping):
            raise FieldError(f"next_observation must be a mapping of {', '.join(roots)}", value=observation)
        nested = observation if len(roots) > 1 else {roots[0]: observation}
        self.check_names(nested)
        return self._prepare(nested, histories, list(leaves))[0]

    def _prepare(
        self, values: Mapping[str, Any], histories: Mapping[str, list[NDArray[Any]]], leaves: list[Leaf]
    ) -> tuple[Prepared, int]:
        out: Prepared = []
        heap = 0
        for leaf in leaves:
            value = self.take(values, leaf)
            if isinstance(leaf.field, Frames):
                encoded: Any = self.newest_plane(leaf, value, histories.get(leaf.path))
            else:
                encoded = self.encode(leaf, value)
                if isinstance(encoded, bytes):
                    heap += len(encoded)
            out.append((leaf, encoded))
        return out, heap

    def put(
        self,
        records: NDArray[np.void],
        row: int,
        prepared: Prepared,
        planes: Mapping[str, NDArray[Any]],
        plane: Mapping[str, int],
        heap: NDArray[np.uint8],
        heap_at: int,
    ) -> int:
        """Writes prepared values into one record; returns the next free heap byte."""
        nulls = list(self._blank_nulls)
        for leaf, value in prepared:
            name = column(leaf.path)
            if leaf.path in self.layout.nulls and value is not None:
                word, bit = self.layout.nulls[leaf.path]
                nulls[word] &= ~(1 << bit)
            if value is None:
                records[name][row] = self.blank[name][0]
            elif is_inline(leaf.field):
                records[name][row] = value
            elif is_wide(leaf.field):
                at = plane[leaf.path]
                planes[leaf.path][at] = value
                records[name][row] = at
            else:
                count = len(value)
                heap[heap_at : heap_at + count] = np.frombuffer(value, np.uint8)
                records[name][row] = (heap_at, count)
                heap_at += count
        if self.layout.nulls:
            records["nulls"][row] = nulls
        return heap_at


def padded(field: Frames, history: list[NDArray[Any]], newest: NDArray[Any]) -> list[NDArray[Any]]:
    """The `stack - 1` planes before `newest`, oldest first: of what was stored, padded where the episode begins."""
    older = history[-(field.stack - 1) :]
    while len(older) < field.stack - 1:
        first = older[0] if older else newest
        older.insert(0, np.zeros(field.shape, newest.dtype) if field.pad == "zero" else first)
    return older
