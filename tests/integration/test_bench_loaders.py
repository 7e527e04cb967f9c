"""The benchmark's loaders: worker processes that read ahead, and the same data through clients of a store."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hayloft_bench.loaders.data_loader import PREFETCH, in_batches, load, loader_name, part_of, stream
from hayloft_bench.loaders.data_sources import make_source
from hayloft_bench.loaders.forked_loader import ForkedLoader
from hayloft_bench.loaders.safetensors_layout import header, header_bytes, tensors
from hayloft_bench.loaders.samples import Batch, SampleRead
from hayloft_bench.results.model import Access, DatasetFile, Reading
from hayloft_bench.run.reader_pool import ReaderPool, read
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.workloads import WORKLOADS
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.bench import SIZES, WrittenData, checked_of, read_here, shares_of
from tests.support.seaweedfs import seaweed, seaweed_bucket  # noqa: F401 - fixtures

LOADERS = ["own"] + (["torch"] if importlib.util.find_spec("torch") else [])
"""Torch is an extra that the tests do not require; if it is installed, they use it, too."""


class Numbers:
    """A dataset whose samples are their own numbers."""

    def __init__(self, count: int, fail_at: int = -1, die_at: int = -1) -> None:
        self._count, self._fail_at, self._die_at, self._is_open = count, fail_at, die_at, False

    def open(self) -> None:
        self._is_open = True

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> SampleRead:
        if not self._is_open:
            raise ValueError("the dataset is not open")
        if number == self._fail_at:
            raise OSError(5, "the disk is gone")
        if number == self._die_at:
            os._exit(1)
        return SampleRead(float(os.getpid()), number)

    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        for number in part_of(range(self._count), worker, workers):
            yield [self[number]]


def _numbers(batches: Iterator[Batch]) -> list[list[int]]:
    return [[read.read_bytes for read in batch] for batch in batches]


@given(count=st.integers(0, 300), size=st.integers(1, 50))
def test_batches_hold_every_sample_once_and_only_the_last_may_be_short(count: int, size: int) -> None:
    batches = in_batches(count, size)

    assert [number for batch in batches for number in batch] == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_however_many_workers_read_them(workers: int, loader: str) -> None:
    batches = load(Numbers(23), {"batch": 4, "workers": workers, "loader": loader})

    assert _numbers(batches) == in_batches(23, 4)


@pytest.mark.parametrize("loader", LOADERS)
def test_workers_are_separate_processes_and_take_turns(loader: str) -> None:
    batches = list(load(Numbers(12), {"batch": 2, "workers": 3, "loader": loader}))

    pids = [{read.latency_s for read in batch} for batch in batches]
    assert all(len(of_batch) == 1 for of_batch in pids)
    assert pids[:3] == pids[3:]
    assert len(set.union(*pids)) == 3
    assert float(os.getpid()) not in set.union(*pids)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stream_is_read_to_its_end_by_all_workers(workers: int, loader: str) -> None:
    batches = stream(Numbers(20), 20, {"workers": workers, "loader": loader})

    assert sorted(_numbers(batches)) == [[number] for number in range(20)]


def test_a_share_of_few_parts_is_not_read_by_many_workers() -> None:
    batches = list(stream(Numbers(2), 2, {"workers": 8, "loader": "own"}))

    assert len({batch[0].latency_s for batch in batches}) == 2


def test_an_error_in_a_worker_is_raised_in_the_trainer() -> None:
    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(load(Numbers(9, fail_at=5), {"batch": 2, "workers": 2, "loader": "own"}))


def test_a_dead_worker_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(RuntimeError, match="has died"):
        list(load(Numbers(9, die_at=5), {"batch": 2, "workers": 2, "loader": "own"}))


def test_workers_end_when_the_trainer_stops_early() -> None:
    batches = load(Numbers(1000), {"batch": 1, "workers": 3, "loader": "own"})
    next(batches)
    workers = multiprocessing.active_children()

    batches.close()  # type: ignore[attr-defined]  # a generator

    assert len(workers) == 3
    assert multiprocessing.active_children() == []


def test_workers_read_no_further_ahead_than_requested(tmp_path: Path) -> None:
    class Marking(Numbers):
        def __getitem__(self, number: int) -> SampleRead:
            (tmp_path / str(number)).touch()
            return super().__getitem__(number)

    with closing(ForkedLoader(Marking(100), 1)) as loader:
        batches = loader.map(in_batches(100, 1), PREFETCH)
        next(batches)

    # Closed after the first batch: that one, and the one that was requested in its place before it was yielded.
    assert len(list(tmp_path.iterdir())) <= 1 + PREFETCH


def test_the_name_of_the_loader_is_available_for_the_results() -> None:
    assert loader_name().startswith("torch ") == ("torch" in LOADERS)


@given(sizes=st.lists(st.integers(0, 500), max_size=6))
def test_a_safetensors_header_gives_the_places_of_its_tensors(sizes: list[int]) -> None:
    head = header([(f"tensor {number}", (size,), 2 * size) for number, size in enumerate(sizes)])

    assert len(head) % 8 == 0
    assert header_bytes(head[:8]) == len(head)
    found = tensors(head)
    assert [tensor.stop - tensor.start for tensor in sorted(found)] == [2 * size for size in sizes]
    assert not found or found[0].start == len(head)


def test_an_unknown_kind_of_access_is_refused() -> None:
    with pytest.raises(KeyError, match="ftp"):
        make_source(
            {"kind": "ftp", "endpoint": "", "access_key_id": "", "secret_access_key": "", "bucket": "", "prefix": ""}
        )


# -- in reader processes, as the benchmark runs them -------------------------------------------------------------------


def _read(
    name: str, files: list[DatasetFile], access: Access, root: Path, readers: int | None = None, **changed: Any
) -> Reading:
    shares = shares_of(name, files, epoch=1, readers=readers)
    for share in shares:
        share.arguments.update(changed)
    return read(ReaderPool(Stopping()), shares, access, WrittenData(root))


@pytest.mark.parametrize("name", ["imagenet", "webdataset", "tokens"])
def test_readers_with_workers_read_an_epoch_from_a_directory(name: str, tmp_path: Path) -> None:
    files = WORKLOADS[name].make(tmp_path / name, SIZES)

    reading = _read(name, files, Access("directory", str(tmp_path / name)), tmp_path / name)

    assert reading.wrong == []
    assert reading.checked >= 2
    assert reading.read_bytes == pytest.approx(WORKLOADS[name].needed_bytes(files, SIZES, 1), rel=0.02)
    assert 0 < reading.first_batch_s <= reading.seconds


def _upload(server: SeaweedFsServer, bucket: str, root: Path, files: list[DatasetFile]) -> Access:
    from obstore.store import S3Store

    keys = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    store = S3Store(
        bucket,
        endpoint=server.endpoint,
        region="us-east-1",
        client_options={"allow_http": True},
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
    )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: store.put(f"some/data/{file.path}", (root / file.path).read_bytes()), files))
    return Access("", "", server.endpoint, bucket, "some/data/", **keys)


@pytest.mark.server
@pytest.mark.parametrize("name", ["imagenet", "webdataset", "parquet", "unet3d", "checkpoint", "metadata"])
def test_clients_of_a_store_read_the_same_epoch(
    name: str,
    tmp_path: Path,
    seaweed: SeaweedFsServer,  # noqa: F811
    seaweed_bucket: str,  # noqa: F811
) -> None:
    workload, root = WORKLOADS[name], tmp_path / name
    files = workload.make(root, SIZES)
    stored = _upload(seaweed, seaweed_bucket, root, files)
    (plain,) = read_here(shares_of(name, files, epoch=1, readers=1), root)

    for kind in sorted(workload.access - {"directory", "s3torchconnector"}):
        access = Access(kind, "", stored.endpoint, stored.bucket, stored.prefix, *_keys(stored))
        reading = _read(name, files, access, root, readers=1, workers=1)

        assert reading.wrong == [], kind
        assert reading.checked == checked_of([plain]) > 0, kind
        assert (reading.samples, reading.read_bytes) == (plain.samples, plain.read_bytes), kind


def _keys(access: Access) -> tuple[str, str]:
    return access.access_key_id, access.secret_access_key


@pytest.mark.server
def test_wrong_bytes_in_the_store_are_noticed(
    tmp_path: Path,
    seaweed: SeaweedFsServer,  # noqa: F811
    seaweed_bucket: str,  # noqa: F811
) -> None:
    files = WORKLOADS["cosmoflow"].make(tmp_path / "right", SIZES)
    WORKLOADS["cosmoflow"].make(tmp_path / "other", SIZES)
    for file in files:
        where = tmp_path / "other" / file.path
        data = bytearray(where.read_bytes())
        data[len(data) // 2] ^= 4
        where.write_bytes(data)
    stored = _upload(seaweed, seaweed_bucket, tmp_path / "other", files)
    access = Access("boto3", "", stored.endpoint, stored.bucket, stored.prefix, *_keys(stored))

    reading = _read("cosmoflow", files, access, tmp_path / "right", workers=0)

    assert len(reading.wrong) == reading.checked == 2
