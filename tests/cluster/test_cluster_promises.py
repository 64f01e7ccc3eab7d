"""What the driver may say only when it is true: that an entry is durable, and that a read is not stale.

Each test holds back exactly what the promise rests on (a sync, an answer), makes the others decide without this node,
and looks whether it speaks too early.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from iotdb_cluster.cluster.beats import Answer, Beat
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.log import Compact, Record
from iotdb_cluster.cluster.outbox import PeerOutbox
from iotdb_cluster.cluster.replicas import Replicas
from iotdb_cluster.errors import InvariantViolation
from iotdb_cluster.raft import Entries, Message, MessageType
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from tests.cluster.shell import Cluster, run_virtual, world_of

SOON_S = 0.3  # shorter than an election timeout, longer than any way


def hold_the_disk(cluster: Cluster, node: int) -> Callable[[], None]:
    """Nothing that the node writes from now on becomes durable until the returned function is called."""
    log = cluster.logs[node]
    submit = log.submit
    held: list[tuple[Sequence[Record], Callable[[], None]]] = []

    def hold(records: Sequence[Record], done: Callable[[], None]) -> None:
        if records or held:
            held.append((records, done))
        else:  # an answer that waits for what was written before
            submit(records, done)

    log.submit = hold  # type: ignore[method-assign]

    def release() -> None:
        log.submit = submit  # type: ignore[method-assign]
        for records, done in held:
            submit(records, done)

    return release


class HeldBack:
    """Words on their way to a node: what `picks` says stays here until `release`, even if the node is cut off then."""

    def __init__(self, cluster: Cluster, to: int, picks: Callable[[object, MessageType], bool]) -> None:
        self._cluster = cluster
        self._carry = cluster.carry
        self._to = to
        self._picks = picks
        self.words: list[tuple[int, int, int, bytes | Beat | Answer]] = []
        cluster.carry = self._hold  # type: ignore[method-assign]

    def _hold(self, source: int, target: int, group: int, data: bytes | Beat | Answer, kind: MessageType) -> None:
        if target == self._to and self._picks(data, kind):
            self.words.append((source, target, group, data))
        else:
            self._carry(source, target, group, data, kind)

    def release(self) -> None:
        self._cluster.carry = self._carry  # type: ignore[method-assign]
        for word in self.words:
            self._cluster._deliver(*word)


async def overtake(cluster: Cluster, old: int) -> None:
    """The others elect one of theirs at once, which commits an entry; the old leader, cut off, knows nothing of it."""
    cluster.isolate(old)
    others = [node for node in cluster.groups if node != old]
    for node in others:
        cluster.groups[node].raw.forget_leader()
        cluster.drivers[node].wake(cluster.groups[node])
    cluster.groups[others[0]].raw.campaign()
    cluster.drivers[others[0]].wake(cluster.groups[others[0]])
    while not (cluster.groups[others[0]].leads and cluster.groups[others[0]].raw.committed_in_term):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    (written,) = cluster.drivers[others[0]].propose(cluster.groups[others[0]], [b"newer"])
    await written
    assert cluster.groups[old].leads, "this took so long that the old leader gave up by itself"


async def led(seed: int, *, plain: bool = False) -> tuple[Cluster, int]:
    """(three nodes that have the same, the one that leads)."""
    cluster = Cluster(seed, plain=plain)
    await cluster.start()
    leader = await cluster.leader()
    await cluster.settle()
    return cluster, leader


async def answered_with_the_newer(cluster: Cluster, old: int, read: asyncio.Future[int]) -> None:
    """The old leader answers a read when it has what the others decided meanwhile; the end of a test."""
    await cluster.settle()
    await read
    assert b"newer" in cluster.machines[old].applied
    await cluster.close()


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_is_acknowledged_before_it_is_on_a_majoritys_disks(count: int) -> None:
    """One entry goes as a lone one, two as a message."""

    async def main() -> None:
        cluster, leader = await led(11)
        followers = [node for node in cluster.groups if node != leader]
        releases = [hold_the_disk(cluster, node) for node in followers]
        (future, *_) = cluster.drivers[leader].propose(cluster.groups[leader], [b"written"] * count)
        await asyncio.sleep(SOON_S)
        assert all(cluster.groups[node].raw.last_index > cluster.groups[leader].raw.commit for node in followers)
        assert not future.done()
        releases[0]()
        assert (await future).value == "written"
        releases[1]()
        await cluster.settle()
        # The leader's own disk counts like a member's: with one follower's it is enough, alone it is nothing.
        release = hold_the_disk(cluster, leader)
        cluster.isolate(followers[0])
        (future, *_) = cluster.drivers[leader].propose(cluster.groups[leader], [b"again"] * count)
        await asyncio.sleep(SOON_S)
        assert not future.done()
        release()
        assert (await future).value == "again"
        await cluster.settle()
        await cluster.close()

    run_virtual(main)


def test_no_vote_is_given_before_it_is_on_disk() -> None:
    async def main() -> None:
        cluster, leader = await led(12)
        candidate, voter = (node for node in cluster.groups if node != leader)
        release = hold_the_disk(cluster, voter)
        cluster.isolate(leader)
        for node in (candidate, voter):
            cluster.groups[node].raw.forget_leader()
        cluster.groups[candidate].raw.campaign()
        cluster.drivers[candidate].wake(cluster.groups[candidate])
        await asyncio.sleep(SOON_S)
        assert cluster.groups[voter].raw.vote == cluster.groups[candidate].replica
        assert not cluster.groups[candidate].leads
        release()
        await asyncio.sleep(SOON_S)
        assert cluster.groups[candidate].leads
        await cluster.settle()
        await cluster.close()

    run_virtual(main)


def test_a_vote_outlives_the_process() -> None:
    """Also where the commit index that is stored with it lags behind."""

    async def main() -> None:
        cluster = Cluster(19)
        await cluster.start()
        leader = await cluster.leader()
        for number in range(5):
            await asyncio.gather(*cluster.drivers[leader].propose(cluster.groups[leader], [b"%d" % number]))
        await cluster.settle()
        candidate, voter = (node for node in cluster.groups if node != leader)
        cluster.isolate(leader)
        for node in (candidate, voter):
            cluster.groups[node].raw.forget_leader()
        cluster.groups[candidate].raw.campaign()
        cluster.drivers[candidate].wake(cluster.groups[candidate])
        while not cluster.groups[candidate].leads:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        before = cluster.groups[voter].raw
        await cluster.crash(voter)
        await cluster.start_node(voter)
        after = cluster.groups[voter].raw
        assert (after.term, after.vote) == (before.term, before.vote) == (after.term, cluster.groups[candidate].replica)
        assert after.last_index >= 6
        await cluster.settle()
        await cluster.close()

    run_virtual(main)


@pytest.mark.parametrize("plain", [False, True], ids=["beats", "plain"])
def test_a_leader_that_was_overtaken_confirms_no_read(plain: bool) -> None:
    async def main() -> None:
        cluster, old = await led(13, plain=plain)
        await overtake(cluster, old)
        read = asyncio.ensure_future(cluster.drivers[old].read_barrier(cluster.groups[old], leader_only=True))
        await asyncio.sleep(SOON_S)
        assert not read.done()
        await answered_with_the_newer(cluster, old, read)

    run_virtual(main)


def test_a_read_waits_for_a_round_that_is_sent_after_it() -> None:
    """The answers to an earlier read's heartbeats were given before the others went on: they are too old."""

    async def main() -> None:
        cluster, old = await led(14)
        group, driver = cluster.groups[old], cluster.drivers[old]
        held = HeldBack(cluster, old, lambda _, kind: kind is MessageType.HEARTBEAT_RESP)
        first = asyncio.ensure_future(driver.read_barrier(group))
        await asyncio.sleep(0.05)
        assert held.words
        await overtake(cluster, old)
        second = asyncio.ensure_future(driver.read_barrier(group))
        await asyncio.sleep(0.01)
        held.release()
        await asyncio.sleep(SOON_S / 3)
        assert first.done(), "a read may be answered as of before the other leader"
        assert not second.done()
        await answered_with_the_newer(cluster, old, second)

    run_virtual(main)


