"""Pages of listings of Google and Azure: exact keys, and whatever else a server may send."""

from __future__ import annotations

import json
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import SIZE_UNKNOWN, TIME_UNKNOWN_NS
from csi_driver.objects.azure.blob_listing import parse_blobs
from csi_driver.objects.google.json_listing import parse_object, parse_page
from csi_driver.objects.http.exact_xml import exact_text, parse_exact
from csi_driver.objects.store_location import StoreLocation

HERE = StoreLocation("http://store", "data")
TIME_NS = 1_767_323_045 * 10**9


def google_page(*items: object, **more: object) -> bytes:
    return json.dumps({"kind": "storage#objects", "items": list(items), **more}).encode()


def azure_page(*blobs: str, marker: str = "") -> bytes:
    inner = "".join(f"<Blob>{blob}</Blob>" for blob in blobs)
    return (
        f'\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="x" ContainerName="data">'
        f"<Blobs>{inner}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
    ).encode("utf-8", "surrogateescape")


def blob(name: str, *, properties: str = "", more: str = "") -> str:
    known = "<Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified><Etag>0x8D</Etag>"
    return f"<Name>{name}</Name><Properties>{known}{properties}</Properties>{more}"


def test_a_page_of_google_has_generations_and_the_token_of_the_next() -> None:
    item = {"name": "a//b\x01\t", "size": "12", "generation": "17", "updated": "2026-01-02T03:04:05.678Z"}
    page, token = parse_page(google_page(item, nextPageToken="t"), HERE)
    assert (page.keys, page.sizes_bytes, page.etags) == (["a//b\x01\t"], [12], ["17"])
    assert page.mtimes_ns == [TIME_NS + 678_000_000]
    assert token == "t"
    assert parse_page(b'{"kind": "storage#objects"}', HERE).next_token is None
    with pytest.raises(StoreProtocolError, match="not a listing"):
        parse_page(b"{}", HERE)


def test_a_page_of_azure_has_etags_and_the_marker_of_the_next() -> None:
    size = "<Content-Length>12</Content-Length>"
    page, token = parse_blobs(azure_page(blob("a//b", properties=size), marker="a&amp;b"), HERE)
    assert (page.keys, page.sizes_bytes, page.etags) == (["a//b"], [12], ["0x8D"])
    assert page.mtimes_ns == [TIME_NS]
    assert token == "a&b"


@pytest.mark.promise("S190")
@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\rb", "a\rb"),
        ("a&#xD;b&#13;c&#x41;", "a\rb\rcA"),
        ("a\x01b", "a\x01b"),
        ("a&#x1;b&#31;", "a\x01b\x1f"),
        ("a&#x85;\x85", "a\x85\x85"),
        ("\ufffe\uffff&#xFFFE;", "\ufffe\uffff\ufffe"),
        ("&lt;&amp;&gt;&quot;&#60;&#38;#1;", '<&>"<&#1;'),
        ("\ue00041\ue001", "\ue00041\ue001"),
        ("%41\udcff", "%41\udcff"),
    ],
)
def test_a_key_in_xml_is_exact_however_the_store_writes_it(written: str, key: str) -> None:
    assert parse_blobs(azure_page(blob(written)), HERE).page.keys == [key]


def test_a_name_that_azure_escapes_is_unescaped() -> None:
    page = azure_page(blob("%41").replace("<Name>", '<Name Encoded="true">'), blob("%41"))
    assert parse_blobs(page, HERE).page.keys == ["A", "%41"]


@pytest.mark.promise("S191")
@pytest.mark.parametrize(
    ("properties", "more", "is_directory"),
    [
        ("<ResourceType>directory</ResourceType>", "", True),
        ("<ResourceType>file</ResourceType>", "", False),
        ("", "<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>", True),
        ("", "<Metadata><Hdi_isFolder>True</Hdi_isFolder></Metadata>", True),
        ("", "<Metadata><hdi_isfolder>false</hdi_isfolder></Metadata>", False),
        ("", "<Metadata><Name>other</Name></Metadata>", False),
    ],
)
def test_a_directory_of_azure_is_a_marker(properties: str, more: str, is_directory: bool) -> None:
    page = parse_blobs(azure_page(blob("dir", properties=properties, more=more)), HERE).page
    assert page.keys == ["dir/" if is_directory else "dir"]


@pytest.mark.promise("S215")
def test_blobs_in_the_archive_of_azure_are_noted() -> None:
    archived, cool = (f"<AccessTier>{tier}</AccessTier>" for tier in ("Archive", "Cool"))
    page = parse_blobs(azure_page(blob("a", properties=archived), blob("b", properties=cool)), HERE).page
    assert page.archived == ["a"]


def test_an_entry_that_cannot_be_read_leaves_the_others() -> None:
    good = {"name": "good", "size": "1", "generation": "2", "updated": "2026-01-02T03:04:05Z"}
    odd = {"name": "odd", "size": "x", "generation": 5, "updated": "yesterday"}
    page = parse_page(google_page(odd, 7, None, {}, {"name": ""}, good), HERE).page
    assert (page.keys, page.sizes_bytes) == (["odd", "good"], [SIZE_UNKNOWN, 1])
    assert (page.etags, page.mtimes_ns) == ([None, "2"], [TIME_UNKNOWN_NS, TIME_NS])
    unreadable = "<Name>odd</Name><Properties><Content-Length>x</Content-Length></Properties>"
    page = parse_blobs(azure_page(unreadable, "", "<Name/>", blob("good")), HERE).page
    assert (page.keys, page.sizes_bytes) == (["odd", "good"], [SIZE_UNKNOWN, 0])
    assert (page.etags, page.mtimes_ns) == ([None, "0x8D"], [TIME_UNKNOWN_NS, TIME_NS])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
ITEMS = st.dictionaries(st.sampled_from(["name", "size", "generation", "updated"]), JSON)
PAGES = st.fixed_dictionaries({}, optional={"items": st.lists(ITEMS) | JSON, "nextPageToken": JSON})


@given(body=st.binary() | PAGES.map(lambda page: json.dumps(page).encode()))
def test_no_answer_of_google_is_an_unexpected_error(body: bytes) -> None:
    for parse in (lambda: parse_page(body, HERE), lambda: parse_object(body, "key", HERE)):
        try:
            parse()
        except StoreProtocolError:
            continue


MARKUP = st.sampled_from(["<", ">", "&", "&#", "&#x", ";", "<Name>", "</Name>", "<![CDATA[", "]]>", "<!--", "\0"])


NAMES = st.lists(MARKUP | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)).map("".join)


@given(body=st.binary() | NAMES.map(lambda name: azure_page(blob(name))))
def test_no_answer_of_azure_is_an_unexpected_error(body: bytes) -> None:
    try:
        parse_blobs(body, HERE)
    except StoreProtocolError:
        return


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_text_survives_xml(text: str) -> None:
    root = parse_exact(f"<a><b>{escape(text)}</b></a>".encode())
    assert exact_text(root.findtext("b")) == text
