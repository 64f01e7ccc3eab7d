"""Files that are read where they are and changed in memory alone: a backup is opened through these and stays whole."""

from __future__ import annotations

import posixpath

from iotdb_cluster.world import File, FileSystem

__all__ = ["Overlay"]


class _OverlayFile:
    """Reads pass through until something is written: from then on the content is in `changed`."""

    def __init__(self, path: str, below: File | None, changed: dict[str, bytearray]) -> None:
        self._path = path
        self._below = below
        self._changed = changed

    def _content(self) -> bytearray:
        """The bytes in memory; copied there now if they are not yet."""
        if self._path not in self._changed:
            below = self._below
            self._changed[self._path] = bytearray() if below is None else bytearray(below.read(0, below.size()))
        return self._changed[self._path]

    def read(self, offset: int, length: int) -> bytes:
        changed = self._changed.get(self._path)
        if changed is not None or self._below is None:
            return bytes(self._content()[offset : offset + length])
        return self._below.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if not len(data):
            return
        content = self._content()
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data

    def sync(self) -> None:
        """Nothing is to last."""

    def size(self) -> int:
        changed = self._changed.get(self._path)
        if changed is not None or self._below is None:
            return len(self._content())
        return self._below.size()

    def truncate(self, size: int) -> None:
        if size == self.size():
            return
        content = self._content()
        del content[size:]
        content.extend(bytes(size - len(content)))

    def close(self) -> None:
        if self._below is not None:
            self._below.close()


class Overlay:
    """A `FileSystem` over another one, of which it changes nothing. For small changes: they are kept in memory."""

    def __init__(self, below: FileSystem) -> None:
        self._below = below
        self._changed: dict[str, bytearray] = {}
        self._removed: set[str] = set()

    def _is_below(self, path: str) -> bool:
        parents = [path]
        while parents[-1] not in ("", "/", "."):
            parents.append(posixpath.dirname(parents[-1]))
        return self._removed.isdisjoint(parents) and self._below.exists(path)

    def open(self, path: str, *, create: bool = False) -> File:
        if path in self._changed or (create and not self._is_below(path)):
            self._changed.setdefault(path, bytearray())
            return _OverlayFile(path, None, self._changed)
        if not self._is_below(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return _OverlayFile(path, self._below.open(path), self._changed)

    def exists(self, path: str) -> bool:
        return any(one == path or one.startswith(f"{path}/") for one in self._changed) or self._is_below(path)

    def list(self, path: str) -> list[str]:
        made = {one[len(path) + 1 :].split("/")[0] for one in self._changed if one.startswith(f"{path}/")}
        there = self._below.list(path) if self._is_below(path) else []
        return sorted(made | {name for name in there if f"{path}/{name}" not in self._removed})

    def make_directories(self, path: str) -> None:
        """A directory is there when a file in it is."""

    def rename(self, source: str, target: str) -> None:
        file = self.open(source)
        try:
            self._changed[target] = bytearray(file.read(0, file.size()))
        finally:
            file.close()
        self._removed.discard(target)
        self.remove(source)

    def remove(self, path: str) -> None:
        self._changed.pop(path, None)
        self._removed.add(path)

    def remove_tree(self, path: str) -> None:
        for one in [one for one in self._changed if one.startswith(f"{path}/")]:
            del self._changed[one]
        self._removed.add(path)

    def sync_directory(self, path: str) -> None:
        """Nothing is to last."""

    def free_bytes(self, path: str) -> int:
        return self._below.free_bytes(path)

    def lock(self, path: str) -> File:
        return self._below.lock(path)
