"""Readers of the demonstration: real processes over real files, without a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hayloft_bench.demo.crew import ReaderPool
from hayloft_bench.demo.dataset import ROWS_PER_GROUP, DatasetPlan, MadeDataset, make_dataset
from hayloft_bench.demo.errors import DemoFailed, WrongBytes
from hayloft_bench.demo.measuring import Measuring
from hayloft_bench.demo.stopping import Stopping
from hayloft_bench.demo.workloads import Run, Tally, shuffled_shares

PLAN = DatasetPlan(seed=7, images=9, shards=2, shard_images=3, tables=2, row_groups=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MadeDataset]:
    root = tmp_path_factory.mktemp("dataset")
    return root, make_dataset(root, PLAN, lambda size_bytes: None)


def _measuring(dataset: MadeDataset) -> Measuring:
    return Measuring(dataset, ReaderPool(Stopping()), lambda: 0)


def test_every_item_is_dealt_out_once_and_no_share_is_empty() -> None:
    shares = shuffled_shares(range(10), 4, 1, 1)
    assert sorted(item for share in shares for item in share) == list(range(10))
    assert [len(share) for share in shuffled_shares(range(3), 8, 1, 1)] == [1, 1, 1]


def test_the_order_is_another_in_each_epoch_and_the_same_in_each_run() -> None:
    first, again, second = (shuffled_shares(range(50), 1, 1, epoch) for epoch in (1, 1, 2))
    assert first == again != second


SAMPLES = {
    "images": PLAN.images,
    "tar": PLAN.shards * PLAN.shard_images,
    "parquet": PLAN.tables * PLAN.row_groups * ROWS_PER_GROUP,
}


@pytest.mark.parametrize(("workload", "samples"), SAMPLES.items())
def test_an_epoch_reads_every_sample(made: tuple[Path, MadeDataset], workload: str, samples: int) -> None:
    root, dataset = made
    row = _measuring(dataset).epoch(workload, "local", {"kind": "directory", "root": str(root)}, 1)
    assert (row.samples, row.phase, row.origin_bytes) == (samples, "cold", 0)
    assert 0 < row.p50_ms <= row.p99_ms


def test_an_epoch_of_images_reads_every_byte_and_tells_of_its_progress(made: tuple[Path, MadeDataset]) -> None:
    root, dataset = made
    seen: list[int] = []
    source = {"kind": "directory", "root": str(root)}
    row = _measuring(dataset).epoch("images", "local", source, 2, progress=seen.append)
    assert row.bytes == sum(file.size_bytes for file in dataset.below("images"))
    assert seen[-1] == row.bytes
    assert row.phase == "warm"


def test_a_projection_reads_less_than_the_table(made: tuple[Path, MadeDataset]) -> None:
    root, dataset = made
    row = _measuring(dataset).epoch("parquet", "local", {"kind": "directory", "root": str(root)}, 1)
    assert 0.5 < row.bytes / sum(file.size_bytes for file in dataset.below("parquet")) < 0.8


def test_the_digest_of_what_is_read_is_that_of_what_was_made(made: tuple[Path, MadeDataset]) -> None:
    root, dataset = made
    digest, origin_bytes = _measuring(dataset).check_every_byte(root, "cold")
    assert (digest, origin_bytes) == (dataset.digest(), 0)


def test_one_wrong_byte_is_found_and_its_file_is_named(tmp_path: Path) -> None:
    plan = DatasetPlan(seed=7, images=5, shards=0, shard_images=0, tables=0, row_groups=0)
    dataset = make_dataset(tmp_path, plan, lambda size_bytes: None)
    victim = dataset.files[3]
    with (tmp_path / victim.path).open("r+b") as file:
        file.seek(victim.size_bytes // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(WrongBytes, match=f"WRONG BYTES, cold: 1 of 5 files .*{victim.path}"):
        _measuring(dataset).check_every_byte(tmp_path, "cold")


def test_a_reader_that_fails_fails_the_epoch_with_its_reason(made: tuple[Path, MadeDataset], tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="FileNotFoundError"):
        _measuring(made[1]).epoch("images", "local", {"kind": "directory", "root": str(tmp_path)}, 1)


def test_a_reader_that_is_killed_fails_the_epoch() -> None:
    with pytest.raises(DemoFailed, match="a reader process failed"):
        ReaderPool(Stopping()).run(f"{__name__}:killed", [{}, {}])


def killed(share: dict[str, Any]) -> Run:
    """A job whose process ends in the middle."""

    def run(tally: Tally) -> None:
        os._exit(9)

    return run


def pid_of(share: dict[str, Any]) -> Run:
    """A job that tells its process id as a number of bytes."""
    return lambda tally: tally.add(os.getpid(), 1, 0.0)


def test_readers_are_processes_of_their_own_and_gone_afterwards() -> None:
    crew = ReaderPool(Stopping())
    pid = crew.run(f"{__name__}:pid_of", [{}]).read_bytes
    assert pid != os.getpid()
    assert not Path(f"/proc/{pid}").exists()


def test_the_clock_starts_when_all_readers_are_ready() -> None:
    order: list[str] = []
    ReaderPool(Stopping()).run(
        f"{__name__}:pid_of",
        [{}, {}],
        before_start=lambda: order.append("start"),
        progress=lambda count: order.append("read"),
    )
    assert order[0] == "start"
    assert "read" in order[1:]
