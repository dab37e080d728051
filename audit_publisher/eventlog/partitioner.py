"""The partition of a key, as Kafka's Java clients choose it (murmur2)."""

from __future__ import annotations

from functools import lru_cache

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit murmur2 hash of `data`, as an unsigned number."""
    length = len(data)
    h = (0x9747B28C ^ length) & _MASK
    end = length & ~3
    for index in range(0, end, 4):
        k = int.from_bytes(data[index : index + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if end < length:
        h ^= int.from_bytes(data[end:], "little")
        h = h * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=4096)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition that records with `key` go to."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
