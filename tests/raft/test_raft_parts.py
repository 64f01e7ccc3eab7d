"""Quorums, windows, progress, configurations and the log against naive twins."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import InvariantViolation
from iotdb_cluster.raft import (
    ENTRY_OVERHEAD_BYTES,
    NO_LIMIT,
    ChangeRefused,
    Compacted,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    Configuration,
    Entries,
    MemoryLog,
    Unavailable,
)
from iotdb_cluster.raft.log import RaftLog
from iotdb_cluster.raft.membership import Members, apply_change, restore
from iotdb_cluster.raft.progress import Inflights, Progress, ProgressState
from iotdb_cluster.raft.quorum import (
    VoteResult,
    committed_index,
    joint_committed_index,
    joint_vote_result,
    vote_result,
)

voters = st.lists(st.integers(1, 9), unique=True, max_size=7).map(tuple)
acks = st.dictionaries(st.integers(1, 9), st.integers(0, 20))
votes = st.dictionaries(st.integers(1, 9), st.booleans())


# --- quorum -----------------------------------------------------------------------------------------------------------
def naive_committed(ids: tuple[int, ...], acked: dict[int, int]) -> int:
    if not ids:
        return NO_LIMIT
    return max(i for i in range(21) if sum(acked.get(v, 0) >= i for v in ids) * 2 > len(ids))


def naive_vote(ids: tuple[int, ...], cast: dict[int, bool]) -> VoteResult:
    """By trying out every way in which the missing votes can come."""
    missing = [v for v in ids if v not in cast]
    ends = {
        not ids or sum({**cast, **dict(zip(missing, rest, strict=True))}[v] for v in ids) * 2 > len(ids)
        for rest in itertools.product((False, True), repeat=len(missing))
    }
    return VoteResult.PENDING if len(ends) == 2 else VoteResult.WON if ends == {True} else VoteResult.LOST


@settings(deadline=None)
@given(voters, voters, acks)
def test_committed_index(a: tuple[int, ...], b: tuple[int, ...], acked: dict[int, int]) -> None:
    assert committed_index(a, acked) == naive_committed(a, acked)
    assert joint_committed_index(a, b, acked) == min(naive_committed(a, acked), naive_committed(b, acked))
    assert joint_committed_index(a, a, acked) == committed_index(a, acked)


@settings(deadline=None)
@given(voters, voters, votes)
def test_vote_result(a: tuple[int, ...], b: tuple[int, ...], cast: dict[int, bool]) -> None:
    assert vote_result(a, cast) is naive_vote(a, cast)
    both = {naive_vote(a, cast), naive_vote(b, cast)}
    if VoteResult.LOST in both:
        assert joint_vote_result(a, b, cast) is VoteResult.LOST
    elif VoteResult.PENDING in both:
        assert joint_vote_result(a, b, cast) is VoteResult.PENDING
    else:
        assert joint_vote_result(a, b, cast) is VoteResult.WON


# --- window and progress ----------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60))
def test_window(messages_max: int, bytes_max: int, steps: list[tuple[bool, int]]) -> None:
    window = Inflights(messages_max, bytes_max)
    twin: list[tuple[int, int]] = []
    index = 0
    for add, number in steps:
        full = len(twin) == messages_max or (bytes_max > 0 and sum(size for _, size in twin) >= bytes_max)
        assert window.full == full
        if not add:
            window.free_to(number)
            twin = [(i, size) for i, size in twin if i > number]
        elif full:
            with pytest.raises(InvariantViolation):
                window.add(index + 1, number)
        else:
            index += 1
            window.add(index, number)
            twin.append((index, number))
        assert len(window) == len(twin)
        assert window.bytes == sum(size for _, size in twin)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 15), st.integers(0, 15)), max_size=60))
def test_progress_invariants(steps: list[tuple[int, int, int]]) -> None:
    progress = Progress(0, 1, Inflights(3, 40))
    matched = 0
    for what, a, b in steps:
        if what == 0:
            updated = progress.maybe_update(a)
            assert updated == (a > matched)
            matched = max(matched, a)
            progress.inflights.free_to(a)
        elif what == 1:
            before = progress.next
            if progress.maybe_decrease(a, b):
                assert progress.next <= max(before, matched + 1)
        elif what == 2 and not progress.is_paused:
            progress.sent_entries(a % 3, b)
            assert progress.is_paused or progress.state is ProgressState.REPLICATE or a % 3 == 0
        elif what == 3:
            progress.become_replicate()
            assert progress.next == matched + 1
            assert not progress.is_paused
        elif what == 4:
            pending = progress.pending_snapshot
            progress.become_probe()
            assert progress.next == max(matched, pending) + 1
        elif what == 5 and a > matched:
            progress.become_snapshot(a)
            assert progress.is_paused
        elif what == 6:
            progress.sent_commit = min(a, progress.next - 1)
        assert progress.match == matched
        assert progress.match < progress.next
        assert (progress.state is ProgressState.SNAPSHOT) == (progress.pending_snapshot > 0)


class Pair:
    """A leader and one follower with nothing but `Progress` between them; messages are lost, late and doubled.

    The follower's log is a list of terms, as is the leader's; what they agree on is known by comparing the lists.
    """

    def __init__(self, leader: list[int], follower: list[int], compacted: int) -> None:
        self.leader, self.follower, self.compacted = leader, follower, compacted
        self.progress = Progress(0, len(leader) + 1, Inflights(2, 40))
        self.mail: list[tuple[str, int, list[int]]] = []  # to the follower: previous index and entries, or a snapshot
        self.answers: list[tuple[bool, int, int]] = []  # accepted, index, hint
        self.acknowledged = 0

    def agreed(self) -> int:
        """The last index up to which both logs are the same."""
        same = [a == b for a, b in zip(self.leader, self.follower, strict=False)]
        return same.index(False) if False in same else len(same)

    def send(self) -> None:
        progress = self.progress
        if progress.is_paused:
            return
        previous = progress.next - 1
        if previous < self.compacted:
            progress.become_snapshot(self.compacted)
            self.mail.append(("snapshot", self.compacted, self.leader[: self.compacted]))
            return
        entries = self.leader[previous : previous + 2]
        progress.sent_entries(len(entries), 15 * len(entries))
        self.mail.append(("append", previous, entries))

    def receive(self, at: int, keep: bool) -> None:
        kind, index, entries = self.mail[at] if keep else self.mail.pop(at)
        if kind == "snapshot":
            if self.agreed() < index:
                self.follower = list(entries)
            self.answers.append((True, max(index, self.acknowledged), 0))
        elif index <= len(self.follower) and self.follower[:index] == self.leader[:index]:
            end = index + len(entries)
            if self.follower[index:end] != entries:
                self.follower[index:] = entries
            self.answers.append((True, end, 0))
        else:
            self.answers.append((False, index, min(index - 1, len(self.follower))))

    def answer(self, at: int) -> None:
        accepted, index, hint = self.answers.pop(at)
        progress = self.progress
        if not accepted:
            if progress.maybe_decrease(index, hint) and progress.state is ProgressState.REPLICATE:
                progress.become_probe()
            return
        self.acknowledged = max(self.acknowledged, index)
        if progress.maybe_update(index) or (progress.match == index and progress.state is ProgressState.PROBE):
            if progress.state is ProgressState.REPLICATE:
                progress.inflights.free_to(index)
            elif progress.state is ProgressState.PROBE or progress.match >= self.compacted:
                progress.become_probe()
                progress.become_replicate()

    def check(self) -> None:
        progress = self.progress
        assert progress.match == self.acknowledged <= self.agreed()
        assert progress.match < progress.next <= len(self.leader) + 1
        assert len(progress.inflights) <= 2
        assert progress.inflights.bytes <= 40 + 30
        if progress.state is ProgressState.REPLICATE:
            assert progress.is_paused == progress.inflights.full or not progress.inflights.full
        assert (progress.state is ProgressState.SNAPSHOT) == (progress.pending_snapshot > 0)

    def heal(self) -> None:
        """As a heartbeat does where messages were lost."""
        if self.progress.state is ProgressState.SNAPSHOT:
            self.progress.become_probe()
        self.progress.paused = False
        if self.progress.state is ProgressState.REPLICATE:
            self.progress.sent_entries(0, 0)  # the empty append that follows it while the window is full


terms = st.lists(st.integers(1, 3), max_size=8).map(sorted)


@settings(deadline=None, max_examples=200)
@given(terms, terms, st.data())
def test_progress_brings_a_follower_up(leader: list[int], follower: list[int], data: st.DataObject) -> None:
    """Whatever is lost, doubled or late: `match` is what the follower has, and in the end it has everything."""
    # Logs of one group: equal (index, term) means an equal past, which sorted lists give from the first difference on.
    cut = next((i for i, (a, b) in enumerate(zip(leader, follower, strict=False)) if a != b), None)
    if cut is not None:
        follower = [*follower[:cut], *(term + 10 for term in follower[cut:])]
    pair = Pair(leader, follower, data.draw(st.integers(0, len(leader))))
    for _ in range(data.draw(st.integers(0, 25))):
        what = data.draw(
            st.sampled_from(("send", "send", "receive", "double", "answer", "lose", "unreachable", "beat"))
        )
        if what == "send":
            pair.send()
        elif what in ("receive", "double") and pair.mail:
            pair.receive(data.draw(st.integers(0, len(pair.mail) - 1)), what == "double")
        elif what == "answer" and pair.answers:
            pair.answer(data.draw(st.integers(0, len(pair.answers) - 1)))
        elif what == "lose" and pair.mail:
            pair.mail.pop()
        elif what == "unreachable" and pair.progress.state is ProgressState.REPLICATE:
            pair.progress.become_probe()
        elif what == "beat":
            pair.heal()
        pair.check()
    for _ in range(60):
        if pair.progress.match == len(leader):
            break
        pair.mail.clear()
        pair.answers.clear()
        pair.heal()
        pair.progress.become_probe()
        pair.send()
        if pair.mail:
            pair.receive(0, False)
            pair.answer(0)
        pair.check()
    assert pair.progress.match == len(leader)
    assert pair.follower[: len(leader)] == leader


# --- configurations ---------------------------------------------------------------------------------------------------
def new_progress(learner: bool) -> Progress:
    return Progress(0, 1, Inflights(4, 0), learner=learner, active=True)


singles = st.builds(ConfChangeSingle, st.sampled_from(ConfChangeType), st.integers(0, 6))
conf_changes = st.builds(ConfChange, st.lists(singles, max_size=4).map(tuple), st.sampled_from(ConfChangeTransition))


def naive_targets(configuration: Configuration, change: ConfChange) -> tuple[set[int], set[int]]:
    """(voters, learners) in the end, when every joint phase is left."""
    in_the_end, students = set(configuration.incoming), {*configuration.learners, *configuration.learners_next}
    for kind, node in change.changes:
        if not node or kind is ConfChangeType.UPDATE_NODE:
            continue
        in_the_end.discard(node) if kind is not ConfChangeType.ADD_NODE else in_the_end.add(node)
        students.add(node) if kind is ConfChangeType.ADD_LEARNER else students.discard(node)
    return in_the_end, students


@settings(deadline=None)
@given(st.lists(conf_changes, max_size=15))
def test_configurations(steps: list[ConfChange]) -> None:
    members = Members(Configuration((1,)), {1: new_progress(False)})
    for change in steps:
        before = members
        copy = (before.configuration, {node: one.learner for node, one in before.progress.items()})
        goal = naive_targets(before.configuration, change)
        try:
            members = apply_change(before, change, new_progress)
        except ChangeRefused:
            joint = before.configuration.joint
            wrong_phase = joint != change.leaves_joint
            too_many = len(goal[0] ^ set(before.configuration.incoming)) > 1 and not change.enters_joint
            assert wrong_phase or not goal[0] or too_many
            members = before
        assert copy == (before.configuration, {node: one.learner for node, one in before.progress.items()})
        now = members.configuration
        if members is not before:
            assert (set(now.incoming), {*now.learners, *now.learners_next}) == goal
            assert now.joint == change.enters_joint
            assert set(now.outgoing) == (set(before.configuration.incoming) if now.joint else set())
        assert set(members.progress) == {*now.voters, *now.learners, *now.learners_next}
        assert list(members.progress) == sorted(members.progress)
        assert {node for node, one in members.progress.items() if one.learner} == set(now.learners)
        again = restore(now.conf_state(), new_progress)
        assert again.configuration == now
        assert list(again.progress) == list(members.progress)


def majorities(configuration: Configuration) -> list[set[int]]:
    """Every set of voters that can decide."""
    halves = [set(half) for half in (configuration.incoming, configuration.outgoing) if half]
    voters = configuration.voters
    sets = [set(c) for size in range(1, len(voters) + 1) for c in itertools.combinations(voters, size)]
    return [chosen for chosen in sets if all(2 * len(chosen & half) > len(half) for half in halves)]


@settings(deadline=None, max_examples=60)
@given(st.lists(conf_changes, max_size=8))
def test_majorities_before_and_after_a_change_overlap(steps: list[ConfChange]) -> None:
    """No two decide without each other: what the old majority has committed the new one knows."""
    members = Members(Configuration((1, 2, 3)), {node: new_progress(False) for node in (1, 2, 3)})
    for change in steps:
        before = members.configuration
        try:
            members = apply_change(members, change, new_progress)
        except ChangeRefused:
            continue
        after = majorities(members.configuration)
        assert after
        assert all(old & new for old in majorities(before) for new in after)


# --- log --------------------------------------------------------------------------------------------------------------
def run_of(first: int, terms: list[int], size: int = 1) -> Entries:
    return Entries(first, terms, [0] * len(terms), [bytes(size)] * len(terms))


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(0, 200))
def test_entries_limit(sizes: list[int], bytes_max: int) -> None:
    entries = Entries(5, [1] * len(sizes), [0] * len(sizes), [bytes(size) for size in sizes])
    head = entries.limit(bytes_max)
    fits = [n for n in range(1, len(sizes) + 1) if sum(sizes[:n]) + n * ENTRY_OVERHEAD_BYTES <= bytes_max]
    assert len(head) == max(fits, default=1)
    assert head == entries.slice(5, 5 + len(head))
    assert head.concat(entries.slice(5 + len(head), entries.last + 1)) == entries


@settings(deadline=None)
@given(st.data())
def test_log_against_a_list(data: st.DataObject) -> None:
    """Appends of leaders, writes that lag behind, compaction: the same answers as one plain list."""
    stable = MemoryLog()
    log = RaftLog(stable, NO_LIMIT, NO_LIMIT)
    twin: list[int] = []
    gone = 0
    term = 1
    handed: list[Entries] = []
    for _ in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(("append", "append", "take", "write", "commit", "compact")))
        if what == "append":
            at = data.draw(st.integers(log.committed, len(twin)))
            if data.draw(st.booleans()):
                terms = twin[at : at + data.draw(st.integers(0, 4))]  # repeated
            else:
                # What one leader appends it never takes back: other entries at a place have a higher term.
                term += 1 if at < len(twin) else data.draw(st.integers(0, 1))
                terms = [term] * data.draw(st.integers(0, 4))
            agreed = log.maybe_append(twin[at - 1] if at else 0, at, run_of(at + 1, terms), 0)
            assert agreed == at + len(terms)
            if twin[at : at + len(terms)] != terms:
                twin[at:] = terms
        elif what == "take":
            taken = log.next_unstable()
            log.accept_unstable()
            if taken:
                handed.append(taken)
        elif what == "write" and handed:
            written = handed.pop(0)
            stable.append(written)
            log.stable_to(written.terms[-1], written.last)
        elif what == "commit" and twin:
            log.commit_to(data.draw(st.integers(0, len(twin))))
        elif what == "compact" and min(log.committed, log.offset - 1) > gone:
            gone = data.draw(st.integers(gone + 1, min(log.committed, log.offset - 1)))
            stable.compact(gone)
        assert log.last_index == len(twin)
        assert log.first_index == gone + 1
        for index in range(gone + 1, len(twin) + 1):
            assert log.term(index) == twin[index - 1]
        assert log.entries(gone + 1, NO_LIMIT).terms == twin[gone:]
        with pytest.raises(Unavailable):
            log.term(len(twin) + 1)
        if gone:
            with pytest.raises(Compacted):
                log.slice(gone, len(twin) + 1, NO_LIMIT)


def test_log_refuses_what_contradicts_a_committed_entry() -> None:
    log = RaftLog(MemoryLog(), NO_LIMIT, NO_LIMIT)
    log.maybe_append(0, 0, run_of(1, [1, 1]), 2)
    with pytest.raises(InvariantViolation):
        log.maybe_append(1, 1, run_of(2, [2]), 0)
    with pytest.raises(InvariantViolation):
        log.commit_to(3)
    with pytest.raises(InvariantViolation):
        log.applied_to(3, 0)


@pytest.mark.parametrize("lone", [False, True], ids=["a run", "lone entries"])
def test_log_hands_out_a_bounded_number_of_entries_to_apply(lone: bool) -> None:
    stable = MemoryLog()
    log = RaftLog(stable, NO_LIMIT, 3)
    for index in range(1, 9):
        entry = run_of(index, [1])
        if lone:
            log.append_given(entry)
        else:
            log.append_own(1, entry.kinds, entry.data)
            log.accept_unstable()
        stable.append(entry)
    log.stable_to(1, 8)
    log.commit_to(8)
    handed = []
    while log.has_durable_committed:
        entries = log.take_durable_committed()
        assert not log.has_durable_committed  # before those are applied
        log.applied_to(entries.last, entries.byte_size)
        handed.append(len(entries))
    assert handed == [3, 3, 2]


def test_log_keeps_no_lone_entries_that_are_applied() -> None:
    """Also where they were handed out by a `Ready`, among others: a quiet group holds no payloads."""
    stable = MemoryLog()
    log = RaftLog(stable, NO_LIMIT, NO_LIMIT)
    for index in range(1, 7):
        log.append_given(run_of(index, [1]))
        stable.append(run_of(index, [1]))
    log.stable_to(1, 6)
    for commit in (4, 6):
        log.commit_to(commit)
        entries = log.next_committed(False)
        log.accept_applying(entries.last, entries.byte_size, False)
        log.applied_to(entries.last, entries.byte_size)
        assert list(log._lone) == list(range(commit + 1, 7))


def test_log_reads_across_the_edge_within_the_limit() -> None:
    stable = MemoryLog()
    stable.append(run_of(1, [1, 1, 1]))
    log = RaftLog(stable, NO_LIMIT, NO_LIMIT)
    log.append_own(2, [0, 0], [b"x", b"y"])
    one = 1 + ENTRY_OVERHEAD_BYTES
    for count in range(1, 6):
        assert len(log.entries(1, count * one)) == count
        assert len(log.entries(1, count * one + one - 1)) == count
    assert log.entries(1, 0).terms == [1]
