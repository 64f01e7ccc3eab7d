"""The driver: every proposal is answered, reads never go back, a long log leaves the loop to its other work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import chain

import pytest

from iotdb_cluster.cluster import applying
from iotdb_cluster.cluster.group import Outcome
from iotdb_cluster.cluster.log import Compact
from iotdb_cluster.errors import NotLeader, OutcomeUnknown
from iotdb_cluster.limits import KIB
from iotdb_cluster.raft import Entries, MessageType
from iotdb_cluster.simulation import VirtualLoop
from tests.cluster.shell import TICK_MS, Cluster, run_virtual, watch_reads


@pytest.mark.parametrize("seed", range(5))
def test_every_proposal_is_answered_once_and_reads_never_go_back(seed: int) -> None:
    async def main() -> None:
        cluster = Cluster(seed)
        await cluster.start()
        rng = cluster.random
        acked: set[bytes] = set()
        refused: set[bytes] = set()
        open_futures: list[asyncio.Future[Outcome]] = []
        reads = 0

        async def propose(payload: bytes) -> None:
            node = rng.choice(list(cluster.groups))
            try:
                (future,) = cluster.drivers[node].propose(cluster.groups[node], [payload])
            except NotLeader:
                refused.add(payload)
                return
            open_futures.append(future)
            try:
                assert (await future).value == payload.decode()
                acked.add(payload)
            except NotLeader:
                refused.add(payload)
            except OutcomeUnknown:
                pass

        async def read() -> None:
            nonlocal reads
            node = rng.choice(list(cluster.groups))
            before = set(acked)
            try:
                async with asyncio.timeout(3):
                    await cluster.drivers[node].read_barrier(cluster.groups[node])
            except TimeoutError:
                return
            assert before <= set(cluster.machines[node].applied)
            reads += 1

        cluster.loss, cluster.reorder = 0.05, True
        tasks = []
        for number in range(400):
            tasks.append(asyncio.create_task(propose(b"p%d" % number)))
            tasks.append(asyncio.create_task(read()))
            await asyncio.sleep(rng.uniform(0, 0.05))
            if number % 60 == 30:
                cluster.isolate(rng.choice(list(cluster.groups)))
            elif number % 60 == 55:
                cluster.heal()
        await cluster.settle()
        await asyncio.gather(*tasks)
        assert all(future.done() for future in open_futures)
        assert reads > 50
        assert len(acked) > 20
        applied = cluster.machines[1].applied
        assert len(applied) == len(set(applied))
        assert acked <= set(applied)
        assert not refused & set(applied)
        for node, group in cluster.groups.items():
            assert cluster.machines[node].applied == applied
            assert not group.proposals
            assert not group.read_rounds
            assert not group.apply_waiting
        await cluster.close()

    run_virtual(main)


def test_a_leader_that_is_cut_off_tells_its_proposers_that_the_outcome_is_unknown() -> None:
    async def main() -> None:
        cluster = Cluster(1)
        await cluster.start()
        node = await cluster.leader()
        cluster.isolate(node)
        (future,) = cluster.drivers[node].propose(cluster.groups[node], [b"lost"])
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(OutcomeUnknown):
            await future
        assert loop.time() - began < 2.5
        assert not cluster.groups[node].proposals
        await cluster.settle()
        await cluster.close()

    run_virtual(main)


def test_a_read_of_an_earlier_life_answers_none_of_this_one() -> None:
    async def main() -> None:
        contexts = set()
        for seed in (1, 2):
            cluster = Cluster(seed)
            await cluster.start()
            node = await cluster.leader()
            group = cluster.groups[node]
            cluster.drop = lambda kind: kind in (MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP)
            waiting = asyncio.create_task(cluster.drivers[node].read_barrier(group))
            await asyncio.sleep(0.01)
            contexts.update(group.read_rounds)
            waiting.cancel()
            await cluster.close()
        assert len(contexts) == 2

    run_virtual(main)


def test_a_replica_that_was_let_go_leads_no_more() -> None:
    """Whoever holds it still must not take it for the leader, nor name it as one."""

    async def main() -> None:
        cluster = Cluster(1)
        await cluster.start()
        node = await cluster.leader()
        group = cluster.groups[node]
        cluster.drivers[node].remove(group)
        assert not group.leads
        assert not group.leads_whole
        with pytest.raises(NotLeader) as refused:
            cluster.drivers[node].propose(group, [b"late"])
        assert refused.value.leader == 0
        await cluster.close()

    run_virtual(main)


def test_old_entries_are_read_by_workers_alone() -> None:
    """A member that was away gets them from a leader, and applies them again after its restart; no loop waits for it.

    The caches hold less than one entry.
    """

    async def main() -> None:
        cluster = Cluster(4, log_cache_bytes=1)
        await cluster.start()
        on_the_loop: list[int] = []

        for log in cluster.logs.values():
            watch_reads(log, on_the_loop)
        node = await cluster.leader()
        away = next(other for other in cluster.groups if other != node)
        await cluster.crash(away)
        for number in range(40):
            (future,) = cluster.drivers[node].propose(cluster.groups[node], [b"%d " % number * 2_000])
            await future
        for _ in range(2):
            await cluster.start_node(away)
            watch_reads(cluster.logs[away], on_the_loop)
            await cluster.settle()
            await cluster.crash(away)
        await cluster.start_node(away)
        await cluster.settle()
        assert len(cluster.machines[away].applied) == 40
        assert not on_the_loop
        await cluster.close()

    run_virtual(main)


def test_a_long_log_is_applied_in_pieces() -> None:
    async def main() -> None:
        cluster = Cluster(3, count=1, apply_bytes_max=64 * KIB)
        await cluster.start()
        node = await cluster.leader()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        turn = 0
        turns_of_runs: list[int] = []
        machine = cluster.machines[node]
        apply = machine.apply

        def count() -> None:
            nonlocal turn
            turn += 1

        def noted(entries: Entries) -> list[Outcome]:
            turns_of_runs.append(turn)
            return apply(entries)

        machine.apply = noted  # type: ignore[method-assign]
        loop.set_turn(count)
        await asyncio.gather(*cluster.drivers[node].propose(cluster.groups[node], [bytes(8 * KIB)] * 100))
        assert max(machine.runs) <= 64 * KIB
        assert len(turns_of_runs) >= 10
        assert len(set(turns_of_runs)) == len(turns_of_runs)
        loop.set_turn(None)
        await cluster.close()

    run_virtual(main)


@pytest.mark.parametrize("lone", [False, True], ids=["runs", "lone entries"])
def test_the_logs_of_many_groups_are_applied_in_pieces(lone: bool) -> None:
    """As after a restart: all of them together leave the loop to its other work."""

    async def main() -> None:
        groups, run_bytes = 12, 8 * KIB
        cluster = Cluster(3, count=1, apply_bytes_max=run_bytes, group_count=groups)
        await cluster.start()
        await asyncio.sleep(3)
        driver, every = cluster.drivers[1], cluster.every[1]
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        applied: list[dict[int, int]] = [{}]  # in each turn: by group, bytes

        def watch(number: int, apply: Callable[[Entries], list[Outcome]]) -> Callable[[Entries], list[Outcome]]:
            def noted(entries: Entries) -> list[Outcome]:
                applied[-1][number] = applied[-1].get(number, 0) + entries.byte_size
                return apply(entries)

            return noted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(applying, "APPLY_BYTES_MAX", 2 * run_bytes)
            for number, group in every.items():
                patch.setattr(group.machine, "apply", watch(number, group.machine.apply))
            loop.set_turn(lambda: applied.append({}))
            proposals = [[bytes(KIB)]] * 8 if lone else [[bytes(KIB)] * 60]
            waiting = [driver.propose(group, some) for some in proposals for group in every.values()]
            await asyncio.gather(*chain.from_iterable(waiting))
        busy = [turn for turn in applied if turn]
        # Where the last run goes beyond what a turn may apply, and one more, that has waited.
        assert max(sum(turn.values()) for turn in busy) <= (2 + 2) * run_bytes
        firsts = [next(at for at, turn in enumerate(busy) if number in turn) for number in every]
        assert max(firsts) <= groups  # none waits until others are through
        loop.set_turn(None)
        await cluster.close()

    run_virtual(main)


def test_a_leader_is_whole_when_it_has_applied_what_was_committed_before() -> None:
    """After a restart it may lead, and know what is committed, long before it has applied that."""

    async def main() -> None:
        cluster = Cluster(3, count=1, apply_bytes_max=64 * KIB)
        await cluster.start()
        node = await cluster.leader()
        await asyncio.gather(*cluster.drivers[node].propose(cluster.groups[node], [bytes(8 * KIB)] * 100))
        assert cluster.groups[node].leads_whole
        await cluster.crash(node)
        await cluster.start_node(node)
        group, lacking = cluster.groups[node], 0
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        def look() -> None:
            nonlocal lacking
            if group.leads and group.raw.committed_in_term and group.applied < 100:
                lacking += 1
                assert not group.leads_whole

        loop.set_turn(look)
        while not group.leads_whole:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert lacking > 5
        assert group.applied > 100
        loop.set_turn(None)
        await cluster.close()

    run_virtual(main)


def test_a_lost_snapshot_is_sent_again() -> None:
    async def main() -> None:
        cluster = Cluster(5)
        await cluster.start()
        node = await cluster.leader()
        far = next(other for other in cluster.groups if other != node)
        cluster.isolate(far)
        for number in range(20):
            await asyncio.gather(*cluster.drivers[node].propose(cluster.groups[node], [b"%d" % number]))
        group = cluster.groups[node]
        cluster.logs[node].submit([Compact(group.replica, 15, group.log.term(15))], lambda: None)
        await asyncio.sleep(0.5)
        lost = []

        def first_snapshot(kind: MessageType) -> bool:
            if kind is MessageType.SNAP and not lost:
                lost.append(kind)
                return True
            return False

        cluster.heal()
        cluster.drop = first_snapshot
        await cluster.drivers[far].wait_applied(cluster.groups[far], 20)
        assert lost
        await cluster.settle()
        assert cluster.machines[far].applied == cluster.machines[node].applied
        await cluster.close()

    run_virtual(main, limit_s=60)


def test_who_waits_for_an_index_and_gives_up_leaves_nothing_behind() -> None:
    async def main() -> None:
        cluster = Cluster(6)
        await cluster.start()
        node = await cluster.leader()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await cluster.drivers[node].wait_applied(cluster.groups[node], 1_000)
        await asyncio.sleep(0.5)
        assert not cluster.groups[node].apply_waiting
        await cluster.close()

    run_virtual(main)


def test_the_news_of_a_commit_goes_with_the_next_entry_or_soon_by_itself() -> None:
    """With many busy groups the next entry takes it along; the last ones are told without waiting for a tick."""

    async def main() -> None:
        groups, entries = 40, 10
        cluster = Cluster(5, group_count=groups)
        await cluster.start()
        await asyncio.sleep(3)

        async def client(number: int) -> None:
            (node,) = [node for node, every in cluster.every.items() if every[number].leads]
            for entry in range(entries):
                (future,) = cluster.drivers[node].propose(cluster.every[node][number], [b"%d" % entry])
                await future

        cluster.delivered.clear()
        await asyncio.gather(*map(client, range(7, 7 + groups)))
        assert 0 < cluster.delivered["Commits"] < groups * entries  # each could be two: the members beside the leader
        await asyncio.sleep(TICK_MS / 2000)
        for every in cluster.every.values():
            assert all(group.applied == group.raw.last_index for group in every.values())
        await cluster.close()

    run_virtual(main)
