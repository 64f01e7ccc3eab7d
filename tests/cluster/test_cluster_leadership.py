"""Who leads, and who does not come to: heads of groups, peers that take nothing, processes that stood still."""

from __future__ import annotations

import asyncio

import pytest

from iotdb_cluster.cluster import leadership
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.leadership import Leadership
from iotdb_cluster.cluster.lone import Appends
from iotdb_cluster.cluster.outbox import Channel, PeerOutbox, read_batch
from iotdb_cluster.raft import Entries, Message, MessageType, ProgressState
from iotdb_cluster.simulation import NodeRun, VirtualLoop
from iotdb_cluster.simulation.loop import NODE_RUN
from tests.cluster.shell import Cluster, run_virtual, world_of

STEADY_S = leadership.STEADY_MS / 1000


class Heads:
    """The k-th group of the cluster is headed by node k; the product's groups have the number of their head."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.moves: list[tuple[int, int]] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.behind: set[tuple[int, int]] = set()  # nodes, and groups of which they have much to apply there
        cluster.leader_changed = self.changed

    def changed(self, node: int, group: Group) -> None:
        if group.leads:
            self.moves.append((group.id, node))

    def watch(self, node: int) -> None:
        one = Leadership(
            world_of(node), self.cluster.drivers[node], node, lambda _: False, lambda *at: at not in self.behind
        )
        one.head_of = lambda group: group.id - 6  # type: ignore[method-assign]
        self.tasks[node] = asyncio.create_task(one.run())

    def leaders(self) -> dict[int, int]:
        return {number: node for node, groups in self.cluster.every.items() for number, g in groups.items() if g.leads}

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.wait(self.tasks.values())


@pytest.mark.parametrize("seed", range(3))
def test_each_node_comes_to_lead_its_share_and_keeps_it(seed: int) -> None:
    async def main() -> None:
        cluster = Cluster(seed, group_count=3)
        heads = Heads(cluster)
        await cluster.start()
        for node in (1, 2, 3):
            heads.watch(node)
        await asyncio.sleep(STEADY_S - 2)
        wrong = sum(number - 6 != node for number, node in heads.leaders().items())
        moves = len(heads.moves)
        await asyncio.sleep(10)
        assert heads.leaders() == {7: 1, 8: 2, 9: 3}
        assert len(heads.moves) == moves + wrong
        # A head that was away gets its group back when it has been there for a while, and once.
        heads.tasks.pop(1).cancel()
        await cluster.crash(1)
        await asyncio.sleep(3)
        assert heads.leaders()[7] != 1
        await cluster.start_node(1)
        heads.watch(1)
        await asyncio.sleep(STEADY_S - 2)
        assert heads.leaders()[7] != 1
        await asyncio.sleep(6)
        assert heads.leaders() == {7: 1, 8: 2, 9: 3}
        moves = len(heads.moves)
        await asyncio.sleep(60)
        assert len(heads.moves) == moves
        await heads.end()
        await cluster.close()

    run_virtual(main)


@pytest.mark.parametrize("seed", range(3))
def test_a_head_that_has_much_to_apply_does_not_get_its_group_before_it_has(seed: int) -> None:
    async def main() -> None:
        cluster = Cluster(seed, group_count=3)
        heads = Heads(cluster)
        heads.behind = {(1, 7)}
        await cluster.start()
        while (leader := await cluster.leader()) == 1:
            cluster.drivers[1].transfer_leader(cluster.groups[1], 102)
            await asyncio.sleep(1)
        for node in (1, 2, 3):
            heads.watch(node)
        await asyncio.sleep(2 * STEADY_S)
        assert heads.leaders() == {7: leader, 8: 2, 9: 3}
        heads.behind.clear()
        await asyncio.sleep(2)
        assert heads.leaders() == {7: 1, 8: 2, 9: 3}
        await heads.end()
        await cluster.close()

    run_virtual(main)


def test_who_must_hand_over_prefers_a_member_that_has_applied_what_it_has() -> None:
    async def main() -> None:
        for behind in ({(2, 7)}, {(3, 7)}, {(2, 7), (3, 7)}):
            cluster = Cluster(5)
            await cluster.start()
            while await cluster.leader() != 1:
                cluster.drivers[await cluster.leader()].transfer_leader(cluster.groups[await cluster.leader()], 101)
                await asyncio.sleep(1)
            full = Leadership(
                world_of(1), cluster.drivers[1], 1, lambda node: node == 1, lambda *at, b=behind: at not in b
            )
            task = asyncio.create_task(full.run())
            await asyncio.sleep(3)
            led = await cluster.leader()
            assert led != 1
            assert (led, 7) not in behind or len(behind) == 2
            task.cancel()
            await cluster.close()

    run_virtual(main)


def test_a_head_that_cannot_be_elected_is_not_tried_all_the_time() -> None:
    async def main() -> None:
        cluster = Cluster(2, group_count=3)
        heads = Heads(cluster)
        await cluster.start()
        dropped = 0

        def lost(kind: MessageType) -> bool:
            nonlocal dropped
            dropped += kind is MessageType.TIMEOUT_NOW
            return kind is MessageType.TIMEOUT_NOW

        cluster.drop = lost
        for node in (1, 2, 3):
            heads.watch(node)
        await asyncio.sleep(STEADY_S + 5)
        wrong = sum(number - 6 != node for number, node in heads.leaders().items())
        assert dropped == wrong > 0
        await asyncio.sleep(leadership.AGAIN_MS / 2000)
        assert dropped == wrong
        # Meanwhile the groups go on where they are.
        for number, node in heads.leaders().items():
            (future,) = cluster.drivers[node].propose(cluster.every[node][number], [b"x"])
            assert (await future).value == "x"
        await heads.end()
        await cluster.close()

    run_virtual(main)


def test_entries_for_a_peer_that_takes_nothing_are_dropped_and_it_is_probed() -> None:
    async def main() -> None:
        cluster = Cluster(1)
        await cluster.start()
        node = await cluster.leader()
        far = next(other for other in cluster.groups if other != node)
        driver, group = cluster.drivers[node], cluster.groups[node]
        flush, stalled = driver._outbox.flush, True

        def one_takes_nothing() -> list[tuple[Group, int]]:
            outbox = driver._outbox
            lost = []
            if stalled:
                kept = []
                for part in outbox._parts:  # type: ignore[attr-defined]
                    if part[0] != far:
                        kept.append(part)
                    elif part[3] is MessageType.APP and isinstance(part[2], bytes | Appends):
                        lost.append((group, 100 + far))
                outbox._parts = kept  # type: ignore[attr-defined]
            flush()
            return lost

        driver._outbox.flush = one_takes_nothing  # type: ignore[method-assign]
        sent = 0
        for number in range(300):
            (future,) = driver.propose(group, [b"%d" % number * 20])
            await future  # the other follower and this node are the majority
            progress = group.raw.status().progress[100 + far]
            sent = max(sent, progress.inflight)
        assert progress.state is ProgressState.PROBE
        assert progress.paused
        assert sent <= 2
        stalled = False
        await cluster.settle()
        assert cluster.machines[far].applied == cluster.machines[node].applied
        await cluster.close()

    run_virtual(main)


def test_a_batch_that_is_not_taken_names_the_members_that_lack_entries() -> None:
    taken: list[tuple[int, Channel]] = []

    def send(node: int, channel: Channel, batch: bytes) -> bool:
        taken.append((node, channel))
        read_batch(batch)
        return node == 2

    outbox = PeerOutbox(1, 5, send)
    group = Group(7, 1, 701, None, None, None, {})  # type: ignore[arg-type]
    append = Message(MessageType.APP, 702, 701, 3, 3, 4, 4, entries=Entries(5, [3], [0], [b"x"]))
    for node, member in ((2, 702), (3, 703)):
        append.to = member
        outbox.post(node, group, append, False)
        outbox.post(node, group, Message(MessageType.HEARTBEAT, member, 701, 3), True)
    assert outbox.flush() == [(group, 703)]
    assert len(taken) == 4
    assert outbox.flush() == []


def test_a_process_that_stood_still_hears_what_has_arrived_before_its_timers_run_out() -> None:
    """A follower is stopped again and again, longer than its election time-out: no election, no second tick at once."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        cluster = Cluster(4, group_count=3)
        run = NodeRun("node1", 1)

        async def start() -> None:
            NODE_RUN.set(run)
            cluster._disks[1] = cluster.disk_of(1)
            await cluster.start_node(1)

        for node in (2, 3):
            cluster._disks[node] = cluster.disk_of(node)
            await cluster.start_node(node)
        for group in cluster.every[2].values():
            await cluster.drivers[2].read_barrier(group)
        await asyncio.create_task(start())
        cluster.delivered_in = {1: run}
        await asyncio.sleep(3)
        votes = 0
        terms = {number: group.raw.term for number, group in cluster.every[2].items()}

        def noted(kind: MessageType) -> bool:
            nonlocal votes
            votes += kind in (MessageType.PRE_VOTE, MessageType.VOTE)
            return False

        cluster.drop = noted
        for _ in range(10):
            run.paused = True
            await asyncio.sleep(2)
            ticks = cluster.drivers[1]._timing.ticks
            loop.resume(run)
            await asyncio.sleep(0.01)
            assert cluster.drivers[1]._timing.ticks - ticks <= 1
            await asyncio.sleep(0.5)
        assert not votes
        assert terms == {number: group.raw.term for number, group in cluster.every[2].items()}
        await cluster.close()

    run_virtual(main)
