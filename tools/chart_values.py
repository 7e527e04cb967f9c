"""The chart's values: the table in ``deploy/chart/README.md``, and the names that ``values.schema.json`` allows.

A value is documented by the comment above it in ``values.yaml``. The schema is written by hand, but for two lists of
names that the driver's source has: the variables of its settings, and the parameters of a StorageClass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
import yaml

from csi_driver import cli
from csi_driver.volumes.parameters import PARAMETERS

CHART = Path("deploy/chart")
PROCESSES = ("controller", "node", "cache", "keeper")
"""The commands that the chart starts."""

NOT_SETTINGS = {
    # Sockets and directories: the templates give them as flags, and mount them.
    *("HAYLOFT_ENDPOINT", "HAYLOFT_SOCKET", "HAYLOFT_DAEMON_SOCKET", "HAYLOFT_KEEPER_SOCKET", "HAYLOFT_NODE_ID"),
    "HAYLOFT_NODE_NAME",
    *("HAYLOFT_STATE_DIR", "HAYLOFT_CACHE_DIR", "HAYLOFT_KUBELET_DIR"),
    # These have values of their own.
    *("HAYLOFT_REGISTRY", "HAYLOFT_REGISTRY_ENDPOINT", "HAYLOFT_CACHE_LIMIT", "HAYLOFT_DAEMON_TIMEOUT"),
    *("HAYLOFT_ALLOWED_ENDPOINT", "HAYLOFT_ALLOWED_ADDRESS", "HAYLOFT_REFUSED_ADDRESS", "HAYLOFT_IDENTITY_ENDPOINT"),
    *("HAYLOFT_TRUSTED_NAMESPACE", "HAYLOFT_SHARED_CACHE_NAMESPACE", "HAYLOFT_ALLOWED_DATASET"),
    "HAYLOFT_IDENTITY_NAMESPACE",
    *("HAYLOFT_METRICS_PORT", "HAYLOFT_WEB_PORT", "HAYLOFT_LOG_LEVEL", "HAYLOFT_LOG_FORMAT"),
    *("HAYLOFT_HEALTH_PORT", "HAYLOFT_MAX_VOLUMES", "HAYLOFT_REGISTRATION_DIR", "HAYLOFT_REGISTRATION_ENDPOINT"),
    *("HAYLOFT_TIER", "HAYLOFT_TIER_SERVICE", "HAYLOFT_TIER_KEY", "HAYLOFT_TIER_CA", "HAYLOFT_TIER_CERT"),
    *("HAYLOFT_TIER_CERT_KEY", "HAYLOFT_TIER_SERVER_NAME", "HAYLOFT_TIER_SIZE", "HAYLOFT_TIER_ZONE"),
    "HAYLOFT_TIER_CROSS_ZONE",
    # A deprecated spelling.
    "HAYLOFT_WARM_UP_FETCHES",
}
"""Variables of the processes that are not allowed in the value ``settings``."""

SECRETS_OF_CLASSES = ("provisioner", "node-stage", "node-publish")
"""Secrets that a StorageClass may name for this driver: it has no attaching, no expansion."""

LONGEST_DEFAULT = 60
"""Characters of a default in the table; a longer one is in ``values.yaml``."""


@dataclass(frozen=True)
class Value:
    """One documented value. ``name`` is its path, with dots."""

    name: str
    default: Any
    meaning: str


def _comment_above(lines: list[str], key: yaml.Node) -> str:
    """The lines of comment that end directly above a key, joined."""
    indent = " " * key.start_mark.column + "# "
    first = key.start_mark.line
    while first and lines[first - 1].startswith(indent):
        first -= 1
    return " ".join(line.removeprefix(indent) for line in lines[first : key.start_mark.line])


def values(text: str) -> Iterator[Value]:
    """The values of a ``values.yaml``, in order. A mapping with a comment is one value, another one a group of them.
    Raises ValueError for a value without a comment."""
    lines = text.splitlines()

    def walk(mapping: yaml.MappingNode, prefix: str) -> Iterator[Value]:
        for key, node in mapping.value:
            name = f"{prefix}{key.value}"
            meaning = _comment_above(lines, key)
            if meaning:
                yield Value(name, yaml.safe_load(yaml.serialize(node)), meaning)
            elif isinstance(node, yaml.MappingNode) and node.value:
                yield from walk(node, f"{name}.")
            else:
                raise ValueError(f"{CHART}/values.yaml:{key.start_mark.line + 1}: write above {name} what it means")

    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{CHART}/values.yaml: it is no mapping")
    yield from walk(root, "")


def _default(value: Any) -> str:
    if value in ("", None):
        return "empty"
    shown = value if isinstance(value, str) else json.dumps(value)
    return f"`{shown}`" if len(shown) <= LONGEST_DEFAULT else "see `values.yaml`"


def table(repository: Path) -> str:
    """Markdown, in the order of ``values.yaml``."""
    rows = ["| value | default | meaning |\n", "|---|---|---|\n"]
    for value in values((repository / CHART / "values.yaml").read_text()):
        rows.append(f"| `{value.name}` | {_default(value.default)} | {value.meaning} |\n")
    return "".join(rows)


def settings() -> list[str]:
    """Variables that the value ``settings`` may have."""
    commands: dict[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009  # of a group alone
    known = {str(parameter.envvar) for name in PROCESSES for parameter in commands[name].params}
    if NOT_SETTINGS - known:
        raise ValueError(f"tools/chart_values.py: no process has {', '.join(sorted(NOT_SETTINGS - known))}")
    return sorted(known - NOT_SETTINGS)


def parameters() -> list[str]:
    """Keys that ``parameters`` of a StorageClass may have."""
    secrets = [f"{purpose}-secret-{part}" for purpose in SECRETS_OF_CLASSES for part in ("name", "namespace")]
    return [*PARAMETERS, *(f"csi.storage.k8s.io/{name}" for name in secrets)]


def schema(repository: Path) -> str:
    """``values.schema.json`` with the names of today's source."""
    content = json.loads((repository / CHART / "values.schema.json").read_text())
    of_settings: Any = {"type": ["string", "integer", "boolean"]}
    content["definitions"]["settings"]["properties"] = {name: of_settings for name in settings()}
    content["definitions"]["parameters"]["properties"] = {name: {"type": "string"} for name in parameters()}
    return json.dumps(content, indent=2) + "\n"
