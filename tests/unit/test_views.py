"""Materialised views: trees of hard links, refusals, and what these leave."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.hard_links import LinkGuard
from csi_driver.cache.views import ViewFile, ViewPart, Views
from csi_driver.model.errors import ViewUnavailable
from csi_driver.model.snapshot import CacheScope, ObjectVersion
from csi_driver.mounts.materialised_views import is_view_name, is_view_of, mounted_views, view_name, view_shown_by
from csi_driver.mounts.mount_table import MountTable
from csi_driver.settings import ChunkStoreSettings

MTIME_NS = 1_500_000_000_000_000_123
MIB = 1 << 20


def digest(number: int) -> str:
    return f"{number * 7919 % 256:02x}{number:038x}"


def file(name: bytes, number: int, size_bytes: int = 3) -> ViewFile:
    return ViewFile(name, digest(number), size_bytes, MTIME_NS + number)


def part(directory: bytes, *files: ViewFile) -> ViewPart:
    return ViewPart(directory, iter(files))


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    path = tmp_path / "objects"
    for number in range(256):
        (path / f"{number:02x}").mkdir(parents=True)
    for number in range(600):
        place = path / digest(number)[:2] / digest(number)
        place.write_bytes(b"%03d" % number)
        place.chmod(0o444)
    return path


@pytest.fixture
def views(tmp_path: Path, objects: Path) -> Views:
    return Views(tmp_path / "views", objects, LinkGuard(), lambda digest: True)


def build(views: Views, *parts: ViewPart, threads: int = 2) -> bool:
    return views.build("view", parts, directory_mode=0o555, directory_mtime_ns=MTIME_NS, threads=threads)


def left(views: Views) -> list[str]:
    views.clear()
    return sorted(os.listdir(views.directory))


# -- building ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_a_view_is_the_requested_tree(views: Views, objects: Path, threads: int) -> None:
    names = [b"file-%d" % number for number in range(500)]
    built = build(
        views,
        part(b""),
        part(b"", file(b"top", 0), file(b"same", 0), file(b"empty", 1, size_bytes=0)),
        part(b"a"),
        *(part(b"a", *(file(name, 10) for name in names[start : start + 50])) for start in range(0, 500, 50)),
        part(b"a/b"),
        part(b"a/\xff\n"),
        part(b"a/\xff\n", file(b"\xfe", 2)),
        threads=threads,
    )
    assert built
    root = os.fsencode(views.path("view"))
    assert sorted(os.listdir(root)) == [b"a", b"empty", b"same", b"top"]
    assert set(os.listdir(root + b"/a")) == {b"b", b"\xff\n", *names}
    assert Path(os.fsdecode(root + b"/a/\xff\n/\xfe")).read_bytes() == b"002"
    assert os.path.samefile(root + b"/top", objects / digest(0)[:2] / digest(0))
    assert os.path.getsize(root + b"/empty") == 0


def test_files_have_the_time_of_the_object_and_directories_that_of_the_snapshot(views: Views) -> None:
    assert build(views, part(b""), part(b"a"), part(b"a/b", file(b"c", 3), file(b"d", 4, size_bytes=0)))
    root = views.path("view")
    assert (root / "a/b/c").stat().st_mtime_ns == MTIME_NS + 3
    assert (root / "a/b/d").stat().st_mtime_ns == MTIME_NS + 4
    assert {(root / name).stat().st_mtime_ns for name in (".", "a", "a/b")} == {MTIME_NS}
    assert {(root / name).stat().st_mode & 0o7777 for name in (".", "a", "a/b")} == {0o555}
    assert {(root / name).stat().st_mode & 0o7777 for name in ("a/b/c", "a/b/d")} == {0o444}


@pytest.mark.promise("S294")
def test_lock_files_of_lmdb_are_copies_whose_mode_permits_writing(views: Views, objects: Path) -> None:
    large = file(b"large-lock", 3, size_bytes=2 * MIB)
    empty = file(b"empty-lock", 4, size_bytes=0)
    assert build(views, part(b"", file(b"lock.mdb", 1), file(b"x.lmdb-lock", 2), large, empty))
    assert (views.path("view") / "empty-lock").stat().st_mode & 0o7777 == 0o666
    for number, name in ((1, "lock.mdb"), (2, "x.lmdb-lock")):
        status = (views.path("view") / name).stat()
        assert (status.st_mode & 0o7777, status.st_nlink, status.st_mtime_ns) == (0o666, 1, MTIME_NS + number)
        assert (views.path("view") / name).read_bytes() == b"%03d" % number
        assert (objects / digest(number)[:2] / digest(number)).stat().st_mode & 0o7777 == 0o444
    assert (views.path("view") / "large-lock").stat().st_mode & 0o7777 == 0o444
    views.remove("view")
    assert not build(views, part(b"", file(b"lock.mdb", 700)))


def test_a_view_of_nothing_is_an_empty_directory(views: Views) -> None:
    assert build(views, part(b""))
    assert os.listdir(views.path("view")) == []


@pytest.mark.parametrize("threads", [1, 4])
def test_a_missing_object_leaves_nothing(views: Views, threads: int) -> None:
    assert not build(
        views, part(b"a", *(file(b"%d" % number, number) for number in range(700))), part(b"b"), threads=threads
    )
    assert not views.exists("view")
    assert left(views) == []


@pytest.mark.promise("S109")
def test_an_unverified_object_counts_as_missing(tmp_path: Path, objects: Path) -> None:
    views = Views(tmp_path / "views", objects, LinkGuard(), lambda asked: asked != digest(5))
    assert build(views, part(b"", file(b"x", 4)))
    views.remove("view")
    assert not build(views, part(b"", file(b"x", 4), file(b"y", 5)))
    assert not views.has_object(file(b"y", 5))
    assert views.has_object(file(b"y", 5, size_bytes=0))


@pytest.mark.promise("S104")
@pytest.mark.parametrize("number", [errno.EMLINK, errno.ENOSPC, errno.EXDEV, errno.EIO])
def test_an_error_of_the_disk_is_reported_and_leaves_nothing(
    views: Views, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ViewUnavailable, match="linked as often" if number == errno.EMLINK else os.strerror(number)):
        build(views, part(b"a", file(b"x", 1)))
    assert left(views) == []


def test_an_error_of_the_iterator_of_files_is_raised(views: Views) -> None:
    def files() -> Iterator[ViewFile]:
        yield file(b"x", 1)
        raise KeyError("manifest")

    with pytest.raises(KeyError):
        build(views, part(b""), ViewPart(b"", files()))
    assert left(views) == []


def test_a_view_that_a_killed_daemon_left_unfinished_is_discarded_and_built_anew(views: Views) -> None:
    half = views.directory / ".building-view"
    half.mkdir()
    (half / "stale").write_text("x")
    assert build(views, part(b"", file(b"x", 1)))
    assert os.listdir(views.path("view")) == ["x"]
    (views.directory / ".building-other").mkdir()
    views.discard_unfinished()
    assert left(views) == ["view"]


def test_a_removed_view_is_gone_at_once_and_may_be_built_again(views: Views, objects: Path) -> None:
    assert build(views, part(b"", file(b"x", 1)))
    descriptor = os.open(views.path("view") / "x", os.O_RDONLY)
    views.remove("view")
    views.remove("view")
    assert views.names() == []
    assert build(views, part(b"", file(b"x", 1)))
    views.remove("view")
    assert len(os.listdir(views.directory)) == 2, "both wait to be emptied"
    assert left(views) == []
    assert os.read(descriptor, 9) == b"001"
    os.close(descriptor)
    assert (objects / digest(1)[:2] / digest(1)).stat().st_nlink == 1


def test_a_link_where_the_view_is_built_is_not_followed(views: Views, tmp_path: Path) -> None:
    """Only the daemon can put one there; it still must not lead out."""
    outside = tmp_path / "outside"
    outside.mkdir()
    real = os.mkdir

    def mkdir(path: bytes | str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if path == b"a":
            os.symlink(outside, b"a", dir_fd=dir_fd)
        else:
            real(path, mode, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir)
        with pytest.raises(ViewUnavailable):
            build(views, part(b"a", file(b"x", 1)))
    assert list(outside.iterdir()) == []


# -- pins --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Callable[[], ChunkStore]]:
    opened: list[ChunkStore] = []
    (tmp_path / "cache").mkdir()

    def make() -> ChunkStore:
        for earlier in opened:
            earlier.close()
        opened[:] = [
            ChunkStore(ChunkStoreSettings(directory=tmp_path / "cache", limit_bytes=10 * MIB, free_floor_bytes=0))
        ]
        return opened[0]

    yield make
    for last in opened:
        last.close()


def version(number: int) -> ObjectVersion:
    return ObjectVersion("domain", "endpoint", "bucket", f"key-{number}", "etag", MIB)


def add(store: ChunkStore, number: int) -> None:
    store.add_whole(version(number), [memoryview(bytes(MIB))]).release()


def link(store: ChunkStore, name: str, *numbers: int) -> bool:
    scope = CacheScope("domain", "endpoint", "bucket", MIB)
    files = [ViewFile(b"%d" % number, scope.digest(f"key-{number}", "etag", MIB), MIB, 0) for number in numbers]
    return store.views.build(name, [part(b"", *files)], directory_mode=0o555, directory_mtime_ns=0)


@pytest.mark.promise("S107")
def test_objects_that_a_view_links_are_not_evicted_and_count_as_used(store: Callable[[], ChunkStore]) -> None:
    cache = store()
    for number in range(6):
        add(cache, number)
    assert link(cache, "view", *range(6))
    for number in range(100, 130):
        add(cache, number)
        assert cache.used_bytes <= 10 * MIB
    assert all(cache.is_complete(version(number)) for number in range(6))
    again = store()
    for number in range(200, 220):
        add(again, number)
    assert all(again.is_complete(version(number)) for number in range(6)), "a new daemon has nothing to remember"
    again.views.remove("view")
    again.views.clear()
    for number in range(300, 340):
        add(again, number)
    assert not all(again.is_complete(version(number)) for number in range(6)), "without the view they may go"


def test_both_ways_to_name_object_files_agree() -> None:
    for key, etag, size_bytes in (("k", None, 0), ("a/b\udcff", "e,1:x", 7), ("", "", 1 << 40)):
        whole = ObjectVersion("domain", "https://e", "bucket", key, etag, size_bytes)
        assert whole.digest(MIB) == CacheScope("domain", "https://e", "bucket", MIB).digest(key, etag, size_bytes)


# -- telling mounts of views from others -------------------------------------------------------------------------------

LINE = "36 25 253:1 {root} /pods/1/mount ro,nosuid,nodev - ext4 /dev/vda rw\n"


@pytest.mark.parametrize("before", ["", "/var/lib/hayloft/cache", "/@subvolume/cache"])
def test_a_mount_of_a_view_is_recognised_by_its_root(before: str) -> None:
    name = view_name("volume", "snapshot", 0o555)
    table = MountTable.parse(LINE.format(root=f"{before}/views/{name}").encode())
    (entry,) = table.entries
    assert view_shown_by(entry) == name
    assert mounted_views(table) == {name}
    assert is_view_of(entry, "volume")
    assert not is_view_of(entry, "other")
    assert not is_view_of(None, "volume")


def test_a_view_that_was_removed_under_its_mount_is_still_recognised() -> None:
    name = view_name("volume", "snapshot")
    (entry,) = MountTable.parse(LINE.format(root=f"/views/{name}//deleted").encode()).entries
    assert view_shown_by(entry) == name


@pytest.mark.parametrize(
    "root",
    [
        "/",
        "/views",
        "/views/{name}/sub",
        "/other/{name}",
        "/views/x{name}",
        "/views/{name}x",
        "/views/hayloft-view-1-2",
    ],
)
def test_a_mount_of_anything_else_is_not_ours(root: str) -> None:
    (entry,) = MountTable.parse(LINE.format(root=root.format(name=view_name("volume"))).encode()).entries
    assert view_shown_by(entry) is None


def test_names_of_views_are_distinguished_from_other_directories() -> None:
    assert is_view_name(view_name("volume", 1))
    assert view_name("volume", 1, 23) != view_name("volume", 12, 3)
    assert not any(map(is_view_name, ("lost+found", ".building-" + view_name("v"), "../" + view_name("v"), "")))


@pytest.mark.parametrize(("below", "counts"), [("", True), ("/train", True), ("/train//deleted", True), ("x", False)])
def test_a_view_counts_as_mounted_while_a_directory_of_it_is(below: str, counts: bool) -> None:
    name = view_name("volume", "snapshot", 0o555)
    table = MountTable.parse(LINE.format(root=f"/views/{name}{below}").encode())
    assert mounted_views(table) == ({name} if counts else set())
    assert (view_shown_by(table.entries[0]) == name) is (below == ""), "no other mount is one of the whole view"
