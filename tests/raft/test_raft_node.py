"""What the scripts cannot say: reads, proposals' answers, limits, time in large steps, quiet groups."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from iotdb_cluster.errors import InvariantViolation
from iotdb_cluster.raft import (
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
    ProposalDropped,
    RawNode,
    ReadState,
    Role,
    UnknownPeer,
)


class Group:
    """Replicas that exchange messages at once, as long as `cut` does not part them."""

    def __init__(self, count: int, **settings: object) -> None:
        self.logs = {i: MemoryLog(ConfState(tuple(range(1, count + 1)))) for i in range(1, count + 1)}
        self.nodes = {i: RawNode(Config(i, log, Random(i), **settings)) for i, log in self.logs.items()}  # type: ignore[arg-type]
        self.reads: dict[int, list[ReadState]] = {i: [] for i in self.nodes}
        self.cut: Callable[[Message], bool] = lambda _: False

    def settle(self) -> None:
        while any(node.has_ready() for node in self.nodes.values()):
            mail: list[Message] = []
            for number, node in self.nodes.items():
                if not node.has_ready():
                    continue
                ready = node.ready()
                if ready.hard_state is not None:
                    self.logs[number].hard_state = ready.hard_state
                self.logs[number].append(ready.entries)
                self.reads[number].extend(ready.read_states)
                mail.extend(ready.messages)
                node.advance()
            for message in mail:
                if not self.cut(message):
                    self.nodes[message.to].step(message)

    def elect(self, number: int = 1) -> RawNode:
        self.nodes[number].campaign()
        self.settle()
        assert self.nodes[number].is_leader
        return self.nodes[number]


def test_propose_tells_term_and_index() -> None:
    group = Group(3, disable_proposal_forwarding=True)
    with pytest.raises(ProposalDropped):
        group.nodes[1].propose([b"x"])
    leader = group.elect()
    assert leader.propose([b"a", b"b"]) == (1, 2)
    assert leader.propose([b"c"]) == (1, 4)
    group.settle()
    assert leader.commit == leader.applied == leader.last_index == 4
    assert group.logs[3].entries(2, 5, 10**6).data == [b"a", b"b", b"c"]
    with pytest.raises(ProposalDropped):
        group.nodes[2].propose([b"x"])


def test_a_follower_forwards() -> None:
    group = Group(3)
    group.elect()
    assert group.nodes[2].propose([b"x"]) is None
    group.settle()
    assert group.logs[3].entries(2, 3, 10**6).data == [b"x"]


def test_reads_on_leader_and_follower() -> None:
    group = Group(3)
    leader = group.elect()
    leader.propose([b"a"])
    group.settle()
    leader.read_index(b"one")
    leader.read_index(b"two")
    group.nodes[3].read_index(b"three")
    group.settle()
    assert group.reads[1] == [ReadState(2, b"one"), ReadState(2, b"two")]
    assert group.reads[3] == [ReadState(2, b"three")]


def test_a_cut_off_leader_confirms_no_read() -> None:
    group = Group(3)
    old = group.elect()
    group.cut = lambda message: 1 in (message.source, message.to)
    for node in (group.nodes[2], group.nodes[3]):
        node.forget_leader()
    group.elect(2)
    group.nodes[2].propose([b"newer"])
    group.settle()
    old.read_index(b"stale")
    group.settle()
    assert group.reads[1] == []
    group.cut = lambda _: False
    group.nodes[2].tick()
    group.settle()
    assert not old.is_leader
    assert group.reads[1] == []


def test_a_read_waits_for_the_first_commit_of_the_term() -> None:
    group = Group(3)
    group.cut = lambda message: message.type is MessageType.APP
    leader = group.elect()
    assert not leader.committed_in_term
    leader.read_index(b"early")
    group.settle()
    assert group.reads[1] == []
    group.cut = lambda _: False
    leader.tick()
    group.settle()
    assert leader.committed_in_term
    assert group.reads[1] == [ReadState(1, b"early")]


def test_entries_of_older_terms_are_not_committed_by_their_copies() -> None:
    """Figure 8 of the paper: only an entry of the leader's own term commits, and with it what lies before."""
    group = Group(3, message_bytes_max=1)
    leader = group.elect()
    group.cut = lambda _: True
    leader.propose([b"old"])
    group.settle()
    leader.step(Message(MessageType.HEARTBEAT_RESP, 1, 3, 5))  # somebody was in term 5
    assert not leader.is_leader
    group.cut = lambda message: message.type is MessageType.APP and group.logs[message.to].last_index() == 2
    for node in (group.nodes[2], group.nodes[3]):
        node.forget_leader()
    group.elect()
    assert leader.term == 6
    assert {log.last_index() for log in group.logs.values()} == {2, 3}
    assert leader.status().progress[2].match == leader.status().progress[3].match == 2
    assert leader.commit == 1
    group.cut = lambda _: False
    leader.tick()
    group.settle()
    assert leader.commit == 3


