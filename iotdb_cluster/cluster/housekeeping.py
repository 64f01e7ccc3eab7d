"""What a node does by the clock: checkpoints with flushes, compaction of the log, ends of idle cursors.

A group's checkpoint at position p is published when every memtable is flushed to p; then the log may forget entries up
to p, except those that a member still needs (its leader tells: the low-water mark). Where the log holds more than
`log_bytes_max` for a group's sake, members that are away do not count any more: they get a snapshot when they are back.
Beyond twice that nobody counts, so that one that answers and is too slow does not hold the log for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.log import Compact, DurableLog
from iotdb_cluster.cluster.marks import Water
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.points import PointServing
from iotdb_cluster.cluster.room import disk_is_full
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.data import GroupCopy
from iotdb_cluster.errors import CallerError, CorruptData, Status, SystemFault, check
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.query.requests import FlushTasksInfo
from iotdb_cluster.raft import ConfState, Snapshot
from iotdb_cluster.storage import FlushJob, PinnedUnit, UnitId
from iotdb_cluster.world import World

__all__ = ["FLUSH_CALL", "Housekeeping"]

logger = logging.getLogger(__name__)

FLUSH_CALL = "flush"
ROUND_MS = 200
BUDGET_SHARE = 0.4  # of the memtable budget: beyond it the largest group is flushed
CURSOR_SHARE = 0.9  # of the budget: beyond it cursors end, ...
PINNED_SHARE = 0.1  # ... where they pin more than this of it
KEPT_ENTRIES = 100  # entries that stay behind a checkpoint, so that a member that lags a little needs no more
PINNED_PAUSE_MS = 5_000  # between two checkpoints that are made for the log's sake
COMPACT_STEP = 100  # entries that must be gained before the log hears of it
FULL_PAUSE_MS = 2_000  # before a flush that found the disk full is tried again
FULL = "the disk is full: what could not be flushed stays in memory, and in the log"
CROWD_MAX = 2.0  # beyond so many times `log_bytes_max` no member is waited for: a slow one gets a snapshot
AWAY_MS = 3_000  # a member that was not heard of for so long is away


@dataclass(slots=True)
class _Care:
    """What is known of one group's checkpoints."""

    since_ms: float
    not_before_ms: float = 0.0  # the disk was full
    low_water: int = 0  # every member has the entries up to here
    near_water: int = 0  # every member that is not away has
    compacted: int = 0
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    term: int = 0  # in which this node leads and has ...
    heard_ms: dict[int, float] = field(default_factory=dict)  # ... heard of each member


