"""Slots move between groups while clients write and read; whole nodes in the simulation."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
from collections.abc import Callable
from typing import Any

import crc32c
import pytest

from iotdb_cluster.cluster import giving, moving, receiving
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.copying import ListedFile
from iotdb_cluster.cluster.duties import Duties
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.data import Ready
from iotdb_cluster.errors import CallerError, OutcomeUnknown
from iotdb_cluster.meta import commands
from iotdb_cluster.simulation import SimulatedDisk, smoke
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.storage import Stage
from iotdb_cluster.world import World

NAMES = [smoke._name(number) for number in range(1, smoke.NODES + 1)]
MOVED_MS = 60_000


class Trial:
    """Three nodes; writers and readers, each acknowledged point remembered."""

    def __init__(self, seed: int, replication: int = 3) -> None:
        self.simulation = Simulation(seed, debug=False)
        self.nodes: dict[int, Node] = {}
        self.history = smoke._History()
        self.random = random.Random(f"moves:{seed}")
        self.replication = replication
        self.time = 0
        self.stop = False
        self.failed: list[tuple[int, CallerError]] = []  # (the node that was asked, what it said)
        self.killed = 0
        self.stall_ms = 0.0  # the longest insert through a node that was not killed
        self.reads = 0
        for number in range(1, smoke.NODES + 1):
            self.simulation.add_node(smoke._name(number), self._main(number))
        self.world = self.simulation.world("client")
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            settings = dataclasses.replace(smoke._settings(number), replication=self.replication)
            node = self.nodes[number] = Node(world, settings)
            await node.run()

        return main

    # --- clients ------------------------------------------------------------------------------------------------------

    async def write(self, count: int, node: int, partitions: int = 3) -> None:
        session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT, 30_000)
        for _ in range(count):
            self.time += 1
            device = f"root.move{self.time % 3}.d"
            at = (self.time * 7) % (partitions * smoke.PARTITION_MS)
            await self._insert(session, node, f"{device}.s1", at, float(self.time))
        session.drop()

    async def _insert(self, session: SimulatedClient, node: int, series: str, at: int, value: float) -> None:
        device, _, name = series.rpartition(".")
        began_ms = self.simulation.now_ms
        try:
            await session.insert(device, name, at, value)
        except CallerError as error:
            self.failed.append((node, error))
            self.history.maybe.setdefault(series, {})[at] = value
        else:
            self.history.maybe.get(series, {}).pop(at, None)
            self.history.acknowledged.setdefault(series, {})[at] = value
        self._took(node, began_ms)

    def _took(self, node: int, began_ms: float) -> None:
        if node != self.killed:
            self.stall_ms = max(self.stall_ms, self.simulation.now_ms - began_ms)

    async def load(self, node: int) -> None:
        """One client that writes a point and reads what it knows to be there, until told to stop."""
        session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT, 30_000)
        series = f"root.load{node}.d.s1"
        mine = self.history.acknowledged.setdefault(series, {})
        at = 0
        while not self.stop:
            at += 1
            await self._insert(session, node, series, (at * 37) % 3_000, float(at))
            floor = dict(mine)
            try:
                found = await session.points(series)
            except CallerError as error:
                self.failed.append((node, error))
                await asyncio.sleep(0.05)
                continue
            self.reads += 1
            for time, value in floor.items():
                known = self.history.maybe.get(series, {}).get(time)
                assert found.get(time) in (value, known), (series, time, value, found.get(time))
            if at % 7 == 0:
                await self._count(session, node, series, len(floor))
            await asyncio.sleep(0.01)
        session.drop()

    async def _count(self, session: SimulatedClient, node: int, series: str, least: int) -> None:
        device, _, name = series.rpartition(".")
        try:
            rows = await session.query(f"SELECT count({name}) FROM {device}")
        except CallerError as error:
            self.failed.append((node, error))
        else:
            assert rows[0][1][0] >= least, (rows, least)

    # --- moves --------------------------------------------------------------------------------------------------------

    def leader(self, group: int) -> int:
        """The node that leads a group, the latest where two believe it; 0 where none does."""
        found = [
            (term, number)
            for number, node in self.nodes.items()
            if self.is_up(number)
            for led, term in node.leading()
            if led == group
        ]
        return max(found, default=(0, 0))[1]

    def phase(self, move: int) -> str:
        """How far a move is, by those who drive it; "over" when meta has decided."""
        if self.is_over(move):
            return "over"
        for number, node in self.nodes.items():
            if self.is_up(number) and node._built:
                for one in node._migration.moving.progress():
                    if one["move"] == move:
                        return str(one["phase"])
        return ""

    def is_up(self, number: int) -> bool:
        return self.simulation.is_running(smoke._name(number))

    def state(self) -> Any:
        """Meta's state where it is newest."""
        nodes = [node for number, node in self.nodes.items() if self.is_up(number) and node._built]
        return max(nodes, key=lambda node: node._meta.index)._meta.state

    def propose(self, command: Callable[[Any], bytes]) -> Any:
        async def asked() -> Any:
            last: CallerError | None = None
            for _ in range(200):
                for number, node in self.nodes.items():
                    if self.is_up(number) and node._built:
                        try:
                            return await node._meta.propose(command, Deadline(node._world, 5_000))
                        except CallerError as error:
                            last = error
                await asyncio.sleep(0.05)
            raise last or AssertionError("no node runs")

        return self.simulation.run(asked(), MOVED_MS)

    def held(self, group: int) -> list[int]:
        """Slots of a group that hold anything."""
        leader = self.leader(group)
        return sorted(self.nodes[leader]._machines[group].data.slots_held())

    def begin(self, giver: int, receiver: int, slots: list[int]) -> int:
        if self.state().change is None:
            self.propose(lambda request: commands.rebalance(request, [(giver, receiver, slots)]))
        value = self.propose(lambda request: commands.begin_move(request, giver, receiver, slots))
        return int(value["move"])

    def crash_at(self, move: int, phase: str, victim: str, power_cut: bool = True) -> int:
        """Crash who leads one of the groups when the move has come to a phase, or is over; the node."""
        self.simulation.run_until(lambda: self.phase(move) in (phase, "over"), MOVED_MS)
        state = self.state().move(move)
        group = 0 if victim == "meta" or state is None else state.giver if victim == "giver" else state.receiver
        dead = self.leader(group) or 1
        self.killed = dead
        self.simulation.crash(NAMES[dead - 1], power_cut=power_cut)
        return dead

    def end_load(self, clients: list[Any]) -> None:
        self.stop = True
        self.simulation.run_until(lambda: all(client.done() for client in clients), MOVED_MS)

    def until_over(self, move: int) -> None:
        self.simulation.run_until(lambda: self.is_over(move), MOVED_MS)  # raises where it is not by then

    def is_over(self, move: int) -> bool:
        """Whether meta has decided; a node that has not heard of the beginning knows nothing."""
        known = [node._meta for number, node in self.nodes.items() if self.is_up(number) and node._built]
        return any(meta.index > move and meta.state.move(move) is None for meta in known)

    def until_settled(self) -> None:
        for _ in range(MOVED_MS // 200):
            if self.settled():
                return
            self.simulation.run_until(200)
        raise AssertionError("a group's log lacks what meta has decided")

    def settled(self) -> bool:
        """Every group's log says what meta has decided, on every node."""
        state = self.state()
        for number in self.nodes:
            if not self.is_up(number):
                return False
            for group, machine in self.nodes[number]._machines.items():
                data = machine.data
                if data.imports() or data.moves_away() or data.stages() or data.store.corrupt:
                    return False
                for slot in state.table.slots_of(group):
                    if data.slot_epoch(slot) != state.table.owner(slot)[1]:
                        return False
        return True

    def verify(self) -> None:
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)
        self.until_settled()
        self.simulation.run(self._verify(), smoke.SERVES_AGAIN_MS)

    async def _verify(self) -> None:
        for number in self.nodes:
            session = SimulatedClient(self.world, smoke._name(number), smoke.CLIENT_PORT, 30_000)
            for series, points in sorted(self.history.acknowledged.items()):
                found, maybe = await session.points(series), self.history.maybe.get(series, {})
                lost = {at: value for at, value in points.items() if found.get(at) not in (value, maybe.get(at))}
                assert not lost, (number, series, lost)
                strange = {at for at, value in found.items() if value not in (points.get(at), maybe.get(at))}
                assert not strange, (number, series, strange)
            session.drop()
        answer = await ask_admin(self.world, NAMES[0], smoke.NODETOOL_PORT + 1, {"command": "digest"})
        for group in answer["groups"]:
            assert group["equal"], answer
            assert len(group["digests"]) == self.replication


