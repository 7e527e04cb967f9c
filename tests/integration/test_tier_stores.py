"""A store behind real nginx replicas: what is read, where it comes from, and what a replica that fails costs."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import HayloftError, InvalidParameter, ObjectChanged
from csi_driver.model.replica import Replica
from csi_driver.objects.store import WholeObject, read_whole, whole_reader
from csi_driver.objects.tier.nginx_config import MIB, TlsFiles
from csi_driver.objects.tier.replica_set import Tier, TierIdentity
from csi_driver.objects.tier.tiered_hooks import distrust_tier
from csi_driver.objects.tier.tiered_store import Tiered
from csi_driver.wiring.tier_members import ClientCertificates
from hayloft_lab.nginx_process import HOST
from hayloft_lab.nginx_replica import NginxReplica
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, wait_until
from tests.support.seaweedfs import seaweed, seaweed_bucket
from tests.support.tier import (
    KEY,
    SERVER_NAME,
    Authority,
    members,
    plain_tier,
    running_replicas,
    tiered_store,
    tls_tier,
)

__all__ = ["seaweed", "seaweed_bucket"]

pytestmark = [pytest.mark.server, pytest.mark.nginx]

DRAW = random.Random(19)
SMALL = {f"small/{number}": DRAW.randbytes(50_000 + number * 1_000) for number in range(20)}
LARGE = DRAW.randbytes(20 * MIB + 12_345)


@pytest.fixture
def bucket(seaweed: SeaweedFsServer, seaweed_bucket: str) -> Bucket:
    made = Bucket(seaweed, seaweed_bucket, {})
    made.fill(SMALL | {"large": LARGE})
    return made


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[NginxReplica]]:
    with running_replicas(tmp_path, 3) as running:
        yield running


def etag_of(store: Tiered, key: str) -> str:
    etag = store.stat(f"data/{key}").etag
    assert etag is not None
    return etag


def read_all(store: Tiered, key: str = "large", step: int = 3 * MIB, etag: str | None = None) -> bytes:
    """In ranges that are no slices."""
    etag = etag or etag_of(store, key)
    size = len(LARGE)
    found = []
    for start in range(0, size, step):
        part = ByteRange(start, min(start + step, size))
        found += [bytes(piece) for piece in store.read_range(f"data/{key}", part, if_match=etag)]
    return b"".join(found)


def read_small(store: Tiered) -> None:
    for key, content in SMALL.items():
        whole = read_whole(store, f"data/{key}", len(content), if_match=etag_of(store, key))
        assert b"".join(whole.parts) == content


def event_loop_read(store: Tiered, key: str) -> WholeObject | None:
    """As the event loop reads; None: it would take the fallback path."""
    reader = whole_reader(store)
    assert reader is not None
    response = reader.begin_whole(f"data/{key}", len(SMALL[key]), if_match=etag_of(store, key))
    if response is None:
        return None
    import select

    poll = select.poll()
    while (whole := response.advance()) is None:
        poll.register(response.fileno(), response.events)
        assert poll.poll(20_000)
    return whole


@pytest.mark.promise("S562")
def test_the_bucket_sends_each_byte_once_and_all_nodes_get_it(bucket: Bucket, replicas: list[NginxReplica]) -> None:
    before = bucket.server.bytes_sent()
    for _ in range(3):
        store = tiered_store(bucket.server, bucket.name, plain_tier(members(replicas)))
        assert read_all(store) == LARGE
        read_small(store)
        store.close()
    wait_until(lambda: bucket.server.bytes_sent() - before >= bucket.total_bytes)
    assert bucket.server.bytes_sent() - before <= 1.02 * bucket.total_bytes
    assert sum(replica.requests() > 5 for replica in replicas) >= 2, "the objects are spread over the replicas"


@pytest.mark.promise("S562")
def test_the_event_loop_reads_small_objects_through_the_tier(bucket: Bucket, replicas: list[NginxReplica]) -> None:
    tier = plain_tier(members(replicas))
    store = tiered_store(bucket.server, bucket.name, tier)
    read_small(store)
    before, hits = bucket.server.bytes_sent(), tier.report().hits
    for key, content in SMALL.items():
        whole = event_loop_read(store, key)
        assert whole is not None
        assert b"".join(whole.parts) == content
    report = tier.report()
    assert report.hits - hits == len(SMALL)
    assert report.failures == 0
    assert bucket.server.bytes_sent() == before


@pytest.mark.promise("S563")
@pytest.mark.parametrize("how", ["gone", "hangs"])
def test_replicas_that_fail_are_not_errors_of_reads(bucket: Bucket, replicas: list[NginxReplica], how: str) -> None:
    tier = plain_tier(members(replicas), timeout_s=1.0)
    store = tiered_store(bucket.server, bucket.name, tier)
    for replica in replicas:
        (replica.kill if how == "gone" else replica.suspend)()
    assert read_all(store) == LARGE
    read_small(store)
    report = tier.report()
    assert report.failures >= 2
    assert report.left_alone == report.replicas == 3
    for replica in replicas:
        (replica.start if how == "gone" else replica.resume)()
    wait_until(lambda: read_all(store) == LARGE and tier.report().left_alone == 0)
    hits = tier.report().hits
    wait_until(lambda: read_all(store) == LARGE and tier.report().hits > hits)


@pytest.mark.promise("S563")
def test_a_name_that_does_not_resolve_costs_no_read(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    tier = plain_tier([Replica("a", "replica.invalid", 8443)])
    store = tiered_store(bucket.server, bucket.name, tier)
    assert read_all(store) == LARGE
    (record,) = [record for record in caplog.records if "replica" in record.getMessage()]
    assert "no connection" in str(record.__dict__)
    assert tier.report().failures >= 1


@pytest.mark.promise("S563")
def test_a_replica_whose_disk_is_full_or_fails_means_misses(bucket: Bucket, tmp_path: Path) -> None:
    """The directory of the cache is gone and cannot be made: nginx writes nothing any more."""
    with running_replicas(tmp_path, 1) as (replica,):
        tier = plain_tier(members([replica]))
        store = tiered_store(bucket.server, bucket.name, tier)
        cache = replica.directory / "cache"
        for name in ("slices", "proxy"):
            for path in sorted((cache / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (cache / name).rmdir()
            (cache / name).write_text("no directory")
        assert read_all(store) == LARGE
        read_small(store)


class _Cutting:
    """An HTTP server in the place of a replica, which answers as ``answer`` says."""

    def __init__(self, answer: bytes) -> None:
        import socket

        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._answer = answer
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # A client may close the connection as soon as it has seen a head that cannot be right.
            with connection, contextlib.suppress(ConnectionError):
                while not connection.recv(65536).endswith(b"\r\n\r\n"):
                    pass
                connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.close()


def _answer(status: str, body: bytes, **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


@pytest.mark.promise("S563")
@pytest.mark.parametrize(
    "kind", ["cut", "short", "long", "other_version", "no_version", "error", "no_http", "redirect"]
)
@pytest.mark.parametrize("size", ["small", "large"])
def test_an_answer_that_is_not_the_object_is_never_read(bucket: Bucket, kind: str, size: str) -> None:
    key = "small/3" if size == "small" else "large"
    content = SMALL["small/3"] if size == "small" else LARGE[: 2 * MIB]
    wrong = bytes(len(content))
    bucket_store = tiered_store(bucket.server, bucket.name, plain_tier([]))
    etag = etag_of(bucket_store, key)
    status, part = ("200 OK", {}) if size == "small" else ("206 Partial Content", {})
    if size == "large":
        part = {"Content_Range": f"bytes 0-{len(content) - 1}/{len(LARGE)}"}
    length = str(len(content))
    answer = {
        "cut": _answer(status, content[: len(content) // 2], Content_Length=length, ETag=f'"{etag}"', **part),
        "short": _answer(status, wrong[:-1], Content_Length=str(len(content) - 1), ETag=f'"{etag}"', **part),
        "long": _answer(status, wrong + b"x", Content_Length=str(len(content) + 1), ETag=f'"{etag}"', **part),
        "other_version": _answer(status, wrong, Content_Length=length, ETag='"other"', **part),
        "no_version": _answer(status, wrong, Content_Length=length, **part),
        "error": _answer("500 Internal Server Error", b"", Content_Length="0"),
        "no_http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "redirect": _answer("302 Found", b"", Content_Length="0", Location="http://127.0.0.1:1/"),
    }[kind]
    server = _Cutting(answer)
    try:
        store = tiered_store(bucket.server, bucket.name, plain_tier([Replica("a", HOST, server.port)], timeout_s=2.0))
        if size == "small":
            got = b"".join(read_whole(store, f"data/{key}", len(content), if_match=etag).parts)
        else:
            got = b"".join(store.read_range(f"data/{key}", ByteRange(0, len(content)), if_match=etag))
        assert got == content
    finally:
        server.close()


@pytest.mark.promise("S567")
@pytest.mark.parametrize("cached", ["nothing", "a part", "everything"])
def test_an_overwritten_object_is_the_old_one_or_an_error(
    bucket: Bucket, replicas: list[NginxReplica], cached: str
) -> None:
    store = tiered_store(bucket.server, bucket.name, plain_tier(members(replicas)))
    etag = etag_of(store, "large")
    if cached == "a part":
        assert b"".join(store.read_range("data/large", ByteRange(0, MIB), if_match=etag)) == LARGE[:MIB]
    elif cached == "everything":
        assert read_all(store, etag=etag) == LARGE
    new = random.Random(5).randbytes(len(LARGE))
    bucket.put("large", new)
    got = b""
    try:
        for piece in store.read_range("data/large", ByteRange(0, len(LARGE)), if_match=etag):
            got += piece
    except ObjectChanged:
        assert cached != "everything"
    assert got == LARGE[: len(got)]
    assert (len(got) == len(LARGE)) == (cached == "everything")
    assert read_all(store) == new, "under its own ETag the new version is read"


@pytest.mark.promise("S561")
def test_another_credential_or_domain_finds_nothing_of_what_is_cached(
    bucket: Bucket, replicas: list[NginxReplica]
) -> None:
    tier = plain_tier(members(replicas))
    store = tiered_store(bucket.server, bucket.name, tier, credential=b"one")
    etag = etag_of(store, "large")
    assert read_all(store, etag=etag) == LARGE
    before = bucket.server.bytes_sent()
    for credential, domain in ((b"two", ""), (b"one", "another domain")):
        hits = tier.report().hits
        other = tiered_store(bucket.server, bucket.name, tier, credential=credential, domain=domain)
        assert b"".join(other.read_range("data/large", ByteRange(0, MIB), if_match=etag)) == LARGE[:MIB]
        assert tier.report().hits == hits
    wait_until(lambda: bucket.server.bytes_sent() > before)


@pytest.mark.promise("S561")
def test_a_credential_that_the_bucket_refuses_reads_nothing_through_the_tier(
    bucket: Bucket, replicas: list[NginxReplica]
) -> None:
    tier = plain_tier(members(replicas))
    store = tiered_store(bucket.server, bucket.name, tier)
    etag = etag_of(store, "large")
    assert read_all(store, etag=etag) == LARGE
    bucket.server.access_key_id, secret = "WRONG", bucket.server.access_key_id
    try:
        refused = tiered_store(bucket.server, bucket.name, tier, credential=b"two", deadline_s=1)
        with pytest.raises(HayloftError) as caught:
            list(refused.read_range("data/large", ByteRange(0, MIB), if_match=etag))
        assert not isinstance(caught.value, ObjectChanged)
    finally:
        bucket.server.access_key_id = secret


@pytest.mark.promise("S564")
def test_a_path_without_the_signature_of_the_cluster_is_refused(bucket: Bucket, replicas: list[NginxReplica]) -> None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    tier = plain_tier(members(replicas))
    assert tier.path("/v1/object/a") != "/v1/object/a"
    wrong = Tier(TierIdentity(KEY), tier.policy, lambda: members(replicas))
    store = tiered_store(bucket.server, bucket.name, wrong)
    assert read_all(store) == LARGE, "the bucket has the answer"
    assert wrong.report().hits == wrong.report().misses == 0
    for path in ("/v1/object/a", "/v1/object/a?md5=x&expires=9999999999", tier.path("/v1/object/b")[:-1] + "1", "/"):
        headers = {"X-Hayloft-Origin": f"{bucket.server.endpoint}/"}
        request = Request(f"http://{replicas[0].address}{path}", headers=headers)
        with pytest.raises(HTTPError) as caught:
            urlopen(request, timeout=10)  # noqa: S310 - its own loopback URL
        caught.value.close()
        assert caught.value.code == 403


@pytest.mark.promise("S568")
def test_no_credential_is_in_the_logs_or_in_the_cache_of_a_replica(bucket: Bucket, tmp_path: Path) -> None:
    """Also not with what an error of nginx shows of a request."""
    with running_replicas(tmp_path, 1) as (replica,):
        store = tiered_store(bucket.server, bucket.name, plain_tier(members([replica])))
        read_small(store)
        assert read_all(store) == LARGE
        dead = tiered_store(bucket.server, bucket.name, plain_tier(members([replica])))
        etag = etag_of(dead, "large")
        for name in ("slices", "proxy"):  # an error that names the request to the bucket
            (tmp_path / "replica-0" / "cache" / name).rename(tmp_path / name)
            (tmp_path / "replica-0" / "cache" / name).write_text("")
        list(dead.read_range("data/large", ByteRange(0, MIB), if_match=etag))
        kept = [*tmp_path.rglob("*")]
        texts = {path: path.read_bytes() for path in kept if path.is_file() and path.name != "nginx.conf"}
    assert any(b"upstream" in text for text in texts.values()), "nginx has logged an error of a request"
    for secret in (bucket.server.access_key_id, bucket.server.secret_access_key, "Signature=", "Credential="):
        assert not [path for path, text in texts.items() if secret.encode() in text]


@pytest.mark.promise("S569")
def test_bytes_that_do_not_match_their_checksum_are_fetched_past_the_tier(
    bucket: Bucket, replicas: list[NginxReplica]
) -> None:
    tier = plain_tier(members(replicas))
    store = tiered_store(bucket.server, bucket.name, tier)
    read_small(store)
    etag = etag_of(store, "small/3")
    asked = tier.report()
    distrust_tier(store, "data/small/3", etag)
    whole = read_whole(store, "data/small/3", len(SMALL["small/3"]), if_match=etag)
    assert b"".join(whole.parts) == SMALL["small/3"]
    assert tier.report().hits == asked.hits
    assert tier.report().bypassed == asked.bypassed + 1


@pytest.mark.promise("S565")
def test_a_share_that_fits_is_read_through_the_tier_and_the_rest_past_it(
    bucket: Bucket, replicas: list[NginxReplica]
) -> None:
    tier = plain_tier(members(replicas), replica_bytes=100)
    store = tiered_store(bucket.server, bucket.name, tier)
    store.dataset_bytes = 600
    for _ in range(2):
        read_small(store)
    report = tier.report()
    assert report.hits == report.misses == len(SMALL) - report.bypassed / 2
    assert 3 <= report.hits <= 17


@pytest.mark.promise("S561")
def test_after_a_while_the_bucket_is_asked_again_whether_the_reader_may_read(bucket: Bucket, tmp_path: Path) -> None:
    with running_replicas(tmp_path, 1, valid_s=1) as (replica,):
        tier = plain_tier(members([replica]))
        store = tiered_store(bucket.server, bucket.name, tier)
        etag = etag_of(store, "large")
        part = ByteRange(0, MIB)
        assert b"".join(store.read_range("data/large", part, if_match=etag)) == LARGE[:MIB]
        before = bucket.server.requests()

        def asked_again() -> bool:
            assert b"".join(store.read_range("data/large", part, if_match=etag)) == LARGE[:MIB]
            return bucket.server.requests() > before

        wait_until(asked_again)


@pytest.mark.promise("S564")
def test_replicas_and_nodes_know_each_other_by_certificates(bucket: Bucket, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    node, stranger = authority.issue("hayloft-node", server=False), other.issue("hayloft-node", server=False)
    # A stranger who trusts the replicas, and has a certificate that they do not.
    stranger = TlsFiles(stranger.certificate, stranger.key, node.authority)
    with running_replicas(tmp_path, 2, tls=authority.issue(SERVER_NAME, server=True)) as replicas:
        tier = tls_tier(members(replicas), node)
        for _ in range(2):
            store = tiered_store(bucket.server, bucket.name, tier)
            assert read_all(store) == LARGE
            read_small(store)
        assert tier.report().failures == 0
        hits = tier.report().hits
        assert hits >= 20
        whole = event_loop_read(store, "small/3")
        assert whole is not None
        assert b"".join(whole.parts) == SMALL["small/3"]
        assert tier.report().hits == hits + 1
        for files in (stranger, authority.issue("another-replica", server=True)):
            refused = tls_tier(members(replicas), files)
            assert read_all(tiered_store(bucket.server, bucket.name, refused)) == LARGE
            assert refused.report().hits == refused.report().misses == 0
        refused = plain_tier(members(replicas))
        assert read_all(tiered_store(bucket.server, bucket.name, refused)) == LARGE
        assert refused.report().hits == refused.report().misses == 0


@pytest.mark.promise("S563")
@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_replica_with_a_wrong_certificate_is_named_and_the_bucket_is_read(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    certificate = (
        other.issue(SERVER_NAME, server=True) if wrong == "authority" else authority.issue("elsewhere", server=True)
    )
    with running_replicas(tmp_path, 1, tls=certificate) as (replica,):
        tier = tls_tier(members([replica]), authority.issue("hayloft-node", server=False))
        assert read_all(tiered_store(bucket.server, bucket.name, tier)) == LARGE
        assert tier.report().failures >= 1
    record = next(record for record in caplog.records if "replica" in record.getMessage())
    assert replica.address in str(record.__dict__)
    assert "certificate is not valid" in str(record.__dict__)


def test_certificates_are_read_anew_when_their_files_have_changed(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    node = authority.issue("hayloft-node", server=False)
    certificates = ClientCertificates(Path(node.authority), Path(node.certificate), Path(node.key))
    assert len(certificates.context.get_ca_certs()) == 1
    Path(node.authority).write_bytes(other.path.read_bytes())
    os.utime(node.authority, (1, 1))
    certificates.renew()
    assert len(certificates.context.get_ca_certs()) == 2, "certificates of the earlier authority are valid until then"
    Path(node.certificate).write_text("no certificate")
    certificates.renew()
    assert len(certificates.context.get_ca_certs()) == 2


@pytest.mark.promise("S572")
@pytest.mark.parametrize(("missing", "flag"), [(0, "--tier-ca"), (1, "--tier-cert"), (2, "--tier-cert")])
def test_a_file_of_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, missing: int, flag: str) -> None:
    node = Authority(tmp_path).issue("hayloft-node", server=False)
    paths = [Path(node.authority), Path(node.certificate), Path(node.key)]
    paths[missing].unlink()
    with pytest.raises(InvalidParameter, match=flag):
        ClientCertificates(*paths)
