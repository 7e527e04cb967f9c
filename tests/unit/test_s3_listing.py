"""The XML of listings: the usual form is scanned, any other form is parsed, and both give the same page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import SIZE_UNKNOWN, TIME_UNKNOWN_NS, ObjectPage
from csi_driver.objects.listing_pages import ListingProgress
from csi_driver.objects.s3.listing import parse_listing
from csi_driver.objects.s3.regular_pages import regular_entries
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


_TEXTS = st.sampled_from(["7", "", "abc", "a%20b+c", "a&amp;b", "&#38;", "é", "x]]x", "2026-01-02T03:04:05.678Z", "-1"])
_ETAG_TEXTS = st.sampled_from(
    ["&quot;abc&quot;", "&quot;abc-2&quot;", '"abc"', "W/&quot;abc&quot;", "", "&quot;", "abc"]
)
_ELEMENTS = st.one_of(
    st.tuples(st.sampled_from(["Key", "Size", "LastModified", "StorageClass", "ChecksumType"]), _TEXTS),
    st.just(("StorageClass", "GLACIER")),
    st.just(("Owner", "<ID>x</ID><DisplayName>y</DisplayName>")),
    st.just(("RestoreStatus", "<RestoreExpiryDate>2026</RestoreExpiryDate>")),
)


@st.composite
def listings(draw: st.DrawFn) -> str:
    """Entries that mostly have the same elements in the same order, with something between them now and then."""
    more = draw(st.lists(_ELEMENTS, max_size=2, unique_by=lambda element: element[0]))
    more = [element for element in more if element[0] not in ("Key", "Size", "LastModified")]
    order = draw(st.permutations(["Key", "Size", "LastModified", "ETag", *(name for name, _ in more)]))
    odd = draw(st.booleans())
    entries = []
    for number in range(draw(st.integers(1, 4))):
        values = {"Key": f"k{number}", "Size": "7", "LastModified": "2026-01-02T03:04:05Z", **dict(more)}
        values["ETag"] = draw(_ETAG_TEXTS) if odd else "&quot;abc&quot;"
        if odd:
            values |= {name: draw(_TEXTS) for name in draw(st.sets(st.sampled_from(["Key", "Size", "LastModified"])))}
        missing = draw(st.sampled_from([None, *order])) if odd and draw(st.booleans()) else None
        body = "".join(f"<{name}>{values[name]}</{name}>" for name in order if name != missing)
        between = draw(st.sampled_from(["", "", "", "\n", "<!-- <Contents><Key>c</Key></Contents> -->", "<Prefix/>"]))
        entries.append(f"<Contents>{body}</Contents>{between}")
    return "".join(entries)


@pytest.mark.promise("S692")
@given(listings(), st.sampled_from(["", "<EncodingType>url</EncodingType>"]))
def test_scanner_and_parser_agree_on_any_listing(contents: str, kind: str) -> None:
    more = f"{kind}<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    scanned, parsed = (parse_listing(document(contents, more, end), LOCATION) for end in ("", "\n"))
    for name in ("keys", "sizes_bytes", "etags", "mtimes_ns", "archived"):
        assert list(getattr(scanned.page, name)) == list(getattr(parsed.page, name)), name
    assert scanned.next_token == parsed.next_token == "t"


@pytest.mark.promise("S692")
@pytest.mark.parametrize(
    "contents",
    [
        entry("a") + "<!-- " + entry("b") + " -->" + entry("c"),
        entry("a") + entry("b", etag="&quot;abc") + entry("c", etag="&quot;"),
        entry("a").replace("STANDARD", "GLACIER") + entry("b"),
        entry("a") + entry("b").replace("<Contents>", '<Contents xmlns="x">'),
    ],
)
def test_a_page_that_looks_regular_and_is_not_is_read_otherwise(contents: str) -> None:
    assert regular_entries(document(contents).decode()) is None or "GLACIER" in contents


def test_a_regular_page_is_read_by_one_expression() -> None:
    found = regular_entries(document(entry("a") + entry("b", "&quot;abc-2&quot;")).decode())
    assert found is not None
    assert (found.keys, found.etags, found.storage_classes) == (["a", "b"], ["abc", "abc-2"], {"STANDARD"})


@pytest.mark.parametrize("end", ["", "\n"], ids=["scanned", "parsed"])
def test_encoded_keys_are_decoded_exactly_once(end: str) -> None:
    more = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
    contents = "".join(map(entry, ("a+b", "c%2Bd", "e%2520f", "g%0Ah", "%FF")))
    page, _ = parse_listing(document(contents, more, end), LOCATION)
    assert page.keys == ["a b", "c+d", "e%20f", "g\nh", "\udcff"]


@pytest.mark.promise("S190")
@pytest.mark.parametrize("end", ["", "\n"], ids=["scanned", "parsed"])
def test_keys_of_a_store_that_does_not_encode_them_are_exact(end: str) -> None:
    written = "a&#x1;b", "a&#x85;&#133;", "a\rb&#13;", "a\x02\x7f", "&#38;amp;&amp;copy;"
    page, _ = parse_listing(document("".join(map(entry, written)), end=end), LOCATION)
    assert page.keys == ["a\x01b", "a\x85\x85", "a\rb\r", "a\x02\x7f", "&amp;&copy;"]
    bad = document(entry("no-utf-8"), end=end).replace(b"no-utf-8", b"\xff")
    assert parse_listing(bad, LOCATION).page.keys == ["\udcff"]


@pytest.mark.promise("S190")
@pytest.mark.parametrize("end", ["", "\n"], ids=["scanned", "parsed"])
def test_references_in_keys_of_a_store_that_says_that_it_encodes_them_are_read(end: str) -> None:
    body = document(entry("&lt;angle&gt;&amp;"), "<EncodingType>url</EncodingType>", end)
    assert parse_listing(body, LOCATION).page.keys == ["<angle>&"]


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
        (document(entry("a"), "<IsTruncated>true</IsTruncated>"), "without a continuation token"),
        (b"\xff\xfe", "no valid XML"),
    ],
)
def test_an_invalid_listing_is_rejected(body: bytes, reason: str) -> None:
    with pytest.raises(StoreProtocolError, match=reason):
        parse_listing(body, LOCATION)


@pytest.mark.promise("S214")
@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (entry("odd").replace("<Size>7</Size>", ""), ("odd", SIZE_UNKNOWN)),
        (entry("odd").replace("<Size>7</Size>", "<Size>many</Size>"), ("odd", SIZE_UNKNOWN)),
        (entry("odd").replace("<Size>7</Size>", f"<Size>{'9' * 5000}</Size>"), ("odd", SIZE_UNKNOWN)),
        (entry("odd", time="yesterday"), ("odd", TIME_UNKNOWN_NS)),
        (entry("odd", time=""), ("odd", TIME_UNKNOWN_NS)),
        (entry("odd", time="+99999-01-01T00:00:00Z"), ("odd", TIME_UNKNOWN_NS)),
        (entry("odd", time="2026-13-45T99:99:99Z"), ("odd", None)),
        (entry("odd", time="2026-01-02T05:04:05+02:00"), ("odd", 1_767_323_045 * 10**9)),
        (entry("odd", time="0001-01-01T00:00:00Z"), ("odd", -62_135_596_800 * 10**9)),
        (entry("odd", time="2500-01-01T00:00:00Z"), ("odd", 16_725_225_600 * 10**9)),
        (entry("odd").replace("<Key>odd</Key>", ""), ("", 7)),
        (entry("o&#1;dd"), ("o\x01dd", 7)),
        (entry("o&#xD800;dd"), ("o\ud800dd", 7)),
    ],
)
def test_an_entry_that_is_odd_is_read_as_far_as_possible_and_no_other_suffers(
    odd: str, expected: tuple[str, int | None]
) -> None:
    page, _ = parse_listing(document(entry("a") + odd + entry("z")), LOCATION)
    assert (page.keys[0], page.keys[2]) == ("a", "z")
    assert (page.sizes_bytes[0], page.sizes_bytes[2]) == (7, 7)
    key, number = expected
    assert page.keys[1] == key
    assert number is None or number in (page.sizes_bytes[1], page.mtimes_ns[1])


@pytest.mark.promise("S153")
def test_a_listing_without_an_end_is_noticed() -> None:
    page, empty = ObjectPage(["a"], [1], [None], [0]), ObjectPage([], [], [], [])
    progress = ListingProgress("bucket")
    progress.check(page, "first")
    progress.check(empty, "second")
    with pytest.raises(StoreProtocolError, match="continuation token again"):
        progress.check(empty, "first")
    progress = ListingProgress("bucket")
    for number in range(1000):
        progress.check(empty, str(number))
    progress.check(page, "a")
    for number in range(1000, 2000):
        progress.check(empty, str(number))
    with pytest.raises(StoreProtocolError, match="without an object"):
        progress.check(empty, "b")


@pytest.mark.promise("S200")
def test_a_listing_of_the_same_keys_under_new_tokens_is_noticed() -> None:
    progress = ListingProgress("bucket")
    progress.check(_page("a", "b"), "1")
    progress.check(_page("b", "c"), "2")  # it begins with the last key again, and has a new one
    with pytest.raises(StoreProtocolError, match="same keys again"):
        progress.check(_page("a", "b"), "3")
    progress.check(_page("c"), None)  # it ends here


def _page(*keys: str) -> ObjectPage:
    return ObjectPage(keys, [1] * len(keys), [None] * len(keys), [0] * len(keys))
