"""A disk in memory that loses what was not synced.

File data is kept in pages of 4 KiB: a page has the content that reads see, the content that survives a power cut, and
the pieces written since its last sync, in order. A power cut leaves each page at any state between the two. Names are
changes of directories: they survive once their directory was synced, and a power cut keeps any of the others as long as
a change that rests on another is not kept without it. Directories themselves are names in their parent.

Calls that change something are counted; power can be cut at a given one, calls can be made to fail, and the disk can
fill up.
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from iotdb_cluster.errors import check
from iotdb_cluster.simulation.pages import MANNERS, PAGE_BYTES, Inode
from iotdb_cluster.world import File

__all__ = ["PAGE_BYTES", "FaultRule", "Mount", "PowerCut", "SimulatedDisk"]


Operation = Literal[
    "read", "write", "sync", "truncate", "open", "rename", "remove", "make_directories", "sync_directory", "lock"
]


class PowerCut(BaseException):
    """The power is off. No program handles that, hence not an `Exception`: nothing after it may take effect."""


@dataclass(slots=True, eq=False)
class _Directory:
    live: dict[str, Inode | _Directory] = field(default_factory=dict)
    durable: dict[str, Inode | _Directory] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _NameChange:
    """Names that change together: all of it survives or none."""

    changes: tuple[tuple[_Directory, str, Inode | _Directory | None], ...]

    def touches(self, other: _NameChange) -> bool:
        mine = {(id(directory), name) for directory, name, _ in self.changes}
        return any((id(directory), name) in mine for directory, name, _ in other.changes)

    def apply_durably(self) -> None:
        for directory, name, node in self.changes:
            if node is None:
                directory.durable.pop(name, None)
            else:
                directory.durable[name] = node


@dataclass(slots=True)
class FaultRule:
    """Calls of `operation` on paths that contain `path` fail with `error`: `times` of them after the first `skip`."""

    operation: Operation
    path: str = ""
    error: int = errno.EIO
    times: int = 1
    skip: int = 0


class SimulatedDisk:
    """Implements `world.FileSystem`; every path is absolute (others are taken from the root).

    `random` decides what is torn when an injected fault or `cut_at` strikes; `capacity` is in bytes (None: endless);
    `directories` exist durably from the start.
    """

    def __init__(
        self,
        random: random.Random | None = None,
        *,
        capacity: int | None = None,
        directories: tuple[str, ...] = (),
        trace: Callable[..., None] | None = None,
    ) -> None:
        self.random = random if random is not None else _seeded(0)
        self.capacity = capacity
        self.calls = 0  # calls that change something
        self.reads = 0
        self.open_files = 0
        self.cut_at: int | None = None  # power is cut at this call, counted as `calls`
        self.before_change: Callable[[int], None] | None = None  # told the number of each call that is counted
        self.cut_power = True  # False: only the process dies then, what was written stays readable
        self.generation = 0  # counts power cuts and process crashes
        self.powered = True
        self.rules: list[FaultRule] = []
        self.on_cut: Callable[[], None] | None = None  # told when `cut_at` has struck
        self.fault: Callable[[Operation, str], int | None] | None = None  # an errno for a call that is to fail
        self._trace = trace
        self._root = _Directory()
        self._changes: list[_NameChange] = []
        self._writes = 0
        self._used_pages = 0
        self._locks: dict[str, _SimulatedFile] = {}
        for directory in directories:
            self.make_directories(directory)
        self._commit(self._changes)
        self.calls = 0

    # --- world.FileSystem ---------------------------------------------------------------------------------------------
    def open(self, path: str, *, create: bool = False) -> File:
        path = _normal(path)
        directory, name = self._parent(path)
        node = directory.live.get(name)
        if isinstance(node, _Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if node is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            made = Inode()
            self._change("open", path, lambda: self._rename_nodes(_NameChange(((directory, name, made),))))
            node = made
        else:
            self._look("open", path)
        return _SimulatedFile(self, node, path)

    def exists(self, path: str) -> bool:
        self._look("open", path)
        return self._find(_normal(path)) is not None

    def list(self, path: str) -> list[str]:
        self._look("open", path)
        node = self._find(_normal(path))
        if node is None:
            return []
        if not isinstance(node, _Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return sorted(node.live)

    def make_directories(self, path: str) -> None:
        path = _normal(path)
        directory = self._root
        for name in path.split("/")[1:] if path != "/" else ():
            node = directory.live.get(name)
            if node is None:
                made = _Directory()
                change = _NameChange(((directory, name, made),))
                self._change("make_directories", path, partial(self._rename_nodes, change))
                node = made
            if not isinstance(node, _Directory):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            directory = node

    def rename(self, source: str, target: str) -> None:
        source, target = _normal(source), _normal(target)
        from_directory, from_name = self._parent(source)
        to_directory, to_name = self._parent(target)
        node = from_directory.live.get(from_name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        there = to_directory.live.get(to_name)
        if isinstance(there, _Directory) and there is not node:
            if not isinstance(node, _Directory):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
            if there.live:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
        if (from_directory, from_name) == (to_directory, to_name):
            return
        change = _NameChange(((from_directory, from_name, None), (to_directory, to_name, node)))
        self._change("rename", source, lambda: self._rename_nodes(change))

    def remove(self, path: str) -> None:
        path = _normal(path)
        directory, name = self._parent(path)
        node = directory.live.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if isinstance(node, _Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._change("remove", path, lambda: self._rename_nodes(_NameChange(((directory, name, None),))))

    def remove_tree(self, path: str) -> None:
        path = _normal(path)
        node = self._find(path)
        if not isinstance(node, _Directory):
            number = errno.ENOENT if node is None else errno.ENOTDIR
            raise OSError(number, os.strerror(number), path)
        for name in sorted(node.live):
            below = posixpath.join(path, name)
            if isinstance(node.live[name], _Directory):
                self.remove_tree(below)
            else:
                self.remove(below)
        directory, name = self._parent(path)
        self._change("remove", path, lambda: self._rename_nodes(_NameChange(((directory, name, None),))))

    def sync_directory(self, path: str) -> None:
        path = _normal(path)
        node = self._find(path)
        if not isinstance(node, _Directory):
            number = errno.ENOENT if node is None else errno.ENOTDIR
            raise OSError(number, os.strerror(number), path)
        self._change("sync_directory", path, lambda: self._sync_directory(node))

    @property
    def used_bytes(self) -> int:
        """Allocated pages."""
        return self._used_pages * PAGE_BYTES

    def free_bytes(self, path: str) -> int:
        self._look("open", path)
        if self.capacity is None:
            return 1 << 60
        return max(0, self.capacity - self._used_pages * PAGE_BYTES)

    def lock(self, path: str) -> File:
        path = _normal(path)
        if path in self._locks:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), path)
        file = self.open(path, create=True)
        check(isinstance(file, _SimulatedFile), "a foreign file %s", file)
        self._locks[path] = file  # type: ignore[assignment]
        return file

    # --- faults -------------------------------------------------------------------------------------------------------
    def inject(
        self, operation: Operation, path: str = "", error: int = errno.EIO, times: int = 1, skip: int = 0
    ) -> None:
        """Let calls fail, see `FaultRule`. A write or sync that fails may have done part of its work."""
        self.rules.append(FaultRule(operation, path, error, times, skip))

    def power_cut(self, random: random.Random | None = None) -> None:
        """Drop what is not synced, or keep random parts of it; the disk can be used again at once.

        Files opened before are dead: their calls raise `PowerCut`.
        """
        rng = self.random if random is None else random
        self._say("power cut")
        self._cut_names(rng)
        manner = rng.choice(MANNERS)
        until = (
            rng.randint(max(0, self._writes - 20), self._writes) if rng.random() < 0.5 else rng.randint(0, self._writes)
        )
        for inode in self._inodes(self._root):
            inode.cut(rng, manner, until, self._writes)
        self._used_pages = sum(len(inode.live) for inode in self._inodes(self._root))
        self._forget_handles()

    def power_on(self) -> None:
        """After `cut_at` struck: let the disk be used again."""
        self.powered = True

    def process_crash(self) -> None:
        """The program ends, the machine goes on: what was written can be read, and is as unsynced as before."""
        self._say("process crash")
        self._forget_handles()

    def mount(self) -> Mount:
        """This disk until the next power cut or process crash; afterwards every call raises `PowerCut`."""
        return Mount(self)

    def flip(self, path: str, offset: int, bit: int = 0) -> None:
        """Flip one bit of a file, in what is read and in what survives."""
        inode = self._find(_normal(path))
        check(isinstance(inode, Inode) and 0 <= offset < inode.size, "%s has no byte %d", path, offset)
        if isinstance(inode, Inode):
            inode.flip(offset, bit)

    def files(self, path: str) -> Iterator[tuple[str, int]]:
        """(path, size) of all files below a directory; for looks from outside, which nothing can make fail."""
        node = self._find(_normal(path))
        if isinstance(node, _Directory):
            for name in sorted(node.live):
                below = posixpath.join(_normal(path), name)
                one = node.live[name]
                if isinstance(one, _Directory):
                    yield from self.files(below)
                else:
                    yield below, one.size

    def peek(self, path: str, offset: int, length: int) -> bytes:
        """What stands there; for looks from outside."""
        inode = self._find(_normal(path))
        check(isinstance(inode, Inode), "%s is no file", path)
        return inode.read(offset, length) if isinstance(inode, Inode) else b""

    # --- inside: names ------------------------------------------------------------------------------------------------
    def _find(self, path: str) -> Inode | _Directory | None:
        node: Inode | _Directory | None = self._root
        if path == "/":
            return node
        for name in path.split("/")[1:]:
            if not isinstance(node, _Directory):
                return None
            node = node.live.get(name)
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        head, name = posixpath.split(path)
        directory = self._find(head)
        if not name or directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not isinstance(directory, _Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return directory, name

    def _rename_nodes(self, change: _NameChange) -> None:
        self._changes.append(change)
        moved = [node for _, _, node in change.changes if node is not None]
        for directory, name, node in change.changes:
            old = directory.live.get(name)
            if isinstance(old, Inode) and old not in moved:
                old.linked = False
                self._used_pages -= len(old.live)
            if node is None:
                directory.live.pop(name, None)
            else:
                directory.live[name] = node

    def _sync_directory(self, directory: _Directory) -> None:
        """Changes of the directory, and the older ones that they rest on."""
        wanted = [change for change in self._changes if any(place is directory for place, _, _ in change.changes)]
        self._commit(wanted)

    def _commit(self, wanted: Sequence[_NameChange]) -> None:
        chosen: set[int] = {id(change) for change in wanted}
        for at in range(len(self._changes) - 1, -1, -1):
            change = self._changes[at]
            if id(change) in chosen:
                chosen.update(id(older) for older in self._changes[:at] if older.touches(change))
        for change in self._changes:
            if id(change) in chosen:
                change.apply_durably()
        self._changes = [change for change in self._changes if id(change) not in chosen]

    def _cut_names(self, rng: random.Random) -> None:
        share = rng.choice((0.0, 0.5, 1.0))
        kept: list[_NameChange] = []
        dropped: list[_NameChange] = []
        for change in self._changes:
            if rng.random() < share and not any(older.touches(change) for older in dropped):
                kept.append(change)
            else:
                dropped.append(change)
        for change in kept:
            change.apply_durably()
        self._changes = []
        directories = [self._root]
        while directories:
            directory = directories.pop()
            directory.live = dict(directory.durable)
            directories.extend(node for node in directory.live.values() if isinstance(node, _Directory))

    def _inodes(self, directory: _Directory) -> Iterator[Inode]:
        for name in sorted(directory.live):
            node = directory.live[name]
            if isinstance(node, _Directory):
                yield from self._inodes(node)
            else:
                yield node

    # --- inside: data -------------------------------------------------------------------------------------------------
    def read_data(self, inode: Inode, path: str, offset: int, length: int) -> bytes:
        self._look("read", path)
        self.reads += 1
        return inode.read(offset, length)

    def write_data(self, inode: Inode, path: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")

        def torn() -> None:
            self._store(inode, offset, view[: self.random.randint(0, len(view))])

        self._change("write", path, lambda: self._write_within_capacity(inode, path, offset, view), torn)

    def _write_within_capacity(self, inode: Inode, path: str, offset: int, view: memoryview) -> None:
        if self.capacity is not None and inode.linked:
            free = self.capacity // PAGE_BYTES - self._used_pages
            number = offset // PAGE_BYTES
            while number * PAGE_BYTES < offset + len(view):
                if number not in inode.live:
                    free -= 1
                if free < 0:
                    self._store(inode, offset, view[: max(0, number * PAGE_BYTES - offset)])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
                number += 1
        self._store(inode, offset, view)

    def _store(self, inode: Inode, offset: int, view: memoryview) -> None:
        self._writes += 1
        before = len(inode.live)
        inode.write(self._writes, offset, view)
        if inode.linked:
            self._used_pages += len(inode.live) - before

    def truncate_data(self, inode: Inode, path: str, size: int) -> None:
        self._change("truncate", path, lambda: self._truncate(inode, size))

    def _truncate(self, inode: Inode, size: int) -> None:
        self._writes += 1
        before = len(inode.live)
        inode.truncate(self._writes, size)
        if inode.linked:
            self._used_pages += len(inode.live) - before

    def sync_data(self, inode: Inode, path: str) -> None:
        self._change("sync", path, inode.sync, lambda: inode.fail_sync(self.random))

    # --- inside: calls ------------------------------------------------------------------------------------------------
    def _forget_handles(self) -> None:
        self.generation += 1
        self.open_files = 0
        self._locks.clear()

    def release_lock(self, file: _SimulatedFile) -> None:
        if self._locks.get(file.path) is file:
            del self._locks[file.path]

    def _say(self, *event: object) -> None:
        if self._trace is not None:
            self._trace("disk", *event)

    def _error(self, operation: Operation, path: str) -> int | None:
        for rule in self.rules:
            if rule.operation == operation and rule.path in path and rule.times > 0:
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                rule.times -= 1
                return rule.error
        return self.fault(operation, path) if self.fault is not None else None

    def _look(self, operation: Operation, path: str) -> None:
        """A call that changes nothing."""
        if not self.powered:
            raise PowerCut
        number = self._error(operation, path)
        if number is not None:
            self._say(operation, path, "fails", number)
            raise OSError(number, os.strerror(number), path)

    def _change(
        self, operation: Operation, path: str, work: Callable[[], None], partly: Callable[[], None] | None = None
    ) -> None:
        """A call that changes something; where it fails, `partly` does what it may have done by then."""
        if not self.powered:
            raise PowerCut
        self.calls += 1
        self._say(operation, path, self.calls)
        if self.before_change is not None:
            self.before_change(self.calls)
        if self.cut_at is not None and self.calls >= self.cut_at:
            # The call that was interrupted may have done none, all, or where there is such a thing a part of its work.
            done = self.random.choice(("none", "part", "all"))
            if done == "all":
                work()
            elif done == "part" and partly is not None:
                partly()
            self.cut_at = None
            self.powered = False
            if self.cut_power:
                self.power_cut()
            else:
                self.process_crash()
            if self.on_cut is not None:
                self.on_cut()
            raise PowerCut
        number = self._error(operation, path)
        if number is not None:
            self._say(operation, path, "fails", number)
            if partly is not None:
                partly()
            raise OSError(number, os.strerror(number), path)
        work()


def _seeded(seed: int) -> random.Random:
    return random.Random(seed)


def _normal(path: str) -> str:
    normal = posixpath.normpath("/" + path)
    return normal[1:] if normal.startswith("//") else normal


class _SimulatedFile:
    """Implements `world.File`."""

    __slots__ = ("_closed", "_disk", "_generation", "_inode", "path")

    def __init__(self, disk: SimulatedDisk, inode: Inode, path: str) -> None:
        self._disk = disk
        self._inode = inode
        self._generation = disk.generation
        self._closed = False
        self.path = path
        disk.open_files += 1

    def _alive(self) -> None:
        if self._generation != self._disk.generation or not self._disk.powered:
            raise PowerCut
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)

    def read(self, offset: int, length: int) -> bytes:
        self._alive()
        return self._disk.read_data(self._inode, self.path, offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._alive()
        self._disk.write_data(self._inode, self.path, offset, data)

    def sync(self) -> None:
        self._alive()
        self._disk.sync_data(self._inode, self.path)

    def size(self) -> int:
        self._alive()
        return self._inode.size

    def truncate(self, size: int) -> None:
        self._alive()
        self._disk.truncate_data(self._inode, self.path, size)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._generation == self._disk.generation:
                self._disk.open_files -= 1
                self._disk.release_lock(self)


class Mount:
    """A disk as one run of a program sees it: once that run has crashed, all of its calls raise `PowerCut`."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk
        self._generation = disk.generation

    def _alive(self) -> SimulatedDisk:
        if self._generation != self._disk.generation:
            raise PowerCut
        return self._disk

    def open(self, path: str, *, create: bool = False) -> File:
        return self._alive().open(path, create=create)

    def exists(self, path: str) -> bool:
        return self._alive().exists(path)

    def list(self, path: str) -> list[str]:
        return self._alive().list(path)

    def make_directories(self, path: str) -> None:
        self._alive().make_directories(path)

    def rename(self, source: str, target: str) -> None:
        self._alive().rename(source, target)

    def remove(self, path: str) -> None:
        self._alive().remove(path)

    def remove_tree(self, path: str) -> None:
        self._alive().remove_tree(path)

    def sync_directory(self, path: str) -> None:
        self._alive().sync_directory(path)

    def free_bytes(self, path: str) -> int:
        return self._alive().free_bytes(path)

    def lock(self, path: str) -> File:
        return self._alive().lock(path)
