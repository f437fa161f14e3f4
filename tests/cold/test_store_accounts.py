"""Endpoint and credentials are found where the store's own command line finds them, in its order."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from recollect.cold import aws, azure, google
from recollect.cold.account import Account, canonical
from recollect.errors import StoreError
from tests import stores

# -- S3 --------------------------------------------------------------------------------------------------------------

CREDENTIALS = """
[default]
aws_access_key_id = default-id
aws_secret_access_key = default-%s
[work]
aws_access_key_id = work-id
aws_secret_access_key = work-secret=with=signs#and%%s
aws_session_token = work-token
"""
CONFIG = """
[default]
region = eu-west-1
[profile work]
region = eu-central-1
endpoint_url = https://work.example
[profile bucketeer]
services = mine
aws_access_key_id = in-config
aws_secret_access_key = config-secret
[services mine]
ec2 =
    endpoint_url = https://ec2.example
s3 =
    endpoint_url = http://s3.example:9000
    addressing_style = path
[profile sso]
sso_session = corp
region = us-east-2
[profile role]
role_arn = arn:aws:iam::1:role/r
source_profile = default
aws_access_key_id = role-id
aws_secret_access_key = role-secret
[profile empty]
region = us-east-2
[profile handed]
region = us-east-2
credential_process = PROGRAM
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for variable, text in (("AWS_SHARED_CREDENTIALS_FILE", CREDENTIALS), ("AWS_CONFIG_FILE", CONFIG)):
        path = Path(os.environ[variable])
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("PROGRAM", str(tmp_path / "program")))
    return tmp_path


def _keys(account: Account) -> tuple[str, str, str]:
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return tuple(account.options.get(n, "") for n in names)  # type: ignore[return-value]


def test_the_default_profile_gives_keys_and_region(files: Path) -> None:
    found = aws.resolve("b", {})
    assert _keys(found) == ("default-id", "default-%s", "")
    assert (found.source, found.endpoint, found.options["aws_region"]) == ("profile 'default'", "", "eu-west-1")


