"""Copies of units: what is pinned for one, and what came of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from iotdb_cluster.storage.types import FileInfo, Position
from iotdb_cluster.storage.unit import Unit

__all__ = ["MirroredUnit", "PinnedUnit"]


class PinnedUnit(NamedTuple):
    """What is flushed of a unit, for a copy elsewhere: the files stay until `release`, whatever becomes of the unit.

    A directory `name` that holds `files` under their names and `manifest` as its manifest is the unit as of `flushed`.
    """

    name: str
    flushed: Position
    manifest: bytes
    files: tuple[FileInfo, ...]
    release: Callable[[], None]


class MirroredUnit(NamedTuple):
    """A copy of a unit, opened from its own directory; `Store.finish_mirror` puts it in the place of `old`."""

    unit: Unit
    old: Unit
