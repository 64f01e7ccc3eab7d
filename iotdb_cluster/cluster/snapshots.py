"""Snapshots of data groups: how a member gets what the log has forgotten.

The core's snapshot message is small: position and members. Before it goes out the leader streams the files that it
speaks of: it offers a list of them (path, size, checksum), sends what the member does not hold yet in pieces of at most
4 MiB, each with its CRC, a few under way at a time, and asks the member to finish: every file is verified and synced,
and the replica opened from them. Only then the message is delivered; a member drops one whose files it does not have.
The driver then writes the `Install` mark, which makes the staged directory count, and the opened replica takes the
place of the old one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import crc32c

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.cluster.staging import Stage, Wanted, reopen_stage
from iotdb_cluster.data import CopiedFile, DataGroup, GroupCopy
from iotdb_cluster.errors import CallerError, CorruptData, Status, SystemFault
from iotdb_cluster.limits import SNAPSHOT_PIECE_BYTES, SNAPSHOT_PIECES_IN_FLIGHT, SNAPSHOTS_SENT_MAX
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import Message, Snapshot
from iotdb_cluster.world import World

__all__ = ["SNAPSHOT_CALLS", "SnapshotProgress", "SnapshotReceiver", "SnapshotSender"]

logger = logging.getLogger(__name__)

SNAPSHOT_CALLS = ("snapshot offer", "snapshot piece", "snapshot finish")
CALL_MS = 30_000  # of a piece
VERIFY_MS = 300_000  # of an offer or a finish: what is staged may have to be read
RETRY_MS = 1_000  # between a transfer that failed and the next one
SWEEP_MS = 5_000
STAGE_IDLE_MS_MAX = 600_000  # a stage that nobody sends to goes
_NO_MEMORY: memoryview = memoryview(b"")


# --- sending ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class SnapshotProgress:
    """A transfer that is under way: bytes that the member has, or that are on their way to it, of how many.

    `sent` are those of this attempt.
    """

    group: int
    node: int
    index: int
    done: int
    sent: int
    total: int
    since_ms: float


class SnapshotSender:
    """Streams snapshots of the groups that this node leads.

    `take(group, fresh, member)` gives a checkpoint for a member, with its files pinned.
    """

    def __init__(
        self,
        world: World,
        driver: Driver,
        calls: Calls,
        take: Callable[[int, bool, int], Awaitable[tuple[Snapshot, GroupCopy]]],
        fault: Callable[[BaseException], None],
        settings: Settings,
    ) -> None:
        self._world = world
        self._driver = driver
        self._calls = calls
        self._take = take
        self._fault = fault
        self._timeout_s = settings.catch_up_timeout_ms / 1000
        self._bytes_per_s = settings.snapshot_bytes_per_s
        self._next_piece_ms = 0.0  # so that all transfers together keep to it
        self._under_way: dict[tuple[int, int], SnapshotProgress] = {}
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}  # by group and member
        self._takings: set[asyncio.Future[tuple[Snapshot, GroupCopy]]] = set()
        self._room = asyncio.Semaphore(SNAPSHOTS_SENT_MAX)

    def send(self, group: Group, message: Message) -> None:
        """The core wants a member to have a snapshot; it hears what became of it."""
        key = (group.id, message.to)
        before = self._tasks.pop(key, None)
        if before is not None:
            before.cancel()
        task = self._tasks[key] = asyncio.get_running_loop().create_task(self._run(group, message))
        task.add_done_callback(lambda ended: self._ended(key, ended))

    def _ended(self, key: tuple[int, int], task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault(error)

    def forget(self, number: int) -> None:
        """This node has no replica of the group any more."""
        for key in [key for key in self._tasks if key[0] == number]:
            self._tasks.pop(key).cancel()

    async def close(self) -> None:
        for work in (list(self._tasks.values()), list(self._takings)):
            for task in work:
                task.cancel()
            if work:
                await asyncio.wait(work)

    async def _run(self, group: Group, message: Message) -> None:
        async with self._room:
            sent = await self._send(group, message)
        if sent is None:
            await asyncio.sleep(RETRY_MS / 1000)
            self._driver.snapshot_failed(group, message.to)
        elif _leads(group, message):
            self._driver.deliver_snapshot(group, replace(message, snapshot=sent))

    async def _send(self, group: Group, message: Message) -> Snapshot | None:
        """The snapshot that the member has in full; None where the transfer failed."""
        node = group.nodes.get(message.to, 0)
        copy: GroupCopy | None = None
        try:
            snapshot, copy = await self._taken(group.id, message.to)
            size = sum(file.size for file in copy.files)
            logger.info("group %d: snapshot %d for node %d: %d bytes", group.id, snapshot.index, node, size)
            transfer = _Transfer(group, message, node, snapshot, self._world.random.getrandbits(63))
            progress = SnapshotProgress(group.id, node, snapshot.index, 0, 0, size, self._world.clock.monotonic_ms())
            self._under_way[group.id, node] = progress
            async with asyncio.timeout(self._timeout_s):
                await self._transfer(transfer, copy, progress)
            logger.info("group %d: node %d has snapshot %d", group.id, node, snapshot.index)
        except (CallerError, CorruptData, OSError) as error:
            reason = str(error) or f"not within {self._timeout_s:.0f} s; the next attempt goes on from there"
            logger.warning("group %d: node %d did not get a snapshot: %s", group.id, node, reason)
            return None
        finally:
            self._under_way.pop((group.id, node), None)
            if copy is not None:
                copy.release()
        return snapshot

    async def _taken(self, number: int, member: int) -> tuple[Snapshot, GroupCopy]:
        """What `take` gives. It may be flushing, and must not be cancelled: what comes late is released."""
        taking = asyncio.ensure_future(self._take(number, False, member))
        self._takings.add(taking)
        taking.add_done_callback(self._takings.discard)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._late)
            raise

    def _late(self, taking: asyncio.Future[tuple[Snapshot, GroupCopy]]) -> None:
        if taking.cancelled():
            return
        error = taking.exception()
        if error is None:
            taking.result()[1].release()
        elif not isinstance(error, CallerError | CorruptData):
            self._fault(error)

    def progress(self) -> list[SnapshotProgress]:
        """The transfers that are under way."""
        return [self._under_way[key] for key in sorted(self._under_way)]

    async def _pace(self, size: int) -> None:
        """Wait until the node's snapshots may send so many bytes more."""
        now = self._world.clock.monotonic_ms()
        begin = max(now, self._next_piece_ms)
        self._next_piece_ms = begin + 1000 * size / self._bytes_per_s
        if begin > now:
            await asyncio.sleep((begin - now) / 1000)

    async def _transfer(self, transfer: _Transfer, copy: GroupCopy, progress: SnapshotProgress) -> None:
        listed = [[file.path, file.size, file.crc32c] for file in copy.files]
        answer = await self._call(transfer, "snapshot offer", {"files": listed}, VERIFY_MS)
        if not answer["wanted"]:
            return
        flying: deque[asyncio.Task[Any]] = deque()
        try:
            for number, (file, here) in enumerate(zip(copy.files, answer["have"], strict=True)):
                progress.done += here
                for offset in range(here, file.size, SNAPSHOT_PIECE_BYTES):
                    if len(flying) >= SNAPSHOT_PIECES_IN_FLIGHT:
                        await flying.popleft()
                    await self._pace(min(SNAPSHOT_PIECE_BYTES, file.size - offset))
                    data = await self._world.workers.run(_read, self._world, file, offset)
                    progress.done += len(data)
                    progress.sent += len(data)
                    piece = {"file": number, "offset": offset, "crc": crc32c.crc32c(data)}
                    sending = self._call(transfer, "snapshot piece", piece, CALL_MS, data)
                    flying.append(asyncio.get_running_loop().create_task(sending))
            while flying:
                await flying.popleft()
        finally:
            for task in flying:
                task.cancel()
            if flying:
                await asyncio.gather(*flying, return_exceptions=True)
        # Over the connection that the message will take: a message to a peer that is not connected would be lost.
        await self._call(transfer, "snapshot finish", {}, VERIFY_MS, channel=Channel.DATA)

    async def _call(
        self,
        transfer: _Transfer,
        method: str,
        head: dict[str, Any],
        timeout_ms: float,
        data: bytes = b"",
        channel: Channel = Channel.SNAPSHOT,
    ) -> Any:
        if not _leads(transfer.group, transfer.message):
            raise transfer.group.not_leader()
        body = pack({**transfer.head(), **head}, [data] if data else [])
        deadline = Deadline(self._world, timeout_ms)
        answer, _ = unpack(await self._calls.call(transfer.node, method, body, deadline, channel))
        return answer


