"""Facts that come late, held against the model: what was written is there, in order, as long as what it is about is."""

from __future__ import annotations

from recollect.testing.expected import Expectation, require
from recollect.view import View


def check_marks(view: View, expect: Expectation, left: set[int]) -> dict[int, int]:
    """Episode facts: a prefix of those written. Those of episodes of which no step is `left` may be gone.

    Returns:
        The model's number of a writer → how many facts it has had.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for history in view.facts.history.values():
        for fact in history:
            if "mark" in fact.values:
                found.setdefault(fact.writer, []).append((fact.seq, fact.values["mark"]))
    out = {}
    for writer, number in expect.writers.items():
        held = [mark for _, mark in sorted(found.pop(writer, []))]
        log, bounds = expect.ledger.logs[number], expect.bounds[number]
        marks = log.marks
        gone = {mark for mark, episode in log.marked.items() if episode not in left}
        sure = [mark for mark in marks if mark not in gone]
        surely_held = [mark for mark in held if mark not in gone]
        ordered = held == [mark for mark in marks if mark in set(held)]
        require(
            ordered and surely_held == sure[: len(surely_held)],
            f"writer {number}: facts {held} are not a prefix of {marks}",
        )
        least, most = (n - sum(mark in gone for mark in marks[:n]) for n in (bounds.marks, bounds.most_marks))
        count = len(surely_held)
        require(count >= least, f"writer {number}: {least} facts must be there, {count} are")
        require(count <= most, f"writer {number}: {count} facts, at most {most}")
        out[number] = max(bounds.marks, marks.index(held[-1]) + 1 if held else 0)
    require(not found, f"facts of unknown writers {sorted(found)}")
    return out


def check_rewards(view: View, expect: Expectation, evicted: set[int], missing: set[int]) -> int:
    """Late rewards: a prefix of those written, in their order. Those of steps that are evicted may be gone.

    Returns:
        How many there have been.
    """
    gone = evicted | missing
    order: list[tuple[tuple[int, int, int], float]] = []
    for history in view.facts.history.values():
        order += [(fact.order, float(fact.values["reward"])) for fact in history if fact.step is not None]
    written = expect.ledger.rewards
    about = {reward: uid for uid, reward in written}
    values = [reward for _, reward in sorted(order)]
    held = [reward for reward in values if about.get(reward) not in gone]
    wanted = [reward for uid, reward in written if uid not in gone]
    require(
        held == wanted[: len(held)] and set(values) <= about.keys(),
        f"late rewards {values} are not a prefix of {wanted}",
    )
    least, most = (n - sum(uid in gone for uid, _ in written[:n]) for n in (expect.rewards, expect.most_rewards))
    require(len(held) >= least, f"{least} late rewards must be there, {len(held)} are")
    require(len(held) <= most, f"{len(held)} late rewards, at most {most}")
    last = max((k for k, (_, reward) in enumerate(written) if reward in set(values)), default=-1)
    return max(expect.rewards, last + 1)
