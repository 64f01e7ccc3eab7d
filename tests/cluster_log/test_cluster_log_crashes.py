"""The log against a naive model, with the power cut at any call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iotdb_cluster.cluster.log import DurableLog
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.simulation import PowerCut


async def life(log: DurableLog, bench: Any, kit: Any, model: Any, states: list[Any], acked: list[int]) -> None:
    """Submit for a while; `states[n]` is the model after n submissions, `acked` counts the answered ones."""
    generator = kit.Generator(bench.rng)
    writer = asyncio.ensure_future(log.run())

    def answered() -> None:
        acked[0] += 1

    for _ in range(bench.rng.randint(1, 60)):
        records = generator.submission(model)
        for record in sorted(records, key=lambda record: type(record).__name__ != "State"):
            model.apply(record)
        states.append(kit.copy.deepcopy(model))
        log.submit(records, answered)
        if bench.rng.random() < 0.5:
            await asyncio.sleep(bench.rng.choice((0.0, 0.002, 0.01)))
        elif bench.rng.random() < 0.05:
            await asyncio.sleep(0.2)
        if writer.done():
            break
    if bench.rng.random() < 0.3 and not writer.done():
        await log.close()
    else:
        await asyncio.sleep(bench.rng.choice((0.0, 0.01, 0.1)))
    writer.cancel()
    await asyncio.wait({writer})


@pytest.mark.parametrize("seed", [*range(120), 1005, 1293])
def test_what_was_answered_survives_any_power_cut(seed: int, make_bench: Any, kit: Any) -> None:
    bench = make_bench(seed, spare_segments=seed % 3)
    model = kit.Model()
    states = [kit.copy.deepcopy(model)]
    acked = [0]
    for _ in range(6):
        kind = bench.rng.choice(("cut", "cut", "kill", "kill", "process", "stop", "fault"))
        if kind in ("cut", "kill"):
            bench.disk.cut_at = bench.disk.calls + bench.rng.choice((bench.rng.randint(1, 80), bench.rng.randint(1, 9)))
            bench.disk.cut_power = kind == "cut"
        try:
            log = bench.open()
            found = kit.holds(log)
            # The log holds the state after some number of submissions, of all that were answered at least.
            match = [n for n in range(acked[0], len(states)) if plain(states[n].replicas) == plain(found)]
            assert match, f"{acked[0]} of {len(states) - 1} submissions were answered"
            model = kit.copy.deepcopy(states[match[-1]])
            states = [kit.copy.deepcopy(model)]
            acked = [0]
            if kind == "fault":
                bench.disk.inject(bench.rng.choice(("write", "sync")), ".log", skip=bench.rng.randint(0, 30))
            bench.run(life(log, bench, kit, model, states, acked))
            assert kind == "fault" or not bench.faults
        except PowerCut:
            pass
        bench.faults.clear()
        bench.disk.rules.clear()
        bench.disk.cut_at = None
        if kind in ("process", "kill", "fault"):
            bench.disk.process_crash()
        elif bench.disk.powered:
            bench.disk.power_cut()
        bench.disk.power_on()
        if kind in ("kill", "fault") and bench.rng.random() < 0.5:
            # What a restarted node has read it may tell others: it must be durable by then.
            read = plain(bench.reopened())
            bench.disk.power_cut()
            assert plain(bench.reopened()) == read
    assert plain(bench.reopened()) in [plain(state.replicas) for state in states[acked[0] :]]


def plain(replicas: Any) -> Any:
    """Replicas of which nothing was ever said may be known or not."""
    return {number: replica for number, replica in sorted(replicas.items()) if not empty(replica)}


def empty(replica: Any) -> bool:
    return replica == type(replica)()


@pytest.mark.parametrize("seed", range(4))
def test_power_cut_at_each_call_of_one_run(seed: int, make_bench: Any, kit: Any) -> None:
    """Each of the calls of a run in turn, through releases, new segments and restarts."""
    call = 0
    finished = False
    while not finished:
        call += 7 if call > 60 else 1
        bench = make_bench(seed, segment_bytes=8 * kit.BLOCK, batch_bytes_max=5 * kit.BLOCK)
        model = kit.Model()
        states = [kit.copy.deepcopy(model)]
        acked = [0]
        bench.disk.cut_at = bench.disk.calls + call
        try:
            log = bench.open()
            bench.run(life(log, bench, kit, model, states, acked))
            finished = bench.disk.cut_at is not None
        except PowerCut:
            pass
        bench.disk.cut_at = None
        if bench.disk.powered:
            bench.disk.power_cut()
        bench.disk.power_on()
        found = plain(bench.reopened())
        assert found in [plain(state.replicas) for state in states[acked[0] :]], f"call {call}"
        assert plain(bench.reopened()) == found


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_are_detected_or_harmless(seed: int, make_bench: Any, kit: Any) -> None:
    bench = make_bench(seed)
    model = kit.Model()
    states = [kit.copy.deepcopy(model)]
    acked = [0]
    for _ in range(3):
        log = bench.open()
        bench.run(life(log, bench, kit, model, states, acked))
        log.abandon()
        bench.disk.process_crash()
        log = bench.open()
        found = plain(kit.holds(log))
        bench.run(log.close())
        model = kit.copy.deepcopy(next(state for state in reversed(states) if plain(state.replicas) == found))
        states, acked = [kit.copy.deepcopy(model)], [0]
    expected = plain(bench.reopened())
    assert expected == plain(model.replicas)
    names = [name for name in bench.disk.list(kit.DIRECTORY) if name.startswith("segment")]
    for _ in range(40):
        saved = kit.copy.deepcopy(bench.disk)  # opening mends what it can
        path = f"{kit.DIRECTORY}/{bench.rng.choice(names)}"
        size = bench.disk.open(path).size()
        offset, bit = bench.rng.randrange(size), bench.rng.randrange(8)
        if bench.rng.random() < 0.5:
            # Heads and tables, where a bit matters most.
            offset = offset // kit.BLOCK * kit.BLOCK + bench.rng.randrange(120)
        bench.disk.flip(path, offset, bit)
        log = None
        try:
            log = bench.open()
            found = plain(kit.holds(log))
            assert found == expected
        except CorruptData as exception:
            assert "offset" in str(exception)  # noqa: PT017
        if log is not None:
            log.abandon()
        bench.disk = saved
    assert plain(bench.reopened()) == expected
