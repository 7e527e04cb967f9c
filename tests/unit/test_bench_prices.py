"""Money per epoch, and price lists that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hayloft_bench.errors import PricesError
from hayloft_bench.results.prices import BUILT_IN, PriceList, parse, price_list

GIVEN = {"name": "ours", "currency": "EUR", "per_1000_requests": 0.5, "per_gb": 2, "source": "a contract"}


def test_money_is_requests_and_bytes_at_their_prices() -> None:
    prices = PriceList("ours", "EUR", per_1000_requests=0.5, per_gb=2.0)
    assert prices.epoch(requests=3_000, origin_bytes=2_500_000_000) == pytest.approx(1.5 + 5.0)


def test_a_count_that_has_a_price_and_is_not_known_gives_no_money() -> None:
    prices = PriceList("ours", "EUR", per_1000_requests=0.5, per_gb=0.0)
    assert prices.epoch(requests=None, origin_bytes=5) is None
    assert prices.epoch(requests=1000, origin_bytes=None) == 0.5


def test_the_default_says_that_price_lists_change_and_where_it_is_from() -> None:
    assert price_list().per_1000_requests == 0.0004
    assert "Price lists change" in price_list().wording()
    assert price_list().source in price_list().wording()
    assert all(one.source for one in BUILT_IN.values())


def test_files_are_read_as_toml_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(GIVEN))
    (tmp_path / "list.toml").write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in GIVEN.items()))
    expected = PriceList("ours", "EUR", 0.5, 2.0, "a contract")
    assert price_list(str(tmp_path / "list.json")) == price_list(str(tmp_path / "list.toml")) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"per_gb": -1}, "per_gb: a price of 0 or more is expected, not -1"),
        ({"per_gb": "2"}, "per_gb: a price"),
        ({"per_gb": True}, "per_gb: a price"),
        ({"per_gb": float("nan")}, "per_gb: a price"),
        ({"per_1000_requests": None}, "per_1000_requests: a price"),
        ({"currency": ""}, "currency: text"),
        ({"per_tb": 1}, "per_tb: not a field of a price list"),
        ({"source": 3}, "source: text"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(PricesError) as caught:
        parse({**GIVEN, **changes}, "list.toml")
    assert str(caught.value).startswith(f"list.toml: {said}")


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(PricesError, match="s3-same-region, free"):
        price_list("gcs")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("= nothing")
    with pytest.raises(PricesError, match=r"broken\.toml: cannot be read"):
        price_list(str(path))
    with pytest.raises(PricesError, match=r"none\.json: cannot be read"):
        price_list(str(tmp_path / "none.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(PricesError, match="a table with name"):
        price_list(str(tmp_path / "list.json"))