class Housekeeping:
    """Checkpoints and the log's size of one node."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        driver: Driver,
        log: DurableLog,
        meta: MetaMachine,
        machines: dict[int, DataMachine],
        cursors: PointServing,
    ) -> None:
        self._world = world
        self._settings = settings
        self._driver = driver
        self._log = log
        self._meta = meta
        self._machines = machines
        self._cursors = cursors
        self._care: dict[int, _Care] = {}
        self._crowding: dict[int, float] = {}  # how full the log is for a replica's sake
        self._flushing = 0  # jobs on a worker
        self._asked = asyncio.Event()
        self._asking: list[tuple[frozenset[int] | None, asyncio.Future[None]]] = []  # FLUSH: storage groups, who waits

    def register(self, calls: Calls) -> None:
        calls.handlers[FLUSH_CALL] = self._flush_call

    def memory_bytes(self) -> int:
        """Bytes of all memtables of the node."""
        return sum(machine.data.store.memory_bytes() for machine in list(self._machines.values()))

    def flush_tasks(self) -> FlushTasksInfo:
        """Memtables that are being written to files, and frozen ones that wait for it."""
        total = sum(machine.data.store.sealed() for machine in self._machines.values())
        working = min(self._flushing, total)
        return FlushTasksInfo(total, working, total - working)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(ROUND_MS / 1000):
                    await self._asked.wait()
            except TimeoutError:
                pass
            else:
                await self._flush_asked()
            await self._round()

    async def _flush_asked(self) -> None:
        self._asked.clear()
        await self._keep_meta()
        asking, self._asking = self._asking, []
        wanted = [groups for groups, _ in asking if groups is not None]
        everything = len(wanted) < len(asking)
        done = True
        for number in list(self._machines):
            if everything:
                done &= await self.checkpoint(number)
            else:
                done &= await self._flush_storage_groups(number, frozenset[int]().union(*wanted))
        for _, waiter in asking:
            if not waiter.done() and done:
                waiter.set_result(None)
            elif not waiter.done():
                waiter.set_exception(CallerError(Status.WRITE_PROCESS_REJECT, FULL))

    async def collect(self, number: int) -> None:
        """Remove files of a group that nobody needs any more."""
        async with self._care_of(number).busy:  # the directory is not removed meanwhile
            if number in self._machines:
                await self._world.workers.run(self._machines[number].data.store.collect)

    async def forget(self, number: int) -> None:
        """The replica of a group is gone from here: afterwards nothing is done with it any more."""
        care = self._care.pop(number, None)
        if care is not None:
            async with care.busy:  # whoever waits for it behind this finds that the replica is gone
                pass

    async def _round(self) -> None:
        self._cursors.expire()
        self._free_pinned()
        self._crowding = self._crowds()
        await self._keep_meta()
        await self._remove_replaced()
        now = self._world.clock.monotonic_ms()
        for number in self._due(now):
            await self.checkpoint(number)
        for group in list(self._driver.groups.values()):
            if group.id:
                self._compact(group)

    def _free_pinned(self) -> None:
        """Over the budget the oldest cursor ends, where it is cursors that keep the memory: one a round."""
        pinned = sum(machine.data.store.pinned_bytes() for machine in self._machines.values())
        budget = self._settings.memtable_bytes_max
        if pinned > PINNED_SHARE * budget and self.memory_bytes() > CURSOR_SHARE * budget:
            logger.warning("cursors pin %d bytes of memtables that are flushed: the oldest one ends", pinned)
            self._cursors.end_oldest("the memory that it kept was needed for writes")

    def _crowds(self) -> dict[int, float]:
        """How full the log is for the sake of each replica: above 1 beyond what is kept for members that are away."""
        settings = self._settings
        found = {pin.replica: pin.bytes_behind / settings.log_bytes_max for pin in self._log.pins()}
        for group in self._driver.groups.values():
            held = group.log.last_index() - group.log.first_index() + 1
            found[group.replica] = max(found.get(group.replica, 0.0), held / settings.log_entries_max)
        return found

    def _care_of(self, number: int) -> _Care:
        care = self._care.get(number)
        if care is None:
            care = self._care[number] = _Care(self._world.clock.monotonic_ms())
        return care

    def _due(self, now: float) -> list[int]:
        """The groups whose memtables should go to disk now.

        Where the log is too long the one comes first that pins its oldest entries, as that frees segments; otherwise
        the largest.
        """
        sizes = {number: machine.data.store.memory_bytes() for number, machine in self._machines.items()}
        due = []
        pressed = sum(sizes.values()) > BUDGET_SHARE * self._settings.memtable_bytes_max
        full = max(self._crowding.values(), default=0.0)
        pinned = full > 1 or self._log.bytes_pinned() > self._settings.log_bytes_max
        behind = {number: self._behind(number) if pinned else 0.0 for number in sizes}
        for number, size in sorted(sizes.items(), key=lambda item: (-behind[item[0]], -item[1])):
            old = size and now - self._care_of(number).since_ms > self._settings.memtable_flush_age_ms
            care = self._care_of(number)
            stale = pinned and now - care.since_ms > PINNED_PAUSE_MS and self._unpublished(number)
            if now < care.not_before_ms:
                continue
            if size > self._settings.memtable_flush_bytes or old or (size and pressed) or stale:
                due.append(number)
                pressed = False
        return due

    def _behind(self, number: int) -> float:
        """How much of the log a group pins."""
        group = self._driver.groups.get(number)
        return 0.0 if group is None else self._crowding.get(group.replica, 0.0)

    def _unpublished(self, number: int) -> int:
        """Entries that a restart would replay."""
        data = self._machines[number].data
        return data.applied - data.published

    # --- checkpoints --------------------------------------------------------------------------------------------------

    async def _keep_meta(self) -> None:
        """Checkpoints of the meta group; its members that lag behind the log get its state whole."""
        group = self._driver.groups.get(0)
        crowded = group is not None and self._crowding.get(group.replica, 0.0) > 1
        due = self._meta.checkpoint_due
        if due or (crowded and self._meta.members_known and self._meta.index > self._meta.checkpointed):
            self._meta.checkpoint_asked = False
            snapshot = self._meta.snapshot()
            try:
                await self._world.workers.run(self._meta.stage, snapshot)
            except OSError as error:
                if not disk_is_full(error):
                    raise
                logger.warning("the meta group has no checkpoint %d: %s", snapshot.index, error)
                return
            self._meta.checkpointed = max(self._meta.checkpointed, snapshot.index)  # a newer one may have been received
        elif not crowded:
            return
        keep = self._meta.checkpointed if crowded else self._meta.forgettable
        if group is not None and keep >= group.log.first_index():
            self._log.submit([Compact(group.replica, keep, group.log.term(keep))], lambda: None)

    async def checkpoint(self, number: int) -> bool:
        """Flush a group's memtables and publish its state; False where the disk is full, SystemFault where it fails."""
        if number not in self._machines:
            return True
        care = self._care_of(number)
        async with care.busy:
            machine = self._machines.get(number)
            if machine is None:
                return True
            if not await self._as_far_as_there_is_room(number, self._checkpoint(machine)):
                return False
            care.since_ms = self._world.clock.monotonic_ms()
        return True

    async def _as_far_as_there_is_room(self, number: int, flush: Coroutine[Any, Any, None]) -> bool:
        """Whether a flush was carried out; where the disk is full all stays in memory and is tried again later."""
        try:
            await flush
        except SystemFault as error:
            if not disk_is_full(error):
                raise
            logger.warning("group %d keeps all in memory: %s", number, error)
            self._care_of(number).not_before_ms = self._world.clock.monotonic_ms() + FULL_PAUSE_MS
            return False
        return True

    async def _checkpoint(self, machine: DataMachine) -> None:
        data, members, known = machine.data, machine.members, machine.members_known
        mirroring = data.store.mirroring
        checkpoint = data.freeze()
        await self._flush(checkpoint.jobs)  # first: whoever is cancelled leaves no memtable without a job
        for _ in iter(checkpoint.step, False):
            await asyncio.sleep(0)
        if data.store.corrupt and not machine.alone:
            await self._world.workers.run(data.store.mark_absent)
        elif data.store.corrupt:  # the log alone has what was written to the damaged units since: it is kept
            return
        if mirroring:  # as above: a copy that was on its way ends before this checkpoint
            return
        await self._world.workers.run(data.publisher(checkpoint))
        if machine.data is data:  # else a received snapshot has taken its place
            machine.checkpointed = (checkpoint.index, members) if known else None
        await self._world.workers.run(data.store.collect)

    async def _flush(self, jobs: Sequence[FlushJob]) -> None:
        waiting = deque(jobs)
        try:
            while waiting:
                self._flushing += 1
                try:
                    await self._world.workers.run(waiting[0].run)
                finally:
                    self._flushing -= 1
                waiting.popleft().finish()
        finally:
            for job in waiting:
                job.give_up()

    async def _flush_storage_groups(self, number: int, storage_groups: frozenset[int]) -> bool:
        """Flush the units of some storage groups; without a checkpoint, which needs all of the group's."""
        async with self._care_of(number).busy:
            if number not in self._machines:
                return True
            store = self._machines[number].data.store
            units = [unit for unit in store.units() if unit.storage_group_id in storage_groups]
            return await self._as_far_as_there_is_room(number, self._flush(store.seal(units)))

    async def flush_units(self, number: int, units: Sequence[UnitId]) -> bool:
        """Put some units on disk, without a checkpoint; whether there was room. Waits for nothing where they are."""
        store = self._machines[number].data.store
        there = set(store.units())
        if all(store.oldest_unflushed(unit) is None for unit in units if unit in there):
            return True
        async with self._care_of(number).busy:
            return await self._flush_some(number, units)

    async def fence_units(self, number: int, units: Sequence[UnitId], fence: Callable[[], Awaitable[None]]) -> bool:
        """Flush some units, carry `fence` out, flush what was written until then; whether there was room.

        Nothing else of the group is flushed in between: behind the fence clients wait, for as little as can be.
        """
        async with self._care_of(number).busy:
            if not await self._flush_some(number, units):
                return False
            await fence()
            return await self._flush_some(number, units)

    async def _flush_some(self, number: int, units: Sequence[UnitId]) -> bool:
        store = self._machines[number].data.store
        there = set(store.units())
        jobs = store.seal([unit for unit in units if unit in there])
        return await self._as_far_as_there_is_room(number, self._flush(jobs))

    async def flushed_copy(self, number: int, unit: UnitId) -> PinnedUnit:
        """A unit with all that was applied before, in pinned files; CorruptData where it is damaged or gone."""
        async with self._care_of(number).busy:
            machine = self._machines.get(number)
            if machine is None:
                raise CorruptData(f"this node has no replica of group {number} any more")
            store = machine.data.store
            if unit in store.units():
                await self._flush(store.seal([unit]))
            if unit not in store.units():
                raise CorruptData(f"unit {unit} was dropped meanwhile")
            return store.pin_files(unit)

    async def take(self, number: int, fresh: bool = False, member: int = 0) -> tuple[Snapshot, GroupCopy]:
        """A group's newest checkpoint (`fresh`: one made now) with the files that belong to it, pinned until released.

        `member`: the replica that it is for, which refuses one from before it was a member.

        Raises CallerError where the group is not here, CorruptData where its files are damaged, SystemFault.
        """
        async with self._care_of(number).busy:
            machine, group = self._machines.get(number), self._driver.groups.get(number)
            if machine is None or group is None:
                raise CallerError(Status.NO_LEADER, f"this node has no replica of group {number}")
            known = machine.checkpointed
            applied = machine.data.applied
            old = known is None or known[0] != machine.data.published or known[0] < group.log.first_index() - 1
            old |= known is not None and member != 0 and not _has(known[1], member)
            if (old or fresh) and not await self._as_far_as_there_is_room(number, self._checkpoint(machine)):
                raise CallerError(Status.WRITE_PROCESS_REJECT, FULL)
            if fresh and machine.data.published < applied:
                raise CallerError(
                    Status.WRITE_PROCESS_REJECT, f"group {number} is being repaired here: try again when it is whole"
                )
            data, known = machine.data, machine.checkpointed
            if known is None:
                raise CallerError(
                    Status.NO_LEADER, f"group {number} is being repaired, or has got a snapshot itself: try again"
                )
            found = await self._world.workers.run(data.read_checkpoint)
            check(found[0] == known[0], "group %d: checkpoint %d where %d was published", number, found[0], known[0])
            copy = data.copy(found)
        return Snapshot(copy.index, copy.term, known[1]), copy

    async def _remove_replaced(self) -> None:
        """Replicas in whose place a snapshot came, once nothing reads or writes their files any more."""
        for number, machine in list(self._machines.items()):
            for data in list(machine.replaced):
                if number not in self._machines or not data.store.idle or self._care_of(number).busy.locked():
                    continue
                async with self._care_of(number).busy:
                    machine.replaced.remove(data)
                    data.close()
                    await self._world.workers.run(self._world.files.remove_tree, data.directory)

    async def snapshot_schema(self, deadline: Deadline) -> None:
        """Checkpoints of every group of this node, of the meta group too: a restart reads the schema from them."""
        self._meta.checkpoint_asked = True
        await self._flush_call(memoryview(pack({"storage_groups": None})), deadline)

    # --- the log ------------------------------------------------------------------------------------------------------

    def _compact(self, group: Group) -> None:
        """Let the log forget what the checkpoint holds and no member needs."""
        care = self._care_of(group.id)
        published = self._machines[group.id].data.published
        if group.leads:
            care.low_water, care.near_water = self._water(group)
        full = self._crowding.get(group.replica, 0.0)
        crowded = full > 1
        if full > CROWD_MAX:
            keep = published
        else:
            keep = min(published, care.near_water) if crowded else min(published, care.low_water) - KEPT_ENTRIES
        if keep < care.compacted + (1 if crowded else COMPACT_STEP) or keep < group.log.first_index():
            return
        care.compacted = keep
        self._log.submit([Compact(group.replica, keep, group.log.term(keep))], lambda: None)

    def _water(self, group: Group) -> tuple[int, int]:
        """The highest index that every member has, and that every one has that is not away."""
        care, now = self._care_of(group.id), self._world.clock.monotonic_ms()
        if care.term != group.raw.term:
            care.term, care.heard_ms = group.raw.term, {}
        matches, near = [], []
        for member, progress in group.raw.status().progress.items():
            if progress.active or member == group.replica:
                care.heard_ms[member] = now
            matches.append(progress.match)
            if now - care.heard_ms.setdefault(member, now) <= AWAY_MS:
                near.append(progress.match)
        return min(matches, default=0), min(near, default=0)

    def water_for(self, node: int) -> Water:
        """The marks of the groups that are led here, for a node that is a member of them."""
        led = [group for group in self._driver.groups.values() if group.id and group.leads]
        return {str(group.id): self._water(group) for group in led if node in group.nodes.values()}

    def take_water(self, marks: Water) -> None:
        """What a leader told."""
        for number, (low, near) in marks.items():
            care = self._care_of(int(number))
            care.low_water = max(care.low_water, int(low))
            care.near_water = max(care.near_water, int(near))

    # --- FLUSH --------------------------------------------------------------------------------------------------------

    async def _flush_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """Done by `run`: a caller that goes must not leave a flush half-way, a disk that fails must stop the node."""
        head, _ = unpack(body)
        named = head["storage_groups"]
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.append((None if named is None else frozenset(map(int, named)), waiter))
        self._asked.set()
        try:
            async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                await waiter
        except TimeoutError:
            raise CallerError(Status.TIME_OUT, "the flush has begun and is being carried out") from None
        return pack(None)


def _has(members: ConfState, replica: int) -> bool:
    return replica in members.voters or replica in members.learners or replica in members.voters_outgoing
