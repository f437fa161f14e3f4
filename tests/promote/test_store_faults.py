"""Promotion is exactly once over a network and a store that fail in every way the proxy knows."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from recollect.cold import faults
from recollect.testing.proxy import FAULTS, Fault, FaultProxy
from tests import stores
from tests.promote.test_crashes import SCHEMA, _exactly_once, _fill
from tests.support import python

RATES: dict[Fault, float] = {
    "error": 0.01,
    "unavailable": 0.01,
    "slow_down": 0.005,
    "delay": 0.01,
    "silence": 0.002,
    "reset": 0.01,
    "lost": 0.08,
    "failed_late": 0.08,
    "late": 0.08,
}
ROWS = 5

PROMOTER = """
import json, sys
import recollect as rc
from recollect import errors
from tests.promote.test_crashes import _fill

buffer, rounds, first, *names = sys.argv[1:]
own, other = (rc.open_workspace(name) for name in names)
for r in range(int(rounds)):
    _fill(own, 1, first=int(first) + r, length=5)
    own.annotate(own.recent(1)[0].episode, lesson=f"{own.name} {r}")
    for ws in (own, other):
        tag = f"{ws.name}-by-{own.name}-{r}"
        try:
            made = ws.snapshot(buffer, tag=tag)
            print(json.dumps([tag, made.tag, made.version, made.rows, made.rows_added]), flush=True)
        except (errors.StoreError, errors.ConflictError, errors.AlreadyExists) as e:
            print(json.dumps([type(e).__name__, str(e)]), flush=True)
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as url:
        yield url


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    return monkeypatch


@pytest.mark.parametrize(
    "promotions",
    [pytest.param(12, marks=pytest.mark.timeout(600)), pytest.param(500, marks=[pytest.mark.torture])],
    ids=["short", "long"],
)
def test_two_promoters_over_a_failing_store_promote_every_row_once(
    promotions: int, endpoint: str, account: pytest.MonkeyPatch
) -> None:
    buffer = f"s3://{stores.make_bucket(endpoint, f'faulty-{promotions}')}/replay"
    names = ("a", "b")
    for name in names:
        rc.create_workspace(name, SCHEMA).close()
    with FaultProxy(endpoint, seed=promotions, rates=RATES, silence_s=1.0) as proxy:
        account.setenv("AWS_ENDPOINT_URL", proxy.url)
        rounds = promotions // 4
        children = [
            python(PROMOTER, buffer, str(rounds), str(k * 100_000), *order)
            for k, order in enumerate((names, names[::-1]))
        ]
        lines: list[list[object]] = []
        for child in children:
            out, err = child.communicate(timeout=300 + 10 * promotions)
            assert child.returncode == 0, err
            lines += [json.loads(line) for line in out.splitlines()]
        proxy.settle()
        counts = proxy.counts
    assert all(counts[f] for f in ("lost", "failed_late", "late", "reset")), counts
    acknowledged = [line for line in lines if len(line) == 5]
    assert len(acknowledged) > 0.9 * len(lines), lines
    account.setenv("AWS_ENDPOINT_URL", endpoint)
    held = rc.open_buffer(buffer)
    # What was acknowledged is there under the tag and the version that were told, before anything else is promoted.
    tags = held.tags()
    rows_of = {v.version: v.rows for v in held.versions()}
    for asked, tag, version, rows, _ in acknowledged:
        assert tag == asked and tags[str(tag)] == version
        assert rows_of[int(str(version))] == rows
    assert sorted(rows_of.values()) == [rows_of[v] for v in sorted(rows_of)]
    for name in names:
        with rc.open_workspace(name) as ws:
            ws.snapshot(buffer)
    _exactly_once(buffer, *names)  # type: ignore[arg-type]
    assert len(rc.open_buffer(buffer).at().rows) == 2 * rounds * ROWS
    print(f"{len(lines)} promotions, {counts}")


def _is_commit(method: str, path: str) -> bool:
    return method == "PUT" and "steps.lance/_versions/" in path


def _is_fact_commit(method: str, path: str) -> bool:
    return method == "PUT" and "facts.lance/_versions/" in path


def _is_tag(method: str, path: str) -> bool:
    return method == "PUT" and "/_refs/tags/" in path


@pytest.mark.parametrize("place", [_is_commit, _is_fact_commit, _is_tag], ids=["commit", "facts", "tag"])
@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "delay"])
def test_each_fault_at_each_commit_leaves_every_row_once(
    fault: Fault, place: object, endpoint: str, account: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    account.setenv("AWS_ENDPOINT_URL", endpoint)
    name = request.node.callspec.id.replace("_", "-")
    buffer = f"s3://{stores.make_bucket(endpoint, f'one-{name}')}/replay"
    with FaultProxy(endpoint, silence_s=0.2, late_s=0.05) as proxy, rc.create_workspace("w", SCHEMA) as ws:
        options = {"aws_endpoint": proxy.url}
        for k in range(2):
            _fill(ws, 1, first=k)
            ws.annotate(ws.recent(1)[0].episode, lesson=f"{k}")
            if k:
                proxy.plan(fault, place)  # type: ignore[arg-type]
            made = ws.snapshot(buffer, tag=f"t{k}", storage_options=options)
        assert proxy.counts[fault] == 1, "the fault did not happen"
        assert (made.rows, made.tag) == (50, "t1")
        proxy.settle()
        assert ws.snapshot(buffer).rows_added == 0
        held = rc.open_buffer(buffer)
        assert [v.rows for v in held.versions()] == [25, 50]
        assert held.tags() == {"t0": 2, "t1": made.version}
        _exactly_once(buffer, "w")  # type: ignore[arg-type]


def test_a_store_that_stays_broken_is_given_up_after_a_bounded_time(
    endpoint: str, account: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    account.setattr(faults, "PATIENCE_S", 0.3)
    bucket = stores.make_bucket(endpoint, "broken")
    with FaultProxy(endpoint) as proxy, rc.create_workspace("w", SCHEMA) as ws:
        options = {"aws_endpoint": proxy.url, "client_max_retries": "0", "lance_aimd_max_retries": "0"}
        _fill(ws, 1)
        ws.snapshot(f"s3://{bucket}/replay", tag="one", storage_options=options)
        _fill(ws, 1, first=1)
        proxy.rates = {"unavailable": 1.0}
        with pytest.raises(errors.StoreError, match=r"does not answer.*Nothing was lost"):
            ws.snapshot(f"s3://{bucket}/replay", tag="two", storage_options=options)
        proxy.rates = {}
        made = ws.snapshot(f"s3://{bucket}/replay", tag="two", storage_options=options)
        assert (made.rows_added, made.rows) == (25, 50)


def test_waiting_is_jittered_and_bounded_in_time_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append(seconds)
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    error = errors.StoreUnavailable("busy")
    backoff = faults.Backoff()
    with pytest.raises(errors.StoreError, match="busy"):
        while True:
            backoff.wait(error)
    assert 5 < len(pauses) <= faults.TRIES and now <= faults.PATIENCE_S
    assert len({round(p, 6) for p in pauses}) > len(pauses) // 2
    # Tries that lie far apart are bounded in number.
    backoff, tries = faults.Backoff(), Counter[str]()
    with pytest.raises(errors.StoreError, match="busy"):
        while True:
            backoff.wait(error)
            tries["all"] += 1
            now += 2 * faults.PATIENCE_S
    assert tries["all"] == faults.TRIES
