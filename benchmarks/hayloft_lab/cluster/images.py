"""Container images of single programs, as archives that ``ctr images import`` reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

_EPOCH = "1970-01-01T00:00:00Z"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Of this machine: the programs were built on it."""


def write_image(archive: Path, name: str, program: Path, command: Sequence[str], links: Sequence[str] = ()) -> None:
    """An image whose only file is a statically linked ``program``, in ``/bin``; ``links`` are further names of it
    there, and ``command`` is the entry point."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for directory in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(program, f"bin/{program.name}", filter=_of_root)
        for link in links:
            entry = tarfile.TarInfo(f"bin/{link}")
            entry.type, entry.linkname = tarfile.SYMTYPE, program.name
            tar.addfile(entry)
    content = layer.getvalue()
    configuration = {
        "architecture": _ARCHITECTURES[os.uname().machine],
        "os": "linux",
        "created": _EPOCH,
        "config": {"Entrypoint": list(command), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
        "history": [{"created": _EPOCH, "created_by": "hayloft_lab"}],
    }
    encoded = json.dumps(configuration).encode()
    configuration_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": configuration_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for path, data in (
            ("layer.tar", content),
            (configuration_name, encoded),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode = 0o755
    return entry
