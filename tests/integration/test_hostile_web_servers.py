"""Index pages, redirects and trees of a web server that a tenant may run."""

from __future__ import annotations

import gzip
from pathlib import Path
from urllib.parse import quote

import pytest

from csi_driver.catalog.builder import build_from_store
from csi_driver.catalog.key_names import Reason
from csi_driver.model.dataset import Credentials, Dataset, DatasetUrl, StoreOptions
from csi_driver.model.errors import BudgetExceeded, HayloftError, StoreProtocolError
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.web import web_listing
from tests.support.web_mounts import MIB, listed
from tests.support.web_server import WebServer, web_server


class TestHostileServers:
    """Index pages, redirects and trees of a server that a tenant may run."""

    @pytest.mark.promise("S240")
    def test_links_that_leave_the_dataset_are_not_followed(self) -> None:
        with web_server({"no": b"no"}) as victim, web_server({"d/good": b"1", "no": b"no"}) as server:
            own = server.url.partition("//")[2]
            links = (
                *("../no", "/no", "//HOST/no", "http://VICTIM/no", "https://OWN/d/x", "ftp://OWN/d/x", "?C=N", "#top"),
                *("good?x=1", "%2e%2e/no", "..%2fno", "a/../../no", "./", "", ".", "..", "%00", "file:///etc/passwd"),
                *("http://OWN@VICTIM/d/x", "http://[::1/d/x", "http://OWN:x/", "javascript:alert(1)", "\\\\VICTIM\\x"),
            )
            page = "".join(f'<a href="{link}">x</a>' for link in (*links, "good", "http://OWN/d/sub/other"))
            page = page.replace("VICTIM", victim.url.partition("//")[2]).replace("OWN", own).replace("HOST", own)
            server.answers["/d/"] = (200, {"Content-Type": "text/html"}, page.encode())
            server.objects["d/sub/other"] = b"22"
            assert listed(f"{server.url}/d") == {"d/good": 1, "d/sub/other": 2}
            assert victim.requests == []
            assert {target for _, target, _ in server.requests} <= {
                *(
                    "/d/",
                    "/d/good",
                    "/d/sub/other",
                    "/d/%5C%5C" + quote(victim.url.partition("//")[2], safe="") + "%5Cx",
                ),
            }

    @pytest.mark.promise("S240")
    @pytest.mark.parametrize("path", ["/d/", "/d/x"])
    def test_a_redirect_is_not_followed_and_its_server_is_named(self, path: str) -> None:
        with web_server({"d/x": b"x"}) as victim, web_server({"d/x": b"x"}) as server:
            server.answers[path] = (302, {"Location": f"{victim.url}{path}?signature=secret"}, b"")
            with pytest.raises(StoreProtocolError, match=f"redirects to {victim.url} ") as caught:
                listed(f"{server.url}/d")
            assert "secret" not in str(caught.value)
            assert victim.requests == []

    @pytest.mark.promise("S244")
    def test_what_cannot_be_read_is_reported_and_hides_nothing_else(self, tmp_path: Path) -> None:
        objects = {f"d/{name}": b"1" for name in ("good", "gone", "denied", "moved", "sub/x", "shut/x")}
        with web_server(objects) as server:
            server.answers |= {
                "/d/gone": (404, {}, b""),
                "/d/denied": (403, {}, b""),
                "/d/moved": (302, {"Location": "http://elsewhere.example/"}, b""),
                "/d/shut/": (403, {}, b""),
            }
            parsed = DatasetUrl.parse(f"{server.url}/d")
            store = open_store(parsed, StoreOptions(deadline_s=3), Credentials())
            manifest = build_from_store(store, Dataset(parsed), tmp_path / "manifest")
            store.close()
        assert manifest.file_count == 2
        report = manifest.key_report()
        assert [entry.key for entry in report.left_out] == [b"denied", b"gone", b"moved", b"shut/"]
        assert {entry.reason for entry in report.left_out} == {Reason.UNREADABLE}

    @pytest.mark.promise("S240")
    def test_a_loop_of_directories_ends(self) -> None:
        with web_server({"d/file": b"1"}, index=_looping) as server:
            server.answers = _Endless()
            found = listed(f"{server.url}/d")
        assert len(found) == web_listing.MOST_DEPTH + 1

    @pytest.mark.promise("S240")
    def test_more_directories_than_a_listing_may_have_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(web_listing, "MOST_DIRECTORIES", 10)
        objects = {f"d/{number}/x": b"1" for number in range(20)}
        with web_server(objects) as server, pytest.raises(BudgetExceeded, match="more than 10 directories"):
            listed(f"{server.url}/d")

    @pytest.mark.promise("S240")
    @pytest.mark.parametrize("compressed", [True, False])
    def test_an_endless_index_is_refused(self, compressed: bool) -> None:
        page = b'<a href="x">x</a>' * 200_000
        headers = {"Content-Type": "text/html"} | ({"Content-Encoding": "gzip"} if compressed else {})
        body = gzip.compress(page, 1) if compressed else page
        answers = {"/d/": (200, headers, body)}
        with web_server({}, answers=answers) as server, pytest.raises(BudgetExceeded, match="1048576"):
            listed(f"{server.url}/d", page_bytes=MIB)


def _looping(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    return "text/html", '<a href="file">file</a><a href="loop/">loop</a>'


class _Endless(dict[str, tuple[int, dict[str, str], bytes]]):
    """The same directory at every path."""

    def __contains__(self, path: object) -> bool:
        return "/loop/" in str(path)

    def __getitem__(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.endswith("/"):
            return 200, {"Content-Type": "text/html"}, _looping(path, [], WebServer({}))[1].encode()
        return 200, {"Content-Type": "text/plain", "ETag": '"x"'}, b"1"


def test_an_error_is_one_that_the_daemon_can_report() -> None:
    """Every error is of the tree itself, which both tables know by name."""
    with web_server({}) as server, pytest.raises(HayloftError) as caught:
        listed(f"{server.url}/d", manifest="LIST")
    assert type(caught.value).__module__ == "csi_driver.model.errors"
