"""Hashed heartbeats: quiet groups cost nothing, and everything else goes as with a heartbeat of each group's own."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.cluster import group as group_module
from iotdb_cluster.cluster.beats import Answer, Beat, BeatReceiver, BeatSender, Covered
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.errors import CorruptData, NotLeader, OutcomeUnknown
from iotdb_cluster.raft import MessageType, Role
from tests.cluster.shell import TICK_MS, Cluster, run_virtual

TICK_S = TICK_MS / 1000
ELECTION_TICKS = 5  # as the shell sets it; randomised to twice by the core
HEARTBEATS = ("HEARTBEAT", "HEARTBEAT_RESP")


class Watch:
    """Notes who led when, and that no term of a group had two leaders."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.leaders: dict[tuple[int, int], int] = {}
        self.changes = 0
        cluster.leader_changed = self.changed

    def changed(self, node: int, group: Group) -> None:
        self.changes += 1
        if group.leads:
            assert self.leaders.setdefault((group.id, group.raw.term), node) == node

    def leader_of(self, group: int) -> int:
        """The node that leads in the newest term, 0 where none does."""
        leading = [(g[group].raw.term, node) for node, g in self.cluster.every.items() if g[group].leads]
        return max(leading)[1] if leading else 0


async def all_led(cluster: Cluster, nodes: Iterable[int] = (1, 2, 3), limit_s: float = 30) -> None:
    """Until one of the nodes leads each group, and the others of them follow it."""
    async with asyncio.timeout(limit_s):
        while True:
            await asyncio.sleep(TICK_S / 4)
            for number in cluster.every[min(nodes)]:
                leads = [node for node in nodes if cluster.every[node][number].leads]
                known = {cluster.every[node][number].leader_node for node in nodes}
                if len(leads) != 1 or known != {leads[0]}:
                    break
            else:
                return


async def quiet_cluster(seed: int, group_count: int, *, plain: bool = False) -> tuple[Cluster, Watch]:
    """Its groups have leaders, and nothing has happened for some seconds."""
    cluster = Cluster(seed, group_count=group_count, plain=plain)
    watch = Watch(cluster)
    await cluster.start()
    await all_led(cluster)
    await asyncio.sleep(3)
    return cluster, watch


def ticked(cluster: Cluster) -> int:
    """How many groups have a deadline."""
    return sum(bool(group.deadline) for groups in cluster.every.values() for group in groups.values())


@pytest.mark.parametrize("plain", [False, True])
def test_quiet_groups_cost_nothing_and_keep_their_leaders(plain: bool) -> None:
    async def main() -> None:
        cluster, watch = await quiet_cluster(1, group_count=20, plain=plain)
        cluster.delivered.clear()
        watch.changes = 0
        await asyncio.sleep(60)
        assert not watch.changes
        if plain:
            assert sum(cluster.delivered[kind] for kind in HEARTBEATS) >= 20 * 2 * 2 * 590
        else:
            assert ticked(cluster) == 0
            assert set(cluster.delivered) == {"Beat", "Answer"}
            assert cluster.delivered["Beat"] <= 6 * 601
        # What was left alone still decides, and all members soon know.
        for number in cluster.every[1]:
            node = watch.leader_of(number)
            (future,) = cluster.drivers[node].propose(cluster.every[node][number], [b"%d" % number])
            assert (await future).value == str(number)
            assert await cluster.drivers[node].read_barrier(cluster.every[node][number]) >= 2
        await asyncio.sleep(1)
        assert not watch.changes
        for groups in cluster.every.values():
            for number, group in groups.items():
                assert group.machine.applied == [b"%d" % number]  # type: ignore[attr-defined]
        await asyncio.sleep(3)
        assert plain or ticked(cluster) == 0
        await cluster.close()

    run_virtual(main)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_node_that_is_cut_off_loses_its_quiet_groups_in_time(seed: int, plain: bool) -> None:
    """The bounds are those of the core: a new leader after the followers' timers, the old one steps down by itself."""

    async def main() -> None:
        cluster, watch = await quiet_cluster(seed, group_count=8, plain=plain)
        victim = watch.leader_of(7)
        others = [node for node in cluster.every if node != victim]
        before = {node: {n: g.raw.term for n, g in cluster.every[node].items()} for node in others}
        elsewhere = [n for n in cluster.every[victim] if watch.leader_of(n) != victim]
        cluster.isolate(victim)
        # No timer of a follower runs out before its time.
        await asyncio.sleep((ELECTION_TICKS - 1.5) * TICK_S)
        assert all(cluster.every[victim][n].leads for n in cluster.every[victim] if n not in elsewhere)
        await asyncio.sleep(7 * TICK_S)
        assert not any(group.leads for group in cluster.every[victim].values())
        await all_led(cluster, others, limit_s=3)
        for number in elsewhere:  # their leaders hear of a majority still
            assert all(cluster.every[node][number].raw.term == before[node][number] for node in others)
        cluster.heal()
        await all_led(cluster, limit_s=3)
        await asyncio.sleep(3)
        assert plain or ticked(cluster) == 0
        await cluster.close()

    run_virtual(main)


