"""Accounts of Google Cloud Storage: a service account's file, or what `gcloud auth application-default login` left."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recollect.cold.account import Account, canonical, first_of, no_credentials
from recollect.errors import StoreError

ALIASES = {
    "google_service_account": ("service_account", "google_service_account_path", "service_account_path"),
    "google_service_account_key": ("service_account_key",),
    "google_application_credentials": ("application_credentials",),
    "google_bearer_token": ("bearer_token", "google_storage_token"),
    "google_base_url": ("base_url", "endpoint", "google_endpoint"),
    "google_skip_signature": ("skip_signature",),
    "allow_http": ("google_allow_http",),
}
GOOGLE = "https://storage.googleapis.com"
KINDS = ("service_account", "authorized_user")
_REMEDY = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to a service account's file, or run `gcloud auth application-default login`, "
    "or pass google_service_account as a storage option"
)


def resolve(given: Mapping[str, str]) -> Account:
    """Endpoint and credentials.

    Raises:
        StoreError: no credentials, or a file that holds none of a kind that the store's client can use.
    """
    options = canonical(given, ALIASES)
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator and "google_base_url" not in options:
        options["google_base_url"] = emulator if "://" in emulator else f"http://{emulator}"
        options.setdefault("google_skip_signature", "true")
    endpoint = options.get("google_base_url", "")
    if endpoint.startswith("http://"):
        options.setdefault("allow_http", "true")
    return Account(_credentials(options), endpoint, options)


def _credentials(options: dict[str, str]) -> str:
    """Completes `options`; returns where the credentials were found."""
    if options.get("google_skip_signature", "").lower() in ("true", "1"):
        options["google_service_account_key"] = _nobody(options.get("google_base_url") or GOOGLE)
        return "none: requests are not signed"
    if options.get("google_bearer_token") or options.get("google_service_account_key"):
        return "storage options"
    for name in ("google_service_account", "google_application_credentials"):
        if options.get(name):
            return f"{_checked(Path(options[name]))} (storage options)"
    variable, path = first_of("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "SERVICE_ACCOUNT")
    if path:
        options["google_application_credentials"] = str(_checked(Path(path)))
        return f"{path} ({variable})"
    if first_of("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN", "GOOGLE_STORAGE_TOKEN")[1]:
        name, value = first_of("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN", "GOOGLE_STORAGE_TOKEN")
        options["google_service_account_key" if name.endswith("_KEY") else "google_bearer_token"] = value
        return f"environment ({name})"
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud").expanduser()
    default = folder / "application_default_credentials.json"
    if default.exists():
        options["google_application_credentials"] = str(_checked(default))
        return str(default)
    if _on_instance():
        return "instance metadata"
    raise no_credentials("Google Cloud Storage", f"neither storage options, environment nor {default}", _REMEDY)


def _nobody(endpoint: str) -> str:
    """A key that proves nothing. Without one the client asks the metadata address before it writes, signed or not."""
    empty = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    return json.dumps({**empty, "gcs_base_url": endpoint, "disable_oauth": True})


def _checked(path: Path) -> Path:
    """Raises StoreError unless a file holds credentials that the store's client can use."""
    try:
        held: Any = json.loads(path.expanduser().read_text())
        kind = held["type"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else "it holds no credentials"
        raise StoreError(f"{path} cannot be used: {why.lower()}", remedy=_REMEDY) from None
    if kind not in KINDS:
        raise StoreError(f"{path} holds credentials of a kind that is not supported", value=kind, remedy=_REMEDY)
    return path.expanduser()


def _on_instance() -> bool:
    """Whether this is a machine of Google: its metadata server has a name there, and no other machine knows it."""
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return False
    try:
        socket.create_connection((os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal", 80), 1.0).close()
    except OSError:
        return False
    return True
