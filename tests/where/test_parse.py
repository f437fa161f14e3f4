"""What is part of the language, what is refused and how, and that the canonical text says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import recollect as rc
from recollect import errors
from recollect.schema.arrow import arrow_schema
from recollect.view import EpisodeKey, Fact, FactIndex
from recollect.where import parse
from recollect.where.moments import nanoseconds, spelt
from recollect.where.parse import MAX_DEPTH
from tests.support import run_python
from tests.where.language import SCHEMA


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("reward>0.1", "reward > 0.1"),
        ("0 < reward", "reward > 0"),
        ("reward <> 5.", "reward != 5.0"),
        ("flag", "flag = true"),
        ("NOT flag AND (terminated OR truncated)", "not flag = true and (terminated = true or truncated = true)"),
        ("(flag and terminated) and truncated", "flag = true and terminated = true and truncated = true"),
        ("small between 1 and 3", "small >= 1 and small <= 3"),
        ("small not between -1 and 3", "not (small >= -1 and small <= 3)"),
        ("not (not (small = 1))", "not (not small = 1)"),
        ("small not in (1, -2)", "small not in (1, -2)"),
        ("not small in (1)", "small not in (1)"),
        ("note is not null", "note is not null"),
        ("value is not nan", "value is not nan"),
        ("note like '50!%%' escape '!'", "note like '50\\%%'"),
        ("note not ilike 'A_'", "note not ilike 'a_'"),
        ("note = 'it''s \"x\"'", "note = 'it''s \"x\"'"),
        ('"order".`Select` > 1', 'order."Select" > 1'),
        ("order.pair[0] > 1", 'order.pair."0" > 1'),
        ("order.pair.1 = 'x'", "order.pair.\"1\" = 'x'"),
        ("action[1][0] > 1", "action[1][0] > 1"),
        ("episode.skill[1] > 1", "episode.skill[1] > 1"),
        ("reward - (value - 1) * 2 > 0", "reward - (value - 1) * 2 > 0"),
        ("(reward - value) - 1 > 0", "reward - value - 1 > 0"),
        ("-value < - -1", "-1 * value < 1"),
        ("ABS(value % 2) > LEN(note)", "abs(value % 2) > length(note)"),
        ("time >= '2026-01-31'", "time >= '2026-01-31T00:00:00Z'"),
        ("time < '2026-01-31T12:00:00.000000001+02:00'", "time < '2026-01-31T10:00:00.000000001Z'"),
        ("time = 1500000000", "time = '1970-01-01T00:00:01.5Z'"),
        ("large = 18446744073709551615", "large = 18446744073709551615"),
        ("true", "true"),
    ],
)
def test_the_canonical_text_says_the_same(text: str, canonical: str) -> None:
    found = parse(text, SCHEMA)
    assert str(found) == canonical
    again = parse(canonical, SCHEMA)
    assert (again, again.condition, str(again), hash(again)) == (found, found.condition, canonical, hash(found))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "takes one condition"),
        ("small = 1; small = 2", "takes one condition"),
        ("small >", "not understood at"),
        ("small > ) 1", r"not understood at '\)' \(column 9\)"),
        ("note = 'abc", "a quote is not closed"),
        ("small > 'a'", "compares a number with text"),
        ("note = 1", "compares text with a number"),
        ("flag = 1", "compares a truth value with a number"),
        ("time = 1.5", "compares a time with a number"),
        ("flag > true", "orders truth values"),
        ("note", "'note' is text, not a condition"),
        ("small", "'small' is a number, not a condition"),
        ("action", "'action' is an array of shape"),
        ("action > 1", r"compares an array of shape \(2, 2\).*Compare one element"),
        ("tokens = 1", "differs from step to step.*length"),
        ("info = '1'", "compares JSON"),
        ("episode.extra = 1", "compares JSON"),
        ("episode.skill = 1", r"array of shape \(2,\)"),
        ("action[5][0] > 1", r"no element of 'action', whose shape is \(2, 2\)"),
        ("action[0] > 1", r"no element of 'action'"),
        ("action[-1][0] > 1", "named by a whole number"),
        ("action[small] > 1", "named by a whole number"),
        ("value[0] > 1", "has no elements"),
        ("value = null", "nothing equals null"),
        ("small in (1, null)", "nothing equals null"),
        ("small in (small)", "no literal"),
        ("small in ('a')", "compares a number with text"),
        ("1 = 1", "names no field"),
        ("1 in (1)", "names no field"),
        ("1 is null", "names no field"),
        ("flag is true", "something else than null or nan"),
        ("note is nan", "only numbers can be NaN"),
        ("note like note", "a pattern in quotes"),
        ("small like '1'", "a pattern in quotes"),
        ("note like 'a\\'", "ends with its escape"),
        ("note like 'a' escape 'ab'", "not part of the language"),
        ("note || 'a' = 'b'", "not understood|not part"),
        ("sum(value) > 1", r"'sum\(value\)' is not part of the language"),
        ("length(value) > 1", "only text and ragged fields have a length"),
        ("value + note > 1", "computes with text"),
        ("-flag > 1", "computes with a truth value"),
        ("cast(value as int) > 1", "not understood"),
        ("case when flag then 1 end", "not understood"),
        ("value in (select 1)", "not understood|not part"),
        ("value = (select 1)", "not understood|not part"),
        ("value = ?", "not part of the language"),
        ("value = @x", "not part of the language"),
        ("value between symmetric 1 and 2", "not understood|not part"),
        ("time > 'yesterday'", "not a time"),
        ("time > '0001-01-01'", "before 1678"),
        ("count = 99999999999999999999", "beyond 64 bits"),
        ("value = 1e999", "too large for float64"),
        ("flag" + " and (flag or flag" * 40 + ")" * 40, "nested more than"),
    ],
)
def test_what_is_not_understood_is_refused_and_named(text: str, says: str) -> None:
    with pytest.raises(errors.ArgumentError, match=says) as caught:
        parse(text, SCHEMA)
    assert caught.value.remedy or caught.value.value is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rewrd > 1", r"no field 'rewrd'\. Did you mean 'reward'\? There are observation, reward"),
        ("order.select > 1", "Did you mean 'order.Select'"),
        ("order > 1", r"It nests order\.Select, order\.pair\.0"),
        ("task = 'a'", r"The episode's fact is episode\.task"),
        ("episode.tsk = 'a'", r"no episode fact 'episode\.tsk'\. Did you mean 'episode\.task'\?"),
        ("episode = 1", "no field 'episode'"),
        ("final", "no field 'final'"),
    ],
)
def test_an_unknown_field_is_named_with_what_there_is(text: str, says: str) -> None:
    with pytest.raises(errors.NotFound, match=says):
        parse(text, SCHEMA)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="takes text"):
        parse(None, SCHEMA)  # type: ignore[arg-type]


def test_the_deepest_and_the_longest_conditions_run_on_lance_too(tmp_path: Path) -> None:
    schema = rc.Schema({"value": rc.Tensor("float64"), "small": rc.Tensor("int8"), "note": rc.Text()})
    form = arrow_schema(schema)
    values = {"value": [1.0, 2.0], "small": [1, 2], "note": ["a", "b"], "final": [False, False]}
    table = pa.Table.from_arrays([pa.array(values.get(f.name, [None] * 2), type=f.type) for f in form], schema=form)
    dataset = lance.write_dataset(table, str(tmp_path / "x.lance"), data_storage_version="2.2")

    def count(text: str) -> int:
        return int(dataset.to_table(filter=parse(text, schema).to_lance()).num_rows)

    number = "value"
    for k in range(MAX_DEPTH - 3):
        number = f"abs({number})" if k % 2 else f"({number} + small % 100)"
    deep = f"{number} != 0.5"
    assert count(f"not ({deep})") == 0
    with pytest.raises(errors.ArgumentError, match="nested"):
        parse(f"not (not (not ({deep})))", schema)
    text = "value != small * 1"
    for k in range((MAX_DEPTH - 3) // 2):
        text = f"not (value = {k}.5 or note = 'c' and ({text}))" if k % 2 else f"(small = {k} or not ({text}))"
    assert 0 <= count(text) <= 2
    assert count(" or ".join(f"value = {k}" for k in range(2000))) == 2
    assert count(f"small in ({', '.join(map(str, range(2000)))})") == 2


def test_facts_are_asked_of_episodes_alone_where_only_these_count() -> None:
    keys = [EpisodeKey(1, k) for k in range(3)]
    known = FactIndex.of(Fact(1, k, k, keys[k], None, {"task": t}) for k, t in enumerate(["hopper", None]))
    chosen = parse("episode.task = 'hopper' or episode.id = 'e1.2'", SCHEMA)
    assert chosen.episode_only and chosen.uses_facts
    assert chosen.mask_episodes(keys, known).tolist() == [True, False, True]
    assert parse("not episode.task = 'hopper'", SCHEMA).mask_episodes(keys, known).tolist() == [False] * 3
    mixed = parse("episode.task = 'hopper' and reward > 0", SCHEMA)
    assert not mixed.episode_only and mixed.uses_facts
    with pytest.raises(errors.ArgumentError, match="'reward' is a field of steps"):
        mixed.mask_episodes(keys, known)
    with pytest.raises(errors.ArgumentError, match=r"snapshot.*'reward'"):
        mixed.require_episode_only("snapshot(where=)")
    with pytest.raises(errors.ArgumentError, match="uses facts"):
        mixed.to_lance()
    assert not parse("reward > 0", SCHEMA).uses_facts


def test_many_episodes_make_a_short_filter() -> None:
    keys = [EpisodeKey(1, k) for k in range(10_000)]
    known = FactIndex.of(Fact(1, k, k, key, None, {"task": "ab"[k // 5000]}) for k, key in enumerate(keys))
    text = parse("episode.task = 'b' and small > 0", SCHEMA).to_lance(keys, known)
    assert "`episode` >= 5000 AND `episode` <= 9999" in text
    assert len(text) < 200


def test_conditions_join_only_under_one_schema() -> None:
    one = parse("reward > 0", SCHEMA)
    assert str(one & parse("flag or small = 1", SCHEMA)) == "reward > 0 and (flag = true or small = 1)"
    with pytest.raises(errors.SchemaMismatch):
        one & parse("reward > 1", rc.Schema({"reward": rc.Tensor("float32")}))


@pytest.mark.parametrize("ns", [0, -1, 1, 1_700_000_000_123_456_789, 2**63 - 1, -(2**63), -1_500_000_000])
def test_times_go_there_and_back(ns: int) -> None:
    assert nanoseconds(spelt(ns)[1:-1]) == ns
    assert int(np.datetime64(spelt(ns)[1:-2], "ns").astype(np.int64)) == ns


def test_sqlglot_is_loaded_by_the_first_condition_and_not_before() -> None:
    code = """
import sys, recollect as rc
ws = rc.create_workspace("w", rc.Schema({"reward": rc.Tensor("float32")}))
with ws.writer() as writer, writer.episode() as episode:
    episode.append(reward=1.0)
view = ws.view()
before = "sqlglot" in sys.modules
print(before, len(view.where("reward > 0")), "sqlglot" in sys.modules)
"""
    assert run_python(code).split() == ["False", "1", "True"]


def test_every_name_of_the_random_conditions_is_in_the_schema() -> None:
    from tests.where import language

    for name in language.ANY:
        found: Any = parse(f"{name} is null", SCHEMA)
        assert str(found).endswith("is null")
