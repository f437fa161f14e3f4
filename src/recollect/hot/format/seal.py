"""The seal of a log that will never grow again: where it ends, whatever its counters say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from recollect.errors import CorruptionError
from recollect.hot.format.files import ABSENT, replace_file
from recollect.hot.format.notes import pack, read

NAME = "sealed.json"


@dataclass(frozen=True)
class Seal:
    """Where a log ends.

    Attributes:
        rows, facts: what it holds.
        segments: files of the log; later ones are beyond the end.
        clean: whether its writer closed it.
        resumed: whether a resumption may be among its facts; False spares readers the look.
        lost: rows `[start, stop)` that had been published, or counted as durable, and were not whole.
        lost_facts: facts likewise; `lost_segments` files that are missing or could not be read.
        tails: tails files, and `lost_tails` their slots that were damaged: observations that waited there are lost.
    """

    rows: int
    facts: int
    segments: int
    clean: bool
    resumed: bool
    lost: tuple[int, int] | None = None
    lost_facts: int = 0
    lost_segments: int = 0
    tails: int = 0
    lost_tails: int = 0


def seal(folder: Path, what: Seal) -> None:
    """Writes a seal. Durable when it returns."""
    replace_file(folder / NAME, pack(asdict(what)))


def read_seal(folder: Path) -> Seal | None:
    """The seal, or None while the log can grow.

    Raises:
        CorruptionError: it is damaged. Opening the workspace seals the log anew.
        StoreError: it cannot be read.
    """
    try:
        body = read(folder / NAME)
        lost = body.pop("lost")
        return Seal(**body, lost=None if lost is None else (lost[0], lost[1]))
    except ABSENT:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CorruptionError(
            f"{str(folder / NAME)!r} is damaged: {e}", remedy="Open the workspace again: the log is then sealed anew"
        ) from None
