"""The replicas of this node: opened and closed as meta says, recovered from log and checkpoints, fed by peers' batches.

A replica of which meta says that it is removed is closed for ever: it answers nothing any more, what was done with it
ends, its directories go, and last the log forgets it. All that begins once a checkpoint of meta on this node's disk
holds the removal: a restart that knew only an older state would open the replica again, empty and without its vote.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import Random
from typing import Any

from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.forcing import Forcing
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.log import (
    Compact,
    Configuration,
    DurableLog,
    Install,
    Remove,
    ReplicaLog,
    State,
    make_durable_directories,
    submitted,
)
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.outbox import read_batch
from iotdb_cluster.cluster.room import RoomGuard, disk_is_full
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.cluster.snapshots import SnapshotReceiver, SnapshotSender
from iotdb_cluster.cluster.staging import live_directory
from iotdb_cluster.cluster.startup import identifiers
from iotdb_cluster.data import DataGroup
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import (
    APPEND_BYTES_MAX,
    APPLY_BYTES_MAX,
    APPLY_ENTRIES_MAX,
    INFLIGHT_BYTES_MAX,
    SLOTS,
    UNCOMMITTED_BYTES_MAX,
)
from iotdb_cluster.meta import META_GROUP, MetaState
from iotdb_cluster.meta import Group as GroupRecord
from iotdb_cluster.raft import Config, ConfState, HardState, Message, RawNode, Snapshot
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.world import World

__all__ = ["TICK_PART", "Replicas"]

logger = logging.getLogger(__name__)

TICK_PART = 1  # ticks a heartbeat interval
IDLE_POLL_MS = 50  # between two looks whether anybody still needs a replica that is to go


class Replicas:
    """Opens the replicas of one node and hands them messages.

    `incarnations` are those by which the cluster knows its nodes; one that is not known yet is taken from the first
    message. `changed()` is called when a group's leader or a data group's state changed, `leader_changed(group)` also
    for the former.
    """

    def __init__(
        self,
        world: World,
        settings: Settings,
        log: DurableLog,
        driver: Driver,
        machines: dict[int, DataMachine],
        incarnations: dict[int, int],
        changed: Callable[[], None],
        leader_changed: Callable[[int], None],
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._sender: SnapshotSender | None = None
        self._receiver: SnapshotReceiver | None = None
        self._guard: RoomGuard | None = None
        self._world = world
        self._settings = settings
        self._log = log
        self._driver = driver
        self._machines = machines
        self._incarnations = incarnations
        self._changed = changed
        self._tell_leader_changed = leader_changed
        self._spawn = spawn
        self._forcing: Forcing | None = None
        self._endings: list[Callable[[int], Coroutine[Any, Any, None] | None]] = []
        self._meta: MetaMachine | None = None
        self._node = 0
        self._staging = False  # a received snapshot of the meta group
        self._busy: set[int] = set()  # groups of which the replica here is being opened or closed
        self._erasing: set[int] = set()  # replicas that the log and the disk are to forget

    def connect(
        self, sender: SnapshotSender, receiver: SnapshotReceiver, guard: RoomGuard, forcing: Forcing | None = None
    ) -> None:
        """Who sends and receives the snapshots of data groups, who knows of room, who begins a new generation.

        Before any data group is opened.
        """
        self._sender, self._receiver, self._guard, self._forcing = sender, receiver, guard, forcing
        self._driver.lone.leaves_out, self._driver.lone.is_of = self._leaves_out, self._is_of

    def at_the_end(self, *forget: Callable[[int], Coroutine[Any, Any, None] | None]) -> None:
        """What is called, in order, with the number of a group of which this node has no replica any more."""
        self._endings += forget

    # --- opening ------------------------------------------------------------------------------------------------------

    async def open_meta(self, node: int, machine: MetaMachine, founders: Sequence[int] = ()) -> Group:
        """This node's replica of the meta group; its replica ids are the nodes' identifiers.

        `founders`: what that group began with, for a node that joins a cluster; else they are the seeds.
        """
        view = self._log.view(node)
        if view.last_index() == 0:  # the founders are the group as of index 1, which holds no entry
            voters = ConfState(tuple(sorted(founders or identifiers(self._settings.seeds).values())))
            await submitted(self._log, Install(node, 1, 1, voters))
        machine.recover(view)
        machine.configured(view.initial_state()[1], view.configured)
        self._meta, self._node = machine, node
        if machine.index == 1:
            machine.term = 1
        view.snapshot_source = machine.snapshot
        if self._begins_anew(view):  # nobody else makes checkpoints yet
            self._apply_all(view, machine)
            await self._world.workers.run(machine.stage, machine.snapshot())
            machine.checkpointed = machine.index
            await submitted(self._log, Compact(node, machine.index, machine.term))
        return self._drive_meta(view, machine)

    def _drive_meta(self, view: ReplicaLog, machine: MetaMachine) -> Group:
        raw = RawNode(self.config(view.replica, view, machine.index))
        members = {member: member for member in (*machine.members.voters, *machine.members.learners)}
        group = Group(0, view.generation, view.replica, raw, view, machine, members, applied=machine.index)
        group.takes_snapshot = partial(self._takes_meta, group, machine)
        self._drive(group)
        return group

    @property
    def meta_leader(self) -> int:
        """The node that leads the meta group, as far as the replica here knows; 0 for none."""
        group = self._driver.groups.get(META_GROUP)
        return 0 if group is None else group.leader_node

    def _takes_meta(self, group: Group, machine: MetaMachine, message: Message, snapshot: Snapshot) -> bool:
        """Whether it is staged; else that is begun, where no other is, and the message is taken once it is done."""
        if machine.takes(snapshot):
            return True
        if not self._staging:
            self._staging = True
            self._spawn(self._stage_meta(group, machine, message, snapshot))
        return False

    async def _stage_meta(self, group: Group, machine: MetaMachine, message: Message, snapshot: Snapshot) -> None:
        try:
            await self._world.workers.run(machine.receive, snapshot)
        except OSError as error:
            if not disk_is_full(error):
                raise
            logger.warning(
                "the meta group's snapshot %d is not staged, it will be sent again: %s", snapshot.index, error
            )
        else:
            self._driver.step(group, message)
        finally:
            self._staging = False

    async def stop_meta(self) -> ReplicaLog:
        """The replica of the meta group stands still until `start_meta`; its log, all of which is on disk."""
        group = self._driver.groups.get(META_GROUP)
        if group is None or self._meta is None:
            raise CallerError(Status.PARTITION_NOT_READY, "the meta group is being forced here already: try again")
        self._driver.remove(group)
        await submitted(self._log)
        if self._meta.index < group.log.first_index() - 1:  # a snapshot has just come
            self._meta.recover(group.log)
        return group.log

    async def start_meta(self) -> None:
        """Go on, in the generation that the log says."""
        view, machine = self._log.view(self._node), self._meta
        if machine is None:
            return
        machine.configured(view.initial_state()[1], view.configured)
        if self._begins_anew(view):
            self._apply_all(view, machine)
            await self.meta_checkpointed(machine.index)
            await submitted(self._log, Compact(self._node, machine.index, machine.term))
        self._drive_meta(view, machine)
        self.follow()
        self._leader_changed(self._driver.groups[META_GROUP])

    def _begins_anew(self, view: ReplicaLog) -> bool:
        """Whether the log may hold entries of an earlier generation, which must not reach members that come later."""
        return view.generation > 1 and view.first_index() <= view.configured

    def _apply_all(self, view: ReplicaLog, machine: MetaMachine) -> None:
        """Up to the entry that the configuration is of: that is committed, and so is all before it."""
        while machine.index < view.configured:
            first = max(machine.index + 1, view.first_index())
            machine.apply(view.read(first, view.configured + 1, APPLY_BYTES_MAX))

    async def meta_checkpointed(self, index: int) -> None:
        """Wait until the disk holds what meta decided up to an index."""
        if index > 1:
            await _until(lambda: self._checkpointed(index))

    def follow(self) -> None:
        """Open what meta says that this node has, close what it has no more, and know who the other members are."""
        if self._meta is None or not self._meta.state.bootstrapped:
            return
        state = self._meta.state
        wanted = {record.id: record for record in state.groups if record.replica_of(self._node) is not None}
        for number, group in list(self._driver.groups.items()):
            record = wanted.get(number)
            if not number:
                group.nodes = {node.id: node.id for node in state.nodes}
            elif record is not None and self._is_current(group, record):
                group.nodes = {one.id: one.node for one in record.replicas}
            elif number in self._busy:
                continue
            elif record is not None and record.replica(group.replica) is not None:
                self._begin(number, partial(self._renew, group, record))
            else:
                self._begin(number, partial(self._close, group, self._meta.index))
        for number, record in wanted.items():
            replica = record.replica_of(self._node)
            if replica is None or number in self._busy or number in self._driver.groups:
                continue
            if replica.id not in self._log.replicas() or self._log.view(replica.id).generation <= record.generation:
                self._begin(number, partial(self._open_data, record, replica.id))
        self._erase_left(state, self._meta.index)

    def _is_current(self, group: Group, record: GroupRecord) -> bool:
        replica = record.replica_of(self._node)
        return replica is not None and (group.generation, group.replica) == (record.generation, replica.id)

    def _erase_left(self, state: MetaState, decided: int) -> None:
        """Removed replicas that an earlier start did not come to an end with."""
        if self._busy:  # looked at again when that is done
            return
        running = {self._node, *(group.replica for group in self._driver.groups.values())}
        for replica in self._log.replicas():
            if replica not in running and replica not in self._erasing and state.removed_replica(replica):
                self._erasing.add(replica)
                self._spawn(self._erase(replica, decided))

    def _begin(self, number: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Open or close the replica of a group, one at a time; meta may have decided on, meanwhile."""

        async def run() -> None:
            await work()
            self._busy.discard(number)
            self.follow()

        self._busy.add(number)
        self._spawn(run())

    async def _open_data(self, record: GroupRecord, replica: int) -> None:
        """Make, or open again, this node's replica of a data group."""
        decided = self._meta.index if self._meta is not None else 0
        view = self._log.view(replica)
        if view.last_index() == 0:  # also of one that came later: it learns the rest from the log, or a snapshot
            founders = ConfState(record.founders)
            since = Configuration(replica, founders, 1, record.generation)
            await submitted(self._log, Install(replica, 1, 1, founders), since)
        base = await self._world.workers.run(self._base, record, replica)
        data = await self._world.workers.run(self._opened, record.id, base, view.first_index() - 1)
        data.decided = self._decided
        machine = DataMachine(data, self._changed)
        machine.configured(view.initial_state()[1], view.configured)
        if view.generation < record.generation and self._forcing is not None:
            self._machines[record.id] = machine
            # A restart that knew only an older state would take part in the generation before, though others may
            # have been told where this log ends.
            await self.meta_checkpointed(decided)
            if not await self._forcing.renew(record, view, machine, partial(self._stands, record, replica)):
                await self._let_go(record.id)
                return
            machine.configured(view.initial_state()[1], view.configured)
            machine.checkpointed = None
        view.snapshot_source = machine.snapshot
        applied = max(data.applied, 1)
        if applied < view.first_index() - 1:
            raise CorruptData(
                f"group {record.id}: its checkpoint is at {data.applied}, its log begins at {view.first_index()}"
            )
        if applied > view.last_index() and self._settings.accept_loss:
            await self._begin_behind(view, replica, data)
        raw = RawNode(self.config(replica, view, applied))
        nodes = {one.id: one.node for one in record.replicas}
        group = Group(record.id, record.generation, replica, raw, view, machine, nodes, applied=applied)
        group.takes_snapshot = lambda _, snapshot: machine.takes(snapshot.index, snapshot.term)
        if self._sender is not None and self._receiver is not None:
            group.send_snapshot = self._sender.send
            self._receiver.opened(record.id, base)
        self._machines[record.id] = machine
        self._drive(group)

    def _stands(self, record: GroupRecord, replica: int) -> bool:
        """Whether meta has no newer generation of a group, and still has this replica in it."""
        known = self._meta.state.group(record.id) if self._meta is not None else None
        return known is not None and known.generation == record.generation and known.replica(replica) is not None

    def _decided(self, slot: int) -> int:
        """The epoch of meta's last decision about a slot, as far as this node knows."""
        return self._meta.state.table.owner(slot)[1] if self._meta is not None and 0 <= slot < SLOTS else 0

    def _base(self, record: GroupRecord, replica: int) -> str:
        """What the names of a replica's directories begin with: the generation is that in which it was made."""
        parent = self._settings.data_paths[0]
        made = re.compile(rf"group-{record.id}-([0-9]+)-{replica}(\.[a-z0-9]+)?")
        found = [int(match[1]) for name in self._world.files.list(parent) if (match := made.fullmatch(name))]
        return f"{parent}/group-{record.id}-{max(found, default=record.generation)}-{replica}"

    def _opened(self, number: int, base: str, mark: int) -> DataGroup:
        """What the disk has of a replica; on a worker."""
        files = self._world.files
        make_durable_directories(files, self._settings.data_paths[0])
        path = live_directory(files, base, mark)
        make_durable_directories(files, path)
        return DataGroup.open(number, files, path)

    async def _begin_behind(self, view: ReplicaLog, replica: int, data: DataGroup) -> None:
        """The operator accepted the loss of entries that a checkpoint holds: the log goes on behind that one."""
        logger.warning(
            "group %d: the log ends at %d, as accepted, and goes on behind the checkpoint at %d: that has the rest",
            data.number,
            view.last_index(),
            data.applied,
        )
        hard_state, members = view.initial_state()
        vote = hard_state.vote if hard_state.term >= data.applied_term else 0
        state = HardState(max(hard_state.term, data.applied_term), vote, data.applied)
        await submitted(self._log, Install(replica, data.applied, data.applied_term, members), State(replica, state))

    def _drive(self, group: Group) -> None:
        group.leader_changed = self._leader_changed
        self._driver.add(group)

    def config(self, replica: int, log: ReplicaLog, applied: int) -> Config:
        """How every replica of this node is set up."""
        settings = self._settings
        election = max(2, round(settings.election_timeout_ms / settings.heartbeat_interval_ms * TICK_PART))
        return Config(
            replica,
            log,
            Random(self._world.random.getrandbits(64)),
            applied=applied,
            configured=log.configured,
            election_tick=election,
            heartbeat_tick=TICK_PART,
            committed_bytes_per_ready_max=APPLY_BYTES_MAX,
            committed_entries_per_ready_max=APPLY_ENTRIES_MAX,
            # What a Ready can hold must fit in a segment, whole.
            uncommitted_bytes_max=min(UNCOMMITTED_BYTES_MAX, settings.log_segment_bytes // 2),
            inflight_bytes_max=max(APPEND_BYTES_MAX, min(INFLIGHT_BYTES_MAX, settings.log_segment_bytes // 4)),
            async_storage_writes=True,
            disable_proposal_forwarding=True,
            step_down_on_removal=True,  # one that was elected with its own removal in its log could decide nothing
        )

    # --- closing ------------------------------------------------------------------------------------------------------

    async def _close(self, group: Group, decided: int) -> None:
        """Meta has decided, by index `decided`, that the replica is no member any more."""
        logger.info("group %d: replica %d is removed from it", group.id, group.replica)
        await self._end(group)
        self._erasing.add(group.replica)
        self._spawn(self._erase(group.replica, decided))

    async def _renew(self, group: Group, record: GroupRecord) -> None:
        """Meta has forced the group into a new generation, of which this replica is a survivor."""
        logger.warning("group %d: replica %d stops for generation %d", group.id, group.replica, record.generation)
        await self._end(group)
        await self._open_data(record, group.replica)

    async def _end(self, group: Group) -> None:
        """Nothing is done with the replica any more, nor can be; what is on disk stays."""
        self._driver.remove(group)
        await self._let_go(group.id)

    async def _let_go(self, number: int) -> None:
        """What the driver has no more, or has not yet."""
        machine = self._machines.pop(number)
        for forget in self._endings:
            ending = forget(number)
            if ending is not None:
                await ending
        found = [machine.drop_candidate(), machine.data, *machine.replaced]
        for data in [one for one in found if one is not None]:
            await _until(lambda data=data: data.store.idle)  # type: ignore[misc]  # what has begun ends soon
            data.close()

    async def _erase(self, replica: int, decided: int) -> None:
        """Make the disk forget a removed replica, then the log: what that still knows is left to be done."""
        await _until(lambda: self._checkpointed(decided))
        await self._world.workers.run(self._remove_directories, replica)
        await submitted(self._log, Remove(replica))
        self._erasing.discard(replica)
        logger.info("replica %d is deleted", replica)

    def _checkpointed(self, index: int) -> bool:
        """Whether the disk holds what meta decided up to an index; asks for it where not."""
        if self._meta is None or self._meta.checkpointed >= index:
            return True
        self._meta.checkpoint_asked = True
        return False

    def _remove_directories(self, replica: int) -> None:
        """Of a group's replica, of whatever generation: the live one, snapshots, the stage, moves. OSError."""
        files, parent = self._world.files, self._settings.data_paths[0]
        own = re.compile(rf"group-[0-9]+-[0-9]+-{replica}(\.[a-z0-9]+)?")
        for name in sorted(files.list(parent)):
            if own.fullmatch(name):
                files.remove_tree(f"{parent}/{name}")
        files.sync_directory(parent)

    def _leader_changed(self, group: Group) -> None:
        if group.leads:
            logger.info("leads group %d in term %d", group.id, group.raw.term)
        self._tell_leader_changed(group.id)
        self._changed()

    # --- messages -----------------------------------------------------------------------------------------------------

    def receive(self, identity: PeerIdentity, batch: memoryview) -> None:
        """Step a peer's messages; those for replicas that are not here, or from another incarnation, are dropped."""
        try:
            node, incarnation, envelopes = read_batch(batch)
            known = self._incarnations.setdefault(node, incarnation)
            if node != identity.node or known != incarnation:
                return
            for envelope in envelopes:
                message = envelope.message
                if not isinstance(message, Message):
                    self._driver.told(node, message)
                    continue
                group = self._driver.groups.get(envelope.group)
                if group is None or (group.generation, group.replica) != (envelope.generation, envelope.replica):
                    continue
                left_out = message.entries.terms and self._leaves_out(group)
                if self._is_of(group, message.source, node) and not left_out:
                    self._driver.step(group, message)
        except CorruptData as error:
            logger.warning("a batch of node %d is dropped: %s", identity.node, error)

    def _is_of(self, group: Group, replica: int, node: int) -> bool:
        """Whether a member's replica lives on a node; a member of the meta group is known before meta tells of it."""
        if group.id or replica != node:
            return group.nodes.get(replica) == node
        if self._meta is not None and self._meta.state.removed_node(node):
            return False
        group.nodes.setdefault(node, node)
        return True

    def _leaves_out(self, group: Group) -> bool:
        """Whether it takes no entries now: others have the room for them, or many wait here to be applied."""
        if not group.id or self._guard is None:
            return False
        if group.raw.commit - group.applied > self._settings.unapplied_entries_max:
            return True
        return self._guard.stands_aside(group)


async def _until(reached: Callable[[], bool]) -> None:
    while True:
        if reached():
            return
        await asyncio.sleep(IDLE_POLL_MS / 1000)
