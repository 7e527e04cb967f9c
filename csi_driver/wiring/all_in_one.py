"""Composition of ``hayloft all-in-one``: everything in one process tree, for a laptop and for conformance suites.

This process serves CSI (Identity, Controller, Node). Its children are ``hayloft keeper`` and ``hayloft cache``, the
same processes as on a node of a cluster. A child that dies is restarted. When this process is stopped, it unmounts its
volumes and stops the children; when it is killed, the kernel stops them (``lifetime.die_with_parent``).
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from csi_driver import telemetry
from csi_driver.cache.cache_directory import require_suitable
from csi_driver.catalog.arrow_alone import use_arrow_alone
from csi_driver.csi.health_check_service import HealthCheckService
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import DaemonUnavailable, RegistryUnavailable
from csi_driver.rpc.pb import csi_pb2_grpc, health_pb2_grpc
from csi_driver.rpc.socket_file import remove_stale_socket
from csi_driver.rpc.socket_server import Register, SocketServer, socket_path
from csi_driver.settings import AllInOneSettings, ListingSettings, RegistrySettings
from csi_driver.wiring.child_process import Child
from csi_driver.wiring.core_files import keep_no_core_files
from csi_driver.wiring.daemon_sockets import run_base, run_directories, run_prefix
from csi_driver.wiring.mounted_volumes import MountedVolumes
from csi_driver.wiring.shutdown import STOP_SIGNALS, Signals, watching
from csi_driver.wiring.span_export import exporting_spans
from csi_driver.wiring.version import hayloft_version

if TYPE_CHECKING:  # imported by _controller
    from csi_driver.wiring.controller_process import ControllerServices

logger = logging.getLogger(__name__)

_START_S = 60.0
"""Start-up includes crash recovery of the cache if it was not shut down cleanly."""
_GRACE_S = 3.0
_CHILD_STOP_S = 6.0
"""Together with the grace period and the unmounts less than the 20 to 30 s after which supervisors send SIGKILL."""
_POLL_S = 0.05


class ChildFailed(Exception):
    """A child ended before it was ready. This process exits with the same ``exit_code``."""

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"hayloft {name} ended with exit code {exit_code} before it was ready")
        self.exit_code = exit_code if exit_code > 0 else 1
        self.has_reported = exit_code > 0
        """True if the child printed the error on standard error; a process that a signal ends prints nothing."""


class _Stopped(Exception):
    """Received a stop signal during start-up."""


def run(settings: AllInOneSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidParameter, CacheDirectoryMissing, CacheDirectoryUnusable,
    RegistryUnavailable, and ChildFailed when a child cannot start."""
    keep_no_core_files()
    use_arrow_alone()
    socket = socket_path(settings.endpoint)
    remove_stale_socket(socket)
    _check_directories(settings)
    with ExitStack() as stack:
        signals = stack.enter_context(watching(*STOP_SIGNALS, signal.SIGCHLD))
        directory = stack.enter_context(_run_directory())
        keeper, cache = _children(settings, directory)
        with suppress(_Stopped):
            stack.callback(keeper.stop, _CHILD_STOP_S)
            keeper.start()
            _wait_until(lambda: (directory / "keeper.sock").is_socket(), keeper, signals)
            stack.callback(cache.stop, _CHILD_STOP_S)
            cache.start()
            controller = _controller(settings, stack)
            stack.enter_context(exporting_spans("all-in-one", os.environ))
            daemon = DaemonClient(directory / "cache.sock")
            stack.callback(daemon.close)
            volumes = MountedVolumes(daemon)
            inline = settings.cache_directory / "inline"
            node = NodeService(NodeConfiguration(settings.node_id, inline, settings.kubelet_directory), volumes)
            identity = IdentityService(
                hayloft_version(), node.health.require_daemon, healthy=lambda: server.require_own_socket()
            )
            server = SocketServer(socket, (_services(identity, node, controller),))
            _wait_until(lambda: _answers(daemon), cache, signals)
            stack.callback(volumes.unmount_all)
            with suppress(DaemonUnavailable):
                node.unstage_unpublished()
            node.remove_empty_directories()
            server.start()
            stack.callback(server.stop, _GRACE_S)
            logger.info("ready", extra=telemetry.fields(endpoint=settings.endpoint, node_id=settings.node_id))
            _monitor((keeper, cache), signals)
        logger.info("stopping: unmounting the volumes, then ending the child processes")


