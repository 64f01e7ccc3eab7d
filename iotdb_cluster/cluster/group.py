"""One replica of a Raft group on this node: the core, what waits for it, and the state machine that it feeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from iotdb_cluster.cluster.beats import Covered
from iotdb_cluster.cluster.log import ReplicaLog
from iotdb_cluster.errors import CallerError, NotLeader, OutcomeUnknown, Status, check
from iotdb_cluster.raft import ConfState, Entries, HardState, Message, RawNode, Snapshot

COMMITS_UNSAVED = 256  # entries by which the stored commit index may lag: a restart learns the rest from the group
APPLY_LAG_MAX = 1_000  # committed entries that a replica has to apply; with more it is not the one to lead

__all__ = ["Group", "Outcome", "Proposal", "StateMachine"]


@dataclass(slots=True, frozen=True)
class Outcome:
    """What became of an applied entry: a value that JSON can say, or the error that the caller gets."""

    value: Any = None
    error: CallerError | None = None


class StateMachine(Protocol):
    """What a group's committed entries are applied to. No method may fail but by an InvariantViolation."""

    def apply(self, entries: Entries) -> list[Outcome]:
        """Apply a run of committed entries, in order: an outcome for each (that of an empty one means nothing)."""
        ...

    def configured(self, configuration: ConfState, index: int) -> None:
        """The group's members are these, by the entry at `index`, which is not later than what was just applied."""
        ...

    def snapshot(self) -> Snapshot:
        """The state at the newest index that it can be given for, for a member that lags behind the log."""
        ...

    def require_staged(self, snapshot: Snapshot) -> None:
        """Check that a received snapshot is on disk, so that the log's mark can make it count."""
        ...

    def install(self, snapshot: Snapshot) -> None:
        """Replace the whole state by a staged snapshot whose mark is durable."""
        ...


@dataclass(slots=True)
class Proposal:
    """An entry on its way: it stands at (term, index) if it stands at all."""

    term: int
    done: asyncio.Future[Outcome]


@dataclass(slots=True)
class ReadRound:
    """Reads that one confirmation of leadership answers."""

    started_tick: int
    waiting: list[asyncio.Future[int]]


