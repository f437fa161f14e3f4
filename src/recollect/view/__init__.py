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
from recollect.view.view import (
    AnchorList,
    Anchors,
    Episodes,
    GrowingSource,
    Rows,
    Runs,
    Source,
    UnboundSource,
    View,
)

__all__ = [
    "ID_DTYPE",
    "AnchorList",
    "Anchors",
    "Bool",
    "Cut",
    "EpisodeKey",
    "Episodes",
    "Extent",
    "F64",
    "Fact",
    "FactIndex",
    "GrowingSource",
    "I64",
    "Ids",
    "Rows",
    "Runs",
    "Slots",
    "Source",
    "StepId",
    "UnboundSource",
    "View",
    "make_ids",
    "merged",
]
