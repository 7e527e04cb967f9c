"""Datasets of web servers by a list of their files (the parameter ``manifest``)."""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from csi_driver.model.errors import InvalidParameter
from tests.support.daemons import wait_until
from tests.support.web_mounts import FILES, OBJECTS, Mounts, contents, mounted
from tests.support.web_server import web_server

__all__ = ["mounted"]


def sums(files: Mapping[str, bytes], algorithm: str) -> str:
    return "".join(f"{_digest(algorithm, content).hex()}  {path}\n" for path, content in files.items())


def _digest(algorithm: str, content: bytes) -> bytes:
    return hashlib.new(algorithm, content, usedforsecurity=False).digest()


def escaped(path: str) -> tuple[str, str]:
    """As GNU's tools write a name that holds a line break or a backslash, and the mark before its line."""
    text = path.replace("\\", "\\\\").replace("\n", "\\n")
    return text, "\\" if text != path else ""


def gnu_sums(files: Mapping[str, bytes]) -> str:
    lines = []
    for path, content in files.items():
        text, mark = escaped(path)
        lines.append(f"{mark}{hashlib.sha256(content).hexdigest()}  {text}\n")
    return "".join(lines)


def bsd_sums(files: Mapping[str, bytes]) -> str:
    lines = (f"SHA512 (./{path}) = {hashlib.sha512(content).hexdigest()}\n" for path, content in files.items())
    return "".join(lines)


def csv_list(files: Mapping[str, bytes]) -> str:
    rows = []
    for path, content in files.items():
        quoted = path.replace('"', '""')
        rows.append(f'train,"{quoted}",{len(content)},md5:{_digest("md5", content).hex()}\r\n')
    return "Split,File Name,Size (bytes),Checksum\r\n" + "".join(rows)


def tsv_urls(files: Mapping[str, bytes]) -> str:
    return "url\tlength\n" + "".join(f"URL/data/{quote(path)}\t{len(content)}\n" for path, content in files.items())


def google_list(files: Mapping[str, bytes]) -> str:
    def row(path: str, content: bytes) -> str:
        digest = base64.b64encode(_digest("md5", content)).decode()
        return f"URL/data/{quote(path)}\t{len(content)}\t{digest}\n"

    return "TsvHttpData-1.0\n" + "".join(row(path, content) for path, content in files.items())


