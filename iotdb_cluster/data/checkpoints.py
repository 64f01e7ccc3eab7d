"""The files of a group's checkpoint: one with the state, one for each storage group whose schema lives here.

    state-<index>.ckpt                    the newest one counts; made under another name, synced, then renamed
    schema-<storage group>-<index>.ckpt   made where the schema changed since the last checkpoint, named by the state
    import-<move>-<index>.ckpt            the same of what was imported for a move of slots

Each is: magic `DATAGRP` (7 bytes), u8 version (1), u32 CRC32C of the content, u64 its length, then the content; all
big-endian. The state is a `packing` message whose head names the schema files.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import crc32c

from iotdb_cluster.data.state import ImportState
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.schema import TreeSnapshot
from iotdb_cluster.storage import FlushJob
from iotdb_cluster.world import FileSystem

__all__ = ["Checkpoint", "ImportBlob", "SchemaBlob", "load_newest", "newest_files", "newest_index", "write_checkpoint"]

_HEAD = struct.Struct(">7sBIQ")
_MAGIC, _VERSION = b"DATAGRP", 1
_TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class SchemaBlob:
    """The schema of a storage group as of log index `index`; `tree` is None where that file exists already."""

    storage_group: int
    index: int
    tree: TreeSnapshot | None

    @property
    def name(self) -> str:
        return f"schema-{self.storage_group}-{self.index:020d}.ckpt"


@dataclass(frozen=True, slots=True)
class ImportBlob:
    """What was imported for a move, as of log index `index`; `parts` is None where that file exists already."""

    move: int
    index: int
    parts: ImportState | None

    @property
    def name(self) -> str:
        return f"import-{self.move}-{self.index:020d}.ckpt"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A frozen state at log position (index, term), the schemas and imports it names, and the flush jobs that come
    first."""

    index: int
    term: int
    state: dict[str, Any]
    schemas: tuple[SchemaBlob, ...]
    imports: tuple[ImportBlob, ...]
    jobs: Sequence[FlushJob]

    def step(self) -> bool:
        """Walk on through the trees, some milliseconds; False when all is walked. On the loop."""
        return any(blob.tree is not None and blob.tree.step() for blob in self.schemas)

    def walk(self) -> None:
        """All that is left of it at once."""
        while self.step():
            pass


def _seal(data: bytes) -> bytes:
    return _HEAD.pack(_MAGIC, _VERSION, crc32c.crc32c(data), len(data)) + data


def _open_sealed(path: str, raw: bytes) -> bytes:
    if len(raw) < _HEAD.size:
        raise CorruptData(f"{path}: {len(raw)} bytes are no checkpoint")
    magic, version, crc, length = _HEAD.unpack_from(raw)
    data = raw[_HEAD.size :]
    if magic != _MAGIC or version != _VERSION:
        raise CorruptData(f"{path}: version {version} of {magic!r}, this program knows {_VERSION} of {_MAGIC!r}")
    if len(data) != length or crc32c.crc32c(data) != crc:
        raise CorruptData(f"{path}: {len(data)} bytes where {length} belong, or a wrong checksum")
    return data


def _write(files: FileSystem, path: str, data: bytes) -> None:
    file = files.open(path + _TEMPORARY, create=True)
    try:
        file.truncate(0)
        file.write(0, _seal(data))
        file.sync()
    finally:
        file.close()
    files.rename(path + _TEMPORARY, path)


def _read(files: FileSystem, path: str) -> bytes:
    file = files.open(path)
    try:
        return _open_sealed(path, file.read(0, file.size()))
    finally:
        file.close()


def write_checkpoint(files: FileSystem, directory: str, checkpoint: Checkpoint) -> None:
    """Make the checkpoint durable and the newest; what older ones alone used goes. OSError as the disk gives it."""
    for blob in checkpoint.schemas:
        if blob.tree is not None:
            _write(files, f"{directory}/{blob.name}", blob.tree.encode())
    for one in checkpoint.imports:
        if one.parts is not None:
            _write(files, f"{directory}/{one.name}", one.parts.dump())
    head = {**checkpoint.state, "schemas": [[blob.storage_group, blob.index] for blob in checkpoint.schemas]}
    files.sync_directory(directory)
    name = f"state-{checkpoint.index:020d}.ckpt"
    _write(files, f"{directory}/{name}", pack(head))
    files.sync_directory(directory)
    keep = {name, *(blob.name for blob in checkpoint.schemas), *(one.name for one in checkpoint.imports)}
    for other in files.list(directory):
        if other.startswith(("state-", "schema-", "import-")) and other not in keep:
            files.remove(f"{directory}/{other}")


def newest_index(files: FileSystem, directory: str) -> int:
    """The index of the newest checkpoint; 0 where there is none."""
    names = [name for name in files.list(directory) if name.startswith("state-") and name.endswith(".ckpt")]
    return max((int(name[6:-5]) for name in names), default=0)


def newest_files(files: FileSystem, directory: str) -> tuple[int, int, list[tuple[str, bytes]]]:
    """(index, term, its files as (name, bytes)) of the newest checkpoint. CorruptData where it cannot be read."""
    name = f"state-{newest_index(files, directory):020d}.ckpt"
    try:
        state, _ = unpack(_read(files, f"{directory}/{name}"))
        index, term = state["position"]
        named = _named(state)
        found = [(one, _seal(_read(files, f"{directory}/{one}"))) for one in (name, *named[0], *named[1])]
    except (ValueError, KeyError, TypeError, RecursionError, FileNotFoundError) as error:
        raise CorruptData(f"{directory}/{name}: not a checkpoint: {error!r}") from None
    return int(index), int(term), found


def _named(state: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the files of schemas, and of imports, that belong to a state."""
    schemas = [SchemaBlob(storage_group, at, None).name for storage_group, at in state["schemas"]]
    imports = [ImportBlob(move, changed, None).name for move, changed, *_ in state.get("imports", ())]
    return schemas, imports


def load_newest(files: FileSystem, directory: str) -> tuple[dict[str, Any], list[bytes], list[bytes]] | None:
    """(state, the schemas and the imports in the state's order) of the newest checkpoint, None where there is none.

    CorruptData, naming the file, where the newest one cannot be read: an older one would not reach the log's beginning.
    """
    names = [name for name in files.list(directory) if name.startswith("state-") and name.endswith(".ckpt")]
    if not names:
        return None
    path = f"{directory}/{max(names)}"
    raw = _read(files, path)
    try:
        state, _ = unpack(raw)
        schemas, imports = ([_read(files, f"{directory}/{name}") for name in names] for names in _named(state))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptData(f"{path}: not a state: {error}") from None
    except FileNotFoundError as error:
        raise CorruptData(f"{path}: a file that it names is missing: {error}") from None
    return state, schemas, imports
