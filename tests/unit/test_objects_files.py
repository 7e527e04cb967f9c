"""Local files as objects: names, links and changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import AccessDenied, BucketNotFound, ObjectChanged, ObjectNotFound
from csi_driver.objects.local_file_store import FileStore, from_os


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    return tmp_path / "root"


def names(root: Path) -> list[str]:
    prefix = f"{root}/".lstrip("/")
    pages = FileStore(str(root)).list(prefix)
    return sorted(key.removeprefix(prefix) for page in pages for key in page.keys)


def key(root: Path, name: str) -> str:
    return f"{root}/{name}".lstrip("/")


def test_names_that_are_not_utf8_are_listed_and_read(root: Path) -> None:
    (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (name,) = names(root)
    assert os.fsencode(name) == b"caf\xe9.jpg"
    assert list(FileStore(str(root)).read_range(key(root, name), ByteRange(0, 1), if_match=None)) == [b"x"]


def test_names_like_temporary_files_are_listed(root: Path) -> None:
    for name in ("a#1", ".hidden", "b.partial", "c~"):
        (root / name).write_bytes(b"")
    assert names(root) == [".hidden", "a#1", "b.partial", "c~"]


def test_a_link_inside_is_followed_and_one_that_points_outside_is_hidden(root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    (root / "inside").symlink_to("file")
    (root / "absolute").symlink_to(root / "file")
    (root / "out").symlink_to("../outside/secret")
    (root / "out-directory").symlink_to("../outside")
    (root / "broken").symlink_to("nowhere")
    assert names(root) == ["absolute", "file", "inside"]
    store = FileStore(str(root))
    assert store.stat(key(root, "inside")).size_bytes == 5
    for name in ("out", "out-directory/secret", "broken", "../outside/secret", "sub/../../outside/secret"):
        with pytest.raises(ObjectNotFound):
            store.stat(key(root, name))
        with pytest.raises(ObjectNotFound):
            list(store.read_range(key(root, name), ByteRange(0, 1), if_match=None))


def test_a_cycle_of_links_ends(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir/file").write_bytes(b"")
    (root / "dir/up").symlink_to("..")
    assert "dir/file" in names(root)
    assert len(names(root)) <= 3


def test_a_base_that_is_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(b"x")
    (tmp_path / "alias").symlink_to(root)
    assert names(tmp_path / "alias") == ["file"]
    assert FileStore(str(tmp_path / "alias")).stat(key(tmp_path / "alias", "file")).size_bytes == 1


def test_named_pipes_are_hidden_and_do_not_block(root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert names(root) == []
    with pytest.raises(ObjectNotFound):
        FileStore(str(root)).stat(key(root, "pipe"))


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BucketNotFound, match="nowhere"):
        names(tmp_path / "nowhere")


def test_the_url_of_one_file_lists_nothing_and_is_found_by_stat(root: Path) -> None:
    (root / "file").write_bytes(b"x")
    assert names(root / "file") == []
    assert FileStore(str(root / "file")).stat(key(root, "file")).size_bytes == 1


def test_an_unreadable_file_is_access_denied() -> None:
    # The error mapping itself, because root may read everything.
    error = from_os(PermissionError(errno.EACCES, "Permission denied"), "data/file")
    assert isinstance(error, AccessDenied)
    assert "/data/file" in str(error)


def test_a_file_replaced_by_one_of_equal_size_and_time_has_changed(root: Path) -> None:
    (root / "file").write_bytes(b"old")
    store, before = FileStore(str(root)), (root / "file").stat()
    etag = store.stat(key(root, "file")).etag
    (root / "new").write_bytes(b"new")
    os.utime(root / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (root / "new").replace(root / "file")
    with pytest.raises(ObjectChanged):
        list(store.read_range(key(root, "file"), ByteRange(0, 3), if_match=etag))


def test_a_file_written_during_a_read_has_changed(root: Path) -> None:
    (root / "file").write_bytes(bytes(3 << 20))
    store = FileStore(str(root))
    etag = store.stat(key(root, "file")).etag
    pieces = store.read_range(key(root, "file"), ByteRange(0, 3 << 20), if_match=etag)
    next(pieces)
    with (root / "file").open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(ObjectChanged):
        next(pieces)


def test_no_descriptor_is_left_open(root: Path) -> None:
    (root / "file").write_bytes(bytes(3 << 20))
    store = FileStore(str(root))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        pieces = store.read_range(key(root, "file"), ByteRange(0, 3 << 20), if_match=None)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        store.stat(key(root, "file"))
        with pytest.raises(ObjectNotFound):
            store.stat(key(root, "none"))
    assert len(os.listdir("/proc/self/fd")) == before
