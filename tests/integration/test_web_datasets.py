"""Datasets of web servers on real mounts: index pages, WebDAV, one object, credentials, versions."""

from __future__ import annotations

import base64
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from csi_driver.model.errors import CredentialsRejected, MissingParameter, StoreProtocolError
from csi_driver.objects.web.web_socket_clients import WebSmallObjectClient
from tests.support.hostile_s3 import HostileS3
from tests.support.web_mounts import FILES, LARGE, MIB, OBJECTS, Mounts, contents, listed, mounted
from tests.support.web_server import INDEXES, Index, python_server, web_server

__all__ = ["mounted"]


@pytest.mark.fuse
class TestIndexes:
    """A directory by the page that a server makes of it."""

    @pytest.mark.promise("S195")
    @pytest.mark.parametrize("index", INDEXES)
    def test_a_directory_is_mounted_by_its_index(self, mounted: Mounts, index: Index) -> None:
        with web_server(dict(OBJECTS), index=index) as server:
            assert contents(mounted(f"{server.url}/data")) == FILES

    @pytest.mark.promise("S195")
    def test_a_directory_of_pythons_server_is_mounted(self, mounted: Mounts, tmp_path: Path) -> None:
        files = FILES
        served = tmp_path / "served"
        for path, content in files.items():
            target = served / "data" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        with python_server(served) as url:
            assert contents(mounted(f"{url}/data/")) == files
            assert contents(mounted(f"{url}/data/dir/deep/")) == {
                path.removeprefix("dir/deep/"): content for path, content in files.items() if "deep" in path
            }

    @pytest.mark.promise("S195")
    def test_a_path_with_percent_signs_is_that_of_the_browser(self, mounted: Mounts) -> None:
        with web_server({"my data/ä/file": b"1"}) as server:
            for path in ("my%20data/%C3%A4", "my data/ä"):
                assert contents(mounted(f"{server.url}/{path}")) == {"file": b"1"}

    @pytest.mark.promise("S196")
    @pytest.mark.parametrize("refuses_head", [0, 403, 405, 501])
    def test_one_object_is_a_directory_of_one_file(self, mounted: Mounts, refuses_head: int) -> None:
        with web_server(dict(OBJECTS), refuses_head=refuses_head) as server:
            assert contents(mounted(f"{server.url}/data/large.bin")) == {"large.bin": LARGE}
            assert contents(mounted(f"{server.url}/data/empty")) == {"empty": b""}

    @pytest.mark.promise("S196")
    def test_one_object_is_found_where_nothing_lists_it(self, mounted: Mounts) -> None:
        itself = (200, {"Content-Type": "text/plain"}, b"tar")
        forbidden: tuple[int, dict[str, str], bytes] = (403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        page = (200, {"Content-Type": "text/html"}, b"<html><a href='/about'>a shop</a></html>")
        for answer in (forbidden, page, itself):
            with web_server({"d/x.tar": b"tar"}, index=None, answers={"/d/x.tar/": answer}) as server:
                assert contents(mounted(f"{server.url}/d/x.tar")) == {"x.tar": b"tar"}

    @pytest.mark.promise("S195")
    @pytest.mark.parametrize(
        "page",
        [
            (200, {"Content-Type": "text/html"}, b"<html><a href='/elsewhere'>a shop</a></html>"),
            (200, {}, b""),
        ],
    )
    def test_a_server_that_answers_every_path_alike_is_no_dataset(
        self, mounted: Mounts, page: tuple[int, dict[str, str], bytes]
    ) -> None:
        with (
            web_server({}, answers={"/d/": page, "/d": page}) as server,
            pytest.raises(StoreProtocolError, match=r"no index of a directory.*manifest"),
        ):
            mounted(f"{server.url}/d")


@pytest.mark.fuse
class TestVersions:
    """What pins an object, whatever the server tells of it."""

    HABITS: tuple[dict[str, Any], ...] = (
        {},
        {"etag": 'W/"{}"'},
        {"etag": ""},
        {"etag": "", "sends_modified": False},
        {"knows_ranges": False},
        {"knows_ranges": False, "etag": ""},
        {"knows_ranges": False, "sends_length": False, "index": INDEXES[1]},
        {"compresses": True, "sends_length": False, "index": INDEXES[1]},
        {"knows_conditions": False},
    )

    @pytest.mark.promise("S199")
    @pytest.mark.parametrize("habits", HABITS)
    def test_the_right_bytes_are_read(self, mounted: Mounts, habits: dict[str, object]) -> None:
        with web_server(dict(OBJECTS), **habits) as server:
            found = mounted(f"{server.url}/data")
            assert contents(found)["large.bin"] == LARGE
            with (found / "large.bin").open("rb") as file:
                for start in (5 * MIB, 0, 3 * MIB + 7):
                    assert os.pread(file.fileno(), 1000, start) == LARGE[start : start + 1000]

    @pytest.mark.promise("S199")
    @pytest.mark.parametrize("habits", [habits for habits in HABITS if habits.get("sends_modified", True)])
    def test_a_replaced_object_is_stale(self, mounted: Mounts, habits: dict[str, object]) -> None:
        with web_server(dict(OBJECTS), **habits) as server:
            found = mounted(f"{server.url}/data")
            with (found / "large.bin").open("rb", buffering=0) as file:
                assert os.pread(file.fileno(), 100, 0) == LARGE[:100]
                server.objects["data/large.bin"] = LARGE[::-1]
                server.modified_s += 100
                end = _end_of(file.fileno())
                # A server without ranges may still send the old one, which was begun.
                may_be_old = "knows_ranges" in habits or "compresses" in habits
                assert end == errno.ESTALE or (may_be_old and end == LARGE[-100:])
            server.objects["data/a.txt"] = b"other"
            with pytest.raises(OSError, match="Stale"):
                (found / "a.txt").read_bytes()

    @pytest.mark.promise("S199")
    def test_an_etag_that_became_weak_on_the_way_is_the_same_version(self, mounted: Mounts) -> None:
        with web_server(dict(OBJECTS)) as server:
            found = mounted(f"{server.url}/data")
            server.etag = 'W/"{}"'
            assert (found / "large.bin").read_bytes() == LARGE

    @pytest.mark.promise("S708")
    def test_small_files_are_requested_completely_and_without_a_thread_each(
        self, mounted: Mounts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, begin = [], WebSmallObjectClient.begin

        def counted(client: WebSmallObjectClient, key: str, *more: Any) -> Any:
            response = begin(client, key, *more)
            begun.append(response)
            return response

        monkeypatch.setattr(WebSmallObjectClient, "begin", counted)
        small = {f"data/{number:03}": bytes([number]) * 5000 for number in range(100)}
        with web_server(dict(small)) as server:
            assert contents(mounted(f"{server.url}/data")) == {key[5:]: content for key, content in small.items()}
            requests = [headers for method, target, headers in server.requests if method == "GET" and target[6:]]
        assert len(requests) == 100
        assert not any("range" in headers for headers in requests)
        assert sum(response is not None for response in begun) > 50

    @pytest.mark.promise("S199")
    def test_a_server_without_ranges_sends_a_large_object_a_few_times_at_most(self, mounted: Mounts) -> None:
        with web_server({"d/x": LARGE * 6, "d/y": b"y"}, knows_ranges=False) as server:
            found = mounted(f"{server.url}/d", warmup="none")
            with (found / "x").open("rb", buffering=0) as file:
                while file.read(MIB):
                    pass
            assert len(server.of("GET")) < 25


@pytest.mark.fuse
class TestWebDav:
    @pytest.mark.promise("S197")
    def test_a_server_that_refuses_to_list_all_at_once_is_walked(self, mounted: Mounts) -> None:
        with web_server(dict(OBJECTS), webdav=True, index=None) as server:
            assert contents(mounted(f"{server.url}/data")) == FILES
            assert {headers["depth"] for method, _, headers in server.requests if method == "PROPFIND"} == {"1"}
            assert len(server.of("HEAD")) == 1

    @pytest.mark.promise("S197")
    def test_an_index_that_disagrees_with_the_server_is_not_trusted(self, mounted: Mounts) -> None:
        with web_server(dict(OBJECTS), webdav=True, etag='"dav-{}"') as server:
            assert contents(mounted(f"{server.url}/data")) == FILES

    @pytest.mark.promise("S242")
    @pytest.mark.parametrize(
        "name",
        [
            "tab\tx",
            "&#1;",
            "&#x1;",
            "a\x01b",
            "a&b",
            "&nbsp;",
            "\x0b",
            "&#xFFFFFF;",
            "&#55296;",
            "a%zz",
            "%00",
            "%ff",
            "a<b",
            "</x>",
        ],
    )
    def test_an_odd_name_does_not_make_the_rest_unreadable(self, mounted: Mounts, name: str) -> None:
        def response(href: str, size: int) -> str:
            return (
                f"<D:response><D:href>{href}</D:href><D:propstat><D:prop><D:resourcetype/><D:getcontentlength>{size}"
                f"</D:getcontentlength></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
            )

        text = f'<D:multistatus xmlns:D="DAV:">{response("/d/" + name, 1)}{response("/d/good", 4)}</D:multistatus>'
        answers = {"/d/": (207, {"Content-Type": "application/xml"}, text.encode())}
        with web_server({"d/good": b"good"}, answers=answers) as server:
            assert contents(mounted(f"{server.url}/d"))["good"] == b"good"


@pytest.mark.fuse
class TestSecrets:
    BASIC = "Basic " + base64.b64encode("üser:pass word".encode()).decode()
    SENT: tuple[tuple[dict[str, str], str], ...] = (
        ({"username": "üser", "password": "pass word"}, BASIC),
        ({"token": "the-token"}, "Bearer the-token"),
        ({"username": "me", "token": "app"}, "Basic " + base64.b64encode(b"me:app").decode()),
    )

    @pytest.mark.promise("S241")
    @pytest.mark.parametrize("webdav", [True, False])
    @pytest.mark.parametrize(("secrets", "header"), SENT)
    def test_credentials_are_sent_with_every_request(
        self, mounted: Mounts, secrets: dict[str, str], header: str, webdav: bool
    ) -> None:
        with web_server({"d/x": b"x" * 100}, authorization=header, webdav=webdav) as server:
            assert contents(mounted(f"{server.url}/d", secrets)) == {"x": b"x" * 100}
            assert {headers["authorization"] for _, _, headers in server.requests} == {header}
            for wrong in ({}, {"token": "wrong"}):
                with pytest.raises(CredentialsRejected):
                    mounted(f"{server.url}/d", wrong)

    @pytest.mark.promise("S241")
    def test_an_anonymous_volume_sends_none(self, mounted: Mounts) -> None:
        with web_server({"d/x": b"x"}) as server:
            mounted(f"{server.url}/d", {"token": "the-token"}, anonymous="true")
            assert not [headers for _, _, headers in server.requests if "authorization" in headers]

    @pytest.mark.promise("S241")
    @pytest.mark.parametrize(
        ("secrets", "missing"),
        [
            ({"username": "me"}, "password"),
            ({"password": "x"}, "username"),
            ({"access_key_id": "AKID", "secret_access_key": "x"}, "token"),
        ],
    )
    def test_half_a_secret_is_refused_by_name(self, mounted: Mounts, secrets: dict[str, str], missing: str) -> None:
        with web_server({"d/x": b"x"}) as server:
            with pytest.raises(MissingParameter, match=f"secret key {missing}"):
                mounted(f"{server.url}/d", secrets)
            assert server.requests == []


def _end_of(descriptor: int) -> bytes | int:
    """The last bytes of the large file, or the error of reading them."""
    try:
        return os.pread(descriptor, 100, len(LARGE) - 100)
    except OSError as error:
        return error.errno or 0


@pytest.mark.promise("S195")
def test_the_root_of_a_public_bucket_is_listed_as_one() -> None:
    objects = {f"dir/{number:02}": b"%d" % number for number in range(20)}
    with HostileS3(objects, bucket="bucket", page_keys=7) as store:
        expected = {f"bucket/{key}": len(content) for key, content in objects.items()}
        assert listed(f"{store.endpoint}/bucket") == expected
