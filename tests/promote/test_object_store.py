"""Promotion to object stores: real servers that speak the protocols of S3 and Azure, and Google's client."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import recollect as rc
from recollect import errors
from tests import stores
from tests.support import all_ids, rows_of, take

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "reward": rc.Tensor("float32"),
        "uid": rc.Tensor("int64"),
        "note": rc.Text(),
    }
)


@dataclass
class Store:
    """A server: its buckets' scheme, the options to reach it, and how a bucket is made."""

    scheme: str
    options: Callable[[str], dict[str, str]]
    endpoint: str
    make: Callable[[], str]

    def uri(self, name: str) -> str:
        return f"{self.scheme}://{self.make()}/{name}"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as url:
        yield url


@pytest.fixture(scope="module")
def azure() -> Iterator[str]:
    with stores.azurite() as url:
        yield url


@pytest.fixture(params=["s3", "az", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    name = f"b{uuid.uuid4().hex[:12]}"
    if request.param == "az":
        at: str = request.getfixturevalue("azure")
        yield Store("az", stores.azure_options, at, lambda: stores.make_container(at, name))
        return
    at = request.getfixturevalue("endpoint")
    if request.param == "s3":
        yield Store("s3", stores.s3_options, at, lambda: stores.make_bucket(at, name))
        return
    with stores.GoogleDialect(at) as google:
        yield Store("gs", stores.google_options, google.url, lambda: stores.make_bucket(at, name))


def _write(ws: rc.Workspace, count: int, first: int = 0) -> None:
    with ws.writer() as writer, writer.episode() as episode:
        for i in range(first, first + count):
            episode.append(observation=[i, i], reward=1.0, uid=i, note=f"n{i}", terminated=i == first + count - 1)


@pytest.mark.timeout(600)
def test_promotion_end_to_end(store: Store) -> None:
    options = store.options(store.endpoint)
    uri = store.uri("deep/replay")
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 6)
        one = ws.snapshot(uri, tag="one", storage_options=options)
        assert one.created and one.rows_added == 6
        _write(ws, 4, first=6)
        two = ws.snapshot(uri, tag="two", storage_options=options)
        assert two.rows_added == 4 and not two.created
        assert ws.snapshot(uri, storage_options=options).rows_added == 0
        ws.annotate(ws.recent(1)[0].episode, lesson="late")
        assert ws.snapshot(uri, tag="three", storage_options=options).facts_added == 1
        buffer = rc.open_buffer(uri, storage_options=options)
        assert list(buffer.tags()) == ["one", "three", "two"]
        assert [v.rows for v in buffer.versions()] == [6, 10, 10]
        assert len(buffer.at("one").rows) == 6
        view = buffer.at("three")
        hot = ws.view(cut=view.cut)
        assert all_ids(hot) == all_ids(view) and rows_of(hot) == rows_of(view)
        loaders: list[Any] = [rc.Loader(v, batch_size=4, seed=1, output="numpy") for v in (hot, view)]
        assert take(loaders[0], 5) == take(loaders[1], 5)
        # What was decoded from the store serves another handle from the local cache.
        again = rc.open_buffer(uri, storage_options=options)
        assert len(again.at("two").rows) == 10 and again.decoded_files == 0


@pytest.mark.timeout(600)
def test_a_missing_bucket_and_a_missing_buffer_are_told_apart(store: Store) -> None:
    options = store.options(store.endpoint)
    with pytest.raises(errors.NotFound):
        rc.open_buffer(store.uri("none"), storage_options=options)
    missing = f"{store.scheme}://no-such-bucket-here/replay"
    with pytest.raises(errors.StoreError, match="no such bucket"):
        rc.open_buffer(missing, storage_options=options)
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 2)
        with pytest.raises(errors.StoreError, match="no such bucket"):
            ws.snapshot(missing, storage_options=options)


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("s3", stores.s3_options), ("az", stores.azure_options), ("gs", stores.google_options)],
    ids=["s3", "az", "gs"],
)
def test_an_unreachable_endpoint_is_a_store_error_soon(
    scheme: str, options: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    given = options(f"http://127.0.0.1:{stores.free_port()}")
    started = time.monotonic()
    with pytest.raises(errors.StoreError, match="reached"):
        rc.open_buffer(f"{scheme}://bucket/replay", storage_options=given)
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 2)
        with pytest.raises(errors.StoreError, match="reached"):
            ws.snapshot(f"{scheme}://bucket/replay", tag="t", storage_options=given)
        assert time.monotonic() - started < 90
        assert ws.snapshot(tmp_path / "b", tag="t").rows_added == 2


@pytest.mark.parametrize("scheme", ["s3", "az", "gs"])
def test_without_credentials_the_error_says_what_to_set(scheme: str) -> None:
    """And asks no metadata address, which would not answer."""
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 2)
        with pytest.raises(errors.StoreError, match=r"no (credentials|Azure storage account).*Set A|Set GOOGLE"):
            ws.snapshot(f"{scheme}://bucket/replay")
        assert len(ws.view().rows) == 2
