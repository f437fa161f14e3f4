"""The main job: actors, a learner and a kill, watched by one process that prints what happens.

Two actor processes play CartPole into the workspace `rl-live`. A learner process trains from snapshots only. Midway one
actor is killed with SIGKILL and started again; then every id that an `append` had returned is looked up.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import recollect as rc
from recollect.demo.plot import draw_curve
from recollect.demo.policy import ENV_ID, Config
from recollect.errors import RecollectError
from recollect.view import ID_DTYPE, Ids

ACTORS = 2
KILL_AFTER_ROUND = 4
WORKSPACE = "rl-live"


def run(seed: int = 0, rounds: int | None = None, out: Path = Path(), quiet: bool = False) -> int:
    """Runs the demo; 0 when the policy was trained and no acknowledged step is missing.

    Args:
        seed: decides the network, the draws and the actors' exploration.
        rounds: at most so many; fewer when two evaluations in a row are excellent.
        out: folder for `learning-curve.png`.
        quiet: prints the last lines only.

    Raises:
        RecollectError: a process died, or a step is missing.
    """
    config = Config() if rounds is None else dataclasses.replace(Config(), rounds=rounds)
    folder = Path(tempfile.mkdtemp(prefix="recollect-demo-"))
    before = os.environ.get("RECOLLECT_CACHE")
    os.environ["RECOLLECT_CACHE"] = str(folder / "cache")
    try:
        return _Demo(seed, config, out, folder, Console(quiet=quiet, soft_wrap=True, highlight=False)).run()
    finally:
        if before is None:
            del os.environ["RECOLLECT_CACHE"]
        else:
            os.environ["RECOLLECT_CACHE"] = before
        shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    def __init__(self, seed: int, config: Config, out: Path, folder: Path, console: Console) -> None:
        self.seed, self.config, self.out, self.folder, self.console = seed, config, out, folder, console
        self.control = folder / "control"
        self.control.mkdir()
        self.uri = str(folder / "replay")
        self.environment = {
            **os.environ,
            "RECOLLECT_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.path = folder / "home" / "workspaces" / WORKSPACE
        self.actors: list[subprocess.Popen[bytes]] = []
        self.curve: list[tuple[int, float]] = []

    def run(self) -> int:
        import gymnasium

        started = time.perf_counter()
        env = gymnasium.make(ENV_ID)
        base = rc.Schema.from_env(env)
        schema = rc.Schema(
            {leaf.path: leaf.field for leaf in base.leaves}, episode={"policy_version": rc.Tensor("int64", ())}
        )
        rc.create_workspace(self.path, schema).close()
        learner = self._start_learner()
        try:
            while not (self.control / "policy.npz").exists():
                self._check(learner)
                time.sleep(0.01)
            self.actors = [self._start_actor(k, 0) for k in range(ACTORS)]
            final = self._watch(learner)
        finally:
            (self.control / "stop").touch()
            for process in (*self.actors, learner):
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        return self._finish(final, started)

    # -- processes -----------------------------------------------------------------------------------------

    def _start_learner(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "recollect.demo.learner", str(self.path), self.uri, str(self.control)]
        command += ["--seed", str(self.seed), "--config", json.dumps(dataclasses.asdict(self.config))]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE)

    def _start_actor(self, index: int, played: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "recollect.demo.actor", str(self.path), str(self.control)]
        command += ["--index", str(index), "--seed", str(self.seed), "--played", str(played)]
        command += ["--share", str(self.config.steps_per_round // ACTORS)]
        return subprocess.Popen(command, env=self.environment)

    def _check(self, learner: subprocess.Popen[bytes]) -> None:
        for name, process in (("learner", learner), *((f"actor-{k}", p) for k, p in enumerate(self.actors))):
            if process.poll() is not None:
                raise RecollectError(f"the {name} ended early", value=process.returncode)

    # -- watching ------------------------------------------------------------------------------------------

    def _watch(self, learner: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Prints the learner's rounds as they come, kills an actor midway; returns the final evaluation."""
        self.console.print(
            f"[bold]{ENV_ID}[/bold]: {ACTORS} actors, a learner, {self.config.steps_per_round:,} steps a snapshot\n"
            "round  return   best   added     rows   steps/s  batches/s  snapshot\n"
            "                     to the buffer     written       read"
        )
        assert learner.stdout is not None
        killed = False
        for line in learner.stdout:
            event = json.loads(line)
            if "final" in event:
                return dict(event)
            self.curve.append((event["rows"], event["mean_return"]))
            self.console.print(
                f"{event['round']:>5}  {event['mean_return']:>6.1f}  {event['best']:>5.1f}  {event['rows_added']:>6,}"
                f"  {event['rows']:>7,}  {event['rows_added'] / event['round_s']:>8,.0f}"
                f"  {event['batches_per_s']:>9,.0f}  {event['snapshot_s'] * 1000:>5.0f} ms"
            )
            if event["round"] >= min(KILL_AFTER_ROUND, max(1, self.config.rounds // 2)) and not killed:
                self._kill_one()
                killed = True
            self._check_actors()
        raise RecollectError("the learner ended early", value=learner.wait())

    def _check_actors(self) -> None:
        for k, actor in enumerate(self.actors):
            if actor.poll() is not None:
                raise RecollectError(f"actor-{k} ended early", value=actor.returncode)

    def _kill_one(self) -> None:
        """Kills the last actor, looks for every step it was told was appended, and starts it again."""
        victim = self.actors[-1]
        victim.kill()
        victim.wait()
        ids = self._acknowledged(ACTORS - 1)
        with rc.open_workspace(self.path) as workspace:
            missing = _missing(workspace, ids)
            sealed = len(workspace.recovered)
        self.console.print(
            f"       [yellow]actor-{ACTORS - 1} killed with SIGKILL[/yellow]: {len(ids):,} steps acknowledged, "
            f"{len(ids) - len(missing):,} found by id, {len(missing)} missing; {sealed} log sealed; started again"
        )
        if len(missing):
            raise RecollectError(f"{len(missing)} acknowledged steps are missing", value=missing[0])
        self.actors[-1] = self._start_actor(ACTORS - 1, len(ids))

    def _acknowledged(self, index: int) -> Ids:
        """The ids an actor noted; a line that the kill cut off does not count."""
        text = (self.control / f"acknowledged-{index}").read_bytes()
        whole = text[: text.rfind(b"\n") + 1].decode().split()
        out = np.empty(len(whole), ID_DTYPE)
        pairs = [rc.StepId.parse(line) for line in whole]
        out["writer"], out["seq"] = [p.writer for p in pairs], [p.seq for p in pairs]
        return out

    # -- the end -------------------------------------------------------------------------------------------

    def _finish(self, final: dict[str, Any], started: float) -> int:
        ids = np.concatenate([self._acknowledged(k) for k in range(ACTORS)])
        with rc.open_workspace(self.path) as workspace:
            workspace.snapshot(self.uri, tag="final")
            missing = _missing(workspace, ids)
        view = rc.open_buffer(self.uri).at("final")
        cold = _absent(view, ids)
        picture = self.out / "learning-curve.png"
        draw_curve(self.curve, final["final"], picture)
        seconds = time.perf_counter() - started
        self.console.print(
            f"acknowledged steps {len(ids):,}: {len(missing)} missing in the workspace, "
            f"{len(cold)} missing in version 'final' of the buffer"
        )
        self.console.print(
            f"[bold]final return {final['final']:.1f}[/bold] over {final['episodes']} episodes "
            f"(lowest {final['lowest']:.0f}), seed {self.seed}, {seconds:.0f} s; curve in {picture}"
        )
        if len(missing) or len(cold):
            raise RecollectError(f"{len(missing) + len(cold)} acknowledged steps are missing")
        return 0


def _missing(workspace: rc.Workspace, ids: Ids) -> Ids:
    """Those of the ids whose rows are not in the workspace, or do not carry them."""
    return _absent(workspace.view(), ids)


def _absent(view: rc.View, ids: Ids) -> Ids:
    slots = view.rows.find(ids)
    absent: Ids = ids[(slots < 0) | (view.rows.ids(slots) != ids)]
    return absent
