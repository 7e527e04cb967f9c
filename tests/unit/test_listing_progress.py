"""How far a listing is: in the status of a repeated call, and in the lines of ``hayloft inspect``."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from csi_driver.model.errors import OperationPending
from csi_driver.rpc import progress
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.wiring import dataset_inspection
from csi_driver.wiring.dataset_inspection import ListingRate, inspect_store
from hayloft_lab.memory_store import MemoryStore
from tests.support.datasets import dataset


class Observer:
    def __init__(self) -> None:
        self.counts: list[int] = []

    def listed(self, count: int) -> None:
        self.counts.append(count)

    def finished(self, file_count: int, total_bytes: int, remarks: object) -> None:
        self.counts.append(-file_count)


def refusal(claims: VolumeClaims) -> str:
    with pytest.raises(OperationPending) as caught, claims.claim("volume-1"):
        pass
    return str(caught.value)


@pytest.mark.promise("S638")
def test_a_repeated_call_is_told_how_far_the_listing_is_in_few_texts() -> None:
    claims, texts = VolumeClaims(), set()
    with claims.claim("volume-1"):
        assert refusal(claims) == "volume-1: another call for this volume is in flight; retry later"
        for count in range(0, 20_000_000, 10_007):
            progress.observer().listed(count)
            texts.add(refusal(claims))
        assert "volume-1: another call for this volume is in flight, which lists its dataset: more than 10000000 " in (
            refusal(claims)
        )
        assert len(texts) < 13
        progress.observer().finished(1, 1, ())
        assert "lists" not in refusal(claims)
    with claims.claim("volume-1"):
        pass


def test_the_observer_of_an_outer_body_sees_it_too() -> None:
    outer, inner = Observer(), Observer()
    with progress.observed_by(outer):
        with progress.observed_by(inner):
            progress.observer().listed(5)
            progress.observer().finished(7, 1, ())
        progress.observer().listed(6)
    assert (outer.counts, inner.counts) == ([5, -7, 6], [5, -7])


@given(st.integers(0, 10**12))
def test_a_rounded_count_is_below_and_at_least_two_fifths(count: int) -> None:
    least = progress.rounded_count(count)
    assert least <= count
    assert least * 5 >= count * 2
    assert str(least).strip("0") in ("", "1", "2", "5")


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now_s = 0.0
    rate = ListingRate(lambda: now_s)
    for second in range(1, 31):
        now_s = second
        found = rate.of(second * 1000 if second <= 10 else 10_000 + (second - 10) * 50)
    assert found == 50


@pytest.mark.promise("S638")
def test_inspect_writes_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dataset_inspection, "LINE_EVERY_S", 0.0)
    store = MemoryStore({f"data/{number}": b"1" for number in range(25)}, page_keys=10)
    text = io.StringIO()
    inspect_store(store, dataset(), Console(file=text, width=80), as_json=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" objects")[0] for line in lines] == [
        f"listing s3://bucket/data/: {count}" for count in (10, 20, 25)
    ]
    assert all(line.endswith(" a second") for line in lines)
    assert text.getvalue().startswith("{")
