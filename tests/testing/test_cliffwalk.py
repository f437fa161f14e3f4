"""Blind Cliffwalk through the real store: the samplers come in the order that the paper found."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest

import recollect as rc
from recollect.testing import cliffwalk


@pytest.mark.parametrize("n", [2, 5])
def test_the_store_holds_every_sequence_of_actions_once(n: int) -> None:
    with rc.create_workspace("w", cliffwalk.SCHEMA) as ws:
        view = cliffwalk.fill(ws, n, seed=1)
        assert len(view) == 2 ** (n + 1) - 2
        got = view.rows.gather(np.arange(len(view)), ("observation", "action", "reward", "terminated", "step"))
        assert got["reward"].sum() == 1 and got["terminated"].sum() == 2**n
        assert np.array_equal(got["observation"], got["step"])
        goes_on = got["action"] == got["observation"] % 2
        assert np.array_equal(goes_on & (got["observation"] < n - 1), ~got["terminated"])
        # At state s as many sequences arrive as there are ways to go on: each action is there equally often.
        for s in range(n):
            here = got["observation"] == s
            assert here.sum() == 2 ** (n - s) and goes_on[here].sum() == 2 ** (n - s - 1)


def test_samplers_learn_in_the_order_of_the_paper() -> None:
    """Medians of five seeds, 510 steps.
    A sampler whose priorities do nothing needs as many as uniform draws."""
    with rc.create_workspace("w", cliffwalk.SCHEMA) as ws:
        view = cliffwalk.fill(ws, 8, seed=0)
        need = {m: median(cliffwalk.updates(view, 8, m, seed) for seed in range(5)) for m in cliffwalk.METHODS}
    assert need["oracle"] < need["greedy"] / 1.5
    assert need["greedy"] < need["proportional"] < need["proportional 0.6"]
    assert need["rank"] < need["uniform"] / 2 and need["proportional 0.6"] < need["uniform"] / 3


def test_the_greedy_sampler_goes_on_from_its_state() -> None:
    with rc.create_workspace("w", cliffwalk.SCHEMA) as ws:
        view = cliffwalk.fill(ws, 4, seed=0)
        cursor = cliffwalk.Greedy().bind(view, 0)
        rng = np.random.default_rng(0)
        for step in range(60):
            other = cliffwalk.Greedy().bind(view, 0, cursor.state())
            keys = cursor.draw(step, 1).keys[0]
            assert np.array_equal(keys, other.draw(step, 1).keys[0])
            if step < len(view):
                assert int(keys[0]) == step, "rows that were never used come first"
            cursor.update(keys, rng.random(1))
