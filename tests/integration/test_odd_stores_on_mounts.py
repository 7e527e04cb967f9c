"""Stores that answer in unusual ways, on a real mount: what is right is read, what passes is a pause, and the rest is
an error that says what the store did."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_driver.fuse import mounting
from csi_driver.model.errors import (
    AccessDenied,
    EndpointUnreachable,
    HayloftError,
    StoreProtocolError,
    StoreUnavailable,
)
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree
from tests.support.hostile_s3 import (
    Chunked,
    EmptyBody,
    EndlessHead,
    Fault,
    HostileS3,
    OkForRange,
    Redirect,
    ResetAfter,
    Status,
    closed_port,
)
from tests.support.tls import trusted_tls

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SMALL, LARGE = "small.jpg", "dir/large.bin"
DEADLINE_S, REQUEST_TIMEOUT_S = 10, 5
"""Of a volume that names no others. Its store is gone when its test ends."""
NUMBERS = itertools.count(1)
"""Each volume has its own id and bytes: the port of an earlier store may be reused."""


@dataclass
class Volume:
    store: HostileS3
    bucket: Bucket
    mount_point: Path

    def read(self, path: str) -> bytes:
        return (self.mount_point / path).read_bytes()

    def errno_of(self, path: str) -> int:
        """Of the first open or read that fails, else 0. Bytes before must be right."""
        try:
            with (self.mount_point / path).open("rb", buffering=0) as file:
                offset = 0
                while piece := file.read(MIB):
                    assert piece == self.bucket.objects[path][offset : offset + len(piece)]
                    offset += len(piece)
        except OSError as error:
            return error.errno or 0
        return 0

    def must_be_right(self) -> None:
        assert digest_of_tree(self.mount_point) == digest_of_objects(self.bucket.objects)


Mount = Callable[..., Volume]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path_factory.mktemp("odd"), keep=False, closes_s=DEADLINE_S + 2 * REQUEST_TIMEOUT_S)
    try:
        bench.start()
        yield bench
    finally:
        bench.close()


@pytest.fixture
def mount(bench: DaemonBench) -> Iterator[Mount]:
    with ExitStack() as stack:

        def make(
            *faults: Fault, objects: dict[str, bytes] | None = None, page_keys: int = 1000, **attributes: str
        ) -> Volume:
            """``faults``: of the listing."""
            number = next(NUMBERS)
            draw = random.Random(number)
            contents = objects or {SMALL: draw.randbytes(50_000), LARGE: draw.randbytes(5 * MIB + 123)}
            keys = {f"data/{path}": data for path, data in contents.items()}
            store = stack.enter_context(HostileS3(keys, page_keys=page_keys))
            store.lists_by_directory = True
            store.fail_next(*faults)
            bucket = Bucket(store, store.bucket, contents)  # type: ignore[arg-type]
            more = {"requestTimeout": f"{REQUEST_TIMEOUT_S}s", "deadline": f"{DEADLINE_S}s", **attributes}
            volume_id = f"volume-{number}"
            mount_point = bench.mount(bucket, volume_id, **more)
            stack.callback(lambda: mounting.find(mount_point) and bench.unmount(mount_point, volume_id))
            return Volume(store, bucket, mount_point)

        yield make


# -- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S200")
@pytest.mark.parametrize("path", [SMALL, LARGE])
def test_answers_without_bytes_end_with_the_deadline(mount: Mount, path: str) -> None:
    volume = mount(deadline="1s", requestTimeout="1s")
    volume.store.fail_all(EmptyBody())
    assert volume.errno_of(path) == errno.ETIMEDOUT
    assert len(volume.store.seen("GET")) < 60, "requests are spaced by the backoff, which no empty answer ends"
    volume.store.fail_all(None)
    volume.must_be_right()


@pytest.mark.promise("S200")
@pytest.mark.parametrize("path", [SMALL, LARGE])
def test_a_head_without_end_is_no_progress(mount: Mount, path: str) -> None:
    """The store sends a header from time to time: each wait for a byte is short."""
    volume = mount(EndlessHead(kinds=("LIST",)), deadline="3s", requestTimeout="1s")
    volume.store.fail_all(EndlessHead())
    assert volume.errno_of(path) == errno.ETIMEDOUT
    volume.store.fail_all(None)
    volume.must_be_right()


@pytest.mark.promise("S201")
def test_a_listing_that_breaks_off_has_all_keys_of_a_store_that_lists_by_directory(mount: Mount) -> None:
    """A page breaks off after ``p/a``; all below ``p/a/`` would be left out after that key. The file has another name
    than its key, because the directory has that."""
    names = ["p/a", "p/a/x", "p/a/y/z", "p/b"]  # as few pages as are never listed in ranges
    objects = {name: name.encode() for name in names}
    right, breaks = Fault(kinds=("LIST",)), ResetAfter(100, kinds=("LIST",))
    volume = mount(right, breaks, Status(503, kinds=("LIST",)), breaks, objects=objects, page_keys=1)
    contents = sorted(path.read_bytes() for path in volume.mount_point.rglob("*") if path.is_file())
    assert contents == sorted(objects.values())
    listings = volume.store.seen("LIST")
    assert not [request for request in listings if "start-after" in request.query]
    assert len(listings) == len(names) + 3


# -- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S202")
@pytest.mark.parametrize(
    "fault",
    [
        *(Status(status, "", xml=False) for status in (500, 501, 505, 507, 508, 511, 520, 529, 561, 599, 600, 999)),
        Status(400, "KMS.ThrottlingException"),
        Status(403, "rateLimitExceeded"),
        Status(409, "OperationAborted"),
        Status(421, "", xml=False),
    ],
    ids=lambda fault: f"{fault.status}{fault.code}",
)
def test_statuses_of_servers_and_proxies_pass_and_so_do_codes_that_say_so(mount: Mount, fault: Status) -> None:
    volume = mount(Status(fault.status, fault.code, xml=fault.xml, kinds=("LIST",)))
    volume.store.fail_next(fault, fault)
    volume.must_be_right()


# -- forms of answers -------------------------------------------------------------------------------------------------


@pytest.mark.promise("S205")
def test_answers_without_a_length_are_listed_and_read(mount: Mount) -> None:
    volume = mount(Chunked(kinds=("LIST",)))
    volume.store.fail_all(Chunked())
    volume.must_be_right()


@pytest.mark.promise("S206")
def test_a_range_that_is_answered_with_200_and_its_content_range_is_read(mount: Mount) -> None:
    volume = mount()
    volume.store.fail_all(OkForRange())
    volume.must_be_right()


@pytest.mark.promise("S206")
def test_small_files_stay_readable_after_odd_answers_of_a_store_without_ranges(mount: Mount) -> None:
    draw = random.Random(7)
    volume = mount(objects={f"{number}.jpg": draw.randbytes(20_000) for number in range(20)})
    volume.store.fail_next(*[Chunked(ranges=False)] * 8)
    volume.store.fail_all(Status(400, "InvalidRequest", ranges=True))
    assert sum(volume.errno_of(path) == 0 for path in volume.bucket.objects) >= 16, "two odd answers for each error"
    volume.must_be_right()


@pytest.mark.promise("S206")
def test_bytes_behind_the_content_range_of_a_200_are_an_error(mount: Mount) -> None:
    volume = mount()
    volume.store.fail_all(OkForRange(extra_bytes=100))
    assert volume.errno_of(LARGE) == errno.EIO
    volume.store.fail_all(None)
    volume.must_be_right()


# -- refusals ---------------------------------------------------------------------------------------------------------


def refused(mount: Mount, *faults: Fault, **attributes: str) -> HayloftError:
    with pytest.raises(HayloftError) as caught:
        mount(*faults, **attributes)
    return caught.value


@pytest.mark.promise("S205")
@pytest.mark.parametrize("code", ["TemporaryRedirect", "PermanentRedirect", ""])
def test_a_redirect_is_refused_and_the_host_is_named(mount: Mount, code: str) -> None:
    elsewhere = f"http://127.0.0.1:{closed_port()}"
    location = f"{elsewhere}/data/small.jpg?signature=secret"
    error = refused(mount, Redirect(location, code=code, kinds=("LIST",)))
    assert isinstance(error, StoreProtocolError)
    assert f"redirects to {elsewhere} (" in str(error)
    assert "secret" not in str(error)
    volume = mount()
    volume.store.fail_all(Redirect(location, code=code))
    assert [volume.errno_of(path) for path in (SMALL, LARGE)] == [errno.EIO] * 2
    volume.store.fail_all(None)
    volume.must_be_right()


@pytest.mark.promise("S203")
def test_a_denial_by_kms_names_the_code_and_the_permission(mount: Mount) -> None:
    text = "User: arn:aws:iam::1:user/x is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:y"
    error = refused(mount, Status(403, "AccessDenied", text, kinds=("LIST",)))
    assert isinstance(error, AccessDenied)
    assert "lack kms:Decrypt" in str(error)
    assert "arn:" not in str(error), "the rest of the text may hold anything"
    error = refused(mount, Status(400, "KMS.DisabledException", kinds=("LIST",)))
    assert isinstance(error, AccessDenied)
    assert "HTTP 400 KMS.DisabledException" in str(error)
    volume = mount()
    volume.store.fail_all(Status(400, "KMS.DisabledException"))
    assert [volume.errno_of(path) for path in (SMALL, LARGE)] == [errno.EACCES] * 2


@pytest.mark.promise("S207")
def test_a_volume_without_credentials_is_told_so(mount: Mount) -> None:
    error = refused(mount, Status(403, "AccessDenied", kinds=("LIST",)), anonymous="true")
    assert "carry no credentials: give the volume a Secret" in str(error)
    error = refused(mount, Status(401, "", kinds=("LIST",)), anonymous="true")
    assert "asks for credentials, and the volume has none" in str(error)


@pytest.mark.promise("S207")
def test_https_to_a_port_of_plain_http_is_told_apart_from_a_certificate(bench: DaemonBench) -> None:
    with HostileS3({"data/a": b"x"}) as store:
        bucket = Bucket(store, store.bucket, {})  # type: ignore[arg-type]
        with pytest.raises(EndpointUnreachable, match="does not speak TLS") as caught:
            bench.mount(bucket, f"volume-{next(NUMBERS)}", endpoint=f"https://127.0.0.1:{store.port}")
        assert "write http:// in the endpoint" in str(caught.value)
        assert "certificate" not in str(caught.value)


@pytest.mark.promise("S207")
def test_http_to_a_port_of_tls_says_so(bench: DaemonBench) -> None:
    with trusted_tls() as (context, _), HostileS3({"data/a": b"x"}, tls=context) as store:
        bucket = Bucket(store, store.bucket, {})  # type: ignore[arg-type]
        more = {"endpoint": f"http://127.0.0.1:{store.port}", "requestTimeout": "1s", "deadline": "1s"}
        with pytest.raises(StoreUnavailable, match="write https:// in the endpoint"):
            bench.mount(bucket, f"volume-{next(NUMBERS)}", **more)
