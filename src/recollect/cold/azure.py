"""Accounts of Azure Blob Storage: options, the variables of Azure's own tools, connection strings, `az login`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from recollect.cold.account import Account, canonical, first_of, no_credentials, read_ini
from recollect.errors import StoreError

ALIASES = {
    "azure_storage_account_name": ("account_name", "azure_storage_account", "account"),
    "azure_storage_account_key": (
        "account_key",
        "access_key",
        "master_key",
        "azure_storage_access_key",
        "azure_storage_master_key",
        "azure_storage_key",
    ),
    "azure_storage_sas_key": ("sas_key", "sas_token", "azure_storage_sas_token"),
    "azure_storage_token": ("bearer_token", "token"),
    "azure_storage_client_id": ("client_id", "azure_client_id"),
    "azure_storage_client_secret": ("client_secret", "azure_client_secret"),
    "azure_storage_tenant_id": ("tenant_id", "azure_tenant_id", "authority_id", "azure_authority_id"),
    "azure_federated_token_file": ("federated_token_file",),
    "azure_storage_endpoint": ("endpoint", "azure_endpoint"),
    "azure_storage_connection_string": ("connection_string",),
    "azure_use_azure_cli": ("use_azure_cli",),
    "azure_msi_endpoint": ("msi_endpoint", "azure_identity_endpoint", "identity_endpoint"),
    "azure_skip_signature": ("skip_signature",),
    "allow_http": ("azure_allow_http",),
}
_VARIABLES = {
    "azure_storage_account_name": ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"),
    "azure_storage_account_key": ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY"),
    "azure_storage_sas_key": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
    "azure_storage_connection_string": ("AZURE_STORAGE_CONNECTION_STRING",),
    "azure_storage_endpoint": ("AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_SERVICE_ENDPOINT"),
    "azure_storage_client_id": ("AZURE_CLIENT_ID", "AZURE_STORAGE_CLIENT_ID"),
    "azure_storage_client_secret": ("AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET"),
    "azure_storage_tenant_id": ("AZURE_TENANT_ID", "AZURE_STORAGE_TENANT_ID"),
    "azure_federated_token_file": ("AZURE_FEDERATED_TOKEN_FILE",),
}
# What the documentation of Azurite and its predecessors gives to everybody.
EMULATOR = {
    "AccountName": "devstoreaccount1",
    "AccountKey": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "BlobEndpoint": "http://127.0.0.1:10000/devstoreaccount1",
}
_IN_STRING = {
    "AccountName": "azure_storage_account_name",
    "AccountKey": "azure_storage_account_key",
    "SharedAccessSignature": "azure_storage_sas_key",
    "BlobEndpoint": "azure_storage_endpoint",
}
_PROVES = ("azure_storage_account_key", "azure_storage_sas_key", "azure_storage_token")
_REMEDY = (
    "Set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, "
    "or run `az login`, or pass azure_storage_account_name and azure_storage_account_key as storage options"
)


def resolve(given: Mapping[str, str]) -> Account:
    """Account, endpoint and credentials.

    Raises:
        StoreError: no account, no credentials, or a connection string that is none.
    """
    options = canonical(given, ALIASES)
    source = _fill(options)
    if not options.get("azure_storage_account_name"):
        raise StoreError("no Azure storage account is named", remedy=_REMEDY)
    if options.get("azure_storage_sas_key"):
        options["azure_storage_sas_key"] = options["azure_storage_sas_key"].removeprefix("?")
    endpoint = options.get("azure_storage_endpoint", "")
    if endpoint.startswith("http://"):
        options.setdefault("allow_http", "true")
    return Account(source, endpoint, options)


def _fill(options: dict[str, str]) -> str:
    """Completes `options`; returns where the credentials were found."""
    told = _from_string(options.pop("azure_storage_connection_string", ""))
    _complete(options, told)
    if (how := _proof(options)) != "":
        _complete(options, _variables("azure_storage_account_name", "azure_storage_endpoint"))
        return f"storage options ({how})"
    if first_of("AZURE_STORAGE_CONNECTION_STRING")[1] and "azure_storage_account_name" not in options:
        _complete(options, _from_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"]))
        if (how := _proof(options)) != "":
            return f"environment (AZURE_STORAGE_CONNECTION_STRING, {how})"
    named = options.get("azure_storage_account_name")
    others = _variables("azure_storage_account_name")["azure_storage_account_name"]
    if not named or not others or named == others:  # the key of another account is of no use
        _complete(options, _variables(*_VARIABLES))
        options.pop("azure_storage_connection_string", None)
    if (how := _proof(options)) != "":
        return f"environment ({how})"
    path = Path(os.environ.get("AZURE_CONFIG_DIR") or "~/.azure").expanduser()
    stored = read_ini(path / "config").get("storage", {})
    _complete(options, _from_string(stored.get("connection_string", "")))
    _complete(options, {"azure_storage_account_name": stored.get("account", "")})
    _complete(options, {"azure_storage_account_key": stored.get("key", "")})
    _complete(options, {"azure_storage_sas_key": stored.get("sas_token", "")})
    if (how := _proof(options)) != "":
        return f"{path / 'config'} ({how})"
    if (path / "azureProfile.json").exists() and shutil.which("az") is not None:
        options["azure_use_azure_cli"] = "true"
        return "az login"
    if (identity := first_of("IDENTITY_ENDPOINT", "MSI_ENDPOINT")[0]) != "":
        return f"managed identity ({identity})"
    raise no_credentials("Azure", f"neither storage options, environment, {path / 'config'} nor az login", _REMEDY)


def _proof(options: Mapping[str, str]) -> str:
    """What shows who we are, in words; "" where nothing does."""
    for name in _PROVES:
        if options.get(name):
            return name.removeprefix("azure_storage_").replace("_", " ")
    if options.get("azure_storage_client_id") and options.get("azure_storage_tenant_id"):
        if options.get("azure_storage_client_secret"):
            return "client secret"
        if options.get("azure_federated_token_file"):
            return "federated token"
    if options.get("azure_use_azure_cli", "").lower() in ("true", "1"):
        return "az login"
    if options.get("azure_skip_signature", "").lower() in ("true", "1"):
        return "requests are not signed"
    return "managed identity" if options.get("azure_msi_endpoint") else ""


def _variables(*names: str) -> dict[str, str]:
    return {name: first_of(*_VARIABLES[name])[1] for name in names}


def _complete(options: dict[str, str], more: Mapping[str, str]) -> None:
    for name, value in more.items():
        if value:
            options.setdefault(name, value)


def _from_string(text: str) -> dict[str, str]:
    """Options of a connection string, none of an empty one.

    Raises:
        StoreError: it names no account and no endpoint. The text is not quoted, since it holds the key.
    """
    if not text:
        return {}
    parts = dict(part.strip().split("=", 1) for part in text.split(";") if "=" in part)
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        parts = {**EMULATOR, **parts}
    if "AccountName" in parts and "BlobEndpoint" not in parts and "EndpointSuffix" in parts:
        scheme = parts.get("DefaultEndpointsProtocol", "https")
        parts["BlobEndpoint"] = f"{scheme}://{parts['AccountName']}.blob.{parts['EndpointSuffix']}"
    if "AccountName" not in parts and "BlobEndpoint" in parts:
        parts["AccountName"] = parts["BlobEndpoint"].partition("://")[2].split(".")[0]
    if "AccountName" not in parts:
        raise StoreError(
            "the Azure connection string names no account",
            remedy="It reads DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net",
        )
    return {name: parts[key].rstrip("/") for key, name in _IN_STRING.items() if key in parts}
