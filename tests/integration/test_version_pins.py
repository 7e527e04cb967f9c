"""Objects whose version the listing does not name, on mounts: their bytes are of one version nevertheless."""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import crc32c
import pytest
from rich.console import Console

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.dataset import Credentials, StoreOptions
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import ChunkStoreSettings
from csi_driver.volumes.data_plane import WarmupRequest, WarmupState
from csi_driver.wiring.dataset_inspection import inspect
from tests.support.daemons import Bucket, DaemonBench, stop, wait_until
from tests.support.hostile_s3 import HostileS3, ReplaceAfter

pytestmark = pytest.mark.fuse

MIB = 1 << 20
LARGE, MEDIUM, SMALL = "large.bin", "medium.bin", "small.bin"
SIZES = {LARGE: 24 * MIB, MEDIUM: 3 * MIB, SMALL: 100_000}
NUMBERS = itertools.count(1)
LATER_S = 1_767_400_000


def contents(seed: int) -> dict[str, bytes]:
    draw = random.Random(seed)
    return {f"data/{name}": draw.randbytes(size) for name, size in SIZES.items()}


OLD, NEW = contents(1), contents(2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path_factory.mktemp("pins"), leaves_fetches=True)
    bench.start()
    yield bench
    bench.close()


@pytest.fixture
def store() -> Iterator[HostileS3]:
    with HostileS3(OLD) as server:
        yield server


def mounted(bench: DaemonBench, store: HostileS3) -> Path:
    return bench.mount(Bucket(store, store.bucket, {}), f"pins-{next(NUMBERS)}", addressingStyle="path")  # type: ignore[arg-type]


def replace(store: HostileS3, *, in_the_same_second: bool) -> None:
    for key, content in NEW.items():
        store.put(key, content)
        if not in_the_same_second:
            store.modified_s[key] = LATER_S


def read_on(descriptor: int, start: int = 0) -> tuple[bytes, int]:
    """What can be read from here, and the errno that ends it; 0: the end of the file."""
    found, number = bytearray(), 0
    try:
        while piece := os.pread(descriptor, MIB, start + len(found)):
            found += piece
    except OSError as error:
        number = error.errno or 0
    return bytes(found), number


STRONG_WITH_BYTES = [
    pytest.param({"LIST": "none"}, id="head-and-get"),
    pytest.param({"LIST": "none", "HEAD": "none"}, id="get-only"),
    pytest.param({"LIST": "weak"}, id="weak-in-the-listing"),
]
TIME_ALONE = [
    pytest.param({"LIST": "none", "HEAD": "none", "GET": "none"}, id="no-etags"),
    pytest.param({"LIST": "weak", "HEAD": "weak", "GET": "weak"}, id="weak-etags"),
    pytest.param({"HEAD": "weak", "GET": "weak"}, id="weakened"),
    pytest.param({"HEAD": "none", "GET": "none"}, id="dropped"),
    pytest.param({"LIST": "weak", "HEAD": "weak"}, id="weak-but-for-the-bytes"),
]


@pytest.mark.promise("S210")
@pytest.mark.parametrize("forms", [*STRONG_WITH_BYTES, *TIME_ALONE])
def test_objects_without_a_strong_etag_in_the_listing_are_readable(
    bench: DaemonBench, store: HostileS3, forms: dict[str, str]
) -> None:
    store.etag_forms = forms
    mount = mounted(bench, store)
    assert {name: (mount / name).read_bytes() == OLD[f"data/{name}"] for name in SIZES} == dict.fromkeys(SIZES, True)


@pytest.mark.promise("S210")
@pytest.mark.parametrize(
    ("forms", "in_the_same_second"),
    [
        *(pytest.param(*param.values, True, id=f"{param.id}-same-second") for param in STRONG_WITH_BYTES),
        *(pytest.param(*param.values, False, id=f"{param.id}-later") for param in (*STRONG_WITH_BYTES, *TIME_ALONE)),
    ],
)
def test_a_sequential_read_never_mixes_old_and_new_bytes(
    bench: DaemonBench, store: HostileS3, forms: dict[str, str], in_the_same_second: bool
) -> None:
    store.etag_forms = forms
    old = OLD[f"data/{LARGE}"]
    with (mounted(bench, store) / LARGE).open("rb", buffering=0) as file:
        begun = os.pread(file.fileno(), MIB, 0)
        replace(store, in_the_same_second=in_the_same_second)
        rest, number = read_on(file.fileno(), MIB)
        far, _ = read_on(file.fileno(), 23 * MIB)
    assert begun == old[:MIB]
    assert rest == old[MIB : MIB + len(rest)]
    assert number == errno.ESTALE
    assert far == b""


@pytest.mark.promise("S210")
@pytest.mark.parametrize("forms", STRONG_WITH_BYTES)
@pytest.mark.parametrize("name", [LARGE, MEDIUM])
def test_an_answer_that_breaks_off_is_not_resumed_in_another_version(
    bench: DaemonBench, store: HostileS3, forms: dict[str, str], name: str
) -> None:
    store.etag_forms = forms
    mount = mounted(bench, store)
    (mount / SMALL).read_bytes()
    old, new = OLD[f"data/{name}"], NEW[f"data/{name}"]
    store.fail_all(ReplaceAfter(700_000, new))  # the pin may be a request of its own, which is too short to break
    try:
        with (mount / name).open("rb", buffering=0) as file:
            found, number = read_on(file.fileno())
    except OSError as error:
        found, number = b"", error.errno or 0
    assert found == old[: len(found)]
    assert number == errno.ESTALE


