"""The web page of a real daemon with real mounts, in Chromium."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from csi_driver.cli.application import run_command
from csi_driver.model.visible_text import visible
from tests.support.daemons import stop
from tests.support.web_browser import chromium, opened
from tests.support.web_pages import LocalDataset, WebBench

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.fuse, pytest.mark.timeout(300)]

MIB = 1 << 20
SLOW_MS = 180_000
"""No time is asserted: how long a busy machine may take for what a page shows within a second."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        found.contexts  # noqa: B018  # it answers
        yield found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[WebBench]:
    bench = WebBench(tmp_path / "bench")
    yield bench
    bench.close()


@pytest.fixture
def dataset(tmp_path: Path) -> LocalDataset:
    made = LocalDataset(tmp_path / "data")
    for number in range(24):
        made.write(f"train/{number:02}.bin", 60_000 + number, number + 1)
    for number in range(6):
        made.write(f"val/deep/{number}.bin", 50_000, number + 100)
    made.write("large.bin", 12 * MIB)
    return made


@pytest.fixture
def page(browser: Browser, bench: WebBench) -> Iterator[Page]:
    """Fails where a script fails, the policy refuses something, or another host is asked."""
    bench.start()
    failures: list[str] = []
    with opened(browser, bench.url, failures=failures) as page:
        page.set_default_timeout(SLOW_MS)
        yield page
    assert failures == []


def shows(page: Page, selector: str, text: str, timeout_ms: float = SLOW_MS) -> None:
    """Waits for it. Not by a function in the page (``wait_for_function``): its policy refuses eval."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=timeout_ms)


def document(bench: WebBench, capfd: pytest.CaptureFixture[str], *words: str) -> Any:
    """Of a command of ``hayloft``."""
    capfd.readouterr()
    run_command([*words, f"--daemon-socket={bench.run / 'cache.sock'}", "--json"])
    return json.loads(capfd.readouterr().out)


def violations(page: Page) -> list[str]:
    """Of the rules of axe-core, as far as a program can check them."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    return [f"{one['id']}: {node['html']}" for one in found.response["violations"] for node in one["nodes"]]


