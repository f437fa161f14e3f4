"""What can be read and drawn: ids, cuts, episodes, anchors, facts. Plain numpy types."""

from recollect.view.facts import Fact, FactIndex
from recollect.view.ids import (
    F64,
    I64,
    ID_DTYPE,
    Bool,
    Cut,
    EpisodeKey,
    Extent,
    Ids,
    Slots,
    StepId,
    make_ids,
    merged,
)
from recollect.view.view import Anchors, Episodes, Rows, View

__all__ = [
    "ID_DTYPE",
    "Anchors",
    "Bool",
    "Cut",
    "EpisodeKey",
    "Episodes",
    "Extent",
    "F64",
    "Fact",
    "FactIndex",
    "I64",
    "Ids",
    "Rows",
    "Slots",
    "StepId",
    "View",
    "make_ids",
    "merged",
]
