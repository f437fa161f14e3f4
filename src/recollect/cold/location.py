"""Where a buffer lies, and what the store's own errors mean."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from recollect.errors import ArgumentError, ConflictError, DiskFull, NotFound, RecollectError, StoreError

SCHEMES = ("s3", "gs", "az", "memory")
_DEFAULTS = {"client_max_retries": "3", "client_retry_timeout": "30", "connect_timeout": "10 seconds"}


class Location:
    """A buffer's address: a local folder or an object-store URI.

    Args:
        text: a path, `file://…`, `s3://…`, `gs://…` or `az://…`.
        options: storage options of the object store (endpoint, credentials, region); see the lance documentation.

    Raises:
        StoreError: a scheme that is not supported.
    """

    def __init__(self, text: str | os.PathLike[str], options: Mapping[str, str] | None = None) -> None:
        given = os.fspath(text)
        if not given:
            raise ArgumentError("a buffer's location is empty", remedy="Pass a path, file://, s3://, gs:// or az://")
        scheme, colon, rest = given.partition("://")
        if not colon:
            self.uri = str(Path(given).expanduser().absolute())
        elif scheme == "file":
            self.uri = str(Path("/" + rest.lstrip("/")))
        elif scheme in SCHEMES:
            self.uri = given.rstrip("/")
        else:
            raise StoreError(
                f"no store for {scheme}://", value=given, remedy="Use a path, file://, s3://, gs:// or az://"
            )
        self.is_local = "://" not in self.uri
        self.options: dict[str, str] | None = None
        if not self.is_local:
            self.options = {**_DEFAULTS, **{str(k): str(v) for k, v in (options or {}).items()}}

    def child(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def __repr__(self) -> str:
        return self.uri


@contextlib.contextmanager
def store_errors(doing: str, location: Location) -> Iterator[None]:
    """Turns what lance raises into our errors, keeping its first sentence."""
    try:
        yield
    except RecollectError:
        raise
    except Exception as e:
        name = type(e).__name__
        if name == "CommitConflictError":
            raise ConflictError(f"{doing} {location.uri!r}: others committed first") from e
        if not isinstance(e, OSError | ValueError | RuntimeError):
            raise
        raise translate(doing, location, e) from e


def translate(doing: str, location: Location, error: Exception) -> RecollectError:
    """The recollect error for one of the store's."""
    text = _short(str(error))
    lower = str(error).lower()
    what = f"{doing} {location.uri!r} failed"
    if "no space left" in lower or "os error 28" in lower:
        return DiskFull(f"{what}: no space left on the device", remedy="Free some space and run it again")
    if "was not found" in lower or ("does not exist" in lower and "bucket" not in lower):
        return NotFound(f"{what}: nothing there", remedy="Check the location; a snapshot creates the buffer")
    if "nosuchbucket" in lower or "bucket does not exist" in lower:
        return StoreError(f"{what}: no such bucket", remedy="Create the bucket first")
    if any(w in lower for w in ("accessdenied", "forbidden", "permission denied", "unauthorized", "invalidaccesskey")):
        remedy = "Check the rights on the folder" if location.is_local else "Check credentials and their rights"
        return StoreError(f"{what}: permission denied", remedy=remedy)
    if "expiredtoken" in lower or "expired" in lower:
        return StoreError(f"{what}: the credentials have expired", remedy="Renew them")
    if location.uri.startswith("s3://") and ("builder error" in lower or "resolve region" in lower):
        return StoreError(
            f"{what}: {text}",
            remedy="Pass storage options (or AWS_REGION): aws_region, and for an http endpoint aws_endpoint and "
            "aws_allow_http=true",
        )
    if any(w in lower for w in ("connect", "timed out", "dns", "retries", "error sending request")):
        return StoreError(f"{what}: the store cannot be reached ({text})", remedy="Check endpoint and network")
    return StoreError(f"{what}: {text}", remedy="Check that the location exists and may be written")


def _short(text: str) -> str:
    text = re.sub(r",? ?/?(?:[\w.@-]+/)+[\w.-]+\.rs:\d+:\d+", "", text)
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"
