"""The observations that wait after a log's last steps: in tail slots, or in the rows that followed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from recollect.errors import StoreError
from recollect.hot.format.tails import TailFile, damaged_slots
from recollect.records.block import Block, join_rows
from recollect.records.layout import FINAL, Layout
from recollect.view import Ids, make_ids


class Tails:
    """The tails files of one log, mapped when somebody first asks. They are numbered in the order of their creation,
    and none goes away before the log's last segment does. Under the log's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[TailFile] = []

    def open_(self, layout: Layout, is_evicted: Callable[[], bool], *, known: bool, keep: bool) -> list[TailFile]:
        """The maps of the tails files, or of those that are `known`: mapped already.

        Args:
            is_evicted: whether the log, and its tails with it, was evicted: then one may be missing.
            keep: whether the log may still grow. One that cannot is seldom asked, and gives its maps up.
        """
        files = self._files
        if not known:
            while (path := self._folder / f"{len(files):08d}.tails").exists():
                try:
                    files.append(TailFile.open_(path, layout))
                except StoreError:
                    if not is_evicted():
                        raise
        if not keep:
            self._files = []
        return files


def damaged(files: list[TailFile], layout: Layout, is_evicted: Callable[[], bool]) -> int:
    """How many slots of a log's tails files are damaged, none where they were evicted."""
    try:
        return damaged_slots([file.path for file in files], layout)
    except StoreError:
        if is_evicted():
            return 0
        raise


def successor(read: Callable[[int, int], Iterable[tuple[Block, int, int]]], seq: int, stop: int) -> Block | None:
    """The row after step `seq` of the same episode, as a block of one, None when there is none in its log.

    Args:
        read: the blocks that hold rows of the log from one to another.
        stop: where the log's rows end.
    """
    found = list(read(seq, seq + 1))
    if not found:
        return None
    block, row, _ = found[0]
    mine = block.records[row]
    for piece, low, high in read(seq + 1, stop):
        records = piece.records[low:high]
        hit = np.flatnonzero(
            (records["episode"] == mine["episode"]) & (records["episode_writer"] == mine["episode_writer"])
        )
        if len(hit):
            at = low + int(hit[0])
            if piece.records["step"][at] != mine["step"] + 1:
                return None  # what came between is gone
            return Block(piece.records[at : at + 1], piece.planes, piece.heap, piece.owner)
    return None


def joined(
    layout: Layout, found: Ids, block: Block | None, later: Sequence[tuple[tuple[int, int], Block]]
) -> tuple[Ids, Block | None]:
    """Waiting observations together with the rows that took the place of others.

    Args:
        found, block: steps, and the observations that waited after them.
        later: steps, each with its successor.
    """
    if not later:
        return found, block
    parts = [block] if block is not None else []
    together = join_rows(layout, [*parts, *(s for _, s in later)])
    ids = np.concatenate([found, make_ids([i[0] for i, _ in later], [i[1] for i, _ in later])])
    together.records["writer"], together.records["seq"] = ids["writer"], ids["seq"]
    together.records["flags"] = FINAL
    return ids, together
