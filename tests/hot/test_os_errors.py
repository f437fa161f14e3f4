"""Errors of the operating system are told in our own words, with a remedy, whatever was being asked."""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable

import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.files import writers_folders
from recollect.hot.format.targets import damaged_cursors, read_cursors
from recollect.hot.read.store import HotStore
from tests.hot.retaining import SCHEMA, write_episodes
from tests.support import run_python

NO_DESCRIPTOR = """
import os, resource, sys
import recollect as rc
from recollect import errors
from tests.hot import test_os_errors as cases
ws = rc.open_workspace("w")
ws.recent(1)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
told = []
for name, ask in cases.ASKING.items():
    try:
        ask(ws)
    except errors.RecollectError as e:
        told.append((name, type(e).__name__, "ulimit -n" in str(e)))
    except BaseException as e:
        told.append((name, type(e).__name__, str(e)))
    else:
        told.append((name, "", True))
for fd in held:
    os.close(fd)
print(told)
"""


ASKING: dict[str, Callable[[rc.Workspace], object]] = {
    "open": lambda ws: rc.open_workspace("w"),
    "list": lambda ws: rc.list_workspaces(),
    "keep": lambda ws: ws.keep,
    "set_keep": lambda ws: ws.set_keep(rc.Keep(rows=5)),
    "home": lambda ws: ws.home,
    "stats": lambda ws: ws.stats(),
    "evict": lambda ws: ws.evict(),
    "writer": lambda ws: ws.writer(),
    "episode": lambda ws: ws.episode("nobody"),
    "evolve": lambda ws: ws.evolve(SCHEMA),
    "delete": lambda ws: rc.delete_workspace("w"),
    "folders": lambda ws: writers_folders(ws.path / "log"),
    "cursors": lambda ws: read_cursors(ws.path),
    "damaged": lambda ws: damaged_cursors(ws.path),
}
MAY_DO_WITHOUT = ("episode", "evolve")
"""These read no file again where nothing is new."""


def test_without_a_free_descriptor_every_question_says_what_to_do() -> None:
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(rows=10**8)) as ws, ws.writer() as writer:
        write_episodes(writer, 2)
        (ws.path / "targets").mkdir()
        told = ast.literal_eval(run_python(NO_DESCRIPTOR))
    assert [name for name, _, _ in told] == list(ASKING)
    assert [t for t in told if t[1:] != ("StoreError", True) and t[0] not in MAY_DO_WITHOUT] == []


@pytest.mark.parametrize("ask", [lambda ws: ws.recent(1), lambda ws: ws.stats(), lambda ws: ws.live().refresh()])
def test_a_reader_says_what_it_could_not_read(
    ask: Callable[[rc.Workspace], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        real = HotStore._notice

        def refused(store: HotStore) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(HotStore, "_notice", refused)
        with pytest.raises(errors.StoreError, match=r"reading .*log' failed: Input/output error\. The disk fails"):
            ask(ws)
        monkeypatch.setattr(HotStore, "_notice", real)
        ask(ws)
