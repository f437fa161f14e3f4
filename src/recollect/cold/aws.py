"""Accounts of S3 and what speaks like it, found in the order of the AWS command line."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from recollect.cold.account import CONNECT_S, Account, canonical, first_of, no_credentials, read_ini
from recollect.errors import StoreError

ALIASES = {
    "aws_access_key_id": ("access_key_id",),
    "aws_secret_access_key": ("secret_access_key",),
    "aws_session_token": ("session_token", "aws_token", "token"),
    "aws_region": ("region", "aws_default_region", "default_region"),
    "aws_endpoint": ("endpoint", "aws_endpoint_url", "endpoint_url", "aws_endpoint_url_s3"),
    "aws_profile": ("profile",),
    "aws_skip_signature": ("skip_signature",),
    "allow_http": ("aws_allow_http",),
}
METADATA = "http://169.254.169.254"
EXPORT_S = 60.0
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_RENEWED = (
    "sso_session",
    "sso_start_url",
    "role_arn",
    "credential_process",
    "web_identity_token_file",
    "login_session",
)
_REMEDY = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`, "
    "or pass aws_access_key_id and aws_secret_access_key as storage options"
)


def resolve(bucket: str, given: Mapping[str, str]) -> Account:
    """Endpoint, region and credentials for a bucket.

    Args:
        bucket: its name, to ask for its region where nothing says it.
        given: storage options; `aws_profile` chooses a profile.

    Raises:
        StoreError: no credentials, half of them, or a profile that is not there.
    """
    options = canonical(given, ALIASES)
    asked = options.pop("aws_profile", "")
    name = asked or first_of("AWS_PROFILE", "AWS_DEFAULT_PROFILE")[1]
    profile, services = _profile(name or "default", required=bool(name))
    endpoint = options.get("aws_endpoint") or _endpoint(profile, services)
    if endpoint:
        # The variable AWS_ENDPOINT_URL_S3 would win over the first of the two.
        options["aws_endpoint"] = options["aws_endpoint_url_s3"] = endpoint
        if endpoint.startswith("http://"):
            options.setdefault("allow_http", "true")
    elif os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        raise StoreError(
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS does not reach the store's client", remedy="Unset AWS_ENDPOINT_URL"
        )
    source, renewed = _credentials(options, profile, name or "default", asked)
    if "aws_access_key_id" in options and os.environ.get("AWS_SESSION_TOKEN"):
        options.setdefault("aws_session_token", "")  # or the client would send the token of other keys
    region = options.get("aws_region") or first_of("AWS_REGION", "AWS_DEFAULT_REGION")[1] or profile.get("region", "")
    if not region:
        region = "us-east-1" if endpoint else bucket_region(bucket)
    options["aws_region"] = region
    return Account(source, endpoint, options, renewed)


def _profile(name: str, *, required: bool) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What both files say of a profile, the credentials file first, and every section of the other."""
    keys, config = _paths()
    sections = read_ini(config)
    stored = read_ini(keys).get(name)
    configured = sections.get(f"profile {name}", sections.get("default") if name == "default" else None)
    if required and stored is None and configured is None:
        raise StoreError(
            "there is no such AWS profile",
            value=name,
            remedy=f"It would stand in {keys} or {config}; unset AWS_PROFILE",
        )
    return {**(configured or {}), **(stored or {})}, sections


def _paths() -> tuple[Path, Path]:
    keys = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    config = os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config"
    return Path(keys).expanduser(), Path(config).expanduser()


def _endpoint(profile: Mapping[str, str], sections: Mapping[str, Mapping[str, str]]) -> str:
    """What variables and files say; "" for AWS itself."""
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return ""
    set_for = first_of("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")[1]
    nested = sections.get(f"services {profile.get('services', '')}", {}).get("s3", "")
    for line in nested.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "endpoint_url":
            return set_for or value.strip()
    return set_for or profile.get("endpoint_url", "")


