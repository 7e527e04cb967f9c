"""The promises of docs/semantics.md about files, as an application meets them: through a mount of a whole dataset."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.catalog.builder import build_from_store
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem, Presentation
from csi_driver.filesystem.descriptor_budget import DescriptorBudget
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Dataset, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    AccessDenied,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    StoreUnavailable,
)
from csi_driver.objects.credentials import parse_secret
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from csi_driver.reading.fair_shares import Share
from csi_driver.settings import ChunkStoreSettings, FuseSettings, ReadingSettings
from hayloft_lab.memory_store import MemoryStore
from tests.support.hostile_s3 import HostileS3
from tests.support.mounts import MountBench, ServedMount
from tests.support.own_event_loop import OwnLoopCache

pytestmark = pytest.mark.fuse

MIB = 1 << 20
NOBODY = 65534


def some_bytes(count: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(count)


LARGE = some_bytes(9 * MIB + 12_345, 1)
SMALL = some_bytes(110_000, 2)


class BreakableStore(MemoryStore):
    """Every read fails with ``error`` while there is one (the kernel hides a single failure by a retry), and waits
    while ``answers`` is cleared."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(objects)
        self.error: HayloftError | None = None
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if self.error is not None:
            raise self.error
        self.asked.set()
        assert self.answers.wait(30)
        return super().read_range(key, byte_range, if_match=if_match)


class World:
    """A dataset in memory, a cache on disk, and mounts of the one through the other."""

    def __init__(self, directory: Path, bench: MountBench, other_store: ObjectStore | None = None) -> None:
        self.store = BreakableStore(
            {"train/large.bin": LARGE, "train/a/small.jpg": SMALL, "train/a/empty": b"", "train/b/c/deep": b"deep"}
        )
        self.mounted_store = other_store or self.store
        self.directory = directory
        self.bench = bench
        (directory / "cache").mkdir()
        self.chunks = ChunkStore(ChunkStoreSettings(directory=directory / "cache", free_floor_bytes=0))
        self.library = OwnLoopCache(self.chunks, ReadingSettings())
        self.manifests = 0

    def mount(self, *, passthrough: bool = True, presentation: Presentation | None = None) -> ServedMount:
        """The dataset as it is now."""
        self.manifests += 1
        dataset = Dataset(DatasetUrl.parse("s3://memory/train"))
        manifest = build_from_store(self.mounted_store, dataset, self.directory / f"{self.manifests}.arrow")
        filesystem = DatasetFilesystem(
            manifest.tree,
            self.library,
            self.mounted_store,
            access_domain="somebody",
            dataset_name="train",
            url_base="s3://memory/",
            presentation=presentation or Presentation(),
            share=Share(),
            descriptors=DescriptorBudget.of_this_process().share(Share()),
        )
        return self.bench.serve(filesystem, FuseSettings(passthrough=passthrough))

    def close(self) -> None:
        self.store.answers.set()
        self.bench.close()
        self.library.close()
        self.chunks.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, MountBench(tmp_path))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedMount]:
    """One mount for tests that cannot change anything."""
    directory = tmp_path_factory.mktemp("shared")
    made = World(directory, MountBench(directory))
    yield made.mount()
    made.close()


# -- files and directories ---------------------------------------------------------------------------------------------


@pytest.mark.promise("S3")
def test_size_and_time_are_those_of_the_object(world: World) -> None:
    status = (world.mount() / "large.bin").stat()
    listed = world.store.stat("train/large.bin")
    assert status.st_size == len(LARGE)
    assert status.st_mtime_ns == status.st_atime_ns == status.st_ctime_ns == listed.mtime_ns
    assert status.st_nlink == 1


