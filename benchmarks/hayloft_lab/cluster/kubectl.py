"""kubectl and Helm of the cluster, as an administrator runs them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hayloft_lab.cluster.node import Node

Object = dict[str, Any]
"""An object of Kubernetes."""


class CommandFailed(Exception):
    """A command ended with an error; the text is what it printed."""


class Kubectl:
    """Commands on the cluster. Safe for threads."""

    def __init__(self, node: Node, programs: Path, kubeconfig: Path) -> None:
        self._node = node
        self._programs = programs
        self._kubeconfig = kubeconfig

    def command(self, program: str, *arguments: str) -> list[str]:
        """A program with the cluster's configuration, to be started here."""
        return self._node.network_command(str(self._programs / program), f"--kubeconfig={self._kubeconfig}", *arguments)

    def _run(self, program: str, *arguments: str, given: str = "", timeout_s: float = 120) -> str:
        result = subprocess.run(
            self.command(program, *arguments),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if result.returncode:
            raise CommandFailed(f"{program} {' '.join(arguments)}: {result.stderr.strip() or result.stdout.strip()}")
        return result.stdout

    def __call__(self, *arguments: str, given: str = "", timeout_s: float = 120) -> str:
        """The output of ``kubectl``. Raises CommandFailed."""
        return self._run("kubectl", *arguments, given=given, timeout_s=timeout_s)

    def helm(self, *arguments: str, values: Mapping[str, Any] | None = None, timeout_s: float = 300) -> str:
        """The output of ``helm``, with values as a file. Raises CommandFailed."""
        if values is None:
            return self._run("helm", *arguments, timeout_s=timeout_s)
        return self._run("helm", *arguments, "--values=-", given=json.dumps(values), timeout_s=timeout_s)

    def apply(self, *objects: Object, dry_run: bool = False) -> None:
        """Applies objects, or has the API server check them. Raises CommandFailed."""
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        # Server-side: without the annotation that repeats the object, and events name one manager.
        flags = ["--dry-run=server"] if dry_run else []
        self("apply", "--server-side", "--force-conflicts", *flags, "-f", "-", given=listed)

    def delete(self, kind: str, name: str, namespace: str = "default", *, wait: bool = True, now: bool = False) -> None:
        """Deletes an object; one that does not exist is deleted. ``now``: without the pod's time to end."""
        flags = [f"--wait={str(wait).lower()}", *(["--now"] if now else [])]
        self("delete", kind, name, f"--namespace={namespace}", "--ignore-not-found", *flags)

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """An object, or None."""
        found = self("get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
        return dict(json.loads(found)) if found.strip() else None

    def objects(self, kind: str, namespace: str = "default", selector: str = "") -> list[Object]:
        """Objects of a kind; ``namespace`` may be ``*``."""
        place = "--all-namespaces" if namespace == "*" else f"--namespace={namespace}"
        return list(json.loads(self("get", kind, place, f"--selector={selector}", "--output=json"))["items"])

    def events(self, name: str, namespace: str = "default") -> list[tuple[str, str, int]]:
        """Reason, text and count of the events of the objects of a name, the oldest first."""
        listed = self.objects("events", namespace)
        of_it = [one for one in listed if one["involvedObject"].get("name") == name]
        of_it.sort(key=lambda one: str(one["metadata"]["creationTimestamp"]))
        return [(one["reason"], one["message"], int(one.get("count") or 1)) for one in of_it]

    def wait_for(
        self, condition: Callable[[], Any], what: str, timeout_s: float = 90, dump: Callable[[], str] | None = None
    ) -> Any:
        """Polls until ``condition`` returns something true, and returns it. Raises CommandFailed with ``dump()``."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise CommandFailed(f"{what}: not within {timeout_s:.0f} s\n{dump() if dump else ''}")
            time.sleep(0.1)
        return found

    def wait_for_pod(
        self, name: str, phase: str = "Running", namespace: str = "default", timeout_s: float = 90
    ) -> Object:
        """The pod once it has a phase; ``Running`` means ready. Raises CommandFailed with what ``kubectl describe``
        prints."""

        def reached() -> Object | None:
            pod = self.get("pod", name, namespace)
            if pod is None or pod["status"].get("phase") != phase:
                return None
            return pod if phase != "Running" or is_ready(pod) else None

        return dict(
            self.wait_for(
                reached,
                f"pod {name} is {phase}",
                timeout_s,
                lambda: self("describe", "pod", name, f"--namespace={namespace}"),
            )
        )


def is_ready(pod: Object) -> bool:
    """Whether a pod has the condition Ready."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