def test_the_disks_word_of_an_older_term_does_not_count() -> None:
    """An entry was there, was replaced, and is there again: the first write's answer says nothing of the third."""
    log = MemoryLog(ConfState((1, 2, 3)))
    node = RawNode(Config(1, log, Random(1), async_storage_writes=True))
    writes = []
    for leader, term, entry_term in ((2, 1, 1), (3, 2, 2), (2, 3, 1)):
        entries = Entries(1, [entry_term], [0], [b"%d" % entry_term])
        node.step(Message(MessageType.APP, 1, leader, term, entries=entries, commit=int(term == 3)))
        writes.append(next(m for m in node.ready().messages if m.type is MessageType.STORAGE_APPEND))
    log.append(writes[0].entries)
    log.append(writes[1].entries)
    own = [response for response in writes[0].responses if response.type is MessageType.STORAGE_APPEND_RESP]
    assert [(one.term, one.log_term, one.index) for one in own] == [(1, 1, 1)]
    node.step(own[0])
    assert not node.has_ready()
    log.append(writes[2].entries)
    for response in writes[2].responses:
        if response.to == 1:
            node.step(response)
    assert node.ready().committed.data == [b"1"]


def test_waiting_reads_are_bounded() -> None:
    group = Group(3, reads_waiting_max=2)
    leader = group.elect()
    group.cut = lambda message: message.type is MessageType.HEARTBEAT
    for number in range(4):
        leader.read_index(b"%d" % number)
    group.settle()
    group.cut = lambda _: False
    leader.tick()
    group.settle()
    assert [state.context for state in group.reads[1]] == [b"0", b"1"]
    leader.read_index(b"5")
    group.settle()
    assert group.reads[1][-1] == ReadState(1, b"5")
    with pytest.raises(InvariantViolation):
        RawNode(Config(1, MemoryLog(ConfState((1,))), Random(1), reads_waiting_max=0))


def test_lease_reads_ask_nobody() -> None:
    group = Group(3, lease_reads=True)
    leader = group.elect()
    leader.read_index(b"x")
    ready = leader.ready()
    assert ready.read_states == [ReadState(1, b"x")]
    assert ready.messages == []
    with pytest.raises(InvariantViolation):
        RawNode(Config(1, MemoryLog(ConfState((1,))), Random(1), lease_reads=True, check_quorum=False))


def test_a_group_of_one_reads_at_once() -> None:
    group = Group(1)
    group.elect().read_index(b"x")
    group.settle()
    assert group.reads[1] == [ReadState(1, b"x")]


def test_a_group_of_one_that_started_again_reads_nothing_older_than_was_acknowledged() -> None:
    """The commit index on disk may lag; what was acknowledged is known to be committed with the term's first entry."""
    log = MemoryLog(ConfState((1,)))
    log.hard_state = HardState(1, 1, 0)
    log.append(Entries(1, [1, 1], [0, 0], [b"", b"acknowledged"]))
    node = RawNode(Config(1, log, Random(1), async_storage_writes=True))
    node.campaign()
    reads: list[ReadState] = []
    while node.has_ready():
        ready = node.ready()
        reads += ready.read_states
        for message in ready.messages:
            log.append(message.entries if message.type is MessageType.STORAGE_APPEND else Entries(1, [], [], []))
            for response in message.responses:
                led = node.is_leader
                node.step(response)
                if node.is_leader and not led:
                    node.read_index(b"first of all")
    assert reads == [ReadState(3, b"first of all")]


def test_uncommitted_bytes_are_bounded() -> None:
    group = Group(3, uncommitted_bytes_max=100)
    leader = group.elect()
    assert leader.propose([bytes(150)]) is not None  # a single large one is taken where nothing waits
    with pytest.raises(ProposalDropped):
        leader.propose([b"x"])
    assert leader.propose([b""]) is not None
    group.settle()
    assert leader.propose([b"x"]) is not None


def test_append_messages_are_bounded_and_pipelined() -> None:
    group = Group(3, message_bytes_max=100, inflight_messages_max=3, inflight_bytes_max=1000)
    leader = group.elect()
    leader.propose([bytes(34)] * 20)
    ready = leader.ready()
    appends = [message for message in ready.messages if message.to == 2]
    assert [len(message.entries) for message in appends] == [2]
    group.logs[1].append(ready.entries)
    leader.advance()
    leader.propose([b"x"])
    ready = leader.ready()
    assert sum(message.to == 2 for message in ready.messages) == 1  # the window is not full yet
    group.logs[1].append(ready.entries)
    leader.advance()