@pytest.mark.parametrize("seed", range(4))
def test_a_node_that_starts_again_is_told_everything(seed: int) -> None:
    async def main() -> None:
        cluster, watch = await quiet_cluster(seed, group_count=8)
        node = random.Random(seed).choice([1, 2, 3])
        led = [number for number in cluster.every[node] if watch.leader_of(number) == node]
        terms = {number: group.raw.term for number, group in cluster.every[node].items()}
        await cluster.crash(node)
        await cluster.start_node(node)  # before anybody's timer has run out
        await all_led(cluster)
        for number, term in terms.items():
            assert (cluster.every[node][number].raw.term == term) == (number not in led)
        await asyncio.sleep(3)
        assert ticked(cluster) == 0
        await cluster.close()

    run_virtual(main)


@pytest.mark.parametrize("seed", range(6))
def test_under_faults_an_equal_hash_speaks_for_followers_of_that_term_alone(seed: int) -> None:
    """Loss, reordering, cuts, restarts and proposals; at each equal hash the truth is looked up at both ends."""

    async def main() -> None:
        cluster = Cluster(seed, group_count=5)
        watch = Watch(cluster)
        await cluster.start()
        rng = cluster.random
        equal = 0

        def watched(node: int) -> None:
            driver = cluster.drivers[node]
            beaten = driver._timing.beaten

            def look(source: int, beat: Beat) -> Answer | None:
                nonlocal equal
                answer = beaten(source, beat)
                if answer is not None and answer.equal:
                    equal += 1
                    receiver = driver._timing._peers[source].receiver
                    for number in receiver.held():
                        pair, group = receiver.pairs[number], cluster.every[node][number]
                        assert (group.raw.term, group.raw.leader) == (pair.term, pair.leader)
                        assert group.raw.role is Role.FOLLOWER
                        assert group.raw.commit >= pair.commit
                        assert group.covered_by == source
                        assert watch.leaders[number, pair.term] == source
                return answer

            driver._timing.beaten = look  # type: ignore[method-assign]

        for node in cluster.every:
            watched(node)
        cluster.loss, cluster.reorder = 0.05, True
        futures = []
        for number in range(250):
            group = 7 + rng.randrange(5)
            node = watch.leader_of(group)
            if node and rng.random() < 0.4:
                with contextlib.suppress(NotLeader):
                    futures += cluster.drivers[node].propose(cluster.every[node][group], [b"%d" % number])
            await asyncio.sleep(rng.uniform(0, 0.3))
            fault = rng.randrange(40)
            if fault == 0:
                cluster.isolate(rng.choice([1, 2, 3]))
            elif fault == 1:
                cluster.cut = {frozenset(rng.sample([1, 2, 3], 2))}
            elif fault in (2, 3, 4):
                cluster.heal()
            elif fault == 5 and len(cluster.every) == 3:
                node = rng.choice([1, 2, 3])
                await cluster.crash(node)
                await asyncio.sleep(rng.choice([0.0, 0.5, 2.0]))
                await cluster.start_node(node)
                watched(node)
            elif fault == 6:
                cluster.drop = lambda kind: kind is MessageType.HEARTBEAT
            elif fault == 7:
                cluster.drop = lambda _: False
        await cluster.settle()
        await all_led(cluster)
        await asyncio.sleep(3)
        assert ticked(cluster) == 0
        assert equal > 100
        for number in cluster.every[1]:
            applied = [groups[number].machine.applied for groups in cluster.every.values()]  # type: ignore[attr-defined]
            assert applied[0] == applied[1] == applied[2]
        for future in futures:
            if future.done() and future.exception() is not None:
                assert isinstance(future.exception(), OutcomeUnknown | NotLeader)
        await cluster.close()

    run_virtual(main)


