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
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import crc32c

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.copying import BrokenFile, Fetcher, GivenCopies, Listing
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.jobs import Job
from iotdb_cluster.cluster.log import make_durable_directories
from iotdb_cluster.cluster.log.atomic import replace_file
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.reading import barrier_at_leader
from iotdb_cluster.cluster.slot_decisions import due_decisions
from iotdb_cluster.data import GroupCopy
from iotdb_cluster.errors import CallerError, CorruptData, Status, check
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import Snapshot
from iotdb_cluster.world import World

__all__ = ["BACKUP_CALLS", "BACKUP_FILE", "BACKUP_VERSION", "META_FILE", "Backup", "group_directory"]

BACKUP_CALLS = ("backup open",)
BACKUP_FILE, META_FILE = "backup.json", "meta"
BACKUP_VERSION = 1
OPEN_MS = 600_000  # a checkpoint of much that is in memory
BARRIER_MS = 30_000
LOOK_MS = 100  # between two looks whether a group has carried out what meta decided
GIVEN_IDLE_MS_MAX = 600_000  # a copy that nobody fetches any more is let go: its taker's disk may be slow
GIVEN_MAX = 8  # copies that a node gives at once


def group_directory(group: int) -> str:
    """Where a group lies in a backup."""
    return f"group-{group}"


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
        given: GivenCopies,
        fetcher: Fetcher,
    ) -> None:
        self._world = world
        self._driver = driver
        self._machines = machines
        self._meta = meta
        self._calls = calls
        self._leaders = leaders
        self._take = take
        self._given = given
        self._fetcher = fetcher
        self._giving = 0  # copies that are being made, or given

    def register(self, calls: Calls) -> None:
        calls.handlers.update(zip(BACKUP_CALLS, (self._open_call,), strict=True))

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
        if self._giving >= GIVEN_MAX:
            raise CallerError(
                Status.WRITE_PROCESS_REJECT, f"node {self._calls.node} gives {GIVEN_MAX} copies already: try again"
            )
        with ExitStack() as until_released:
            self._giving += 1
            until_released.callback(self._released)
            try:
                _, copy = await self._take(group.id)
            except CorruptData as error:
                raise CallerError(Status.INTERNAL_SERVER_ERROR, f"group {group.id} is damaged here: {error}") from None
            until_released.callback(copy.release)
            files, release = [(0, file) for file in copy.files], until_released.pop_all().close
        given = self._given.give(files, release, idle_ms_max=GIVEN_IDLE_MS_MAX)
        return pack({**given, "index": copy.index, "term": copy.term})

    def _released(self) -> None:
        self._giving -= 1

    # --- taking -------------------------------------------------------------------------------------------------------

    async def run(self, directory: str, job: Job) -> dict[str, Any]:
        """Write a backup into a directory that is new or empty; what `backup.json` says of it. CallerError, OSError."""
        await self._world.workers.run(self._prepare, directory)
        await self._meta.barrier(self._deadline(BARRIER_MS))
        state = self._meta.state
        self._check_at_rest()
        meta, table, nodes = state.dump(), state.table.dump(), len(state.nodes)
        await self._world.workers.run(replace_file, self._world.files, f"{directory}/{META_FILE}", meta)
        groups = []
        for at, group in enumerate(state.groups, 1):
            groups.append(await self._copy_group(group.id, directory, job, f"group {at} of {len(state.groups)}"))
        await self._meta.barrier(self._deadline(BARRIER_MS))
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
        node, listing = int(found["node"]), Listing.load(head)
        job.enter(phase, listing.bytes, "bytes")
        target = f"{directory}/{group_directory(group)}"

        def came(size: int) -> None:
            job.done += size

        try:
            await self._world.workers.run(self._make_directories, target, listing)
            wanted = [(file, f"{target}/{file.name}") for file in listing.files]
            await self._fetcher.fetch(node, listing.number, wanted, came, urgent=True)
            await self._world.workers.run(self._sync_names, target, listing)
        except BrokenFile as error:
            raise CorruptData(f"node {node}, group {group}: {error}") from None
        finally:
            await self._fetcher.end(node, listing.number)
        listed = [[file.name, file.size, file.crc32c] for file in listing.files]
        return {"group": group, "index": int(head["index"]), "term": int(head["term"]), "files": listed}

    def _make_directories(self, target: str, listing: Listing) -> None:
        for directory in _directories(target, listing):
            make_durable_directories(self._world.files, directory)

    def _sync_names(self, target: str, listing: Listing) -> None:
        check(bool(listing.files), "a copy of a group without files")
        for directory in _directories(target, listing):
            self._world.files.sync_directory(directory)


def _directories(target: str, listing: Listing) -> list[str]:
    """Those in which the files of a group's copy lie."""
    return sorted({f"{target}/{file.name}".rpartition("/")[0] for file in listing.files})
