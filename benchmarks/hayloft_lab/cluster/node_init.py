"""The first process of the node's namespaces: sets the node up, starts programs, and reaps what they leave.

Run as ``python -I node_init.py DIRECTORY``, as the first process of new mount, network, process and host name
namespaces. Reads one request a line from standard input and answers each with one line, both JSON. When its input ends,
it ends, and with it every process, mount and address of the node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

# What the programs write to is the node's own: /var/lib, /var/log, /run. /sys shows the devices of the node's network.
_SET_UP = """
mount --make-rprivate /
# Mounts of other tests must not stay busy in this namespace after these tests unmount them.
findmnt --raw --noheadings --output TARGET --types fuse.hayloft | while read -r point; do
    umount --lazy "$point" || true
done
mkdir -p "$1"/sys "$1"/lib "$1"/log
mount -t sysfs none "$1"/sys
[ ! -d /sys/fs/cgroup ] || mount --rbind /sys/fs/cgroup "$1"/sys/fs/cgroup
mount --rbind "$1"/sys /sys
mount -t tmpfs -o mode=755 none /run
mount --bind "$1"/lib /var/lib
# kubelet removes the logs of pods that it does not know.
mount --bind "$1"/log /var/log
mount --bind "$1"/hosts /etc/hosts
hostname "$2"
ip link set lo up
shift 2
for address in "$@"; do ip address add "$address/32" dev lo; done
"""

ended: dict[int, int] = {}
"""Exit codes of processes that have ended, negative: by that signal."""


def _reap(_signal: int, _frame: object) -> None:
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if process == 0:
            return
        ended[process] = os.waitstatus_to_exitcode(status)


def _start(argv: list[str], env: dict[str, str], log: str) -> dict[str, Any]:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return {"pid": os.posix_spawn(argv[0], argv, env, file_actions=actions, setsigmask=(), setsid=True)}


def _signal(pid: int, number: int) -> dict[str, Any]:
    # Reaping in between would free the number for another process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        if pid not in ended:
            os.kill(pid, number)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    return {}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        match request.pop("do"):
            case "start":
                return _start(**request)
            case "signal":
                return _signal(**request)
            case "status":
                return {"code": ended.get(request["pid"])}
            case other:
                return {"error": f"unknown request {other!r}"}
    except OSError as error:
        return {"error": f"{error}"}


def main(directory: str, host_name: str, addresses: list[str]) -> None:
    # Before SIGCHLD is handled, which would reap this child.
    subprocess.run(["sh", "-ec", _SET_UP, "sh", directory, host_name, *addresses], check=True)
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path(directory, "ready").touch()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
