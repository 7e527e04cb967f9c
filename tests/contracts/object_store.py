"""The contract of every object store. A test class inherits it and provides ``store`` and ``put``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectChanged, ObjectNotFound
from csi_driver.model.snapshot import ObjectInfo
from csi_driver.objects.store import ObjectStore, read_whole

Put = Callable[[str, bytes], None]
MIB = 1 << 20
LONG = bytes(range(256)) * (3 * MIB // 256) + b"tail"

ODD_KEYS = (
    "with space",
    "per%20cent",
    "100%",
    "a%2Fb",
    "plus+plus",
    "star*",
    "tilde~",
    "hash#1",
    "query?x=1&y",
    "quote'\"",
    "brackets[z]{y}",
    "colon:at@semi;eq=",
    "grüße/日本語",
    "e\u0301",
    "emoji😀",
)


class ObjectStoreContract:
    """Inherit and provide two fixtures: ``store``, with no object below ``prefix``, and ``put``."""

    odd_keys: tuple[str, ...] = (*ODD_KEYS, "new\nline", "tab\tkey")

    @pytest.fixture
    def prefix(self) -> str:
        """Where the tests put their objects; ends in a slash."""
        return "data/"

    @pytest.fixture(autouse=True)
    def closed_at_the_end(self, store: ObjectStore) -> Iterator[None]:
        yield
        store.close()

    def read(self, store: ObjectStore, key: str, start: int, stop: int, if_match: str | None = None) -> bytes:
        return b"".join(store.read_range(key, ByteRange(start, stop), if_match=if_match))

    def whole(self, store: ObjectStore, key: str, size_bytes: int, if_match: str | None) -> bytes:
        """By the faster path for small objects, if the store has one."""
        return b"".join(read_whole(store, key, size_bytes, if_match=if_match).parts)

    def listed(self, store: ObjectStore, prefix: str) -> dict[str, ObjectInfo]:
        found = {}
        for page in store.list(prefix):
            rows = zip(page.keys, page.sizes_bytes, page.etags, page.mtimes_ns, strict=True)
            for key, size, etag, mtime in rows:
                assert key not in found
                found[key] = ObjectInfo(key, size, etag, mtime)
        return found

    def test_an_empty_prefix_lists_no_object(self, store: ObjectStore, prefix: str) -> None:
        assert self.listed(store, prefix) == {}

    def test_listing_gives_each_object_with_its_size(self, store: ObjectStore, put: Put, prefix: str) -> None:
        contents = {f"{prefix}a": b"1", f"{prefix}b/c": b"22", f"{prefix}b/d/e": b"", f"{prefix}z": b"4444"}
        for key, content in contents.items():
            put(key, content)
        found = self.listed(store, prefix)
        assert {key: info.size_bytes for key, info in found.items()} == {
            key: len(content) for key, content in contents.items()
        }

    def test_listing_is_by_prefix_and_not_by_directory(self, store: ObjectStore, put: Put, prefix: str) -> None:
        for name in ("part-1", "part-2/x", "other", "par"):
            put(prefix + name, b"x")
        assert set(self.listed(store, f"{prefix}part-")) == {f"{prefix}part-1", f"{prefix}part-2/x"}

    def test_a_longer_name_beside_the_prefix_is_not_listed(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}train/a", b"x")
        put(f"{prefix}training/b", b"x")
        assert set(self.listed(store, f"{prefix}train/")) == {f"{prefix}train/a"}

    def test_stat_agrees_with_the_listing(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"hello")
        listed, found = self.listed(store, prefix)[f"{prefix}a"], store.stat(f"{prefix}a")
        assert (found.key, found.size_bytes, found.etag) == (listed.key, listed.size_bytes, listed.etag)
        # A listing has milliseconds, a header seconds.
        assert abs(found.mtime_ns - listed.mtime_ns) < 10**9
        assert found.mtime_ns > 10**18

    def test_an_etag_has_no_quotes(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"hello")
        etag = store.stat(f"{prefix}a").etag
        assert etag
        assert '"' not in etag

    def test_stat_of_a_missing_object_is_not_found(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"")
        with pytest.raises(ObjectNotFound, match="missing"):
            store.stat(f"{prefix}missing")

    def test_stat_of_a_directory_is_not_found(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}dir/a", b"x")
        with pytest.raises(ObjectNotFound):
            store.stat(f"{prefix}dir")

    def test_reading_a_missing_object_is_not_found(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"")
        with pytest.raises(ObjectNotFound):
            self.read(store, f"{prefix}missing", 0, 1)

    @pytest.mark.parametrize("size_bytes", [1, 17, 65_400, 110_000, len(LONG)])
    def test_a_complete_object_gives_exactly_its_bytes(
        self, store: ObjectStore, put: Put, prefix: str, size_bytes: int
    ) -> None:
        """More than once, because connections are reused, and with and without an ETag."""
        put(f"{prefix}whole", LONG[:size_bytes])
        etag = store.stat(f"{prefix}whole").etag
        for if_match in (None, etag, etag):
            assert self.whole(store, f"{prefix}whole", size_bytes, if_match) == LONG[:size_bytes]

    def test_a_complete_object_of_another_version_is_rejected(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"first")
        etag = store.stat(f"{prefix}a").etag
        put(f"{prefix}a", b"other")
        for _ in range(2):
            with pytest.raises(ObjectChanged):
                self.whole(store, f"{prefix}a", 5, etag)

    def test_a_missing_complete_object_is_not_found(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"x")
        for _ in range(5):
            with pytest.raises(ObjectNotFound):
                self.whole(store, f"{prefix}missing", 1, None)
        assert self.whole(store, f"{prefix}a", 1, None) == b"x"

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 1), (0, len(LONG)), (5, 9), (MIB - 1, MIB + 1), (len(LONG) - 4, len(LONG)), (7, 2 * MIB)],
    )
    def test_a_range_gives_exactly_its_bytes(
        self, store: ObjectStore, put: Put, prefix: str, start: int, stop: int
    ) -> None:
        put(f"{prefix}long", LONG)
        assert self.read(store, f"{prefix}long", start, stop) == LONG[start:stop]

    def test_a_range_is_read_with_the_listed_etag(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}long", LONG)
        etag = self.listed(store, prefix)[f"{prefix}long"].etag
        assert self.read(store, f"{prefix}long", 0, len(LONG), etag) == LONG

    def test_an_empty_range_yields_no_piece(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"hello")
        assert list(store.read_range(f"{prefix}a", ByteRange(3, 3), if_match=None)) == []

    def test_pieces_are_flat_read_only_views_that_outlive_the_iterator(
        self, store: ObjectStore, put: Put, prefix: str
    ) -> None:
        put(f"{prefix}long", LONG)
        pieces = list(store.read_range(f"{prefix}long", ByteRange(0, len(LONG)), if_match=None))
        assert all(piece.readonly and piece.contiguous and piece.ndim == 1 and piece.itemsize == 1 for piece in pieces)
        assert b"".join(pieces) == LONG

    def test_a_changed_object_is_refused_under_the_old_etag(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"first version")
        etag = store.stat(f"{prefix}a").etag
        put(f"{prefix}a", b"other version")
        with pytest.raises(ObjectChanged):
            self.read(store, f"{prefix}a", 0, 5, etag)

    def test_an_object_that_became_shorter_has_changed(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"short")
        with pytest.raises(ObjectChanged):
            self.read(store, f"{prefix}a", 100, 200)

    def test_a_range_beyond_the_end_is_never_short(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}a", b"0123456789")
        with pytest.raises(ObjectChanged):
            self.read(store, f"{prefix}a", 5, 15)

    def test_odd_keys_are_listed_and_read_unchanged(self, store: ObjectStore, put: Put, prefix: str) -> None:
        for key in self.odd_keys:
            put(prefix + key, key.encode())
        found = self.listed(store, prefix)
        assert set(found) == {prefix + key for key in self.odd_keys}
        for key in self.odd_keys:
            info = store.stat(prefix + key)
            assert self.read(store, prefix + key, 0, info.size_bytes, info.etag) == key.encode()
            assert self.whole(store, prefix + key, info.size_bytes, info.etag) == key.encode()

    def test_closing_the_iterator_early_leaves_the_store_usable(
        self, store: ObjectStore, put: Put, prefix: str
    ) -> None:
        put(f"{prefix}long", LONG)
        for _ in range(3):
            pieces = iter(store.read_range(f"{prefix}long", ByteRange(0, len(LONG)), if_match=None))
            next(pieces)
            pieces.close()  # type: ignore[attr-defined]
        assert self.read(store, f"{prefix}long", 0, len(LONG)) == LONG

    def test_many_threads_read_at_once(self, store: ObjectStore, put: Put, prefix: str) -> None:
        put(f"{prefix}long", LONG)
        wrong: list[int] = []

        def reader(number: int) -> None:
            for turn in range(4):
                start = (number * 7919 + turn * 104_729) % (2 * MIB)
                if self.read(store, f"{prefix}long", start, start + MIB) != LONG[start : start + MIB]:
                    wrong.append(number)

        threads = [threading.Thread(target=reader, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