@dataclass(slots=True, eq=False)
class Group:
    """A replica and what waits for it. `nodes` says on which node each replica of the group lives."""

    id: int
    generation: int
    replica: int
    raw: RawNode
    log: ReplicaLog
    machine: StateMachine
    nodes: dict[int, int]
    applied: int = 0
    proposals: dict[int, Proposal] = field(default_factory=dict)
    reads_unsent: list[asyncio.Future[int]] = field(default_factory=list)
    read_rounds: dict[bytes, ReadRound] = field(default_factory=dict)
    apply_waiting: list[tuple[int, asyncio.Future[int]]] = field(default_factory=list)
    news_owed: dict[int, None] = field(default_factory=dict)  # members that are to hear what is committed
    snapshots_sent: dict[int, int] = field(default_factory=dict)  # to which replica, at which tick of the driver
    leader_changed: Callable[[Group], None] | None = None
    send_snapshot: Callable[[Group, Message], None] | None = None  # where more than the message has to go out
    takes_snapshot: Callable[[Message, Snapshot], bool] | None = None  # whether its files are here: else it is dropped
    leader_seen: int = 0
    closed: bool = False  # the driver has let it go: nothing is told to it any more
    stored: HardState = field(default_factory=HardState)  # that was last written to the log
    # Of `timing` alone, in ticks of the driver.
    ticked: int = 0  # the core knows of the time up to here
    deadline: int = 0  # the tick that stands in the heap, 0 where none does
    calm_since: int = 0
    excepted_until: int = 0
    state: tuple[int, int, int, int] = (0, 0, 0, 0)  # term, leader, commit, last index when it was looked at last
    covers: dict[int, int] = field(
        default_factory=dict
    )  # on a leader: nodes that beats tell of it, and the member there
    matched: dict[int, int] = field(default_factory=dict)  # on a leader: what each node had when a heartbeat was due
    covered_by: int = 0  # on a follower: the leader's node, whose beats tell of it

    def owes(self, state: HardState) -> bool:
        """Whether the log must get the hard state: term and vote always, the commit index now and then."""
        stored = self.stored
        return (state.term, state.vote) != (stored.term, stored.vote) or state.commit - stored.commit >= COMMITS_UNSAVED

    def pair(self, message: Message) -> Covered:
        """What an append without entries, or a heartbeat, tells a member."""
        return Covered(self.id, self.generation, message.to, self.replica, message.term, message.commit)

    @property
    def leads(self) -> bool:
        return not self.closed and self.raw.leader == self.replica

    @property
    def leads_whole(self) -> bool:
        """Whether this replica leads, and has applied all that was committed before: then its state may be decided by.

        The commit index alone says less: a long log is applied in runs, over many turns of the loop.
        """
        return self.leads and self.log.term(self.applied) == self.raw.term

    @property
    def behind(self) -> bool:
        """Whether this replica has much to apply, as after a restart: it could serve nothing before it has."""
        return self.raw.commit - self.applied > APPLY_LAG_MAX

    @property
    def leader_node(self) -> int:
        """The node whose replica leads, as far as this one knows; 0 where it knows none, or is let go."""
        leader = 0 if self.closed else self.raw.leader
        return self.nodes.get(leader, 0) if leader else 0

    def voter_nodes(self) -> list[int]:
        """The nodes of the voters, as far as it is known where they live."""
        found = (self.nodes.get(voter) for voter in self.raw.configuration.voters)
        return [node for node in found if node is not None]

    def apply(self, entries: Entries) -> None:
        """Apply committed entries and answer the proposals that they were."""
        first, last, durable = entries.first, entries.last, self.log.last_index()
        check(first == self.applied + 1, "group %d applies entry %d after entry %d", self.id, first, self.applied)
        check(last <= durable, "group %d applies entry %d, its log is durable to %d", self.id, last, durable)
        outcomes = self.machine.apply(entries)
        check(len(outcomes) == len(entries.terms), "%d outcomes for %d entries", len(outcomes), len(entries.terms))
        self.applied = last
        if self.proposals:
            self._answer(entries, outcomes)
        if self.apply_waiting:
            self.release_applied()

    def _answer(self, entries: Entries, outcomes: list[Outcome]) -> None:
        for offset, outcome in enumerate(outcomes):
            proposal = self.proposals.pop(entries.first + offset, None)
            if proposal is None or proposal.done.done():
                continue
            if proposal.term == entries.terms[offset]:
                proposal.done.set_result(outcome)
            else:  # another leader's entry stands there: ours can never be committed
                proposal.done.set_exception(self.not_leader())

    def lead_lost(self) -> None:
        """Whether what was proposed here comes to stand is for others to decide: the proposers ask again, by its id."""
        self.snapshots_sent.clear()
        self.news_owed.clear()
        for index in list(self.proposals):
            self.answer_unknown(index)

    def end(self) -> None:
        """The replica goes: whoever waits for it looks elsewhere."""
        self.closed = True
        self.lead_lost()
        waiting = [*self.reads_unsent, *(waiter for _, waiter in self.apply_waiting)]
        waiting += [waiter for started in self.read_rounds.values() for waiter in started.waiting]
        self.reads_unsent, self.apply_waiting, self.read_rounds = [], [], {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(NotLeader(0, f"this node has no replica of group {self.id} any more"))

    def answer_unknown(self, index: int) -> None:
        """Nobody waits here any more for what was proposed at an index."""
        proposal = self.proposals.pop(index, None)
        if proposal is not None and not proposal.done.done():
            proposal.done.set_exception(
                OutcomeUnknown(f"the lead of group {self.id} was lost: the request may still take effect")
            )

    def require_members(self) -> None:
        """CallerError while who won a forced reconfiguration is alone: what it took would stand on one disk only."""
        members, chosen = self.raw.configuration, self.log.chosen
        if chosen and members.incoming == (chosen,) and members.learners:
            raise CallerError(
                Status.PARTITION_NOT_READY, f"group {self.id} begins anew, its members are being filled: try again"
            )

    def release_applied(self) -> None:
        """Wake those who wait until an index is applied."""
        if not self.apply_waiting:
            return
        still: list[tuple[int, asyncio.Future[int]]] = []
        for index, waiter in self.apply_waiting:
            if index > self.applied and not waiter.done():
                still.append((index, waiter))
            elif not waiter.done():
                waiter.set_result(self.applied)
        self.apply_waiting = still

    def not_leader(self) -> CallerError:
        leader = 0 if self.leads else self.leader_node
        where = f"node {leader} leads it" if leader else "it has no leader at the moment: try again"
        return NotLeader(leader, f"this node does not lead group {self.id}; {where}")
