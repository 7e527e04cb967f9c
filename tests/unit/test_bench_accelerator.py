"""Emulated accelerators: their pace, their utilisation, and the search for how many can be fed."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hayloft_bench.results.model import Accelerator, DatasetFile, Reading, Share
from hayloft_bench.run.accelerator import (
    LEAST_BATCHES,
    LEAST_COMPUTE_S,
    Pace,
    Trial,
    accelerator_shares,
    emulating,
    search,
    tried,
    utilisation,
)
from hayloft_bench.workloads import WORKLOADS
from tests.support.bench import SIZES, read_here, shares_of

QUICK = Accelerator("quick", samples_per_batch=8, compute_s=0.01, threshold=0.9)


def _reading(*steady: tuple[float, int]) -> Reading:
    samples = sum(samples for _, samples in steady)
    return Reading(1.0, 0, samples, 0.5, (), (), 0.0, 0, steady=steady)


@pytest.mark.parametrize(
    ("name", "samples", "compute_s", "threshold"),
    [
        ("unet3d", 7, 0.323, 0.90),
        ("imagenet", 400, 0.224, 0.90),
        ("webdataset", 400, 0.224, 0.90),
        ("cosmoflow", 1, 0.0035, 0.70),
        ("retinanet", 24, 0.04755, 0.85),
    ],
)
def test_accelerators_compute_as_mlperf_storage_has_it(
    name: str, samples: int, compute_s: float, threshold: float
) -> None:
    accelerator = WORKLOADS[name].accelerator

    assert accelerator is not None
    assert (accelerator.samples_per_batch, accelerator.compute_s) == (samples, compute_s)
    assert accelerator.threshold == threshold


def test_a_trainer_without_an_accelerator_does_not_wait() -> None:
    assert Pace.of({}).compute_s == 0


def test_compute_sleeps_only_for_the_rest_of_the_batch_time() -> None:
    pace = Pace.of({"accelerator": {"compute_s": 0.02, "samples_per_batch": 10}})

    start = time.perf_counter()
    pace.compute(10, since=start)
    full_s = time.perf_counter() - start
    pace.compute(10, since=start - 1)  # long over: returns without sleeping
    pace.compute(5, since=start + full_s)

    assert full_s >= 0.02
    assert time.perf_counter() - start >= 0.03


def test_utilisation_is_compute_time_by_time_from_the_first_batch_on() -> None:
    # 10 batches of 8 samples each: 0.1 s of computing.
    assert utilisation(_reading((0.2, 80)), QUICK) == pytest.approx(0.5)


def test_utilisation_is_the_mean_of_the_accelerators() -> None:
    assert utilisation(_reading((0.2, 80), (0.1, 80)), QUICK) == pytest.approx(0.75)


def test_utilisation_is_at_most_one_and_zero_without_samples() -> None:
    # An accelerator that is faster than its compute time does not compensate for a slow one.
    assert utilisation(_reading((0.01, 80), (0.2, 80)), QUICK) == pytest.approx(0.75)
    assert utilisation(_reading((0.0, 8)), QUICK) == 0.0
    assert utilisation(_reading(), QUICK) == 0.0


def test_an_accelerator_reads_in_its_own_batches() -> None:
    share = emulating(Share("module:job", {"batch": 64, "items": [1]}), QUICK)

    assert share.arguments["batch"] == 8
    assert Pace.of(share.arguments) == Pace(0.01, 8)
    assert share.arguments["items"] == [1]


def test_a_run_with_an_accelerator_takes_at_least_the_time_of_its_computing(tmp_path: Path) -> None:
    files = WORKLOADS["imagenet"].make(tmp_path / "data", SIZES)
    (share,) = shares_of("imagenet", files, readers=1)

    start = time.perf_counter()
    (counts,) = read_here([emulating(share, QUICK)], tmp_path / "data")

    assert time.perf_counter() - start >= 0.01 * 64 / 8
    assert counts.samples == 64
    assert len(counts.batch_latencies_s) == 8


# -- the shares of accelerators ----------------------------------------------------------------------------------------

FILES = [DatasetFile(f"{number:04d}", 100, 0) for number in range(60)]


@pytest.mark.parametrize("name", ["imagenet", "retinanet", "cosmoflow", "unet3d", "webdataset"])
@pytest.mark.parametrize("accelerators", [1, 5])
def test_every_accelerator_has_enough_to_compute(name: str, accelerators: int) -> None:
    workload = WORKLOADS[name]
    assert workload.accelerator is not None
    batch = workload.accelerator.samples_per_batch

    shares = accelerator_shares(workload, FILES, SIZES, accelerators)

    assert len(shares) == accelerators
    for share in shares:
        samples = len(share.arguments["items"]) * share.arguments.get("samples_per_item", 1)
        assert samples >= LEAST_BATCHES * batch
        assert samples / batch * workload.accelerator.compute_s >= LEAST_COMPUTE_S * 0.999
        assert share.arguments["batch"] == batch


def test_accelerators_read_whole_epochs_between_them() -> None:
    shares = accelerator_shares(WORKLOADS["unet3d"], FILES, SIZES, 3)

    read = Counter(path for share in shares for path, _ in share.arguments["items"])
    assert set(read) == {file.path for file in FILES}
    assert len(set(read.values())) == 1
    sizes = [len(share.arguments["items"]) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_more_accelerators_than_files_read_different_epochs() -> None:
    shares = accelerator_shares(WORKLOADS["unet3d"], FILES[:2], SIZES, 5)

    assert len(shares) == 5
    assert all(len(share.arguments["items"]) >= LEAST_BATCHES * 7 for share in shares)


def test_a_node_without_files_cannot_feed_an_accelerator() -> None:
    with pytest.raises(ValueError, match="2 files are too few for 3 nodes"):
        accelerator_shares(WORKLOADS["unet3d"], FILES[:2], SIZES, 1, ranks=3, rank=2)


def test_a_workload_without_an_accelerator_is_an_error() -> None:
    with pytest.raises(ValueError, match="tokens has no accelerator"):
        accelerator_shares(WORKLOADS["tokens"], FILES, SIZES, 1)


# -- the search --------------------------------------------------------------------------------------------------------


@given(fed=st.integers(0, 40), most=st.integers(1, 40))
def test_the_search_finds_the_largest_fed_number(fed: int, most: int) -> None:
    asked: list[int] = []

    def measure(accelerators: int) -> Trial:
        asked.append(accelerators)
        return Trial(accelerators, 0.95 if accelerators <= fed else 0.5, idle=0.5)

    found = search(measure, 0.9, most)

    assert found.accelerators == min(fed, most)
    assert found.limit == ("search" if fed >= most else "storage")
    assert [trial.accelerators for trial in found.trials] == asked
    assert len(asked) == len(set(asked)) <= 13


def test_the_search_reports_when_the_machine_had_no_idle_processor() -> None:
    found = search(lambda count: Trial(count, 1.0 if count < 3 else 0.4, 0.01 if count >= 3 else 0.4), 0.9)

    assert (found.accelerators, found.limit) == (2, "processors")


def test_utilisation_equal_to_the_threshold_counts_as_fed() -> None:
    assert search(lambda count: Trial(count, 0.9, 0.5), 0.9, most=1).accelerators == 1


def test_a_trial_reports_the_idle_share_of_the_machine() -> None:
    def read() -> Reading:
        time.sleep(0.05)
        return _reading((1.0, 80))

    trial = tried(1, QUICK, read)

    assert trial.utilisation == pytest.approx(0.1)
    assert 0.0 <= trial.idle <= 1.0
