"""What a leader does with messages of its own term."""

from __future__ import annotations

from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.raft.core import Core
from iotdb_cluster.raft.membership import ChangeRefused
from iotdb_cluster.raft.message import (
    NO_NODE,
    ConfChange,
    Entries,
    EntryKind,
    Message,
    MessageType,
    ProposalDropped,
    ReadState,
    decode_conf_change,
)
from iotdb_cluster.raft.progress import Progress, ProgressState

__all__ = ["step_leader"]


def step_leader(core: Core, message: Message) -> None:
    """Raises ProposalDropped."""
    kind = message.type
    if kind is MessageType.APP_RESP or kind is MessageType.HEARTBEAT_RESP:
        progress = core.progress.get(message.source)
        if progress is None:
            return
        progress.active = True
        if kind is MessageType.HEARTBEAT_RESP:
            _heartbeat_answered(core, message, progress)
        elif message.reject:
            _append_refused(core, message, progress)
        else:
            _append_done(core, message, progress)
    elif kind is MessageType.PROP:
        _propose(core, message.entries)
    elif kind is MessageType.BEAT:
        core.broadcast_heartbeat()
    elif kind is MessageType.CHECK_QUORUM:
        _check_quorum(core)
    elif kind is MessageType.READ_INDEX:
        _read_index(core, message)
    else:
        _about_member(core, message)


def _about_member(core: Core, message: Message) -> None:
    progress = core.progress.get(message.source)
    if progress is None:
        return
    kind = message.type
    if kind is MessageType.UNREACHABLE:
        # What was sent ahead is probably lost.
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
    elif kind is MessageType.SNAP_STATUS:
        _snapshot_status(message, progress)
    elif kind is MessageType.TRANSFER_LEADER:
        _transfer(core, message.source, progress)


def _check_quorum(core: Core) -> None:
    if not core.quorum_active():
        core.become_follower(core.term, NO_NODE)
    for _, progress in core.others():
        progress.active = False


# --- proposals --------------------------------------------------------------------------------------------------------
def _propose(core: Core, entries: Entries) -> None:
    check(len(entries), "a proposal of nothing")
    if core.id not in core.progress:
        raise ProposalDropped("the leader was removed from the group")
    if core.transferee != NO_NODE:
        raise ProposalDropped(f"replica {core.transferee} is about to take over")
    kinds, data = entries.kinds, entries.data
    if any(kinds):
        kinds, data = _admit_conf_changes(core, kinds, data)
    if not core.append(kinds, data):
        raise ProposalDropped("too much is proposed and not committed")
    core.broadcast_append()


def _admit_conf_changes(core: Core, kinds: list[int], data: list[bytes]) -> tuple[list[int], list[bytes]]:
    """The proposal with every configuration change that cannot be taken now replaced by an empty entry."""
    kinds, data = list(kinds), list(data)
    for at, kind in enumerate(kinds):
        if kind == EntryKind.NORMAL:
            continue
        if _admissible(core, data[at]) or core.config.disable_conf_change_validation:
            core.pending_conf_index = core.log.last_index + at + 1
        else:
            kinds[at], data[at] = EntryKind.NORMAL, b""
    return kinds, data


def _admissible(core: Core, payload: bytes) -> bool:
    try:
        change = decode_conf_change(payload)
    except CorruptData as exception:
        raise ProposalDropped("the configuration change cannot be read") from exception
    if core.pending_conf_index > core.log.applied:
        return False  # one at a time: what it would apply to is not known
    # Leaving is told apart by having no changes at all, whatever the transition says.
    if core.configuration.joint != (not change.changes):
        return False
    return _fits(core, change)


def _fits(core: Core, change: ConfChange) -> bool:
    """Whether the change can be applied: once committed, one that cannot would stop every replica."""
    try:
        core.members_after(change)
    except ChangeRefused:
        return False
    return True


