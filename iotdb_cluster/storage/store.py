"""The storage slice of one replica: a directory of units."""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from iotdb_cluster.columns import Block
from iotdb_cluster.errors import CorruptData, SystemFault, check
from iotdb_cluster.limits import INT64_MIN
from iotdb_cluster.storage.chunk_reader import Cache, ChunkFile
from iotdb_cluster.storage.compaction import choose, expiry_pays, hidden_upto
from iotdb_cluster.storage.copies import MirroredUnit, PinnedUnit
from iotdb_cluster.storage.durable import disk_faults, make_directory, read_text, replace_atomically
from iotdb_cluster.storage.filenames import (
    ABSENT,
    MANIFEST,
    MANIFEST_NEW,
    number_of,
    parse_chunk_name,
    parse_unit_name,
    unit_name,
)
from iotdb_cluster.storage.jobs import CompactionJob, FlushJob
from iotdb_cluster.storage.last_cache import LastCache
from iotdb_cluster.storage.manifest import Manifest, ManifestState, manifest_bytes
from iotdb_cluster.storage.memtable import Memtable
from iotdb_cluster.storage.reader import Snapshot, UnitReader
from iotdb_cluster.storage.tombstones import Tombstone
from iotdb_cluster.storage.types import FileInfo, MergeRequest, Position, StoreOptions, UnitId
from iotdb_cluster.storage.unit import Sealed, Unit, in_force
from iotdb_cluster.world import FileSystem

__all__ = ["Store"]


