"""Samplers of one's own: what is taken, what is refused, and that the refusal names the sampler."""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.samplers import Draw
from tests.samplers.made import assert_true_to, plain_view
from tests.support import ROOT, take

Loader: Any = rc.Loader


def newest(view: rc.View, rng: np.random.Generator, n: int) -> Any:
    """Draws evenly from the newest 40 rows."""
    size = min(40, len(view))
    ranks = len(view) - 1 - rng.integers(0, size, n)
    return view.anchors.select(ranks), np.full(n, 1 / size)


def test_a_function_is_a_sampler() -> None:
    view = plain_view(100)
    counts, stated = np.zeros(100, np.int64), np.zeros(100)
    loader = Loader(view, newest, batch_size=64, seed=2, steps=400, output="numpy")
    for batch in loader:
        np.add.at(counts, batch["uid"], 1)
        stated[batch["uid"]] = batch.probability
    chances = np.zeros(100)
    chances[view.anchors.select(np.arange(len(view)))[-40:]] = 1 / 40
    assert np.allclose(stated[counts > 0], 1 / 40)
    assert_true_to(counts, chances)
    ahead = Loader(view, newest, batch_size=64, seed=2, output="numpy", ahead=1)
    whole = Loader(view, newest, batch_size=64, seed=2, output="numpy")
    assert take(ahead, 9) == take(whole, 9)
    state = json.loads(json.dumps(ahead.state_dict()))
    assert state["sampler"] == {"kind": "function", "name": f"{__name__}.newest"}
    other = Loader(view, newest, batch_size=64, seed=2, output="numpy")
    other.load_state_dict(state)
    assert take(other, 5) == take(whole, 5)


def test_functions_and_objects_go_into_mixtures_and_sequences() -> None:
    view = plain_view(60)
    mixture = rc.Mixture(a=(1, newest), b=(1, rc.Uniform()))  # type: ignore[arg-type]
    batch = next(Loader(rc.join(a=view, b=plain_view(30)), mixture, batch_size=8, seed=0))
    assert batch.part.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    sequence: Any = rc.Sequence(2, inner=newest)  # type: ignore[arg-type]
    assert next(Loader(view, sequence, batch_size=4, seed=0)).mask.shape == (4, 2)


@dataclass(frozen=True)
class Wrong:
    """Draws what it is told to."""

    draw: Any
    lacks: tuple[str, ...] = ()
    state: Any = field(default_factory=dict)

    def bind(self, view: rc.View, seed: int, state: Any = None) -> Any:
        made: Any = type("Cursor", (), {k: v for k, v in vars(_WrongCursor).items() if k not in self.lacks})
        return made(self, view)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "wrong"}


class _WrongCursor:
    takes_feedback = is_stateful = True

    def __init__(self, config: Any, view: rc.View) -> None:
        self.config, self.view = config, view

    def draw(self, step: int, n: int, batches: int = 1) -> Any:
        return self.config.draw(self.view, step, n)

    def grow(self, view: rc.View) -> None: ...
    def update(self, keys: Any, signal: Any) -> Any: ...
    def state(self) -> Any:
        return self.config.state


def good(view: Any, step: int, n: int) -> Draw:
    keys = view.anchors.select(np.zeros((1, n), np.int64))
    return Draw(step, keys, np.asarray(1.0), np.asarray(1.0))