def _credentials(options: dict[str, str], profile: Mapping[str, str], name: str, asked: str) -> tuple[str, str]:
    """Puts keys into `options`. Returns where they come from, and the profile that lance renews by itself or ""."""
    if options.get("aws_skip_signature", "").lower() in ("true", "1"):
        return "none: requests are not signed", ""
    if _complete(options, "the storage options"):
        return "storage options", ""
    keys = {k: profile[k] for k in _KEYS if k in profile}
    renewed = next((k for k in _RENEWED if k in profile), "")
    if not asked:
        found = {k: v for k in _KEYS if (v := os.environ.get(k.upper()))}
        if _complete(found, "the environment"):
            options.update(found)
            return "environment (AWS_ACCESS_KEY_ID)", ""
        if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") and os.environ.get("AWS_ROLE_ARN"):
            return "environment (AWS_WEB_IDENTITY_TOKEN_FILE)", ""
    if _complete(keys, f"profile {name!r}") and "role_arn" not in profile:
        options.update(keys)
        return f"profile {name!r}", ""
    if renewed:
        if asked and asked != first_of("AWS_PROFILE", "AWS_DEFAULT_PROFILE")[1]:
            options.update(export(name, profile))  # lance would renew those of another profile
            return f"profile {name!r} ({renewed})", ""
        return f"profile {name!r} ({renewed})", name
    if asked:
        raise no_credentials("S3", f"profile {asked!r} holds none", f"Run `aws configure --profile {asked}`")
    relative, full = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"
    if (container := first_of(relative, full)[0]) != "":
        return f"container ({container})", ""
    if _on_instance():
        return "instance metadata", ""
    here = " and ".join(str(p) for p in _paths())
    raise no_credentials("S3", f"neither storage options, environment, {here}, nor an instance's role", _REMEDY)


def _complete(keys: Mapping[str, str], where: str) -> bool:
    has = [bool(keys.get(k)) for k in _KEYS[:2]]
    if has[0] != has[1]:
        missing = _KEYS[has.index(False)]
        raise StoreError(f"{where} has one half of a key: {missing} is missing", remedy=f"Set {missing}, or neither")
    return has[0]


def _on_instance() -> bool:
    """Whether a machine of AWS answers at the metadata address with a role. Short, since elsewhere nobody answers."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    parts = urlsplit(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA)
    try:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=1.0)
        connection.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        reply = connection.getresponse()
        token = reply.read().decode()
        if reply.status != 200:
            return False
        path = "/latest/meta-data/iam/security-credentials/"
        connection.request("GET", path, headers={"X-aws-ec2-metadata-token": token})
        reply = connection.getresponse()
        return reply.status == 200 and bool(reply.read().strip())
    except (OSError, ValueError, http.client.HTTPException):
        return False


def bucket_region(bucket: str, host: str = "s3.amazonaws.com") -> str:
    """The region of a bucket of AWS, which tells it to anybody.

    Raises:
        StoreError: no such bucket, or AWS cannot be reached.
    """
    remedy = "Set AWS_REGION, or pass aws_endpoint for a store that is not AWS"
    try:
        connection = http.client.HTTPSConnection(host, timeout=CONNECT_S)
        connection.request("HEAD", f"/{bucket}")
        reply = connection.getresponse()
        reply.read()
    except (OSError, http.client.HTTPException) as e:
        raise StoreError(
            f"the region of bucket {bucket!r} is unknown: {host} cannot be reached ({e})", remedy=remedy
        ) from None
    if reply.status == 404:
        raise StoreError(f"AWS has no bucket {bucket!r}", remedy=f"Create the bucket first. {remedy}")
    return reply.getheader("x-amz-bucket-region") or "us-east-1"


def profile(name: str) -> dict[str, str]:
    """What the files say of a profile. Raises StoreError where neither knows it."""
    return _profile(name, required=True)[0]


def export(name: str, profile: Mapping[str, str]) -> dict[str, str]:
    """Keys of a profile that renews them, as its own program or the AWS command line gives them out.

    Raises:
        StoreError: neither gives any.
    """
    command = ["aws", "configure", "export-credentials", "--profile", name, "--format", "process"]
    if "credential_process" in profile:
        command = shlex.split(profile["credential_process"])
    elif shutil.which("aws") is None:
        raise StoreError(
            f"the keys of AWS profile {name!r} are handed out by a service, and `aws` is not installed to ask it",
            remedy="Install the AWS command line, or set the keys as AWS_ACCESS_KEY_ID and its companions",
        )
    remedy = f"Run `aws sso login --profile {name}`, or see what `{shlex.join(command[:3])}` says"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_S, stdin=subprocess.DEVNULL)
        made: Any = json.loads(done.stdout) if done.returncode == 0 else {}
        keys = {"aws_access_key_id": made["AccessKeyId"], "aws_secret_access_key": made["SecretAccessKey"]}
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
        # What the program printed may hold the keys.
        raise StoreError(
            f"the program that hands out the keys of AWS profile {name!r} gave none", remedy=remedy
        ) from None
    if made.get("SessionToken"):
        keys["aws_session_token"] = made["SessionToken"]
    return keys
