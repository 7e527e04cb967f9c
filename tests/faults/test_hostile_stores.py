"""Stores that misbehave, during read(2) and open(2) of a real mount: the rows of "Stores that misbehave" in
docs/semantics.md.

Each case ends the same way: the store has recovered, every byte of the volume is right, and every cached byte is one of
the store's.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_driver.fuse import mounting as device
from tests.support.cache_files import known_versions, wrong_in_cache
from tests.support.daemons import Bucket, DaemonBench, digest_of_objects, digest_of_tree, wait_until
from tests.support.hostile_s3 import (
    CloseAfter,
    Fault,
    FlipBits,
    Garbage,
    Hang,
    HostileS3,
    IgnoreIfMatch,
    IgnoreRange,
    ReplaceAfter,
    ResetAfter,
    ShortRange,
    Slow,
    Status,
    TooMany,
    WrongLength,
    WrongRange,
)
from tests.support.tls import trusted_tls

pytestmark = [pytest.mark.fuse, pytest.mark.faults]

MIB = 1 << 20
SMALL, LARGE = "small.jpg", "large.bin"
PATHS = [SMALL, LARGE]
DEADLINE_S = 1
NUMBERS = itertools.count(1)
"""Each volume has its own id and bytes: the port of an earlier store may be reused, and the daemon knows its objects by
endpoint and ETag, and its snapshot by the id of the volume."""
READ = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
os.pread(descriptor, 100000, int(sys.argv[2]))
"""


@dataclass
class Volume:
    """A dataset of one small and one large object in a hostile store, mounted."""

    store: HostileS3
    bench: DaemonBench
    mount_point: Path
    bucket: Bucket
    volume_id: str

    def read(self, path: str) -> bytes:
        return (self.mount_point / path).read_bytes()

    def content(self, path: str) -> bytes:
        return self.bucket.objects[path]

    def errno_of(self, path: str) -> int:
        """The errno of the first failing open or read of the file, else 0. Bytes read before must be right."""
        try:
            with (self.mount_point / path).open("rb", buffering=0) as file:
                offset = 0
                while piece := file.read(MIB):
                    assert piece == self.content(path)[offset : offset + len(piece)]
                    offset += len(piece)
        except OSError as error:
            return error.errno or 0
        return 0

    def must_be_right(self) -> None:
        """All reads are right once the store has recovered, and no wrong byte was cached before."""
        self.store.fail_all(None)
        assert self.store.faults_left == 0
        assert digest_of_tree(self.mount_point) == digest_of_objects(self.bucket.objects)
        self.must_have_no_wrong_cached_byte()

    def must_have_no_wrong_cached_byte(self) -> None:
        known = known_versions(self.attributes, self.bucket.secrets, self.bucket.objects)
        assert wrong_in_cache(self.bench.cache, known) == []

    @property
    def attributes(self) -> dict[str, str]:
        return self.bucket.attributes


Mount = Callable[..., Volume]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonBench]:
    """One daemon for all cases: a misbehaving store must not harm the next volume."""
    bench = DaemonBench(tmp_path_factory.mktemp("hostile"), leaves_fetches=True)
    bench.start()
    yield bench
    bench.close()


@pytest.fixture
def mount(bench: DaemonBench) -> Iterator[Mount]:
    with ExitStack() as stack:

        def make(tls: bool = False, timeout_s: int = 1, deadline_s: int = 20) -> Volume:
            number = next(NUMBERS)
            draw = random.Random(number)
            objects = {SMALL: draw.randbytes(110_000), LARGE: draw.randbytes(9 * MIB + 12_345)}
            context, pem = stack.enter_context(trusted_tls()) if tls else (None, "")
            keys = {f"data/{path}": data for path, data in objects.items()}
            store = stack.enter_context(HostileS3(keys, tls=context))
            bucket = Bucket(store, store.bucket, objects)  # type: ignore[arg-type]
            volume_id = f"volume-{number}"
            attributes = {"requestTimeout": f"{timeout_s}s", "deadline": f"{deadline_s}s"}
            attributes |= {"caBundle": pem} if tls else {}
            mount_point = bench.mount(bucket, volume_id, **attributes)
            stack.callback(lambda: device.find(mount_point) and bench.unmount(mount_point, volume_id))
            return Volume(store, bench, mount_point, bucket, volume_id)

        yield make