# --- answers of members -----------------------------------------------------------------------------------------------
def _append_refused(core: Core, message: Message, progress: Progress) -> None:
    hint = message.reject_hint
    if message.log_term:
        # No entry here of a higher term can agree with the member's log at or before the hint.
        hint, _ = core.log.find_conflict_by_term(hint, message.log_term)
    if progress.maybe_decrease(message.index, hint):
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        core.send_append(message.source)


def _append_done(core: Core, message: Message, progress: Progress) -> None:
    source, index = message.source, message.index
    check(
        index <= core.log.last_index,
        "member %d acknowledges %d, the log ends at %d",
        source,
        index,
        core.log.last_index,
    )
    state = progress.state
    if not progress.maybe_update(index) and not (progress.match == index and state is ProgressState.PROBE):
        return
    if state is ProgressState.REPLICATE:
        progress.inflights.free_to(index)
    elif state is ProgressState.PROBE:
        progress.become_replicate()
    elif progress.match + 1 >= core.log.first_index:
        # However it got there, the log serves it again; the snapshot need not be the one that was sent.
        progress.become_probe()
        progress.become_replicate()
    if core.maybe_commit():
        _release_pending_reads(core)
        core.broadcast_append()
    elif source != core.id and progress.can_bump_commit(core.log.committed):
        core.send_append(source)
    if source != core.id:
        while core.send_append(source, if_empty=False):
            pass  # the window has room again: fill it
        if source == core.transferee and progress.match == core.log.last_index:
            core.send(Message(MessageType.TIMEOUT_NOW, source))


def _heartbeat_answered(core: Core, message: Message, progress: Progress) -> None:
    progress.paused = False
    if progress.match < core.log.last_index or progress.state is ProgressState.PROBE:
        core.send_append(message.source)
    if core.config.lease_reads or not message.context:
        return
    core.read_index.acknowledge(message.source, message.context)
    configuration = core.configuration
    for request, commit in core.read_index.advance(configuration.incoming, configuration.outgoing):
        _answer_read(core, request, commit)


def _snapshot_status(message: Message, progress: Progress) -> None:
    if progress.state is not ProgressState.SNAPSHOT:
        return
    if message.reject:
        progress.pending_snapshot = 0
    progress.become_probe()
    # It arrived: its answer to the snapshot comes by itself. It did not: wait a heartbeat before the next try.
    progress.paused = True


def _transfer(core: Core, target: int, progress: Progress) -> None:
    if progress.learner or target == core.transferee:
        return
    core.transferee = NO_NODE
    if target == core.id:
        return
    # It has an election timeout to take over; then proposals are taken here again.
    core.election_elapsed = 0
    core.transferee = target
    if progress.match == core.log.last_index:
        core.send(Message(MessageType.TIMEOUT_NOW, target))
    else:
        core.send_append(target)


# --- reads ------------------------------------------------------------------------------------------------------------
def _read_index(core: Core, message: Message) -> None:
    if core.committed_in_term:
        _start_read(core, message)
    else:
        # The commit index may lie behind that of an earlier leader; of a group of one too, where a restart finds an
        # older one on disk than was acknowledged.
        if len(core.pending_reads) < core.config.reads_waiting_max:
            core.pending_reads.append(message)


def _start_read(core: Core, message: Message) -> None:
    if core.is_singleton or core.config.lease_reads:
        _answer_read(core, message, core.log.committed)
        return
    reads = core.read_index
    if len(reads.waiting) >= core.config.reads_waiting_max:
        return
    reads.add(message, core.log.committed)
    reads.acknowledge(core.id, reads.heartbeat_context())
    core.broadcast_heartbeat()


def _release_pending_reads(core: Core) -> None:
    if core.pending_reads and core.committed_in_term:
        waiting, core.pending_reads = core.pending_reads, []
        for message in waiting:
            _start_read(core, message)


def _answer_read(core: Core, request: Message, commit: int) -> None:
    if request.source in (NO_NODE, core.id):
        core.read_states.append(ReadState(commit, request.context))
    else:
        core.send(Message(MessageType.READ_INDEX_RESP, request.source, index=commit, context=request.context))
