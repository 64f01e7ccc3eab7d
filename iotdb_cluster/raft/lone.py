"""Lone entries: the steps of a group to which entries come one by one, without a message object for each.

With many groups under load nearly every step is one of few: a leader takes an entry, a follower gets it, an
acknowledgement comes, the disk has it. Here each of these is one function. It does at once what the message through
`Raft.step` does, or returns REFUSED and has changed nothing: then the message is stepped. What such a step sends and
writes is no message: the caller knows it from what it asked and from the answer, and does it.

So that the caller may do it at once, ahead of the next `Ready`, a step is taken only where nothing that a `Ready` would
hand out has to come before it: the log writer was given all entries, and for an entry of a leader no message waits. A
leader takes one only where every other member is in step and its window is not full. With more than `ENTRIES_MAX` on
their way to the disk, messages with many entries each are better.
"""

from __future__ import annotations

from typing import Final

from iotdb_cluster.errors import check
from iotdb_cluster.raft.core import Core
from iotdb_cluster.raft.message import ENTRY_OVERHEAD_BYTES, Entries, EntryKind, MessageType, Role
from iotdb_cluster.raft.progress import ProgressState

__all__ = [
    "COMMITTED",
    "ENTRIES_MAX",
    "LONE_BYTES_MAX",
    "NEWS",
    "REFUSED",
    "SPOKEN",
    "TAKEN",
    "acknowledged",
    "append",
    "propose",
]

LONE_BYTES_MAX: Final = 16 * 1024  # a larger entry costs more than its messages
ENTRIES_MAX: Final = 8  # that are not durable yet
_ASIDE: Final = (MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP)  # go another way than appends
_NORMAL: Final = EntryKind.NORMAL
_LEADER: Final = Role.LEADER
_FOLLOWER: Final = Role.FOLLOWER
_REPLICATE: Final = ProgressState.REPLICATE

# What became of a step.
REFUSED: Final = 0
TAKEN: Final = 1
NEWS: Final = 2  # the member that acknowledged is to be told the commit index
COMMITTED: Final = 3  # every other member is to be told the commit index
SPOKEN: Final = 4  # the same, and messages that do it wait for `Ready`


def propose(core: Core, payload: bytes) -> tuple[Entries, int, int] | None:
    """A leader takes one entry: itself, the term of the one before, the commit index that goes with it.

    It is to be written, and to be sent to every other member as an append of its own.
    """
    log = core.log
    size = len(payload)
    waiting = core.uncommitted_bytes
    last = log.last_given(ENTRIES_MAX)
    members = core.progress
    if (
        not last
        or core.role is not _LEADER
        or core.after_append
        or core.transferee
        or (core.messages and not all(message.type in _ASIDE for message in core.messages))
        or size > LONE_BYTES_MAX
        or core.id not in members
        or (waiting and waiting + size > core.config.uncommitted_bytes_max)
    ):
        return None
    cost = size + ENTRY_OVERHEAD_BYTES
    index = last + 1
    for member in core.other_ids:
        progress = members[member]
        if (
            progress.next != index
            or progress.paused
            or progress.state is not _REPLICATE
            or not progress.inflights.has_room(1, cost)
        ):
            return None
    core.uncommitted_bytes = waiting + size
    commit = log.committed
    log_term = log.term(last)
    entry = Entries(index, [core.term], [_NORMAL], [payload])
    log.append_given(entry)
    for member in core.other_ids:
        members[member].sent_one(index, cost, commit)
    return entry, log_term, commit


def append(core: Core, source: int, log_term: int, commit: int, entry: Entries) -> int:
    """A follower gets an entry, which is a normal one of the leader's term, from its leader; it follows `log_term`.

    It is to be written, and acknowledged once it is durable.
    """
    log = core.log
    index = entry.first - 1
    if (
        not index
        or index != log.last_given(ENTRIES_MAX)
        or entry.terms[0] != core.term
        or core.leader != source
        or core.role is not _FOLLOWER
        or core.after_append
        or len(entry.data[0]) > LONE_BYTES_MAX
        or not log.matches(log_term, index)
    ):
        return REFUSED
    core.election_elapsed = 0
    log.append_given(entry)
    log.commit_to(min(commit, index + 1))
    return TAKEN


def acknowledged(core: Core, source: int, term: int, index: int) -> int:
    """A leader hears that a member, which may be itself, has the log up to `index` on its disk."""
    if term != core.term or core.role is not _LEADER or core.transferee or core.pending_reads:
        return REFUSED
    progress = core.progress.get(source)
    if progress is None or progress.state is not _REPLICATE:
        return REFUSED
    log = core.log
    last = log.last_index
    if source != core.id and progress.next != last + 1:
        return REFUSED
    check(index <= last, "member %d acknowledges %d, the log ends at %d", source, index, last)
    progress.active = True
    if not progress.maybe_update(index):
        return TAKEN
    progress.inflights.free_to(index)
    if index > log.committed and core.maybe_commit():
        if not _in_step(core, last + 1):
            core.broadcast_append()
            return SPOKEN
        for member in core.other_ids:
            core.progress[member].sent_commit = log.committed
        return COMMITTED
    if source != core.id and progress.can_bump_commit(log.committed):
        progress.sent_entries(0, 0)
        progress.sent_commit = log.committed
        return NEWS
    return TAKEN


def _in_step(core: Core, following: int) -> bool:
    """Whether every other member gets appends as they come, was sent all before `following`, and has room for more."""
    for member in core.other_ids:
        progress = core.progress[member]
        if progress.next != following or progress.paused or progress.state is not _REPLICATE or progress.inflights.full:
            return False
    return True
