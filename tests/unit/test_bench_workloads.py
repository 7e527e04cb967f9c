"""The workloads of the benchmark: their datasets, their shares, and that their loaders notice wrong bytes."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayloft_bench.results.data_path_goals import RAW
from hayloft_bench.results.model import DatasetFile, Sizes
from hayloft_bench.run.options import WITH_ROUNDS
from hayloft_bench.workloads import WORKLOADS
from hayloft_bench.workloads.content import content
from hayloft_bench.workloads.parquet import EMBEDDING_BYTES
from tests.support.bench import SIZES, WrittenData, checked_of, read_here, shares_of, wrong_of

NAMES = [name for name in WORKLOADS if name not in RAW]
Made = dict[str, list[DatasetFile]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    """One small dataset of each workload; tests do not change them."""
    root = tmp_path_factory.mktemp("datasets")
    return root, {name: workload.make(root / name, SIZES) for name, workload in WORKLOADS.items()}


def _copy(made: tuple[Path, Made], name: str, to: Path) -> Path:
    """A copy of one dataset that a test may change."""
    return Path(shutil.copytree(made[0] / name, to / name))


# -- datasets ----------------------------------------------------------------------------------------------------------


def test_the_workloads_are_those_that_training_has_and_plain_reads() -> None:
    assert set(WORKLOADS) == {
        *("imagenet", "retinanet", "webdataset", "parquet", "tokens"),
        *("unet3d", "cosmoflow", "checkpoint", "metadata"),
        *(
            "long",
            "shards",
            "small",
            "shared",
            "tenants",
            "warm",
            "warm-large",
            "warm-small",
            "web-large",
            "web-small",
            "model-load",
        ),
    }


@given(start=st.integers(0, 5000), length=st.integers(0, 5000), path=st.text(max_size=8))
def test_any_range_of_a_stream_equals_that_part_of_the_stream(start: int, length: int, path: str) -> None:
    whole = bytes(content(1, path, 0, 10_000))

    assert bytes(content(1, path, start, start + length)) == whole[start : start + length]


@pytest.mark.parametrize("name", NAMES)
def test_files_have_the_recorded_sizes_and_checksums(name: str, made: tuple[Path, Made]) -> None:
    root, files = made[0] / name, made[1][name]

    on_disk = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    assert [file.path for file in files] == on_disk
    for file in files:
        data = (root / file.path).read_bytes()
        assert (len(data), crc32c.crc32c(data)) == (file.size_bytes, file.crc32c)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_sizes_and_seed_make_the_same_bytes_and_another_seed_others(
    name: str, made: tuple[Path, Made], tmp_path: Path
) -> None:
    again = WORKLOADS[name].make(tmp_path / "again", SIZES)
    other = WORKLOADS[name].make(tmp_path / "other", Sizes(SIZES.scale, SIZES.seed + 1))

    assert again == made[1][name]
    assert {file.crc32c for file in other}.isdisjoint(file.crc32c for file in again) or name == "metadata"
    assert other != again


@pytest.mark.parametrize("name", [name for name in NAMES if name != "metadata"])
def test_the_announced_dataset_size_is_about_what_is_written(name: str, made: tuple[Path, Made]) -> None:
    written = sum(file.size_bytes for file in made[1][name])

    assert WORKLOADS[name].dataset_bytes(SIZES) == pytest.approx(written, rel=0.05)


def test_the_announced_size_of_tiny_files_counts_their_disk_blocks() -> None:
    assert WORKLOADS["metadata"].dataset_bytes(Sizes(1.0, 0)) == 1_000_000 * 4096


@pytest.mark.parametrize(
    ("name", "mean_bytes"), [("imagenet", 110_000), ("retinanet", 322_957), ("cosmoflow", 2_830_000)]
)
def test_a_dataset_at_scale_one_has_files_of_realistic_size(name: str, mean_bytes: int) -> None:
    workload: Any = WORKLOADS[name]

    assert workload.dataset_bytes(Sizes(1.0, 3)) / workload.full_count == pytest.approx(mean_bytes, rel=0.01)


def test_scales_below_the_least_number_of_files_shrink_the_files(tmp_path: Path) -> None:
    workload = WORKLOADS["cosmoflow"]

    files = workload.make(tmp_path / "small", Sizes(0.002, 0))

    assert len(files) == 32
    assert sum(file.size_bytes for file in files) == pytest.approx(0.002 * 900 * 2_830_000, rel=0.01)


def test_a_shard_is_a_complete_tar_archive(made: tuple[Path, Made]) -> None:
    path = made[0] / "webdataset" / made[1]["webdataset"][0].path

    with tarfile.open(path, "r:") as shard:
        names = shard.getnames()

    assert names[:2] == ["000000.jpg", "000000.cls"]
    assert path.stat().st_size % tarfile.RECORDSIZE == 0


def test_parquet_has_small_row_groups_and_one_giant_one(made: tuple[Path, Made]) -> None:
    import pyarrow.parquet as pq

    root = made[0] / "parquet"

    groups = {kind: pq.ParquetFile(root / kind / "part-0000.parquet").num_row_groups for kind in ("small", "giant")}

    assert groups == {"small": 2, "giant": 1}


# -- shares ------------------------------------------------------------------------------------------------------------


def _parts(share_arguments: dict[str, Any]) -> list[str]:
    """The items of a share, each in a form that can be compared."""
    return [json.dumps(item) for item in share_arguments["items"]]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([name for name in NAMES if name != "parquet"]),
    readers=st.integers(1, 7),
    ranks=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_every_epoch_reads_each_sample_once_over_all_ranks_and_readers(
    made: tuple[Path, Made], name: str, readers: int, ranks: int, epoch: int
) -> None:
    files, sizes = made[1][name], Sizes(SIZES.scale, SIZES.seed, readers)
    workload = WORKLOADS[name]

    shares = [workload.shares(files, sizes, epoch, ranks, rank) for rank in range(ranks)]
    parts = [part for rank in shares for share in rank for part in _parts(share.arguments)]

    alone = workload.shares(files, Sizes(SIZES.scale, SIZES.seed, 1), 0, 1, 0)[0]
    assert len(parts) == len(set(parts))
    assert sorted(parts) == sorted(_parts(alone.arguments))
    assert all(share.arguments["items"] for rank in shares for share in rank)


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_epoch_reads_each_row_group_once(made: tuple[Path, Made], ranks: int) -> None:
    workload, files = WORKLOADS["parquet"], made[1]["parquet"]

    items = [
        item
        for rank in range(ranks)
        for share in workload.shares(files, SIZES, 5, ranks, rank)
        for item in share.arguments["items"]
    ]

    assert len({(item["path"], item["group"]) for item in items}) == len(items) == 6
    assert sum(item["rows"] for item in items) == 4 * 128
    assert all(item["checks"] for item in items)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-large")])  # two files have two orders
def test_the_same_seed_and_epoch_give_the_same_order_and_another_epoch_another(
    name: str, made: tuple[Path, Made]
) -> None:
    files = made[1][name]

    orders = [
        [part["path"] + str(part["group"]) if name == "parquet" else part for part in share.arguments["items"]]
        for epoch in (0, 0, 1, 2, 3)
        for share in shares_of(name, files, epoch, readers=1)
    ]

    assert orders[0] == orders[1]
    assert len({json.dumps(order) for order in orders}) > 2


@pytest.mark.parametrize("name", NAMES)
def test_shares_are_serialisable_as_json(name: str, made: tuple[Path, Made]) -> None:
    for share in shares_of(name, made[1][name]):
        assert json.loads(json.dumps(share.arguments))["items"]


def test_windows_of_tokens_have_the_lengths_of_language_models_and_cover_the_files(made: tuple[Path, Made]) -> None:
    files = made[1]["tokens"]
    (share,) = shares_of("tokens", files, readers=1)

    windows = sorted(share.arguments["items"])

    lasts = {max(window for window in windows if window[0] == file.path) for file in files}
    assert all(8 << 10 <= length <= 32 << 10 for path, start, length in windows if (path, start, length) not in lasts)
    for file in files:
        ends = [0] + [start + length for path, start, length in windows if path == file.path]
        assert ends[:-1] == [start for path, start, _ in windows if path == file.path]
        assert ends[-1] == file.size_bytes


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_ROUNDS])  # these have readers of their own
def test_an_epoch_reads_its_needed_bytes_and_verifies_them(name: str, made: tuple[Path, Made]) -> None:
    root, files = made[0] / name, made[1][name]
    shares = shares_of(name, files)

    all_counts = read_here(shares, root)

    assert len(all_counts) == len(shares) > 1
    assert wrong_of(all_counts, WrittenData(root)) == []
    assert checked_of(all_counts) >= len(shares)
    assert all(counts.samples and counts.batch_latencies_s and counts.sample_latencies_s for counts in all_counts)
    needed = WORKLOADS[name].needed_bytes(files, SIZES, 0)
    assert sum(counts.read_bytes for counts in all_counts) == pytest.approx(needed, rel=0.02)


@pytest.mark.parametrize(
    ("name", "samples"), [("imagenet", 64), ("webdataset", 4 * 8), ("parquet", 4 * 128), ("metadata", 1000)]
)
def test_samples_are_counted_in_the_unit_of_the_workload(name: str, samples: int, made: tuple[Path, Made]) -> None:
    all_counts = read_here(shares_of(name, made[1][name]), made[0] / name)

    assert sum(counts.samples for counts in all_counts) == samples


def test_batches_have_the_requested_size(made: tuple[Path, Made]) -> None:
    (share,) = shares_of("imagenet", made[1]["imagenet"], readers=1)

    (counts,) = read_here([share], made[0] / "imagenet", batch=10)

    assert len(counts.batch_latencies_s) == 7


def _falsify(root: Path, name: str, file: DatasetFile) -> None:
    """Changes bytes of a file so that every part of it that may be compared is wrong, while its format stays valid."""
    path = root / file.path
    data = bytearray(path.read_bytes())
    if name == "metadata":
        data += b"!"
    elif name == "parquet":
        for row in range(128):
            at = data.find(content(SIZES.seed, file.path, row * EMBEDDING_BYTES, row * EMBEDDING_BYTES + 32))
            assert at >= 0
            data[at] ^= 1
    elif name == "webdataset":
        for record in range(8):
            at = data.find(content(SIZES.seed, file.path, record * 114_660, record * 114_660 + 32))
            data[at] ^= 1
    else:
        for at in range(len(data) - 1, 8191, -4096):
            data[at] ^= 1
        data[-1] ^= len(data) < 8192
    path.write_bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_bytes_are_noticed(name: str, made: tuple[Path, Made], tmp_path: Path) -> None:
    copied = _copy(made, name, tmp_path)
    for file in made[1][name]:
        _falsify(copied, name, file)

    all_counts = read_here(shares_of(name, made[1][name]), copied)

    assert wrong_of(all_counts, WrittenData(made[0] / name)) != []


@pytest.mark.parametrize("name", ["imagenet", "unet3d", "tokens"])
def test_files_that_are_too_short_are_noticed(name: str, made: tuple[Path, Made], tmp_path: Path) -> None:
    copied = _copy(made, name, tmp_path)
    for file in made[1][name]:
        path = copied / file.path
        data = bytearray(path.read_bytes())
        if name == "unet3d":
            shape = str(file.size_bytes - 128).encode()
            data[:128] = data[:128].replace(shape, str(file.size_bytes - 129).encode().ljust(len(shape)))
        path.write_bytes(data[: -1 if name == "unet3d" else -2])

    all_counts = read_here(shares_of(name, made[1][name]), copied)

    assert wrong_of(all_counts, WrittenData(made[0] / name)) != []


def test_an_additional_file_is_noticed_by_the_walk(made: tuple[Path, Made], tmp_path: Path) -> None:
    copied = _copy(made, "metadata", tmp_path)
    (copied / made[1]["metadata"][0].path).with_suffix(".new").touch()

    all_counts = read_here(shares_of("metadata", made[1]["metadata"]), copied)

    assert len(wrong_of(all_counts, WrittenData(made[0] / "metadata"))) == 1


def test_missing_rows_are_noticed(made: tuple[Path, Made]) -> None:
    shares = shares_of("parquet", made[1]["parquet"])
    shares[0].arguments["items"][0]["rows"] += 1
    shares[0].arguments["items"][0]["checks"].append((1 << 60, 0))

    wrong = wrong_of(read_here(shares, made[0] / "parquet"), WrittenData(made[0] / "parquet"))

    assert any("were not received" in what for what in wrong)
    assert any("rows instead of" in what for what in wrong)
