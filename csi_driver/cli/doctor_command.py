"""``hayloft doctor``: looks at this node, and at a dataset's store, for what makes volumes fail or slow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from csi_driver.cli import options as flags
from csi_driver.cli.daemon_connection import connected
from csi_driver.cli.exit_codes import ExitCode, exit_code_of
from csi_driver.cli.text_tables import labelled, terminal_width, write, write_json
from csi_driver.model.conditions import Severity
from csi_driver.model.errors import DaemonUnavailable, RequestError
from csi_driver.volumes.node_operations import NodeStatus
from csi_driver.wiring.node_checks import (
    CheckResult,
    Level,
    Machine,
    disk_checks,
    fuse_checks,
    kernel_checks,
    limit_checks,
    proxy_checks,
    read_ahead_checks,
    selinux_checks,
)

_KUBELET_DIRECTORY = Path("/var/lib/kubelet")
_CACHE_DIRECTORY = Path("/var/lib/hayloft/cache")
"""Of ``deploy/kubernetes``."""

_LABEL_WIDTH = 26

DEADLINE_S = 10.0
"""Of each request to a store: the operator waits for the answer."""


def doctor(
    url: flags.UrlToCheck = "",
    daemon_socket: flags.OwnDaemonSocket = None,
    cache_dir: flags.CacheDirectoryToCheck = None,
    kubelet_dir: flags.KubeletDirectoryToCheck = _KUBELET_DIRECTORY,
    store_endpoint: flags.StoreEndpoint = None,
    region: flags.Region = None,
    anonymous: flags.Anonymous = False,
    json: flags.Json = False,
) -> int:
    """Look for what makes volumes fail or slow.

    Kernel, FUSE, limits, disk, SELinux, proxies, and the store of a URL with the credentials of the environment. Each
    finding has its remedy."""
    status, process_id, daemon = _daemon(daemon_socket)
    results = [*daemon, *_node_checks(status, process_id, cache_dir, kubelet_dir)]
    if url:
        results.extend(_store_checks(url, store_endpoint, region, anonymous=anonymous))
    else:
        results.extend(proxy_checks(os.environ))
    if json:
        write_json(doctor_document(results))
    else:
        write(doctor_lines(results, terminal_width()))
    bad = any(result.level is Level.PROBLEM for result in results)
    return ExitCode.FINDINGS if bad else ExitCode.SUCCESS


def _daemon(socket: flags.OwnDaemonSocket) -> tuple[NodeStatus | None, int, list[CheckResult]]:
    """What the daemon says of itself, if one answers, and the id of its process as it is seen from here; 0: it is not
    seen."""
    try:
        with connected(socket) as client:
            status, process = client.status(), client.process()
    except DaemonUnavailable as error:
        remedy = {3: "Start it, or look why it ended; the other checks go on without it"}.get(exit_code_of(error), "")
        return None, 0, [CheckResult("daemon", Level.PROBLEM, str(error), remedy)]
    except RequestError as error:  # several daemons
        return None, 0, [CheckResult("daemon", Level.NOTE, str(error), "Give --daemon-socket")]
    report = status.report
    results = [CheckResult("daemon", Level.OK, f"version {report.version}, process {report.process_id}")]
    for where, condition in _conditions(status):
        level = Level.WARNING if condition.severity is Severity.DEGRADED else Level.PROBLEM
        results.append(CheckResult("condition", level, f"{where}{condition.sentence}", f"{condition.remedy}"))
    results.extend(_passthrough(status))
    return status, process.process_id if process else 0, results


def _conditions(status: NodeStatus) -> Iterator[Any]:
    from csi_driver.volumes.status_documents import all_conditions

    for volume_id, condition in all_conditions(status):
        yield f"volume {volume_id}: " if volume_id else "", condition


def _passthrough(status: NodeStatus) -> Iterator[CheckResult]:
    if not status.passthrough_allowed:
        yield CheckResult(
            "reads",
            Level.WARNING,
            "the daemon was started with --no-passthrough: it serves the reads of cached files itself",
            "Leave the flag out (HAYLOFT_PASSTHROUGH)",
        )
        return
    served = [one.volume.volume_id for one in status.volumes if not one.passthrough]
    if served:
        yield CheckResult(
            "reads",
            Level.WARNING,
            f"cached files of these volumes are served by the daemon and not passed through: {', '.join(served)}",
            "See `kernel` and `passthrough` below; the daemon needs CAP_SYS_ADMIN, and its log says why it has none",
        )
    elif status.volumes:
        yield CheckResult("reads", Level.OK, "the kernel reads cached files of all volumes by itself")


def _node_checks(
    status: NodeStatus | None, process_id: int, cache_dir: Path | None, kubelet_dir: Path
) -> Iterator[CheckResult]:
    machine = Machine()
    yield from kernel_checks(machine)
    yield from fuse_checks(machine)
    directory = cache_dir or (Path(status.cache_directory) if status else _CACHE_DIRECTORY)
    limit_bytes = status.report.cache_limit_bytes if status else 0
    if cache_dir is not None or status is not None or directory.is_dir():
        shared_with = status.cache_shared_with if status else ""
        yield from disk_checks(machine, directory, kubelet_dir, limit_bytes, shared_with)
    if process_id:
        yield from limit_checks(machine, process_id)
    if status is not None:
        yield from read_ahead_checks(machine, {one.volume.volume_id: one.device for one in status.volumes})
    yield from selinux_checks(machine)


def _store_checks(url: str, endpoint: str | None, region: str | None, *, anonymous: bool) -> Iterator[CheckResult]:
    from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
    from csi_driver.objects.endpoints import service_endpoint
    from csi_driver.wiring.store_checks import store_checks

    options = StoreOptions(
        endpoint=endpoint, region=region, anonymous=anonymous, deadline_s=DEADLINE_S, request_timeout_s=DEADLINE_S
    )
    parsed = DatasetUrl.parse(url)
    yield from proxy_checks(os.environ, service_endpoint(parsed, options, Credentials()))
    yield from store_checks(parsed, options, Credentials())


def doctor_lines(results: Iterable[CheckResult], width: int) -> list[str]:
    """A line for each result, its remedy below it, and a line of totals."""
    found = list(results)
    lines = []
    for result in found:
        lines += labelled(f"{result.level:<8} {result.check}", result.text, width, _LABEL_WIDTH)
        if result.remedy and result.level is not Level.OK:
            lines += labelled("", f"-> {result.remedy}", width, _LABEL_WIDTH)
    counts = Counter(result.level for result in found)
    problems, warnings = counts[Level.PROBLEM], counts[Level.WARNING]
    return [*lines, f"problems: {problems}, warnings: {warnings}"]


def doctor_document(results: Iterable[CheckResult]) -> dict[str, Any]:
    """Of ``hayloft doctor --json``."""
    found = list(results)
    return {
        "problems": sum(result.level is Level.PROBLEM for result in found),
        "warnings": sum(result.level is Level.WARNING for result in found),
        "results": [
            {"check": one.check, "level": str(one.level), "text": one.text, "remedy": one.remedy} for one in found
        ],
    }
