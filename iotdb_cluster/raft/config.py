"""Settings of one replica."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from iotdb_cluster import limits
from iotdb_cluster.errors import check
from iotdb_cluster.raft.message import LOCAL_APPLY, NO_NODE, LogView

__all__ = ["Config"]


@dataclass(slots=True)
class Config:
    """`id` is the replica's id in its group; `random` decides the election timeouts, so that a seed decides them.

    Times are ticks, sizes bytes as `Entries.byte_size` counts them (`uncommitted`: payloads only). That counts every
    entry, so a limit of bytes is one of entries too.
    `applied` is the last index that the state machine holds at the start; `configured` that of the entry from which the
    stored configuration comes, where that may be later: entries up to there do not change the members again.
    """

    id: int
    log: LogView
    random: Random
    applied: int = 0
    configured: int = 0
    election_tick: int = 10
    heartbeat_tick: int = 1
    pre_vote: bool = True  # ask before a term is counted up: a replica cut off for a while disturbs nobody
    check_quorum: bool = True  # a leader that hears of no majority for an election timeout steps down
    lease_reads: bool = False  # answer reads on the strength of a lease, which trusts the clocks' speed
    async_storage_writes: bool = False
    disable_proposal_forwarding: bool = False
    disable_conf_change_validation: bool = False
    step_down_on_removal: bool = False  # else a removed leader goes on until the others know, and hands over
    message_bytes_max: int = limits.APPEND_BYTES_MAX
    inflight_messages_max: int = limits.INFLIGHT_MESSAGES_MAX
    inflight_bytes_max: int = limits.INFLIGHT_BYTES_MAX  # 0: no limit
    uncommitted_bytes_max: int = limits.UNCOMMITTED_BYTES_MAX
    committed_bytes_per_ready_max: int = limits.COMMITTED_BYTES_PER_READY_MAX
    committed_entries_per_ready_max: int = limits.COMMITTED_ENTRIES_PER_READY_MAX
    reads_waiting_max: int = limits.READS_WAITING_MAX  # for a confirmation; further ones get no answer: ask again
    check_single_leader: bool = True  # stop where a term has two leaders; etcd's harness can make one up

    def verify(self) -> None:
        """InvariantViolation where the settings contradict each other."""
        check(NO_NODE < self.id < LOCAL_APPLY, "replica id %d", self.id)
        check(self.heartbeat_tick > 0, "heartbeat of %d ticks", self.heartbeat_tick)
        check(self.election_tick > self.heartbeat_tick, "election after %d ticks", self.election_tick)
        check(self.inflight_messages_max > 0, "a window of %d messages", self.inflight_messages_max)
        check(
            self.inflight_bytes_max == 0 or self.inflight_bytes_max >= self.message_bytes_max,
            "a window of %d bytes for messages of %d",
            self.inflight_bytes_max,
            self.message_bytes_max,
        )
        check(self.uncommitted_bytes_max > 0, "%d uncommitted bytes", self.uncommitted_bytes_max)
        check(self.reads_waiting_max > 0, "%d waiting reads", self.reads_waiting_max)
        check(self.committed_bytes_per_ready_max > 0, "%d committed bytes", self.committed_bytes_per_ready_max)
        check(self.committed_entries_per_ready_max > 0, "%d committed entries", self.committed_entries_per_ready_max)
        check(self.check_quorum or not self.lease_reads, "lease reads need check_quorum")
