"""A process that has imported what the commands of ``hayloft`` import, and becomes one of them by a fork:
``python -m tests.support.fork_server DESCRIPTOR``, started by ``forked_command.py``.

A daemon, and the process of its first listing, import for a second and a half of processor time. Most tests are about
what a daemon does after that. A fork has the rest of a new process: its own session if wanted, environment, working
directory, standard streams and exit code. It differs from one in /proc/PID/cmdline and /proc/PID/environ, in shared
memory, and in that no module is missing or imported late.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from csi_driver.wiring import child_process
from csi_driver.wiring.shutdown import PARENT_VARIABLE
from csi_driver.wiring.single_thread import has_one_thread, import_without_threads

MESSAGE_BYTES = 1 << 18
STATUS = struct.Struct("<i")

MODULES = (
    *("csi_driver.cli.commands", "csi_driver.cli.node_command", "csi_driver.wiring.keeper_process"),
    *("csi_driver.wiring.cache_process", "csi_driver.wiring.node_process", "csi_driver.wiring.all_in_one"),
    *("csi_driver.wiring.controller_process", "csi_driver.wiring.listing_process"),
    *("csi_driver.objects.s3.s3_factory", "csi_driver.objects.web.web_factory"),
)


def serve(control: socket.socket) -> None:
    """Until the other side is closed. Each message brings the standard streams of a command and the pipe on which its
    process id and its exit code are returned."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _watch(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(command: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """The parent of the command: a process for each, which waits for nothing else."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, pipe = descriptors
    pid = os.fork()
    if pid == 0:
        _become(command, streams)
    os.write(pipe, STATUS.pack(pid))
    _, status = os.waitpid(pid, 0)
    os.write(pipe, STATUS.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(command: dict[str, Any], streams: list[int]) -> NoReturn:
    try:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        _close_all_but_streams()
        if command["new_session"]:
            os.setsid()
        os.chdir(command["directory"])
        os.environ.clear()
        os.environ.update(command["environment"])
        child_process.Child.start = _start_child  # type: ignore[method-assign, assignment]
    except BaseException:  # noqa: BLE001  # of the command, whose process ends here
        traceback.print_exc()
        os._exit(1)
    _run_and_exit(command["arguments"])


def _close_all_but_streams() -> None:
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)


def _run_and_exit(arguments: list[str]) -> NoReturn:
    code = 1
    try:
        sys.argv = ["hayloft", *arguments]
        code = _run(arguments)
        threading._shutdown()  # type: ignore[attr-defined]  # as at the end of a program: waits for threads
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001  # of the command, whose process ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    from csi_driver.cli import main

    try:
        main(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


# -- the children of hayloft all-in-one --

_start_new_process = child_process.Child.start


def _start_child(child: child_process.Child) -> None:
    """In place of ``Child.start``: a fork while all-in-one has one thread, at its start; later a new process."""
    if not has_one_thread():
        _start_new_process(child)
        return
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _close_all_but_streams()
        Path("/proc/self/comm").write_text(child.name)  # its command line is that of this program
        os.environ[PARENT_VARIABLE] = str(parent_pid)
        _run_and_exit(list(child._command[3:]))
    child._process = _ForkedChild(pid)  # type: ignore[assignment]
    child._started_s, child._start_at_s = child._clock(), None


class _ForkedChild:
    """What ``Child`` uses of ``subprocess.Popen``. Used by one thread."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        select.select([self._pidfd], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("a child of hayloft all-in-one", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def main() -> None:
    import_without_threads()
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in MODULES:
        import_module(name)
    assert has_one_thread()
    gc.collect()
    gc.freeze()
    serve(control)


if __name__ == "__main__":
    main()
