"""The servers of a run: on loopback, or in a network namespace behind the shaped path."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hayloft_bench.errors import MissingPrerequisite, ProcessFailed
from hayloft_bench.network.shaped_path import ShapedPath
from hayloft_lab.nginx_files import NginxFiles
from hayloft_lab.nginx_process import HOST, NginxFailed, find_nginx
from hayloft_lab.seaweedfs import SeaweedFsServer


def start_store(directory: Path, shaped: ShapedPath | None, stack: contextlib.ExitStack) -> SeaweedFsServer:
    """``stack`` stops it."""
    if shaped is None:
        return stack.enter_context(SeaweedFsServer(directory))
    with shaped.inside():
        return stack.enter_context(SeaweedFsServer(directory, host=shaped.address))


def start_web_server(work: Path, shaped: ShapedPath | None, stack: contextlib.ExitStack) -> NginxFiles:
    """Serves ``work / "plain"``; ``stack`` stops it. Raises MissingPrerequisite, ProcessFailed."""
    if find_nginx() is None:
        raise MissingPrerequisite("nginx is not installed; your distribution has it")
    with contextlib.nullcontext() if shaped is None else shaped.inside():
        server = NginxFiles(work / "web", work / "plain", HOST if shaped is None else shaped.address)
        stack.callback(server.stop)
        try:
            server.start()
        except NginxFailed as error:
            raise ProcessFailed(f"nginx did not start: {error}") from None
    return server
