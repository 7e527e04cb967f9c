"""docs/stores.md, from the reports of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.stores.conformance import COLUMNS
from tests.stores.store_server import StoreServer

WORKS, CANNOT, FAILS = "✓", "–", "✗"

_HEAD = """\
# Stores
Object-store servers that other people wrote, each started on loopback, and the same checks run on a mount of each. \
`make stores` installs them, runs the checks and writes this page; `make stores STORES="moto nginx"` runs some. The \
servers marked with * come with `make set-up-dev` and are part of `make test`.

{works}: works. {cannot}: the store itself cannot, which another client has seen as well; \
[below](#what-the-stores-themselves-cannot) is why. {fails}: fails.

"""
_REASONS = "\n## What the stores themselves cannot\n| stores | check | reason |\n|---|---|---|\n"
_KEYS = """
## Keys that a store does not hold
It refuses them, or changes them to others. All other odd keys are listed and read unchanged, or shown under the names \
that [keys.md](keys.md) gives them.

| stores | key | reason |
|---|---|---|
"""
_OWN_ANSWERS = """
## Answers of their own
To a wrong key or name they answer something else than that it is wrong. The error of the mount shows their code.

| store | check | code | error |
|---|---|---|---|
"""
_FAILURES = "\n## What fails\n| store | check | error |\n|---|---|---|\n"
_CHECKS = "\n## The checks\n| check | what must hold |\n|---|---|\n"


def described(server: type[StoreServer], test: str) -> dict[str, Any]:
    """What a report says of its store; plain values, because it travels between processes."""
    return {
        "test": test,
        "name": server.name,
        "title": server.title + ("*" if server.comes_with_set_up else ""),
        "version": server.version(),
        "protocol": server.protocol,
        "cannot": dict(server.cannot),
        "cannot_hold": dict(server.cannot_hold),
        "own_answers": {test: (code, error.__name__) for test, (error, code) in server.own_answers.items()},
    }


@dataclass
class _Row:
    store: Mapping[str, Any]
    cells: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Results:
    """A pytest plugin of the process that prints the summary."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        store = dict(report.user_properties).get("store")
        if not isinstance(store, dict) or (report.when != "call" and report.passed):
            return
        row = self._rows.setdefault(store["name"], _Row(store))
        if report.failed:
            row.cells[store["test"]] = FAILS
            row.failures[store["test"]] = _last_line(report)
        elif row.cells.get(store["test"]) != FAILS:
            row.cells[store["test"]] = CANNOT if report.skipped else WORKS

    def page(self) -> str:
        """Markdown."""
        rows = sorted(self._rows.values(), key=lambda row: (row.store["protocol"], row.store["title"].lower()))
        headers = [header for header, _ in COLUMNS.values()]
        text = _HEAD.format(works=WORKS, cannot=CANNOT, fails=FAILS)
        text += _line(["store", "version", "protocol", *headers]) + _line(["---"] * 3 + [":-:"] * len(headers))
        for row in rows:
            cells = [row.cells.get(test, " ") for test in COLUMNS]
            text += _line([row.store["title"], row.store["version"], row.store["protocol"], *cells])
        failures = [(row, test, error) for row in rows for test, error in row.failures.items()]
        if failures:
            text += _FAILURES
            text += "".join(_line([row.store["title"], COLUMNS[test][0], error]) for row, test, error in failures)
        text += _REASONS + "".join(
            _line([", ".join(stores), COLUMNS[test][0], reason])
            for (test, reason), stores in _together(rows, "cannot").items()
        )
        text += _KEYS + "".join(
            _line([", ".join(stores), _code(key), reason])
            for (key, reason), stores in _together(rows, "cannot_hold").items()
        )
        text += _OWN_ANSWERS
        for row in rows:
            text += "".join(
                _line([row.store["title"], COLUMNS[test][0], f"`{code}`", error])
                for test, (code, error) in row.store["own_answers"].items()
            )
        text += _CHECKS
        return text + "".join(_line([header, explanation]) for header, explanation in COLUMNS.values())


def _together(rows: list[_Row], field_name: str) -> dict[tuple[str, str], list[str]]:
    """The stores for each entry that they have in common."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for entry in row.store[field_name].items():
            found.setdefault(entry, []).append(row.store["title"])
    return found


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _code(key: str) -> str:
    """In Markdown, within a table; a control character as in Python."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in key)
    return f"`` {shown.replace('|', chr(92) + '|')} ``"


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr).splitlines()[0]
    return text.replace("|", "/")[:200]
