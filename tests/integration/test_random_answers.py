"""Random answers of stores, of every kind of client: no request outlasts its deadline, no byte is wrong, no thread
dies, and every error is one that is foreseen.

A new kind of store needs a ``Dialect`` in ``tests/support/random_answers.py`` and a line in ``KINDS``.
``HAYLOFT_RANDOM_EXAMPLES=10000`` for a long run.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from csi_driver.model import errors
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import HayloftError
from csi_driver.objects.checksums import checksum_provider
from csi_driver.objects.store import ObjectStore, read_whole
from csi_driver.objects.store_factory import open_store
from csi_driver.volumes.data_plane import MountRequest
from tests.support.daemons import DaemonBench
from tests.support.examples import random_examples
from tests.support.random_answers import Answer, Dialect, Distortion, RandomAnswers, S3Dialect, Script, etag, scripts
from tests.support.random_answers_of_clouds import AzureDialect, GoogleDialect
from tests.support.secrets_of_stores import AZURE_KEY_SECRET, google_secret

pytestmark = [pytest.mark.promise("S209"), pytest.mark.timeout(0)]

EXAMPLES = random_examples(24)

TIMEOUT_S, DEADLINE_S = 0.15, 0.4
HANGS_AFTER_S = 30.0
"""For ever, as far as this test is concerned: many times what all tries of an operation may take."""

FORESEEN = (
    *(errors.AccessDenied, errors.BucketNotFound, errors.BudgetExceeded, errors.CredentialsRejected),
    *(errors.EndpointUnreachable, errors.InvalidParameter, errors.ObjectArchived, errors.ObjectChanged),
    *(errors.ObjectNotFound, errors.StoreProtocolError, errors.StoreUnavailable),
)

_DRAW = random.Random(1)
OBJECTS = {
    **{f"data/{number}": _DRAW.randbytes(10) for number in range(7)},
    "data/one": b"x",
    "data/small": _DRAW.randbytes(60_000),
    "data/large": _DRAW.randbytes(1_200_000),
}


@dataclass(frozen=True)
class Kind:
    """A kind of store: how it answers, and how a volume names it."""

    dialect: Dialect
    url: str
    secrets: dict[str, str]
    backend: Literal["auto", "s3fs"] = "auto"


_S3_KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "of-the-test"}
KINDS = {
    "s3": Kind(S3Dialect(), "s3://bucket/data", _S3_KEYS),
    "s3fs": Kind(S3Dialect(), "s3://bucket/data", _S3_KEYS, backend="s3fs"),
    "gs": Kind(GoogleDialect(), "gs://bucket/data", google_secret()),
    "az": Kind(AzureDialect(), "az://bucket/data", AZURE_KEY_SECRET),
}


@dataclass
class Bench:
    server: RandomAnswers
    store: ObjectStore
    executor: ThreadPoolExecutor
    dead: list[str]

    def outcome(self, action: Callable[[ObjectStore], Any]) -> Any:
        """The value, or the error, which must be foreseen."""
        try:
            return self.executor.submit(action, self.store).result(HANGS_AFTER_S)
        except FORESEEN as error:
            return error


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind, dead = KINDS[request.param], list[str]()
    hook = threading.excepthook
    threading.excepthook = lambda arguments: dead.append(f"{arguments.thread}: {arguments.exc_value!r}")
    executor = ThreadPoolExecutor(1)
    try:
        with RandomAnswers(kind.dialect, OBJECTS) as server:
            options = StoreOptions(
                endpoint=server.endpoint,
                backend=kind.backend,
                request_timeout_s=TIMEOUT_S,
                deadline_s=DEADLINE_S,
                page_bytes=1 << 20,
            )
            store = open_store(DatasetUrl.parse(kind.url), options, Credentials(kind.secrets))
            yield Bench(server, store, executor, dead)
            store.close()
    finally:
        threading.excepthook = hook
        executor.shutdown(wait=False)


def listed(store: ObjectStore) -> list[str]:
    return sorted(key for page in store.list("data/") for key in page.keys)


def checksum(store: ObjectStore) -> object:
    provider = checksum_provider(store)
    return None if provider is None else provider.checksum("data/small", if_match=etag(OBJECTS["data/small"]))


def reads(key: str, start: int, stop: int) -> Callable[[ObjectStore], Any]:
    """Compares each piece as it is received: what comes before an error must be right too."""
    content = OBJECTS[key]

    def read(store: ObjectStore) -> str:
        at = start
        for piece in store.read_range(key, ByteRange(start, stop), if_match=etag(content)):
            assert piece == content[at : at + len(piece)]
            at += len(piece)
        assert at == stop
        return "right"

    return read


def reads_whole(key: str) -> Callable[[ObjectStore], Any]:
    content = OBJECTS[key]

    def read(store: ObjectStore) -> str:
        assert b"".join(read_whole(store, key, len(content), if_match=etag(content)).parts) == content
        return "right"

    return read


OPERATIONS: dict[str, Callable[[ObjectStore], Any]] = {
    "list": listed,
    "stat": lambda store: store.stat("data/small"),
    "checksum": checksum,
    "first byte": reads("data/small", 0, 1),
    "complete range": reads("data/small", 0, len(OBJECTS["data/small"])),
    "middle": reads("data/large", 500_000, 1_100_000),
    "whole": reads_whole("data/small"),
    "one": reads_whole("data/one"),
}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(operation=st.sampled_from(sorted(OPERATIONS)), script=scripts())
def test_whatever_a_store_answers_the_bytes_are_right_or_the_error_is_foreseen(
    bench: Bench, operation: str, script: Script
) -> None:
    is_honest = not script.lists_otherwise
    bench.server.play(script)
    outcome = bench.outcome(OPERATIONS[operation])
    if operation == "list" and not isinstance(outcome, HayloftError) and is_honest:
        assert outcome == sorted(OBJECTS), "a listing that breaks off is complete, or an error"
    bench.server.play(Script())
    # The client is as good as new. The time-outs are short, and the machine may be busy: more than one try.
    for _ in range(20):
        if bench.outcome(reads_whole("data/small")) == bench.outcome(reads("data/large", 0, 700_000)) == "right":
            break
    else:
        pytest.fail("the store has recovered, and its client has not")
    assert bench.dead == []


@pytest.mark.parametrize("body", [b"", b"<a/>", b"{}"])
def test_what_is_no_listing_does_not_end_a_listing(bench: Bench, body: bytes) -> None:
    bench.server.play(Script([Distortion(), Distortion(other=Answer(200, {}, body))]))
    outcome = bench.outcome(listed)
    assert isinstance(outcome, HayloftError) or outcome == sorted(OBJECTS)


def test_a_body_that_is_longer_than_the_range_is_not_read_as_it(bench: Bench) -> None:
    """With the framing of chunks in it, and a header that denies it."""
    bench.server.play(Script([Distortion(framing="chunked", headers=(("Transfer-Encoding", "identity"),))]))
    outcome = bench.outcome(OPERATIONS["complete range"])
    assert isinstance(outcome, HayloftError) or outcome == "right"


# -- on a mount -------------------------------------------------------------------------------------------------------

MOUNTED_EXAMPLES = max(6, EXAMPLES // 8)
"""Each takes seconds: the shortest time-out of a volume is one."""

ERRNOS = {
    *(errno.EACCES, errno.EHOSTUNREACH, errno.EINVAL, errno.EIO, errno.EKEYREJECTED, errno.ENODATA, errno.ESTALE),
    errno.ETIMEDOUT,
}
DEFECTS = ("unexpected error", "InternalFailure", "a thread ends", "CRITICAL")


@dataclass
class MountedVolume:
    """Each example reads a file that no other has read: cached bytes need no store."""

    server: RandomAnswers
    bench: DaemonBench
    mount_point: Path
    unread: list[str]

    def read(self, path: str) -> bytes | int:
        """The bytes, or the errno."""
        try:
            return (self.mount_point / path).read_bytes()
        except OSError as error:
            return error.errno or 0

    def log(self) -> str:
        assert self.bench.log_path is not None
        return self.bench.log_path.read_text(errors="replace")


@pytest.fixture(scope="module", params=KINDS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedVolume]:
    kind, home = KINDS[request.param], tmp_path_factory.mktemp("answers")
    draw, sizes = random.Random(2), (1, 60_000, 200_000, 1_200_000)
    paths = [f"{number:05}" for number in range(MOUNTED_EXAMPLES + 50)]
    objects = {f"data/{path}": draw.randbytes(sizes[number % 4]) for number, path in enumerate(paths)}
    bench = DaemonBench(home, keep=False, log_path=home / "log")
    try:
        with RandomAnswers(kind.dialect, objects) as server:
            bench.start()
            mount_point = home / "mount"
            mount_point.mkdir()
            bench.mount_points.append(mount_point)
            attributes = {"url": kind.url, "endpoint": server.endpoint, "backend": kind.backend}
            attributes |= {"requestTimeout": "1s", "deadline": "1s"}
            with bench.client() as client:
                client.mount(MountRequest("volume", os.fspath(mount_point), attributes, kind.secrets))
            yield MountedVolume(server, bench, mount_point, paths)
    finally:
        bench.close()


@pytest.mark.fuse
@settings(
    max_examples=MOUNTED_EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.generate],  # a file is read once, so an example cannot be shrunk
)
@given(script=scripts())
def test_a_mount_reads_right_bytes_or_has_an_errno_and_recovers(volume: MountedVolume, script: Script) -> None:
    path = volume.unread.pop()
    content = volume.server.objects[f"data/{path}"]
    volume.server.play(script)
    found = volume.read(path)
    assert found == content or found in ERRNOS
    volume.server.play(Script())
    # The deadline is short, and the machine may be busy: more than one try.
    assert any(volume.read(path) == content for _ in range(10)), "the store has recovered, and the volume has not"
    assert not [word for word in DEFECTS if word in volume.log()], volume.log()
