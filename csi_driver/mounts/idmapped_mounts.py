"""User namespaces for idmapped mounts: a mount that shows the files of one owner as those of another (Linux 5.12)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi_driver.model.errors import ViewUnavailable
from csi_driver.model.tracebacks import summary

_CLONE_NEWUSER = 0x10000000

_PROGRAM = f"""
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).unshare({_CLONE_NEWUSER}):
    sys.exit(os.strerror(ctypes.get_errno()))
sys.stdout.write("x"), sys.stdout.flush(), sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class ShownOwner:
    """The owner that an idmapped mount shows for the files of this process's user and group."""

    uid: int
    gid: int

    @property
    def is_our_own(self) -> bool:
        """True if no mapping is needed."""
        return (self.uid, self.gid) == (os.geteuid(), os.getegid())


@contextmanager
def user_namespace(owner: ShownOwner) -> Iterator[int]:
    """A descriptor of a namespace that maps this process's user and group to the owner. Starts a child process: a
    process has to enter a user namespace to create it, and one with threads cannot. Raises ViewUnavailable."""
    descriptor = _create(owner)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _create(owner: ShownOwner) -> int:
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]  # noqa: S603  # our own program
        try:
            if process.stdout.read(1) != b"x":
                reason = process.stderr.read().decode("utf-8", "replace").strip()
                raise ViewUnavailable(f"a user namespace to map owners cannot be created: {reason}")
            # The child waits on its standard input meanwhile; the descriptor then keeps its namespace alive.
            proc = Path(f"/proc/{process.pid}")
            (proc / "uid_map").write_text(f"{os.geteuid()} {owner.uid} 1\n")
            (proc / "gid_map").write_text(f"{os.getegid()} {owner.gid} 1\n")
            return os.open(proc / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ViewUnavailable(f"a user namespace to map owners cannot be created: {summary(error)}") from error
        finally:
            process.kill()
