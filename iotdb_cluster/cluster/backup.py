"""Backup: a copy of a running cluster in one directory of the node that was asked.

The copy holds meta's state and of each data group a checkpoint that was made after the backup began, with the files of
its units: what was acknowledged before the beginning is in it whole; of what is written meanwhile some is. Each group
is copied from its leader, which confirms its lead first; the files are pinned there, so that nothing stands still.

    DIR/backup.json          what the copy consists of; written last: a directory without it is not a backup
    DIR/meta                 meta's state, as in its checkpoint
    DIR/group-<id>/...       as in a replica's directory
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import crc32c

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.jobs import Job
from iotdb_cluster.cluster.log import make_durable_directories
from iotdb_cluster.cluster.log.atomic import replace_file
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.cluster.reading import barrier_at_leader
from iotdb_cluster.cluster.slot_decisions import due_decisions
from iotdb_cluster.data import CopiedFile, GroupCopy
from iotdb_cluster.errors import CallerError, CorruptData, Status, check
from iotdb_cluster.limits import SNAPSHOT_PIECE_BYTES, SNAPSHOT_PIECES_IN_FLIGHT
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import Snapshot
from iotdb_cluster.world import World

__all__ = ["BACKUP_CALLS", "BACKUP_FILE", "BACKUP_VERSION", "META_FILE", "Backup", "group_directory"]

logger = logging.getLogger(__name__)

BACKUP_CALLS = ("backup open", "backup piece", "backup end")
BACKUP_FILE, META_FILE = "backup.json", "meta"
BACKUP_VERSION = 1
OPEN_MS = 600_000  # a checkpoint of much that is in memory
PIECE_MS = 30_000
LOOK_MS = 100  # between two looks whether a group has carried out what meta decided
END_MS = 2_000
GIVEN_IDLE_MS_MAX = 600_000  # a copy that nobody fetches any more is let go
SWEEP_MS = 30_000
GIVEN_MAX = 8  # copies that a node gives at once


def group_directory(group: int) -> str:
    """Where a group lies in a backup."""
    return f"group-{group}"


@dataclass(slots=True)
class _Given:
    copy: GroupCopy
    used_ms: float


class Backup:
    """Gives copies of the groups that are led here, and takes whole backups.

    `take(group)` makes a checkpoint of all that is applied and pins its files.
    """

    def __init__(
        self,
        world: World,
        driver: Driver,
        machines: dict[int, DataMachine],
        meta: MetaAccess,
        calls: Calls,
        leaders: Leaders,
        take: Callable[[int], Awaitable[tuple[Snapshot, GroupCopy]]],
    ) -> None:
        self._world = world
        self._driver = driver
        self._machines = machines
        self._meta = meta
        self._calls = calls
        self._leaders = leaders
        self._take = take
        self._given: dict[int, _Given] = {}
        self._taking = 0  # copies that are being made
        self._next = 1

    def register(self, calls: Calls) -> None:
        calls.handlers.update(zip(BACKUP_CALLS, (self._open_call, self._piece_call, self._end_call), strict=True))

    def close(self) -> None:
        for number in list(self._given):
            self._let_go(number)

    # --- giving -------------------------------------------------------------------------------------------------------

    async def _open_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """A copy of a group that is led here, with all that was acknowledged before the call."""
        head, _ = unpack(body)
        await self._meta.barrier(deadline)
        group = await barrier_at_leader(self._driver, int(head["group"]), "strong", deadline)
        while due_decisions(self._meta.state, self._meta.index, self._machines[group.id].data):
            # else slots that have moved would be in two copies, or in none
            if not group.leads:
                raise group.not_leader()
            deadline.check(f"group {group.id} took over what was decided about its slots")
            await asyncio.sleep(LOOK_MS / 1000)
        if len(self._given) + self._taking >= GIVEN_MAX:
            raise CallerError(
                Status.WRITE_PROCESS_REJECT, f"node {self._calls.node} gives {GIVEN_MAX} copies already: try again"
            )
        self._taking += 1
        try:
            _, copy = await self._take(group.id)
        except CorruptData as error:
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"group {group.id} is damaged here: {error}") from None
        finally:
            self._taking -= 1
        number, self._next = self._next, self._next + 1
        self._given[number] = _Given(copy, self._world.clock.monotonic_ms())
        files = [[one.path, one.size, one.crc32c] for one in copy.files]
        return pack({"copy": number, "index": copy.index, "term": copy.term, "files": files})

    async def _piece_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        given = self._given.get(int(head["copy"]))
        if given is None:
            raise CallerError(Status.PARTITION_NOT_READY, "the copy was let go: begin the backup anew")
        given.used_ms = self._world.clock.monotonic_ms()
        file = given.copy.files[int(head["file"])]
        data = await self._world.workers.run(file.read, self._world.files, int(head["offset"]), SNAPSHOT_PIECE_BYTES)
        return pack(None, [data])

    async def _end_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        if int(head["copy"]) in self._given:
            self._let_go(int(head["copy"]))
        return pack(None)

    async def sweep_forever(self) -> None:
        """Let go what nobody fetches any more: what is pinned keeps its place on the disk. Until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            now = self._world.clock.monotonic_ms()
            for number, given in list(self._given.items()):
                if now - given.used_ms > GIVEN_IDLE_MS_MAX:
                    logger.info("a copy of a group at index %d is let go: nobody fetches it", given.copy.index)
                    self._let_go(number)

    def _let_go(self, number: int) -> None:
        self._given.pop(number).copy.release()

    # --- taking -------------------------------------------------------------------------------------------------------

    async def run(self, directory: str, job: Job) -> dict[str, Any]:
        """Write a backup into a directory that is new or empty; what `backup.json` says of it. CallerError, OSError."""
        await self._world.workers.run(self._prepare, directory)
        await self._meta.barrier(self._deadline(PIECE_MS))
        state = self._meta.state
        self._check_at_rest()
        meta, table, nodes = state.dump(), state.table.dump(), len(state.nodes)
        await self._world.workers.run(replace_file, self._world.files, f"{directory}/{META_FILE}", meta)
        groups = []
        for at, group in enumerate(state.groups, 1):
            groups.append(await self._copy_group(group.id, directory, job, f"group {at} of {len(state.groups)}"))
        await self._meta.barrier(self._deadline(PIECE_MS))
        self._check_at_rest()
        if self._meta.state.table.dump() != table:
            raise CallerError(
                Status.QUERY_PROCESS_ERROR,
                "slots moved while the backup was taken: begin it anew in an empty directory",
            )
        said = {
            "version": BACKUP_VERSION,
            "settings": dict(state.settings),
            "nodes": nodes,
            "meta": {"bytes": len(meta), "crc32c": crc32c.crc32c(meta)},
            "groups": groups,
            "taken_ms": self._world.clock.wall_ms(),
        }
        text = json.dumps(said, indent=1, sort_keys=True).encode()
        await self._world.workers.run(replace_file, self._world.files, f"{directory}/{BACKUP_FILE}", text)
        total = sum(size for group in groups for _, size, _ in group["files"])
        return {"directory": directory, "groups": len(groups), "bytes": total + len(meta)}

    def _deadline(self, timeout_ms: float) -> Deadline:
        return Deadline(self._world, timeout_ms)

    def _check_at_rest(self) -> None:
        """Raise while slots are on their way from one group to another: they would be in two copies, or in none."""
        if self._meta.state.moves:
            raise CallerError(
                Status.QUERY_PROCESS_ERROR, "slots are being moved: wait until the membership change has ended"
            )

    def _prepare(self, directory: str) -> None:
        if self._world.files.exists(directory) and self._world.files.list(directory):
            raise CallerError(Status.ILLEGAL_PARAMETER, f"{directory} is not empty: give a new directory")
        make_durable_directories(self._world.files, directory)

    async def _copy_group(self, group: int, directory: str, job: Job, phase: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def attempt(node: int, within: Deadline) -> memoryview:
            found["node"] = node
            return await self._calls.call(node, "backup open", pack({"group": group}), within)

        answer = await self._leaders.run(group, attempt, self._deadline(OPEN_MS), repeatable=False)
        head, _ = unpack(answer)
        node, copy = int(found["node"]), int(head["copy"])
        files = [CopiedFile(str(path), int(size), int(crc)) for path, size, crc in head["files"]]
        job.enter(phase, sum(file.size for file in files), "bytes")
        target = f"{directory}/{group_directory(group)}"
        try:
            for number, file in enumerate(files):
                await self._fetch(node, copy, number, file, target, job)
            await self._world.workers.run(self._sync_names, target, files)
        finally:
            await self._end(node, copy)
        listed = [[file.path, file.size, file.crc32c] for file in files]
        return {"group": group, "index": int(head["index"]), "term": int(head["term"]), "files": listed}

    async def _fetch(self, node: int, copy: int, number: int, file: CopiedFile, target: str, job: Job) -> None:
        path = f"{target}/{file.path}"
        await self._world.workers.run(self._make_parent, path)
        flying: deque[asyncio.Task[memoryview]] = deque()
        crc = written = 0
        try:
            for offset in range(0, file.size, SNAPSHOT_PIECE_BYTES):
                head = pack({"copy": copy, "file": number, "offset": offset})
                call = self._calls.call(node, "backup piece", head, self._deadline(PIECE_MS), Channel.SNAPSHOT)
                flying.append(asyncio.get_running_loop().create_task(call))
                last = offset + SNAPSHOT_PIECE_BYTES >= file.size
                while flying and (last or len(flying) >= SNAPSHOT_PIECES_IN_FLIGHT):
                    _, (data,) = unpack(await flying.popleft())
                    crc = crc32c.crc32c(data, crc)
                    end = written + len(data)
                    await self._world.workers.run(self._write, path, written, data, end >= file.size)
                    written = end
                    job.done += len(data)
        finally:
            for task in flying:
                task.cancel()
            if flying:
                await asyncio.gather(*flying, return_exceptions=True)
        if (written, crc) != (file.size, file.crc32c):
            raise CorruptData(f"node {node}: {file.path} came with {written} bytes, or does not match its checksum")

    def _make_parent(self, path: str) -> None:
        make_durable_directories(self._world.files, path.rpartition("/")[0])

    def _write(self, path: str, offset: int, data: memoryview, last: bool) -> None:
        file = self._world.files.open(path, create=True)
        try:
            file.write(offset, data)
            if last:
                file.sync()
        finally:
            file.close()

    def _sync_names(self, target: str, files: list[CopiedFile]) -> None:
        check(bool(files), "a copy of a group without files")
        for directory in sorted({f"{target}/{file.path}".rpartition("/")[0] for file in files}):
            self._world.files.sync_directory(directory)

    async def _end(self, node: int, copy: int) -> None:
        with suppress(CallerError):  # it lets the copy go by itself
            await self._calls.call(node, "backup end", pack({"copy": copy}), self._deadline(END_MS))
