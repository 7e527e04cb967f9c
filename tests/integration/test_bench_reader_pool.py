"""Reader processes: what they count, how they end, and how a row is made of it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import Access, DatasetFile, Reading, Share
from hayloft_bench.run.expected_data import ExpectedData, every_byte, read_all, wrong_bytes
from hayloft_bench.run.measurement import STALLED_S, Stalled, Watch
from hayloft_bench.run.reader_pool import CHECK_EVERY, ReadCounts, ReaderPool, Run, read
from hayloft_bench.run.row_builder import Counted, Where, of_reading
from hayloft_bench.run.stopping import Stopping

_STEP_S = 0.05
CRC = 0xE3069283
"""CRC32C of "123456789", from RFC 3720's polynomial."""


@pytest.fixture
def expected(tmp_path: Path) -> ExpectedData:
    (tmp_path / "a").write_bytes(b"123456789")
    return ExpectedData(tmp_path, [DatasetFile("a", 9, CRC)])


def _run(expected: ExpectedData, *jobs: str, **arguments: Any) -> Reading:
    shares = [Share(f"{__name__}:{job}", arguments) for job in jobs]
    return read(ReaderPool(Stopping()), shares, Access("directory", root="/"), expected)


def counting(arguments: dict[str, Any]) -> Run:
    def run(counts: ReadCounts) -> None:
        counts.sample(0.25, 100, samples=2)
        counts.batch(0.5)
        counts.check("a", 0, b"123456789")
        counts.check("a", 3, b"456")

    return run


def lying(arguments: dict[str, Any]) -> Run:
    def run(counts: ReadCounts) -> None:
        counts.check("a", 3, b"465")
        counts.check("b", 0, b"")
        counts.checked(False, "c is not an image")
        counts.checked(True, "d")

    return run


def busy(arguments: dict[str, Any]) -> Run:
    def run(counts: ReadCounts) -> None:
        if os.fork() == 0:
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass
            os._exit(0)
        os.wait()

    return run


def test_what_all_readers_counted_is_added_up(expected: ExpectedData) -> None:
    found = _run(expected, "counting", "counting")
    assert (found.read_bytes, found.samples, list(found.sample_latencies_s)) == (200, 4, [0.25, 0.25])
    assert (list(found.batch_latencies_s), found.checked, found.wrong) == ([0.5, 0.5], 4, [])
    assert 0 < found.first_batch_s <= found.seconds
    assert found.reader_peak_bytes > 1 << 20


def test_what_differs_is_named_by_file_and_range(expected: ExpectedData) -> None:
    found = _run(expected, "lying")
    assert found.wrong == ["c is not an image", "a, bytes 3 to 6", "b, bytes 0 to 0"]
    assert found.checked == 3


def test_processor_time_of_a_readers_workers_counts(expected: ExpectedData) -> None:
    assert _run(expected, "busy").reader_cpu_s >= 0.2


def bus_error(arguments: dict[str, Any]) -> Run:
    return lambda counts: os.kill(os.getpid(), signal.SIGBUS)


def test_a_reader_that_a_signal_has_ended_says_which(expected: ExpectedData) -> None:
    with pytest.raises(ProcessFailed, match="a reader was ended by SIGBUS"):
        _run(expected, "bus_error", "counting")


def test_what_is_counted_before_the_start_is_not_on_the_clock(expected: ExpectedData) -> None:
    shares = [Share(f"{__name__}:counting", {})] * 2
    access = Access("directory", root="/")
    found = read(ReaderPool(Stopping()), shares, access, expected, before_start=lambda: time.sleep(30 * _STEP_S))
    assert found.seconds < 30 * _STEP_S
    assert found.first_batch_s < 30 * _STEP_S


def test_one_sample_of_many_is_checked_and_the_first_always() -> None:
    counts = ReadCounts()
    wanted = [counts.wants_check() for _ in range(2 * CHECK_EVERY)]
    assert wanted[0]
    assert sum(wanted) == 2


def test_time_that_checking_takes_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    counts = ReadCounts()
    counts.check("a", 0, b"")
    assert counts.answer()["checking_s"] == 1.0


def test_every_byte_is_compared_by_reading_all(expected: ExpectedData, tmp_path: Path) -> None:
    access = Access("directory", root=str(tmp_path))
    pool = ReaderPool(Stopping())
    assert read_all(pool, expected, access, compare=True).wrong == []
    (tmp_path / "a").write_bytes(b"123456780")
    assert read_all(pool, expected, access, compare=True).wrong == ["a, bytes 0 to 9"]


def test_a_dataset_has_an_id_that_depends_on_every_checksum(tmp_path: Path) -> None:
    one, other = (ExpectedData(tmp_path, [DatasetFile("a", 9, crc)]).dataset_id() for crc in (CRC, CRC + 1))
    assert one != other
    assert one == ExpectedData(tmp_path, [DatasetFile("a", 9, CRC)]).dataset_id()


def test_many_wrong_files_are_counted() -> None:
    assert wrong_bytes(["a", "b", "c", "d", "e"]) == "wrong bytes: a, b, c and 2 more"


