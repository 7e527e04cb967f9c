"""Writes the chunks of one fetch, each by the way that ``write_path.py`` chooses."""

from __future__ import annotations

from functools import partial

from csi_driver.cache.direct_writes import DirectWriter, DirectWrites
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.write_path import WritePath, choose
from csi_driver.model.chunk import ByteRange


class ChunkWriter:
    """Belongs to one thread, which closes it. A thread that writes what was queued may use it besides, for bytes
    that are not held: of a fetch for readers these are never written directly."""

    __slots__ = ("_dataset_bytes", "_direct", "_file", "_for_warmup", "_memory_bytes", "_part", "_writes")

    def __init__(
        self,
        file: ObjectFile,
        writes: DirectWrites,
        part: ByteRange,
        *,
        for_warmup: bool,
        dataset_bytes: int,
        memory_bytes: int,
    ) -> None:
        """``part``: the bytes of the fetch."""
        self._file, self._writes, self._part = file, writes, part
        self._for_warmup, self._dataset_bytes, self._memory_bytes = for_warmup, dataset_bytes, memory_bytes
        self._direct: DirectWriter | None = None

    @property
    def may_hold(self) -> bool:
        """Whether chunks that memory holds for their readers are written directly, so that they are there once."""
        traits = self._writes.traits
        return traits.direct and traits.fast

    def write(
        self, chunk: int, parts: list[memoryview], checksum: int, read_share: float, *, held: bool = False
    ) -> None:
        """``ObjectFile.write_chunk``, with its errors, of a chunk of which readers got ``read_share`` from memory, and
        get the rest from there if it is ``held``."""
        path = choose(
            for_warmup=self._for_warmup,
            read_share=read_share,
            dataset_bytes=self._dataset_bytes,
            memory_bytes=self._memory_bytes,
            disk=self._writes.traits,
            held=held,
        )
        disk = self._writes.disk
        if path is WritePath.DIRECT:
            if self._direct is None:
                self._direct = DirectWriter(self._writes, self._file.descriptor, self._part)
            self._file.write_chunk(chunk, parts, checksum, self._direct.write)
        elif path is WritePath.DROPPED:
            self._file.write_chunk(chunk, parts, checksum, partial(disk.write, cached=False))
        else:
            self._file.write_chunk(chunk, parts, checksum)

    def close(self) -> None:
        """The fetch has ended."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None
