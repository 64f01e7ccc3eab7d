"""Raft configurations made so as meta wants them: the leader of each group takes the next small step, over and over.

A data group's target is its record in meta: replicas that are joining and leaving. `_next` compares it with Raft's
configuration and says what is to be done now: add a learner; wait until each learner has the log, and every unit in it;
hand the lead over where this leader's replica is to go; then one joint change, which promotes the learners and removes
those that leave, and is left by whoever leads; last, once every member has stored the new configuration, the report
`group_shaped`. What stands in the configuration is all that a step depends on: so whoever leads next goes on.

The report waits for the members' disks, because who is removed deletes its replica then: a member that restarted with
the joint configuration would need the votes of the old half for ever.

The meta group has no target but the nodes: a node that joined becomes a learner, then a voter while there are fewer
than `META_VOTERS_MAX`; one that leaves is removed when no other group has it. One change at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.log import DurableLog, submitted
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.reading import replica_here
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta import META_GROUP, META_VOTERS_MAX, MetaState, Role, commands
from iotdb_cluster.meta import Group as GroupRecord
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ProgressState
from iotdb_cluster.world import World

__all__ = ["CONFIGURED_CALL", "Shaping", "leaves"]

logger = logging.getLogger(__name__)

CONFIGURED_CALL = "configured"
ROUND_MS = 200
ASK_MS = 2_000
STEP_TIMEOUT_MS = 5_000
LAG_ENTRIES_MAX = 256  # a learner that lacks no more may be promoted: the rest takes a moment


@dataclass(frozen=True, slots=True)
class _Wait:
    """Nothing can be done now, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Change:
    change: ConfChange


@dataclass(frozen=True, slots=True)
class _HandOver:
    """Another replica is to lead, one of these."""

    to: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Report:
    """The configuration is as it should be, and meta does not know it."""

    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Forced:
    """The meta group was forced into its generation, and meta's own record does not say so: these are left out."""

    dead: tuple[int, ...]


_Step: TypeAlias = _Wait | _Change | _HandOver | _Report | _Forced | None


