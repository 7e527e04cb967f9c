"""Every read and open is answered, whatever the work for it raises: errors of Hayloft, of Python, or panics of the
client of a store, which are no ``Exception``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from csi_driver.cache.object_file import ObjectFile
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import HayloftError, InternalFailure
from csi_driver.reading.fetcher import Fetcher, Job
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.write_back import WriteBack
from csi_driver.wiring.cache_process import every
from tests.unit.test_event_loop import Pipe
from tests.unit.test_reading import LARGE, SMALL, ReadBench, read, waited

WAIT_S = 20


class Panic(BaseException):
    """As of the runtime of a store's client."""


RAISED = [Panic("panicked"), SystemExit(3), KeyboardInterrupt(), MemoryError(), KeyError("key"), OSError(24, "EMFILE")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ReadBench]:
    bench = ReadBench(tmp_path)
    yield bench
    bench.close()


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def act(*_: object, **__: object) -> NoReturn:
        raise error

    return act


def both(first: Callable[..., object], second: Callable[..., object]) -> Callable[..., None]:
    """Calls one after the other."""

    def act(*values: object) -> None:
        first(*values)
        second(*values)

    return act


@pytest.mark.promise("S220")
@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_the_open_of_a_small_object_ends_whatever_its_fetch_raises(bench: ReadBench, error: BaseException) -> None:
    bench.origin.failures.append(error)  # type: ignore[arg-type]
    assert isinstance(bench.try_open("small"), InternalFailure)
    opened = bench.open("small")
    assert read(opened, 0, len(SMALL)) == SMALL, "the next open sends a request of its own"
    opened.close()


@pytest.mark.promise("S220")
@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_read_ends_whatever_its_fetch_raises(bench: ReadBench, error: BaseException) -> None:
    opened = bench.open("large")
    bench.origin.failures.append(error)  # type: ignore[arg-type]
    with pytest.raises(InternalFailure):
        read(opened, 0, 1000)
    assert read(opened, 0, 1000) == LARGE[:1000]
    opened.close()


@pytest.mark.promise("S220")
def test_every_fetch_thread_survives_a_panic(tmp_path: Path) -> None:
    bench = ReadBench(tmp_path, fetch_threads=2)
    for _ in range(20):
        bench.origin.failures.append(Panic())  # type: ignore[arg-type]
        assert isinstance(bench.try_open("small"), InternalFailure)
    bench.open("small").close()
    bench.close()


