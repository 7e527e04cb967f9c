"""Index pages, WebDAV and links, whatever a server sends."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import InvalidParameter, StoreProtocolError
from csi_driver.objects.web.index_pages import parse_index
from csi_driver.objects.web.web_client import Page
from csi_driver.objects.web.web_urls import WebLocation, below
from csi_driver.objects.web.web_versions import PinnedAnswers, condition, etag_version, is_of, seconds_of, version_of
from csi_driver.objects.web.webdav import parse_multistatus

HERE = WebLocation("http://host/base", "host")
PLACES = st.text(alphabet="/.%2eEfF\\?#:@ahost\t\n\x00é", max_size=40) | st.text(max_size=40)


@pytest.mark.promise("S242")
def test_a_link_may_end_in_a_semicolon() -> None:
    assert HERE.key_of("&lt;;", "d/") == "d/&lt;;"


@pytest.mark.promise("S240")
@given(PLACES)
@example("//host/base/d/x")
@example("http://host:80/base/d/a/../x")
@example("HTTP://HOST/base/d/x")
@example("%2e%2e/x")
@example("..;/x")
@example("\\..\\x")
@example("x/%2e%2e%2f")
def test_a_link_is_below_its_directory_or_is_none(link: str) -> None:
    key = HERE.key_of(link, "d/")
    if key is None:
        return
    assert key.startswith("d/")
    assert not {"", ".", ".."} & set(key.removeprefix("d/").removesuffix("/").split("/"))
    # And what is requested for it is that path again, for each reader of the URL.
    assert HERE.target(key).startswith("/base/d/")
    assert HERE.key_of(HERE.target(key), "d/") == key


@pytest.mark.parametrize(
    ("link", "key"),
    [
        ("x", "d/x"),
        ("./x", "d/x"),
        ("x/", "d/x/"),
        ("/base/d/x", "d/x"),
        ("http://host/base/d/x", "d/x"),
        (" x\n", "d/x"),
        ("a%20b%25", "d/a b%"),
        ("%FF", "d/\udcff"),
        ("a\tb", "d/a\tb"),
        ("a&b;c=d+e", "d/a&b;c=d+e"),
        ("../d/x", "d/x"),
        ("../x", None),
        ("/d/x", None),
        ("https://host/base/d/x", None),
        ("http://host:8080/base/d/x", None),
        ("http://host.evil/base/d/x", None),
        ("x?y", None),
        ("a%2fb", None),
        ("mailto:x", None),
        ("", None),
    ],
)
def test_links(link: str, key: str | None) -> None:
    assert HERE.key_of(link, "d/") == key


@pytest.mark.promise("S240")
@given(st.binary(max_size=300) | st.text(alphabet="<a href='\">/.=!-[]&;#x", max_size=300).map(str.encode))
@example(b"<a href=" * 5000)
@example(b"<a href='" * 5000)
@example(b"<a " + b"href" * 5000)
@example(b"[" * 5000)
@example(json.dumps([{"name": "../x"}, {"name": "a/b"}, {"name": ""}, {"name": ".."}, {"name": "\0"}]).encode())
@example(json.dumps([{"name": "a", "size": 10**400, "mtime": "x"}, {"name": "b", "mod_time": "9" * 400}]).encode())
def test_any_page_is_an_index_or_none(body: bytes) -> None:
    for media_type in ("text/html; charset=x", "application/json", "text/plain", ""):
        for entry in parse_index(Page({"Content-Type": media_type}, body), HERE, "d/") or ():
            assert below("d/", entry.key) == entry.key


@pytest.mark.promise("S242")
@given(st.binary(max_size=300) | st.text(alphabet='<>/D:multisaponehrf &;#x1"=', max_size=300).map(str.encode))
@example(b"<multistatus>" + b"<response>" * 5000)
@example(b"<multistatus " * 5000)
@example(b'<!DOCTYPE x [<!ENTITY a "b">]><multistatus xmlns="DAV:"></multistatus>')
def test_any_answer_is_webdav_or_refused(body: bytes) -> None:
    try:
        found = parse_multistatus(body, HERE, "d/")
    except StoreProtocolError:
        return
    for entry in found:
        key = entry if isinstance(entry, str) else entry.key
        assert key.startswith("d/")


@pytest.mark.promise("S199")
@pytest.mark.parametrize(
    ("header", "version"),
    [
        ('"x"', "x"),
        ('W/"x"', "W/x"),
        ("x", "x"),
        (None, None),
        ("", None),
        ('""', None),
        ('"a b"', None),
        ('"a"b"', None),
        ("é", None),
        ('"' + "x" * 600 + '"', None),
        ('"last-modified 5"', None),
    ],
)
def test_versions_of_etags(header: str | None, version: str | None) -> None:
    assert etag_version(header) == version
    if header is not None and version is not None:
        assert is_of(version, {"etag": header})
        assert not is_of(version, {"etag": '"other"'})
        assert not is_of(version, {})


@pytest.mark.promise("S199")
@pytest.mark.parametrize(
    "date", ["Thu, 01 Jan 2500 00:00:00 GMT", "x", "", None, "Thu, 01 Jan 1900 00:00:00 GMT", "1 2 3"]
)
def test_a_date_that_no_file_can_have_is_none(date: str | None) -> None:
    assert seconds_of(date) is None


@pytest.mark.promise("S199")
def test_without_an_etag_the_time_is_the_version() -> None:
    headers = {"last-modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
    version = version_of(headers)
    assert condition(version) == {"If-Unmodified-Since": "Tue, 14 Nov 2023 22:13:20 GMT"}
    assert is_of(version, headers)
    assert not is_of(version, {"last-modified": "Tue, 14 Nov 2023 22:13:21 GMT"})
    assert not is_of(version, {})
    assert version_of({}) is None


@pytest.mark.promise("S199")
@pytest.mark.parametrize("listed", [None, "sha256 " + "0" * 64])
def test_the_first_answer_pins_what_the_snapshot_does_not(listed: str | None) -> None:
    pins = PinnedAnswers()
    assert pins.pinned("key", listed) == listed
    pins.note("key", listed, {"etag": '"first"'})
    pins.note("key", listed, {"etag": '"second"'})
    assert pins.pinned("key", listed) == "first"
    assert pins.pinned("key", "etag") == "etag"


@pytest.mark.promise("S240")
@pytest.mark.parametrize("path", ["a/../b", "a/%2e%2e/b", ".", "%2E/a", "a%2Fb", "a%00b", "a/.."])
def test_a_url_with_dots_is_refused(path: str) -> None:
    with pytest.raises(InvalidParameter, match="url"):
        DatasetUrl.parse(f"http://host/{path}")


@given(st.text(alphabet="ab/% ?#é\\:@&=+\udcff", max_size=20))
def test_a_url_is_read_as_it_is_written(prefix: str) -> None:
    url = DatasetUrl("http", "host", prefix.strip("/") and f"{prefix.strip('/')}/")
    if url.prefix and "\udcff" not in prefix:
        assert DatasetUrl.parse(str(url)) == url
