"""A process that carries operations out one by one as it is told, and can be killed between or within them."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import recollect
from recollect.testing.ledger import Ledger, Op
from recollect.view import StepId


class Theatre:
    """A small clean process that forks one puppet at a time, the next when one is dead."""

    def __init__(self) -> None:
        source = Path(recollect.__file__).parents[1]
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.torture.puppet import theatre; theatre()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{Path(__file__).parents[2]}"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._puppet = self._noted = 0
        self._take_ready()

    def _take_ready(self) -> None:
        kind, self._puppet, self._noted = _receive(self._from)
        assert kind == "ready"

    def noted(self) -> int:
        """A descriptor of what the present puppet's device notes. The caller closes it."""
        return os.open(f"/proc/{self._process.pid}/fd/{self._noted}", os.O_RDONLY)

    def begin(self, path: Path, ledger: Ledger, ids: Mapping[int, StepId]) -> None:
        """Lets the puppet open a workspace."""
        self._ask(("begin", path, ledger, dict(ids)))

    def do(self, op: Op) -> tuple[int, int]:
        """Carries an operation out; returns the numbers of the id that it returned."""
        numbers: tuple[int, int] = self._ask(("do", op, -1))
        return numbers

    def flushed(self, folder: Path) -> None:
        """Tells the puppet's device that the files right in a folder were made durable by somebody else."""
        self._ask(("flushed", folder))

    def do_and_die(self, op: Op, instant: int) -> None:
        """Carries an operation out, killed at an instruction of it or right after it, before it is acknowledged."""
        _send(self._to, ("do", op, instant))
        self._buried()

    def kill(self) -> None:
        """Kills the puppet between two operations."""
        os.kill(self._puppet, signal.SIGKILL)
        self._buried()

    def _buried(self) -> None:
        kind, what, _ = _receive(self._from)
        assert (kind, what) == ("ended", -signal.SIGKILL), (kind, what)
        self._take_ready()

    def _ask(self, message: Any) -> Any:
        _send(self._to, message)
        kind, answer, _ = _receive(self._from)
        assert kind == "done", answer
        return answer

    def close(self) -> None:
        self._to.close()
        self._from.close()
        self._process.wait(20)


def theatre() -> None:
    """The clean process. Ends when its input does."""
    from recollect.testing.oracle import warm_up

    warm_up()
    while True:
        noted = os.memfd_create("noted")
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(EOFError, BrokenPipeError):
                _perform(noted)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            return
        _send(sys.stdout.buffer, ("ended", status, 0))
        # The test may still read what was noted; it opened its own descriptor before it killed the puppet.
        os.close(noted)


def _perform(noted: int) -> None:
    from recollect.opening import open_workspace
    from recollect.testing.actor import Actor
    from recollect.testing.disk import Device
    from recollect.testing.instants import at_instant, die
    from recollect.testing.kills import small_segments

    small_segments()
    actor: Actor | None = None
    device: Device | None = None
    answer: Any
    _send(sys.stdout.buffer, ("ready", os.getpid(), noted))
    while True:
        kind, *rest = _receive(sys.stdin.buffer)
        try:
            if kind == "begin":
                path, ledger, ids = rest
                device = Device(path.parent, noted)
                device.install()
                actor, answer = Actor(open_workspace(path), ledger, ids), None
            elif kind == "flushed":
                assert device is not None
                device.note_folder(*rest)
                answer = None
            else:
                assert actor is not None
                op, instant = rest
                if instant >= 0:
                    with at_instant(instant, die):
                        actor.do(op)
                    die()
                answer = tuple(actor.do(op))
                # What goes behind a roll goes before the next operation, so that the same happens each time.
                actor.workspace.retainer.close()
        except Exception as e:
            _send(sys.stdout.buffer, ("failed", repr(e), 0))
            continue
        _send(sys.stdout.buffer, ("done", answer, 0))


def _send(stream: IO[bytes], message: Any) -> None:
    body = pickle.dumps(message)
    stream.write(len(body).to_bytes(8, "little") + body)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = _exactly(stream, 8)
    return pickle.loads(_exactly(stream, int.from_bytes(head, "little")))  # noqa: S301 - our own child


def _exactly(stream: IO[bytes], count: int) -> bytes:
    out = b""
    while len(out) < count:
        part = os.read(stream.fileno(), count - len(out))
        if not part:
            raise EOFError
        out += part
    return out
