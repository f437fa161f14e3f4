"""The checker finds what it is there to find: a workspace that is right, and models that say something else."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recollect.hot.read.store import HotStore
from recollect.opening import create_workspace, open_workspace
from recollect.testing.actor import Actor, Journal, random_ops
from recollect.testing.corpus import SCHEMAS
from recollect.testing.expected import Bounds, Expectation, Wrong, adopt, expect
from recollect.testing.ledger import (
    Annotate,
    Append,
    Close,
    Evict,
    Evolve,
    Extend,
    Finish,
    Leave,
    Limit,
    Op,
    Open,
    Resume,
    Sync,
)
from recollect.testing.oracle import check_workspace

OPS: list[Op] = [
    Open(0, "process"),
    Append(0, 0, "", "same"),
    Append(0, 0, "", "other"),
    Append(0, 0),
    Extend(0, ((0, 2, ""), (1, 2, "terminated"))),
    Finish(0, 0),
    Annotate(0, 1),
    Sync(0),
    Append(0, 0, "truncated", "same"),
]


def _written(path: Path, schema: str, ops: list[Op]) -> Expectation:
    journal = Journal()
    with create_workspace(path, SCHEMAS[schema](), durability="process") as workspace:
        Actor(workspace).run(ops, journal.note)
    out = expect(ops, journal.read(), durability="process", power=False)
    journal.close()
    return out


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_a_workspace_holds_what_its_ledger_says(schema: str, tmp_path: Path) -> None:
    ops = random_ops(random.Random(5), 120, writers=3)
    expectation = _written(tmp_path / "w", schema, ops)
    with open_workspace(tmp_path / "w") as workspace:
        found = check_workspace(workspace, expectation)
    assert found.steps == {n: len(log.moments) for n, log in expectation.ledger.logs.items()}
    assert found.marks == {n: len(log.marks) for n, log in expectation.ledger.logs.items()}
    assert found.rewards == len(expectation.ledger.rewards) > 0


def _changed(**values: object) -> Callable[[Expectation], None]:
    def act(e: Expectation) -> None:
        moments = e.ledger.logs[0].moments
        moments[2] = moments[2]._replace(**values)  # type: ignore[arg-type]

    return act


LIES: dict[str, tuple[Callable[[Expectation], None], str]] = {
    "a value": (_changed(look=77), "observation"),
    "an end": (_changed(terminated=True), "terminated"),
    "a step index": (_changed(step=9), "step indices"),
    "an episode": (_changed(episode=99), "two episodes|episode"),
    "a next observation": (_changed(following=500), "next "),
    "a lost step": (lambda e: setattr(e.bounds[0], "steps", 99), "must be there"),
    "a step too many": (lambda e: setattr(e.bounds[0], "most_steps", 3), "at most"),
    "half a block": (lambda e: e.ledger.logs[0].bounds.discard(8), "half of an operation"),
    "a lost fact": (lambda e: setattr(e.bounds[0], "marks", 2), "facts must be there"),
    "another fact": (lambda e: e.ledger.logs[0].marks.insert(0, 5), "not a prefix"),
    "a lost reward": (lambda e: setattr(e, "rewards", 2), "late rewards must"),
    "another reward": (lambda e: e.ledger.rewards.insert(0, (1, 8.0)), "late rewards"),
    "another id": (lambda e: e.ids.update({1: e.ids[2]}), "uid 1 was"),
    "an unknown writer": (lambda e: e.writers.clear(), "unknown writers"),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_ledger_that_differs_in_one_thing_is_noticed(lie: str, tmp_path: Path) -> None:
    act, words = LIES[lie]
    expectation = _written(tmp_path / "w", "plain", OPS)
    with open_workspace(tmp_path / "w") as workspace:
        check_workspace(workspace, expectation)
        act(expectation)
        with pytest.raises(Wrong, match=words):
            check_workspace(workspace, expectation)


def test_a_cut_after_a_sync_must_keep_what_it_covered_and_may_keep_the_rest() -> None:
    entries = [(k, 7 if k == 0 else -1, -1) for k in range(9)]
    expectation = expect(OPS, entries, durability="process", power=True)
    assert (expectation.bounds[0].steps, expectation.bounds[0].most_steps) == (7, 8)
    assert (expectation.bounds[0].marks, expectation.rewards, expectation.most_rewards) == (1, 0, 1)
    in_flight = expect(OPS, entries[:4], durability="process", power=False)
    assert (in_flight.bounds[0].steps, in_flight.bounds[0].most_steps) == (3, 7)


RESUMED: list[Op] = [
    Open(0, "process"),
    Open(1, "process"),
    Append(0, 0, "", "other"),
    Append(0, 0, "", "other"),
    Append(1, 0),
    Leave(0, 0),
    Resume(1, 1, 1),
    Append(1, 1),
    Append(1, 0),
    Append(1, 1, "terminated", "same"),
]


def _other_episode(e: Expectation) -> None:
    moments = e.ledger.logs[1].moments
    moments[1] = moments[1]._replace(episode=99)


def _taken_for_following(e: Expectation) -> None:
    moments = e.ledger.logs[0].moments
    moments[1] = moments[1]._replace(following=-1)


RESUMED_LIES: dict[str, tuple[Callable[[Expectation], None], str]] = {
    "an episode of its own": (_other_episode, "another episode|two episodes"),
    "the observation that waited": (_taken_for_following, "next observation"),
}


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_an_episode_that_goes_on_in_another_log_is_followed(schema: str, tmp_path: Path) -> None:
    expectation = _written(tmp_path / "w", schema, RESUMED)
    assert [(m.episode, m.step) for m in expectation.ledger.logs[1].moments] == [(1, 0), (0, 2), (1, 1), (0, 3)]
    with open_workspace(tmp_path / "w") as workspace:
        check_workspace(workspace, expectation)


@pytest.mark.parametrize("lie", sorted(RESUMED_LIES))
def test_a_resumption_that_differs_in_one_thing_is_noticed(lie: str, tmp_path: Path) -> None:
    act, words = RESUMED_LIES[lie]
    expectation = _written(tmp_path / "w", "plain", RESUMED)
    act(expectation)
    with open_workspace(tmp_path / "w") as workspace, pytest.raises(Wrong, match=words):
        check_workspace(workspace, expectation)


def test_resumed_steps_without_those_before_them_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expectation = _written(tmp_path / "w", "plain", RESUMED)
    first = next(writer for writer, number in expectation.writers.items() if number == 0)
    (tmp_path / "w" / "log" / f"{first:016x}").rename(tmp_path / "gone")
    expectation.bounds = {n: Bounds(0, b.most_steps, 0, b.most_marks, 0) for n, b in expectation.bounds.items()}
    with open_workspace(tmp_path / "w") as workspace:
        found = check_workspace(workspace, expectation)
    assert found.steps[1] == 1, "the cut ends before the resumed steps"
    monkeypatch.setattr(HotStore, "with_predecessors", lambda _, stops: stops)
    with open_workspace(tmp_path / "w") as workspace, pytest.raises(Wrong, match="without those before them"):
        check_workspace(workspace, expectation)


def test_a_resumption_makes_the_steps_before_it_durable() -> None:
    entries = [(k, 10 + k if k < 2 else -1, -1) for k in range(len(RESUMED))]
    before = expect(RESUMED, entries[:6], durability="process", power=True)
    after = expect(RESUMED, entries[:7], durability="process", power=True)
    assert (before.bounds[0].steps, after.bounds[0].steps, after.bounds[1].steps) == (0, 2, 0)
    assert (after.bounds[0].following, before.bounds[0].following) == (0, 0), "only its own writer knows its slots"


def test_what_died_can_go_on_as_far_as_it_was_found(tmp_path: Path) -> None:
    expectation = _written(tmp_path / "w", "plain", RESUMED[:-1])
    with open_workspace(tmp_path / "w") as workspace:
        found = check_workspace(workspace, expectation)
    ledger = expectation.ledger
    assert not ledger.can_resume(0)
    adopt(expectation, replace(found, steps={0: 2, 1: 1}))
    assert ledger.steps == {0: 2, 1: 1} and ledger.can_resume(0) and ledger.can_resume(1)
    ledger.apply(Open(2, "process"))
    (moment,) = [*ledger.apply(Resume(2, 0, 0)), *ledger.apply(Append(2, 0, "terminated"))]
    assert (moment.episode, moment.step) == (0, 2)
    assert not ledger.can_resume(0)


def test_a_workload_after_another_one_goes_on_with_its_episodes(tmp_path: Path) -> None:
    expectation = _written(tmp_path / "w", "mixed", random_ops(random.Random(1), 60, writers=2))
    with open_workspace(tmp_path / "w") as workspace:
        adopt(expectation, check_workspace(workspace, expectation))
        more = random_ops(
            random.Random(2), 120, writers=2, first_writer=50, after=expectation.ledger, known=expectation.ids
        )
        assert any(isinstance(op, Resume) and op.uid in expectation.ids for op in more)
        actor, journal = Actor(workspace, copy.deepcopy(expectation.ledger), expectation.ids), Journal()
        actor.run(more, journal.note)
        second = expect(more, journal.read(), durability="interval", power=False, after=expectation)
        journal.close()
        check_workspace(workspace, second)


def test_an_eviction_is_judged_by_what_was_promoted_and_by_what_must_be_left(tmp_path: Path) -> None:
    ops: list[Op] = [Open(0, "process"), Append(0, 0), Append(0, 0, "terminated"), Close(0)]
    ops += [Open(1, "process"), Append(1, 0, "", "same"), Limit(1, drop=True), Evict()]
    journal = Journal()
    with create_workspace(tmp_path / "w", SCHEMAS["plain"](), durability="process") as workspace:
        Actor(workspace).run(ops, journal.note)
        expectation = expect(ops, journal.read(), durability="process", power=False)
        journal.close()
        with pytest.raises(Wrong, match="must be there"):
            check_workspace(workspace, expectation)
        by_limit, by_promotion = copy.deepcopy(expectation), copy.deepcopy(expectation)
        by_limit.drops, by_limit.least_rows = True, 1
        assert check_workspace(workspace, by_limit).gone == {0: 2, 1: 0}
        by_limit.least_rows = 2
        with pytest.raises(Wrong, match="1 rows left, not 2"):
            check_workspace(workspace, by_limit)
        by_promotion.promoted = {0}
        with pytest.raises(Wrong, match="must be there"):
            check_workspace(workspace, by_promotion)
        by_promotion.promoted = {0, 1}
        assert check_workspace(workspace, by_promotion).gone == {0: 2, 1: 0}
        by_promotion.gone = {1: 1}
        with pytest.raises(Wrong, match="less 1 evicted"):
            check_workspace(workspace, by_promotion)


def test_rows_older_than_a_field_are_held_to_its_default(tmp_path: Path) -> None:
    ops: list[Op] = [Open(0, "process"), Append(0, 0)]
    for writer in (1, 2, 3):
        ops += [Evolve(), Open(writer, "process"), Append(writer, 0), Append(0, 0)]
    journal = Journal()
    with create_workspace(tmp_path / "w", SCHEMAS["plain"](), durability="process") as workspace:
        Actor(workspace).run(ops, journal.note)
        expectation = expect(ops, journal.read(), durability="process", power=False)
        journal.close()
        check_workspace(workspace, expectation)
        assert workspace.view().schema.by_path.keys() > {"count", "remark", "ratio"}
        expectation.ledger.logs[2].version = 1
        with pytest.raises(Wrong, match=r"count is there|remark is|ratio is"):
            check_workspace(workspace, expectation)
