"""Codec numbers, and pages inside pages."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TypeAlias

from iotdb_cluster.errors import CorruptData

__all__ = ["CODEC_VERSION", "NESTED", "Codec", "Encoded", "pack_nested", "take_nested"]

CODEC_VERSION = 1


class Codec(IntEnum):
    """How a page is encoded; the numbers stand in files."""

    PLAIN = 0
    LZ4 = 1
    PCO = 2
    ZSTD = 3
    STRIDE = 4
    DECIMAL = 5
    RUNS = 6
    TEXTS = 7
    DICTIONARY = 8


Encoded: TypeAlias = tuple[Codec, bytes]
NESTED = struct.Struct("<BBxxI")  # codec, its version, bytes


def pack_nested(encoded: Encoded) -> bytes:
    """A page inside another one."""
    codec, data = encoded
    return NESTED.pack(codec, CODEC_VERSION, len(data)) + data


def take_nested(data: bytes, at: int) -> tuple[int, int, bytes, int]:
    """(codec, version, bytes, where it ends) of the page at `at`; CorruptData where it is cut short."""
    if at + NESTED.size > len(data):
        raise CorruptData(f"a page of {len(data)} bytes is too short for what it says it holds")
    codec, version, length = NESTED.unpack_from(data, at)
    end = at + NESTED.size + length
    if end > len(data):
        raise CorruptData(f"a page of {len(data)} bytes is too short for what it says it holds")
    return codec, version, data[at + NESTED.size : end], end
