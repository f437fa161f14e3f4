"""How the drawable rows change from one view to the next, for samplers."""

from __future__ import annotations

from recollect.view import View
from recollect.view.changes import Change, among, change, listed

__all__ = ["Change", "among", "change", "first_slots", "listed"]


def first_slots(view: View) -> list[int]:
    """Of each part of a view, one where it is not joined: rows before this slot are gone for good."""
    firsts: list[int] | None = getattr(view.rows, "firsts", None)
    return [int(getattr(view.rows, "first", 0))] if firsts is None else firsts