@pytest.mark.promise("S31")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "faults",
    [
        [Slow(0.02)],
        [Hang(30)],
        [Hang(30, body_bytes=50_000)],
        [Status(503, "SlowDown")] * 5,
        [Status(500), Status(502, xml=False), Status(504, xml=False), Status(429, "TooManyRequests")],
        [ResetAfter(0), ResetAfter(50_000)],
        [CloseAfter(0), CloseAfter(50_000)],
        [ShortRange(10)],
        [WrongLength(1000)],
        [WrongLength(-1000)],
        [Garbage()],
    ],
    ids=lambda faults: faults[0].__class__.__name__ + str(getattr(faults[0], "body_bytes", "")),
)
def test_a_temporary_fault_is_a_pause_and_not_an_error(mount: Mount, path: str, faults: list[Fault]) -> None:
    volume = mount()
    volume.store.fail_next(*faults)
    assert volume.read(path) == volume.content(path)
    volume.must_be_right()


@pytest.mark.promise("S31")
def test_garbage_in_a_tls_stream_is_a_pause_and_not_an_error(mount: Mount) -> None:
    volume = mount(tls=True)
    volume.store.fail_next(Garbage(), CloseAfter(50_000))
    assert volume.read(LARGE) == volume.content(LARGE)
    volume.must_be_right()


@pytest.mark.promise("S32")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (Status(503, "SlowDown"), errno.ETIMEDOUT),
        (Hang(30), errno.ETIMEDOUT),
        (ResetAfter(0), errno.ETIMEDOUT),
        (Status(403, "AccessDenied"), errno.EACCES),
        (Status(403, "InvalidAccessKeyId"), errno.EKEYREJECTED),
        (Status(400, "ExpiredToken"), errno.EKEYREJECTED),
        (Status(404, "NoSuchKey"), errno.ESTALE),
        (Status(412, "PreconditionFailed"), errno.ESTALE),
        (Status(400, "InvalidRequest"), errno.EIO),
        (WrongRange(50), errno.EIO),
        (TooMany(50), errno.EIO),
    ],
    ids=lambda value: value.code if isinstance(value, Status) else value.__class__.__name__,
)
def test_a_lasting_fault_has_its_errno_and_reads_work_when_the_store_recovers(
    mount: Mount, path: str, fault: Fault, number: int
) -> None:
    volume = mount(deadline_s=DEADLINE_S)
    volume.store.fail_all(fault)
    # A small object is requested without a range, so these faults do not apply: see the next test.
    needs_range = path == SMALL and isinstance(fault, WrongRange | TooMany)
    assert volume.errno_of(path) == (0 if needs_range else number)
    volume.must_be_right()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("fault", [WrongRange(50), TooMany(50)], ids=repr)
def test_a_small_object_is_requested_without_a_range_and_cannot_get_a_wrong_one(
    mount: Mount, fault: Fault, tls: bool
) -> None:
    volume = mount(tls=tls, deadline_s=DEADLINE_S)
    volume.store.fail_all(fault)
    assert volume.errno_of(SMALL) == 0
    volume.must_be_right()


@pytest.mark.promise("S33")
@pytest.mark.parametrize("path", PATHS)
def test_a_complete_object_in_answer_to_a_range_is_not_read_at_the_wrong_offset(mount: Mount, path: str) -> None:
    """The complete object is a right answer only to a range that spans the object."""
    volume = mount(deadline_s=DEADLINE_S)
    volume.store.fail_all(IgnoreRange())
    assert volume.errno_of(path) in (0, errno.EIO)
    volume.must_be_right()


@pytest.mark.promise("S33")
def test_bytes_beyond_the_requested_range_are_not_cached(mount: Mount) -> None:
    """The store announces the range and sends more than that."""
    volume = mount(deadline_s=DEADLINE_S)
    volume.store.fail_all(TooMany(50, honest=False))
    assert volume.errno_of(LARGE) in (0, errno.EIO)
    volume.must_be_right()


@pytest.mark.promise("S35")
def test_wrong_bytes_under_the_right_etag_are_found_by_the_checksum_of_the_object(mount: Mount) -> None:
    """Only the checksum distinguishes them from the right bytes. A small object is verified before it is opened."""
    volume = mount()
    volume.store.fail_next(FlipBits(5_000))
    assert volume.read(SMALL) == volume.content(SMALL)
    volume.must_be_right()


@pytest.mark.promise("S34")
def test_a_read_is_stale_and_never_mixed_when_the_object_is_replaced_during_it(mount: Mount) -> None:
    volume = mount()
    new = random.Random(0).randbytes(len(volume.content(LARGE)))
    volume.store.fail_next(ReplaceAfter(500_000, new))
    assert volume.errno_of(LARGE) == errno.ESTALE
    assert volume.errno_of(LARGE) == errno.ESTALE, "the error is permanent"
    volume.must_have_no_wrong_cached_byte()
    volume.store.put(f"data/{LARGE}", volume.content(LARGE))
    volume.must_be_right()