def json_lines(files: Mapping[str, bytes]) -> str:
    rows = (
        {"file_name": path, "bytes": len(content), "sha1": _digest("sha1", content).hex()}
        for path, content in files.items()
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def json_list(files: Mapping[str, bytes]) -> str:
    return json.dumps([*files], indent=1)


def plain_list(files: Mapping[str, bytes]) -> str:
    return "\ufeff" + "\r\n".join(f"/data/{path}" for path in files if "\n" not in path)


@pytest.mark.fuse
class TestLists:
    """Datasets by a list of their files."""

    FORMS = (gnu_sums, bsd_sums, csv_list, tsv_urls, google_list, json_lines, json_list, plain_list)

    @pytest.mark.promise("S198")
    @pytest.mark.parametrize("form", FORMS)
    def test_the_files_of_a_list_are_mounted(self, mounted: Mounts, form: Callable[[Mapping[str, bytes]], str]) -> None:
        line_by_line = form in (bsd_sums, plain_list)
        files = {path: content for path, content in FILES.items() if not (line_by_line and "\n" in path)}
        with web_server(dict(OBJECTS), index=None) as server:
            text = form(files).replace("URL", server.url).encode()
            server.objects |= {"data/LIST": text, "data/LIST.gz": gzip.compress(text)}
            for name in ("LIST", "LIST.gz", f"{server.url}/data/LIST"):
                assert contents(mounted(f"{server.url}/data", manifest=name)) == files

    @pytest.mark.promise("S198")
    def test_sizes_and_checksums_of_a_list_save_requests(self, mounted: Mounts) -> None:
        objects = {f"data/{number}": b"%d" % number for number in range(50)}
        with web_server(objects, index=None) as server:
            server.objects["data/LIST"] = csv_list(
                {key.removeprefix("data/"): text for key, text in objects.items()}
            ).encode()
            mounted(f"{server.url}/data", manifest="LIST")
            assert len(server.of("HEAD")) == 1

    @pytest.mark.promise("S243")
    @pytest.mark.parametrize("name", ["a.txt", "large.bin"])
    def test_bytes_that_do_not_match_the_list_are_not_readable(self, mounted: Mounts, name: str) -> None:
        with web_server(dict(OBJECTS), index=None) as server:
            server.objects["data/SUMS"] = gnu_sums({name: FILES[name], "empty": b""}).encode()
            server.objects[f"data/{name}"] = bytes(len(FILES[name]))
            found = mounted(f"{server.url}/data", manifest="SUMS")
            if name == "a.txt":
                with pytest.raises(OSError, match="Input/output error"):
                    (found / name).read_bytes()
            wait_until(lambda: _is_unreadable(found / name))  # a large one is compared after its last byte

    @pytest.mark.promise("S240")
    @pytest.mark.parametrize(
        "entry",
        [
            "http://127.0.0.1:1/data/x",
            "https://HOST/data/x",
            "http://HOST/data2/no",
            "http://HOST/data/../no",
            "http://HOST/data/%2e%2e/no",
            "http://HOST/data/a%2F..%2F..%2Fno",
            "http://HOST/data/x?redirect=1",
            "ftp://HOST/data/x",
            "file:///etc/passwd",
            "../no",
            "a/../../no",
            "/no",
            "//127.0.0.1/data/x",
            "/data/../no",
            "",
            "dir/",
        ],
    )
    def test_a_list_leads_nowhere_else(self, mounted: Mounts, entry: str) -> None:
        with web_server(dict(OBJECTS), index=None) as server:
            line = json.dumps({"path": entry.replace("HOST", server.url.partition("://")[2])})
            server.objects["data/LIST"] = line.encode()
            with pytest.raises(InvalidParameter, match="manifest"):
                mounted(f"{server.url}/data", manifest="LIST")
            assert server.of("GET") == ["/data/LIST"]
            assert server.of("HEAD") == []

    @pytest.mark.promise("S198")
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"a\tb\n", "line 1.*names the columns"),
            (b'{"path": "a"}\n{"path": \n', "line 2.*JSON"),
            (b'{"size": 1}\n', "line 1.*path or URL"),
            (b"[1]", "line 1"),
            (b"path,size\n,5\n", "line 2.*path or URL"),
            (sums({"a": b"a"}, "md5").encode() + b"stray\n", "line 2.*checksum"),
            (b"\x1f\x8bnot gzip", "gzip"),
        ],
    )
    def test_a_list_that_cannot_be_read_is_refused_by_line(self, mounted: Mounts, text: bytes, message: str) -> None:
        with (
            web_server({"d/LIST": text}) as server,
            pytest.raises(InvalidParameter, match=rf"(?s)manifest.*{message}"),
        ):
            mounted(f"{server.url}/d", manifest="LIST")

    @pytest.mark.promise("S241")
    def test_a_signature_in_a_list_is_not_shown(self, mounted: Mounts) -> None:
        for text in (b"https://bucket.example/x?X-Amz-Signature=abcd1234\n", b"a\tb?sig=abcd1234\n"):
            with web_server({"d/LIST": text}) as server, pytest.raises(InvalidParameter) as caught:
                mounted(f"{server.url}/d", manifest="LIST")
            assert "abcd1234" not in str(caught.value)

    @pytest.mark.promise("S198")
    @pytest.mark.parametrize("manifest", ["../x", "/x", "http://elsewhere/x", "ftp://h/x", "dir/", "a/./b"])
    def test_the_list_lies_below_the_url(self, mounted: Mounts, manifest: str) -> None:
        with web_server({"d/x": b"x"}) as server:
            with pytest.raises(InvalidParameter, match="manifest"):
                mounted(f"{server.url}/d", manifest=manifest)
            assert server.requests == []


def _is_unreadable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno == errno.EIO
    return False


@pytest.mark.promise("S198")
def test_other_stores_take_no_list(mounted: Mounts) -> None:
    with pytest.raises(InvalidParameter, match=r"manifest.*http"):
        mounted("s3://bucket/data", manifest="LIST")
