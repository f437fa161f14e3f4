"""Holding an index against one that is made anew from the logs."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recollect.hot.read.sidecar import Sidecar, Stale


@dataclass(frozen=True)
class Difference:
    """How an index differs from the logs.

    Attributes:
        missing: entries that the logs have and the index lacks; `extra` the other way round.
        damage: what is wrong with the file itself, "" where nothing is.
    """

    missing: int
    extra: int
    damage: str = ""

    def __str__(self) -> str:
        return self.damage or f"{self.missing:,} entries missing, {self.extra:,} that should not be there"


def compare(
    file: Sidecar,
    tables: str,
    fill: Callable[[sqlite3.Connection], None],
    entries: Mapping[str, str],
) -> Difference | None:
    """How an index differs from one made anew; None where it does not, or where there is none.

    Live processes may add to the index meanwhile: a copy of it is looked at, and only as far as that goes.

    Args:
        tables: statements that make it, without the identity.
        fill: fills an empty index (`main`) as far as the other (`held`) goes.
        entries: table → a query of its entries, which names it `{name}` and its schema `{schema}`.
    """
    existed = file.path.exists()
    with tempfile.TemporaryDirectory(prefix="recollect-verify-") as folder:
        copied = Path(folder) / "held.sqlite"
        if file.read(lambda connection: _copy(connection, copied)) is None:
            wrong = file.thrown_away
            if not existed or wrong is None or isinstance(wrong, Stale):
                return None
            return Difference(0, 0, str(wrong))
        with contextlib.closing(sqlite3.connect(Path(folder) / "made.sqlite", isolation_level=None)) as made:
            made.execute("PRAGMA synchronous = OFF")
            try:
                made.execute("ATTACH ? AS held", (str(copied),))
                damage = [row[0] for row in made.execute("PRAGMA held.integrity_check(1)") if row[0] != "ok"]
                if damage:
                    return Difference(0, 0, damage[0])
                for statement in tables.split(";"):
                    made.execute(statement)
                made.execute("BEGIN")
                fill(made)
                made.execute("COMMIT")
                counts = [0, 0]
                for name, query in entries.items():
                    sides = [query.format(schema=schema, name=name) for schema in ("main", "held")]
                    for k, (one, other) in enumerate((sides, sides[::-1])):
                        found = made.execute(f"SELECT count(*) FROM ({one} EXCEPT {other})").fetchone()
                        counts[k] += found[0]
            except sqlite3.DatabaseError as error:
                return Difference(0, 0, str(error))
            return Difference(counts[0], counts[1]) if any(counts) else None


def _copy(connection: sqlite3.Connection, path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as copy:
        connection.backup(copy)
    return True
