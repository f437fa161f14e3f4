"""Names of episodes and attempts: refused before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors

SCHEMA = rc.Schema({"reward": rc.Tensor("float32")}, episode={"task": rc.Text()})


@pytest.mark.parametrize("attempt", [1 << 64, 1 << 63, -1, True, 1.0])
def test_an_attempt_fits_the_index(attempt: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with pytest.raises(errors.ArgumentError, match="attempt"):
            writer.episode("a", attempt=attempt)
        with writer.episode("a", attempt=(1 << 63) - 1) as episode:
            episode.append(reward=1.0)
        assert ws.episode("a").key == episode.key


@pytest.mark.parametrize("bad", ["\ud800", "", 5, b"a"])
def test_an_id_is_text_that_can_be_stored(bad: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with pytest.raises(errors.RecollectError, match="id"):
            writer.episode(bad)
        with writer.episode("good") as episode:
            episode.append(reward=1.0)
        assert ws.episode("good").key.counter == 0


@pytest.mark.parametrize("bad", ["", "\ud800"])
def test_a_block_with_a_bad_name_writes_nothing(bad: str) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        columns = {"reward": np.zeros(2, "f4"), "step": np.zeros(2, "i8"), "episode": np.array(["a", bad], object)}
        with pytest.raises(errors.RecollectError, match="id"):
            writer.extend(columns)
        assert writer._log.facts == 0 and len(ws.recent(1)) == 0


@pytest.mark.parametrize(("name", "stored"), [("x", "y" * 50_000), ("\x01" * 9000, "\x01" * 9000)])
def test_room_is_made_for_names_as_they_are_stored(name: str, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masking and JSON make names longer: a block rolls before its first fact, not between its facts."""
    monkeypatch.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (1 << 14,))
    with rc.create_workspace("w", SCHEMA, mask=lambda text: text.replace("x", stored)) as ws, ws.writer() as writer:
        names = np.array(["a", name], object)
        rolls = []
        writer._log.behind.on_roll = lambda: rolls.append(writer._log.facts)
        writer.extend({"reward": np.zeros(2, "f4"), "step": np.zeros(2, "i8"), "episode": names})
        assert writer._log.facts in (0, 2) and len(rolls) == 1 and writer._log.first_fact == 0
        assert len(ws.recent(9)) == 2
        assert ws.episode(stored).key.counter == 1


def test_lanes_are_a_whole_number() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        for bad in ("a", 0, 1.5, None, True):
            with pytest.raises(errors.ArgumentError, match="lanes"):
                writer.lanes(bad)  # type: ignore[arg-type]
        assert writer.lanes(np.int64(2)).num_envs == 2  # type: ignore[arg-type]
