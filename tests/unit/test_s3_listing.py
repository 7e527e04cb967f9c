"""The XML of listings: the usual form is scanned, any other form is parsed, and both give the same page."""

from __future__ import annotations

import pytest

from csi_driver.model.errors import StoreProtocolError
from csi_driver.objects.s3.listing import parse_listing
from csi_driver.objects.store_location import StoreLocation

LOCATION = StoreLocation("http://store", "bucket")


def document(contents: str, more: str = "<IsTruncated>false</IsTruncated>", end: str = "") -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name>{more}{contents}</ListBucketResult>{end}"
    ).encode()


def entry(key: str, etag: str = "&quot;abc&quot;", time: str = "2026-01-02T03:04:05.678Z") -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{etag}</ETag><Size>7</Size>"
        "<Owner><ID>x</ID><DisplayName>y</DisplayName></Owner><StorageClass>STANDARD</StorageClass></Contents>"
    )


@pytest.mark.parametrize("end", ["", "\n"], ids=["scanned", "parsed"])
def test_scanner_and_parser_agree(end: str) -> None:
    contents = entry("a&amp;b") + entry("c", '"plain-2"') + entry("d", "", "2026-01-02T03:04:05Z")
    page, token = parse_listing(document(contents, end=end), LOCATION)
    assert page.keys == ["a&b", "c", "d"]
    assert page.sizes_bytes == [7, 7, 7]
    assert page.etags == ["abc", "plain-2", None]
    assert page.mtimes_ns == [1767323045_678000000, 1767323045_678000000, 1767323045_000000000]
    assert token is None


@pytest.mark.parametrize("end", ["", "\n"], ids=["scanned", "parsed"])
def test_encoded_keys_are_decoded_exactly_once(end: str) -> None:
    more = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
    contents = "".join(map(entry, ("a+b", "c%2Bd", "e%2520f", "g%0Ah", "%FF")))
    page, _ = parse_listing(document(contents, more, end), LOCATION)
    assert page.keys == ["a b", "c+d", "e%20f", "g\nh", "\udcff"]


@pytest.mark.parametrize("end", ["", "\n"], ids=["scanned", "parsed"])
def test_the_continuation_token_is_returned_unchanged(end: str) -> None:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>1/a&amp;b==</NextContinuationToken>"
    assert parse_listing(document(entry("a"), more, end), LOCATION)[1] == "1/a&b=="


def test_an_entry_without_etag_does_not_shift_the_columns() -> None:
    without = entry("a").replace("<ETag>&quot;abc&quot;</ETag>", "")
    page, _ = parse_listing(document(without + entry("b", "&quot;of-b&quot;")), LOCATION)
    assert (page.keys, page.etags) == (["a", "b"], [None, "of-b"])


def test_an_entry_in_a_comment_is_ignored() -> None:
    page, _ = parse_listing(document(f"<!--{entry('hidden')}-->{entry('a')}"), LOCATION)
    assert page.keys == ["a"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no valid XML"),
        (b"<html><body>hello</body></html>", "is this an S3 endpoint"),
        (document(entry("a"))[:-10], "no valid XML"),
        (document(entry("a").replace("<Size>7</Size>", "")), "cannot be read"),
        (document(entry("a").replace("<Size>7</Size>", "<Size>many</Size>")), "cannot be read"),
        (document(entry("a", time="yesterday")), "cannot be read"),
        (document(entry("a"), "<IsTruncated>true</IsTruncated>"), "without a continuation token"),
        (b"\xff\xfe", "cannot be read|no valid XML"),
    ],
)
def test_an_invalid_listing_is_rejected(body: bytes, reason: str) -> None:
    with pytest.raises(StoreProtocolError, match=reason):
        parse_listing(body, LOCATION)
