"""Plain reads: the data path alone, and its goals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.models.rounds import SUBJECTS
from hayloft_bench.results.data_path_goals import AIMS, NODE_AIMS, ON_A_NODE, RAW
from hayloft_bench.results.goals import goals
from hayloft_bench.results.model import Access, DatasetFile, Sizes
from hayloft_bench.run.expected_data import ExpectedData
from hayloft_bench.run.options import OWN_TARGETS, WITH_ROUNDS
from hayloft_bench.run.reader_pool import ReaderPool, read
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.targets import TARGETS
from hayloft_bench.workloads import WORKLOADS
from tests.support.bench_results import measurement, results_of

SIZES = Sizes(0.001, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[DatasetFile]]]:
    root = tmp_path_factory.mktemp("raw")
    return {name: (root / name, WORKLOADS[name].make(root / name, SIZES)) for name in sorted(RAW)}


@pytest.mark.parametrize(("name", "readers"), [("long", 1), ("shards", 4), ("small", 8)])
def test_every_file_is_read_once(made: dict[str, tuple[Path, list[DatasetFile]]], name: str, readers: int) -> None:
    root, files = made[name]
    shares = WORKLOADS[name].shares(files, SIZES, 1, 1, 0)
    found = read(ReaderPool(Stopping()), shares, Access("directory", root=str(root)), ExpectedData(root, files))
    assert len(shares) == readers
    assert found.read_bytes == WORKLOADS[name].needed_bytes(files, SIZES, 1) == sum(file.size_bytes for file in files)
    assert found.samples == len(files)
    assert found.checked >= readers
    assert not found.wrong


def test_readers_of_a_shared_dataset_each_read_all_of_it(made: dict[str, tuple[Path, list[DatasetFile]]]) -> None:
    _, files = made["shared"]
    shares = WORKLOADS["shared"].shares(files, SIZES, 1, 1, 0)
    assert [len(share.arguments["items"]) for share in shares] == [len(files)] * 8
    assert WORKLOADS["shared"].needed_bytes(files, SIZES, 1) == sum(file.size_bytes for file in files)


def test_a_wrong_last_piece_is_noticed(made: dict[str, tuple[Path, list[DatasetFile]]], tmp_path: Path) -> None:
    root, files = made["long"]
    data = bytearray((root / files[0].path).read_bytes())
    data[-1] ^= 1
    (tmp_path / files[0].path).write_bytes(data)
    shares = WORKLOADS["long"].shares(files, SIZES, 1, 1, 0)
    found = read(ReaderPool(Stopping()), shares, Access("directory", root=str(tmp_path)), ExpectedData(root, files))
    assert len(found.wrong) == 1
    assert found.wrong[0].startswith("file.bin, bytes ")


def test_a_rank_without_a_file_is_an_error(made: dict[str, tuple[Path, list[DatasetFile]]]) -> None:
    root, files = made["long"]
    shares = WORKLOADS["long"].shares(files, SIZES, 1, 2, 1)
    with pytest.raises(ProcessFailed, match="fewer files than there are ranks"):
        read(ReaderPool(Stopping()), shares, Access("directory", root=str(root)), ExpectedData(root, files))


def test_one_process_of_a_client_reads_all_items(made: dict[str, tuple[Path, list[DatasetFile]]]) -> None:
    _, files = made["small"]
    alls = [share.arguments["all"] for share in WORKLOADS["small"].shares(files, SIZES, 1, 1, 0)]
    assert [len(each) for each in alls] == [len(files), *[0] * 7]


def test_goals_of_a_node_name_the_targets_of_its_rounds() -> None:
    assert OWN_TARGETS.keys() == ON_A_NODE <= WITH_ROUNDS
    for aim in NODE_AIMS:
        assert aim.other in OWN_TARGETS[aim.workload]
    for aim in (aim for aim in NODE_AIMS if aim.workload == "model-load"):
        assert aim.phase in SUBJECTS[aim.other].phases


def test_goals_name_existing_workloads_and_targets() -> None:
    for aim in AIMS:
        assert aim.workload in RAW
        assert aim.phase in TARGETS[aim.other].phases
        assert aim.other in WORKLOADS[aim.workload].access or TARGETS[aim.other].kind != "client"


def test_a_goal_is_judged_by_the_ratio_to_its_other_target() -> None:
    rows = [
        replace(measurement(target, repetition=number, phase="cold", samples_per_s=speed), workload="small")
        for number in range(3)
        for target, speed in (("hayloft", 70.0), ("juicefs", 50.0))
    ]
    found = {goal.against: goal for goal in goals(results_of(rows)) if goal.wording.startswith("twice")}
    assert found["juicefs"].value == pytest.approx(1.4)
    assert found["juicefs"].outcome == "misses"
    assert "rclone" not in found