@pytest.mark.parametrize("replication", [1, 3])
def test_slots_move_with_all_that_is_in_them(replication: int) -> None:
    with Trial(1, replication) as trial:
        trial.simulation.run(trial.write(200, 1), 60_000)
        for giver in (1, 2, 3):
            receiver = giver % 3 + 1
            held = trial.held(giver)
            if not held:
                continue
            empty = [slot for slot in trial.state().table.slots_of(giver) if slot not in held][:500]
            for slots in (held, empty):
                move = trial.begin(giver, receiver, slots)
                trial.until_over(move)
                assert all(trial.state().table.owner(slot)[0] == receiver for slot in slots)
            trial.simulation.run(trial.write(50, 2), 60_000)
        assert not trial.failed
        trial.verify()


def test_a_file_of_another_replica_is_not_taken_for_the_one_that_is_wanted() -> None:
    """Replicas call their files alike, and what is in them differs: of one name and size only the checksum tells."""
    disk = SimulatedDisk()
    stage = Stage(disk, "/d/moves/5")
    stage.begin([])
    file = disk.open(f"{stage.make_unit('7.0.1')}/1.chunk", create=True)
    file.write(0, b"first replica")
    file.sync()
    file.close()
    mine = ListedFile(0, "1.chunk", 13, crc32c.crc32c(b"first replica"))
    other = ListedFile(0, "1.chunk", 13, crc32c.crc32c(b"other replica"))
    staged = receiving._Staged()
    assert receiving._lacking(stage, staged, [mine], ["7.0.1"]) == []
    assert receiving._lacking(stage, staged, [other], ["7.0.1"]) == [(other, "/d/moves/5/7.0.1/1.chunk")]
    assert receiving._lacking(stage, receiving._Staged(), [other], ["7.0.1"])


