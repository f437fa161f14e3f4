"""What a store says and what the user reads: the cause and the remedy, never a secret."""

from __future__ import annotations

import base64
import socket
import traceback
from collections.abc import Iterator

import pytest

import recollect as rc
from recollect import errors
from recollect.cold import account as account_module
from recollect.cold.faults import persist, store_errors, translate
from recollect.cold.location import Location
from recollect.testing.proxy import FaultProxy
from tests import stores


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as url:
        stores.make_bucket(url, "bucket")
        yield url


class Refusing(FaultProxy):
    """A store that answers every request with one error."""

    answer = (403, "AccessDenied")

    def refuses(self, method: str, path: str) -> tuple[int, str] | None:
        return self.answer


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (403, "AccessDenied", "permission denied.*need to list, read, write"),
        (403, "InvalidAccessKeyId", "does not accept the credentials.*storage options"),
        (403, "SignatureDoesNotMatch", "does not accept the credentials"),
        (400, "ExpiredToken", "expired.*storage options.*Renew"),
        (403, "RequestExpired", "expired"),
        (404, "NoSuchBucket", "no such bucket.*'bucket'.*Create"),
        (400, "AuthorizationHeaderMalformed", "another region.*AWS_REGION"),
        (301, "PermanentRedirect", "another region.*AWS_REGION"),
    ],
)
def test_what_s3_refuses_is_named_with_its_remedy(status: int, code: str, wanted: str, endpoint: str) -> None:
    with Refusing(endpoint) as store:
        store.answer = (status, code)
        for act in (rc.open_buffer, _create):
            with pytest.raises(errors.StoreError, match=wanted) as caught:
                act("s3://bucket/replay", storage_options=stores.s3_options(store.url))
            assert not isinstance(caught.value, errors.StoreUnavailable), "an error that stays is not tried again"
            assert "test-secret" not in "".join(traceback.format_exception(caught.value))


def _create(uri: str, *, storage_options: dict[str, str]) -> None:
    from recollect.cold.dataset import Datasets

    Datasets.create(Location(uri, storage_options), rc.Schema({"reward": rc.Tensor("float32")}))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "Server returned non-2xx status code: 503 Service Unavailable: <Code>SlowDown</Code>",
            errors.StoreUnavailable,
        ),
        ("429 Too Many Requests", errors.StoreUnavailable),
        ("HTTP error: error sending request", errors.StoreUnavailable),
        ("operation timed out", errors.StoreUnavailable),
        ("500 Internal Server Error", errors.StoreUnavailable),
        ("<Code>ContainerNotFound</Code>", errors.StoreError),
        ("<Code>AuthenticationFailed</Code> 403 Forbidden", errors.StoreError),
        ("Dataset at path x was not found: Not found: x/_versions", errors.NotFound),
        ("No space left on device (os error 28)", errors.DiskFull),
        ("something new", errors.StoreError),
    ],
)
def test_only_what_may_pass_is_tried_again(text: str, wanted: type[Exception]) -> None:
    location = Location("s3://bucket/replay", stores.s3_options("http://127.0.0.1:9"))
    location._account = account_module.Account("a test", "", {})
    assert type(translate("reading", location, OSError(text))) is wanted


@pytest.mark.timeout(600)
def test_azure_refuses_a_wrong_key_and_names_where_it_came_from() -> None:
    with stores.azurite() as endpoint:
        wrong = base64.b64encode(b"w" * 64).decode()
        options = {**stores.azure_options(endpoint), "account_key": wrong}
        with pytest.raises(errors.StoreError, match=r"does not accept the credentials.*account key") as caught:
            rc.open_buffer("az://container/replay", storage_options=options)
        assert wrong not in "".join(traceback.format_exception(caught.value))


def test_no_error_shows_a_secret_not_even_in_its_cause() -> None:
    options = {
        "account_name": "someone",
        "sas_token": "?sv=2022&sig=abcDEFsecret%2Bsignature&se=2030",
        "endpoint": "https://someone.blob.core.windows.net",
    }
    location = Location("az://container/replay", options)
    location._account = account_module.Account("a test", "", {"azure_storage_sas_key": options["sas_token"]})
    raw = f"error sending request for url (https://someone.blob.core.windows.net/c{options['sas_token']})"
    other = "GET https://h/b?X-Amz-Signature=0123456789abcdef&x=1: 503"
    for text in (raw, other):
        with pytest.raises(errors.StoreError) as caught, store_errors("reading", location):
            raise OSError(text)
        whole = "".join(traceback.format_exception(caught.value))
        assert "abcDEF" not in whole and "0123456789abcdef" not in whole
    with pytest.raises(errors.StoreError) as caught, store_errors("reading", location):
        raise OSError("nothing to hide")
    assert caught.value.__cause__ is not None
    account = account_module.Account("x", "", {"aws_secret_access_key": "hush-hush"})
    assert "hush" not in repr(account) and "hush" not in account.scrub("the key hush-hush is wrong")


@pytest.mark.parametrize(
    "uri",
    ["s3://key:secret@bucket/x", "s3://key@bucket/x", "az://c/x?sig=secret", "gs://bucket:80/x", "s3://"],
)
def test_a_location_that_could_carry_a_secret_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        Location(uri)
    assert "secret" not in str(caught.value)


def test_an_endpoint_that_nobody_serves_fails_at_once_and_a_served_one_is_asked_once(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f"http://127.0.0.1:{stores.free_port()}"
    with pytest.raises(errors.StoreError, match=r"cannot be reached: .*refused.*Check the endpoint"):
        rc.open_buffer("s3://bucket/x", storage_options=stores.s3_options(dead))
    for wrong in ("127.0.0.1:9000", "ftp://host", "http://host:99999999"):
        with pytest.raises(errors.StoreError, match="endpoint"):
            rc.open_buffer("s3://bucket/x", storage_options=stores.s3_options(wrong))
    account_module.require_reachable(endpoint)
    monkeypatch.setattr(socket, "create_connection", None)
    account_module.require_reachable(endpoint)


def test_only_transient_faults_are_tried_again() -> None:
    tries: list[int] = []

    def flaky() -> int:
        tries.append(0)
        if len(tries) < 3:
            raise errors.StoreUnavailable("busy")
        return len(tries)

    def wrong() -> int:
        tries.append(0)
        raise errors.StoreError("denied")

    assert persist(flaky) == 3
    tries.clear()
    with pytest.raises(errors.StoreError, match="denied"):
        persist(wrong)
    assert len(tries) == 1