@pytest.mark.promise("S4")
def test_owner_and_mode_are_those_of_the_volume(world: World) -> None:
    plain = (world.mount() / "a").stat(), (world.mount() / "large.bin").stat()
    assert [(stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for one in plain] == [(0o555, 0, 0), (0o444, 0, 0)]
    own = world.mount(presentation=Presentation(uid=NOBODY, gid=77, file_mode=0o400, directory_mode=0o500))
    chosen = (own / "a").stat(), (own / "large.bin").stat()
    assert [(stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for one in chosen] == [
        (0o500, NOBODY, 77),
        (0o400, NOBODY, 77),
    ]


@pytest.mark.promise("S4")
def test_the_kernel_refuses_other_users_by_owner_and_mode(world: World) -> None:
    mount = world.mount(presentation=Presentation(file_mode=0o400))
    open_it = f"import os; os.setuid({NOBODY}); open({os.fspath(mount / 'large.bin')!r}, 'rb')"
    world.directory.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", open_it], capture_output=True, text=True, check=False, timeout=30)
    assert "PermissionError" in result.stderr


@pytest.mark.promise("S6")
def test_stat_and_listings_need_no_network(world: World) -> None:
    mount = world.mount()
    found = sorted(os.fspath(path.relative_to(mount.mount_point)) for path in mount.mount_point.rglob("*"))
    assert found == ["a", "a/empty", "a/small.jpg", "b", "b/c", "b/c/deep", "large.bin"]
    assert world.store.reads == []


@pytest.mark.promise("S7")
def test_df_shows_the_dataset_and_nothing_free(world: World) -> None:
    space = os.statvfs(world.mount().mount_point)
    total = len(LARGE) + len(SMALL) + 4
    assert 0 <= space.f_blocks * space.f_frsize - total < space.f_frsize
    assert (space.f_bfree, space.f_bavail, space.f_files, space.f_ffree) == (0, 0, 4, 0)


@pytest.mark.promise("S8")
def test_extended_attributes_show_the_origin_and_the_cached_bytes(world: World) -> None:
    file = world.mount() / "a" / "small.jpg"
    assert os.getxattr(file, "user.hayloft.url") == b"s3://memory/train/a/small.jpg"
    assert os.getxattr(file, "user.hayloft.etag").decode() == world.store.stat("train/a/small.jpg").etag
    assert os.getxattr(file, "user.hayloft.cached") == b"0/110000"
    file.read_bytes()
    assert os.getxattr(file, "user.hayloft.cached") == b"110000/110000"
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(file, "user.other")


# -- writing -----------------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda root: (root / "large.bin").open("r+b"),
    "truncate": lambda root: os.truncate(root / "large.bin", 0),
    "create": lambda root: (root / "new").touch(),
    "mkdir": lambda root: (root / "new").mkdir(),
    "unlink": lambda root: (root / "large.bin").unlink(),
    "rmdir": lambda root: (root / "b" / "c").rmdir(),
    "rename": lambda root: (root / "large.bin").rename(root / "renamed"),
    "link": lambda root: os.link(root / "large.bin", root / "linked"),
    "symlink": lambda root: (root / "linked").symlink_to("large.bin"),
    "chmod": lambda root: (root / "large.bin").chmod(0o777),
    "chown": lambda root: os.chown(root / "large.bin", 1, 1),
    "utime": lambda root: os.utime(root / "large.bin"),
    "setxattr": lambda root: os.setxattr(root / "large.bin", "user.x", b"y"),
    "mknod": lambda root: os.mknod(root / "fifo", stat.S_IFIFO),
}


@pytest.mark.promise("S11")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_is_refused_as_read_only(shared_mount: ServedMount, write: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        write(shared_mount.mount_point)


@pytest.mark.promise("S12")
def test_nothing_is_ever_written_to_the_bucket(tmp_path: Path) -> None:
    with HostileS3({"train/large.bin": LARGE, "train/a/small.jpg": SMALL}, bucket="memory") as server:
        options = StoreOptions(endpoint=server.endpoint, region="us-east-1", addressing_style="path")
        secret = parse_secret({"access_key_id": "key", "secret_access_key": "secret"})
        store = open_store(DatasetUrl.parse("s3://memory/train"), options, secret)
        world = World(tmp_path, MountBench(tmp_path), store)
        try:
            mount = world.mount()
            assert (mount / "large.bin").read_bytes() == LARGE
            assert (mount / "a" / "small.jpg").read_bytes() == SMALL
        finally:
            world.close()
            store.close()
        assert {request.method for request in server.requests} <= {"GET", "HEAD"}


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S13")
@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "served"])
def test_every_way_of_reading_gives_the_bytes_of_the_object(world: World, passthrough: bool) -> None:
    mount = world.mount(passthrough=passthrough)
    for _ in ("fetched", "from the cache"):
        assert (mount / "large.bin").read_bytes() == LARGE
        assert (mount / "a" / "small.jpg").read_bytes() == SMALL
        assert (mount / "a" / "empty").read_bytes() == b""
    read = sum(len(byte_range) for _, byte_range in world.store.reads)
    assert read == len(LARGE) + len(SMALL)


@pytest.mark.promise("S15")
def test_reads_at_random_by_many_threads_agree_with_the_object(world: World) -> None:
    descriptor = os.open(world.mount() / "large.bin", os.O_RDONLY)
    wrong: list[int] = []

    def read(seed: int) -> None:
        places = random.Random(seed)
        for _ in range(40):
            offset, count = places.randrange(len(LARGE)), places.randrange(1, 300_000)
            if os.pread(descriptor, count, offset) != LARGE[offset : offset + count]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(descriptor)
    assert wrong == []


MAP_IT = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
    print(hashlib.sha256(view).hexdigest())
