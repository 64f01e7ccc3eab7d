"""The directories of a data replica when snapshots come: which one counts, and the stage where a snapshot is received.

Beside the replica's first directory `B` there may be `B.stage`, where files of an offered snapshot are gathered, and
`B.<index>` (20 digits): a snapshot of that index of which every file was verified and synced before the stage got this
name. It counts from the moment on at which the log has the `Install` mark of that index; nothing is moved then. Each
later checkpoint goes to the directory that counts, and the others are removed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

import crc32c

from iotdb_cluster.cluster.log import make_durable_directories
from iotdb_cluster.data import newest_index
from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.limits import SNAPSHOT_PIECE_BYTES
from iotdb_cluster.world import File, FileSystem

__all__ = ["Stage", "Wanted", "live_directory", "reopen_stage", "snapshot_directory", "stage_directory"]

_PATH = re.compile(r"(?:units/[0-9]+\.-?[0-9]+\.[0-9]+/)?[0-9a-z-]+(?:\.[a-z]+)?")
_PART = ".part"


class Wanted(NamedTuple):
    """A file of a snapshot: its path in the group's directory, size in bytes, CRC32C of the whole."""

    path: str
    size: int
    crc32c: int


def stage_directory(base: str) -> str:
    return f"{base}.stage"


def snapshot_directory(base: str, index: int) -> str:
    return f"{base}.{index:020d}"


def live_directory(files: FileSystem, base: str, mark: int) -> str:
    """The directory that counts where the log's mark is `mark`; the others are removed. For a worker. OSError.

    A snapshot beyond the mark was never installed: it becomes the stage again. One at or below it was, or it is a left
    over that the log has passed; then the directory that it was meant to replace has the newer checkpoint.
    """
    parent, name = posixpath.split(base)
    found: list[tuple[int, int, str]] = []
    for other in files.list(parent):
        path = f"{parent}/{other}"
        suffix = other.removeprefix(f"{name}.")
        if other == name:
            found.append((newest_index(files, path), 0, path))
        elif suffix != other and suffix.isdigit():
            if int(suffix) <= mark:
                found.append((newest_index(files, path), int(suffix), path))
            else:
                reopen_stage(files, base, path)
    live = max(found, default=(0, 0, base))[2]
    for _, _, path in found:
        if path != live:
            files.remove_tree(path)
    files.sync_directory(parent)
    return live


def reopen_stage(files: FileSystem, base: str, path: str) -> None:
    """What was received and is not installed may serve the next transfer."""
    stage = stage_directory(base)
    if files.exists(stage):
        files.remove_tree(path)
    else:
        files.rename(path, stage)
    files.sync_directory(posixpath.dirname(base))


