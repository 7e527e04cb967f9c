"""The schedule against targets that are not what they claim: each is detected, and the others continue."""

from __future__ import annotations

from pathlib import Path

import pytest

from hayloft_bench.run import accelerator, schedule
from hayloft_bench.run import cache_states as states
from hayloft_bench.run import measurement as measuring
from tests.support.bench_targets import (
    Bench,
    Crashing,
    Forgetful,
    Honest,
    Lying,
    LyingOnce,
    NotCold,
    NotStarting,
    OtherDataset,
)


@pytest.fixture(autouse=True)
def _quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine keeps its page cache, because other tests run on it, too; and nothing is repeated for precision."""
    monkeypatch.setattr(states, "may_drop_page_cache", lambda: False)
    monkeypatch.setattr(states, "write_out", lambda directory: None)
    monkeypatch.setattr(schedule, "LEAST_HOT_S", 0.0)
    monkeypatch.setattr(measuring, "SETTLE_S", 0.0)
    monkeypatch.setattr(accelerator, "LEAST_COMPUTE_S", 0.0)
    monkeypatch.setattr(accelerator, "LEAST_BATCHES", 1)


def test_a_target_that_is_what_it_claims_has_valid_figures_in_all_phases(tmp_path: Path) -> None:
    found = Bench(tmp_path, [Honest], ("cold", "warm", "hot", "small-cache")).run()
    assert {phase: row.reason for (_, phase), row in found.items()} == dict.fromkeys(
        ("cold", "warm", "hot", "small-cache"), ""
    )
    cold, hot = found["honest", "cold"], found["honest", "hot"]
    assert cold.valid
    assert cold.samples == 64
    assert (cold.read_amplification, cold.hit_ratio) == (1.0, 0.0)
    assert (hot.origin_bytes, hot.hit_ratio) == (0, 1.0)
    assert hot.samples_per_s is not None
    assert hot.batch_p99_s is not None
    assert 0 < (cold.sample_p50_s or 0) <= (cold.sample_p99_s or 0)


def test_a_target_that_is_not_cold_is_detected_by_the_bytes_from_the_store(tmp_path: Path) -> None:
    found = Bench(tmp_path, [NotCold, Honest], ("cold",)).run()
    row = found["not-cold", "cold"]
    assert not row.valid
    assert row.reason.startswith("not cold: the store sent 0.0 MB of")
    assert found["honest", "cold"].valid


def test_a_target_that_fetches_again_is_neither_warm_nor_hot(tmp_path: Path) -> None:
    found = Bench(tmp_path, [Forgetful], ("warm", "hot")).run()
    assert not found["forgetful", "warm"].valid
    assert not found["forgetful", "hot"].valid
    assert "not hot: the store sent" in found["forgetful", "hot"].reason


def test_wrong_bytes_are_found_while_they_are_read(tmp_path: Path) -> None:
    found = Bench(tmp_path, [Lying, Honest], ("cold",), verify=False).run()
    row = found["lying", "cold"]
    assert not row.valid
    assert row.reason.startswith("wrong bytes: class-")
    assert found["honest", "cold"].valid


def test_one_wrong_bit_is_found_by_comparing_every_byte_and_revokes_all_figures(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [LyingOnce, Honest], ("cold",))
    found = bench.run()
    assert "wrong bytes: class-" in found["lying-once", "cold"].reason
    assert list(bench.revoked) == ["lying-once"]
    assert found["honest", "cold"].valid


def test_another_dataset_is_reported_with_missing_and_additional_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [OtherDataset, Honest], ("warm", "hot"))
    found = bench.run()
    row = found["other", "warm"]
    assert not row.valid
    assert row.reason.startswith("ran on another dataset: 1 files are missing, such as class-")
    assert "stranger.bin" in row.reason
    assert not found["other", "hot"].valid
    assert found["honest", "hot"].valid


def test_a_target_that_crashes_is_out_with_the_end_of_its_log_and_the_others_continue(tmp_path: Path) -> None:
    found = Bench(tmp_path, [Crashing, Honest], ("cold", "hot")).run()
    row = found["crashing", "cold"]
    assert not row.valid
    assert "FileNotFoundError" in row.reason
    assert row.reason.endswith("the end of its log: panic: out of cheese")
    assert found["crashing", "hot"].samples is None
    assert not found["crashing", "hot"].valid
    assert found["honest", "hot"].valid


def test_a_target_that_does_not_start_is_out_with_its_reason(tmp_path: Path) -> None:
    found = Bench(tmp_path, [NotStarting, Honest], ("cold", "warm")).run()
    assert found["not-starting", "cold"].reason == "not-starting did not mount: no such luck"
    assert not found["not-starting", "warm"].valid
    assert found["honest", "warm"].valid


def test_a_continuous_run_takes_a_target_from_cold_to_warm_without_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [Honest, Lying], ("cold", "warm"), continuous=True)
    found = bench.run()
    assert [(row.phase, row.epoch, row.reason) for row in bench.rows if row.target == "honest"] == [
        ("cold", 1, ""),
        ("warm", 1, ""),
    ]
    assert found["honest", "warm"].origin_bytes == 0
    assert not found["lying", "warm"].valid
    assert list(bench.revoked) == ["lying"]


def test_targets_take_turns_and_the_order_shifts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [Honest, NotCold], ("cold",))
    first, second = ([target.name for target in bench.schedule.order(["cold"], number)] for number in (0, 1))
    assert (first, second) == (["honest", "not-cold"], ["not-cold", "honest"])


def test_an_emulated_accelerator_makes_a_row_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [Honest], ("cold",), accelerators=1)
    bench.run()
    emulated = [row for row in bench.rows if row.accelerators is not None]
    assert [(row.accelerators, row.accelerator) for row in emulated] == [(1, "resnet50-h100")]
    assert 0 < (emulated[0].utilisation or 0) <= 1