REFUSED = {
    "no Draw": lambda v, s, n: v,
    "shape or dtype": lambda v, s, n: good(v, s, n)._replace(keys=good(v, s, n).keys[0]),
    "shape or dtype ": lambda v, s, n: good(v, s, n)._replace(keys=good(v, s, n).keys.astype(np.int32)),
    "shape or dtype  ": lambda v, s, n: good(v, s, n + 1),
    "another step": lambda v, s, n: good(v, s + 1, n),
    "not in the view": lambda v, s, n: good(v, s, n)._replace(keys=np.full((1, n), 60)),
    "may not be drawn": lambda v, s, n: good(v, s, n)._replace(keys=np.full((1, n), 3)),
    "not in the view ": lambda v, s, n: good(v, s, n)._replace(keys=np.full((1, n), -1)),
    "a chance that is none": lambda v, s, n: good(v, s, n)._replace(probability=np.zeros((1, n))),
    "a chance that is none ": lambda v, s, n: good(v, s, n)._replace(probability=np.full((1, n), -0.1)),
    "a chance that is none  ": lambda v, s, n: good(v, s, n)._replace(probability=np.asarray(np.nan)),
    "probability of a wrong shape": lambda v, s, n: good(v, s, n)._replace(probability=np.full(n, 0.1)),
    "weight of a wrong shape": lambda v, s, n: good(v, s, n)._replace(weight=np.ones((n, 1))),
    "a weight that is none": lambda v, s, n: good(v, s, n)._replace(weight=np.asarray(np.inf)),
}


@pytest.mark.parametrize("words", REFUSED, ids=str)
def test_a_wrong_draw_is_refused_and_names_the_sampler(words: str) -> None:
    view = plain_view(60)
    next(Loader(view, Wrong(good), batch_size=8, seed=0))
    with pytest.raises(errors.ArgumentError, match=words.strip()) as caught:
        next(Loader(view, Wrong(REFUSED[words]), batch_size=8, seed=0))
    assert "Wrong(" in str(caught.value) and caught.value.remedy
    with pytest.raises(errors.ArgumentError, match="Wrong"):
        mixed = rc.Mixture(a=(1, Wrong(REFUSED[words])))
        next(Loader(rc.join(a=view), mixed, batch_size=8, seed=0))


def test_what_else_is_wrong_with_a_sampler_is_refused_by_name() -> None:
    view = plain_view(60)
    for name in ("draw", "grow", "state", "update", "takes_feedback"):
        with pytest.raises(errors.ArgumentError, match=f"Wrong.*no {name}"):
            Loader(view, Wrong(good, (name,)), batch_size=8, seed=0)
    loader = Loader(view, Wrong(good, (), {"a": np.zeros(3)}), batch_size=8, seed=0)
    with pytest.raises(errors.ArgumentError, match="not plain"):
        loader.state_dict()
    with pytest.raises(errors.ArgumentError, match="no Receipt"):
        loader.update_priorities(next(loader).ids, np.ones(8))
    with pytest.raises(errors.ArgumentError, match="a sampler has bind"):
        Loader(view, 3, batch_size=8, seed=0)
    with pytest.raises(errors.ArgumentError, match=r"Write Uniform\(\)"):
        Loader(view, rc.Uniform, batch_size=8, seed=0)
    bad: dict[str, Any] = {
        "chances": lambda view, rng, n: view.anchors.select(np.zeros(n, np.int64)),
        "asked for 8 rows": lambda view, rng, n: (np.zeros(3, np.int64), np.ones(3)),
        "may not be drawn": lambda view, rng, n: (np.full(n, 10**9), np.ones(n)),
    }
    for words, function in bad.items():
        with pytest.raises(errors.ArgumentError, match=f"lambda.*{words}"):
            next(Loader(view, function, batch_size=8, seed=0))


def test_a_field_of_ones_own_named_priority_is_refused_with_what_to_do() -> None:
    """The name is that of what append(priority=) gives a step: the one would hide the other."""
    with pytest.raises(errors.SchemaError, match=r"append\(priority=\).*role='priority'"):
        rc.Schema({"priority": rc.Tensor("float32")})
    assert rc.Schema({"p": rc.Tensor("float32", role="priority")}).role("priority")


def test_the_example_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = runpy.run_path(str(ROOT / "examples" / "own_sampler.py"))["main"]()
    assert out["function"] == 1.0 and out["object"] > out["uniform"] + 0.3