@pytest.mark.parametrize(("size", "messages", "bytes_max"), [(50, 64, 400), (0, 64, 400), (0, 3, 0)])
def test_who_does_not_answer_gets_a_window_and_no_more(size: int, messages: int, bytes_max: int) -> None:
    """In messages and in bytes, of which every entry costs some: so entries without a payload are bounded too."""
    group = Group(3, message_bytes_max=100, inflight_messages_max=messages, inflight_bytes_max=bytes_max)
    leader = group.elect()
    group.cut = lambda message: message.to == 3 and message.type is MessageType.APP
    sent: list[Message] = []
    for number in range(60):
        leader.propose([bytes(size)])
        ready = leader.ready()
        group.logs[1].append(ready.entries)
        leader.advance()
        sent += [message for message in ready.messages if message.to == 3 and message.entries]
        for message in ready.messages:
            if message.to == 2:
                group.nodes[2].step(message)
        group.settle()
        assert leader.commit == number + 2, "the others go on"
    status = leader.status().progress[3]
    assert status.inflight_full
    assert status.inflight == len(sent) <= messages
    if bytes_max:
        assert bytes_max <= sum(message.entries.byte_size for message in sent) < bytes_max + 100
    group.cut = lambda _: False
    leader.tick()
    group.settle()
    assert leader.status().progress[3].match == leader.last_index


def test_many_ticks_at_once() -> None:
    group = Group(3, election_tick=10, heartbeat_tick=2)
    leader = group.elect()
    assert leader.ticks_left == 2
    leader.tick(2)
    assert sum(message.type is MessageType.HEARTBEAT for message in leader.ready().messages) == 2
    leader.advance()
    follower = group.nodes[2]
    left = follower.ticks_left
    assert 10 <= left < 20
    follower.tick(left - 1)
    assert not follower.has_ready()
    assert follower.ticks_left == 1
    follower.leader_is_alive()
    assert follower.ticks_left == left
    follower.tick(left)
    assert follower.role is Role.PRE_CANDIDATE


def test_a_member_heard_of_elsewhere_keeps_the_leader() -> None:
    group = Group(3)
    leader = group.elect()
    leader.tick(10)
    leader.member_is_alive(2)
    leader.tick(10)
    assert leader.is_leader
    leader.tick(10)
    assert not leader.is_leader


def test_quiet() -> None:
    group = Group(3)
    leader = group.elect()
    assert leader.quiet
    assert not group.nodes[2].quiet
    leader.propose([b"x"])
    assert not leader.quiet
    group.settle()
    assert leader.quiet
    leader.read_index(b"r")
    assert not leader.quiet


def test_status() -> None:
    group = Group(3)
    leader = group.elect()
    status = leader.status()
    assert status.hard_state == HardState(1, 1, 1)
    assert {member: one.match for member, one in status.progress.items()} == {1: 1, 2: 1, 3: 1}
    assert group.nodes[2].status().progress == {}
    assert group.nodes[2].leader == 1


def test_strangers_are_refused() -> None:
    node = Group(3).nodes[1]
    with pytest.raises(UnknownPeer):
        node.step(Message(MessageType.APP_RESP, 1, 9, 1))
    with pytest.raises(UnknownPeer):
        node.step(Message(MessageType.HUP, 1, 2))
    node.step(Message(MessageType.APP_RESP, 1, 1, 1))  # its own: harmless, though it be removed


def test_a_change_that_does_not_fit_becomes_an_empty_entry() -> None:
    group = Group(1)
    leader = group.elect()
    leader.propose_conf_change(ConfChange((ConfChangeSingle(ConfChangeType.REMOVE_NODE, 1),)))
    group.settle()
    assert group.logs[1].entries(2, 3, 10**6) == Entries(2, [1], [0], [b""])


def test_applied_is_committed_at_the_start() -> None:
    """The commit index need not be on disk when the state machine has got further."""
    log = MemoryLog(ConfState((1, 2, 3)))
    log.append(Entries(1, [1, 1, 1], [0, 0, 0], [b"a", b"b", b"c"]))
    log.hard_state = HardState(1, 0, 1)
    node = RawNode(Config(1, log, Random(1), applied=2))
    assert (node.commit, node.applied, node.term) == (2, 2, 1)
    with pytest.raises(InvariantViolation):
        RawNode(Config(1, log, Random(1), applied=4))


def test_ready_waits_for_advance() -> None:
    node = Group(1).nodes[1]
    node.campaign()
    node.ready()
    with pytest.raises(InvariantViolation):
        node.ready()
