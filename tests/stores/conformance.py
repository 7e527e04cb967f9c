"""What must hold on every store: one check for each column of docs/stores.md, on a mount of a real daemon.

The class that inherits it names its server. A check that the server's ``cannot`` names is expected to end in
StoreCannot, which is raised only when another client than Hayloft has seen it: a store that has learned it fails here.
"""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import os
import random
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest

from csi_driver.model.errors import (
    AccessDenied,
    CredentialsRejected,
    EmptyDataset,
    EndpointUnreachable,
    HayloftError,
    NotADirectory,
    ObjectNotFound,
)
from tests.stores.odd_keys import DIRECTORY_KEY, RENAMED_KEYS, UNCHANGED_KEYS
from tests.stores.store_server import HOST, CertificateFiles, StoreServer, Volume
from tests.stores.volumes import Volumes
from tests.support.daemons import digest_of_objects, digest_of_tree
from tests.support.tls import issue
from tests.support.tls_front import tls_front

MIB = 1 << 20
WITHOUT_PERMISSION = (AccessDenied, CredentialsRejected)
SOON = {"requestTimeout": "5s", "deadline": "5s"}
"""For mounts that must fail."""
Check = TypeVar("Check", bound=Callable[..., None])


def column(header: str) -> Callable[[Check], Check]:
    """The check's column in docs/stores.md; its docstring is the explanation there."""

    def name(check: Check) -> Check:
        check.column = header  # type: ignore[attr-defined]
        return check

    return name


