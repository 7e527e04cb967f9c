"""Makes the pictures of the web page in the docs, of a real daemon and mounts in Chromium.

    .venv/bin/python -m tests.support.web_page_pictures docs

Two volumes of this machine are mounted and read in part, one of them while the pictures are taken. Prints what the page
costs the daemon, and how long after its end the page says so.
Needs root, /dev/fuse and Chromium (.ci/chromium). The files are named web-page-*.png.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.web_browser import chromium, opened
from tests.support.web_pages import LocalDataset, WebBench

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KIB, MIB = 1 << 10, 1 << 20
READER = """
import sys, time
for path in sys.argv[2:]:
    with open(path, "rb") as file:
        while file.read(1 << 18):
            time.sleep(float(sys.argv[1]))
"""


def images(directory: Path) -> LocalDataset:
    """A dataset of directories with small files, and some names."""
    made = LocalDataset(directory / "images")
    for name, files in {"train/cats": 160, "train/dogs": 190, "train/owls": 90, "val/cats": 40, "val/dogs": 45}.items():
        for number in range(files):
            made.write(f"{name}/{number:04}.jpg", 8 * KIB + 37 * number, number + 1)
    for name in ("classes.json", "LICENSE.txt", "readme.md"):
        made.write(name, 3 * KIB)
    return made


def tokens(directory: Path) -> LocalDataset:
    """Shards of some megabytes."""
    made = LocalDataset(directory / "tokens")
    for number in range(48):
        made.write(f"shards/{number:05}.bin", 4 * MIB + 64 * KIB * number, number + 1)
    for number in range(6):
        made.write(f"checkpoints/step-{number}000.safetensors", 32 * MIB, number + 100)
    made.write("index.json", 40 * KIB)
    return made


@contextmanager
def reading(mount: Path, pause_s: float, *paths: str) -> Iterator[None]:
    files = [os.fspath(mount / path) for path in paths]
    process = subprocess.Popen([sys.executable, "-c", READER, str(pause_s), *files])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def read(mount: Path, pattern: str, share: float = 1.0) -> None:
    found = sorted(path for path in mount.glob(pattern) if path.is_file())
    for path in found[: round(share * len(found))]:
        path.read_bytes()


def spread(path: Path, places: int) -> None:
    """Reads some places of a file, far from each other, so that not all of it is fetched."""
    with path.open("rb", buffering=0) as file:
        for place in random.Random(places).sample(range(path.stat().st_size // MIB), places):
            os.pread(file.fileno(), 1000, place * MIB)


def main() -> None:
    """Takes the pictures, then measures, and prints what it has measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--watch-s", type=float, default=75, help="how long the page is open before the pictures")
    given = parser.parse_args()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        bench = WebBench(Path(name) / "bench", "--cache-limit=600MiB")
        try:
            bench.start()
            mounts = (bench.mount(images(Path(name)), "pvc-images"), bench.mount(tokens(Path(name)), "pvc-tokens"))
            _read_some(*mounts)
            with chromium() as browser:
                _print_costs(browser, bench)
                with opened(browser, bench.url, height=880, failures=failures) as page:
                    _take(page, mounts[1], given.directory, given.watch_s)
                    _print_absences(page, bench, given.directory)
        finally:
            bench.close()
    for failure in failures:
        sys.stderr.write(f"{failure}\n")


def _read_some(image_mount: Path, token_mount: Path) -> None:
    """What is cached before the page is opened."""
    read(image_mount, "train/cats/*")
    read(image_mount, "train/dogs/*", 0.6)
    read(image_mount, "val/cats/*", 0.3)
    read(token_mount, "shards/0000*", 0.8)
    for number in range(6):
        spread(token_mount / f"checkpoints/step-{number}000.safetensors", 5 * number)


def _take(page: Page, token_mount: Path, pictures: Path, watch_s: float) -> None:
    page.get_by_role("button", name="pvc-tokens").click()
    page.evaluate("scrollTo(0, 0)")
    shards = [f"shards/{number:05}.bin" for number in range(48)]
    with ExitStack() as readers:
        readers.enter_context(reading(token_mount, 0.1, *shards))
        readers.enter_context(reading(token_mount, 0.15, *shards[3:30]))
        page.wait_for_timeout(watch_s * 1000)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=pictures / "web-page-status.png")
        page.locator("#map-section").screenshot(path=pictures / "web-page-map.png")


def _print_absences(page: Page, bench: WebBench, pictures: Path) -> None:
    """How long after its end the page says that the daemon is away."""
    daemon = bench.processes[-1]
    pill = page.locator("#connection")
    page.evaluate("scrollTo(0, 0)")
    for number, name in ((signal.SIGSTOP, "stopped"), (signal.SIGCONT, "continued"), (signal.SIGKILL, "killed")):
        began_s = time.monotonic()
        daemon.send_signal(number)
        pill.get_by_text("Live" if number == signal.SIGCONT else "No answer").wait_for()
        print(f"said {time.monotonic() - began_s:.2f} s after the daemon was {name}")  # noqa: T201
        page.wait_for_timeout(3000)
    page.screenshot(path=pictures / "web-page-away.png", clip={"x": 0, "y": 0, "width": 1180, "height": 560})
    began_s = time.monotonic()
    bench.start()
    answered_s = time.monotonic()
    pill.get_by_text("Live").wait_for()
    print(f"said {time.monotonic() - answered_s:.2f} s after the next one answered")  # noqa: T201
    print(f"({answered_s - began_s:.2f} s after it was started)")  # noqa: T201


def _print_costs(browser: Browser, bench: WebBench) -> None:
    """Processor time of the daemon without a page, with one, and with three."""
    with ExitStack() as pages:
        for number in (0, 1, 3):
            while len(browser.contexts) < number:
                pages.enter_context(opened(browser, bench.url))
            time.sleep(5)
            before_s, began_s = _processor_s(bench.processes[-1].pid), time.monotonic()
            time.sleep(20)
            share = (_processor_s(bench.processes[-1].pid) - before_s) / (time.monotonic() - began_s)
            print(f"pages open: {number}, processor time of the daemon: {100 * share:.1f} % of a core")  # noqa: T201


def _processor_s(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