@pytest.mark.promise("S651")
def test_it_shows_what_is_cached_cold_in_part_and_whole(
    page: Page, bench: WebBench, dataset: LocalDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    shows(page, "#volumes-none", "No volume is mounted")
    mount = bench.mount(dataset, "pvc-1")
    shows(page, "#map-summary", "0% of")
    shows(page, "#map-summary", "0 of 31 files complete. Each square is a file.")
    for number in range(12):
        (mount / f"train/{number:02}.bin").read_bytes()
    shows(page, "#map-summary", "12 of 31 files complete")
    shows(page, "#entries tr:has-text('train/')", "50.0%")
    status = document(bench, capfd, "status")
    listed = document(bench, capfd, "ls", "pvc-1")
    cached = {one["name"]: one["cached_bytes"] for one in listed["entries"]}
    assert cached["train"] == sum(60_000 + number for number in range(12))
    shows(page, "#facts", f"in {status['counters']['origin_requests']} requests")
    for path in sorted(mount.rglob("*.bin")):
        path.read_bytes()
    shows(page, "#map-summary", "100% of")
    shows(page, "#map-summary", "31 of 31 files complete")
    shows(page, "#volumes", "100%")
    drawn = page.evaluate("document.querySelectorAll('#map-picture canvas').length")
    assert drawn == 3, "train, val and the file beside them"
    label = page.locator("#map-picture canvas[aria-label^='train/']").get_attribute("aria-label")
    assert label is not None
    assert label.endswith("24 of 24 files complete")


@pytest.mark.promise("S651")
def test_it_shows_what_is_wrong_in_the_words_of_status(
    page: Page, bench: WebBench, dataset: LocalDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    mount = bench.mount(dataset, "pvc-1")
    dataset.write("train/00.bin", 70_000, 99)
    os.utime(dataset.directory / "train/00.bin", (1, 1))
    with pytest.raises(OSError, match="Stale"):
        (mount / "train/00.bin").read_bytes()
    shows(page, "#verdict", "1 condition")
    (condition,) = document(bench, capfd, "volumes")[0]["conditions"]
    shows(page, "#conditions", f"{condition['sentence']} {condition['remedy']}")
    shows(page, "#volumes", condition["reason"])
    assert page.title() == "(1) Hayloft"


@pytest.mark.promise("S652")
def test_it_says_that_the_daemon_is_away_or_hangs_and_goes_on_with_the_next(
    page: Page, bench: WebBench, dataset: LocalDataset
) -> None:
    mount = bench.mount(dataset, "pvc-1")
    shows(page, "#map-summary", "0 of 31 files complete")
    first = bench.processes[-1]
    first.send_signal(signal.SIGSTOP)
    shows(page, "#connection", "No answer")
    shows(page, "#absence-text", "does not answer")
    assert violations(page) == []
    first.send_signal(signal.SIGCONT)
    shows(page, "#connection", "Live")
    assert page.locator("#absence").is_hidden()
    stop(first, signal.SIGKILL)
    shows(page, "#absence-text", "Nothing listens")
    bench.start()
    shows(page, "#connection", "Live")
    shows(page, "#version", f"process {bench.processes[-1].pid}")
    (mount / "large.bin").read_bytes()
    shows(page, "#map-summary", "1 of 31 files complete")


HOSTILE = (
    b"<img src=x onerror=\"document.title='owned'\">.bin",
    b"'\"><script>document.title='owned'<script>.bin",
    "\u202egpj.exe".encode(),
    b"tab\there",
    b"%2e%2e%2f&volume=other#x?y",
    b"\xff\xfe raw",
    b"zalgo " + "e\u0301\u0302\u0303\u0304".encode() * 20,
    b"long " + b"x" * 240,
)


@pytest.mark.promise("S653")
def test_names_of_strangers_are_text(page: Page, bench: WebBench, tmp_path: Path) -> None:
    dataset = LocalDataset(tmp_path / "data")
    for name in HOSTILE:
        dataset.write(b"<b onclick=alert(1)>\xfe/" + name, 1000)
    mount = bench.mount(dataset, "<i>v<script>")
    (directory,) = os.listdir(os.fsencode(mount))
    names = os.listdir(os.path.join(os.fsencode(mount), directory))
    assert len(names) == len(HOSTILE)
    for name in names[:4]:
        (mount / os.fsdecode(directory) / os.fsdecode(name)).read_bytes()
    shows(page, "#map-volume", "<i>v<script>")
    page.get_by_role("button", name=f"{visible(directory)}/").click()
    shows(page, "#map-summary", f"4 of {len(HOSTILE)} files complete")
    for name in names:
        shown = page.locator("#entries").get_by_text(visible(name), exact=True)
        shown.wait_for()
        assert shown.count() == 1
    assert page.title() == "Hayloft"
    assert page.locator("#entries img, #entries script, #map-path b, #volumes i").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a long name stays within the page"


@pytest.mark.timeout(1200)
@pytest.mark.promise("S651")
def test_a_dataset_of_a_hundred_thousand_files_is_a_picture_of_some_hundred_squares(
    page: Page, bench: WebBench, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for directory in range(50):
        first = root / f"d{directory:02}" / "0000"
        first.parent.mkdir(parents=True)
        first.write_bytes(b"12345678")
        for number in range(1, 2000):
            os.link(first, first.with_name(f"{number:04}"))  # files of their own would take a disk minutes to remove
    mount = bench.mount(LocalDataset(root), "pvc-many")
    # Some seconds of work in small steps with pauses, which take minutes on a machine that has no processor to spare.
    shows(page, "#map-summary", "0 of 100,000 files complete. Each square is 72 files.", timeout_ms=800_000)
    assert page.locator("#map-picture canvas").count() == 1
    assert page.locator("#entries tr:has-text('0%')").count() == 50
    for number in range(1000):
        (mount / "d07" / f"{number:04}").read_bytes()
    page.get_by_role("button", name="d07/").click()
    shows(page, "#map-summary", "1,000 of 2,000 files complete. Each square is 2 files.")
    assert page.locator("#entries tbody tr").count() == 100
    page.get_by_role("button", name="Show 100 more").click()
    page.locator("#entries tbody tr").nth(199).wait_for()
    assert page.locator("#entries tbody tr").count() == 200


@pytest.mark.promise("S654")
def test_it_is_used_by_keyboard_and_passes_axe(page: Page, bench: WebBench, dataset: LocalDataset) -> None:
    bench.mount(dataset, "pvc-1")
    bench.mount(dataset, "pvc-2")
    shows(page, "#map-summary", "files complete")

    def focused() -> str:
        return str(page.evaluate("document.activeElement.textContent"))

    def tab_to(text: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if focused() == text:
                return
        pytest.fail(f"{text} is not reached by the Tab key")

    tab_to("Skip to the status")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to("pvc-2")
    page.keyboard.press("Enter")
    shows(page, "#map-volume", "pvc-2")
    assert page.locator("#volumes tr[aria-current=true]").inner_text().startswith("pvc-2")
    tab_to("val/")
    page.keyboard.press("Enter")
    shows(page, "#map-path", "val")
    page.locator("#map-path [aria-current]:focus").get_by_text("val").wait_for()
    tab_to("deep/")
    page.keyboard.press("Enter")
    shows(page, "#map-summary", "of 6 files complete")
    page.get_by_role("button", name="all files").focus()
    page.keyboard.press("Enter")
    shows(page, "#map-summary", "of 31 files complete")
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    shows(page, "#throughput-rows", "/s")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "narrow screens scroll one way"


@pytest.mark.promise("S654")
def test_a_screen_reader_hears_of_changes_and_of_nothing_else(
    page: Page, bench: WebBench, dataset: LocalDataset
) -> None:
    mount = bench.mount(dataset, "pvc-1")
    shows(page, "#map-summary", "0 of 31 files complete")
    page.evaluate(
        """() => {
            window.heard = [];
            for (const region of document.querySelectorAll("[role=status], [role=alert], [aria-live]"))
                new MutationObserver(() => window.heard.push(region.textContent))
                    .observe(region, { childList: true, characterData: true, subtree: true });
        }"""
    )
    for path in sorted(mount.rglob("*.bin")):
        path.read_bytes()
    shows(page, "#map-summary", "31 of 31 files complete")
    assert page.evaluate("window.heard") == []
    stop(bench.processes[-1], signal.SIGKILL)
    shows(page, "#connection", "No answer")
    bench.start()
    shows(page, "#connection", "Live")
    assert page.evaluate("window.heard") == ["No answer", "Live"]


@pytest.mark.promise("S655")
def test_a_page_that_is_not_seen_asks_for_nothing(page: Page, bench: WebBench, dataset: LocalDataset) -> None:
    bench.mount(dataset, "pvc-1")
    shows(page, "#map-summary", "0 of 31 files complete")
    asked: list[str] = []
    hide = "hidden => { Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true }); }"
    page.evaluate(hide, True)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1500)
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []
    page.evaluate(hide, False)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_event("request")