"""


@pytest.mark.promise("S15")
@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "served"])
def test_a_file_can_be_mapped_into_memory(world: World, passthrough: bool) -> None:
    """By a process of its own: a page fault does not release the interpreter, which the serving threads need."""
    file = world.mount(passthrough=passthrough) / "large.bin"
    for _ in ("fetched", "from the cache"):
        command = [sys.executable, "-c", MAP_IT, os.fspath(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert result.stdout.strip() == hashlib.sha256(LARGE).hexdigest()


@pytest.mark.promise("S15")
@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "served"])
def test_a_file_can_be_sent_and_spliced(world: World, passthrough: bool) -> None:
    mount = world.mount(passthrough=passthrough)
    with (mount / "large.bin").open("rb") as source, (world.directory / "copy").open("w+b") as copy:
        offset = 0
        while sent := os.sendfile(copy.fileno(), source.fileno(), offset, MIB):
            offset += sent
        copy.seek(0)
        assert copy.read() == LARGE
        reading, writing = os.pipe()
        assert os.splice(source.fileno(), writing, mmap.PAGESIZE, offset_src=0) == mmap.PAGESIZE
        assert os.read(reading, mmap.PAGESIZE) == LARGE[: mmap.PAGESIZE]
        os.close(reading)
        os.close(writing)


@pytest.mark.promise("S16")
def test_a_partly_fetched_file_shows_no_holes(world: World) -> None:
    with (world.mount() / "large.bin").open("rb") as file:
        file.read(10)
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == len(LARGE)
        assert os.lseek(file.fileno(), 5 * MIB, os.SEEK_DATA) == 5 * MIB
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.lseek(file.fileno(), len(LARGE), os.SEEK_DATA)


@pytest.mark.promise("S17")
def test_an_open_file_keeps_its_bytes_when_it_is_evicted(world: World) -> None:
    mount = world.mount()
    (mount / "large.bin").read_bytes()
    with (mount / "large.bin").open("rb") as file:
        for object_file in (world.directory / "cache" / "objects").rglob("*/*"):
            object_file.unlink()
        assert file.read() == LARGE


@pytest.mark.promise("S85")
def test_reads_of_an_open_complete_file_continue_while_no_daemon_serves(world: World) -> None:
    mount = world.mount()
    (mount / "large.bin").read_bytes()
    if not mount.session.passthrough:
        pytest.skip("the kernel has no passthrough")
    with (mount / "large.bin").open("rb", buffering=0) as file:
        mount.session.stop()
        assert file.readall() == LARGE


READ_WITH_A_HANDLER = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("signalled", flush=True))
descriptor = os.open(sys.argv[1], os.O_RDONLY)
print("reading", flush=True)
print(len(os.pread(descriptor, 1000, 0)), flush=True)
"""


def _waiting_reader(world: World, mount: ServedMount) -> subprocess.Popen[str]:
    """A process with a read that waits for the store."""
    world.store.answers.clear()
    command = [sys.executable, "-c", READ_WITH_A_HANDLER, os.fspath(mount / "large.bin")]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    assert world.store.asked.wait(20)
    return reader


@pytest.mark.promise("S22")
def test_a_signal_with_a_handler_does_not_end_a_pending_read(world: World) -> None:
    reader = _waiting_reader(world, world.mount())
    reader.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(0.5)
    world.store.answers.set()
    output, _ = reader.communicate(timeout=20)
    assert reader.returncode == 0
    assert sorted(output.split()) == ["1000", "signalled"]


@pytest.mark.promise("S22")
def test_a_reader_that_is_killed_does_not_wait_for_the_store(world: World) -> None:
    reader = _waiting_reader(world, world.mount())
    with reader:
        reader.kill()
        assert reader.wait(20) == -signal.SIGKILL
    assert not world.store.answers.is_set()


# -- changes in the store ----------------------------------------------------------------------------------------------


@pytest.mark.promise("S23")
def test_objects_added_to_the_bucket_are_not_seen(world: World) -> None:
    mount = world.mount()
    world.store.put("train/later", b"later")
    assert not (mount / "later").exists()
    assert "later" not in os.listdir(mount.mount_point)


@pytest.mark.promise("S25")
def test_a_replaced_or_deleted_object_is_stale_where_it_is_not_cached(world: World) -> None:
    mount = world.mount()
    (mount / "a" / "small.jpg").read_bytes()
    world.store.put("train/a/small.jpg", b"new")
    world.store.put("train/large.bin", LARGE)
    world.store.delete("train/b/c/deep")
    assert (mount / "a" / "small.jpg").read_bytes() == SMALL
    for name in ("large.bin", "b/c/deep"):
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            (mount / name).read_bytes()


@pytest.mark.promise("S43")
def test_a_new_version_is_never_read_from_the_cached_bytes_of_the_old_one(world: World) -> None:
    old = world.mount()
    (old / "a" / "small.jpg").read_bytes()
    replacement = SMALL[::-1]
    world.store.put("train/a/small.jpg", replacement)
    assert (world.mount() / "a" / "small.jpg").read_bytes() == replacement
    assert (old / "a" / "small.jpg").read_bytes() == SMALL


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S29")
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (AccessDenied("no"), errno.EACCES),
        (CredentialsRejected("expired"), errno.EKEYREJECTED),
        (EndpointUnreachable("gone"), errno.EHOSTUNREACH),
        (StoreUnavailable("503 until the deadline"), errno.ETIMEDOUT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HayloftError) else "",
)
def test_an_error_of_the_store_has_its_errno_and_the_next_read_works(
    world: World, error: HayloftError, number: int
) -> None:
    mount = world.mount()
    for name, content in (("a/small.jpg", SMALL), ("large.bin", LARGE)):
        world.store.error = error
        with (
            pytest.raises(OSError, match=os.strerror(number)) as caught,
            (mount / name).open("rb", buffering=0) as file,
        ):
            file.read(1000)
        assert caught.value.errno == number
        world.store.error = None
        assert (mount / name).read_bytes() == content
