"""Lists of files, line by line."""

from __future__ import annotations

import base64
import gzip
import hashlib
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from csi_driver.model.errors import BudgetExceeded, InvalidParameter
from csi_driver.objects.web import file_lists
from csi_driver.objects.web.file_lists import ListedFile, parse_list

MD5, SHA1, SHA256, SHA512 = (hashlib.new(name, b"x").hexdigest() for name in ("md5", "sha1", "sha256", "sha512"))
MD5_BASE64 = base64.b64encode(bytes.fromhex(MD5)).decode()


def parsed(text: str | bytes) -> list[ListedFile]:
    return list(parse_list(text.encode() if isinstance(text, str) else text))


@pytest.mark.promise("S198")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n\n", []),
        ("a b\nc,d\n#e\n", [ListedFile("a b"), ListedFile("c,d"), ListedFile("#e")]),
        ("# a comment\n#\n\na\n", [ListedFile("a")]),
        ("#x", [ListedFile("#x")]),
        (
            f"{SHA256}  a  b\n{MD5} *c\n",
            [ListedFile("a  b", None, f"sha256 {SHA256}"), ListedFile("c", None, f"md5 {MD5}")],
        ),
        (f"# sums\n{SHA512.upper()}  a\n# more\n", [ListedFile("a", None, f"sha512 {SHA512}")]),
        (f"\\{SHA1}  a\\\\b\\nc\n", [ListedFile("a\\b\nc", None, f"sha1 {SHA1}")]),
        (f"MD5 (a) (b) = {MD5}\n", [ListedFile("a) (b", None, f"md5 {MD5}")]),
        ("path\na\n", [ListedFile("a")]),
        ("#path\tsize\na\t5\n", [ListedFile("a", 5)]),
        ("a\t5\nb\t6\n", [ListedFile("a", 5), ListedFile("b", 6)]),
        (f"a,5,{MD5}\nb,6,{MD5}\n", [ListedFile("a", 5, f"md5 {MD5}"), ListedFile("b", 6, f"md5 {MD5}")]),
        ("URL,Size\nhttp://h/a,1.2M\nhttp://h/b,\n", [ListedFile("http://h/a"), ListedFile("http://h/b")]),
        ('name,url\n"x","http://h/a"\n', [ListedFile("http://h/a")]),
        ('path,note\n"a\nb","c,d"\n', [ListedFile("a\nb")]),
        (
            f"path,checksum\na,sha256:{SHA256}\nb,crc32:12345678\n",
            [ListedFile("a", None, f"sha256 {SHA256}"), ListedFile("b")],
        ),
        (
            f'{{"path": "a", "size": 5, "md5": "{MD5}"}}\n\n{{"url": "b", "size": "6"}}\n',
            [ListedFile("a", 5, f"md5 {MD5}"), ListedFile("b", 6)],
        ),
        (
            '["a", {"key": "b", "size": -1}, {"name": "c", "size": true}]',
            [ListedFile("a"), ListedFile("b"), ListedFile("c")],
        ),
        (f"TsvHttpData-1.0\nhttp://h/a\t1\t{MD5_BASE64}\n", [ListedFile("http://h/a", 1, f"md5 {MD5}")]),
    ],
)
def test_forms_of_lists(text: str, expected: list[ListedFile]) -> None:
    assert parsed(text) == expected
    assert parsed(gzip.compress(text.encode())) == expected
    assert parsed("\ufeff" + text.replace("\n", "\r\n")) == expected


@pytest.mark.promise("S198")
def test_bytes_that_are_no_utf8_are_kept() -> None:
    assert parsed(b"a\xff\n") == [ListedFile("a\udcff")]


@pytest.mark.promise("S198")
def test_a_list_that_is_longer_than_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lists, "MOST_BYTES", 1000)
    with pytest.raises(BudgetExceeded, match="1000 bytes"):
        parsed(gzip.compress(b"a\n" * 501))


@given(st.binary(max_size=400) | st.text(alphabet='{}[]",:\t\n\r#\\ab1/= ()*MD5', max_size=200).map(str.encode))
@example(b"\x1f\x8b")
@example(b"[" * 5000)
@example(b'{"a":' * 5000)
@example(b'path\n"' + b"x" * 200_000)
@example(b"1" * 5000)
def test_any_text_is_a_list_or_refused(body: bytes) -> None:
    with suppress(InvalidParameter):
        for one in parse_list(body):
            assert isinstance(one.place, str)
