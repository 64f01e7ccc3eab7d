"""The bodies of entries about slots that move from one group to another; `docs/design/membership.md` tells how.

A *run* is (first slot, last slot, epoch), both ends included. The epoch of a move is the one that its receiver gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

from iotdb_cluster.data.fields import count, field_of, items, within
from iotdb_cluster.data.kinds import Kind
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import INT64_MAX, SLOTS

__all__ = [
    "Discard",
    "Dissolve",
    "DropSlots",
    "Fence",
    "Import",
    "Own",
    "Ready",
    "Runs",
    "read_runs",
    "runs_of",
    "slots_in",
]

Runs: TypeAlias = tuple[tuple[int, int, int], ...]


def runs_of(epochs: Iterable[tuple[int, int]]) -> Runs:
    """(slot, epoch) pairs as runs: neighbours with one epoch become one."""
    runs: list[tuple[int, int, int]] = []
    for slot, epoch in sorted(epochs):
        if runs and runs[-1][1] == slot - 1 and runs[-1][2] == epoch:
            runs[-1] = (runs[-1][0], slot, epoch)
        else:
            runs.append((slot, slot, epoch))
    return tuple(runs)


def slots_in(runs: Runs) -> dict[int, int]:
    """The epoch of each slot in the runs."""
    return {slot: epoch for first, last, epoch in runs for slot in range(first, last + 1)}


def read_runs(value: Any) -> Runs:
    runs = []
    try:
        for first, last, epoch in items(value):
            low = within(first, 0, SLOTS - 1)
            runs.append((low, within(last, low, SLOTS - 1), within(epoch, 1, 2**32 - 1)))
    except (TypeError, ValueError) as error:
        raise CorruptData(f"runs of slots cannot be read: {error}") from None
    return tuple(runs)


def _unpacked(value: Any, least: int, most: int) -> list[Any]:
    found = items(value)
    if not least <= len(found) <= most:
        raise CorruptData(f"an entry's body has {len(found)} fields where {least} to {most} belong")
    return found


@dataclass(frozen=True, slots=True)
class Own:
    """Meta decided that this group owns these slots, each under its epoch; `meta_index` is the decision's.

    `move` is the one by which they come, with what was imported for it; 0 where they come with nothing.
    """

    kind: ClassVar[Kind] = Kind.OWN
    slots: Runs
    meta_index: int
    move: int = 0

    def to_json(self) -> Any:
        return [[list(run) for run in self.slots], self.meta_index, *([self.move] if self.move else [])]

    @classmethod
    def from_json(cls, value: Any) -> Own:
        runs, meta_index, *move = _unpacked(value, 2, 3)
        return cls(read_runs(runs), count(meta_index), count(move[0]) if move else 0)


@dataclass(frozen=True, slots=True)
class Fence:
    """From here these slots take and answer nothing in the giver until meta decides; their epochs are the move's."""

    kind: ClassVar[Kind] = Kind.FENCE
    move: int
    slots: Runs
    meta_index: int

    def to_json(self) -> Any:
        return [self.move, [list(run) for run in self.slots], self.meta_index]

    @classmethod
    def from_json(cls, value: Any) -> Fence:
        move, runs, meta_index = _unpacked(value, 3, 3)
        return cls(within(move, 1, INT64_MAX), read_runs(runs), count(meta_index))


@dataclass(frozen=True, slots=True)
class Import:
    """Part `part` (from 0) of `parts` of an export of the giver, which `export`, the hash of it, tells from others.

    `slots` are those of the move.
    """

    kind: ClassVar[Kind] = Kind.IMPORT
    move: int
    slots: Runs
    export: int
    part: int
    parts: int
    data: bytes

    def to_json(self) -> Any:
        return [self.move, [list(run) for run in self.slots], self.export, self.part, self.parts]

    @classmethod
    def from_json(cls, value: Any, buffers: Sequence[memoryview]) -> Import:
        move, runs, export, part, parts = _unpacked(value, 5, 5)
        if len(buffers) != 1:
            raise CorruptData(f"a part of an import has {len(buffers)} buffers")
        parts = within(parts, 1, INT64_MAX)
        return cls(
            within(move, 1, INT64_MAX),
            read_runs(runs),
            count(export),
            within(part, 0, parts - 1),
            parts,
            bytes(buffers[0]),
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """A majority of the receiver's voters has the files whose manifests have this checksum, durably."""

    kind: ClassVar[Kind] = Kind.READY
    move: int
    checksum: int

    def to_json(self) -> Any:
        return [self.move, self.checksum]

    @classmethod
    def from_json(cls, value: Any) -> Ready:
        move, checksum = _unpacked(value, 2, 2)
        return cls(within(move, 1, INT64_MAX), count(checksum))


@dataclass(frozen=True, slots=True)
class DropSlots:
    """Meta decided for the receiver: the fenced slots, and all that lies in them, are gone here."""

    kind: ClassVar[Kind] = Kind.DROP_SLOTS
    slots: Runs
    meta_index: int

    def to_json(self) -> Any:
        return [[list(run) for run in self.slots], self.meta_index]

    @classmethod
    def from_json(cls, value: Any) -> DropSlots:
        runs, meta_index = _unpacked(value, 2, 2)
        return cls(read_runs(runs), count(meta_index))


@dataclass(frozen=True, slots=True)
class Discard:
    """The move came to nothing: what was imported for it is forgotten."""

    kind: ClassVar[Kind] = Kind.DISCARD
    move: int

    def to_json(self) -> Any:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Discard:
        return cls(within(field_of(value, "move"), 1, INT64_MAX))


@dataclass(frozen=True, slots=True)
class Dissolve:
    """The group, which owns no slot, takes nothing any more."""

    kind: ClassVar[Kind] = Kind.DISSOLVE
    meta_index: int

    def to_json(self) -> Any:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Dissolve:
        return cls(count(field_of(value, "meta_index")))
