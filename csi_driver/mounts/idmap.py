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

_CLONE_NEWUSER = 0x10000000

_PROGRAM = f"""
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).unshare({_CLONE_NEWUSER}):
    sys.exit(os.strerror(ctypes.get_errno()))
sys.stdout.write("x"), sys.stdout.flush(), sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class ShownOwner:
    """Whom the files of this process shall seem to belong to."""

    uid: int
    gid: int

    @property
    def is_our_own(self) -> bool:
        """True if nothing has to be mapped."""
        return (self.uid, self.gid) == (os.geteuid(), os.getegid())


@contextmanager
def user_namespace(owner: ShownOwner) -> Iterator[int]:
    """A descriptor of a namespace in which this process's user and group are the owner's. Starts a process for it: one
    has to be in a namespace for a moment to make it, and this one, which has threads, may not. Raises ViewUnavailable.
    """
    descriptor = _made(owner)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _made(owner: ShownOwner) -> int:
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]  # noqa: S603  # our own program
        try:
            if process.stdout.read(1) != b"x":
                reason = process.stderr.read().decode("utf-8", "replace").strip()
                raise ViewUnavailable(f"a user namespace to map owners cannot be made: {reason}")
            home = Path(f"/proc/{process.pid}")
            (home / "uid_map").write_text(f"{os.geteuid()} {owner.uid} 1\n")
            (home / "gid_map").write_text(f"{os.getegid()} {owner.gid} 1\n")
            return os.open(home / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ViewUnavailable(f"a user namespace to map owners cannot be made: {error}") from error
        finally:
            process.kill()