@pytest.mark.promise("S210")
@pytest.mark.parametrize("forms", STRONG_WITH_BYTES)
def test_a_warmup_and_a_later_read_get_one_version(tmp_path: Path, store: HostileS3, forms: dict[str, str]) -> None:
    store.etag_forms = forms
    bench = DaemonBench(tmp_path, keep=False)
    try:
        bench.start()
        mount = mounted(bench, store)
        volume_id = mount.name.removeprefix("mount-")
        old = OLD[f"data/{LARGE}"]
        with (mount / LARGE).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(file.fileno(), 4096, 0) == old[:4096]
        replace(store, in_the_same_second=True)
        with bench.client() as client:
            client.start_warmup(WarmupRequest(volume_id))
            wait_until(lambda: client.warmup(volume_id).state != WarmupState.RUNNING)
        with (mount / LARGE).open("rb", buffering=0) as file:
            found, number = read_on(file.fileno())
    finally:
        bench.close()
    assert found == old[: len(found)]
    assert number == errno.ESTALE


@pytest.mark.promise("S210")
def test_chunks_of_a_file_that_names_no_version_are_not_used(tmp_path: Path) -> None:
    """Those of a version of the driver that pinned nothing may be of any version."""
    settings = ChunkStoreSettings(directory=tmp_path, limit_bytes=1 << 30, free_floor_bytes=0)
    version = ObjectVersion("d", "e", "b", "k", None, 3 * CHUNK_BYTES, 5)
    content = bytes(CHUNK_BYTES)
    present = []
    for pin in (None, "x", None):
        chunks = ChunkStore(settings)
        file = chunks.open_partial(version)
        present.append(file.present_bytes())
        if pin is not None:
            file.pin_etag(pin)
        file.write_chunk(0, [memoryview(content)], crc32c.crc32c(content))
        file.release()
        chunks.close()
    assert present == [0, 0, CHUNK_BYTES]


@pytest.mark.promise("S210")
@pytest.mark.parametrize("forms", STRONG_WITH_BYTES)
def test_a_later_daemon_adds_no_bytes_of_another_version(
    tmp_path: Path, store: HostileS3, forms: dict[str, str]
) -> None:
    """It finds chunks of the old object in the cache, and the store has another one of the same size and time."""
    store.etag_forms = forms
    bench = DaemonBench(tmp_path)
    try:
        daemon = bench.start()
        mount = mounted(bench, store)
        old = OLD[f"data/{LARGE}"]
        with (mount / LARGE).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(file.fileno(), 4096, 10 * MIB) == old[10 * MIB : 10 * MIB + 4096]
        stop(daemon)
        replace(store, in_the_same_second=True)
        bench.start()
        with (mount / LARGE).open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4096, 10 * MIB) == old[10 * MIB : 10 * MIB + 4096]
            assert read_on(file.fileno(), 20 * MIB) == (b"", errno.ESTALE)
    finally:
        bench.close()


@pytest.mark.promise("S210")
@pytest.mark.parametrize("forms", [*STRONG_WITH_BYTES, *TIME_ALONE])
def test_an_object_that_was_replaced_before_its_first_read_is_stale(
    bench: DaemonBench, store: HostileS3, forms: dict[str, str]
) -> None:
    store.etag_forms = forms
    mount = mounted(bench, store)
    replace(store, in_the_same_second=False)
    for name in SIZES:
        with pytest.raises(OSError, match="Stale"):
            (mount / name).read_bytes()


@pytest.mark.promise("S211")
@pytest.mark.parametrize("origin_matches", [True, False], ids=["origin-matches", "proxy-compares"])
@pytest.mark.parametrize("listed", ["strong", "weak"])
def test_weak_etags_of_answers_are_compared_weakly_and_never_sent_as_a_condition(
    bench: DaemonBench, store: HostileS3, listed: str, origin_matches: bool
) -> None:
    store.etag_forms = {"LIST": listed, "HEAD": "weak", "GET": "weak"}
    store.matches_weak = origin_matches
    mount = mounted(bench, store)
    assert {name: (mount / name).read_bytes() == OLD[f"data/{name}"] for name in SIZES} == dict.fromkeys(SIZES, True)
    conditions = [request.headers.get("if-match", "") for request in store.requests]
    assert not [condition for condition in conditions if "W/" in condition]


NOTED = [
    pytest.param({}, "", id="strong"),
    pytest.param({"LIST": "none"}, "", id="strong-in-answers"),
    pytest.param({"LIST": "none", "HEAD": "none"}, "", id="strong-with-bytes"),
    pytest.param({"LIST": "none", "HEAD": "none", "GET": "none"}, "by size and modification time alone", id="none"),
    pytest.param({"LIST": "weak", "HEAD": "weak", "GET": "weak"}, "by size and modification time alone", id="weak"),
]


@pytest.mark.promise("S210")
@pytest.mark.parametrize(("forms", "expected"), NOTED)
def test_what_cannot_be_pinned_is_said_at_the_mount_and_by_inspect(
    tmp_path: Path, store: HostileS3, forms: dict[str, str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store.etag_forms = forms
    bench = DaemonBench(tmp_path, keep=False)
    try:
        bench.start()
        mount = mounted(bench, store)
        with bench.client() as client:
            report = client.volume(mount.name.removeprefix("mount-"))
    finally:
        bench.close()
    assert not report.abnormal
    said = capfd.readouterr().err
    text = io.StringIO()
    credentials = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"})
    options = StoreOptions(endpoint=store.endpoint)
    inspect("s3://data/data", [], [], options, credentials, Console(file=text, width=200))
    for place in (said, " ".join(report.notes), text.getvalue()):
        assert ("3 objects have no strong ETag" in place) == bool(expected)
        assert expected in place
