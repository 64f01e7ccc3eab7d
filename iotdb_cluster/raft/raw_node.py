"""One replica of a group, without I/O and without a clock.

The owner feeds it time (`tick`), messages (`step`) and proposals; whenever `has_ready()` it takes `ready()` and does
what stands there. There are two ways to say that it is done:

* synchronous: write `hard_state`, `entries` and `snapshot` and sync them, then send `messages`, apply `committed`, and
  call `advance()` before the next `ready()`;
* `async_storage_writes`: everything to do is a message. Peers' messages go out at once. One to LOCAL_APPEND is a
  write for the log (hard state in term, vote and commit where `term` is set; entries or a snapshot), one to LOCAL_APPLY
  is work for the state machine; done, its `responses` are delivered, to peers or by `step` to this replica. Each of the
  two works in order; many may be under way.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from typing import Final

from iotdb_cluster.errors import check
from iotdb_cluster.raft import lone
from iotdb_cluster.raft.config import Config
from iotdb_cluster.raft.membership import Configuration
from iotdb_cluster.raft.message import (
    LOCAL_APPEND,
    LOCAL_APPLY,
    NO_ENTRIES,
    NO_NODE,
    ConfChange,
    ConfState,
    Entries,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ReadState,
    Role,
    Snapshot,
    UnknownPeer,
    encode_conf_change,
)
from iotdb_cluster.raft.progress import Progress, ProgressState
from iotdb_cluster.raft.raft import Raft

__all__ = ["MemberStatus", "RawNode", "Ready", "SoftState", "Status"]

GONE_TICKS = 2  # between the elections of two voters who hear that the leader's process has ended
_LOCAL: Final = frozenset(
    (
        MessageType.HUP.value,
        MessageType.BEAT.value,
        MessageType.UNREACHABLE.value,
        MessageType.SNAP_STATUS.value,
        MessageType.CHECK_QUORUM.value,
        MessageType.STORAGE_APPEND.value,
        MessageType.STORAGE_APPEND_RESP.value,
        MessageType.STORAGE_APPLY.value,
        MessageType.STORAGE_APPLY_RESP.value,
    )
)
_RESPONSES: Final = frozenset(
    (
        MessageType.APP_RESP.value,
        MessageType.VOTE_RESP.value,
        MessageType.HEARTBEAT_RESP.value,
        MessageType.READ_INDEX_RESP.value,
        MessageType.PRE_VOTE_RESP.value,
    )
)


_FROM_LEADER: Final = frozenset((MessageType.APP.value, MessageType.HEARTBEAT.value, MessageType.SNAP.value))


@dataclass(frozen=True, slots=True)
class SoftState:
    leader: int
    role: Role


@dataclass(slots=True)
class Ready:
    """What is to be done now; see the module. What did not change is None or empty."""

    soft_state: SoftState | None = None
    hard_state: HardState | None = None
    read_states: list[ReadState] = field(default_factory=list)
    entries: Entries = NO_ENTRIES
    snapshot: Snapshot | None = None
    committed: Entries = NO_ENTRIES
    messages: list[Message] = field(default_factory=list)
    must_sync: bool = False  # term, vote or entries changed: the write must be durable before it counts


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member as its leader sees it."""

    match: int
    next: int
    state: ProgressState
    learner: bool
    active: bool
    paused: bool
    pending_snapshot: int
    inflight: int
    inflight_full: bool


@dataclass(frozen=True, slots=True)
class Status:
    """`progress` is empty unless this replica leads."""

    id: int
    hard_state: HardState
    leader: int
    role: Role
    applied: int
    transferee: int
    configuration: Configuration
    progress: dict[int, MemberStatus]


