"""What a workspace holds, read back as the transitions that a learner would see."""

from __future__ import annotations

from typing import Any

import numpy as np

import recollect as rc

from .counting import Transition, frozen


def transitions(ws: rc.Workspace) -> list[Transition]:
    """Every row that can be drawn, once, through a loader: in no particular order."""
    view, out = ws.view(), []
    loader = rc.Loader(view, batch_size=7, seed=0, epochs=1, transforms=[rc.NStep(1, 0.5)], output="numpy")
    for batch in loader:
        assert np.array_equal(batch["discount"], np.where(batch["terminated"], 0, np.float32(0.5)))
        assert batch.valid["next_observation"].all()
        for i in range(len(batch)):
            out.append(
                Transition(
                    _row(batch["observation"], i),
                    int(batch["action"][i]),
                    float(batch["reward"][i]),
                    bool(batch["terminated"][i]),
                    bool(batch["truncated"][i]),
                    _row(batch["next_observation"], i),
                )
            )
    assert len(out) == len(view)
    return out


def _row(value: Any, i: int) -> Any:
    return frozen({k: _row(v, i) for k, v in value.items()} if isinstance(value, dict) else value[i])


def episodes(ws: rc.Workspace) -> list[rc.EpisodeRecord]:
    """Every episode that has rows, in the order of their keys."""
    keys = [rc.EpisodeKey(*k) for k in ws.view().episodes.keys.tolist()]
    return [ws.episode(key) for key in sorted(keys)]