@pytest.mark.promise("S220")
@pytest.mark.parametrize("step", ["note_fetch", "count_received", "raise_if_refused", "retain"])
def test_readers_of_the_same_bytes_are_answered_when_a_step_of_the_fetch_raises(
    bench: ReadBench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    opened = bench.open("large")
    bench.origin.gate.clear()
    answers: list[object] = []
    done = threading.Semaphore(0)

    def answer(data: object) -> None:
        answers.append(data)
        done.release()

    for start in (0, 10, CHUNK_BYTES - 10):
        opened.read(start, 1000, answer)
    with monkeypatch.context() as patch:
        patch.setattr(bench.read_through_cache, step, raising(Panic()))
        bench.origin.gate.set()
        for _ in range(3):
            assert done.acquire(timeout=WAIT_S), "a reader was left behind"
    assert len(answers) == 3
    assert read(opened, 0, 1000) == LARGE[:1000]
    opened.close()


@pytest.mark.promise("S220")
def test_a_reader_whose_answer_fails_does_not_keep_others_from_theirs(bench: ReadBench) -> None:
    opened = bench.open("large")
    bench.origin.gate.clear()
    opened.read(0, 1000, raising(Panic()))
    pending = threading.Thread(target=lambda: got.append(read(opened, 20, 1000)))
    got: list[bytes] = []
    pending.start()
    bench.origin.gate.set()
    pending.join(WAIT_S)
    assert got == [LARGE[20:1020]]
    opened.close()


@pytest.mark.promise("S220")
def test_opens_of_one_object_are_answered_when_one_of_the_answers_fails(bench: ReadBench) -> None:
    bench.origin.gate.clear()
    source = ObjectSource(bench.origin.version("small"), bench.origin)
    bench.read_through_cache.open(source, raising(Panic()))
    opens: list[OpenObject | HayloftError] = []
    done = threading.Event()
    bench.read_through_cache.open(source, both(opens.append, lambda _: done.set()))
    bench.origin.gate.set()
    assert done.wait(WAIT_S)
    assert isinstance(opens[0], OpenObject)
    opens[0].close()


@pytest.mark.promise("S220")
def test_an_open_ends_when_its_fetch_cannot_be_queued(bench: ReadBench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bench.read_through_cache.fetcher, "demand", raising(Panic()))
        source = ObjectSource(bench.origin.version("small"), bench.origin)
        answers: list[object] = []
        with pytest.raises(Panic):
            bench.read_through_cache.open(source, answers.append)
        assert [type(answer) for answer in answers] == [InternalFailure]
    bench.open("small").close()


@pytest.mark.promise("S220")
def test_a_read_from_the_disk_ends_whatever_it_raises(bench: ReadBench, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = bench.open("small")
    with monkeypatch.context() as patch:
        patch.setattr(ObjectFile, "read_cached", lambda *_: False)  # so that a thread reads it
        patch.setattr(ObjectFile, "read", raising(Panic()))
        assert isinstance(waited(lambda answer: opened.read(0, 100, answer)), InternalFailure)
    assert read(opened, 0, 100) == SMALL[:100]
    opened.close()


@pytest.mark.promise("S220")
def test_a_job_whose_thread_cannot_be_started_runs_when_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Fetcher(2)
    ran = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
        fetcher.demand(Job(ran.set))
        assert not ran.is_set()
    assert ran.wait(WAIT_S), "no later job was needed"
    fetcher.close()


@pytest.mark.promise("S220")
def test_the_event_loop_survives_a_panic() -> None:
    loop, broken, works = EventLoop(), Pipe(), Pipe()
    loop.start()
    served = threading.Event()
    loop.watch(broken.reading, both(broken.receive, raising(Panic())))
    loop.watch(works.reading, both(works.receive, served.set))
    broken.send()
    works.send()
    assert served.wait(WAIT_S)
    loop.close()


@pytest.mark.promise("S220")
def test_the_write_queue_survives_a_panic() -> None:
    write_back = WriteBack(1 << 20, 8)
    ended = threading.Event()
    write_back.submit(1000, raising(Panic()), raising(Panic()))
    write_back.submit(1000, lambda: None, lambda _: ended.set())
    assert ended.wait(WAIT_S)
    write_back.close()
    assert write_back.pending_bytes == 0


@pytest.mark.promise("S220")
def test_a_periodic_job_is_called_again_after_a_panic() -> None:
    again = threading.Semaphore(0)

    def job() -> None:
        again.release()
        raise Panic

    with every(0.001, "test", job):
        assert again.acquire(timeout=WAIT_S)
        assert again.acquire(timeout=WAIT_S)


def test_the_pieces_of_a_fetch_that_came_before_a_panic_are_kept(bench: ReadBench) -> None:
    pieces = bench.origin.read_range

    def panicking(key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        for number, piece in enumerate(pieces(key, byte_range, if_match=if_match)):
            if number == 5:  # of 300 kB: one chunk of 1 MiB is complete
                raise Panic
            yield piece

    bench.origin.read_range = panicking  # type: ignore[method-assign]
    opened = bench.open("large")
    with pytest.raises(InternalFailure):
        read(opened, CHUNK_BYTES - 10, 2000)
    bench.origin.read_range = pieces  # type: ignore[method-assign]
    before = len(bench.origin.requests)
    assert read(opened, 0, 1000) == LARGE[:1000]
    assert len(bench.origin.requests) == before
    opened.close()