class Shaping:
    """The changes of members in the groups that this node leads."""

    def __init__(self, world: World, driver: Driver, log: DurableLog, meta: MetaAccess, calls: Calls) -> None:
        self._world = world
        self._driver = driver
        self._log = log
        self._meta = meta
        self._calls = calls
        self._waiting: dict[int, str] = {}

    def register(self, calls: Calls) -> None:
        calls.handlers[CONFIGURED_CALL] = self._configured_call

    def waiting(self, group: int) -> str:
        """What the change of a group's members waits for; empty where this node does not lead it, or nothing waits."""
        return self._waiting.get(group, "")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(ROUND_MS / 1000)
            if self._meta.state.bootstrapped:
                await self._round()

    async def _round(self) -> None:
        steps: dict[int, Coroutine[Any, Any, str]] = {}
        for group in list(self._driver.groups.values()):
            if group.leads_whole:
                record = self._meta.state.group(group.id)
                behind = group.id == META_GROUP and record is not None and record.generation < group.generation
                if record is not None and (behind or record.generation == group.generation):
                    steps[group.id] = self._step(group, record)
        for number in [number for number in self._waiting if number not in steps]:
            del self._waiting[number]
        for number, reason in zip(steps, await asyncio.gather(*steps.values()), strict=True):
            if reason and self._waiting.get(number) != reason:
                logger.info("group %d: the change of its members waits: %s", number, reason)
            if reason:
                self._waiting[number] = reason
            else:
                self._waiting.pop(number, None)

    async def _step(self, group: Group, record: GroupRecord) -> str:
        """Take the next step of a group; why it waits."""
        step = self._next_of_meta(group) if group.id == META_GROUP else self._next(group, record)
        try:
            if isinstance(step, _Wait):
                return step.reason
            if isinstance(step, _Change):
                return await self._change(group, step.change)
            if isinstance(step, _HandOver):
                return await self._hand_over(group, step.to)
            if isinstance(step, _Report):
                return await self._report(group, record, step)
            if isinstance(step, _Forced):
                await self._tell_forced(group, step)
        except CallerError as error:
            return error.message
        return ""

    # --- what is next -------------------------------------------------------------------------------------------------

    def _next(self, group: Group, record: GroupRecord) -> _Step:
        conf = group.raw.configuration
        target = {replica.id for replica in record.target}
        if conf.joint:
            return _Change(ConfChange())  # it is left by itself, but for a proposal that was dropped at a bad time
        voters, learners = set(conf.incoming), set(conf.learners)
        joining, leaving = target - voters, (voters | learners) - target
        for member in sorted(joining - learners):
            return _Change(_simple(ConfChangeType.ADD_LEARNER, member))
        if not joining and not leaving:
            return None if record.settled else _Report(conf.incoming)
        lag = self._lag(group, joining)
        if lag:
            return _Wait(lag)
        if group.replica not in target:
            if voters & target:
                return _HandOver(tuple(sorted(voters & target)))
            leaving = learners - target  # nobody who stays could lead yet: the newcomers become voters first
        silent = self._silent(group, target)
        return _Wait(silent) if silent else _Change(_joint(joining, leaving))

    def _next_of_meta(self, group: Group) -> _Step:
        """One node at a time, without joint configurations: each change alters at most one voter."""
        state, conf = self._meta.state, group.raw.configuration
        voters, members = set(conf.incoming), {*conf.incoming, *conf.learners}
        record = state.meta_group
        if record is not None and record.generation < group.generation:
            return self._next_of_forced(group, record)
        gone = [member for member in sorted(members) if _may_leave_meta(state, member)]
        for node in [node.id for node in state.nodes if node.stays and not node.dead and node.id not in members]:
            return _Change(_simple(ConfChangeType.ADD_LEARNER, node))
        if len(voters) > META_VOTERS_MAX:  # the founders were more
            return _Change(_simple(ConfChangeType.ADD_LEARNER, max(voters - {group.replica})))
        waits = ""
        for member in [member for member in conf.learners if member not in gone and len(voters) < META_VOTERS_MAX]:
            waits = self._lag(group, {member})
            if not waits:
                return _Change(_simple(ConfChangeType.ADD_NODE, member))
        for member in gone:
            if member == group.replica:
                staying = tuple(sorted(voters - set(gone)))
                return _HandOver(staying) if staying else _Wait("no other member of the meta group can lead")
            silent = self._silent(group, voters - {member})
            return _Wait(silent) if silent else _Change(_simple(ConfChangeType.REMOVE_NODE, member))
        if waits:
            return _Wait(waits)
        known = {replica.node: replica.role for replica in record.replicas} if record is not None else {}
        found = dict.fromkeys(conf.incoming, Role.VOTER) | dict.fromkeys(conf.learners, Role.LEARNER)
        return None if known == found else _Report(conf.incoming, conf.learners)

    def _next_of_forced(self, group: Group, record: GroupRecord) -> _Step:
        """The survivors get what they lack; with another voter beside the winner decisions stand on two disks."""
        conf = group.raw.configuration
        lags = {member: self._lag(group, {member}) for member in conf.learners}
        if len(conf.incoming) == 1 and lags:
            able = [member for member, lag in lags.items() if not lag]
            if able:
                return _Change(_simple(ConfChangeType.ADD_NODE, able[0]))
            return _Wait("; ".join(lags.values()))
        members = {*conf.incoming, *conf.learners}
        return _Forced(tuple(replica.id for replica in record.replicas if replica.node not in members))

    def _lag(self, group: Group, joining: Iterable[int]) -> str:
        """Who of these lacks too much of the log, and how much; empty where none does."""
        progress = group.raw.status().progress
        texts = []
        for member in sorted(joining):
            one = progress.get(member)
            lacking = group.raw.commit - (one.match if one is not None else 0)
            if one is None or one.state is not ProgressState.REPLICATE or lacking > LAG_ENTRIES_MAX:
                what = "a snapshot" if one is not None and one.state is ProgressState.SNAPSHOT else "the log"
                silent = "" if self._hears(group, member) else ", and it is silent"
                where = self._node_of(group, member)
                texts.append(f"replica {member} on {where} gets {what}: it lacks {lacking} entries{silent}")
        return "; ".join(texts)

    def _hears(self, group: Group, member: int) -> bool:
        """Whether the member's node was heard of lately. (The core forgets that at each check of the quorum.)"""
        return member == group.replica or self._driver.heard_lately(group.nodes.get(member, 0))

    def _silent(self, group: Group, voters: set[int]) -> str:
        """Why the group could not go on with these voters; empty where a majority of them is heard of."""
        silent = [one for one in sorted(voters) if not self._hears(group, one)]
        if len(voters) - len(silent) > len(voters) // 2:
            return ""
        nodes = ", ".join(self._node_of(group, one) for one in silent)
        return f"no majority of those that are to be its members was heard of lately: {nodes} say nothing"

    def _node_of(self, group: Group, replica: int) -> str:
        return f"node {group.nodes.get(replica, 0)}"

    # --- taking it ----------------------------------------------------------------------------------------------------

    async def _change(self, group: Group, change: ConfChange) -> str:
        promoted = [one.node for one in change.changes if one.type is ConfChangeType.ADD_NODE]
        if group.id != META_GROUP:
            for member in promoted:
                lacking = await self._absent_units(group, member)
                if lacking:
                    return f"replica {member} on {self._node_of(group, member)} fetches {lacking} units"
        if group.leads:
            texts = [f"{one.type.name} {one.node}" for one in change.changes]
            logger.info("group %d: members change: %s", group.id, ", ".join(texts) or "the joint phase is left")
            self._driver.propose_change(group, change)
        return ""

    async def _absent_units(self, group: Group, member: int) -> int:
        """How many units a replica lacks the files of; raises CallerError where its node does not say."""
        node = group.nodes.get(member, 0)
        head, _ = unpack(await self._call(node, "damaged units", {"group": group.id}))
        return len(head)

    async def _hand_over(self, group: Group, to: Iterable[int]) -> str:
        """To the one of these that has most of the log, was heard of, and has every unit."""
        if group.raw.transferee:
            return "the lead is being handed over"
        progress = group.raw.status().progress
        able = [(-progress[one].match, one) for one in to if one in progress and self._hears(group, one)]
        for _, member in sorted(able):
            if group.id != META_GROUP and await self._absent_units(group, member):
                continue
            if group.leads:
                logger.info("group %d: this leader leaves: %s is to lead", group.id, self._node_of(group, member))
                self._driver.transfer_leader(group, member)
            return "the lead is being handed over"
        return "this leader is to leave, and no member that stays can lead yet"

    async def _report(self, group: Group, record: GroupRecord, shaped: _Report) -> str:
        conf, index = group.raw.configuration, group.applied
        silent = self._silent(group, set(conf.incoming))
        if silent:
            return silent
        for member in conf.incoming:  # one that is silent is told by the log, when it is back
            if self._hears(group, member):
                head = {"group": group.id, "replica": member, "index": index}
                await self._call(group.nodes.get(member, 0), CONFIGURED_CALL, head)
        if group.leads and group.raw.configuration == conf:
            await self._meta.propose(
                lambda request: commands.group_shaped(
                    request, record.id, record.generation, shaped.voters, shaped.learners
                ),
                Deadline(self._world, STEP_TIMEOUT_MS),
            )
        return ""

    async def _tell_forced(self, group: Group, forced: _Forced) -> None:
        await self._meta.propose(
            lambda request: commands.force_group(request, META_GROUP, group.generation, forced.dead, accept_loss=True),
            Deadline(self._world, STEP_TIMEOUT_MS),
        )

    async def _call(self, node: int, method: str, head: Any) -> memoryview:
        return await self._calls.call(node, method, pack(head), Deadline(self._world, ASK_MS))

    async def _configured_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """Answered when this node's replica has applied the index, and its disk the configuration as of then."""
        head, _ = unpack(body)
        group = replica_here(self._driver, int(head["group"]))
        if group.replica != head["replica"]:
            raise CallerError(Status.NO_LEADER, f"group {group.id} has another replica here than {head['replica']}")
        try:
            async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                await self._driver.wait_applied(group, int(head["index"]))
                await submitted(self._log)
        except TimeoutError:
            raise CallerError(
                Status.TIME_OUT, f"node {self._calls.node} has not stored the new members of group {group.id} yet"
            ) from None
        return pack(None)


def leaves(state: MetaState, number: int, replica: int) -> bool:
    """Whether a replica is to leave its group, or its node the cluster."""
    record = state.group(number)
    known = record.replica(replica) if record is not None else None
    if known is None:
        return False
    node = state.node(known.node)
    return known.role is Role.LEAVING or node is None or not node.stays


def _may_leave_meta(state: MetaState, node: int) -> bool:
    """Whether a member of the meta group is a node that leaves and has no other group any more, or is dead, or none."""
    known = state.node(node)
    if known is None or known.dead:
        return True
    return not known.stays and state.group(node) is None and all(one.replica_of(node) is None for one in state.groups)


def _simple(kind: ConfChangeType, member: int) -> ConfChange:
    return ConfChange((ConfChangeSingle(kind, member),))


def _joint(joining: Iterable[int], leaving: Iterable[int]) -> ConfChange:
    changes = [ConfChangeSingle(ConfChangeType.ADD_NODE, one) for one in sorted(joining)]
    changes += [ConfChangeSingle(ConfChangeType.REMOVE_NODE, one) for one in sorted(leaving)]
    return ConfChange(tuple(changes), ConfChangeTransition.JOINT_IMPLICIT)
