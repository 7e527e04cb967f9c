"""The service that gives out the node's own keys refuses, fails, hangs, or answers with something else."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import CredentialsRejected
from csi_driver.objects.s3.identity import S3Identity
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.hostile_s3 import HostileS3, Status
from tests.support.identity_service import ROLE, IdentityService, refusal

URL = DatasetUrl.parse("s3://data/")
CONTENT = bytes(range(256)) * 1000
TEXT = b"<html>upstream connect error</html>"


@pytest.fixture
def store() -> Iterator[HostileS3]:
    with HostileS3({"key": CONTENT}) as server:
        yield server


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IdentityService]:
    with IdentityService() as service:
        for name, value in service.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield service


def opened(store: HostileS3, deadline_s: float = 1.0) -> ObjectStore:
    options = StoreOptions(endpoint=store.endpoint, request_timeout_s=0.5, deadline_s=deadline_s)
    return open_store(URL, options, Credentials())


def read(store: ObjectStore) -> bytes:
    return b"".join(store.read_range("key", ByteRange(0, len(CONTENT)), if_match=None))


FAILURES = [
    pytest.param(refusal(403, "AccessDenied"), "HTTP 403 AccessDenied", id="refused"),
    pytest.param(refusal(400, "InvalidIdentityToken"), "HTTP 400 InvalidIdentityToken", id="token"),
    pytest.param(refusal(503, "ServiceUnavailable"), "HTTP 503 ServiceUnavailable", id="unavailable"),
    pytest.param((503, b""), "HTTP 503", id="unavailable-without-a-body"),
    pytest.param((502, TEXT), "identity service", id="page-of-a-proxy"),
    pytest.param((200, TEXT), "cannot be used", id="text-for-xml"),
    pytest.param((200, b"<Fine/>"), "cannot be used", id="xml-of-another-kind"),
    pytest.param((403, b"go away"), "identity service", id="text-for-an-error"),
    pytest.param(None, "no answer in time", id="hangs"),
]


@pytest.mark.promise("S213")
@pytest.mark.parametrize(("answer", "expected"), FAILURES)
def test_at_the_mount_the_error_names_role_and_answer(
    store: HostileS3, service: IdentityService, answer: tuple[int, bytes] | None, expected: str
) -> None:
    service.answer = answer
    with pytest.raises(CredentialsRejected, match=re.escape(expected)) as caught:
        opened(store)
    assert ROLE in str(caught.value)
    assert "quoted by no one" not in str(caught.value)
    assert "upstream" not in str(caught.value)
    assert store.requests == []


@pytest.mark.promise("S213")
@pytest.mark.parametrize("answer", [refusal(503, "ServiceUnavailable"), refusal(400, "Throttling"), (502, TEXT), None])
def test_at_the_mount_a_failure_that_passes_is_a_pause(
    store: HostileS3, service: IdentityService, answer: tuple[int, bytes] | None
) -> None:
    service.answer = answer

    def recover() -> None:
        wait_until(lambda: service.asked)
        service.answer = "keys"

    thread = threading.Thread(target=recover)
    thread.start()
    assert read(opened(store, 60.0)) == CONTENT
    thread.join()


@pytest.mark.promise("S213")
@pytest.mark.parametrize(("answer", "expected"), FAILURES)
def test_keys_are_used_as_long_as_they_live_and_no_longer(
    store: HostileS3, service: IdentityService, answer: tuple[int, bytes] | None, expected: str
) -> None:
    service.life_s = 3.5
    client = opened(store)
    service.answer = answer
    asked = service.asked
    wait_until(lambda: read(client) == CONTENT and service.asked > asked)  # the renewal fails, the keys live
    time.sleep(service.life_s)
    sent = len(store.requests)
    with pytest.raises(CredentialsRejected, match=re.escape(expected)) as caught:
        read(client)
    assert ROLE in str(caught.value)
    assert len(store.requests) == sent
    service.answer = "keys"
    wait_until(lambda: _reads(client))
    assert "AKID1/" not in store.requests[-1].headers["authorization"]


def _reads(client: ObjectStore) -> bool:
    try:
        return read(client) == CONTENT
    except CredentialsRejected:
        return False


@pytest.mark.promise("S213")
def test_the_agent_of_a_container_is_a_service_like_others(
    store: HostileS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with HostileS3({"keys": b'{"AccessKeyId": "AKIDAGENT"}'}) as agent:
        for name in ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.endpoint}/data/keys")
        agent.fail_all(Status(403, "AccessDenied"))
        with pytest.raises(CredentialsRejected, match=r"the container's role.*HTTP 403"):
            opened(store)
        agent.fail_all(Status(503, "ServiceUnavailable"))
        with pytest.raises(CredentialsRejected, match=r"retries exhausted.*HTTP 503"):
            opened(store)
        agent.fail_all(None)
        with pytest.raises(CredentialsRejected, match="cannot be used"):  # half of the keys
            opened(store)


def test_keys_that_have_expired_are_none(store: HostileS3, service: IdentityService) -> None:
    service.life_s = -60.0
    with pytest.raises(CredentialsRejected, match="identity service"):
        opened(store)


def test_a_token_file_that_is_missing_is_named(
    store: HostileS3, service: IdentityService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/does/not/exist")
    with pytest.raises(CredentialsRejected, match="No such file"):
        opened(store)


def test_one_thread_waits_for_the_service_while_the_keys_live(service: IdentityService) -> None:
    service.life_s = 60.0
    identity = S3Identity(Credentials(), timeout_s=5.0)
    identity.keys()
    assert identity._last is not None
    identity._last = replace(identity._last, renew_s=0.0)
    service.answer = None
    asked = service.asked
    renewing = threading.Thread(target=identity.keys)
    renewing.start()
    wait_until(lambda: service.asked > asked)
    assert [identity.keys().access_key_id for _ in range(3)] == ["AKID1"] * 3
    assert renewing.is_alive()
    assert service.asked == asked + 1
    renewing.join()


@pytest.mark.fuse
@pytest.mark.promise("S213")
def test_readers_of_a_mount_see_a_pause_while_the_service_fails(
    store: HostileS3, service: IdentityService, tmp_path: Path
) -> None:
    store.put("data/a", CONTENT)
    store.put("data/b", CONTENT)
    service.life_s = 2.0
    bench = DaemonBench(tmp_path, keep=False)
    try:
        bench.start()
        bucket = _OwnIdentity(store, store.bucket, {})  # type: ignore[arg-type]
        mount = bench.mount(bucket, addressingStyle="path")
        assert (mount / "a").read_bytes() == CONTENT
        service.answer = refusal(503, "ServiceUnavailable")
        time.sleep(service.life_s + 0.5)
        asked, found = service.asked, []
        reader = threading.Thread(target=lambda: found.append((mount / "b").read_bytes()))
        reader.start()
        wait_until(lambda: service.asked > asked)
        old = {_key_id(request.headers) for request in store.seen("GET")}
        service.answer = "keys"
        reader.join(60)
        assert found == [CONTENT]
        assert _key_id(store.seen("GET")[-1].headers) not in old
    finally:
        bench.close()


class _OwnIdentity(Bucket):
    @property
    def secrets(self) -> dict[str, str]:
        return {}


def _key_id(headers: dict[str, str]) -> str:
    return headers["authorization"].partition("Credential=")[2].partition("/")[0]
