"""Chooses the stores, starts each once, and collects what docs/stores.md shows.

`make test` runs the stores that come with `make set-up-dev`. `make stores` sets HAYLOFT_STORES to "all", or to the
names it is given, and HAYLOFT_STORES_TABLE, for all of them, to the file that gets the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.stores.results_table import Results, described
from tests.stores.store_server import StoreCannot, StoreServer
from tests.stores.volumes import Volumes
from tests.support.daemons import DaemonBench

HERE = Path(__file__).parent
RESULTS = pytest.StashKey[Results]()


@cache  # for thousands of tests in some hundred files
def _is_here(path: Path) -> bool:
    return path.is_relative_to(HERE)


def _server_class(item: pytest.Item) -> type[StoreServer] | None:
    return getattr(getattr(item, "cls", None), "server_class", None) if _is_here(item.path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = os.environ.get("HAYLOFT_STORES", "").split()
    known = {server.name: server for server in map(_server_class, items) if server is not None}
    unknown = set(wanted) - {"all", *known}
    if unknown and known:
        raise pytest.UsageError(
            f"no store is named {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}"
        )

    def selected(item: pytest.Item) -> bool:
        server = _server_class(item)
        if server is None or "all" in wanted:
            return True
        return server.name in wanted if wanted else server.comes_with_set_up

    if left_out := [item for item in items if not selected(item)]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if selected(item)]
    for item in items:
        server = _server_class(item)
        reason = server.cannot.get(item.name, "") if server is not None else ""
        if reason:
            item.add_marker(pytest.mark.xfail(raises=StoreCannot, strict=True, reason=reason))


@pytest.fixture(scope="class")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    server_class: type[StoreServer] = request.cls.server_class
    program = server_class.program()
    if program is not None and not program.exists():
        pytest.fail(f"{server_class.title} is not installed; run: .ci/stores {server_class.name}", pytrace=False)
    server = server_class(tmp_path_factory.mktemp(server_class.name))
    try:
        server.start()
        server.prepare()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="class")
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonBench]:
    """One for all checks of a store."""
    bench = DaemonBench(tmp_path_factory.mktemp("daemon"), keep=False)
    try:
        bench.start()
        yield bench
    finally:
        bench.close()


@pytest.fixture
def volumes(daemon: DaemonBench) -> Iterator[Volumes]:
    volumes = Volumes(daemon)
    try:
        yield volumes
    finally:
        volumes.close()


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The report travels from the process that ran the test to the one that writes the table."""
    report: Any = yield
    server = _server_class(item)
    if server is not None:
        report.user_properties.append(("store", described(server, item.name)))
    return report


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("HAYLOFT_STORES_TABLE") and not hasattr(config, "workerinput"):
        config.stash[RESULTS] = Results()
        config.pluginmanager.register(config.stash[RESULTS])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    results = session.config.stash.get(RESULTS, None)
    if results is not None and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        Path(os.environ["HAYLOFT_STORES_TABLE"]).write_text(results.page())
