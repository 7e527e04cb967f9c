"""The pages of the site: every page has a place, links lead somewhere, and commands and values are real."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main
import yaml

from hayloft_bench import cli as bench_cli
from tests.architecture.driver_manifests import COMMANDS
from tests.architecture.kubernetes_files import CHART, bodies_in
from tests.architecture.source_tree import REPOSITORY
from tools import docs_site_check, docs_site_hooks, storage_costs

DOCS = REPOSITORY / "docs"
GUIDES = [
    DOCS / f"{name}.md"
    for name in (
        *("index", "getting-started-laptop", "getting-started-cluster", "getting-started-eks", "concepts", "migration"),
        *("which-storage", "running"),
    )
]
BENCH: dict[str, Any] = getattr(typer.main.get_command(bench_cli.app), "commands")  # noqa: B009  # of a group alone

pytestmark = pytest.mark.promise("S663")


@cache
def _added() -> set[str]:
    return docs_site_hooks.linked_outside(REPOSITORY)


class _Loader(yaml.SafeLoader):
    """mkdocs' own tags are nothing here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def _entries(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [entry for one in inner for entry in _entries(one)]


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader=_Loader)  # noqa: S506  # a SafeLoader
    pages = sorted(path.name for path in DOCS.glob("*.md"))
    assert sorted(_entries(config["nav"])) == pages


def test_decisions_are_added_with_their_titles() -> None:
    config = SimpleNamespace(nav=[{"Develop": ["architecture.md"]}])
    (decisions,) = docs_site_hooks.on_config(config).nav[-1]["Develop"][-1].values()
    assert len(decisions) == len(list((DOCS / "decisions").glob("0*.md"))) + 1


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_every_link_has_a_place_in_the_site(page: Path) -> None:
    """Inside of docs/, or among what is added to it."""
    source, added = str(page.relative_to(REPOSITORY)), _added()
    for target in docs_site_hooks.link_targets(page.read_text()):
        path = docs_site_hooks.resolved(source, target)
        if path is not None:
            assert path in added or (path.startswith("docs/") and (REPOSITORY / path).is_file()), target


def test_links_are_rewritten_outside_of_code_alone() -> None:
    page = "[a](../deploy/chart/README.md#x)\n```\n[b](../deploy/chart)\n```\n[c](limits.md)\n[d](../csi_driver/cli)"
    made = docs_site_hooks.with_links(page, lambda target: docs_site_hooks.site_link("docs/index.md", target))
    expected = page.replace("[a](../", "[a](repository/").replace(
        "../csi_driver/cli", "repository/csi_driver/cli/index.md"
    )
    assert made == expected
    chart = "deploy/chart/README.md"
    assert docs_site_hooks.site_link(chart, "../../docs/limits.md") == "../../../limits.md"


def test_lists_and_tables_begin_after_a_blank_line() -> None:
    """Python's Markdown takes them for text otherwise."""
    page = "text\n- a\n- b\n\n**bold**\n1. c\ntext\n| d |\n|---|\n```\nx\n- y\n```"
    made = docs_site_hooks.with_blank_lines(page)
    assert made == "text\n\n- a\n- b\n\n**bold**\n\n1. c\ntext\n\n| d |\n|---|\n```\nx\n- y\n```"


def test_a_site_that_loads_from_elsewhere_or_has_broken_links_is_found(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search_index.json").write_text("{}")
    page = tmp_path / "index.html"
    page.write_text('<h1 id="top">x</h1><a href="#top">a</a><a href="https://example.com/">b</a><img src="a.svg">')
    assert docs_site_check.faults(tmp_path) == []
    for fault in (
        '<script src="https://example.com/a.js"></script>',
        '<link rel="stylesheet" href="//example.com/a.css">',
        '<a href="#none">c</a>',
        '<a href="none.html">d</a>',
    ):
        page.write_text(fault)
        assert len(docs_site_check.faults(tmp_path)) == 1, fault
    page.write_text("")
    (tmp_path / "a.css").write_text("@import url(https://example.com/b.css);")
    assert len(docs_site_check.faults(tmp_path)) == 1


def _commands(page: Path) -> list[list[str]]:
    """Words of each `hayloft …` of a page: in blocks of a shell, and in code of a line that is a complete command."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`((?:kubectl )?hayloft [a-z-]+[^`]*)`", rest)
    found = []
    for line in lines:
        place = re.search(r"(?:^(?:\w+=\S+ )*|-- |\| )(?:kubectl )?(?=hayloft [a-z-]+\b)", line)
        if place:
            words = shlex.split(line[place.end() :], comments=True)
            found.append(["kubectl"] * line.startswith("kubectl hayloft") + words)
    return found


@pytest.mark.parametrize("page", [*GUIDES, DOCS / "troubleshooting.md"], ids=lambda page: page.name)
def test_commands_of_a_page_exist_with_their_flags(page: Path) -> None:
    plugin = (REPOSITORY / "deploy/kubectl/kubectl-hayloft").read_text()
    for words in _commands(page):
        if words[0] == "kubectl":
            assert f'"{words[2]}"' in plugin, words
            continue
        name, rest = words[1], words[2:]
        if name == "bench":
            command, rest = BENCH[rest[0]], rest[1:]
        elif name == "demo":
            assert {word for word in rest if word.startswith("--")} <= {"--scale"}
            continue
        else:
            assert name in COMMANDS, words
            command = COMMANDS[name]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert flags <= known, words


def test_the_pages_have_commands() -> None:
    """Otherwise the test above says nothing."""
    assert sum(len(_commands(page)) for page in GUIDES) >= 20


def _value(values: Any, path: str) -> bool:
    for step in path.split("."):
        if not isinstance(values, dict) or step not in values:
            return False
        values = values[step]
    return True


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_values_of_the_chart_are_real(page: Path) -> None:
    import jsonschema  # takes more than a second, in each process that collects tests

    text = page.read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path in re.findall(r"--set ([A-Za-z.]+)=", text):
        assert _value(values, path), path
    schema = json.loads((CHART / "values.schema.json").read_text())
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for body in bodies_in(block):
            if "kind" not in body:
                jsonschema.validate(body, schema)


def test_prices_that_were_not_found_are_said_to_be() -> None:
    table = storage_costs.table(REPOSITORY)
    assert "| Instance store | not found |" in table
    assert "2026-" in table
    assert storage_costs.rates(REPOSITORY).count("not measured here") == 3
