"""Lone entries: the steps of a group to which entries come one by one, without a message object for each.

With many groups under load nearly every step is one of few: a leader takes an entry, a follower gets it, an
acknowledgement comes, the disk has it, the commit index moves. Here each of these is one function. It does what the
message through `Raft.step` does, or returns False and has changed nothing: then the message is stepped. What such a
step would send is *put off* until `work_of`, at the end of the owner's turn, which gives it as numbers (`LoneWork`).
Any other input comes first to `Raft.step` or `Raft.tick`, where `spread` queues the messages that were put off: an
election, a refusal or a lost message thus finds the state that it always finds.

`Core.put_off` is the index of the first entry whose sending (or acknowledgement, by a follower) is put off, 0 where
there is none: all entries from there on are, and the log writer was given exactly those before. `put_off_commits` has
the commit index that each of them goes with. `news_put_off`: the news of a commit waits, for every other member. An
entry is put off only where each of them is in step, and its window will not be full.
"""

from __future__ import annotations

from typing import Final

from iotdb_cluster.errors import check
from iotdb_cluster.raft.core import Core
from iotdb_cluster.raft.message import (
    ENTRY_OVERHEAD_BYTES,
    NO_ENTRIES,
    NO_NODE,
    Entries,
    EntryKind,
    Message,
    MessageType,
    Role,
)
from iotdb_cluster.raft.progress import ProgressState

__all__ = ["LONE_BYTES_MAX", "LoneWork", "acknowledged", "append", "propose", "spread", "work_of"]

LONE_BYTES_MAX: Final = 16 * 1024  # a larger entry costs more than its messages
_ENTRIES_MAX: Final = 8  # of a turn; more than that are better sent together
_NOBODY: Final[tuple[int, ...]] = ()


class LoneWork:
    """What is to be done, as a `Ready` says it otherwise; `entries` are to be written.

    A leader sends each of them to `members` at once, as an append of its own with its index of `commits`; the first
    follows (log_term, its index - 1). A follower acknowledges the last to `leader` once they are durable. `news` are
    those that are to hear of `commit`. `committed` is to be applied.
    """

    __slots__ = ("commit", "commits", "committed", "entries", "leader", "log_term", "members", "news")

    def __init__(self, commit: int) -> None:
        self.commit = commit
        self.entries: Entries = NO_ENTRIES
        self.commits: list[int] = []
        self.log_term = 0
        self.members: tuple[int, ...] = _NOBODY
        self.leader = NO_NODE
        self.news: tuple[int, ...] = _NOBODY
        self.committed: Entries = NO_ENTRIES


# --- input ------------------------------------------------------------------------------------------------------------
def propose(core: Core, payload: bytes) -> int:
    """A leader takes one entry: its index, 0 where it has to be proposed otherwise."""
    log = core.log
    size = len(payload)
    waiting = core.uncommitted_bytes
    if (
        core.role is not Role.LEADER
        or core.news_put_off  # it goes before the entry
        or not _room(core)
        or core.transferee
        or size > LONE_BYTES_MAX
        or core.id not in core.progress
        or (waiting and waiting + size > core.config.uncommitted_bytes_max)
    ):
        return 0
    count = len(core.put_off_commits) + 1
    if not _in_step(core, core.put_off or log.last_index + 1, count, count * (LONE_BYTES_MAX + ENTRY_OVERHEAD_BYTES)):
        return 0
    core.uncommitted_bytes = waiting + size
    return _put_off(core, payload, log.committed)


def append(core: Core, source: int, term: int, log_term: int, index: int, commit: int, payload: bytes) -> bool:
    """A follower gets the entry behind (log_term, index), which is of `term` and a normal one, from its leader."""
    log = core.log
    if (
        term != core.term
        or core.leader != source
        or core.role is not Role.FOLLOWER
        or not _room(core)
        or log.snapshot is not None
        or index != log.last_index
        or len(payload) > LONE_BYTES_MAX
        or not log.matches(log_term, index)
    ):
        return False
    core.election_elapsed = 0
    _put_off(core, payload, 0)
    log.commit_to(min(commit, index + 1))
    return True


