"""The command line as a function and as a process, and something to write into a workspace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import recollect as rc

SOURCE = Path(rc.__file__).parents[1]


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out, parse_constant=_refuse)

    @property
    def error(self) -> Any:
        """The one JSON line on stderr."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        return json.loads(self.err)["error"]


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


Cli = Callable[..., Ran]


def program(*args: str, **options: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    code = "import sys; from recollect.cli import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code, *args], text=True, env=env, **pipes)


SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (4,)),
        "action": rc.Tensor("int64", ()),
        "reward": rc.Tensor("float32", ()),
        "big": rc.Tensor("uint8", (4, 5), optional=True),
        "note": rc.Text(optional=True),
        "info": rc.Json(optional=True),
    }
)


def play(writer: rc.Writer, episodes: int = 1, steps: int = 4, **values: Any) -> list[str]:
    """Whole episodes of `steps` steps with rewards 0, 1, 2 …; the ids of the steps as text."""
    out = []
    for _ in range(episodes):
        with writer.episode() as episode:
            for t in range(steps):
                row = {"observation": np.full(4, t, np.float32), "action": t, "reward": float(t), **values}
                out.append(str(episode.append(**row, terminated=t == steps - 1)))
    return out
