"""Compares a cache directory with the store, byte by byte, from outside the daemon."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import md5
from pathlib import Path

from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.model.chunk import CHUNK_BYTES, chunk_range
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.credentials import access_domain, parse_secret
from csi_driver.volumes.parameters import VolumeParameters

SEAL_BYTES = 4
"""The CRC of a row, behind its chunk map."""


def known_versions(
    attributes: Mapping[str, str], secrets: Mapping[str, str], objects: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Contents by the name of their object file. ``objects`` are by path below the volume's URL; their ETags are
    MD5s, as those of SeaweedFS and of the hostile server are."""
    parameters = VolumeParameters.parse(attributes)
    domain = access_domain(parameters.url, parameters.store_options, parse_secret(secrets))
    endpoint = parameters.endpoint or ""
    found = {}
    for path, content in objects.items():
        etag = md5(content, usedforsecurity=False).hexdigest()
        key = f"{parameters.url.prefix}{path}"
        version = ObjectVersion(domain, endpoint, parameters.url.bucket, key, etag, len(content))
        found[version.digest(CHUNK_BYTES)] = content
    return found


def wrong_in_cache(cache: Path, known: Mapping[str, bytes]) -> list[str]:
    """What is wrong, in words; empty is good. All bytes of complete files are compared, and the chunks of partial ones
    that are present by the index. For a cache without a daemon; a running one may only remove files meanwhile."""
    wrong = []
    for name, content, found in _files(cache / "objects", known):
        if found != content:
            wrong.append(f"complete file {name}: {len(found)} bytes that are not those of its object")
    maps = chunk_maps(cache / "index.sqlite")
    for name, content, found in _files(cache / "partial", known):
        if name not in maps:
            continue
        chunks = ChunkMap.decode(maps[name], len(content))
        for chunk, present in enumerate(chunks.present):
            span = chunk_range(chunk, len(content))
            if present and found[span.start : span.stop] != content[span.start : span.stop]:
                wrong.append(f"partial file {name}: chunk {chunk} is not that of its object")
    return wrong


def found_in_cache(cache: Path, known: Mapping[str, bytes]) -> int:
    """How many complete files there are of the known objects: those that ``wrong_in_cache`` compares."""
    return sum(1 for _ in _files(cache / "objects", known))


def _files(directory: Path, known: Mapping[str, bytes]) -> Iterator[tuple[str, bytes, bytes]]:
    """Name, expected content and content of the known objects; other files belong to other volumes."""
    for path in sorted(directory.glob("??/*")):
        if path.name in known:
            with suppress(FileNotFoundError):
                yield path.name, known[path.name], path.read_bytes()


def chunk_maps(index: Path) -> dict[str, bytes]:
    """Chunk maps of incomplete objects."""
    connection = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT digest, chunk_map FROM objects WHERE NOT complete").fetchall()
    finally:
        connection.close()
    return {bytes(digest).hex(): sealed[:-SEAL_BYTES] for digest, sealed in rows}