class StoreConformance:
    """Inherit as ``TestName`` and name the server."""

    pytestmark = pytest.mark.fuse

    server_class: ClassVar[type[StoreServer]]

    @column("names")
    @pytest.mark.promise("S1", "S3")
    def test_names_and_sizes(self, server: StoreServer, volumes: Volumes) -> None:
        """More keys than a page of the listing has, in directories: every name once, with its size."""
        count = server.listing_page + 205
        objects = {f"{number % 7}/{number:05}": b"x" * (number % 23) for number in range(count)}
        server.fill({f"names/{path}": data for path, data in objects.items()})
        root = volumes.mount(server.volume("names"))
        assert sizes_of(root) == {path: len(data) for path, data in objects.items()}

    @column("odd names")
    @pytest.mark.promise("S9")
    def test_odd_names(self, server: StoreServer, volumes: Volumes) -> None:
        """Keys with spaces, signs, control characters, Unicode, empty parts and dots: by the rules of keys.md."""
        wanted = (*UNCHANGED_KEYS, *RENAMED_KEYS, DIRECTORY_KEY)
        for key in wanted:
            put_if_held(server, f"odd/{key}", b"" if key == DIRECTORY_KEY else key.encode())
        held = {key.removeprefix("odd/") for key in server.keys("odd/")}
        assert set(wanted) - held == set(server.cannot_hold)
        root = volumes.mount(server.volume("odd"))
        shown = {RENAMED_KEYS.get(key, key): key for key in held if not key.endswith("/")}
        if not any(key.startswith("a/") for key in held):
            shown["a"] = shown.pop(RENAMED_KEYS["a"])
        assert set(sizes_of(root)) == set(shown)
        for path, key in shown.items():
            if key in wanted:
                assert (root / path).read_bytes() == key.encode()
        assert (root / DIRECTORY_KEY).is_dir() == (DIRECTORY_KEY in held)

    @column("bytes")
    @pytest.mark.promise("S13")
    def test_bytes_cold_and_warm(self, server: StoreServer, volumes: Volumes) -> None:
        """Hashes of all files, cold and warm; the second time no byte comes from the store."""
        draw = random.Random(1)
        objects = {f"{number % 4}/{number}.bin": draw.randbytes(draw.randint(0, 300_000)) for number in range(40)}
        objects |= {"empty": b"", "chunk": draw.randbytes(MIB)}
        server.fill({f"bytes/{path}": data for path, data in objects.items()})
        root = volumes.mount(server.volume("bytes"))
        assert digest_of_tree(root) == digest_of_objects(objects)
        cold_bytes = volumes.origin_bytes()
        assert digest_of_tree(root) == digest_of_objects(objects)
        assert volumes.origin_bytes() == cold_bytes

    @column("ranges")
    def test_ranges(self, server: StoreServer, volumes: Volumes) -> None:
        """Random ranges of a large file, cold, and then all of it."""
        draw = random.Random(2)
        data = draw.randbytes(12 * MIB + 12_345)
        server.put("ranges/large", data)
        path = volumes.mount(server.volume("ranges")) / "large"
        with path.open("rb", buffering=0) as file:
            for _ in range(50):
                start = draw.randrange(len(data))
                count = draw.randint(1, 200_000)
                assert os.pread(file.fileno(), count, start) == data[start : start + count]
        assert digest_of(path) == hashlib.sha256(data).hexdigest()

    @column("multipart")
    def test_multipart(self, server: StoreServer, volumes: Volumes) -> None:
        """An object that was uploaded in parts is read, fetched once, and still right from the cache."""
        draw = random.Random(3)
        parts = [draw.randbytes(5 * MIB), draw.randbytes(5 * MIB), draw.randbytes(777_777)]
        server.put_parts("multipart/object", parts)
        before = volumes.origin_bytes()
        root = volumes.mount(server.volume("multipart"))
        for _ in range(2):
            assert digest_of(root / "object") == hashlib.sha256(b"".join(parts)).hexdigest()
        assert volumes.origin_bytes() - before < 1.5 * sum(map(len, parts))

    @column("overwritten")
    @pytest.mark.promise("S26")
    def test_overwritten_in_mid_use(self, server: StoreServer, volumes: Volumes) -> None:
        """Files that are overwritten, open or not: old bytes or ESTALE, never a mixture. A new snapshot has the new."""
        old, new = both_versions(server, "overwritten")
        root = volumes.mount(server.volume("overwritten"))
        with (root / "open").open("rb", buffering=0) as file:
            first = read_up_to(file.fileno(), 0, 4096)
            server.next_second()
            server.fill({f"overwritten/{name}": data for name, data in new.items()})
            assert first == old["open"][:4096]
            assert_each_mib_old_or_stale(file.fileno(), old["open"])
        for name in ("later", "small"):
            assert_old_or_stale((root / name).read_bytes, old[name], name)
        volumes.unmount(root)
        root = volumes.mount(server.volume("overwritten"), snapshotMaxAge="0")
        assert digest_of_tree(root) == digest_of_objects(new)

    @column("deleted")
    @pytest.mark.promise("S25")
    def test_deleted_in_mid_use(self, server: StoreServer, volumes: Volumes) -> None:
        """Files that are deleted, open or not: old bytes or ESTALE."""
        old, _ = both_versions(server, "deleted")
        root = volumes.mount(server.volume("deleted"))
        with (root / "open").open("rb", buffering=0) as file:
            assert read_up_to(file.fileno(), 0, 4096) == old["open"][:4096]
            for name in old:
                server.delete(f"deleted/{name}")
            assert_each_mib_old_or_stale(file.fileno(), old["open"])
        for name in ("later", "small"):
            assert_old_or_stale((root / name).read_bytes, old[name], name)

    @column("restarted")
    @pytest.mark.timeout(300)  # some need half a minute to start
    @pytest.mark.promise("S31")
    def test_restarted_in_mid_read(self, server: StoreServer, volumes: Volumes) -> None:
        """The server ends in mid-read and comes back: readers see a pause, and then the right bytes."""
        server.must_outlive_restarts()
        draw = random.Random(5)
        objects = {f"{number:02}": draw.randbytes(700_000) for number in range(12)}
        objects["large"] = draw.randbytes(24 * MIB)
        server.fill({f"restarted/{path}": data for path, data in objects.items()})
        root = volumes.mount(server.volume("restarted"))
        with (root / "large").open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            begin = read_up_to(file.fileno(), 0, MIB)
            server.stop()

            def read() -> dict[str, bytes]:
                rest = read_up_to(file.fileno(), MIB, 24 * MIB)
                return {path: (root / path).read_bytes() for path in objects} | {"large": begin + rest}

            reader = pool.submit(read)
            wait([reader], 1)  # some of its requests find nothing there
            server.start()
            assert digest_of_objects(reader.result()) == digest_of_objects(objects)

    @column("secret")
    def test_wrong_secret(self, server: StoreServer, volumes: Volumes) -> None:
        """A wrong secret or password is refused at the mount, as credentials that the store rejects."""
        server.put("secret/object", b"secret")
        wrong = server.with_wrong_secret(server.volume("secret"))
        error, code = server.own_answers.get("test_wrong_secret", (CredentialsRejected, ""))
        with pytest.raises(error, match=code or None) as caught:
            volumes.mount(wrong)
        assert not any(value in str(caught.value) for value in secrets_of(wrong))

    @column("key id")
    def test_wrong_identity(self, server: StoreServer, volumes: Volumes) -> None:
        """So is a wrong key id, account or user name."""
        server.put("identity/object", b"identity")
        wrong = server.with_wrong_identity(server.volume("identity"))
        error, code = server.own_answers.get("test_wrong_identity", (CredentialsRejected, ""))
        with pytest.raises(error, match=code or None):
            volumes.mount(wrong)

    @column("no credentials")
    def test_no_credentials(self, server: StoreServer, volumes: Volumes) -> None:
        """Without any where the store asks for them: the error asks for a Secret."""
        server.put("none/object", b"none")
        wrong = server.without_credentials(server.volume("none"))
        error, text = server.own_answers.get("test_no_credentials", (WITHOUT_PERMISSION, "[Ss]ecret"))
        with pytest.raises(error, match=text):
            volumes.mount(wrong)

    @column("bucket")
    def test_missing_bucket(self, server: StoreServer, volumes: Volumes) -> None:
        """A bucket, container or directory that does not exist is named in the error."""
        with pytest.raises(server.missing_bucket, match="no-such-bucket"):
            volumes.mount(server.volume("data", bucket="no-such-bucket"))

    @column("prefix")
    def test_missing_prefix(self, server: StoreServer, volumes: Volumes) -> None:
        """A prefix without objects is named in the error."""
        server.put("prefix/object", b"prefix")
        with pytest.raises((EmptyDataset, ObjectNotFound), match="no-such-prefix"):
            volumes.mount(server.volume("no-such-prefix"))

    @column("one object")
    def test_one_object(self, server: StoreServer, volumes: Volumes) -> None:
        """A URL of one object: of a web server a directory of one file, elsewhere an error that says so."""
        server.put("one/object.bin", b"one")
        volume = server.volume("one/object.bin")
        if server.mounts_one_object:
            root = volumes.mount(volume)
            assert {path.name: path.read_bytes() for path in root.iterdir()} == {"object.bin": b"one"}
        else:
            with pytest.raises(NotADirectory, match=r"object\.bin"):
                volumes.mount(volume)

    @column("region")
    def test_wrong_region(self, server: StoreServer, volumes: Volumes) -> None:
        """A wrong region: the error names it; or the bytes are right, as the store says the right one or takes any."""
        server.put("region/object", b"region")
        volume = server.with_wrong_region(server.volume("region"))
        found, message = b"", ""
        try:
            found = (volumes.mount(volume) / "object").read_bytes()
        except HayloftError as error:
            message = str(error)
        assert found == b"region" or "region" in message

    @column("gzip")
    def test_content_encoding(self, server: StoreServer, volumes: Volumes) -> None:
        """Objects with Content-Encoding: gzip, or a server that compresses: the stored bytes."""
        text = b"a line of text that compresses well\n" * 20_000
        objects = {"packed.json.gz": gzip.compress(text), "plain.txt": text}
        server.put("gzip/plain.txt", objects["plain.txt"])
        server.put("gzip/packed.json.gz", objects["packed.json.gz"], encoding="gzip")
        root = volumes.mount(server.volume("gzip"))
        assert sizes_of(root) == {path: len(data) for path, data in objects.items()}
        assert digest_of_tree(root) == digest_of_objects(objects)

    @column("TLS")
    def test_tls(self, server: StoreServer, volumes: Volumes, tmp_path: Path) -> None:
        """TLS with an authority of one's own: bytes are right with `caBundle`, and refused without."""
        data = random.Random(6).randbytes(2 * MIB)
        objects = {"small": data[:4321], "chunk": data[:MIB]}
        issued = issue()
        files = CertificateFiles(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "authority.pem")
        files.certificate.write_bytes(issued.certificate)
        files.key.write_bytes(issued.key)
        files.authority.write_text(issued.authority)

        def check(store: StoreServer, port: int) -> None:
            store.fill({f"tls/{path}": content for path, content in objects.items()})
            volume = store.volume("tls", endpoint=f"https://{HOST}:{port}")
            root = volumes.mount(volume, caBundle=issued.authority)
            assert digest_of_tree(root) == digest_of_objects(objects)
            with pytest.raises(EndpointUnreachable, match="certificate"):
                volumes.mount(volume, **SOON)

        if server.terminates_tls:
            with server.beside(tmp_path / "tls", files) as second:
                check(second, second.port)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files.certificate, files.key)
            with tls_front(HOST, server.port, context) as port:
                check(server, port)

    @column("plain port")
    def test_https_on_a_port_of_plain_http(self, server: StoreServer, volumes: Volumes) -> None:
        """`https://` on its plain port: the error says so, and blames no certificate."""
        server.put("plain/object", b"plain")
        with pytest.raises(EndpointUnreachable) as caught:
            volumes.mount(server.volume("plain", endpoint=f"https://{HOST}:{server.port}"), **SOON)
        assert "certificate" not in str(caught.value)

    @column("anonymous")
    def test_anonymous(self, server: StoreServer, volumes: Volumes) -> None:
        """Without credentials, where the store permits it."""
        server.put("anonymous/object", b"anonymous")
        root = volumes.mount(server.anonymous(server.volume("anonymous")))
        assert (root / "object").read_bytes() == b"anonymous"


