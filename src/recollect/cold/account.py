"""What a store's client has to be told: where the store is, and who we are there.

Lance finds some of it by itself and some not: of Azure's variables those of its own names but no connection string, of
AWS a profile's keys but not those of a profile that is named as an option, and where it finds nothing it asks the
metadata address of a cloud machine, which answers nowhere else. The client that tries a store out reads no files at all
(design/0014). So everything that can be found is found here, in the order of the store's own command line, and handed
over by name to both. Secrets stay in memory.
"""

from __future__ import annotations

import configparser
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from recollect.errors import StoreError

CONNECT_S = 5.0
_SECRET = re.compile(r"secret|_key$|sas|token$|password|connection_string|encryption_key")
_reached: set[tuple[str, int]] = set()


@dataclass(frozen=True)
class Account:
    """Endpoint and credentials of one store.

    Attributes:
        source: where the credentials were found, in words. Never the credentials.
        endpoint: the store's URL, "" for the provider's own.
        options: storage options for lance.
        profile: the profile whose credentials lance renews by itself, "" where `options` holds them or none are needed.
    """

    source: str
    endpoint: str
    options: dict[str, str] = field(repr=False)
    profile: str = ""

    def scrub(self, text: str) -> str:
        """A text without the secrets that it might quote, signatures in URLs included."""
        for key, value in self.options.items():
            if len(value) > 3 and _SECRET.search(key):
                text = text.replace(value, "***")
        return re.sub(r"(?i)\b(sig|signature|x-amz-signature|x-amz-security-token|token)=[^&\s\"')]+", r"\1=***", text)


def canonical(given: Mapping[str, str], aliases: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Options in lower case and under one name each."""
    names = {alias: name for name, others in aliases.items() for alias in others}
    return {names.get(k.lower(), k.lower()): v for k, v in given.items()}


def first_of(*names: str) -> tuple[str, str]:
    """The first of some environment variables that is set and not empty: its name and value, both "" for none."""
    return next(((n, os.environ[n]) for n in names if os.environ.get(n)), ("", ""))


def read_ini(path: Path) -> dict[str, dict[str, str]]:
    """Sections of a file in INI form; none where there is no file.

    Raises:
        StoreError: the file cannot be read.
    """
    parser = configparser.RawConfigParser(default_section="\0", strict=False)
    try:
        parser.read_string(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as e:
        # The parser quotes the line, which may hold a secret.
        raise StoreError(f"{path} cannot be read: {type(e).__name__}", remedy="Mend or move the file") from None
    return {name: dict(parser.items(name)) for name in parser.sections()}


def require_reachable(endpoint: str) -> None:
    """Raises StoreError soon where nobody listens at an endpoint. Asks once per process."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(
            "the store's endpoint is no URL", value=endpoint, remedy="Write http://host:port or https://host"
        )
    try:
        at = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    except ValueError:
        raise StoreError("the store's endpoint has no such port", value=endpoint) from None
    if at in _reached or (parts.scheme in getproxies() and not proxy_bypass(parts.hostname)):
        return
    try:
        socket.create_connection(at, CONNECT_S).close()
    except OSError as e:
        reason = "no such host" if isinstance(e, socket.gaierror) else e.strerror or str(e)
        raise StoreError(
            f"the store at {endpoint} cannot be reached: {reason.lower()}", remedy="Check the endpoint and the network"
        ) from None
    _reached.add(at)


def no_credentials(store: str, tried: str, remedy: str) -> StoreError:
    return StoreError(f"no credentials for {store} were found: {tried}", remedy=remedy)
