"""Majorities of one configuration and of two at once (joint consensus)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

from iotdb_cluster.raft.message import NO_LIMIT

__all__ = ["VoteResult", "committed_index", "joint_committed_index", "joint_vote_result", "vote_result"]


class VoteResult(IntEnum):
    PENDING = 1
    LOST = 2
    WON = 3


def committed_index(voters: Sequence[int], acked: Mapping[int, int]) -> int:
    """The highest index that a majority of `voters` has acknowledged; NO_LIMIT where nobody votes.

    A voter without an entry in `acked` has acknowledged nothing.
    """
    if not voters:
        return NO_LIMIT
    get = acked.get
    return sorted([get(voter, 0) for voter in voters])[(len(voters) - 1) // 2]


def joint_committed_index(incoming: Sequence[int], outgoing: Sequence[int], acked: Mapping[int, int]) -> int:
    """What both majorities have acknowledged."""
    return min(committed_index(incoming, acked), committed_index(outgoing, acked))


def vote_result(voters: Sequence[int], votes: Mapping[int, bool]) -> VoteResult:
    """WON or LOST as soon as the missing votes cannot change it; won where nobody votes."""
    if not voters:
        return VoteResult.WON
    needed = len(voters) // 2 + 1
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote:
            granted += 1
        elif vote is not None:
            refused += 1
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.PENDING if len(voters) - refused >= needed else VoteResult.LOST


def joint_vote_result(incoming: Sequence[int], outgoing: Sequence[int], votes: Mapping[int, bool]) -> VoteResult:
    """Won where both majorities are won, lost where one is lost."""
    first = vote_result(incoming, votes)
    second = vote_result(outgoing, votes)
    if first is second:
        return first
    if VoteResult.LOST in (first, second):
        return VoteResult.LOST
    return VoteResult.PENDING
