"""Composition of ``hayloft all-in-one``: everything in one process tree, for a laptop and for conformance suites.

This process speaks CSI (Identity, Controller, Node). Its children are ``hayloft keeper`` and ``hayloft cache``, as on
a node of a cluster, so that what is tried here is what runs there. A child that dies is started again; when this
process is stopped it unmounts its volumes and ends them; when it is killed they end with it.
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

import grpc

from csi_driver import telemetry
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import (
    CacheDirectoryMissing,
    DaemonUnavailable,
    RegistryUnavailable,
)
from csi_driver.rpc.pb import csi_pb2_grpc
from csi_driver.rpc.socket_server import Register, SocketServer, make_way, socket_path
from csi_driver.settings import AllInOneSettings, RegistrySettings
from csi_driver.wiring.children import Child
from csi_driver.wiring.lifetime import STOP_SIGNALS, Signals, watching
from csi_driver.wiring.mounted_volumes import MountedVolumes
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

_START_S = 60.0
"""A cache that was not shut down in order may be looked through first."""
_GRACE_S = 3.0
_CHILD_STOP_S = 6.0
"""Together with the grace and the unmounting less than the 20 to 30 s after which those who stop us use force."""
_POLL_S = 0.05


class ChildFailed(Exception):
    """A child ended before it was ready. ``exit_code`` is to be passed on."""

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"hayloft {name} ended with exit code {exit_code} before it was ready")
        self.exit_code = exit_code if exit_code > 0 else 1
        self.has_said_why = exit_code > 0
        """In one line of its own on standard error; a signal ends a process without a word."""


class _Stopped(Exception):
    """A signal asked to stop while starting."""


def run(settings: AllInOneSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidParameter, CacheDirectoryMissing, RegistryUnavailable, and
    ChildFailed when a child cannot start."""
    socket = socket_path(settings.endpoint)
    make_way(socket)
    _check_directories(settings)
    with ExitStack() as stack:
        signals = stack.enter_context(watching(*STOP_SIGNALS, signal.SIGCHLD))
        directory = stack.enter_context(_run_directory())
        keeper, cache = _children(settings, directory)
        daemon = DaemonClient(directory / "cache.sock")
        stack.callback(daemon.close)
        with suppress(_Stopped):
            stack.callback(keeper.stop, _CHILD_STOP_S)
            keeper.start()
            _wait_until(lambda: (directory / "keeper.sock").is_socket(), keeper, signals)
            stack.callback(cache.stop, _CHILD_STOP_S)
            cache.start()
            volumes = MountedVolumes(daemon)
            server = SocketServer(socket, (_services(settings, volumes),))
            _wait_until(lambda: _answers(daemon), cache, signals)
            stack.callback(volumes.unmount_all)
            server.start()
            stack.callback(server.stop, _GRACE_S)
            logger.info("ready", extra=telemetry.fields(endpoint=settings.endpoint, node_id=settings.node_id))
            _look_after((keeper, cache), signals)
        logger.info("stopping")


def _services(settings: AllInOneSettings, volumes: MountedVolumes) -> Register:
    """Imports the stores and the catalog only here, while the cache daemon does the same on its own."""
    from csi_driver.wiring.controller_process import controller_service

    identity = IdentityService(hayloft_version(), ready=volumes.report)
    registry = RegistrySettings(location=os.fspath(settings.registry_directory))
    controller = controller_service(registry, settings.policy, settings.cache_directory / "state" / "manifests")
    inline = settings.cache_directory / "inline"
    node = NodeService(NodeConfiguration(settings.node_id, inline, settings.kubelet_directory), volumes)

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        csi_pb2_grpc.add_ControllerServicer_to_server(controller, server)
        csi_pb2_grpc.add_NodeServicer_to_server(node, server)

    return register


def _check_directories(settings: AllInOneSettings) -> None:
    """The cache directory must be there, because a path that was mistyped or not mounted would fill another disk."""
    if not settings.cache_directory.is_dir():
        raise CacheDirectoryMissing(
            f"--cache-dir {settings.cache_directory}: no such directory; make it on the disk that shall hold the cache"
        )
    try:
        settings.registry_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryUnavailable(
            f"--registry {settings.registry_directory}: cannot be made: {error.strerror}; name a directory to write to"
        ) from error


@contextmanager
def _run_directory() -> Iterator[Path]:
    """A private directory for the sockets between the processes, with a short path, gone at the end."""
    base = Path("/run") if os.access("/run", os.W_OK) else Path(tempfile.gettempdir())
    _sweep(base)
    path = Path(tempfile.mkdtemp(prefix=f"hayloft-{os.getpid()}-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(base: Path) -> None:
    """Removes run directories of processes that were killed. Their names hold the process id."""
    for path in base.glob("hayloft-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists() and path.stat().st_uid == os.geteuid():
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
        *settings.cache_arguments,
    ]
    return (
        Child("keeper", (*program, "keeper", keeper_socket, *settings.child_arguments)),
        Child("cache", (*program, "cache", *cache, *settings.child_arguments)),
    )


def _wait_until(ready: Callable[[], bool], child: Child, signals: Signals) -> None:
    """Raises ChildFailed, DaemonUnavailable after ``_START_S``, _Stopped."""
    give_up_s = time.monotonic() + _START_S
    while not ready():
        ended = child.look_after()
        if ended is not None:
            raise ChildFailed(ended.name, ended.exit_code)
        if signals.wait(_POLL_S) in STOP_SIGNALS:
            raise _Stopped
        if time.monotonic() >= give_up_s:
            raise DaemonUnavailable(f"hayloft {child.name} is not ready after {_START_S:.0f} s; its log tells more")


def _answers(daemon: DaemonClient) -> bool:
    try:
        daemon.report()
    except DaemonUnavailable:
        return False
    return True


def _look_after(children: tuple[Child, ...], signals: Signals) -> None:
    """Until a signal asks to stop. Sleeps until a child dies or is to be started again."""
    while True:
        for child in children:
            ended = child.look_after()
            if ended is not None:
                facts = telemetry.fields(child=ended.name, exit_code=ended.exit_code, again_in_s=child.next_look_s())
                logger.warning("a child process ended and will be started again", extra=facts)
        waits = [wait for child in children if (wait := child.next_look_s()) is not None]
        if signals.wait(min(waits, default=None)) in STOP_SIGNALS:
            return
