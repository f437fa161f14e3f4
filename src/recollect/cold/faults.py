"""What a store's own errors mean, and when it is worth asking again."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from recollect.cold.location import Location
from recollect.errors import ConflictError, DiskFull, NotFound, RecollectError, StoreError, StoreUnavailable

T = TypeVar("T")
PATIENCE_S = 60.0
"""How long a failing store is asked again before its error is passed on."""
TRIES = 30
"""How often at most, however much time went by in between."""
_FIRST_S, _LONGEST_S = 0.1, 5.0
_NOTHING_THERE = ("was not found", "404 not found", "no such file")
_NO_BUCKET = ("nosuchbucket", "bucket does not exist", "containernotfound", "container does not exist")
_WRONG_KEY = (
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "authenticationfailed",
    "authorizationfailure",
    "invalid_grant",
    "invalid_client",
    "invalidtoken",
    "invalidclienttokenid",
    "401 unauthorized",
)
_EXPIRED = (
    "expiredtoken",
    "token has expired",
    "token expired",
    "requestexpired",
    "signature not valid in the specified time",
)
_DENIED = ("accessdenied", "forbidden", "permission denied", "unauthorized", "authorizationpermissionmismatch")
_WRONG_REGION = (
    "permanentredirect",
    "authorizationheadermalformed",
    "301 moved",
    "307 temporary redirect",
    "redirect without location",
)
_TRANSIENT = (
    "error sending request",
    "connection",
    "timed out",
    "timeout",
    "slowdown",
    "429 too many",
    "too many requests",
    "500 internal",
    "502 bad gateway",
    "503 ",
    "504 gateway",
    "service unavailable",
    "serverbusy",
    "internalerror",
    "operationaborted",
    "dns error",
    "error decoding response body",
    "retries, max_retries",
)


@contextlib.contextmanager
def store_errors(doing: str, location: Location) -> Iterator[None]:
    """Turns what lance and the store's client raise into our errors, keeping the first sentence and no secret."""
    try:
        yield
    except RecollectError:
        raise
    except Exception as e:
        if type(e).__name__ == "CommitConflictError":
            raise ConflictError(f"{doing} {location.uri!r}: others committed first") from e
        if not isinstance(e, OSError | ValueError | RuntimeError) and type(e).__module__ != "obstore.exceptions":
            raise
        # Neither the text nor the chained exception may show a key or a signed URL.
        made = translate(doing, location, e)
        raise made from (e if location.scrub(str(e)) == str(e) else None)


def translate(doing: str, location: Location, error: Exception) -> RecollectError:
    """The recollect error for one of the store's."""
    whole = location.scrub(str(error))
    text, lower = _short(whole), whole.lower()
    what = f"{doing} {location.uri!r} failed"

    def has(words: tuple[str, ...]) -> bool:
        return any(w in lower for w in words)

    if has(("no space left", "os error 28")):
        return DiskFull(f"{what}: no space left on the device", remedy="Free some space and run it again")
    if location.is_local:
        return _local(what, text, lower)
    account = location.account
    source = "" if account is None else f" (credentials: {account.source})"
    if has(_NO_BUCKET):
        return StoreError(f"{what}: no such bucket", value=location.parts[1], remedy="Create the bucket first")
    if has(_EXPIRED):
        return StoreError(f"{what}: the credentials have expired{source}", remedy="Renew them and run it again")
    if has(_WRONG_REGION):
        return StoreError(
            f"{what}: the bucket lies in another region or behind another endpoint{_region(whole)}",
            remedy="Set AWS_REGION (or pass aws_region) to the bucket's, and aws_endpoint where the store is not AWS",
        )
    if has(_WRONG_KEY):
        return StoreError(
            f"{what}: permission denied, the store does not accept the credentials{source}",
            remedy="Check the key, its secret and the endpoint; recollect doctor --store shows where they come from",
        )
    if has(_DENIED):
        return StoreError(
            f"{what}: permission denied{source}",
            remedy="The credentials need to list, read, write and delete objects there",
        )
    if has(_NOTHING_THERE):
        return NotFound(f"{what}: nothing there", remedy="Check the location; a snapshot creates the buffer")
    if has(_TRANSIENT):
        return StoreUnavailable(
            f"{what}: the store cannot be reached or does not answer ({text})",
            remedy="Nothing was lost; run it again. recollect doctor --store checks endpoint and network",
        )
    return StoreError(f"{what}: {text}", remedy="Check that the location exists and may be written")


def _local(what: str, text: str, lower: str) -> RecollectError:
    if "was not found" in lower or "does not exist" in lower:
        return NotFound(f"{what}: nothing there", remedy="Check the location; a snapshot creates the buffer")
    if "permission denied" in lower:
        return StoreError(f"{what}: permission denied", remedy="Check the rights on the folder")
    return StoreError(f"{what}: {text}", remedy="Check that the location exists and may be written")


def _region(text: str) -> str:
    told = re.search(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'|<Endpoint>([\w.:-]+)</Endpoint>", text)
    return f", {next(g for g in told.groups() if g)}" if told else ""


def _short(text: str) -> str:
    text = text.partition("\n\nDebug source")[0]
    text = re.sub(r",? ?/?(?:[\w.@-]+/)+[\w.-]+\.rs:\d+:\d+", "", text)
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"


class Backoff:
    """Waits between tries, longer each time and with jitter, until a store has failed for `PATIENCE_S` in a row."""

    def __init__(self) -> None:
        self._chance = random.SystemRandom()
        self._since = self._last = 0.0
        self._tries = 0

    def wait(self, error: StoreUnavailable) -> None:
        """Returns when it is time for another try. Raises the error when there were tries enough."""
        now = time.monotonic()
        if not self._tries or now - self._last > PATIENCE_S:
            self._since = now  # work that went well for that long was worth the tries before it
        longest = min(_LONGEST_S, _FIRST_S * 2**self._tries)
        pause = self._chance.uniform(_FIRST_S / 2, longest)
        if self._tries >= TRIES or now + pause - self._since > PATIENCE_S:
            raise error
        time.sleep(pause)
        self._tries, self._last = self._tries + 1, time.monotonic()


def persist(act: Callable[[], T]) -> T:
    """Calls `act` until no transient fault befalls it. Only for what may be done twice."""
    backoff = Backoff()
    while True:
        try:
            return act()
        except StoreUnavailable as e:
            backoff.wait(e)
