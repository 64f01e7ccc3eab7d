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
    for directory in reversed(missing):
        files.make_directories(directory)
    # Also where nothing was missing: the program may have ended between the making and the syncing.
    for directory in reversed(missing or [posixpath.normpath(path)]):
        parent = posixpath.dirname(directory) or "."
        if parent != directory:
            files.sync_directory(parent)
