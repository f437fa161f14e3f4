"""The checker of growing views finds rows that moved, rows that are missing, and windows of another length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recollect.opening import create_workspace
from recollect.testing.actor import Actor, Journal
from recollect.testing.corpus import SCHEMAS
from recollect.testing.expected import Expectation, Wrong, expect
from recollect.testing.follow import Follower, Followers
from recollect.testing.ledger import Append, Leave, Op, Open, Resume
from recollect.view import View
from recollect.workspace import Workspace

OPS: list[Op] = [
    Open(0, "process"),
    Open(1, "process"),
    Append(0, 0, "", "other"),
    Append(1, 0),
    Append(0, 0, "", "other"),
    Leave(0, 0),
    Resume(1, 1, 1),
    Append(1, 1, "", "same"),
    Append(0, 1),
    Append(1, 0, "terminated"),
]


class _Made:
    """A source that is made anew, or held fast, at each refresh."""

    def __init__(self, make: Callable[[], View]) -> None:
        self.refresh = make


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return create_workspace(tmp_path / "w", SCHEMAS["words"](), durability="process")


def _play(workspace: Workspace, look: Callable[[Expectation], None]) -> None:
    """Carries all out, and looks after each operation."""
    actor, journal = Actor(workspace), Journal()
    for k, op in enumerate(OPS):
        journal.note(k, *actor.do(op))
        look(expect(OPS[: k + 1], journal.read(), durability="process", power=False))
    journal.close()


def _look(follower: Follower) -> None:
    follower.refresh()


def test_views_that_grow_are_followed_through_a_resumption(workspace: Workspace) -> None:
    followers = Followers(workspace, 3)
    _play(workspace, followers.check)
    assert len(followers._whole.ids) > len(followers._window.slots) == 3


def test_a_row_that_moves_is_noticed(workspace: Workspace) -> None:
    follower = Follower(_Made(lambda: workspace.live().refresh()))
    with pytest.raises(Wrong, match=r"slot \d+ held row"):
        _play(workspace, lambda _: _look(follower))


def test_a_view_that_does_not_grow_is_noticed(workspace: Workspace) -> None:
    followers = Followers(workspace, 3)
    stale = workspace.live().refresh()
    followers._whole._source = _Made(lambda: stale)
    with pytest.raises(Wrong, match="must be there"):
        _play(workspace, followers.check)


def test_a_window_that_keeps_old_rows_is_noticed(workspace: Workspace) -> None:
    followers = Followers(workspace, 3)
    followers._window._source = workspace.live()
    with pytest.raises(Wrong, match=r"a window of \d rows, not 3"):
        _play(workspace, followers.check)
