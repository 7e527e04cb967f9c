"""Where a sample lies in a shard: every record has the same size, so that its number says it."""

RECORD_BYTES = 114_660
"""One record of ResNet-50 in MLPerf Storage."""
_BLOCK_BYTES = 512
"""A member of a tar has a header of one block and is filled up to a full one."""
STRIDE_BYTES = _BLOCK_BYTES + -(-RECORD_BYTES // _BLOCK_BYTES) * _BLOCK_BYTES + 2 * _BLOCK_BYTES
"""Image with header, and class number with header."""


def image_offset(record: int) -> int:
    """Of the first byte of a record's image in its shard."""
    return record * STRIDE_BYTES + _BLOCK_BYTES