# --- the two ends by themselves ---------------------------------------------------------------------------------------


def pair_of(group: int, term: int = 1, commit: int = 1) -> Covered:
    return Covered(group, 1, 100 + group, 200 + group, term, commit)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32))
def test_both_ends_under_any_order_of_messages(seed: int) -> None:
    """What the sender counts as settled is known to the receiver as it stands; with order restored both agree."""
    rng = random.Random(seed)
    sender, receiver = BeatSender(1), BeatReceiver(10)
    true: dict[int, int] = {}  # the term in which each replica at the receiver follows
    flying: list[Beat | Answer] = []

    def heartbeat(pair: Covered) -> bool:
        true.setdefault(pair.group, pair.term)
        return true[pair.group] == pair.term

    def deliver(message: Beat | Answer) -> None:
        if isinstance(message, Beat):
            answer = receiver.take(message, heartbeat, lambda _: None)
            if answer is not None:
                flying.append(answer)
        else:
            counts, excepted = sender.answered(message)
            assert counts or not excepted

    lives = 10
    for _ in range(120):
        action = rng.randrange(9)
        group = rng.randrange(6)
        if action <= 1:
            sender.cover(pair_of(group, term=true.get(group, 1), commit=rng.randrange(5)))
        elif action == 2:
            sender.drop(group)
        elif action == 3 and rng.random() < 0.3:
            true[group] = true.get(group, 1) + 1
            receiver.except_(group)
        elif action == 4 and rng.random() < 0.1:
            lives += 1
            receiver = BeatReceiver(lives)
            true = {number: term + rng.randrange(2) for number, term in true.items()}
        elif action == 5 and rng.random() < 0.1:
            sender.lost()
        elif action == 6 and flying and rng.random() < 0.2:
            flying.pop(rng.randrange(len(flying)))
        elif action >= 6 and flying:
            at = rng.randrange(min(3, len(flying)))
            deliver(flying[at] if rng.random() < 0.1 else flying.pop(at))
        else:
            beat = sender.beat()
            if beat is not None:
                flying.append(beat)
        for number in receiver.held():
            assert true[number] == receiver.pairs[number].term
    flying.clear()
    sender.cover(pair_of(9))  # a sender that lost its peer says nothing until something is covered
    for _ in range(6):
        beat = sender.beat()
        while beat is not None or flying:
            deliver(beat if beat is not None else flying.pop(0))
            beat = None
    assert receiver.pairs == sender.pairs
    assert receiver.held() == list(receiver.pairs)
    assert all(sender.settled(number) for number in sender.pairs)


def test_a_pair_is_settled_only_by_an_answer_to_a_beat_that_named_it() -> None:
    sender, receiver = BeatSender(1), BeatReceiver(2)
    sender.cover(pair_of(1))
    first = sender.beat()
    assert first is not None
    sender.cover(pair_of(1, term=2))
    answer = receiver.take(first, lambda _: True, lambda _: None)
    assert answer is not None
    assert answer.equal
    assert sender.answered(answer) == (True, ())
    assert not sender.settled(1)


def test_beats_and_answers_as_bytes() -> None:
    beat = Beat(1 << 63, 7, True, (1 << 64) - 1, (pair_of(1), pair_of(2, 1 << 60, 5)), (3, 4))
    assert Beat.decode(memoryview(beat.encode())) == beat
    answer = Answer(5, 6, 7, False, (1, 9))
    assert Answer.decode(memoryview(answer.encode())) == answer
    for data, kind in ((beat.encode(), Beat), (answer.encode(), Answer)):
        for cut in range(len(data)):
            with pytest.raises(CorruptData):
                kind.decode(memoryview(data[:cut]))  # type: ignore[attr-defined]


