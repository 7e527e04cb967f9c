"""What a first user sees on one machine: from a bucket to a mount that is read, and five ways to break it.

``python -m tools.first_user`` prints the session as Markdown; ``--write`` puts its outputs into the pages, between the
markers ``<!-- session: NAME -->`` and ``<!-- end of NAME -->``. A test runs the session and compares the commands of
the pages with it. Needs root, /dev/fuse and the SeaweedFS server; the disk that is full is a file of 96 MiB, mounted by
loop.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("docs/getting-started-laptop.md", "docs/troubleshooting.md")
SHOWN_DIRECTORY = "/var/tmp/hayloft-laptop"  # noqa: S108  # the examples' default, as text
DISK_BYTES = 96 << 20
START_TIMEOUT_S = 90.0

MOUNT = 'python examples/mount_on_a_laptop.py s3://train/images endpoint="$ENDPOINT" deadline=5s requestTimeout=2s'
DOCTOR = 'hayloft doctor s3://train/images --store-endpoint="$ENDPOINT"'
DATA = f"{SHOWN_DIRECTORY}/data"


@dataclass(frozen=True, slots=True)
class Step:
    """A command as a user types it, and what it printed."""

    block: str
    command: str
    output: str
    code: int


@dataclass
class Session:
    """Runs commands in a shell that a user would have."""

    directory: Path
    variables: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, block: str, command: str, **variables: str) -> str:
        """Returns what it printed, both streams together."""
        done = subprocess.run(  # noqa: S603  # the commands of this file
            ["/bin/bash", "-c", self._actual(command)],
            env={**self._environment(), **variables},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        self._add(block, command, done.stdout, done.returncode)
        return done.stdout

    def start(self, block: str, command: str, first_word: str, **variables: str) -> int:
        """In the background; returns its process id when a line begins with ``first_word``."""
        log = self.directory / f"{len(self.steps)}.log"
        with log.open("wb") as stream:
            child = subprocess.Popen(  # noqa: S603  # as above
                ["/bin/bash", "-c", f"exec {self._actual(command)}"],
                env={**self._environment(), **variables},
                cwd=REPOSITORY,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self._children.append(child)
        end_s = time.monotonic() + START_TIMEOUT_S
        while not log.read_text().startswith(first_word):
            if child.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"{command}: {log.read_text()}")
            time.sleep(0.1)
        self._add(block, f"{command} &", log.read_text(), 0)
        return child.pid

    def stop(self, pid: int) -> None:
        """As Ctrl-C does."""
        child = next(one for one in self._children if one.pid == pid)
        self._children.remove(child)
        child.send_signal(signal.SIGTERM)
        child.wait(60)

    def stop_all(self) -> None:
        for child in reversed(list(self._children)):
            if child.poll() is None:
                self.stop(child.pid)

    def read_variables(self, path: Path) -> None:
        """Of a file of ``export NAME=value``."""
        found = re.findall(r"^export (\w+)=(.*)$", path.read_text(), re.MULTILINE)
        self.variables.update(found)

    def _actual(self, command: str) -> str:
        return command.replace(SHOWN_DIRECTORY, str(self.directory))

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HAYLOFT_"))}
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        own = {"PATH": path, "COLUMNS": "80", "HAYLOFT_LAPTOP": str(self.directory), "HAYLOFT_FREE_FLOOR": "8MiB"}
        return {**kept, **own, **self.variables}

    def _add(self, block: str, command: str, output: str, code: int) -> None:
        text = output.replace(str(self.directory), SHOWN_DIRECTORY)
        if "ENDPOINT" in self.variables:
            text = text.replace(self.variables["ENDPOINT"], "http://127.0.0.1:8333")
        lines = (line.rstrip() for line in text.splitlines())
        self.steps.append(Step(block, command, "".join(f"{line}\n" for line in lines), code))


def session(directory: Path) -> list[Step]:
    """The whole of it; about a minute. The directory's path must be short, since sockets lie in it."""
    one = Session(directory)
    try:
        with _small_disk(directory):
            _first_steps(one)
            _broken(one)
    finally:
        one.stop_all()
    return one.steps


def _first_steps(one: Session) -> None:
    one.start("store", "python examples/store_on_a_laptop.py", "s3://")
    one.read_variables(one.directory / "store.env")
    one.run("inspect", 'hayloft inspect s3://train/images --store-endpoint="$ENDPOINT"')


