"""How the figures of the comparison become ratios."""

from __future__ import annotations

import json

import pytest

from benchmarks.cases import AIMS, CASES, HAYLOFT, TARGETS, Aim, Figure, median, ratios
from benchmarks.compare import document, parse_arguments
from benchmarks.peers import PEERS


def _figure(case: str, target: str, run: int, seconds: float, origin_bytes: int = 0) -> Figure:
    return Figure(case, target, run, 100, 100, 1, seconds, 1.0, 2.0, origin_bytes)


def test_a_ratio_compares_what_was_measured_in_the_same_run() -> None:
    figures = [
        _figure("cold-long", HAYLOFT, 0, 1.0),
        _figure("cold-long", "obstore", 0, 0.5),
        _figure("cold-long", HAYLOFT, 1, 10.0),
        _figure("cold-long", "obstore", 1, 10.0),
    ]
    assert ratios(figures, Aim("cold-long", "obstore", 0.75)) == [0.5, 1.0]


def test_without_the_other_target_there_is_no_ratio() -> None:
    assert ratios([_figure("cold-long", HAYLOFT, 0, 1.0)], Aim("cold-long", "rclone", 1.0)) == []


def test_bytes_from_the_store_are_compared_with_the_dataset_not_with_the_bytes_read() -> None:
    figure = Figure("once-8", HAYLOFT, 0, 100, 800, 8, 1.0, 1.0, 1.0, 102)
    aim = Aim("once-8", None, 1.02, at_least=False)
    assert ratios([figure], aim) == [1.02]
    assert aim.holds(1.02)
    assert not aim.holds(1.03)


def test_aims_name_cases_and_targets_that_are_measured() -> None:
    for aim in AIMS:
        assert HAYLOFT in CASES[aim.case].targets
        assert aim.other is None or aim.other in CASES[aim.case].targets


def test_every_setting_of_a_peer_has_its_reason() -> None:
    assert set(PEERS) < set(TARGETS)
    for peer in PEERS.values():
        assert all(flag.startswith("--") and reason for flag, reason in peer.settings.items())


def test_the_document_has_every_ratio_with_its_median() -> None:
    figures = [_figure("warm-long", target, run, 1.0 + run) for target in (HAYLOFT, "plain") for run in range(3)]
    written = json.loads(json.dumps(document(figures, 1.0)))
    assert [(ratio["case"], ratio["median"], ratio["holds"]) for ratio in written["ratios"]] == [
        ("warm-long", 1.0, True)
    ]
    assert len(written["figures"]) == 6
    assert median([3.0, 1.0, 2.0]) == 2.0


def test_an_unknown_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--targets", "nobody"])
    assert "nobody" in capsys.readouterr().err
