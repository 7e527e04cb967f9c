"""Which errno each refused operation has: on FUSE mounts and on materialised views, for root and for other users."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from csi_driver.mounts.materialised_views import view_shown_by
from csi_driver.mounts.mount_table import MountTable
from tests.support import write_operations
from tests.support.all_in_one import AllInOne, until
from tests.support.csi_calls import CsiClient
from tests.support.users import USER, as_user

pytestmark = pytest.mark.fuse

OWNER, GROUP = 4711, 4712
OWNED = {"uid": str(OWNER), "gid": str(GROUP)}
OWNED_VIEW = {**OWNED, "view": "materialised"}  # with "auto" another owner is shown by FUSE alone
LARGE = os.urandom(5_000_001)
"""Larger than what is fetched at open, so that the first open of a cold file is served."""

READ_ONLY = {
    name: "EROFS"
    for name in (
        "open for writing",
        "open for reading and writing",
        "open for reading and writing, O_CREAT",
        "open for appending",
        "open an empty file for writing",
        "open lock.mdb for writing",
        "open with O_TRUNC",
        "open with O_CREAT and O_TRUNC",
        "open for reading with O_TRUNC",
        "create",
        "create with O_EXCL",
        "create for reading",
        "O_TMPFILE",
        "access W_OK",
        "access W_OK, effective ids",
        "access W_OK of a directory",
        "access W_OK of the root",
        "truncate",
        "unlink",
        "unlink a missing file",
        "rmdir",
        "mkdir",
        "mknod of a fifo",
        "mknod of a file",
        "bind a socket",
        "rename",
        "rename of a missing file",
        "link",
        "symlink",
        "chmod",
        "chmod of a directory",
        "fchmod",
        "chown",
        "fchown",
        "utimens, now",
        "utimens, a time",
        "futimens",
        "setxattr",
        "setxattr of an ACL",
        "fsetxattr",
        "removexattr",
        "FS_IOC_SETFLAGS",
        "FS_IOC_FSSETXATTR",
    )
}
MODE_FIRST = (
    "open for writing",
    "open for reading and writing",
    "open for reading and writing, O_CREAT",
    "open for appending",
    "open an empty file for writing",
    "access W_OK",
    "access W_OK, effective ids",
    "access W_OK of a directory",
    "access W_OK of the root",
    "truncate",
)
"""A view is a read-only mount of a writable file system. Here the kernel compares the mode before it looks at the
mount; a FUSE mount is a read-only file system, which it looks at first."""

ANYWHERE = {
    "open with O_CREAT and O_EXCL": "EEXIST",
    "open for reading with O_CREAT": "ok",
    "open a directory for writing": "EISDIR",
    "create in a missing directory": "ENOENT",
    "access R_OK": "ok",
    "access X_OK": "EACCES",
    "access W_OK of a missing file": "ENOENT",
    "truncate a directory": "EISDIR",
    "mkdir of an existing directory": "EEXIST",
    "rename to the outside": "EXDEV",
    "rename from the outside": "EXDEV",
    "link to the outside": "EXDEV",
    "symlink with an existing name": "EEXIST",
    "write": "EBADF",
    "ftruncate": "EINVAL",
    "fallocate": "EBADF",
    "copy_file_range": "EBADF",
    "FICLONE": "EBADF",
    "mmap shared, PROT_WRITE": "EACCES",
    "mmap private, PROT_WRITE": "ok",
    "fsync": "ok",
    "fsync of a directory": "ok",
    "flock, shared": "ok",
    "flock, exclusive": "ok",
    "fcntl lock for reading": "ok",
    "fcntl lock for writing": "EBADF",
    "OFD lock for reading": "ok",
    "OFD lock for writing": "EBADF",
}
FUSE_ONLY = {"FS_IOC_GETFLAGS": "ENOTTY"}
VIEW_ONLY = {"FS_IOC_GETFLAGS": "ok"}
OWNERS = {"F_SETLEASE": "ok", "O_NOATIME": "ok"}
OTHERS = {"F_SETLEASE": "EACCES", "O_NOATIME": "EPERM"}


class Mounts(NamedTuple):
    home: Path
    client: CsiClient
    numbers: Iterator[int]

    def show(self, kind: str, parameters: Mapping[str, str]) -> Path:
        """A new volume, published: ``served``, of which nothing is cached, ``passthrough``, or ``view``."""
        name = f"{kind}-{next(self.numbers)}"
        dataset = "cold" if kind == "served" else "warm"
        volume = self.client.create(name, parameters={"url": f"file://{self.home}/{dataset}", **parameters})
        staging = self.home / f"staging-{name}"
        staging.mkdir()
        self.client.stage(volume, staging)
        if dataset == "warm":
            for path in staging.rglob("*"):
                if path.is_file():
                    path.read_bytes()
            until(lambda: cached(staging / "file"), "what was read is in the cache")
        target = self.home / name
        self.client.publish(volume, staging, target)
        entry = MountTable.read().at(target)
        assert entry is not None
        assert (view_shown_by(entry) is not None) == (kind == "view"), f"{entry}"
        return target


def cached(file: Path) -> bool:
    """A read is answered before its bytes are in the cache."""
    present, size = os.getxattr(file, "user.hayloft.cached").split(b"/")
    return present == size


@pytest.fixture(scope="module")
def mounts() -> Iterator[Mounts]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    home.chmod(0o755)
    for dataset in (home / "cold", home / "warm"):
        (dataset / "directory").mkdir(parents=True)
        (dataset / "file").write_bytes(LARGE)
        (dataset / "directory" / "file").write_bytes(b"x")
        (dataset / "empty").touch()
        (dataset / "lock.mdb").write_bytes(bytes(8192))
    driver = AllInOne(home)
    try:
        yield Mounts(home, driver.start(), itertools.count())
    finally:
        driver.close()
        sys.stdout.write(driver.log.read_text())
        shutil.rmtree(home)


def outcomes(mounts: Mounts, target: Path, uid: int, gid: int) -> dict[str, str]:
    scratch = Path(tempfile.mkdtemp(dir=mounts.home))
    os.chown(scratch, uid, gid)
    command = [sys.executable, write_operations.__file__, os.fspath(target), os.fspath(scratch)]
    result = subprocess.run(as_user(command, uid, gid), capture_output=True, text=True, check=False, timeout=90)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def expected(kind: str, *, root: bool, owner: bool) -> dict[str, str]:
    found = {**READ_ONLY, **ANYWHERE, **(OWNERS if owner else OTHERS)}
    if kind != "view":
        return {**found, **FUSE_ONLY}
    return {**found, **VIEW_ONLY, **({} if root else dict.fromkeys(MODE_FIRST, "EACCES"))}


@pytest.mark.promise("S11", "S293")
@pytest.mark.parametrize(
    ("kind", "parameters", "uid", "gid"),
    [
        ("served", {}, 0, 0),
        ("served", {}, USER, USER),
        ("served", {**OWNED, "fileMode": "0440", "dirMode": "0550"}, USER, GROUP),
        ("passthrough", {"view": "fuse"}, 0, 0),
        ("passthrough", {"view": "fuse"}, USER, USER),
        ("passthrough", {"view": "fuse", **OWNED}, OWNER, GROUP),
        ("view", {}, 0, 0),
        ("view", {}, USER, USER),
        ("view", OWNED_VIEW, OWNER, GROUP),
        ("view", OWNED_VIEW, USER, GROUP),
    ],
    ids=[
        "served, root",
        "served, other",
        "served, group",
        "passthrough, root",
        "passthrough, other",
        "passthrough, owner",
        "view, root",
        "view, other",
        "view, owner",
        "view, group",
    ],
)
def test_the_errno_of_each_refused_operation(
    mounts: Mounts, kind: str, parameters: Mapping[str, str], uid: int, gid: int
) -> None:
    target = mounts.show(kind, parameters)
    assert outcomes(mounts, target, uid, gid) == expected(kind, root=uid == 0, owner=uid in (0, OWNER))