def test_a_deposed_leader_hears_from_a_follower_that_its_beats_do_not_hold() -> None:
    """The lead is handed over where the old leader cannot hear the new one: only the third node can tell it."""

    async def main() -> None:
        cluster, watch = await quiet_cluster(3, group_count=4)
        old = watch.leader_of(7)
        new, third = (node for node in (1, 2, 3) if node != old)
        group = cluster.every[old][7]
        others = {number: watch.leader_of(number) for number in (8, 9, 10)}
        votes = []

        def lost(kind: MessageType) -> bool:
            if kind is MessageType.TIMEOUT_NOW:  # on its way before the cut
                cluster.cut = {frozenset((old, new))}
            if kind is MessageType.VOTE_RESP:
                votes.append(kind)
            return False

        cluster.drop = lost
        cluster.drivers[old].transfer_leader(group, 100 + new)
        term = group.raw.term
        await asyncio.sleep(20 * TICK_S)
        assert votes
        assert cluster.every[third][7].leader_node == watch.leader_of(7) != old
        assert group.raw.term > term
        # The third node's word of the other groups went on counting.
        assert all(cluster.every[third][number].leader_node == node for number, node in others.items() if node != new)
        await cluster.settle()
        await cluster.close()

    run_virtual(main)


@pytest.mark.parametrize("quiet", [False, True], ids=["at work", "covered by beats"])
def test_a_leader_whose_process_has_ended_is_waited_for_no_longer(quiet: bool) -> None:
    """Those who are told of it elect another soon, one after the other; one who is told alone changes little."""

    async def outage_s(seed: int, told: tuple[int, ...]) -> float:
        cluster = Cluster(seed)
        await cluster.start()
        loop = asyncio.get_running_loop()
        node = await cluster.leader()
        await all_led(cluster)
        if quiet:
            await asyncio.sleep(3)
        began = loop.time()
        await cluster.crash(node)
        await asyncio.sleep(0.005)  # what it had sent has arrived
        left = list(cluster.drivers)
        for place in told:
            cluster.drivers[left[place]].gone(node)
            cluster.drivers[left[place]].gone(node)  # by another connection
        await all_led(cluster, left)
        await cluster.close()
        return loop.time() - began

    def outages(*told: int) -> list[float]:
        found = []
        for seed in range(12):
            run_virtual(lambda seed=seed: _append(found, outage_s(seed, told)))  # type: ignore[misc]
        return found

    patient, told = outages(), outages(0, 1)
    assert min(patient) > 3 * TICK_S
    assert max(told) < 3 * TICK_S
    assert max(outages(0)) <= max(4 * ELECTION_TICKS * TICK_S, max(patient))


def test_who_has_much_to_apply_does_not_hurry_to_lead() -> None:
    """As after a restart: it could not serve before it has."""

    async def main() -> None:
        for seed in range(12):
            cluster = Cluster(seed)
            await cluster.start()
            node = await cluster.leader()
            await all_led(cluster)
            led = [number for number, group in cluster.every[node].items() if group.leads]
            await cluster.crash(node)
            late, other = list(cluster.drivers)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(group_module, "APPLY_LAG_MAX", -1)
                cluster.drivers[late].gone(node)
            cluster.drivers[other].gone(node)
            await all_led(cluster, [late, other])
            assert all(cluster.every[late][number].leader_node == other for number in led)
            await cluster.close()

    run_virtual(main)


async def _append(found: list[float], outage: Awaitable[float]) -> None:
    found.append(await outage)


@pytest.mark.parametrize("seed", range(3))
def test_a_leader_that_was_said_to_be_gone_and_is_not_is_followed_again(seed: int) -> None:
    """Its beats went on all the time: they must not pass for being followed by whoever has stood for election."""

    async def main() -> None:
        cluster, watch = await quiet_cluster(seed, group_count=8)
        node = watch.leader_of(7)
        doubter = next(other for other in cluster.every if other != node)
        cluster.drivers[doubter].gone(node)
        await asyncio.sleep(3)
        for every in cluster.every.values():
            assert all(group.raw.leader for group in every.values())
        assert ticked(cluster) == 0
        await cluster.close()

    run_virtual(main)