def _broken(one: Session) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "that-of-another-bucket"}
    one.run("wrong key", f"AWS_SECRET_ACCESS_KEY=that-of-another-bucket {MOUNT}", **wrong)
    one.run("wrong key", f"AWS_SECRET_ACCESS_KEY=that-of-another-bucket {DOCTOR}", **wrong)
    mount = one.start("mount", MOUNT, "mounted")
    one.variables["HAYLOFT_DAEMON_SOCKET"] = _daemon_socket(mount)  # there may be others on this machine
    one.run("read", f"for epoch in 1 2; do find {DATA}/ -name '00*' | shuf | xargs cat | wc -c; done")
    one.run("status", "hayloft status")
    one.run("ls", "hayloft ls data")

    upload = "import boto3, os; boto3.client('s3', endpoint_url=os.environ['ENDPOINT'])"
    upload += ".put_object(Bucket='train', Key='images/012.bin', Body=b'other bytes')"
    one.run("bucket overwritten", f'python -c "{upload}"', AWS_DEFAULT_REGION="us-east-1")
    one.run("bucket overwritten", f"cat {DATA}/012.bin | wc -c")
    one.run("bucket overwritten", "hayloft status")

    pid = _daemon(one)
    os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    one.run("daemon killed", "hayloft status")
    one.run("daemon killed", f"grep 'ended unexpectedly' {SHOWN_DIRECTORY}/driver.log")
    one.run("daemon killed", f"cat {DATA}/000.bin | wc -c")
    one.stop(mount)

    one.variables.pop("HAYLOFT_DAEMON_SOCKET")
    mount = one.start("restarted", MOUNT, "mounted")
    one.variables["HAYLOFT_DAEMON_SOCKET"] = _daemon_socket(mount)
    if not os.path.ismount(one.directory / "cache"):
        raise RuntimeError("the cache is not on the small disk, and nothing else is to be filled")
    one.run("disk full", f"head -c 96M /dev/zero >{SHOWN_DIRECTORY}/cache/of-others; df -h {SHOWN_DIRECTORY}/cache")
    one.run("disk full", f"cat {DATA}/013.bin {DATA}/014.bin {DATA}/015.bin | wc -c")
    time.sleep(3)
    one.run("disk full", "hayloft status")
    (one.directory / "cache" / "of-others").unlink(missing_ok=True)

    one.stop(one._children[0].pid)  # the store
    one.run("endpoint away", f"cat {DATA}/020.bin | wc -c")
    one.run("endpoint away", "hayloft status")
    one.run("endpoint away", DOCTOR)
    one.stop(mount)


def _daemon(one: Session) -> int:
    """The process that ``hayloft status`` names."""
    status = next(step for step in reversed(one.steps) if step.command == "hayloft status")
    found = re.search(r"process (\d+)", status.output)
    if found is None:
        raise RuntimeError("hayloft status names no process")
    return int(found[1])


def _daemon_socket(mount: int) -> str:
    """Of the driver that the example has started."""
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s:
        for child in Path(f"/proc/{mount}/task/{mount}/children").read_text().split():
            found = next(iter(Path("/run").glob(f"hayloft-{child}-*/cache.sock")), None)
            if found is not None:
                return str(found)
        time.sleep(0.1)
    raise RuntimeError("the driver has no socket")


@contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    """A file system of its own for the cache, which can be filled."""
    image, cache = directory / "disk.img", directory / "cache"
    cache.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    for command in (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(cache)]):
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # known programs
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(cache)], check=False)  # noqa: S603, S607  # as above


def block(steps: list[Step], name: str) -> str:
    """The commands of a block and their outputs, as a page shows them."""
    lines = "".join(f"$ {step.command}\n{step.output}" for step in steps if step.block == name)
    return f"```console\n{lines}```\n"


def with_blocks(page: str, steps: list[Step]) -> str:
    """The page with all its blocks anew."""

    def fresh(found: re.Match[str]) -> str:
        return f"<!-- session: {found[1]} -->\n{block(steps, found[1])}<!-- end of {found[1]} -->"

    return re.sub(r"<!-- session: ([a-z -]+) -->\n.*?<!-- end of \1 -->", fresh, page, flags=re.DOTALL)


def commands_of_page(page: str) -> dict[str, list[str]]:
    """By block."""
    blocks = re.findall(r"<!-- session: ([a-z -]+) -->\n(.*?)<!-- end of \1 -->", page, re.DOTALL)
    return {name: re.findall(r"^\$ (.*)$", text, re.MULTILINE) for name, text in blocks}


def main() -> int:
    parser = argparse.ArgumentParser(description="What a first user sees.")
    parser.add_argument("--write", action="store_true", help="put the outputs into the pages")
    write = parser.parse_args().write
    directory = Path(tempfile.mkdtemp(prefix="hl", dir="/var/tmp"))  # short, for sockets
    try:
        steps = session(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if write:
        for name in PAGES:
            path = REPOSITORY / name
            path.write_text(with_blocks(path.read_text(), steps))
    for step in steps:
        sys.stdout.write(f"## {step.block}\n```console\n$ {step.command}\n{step.output}```\nexit code {step.code}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
