"""The storage slice of one replica: a directory of units."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Sequence

from iotdb_cluster.columns import Block
from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.limits import INT64_MIN
from iotdb_cluster.storage.chunk_reader import ChunkFile
from iotdb_cluster.storage.compaction import choose, expiry_pays, hidden_upto
from iotdb_cluster.storage.copies import PinnedUnit
from iotdb_cluster.storage.durable import disk_faults
from iotdb_cluster.storage.filenames import (
    parse_chunk_name,
)
from iotdb_cluster.storage.jobs import CompactionJob, FlushJob
from iotdb_cluster.storage.manifest import ManifestState, manifest_bytes
from iotdb_cluster.storage.memtable import Memtable
from iotdb_cluster.storage.reader import Snapshot, UnitReader
from iotdb_cluster.storage.tombstones import Tombstone
from iotdb_cluster.storage.types import FileInfo, MergeRequest, Position, UnitId
from iotdb_cluster.storage.unit import Sealed, Unit, in_force
from iotdb_cluster.storage.unit_table import UnitTable

__all__ = ["Store"]


class Store(UnitTable):
    """Units of one replica. Open one with `Store.open`; the package's docstring says which thread may call what."""

    # --- writes -------------------------------------------------------------------------------------------------------

    def _accept(self, unit: UnitId, epoch: int, index: int) -> Unit | None:
        """The unit, or None if what stands at that position is in its files already."""
        found = self._unit(unit)
        position = (epoch, index)
        if position <= found.flushed:
            return None
        check(position >= found.position, "unit %s: position %s comes after %s", unit, position, found.position)
        found.position = position
        return found

    def write(self, unit: UnitId, epoch: int, index: int, blocks: Sequence[Block]) -> None:
        """Attach the points of one entry; a later block, and in a block a later row, wins over an equal time.

        Passed over if (epoch, index) is flushed. The blocks' buffers are kept, not copied: never change them.
        """
        found = self._accept(unit, epoch, index)
        if found is not None:
            self._bytes += found.active.write((epoch, index), blocks, found.sequence + 1)
            found.sequence += len(blocks)

    def delete(self, unit: UnitId, epoch: int, index: int, pattern: str, low: int, high: int) -> None:
        """Hide the points with low <= time <= high, written before, of the series that `pattern` names.

        `pattern` is a regular expression that must match "device.measurement" whole (re.error where it is none).
        """
        self._add_tombstone(unit, epoch, index, pattern, low, high)

    def expire(self, unit: UnitId, epoch: int, index: int, before: int) -> None:
        """Hide all points with time < before that were written before."""
        found = self._unit(unit)
        hides = unit in self.corrupt or any(file.info.first_time < before for file in found.files)
        if hides or any(not memtable.is_empty for memtable in found.memtables()):
            self._add_tombstone(unit, epoch, index, None, INT64_MIN, before - 1)
        else:  # nothing to hide: a unit that is in files entirely needs no flush for it
            self._accept(unit, epoch, index)

    def _add_tombstone(self, unit: UnitId, epoch: int, index: int, pattern: str | None, low: int, high: int) -> None:
        found = self._accept(unit, epoch, index)
        if found is None or low > high:
            return
        found.sequence += 1
        found.settled = found.sequence
        stone = Tombstone((epoch, index), pattern, low, high, found.sequence)
        if pattern is not None:
            stone.covers("")
        found.tombstones.append(stone)
        before = found.active.bytes
        found.active.add_tombstone(stone)
        self._bytes += found.active.bytes - before

    def flushed(self, unit: UnitId) -> Position:
        """Everything up to this position is in files; what comes again at or below it is passed over."""
        return self._unit(unit).flushed

    def position(self, unit: UnitId) -> Position:
        """Of the latest write."""
        return self._unit(unit).position

    def memory_bytes(self) -> int:
        """Bytes of all memtables, sealed ones and those that only readers still pin included."""
        return self._bytes

    def pinned_bytes(self) -> int:
        """Bytes of memtables that are flushed, and that readers alone keep."""
        return self._pinned

    def sealed(self) -> int:
        """How many frozen memtables are on their way to a file, or wait for it."""
        return sum(len(unit.sealed) for unit in self._units.values())

    def unit_memory(self, unit: UnitId) -> int:
        return sum(memtable.bytes for memtable in self._unit(unit).memtables())

    def unit_bytes(self, unit: UnitId) -> int:
        """In files and in memory."""
        return sum(info.bytes for info in self.files_of(unit)) + self.unit_memory(unit)

    def oldest_unflushed(self, unit: UnitId) -> int | None:
        """The log index of the first write that is not in a file, or with which the unit came and is not durable."""
        found = self._unit(unit)
        if found.adopted is not None and found.manifest is None:
            return found.adopted
        for memtable in self._unit(unit).memtables():
            if memtable.low is not None:
                return memtable.low[1]
        return None

    # --- flush --------------------------------------------------------------------------------------------------------

    def seal(self, units: Iterable[UnitId] | None = None) -> list[FlushJob]:
        """Freeze the memtables of some (None: all) units; later writes go to new ones. Damaged units are left out.

        A unit gives a job if it has something to flush, is new, or its meta changed. Call `run` of each on a worker
        and then, whether it raised or not, `finish` on the loop; after a failure the next seal gives a new job.
        """
        jobs: list[FlushJob] = []
        for unit in self.units() if units is None else units:
            found = self._unit(unit)
            if unit in self.corrupt:
                continue
            if not found.active.is_empty or found.meta_changed:
                found.sealed.append(Sealed(found.active, found.meta, found.sequence))
                found.active = Memtable()
                found.meta_changed = False
            jobs.extend(FlushJob(self, found, sealed) for sealed in found.sealed if not sealed.has_job)
        return jobs

    def flush_finished(self, unit: Unit, upto: Sealed) -> None:
        """For `FlushJob`."""
        while upto in unit.sealed:
            sealed = unit.sealed.pop(0)
            unit.flushed = max(unit.flushed, sealed.memtable.high)
            unit.settled = max(unit.settled, sealed.sequence)
            if sealed.file is not None:
                unit.files.append(sealed.file)
            self._release(sealed.memtable)
        unit.sort_files()
        unit.forget_tombstones()

    # --- reading ------------------------------------------------------------------------------------------------------

    def reader(self, unit: UnitId) -> UnitReader:
        """A pinned snapshot of a unit as it is now. CorruptData if the unit is damaged."""
        found = self._unit(unit)
        if unit in self.corrupt:
            raise CorruptData(self.corrupt[unit])
        return self._reader(found, found.files, found.memtables())

    def _reader(self, unit: Unit, files: Sequence[ChunkFile], memtables: Sequence[Memtable]) -> UnitReader:
        filled = tuple(memtable for memtable in memtables if not memtable.is_empty)
        snapshot = Snapshot(
            unit.id, tuple(files), filled, tuple(unit.tombstones), unit.sequence, unit.settled, unit.number
        )
        with self._lock:
            unit.readers += 1
            for file in files:
                file.pins += 1
            for memtable in filled:
                memtable.pins += 1
        return UnitReader(
            snapshot,
            lambda reader: self._unpin(unit, reader.snapshot),
            lambda reason: self._note_damage_of(unit, reason),
            self.last_points,
        )

    def _unpin(self, unit: Unit, snapshot: Snapshot) -> None:
        with self._lock:
            unit.readers -= 1
            for file in snapshot.files:
                self._unpin_file(file)
            for memtable in snapshot.memtables:
                memtable.pins -= 1
                if not memtable.pins and id(memtable) in self._retired:
                    self._retired.remove(id(memtable))
                    self._pinned -= memtable.bytes
                    self._bytes -= memtable.bytes

    def _unpin_file(self, file: ChunkFile) -> None:
        file.pins -= 1
        if not file.pins:
            self._garbage_files.append(file)

    def digest(self, unit: UnitId) -> int:
        """64 bits of the unit's logical content; see `UnitReader.digest`, which a worker may call."""
        with self.reader(unit) as reader:
            return reader.digest()

    def files_of(self, unit: UnitId) -> list[FileInfo]:
        """The unit's immutable files, the earliest writes first."""
        return [file.info for file in self._unit(unit).files]

    def tombstones_of(self, unit: UnitId) -> list[Tombstone]:
        """The deletions that are still in force, the earliest first."""
        return list(self._unit(unit).tombstones)

    def pin_files(self, unit: UnitId) -> PinnedUnit:
        """Pin what is flushed of a unit; on the loop. CorruptData if the unit is damaged."""
        found = self._unit(unit)
        if unit in self.corrupt:
            raise CorruptData(self.corrupt[unit])
        infos = {parse_chunk_name(file.info.name) or 0: file.info for file in found.files}
        durable = [stone for stone in found.tombstones if stone.position <= found.flushed]
        stones = in_force(durable, infos.values())
        following = max(infos, default=0) + 1
        state = ManifestState(found.opened, found.flushed, found.meta, following, infos, stones)
        reader = self._reader(found, found.files, ())
        name = posixpath.basename(found.directory)
        return PinnedUnit(name, found.flushed, manifest_bytes(state), tuple(infos.values()), reader.close)

    @property
    def idle(self) -> bool:
        """No job and no reader needs the directory."""
        return not any(
            unit.busy or unit.readers for unit in (*self._units.values(), *self._garbage_units, *self._leaving)
        )

    # --- compaction ---------------------------------------------------------------------------------------------------

    def pick(self, now_ms: float = 0.0) -> CompactionJob | None:
        """The next files worth rewriting, if any; call `run` (or `step`s) on a worker, then `finish` on the loop.

        `now_ms` is the time of any clock that does not go back. Storage groups take turns, and so do a group's units.
        """
        for identity in self._in_turn():
            unit = self._units[identity]
            if identity in self.corrupt or identity in self.resting or unit.compacting:
                continue
            chosen = choose(unit, self.options, now_ms)
            if chosen is not None:
                self._turns.pop(identity.storage_group_id, None)
                self._turns[identity.storage_group_id] = identity
                reader = None if chosen.expired else self._reader(unit, chosen.files, ())
                return CompactionJob(self, unit, chosen.files, reader)
        return None

    def _in_turn(self) -> list[UnitId]:
        """The units, those first whose storage group was served least lately, then those behind the last one served."""
        present = {unit.storage_group_id for unit in self._units}
        self._turns = {group: unit for group, unit in self._turns.items() if group in present}
        order = {group: place for place, group in enumerate(self._turns, 1)}

        def turn(unit: UnitId) -> tuple[int, int, bool, int]:
            last = self._turns.get(unit.storage_group_id)
            served = last is not None and unit <= last
            return order.get(unit.storage_group_id, 0), unit.storage_group_id, served, unit.partition

        return sorted(self._units, key=turn)

    def request_merge(self, request: MergeRequest, storage_groups: Collection[int] | None = None) -> None:
        """MERGE or FULL MERGE of all units (of some storage groups): `pick` gives what it takes."""
        for identity, unit in self._units.items():
            if storage_groups is None or identity.storage_group_id in storage_groups:
                unit.merge = max(unit.merge, request)

    def merges_asked(self) -> list[UnitId]:
        """Units whose MERGE is not fulfilled yet, sorted."""
        return [unit for unit in self.units() if self._units[unit].merge and unit not in self.corrupt]

    def expiry_pays(self, unit: UnitId, before: int) -> bool:
        """Whether an `expire` would free space: files of which half has expired, and is not hidden yet."""
        found = self._unit(unit)
        for file in found.files:
            upto = hidden_upto(file.info, found.tombstones)
            if expiry_pays(file.info, before - 1) and not expiry_pays(file.info, upto):
                return True
            if upto is not None and before > file.info.last_time > upto:
                return True
        return False

    def compaction_finished(self, unit: Unit, old: Sequence[ChunkFile], new: ChunkFile | None) -> None:
        """For `CompactionJob`."""
        unit.files = [file for file in unit.files if file not in old]
        if new is not None:
            unit.files.append(new)
        unit.sort_files()
        unit.forget_tombstones()
        with self._lock:
            for file in old:
                self._unpin_file(file)

    # --- garbage ------------------------------------------------------------------------------------------------------

    def discard(self, path: str) -> None:
        """For jobs: a file that no manifest names."""
        with self._lock:
            self._garbage_paths.append(path)

    def collect(self) -> int:
        """Remove files that nothing needs any more; returns how many. For a worker thread, after jobs and drops.

        What a crash leaves of them goes at the next start. SystemFault where the disk refuses.
        """
        self.settle()
        with self._lock:
            paths, self._garbage_paths = self._garbage_paths, []
            files, self._garbage_files = self._garbage_files, []
            ready = [unit for unit in self._garbage_units if not unit.busy and not unit.readers]
            self._garbage_units = [unit for unit in self._garbage_units if unit not in ready]
        for file in files:
            file.close()
        paths += [file.info.path for file in files]
        for path in paths:
            with disk_faults(path):
                if self.files.exists(path):
                    self.files.remove(path)
        for unit in ready:
            for file in unit.files:
                file.close()
            with disk_faults(unit.directory):
                if self.files.exists(unit.directory):
                    self.files.remove_tree(unit.directory)
        return len(paths) + len(ready)
