"""State machines in the shell, and what a node does unasked: checkpoints, the log's low water, deletes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.duties import Duties
from iotdb_cluster.cluster.group import Outcome
from iotdb_cluster.cluster.housekeeping import Housekeeping
from iotdb_cluster.cluster.log import Compact
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.proposals import GROUP
from iotdb_cluster.cluster.reading import barrier_at_leader
from iotdb_cluster.cluster.serving import WriteServing
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.errors import CallerError, InvariantViolation, Moved, NotLeader, Status
from iotdb_cluster.limits import MIB
from iotdb_cluster.meta import commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import ConfState, Entries, Message, MessageType, Snapshot
from iotdb_cluster.requests import RequestId
from iotdb_cluster.simulation import SimulatedDisk
from tests.cluster.shell import run_virtual, world_of
from tests.cluster.test_cluster_shaping import Trial

ADDRESS = NodeAddress("127.0.0.1", 1, 2, 3)
SETTINGS = Settings(ADDRESS, (ADDRESS,), "/d", memtable_bytes_max=10 * MIB, disk_free_min_bytes=MIB)


# --- the meta group's checkpoints -------------------------------------------------------------------------------------


class MetaLog:
    """The durable log as `recover` sees it: every entry is of the term that `terms` says."""

    def __init__(self) -> None:
        self.mark = (1, 1)
        self.entries: dict[int, tuple[int, bytes]] = {}

    def first_index(self) -> int:
        return self.mark[0] + 1

    def last_index(self) -> int:
        return max(self.entries, default=self.mark[0])

    def term(self, index: int) -> int:
        return self.mark[1] if index == self.mark[0] else self.entries[index][0]


def entry(index: int) -> bytes:
    return commands.create_user(RequestId(1, 1, index, 1), f"user{index}", "hash")


def applied(machine: MetaMachine, first: int, last: int, term: int) -> None:
    for index in range(first, last + 1):
        machine.apply(Entries(index, [term], [0], [entry(index)]))


def test_a_snapshot_may_be_received_while_a_checkpoint_is_written() -> None:
    """By two workers: both remove what is out of date."""

    class Beside(SimulatedDisk):
        """A received snapshot is staged whole between a look at the directory and what follows from it."""

        received: Snapshot | None = None

        def list(self, path: str) -> list[str]:
            names = super().list(path)
            snapshot, self.received = self.received, None
            if snapshot is not None:
                machine.receive(snapshot)
            return names

    disk = Beside(random.Random(1))
    machine = MetaMachine(disk, "/meta", lambda: None)
    machine.members = ConfState((1, 2, 3))
    applied(machine, 2, 5, 1)
    machine.stage(machine.snapshot())
    applied(machine, 6, 8, 1)
    machine.checkpointed = 7
    disk.received = replace(machine.snapshot(), index=20)
    machine.stage(machine.snapshot())
    assert sorted(machine._indexes()) == [8, 20]


def test_a_leader_brings_up_a_member_that_it_takes_for_empty_however_young_the_group_is() -> None:
    """It led the term before as well, and a member answers an append of that: as if it had nothing."""
    with Trial(1, replication=3, nodes=3) as trial:
        trial.simulation.run_until(1_000)
        trial._stop = True  # an answer that is on its way would say what the member has
        trial.simulation.run_until(1_000)
        drivers = [node._driver for node in trial.nodes.values()]
        leading = [(driver, group) for driver in drivers for group in driver.groups.values() if group.leads]
        driver, group = next((driver, group) for driver, group in leading if group.id and group.raw.commit > 2)
        assert group.log.first_index() == 2
        member = next(replica for replica in group.nodes if replica != group.replica)
        assert group.machine.data.published == 0  # type: ignore[attr-defined]
        progress = group.raw._raft.progress[member]
        progress.become_probe()
        progress.match, progress.next = 0, group.raw.last_index + 1
        driver.step(group, Message(MessageType.APP_RESP, group.replica, member, group.raw.term))
        assert not group.raw.member_has(member, group.raw.commit)
        trial.simulation.run_until(lambda: group.raw.member_has(member, group.raw.commit), 10_000)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_meta_comes_back_from_every_power_cut(seed: int) -> None:
    rng = random.Random(seed)
    disk = SimulatedDisk(random.Random(seed + 1))
    log = MetaLog()
    machine = MetaMachine(disk.mount(), "/meta", lambda: None)
    machine.recover(log)  # type: ignore[arg-type]
    received_at: set[tuple[int, int]] = set()
    for _ in range(12):
        action = rng.random()
        term = max(machine.term, 1) + (rng.random() < 0.3)
        if action < 0.4:
            first, last = machine.index + 1, machine.index + rng.randint(1, 900)
            term += (last, term) in received_at  # else they would hold what that snapshot holds
            log.entries = {index: one for index, one in log.entries.items() if index < first}
            log.entries.update(dict.fromkeys(range(first, last + 1), (term, b"")))
            applied(machine, last, last, term)
        elif action < 0.6 and machine.index > 1:
            snapshot = machine.snapshot()
            machine.stage(snapshot)
            if rng.random() < 0.7:  # else the power goes before anybody knew
                machine.checkpointed = snapshot.index
                keep = machine.forgettable
                if keep >= log.first_index():
                    log.mark = (keep, log.term(keep))
                    log.entries = {index: one for index, one in log.entries.items() if index > keep}
        elif action < 0.8:
            other = MetaMachine(disk.mount(), "/elsewhere", lambda: None)
            other.index = machine.index
            index = machine.index + rng.randint(1, 2_000)
            applied(other, index, index, term)
            received = Snapshot(index, term, ConfState((1,)), other.state.dump())
            machine.receive(received)
            received_at.add((index, term))
            if rng.random() < 0.4:
                log.mark, log.entries = (index, term), {}
                machine.install(received)
            elif rng.random() < 0.5:  # entries of an older leader reach beyond it: they were never committed
                old = machine.index + 1
                log.entries.update({at: (max(term - 1, 0), b"") for at in range(old, index + 5)})
        if rng.random() < 0.5:
            before, state = machine.index, machine.state.dump()
            disk.power_cut()
            disk.power_on()
            machine = MetaMachine(disk.mount(), "/meta", lambda: None)
            machine.recover(log)  # type: ignore[arg-type]
            assert log.first_index() - 1 <= machine.index <= log.last_index()
            # Beyond what was applied only where the log agrees with a staged snapshot: then all of it is committed.
            assert machine.index <= before or machine.term == log.term(machine.index)
            if machine.index == before and machine.index > 1:
                assert machine.state.dump() == state
            elif machine.index < before:
                applied(machine, before, before, log.term(before))


# --- deletes that somebody waits for ----------------------------------------------------------------------------------


class FakeData:
    def __init__(self) -> None:
        self.last_intent = 0
        self.open: set[int] = set()
        self.dropped = False
        self.applied = self.published = 0

    def is_dropped(self, _: int) -> bool:
        return self.dropped

    def is_retired(self, _: int, number: int) -> bool:
        return number <= self.last_intent and number not in self.open

    def apply_many(self, first: int, _: list[int], payloads: list[bytes]) -> list[Outcome]:
        self.applied = first + len(payloads) - 1
        return [Outcome() for _ in payloads]


def test_a_delete_that_the_replica_has_not_heard_of_is_not_retired() -> None:
    async def main() -> None:
        data = FakeData()
        machine = DataMachine(data, lambda: None)  # type: ignore[arg-type]
        waiting = [asyncio.create_task(machine.retired(5, 3)) for _ in range(2)]
        dropped = asyncio.create_task(machine.retired(6, 9))
        await asyncio.sleep(1)
        assert not any(task.done() for task in waiting)
        data.last_intent, data.open = 3, {3}
        machine.apply(Entries(2, [1], [0], [b"x"]))
        waiting[0].cancel()
        await asyncio.sleep(1)
        assert not waiting[1].done()
        data.open = set()
        machine.apply(Entries(3, [1], [0], [b"x"]))
        await waiting[1]
        assert not dropped.done()
        data.dropped = True
        machine.apply(Entries(4, [1], [0], [b"x"]))
        await dropped
        assert not machine._retired

    run_virtual(main)


# --- a leader's refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "confirmed"), [(CallerError(Status.TIMESERIES_NOT_EXIST, "no series"), True), (Moved("m"), False)]
)
def test_a_refusal_that_may_change_is_confirmed_by_a_majority(refusal: CallerError, confirmed: bool) -> None:
    async def main() -> None:
        barriers = []
        world = world_of(1)

        def validate(_: bytes) -> None:
            if not barriers:
                raise refusal

        async def read_barrier(_: Any, leader_only: bool) -> int:
            barriers.append(leader_only)
            return 1

        def propose(*_: Any) -> list[asyncio.Future[Outcome]]:
            future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            future.set_result(Outcome("done"))
            return [future]

        group = SimpleNamespace(id=7, leads=True)
        driver = SimpleNamespace(groups={7: group}, read_barrier=read_barrier, propose=propose)
        machines = {7: SimpleNamespace(data=SimpleNamespace(validate=validate), slowed={})}

        async def admit(*_: Any) -> None:
            """There is room."""

        guard = SimpleNamespace(admit=admit)
        serving = WriteServing(driver, machines, None, guard)  # type: ignore[arg-type]
        body = memoryview(GROUP.pack(7) + b"entry")
        if confirmed:
            assert unpack(await serving.propose(body, Deadline(world, 1_000)))[0] == "done"
            assert barriers == [True]
            return
        with pytest.raises(type(refusal)):
            await serving.propose(body, Deadline(world, 1_000))
        assert not barriers

    run_virtual(main)


def test_who_waited_for_room_and_lost_the_lead_names_who_leads_now() -> None:
    async def main() -> None:
        group = SimpleNamespace(id=7, leads=True, not_leader=lambda: NotLeader(2, "node 2 leads"))

        async def admit(*_: Any) -> None:
            group.leads = False
            raise CallerError(Status.WRITE_PROCESS_REJECT, "another node is about to lead, try again")

        driver, guard = SimpleNamespace(groups={7: group}), SimpleNamespace(admit=admit)
        serving = WriteServing(driver, {7: SimpleNamespace(slowed={})}, None, guard)  # type: ignore[arg-type, dict-item]
        with pytest.raises(NotLeader, match="node 2 leads"):
            await serving.propose(memoryview(GROUP.pack(7) + b"entry"), Deadline(world_of(1), 1_000))

    run_virtual(main)


# --- housekeeping -----------------------------------------------------------------------------------------------------


class FakeJob:
    def __init__(self) -> None:
        self.ran = self.finished = False

    def run(self) -> None:
        self.ran = True

    def finish(self) -> None:
        self.finished = True


def housekeeping(machines: dict[int, Any], groups: dict[int, Any]) -> tuple[Housekeeping, list[Compact]]:
    world = world_of(1)
    submitted: list[Compact] = []
    log = SimpleNamespace(submit=lambda records, _: submitted.extend(records), bytes_pinned=lambda: 0, pins=list)
    meta = SimpleNamespace(checkpoint_due=False)
    cursors = SimpleNamespace(expire=lambda: None)
    driver = SimpleNamespace(groups=groups)
    keeper = Housekeeping(world, SETTINGS, driver, log, meta, machines, cursors)  # type: ignore[arg-type]
    return keeper, submitted


@pytest.mark.parametrize(("used", "pinned", "ended"), [(0.95, 0.5, 1), (0.95, 0.05, 0), (0.5, 0.5, 0)])
def test_over_the_budget_the_oldest_cursor_ends_where_cursors_keep_the_memory(
    used: float, pinned: float, ended: int
) -> None:
    async def main() -> None:
        budget = SETTINGS.memtable_bytes_max
        store = SimpleNamespace(memory_bytes=lambda: int(used * budget), pinned_bytes=lambda: int(pinned * budget))
        keeper, _ = housekeeping({7: SimpleNamespace(data=SimpleNamespace(store=store))}, {})
        said: list[str] = []
        keeper._cursors = SimpleNamespace(end_oldest=said.append)  # type: ignore[assignment]
        keeper._free_pinned()
        assert len(said) == ended

    run_virtual(main)


@pytest.mark.parametrize("crowded", [False, True])
def test_the_largest_is_flushed_first_and_in_a_log_that_is_full_the_oldest(crowded: bool) -> None:
    async def main() -> None:
        machines, groups = {}, {}
        for number, (size, behind) in {7: (9, 0.2), 8: (5, 1.4), 9: (1, 0.9)}.items():
            store = SimpleNamespace(memory_bytes=lambda size=size: size)
            machines[number] = SimpleNamespace(data=SimpleNamespace(store=store, applied=5, published=1))
            groups[number] = SimpleNamespace(replica=10 * number)
            groups[number].behind = behind
        keeper, _ = housekeeping(machines, groups)
        keeper._settings = replace(SETTINGS, memtable_flush_bytes=0)
        keeper._crowding = {group.replica: group.behind if crowded else 0.0 for group in groups.values()}
        assert keeper._due(0.0) == ([8, 9, 7] if crowded else [7, 8, 9])

    run_virtual(main)


@pytest.mark.parametrize(("lag", "consistency", "taken"), [(11, "mid", False), (10, "mid", True), (11, "weak", True)])
def test_mid_does_not_read_a_replica_that_lags_too_far(lag: int, consistency: str, taken: bool) -> None:
    async def main() -> None:
        group = SimpleNamespace(id=7, raw=SimpleNamespace(commit=100), applied=100 - lag)
        reading = barrier_at_leader(
            SimpleNamespace(groups={7: group}),  # type: ignore[arg-type]
            7,
            consistency,
            Deadline(world_of(1), 1_000),
            lag_max=10,
        )
        if taken:
            assert await reading is group  # type: ignore[comparison-overlap]
        else:
            with pytest.raises(CallerError, match="lacks 11 entries, max_read_log_lag allows 10"):
                await reading

    run_virtual(main)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.booleans()), max_size=30))
def test_the_log_forgets_nothing_that_is_needed(steps: list[tuple[int, int, bool]]) -> None:
    async def main() -> None:
        published, match, forgotten = 0, 0, 0
        data = SimpleNamespace(published=0)
        here, away = SimpleNamespace(match=10_000, active=True), SimpleNamespace(match=0, active=False)
        status = SimpleNamespace(progress={3: here, 2: away})
        log = SimpleNamespace(first_index=lambda: forgotten + 1, term=lambda _: 1)
        raw = SimpleNamespace(status=lambda: status, term=1)
        group = SimpleNamespace(id=7, replica=3, leads=True, log=log, raw=raw)
        keeper, submitted = housekeeping({7: SimpleNamespace(data=data)}, {7: group})
        for more, matched, leads in steps:
            published, match = published + more, match + matched
            data.published, status.progress[2].match, group.leads = published, match, leads
            if not leads:
                keeper.take_water({"7": (match, 10_000)})
            keeper._compact(group)  # type: ignore[arg-type]
            for record in submitted:
                assert forgotten < record.index <= min(published, match)
                forgotten = record.index
            submitted.clear()

    run_virtual(main)


def test_a_crowded_log_forgets_what_a_member_that_is_away_lacks() -> None:
    async def main() -> None:
        here, away = SimpleNamespace(match=900, active=True), SimpleNamespace(match=5, active=True)
        status = SimpleNamespace(progress={3: here, 2: away})
        log = SimpleNamespace(first_index=lambda: 1, term=lambda _: 1)
        raw = SimpleNamespace(status=lambda: status, term=1)
        group = SimpleNamespace(id=7, replica=3, leads=True, log=log, raw=raw)
        keeper, submitted = housekeeping({7: SimpleNamespace(data=SimpleNamespace(published=800))}, {7: group})

        def compacted() -> list[int]:
            keeper._compact(group)  # type: ignore[arg-type]
            return [record.index for record in submitted]

        assert compacted() == []
        away.active = False
        await asyncio.sleep(10)
        assert compacted() == [], "there is room for what it lacks"
        keeper._crowding = {3: 1.5}
        away.active = True
        assert compacted() == [5], "it is slow, not away"
        away.active = False
        await asyncio.sleep(10)
        assert compacted() == [5, 800]
        away.active, keeper._machines[7].data.published = True, 850  # type: ignore[misc]
        assert compacted() == [5, 800], "it is waited for again"
        keeper._crowding = {3: 2.5}
        assert compacted() == [5, 800, 850], "not for ever"

    run_virtual(main)


FLUSH_ALL = memoryview(pack({"storage_groups": None}))


def test_a_flush_whose_caller_goes_is_carried_out_whole() -> None:
    async def main() -> None:
        jobs = [FakeJob() for _ in range(5)]
        published: list[int] = []
        store = SimpleNamespace(memory_bytes=lambda: 0, pinned_bytes=lambda: 0, collect=lambda: 0)
        store.corrupt, store.mirroring = {}, False
        checkpoint = SimpleNamespace(jobs=jobs, index=1, step=lambda: False)
        data = SimpleNamespace(
            store=store,
            freeze=lambda: checkpoint,
            publisher=lambda _: lambda: published.append(1),
            applied=1,
            published=1,
        )
        keeper, _ = housekeeping({7: SimpleNamespace(data=data, members=None, members_known=True, replaced=[])}, {})
        running = asyncio.create_task(keeper.run())
        flush = asyncio.create_task(keeper._flush_call(FLUSH_ALL, Deadline(world_of(1), 10_000)))
        await asyncio.sleep(0.001)
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
        await asyncio.sleep(1)
        assert all(job.ran and job.finished for job in jobs)
        assert published == [1]
        await keeper._flush_call(FLUSH_ALL, Deadline(world_of(1), 10_000))
        assert published == [1, 1]
        running.cancel()

    run_virtual(main)


def test_a_checkpoint_that_is_cancelled_leaves_no_memtable_without_a_job() -> None:
    async def main() -> None:
        jobs = [FakeJob() for _ in range(3)]
        store = SimpleNamespace(corrupt={}, mirroring=False)

        def step() -> bool:
            running.cancel()
            return True

        checkpoint = SimpleNamespace(jobs=jobs, index=1, step=step)
        data = SimpleNamespace(store=store, freeze=lambda: checkpoint)
        keeper, _ = housekeeping({7: SimpleNamespace(data=data, members=None, members_known=True, replaced=[])}, {})
        running = asyncio.create_task(keeper.checkpoint(7))
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)
        assert all(job.finished for job in jobs)

    run_virtual(main)


# --- duties -----------------------------------------------------------------------------------------------------------


def duties(steps: dict[str, Callable[[], Any]]) -> Duties:
    one = Duties(None, None, None, None, {}, None)  # type: ignore[arg-type]
    one._due = lambda: [((name, 0), step) for name, step in steps.items()]  # type: ignore[method-assign]
    return one


def test_a_step_that_waits_does_not_hold_up_the_others() -> None:
    async def main() -> None:
        done: list[str] = []

        async def slow() -> bool:
            await asyncio.sleep(5)
            done.append("slow")
            raise CallerError(Status.NO_LEADER, "no majority")

        async def quick() -> bool:
            done.append("quick")
            return False

        one = duties({"slow": slow, "quick": quick})
        running = asyncio.create_task(one.run())
        await asyncio.sleep(1)
        one.wake()
        await asyncio.sleep(0.1)
        assert "slow" not in done
        assert done.count("quick") >= 10
        await asyncio.sleep(10)
        assert done.count("slow") == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not one._running

    run_virtual(main)


def test_what_changes_while_a_step_runs_is_looked_at_again_soon() -> None:
    async def main() -> None:
        began: list[float] = []
        loop = asyncio.get_running_loop()

        async def step() -> bool:
            began.append(loop.time())
            await asyncio.sleep(0.02)
            return False

        one = duties({"step": step})
        running = asyncio.create_task(one.run())
        await asyncio.sleep(0.01)
        one.wake()
        await asyncio.sleep(0.05)
        assert len(began) == 2
        running.cancel()

    run_virtual(main)


def test_our_bug_in_a_step_ends_the_duties() -> None:
    async def main() -> None:
        async def broken() -> bool:
            raise InvariantViolation("7 is not 8")

        with pytest.raises(InvariantViolation, match="7 is not 8"):
            await duties({"broken": broken}).run()

    run_virtual(main)
