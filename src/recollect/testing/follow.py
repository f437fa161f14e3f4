"""Views that grow, held against the model and against what they said before."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from recollect.errors import SchemaMismatch
from recollect.records.grown import GrownRows
from recollect.testing import corpus
from recollect.testing.expected import Expectation, require
from recollect.testing.oracle import check_view
from recollect.view import Slots, View
from recollect.workspace import Workspace


class Source(Protocol):
    """Where views that grow come from."""

    def refresh(self) -> View: ...


class Follower:
    """One source, and where its rows were.

    Attributes:
        ids: slot → id of every row ever seen.
        slots: those of the newest view.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.ids: dict[int, tuple[int, int]] = {}
        self.slots: Slots = np.empty(0, np.int64)

    def refresh(self) -> View:
        """The newest view.

        Raises:
            Wrong: a row lies in another slot than before, or is gone from the window's inside.
        """
        view = self._source.refresh()
        assert isinstance(view.rows, GrownRows)
        first = view.rows.first
        self.slots = np.arange(first, first + len(view.rows))
        here: list[tuple[int, int]] = view.rows.ids(self.slots).tolist()
        held = dict(zip(self.slots.tolist(), here, strict=True))
        for slot, id in self.ids.items():
            require(slot < first or slot in held, f"slot {slot} is gone")
            require(slot < first or held[slot] == id, f"slot {slot} held row {id}, holds {held.get(slot)}")
        self.ids.update(held)
        return view


class Followers:
    """A source of all rows and one of the newest few, of one handle."""

    def __init__(self, workspace: Workspace, last: int) -> None:
        self._workspace, self._last = workspace, last
        self._begin()

    def _begin(self) -> None:
        self._version = self._newest()
        self._whole, self._window = Follower(self._workspace.live()), Follower(self._workspace.live(self._last))
        self._refresh()

    def _refresh(self) -> tuple[View, View]:
        """Both at one time: what is evicted between two looks is in neither."""
        return self._whole.refresh(), self._window.refresh()

    def _newest(self) -> int:
        schema = self._workspace.schema
        assert schema is not None
        return corpus.version_of(schema)

    def check(self, expect: Expectation) -> None:
        """Holds the newest views against the model, and against a view made from scratch. Nobody may be writing.

        Raises:
            Wrong: the view of all rows is not what was written; the window is not as long as it must be, or one of them
                says of its rows what a plain view does not.
        """
        try:
            whole, view = self._refresh()
        except SchemaMismatch as e:
            require(self._newest() > self._version, f"views do not grow, under the newest schema: {e}")
            self._begin()
            whole, view = self._refresh()
        check_view(whole, expect)
        window = self._window
        wanted_rows = min(self._last, len(self._whole.ids))
        require(len(view.rows) == wanted_rows, f"a window of {len(view.rows)} rows, not {wanted_rows}")
        # Rows that were there at the beginning lie in the order of time, which is another one here and there.
        require(set(window.ids.values()) <= set(self._whole.ids.values()), "a window holds rows that are not there")
        plain = self._workspace.view()
        for grown, slots in ((whole, self._whole.slots), (view, window.slots)):
            at = plain.rows.find(grown.rows.ids(slots))
            # What is not there is evicted.
            slots, at = slots[at >= 0], at[at >= 0]
            for name in ("uid", "step", "reward", "time"):
                held = grown.rows.gather(slots, (name,))[name]
                wanted = plain.rows.gather(at, (name,))[name]
                require(held.tobytes() == wanted.tobytes(), f"{name} is {held.tolist()}, not {wanted.tolist()}")
