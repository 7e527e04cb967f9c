"""s3fs-fuse, the program ``s3fs``; not the Python package of the same name."""

from __future__ import annotations

import contextlib
import os
from typing import ClassVar

from hayloft_bench.results.model import Access, Phase
from hayloft_bench.targets.base import REGION, MountedPeer
from hayloft_lab.programs import program


class S3fsFuse(MountedPeer):
    """Cache on disk, and as many requests at once as its documentation suggests. Its cache has no limit, only a floor
    of free space, so it is not measured with a small cache."""

    name: ClassVar[str] = "s3fs-fuse"
    title: ClassVar[str] = "s3fs-fuse"
    command_name: ClassVar[str] = "s3fs"
    remedy: ClassVar[str] = "apt-get install s3fs fuse3"
    phases: ClassVar[frozenset[Phase]] = frozenset({"cold", "warm", "hot", "restart"})
    settings: ClassVar[dict[str, str]] = {
        "use_path_request_style": "for stores other than AWS",
        "ro": "a dataset for training is not written to",
        "allow_other": "as a pod would see it",
        "compat_dir": "newer versions need it for directories without an object; older ones always do it",
        "parallel_count=16": "its documentation: raise it from 5 where the network allows more",
        "multipart_size=16": "megabytes per request; 10 by default",
        "max_stat_cache_size=2000000": "its documentation: as many entries as the dataset has files",
        "stat_cache_expire=86400": "the dataset does not change; the default is 900 s",
        "enable_noobj_cache": "its documentation: fewer requests for names that do not exist",
        "attr_timeout=86400": "the same for attributes in the kernel: libfuse forgets them after 1 s",
        "entry_timeout=86400": "the same for names",
    }

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        store = self.place.store
        keys = self.directory / "keys"
        with contextlib.suppress(FileNotFoundError):
            keys.unlink()
        with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{store.access_key_id}:{store.secret_access_key}\n")
        options = [option for option in self.settings if option != "compat_dir" or self._is_new()]
        options += [f"url={store.endpoint}", f"endpoint={REGION}", f"passwd_file={keys}", f"use_cache={self.cache}"]
        bucket = f"{self.place.bucket}:/{self.place.prefix.rstrip('/')}"
        self._launch([str(program("s3fs")), bucket, str(self.mount_point), "-f", "-o", ",".join(options)], {})
        return Access("directory", root=str(self.mount_point))

    def _is_new(self) -> bool:
        """Whether the program has ``compat_dir``, which is new in 1.92."""
        digits = self.version.partition("V")[2].split(maxsplit=1)[0].split(".")
        return [int(part) for part in digits if part.isdigit()] >= [1, 92]
