"""What followers and candidates do with messages of their own term."""

from __future__ import annotations

from iotdb_cluster.raft import election
from iotdb_cluster.raft.core import Core
from iotdb_cluster.raft.message import NO_NODE, Message, MessageType, ProposalDropped, ReadState, Role

__all__ = ["step_candidate", "step_follower"]


def step_candidate(core: Core, message: Message) -> None:
    """Raises ProposalDropped."""
    kind = message.type
    if kind is MessageType.PROP:
        raise ProposalDropped("there is no leader")
    if kind in (MessageType.APP, MessageType.HEARTBEAT, MessageType.SNAP):
        core.become_follower(message.term, message.source)
        _from_leader(core, message)
    elif kind is (MessageType.PRE_VOTE_RESP if core.role is Role.PRE_CANDIDATE else MessageType.VOTE_RESP):
        election.take_vote(core, message)


def step_follower(core: Core, message: Message) -> None:
    """Raises ProposalDropped."""
    kind = message.type
    if kind in (MessageType.APP, MessageType.HEARTBEAT, MessageType.SNAP):
        core.election_elapsed = 0
        core.leader = message.source
        _from_leader(core, message)
    elif kind is MessageType.PROP:
        if core.leader == NO_NODE:
            raise ProposalDropped("there is no leader")
        if core.config.disable_proposal_forwarding:
            raise ProposalDropped(f"replica {core.leader} leads")
        _forward(core, message)
    elif kind is MessageType.READ_INDEX or kind is MessageType.TRANSFER_LEADER:
        if core.leader != NO_NODE:
            _forward(core, message)
    elif kind is MessageType.READ_INDEX_RESP:
        core.read_states.append(ReadState(message.index, message.context))
    elif kind is MessageType.TIMEOUT_NOW:
        # The leader asked for it, so no pre-vote and no lease.
        election.hup(core, pre=False, context=election.TRANSFER)
    elif kind is MessageType.FORGET_LEADER and not core.config.lease_reads:
        core.leader = NO_NODE


def _forward(core: Core, message: Message) -> None:
    message.to = core.leader
    message.term = 0
    core.send(message)


def _from_leader(core: Core, message: Message) -> None:
    kind = message.type
    if kind is MessageType.APP:
        _append(core, message)
    elif kind is MessageType.HEARTBEAT:
        core.log.commit_to(message.commit)
        core.send(Message(MessageType.HEARTBEAT_RESP, message.source, context=message.context))
    else:
        _snapshot(core, message)


def _append(core: Core, message: Message) -> None:
    log = core.log
    source, index = message.source, message.index
    if index < log.committed:
        core.send(Message(MessageType.APP_RESP, source, index=log.committed))
        return
    last = log.maybe_append(message.log_term, index, message.entries, message.commit)
    if last is not None:
        core.send(Message(MessageType.APP_RESP, source, index=last))
        return
    # The leader's log agrees with this one at no entry of a term above its own at `index`: skip those at once.
    hint, hint_term = log.find_conflict_by_term(min(index, log.last_index), message.log_term)
    core.send(
        Message(MessageType.APP_RESP, source, index=index, reject=True, reject_hint=hint, log_term=hint_term),
    )


def _snapshot(core: Core, message: Message) -> None:
    snapshot = message.snapshot
    if snapshot is not None and core.restore(snapshot):
        core.send(Message(MessageType.APP_RESP, message.source, index=core.log.last_index))
    else:
        core.send(Message(MessageType.APP_RESP, message.source, index=core.log.committed))
