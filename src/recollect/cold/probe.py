"""Whether a store keeps what commits rest on: of two creations of one key, the second is refused.

A store that ignores `If-None-Match: *` acknowledges both, and the commit that came first is gone without a word. So the
first write of a process to a location tries it, on a key of its own beside the buffer (design/0014).
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recollect.cold import aws
from recollect.cold.faults import persist, store_errors
from recollect.cold.location import Location
from recollect.errors import ArgumentError, NotFound, StoreError, StoreUnavailable

FOLDER = "_probe"
RIVALS = 4
_CLIENT = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "default_content_type",
    "http1_only",
    "http2_keep_alive_interval",
    "http2_keep_alive_timeout",
    "http2_keep_alive_while_idle",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "randomize_addresses",
    "timeout",
    "user_agent",
)
_LANCES = ("client_max_retries", "client_retry_timeout", "download_retry_count", "expires_at_millis", "use_opendal")
_proved: set[tuple[str, str]] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Findings:
    """What was found of a store that may be written.

    Attributes:
        leftover: the key that could not be deleted, "" for none.
    """

    leftover: str


def require_conditional_put(location: Location) -> None:
    """Returns at once for a local folder, and for a store that this process has tried.

    Raises:
        StoreError: the store cannot be written, or it overwrites what it was told not to overwrite.
    """
    if location.is_local or location.account is None:
        return
    key = (location.uri, location.account.endpoint)
    with _lock:
        if key not in _proved:
            probe(location)
            _proved.add(key)


def writable(location: Location) -> None:
    """Raises StoreError unless a local buffer's folder, or the folder it would be made in, takes a file."""
    at = Path(location.uri)
    while not at.exists():
        at = at.parent
    with store_errors("writing to", location), tempfile.TemporaryFile(dir=at) as f:
        f.write(b"recollect")
        f.flush()


def probe(location: Location) -> Findings:
    """Creates one key twice, another one several times at once, and deletes both. Four to six requests.

    Processes that do so at the same time do not meet: every key is used once.

    Raises: as `require_conditional_put`.
    """
    doing = "trying out"
    with store_errors(doing, location):
        client = _Client(location)
    keys = [f"{FOLDER}/{uuid.uuid4().hex}" for _ in range(2)]
    try:
        if not client.create(keys[0], b"first"):
            raise _refusal(location, "it says of a new key that it exists")
        if client.create(keys[0], b"second") or client.read(keys[0]) != b"first":
            raise _refusal(location, "of two creations of one key it accepted both")
        with ThreadPoolExecutor(RIVALS) as pool:
            won = list(pool.map(lambda k: client.create(keys[1], b"%d" % k), range(RIVALS)))
        if sum(won) != 1 or client.read(keys[1]) != b"%d" % won.index(True):
            raise _refusal(location, f"of {RIVALS} creations of one key at a time it accepted {sum(won)}")
    finally:
        left = [key for key in keys if not client.delete(key)]
    return Findings(left[0] if left else "")


def _refusal(location: Location, seen: str) -> StoreError:
    return StoreError(
        f"the store of {location.uri!r} does not keep to conditional puts (If-None-Match): {seen}. Two promotions at "
        "the same time would both be acknowledged, and the rows of one would be lost",
        remedy="Use a store that does: S3, MinIO, Ceph, R2, Azure, Google, or a local folder",
    )


class _Client:
    """A client for single keys beside the buffer, with the options that lance is given."""

    def __init__(self, location: Location) -> None:
        from obstore.store import AzureStore, GCSStore, S3Store

        config, client = _split(location)
        scheme, container, prefix = location.parts
        # Not `from_url`, which refuses some of its own option names.
        kinds: dict[str, Any] = {"s3": S3Store, "az": AzureStore, "gs": GCSStore}
        self._location = location
        try:
            self._store: Any = kinds[scheme](
                container, prefix=prefix, config=config, client_options=client, retry_config={"max_retries": 6}
            )
        except Exception as e:
            if type(e).__name__ != "UnknownConfigurationKeyError":
                raise
            given = str(e).partition("'")[2].partition("'")[0]
            raise ArgumentError(
                "the store has no such storage option",
                value=given,
                remedy="See the documentation of Lance's object store",
            ) from None

    def create(self, key: str, content: bytes) -> bool:
        """Whether the key was free and is ours now. A creation whose reply was lost counts by what the key holds."""
        return persist(lambda: self._create(key, content))

    def _create(self, key: str, content: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with store_errors("writing to", self._location):
            try:
                obstore.put(self._store, key, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                pass
            else:
                return True
        try:
            return self._read(key) == content
        except NotFound:
            # S3 refuses with a conflict while another creation is under way, which may still fail.
            raise StoreUnavailable(f"{self._location.uri!r} refused a key that does not exist") from None

    def read(self, key: str) -> bytes:
        return persist(lambda: self._read(key))

    def _read(self, key: str) -> bytes:
        import obstore

        with store_errors("reading", self._location):
            return bytes(obstore.get(self._store, key).bytes())

    def delete(self, key: str) -> bool:
        """Whether the key is gone. A store that forbids it keeps a few bytes; that is no reason to stop."""
        import obstore

        with contextlib.suppress(Exception), store_errors("deleting from", self._location):
            persist(lambda: obstore.delete(self._store, key))
            return True
        return False


def _split(location: Location) -> tuple[dict[str, str], dict[str, Any]]:
    """Options of the store, and of its HTTP client."""
    account, options = location.account, location.options or {}
    config = {k: v for k, v in options.items() if k not in (*_CLIENT, *_LANCES) and not k.startswith("lance_")}
    client: dict[str, Any] = {k: options[k] for k in _CLIENT if k in options}
    for name in ("allow_http", "allow_invalid_certificates"):
        if name in client:
            client[name] = str(client[name]).lower() in ("true", "1")
    if account is not None and account.profile:
        config.update(_exported(account.profile))
    return config, client


def _exported(name: str) -> Mapping[str, str]:
    """Keys of a profile that lance renews by itself and this client cannot."""
    return aws.export(name, aws.profile(name))
