"""State of one replica, what it sends, and how it changes its role; how it reacts stands in the role modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from iotdb_cluster.errors import check
from iotdb_cluster.raft.config import Config
from iotdb_cluster.raft.log import RaftLog
from iotdb_cluster.raft.membership import ChangeRefused, Configuration, Members, apply_change, restore
from iotdb_cluster.raft.message import (
    NO_NODE,
    Compacted,
    ConfChange,
    ConfState,
    EntryKind,
    Message,
    MessageType,
    NotInMemory,
    ReadState,
    Role,
    Snapshot,
    SnapshotNotReady,
    Unavailable,
)
from iotdb_cluster.raft.progress import Inflights, Progress, ProgressState
from iotdb_cluster.raft.quorum import VoteResult, joint_committed_index, joint_vote_result
from iotdb_cluster.raft.read_index import ReadIndex

__all__ = ["Core"]

_WITH_OWN_TERM: Final = frozenset(
    (MessageType.VOTE.value, MessageType.VOTE_RESP.value, MessageType.PRE_VOTE.value, MessageType.PRE_VOTE_RESP.value)
)
_WITHOUT_TERM: Final = frozenset((MessageType.PROP.value, MessageType.READ_INDEX.value))
_AFTER_APPEND: Final = frozenset(
    (MessageType.APP_RESP.value, MessageType.VOTE_RESP.value, MessageType.PRE_VOTE_RESP.value)
)


class Core:
    """`messages` may go out at once; `after_append` only when what was appended before is durable."""

    __slots__ = (
        "after_append",
        "awaits_entries",
        "config",
        "configuration",
        "election_elapsed",
        "election_timeout",
        "heartbeat_elapsed",
        "id",
        "is_learner",
        "leader",
        "log",
        "messages",
        "other_ids",
        "pending_conf_index",
        "pending_reads",
        "progress",
        "read_index",
        "read_states",
        "restored_index",
        "role",
        "term",
        "transferee",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(self, config: Config) -> None:
        config.verify()
        self.config = config
        self.id = config.id
        self.log = RaftLog(config.log, config.committed_bytes_per_ready_max, config.committed_entries_per_ready_max)
        self.term = 0
        self.vote = NO_NODE
        self.role = Role.FOLLOWER
        self.leader = NO_NODE
        self.transferee = NO_NODE  # who is to take over the lead
        self.is_learner = False
        self.messages: list[Message] = []
        self.after_append: list[Message] = []
        self.read_states: list[ReadState] = []
        self.read_index = ReadIndex()
        self.awaits_entries: set[int] = set()  # members to which entries go that are being read from the disk
        self.pending_reads: list[Message] = []  # came before the first commit of the leader's term
        self.pending_conf_index = 0  # of the newest configuration entry that may not be applied yet
        self.restored_index = config.configured  # the configuration is at least that of this index
        self.uncommitted_bytes = 0
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.election_timeout = 0
        self.votes: dict[int, bool] = {}
        self.configuration = Configuration()
        self.progress: dict[int, Progress] = {}
        self.other_ids: tuple[int, ...] = ()  # of `progress`, without its own
        hard, state = config.log.initial_state()
        self._switch(restore(state, self._new_member))
        check(self._same_members(state), "configuration %s is not what %s gives", self.configuration, state)
        check(hard.commit <= self.log.last_index, "stored commit %d, last index %d", hard.commit, self.log.last_index)
        self._check_term(hard.term)
        self.term, self.vote = hard.term, hard.vote
        self.log.commit_to(hard.commit)
        # Nothing but a committed entry changes the stored configuration; that has its own word on the disk.
        self.log.commit_to(max(hard.commit, min(config.configured, self.log.last_index)))
        if config.applied:
            # What was applied was committed, even where the commit index did not get to the disk in time.
            self.log.begin_applied(config.applied)
        self.become_follower(self.term, NO_NODE)

    def _check_term(self, term: int) -> None:
        """An entry is written with its term or after it; what stands before the log may come from elsewhere."""
        log = self.log
        if log.last_index >= log.first_index:
            last_term, last = log.last_id()
            check(last_term <= term, "stored term %d, but entry %d is of term %d", term, last, last_term)

    def _same_members(self, state: ConfState) -> bool:
        own = self.configuration.conf_state()
        return (
            all(
                tuple(sorted(a)) == b
                for a, b in (
                    (state.voters, own.voters),
                    (state.learners, own.learners),
                    (state.voters_outgoing, own.voters_outgoing),
                    (state.learners_next, own.learners_next),
                )
            )
            and state.auto_leave == own.auto_leave
        )

    # --- questions --------------------------------------------------------------------------------------------------
    @property
    def promotable(self) -> bool:
        """Whether it may lead: a voter, and not about to install a snapshot."""
        progress = self.progress.get(self.id)
        return progress is not None and not progress.learner and self.log.snapshot is None

    @property
    def committed_in_term(self) -> bool:
        """Whether the commit index is known to be that of the newest leader: the entry is of this term."""
        return self.log.term_or_zero(self.log.committed) == self.term

    @property
    def is_singleton(self) -> bool:
        return len(self.configuration.incoming) == 1 and not self.configuration.outgoing

    def others(self) -> Iterator[tuple[int, Progress]]:
        """(id, progress) of every other member, in the order of ids."""
        own = self.id
        for member, progress in self.progress.items():
            if member != own:
                yield member, progress

    def tally(self) -> VoteResult:
        return joint_vote_result(self.configuration.incoming, self.configuration.outgoing, self.votes)

    def quorum_active(self) -> bool:
        active = {member: progress.active for member, progress in self.progress.items() if not progress.learner}
        configuration = self.configuration
        return joint_vote_result(configuration.incoming, configuration.outgoing, active) is VoteResult.WON

    # --- sending ----------------------------------------------------------------------------------------------------
    def send(self, message: Message) -> None:
        """Queue a message; those that promise what is on disk wait for the log writer."""
        kind = message.type
        if message.source == NO_NODE:
            message.source = self.id
        if kind in _WITH_OWN_TERM:
            check(message.term, "a message of type %d without a term", kind)
        else:
            check(not message.term, "a message of type %d with term %d", kind, message.term)
            if kind not in _WITHOUT_TERM:
                message.term = self.term
        if kind in _AFTER_APPEND:
            self.after_append.append(message)
        else:
            check(message.to != self.id, "a message of type %d to itself", kind)
            self.messages.append(message)

    def send_append(self, to: int, *, if_empty: bool = True) -> bool:
        """An append, or the snapshot where the log does not reach back; True where something went out."""
        progress = self.progress[to]
        if progress.paused or progress.state is ProgressState.SNAPSHOT:
            return False
        log = self.log
        previous = progress.next - 1
        try:
            previous_term = log.term(previous)
        except (Compacted, Unavailable):
            return self._send_snapshot(to, progress)
        entries = None
        if previous < log.last_index and not (progress.state is ProgressState.REPLICATE and progress.inflights.full):
            try:
                entries = log.entries(previous + 1, self.config.message_bytes_max)
            except Compacted:
                # What was read of the log is not there any more: only the snapshot helps.
                return if_empty and self._send_snapshot(to, progress)
            except NotInMemory:
                self.awaits_entries.add(to)
                return False
        if entries is None:
            if not if_empty:
                return False
            self.send(Message(MessageType.APP, to, 0, 0, previous_term, previous, log.committed))
            progress.sent_entries(0, 0)
        else:
            self.send(
                Message(MessageType.APP, to, 0, 0, previous_term, previous, log.committed, entries=entries),
            )
            progress.sent_entries(len(entries.terms), entries.byte_size)
        progress.sent_commit = log.committed
        return True

    def _send_snapshot(self, to: int, progress: Progress) -> bool:
        if not progress.active:
            return False
        try:
            snapshot = self.log.take_snapshot()
        except SnapshotNotReady:
            return False
        check(snapshot.index, "an empty snapshot for %d", to)
        progress.become_snapshot(snapshot.index)
        self.send(Message(MessageType.SNAP, to, snapshot=snapshot))
        return True

    def broadcast_append(self) -> None:
        for member, _ in self.others():
            self.send_append(member)

    def broadcast_heartbeat(self) -> None:
        context = self.read_index.heartbeat_context()
        committed = self.log.committed
        for member, progress in self.others():
            # The member may lack what is committed: name no more than it is known to have.
            commit = min(progress.match, committed)
            self.send(Message(MessageType.HEARTBEAT, member, commit=commit, context=context))
            progress.sent_commit = commit

    # --- log --------------------------------------------------------------------------------------------------------
    def append(self, kinds: list[int], data: list[bytes]) -> bool:
        """A leader's own entries; False where too much would be uncommitted."""
        size = sum(map(len, data))
        if size and self.uncommitted_bytes and self.uncommitted_bytes + size > self.config.uncommitted_bytes_max:
            return False
        self.uncommitted_bytes += size
        last = self.log.append_own(self.term, kinds, data)
        # Its own disk's word counts like a member's, and comes the same way.
        self.send(Message(MessageType.APP_RESP, self.id, index=last))
        return True

    def maybe_commit(self) -> bool:
        configuration = self.configuration
        matches = {member: progress.match for member, progress in self.progress.items()}
        index = joint_committed_index(configuration.incoming, configuration.outgoing, matches)
        return self.log.maybe_commit(self.term, index)

    def has_unapplied_conf_changes(self) -> bool:
        return self.log.has_changes(self.log.applied + 1, self.log.committed + 1)

    def entries_read(self) -> None:
        """The log has in memory what it did not have when it was asked."""
        self.log.reading = False
        waiting, self.awaits_entries = self.awaits_entries, set()
        if self.role is Role.LEADER:
            for member, _ in self.others():
                while member in waiting and self.send_append(member, if_empty=False):
                    pass

    # --- roles ------------------------------------------------------------------------------------------------------
    def _reset(self, term: int) -> None:
        if term != self.term:
            check(term > self.term, "term %d after %d", term, self.term)
            self.term = term
            self.vote = NO_NODE
        self.leader = NO_NODE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        ticks = self.config.election_tick
        self.election_timeout = ticks + self.config.random.randrange(ticks)
        self.transferee = NO_NODE
        self.votes = {}
        last = self.log.last_index
        for member, old in self.progress.items():
            match = last if member == self.id else 0
            self.progress[member] = Progress(match, last + 1, self._window(), learner=old.learner)
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.read_index = ReadIndex()
        self.pending_reads = []
        self.awaits_entries = set()

    def become_follower(self, term: int, leader: int) -> None:
        self._reset(term)
        self.leader = leader
        self.role = Role.FOLLOWER

    def become_candidate(self) -> None:
        check(self.role is not Role.LEADER, "a leader of term %d becomes candidate", self.term)
        self._reset(self.term + 1)
        self.vote = self.id
        self.role = Role.CANDIDATE

    def become_pre_candidate(self) -> None:
        """Nothing but the role changes: neither term nor vote."""
        check(self.role is not Role.LEADER, "a leader of term %d becomes pre-candidate", self.term)
        self.votes = {}
        self.leader = NO_NODE
        self.role = Role.PRE_CANDIDATE

    def become_leader(self) -> None:
        check(self.role is not Role.FOLLOWER, "a follower of term %d becomes leader", self.term)
        self._reset(self.term)
        self.leader = self.id
        self.role = Role.LEADER
        own = self.progress[self.id]
        own.become_replicate()
        own.active = True
        # Any entry up to here may be a configuration change that is not applied yet.
        self.pending_conf_index = self.log.last_index
        check(self.append([EntryKind.NORMAL], [b""]), "the first entry of term %d was refused", self.term)

    # --- members ----------------------------------------------------------------------------------------------------
    def _window(self) -> Inflights:
        return Inflights(self.config.inflight_messages_max, self.config.inflight_bytes_max)

    def _new_member(self, learner: bool) -> Progress:
        # Counts as active, so that the leader does not step down before the newcomer could answer.
        return Progress(0, max(self.log.last_index, 1), self._window(), learner=learner, active=True)

    def _switch(self, members: Members) -> None:
        self.configuration = members.configuration
        self.progress = members.progress
        self.other_ids = tuple([member for member in members.progress if member != self.id])
        own = members.progress.get(self.id)
        self.is_learner = own is not None and own.learner

    def members_after(self, change: ConfChange) -> Members:
        """Raises ChangeRefused."""
        return apply_change(Members(self.configuration, self.progress), change, self._new_member)

    def apply_conf_change(self, change: ConfChange) -> ConfState:
        """The configuration after a committed change, in effect from now on."""
        try:
            members = self.members_after(change)
        except ChangeRefused as exception:
            check(False, "committed change %s of %s: %s", change, self.configuration, exception)
            raise
        self._switch(members)
        state = members.configuration.conf_state()
        own = self.progress.get(self.id)
        if own is None or own.learner:
            if self.role is Role.LEADER and self.config.step_down_on_removal:
                self.become_follower(self.term, NO_NODE)
            return state
        if self.role is not Role.LEADER or not state.voters:
            return state
        if self.maybe_commit():  # fewer acknowledgements may be needed now
            self.broadcast_append()
        else:
            for member, _ in self.others():  # newcomers need not wait for a heartbeat
                self.send_append(member, if_empty=False)
        if self.transferee not in self.configuration.voters:
            self.transferee = NO_NODE
        return state

    def restore(self, snapshot: Snapshot) -> bool:
        """Take a received snapshot as the new beginning of the log; False where it is of no use."""
        log = self.log
        if snapshot.index <= log.committed:
            return False
        check(self.role is Role.FOLLOWER, "role %d gets a snapshot", self.role)
        state = snapshot.conf_state
        if self.id not in state.voters and self.id not in state.learners and self.id not in state.voters_outgoing:
            return False
        if log.matches(snapshot.term, snapshot.index):
            log.commit_to(snapshot.index)  # all is here but the news that it is committed
            return False
        log.restore(snapshot)
        self.restored_index = snapshot.index
        self._switch(restore(state, self._new_member))
        check(self._same_members(state), "configuration %s is not what %s gives", self.configuration, state)
        return True