@pytest.mark.promise("S34")
@pytest.mark.parametrize("path", PATHS)
def test_versions_are_not_mixed_by_a_store_that_ignores_if_match(mount: Mount, path: str) -> None:
    """It sends the bytes of the new object under its ETag, whatever If-Match says."""
    volume = mount()
    volume.store.put(f"data/{path}", bytes(len(volume.content(path))))
    volume.store.fail_all(IgnoreIfMatch())
    assert volume.errno_of(path) == errno.ESTALE
    volume.must_have_no_wrong_cached_byte()
    volume.store.put(f"data/{path}", volume.content(path))
    volume.must_be_right()


@pytest.mark.promise("S36")
def test_cached_bytes_stay_readable_when_the_permission_is_revoked(mount: Mount) -> None:
    volume = mount()
    with (volume.mount_point / LARGE).open("rb", buffering=0) as file:
        first = file.read(100_000)
        wait_until(lambda: volume.store.seen("GET"))
        volume.store.fail_all(Status(403, "AccessDenied"))
        assert os.pread(file.fileno(), 100_000, 0) == first == volume.content(LARGE)[:100_000]
        small = volume.errno_of(SMALL)
    assert small == errno.EACCES
    volume.must_be_right()


@pytest.mark.promise("S31")
def test_an_outage_shorter_than_the_deadline_is_a_pause(mount: Mount) -> None:
    volume = mount()
    volume.store.go_away()
    reader = start_reader(volume.mount_point / LARGE)
    back = threading.Timer(3.0, volume.store.come_back)
    back.start()
    assert reader.wait(60) == 0
    back.join()
    volume.must_be_right()


@pytest.mark.promise("S32")
def test_an_outage_longer_than_the_deadline_is_an_error_until_the_store_is_back(mount: Mount) -> None:
    volume = mount(deadline_s=DEADLINE_S)
    first = os.open(volume.mount_point / LARGE, os.O_RDONLY)
    cached = os.pread(first, 1000, 0)
    volume.store.go_away()
    assert volume.errno_of(SMALL) == errno.EHOSTUNREACH
    assert os.pread(first, 1000, 0) == cached, "cached bytes need no store"
    volume.store.come_back()
    os.close(first)
    volume.must_be_right()


# -- readers that end before the store answers --------------------------------------------------------------------


def start_reader(path: Path, offset: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", READ, str(path), str(offset)])


@pytest.mark.promise("S37")
def test_a_killed_reader_ends_at_once_and_its_fetch_ends_with_the_request(mount: Mount) -> None:
    """The deadline is five minutes, and the test does not wait for it."""
    volume = mount(timeout_s=2, deadline_s=300)
    volume.store.fail_all(Hang(600))
    readers = [start_reader(volume.mount_point / path) for path in (LARGE, SMALL)]
    for reader in readers:
        wait_until(lambda: len(volume.store.seen("GET")) >= 2)
        reader.send_signal(signal.SIGKILL)
        assert reader.wait(20) == -signal.SIGKILL
    volume.must_be_right()


@pytest.mark.promise("S38")
def test_a_volume_is_unmounted_while_its_store_hangs_and_readers_wait(mount: Mount) -> None:
    """The mount is busy until the readers of its open files have ended; then the unmount needs no store."""
    volume = mount(timeout_s=2, deadline_s=300)
    volume.store.fail_all(Hang(600))
    reader = start_reader(volume.mount_point / LARGE)
    wait_until(lambda: volume.store.seen("GET"))
    reader.kill()
    reader.wait(20)
    volume.bench.unmount(volume.mount_point, volume.volume_id)
    assert device.find(volume.mount_point) is None
    with volume.bench.client() as client:
        wait_until(lambda: client.report().mounts == 0)


@pytest.mark.promise("S39")
def test_readers_of_a_detached_mount_still_get_their_bytes(mount: Mount) -> None:
    volume = mount(timeout_s=2, deadline_s=300)
    volume.store.fail_all(Hang(600))
    reader = start_reader(volume.mount_point / LARGE)
    wait_until(lambda: volume.store.seen("GET"))
    device.unmount(volume.mount_point, lazy=True)
    volume.store.fail_all(None)
    assert reader.wait(60) == 0


@pytest.mark.promise("S40")
def test_a_hanging_store_does_not_delay_another_volume(mount: Mount) -> None:
    bad, good = mount(timeout_s=30, deadline_s=300), mount()
    bad.store.fail_all(Hang(600))
    readers = [start_reader(bad.mount_point / LARGE, offset * MIB) for offset in range(8)]
    wait_until(lambda: len(bad.store.seen("GET")) >= 3)
    good.must_be_right()
    for reader in readers:
        reader.kill()
        reader.wait(20)
