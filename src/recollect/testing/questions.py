"""What a workspace answers through its indexes, and what `verify` says of it, while a byte of either may be wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recollect.errors import NotFound, RecollectError
from recollect.recall.verify import verify
from recollect.testing.expected import require
from recollect.view import StepId
from recollect.workspace import Workspace

QUERY = "plain words"
EVERY = 10_000


class Answers(NamedTuple):
    """What was answered.

    Attributes:
        episodes: a step of each episode → the uids of the episode that `episode` returned.
        hits: uids of the steps that `similar` found.
    """

    episodes: dict[StepId, tuple[int, ...]]
    hits: frozenset[int]


def build_indexes(workspace: Workspace) -> None:
    """Makes both indexes as far as the logs go; small workspaces have no catalog of themselves."""
    workspace.similar(QUERY)
    workspace._hot().catalog.catch_up(workspace.cut())


def ask(workspace: Workspace) -> Answers:
    """Asks for every episode by its first step, and for a text."""
    view = workspace.view()
    every = np.arange(len(view.rows))
    steps = every[~view.episodes.is_final]
    first = steps[np.unique(view.episodes.group[steps], return_index=True)[1]]
    asked = [StepId(*i) for i in view.rows.ids(first).tolist()]
    episodes = {id: _uids(workspace, id) for id in asked}
    return Answers(episodes, frozenset(int(step["uid"]) for step in workspace.similar(QUERY, EVERY)))


def _uids(workspace: Workspace, step: StepId) -> tuple[int, ...]:
    """Of the steps of an episode; none where a damaged index hides it."""
    try:
        return tuple(workspace.episode(step)["uid"].tolist())
    except NotFound:
        return ()


def check_answers(held: Answers, wanted: Answers) -> bool:
    """Whether the answers are those wanted. Fails where one shows what is not so; an index that is damaged may hide
    something until `verify` looks at it."""
    require(held.episodes.keys() == wanted.episodes.keys(), "episodes are gone")
    for id, uids in wanted.episodes.items():
        require(set(held.episodes[id]) <= set(uids), f"episode of {id}: {held.episodes[id]}, not {uids}")
    wrong = held.hits - wanted.hits
    require(not wrong, f"similar({QUERY!r}) found uids {sorted(wrong)}, which it does not find")
    return held == wanted


def is_reported(path: Path) -> bool:
    """Whether `verify` finds something wrong, or cannot even begin. Any error but the product's own is raised."""
    try:
        return not verify(path).ok
    except RecollectError:
        return True


class Pinned:
    """Second names for files, so that they come back under their inodes after the product threw them away."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        folder.mkdir()
        self._names = {file: folder / f"{k}" for k, file in enumerate(files)}
        for file, name in self._names.items():
            os.link(file, name)

    def restore(self) -> None:
        for file, name in self._names.items():
            if not file.exists() or not file.samefile(name):
                file.unlink(missing_ok=True)
                os.link(name, file)
