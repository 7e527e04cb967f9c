"""Which volumes get a materialised view, what can be reached from one, and the rights of the files behind it."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import ViewNotAllowed
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountTable
from csi_driver.volumes.data_plane import MountRequest, WarmupRequest, WarmupState
from tests.support.all_in_one import AllInOne, until
from tests.support.daemons import DaemonBench

pytestmark = pytest.mark.fuse

TEAM = Tenant("team-a", inline=True)
TRUSTED = Tenant("team-b", inline=True)
CONTENT = b"content of one volume " * 1000
OTHER = b"content of another volume " * 1000

_libc = ctypes.CDLL(None, use_errno=True)


class _FileHandle(ctypes.Structure):
    """struct file_handle with room for the longest handle."""

    _fields_ = (("handle_bytes", ctypes.c_uint), ("handle_type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128))


def handle_of(path: Path) -> _FileHandle:
    """What name_to_handle_at(2) tells; for ext4 the inode number and a generation, which can be guessed."""
    handle, mount_id = _FileHandle(handle_bytes=128), ctypes.c_int()
    if _libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return handle


def read_by_handle(root: Path, handle: _FileHandle) -> bytes:
    """What a process with CAP_DAC_READ_SEARCH reads that knows nothing but a mount and a handle."""
    mount_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = _libc.open_by_handle_at(mount_fd, ctypes.byref(handle), os.O_RDONLY)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        with open(descriptor, "rb") as file:
            return file.read()
    finally:
        os.close(mount_fd)


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk: a cache on tmpfs is refused."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp")).resolve()
    for name, content in (("one", CONTENT), ("two", OTHER)):
        (path / name).mkdir()
        (path / name / "file").write_bytes(content)
    yield path
    for entry in reversed(MountTable.read().below(path)):
        bind_mounts.unmount(Path(entry.mount_point), lazy=True)
    shutil.rmtree(path)


@pytest.fixture
def daemons(home: Path) -> Iterator[DaemonBench]:
    made = DaemonBench(home, ("--allow-file-urls", "--trusted-namespace=team-b"), keep=False)
    yield made
    made.close()


@pytest.fixture
def client(daemons: DaemonBench) -> Iterator[DaemonClient]:
    daemons.start()
    with daemons.client() as connected:
        yield connected


def mounted(client: DaemonClient, home: Path, name: str, tenant: Tenant, **attributes: str) -> str:
    """Mounts a volume and waits until it is cached; returns its id."""
    mount_point = home / f"staging-{name}-{tenant.namespace}"
    mount_point.mkdir()
    volume_id = f"volume-{name}-{tenant.namespace}"
    client.mount(
        MountRequest(volume_id, str(mount_point), {"url": f"file://{home}/{name}", **attributes}, tenant=tenant)
    )
    client.start_warmup(WarmupRequest(volume_id))
    until(lambda: client.warmup(volume_id).state is WarmupState.COMPLETE, "the volume is cached")
    return volume_id


def published(client: DaemonClient, home: Path, volume_id: str) -> bool:
    target = home / f"target-{volume_id}"
    target.mkdir()
    return client.publish(volume_id, str(target))


# -- views -------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S173")
def test_an_untrusted_inline_volume_gets_no_view(client: DaemonClient, home: Path) -> None:
    assert not published(client, home, mounted(client, home, "one", TEAM))
    assert published(client, home, mounted(client, home, "one", TRUSTED))
    assert published(client, home, mounted(client, home, "one", ADMINISTRATOR))


@pytest.mark.promise("S173")
def test_an_untrusted_inline_volume_that_must_have_a_view_is_refused(client: DaemonClient, home: Path) -> None:
    with pytest.raises(ViewNotAllowed, match=r"view: 'materialised'.*'team-a'.*--trusted-namespace=team-a"):
        mounted(client, home, "one", TEAM, view="materialised")
    assert published(client, home, mounted(client, home, "two", TRUSTED, view="materialised"))


def test_a_handle_reaches_all_of_the_cache_from_a_view_and_nothing_of_it_from_a_fuse_mount(
    client: DaemonClient, daemons: DaemonBench, home: Path
) -> None:
    """The reason for the policy: the bytes of another volume, by a handle that needs no path to them."""
    mounted(client, home, "two", ADMINISTRATOR)
    volume_id = mounted(client, home, "one", ADMINISTRATOR)
    assert published(client, home, volume_id)
    (other,) = (path for path in daemons.cache.glob("objects/*/*") if path.read_bytes() == OTHER)
    assert read_by_handle(home / f"target-{volume_id}", handle_of(other)) == OTHER
    with pytest.raises(OSError, match=r"Stale|Invalid|not supported"):
        read_by_handle(home / f"staging-one-{ADMINISTRATOR.namespace}", handle_of(other))


def test_a_process_of_another_user_reads_a_view(client: DaemonClient, home: Path) -> None:
    """The directories of the cache above it are closed to that user."""
    volume_id = mounted(client, home, "one", ADMINISTRATOR)
    assert published(client, home, volume_id)
    home.chmod(0o755)
    target = home / f"target-{volume_id}"
    read = ["cat", str(target / "file")]
    done = subprocess.run(read, user=1000, group=1000, extra_groups=[], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, CONTENT), done.stderr
    search = ["ls", str(home / "cache")]
    assert subprocess.run(search, user=1000, group=1000, extra_groups=[], capture_output=True, check=False).returncode


# -- rights ------------------------------------------------------------------------------------------------------------


def open_to_others(directory: Path) -> list[str]:
    """What group or others have a right on, apart from files that are reached through closed directories alone."""
    found = []
    for path in (directory, *directory.iterdir()):
        if stat.S_IMODE(path.lstat().st_mode) & 0o077:
            found.append(path.name)
    return found


@pytest.mark.promise("S174")
def test_cache_and_state_are_for_their_owner_alone(client: DaemonClient, daemons: DaemonBench, home: Path) -> None:
    mounted(client, home, "one", ADMINISTRATOR)
    until((daemons.cache / "index.sqlite-wal").exists, "the index has a journal")
    assert open_to_others(daemons.cache) == []
    assert open_to_others(home / "state") == []


@pytest.mark.promise("S174")
def test_modes_of_an_older_version_are_corrected(daemons: DaemonBench, home: Path) -> None:
    process = daemons.start()
    process.terminate()
    process.wait(60)
    (daemons.cache / "index.sqlite-wal").touch()
    for path in (daemons.cache, *daemons.cache.iterdir(), home / "state", *(home / "state").iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    daemons.start()
    assert open_to_others(daemons.cache) == []
    assert open_to_others(home / "state") == []


def test_a_cache_directory_that_is_shared_with_others_keeps_its_mode(daemons: DaemonBench) -> None:
    (daemons.cache / "of-another-program").mkdir()
    daemons.cache.chmod(0o755)
    daemons.start()
    assert daemons.cache.stat().st_mode & 0o777 == 0o755
    assert (daemons.cache / "index.sqlite").stat().st_mode & 0o077 == 0


@pytest.mark.promise("S175")
def test_no_secret_is_in_the_command_lines_and_environments_of_the_driver(home: Path) -> None:
    secret = "a-secret-of-the-volume"
    driver = AllInOne(home)
    driver.forked = False
    try:
        client = driver.start()
        with pytest.raises(grpc.RpcError):
            client.create(
                "v",
                parameters={
                    "url": "s3://b/p",
                    "endpoint": "http://127.0.0.1:1",
                    "deadline": "1s",
                    "requestTimeout": "1s",
                },
                secrets={"access_key_id": "some-id", "secret_access_key": secret},
            )
        assert driver.process is not None
        for process_id in (driver.process.pid, *driver.children().values()):
            for name in ("cmdline", "environ"):
                assert secret.encode() not in Path(f"/proc/{process_id}/{name}").read_bytes()
        assert secret not in driver.log.read_text()
    finally:
        driver.close()
        sys.stdout.write(driver.log.read_text())