@dataclass(frozen=True, slots=True)
class _Transfer:
    """One attempt to bring a snapshot to a member."""

    group: Group
    message: Message
    node: int
    snapshot: Snapshot
    number: int

    def head(self) -> dict[str, Any]:
        """What every call of it says."""
        return {
            "group": self.group.id,
            "generation": self.group.generation,
            "replica": self.message.to,
            "leader_term": self.message.term,
            "transfer": self.number,
            "index": self.snapshot.index,
            "term": self.snapshot.term,
        }


def _leads(group: Group, message: Message) -> bool:
    return group.leads and group.raw.term == message.term


def _read(world: World, file: CopiedFile, offset: int) -> bytes:
    """A piece; CorruptData where the file is shorter than it was."""
    data = file.read(world.files, offset, SNAPSHOT_PIECE_BYTES)
    if len(data) != min(SNAPSHOT_PIECE_BYTES, file.size - offset):
        raise CorruptData(f"{file.source or file.path}: {len(data)} bytes at {offset}, its size is {file.size}")
    return data


# --- receiving --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Incoming:
    """What one replica receives. The lock is held by whoever works on the stage."""

    base: str
    stage: Stage
    used_ms: float
    transfer: int = 0
    index: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SnapshotReceiver:
    """Receives snapshots for the replicas of this node, as long as `reserve_bytes` of the disk stay free."""

    def __init__(self, world: World, driver: Driver, machines: dict[int, DataMachine], reserve_bytes: int) -> None:
        self._world = world
        self._reserve_bytes = reserve_bytes
        self._driver = driver
        self._machines = machines
        self._incoming: dict[int, _Incoming] = {}

    def register(self, calls: Calls) -> None:
        handlers = (self._offer, self._piece, self._finish)
        calls.handlers.update(zip(SNAPSHOT_CALLS, handlers, strict=True))

    def opened(self, number: int, base: str) -> None:
        """This node has a replica of the group, whose directories begin with `base`."""
        stage = Stage(self._world.files, base)
        self._incoming[number] = _Incoming(base, stage, self._world.clock.monotonic_ms())

    async def forget(self, number: int) -> None:
        """This node has no replica of the group any more: afterwards nothing is written for it."""
        incoming = self._incoming.pop(number, None)
        if incoming is not None:
            async with incoming.lock:
                await self._world.workers.run(incoming.stage.abandon)

    def _find(self, head: Any) -> tuple[Group, DataMachine, _Incoming]:
        """The replica that a call means; CallerError where it is not here, or its caller leads no more."""
        number = int(head["group"])
        group, incoming = self._driver.groups.get(number), self._incoming.get(number)
        if group is None or incoming is None:
            raise CallerError(Status.PARTITION_NOT_READY, f"this node has no replica of group {number}")
        if (group.generation, group.replica) != (head["generation"], head["replica"]):
            raise CallerError(Status.PARTITION_NOT_READY, f"group {number} has another replica here")
        if head["leader_term"] < group.raw.term:
            raise CallerError(Status.NO_LEADER, f"group {number} is in term {group.raw.term}")
        return group, self._machines[number], incoming

    async def _offer(self, body: memoryview, deadline: Deadline) -> bytes:
        """{"wanted": whether the files are, "have": bytes of each that are here}."""
        del deadline
        head, _ = unpack(body)
        _, _, incoming = self._find(head)
        async with incoming.lock:
            group, machine, _ = self._find(head)
            if _restoring(group):
                raise CallerError(Status.WRITE_PROCESS_REJECT, f"group {group.id} is installing a snapshot")
            index, term = int(head["index"]), int(head["term"])
            if index <= group.raw.commit or machine.takes(index, term):
                return pack({"wanted": False})
            before = machine.drop_candidate()
            incoming.transfer, incoming.index = int(head["transfer"]), index
            incoming.used_ms = self._world.clock.monotonic_ms()
            wanted = [Wanted(str(path), int(size), int(crc)) for path, size, crc in head["files"]]

            def begin() -> list[int]:
                if before is not None:
                    before.close()
                    reopen_stage(self._world.files, incoming.base, before.directory)
                have = incoming.stage.begin(wanted)
                self._check_room(incoming, sum(one.size for one in wanted) - sum(have))
                return have

            have = await self._work(incoming, begin)
        return pack({"wanted": True, "have": have})

    def _check_room(self, incoming: _Incoming, missing: int) -> None:
        """Raise SystemFault where the files that are missing would take what the disk keeps in reserve."""
        free = self._world.files.free_bytes(incoming.stage.directory)
        if free - missing < self._reserve_bytes:
            raise SystemFault(f"{missing} bytes are missing, the disk has {free}, {self._reserve_bytes} stay free")

    async def _piece(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, buffers = unpack(body)
        data = buffers[0] if buffers else _NO_MEMORY
        _, _, incoming = self._find(head)
        async with incoming.lock:
            self._check_current(head, incoming)

            def write() -> None:
                if crc32c.crc32c(data) != head["crc"]:
                    raise CorruptData(f"a piece of {len(data)} bytes does not match its checksum")
                incoming.stage.write(int(head["file"]), int(head["offset"]), data)

            await self._work(incoming, write)
        return pack(None)

    async def _finish(self, body: memoryview, deadline: Deadline) -> bytes:
        """Everything was sent: verify, make it durable, open it."""
        del deadline
        head, _ = unpack(body)
        group, machine, incoming = self._find(head)
        async with incoming.lock:
            self._check_current(head, incoming)
            incoming.transfer = 0
            index, term = int(head["index"]), int(head["term"])

            def finish() -> DataGroup:
                directory = incoming.stage.finish(index)
                return _opened(self._world, group.id, directory, (index, term))

            data = await self._work(incoming, finish)
            if index > group.raw.commit:
                machine.received(data, term)
            else:  # what was missing has come by another way
                await self._work(incoming, lambda: self._discard(data))
        return pack(None)

    def _check_current(self, head: Any, incoming: _Incoming) -> None:
        self._find(head)
        if head["transfer"] != incoming.transfer:
            raise CallerError(Status.WRITE_PROCESS_REJECT, "another transfer has begun")
        incoming.used_ms = self._world.clock.monotonic_ms()

    async def _work(self, incoming: _Incoming, work: Callable[[], Any]) -> Any:
        """On a worker; a disk that refuses, or what is damaged, ends the transfer and not the node."""
        try:
            return await self._world.workers.run(work)
        except (OSError, SystemFault) as error:
            incoming.transfer = 0
            logger.warning("%s: %s", incoming.stage.directory, error)
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"the snapshot is not taken: {error}") from None

    def _discard(self, data: DataGroup) -> None:
        data.close()
        self._world.files.remove_tree(data.directory)

    async def sweep_forever(self) -> None:
        """Remove what was received and is of no use any more."""
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            for number, incoming in list(self._incoming.items()):
                group, machine = self._driver.groups.get(number), self._machines.get(number)
                if group is not None and machine is not None and not incoming.lock.locked():
                    await self._sweep(group, machine, incoming)

    async def _sweep(self, group: Group, machine: DataMachine, incoming: _Incoming) -> None:
        async with incoming.lock:
            if (
                machine.candidate is not None
                and not _restoring(group)
                and machine.candidate.applied <= group.raw.commit
            ):
                data = machine.drop_candidate()
                if data is not None:
                    await self._world.workers.run(self._discard, data)
            idle = self._world.clock.monotonic_ms() - incoming.used_ms > STAGE_IDLE_MS_MAX
            passed = 0 < incoming.index <= group.raw.commit
            if idle or passed:
                incoming.transfer = incoming.index = 0
                incoming.used_ms = self._world.clock.monotonic_ms()
                await self._world.workers.run(incoming.stage.abandon)


def _restoring(group: Group) -> bool:
    return bool(group.raw.restoring)


def _opened(world: World, number: int, directory: str, position: tuple[int, int]) -> DataGroup:
    """The replica as the staged files have it; CorruptData, and they are gone, where they do not make one."""
    try:
        data = DataGroup.open(number, world.files, directory)
        if (data.applied, data.applied_term) == position and not data.store.corrupt:
            return data
        found, corrupt = (data.applied, data.applied_term), data.store.corrupt
        data.close()
        raise CorruptData(f"{directory}: a snapshot of {position} is at {found}, damaged units: {corrupt}")
    except SystemFault:
        world.files.remove_tree(directory)
        raise
