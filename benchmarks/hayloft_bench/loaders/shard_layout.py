"""The place of a sample in a tar shard. All records have the same size, so the number of a record gives its offset."""

RECORD_BYTES = 114_660
"""One record of ResNet-50 in MLPerf Storage."""
_BLOCK_BYTES = 512
"""A member of a tar has a header of one block and is padded to a multiple of a block."""
STRIDE_BYTES = _BLOCK_BYTES + -(-RECORD_BYTES // _BLOCK_BYTES) * _BLOCK_BYTES + 2 * _BLOCK_BYTES
"""The image with its header, and the class number with its header."""


def image_offset(record: int) -> int:
    """The offset in the shard of the first byte of a record's image."""
    return record * STRIDE_BYTES + _BLOCK_BYTES
