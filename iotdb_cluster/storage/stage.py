"""Units on their way from another group: the files of one move, until the group owns its slots.

In the stage's directory stand `note` (what the caller wrote at the beginning), a directory for each unit, under the
name that it has at the giver, and at the end `whole`, which names the units and the checksum of the giver's manifests.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from crc32c import crc32c

from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import MIB
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.storage.durable import disk_faults, make_directory, read_bytes, replace_atomically
from iotdb_cluster.storage.filenames import MANIFEST, MANIFEST_NEW, parse_unit_name
from iotdb_cluster.storage.manifest import Manifest, manifest_bytes
from iotdb_cluster.storage.types import FileInfo, UnitId
from iotdb_cluster.world import FileSystem

__all__ = ["Stage", "StagedUnit", "checksum_of"]

NOTE = "note"
WHOLE = "whole"


class StagedUnit(NamedTuple):
    """A unit's final manifest as the giver pinned it (`PinnedUnit`); `epoch` is the one that its slot gets."""

    name: str
    manifest: bytes
    epoch: int


def checksum_of(units: Sequence[StagedUnit]) -> int:
    """63 bits that tell final manifests apart, in whatever order they come."""
    found = hashlib.sha256()
    for unit in sorted(units):
        found.update(f"{unit.name} {unit.epoch} {len(unit.manifest)}\n".encode())
        found.update(unit.manifest)
    return int.from_bytes(found.digest()[:8], "big") >> 1


class Stage:
    """The staged files of one move. Everything on a worker, one thread at a time; SystemFault where the disk fails."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self.directory = directory
        self._files = files

    def begin(self, note: Any) -> None:
        """Make the directory, with a note that JSON can say. What stands in it already stays, but is not whole."""
        make_directory(self._files, self.directory)
        self._unmark()
        path = f"{self.directory}/{NOTE}"
        replace_atomically(self._files, path, f"{path}.new", pack(note))

    def _unmark(self) -> None:
        whole = f"{self.directory}/{WHOLE}"
        with disk_faults(whole):
            if self._files.exists(whole):
                self._files.remove(whole)
                self._files.sync_directory(self.directory)

    def note(self) -> Any:
        """What `begin` was told; None where it did not come so far."""
        path = f"{self.directory}/{NOTE}"
        with disk_faults(path):
            if not self._files.exists(path):
                return None
        return _head(path, read_bytes(self._files, path))

    def unit_directory(self, name: str) -> str:
        """Where the files of a unit go that is called `name` at the giver; it is made with its first file."""
        return f"{self.directory}/{name}"

    def make_unit(self, name: str) -> str:
        """The same, and it is there, durably with `finish`; the stage is not whole any more, for files may change."""
        self._unmark()
        path = self.unit_directory(name)
        with disk_faults(path):
            if not self._files.exists(path):
                self._files.make_directories(path)
        return path

    def holds(self, name: str, file: FileInfo) -> bool:
        """Whether a file of a unit is here, whole: its size and its checksum are those of the giver's.

        If it is, it is durable then, but for its name.
        """
        path = f"{self.unit_directory(name)}/{file.name}"
        with disk_faults(path):
            if not self._files.exists(path):
                return False
            found, crc = self._files.open(path), 0
            try:
                if found.size() != file.bytes:
                    return False
                for offset in range(0, file.bytes, MIB):
                    crc = crc32c(found.read(offset, MIB), crc)
                if crc == file.crc32c:
                    found.sync()
            finally:
                found.close()
        return crc == file.crc32c

    def finish(self, units: Sequence[StagedUnit], durable: Container[tuple[str, str]] = ()) -> int:
        """All files that these manifests name are here: make that durable; `checksum_of(units)`.

        What they do not name goes. `durable` files, by (name of the unit, name of the file), are so but for their
        names: they need no sync. CorruptData where a file is missing or has another size.
        """
        checksum = checksum_of(units)
        keep = {unit.name for unit in units}
        self._unmark()
        with disk_faults(self.directory):
            for name in self._files.list(self.directory):
                if name not in keep and name != NOTE:
                    self._remove(f"{self.directory}/{name}")
        for unit in units:
            self._finish_unit(unit, durable)
        path = f"{self.directory}/{WHOLE}"
        head = {"checksum": checksum, "units": sorted(keep)}
        with disk_faults(self.directory):
            self._files.sync_directory(self.directory)
        replace_atomically(self._files, path, f"{path}.new", pack(head))
        return checksum

    def _finish_unit(self, unit: StagedUnit, durable: Container[tuple[str, str]]) -> None:
        path = self.make_unit(unit.name)
        if parse_unit_name(unit.name) is None:
            raise CorruptData(f"{path}: not the name of a unit")
        state = Manifest.read(path, unit.manifest)
        for info in state.files.values():
            with disk_faults(info.path):
                file = self._files.open(info.path)
                try:
                    size = file.size()
                    if (unit.name, info.name) not in durable:
                        file.sync()
                finally:
                    file.close()
            if size != info.bytes:
                raise CorruptData(f"{info.path}: is {size} bytes long, the manifest says {info.bytes}")
        # everything in it was written under an earlier epoch
        state = replace(state, opened=(unit.epoch, 0), flushed=(unit.epoch, 0))
        named = {info.name for info in state.files.values()}
        with disk_faults(path):
            for name in self._files.list(path):
                if name not in named:
                    self._remove(f"{path}/{name}")
        replace_atomically(self._files, f"{path}/{MANIFEST}", f"{path}/{MANIFEST_NEW}", manifest_bytes(state))

    def _remove(self, path: str) -> None:
        if parse_unit_name(posixpath.basename(path)) is not None:
            self._files.remove_tree(path)
        else:
            self._files.remove(path)

    def whole(self) -> tuple[int, dict[UnitId, str]] | None:
        """(checksum, where each unit lies) of what `finish` made, None where it did not; also on the loop."""
        path = f"{self.directory}/{WHOLE}"
        with disk_faults(path):
            if not self._files.exists(path):
                return None
        head = _head(path, read_bytes(self._files, path))
        found: dict[UnitId, str] = {}
        for name in head["units"]:
            parsed = parse_unit_name(name)
            if parsed is not None:
                found[parsed[0]] = f"{self.directory}/{name}"
        return int(head["checksum"]), found

    def remove(self) -> None:
        """Take it all away."""
        with disk_faults(self.directory):
            if self._files.exists(self.directory):
                self._files.remove_tree(self.directory)


def _head(path: str, data: bytes) -> Any:
    try:
        return unpack(data)[0]
    except ValueError as error:
        raise CorruptData(f"{path}: {error}") from None
