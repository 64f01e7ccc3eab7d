"""The manifest of a unit: which files and tombstones it consists of.

The file begins with magic and version; records follow: u32 mark, u32 length, u32 CRC32C of the payload, the payload
(UTF-8 JSON). The first record is the whole state (a checkpoint); later ones change it. The file is made, and now and
then made anew, by rename, so its first record is whole or the file is damaged.

Behind each appended and synced record stands a `close` record, synced on its own. So a record that does not match its
checksum is a torn tail (cut, for nothing was promised) only if nothing valid stands behind it; otherwise, or in a
checkpoint, it is damage.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

from iotdb_cluster.errors import CorruptData, SystemFault
from iotdb_cluster.limits import MIB
from iotdb_cluster.storage.durable import append_and_sync, disk_faults, replace_atomically
from iotdb_cluster.storage.filenames import MANIFEST, MANIFEST_NEW, chunk_name
from iotdb_cluster.storage.tombstones import Tombstone
from iotdb_cluster.storage.types import FileInfo, Position
from iotdb_cluster.world import File, FileSystem

__all__ = ["Manifest", "ManifestState", "manifest_bytes"]

VERSION = 2  # 2: files have their first and last time
MAGIC = b"ITSMANIF"
HEADER = struct.Struct("<8sHxx")
RECORD = struct.Struct("<III")
MARK = 0x5AC3_96E1
REWRITE_BYTES = 1 * MIB  # an appended file of this size is made anew ...
REWRITE_FACTOR = 4  # ... if it is so many times its checkpoint


@dataclass(slots=True)
class ManifestState:
    """Everything that the records say; `files` by number."""

    opened: Position = (0, 0)
    flushed: Position = (0, 0)
    meta: dict[str, Any] = field(default_factory=dict)
    next_file: int = 1
    files: dict[int, FileInfo] = field(default_factory=dict)
    tombstones: list[Tombstone] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "state",
            "opened": list(self.opened),
            "flushed": list(self.flushed),
            "meta": self.meta,
            "next_file": self.next_file,
            "files": [_file_to_json(number, info) for number, info in self.files.items()],
            "tombstones": [stone.to_json() for stone in self.tombstones],
        }

    def apply(self, record: dict[str, Any], directory: str) -> None:
        """Change by one record."""
        if record["kind"] == "close":
            return
        if record["kind"] not in ("state", "edit"):
            raise CorruptData(f"{directory}: a manifest record has the unknown kind {record['kind']!r}")
        self.opened = (record["opened"][0], record["opened"][1])
        self.flushed = (record["flushed"][0], record["flushed"][1])
        self.meta = record["meta"]
        self.next_file = record["next_file"]
        for number in record.get("removed", ()):
            del self.files[number]
        for entry in record["files"]:
            number, info = _file_from_json(entry, directory)
            self.files[number] = info
        self.tombstones = [Tombstone.from_json(value) for value in record["tombstones"]]


def _file_to_json(number: int, info: FileInfo) -> list[Any]:
    times = (info.first_time, info.last_time)
    return [number, info.bytes, info.crc32c, *info.low, *info.high, *info.folded, *times]


def _file_from_json(entry: list[int], directory: str) -> tuple[int, FileInfo]:
    number, size, crc, *pairs = entry
    name = chunk_name(number)
    low, high, folded, (first, last) = ((pairs[at], pairs[at + 1]) for at in (0, 2, 4, 6))
    return number, FileInfo(name, f"{directory}/{name}", size, crc, low, high, folded, first, last)


def _frame(record: dict[str, Any]) -> bytes:
    payload = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return RECORD.pack(MARK, len(payload), crc32c(payload)) + payload


_CLOSE = _frame({"kind": "close"})


def manifest_bytes(state: ManifestState) -> bytes:
    """A whole manifest that says this and nothing else."""
    return HEADER.pack(MAGIC, VERSION) + _frame(state.to_json()) + _CLOSE


def _record_at(data: bytes, at: int) -> bytes | None:
    """The payload of the record there, or None if none is whole."""
    if at + RECORD.size > len(data):
        return None
    mark, length, crc = RECORD.unpack_from(data, at)
    payload = data[at + RECORD.size : at + RECORD.size + length]
    if mark != MARK or len(payload) != length or crc32c(payload) != crc:
        return None
    if not length:  # a torn write: the mark, and zeros, which are the checksum of nothing
        return None
    return payload


def _replay(state: ManifestState, directory: str, data: bytes) -> tuple[int, int]:
    """Apply all records; returns where the valid ones end, and the first one. CorruptData."""
    path = f"{directory}/{MANIFEST}"
    if data[: HEADER.size] != HEADER.pack(MAGIC, VERSION):
        raise CorruptData(f"{path}: not a manifest of version {VERSION}: it begins with {data[:12].hex()}")
    at, first = HEADER.size, 0
    try:
        while (payload := _record_at(data, at)) is not None:
            state.apply(json.loads(payload), directory)
            at += RECORD.size + len(payload)
            first = first or at
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise CorruptData(f"{path}: a record does not hold what it must: {error!r}") from error
    if not first:
        raise CorruptData(f"{path}: the checkpoint does not match its checksum")
    mark = RECORD.pack(MARK, 0, 0)[:4]
    behind = data.find(mark, at + 1)
    while behind >= 0:
        if _record_at(data, behind) is not None:
            raise CorruptData(f"{path}: the record at {at} is damaged: a valid one stands behind it, at {behind}")
        behind = data.find(mark, behind + 1)
    return at, first


class Manifest:
    """An open manifest. One thread at a time changes it: the caller sees to that."""

    def __init__(self, files: FileSystem, directory: str, state: ManifestState) -> None:
        self.state = state
        self._files = files
        self._directory = directory
        self._path = f"{directory}/{MANIFEST}"
        self._file: File | None = None
        self._size = 0
        self._checkpoint_bytes = 0

    @classmethod
    def create(cls, files: FileSystem, directory: str, state: ManifestState) -> Manifest:
        """A new manifest in an existing directory, durable on return."""
        manifest = cls(files, directory, state)
        manifest._rewrite()
        return manifest

    @classmethod
    def open(cls, files: FileSystem, directory: str) -> Manifest:
        """Read it, and cut a torn tail. CorruptData where it is damaged."""
        manifest = cls(files, directory, ManifestState())
        path = manifest._path
        with disk_faults(path):
            file = files.open(path)
            size = file.size()
            data = file.read(0, size)
        manifest._file = file
        manifest._size, manifest._checkpoint_bytes = _replay(manifest.state, directory, data)
        # also where nothing was torn: what stood in the page cache only becomes durable now
        with disk_faults(path):
            file.truncate(manifest._size)
        append_and_sync(file, path, manifest._size, _CLOSE)
        manifest._size += len(_CLOSE)
        if manifest._size > REWRITE_BYTES:
            manifest._rewrite()
        return manifest

    @staticmethod
    def read(directory: str, data: bytes) -> ManifestState:
        """What these bytes say of a unit in that directory; CorruptData where they are damaged."""
        state = ManifestState()
        _replay(state, directory, data)
        return state

    def edit(self, state: ManifestState, removed: list[int], added: list[int]) -> None:
        """Make `state` the durable one: files `removed` and `added` (numbers) are what differs in its files."""
        file = self._file
        if file is None or (self._size > REWRITE_BYTES and self._size > REWRITE_FACTOR * self._checkpoint_bytes):
            self.state, before = state, self.state
            try:
                self._rewrite()
            except SystemFault:
                self.state = before
                raise
            return
        record = state.to_json()
        record["kind"] = "edit"
        record["removed"] = removed
        record["files"] = [_file_to_json(number, state.files[number]) for number in added]
        frame = _frame(record)
        try:
            append_and_sync(file, self._path, self._size, frame)
            self.state = state
            self._size += len(frame)
            append_and_sync(file, self._path, self._size, _CLOSE)
        except SystemFault:
            # after a failed sync nothing is known of the file: the next change makes it anew
            self.close()
            raise
        self._size += len(_CLOSE)

    def _rewrite(self) -> None:
        data = manifest_bytes(self.state)
        self.close()
        replace_atomically(self._files, self._path, f"{self._directory}/{MANIFEST_NEW}", data)
        with disk_faults(self._path):
            self._file = self._files.open(self._path)
        self._size = len(data)
        self._checkpoint_bytes = len(data)

    def remove(self) -> None:
        """Take the manifest away, durably: the unit is no more."""
        self.close()
        with disk_faults(self._path):
            if self._files.exists(self._path):
                self._files.remove(self._path)
                self._files.sync_directory(self._directory)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
