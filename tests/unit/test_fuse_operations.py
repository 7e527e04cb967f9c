"""The answers to all requests, without a kernel."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.fuse import protocol as p
from csi_driver.fuse.interrupts import is_being_killed
from csi_driver.model.errors import ObjectChanged, StoreProtocolError
from tests.support.fake_kernel import FakeKernel, Reply
from tests.support.local_filesystem import LocalFilesystem


@pytest.fixture
def filesystem(tmp_path: Path) -> LocalFilesystem:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "a.txt").write_bytes(b"0123456789")
    (data / "sub" / "b.txt").write_bytes(b"b")
    return LocalFilesystem(data)


@pytest.fixture
def kernel(filesystem: LocalFilesystem, tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(filesystem, tmp_path / "opens")
    yield kernel
    kernel.close()


def _open(kernel: FakeKernel, node: int) -> int:
    reply = kernel.ask(p.OPEN, struct.pack("<II", os.O_RDONLY, 0), node=node)
    assert reply.error == 0
    handle: int = struct.unpack_from("<Q", reply.body)[0]
    return handle


def _read_body(handle: int, offset: int, size_bytes: int) -> bytes:
    return struct.pack("<QQIIQII", handle, offset, size_bytes, 0, 0, 0, 0)


def _release(kernel: FakeKernel, node: int, handle: int) -> Reply:
    return kernel.ask(p.RELEASE, struct.pack("<QIIQ", handle, 0, 0, 0), node=node)


def test_lookup_shows_a_file_with_long_time_outs(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    reply = kernel.ask(p.LOOKUP, b"a.txt\0")
    entry = p.ENTRY_OUT.unpack(reply.body)
    assert entry[0] == filesystem.node_of("a.txt")
    assert entry[2] == entry[3] == 86_400
    assert entry[7] == 10
    assert stat.S_ISREG(entry[15])


def test_lookup_of_a_missing_name_is_cached_by_the_kernel(kernel: FakeKernel) -> None:
    entry = p.ENTRY_OUT.unpack(kernel.ask(p.LOOKUP, b"nothing\0").body)
    assert entry[0] == 0
    assert entry[2] == 86_400


def test_lookup_knows_dot_and_dot_dot(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    sub = filesystem.node_of("sub")
    assert p.ENTRY_OUT.unpack(kernel.ask(p.LOOKUP, b".\0", node=sub).body)[0] == sub
    assert p.ENTRY_OUT.unpack(kernel.ask(p.LOOKUP, b"..\0", node=sub).body)[0] == 1
    assert p.ENTRY_OUT.unpack(kernel.ask(p.LOOKUP, b"..\0", node=1).body)[0] == 1


def test_lookup_of_a_name_longer_than_255_bytes_is_enametoolong(kernel: FakeKernel) -> None:
    assert kernel.ask(p.LOOKUP, b"x" * 255 + b"\0").error == 0
    assert kernel.ask(p.LOOKUP, b"x" * 256 + b"\0").error == errno.ENAMETOOLONG


def test_getattr_shows_node_size_and_blocks(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.txt")
    attributes = p.ATTR_OUT.unpack(kernel.ask(p.GETATTR, bytes(16), node=node).body)
    assert attributes[2:5] == (node, 10, 1)
    assert attributes[16] == 4096


def test_attributes_of_a_node_that_never_was_are_stale(kernel: FakeKernel) -> None:
    assert kernel.ask(p.GETATTR, bytes(16), node=999).error == errno.ESTALE


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_RDONLY | os.O_TRUNC])
def test_opening_to_write_is_erofs(kernel: FakeKernel, flags: int) -> None:
    assert kernel.ask(p.OPEN, struct.pack("<II", flags, 0), node=2).error == errno.EROFS


def test_a_file_is_read_and_released(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.txt")
    handle = _open(kernel, node)
    assert kernel.ask(p.READ, _read_body(handle, 2, 4), node=node).body == b"2345"
    assert kernel.ask(p.READ, _read_body(handle, 8, 100), node=node).body == b"89"
    assert kernel.ask(p.READ, _read_body(handle, 10, 100), node=node).body == b""
    assert _release(kernel, node, handle).error == 0
    assert filesystem.open_count == 0
    assert not list(kernel.open_table.records())


def test_reading_a_handle_that_was_released_is_stale(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.txt")
    handle = _open(kernel, node)
    _release(kernel, node, handle)
    assert kernel.ask(p.READ, _read_body(handle, 0, 4), node=node).error == errno.ESTALE


def test_a_second_release_is_success_and_does_not_end_a_later_open(
    kernel: FakeKernel, filesystem: LocalFilesystem
) -> None:
    node = filesystem.node_of("a.txt")
    first = _open(kernel, node)
    _release(kernel, node, first)
    second = _open(kernel, node)
    assert second != first
    assert _release(kernel, node, first).error == 0
    assert kernel.ask(p.READ, _read_body(second, 0, 1), node=node).body == b"0"


def test_errors_of_open_and_read_become_errnos(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.txt")
    filesystem.read_errors[node] = ObjectChanged("a.txt")
    handle = _open(kernel, node)
    assert kernel.ask(p.READ, _read_body(handle, 0, 4), node=node).error == errno.ESTALE
    filesystem.open_errors[node] = StoreProtocolError("a.txt")
    assert kernel.ask(p.OPEN, struct.pack("<II", 0, 0), node=node).error == errno.EIO


def test_a_defect_of_the_file_system_is_eio_and_the_request_is_answered(
    kernel: FakeKernel, filesystem: LocalFilesystem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(node: int) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(filesystem, "attributes", broken)
    assert kernel.ask(p.GETATTR, bytes(16), node=1).error == errno.EIO
    assert "a defect" in caplog.text


def test_a_pending_read_is_answered_with_its_bytes(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.txt")
    handle = _open(kernel, node)
    filesystem.pending_nodes.add(node)
    unique = kernel.send(p.READ, _read_body(handle, 0, 3), node=node)
    assert kernel.replies() == []
    filesystem.answer_pending()
    assert kernel.replies() == [Reply(unique, 0, b"012")]


# -- interrupts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def living_process() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_process_that_runs_is_not_being_killed(living_process: int) -> None:
    assert is_being_killed(living_process) is False
    os.kill(living_process, signal.SIGSTOP)
    os.kill(living_process, signal.SIGUSR1)  # stays pending while it is stopped
    assert is_being_killed(living_process) is False


def test_of_a_reader_in_another_namespace_it_is_unknown_whether_it_is_being_killed(living_process: int) -> None:
    assert is_being_killed(0) is None


def test_an_interrupted_read_whose_reader_lives_stays_pending(
    kernel: FakeKernel, filesystem: LocalFilesystem, living_process: int
) -> None:
    node = filesystem.node_of("a.txt")
    handle = _open(kernel, node)
    filesystem.pending_nodes.add(node)
    unique = kernel.send(p.READ, _read_body(handle, 0, 3), node=node, pid=living_process)
    kernel.send(p.INTERRUPT, struct.pack("<Q", unique), unique=unique | 1)
    assert kernel.replies() == []
    filesystem.answer_pending()
    assert kernel.replies() == [Reply(unique, 0, b"012")]


def test_an_interrupted_read_of_a_dying_reader_is_answered_once_and_cancelled(
    kernel: FakeKernel, filesystem: LocalFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csi_driver.fuse.interrupts.is_being_killed", lambda pid: True)
    node = filesystem.node_of("a.txt")
    handle = _open(kernel, node)
    filesystem.pending_nodes.add(node)
    unique = kernel.send(p.READ, _read_body(handle, 0, 3), node=node, pid=4711)
    kernel.send(p.INTERRUPT, struct.pack("<Q", unique), unique=unique | 1)
    assert kernel.replies() == [Reply(unique, errno.EINTR, b"")]
    assert filesystem.cancelled == 1
    filesystem.answer_pending()
    assert kernel.replies() == []


def test_an_interrupted_open_of_a_dying_reader_is_released_when_it_is_done(
    kernel: FakeKernel, filesystem: LocalFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csi_driver.fuse.interrupts.is_being_killed", lambda pid: True)
    node = filesystem.node_of("a.txt")
    filesystem.pending_opens.add(node)
    unique = kernel.send(p.OPEN, struct.pack("<II", 0, 0), node=node)
    kernel.send(p.INTERRUPT, struct.pack("<Q", unique), unique=unique | 1)
    assert kernel.replies() == [Reply(unique, errno.EINTR, b"")]
    ((_, opened),) = filesystem.waiting_opens
    opened(filesystem.open_now(node))
    assert filesystem.open_count == 0
    assert kernel.replies() == []
    assert not list(kernel.open_table.records())


def test_an_interrupt_of_an_unknown_request_is_retried_by_the_kernel(kernel: FakeKernel) -> None:
    kernel.session._notifier.start()
    kernel.send(p.INTERRUPT, struct.pack("<Q", 4242), unique=4243)
    deadline = time.monotonic() + 5
    replies: list[Reply] = []
    while not replies and time.monotonic() < deadline:
        time.sleep(0.01)
        replies = kernel.replies()
    kernel.session._notifier.stop()
    assert replies == [Reply(4243, errno.EAGAIN, b"")]


# -- after a restart --------------------------------------------------------------------------------------------------


def test_a_resent_open_that_was_recorded_gets_the_same_handle(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.txt")
    unique = kernel.send(p.OPEN, struct.pack("<II", 0, 0), node=node)
    (first,) = kernel.replies()
    kernel.session._files.recorded_opens[unique] = struct.unpack_from("<Q", first.body)[0]
    kernel.send(p.OPEN, struct.pack("<II", 0, 0), node=node, unique=unique | p.RESENT)
    (second,) = kernel.replies()
    assert second.unique == unique | p.RESENT
    assert second.body == first.body
    assert len(list(kernel.open_table.records())) == 1


def test_a_stopped_session_answers_nothing_and_records_nothing(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    node = filesystem.node_of("a.txt")
    filesystem.pending_opens.add(node)
    kernel.send(p.OPEN, struct.pack("<II", 0, 0), node=node)
    kernel.session.stop()
    ((_, opened),) = filesystem.waiting_opens
    opened(filesystem.open_now(node))
    assert kernel.replies() == []
    assert filesystem.open_count == 0
    assert not list(kernel.open_table.records())


# -- directories and the rest -----------------------------------------------------------------------------------------


def _names(listing: bytes, *, plus: bool) -> list[tuple[bytes, int, int]]:
    """Names, cookies, and nodes of the entries."""
    found = []
    at = 0
    while at < len(listing):
        entry_node = p.ENTRY_OUT.unpack_from(listing, at)[0] if plus else 0
        at += p.ENTRY_OUT.size if plus else 0
        node, cookie, size_bytes, _ = p.DIRENT.unpack_from(listing, at)
        at += p.DIRENT.size
        found.append((listing[at : at + size_bytes], cookie, entry_node if plus else node))
        at += size_bytes + p.pad8(size_bytes)
    return found


@pytest.mark.parametrize("opcode", [p.READDIR, p.READDIRPLUS])
def test_a_directory_is_read_in_pieces_of_any_size(
    kernel: FakeKernel, filesystem: LocalFilesystem, opcode: int
) -> None:
    plus = opcode == p.READDIRPLUS
    cookie, names = 0, []
    while True:
        listing = kernel.ask(opcode, _read_body(0, cookie, 200 if plus else 40)).body
        if not listing:
            break
        ((name, cookie, node),) = _names(listing, plus=plus)
        names.append((name, node))
    expected = [(b"a.txt", filesystem.node_of("a.txt")), (b"sub", filesystem.node_of("sub"))]
    assert [name for name, _ in names] == [b".", b"..", b"a.txt", b"sub"]
    assert names[2:] == expected
    if plus:  # a node here would be a reference that the kernel never releases
        assert [node for _, node in names[:2]] == [0, 0]


def test_opendir_is_enosys_only_where_the_kernel_then_opens_directories_itself(kernel: FakeKernel) -> None:
    body = struct.pack("<II", 0, 0)
    reply = kernel.ask(p.OPENDIR, body)
    assert reply.error == 0
    assert struct.unpack_from("<I", reply.body, 8)[0] == p.FOPEN_CACHE_DIR | p.FOPEN_KEEP_CACHE
    kernel.session._metadata.opendir_is_optional = True
    assert kernel.ask(p.OPENDIR, body).error == errno.ENOSYS
    assert kernel.ask(p.RELEASEDIR, bytes(24)).error == 0


def test_extended_attributes_are_probed_and_read(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    def get(name: bytes, size_bytes: int) -> Reply:
        return kernel.ask(p.GETXATTR, struct.pack("<II", size_bytes, 0) + name + b"\0", node=2)

    assert struct.unpack_from("<I", get(b"user.hayloft.etag", 0).body)[0] == 3
    assert get(b"user.hayloft.etag", 3).body == b"abc"
    assert get(b"user.hayloft.etag", 2).error == errno.ERANGE
    assert get(b"user.other", 100).error == errno.ENODATA
    for name in (b"security.selinux", b"security.capability", b"system.posix_acl_access", b"trusted.overlay.opaque"):
        assert get(name, 100).error == errno.EOPNOTSUPP


def test_a_file_has_data_everywhere_and_a_hole_at_its_end(kernel: FakeKernel, filesystem: LocalFilesystem) -> None:
    def seek(offset: int, whence: int, node: int = filesystem.node_of("a.txt")) -> Reply:
        return kernel.ask(p.LSEEK, struct.pack("<QQII", 0, offset, whence, 0), node=node)

    assert struct.unpack("<Q", seek(4, os.SEEK_DATA).body)[0] == 4
    assert struct.unpack("<Q", seek(4, os.SEEK_HOLE).body)[0] == 10
    assert seek(10, os.SEEK_DATA).error == errno.ENXIO
    assert seek(10, os.SEEK_HOLE).error == errno.ENXIO
    assert seek(0, os.SEEK_SET).error == errno.EINVAL
    assert seek(0, os.SEEK_DATA, node=1).error == errno.EINVAL


def test_statfs_shows_the_dataset_with_nothing_free(kernel: FakeKernel) -> None:
    blocks, free, available, files, _, block_bytes, name_bytes, _ = p.STATFS_OUT.unpack(kernel.ask(p.STATFS).body)
    assert (blocks, free, available, files, block_bytes, name_bytes) == (1, 0, 0, 2, 4096, 255)


def test_access_refuses_only_writing(kernel: FakeKernel) -> None:
    assert kernel.ask(p.ACCESS, struct.pack("<II", os.R_OK, 0)).error == 0
    assert kernel.ask(p.ACCESS, struct.pack("<II", os.R_OK | os.W_OK, 0)).error == errno.EROFS


@pytest.mark.parametrize("opcode", sorted(p.WRITING))
def test_everything_that_writes_is_erofs(kernel: FakeKernel, opcode: int) -> None:
    assert kernel.ask(opcode, bytes(100)).error == errno.EROFS


@pytest.mark.parametrize(
    "opcode", [p.FLUSH, p.POLL, p.SETLK, p.FSYNC, p.BMAP, p.STATX, p.LISTXATTR, p.READLINK, 7, 19, 60, 4096]
)
def test_all_other_requests_are_enosys(kernel: FakeKernel, opcode: int) -> None:
    assert kernel.ask(opcode, bytes(100)).error == errno.ENOSYS


def test_an_ioctl_is_enotty_as_the_kernel_makes_of_every_answer(kernel: FakeKernel) -> None:
    assert kernel.ask(p.IOCTL, bytes(100)).error == errno.ENOTTY


@pytest.mark.parametrize(
    ("offset", "size_bytes", "flags", "expected"),
    [
        (0, 512, os.O_DIRECT, 0),
        (1024, 1 << 20, os.O_DIRECT, 0),
        (0, 100, os.O_DIRECT, errno.EINVAL),
        (100, 512, os.O_DIRECT, errno.EINVAL),
        (100, 7, 0, 0),
    ],
)
def test_a_misaligned_direct_read_is_einval(
    kernel: FakeKernel, filesystem: LocalFilesystem, offset: int, size_bytes: int, flags: int, expected: int
) -> None:
    body = struct.pack("<QQIIQII", 0, offset, size_bytes, 0, 0, os.O_RDONLY | flags, 0)
    assert kernel.ask(p.READ, body, node=filesystem.node_of("a.txt")).error == expected


def test_forgetting_has_no_answer_and_destroy_has_one(kernel: FakeKernel) -> None:
    kernel.send(p.FORGET, struct.pack("<Q", 1))
    kernel.send(p.BATCH_FORGET, struct.pack("<IIQQ", 1, 0, 2, 1))
    assert kernel.replies() == []
    assert kernel.ask(p.DESTROY).error == 0


class Panic(BaseException):
    """Not an ``Exception``, as the panics of a store's client."""


