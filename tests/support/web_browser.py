"""A headless Chromium, driven by Playwright, and pages in it that fail a test when their scripts do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
"""Without its sandbox, since tests run as root. It opens pages of this machine alone."""


def find_chromium() -> str | None:
    """Debian's package; Playwright's own download is not used."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Takes a second or two to start."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def _is_defect(line: ConsoleMessage) -> bool:
    """Not that a request failed: a daemon that is away is part of what is shown."""
    return line.type == "error" and "Failed to load resource" not in line.text


@contextmanager
def opened(
    browser: Browser,
    url: str,
    *,
    width: int = 1180,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    scale: float = 1,
    failures: list[str] | None = None,
) -> Iterator[Page]:
    """A page of the node. What its scripts throw, what its policy refuses, and each request to another host is added to
    ``failures``."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        device_scale_factor=scale,
    )
    found = failures if failures is not None else []
    page = context.new_page()
    page.on("pageerror", lambda error: found.append(f"{error.name}: {error.message}"))
    page.on("console", lambda line: found.append(line.text) if _is_defect(line) else None)
    page.on("request", lambda asked: None if asked.url.startswith(url) else found.append(f"asked {asked.url}"))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
