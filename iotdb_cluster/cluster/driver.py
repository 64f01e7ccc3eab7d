"""The driver of all Raft groups of a node: ticks, the way from a Ready to disk, peers and state machines.

One loop turn gathers: whatever a turn's messages, proposals and finished writes ask for is handled together at the end
of the turn (`_turn`), so that a peer gets one batch and the disk one write, however many groups took part.

The core runs with asynchronous storage writes: what must be on disk first travels as the responses of a local append
message, which are stepped (or sent) once the durable log has synced them. The leader therefore sends to its followers
while its own disk works.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from iotdb_cluster.cluster.applying import Applying
from iotdb_cluster.cluster.beats import Answer, Beat, Covered
from iotdb_cluster.cluster.group import Group, Outcome, Proposal, ReadRound
from iotdb_cluster.cluster.log import Append, DurableLog, Install, Record, State
from iotdb_cluster.cluster.lone import AckRow, Acks, AppendRow, Appends, LoneEntries
from iotdb_cluster.cluster.outbox import Word
from iotdb_cluster.cluster.timing import Timing
from iotdb_cluster.errors import CallerError, Status, check
from iotdb_cluster.raft import (
    LOCAL_APPEND,
    LOCAL_APPLY,
    ConfChange,
    Entries,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Ready,
    UnknownPeer,
    decode_conf_change,
)
from iotdb_cluster.world import World

__all__ = ["Driver", "Outbox"]

logger = logging.getLogger(__name__)

READ_ROUND_TICKS_MAX = 3  # an unanswered confirmation is asked again: its messages may be lost
SNAPSHOT_TICKS_MAX = 50  # a snapshot that nobody heard of for so long counts as lost
_HEARTBEATS = frozenset({MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP})  # on connections of their own


class Outbox(Protocol):
    """Takes a group's message to a node; whatever was taken in a turn goes out at `flush`.

    That gives the members for which log entries were dropped: no connection, or one that takes nothing any more.
    """

    def post(self, node: int, group: Group, message: Message, heartbeat: bool) -> None: ...
    def committed(self, node: int, group: Group, pair: Covered) -> None: ...
    def append(self, node: int, group: Group, row: AppendRow, payload: bytes) -> None: ...
    def acknowledge(self, node: int, group: Group, row: AckRow) -> None: ...
    def tell(self, node: int, word: Word) -> None: ...
    def flush(self) -> list[tuple[Group, int]]: ...


class Driver:
    """Drives every group of one node on the event loop that made it."""

    def __init__(
        self,
        world: World,
        log: DurableLog,
        outbox: Outbox,
        node: int,
        tick_ms: float,
        fault: Callable[[BaseException], None],
    ) -> None:
        self._world = world
        self._log = log
        self._outbox = outbox
        self._node = node
        self._tick_s = tick_ms / 1000
        self._fault = fault
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[int, Group] = {}
        self._turn_due = False
        self._ticks_due = False  # beats are to go out at the end of this turn
        self._attended: dict[int, Group] = {}  # groups in which the driver itself waits for something
        # Counted from a random number: an answer to this node's earlier life must not pass for one to a later read.
        self._rounds = world.random.getrandbits(63)
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._stopped = False
        self._reads = 0
        self.groups: dict[int, Group] = {}
        self._applying = Applying()
        self._timing = Timing(world.random.getrandbits(63) | 1, self.groups, self.step, self._mark)
        self.lone = LoneEntries(
            log,
            outbox,
            self._timing,
            self._applying,
            self.groups,
            self.step,
            self.wake,
            self._turn_later,
            self._apply_entries,
            self._when_synced,
        )

    # --- groups -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._tick_at = self._loop.time()
        self._tick_later()

    def stop(self) -> None:
        """Nothing is sent, written or applied any more; what waits is answered `OutcomeUnknown` by its deadline."""
        self._stopped = True
        if self._ticker is not None:
            self._ticker.cancel()

    def add(self, group: Group) -> None:
        check(group.id not in self.groups, "group %d is driven already", group.id)
        self.groups[group.id] = group
        group.log.entries_read = lambda: self._when_synced(partial(self._entries_read, group))
        self._timing.start(group)
        self.wake(group)

    def remove(self, group: Group) -> None:
        """Let a replica go. What was submitted to the log for it is written, and answered by nobody."""
        check(self.groups.get(group.id) is group, "group %d is not driven", group.id)
        self._timing.remove(group)
        self.lone.submit()
        del self.groups[group.id]
        self._dirty.pop(group.id, None)
        self._attended.pop(group.id, None)
        self._applying.waiting.pop(group.id, None)
        group.log.entries_read = None
        group.end()

    def wake(self, group: Group) -> None:
        """The core was told something: handle its Ready at the end of this loop turn."""
        if group.covered_by or group.covers:  # else it is time enough at the end of the turn
            self._timing.changed(group)
        self._mark(group)

    def _mark(self, group: Group) -> None:
        if group.closed:
            return
        self._dirty[group.id] = group
        self._turn_later()

    def _turn_later(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    # --- what comes in ------------------------------------------------------------------------------------------------

    def step(self, group: Group, message: Message) -> None:
        """A message from a peer; one that no member can have sent is dropped, as is a snapshot without its files."""
        snapshot, takes = message.snapshot, group.takes_snapshot
        if (
            snapshot is not None
            and snapshot.index > group.raw.commit
            and takes is not None
            and not takes(message, snapshot)
        ):
            logger.info("group %d: snapshot %d comes before its files are here", group.id, snapshot.index)
            return
        if group.closed:
            return
        self._timing.touch(group)
        self._timing.heard(group.nodes.get(message.source, 0))
        try:
            if self.lone.take(group, message):
                return
            group.raw.step(message)
        except (UnknownPeer, ProposalDropped) as error:
            logger.debug("group %d drops a %s: %s", group.id, message.type.name, error)
        self.wake(group)

    def heard_lately(self, node: int) -> bool:
        """Whether anything came from a node within the last ticks."""
        return self._timing.heard_lately(node)

    def gone(self, node: int) -> None:
        """Nobody listens any more where a node did, so its process has ended; where it led there are elections soon."""
        if not self._stopped:
            self._timing.gone(node)

    def told(self, node: int, word: Word) -> None:
        """A node says something of many groups."""
        if isinstance(word, Appends):
            self.lone.appended(node, word)
        elif isinstance(word, Acks):
            self.lone.acknowledged(node, word)
        elif isinstance(word, Answer):
            self._timing.answered(node, word)
        elif isinstance(word, Beat):
            answer = self._timing.beaten(node, word)
            if answer is not None:
                self._outbox.tell(node, answer)
                self._turn_later()
        else:
            self.lone.committed(node, word)

    def operations(self) -> int:
        """A count that goes up with each entry of the data groups and each read of one here; not with those of meta:
        who moves slots, or shows how far that is, asks it."""
        return self._reads + sum(group.applied for group in self.groups.values() if group.id)

    def propose(self, group: Group, payloads: Sequence[bytes]) -> list[asyncio.Future[Outcome]]:
        """Append the payloads to the group's log; each future gets its entry's outcome once it is applied here.

        Raises NotLeader, or CallerError 413 where too much is uncommitted. When this node loses the lead a future whose
        entry is not applied gets OutcomeUnknown; another leader's entry in its place gives NotLeader.
        """
        self._require_lead(group)
        group.require_members()
        if len(payloads) == 1:
            placed = self.lone.propose(group, payloads[0])
            if placed is not None:
                return [self._expect(group, *placed)]
        try:
            taken = group.raw.propose(list(payloads))
        except ProposalDropped:
            if group.leads and not group.raw.transferee:
                raise CallerError(
                    Status.WRITE_PROCESS_REJECT,
                    f"group {group.id} has too many writes that are not committed yet: try again",
                ) from None
            raise group.not_leader() from None
        if taken is None:
            raise group.not_leader()
        term, index = taken
        self.wake(group)
        return [self._expect(group, term, index + offset) for offset in range(len(payloads))]

    def _expect(self, group: Group, term: int, index: int) -> asyncio.Future[Outcome]:
        """The outcome of an entry that was appended."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        if index in group.proposals:
            group.answer_unknown(index)  # of an earlier term: it may stand on other members still
        group.proposals[index] = Proposal(term, future)
        return future

    async def read_barrier(self, group: Group, leader_only: bool = False) -> int:
        """Wait until everything that was committed before this call is applied here; the index that was waited for.

        Raises NotLeader where `leader_only` and another leads. Ends only with an answer or the caller's time-out.
        """
        if group.closed or (leader_only and not group.leads):
            raise group.not_leader()
        self._reads += group.id != 0
        confirmed: asyncio.Future[int] = self._loop.create_future()
        group.reads_unsent.append(confirmed)
        self._attended[group.id] = group
        self._mark(group)
        index = await confirmed
        if group.applied < index:
            await self.wait_applied(group, index)
        return index

    async def wait_applied(self, group: Group, index: int) -> int:
        """Wait until this replica has applied an index."""
        if group.applied >= index:
            return group.applied
        if group.closed:
            raise group.not_leader()
        applied: asyncio.Future[int] = self._loop.create_future()
        group.apply_waiting.append((index, applied))
        self._attended[group.id] = group
        return await applied

    def propose_change(self, group: Group, change: ConfChange) -> None:
        """Append a change of the members; whether it was taken shows in the configuration. Raises NotLeader."""
        self._require_lead(group)
        try:
            group.raw.propose_conf_change(change)
        except ProposalDropped:
            raise group.not_leader() from None
        self.wake(group)

    def _require_lead(self, group: Group) -> None:
        if group.closed or not group.leads:
            raise group.not_leader()
        self._timing.touch(group)

    def transfer_leader(self, group: Group, target: int) -> None:
        """Let another replica lead; it has the whole log first. Should it not answer, this one goes on."""
        if group.closed:
            return
        self._timing.touch(group)
        group.raw.transfer_leader(target)
        self.wake(group)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _tick_later(self) -> None:
        """Ticks that were missed while the loop stood still are not made up for: messages waited as well."""
        self._tick_at = max(self._tick_at + self._tick_s, self._loop.time() + self._tick_s / 2)
        self._ticker = self._loop.call_at(self._tick_at, self._tick_due)

    def _tick_due(self) -> None:
        """Whatever has arrived is taken before a timer runs out: one turn of the loop reads the sockets.

        After a pause of this process its timers are due at once, while the heartbeats that would have put them off wait
        in the sockets. What is called soon from here runs before the loop looks at those, what that calls soon behind.
        """
        self._loop.call_soon(self._loop.call_soon, self._tick)

    def _tick(self) -> None:
        if self._stopped:
            return
        try:
            self._timing.tick()
            for group in list(self._attended.values()):
                self._attend(group)
        except Exception as error:
            self._fail(error)
            return
        self._ticks_due = True
        self._turn_later()
        self._tick_later()

    def _attend(self, group: Group) -> None:
        if group.read_rounds:
            self._repeat_reads(group)
        if group.snapshots_sent:
            self._repeat_snapshots(group)
        if group.apply_waiting:
            group.release_applied()
        if group.reads_unsent:
            self._mark(group)
        elif not (group.read_rounds or group.snapshots_sent or group.apply_waiting):
            del self._attended[group.id]

    def _repeat_reads(self, group: Group) -> None:
        for context, started in list(group.read_rounds.items()):
            if self._timing.ticks - started.started_tick >= READ_ROUND_TICKS_MAX:
                del group.read_rounds[context]
                group.reads_unsent.extend(waiter for waiter in started.waiting if not waiter.done())

    def _repeat_snapshots(self, group: Group) -> None:
        """While a snapshot counts as under way its member gets nothing else; whether it arrived nobody says."""
        for member, tick in list(group.snapshots_sent.items()):
            if self._timing.ticks - tick >= SNAPSHOT_TICKS_MAX:
                del group.snapshots_sent[member]
                self._timing.touch(group)
                group.raw.report_snapshot(member, ok=False)  # means nothing where it did arrive
                self.wake(group)

    # --- the end of a turn --------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._turn_due = False
        if self._stopped:
            return
        applying = self._applying
        try:
            applying.begin()
            self.lone.settle()
            dirty, self._dirty = self._dirty, {}
            for group in dirty.values():
                self._timing.changed(group)
                if group.reads_unsent:
                    self._send_reads(group)
                self._drain(group, not (applying.waiting or applying.spent))
                if not group.deadline:
                    self._timing.schedule(group)
            self._go_on_applying()
            self.lone.submit()
            if self._ticks_due:
                self._ticks_due = False
                for node, beat in self._timing.beats():
                    self._outbox.tell(node, beat)
            for group, member in self._outbox.flush():
                self._timing.touch(group)
                group.raw.report_unreachable(member)  # probed from now on, so that nothing piles up for it
                self._timing.changed(group)
        except Exception as error:
            self._fail(error)

    def _drain(self, group: Group, applying: bool) -> None:
        """Do what is to be done; at most one run of entries is applied, and without `applying` that waits."""
        raw = group.raw
        while raw.has_ready(applying):
            if self._handle(group, raw.ready(applying)):
                self.wake(group)
                return
        if not applying and raw.applies:
            self._applying.wait(group)

    def _go_on_applying(self) -> None:
        """Long logs that are applied must not keep the loop from everything else; one run goes on in any turn."""
        applying = self._applying
        while applying.waiting:
            self._drain(applying.next(), True)
            if applying.spent:
                break
        if applying.waiting:
            self._turn_later()

    def _fail(self, error: BaseException) -> None:
        self.stop()
        self._fault(error)

    def _send_reads(self, group: Group) -> None:
        waiting = [waiter for waiter in group.reads_unsent if not waiter.done()]
        group.reads_unsent = []
        if not waiting:
            return
        if not group.raw.leader:  # the core would drop it: kept until somebody leads
            group.reads_unsent = waiting
            return
        self._rounds += 1
        context = struct.pack(">IQ", self._node, self._rounds)
        group.read_rounds[context] = ReadRound(self._timing.ticks, waiting)
        self._attended[group.id] = group
        self._timing.touch(group)
        group.raw.read_index(context)
        self._timing.changed(group)

    def _handle(self, group: Group, ready: Ready) -> bool:
        """Do what the Ready asks for; whether entries were applied."""
        applied = False
        for state in ready.read_states:
            started = group.read_rounds.pop(state.context, None)
            for waiter in started.waiting if started else ():
                if not waiter.done():
                    waiter.set_result(state.index)
        for message in ready.messages:
            if message.to == LOCAL_APPEND:
                self._append(group, message)
            elif message.to == LOCAL_APPLY:
                self._apply(group, message)
                applied = True
            else:
                self._post(group, message)
        if group.raw.leader != group.leader_seen:
            if group.leader_seen == group.replica:
                group.lead_lost()
            group.leader_seen = group.raw.leader
            if group.leader_changed is not None:
                group.leader_changed(group)
        return applied

    def _post(self, group: Group, message: Message) -> None:
        node = group.nodes.get(message.to)
        if message.type is MessageType.SNAP:
            if group.send_snapshot is not None:
                group.send_snapshot(group, message)
                return
            group.snapshots_sent[message.to] = self._timing.ticks
            self._attended[group.id] = group
        if node is None:  # a replica that no meta entry names yet: as if the message were lost
            return
        kind = message.type
        if kind is MessageType.APP:
            if not message.entries.terms and group.raw.member_has(message.to, message.index):
                # Nothing is on its way there, so it probes nothing: it says what is committed, and needs no answer.
                message.commit = min(message.commit, message.index)
                self._outbox.committed(node, group, group.pair(message))
                return
        elif kind is MessageType.HEARTBEAT and self._timing.takes(group, node, message):
            return
        self._outbox.post(node, group, message, kind in _HEARTBEATS)

    def deliver_snapshot(self, group: Group, message: Message) -> None:
        """The member has all that belongs to a snapshot but for the message; should that be lost, another goes."""
        node = group.nodes.get(message.to)
        if self._stopped or group.closed or node is None:
            return
        self._outbox.post(node, group, message, False)
        self._timing.touch(group)
        group.raw.report_snapshot(message.to, ok=True)
        self.wake(group)

    def snapshot_failed(self, group: Group, member: int) -> None:
        """A member did not get what belongs to a snapshot: the core tries again."""
        if not self._stopped and not group.closed:
            self._timing.touch(group)
            group.raw.report_snapshot(member, ok=False)
            self.wake(group)

    def _append(self, group: Group, message: Message) -> None:
        """Hand one Ready's hard state, snapshot and entries to the durable log; answer when they are synced."""
        records: list[Record] = []
        snapshot = message.snapshot
        if message.term or message.vote or message.commit:
            state = HardState(message.term, message.vote, message.commit)
            if snapshot is not None or group.owes(state):
                records.append(State(group.replica, state))
                group.stored = state
            elif not message.entries.terms and not message.responses:
                return  # the commit index alone is not worth a write: whoever leads next finds it out
        if snapshot is not None:
            group.machine.require_staged(snapshot)
            records.append(Install(group.replica, snapshot.index, snapshot.term, snapshot.conf_state))
        if len(message.entries):
            records.append(Append(group.replica, message.entries))

        def synced() -> None:
            if self._stopped or group.closed:
                return
            if snapshot is not None:
                group.machine.install(snapshot)
                group.applied = snapshot.index
                group.release_applied()
            self._respond(group, message.responses)

        self.lone.submit()  # it was told to the core before
        # Also without records: the responses speak of all that was submitted before, and must wait for it.
        self._log.submit(records, synced)

    def _apply(self, group: Group, message: Message) -> None:
        self._apply_entries(group, message.entries)
        self._respond(group, message.responses)

    def _apply_entries(self, group: Group, entries: Entries) -> None:
        group.apply(entries)
        self._applying.took(entries)
        if any(entries.kinds):
            for index, (kind, data) in enumerate(zip(entries.kinds, entries.data, strict=True), entries.first):
                if kind != EntryKind.NORMAL:
                    configuration = group.raw.apply_conf_change(decode_conf_change(data), index)
                    index = max(index, group.raw.configured)
                    self._log.submit([group.log.configuration(configuration, index)], lambda: None)
                    group.machine.configured(configuration, index)

    def _entries_read(self, group: Group) -> None:
        """Old entries of a group are in memory: whoever was refused them goes on."""
        if not group.closed:
            self._timing.touch(group)
            group.raw.entries_read()
            self.wake(group)

    def _when_synced(self, work: Callable[[], None]) -> None:
        if self._stopped:
            return
        try:
            work()
        except Exception as error:
            self._fail(error)

    def _respond(self, group: Group, responses: Sequence[Message]) -> None:
        self._timing.touch(group)
        try:
            for response in responses:
                if response.to == group.replica:
                    group.raw.step(response)
                else:
                    self._post(group, response)
        except Exception as error:
            self._fail(error)
            return
        self.wake(group)