def acknowledged(core: Core, source: int, term: int, index: int) -> bool:
    """A leader hears that a member, which may be itself, has the log up to `index` on its disk."""
    if term != core.term or core.role is not Role.LEADER or core.transferee or core.pending_reads:
        return False
    progress = core.progress.get(source)
    if progress is None or progress.state is not ProgressState.REPLICATE:
        return False
    log = core.log
    last = log.last_index
    following = core.put_off or last + 1
    if source != core.id and (
        progress.next != following or (not core.news_put_off and progress.can_bump_commit(log.committed))
    ):
        return False
    check(index <= last, "member %d acknowledges %d, the log ends at %d", source, index, last)
    progress.active = True
    if progress.maybe_update(index):
        progress.inflights.free_to(index)
        if index > log.committed and core.maybe_commit():
            if _in_step(core, following, 0, 0):
                core.news_put_off = True
            else:
                if core.put_off:
                    spread(core)
                core.broadcast_append()
    return True


def _room(core: Core) -> bool:
    """Whether an entry can be put off behind those that are, and whatever the log writer was not given is put off."""
    return len(core.put_off_commits) < _ENTRIES_MAX if core.put_off else not core.log.has_next_unstable


def _put_off(core: Core, payload: bytes, commit: int) -> int:
    last = core.log.append_own(core.term, [EntryKind.NORMAL], [payload])
    if not core.put_off:
        core.put_off = last
    core.put_off_commits.append(commit)
    return last


def _in_step(core: Core, following: int, count: int, size: int) -> bool:
    """Whether every other member gets appends as they come, was sent all before `following`, and has room for more."""
    own = core.id
    for member, progress in core.progress.items():
        if member != own and (
            progress.next != following
            or progress.paused
            or progress.state is not ProgressState.REPLICATE
            or not progress.inflights.has_room(count, size)
        ):
            return False
    return True


def spread(core: Core) -> None:
    """Queue the messages that were put off."""
    first, core.put_off = core.put_off, 0
    commits, core.put_off_commits = core.put_off_commits, []
    leads = core.role is Role.LEADER
    for index, commit in enumerate(commits, first):
        core.send(Message(MessageType.APP_RESP, core.id if leads else core.leader, index=index))
        if leads:
            _send_one(core, index, commit)
    if core.news_put_off:
        core.news_put_off = False
        core.broadcast_append()


def _send_one(core: Core, index: int, commit: int) -> None:
    log = core.log
    entries = log.slice(index, index + 1, LONE_BYTES_MAX)
    for member, progress in core.others():
        core.send(Message(MessageType.APP, member, 0, 0, log.term(index - 1), index - 1, commit, entries=entries))
        progress.sent_entries(1, entries.byte_size)
        progress.sent_commit = commit


# --- output -----------------------------------------------------------------------------------------------------------
def work_of(core: Core) -> LoneWork:
    """What was put off, and what may be applied. The owner has seen that nothing else waits for a `Ready`."""
    log = core.log
    work = LoneWork(log.committed)
    if core.put_off:
        work.entries = log.next_unstable()
        work.commits, core.put_off_commits = core.put_off_commits, []
        if core.role is Role.LEADER:
            work.log_term = log.term(core.put_off - 1)
            work.members = _sent(core, work)
        else:
            work.leader = core.leader
        core.put_off = 0
        log.accept_unstable()
    if core.news_put_off:
        core.news_put_off = False
        work.news = _told(core, log.committed)
    if log.applying < log.committed:
        work.committed = committed = log.next_committed(False)
        if committed.terms:
            log.accept_applying(committed.last, committed.byte_size, False)
    return work


def _sent(core: Core, work: LoneWork) -> tuple[int, ...]:
    """The other members, each of which counts as having been sent the entries."""
    sizes = [len(payload) + ENTRY_OVERHEAD_BYTES for payload in work.entries.data]
    own = core.id
    for member, progress in core.progress.items():
        if member != own:
            for size in sizes:
                progress.sent_entries(1, size)
            progress.sent_commit = work.commits[-1]
    return tuple([member for member in core.progress if member != own])


def _told(core: Core, commit: int) -> tuple[int, ...]:
    """The other members, each of which counts as having been told the commit index."""
    own = core.id
    for member, progress in core.progress.items():
        if member != own:
            progress.sent_entries(0, 0)
            progress.sent_commit = commit
    return tuple([member for member in core.progress if member != own])
