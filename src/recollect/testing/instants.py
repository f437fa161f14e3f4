"""Acting at a chosen instruction: the product's own Python code, counted opcode by opcode.

A count makes a crash repeatable where a clock would not. What lies within one instruction, such as half a copied page,
is the power-cut layer's to make up (`power`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import recollect

_SOURCE = str(Path(recollect.__file__).parent) + os.sep
_OWN = str(Path(__file__).parent) + os.sep


@contextlib.contextmanager
def at_instant(count: int, act: Callable[[], int]) -> Iterator[None]:
    """Calls `act` before instruction `count` (from 0) that the product executes inside the block, on this thread.

    Args:
        act: returns how many instructions further it wants to be called again, -1 for never.
    """
    left = count

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "opcode":
            left -= 1
            if left < 0:
                again = act()
                left = again if again >= 0 else sys.maxsize
        return local

    def begin(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_SOURCE) or name.startswith(_OWN):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return local

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        yield
    finally:
        sys.settrace(before)


def die() -> NoReturn:
    """Kills this process: nothing of it runs any more, no handler, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process went on")
