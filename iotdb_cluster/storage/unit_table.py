"""The units of one replica: how they are opened and dropped, and how they come from another replica."""

from __future__ import annotations

import threading
from typing import Any, Self

from iotdb_cluster.errors import CorruptData, SystemFault, check
from iotdb_cluster.storage.chunk_reader import Cache, ChunkFile
from iotdb_cluster.storage.copies import MirroredUnit
from iotdb_cluster.storage.durable import disk_faults, make_directory, read_bytes, read_text, replace_atomically
from iotdb_cluster.storage.filenames import (
    ABSENT,
    MANIFEST,
    MANIFEST_NEW,
    number_of,
    parse_unit_name,
    unit_name,
)
from iotdb_cluster.storage.last_cache import LastCache
from iotdb_cluster.storage.manifest import Manifest, ManifestState, manifest_bytes
from iotdb_cluster.storage.memtable import Memtable
from iotdb_cluster.storage.types import Position, StoreOptions, UnitId
from iotdb_cluster.storage.unit import Sealed, Unit
from iotdb_cluster.world import FileSystem

__all__ = ["UnitTable"]


class UnitTable:
    """The units of a store: which there are, where they lie, which are damaged. `Store` adds what is done with them."""

    def __init__(self, files: FileSystem, directory: str, options: StoreOptions) -> None:
        self.files = files
        self.directory = directory
        self.options = options
        self.cache = Cache(options.cache_bytes_max)
        self.last_points = LastCache()
        self.corrupt: dict[UnitId, str] = {}
        self.resting: set[UnitId] = set()  # units of which no compaction begins: they are being copied
        self._units: dict[UnitId, Unit] = {}
        self._bytes = 0
        self._pinned = 0
        self._next_directory: dict[UnitId, int] = {}
        self._lock = threading.Lock()  # pins, garbage
        self._garbage_paths: list[str] = []
        self._garbage_files: list[ChunkFile] = []
        self._garbage_units: list[Unit] = []
        self._leaving: list[Unit] = []  # dropped units of which the manifest is still there
        self._settling = threading.Lock()
        self._marking = threading.Lock()
        self._marked: set[int] = set()  # `number` of damaged units of which that is durable
        self._mirrored: dict[UnitId, Unit] = {}  # damaged units of which a copy is on its way
        self.mirrors_finished = 0  # copies that took the place of damaged units, in this life
        self._turns: dict[int, UnitId] = {}  # by storage group, in the order of service: the unit compacted last
        self._retired: set[int] = set()  # id() of flushed memtables that readers still pin

    @classmethod
    def open(cls, files: FileSystem, directory: str, options: StoreOptions | None = None) -> Self:
        """Read the manifests and remove what they do not name. A damaged unit is listed in `corrupt`, others serve.

        SystemFault where the directory itself cannot be read or made.
        """
        store = cls(files, directory, options or StoreOptions())
        make_directory(files, directory)
        with disk_faults(directory):
            files.sync_directory(directory)  # what an earlier life renamed in haste is durable now
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

    def adopt_unit(self, unit: UnitId, epoch: int, index: int, staged: str | None, reason: str = "") -> None:
        """The unit comes from another group as the directory `staged` has it, with the entry at (epoch, index).

        `Stage.finish` made that durable, with `epoch` in its manifest. Here it is only renamed: that is durable once
        the unit's flush job has run, which `seal` gives; a crash leaves it in the one place or the other. Without
        `staged`, or where it cannot be read, the unit is absent for that reason. One that is here already stays.
        """
        begin = (epoch, 0)
        found = self._units.get(unit)
        if found is not None and (unit in self.corrupt or found.opened >= begin):
            return
        check(found is None, "unit %s is here, and is to come with (%d, %d)", unit, epoch, index)
        number = self._next_directory.get(unit, 1)
        self._next_directory[unit] = number + 1
        directory = f"{self.directory}/{unit_name(unit, number)}"
        state = ManifestState(opened=begin, flushed=begin)
        if staged is None:
            self.corrupt[unit] = reason
        else:
            try:
                state = Manifest.read(directory, read_bytes(self.files, f"{staged}/{MANIFEST}"))
                with disk_faults(staged):
                    self.files.rename(staged, directory)
            except SystemFault as error:
                self.corrupt[unit] = str(error)
        adopted = Unit(unit, directory, None, state)
        adopted.adopted = index
        if unit not in self.corrupt:
            adopted.files.extend(ChunkFile(self.files, info, self.cache) for info in state.files.values())
            adopted.sort_files()
        self._units[unit] = adopted

    def drop_unit(self, unit: UnitId, position: Position | None = None) -> None:
        """The unit is gone, durably so after `settle`; its files go with `collect`, once no reader pins them.

        With the position of the drop in the log: nothing happens if the unit was opened at or after it (a drop that is
        replayed must not take a unit that came back). A unit that is not open is passed over.
        """
        found = self._units.get(unit)
        if found is None or (position is not None and position <= found.opened):
            return
        found.dropped = True
        del self._units[unit]
        self.corrupt.pop(unit, None)
        self._marked.discard(found.number)
        for memtable in found.memtables():
            self._release(memtable)
        with self._lock:
            self._leaving.append(found)

    def settle(self) -> None:
        """Make durable what was dropped until now: before a checkpoint is published that knows of it. On a worker.

        Who comes while another one is at it waits for that. SystemFault where the disk fails; it is tried again then.
        """
        with self._settling:
            self._settle()

    def _settle(self) -> None:
        with self._lock:
            leaving, self._leaving = self._leaving, []
        while leaving:
            unit = leaving[-1]
            try:
                with unit.lock:  # a unit that is damaged, or new, has no manifest open
                    (unit.manifest or Manifest(self.files, unit.directory, unit.state)).remove()
            except SystemFault:
                with self._lock:
                    self._leaving[:0] = leaving
                raise
            with self._lock:
                self._garbage_units.append(leaving.pop())

    def meta(self, unit: UnitId) -> dict[str, Any]:
        """What the caller stored with a unit."""
        return self._unit(unit).meta

    def set_meta(self, unit: UnitId, meta: dict[str, Any]) -> None:
        """Store values that JSON can say with a unit: durable with its next flush, for which `seal` gives a job."""
        found = self._unit(unit)
        found.meta = dict(meta)
        found.meta_changed = True

    def _release(self, memtable: Memtable) -> None:
        """A memtable leaves its unit; its memory is free once no reader pins it."""
        with self._lock:
            if memtable.pins:
                self._retired.add(id(memtable))
                self._pinned += memtable.bytes
            else:
                self._bytes -= memtable.bytes

    # --- damage -------------------------------------------------------------------------------------------------------

    def note_damage(self, unit: UnitId, reason: str) -> None:
        """The unit's files cannot be read: it is listed in `corrupt` from now on. From any thread."""
        self.corrupt.setdefault(unit, reason)

    def _note_damage_of(self, unit: Unit, reason: str) -> None:
        """Nothing where another one has taken its place: readers of the damaged files may live on."""
        if self._units.get(unit.id) is unit:
            self.note_damage(unit.id, reason)

    def mark_absent(self) -> None:
        """Make it durable that units are damaged, so that a restart knows it too. On a worker; SystemFault."""
        with self._marking:
            for unit, reason in list(self.corrupt.items()):
                found = self._units.get(unit)
                if found is not None and unit in self.corrupt and found.number not in self._marked:
                    self._mark(found, reason)
                    self._marked.add(found.number)

    def _mark(self, unit: Unit, reason: str) -> None:
        with unit.lock:
            if unit.dropped:
                return
            if unit.adopted is not None and unit.manifest is None:  # its directory may not be there, or not durably
                make_directory(self.files, unit.directory)
            if self.files.exists(unit.directory):
                path = f"{unit.directory}/{ABSENT}"
                replace_atomically(self.files, path, f"{path}.new", reason.encode())
                path = f"{unit.directory}/{MANIFEST}"
                if unit.adopted is not None and not self.files.exists(path):  # without one it is no unit
                    data = manifest_bytes(unit.state)
                    replace_atomically(self.files, path, f"{unit.directory}/{MANIFEST_NEW}", data)

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
        self._mirrored[unit] = found
        return f"{self.directory}/{unit_name(unit, number)}"

    def end_mirror(self, unit: UnitId) -> None:
        """Behind every `begin_mirror`, whatever came of it."""
        self._mirrored.pop(unit, None)

    @property
    def mirroring(self) -> bool:
        """Whether a copy of a unit is on its way: it holds what was written before that began, and not all until now.

        What was written since is in memory, and must stay in the log until it is flushed into the copy.
        """
        return bool(self._mirrored)

    def open_mirror(self, unit: UnitId, directory: str, manifest: bytes) -> MirroredUnit:
        """Make a directory that has all files of a copy the unit's own, durably. On a worker.

        SystemFault where the disk fails, CorruptData where the files do not make a unit, or it was dropped: one that is
        here under the same id by now has come since, and a copy of the one before lacks what was written to it.
        """
        old = self._units.get(unit)
        if old is None or old is not self._mirrored.get(unit):
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
            return MirroredUnit(new, old)

    def finish_mirror(self, mirrored: MirroredUnit) -> None:
        """Put the copy in the place of the damaged unit; what was written above it stays. On the loop.

        Memtables that reach beyond the copy are kept whole: what they hold of it once more comes to the same. Others
        go, the active one too: the copy may hold later writes over theirs, which are passed over when they come here.
        """
        new, old = mirrored
        self.end_mirror(new.id)
        if self._units.get(new.id) is not old:  # it was dropped meanwhile
            new.dropped = True
            with self._lock:
                self._leaving.append(new)
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
        self.mirrors_finished += 1
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
