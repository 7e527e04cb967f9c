"""The alerts and the dashboard: checked by promtool, and against the names and labels that the code exports."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi_driver.wiring.metric_table import ALL, OF_DAEMON

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = REPOSITORY / "deploy" / "monitoring"
PROMTOOL = REPOSITORY / ".tools" / "bin" / "promtool"

OF_PROMETHEUS = {"up", "ALERTS"}
_RECORDED = re.compile(r"\b(hayloft:[\w:]+)")
_SELECTOR = re.compile(r"\b((?:hayloft|process)_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_OF_TARGETS = {"namespace", "node", "instance", "job", "endpoint", "pod", "service", "container"}
_SUFFIXES = ("_bucket", "_sum", "_count")

needs_promtool = pytest.mark.skipif(
    not PROMTOOL.exists() and not os.environ.get("HAYLOFT_REQUIRE_ALL"), reason="promtool is not built: .ci/promtool"
)


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries_of_dashboard() -> Iterator[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [PROMTOOL, *arguments], cwd=MONITORING, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


@needs_promtool
@pytest.mark.promise("S604")
def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml")


@needs_promtool
@pytest.mark.promise("S604")
def test_each_alert_fires_for_what_is_bad_and_for_nothing_else() -> None:
    promtool("test", "rules", "alerts.test.yml")


@pytest.mark.promise("S604")
def test_each_alert_has_a_test_a_runbook_and_a_severity() -> None:
    tests = (MONITORING / "alerts.test.yml").read_text()
    page = (REPOSITORY / "docs" / "monitoring.md").read_text()
    for rule in rules():
        if "alert" in rule:
            assert f'alertname="{rule["alert"]}"' in tests, rule["alert"]
            assert f"### {rule['alert']}\n" in page, rule["alert"]
            assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"  # type: ignore[index]
            assert rule["labels"]["severity"] in ("critical", "warning", "info")  # type: ignore[index]


@pytest.mark.promise("S603")
def test_rules_and_dashboard_use_only_metrics_and_labels_that_are_exported() -> None:
    specs = {spec.name: spec for spec in ALL}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    queries = [*(rule["expr"] for rule in rules()), *queries_of_dashboard()]
    assert len(queries) > 40
    for query in queries:
        for name in _RECORDED.findall(query):
            assert name in recorded, f"{name} in {query}"
        for name, matchers in _SELECTOR.findall(_RECORDED.sub("", query)):
            if name in OF_PROMETHEUS:
                continue
            base = next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), name)
            spec = specs.get(name) or specs.get(base)
            assert spec is not None, f"{name} in {query}"
            assert (spec.kind == "histogram") == (spec.name != name), f"{name} in {query}"
            labels = set(_MATCHER.findall(matchers)) - _OF_TARGETS - {"le"}
            assert labels <= set(spec.labels), f"{name} has no {labels - set(spec.labels)}: {query}"


def test_the_dashboard_shows_each_kind_of_metric() -> None:
    shown = " ".join(queries_of_dashboard())
    families = {spec.name.split("_")[1] for spec in OF_DAEMON if spec.name.startswith("hayloft_")}
    missing = {family for family in families if f"hayloft_{family}" not in shown}
    assert missing <= {"lost", "keeper", "scrubbed", "saved", "write", "adoption", "resident", "warmup", "warmups"}


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    boxes = [panel["gridPos"] for panel in panels]
    cells = {
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    }
    assert len(cells) == sum(box["w"] * box["h"] for box in boxes), "no two panels overlap"
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    assert all(target["refId"] and target["expr"] for panel in panels for target in panel.get("targets", ()))


def test_grafanas_own_schema_knows_every_field_of_the_dashboard() -> None:
    """A field that Grafana does not know is left out without a word when it loads the dashboard."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    written = json.loads((MONITORING / "dashboard.json").read_text())
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(json.loads(json.dumps(written)))))
    assert list(_lost(written, read)) == []


def _lost(written: Any, read: Any, place: str = "") -> Iterator[str]:
    """What is in the first and not, or otherwise, in the second: that one may have defaults besides."""
    if isinstance(written, dict) and isinstance(read, dict):
        for name, value in written.items():
            yield from _lost(value, read[name], f"{place}.{name}") if name in read else (f"{place}.{name}",)
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, (mine, theirs) in enumerate(zip(written, read, strict=True)):
            yield from _lost(mine, theirs, f"{place}[{number}]")
    elif written != read:
        yield f"{place}: {written!r} is read as {read!r}"
