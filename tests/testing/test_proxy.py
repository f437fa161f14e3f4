"""Each fault of the proxy does what its table says."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from recollect.testing.proxy import FAULTS, Fault, FaultProxy


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Served

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 2))
        self.send_header("X-Told", self.headers.get("X-Asked", ""))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok" + body)

    do_GET = do_HEAD = do_PUT = _answer


class _Served(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.seen: list[tuple[str, str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def served() -> Iterator[_Served]:
    server = _Served()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _ask(url: str, method: str = "PUT", body: bytes | Iterator[bytes] = b"x" * 70_000) -> tuple[int, bytes, str]:
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
    try:
        connection.request(method, "/a/b?c=d", body=body, headers={"X-Asked": "this"})
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.getheader("X-Told") or ""
    finally:
        connection.close()


def test_without_faults_everything_passes_through(served: _Served) -> None:
    with FaultProxy(served.url) as proxy:
        assert _ask(proxy.url) == (200, b"ok" + b"x" * 70_000, "this")
        assert _ask(proxy.url, "GET", b"") == (200, b"ok", "this")
        assert _ask(proxy.url, "HEAD", b"") == (200, b"", "this")
        assert _ask(proxy.url, "PUT", iter([b"in ", b"chunks"])) == (200, b"okin chunks", "this")
        assert proxy.counts == {"requests": 4}
    assert [s[:2] for s in served.seen] == [(m, "/a/b?c=d") for m in ("PUT", "GET", "HEAD", "PUT")]


@pytest.mark.parametrize(
    ("fault", "status", "arrives"),
    [
        ("error", 500, False),
        ("unavailable", 503, False),
        ("slow_down", 429, False),
        ("delay", 200, True),
        ("silence", None, False),
        ("reset", None, False),
        ("lost", None, True),
        ("failed_late", 500, True),
        ("late", None, True),
    ],
)
def test_a_fault_does_what_the_table_says(fault: Fault, status: int | None, arrives: bool, served: _Served) -> None:
    with FaultProxy(served.url, delay_s=0.01, silence_s=0.05, late_s=0.2) as proxy:
        proxy.plan(fault, lambda method, path: method == "PUT" and path.startswith("/a/"))
        assert _ask(proxy.url, "GET", b"")[0] == 200
        if status is None:
            with pytest.raises(OSError):
                _ask(proxy.url)
        else:
            assert _ask(proxy.url)[0] == status
        if fault != "late":
            assert len(served.seen) == 1 + arrives
        proxy.settle()
        assert len(served.seen) == 1 + arrives
        assert proxy.counts == {"requests": 2, fault: 1}
        assert _ask(proxy.url)[0] == 200, "a fault that was planned once happens once"


def test_every_fault_is_in_the_table() -> None:
    marks = test_a_fault_does_what_the_table_says.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(FAULTS)


def test_the_same_seed_gives_the_same_faults(served: _Served) -> None:
    def run(seed: int) -> list[int | None]:
        out: list[int | None] = []
        with FaultProxy(served.url, seed=seed, rates={"error": 0.3, "reset": 0.2, "failed_late": 0.2}) as proxy:
            for _ in range(30):
                try:
                    out.append(_ask(proxy.url, body=b"")[0])
                except OSError:
                    out.append(None)
        return out

    first = run(3)
    assert first == run(3) != run(4)
    assert {200, 500, None} == set(first)


def test_faults_after_the_request_befall_only_writes(served: _Served) -> None:
    with FaultProxy(served.url, rates={"lost": 1.0}) as proxy:
        assert _ask(proxy.url, "GET", b"")[0] == 200
        with pytest.raises(OSError):
            _ask(proxy.url)