def test_a_majority_with_the_same_files_is_enough_where_this_node_is_among_them() -> None:
    def told(*answers: tuple[int, int | None]) -> int | None:
        round_ = moving._Round(world, [1, 2, 3], 1, moving.MoveProgress(5, 1, 2, 1))
        for node, checksum in answers:
            head = {"bytes": 9, "missing": 4, "fetched": 4, "fenced": False, "checksum": checksum}
            round_.told(node, head)
        return round_.agreed

    simulation = Simulation(1)
    world = simulation.world("client")
    assert told((1, 77)) is None
    assert told((1, 77), (2, None)) is None
    assert told((1, 77), (2, 78)) is None
    assert told((2, 77), (3, 77)) is None
    assert told((1, None), (2, 77), (3, 77)) is None
    assert told((1, 77), (3, 77)) == 77
    assert told((1, 77), (2, 78), (3, 77)) == 77
    simulation.close()


def test_a_backup_waits_until_slots_that_meta_has_decided_about_are_where_they_belong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The receiver's log lacks them yet, and the giver may have dropped them: they would be in no copy."""
    held_up = [False]
    tell = Duties._tell_slots

    async def tells(self: Duties, group: Any) -> bool:
        return True if held_up[0] else await tell(self, group)

    monkeypatch.setattr(Duties, "_tell_slots", tells)

    def ask(command: str, **fields: Any) -> Any:
        request = {"command": command, **fields}
        return trial.simulation.run(ask_admin(trial.world, NAMES[0], smoke.NODETOOL_PORT + 1, request), MOVED_MS)

    with Trial(4) as trial:
        trial.simulation.run(trial.write(60, 1), 60_000)
        giver = max((1, 2, 3), key=lambda group: len(trial.held(group)))
        held_up[0] = True
        trial.until_over(trial.begin(giver, giver % 3 + 1, trial.held(giver)))
        ask("backup", directory="/backup")
        trial.simulation.run_until(3_000)
        assert not ask("job")["ended"]
        held_up[0] = False
        trial.simulation.run_until(3_000)
        job = ask("job")
        assert (job["ended"], job["failure"]) == (True, ""), job


PHASES = ("copying", "fenced: schema and request ids", "fenced: last files", "decision", "over")
VICTIMS = ("giver", "receiver", "meta")


@pytest.mark.parametrize(
    ("phase", "victim"),
    [("copying", "giver"), (PHASES[1], "receiver"), (PHASES[2], "giver"), ("decision", "meta"), ("over", "receiver")],
)
def test_a_crash_at_any_phase_loses_nothing(phase: str, victim: str) -> None:
    """The leader of a group that takes part dies at once when the move has come so far; clients of others notice
    nothing but a pause."""
    with Trial(10 * PHASES.index(phase) + VICTIMS.index(victim)) as trial:
        trial.simulation.run(trial.write(120, 1), 60_000)
        clients = [trial.simulation.spawn(trial.load(number)) for number in (1, 2, 3)]
        trial.simulation.run_until(1_000)
        giver = max((1, 2, 3), key=lambda group: len(trial.held(group)))
        move = trial.begin(giver, giver % 3 + 1, trial.held(giver))
        dead = trial.crash_at(move, phase, victim, power_cut=False)
        trial.until_over(move)
        trial.simulation.run_until(1_000)
        trial.simulation.restart(NAMES[dead - 1])
        trial.simulation.run_until(1_000)
        trial.end_load(clients)
        assert trial.reads > 50
        trial.verify()
        assert trial.stall_ms < 2_500
        assert not [error for node, error in trial.failed if node != dead]