class Stage:
    """The files of an offered snapshot on their way to disk. Methods block: for a worker, one at a time. OSError.

    Files come one after another, each in pieces in order, first under another name. What is whole and has the right
    checksum is kept, also for another snapshot that has the same file.
    """

    def __init__(self, files: FileSystem, base: str) -> None:
        self.directory = stage_directory(base)
        self._files = files
        self._base = base
        self._wanted: Sequence[Wanted] = ()
        self._whole: set[Wanted] = set()  # verified and synced, as far as known
        self._open: Wanted | None = None
        self._part: File | None = None
        self._offset = 0
        self._crc = 0

    def begin(self, wanted: Sequence[Wanted]) -> list[int]:
        """Prepare for these files; for each the bytes that are here already. CorruptData for a path that is none."""
        for one in wanted:
            if not _PATH.fullmatch(one.path) or one.size <= 0:
                raise CorruptData(f"a snapshot names the file {one.path!r} of {one.size} bytes")
        self._wanted = wanted
        if self._open is not None and self._open not in wanted:
            self._close_part()
        by_path = {one.path: one for one in wanted}
        make_durable_directories(self._files, self.directory)
        for path in self._listed():
            known = by_path.get(path)
            if known is not None and self._is_whole(known):
                self._whole.add(known)
            elif self._open is None or path != self._open.path + _PART:
                self._files.remove(f"{self.directory}/{path}")
        for directory in sorted({posixpath.dirname(one.path) for one in wanted} - {""}):
            make_durable_directories(self._files, f"{self.directory}/{directory}")
        self._remove_other_units(wanted)
        return [one.size if one in self._whole else self._offset if one == self._open else 0 for one in wanted]

    def _listed(self) -> list[str]:
        """The files of the stage, by their paths in it."""
        found = [name for name in self._files.list(self.directory) if name != "units"]
        units = f"{self.directory}/units"
        for unit in self._files.list(units):
            found.extend(f"units/{unit}/{name}" for name in self._files.list(f"{units}/{unit}"))
        self._whole &= {one for one in self._whole if one.path in set(found)}
        return found

    def _remove_other_units(self, wanted: Sequence[Wanted]) -> None:
        units = f"{self.directory}/units"
        needed = {one.path.split("/")[1] for one in wanted if "/" in one.path}
        for unit in self._files.list(units):
            if unit not in needed:
                self._files.remove_tree(f"{units}/{unit}")

    def _is_whole(self, one: Wanted) -> bool:
        if one in self._whole:
            return True
        file = self._files.open(f"{self.directory}/{one.path}")
        try:
            if file.size() != one.size:
                return False
            crc = 0
            for offset in range(0, one.size, SNAPSHOT_PIECE_BYTES):
                crc = crc32c.crc32c(file.read(offset, SNAPSHOT_PIECE_BYTES), crc)
            if crc == one.crc32c:
                file.sync()  # it may have been read from memory only
            return bool(crc == one.crc32c)
        finally:
            file.close()

    def write(self, number: int, offset: int, data: bytes | memoryview) -> None:
        """The next piece of a file. CorruptData where it is not the next one, or the file's checksum is wrong."""
        one = self._wanted[number]
        if one in self._whole or offset + len(data) > one.size:
            raise CorruptData(f"{one.path}: a piece at {offset} that is not wanted")
        if one != self._open or self._part is None:
            self._close_part()
            if offset == 0:
                self._open, self._part = one, self._files.open(f"{self.directory}/{one.path}{_PART}", create=True)
                self._part.truncate(0)
        if self._part is None or offset != self._offset:
            raise CorruptData(f"{one.path}: a piece at {offset}, {self._offset} bytes are here")
        self._part.write(offset, data)
        self._offset += len(data)
        self._crc = crc32c.crc32c(data, self._crc)
        if self._offset == one.size:
            self._complete(one, self._part)

    def _complete(self, one: Wanted, part: File) -> None:
        if self._crc != one.crc32c:
            self._close_part()
            raise CorruptData(f"{one.path}: {one.size} bytes with a checksum other than {one.crc32c}")
        part.sync()
        self._close_part()
        path = f"{self.directory}/{one.path}"
        self._files.rename(path + _PART, path)
        self._whole.add(one)

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
        self._open = self._part = None
        self._offset = self._crc = 0

    def finish(self, index: int) -> str:
        """Every file is here: make their names durable and the stage a snapshot's directory, which is returned."""
        missing = [one.path for one in self._wanted if one not in self._whole]
        if missing or not self._wanted:
            raise CorruptData(f"{self.directory}: {len(missing)} files are missing, such as {missing[:3]}")
        check(self._open is None, "%s: a file is not whole", self.directory)
        for directory in sorted({posixpath.dirname(one.path) for one in self._wanted}):
            self._files.sync_directory(f"{self.directory}/{directory}" if directory else self.directory)
        self._files.sync_directory(self.directory)
        target = snapshot_directory(self._base, index)
        if self._files.exists(target):
            self._files.remove_tree(target)
        self._files.rename(self.directory, target)
        self._files.sync_directory(posixpath.dirname(target))
        self._wanted, self._whole = (), set()
        return target

    def abandon(self) -> None:
        """Remove whatever is staged."""
        self._close_part()
        self._wanted, self._whole = (), set()
        if self._files.exists(self.directory):
            self._files.remove_tree(self.directory)
