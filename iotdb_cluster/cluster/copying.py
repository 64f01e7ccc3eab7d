"""Files on their way from one node to another: what is pinned for it there, and what is fetched here.

Repair and moves ask for a *copy* of units, a backup for one of a whole group, by calls of their own; what comes back is
its number and the files (place, name, size and CRC32C: the place is that of their unit in the copy, or 0), beside what
only they want. The rest is the same for all: pieces, the end, and letting go what nobody fetches any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import crc32c

from iotdb_cluster.cluster.bandwidth import Bandwidth
from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.data import CopiedFile, DataGroup
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import (
    COPY_PIECES_IN_FLIGHT,
    COPY_SYNCS_IN_FLIGHT,
    COPY_UNSYNCED_BYTES,
    COPY_UNSYNCED_BYTES_BUSY,
    SNAPSHOT_PIECE_BYTES,
)
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.storage import PinnedUnit, UnitId
from iotdb_cluster.world import File, World

__all__ = ["COPY_CALLS", "BrokenFile", "Fetcher", "GivenCopies", "ListedFile", "Listing"]

logger = logging.getLogger(__name__)

COPY_CALLS = ("copy piece", "copy end")
END_MS = 2_000
GIVEN_IDLE_MS_MAX = 60_000  # a copy that nobody fetches any more is let go
SWEEP_MS = 300


class BrokenFile(CorruptData):
    """What came of file `name` at `place` is not what its giver listed."""

    def __init__(self, place: int, name: str, message: str) -> None:
        super().__init__(message)
        self.place, self.name = place, name


class ListedFile(NamedTuple):
    """A file of a copy: the place of its unit there, if any, its name, size in bytes, and CRC32C."""

    place: int
    name: str
    size: int
    crc32c: int


class Listing(NamedTuple):
    """A copy as its giver describes it."""

    number: int
    files: tuple[ListedFile, ...]

    @classmethod
    def load(cls, head: Any) -> Listing:
        files = tuple(ListedFile(int(a), str(b), int(c), int(d)) for a, b, c, d in head["files"])
        return cls(int(head["copy"]), files)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


# --- giving -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Given:
    """What another node copies: the files by place and name; see `GivenCopies.give`."""

    files: dict[tuple[int, str], CopiedFile]
    release: Callable[[], None]
    verify: Callable[[int, str], None] | None
    idle_ms_max: float
    used_ms: float

    def file(self, head: Any) -> CopiedFile:
        found = self.files.get((int(head["place"]), str(head["file"])))
        if found is None:
            raise CallerError(Status.ILLEGAL_PARAMETER, f"the copy has no file {head['file']!r}")
        return found


class GivenCopies:
    """The copies that this node gives."""

    def __init__(self, world: World, bandwidth: Bandwidth) -> None:
        self._world = world
        self._bandwidth = bandwidth
        self._given: dict[int, _Given] = {}
        self._next = 1

    def register(self, calls: Calls) -> None:
        calls.handlers.update(zip(COPY_CALLS, (self._piece_call, self._end_call), strict=True))

    def give(
        self,
        files: Sequence[tuple[int, CopiedFile]],
        release: Callable[[], None],
        verify: Callable[[int, str], None] | None = None,
        idle_ms_max: float = GIVEN_IDLE_MS_MAX,
    ) -> dict[str, Any]:
        """What the other node is told (see `Listing`) of pinned files, each with its place.

        They are released when it has them, or has asked for none for so long. `verify(place, name)`, on a worker, looks
        at a file that did not come as it is listed.
        """
        number, self._next = self._next, self._next + 1
        by_name = {(place, one.path): one for place, one in files}
        self._given[number] = _Given(by_name, release, verify, idle_ms_max, self._world.clock.monotonic_ms())
        return {"copy": number, "files": [[place, one.path, one.size, one.crc32c] for place, one in files]}

    def give_units(self, data: DataGroup, units: Sequence[tuple[UnitId, PinnedUnit]]) -> dict[str, Any]:
        """The same of pinned units, of which a damaged one is repaired."""

        def release() -> None:
            for _, pinned in units:
                pinned.release()

        files = [
            (place, CopiedFile(one.name, one.bytes, one.crc32c, source=one.path))
            for place, (_, pinned) in enumerate(units)
            for one in pinned.files
        ]
        return self.give(files, release, lambda place, name: data.store.verify_file(units[place][0], name))

    async def run(self) -> None:
        """Let go what nobody fetches any more: what is pinned keeps its place on the disk. Until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            self._bandwidth.look()
            now = self._world.clock.monotonic_ms()
            for number, given in list(self._given.items()):
                if now - given.used_ms > given.idle_ms_max:
                    logger.info("copy %d of %d files is let go: nobody fetches it", number, len(given.files))
                    self._let_go(number)

    def _find(self, head: Any) -> _Given:
        given = self._given.get(int(head["copy"]))
        if given is None:
            raise CallerError(Status.PARTITION_NOT_READY, "the copy was let go: begin anew")
        given.used_ms = self._world.clock.monotonic_ms()
        return given

    async def _piece_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        file = self._find(head).file(head)
        length = min(int(head["length"]), SNAPSHOT_PIECE_BYTES)
        if not head["urgent"]:
            await self._bandwidth.pace(length)
        self._find(head)  # it may have been let go meanwhile
        return await self._world.workers.run(self._read, file, int(head["offset"]), length)

    def _read(self, file: CopiedFile, offset: int, length: int) -> bytes:
        return pack(None, [file.read(self._world.files, offset, length)])

    async def _end_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        given = self._find(head)
        self._let_go(int(head["copy"]))
        if head["damaged"] and given.verify is not None:
            place, name = head["damaged"]
            await self._world.workers.run(given.verify, int(place), str(name))
        return pack(None)

    def _let_go(self, number: int) -> None:
        self._given.pop(number).release()

    def close(self) -> None:
        for number in list(self._given):
            self._let_go(number)


