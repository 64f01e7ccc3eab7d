"""Forced reconfiguration of a data group: where half of it, or more, is dead, the rest begins anew.

Meta's decision raises the group's generation and names the survivors. A survivor that sees it stops taking part in the
old generation for ever, so its log stands still, and tells the others where it ends. When all of them have said so, the
log with the highest (generation, last term, last index) *wins whole*: whatever was acknowledged is in it, as each
majority of the old group has a survivor. The length of a log says nothing: a leader of an old term, cut off, may have
piled up entries that nobody ever committed.

The winner applies its log to the end, the others what they know to be committed; each makes a checkpoint of that, and
its log goes on behind it with the new members: the winner as the only voter, the others as its learners. They get what
they lack and are promoted like any newcomer; until then nothing new is taken, as it would stand on one disk only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.log import Configuration, DurableLog, Install, ReplicaLog, State, submitted
from iotdb_cluster.errors import CallerError, Status, check
from iotdb_cluster.limits import APPLY_BYTES_MAX, APPLY_ENTRIES_MAX
from iotdb_cluster.meta import Group as GroupRecord
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import ConfState, HardState
from iotdb_cluster.world import World

__all__ = ["LOG_END_CALL", "Forcing", "LogEnd", "winner"]

logger = logging.getLogger(__name__)

LOG_END_CALL = "log end"
ASK_MS = 2_000
AGAIN_MS = 500


class LogEnd(NamedTuple):
    """Where a survivor's log ends. `chosen`: who won, where it has begun anew already.

    `generation` is that of the log: a survivor that began one only to be filled, and has not become a voter, has the
    committed part of an earlier log.
    """

    generation: int
    term: int
    last: int
    chosen: int = 0


def winner(ends: Mapping[int, LogEnd]) -> int:
    """The survivor whose log counts; of equal ones the lowest replica id."""
    return min(ends, key=lambda one: (-ends[one].generation, -ends[one].term, -ends[one].last, one))


class Forcing:
    """The survivors' side on one node. `checkpoint(group)` publishes what the group's machine holds; False: later."""

    def __init__(
        self, world: World, log: DurableLog, calls: Calls, checkpoint: Callable[[int], Awaitable[bool]]
    ) -> None:
        self._world = world
        self._log = log
        self._calls = calls
        self._checkpoint = checkpoint
        self._standing: dict[
            int, tuple[int, int]
        ] = {}  # by replica: generation, and who has won it where that is known

    def register(self, calls: Calls) -> None:
        calls.handlers[LOG_END_CALL] = self._end_call

    async def renew(
        self, record: GroupRecord, view: ReplicaLog, machine: DataMachine, stands: Callable[[], bool]
    ) -> bool:
        """Begin the record's generation with this node's replica, which no driver has, and whose data are open.

        False where meta has decided on (`stands()`: it has not) while others were waited for: who is dead does not
        answer, and is removed by the next generation.
        """
        replica, number = view.replica, record.id
        await submitted(self._log)
        self._standing[replica] = (record.generation, 0)
        chosen = await self._chosen(record, stands)
        if not chosen:
            return False
        last, committed = view.last_index(), min(view.hard_state.commit, view.last_index())
        logger.warning(
            "group %d: generation %d begins with %s of replica %d: its log ends at %d of term %d; replica %d has won",
            number,
            record.generation,
            "the whole log" if chosen == replica else "what is committed",
            replica,
            last,
            view.term(last),
            chosen,
        )
        await self._apply_to(last if chosen == replica else committed, view, machine)
        data = machine.data
        while data.published < data.applied:
            if not await self._checkpoint(number) or data.published < data.applied:
                logger.warning("group %d: generation %d waits for a checkpoint", number, record.generation)
                await asyncio.sleep(AGAIN_MS / 1000)
                if not stands():
                    return False
        others = tuple(sorted(one.id for one in record.replicas if one.id != chosen))
        members = ConfState((chosen,), others)
        index, term = max(1, data.applied), max(1, data.applied_term)
        hard = view.hard_state
        await submitted(
            self._log,
            Install(replica, index, term, members),
            Configuration(replica, members, index, record.generation, chosen if others else 0),
            State(replica, HardState(max(hard.term, term), hard.vote if hard.term >= term else 0, index)),
        )
        self._standing[replica] = (record.generation, chosen)
        return True

    async def _apply_to(self, end: int, view: ReplicaLog, machine: DataMachine) -> None:
        """Apply what the log holds; who its entries made members counts no more."""
        while (next_index := max(machine.data.applied + 1, view.first_index())) <= end:
            machine.apply(view.read(next_index, min(end, next_index + APPLY_ENTRIES_MAX - 1) + 1, APPLY_BYTES_MAX))
            await asyncio.sleep(0)

    async def _chosen(self, record: GroupRecord, stands: Callable[[], bool]) -> int:
        """Who has won; every survivor has to say where its log ends, unless one says that this is settled.

        0 where the record does not stand any more.
        """
        told = ""
        while stands():
            ends, missing = {}, ""
            for one in record.replicas:
                try:
                    ends[one.id] = await self._ask(record, one.id, one.node)
                except CallerError as error:
                    missing = f"node {one.node} does not say where its log ends: {error.message}"
            settled = [end.chosen for end in ends.values() if end.generation == record.generation]
            if settled:
                one_won = len(set(settled)) == 1
                check(one_won, "group %d: generation %d was won by %s", record.id, record.generation, settled)
                return settled[0]
            if not missing:
                return winner(ends)
            if told != missing:
                logger.warning("group %d: generation %d waits: %s", record.id, record.generation, missing)
                told = missing
            await asyncio.sleep(AGAIN_MS / 1000)
        return 0

    async def _ask(self, record: GroupRecord, replica: int, node: int) -> LogEnd:
        head = {"group": record.id, "generation": record.generation, "replica": replica}
        answer, _ = unpack(await self._calls.call(node, LOG_END_CALL, pack(head), Deadline(self._world, ASK_MS)))
        return LogEnd(*answer)

    async def _end_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """Said only of a replica that stands still for this generation, or has begun it."""
        del deadline
        head, _ = unpack(body)
        replica, generation = int(head["replica"]), int(head["generation"])
        if replica not in self._log.replicas():
            raise CallerError(Status.PARTITION_NOT_READY, f"replica {replica} is not here")
        view = self._log.view(replica)
        if view.generation == generation:
            members = view.initial_state()[1]
            return pack([generation, 0, 0, view.chosen or members.voters[0]])
        standing, _ = self._standing.get(replica, (0, 0))
        if standing != generation:
            raise CallerError(Status.PARTITION_NOT_READY, f"replica {replica} has not come to generation {generation}")
        voters = view.initial_state()[1].voters
        rank = view.generation - (replica not in voters)  # who was being filled is behind whoever should fill it
        return pack([rank, view.term(view.last_index()), view.last_index(), 0])
