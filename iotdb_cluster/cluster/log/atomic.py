"""Small files that are replaced as a whole, and directories whose names survive a crash."""

from __future__ import annotations

import posixpath

from iotdb_cluster.world import FileSystem

__all__ = ["make_durable_directories", "replace_file"]


def replace_file(files: FileSystem, path: str, data: bytes) -> None:
    """Write a file anew: afterwards, also after a crash, it holds the old bytes or the new ones. Raises OSError."""
    temporary = path + ".tmp"
    file = files.open(temporary, create=True)
    try:
        file.truncate(0)
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    files.rename(temporary, path)
    files.sync_directory(posixpath.dirname(path) or ".")


def make_durable_directories(files: FileSystem, path: str) -> None:
    """Make the directories that a path needs, each one's name synced in its parent. Raises OSError."""
    missing: list[str] = []
    at = posixpath.normpath(path)
    while not files.exists(at):
        missing.append(at)
        at = posixpath.dirname(at) or "."
    # The deepest one that is there may be new as well: the program may have ended before its name was synced. Those
    # above it were synced before it was made.
    _sync_name(files, at)
    for directory in reversed(missing):
        files.make_directories(directory)
        _sync_name(files, directory)


def _sync_name(files: FileSystem, directory: str) -> None:
    parent = posixpath.dirname(directory) or "."
    if parent != directory:
        files.sync_directory(parent)
