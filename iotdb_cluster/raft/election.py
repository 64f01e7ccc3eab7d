"""Campaigns and votes."""

from __future__ import annotations

from typing import Final

from iotdb_cluster.raft.core import Core
from iotdb_cluster.raft.message import NO_NODE, Message, MessageType, Role
from iotdb_cluster.raft.quorum import VoteResult

__all__ = ["TRANSFER", "answer_vote", "hup", "in_lease", "take_vote"]

TRANSFER: Final = b"transfer"  # context of a vote asked for in the leader's name: no lease stands against it
_RESPONSES: Final = {MessageType.VOTE: MessageType.VOTE_RESP, MessageType.PRE_VOTE: MessageType.PRE_VOTE_RESP}


def hup(core: Core, *, pre: bool, context: bytes = b"") -> None:
    """Start an election, unless this replica leads, may not lead, or does not know yet who votes."""
    if core.role is Role.LEADER or not core.promotable or core.has_unapplied_conf_changes():
        return
    _campaign(core, pre=pre, context=context)


def _campaign(core: Core, *, pre: bool, context: bytes = b"") -> None:
    if pre:
        core.become_pre_candidate()
        kind, term = MessageType.PRE_VOTE, core.term + 1
    else:
        core.become_candidate()
        kind, term = MessageType.VOTE, core.term
    last_term, last = core.log.last_id()
    for voter in core.configuration.voters:
        if voter == core.id:
            # Its own vote counts when it is on disk, like everybody's.
            core.send(Message(_RESPONSES[kind], voter, term=term))
        else:
            core.send(Message(kind, voter, term=term, log_term=last_term, index=last, context=context))


def in_lease(core: Core) -> bool:
    """Whether a leader was heard of so recently that nobody else may be elected."""
    return core.config.check_quorum and core.leader != NO_NODE and core.election_elapsed < core.config.election_tick


def answer_vote(core: Core, message: Message) -> None:
    """Grant or refuse a vote or pre-vote; `message.term` is at least the own term."""
    source = message.source
    kind = message.type
    free = (
        core.vote == source
        or (core.vote == NO_NODE and core.leader == NO_NODE)
        or (kind is MessageType.PRE_VOTE and message.term > core.term)
    )
    # A learner votes too: it may have become a voter in an entry that has not reached it.
    if not free or not core.log.is_up_to_date(message.log_term, message.index):
        core.send(Message(_RESPONSES[kind], source, term=core.term, reject=True))
        return
    # The answer to a pre-vote carries the term asked for: the asker would take its own lower one as out of date.
    core.send(Message(_RESPONSES[kind], source, term=message.term))
    if kind is MessageType.VOTE:
        core.election_elapsed = 0
        core.vote = source


def take_vote(core: Core, message: Message) -> None:
    """A candidate counts an answer of its own kind."""
    core.votes.setdefault(message.source, not message.reject)
    result = core.tally()
    if result is VoteResult.WON:
        if core.role is Role.PRE_CANDIDATE:
            _campaign(core, pre=False)
        else:
            core.become_leader()
            core.broadcast_append()
    elif result is VoteResult.LOST:
        # The term of a granted pre-vote lies ahead: it is not taken over.
        core.become_follower(core.term, NO_NODE)