class RawNode:
    """See the module."""

    __slots__ = ("_after_advance", "_async", "_hard", "_leader", "_raft", "_role")

    def __init__(self, config: Config) -> None:
        self._raft = Raft(config)
        self._async = config.async_storage_writes
        self._leader = self._raft.leader
        self._role = self._raft.role
        self._hard = self._hard_state()
        self._after_advance: list[Message] = []

    # --- what it is -------------------------------------------------------------------------------------------------
    @property
    def id(self) -> int:
        return self._raft.id

    @property
    def leader(self) -> int:
        """Replica id of the leader as far as known, or 0."""
        return self._raft.leader

    @property
    def role(self) -> Role:
        return self._raft.role

    @property
    def is_leader(self) -> bool:
        return self._raft.role is Role.LEADER

    @property
    def term(self) -> int:
        return self._raft.term

    @property
    def vote(self) -> int:
        return self._raft.vote

    @property
    def commit(self) -> int:
        return self._raft.log.committed

    @property
    def applied(self) -> int:
        return self._raft.log.applied

    @property
    def last_index(self) -> int:
        """Index of the last entry, durable or not."""
        return self._raft.log.last_index

    @property
    def configuration(self) -> Configuration:
        return self._raft.configuration

    @property
    def conf_state(self) -> ConfState:
        return self._raft.configuration.conf_state()

    @property
    def configured(self) -> int:
        """Index up to which entries do not change the members: the configuration was stored, or received, with them."""
        return self._raft.restored_index

    @property
    def restoring(self) -> int:
        """Index of a received snapshot that is not installed yet, or 0."""
        snapshot = self._raft.log.snapshot
        return 0 if snapshot is None else snapshot.index

    @property
    def transferee(self) -> int:
        """Who is about to take over from this leader, or 0."""
        return self._raft.transferee

    @property
    def committed_in_term(self) -> bool:
        """Whether an entry of the current term is committed; before that a leader answers no read."""
        return self._raft.committed_in_term

    @property
    def quiet(self) -> bool:
        """On a leader: every member has all entries and was sent the commit index, and nothing waits here."""
        raft = self._raft
        log = raft.log
        last = log.last_index
        if raft.role is not Role.LEADER or log.committed != last or log.applied != last or raft.read_index.waiting:
            return False
        return all(_has_all(progress, last) for _, progress in raft.others())

    def member_is_quiet(self, member: int) -> bool:
        """On a leader: all entries are committed, the member has them all and was sent the commit index."""
        raft = self._raft
        progress = raft.progress.get(member)
        last = raft.log.last_index
        return (
            raft.role is Role.LEADER
            and raft.log.committed == last
            and progress is not None
            and _has_all(progress, last)
        )

    @property
    def member_count(self) -> int:
        """Members of every kind, this replica included where it is one."""
        return len(self._raft.progress)

    def status(self) -> Status:
        raft = self._raft
        progress = {member: _describe(one) for member, one in raft.progress.items()} if self.is_leader else {}
        return Status(
            raft.id,
            self._hard_state(),
            raft.leader,
            raft.role,
            raft.log.applied,
            raft.transferee,
            raft.configuration,
            progress,
        )

    def _hard_state(self) -> HardState:
        raft = self._raft
        return HardState(raft.term, raft.vote, raft.log.committed)

    # --- time -------------------------------------------------------------------------------------------------------
    def tick(self, count: int = 1) -> None:
        self._raft.tick(count)

    @property
    def ticks_left(self) -> int:
        """Ticks until something may happen by itself, at least 1."""
        return self._raft.ticks_left

    def leader_is_alive(self) -> None:
        """On a follower: its leader of this term was heard of by another way; counts as an empty heartbeat."""
        self._raft.election_elapsed = 0

    def leader_is_gone(self, busy: bool) -> None:
        """On a follower: its leader's process has ended. It votes for others at once, and an election comes soon.

        As if the clock had run fast: nothing but how soon there is another leader depends on it. The voters behind the
        leader, in the order of their ids, begin one after another, so that they do not split the votes. One that is
        `busy` leaves them an election timeout.
        """
        raft = self._raft
        if raft.election_elapsed >= raft.config.election_tick or not raft.promotable:
            return
        voters = raft.configuration.voters
        place = (bisect(voters, raft.id) - bisect(voters, raft.leader) - 1) % len(voters)
        raft.election_elapsed = raft.config.election_tick
        last = 2 * raft.config.election_tick
        raft.election_timeout = last if busy else min(last, raft.election_elapsed + 1 + GONE_TICKS * place)

    def commit_known(self, commit: int) -> None:
        """On a follower: its leader of this term told by another way that it has committed so far; as a heartbeat.

        The leader names no more than this replica has acknowledged in this term.
        """
        self._raft.election_elapsed = 0
        self._raft.log.commit_to(commit)

    def member_has(self, member: int, index: int) -> bool:
        """On a leader: whether the member is known to have the entries up to `index`, and gets them in order."""
        progress = self._raft.progress.get(member)
        return progress is not None and progress.state is ProgressState.REPLICATE and progress.match >= index

    def member_match(self, member: int) -> int:
        """On a leader: the last index that the member is known to have, 0 where it is no member."""
        progress = self._raft.progress.get(member)
        return 0 if progress is None else progress.match

    def member_is_alive(self, member: int) -> None:
        """On a leader: the member, which acknowledges this term, was heard of by another way."""
        progress = self._raft.progress.get(member)
        if progress is not None:
            progress.active = True

    # --- input ------------------------------------------------------------------------------------------------------
    def step(self, message: Message) -> None:
        """A message from a peer or a response of the log writer or state machine.

        Raises UnknownPeer for what no member can have sent, ProposalDropped for a forwarded proposal that is not taken.
        """
        kind = message.type
        if message.source < LOCAL_APPLY:
            if kind in _LOCAL:
                raise UnknownPeer(f"a message of type {kind} is local, {message.source} sent it")
            if kind in _RESPONSES and message.source not in self._raft.progress and message.source != self._raft.id:
                raise UnknownPeer(f"{message.source} is no member")
            if message.term == self._raft.term and kind in _FROM_LEADER:
                self._check_leader(message.source)
        self._raft.step(message)

    def _check_leader(self, source: int) -> None:
        raft = self._raft
        lead = raft.leader
        one = lead in (source, NO_NODE) or not raft.config.check_single_leader
        check(one, "replica %d: term %d has two leaders, %d and %d", raft.id, raft.term, lead, source)

    def campaign(self) -> None:
        """Start an election now."""
        self._raft.step(Message(MessageType.HUP))

    def propose(self, data: list[bytes]) -> tuple[int, int] | None:
        """Append payloads as one run of entries: (term, index of the first) on the leader, None where forwarded.

        An entry is decided when one is applied at its index: this one if the term is the same. Raises ProposalDropped,
        and then nothing was appended.
        """
        return self._propose([EntryKind.NORMAL] * len(data), data)

    def propose_conf_change(
        self, change: ConfChange, kind: EntryKind = EntryKind.CONF_CHANGE
    ) -> tuple[int, int] | None:
        """As `propose`. Where it cannot be taken now the leader appends an empty entry instead: see what is applied."""
        check(
            kind is EntryKind.CONF_CHANGE or (kind is EntryKind.CONF_CHANGE_SINGLE and len(change.changes) == 1),
            "entry kind %d for %d changes",
            kind,
            len(change.changes),
        )
        return self._propose([kind], [encode_conf_change(change)])

    def _propose(self, kinds: list[int], data: list[bytes]) -> tuple[int, int] | None:
        raft = self._raft
        first = raft.log.last_index + 1
        leads = raft.role is Role.LEADER
        raft.step(Message(MessageType.PROP, source=raft.id, entries=Entries(0, [0] * len(data), kinds, data)))
        return (raft.term, first) if leads else None

    def apply_conf_change(self, change: ConfChange, index: int | None = None) -> ConfState:
        """To be called when a configuration entry is applied; the returned configuration is to be stored.

        With `index`, the entry's, a change that a received snapshot already holds does nothing: with asynchronous
        writes entries may still be on their way to the state machine when a snapshot overtakes them.
        """
        if index is not None and index <= self._raft.restored_index:
            return self.conf_state
        return self._raft.apply_conf_change(change)

    def read_index(self, context: bytes) -> None:
        """Ask for an index; a `ReadState` with `context` follows, or nothing: then ask again."""
        self._raft.step(Message(MessageType.READ_INDEX, context=context))

    def report_unreachable(self, member: int) -> None:
        """What was sent to the member is probably lost."""
        self._raft.step(Message(MessageType.UNREACHABLE, source=member))

    def report_snapshot(self, member: int, *, ok: bool) -> None:
        """Whether the snapshot that was sent to the member has arrived there. Without a report nothing more is sent."""
        self._raft.step(Message(MessageType.SNAP_STATUS, source=member, reject=not ok))

    def transfer_leader(self, target: int) -> None:
        """Hand the lead over; until the target has it, or an election timeout, proposals are dropped."""
        self._raft.step(Message(MessageType.TRANSFER_LEADER, source=target))

    def entries_read(self) -> None:
        """The log has in memory what it refused before (`NotInMemory`): applying, or sending it, goes on."""
        self._raft.entries_read()

    def forget_leader(self) -> None:
        """On a follower: vote as if the leader had not been heard of; the election timeout goes on."""
        self._raft.step(Message(MessageType.FORGET_LEADER))

    # --- output -----------------------------------------------------------------------------------------------------
    def has_ready(self, applying: bool = True) -> bool:
        """Whether there is something to be done; without `applying`, beside what is to be applied."""
        raft = self._raft
        log = raft.log
        if raft.messages or raft.after_append or raft.read_states or log.has_next_unstable:
            return True
        hard = self._hard
        if log.committed != hard.commit or raft.term != hard.term or raft.vote != hard.vote:
            return True
        if raft.leader != self._leader or raft.role is not self._role:
            return True
        if log.snapshot is not None:
            return not log.snapshot_in_progress
        return applying and log.applying < log.committed and log.has_next_committed(not self._async)

    def ready(self, applying: bool = True) -> Ready:
        """Take what is to be done; it counts as in hand from now on. Without `applying`, nothing to apply."""
        raft = self._raft
        log = raft.log
        check(not self._after_advance, "ready() before advance()")
        ready = Ready(messages=raft.messages, read_states=raft.read_states, entries=log.next_unstable())
        if applying:
            ready.committed = log.next_committed(not self._async)
        ready.snapshot = log.next_snapshot
        if raft.leader != self._leader or raft.role is not self._role:
            self._leader, self._role = raft.leader, raft.role
            ready.soft_state = SoftState(raft.leader, raft.role)
        before, hard = self._hard, self._hard_state()
        if hard != before:
            _check_hard_state(raft.id, before, hard)
            ready.hard_state = self._hard = hard
        ready.must_sync = bool(ready.entries.terms) or hard.vote != before.vote or hard.term != before.term
        if self._async:
            self._ask_storage(ready)
        else:
            self._expect_advance(ready)
        raft.messages, raft.after_append, raft.read_states = [], [], []
        log.accept_unstable()
        committed = ready.committed
        if committed.terms:
            log.accept_applying(committed.last, committed.byte_size, not self._async)
        return ready

    # --- lone entries, with asynchronous writes; see `lone` -------------------------------------------------------
    def lone_propose(self, payload: bytes) -> tuple[Entries, int, int] | None:
        """As `lone.propose`; None where it has to be proposed otherwise."""
        raft, hard = self._raft, self._hard
        if raft.term != hard[0] or raft.vote != hard[1]:
            return None
        return lone.propose(raft, payload)

    def lone_append(self, source: int, log_term: int, commit: int, entry: Entries) -> int:
        """As `step` of an append of one normal entry of its own term; REFUSED where it has to be stepped."""
        raft, hard = self._raft, self._hard
        if raft.term != hard[0] or raft.vote != hard[1] or raft.leader != self._leader:
            return lone.REFUSED
        return lone.append(raft, source, log_term, commit, entry)

    def lone_acknowledged(self, source: int, term: int, index: int) -> int:
        """As `step` of a member's acknowledgement; REFUSED where it has to be stepped."""
        return lone.acknowledged(self._raft, source, term, index)

    def lone_durable(self, term: int, index: int) -> int:
        """The entries that were appended in `term`, up to `index`, are on the disk."""
        raft = self._raft
        if term != raft.term:
            return lone.TAKEN  # another term has begun since: it may have been replaced there
        outcome = lone.TAKEN
        if raft.role is Role.LEADER:
            outcome = lone.acknowledged(raft, raft.id, term, index)
            if outcome == lone.REFUSED:
                raft.step(Message(MessageType.APP_RESP, raft.id, raft.id, term, index=index))
                outcome = lone.SPOKEN
        raft.log.stable_to(term, index)
        return outcome

    def lone_committed(self) -> Entries:
        """What is to be applied now, as in a `Ready`; once it is, that is told by `lone_applied`."""
        raft, hard = self._raft, self._hard
        log = raft.log
        commit = log.committed
        if commit != hard[2]:
            check(commit > hard[2], "replica %d: commit %d after %d", raft.id, commit, hard[2])
            self._hard = tuple.__new__(HardState, (hard[0], hard[1], commit))
        return log.take_durable_committed()

    def lone_applied(self, entries: Entries) -> bool:
        """The state machine has applied the entries of `lone_committed`; whether there is a `Ready` now."""
        raft = self._raft
        log = raft.log
        if raft.configuration.auto_leave:
            raft.entries_applied(entries)
        else:  # the same, at once
            log.applied_to(entries.first + len(entries.terms) - 1, entries.byte_size)
            raft.uncommitted_bytes = max(0, raft.uncommitted_bytes - entries.payload_bytes)
        return bool(raft.messages or raft.after_append) or (log.applying < log.committed and log.has_durable_committed)

    @property
    def applies(self) -> bool:
        """Whether entries are to be applied."""
        return self._raft.log.has_durable_committed

    @property
    def speaks(self) -> bool:
        """Whether messages wait, or the role or the leader is another one: then there is a `Ready`."""
        raft = self._raft
        return bool(raft.messages or raft.after_append) or raft.leader != self._leader or raft.role is not self._role

    @property
    def handed_state(self) -> HardState:
        """The hard state as it was last given to be written, but for the commit index, which may be newer."""
        return self._hard

    @property
    def other_members(self) -> tuple[int, ...]:
        """The members without this replica."""
        return self._raft.other_ids

    def advance(self) -> None:
        """Synchronous mode: everything in the last `ready()` is done."""
        check(not self._async, "advance() with async_storage_writes")
        steps, self._after_advance = self._after_advance, []
        for message in steps:
            self._raft.step(message)

    def _append_response(self, ready: Ready) -> Message | None:
        """What the log writer answers: the log up to its present end is durable."""
        raft = self._raft
        log = raft.log
        if not log.has_unstable and ready.snapshot is None:
            return None
        message = Message(MessageType.STORAGE_APPEND_RESP, raft.id, LOCAL_APPEND, raft.term, snapshot=ready.snapshot)
        if log.has_unstable:
            # Also where nothing new is handed over: an answer in this term replaces one that comes in an old one.
            message.log_term, message.index = log.last_id()
        return message

    def _apply_response(self, committed: Entries) -> Message:
        return Message(MessageType.STORAGE_APPLY_RESP, self._raft.id, LOCAL_APPLY, entries=committed)

    def _ask_storage(self, ready: Ready) -> None:
        raft = self._raft
        hard = ready.hard_state
        if ready.entries.terms or hard is not None or ready.snapshot is not None or raft.after_append:
            responses = raft.after_append
            answer = self._append_response(ready)
            if answer is not None:
                responses.append(answer)
            message = Message(
                MessageType.STORAGE_APPEND,
                LOCAL_APPEND,
                raft.id,
                entries=ready.entries,
                snapshot=ready.snapshot,
                responses=responses,
            )
            if hard is not None:
                message.term, message.vote, message.commit = hard
            ready.messages.append(message)
        if ready.committed.terms:
            answer = self._apply_response(ready.committed)
            ready.messages.append(
                Message(MessageType.STORAGE_APPLY, LOCAL_APPLY, raft.id, entries=ready.committed, responses=[answer])
            )

    def _expect_advance(self, ready: Ready) -> None:
        own = self._raft.id
        for message in self._raft.after_append:
            (self._after_advance if message.to == own else ready.messages).append(message)
        answer = self._append_response(ready)
        if answer is not None:
            self._after_advance.append(answer)
        if ready.committed.terms:
            self._after_advance.append(self._apply_response(ready.committed))


def _has_all(progress: Progress, last: int) -> bool:
    return progress.match == last and progress.sent_commit == last and progress.state is ProgressState.REPLICATE


def _check_hard_state(replica: int, before: HardState, now: HardState) -> None:
    """The term never decreases, there is one vote a term, and the commit index never decreases."""
    check(now.term >= before.term, "replica %d: term %d after %d", replica, now.term, before.term)
    once = now.term > before.term or before.vote in (NO_NODE, now.vote)
    check(once, "replica %d votes for %d and %d in term %d", replica, before.vote, now.vote, now.term)
    check(now.commit >= before.commit, "replica %d: commit %d after %d", replica, now.commit, before.commit)


def _describe(progress: Progress) -> MemberStatus:
    return MemberStatus(
        progress.match,
        progress.next,
        progress.state,
        progress.learner,
        progress.active,
        progress.is_paused,
        progress.pending_snapshot,
        len(progress.inflights),
        progress.inflights.full,
    )
