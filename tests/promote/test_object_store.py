"""Promotion to S3, on a real HTTP server that speaks its protocol."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

import recollect as rc
from recollect import errors
from tests.support import all_ids, rows_of, take

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "reward": rc.Tensor("float32"),
        "uid": rc.Tensor("int64"),
        "note": rc.Text(),
    }
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _options(endpoint: str) -> dict[str, str]:
    return {
        "aws_endpoint": endpoint,
        "aws_allow_http": "true",
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "aws_region": "us-east-1",
    }


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> str:
    import http.client

    name = f"b{abs(hash(request.node.name)) % 10**9}"
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"))
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()
    return name


def _write(ws: rc.Workspace, count: int, first: int = 0) -> None:
    with ws.writer() as writer, writer.episode() as episode:
        for i in range(first, first + count):
            episode.append(observation=[i, i], reward=1.0, uid=i, note=f"n{i}", terminated=i == first + count - 1)


def test_promotion_to_s3_end_to_end(endpoint: str, bucket: str) -> None:
    options = _options(endpoint)
    uri = f"s3://{bucket}/deep/replay"
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
        # What was decoded from S3 serves another handle from the local cache.
        again = rc.open_buffer(uri, storage_options=options)
        assert len(again.at("two").rows) == 10 and again.decoded_files == 0


def test_a_missing_bucket_and_a_missing_buffer_are_told_apart(endpoint: str, bucket: str) -> None:
    options = _options(endpoint)
    with pytest.raises(errors.NotFound):
        rc.open_buffer(f"s3://{bucket}/none", storage_options=options)
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 2)
        started = time.monotonic()
        with pytest.raises(errors.StoreError, match="bucket"):
            ws.snapshot("s3://no-such-bucket-here/replay", storage_options=options)
        assert time.monotonic() - started < 60


def test_an_unreachable_endpoint_is_a_store_error_soon(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = _options(f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(errors.StoreError, match="reached"):
        rc.open_buffer("s3://bucket/replay", storage_options=options)
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 2)
        with pytest.raises(errors.StoreError, match="reached"):
            ws.snapshot("s3://bucket/replay", tag="t", storage_options=options)
        assert time.monotonic() - started < 90
        assert ws.snapshot(tmp_path / "b", tag="t").rows_added == 2
