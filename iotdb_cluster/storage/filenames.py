"""Names of what stands in a store's directory.

A unit's directory is `<storage group id>.<partition>.<number>`; the number is raised when a dropped unit comes back, so
that what readers still hold of the old one is never mistaken for the new. In it: `manifest`, `manifest.new` while a
checkpoint is written, chunk files `NNNNNN.chunk`, and `absent` where the unit is damaged: it says why.
"""

from __future__ import annotations

import posixpath
import re

from iotdb_cluster.storage.types import UnitId

__all__ = [
    "ABSENT",
    "MANIFEST",
    "MANIFEST_NEW",
    "chunk_name",
    "number_of",
    "parse_chunk_name",
    "parse_unit_name",
    "unit_name",
]

ABSENT = "absent"
MANIFEST = "manifest"
MANIFEST_NEW = "manifest.new"
_CHUNK = re.compile(r"([0-9]{6,})\.chunk")
_UNIT = re.compile(r"([0-9]+)\.(-?[0-9]+)\.([0-9]+)")


def chunk_name(number: int) -> str:
    return f"{number:06d}.chunk"


def parse_chunk_name(name: str) -> int | None:
    """The number of a chunk file, or None if the name is not of one."""
    match = _CHUNK.fullmatch(name)
    return int(match[1]) if match else None


def unit_name(unit: UnitId, number: int) -> str:
    return f"{unit.storage_group_id}.{unit.partition}.{number}"


def parse_unit_name(name: str) -> tuple[UnitId, int] | None:
    """(unit, number) of a unit's directory, or None if the name is not of one."""
    match = _UNIT.fullmatch(name)
    return (UnitId(int(match[1]), int(match[2])), int(match[3])) if match else None


def number_of(directory: str) -> int:
    """The number of a unit's directory: of two that one unit has, the higher one counts."""
    parsed = parse_unit_name(posixpath.basename(directory))
    return 0 if parsed is None else parsed[1]