@pytest.mark.promise("S220")
@pytest.mark.parametrize("error", [Panic(), MemoryError(), SystemExit(1)], ids=repr)
def test_a_request_whose_handler_raises_is_answered_whatever_that_is(
    kernel: FakeKernel, filesystem: LocalFilesystem, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    node = filesystem.node_of("a.txt")
    handle = _open(kernel, node)

    def broken(*_: object) -> None:
        raise error

    for name in ("lookup", "read", "open", "space"):
        monkeypatch.setattr(filesystem, name, broken)
    assert kernel.ask(p.LOOKUP, b"a.txt\0").error == errno.EIO
    assert kernel.ask(p.READ, _read_body(handle, 0, 5), node=node).error == errno.EIO
    assert kernel.ask(p.OPEN, struct.pack("<II", os.O_RDONLY, 0), node=node).error == errno.EIO
    assert kernel.ask(p.STATFS).error == errno.EIO


@pytest.mark.promise("S220")
def test_a_request_is_answered_when_its_answer_cannot_be_made(
    kernel: FakeKernel, filesystem: LocalFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = filesystem.node_of("a.txt")
    handle = _open(kernel, node)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "the open table cannot grow")

    monkeypatch.setattr(kernel.open_table, "claim", full)
    released = filesystem.released
    kernel.send(p.OPEN, struct.pack("<II", os.O_RDONLY, 0), node=node)
    assert kernel.replies()[0].error == errno.EIO
    assert filesystem.released == released + 1

    def unnotable(node: int, error: object) -> None:
        raise Panic

    kernel.session.on_failure(unnotable)
    filesystem.read_errors[node] = ObjectChanged("gone")
    kernel.send(p.READ, _read_body(handle, 0, 5), node=node)
    assert kernel.replies()[0].error == errno.EIO
