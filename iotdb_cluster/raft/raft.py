"""The core: time and messages in; terms are compared here, then the role decides."""

from __future__ import annotations

from typing import Final

from iotdb_cluster.raft import election
from iotdb_cluster.raft.core import Core
from iotdb_cluster.raft.follower import step_candidate, step_follower
from iotdb_cluster.raft.leader import step_leader
from iotdb_cluster.raft.message import (
    NO_NODE,
    Entries,
    EntryKind,
    Message,
    MessageType,
    ProposalDropped,
    Role,
)

__all__ = ["Raft"]

_STEPS: Final = (step_follower, step_candidate, step_leader, step_candidate)  # by role


class Raft(Core):
    __slots__ = ()

    # --- time -------------------------------------------------------------------------------------------------------
    def tick(self, count: int = 1) -> None:
        """`count` ticks have passed; several at once do what several calls would, once."""
        self.election_elapsed += count
        if self.role is Role.LEADER:
            self.heartbeat_elapsed += count
            if self.election_elapsed >= self.config.election_tick:
                self._end_of_election_timeout()
            if self.heartbeat_elapsed >= self.config.heartbeat_tick and self.role is Role.LEADER:
                self.heartbeat_elapsed = 0
                self.step(Message(MessageType.BEAT, source=self.id))
        elif self.election_elapsed >= self.election_timeout and self.promotable:
            self.election_elapsed = 0
            self.step(Message(MessageType.HUP, source=self.id))

    def _end_of_election_timeout(self) -> None:
        self.election_elapsed = 0
        if self.config.check_quorum:
            self.step(Message(MessageType.CHECK_QUORUM, source=self.id))
        if self.role is Role.LEADER:
            self.transferee = NO_NODE  # it had its time

    @property
    def ticks_left(self) -> int:
        """Ticks until something can happen by itself, at least 1; where nothing can, an election timeout."""
        config = self.config
        if self.role is Role.LEADER:
            heartbeat = config.heartbeat_tick - self.heartbeat_elapsed
            return max(1, min(heartbeat, config.election_tick - self.election_elapsed))
        if not self.promotable:
            return config.election_tick
        return max(1, self.election_timeout - self.election_elapsed)

    # --- messages ---------------------------------------------------------------------------------------------------
    def step(self, message: Message) -> None:
        """Raises ProposalDropped."""
        term = message.term
        if term and term != self.term:
            if term < self.term:
                self._step_old(message)
                return
            if not self._meet_higher_term(message):
                return
        kind = message.type
        if kind is MessageType.HUP:
            election.hup(self, pre=self.config.pre_vote)
        elif kind is MessageType.STORAGE_APPEND_RESP:
            if message.index:
                self.log.stable_to(message.log_term, message.index)
            if message.snapshot is not None:
                self._snapshot_installed(message.snapshot.index)
        elif kind is MessageType.STORAGE_APPLY_RESP:
            if message.entries.terms:
                self.entries_applied(message.entries)
        elif kind is MessageType.VOTE or kind is MessageType.PRE_VOTE:
            election.answer_vote(self, message)
        else:
            _STEPS[self.role](self, message)

    def _meet_higher_term(self, message: Message) -> bool:
        """Take over a higher term where the message proves that it has begun; False where it is to be ignored."""
        kind = message.type
        if kind is MessageType.VOTE or kind is MessageType.PRE_VOTE:
            if election.in_lease(self) and message.context != election.TRANSFER:
                return False
            if kind is MessageType.PRE_VOTE:
                return True  # only asked: nobody is in that term yet
        elif kind is MessageType.PRE_VOTE_RESP and not message.reject:
            return True  # the term that this replica asked for
        from_leader = kind is MessageType.APP or kind is MessageType.HEARTBEAT or kind is MessageType.SNAP
        self.become_follower(message.term, message.source if from_leader else NO_NODE)
        return True

    def _step_old(self, message: Message) -> None:
        """A message of a lower term."""
        kind = message.type
        if kind is MessageType.HEARTBEAT or kind is MessageType.APP:
            if self.config.check_quorum or self.config.pre_vote:
                # This replica does not disturb the leader of a lower term by a campaign (lease, pre-vote), so it
                # shows it the higher term; else the two would never get together.
                self.send(Message(MessageType.APP_RESP, message.source))
        elif kind is MessageType.PRE_VOTE:
            # So that a replica with a lower term and an older log learns of it.
            self.send(Message(MessageType.PRE_VOTE_RESP, message.source, term=self.term, reject=True))
        elif kind is MessageType.STORAGE_APPEND_RESP and message.snapshot is not None:
            # Entries may have been replaced since, in the same term and place (A-B-A); a snapshot cannot be.
            self._snapshot_installed(message.snapshot.index)

    # --- applying ---------------------------------------------------------------------------------------------------
    def _snapshot_installed(self, index: int) -> None:
        self.log.stable_snapshot_to(index)
        self.applied_to(index, 0)

    def entries_applied(self, entries: Entries) -> None:
        self.applied_to(entries.last, entries.byte_size)
        self.uncommitted_bytes = max(0, self.uncommitted_bytes - entries.payload_bytes)

    def applied_to(self, index: int, size: int) -> None:
        """Entries up to `index`, of `size` bytes, are applied; leaves a joint configuration that is to be left."""
        self.log.applied_to(max(index, self.log.applied), size)
        if self.configuration.auto_leave and self.role is Role.LEADER and self.log.applied >= self.pending_conf_index:
            # Dropped where it comes at a bad time; the next application tries again.
            try:
                self.step(Message(MessageType.PROP, entries=Entries(0, [0], [EntryKind.CONF_CHANGE], [b""])))
            except ProposalDropped:
                return
