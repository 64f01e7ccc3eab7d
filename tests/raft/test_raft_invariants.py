"""What must never happen stops the replica, with the numbers; and a replica starts from whatever it can have stored."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import InvariantViolation
from iotdb_cluster.raft import (
    NO_LIMIT,
    ConfChange,
    ConfChangeSingle,
    ConfChangeType,
    Config,
    ConfState,
    Entries,
    HardState,
    MemoryLog,
    Message,
    MessageType,
    RawNode,
    Role,
    Snapshot,
)
from iotdb_cluster.raft.log import RaftLog
from iotdb_cluster.raft.progress import Inflights, Progress

VOTERS = ConfState((1, 2, 3))


def run_of(first: int, *terms: int) -> Entries:
    return Entries(first, list(terms), [0] * len(terms), [b"x"] * len(terms))


def log_of(*terms: int) -> tuple[MemoryLog, RaftLog]:
    """A log whose entries are durable."""
    stable = MemoryLog(VOTERS)
    stable.append(run_of(1, *terms))
    return stable, RaftLog(stable, NO_LIMIT, NO_LIMIT)


def replica(**settings_: Any) -> tuple[MemoryLog, RawNode]:
    log = MemoryLog(VOTERS)
    return log, RawNode(Config(1, log, Random(1), **settings_))


# --- the log ----------------------------------------------------------------------------------------------------------
def test_commit_never_goes_beyond_the_log() -> None:
    _, log = log_of(1, 1)
    with pytest.raises(InvariantViolation, match=r"commit 3 lies behind the last index 2"):
        log.commit_to(3)


def test_no_committed_entry_is_replaced() -> None:
    _, log = log_of(1, 1, 1)
    log.commit_to(2)
    with pytest.raises(InvariantViolation, match="entries from 2 replace committed ones, up to 2"):
        log.maybe_append(1, 1, run_of(2, 2), 0)
    with pytest.raises(InvariantViolation, match="a snapshot of 1 for commit 2"):
        log.restore(Snapshot(1, 1, VOTERS))
    assert log.maybe_append(1, 2, run_of(3, 2), 0) == 3


def test_there_are_no_gaps() -> None:
    _, log = log_of(1, 1)
    with pytest.raises(InvariantViolation, match="leave a gap behind 2"):
        log._replace_from(4, run_of(4, 1))


def test_applied_stays_behind_commit_and_what_was_handed_out() -> None:
    _, log = log_of(1, 1, 1)
    log.commit_to(2)
    with pytest.raises(InvariantViolation, match="applying 3, commit is 2"):
        log.accept_applying(3, 0, True)
    log.accept_applying(2, 0, True)
    with pytest.raises(InvariantViolation, match="applying 1 after 2"):
        log.accept_applying(1, 0, True)
    log.applied_to(2, 0)
    for wrong in (1, 3):
        with pytest.raises(InvariantViolation, match=f"applied {wrong}, was 2, handed out 2, commit 2"):
            log.applied_to(wrong, 0)


def test_applied_stays_behind_the_durable_log() -> None:
    stable, log = log_of(1)
    log.maybe_append(1, 1, run_of(2, 1), 2)
    assert len(log.next_committed(allow_unstable=False)) == 1
    with pytest.raises(InvariantViolation, match="applying 2, commit is 2, durable 1"):
        log.accept_applying(2, 0, False)
    log.accept_unstable()
    stable.append(run_of(2, 1))
    log.stable_to(1, 2)
    log.accept_applying(2, 0, False)


def test_what_counts_as_durable_was_handed_out_and_is_there() -> None:
    stable, log = log_of(1)
    log.append_own(1, [0], [b"x"])
    with pytest.raises(InvariantViolation, match="entry 2 counts as durable, 2 was not handed out"):
        log.stable_to(1, 2)
    log.accept_unstable()
    with pytest.raises(InvariantViolation, match="entry 2 counts as durable, the stable log ends at 1"):
        log.stable_to(1, 2)
    stable.append(run_of(2, 1))
    log.stable_to(1, 2)
    assert not log.has_unstable


# --- the replica ------------------------------------------------------------------------------------------------------
def test_the_term_never_decreases() -> None:
    _, node = replica()
    node._raft.become_follower(5, 0)
    with pytest.raises(InvariantViolation, match="term 4 after 5"):
        node._raft.become_follower(4, 0)
    node.ready()
    node.advance()
    node._raft.term = 3
    with pytest.raises(InvariantViolation, match="replica 1: term 3 after 5"):
        node.ready()


def test_one_vote_a_term() -> None:
    _, node = replica()
    node.step(Message(MessageType.VOTE, 1, 2, 1))
    assert node.ready().hard_state == HardState(1, 2, 0)
    node.advance()
    node._raft.vote = 3
    with pytest.raises(InvariantViolation, match="replica 1 votes for 2 and 3 in term 1"):
        node.ready()


def test_the_commit_index_never_decreases() -> None:
    log, node = replica()
    node.step(Message(MessageType.APP, 1, 2, 1, entries=run_of(1, 1), commit=1))
    log.append(node.ready().entries)
    node.advance()
    node._raft.log.committed = 0
    with pytest.raises(InvariantViolation, match="replica 1: commit 0 after 1"):
        node.ready()


@pytest.mark.parametrize("kind", [MessageType.APP, MessageType.HEARTBEAT])
def test_two_leaders_of_one_term(kind: MessageType) -> None:
    _, node = replica()
    node.step(Message(MessageType.HEARTBEAT, 1, 2, 4))
    with pytest.raises(InvariantViolation, match="replica 1: term 4 has two leaders, 2 and 3"):
        node.step(Message(kind, 1, 3, 4))
    node.step(Message(kind, 1, 3, 5))
    node.forget_leader()
    node.step(Message(kind, 1, 3, 5))
    _, alone = replica(check_single_leader=False)
    alone.step(Message(MessageType.HEARTBEAT, 1, 2, 4))
    alone.step(Message(kind, 1, 3, 4))


def test_a_leader_meets_another_one_of_its_term() -> None:
    log = MemoryLog(ConfState((1,)))
    node = RawNode(Config(1, log, Random(1)))
    node.campaign()
    while node.has_ready():
        log.append(node.ready().entries)
        node.advance()
    assert node.is_leader
    with pytest.raises(InvariantViolation, match="term 1 has two leaders, 1 and 2"):
        node.step(Message(MessageType.HEARTBEAT, 1, 2, 1))


def test_nobody_acknowledges_more_than_there_is() -> None:
    _, node = replica(pre_vote=False)
    node.campaign()
    node.ready()
    node.advance()
    node.step(Message(MessageType.VOTE_RESP, 1, 2, 1))
    assert node.is_leader
    with pytest.raises(InvariantViolation, match="member 2 acknowledges 7, the log ends at 1"):
        node.step(Message(MessageType.APP_RESP, 1, 2, 1, index=7))


def test_the_window_and_the_progress_hold_their_bounds() -> None:
    progress = Progress(4, 5, Inflights(1, 0))
    progress.become_snapshot(9)
    with pytest.raises(InvariantViolation, match="awaits a snapshot"):
        progress.sent_entries(1, 1)
    progress.become_replicate()
    progress.sent_entries(1, 1)
    with pytest.raises(InvariantViolation, match="goes beyond a full window"):
        progress.sent_entries(1, 1)


def test_roles_change_as_they_may() -> None:
    _, node = replica(pre_vote=False)
    with pytest.raises(InvariantViolation, match="a follower of term 0 becomes leader"):
        node._raft.become_leader()
    node._raft.become_candidate()
    node._raft.become_leader()
    for wrong in (node._raft.become_candidate, node._raft.become_pre_candidate):
        with pytest.raises(InvariantViolation, match="a leader of term 1 becomes"):
            wrong()


def test_a_committed_change_fits_the_configuration() -> None:
    _, node = replica()
    nobody = tuple(ConfChangeSingle(ConfChangeType.REMOVE_NODE, number) for number in (1, 2, 3))
    with pytest.raises(InvariantViolation, match="the change removes all voters"):
        node.apply_conf_change(ConfChange(nobody))
    with pytest.raises(InvariantViolation, match="a configuration that is not joint cannot be left"):
        node.apply_conf_change(ConfChange())


def test_what_is_read_of_the_log_is_there() -> None:
    stable, log = log_of(1, 1)
    with pytest.raises(InvariantViolation, match=r"log slice \[1, 5\) behind 2"):
        log.slice(1, 5, NO_LIMIT)
    stable.entries = lambda low, *_: run_of(low + 1, 1)  # type: ignore[method-assign]
    with pytest.raises(InvariantViolation, match="the stable log gave"):
        log.slice(1, 2, NO_LIMIT)


# --- starting ---------------------------------------------------------------------------------------------------------
@st.composite
def stored(draw: st.DrawFn) -> tuple[MemoryLog, int]:
    """(a log as a replica can have left it, what its state machine holds)."""
    voters = tuple(draw(st.lists(st.integers(1, 5), unique=True, min_size=1, max_size=5)))
    outgoing = tuple(draw(st.lists(st.integers(1, 5), unique=True, max_size=3)))
    others = [i for i in range(1, 8) if i not in voters and i not in outgoing]
    learners = tuple(draw(st.lists(st.sampled_from(others), unique=True, max_size=2)))
    following = [i for i in outgoing if i not in voters]
    learners_next = tuple(draw(st.lists(st.sampled_from(following), unique=True))) if following else ()
    auto_leave = bool(outgoing) and draw(st.booleans())
    log = MemoryLog(ConfState(voters, learners, outgoing, learners_next, auto_leave))
    before = draw(st.integers(0, 5))
    if before:
        log.install(Snapshot(before, draw(st.integers(1, 3)), log.conf_state))
    terms = sorted(draw(st.lists(st.integers(3, 6), max_size=6)))
    log.append(run_of(before + 1, *terms))
    term = draw(st.integers(terms[-1] if terms else 0, 9))
    vote = draw(st.integers(0, 5)) if term else 0
    log.hard_state = HardState(term, vote, draw(st.integers(0, log.last_index())))
    return log, draw(st.integers(before, log.last_index()))


@settings(deadline=None)
@given(stored(), st.booleans())
def test_a_replica_starts_from_what_it_stored(left: tuple[MemoryLog, int], asynchronous: bool) -> None:
    log, applied = left
    hard = log.hard_state
    node = RawNode(Config(1, log, Random(1), applied=applied, async_storage_writes=asynchronous, pre_vote=False))
    assert (node.term, node.vote, node.role, node.leader) == (hard.term, hard.vote, Role.FOLLOWER, 0)
    assert node.last_index == log.last_index()
    assert node.commit == max(hard.commit, applied, log.first_index() - 1)
    assert node.applied == applied
    state = node.conf_state
    assert sorted(state.voters) == sorted(log.conf_state.voters)
    assert sorted(state.voters_outgoing) == sorted(log.conf_state.voters_outgoing)
    assert sorted(state.learners_next) == sorted(log.conf_state.learners_next)
    # Its vote counts on: nobody else gets one in this term.
    other = next(i for i in (2, 3) if i != hard.vote)
    if hard.term and hard.vote:
        node.step(Message(MessageType.VOTE, 1, other, hard.term, log_term=9, index=99))
        assert node.vote == hard.vote
    # What is committed and not applied is handed out first, and nothing of the log is written again.
    ready = node.ready()
    assert not ready.entries
    assert ready.hard_state is None
    assert (
        ready.committed.terms == log.entries(applied + 1, node.commit + 1, NO_LIMIT).terms if ready.committed else True
    )
    assert (len(ready.committed) > 0) == (node.commit > applied)
    # A leader of a later term takes it along.
    node.step(Message(MessageType.HEARTBEAT, 1, 2, hard.term + 1))
    assert (node.term, node.vote, node.leader) == (hard.term + 1, 0, 2)


@pytest.mark.parametrize(
    ("hard", "applied", "message"),
    [
        (HardState(1, 0, 4), 0, "stored commit 4, last index 3"),
        (HardState(1, 0, 1), 4, "applied 4, last index 3"),
        (HardState(0, 0, 0), 0, "stored term 0, but entry 3 is of term 1"),
    ],
)
def test_what_it_cannot_have_stored_is_refused(hard: HardState, applied: int, message: str) -> None:
    log, _ = log_of(1, 1, 1)
    log.hard_state = hard
    with pytest.raises(InvariantViolation, match=message):
        RawNode(Config(1, log, Random(1), applied=applied))


def test_a_state_machine_behind_the_log_is_refused() -> None:
    log = MemoryLog()
    log.install(Snapshot(5, 1, VOTERS))
    with pytest.raises(InvariantViolation, match="applied 4 lies before the log, which begins behind 5"):
        RawNode(Config(1, log, Random(1), applied=4))


def test_a_snapshot_and_entries_behind_it_come_in_one_ready() -> None:
    """The driver writes them as one batch; they are applied once both are durable."""
    log, node = replica(async_storage_writes=True)
    node.step(Message(MessageType.SNAP, 1, 2, 3, snapshot=Snapshot(10, 2, VOTERS, b"state")))
    node.step(Message(MessageType.APP, 1, 2, 3, log_term=2, index=10, entries=run_of(11, 3, 3), commit=12))
    ready = node.ready()
    (write,) = (message for message in ready.messages if message.type is MessageType.STORAGE_APPEND)
    assert write.snapshot is not None
    assert write.snapshot.index == 10
    assert (write.entries.first, write.entries.terms) == (11, [3, 3])
    assert not ready.committed
    log.install(write.snapshot)
    log.append(write.entries)
    for response in write.responses:
        if response.to == 1:
            node.step(response)
    assert (node.applied, node.commit, node.restoring) == (10, 12, 0)
    assert node.ready().committed.first == 11