def test_what_is_ready_is_not_staged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked for the decision may not hear of it, while it is on its way: it finds the stages whole, or else
    every voter would own units without files."""
    finals: list[bool] = []
    asked: list[str] = []
    round_, decide = moving.Moving._round, moving.Moving._decide

    async def watched(self: moving.Moving, *args: Any, final: bool, **how: Any) -> Any:
        finals.append(final)
        return await round_(self, *args, final=final, **how)

    async def unheard(self: moving.Moving, move: Any, to: str) -> None:
        asked.append(to)
        if len(asked) < 4:
            raise OutcomeUnknown("meta does not answer")
        await decide(self, move, to)

    monkeypatch.setattr(moving.Moving, "_round", watched)
    monkeypatch.setattr(moving.Moving, "_decide", unheard)
    with Trial(3) as trial:
        trial.simulation.run(trial.write(60, 1), 60_000)
        giver = max((1, 2, 3), key=lambda group: len(trial.held(group)))
        trial.until_over(trial.begin(giver, giver % 3 + 1, trial.held(giver)))
        assert asked == ["receiver"] * 4
        assert finals.count(True) == 1
        trial.verify()


@pytest.mark.parametrize("seed", range(int(os.environ.get("MOVE_SEEDS", "2"))))
def test_moves_there_and_back_with_faults_at_random(seed: int) -> None:
    """More with MOVE_SEEDS=n in the environment."""
    with Trial(1_000 + seed, replication=3 if seed % 3 else 2) as trial:
        rng = trial.random
        trial.simulation.run(trial.write(120, 1), 60_000)
        clients = [trial.simulation.spawn(trial.load(number)) for number in (1, 2, 3)]
        for _ in range(3):
            givers = [group for group in (1, 2, 3) if trial.held(group)]
            giver = rng.choice(givers)
            receiver = rng.choice([group for group in (1, 2, 3) if group != giver])
            held = trial.held(giver)
            move = trial.begin(giver, receiver, rng.sample(held, rng.randrange(1, len(held) + 1)))
            fault = rng.choice(("crash", "crash", "block", "cut", "cancel", "none"))
            dead = 0
            if fault == "crash":
                dead = trial.crash_at(move, rng.choice(PHASES), rng.choice(VICTIMS), power_cut=bool(rng.randrange(2)))
            elif fault in ("block", "cut"):
                trial.simulation.run_until(rng.randrange(200))
                one, other = rng.sample(NAMES, 2)
                trial.simulation.network.block(one, other)
                if fault == "cut":
                    trial.simulation.network.block(other, one)
            elif fault == "cancel":
                trial.simulation.run_until(rng.randrange(100))
                trial.propose(lambda request, move=move: commands.end_move(request, move, "giver"))  # type: ignore[misc]
            trial.simulation.run_until(rng.randrange(1_500))
            trial.simulation.network.heal()
            if dead:
                trial.simulation.restart(NAMES[dead - 1])
            trial.until_over(move)
            trial.simulation.run(smoke._serving(trial.world), smoke.SERVES_AGAIN_MS)
            trial.until_settled()
        trial.end_load(clients)
        trial.verify()


def test_writes_that_a_move_cannot_keep_up_with_are_slowed_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """No round shrinks here: the giver lets writes of the moving slots wait, longer and longer, and no others."""
    monkeypatch.setattr(moving, "MOVE_ROUND_BYTES", 0)
    monkeypatch.setattr(moving, "MOVE_ROUNDS_MAX", 6)
    monkeypatch.setattr(moving, "SHRINKS", -1.0)
    fetch = receiving.MoveReceiving._fetch

    async def slowly(self: Any, one: Any, *how: Any) -> int:
        await asyncio.sleep(0 if one.round.final else 0.15)
        return await fetch(self, one, *how)

    monkeypatch.setattr(receiving.MoveReceiving, "_fetch", slowly)
    waits: set[float] = set()
    with Trial(1) as trial:
        clients = [trial.simulation.spawn(trial.load(node)) for node in (1, 2)]
        trial.simulation.run_until(2_000)
        giver = max((1, 2, 3), key=lambda group: len(trial.held(group)))
        slots = trial.held(giver)
        move = trial.begin(giver, giver % 3 + 1, slots)
        while not trial.is_over(move):
            trial.simulation.run_until(20)
            for number, node in trial.nodes.items():
                slowed = node._machines[giver].slowed
                assert not slowed or trial.leader(giver) == number
                assert set(slowed) <= set(slots)
                waits.update(slowed.values())
        assert max(waits) >= 100, waits
        assert sorted(waits) == [25 * 2**n for n in range(len(waits))]
        trial.simulation.run_until(500)
        assert not any(node._machines[giver].slowed for node in trial.nodes.values())
        trial.end_load(clients)
        assert not trial.failed
        trial.verify()


@pytest.mark.parametrize("voters", [1, 2, 3])
def test_a_wish_to_be_ready_that_is_heard_late_moves_nothing_that_is_not_staged(
    monkeypatch: pytest.MonkeyPatch, voters: int
) -> None:
    """The receiver's leader gives its wish up, and stages anew; it takes effect when so many voters do.

    Were the move decided then, they would own units without files, and the giver would drop them.
    """
    late: list[asyncio.Task[None]] = []
    again: list[str] = []  # stages that are worked on behind the wish
    propose, lacking = moving.Moving._propose, receiving._lacking

    async def once_more(work: Any) -> None:
        while len(again) < voters:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await work

    async def heard_late(self: moving.Moving, number: int, body: Any) -> None:
        if isinstance(body, Ready) and not late:
            late.append(asyncio.create_task(once_more(propose(self, number, body))))
            raise OutcomeUnknown("nobody answers")
        await propose(self, number, body)

    def watched(stage: Stage, *how: Any) -> Any:
        found = lacking(stage, *how)
        if late:
            again.append(stage.directory)
        return found

    monkeypatch.setattr(giving, "FENCE_MS_MAX", 5_000)  # meta does not hear the giver
    monkeypatch.setattr(moving.Moving, "_propose", heard_late)
    monkeypatch.setattr(receiving, "_lacking", watched)
    with Trial(3) as trial:
        trial.simulation.run(trial.write(60, 1), 60_000)
        giver = max((1, 2, 3), key=lambda group: len(trial.held(group)))
        trial.until_over(trial.begin(giver, giver % 3 + 1, trial.held(giver)))
        assert late[0].done()
        trial.verify()


@pytest.mark.parametrize("silent", ["giver", "receiver"])
def test_a_move_of_which_a_group_has_no_leader_waits_and_says_so_and_holds_up_nothing_else(silent: str) -> None:
    """One replica a group: the groups of the node that is down have no leader, all others go on."""
    with Trial(1, replication=1) as trial:
        trial.simulation.run(trial.write(60, 1), 60_000)
        down, up, other = trial.leader(1), trial.leader(2), trial.leader(3)
        assert (down, up, other) == (1, 2, 3)
        giver, receiver = (1, 2) if silent == "giver" else (2, 1)
        slots, theirs = trial.held(giver)[:3], list(trial.state().table.slots_of(3)[:5])
        trial.simulation.crash(NAMES[0])
        trial.simulation.run_until(3_000)
        move = trial.begin(giver, receiver, slots)
        trial.simulation.run_until(3_000)

        async def shown() -> list[Any]:
            answer = await ask_admin(trial.world, NAMES[2], smoke.NODETOOL_PORT + 3, {"command": "migration"})
            return [one for one in answer["moves"] if one["move"] == move]

        (one,) = trial.simulation.run(shown(), 10_000)
        assert one["waits_for"], one
        assert "group 1" in one["waits_for"] or "node1" in one["waits_for"] or "node 1" in one["waits_for"], one
        trial.until_over(trial.begin(3, 2, theirs))  # another move comes to its end meanwhile
        assert {trial.state().table.owner(slot)[0] for slot in theirs} == {2}
        session = SimulatedClient(trial.world, NAMES[1], smoke.CLIENT_PORT, 30_000)
        assert trial.simulation.run(session.query("SHOW STORAGE GROUP"), 10_000)
        trial.simulation.restart(NAMES[0])
        trial.until_over(move)
        assert {trial.state().table.owner(slot)[0] for slot in slots} == {receiver}
        trial.verify()
