"""Reads the values that fields of Kubernetes objects may have from the Go types of the API, which alone name them: the
published OpenAPI documents, and every schema that is made from these, call such a field a string.

    go mod download -json k8s.io/api@v0.37.2     # in any Go module; prints Dir
    python -m tools.kubernetes_enums DIR > tests/architecture/kubernetes_enums.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

GROUPS = ("apps", "batch", "coordination", "core", "networking", "policy", "rbac", "scheduling", "storage")

OPEN = re.compile(r".*ConditionType|ResourceName|SecretType|StorageMedium|NodeAddressType|NamespaceFinalizer.*")
"""Types whose constants are examples: other values are allowed."""

_TYPE = re.compile(r"^type (\w+) string", re.MULTILINE)
_CONSTANT = re.compile(r'^\s+\w+\s+(\w+)\s+=\s+"([^"]*)"', re.MULTILINE)
_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r'^\t\w+\s+[*\[\]]*((?:v1\.|core\.|corev1\.)?)(\w+)\s+`json:"(\w+)', re.MULTILINE)
"""Prefix, type and name; with a prefix the type is one of ``core``."""


def enums(directory: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """By the name of a definition, such as ``io.k8s.api.core.v1.Container``: its fields and their values."""
    sources = {
        group: "\n".join(path.read_text() for path in sorted((directory / group / "v1").glob("*types*.go")))
        for group in GROUPS
    }
    values = {group: _values(source) for group, source in sources.items()}
    for group, source in sources.items():
        for struct, body in _STRUCT.findall(source):
            found = {
                field: values["core" if prefix else group].get(kind) for prefix, kind, field in _FIELD.findall(body)
            }
            fields = {field: allowed for field, allowed in sorted(found.items()) if allowed}
            if fields and not struct.endswith(("Status", "Condition")):
                yield f"io.k8s.api.{group}.v1.{struct}", fields


def _values(source: str) -> dict[str, list[str]]:
    """By type."""
    values: dict[str, set[str]] = {name: set() for name in _TYPE.findall(source) if not OPEN.fullmatch(name)}
    for name, value in _CONSTANT.findall(source):
        if name in values:
            values[name].add(value)
    return {name: sorted(found) for name, found in values.items()}


def main() -> int:
    directory = Path(sys.argv[1])
    found = {"source": f"k8s.io/{directory.name}", "enums": dict(sorted(enums(directory)))}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