def _controller(settings: AllInOneSettings, stack: ExitStack) -> ControllerServices:
    """``stack`` closes what it uses. Imports the stores and the catalog only now, while the cache daemon does the same
    in its process. Called before this process has gRPC's threads, so that the process of listings can be forked."""
    from csi_driver.wiring.controller_process import controller_services
    from csi_driver.wiring.listing_processes import ListingProcesses

    registry = RegistrySettings(location=os.fspath(settings.registry_directory))
    policy = settings.policy.protecting(registry, settings.cache_directory)
    lister = ListingProcesses(ListingSettings(), policy)
    stack.callback(lister.close)
    lister.start()
    return controller_services(registry, policy, lister, settings.cache_directory / "state" / "manifests")


def _services(identity: IdentityService, node: NodeService, controller: ControllerServices) -> Register:
    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        controller.add_to(server)
        csi_pb2_grpc.add_NodeServicer_to_server(node, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthCheckService(identity.require_ready), server)

    return register


def _check_directories(settings: AllInOneSettings) -> None:
    """The cache directory must exist: creating a path that was mistyped or not mounted would fill another disk."""
    require_suitable(settings.cache_directory)
    try:
        settings.registry_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryUnavailable(
            f"--registry {settings.registry_directory}: cannot be created: {error.strerror}; name a writable directory"
        ) from error


@contextmanager
def _run_directory() -> Iterator[Path]:
    """A private temporary directory for the sockets between the processes."""
    base = run_base()
    _remove_stale_directories(base)
    path = Path(tempfile.mkdtemp(prefix=run_prefix(os.getpid()), dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_stale_directories(base: Path) -> None:
    """Removes the run directories of processes that were killed. The process id is part of the name."""
    for path, owner in run_directories(base):
        if not Path("/proc", str(owner)).exists() and path.stat().st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)


def _children(settings: AllInOneSettings, directory: Path) -> tuple[Child, Child]:
    program = (sys.executable, "-m", "csi_driver.cli")
    keeper_socket = f"--socket={directory / 'keeper.sock'}"
    cache = [
        *(f"--socket={directory / 'cache.sock'}", f"--keeper-socket={directory / 'keeper.sock'}"),
        f"--state-dir={settings.cache_directory / 'state'}",
        f"--cache-dir={settings.cache_directory}",
        f"--registry={settings.registry_directory}",
        *(f"--allowed-endpoint={prefix}" for prefix in settings.policy.allowed_endpoints),
        *(("--allow-file-urls",) if settings.policy.allow_file_urls else ()),
        *(f"--trusted-namespace={namespace}" for namespace in settings.policy.trusted_namespaces),
        *settings.cache_arguments,
    ]
    return (
        Child("keeper", (*program, "keeper", keeper_socket, *settings.child_arguments)),
        Child("cache", (*program, "cache", *cache, *settings.child_arguments)),
    )


def _wait_until(ready: Callable[[], bool], child: Child, signals: Signals) -> None:
    """Raises ChildFailed, DaemonUnavailable after ``_START_S``, _Stopped."""
    deadline_s = time.monotonic() + _START_S
    while not ready():
        ended = child.poll()
        if ended is not None:
            raise ChildFailed(ended.name, ended.exit_code)
        if signals.wait(_POLL_S) in STOP_SIGNALS:
            raise _Stopped
        if time.monotonic() >= deadline_s:
            raise DaemonUnavailable(f"hayloft {child.name} is not ready after {_START_S:.0f} s; see its log")


def _answers(daemon: DaemonClient) -> bool:
    try:
        daemon.report()
    except DaemonUnavailable:
        return False
    return True


def _monitor(children: tuple[Child, ...], signals: Signals) -> None:
    """Restarts children that die, until a stop signal. Sleeps until a child dies (SIGCHLD) or is to be restarted."""
    while True:
        for child in children:
            ended = child.poll()
            if ended is not None:
                facts = telemetry.fields(
                    child=ended.name, exit_code=ended.exit_code, restart_in_s=f"{child.next_poll_s() or 0.0:.1f}"
                )
                logger.warning("a child process ended unexpectedly and will be restarted", extra=facts)
        waits = [wait for child in children if (wait := child.next_poll_s()) is not None]
        if signals.wait(min(waits, default=None)) in STOP_SIGNALS:
            return
