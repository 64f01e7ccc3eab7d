"""Carries out what a change of membership still needs: the meta group's leader takes the next steps, over and over.

What is to be done is a function of meta's state (`partition/plan.py`); nothing is remembered here but why a step waits.
Every step is harmless when done twice, so whoever leads the meta group next simply goes on.

Slots move in batches: those that hold nothing many at a time, those that hold units a few at a time, as the giver's
leader tells. One batch a giver at a time, so that the writes of few slots meet a fence at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.peers import NodePeers
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.reading import replica_here
from iotdb_cluster.cluster.settings import NodeAddress
from iotdb_cluster.data import Dissolve, Header, Held, encode
from iotdb_cluster.errors import CallerError, NotLeader
from iotdb_cluster.limits import MOVE_BYTES_MAX, MOVE_EMPTY_SLOTS_MAX, MOVE_UNITS_MAX
from iotdb_cluster.meta import cluster_view, commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.partition.plan import (
    AddMetaMember,
    CreateGroup,
    DissolveGroup,
    EndMove,
    Finish,
    ForceGroup,
    MoveSlots,
    RemoveMetaMember,
    RemoveNode,
    ShiftGroup,
    Step,
    next_steps,
    waiting_for,
)
from iotdb_cluster.requests import NO_REQUEST
from iotdb_cluster.world import World

__all__ = ["EXILE_CALL", "HELD_CALL", "Conductor", "batch_of", "described"]

logger = logging.getLogger(__name__)

HELD_CALL = "slots held"
EXILE_CALL = "exile"
ROUND_MS = 200
IDLE_ROUND_MS = 1_000
STEP_TIMEOUT_MS = 5_000
EXILE_MS = 2_000


def batch_of(slots: Sequence[int], held: Mapping[int, tuple[int, int]]) -> tuple[int, ...]:
    """Which slots go next: those that hold nothing first, then, up to the limits, those that hold (units, bytes)."""
    empty = tuple(slot for slot in slots if slot not in held)
    if empty:
        return empty[:MOVE_EMPTY_SLOTS_MAX]
    batch: list[int] = []
    units = size = 0
    for slot in slots:
        units, size = units + held[slot][0], size + held[slot][1]
        if batch and (units > MOVE_UNITS_MAX or size > MOVE_BYTES_MAX):
            break
        batch.append(slot)
    return tuple(batch)


def described(step: Step) -> str:
    """A step in words, the same for as long as it is the same step."""
    match step:
        case AddMetaMember(node, voter):
            return f"node {node} becomes a {'voter' if voter else 'learner'} of the meta group"
        case RemoveMetaMember(node):
            return f"node {node} leaves the meta group"
        case CreateGroup(header):
            return f"the group of node {header} is made"
        case ForceGroup(group, _, dead):
            return f"group {group} goes on without its dead replicas {list(dead)}"
        case ShiftGroup(group, add, remove):
            return f"group {group} gets members on the nodes {list(add)}, the replicas {list(remove)} leave it"
        case MoveSlots(giver, receiver, slots):
            return f"{len(slots)} slots move from group {giver} to group {receiver}"
        case EndMove(move):
            return f"move {move} is given up"
        case DissolveGroup(group):
            return f"group {group} is dissolved"
        case RemoveNode(node):
            return f"node {node} is removed"
        case Finish(change):
            return f"change {change} is finished"


class Conductor:
    """The conductor of one node; it works while this node leads the meta group."""

    def __init__(
        self,
        world: World,
        driver: Driver,
        meta: MetaAccess,
        machines: Mapping[int, DataMachine],
        calls: Calls,
        leaders: Leaders,
        proposals: Proposals,
        peers: NodePeers,
    ) -> None:
        self._world = world
        self._driver = driver
        self._meta = meta
        self._machines = machines
        self._calls = calls
        self._leaders = leaders
        self._proposals = proposals
        self._peers = peers
        self._changed = asyncio.Event()
        self._failures: dict[str, str] = {}  # of steps: why the last attempt did not succeed

    def register(self, calls: Calls) -> None:
        calls.handlers[HELD_CALL] = self._held_call

    def wake(self) -> None:
        """Meta's state has changed."""
        self._changed.set()

    def waiting(self) -> list[str]:
        """What is under way, and why a step does not succeed, as this node, which leads the meta group, sees it."""
        under_way = waiting_for(cluster_view(self._meta.state)) if self._meta.state.change is not None else []
        return [*under_way, *(f"{step}: {why}" for step, why in self._failures.items())]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            busy = self._meta.leads and self._meta.state.bootstrapped and self._meta.state.change is not None
            if busy:
                await self._round()
            else:
                self._failures = {}
            try:
                async with asyncio.timeout((ROUND_MS if busy else IDLE_ROUND_MS) / 1000):
                    await self._changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(0.01)  # what changes comes in bursts

    async def _round(self) -> None:
        view = cluster_view(self._meta.state)
        steps = await self._world.workers.run(next_steps, view)
        giving: set[int] = {move.giver for move in view.moves}
        due: list[Step] = []
        for step in steps:
            if isinstance(step, MoveSlots):
                if step.giver in giving:
                    continue
                giving.add(step.giver)
            due.append(step)
        reasons = await asyncio.gather(*(self._attempt(step) for step in due))
        failures = {described(step): why for step, why in zip(due, reasons, strict=True) if why}
        for text, why in failures.items():
            if self._failures.get(text) != why:
                logger.info("membership: %s: %s", text, why)
        self._failures = failures

    async def _attempt(self, step: Step) -> str:
        """Carry out a step; why that did not succeed, empty where it did."""
        try:
            return await self._carry_out(step)
        except CallerError as error:
            return error.message

    async def _carry_out(self, step: Step) -> str:
        match step:
            case AddMetaMember() | RemoveMetaMember():
                return "the leader of the meta group changes its members"  # `Shaping` does
            case CreateGroup(header):
                await self._propose(lambda request: commands.create_group(request, header))
            case ForceGroup(group, generation, dead):
                await self._propose(lambda request: commands.force_group(request, group, generation, dead))
            case ShiftGroup(group, add, remove):
                await self._propose(lambda request: commands.shift_group(request, group, add, remove))
            case MoveSlots():
                await self._begin_move(step)
            case EndMove(move):
                await self._propose(lambda request: commands.end_move(request, move, "giver"))
            case DissolveGroup(group, answers):
                await self._dissolve(group, answers)
            case RemoveNode(node):
                await self._remove(node)
            case Finish(change):
                await self._propose(lambda request: commands.finish_change(request, change))
        if not isinstance(step, MoveSlots):
            logger.info("membership: %s", described(step))
        return ""

    async def _propose(self, command: Callable[[Any], bytes]) -> Any:
        return await self._meta.propose(command, self._deadline())

    def _deadline(self) -> Deadline:
        return Deadline(self._world, STEP_TIMEOUT_MS)

    # --- slots --------------------------------------------------------------------------------------------------------

    async def _begin_move(self, step: MoveSlots) -> None:
        slots = batch_of(step.slots, {slot: (units, size) for slot, units, size, *_ in await self.held(step.giver)})
        begun = await self._propose(lambda request: commands.begin_move(request, step.giver, step.receiver, slots))
        logger.info(
            "membership: move %s begins: %d of %d slots from group %d to group %d",
            begun["move"],
            len(slots),
            len(step.slots),
            step.giver,
            step.receiver,
        )

    async def held(self, group: int) -> list[list[int]]:
        """[slot, units, bytes, series, points inserted since some moment] of the slots of a group that hold anything.

        As its leader tells; CallerError.
        """
        body = pack({"group": group})

        async def attempt(node: int, within: Deadline) -> memoryview:
            return await self._calls.call(node, HELD_CALL, body, within)

        head, _ = unpack(await self._leaders.run(group, attempt, self._deadline(), repeatable=True))
        return list(head)

    async def _held_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        group = replica_here(self._driver, int(head["group"]))
        if not group.leads:
            raise NotLeader(group.leader_node, f"node {self._calls.node} does not lead group {group.id}")
        data, found = self._machines[group.id].data, dict[int, Held]()
        for _ in data.walk_held(found):
            await asyncio.sleep(0)
        return pack([[slot, *one, data.inserted.get(slot, 0)] for slot, one in sorted(found.items())])

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def _dissolve(self, group: int, answers: bool) -> None:
        if answers:
            entry = encode(Header(NO_REQUEST), Dissolve(self._meta.state.members_changed))
            await self._proposals.patiently(lambda: group, entry, self._deadline())
        await self._propose(lambda request: commands.remove_group(request, group))

    async def _remove(self, node: int) -> None:
        known = self._meta.state.node(node)
        await self._propose(lambda request: commands.remove_node(request, node))
        if known is None or known.dead:
            return
        try:
            await self._peers.call_stranger(NodeAddress(*known.address), EXILE_CALL, pack({"node": node}), EXILE_MS)
        except CallerError as error:
            logger.info("node %d was not told that it is no member any more, and will ask: %s", node, error)
