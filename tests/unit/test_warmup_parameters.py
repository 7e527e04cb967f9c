"""The parameters of a warmup: what is accepted, and what a refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.errors import InvalidParameter
from csi_driver.volumes.parameter_text import (
    LEAST_BANDWIDTH_BYTES,
    MOST_BANDWIDTH_BYTES,
    bandwidth,
    bandwidth_text,
    read_bandwidth,
)
from csi_driver.volumes.parameters import VolumeParameters, parse_changes


def parse(**changes: str) -> VolumeParameters:
    return VolumeParameters.parse({"url": "s3://bucket/train", **changes})


def test_without_warmup_parameters_there_is_no_warmup() -> None:
    assert parse().warmup == "none"
    assert parse().to_context() == {"url": "s3://bucket/train/"}


def test_every_warmup_parameter_survives_a_round_trip_through_text() -> None:
    given_text = {
        "warmup": "wait",
        "warmupInclude": "shard-0*,a/",
        "warmupBandwidth": "2Gbit/s",
        "warmupConcurrency": "8",
    }
    parameters = parse(**given_text)
    assert (parameters.warmup, parameters.warmup_include) == ("wait", ("shard-0*", "a/"))
    assert (parameters.warmup_bandwidth_bytes, parameters.warmup_concurrency) == (250_000_000, 8)
    assert VolumeParameters.parse(parameters.to_context()) == parameters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200MiB/s", 200 << 20),
        ("1.5 GiB/s", 3 << 29),
        ("100kB/s", 100_000),
        ("65536B/s", 65_536),
        ("10Mbit/s", 1_250_000),
        ("8Tbit/s", 10**12),
        ("0", 0),
    ],
)
def test_rates_are_bytes_or_bits_a_second(text: str, expected: int) -> None:
    assert bandwidth("warmupBandwidth", text) == expected


@pytest.mark.parametrize(
    "text", ["200MiB", "fast", "-1MiB/s", "1B/s", "9Tbit/s", "0B/s", "1MB", "1mbit/s", "1 /s", "5"]
)
def test_an_invalid_rate_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^warmupBandwidth: .*200MiB/s or 2Gbit/s"):
        parse(warmupBandwidth=text)


@given(st.integers(LEAST_BANDWIDTH_BYTES, MOST_BANDWIDTH_BYTES))
def test_rates_survive_a_round_trip_through_text(bytes_per_second: int) -> None:
    assert bandwidth("warmupBandwidth", bandwidth_text(bytes_per_second)) == bytes_per_second


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("warmup", "yes", "none or background or wait"),
        ("warmup", "Wait", "Did you mean wait"),
        ("warmupConcurrency", "0", "1 to 64"),
        ("warmupConcurrency", "65", "1 to 64"),
        ("warmupConcurrency", "four", "1 to 64"),
        ("warmupInclude", "[", "warmupInclude: "),
    ],
)
def test_a_refusal_names_the_allowed_values(name: str, value: str, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        parse(**{name: value})


@pytest.mark.promise("S523")
@pytest.mark.parametrize("text", ["64KiB/s", "1023KiB/s", "1B/s", "0B/s", "2Tbit", "fast", "-1MiB/s", "9Tbit/s"])
def test_a_limit_of_readers_below_one_request_in_a_second_is_refused_by_name(text: str) -> None:
    for refused in (
        lambda: parse(bandwidth=text),
        lambda: parse_changes({"bandwidth": text}),
        lambda: read_bandwidth("bandwidth", text),
    ):
        with pytest.raises(InvalidParameter, match=r"^bandwidth: .*from 1MiB/s \(one request in a second\)"):
            refused()


@pytest.mark.promise("S523")
def test_a_limit_of_readers_survives_a_round_trip_and_may_be_changed() -> None:
    parameters = parse(bandwidth="2Gbit/s")
    assert parameters.bandwidth_bytes == 250_000_000
    assert VolumeParameters.parse(parameters.to_context()) == parameters
    assert parse_changes({"bandwidth": "1MiB/s", "warmup": "none"}) == {
        "bandwidth": bandwidth_text(1 << 20),
        "warmup": "none",
    }
    assert parse(bandwidth="0").bandwidth_bytes == 0