COLUMNS: Mapping[str, tuple[str, str]] = {
    name: (check.column, (check.__doc__ or "").strip())
    for name, check in vars(StoreConformance).items()
    if hasattr(check, "column")
}
"""Header and explanation by the name of the check, in the order of the file."""


def put_if_held(server: StoreServer, key: str, data: bytes) -> None:
    """Leaves nothing of a key that the store changes to another, or cannot list."""
    with suppress(Exception):  # whatever its own client makes of it
        server.put(key, data)
        with suppress(Exception):
            if key in server.keys("odd/"):
                return
        server.delete(key)


def both_versions(server: StoreServer, prefix: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Puts the old version; the new one has the same sizes. ``open`` is too large to be fetched by its first read."""
    draw = random.Random(4)
    sizes = {"later": 700_000, "small": 5_000, "open": 24 * MIB}
    old, new = ({name: draw.randbytes(size) for name, size in sizes.items()} for _ in range(2))
    server.fill({f"{prefix}/{name}": data for name, data in old.items()})
    return old, new


def assert_old_or_stale(read: Callable[[], bytes], old: bytes, what: str) -> None:
    try:
        found = read()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    else:
        assert found == old, f"other bytes of {what}"


def assert_each_mib_old_or_stale(descriptor: int, old: bytes) -> None:
    for start in range(0, len(old), MIB):
        read = functools.partial(read_up_to, descriptor, start, MIB)
        assert_old_or_stale(read, old[start : start + MIB], f"the open file from {start} on")


def read_up_to(descriptor: int, start: int, count: int) -> bytes:
    """pread until the count or the end of the file."""
    found = bytearray()
    while piece := os.pread(descriptor, count - len(found), start + len(found)):
        found += piece
    return bytes(found)


def sizes_of(root: Path) -> dict[str, int]:
    """By path, of all files below a directory."""
    return {
        os.path.relpath(os.path.join(directory, name), root): os.lstat(os.path.join(directory, name)).st_size
        for directory, _, names in os.walk(root)
        for name in names
    }


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def secrets_of(volume: Volume) -> list[str]:
    """The values that no message may show."""
    return [value for key, value in volume.secrets.items() if key not in ("access_key_id", "account_name", "username")]