# --- fetching ---------------------------------------------------------------------------------------------------------


class _Target:
    """A file that is being written; under another name until it is whole and durable. For a worker."""

    def __init__(self, world: World, wanted: ListedFile, path: str) -> None:
        self.wanted = wanted
        self._files = world.files
        self._path = path
        self._file: File | None = None
        self._crc = 0
        self._unsynced = 0

    def write(self, offset: int, data: memoryview, unsynced_max: int) -> None:
        """The next piece of it.

        No more than `unsynced_max` bytes are left for the sync at the end: while a disk takes many, logs wait for it.
        """
        if self._file is None:
            self._file = self._files.open(f"{self._path}.part", create=True)
            self._file.truncate(0)
        self._file.write(offset, data)
        self._crc = crc32c.crc32c(data, self._crc)
        self._unsynced += len(data)
        if self._unsynced >= unsynced_max:
            self._file.sync()
            self._unsynced = 0

    def finish(self) -> None:
        """All of it is written; BrokenFile where it is not what was listed."""
        if self._file is None:
            return
        if self._crc != self.wanted.crc32c:
            raise BrokenFile(self.wanted.place, self.wanted.name, f"{self.wanted.name} does not match its checksum")
        self._file.sync()
        self.close()
        self._files.rename(f"{self._path}.part", self._path)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class _Piece(NamedTuple):
    target: _Target
    offset: int
    length: int


