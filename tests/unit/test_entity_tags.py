"""ETags, as they are sent and as they are compared."""

from __future__ import annotations

from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.entity_tags import (
    if_match_header,
    is_strong,
    plain_etag,
    plain_etags_of_xml,
    satisfies,
    weakly_equal,
)


@pytest.mark.parametrize(
    ("sent", "plain"),
    [
        ('"x"', "x"),
        ("x", "x"),
        (' "x" ', "x"),
        ('W/"x"', "W/x"),
        ('w/"x"', "W/x"),
        ('"a-b/c=="', "a-b/c=="),
        ('"W/x"', "W/x"),
        ('""', None),
        ('W/""', None),
        ("", None),
        (None, None),
        ('"a"b"', None),
        ('"a\x00b"', None),
        ('"a\r\nX: y"', None),
        ('"\u00e9"', None),
        ('"\ud800"', None),
        ('"' + "x" * 2000 + '"', None),
    ],
)
def test_an_etag_has_no_quotes_and_can_be_sent_back(sent: str | None, plain: str | None) -> None:
    assert plain_etag(sent) == plain


@given(st.lists(st.text(max_size=40)))
def test_a_page_of_etags_is_parsed_as_each_of_them(texts: list[str]) -> None:
    sent = [escape(f'"{text}"', {'"': "&quot;"}) for text in texts]
    assert plain_etags_of_xml(sent) == [plain_etag(f'"{text}"') for text in texts]


def test_regular_pages_and_odd_ones_are_parsed_alike() -> None:
    assert plain_etags_of_xml(["&quot;a1&quot;", "&#34;b-2&#34;", "", '"c"']) == ["a1", "b-2", None, "c"]
    assert plain_etags_of_xml(["&quot;a1&quot;", "W/&quot;b&quot;", ""]) == ["a1", "W/b", None]
    assert plain_etags_of_xml(["x" * 5000, "a"]) == [None, "a"]


@pytest.mark.promise("S211")
def test_comparisons_are_those_of_rfc_9110() -> None:
    for one, other, equal in (
        ("W/1", "W/1", True),
        ("W/1", "W/2", False),
        ("W/1", "1", True),
        ("1", "1", True),
        (None, None, False),
        ("", "", False),
        ("1", None, False),
    ):
        assert weakly_equal(one, other) == equal
    assert [is_strong(etag) for etag in ("1", "W/1", "", None)] == [True, False, False, False]
    for answered, if_match, equal in (
        ("1", "1", True),
        ("W/1", "1", False),
        ("W/1", "W/1", True),
        ("1", "W/1", True),
        ("2", "W/1", False),
        (None, "1", False),
        (None, "W/1", False),
    ):
        assert satisfies(answered, if_match) == equal
    assert [if_match_header(etag) for etag in ("1", "W/1", "", None)] == ['"1"', None, None, None]