def test_readers_that_get_nothing_for_too_long_are_given_up() -> None:
    now = [0.0]
    watch = Watch(lambda count: None, lambda: now[0])
    watch(0)
    watch(1)
    now[0] = STALLED_S + 1
    watch(2)
    now[0] = 2 * STALLED_S + 3
    with pytest.raises(Stalled, match="nothing was read for 120 s"):
        watch(2)


WHERE = Where("run", "imagenet", "hayloft", "hot", 1, 0, 0, 1, 2, "id", 1000, 0.0)


def test_a_row_gives_counts_per_epoch_and_speeds_over_all_of_them() -> None:
    reading = Reading(2.0, 2_000_000_000, 20, 0.5, [0.1, 0.3], [0.4], 3.0, 7)
    counted = Counted(1.0, 5, 500_000_000, 8, 1_000_000_000, 0.5, passes=2)
    row = of_reading(WHERE, reading, counted, "")
    assert row.valid
    assert (row.seconds, row.bytes, row.samples) == (1.0, 1_000_000_000, 10)
    assert (row.samples_per_s, row.bytes_per_s) == (10.0, 1e9)
    assert (row.cpu_s_per_gb, row.cpu_reader_s, row.cpu_target_s) == (2.0, 1.5, 0.5)
    assert (row.origin_bytes, row.origin_requests) == (250_000_000, 4)
    assert (row.read_amplification, row.hit_ratio, row.money_per_epoch) == (0.25, 0.75, 0.25)
    assert (row.sample_p50_s, row.sample_p99_s, row.batch_p50_s) == (0.1, 0.3, 0.4)


def test_what_is_not_known_of_a_target_stays_empty() -> None:
    reading = Reading(1.0, 0, 0, 0.0, [], [], 0.0, 0)
    row = of_reading(WHERE, reading, Counted(None, None, None, None, 0, None), "why")
    assert not row.valid
    assert row.reason == "why"
    assert (row.hit_ratio, row.read_amplification, row.cpu_s_per_gb, row.sample_p50_s) == (None, None, None, None)


def test_a_client_is_paths_seen_which_files_will_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lists them when it is opened reads no other."""
    paths_seen: list[list[str]] = []
    monkeypatch.setattr(
        "hayloft_bench.run.expected_data.make_source", lambda _access, paths=(): paths_seen.append(list(paths))
    )

    every_byte({"access": {"kind": "s3torchconnector"}, "items": ["a", "b"], "compare": True})

    assert paths_seen == [["a", "b"]]


def killed(arguments: dict[str, Any]) -> Run:
    """A job whose process ends while it reads."""
    return lambda counts: os._exit(9)


def missing(arguments: dict[str, Any]) -> Run:
    return lambda counts: counts.check("a", 0, Path("/no/such/file").read_bytes())


def pid_of(arguments: dict[str, Any]) -> Run:
    """A job that reports its process id as a number of bytes."""
    return lambda counts: counts.sample(0.0, os.getpid())


def test_a_reader_that_is_killed_fails_the_epoch(expected: ExpectedData) -> None:
    with pytest.raises(ProcessFailed, match="a reader process failed"):
        _run(expected, "killed", "counting")


def test_a_reader_that_fails_fails_the_epoch_with_its_error(expected: ExpectedData) -> None:
    with pytest.raises(ProcessFailed, match="FileNotFoundError"):
        _run(expected, "missing")


def test_readers_are_processes_of_their_own_and_gone_afterwards(expected: ExpectedData) -> None:
    pid = _run(expected, "pid_of").read_bytes
    assert pid != os.getpid()
    assert not Path(f"/proc/{pid}").exists()


def slow(arguments: dict[str, Any]) -> Run:
    def run(counts: ReadCounts) -> None:
        counts.sample(0.0, 7)
        time.sleep(10 * _STEP_S)

    return run


def test_progress_is_reported_while_readers_read_and_after_all_are_ready(expected: ExpectedData) -> None:
    order: list[int | str] = []
    shares = [Share(f"{__name__}:slow", {})] * 2
    read(
        ReaderPool(Stopping()),
        shares,
        Access("directory", root="/"),
        expected,
        before_start=lambda: order.append("start"),
        progress=order.append,
    )
    assert order[0] == "start"
    assert order[-1] == 14


def test_jobs_in_sequence_are_counted_together(expected: ExpectedData) -> None:
    parts: list[tuple[str, dict[str, object]]] = [(f"{__name__}:counting", {}), (f"{__name__}:counting", {})]
    share = Share("hayloft_bench.run.jobs:in_sequence", {"parts": parts})
    found = read(ReaderPool(Stopping()), [share], Access("directory", root="/"), expected)
    assert (found.read_bytes, found.samples) == (200, 4)


def test_the_id_of_a_dataset_changes_with_a_byte_a_name_and_a_missing_file(tmp_path: Path) -> None:
    def id_of(**files: int) -> str:
        return ExpectedData(tmp_path, [DatasetFile(path, 1, crc) for path, crc in files.items()]).dataset_id()

    complete = id_of(a=1, b=2)
    assert id_of(b=2, a=1) == complete
    assert len({complete, id_of(a=1, b=3), id_of(a=1, c=2), id_of(a=1)}) == 4