def test_the_hash_of_quiet_groups_confirms_no_read() -> None:
    """Its answer may have been on its way while the others elected a leader and wrote."""

    async def main() -> None:
        cluster, old = await led(15)
        group, driver = cluster.groups[old], cluster.drivers[old]
        while len(group.covers) < 2:  # noqa: ASYNC110 - the group has to become quiet first
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        held = HeldBack(cluster, old, lambda data, _: isinstance(data, Answer))
        while len(held.words) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await overtake(cluster, old)
        read = asyncio.ensure_future(driver.read_barrier(group))
        await asyncio.sleep(0.01)
        held.release()
        await asyncio.sleep(SOON_S / 3)
        assert not read.done()
        await answered_with_the_newer(cluster, old, read)

    run_virtual(main)


def test_a_snapshot_counts_when_its_mark_is_durable() -> None:
    async def main() -> None:
        cluster, leader = await led(16)
        far = next(node for node in cluster.groups if node != leader)
        cluster.isolate(far)
        for number in range(20):
            await asyncio.gather(*cluster.drivers[leader].propose(cluster.groups[leader], [b"%d" % number]))
        group = cluster.groups[leader]
        cluster.logs[leader].submit([Compact(group.replica, 15, group.log.term(15))], lambda: None)
        await asyncio.sleep(SOON_S)
        before = list(cluster.machines[far].applied)
        release = hold_the_disk(cluster, far)
        cluster.heal()
        while not cluster.groups[far].raw.restoring:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(SOON_S)
        assert cluster.machines[far].applied == before
        assert cluster.groups[far].raw.status().applied < 15
        release()
        await cluster.settle()
        assert cluster.machines[far].applied == cluster.machines[leader].applied
        await cluster.close()

    run_virtual(main)


