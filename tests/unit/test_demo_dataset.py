"""The dataset of the demonstration is the same for the same seed, and as real as its names say."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hayloft_bench.demo.dataset import PROJECTION, DatasetPlan, MadeDataset, dataset_digest, make_dataset

PLAN = DatasetPlan(seed=7, images=9, shards=2, shard_images=3, tables=1, row_groups=2)


def _make(root: Path, plan: DatasetPlan = PLAN) -> MadeDataset:
    return make_dataset(root, plan, lambda size_bytes: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MadeDataset]:
    root = tmp_path_factory.mktemp("dataset")
    return root, _make(root)


def test_the_same_seed_gives_the_same_bytes(made: tuple[Path, MadeDataset], tmp_path: Path) -> None:
    assert _make(tmp_path).files == made[1].files


def test_another_seed_gives_other_bytes(made: tuple[Path, MadeDataset], tmp_path: Path) -> None:
    other = _make(tmp_path, replace(PLAN, seed=8))
    assert not {file.sha256 for file in other.files} & {file.sha256 for file in made[1].files}


def test_what_is_written_is_what_is_said_of_it(made: tuple[Path, MadeDataset]) -> None:
    root, dataset = made
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*")) == [f.path for f in dataset.files]
    for file in dataset.files:
        content = (root / file.path).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_images_differ_in_size_around_110_kb(tmp_path: Path) -> None:
    dataset = _make(tmp_path, replace(PLAN, images=60, shards=0, tables=0))
    sizes = [file.size_bytes for file in dataset.files]
    assert 90_000 < sum(sizes) / len(sizes) < 130_000
    assert len(set(sizes)) > len(sizes) // 2


def test_shards_are_tar_files_of_images(made: tuple[Path, MadeDataset]) -> None:
    root, dataset = made
    names = []
    for shard in dataset.below("tar"):
        with tarfile.open(root / shard.path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                assert content.read(2) == b"\xff\xd8"
                names.append(member.name)
    assert len(set(names)) == PLAN.shards * PLAN.shard_images


def test_tables_have_row_groups_and_the_columns_that_are_read(made: tuple[Path, MadeDataset]) -> None:
    root, dataset = made
    with pq.ParquetFile(root / dataset.below("parquet")[0].path) as file:
        assert file.num_row_groups == PLAN.row_groups
        assert set(PROJECTION) < set(file.schema_arrow.names)


def test_the_digest_of_a_dataset_changes_with_a_byte_a_name_and_a_missing_file() -> None:
    files = {"a": "1" * 64, "b": "2" * 64}
    whole = dataset_digest(files)
    assert dataset_digest(dict(reversed(files.items()))) == whole
    assert dataset_digest(files | {"b": "3" * 64}) != whole
    assert dataset_digest({"a": files["a"], "c": files["b"]}) != whole
    assert dataset_digest({"a": files["a"]}) != whole


def test_scale_1_is_about_700_mb_and_the_smallest_scale_has_a_little_of_everything() -> None:
    plan = DatasetPlan.scaled(1.0)
    shard_bytes = plan.shard_images * 110_000
    assert 140e6 < shard_bytes < 146e6
    assert 2000 <= plan.images <= 5000
    least = DatasetPlan.scaled(0.001)
    assert min(least.images, least.shards, least.shard_images, least.tables, least.row_groups) >= 1