@pytest.mark.parametrize("by", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", "option"])
def test_a_profile_gives_keys_region_and_endpoint(by: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"aws_profile": "work"} if by == "option" else {}
    if not given:
        monkeypatch.setenv(by, "work")
    found = aws.resolve("b", given)
    assert _keys(found) == ("work-id", "work-secret=with=signs#and%%s", "work-token")
    assert found.endpoint == found.options["aws_endpoint"] == "https://work.example"
    assert found.options["aws_region"] == "eu-central-1" and "allow_http" not in found.options
    assert "aws_profile" not in found.options, "lance does not know the option"


def test_variables_win_over_files_and_options_over_variables(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "env-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://env.example")
    found = aws.resolve("b", {})
    assert _keys(found) == ("env-id", "env-secret", "env-token")
    assert (found.endpoint, found.options["aws_region"]) == ("http://env.example", "ap-south-1")
    assert found.options["allow_http"] == "true"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://env-s3.example")
    monkeypatch.setenv("AWS_REGION", "ap-south-2")
    found = aws.resolve("b", {})
    assert (found.endpoint, found.options["aws_region"]) == ("https://env-s3.example", "ap-south-2")
    given = {"access_key_id": "o", "SECRET_ACCESS_KEY": "p", "region": "r", "endpoint_url": "https://o.example"}
    found = aws.resolve("b", given)
    assert found.source == "storage options" and found.options["aws_region"] == "r"
    assert found.options["aws_endpoint"] == found.options["aws_endpoint_url_s3"] == "https://o.example"
    assert found.options["aws_session_token"] == "", "the variable's token belongs to other keys"
    # A profile that was asked for by name wins over keys in the environment, as in `aws --profile`.
    assert _keys(aws.resolve("b", {"profile": "work"}))[0] == "work-id"


def test_the_endpoint_of_a_profiles_services_section(files: Path) -> None:
    found = aws.resolve("b", {"aws_profile": "bucketeer"})
    assert _keys(found)[:2] == ("in-config", "config-secret")
    assert (found.endpoint, found.options["allow_http"]) == ("http://s3.example:9000", "true")
    assert found.options["aws_region"] == "us-east-1", "a store that is not AWS needs no region, its signature does"


def test_profiles_that_renew_their_keys_are_left_to_lance(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sso", "role"):
        monkeypatch.setenv("AWS_PROFILE", name)
        found = aws.resolve("b", {"region": "r"})
        assert (found.profile, _keys(found)) == (name, ("", "", ""))


def test_a_credential_process_hands_out_keys(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = files / "program"
    made = {"Version": 1, "AccessKeyId": "handed", "SecretAccessKey": "over", "SessionToken": "now"}
    program.write_text(f"#!{sys.executable}\nprint({json.dumps(json.dumps(made))})\n")
    program.chmod(0o755)
    found = aws.resolve("b", {"aws_profile": "handed"})
    assert _keys(found) == ("handed", "over", "now") and found.profile == ""
    program.write_text(f"#!{sys.executable}\nprint('leaked-secret')\nraise SystemExit(1)\n")
    with pytest.raises(StoreError, match="gave none") as caught:
        aws.resolve("b", {"aws_profile": "handed"})
    assert "leaked-secret" not in str(caught.value)
    monkeypatch.setenv("PATH", str(files))
    with pytest.raises(StoreError, match="`aws` is not installed"):
        aws.export("sso", aws.profile("sso"))


@pytest.mark.parametrize(
    ("variables", "given", "wanted"),
    [
        ({}, {}, r"no credentials for S3.*AWS_ACCESS_KEY_ID.*AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": "a"}, {}, "one half of a key: aws_secret_access_key is missing"),
        ({}, {"secret_access_key": "hush"}, "one half of a key: aws_access_key_id is missing"),
        ({"AWS_PROFILE": "nobody"}, {}, "no such AWS profile.*nobody"),
        ({}, {"aws_profile": "empty", "region": "r"}, "profile 'empty' holds none"),
    ],
)
def test_what_is_missing_is_named(
    variables: dict[str, str],
    given: dict[str, str],
    wanted: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "aws_profile" not in given:
        Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"]).unlink()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=wanted) as caught:
        aws.resolve("b", given)
    assert "hush" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named_but_not_quoted(files: Path) -> None:
    path = Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"])
    path.write_text("my-secret without a section\n")
    with pytest.raises(StoreError, match="credentials cannot be read") as caught:
        aws.resolve("b", {})
    assert "my-secret" not in str(caught.value) and caught.value.__suppress_context__


def test_an_instance_is_asked_shortly_and_only_it_has_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_PUT(self) -> None:
            self._say(b"token")

        def do_GET(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token"] == "token"
            self._say(b"my-role")

        def _say(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        assert aws.resolve("b", {"region": "r"}).source == "instance metadata"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{stores.free_port()}")
    with pytest.raises(StoreError, match="no credentials"):
        aws.resolve("b", {"region": "r"})


def test_containers_and_web_identities_are_left_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1/x")
    assert "container" in aws.resolve("b", {"region": "r"}).source
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn")
    assert "WEB_IDENTITY" in aws.resolve("b", {"region": "r"}).source
    assert "not signed" in aws.resolve("b", {"region": "r", "skip_signature": "true"}).source


# -- Azure -----------------------------------------------------------------------------------------------------------

STRING = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a2V5PT0=;EndpointSuffix=core.example"


@pytest.mark.parametrize(
    ("variables", "given", "wanted", "source"),
    [
        (
            {"AZURE_STORAGE_CONNECTION_STRING": STRING},
            {},
            {"account_name": "acc", "account_key": "a2V5PT0=", "endpoint": "https://acc.blob.core.example"},
            "AZURE_STORAGE_CONNECTION_STRING",
        ),
        ({}, {"connection_string": STRING}, {"account_name": "acc", "account_key": "a2V5PT0="}, "storage options"),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"},
            {},
            {"account_name": "devstoreaccount1", "endpoint": "http://127.0.0.1:10000/devstoreaccount1"},
            "CONNECTION_STRING",
        ),
        (
            {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": "k"},
            {},
            {"account_name": "acc", "account_key": "k"},
            "environment (account key)",
        ),
        (
            {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=2"},
            {},
            {"account_name": "acc", "sas_key": "sv=1&sig=2"},
            "environment (sas key)",
        ),
        (
            {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_CLIENT_ID": "i", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "s"},
            {},
            {"account_name": "a", "client_id": "i", "tenant_id": "t", "client_secret": "s"},
            "client secret",
        ),
        (
            {"AZURE_STORAGE_ACCOUNT": "theirs", "AZURE_STORAGE_KEY": "theirs"},
            {"account_name": "mine", "access_key": "mine"},
            {"account_name": "mine", "account_key": "mine"},
            "storage options",
        ),
    ],
)
def test_azure_accounts(
    variables: dict[str, str],
    given: dict[str, str],
    wanted: dict[str, str],
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = azure.resolve(given)
    assert {k: found.options[f"azure_storage_{k}"] for k in wanted} == wanted
    assert source in found.source
    assert "azure_storage_connection_string" not in found.options
    assert (found.options.get("allow_http") == "true") == found.endpoint.startswith("http://")


def test_the_files_of_azures_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["AZURE_CONFIG_DIR"])
    folder.mkdir()
    (folder / "config").write_text("[storage]\naccount = acc\nkey = k==\n")
    found = azure.resolve({})
    assert (found.options["azure_storage_account_key"], found.source) == ("k==", f"{folder / 'config'} (account key)")
    (folder / "config").unlink()
    (folder / "azureProfile.json").write_text("{}")
    (tmp_path / "az").write_text("")
    (tmp_path / "az").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = azure.resolve({"account_name": "acc"})
    assert (found.source, found.options["azure_use_azure_cli"]) == ("az login", "true")


@pytest.mark.parametrize(
    ("variables", "given", "wanted"),
    [
        ({}, {"account_name": "mine"}, "no credentials for Azure.*AZURE_STORAGE_ACCOUNT"),
        ({}, {"account_key": "hush"}, "no Azure storage account is named"),
        ({}, {"connection_string": "hush"}, "names no account"),
        ({"AZURE_STORAGE_ACCOUNT": "x", "AZURE_STORAGE_KEY": "hush"}, {"account_name": "mine"}, "no credentials"),
    ],
)
def test_what_azure_lacks_is_named(
    variables: dict[str, str], given: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=wanted) as caught:
        azure.resolve(given)
    assert "hush" not in str(caught.value)


# -- Google ----------------------------------------------------------------------------------------------------------


def _file(path: Path, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": kind, "client_id": "i", "refresh_token": "hush"}))
    return path


def test_google_finds_a_service_accounts_file_and_what_gcloud_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _file(Path(os.environ["CLOUDSDK_CONFIG"]) / "application_default_credentials.json", "authorized_user")
    found = google.resolve({})
    assert (found.source, found.options["google_application_credentials"]) == (str(left), str(left))
    named = _file(tmp_path / "named.json", "service_account")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(named))
    found = google.resolve({})
    assert found.options["google_application_credentials"] == str(named)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in found.source
    given = _file(tmp_path / "given.json", "service_account")
    assert "storage options" in google.resolve({"service_account": str(given)}).source
    assert "storage options" in google.resolve({"service_account_key": "{}"}).source
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("GOOGLE_STORAGE_TOKEN", "hush")
    assert google.resolve({}).options["google_bearer_token"] == "hush"


def test_googles_emulator_needs_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    found = google.resolve({})
    assert (found.endpoint, found.options["allow_http"]) == ("http://localhost:4443", "true")
    assert json.loads(found.options["google_service_account_key"])["disable_oauth"] is True


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("external_account", "kind that is not supported.*external_account"), (None, "holds no credentials")],
)
def test_a_file_that_googles_client_cannot_use_is_named(
    kind: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.json"
    path.write_text("hush") if kind is None else _file(path, kind)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(StoreError, match=wanted) as caught:
        google.resolve({})
    assert "hush" not in str(caught.value)
    path.unlink()
    with pytest.raises(StoreError, match="no such file"):
        google.resolve({})


def test_options_have_one_name_each() -> None:
    assert canonical({"REGION": "r", "token": "t", "other": "o"}, aws.ALIASES) == {
        "aws_region": "r",
        "aws_session_token": "t",
        "other": "o",
    }
