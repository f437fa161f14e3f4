"""Facts: what is learnt about an episode or a step after it was written. All are kept, the newest wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from recollect.view.ids import EpisodeKey, StepId


class Fact(NamedTuple):
    """One record of a writer's facts.

    Attributes:
        writer, seq: its own id, in the writer's count of facts.
        time_ns: when it was written, nanoseconds since 1970.
        episode: the episode concerned.
        step: the step concerned, or None for a fact about the episode.
        values: name → value. An episode's opening holds `id` and `attempt` too.
    """

    writer: int
    seq: int
    time_ns: int
    episode: EpisodeKey
    step: StepId | None
    values: Mapping[str, Any]

    @property
    def order(self) -> tuple[int, int, int]:
        return (self.time_ns, self.writer, self.seq)


@dataclass
class FactIndex:
    """The newest value of every fact, with the whole history. Adding a fact twice changes nothing."""

    episodes: dict[EpisodeKey, dict[str, Any]] = field(default_factory=dict)
    steps: dict[StepId, dict[str, Any]] = field(default_factory=dict)
    history: dict[EpisodeKey, list[Fact]] = field(default_factory=dict)
    by_id: dict[str, list[EpisodeKey]] = field(default_factory=dict)
    _newest: dict[tuple[bool, Any, str], tuple[int, int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Iterable[Fact]) -> FactIndex:
        out = cls()
        for fact in facts:
            out.add(fact)
        return out

    def add(self, fact: Fact) -> None:
        self.history.setdefault(fact.episode, []).append(fact)
        subject: Any = fact.step if fact.step is not None else fact.episode
        values = (
            self.steps.setdefault(fact.step, {})
            if fact.step is not None
            else self.episodes.setdefault(fact.episode, {})
        )
        for name, value in fact.values.items():
            # A step's id and an episode's key are both pairs of numbers, and may be equal.
            key = (fact.step is not None, subject, name)
            if key not in self._newest or self._newest[key] < fact.order:
                self._newest[key] = fact.order
                values[name] = value
                if name == "id" and fact.step is None:
                    keys = self.by_id.setdefault(value, [])
                    if fact.episode not in keys:
                        keys.append(fact.episode)

    def id_of(self, key: EpisodeKey) -> str:
        """The caller's id of an episode, or its default."""
        given = self.episodes.get(key, {}).get("id")
        return key.default_id if given is None else str(given)

    def keys_of(self, episode_id: str) -> list[EpisodeKey]:
        """Every attempt under an id, oldest first by (attempt, opening)."""
        keys = self.by_id.get(episode_id, [])

        def rank(key: EpisodeKey) -> tuple[int, tuple[int, int, int]]:
            attempt = self.episodes[key].get("attempt")
            return (attempt if attempt is not None else 0, min(fact.order for fact in self.history[key]))

        return sorted(keys, key=rank)