class Store:
    """Units of one replica. Open one with `Store.open`; the package's docstring says which thread may call what."""

    def __init__(self, files: FileSystem, directory: str, options: StoreOptions) -> None:
        self.files = files
        self.directory = directory
        self.options = options
        self.cache = Cache(options.cache_bytes_max)
        self.last_points = LastCache()
        self.corrupt: dict[UnitId, str] = {}
        self._units: dict[UnitId, Unit] = {}
        self._bytes = 0
        self._pinned = 0
        self._next_directory: dict[UnitId, int] = {}
        self._lock = threading.Lock()  # pins, garbage
        self._garbage_paths: list[str] = []
        self._garbage_files: list[ChunkFile] = []
        self._garbage_units: list[Unit] = []
        self._marked: set[int] = set()  # `number` of damaged units of which that is durable
        self._mirrored: set[UnitId] = set()  # damaged units of which a copy is on its way
        self._turns: dict[int, UnitId] = {}  # by storage group, in the order of service: the unit compacted last
        self._retired: set[int] = set()  # id() of flushed memtables that readers still pin

    @classmethod
    def open(cls, files: FileSystem, directory: str, options: StoreOptions | None = None) -> Store:
        """Read the manifests and remove what they do not name. A damaged unit is listed in `corrupt`, others serve.

        SystemFault where the directory itself cannot be read or made.
        """
        store = cls(files, directory, options or StoreOptions())
        make_directory(files, directory)
        with disk_faults(directory):
            names = files.list(directory)
        for name in names:
            parsed = parse_unit_name(name)
            if parsed is None:
                continue
            unit, number = parsed
            store._next_directory[unit] = max(number + 1, store._next_directory.get(unit, 1))
            path = f"{directory}/{name}"
            with disk_faults(path):
                if not files.exists(f"{path}/{MANIFEST}"):
                    files.remove_tree(path)
                    continue
            other = store._units.pop(unit, None)
            if other is not None:  # it was mirrored, and the one that it replaced did not go in time
                older, path = sorted((other.directory, path), key=number_of)
                store._close_unit(other)
                store.corrupt.pop(unit, None)
                with disk_faults(older):
                    files.remove_tree(older)
            store._units[unit] = store._open_unit(unit, path)
        return store

    def _open_unit(self, unit: UnitId, path: str) -> Unit:
        try:
            with disk_faults(path):
                if self.files.exists(f"{path}/{ABSENT}"):
                    raise CorruptData(read_text(self.files, f"{path}/{ABSENT}"))
            return self._open_whole(unit, path)
        except SystemFault as error:
            self.corrupt[unit] = str(error)
            return Unit(unit, path, None, ManifestState())

    def _open_whole(self, unit: UnitId, path: str) -> Unit:
        """A unit from its files; SystemFault (CorruptData) where that fails."""
        manifest = Manifest.open(self.files, path)
        opened = Unit(unit, path, manifest, manifest.state)
        for info in manifest.state.files.values():
            with disk_faults(info.path):
                file = self.files.open(info.path)
                size = file.size()
                file.close()
            if size != info.bytes:
                raise CorruptData(f"{info.path}: is {size} bytes long, the manifest says {info.bytes}")
            opened.files.append(ChunkFile(self.files, info, self.cache))
        opened.sort_files()
        named = {MANIFEST, *(info.name for info in manifest.state.files.values())}
        with disk_faults(path):
            for name in self.files.list(path):
                if name not in named:
                    self.files.remove(f"{path}/{name}")
        return opened

    def close(self) -> None:
        """Close files; unflushed writes are the log's to keep."""
        for unit in self._units.values():
            self._close_unit(unit)

    def _close_unit(self, unit: Unit) -> None:
        for file in unit.files:
            file.close()
        if unit.manifest is not None:
            unit.manifest.close()

    # --- units --------------------------------------------------------------------------------------------------------

    def units(self) -> list[UnitId]:
        """All open units, damaged ones included, sorted."""
        return sorted(self._units)

    def _unit(self, unit: UnitId) -> Unit:
        found = self._units.get(unit)
        check(found is not None, "unit %s is not open", unit)
        return found  # type: ignore[return-value]  # checked above

    def open_unit(self, unit: UnitId, position: Position, meta: dict[str, Any] | None = None) -> None:
        """Open a unit that holds nothing before `position`; one that is open stays as it is.

        Durable with its first flush: `seal` gives a job for a new unit even if nothing was written.
        """
        if unit in self._units:
            return
        number = self._next_directory.get(unit, 1)
        self._next_directory[unit] = number + 1
        state = ManifestState(opened=position, flushed=position, meta=meta or {})
        self._units[unit] = Unit(unit, f"{self.directory}/{unit_name(unit, number)}", None, state)

    def drop_unit(self, unit: UnitId, position: Position | None = None) -> None:
        """The unit is durably gone on return; its files go with `collect`, once no reader pins them.

        With the position of the drop in the log: nothing happens if the unit was opened at or after it (a drop that is
        replayed must not take a unit that came back). A unit that is not open is passed over.
        """
        found = self._units.get(unit)
        if found is None or (position is not None and position <= found.opened):
            return
        with found.lock:
            found.dropped = True
            manifest = found.manifest
            if manifest is None:  # also where it is damaged
                manifest = Manifest(self.files, found.directory, found.state)
            manifest.remove()
        del self._units[unit]
        self.corrupt.pop(unit, None)
        self._marked.discard(found.number)
        for memtable in found.memtables():
            self._release(memtable)
        with self._lock:
            self._garbage_units.append(found)

    def meta(self, unit: UnitId) -> dict[str, Any]:
        """What the caller stored with a unit."""
        return self._unit(unit).meta

    def set_meta(self, unit: UnitId, meta: dict[str, Any]) -> None:
        """Store values that JSON can say with a unit: durable with its next flush, for which `seal` gives a job."""
        found = self._unit(unit)
        found.meta = dict(meta)
        found.meta_changed = True

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

    def oldest_unflushed(self, unit: UnitId) -> int | None:
        """The log index of the first write that is not in a file."""
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

    def _release(self, memtable: Memtable) -> None:
        """A memtable leaves its unit; its memory is free once no reader pins it."""
        with self._lock:
            if memtable.pins:
                self._retired.add(id(memtable))
                self._pinned += memtable.bytes
            else:
                self._bytes -= memtable.bytes

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

    def note_damage(self, unit: UnitId, reason: str) -> None:
        """The unit's files cannot be read: it is listed in `corrupt` from now on. From any thread."""
        self.corrupt.setdefault(unit, reason)

    def _note_damage_of(self, unit: Unit, reason: str) -> None:
        """Nothing where another one has taken its place: readers of the damaged files may live on."""
        if self._units.get(unit.id) is unit:
            self.note_damage(unit.id, reason)

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
        return not any(unit.busy or unit.readers for unit in (*self._units.values(), *self._garbage_units))

    # --- damage -------------------------------------------------------------------------------------------------------

    def mark_absent(self) -> None:
        """Make it durable that units are damaged, so that a restart knows it too. On a worker; SystemFault."""
        for unit, reason in list(self.corrupt.items()):
            found = self._units.get(unit)
            if found is not None and unit in self.corrupt and found.number not in self._marked:
                if self.files.exists(found.directory):
                    path = f"{found.directory}/{ABSENT}"
                    replace_atomically(self.files, path, f"{path}.new", reason.encode())
                self._marked.add(found.number)

    def is_absent(self, unit: UnitId) -> bool:
        """Whether the unit's files are lost for good: it is damaged, and that is durable."""
        return unit in self.corrupt and self._unit(unit).number in self._marked

    def begin_mirror(self, unit: UnitId) -> str:
        """The directory in which a damaged unit is made anew. What was written so far is frozen: a copy of the unit
        that holds all of it, and `finish_mirror`, replace it."""
        found = self._unit(unit)
        if not found.active.is_empty:
            found.sealed.append(Sealed(found.active, found.meta, found.sequence))
            found.active = Memtable()
        number = self._next_directory[unit] = self._next_directory.get(unit, 1)
        self._next_directory[unit] = number + 1
        self._mirrored.add(unit)
        return f"{self.directory}/{unit_name(unit, number)}"

    def end_mirror(self, unit: UnitId) -> None:
        """Behind every `begin_mirror`, whatever came of it."""
        self._mirrored.discard(unit)

    @property
    def mirroring(self) -> bool:
        """Whether a copy of a unit is on its way: it holds what was written before that began, and not all until now.

        What was written since is in memory, and must stay in the log until it is flushed into the copy.
        """
        return bool(self._mirrored)

    def open_mirror(self, unit: UnitId, directory: str, manifest: bytes) -> MirroredUnit:
        """Make a directory that has all files of a copy the unit's own, durably. On a worker.

        SystemFault where the disk fails, CorruptData where the files do not make a unit, or it was dropped.
        """
        old = self._units.get(unit)
        if old is None:
            raise CorruptData(f"unit {unit} was dropped while it was mirrored")
        with old.lock:
            if old.dropped:
                raise CorruptData(f"unit {unit} was dropped while it was mirrored")
            replace_atomically(self.files, f"{directory}/{MANIFEST}", f"{directory}/{MANIFEST_NEW}", manifest)
            try:
                new = self._open_whole(unit, directory)
            except SystemFault:
                Manifest(self.files, directory, ManifestState()).remove()
                raise
            (old.manifest or Manifest(self.files, old.directory, old.state)).remove()
            return MirroredUnit(new)

    def finish_mirror(self, mirrored: MirroredUnit) -> None:
        """Put the copy in the place of the damaged unit; what was written above it stays. On the loop.

        Memtables that reach beyond the copy are kept whole: what they hold of it once more comes to the same. Others
        go, the active one too: the copy may hold later writes over theirs, which are passed over when they come here.
        """
        new = mirrored.unit
        self.end_mirror(new.id)
        old = self._units.pop(new.id, None)
        if old is None:  # it was dropped meanwhile
            (new.manifest or Manifest(self.files, new.directory, new.state)).remove()
            with self._lock:
                self._garbage_units.append(new)
            return
        new.sequence = new.settled = old.sequence
        new.position = max(old.position, new.flushed)
        stones = {stone.position: stone for stone in new.tombstones}
        kept: list[Memtable] = []
        for memtable in old.memtables():
            if memtable.high > new.flushed:
                kept.append(memtable)
                stones.update((stone.position, stone) for stone in memtable.tombstones)
            else:
                self._release(memtable)
        if kept and kept[-1] is old.active:
            new.active = kept.pop()
        new.sealed = [Sealed(memtable, new.meta, new.sequence) for memtable in kept]
        new.tombstones = [stone for _, stone in sorted(stones.items())]
        old.dropped = True
        old.sealed, old.active = [], Memtable()
        self.corrupt.pop(new.id, None)  # first: whoever marks damage on a worker must not take the new one for the old
        self._marked.discard(old.number)
        self._units[new.id] = new
        with self._lock:
            self._garbage_units.append(old)

    def verify_file(self, unit: UnitId, name: str) -> None:
        """Compare a chunk file with its checksum; a damaged one makes the unit so. On a worker."""
        found = self._units.get(unit)
        for file in list(found.files) if found is not None else ():
            if file.info.name == name:
                try:
                    file.verify()
                except SystemFault as error:
                    if found is not None:
                        self._note_damage_of(found, str(error))

    # --- compaction ---------------------------------------------------------------------------------------------------

    def pick(self, now_ms: float = 0.0) -> CompactionJob | None:
        """The next files worth rewriting, if any; call `run` (or `step`s) on a worker, then `finish` on the loop.

        `now_ms` is the time of any clock that does not go back. Storage groups take turns, and so do a group's units.
        """
        for identity in self._in_turn():
            unit = self._units[identity]
            if identity in self.corrupt or unit.compacting:
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