def test_nothing_is_applied_that_the_log_does_not_hold() -> None:
    async def main() -> None:
        cluster = Cluster(17, count=1)
        await cluster.start()
        node = await cluster.leader()
        group = cluster.groups[node]
        ahead = group.log.last_index() + 1
        with pytest.raises(InvariantViolation, match=f"applies entry {ahead}, its log is durable to {ahead - 1}"):
            group.apply(Entries(group.applied + 1, [1] * (ahead - group.applied), [0] * 1, [b""]))
        with pytest.raises(InvariantViolation, match="after entry"):
            group.apply(Entries(group.applied, [1], [0], [b""]))
        await cluster.close()

    run_virtual(main)


class Listener:
    """In place of a driver: remembers what it is given."""

    def __init__(self, group: Group) -> None:
        self.groups = {group.id: group}
        self.taken: list[Message] = []

    def step(self, _: Group, message: Message) -> None:
        self.taken.append(message)


def test_messages_of_a_wiped_node_and_of_other_replicas_are_dropped() -> None:
    """A node that lost its disks has forgotten its votes: what it says under its old identifier must not count."""

    async def main() -> None:
        cluster = Cluster(18)
        await cluster.start()
        group = cluster.groups[1]
        listener = Listener(group)
        unused = cast(Any, None)
        replicas = Replicas(
            world_of(18), unused, unused, cast(Driver, listener), {}, {2: 77}, lambda: None, unused, unused
        )

        def said(node: int, incarnation: int, message: Message, generation: int = group.generation) -> int:
            batches: list[bytes] = []
            outbox = PeerOutbox(node, incarnation, lambda *parts: bool(batches.append(parts[2])))
            outbox.post(1, replace(group, generation=generation), message, False)
            outbox.flush()
            before = len(listener.taken)
            replicas.receive(PeerIdentity(node, b"", "raft"), memoryview(batches[0]))
            return len(listener.taken) - before

        vote = Message(MessageType.VOTE_RESP, 101, 102, 3)
        assert said(2, 77, vote) == 1
        assert said(2, 78, vote) == 0  # wiped
        assert said(2, 77, vote, generation=2) == 0
        assert said(2, 77, Message(MessageType.VOTE_RESP, 109, 102, 3)) == 0
        assert said(2, 77, Message(MessageType.VOTE_RESP, 101, 103, 3)) == 0  # in another's name
        assert said(3, 5, Message(MessageType.VOTE_RESP, 101, 103, 3)) == 1  # not known yet: known from now on
        assert said(3, 6, Message(MessageType.VOTE_RESP, 101, 103, 3)) == 0
        await cluster.close()

    run_virtual(main)
