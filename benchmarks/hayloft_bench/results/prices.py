"""What an epoch costs at the store: requests and bytes that leave it, at a price list.

Price lists change, differ between regions and have tiers and discounts; the built-in one is an example. Bring your own
as a TOML or JSON file::

    name = "our contract"
    currency = "EUR"
    per_1000_requests = 0.0004
    per_gb = 0.01
    source = "contract of 2026-01"
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from hayloft_bench.errors import PricesError

BYTES_PER_GB = 1e9


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices in ``currency``: of a thousand GET requests, and of 1e9 bytes that leave the store."""

    name: str
    currency: str
    per_1000_requests: float
    per_gb: float
    source: str = ""
    """Where the prices are from, and of when."""

    def epoch(self, *, requests: int | None, origin_bytes: int | None) -> float | None:
        """Money for one epoch. None when a count that has a price is not known: half a bill would look complete."""
        if (self.per_1000_requests and requests is None) or (self.per_gb and origin_bytes is None):
            return None
        return (requests or 0) / 1000 * self.per_1000_requests + (origin_bytes or 0) / BYTES_PER_GB * self.per_gb

    def wording(self) -> str:
        """For notes and reports."""
        prices = f"{self.per_1000_requests:g} {self.currency} per 1,000 requests, {self.per_gb:g} per GB"
        source = f" ({self.source})" if self.source else ""
        return f"Money at the price list {self.name}: {prices}{source}. Price lists change: check yours."


BUILT_IN = {
    "s3-same-region": PriceList(
        name="s3-same-region",
        currency="USD",
        per_1000_requests=0.0004,
        per_gb=0.0,
        source="an example: GET of S3 Standard in US East; transfer to EC2 in the same region is free",
    ),
    "free": PriceList("free", "USD", 0.0, 0.0, "a store of your own"),
}
DEFAULT = "s3-same-region"


def price_list(given: str | None = None) -> PriceList:
    """A built-in list by its name, or one from a ``.toml`` or ``.json`` file. Raises PricesError."""
    given = DEFAULT if given is None else given
    if given in BUILT_IN:
        return BUILT_IN[given]
    path = Path(given)
    if path.suffix not in (".toml", ".json"):
        raise PricesError(f"{given!r}: no price list of that name ({', '.join(BUILT_IN)}), and no .toml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise PricesError(f"{path}: cannot be read: {error}") from error
    return parse(document, str(path))


def parse(document: object, where: str) -> PriceList:
    """A price list from a file's content. Raises PricesError, which names the field."""
    if not isinstance(document, Mapping):
        raise PricesError(f"{where}: a table with name, currency, per_1000_requests and per_gb is expected")
    known = [field.name for field in fields(PriceList)]
    unknown = [name for name in document if name not in known]
    if unknown:
        raise PricesError(f"{where}: {unknown[0]}: not a field of a price list; there are {', '.join(known)}")
    source = document.get("source", "")
    if not isinstance(source, str):
        raise PricesError(f"{where}: source: text is expected")
    return PriceList(
        name=_word(document, "name", where),
        currency=_word(document, "currency", where),
        per_1000_requests=_price(document, "per_1000_requests", where),
        per_gb=_price(document, "per_gb", where),
        source=source,
    )


def _word(document: Mapping[str, object], name: str, where: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise PricesError(f"{where}: {name}: text is expected")
    return value


def _price(document: Mapping[str, object], name: str, where: str) -> float:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise PricesError(f"{where}: {name}: a price of 0 or more is expected, not {value!r}")
    return float(value)
