"""Where a buffer lies, and what a client of its store has to be told."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from recollect.cold import aws, azure, google
from recollect.cold.account import Account, require_reachable
from recollect.errors import ArgumentError, StoreError

SCHEMES = ("s3", "gs", "az", "memory")
MAIN = "main"
"""What the branch is called that every buffer begins with."""
PATIENCE: Mapping[str, str] = {
    "client_max_retries": "5",
    "client_retry_timeout": "10",
    "connect_timeout": "5 seconds",
    "lance_aimd_max_retries": "1",
}
"""How long one request is tried again: with jitter, up to 10 s, and once more where the store asked for less."""


class Location:
    """A buffer's address: a local folder or an object-store URI.

    Args:
        text: a path, `file://…`, `s3://…`, `gs://…` or `az://…`.
        options: storage options of the object store (endpoint, credentials, region); what is not among them is looked
            up where the store's own command line finds it. `aws_profile` chooses a profile.

    Raises:
        StoreError: a scheme that is not supported.
        ArgumentError: an empty text, or one that carries a password or a query.
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
            _require_plain(self.uri)
        else:
            raise StoreError(
                f"no store for {scheme}://", value=given, remedy="Use a path, file://, s3://, gs:// or az://"
            )
        self.is_local = "://" not in self.uri
        self.branch = ""
        """Lance's name of the branch that `steps` is meant of, "" for main."""
        self._given = {str(k): str(v) for k, v in (options or {}).items()}
        self._account: Account | None = None
        self._lock = threading.Lock()

    @property
    def account(self) -> Account | None:
        """Endpoint and credentials, looked up when first asked for; None where the store needs none.

        Raises:
            StoreError: no credentials were found, or nobody listens at the endpoint.
        """
        if self.is_local or self.uri.startswith("memory://"):
            return None
        scheme, container, _ = self.parts
        with self._lock:
            if self._account is None:
                if scheme == "s3":
                    found = aws.resolve(container, self._given)
                elif scheme == "az":
                    found = azure.resolve(self._given)
                else:
                    found = google.resolve(self._given)
                if found.endpoint:
                    require_reachable(found.endpoint)
                self._account = found
            return self._account

    @property
    def options(self) -> dict[str, str] | None:
        """Storage options for lance, None for a local folder. Raises as `account` does."""
        if self.is_local:
            return None
        account = self.account
        return {**PATIENCE, **(self._given if account is None else account.options)}

    @property
    def parts(self) -> tuple[str, str, str]:
        """Scheme, bucket or container, and the name in it, without slashes at its ends; of an object store only."""
        split = urlsplit(self.uri)
        return split.scheme, split.netloc.partition("@")[0], split.path.strip("/")

    def child(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def dataset(self, name: str) -> str:
        """Where a dataset lies: `steps` of a branch has a folder of its own; facts and tails are one for all."""
        return self.child(f"steps.lance/tree/{self.branch}" if name == "steps" and self.branch else f"{name}.lance")

    def on(self, branch: str) -> Location:
        """The same buffer, `steps` as of a branch. Takes Lance's name of it (`cold.branches.find`), "" for main."""
        out = copy.copy(self)
        out.branch = branch
        return out

    def scrub(self, text: str) -> str:
        """A text without the secrets that it might quote."""
        return text if self._account is None else self._account.scrub(text)

    @property
    def branch_name(self) -> str:
        """What people call the branch."""
        return self.branch.rpartition(".")[0] if self.branch else MAIN

    def __repr__(self) -> str:
        return f"{self.uri} (branch {self.branch_name})" if self.branch else self.uri


def _require_plain(uri: str) -> None:
    """Raises ArgumentError for a URI that could carry a secret: locations are written down, secrets are not."""
    parts = urlsplit(uri)
    if ":" in parts.netloc or parts.query or parts.fragment or ("@" in parts.netloc and parts.scheme != "az"):
        raise ArgumentError(
            f"a {parts.scheme}:// location is {parts.scheme}://bucket/name, with no user, password, port or query",
            remedy="Pass endpoint and credentials as storage options or in the environment",
        )
    if not parts.netloc and parts.scheme != "memory":
        raise ArgumentError("the location names no bucket", value=uri, remedy=f"Write {parts.scheme}://bucket/name")
