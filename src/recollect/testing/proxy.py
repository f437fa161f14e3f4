"""An HTTP proxy in front of an object store, which fails in the ways that networks and stores do.

    with FaultProxy("http://127.0.0.1:9000", seed=7, rates={"unavailable": 0.05, "lost": 0.05}) as proxy:
        ws.snapshot("s3://bucket/replay", storage_options={"aws_endpoint": proxy.url, ...})
    print(proxy.counts)

Which request fails, and how, follows from the seed and the order of the requests. It speaks plain HTTP/1.1.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args
from urllib.parse import urlsplit

Fault: TypeAlias = Literal[
    "error", "unavailable", "slow_down", "delay", "silence", "reset", "lost", "failed_late", "late"
]
"""What happens to a request.

| | reaches the store | the client sees |
|---|---|---|
| `error`, `unavailable`, `slow_down` | no | 500, 503, 429 |
| `delay` | yes, after `delay_s` | the reply |
| `silence` | no | nothing for `silence_s`, then a closed connection |
| `reset` | no | a connection reset |
| `lost` | yes | a connection reset instead of the reply |
| `failed_late` | yes | 500 instead of the reply |
| `late` | yes, `late_s` after the client was told of a reset | a connection reset |
"""

FAULTS: tuple[Fault, ...] = get_args(Fault)
WRITES = frozenset({"PUT", "POST", "DELETE"})
_AFTER: frozenset[Fault] = frozenset({"lost", "failed_late", "late"})
_STATUS: Mapping[Fault, tuple[int, str]] = {
    "error": (500, "InternalError"),
    "failed_late": (500, "InternalError"),
    "unavailable": (503, "ServiceUnavailable"),
    "slow_down": (429, "SlowDown"),
}
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "upgrade", "te"}
)


class FaultProxy:
    """Forwards to one store and injects faults. A context manager; any number of clients at once.

    Args:
        upstream: the store's `http://host:port`.
        seed: of the faults.
        rates: fault → probability per request. Faults that let the request through without a reply
            (`lost`, `failed_late`, `late`) only befall requests that write.
        delay_s, silence_s, late_s: how long `delay` waits, `silence` is silent, and `late` requests are held back.

    Attributes:
        url: where clients connect.
        rates: may be changed at any time.
        counts: faults injected so far, and `requests`.
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        rates: Mapping[Fault, float] | None = None,
        delay_s: float = 0.05,
        silence_s: float = 3.0,
        late_s: float = 0.3,
    ) -> None:
        parts = urlsplit(upstream)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.rates: Mapping[Fault, float] = dict(rates or {})
        self.delay_s, self.silence_s, self.late_s = delay_s, silence_s, late_s
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._planned: list[tuple[Callable[[str, str], bool], Fault]] = []
        self._held: list[threading.Thread] = []
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.settle()

    def plan(self, fault: Fault, matches: Callable[[str, str], bool] = lambda method, path: True) -> None:
        """The next request for which `matches(method, path)` holds meets this fault. Plans come before rates."""
        with self._lock:
            self._planned.append((matches, fault))

    def translate(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """A request's headers as the store gets them. A subclass may speak another dialect to its clients."""
        return headers

    def refuses(self, method: str, path: str) -> tuple[int, str] | None:
        """Status and error code of a request that the store shall refuse for good; None for the others."""
        return None

    def settle(self) -> None:
        """Waits until every request that was held back has reached the store."""
        with self._lock:
            held, self._held = self._held, []
        for thread in held:
            thread.join()

    def _fault(self, method: str, path: str) -> Fault | None:
        """What befalls a request, decided when it arrives."""
        with self._lock:
            self.counts["requests"] += 1
            chosen: Fault | None = None
            for k, (matches, fault) in enumerate(self._planned):
                if matches(method, path):
                    del self._planned[k]
                    chosen = fault
                    break
            else:
                draw = self._chance.random()
                for fault, rate in self.rates.items():
                    if fault in _AFTER and method not in WRITES:
                        continue
                    draw -= rate
                    if draw < 0:
                        chosen = fault
                        break
            if chosen is not None:
                self.counts[chosen] += 1
            return chosen

    def _hold_back(self, send: Callable[[], Any]) -> None:
        def later() -> None:
            time.sleep(self.late_s)
            with contextlib.suppress(OSError, http.client.HTTPException):
                send()

        thread = threading.Thread(target=later, daemon=True)
        with self._lock:
            self._held.append(thread)
            thread.start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    _upstream: http.client.HTTPConnection | None = None

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        if self._upstream is not None:
            self._upstream.close()

    def _serve(self) -> None:
        proxy = self.server.proxy
        body = self._body()
        refusal = proxy.refuses(self.command, self.path)
        if refusal is not None:
            return self._refuse(*refusal)
        fault = proxy._fault(self.command, self.path)
        if fault == "delay":
            time.sleep(proxy.delay_s)
        elif fault == "silence":
            proxy._closing.wait(proxy.silence_s)
            return self._reset()
        elif fault == "reset":
            return self._reset()
        elif fault == "late":
            method, path, headers = self.command, self.path, self._headers()
            proxy._hold_back(lambda: _once(proxy, method, path, headers, body))
            return self._reset()
        if fault is not None and fault in _STATUS and fault not in _AFTER:
            return self._refuse(*_STATUS[fault])
        status, reason, headers, answer = self._forward(body)
        if fault == "lost":
            return self._reset()
        if fault == "failed_late":
            return self._refuse(*_STATUS[fault])
        return self._answer(status, reason, headers, answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _headers(self) -> list[tuple[str, str]]:
        kept = [(k, v) for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP | {"content-length"}]
        return self.server.proxy.translate(kept)

    def _forward(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        if self._upstream is not None:
            self._upstream.close()
        self._upstream = http.client.HTTPConnection(self.server.proxy.host, self.server.proxy.port, timeout=60)
        return _exchange(self._upstream, self.command, self.path, self._headers(), body)

    def _answer(self, status: int, reason: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status, reason)
        bare = self.command == "HEAD" or status in (204, 304)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP and (bare or name.lower() != "content-length"):
                self.send_header(name, value)
        if not bare:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not bare:
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
        self._answer(status, code, [("Content-Type", "application/xml")], body)

    def _reset(self) -> None:
        """Closes with RST, not FIN: what was sent counts for nothing."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes
) -> tuple[int, str, list[tuple[str, str]], bytes]:
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body or method in WRITES:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    reply = connection.getresponse()
    return reply.status, reply.reason, reply.getheaders(), reply.read()


def _once(proxy: FaultProxy, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
    with contextlib.closing(http.client.HTTPConnection(proxy.host, proxy.port, timeout=60)) as connection:
        _exchange(connection, method, path, headers, body)
