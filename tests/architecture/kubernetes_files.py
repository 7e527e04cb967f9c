"""The Kubernetes files of the repository, read for the tests about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tests.architecture.source_tree import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
CHART = DEPLOY / "chart"
EXAMPLES = REPOSITORY / "examples"
IMAGE = "hayloft/hayloft"


@dataclass(frozen=True)
class Document:
    """One object of a YAML file."""

    path: Path
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.body["metadata"].get("namespace", "default"))

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.kind}/{self.body.get('metadata', {}).get('name', '')}"


@dataclass(frozen=True)
class Container:
    """A container and the pod that it is in."""

    document: Document
    body: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.body["name"])

    @property
    def is_ours(self) -> bool:
        return re.split("[:@]", str(self.body["image"]))[0] == IMAGE

    @property
    def command(self) -> str:
        """``node`` in ``hayloft node --endpoint=...``."""
        return str(self.body["args"][0])

    @property
    def flags(self) -> dict[str, str]:
        """Name with its dashes, and value; a flag without one has an empty value."""
        parts = (str(argument).partition("=") for argument in self.body.get("args", []))
        return {name: value for name, _, value in parts if name.startswith("--")}

    def on_the_host(self, path: str) -> str:
        """Where a path of the container lies: on the host, or in a volume of the pod that has no place there."""
        mounts = {PurePosixPath(mount["mountPath"]): mount["name"] for mount in self.body["volumeMounts"]}
        sought = PurePosixPath(path.removeprefix("unix://"))
        holder = max((place for place in mounts if sought.is_relative_to(place)), key=lambda place: len(place.parts))
        volume = next(one for one in pod_spec(self.document)["volumes"] if one["name"] == mounts[holder])
        root = volume["hostPath"]["path"] if "hostPath" in volume else f"{self.document}/{volume['name']}"
        return str(PurePosixPath(root) / sought.relative_to(holder))


def bodies_in(text: str) -> list[Any]:
    """The objects of a YAML text. Parsed in C, which takes a tenth of the time."""
    return [body for body in yaml.load_all(text, Loader=yaml.CSafeLoader) if body]


@cache
def documents(folder: Path) -> list[Document]:
    """Everything below a folder, in order; files that are not for Kubernetes itself are left out, and templates."""
    found = []
    for path in sorted(path for path in folder.rglob("*.yaml") if CHART not in path.parents):
        found += [Document(path, body) for body in bodies_in(path.read_text()) if body["kind"] != "Kustomization"]
    return found


def documents_in_markdown(path: Path) -> list[Document]:
    """The YAML that a page shows."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [Document(path, body) for block in blocks for body in bodies_in(block)]


def kustomizations() -> list[Path]:
    return sorted(DEPLOY.rglob("kustomization.yaml"))


def pod_spec(document: Document) -> dict[str, Any]:
    """The pod that a document makes; empty if it makes none."""
    spec = document.body.get("spec", {})
    if document.kind == "Pod":
        return dict(spec)
    if document.kind not in ("Deployment", "DaemonSet", "StatefulSet", "Job"):
        return {}
    return dict(spec.get("template", {}).get("spec", {}))


def containers(documents: list[Document]) -> list[Container]:
    return [
        Container(document, body)
        for document in documents
        for part in ("initContainers", "containers")
        for body in pod_spec(document).get(part, [])
    ]


def variables_used(container: Container) -> set[str]:
    """Names of ``$(NAME)`` in the arguments."""
    return {name for argument in container.body.get("args", []) for name in re.findall(r"\$\((\w+)\)", str(argument))}


_SHELL_WORDS = {"do", "done", "for", "if", "then", "else", "fi", "while", "!"}


def programs_called(container: Container) -> set[str]:
    """The programs that a container's command starts, also in the words of a shell. ``time`` is one of ``bash``."""
    command = [str(word) for word in container.body.get("command", [])]
    found = set(command[:1])
    if found <= {"sh", "bash"} and command[1:2] == ["-c"]:
        for part in re.split(r"\|\|?|&&|;|\n|\$\(", command[2]):
            words = part.split()
            while words and (words[0] in _SHELL_WORDS or (words[0] == "time" and command[0] == "bash")):
                words = [] if words[0] == "for" else words[1:]
            found |= set(words[:1])
    return found


def references(value: Any, keys: set[str]) -> Iterator[tuple[str, Any]]:
    """All values of the given keys, wherever in a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in keys:
                yield key, inner
            yield from references(inner, keys)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner, keys)
