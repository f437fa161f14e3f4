"""`recollect verify`: whether everything that a workspace holds is whole, and what can be done where it is not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from recollect.cli.options import Json, OnBranch, StorageOptions, location, storage_options
from recollect.cli.output import Output, console, count, plain
from recollect.cli.upkeep import is_buffer, verify_buffer
from recollect.errors import ArgumentError, CorruptionError

if TYPE_CHECKING:
    from recollect.hot.recovery.repair import Repair
    from recollect.view import Extent

SHOWN_RANGES = 4


def verify(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="A workspace, by name or path; or a replay buffer, by path or URI.", show_default=False),
    ],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Of a workspace, give up what is damaged, so that the rest can be read; of a local buffer, go back "
            "from a newest version that a power cut tore.",
        ),
    ] = False,
    branch: OnBranch = None,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Check everything that a workspace or a buffer holds. It is only read, but a wrong index is made again."""
    from recollect.hot import home
    from recollect.hot.recovery.findings import problems_in_words
    from recollect.recall.verify import verify as check

    out = Output(context, json)
    if is_buffer(name):
        verify_buffer(out, location(name), storage_options(storage_option), repair, branch)
        return
    if branch is not None:
        raise ArgumentError("--branch is for buffers", value=name, remedy="A workspace has none")
    with _bar() as progress:
        report = check(home.workspace_path(name), progress, repair=repair)
    if out.json:
        counts = {k: v for k, v in vars(report).items() if k not in ("problems", "repaired")}
        problems = list(problems_in_words(report.problems))
        given_up = {} if report.repaired is None else {"repaired": _repaired(report.repaired)}
        out.document({"ok": report.ok, **plain(counts), "problems": problems, **given_up})
    else:
        for kind, found in () if report.repaired is None else _repaired(report.repaired).items():
            if found:
                out.line(f"{'repaired':<11}{kind}: {', '.join(found)}")
        for p in report.problems:
            rows = [f"{e.writer}:{e.start} to {e.stop - 1}" for e in p.rows[:SHOWN_RANGES]]
            more = len(p.rows) - len(rows)
            ids = f" (rows {', '.join(rows)}{f' and {more} more ranges' if more > 0 else ''})" if rows else ""
            out.line(f"{p.level:<11}{p.where}: {p.what}{ids}. {p.remedy}")
        held = f", {' and '.join(report.indexes)} held against them" if report.indexes else ""
        writers = count(report.writers, "writer") + f" ({report.live} live)"
        out.line(
            f"{'ok' if report.ok else 'damaged':<11}{report.name}: {count(report.rows, 'row')} and "
            f"{count(report.facts, 'fact')} in {count(report.segments, 'segment')} of {writers} checked{held}"
        )
        if report.unsealed:
            out.note(f"{count(report.unsealed, 'writer')} died and will be sealed when the workspace is next opened")
    if not report.ok:
        raise typer.Exit(CorruptionError.exit_code)


def _repaired(repair: Repair) -> dict[str, list[str]]:
    """What a repair gave up, every id of it, in words."""

    def ids(extents: Sequence[Extent]) -> list[str]:
        return [f"{e.writer}:{e.start}" + (f" to {e.stop - 1}" if e.stop > e.start + 1 else "") for e in extents]

    return {
        "rows given up": ids(repair.rows),
        "facts given up": ids(repair.facts),
        "cut off, rows that nobody can name": [f"{i} and on" for i in repair.cut_off],
        "steps that cannot be drawn any more": ids(repair.undrawable),
        "files written anew": repair.notes,
        "not repaired": repair.failed,
    }


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, None where nobody looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