class Fetcher:
    """Fetches the files of copies, a few pieces under way at a time, within this node's bandwidth."""

    def __init__(self, world: World, calls: Calls, bandwidth: Bandwidth) -> None:
        self._world = world
        self._calls = calls
        self._bandwidth = bandwidth

    def look(self) -> None:
        """Several times a second, also while nothing is fetched: see `Bandwidth.look`."""
        self._bandwidth.look()

    async def fetch(
        self,
        node: int,
        copy: int,
        wanted: Sequence[tuple[ListedFile, str]],
        fetched: Callable[[int], None] | None = None,
        *,
        urgent: bool = False,
    ) -> None:
        """Bring each file to its path; it is durable there but for its name. `fetched(bytes)` is told as they come.

        What is `urgent` waits for no bandwidth: clients wait for it, or an operator who wants it now.
        Raises CallerError, BrokenFile, CorruptData, OSError. What was written half-way stands under `<path>.part`.
        """
        flying: deque[tuple[_Piece, asyncio.Task[memoryview]]] = deque()
        ending: deque[asyncio.Future[None]] = deque()
        loop = asyncio.get_running_loop()
        targets = [_Target(self._world, file, path) for file, path in wanted]
        try:
            for piece in self._pieces(targets, urgent):
                if len(flying) >= (1 if self._bandwidth.busy else COPY_PIECES_IN_FLIGHT):
                    await self._take(node, *flying.popleft(), fetched, ending)
                if not urgent:
                    await self._bandwidth.pace(piece.length)
                flying.append((piece, loop.create_task(self._ask(node, copy, piece, urgent))))
            while flying:
                await self._take(node, *flying.popleft(), fetched, ending)
            while ending:
                await asyncio.shield(ending[0])
                ending.popleft()
        finally:
            if ending:  # workers: they must not meet whoever comes next
                await asyncio.wait(ending)
                for one in ending:
                    one.exception()  # what the caller is told is the first failure
            for _, task in flying:
                task.cancel()
            if flying:
                await asyncio.gather(*(task for _, task in flying), return_exceptions=True)
            for target in targets:
                target.close()

    def _pieces(self, targets: Sequence[_Target], urgent: bool) -> Iterator[_Piece]:
        for target in targets:
            offset = 0
            while offset < target.wanted.size:
                most = SNAPSHOT_PIECE_BYTES if urgent else self._bandwidth.piece_bytes
                length = min(most, target.wanted.size - offset)
                yield _Piece(target, offset, length)
                offset += length

    async def _ask(self, node: int, copy: int, piece: _Piece, urgent: bool) -> memoryview:
        wanted = piece.target.wanted
        head = {
            "copy": copy,
            "place": wanted.place,
            "file": wanted.name,
            "offset": piece.offset,
            "length": piece.length,
            "urgent": urgent,
        }
        return await self._call(node, "copy piece", head, self._bandwidth.piece_timeout_ms)

    async def _take(
        self,
        node: int,
        piece: _Piece,
        answer: asyncio.Task[memoryview],
        fetched: Callable[[int], None] | None,
        ending: deque[asyncio.Future[None]],
    ) -> None:
        _, buffers = unpack(await answer)
        data, name = buffers[0], piece.target.wanted.name
        if len(data) != piece.length:
            raise CorruptData(f"node {node}: {name} has {len(data)} bytes at {piece.offset}, not {piece.length}")
        # Whoever is cancelled waits for the worker: it writes to a file that is closed afterwards.
        unsynced = COPY_UNSYNCED_BYTES_BUSY if self._bandwidth.busy else COPY_UNSYNCED_BYTES
        writing = asyncio.ensure_future(self._world.workers.run(piece.target.write, piece.offset, data, unsynced))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise
        if fetched is not None:
            fetched(piece.length)
        if piece.offset + piece.length == piece.target.wanted.size:
            ending.append(asyncio.ensure_future(self._world.workers.run(piece.target.finish)))
            while len(ending) > (0 if self._bandwidth.busy else COPY_SYNCS_IN_FLIGHT):
                await asyncio.shield(ending[0])
                ending.popleft()

    async def end(self, node: int, copy: int, broken: BrokenFile | None = None) -> None:
        """Tell the giver that its copy is not needed any more, and which file was not what it listed."""
        head = {"copy": copy, "damaged": [] if broken is None else [broken.place, broken.name]}
        try:
            await self._call(node, "copy end", head, END_MS)
        except CallerError:  # it lets the copy go by itself
            return

    async def _call(self, node: int, method: str, head: Any, timeout_ms: float) -> memoryview:
        return await self._calls.call(node, method, pack(head), Deadline(self._world, timeout_ms), Channel.SNAPSHOT)
